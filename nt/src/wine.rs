//! Wine's private interfaces: what its PE DLLs expect of their Unix side, and nothing else.
//!
//! The DLLs reach their Unix libraries through a pointer that ntdll exports, `__wine_unix_call_dispatcher`. It is made
//! to point at a page of guest code that enters the kernel by a service of its own behind the last one of ntdll, so that
//! these calls take the same privilege switch and the same trace as every other one. There are no Unix libraries: calls
//! to ntdll's own table are served as far as they must be, others are refused.

use crate::service::Call;
use crate::status::Status;
use crate::user_ptr::{UserBuffer, UserPtr};

crate::services! {
    pub SERVICES;
    /// A call of a Unix library's function by handle and code, with a pointer to its arguments.
    LstarUnixCall(handle: u64, code: u32, arguments: UserPtr<u8>) = unix_call;
    /// Wine's conversion of an NT path to a host path: no host path is ever told.
    wine_nt_to_unix_file_name(attributes: UserPtr<u8>, name: UserPtr<u8>, size: UserPtr<u32>, disposition: u32) = nt_to_unix_file_name;
    /// Wine's conversion of a host path to an NT path.
    wine_unix_to_nt_file_name(name: UserPtr<u8>, buffer: UserPtr<u16>, size: UserPtr<u32>) = unix_to_nt_file_name;
}

/// Name under which `unix_call` is in the service table.
pub const UNIX_CALL: &str = "LstarUnixCall";
/// Export that holds the address of the dispatcher.
pub const DISPATCHER_EXPORT: &str = "__wine_unix_call_dispatcher";
/// Export that holds ntdll's own library handle.
pub const HANDLE_EXPORT: &str = "__wine_unixlib_handle";

/// Handle of ntdll's own functions.
pub const NTDLL_HANDLE: u64 = 0x6E74_646C;
/// Handle of every other library.
const OTHER_HANDLE: u64 = 0x756E_6978;
/// Handle of ws2_32's library: names of hosts.
const WS2_32_HANDLE: u64 = 0x7773_3332;

/// Codes of ntdll's functions.
mod code {
    pub const UNWIND_BUILTIN_DLL: u32 = 1;
    pub const DEBUG_WRITE: u32 = 2;
    pub const SYSTEM_TIME_PRECISE: u32 = 7;
}

/// Code of `attach` in most libraries: they refuse to load when it fails.
const ATTACH: u32 = 0;
/// Longest text of one debug write that is passed on.
const MAX_DEBUG_WRITE: u64 = 0x1_0000;

/// Adds the variables that Wine's user-mode DLLs take facts from: advapi32 knows the user's name by one.
pub fn complete_environment(environment: &mut Vec<(String, String)>) {
    const USER_NAME: &str = "WINEUSERNAME";
    let value = |name: &str| environment.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
    if value(USER_NAME).is_none() {
        let user = value("USERNAME").map_or_else(|| "user".to_owned(), |(_, value)| value.clone());
        environment.push((USER_NAME.to_owned(), user));
    }
}

/// `mov r10,rcx; mov eax,number; syscall; ret`: the page that the dispatcher pointer leads to.
#[must_use]
pub fn gate_code(number: u32) -> Vec<u8> {
    let mut code = vec![0x4C, 0x8B, 0xD1, 0xB8];
    code.extend(number.to_le_bytes());
    code.extend([0x0F, 0x05, 0xC3]);
    code
}

/// MemoryWineUnixFuncs: a cookie that stands for the Unix functions of the module at an address.
pub fn query_unix_functions(call: &mut Call<'_, '_>, address: u64, output: UserBuffer) -> Result<u32, Status> {
    let module = call.kernel.memory.module_at(address).ok_or(Status::INVALID_ADDRESS)?;
    let named = |(_, name): (u64, &str)| name.eq_ignore_ascii_case("ws2_32.dll");
    let handle = if named(module) { WS2_32_HANDLE } else { OTHER_HANDLE };
    output.write_struct(call, &handle)
}

fn unix_call(call: &mut Call<'_, '_>, handle: u64, code: u32, arguments: UserPtr<u8>) -> Result<Status, Status> {
    match (handle, code) {
        // No frame is a builtin Unix one.
        (NTDLL_HANDLE, code::UNWIND_BUILTIN_DLL) => Err(Status::UNSUCCESSFUL),
        (NTDLL_HANDLE, code::DEBUG_WRITE) => {
            let [text, length] = arguments.cast::<[u64; 2]>().read(call)?;
            let length = (length & 0xFFFF_FFFF).min(MAX_DEBUG_WRITE);
            let bytes = UserBuffer::new(text, length).read(call)?;
            call.kernel.debug_output(&bytes);
            // The result is the number of bytes written.
            Ok(Status(length as u32))
        }
        (NTDLL_HANDLE, code::SYSTEM_TIME_PRECISE) => {
            let now = call.kernel.clock.system_time();
            arguments.cast::<i64>().write(call, now)?;
            Ok(Status::SUCCESS)
        }
        (WS2_32_HANDLE, code) => Ok(crate::io::afd::names::unix_call(call, code, arguments.address())),
        (OTHER_HANDLE, ATTACH) => Ok(Status::SUCCESS),
        _ => Err(Status::NOT_SUPPORTED),
    }
}

fn nt_to_unix_file_name(
    _call: &mut Call<'_, '_>,
    _attributes: UserPtr<u8>,
    _name: UserPtr<u8>,
    _size: UserPtr<u32>,
    _disposition: u32,
) -> Status {
    Status::NOT_IMPLEMENTED
}

fn unix_to_nt_file_name(
    _call: &mut Call<'_, '_>,
    _name: UserPtr<u8>,
    _buffer: UserPtr<u16>,
    _size: UserPtr<u32>,
) -> Status {
    Status::NOT_IMPLEMENTED
}
