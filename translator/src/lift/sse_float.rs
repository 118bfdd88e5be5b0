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
use super::{Lifter, base, first_source, last_source, only_if};
use crate::emit::{Emitter, Lifted, NotLifted, is_vex, is_wide};
use crate::host_op::HostOp;

/// Lifters of this chapter. Reciprocals differ between processors: they are the host's, also in the interpreter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    if operation(mnemonic).is_some() {
        return Some(|e, insn| match operation(base(insn)) {
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
        M::Dpps => |e, insn| dot_product(e, insn, HostOp::Dpps),
        M::Dppd => |e, insn| dot_product(e, insn, HostOp::Dppd),
        M::Rcpps => |e, insn| approximate(e, insn, HostOp::Rcpps),
        M::Rsqrtps => |e, insn| approximate(e, insn, HostOp::Rsqrtps),
        M::Rcpss => |e, insn| approximate_scalar(e, insn, HostOp::Rcpps),
        M::Rsqrtss => |e, insn| approximate_scalar(e, insn, HostOp::Rsqrtps),
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

/// RCPPS and RSQRTPS, which look at no bit of MXCSR and raise nothing.
fn approximate(e: &mut Emitter<'_>, insn: &Instruction, op: HostOp) -> Lifted {
    let value = e.halves(insn, 1, types::F32X4, is_wide(insn))?;
    let result = value.try_map(|half| e.host_op(op, &[half]))?;
    e.set_halves(insn.op0_register(), result);
    Ok(())
}

fn approximate_scalar(e: &mut Emitter<'_>, insn: &Instruction, op: HostOp) -> Lifted {
    let value = e.read_scalar(insn, last_source(insn), types::F32)?;
    let vector = e.b.ins().scalar_to_vector(types::F32X4, value);
    let result = e.host_op(op, &[vector])?;
    let result = e.reinterpret(result, types::F32X4);
    let result = e.b.ins().extractlane(result, 0);
    e.merge_lane(insn, 0, result);
    Ok(())
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

/// What a predicate of CMPPS and its like stands for (SDM vol. 2, CMPPD, table 3-1); whether it signals is not told apart.
enum Predicate {
    Condition(FloatCC),
    Never,
    Always,
}

fn predicate(insn: &Instruction) -> Predicate {
    use Predicate::Condition;
    match insn.immediate8() & if is_vex(insn) { 0xF } else { 7 } {
        0 => Condition(FloatCC::Equal),
        1 => Condition(FloatCC::LessThan),
        2 => Condition(FloatCC::LessThanOrEqual),
        3 => Condition(FloatCC::Unordered),
        4 => Condition(FloatCC::NotEqual),
        5 => Condition(FloatCC::UnorderedOrGreaterThanOrEqual),
        6 => Condition(FloatCC::UnorderedOrGreaterThan),
        7 => Condition(FloatCC::Ordered),
        8 => Condition(FloatCC::UnorderedOrEqual),
        9 => Condition(FloatCC::UnorderedOrLessThan),
        10 => Condition(FloatCC::UnorderedOrLessThanOrEqual),
        11 => Predicate::Never,
        12 => Condition(FloatCC::OrderedNotEqual),
        13 => Condition(FloatCC::GreaterThanOrEqual),
        14 => Condition(FloatCC::GreaterThan),
        _ => Predicate::Always,
    }
}

fn compare(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    let wide = is_wide(insn);
    let b = e.halves(insn, last_source(insn), ty, wide)?;
    let a = e.halves(insn, first_source(insn), ty, wide)?;
    let mask = a.zip(b, |a, b| match predicate(insn) {
        // Cranelift has no packed comparison for these two.
        Predicate::Condition(FloatCC::UnorderedOrEqual) => {
            let (unordered, equal) = (e.b.ins().fcmp(FloatCC::Unordered, a, b), e.b.ins().fcmp(FloatCC::Equal, a, b));
            e.b.ins().bor(unordered, equal)
        }
        Predicate::Condition(FloatCC::OrderedNotEqual) => {
            let (ordered, different) =
                (e.b.ins().fcmp(FloatCC::Ordered, a, b), e.b.ins().fcmp(FloatCC::NotEqual, a, b));
            e.b.ins().band(ordered, different)
        }
        Predicate::Condition(condition) => e.b.ins().fcmp(condition, a, b),
        Predicate::Never => e.zero_vector(types::I8X16),
        Predicate::Always => e.constant_vector(types::I8X16, [0xFF; 16]),
    });
    e.set_halves(insn.op0_register(), mask);
    Ok(())
}

fn compare_scalar(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    only_if(insn.op0_register().is_xmm())?;
    let b = e.read_scalar(insn, last_source(insn), ty)?;
    let a = e.xmm_lane(insn.op_register(first_source(insn)), ty, 0);
    let mask = match predicate(insn) {
        Predicate::Condition(condition) => {
            let holds = e.b.ins().fcmp(condition, a, b);
            e.b.ins().bmask(ty.as_int(), holds)
        }
        Predicate::Never => e.iconst(ty.as_int(), 0),
        Predicate::Always => e.iconst(ty.as_int(), -1),
    };
    let mask = e.reinterpret(mask, ty);
    e.merge_lane(insn, 0, mask);
    Ok(())
}

/// The host operation for a rounding mode that CLIF does not have: MXCSR's, and those without precision exception.
fn rounding(control: u8, single: bool) -> Option<HostOp> {
    use HostOp as H;
    Some(match (control & 0xF, single) {
        (4..=7, true) => H::RoundSingles4,
        (8, true) => H::RoundSingles8,
        (9, true) => H::RoundSingles9,
        (10, true) => H::RoundSingles10,
        (11, true) => H::RoundSingles11,
        (12..=15, true) => H::RoundSingles12,
        (4..=7, false) => H::RoundDoubles4,
        (8, false) => H::RoundDoubles8,
        (9, false) => H::RoundDoubles9,
        (10, false) => H::RoundDoubles10,
        (11, false) => H::RoundDoubles11,
        (12..=15, false) => H::RoundDoubles12,
        _ => return None,
    })
}

/// One vector or scalar, rounded as the immediate says.
fn rounded(e: &mut Emitter<'_>, control: u8, value: Value) -> Result<Value, NotLifted> {
    let ty = e.type_of(value);
    if let Some(op) = rounding(control, ty.lane_type() == types::F32) {
        if ty.is_vector() {
            let result = e.host_op(op, &[value])?;
            return Ok(e.reinterpret(result, ty));
        }
        // The other lanes are zeros, which round to themselves.
        let vector = e.b.ins().scalar_to_vector(if ty == types::F32 { types::F32X4 } else { types::F64X2 }, value);
        let result = e.host_op(op, &[vector])?;
        let result = e.reinterpret(result, if ty == types::F32 { types::F32X4 } else { types::F64X2 });
        return Ok(e.b.ins().extractlane(result, 0));
    }
    Ok(match control & 3 {
        0 => e.b.ins().nearest(value),
        1 => e.b.ins().floor(value),
        2 => e.b.ins().ceil(value),
        _ => e.b.ins().trunc(value),
    })
}

fn round(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    let control = insn.immediate8();
    if !ty.is_vector() {
        let value = e.read_scalar(insn, last_source(insn), ty)?;
        let result = rounded(e, control, value)?;
        e.merge_lane(insn, 0, result);
        return Ok(());
    }
    let value = e.halves(insn, last_source(insn), ty, is_wide(insn))?;
    let result = value.try_map(|value| rounded(e, control, value))?;
    e.set_halves(insn.op0_register(), result);
    Ok(())
}

/// DPPS and DPPD: the immediate's upper half selects the products, the lower one where the sum goes. Zeros in place of the
/// operands of a product make it the zero that counts for it.
fn dot_product(e: &mut Emitter<'_>, insn: &Instruction, op: HostOp) -> Lifted {
    let control = insn.immediate8();
    let lanes = if op == HostOp::Dpps { 4 } else { 2 };
    let mask = |from: u8| {
        std::array::from_fn(|at| if control >> (from + at as u8 / (16 / lanes)) & 1 != 0 { 0xFF } else { 0 })
    };
    let wide = is_wide(insn);
    let b = e.halves(insn, last_source(insn), types::I8X16, wide)?;
    let a = e.halves(insn, first_source(insn), types::I8X16, wide)?;
    let inputs = e.constant_vector(types::I8X16, mask(4));
    let outputs = e.constant_vector(types::I8X16, mask(0));
    let [a, b] = [a, b].map(|operand| operand.map(|half| e.b.ins().band(half, inputs)));
    let part = |e: &mut Emitter<'_>, a: Value, b: Value| {
        let sum = e.host_op(op, &[a, b])?;
        Ok(e.b.ins().band(sum, outputs))
    };
    let low = part(e, a.low, b.low)?;
    let high = a.high.zip(b.high).map(|(a, b)| part(e, a, b)).transpose()?;
    e.set_halves(insn.op0_register(), crate::emit::Halves { low, high });
    Ok(())
}
