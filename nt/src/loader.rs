//! What the kernel prepares in user space before a thread's first instruction: TEB, PEB, process parameters,
//! KUSER_SHARED_DATA, the API-set map, the initial CONTEXT. Everything else is ntdll's own loader's work.

use lstar_arch::cpuid::Features;
use lstar_arch::{CpuModel, Gpr, Privilege};
use lstar_runtime::AddressSpace;

use crate::context::{CONTEXT_SIZE, UserContext, flags};
use crate::kernel::Kernel;
use crate::memory::section::Section;
use crate::memory::{PageProtection, Placement, exports::ImageReader};
use crate::registry::value_type;
use crate::service::Handle;
use crate::status::Status;
use crate::strings::{UnicodeString, utf16_bytes};
use crate::thread::ThreadId;
use crate::user_ptr::GuestValue;

/// KUSER_SHARED_DATA, the same in every Windows process.
pub const USER_SHARED_DATA: u64 = 0x7FFE_0000;
/// Bytes of a TEB with what Wine's ntdll keeps behind it.
const TEB_SIZE: u64 = 0x4000;
/// Bytes of a PEB with what Wine's ntdll keeps behind it.
const PEB_SIZE: u64 = 0x1_0000;

/// The Windows version that the process sees: Windows 10, 19045.
pub mod version {
    /// Major version.
    pub const MAJOR: u32 = 10;
    /// Minor version.
    pub const MINOR: u32 = 0;
    /// Build.
    pub const BUILD: u32 = 19045;
    /// VER_PLATFORM_WIN32_NT.
    pub const PLATFORM: u32 = 2;
}

/// Offsets in the TEB.
mod teb {
    pub const STACK_BASE: u64 = 0x8;
    pub const STACK_LIMIT: u64 = 0x10;
    pub const SELF: u64 = 0x30;
    pub const CLIENT_ID: u64 = 0x40;
    pub const PEB: u64 = 0x60;
    pub const CURRENT_LOCALE: u64 = 0x108;
    pub const ACTIVATION_STACK: u64 = 0x290;
    pub const ACTIVATION_STACK_POINTER: u64 = 0x2C8;
    pub const REAL_CLIENT_ID: u64 = 0x7D8;
    pub const STATIC_STRING: u64 = 0x1258;
    pub const STATIC_BUFFER: u64 = 0x1268;
    pub const DEALLOCATION_STACK: u64 = 0x1478;
}

/// Sizes of a thread's stack.
#[derive(Clone, Copy, Debug)]
pub struct TebParameters {
    /// Bytes reserved.
    pub stack_reserve: u64,
    /// Bytes committed at first.
    pub stack_commit: u64,
    /// Where the stack may lie.
    pub stack_placement: Placement,
}

/// A thread's user-mode memory.
#[derive(Clone, Copy, Debug)]
pub struct PreparedThread {
    /// TEB.
    pub teb: u64,
    /// Start of the stack's allocation.
    pub stack: u64,
    /// StackBase.
    pub stack_top: u64,
}

/// Largest stack a header or caller can ask for.
const MAX_STACK: u64 = 1 << 40;

/// Makes TEB and stack of a thread.
pub fn prepare_thread(
    kernel: &mut Kernel,
    space: &mut AddressSpace,
    id: ThreadId,
    parameters: TebParameters,
) -> Result<PreparedThread, Status> {
    if parameters.stack_reserve.max(parameters.stack_commit) > MAX_STACK {
        return Err(Status::INVALID_PARAMETER);
    }
    let address = kernel.memory.allocate(space, TEB_SIZE, PageProtection::READWRITE, Placement::default())?;
    let TebParameters { stack_reserve, stack_commit, stack_placement } = parameters;
    let reserved = kernel.memory.allocate_stack(space, address, stack_reserve, stack_commit, stack_placement);
    let (stack, limit) = match reserved {
        Ok(stack) => stack,
        Err(status) => {
            kernel.memory.release(space, address);
            return Err(status);
        }
    };
    let client = [u64::from(kernel.process.id), u64::from(id)];
    let list = address + teb::ACTIVATION_STACK + 8;
    for (offset, value) in [
        (teb::STACK_BASE, stack.end),
        (teb::STACK_LIMIT, limit),
        (teb::SELF, address),
        (teb::CLIENT_ID, client[0]),
        (teb::CLIENT_ID + 8, client[1]),
        (teb::PEB, kernel.process.peb),
        (teb::CURRENT_LOCALE, u64::from(kernel.system.user_locale)),
        // An activation context stack whose frame list is empty.
        (teb::ACTIVATION_STACK_POINTER, address + teb::ACTIVATION_STACK),
        (teb::ACTIVATION_STACK + 8, list),
        (teb::ACTIVATION_STACK + 16, list),
        (teb::REAL_CLIENT_ID, client[0]),
        (teb::REAL_CLIENT_ID + 8, client[1]),
        (teb::STATIC_STRING, 522 << 16),
        (teb::STATIC_STRING + 8, address + teb::STATIC_BUFFER),
        (teb::DEALLOCATION_STACK, stack.start),
    ] {
        space.write_unchecked(address + offset, &value.to_le_bytes())?;
    }
    Ok(PreparedThread { teb: address, stack: stack.start, stack_top: stack.end })
}

