//! The virtual-memory services.

use lstar_arch::PAGE_SIZE;

use super::protection::PageProtection;
use super::vad::{Backing, Placement, page_range};
use super::{ALLOCATION_GRANULARITY, HIGHEST_USER_ADDRESS, LOWEST_USER_ADDRESS};
use crate::object::Handle;
use crate::process::{ProcessId, access};
use crate::service::Call;
use crate::status::Status;
use crate::strings::UnicodeString;
use crate::user_ptr::{GuestValue, UserBuffer, UserPtr};

crate::services! {
    pub SERVICES;
    /// Reserves or commits memory.
    NtAllocateVirtualMemory(process: Handle, base: UserPtr<u64>, zero_bits: u64, size: UserPtr<u64>, allocation_type: u32, protect: u32) = nt_allocate_virtual_memory;
    /// Reserves or commits memory, with address requirements and placeholders.
    NtAllocateVirtualMemoryEx(process: Handle, base: UserPtr<u64>, size: UserPtr<u64>, allocation_type: u32, protect: u32, parameters: UserPtr<ExtendedParameter>, parameter_count: u32) = nt_allocate_virtual_memory_ex;
    /// Decommits or releases memory.
    NtFreeVirtualMemory(process: Handle, base: UserPtr<u64>, size: UserPtr<u64>, free_type: u32) = nt_free_virtual_memory;
    /// Changes the protection of committed pages.
    NtProtectVirtualMemory(process: Handle, base: UserPtr<u64>, size: UserPtr<u64>, protect: u32, old_protect: UserPtr<u32>) = nt_protect_virtual_memory;
    /// Says what an address is.
    NtQueryVirtualMemory(process: Handle, address: u64, class: u32, buffer: UserPtr<u8>, length: u64, returned: UserPtr<u64>) = nt_query_virtual_memory;
    /// Copies memory of a process.
    NtReadVirtualMemory(process: Handle, address: u64, buffer: UserPtr<u8>, size: u64, copied: UserPtr<u64>) = nt_read_virtual_memory;
    /// Copies memory into a process.
    NtWriteVirtualMemory(process: Handle, address: u64, buffer: UserPtr<u8>, size: u64, copied: UserPtr<u64>) = nt_write_virtual_memory;
    /// Writes mapped pages back to their file.
    NtFlushVirtualMemory(process: Handle, base: UserPtr<u64>, size: UserPtr<u64>, status_block: UserPtr<[u64; 2]>) = nt_flush_virtual_memory;
    /// Keeps pages in memory; they always are.
    NtLockVirtualMemory(process: Handle, base: UserPtr<u64>, size: UserPtr<u64>, map_type: u32) = nt_lock_virtual_memory;
    /// Undoes NtLockVirtualMemory.
    NtUnlockVirtualMemory(process: Handle, base: UserPtr<u64>, size: UserPtr<u64>, map_type: u32) = nt_lock_virtual_memory;
    /// Tells which pages of MEM_WRITE_WATCH memory were written.
    NtGetWriteWatch(process: Handle, flags: u32, base: u64, size: u64, addresses: UserPtr<u64>, count: UserPtr<u64>, granularity: UserPtr<u32>) = nt_get_write_watch;
    /// Forgets which pages of MEM_WRITE_WATCH memory were written.
    NtResetWriteWatch(process: Handle, base: u64, size: u64) = nt_reset_write_watch;
    /// Advice about ranges of memory: prefetching them changes nothing that can be observed.
    NtSetInformationVirtualMemory(process: Handle, class: u32, count: u64, ranges: UserPtr<[u64; 2]>, information: UserPtr<u32>, length: u32) = nt_set_information_virtual_memory;
    /// Makes changed code visible. Stores to code are always noticed, so that nothing remains to be done.
    NtFlushInstructionCache(process: Handle, address: u64, size: u64) = nt_flush_instruction_cache;
    /// Orders the stores of all processors.
    NtFlushProcessWriteBuffers() = nt_flush_process_write_buffers;
}

