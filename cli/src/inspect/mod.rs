//! Looks at a program file before anything is mapped, so that whatever cannot run is refused with one clear line.
//!
//! [`inspect`] reads headers and import names only and trusts nothing in them.
//! [`missing_imports`] then checks that each DLL the program needs before its first instruction can be found.

mod imports;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub use imports::{MissingImport, find_entry, missing_imports};

/// `IMAGE_FILE_MACHINE_AMD64`.
const MACHINE_AMD64: u16 = 0x8664;
/// `IMAGE_FILE_DLL`.
const CHARACTERISTIC_DLL: u16 = 0x2000;
/// `IMAGE_FILE_EXECUTABLE_IMAGE`.
const CHARACTERISTIC_EXECUTABLE: u16 = 0x0002;
/// Optional-header magic of PE32+.
const MAGIC_PE32_PLUS: u16 = 0x20B;
/// `COMIMAGE_FLAGS_ILONLY`.
const CLR_IL_ONLY: u32 = 1;
/// Largest file that is looked at.
const MOST_BYTES: u64 = 4 << 30;

/// What the headers say about a program that can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Whether it is a DLL.
    pub dll: bool,
    /// Subsystem: 2 graphical, 3 console.
    pub subsystem: u16,
    /// Preferred base address.
    pub image_base: u64,
    /// Bytes it takes in memory.
    pub image_size: u32,
    /// Names of the DLLs it imports at load time, in order.
    pub imports: Vec<String>,
}

/// What an image is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be run.
    Program,
    /// To be loaded by a program.
    Library,
}

/// Why a file cannot be used. The text says what and what to do; the caller adds where.
#[derive(Debug, thiserror::Error)]
pub enum ImageProblem {
    /// There is no such file.
    #[error("there is no such file; check the path")]
    NotFound,
    /// The path names a folder.
    #[error("it is a folder; name the program inside it")]
    Folder,
    /// The host refuses.
    #[error("it cannot be read ({0}); check its permissions")]
    Unreadable(#[source] io::Error),
    /// Too long to be an image.
    #[error("it is {0} bytes long, more than any image; name a program")]
    TooLong(u64),
    /// Something else than an executable image.
    #[error("it is {0}, not a Windows program; name an x64 Windows .exe")]
    NotWindows(&'static str),
    /// For another processor.
    #[error("it is for {0}; lstar runs x64 programs, use the program's 64-bit x86 build")]
    Machine(String),
    /// Only intermediate code.
    #[error(
        "it is a .NET assembly without native code; lstar runs native x64 programs, publish it ahead-of-time (AOT)"
    )]
    DotNet,
    /// Not a user-mode program.
    #[error("it is {0}; lstar runs console and graphical programs")]
    Kind(&'static str),
    /// Ends too early.
    #[error("it is truncated: {what} needs {needed} bytes, the file has {length}; copy or download it again")]
    Truncated {
        /// What does not fit.
        what: String,
        /// File length that would be needed.
        needed: u64,
        /// File length.
        length: u64,
    },
    /// Contradicts itself.
    #[error("its headers are malformed: {0}; copy or download it again")]
    Malformed(String),
}

/// Checks a file. `purpose` decides whether a DLL is welcome.
pub fn inspect(path: &Path, purpose: Purpose) -> Result<Inspection, ImageProblem> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ImageProblem::NotFound,
        _ => ImageProblem::Unreadable(error),
    })?;
    if metadata.is_dir() {
        return Err(ImageProblem::Folder);
    }
    if !metadata.is_file() {
        return Err(ImageProblem::NotWindows("a device or a pipe"));
    }
    if metadata.len() > MOST_BYTES {
        return Err(ImageProblem::TooLong(metadata.len()));
    }
    let file = fs::File::open(path).map_err(ImageProblem::Unreadable)?;
    let chunk = RefCell::new((0, Vec::new()));
    let read_at = |buf: &mut [u8], offset| read_chunked(&file, &mut chunk.borrow_mut(), buf, offset);
    inspect_file(&File { read_at: &read_at, length: metadata.len() }, purpose)
}

