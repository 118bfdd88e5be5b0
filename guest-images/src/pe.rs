//! Writes PE32+ images whose sections lie at given addresses.

use object::pe;
use object::write::pe::{NtHeaders, Writer};

use crate::BuildError;

pub(crate) const SECTION_ALIGNMENT: u32 = 0x1000;
const FILE_ALIGNMENT: u32 = 0x200;

/// What a section holds, which fixes its protection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SectionKind {
    Code,
    ReadOnly,
    Data,
}

pub(crate) struct Section {
    pub name: &'static str,
    pub kind: SectionKind,
    pub rva: u32,
    pub bytes: Vec<u8>,
}

/// An image to write. Sections come in ascending order and do not overlap; the export directory follows them.
pub(crate) struct PeImage {
    pub dll: bool,
    pub subsystem: pe::Subsystem,
    pub base: u64,
    pub entry_rva: u32,
    pub sections: Vec<Section>,
    /// Module name in the export directory, and exported names with their RVAs; none for programs.
    pub export_name: Option<&'static str>,
    pub exports: Vec<(String, u32)>,
    /// RVA and size of the import directory, which one of the sections contains.
    pub imports: Option<(u32, u32)>,
    /// RVA and size of the import address table.
    pub import_addresses: Option<(u32, u32)>,
}

pub(crate) fn align_up(value: u32, alignment: u32) -> u32 {
    value.next_multiple_of(alignment)
}

impl PeImage {
    pub fn write(mut self) -> Result<Vec<u8>, BuildError> {
        let mut export_directory = None;
        if let Some(name) = self.export_name {
            let end = self.sections.last().map_or(0, |last| last.rva + last.bytes.len() as u32);
            let rva = align_up(end, SECTION_ALIGNMENT);
            let bytes = export_section(rva, name, std::mem::take(&mut self.exports));
            export_directory = Some((rva, bytes.len() as u32));
            self.sections.push(Section { name: ".edata", kind: SectionKind::ReadOnly, rva, bytes });
        }

        let mut file = Vec::new();
        let mut writer = Writer::new(true, SECTION_ALIGNMENT, FILE_ALIGNMENT, &mut file);
        writer.reserve_dos_header_and_stub();
        writer.reserve_nt_headers(pe::IMAGE_NUMBEROF_DIRECTORY_ENTRIES);
        for (index, directory) in [
            (pe::IMAGE_DIRECTORY_ENTRY_EXPORT, export_directory),
            (pe::IMAGE_DIRECTORY_ENTRY_IMPORT, self.imports),
            (pe::IMAGE_DIRECTORY_ENTRY_IAT, self.import_addresses),
        ] {
            if let Some((rva, size)) = directory {
                writer.set_data_directory(index, rva, size);
            }
        }
        writer.reserve_section_headers(self.sections.len() as u16);
        let mut ranges = Vec::with_capacity(self.sections.len());
        for section in &self.sections {
            let size = section.bytes.len() as u32;
            writer.reserve_virtual_until(section.rva);
            ranges.push(writer.reserve_section(section_name(section.name), section.kind.flags(), size, size));
        }

        writer.write_dos_header_and_stub()?;
        let mut characteristics = pe::IMAGE_FILE_EXECUTABLE_IMAGE | pe::IMAGE_FILE_LARGE_ADDRESS_AWARE;
        characteristics |= pe::IMAGE_FILE_RELOCS_STRIPPED;
        if self.dll {
            characteristics |= pe::IMAGE_FILE_DLL;
        }
        writer.write_nt_headers(NtHeaders {
            machine: pe::IMAGE_FILE_MACHINE_AMD64,
            time_date_stamp: 0,
            characteristics,
            major_linker_version: 9,
            minor_linker_version: 0,
            address_of_entry_point: self.entry_rva,
            image_base: self.base,
            major_operating_system_version: 6,
            minor_operating_system_version: 1,
            major_image_version: 6,
            minor_image_version: 1,
            major_subsystem_version: 6,
            minor_subsystem_version: 1,
            subsystem: self.subsystem,
            dll_characteristics: pe::IMAGE_DLLCHARACTERISTICS_NX_COMPAT,
            size_of_stack_reserve: 0x10_0000,
            size_of_stack_commit: 0x1000,
            size_of_heap_reserve: 0x10_0000,
            size_of_heap_commit: 0x1000,
        });
        writer.write_section_headers();
        for (section, range) in self.sections.iter().zip(&ranges) {
            writer.write_section(range.file_offset, &section.bytes);
        }
        Ok(file)
    }
}

