//! System instructions (SDM vol. 1, 7.3.17 and 5.22): which helper carries out which.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::mem::offset_of;

use super::{Lifter, only_if};
use crate::abi::{Helper, Mode, VcpuBlock};
use crate::emit::{Emitter, Lifted, int_type};
use lstar_arch::control::cr4;
use lstar_arch::system::TSC_PER_INSTRUCTION;
use lstar_arch::{CpuState, Gpr, Rflags, SegmentIndex};

const CPU: usize = offset_of!(VcpuBlock, cpu);

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    Some(match mnemonic {
        Mnemonic::Cld | Mnemonic::Std => direction,
        Mnemonic::Cli | Mnemonic::Sti => interrupts,
        Mnemonic::Swapgs => swapgs,
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => segment_base,
        Mnemonic::Rdtsc | Mnemonic::Rdtscp => time_stamp,
        Mnemonic::Rdpid => processor_number,
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
        M::Lss | M::Lds | M::Les | M::Lfs | M::Lgs => true,
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

/// Traps to the site unless, or if, a bit of CR4 is set.
fn trap_by_cr4(e: &mut Emitter<'_>, bit: u64, if_set: bool) {
    let value = e.load_state(types::I64, CPU + offset_of!(CpuState, cr4));
    let bit = e.b.ins().band_imm_u(value, bit as i64);
    let code = if if_set { IntCC::NotEqual } else { IntCC::Equal };
    let refused = e.b.ins().icmp_imm_u(code, bit, 0);
    e.trap_if(refused);
}

/// RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE, which exist in 64-bit code only.
fn segment_base(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!e.is_32bit())?;
    let segment = match insn.mnemonic() {
        Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => SegmentIndex::Fs,
        _ => SegmentIndex::Gs,
    };
    let register = insn.op0_register();
    trap_by_cr4(e, cr4::FSGSBASE, false);
    if matches!(insn.mnemonic(), Mnemonic::Rdfsbase | Mnemonic::Rdgsbase) {
        let base = e.segment_base(segment);
        let base = e.resize(base, int_type(register.size())?);
        e.set_gpr(register, base);
        return Ok(());
    }
    let base = e.gpr(register);
    let base = e.zero_extend64(base);
    if register.size() == 8 {
        // Canonical: bits 47 to 63 are all the same.
        let upper = e.b.ins().sshr_imm_u(base, 47);
        let both = e.b.ins().iadd_imm_s(upper, 1);
        let refused = e.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, both, 1);
        e.trap_if(refused);
    }
    e.set_segment_base(segment, base);
    Ok(())
}

/// RDTSC and RDTSCP: the counter counts retired instructions, this one included.
fn time_stamp(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    if e.is_user() {
        trap_by_cr4(e, cr4::TSD, true);
    }
    let end = e.load_state(types::I64, offset_of!(VcpuBlock, tsc_at_end));
    let left = e.budget_behind();
    let left = e.b.ins().imul_imm_u(left, TSC_PER_INSTRUCTION as i64);
    let value = e.b.ins().isub(end, left);
    let low = e.b.ins().ireduce(types::I32, value);
    e.set_gpr(Register::EAX, low);
    let high = e.b.ins().ushr_imm_u(value, 32);
    e.set_gpr64(Gpr::Rdx as usize, high);
    if insn.mnemonic() == Mnemonic::Rdtscp {
        let number = e.load_state(types::I32, CPU + offset_of!(CpuState, tsc_aux));
        e.set_gpr(Register::ECX, number);
    }
    Ok(())
}

/// RDPID.
fn processor_number(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let number = e.load_state(types::I32, CPU + offset_of!(CpuState, tsc_aux));
    let number = e.resize(number, int_type(insn.op0_register().size())?);
    e.set_gpr(insn.op0_register(), number);
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
