//! The least of win32k that programs without windows touch, as a non-interactive window station answers.
//!
//! Results are values, not statuses. There is no desktop: handles are 0, and everything that would make or find a
//! window fails the way its caller expects. Services that are not here answer STATUS_NOT_IMPLEMENTED like all others.

use crate::object::Handle;
use crate::service::Call;
use crate::services;
use crate::status::Status;

services! { pub SERVICES;
    /// Dots per inch for a process.
    NtUserGetSystemDpiForProcess(process: Handle) = system_dpi;
    /// DPI awareness of a process: unaware.
    NtUserGetProcessDpiAwarenessContext(process: Handle) = dpi_awareness;
    /// Tells the addresses of user32's window procedures, which nobody here calls.
    NtUserInitializeClientPfnArrays(ansi: u64, unicode: u64, workers: u64, module: u64) = accept_4;
    /// Calls by number without parameter: session, menus, cursor, clipboard.
    NtUserCallNoParam(code: u32) = zero_1;
    /// Calls by number with one parameter: metrics, colours, cursors.
    NtUserCallOneParam(argument: u64, code: u32) = call_one_param;
    /// Input state of the thread: no window, no capture, no queue.
    NtUserGetThreadState(class: u32) = zero_1;
    /// Window station of the process: none.
    NtUserGetProcessWindowStation() = zero_0;
    /// Desktop of a thread: none.
    NtUserGetThreadDesktop(thread: u32) = zero_1;
    /// Foreground window: none.
    NtUserGetForegroundWindow() = zero_0;
    /// A loaded cursor or icon: none is loaded.
    NtUserFindExistingCursorIcon(module: u64, name: u64, description: u64) = zero_3;
    /// Parameters of the desktop: not available.
    NtUserSystemParametersInfo(action: u32, value: u32, pointer: u64, update: u32) = zero_4;
}

/// USER_DEFAULT_SCREEN_DPI.
const DPI: u32 = 96;
/// DPI_AWARENESS_CONTEXT of an unaware process.
const UNAWARE: u32 = 0x6010;

fn system_dpi(_call: &mut Call<'_, '_>, _process: Handle) -> Status {
    Status(DPI)
}

fn dpi_awareness(_call: &mut Call<'_, '_>, _process: Handle) -> Status {
    Status(UNAWARE)
}

fn accept_4(_call: &mut Call<'_, '_>, _ansi: u64, _unicode: u64, _workers: u64, _module: u64) -> Status {
    Status::SUCCESS
}

fn call_one_param(_call: &mut Call<'_, '_>, _argument: u64, _code: u32) -> Status {
    Status(0)
}

fn zero_0(_call: &mut Call<'_, '_>) -> Status {
    Status(0)
}

fn zero_1(_call: &mut Call<'_, '_>, _value: u32) -> Status {
    Status(0)
}

fn zero_3(_call: &mut Call<'_, '_>, _first: u64, _second: u64, _third: u64) -> Status {
    Status(0)
}

fn zero_4(_call: &mut Call<'_, '_>, _first: u32, _second: u32, _third: u64, _fourth: u32) -> Status {
    Status(0)
}