/// Writes the CONTEXT that LdrInitializeThunk continues with, at the top of a stack; returns its address. RCX and RDX
/// are the arguments of the routine at RIP.
pub fn write_initial_context(
    kernel: &mut Kernel,
    space: &mut AddressSpace,
    stack_top: u64,
    [rcx, rdx, rip]: [u64; 3],
) -> Result<u64, Status> {
    let sp = stack_top - 0x28;
    let address = (sp - CONTEXT_SIZE as u64) & !63;
    let mut user = UserContext { rip, ..UserContext::of_new_thread() };
    user.set_reg(Gpr::Rcx, rcx);
    user.set_reg(Gpr::Rdx, rdx);
    user.set_reg(Gpr::Rsp, sp);
    let mut bytes = [0; CONTEXT_SIZE];
    user.store(&mut bytes, flags::AMD64 | flags::CONTROL | flags::INTEGER | flags::SEGMENTS | flags::FLOATING_POINT);
    kernel.memory.write(space, address, &bytes, Privilege::User)?;
    Ok(address)
}

/// Values of KUSER_SHARED_DATA that the kernel keeps up to date.
mod shared {
    pub const INTERRUPT_TIME: u64 = 0x8;
    pub const SYSTEM_TIME: u64 = 0x14;
    pub const TICK_COUNT: u64 = 0x320;
}

/// Maps KUSER_SHARED_DATA.
pub fn map_shared_data(kernel: &mut Kernel, space: &mut AddressSpace) -> Result<(), Status> {
    let frames = std::sync::Arc::clone(&kernel.shared_data);
    kernel.memory.map_kernel_frames(space, USER_SHARED_DATA, &frames, PageProtection::READONLY)
}

/// Fills KUSER_SHARED_DATA with everything that does not change.
pub fn fill_shared_data(kernel: &Kernel, model: &CpuModel) {
    // The frames are as large as a page; the offsets are constants inside it.
    let fill = |offset: u64, bytes: &[u8]| {
        let _ = kernel.shared_data.fill(offset, bytes);
    };
    let mut root = utf16_bytes("C:\\windows");
    root.extend([0, 0]);
    fill(0x30, &root);
    for (offset, value) in [
        // TickCountMultiplier: ticks of one millisecond.
        (0x4, 0x0100_0000_u32),
        // ImageNumberLow and ImageNumberHigh: AMD64.
        (0x2C, 0x8664_8664),
        // LargePageMinimum.
        (0x244, 0x20_0000),
        (0x260, version::BUILD),
        // NtProductType: a workstation; and that this is valid.
        (0x264, 1),
        (0x268, 1),
        (0x26C, version::MAJOR),
        (0x270, version::MINOR),
        // SuiteMask: single user terminal services.
        (0x2D0, 0x100),
        (0x2E8, 0x10_0000),
        // QpcFrequency.
        (0x300, crate::time::PERFORMANCE_FREQUENCY as u32),
        // SystemCall: stubs execute SYSCALL.
        (0x308, 0),
        // Cookie.
        (0x330, kernel.process.cookie),
        // ActiveProcessorCount.
        (0x3C0, 1),
        // ActiveGroupCount, a byte.
        (0x3C4, 1),
    ] {
        fill(offset, &value.to_le_bytes());
    }
    fill(0x274, &processor_features(model));
    update_shared_data(kernel);
}

