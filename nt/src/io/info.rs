//! Layouts of FILE_*_INFORMATION and FILE_FS_*_INFORMATION.

use rustix::fs::{FileType, Stat};

use super::host::UNIX_EPOCH;
use crate::status::Status;
use crate::strings::utf16_bytes;

/// FILE_ATTRIBUTE_READONLY.
pub const ATTRIBUTE_READONLY: u32 = 0x1;
/// FILE_ATTRIBUTE_DIRECTORY.
pub const ATTRIBUTE_DIRECTORY: u32 = 0x10;
/// FILE_ATTRIBUTE_ARCHIVE.
pub const ATTRIBUTE_ARCHIVE: u32 = 0x20;
/// FILE_ATTRIBUTE_NORMAL.
pub const ATTRIBUTE_NORMAL: u32 = 0x80;
/// Attributes that a volume remembers beside the host: hidden, system, temporary, not content indexed.
pub const ATTRIBUTES_KEPT: u32 = 0x2 | 0x4 | 0x100 | 0x2000;

/// Facts about a file. Times in 100 ns since 1601.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStat {
    /// CreationTime.
    pub creation: i64,
    /// LastAccessTime.
    pub last_access: i64,
    /// LastWriteTime.
    pub last_write: i64,
    /// ChangeTime.
    pub change: i64,
    /// EndOfFile.
    pub size: u64,
    /// AllocationSize.
    pub allocation: u64,
    /// FileAttributes.
    pub attributes: u32,
    /// NumberOfLinks.
    pub links: u32,
    /// IndexNumber.
    pub id: u64,
}

/// NT time of a host's time stamp.
#[must_use]
pub fn nt_time(seconds: i64, nanoseconds: u64) -> i64 {
    seconds.saturating_mul(10_000_000).saturating_add((nanoseconds / 100) as i64).saturating_add(UNIX_EPOCH)
}

impl FileStat {
    /// From the host's facts; `extra` are attributes kept beside the host.
    #[must_use]
    pub fn new(stat: &Stat, extra: u32) -> Self {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let mut attributes = extra | if directory { ATTRIBUTE_DIRECTORY } else { ATTRIBUTE_ARCHIVE };
        if !directory && stat.st_mode & 0o200 == 0 {
            attributes |= ATTRIBUTE_READONLY;
        }
        let size = if directory { 0 } else { u64::try_from(stat.st_size).unwrap_or(0) };
        let last_write = nt_time(stat.st_mtime, stat.st_mtime_nsec);
        let change = nt_time(stat.st_ctime, stat.st_ctime_nsec);
        Self {
            // The host does not tell when a file was made; it existed at its earliest change.
            creation: last_write.min(change),
            last_access: nt_time(stat.st_atime, stat.st_atime_nsec),
            last_write,
            change,
            size,
            allocation: size.next_multiple_of(0x1000),
            attributes,
            links: if directory { 1 } else { stat.st_nlink as u32 },
            id: stat.st_ino,
        }
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.attributes & ATTRIBUTE_DIRECTORY != 0
    }

    /// FILE_BASIC_INFORMATION.
    #[must_use]
    pub fn basic(&self) -> Vec<u8> {
        Bytes::default()
            .i64s(&[self.creation, self.last_access, self.last_write, self.change])
            .u32s(&[self.attributes, 0])
            .0
    }

    /// FILE_NETWORK_OPEN_INFORMATION.
    #[must_use]
    pub fn network_open(&self) -> Vec<u8> {
        Bytes::default()
            .i64s(&[self.creation, self.last_access, self.last_write, self.change])
            .u64s(&[self.allocation, self.size])
            .u32s(&[self.attributes, 0])
            .0
    }
}

