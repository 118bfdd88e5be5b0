//! Information classes of threads.

use super::ThreadId;
use crate::object::{Body, ObjectType};
use crate::process::ProcessId;
use crate::service::{Call, Handle};
use crate::status::Status;
use crate::strings::{UnicodeString, utf16_bytes};
use crate::user_ptr::{GuestValue, UserBuffer, UserPtr};

crate::services! {
    pub SERVICES;
    /// Tells something about a thread.
    NtQueryInformationThread(thread: Handle, class: u32, buffer: UserPtr<u8>, length: u32, returned: UserPtr<u32>) = nt_query_information_thread;
    /// Changes something of a thread.
    NtSetInformationThread(thread: Handle, class: u32, buffer: UserPtr<u8>, length: u32) = nt_set_information_thread;
}

/// THREADINFOCLASS values.
mod class {
    pub const BASIC: u32 = 0;
    pub const TIMES: u32 = 1;
    pub const PRIORITY: u32 = 2;
    pub const BASE_PRIORITY: u32 = 3;
    pub const AFFINITY_MASK: u32 = 4;
    pub const IMPERSONATION_TOKEN: u32 = 5;
    pub const ENABLE_ALIGNMENT_FAULT_FIXUP: u32 = 7;
    pub const WIN32_START_ADDRESS: u32 = 9;
    pub const ZERO_TLS_CELL: u32 = 10;
    pub const AM_I_LAST_THREAD: u32 = 12;
    pub const IDEAL_PROCESSOR: u32 = 13;
    pub const PRIORITY_BOOST: u32 = 14;
    pub const HIDE_FROM_DEBUGGER: u32 = 17;
    pub const IS_IO_PENDING: u32 = 16;
    pub const IS_TERMINATED: u32 = 20;
    pub const IO_PRIORITY: u32 = 22;
    pub const CYCLE_TIME: u32 = 23;
    pub const PAGE_PRIORITY: u32 = 24;
    pub const GROUP_INFORMATION: u32 = 30;
    pub const IDEAL_PROCESSOR_EX: u32 = 33;
    pub const SUSPEND_COUNT: u32 = 35;
    pub const NAME: u32 = 38;
    pub const POWER_THROTTLING_STATE: u32 = 49;
}

crate::guest_struct! {
    /// THREAD_BASIC_INFORMATION.
    struct BasicInformation: 0x30 {
        exit_status @ 0x00: u32,
        teb @ 0x08: u64,
        process @ 0x10: u64,
        thread @ 0x18: u64,
        affinity @ 0x20: u64,
        priority @ 0x28: i32,
        base_priority @ 0x2C: i32,
    }
}

/// THREAD_SET_INFORMATION.
const SET_INFORMATION: u32 = 0x20;
/// THREAD_QUERY_INFORMATION.
const QUERY_INFORMATION: u32 = 0x40;
/// THREAD_SET_LIMITED_INFORMATION.
const SET_LIMITED_INFORMATION: u32 = 0x400;
/// THREAD_QUERY_LIMITED_INFORMATION.
const QUERY_LIMITED_INFORMATION: u32 = 0x800;

/// The right that a query needs.
fn query_access(class: u32) -> u32 {
    match class {
        class::BASIC | class::TIMES | class::AM_I_LAST_THREAD | class::PRIORITY_BOOST | class::NAME => {
            QUERY_LIMITED_INFORMATION
        }
        _ => QUERY_INFORMATION,
    }
}

/// Identifier, process, and whether it has ended, of the thread behind a handle.
fn identify(call: &Call<'_, '_>, handle: Handle, access: u32) -> Result<(ThreadId, ProcessId, bool), Status> {
    if handle == Handle::CURRENT_THREAD {
        return Ok((call.thread, call.kernel.process.id, false));
    }
    let kernel = &call.kernel;
    let object = kernel.objects.by_handle(&kernel.handles, handle, Some(ObjectType::Thread), access)?;
    match kernel.objects.body(object)? {
        Body::Thread { id, process, ended } => Ok((*id, *process, *ended)),
        _ => Err(Status::OBJECT_TYPE_MISMATCH),
    }
}

