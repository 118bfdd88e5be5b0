//! The section services.

use std::sync::Arc;

use lstar_arch::PAGE_SIZE;

use super::ALLOCATION_GRANULARITY;
use super::protection::PageProtection;
use super::section::{Section, SectionFile, attributes as sec};
use super::services::{ExtendedParameter, placement_of_zero_bits, read_placement};
use super::vad::Placement;
use super::view::ViewRequest;
use crate::debug::Event;
use crate::io::FileObject;
use crate::io::mapped::MappingKind;
use crate::object::{Body, ObjectType};
use crate::process::access;
use crate::service::{Call, Handle};
use crate::status::Status;
use crate::strings::RawObjectAttributes;
use crate::user_ptr::{UserBuffer, UserPtr};

crate::services! {
    pub SERVICES;
    /// Creates a section of a file, an image or memory.
    NtCreateSection(handle: UserPtr<Handle>, access: u32, attributes: UserPtr<RawObjectAttributes>, maximum_size: UserPtr<u64>, protect: u32, allocation_attributes: u32, file: Handle) = nt_create_section;
    /// Creates a section, with extended parameters (which have no effect here).
    NtCreateSectionEx(handle: UserPtr<Handle>, access: u32, attributes: UserPtr<RawObjectAttributes>, maximum_size: UserPtr<u64>, protect: u32, allocation_attributes: u32, file: Handle, parameters: UserPtr<ExtendedParameter>, parameter_count: u32) = nt_create_section_ex;
    /// Opens a section by name.
    NtOpenSection(handle: UserPtr<Handle>, access: u32, attributes: UserPtr<RawObjectAttributes>) = nt_open_section;
    /// Maps a view of a section.
    NtMapViewOfSection(section: Handle, process: Handle, base: UserPtr<u64>, zero_bits: u64, commit_size: u64, offset: UserPtr<u64>, view_size: UserPtr<u64>, inherit: u32, allocation_type: u32, protect: u32) = nt_map_view_of_section;
    /// Maps a view of a section, with address requirements and placeholders.
    NtMapViewOfSectionEx(section: Handle, process: Handle, base: UserPtr<u64>, offset: UserPtr<u64>, view_size: UserPtr<u64>, allocation_type: u32, protect: u32, parameters: UserPtr<ExtendedParameter>, parameter_count: u32) = nt_map_view_of_section_ex;
    /// Unmaps the view that holds an address.
    NtUnmapViewOfSection(process: Handle, address: u64) = nt_unmap_view_of_section;
    /// Unmaps the view that holds an address; a placeholder can remain.
    NtUnmapViewOfSectionEx(process: Handle, address: u64, flags: u32) = nt_unmap_view_of_section_ex;
    /// Tells something about a section.
    NtQuerySection(section: Handle, class: u32, buffer: UserPtr<u8>, length: u64, returned: UserPtr<u64>) = nt_query_section;
    /// Makes a section larger.
    NtExtendSection(section: Handle, size: UserPtr<u64>) = nt_extend_section;
    /// Whether two addresses show the same file.
    NtAreMappedFilesTheSame(first: u64, second: u64) = nt_are_mapped_files_the_same;
}

const SECTION_QUERY: u32 = 1;
const MEM_REPLACE_PLACEHOLDER: u32 = 0x4000;
const MEM_TOP_DOWN: u32 = 0x10_0000;
const MEM_PRESERVE_PLACEHOLDER: u32 = 2;

impl Call<'_, '_> {
    /// The section behind a handle.
    fn section(&self, handle: Handle, access: u32) -> Result<Arc<Section>, Status> {
        let kernel = &self.kernel;
        let object = kernel.objects.by_handle(&kernel.handles, handle, Some(ObjectType::Section), access)?;
        match kernel.objects.body(object)? {
            Body::Section(number) => kernel.sections.get(*number),
            _ => Err(Status::OBJECT_TYPE_MISMATCH),
        }
    }

    /// The host file behind a file handle, opened once more for a section.
    fn section_file(&mut self, handle: Handle, access: u32, kind: MappingKind) -> Result<SectionFile, Status> {
        let kernel = &mut *self.kernel;
        let object = kernel.objects.by_handle(&kernel.handles, handle, Some(ObjectType::File), access)?;
        let Body::File(file) = kernel.objects.body(object)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
        let held = kernel.files.map(file, kind);
        Ok(SectionFile { held, ..file_of(file)? })
    }
}

fn mapping_kind(protection: PageProtection) -> MappingKind {
    let writes = protection.access().contains(lstar_runtime::Protection::WRITE) && !protection.is_copy();
    if writes { MappingKind::WritableData } else { MappingKind::Data }
}