const MEM_COMMIT: u32 = 0x1000;
const MEM_RESERVE: u32 = 0x2000;
const MEM_REPLACE_PLACEHOLDER: u32 = 0x4000;
const MEM_RESERVE_PLACEHOLDER: u32 = 0x4_0000;
const MEM_RESET: u32 = 0x8_0000;
const MEM_TOP_DOWN: u32 = 0x10_0000;
const MEM_WRITE_WATCH: u32 = 0x20_0000;
const MEM_PHYSICAL: u32 = 0x40_0000;
const MEM_RESET_UNDO: u32 = 0x100_0000;
const MEM_LARGE_PAGES: u32 = 0x2000_0000;

const MEM_COALESCE_PLACEHOLDERS: u32 = 1;
const MEM_PRESERVE_PLACEHOLDER: u32 = 2;
const MEM_DECOMMIT: u32 = 0x4000;
const MEM_RELEASE: u32 = 0x8000;

crate::guest_struct! {
    /// MEM_EXTENDED_PARAMETER: a type in the low byte, and a value.
    pub struct ExtendedParameter: 0x10 {
        /// MEM_EXTENDED_PARAMETER_TYPE.
        pub kind @ 0: u64,
        /// Value or pointer.
        pub value @ 8: u64,
    }
}

crate::guest_struct! {
    /// MEM_ADDRESS_REQUIREMENTS.
    pub struct AddressRequirements: 0x18 {
        /// Lowest address, or 0.
        pub lowest @ 0: u64,
        /// Last byte, or 0.
        pub highest @ 8: u64,
        /// A power of two, or 0.
        pub alignment @ 0x10: u64,
    }
}

/// Most extended parameters that are read.
const MAX_EXTENDED_PARAMETERS: u32 = 16;
const PARAMETER_ADDRESS_REQUIREMENTS: u64 = 1;

/// Reads extended parameters: only address requirements have an effect on one node without enclaves.
pub(super) fn read_placement(
    call: &mut Call<'_, '_>,
    parameters: UserPtr<ExtendedParameter>,
    count: u32,
    fixed_base: bool,
) -> Result<Placement, Status> {
    let mut placement = Placement::default();
    let mut seen = 0u32;
    if count > MAX_EXTENDED_PARAMETERS || count > 0 && parameters.is_null() {
        return Err(Status::INVALID_PARAMETER);
    }
    for parameter in parameters.read_array(call, u64::from(count))? {
        // Each kind once.
        let kind = 1u32.checked_shl((parameter.kind & 0xFF) as u32).unwrap_or(0);
        if seen & kind != 0 {
            return Err(Status::INVALID_PARAMETER);
        }
        seen |= kind;
        match parameter.kind & 0xFF {
            PARAMETER_ADDRESS_REQUIREMENTS => {
                let wanted = UserPtr::<AddressRequirements>::new(parameter.value).read(call)?;
                if fixed_base && wanted != AddressRequirements::default() {
                    return Err(Status::INVALID_PARAMETER);
                }
                let AddressRequirements { lowest, highest, alignment } = wanted;
                let bad_alignment =
                    alignment != 0 && (!alignment.is_power_of_two() || alignment < ALLOCATION_GRANULARITY);
                let bad_low = !lowest.is_multiple_of(ALLOCATION_GRANULARITY);
                let bad_high =
                    highest != 0 && (highest > HIGHEST_USER_ADDRESS || !(highest + 1).is_multiple_of(PAGE_SIZE));
                if bad_alignment || bad_low || bad_high || highest != 0 && lowest >= highest {
                    return Err(Status::INVALID_PARAMETER);
                }
                placement.low = lowest.max(LOWEST_USER_ADDRESS);
                placement.high = if highest == 0 { HIGHEST_USER_ADDRESS } else { highest };
                placement.alignment = alignment.max(ALLOCATION_GRANULARITY);
            }
            2..=5 => {}
            _ => return Err(Status::INVALID_PARAMETER),
        }
    }
    Ok(placement)
}

/// ZeroBits: up to 21 a count of zero high bits below bit 32, above 32 a mask of usable bits.
pub fn placement_of_zero_bits(zero_bits: u64) -> Result<Placement, Status> {
    let high = match zero_bits {
        0 => HIGHEST_USER_ADDRESS,
        1..=21 => (1 << (32 - zero_bits)) - 1,
        22..=31 => return Err(Status::INVALID_PARAMETER_3),
        mask => u64::MAX >> mask.leading_zeros(),
    };
    Ok(Placement { high: high.min(HIGHEST_USER_ADDRESS), ..Placement::default() })
}

