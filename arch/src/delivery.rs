//! Interrupt and exception delivery through the IDT and TSS (SDM vol. 3, 6.12 to 6.14).

use crate::control::{debugctl, dr};
use crate::descriptor::{Descriptor, Gate, is_null, selector_code, system_type};
use crate::exception::{Exception, Vector};
use crate::is_canonical;
use crate::memory::{GuestMemory, Privilege};
use crate::rflags::Rflags;
use crate::segment::{Segment, SegmentIndex};
use crate::state::{CpuState, Gpr};
use crate::system::OperandSize;
use crate::system::transfer::Stack;

/// What interrupts the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An exception; `cpu.rip` is the address to push.
    Exception(Exception),
    /// INT n; `cpu.rip` is behind the instruction.
    Software(u8),
    /// An external interrupt; `cpu.rip` is the next instruction.
    External(u8),
}

/// The processor shut down: an exception could not be delivered while a double fault was being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("triple fault at {rip:#x}: {last:?} while delivering a double fault")]
pub struct Shutdown {
    /// Where the guest was.
    pub rip: u64,
    /// The exception that could not be delivered.
    pub last: Exception,
}

/// EXT bit of an error code: the event came from outside the program.
const EXT: u32 = 1;
/// IDT bit of an error code: the index is a vector.
const IDT: u32 = 2;

/// How exceptions combine while one of them is being delivered (SDM vol. 3, table 6-5).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Event {
    const fn vector(self) -> u8 {
        match self {
            Self::Exception(exception) => exception.vector as u8,
            Self::Software(vector) | Self::External(vector) => vector,
        }
    }

    /// Raised by INT n, INT3 or INTO.
    const fn is_software(self) -> bool {
        match self {
            Self::Exception(exception) => exception.software,
            Self::Software(_) => true,
            Self::External(_) => false,
        }
    }

    const fn error_code(self) -> Option<u32> {
        match self {
            Self::Exception(exception) => exception.error_code,
            _ => None,
        }
    }

    /// Length of the instruction that `cpu.rip` already lies behind and that a fault in delivery must name instead:
    /// INT3 and INTO have one byte, INT n two (a prefix, which would mean nothing, is not counted).
    const fn instruction_length(self) -> u64 {
        match self {
            Self::Exception(exception) => exception.software as u64,
            Self::Software(_) => 2,
            Self::External(_) => 0,
        }
    }

    /// Whether the pushed image gets RF: faults do, so that an instruction breakpoint does not hit twice (SDM vol. 3,
    /// 17.3.1.1). Traps, aborts, interrupts and instruction breakpoints push RF as it is.
    const fn sets_rf(self) -> bool {
        let Self::Exception(exception) = self else { return false };
        match exception.vector {
            Vector::Debug => exception.dr6 & dr::DR6_BD != 0,
            Vector::Nmi | Vector::Breakpoint | Vector::Overflow | Vector::DoubleFault | Vector::MachineCheck => false,
            _ => true,
        }
    }

    const fn class(self) -> Class {
        let Self::Exception(exception) = self else { return Class::Benign };
        match exception.vector {
            Vector::DivideError
            | Vector::InvalidTss
            | Vector::SegmentNotPresent
            | Vector::StackFault
            | Vector::GeneralProtection => Class::Contributory,
            Vector::PageFault => Class::PageFault,
            Vector::DoubleFault => Class::DoubleFault,
            _ => Class::Benign,
        }
    }
}

/// Delivers `event` to the guest's handler: on success the processor is about to execute the handler's first
/// instruction. Faults met on the way are delivered in its place, as a double fault where the manual says so.
pub fn deliver<M: GuestMemory>(cpu: &mut CpuState, mem: &mut M, event: Event) -> Result<(), Shutdown> {
    let mut event = event;
    loop {
        let Err(fault) = enter_handler(cpu, mem, event) else { return Ok(()) };
        cpu.rip = cpu.rip.wrapping_sub(event.instruction_length());
        event = match (event.class(), Event::Exception(fault).class()) {
            (Class::DoubleFault, _) => return Err(Shutdown { rip: cpu.rip, last: fault }),
            (Class::Contributory, Class::Contributory) | (Class::PageFault, Class::Contributory | Class::PageFault) => {
                Event::Exception(Exception::DF)
            }
            _ => Event::Exception(fault),
        };
    }
}

