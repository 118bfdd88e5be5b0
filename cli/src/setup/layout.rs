//! Lays out a system root: the folder that the guest sees as the parent of `C:\Windows`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::wine::Origin;
use crate::inspect::find_entry;

/// Programs that Windows also keeps in `C:\Windows` itself.
const ALSO_IN_WINDOWS: [&str; 5] = ["explorer.exe", "regedit.exe", "notepad.exe", "winhlp32.exe", "hh.exe"];

/// Files to place, and what has been placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Number of files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How files get from their origin to the system root. Never by symbolic links: they would lead out of the root, which
/// the guest's drives do not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Hard links, for an origin that is ours and about to be deleted.
    Link,
    /// Copies, for an origin that belongs to somebody else: a guest that writes to its system files must not reach it.
    Copy,
}

/// Fills `root`, which must not exist, from `origin`; `extra` are further DLLs. `progress` is told of each file.
pub fn lay_out(
    origin: &Origin,
    extra: &[PathBuf],
    placement: Placement,
    root: &Path,
    progress: &mut dyn FnMut(Totals),
) -> Result<Totals> {
    let windows = root.join("windows");
    let system32 = windows.join("system32");
    let drivers = system32.join("drivers");
    fs::create_dir_all(&drivers).with_context(|| format!("cannot create {}", drivers.display()))?;
    let mut placer = Placer { placement, totals: Totals::default(), progress };
    match origin {
        Origin::Wine { dlls, nls, .. } => {
            for file in files(dlls)? {
                let driver = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("sys"));
                placer.place(&file, if driver { &drivers } else { &system32 })?;
            }
            for file in files(nls)?.iter().map(PathBuf::as_path).chain(extra.iter().map(PathBuf::as_path)) {
                placer.place(file, &system32)?;
            }
            let fonts = windows.join("fonts");
            fs::create_dir_all(&fonts).with_context(|| format!("cannot create {}", fonts.display()))?;
            for name in ALSO_IN_WINDOWS {
                let file = system32.join(name);
                if file.is_file() {
                    placer.place(&file, &windows)?;
                }
            }
        }
        Origin::Windows { windows: from } => {
            if let Some(from) = find_entry(from, "system32") {
                for file in files(&from)? {
                    placer.place(&file, &system32)?;
                }
            }
            for file in files(from)? {
                placer.place(&file, &windows)?;
            }
        }
    }
    Ok(placer.totals)
}

/// The plain files of a folder, by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

struct Placer<'a> {
    placement: Placement,
    totals: Totals,
    progress: &'a mut dyn FnMut(Totals),
}

impl Placer<'_> {
    /// Places a file under its name in lower case, as programs most often spell it.
    fn place(&mut self, file: &Path, folder: &Path) -> Result<()> {
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let target = folder.join(name);
        // Distributions link some DLLs to another folder: follow, or the guest would find a link out of its root.
        let source = fs::canonicalize(file).with_context(|| format!("cannot read {}", file.display()))?;
        if self.placement == Placement::Copy || fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target)
                .with_context(|| format!("cannot copy {} to {}", source.display(), target.display()))?;
        }
        self.totals.files += 1;
        self.totals.bytes += fs::metadata(&target).map_or(0, |metadata| metadata.len());
        (self.progress)(self.totals);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wine_s_files_go_where_windows_has_them() {
        let scratch = std::env::temp_dir().join(format!("lstar-layout-{}", std::process::id()));
        let (dlls, nls, root) = (scratch.join("dlls"), scratch.join("nls"), scratch.join("root"));
        fs::create_dir_all(&dlls).expect("scratch folder");
        fs::create_dir_all(&nls).expect("scratch folder");
        for name in ["ntdll.dll", "http.sys", "Explorer.exe"] {
            fs::write(dlls.join(name), name).expect("file");
        }
        std::os::unix::fs::symlink("ntdll.dll", dlls.join("linked.dll")).expect("link");
        fs::write(nls.join("locale.nls"), "nls").expect("file");
        let extra = scratch.join("zlib1.dll");
        fs::write(&extra, "zlib").expect("file");
        let origin = Origin::Wine { dlls, nls, version: "10.0".into() };
        let mut calls = 0;
        let totals = lay_out(&origin, &[extra], Placement::Link, &root, &mut |_| calls += 1);
        let exists = |name: &str| fs::symlink_metadata(root.join(name)).is_ok_and(|metadata| metadata.is_file());
        let placed = [
            "windows/system32/ntdll.dll",
            "windows/system32/linked.dll",
            "windows/system32/drivers/http.sys",
            "windows/system32/locale.nls",
            "windows/system32/zlib1.dll",
            "windows/system32/explorer.exe",
            "windows/explorer.exe",
        ]
        .map(exists);
        fs::remove_dir_all(&scratch).expect("clean up");
        assert_eq!(placed, [true; 7]);
        assert_eq!(totals.expect("laid out").files, 7);
        assert_eq!(calls, 7);
    }
}
