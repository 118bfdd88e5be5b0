//! System instructions (SDM vol. 1, 5.20) and what touches segment registers: operands are decoded here, the operations
//! themselves live in [`lstar_arch::system`].

use iced_x86::{Code, Mnemonic, OpKind, Register};
use lstar_arch::system::{self, OperandSize};
use lstar_arch::{Exception, Gpr, GuestMemory, SegmentIndex, entropy};

use crate::decode::Place;
use crate::exec::{Exec, Op};

fn operand_size(bytes: u8) -> OperandSize {
    match bytes {
        2 => OperandSize::Word,
        4 => OperandSize::Dword,
        _ => OperandSize::Qword,
    }
}

fn segment_index(register: Register) -> SegmentIndex {
    match register {
        Register::ES => SegmentIndex::Es,
        Register::CS => SegmentIndex::Cs,
        Register::SS => SegmentIndex::Ss,
        Register::FS => SegmentIndex::Fs,
        Register::GS => SegmentIndex::Gs,
        _ => SegmentIndex::Ds,
    }
}

/// Visible part of a segment register.
pub(crate) fn selector<M: GuestMemory>(ex: &Exec<'_, M>, register: Register) -> u16 {
    ex.cpu.segment(segment_index(register)).selector
}

/// MOV with a segment, control or debug register.
pub(crate) fn mov_special<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (to, from) = (ex.insn.op0_register(), ex.insn.op1_register());
    if to.is_segment_register() {
        let selector = ex.read(1)? as u16;
        system::load_segment(ex.cpu, ex.mem, segment_index(to), selector)
    } else if from.is_segment_register() {
        let selector = selector(ex, from);
        ex.write(0, selector.into())
    } else if to.is_cr() {
        let value = ex.read(1)?;
        system::mov_to_cr(ex.cpu, to.number() as u8, value)
    } else if from.is_cr() {
        let value = system::mov_from_cr(ex.cpu, from.number() as u8)?;
        ex.write(0, value)
    } else if to.is_dr() {
        let value = ex.read(1)?;
        system::mov_to_dr(ex.cpu, to.number() as u8, value)
    } else if from.is_dr() {
        let value = system::mov_from_dr(ex.cpu, from.number() as u8)?;
        ex.write(0, value)
    } else {
        Err(Exception::UD)
    }
}

pub(crate) fn pop_segment<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let saved = ex.cpu.reg(Gpr::Rsp);
    let size = ex.insn.stack_pointer_increment().unsigned_abs() as u8;
    let selector = ex.pop(size)? as u16;
    let index = segment_index(ex.insn.op0_register());
    system::load_segment(ex.cpu, ex.mem, index, selector).inspect_err(|_| ex.cpu.set_reg(Gpr::Rsp, saved))
}

/// The far pointer that the memory operand holds: selector and offset.
fn load_far_pointer<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Result<(u16, u64), Exception> {
    let size = (ex.insn.memory_size().size() - 2) as u8;
    let linear = ex.linear_address();
    let offset = ex.load_sized(linear, size)?;
    let selector = ex.load_sized(ex.linear(linear.wrapping_add(size.into())), 2)?;
    Ok((selector as u16, offset))
}

/// LDS, LES, LFS, LGS, LSS.
pub(crate) fn load_far<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (selector, offset) = load_far_pointer(ex)?;
    let index = match ex.decoded.mnemonic {
        Mnemonic::Lds => SegmentIndex::Ds,
        Mnemonic::Les => SegmentIndex::Es,
        Mnemonic::Lfs => SegmentIndex::Fs,
        Mnemonic::Lgs => SegmentIndex::Gs,
        _ => SegmentIndex::Ss,
    };
    let shadow = ex.cpu.interrupt_shadow;
    system::load_segment(ex.cpu, ex.mem, index, selector)?;
    // LSS loads the stack pointer in the same instruction and needs no shadow.
    ex.cpu.interrupt_shadow = shadow;
    ex.write(0, offset)
}

