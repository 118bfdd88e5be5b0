//! Scalar single and double arithmetic, comparison and conversion (SDM vol. 1, 10.4 and 11.4).
//!
//! Guest MXCSR is the host's while translated code runs, so rounding and masked exceptions are the hardware's.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::sse_convert::truncated_scalar;
use super::{Lifter, only_if};
use crate::emit::{Emitter, Lifted};

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Addss | M::Subss | M::Mulss | M::Divss | M::Sqrtss | M::Minss | M::Maxss => {
            |e, insn| arithmetic(e, insn, types::F32)
        }
        M::Addsd | M::Subsd | M::Mulsd | M::Divsd | M::Sqrtsd | M::Minsd | M::Maxsd => {
            |e, insn| arithmetic(e, insn, types::F64)
        }
        M::Ucomiss | M::Comiss => |e, insn| compare(e, insn, types::F32),
        M::Ucomisd | M::Comisd => |e, insn| compare(e, insn, types::F64),
        M::Cvtsi2ss => |e, insn| from_integer(e, insn, types::F32),
        M::Cvtsi2sd => |e, insn| from_integer(e, insn, types::F64),
        M::Cvttss2si => |e, insn| truncate(e, insn, types::F32),
        M::Cvttsd2si => |e, insn| truncate(e, insn, types::F64),
        M::Cvtss2sd => promote,
        M::Cvtsd2ss => demote,
        _ => return None,
    })
}

fn arithmetic(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    use Mnemonic as M;
    only_if(insn.op0_register().is_xmm())?;
    let b = e.read_scalar(insn, 1, ty)?;
    let a = e.xmm_lane(insn.op0_register(), ty, 0);
    // Additions and multiplications are commutative for Cranelift, but the first of two NaNs wins. A choice of equal
    // values would be taken for a move, which keeps denormals that MXCSR wants to be zeros.
    let a = e.opaque(a);
    let result = match insn.mnemonic() {
        M::Addss | M::Addsd => e.b.ins().fadd(a, b),
        M::Subss | M::Subsd => e.b.ins().fsub(a, b),
        M::Mulss | M::Mulsd => e.b.ins().fmul(a, b),
        M::Divss | M::Divsd => e.b.ins().fdiv(a, b),
        M::Sqrtss | M::Sqrtsd => e.b.ins().sqrt(b),
        // The second operand wins for equal (zeros of either sign) and unordered operands.
        M::Minss | M::Minsd => {
            let less = e.b.ins().fcmp(FloatCC::LessThan, a, b);
            e.b.ins().select(less, a, b)
        }
        _ => {
            let greater = e.b.ins().fcmp(FloatCC::LessThan, b, a);
            e.b.ins().select(greater, a, b)
        }
    };
    e.set_xmm_lane(insn.op0_register(), 0, result);
    Ok(())
}

fn compare(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    let b = e.read_scalar(insn, 1, ty)?;
    let a = e.xmm_lane(insn.op0_register(), ty, 0);
    e.set_flags_compare(a, b);
    Ok(())
}

fn from_integer(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    only_if(insn.op0_register().is_xmm())?;
    let source = e.operand_type(insn, 1)?;
    let value = e.read(insn, 1, source)?;
    let value = e.b.ins().fcvt_from_sint(ty, value);
    e.set_xmm_lane(insn.op0_register(), 0, value);
    Ok(())
}

/// 2^63 as a value of `ty`.
fn two_to_63(e: &mut Emitter<'_>, ty: Type) -> Value {
    if ty == types::F32 {
        e.b.ins().f32const(9_223_372_036_854_775_808.0)
    } else {
        e.b.ins().f64const(9_223_372_036_854_775_808.0)
    }
}

/// CVTTSD2SI and CVTTSS2SI. What does not fit becomes the integer indefinite value, the most negative one.
fn truncate(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    only_if(insn.op1_kind() == OpKind::Memory || insn.op1_register().is_xmm())?;
    let to = e.operand_type(insn, 0)?;
    let value = e.read_scalar(insn, 1, ty)?;
    if to == types::I32 {
        let result = truncated_scalar(e, value);
        e.set_gpr(insn.op0_register(), result);
        return Ok(());
    }
    // Saturation yields the indefinite value for what is too small; too large and unordered are left.
    let limit = two_to_63(e, ty);
    let fits = e.b.ins().fcmp(FloatCC::LessThan, value, limit);
    let wide = e.b.ins().fcvt_to_sint_sat(types::I64, value);
    let indefinite = e.iconst(types::I64, i64::MIN);
    let wide = e.b.ins().select(fits, wide, indefinite);
    e.set_gpr(insn.op0_register(), wide);
    Ok(())
}

fn promote(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_scalar(insn, 1, types::F32)?;
    let value = e.b.ins().fpromote(types::F64, value);
    e.set_xmm_lane(insn.op0_register(), 0, value);
    Ok(())
}

fn demote(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_scalar(insn, 1, types::F64)?;
    let value = e.b.ins().fdemote(types::F32, value);
    e.set_xmm_lane(insn.op0_register(), 0, value);
    Ok(())
}
