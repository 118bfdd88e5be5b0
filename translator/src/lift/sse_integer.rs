//! Packed integer arithmetic, comparison and shifts (SDM vol. 1, 10.4.4, 11.4.2, 12.5, 12.10), PTEST.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::sse_shuffle::{picked, shifted_bytes};
use super::{Lifter, base, first_source, last_source, only_if};
use crate::effects::{AF, CF, OF, PF, SF, ZF};
use crate::emit::{Emitter, Halves, Lifted, is_wide};
use crate::host_op::HostSignature;

/// `(destination, source) -> result`, vectors of the table's type.
pub(super) type Binary = fn(&mut Emitter<'_>, Value, Value) -> Value;

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    if operation(mnemonic).is_some() {
        return Some(|e, insn| match operation(base(insn)) {
            Some((ty, op)) => lanewise(e, insn, ty, op),
            None => only_if(false),
        });
    }
    Some(match mnemonic {
        M::Psllw | M::Psrlw | M::Psraw => |e, insn| shift(e, insn, types::I16X8),
        M::Pslld | M::Psrld | M::Psrad => |e, insn| shift(e, insn, types::I32X4),
        M::Psllq | M::Psrlq => |e, insn| shift(e, insn, types::I64X2),
        M::Pslldq | M::Psrldq => shift_bytes,
        M::Ptest => test,
        _ => return None,
    })
}

/// `op0 = op(first source, last source)` on vectors of type `ty`. Operations with one source ignore `op`'s first operand.
pub(super) fn lanewise(e: &mut Emitter<'_>, insn: &Instruction, ty: Type, op: Binary) -> Lifted {
    only_if(insn.op0_register().is_xmm() || insn.op0_register().is_ymm())?;
    let wide = is_wide(insn);
    let b = e.halves(insn, last_source(insn), ty, wide)?;
    let a = if is_unary_vex(insn) { b } else { e.halves(insn, first_source(insn), ty, wide)? };
    let result = a.zip(b, |a, b| op(e, a, b));
    e.set_halves(insn.op0_register(), result);
    Ok(())
}

/// Whether a VEX-encoded instruction has one source and a destination that it does not read.
fn is_unary_vex(insn: &Instruction) -> bool {
    crate::emit::is_vex(insn) && last_source(insn) == 1
}

/// A table entry for an operation that is one CLIF instruction.
macro_rules! plain {
    ($ty:ident, $op:ident) => {
        (types::$ty, |e, a, b| e.b.ins().$op(a, b))
    };
}

/// A table entry for a comparison.
macro_rules! compare {
    ($ty:ident, $condition:ident) => {
        (types::$ty, |e, a, b| e.b.ins().icmp(IntCC::$condition, a, b))
    };
}

