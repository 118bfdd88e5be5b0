//! The system-call path: entry from user mode and from kernel mode, service look-up, argument copy, exits.
//!
//! RBP = trap frame + 80h, RBX = current thread throughout. Offsets from RBP are written as `frame::FIELD - 80h`.

use iced_x86::Register;
use iced_x86::code_asm::*;

use super::map::{self, Item};
use super::{GateId, MAX_STACK_ARGUMENTS, asm_gate};
use crate::BuildError;
use crate::assemble::{Code64, Piece, at, size_symbols};
use crate::layout::{Build, TEB_GDI_BATCH_COUNT, THREAD_FLAG_GUI, TRAP_FRAME_BIAS, kpcr, ktrap_frame as frame};

const STATUS_INVALID_SYSTEM_SERVICE: u32 = 0xC000_001C;
const STATUS_ALREADY_WIN32: u32 = 0x4000_001B;

/// Stack that a service gets below the trap frame: home slots and copied arguments. The last two of fourteen
/// arguments reach into the frame's own home slots, which are free by then.
const ARGUMENT_AREA: i32 = 0x70;
/// Bytes between KiSystemCall64 and KiSystemServiceStart.
const ENTRY_SIZE: usize = (map::SYSTEM_SERVICE_START - map::SYSTEM_CALL_64) as usize;

/// A general-purpose or vector field of the trap frame that RBP points into.
pub(super) fn field(offset: u32) -> AsmMemoryOperand {
    rbp + (offset as i32 - TRAP_FRAME_BIAS as i32)
}

/// Registers that the caller of a service may have changed by it, with their slots.
pub(super) const VOLATILE: [(AsmRegister64, u32); 7] = [
    (rax, frame::RAX),
    (rcx, frame::RCX),
    (rdx, frame::RDX),
    (r8, frame::R8),
    (r9, frame::R9),
    (r10, frame::R10),
    (r11, frame::R11),
];
/// Registers that services preserve but that the kernel's own path uses.
pub(super) const SAVED: [(AsmRegister64, u32); 3] = [(rbx, frame::RBX), (rdi, frame::RDI), (rsi, frame::RSI)];
pub(super) const VECTORS: [(AsmRegisterXmm, u32); 6] = [
    (xmm0, frame::XMM0),
    (xmm1, frame::XMM1),
    (xmm2, frame::XMM2),
    (xmm3, frame::XMM3),
    (xmm4, frame::XMM4),
    (xmm5, frame::XMM5),
];

/// Data that the path reads.
pub(super) struct PathData {
    pub descriptor_table: Item,
    pub descriptor_table_shadow: Item,
    pub user_probe_address: Item,
}

/// Everything that [`assemble`] produces.
pub(super) struct EntryCode {
    pub system_call_64: Code64,
    pub system_call_32: Code64,
    pub service_internal: Code64,
    pub service_linkage: Code64,
    pub body: Code64,
}

pub(super) fn assemble(build: Build, data: &PathData) -> Result<EntryCode, BuildError> {
    let system_call_64 = system_call_64(build)?;
    let user_entry = system_call_64.address_of("KiSystemServiceUser");
    let mut linkage = Piece::new()?;
    linkage.mark("KiServiceLinkage")?;
    linkage.ret()?;
    Ok(EntryCode {
        system_call_32: system_call_32(user_entry)?,
        service_internal: service_internal(build)?,
        service_linkage: linkage.finish(map::SERVICE_LINKAGE)?,
        body: body(build, data)?,
        system_call_64,
    })
}

/// From SWAPGS to the allocated trap frame, common to both SYSCALL entries.
fn push_machine_frame(a: &mut Piece, code_selector: i32) -> Result<(), BuildError> {
    a.swapgs()?;
    a.mov(qword_ptr(kpcr::USER_RSP).gs(), rsp)?;
    a.mov(rsp, qword_ptr(kpcr::RSP_BASE).gs())?;
    a.push(0x2B)?;
    a.push(qword_ptr(kpcr::USER_RSP).gs())?;
    a.push(r11)?;
    a.push(code_selector)?;
    a.push(rcx)?;
    a.mov_8b(Register::RCX, Register::R10)?;
    a.sub(rsp, 8)?;
    allocate_frame(a)
}

