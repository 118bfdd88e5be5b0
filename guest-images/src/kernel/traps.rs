//! Trap handlers: one entry per vector, a shared body that builds the trap frame and asks the exception gate.

use iced_x86::Register;
use iced_x86::code_asm::*;

use super::entry::{EntryCode, SAVED, VECTORS, VOLATILE, allocate_frame, field};
use super::{GateId, asm_gate, map};
use crate::BuildError;
use crate::assemble::{Code64, Piece, at};
use crate::layout::{kpcr, ktrap_frame as frame};

const DEBUG: u8 = 1;
const PAGE_FAULT: u8 = 14;

/// What the processor or a program may do with a vector.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Only the processor raises it: descriptor privilege 0.
    Processor,
    /// INT n may raise it from user mode: descriptor privilege 3.
    Program,
}

/// A vector with a handler.
pub(super) struct TrapVector {
    pub vector: u8,
    pub handler: &'static str,
    access: Access,
    /// Interrupt stack table slot, 0 for none.
    pub ist: u8,
}

impl TrapVector {
    /// Descriptor privilege level of the IDT gate.
    pub fn gate_privilege(&self) -> u8 {
        if self.access == Access::Program { 3 } else { 0 }
    }

    /// Whether the processor pushes an error code (SDM vol. 3, table 6-1).
    fn has_error_code(&self) -> bool {
        matches!(self.vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
    }
}

const fn processor(vector: u8, handler: &'static str) -> TrapVector {
    TrapVector { vector, handler, access: Access::Processor, ist: 0 }
}

const fn on_stack(vector: u8, handler: &'static str, ist: u8) -> TrapVector {
    TrapVector { vector, handler, access: Access::Processor, ist }
}

const fn program(vector: u8, handler: &'static str) -> TrapVector {
    TrapVector { vector, handler, access: Access::Program, ist: 0 }
}

/// `KiSystemService`'s vector.
pub(super) const SYSTEM_SERVICE_VECTOR: u8 = 0x2E;

/// Every vector that the IDT has a gate for. INT n through the others raises #GP, as an absent gate does.
pub(super) const TRAP_VECTORS: [TrapVector; 36] = [
    processor(0, "KiDivideErrorFault"),
    processor(DEBUG, "KiDebugTrapOrFault"),
    on_stack(2, "KiNmiInterrupt", 2),
    program(3, "KiBreakpointTrap"),
    program(4, "KiOverflowTrap"),
    processor(5, "KiBoundFault"),
    processor(6, "KiInvalidOpcodeFault"),
    processor(7, "KiNpxNotAvailableFault"),
    on_stack(8, "KiDoubleFaultAbort", 1),
    processor(9, "KiNpxSegmentOverrunAbort"),
    processor(10, "KiInvalidTssFault"),
    processor(11, "KiSegmentNotPresentFault"),
    processor(12, "KiStackFault"),
    processor(13, "KiGeneralProtectionFault"),
    processor(PAGE_FAULT, "KiPageFault"),
    processor(15, "KiUnexpectedVector0F"),
    processor(16, "KiFloatingErrorFault"),
    processor(17, "KiAlignmentFault"),
    on_stack(18, "KiMcheckAbort", 3),
    processor(19, "KiXmmException"),
    processor(20, "KiVirtualizationException"),
    processor(21, "KiControlProtectionFault"),
    processor(22, "KiUnexpectedVector16"),
    processor(23, "KiUnexpectedVector17"),
    processor(24, "KiUnexpectedVector18"),
    processor(25, "KiUnexpectedVector19"),
    processor(26, "KiUnexpectedVector1A"),
    processor(27, "KiUnexpectedVector1B"),
    processor(28, "KiUnexpectedVector1C"),
    processor(29, "KiUnexpectedVector1D"),
    processor(30, "KiUnexpectedVector1E"),
    processor(31, "KiUnexpectedVector1F"),
    program(0x29, "KiRaiseSecurityCheckFailure"),
    program(0x2C, "KiRaiseAssertion"),
    program(0x2D, "KiDebugServiceTrap"),
    program(SYSTEM_SERVICE_VECTOR, "KiSystemService"),
];

/// Assembles all handlers at `address`.
pub(super) fn assemble(address: u64, path: &EntryCode) -> Result<Code64, BuildError> {
    let mut a = Piece::new()?;
    let mut dispatch = a.create_label();
    for trap in TRAP_VECTORS {
        a.mark(trap.handler)?;
        if trap.vector == DEBUG {
            return_to_kernel(&mut a)?;
        }
        if !trap.has_error_code() {
            a.push(0)?;
        }
        allocate_frame(&mut a)?;
        if trap.vector == SYSTEM_SERVICE_VECTOR {
            let mut from_kernel = a.create_label();
            a.test(byte_ptr(field(frame::SEG_CS)), 1)?;
            a.je(from_kernel)?;
            a.swapgs()?;
            a.mov_8b(Register::RCX, Register::R10)?;
            a.jmp(path.system_call_64.address_of("KiSystemServiceUser"))?;
            a.set_label(&mut from_kernel)?;
        }
        a.mov(qword_ptr(field(frame::RCX)), rcx)?;
        a.mov(ecx, u32::from(trap.vector))?;
        a.jmp(dispatch)?;
    }
    exception_dispatch(&mut a, &mut dispatch, path)?;
    a.finish(address)
}

/// The user's breakpoints mean nothing in the kernel, which reads watched memory and is entered behind MOV SS: it goes on
/// at once, with RF against breakpoints on the instruction itself.
fn return_to_kernel(a: &mut Piece) -> Result<(), BuildError> {
    let mut from_user = a.create_label();
    a.test(byte_ptr(rsp + 8), 1)?;
    a.jne(from_user)?;
    a.or(dword_ptr(rsp + 16), 0x1_0000)?;
    a.iretq()?;
    a.set_label(&mut from_user)?;
    Ok(())
}

/// In: ECX = vector, frame allocated, frame.Rcx filled, interrupts off.
fn exception_dispatch(a: &mut Piece, dispatch: &mut CodeLabel, path: &EntryCode) -> Result<(), BuildError> {
    let mut from_kernel = a.create_label();
    let mut ask = a.create_label();
    let mut ask_now = a.create_label();
    let mut copy_fault = a.create_label();
    let exit_2 = path.body.address_of("KiServiceExit2");

    a.mark_label("KiExceptionDispatch", dispatch)?;
    for (register, slot) in VOLATILE.into_iter().chain(SAVED).filter(|(_, slot)| *slot != frame::RCX) {
        a.mov(qword_ptr(field(slot)), register)?;
    }
    for (register, slot) in VECTORS {
        a.movaps(xmmword_ptr(field(slot)), register)?;
    }
    a.mov(byte_ptr(field(frame::EXCEPTION_ACTIVE)), 1)?;
    a.mov(byte_ptr(field(frame::PREVIOUS_MODE)), 0)?;
    a.mov(word_ptr(field(frame::DR7)), 0)?;
    a.stmxcsr(dword_ptr(field(frame::MXCSR)))?;
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(field(frame::FAULT_ADDRESS)), rax)?;
    a.test(byte_ptr(field(frame::SEG_CS)), 1)?;
    a.je(from_kernel)?;
    a.swapgs()?;
    a.ldmxcsr(dword_ptr(kpcr::MXCSR).gs())?;
    a.mov(byte_ptr(field(frame::PREVIOUS_MODE)), 1)?;
    a.jmp(ask)?;

