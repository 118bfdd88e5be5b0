//! Conversion between packed integers and floating-point formats, and from floating point to integers as MXCSR rounds
//! (SDM vol. 1, 10.4.3 and 11.4.1.6).

use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::sse_shuffle::picked;
use super::{Lifter, only_if};
use crate::emit::{Emitter, Halves, Lifted, NotLifted, is_wide};
use crate::host_op::HostOp;

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
        M::Cvtps2dq => round_singles,
        M::Cvtpd2dq => round_doubles,
        M::Vcvtph2ps => singles_from_halves,
        M::Vcvtps2ph => halves_from_singles,
        M::Cvtss2si => |e, insn| round_scalar(e, insn, types::F32),
        M::Cvtsd2si => |e, insn| round_scalar(e, insn, types::F64),
        _ => return None,
    })
}

/// Two doubles from the lower two lanes of a quarter, or the upper two.
type Widening = fn(&mut Emitter<'_>, Value) -> Value;

/// A conversion that keeps the lanes' size.
fn convert(e: &mut Emitter<'_>, insn: &Instruction, from: Type, op: fn(&mut Emitter<'_>, Value) -> Value) -> Lifted {
    only_if(insn.op0_register().is_vector_register())?;
    let value = e.halves(insn, 1, from, is_wide(insn))?;
    let result = value.map(|half| op(e, half));
    e.set_halves(insn.op0_register(), result);
    Ok(())
}

/// A conversion from the lower two lanes, or four for a 256-bit destination, to lanes of twice the size.
fn widen(e: &mut Emitter<'_>, insn: &Instruction, from: Type, op: Widening) -> Lifted {
    only_if(insn.op0_register().is_vector_register())?;
    if !insn.op0_register().is_ymm() {
        let value = e.read_low(insn, 1, from)?;
        let result = op(e, value);
        e.set_xmm(insn.op0_register(), result);
        return Ok(());
    }
    let value = e.read_vector(insn, 1, from)?;
    let upper = picked(e, value, value, &[2, 3, 2, 3]);
    let (low, high) = (op(e, value), op(e, upper));
    e.set_halves(insn.op0_register(), Halves { low, high: Some(high) });
    Ok(())
}

/// A conversion to lanes of half the size, of which `op` leaves two in the lower half and clears the upper one.
fn narrow(
    e: &mut Emitter<'_>,
    insn: &Instruction,
    op: fn(&mut Emitter<'_>, Value) -> Result<Value, NotLifted>,
) -> Lifted {
    only_if(insn.op0_register().is_xmm())?;
    let wide = is_wide(insn) || insn.memory_size().size() == 32;
    let value = e.halves(insn, 1, types::F64X2, wide)?;
    let mut result = op(e, value.low)?;
    if let Some(high) = value.high {
        let high = op(e, high)?;
        let low = e.reinterpret(result, types::I64X2);
        let high = e.reinterpret(high, types::I64X2);
        result = picked(e, low, high, &[0, 2]);
    }
    e.set_xmm(insn.op0_register(), result);
    Ok(())
}

fn singles_from_integers(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    convert(e, insn, types::I32X4, |e, value| e.b.ins().fcvt_from_sint(types::F32X4, value))
}

fn doubles_from_integers(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    widen(e, insn, types::I32X4, |e, value| {
        let wide = e.b.ins().swiden_low(value);
        e.b.ins().fcvt_from_sint(types::F64X2, wide)
    })
}

fn promote(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    widen(e, insn, types::F32X4, |e, value| e.b.ins().fvpromote_low(value))
}

fn demote(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    narrow(e, insn, |e, value| Ok(e.b.ins().fvdemote(value)))
}

fn truncate_singles(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    convert(e, insn, types::F32X4, |e, value| e.b.ins().x86_cvtt2dq(types::I32X4, value))
}

fn truncate_doubles(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    narrow(e, insn, |e, value| Ok(truncated_doubles(e, value)))
}

/// CVTPS2DQ.
fn round_singles(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(insn.op0_register().is_vector_register())?;
    let value = e.halves(insn, 1, types::F32X4, is_wide(insn))?;
    let result = value.try_map(|half| e.host_op(HostOp::Cvtps2dq, &[half]))?;
    e.set_halves(insn.op0_register(), result);
    Ok(())
}

/// CVTPD2DQ.
fn round_doubles(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    narrow(e, insn, |e, value| e.host_op(HostOp::Cvtpd2dq, &[value]))
}

/// VCVTPH2PS: four halves to singles, or eight.
fn singles_from_halves(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    if !insn.op0_register().is_ymm() {
        let value = e.read_low(insn, 1, types::I64X2)?;
        let result = e.host_op(HostOp::Vcvtph2ps, &[value])?;
        e.set_xmm(insn.op0_register(), result);
        return Ok(());
    }
    let value = e.read_vector(insn, 1, types::I64X2)?;
    let upper = picked(e, value, value, &[1, 1]);
    let low = e.host_op(HostOp::Vcvtph2ps, &[value])?;
    let high = e.host_op(HostOp::Vcvtph2ps, &[upper])?;
    e.set_halves(insn.op0_register(), Halves { low, high: Some(high) });
    Ok(())
}

/// VCVTPS2PH: the source is the second operand, the destination a register or memory.
fn halves_from_singles(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    const MODES: [HostOp; 4] = [HostOp::Vcvtps2ph0, HostOp::Vcvtps2ph1, HostOp::Vcvtps2ph2, HostOp::Vcvtps2ph3];
    let control = insn.immediate8();
    let op = if control & 4 != 0 { HostOp::Vcvtps2ph4 } else { MODES[usize::from(control & 3)] };
    let wide = is_wide(insn);
    let value = e.halves(insn, 1, types::F32X4, wide)?;
    let value = value.try_map(|half| e.host_op(op, &[half]))?.map(|half| e.reinterpret(half, types::I64X2));
    let result = match value.high {
        Some(high) => picked(e, value.low, high, &[0, 2]),
        None => value.low,
    };
    if insn.op0_kind() != OpKind::Memory {
        e.set_xmm(insn.op0_register(), result);
        return Ok(());
    }
    let host = e.address(insn)?;
    if wide {
        e.store(result, host);
    } else {
        let low = e.b.ins().extractlane(result, 0);
        e.store(low, host);
    }
    Ok(())
}

/// CVTTPD2DQ in the form that Cranelift knows.
pub(super) fn truncated_doubles(e: &mut Emitter<'_>, value: Value) -> Value {
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

/// CVTSS2SI and CVTSD2SI: rounded as MXCSR says, for which CLIF has no conversion.
fn round_scalar(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    only_if(insn.op1_kind() == OpKind::Memory || insn.op1_register().is_xmm())?;
    let to = e.operand_type(insn, 0)?;
    let value = e.read_scalar(insn, 1, ty)?;
    let op = match (ty == types::F32, to == types::I64) {
        (true, true) => HostOp::Cvtss2si64,
        (true, false) => HostOp::Cvtss2si32,
        (false, true) => HostOp::Cvtsd2si64,
        (false, false) => HostOp::Cvtsd2si32,
    };
    let result = e.host_op(op, &[value])?;
    let result = e.resize(result, to);
    e.set_gpr(insn.op0_register(), result);
    Ok(())
}
