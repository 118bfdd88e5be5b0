//! Services of the system as a whole: information, time, locale, atoms, identifiers, power, and refusals.

use crate::io::info::{Answer, Bytes};
use crate::object::Handle;
use crate::service::Call;
use crate::services;
use crate::status::Status;
use crate::strings::utf16_bytes;
use crate::time::PERFORMANCE_FREQUENCY;
use crate::user_ptr::{UserBuffer, UserMemory, UserPtr};

services! { pub SERVICES;
    /// Tells facts about the system.
    NtQuerySystemInformation(class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query_system;
    /// Tells facts about the system, given an input.
    NtQuerySystemInformationEx(class: u32, input: UserPtr<u32>, input_length: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query_system_ex;
    /// Tells the wall-clock time.
    NtQuerySystemTime(time: UserPtr<i64>) = query_system_time;
    /// Sets the wall-clock time.
    NtSetSystemTime(time: UserPtr<i64>, previous: UserPtr<i64>) = set_system_time;
    /// Tells the performance counter and its frequency.
    NtQueryPerformanceCounter(counter: UserPtr<u64>, frequency: UserPtr<u64>) = query_performance_counter;
    /// Tells the clock interrupt's intervals.
    NtQueryTimerResolution(coarsest: UserPtr<u32>, finest: UserPtr<u32>, current: UserPtr<u32>) = query_timer_resolution;
    /// Asks for a clock interval: the clock is always exact.
    NtSetTimerResolution(wanted: u32, set: bool, current: UserPtr<u32>) = set_timer_resolution;
    /// Tells milliseconds since boot.
    NtGetTickCount() = get_tick_count;
    /// Tells the user's or the system's locale.
    NtQueryDefaultLocale(user: bool, locale: UserPtr<u32>) = query_default_locale;
    /// Sets the user's or the system's locale.
    NtSetDefaultLocale(user: bool, locale: u32) = set_default_locale;
    /// Tells the language of the user interface.
    NtQueryDefaultUILanguage(language: UserPtr<u16>) = query_ui_language;
    /// Tells the language of the installation.
    NtQueryInstallUILanguage(language: UserPtr<u16>) = query_install_language;
    /// Sets the language of the user interface.
    NtSetDefaultUILanguage(language: u32) = set_ui_language;
    /// Adds a global atom.
    NtAddAtom(name: u64, length: u32, atom: UserPtr<u16>) = add_atom;
    /// Takes a reference to a global atom back.
    NtDeleteAtom(atom: u32) = delete_atom;
    /// Finds a global atom.
    NtFindAtom(name: u64, length: u32, atom: UserPtr<u16>) = find_atom;
    /// Tells a global atom's name and references.
    NtQueryInformationAtom(atom: u32, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query_atom;
    /// Makes a locally unique identifier.
    NtAllocateLocallyUniqueId(luid: UserPtr<u64>) = allocate_luid;
    /// Makes what UUIDs are made of.
    NtAllocateUuids(time: UserPtr<u64>, range: UserPtr<u32>, sequence: UserPtr<u32>, seed: u64) = allocate_uuids;
    /// Tells facts about power.
    NtPowerInformation(level: u32, input: u64, input_length: u32, output: u64, output_length: u32) = power_information;
    /// Says what a thread needs the machine to stay awake for.
    NtSetThreadExecutionState(state: u32, previous: UserPtr<u32>) = set_execution_state;
    /// Sets a debug-print filter.
    NtSetDebugFilterState(component: u32, level: u32, state: bool) = set_debug_filter;
    /// Prints on the boot screen.
    NtDisplayString(text: UserPtr<crate::strings::UnicodeString>) = display_string;
    /// Tells a licence value.
    NtQueryLicenseValue(name: UserPtr<crate::strings::UnicodeString>, kind: UserPtr<u32>, buffer: u64, length: u32, returned: UserPtr<u32>) = query_license;
    /// Makes a debug object.
    NtCreateDebugObject(out: UserPtr<Handle>, access: u32, attributes: crate::object::support::AttributesPtr, flags: u32) = create_debug_object;
    /// Starts to debug a process: refused.
    NtDebugActiveProcess(process: Handle, debug: Handle) = refuse_debugging;
    /// Ends debugging a process: none is debugged.
    NtRemoveProcessDebug(process: Handle, debug: Handle) = refuse_debugging;
    /// Debugs the kernel: no debugger is there.
    NtSystemDebugControl(command: u32, input: u64, input_length: u32, output: u64, output_length: u32, returned: UserPtr<u32>) = refuse_kernel_debugging;
    /// Loads a driver: refused.
    NtLoadDriver(name: UserPtr<crate::strings::UnicodeString>) = refuse_driver;
    /// Unloads a driver: refused.
    NtUnloadDriver(name: UserPtr<crate::strings::UnicodeString>) = refuse_driver;
    /// Shuts the machine down: refused.
    NtShutdownSystem(action: u32) = refuse_shutdown;
}

/// Clock interval in 100 ns: 64 interrupts a second.
const CLOCK_INTERVAL: u32 = 156_250;
const PAGE_SIZE: u32 = 0x1000;
/// Physical pages that the guest is told of: 4 GiB.
const PHYSICAL_PAGES: u32 = 0x10_0000;
/// Highest address of user mode, as Windows 7 has it.
const HIGHEST_USER_ADDRESS: u64 = 0x7FF_FFFE_FFFF;

fn query_system(
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
    match class {
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
        // SystemKernelDebuggerInformation: not enabled, not present.
        35 => Answer::fixed(vec![0, 1]),
        // SystemRegistryQuotaInformation.
        37 => Answer::fixed(bytes.u32s(&[0x1000_0000, 0x10_0000]).u64s(&[0]).0),
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
        entry.extend([0; 8]);
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
    bytes.extend(padded("@tzres.dll,-272", 64));
    bytes.extend([0; 20]);
    bytes.extend(padded("@tzres.dll,-271", 64));
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

fn query_system_ex(
    call: &mut Call<'_, '_>,
    class: u32,
    input: UserPtr<u32>,
    input_length: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
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

fn query_system_time(call: &mut Call<'_, '_>, time: UserPtr<i64>) -> Result<(), Status> {
    let now = call.kernel.clock.system_time();
    time.write(call, now)
}

fn set_system_time(call: &mut Call<'_, '_>, time: UserPtr<i64>, _previous: UserPtr<i64>) -> Result<(), Status> {
    time.read(call)?;
    Err(Status::PRIVILEGE_NOT_HELD)
}

fn query_performance_counter(
    call: &mut Call<'_, '_>,
    counter: UserPtr<u64>,
    frequency: UserPtr<u64>,
) -> Result<(), Status> {
    let now = call.kernel.clock.interrupt_time();
    counter.write(call, now)?;
    frequency.write_optional(call, PERFORMANCE_FREQUENCY)
}

fn query_timer_resolution(
    call: &mut Call<'_, '_>,
    coarsest: UserPtr<u32>,
    finest: UserPtr<u32>,
    current: UserPtr<u32>,
) -> Result<(), Status> {
    coarsest.write(call, CLOCK_INTERVAL)?;
    finest.write(call, FINEST_INTERVAL)?;
    let interval = call.kernel.system.timer_resolution.unwrap_or(CLOCK_INTERVAL);
    current.write(call, interval)
}

/// Finest clock interval that can be asked for: half a millisecond.
const FINEST_INTERVAL: u32 = 5_000;

fn set_timer_resolution(
    call: &mut Call<'_, '_>,
    wanted: u32,
    set: bool,
    current: UserPtr<u32>,
) -> Result<Status, Status> {
    // Nothing changes for a caller that cannot be answered.
    current.read(call)?;
    let asked_before = call.kernel.system.timer_resolution.is_some();
    call.kernel.system.timer_resolution = set.then(|| wanted.clamp(FINEST_INTERVAL, CLOCK_INTERVAL));
    current.write(call, call.kernel.system.timer_resolution.unwrap_or(CLOCK_INTERVAL))?;
    Ok(if set || asked_before { Status::SUCCESS } else { Status::TIMER_RESOLUTION_NOT_SET })
}

/// Its result is no status but the count.
fn get_tick_count(call: &mut Call<'_, '_>) -> Status {
    Status((call.kernel.clock.interrupt_time() / 10_000) as u32)
}

fn query_default_locale(call: &mut Call<'_, '_>, user: bool, locale: UserPtr<u32>) -> Result<(), Status> {
    let system = &call.kernel.system;
    let value = if user { system.user_locale } else { system.system_locale };
    locale.write(call, value)
}

fn set_default_locale(call: &mut Call<'_, '_>, user: bool, locale: u32) {
    let system = &mut call.kernel.system;
    *(if user { &mut system.user_locale } else { &mut system.system_locale }) = locale;
}

fn query_ui_language(call: &mut Call<'_, '_>, language: UserPtr<u16>) -> Result<(), Status> {
    let locale = call.kernel.system.user_locale as u16;
    language.write(call, locale)
}

fn query_install_language(call: &mut Call<'_, '_>, language: UserPtr<u16>) -> Result<(), Status> {
    language.write(call, crate::system_state::DEFAULT_LOCALE as u16)
}

fn set_ui_language(call: &mut Call<'_, '_>, language: u32) {
    call.kernel.system.user_locale = language & 0xFFFF;
}

fn atom_name(call: &mut Call<'_, '_>, name: u64, length: u32) -> Result<String, Status> {
    /// Longest name in bytes.
    const MAX_BYTES: u32 = 510;
    if length > MAX_BYTES {
        return Err(Status::INVALID_PARAMETER);
    }
    let units = UserPtr::<u16>::new(name).read_array(call, u64::from(length / 2))?;
    Ok(String::from_utf16_lossy(&units))
}

fn add_atom(call: &mut Call<'_, '_>, name: u64, length: u32, atom: UserPtr<u16>) -> Result<(), Status> {
    let name = atom_name(call, name, length)?;
    let number = call.kernel.system.atoms.add(&name)?;
    atom.write_optional(call, number)
}

fn delete_atom(call: &mut Call<'_, '_>, atom: u32) -> Result<(), Status> {
    call.kernel.system.atoms.delete(atom as u16)
}

fn find_atom(call: &mut Call<'_, '_>, name: u64, length: u32, atom: UserPtr<u16>) -> Result<(), Status> {
    let name = atom_name(call, name, length)?;
    let number = call.kernel.system.atoms.find(&name)?;
    atom.write_optional(call, number)
}

fn query_atom(
    call: &mut Call<'_, '_>,
    atom: u32,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    if class != 0 {
        return Err(Status::INVALID_INFO_CLASS);
    }
    let atom = call.kernel.system.atoms.get(atom as u16)?;
    let name = utf16_bytes(&atom.name);
    /// ATOM_BASIC_INFORMATION, with room for one unit of the name.
    const FIXED: usize = 8;
    let Some(room) = (length as usize).checked_sub(FIXED) else { return Err(Status::INFO_LENGTH_MISMATCH) };
    // A name is cut to what has room behind the structure; without any room its length is told.
    let told = &name[..name.len().min(room & !1)];
    let length = if told.is_empty() { name.len() } else { told.len() };
    let head = [atom.references.min(0xFFFF) as u16, 0, length as u16].map(u16::to_le_bytes).concat();
    returned.write_optional(call, (FIXED + name.len()) as u32)?;
    if told.is_empty() {
        call.write_user(buffer, &head)?;
        return Err(Status::BUFFER_TOO_SMALL);
    }
    // The unit in the structure leaves room for a terminator.
    call.write_user(buffer, &[&head, told, &[0, 0]].concat())?;
    Ok(Status::SUCCESS)
}

fn allocate_luid(call: &mut Call<'_, '_>, luid: UserPtr<u64>) -> Result<(), Status> {
    let value = call.kernel.system.allocate_luid();
    luid.write(call, value)
}

fn allocate_uuids(
    call: &mut Call<'_, '_>,
    time: UserPtr<u64>,
    range: UserPtr<u32>,
    sequence: UserPtr<u32>,
    seed: u64,
) -> Result<(), Status> {
    let mut node = [0; 6];
    call.kernel.host.entropy(&mut node);
    // A node that is no network card's has the multicast bit.
    node[0] |= 1;
    let now = call.kernel.clock.system_time() as u64;
    time.write(call, now)?;
    range.write(call, 0x1000)?;
    let unique = call.kernel.system.allocate_luid() as u32;
    sequence.write(call, unique)?;
    call.write_user(seed, &node)
}

fn power_information(
    call: &mut Call<'_, '_>,
    level: u32,
    _input: u64,
    _input_length: u32,
    output: u64,
    output_length: u32,
) -> Result<(), Status> {
    let bytes = match level {
        // SystemPowerCapabilities.
        4 => vec![0; 0x4C],
        // SystemBatteryState: on line power.
        5 => [&[1][..], &[0; 31]].concat(),
        // ProcessorInformation: number, frequencies in MHz, idle states.
        11 => Bytes::default().u32s(&[0, 1000, 1000, 1000, 0, 0]).0,
        // SystemExecutionState.
        16 => vec![0; 4],
        _ => return Err(Status::NOT_IMPLEMENTED),
    };
    UserBuffer::new(output, u64::from(output_length)).write(call, &bytes)
}

fn set_execution_state(call: &mut Call<'_, '_>, _state: u32, previous: UserPtr<u32>) -> Result<(), Status> {
    // ES_CONTINUOUS.
    previous.write(call, 0x8000_0000)
}

fn set_debug_filter(_call: &mut Call<'_, '_>, _component: u32, _level: u32, _state: bool) {}

fn display_string(call: &mut Call<'_, '_>, text: UserPtr<crate::strings::UnicodeString>) -> Result<(), Status> {
    text.read_text(call).map(|_| ())
}

/// Licence values that programs ask for: name, REG_* type, data. The first limits the languages of the user interface
/// to none, the second allows any number of them.
const LICENSES: [(&str, u32, &[u8]); 2] = [
    ("Kernel-MUI-Language-Allowed", crate::registry::value_type::SZ, b"E\0M\0P\0T\0Y\0\0\0"),
    ("Kernel-MUI-Number-Allowed", crate::registry::value_type::DWORD, &[0xE8, 3, 0, 0]),
];

fn query_license(
    call: &mut Call<'_, '_>,
    name: UserPtr<crate::strings::UnicodeString>,
    kind: UserPtr<u32>,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<(), Status> {
    if name.is_null() || returned.is_null() {
        return Err(Status::INVALID_PARAMETER);
    }
    let raw = name.read(call)?;
    if raw.buffer == 0 || raw.length == 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    let text = name.read_text(call)?;
    let wanted = LICENSES.iter().find(|(name, ..)| name.eq_ignore_ascii_case(&text));
    let &(_, value_type, data) = wanted.ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
    kind.write_optional(call, value_type)?;
    returned.write(call, data.len() as u32)?;
    if (length as usize) < data.len() {
        return Err(Status::BUFFER_TOO_SMALL);
    }
    call.write_user(buffer, data)
}

fn create_debug_object(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: crate::object::support::AttributesPtr,
    flags: u32,
) -> Result<Status, Status> {
    /// DEBUG_KILL_ON_CLOSE.
    const KILL_ON_CLOSE: u32 = 1;
    out.write(call, Handle::NULL)?;
    if flags & !KILL_ON_CLOSE != 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    call.create_object(out, access, attributes, crate::object::Body::DebugObject)
}

fn refuse_debugging(_call: &mut Call<'_, '_>, _process: Handle, _debug: Handle) -> Status {
    Status::ACCESS_DENIED
}

fn refuse_kernel_debugging(
    _call: &mut Call<'_, '_>,
    _command: u32,
    _input: u64,
    _input_length: u32,
    _output: u64,
    _output_length: u32,
    _returned: UserPtr<u32>,
) -> Status {
    Status::DEBUGGER_INACTIVE
}

fn refuse_driver(_call: &mut Call<'_, '_>, _name: UserPtr<crate::strings::UnicodeString>) -> Status {
    Status::PRIVILEGE_NOT_HELD
}

fn refuse_shutdown(_call: &mut Call<'_, '_>, _action: u32) -> Status {
    Status::PRIVILEGE_NOT_HELD
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