pub(super) fn operation(mnemonic: Mnemonic) -> Option<(Type, Binary)> {
    use Mnemonic as M;
    let (ty, op): (Type, Binary) = match mnemonic {
        M::Paddb => plain!(I8X16, iadd),
        M::Paddw => plain!(I16X8, iadd),
        M::Paddd => plain!(I32X4, iadd),
        M::Paddq => plain!(I64X2, iadd),
        M::Paddsb => plain!(I8X16, sadd_sat),
        M::Paddsw => plain!(I16X8, sadd_sat),
        M::Paddusb => plain!(I8X16, uadd_sat),
        M::Paddusw => plain!(I16X8, uadd_sat),
        M::Psubb => plain!(I8X16, isub),
        M::Psubw => plain!(I16X8, isub),
        M::Psubd => plain!(I32X4, isub),
        M::Psubq => plain!(I64X2, isub),
        M::Psubsb => plain!(I8X16, ssub_sat),
        M::Psubsw => plain!(I16X8, ssub_sat),
        M::Psubusb => plain!(I8X16, usub_sat),
        M::Psubusw => plain!(I16X8, usub_sat),
        M::Pmullw => plain!(I16X8, imul),
        M::Pmulld => plain!(I32X4, imul),
        M::Pmulhw => (types::I16X8, multiply_high_signed),
        M::Pmulhuw => (types::I16X8, multiply_high_unsigned),
        M::Pmulhrsw => plain!(I16X8, x86_pmulhrsw),
        M::Pmuludq => (types::I32X4, |e, a, b| multiply_even(e, a, b, |e, value| e.b.ins().uwiden_low(value))),
        M::Pmuldq => (types::I32X4, |e, a, b| multiply_even(e, a, b, |e, value| e.b.ins().swiden_low(value))),
        M::Pmaddwd => (types::I16X8, dot_words),
        // CLIF takes the signed bytes first.
        M::Pmaddubsw => (types::I8X16, |e, a, b| e.b.ins().x86_pmaddubsw(b, a)),
        M::Psadbw => (types::I8X16, sum_of_differences),
        M::Pavgb => plain!(I8X16, avg_round),
        M::Pavgw => plain!(I16X8, avg_round),
        M::Pminub => plain!(I8X16, umin),
        M::Pminuw => plain!(I16X8, umin),
        M::Pminud => plain!(I32X4, umin),
        M::Pminsb => plain!(I8X16, smin),
        M::Pminsw => plain!(I16X8, smin),
        M::Pminsd => plain!(I32X4, smin),
        M::Pmaxub => plain!(I8X16, umax),
        M::Pmaxuw => plain!(I16X8, umax),
        M::Pmaxud => plain!(I32X4, umax),
        M::Pmaxsb => plain!(I8X16, smax),
        M::Pmaxsw => plain!(I16X8, smax),
        M::Pmaxsd => plain!(I32X4, smax),
        M::Pabsb => (types::I8X16, |e, _, b| e.b.ins().iabs(b)),
        M::Pabsw => (types::I16X8, |e, _, b| e.b.ins().iabs(b)),
        M::Pabsd => (types::I32X4, |e, _, b| e.b.ins().iabs(b)),
        M::Psignb => (types::I8X16, apply_sign),
        M::Psignw => (types::I16X8, apply_sign),
        M::Psignd => (types::I32X4, apply_sign),
        M::Pcmpeqb => compare!(I8X16, Equal),
        M::Pcmpeqw => compare!(I16X8, Equal),
        M::Pcmpeqd => compare!(I32X4, Equal),
        M::Pcmpeqq => compare!(I64X2, Equal),
        M::Pcmpgtb => compare!(I8X16, SignedGreaterThan),
        M::Pcmpgtw => compare!(I16X8, SignedGreaterThan),
        M::Pcmpgtd => compare!(I32X4, SignedGreaterThan),
        M::Pcmpgtq => compare!(I64X2, SignedGreaterThan),
        M::Phaddw => plain!(I16X8, iadd_pairwise),
        M::Phaddd => plain!(I32X4, iadd_pairwise),
        M::Phaddsw => (types::I16X8, |e, a, b| pairwise(e, a, b, |e, a, b| e.b.ins().sadd_sat(a, b))),
        M::Phsubw => (types::I16X8, |e, a, b| pairwise(e, a, b, |e, a, b| e.b.ins().isub(a, b))),
        M::Phsubd => (types::I32X4, |e, a, b| pairwise(e, a, b, |e, a, b| e.b.ins().isub(a, b))),
        M::Phsubsw => (types::I16X8, |e, a, b| pairwise(e, a, b, |e, a, b| e.b.ins().ssub_sat(a, b))),
        _ => return None,
    };
    Some((ty, op))
}

/// Neighbouring lanes of `a`, then of `b`, combined by `op`: integer and floating-point horizontal operations.
pub(super) fn pairwise(e: &mut Emitter<'_>, a: Value, b: Value, op: Binary) -> Value {
    let ty = e.type_of(a);
    let lanes: Vec<u8> = (0..ty.lane_count() as u8 * 2).collect();
    let even: Vec<u8> = lanes.iter().copied().filter(|lane| lane & 1 == 0).collect();
    let odd: Vec<u8> = lanes.iter().copied().filter(|lane| lane & 1 == 1).collect();
    let first = picked(e, a, b, &even);
    let second = picked(e, a, b, &odd);
    op(e, first, second)
}

