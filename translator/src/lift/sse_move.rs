//! SSE and SSE2 data transfer and bitwise logic (SDM vol. 1, 10.4 and 11.4).

use cranelift_codegen::ir::{InstBuilder, Type, types};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Lifter, only_if};
use crate::emit::{Emitter, Lifted};

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => move_unaligned,
        M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => move_aligned,
        M::Movss => |e, insn| move_scalar(e, insn, types::F32),
        M::Movsd => |e, insn| move_scalar(e, insn, types::F64),
        M::Movd => |e, insn| move_integer(e, insn, types::I32),
        M::Movq => |e, insn| move_integer(e, insn, types::I64),
        M::Movlps | M::Movlpd => |e, insn| move_half(e, insn, 0),
        M::Movhps | M::Movhpd => |e, insn| move_half(e, insn, 1),
        M::Movhlps => |e, insn| move_between_halves(e, insn, 0, 1),
        M::Movlhps | M::Unpcklpd | M::Punpcklqdq => |e, insn| move_between_halves(e, insn, 1, 0),
        M::Xorps | M::Xorpd | M::Pxor => xor,
        M::Andps | M::Andpd | M::Pand => and,
        M::Andnps | M::Andnpd | M::Pandn => and_not,
        M::Orps | M::Orpd | M::Por => or,
        _ => return None,
    })
}

fn move_whole(e: &mut Emitter<'_>, insn: &Instruction, aligned: bool) -> Lifted {
    match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Register) => {
            only_if(insn.op0_register().is_xmm())?;
            e.copy_xmm(insn.op0_register(), insn.op1_register());
        }
        (OpKind::Register, OpKind::Memory) => {
            only_if(insn.op0_register().is_xmm())?;
            if aligned {
                e.check_aligned(insn);
            }
            let value = e.read_vector(insn, 1, types::I8X16)?;
            e.set_xmm(insn.op0_register(), value);
        }
        _ => {
            only_if(insn.op1_register().is_xmm())?;
            if aligned {
                e.check_aligned(insn);
            }
            let host = e.address(insn)?;
            let value = e.xmm(insn.op1_register(), types::I8X16);
            e.store(value, host);
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

/// MOVSS and MOVSD: a load clears the rest, a register move keeps it.
fn move_scalar(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Register, OpKind::Memory) => {
            let value = e.read_scalar(insn, 1, ty)?;
            e.set_xmm_zero_above(insn.op0_register(), value);
        }
        (OpKind::Register, _) => {
            let value = e.read_scalar(insn, 1, ty)?;
            e.set_xmm_lane(insn.op0_register(), 0, value);
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
        let value = e.read_scalar(insn, 1, types::F64)?;
        e.set_xmm_lane(insn.op0_register(), half, value);
    } else {
        let host = e.address(insn)?;
        let value = e.xmm_lane(insn.op1_register(), types::F64, half);
        e.store(value, host);
    }
    Ok(())
}

fn move_between_halves(e: &mut Emitter<'_>, insn: &Instruction, to: u8, from: u8) -> Lifted {
    only_if(insn.op0_register().is_xmm())?;
    let value = if insn.op1_kind() == OpKind::Memory {
        // UNPCKLPD and PUNPCKLQDQ: hardware may access all 16 bytes, which must be aligned.
        e.check_aligned(insn);
        let vector = e.read_vector(insn, 1, types::F64X2)?;
        e.b.ins().extractlane(vector, from)
    } else {
        e.xmm_lane(insn.op1_register(), types::F64, from)
    };
    e.set_xmm_lane(insn.op0_register(), to, value);
    Ok(())
}

fn bitwise(
    e: &mut Emitter<'_>,
    insn: &Instruction,
    op: fn(
        &mut Emitter<'_>,
        cranelift_codegen::ir::Value,
        cranelift_codegen::ir::Value,
    ) -> cranelift_codegen::ir::Value,
) -> Lifted {
    only_if(insn.op0_register().is_xmm())?;
    let b = e.read_aligned(insn, 1, types::I64X2)?;
    let a = e.xmm(insn.op0_register(), types::I64X2);
    let result = op(e, a, b);
    e.set_xmm(insn.op0_register(), result);
    Ok(())
}

fn xor(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    if insn.op1_kind() == OpKind::Register && insn.op0_register() == insn.op1_register() {
        only_if(insn.op0_register().is_xmm())?;
        e.clear_xmm(insn.op0_register());
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
