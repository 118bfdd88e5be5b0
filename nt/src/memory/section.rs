//! Section objects: what a view shows.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use lstar_runtime::{AddressSpace, Frames, Protection};
use rangemap::RangeSet;

use super::image::{ImageError, ImageHeaders};
use super::protection::PageProtection;
use crate::io::mapped::MappedUse;
use crate::status::Status;

/// SEC_* allocation attributes.
pub mod attributes {
    /// SEC_FILE: set by the system for sections of files.
    pub const FILE: u32 = 0x80_0000;
    /// SEC_IMAGE.
    pub const IMAGE: u32 = 0x100_0000;
    /// SEC_RESERVE: pages are committed by NtAllocateVirtualMemory.
    pub const RESERVE: u32 = 0x400_0000;
    /// SEC_COMMIT.
    pub const COMMIT: u32 = 0x800_0000;
    /// SEC_NOCACHE.
    pub const NOCACHE: u32 = 0x1000_0000;
    /// SEC_WRITECOMBINE.
    pub const WRITECOMBINE: u32 = 0x4000_0000;
    /// SEC_LARGE_PAGES.
    pub const LARGE_PAGES: u32 = 0x8000_0000;
    /// SEC_IMAGE_NO_EXECUTE: SEC_IMAGE with SEC_NOCACHE.
    pub const IMAGE_NO_EXECUTE: u32 = IMAGE | NOCACHE;
}

/// A host file behind a section.
#[derive(Debug)]
pub struct SectionFile {
    /// The file, open for reading, and for writing when views may write.
    pub file: File,
    /// Its name in the NT name space ("\Device\HarddiskVolume3\a.dll").
    pub name: String,
    /// Makes the file count as mapped.
    pub held: Option<MappedUse>,
}

/// What a section holds.
#[derive(Debug)]
pub enum Contents {
    /// Memory that all views share.
    Data(Arc<Frames>),
    /// An image: each view gets its own copy.
    Image(Box<ImageHeaders>),
}

/// A section object.
#[derive(Debug)]
pub struct Section {
    /// What views may do at most.
    pub protection: PageProtection,
    /// SEC_* attributes.
    pub attributes: u32,
    /// Bytes.
    pub size: u64,
    /// The file it shows.
    pub file: Option<SectionFile>,
    /// What it holds.
    pub contents: Contents,
    /// SEC_RESERVE: offsets of the pages that were committed through any view.
    committed: Mutex<RangeSet<u64>>,
    /// Offsets that are still to be read from the file, when a page is first touched through any view.
    unread: Mutex<RangeSet<u64>>,
}

const CHUNK: usize = 1 << 20;
/// Files from this size on are read when they are touched.
const LARGE_FILE: u64 = 0x2_0000;

impl Section {
    /// A section of an image file.
    pub fn of_image(file: SectionFile, attributes: u32) -> Result<Self, ImageFileError> {
        let size = file.file.metadata()?.len();
        if size == 0 {
            return Err(ImageFileError::Empty);
        }
        let mut start = vec![0; ImageHeaders::HEADER_LIMIT.min(usize::try_from(size).unwrap_or(usize::MAX))];
        file.file.read_exact_at(&mut start, 0)?;
        let headers = ImageHeaders::parse(&start, size)?;
        Ok(Self {
            protection: PageProtection::EXECUTE_WRITECOPY,
            attributes,
            size: u64::from(headers.size),
            file: Some(file),
            contents: Contents::Image(Box::new(headers)),
            committed: Mutex::default(),
            unread: Mutex::default(),
        })
    }

    /// A section of `size` zero bytes.
    pub fn of_memory(
        space: &AddressSpace,
        size: u64,
        protection: PageProtection,
        attributes: u32,
    ) -> Result<Self, Status> {
        if size == 0 {
            return Err(Status::INVALID_PARAMETER_4);
        }
        let frames = space.allocate_frames(size).map_err(|_| Status::COMMITMENT_LIMIT)?;
        let size = frames.size();
        let contents = Contents::Data(frames);
        Ok(Self {
            protection,
            attributes,
            size,
            file: None,
            contents,
            committed: Mutex::default(),
            unread: Mutex::default(),
        })
    }

    /// A section of a data file; `size` 0 takes the file's. A section larger than the file extends it when it may be
    /// written, else STATUS_SECTION_TOO_BIG.
    pub fn of_file(
        space: &mut AddressSpace,
        file: SectionFile,
        size: u64,
        protection: PageProtection,
        attributes: u32,
    ) -> Result<Self, Status> {
        let length = file.file.metadata().map_err(|_| Status::INVALID_FILE_FOR_SECTION)?.len();
        let size = if size == 0 { length } else { size };
        if size == 0 {
            return Err(Status::MAPPED_FILE_SIZE_ZERO);
        }
        if size > length {
            if protection.is_copy() || !protection.access().contains(Protection::WRITE) {
                return Err(Status::SECTION_TOO_BIG);
            }
            file.file.set_len(size).map_err(|_| Status::DISK_FULL)?;
        }
        let frames = space.allocate_frames(size).map_err(|_| Status::COMMITMENT_LIMIT)?;
        // Pages of a file are there: nothing is to be committed.
        let attributes = attributes & !(attributes::COMMIT | attributes::RESERVE) | attributes::FILE;
        let mut unread = RangeSet::new();
        unread.insert(0..frames.size());
        let unread = Mutex::new(unread);
        let contents = Contents::Data(frames);
        let section =
            Self { protection, attributes, size, file: Some(file), contents, committed: Mutex::default(), unread };
        if size < LARGE_FILE {
            section.read_file(&(0..size))?;
        }
        Ok(section)
    }