fn nt_allocate_virtual_memory(
    call: &mut Call<'_, '_>,
    process: Handle,
    base: UserPtr<u64>,
    zero_bits: u64,
    size: UserPtr<u64>,
    allocation_type: u32,
    protect: u32,
) -> Result<Status, Status> {
    let placement = placement_of_zero_bits(zero_bits)?;
    if allocation_type & (MEM_RESERVE_PLACEHOLDER | MEM_REPLACE_PLACEHOLDER) != 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    allocate(call, process, base, size, placement, allocation_type, protect)
}

#[expect(clippy::too_many_arguments, reason = "the service has as many")]
fn nt_allocate_virtual_memory_ex(
    call: &mut Call<'_, '_>,
    process: Handle,
    base: UserPtr<u64>,
    size: UserPtr<u64>,
    allocation_type: u32,
    protect: u32,
    parameters: UserPtr<ExtendedParameter>,
    parameter_count: u32,
) -> Result<Status, Status> {
    let fixed = base.read(call)? != 0;
    let placement = read_placement(call, parameters, parameter_count, fixed)?;
    allocate(call, process, base, size, placement, allocation_type, protect)
}

fn allocate(
    call: &mut Call<'_, '_>,
    process: Handle,
    base: UserPtr<u64>,
    size: UserPtr<u64>,
    placement: Placement,
    allocation_type: u32,
    protect: u32,
) -> Result<Status, Status> {
    const KNOWN: u32 = MEM_COMMIT
        | MEM_RESERVE
        | MEM_REPLACE_PLACEHOLDER
        | MEM_RESERVE_PLACEHOLDER
        | MEM_RESET
        | MEM_RESET_UNDO
        | MEM_TOP_DOWN
        | MEM_WRITE_WATCH
        | MEM_PHYSICAL
        | MEM_LARGE_PAGES;
    let target = call.process_by_handle(process, access::VM_OPERATION)?;
    let reset = allocation_type & (MEM_RESET | MEM_RESET_UNDO);
    let what = allocation_type & (MEM_COMMIT | MEM_RESERVE | MEM_RESET | MEM_RESET_UNDO);
    if allocation_type & !KNOWN != 0 || what == 0 || reset != 0 && (reset != what || !reset.is_power_of_two()) {
        return Err(Status::INVALID_PARAMETER_5);
    }
    if allocation_type & (MEM_PHYSICAL | MEM_LARGE_PAGES) != 0 {
        return Err(Status::PRIVILEGE_NOT_HELD);
    }
    let protection = PageProtection::from_raw(protect)?;
    let (address, length) = (base.read(call)?, size.read(call)?);
    if length == 0 {
        return Err(Status::INVALID_PARAMETER_4);
    }
    if address > HIGHEST_USER_ADDRESS {
        return Err(Status::INVALID_PARAMETER_2);
    }
    if length > HIGHEST_USER_ADDRESS + 1 - address {
        return Err(Status::INVALID_PARAMETER_4);
    }

    let range = call.attached(target, |call| {
        let memory = &mut call.kernel.memory;
        let space = &mut *call.vcpu.memory;
        let placeholder = allocation_type & MEM_RESERVE_PLACEHOLDER != 0;
        let (start, range) = if allocation_type & MEM_RESERVE != 0 || address == 0 {
            if reset != 0 {
                return Err(Status::CONFLICTING_ADDRESSES);
            }
            let placement = Placement { top_down: allocation_type & MEM_TOP_DOWN != 0, ..placement };
            let replace = allocation_type & MEM_REPLACE_PLACEHOLDER != 0;
            let granularity = if replace { PAGE_SIZE } else { ALLOCATION_GRANULARITY };
            let range = if address == 0 {
                let bytes = page_range(0, length).ok_or(Status::NO_MEMORY)?.end;
                let start = memory.vads.find_free(bytes, placement).ok_or(Status::NO_MEMORY)?;
                start..start + bytes
            } else {
                let range = page_range(address, length).ok_or(Status::INVALID_PARAMETER_4)?;
                address & !(granularity - 1)..range.end
            };
            if range.start < LOWEST_USER_ADDRESS {
                return Err(Status::CONFLICTING_ADDRESSES);
            }
            if replace {
                memory.take_placeholder(space, &range)?;
            }
            if protection.is_copy() {
                return Err(Status::INVALID_PAGE_PROTECTION);
            }
            let backing = if placeholder { Backing::Placeholder } else { Backing::Private };
            memory.vads.insert(range.clone(), backing, protection)?;
            if allocation_type & MEM_WRITE_WATCH != 0
                && let Some((_, vad)) = memory.vads.find_mut(range.start)
            {
                vad.written = Some(rangemap::RangeSet::new());
            }
            (range.start, range)
        } else {
            let range = page_range(address, length).ok_or(Status::INVALID_PARAMETER_4)?;
            let (start, vad) = memory.vads.find_range(&range).ok_or(Status::CONFLICTING_ADDRESSES)?;
            match &vad.backing {
                Backing::Private | Backing::Stack { .. } if protection.is_copy() => {
                    return Err(Status::INVALID_PAGE_PROTECTION);
                }
                Backing::Private | Backing::Stack { .. } => {}
                Backing::View { section, .. } if section.file.is_some() => return Err(Status::ALREADY_COMMITTED),
                Backing::View { .. } if !protection.is_compatible_with(vad.protection) => {
                    return Err(Status::SECTION_PROTECTION);
                }
                Backing::View { section, offset, .. } if allocation_type & MEM_COMMIT != 0 => {
                    section.commit(offset + (range.start - start)..offset + (range.end - start));
                }
                Backing::View { .. } => {}
                Backing::Image(_) | Backing::KernelFrames(_) => return Err(Status::ALREADY_COMMITTED),
                Backing::Placeholder => return Err(Status::CONFLICTING_ADDRESSES),
            }
            (start, range)
        };
        if allocation_type & MEM_COMMIT != 0 {
            let fresh = start == range.start && allocation_type & MEM_RESERVE != 0 || address == 0;
            let Some((start, vad)) = memory.vads.find_mut(start) else { return Err(Status::NO_MEMORY) };
            if let Err(status) = vad.commit(space, start, range.clone(), protection) {
                if fresh {
                    memory.vads.remove(space, start)?;
                }
                return Err(status);
            }
        }
        Ok(range)
    })?;
    base.write(call, range.start)?;
    size.write(call, range.end - range.start)?;
    Ok(Status::SUCCESS)
}

