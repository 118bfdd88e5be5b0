//! FILE_OPEN_BY_FILE_ID: the file whose identifier (FileInternalInformation, FileIdInformation) is the name.
//!
//! The identifier is the host's inode number, which leads to no path by itself: the volume is searched, first where the
//! caller already is, then from its root. Nothing has to be remembered about files that were only listed.

use std::collections::VecDeque;

use super::file::{FileKind, FileObject};
use super::filesystem::FileSystem;
use super::path::NtPath;
use super::volume::{Found, Volume};
use crate::status::Status;

/// Entries that one search looks at: bounds how long a guest can make the host work.
const MOST_ENTRIES: usize = 1 << 18;

/// FILE_ID_128 and FILE_REFERENCE numbers as a name holds them; the upper half of the long form is zero.
fn identifier(name: &[u16]) -> Option<u64> {
    let (low, high) = name.split_at_checked(4)?;
    let zero = high.iter().all(|&unit| unit == 0);
    let value = low.iter().rev().fold(0, |value, &unit| value << 16 | u64::from(unit));
    (matches!(high.len(), 0 | 4) && zero && value != 0).then_some(value)
}

impl FileSystem {
    /// Volume and path of the file that an identifier means, on the volume of an open file or directory.
    pub fn by_identifier(&self, root: &FileObject, name: &[u16]) -> Result<(usize, NtPath), Status> {
        let id = identifier(name).ok_or(Status::INVALID_PARAMETER)?;
        let (index, near) = match &root.kind {
            FileKind::Volume(volume) => (*volume, &[][..]),
            _ => root.location().ok_or(Status::INVALID_PARAMETER)?,
        };
        let volume = self.volumes().get(index).ok_or(Status::NO_SUCH_DEVICE)?;
        let mut left = MOST_ENTRIES;
        // NTFS answers so, too, when there is no such file.
        let parts = search(volume, near, id, &mut left)
            .or_else(|| search(volume, &[], id, &mut left))
            .ok_or(Status::INVALID_PARAMETER)?;
        Ok((index, NtPath { parts, directory: false }))
    }
}

/// Looks at a path and everything below it, folder by folder.
fn search(volume: &Volume, start: &[String], id: u64, left: &mut usize) -> Option<Vec<String>> {
    let mut queue = VecDeque::from([start.to_vec()]);
    while let Some(path) = queue.pop_front() {
        *left = left.checked_sub(1)?;
        // Links that lead out, and what came or went meanwhile, are passed over.
        let Ok(found) = volume.lookup(&path) else { continue };
        if volume.stat(&found).is_ok_and(|stat| stat.st_ino == id) {
            return Some(path);
        }
        let Found::Directory(directory) = found else { continue };
        // A link to a folder above would be walked for ever.
        if directory.path != path {
            continue;
        }
        for name in volume.list(&directory).unwrap_or_default() {
            let mut below = path.clone();
            below.push(name);
            queue.push_back(below);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::io::MountAccess;

    #[test]
    fn files_are_found_by_their_numbers() {
        let folder = std::env::temp_dir().join(format!("lstar-file-id-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("a/b")).unwrap();
        std::fs::write(folder.join("a/b/deep"), b"x").unwrap();
        // A loop of links does not trap the search.
        std::os::unix::fs::symlink("..", folder.join("a/up")).unwrap();
        let id = std::fs::metadata(folder.join("a/b/deep")).unwrap().ino();
        let volume = Volume::mount('c', &folder, MountAccess::ReadOnly, &folder).unwrap();
        let mut left = MOST_ENTRIES;
        assert_eq!(search(&volume, &[], id, &mut left), Some(["a", "b", "deep"].map(str::to_owned).to_vec()));
        assert_eq!(search(&volume, &[], u64::MAX, &mut left), None);
        assert_eq!(search(&volume, &[], id, &mut 2), None);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn names_that_are_identifiers() {
        assert_eq!(identifier(&[0x3412, 0, 0, 0x1000]), Some(0x1000_0000_0000_3412));
        assert_eq!(identifier(&[5, 0, 0, 0, 0, 0, 0, 0]), Some(5));
        for bad in [&[][..], &[1, 2], &[5, 0, 0, 0, 1, 0, 0, 0], &[5; 5], &[0; 4]] {
            assert_eq!(identifier(bad), None, "{bad:?}");
        }
    }
}
