//! BMI1 and BMI2 (SDM vol. 1, 5.1.16). Of the flags, AF and PF are undefined and left alone.

use iced_x86::Mnemonic;
use lstar_arch::cpuid::Features;
use lstar_arch::{Exception, Gpr, GuestMemory};

use crate::exec::{Exec, Op};
use crate::flags::{CF, OF, SF, ZF, mask, sign_extend, szp};

/// CF as given, OF clear, ZF and (unless undefined) SF by the result.
fn finish<M: GuestMemory>(ex: &mut Exec<'_, M>, result: u64, carry: bool, which: u64) -> Op {
    let result = result & mask(ex.size(0));
    ex.write(0, result)?;
    ex.set_flags(which, szp(result, ex.size(0)) | if carry { CF } else { 0 });
    Ok(())
}

pub(crate) fn andn<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.require(Features::BMI1)?;
    let result = !ex.read(1)? & ex.read(2)?;
    finish(ex, result, false, CF | OF | SF | ZF)
}

/// BLSI, BLSMSK, BLSR.
pub(crate) fn lowest_bit<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.require(Features::BMI1)?;
    let source = ex.read(1)?;
    let below = source.wrapping_sub(1);
    let (result, carry) = match ex.decoded.mnemonic {
        Mnemonic::Blsi => (source & source.wrapping_neg(), source != 0),
        Mnemonic::Blsmsk => (source ^ below, source == 0),
        _ => (source & below, source == 0),
    };
    finish(ex, result, carry, CF | OF | SF | ZF)
}

/// SF is undefined and left alone.
pub(crate) fn bextr<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.require(Features::BMI1)?;
    let (source, control) = (ex.read(1)?, ex.read(2)?);
    let (start, length) = (control as u32 & 0xFF, control as u32 >> 8 & 0xFF);
    let shifted = source.checked_shr(start).unwrap_or(0);
    let result = if length < 64 { shifted & ((1 << length) - 1) } else { shifted };
    finish(ex, result, false, CF | OF | ZF)
}

pub(crate) fn bzhi<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.require(Features::BMI2)?;
    let bits = 8 * u64::from(ex.size(0));
    let (source, index) = (ex.read(1)?, ex.read(2)? & 0xFF);
    let result = if index < bits { source & ((1 << index) - 1) } else { source };
    finish(ex, result, index >= bits, CF | OF | SF | ZF)
}

/// With equal destinations the high half wins.
pub(crate) fn mulx<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.require(Features::BMI2)?;
    let size = ex.size(0);
    let product = u128::from(ex.cpu.reg(Gpr::Rdx) & mask(size)) * u128::from(ex.read(2)?);
    ex.write(1, product as u64)?;
    ex.write(0, (product >> (8 * u32::from(size))) as u64)
}

/// PDEP scatters the low bits of the first source to where the mask has ones.
pub(crate) fn pdep<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.require(Features::BMI2)?;
    let (mut source, mut selector) = (ex.read(1)?, ex.read(2)?);
    let mut result = 0;
    while selector != 0 {
        let lowest = selector & selector.wrapping_neg();
        if source & 1 != 0 {
            result |= lowest;
        }
        source >>= 1;
        selector ^= lowest;
    }
    ex.write(0, result)
}

/// PEXT gathers the bits of the first source that the mask selects.
pub(crate) fn pext<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.require(Features::BMI2)?;
    let (source, mut selector) = (ex.read(1)?, ex.read(2)?);
    let (mut result, mut bit) = (0, 1u64);
    while selector != 0 {
        let lowest = selector & selector.wrapping_neg();
        if source & lowest != 0 {
            result |= bit;
        }
        bit <<= 1;
        selector ^= lowest;
    }
    ex.write(0, result)
}

/// RORX, SARX, SHLX, SHRX: no flags.
pub(crate) fn shift<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.require(Features::BMI2)?;
    let size = ex.size(0);
    let bits = 8 * u32::from(size);
    let (source, count) = (ex.read(1)?, ex.read(2)? as u32 & (bits - 1));
    let result = match ex.decoded.mnemonic {
        Mnemonic::Rorx => source >> count | source.checked_shl(bits - count).unwrap_or(0),
        Mnemonic::Sarx => (sign_extend(source, size) as i64 >> count) as u64,
        Mnemonic::Shlx => source << count,
        Mnemonic::Shrx => source >> count,
        _ => return Err(Exception::UD),
    };
    ex.write(0, result)
}
