//! Information classes of the process.

use super::{Process, ProcessId, access};
use crate::kernel::Kernel;
use crate::service::{Call, Handle};
use crate::status::Status;
use crate::strings::{UnicodeString, utf16_bytes};
use crate::user_ptr::{GuestValue, UserBuffer, UserPtr};

crate::services! {
    pub SERVICES;
    /// Tells something about a process.
    NtQueryInformationProcess(process: Handle, class: u32, buffer: UserPtr<u8>, length: u32, returned: UserPtr<u32>) = nt_query_information_process;
    /// Changes something of a process.
    NtSetInformationProcess(process: Handle, class: u32, buffer: UserPtr<u8>, length: u32) = nt_set_information_process;
}

/// PROCESSINFOCLASS values.
mod class {
    pub const BASIC: u32 = 0;
    pub const QUOTA_LIMITS: u32 = 1;
    pub const IO_COUNTERS: u32 = 2;
    pub const VM_COUNTERS: u32 = 3;
    pub const TIMES: u32 = 4;
    pub const BASE_PRIORITY: u32 = 5;
    pub const RAISE_PRIORITY: u32 = 6;
    pub const DEBUG_PORT: u32 = 7;
    pub const DEFAULT_HARD_ERROR_MODE: u32 = 12;
    pub const ENABLE_ALIGNMENT_FAULT_FIXUP: u32 = 17;
    pub const PRIORITY_CLASS: u32 = 18;
    pub const HANDLE_COUNT: u32 = 20;
    pub const AFFINITY_MASK: u32 = 21;
    pub const PRIORITY_BOOST: u32 = 22;
    pub const SESSION: u32 = 24;
    pub const WOW64: u32 = 26;
    pub const IMAGE_FILE_NAME: u32 = 27;
    pub const DEBUG_OBJECT_HANDLE: u32 = 30;
    pub const DEBUG_FLAGS: u32 = 31;
    pub const IO_PRIORITY: u32 = 33;
    pub const EXECUTE_FLAGS: u32 = 34;
    pub const COOKIE: u32 = 36;
    pub const IMAGE_INFORMATION: u32 = 37;
    pub const PAGE_PRIORITY: u32 = 39;
    pub const CYCLE_TIME: u32 = 38;
    pub const THREAD_STACK_ALLOCATION: u32 = 41;
    pub const INSTRUMENTATION_CALLBACK: u32 = 40;
    pub const IMAGE_FILE_NAME_WIN32: u32 = 43;
    pub const GROUP_INFORMATION: u32 = 47;
    pub const MITIGATION_POLICY: u32 = 52;
    pub const COMMAND_LINE: u32 = 60;
    pub const PROTECTION: u32 = 61;
    pub const SUBSYSTEM: u32 = 75;
    pub const POWER_THROTTLING: u32 = 77;
}

crate::guest_struct! {
    /// PROCESS_BASIC_INFORMATION.
    struct BasicInformation: 0x30 {
        exit_status @ 0x00: u32,
        peb @ 0x08: u64,
        affinity @ 0x10: u64,
        base_priority @ 0x18: i32,
        process @ 0x20: u64,
        parent @ 0x28: u64,
    }
}

crate::guest_struct! {
    /// VM_COUNTERS_EX: sizes in bytes, peaks before current values.
    struct VmCounters: 0x60 {
        peak_virtual_size @ 0x00: u64,
        virtual_size @ 0x08: u64,
        page_faults @ 0x10: u32,
        peak_working_set @ 0x18: u64,
        working_set @ 0x20: u64,
        pools @ 0x28: [u64; 4],
        pagefile_usage @ 0x48: u64,
        peak_pagefile_usage @ 0x50: u64,
        private_usage @ 0x58: u64,
    }
}

/// The right to everything.
const MAXIMUM_ALLOWED: u32 = 0x200_0000;
/// VM_COUNTERS without PrivateUsage.
const VM_COUNTERS_SIZE: u64 = 0x58;
/// Base priority of the normal class.
const NORMAL_PRIORITY: i32 = 8;
/// PROCESS_PRIORITY_CLASS_NORMAL.
pub(crate) const NORMAL_CLASS: u8 = 2;

