//! `ntdll.dll` and `win32u.dll` with Windows 7's service stubs.
//!
//! The stubs are the article's (`mov r10,rcx; mov eax,n; syscall; ret`), sixteen bytes apart in the order of their
//! numbers, so that `NtCreateFile` (52h) lies at 00000000`76f50400. Beside them `ntdll` has the entry points that the
//! kernel starts user code at. It has no image loader and no exception handlers: programs that use it are bound in
//! advance (see [`crate::demo`]), and an exception ends the process with its code.

use iced_x86::code_asm::*;
use object::pe;

use crate::assemble::{Code64, Piece, size_symbols};
use crate::kernel::{KernelConfig, ServiceEntry};
use crate::pe::{PeImage, Section, SectionKind};
use crate::{Build, BuildError, UserImage};

/// Base of `ntdll.dll`.
pub const NTDLL_BASE: u64 = 0x76F4_0000;
/// Base of `win32u.dll`.
pub const WIN32U_BASE: u64 = 0x76E4_0000;

/// Stub 0; stub 52h is then at 76f50400.
const NTDLL_STUBS: u64 = 0x76F4_FEE0;
const STUB_STRIDE: u64 = 0x10;
const TEXT_RVA: u64 = 0x1000;
/// First number of the shadow table.
const FIRST_GUI_NUMBER: u32 = 0x1000;

/// NtCurrentProcess() and NtCurrentThread().
const CURRENT_PROCESS: i64 = -1;
const CURRENT_THREAD: i64 = -2;
/// Offset of the EXCEPTION_RECORD from the CONTEXT that KiUserExceptionDispatcher finds at RSP.
const EXCEPTION_RECORD: i32 = 0x4F0;

/// The first services of Windows 7 x64 in the order of their numbers, with their argument counts.
#[rustfmt::skip]
pub const WINDOWS7_SERVICES: [(&str, u8); 0x60] = [
    ("NtMapUserPhysicalPagesScatter", 3),
    ("NtWaitForSingleObject", 3),
    ("NtCallbackReturn", 3),
    ("NtReadFile", 9),
    ("NtDeviceIoControlFile", 10),
    ("NtWriteFile", 9),
    ("NtRemoveIoCompletion", 5),
    ("NtReleaseSemaphore", 3),
    ("NtReplyWaitReceivePort", 4),
    ("NtReplyPort", 2),
    ("NtSetInformationThread", 4),
    ("NtSetEvent", 2),
    ("NtClose", 1),
    ("NtQueryObject", 5),
    ("NtQueryInformationFile", 5),
    ("NtOpenKey", 3),
    ("NtEnumerateValueKey", 6),
    ("NtFindAtom", 3),
    ("NtQueryDefaultLocale", 2),
    ("NtQueryKey", 5),
    ("NtQueryValueKey", 6),
    ("NtAllocateVirtualMemory", 6),
    ("NtQueryInformationProcess", 5),
    ("NtWaitForMultipleObjects32", 5),
    ("NtWriteFileGather", 9),
    ("NtSetInformationProcess", 4),
    ("NtCreateKey", 7),
    ("NtFreeVirtualMemory", 4),
    ("NtImpersonateClientOfPort", 2),
    ("NtReleaseMutant", 2),
    ("NtQueryInformationToken", 5),
    ("NtRequestWaitReplyPort", 3),
    ("NtQueryVirtualMemory", 6),
    ("NtOpenThreadToken", 4),
    ("NtQueryInformationThread", 5),
    ("NtOpenProcess", 4),
    ("NtSetInformationFile", 5),
    ("NtMapViewOfSection", 10),
    ("NtAccessCheckAndAuditAlarm", 11),
    ("NtUnmapViewOfSection", 2),
    ("NtReplyWaitReceivePortEx", 5),
    ("NtTerminateProcess", 2),
    ("NtSetEventBoostPriority", 1),
    ("NtReadFileScatter", 9),
    ("NtOpenThreadTokenEx", 5),
    ("NtOpenProcessTokenEx", 4),
    ("NtQueryPerformanceCounter", 2),
    ("NtEnumerateKey", 6),
    ("NtOpenFile", 6),
    ("NtDelayExecution", 2),
    ("NtQueryDirectoryFile", 11),
    ("NtQuerySystemInformation", 4),
    ("NtOpenSection", 3),
    ("NtQueryTimer", 5),
    ("NtFsControlFile", 10),
    ("NtWriteVirtualMemory", 5),
    ("NtCloseObjectAuditAlarm", 3),
    ("NtDuplicateObject", 7),
    ("NtQueryAttributesFile", 2),
    ("NtClearEvent", 1),
    ("NtReadVirtualMemory", 5),
    ("NtOpenEvent", 3),
    ("NtAdjustPrivilegesToken", 6),
    ("NtDuplicateToken", 6),
    ("NtContinue", 2),
    ("NtQueryDefaultUILanguage", 1),
    ("NtQueueApcThread", 5),
    ("NtYieldExecution", 0),
    ("NtAddAtom", 3),
    ("NtCreateEvent", 5),
    ("NtQueryVolumeInformationFile", 5),
    ("NtCreateSection", 7),
    ("NtFlushBuffersFile", 2),
    ("NtApphelpCacheControl", 2),
    ("NtCreateProcessEx", 9),
    ("NtCreateThread", 8),
    ("NtIsProcessInJob", 2),
    ("NtProtectVirtualMemory", 5),
    ("NtQuerySection", 5),
    ("NtResumeThread", 2),
    ("NtTerminateThread", 2),
    ("NtReadRequestData", 6),
    ("NtCreateFile", 11),
    ("NtQueryEvent", 5),
    ("NtWriteRequestData", 6),
    ("NtOpenDirectoryObject", 3),
    ("NtAccessCheckByTypeAndAuditAlarm", 16),
    ("NtQuerySystemTime", 1),
    ("NtWaitForMultipleObjects", 5),
    ("NtSetInformationObject", 4),
    ("NtCancelIoFile", 2),
    ("NtTraceEvent", 4),
    ("NtPowerInformation", 5),
    ("NtSetValueKey", 6),
    ("NtCancelTimer", 2),
    ("NtSetTimer", 7),
];