fn nt_free_virtual_memory(
    call: &mut Call<'_, '_>,
    process: Handle,
    base: UserPtr<u64>,
    size: UserPtr<u64>,
    free_type: u32,
) -> Result<Status, Status> {
    let target = call.process_by_handle(process, access::VM_OPERATION)?;
    let (address, length) = (base.read(call)?, size.read(call)?);
    let range = call.attached(target, |call| {
        let memory = &mut call.kernel.memory;
        let space = &mut *call.vcpu.memory;
        let (start, vad) = memory.vads.find_mut(address).ok_or(Status::MEMORY_NOT_ALLOCATED)?;
        match vad.backing {
            Backing::Private | Backing::Placeholder | Backing::Stack { .. } => {}
            _ => return Err(Status::UNABLE_TO_DELETE_SECTION),
        }
        let range = if length == 0 {
            if address & !(PAGE_SIZE - 1) != start {
                return Err(Status::FREE_VM_NOT_AT_BASE);
            }
            start..vad.end
        } else {
            page_range(address, length).ok_or(Status::INVALID_PARAMETER_3)?
        };
        match free_type {
            MEM_DECOMMIT if range.end > vad.end => return Err(Status::UNABLE_TO_FREE_VM),
            MEM_DECOMMIT => vad.decommit(space, range.clone())?,
            f if f == MEM_RELEASE | MEM_COALESCE_PLACEHOLDERS => memory.vads.coalesce(range.clone())?,
            f if f == MEM_RELEASE | MEM_PRESERVE_PLACEHOLDER => {
                if range.end > vad.end {
                    return Err(Status::UNABLE_TO_FREE_VM);
                }
                memory.vads.remove_range(space, range.clone())?;
                memory.vads.insert(range.clone(), Backing::Placeholder, PageProtection::NOACCESS)?;
            }
            MEM_RELEASE if range.end > vad.end => return Err(Status::UNABLE_TO_FREE_VM),
            MEM_RELEASE => memory.vads.remove_range(space, range.clone())?,
            _ => return Err(Status::INVALID_PARAMETER_4),
        }
        Ok(range)
    })?;
    base.write(call, range.start)?;
    // Decommitting "all" tells no size.
    let told = if length == 0 && free_type == MEM_DECOMMIT { 0 } else { range.end - range.start };
    size.write(call, told)?;
    Ok(Status::SUCCESS)
}

