//! Masked loads and stores, and gathers (SDM vol. 1, 14.2.2 and 14.6.4; vol. 2, VMASKMOV and VGATHERxxx).

use iced_x86::{Mnemonic, OpKind};
use lstar_arch::{Exception, GuestMemory};

use super::{Vector, element, elements, lanes, with_element};
use crate::exec::{Exec, Op};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    use Mnemonic as N;
    Some(match mnemonic {
        N::Vmaskmovps | N::Vpmaskmovd => masked(ex, 32),
        N::Vmaskmovpd | N::Vpmaskmovq => masked(ex, 64),
        N::Vgatherdps | N::Vpgatherdd => gather(ex, 32, 32),
        N::Vgatherdpd | N::Vpgatherdq => gather(ex, 32, 64),
        N::Vgatherqps | N::Vpgatherqd => gather(ex, 64, 32),
        N::Vgatherqpd | N::Vpgatherqq => gather(ex, 64, 64),
        _ => return None,
    })
}

/// Whether element `index` of the mask selects.
fn selects(mask: Vector, bits: u32, index: u32) -> bool {
    element(mask, bits, index) >> (bits - 1) != 0
}

/// Elements that the mask does not select are neither read nor written and cannot fault.
fn masked<M: GuestMemory>(ex: &mut Exec<'_, M>, bits: u32) -> Op {
    let count = lanes(ex) as u32 * 128 / bits;
    let size = u64::from(bits / 8);
    let mask = ex.ymm(ex.insn.op1_register());
    let selected: Vec<u32> = (0..count).filter(|index| selects(mask, bits, *index)).collect();
    // Each element has an address of its own, which wraps at the address size.
    let offset = ex.effective_address();
    let base = ex.linear_address().wrapping_sub(offset);
    let decoded = ex.decoded;
    let is_64bit = ex.cpu.is_64bit();
    let address = |index: u32| {
        let linear = base.wrapping_add(decoded.truncate_address(offset.wrapping_add(u64::from(index) * size)));
        if is_64bit { linear } else { linear & 0xFFFF_FFFF }
    };
    if ex.insn.op0_kind() != OpKind::Register {
        let data = ex.wide_source(2)?;
        let privilege = ex.cpu.privilege();
        for &index in &selected {
            let first = address(index);
            if ex.is_out_of_reach(first, size) {
                return Err(ex.non_canonical());
            }
            ex.mem.probe_write(first, size, privilege).map_err(Exception::from)?;
        }
        for &index in &selected {
            ex.store_sized(address(index), element(data, bits, index), size as u8)?;
        }
        return Ok(());
    }
    let mut result = [0; 2];
    for &index in &selected {
        let value = ex.load_sized(address(index), size as u8)?;
        result = with_element(result, bits, index, value);
    }
    ex.set_result(result)
}

/// Loads the selected elements one after the other and clears their mask; a fault leaves what was done before it, so
/// that the instruction goes on from there.
fn gather<M: GuestMemory>(ex: &mut Exec<'_, M>, index_bits: u32, bits: u32) -> Op {
    let (target, mask_register) = (ex.insn.op0_register(), ex.insn.op2_register());
    let index_register = ex.insn.memory_index();
    let width = |wide: bool| if wide { 256 } else { 128 };
    let count = (width(target.is_ymm()) / bits).min(width(index_register.is_ymm()) / index_bits);
    let indices = ex.ymm(index_register);
    let old = ex.ymm(target);
    let mut mask = ex.ymm(mask_register);
    let mut result = old;
    for index in 0..count {
        if selects(mask, bits, index) {
            match gathered(ex, element(indices, index_bits, index), index_bits, bits) {
                Ok(value) => result = with_element(result, bits, index, value),
                Err(exception) => {
                    // Only a completed instruction clears what lies beyond its elements.
                    ex.set_lanes(target, result);
                    ex.set_lanes(mask_register, mask);
                    return Err(exception);
                }
            }
        }
        mask = with_element(mask, bits, index, 0);
    }
    ex.set_ymm(mask_register, [0; 2]);
    ex.set_result(elements(count, bits, |index| element(result, bits, index)))
}

/// The element at base + scaled index + displacement; the index is signed, the sum has the address size.
fn gathered<M: GuestMemory>(ex: &mut Exec<'_, M>, index: u64, index_bits: u32, bits: u32) -> Result<u64, Exception> {
    let index = if index_bits == 32 { index as i32 as u64 } else { index };
    let scaled = index.wrapping_mul(u64::from(ex.insn.memory_index_scale()));
    let offset = ex.decoded.truncate_address(ex.effective_address().wrapping_add(scaled));
    let linear = match ex.decoded.segment() {
        None => offset,
        Some(segment) => ex.linear(ex.cpu.segments[segment].base.wrapping_add(offset)),
    };
    ex.load_sized(linear, (bits / 8) as u8)
}
