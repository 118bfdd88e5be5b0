//! The host folder of a run: what the guest changes on copy-on-write drives is kept there, and it goes with the run,
//! however that ends.
//!
//! A process that is killed cleans nothing up, and one that has [confined](crate::confine) itself cannot remove a folder
//! from the directory of temporary files. So another process does it: lstar itself, with the command that [`sweep`]
//! serves, waiting for the end of a pipe whose other end the run holds.

use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// What the folder's name begins with.
const PREFIX: &str = "lstar-run-";

/// A folder that is removed when this value is dropped, and when the process ends without doing so.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Who removes it, and what it waits for to be closed.
    sweeper: Option<(Child, ChildStdin)>,
    /// Removes it when there is no sweeper.
    _folder: Option<TempDir>,
}

impl RunFolder {
    /// Makes the folder, and starts who will remove it.
    pub fn make() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir();
        let folder = folder.context("cannot make a temporary folder; set TMPDIR to a writable one")?;
        match start_sweeper(folder.path()) {
            Ok(sweeper) => Ok(Self { path: folder.keep(), sweeper: Some(sweeper), _folder: None }),
            // Then it is only left behind when lstar is killed.
            Err(_) => Ok(Self { path: folder.path().to_owned(), sweeper: None, _folder: Some(folder) }),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let Some((mut child, end)) = self.sweeper.take() else { return };
        drop(end);
        // Whoever waits for lstar may look whether something is left. If it is, lstar cannot help it.
        let _ = child.wait();
    }
}

fn start_sweeper(folder: &Path) -> io::Result<(Child, ChildStdin)> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("sweep")
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // The terminal's Ctrl-C is for the run.
        .process_group(0)
        .spawn()?;
    match child.stdin.take() {
        Some(end) => Ok((child, end)),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Waits for the end of standard input, then removes the folder of a run.
pub fn sweep(folder: &Path) -> Result<u8> {
    let ours = folder.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX));
    if !ours || folder.is_symlink() {
        bail!("{} is not the folder of a run", folder.display());
    }
    let _ = io::stdin().read_to_end(&mut Vec::new());
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(0),
    }
}
