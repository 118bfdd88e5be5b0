//! `--state`: the file that keeps what runs change in the registry.
//!
//! It is read before the process confines itself and written after, when nothing outside the guest's drives can be opened any
//! more. So another process writes it: lstar itself, with the command that [`keep`] serves. It gets the whole text through a
//! pipe, its length first, and puts it in the place of the old one at once: of a run that is killed nothing is kept.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Longest file that is read.
const MOST_BYTES: u64 = 256 << 20;

/// The file of a run.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// What it holds.
    pub text: String,
    keeper: Option<(Child, ChildStdin)>,
}

impl StateFile {
    /// Reads the file, which need not exist, and starts who will write it.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = || format!("cannot use {} for the registry's changes", path.display());
        let text = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => EMPTY.to_owned(),
            Err(error) => return Err(error).with_context(failed),
            Ok(metadata) if !metadata.is_file() => bail!("{}: it is no file", failed()),
            Ok(metadata) if metadata.len() > MOST_BYTES => bail!("{}: it is too long", failed()),
            Ok(_) => decode(fs::read(path).with_context(failed)?).with_context(failed)?,
        };
        // A folder that cannot be written to is told before the run, not after it.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = fs::canonicalize(folder).with_context(failed)?;
        tempfile::tempfile_in(&folder).with_context(failed)?;
        let name = path.file_name().with_context(failed)?;
        let path = folder.join(name);
        let keeper = start_keeper(&path).with_context(failed)?;
        Ok(Self { path, text, keeper: Some(keeper) })
    }

    /// Writes the file anew.
    pub fn save(&mut self, text: &str) -> Result<()> {
        let failed = || format!("cannot write {}", self.path.display());
        let Some((mut child, mut pipe)) = self.keeper.take() else { return Ok(()) };
        let sent = writeln!(pipe, "{}", text.len()).and_then(|()| pipe.write_all(text.as_bytes()));
        drop(pipe);
        let status = child.wait().with_context(failed)?;
        sent.with_context(failed)?;
        if status.success() { Ok(()) } else { bail!("{}", failed()) }
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        if let Some((mut child, pipe)) = self.keeper.take() {
            drop(pipe);
            // It writes nothing.
            let _ = child.wait();
        }
    }
}

/// A file without changes.
const EMPTY: &str = "Windows Registry Editor Version 5.00\r\n";

/// The registry editor writes UTF-16, lstar UTF-8.
fn decode(bytes: Vec<u8>) -> Result<String> {
    let Some(rest) = bytes.strip_prefix(&[0xFF, 0xFE]) else {
        return String::from_utf8(bytes).context("it is neither UTF-8 nor UTF-16");
    };
    let units: Vec<u16> = rest.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    String::from_utf16(&units).context("it is neither UTF-8 nor UTF-16")
}

fn start_keeper(path: &Path) -> io::Result<(Child, ChildStdin)> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("keep")
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // The terminal's Ctrl-C is for the run.
        .process_group(0)
        .spawn()?;
    match child.stdin.take() {
        Some(pipe) => Ok((child, pipe)),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Takes a text from standard input and makes it the file's contents, if all of it has come.
pub fn keep(path: &Path) -> Result<u8> {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).context("cannot read what is to be kept")?;
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else { return Ok(0) };
    let (length, text) = (&bytes[..end], &bytes[end + 1..]);
    if std::str::from_utf8(length).ok().and_then(|length| length.parse().ok()) != Some(text.len()) {
        return Ok(0);
    }
    let failed = || format!("cannot write {}", path.display());
    let folder = path.parent().with_context(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    file.write_all(text).with_context(failed)?;
    if let Ok(old) = fs::metadata(path) {
        file.as_file().set_permissions(old.permissions()).with_context(failed)?;
    }
    file.persist(path).with_context(failed)?;
    Ok(0)
}