/// The first shadow services of Windows 7 x64, from 1000h on, with their argument counts.
#[rustfmt::skip]
pub const WINDOWS7_GUI_SERVICES: [(&str, u8); 0x20] = [
    ("NtUserGetThreadState", 1),
    ("NtUserPeekMessage", 5),
    ("NtUserCallOneParam", 2),
    ("NtUserGetKeyState", 1),
    ("NtUserInvalidateRect", 3),
    ("NtUserCallNoParam", 1),
    ("NtUserGetMessage", 4),
    ("NtUserMessageCall", 7),
    ("NtGdiBitBlt", 11),
    ("NtGdiGetCharSet", 1),
    ("NtUserGetDC", 1),
    ("NtGdiSelectBitmap", 2),
    ("NtUserWaitMessage", 0),
    ("NtUserTranslateMessage", 2),
    ("NtUserGetProp", 2),
    ("NtUserPostMessage", 4),
    ("NtUserQueryWindow", 2),
    ("NtUserTranslateAccelerator", 3),
    ("NtGdiFlush", 0),
    ("NtUserRedrawWindow", 4),
    ("NtUserWindowFromPoint", 1),
    ("NtUserCallMsgFilter", 2),
    ("NtUserValidateTimerCallback", 3),
    ("NtUserBeginPaint", 2),
    ("NtUserSetTimer", 4),
    ("NtUserEndPaint", 2),
    ("NtUserSetCursor", 1),
    ("NtUserKillTimer", 2),
    ("NtUserBuildHwndList", 7),
    ("NtUserSelectPalette", 3),
    ("NtUserCallNextHookEx", 4),
    ("NtUserHideCaret", 1),
];

/// Number of a service in the tables above.
#[must_use]
pub fn windows7_service_number(name: &str) -> Option<u32> {
    let position = |table: &[(&str, u8)]| table.iter().position(|(service, _)| *service == name);
    match position(&WINDOWS7_SERVICES) {
        Some(index) => Some(index as u32),
        None => position(&WINDOWS7_GUI_SERVICES).map(|index| FIRST_GUI_NUMBER + index as u32),
    }
}

impl KernelConfig {
    /// The kernel that goes with [`ntdll`] and [`win32u`].
    #[must_use]
    pub fn windows7() -> Self {
        let entries = |table: &[(&str, u8)]| {
            table.iter().map(|(name, arguments)| Some(ServiceEntry::new(*name, *arguments))).collect()
        };
        Self {
            build: Build::Windows7,
            services: entries(&WINDOWS7_SERVICES),
            shadow_services: entries(&WINDOWS7_GUI_SERVICES),
        }
    }
}