/// One attempt at delivery. On `Err` only CR2, DR6, DR7 and IA32_DEBUGCTL have changed.
fn enter_handler<M: GuestMemory>(cpu: &mut CpuState, mem: &mut M, event: Event) -> Result<(), Exception> {
    if let Event::Exception(exception) = event {
        cpu.cr2 = exception.cr2.unwrap_or(cpu.cr2);
        if exception.vector == Vector::Debug {
            cpu.dr[6] |= exception.dr6;
            cpu.dr[7] &= !dr::DR7_GD;
            // Both vendors: a debugger that steps by branches asks for each step (SDM vol. 3, 17.4.3; APM vol. 2, 13.1).
            cpu.debugctl &= !debugctl::BTF;
        }
    }
    let ext = if event.is_software() { 0 } else { EXT };
    let gate = read_gate(cpu, mem, event, ext)?;
    let (mut descriptor, cpl) = target_code(cpu, mem, &gate, ext)?;

    let old_rsp = cpu.reg(Gpr::Rsp);
    let stack = if cpl < cpu.cpl || gate.ist != 0 { tss_stack_pointer(cpu, mem, cpl, gate.ist, ext)? } else { old_rsp };
    let rf = if event.sets_rf() { Rflags::RF.bits() } else { 0 };
    let frame = [
        u64::from(cpu.segment(SegmentIndex::Ss).selector),
        old_rsp,
        cpu.rflags | rf,
        u64::from(cpu.segment(SegmentIndex::Cs).selector),
        cpu.rip,
        u64::from(event.error_code().unwrap_or(0)),
    ];
    let slots = if event.error_code().is_some() { 6 } else { 5 };
    let privilege = if cpl == 3 { Privilege::User } else { Privilege::Supervisor };
    descriptor.mark_accessed(mem)?;
    let rsp = Stack::long(stack & !0xF)
        .push(mem, OperandSize::Qword, &frame[..slots], privilege)
        .map_err(|fault| if fault.vector == Vector::StackFault { Exception::ss(ext) } else { fault })?;

    cpu.set_reg(Gpr::Rsp, rsp);
    if cpl < cpu.cpl {
        *cpu.segment_mut(SegmentIndex::Ss) = Segment::null_stack(cpl);
    }
    *cpu.segment_mut(SegmentIndex::Cs) = descriptor.segment(gate.selector & !3 | u16::from(cpl));
    cpu.cpl = cpl;
    cpu.rip = gate.offset;
    let mut cleared = Rflags::TF | Rflags::NT | Rflags::RF | Rflags::VM;
    if gate.kind == system_type::INTERRUPT_GATE {
        cleared |= Rflags::IF;
    }
    cpu.rflags &= !cleared.bits();
    cpu.interrupt_shadow = 0;
    Ok(())
}

/// Reads and checks the event's gate in the IDT.
fn read_gate<M: GuestMemory>(cpu: &CpuState, mem: &mut M, event: Event, ext: u32) -> Result<Gate, Exception> {
    let vector = event.vector();
    let code = u32::from(vector) << 3 | IDT | ext;
    let offset = u64::from(vector) * 16;
    if offset + 15 > u64::from(cpu.idtr.limit) {
        return Err(Exception::gp(code));
    }
    let address = cpu.idtr.base.wrapping_add(offset);
    let low = mem.read_u64(address, Privilege::Supervisor)?;
    let high = mem.read_u64(address.wrapping_add(8), Privilege::Supervisor)?;
    let gate = Gate::decode(low, high);
    let is_gate = gate.system && matches!(gate.kind, system_type::INTERRUPT_GATE | system_type::TRAP_GATE);
    if !is_gate || event.is_software() && gate.dpl < cpu.cpl {
        return Err(Exception::gp(code));
    }
    if gate.present { Ok(gate) } else { Err(Exception::np(code)) }
}

/// Checks the gate's code segment, which must be 64-bit code at the current or an inner privilege level; yields it
/// and the handler's CPL.
fn target_code<M: GuestMemory>(
    cpu: &CpuState,
    mem: &mut M,
    gate: &Gate,
    ext: u32,
) -> Result<(Descriptor, u8), Exception> {
    if is_null(gate.selector) {
        return Err(Exception::gp(ext));
    }
    let code = selector_code(gate.selector) | ext;
    let descriptor = Descriptor::lookup(cpu, mem, gate.selector)?.ok_or(Exception::gp(code))?;
    let long = descriptor.is_code() && descriptor.is_long() && !descriptor.is_big();
    if !long || descriptor.dpl() > cpu.cpl {
        return Err(Exception::gp(code));
    }
    if !descriptor.is_present() {
        return Err(Exception::np(code));
    }
    if !is_canonical(gate.offset) {
        return Err(Exception::gp(ext));
    }
    Ok((descriptor, if descriptor.is_conforming() { cpu.cpl } else { descriptor.dpl() }))
}

/// The stack pointer that the 64-bit TSS holds for an entry at `cpl`, or for `ist` if that is not 0 (SDM vol. 3, 8.7).
/// `ext` is the EXT bit of the error codes.
pub(crate) fn tss_stack_pointer<M: GuestMemory>(
    cpu: &CpuState,
    mem: &mut M,
    cpl: u8,
    ist: u8,
    ext: u32,
) -> Result<u64, Exception> {
    const RSP0: u32 = 4;
    const IST1: u32 = 0x24;
    let offset = if ist != 0 { IST1 + 8 * (u32::from(ist) - 1) } else { RSP0 + 8 * u32::from(cpl) };
    if offset + 7 > cpu.tr.limit {
        return Err(Exception::ts(selector_code(cpu.tr.selector) | ext));
    }
    let pointer = mem.read_u64(cpu.tr.base.wrapping_add(u64::from(offset)), Privilege::Supervisor)?;
    if is_canonical(pointer) { Ok(pointer) } else { Err(Exception::ss(ext)) }
}