    // A page fault while the system-call path reads user memory is the caller's mistake, not the kernel's.
    a.set_label(&mut from_kernel)?;
    a.cmp(ecx, u32::from(PAGE_FAULT))?;
    a.jne(ask)?;
    a.mov(rax, qword_ptr(field(frame::RIP)))?;
    a.lea(r8, at(path.body.address_of("KiSystemServiceGdiTebAccess")))?;
    a.cmp(rax, r8)?;
    a.je(copy_fault)?;
    a.lea(r8, at(path.body.address_of("KiSystemServiceCopyStart")))?;
    a.cmp(rax, r8)?;
    a.jb(ask)?;
    a.lea(r8, at(path.body.address_of("KiSystemServiceCopyEnd")))?;
    a.cmp(rax, r8)?;
    a.jb(copy_fault)?;

    a.set_label(&mut ask)?;
    a.test(dword_ptr(field(frame::EFLAGS)), 0x200)?;
    a.je(ask_now)?;
    a.sti()?;
    a.set_label(&mut ask_now)?;
    a.lea(rdx, field(0))?;
    asm_gate(a, GateId::Exception)?;
    a.jmp(exit_2)?;

    a.mark_label("KiSystemServiceCopyFault", &mut copy_fault)?;
    a.sti()?;
    a.lea(rdx, field(0))?;
    asm_gate(a, GateId::CopyFault)?;
    a.test(eax, eax)?;
    a.jns(exit_2)?;
    a.mov(eax, STATUS_ACCESS_VIOLATION)?;
    a.mov(qword_ptr(field(frame::RAX)), rax)?;
    a.lea(rax, at(path.body.address_of("KiSystemServiceExit")))?;
    a.mov(qword_ptr(field(frame::RIP)), rax)?;
    a.jmp(exit_2)?;
    Ok(())
}

const STATUS_ACCESS_VIOLATION: u32 = 0xC000_0005;

/// The IDT: interrupt gates to `handlers` (SDM vol. 3, 6.14.1).
pub(super) fn interrupt_descriptor_table(handlers: &Code64) -> Vec<u8> {
    let mut table = vec![0; map::IDT_ENTRIES * 16];
    for trap in TRAP_VECTORS {
        let target = handlers.address_of(trap.handler);
        let flags = 0x8E00 | u16::from(trap.gate_privilege()) << 13 | u16::from(trap.ist);
        let low = target & 0xFFFF | 0x10 << 16 | u64::from(flags) << 32 | (target >> 16 & 0xFFFF) << 48;
        let entry = &mut table[usize::from(trap.vector) * 16..][..16];
        entry[..8].copy_from_slice(&low.to_le_bytes());
        entry[8..].copy_from_slice(&(target >> 32).to_le_bytes());
    }
    table
}
