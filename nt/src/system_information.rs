//! What NtQuerySystemInformation tells: facts about the machine, its processes, their handles.

use crate::io::info::{Answer, Bytes};
use crate::memory::HIGHEST_USER_ADDRESS;
use crate::object::{Body, Handle};
use crate::service::Call;
use crate::status::Status;
use crate::strings::utf16_bytes;
use crate::system_services::CLOCK_INTERVAL;
use crate::user_ptr::{UserBuffer, UserMemory as _, UserPtr};

const PAGE_SIZE: u32 = 0x1000;
/// Physical pages that the guest is told of: 4 GiB.
const PHYSICAL_PAGES: u32 = 0x10_0000;

/// NtQuerySystemInformation.
pub(crate) fn query_system(
    call: &mut Call<'_, '_>,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    /// SYSTEM_BASIC_INFORMATION, which is asked for exactly.
    const BASIC_SIZE: u32 = 0x40;
    /// SYSTEM_TIMEOFDAY_INFORMATION, which can be asked for in part.
    const TIME_OF_DAY_SIZE: u32 = 0x30;
    /// SYSTEM_TIME_ADJUSTMENT_QUERY.
    const TIME_ADJUSTMENT_SIZE: u32 = 0xC;
    /// SystemFirmwareTableInformation.
    const FIRMWARE_TABLE: u32 = 76;
    call.probe_for_write(buffer, u64::from(length))?;
    match class {
        FIRMWARE_TABLE => return crate::firmware::query(call, buffer, length, returned),
        // SystemTimeAdjustmentInformation, which is asked for exactly, too.
        28 if length != TIME_ADJUSTMENT_SIZE => {
            returned.write_optional(call, TIME_ADJUSTMENT_SIZE)?;
            return Err(Status::INFO_LENGTH_MISMATCH);
        }
        0 | 62 | 114 if length > BASIC_SIZE => return Err(Status::INFO_LENGTH_MISMATCH),
        3 if length > TIME_OF_DAY_SIZE => {
            returned.write_optional(call, TIME_OF_DAY_SIZE)?;
            return Err(Status::INFO_LENGTH_MISMATCH);
        }
        3 if length == 0 => {
            returned.write_optional(call, 0)?;
            return Ok(Status::SUCCESS);
        }
        _ => {}
    }
    let answer = system_information(call, class, buffer, length)?;
    call.answer(UserBuffer::new(buffer, u64::from(length)), returned, &answer)
}

