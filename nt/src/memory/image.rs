//! Headers of executable images, as a section object keeps them. Never trusts the file.

use super::protection::PageProtection;
use crate::status::Status;

/// Why a file is no image that can run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No MZ header.
    #[error("not a Windows program (no MZ header)")]
    NotMz,
    /// An MZ header without a PE header.
    #[error("not a Windows program (a DOS or 16-bit file, no PE header)")]
    NotPe,
    /// A PE file for another machine.
    #[error("a program for {}, not for x64", machine_name(*.0))]
    Machine(u16),
    /// Something lies beyond the end of the file.
    #[error("truncated: {0} lies beyond the end of the file")]
    Truncated(&'static str),
    /// A field has a value that no loader accepts.
    #[error("malformed: {0}")]
    Malformed(&'static str),
}

impl From<ImageError> for Status {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::NotMz => Self::INVALID_IMAGE_NOT_MZ,
            ImageError::NotPe => Self::INVALID_IMAGE_WIN_16,
            _ => Self::INVALID_IMAGE_FORMAT,
        }
    }
}

fn machine_name(machine: u16) -> String {
    match machine {
        0x14C => "32-bit x86".to_owned(),
        0xAA64 => "ARM64".to_owned(),
        0x1C0 | 0x1C4 => "32-bit ARM".to_owned(),
        0x200 => "Itanium".to_owned(),
        other => format!("machine {other:#06x}"),
    }
}

/// IMAGE_FILE_MACHINE_AMD64.
const AMD64: u16 = 0x8664;
/// Images larger than this are refused by Windows as well.
const MAX_IMAGE_SIZE: u32 = 0x7700_0000;
const PAGE: u32 = 0x1000;
/// Index of the CLR header's data directory.
const CLR_DIRECTORY: usize = 14;

/// A mapped part of an image: a run of pages with one protection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePart {
    /// Name of the section; empty for the headers.
    pub name: String,
    /// First page, relative to the image base.
    pub rva: u32,
    /// Bytes, a multiple of the page size.
    pub size: u32,
    /// Where its bytes are in the file.
    pub file_offset: u64,
    /// How many bytes come from the file; zeros follow.
    pub file_size: u32,
    /// Protection of the pages.
    pub protection: PageProtection,
}

/// What a section object knows of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the PE format's names say it all")]
pub struct ImageHeaders {
    /// Preferred base.
    pub base: u64,
    /// Bytes of address space, a multiple of the page size.
    pub size: u32,
    pub entry_rva: u32,
    pub stack_reserve: u64,
    pub stack_commit: u64,
    pub heap_reserve: u64,
    pub heap_commit: u64,
    pub subsystem: u16,
    pub subsystem_version: (u16, u16),
    pub os_version: (u16, u16),
    pub characteristics: u16,
    pub dll_characteristics: u16,
    pub loader_flags: u32,
    pub check_sum: u32,
    /// Some section holds code.
    pub contains_code: bool,
    /// Address and size of each data directory.
    pub directories: Vec<(u32, u32)>,
    /// Headers and sections, ascending and disjoint.
    pub parts: Vec<ImagePart>,
}

/// Little-endian reads that fail instead of panicking.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&self, offset: usize) -> Result<[u8; N], ImageError> {
        let end = offset.checked_add(N).ok_or(ImageError::Truncated("a header"))?;
        let bytes = self.0.get(offset..end).ok_or(ImageError::Truncated("a header"))?;
        bytes.try_into().map_err(|_| ImageError::Truncated("a header"))
    }
    fn u16(&self, offset: usize) -> Result<u16, ImageError> {
        self.array(offset).map(u16::from_le_bytes)
    }
    fn u32(&self, offset: usize) -> Result<u32, ImageError> {
        self.array(offset).map(u32::from_le_bytes)
    }
    fn u64(&self, offset: usize) -> Result<u64, ImageError> {
        self.array(offset).map(u64::from_le_bytes)
    }
}

fn page_up(value: u32) -> Result<u32, ImageError> {
    value.checked_next_multiple_of(PAGE).ok_or(ImageError::Malformed("a size beyond 4 GiB"))
}

impl ImageHeaders {
    /// How many bytes from the start of a file [`ImageHeaders::parse`] wants to see.
    pub const HEADER_LIMIT: usize = 0x1_0000;

