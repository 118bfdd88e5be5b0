//! Packing, interleaving, shuffling, blending, insertion, extraction, extension and masks of lanes (SDM vol. 1, 10.4.2,
//! 11.4.1.4, 12.3, 12.6, 12.10).

use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::sse_integer::{Binary, lanewise};
use super::{Lifter, only_if};
use crate::emit::{Emitter, Lifted, NotLifted, int_type};

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    if operation(mnemonic).is_some() {
        return Some(|e, insn| match operation(insn.mnemonic()) {
            Some((ty, op)) => lanewise(e, insn, ty, op),
            None => only_if(false),
        });
    }
    if extension(mnemonic).is_some() {
        return Some(extend);
    }
    Some(match mnemonic {
        M::Pshufd | M::Pshuflw | M::Pshufhw | M::Shufps | M::Shufpd | M::Palignr => by_immediate,
        M::Pblendw | M::Blendps | M::Blendpd => by_immediate,
        M::Pblendvb => |e, insn| blend_by_xmm0(e, insn, types::I8X16),
        M::Blendvps => |e, insn| blend_by_xmm0(e, insn, types::I32X4),
        M::Blendvpd => |e, insn| blend_by_xmm0(e, insn, types::I64X2),
        M::Pinsrb => |e, insn| insert(e, insn, types::I8),
        M::Pinsrw => |e, insn| insert(e, insn, types::I16),
        M::Pinsrd => |e, insn| insert(e, insn, types::I32),
        M::Pinsrq => |e, insn| insert(e, insn, types::I64),
        M::Pextrb => |e, insn| extract(e, insn, types::I8),
        M::Pextrw => |e, insn| extract(e, insn, types::I16),
        M::Pextrd | M::Extractps => |e, insn| extract(e, insn, types::I32),
        M::Pextrq => |e, insn| extract(e, insn, types::I64),
        M::Insertps => insert_single,
        M::Pmovmskb => |e, insn| sign_mask(e, insn, types::I8X16),
        M::Movmskps => |e, insn| sign_mask(e, insn, types::I32X4),
        M::Movmskpd => |e, insn| sign_mask(e, insn, types::I64X2),
        M::Movddup => duplicate_low,
        _ => return None,
    })
}

/// The 16 bytes of `a` followed by `b` that `bytes` names (0 to 31), as a vector of `a`'s type.
fn picked_bytes(e: &mut Emitter<'_>, a: Value, b: Value, bytes: [u8; 16]) -> Value {
    let ty = e.type_of(a);
    let (a, b) = (e.reinterpret(a, types::I8X16), e.reinterpret(b, types::I8X16));
    let mask = e.b.func.dfg.immediates.push(bytes.as_slice().into());
    let result = e.b.ins().shuffle(a, b, mask);
    e.reinterpret(result, ty)
}

/// The lanes of `a` followed by `b` that `lanes` names, as a vector of the same type.
pub(super) fn picked(e: &mut Emitter<'_>, a: Value, b: Value, lanes: &[u8]) -> Value {
    let size = (e.type_of(a).lane_bits() / 8).max(1) as usize;
    let bytes = std::array::from_fn(|at| {
        let lane = lanes.get(at / size).copied().unwrap_or(0);
        lane * size as u8 + (at % size) as u8
    });
    picked_bytes(e, a, b, bytes)
}

/// Bytes `from` to `from + 15` of `low` followed by `high`; `from` is at most 16.
pub(super) fn shifted_bytes(e: &mut Emitter<'_>, low: Value, high: Value, from: u8) -> Value {
    match from {
        0 => low,
        16 => high,
        _ => picked_bytes(e, low, high, std::array::from_fn(|at| from + at as u8)),
    }
}

/// Interleaves half of the lanes of `a` and `b`, from lane `from` on.
fn interleave(e: &mut Emitter<'_>, a: Value, b: Value, high: bool) -> Value {
    let count = e.type_of(a).lane_count() as u8;
    let from = if high { count / 2 } else { 0 };
    let lanes: Vec<u8> = (0..count / 2).flat_map(|lane| [from + lane, count + from + lane]).collect();
    picked(e, a, b, &lanes)
}