/// Far JMP and CALL, direct or through memory.
pub(crate) fn far_transfer<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (selector, offset, size) = match ex.insn.op0_kind() {
        OpKind::FarBranch16 => (ex.insn.far_branch_selector(), ex.insn.far_branch16().into(), OperandSize::Word),
        OpKind::FarBranch32 => (ex.insn.far_branch_selector(), ex.insn.far_branch32().into(), OperandSize::Dword),
        _ => {
            let (selector, offset) = load_far_pointer(ex)?;
            (selector, offset, operand_size((ex.insn.memory_size().size() - 2) as u8))
        }
    };
    if ex.decoded.mnemonic == Mnemonic::Jmp {
        system::far_jmp(ex.cpu, ex.mem, selector, offset)
    } else {
        system::far_call(ex.cpu, ex.mem, selector, offset, size)
    }
}

pub(crate) fn far_return<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = match ex.insn.code() {
        Code::Retfw | Code::Retfw_imm16 => OperandSize::Word,
        Code::Retfd | Code::Retfd_imm16 => OperandSize::Dword,
        _ => OperandSize::Qword,
    };
    let release = if ex.insn.op_count() == 1 { ex.insn.immediate16() } else { 0 };
    system::far_ret(ex.cpu, ex.mem, size, release)
}

pub(crate) fn iret<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = match ex.decoded.mnemonic {
        Mnemonic::Iret => OperandSize::Word,
        Mnemonic::Iretd => OperandSize::Dword,
        _ => OperandSize::Qword,
    };
    system::iret(ex.cpu, ex.mem, size)
}

fn flags_image_size<M: GuestMemory>(ex: &Exec<'_, M>) -> u8 {
    match ex.decoded.mnemonic {
        Mnemonic::Pushf | Mnemonic::Popf => 2,
        Mnemonic::Pushfd | Mnemonic::Popfd => 4,
        _ => 8,
    }
}

pub(crate) fn pushf<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = flags_image_size(ex);
    ex.push(system::pushf(ex.cpu, operand_size(size)), size)
}

pub(crate) fn popf<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = flags_image_size(ex);
    let image = ex.pop(size)?;
    system::popf(ex.cpu, image, operand_size(size));
    Ok(())
}

/// SYSCALL, SYSRET, SYSENTER, SYSEXIT.
pub(crate) fn fast_call<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    match ex.decoded.mnemonic {
        Mnemonic::Syscall => system::syscall(ex.cpu),
        Mnemonic::Sysret => system::sysret(ex.cpu, OperandSize::Dword),
        Mnemonic::Sysretq => system::sysret(ex.cpu, OperandSize::Qword),
        Mnemonic::Sysenter => system::sysenter(ex.cpu),
        Mnemonic::Sysexit => system::sysexit(ex.cpu, OperandSize::Dword),
        _ => system::sysexit(ex.cpu, OperandSize::Qword),
    }
}

/// Instructions without explicit operands.
pub(crate) fn implicit<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    match ex.decoded.mnemonic {
        Mnemonic::Swapgs => system::swapgs(ex.cpu),
        Mnemonic::Cli => system::cli(ex.cpu),
        Mnemonic::Sti => system::sti(ex.cpu),
        Mnemonic::Rdmsr => system::rdmsr(ex.cpu),
        Mnemonic::Wrmsr => system::wrmsr(ex.cpu),
        Mnemonic::Rdtsc => system::rdtsc(ex.cpu),
        Mnemonic::Rdtscp => system::rdtscp(ex.cpu),
        Mnemonic::Rdpmc => system::rdpmc(ex.cpu),
        Mnemonic::Xgetbv => system::xgetbv(ex.cpu),
        Mnemonic::Xsetbv => system::xsetbv(ex.cpu),
        Mnemonic::Clts => system::clts(ex.cpu),
        // Both caches that INVD, WBINVD and INVLPG are about do not exist here; the privilege check remains.
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Invlpg => system::invlpg(ex.cpu),
        Mnemonic::Hlt => system::hlt(ex.cpu),
        Mnemonic::Cpuid => {
            system::cpuid(ex.cpu);
            Ok(())
        }
        _ => Err(Exception::UD),
    }
}

