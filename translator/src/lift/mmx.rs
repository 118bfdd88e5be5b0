//! MMX instructions (SDM vol. 1, chapter 9, and the MMX forms of SSE to SSSE3).
//!
//! The registers are in the block, as parts of the x87's. A source becomes the low half of a vector whose upper half is
//! zero, and what the SSE forms do gives the result in the low half; where lanes change places it is arranged first.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use lstar_arch::CpuState;
use lstar_arch::control::cr0;
use lstar_arch::state::X87State;
use std::mem::offset_of;

use super::{Lifter, only_if, sse_integer, sse_move, sse_shuffle};
use crate::abi::VcpuBlock;
use crate::effects::is_mmx;
use crate::emit::{Emitter, Halves, Lifted, NotLifted, int_type};
use crate::host_op::HostOp;

const CPU: usize = offset_of!(VcpuBlock, cpu);
const X87: usize = CPU + offset_of!(CpuState, x87);
const STATUS: usize = X87 + offset_of!(X87State, status);
const VALID: usize = X87 + offset_of!(X87State, valid);
/// TOP in the status word.
const TOP: i64 = 7 << 11;
/// ES in the status word: an unmasked exception is pending.
const ERROR_SUMMARY: i64 = 1 << 7;

/// The lifter for an instruction on MMX registers.
pub(crate) fn lifter(insn: &Instruction) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match insn.mnemonic() {
        M::Emms => empty,
        M::Movd => |e, insn| transfer(e, insn, types::I32),
        M::Movq | M::Movntq | M::Movq2dq | M::Movdq2q => |e, insn| transfer(e, insn, types::I64),
        M::Maskmovq => masked_store,
        M::Pand => |e, insn| bitwise(e, insn, |e, a, b| e.b.ins().band(a, b)),
        M::Pandn => |e, insn| bitwise(e, insn, |e, a, b| e.b.ins().band_not(b, a)),
        M::Por => |e, insn| bitwise(e, insn, |e, a, b| e.b.ins().bor(a, b)),
        M::Pxor => |e, insn| bitwise(e, insn, |e, a, b| e.b.ins().bxor(a, b)),
        M::Psllw | M::Psrlw | M::Psraw => |e, insn| shift(e, insn, types::I16X8),
        M::Pslld | M::Psrld | M::Psrad => |e, insn| shift(e, insn, types::I32X4),
        M::Psllq | M::Psrlq => |e, insn| shift(e, insn, types::I64X2),
        M::Pshufw => shuffle_words,
        M::Palignr => align,
        M::Pinsrw => insert_word,
        M::Pextrw => extract_word,
        M::Pmovmskb => byte_mask,
        M::Cvtps2pi | M::Cvttps2pi | M::Cvtpd2pi | M::Cvttpd2pi => to_integers,
        M::Cvtpi2ps => to_singles,
        M::Cvtpi2pd => to_doubles,
        mnemonic if operation(mnemonic).is_some() => combine,
        _ => return None,
    })
}

fn operation(mnemonic: Mnemonic) -> Option<(Type, sse_integer::Binary)> {
    sse_integer::operation(mnemonic).or_else(|| sse_shuffle::operation(mnemonic))
}

/// Brings the registers to the block. Traps if they may not be used, or an x87 exception is pending.
fn check_available(e: &mut Emitter<'_>) {
    e.leave_x87();
    let control = e.load_state(types::I64, CPU + offset_of!(CpuState, cr0));
    let unavailable = e.b.ins().band_imm_u(control, (cr0::EM | cr0::TS) as i64);
    let status = e.load_state(types::I16, STATUS);
    let pending = e.b.ins().band_imm_u(status, ERROR_SUMMARY);
    let pending = e.b.ins().uextend(types::I64, pending);
    let any = e.b.ins().bor(unavailable, pending);
    e.trap_if(any);
}

