//! The persistent translation cache: where its files are, and `lstar cache`.
//!
//! One file a program, named after its path; see [`lstar_runtime::code_store`] for what is in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use indicatif::HumanBytes;
use lstar_nt::system::System;
use lstar_runtime::code_store::CodeStore;
use serde_json::json;

use crate::args::{CacheAction, CacheArgs};
use crate::cache_build;

/// Most bytes of all files together; the ones unused for longest go first.
const SIZE_LIMIT: u64 = 1 << 30;
/// Ending of the files' names.
const EXTENSION: &str = "regions";

/// What is wrong without one.
pub const NO_FOLDER: &str = "no folder for the cache; set HOME or XDG_CACHE_HOME";

/// `lstar cache`.
pub fn run(args: &CacheArgs) -> Result<u8> {
    if let CacheAction::Build(build) = &args.action {
        return cache_build::run(build, args.json);
    }
    let folder = folder().context(NO_FOLDER)?;
    let files = files(&folder);
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    match &args.action {
        CacheAction::Build(_) => {}
        CacheAction::Stat if args.json => {
            println!("{}", json!({ "folder": folder, "files": files.len(), "bytes": bytes }));
        }
        CacheAction::Stat => {
            println!("{}: translated code of {} programs, {}", folder.display(), files.len(), HumanBytes(bytes));
        }
        CacheAction::Clear => {
            for file in &files {
                if let Err(error) = fs::remove_file(&file.path) {
                    bail!("cannot remove {}: {error}", file.path.display());
                }
            }
            println!("removed the translated code of {} programs, {}", files.len(), HumanBytes(bytes));
        }
    }
    Ok(0)
}

/// `$XDG_CACHE_HOME/lstar` or `~/.cache/lstar`.
fn folder() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|base| base.join("lstar"))
}

struct File {
    path: PathBuf,
    size: u64,
    used: SystemTime,
}

fn files(folder: &Path) -> Vec<File> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let path = entry.path();
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            let ours = path.extension().is_some_and(|extension| extension == EXTENSION);
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            ours.then_some(File { path, size: metadata.len(), used })
        })
        .collect()
}

/// Makes the folder, so that a process that confines itself to it can keep something there.
pub fn prepare() -> Option<PathBuf> {
    let folder = folder()?;
    fs::create_dir_all(&folder).ok()?;
    Some(folder)
}

/// Lets a system use what earlier runs of the same program have translated. Without a cache folder it goes without.
pub fn attach(system: &mut System, program: &Path) {
    let (Some(folder), Ok(program), Some(build)) = (folder(), program.canonicalize(), build()) else { return };
    let Ok(fingerprint) = system.machine.translation_fingerprint() else { return };
    let name: String = program.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name: String = name.chars().filter(|character| character.is_ascii_alphanumeric()).take(32).collect();
    let place = hash(program.as_os_str().as_encoded_bytes());
    let path = folder.join(format!("{name}-{place:016x}.{EXTENSION}"));
    system.machine.use_code_store(CodeStore::open(&path, &format!("{build} {fingerprint}")));
}

/// Keeps what the run has translated; that it cannot is no reason to fail.
pub fn save(system: &mut System) {
    let grown = system.machine.save_code().unwrap_or(true);
    let Some(folder) = folder().filter(|_| grown) else { return };
    let mut files = files(&folder);
    files.sort_by_key(|file| std::cmp::Reverse(file.used));
    let mut total = 0;
    for file in files {
        total += file.size;
        if total > SIZE_LIMIT {
            let _ = fs::remove_file(&file.path);
        }
    }
}

/// Names this build of lstar: another one may make other code.
fn build() -> Option<String> {
    let metadata = fs::metadata(std::env::current_exe().ok()?).ok()?;
    let modified = metadata.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(format!("{} {} {}", env!("CARGO_PKG_VERSION"), metadata.len(), modified.as_nanos()))
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}