    /// Whether something of a range of offsets is still to be read from the file.
    #[must_use]
    pub fn is_unread(&self, offsets: &Range<u64>) -> bool {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).overlaps(offsets)
    }

    /// Reads what of a range of offsets has not been read yet from the file.
    pub fn read_file(&self, offsets: &Range<u64>) -> Result<(), Status> {
        let (Contents::Data(frames), Some(file)) = (&self.contents, &self.file) else { return Ok(()) };
        // A panic elsewhere leaves the set as it was.
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        let clip = |part: &Range<u64>| part.start.max(offsets.start)..part.end.min(offsets.end);
        let missing: Vec<Range<u64>> = unread.overlapping(offsets).map(clip).collect();
        for part in missing {
            let end = part.end.min(self.size);
            copy_file(&file.file, part.start, end.saturating_sub(part.start), |done, bytes| {
                // The frames are zero: holes of the file stay holes.
                if bytes.iter().all(|&byte| byte == 0) || frames.fill(part.start + done, bytes) {
                    Ok(())
                } else {
                    Err(Status::INVALID_PARAMETER)
                }
            })?;
            unread.remove(part);
        }
        Ok(())
    }

    /// Whether pages have to be committed before they can be used.
    #[must_use]
    pub const fn is_reserved(&self) -> bool {
        self.attributes & attributes::RESERVE != 0 && self.file.is_none()
    }

    /// Notes that the pages at these offsets were committed.
    pub fn commit(&self, offsets: Range<u64>) {
        // A panic elsewhere leaves the set as it was: it is one insertion.
        self.committed.lock().unwrap_or_else(PoisonError::into_inner).insert(offsets);
    }

    /// Offsets of committed pages of a SEC_RESERVE section within a range.
    #[must_use]
    pub fn committed_within(&self, offsets: Range<u64>) -> Vec<Range<u64>> {
        if !self.is_reserved() {
            return Vec::new();
        }
        let committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        let clip = |part: &Range<u64>| part.start.max(offsets.start)..part.end.min(offsets.end);
        committed.overlapping(&offsets).map(clip).collect()
    }

    /// Headers, when it is an image.
    #[must_use]
    pub fn image(&self) -> Option<&ImageHeaders> {
        match &self.contents {
            Contents::Image(headers) => Some(headers),
            Contents::Data(_) => None,
        }
    }

    /// Size of the file behind it.
    #[must_use]
    pub fn file_size(&self) -> u64 {
        self.file.as_ref().and_then(|f| f.file.metadata().ok()).map_or(0, |m| m.len())
    }

    /// Whether views can change the file.
    #[must_use]
    pub fn writes_file(&self) -> bool {
        let writable = !self.protection.is_copy() && self.protection.access().contains(Protection::WRITE);
        writable && self.file.is_some() && matches!(self.contents, Contents::Data(_))
    }

    /// Fills freshly mapped pages of an image at `base`, a range of addresses, from the file.
    pub fn load_image_part(&self, space: &mut AddressSpace, base: u64, range: &Range<u64>) -> Result<(), Status> {
        let (Some(headers), Some(file)) = (self.image(), &self.file) else { return Err(Status::SECTION_NOT_IMAGE) };
        for part in &headers.parts {
            let address = base + u64::from(part.rva);
            let start = range.start.max(address);
            let end = range.end.min(address + u64::from(part.file_size));
            if start < end {
                copy_file(&file.file, part.file_offset + (start - address), end - start, |done, bytes| {
                    Ok(space.write_unchecked(start + done, bytes)?)
                })?;
            }
        }
        Ok(())
    }

    /// Writes `size` bytes of the section, mapped at `address` from `offset` on, back to the file where they differ.
    pub fn flush(&self, space: &AddressSpace, address: u64, offset: u64, size: u64) -> Result<(), Status> {
        let Some(file) = self.file.as_ref().filter(|_| self.writes_file()) else { return Ok(()) };
        let size = size.min(self.size.saturating_sub(offset));
        let (mut memory, mut old) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut done = 0;
        while done < size {
            let length = (CHUNK as u64).min(size - done) as usize;
            let (memory, old) = (&mut memory[..length], &mut old[..length]);
            let position = offset + done;
            if space.read_unchecked(address + done, memory).is_ok() {
                let same = file.file.read_exact_at(old, position).is_ok() && memory == old;
                if !same {
                    file.file.write_all_at(memory, position).map_err(|_| Status::DISK_FULL)?;
                }
            }
            done += length as u64;
        }
        Ok(())
    }
}

/// Reads part of a file, as far as it goes, piece by piece; `take` gets each with its offset in the part.
fn copy_file(
    file: &File,
    offset: u64,
    size: u64,
    mut take: impl FnMut(u64, &[u8]) -> Result<(), Status>,
) -> Result<(), Status> {
    let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))];
    let mut done = 0;
    while done < size {
        let length = buffer.len().min(usize::try_from(size - done).unwrap_or(usize::MAX));
        let read = file.read_at(&mut buffer[..length], offset + done).map_err(|_| Status::IN_PAGE_ERROR)?;
        if read == 0 {
            break;
        }
        take(done, &buffer[..read])?;
        done += read as u64;
    }
    Ok(())
}

/// Why an image section could not be made of a file.
#[derive(Debug, thiserror::Error)]
pub enum ImageFileError {
    /// The host cannot read it.
    #[error("cannot read: {0}")]
    Read(#[from] std::io::Error),
    /// There is nothing in it.
    #[error("the file is empty")]
    Empty,
    /// It is no image for this machine.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl From<ImageFileError> for Status {
    fn from(error: ImageFileError) -> Self {
        match error {
            ImageFileError::Read(_) | ImageFileError::Empty => Self::INVALID_FILE_FOR_SECTION,
            ImageFileError::Image(error) => error.into(),
        }
    }
}
