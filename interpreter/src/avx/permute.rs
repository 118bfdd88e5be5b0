//! Broadcasts, permutations, blends, insertion and extraction (SDM vol. 1, 14.2.2 and 14.6.2).

use iced_x86::{Mnemonic, OpKind};
use lstar_arch::GuestMemory;

use super::{each, element, elements, lanes, with_element};
use crate::exec::{Exec, Op};
use crate::sse::shuffle::{blend_by_sign, insert_single};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    use Mnemonic as N;
    Some(match mnemonic {
        N::Vpbroadcastb => broadcast(ex, 8),
        N::Vpbroadcastw => broadcast(ex, 16),
        N::Vpbroadcastd | N::Vbroadcastss => broadcast(ex, 32),
        N::Vpbroadcastq | N::Vbroadcastsd => broadcast(ex, 64),
        N::Vbroadcastf128 | N::Vbroadcasti128 => ex.wide_source(1).and_then(|[low, _]| ex.set_result([low; 2])),
        N::Vinsertf128 | N::Vinserti128 => insert_lane(ex),
        N::Vextractf128 | N::Vextracti128 => {
            let source = ex.ymm(ex.insn.op1_register());
            ex.write_wide([source[usize::from(ex.insn.immediate8() & 1)], 0])
        }
        N::Vperm2f128 | N::Vperm2i128 => permute_lanes(ex),
        N::Vpermq | N::Vpermpd => permute_quadwords(ex),
        N::Vpermd | N::Vpermps => permute_doublewords(ex),
        N::Vpermilps => permute_within(ex, 32),
        N::Vpermilpd => permute_within(ex, 64),
        N::Vpblendd => blend_doublewords(ex),
        N::Vpblendvb => blend(ex, blend_by_sign::<i8>),
        N::Vblendvps => blend(ex, blend_by_sign::<i32>),
        N::Vblendvpd => blend(ex, blend_by_sign::<i64>),
        N::Vpinsrb => insert(ex, 8),
        N::Vpinsrw => insert(ex, 16),
        N::Vpinsrd => insert(ex, 32),
        N::Vpinsrq => insert(ex, 64),
        N::Vpextrb => extract(ex, 8),
        N::Vpextrw => extract(ex, 16),
        N::Vpextrd | N::Vextractps => extract(ex, 32),
        N::Vpextrq => extract(ex, 64),
        N::Vinsertps => {
            let in_register = ex.insn.op2_kind() == OpKind::Register;
            let control = ex.insn.immediate8().into();
            match (ex.wide_source(1), ex.wide_source(2)) {
                (Ok([a, _]), Ok([b, _])) => ex.set_result([insert_single(a, b, control, in_register), 0]),
                (Err(exception), _) | (_, Err(exception)) => Err(exception),
            }
        }
        _ => return None,
    })
}

/// The lowest element of the source in every place.
fn broadcast<M: GuestMemory>(ex: &mut Exec<'_, M>, bits: u32) -> Op {
    let value = element(ex.wide_source(1)?, bits, 0);
    let count = lanes_of_result(ex) * 128 / bits;
    ex.set_result(elements(count, bits, |_| value))
}

fn lanes_of_result<M: GuestMemory>(ex: &Exec<'_, M>) -> u32 {
    if ex.insn.op0_register().is_ymm() { 2 } else { 1 }
}

fn insert_lane<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (mut result, [lane, _]) = (ex.wide_source(1)?, ex.wide_source(2)?);
    result[usize::from(ex.insn.immediate8() & 1)] = lane;
    ex.set_result(result)
}

/// VPERM2x128: for each lane of the result two bits select a lane of the sources, and one clears it.
fn permute_lanes<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (a, b) = (ex.wide_source(1)?, ex.wide_source(2)?);
    let control = usize::from(ex.insn.immediate8());
    ex.set_result(each(2, |lane| {
        let field = control >> (4 * lane);
        if field & 8 != 0 { 0 } else { [a, b][field >> 1 & 1][field & 1] }
    }))
}

fn permute_quadwords<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let source = ex.wide_source(1)?;
    let control = u32::from(ex.insn.immediate8());
    ex.set_result(elements(4, 64, |index| element(source, 64, control >> (2 * index) & 3)))
}

fn permute_doublewords<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (selectors, source) = (ex.wide_source(1)?, ex.wide_source(2)?);
    ex.set_result(elements(8, 32, |index| element(source, 32, element(selectors, 32, index) as u32 & 7)))
}

/// VPERMILPx: within each lane, controlled by an immediate or by a vector. The doubles' selectors are bits 1 there.
fn permute_within<M: GuestMemory>(ex: &mut Exec<'_, M>, bits: u32) -> Op {
    let source = ex.wide_source(1)?;
    let in_lane = 128 / bits;
    let count = lanes(ex) as u32 * in_lane;
    let selector = |index: u32, control: u64| match bits {
        32 => index / in_lane * in_lane + (control as u32 & 3),
        _ => index / in_lane * in_lane + (control as u32 & 1),
    };
    let result = if ex.insn.op2_kind() == OpKind::Immediate8 {
        let control = u64::from(ex.insn.immediate8());
        elements(count, bits, |index| {
            let field = if bits == 32 { control >> (2 * (index % 4)) } else { control >> index };
            element(source, bits, selector(index, field))
        })
    } else {
        let controls = ex.wide_source(2)?;
        elements(count, bits, |index| {
            let field = element(controls, bits, index);
            element(source, bits, selector(index, if bits == 32 { field } else { field >> 1 }))
        })
    };
    ex.set_result(result)
}

fn blend_doublewords<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (a, b) = (ex.wide_source(1)?, ex.wide_source(2)?);
    let control = ex.insn.immediate8();
    let count = lanes(ex) as u32 * 4;
    ex.set_result(elements(count, 32, |index| element(if control >> index & 1 != 0 { b } else { a }, 32, index)))
}

/// Blends by the signs of operand 3.
fn blend<M: GuestMemory>(ex: &mut Exec<'_, M>, f: fn(u128, u128, u128) -> u128) -> Op {
    let (a, b, mask) = (ex.wide_source(1)?, ex.wide_source(2)?, ex.wide_source(3)?);
    let count = lanes(ex);
    ex.set_result(each(count, |lane| f(a[lane], b[lane], mask[lane])))
}

/// The element that the immediate selects: bits beyond their number are ignored.
fn selected<M: GuestMemory>(ex: &Exec<'_, M>, bits: u32) -> u32 {
    u32::from(ex.insn.immediate8()) & (128 / bits - 1)
}

fn insert<M: GuestMemory>(ex: &mut Exec<'_, M>, bits: u32) -> Op {
    let (first, value) = (ex.wide_source(1)?, ex.wide_source(2)?);
    let index = selected(ex, bits);
    ex.set_result(with_element(first, bits, index, value[0] as u64))
}

fn extract<M: GuestMemory>(ex: &mut Exec<'_, M>, bits: u32) -> Op {
    let value = element(ex.wide_source(1)?, bits, selected(ex, bits));
    ex.write_wide([value.into(), 0])
}