fn file_of(file: &FileObject) -> Result<SectionFile, Status> {
    let host = file.host_file().ok_or(Status::INVALID_FILE_FOR_SECTION)?;
    let host = host.try_clone().map_err(|_| Status::INSUFFICIENT_RESOURCES)?;
    Ok(SectionFile { file: host, name: file.full_name(), held: None })
}

#[expect(clippy::too_many_arguments, reason = "the service has as many")]
fn nt_create_section_ex(
    call: &mut Call<'_, '_>,
    handle: UserPtr<Handle>,
    access: u32,
    attributes: UserPtr<RawObjectAttributes>,
    maximum_size: UserPtr<u64>,
    protect: u32,
    allocation_attributes: u32,
    file: Handle,
    _parameters: UserPtr<ExtendedParameter>,
    _parameter_count: u32,
) -> Result<Status, Status> {
    nt_create_section(call, handle, access, attributes, maximum_size, protect, allocation_attributes, file)
}

/// SEC_* attributes that a caller may combine: one of image, reserved and committed, with what changes caching or, for
/// committed memory, the size of pages. SEC_FILE is the system's to set. (After NtCreateSection and CreateFileMapping in the
/// Windows SDK's documentation, and kernel32's tests of Wine for the combinations.)
fn check_allocation_attributes(attributes: u32, has_file: bool) -> Result<(), Status> {
    /// SEC_NO_CHANGE.
    const NO_CHANGE: u32 = 0x40_0000;
    let modifiers = match attributes & (sec::IMAGE | sec::RESERVE | sec::COMMIT) {
        sec::IMAGE => sec::NOCACHE,
        sec::RESERVE => sec::NOCACHE | sec::WRITECOMBINE,
        sec::COMMIT if has_file => sec::NOCACHE | sec::WRITECOMBINE,
        sec::COMMIT => sec::NOCACHE | sec::WRITECOMBINE | sec::LARGE_PAGES,
        _ => return Err(Status::INVALID_PARAMETER_6),
    };
    let kinds = sec::IMAGE | sec::RESERVE | sec::COMMIT | NO_CHANGE;
    let caching = sec::NOCACHE | sec::WRITECOMBINE;
    if attributes & !(kinds | modifiers) != 0 || attributes & caching == caching {
        return Err(Status::INVALID_PARAMETER_6);
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the service has as many")]
fn nt_create_section(
    call: &mut Call<'_, '_>,
    handle: UserPtr<Handle>,
    access: u32,
    attributes: UserPtr<RawObjectAttributes>,
    maximum_size: UserPtr<u64>,
    protect: u32,
    allocation_attributes: u32,
    file: Handle,
) -> Result<Status, Status> {
    handle.write(call, Handle::NULL)?;
    let protection = PageProtection::from_raw(protect)?;
    let size = maximum_size.read_optional(call)?.unwrap_or(0);
    check_allocation_attributes(allocation_attributes, !file.is_null())?;
    if allocation_attributes & sec::LARGE_PAGES != 0 {
        return Err(Status::PRIVILEGE_NOT_HELD);
    }
    if allocation_attributes & sec::IMAGE == 0 && protection.is_noaccess_or_guard() {
        return Err(Status::INVALID_PAGE_PROTECTION);
    }
    let section = match (allocation_attributes & sec::IMAGE != 0, file.is_null()) {
        (true, true) => return Err(Status::INVALID_FILE_FOR_SECTION),
        (true, false) => {
            let file = call.section_file(file, 0, MappingKind::Image)?;
            let attributes = allocation_attributes & !sec::COMMIT | sec::FILE;
            Section::of_image(file, attributes)?
        }
        (false, true) => Section::of_memory(call.vcpu.memory, size, protection, allocation_attributes)?,
        (false, false) => {
            let file = call.section_file(file, file_access(protection), mapping_kind(protection))?;
            Section::of_file(call.vcpu.memory, file, size, protection, allocation_attributes)?
        }
    };
    let number = call.kernel.sections.add(section);
    let status = call.create_object(handle, access, attributes, Body::Section(number));
    if status != Ok(Status::SUCCESS) {
        call.kernel.sections.remove(number);
    }
    status
}

fn nt_open_section(
    call: &mut Call<'_, '_>,
    handle: UserPtr<Handle>,
    access: u32,
    attributes: UserPtr<RawObjectAttributes>,
) -> Result<Status, Status> {
    call.open_object(handle, access, attributes, ObjectType::Section)?;
    Ok(Status::SUCCESS)
}

#[expect(clippy::too_many_arguments, reason = "the service has as many")]
fn nt_map_view_of_section(
    call: &mut Call<'_, '_>,
    section: Handle,
    process: Handle,
    base: UserPtr<u64>,
    zero_bits: u64,
    _commit_size: u64,
    offset: UserPtr<u64>,
    view_size: UserPtr<u64>,
    inherit: u32,
    allocation_type: u32,
    protect: u32,
) -> Result<Status, Status> {
    // ViewShare and ViewUnmap.
    if !matches!(inherit, 1 | 2) {
        return Err(Status::INVALID_PARAMETER_8);
    }
    let placement = match placement_of_zero_bits(zero_bits) {
        Ok(placement) => placement,
        Err(_) => return Err(Status::INVALID_PARAMETER_4),
    };
    if allocation_type & MEM_REPLACE_PLACEHOLDER != 0 {
        return Err(Status::INVALID_PARAMETER_9);
    }
    map_view(call, section, process, base, offset, view_size, placement, allocation_type, protect)
}

#[expect(clippy::too_many_arguments, reason = "the service has as many")]
fn nt_map_view_of_section_ex(
    call: &mut Call<'_, '_>,
    section: Handle,
    process: Handle,
    base: UserPtr<u64>,
    offset: UserPtr<u64>,
    view_size: UserPtr<u64>,
    allocation_type: u32,
    protect: u32,
    parameters: UserPtr<ExtendedParameter>,
    parameter_count: u32,
) -> Result<Status, Status> {
    let fixed = base.read(call)? != 0;
    let placement = read_placement(call, parameters, parameter_count, fixed)?;
    map_view(call, section, process, base, offset, view_size, placement, allocation_type, protect)
}

/// SECTION_MAP_* rights that a view with a protection needs.
fn view_access(protection: PageProtection) -> u32 {
    const MAP_WRITE: u32 = 2;
    const MAP_READ: u32 = 4;
    const MAP_EXECUTE: u32 = 8;
    match protection.raw() & 0xFF {
        0x04 => MAP_WRITE,
        0x10 => MAP_EXECUTE,
        0x20 | 0x80 => MAP_EXECUTE | MAP_READ,
        0x40 => MAP_EXECUTE | MAP_WRITE,
        _ => MAP_READ,
    }
}

/// FILE_* rights that a section of a file with a protection needs. The right to execute is not asked for: loaders open
/// programs for reading only.
fn file_access(protection: PageProtection) -> u32 {
    const READ_DATA: u32 = 1;
    const WRITE_DATA: u32 = 2;
    match protection.raw() & 0xFF {
        0x04 | 0x40 => READ_DATA | WRITE_DATA,
        _ => READ_DATA,
    }
}

#[expect(clippy::too_many_arguments, reason = "what two services have in common")]
fn map_view(
    call: &mut Call<'_, '_>,
    section: Handle,
    process: Handle,
    base: UserPtr<u64>,
    offset: UserPtr<u64>,
    view_size: UserPtr<u64>,
    placement: Placement,
    allocation_type: u32,
    protect: u32,
) -> Result<Status, Status> {
    let target = call.process_by_handle(process, access::VM_OPERATION)?;
    let protection = PageProtection::from_raw(protect)?;
    let section = call.section(section, view_access(protection))?;
    let wanted = Some(base.read(call)?).filter(|&base| base != 0);
    let size = view_size.read(call)?;
    let start = offset.read_optional(call)?.unwrap_or(0);
    let replace_placeholder = allocation_type & MEM_REPLACE_PLACEHOLDER != 0;
    let granularity = if replace_placeholder { PAGE_SIZE } else { ALLOCATION_GRANULARITY };
    if wanted.is_some_and(|base| base > placement.high) {
        return Err(Status::INVALID_PARAMETER_4);
    }
    if wanted.is_some_and(|base| !base.is_multiple_of(granularity)) || !start.is_multiple_of(granularity) {
        return Err(Status::MAPPED_ALIGNMENT);
    }
    let placement = Placement { top_down: allocation_type & MEM_TOP_DOWN != 0, ..placement };
    // A view's pages are cached as its section says.
    let protection = protection.with_caching_of_section(section.attributes);
    let (address, mapped, status) = call.attached(target, |call| {
        let memory = &mut call.kernel.memory;
        if section.image().is_some() {
            let mapped = memory.map_image(call.vcpu.memory, &section, wanted, placement)?;
            call.kernel.note_image(call.vcpu.memory, mapped.0, &section);
            Ok(mapped)
        } else {
            if !protection.is_compatible_with(section.protection) {
                return Err(Status::SECTION_PROTECTION);
            }
            let request = ViewRequest { base: wanted, placement, offset: start, size, protection, replace_placeholder };
            let (address, mapped) = memory.map_data(call.vcpu.memory, &section, request)?;
            Ok((address, mapped, Status::SUCCESS))
        }
    })?;
    base.write(call, address)?;
    view_size.write(call, mapped)?;
    if section.image().is_some() && target == call.kernel.process.id {
        let image = section.file.as_ref().map_or_else(String::new, |file| file.name.clone());
        call.kernel.report(target, call.thread, Event::ImageMapped { image, base: address });
    }
    Ok(status)
}

fn nt_unmap_view_of_section(call: &mut Call<'_, '_>, process: Handle, address: u64) -> Result<Status, Status> {
    nt_unmap_view_of_section_ex(call, process, address, 0)
}

fn nt_unmap_view_of_section_ex(
    call: &mut Call<'_, '_>,
    process: Handle,
    address: u64,
    flags: u32,
) -> Result<Status, Status> {
    let target = call.process_by_handle(process, access::VM_OPERATION)?;
    if flags & !(MEM_PRESERVE_PLACEHOLDER | 1) != 0 {
        return Err(Status::INVALID_PARAMETER_3);
    }
    let preserve = flags & MEM_PRESERVE_PLACEHOLDER != 0;
    let image = call.attached(target, |call| {
        let image = call.kernel.memory.vads.find(address).filter(|(_, vad)| vad.is_image()).map(|(start, _)| start);
        call.kernel.memory.unmap_view(call.vcpu.memory, address, preserve)?;
        Ok(image)
    })?;
    if let Some(base) = image.filter(|_| target == call.kernel.process.id) {
        call.kernel.report(target, call.thread, Event::ImageUnmapped { base });
    }
    Ok(Status::SUCCESS)
}

crate::guest_struct! {
    /// SECTION_BASIC_INFORMATION.
    struct BasicInformation: 0x18 {
        base_address @ 0: u64,
        attributes @ 8: u32,
        maximum_size @ 0x10: u64,
    }
}

fn nt_query_section(
    call: &mut Call<'_, '_>,
    section: Handle,
    class: u32,
    buffer: UserPtr<u8>,
    length: u64,
    returned: UserPtr<u64>,
) -> Result<Status, Status> {
    const BASIC: u32 = 0;
    const IMAGE: u32 = 1;
    /// SECTION_IMAGE_INFORMATION.
    const IMAGE_SIZE: u64 = 0x40;
    let section = call.section(section, SECTION_QUERY)?;
    let output = UserBuffer::new(buffer.address(), length);
    if class == IMAGE && length < IMAGE_SIZE {
        return Err(Status::INFO_LENGTH_MISMATCH);
    }
    let written = match class {
        BASIC => {
            // Of an image only that it is one is told.
            let hidden = if section.image().is_some() { sec::NOCACHE } else { 0 };
            let (attributes, maximum_size) = (section.attributes & !hidden, section.size);
            output.write_struct(call, &BasicInformation { base_address: 0, attributes, maximum_size })?
        }
        IMAGE => {
            let headers = section.image().ok_or(Status::SECTION_NOT_IMAGE)?;
            output.write_struct(call, &headers.information(section.file_size()))?
        }
        _ => return Err(Status::INVALID_INFO_CLASS),
    };
    returned.write_optional(call, u64::from(written))?;
    Ok(Status::SUCCESS)
}

/// A section's memory cannot grow; sizes that it has already are fine.
fn nt_extend_section(call: &mut Call<'_, '_>, section: Handle, size: UserPtr<u64>) -> Result<Status, Status> {
    const SECTION_EXTEND_SIZE: u32 = 0x10;
    let section = call.section(section, SECTION_EXTEND_SIZE)?;
    if section.file.is_none() || section.image().is_some() {
        return Err(Status::SECTION_NOT_EXTENDED);
    }
    if size.read(call)? > section.size {
        return Err(Status::SECTION_NOT_EXTENDED);
    }
    size.write(call, section.size)?;
    Ok(Status::SUCCESS)
}

fn nt_are_mapped_files_the_same(call: &mut Call<'_, '_>, first: u64, second: u64) -> Result<Status, Status> {
    let memory = &call.kernel.memory;
    let view = |address| {
        if memory.vads.find(address).is_none() {
            return Err(Status::INVALID_ADDRESS);
        }
        memory.section_at(address).ok_or(Status::CONFLICTING_ADDRESSES)
    };
    let ((first_start, first), (second_start, second)) = (view(first)?, view(second)?);
    if first_start == second_start {
        return Ok(Status::SUCCESS);
    }
    // Views of data are never "the same"; an image is the same as any view of its file.
    let name = |section: &Section| section.file.as_ref().map(|file| file.name.to_lowercase());
    let same = first.image().is_some() && name(first).is_some() && name(first) == name(second);
    if same { Ok(Status::SUCCESS) } else { Err(Status::NOT_SAME_DEVICE) }
}
