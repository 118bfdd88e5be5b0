//! Packing, interleaving, shuffling, blending, insertion, extraction, extension and masks of lanes (SDM vol. 1, 10.4.2,
//! 11.4.1.4, 12.3, 12.6, 12.10).

use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::sse_integer::{Binary, lanewise};
use super::{Lifter, base, first_source, last_source, only_if};
use crate::emit::{Emitter, Halves, Lifted, NotLifted, int_type, is_vex, is_wide};
use crate::host_op::HostOp;

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    if operation(mnemonic).is_some() {
        return Some(|e, insn| match operation(base(insn)) {
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
        M::Pblendvb => |e, insn| blend_by_mask(e, insn, types::I8X16),
        M::Blendvps => |e, insn| blend_by_mask(e, insn, types::I32X4),
        M::Blendvpd => |e, insn| blend_by_mask(e, insn, types::I64X2),
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
        M::Mpsadbw => sums_of_differences,
        M::Phminposuw => minimum_word,
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

pub(super) fn interleave_low(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    interleave(e, a, b, false)
}

fn interleave_high(e: &mut Emitter<'_>, a: Value, b: Value) -> Value {
    interleave(e, a, b, true)
}

pub(super) fn operation(mnemonic: Mnemonic) -> Option<(Type, Binary)> {
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

/// Whether an operand is a vector register of either size.
fn is_vector(register: Register) -> bool {
    register.is_xmm() || register.is_ymm()
}

/// The lanes that an immediate selects from `a` followed by `b`, in the half of an operand with number `half`.
fn selection(mnemonic: Mnemonic, control: u8, half: u8) -> Vec<u8> {
    use Mnemonic as M;
    let field = |index: u8| control >> (2 * index) & 3;
    // Two-lane forms have a bit for every lane of both halves.
    let bit = |index: u8| control >> index & 1;
    let pair = |index: u8| bit(2 * half + index);
    let blend = |count: u8, from: u8| (0..count).map(|lane| lane + count * bit(from + lane)).collect::<Vec<u8>>();
    match mnemonic {
        M::Pshufd | M::Vpermilps => vec![field(0), field(1), field(2), field(3)],
        M::Pshuflw => vec![field(0), field(1), field(2), field(3), 4, 5, 6, 7],
        M::Pshufhw => vec![0, 1, 2, 3, 4 + field(0), 4 + field(1), 4 + field(2), 4 + field(3)],
        M::Shufps => vec![field(0), field(1), 4 + field(2), 4 + field(3)],
        M::Shufpd => vec![pair(0), 2 + pair(1)],
        M::Vpermilpd => vec![pair(0), pair(1)],
        M::Pblendw => blend(8, 0),
        M::Blendps | M::Vpblendd => blend(4, 4 * half),
        _ => blend(2, 2 * half),
    }
}

pub(super) fn by_immediate(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    use Mnemonic as M;
    only_if(is_vector(insn.op0_register()))?;
    let (mnemonic, control) = (base(insn), insn.immediate8());
    let ty = match mnemonic {
        M::Pshufd | M::Shufps | M::Blendps | M::Vpblendd | M::Vpermilps => types::I32X4,
        M::Pshuflw | M::Pshufhw | M::Pblendw => types::I16X8,
        M::Shufpd | M::Blendpd | M::Vpermilpd => types::I64X2,
        _ => types::I8X16,
    };
    let wide = is_wide(insn);
    let b = e.halves(insn, last_source(insn), ty, wide)?;
    let one_source = matches!(mnemonic, M::Pshufd | M::Pshuflw | M::Pshufhw | M::Vpermilps | M::Vpermilpd);
    let a = if one_source { b } else { e.halves(insn, first_source(insn), ty, wide)? };
    let mut half = 0;
    let result = a.zip(b, |a, b| {
        let result = if mnemonic == M::Palignr {
            let zero = e.zero_vector(ty);
            if control <= 16 {
                shifted_bytes(e, b, a, control)
            } else {
                shifted_bytes(e, a, zero, control.min(32) - 16)
            }
        } else {
            picked(e, a, b, &selection(mnemonic, control, half))
        };
        half += 1;
        result
    });
    e.set_halves(insn.op0_register(), result);
    Ok(())
}

/// Takes the source's lanes where the mask's are negative: XMM0 in the legacy form, the fourth operand in VEX's.
fn blend_by_mask(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    if !is_vex(insn) {
        let b = e.read_aligned(insn, 1, ty)?;
        let a = e.xmm(insn.op0_register(), ty);
        let mask = e.xmm(Register::XMM0, ty);
        let result = e.b.ins().blendv(mask, b, a);
        e.set_xmm(insn.op0_register(), result);
        return Ok(());
    }
    let wide = is_wide(insn);
    let b = e.halves(insn, 2, ty, wide)?;
    let a = e.halves(insn, 1, ty, wide)?;
    let mask = e.halves(insn, 3, ty, wide)?;
    let low = e.b.ins().blendv(mask.low, b.low, a.low);
    let high = match (mask.high, a.high, b.high) {
        (Some(mask), Some(a), Some(b)) => Some(e.b.ins().blendv(mask, b, a)),
        _ => None,
    };
    e.set_halves(insn.op0_register(), Halves { low, high });
    Ok(())
}

/// The lane of 128 / bits that the immediate selects: higher bits are ignored.
fn selected(insn: &Instruction, lane: Type) -> u8 {
    insn.immediate8() & (16 / lane.bytes() as u8 - 1)
}

fn insert(e: &mut Emitter<'_>, insn: &Instruction, lane: Type) -> Lifted {
    only_if(insn.op0_register().is_xmm())?;
    let source = last_source(insn);
    let value = if insn.op_kind(source) == OpKind::Memory {
        let host = e.address(insn)?;
        e.load(lane, host)
    } else {
        let value = e.gpr(insn.op_register(source));
        e.resize(value, lane)
    };
    e.merge_lane(insn, selected(insn, lane), value);
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
    let (control, source) = (insn.immediate8(), last_source(insn));
    let value = if insn.op_kind(source) == OpKind::Memory {
        e.read_scalar(insn, source, types::F32)?
    } else {
        e.xmm_lane(insn.op_register(source), types::F32, control >> 6)
    };
    let old = e.xmm(insn.op_register(first_source(insn)), types::F32X4);
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
    only_if(insn.op1_kind() == OpKind::Register && is_vector(insn.op1_register()))?;
    let value = e.halves(insn, 1, ty, is_wide(insn))?;
    let bits = sign_bits(e, value);
    let wide = e.resize(bits, int_type(insn.op0_register().size())?);
    e.set_gpr(insn.op0_register(), wide);
    Ok(())
}

/// The sign bits of all lanes, 32 bits wide.
pub(super) fn sign_bits(e: &mut Emitter<'_>, value: Halves) -> Value {
    let count = i64::from(e.type_of(value.low).lane_count());
    let bits = value.map(|half| e.b.ins().vhigh_bits(types::I32, half));
    match bits.high {
        Some(high) => {
            let high = e.b.ins().ishl_imm_u(high, count);
            e.b.ins().bor(bits.low, high)
        }
        None => bits.low,
    }
}

fn duplicate_low(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    if is_wide(insn) {
        let value = e.halves(insn, 1, types::F64X2, true)?;
        let result = value.map(|half| picked(e, half, half, &[0, 0]));
        e.set_halves(insn.op0_register(), result);
        return Ok(());
    }
    let value = e.read_scalar(insn, 1, types::F64)?;
    e.set_xmm_lane(insn.op0_register(), 0, value);
    e.set_xmm_lane(insn.op0_register(), 1, value);
    Ok(())
}

/// MPSADBW: the immediate's bit 2 moves the window of the first source by four bytes, bits 1:0 choose four bytes of the
/// second one; bits 5:3 count for the upper half.
fn sums_of_differences(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let wide = is_wide(insn);
    let b = e.halves(insn, last_source(insn), types::I8X16, wide)?;
    let a = e.halves(insn, first_source(insn), types::I8X16, wide)?;
    let zero = e.zero_vector(types::I8X16);
    let part = |e: &mut Emitter<'_>, control: u8, a: Value, b: Value| {
        let a = shifted_bytes(e, a, zero, 4 * (control >> 2 & 1));
        let b = shifted_bytes(e, b, zero, 4 * (control & 3));
        e.host_op(HostOp::Mpsadbw, &[a, b])
    };
    let low = part(e, insn.immediate8(), a.low, b.low)?;
    let high = a.high.zip(b.high).map(|(a, b)| part(e, insn.immediate8() >> 3, a, b)).transpose()?;
    e.set_halves(insn.op0_register(), Halves { low, high });
    Ok(())
}

fn minimum_word(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_aligned(insn, 1, types::I8X16)?;
    let result = e.host_op(HostOp::Phminposuw, &[value])?;
    e.set_xmm(insn.op0_register(), result);
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
    let (from, to, signed) = extension(base(insn)).ok_or(NotLifted)?;
    let wide = insn.op0_register().is_ymm();
    let mut value = if insn.memory_size().size() == 16 || !wide && insn.op1_kind() != OpKind::Memory {
        e.read_vector(insn, 1, from)?
    } else {
        e.read_low(insn, 1, from)?
    };
    let mut high = None;
    while e.type_of(value) != to {
        // The lanes for the upper half are next to the others until the last step.
        if wide && e.type_of(value).lane_bits() * 2 == to.lane_bits() {
            high = Some(if signed { e.b.ins().swiden_high(value) } else { e.b.ins().uwiden_high(value) });
        }
        value = if signed { e.b.ins().swiden_low(value) } else { e.b.ins().uwiden_low(value) };
    }
    e.set_halves(insn.op0_register(), Halves { low: value, high });
    Ok(())
}
