//! SSE4A (APM vol. 4, EXTRQ and INSERTQ): bit fields of the low quadword; the upper one, which the manual leaves open, is cleared, as
//! processors do.

use cranelift_codegen::ir::{InstBuilder, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Lifter;
use crate::emit::{Emitter, Lifted};

/// Lifters of this chapter, without stores.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    Some(match mnemonic {
        Mnemonic::Extrq => extract,
        Mnemonic::Insertq => insert,
        _ => return None,
    })
}

/// Ones for the field, right-justified, and its position. Of both numbers six bits count; a length of 0 stands for 64.
fn field(e: &mut Emitter<'_>, insn: &Instruction, control: Option<(Register, u8)>) -> (Value, Value) {
    let (length, position) = match control {
        Some((register, lane)) => {
            let control = e.xmm_lane(register, types::I64, lane);
            (control, e.b.ins().ushr_imm_u(control, 8))
        }
        None => (e.iconst(types::I64, insn.immediate8().into()), e.iconst(types::I64, insn.immediate8_2nd().into())),
    };
    let ones = e.iconst(types::I64, -1);
    // Shifts take six bits of their counts.
    let unused = e.b.ins().ineg(length);
    (e.b.ins().ushr(ones, unused), position)
}

fn extract(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let register = insn.op0_register();
    let control = (insn.op1_kind() == OpKind::Register).then(|| (insn.op1_register(), 0));
    let (mask, position) = field(e, insn, control);
    let value = e.xmm_lane(register, types::I64, 0);
    let moved = e.b.ins().ushr(value, position);
    let extracted = e.b.ins().band(moved, mask);
    e.set_xmm_zero_above(register, extracted);
    Ok(())
}

fn insert(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let (register, source) = (insn.op0_register(), insn.op1_register());
    let (mask, position) = field(e, insn, (insn.op_count() == 2).then_some((source, 1)));
    let old = e.xmm_lane(register, types::I64, 0);
    let new = e.xmm_lane(source, types::I64, 0);
    let new = e.b.ins().band(new, mask);
    let new = e.b.ins().ishl(new, position);
    let taken = e.b.ins().ishl(mask, position);
    let kept = e.b.ins().band_not(old, taken);
    let merged = e.b.ins().bor(kept, new);
    e.set_xmm_zero_above(register, merged);
    Ok(())
}