/// LGDT, LIDT, SGDT, SIDT.
pub(crate) fn descriptor_table<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let linear = ex.linear_address();
    match ex.decoded.mnemonic {
        Mnemonic::Lgdt => system::lgdt(ex.cpu, ex.mem, linear),
        Mnemonic::Lidt => system::lidt(ex.cpu, ex.mem, linear),
        Mnemonic::Sgdt => system::sgdt(ex.cpu, ex.mem, linear),
        _ => system::sidt(ex.cpu, ex.mem, linear),
    }
}

/// Instructions that take a 16-bit value: a selector or a machine status word.
pub(crate) fn selector_source<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    // The privilege check goes before the memory access.
    let privileged = !matches!(ex.decoded.mnemonic, Mnemonic::Verr | Mnemonic::Verw);
    if privileged && ex.cpu.cpl != 0 {
        return Err(Exception::GP0);
    }
    let value = ex.read(0)? as u16;
    match ex.decoded.mnemonic {
        Mnemonic::Lldt => system::lldt(ex.cpu, ex.mem, value),
        Mnemonic::Ltr => system::ltr(ex.cpu, ex.mem, value),
        Mnemonic::Verr => system::verr(ex.cpu, ex.mem, value),
        Mnemonic::Verw => system::verw(ex.cpu, ex.mem, value),
        _ => system::lmsw(ex.cpu, value),
    }
}

/// SLDT, STR, SMSW, RDPID: to memory only 16 bits go.
pub(crate) fn store_system_value<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let value = match ex.decoded.mnemonic {
        Mnemonic::Sldt => system::sldt(ex.cpu)?.into(),
        Mnemonic::Str => system::str(ex.cpu)?.into(),
        Mnemonic::Smsw => system::smsw(ex.cpu)?,
        _ => system::rdpid(ex.cpu)?,
    };
    ex.write(0, value)
}

/// ARPL (compatibility mode): raises the RPL of the destination to the source's.
pub(crate) fn arpl<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let destination = ex.read_destination()?;
    let source = ex.read(1)?;
    let raised = destination & 3 < source & 3;
    if raised {
        ex.write(0, destination & !3 | source & 3)?;
    }
    ex.set_flags(crate::flags::ZF, if raised { crate::flags::ZF } else { 0 });
    Ok(())
}

/// LAR and LSL write their destination only when the selector is fine.
pub(crate) fn inspect_selector<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let selector = ex.read(1)? as u16;
    let size = operand_size(ex.size(0));
    let found = match ex.decoded.mnemonic {
        Mnemonic::Lar => system::lar(ex.cpu, ex.mem, selector, size)?,
        _ => system::lsl(ex.cpu, ex.mem, selector, size)?,
    };
    found.map_or(Ok(()), |value| ex.write(0, value))
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
pub(crate) fn segment_base<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = operand_size(ex.size(0));
    let index = match ex.decoded.mnemonic {
        Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => SegmentIndex::Fs,
        _ => SegmentIndex::Gs,
    };
    if matches!(ex.decoded.mnemonic, Mnemonic::Rdfsbase | Mnemonic::Rdgsbase) {
        let base = system::rdbase(ex.cpu, index, size)?;
        ex.write(0, base)
    } else {
        let base = ex.read(0)?;
        system::wrbase(ex.cpu, index, base, size)
    }
}

/// RDRAND and RDSEED.
pub(crate) fn random<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    debug_assert_eq!(ex.decoded.operands[0].place, Place::Gpr);
    let number = match ex.decoded.mnemonic {
        Mnemonic::Rdrand => entropy::rdrand(ex.cpu)?,
        _ => entropy::rdseed(ex.cpu)?,
    };
    ex.write(0, number)
}

/// VMCALL: the service gate at CPL 0; without virtualization it does not exist otherwise.
pub(crate) fn vmcall<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.cpu.cpl == 0 { Ok(()) } else { Err(Exception::UD) }
}
