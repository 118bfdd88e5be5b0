//! SSE, SSE2 and AVX data transfer and bitwise logic (SDM vol. 1, 10.4, 11.4 and 14.1).

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::sse_integer::{Binary, lanewise};
use super::{Lifter, last_source, only_if};
use crate::effects::clears_by_xor;
use crate::emit::{Emitter, Halves, Host, Lifted, NotLifted, is_vex, is_wide};

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => move_unaligned,
        M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => move_aligned,
        M::Movss | M::Movntss => |e, insn| move_scalar(e, insn, types::F32),
        M::Movsd | M::Movntsd => |e, insn| move_scalar(e, insn, types::F64),
        M::Movd => |e, insn| move_integer(e, insn, types::I32),
        M::Movq => |e, insn| move_integer(e, insn, types::I64),
        M::Movlps | M::Movlpd => |e, insn| move_half(e, insn, 0),
        M::Movhps | M::Movhpd => |e, insn| move_half(e, insn, 1),
        M::Movhlps => |e, insn| move_between_halves(e, insn, 0, 1),
        M::Movlhps | M::Unpcklpd | M::Punpcklqdq => low_quadwords,
        M::Maskmovdqu => masked_store,
        M::Xorps | M::Xorpd | M::Pxor => xor,
        M::Andps | M::Andpd | M::Pand => and,
        M::Andnps | M::Andnpd | M::Pandn => and_not,
        M::Orps | M::Orpd | M::Por => or,
        _ => return None,
    })
}

fn move_whole(e: &mut Emitter<'_>, insn: &Instruction, aligned: bool) -> Lifted {
    let wide = is_wide(insn);
    let bytes = if wide { 32 } else { 16 };
    match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Register) => {
            only_if(insn.op0_register().is_vector_register())?;
            if wide {
                let high = e.high(insn.op1_register(), types::I8X16);
                e.set_high(insn.op0_register(), high);
            }
            e.copy_xmm(insn.op0_register(), insn.op1_register());
        }
        (OpKind::Register, OpKind::Memory) => {
            only_if(insn.op0_register().is_vector_register())?;
            if aligned {
                e.check_aligned(insn, bytes);
            }
            let host = e.address(insn)?;
            let low = e.load(types::I8X16, host);
            let high = wide.then(|| e.load(types::I8X16, host.plus(16)));
            e.set_halves(insn.op0_register(), Halves { low, high });
        }
        _ => {
            only_if(insn.op1_register().is_vector_register())?;
            if aligned {
                e.check_aligned(insn, bytes);
            }
            let value = e.halves(insn, 1, types::I8X16, wide)?;
            e.store_halves(insn, value, aligned)?;
        }
    }
    Ok(())
}

fn move_unaligned(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    move_whole(e, insn, false)
}

fn move_aligned(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    move_whole(e, insn, true)
}

/// MOVSS and MOVSD: a load clears the rest, a register move takes it from the first source.
fn move_scalar(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Memory) => {
            let value = e.read_scalar(insn, 1, ty)?;
            e.set_xmm_zero_above(insn.op0_register(), value);
        }
        (OpKind::Register, _) => {
            let value = e.read_scalar(insn, last_source(insn), ty)?;
            e.merge_lane(insn, 0, value);
        }
        _ => {
            only_if(insn.op1_register().is_xmm())?;
            let host = e.address(insn)?;
            let value = e.xmm_lane(insn.op1_register(), ty, 0);
            e.store(value, host);
        }
    }
    Ok(())
}

/// MOVD and MOVQ between XMM registers, memory and general-purpose registers.
fn move_integer(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    if insn.op0_kind() == OpKind::Register && insn.op0_register().is_xmm() {
        let value = if insn.op1_kind() == OpKind::Register && insn.op1_register().is_gpr() {
            e.gpr(insn.op1_register())
        } else {
            e.read_scalar(insn, 1, ty)?
        };
        e.set_xmm_zero_above(insn.op0_register(), value);
        return Ok(());
    }
    only_if(insn.op1_kind() == OpKind::Register && insn.op1_register().is_xmm())?;
    let value = e.xmm_lane(insn.op1_register(), ty, 0);
    let place = e.place(insn, 0)?;
    e.put(place, value);
    Ok(())
}

