//! SSE4A (APM vol. 4, EXTRQ, INSERTQ, MOVNTSS, MOVNTSD).

use iced_x86::{Mnemonic, OpKind};
use lstar_arch::GuestMemory;

use super::lanes::lane;
use crate::exec::{Exec, Op};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    Some(match mnemonic {
        Mnemonic::Extrq => extract(ex),
        Mnemonic::Insertq => insert(ex),
        Mnemonic::Movntss | Mnemonic::Movntsd => {
            let value = ex.vector(ex.insn.op1_register());
            ex.write_destination(value)
        }
        _ => return None,
    })
}

/// Ones for a field of `length` bits; 0 stands for 64.
fn field_mask(length: u32) -> u64 {
    match length & 63 {
        0 => u64::MAX,
        length => (1 << length) - 1,
    }
}

/// EXTRQ: the field of the low quadword, right-justified. Length and position come from immediates or from bytes 0 and 1
/// of the second register. The upper quadword is undefined by the manual; processors clear it.
fn extract<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let register = ex.insn.op0_register();
    let (length, position) = if ex.insn.op1_kind() == OpKind::Register {
        let control = ex.vector(ex.insn.op1_register());
        (lane::<u8>(control, 0), lane::<u8>(control, 1))
    } else {
        (ex.insn.immediate8(), ex.insn.immediate8_2nd())
    };
    let value: u64 = lane(ex.vector(register), 0);
    let field = value >> (position & 63) & field_mask(length.into());
    ex.set_vector(register, field.into());
    Ok(())
}

/// INSERTQ: the low bits of the source as a field of the destination. Length and position come from immediates or from
/// bytes 8 and 9 of the source.
fn insert<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let register = ex.insn.op0_register();
    let source = ex.vector(ex.insn.op1_register());
    let (length, position) = if ex.insn.op_count() == 2 {
        (lane::<u8>(source, 8), lane::<u8>(source, 9))
    } else {
        (ex.insn.immediate8(), ex.insn.immediate8_2nd())
    };
    let mask = field_mask(length.into());
    let old: u64 = lane(ex.vector(register), 0);
    let position = position & 63;
    let merged = old & !(mask << position) | (lane::<u64>(source, 0) & mask) << position;
    ex.set_vector(register, merged.into());
    Ok(())
}