fn system_information(call: &mut Call<'_, '_>, class: u32, buffer: u64, length: u32) -> Result<Answer, Status> {
    let bytes = Bytes::default();
    Ok(match class {
        // SystemBasicInformation, SystemEmulationBasicInformation, SystemNativeBasicInformation.
        0 | 62 | 114 => Answer::fixed(
            bytes
                .u32s(&[0, CLOCK_INTERVAL, PAGE_SIZE, PHYSICAL_PAGES, 1, PHYSICAL_PAGES, 0x1_0000, 0])
                .u64s(&[0x1_0000, HIGHEST_USER_ADDRESS, 1, 1])
                .0,
        ),
        // SystemProcessorInformation: AMD64, family 6, model and stepping; SystemEmulationProcessorInformation: the same
        // as a 32-bit processor.
        1 => Answer::fixed(bytes.u32s(&[6 << 16 | 9, 1 << 16 | 0x3A09, 0x2018_3BBF]).0),
        63 => Answer::fixed(bytes.u32s(&[6 << 16, 1 << 16 | 0x3A09, 0x2018_3BBF]).0),
        // SystemPerformanceInformation; its tail grew from version to version.
        2 => {
            let mut all = vec![0; 0x2C];
            let pages = [PHYSICAL_PAGES / 2, PHYSICAL_PAGES / 4, PHYSICAL_PAGES * 2, PHYSICAL_PAGES / 4];
            all.extend(pages.map(u32::to_le_bytes).concat());
            all.resize((length as usize).clamp(0x138, 0x158), 0);
            Answer::fixed(all)
        }
        // SystemTimeOfDayInformation; callers may ask for a part.
        3 => {
            let clock = &call.kernel.clock;
            let mut all = bytes.i64s(&[clock.boot_time(), clock.system_time(), 0]).u32s(&[0, 0]).u64s(&[0, 0]).0;
            all.truncate((length as usize).max(1));
            Answer::fixed(all)
        }
        // SystemProcessInformation, SystemExtendedProcessInformation.
        5 => Answer::fixed(process_information(call, buffer, 0x50)),
        57 => Answer::fixed(process_information(call, buffer, 0x88)),
        // SystemModuleInformation, SystemModuleInformationEx.
        11 => Answer::fixed(kernel_modules(call, false)),
        77 => Answer::fixed(kernel_modules(call, true)),
        // SystemProcessorPerformanceInformation: idle, kernel, user, DPC, interrupt time, interrupts.
        8 => {
            let busy = call.kernel.clock.interrupt_time();
            Answer::fixed(bytes.u64s(&[0, busy / 8, busy, 0, 0]).u32s(&[0, 0]).0)
        }
        // SystemInterruptInformation: its counters are what user mode gathers entropy from.
        23 => {
            let mut counters = vec![0; 24];
            call.kernel.host.entropy(&mut counters);
            Answer::fixed(counters)
        }
        // SystemHandleInformation, SystemExtendedHandleInformation.
        16 => Answer::fixed(handle_information(call, false)),
        64 => Answer::fixed(handle_information(call, true)),
        // SystemFileCacheInformation: nothing is cached.
        21 => Answer::fixed(vec![0; 0x40]),
        // SystemKernelDebuggerInformation: not enabled, not present.
        35 => Answer::fixed(vec![0, 1]),
        // SystemRegistryQuotaInformation.
        37 => Answer::fixed(bytes.u32s(&[0x1000_0000, 0x10_0000]).u64s(&[0]).0),
        // SystemTimeAdjustmentInformation: adjustment and increment, and that there is none.
        28 => Answer::fixed(bytes.u32s(&[CLOCK_INTERVAL, CLOCK_INTERVAL, 1]).0),
        // SystemRecommendedSharedDataAlignment: a line of the cache.
        58 => Answer::fixed(bytes.u32s(&[64]).0),
        // SystemCurrentTimeZoneInformation, SystemDynamicTimeZoneInformation.
        44 => Answer::fixed(time_zone().get(..172).map(<[u8]>::to_vec).unwrap_or_default()),
        102 => Answer::fixed(time_zone()),
        // SystemLogicalProcessorInformation.
        73 => Answer::fixed(logical_processors()),
        // SystemBootEnvironmentInformation: BIOS.
        90 => Answer::fixed(bytes.u64s(&[0, 0]).u32s(&[1, 0]).u64s(&[0]).0),
        // SystemCodeIntegrityInformation: disabled.
        103 => Answer::fixed(bytes.u32s(&[8, 0]).0),
        // SystemKernelDebuggerInformationEx.
        149 => Answer::fixed(vec![0; 3]),
        // SystemWineVersionInformation: what Wine's user mode asks for its version.
        1000 => Answer::fixed(b"10.0\0wine-10.0\0lstar\x001.0\0".to_vec()),
        _ => {
            return Err(Status::INVALID_INFO_CLASS);
        }
    })
}