/// Builds `ntdll.dll`.
///
/// # Errors
/// If the assembler or the PE writer fails.
pub fn ntdll() -> Result<UserImage, BuildError> {
    let stub = |name: &str| {
        let index = WINDOWS7_SERVICES.iter().position(|(service, _)| *service == name).unwrap_or_default();
        NTDLL_STUBS + index as u64 * STUB_STRIDE
    };
    let mut a = Piece::new()?;

    // RCX = CONTEXT to start with. There is nothing to load.
    a.mark("LdrInitializeThunk")?;
    a.sub(rsp, 0x28)?;
    a.mov(edx, 1)?;
    a.call(stub("NtContinue"))?;
    a.mov(edx, eax)?;
    a.mov(rcx, CURRENT_THREAD)?;
    a.call(stub("NtTerminateThread"))?;
    a.int3()?;

    // RCX = start address, RDX = its argument. The first thread's return ends the process.
    a.mark("RtlUserThreadStart")?;
    a.sub(rsp, 0x28)?;
    a.mov(rax, rcx)?;
    a.mov(rcx, rdx)?;
    a.call(rax)?;
    a.mov(edx, eax)?;
    a.mov(rcx, CURRENT_PROCESS)?;
    a.call(stub("NtTerminateProcess"))?;
    a.int3()?;

    // RSP = CONTEXT, followed by the EXCEPTION_RECORD, whose first field is the code.
    a.mark("KiUserExceptionDispatcher")?;
    a.mov(edx, dword_ptr(rsp + EXCEPTION_RECORD))?;
    a.mov(rcx, CURRENT_PROCESS)?;
    a.call(stub("NtTerminateProcess"))?;
    a.int3()?;

    // RSP = CONTEXT; its home slots hold the three arguments and the routine, and are the routine's home slots.
    a.mark("KiUserApcDispatcher")?;
    a.mov(rcx, qword_ptr(rsp))?;
    a.mov(rdx, qword_ptr(rsp + 8))?;
    a.mov(r8, qword_ptr(rsp + 0x10))?;
    a.mov(r9, rsp)?;
    a.call(qword_ptr(rsp + 0x18))?;
    a.mov(rcx, rsp)?;
    a.mov(edx, 1)?;
    a.call(stub("NtContinue"))?;
    a.int3()?;

    a.mark("DbgBreakPoint")?;
    a.int3()?;
    a.ret()?;

    let entry_points = a.finish(NTDLL_BASE + TEXT_RVA)?;
    stub_image("ntdll.dll", NTDLL_BASE, Some(entry_points), NTDLL_STUBS, 0, &WINDOWS7_SERVICES)
}

/// Builds `win32u.dll`.
///
/// # Errors
/// If the assembler or the PE writer fails.
pub fn win32u() -> Result<UserImage, BuildError> {
    let stubs = WIN32U_BASE + TEXT_RVA;
    stub_image("win32u.dll", WIN32U_BASE, None, stubs, FIRST_GUI_NUMBER, &WINDOWS7_GUI_SERVICES)
}

fn stub_image(
    name: &'static str,
    base: u64,
    entry_points: Option<Code64>,
    stubs: u64,
    first_number: u32,
    services: &[(&str, u8)],
) -> Result<UserImage, BuildError> {
    let mut text = entry_points.unwrap_or(Code64 { address: base + TEXT_RVA, bytes: Vec::new(), symbols: Vec::new() });
    text.bytes.resize((stubs - text.address) as usize, 0xCC);
    for (number, (service, _)) in (first_number..).zip(services) {
        let mut a = Piece::new()?;
        a.mark(*service)?;
        a.db(&[0x4C, 0x8B, 0xD1])?;
        a.mov(eax, number)?;
        a.syscall()?;
        a.ret()?;
        a.nops_with_size((STUB_STRIDE - 11) as usize)?;
        let stub = a.finish(text.end())?;
        text.bytes.extend(stub.bytes);
        text.symbols.extend(stub.symbols);
    }
    let end = text.end();
    size_symbols(&mut text.symbols, end);
    let mut symbols = text.symbols;
    let zw: Vec<_> = symbols
        .iter()
        .filter(|_| first_number == 0)
        .filter_map(|symbol| {
            let mut alias = symbol.clone();
            alias.name = format!("Zw{}", symbol.name.strip_prefix("Nt")?);
            Some(alias)
        })
        .collect();
    symbols.extend(zw);
    symbols.sort_by(|a, b| (a.address, &a.name).cmp(&(b.address, &b.name)));
    let pe = PeImage {
        dll: true,
        subsystem: pe::IMAGE_SUBSYSTEM_WINDOWS_CUI,
        base,
        entry_rva: 0,
        exports: symbols.iter().map(|symbol| (symbol.name.clone(), (symbol.address - base) as u32)).collect(),
        sections: vec![Section { name: ".text", kind: SectionKind::Code, rva: TEXT_RVA as u32, bytes: text.bytes }],
        export_name: Some(name),
        imports: None,
        import_addresses: None,
    }
    .write()?;
    Ok(UserImage { name, pe, base, entry: None, symbols })
}