/// An operation that the host has in one instruction, `opcode` behind 66 0F on XMM0 and XMM1, and CLIF cannot express, for hosts
/// other than x86-64 by several.
fn in_one(
    e: &mut Emitter<'_>,
    opcode: u8,
    a: Value,
    b: Value,
    several: fn(&mut Emitter<'_>, Value, Value) -> Value,
) -> Value {
    const OPERANDS: u8 = 0xC1;
    let ty = e.type_of(a);
    let result = e.host_instruction(&[0x66, 0x0F, opcode, OPERANDS], HostSignature::VV_V, &[a, b]);
    match result.ok().and_then(|results| results.first().copied()) {
        Some(result) => e.reinterpret(result, ty),
        None => several(e, a, b),
    }
}

fn multiply_high_signed(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    in_one(e, 0xE5, a, b, multiply_high_signed_by_products)
}

fn multiply_high_unsigned(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    in_one(e, 0xE4, a, b, multiply_high_unsigned_by_products)
}

/// PSADBW.
fn sum_of_differences(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    in_one(e, 0xF6, a, b, sum_of_differences_by_pairs)
}

fn multiply_high_signed_by_products(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    let (low, high) = signed_products(e, a, b);
    let (low, high) = (e.b.ins().sshr_imm_u(low, 16), e.b.ins().sshr_imm_u(high, 16));
    e.b.ins().snarrow(low, high)
}

fn signed_products(e: &mut Emitter<'_>, a: Value, b: Value) -> (Value, Value) {
    let (x, y) = (e.b.ins().swiden_low(a), e.b.ins().swiden_low(b));
    let low = e.b.ins().imul(x, y);
    let (x, y) = (e.b.ins().swiden_high(a), e.b.ins().swiden_high(b));
    (low, e.b.ins().imul(x, y))
}

fn multiply_high_unsigned_by_products(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    let (x, y) = (e.b.ins().uwiden_low(a), e.b.ins().uwiden_low(b));
    let low = e.b.ins().imul(x, y);
    let (x, y) = (e.b.ins().uwiden_high(a), e.b.ins().uwiden_high(b));
    let high = e.b.ins().imul(x, y);
    let (low, high) = (e.b.ins().ushr_imm_u(low, 16), e.b.ins().ushr_imm_u(high, 16));
    e.b.ins().unarrow(low, high)
}

/// Products of the even doublewords, widened by `widen`.
fn multiply_even(e: &mut Emitter<'_>, a: Value, b: Value, widen: fn(&mut Emitter<'_>, Value) -> Value) -> Value {
    let a = picked(e, a, a, &[0, 2, 1, 3]);
    let b = picked(e, b, b, &[0, 2, 1, 3]);
    let (a, b) = (widen(e, a), widen(e, b));
    e.b.ins().imul(a, b)
}

/// PMADDWD; Cranelift knows this tree.
fn dot_words(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    let (low, high) = signed_products(e, a, b);
    e.b.ins().iadd_pairwise(low, high)
}

/// One of the two saturating differences is the absolute one, the other zero.
fn sum_of_differences_by_pairs(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    let (x, y) = (e.b.ins().usub_sat(a, b), e.b.ins().usub_sat(b, a));
    let bytes = e.b.ins().bor(x, y);
    let (low, high) = (e.b.ins().uwiden_low(bytes), e.b.ins().uwiden_high(bytes));
    let words = e.b.ins().iadd_pairwise(low, high);
    // Sums of two bytes are positive as words; Cranelift knows this form as PMADDWD.
    let (low, high) = (e.b.ins().swiden_low(words), e.b.ins().swiden_high(words));
    let sums = e.b.ins().iadd_pairwise(low, high);
    let sums = e.reinterpret(sums, types::I64X2);
    let odd = e.b.ins().ushr_imm_u(sums, 32);
    let all = e.b.ins().iadd(sums, odd);
    // The upper doubleword holds nothing but the odd sum itself.
    let up = e.b.ins().ishl_imm_u(all, 32);
    e.b.ins().ushr_imm_u(up, 32)
}