/// KUSER_SHARED_DATA.ProcessorFeatures (PF_* indices of winnt.h).
fn processor_features(model: &CpuModel) -> [u8; 64] {
    // CMPXCHG8B, MMX, SSE, RDTSC, PAE, SSE2, NX, fast fail.
    const BASE: [usize; 8] = [2, 3, 6, 8, 9, 10, 12, 23];
    const OPTIONAL: [(usize, Features); 11] = [
        (13, Features::SSE3),
        (14, Features::CX16),
        (17, Features::XSAVE),
        (22, Features::FSGSBASE),
        (28, Features::RDRAND),
        (32, Features::RDTSCP),
        (36, Features::SSSE3),
        (37, Features::SSE4_1),
        (38, Features::SSE4_2),
        (39, Features::AVX),
        (40, Features::AVX2),
    ];
    let mut features = [0; 64];
    let optional = OPTIONAL.iter().filter(|(_, feature)| model.features.contains(*feature)).map(|(index, _)| *index);
    for index in BASE.into_iter().chain(optional) {
        features[index] = 1;
    }
    features
}

/// Brings the clock fields of KUSER_SHARED_DATA up to date: KSYSTEM_TIME values, whose second high part is written
/// first and compared by readers.
pub fn update_shared_data(kernel: &Kernel) {
    let interrupt = kernel.clock.interrupt_time();
    let system = kernel.clock.system_time() as u64;
    for (offset, value) in
        [(shared::INTERRUPT_TIME, interrupt), (shared::SYSTEM_TIME, system), (shared::TICK_COUNT, interrupt / 10_000)]
    {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        bytes[8..].copy_from_slice(&value.to_le_bytes()[4..]);
        // As in `fill_shared_data`.
        let _ = kernel.shared_data.fill(offset, &bytes);
    }
}

/// Offsets in the PEB.
mod peb {
    pub const IMAGE_BASE: u64 = 0x10;
    pub const PARAMETERS: u64 = 0x20;
    pub const API_SET_MAP: u64 = 0x68;
    pub const PROCESSOR_COUNT: u64 = 0xB8;
    pub const GLOBAL_FLAG: u64 = 0xBC;
    pub const CRITICAL_SECTION_TIMEOUT: u64 = 0xC0;
    pub const HEAP_SEGMENT_RESERVE: u64 = 0xC8;
    pub const OS_MAJOR: u64 = 0x118;
    pub const OS_BUILD: u64 = 0x120;
    pub const OS_PLATFORM: u64 = 0x124;
    pub const SUBSYSTEM: u64 = 0x128;
    pub const SESSION: u64 = 0x2C0;
}

/// Allocates the PEB; [`fill_peb`] fills it once the rest is known.
pub fn allocate_peb(kernel: &mut Kernel, space: &mut AddressSpace) -> Result<u64, Status> {
    kernel.memory.allocate(space, PEB_SIZE, PageProtection::READWRITE, Placement::default())
}

/// NtGlobalFlag: the system's, or what is set for programs of this name.
fn global_flag(kernel: &Kernel) -> u32 {
    const SYSTEM: &str = "Machine\\System\\CurrentControlSet\\Control\\Session Manager";
    const PROGRAMS: &str = "Machine\\Software\\Microsoft\\Windows NT\\CurrentVersion\\Image File Execution Options";
    let registry = &kernel.registry;
    let flag = |path: &str| {
        let key = registry.open(registry.root(), path).ok()?;
        let value = registry.key(key).ok()?.value("GlobalFlag")?;
        match value.kind {
            value_type::DWORD => Some(u32::from_le_bytes(value.data.get(..4)?.try_into().ok()?)),
            value_type::SZ => {
                let units: Vec<u16> =
                    value.data.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
                let text = String::from_utf16_lossy(&units);
                let digits = text.trim_end_matches('\0').trim();
                u32::from_str_radix(digits.trim_start_matches("0x").trim_start_matches("0X"), 16).ok()
            }
            _ => None,
        }
    };
    let of_program = flag(&format!("{PROGRAMS}\\{}", kernel.process.file_name()));
    of_program.or_else(|| flag(SYSTEM)).unwrap_or(0)
}

