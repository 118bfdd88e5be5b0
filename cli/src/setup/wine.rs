//! Finds a Wine installation or a copy of `C:\Windows` whose DLLs can serve as the system root.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::inspect::{Purpose, find_entry, inspect};

/// Oldest Wine that works: earlier ones have no `bcryptprimitives.dll`, which every Rust program needs, and reach
/// past the system-call boundary.
pub const OLDEST_WINE: u32 = 9;

/// DLLs without which no program starts.
const ESSENTIAL: [&str; 5] = ["ntdll.dll", "kernel32.dll", "kernelbase.dll", "msvcrt.dll", "bcryptprimitives.dll"];

/// Where DLLs were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Wine's x64 DLLs and its NLS tables.
    Wine {
        /// Folder of the DLLs (`x86_64-windows`).
        dlls: PathBuf,
        /// Folder of the `*.nls` files.
        nls: PathBuf,
        /// Version as Wine writes it, such as `10.0`.
        version: String,
    },
    /// A copy of `C:\Windows`.
    Windows {
        /// The folder that holds `System32`.
        windows: PathBuf,
    },
}

impl Origin {
    /// What to call it in messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Wine { dlls, version, .. } => format!("Wine {version} in {}", dlls.display()),
            Self::Windows { windows } => format!("the Windows folder {}", windows.display()),
        }
    }
}

/// Looks for an installed Wine that is new enough, in the usual places and around the `wine` on the PATH.
#[must_use]
pub fn find_installed() -> Option<Origin> {
    let mut prefixes: Vec<PathBuf> =
        ["/usr", "/usr/local", "/opt/wine-stable", "/opt/wine-staging", "/opt/wine-devel"].map(PathBuf::from).to_vec();
    for folder in env::var_os("PATH").iter().flat_map(env::split_paths) {
        let Ok(program) = fs::canonicalize(folder.join("wine")) else { continue };
        prefixes.extend(program.ancestors().skip(2).take(3).map(PathBuf::from));
    }
    prefixes.iter().find_map(|prefix| wine_in(prefix).ok().flatten())
}

/// What `folder` holds: a Wine installation or its package tree, Wine's DLL folder itself, or a copy of Windows.
pub fn recognise(folder: &Path) -> Result<Origin> {
    if !folder.is_dir() {
        bail!("{} is not a folder; name a Wine installation or a copy of C:\\Windows", folder.display());
    }
    for windows in [Some(folder.to_path_buf()), find_entry(folder, "windows")].into_iter().flatten() {
        if let Some(system32) = find_entry(&windows, "system32") {
            check_essential(&system32)?;
            return Ok(Origin::Windows { windows });
        }
    }
    let prefixes = [folder.to_path_buf(), folder.join("usr")];
    let around = folder.ancestors().skip(1).take(4).map(PathBuf::from);
    for prefix in prefixes.into_iter().chain(around) {
        if let Some(origin) = wine_in(&prefix)? {
            return Ok(origin);
        }
    }
    bail!(
        "{} holds neither Wine's x86_64-windows DLLs nor a System32 folder; name a Wine {OLDEST_WINE} installation or \
         a copy of C:\\Windows",
        folder.display()
    )
}

/// A Wine below an installation prefix. `Ok(None)`: none there; an error: one that cannot be used.
fn wine_in(prefix: &Path) -> Result<Option<Origin>> {
    let libraries =
        ["lib/x86_64-linux-gnu/wine", "lib/wine", "lib64/wine", "lib/x86_64-linux-gnu/wine-stable", "lib/wine-stable"];
    for library in libraries {
        let dlls = prefix.join(library).join("x86_64-windows");
        if !dlls.join("ntdll.dll").is_file() {
            continue;
        }
        let share = prefix.join("share/wine");
        let nls = share.join("nls");
        if !nls.join("locale.nls").is_file() {
            bail!("{} has DLLs but no NLS tables in {}; reinstall Wine", dlls.display(), nls.display());
        }
        let version = fs::read_to_string(share.join("wine.inf")).ok().and_then(|text| version_of(&text));
        let Some(version) = version else {
            bail!("cannot tell the version of the Wine in {}; reinstall Wine", dlls.display());
        };
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok()).unwrap_or(0);
        if major < OLDEST_WINE {
            bail!("{} is Wine {version}; Wine {OLDEST_WINE} or newer is needed", dlls.display());
        }
        check_essential(&dlls)?;
        return Ok(Some(Origin::Wine { dlls, nls, version }));
    }
    Ok(None)
}

/// The version from the first lines of `wine.inf`: `;; Version: Wine 10.0`.
fn version_of(wine_inf: &str) -> Option<String> {
    let line = wine_inf.lines().take(8).find_map(|line| line.split_once("Version: Wine "))?;
    let version = line.1.split_whitespace().next()?;
    version.starts_with(|first: char| first.is_ascii_digit()).then(|| version.to_owned())
}

/// Checks that the DLLs without which nothing starts are there and are x64 DLLs.
pub fn check_essential(system32: &Path) -> Result<()> {
    for name in ESSENTIAL {
        let Some(path) = find_entry(system32, name) else {
            bail!("{} has no {name}; run `lstar setup`, or name another folder", system32.display());
        };
        if let Err(problem) = inspect(&path, Purpose::Library) {
            bail!("cannot use {}: {problem}", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_wine_s_version() {
        let text = ";; .INF script for the basic Wine configuration\n;; Version: Wine 10.0\n;;\n";
        assert_eq!(version_of(text).as_deref(), Some("10.0"));
        assert_eq!(version_of(";; Version: Wine \n"), None);
        assert_eq!(version_of("[version]\n"), None);
    }

    #[test]
    fn an_unsuitable_folder_is_explained() {
        let folder = env::temp_dir().join(format!("lstar-origin-{}", std::process::id()));
        fs::create_dir_all(folder.join("Windows/System32")).expect("scratch folder");
        let no_dlls = recognise(&folder).expect_err("no DLLs").to_string();
        let absent = recognise(&folder.join("absent")).expect_err("absent").to_string();
        fs::remove_dir_all(&folder).expect("clean up");
        assert!(no_dlls.contains("has no ntdll.dll"), "{no_dlls}");
        assert!(absent.contains("is not a folder"), "{absent}");
    }

    #[test]
    fn an_old_wine_is_refused() {
        let prefix = env::temp_dir().join(format!("lstar-old-wine-{}", std::process::id()));
        let dlls = prefix.join("lib/wine/x86_64-windows");
        fs::create_dir_all(&dlls).expect("scratch folder");
        fs::create_dir_all(prefix.join("share/wine/nls")).expect("scratch folder");
        fs::write(dlls.join("ntdll.dll"), b"").expect("dll");
        fs::write(prefix.join("share/wine/nls/locale.nls"), b"").expect("nls");
        fs::write(prefix.join("share/wine/wine.inf"), ";; Version: Wine 8.0\n").expect("inf");
        let text = recognise(&prefix).expect_err("too old").to_string();
        fs::remove_dir_all(&prefix).expect("clean up");
        assert!(text.contains("is Wine 8.0; Wine 9 or newer is needed"), "{text}");
    }
}