/// SYSTEM_HANDLE_INFORMATION, or the extended form: every open handle of every process.
fn handle_information(call: &Call<'_, '_>, extended: bool) -> Vec<u8> {
    let kernel = &*call.kernel;
    let mut entries = Vec::new();
    let mut count = 0u64;
    for process in kernel.live_processes() {
        let handles = match kernel.others.get(&process) {
            Some(state) if process != kernel.process.id => &state.handles,
            _ => &kernel.handles,
        };
        for (handle, entry) in handles.iter() {
            let pointer = entry.object.pointer();
            let kind = kernel.objects.body(entry.object).map_or(0, |body| body.object_type().index());
            // OBJ_PROTECT_CLOSE, OBJ_INHERIT.
            let flags = u8::from(entry.protect_from_close) | u8::from(entry.inherit) << 1;
            count += 1;
            let bytes = if extended {
                let head = Bytes::default().u64s(&[pointer, u64::from(process), handle.0]).u32s(&[entry.access]);
                // No back trace is kept.
                head.bytes(&[0, 0, kind, 0]).u32s(&[u32::from(flags), 0])
            } else {
                let head = Bytes::default().u32s(&[process]).bytes(&[kind, flags]);
                head.bytes(&(handle.0 as u16).to_le_bytes()).u64s(&[pointer]).u32s(&[entry.access, 0])
            };
            entries.extend(bytes.0);
        }
    }
    // NumberOfHandles; the plain form's is 32 bits wide, and padded.
    let head = if extended { Bytes::default().u64s(&[count, 0]) } else { Bytes::default().u64s(&[count]) };
    head.bytes(&entries).0
}

/// RTL_PROCESS_MODULES of the kernel: itself. The other form is a list of RTL_PROCESS_MODULE_INFORMATION_EX.
fn kernel_modules(call: &Call<'_, '_>, extended: bool) -> Vec<u8> {
    const PATH: &str = "\\SystemRoot\\system32\\ntoskrnl.exe";
    const PATH_SIZE: usize = 256;
    let (base, size) = call.kernel.kernel_image;
    // Section, mapped base, image base, size, flags, load order, initialisation order, load count, offset of the name.
    let offset = PATH.rfind('\\').map_or(0, |at| at + 1) as u16;
    let mut module = Bytes::default().u64s(&[0, base, base]).u32s(&[size, 0x0880_4000]).0;
    module.extend([0, 0, 1, offset].map(u16::to_le_bytes).concat());
    let mut path = PATH.as_bytes().to_vec();
    path.resize(PATH_SIZE, 0);
    module.extend(path);
    if extended {
        // NextOffset of the only entry, and at its end checksum, time stamp and default base.
        let mut entry = vec![0; 8];
        entry.extend(module);
        entry.resize(entry.len().next_multiple_of(8), 0);
        entry.extend(Bytes::default().u32s(&[0, 0]).u64s(&[base]).0);
        // A zero NextOffset ends the list.
        let next = entry.len() as u16;
        entry[..2].copy_from_slice(&next.to_le_bytes());
        entry.extend([0; 2]);
        entry
    } else {
        let mut bytes = Bytes::default().u32s(&[1, 0]).0;
        bytes.extend(module);
        bytes
    }
}

/// SYSTEM_PROCESS_INFORMATION of every process, with its threads, each in that many bytes.
fn process_information(call: &Call<'_, '_>, buffer: u64, thread_size: usize) -> Vec<u8> {
    const HEAD: usize = 0x100;
    let kernel = &*call.kernel;
    let live = kernel.live_processes();
    let mut all = Vec::new();
    for (index, &id) in live.iter().enumerate() {
        let Some(process) = kernel.process_by_id(id) else { continue };
        let threads: Vec<_> = kernel.scheduler.threads_of(id).collect();
        let name = utf16_bytes(process.file_name());
        let start = all.len();
        let at = buffer.wrapping_add((start + HEAD + thread_size * threads.len()) as u64);
        let mut bytes = Bytes::default().u32s(&[0, threads.len() as u32]).0;
        bytes.resize(0x20, 0);
        // CreateTime, UserTime, KernelTime.
        let created = kernel.clock.boot_time().saturating_add_unsigned(process.created);
        bytes.extend(Bytes::default().i64s(&[created, 0, 0]).0);
        bytes.extend(crate::object::support::unicode_string(name.len(), at));
        // BasePriority, UniqueProcessId, parent, HandleCount, SessionId.
        bytes.extend(Bytes::default().u32s(&[8, 0]).u64s(&[u64::from(id), u64::from(process.parent)]).0);
        let handles = if id == kernel.process.id {
            kernel.handles.len()
        } else {
            kernel.others.get(&id).map_or(0, |state| state.handles.len())
        };
        bytes.extend([handles as u32, kernel.system.session].map(u32::to_le_bytes).concat());
        bytes.resize(HEAD, 0);
        for thread in threads {
            // Times, start address, client identifier, priorities, switches, state running.
            let client = [u64::from(id), u64::from(thread.id)];
            let entry =
                Bytes::default().u64s(&[0, 0, 0, 0, thread.start_address]).u64s(&client).u32s(&[8, 8, 0, 2, 0, 0]);
            let mut entry = entry.0;
            // Behind the plain form: stack, start address, TEB.
            entry.resize(0x50, 0);
            entry.extend(Bytes::default().u64s(&[0, thread.stack, thread.start_address, thread.teb]).0);
            entry.resize(thread_size, 0);
            bytes.extend(entry);
        }
        bytes.extend(name);
        bytes.extend([0, 0]);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        if index + 1 < live.len() {
            let next = bytes.len() as u32;
            bytes[..4].copy_from_slice(&next.to_le_bytes());
        }
        all.extend(bytes);
    }
    all
}

