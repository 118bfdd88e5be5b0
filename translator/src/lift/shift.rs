//! Shifts and rotates (SDM vol. 1, 7.3.5 and 7.3.6), and BMI2's flagless ones.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Lifter;
use crate::effects::{ALL_FLAGS, CF, OF};
use crate::emit::{Arithmetic, Emitter, Lifted, NotLifted};
use crate::flags::FlagKind;

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Shl | M::Sal | M::Shr | M::Sar => shift,
        M::Rol | M::Ror => rotate,
        M::Rcl | M::Rcr => rotate_through_carry,
        M::Shld | M::Shrd => shift_double,
        M::Shlx | M::Shrx | M::Sarx => shift_flagless,
        M::Rorx => rorx,
        _ => return None,
    })
}

/// A shift count after masking (SDM vol. 2, SAL/SAR/SHL/SHR).
enum Count {
    Known(u32),
    Register(Value),
}

fn count(e: &mut Emitter<'_>, insn: &Instruction, index: u32, ty: Type) -> Result<Count, NotLifted> {
    let mask = if ty == types::I64 { 63 } else { 31 };
    match insn.op_kind(index) {
        OpKind::Immediate8 => Ok(Count::Known(u32::from(insn.immediate8()) & mask)),
        OpKind::Register => {
            let cl = e.gpr(Register::CL);
            Ok(Count::Register(e.b.ins().band_imm_u(cl, i64::from(mask))))
        }
        _ => Err(NotLifted),
    }
}

/// `value` shifted by `count`, 0 to 63, bits beyond the operand's width shifted out.
fn shifted(e: &mut Emitter<'_>, mnemonic: Mnemonic, value: Value, count: Value) -> Value {
    let ty = e.type_of(value);
    let narrow = ty.bits() < 32;
    let wide = match mnemonic {
        Mnemonic::Sar if narrow => e.b.ins().sextend(types::I32, value),
        _ if narrow => e.b.ins().uextend(types::I32, value),
        _ => value,
    };
    let result = match mnemonic {
        Mnemonic::Shr => e.b.ins().ushr(wide, count),
        Mnemonic::Sar => e.b.ins().sshr(wide, count),
        _ => e.b.ins().ishl(wide, count),
    };
    if narrow { e.b.ins().ireduce(ty, result) } else { result }
}

fn shift(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let count = count(e, insn, 1, ty)?;
    let kind = match insn.mnemonic() {
        Mnemonic::Shr => FlagKind::Shr,
        Mnemonic::Sar => FlagKind::Sar,
        _ => FlagKind::Shl,
    };
    let place = e.place(insn, 0)?;
    let a = e.get(place);
    let amount = match count {
        Count::Known(amount) => e.iconst(types::I8, i64::from(amount)),
        Count::Register(amount) => amount,
    };
    let result = shifted(e, insn.mnemonic(), a, amount);
    e.put(place, result);
    let operation = Arithmetic { kind, a, b: amount, carry: None, result };
    match count {
        Count::Known(0) => {}
        Count::Known(_) => e.set_flags(operation),
        Count::Register(amount) => e.unless_zero(amount, |e| e.set_flags(operation)),
    }
    Ok(())
}

/// ROL and ROR change CF and OF only, and not even these when the masked count is zero.
fn rotate(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let left = insn.mnemonic() == Mnemonic::Rol;
    let count = count(e, insn, 1, ty)?;
    let place = e.place(insn, 0)?;
    let value = e.get(place);
    let amount = match count {
        Count::Known(amount) => e.iconst(types::I8, i64::from(amount)),
        Count::Register(amount) => amount,
    };
    let result = if left { e.b.ins().rotl(value, amount) } else { e.b.ins().rotr(value, amount) };
    e.put(place, result);
    match count {
        Count::Known(0) => {}
        Count::Known(_) => rotate_flags(e, result, left),
        Count::Register(amount) => e.unless_zero(amount, |e| rotate_flags(e, result, left)),
    }
    Ok(())
}

/// RCL and RCR.
fn rotate_through_carry(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let amount = match count(e, insn, 1, ty)? {
        Count::Known(1) => return rotate_through_carry_once(e, insn, ty),
        Count::Known(amount) => e.iconst(types::I8, i64::from(amount)),
        Count::Register(amount) => amount,
    };
    let left = insn.mnemonic() == Mnemonic::Rcl;
    let place = e.place(insn, 0)?;
    let value = e.get(place);
    let carry = e.flag(CF);
    let carry = e.zero_extend64(carry);
    let (result, out) = if ty == types::I64 {
        rotated_65(e, left, value, carry, amount)
    } else {
        rotated_ring(e, left, value, carry, amount)
    };
    e.put(place, result);
    e.unless_zero(amount, |e| {
        let zero = e.iconst(ty, 0);
        let sign = e.b.ins().icmp(IntCC::SignedLessThan, result, zero);
        // As for one: the sign against CF, or the two upper bits.
        let overflow = if left {
            e.b.ins().bxor(sign, out)
        } else {
            let second = e.b.ins().ishl_imm_u(result, 1);
            let second = e.b.ins().icmp(IntCC::SignedLessThan, second, zero);
            e.b.ins().bxor(sign, second)
        };
        e.set_flag_bits(ALL_FLAGS, &[(CF, out), (OF, overflow)]);
    });
    Ok(())
}

