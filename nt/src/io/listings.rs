//! Names of host folders in any case: kept while a folder's time of change is the same, and brought up to date by what
//! lstar itself changes, so that a folder of many files is not read again for each that is created.
//!
//! The host's clock is coarse. A name that somebody else makes in the very moment of a change by lstar can be missed in
//! another spelling until the folder changes again; in its own spelling it is found without a listing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use super::path::fold;

#[derive(Debug)]
struct Listing {
    changed: (i64, u64),
    names: HashMap<String, String>,
}

/// What a change does to a folder's names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change<'a> {
    Added(&'a str),
    Removed(&'a str),
    /// It is not told: the folder is read again when it is asked about.
    Other,
}

/// Listings of folders.
#[derive(Debug, Default)]
pub(super) struct Listings(RefCell<HashMap<(u64, u64), Listing>>);

fn time_of_change(stat: &Stat) -> (i64, u64) {
    (stat.st_mtime, stat.st_mtime_nsec)
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

impl Listings {
    /// The real name of an entry that is called so in any case.
    pub fn find(&self, folder: BorrowedFd<'_>, name: &str) -> Result<Option<String>, Errno> {
        let stat = rustix::fs::fstat(folder)?;
        let changed = time_of_change(&stat);
        let mut listings = self.0.borrow_mut();
        let listing = listings.entry(identity(&stat)).or_insert_with(|| Listing {
            // Differs from any real time of change.
            changed: (i64::MIN, 0),
            names: HashMap::new(),
        });
        if listing.changed != changed {
            listing.names = names_in(folder)?.into_iter().map(|name| (fold(&name), name)).collect();
            listing.changed = changed;
        }
        Ok(listing.names.get(&fold(name)).cloned())
    }

    /// Changes a folder by `operation`.
    pub fn change<T>(
        &self,
        folder: BorrowedFd<'_>,
        change: Change<'_>,
        operation: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let before = rustix::fs::fstat(folder)?;
        let result = operation()?;
        let after = rustix::fs::fstat(folder)?;
        let mut listings = self.0.borrow_mut();
        match (listings.get_mut(&identity(&before)), change) {
            (Some(listing), Change::Added(name)) if listing.changed == time_of_change(&before) => {
                listing.names.insert(fold(name), name.to_owned());
                listing.changed = time_of_change(&after);
            }
            (Some(listing), Change::Removed(name)) if listing.changed == time_of_change(&before) => {
                listing.names.remove(&fold(name));
                listing.changed = time_of_change(&after);
            }
            _ => {
                listings.remove(&identity(&before));
            }
        }
        Ok(result)
    }
}

/// Names in a folder that are text and could be a component of an NT path.
pub(super) fn names_in(folder: BorrowedFd<'_>) -> Result<Vec<String>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = rustix::fs::openat(folder, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(readable)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && super::NtPath::parse(name).is_ok_and(|path| path.parts == [name])
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn own_changes_and_those_of_others_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(folder.path()).unwrap();
        let listings = Listings::default();
        let find = |name| listings.find(fd.as_fd(), name).unwrap();
        let write = |name: &str| std::fs::write(folder.path().join(name), "").map_err(|_| Errno::IO);
        assert_eq!(find("one"), None);
        listings.change(fd.as_fd(), Change::Added("One"), || write("One")).unwrap();
        assert_eq!(find("ONE").as_deref(), Some("One"));
        // Nobody has read the folder for that: a name that is not there is believed, until the folder changes.
        listings.change(fd.as_fd(), Change::Added("Ghost"), || write("real")).unwrap();
        assert_eq!(find("GHOST").as_deref(), Some("Ghost"));
        listings.change(fd.as_fd(), Change::Other, || write("Two")).unwrap();
        assert_eq!((find("two").as_deref(), find("ghost"), find("REAL").as_deref()), (Some("Two"), None, Some("real")));
        listings.change(fd.as_fd(), Change::Removed("two"), || Ok(())).unwrap();
        assert_eq!(find("Two"), None);
        std::thread::sleep(std::time::Duration::from_millis(30));
        write("Three").unwrap();
        assert_eq!((find("THREE").as_deref(), find("TWO").as_deref()), (Some("Three"), Some("Two")));
    }
}
