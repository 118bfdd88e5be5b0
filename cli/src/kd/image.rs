//! PE images as they lie in guest memory. The guest may have written anything there: every count is bounded, every
//! address checked by reading.

use std::ops::Range;

use super::Fault;
use super::symbols::{Module, SymbolSource};

/// Guest memory for reading.
pub trait Memory {
    /// Fills `buf`, whatever the pages' protection.
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), Fault>;

    /// A little-endian number of 1 to 8 bytes.
    fn number(&self, address: u64, size: usize) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes[..size.min(8)])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A 32-bit number.
    fn u32(&self, address: u64) -> Result<u32, Fault> {
        self.number(address, 4).map(|value| value as u32)
    }

    /// A zero-terminated string of at most `most` bytes.
    fn string(&self, address: u64, most: usize) -> Result<String, Fault> {
        let mut text = Vec::new();
        while text.len() < most {
            match self.number(address.wrapping_add(text.len() as u64), 1)? as u8 {
                0 => break,
                byte => text.push(byte),
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// A UNICODE_STRING's text.
    fn unicode_string(&self, address: u64) -> Result<String, Fault> {
        let length = (self.number(address, 2)? as usize).min(0x1000) & !1;
        let mut bytes = vec![0; length];
        self.read(self.number(address.wrapping_add(8), 8)?, &mut bytes)?;
        let units: Vec<u16> = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
        Ok(String::from_utf16_lossy(&units))
    }
}

/// Exports that are read at most.
const MOST_EXPORTS: u32 = 0x1_0000;
/// Loaded modules that are listed at most.
const MOST_MODULES: usize = 1024;

/// The headers of an image in memory.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    base: u64,
    size: u32,
    optional: u64,
}

impl Image {
    /// Reads the headers at `base`; `None` when there is no x64 image.
    pub fn at(memory: &dyn Memory, base: u64) -> Option<Self> {
        if memory.number(base, 2).ok()? != 0x5A4D {
            return None;
        }
        let header = base.checked_add(u64::from(memory.u32(base.checked_add(0x3C)?).ok()?).min(0x1000))?;
        let optional = header.checked_add(24)?;
        let signature = memory.u32(header).ok()?;
        let magic = memory.number(optional, 2).ok()?;
        if signature != 0x4550 || magic != 0x20B {
            return None;
        }
        let size = memory.u32(optional.checked_add(56)?).ok()?;
        Some(Self { base, size, optional })
    }

    /// Addresses the image covers.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.base..self.base.saturating_add(u64::from(self.size))
    }

    /// A data directory: first address and size; `None` when empty.
    pub fn directory(&self, memory: &dyn Memory, index: u64) -> Option<(u64, u32)> {
        let at = self.optional.wrapping_add(112 + 8 * index);
        let (rva, size) = (memory.u32(at).ok()?, memory.u32(at.wrapping_add(4)).ok()?);
        (rva != 0 && rva < self.size).then(|| (self.base.wrapping_add(u64::from(rva)), size))
    }

    /// The export directory's name and its named exports; forwarders are left out.
    #[must_use]
    pub fn exports(&self, memory: &dyn Memory) -> (Option<String>, Vec<(u64, String)>) {
        let Some((directory, size)) = self.directory(memory, 0) else { return (None, Vec::new()) };
        let read = || -> Result<_, Fault> {
            let field = |offset: u64| memory.u32(directory.wrapping_add(offset));
            let at = |rva: u32| self.base.wrapping_add(u64::from(rva));
            let name = memory.string(at(field(12)?), 260)?;
            let functions = field(20)?;
            let (addresses, names, ordinals) = (at(field(28)?), at(field(32)?), at(field(36)?));
            let mut exports = Vec::new();
            for index in 0..u64::from(field(24)?.min(MOST_EXPORTS)) {
                let ordinal = memory.number(ordinals.wrapping_add(2 * index), 2)?;
                if ordinal >= u64::from(functions) {
                    continue;
                }
                let address = at(memory.u32(addresses.wrapping_add(4 * ordinal))?);
                if address.wrapping_sub(directory) >= u64::from(size) {
                    exports.push((address, memory.string(at(memory.u32(names.wrapping_add(4 * index))?), 512)?));
                }
            }
            Ok((name, exports))
        };
        read().map_or((None, Vec::new()), |(name, exports)| (Some(name), exports))
    }

    /// The image as a module with its exports as symbols; `file` is its name when the loader has said it.
    #[must_use]
    pub fn module(&self, memory: &dyn Memory, file: Option<String>) -> Module {
        let (name, exports) = self.exports(memory);
        let file = file.or(name).unwrap_or_else(|| format!("image{:08x}", self.base));
        Module::new(module_name(&file), file, self.range(), SymbolSource::Export, exports)
    }
}

/// The debugger's name for a file: without extension, in the characters that a symbol can have; the kernel is `nt`.
fn module_name(file: &str) -> String {
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    if stem.eq_ignore_ascii_case("ntoskrnl") {
        return "nt".into();
    }
    stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// Base and file name of each module that a process's loader lists, from its PEB.
pub fn loaded_modules(memory: &dyn Memory, peb: u64) -> Vec<(u64, String)> {
    let mut modules = Vec::new();
    let mut walk = || -> Result<(), Fault> {
        let loader = memory.number(peb.wrapping_add(0x18), 8)?;
        if loader == 0 {
            return Ok(());
        }
        let head = loader.wrapping_add(0x10); // InLoadOrderModuleList
        let mut entry = memory.number(head, 8)?;
        while entry != head && entry != 0 && modules.len() < MOST_MODULES {
            modules
                .push((memory.number(entry.wrapping_add(0x30), 8)?, memory.unicode_string(entry.wrapping_add(0x58))?));
            entry = memory.number(entry, 8)?;
        }
        Ok(())
    };
    // A list that is being changed may end nowhere: what was read is good.
    let _ = walk();
    modules
}