/// An operand of up to 32 bits with the carry above it, rotated within 64 bits: result and carry. Only 8 and 16 bits can be
/// rotated all the way round.
fn rotated_ring(e: &mut Emitter<'_>, left: bool, value: Value, carry: Value, amount: Value) -> (Value, Value) {
    let ty = e.type_of(value);
    let bits = i64::from(ty.bits());
    let amount = e.b.ins().uextend(types::I32, amount);
    let amount = if bits < 32 { e.b.ins().urem_imm_u(amount, bits + 1) } else { amount };
    let ring_bits = e.iconst(types::I32, bits + 1);
    let rest = e.b.ins().isub(ring_bits, amount);
    let wide = e.zero_extend64(value);
    let carry = e.b.ins().ishl_imm_u(carry, bits);
    let ring = e.b.ins().bor(wide, carry);
    let (up, down) = if left { (amount, rest) } else { (rest, amount) };
    let (up, down) = (e.b.ins().ishl(ring, up), e.b.ins().ushr(ring, down));
    let ring = e.b.ins().bor(up, down);
    let out = e.b.ins().ushr_imm_u(ring, bits);
    let out = e.b.ins().ireduce(types::I8, out);
    (e.b.ins().ireduce(ty, ring), e.b.ins().band_imm_u(out, 1))
}

/// The same for 64 bits; a rotation by zero leaves the value, and a carry that means nothing.
fn rotated_65(e: &mut Emitter<'_>, left: bool, value: Value, carry: Value, amount: Value) -> (Value, Value) {
    // Shifts take their counts modulo 64; by 65 - amount is by 1, then by 64 - amount.
    let rest = e.b.ins().ineg(amount);
    let less = e.b.ins().iadd_imm_s(amount, -1);
    let (main, wrapped, in_place, out) = if left {
        let once = e.b.ins().ushr_imm_u(value, 1);
        let main = e.b.ins().ishl(value, amount);
        (main, e.b.ins().ushr(once, rest), e.b.ins().ishl(carry, less), e.b.ins().ushr(value, rest))
    } else {
        let once = e.b.ins().ishl_imm_u(value, 1);
        let main = e.b.ins().ushr(value, amount);
        (main, e.b.ins().ishl(once, rest), e.b.ins().ishl(carry, rest), e.b.ins().ushr(value, less))
    };
    let rotated = e.b.ins().bor(main, wrapped);
    let rotated = e.b.ins().bor(rotated, in_place);
    let result = e.b.ins().select(amount, rotated, value);
    let out = e.b.ins().ireduce(types::I8, out);
    (result, e.b.ins().band_imm_u(out, 1))
}

/// RCL and RCR by one.
fn rotate_through_carry_once(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    let place = e.place(insn, 0)?;
    let value = e.get(place);
    let carry = e.flag(CF);
    let carry = e.resize(carry, ty);
    let top = i64::from(ty.bits() - 1);
    let (result, out) = if insn.mnemonic() == Mnemonic::Rcl {
        let shifted = e.b.ins().ishl_imm_u(value, 1);
        (e.b.ins().bor(shifted, carry), e.b.ins().ushr_imm_u(value, top))
    } else {
        let shifted = e.b.ins().ushr_imm_u(value, 1);
        let carry = e.b.ins().ishl_imm_u(carry, top);
        (e.b.ins().bor(shifted, carry), e.b.ins().band_imm_u(value, 1))
    };
    // OF: the sign has changed, on the way to the left; the two upper bits differ, behind the way to the right.
    let other = if insn.mnemonic() == Mnemonic::Rcl { value } else { e.b.ins().ishl_imm_u(result, 1) };
    let differs = e.b.ins().bxor(result, other);
    let zero = e.iconst(ty, 0);
    let overflow = e.b.ins().icmp(IntCC::SignedLessThan, differs, zero);
    let out = e.resize(out, types::I8);
    e.put(place, result);
    e.set_flag_bits(ALL_FLAGS, &[(CF, out), (OF, overflow)]);
    Ok(())
}

fn rotate_flags(e: &mut Emitter<'_>, result: Value, left: bool) {
    let ty = e.type_of(result);
    let zero = e.iconst(ty, 0);
    let sign = e.b.ins().icmp(IntCC::SignedLessThan, result, zero);
    let (carry, overflow) = if left {
        let low = e.resize(result, types::I8);
        let carry = e.b.ins().band_imm_u(low, 1);
        (carry, e.b.ins().bxor(carry, sign))
    } else {
        let next = e.b.ins().ishl_imm_u(result, 1);
        let next = e.b.ins().icmp(IntCC::SignedLessThan, next, zero);
        (sign, e.b.ins().bxor(sign, next))
    };
    e.set_flag_bits(ALL_FLAGS, &[(CF, carry), (OF, overflow)]);
}

