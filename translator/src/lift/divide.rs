//! DIV and IDIV (SDM vol. 2). A zero divisor and a quotient that does not fit trap to the site, where the interpreter
//! raises #DE; so does the rare signed division whose dividend needs more than 64 bits, which it then carries out.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{BlockArg, InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, Register};

use super::Lifter;
use crate::abi::Helper;
use crate::emit::{Emitter, Lifted};

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    match mnemonic {
        Mnemonic::Div => Some(div),
        Mnemonic::Idiv => Some(idiv),
        _ => None,
    }
}

/// Registers of low and high dividend half, which receive quotient and remainder.
fn halves(ty: Type) -> (Register, Register) {
    match ty {
        types::I16 => (Register::AX, Register::DX),
        types::I32 => (Register::EAX, Register::EDX),
        _ => (Register::RAX, Register::RDX),
    }
}

fn trap_if_zero(e: &mut Emitter<'_>, divisor: Value) {
    let ty = e.type_of(divisor);
    let zero = e.iconst(ty, 0);
    let bad = e.b.ins().icmp(IntCC::Equal, divisor, zero);
    e.trap_if(bad);
}

/// The dividend of a narrow division as a 64-bit value (zero-extended from twice `ty`), and the divisor.
fn narrow_dividend(e: &mut Emitter<'_>, ty: Type) -> Value {
    if ty == types::I8 {
        let ax = e.gpr(Register::AX);
        return e.zero_extend64(ax);
    }
    let (low, high) = halves(ty);
    let (low, high) = (e.gpr(low), e.gpr(high));
    let (low, high) = (e.zero_extend64(low), e.zero_extend64(high));
    let high = e.b.ins().ishl_imm_u(high, i64::from(ty.bits()));
    e.b.ins().bor(high, low)
}

fn store_narrow(e: &mut Emitter<'_>, ty: Type, quotient: Value, remainder: Value) {
    let quotient = e.b.ins().ireduce(ty, quotient);
    let remainder = e.b.ins().ireduce(ty, remainder);
    let (low, high) = if ty == types::I8 { (Register::AL, Register::AH) } else { halves(ty) };
    e.set_gpr(low, quotient);
    e.set_gpr(high, remainder);
}

/// The flags are undefined after a division; they are left alone.
fn div(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let divisor = e.read(insn, 0, ty)?;
    trap_if_zero(e, divisor);
    if ty == types::I64 {
        return div64(e, divisor);
    }
    let dividend = narrow_dividend(e, ty);
    let divisor = e.zero_extend64(divisor);
    let quotient = e.b.ins().udiv(dividend, divisor);
    let excess = e.b.ins().ushr_imm_u(quotient, i64::from(ty.bits()));
    e.trap_if(excess);
    let remainder = e.b.ins().urem(dividend, divisor);
    store_narrow(e, ty, quotient, remainder);
    Ok(())
}

fn div64(e: &mut Emitter<'_>, divisor: Value) -> Lifted {
    let (low, high) = (e.gpr64(0), e.gpr64(2));
    let overflow = e.b.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, high, divisor);
    e.trap_if(overflow);
    let (wide, narrow, join) = (e.b.create_block(), e.b.create_block(), e.b.create_block());
    let quotient = e.b.append_block_param(join, types::I64);
    e.b.set_cold_block(wide);
    e.b.ins().brif(high, wide, &[], narrow, &[]);
    e.b.switch_to_block(wide);
    e.b.seal_block(wide);
    let result = e.call_helper(Helper::UDiv128, &[high, low, divisor]);
    e.b.ins().jump(join, &[BlockArg::Value(result)]);
    e.b.switch_to_block(narrow);
    e.b.seal_block(narrow);
    let result = e.b.ins().udiv(low, divisor);
    e.b.ins().jump(join, &[BlockArg::Value(result)]);
    e.b.switch_to_block(join);
    e.b.seal_block(join);
    finish64(e, quotient, low, divisor);
    Ok(())
}

/// The remainder follows from the quotient modulo 2^64.
fn finish64(e: &mut Emitter<'_>, quotient: Value, low: Value, divisor: Value) {
    let product = e.b.ins().imul(quotient, divisor);
    let remainder = e.b.ins().isub(low, product);
    e.set_gpr64(0, quotient);
    e.set_gpr64(2, remainder);
}

fn idiv(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let divisor = e.read(insn, 0, ty)?;
    trap_if_zero(e, divisor);
    let (dividend, divisor) = match ty {
        types::I64 => {
            let (low, high) = (e.gpr64(0), e.gpr64(2));
            let sign = e.b.ins().sshr_imm_u(low, 63);
            let wide = e.b.ins().icmp(IntCC::NotEqual, high, sign);
            e.trap_if(wide);
            (low, divisor)
        }
        _ => {
            let dividend = narrow_dividend(e, ty);
            let unused = 64 - 2 * i64::from(ty.bits());
            let shifted = e.b.ins().ishl_imm_u(dividend, unused);
            let dividend = e.b.ins().sshr_imm_u(shifted, unused);
            (dividend, e.b.ins().sextend(types::I64, divisor))
        }
    };
    // The one quotient that 64 bits cannot hold.
    let lowest = e.b.ins().icmp_imm_s(IntCC::Equal, dividend, i64::MIN);
    let minus_one = e.b.ins().icmp_imm_s(IntCC::Equal, divisor, -1);
    let overflow = e.b.ins().band(lowest, minus_one);
    e.trap_if(overflow);
    let quotient = e.b.ins().sdiv(dividend, divisor);
    if ty == types::I64 {
        finish64(e, quotient, dividend, divisor);
        return Ok(());
    }
    let narrow = e.b.ins().ireduce(ty, quotient);
    let again = e.b.ins().sextend(types::I64, narrow);
    let misfit = e.b.ins().icmp(IntCC::NotEqual, again, quotient);
    e.trap_if(misfit);
    let product = e.b.ins().imul(quotient, divisor);
    let remainder = e.b.ins().isub(dividend, product);
    store_narrow(e, ty, quotient, remainder);
    Ok(())
}