/// The length that a query of a class must have, where there is but one; an error when there is no such class.
fn query_length(class: u32) -> Result<Option<u32>, Status> {
    Ok(match class {
        class::BASIC | class::IO_COUNTERS => Some(0x30),
        class::TIMES => Some(0x20),
        class::CYCLE_TIME => Some(0x10),
        class::DEBUG_PORT | class::WOW64 | class::DEBUG_OBJECT_HANDLE | class::AFFINITY_MASK => Some(8),
        class::DEFAULT_HARD_ERROR_MODE
        | class::HANDLE_COUNT
        | class::PRIORITY_BOOST
        | class::SUBSYSTEM
        | class::SESSION
        | class::DEBUG_FLAGS
        | class::IO_PRIORITY
        | class::EXECUTE_FLAGS
        | class::COOKIE => Some(4),
        class::PRIORITY_CLASS => Some(2),
        class::IMAGE_INFORMATION => Some(0x40),
        class::QUOTA_LIMITS
        | class::VM_COUNTERS
        | class::IMAGE_FILE_NAME
        | class::IMAGE_FILE_NAME_WIN32
        | class::COMMAND_LINE
        | class::PAGE_PRIORITY
        | class::GROUP_INFORMATION
        | class::PROTECTION
        | class::MITIGATION_POLICY => None,
        _ => return Err(Status::INVALID_INFO_CLASS),
    })
}

fn nt_query_information_process(
    call: &mut Call<'_, '_>,
    handle: Handle,
    class: u32,
    buffer: UserPtr<u8>,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    // The buffer is looked at before the handle is.
    match query_length(class)? {
        Some(size) if length != size => return Err(Status::INFO_LENGTH_MISMATCH),
        Some(size) if !call.kernel.memory.may_write(buffer.address(), u64::from(size)) => {
            return Err(Status::ACCESS_VIOLATION);
        }
        _ => {}
    }
    let target = call.process_by_handle(handle, access::QUERY_LIMITED_INFORMATION)?;
    let output = UserBuffer::new(buffer.address(), u64::from(length));
    let kernel = &*call.kernel;
    let process = kernel.process_by_id(target).ok_or(Status::INVALID_HANDLE)?;
    let number = |call: &mut Call<'_, '_>, value: u32| output.write_struct(call, &value);
    let written = match class {
        class::BASIC => {
            let information = BasicInformation {
                exit_status: process.exit_status.unwrap_or(Status::PENDING).0,
                peb: process.peb,
                affinity: 1,
                base_priority: NORMAL_PRIORITY,
                process: u64::from(process.id),
                parent: u64::from(process.parent),
            };
            output.write_struct(call, &information)?
        }
        // QUOTA_LIMITS: pools, working set minimum and maximum, page file, time.
        class::QUOTA_LIMITS => output.write_struct(call, &[0, 0, 0x3_2000, 0x15_9000, u64::MAX, 0])?,
        class::IO_COUNTERS => output.write_struct(call, &[0u64; 6])?,
        class::VM_COUNTERS => {
            let (used, reserved) = kernel.memory_use(target);
            let counters = VmCounters {
                peak_virtual_size: reserved,
                virtual_size: reserved,
                peak_working_set: used,
                working_set: used,
                pagefile_usage: used,
                peak_pagefile_usage: used,
                private_usage: used,
                ..VmCounters::default()
            };
            let bytes = counters.to_vec();
            let size =
                if output.length >= VmCounters::SIZE as u64 { VmCounters::SIZE as u64 } else { VM_COUNTERS_SIZE };
            if output.length < size {
                return Err(Status::INFO_LENGTH_MISMATCH);
            }
            output.write(call, &bytes[..size as usize])?;
            size as u32
        }
        class::TIMES => {
            let at = |time: u64| kernel.clock.boot_time().saturating_add_unsigned(time);
            let ended = if process.exit_status.is_some() { at(process.ended) } else { 0 };
            let busy = executed(call, process) / crate::time::INSTRUCTIONS_PER_UNIT;
            let times = [at(process.created), ended, 0, busy as i64];
            output.write_struct(call, &times)?
        }
        // PROCESS_CYCLE_TIME_INFORMATION: accumulated cycles, current count; an instruction is a cycle.
        class::CYCLE_TIME => {
            let cycles = executed(call, process);
            output.write_struct(call, &[cycles, cycles])?
        }
        class::DEBUG_PORT => {
            let port = if process.debug_object.is_some() { u64::MAX } else { 0 };
            output.write_struct(call, &port)?
        }
        class::WOW64 => output.write_struct(call, &0u64)?,
        class::DEFAULT_HARD_ERROR_MODE => {
            let mode = process.hard_error_mode;
            number(call, mode)?
        }
        class::PRIORITY_CLASS => {
            let priority = [0, process.priority_class];
            output.write_struct(call, &priority)?
        }
        class::HANDLE_COUNT => {
            let handles = call.kernel.handles_of(target).map_or(0, |handles| handles.len());
            let count = u32::try_from(handles).unwrap_or(u32::MAX);
            number(call, count)?
        }
        class::AFFINITY_MASK => output.write_struct(call, &1u64)?,
        class::PRIORITY_BOOST | class::SUBSYSTEM => number(call, 0)?,
        class::SESSION => {
            let session = kernel.system.session;
            number(call, session)?
        }
        class::IMAGE_FILE_NAME => {
            let name = process.image_name.clone();
            return write_text(call, &name, output, returned);
        }
        class::IMAGE_FILE_NAME_WIN32 => {
            let name = process.dos_name.clone();
            return write_text(call, &name, output, returned);
        }
        class::COMMAND_LINE => {
            let text = process.command_line.clone();
            return write_text(call, &text, output, returned);
        }
        class::DEBUG_OBJECT_HANDLE => {
            let object = process.debug_object;
            if output.length != 8 {
                return Err(Status::INFO_LENGTH_MISMATCH);
            }
            output.write_struct(call, &0u64)?;
            let object = object.ok_or(Status::PORT_NOT_SET)?;
            let kernel = &mut *call.kernel;
            let handle = kernel.objects.open(&mut kernel.handles, object, MAXIMUM_ALLOWED, 0)?;
            output.write_struct(call, &handle.0)?
        }
        class::DEBUG_FLAGS => {
            let inherit = u32::from(process.debug_inherit);
            number(call, inherit)?
        }
        class::IO_PRIORITY => number(call, 2)?,
        class::PAGE_PRIORITY => number(call, 5)?,
        class::EXECUTE_FLAGS => {
            let flags = process.execute_flags;
            number(call, flags)?
        }
        // The cookie is what pointers are encoded with: a process asks for its own, and as the current one.
        class::COOKIE if handle != Handle::CURRENT_PROCESS => return Err(Status::INVALID_PARAMETER),
        class::COOKIE => {
            let cookie = process.cookie;
            number(call, cookie)?
        }
        class::IMAGE_INFORMATION if process.exit_status.is_some() => return Err(Status::PROCESS_IS_TERMINATING),
        class::IMAGE_INFORMATION => {
            let information = process.image_information()?;
            output.write_struct(call, &information)?
        }
        // One group, number 0.
        class::GROUP_INFORMATION => output.write_struct(call, &0u16)?,
        class::PROTECTION => output.write_struct(call, &0u8)?,
        // PROCESS_MITIGATION_POLICY_INFORMATION: the policy asked for comes in the buffer; none is in force.
        class::MITIGATION_POLICY => {
            if length < 8 {
                return Err(Status::INFO_LENGTH_MISMATCH);
            }
            let policy = buffer.cast::<u32>().read(call)?;
            output.write_struct(call, &[policy, 0])?
        }
        _ => return Err(Status::INVALID_INFO_CLASS),
    };
    returned.write_optional(call, written)?;
    Ok(Status::SUCCESS)
}

