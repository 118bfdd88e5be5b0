//! Services of the system as a whole: information, time, locale, atoms, identifiers, power, and refusals.

use crate::io::info::Bytes;
use crate::service::Call;
use crate::services;
use crate::status::Status;
use crate::strings::utf16_bytes;
use crate::time::PERFORMANCE_FREQUENCY;
use crate::user_ptr::{UserBuffer, UserMemory, UserPtr};

services! { pub SERVICES;
    /// Tells facts about the system.
    NtQuerySystemInformation(class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = crate::system_information::query_system;
    /// Tells facts about the system, given an input.
    NtQuerySystemInformationEx(class: u32, input: UserPtr<u32>, input_length: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = crate::system_information::query_system_ex;
    /// Changes facts about the system, none of which are the guest's.
    NtSetSystemInformation(class: u32, buffer: u64, length: u32) = crate::system_information::set_system;
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
pub(crate) const CLOCK_INTERVAL: u32 = 156_250;

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
