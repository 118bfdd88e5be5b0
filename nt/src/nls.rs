//! National language support: the tables that the loader and kernelbase ask the kernel to map.

use std::fs::File;
use std::sync::Arc;

use crate::memory::Placement;
use crate::memory::protection::PageProtection;
use crate::memory::section::{Section, SectionFile, attributes};
use crate::memory::view::ViewRequest;
use crate::service::Call;
use crate::status::Status;
use crate::user_ptr::UserPtr;

crate::services! {
    pub SERVICES;
    /// Maps a table of a type (sorting, case, a code page, normalisation).
    NtGetNlsSectionPtr(kind: u32, id: u32, context: u64, pointer: UserPtr<u64>, size: UserPtr<u64>) = nt_get_nls_section_ptr;
    /// Maps the locale table and tells the default locale.
    NtInitializeNlsFiles(pointer: UserPtr<u64>, locale: UserPtr<u32>, size: UserPtr<u64>) = nt_initialize_nls_files;
}

/// File of a section type and identifier.
fn file_name(kind: u32, id: u32) -> Result<String, Status> {
    const SORT_KEYS: u32 = 9;
    const CASE_MAP: u32 = 10;
    const CODE_PAGE: u32 = 11;
    const NORMALIZATION: u32 = 12;
    let name = match (kind, id) {
        (SORT_KEYS, 0) => "sortdefault.nls",
        (CASE_MAP, 0) => "l_intl.nls",
        (CODE_PAGE, _) => return Ok(format!("c_{id:03}.nls")),
        (NORMALIZATION, 1) => "normnfc.nls",
        (NORMALIZATION, 2) => "normnfd.nls",
        (NORMALIZATION, 5) => "normnfkc.nls",
        (NORMALIZATION, 6) => "normnfkd.nls",
        (NORMALIZATION, 13) => "normidna.nls",
        (SORT_KEYS | CASE_MAP | NORMALIZATION, _) => return Err(Status::OBJECT_NAME_NOT_FOUND),
        _ => return Err(Status::INVALID_PARAMETER_1),
    };
    Ok(name.to_owned())
}

impl Call<'_, '_> {
    fn map_nls(&mut self, name: &str) -> Result<(u64, u64), Status> {
        let file = File::open(self.kernel.system.system32.join(name)).map_err(|_| Status::OBJECT_NAME_NOT_FOUND)?;
        let file = SectionFile { file, name: format!("\\SystemRoot\\System32\\{name}"), held: None };
        let space = &mut *self.vcpu.memory;
        let section = Section::of_file(space, file, 0, PageProtection::READONLY, attributes::COMMIT)?;
        let size = section.size;
        let request = ViewRequest {
            base: None,
            placement: Placement::default(),
            offset: 0,
            size: 0,
            protection: PageProtection::READONLY,
            replace_placeholder: false,
        };
        let (address, _) = self.kernel.memory.map_data(space, &Arc::new(section), request)?;
        Ok((address, size))
    }
}

fn nt_get_nls_section_ptr(
    call: &mut Call<'_, '_>,
    kind: u32,
    id: u32,
    _context: u64,
    pointer: UserPtr<u64>,
    size: UserPtr<u64>,
) -> Result<Status, Status> {
    pointer.write(call, 0)?;
    let (address, bytes) = call.map_nls(&file_name(kind, id)?)?;
    pointer.write(call, address)?;
    size.write_optional(call, bytes)?;
    Ok(Status::SUCCESS)
}

fn nt_initialize_nls_files(
    call: &mut Call<'_, '_>,
    pointer: UserPtr<u64>,
    locale: UserPtr<u32>,
    size: UserPtr<u64>,
) -> Result<Status, Status> {
    pointer.write(call, 0)?;
    let (address, bytes) = call.map_nls("locale.nls")?;
    pointer.write(call, address)?;
    let default = call.kernel.system.user_locale;
    locale.write(call, default)?;
    size.write_optional(call, bytes)?;
    Ok(Status::SUCCESS)
}
