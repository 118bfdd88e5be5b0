//! System instructions (SDM vol. 1, 7.3.17 and 5.22): which helper carries out which.

use cranelift_codegen::ir::{InstBuilder, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::mem::offset_of;

use super::Lifter;
use crate::abi::{Helper, Mode, VcpuBlock};
use crate::emit::{Emitter, Lifted};
use lstar_arch::{CpuState, Rflags};

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    Some(match mnemonic {
        Mnemonic::Cld | Mnemonic::Std => direction,
        Mnemonic::Cli | Mnemonic::Sti => interrupts,
        Mnemonic::Swapgs => swapgs,
        _ => return None,
    })
}

/// Whether an instruction that is no branch must still end its block, because it can change privilege, mode,
/// interruptibility or what is mapped, or is not allowed in `mode`.
pub(crate) fn leaves(insn: &Instruction, mode: Mode) -> bool {
    use Mnemonic as M;
    let special =
        |register: Register| register.is_segment_register() || register.is_cr() || register.is_dr() || register.is_tr();
    match insn.mnemonic() {
        M::Swapgs | M::Rdmsr | M::Cli | M::Sti => mode.is_user(),
        M::Popf | M::Popfd | M::Popfq | M::Hlt | M::Wrmsr | M::Invlpg | M::Wbinvd | M::Invd => true,
        M::Lgdt | M::Lidt | M::Lldt | M::Ltr | M::Lmsw | M::Clts | M::Xsetbv | M::Xrstor | M::Xrstor64 => true,
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => true,
        M::Wrfsbase | M::Wrgsbase | M::Lss | M::Lds | M::Les | M::Lfs | M::Lgs => true,
        M::Mov | M::Pop => insn.op0_kind() == OpKind::Register && special(insn.op0_register()),
        _ => insn.is_privileged(),
    }
}

/// The `Check` or `Resume` helper other than the interpreter that carries out `insn`, and its argument.
pub(crate) fn helper(insn: &Instruction, mode: Mode) -> Option<(Helper, u64)> {
    match insn.mnemonic() {
        // The helper takes the instruction for three bytes long; with a prefix it is the interpreter's.
        // At CPL 3 the call usually comes back behind it.
        Mnemonic::Syscall if mode == Mode::User && insn.len() == 2 => Some((Helper::Syscall, insn.next_ip())),
        Mnemonic::Vmcall if mode == Mode::Kernel && insn.len() == 3 => Some((Helper::ServiceGate, insn.next_ip())),
        _ => None,
    }
}

/// CLI and STI at CPL 0, where IOPL never forbids them. STI's interrupt shadow has nothing to hold off: external
/// interrupts come at region borders only, and single-stepped code is not translated.
fn interrupts(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    change_rflags(e, Rflags::IF, insn.mnemonic() == Mnemonic::Sti);
    Ok(())
}

/// SWAPGS at CPL 0.
fn swapgs(e: &mut Emitter<'_>, _: &Instruction) -> Lifted {
    e.swap_gs_base(offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, kernel_gs_base));
    Ok(())
}

/// CLD and STD: DF is not a status flag and always lives in `cpu.rflags`.
fn direction(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    change_rflags(e, Rflags::DF, insn.mnemonic() == Mnemonic::Std);
    Ok(())
}

/// Sets or clears a bit that is no status flag.
fn change_rflags(e: &mut Emitter<'_>, bit: Rflags, set: bool) {
    let offset = offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, rflags);
    let rflags = e.load_state(types::I64, offset);
    let bit = bit.bits() as i64;
    let rflags = if set { e.b.ins().bor_imm_u(rflags, bit) } else { e.b.ins().band_imm_s(rflags, !bit) };
    e.store_state(rflags, offset);
}
