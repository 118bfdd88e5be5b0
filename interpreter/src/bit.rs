//! Bit and byte instructions (SDM vol. 1, 5.1.6): bit test, bit scan, counting, CRC32.

use iced_x86::Mnemonic;
use lstar_arch::GuestMemory;
use lstar_arch::cpuid::Features;

use crate::decode::Place;
use crate::exec::{Exec, Op};
use crate::flags::{CF, STATUS, ZF, sign_extend};

/// BT, BTS, BTR, BTC. A register offset with a memory operand reaches beyond it in both directions. Flags other than CF
/// are left alone.
pub(crate) fn bit_test<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = ex.size(0);
    let bits = 8 * u64::from(size);
    let offset = ex.read(1)?;
    let changes = ex.decoded.mnemonic != Mnemonic::Bt;
    let address = (ex.decoded.operands[0].place == Place::Memory).then(|| {
        let mut offset_in_string = 0;
        if ex.decoded.operands[1].place == Place::Gpr {
            let element = sign_extend(offset, size) as i64 >> bits.trailing_zeros();
            offset_in_string = (element as u64).wrapping_mul(u64::from(size));
        }
        bit_string_address(ex, offset_in_string)
    });
    let value = match address {
        None => ex.read(0)?,
        Some(linear) if changes => ex.load_for_store(linear, size)?,
        Some(linear) => ex.load_sized(linear, size)?,
    };
    let bit = 1 << (offset & (bits - 1));
    let result = match ex.decoded.mnemonic {
        Mnemonic::Bts => value | bit,
        Mnemonic::Btr => value & !bit,
        _ => value ^ bit,
    };
    match address {
        _ if !changes => {}
        None => ex.write(0, result)?,
        Some(linear) => ex.store_sized(linear, result, size)?,
    }
    ex.set_flags(CF, if value & bit != 0 { CF } else { 0 });
    Ok(())
}

/// Linear address of the element `distance` bytes from the memory operand; the offset wraps at the address size.
fn bit_string_address<M: GuestMemory>(ex: &Exec<'_, M>, distance: u64) -> u64 {
    let offset = ex.decoded.truncate_address(ex.effective_address().wrapping_add(distance));
    match ex.decoded.segment() {
        None => offset,
        Some(index) => ex.linear(ex.cpu.segments[index].base.wrapping_add(offset)),
    }
}

/// BSF and BSR: a zero source leaves the destination alone, upper half of a 32-bit destination included.
pub(crate) fn bit_scan<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let source = ex.read(1)?;
    if source != 0 {
        let forward = matches!(ex.decoded.mnemonic, Mnemonic::Bsf | Mnemonic::Tzcnt);
        let index = if forward { source.trailing_zeros() } else { 63 - source.leading_zeros() };
        ex.write(0, index.into())?;
    }
    ex.set_flags(ZF, if source == 0 { ZF } else { 0 });
    Ok(())
}

/// TZCNT, which is BSF on a processor without BMI1.
pub(crate) fn tzcnt<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.require(Features::BMI1).is_err() {
        return bit_scan(ex);
    }
    let bits = 8 * u32::from(ex.size(0));
    let source = ex.read(1)?;
    count_zeros(ex, source.trailing_zeros().min(bits), bits)
}

/// LZCNT, which is BSR on a processor without it.
pub(crate) fn lzcnt<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.require(Features::LZCNT).is_err() {
        return bit_scan(ex);
    }
    let bits = 8 * u32::from(ex.size(0));
    let source = ex.read(1)?;
    count_zeros(ex, source.leading_zeros() - (64 - bits), bits)
}

fn count_zeros<M: GuestMemory>(ex: &mut Exec<'_, M>, zeros: u32, bits: u32) -> Op {
    ex.write(0, zeros.into())?;
    let carry = if zeros == bits { CF } else { 0 };
    ex.set_flags(CF | ZF, carry | if zeros == 0 { ZF } else { 0 });
    Ok(())
}

pub(crate) fn popcnt<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.require(Features::POPCNT)?;
    let source = ex.read(1)?;
    ex.write(0, source.count_ones().into())?;
    ex.set_flags(STATUS, if source == 0 { ZF } else { 0 });
    Ok(())
}

/// CRC32 with the Castagnoli polynomial (SDM vol. 2A), bit by bit in the reflected form.
pub(crate) fn crc32<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    const POLYNOMIAL: u64 = 0x82F6_3B78;
    ex.require(Features::SSE4_2)?;
    let size = ex.size(1);
    let source = ex.read(1)?;
    let mut crc = ex.read(0)? & 0xFFFF_FFFF;
    for byte in source.to_le_bytes().iter().take(usize::from(size)) {
        crc ^= u64::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
        }
    }
    ex.write(0, crc)
}