    /// Parses the start of a file of `file_size` bytes.
    pub fn parse(start: &[u8], file_size: u64) -> Result<Self, ImageError> {
        let file = Reader(start);
        if start.get(..2) != Some(b"MZ") {
            return Err(ImageError::NotMz);
        }
        let nt = file.u32(0x3C).map_err(|_| ImageError::NotPe)? as usize;
        if file.array(nt) != Ok(*b"PE\0\0") {
            return Err(ImageError::NotPe);
        }
        let machine = file.u16(nt + 4)?;
        if machine != AMD64 {
            return Err(ImageError::Machine(machine));
        }
        let section_count = usize::from(file.u16(nt + 6)?);
        let optional_size = usize::from(file.u16(nt + 20)?);
        let optional = nt + 24;
        if file.u16(optional)? != 0x20B || optional_size < 112 {
            return Err(ImageError::Malformed("the optional header is not PE32+"));
        }
        let alignment = file.u32(optional + 32)?;
        let size = file.u32(optional + 56)?;
        let header_size = file.u32(optional + 60)?;
        let base = file.u64(optional + 24)?;
        let entry_rva = file.u32(optional + 16)?;
        if !alignment.is_power_of_two() {
            return Err(ImageError::Malformed("section alignment"));
        }
        if size == 0 || size > MAX_IMAGE_SIZE || header_size == 0 || header_size > size {
            return Err(ImageError::Malformed("image or header size"));
        }
        if !base.is_multiple_of(0x1_0000) {
            return Err(ImageError::Malformed("image base is not a multiple of 64 KiB"));
        }
        if entry_rva >= size {
            return Err(ImageError::Malformed("entry point outside the image"));
        }
        let directory_count = (file.u32(optional + 108)? as usize).min((optional_size - 112) / 8).min(16);
        let directories = (0..directory_count)
            .map(|index| {
                let at = optional + 112 + index * 8;
                Ok((file.u32(at)?, file.u32(at + 4)?))
            })
            .collect::<Result<Vec<_>, ImageError>>()?;
        let size = page_up(size)?;

        let mut headers = Self {
            base,
            size,
            entry_rva,
            stack_reserve: file.u64(optional + 72)?,
            stack_commit: file.u64(optional + 80)?,
            heap_reserve: file.u64(optional + 88)?,
            heap_commit: file.u64(optional + 96)?,
            subsystem: file.u16(optional + 68)?,
            subsystem_version: (file.u16(optional + 48)?, file.u16(optional + 50)?),
            os_version: (file.u16(optional + 40)?, file.u16(optional + 42)?),
            characteristics: file.u16(nt + 22)?,
            dll_characteristics: file.u16(optional + 70)?,
            loader_flags: file.u32(optional + 104)?,
            check_sum: file.u32(optional + 64)?,
            contains_code: false,
            directories,
            parts: Vec::new(),
        };
        if alignment < PAGE {
            headers.parts.push(flat_part(size, file_size));
            headers.contains_code = true;
            return Ok(headers);
        }
        headers.parts.push(ImagePart {
            name: String::new(),
            rva: 0,
            size: page_up(header_size)?,
            file_offset: 0,
            file_size: header_size.min(u32::try_from(file_size).unwrap_or(u32::MAX)),
            protection: PageProtection::READONLY,
        });
        let mut free = page_up(header_size)?;
        for index in 0..section_count {
            let at = optional + optional_size + index * 40;
            if let Some(part) = section(&file, at, free, size, file_size)? {
                free = part.rva + part.size;
                headers.contains_code |= file.u32(at + 36)? & 0x20 != 0;
                headers.parts.push(part);
            }
        }
        Ok(headers)
    }

    /// A data directory, `None` when absent or empty.
    #[must_use]
    pub fn directory(&self, index: usize) -> Option<(u32, u32)> {
        self.directories.get(index).copied().filter(|&(rva, size)| rva != 0 && size != 0)
    }

    /// Whether the file is a DLL (IMAGE_FILE_DLL).
    #[must_use]
    pub const fn is_dll(&self) -> bool {
        self.characteristics & 0x2000 != 0
    }

    /// Whether the image holds managed code only: a CLR header, and nothing that starts by itself.
    #[must_use]
    pub fn is_managed_only(&self) -> bool {
        self.directory(CLR_DIRECTORY).is_some() && self.entry_rva == 0
    }
}

/// Images with small alignment are mapped as the file is.
fn flat_part(size: u32, file_size: u64) -> ImagePart {
    ImagePart {
        name: String::new(),
        rva: 0,
        size,
        file_offset: 0,
        file_size: size.min(u32::try_from(file_size).unwrap_or(u32::MAX)),
        protection: PageProtection::EXECUTE_WRITECOPY,
    }
}

