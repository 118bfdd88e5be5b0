//! Packed single and double arithmetic, comparison and rounding, and scalar comparison and rounding (SDM vol. 1, 10.4.1,
//! 11.4.1, 12.3, 12.8).
//!
//! Where both operands are NaNs the first one wins, so that no operation may be commuted. Cranelift commutes an addition
//! or multiplication whose first operand is a load; a register's value as a vector is a reinterpretation, which is not
//! taken for one.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic};

use super::sse_integer::{Binary, lanewise, pairwise};
use super::sse_shuffle::picked;
use super::{Lifter, only_if};
use crate::emit::{Emitter, Lifted};

/// Lifters of this chapter. Reciprocals, which differ between processors, and dot products are left to the interpreter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    if operation(mnemonic).is_some() {
        return Some(|e, insn| match operation(insn.mnemonic()) {
            Some((ty, op)) => lanewise(e, insn, ty, op),
            None => only_if(false),
        });
    }
    Some(match mnemonic {
        M::Cmpps => |e, insn| compare(e, insn, types::F32X4),
        M::Cmppd => |e, insn| compare(e, insn, types::F64X2),
        M::Cmpss => |e, insn| compare_scalar(e, insn, types::F32),
        M::Cmpsd => |e, insn| compare_scalar(e, insn, types::F64),
        M::Roundps => |e, insn| round(e, insn, types::F32X4),
        M::Roundpd => |e, insn| round(e, insn, types::F64X2),
        M::Roundss => |e, insn| round(e, insn, types::F32),
        M::Roundsd => |e, insn| round(e, insn, types::F64),
        _ => return None,
    })
}

fn operation(mnemonic: Mnemonic) -> Option<(Type, Binary)> {
    use Mnemonic as M;
    let op: Binary = match mnemonic {
        M::Addps | M::Addpd => |e, a, b| e.b.ins().fadd(a, b),
        M::Subps | M::Subpd => |e, a, b| e.b.ins().fsub(a, b),
        M::Mulps | M::Mulpd => |e, a, b| e.b.ins().fmul(a, b),
        M::Divps | M::Divpd => |e, a, b| e.b.ins().fdiv(a, b),
        M::Sqrtps | M::Sqrtpd => |e, _, b| e.b.ins().sqrt(b),
        M::Minps | M::Minpd => minimum,
        M::Maxps | M::Maxpd => maximum,
        M::Haddps | M::Haddpd => |e, a, b| pairwise(e, a, b, |e, a, b| e.b.ins().fadd(a, b)),
        M::Hsubps | M::Hsubpd => |e, a, b| pairwise(e, a, b, |e, a, b| e.b.ins().fsub(a, b)),
        M::Addsubps | M::Addsubpd => add_subtract,
        _ => return None,
    };
    let single = matches!(mnemonic, M::Addps | M::Subps | M::Mulps | M::Divps | M::Sqrtps | M::Minps | M::Maxps)
        || matches!(mnemonic, M::Haddps | M::Hsubps | M::Addsubps);
    Some((if single { types::F32X4 } else { types::F64X2 }, op))
}

/// `a` where `x < y`, else `b`, which so wins for equal (zeros of either sign) and unordered operands. Cranelift knows
/// this form as MINPS and MAXPS.
fn choose(e: &mut Emitter<'_>, a: Value, b: Value, x: Value, y: Value) -> Value {
    let less = e.b.ins().fcmp(FloatCC::LessThan, x, y);
    let less = e.reinterpret(less, e.type_of(a));
    e.b.ins().bitselect(less, a, b)
}

// A choice of equal values would be taken for a move, which keeps denormals that MXCSR wants to be zeros.

fn minimum(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    let a = e.opaque(a);
    choose(e, a, b, a, b)
}

fn maximum(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    let a = e.opaque(a);
    choose(e, a, b, b, a)
}

fn add_subtract(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    let (difference, sum) = (e.b.ins().fsub(a, b), e.b.ins().fadd(a, b));
    let count = e.type_of(a).lane_count() as u8;
    let lanes: Vec<u8> = (0..count).map(|lane| lane + count * (lane & 1)).collect();
    picked(e, difference, sum, &lanes)
}

/// The condition that a predicate of CMPPS and its like stands for (SDM vol. 2, CMPPD, table 3-1).
fn predicate(insn: &Instruction) -> FloatCC {
    match insn.immediate8() & 7 {
        0 => FloatCC::Equal,
        1 => FloatCC::LessThan,
        2 => FloatCC::LessThanOrEqual,
        3 => FloatCC::Unordered,
        4 => FloatCC::NotEqual,
        5 => FloatCC::UnorderedOrGreaterThanOrEqual,
        6 => FloatCC::UnorderedOrGreaterThan,
        _ => FloatCC::Ordered,
    }
}

fn compare(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    let b = e.read_aligned(insn, 1, ty)?;
    let a = e.xmm(insn.op0_register(), ty);
    let mask = e.b.ins().fcmp(predicate(insn), a, b);
    e.set_xmm(insn.op0_register(), mask);
    Ok(())
}

fn compare_scalar(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    only_if(insn.op0_register().is_xmm())?;
    let b = e.read_scalar(insn, 1, ty)?;
    let a = e.xmm_lane(insn.op0_register(), ty, 0);
    let holds = e.b.ins().fcmp(predicate(insn), a, b);
    let mask = e.b.ins().bmask(ty.as_int(), holds);
    let mask = e.reinterpret(mask, ty);
    e.set_xmm_lane(insn.op0_register(), 0, mask);
    Ok(())
}

/// ROUNDx with a fixed mode; the mode of MXCSR has no counterpart in CLIF.
fn round(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    let control = insn.immediate8();
    only_if(control & 4 == 0)?;
    let value = if ty.is_vector() { e.read_aligned(insn, 1, ty)? } else { e.read_scalar(insn, 1, ty)? };
    let result = match control & 3 {
        0 => e.b.ins().nearest(value),
        1 => e.b.ins().floor(value),
        2 => e.b.ins().ceil(value),
        _ => e.b.ins().trunc(value),
    };
    if ty.is_vector() {
        e.set_xmm(insn.op0_register(), result);
    } else {
        e.set_xmm_lane(insn.op0_register(), 0, result);
    }
    Ok(())
}