/// Fills the PEB.
pub fn fill_peb(kernel: &Kernel, space: &mut AddressSpace, parameters: u64, api_set_map: u64) -> Result<(), Status> {
    /// Thirty days, relative.
    const CRITICAL_SECTION_TIMEOUT: i64 = -30 * 24 * 3600 * 10_000_000;
    let headers = kernel.process.image.image().ok_or(Status::SECTION_NOT_IMAGE)?;
    let heap = [0x10_0000, 0x2000, 0x1_0000, 0x1000];
    let wide = [
        (peb::IMAGE_BASE, kernel.process.image_base),
        (peb::PARAMETERS, parameters),
        (peb::API_SET_MAP, api_set_map),
        (peb::CRITICAL_SECTION_TIMEOUT, CRITICAL_SECTION_TIMEOUT as u64),
        (peb::HEAP_SEGMENT_RESERVE, heap[0]),
        (peb::HEAP_SEGMENT_RESERVE + 8, heap[1]),
        (peb::HEAP_SEGMENT_RESERVE + 16, heap[2]),
        (peb::HEAP_SEGMENT_RESERVE + 24, heap[3]),
    ];
    let narrow = [
        (peb::PROCESSOR_COUNT, 1),
        (peb::GLOBAL_FLAG, global_flag(kernel)),
        (peb::OS_MAJOR, version::MAJOR),
        (peb::OS_MAJOR + 4, version::MINOR),
        (peb::OS_BUILD, version::BUILD),
        (peb::OS_PLATFORM, version::PLATFORM),
        (peb::SUBSYSTEM, u32::from(headers.subsystem)),
        (peb::SUBSYSTEM + 4, u32::from(headers.subsystem_version.0)),
        (peb::SUBSYSTEM + 8, u32::from(headers.subsystem_version.1)),
        (peb::SESSION, kernel.system.session),
    ];
    let base = kernel.process.peb;
    for (offset, value) in wide {
        space.write_unchecked(base + offset, &u64::to_le_bytes(value))?;
    }
    for (offset, value) in narrow {
        space.write_unchecked(base + offset, &u32::to_le_bytes(value))?;
    }
    Ok(())
}

/// Maps the `.apiset` section of apisetschema.dll; 0 when there is none.
pub fn map_api_set(kernel: &mut Kernel, space: &mut AddressSpace, schema: &Section) -> Result<u64, Status> {
    let Some(part) = schema.image().and_then(|headers| headers.parts.iter().find(|part| part.name == ".apiset")) else {
        return Ok(0);
    };
    let Some(bytes) = ImageReader::new(schema).read(part.rva, part.file_size as usize) else { return Ok(0) };
    let size = bytes.len().max(1) as u64;
    let address = kernel.memory.allocate(space, size, PageProtection::READONLY, Placement::default())?;
    space.write_unchecked(address, &bytes)?;
    Ok(address)
}

/// What a process starts with.
#[derive(Clone, Debug)]
pub struct StartParameters {
    /// The program ("C:\a.exe").
    pub image_path: String,
    /// The whole command line.
    pub command_line: String,
    /// Current directory, with a trailing backslash.
    pub current_directory: String,
    /// Environment, in any order.
    pub environment: Vec<(String, String)>,
    /// The console, if there is one.
    pub console: Option<Handle>,
    /// Standard input, output and error.
    pub standard_handles: [Handle; 3],
}

/// Offsets in RTL_USER_PROCESS_PARAMETERS.
mod parameter {
    pub const FLAGS: usize = 0x8;
    pub const CONSOLE_HANDLE: usize = 0x10;
    pub const STANDARD_INPUT: usize = 0x20;
    pub const CURRENT_DIRECTORY: usize = 0x38;
    pub const IMAGE_PATH: usize = 0x60;
    pub const COMMAND_LINE: usize = 0x70;
    pub const ENVIRONMENT: usize = 0x80;
    pub const SHOW_WINDOW: usize = 0xA8;
    pub const WINDOW_TITLE: usize = 0xB0;
    pub const DESKTOP: usize = 0xC0;
    pub const SHELL: usize = 0xD0;
    pub const ENVIRONMENT_SIZE: usize = 0x3F0;
    pub const SIZE: usize = 0x440;
}

/// Wine's console handle for "a console without a window, the shell's": no conhost is started.
pub const CONSOLE_HANDLE_SHELL_NO_WINDOW: u64 = -4i64 as u64;
/// Bytes of RTL_USER_PROCESS_PARAMETERS.
pub const PARAMETERS_SIZE: usize = parameter::SIZE;
/// Bytes of the current directory's buffer.
const CURRENT_DIRECTORY_CAPACITY: usize = 520;