/// Marks all registers valid and sets TOP to 0, as every instruction but EMMS does (SDM vol. 1, 9.5.1).
fn enter(e: &mut Emitter<'_>) {
    let status = e.load_state(types::I16, STATUS);
    let status = e.b.ins().band_imm_s(status, !TOP);
    e.store_state(status, STATUS);
    let all = e.iconst(types::I8, 0xFF);
    e.store_state(all, VALID);
}

fn place_of(register: Register) -> usize {
    X87 + offset_of!(X87State, registers) + 16 * (register.number() & 7)
}

fn read(e: &mut Emitter<'_>, register: Register) -> Value {
    e.load_state(types::I64, place_of(register))
}

/// Writes a register; sign and exponent of the x87's become ones.
fn write(e: &mut Emitter<'_>, register: Register, value: Value) {
    e.store_state(value, place_of(register));
    let ones = e.iconst(types::I16, 0xFFFF);
    e.store_state(ones, place_of(register) + 8);
    enter(e);
}

/// MASKMOVQ, as MASKMOVDQU.
fn masked_store(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let host = sse_move::masked_destination(e, insn)?;
    check_available(e);
    let [data, mask] = [insn.op1_register(), insn.op2_register()].map(|register| {
        let value = read(e, register);
        widened(e, value, types::I8X16)
    });
    let old = e.load(types::I64, host);
    let old = widened(e, old, types::I8X16);
    let new = sse_move::masked_bytes(e, mask, data, old);
    let new = half(e, new, 0);
    e.store(new, host);
    enter(e);
    Ok(())
}

/// 64 bits as the low half of a vector; the upper half is zero.
fn widened(e: &mut Emitter<'_>, value: Value, ty: Type) -> Value {
    let vector = e.b.ins().scalar_to_vector(types::I64X2, value);
    e.reinterpret(vector, ty)
}

/// A register or memory operand as the low half of a vector.
fn operand(e: &mut Emitter<'_>, insn: &Instruction, index: u32, ty: Type) -> Result<Value, NotLifted> {
    if insn.op_kind(index) != OpKind::Register {
        return e.read_low(insn, index, ty);
    }
    only_if(insn.op_register(index).is_mm())?;
    let value = read(e, insn.op_register(index));
    Ok(widened(e, value, ty))
}

/// Half `half` of a vector of any type.
fn half(e: &mut Emitter<'_>, vector: Value, half: u8) -> Value {
    let vector = e.reinterpret(vector, types::I64X2);
    e.b.ins().extractlane(vector, half)
}

/// The low halves of two vectors in one.
fn joined(e: &mut Emitter<'_>, low: Value, high: Value) -> Value {
    let ty = e.type_of(low);
    let (low, high) = (e.reinterpret(low, types::I64X2), e.reinterpret(high, types::I64X2));
    let both = sse_shuffle::picked(e, low, high, &[0, 2]);
    e.reinterpret(both, ty)
}

/// EMMS: all registers are empty. Whether TOP becomes 0 depends on the vendor: where it is not, behind x87 instructions, the
/// interpreter knows.
fn empty(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    check_available(e);
    let status = e.load_state(types::I16, STATUS);
    let top = e.b.ins().band_imm_u(status, TOP);
    e.trap_if(top);
    let none = e.iconst(types::I8, 0);
    e.store_state(none, VALID);
    Ok(())
}

/// MOVD, MOVQ and their like between MMX, XMM and general-purpose registers and memory.
fn transfer(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    check_available(e);
    let from = insn.op1_register();
    let value = match insn.op1_kind() {
        OpKind::Memory => {
            let host = e.address(insn)?;
            e.load(ty, host)
        }
        _ if from.is_mm() => {
            let value = read(e, from);
            if ty == types::I64 { value } else { e.b.ins().ireduce(ty, value) }
        }
        _ if from.is_xmm() => e.xmm_lane(from, ty, 0),
        _ => e.gpr(from),
    };
    let to = insn.op0_register();
    if insn.op0_kind() == OpKind::Register && to.is_mm() {
        let value = e.resize(value, types::I64);
        write(e, to, value);
    } else if insn.op0_kind() == OpKind::Register && to.is_xmm() {
        e.set_xmm_zero_above(to, value);
        enter(e);
    } else {
        let place = e.place(insn, 0)?;
        e.put(place, value);
        enter(e);
    }
    Ok(())
}