/// Pushes RBP and makes room for the rest of the trap frame below the machine frame and the error code.
pub(super) fn allocate_frame(a: &mut Piece) -> Result<(), BuildError> {
    a.push(rbp)?;
    a.sub(rsp, frame::RBP as i32)?;
    a.lea(rbp, rsp + TRAP_FRAME_BIAS)?;
    Ok(())
}

fn system_call_64(build: Build) -> Result<Code64, BuildError> {
    let thread = build.thread_offsets();
    let mut a = Piece::new()?;
    a.mark("KiSystemCall64")?;
    push_machine_frame(&mut a, 0x33)?;
    a.mark("KiSystemServiceUser")?;
    for (register, slot) in SAVED {
        a.mov(qword_ptr(field(slot)), register)?;
    }
    a.mov(byte_ptr(field(frame::EXCEPTION_ACTIVE)), 2)?;
    a.mov(rbx, qword_ptr(kpcr::CURRENT_THREAD).gs())?;
    a.prefetchw(byte_ptr(rbx + thread.trap_frame))?;
    a.stmxcsr(dword_ptr(field(frame::MXCSR)))?;
    a.ldmxcsr(dword_ptr(kpcr::MXCSR).gs())?;
    a.mov(word_ptr(field(frame::DR7)), 0)?;
    a.mov(byte_ptr(field(frame::PREVIOUS_MODE)), 1)?;
    for (register, slot) in VOLATILE {
        a.mov(qword_ptr(field(slot)), register)?;
    }
    for (register, slot) in VECTORS {
        a.movaps(xmmword_ptr(field(slot)), register)?;
    }
    a.sti()?;
    a.mov(qword_ptr(rbx + thread.first_argument), rcx)?;
    a.mov(dword_ptr(rbx + thread.system_call_number), eax)?;
    let mut code = a.finish(map::SYSTEM_CALL_64)?;
    let room = ENTRY_SIZE
        .checked_sub(code.bytes.len())
        .ok_or_else(|| BuildError::Overlap { what: "KiSystemCall64".to_owned(), address: map::SYSTEM_CALL_64 })?;
    let mut padding = Piece::new()?;
    padding.nops_with_size(room)?;
    code.bytes.extend(padding.finish(code.end())?.bytes);
    size_symbols(&mut code.symbols, map::SYSTEM_SERVICE_START);
    Ok(code)
}

fn system_call_32(user_entry: u64) -> Result<Code64, BuildError> {
    let mut a = Piece::new()?;
    a.mark("KiSystemCall32")?;
    push_machine_frame(&mut a, 0x23)?;
    a.jmp(user_entry)?;
    a.finish(map::SYSTEM_CALL_32)
}

fn service_internal(build: Build) -> Result<Code64, BuildError> {
    let thread = build.thread_offsets();
    let mut a = Piece::new()?;
    a.mark("KiServiceInternal")?;
    a.sub(rsp, 8)?;
    allocate_frame(&mut a)?;
    for (register, slot) in SAVED {
        a.mov(qword_ptr(field(slot)), register)?;
    }
    a.sti()?;
    a.mov(rbx, qword_ptr(kpcr::CURRENT_THREAD).gs())?;
    a.prefetchw(byte_ptr(rbx + thread.trap_frame))?;
    a.movzx(edi, byte_ptr(rbx + thread.previous_mode))?;
    a.mov(byte_ptr(field(frame::PREVIOUS_MODE)), dil)?;
    a.mov(byte_ptr(rbx + thread.previous_mode), 0)?;
    a.mov(r10, qword_ptr(rbx + thread.trap_frame))?;
    a.mov(qword_ptr(field(frame::TRAP_FRAME)), r10)?;
    a.lea(r11, at(map::SYSTEM_SERVICE_START))?;
    a.jmp(r11)?;
    a.finish(map::SERVICE_INTERNAL)
}