/// Instructions that the threads of a process have executed, the running one's turn so far included.
fn executed(call: &Call<'_, '_>, process: &Process) -> u64 {
    let scheduler = &call.kernel.scheduler;
    let running: u64 = scheduler.threads_of(process.id).map(|thread| thread.instructions).sum();
    // The running thread's own turn is counted when it ends.
    let turn = if process.id == call.kernel.process.id { scheduler.turn(call.vcpu.retired) } else { 0 };
    process.instructions + running + turn
}

/// A UNICODE_STRING with its text, and a terminator, behind it.
fn write_text(
    call: &mut Call<'_, '_>,
    text: &str,
    output: UserBuffer,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    let text = utf16_bytes(text);
    let needed = UnicodeString::SIZE + text.len() + 2;
    returned.write_optional(call, u32::try_from(needed).unwrap_or(u32::MAX))?;
    if output.length < needed as u64 {
        return Err(Status::INFO_LENGTH_MISMATCH);
    }
    let length = u16::try_from(text.len()).map_err(|_| Status::NAME_TOO_LONG)?;
    let buffer = output.address.wrapping_add(UnicodeString::SIZE as u64);
    let mut bytes = UnicodeString { length, maximum_length: length.saturating_add(2), buffer }.to_vec();
    bytes.extend(text);
    bytes.extend([0, 0]);
    output.write(call, &bytes)?;
    Ok(Status::SUCCESS)
}

/// The process to change.
fn own<'a>(call: &'a mut Call<'_, '_>, id: ProcessId) -> Result<&'a mut Process, Status> {
    call.kernel.process_by_id_mut(id).ok_or(Status::INVALID_HANDLE)
}