/// RTL_DYNAMIC_TIME_ZONE_INFORMATION: UTC all year, under the name of a zone that has no daylight saving.
fn time_zone() -> Vec<u8> {
    let padded = |text: &str, size: usize| {
        let mut bytes = utf16_bytes(text);
        bytes.resize(size, 0);
        bytes
    };
    let mut bytes = vec![0; 4];
    bytes.extend(padded("Greenwich Standard Time", 64));
    bytes.extend([0; 20]);
    bytes.extend(padded("Greenwich Daylight Time", 64));
    bytes.extend([0; 20]);
    bytes.extend(padded("Greenwich Standard Time", 256));
    bytes.resize(432, 0);
    bytes
}

/// Level, line size, size, type (0 unified, 1 instruction, 2 data) of the caches told to the guest.
const CACHES: [(u8, u16, u32, u32); 4] =
    [(1, 64, 32 << 10, 2), (1, 64, 32 << 10, 1), (2, 64, 256 << 10, 0), (3, 64, 8 << 20, 0)];
/// Cache associativity told to the guest.
const ASSOCIATIVITY: u8 = 8;

/// SYSTEM_LOGICAL_PROCESSOR_INFORMATION: one core, one package, one node, its caches.
fn logical_processors() -> Vec<u8> {
    let entry = |relationship: u32| Bytes::default().u64s(&[1]).u32s(&[relationship, 0]);
    let plain = [0, 3, 1].into_iter().map(|relationship| entry(relationship).u64s(&[0, 0]).0);
    let caches = CACHES.map(|(level, line, size, kind)| {
        let [low, high] = line.to_le_bytes();
        entry(2).bytes(&[level, ASSOCIATIVITY, low, high]).u32s(&[size, kind, 0]).0
    });
    plain.chain(caches).flatten().collect()
}

/// SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX for a relationship, or all.
fn logical_processors_ex(wanted: u32) -> Vec<u8> {
    const ALL: u32 = 0xFFFF;
    // GROUP_AFFINITY: the first processor of group 0.
    let group = Bytes::default().u64s(&[1, 0]).0;
    let processor = [&[0; 22][..], &[1, 0], &group].concat();
    let node = [&[0; 22][..], &[1, 0], &group].concat();
    let groups = [&[1, 0, 1, 0][..], &[0; 20], &[1, 1], &[0; 38], &1u64.to_le_bytes()].concat();
    let mut entries = vec![(0, processor.clone()), (3, processor), (1, node), (4, groups)];
    entries.extend(CACHES.map(|(level, line, size, kind)| {
        let [low, high] = line.to_le_bytes();
        let head = Bytes::default().bytes(&[level, ASSOCIATIVITY, low, high]).u32s(&[size, kind]).0;
        (2, [&head[..], &[0; 18], &[1, 0], &group].concat())
    }));
    let chosen = entries.into_iter().filter(|&(relationship, _)| wanted == ALL || wanted == relationship);
    chosen
        .flat_map(|(relationship, body)| Bytes::default().u32s(&[relationship, body.len() as u32 + 8]).bytes(&body).0)
        .collect()
}