/// KiSystemServiceStart up to the last exit.
fn body(build: Build, data: &PathData) -> Result<Code64, BuildError> {
    let thread = build.thread_offsets();
    let mut a = Piece::new()?;
    let mut repeat = a.create_label();
    let mut target_found = a.create_label();
    let mut copy_source_ready = a.create_label();
    let mut copy_end = a.create_label();
    let mut bad_number = a.create_label();
    let mut invalid = a.create_label();
    let mut exit = a.create_label();
    let mut flush_gdi = a.create_label();
    let mut convert = a.create_label();
    let mut initiate_apc = a.create_label();
    let mut exit_2 = a.create_label();

    a.mark("KiSystemServiceStart")?;
    a.mov(qword_ptr(rbx + thread.trap_frame), rsp)?;
    a.mov(edi, eax)?;
    a.shr(edi, 7)?;
    a.and(edi, 0x20)?;
    a.and(eax, 0xFFF)?;

    a.mark_label("KiSystemServiceRepeat", &mut repeat)?;
    a.lea(r10, at(data.descriptor_table.address))?;
    a.lea(r11, at(data.descriptor_table_shadow.address))?;
    a.test(dword_ptr(rbx + thread.thread_flags), THREAD_FLAG_GUI)?;
    a.cmovne(r10, r11)?;
    a.cmp(eax, dword_ptr(r10 + rdi + 0x10))?;
    a.jae(bad_number)?;
    a.mov(r10, qword_ptr(r10 + rdi))?;
    a.movsxd(r11, dword_ptr(r10 + rax * 4))?;
    a.mov_8b(Register::RAX, Register::R11)?;
    a.sar(r11, 4)?;
    a.add(r10, r11)?;
    a.cmp(edi, 0x20)?;
    a.jne(target_found)?;
    a.mov(r11, qword_ptr(rbx + thread.teb))?;
    a.mark("KiSystemServiceGdiTebAccess")?;
    a.cmp(dword_ptr(r11 + TEB_GDI_BATCH_COUNT), 0)?;
    a.je(target_found)?;
    for (register, slot) in VOLATILE {
        a.mov(qword_ptr(field(slot)), register)?;
    }
    a.call(flush_gdi)?;
    for (register, slot) in VOLATILE {
        a.mov(register, qword_ptr(field(slot)))?;
    }

    a.set_label(&mut target_found)?;
    a.and(eax, 0xF)?;
    a.je(copy_end)?;
    a.shl(eax, 3)?;
    a.lea(rsp, rsp - ARGUMENT_AREA)?;
    a.lea(rdi, rsp + 0x18)?;
    a.mov(rsi, qword_ptr(field(frame::RSP)))?;
    a.lea(rsi, rsi + 0x20)?;
    a.test(byte_ptr(field(frame::SEG_CS)), 1)?;
    a.je(copy_source_ready)?;
    a.cmp(rsi, qword_ptr(at(data.user_probe_address.address)))?;
    a.cmovae(rsi, qword_ptr(at(data.user_probe_address.address)))?;
    a.set_label(&mut copy_source_ready)?;
    a.lea(r11, ptr(copy_end))?;
    a.sub(r11, rax)?;
    a.jmp(r11)?;
    // Each of these pairs is eight bytes long, so that n arguments start n * 8 bytes before the end.
    a.mark("KiSystemServiceCopyStart")?;
    for index in (1..=i32::from(MAX_STACK_ARGUMENTS)).rev() {
        a.mov(rax, qword_ptr(rsi + index * 8))?;
        a.mov(qword_ptr(rdi + index * 8), rax)?;
    }
    a.mark_label("KiSystemServiceCopyEnd", &mut copy_end)?;
    a.call(r10)?;

    a.mark_label("KiSystemServiceExit", &mut exit)?;
    exits(&mut a, build, initiate_apc, &mut exit_2)?;

    // A number beyond the table's limit; EDI selects the table, EAX is the index.
    a.mark_label("KiSystemServiceBadNumber", &mut bad_number)?;
    a.cmp(edi, 0x20)?;
    a.jne(invalid)?;
    let arguments = [(rcx, frame::P2_HOME), (rdx, frame::P3_HOME), (r8, frame::P4_HOME), (r9, frame::P5)];
    a.mov(dword_ptr(field(frame::P1_HOME)), eax)?;
    for (register, slot) in arguments {
        a.mov(qword_ptr(field(slot)), register)?;
    }
    a.call(convert)?;
    a.or(eax, eax)?;
    a.mov(eax, dword_ptr(field(frame::P1_HOME)))?;
    for (register, slot) in arguments {
        a.mov(register, qword_ptr(field(slot)))?;
    }
    a.mov(qword_ptr(rbx + thread.trap_frame), rsp)?;
    a.je(repeat)?;
    a.lea(rdi, at(data.descriptor_table_shadow.address + 0x20))?;
    a.mov(esi, dword_ptr(rdi + 0x10))?;
    a.mov(rdi, qword_ptr(rdi))?;
    a.cmp(eax, esi)?;
    a.jae(invalid)?;
    a.lea(rdi, rdi + rsi * 4)?;
    a.movsx(eax, byte_ptr(rax + rdi))?;
    a.or(eax, eax)?;
    a.jle(exit)?;
    a.set_label(&mut invalid)?;
    a.mov(eax, STATUS_INVALID_SYSTEM_SERVICE)?;
    a.jmp(exit)?;

    a.mark_label("KiConvertToGuiThread", &mut convert)?;
    let mut not_yet = a.create_label();
    let mut failed = a.create_label();
    a.test(dword_ptr(rbx + thread.thread_flags), THREAD_FLAG_GUI)?;
    a.je(not_yet)?;
    a.mov(eax, STATUS_ALREADY_WIN32)?;
    a.ret()?;
    a.set_label(&mut not_yet)?;
    asm_gate(&mut a, GateId::ConvertToGuiThread)?;
    a.test(eax, eax)?;
    a.jne(failed)?;
    a.or(dword_ptr(rbx + thread.thread_flags), THREAD_FLAG_GUI)?;
    a.set_label(&mut failed)?;
    a.ret()?;

    a.mark_label("KeGdiFlushUserBatch", &mut flush_gdi)?;
    asm_gate(&mut a, GateId::GdiFlush)?;
    a.ret()?;

    // In: RCX = thread. Out: EAX = 0 if only the frame's RIP and RSP may have changed.
    a.mark_label("KiInitiateUserApc", &mut initiate_apc)?;
    a.mov(byte_ptr(rcx + thread.user_apc_pending), 0)?;
    a.sti()?;
    a.lea(rdx, field(0))?;
    asm_gate(&mut a, GateId::DeliverApc)?;
    a.cli()?;
    a.ret()?;
    a.finish(map::SYSTEM_SERVICE_START)
}