fn bitwise(e: &mut Emitter<'_>, insn: &Instruction, op: sse_integer::Binary) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    check_available(e);
    let b = if insn.op1_kind() == OpKind::Memory {
        let host = e.address(insn)?;
        e.load(types::I64, host)
    } else {
        read(e, insn.op1_register())
    };
    let a = read(e, insn.op0_register());
    let result = op(e, a, b);
    write(e, insn.op0_register(), result);
    Ok(())
}

/// Instructions whose SSE form has a table entry.
fn combine(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    use Mnemonic as M;
    only_if(!insn.has_lock_prefix())?;
    let (ty, op) = operation(insn.mnemonic()).ok_or(NotLifted)?;
    check_available(e);
    let b = operand(e, insn, 1, ty)?;
    let a = operand(e, insn, 0, ty)?;
    let (vector, part) = match insn.mnemonic() {
        // What is interleaved from the low halves of vectors is the whole of these.
        M::Punpckhbw | M::Punpckhwd | M::Punpckhdq => (sse_shuffle::interleave_low(e, a, b), 1),
        M::Packsswb | M::Packssdw | M::Packuswb | M::Phaddw | M::Phaddd | M::Phaddsw => {
            let both = joined(e, a, b);
            (op(e, both, both), 0)
        }
        M::Phsubw | M::Phsubd | M::Phsubsw => {
            let both = joined(e, a, b);
            (op(e, both, both), 0)
        }
        M::Pshufb => {
            // Of an index count the three bits for eight bytes, and the one that clears.
            let bits = e.constant_vector(types::I8X16, [0x87; 16]);
            let index = e.b.ins().band(b, bits);
            (op(e, a, index), 0)
        }
        _ => (op(e, a, b), 0),
    };
    let result = half(e, vector, part);
    write(e, insn.op0_register(), result);
    Ok(())
}

/// Shifts by an immediate or by a quadword; CLIF reduces counts, x86 shifts everything out.
fn shift(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    use Mnemonic as M;
    only_if(!insn.has_lock_prefix())?;
    check_available(e);
    let count = match insn.op1_kind() {
        OpKind::Immediate8 => e.iconst(types::I64, insn.immediate8().into()),
        OpKind::Memory => {
            let host = e.address(insn)?;
            e.load(types::I64, host)
        }
        _ => read(e, insn.op1_register()),
    };
    let value = operand(e, insn, 0, ty)?;
    let most = e.iconst(types::I64, i64::from(ty.lane_bits()) - 1);
    let over = e.b.ins().icmp(IntCC::UnsignedGreaterThan, count, most);
    let result = match insn.mnemonic() {
        M::Psraw | M::Psrad => {
            let count = e.b.ins().select(over, most, count);
            let result = e.b.ins().sshr(value, count);
            half(e, result, 0)
        }
        mnemonic => {
            let left = matches!(mnemonic, M::Psllw | M::Pslld | M::Psllq);
            let result = if left { e.b.ins().ishl(value, count) } else { e.b.ins().ushr(value, count) };
            let result = half(e, result, 0);
            let zero = e.iconst(types::I64, 0);
            e.b.ins().select(over, zero, result)
        }
    };
    write(e, insn.op0_register(), result);
    Ok(())
}

fn shuffle_words(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    check_available(e);
    let value = operand(e, insn, 1, types::I16X8)?;
    let field = |index: u8| insn.immediate8() >> (2 * index) & 3;
    let result = sse_shuffle::picked(e, value, value, &[field(0), field(1), field(2), field(3), 4, 5, 6, 7]);
    let result = half(e, result, 0);
    write(e, insn.op0_register(), result);
    Ok(())
}