/// Builds RTL_USER_PROCESS_PARAMETERS, normalised, with strings and environment behind it.
pub fn write_parameters(kernel: &mut Kernel, space: &mut AddressSpace, start: &StartParameters) -> Result<u64, Status> {
    let mut environment: Vec<_> = start.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    // The block is sorted by name without case, as CreateProcess requires.
    environment.sort_by_key(|entry| entry.to_uppercase());
    let mut block: Vec<u8> = environment.iter().flat_map(|entry| utf16_bytes(&format!("{entry}\0"))).collect();
    block.extend(utf16_bytes(if environment.is_empty() { "\0\0" } else { "\0" }));

    // DllPath and RuntimeData stay NULL: the loader then makes its own search path.
    let strings = [
        (parameter::CURRENT_DIRECTORY, start.current_directory.as_str(), CURRENT_DIRECTORY_CAPACITY),
        (parameter::IMAGE_PATH, &start.image_path, 0),
        (parameter::COMMAND_LINE, &start.command_line, 0),
        (parameter::WINDOW_TITLE, &start.image_path, 0),
        (parameter::DESKTOP, "WinSta0\\Default", 0),
        (parameter::SHELL, "", 0),
    ];
    let text: usize = strings.iter().map(|(_, text, capacity)| (text.len() * 2 + 2).max(*capacity) + 16).sum();
    let size = (parameter::SIZE + text + block.len() + 16) as u64;
    let address = kernel.memory.allocate(space, size, PageProtection::READWRITE, Placement::default())?;

    let mut bytes = vec![0; parameter::SIZE];
    for (offset, text, capacity) in strings {
        let text = utf16_bytes(text);
        let capacity = capacity.max(text.len() + 2);
        let string = UnicodeString {
            length: u16::try_from(text.len()).map_err(|_| Status::NAME_TOO_LONG)?,
            maximum_length: u16::try_from(capacity).map_err(|_| Status::NAME_TOO_LONG)?,
            buffer: address + bytes.len() as u64,
        };
        string.to_bytes(&mut bytes[offset..]);
        let end = (bytes.len() + capacity).next_multiple_of(16);
        bytes.extend(text);
        bytes.resize(end, 0);
    }
    let environment_address = address + bytes.len() as u64;
    let [input, output, error] = start.standard_handles.map(|handle| handle.0);
    let length = size as u32;
    [length, length].to_bytes(&mut bytes);
    for (offset, value) in [
        // RTL_USER_PROC_PARAMS_NORMALIZED.
        (parameter::FLAGS, 1),
        (parameter::CONSOLE_HANDLE, start.console.map_or(CONSOLE_HANDLE_SHELL_NO_WINDOW, |handle| handle.0)),
        (parameter::STANDARD_INPUT, input),
        (parameter::STANDARD_INPUT + 8, output),
        (parameter::STANDARD_INPUT + 16, error),
        (parameter::ENVIRONMENT, environment_address),
        // SW_SHOWNORMAL.
        (parameter::SHOW_WINDOW, 1),
        (parameter::ENVIRONMENT_SIZE, block.len() as u64),
    ] {
        value.to_bytes(&mut bytes[offset..]);
    }
    bytes.extend(block);
    space.write_unchecked(address, &bytes)?;
    Ok(address)
}

/// Joins a program and its arguments to a command line that the C runtime splits into the same arguments again.
#[must_use]
pub fn command_line(program: &str, arguments: &[String]) -> String {
    let mut line = format!("\"{program}\"");
    for argument in arguments {
        line.push(' ');
        quote(&mut line, argument);
    }
    line
}

/// Quotes where needed; backslashes count double before a quotation mark only.
fn quote(line: &mut String, argument: &str) {
    if !argument.is_empty() && !argument.contains([' ', '\t', '"', '\n', '\u{B}']) {
        line.push_str(argument);
        return;
    }
    line.push('"');
    let mut backslashes = 0;
    for character in argument.chars() {
        match character {
            '\\' => backslashes += 1,
            '"' => {
                line.extend(std::iter::repeat_n('\\', backslashes + 1));
                backslashes = 0;
            }
            _ => backslashes = 0,
        }
        line.push(character);
    }
    line.extend(std::iter::repeat_n('\\', backslashes));
    line.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_as_the_c_runtime_reads_them() {
        let arguments = ["plain", "two words", "", "say \"hi\"", "dir\\", "a b\\", "x\\\"y"].map(str::to_owned);
        assert_eq!(
            command_line("C:\\p.exe", &arguments),
            r#""C:\p.exe" plain "two words" "" "say \"hi\"" dir\ "a b\\" "x\\\"y""#
        );
    }
}