fn nt_protect_virtual_memory(
    call: &mut Call<'_, '_>,
    process: Handle,
    base: UserPtr<u64>,
    size: UserPtr<u64>,
    protect: u32,
    old_protect: UserPtr<u32>,
) -> Result<Status, Status> {
    let target = call.process_by_handle(process, access::VM_OPERATION)?;
    let protection = PageProtection::from_raw(protect)?;
    let (address, length) = (base.read(call)?, size.read(call)?);
    // The old protection must be writable before anything changes.
    let probe = old_protect.read(call)?;
    old_protect.write(call, probe)?;
    if length == 0 {
        return Err(Status::INVALID_PARAMETER_3);
    }
    let range = page_range(address, length).ok_or(Status::INVALID_PARAMETER_3)?;
    let old = call.attached(target, |call| {
        call.kernel.memory.adopt_commits(call.vcpu.memory, range.start);
        let (start, vad) = call.kernel.memory.vads.find_range(&range).ok_or(Status::CONFLICTING_ADDRESSES)?;
        match &vad.backing {
            Backing::View { .. } if !protection.is_compatible_with(vad.protection) => {
                return Err(Status::SECTION_PROTECTION);
            }
            Backing::View { .. } | Backing::Image(_) => {}
            _ if protection.is_copy() => return Err(Status::INVALID_PAGE_PROTECTION),
            _ => {}
        }
        vad.protect(call.vcpu.memory, start, range.clone(), protection)
    })?;
    base.write(call, range.start)?;
    size.write(call, range.end - range.start)?;
    old_protect.write(call, old.raw())?;
    Ok(Status::SUCCESS)
}

/// MEMORY_INFORMATION_CLASS values that are served here.
mod class {
    pub const BASIC: u32 = 0;
    pub const MAPPED_FILENAME: u32 = 2;
    pub const REGION: u32 = 3;
    pub const WORKING_SET_EX: u32 = 4;
    pub const IMAGE: u32 = 6;
    pub const WINE_UNIX_FUNCS: u32 = 1000;
}

crate::guest_struct! {
    /// MEMORY_REGION_INFORMATION.
    struct RegionInformation: 0x30 {
        allocation_base @ 0: u64,
        allocation_protect @ 8: u32,
        region_type @ 0xC: u32,
        region_size @ 0x10: u64,
        commit_size @ 0x18: u64,
    }
}

crate::guest_struct! {
    /// MEMORY_IMAGE_INFORMATION.
    struct ImageInformation: 0x18 {
        image_base @ 0: u64,
        size_of_image @ 8: u64,
        image_flags @ 0x10: u32,
    }
}

