//! AVX and AVX2 instructions without a legacy form (SDM vol. 1, 14.1 to 14.6): broadcasts, permutations across halves, halves
//! in and out, variable shifts, tests, VZEROUPPER.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::sse_integer::set_test_flags;
use super::sse_shuffle::{by_immediate, picked};
use super::{Lifter, only_if};
use crate::emit::{Emitter, Halves, Lifted, is_wide};
use crate::host_op::HostOp;

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vzeroupper | M::Vzeroall => clear_registers,
        M::Vbroadcastss | M::Vpbroadcastd => |e, insn| broadcast(e, insn, types::I32),
        M::Vbroadcastsd | M::Vpbroadcastq => |e, insn| broadcast(e, insn, types::I64),
        M::Vpbroadcastb => |e, insn| broadcast(e, insn, types::I8),
        M::Vpbroadcastw => |e, insn| broadcast(e, insn, types::I16),
        M::Vbroadcastf128 | M::Vbroadcasti128 => broadcast_half,
        M::Vinsertf128 | M::Vinserti128 => insert_half,
        M::Vextractf128 | M::Vextracti128 => extract_half,
        M::Vperm2f128 | M::Vperm2i128 => permute_halves,
        M::Vpermq | M::Vpermpd => permute_quadwords,
        M::Vpermd | M::Vpermps => permute_doublewords,
        M::Vpblendd => by_immediate,
        M::Vpermilps | M::Vpermilpd => permute_in_halves,
        M::Vpsllvd => |e, insn| shift(e, insn, HostOp::Vpsllvd),
        M::Vpsrlvd => |e, insn| shift(e, insn, HostOp::Vpsrlvd),
        M::Vpsravd => |e, insn| shift(e, insn, HostOp::Vpsravd),
        M::Vpsllvq => |e, insn| shift(e, insn, HostOp::Vpsllvq),
        M::Vpsrlvq => |e, insn| shift(e, insn, HostOp::Vpsrlvq),
        M::Vtestps => |e, insn| test_signs(e, insn, types::I32X4),
        M::Vtestpd => |e, insn| test_signs(e, insn, types::I64X2),
        _ => return None,
    })
}

/// The vector registers with numbers below 8 and from 8 on.
const REGISTERS: [Register; 16] = [
    Register::XMM0,
    Register::XMM1,
    Register::XMM2,
    Register::XMM3,
    Register::XMM4,
    Register::XMM5,
    Register::XMM6,
    Register::XMM7,
    Register::XMM8,
    Register::XMM9,
    Register::XMM10,
    Register::XMM11,
    Register::XMM12,
    Register::XMM13,
    Register::XMM14,
    Register::XMM15,
];

fn clear_registers(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    for register in REGISTERS {
        e.clear_high(register);
        if insn.mnemonic() == Mnemonic::Vzeroall {
            e.clear_xmm(register);
        }
    }
    Ok(())
}

/// The same value in both halves, if there are two.
fn both(insn: &Instruction, value: Value) -> Halves {
    Halves { low: value, high: insn.op0_register().is_ymm().then_some(value) }
}

fn broadcast(e: &mut Emitter<'_>, insn: &Instruction, lane: Type) -> Lifted {
    let value = if insn.op1_kind() == OpKind::Memory {
        let host = e.address(insn)?;
        e.load(lane, host)
    } else {
        e.xmm_lane(insn.op1_register(), lane, 0)
    };
    let vector = lane.by(16 / lane.bytes()).unwrap_or(types::I8X16);
    let value = e.b.ins().splat(vector, value);
    e.set_halves(insn.op0_register(), both(insn, value));
    Ok(())
}

fn broadcast_half(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let host = e.address(insn)?;
    let value = e.load(types::I8X16, host);
    e.set_halves(insn.op0_register(), both(insn, value));
    Ok(())
}

fn insert_half(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_vector(insn, 2, types::I8X16)?;
    let old = e.halves(insn, 1, types::I8X16, true)?;
    let result = if insn.immediate8() & 1 == 0 {
        Halves { low: value, high: old.high }
    } else {
        Halves { low: old.low, high: Some(value) }
    };
    e.set_halves(insn.op0_register(), result);
    Ok(())
}

fn extract_half(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let source = insn.op1_register();
    let upper = insn.immediate8() & 1 != 0;
    let value = if upper { e.high(source, types::I8X16) } else { e.xmm(source, types::I8X16) };
    if insn.op0_kind() == OpKind::Memory {
        let host = e.address(insn)?;
        e.store(value, host);
    } else {
        e.set_xmm(insn.op0_register(), value);
    }
    Ok(())
}

/// VPERM2F128: each half is one of the four of both sources, or zero.
fn permute_halves(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let b = e.halves(insn, 2, types::I8X16, true)?;
    let a = e.halves(insn, 1, types::I8X16, true)?;
    let control = insn.immediate8();
    let zero = e.zero_vector(types::I8X16);
    let choose = |control: u8| {
        if control & 8 != 0 {
            return zero;
        }
        let source = if control & 2 != 0 { b } else { a };
        if control & 1 != 0 { source.high.unwrap_or(zero) } else { source.low }
    };
    let result = Halves { low: choose(control), high: Some(choose(control >> 4)) };
    e.set_halves(insn.op0_register(), result);
    Ok(())
}