impl SectionKind {
    fn flags(self) -> pe::SectionFlags {
        match self {
            Self::Code => pe::IMAGE_SCN_CNT_CODE | pe::IMAGE_SCN_MEM_EXECUTE | pe::IMAGE_SCN_MEM_READ,
            Self::ReadOnly => pe::IMAGE_SCN_CNT_INITIALIZED_DATA | pe::IMAGE_SCN_MEM_READ,
            Self::Data => pe::IMAGE_SCN_CNT_INITIALIZED_DATA | pe::IMAGE_SCN_MEM_READ | pe::IMAGE_SCN_MEM_WRITE,
        }
    }
}

fn section_name(name: &str) -> [u8; 8] {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// An export directory by name, ordinals from 1, names in the byte order that the loader's binary search needs.
fn export_section(rva: u32, module: &str, mut exports: Vec<(String, u32)>) -> Vec<u8> {
    exports.sort();
    exports.dedup_by(|a, b| a.0 == b.0);
    let count = exports.len() as u32;
    let functions = rva + 40;
    let names = functions + 4 * count;
    let ordinals = names + 4 * count;
    let mut string = ordinals + 2 * count;
    let mut strings = Vec::new();
    let mut add_string = |text: &str| {
        let address = string;
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        string += text.len() as u32 + 1;
        address
    };

    let module_name = add_string(module);
    let name_addresses: Vec<u32> = exports.iter().map(|(name, _)| add_string(name)).collect();
    let mut bytes = Vec::new();
    // IMAGE_EXPORT_DIRECTORY: Characteristics, TimeDateStamp, versions, Name, Base, counts, tables.
    for word in [0, 0, 0, module_name, 1, count, count, functions, names, ordinals] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for (_, address) in &exports {
        bytes.extend_from_slice(&address.to_le_bytes());
    }
    for address in name_addresses {
        bytes.extend_from_slice(&address.to_le_bytes());
    }
    for ordinal in 0..count {
        bytes.extend_from_slice(&(ordinal as u16).to_le_bytes());
    }
    bytes.extend_from_slice(&strings);
    bytes
}

/// An import section with a directory and address tables, bound in advance: the address table already holds where the
/// functions are at their modules' preferred bases, so that the image runs with and without a loader that snaps it.
pub(crate) struct ImportSection {
    pub bytes: Vec<u8>,
    pub directory: (u32, u32),
    pub addresses: (u32, u32),
    slots: Vec<(String, u32)>,
}

impl ImportSection {
    /// Lays out imports of `(module, [(function, address)])` at `rva`.
    pub fn new(rva: u32, modules: &[(&str, Vec<(&str, u64)>)]) -> Self {
        const DESCRIPTOR: u32 = 20;
        let thunks: u32 = modules.iter().map(|(_, functions)| functions.len() as u32 + 1).sum();
        let directory_size = (modules.len() as u32 + 1) * DESCRIPTOR;
        let addresses = align_up(rva + directory_size, 8);
        let lookups = addresses + thunks * 8;
        let strings = lookups + thunks * 8;

        let (mut directory, mut iat, mut ilt, mut text) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut slots = Vec::new();
        for (module, functions) in modules {
            let module_name = strings + text.len() as u32;
            text.extend_from_slice(module.as_bytes());
            text.resize((text.len() + 1).next_multiple_of(2), 0);
            let lookup = lookups + ilt.len() as u32;
            // IMAGE_IMPORT_DESCRIPTOR: lookup table, time stamp, forwarder chain, name, address table.
            for word in [lookup, 0, 0, module_name, addresses + iat.len() as u32] {
                directory.extend_from_slice(&word.to_le_bytes());
            }
            for (name, address) in functions {
                slots.push(((*name).to_owned(), addresses + iat.len() as u32));
                iat.extend_from_slice(&address.to_le_bytes());
                ilt.extend_from_slice(&u64::from(strings + text.len() as u32).to_le_bytes());
                // IMAGE_IMPORT_BY_NAME: hint and name, at an even address.
                text.extend_from_slice(&[0, 0]);
                text.extend_from_slice(name.as_bytes());
                text.resize((text.len() + 1).next_multiple_of(2), 0);
            }
            iat.extend_from_slice(&[0; 8]);
            ilt.extend_from_slice(&[0; 8]);
        }
        let mut bytes = directory;
        bytes.resize((addresses - rva) as usize, 0);
        let iat_size = iat.len() as u32;
        bytes.extend(iat.into_iter().chain(ilt).chain(text));
        Self { bytes, directory: (rva, directory_size), addresses: (addresses, iat_size), slots }
    }

    /// RVA of a function's slot in the address table.
    ///
    /// # Panics
    /// If the function was not imported: a mistake in this crate.
    pub fn slot(&self, name: &str) -> u32 {
        match self.slots.iter().find(|(function, _)| function == name) {
            Some((_, rva)) => *rva,
            None => panic!("{name} is not imported"),
        }
    }
}