/// MOVLPS, MOVHPS and their double forms: one half from or to memory.
fn move_half(e: &mut Emitter<'_>, insn: &Instruction, half: u8) -> Lifted {
    if insn.op0_kind() == OpKind::Register {
        let value = e.read_scalar(insn, last_source(insn), types::F64)?;
        e.merge_lane(insn, half, value);
    } else {
        let host = e.address(insn)?;
        let value = e.xmm_lane(insn.op1_register(), types::F64, half);
        e.store(value, host);
    }
    Ok(())
}

/// MOVHLPS: the source's upper half becomes the lower one.
fn move_between_halves(e: &mut Emitter<'_>, insn: &Instruction, to: u8, from: u8) -> Lifted {
    only_if(insn.op0_register().is_xmm())?;
    let value = e.xmm_lane(insn.op_register(last_source(insn)), types::F64, from);
    e.merge_lane(insn, to, value);
    Ok(())
}

/// Where MASKMOVDQU and MASKMOVQ store: at RDI or, by its address size, EDI.
pub(super) fn masked_destination(e: &mut Emitter<'_>, insn: &Instruction) -> Result<Host, NotLifted> {
    let segment = e.segment_base_of(insn);
    let register = match insn.op0_kind() {
        OpKind::MemorySegRDI => Register::RDI,
        OpKind::MemorySegEDI => Register::EDI,
        _ => return Err(NotLifted),
    };
    // There, the limit counts.
    only_if(segment.is_none() || !e.is_32bit())?;
    let pointer = e.gpr(register);
    let pointer = e.zero_extend64(pointer);
    let address = match segment {
        Some(base) => e.b.ins().iadd(base, pointer),
        None => pointer,
    };
    e.address_at(address, 0)
}

/// The bytes of `data` whose counterparts in `mask` have their upper bits set, else those of `old`.
pub(super) fn masked_bytes(e: &mut Emitter<'_>, mask: Value, data: Value, old: Value) -> Value {
    let zero = e.zero_vector(types::I8X16);
    let selected = e.b.ins().icmp(IntCC::SignedLessThan, mask, zero);
    e.b.ins().bitselect(selected, data, old)
}

/// MASKMOVDQU. All bytes are read and written; where that faults, the interpreter finds out whether they all are selected.
fn masked_store(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let host = masked_destination(e, insn)?;
    let data = e.xmm(insn.op1_register(), types::I8X16);
    let mask = e.xmm(insn.op2_register(), types::I8X16);
    let old = e.load(types::I8X16, host);
    let new = masked_bytes(e, mask, data, old);
    e.store(new, host);
    Ok(())
}

/// MOVLHPS, UNPCKLPD and PUNPCKLQDQ: the low quadwords of both sources.
fn low_quadwords(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(insn.op0_register().is_vector_register())?;
    let second = last_source(insn);
    if is_wide(insn) {
        return lanewise(e, insn, types::F64X2, |e, a, b| super::sse_shuffle::picked(e, a, b, &[0, 2]));
    }
    let value = if insn.op_kind(second) == OpKind::Memory {
        // UNPCKLPD and PUNPCKLQDQ: hardware may access all 16 bytes, which must be aligned in the legacy form.
        let vector = e.read_aligned(insn, second, types::F64X2)?;
        e.b.ins().extractlane(vector, 0)
    } else {
        e.xmm_lane(insn.op_register(second), types::F64, 0)
    };
    e.merge_lane(insn, 1, value);
    Ok(())
}

fn bitwise(e: &mut Emitter<'_>, insn: &Instruction, op: Binary) -> Lifted {
    lanewise(e, insn, types::I64X2, op)
}

fn xor(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let legacy = !is_vex(insn) && insn.op1_kind() == OpKind::Register && insn.op0_register() == insn.op1_register();
    if legacy || clears_by_xor(insn) {
        only_if(insn.op0_register().is_vector_register())?;
        e.clear_xmm(insn.op0_register());
        if insn.op0_register().is_ymm() {
            e.clear_high(insn.op0_register());
        }
        return Ok(());
    }
    bitwise(e, insn, |e, a, b| e.b.ins().bxor(a, b))
}

fn and(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    bitwise(e, insn, |e, a, b| e.b.ins().band(a, b))
}

fn and_not(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    bitwise(e, insn, |e, a, b| e.b.ins().band_not(b, a))
}

fn or(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    bitwise(e, insn, |e, a, b| e.b.ins().bor(a, b))
}
