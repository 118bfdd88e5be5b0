//! `lstar setup`: provides the Windows DLLs that guests run with.

mod download;
mod layout;
mod sources;
mod wine;

use std::env;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use download::Step;
use layout::{Placement, Totals, lay_out};
use wine::{Origin, find_installed, recognise};

use crate::interrupt;

/// Written last into a complete system root: says where it came from.
const MARKER: &str = "lstar-setup.json";

/// What to set up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Use this Wine installation or copy of Windows.
    pub from: Option<PathBuf>,
    /// Set up again even if it has been done.
    pub force: bool,
    /// Report as JSON.
    pub json: bool,
}

/// The folder for the user's data: `$XDG_DATA_HOME/lstar` or `~/.local/share/lstar`.
pub fn data_folder() -> Result<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    match absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share"))) {
        Some(folder) => Ok(folder.join("lstar")),
        None => bail!("cannot tell where user data belongs: neither HOME nor XDG_DATA_HOME is set; set one"),
    }
}

/// The system root to use: `chosen`, or what `lstar setup` made. The result is the parent of the Windows folder.
pub fn system_root(chosen: Option<&Path>) -> Result<PathBuf> {
    if let Some(folder) = chosen {
        if !folder.is_dir() {
            bail!("the system root {} is not a folder; name the parent of a Windows folder", folder.display());
        }
        let Some(system32) = system32_of(folder) else {
            bail!("the system root {} has no windows/system32; name the parent of a Windows folder", folder.display());
        };
        wine::check_essential(&system32)?;
        return Ok(folder.to_path_buf());
    }
    let folder = data_folder()?.join("system-root");
    match system32_of(&folder) {
        Some(system32) => wine::check_essential(&system32).map(|()| folder),
        None => bail!("there are no Windows DLLs in {}; run `lstar setup` once", folder.display()),
    }
}

/// The folder with the DLLs of a system root.
#[must_use]
pub fn system32_of(root: &Path) -> Option<PathBuf> {
    let windows = crate::inspect::find_entry(root, "windows")?;
    crate::inspect::find_entry(&windows, "system32")
}

/// An error once Ctrl-C has been pressed.
fn check_interrupt() -> Result<()> {
    if interrupt::requested() { Err(interrupt::Interrupted.into()) } else { Ok(()) }
}

/// Runs the command.
pub fn run(options: &Options) -> Result<u8> {
    interrupt::watch();
    let base = data_folder()?;
    let root = base.join("system-root");
    if !options.force && options.from.is_none() && system_root(None).is_ok() {
        report(options, &already(&root));
        return Ok(0);
    }
    fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
    let scratch = Scratch::new(base.join("setup.partial"))?;
    let started = Instant::now();
    let bar = Bar::new();

    let (origin, extra, placement, downloaded) = match &options.from {
        Some(folder) => (recognise(folder)?, Vec::new(), Placement::Copy, None),
        None => match find_installed() {
            Some(origin) => (origin, Vec::new(), Placement::Copy, None),
            None => {
                let download = download::download(&scratch.0, &mut |step| bar.step(step))?;
                (download.origin, download.extra, Placement::Link, Some((download.bytes, download.packages)))
            }
        },
    };
    if root.starts_with(fs::canonicalize(origin_folder(&origin))?) || origin_folder(&origin).starts_with(&root) {
        bail!("{} is the system root itself; name another folder", origin_folder(&origin).display());
    }
    let new = scratch.0.join("system-root");
    let totals = lay_out(&origin, &extra, placement, &new, &mut |totals| bar.files(totals))?;
    let system32 = system32_of(&new).context("the new system root is incomplete")?;
    wine::check_essential(&system32)?;

    let source = match &downloaded {
        Some((_, packages)) => format!("Wine from the Debian packages {}", packages.join(", ")),
        None => origin.describe(),
    };
    let mut summary = json!({
        "status": "ready",
        "system_root": root,
        "source": source,
        "files": totals.files,
        "bytes": totals.bytes,
    });
    if let Origin::Wine { version, .. } = &origin {
        summary["wine_version"] = json!(version);
    }
    if let Some((bytes, packages)) = &downloaded {
        summary["downloaded_bytes"] = json!(bytes);
        summary["packages"] = json!(packages);
    }
    fs::write(new.join(MARKER), format!("{summary:#}\n"))
        .with_context(|| format!("cannot write to {}", new.display()))?;
    check_interrupt()?;
    if root.exists() {
        fs::rename(&root, scratch.0.join("old")).with_context(|| format!("cannot replace {}", root.display()))?;
    }
    fs::rename(&new, &root).with_context(|| format!("cannot create {}", root.display()))?;
    bar.0.finish_and_clear();
    summary["seconds"] = json!(started.elapsed().as_secs_f64());
    report(options, &summary);
    Ok(0)
}

fn origin_folder(origin: &Origin) -> &Path {
    match origin {
        Origin::Wine { dlls, .. } => dlls,
        Origin::Windows { windows } => windows,
    }
}

/// What an earlier run has noted, as a report.
fn already(root: &Path) -> Value {
    let noted = fs::read(root.join(MARKER)).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let mut summary = noted.filter(Value::is_object).unwrap_or_else(|| json!({ "source": "files already there" }));
    summary["status"] = json!("already set up");
    summary["system_root"] = json!(root);
    summary
}

fn report(options: &Options, summary: &Value) {
    if options.json {
        println!("{summary}");
        return;
    }
    let text = |key: &str| summary[key].as_str().unwrap_or_default().to_owned();
    if summary["status"] == "ready" {
        let number = |key: &str| summary[key].as_u64().unwrap_or_default();
        if summary["downloaded_bytes"].is_u64() {
            println!("downloaded {}", HumanBytes(number("downloaded_bytes")));
        }
        println!("placed {} files, {}", number("files"), HumanBytes(number("bytes")));
    } else {
        println!("already set up (use --force to do it again)");
    }
    println!("source: {}", text("source"));
    println!("system root: {}", text("system_root"));
    println!("next: lstar run PROGRAM.exe");
}

/// A folder that is deleted in the end, whatever the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(folder: PathBuf) -> Result<Self> {
        // One left behind by a killed run.
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Progress on standard error, only when that is a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let target =
            if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(spinner());
        bar.set_message("looking for Wine");
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    fn step(&self, step: Step) {
        match step {
            Step::Index => self.0.set_message("fetching the package index"),
            Step::Fetch(bytes, total) => {
                if self.0.length() != Some(total) {
                    self.0.set_length(total);
                    self.0.set_style(byte_bar());
                }
                self.0.set_message("downloading Wine");
                self.0.set_position(bytes.min(total));
            }
            Step::Unpack => {
                self.0.set_style(spinner());
                self.0.set_message("unpacking");
            }
        }
    }

    fn files(&self, totals: Totals) {
        self.0.set_style(spinner());
        self.0.set_message(format!("placing file {}, {}", totals.files, HumanBytes(totals.bytes)));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn byte_bar() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