/// SHLD and SHRD.
fn shift_double(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let left = insn.mnemonic() == Mnemonic::Shld;
    let count = count(e, insn, 2, ty)?;
    let amount = match count {
        Count::Known(0) => return write_back(e, insn),
        Count::Known(amount) => e.iconst(types::I8, i64::from(amount)),
        Count::Register(amount) => amount,
    };
    let place = e.place(insn, 0)?;
    let a = e.get(place);
    let fill = e.gpr(insn.op1_register());
    if ty.bits() < 32 {
        let (result, carry) = shifted_words(e, left, a, fill, amount);
        e.put(place, result);
        match count {
            Count::Register(amount) => e.unless_zero(amount, |e| double_flags(e, a, result, carry)),
            Count::Known(_) => double_flags(e, a, result, carry),
        }
        return Ok(());
    }
    let kind = if left { FlagKind::Shl } else { FlagKind::Shr };
    let mask = i64::from(ty.bits() - 1);
    let opposite = e.b.ins().bxor_imm_u(amount, mask);
    // Shifting by one first makes a count of zero come out right.
    let result = if left {
        let main = e.b.ins().ishl(a, amount);
        let half = e.b.ins().ushr_imm_u(fill, 1);
        let rest = e.b.ins().ushr(half, opposite);
        e.b.ins().bor(main, rest)
    } else {
        let main = e.b.ins().ushr(a, amount);
        let half = e.b.ins().ishl_imm_u(fill, 1);
        let rest = e.b.ins().ishl(half, opposite);
        e.b.ins().bor(main, rest)
    };
    e.put(place, result);
    match count {
        Count::Register(amount) => e.unless_zero(amount, |e| {
            let carry = e.shifted_out(kind, a, amount);
            double_flags(e, a, result, carry);
        }),
        Count::Known(_) => {
            let carry = e.shifted_out(kind, a, amount);
            double_flags(e, a, result, carry);
        }
    }
    Ok(())
}

/// SHLD and SHRD of 16 bits: result and carry. Beyond 16 positions, where the manual leaves the result open, the destination's
/// bits follow the source's, as measured.
fn shifted_words(e: &mut Emitter<'_>, left: bool, a: Value, fill: Value, amount: Value) -> (Value, Value) {
    const BITS: i64 = 16;
    let (outer, inner) = (e.zero_extend64(a), e.zero_extend64(fill));
    let upper = e.b.ins().ishl_imm_u(outer, 2 * BITS);
    let middle = e.b.ins().ishl_imm_u(inner, BITS);
    let joined = e.b.ins().bor(upper, middle);
    let joined = e.b.ins().bor(joined, outer);
    let (by, out_by) = if left {
        let less = e.b.ins().ineg(amount);
        (e.b.ins().iadd_imm_s(less, 2 * BITS), e.b.ins().iadd_imm_s(less, 3 * BITS))
    } else {
        (amount, e.b.ins().iadd_imm_s(amount, -1))
    };
    let result = e.b.ins().ushr(joined, by);
    let out = e.b.ins().ushr(joined, out_by);
    let out = e.b.ins().ireduce(types::I8, out);
    (e.b.ins().ireduce(types::I16, result), e.b.ins().band_imm_u(out, 1))
}

/// CF is the last bit shifted out, OF a change of sign (for every count); AF is cleared.
fn double_flags(e: &mut Emitter<'_>, a: Value, result: Value, carry: Value) {
    let ty = e.type_of(a);
    let zero = e.iconst(ty, 0);
    let changed = e.b.ins().bxor(a, result);
    let overflow = e.b.ins().icmp(IntCC::SignedLessThan, changed, zero);
    e.set_flags_logic(result);
    e.override_flags(&[(CF, carry), (OF, overflow)]);
}

/// A count of zero: the destination is written unchanged, which matters for a 32-bit register's upper half.
fn write_back(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let place = e.place(insn, 0)?;
    let value = e.get(place);
    e.put(place, value);
    Ok(())
}

/// SHLX, SHRX, SARX: destination, source, count register of the same size.
fn shift_flagless(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let value = e.read(insn, 1, ty)?;
    let count = e.gpr(insn.op_register(2));
    let count = e.b.ins().band_imm_u(count, i64::from(ty.bits() - 1));
    let result = match insn.mnemonic() {
        Mnemonic::Shlx => e.b.ins().ishl(value, count),
        Mnemonic::Shrx => e.b.ins().ushr(value, count),
        _ => e.b.ins().sshr(value, count),
    };
    e.set_gpr(insn.op0_register(), result);
    Ok(())
}

fn rorx(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let value = e.read(insn, 1, ty)?;
    let count = i64::from(u32::from(insn.immediate8()) & (ty.bits() - 1));
    let result = e.b.ins().rotr_imm_u(value, count);
    e.set_gpr(insn.op0_register(), result);
    Ok(())
}