/// PALIGNR: bytes out of the destination behind the source.
fn align(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    check_available(e);
    let low = operand(e, insn, 1, types::I8X16)?;
    let high = operand(e, insn, 0, types::I8X16)?;
    let (both, zero) = (joined(e, low, high), e.zero_vector(types::I8X16));
    let result = sse_shuffle::shifted_bytes(e, both, zero, insn.immediate8().min(16));
    let result = half(e, result, 0);
    write(e, insn.op0_register(), result);
    Ok(())
}

fn insert_word(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    check_available(e);
    let word = if insn.op1_kind() == OpKind::Memory {
        let host = e.address(insn)?;
        e.load(types::I16, host)
    } else {
        let value = e.gpr(insn.op1_register());
        e.resize(value, types::I16)
    };
    let old = operand(e, insn, 0, types::I16X8)?;
    let result = e.b.ins().insertlane(old, word, insn.immediate8() & 3);
    let result = half(e, result, 0);
    write(e, insn.op0_register(), result);
    Ok(())
}

fn extract_word(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix() && insn.op0_kind() == OpKind::Register)?;
    check_available(e);
    let value = operand(e, insn, 1, types::I16X8)?;
    let word = e.b.ins().extractlane(value, insn.immediate8() & 3);
    let wide = e.resize(word, int_type(insn.op0_register().size())?);
    e.set_gpr(insn.op0_register(), wide);
    enter(e);
    Ok(())
}

fn byte_mask(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    check_available(e);
    let low = operand(e, insn, 1, types::I8X16)?;
    let bits = sse_shuffle::sign_bits(e, Halves { low, high: None });
    let wide = e.resize(bits, int_type(insn.op0_register().size())?);
    e.set_gpr(insn.op0_register(), wide);
    enter(e);
    Ok(())
}

/// Two singles or doubles to doubleword integers.
fn to_integers(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    use Mnemonic as M;
    only_if(!insn.has_lock_prefix())?;
    check_available(e);
    let doubles = matches!(insn.mnemonic(), M::Cvtpd2pi | M::Cvttpd2pi);
    let value = if doubles {
        e.read_aligned(insn, 1, types::F64X2)?
    } else if insn.op1_kind() == OpKind::Memory {
        e.read_low(insn, 1, types::F32X4)?
    } else {
        // The upper lanes must not raise anything.
        let low = e.xmm_lane(insn.op1_register(), types::I64, 0);
        widened(e, low, types::F32X4)
    };
    let result = match insn.mnemonic() {
        M::Cvtpd2pi => e.host_op(HostOp::Cvtpd2dq, &[value])?,
        M::Cvttpd2pi => super::sse_convert::truncated_doubles(e, value),
        M::Cvtps2pi => e.host_op(HostOp::Cvtps2dq, &[value])?,
        _ => e.b.ins().x86_cvtt2dq(types::I32X4, value),
    };
    let result = half(e, result, 0);
    write(e, insn.op0_register(), result);
    Ok(())
}

/// The source of CVTPI2PS and CVTPI2PD, which from memory are no MMX instructions.
fn integers(e: &mut Emitter<'_>, insn: &Instruction) -> Result<Value, NotLifted> {
    only_if(!insn.has_lock_prefix())?;
    if is_mmx(insn) {
        check_available(e);
    }
    operand(e, insn, 1, types::I32X4)
}

/// CVTPI2PS: the upper half of the destination stays.
fn to_singles(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = integers(e, insn)?;
    let singles = e.b.ins().fcvt_from_sint(types::F32X4, value);
    let low = half(e, singles, 0);
    e.set_xmm_lane(insn.op0_register(), 0, low);
    if is_mmx(insn) {
        enter(e);
    }
    Ok(())
}

fn to_doubles(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = integers(e, insn)?;
    let wide = e.b.ins().swiden_low(value);
    let doubles = e.b.ins().fcvt_from_sint(types::F64X2, wide);
    e.set_xmm(insn.op0_register(), doubles);
    if is_mmx(insn) {
        enter(e);
    }
    Ok(())
}