/// Reads through a chunk of the file that is kept, with its offset: tables are read entry by entry.
fn read_chunked(file: &fs::File, chunk: &mut (u64, Vec<u8>), buf: &mut [u8], offset: u64) -> io::Result<()> {
    const CHUNK: usize = 0x1_0000;
    if buf.len() > CHUNK {
        return file.read_exact_at(buf, offset);
    }
    let (start, bytes) = chunk;
    let holds = |start: u64, bytes: &[u8]| {
        let skip = usize::try_from(offset.checked_sub(start)?).ok()?;
        bytes.get(skip..skip.checked_add(buf.len())?).map(<[u8]>::to_vec)
    };
    if holds(*start, bytes).is_none() {
        bytes.resize(CHUNK, 0);
        let read = file.read_at(bytes, offset)?;
        bytes.truncate(read);
        *start = offset;
    }
    match holds(*start, bytes) {
        Some(found) => buf.copy_from_slice(&found),
        // The host gave less than was asked for.
        None => return file.read_exact_at(buf, offset),
    }
    Ok(())
}

fn inspect_file(file: &File<'_>, purpose: Purpose) -> Result<Inspection, ImageProblem> {
    if let Some(kind) = foreign_kind(&file.up_to(0, 512)?) {
        return Err(ImageProblem::NotWindows(kind));
    }
    let header = u64::from(file.u32(0x3C, "the DOS header")?);
    if file.length > 0x40 && header + 4 <= file.length {
        match &file.array::<4>(header, "the signature")? {
            b"PE\0\0" => {}
            [b'N', b'E', ..] => return Err(ImageProblem::NotWindows("a 16-bit Windows program")),
            [b'L', b'E' | b'X', ..] => return Err(ImageProblem::NotWindows("an OS/2 or VxD image")),
            _ => return Err(ImageProblem::NotWindows("a DOS program")),
        }
    }
    let coff = header + 4;
    let machine = file.u16(coff, "the file header")?;
    let section_count = file.u16(coff + 2, "the file header")?;
    let optional_size = u64::from(file.u16(coff + 16, "the file header")?);
    let characteristics = file.u16(coff + 18, "the file header")?;
    if machine != MACHINE_AMD64 {
        return Err(ImageProblem::Machine(machine_name(machine)));
    }
    let optional = coff + 20;
    file.check(optional, optional_size, "the optional header")?;
    if optional_size < 112 || file.u16(optional, "the optional header")? != MAGIC_PE32_PLUS {
        return malformed("an x64 image without a PE32+ optional header");
    }
    if characteristics & CHARACTERISTIC_EXECUTABLE == 0 {
        return malformed("the linker did not mark it executable");
    }

    let entry = file.u32(optional + 16, "the optional header")?;
    let image_base = file.u64(optional + 24, "the optional header")?;
    let section_alignment = file.u32(optional + 32, "the optional header")?;
    let file_alignment = file.u32(optional + 36, "the optional header")?;
    let image_size = file.u32(optional + 56, "the optional header")?;
    let headers_size = file.u32(optional + 60, "the optional header")?;
    let subsystem = file.u16(optional + 68, "the optional header")?;
    let directory_count = u64::from(file.u32(optional + 108, "the optional header")?).min(16);
    if !section_alignment.is_power_of_two() || !file_alignment.is_power_of_two() || section_alignment < file_alignment {
        return malformed(format!("section alignment {section_alignment:#x}, file alignment {file_alignment:#x}"));
    }
    if image_size == 0 || u64::from(headers_size) > u64::from(image_size) {
        return malformed(format!("image size {image_size:#x}, headers {headers_size:#x}"));
    }
    if image_base % 0x1_0000 != 0 || image_base.checked_add(u64::from(image_size)).is_none() {
        return malformed(format!("image base {image_base:#x}"));
    }
    if optional_size < 112 + 8 * directory_count {
        return malformed(format!("{directory_count} data directories in {optional_size} bytes of optional header"));
    }
    file.check(0, headers_size.into(), "the headers")?;

    if section_count == 0 || section_count > 96 {
        return malformed(format!("{section_count} sections"));
    }
    let mut sections = Vec::with_capacity(usize::from(section_count));
    for index in 0..u64::from(section_count) {
        let section = Section::read(file, optional + optional_size + 40 * index)?;
        section.check(file, image_size)?;
        sections.push(section);
    }
    if entry >= image_size {
        return malformed(format!("entry point {entry:#x} outside the image"));
    }

    let image = Image { file, sections, headers_size };
    let directory = |index: u64| -> Result<(u32, u32), ImageProblem> {
        if index >= directory_count {
            return Ok((0, 0));
        }
        let at = optional + 112 + 8 * index;
        let (rva, size) = (image.file.u32(at, "a directory")?, image.file.u32(at + 4, "a directory")?);
        // The certificate table (4) counts in file offsets.
        if index != 4 && u64::from(rva) + u64::from(size) > u64::from(image_size) {
            return malformed(format!("data directory {index} lies outside the image"));
        }
        Ok((rva, size))
    };
    let (clr, clr_size) = directory(14)?;
    if clr != 0 && clr_size >= 20 && image.u32_at(clr + 16)? & CLR_IL_ONLY != 0 {
        return Err(ImageProblem::DotNet);
    }
    let dll = characteristics & CHARACTERISTIC_DLL != 0;
    if purpose == Purpose::Program {
        match subsystem {
            _ if dll => return Err(ImageProblem::Kind("a DLL, which runs only inside a program")),
            2 | 3 => {}
            1 => return Err(ImageProblem::Kind("a driver or a native program")),
            10..=13 => return Err(ImageProblem::Kind("a firmware (EFI) program")),
            _ => return Err(ImageProblem::Kind("for a subsystem other than Windows")),
        }
        if entry == 0 {
            return malformed("a program without entry point");
        }
    }
    let (import_rva, import_size) = directory(1)?;
    let imports = if import_rva == 0 { Vec::new() } else { image.import_names(import_rva, import_size)? };
    Ok(Inspection { dll, subsystem, image_base, image_size, imports })
}