/// KiSystemServiceExit (SYSRET or return to kernel code) and KiServiceExit2 (IRETQ, every register restored).
fn exits(a: &mut Piece, build: Build, initiate_apc: CodeLabel, exit_2: &mut CodeLabel) -> Result<(), BuildError> {
    let thread = build.thread_offsets();
    let mut compatibility = a.create_label();
    let mut kernel_exit = a.create_label();
    let mut check_apc = a.create_label();
    let mut no_apc = a.create_label();
    for (register, slot) in SAVED {
        a.mov(register, qword_ptr(field(slot)))?;
    }
    a.mov(r11, qword_ptr(kpcr::CURRENT_THREAD).gs())?;
    a.test(byte_ptr(field(frame::SEG_CS)), 1)?;
    a.je(kernel_exit)?;
    a.set_label(&mut check_apc)?;
    a.cli()?;
    a.mov(rcx, qword_ptr(kpcr::CURRENT_THREAD).gs())?;
    a.cmp(byte_ptr(rcx + thread.user_apc_pending), 0)?;
    a.je(no_apc)?;
    // The frame becomes complete, so that the APC's context shows what the caller would have seen.
    a.mov(qword_ptr(field(frame::RAX)), rax)?;
    a.xor(eax, eax)?;
    for (_, slot) in &VOLATILE[1..] {
        a.mov(qword_ptr(field(*slot)), rax)?;
    }
    a.pxor(xmm0, xmm0)?;
    for (_, slot) in VECTORS {
        a.movaps(xmmword_ptr(field(slot)), xmm0)?;
    }
    a.call(initiate_apc)?;
    a.test(eax, eax)?;
    a.jne(*exit_2)?;
    a.mov(rax, qword_ptr(field(frame::RAX)))?;
    a.jmp(check_apc)?;

    a.set_label(&mut no_apc)?;
    a.cmp(byte_ptr(field(frame::SEG_CS)), 0x33)?;
    a.jne(compatibility)?;
    a.ldmxcsr(dword_ptr(field(frame::MXCSR)))?;
    a.xor(r10, r10)?;
    a.mov(r8, qword_ptr(field(frame::RSP)))?;
    match build {
        Build::Windows7 => a.mov(r9, qword_ptr(field(frame::RBP)))?,
        Build::Windows11 => a.xor(r9d, r9d)?,
    }
    a.xor(edx, edx)?;
    for (register, _) in VECTORS {
        a.pxor(register, register)?;
    }
    a.mov(rcx, qword_ptr(field(frame::RIP)))?;
    a.mov(r11, qword_ptr(field(frame::EFLAGS)))?;
    match build {
        Build::Windows7 => a.mov_8b(Register::RBP, Register::R9)?,
        Build::Windows11 => a.mov(rbp, qword_ptr(field(frame::RBP)))?,
    }
    a.mov_8b(Register::RSP, Register::R8)?;
    a.swapgs()?;
    a.sysretq()?;

    // Compatibility-mode callers cannot take SYSRETQ.
    a.set_label(&mut compatibility)?;
    a.mov(qword_ptr(field(frame::RAX)), rax)?;
    a.jmp(*exit_2)?;

    a.mark_label("KiSystemServiceExitKernel", &mut kernel_exit)?;
    a.mov(rdx, qword_ptr(field(frame::TRAP_FRAME)))?;
    a.mov(qword_ptr(r11 + thread.trap_frame), rdx)?;
    a.mov(dl, byte_ptr(field(frame::PREVIOUS_MODE)))?;
    a.mov(byte_ptr(r11 + thread.previous_mode), dl)?;
    a.cli()?;
    a.mov_8b(Register::RSP, Register::RBP)?;
    a.mov(rbp, qword_ptr(field(frame::RBP)))?;
    a.mov(rsp, qword_ptr(rsp + (frame::RSP - TRAP_FRAME_BIAS)))?;
    a.sti()?;
    a.ret()?;

    let mut restore = a.create_label();
    let mut to_kernel = a.create_label();
    a.mark_label("KiServiceExit2", exit_2)?;
    a.cli()?;
    a.test(byte_ptr(field(frame::SEG_CS)), 1)?;
    a.je(restore)?;
    a.mov(rcx, qword_ptr(kpcr::CURRENT_THREAD).gs())?;
    a.cmp(byte_ptr(rcx + thread.user_apc_pending), 0)?;
    a.je(restore)?;
    a.call(initiate_apc)?;
    a.jmp(*exit_2)?;
    a.set_label(&mut restore)?;
    a.ldmxcsr(dword_ptr(field(frame::MXCSR)))?;
    for (register, slot) in VECTORS {
        a.movaps(register, xmmword_ptr(field(slot)))?;
    }
    for (register, slot) in SAVED.into_iter().chain(VOLATILE) {
        a.mov(register, qword_ptr(field(slot)))?;
    }
    a.test(byte_ptr(field(frame::SEG_CS)), 1)?;
    a.je(to_kernel)?;
    leave_frame(a)?;
    a.swapgs()?;
    a.iretq()?;
    a.set_label(&mut to_kernel)?;
    leave_frame(a)?;
    a.iretq()?;
    Ok(())
}

/// Restores RBP and leaves RSP at the machine frame.
fn leave_frame(a: &mut Piece) -> Result<(), BuildError> {
    a.lea(rsp, field(frame::RBP))?;
    a.pop(rbp)?;
    a.add(rsp, 8)?;
    Ok(())
}