/// Little-endian fields, one after the other.
#[derive(Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Appends 64-bit fields.
    #[must_use]
    pub fn u64s(mut self, values: &[u64]) -> Self {
        values.iter().for_each(|v| self.0.extend(v.to_le_bytes()));
        self
    }
    /// Appends signed 64-bit fields.
    #[must_use]
    pub fn i64s(mut self, values: &[i64]) -> Self {
        values.iter().for_each(|v| self.0.extend(v.to_le_bytes()));
        self
    }
    /// Appends 32-bit fields.
    #[must_use]
    pub fn u32s(mut self, values: &[u32]) -> Self {
        values.iter().for_each(|v| self.0.extend(v.to_le_bytes()));
        self
    }
    /// Appends bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    /// Appends a 32-bit length in bytes and the text.
    #[must_use]
    pub fn counted(self, text: &str) -> Self {
        let text = utf16_bytes(text);
        self.u32s(&[text.len() as u32]).bytes(&text)
    }
}

/// An answer: its bytes and how many of them are the fixed part that must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// All bytes.
    pub bytes: Vec<u8>,
    /// Size of the structure without its variable tail.
    pub fixed: usize,
}

impl Answer {
    /// A structure without a tail.
    #[must_use]
    pub fn fixed(bytes: Vec<u8>) -> Self {
        Self { fixed: bytes.len(), bytes }
    }

    /// What goes into a buffer of `capacity` bytes, with the status.
    pub fn fit(&self, capacity: usize) -> Result<(&[u8], Status), Status> {
        if capacity < self.fixed {
            return Err(Status::INFO_LENGTH_MISMATCH);
        }
        match self.bytes.get(..capacity) {
            Some(part) if capacity < self.bytes.len() => Ok((part, Status::BUFFER_OVERFLOW)),
            _ => Ok((&self.bytes, Status::SUCCESS)),
        }
    }
}

/// What a query about an open file needs to know.
#[derive(Clone, Copy, Debug)]
pub struct OpenFacts<'a> {
    /// The file's facts; `None` for devices.
    pub stat: Option<FileStat>,
    /// Granted access.
    pub access: u32,
    /// CreateOptions.
    pub options: u32,
    /// Current position.
    pub position: u64,
    /// Path on the device.
    pub name: &'a str,
    /// DELETE is pending.
    pub delete_pending: bool,
    /// Serial number of the volume.
    pub serial: u32,
}

/// Options that FileModeInformation tells.
const MODE_MASK: u32 = 0x20 | 0x10 | 0x8 | 0x4 | 0x2;