fn malformed<T>(what: impl Into<String>) -> Result<T, ImageProblem> {
    Err(ImageProblem::Malformed(what.into()))
}

/// Names well-known formats that are not Windows images, by their first bytes.
fn foreign_kind(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [] => Some("an empty file"),
        [b'M', b'Z', ..] => None,
        [0x7F, b'E', b'L', b'F', ..] => Some("a Linux (ELF) program"),
        [0xCF | 0xCE, 0xFA, 0xED, 0xFE, ..] | [0xCA, 0xFE, 0xBA, 0xBE, ..] => Some("a macOS (Mach-O) program"),
        [b'#', b'!', ..] => Some("a script"),
        [b'P', b'K', 3, 4, ..] => Some("a ZIP archive"),
        [0xD0, 0xCF, 0x11, 0xE0, ..] => Some("an installer package (MSI)"),
        _ if bytes.iter().all(|byte| (b' '..0x7F).contains(byte) || byte.is_ascii_whitespace()) => Some("a text file"),
        _ => Some("no executable image (no MZ header)"),
    }
}

fn machine_name(machine: u16) -> String {
    match machine {
        0x14C => "32-bit x86".into(),
        0xAA64 => "ARM64".into(),
        0x1C0 | 0x1C2 | 0x1C4 => "32-bit ARM".into(),
        0x200 => "Itanium".into(),
        0x5032 | 0x5064 => "RISC-V".into(),
        0x6232 | 0x6264 => "LoongArch".into(),
        0xEBC => "EFI byte code".into(),
        _ => format!("an unknown processor ({machine:#06x})"),
    }
}

/// Bounds-checked reading of the file: a few hundred bytes of many megabytes.
struct File<'a> {
    /// Fills a buffer from an offset; only asked for what is inside.
    read_at: &'a dyn Fn(&mut [u8], u64) -> io::Result<()>,
    length: u64,
}

