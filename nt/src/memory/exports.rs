//! Exports of an image file, and the service numbers in a DLL's system-call stubs.

use std::cell::RefCell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::section::Section;

/// Exports that are read at most.
const MAX_EXPORTS: u32 = 0x1_0000;
/// Longest name.
const MAX_NAME: usize = 256;
/// `mov r10, rcx; mov eax, imm32`.
const STUB: [u8; 4] = [0x4C, 0x8B, 0xD1, 0xB8];

/// Bytes read from a file at a time: tables are read entry by entry, names one by one.
const CHUNK: u64 = 0x1_0000;
/// Chunks kept.
const MOST_CHUNKS: usize = 64;

/// A chunk of a file: less than a whole one at its end.
fn read_chunk(file: &File, number: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; CHUNK as usize];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], number * CHUNK + length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// An image file read by addresses relative to its base.
#[derive(Debug)]
pub struct ImageReader<'a> {
    section: &'a Section,
    /// Parts of the file, by number.
    chunks: RefCell<BTreeMap<u64, Vec<u8>>>,
}

impl<'a> ImageReader<'a> {
    /// A reader of the image behind a section.
    #[must_use]
    pub const fn new(section: &'a Section) -> Self {
        Self { section, chunks: RefCell::new(BTreeMap::new()) }
    }

    /// Reads bytes that come from the file.
    #[must_use]
    pub fn read(&self, rva: u32, length: usize) -> Option<Vec<u8>> {
        let (headers, file) = (self.section.image()?, self.section.file.as_ref()?);
        let part = headers.parts.iter().rev().find(|part| part.rva <= rva)?;
        let offset = rva - part.rva;
        let available = part.file_size.checked_sub(offset)? as usize;
        if length > available {
            return None;
        }
        let mut bytes = vec![0; length];
        let start = part.file_offset + u64::from(offset);
        if length as u64 > CHUNK {
            file.file.read_exact_at(&mut bytes, start).ok()?;
            return Some(bytes);
        }
        let mut chunks = self.chunks.borrow_mut();
        let mut done = 0;
        while done < length {
            let at = start + done as u64;
            let number = at / CHUNK;
            if chunks.len() == MOST_CHUNKS && !chunks.contains_key(&number) {
                chunks.clear();
            }
            let chunk = match chunks.entry(number) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(read_chunk(&file.file, number).ok()?),
            };
            let rest = chunk.get((at % CHUNK) as usize..).filter(|rest| !rest.is_empty())?;
            let count = rest.len().min(length - done);
            bytes[done..done + count].copy_from_slice(&rest[..count]);
            done += count;
        }
        Some(bytes)
    }

    fn read_u32s(&self, rva: u32, count: u32) -> Option<Vec<u32>> {
        let bytes = self.read(rva, count as usize * 4)?;
        Some(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    fn read_name(&self, rva: u32) -> Option<String> {
        let bytes = (4..=MAX_NAME).step_by(28).find_map(|length| {
            let bytes = self.read(rva, length)?;
            bytes.contains(&0).then_some(bytes)
        });
        // Near the end of the file's data a long read fails: then go byte by byte.
        let bytes = bytes.or_else(|| {
            let bytes: Vec<u8> = (0..MAX_NAME as u32)
                .map_while(|index| self.read(rva.checked_add(index)?, 1).map(|b| b[0]))
                .take_while(|&byte| byte != 0)
                .collect();
            Some(bytes)
        })?;
        let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// Named exports: offset from the base by name. What is malformed is left out.
    #[must_use]
    pub fn exports(&self) -> BTreeMap<String, u32> {
        self.try_exports().unwrap_or_default()
    }

    fn try_exports(&self) -> Option<BTreeMap<String, u32>> {
        let (directory, _) = self.section.image()?.directory(0)?;
        let fields = self.read_u32s(directory.checked_add(0x14)?, 5)?;
        let [function_count, name_count, functions, names, ordinals] = fields[..] else { return None };
        let count = name_count.min(MAX_EXPORTS);
        let functions = self.read_u32s(functions, function_count.min(MAX_EXPORTS))?;
        let names = self.read_u32s(names, count)?;
        let ordinals = self.read(ordinals, count as usize * 2)?;
        let mut exports = BTreeMap::new();
        for (name, ordinal) in names.into_iter().zip(ordinals.chunks_exact(2)) {
            let index = usize::from(u16::from_le_bytes([ordinal[0], ordinal[1]]));
            if let (Some(name), Some(&rva)) = (self.read_name(name), functions.get(index)) {
                exports.insert(name, rva);
            }
        }
        Some(exports)
    }

    /// Where functions begin, as offsets from the base: named exports and what the exception directory lists (PE format, .pdata),
    /// but for the further parts of functions that it splits up.
    #[must_use]
    pub fn functions(&self) -> BTreeSet<u32> {
        let mut functions: BTreeSet<u32> = self.exports().into_values().collect();
        functions.extend(self.listed_functions().unwrap_or_default());
        functions
    }

    fn listed_functions(&self) -> Option<Vec<u32>> {
        const EXCEPTION_DIRECTORY: usize = 3;
        /// RUNTIME_FUNCTION.
        const ENTRY: usize = 12;
        const MOST: usize = 1 << 20;
        /// UNW_FLAG_CHAININFO, in the first byte of UNWIND_INFO.
        const CHAINED: u8 = 4 << 3;
        let (directory, size) = self.section.image()?.directory(EXCEPTION_DIRECTORY)?;
        let count = (size as usize / ENTRY).min(MOST);
        let table = self.read(directory, count * ENTRY)?;
        let field =
            |entry: &[u8], at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        let is_further_part = |entry: &[u8]| self.read(field(entry, 8), 1).is_some_and(|info| info[0] & CHAINED != 0);
        Some(table.chunks_exact(ENTRY).filter(|entry| !is_further_part(entry)).map(|entry| field(entry, 0)).collect())
    }

    /// Names of services by their numbers, as the stubs of a DLL say. `Zw` names are aliases and left out.
    #[must_use]
    pub fn service_numbers(&self, exports: &BTreeMap<String, u32>) -> BTreeMap<u32, String> {
        let mut services = BTreeMap::new();
        for (name, &rva) in exports.iter().filter(|(name, _)| !name.starts_with("Zw")) {
            let Some(code) = self.read(rva, STUB.len() + 4) else { continue };
            if let Some(&[a, b, c, d]) = code.strip_prefix(&STUB) {
                services.insert(u32::from_le_bytes([a, b, c, d]), name.clone());
            }
        }
        services
    }
}
