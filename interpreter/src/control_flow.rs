//! Near control transfers (SDM vol. 1, 5.1.7). Far ones are in [`crate::system`].

use iced_x86::{Code, Mnemonic};
use lstar_arch::{CpuState, Exception, Gpr, GuestMemory, Vector};

use crate::decode::{Decoded, is_far};
use crate::exec::{Exec, Op};
use crate::flags::{OF, ZF, condition, mask};
use crate::system;

pub(crate) fn jmp<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if is_far(ex.insn) {
        return system::far_transfer(ex);
    }
    let target = ex.read(0)?;
    ex.jump(target)
}

pub(crate) fn jcc<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if condition(ex.decoded.condition, ex.cpu.rflags) { ex.jump(ex.decoded.immediate) } else { Ok(()) }
}

/// A non-canonical target faults before anything is pushed.
pub(crate) fn call<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if is_far(ex.insn) {
        return system::far_transfer(ex);
    }
    let target = ex.read(0)?;
    ex.check_target(target)?;
    let size = ex.insn.stack_pointer_increment().unsigned_abs() as u8;
    ex.push(ex.cpu.rip, size)?;
    ex.cpu.rip = target;
    Ok(())
}

pub(crate) fn ret<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = match ex.insn.code() {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        _ => 8,
    };
    let saved = ex.cpu.reg(Gpr::Rsp);
    let target = ex.pop(size)?;
    ex.check_target(target).inspect_err(|_| ex.cpu.set_reg(Gpr::Rsp, saved))?;
    if ex.insn.op_count() == 1 {
        let width = ex.stack_size();
        let top = ex.cpu.reg(Gpr::Rsp).wrapping_add(u64::from(ex.insn.immediate16()));
        ex.set_register(Gpr::Rsp, top, width);
    }
    ex.cpu.rip = target;
    Ok(())
}

/// Size of the counter of LOOPcc and JrCXZ: the address size.
fn counter_size(code: Code) -> u8 {
    match code {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX
        | Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32 => 2,
        Code::Loop_rel8_16_ECX
        | Code::Loop_rel8_32_ECX
        | Code::Loop_rel8_64_ECX
        | Code::Loope_rel8_16_ECX
        | Code::Loope_rel8_32_ECX
        | Code::Loope_rel8_64_ECX
        | Code::Loopne_rel8_16_ECX
        | Code::Loopne_rel8_32_ECX
        | Code::Loopne_rel8_64_ECX
        | Code::Jecxz_rel8_16
        | Code::Jecxz_rel8_32
        | Code::Jecxz_rel8_64 => 4,
        _ => 8,
    }
}

/// Whether a conditional near branch is going to be taken.
pub(crate) fn takes_branch(cpu: &CpuState, decoded: &Decoded) -> bool {
    let size = counter_size(decoded.insn.code());
    let counter = cpu.reg(Gpr::Rcx);
    let again = counter.wrapping_sub(1) & mask(size) != 0;
    let zero = cpu.rflags & ZF != 0;
    match decoded.mnemonic {
        Mnemonic::Loop => again,
        Mnemonic::Loope => again && zero,
        Mnemonic::Loopne => again && !zero,
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => counter & mask(size) == 0,
        _ => condition(decoded.condition, cpu.rflags),
    }
}

/// LOOP, LOOPE, LOOPNE. The counter is not touched when the target faults.
pub(crate) fn loop_cc<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = counter_size(ex.insn.code());
    let count = ex.cpu.reg(Gpr::Rcx).wrapping_sub(1) & mask(size);
    let zero = ex.cpu.rflags & ZF != 0;
    let taken = count != 0
        && match ex.decoded.mnemonic {
            Mnemonic::Loope => zero,
            Mnemonic::Loopne => !zero,
            _ => true,
        };
    if taken {
        ex.jump(ex.decoded.immediate)?;
    }
    ex.set_register(Gpr::Rcx, count, size);
    Ok(())
}

/// JCXZ, JECXZ, JRCXZ.
pub(crate) fn jrcxz<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = counter_size(ex.insn.code());
    if ex.cpu.reg(Gpr::Rcx) & mask(size) == 0 { ex.jump(ex.decoded.immediate) } else { Ok(()) }
}

/// INT3 and INTO: traps, RIP stays behind the instruction.
pub(crate) fn int3<M: GuestMemory>(_: &mut Exec<'_, M>) -> Op {
    Err(Exception::BP)
}

/// INT1: a #DB trap that reports nothing in DR6.
pub(crate) fn int1<M: GuestMemory>(_: &mut Exec<'_, M>) -> Op {
    Err(Exception::db(0))
}

pub(crate) fn into<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.cpu.rflags & OF != 0 { Err(Exception::OF) } else { Ok(()) }
}

/// BOUND (compatibility mode).
pub(crate) fn bound<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = ex.size(0);
    let linear = ex.linear_address();
    let signed = |value| crate::flags::sign_extend(value, size) as i64;
    let lower = signed(ex.load_sized(linear, size)?);
    let upper = signed(ex.load_sized(linear.wrapping_add(u64::from(size)) & 0xFFFF_FFFF, size)?);
    let index = signed(ex.read(0)?);
    if index < lower || index > upper { Err(Exception { vector: Vector::BoundRange, ..Exception::UD }) } else { Ok(()) }
}