fn nt_query_virtual_memory(
    call: &mut Call<'_, '_>,
    process: Handle,
    address: u64,
    class: u32,
    buffer: UserPtr<u8>,
    length: u64,
    returned: UserPtr<u64>,
) -> Result<Status, Status> {
    let target = call.process_by_handle(process, access::QUERY_LIMITED_INFORMATION)?;
    let output = UserBuffer::new(buffer.address(), length);
    let written = match class {
        class::BASIC => {
            let information = call.attached(target, |call| {
                call.kernel.memory.adopt_commits(call.vcpu.memory, address);
                call.kernel.memory.query_basic(address)
            })?;
            u64::from(output.write_struct(call, &information)?)
        }
        class::MAPPED_FILENAME => {
            let name = call.attached(target, |call| {
                let (_, section) = call.kernel.memory.section_at(address).ok_or(Status::INVALID_ADDRESS)?;
                section.file.as_ref().map(|file| file.name.clone()).ok_or(Status::FILE_INVALID)
            })?;
            let text = crate::strings::utf16_bytes(&name);
            let needed = (UnicodeString::SIZE + text.len() + 2) as u64;
            if length < needed {
                returned.write_optional(call, needed)?;
                return Err(if length < UnicodeString::SIZE as u64 {
                    Status::INFO_LENGTH_MISMATCH
                } else {
                    Status::BUFFER_OVERFLOW
                });
            }
            let header = UnicodeString {
                length: u16::try_from(text.len()).map_err(|_| Status::NAME_TOO_LONG)?,
                maximum_length: u16::try_from(text.len() + 2).map_err(|_| Status::NAME_TOO_LONG)?,
                buffer: buffer.address().wrapping_add(UnicodeString::SIZE as u64),
            };
            let mut bytes = header.to_vec();
            bytes.extend(text);
            bytes.extend([0, 0]);
            output.write(call, &bytes)?;
            needed
        }
        class::REGION => {
            let information = call.attached(target, |call| {
                let memory = &call.kernel.memory;
                let (start, vad) = memory.vads.find(address).ok_or(Status::INVALID_ADDRESS)?;
                let commit_size = vad.pages.iter().map(|(range, _)| range.end - range.start).sum();
                Ok(RegionInformation {
                    allocation_base: start,
                    allocation_protect: vad.protection.raw(),
                    // The flags say how a view was made beyond the ordinary; none is.
                    region_type: 0,
                    region_size: vad.end - start,
                    commit_size,
                })
            })?;
            // Older callers know the structure without its last fields.
            const SHORTEST: u64 = 0x18;
            if length < SHORTEST {
                return Err(Status::INFO_LENGTH_MISMATCH);
            }
            let bytes = information.to_vec();
            let told = bytes.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            output.write(call, &bytes[..told])?;
            told as u64
        }
        class::IMAGE => {
            let information = call.attached(target, |call| {
                let memory = &call.kernel.memory;
                let (start, section) = memory.section_at(address).ok_or(Status::INVALID_ADDRESS)?;
                let size = section.image().map_or(0, |headers| u64::from(headers.size));
                let image_base = if size == 0 { 0 } else { start };
                Ok(ImageInformation { image_base, size_of_image: size, image_flags: 0 })
            })?;
            u64::from(output.write_struct(call, &information)?)
        }
        class::WORKING_SET_EX => return query_working_set(call, target, output, returned),
        class::WINE_UNIX_FUNCS => u64::from(crate::wine::query_unix_functions(call, address, output)?),
        _ => return Err(Status::INVALID_INFO_CLASS),
    };
    returned.write_optional(call, written)?;
    Ok(Status::SUCCESS)
}

crate::guest_struct! {
    /// MEMORY_WORKING_SET_EX_INFORMATION.
    struct WorkingSetExInformation: 0x10 {
        address @ 0: u64,
        attributes @ 8: u64,
    }
}

/// Every committed page is resident, with one sharer.
fn query_working_set(
    call: &mut Call<'_, '_>,
    target: ProcessId,
    buffer: UserBuffer,
    returned: UserPtr<u64>,
) -> Result<Status, Status> {
    let size = WorkingSetExInformation::SIZE as u64;
    if buffer.length < size {
        return Err(Status::INFO_LENGTH_MISMATCH);
    }
    let entries = UserPtr::<WorkingSetExInformation>::new(buffer.address);
    for index in 0..buffer.length / size {
        let entry = entries.element(index).read(call)?;
        let page = entry.address & !(PAGE_SIZE - 1);
        let protection = call
            .attached(target, |call| Ok(call.kernel.memory.vads.find(page).and_then(|(_, vad)| vad.run_at(page).1)))?;
        // Valid, ShareCount 1, Win32Protection.
        let attributes = protection.map_or(0, |p| 1 | 1 << 1 | u64::from(p.raw() & 0x7FF) << 4);
        entries.element(index).write(call, WorkingSetExInformation { attributes, ..entry })?;
    }
    returned.write_optional(call, buffer.length / size * size)?;
    Ok(Status::SUCCESS)
}