fn interleave_low(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    interleave(e, a, b, false)
}

fn interleave_high(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    interleave(e, a, b, true)
}

fn operation(mnemonic: Mnemonic) -> Option<(Type, Binary)> {
    use Mnemonic as M;
    let (ty, op): (Type, Binary) = match mnemonic {
        M::Punpcklbw => (types::I8X16, interleave_low),
        M::Punpcklwd => (types::I16X8, interleave_low),
        M::Punpckldq | M::Unpcklps => (types::I32X4, interleave_low),
        M::Punpckhbw => (types::I8X16, interleave_high),
        M::Punpckhwd => (types::I16X8, interleave_high),
        M::Punpckhdq | M::Unpckhps => (types::I32X4, interleave_high),
        M::Punpckhqdq | M::Unpckhpd => (types::I64X2, interleave_high),
        M::Packsswb => (types::I16X8, |e, a, b| e.b.ins().snarrow(a, b)),
        M::Packssdw => (types::I32X4, |e, a, b| e.b.ins().snarrow(a, b)),
        M::Packuswb => (types::I16X8, |e, a, b| e.b.ins().unarrow(a, b)),
        M::Packusdw => (types::I32X4, |e, a, b| e.b.ins().unarrow(a, b)),
        M::Pshufb => (types::I8X16, |e, a, b| e.b.ins().x86_pshufb(a, b)),
        M::Movsldup => (types::I32X4, |e, _, b| picked(e, b, b, &[0, 0, 2, 2])),
        M::Movshdup => (types::I32X4, |e, _, b| picked(e, b, b, &[1, 1, 3, 3])),
        _ => return None,
    };
    Some((ty, op))
}

fn by_immediate(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    use Mnemonic as M;
    only_if(insn.op0_register().is_xmm())?;
    let control = insn.immediate8();
    let field = |index: u8| control >> (2 * index) & 3;
    let bit = |index: u8| control >> index & 1;
    let ty = match insn.mnemonic() {
        M::Pshufd | M::Shufps | M::Blendps => types::I32X4,
        M::Pshuflw | M::Pshufhw | M::Pblendw => types::I16X8,
        M::Shufpd | M::Blendpd => types::I64X2,
        _ => types::I8X16,
    };
    let b = e.read_aligned(insn, 1, ty)?;
    let a = e.xmm(insn.op0_register(), ty);
    let count = ty.lane_count() as u8;
    let blend = || (0..count).map(|lane| lane + count * bit(lane)).collect::<Vec<u8>>();
    let result = match insn.mnemonic() {
        M::Pshufd => picked(e, b, b, &[field(0), field(1), field(2), field(3)]),
        M::Pshuflw => picked(e, b, b, &[field(0), field(1), field(2), field(3), 4, 5, 6, 7]),
        M::Pshufhw => picked(e, b, b, &[0, 1, 2, 3, 4 + field(0), 4 + field(1), 4 + field(2), 4 + field(3)]),
        M::Shufps => picked(e, a, b, &[field(0), field(1), 4 + field(2), 4 + field(3)]),
        M::Shufpd => picked(e, a, b, &[bit(0), 2 + bit(1)]),
        M::Palignr => {
            let zero = e.zero_vector(ty);
            if control <= 16 {
                shifted_bytes(e, b, a, control)
            } else {
                shifted_bytes(e, a, zero, control.min(32) - 16)
            }
        }
        _ => picked(e, a, b, &blend()),
    };
    e.set_xmm(insn.op0_register(), result);
    Ok(())
}

/// Takes the source's lanes where XMM0's lanes are negative.
fn blend_by_xmm0(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    let b = e.read_aligned(insn, 1, ty)?;
    let a = e.xmm(insn.op0_register(), ty);
    let mask = e.xmm(Register::XMM0, ty);
    let result = e.b.ins().blendv(mask, b, a);
    e.set_xmm(insn.op0_register(), result);
    Ok(())
}

/// The lane of 128 / bits that the immediate selects: higher bits are ignored.
fn selected(insn: &Instruction, lane: Type) -> u8 {
    insn.immediate8() & (16 / lane.bytes() as u8 - 1)
}

