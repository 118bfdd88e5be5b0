//! Scalar single and double arithmetic, comparison and conversion (SDM vol. 1, 10.4 and 11.4).
//!
//! Guest MXCSR is the host's while translated code runs, so rounding and masked exceptions are the hardware's.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Type, types};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::sse_convert::truncated_scalar;
use super::{Lifter, base, first_source, last_source, only_if};
use crate::emit::{Emitter, Lifted};
use crate::host_op::HostOp;

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

// What is computed of constants while translating would be rounded otherwise than MXCSR says: operands are made opaque.

fn arithmetic(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    use Mnemonic as M;
    only_if(insn.op0_register().is_xmm())?;
    let b = e.read_scalar(insn, last_source(insn), ty)?;
    let a = e.xmm_lane(insn.op_register(first_source(insn)), ty, 0);
    // Additions and multiplications are commutative for Cranelift, but the first of two NaNs wins. A choice of equal
    // values would be taken for a move, which keeps denormals that MXCSR wants to be zeros.
    let a = e.opaque(a);
    let result = match base(insn) {
        M::Addss | M::Addsd => e.b.ins().fadd(a, b),
        M::Subss | M::Subsd => e.b.ins().fsub(a, b),
        M::Mulss | M::Mulsd => e.b.ins().fmul(a, b),
        M::Divss | M::Divsd => e.b.ins().fdiv(a, b),
        M::Sqrtss | M::Sqrtsd => {
            let b = e.opaque(b);
            e.b.ins().sqrt(b)
        }
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
    e.merge_lane(insn, 0, result);
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
    let index = last_source(insn);
    let source = e.operand_type(insn, index)?;
    let value = e.read(insn, index, source)?;
    let value = e.opaque(value);
    let value = e.b.ins().fcvt_from_sint(ty, value);
    e.merge_lane(insn, 0, value);
    Ok(())
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
    let op = if ty == types::F32 { HostOp::Cvttss2si } else { HostOp::Cvttsd2si };
    let wide = e.host_op(op, &[value])?;
    e.set_gpr(insn.op0_register(), wide);
    Ok(())
}

fn promote(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_scalar(insn, last_source(insn), types::F32)?;
    let value = e.b.ins().fpromote(types::F64, value);
    e.merge_lane(insn, 0, value);
    Ok(())
}

fn demote(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_scalar(insn, last_source(insn), types::F64)?;
    let value = e.opaque(value);
    let value = e.b.ins().fdemote(types::F32, value);
    e.merge_lane(insn, 0, value);
    Ok(())
}