impl Kernel {
    /// Bytes committed and reserved by a process.
    pub fn memory_use(&self, id: ProcessId) -> (u64, u64) {
        let other = self.others.get(&id).map(|state| &state.memory);
        let memory = if id == self.process.id { Some(&self.memory) } else { other };
        let pages =
            |vad: &crate::memory::vad::Vad| vad.pages.iter().map(|(range, _)| range.end - range.start).sum::<u64>();
        let vads = memory.into_iter().flat_map(|memory| memory.vads.iter());
        vads.fold((0, 0), |(used, reserved), (start, vad)| (used + pages(vad), reserved + vad.end - start))
    }
}

fn nt_set_information_process(
    call: &mut Call<'_, '_>,
    process: Handle,
    class: u32,
    buffer: UserPtr<u8>,
    length: u32,
) -> Result<Status, Status> {
    let target = call.process_by_handle(process, access::SET_INFORMATION)?;
    let expect = |size: u32| if length == size { Ok(()) } else { Err(Status::INFO_LENGTH_MISMATCH) };
    match class {
        class::DEFAULT_HARD_ERROR_MODE => {
            expect(4)?;
            let mode = buffer.cast::<u32>().read(call)?;
            own(call, target)?.hard_error_mode = mode;
        }
        class::PRIORITY_CLASS => {
            expect(2)?;
            let [_, priority] = buffer.cast::<[u8; 2]>().read(call)?;
            own(call, target)?.priority_class = priority;
        }
        class::AFFINITY_MASK => {
            expect(8)?;
            if buffer.cast::<u64>().read(call)? & 1 == 0 {
                return Err(Status::INVALID_PARAMETER);
            }
        }
        class::EXECUTE_FLAGS => {
            expect(4)?;
            let flags = buffer.cast::<u32>().read(call)?;
            own(call, target)?.execute_flags = flags;
        }
        class::DEBUG_FLAGS => {
            expect(4)?;
            let inherit = buffer.cast::<u32>().read(call)?;
            if inherit > 1 {
                return Err(Status::INVALID_PARAMETER);
            }
            own(call, target)?.debug_inherit = inherit != 0;
        }
        class::INSTRUMENTATION_CALLBACK => {
            expect(0x10)?;
            // PROCESS_INSTRUMENTATION_CALLBACK_INFORMATION: version, reserved, address. Taking none away is fine; system
            // calls never return elsewhere than to their callers.
            let [_, callback] = buffer.cast::<[u64; 2]>().read(call)?;
            if callback != 0 {
                return Err(Status::NOT_SUPPORTED);
            }
        }
        class::THREAD_STACK_ALLOCATION => allocate_stack(call, buffer, length)?,
        // Hints to a scheduler and a working-set manager that have nothing to decide, and policies that forbid what the
        // process itself may do.
        class::QUOTA_LIMITS
        | class::BASE_PRIORITY
        | class::RAISE_PRIORITY
        | class::ENABLE_ALIGNMENT_FAULT_FIXUP
        | class::PRIORITY_BOOST
        | class::IO_PRIORITY
        | class::PAGE_PRIORITY
        | class::MITIGATION_POLICY
        | class::POWER_THROTTLING => {}
        _ => return Err(Status::INVALID_INFO_CLASS),
    }
    Ok(Status::SUCCESS)
}

/// PROCESS_STACK_ALLOCATION_INFORMATION, or the longer form that begins with a preferred node: reserves memory for a stack
/// and tells where it is.
fn allocate_stack(call: &mut Call<'_, '_>, buffer: UserPtr<u8>, length: u32) -> Result<(), Status> {
    use crate::memory::vad::{Backing, Placement, page_range};
    use crate::memory::{ALLOCATION_GRANULARITY, PageProtection};
    let information = match length {
        0x18 => buffer.cast::<[u64; 3]>(),
        0x28 => buffer.byte_add::<[u64; 3]>(0x10),
        _ => return Err(Status::INFO_LENGTH_MISMATCH),
    };
    let [reserve, zero_bits, _] = information.read(call)?;
    if reserve == 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    let limits = crate::memory::services::placement_of_zero_bits(zero_bits)?;
    let placement = Placement { alignment: ALLOCATION_GRANULARITY, ..limits };
    let size = page_range(0, reserve).ok_or(Status::NO_MEMORY)?.end;
    let vads = &mut call.kernel.memory.vads;
    let start = vads.find_free(size, placement).ok_or(Status::NO_MEMORY)?;
    vads.insert(start..start + size, Backing::Private, PageProtection::READWRITE)?;
    information.write(call, [reserve, zero_bits, start])
}