fn nt_query_information_thread(
    call: &mut Call<'_, '_>,
    thread: Handle,
    class: u32,
    buffer: UserPtr<u8>,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    // For these the length is looked at before the handle is.
    match class {
        class::AM_I_LAST_THREAD if length != 4 => return Err(Status::INFO_LENGTH_MISMATCH),
        class::HIDE_FROM_DEBUGGER if length != 1 => return Err(Status::INFO_LENGTH_MISMATCH),
        _ => {}
    }
    let (id, process, ended) = identify(call, thread, query_access(class))?;
    let output = UserBuffer::new(buffer.address(), u64::from(length));
    let kernel = &*call.kernel;
    let target = kernel.scheduler.threads.get(&id);
    let number = |call: &mut Call<'_, '_>, value: u32| output.write_struct(call, &value);
    let written = match class {
        class::BASIC => {
            let priority = target.map_or(0, |thread| thread.priority);
            let status = kernel.process_by_id(process).map_or(Status::SUCCESS, |owner| owner.thread_exit_status(id));
            let exit_status = if ended { status } else { Status::PENDING };
            let information = BasicInformation {
                exit_status: exit_status.0,
                teb: target.map_or(0, |thread| thread.teb),
                process: u64::from(process),
                thread: u64::from(id),
                affinity: target.map_or(1, |thread| thread.affinity),
                // User mode of different builds takes the increment from either field.
                priority,
                base_priority: priority,
            };
            output.write_struct(call, &information)?
        }
        class::TIMES => {
            let created = target.map_or(0, |thread| thread.created);
            let created = kernel.clock.boot_time().saturating_add_unsigned(created);
            let busy = (executed(call, id) / crate::time::INSTRUCTIONS_PER_UNIT) as i64;
            output.write_struct(call, &[created, 0, 0, busy])?
        }
        // THREAD_CYCLE_TIME_INFORMATION: accumulated cycles, current count; an instruction is a cycle.
        class::CYCLE_TIME => {
            let cycles = executed(call, id);
            output.write_struct(call, &[cycles, cycles])?
        }
        class::AFFINITY_MASK => {
            let affinity = target.map_or(1, |thread| thread.affinity);
            output.write_struct(call, &affinity)?
        }
        class::WIN32_START_ADDRESS => {
            let start = target.map_or(0, |thread| thread.start_address);
            output.write_struct(call, &start)?
        }
        class::AM_I_LAST_THREAD => {
            let last = u32::from(kernel.scheduler.threads_of(process).count() == 1);
            number(call, last)?
        }
        class::IS_IO_PENDING | class::PRIORITY_BOOST => number(call, 0)?,
        class::IO_PRIORITY => number(call, 2)?,
        class::PAGE_PRIORITY => number(call, 5)?,
        class::IS_TERMINATED => number(call, u32::from(ended))?,
        class::HIDE_FROM_DEBUGGER => {
            let hidden = u8::from(target.is_some_and(|thread| thread.hidden));
            output.write_struct(call, &hidden)?
        }
        class::SUSPEND_COUNT => {
            let count = target.map_or(0, |thread| thread.suspend_count);
            number(call, count)?
        }
        // GROUP_AFFINITY: mask, group, reserved.
        class::GROUP_INFORMATION => {
            let affinity = target.map_or(1, |thread| thread.affinity);
            output.write_struct(call, &[affinity, 0])?
        }
        // PROCESSOR_NUMBER.
        class::IDEAL_PROCESSOR_EX => number(call, 0)?,
        class::NAME => {
            let name = target.map(|thread| String::from_utf16_lossy(&thread.name)).unwrap_or_default();
            return query_name(call, &name, output, returned);
        }
        _ => return Err(Status::INVALID_INFO_CLASS),
    };
    returned.write_optional(call, written)?;
    Ok(Status::SUCCESS)
}

/// Instructions that a thread has executed, its turn so far included when it is the caller.
fn executed(call: &Call<'_, '_>, id: ThreadId) -> u64 {
    let scheduler = &call.kernel.scheduler;
    let turn = if id == call.thread { scheduler.turn(call.vcpu.retired) } else { 0 };
    scheduler.threads.get(&id).map_or(0, |thread| thread.instructions) + turn
}

/// THREAD_NAME_INFORMATION: a UNICODE_STRING with its text behind it.
fn query_name(
    call: &mut Call<'_, '_>,
    name: &str,
    output: UserBuffer,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    let text = utf16_bytes(name);
    let needed = UnicodeString::SIZE + text.len();
    returned.write_optional(call, u32::try_from(needed).unwrap_or(u32::MAX))?;
    if output.length < needed as u64 {
        return Err(Status::BUFFER_TOO_SMALL);
    }
    let length = u16::try_from(text.len()).map_err(|_| Status::NAME_TOO_LONG)?;
    let buffer = output.address.wrapping_add(UnicodeString::SIZE as u64);
    let mut bytes = UnicodeString { length, maximum_length: length, buffer }.to_vec();
    bytes.extend(text);
    output.write(call, &bytes)?;
    Ok(Status::SUCCESS)
}