/// Answers NtQueryInformationFile.
pub fn query(class: u32, facts: &OpenFacts<'_>) -> Result<Answer, Status> {
    let disk = || facts.stat.ok_or(Status::INVALID_DEVICE_REQUEST);
    let standard = |stat: &FileStat| {
        Bytes::default()
            .u64s(&[stat.allocation, stat.size])
            .u32s(&[stat.links])
            .bytes(&[u8::from(facts.delete_pending), u8::from(stat.is_directory()), 0, 0])
            .0
    };
    Ok(match class {
        // FileBasicInformation.
        4 => Answer::fixed(disk()?.basic()),
        // FileStandardInformation; a stream is an endless file with one link.
        5 => Answer::fixed(standard(&facts.stat.unwrap_or(FileStat { links: 1, ..FileStat::default() }))),
        // FileInternalInformation.
        6 => Answer::fixed(disk()?.id.to_le_bytes().into()),
        // FileEaInformation.
        7 => Answer::fixed(vec![0; 4]),
        // FileAccessInformation.
        8 => Answer::fixed(facts.access.to_le_bytes().into()),
        // FileNameInformation, FileNormalizedNameInformation.
        9 | 0x30 => Answer { bytes: Bytes::default().counted(facts.name).0, fixed: 8 },
        // FilePositionInformation.
        0xE => Answer::fixed(facts.position.to_le_bytes().into()),
        // FileModeInformation.
        0x10 => Answer::fixed((facts.options & MODE_MASK).to_le_bytes().into()),
        // FileAlignmentInformation.
        0x11 => Answer::fixed(vec![0; 4]),
        // FileAllInformation.
        0x12 => {
            let stat = disk()?;
            let bytes = Bytes::default()
                .bytes(&stat.basic())
                .bytes(&standard(&stat))
                .u64s(&[stat.id])
                .u32s(&[0, facts.access])
                .u64s(&[facts.position])
                .u32s(&[facts.options & MODE_MASK, 0])
                .counted(facts.name);
            Answer { bytes: bytes.0, fixed: 0x68 }
        }
        // FileStreamInformation: the unnamed stream alone.
        0x16 => {
            let stat = disk()?;
            if stat.is_directory() {
                return Ok(Answer { bytes: Vec::new(), fixed: 0 });
            }
            let name = utf16_bytes("::$DATA");
            let bytes = Bytes::default().u32s(&[0, name.len() as u32]).u64s(&[stat.size, stat.allocation]).bytes(&name);
            Answer { bytes: bytes.0, fixed: 0x20 }
        }
        // FileAllocationInformation, FileEndOfFileInformation: sizes that are usually set.
        0x13 => Answer::fixed(disk()?.allocation.to_le_bytes().into()),
        0x14 => Answer::fixed(disk()?.size.to_le_bytes().into()),
        // FileCompressionInformation.
        0x1C => Answer::fixed(Bytes::default().u64s(&[disk()?.size, 0]).0),
        // FileNetworkOpenInformation.
        0x22 => Answer::fixed(disk()?.network_open()),
        // FileAttributeTagInformation.
        0x23 => Answer::fixed(Bytes::default().u32s(&[disk()?.attributes, 0]).0),
        // FileIsRemoteDeviceInformation.
        0x33 => Answer::fixed(vec![0]),
        // FileIdInformation.
        0x3B => Answer::fixed(Bytes::default().u64s(&[u64::from(facts.serial), disk()?.id, 0]).0),
        // FileStatInformation.
        0x44 => {
            let stat = disk()?;
            let bytes = Bytes::default()
                .u64s(&[stat.id])
                .i64s(&[stat.creation, stat.last_access, stat.last_write, stat.change])
                .u64s(&[stat.allocation, stat.size])
                .u32s(&[stat.attributes, 0, stat.links, facts.access]);
            Answer::fixed(bytes.0)
        }
        // FileCaseSensitiveInformation.
        0x47 => Answer::fixed(vec![0; 4]),
        _ => return Err(Status::INVALID_INFO_CLASS),
    })
}

/// What a query about a volume needs to know.
#[derive(Clone, Copy, Debug)]
pub struct VolumeFacts {
    /// Serial number.
    pub serial: u32,
    /// Bytes in all, and free.
    pub space: (u64, u64),
    /// FILE_READ_ONLY_VOLUME.
    pub read_only: bool,
}

