//! File objects: what an open handle to a file, directory, volume or stream refers to.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};

use super::afd::{OfflineSocket, Socket};
use super::console::ConsoleEnd;
use super::directory::Enumeration;
use super::host::StdStream;
use super::mailslot::MailslotId;
use super::pipe::PipeEnd;
use super::volume::Directory;
use crate::object::ObjectId;

/// What is open.
#[derive(Debug)]
pub enum FileKind {
    /// A file of a volume.
    Disk {
        /// Index of the volume.
        volume: usize,
        /// Real names from the root.
        path: Vec<String>,
        /// The host's file.
        file: File,
    },
    /// A directory of a volume.
    Directory {
        /// Index of the volume.
        volume: usize,
        /// The folder; its `path` holds the real names from the root.
        directory: Directory,
        /// Where NtQueryDirectoryFile is.
        enumeration: Option<Enumeration>,
    },
    /// A volume itself (`\??\C:` without a path).
    Volume(usize),
    /// A standard stream of the host.
    Stream(StdStream),
    /// A file of the host's that a standard stream was redirected to.
    Redirected(File),
    /// A socket.
    Socket(Box<Socket>),
    /// The source of random numbers.
    Random,
    /// An end of the console.
    Console(ConsoleEnd),
    /// The null device.
    Null,
    /// An end of a pipe.
    Pipe(PipeEnd),
    /// The device that pipes are made on.
    PipeRoot,
    /// The reading end of a mailslot.
    Mailslot(MailslotId),
    /// An end of a mailslot to write to.
    MailslotWriter(MailslotId),
    /// The device that mailslots are made on.
    MailslotRoot,
    /// The mount manager.
    MountManager,
}

/// An open file.
#[derive(Debug)]
pub struct FileObject {
    /// What it is.
    pub kind: FileKind,
    /// Granted access.
    pub access: u32,
    /// CreateOptions.
    pub options: u32,
    /// CurrentByteOffset of a file opened for synchronous I/O.
    pub position: u64,
    /// Path on its device as FileNameInformation tells it.
    pub name: String,
    /// NT path of the device.
    pub device: String,
    /// Completion port and key.
    pub completion: Option<(ObjectId, u64)>,
    /// FILE_IO_COMPLETION_NOTIFICATION_INFORMATION.Flags.
    pub completion_flags: u32,
    /// What a wait for the file itself sees: an operation has ended and none was started since, unless its caller
    /// gave an event of its own.
    pub signaled: bool,
    /// The file system's record of everyone who has this file open, and this opening's number in it.
    pub(super) opening: Option<(u64, u64)>,
    /// FILE_DELETE_ON_CLOSE, or a POSIX delete asked for through this object.
    pub(super) delete_on_close: bool,
}

/// FILE_READ_DATA, FILE_LIST_DIRECTORY.
pub const READ_DATA: u32 = 0x1;
/// FILE_WRITE_DATA, FILE_ADD_FILE.
pub const WRITE_DATA: u32 = 0x2;
/// FILE_APPEND_DATA.
pub const APPEND_DATA: u32 = 0x4;
/// FILE_WRITE_EA.
pub const WRITE_EA: u32 = 0x10;
/// FILE_EXECUTE.
pub const EXECUTE: u32 = 0x20;
/// FILE_READ_ATTRIBUTES.
pub const READ_ATTRIBUTES: u32 = 0x80;
/// FILE_WRITE_ATTRIBUTES.
pub const WRITE_ATTRIBUTES: u32 = 0x100;
/// DELETE.
pub const DELETE: u32 = 0x1_0000;
/// SYNCHRONIZE.
pub const SYNCHRONIZE: u32 = 0x10_0000;

/// FILE_SYNCHRONOUS_IO_ALERT and _NONALERT.
pub const SYNCHRONOUS_IO: u32 = 0x30;

impl FileObject {
    /// A file object that no volume knows of.
    #[must_use]
    pub fn device(kind: FileKind, device: &str, access: u32, options: u32) -> Self {
        Self {
            kind,
            access,
            options,
            position: 0,
            name: String::new(),
            device: device.to_owned(),
            completion: None,
            completion_flags: 0,
            signaled: true,
            opening: None,
            delete_on_close: false,
        }
    }