fn nt_set_information_thread(
    call: &mut Call<'_, '_>,
    thread: Handle,
    class: u32,
    buffer: UserPtr<u8>,
    length: u32,
) -> Result<Status, Status> {
    if class == class::ENABLE_ALIGNMENT_FAULT_FIXUP {
        if length != 1 {
            return Err(Status::INFO_LENGTH_MISMATCH);
        }
        buffer.read(call)?;
    }
    let access = if class == class::NAME { SET_LIMITED_INFORMATION } else { SET_INFORMATION };
    let id = call.thread_by_handle(thread, access)?;
    let expect = |size: u32| if length == size { Ok(()) } else { Err(Status::INFO_LENGTH_MISMATCH) };
    match class {
        class::PRIORITY => {
            /// Base priority of a thread of a normal process.
            const NORMAL: i32 = 8;
            expect(4)?;
            let value = buffer.cast::<i32>().read(call)?;
            if !(1..=15).contains(&value) {
                return Err(if (16..32).contains(&value) {
                    Status::PRIVILEGE_NOT_HELD
                } else {
                    Status::INVALID_PARAMETER
                });
            }
            call.kernel.scheduler.thread_mut(id)?.priority = value - NORMAL;
        }
        class::BASE_PRIORITY => {
            expect(4)?;
            let value = buffer.cast::<i32>().read(call)?;
            // The ends of the range mean "as low or high as the class allows".
            if !(-2..=2).contains(&value) && value != 15 && value != -15 {
                return Err(Status::INVALID_PARAMETER);
            }
            call.kernel.scheduler.thread_mut(id)?.priority = value;
        }
        class::GROUP_INFORMATION => {
            expect(0x10)?;
            let [mask, group] = buffer.cast::<[u64; 2]>().read(call)?;
            // There is one group of one processor.
            if mask != 1 || group != 0 {
                return Err(Status::INVALID_PARAMETER);
            }
        }
        class::IDEAL_PROCESSOR => {
            expect(4)?;
            /// MAXIMUM_PROCESSORS: "no preference".
            const NONE: u32 = 64;
            if buffer.cast::<u32>().read(call)? > NONE {
                return Err(Status::INVALID_PARAMETER);
            }
            return Ok(Status::SUCCESS);
        }
        class::AFFINITY_MASK => {
            expect(8)?;
            let mask = buffer.cast::<u64>().read(call)?;
            if mask & 1 == 0 {
                return Err(Status::INVALID_PARAMETER);
            }
            call.kernel.scheduler.thread_mut(id)?.affinity = 1;
        }
        class::ZERO_TLS_CELL => {
            expect(4)?;
            let index = buffer.cast::<u32>().read(call)?;
            zero_tls_cell(call, index)?;
        }
        class::HIDE_FROM_DEBUGGER => {
            expect(0)?;
            call.kernel.scheduler.thread_mut(id)?.hidden = true;
        }
        class::NAME => {
            expect(UnicodeString::SIZE as u32)?;
            let name = buffer.cast::<UnicodeString>().read_utf16(call)?;
            call.kernel.scheduler.thread_mut(id)?.name = name;
        }
        class::WIN32_START_ADDRESS => {
            expect(8)?;
            let start = buffer.cast::<u64>().read(call)?;
            call.kernel.scheduler.thread_mut(id)?.start_address = start;
        }
        // There is one processor, and one identity: these change nothing that can be observed.
        class::IMPERSONATION_TOKEN
        | class::ENABLE_ALIGNMENT_FAULT_FIXUP
        | class::IDEAL_PROCESSOR_EX
        | class::PRIORITY_BOOST
        | class::IO_PRIORITY
        | class::PAGE_PRIORITY
        | class::POWER_THROTTLING_STATE => {}
        _ => return Err(Status::INVALID_INFO_CLASS),
    }
    Ok(Status::SUCCESS)
}

/// Clears a TLS slot in every thread, because the index is being given back.
fn zero_tls_cell(call: &mut Call<'_, '_>, index: u32) -> Result<(), Status> {
    const TEB_TLS_SLOTS: u64 = 0x1480;
    const TEB_TLS_EXPANSION_SLOTS: u64 = 0x1780;
    const SLOTS: u32 = 64;
    const EXPANSION_SLOTS: u32 = 1024;
    if index >= SLOTS + EXPANSION_SLOTS {
        return Err(Status::INVALID_PARAMETER);
    }
    let tebs: Vec<u64> = call.kernel.scheduler.threads_of(call.kernel.process.id).map(|thread| thread.teb).collect();
    for teb in tebs {
        let teb = UserPtr::<u64>::new(teb);
        let slot = match index.checked_sub(SLOTS) {
            None => teb.byte_add(TEB_TLS_SLOTS + u64::from(index) * 8),
            Some(expansion) => {
                let table = teb.byte_add::<u64>(TEB_TLS_EXPANSION_SLOTS).read(call)?;
                if table == 0 {
                    continue;
                }
                UserPtr::<u64>::new(table).byte_add(u64::from(expansion) * 8)
            }
        };
        slot.write(call, 0)?;
    }
    Ok(())
}
