//! DIV and IDIV (SDM vol. 2). A zero divisor and a quotient that does not fit trap to the site, where the interpreter
//! raises #DE. Dividends of more than 64 bits are divided by a host operation, signed ones by their magnitudes.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{BlockArg, InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, Register};

use super::Lifter;
use crate::emit::{Emitter, Lifted, NotLifted};
use crate::host_op::HostOp;

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
    by_width(
        e,
        high,
        |e| e.host_results(HostOp::Divide128, &[low, divisor, high]).map(|results| [results[0], results[1]]),
        |e| {
            let quotient = e.b.ins().udiv(low, divisor);
            [quotient, remainder(e, quotient, low, divisor)]
        },
    )
}

/// The remainder follows from the quotient modulo 2^64.
fn remainder(e: &mut Emitter<'_>, quotient: Value, low: Value, divisor: Value) -> Value {
    let product = e.b.ins().imul(quotient, divisor);
    e.b.ins().isub(low, product)
}

/// Sets RAX and RDX to quotient and remainder, from `wide` if the condition is not zero at run time, else from `narrow`.
fn by_width(
    e: &mut Emitter<'_>,
    is_wide: Value,
    wide: impl FnOnce(&mut Emitter<'_>) -> Result<[Value; 2], NotLifted>,
    narrow: impl FnOnce(&mut Emitter<'_>) -> [Value; 2],
) -> Lifted {
    let (wide_block, narrow_block, join) = (e.b.create_block(), e.b.create_block(), e.b.create_block());
    let results = [0, 1].map(|_| e.b.append_block_param(join, types::I64));
    e.b.ins().brif(is_wide, wide_block, &[], narrow_block, &[]);
    e.b.switch_to_block(wide_block);
    e.b.seal_block(wide_block);
    let values = wide(e)?;
    e.b.ins().jump(join, &values.map(BlockArg::Value));
    e.b.switch_to_block(narrow_block);
    e.b.seal_block(narrow_block);
    let values = narrow(e);
    e.b.ins().jump(join, &values.map(BlockArg::Value));
    e.b.switch_to_block(join);
    e.b.seal_block(join);
    e.set_gpr64(0, results[0]);
    e.set_gpr64(2, results[1]);
    Ok(())
}

/// `value`, negated if `sign` is -1 rather than 0.
fn with_sign(e: &mut Emitter<'_>, value: Value, sign: Value) -> Value {
    let flipped = e.b.ins().bxor(value, sign);
    e.b.ins().isub(flipped, sign)
}

fn idiv64(e: &mut Emitter<'_>, divisor: Value) -> Lifted {
    let (low, high) = (e.gpr64(0), e.gpr64(2));
    let extension = e.b.ins().sshr_imm_u(low, 63);
    let is_wide = e.b.ins().icmp(IntCC::NotEqual, high, extension);
    let wide = |e: &mut Emitter<'_>| {
        let sign = e.b.ins().sshr_imm_u(high, 63);
        let divisor_sign = e.b.ins().sshr_imm_u(divisor, 63);
        // The dividend's magnitude: a borrow goes from the low half to the high one.
        let low_magnitude = with_sign(e, low, sign);
        let low_is_zero = e.b.ins().icmp_imm_u(IntCC::Equal, low, 0);
        let carry = e.zero_extend64(low_is_zero);
        let carry = e.b.ins().band(carry, sign);
        let flipped = e.b.ins().bxor(high, sign);
        let high_magnitude = e.b.ins().iadd(flipped, carry);
        let divisor_magnitude = with_sign(e, divisor, divisor_sign);
        let misfit = e.b.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, high_magnitude, divisor_magnitude);
        e.trap_if(misfit);
        let results = e.host_results(HostOp::Divide128, &[low_magnitude, divisor_magnitude, high_magnitude])?;
        let (quotient, remainder) = (results[0], results[1]);
        // At most 2^63 - 1, or 2^63 for a negative quotient.
        let quotient_sign = e.b.ins().bxor(sign, divisor_sign);
        let most = e.iconst(types::I64, i64::MAX);
        let most = e.b.ins().isub(most, quotient_sign);
        let misfit = e.b.ins().icmp(IntCC::UnsignedGreaterThan, quotient, most);
        e.trap_if(misfit);
        Ok([with_sign(e, quotient, quotient_sign), with_sign(e, remainder, sign)])
    };
    by_width(e, is_wide, wide, |e| {
        trap_if_unrepresentable(e, low, divisor);
        let quotient = e.b.ins().sdiv(low, divisor);
        [quotient, remainder(e, quotient, low, divisor)]
    })
}

/// The one quotient that 64 bits cannot hold.
fn trap_if_unrepresentable(e: &mut Emitter<'_>, dividend: Value, divisor: Value) {
    let lowest = e.b.ins().icmp_imm_s(IntCC::Equal, dividend, i64::MIN);
    let minus_one = e.b.ins().icmp_imm_s(IntCC::Equal, divisor, -1);
    let overflow = e.b.ins().band(lowest, minus_one);
    e.trap_if(overflow);
}

fn idiv(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let divisor = e.read(insn, 0, ty)?;
    trap_if_zero(e, divisor);
    if ty == types::I64 {
        return idiv64(e, divisor);
    }
    let dividend = narrow_dividend(e, ty);
    let unused = 64 - 2 * i64::from(ty.bits());
    let shifted = e.b.ins().ishl_imm_u(dividend, unused);
    let dividend = e.b.ins().sshr_imm_u(shifted, unused);
    let divisor = e.b.ins().sextend(types::I64, divisor);
    trap_if_unrepresentable(e, dividend, divisor);
    let quotient = e.b.ins().sdiv(dividend, divisor);
    let narrow = e.b.ins().ireduce(ty, quotient);
    let again = e.b.ins().sextend(types::I64, narrow);
    let misfit = e.b.ins().icmp(IntCC::NotEqual, again, quotient);
    e.trap_if(misfit);
    let remainder = remainder(e, quotient, dividend, divisor);
    store_narrow(e, ty, quotient, remainder);
    Ok(())
}
