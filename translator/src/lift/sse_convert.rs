//! Conversion between packed integers and floating-point formats, and from floating point to integers as MXCSR rounds
//! (SDM vol. 1, 10.4.3 and 11.4.1.6).

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Lifter, only_if};
use crate::abi::Helper;
use crate::emit::{Emitter, Lifted};

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Cvtdq2ps => singles_from_integers,
        M::Cvtdq2pd => doubles_from_integers,
        M::Cvtps2pd => promote,
        M::Cvtpd2ps => demote,
        M::Cvttps2dq => truncate_singles,
        M::Cvttpd2dq => truncate_doubles,
        M::Cvtps2dq => |e, insn| round_packed(e, insn, types::F32X4),
        M::Cvtpd2dq => |e, insn| round_packed(e, insn, types::F64X2),
        M::Cvtss2si => |e, insn| round_scalar(e, insn, types::F32),
        M::Cvtsd2si => |e, insn| round_scalar(e, insn, types::F64),
        _ => return None,
    })
}

fn singles_from_integers(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_aligned(insn, 1, types::I32X4)?;
    let value = e.b.ins().fcvt_from_sint(types::F32X4, value);
    e.set_xmm(insn.op0_register(), value);
    Ok(())
}

fn doubles_from_integers(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_low(insn, 1, types::I32X4)?;
    let wide = e.b.ins().swiden_low(value);
    let value = e.b.ins().fcvt_from_sint(types::F64X2, wide);
    e.set_xmm(insn.op0_register(), value);
    Ok(())
}

fn promote(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_low(insn, 1, types::F32X4)?;
    let value = e.b.ins().fvpromote_low(value);
    e.set_xmm(insn.op0_register(), value);
    Ok(())
}

fn demote(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_aligned(insn, 1, types::F64X2)?;
    let value = e.b.ins().fvdemote(value);
    e.set_xmm(insn.op0_register(), value);
    Ok(())
}

fn truncate_singles(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_aligned(insn, 1, types::F32X4)?;
    let value = e.b.ins().x86_cvtt2dq(types::I32X4, value);
    e.set_xmm(insn.op0_register(), value);
    Ok(())
}

fn truncate_doubles(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_aligned(insn, 1, types::F64X2)?;
    let value = truncated_doubles(e, value);
    e.set_xmm(insn.op0_register(), value);
    Ok(())
}

/// CVTTPD2DQ in the form that Cranelift knows.
fn truncated_doubles(e: &mut Emitter<'_>, value: Value) -> Value {
    let value = e.b.ins().x86_cvtt2dq(types::I64X2, value);
    let zero = e.zero_vector(types::I64X2);
    e.b.ins().snarrow(value, zero)
}

/// CVTTSS2SI and CVTTSD2SI to 32 bits, by way of the packed conversion, which yields the indefinite value.
pub(super) fn truncated_scalar(e: &mut Emitter<'_>, value: Value) -> Value {
    let ty = e.type_of(value);
    let vector = if ty == types::F32 { types::F32X4 } else { types::F64X2 };
    let value = e.b.ins().scalar_to_vector(vector, value);
    let integers =
        if ty == types::F32 { e.b.ins().x86_cvtt2dq(types::I32X4, value) } else { truncated_doubles(e, value) };
    e.b.ins().extractlane(integers, 0)
}

/// `value`, rounded as MXCSR says, as an integer of type `to`, by a helper: CLIF has no such conversion. Singles become
/// doubles first, which is exact.
fn rounded(e: &mut Emitter<'_>, value: Value, to: Type) -> Value {
    let value = if e.type_of(value) == types::F32 { e.b.ins().fpromote(types::F64, value) } else { value };
    let bits = e.reinterpret(value, types::I64);
    let wide = e.call_helper(Helper::RoundDouble, &[bits]);
    if to == types::I64 {
        return wide;
    }
    let narrow = e.b.ins().ireduce(types::I32, wide);
    let again = e.b.ins().sextend(types::I64, narrow);
    let fits = e.b.ins().icmp(IntCC::Equal, again, wide);
    let indefinite = e.iconst(types::I32, i64::from(i32::MIN));
    e.b.ins().select(fits, narrow, indefinite)
}

fn round_scalar(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    only_if(insn.op1_kind() == OpKind::Memory || insn.op1_register().is_xmm())?;
    let to = e.operand_type(insn, 0)?;
    let value = e.read_scalar(insn, 1, ty)?;
    let value = rounded(e, value, to);
    e.set_gpr(insn.op0_register(), value);
    Ok(())
}

fn round_packed(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    let source = e.read_aligned(insn, 1, ty)?;
    let mut result = e.zero_vector(types::I32X4);
    for lane in 0..ty.lane_count() as u8 {
        let value = e.b.ins().extractlane(source, lane);
        let value = rounded(e, value, types::I32);
        result = e.b.ins().insertlane(result, value, lane);
    }
    e.set_xmm(insn.op0_register(), result);
    Ok(())
}
