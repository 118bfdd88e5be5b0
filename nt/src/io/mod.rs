//! The I/O manager: sandboxed volumes, file objects, directory enumeration, standard streams.
//!
//! A guest sees drives; each is a host folder mounted read-only, read-write, or copy-on-write. [`volume`] is the only
//! module that names host files, always relative to an open folder and without following links, so that no path
//! leads out of a mount. Everything that does not concern disks (console, time, entropy) goes through [`Host`].

pub mod afd;
pub mod change_services;
pub mod changes;
pub mod console;
pub mod control;
pub mod directory;
pub mod file;
mod file_id;
pub mod filesystem;
pub mod host;
pub mod info;
mod listings;
pub mod mailslot;
pub mod mailslot_services;
pub mod mapped;
pub mod mount_manager;
pub mod path;
pub mod pending;
pub mod pipe;
pub mod pipe_services;
pub mod requests;
pub mod scatter;
pub mod services;
pub mod terminal;
pub mod transfer;
pub mod volume;

pub use directory::Enumeration;
pub use file::{FileKind, FileObject};
pub use filesystem::{CreateRequest, FileSystem};
pub use host::{DeterministicHost, Host, StdStream, StreamType, SystemHost};
pub use path::{NtPath, fold};
pub use volume::{MountAccess, Volume};

#[cfg(test)]
mod tests;

use crate::status::Status;

/// NTSTATUS for a host's refusal.
#[must_use]
pub fn status_of(error: rustix::io::Errno) -> Status {
    use rustix::io::Errno;
    match error {
        Errno::NOENT => Status::OBJECT_NAME_NOT_FOUND,
        Errno::EXIST => Status::OBJECT_NAME_COLLISION,
        Errno::NOTDIR => Status::OBJECT_PATH_NOT_FOUND,
        Errno::ISDIR => Status::FILE_IS_A_DIRECTORY,
        Errno::NOTEMPTY => Status::DIRECTORY_NOT_EMPTY,
        Errno::NAMETOOLONG | Errno::ILSEQ => Status::OBJECT_NAME_INVALID,
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Status::DISK_FULL,
        Errno::ROFS => Status::MEDIA_WRITE_PROTECTED,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => Status::INSUFFICIENT_RESOURCES,
        Errno::XDEV => Status::NOT_SAME_DEVICE,
        Errno::INVAL => Status::INVALID_PARAMETER,
        Errno::PIPE => Status::PIPE_BROKEN,
        Errno::IO => Status::IO_DEVICE_ERROR,
        _ => Status::ACCESS_DENIED,
    }
}

/// NTSTATUS for an error of the standard library.
#[must_use]
pub fn status_of_io(error: &std::io::Error) -> Status {
    rustix::io::Errno::from_io_error(error).map_or(Status::UNSUCCESSFUL, status_of)
}