fn permute_quadwords(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let source = e.halves(insn, 1, types::I64X2, true)?;
    let high = source.high.unwrap_or(source.low);
    let field = |index: u8| insn.immediate8() >> (2 * index) & 3;
    let low_result = picked(e, source.low, high, &[field(0), field(1)]);
    let high_result = picked(e, source.low, high, &[field(2), field(3)]);
    e.set_halves(insn.op0_register(), Halves { low: low_result, high: Some(high_result) });
    Ok(())
}

/// For each doubleword of `index`, the numbers of the bytes of the doubleword that its lowest two bits name.
fn byte_indices(e: &mut Emitter<'_>, index: Value) -> Value {
    let index = e.reinterpret(index, types::I32X4);
    let two = e.iconst(types::I32, 2);
    let scaled = e.b.ins().ishl(index, two);
    let scaled = e.reinterpret(scaled, types::I8X16);
    let spread = e.constant_vector(types::I8X16, std::array::from_fn(|at| at as u8 & !3));
    let scaled = e.b.ins().x86_pshufb(scaled, spread);
    let mask = e.constant_vector(types::I8X16, [12; 16]);
    let scaled = e.b.ins().band(scaled, mask);
    let steps = e.constant_vector(types::I8X16, std::array::from_fn(|at| at as u8 & 3));
    e.b.ins().bor(scaled, steps)
}

/// VPERMD and VPERMPS: each index, of three bits, selects one of eight doublewords of the last operand.
fn permute_doublewords(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let table = e.halves(insn, 2, types::I8X16, true)?;
    let index = e.halves(insn, 1, types::I32X4, true)?;
    let upper_table = table.high.unwrap_or(table.low);
    let result = index.map(|index| {
        let bytes = byte_indices(e, index);
        let from_low = e.b.ins().x86_pshufb(table.low, bytes);
        let from_high = e.b.ins().x86_pshufb(upper_table, bytes);
        let count = e.iconst(types::I32, 29);
        let upper = e.b.ins().ishl(index, count);
        let [from_low, from_high] = [from_low, from_high].map(|value| e.reinterpret(value, types::I32X4));
        e.b.ins().blendv(upper, from_high, from_low)
    });
    e.set_halves(insn.op0_register(), result);
    Ok(())
}

/// VPERMILPS and VPERMILPD, by an immediate or by a vector.
fn permute_in_halves(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    if insn.op_kind(2) == OpKind::Immediate8 {
        return by_immediate(e, insn);
    }
    let wide = is_wide(insn);
    let index = e.halves(insn, 2, types::I64X2, wide)?;
    let source = e.halves(insn, 1, types::I64X2, wide)?;
    let single = insn.mnemonic() == Mnemonic::Vpermilps;
    let result = source.zip(index, |source, index| {
        if single {
            let bytes = byte_indices(e, index);
            let source = e.reinterpret(source, types::I8X16);
            return e.b.ins().x86_pshufb(source, bytes);
        }
        // Bit 1 of each quadword.
        let count = e.iconst(types::I32, 62);
        let upper = e.b.ins().ishl(index, count);
        let low = picked(e, source, source, &[0, 0]);
        let high = picked(e, source, source, &[1, 1]);
        e.b.ins().blendv(upper, high, low)
    });
    e.set_halves(insn.op0_register(), result);
    Ok(())
}

/// Shifts by a count for each lane.
fn shift(e: &mut Emitter<'_>, insn: &Instruction, op: HostOp) -> Lifted {
    only_if(e.host_has(op.feature()))?;
    let wide = is_wide(insn);
    let count = e.halves(insn, 2, types::I8X16, wide)?;
    let value = e.halves(insn, 1, types::I8X16, wide)?;
    let low = e.host_op(op, &[value.low, count.low])?;
    let high = match (value.high, count.high) {
        (Some(value), Some(count)) => Some(e.host_op(op, &[value, count])?),
        _ => None,
    };
    e.set_halves(insn.op0_register(), Halves { low, high });
    Ok(())
}

/// VTESTPS and VTESTPD: as PTEST, for the lanes' signs only.
fn test_signs(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    let wide = is_wide(insn);
    let b = e.halves(insn, 1, ty, wide)?;
    let a = e.halves(insn, 0, ty, wide)?;
    let zero = e.zero_vector(ty);
    let mut negative = |value: Value| e.b.ins().icmp(IntCC::SignedLessThan, value, zero);
    let (a, b) = (a.map(&mut negative), b.map(&mut negative));
    let common = a.zip(b, |a, b| e.b.ins().band(a, b));
    let missing = a.zip(b, |a, b| e.b.ins().band_not(b, a));
    set_test_flags(e, common, missing);
    Ok(())
}