/// Reads the section header at `at`. The section must lie behind `free`, the end of its predecessor. `None`: it has no
/// size at all.
fn section(
    file: &Reader<'_>,
    at: usize,
    free: u32,
    image_size: u32,
    file_end: u64,
) -> Result<Option<ImagePart>, ImageError> {
    let name: [u8; 8] = file.array(at)?;
    let virtual_size = file.u32(at + 8)?;
    let rva = file.u32(at + 12)?;
    let raw_size = file.u32(at + 16)?;
    // The loader reads from whole disk sectors.
    let file_offset = u64::from(file.u32(at + 20)? & !0x1FF);
    let flags = file.u32(at + 36)?;
    let size = page_up(if virtual_size == 0 { raw_size } else { virtual_size })?;
    if size == 0 {
        return Ok(None);
    }
    if !rva.is_multiple_of(PAGE) || rva < free || rva.checked_add(size).is_none_or(|end| end > image_size) {
        return Err(ImageError::Malformed("a section lies outside the image or overlaps another"));
    }
    // Bytes behind the virtual size are mapped up to the end of the last page.
    let wanted = if file_offset == 0 { 0 } else { raw_size.min(size) };
    let available = file_end.saturating_sub(file_offset);
    if wanted != 0 && available == 0 {
        return Err(ImageError::Truncated("a section"));
    }
    let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Ok(Some(ImagePart {
        name: String::from_utf8_lossy(&name[..length]).into_owned(),
        rva,
        size,
        file_offset,
        file_size: wanted.min(u32::try_from(available).unwrap_or(u32::MAX)),
        protection: PageProtection::of_image_section(
            flags & 0x4000_0000 != 0,
            flags & 0x8000_0000 != 0,
            flags & 0x2000_0000 != 0,
        ),
    }))
}

crate::guest_struct! {
    /// SECTION_IMAGE_INFORMATION.
    pub struct SectionImageInformation: 0x40 {
        /// Entry point at the preferred base.
        pub transfer_address @ 0x00: u64,
        /// Always 0.
        pub zero_bits @ 0x08: u32,
        /// SizeOfStackReserve.
        pub maximum_stack_size @ 0x10: u64,
        /// SizeOfStackCommit.
        pub committed_stack_size @ 0x18: u64,
        /// Subsystem.
        pub subsystem_type @ 0x20: u32,
        /// MinorSubsystemVersion.
        pub subsystem_minor_version @ 0x24: u16,
        /// MajorSubsystemVersion.
        pub subsystem_major_version @ 0x26: u16,
        /// MajorOperatingSystemVersion.
        pub os_major_version @ 0x28: u16,
        /// MinorOperatingSystemVersion.
        pub os_minor_version @ 0x2A: u16,
        /// Characteristics of the file header.
        pub image_characteristics @ 0x2C: u16,
        /// DllCharacteristics.
        pub dll_characteristics @ 0x2E: u16,
        /// Machine.
        pub machine @ 0x30: u16,
        /// BOOLEAN.
        pub image_contains_code @ 0x32: u8,
        /// IMAGE_FLAGS: none of them applies.
        pub image_flags @ 0x33: u8,
        /// LoaderFlags.
        pub loader_flags @ 0x34: u32,
        /// Bytes of the file.
        pub image_file_size @ 0x38: u32,
        /// CheckSum.
        pub check_sum @ 0x3C: u32,
    }
}

impl ImageHeaders {
    /// As NtQuerySection and NtQueryInformationProcess tell it.
    #[must_use]
    pub fn information(&self, file_size: u64) -> SectionImageInformation {
        SectionImageInformation {
            transfer_address: self.base.wrapping_add(u64::from(self.entry_rva)),
            zero_bits: 0,
            maximum_stack_size: self.stack_reserve,
            committed_stack_size: self.stack_commit,
            subsystem_type: u32::from(self.subsystem),
            subsystem_minor_version: self.subsystem_version.1,
            subsystem_major_version: self.subsystem_version.0,
            os_major_version: self.os_version.0,
            os_minor_version: self.os_version.1,
            image_characteristics: self.characteristics,
            dll_characteristics: self.dll_characteristics,
            machine: AMD64,
            image_contains_code: u8::from(self.contains_code),
            image_flags: 0,
            loader_flags: self.loader_flags,
            image_file_size: u32::try_from(file_size).unwrap_or(u32::MAX),
            check_sum: self.check_sum,
        }
    }
}
