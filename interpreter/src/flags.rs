//! Status flags, computed eagerly (SDM vol. 1, 3.4.3.1 and appendix A). Sizes are in bytes.

use lstar_arch::Rflags;

pub(crate) const CF: u64 = Rflags::CF.bits();
pub(crate) const PF: u64 = Rflags::PF.bits();
pub(crate) const AF: u64 = Rflags::AF.bits();
pub(crate) const ZF: u64 = Rflags::ZF.bits();
pub(crate) const SF: u64 = Rflags::SF.bits();
pub(crate) const OF: u64 = Rflags::OF.bits();
pub(crate) const STATUS: u64 = Rflags::STATUS.bits();

/// Bit positions, for turning a 0/1 value into a flag.
pub(crate) const CF_BIT: u32 = CF.trailing_zeros();
const PF_BIT: u32 = PF.trailing_zeros();
const ZF_BIT: u32 = ZF.trailing_zeros();
const SF_BIT: u32 = SF.trailing_zeros();
pub(crate) const OF_BIT: u32 = OF.trailing_zeros();

/// All ones in the low `size` bytes.
#[inline]
pub(crate) const fn mask(size: u8) -> u64 {
    u64::MAX >> ((64 - 8 * size as u32) & 63)
}

/// The most significant bit of the low `size` bytes, as 0 or 1.
#[inline]
pub(crate) const fn sign(value: u64, size: u8) -> u64 {
    value >> ((8 * size as u32 - 1) & 63) & 1
}

/// Sign-extends the low `size` bytes.
#[inline]
pub(crate) const fn sign_extend(value: u64, size: u8) -> u64 {
    let unused = (64 - 8 * size as u32) & 63;
    ((value << unused) as i64 >> unused) as u64
}

/// SF, ZF and PF of a result that has no bits beyond `size`.
#[inline]
pub(crate) const fn szp(result: u64, size: u8) -> u64 {
    // Bit n of the constant: whether the nibble n has an even number of ones.
    let parity = 0x9669 >> ((result ^ result >> 4) & 15) & 1;
    parity << PF_BIT | ((result == 0) as u64) << ZF_BIT | sign(result, size) << SF_BIT
}

/// `a + b + carry` and its six status flags.
#[inline]
pub(crate) const fn add(a: u64, b: u64, carry: u64, size: u8) -> (u64, u64) {
    let result = a.wrapping_add(b).wrapping_add(carry) & mask(size);
    let carries = a & b | (a | b) & !result;
    let overflow = (a ^ result) & (b ^ result);
    let flags = sign(carries, size) << CF_BIT | (a ^ b ^ result) & AF | sign(overflow, size) << OF_BIT;
    (result, flags | szp(result, size))
}

/// `a - b - borrow` and its six status flags.
#[inline]
pub(crate) const fn sub(a: u64, b: u64, borrow: u64, size: u8) -> (u64, u64) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    let borrows = !a & b | (!a | b) & result;
    let overflow = (a ^ b) & (a ^ result);
    let flags = sign(borrows, size) << CF_BIT | (a ^ b ^ result) & AF | sign(overflow, size) << OF_BIT;
    (result, flags | szp(result, size))
}

/// Evaluates the condition that the low nibble of a Jcc, SETcc or CMOVcc opcode encodes.
#[inline]
pub(crate) const fn condition(nibble: u8, rflags: u64) -> bool {
    let less = (rflags & SF != 0) != (rflags & OF != 0);
    let holds = match nibble >> 1 {
        0 => rflags & OF != 0,
        1 => rflags & CF != 0,
        2 => rflags & ZF != 0,
        3 => rflags & (CF | ZF) != 0,
        4 => rflags & SF != 0,
        5 => rflags & PF != 0,
        6 => less,
        _ => less || rflags & ZF != 0,
    };
    holds != (nibble & 1 != 0)
}
