//! Reads PE32+ images into pieces that a loader can map. Never panics, whatever the bytes are.

use std::ops::Range;

/// Why a file cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No MZ or PE signature where one must be.
    #[error("not a PE image")]
    NotPe,
    /// A header or a section's data lies beyond the end of the file.
    #[error("truncated: {0} lies beyond the end of the file")]
    Truncated(&'static str),
    /// The machine is not AMD64; the value of `FileHeader.Machine`.
    #[error("machine {0:#06x} is not AMD64 (0x8664)")]
    Machine(u16),
    /// The optional header is not that of a PE32+ image.
    #[error("not a PE32+ image")]
    NotPe32Plus,
    /// A header field has a value that no loader accepts.
    #[error("malformed: {0}")]
    Malformed(&'static str),
}

/// Page protection of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
}

/// A piece of an image: the headers or a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePiece {
    /// Name of the section, "headers" for the headers.
    pub name: String,
    /// Address relative to the image's base, a multiple of the page size.
    pub rva: u32,
    /// Contents from the file; shorter than `size` where zeros follow.
    pub bytes: Vec<u8>,
    /// Bytes of address space.
    pub size: u32,
    /// Protection of its pages.
    pub protection: Protection,
}

/// A parsed image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedImage {
    /// Preferred base.
    pub base: u64,
    /// Bytes of address space from the base.
    pub size: u32,
    /// Entry point, relative to the base; 0 for none.
    pub entry_rva: u32,
    /// Whether the file says that it is a DLL.
    pub is_dll: bool,
    /// `OptionalHeader.Subsystem`.
    pub subsystem: u16,
    /// Stack to reserve for the first thread, in bytes.
    pub stack_reserve: u64,
    /// Headers and sections, ascending and disjoint.
    pub pieces: Vec<ImagePiece>,
    /// Data directories (RVA and size).
    pub directories: Vec<(u32, u32)>,
}

const SECTION_WRITE: u32 = 0x8000_0000;
const SECTION_READ: u32 = 0x4000_0000;
const SECTION_EXECUTE: u32 = 0x2000_0000;
const PAGE: u32 = 0x1000;
/// Sections that the Windows loader accepts at most.
const MAX_SECTIONS: u16 = 96;

/// A byte string with checked little-endian reads.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn get<const N: usize>(&self, offset: usize, what: &'static str) -> Result<[u8; N], ImageError> {
        let range = offset..offset.checked_add(N).ok_or(ImageError::Truncated(what))?;
        let bytes = self.0.get(range).ok_or(ImageError::Truncated(what))?;
        bytes.try_into().map_err(|_| ImageError::Truncated(what))
    }

    fn u16(&self, offset: usize, what: &'static str) -> Result<u16, ImageError> {
        self.get(offset, what).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: usize, what: &'static str) -> Result<u32, ImageError> {
        self.get(offset, what).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: usize, what: &'static str) -> Result<u64, ImageError> {
        self.get(offset, what).map(u64::from_le_bytes)
    }
}