/// Copies in pieces between two processes, so that what was copied before a fault is known.
fn copy(
    call: &mut Call<'_, '_>,
    (from_process, source): (ProcessId, u64),
    (to_process, target): (ProcessId, u64),
    size: u64,
    copied: UserPtr<u64>,
) -> Result<Status, Status> {
    let mut done = 0;
    let mut status = Status::SUCCESS;
    while done < size {
        let (from, to) = (source.wrapping_add(done), target.wrapping_add(done));
        let step = (PAGE_SIZE - from % PAGE_SIZE).min(PAGE_SIZE - to % PAGE_SIZE).min(size - done);
        let moved = call
            .attached(from_process, |call| UserBuffer::new(from, step).read(call))
            .and_then(|bytes| call.attached(to_process, |call| UserBuffer::new(to, step).write(call, &bytes)));
        if moved.is_err() {
            status = Status::PARTIAL_COPY;
            break;
        }
        done += step;
    }
    copied.write_optional(call, done)?;
    Ok(status)
}

/// The other process of a copy. Where there is none, nothing was copied.
fn copy_partner(
    call: &mut Call<'_, '_>,
    process: Handle,
    access: u32,
    copied: UserPtr<u64>,
) -> Result<ProcessId, Status> {
    match call.process_by_handle(process, access) {
        Ok(target) => Ok(target),
        Err(status) => {
            copied.write_optional(call, 0)?;
            Err(status)
        }
    }
}

fn nt_read_virtual_memory(
    call: &mut Call<'_, '_>,
    process: Handle,
    address: u64,
    buffer: UserPtr<u8>,
    size: u64,
    copied: UserPtr<u64>,
) -> Result<Status, Status> {
    let target = copy_partner(call, process, access::VM_READ, copied)?;
    let own = call.kernel.process.id;
    // The caller's own memory is looked at first, all of it; only what the other process lacks makes a part of a copy.
    if call.probe_for_write(buffer.address(), size).is_err() {
        copied.write_optional(call, 0)?;
        return Err(Status::ACCESS_VIOLATION);
    }
    copy(call, (target, address), (own, buffer.address()), size, copied)
}

fn nt_write_virtual_memory(
    call: &mut Call<'_, '_>,
    process: Handle,
    address: u64,
    buffer: UserPtr<u8>,
    size: u64,
    copied: UserPtr<u64>,
) -> Result<Status, Status> {
    let target = copy_partner(call, process, access::VM_WRITE, copied)?;
    let own = call.kernel.process.id;
    if !call.kernel.memory.may_read(buffer.address(), size) {
        copied.write_optional(call, 0)?;
        return Err(Status::PARTIAL_COPY);
    }
    copy(call, (own, buffer.address()), (target, address), size, copied)
}

fn nt_flush_virtual_memory(
    call: &mut Call<'_, '_>,
    process: Handle,
    base: UserPtr<u64>,
    size: UserPtr<u64>,
    status_block: UserPtr<[u64; 2]>,
) -> Result<Status, Status> {
    let target = call.process_by_handle(process, access::VM_OPERATION)?;
    let (address, length) = (base.read(call)?, size.read(call)?);
    let range = call.attached(target, |call| {
        let (_, vad) = call.kernel.memory.vads.find(address).ok_or(Status::NOT_MAPPED_VIEW)?;
        let length = if length == 0 { vad.end - (address & !(PAGE_SIZE - 1)) } else { length };
        let range = page_range(address, length).ok_or(Status::INVALID_PARAMETER_3)?;
        call.kernel.memory.flush(call.vcpu.memory, &range)?;
        Ok(range)
    })?;
    base.write(call, range.start)?;
    size.write(call, range.end - range.start)?;
    status_block.write_optional(call, [0, 0])?;
    Ok(Status::SUCCESS)
}

fn nt_lock_virtual_memory(
    call: &mut Call<'_, '_>,
    process: Handle,
    base: UserPtr<u64>,
    size: UserPtr<u64>,
    _map_type: u32,
) -> Result<Status, Status> {
    let target = call.process_by_handle(process, access::VM_OPERATION)?;
    let range = page_range(base.read(call)?, size.read(call)?).ok_or(Status::INVALID_PARAMETER_3)?;
    call.attached(target, |call| {
        let vad = call.kernel.memory.vads.find_range(&range).map(|(_, vad)| vad).ok_or(Status::ACCESS_VIOLATION)?;
        if vad.pages.gaps(&range).next().is_some() {
            return Err(Status::ACCESS_VIOLATION);
        }
        Ok(())
    })?;
    base.write(call, range.start)?;
    size.write(call, range.end - range.start)?;
    Ok(Status::SUCCESS)
}

/// WRITE_WATCH_FLAG_RESET.
const WRITE_WATCH_RESET: u32 = 1;

