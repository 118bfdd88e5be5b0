//! The registry of an installation: hives of the system root, where they exist.

use super::hive::{self, HiveError};
use super::{CreateOptions, LINK_VALUE, Registry, defaults, value_type};
use crate::status::Status;
use crate::strings::utf16_bytes;

/// Longest hive that is read.
pub const MOST_BYTES: u64 = 512 << 20;

/// Where a branch is kept.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The branch below `\Registry`; `{}` stands for the user.
    branch: &'static str,
    /// Its files, as the guest names them: the first that exists is it.
    pub files: &'static [&'static str],
}

/// All branches that Windows keeps in files. A user who has never logged on gets what is kept for new ones.
pub const PLACES: [Place; 7] = [
    Place { branch: "Machine\\System", files: &[r"C:\windows\system32\config\SYSTEM"] },
    Place { branch: "Machine\\Software", files: &[r"C:\windows\system32\config\SOFTWARE"] },
    Place { branch: "Machine\\Sam", files: &[r"C:\windows\system32\config\SAM"] },
    Place { branch: "Machine\\Security", files: &[r"C:\windows\system32\config\SECURITY"] },
    Place { branch: "User\\.Default", files: &[r"C:\windows\system32\config\DEFAULT"] },
    Place { branch: "User\\{}", files: &[r"C:\users\user\NTUSER.DAT", r"C:\users\Default\NTUSER.DAT"] },
    Place { branch: "User\\{}_Classes", files: &[r"C:\users\user\AppData\Local\Microsoft\Windows\UsrClass.dat"] },
];

/// Why hives make no registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A hive cannot be read.
    #[error("{0}: {1}")]
    Hive(&'static str, HiveError),
    /// SYSTEM does not say which of its sets of settings is in use.
    #[error("{0}: names no current control set")]
    NoControlSet(&'static str),
    /// The built-in keys do not fit to it.
    #[error("the built-in keys cannot be added: {0}")]
    Defaults(Status),
}

/// The registry that these hives, by their files, make, completed by built-in keys.
pub fn registry(now: i64, hives: &[(Place, &'static str, Vec<u8>)]) -> Result<Registry, LoadError> {
    let mut registry = defaults::branches(now).map_err(LoadError::Defaults)?;
    let mut loaded = Vec::new();
    for (place, file, bytes) in hives {
        let branch = place.branch.replace("{}", defaults::USER_SID);
        let key = registry.create_all(registry.root(), &branch, now).map_err(LoadError::Defaults)?;
        hive::read(&mut registry, key, bytes).map_err(|error| LoadError::Hive(file, error))?;
        // Windows' own keys may be as many as they are.
        registry.forgive();
        if branch == "Machine\\System" {
            choose_control_set(&mut registry, now).ok_or(LoadError::NoControlSet(file))?;
        }
        loaded.push(branch);
    }
    let is_loaded = |branch: &str| loaded.iter().any(|loaded| loaded.eq_ignore_ascii_case(branch));
    defaults::fill(&mut registry, now, &is_loaded).map_err(LoadError::Defaults)?;
    Ok(registry)
}

/// Makes CurrentControlSet a link to the set that `Select` names.
fn choose_control_set(registry: &mut Registry, now: i64) -> Option<()> {
    let system = registry.open(registry.root(), "Machine\\System").ok()?;
    if registry.open(system, "CurrentControlSet").is_ok() {
        return Some(());
    }
    let select = registry.open(system, "Select").ok()?;
    let current = registry.key(select).ok()?.value("Current")?;
    let number = u32::from_le_bytes(current.data.as_slice().try_into().ok()?);
    let set = format!("ControlSet{number:03}");
    registry.open(system, &set).ok()?;
    let options = CreateOptions { link: true, volatile: true, ..CreateOptions::default() };
    let (link, _) = registry.create(system, "CurrentControlSet", options, now).ok()?;
    let target = utf16_bytes(&format!("\\Registry\\Machine\\System\\{set}"));
    registry.set_value(link, LINK_VALUE, value_type::LINK, target, now).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(current: &str) -> Vec<u8> {
        let mut registry = Registry::new();
        let root = registry.create_all(registry.root(), "Machine", 0).unwrap();
        registry.create_all(root, "ControlSet002\\Control\\ProductOptions", 0).unwrap();
        let select = registry.create_all(root, "Select", 0).unwrap();
        registry.set_value(select, current, 4, vec![2, 0, 0, 0], 0).unwrap();
        hive::write(&registry, root).unwrap()
    }

    #[test]
    fn hives_take_the_place_of_built_in_keys() {
        let file = PLACES[0].files[0];
        let registry = registry(1, &[(PLACES[0], file, system("Current"))]).unwrap();
        let open = |path: &str| registry.open(registry.root(), path);
        assert!(open("Machine\\System\\CurrentControlSet\\Control\\ProductOptions").is_ok());
        // Built-in keys of this branch are not mixed in, but for those that no hive holds.
        assert!(open("Machine\\System\\CurrentControlSet\\Control\\Lsa").is_err());
        let active = "Machine\\System\\ControlSet002\\Control\\ComputerName\\ActiveComputerName";
        assert!(open(active).is_ok() && open("Machine\\Software\\Classes").is_ok());
    }

    #[test]
    fn what_makes_no_registry_is_told() {
        let file = PLACES[0].files[0];
        let told = |bytes: Vec<u8>| registry(1, &[(PLACES[0], file, bytes)]).unwrap_err().to_string();
        assert_eq!(told(system("LastKnownGood")), format!("{file}: names no current control set"));
        assert_eq!(told(b"regf".to_vec()), format!("{file}: not a registry hive"));
    }
}