impl File<'_> {
    fn check(&self, offset: u64, size: u64, what: &str) -> Result<(), ImageProblem> {
        let needed = offset.saturating_add(size);
        if needed <= self.length {
            return Ok(());
        }
        Err(ImageProblem::Truncated { what: what.into(), needed, length: self.length })
    }

    fn read(&self, offset: u64, buf: &mut [u8], what: &str) -> Result<(), ImageProblem> {
        self.check(offset, buf.len() as u64, what)?;
        (self.read_at)(buf, offset).map_err(ImageProblem::Unreadable)
    }

    /// As many of `most` bytes as there are.
    fn up_to(&self, offset: u64, most: u64) -> Result<Vec<u8>, ImageProblem> {
        let mut bytes = vec![0; self.length.saturating_sub(offset).min(most) as usize];
        if !bytes.is_empty() {
            self.read(offset, &mut bytes, "a table")?;
        }
        Ok(bytes)
    }

    fn array<const N: usize>(&self, offset: u64, what: &str) -> Result<[u8; N], ImageProblem> {
        let mut array = [0; N];
        self.read(offset, &mut array, what)?;
        Ok(array)
    }

    fn u16(&self, offset: u64, what: &str) -> Result<u16, ImageProblem> {
        self.array(offset, what).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: u64, what: &str) -> Result<u32, ImageProblem> {
        self.array(offset, what).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: u64, what: &str) -> Result<u64, ImageProblem> {
        self.array(offset, what).map(u64::from_le_bytes)
    }
}

/// A section header.
struct Section {
    name: String,
    virtual_size: u32,
    rva: u32,
    raw_size: u32,
    raw_offset: u32,
}

impl Section {
    fn read(file: &File<'_>, at: u64) -> Result<Self, ImageProblem> {
        let what = "the section table";
        let name: [u8; 8] = file.array(at, what)?;
        Ok(Self {
            name: String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned(),
            virtual_size: file.u32(at + 8, what)?,
            rva: file.u32(at + 12, what)?,
            raw_size: file.u32(at + 16, what)?,
            raw_offset: file.u32(at + 20, what)?,
        })
    }

    fn check(&self, file: &File<'_>, image_size: u32) -> Result<(), ImageProblem> {
        let end = u64::from(self.rva) + u64::from(self.virtual_size);
        if end > u64::from(image_size).next_multiple_of(0x1000) {
            return malformed(format!("section {} ends at {end:#x}, beyond the image", self.name));
        }
        if self.raw_size != 0 && self.raw_offset != 0 {
            // Padding up to the file alignment may be cut off; the part that is mapped may not.
            let used = self.raw_size.min(self.virtual_size.max(1));
            let (offset, size) = (u64::from(self.raw_offset), u64::from(used));
            file.check(offset, size, &format!("section {}", self.name))?;
        }
        Ok(())
    }
}

/// The file seen through its section table.
struct Image<'a> {
    file: &'a File<'a>,
    sections: Vec<Section>,
    headers_size: u32,
}

impl Image<'_> {
    /// File offset of a relative virtual address that has bytes in the file.
    fn offset(&self, rva: u32) -> Result<u64, ImageProblem> {
        if rva < self.headers_size {
            return Ok(u64::from(rva));
        }
        let section = self.sections.iter().find(|section| rva.wrapping_sub(section.rva) < section.raw_size);
        match section {
            Some(section) => Ok(u64::from(section.raw_offset) + u64::from(rva - section.rva)),
            None => malformed(format!("address {rva:#x} lies in no section")),
        }
    }

    fn u32_at(&self, rva: u32) -> Result<u32, ImageProblem> {
        self.file.u32(self.offset(rva)?, "a table")
    }

    fn string_at(&self, rva: u32) -> Result<String, ImageProblem> {
        let rest = self.file.up_to(self.offset(rva)?, 512)?;
        match rest.iter().position(|byte| *byte == 0) {
            Some(end) => Ok(String::from_utf8_lossy(&rest[..end]).into_owned()),
            None => malformed(format!("the name at {rva:#x} has no end")),
        }
    }

    /// DLL names of the import directory, which ends with an all-zero descriptor.
    fn import_names(&self, rva: u32, size: u32) -> Result<Vec<String>, ImageProblem> {
        let mut names = Vec::new();
        // Linkers disagree on whether `size` counts the last descriptor; some write nonsense. The terminator decides.
        let most = (size / 20).max(1).saturating_add(4096);
        for index in 0..most {
            let descriptor = rva.saturating_add(index * 20);
            let name = self.u32_at(descriptor + 12)?;
            if name == 0 {
                break;
            }
            names.push(self.string_at(name)?);
        }
        Ok(names)
    }
}