/// Answers NtQueryVolumeInformationFile. `volume` is `None` for devices that are not disks.
pub fn query_volume(class: u32, device_type: u32, volume: Option<&VolumeFacts>) -> Result<Answer, Status> {
    /// Bytes of a cluster and of a sector.
    const CLUSTER: u64 = 0x1000;
    const SECTOR: u32 = 0x200;
    let disk = || volume.ok_or(Status::INVALID_DEVICE_REQUEST);
    let per_cluster = CLUSTER as u32 / SECTOR;
    Ok(match class {
        // FileFsVolumeInformation: no label, object identifiers. The label follows at 12h, the structure is padded.
        1 => {
            let bytes = Bytes::default().u64s(&[0]).u32s(&[disk()?.serial, 0]).bytes(&[1, 0]).0;
            Answer { bytes, fixed: 0x18 }
        }
        // FileFsSizeInformation.
        3 => {
            let (total, free) = disk()?.space;
            Answer::fixed(Bytes::default().u64s(&[total / CLUSTER, free / CLUSTER]).u32s(&[per_cluster, SECTOR]).0)
        }
        // FileFsDeviceInformation: FILE_DEVICE_IS_MOUNTED for disks.
        4 => {
            let read_only = u32::from(volume.is_some_and(|v| v.read_only)) * 2;
            let characteristics = if volume.is_some() { 0x20 | read_only } else { 0 };
            Answer::fixed(Bytes::default().u32s(&[device_type, characteristics]).0)
        }
        // FileFsAttributeInformation: case preserved, Unicode on disk, sparse files.
        5 => {
            let attributes = 0x2 | 0x4 | 0x40 | if disk()?.read_only { 0x8_0000 } else { 0 };
            Answer { bytes: Bytes::default().u32s(&[attributes, 255]).counted("NTFS").0, fixed: 0x10 }
        }
        // FileFsFullSizeInformation.
        7 => {
            let (total, free) = disk()?.space;
            let (total, free) = (total / CLUSTER, free / CLUSTER);
            Answer::fixed(Bytes::default().u64s(&[total, free, free]).u32s(&[per_cluster, SECTOR]).0)
        }
        // FileFsSectorSizeInformation: sizes, partition aligned, no seek penalty.
        0xB => {
            disk()?;
            Answer::fixed(Bytes::default().u32s(&[SECTOR, SECTOR, SECTOR, SECTOR, 3, 0, 0]).0)
        }
        _ => return Err(Status::INVALID_INFO_CLASS),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(name: &str) -> OpenFacts<'_> {
        let stat = FileStat { size: 5, allocation: 0x1000, attributes: 0x20, links: 1, id: 9, ..FileStat::default() };
        OpenFacts {
            stat: Some(stat),
            access: 0x12_0089,
            options: 0x60,
            position: 3,
            name,
            delete_pending: false,
            serial: 1,
        }
    }

    #[test]
    fn structures_have_their_documented_sizes() {
        let facts = facts("\\a");
        for (class, size) in [
            (4, 40),
            (5, 24),
            (6, 8),
            (7, 4),
            (8, 4),
            (0xE, 8),
            (0x10, 4),
            (0x11, 4),
            (0x1C, 16),
            (0x22, 56),
            (0x23, 8),
            (0x3B, 24),
            (0x44, 72),
        ] {
            let answer = query(class, &facts).unwrap();
            assert_eq!((answer.bytes.len(), answer.fixed), (size, size), "{class:#x}");
        }
        let all = query(0x12, &facts).unwrap();
        assert_eq!((all.bytes.len(), all.fixed), (0x64 + 4, 0x68));
        assert_eq!(all.bytes[0x60..0x64], 4u32.to_le_bytes());
        assert_eq!(all.bytes[0x50..0x58], 3u64.to_le_bytes(), "position");
        assert_eq!(query(0x999, &facts), Err(Status::INVALID_INFO_CLASS));
        assert_eq!(query(4, &OpenFacts { stat: None, ..facts }), Err(Status::INVALID_DEVICE_REQUEST));
    }

    #[test]
    fn names_overflow_in_part() {
        let answer = query(9, &facts("\\a\\long name")).unwrap();
        assert_eq!(answer.fit(7), Err(Status::INFO_LENGTH_MISMATCH));
        let (part, status) = answer.fit(8).unwrap();
        assert_eq!((part.len(), status, part[0]), (8, Status::BUFFER_OVERFLOW, 24));
        assert_eq!(answer.fit(4096).unwrap().1, Status::SUCCESS);
    }

    #[test]
    fn volumes() {
        let facts = VolumeFacts { serial: 7, space: (0x10_0000, 0x8000), read_only: false };
        for (class, size) in [(1, 18), (3, 24), (4, 8), (5, 20), (7, 32), (0xB, 28)] {
            assert_eq!(query_volume(class, 7, Some(&facts)).unwrap().bytes.len(), size, "{class}");
        }
        assert_eq!(query_volume(4, 0x11, None).unwrap().bytes[0], 0x11);
        assert!(query_volume(3, 0x11, None).is_err());
    }
}