#[expect(clippy::too_many_arguments, reason = "the service has as many")]
fn nt_get_write_watch(
    call: &mut Call<'_, '_>,
    process: Handle,
    flags: u32,
    base: u64,
    size: u64,
    addresses: UserPtr<u64>,
    count: UserPtr<u64>,
    granularity: UserPtr<u32>,
) -> Result<Status, Status> {
    let room = count.read(call)?;
    granularity.read(call)?;
    if flags & !WRITE_WATCH_RESET != 0 || room == 0 || size == 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    call.kernel.require_current_process(process)?;
    let range = page_range(base, size).ok_or(Status::INVALID_PARAMETER)?;
    let (_, vad) = call.kernel.memory.vads.find_range(&range).ok_or(Status::INVALID_PARAMETER)?;
    let written = vad.written.as_ref().ok_or(Status::INVALID_PARAMETER)?.clone();
    call.probe_for_write(addresses.address(), room.saturating_mul(u64::SIZE as u64))?;
    let pages: Vec<u64> = written
        .overlapping(&range)
        .flat_map(|part| (part.start.max(range.start)..part.end.min(range.end)).step_by(PAGE_SIZE as usize))
        .take(usize::try_from(room).unwrap_or(usize::MAX))
        .collect();
    for (index, &page) in pages.iter().enumerate() {
        addresses.element(index as u64).write(call, page)?;
    }
    count.write(call, pages.len() as u64)?;
    granularity.write(call, PAGE_SIZE as u32)?;
    if flags & WRITE_WATCH_RESET != 0
        && let Some(&last) = pages.last()
    {
        // Only what was told is forgotten.
        let told = range.start..if (pages.len() as u64) < room { range.end } else { last + PAGE_SIZE };
        if let Some((_, vad)) = call.kernel.memory.vads.find_mut(range.start) {
            vad.reset_written(call.vcpu.memory, &told)?;
        }
    }
    Ok(Status::SUCCESS)
}

fn nt_reset_write_watch(call: &mut Call<'_, '_>, process: Handle, base: u64, size: u64) -> Result<Status, Status> {
    if size == 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    call.kernel.require_current_process(process)?;
    let range = page_range(base, size).ok_or(Status::INVALID_PARAMETER)?;
    let (_, vad) = call.kernel.memory.vads.find_range(&range).ok_or(Status::INVALID_PARAMETER)?;
    if vad.written.is_none() {
        return Err(Status::INVALID_PARAMETER);
    }
    vad.reset_written(call.vcpu.memory, &range)?;
    Ok(Status::SUCCESS)
}

fn nt_set_information_virtual_memory(
    call: &mut Call<'_, '_>,
    process: Handle,
    class: u32,
    count: u64,
    ranges: UserPtr<[u64; 2]>,
    information: UserPtr<u32>,
    length: u32,
) -> Result<Status, Status> {
    /// VmPrefetchInformation.
    const PREFETCH: u32 = 0;
    /// Ranges that one call may name.
    const MAX_RANGES: u64 = 1 << 16;
    if class != PREFETCH {
        return Err(Status::INVALID_PARAMETER_2);
    }
    if information.is_null() {
        return Err(Status::INVALID_PARAMETER_5);
    }
    if length != 4 {
        return Err(Status::INVALID_PARAMETER_6);
    }
    if count == 0 || count > MAX_RANGES {
        return Err(Status::INVALID_PARAMETER_3);
    }
    if information.read(call)? != 0 {
        return Err(Status::INVALID_PARAMETER_5);
    }
    let ranges = ranges.read_array(call, count)?;
    if ranges.iter().any(|range| range[1] == 0) {
        return Err(Status::INVALID_PARAMETER_4);
    }
    call.kernel.require_current_process(process)?;
    Ok(Status::SUCCESS)
}

fn nt_flush_instruction_cache(
    call: &mut Call<'_, '_>,
    process: Handle,
    _address: u64,
    _size: u64,
) -> Result<Status, Status> {
    // Changes of code are noticed by themselves.
    call.process_by_handle(process, access::VM_WRITE)?;
    Ok(Status::SUCCESS)
}

fn nt_flush_process_write_buffers(_call: &mut Call<'_, '_>) -> Status {
    Status::SUCCESS
}
