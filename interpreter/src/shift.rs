//! Shifts and rotates (SDM vol. 1, 5.1.5). Counts are masked to 5 bits, 6 with 64-bit operands; a masked count of zero
//! leaves all flags alone.
//!
//! Flags the manual leaves undefined: OF after shifts and rotates by more than one is what the last single step would
//! set, as AMD processors have it; AF is cleared by SHL, SHR and SAR and left alone by SHLD and SHRD.

use iced_x86::Mnemonic;
use lstar_arch::GuestMemory;

use crate::exec::{Exec, Op};
use crate::flags::{AF, CF, CF_BIT, OF, OF_BIT, STATUS, mask, sign, sign_extend, szp};

fn count<M: GuestMemory>(ex: &mut Exec<'_, M>, operand: usize) -> Result<u32, lstar_arch::Exception> {
    let limit = if ex.size(0) == 8 { 63 } else { 31 };
    Ok(ex.read(operand)? as u32 & limit)
}

fn flag(value: u64, bit: u32) -> u64 {
    (value & 1) << bit
}

/// SHL (SAL), SHR, SAR.
pub(crate) fn shift<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = ex.size(0);
    let value = ex.read_destination()?;
    let count = count(ex, 1)?;
    if count == 0 {
        return ex.write(0, value);
    }
    // One position less leaves the last bit shifted out in reach.
    let (result, carry, overflow) = match ex.decoded.mnemonic {
        Mnemonic::Shl | Mnemonic::Sal => {
            let before = value << (count - 1);
            let result = before << 1 & mask(size);
            let carry = sign(before, size);
            (result, carry, carry ^ sign(result, size))
        }
        Mnemonic::Shr => {
            let before = value >> (count - 1);
            (before >> 1, before, sign(before, size))
        }
        _ => {
            let before = (sign_extend(value, size) as i64 >> (count - 1)) as u64;
            ((before as i64 >> 1) as u64 & mask(size), before, 0)
        }
    };
    ex.write(0, result)?;
    ex.set_status(flag(carry, CF_BIT) | flag(overflow, OF_BIT) | szp(result, size));
    Ok(())
}

/// ROL and ROR: only CF and OF change.
pub(crate) fn rotate<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = ex.size(0);
    let bits = 8 * u32::from(size);
    let value = ex.read_destination()?;
    let count = count(ex, 1)?;
    if count == 0 {
        return ex.write(0, value);
    }
    let left = ex.decoded.mnemonic == Mnemonic::Rol;
    let by = if left { count % bits } else { (bits - count % bits) % bits };
    let result = if by == 0 { value } else { (value << by | value >> (bits - by)) & mask(size) };
    let top = sign(result, size);
    let (carry, overflow) = if left { (result, result ^ top) } else { (top, top ^ result >> (bits - 2)) };
    ex.write(0, result)?;
    ex.set_flags(CF | OF, flag(carry, CF_BIT) | flag(overflow, OF_BIT));
    Ok(())
}

/// RCL and RCR: rotation through CF, modulo the operand's bits plus one.
pub(crate) fn rotate_carry<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = ex.size(0);
    let bits = 8 * u32::from(size);
    let value = ex.read_destination()?;
    let masked = count(ex, 1)?;
    let count = masked % (bits + 1);
    if masked == 0 {
        return ex.write(0, value);
    }
    let left = ex.decoded.mnemonic == Mnemonic::Rcl;
    let ring_bits = bits + 1;
    let ring = u128::from(value) | u128::from(ex.cpu.rflags & CF) << bits;
    let by = if left { count } else { (ring_bits - count) % ring_bits };
    let ring = (ring << by | ring >> (ring_bits - by)) & ((1 << ring_bits) - 1);
    let result = ring as u64 & mask(size);
    let carry = (ring >> bits) as u64;
    let top = sign(result, size);
    let overflow = if left { top ^ carry } else { top ^ result >> (bits - 2) };
    ex.write(0, result)?;
    ex.set_flags(CF | OF, flag(carry, CF_BIT) | flag(overflow, OF_BIT));
    Ok(())
}

/// SHLD and SHRD. A count beyond a 16-bit operand is undefined by the manual; the bits then come from destination,
/// source and destination again.
pub(crate) fn double_shift<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = ex.size(0);
    let bits = 8 * u32::from(size);
    let value = ex.read_destination()?;
    let source = ex.read(1)?;
    let count = count(ex, 2)?;
    if count == 0 {
        return ex.write(0, value);
    }
    let left = ex.decoded.mnemonic == Mnemonic::Shld;
    let (first, second) = (u128::from(value), u128::from(source));
    let (result, carry) = if size == 8 {
        let (joined, by) = if left { (first << 64 | second, 64 - count) } else { (second << 64 | first, count) };
        (joined >> by, if left { joined >> (128 - count) } else { joined >> (count - 1) })
    } else {
        let joined = first << (2 * bits) | second << bits | first;
        let by = if left { 2 * bits - count } else { count };
        (joined >> by, if left { joined >> (3 * bits - count) } else { joined >> (count - 1) })
    };
    let (result, carry) = (result as u64 & mask(size), carry as u64);
    ex.write(0, result)?;
    let overflow = sign(result ^ value, size);
    ex.set_flags(STATUS & !AF, flag(carry, CF_BIT) | flag(overflow, OF_BIT) | szp(result, size));
    Ok(())
}