/// NtQuerySystemInformationEx.
pub(crate) fn query_system_ex(
    call: &mut Call<'_, '_>,
    class: u32,
    input: UserPtr<u32>,
    input_length: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    /// SystemCpuSetInformation.
    const CPU_SETS: u32 = 175;
    if class == CPU_SETS {
        return query_cpu_sets(call, input, input_length, buffer, length, returned);
    }
    if input_length < 4 {
        return Err(Status::INVALID_PARAMETER);
    }
    let wanted = input.read(call)?;
    let answer = match class {
        // SystemLogicalProcessorInformation of a group, SystemLogicalProcessorAndGroupInformation.
        73 => Answer::fixed(logical_processors()),
        107 => Answer::fixed(logical_processors_ex(wanted)),
        _ => return Err(Status::INVALID_INFO_CLASS),
    };
    call.answer(UserBuffer::new(buffer, u64::from(length)), returned, &answer)
}

/// SYSTEM_CPU_SET_INFORMATION: the one processor, for a process or the caller.
fn query_cpu_sets(
    call: &mut Call<'_, '_>,
    input: UserPtr<u32>,
    input_length: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    const SIZE: u32 = 0x20;
    /// Identifier of the first one.
    const FIRST: u32 = 0x100;
    if input.is_null() || input_length != 8 {
        return Err(Status::INVALID_PARAMETER);
    }
    let process = input.cast::<Handle>().read(call)?;
    if process != Handle::NULL {
        call.process_by_handle(process, crate::process::access::QUERY_LIMITED_INFORMATION)?;
    }
    if length < SIZE {
        returned.write_optional(call, SIZE)?;
        return Err(Status::BUFFER_TOO_SMALL);
    }
    // Size, type, identifier; group, indices of processor, core, cache and node, and flags are 0.
    let mut bytes = Bytes::default().u32s(&[SIZE, 0, FIRST]).0;
    bytes.resize(SIZE as usize, 0);
    UserBuffer::new(buffer, u64::from(length)).write(call, &bytes)?;
    returned.write_optional(call, SIZE)?;
    Ok(Status::SUCCESS)
}

/// NtSetSystemInformation: what there is belongs to the host.
pub(crate) fn set_system(call: &mut Call<'_, '_>, class: u32, buffer: u64, length: u32) -> Result<(), Status> {
    /// SystemTimeAdjustmentInformation, SYSTEM_SET_TIME_ADJUST_INFORMATION.
    const TIME_ADJUSTMENT: u32 = 28;
    const TIME_ADJUSTMENT_SIZE: u32 = 8;
    /// SeSystemtimePrivilege.
    const SYSTEM_TIME: u32 = 12;
    match class {
        TIME_ADJUSTMENT if length != TIME_ADJUSTMENT_SIZE => Err(Status::INFO_LENGTH_MISMATCH),
        TIME_ADJUSTMENT => {
            call.read_user(buffer, &mut [0; TIME_ADJUSTMENT_SIZE as usize])?;
            let token = call.kernel.primary_token();
            match call.kernel.objects.body(token)? {
                // The guest's clock runs as it does.
                Body::Token(token) if token.has_enabled(SYSTEM_TIME) => Ok(()),
                _ => Err(Status::PRIVILEGE_NOT_HELD),
            }
        }
        _ => Err(Status::INVALID_INFO_CLASS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_their_documented_sizes() {
        assert_eq!(time_zone().len(), 432);
        assert_eq!(logical_processors().len(), 7 * 0x20);
        assert_eq!(logical_processors_ex(0).len(), 0x30);
        assert_eq!(logical_processors_ex(1).len(), 0x30);
        assert_eq!(logical_processors_ex(2).len(), 4 * 0x38);
        assert_eq!(logical_processors_ex(4).len(), 0x50);
        let all = logical_processors_ex(0xFFFF);
        let mut at = 0;
        while at < all.len() {
            at += all[at + 4] as usize;
        }
        assert_eq!(at, all.len(), "sizes chain to the end");
    }
}