fn insert(e: &mut Emitter<'_>, insn: &Instruction, lane: Type) -> Lifted {
    only_if(insn.op0_register().is_xmm())?;
    let value = if insn.op1_kind() == OpKind::Memory {
        let host = e.address(insn)?;
        e.load(lane, host)
    } else {
        let value = e.gpr(insn.op1_register());
        e.resize(value, lane)
    };
    e.set_xmm_lane(insn.op0_register(), selected(insn, lane), value);
    Ok(())
}

fn extract(e: &mut Emitter<'_>, insn: &Instruction, lane: Type) -> Lifted {
    only_if(insn.op1_register().is_xmm())?;
    if insn.op0_kind() == OpKind::Memory {
        let host = e.address(insn)?;
        let value = e.xmm_lane(insn.op1_register(), lane, selected(insn, lane));
        e.store(value, host);
    } else {
        let value = e.xmm_lane(insn.op1_register(), lane, selected(insn, lane));
        let wide = e.resize(value, int_type(insn.op0_register().size())?);
        e.set_gpr(insn.op0_register(), wide);
    }
    Ok(())
}

/// INSERTPS: bits 7:6 select the source lane (registers only), 5:4 the destination lane, 3:0 lanes to clear.
fn insert_single(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let control = insn.immediate8();
    let value = if insn.op1_kind() == OpKind::Memory {
        e.read_scalar(insn, 1, types::F32)?
    } else {
        e.xmm_lane(insn.op1_register(), types::F32, control >> 6)
    };
    let old = e.xmm(insn.op0_register(), types::F32X4);
    let mut result = e.b.ins().insertlane(old, value, control >> 4 & 3);
    if control & 15 != 0 {
        let zero = e.zero_vector(types::F32X4);
        let lanes: Vec<u8> = (0..4).map(|lane| lane + 4 * (control >> lane & 1)).collect();
        result = picked(e, result, zero, &lanes);
    }
    e.set_xmm(insn.op0_register(), result);
    Ok(())
}

/// Sign bits of all lanes into a general-purpose register.
fn sign_mask(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    only_if(insn.op1_kind() == OpKind::Register && insn.op1_register().is_xmm())?;
    let value = e.xmm(insn.op1_register(), ty);
    let bits = e.b.ins().vhigh_bits(types::I32, value);
    let wide = e.resize(bits, int_type(insn.op0_register().size())?);
    e.set_gpr(insn.op0_register(), wide);
    Ok(())
}

fn duplicate_low(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_scalar(insn, 1, types::F64)?;
    e.set_xmm_lane(insn.op0_register(), 0, value);
    e.set_xmm_lane(insn.op0_register(), 1, value);
    Ok(())
}

/// Lane types from and to of PMOVSX (`true`) and PMOVZX.
fn extension(mnemonic: Mnemonic) -> Option<(Type, Type, bool)> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Pmovsxbw => (types::I8X16, types::I16X8, true),
        M::Pmovsxbd => (types::I8X16, types::I32X4, true),
        M::Pmovsxbq => (types::I8X16, types::I64X2, true),
        M::Pmovsxwd => (types::I16X8, types::I32X4, true),
        M::Pmovsxwq => (types::I16X8, types::I64X2, true),
        M::Pmovsxdq => (types::I32X4, types::I64X2, true),
        M::Pmovzxbw => (types::I8X16, types::I16X8, false),
        M::Pmovzxbd => (types::I8X16, types::I32X4, false),
        M::Pmovzxbq => (types::I8X16, types::I64X2, false),
        M::Pmovzxwd => (types::I16X8, types::I32X4, false),
        M::Pmovzxwq => (types::I16X8, types::I64X2, false),
        M::Pmovzxdq => (types::I32X4, types::I64X2, false),
        _ => return None,
    })
}

fn extend(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let (from, to, signed) = extension(insn.mnemonic()).ok_or(NotLifted)?;
    let mut value = e.read_low(insn, 1, from)?;
    while e.type_of(value) != to {
        value = if signed { e.b.ins().swiden_low(value) } else { e.b.ins().uwiden_low(value) };
    }
    e.set_xmm(insn.op0_register(), value);
    Ok(())
}