/// Parses a PE32+ AMD64 image.
///
/// # Errors
/// What is wrong with the file.
pub fn map_pe(file: &[u8]) -> Result<MappedImage, ImageError> {
    const DOS: &str = "the DOS header";
    const NT: &str = "the NT header";
    let bytes = Bytes(file);
    if bytes.get::<2>(0, DOS) != Ok(*b"MZ") {
        return Err(ImageError::NotPe);
    }
    let nt = bytes.u32(0x3C, DOS)? as usize;
    if nt > file.len() {
        return Err(ImageError::Truncated(NT));
    }
    if bytes.get::<4>(nt, NT)? != *b"PE\0\0" {
        return Err(ImageError::NotPe);
    }
    let machine = bytes.u16(nt + 4, NT)?;
    if machine != 0x8664 {
        return Err(ImageError::Machine(machine));
    }
    let section_count = bytes.u16(nt + 6, NT)?;
    let optional_size = usize::from(bytes.u16(nt + 20, NT)?);
    let characteristics = bytes.u16(nt + 22, NT)?;
    let optional = nt + 24;
    if bytes.u16(optional, NT)? != 0x20B || optional_size < 112 {
        return Err(ImageError::NotPe32Plus);
    }
    if section_count > MAX_SECTIONS {
        return Err(ImageError::Malformed("too many sections"));
    }
    let size = bytes.u32(optional + 56, NT)?;
    let header_size = bytes.u32(optional + 60, NT)?;
    let alignment = bytes.u32(optional + 32, NT)?;
    if !alignment.is_power_of_two() || alignment < PAGE {
        return Err(ImageError::Malformed("section alignment below the page size"));
    }
    if size == 0 || size > i32::MAX as u32 || header_size == 0 || header_size > size {
        return Err(ImageError::Malformed("image or header size"));
    }
    let base = bytes.u64(optional + 24, NT)?;
    if base % 0x1_0000 != 0 {
        return Err(ImageError::Malformed("image base is not a multiple of 64 KiB"));
    }
    let entry_rva = bytes.u32(optional + 16, NT)?;
    if entry_rva >= size {
        return Err(ImageError::Malformed("entry point outside the image"));
    }
    let directory_count = (bytes.u32(optional + 108, NT)? as usize).min(16).min((optional_size - 112) / 8);
    let mut directories = Vec::with_capacity(directory_count);
    for index in 0..directory_count {
        let entry = optional + 112 + index * 8;
        directories.push((bytes.u32(entry, NT)?, bytes.u32(entry + 4, NT)?));
    }

    let headers = file.get(..header_size as usize).ok_or(ImageError::Truncated("the header area"))?;
    let mut pieces = vec![ImagePiece {
        name: "headers".to_owned(),
        rva: 0,
        bytes: headers.to_vec(),
        size: header_size,
        protection: Protection { read: true, write: false, execute: false },
    }];
    let mut free = page_up(header_size);
    for index in 0..usize::from(section_count) {
        let piece = section(&bytes, optional + optional_size + index * 40, free..size)?;
        free = page_up(piece.rva + piece.size);
        pieces.push(piece);
    }
    Ok(MappedImage {
        base,
        size,
        entry_rva,
        is_dll: characteristics & 0x2000 != 0,
        subsystem: bytes.u16(optional + 68, NT)?,
        stack_reserve: bytes.u64(optional + 72, NT)?,
        pieces,
        directories,
    })
}

fn page_up(value: u32) -> u32 {
    // Sizes are bounded by i32::MAX.
    value.next_multiple_of(PAGE)
}

/// The section whose header is at `header`; it must lie in `room`, the address space behind its predecessor.
fn section(file: &Bytes<'_>, header: usize, room: Range<u32>) -> Result<ImagePiece, ImageError> {
    const WHAT: &str = "a section header";
    let name: [u8; 8] = file.get(header, WHAT)?;
    let virtual_size = file.u32(header + 8, WHAT)?;
    let rva = file.u32(header + 12, WHAT)?;
    let raw_size = file.u32(header + 16, WHAT)?;
    let raw_offset = file.u32(header + 20, WHAT)? as usize;
    let flags = file.u32(header + 36, WHAT)?;
    // A section without a virtual size has its raw size; raw data beyond the virtual size is padding.
    let size = if virtual_size == 0 { raw_size } else { virtual_size };
    if rva % PAGE != 0 || rva < room.start || size > room.end.saturating_sub(rva) {
        return Err(ImageError::Malformed("section outside the image or overlapping its predecessor"));
    }
    // The raw data may run short of a whole file-alignment unit at the end of the file, but not of what is mapped.
    let wanted = if raw_offset == 0 { 0 } else { raw_size.min(size) as usize };
    let end = raw_offset.checked_add(wanted).ok_or(ImageError::Truncated("a section"))?;
    let bytes =
        if wanted == 0 { &[] } else { file.0.get(raw_offset..end).ok_or(ImageError::Truncated("a section"))? };
    let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Ok(ImagePiece {
        name: String::from_utf8_lossy(&name[..length]).into_owned(),
        rva,
        bytes: bytes.to_vec(),
        size,
        protection: Protection {
            read: flags & SECTION_READ != 0,
            write: flags & SECTION_WRITE != 0,
            execute: flags & SECTION_EXECUTE != 0,
        },
    })
}

impl MappedImage {
    /// Copies `length` bytes at an RVA; bytes between and behind pieces read as zero. `None` outside the image.
    #[must_use]
    pub fn read(&self, rva: u32, length: u32) -> Option<Vec<u8>> {
        let end = rva.checked_add(length).filter(|&end| end <= self.size)?;
        let mut out = vec![0; length as usize];
        for piece in &self.pieces {
            let piece_end = piece.rva.saturating_add(piece.bytes.len() as u32);
            let (from, to) = (rva.max(piece.rva), end.min(piece_end));
            if from < to {
                let source = piece.bytes.get((from - piece.rva) as usize..(to - piece.rva) as usize)?;
                out.get_mut((from - rva) as usize..(to - rva) as usize)?.copy_from_slice(source);
            }
        }
        Some(out)
    }
}