    /// A standard handle.
    #[must_use]
    pub fn stream(stream: StdStream) -> Self {
        let access = match stream {
            StdStream::Input => 0x12_0089,
            _ => 0x12_0116,
        };
        Self::device(FileKind::Stream(stream), "\\Device\\NamedPipe", access, 0x20)
    }

    /// An end of the console, for reading and writing.
    #[must_use]
    pub fn console(end: ConsoleEnd) -> Self {
        const READ_WRITE: u32 = 0x12_019F;
        Self::device(FileKind::Console(end), "\\Device\\ConDrv", READ_WRITE, 0x20)
    }

    /// A standard handle that the host has redirected to a file.
    #[must_use]
    pub fn redirected(stream: StdStream, mut file: File) -> Self {
        let position = file.stream_position().unwrap_or(0);
        let name = match stream {
            StdStream::Input => "\\standard input",
            StdStream::Output => "\\standard output",
            StdStream::Error => "\\standard error",
        };
        let access = Self::stream(stream).access;
        let object = Self::device(FileKind::Redirected(file), "\\Device\\HarddiskVolume0", access, 0x60);
        Self { position, name: name.to_owned(), ..object }
    }

    /// CurrentByteOffset. A redirected stream has the host's, which other handles to the same file share.
    #[must_use]
    pub fn current_position(&self) -> u64 {
        match &self.kind {
            FileKind::Redirected(file) => {
                let mut file: &File = file;
                file.stream_position().unwrap_or(self.position)
            }
            _ => self.position,
        }
    }

    /// Moves CurrentByteOffset.
    pub fn set_position(&mut self, position: u64) {
        self.position = position;
        if let FileKind::Redirected(file) = &self.kind {
            let mut file: &File = file;
            // What cannot be moved is not at a position either.
            let _ = file.seek(SeekFrom::Start(position));
        }
    }

    /// Whether operations finish before their service returns to the caller's view (no completion is queued).
    #[must_use]
    pub fn is_synchronous(&self) -> bool {
        self.options & SYNCHRONOUS_IO != 0
    }

    /// Whether user APCs and alerts end an operation that its caller waits for.
    #[must_use]
    pub fn is_alertable(&self) -> bool {
        /// FILE_SYNCHRONOUS_IO_ALERT.
        const ALERTABLE: u32 = 0x10;
        self.options & ALERTABLE != 0
    }

    /// DEVICE_TYPE for NtQueryVolumeInformationFile.
    #[must_use]
    pub fn device_type(&self) -> u32 {
        match self.kind {
            // FILE_DEVICE_DISK_FILE_SYSTEM.
            FileKind::Disk { .. } | FileKind::Directory { .. } | FileKind::Volume(_) | FileKind::Redirected(_) => 0x8,
            FileKind::Stream(_) | FileKind::Socket(_) | FileKind::Pipe(_) | FileKind::PipeRoot => 0x11,
            FileKind::Mailslot(_) | FileKind::MailslotWriter(_) | FileKind::MailslotRoot => 0xC,
            FileKind::Null => 0x15,
            // FILE_DEVICE_UNKNOWN.
            FileKind::MountManager => 0x22,
            FileKind::Console(_) => 0x50,
            // FILE_DEVICE_KSEC.
            FileKind::Random => 0x39,
        }
    }

    /// The host's file of a disk file.
    #[must_use]
    pub fn host_file(&self) -> Option<&File> {
        match &self.kind {
            FileKind::Disk { file, .. } | FileKind::Redirected(file) => Some(file),
            _ => None,
        }
    }

    /// The socket of a machine without a network.
    #[must_use]
    pub fn offline_socket(&self) -> Option<&OfflineSocket> {
        match &self.kind {
            FileKind::Socket(socket) => match socket.as_ref() {
                Socket::Offline(socket) => Some(socket),
                Socket::Host(_) => None,
            },
            _ => None,
        }
    }

    /// Volume and path of a disk file or directory.
    #[must_use]
    pub fn location(&self) -> Option<(usize, &[String])> {
        match &self.kind {
            FileKind::Disk { volume, path, .. } => Some((*volume, path)),
            FileKind::Directory { volume, directory, .. } => Some((*volume, &directory.path)),
            _ => None,
        }
    }

    /// Full NT path, as NtQueryObject names it.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}{}", self.device, self.name)
    }
}