/// PSIGNB and its like: `a`, negated, or zero, as the sign of `b` says.
fn apply_sign(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    let zero = e.zero_vector(e.type_of(a));
    let negative = e.b.ins().icmp(IntCC::SignedLessThan, b, zero);
    let none = e.b.ins().icmp(IntCC::Equal, b, zero);
    let flipped = e.b.ins().bxor(a, negative);
    let signed = e.b.ins().isub(flipped, negative);
    e.b.ins().band_not(signed, none)
}

/// Shifts by an immediate or by the low quadword of the source. CLIF reduces counts, x86 shifts everything out.
fn shift(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    use Mnemonic as M;
    only_if(insn.op0_register().is_xmm() || insn.op0_register().is_ymm())?;
    let bits = i64::from(ty.lane_bits());
    let arithmetic = matches!(base(insn), M::Psraw | M::Psrad);
    let left = matches!(base(insn), M::Psllw | M::Pslld | M::Psllq);
    let by_immediate = insn.op_kind(insn.op_count() - 1) == OpKind::Immediate8;
    let (count, over) = if by_immediate {
        let count = i64::from(insn.immediate8());
        if count >= bits && !arithmetic {
            e.clear_xmm(insn.op0_register());
            if insn.op0_register().is_ymm() {
                e.clear_high(insn.op0_register());
            }
            return Ok(());
        }
        (e.iconst(types::I32, count.min(bits - 1)), None)
    } else {
        let source = e.read_aligned(insn, last_source(insn), types::I64X2)?;
        let count = e.b.ins().extractlane(source, 0);
        let most = e.iconst(types::I64, bits - 1);
        let over = e.b.ins().icmp(IntCC::UnsignedGreaterThan, count, most);
        if arithmetic { (e.b.ins().select(over, most, count), None) } else { (count, Some(over)) }
    };
    let index = if by_immediate { last_source(insn) } else { first_source(insn) };
    let value = e.halves(insn, index, ty, is_wide(insn))?;
    let result = value.map(|value| {
        let result = if arithmetic {
            e.b.ins().sshr(value, count)
        } else if left {
            e.b.ins().ishl(value, count)
        } else {
            e.b.ins().ushr(value, count)
        };
        match over {
            Some(over) => {
                let zero = e.zero_vector(ty);
                e.b.ins().select(over, zero, result)
            }
            None => result,
        }
    });
    e.set_halves(insn.op0_register(), result);
    Ok(())
}

fn shift_bytes(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(insn.op0_register().is_xmm() || insn.op0_register().is_ymm())?;
    let value = e.halves(insn, last_source(insn), types::I8X16, is_wide(insn))?;
    let zero = e.zero_vector(types::I8X16);
    let count = insn.immediate8().min(16);
    let left = base(insn) == Mnemonic::Pslldq;
    let result =
        value.map(
            |value| {
                if left { shifted_bytes(e, zero, value, 16 - count) } else { shifted_bytes(e, value, zero, count) }
            },
        );
    e.set_halves(insn.op0_register(), result);
    Ok(())
}

/// PTEST: ZF tells that the operands have no common bit, CF that the destination has all bits of the source.
fn test(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let wide = is_wide(insn);
    let b = e.halves(insn, 1, types::I64X2, wide)?;
    let a = e.halves(insn, 0, types::I64X2, wide)?;
    let common = a.zip(b, |a, b| e.b.ins().band(a, b));
    let missing = a.zip(b, |a, b| e.b.ins().band_not(b, a));
    set_test_flags(e, common, missing);
    Ok(())
}

/// ZF tells that nothing is in `common`, CF that nothing is in `missing`.
pub(super) fn set_test_flags(e: &mut Emitter<'_>, common: Halves, missing: Halves) {
    let none = |e: &mut Emitter<'_>, bits: Halves| {
        let all = match bits.high {
            Some(high) => e.b.ins().bor(bits.low, high),
            None => bits.low,
        };
        let any = e.b.ins().vany_true(all);
        e.b.ins().bxor_imm_u(any, 1)
    };
    let (zf, cf) = (none(e, common), none(e, missing));
    let zero = e.iconst(types::I8, 0);
    e.set_flag_bits(0, &[(ZF, zf), (CF, cf), (OF, zero), (SF, zero), (AF, zero), (PF, zero)]);
}
