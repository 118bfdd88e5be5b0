//! Lazy status flags: what an operation leaves behind so that CF, PF, AF, ZF, SF and OF can be computed later.
//!
//! Translated code stores the operands of the last flag-setting operation in [`LazyFlags`] instead of computing six
//! bits that mostly nobody reads. [`status`] is the one definition of what those operands mean; the code generator
//! computes single bits in SSA form by the same formulas. Flags that the manual leaves undefined get a fixed value,
//! listed at [`FlagKind`].

use crate::abi::LazyFlags;

/// Carry, as a bit of RFLAGS.
pub const CF: u64 = 1 << 0;
/// Parity, as a bit of RFLAGS.
pub const PF: u64 = 1 << 2;
/// Auxiliary carry, as a bit of RFLAGS.
pub const AF: u64 = 1 << 4;
/// Zero, as a bit of RFLAGS.
pub const ZF: u64 = 1 << 6;
/// Sign, as a bit of RFLAGS.
pub const SF: u64 = 1 << 7;
/// Overflow, as a bit of RFLAGS.
pub const OF: u64 = 1 << 11;
/// All six status flags.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// What kind of operation set the flags. Operands are zero-extended to 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u64)]
pub enum FlagKind {
    /// `a` is the status flags themselves, in RFLAGS positions.
    Eager = 1,
    /// ADD: `a + b`.
    Add = 2,
    /// ADC: `a + b + c`, `c` being 0 or 1.
    Adc = 3,
    /// SUB, CMP, NEG: `a - b`.
    Sub = 4,
    /// SBB: `a - b - c`, `c` being 0 or 1.
    Sbb = 5,
    /// AND, OR, XOR, TEST and others that clear CF and OF: `a` is the result. AF is cleared.
    Logic = 6,
    /// INC: `a` is the result, `c` the carry that stays.
    Inc = 7,
    /// DEC: `a` is the result, `c` the carry that stays.
    Dec = 8,
    /// SHL: `a` shifted left by `b`, 1 to 63. OF is CF xor SF for every count; AF is cleared; CF is 0 once all bits
    /// are shifted out.
    Shl = 9,
    /// SHR: `a` shifted right by `b`, 1 to 63. OF is the sign of `a` for a count of 1, else 0; AF is cleared.
    Shr = 10,
    /// SAR: `a` shifted right by `b`, 1 to 63. OF and AF are cleared.
    Sar = 11,
    /// MUL, IMUL: `a` is the low half of the product, `c` 1 when it does not hold the whole product. ZF, SF and PF
    /// follow `a`; AF is cleared.
    Mul = 12,
}

/// A [`FlagKind`] with an operand size, as stored in [`LazyFlags::op`]. Zero is no operation: `cpu.rflags` is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LazyOp(u64);

impl LazyOp {
    /// Status flags already computed.
    pub const EAGER: Self = Self((FlagKind::Eager as u64) << 2 | 3);

    /// The operation `kind` on operands of `bytes` bytes (1, 2, 4 or 8).
    #[must_use]
    pub const fn new(kind: FlagKind, bytes: u32) -> Self {
        Self((kind as u64) << 2 | (bytes.trailing_zeros() & 3) as u64)
    }

    /// The operation with its second operand, which need not be stored then.
    #[must_use]
    pub const fn with_operand(self, b: i16) -> Self {
        // So that the number is a sign-extended 32-bit immediate of the host.
        Self(((b as i64) << 16) as u64 | self.0 | Self::HAS_OPERAND)
    }

    const HAS_OPERAND: u64 = 1 << 8;

    /// The second operand, if it is part of a stored number.
    #[inline(always)]
    fn operand(number: u64) -> Option<u64> {
        (number & Self::HAS_OPERAND != 0).then_some((number as i64 >> 16) as u64)
    }

    /// The number for [`LazyFlags::op`].
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Kind and operand size in bits of a stored number; `None` for 0 and for numbers that no operation has.
    #[must_use]
    #[inline]
    pub fn decode(number: u64) -> Option<(FlagKind, u32)> {
        let kind = match number as u8 >> 2 {
            1 => FlagKind::Eager,
            2 => FlagKind::Add,
            3 => FlagKind::Adc,
            4 => FlagKind::Sub,
            5 => FlagKind::Sbb,
            6 => FlagKind::Logic,
            7 => FlagKind::Inc,
            8 => FlagKind::Dec,
            9 => FlagKind::Shl,
            10 => FlagKind::Shr,
            11 => FlagKind::Sar,
            12 => FlagKind::Mul,
            _ => return None,
        };
        Some((kind, 8 << (number & 3)))
    }
}

impl LazyFlags {
    /// The second operand, wherever it is.
    #[inline(always)]
    #[must_use]
    pub fn second(&self) -> u64 {
        LazyOp::operand(self.op).unwrap_or(self.b)
    }
}

/// The status flags (in RFLAGS positions) that operation `op` on these operands leaves; 0 for an unknown `op`.
#[must_use]
#[inline]
pub fn status(op: u64, a: u64, b: u64, c: u64) -> u64 {
    let b = LazyOp::operand(op).unwrap_or(b);
    STATUS_OF[usize::from(op as u8)](a, b, c)
}

/// What computes the flags, by the low byte of the operation's number.
static STATUS_OF: [fn(u64, u64, u64) -> u64; 256] = {
    const fn of<const KIND: u64>(mut table: [fn(u64, u64, u64) -> u64; 256]) -> [fn(u64, u64, u64) -> u64; 256] {
        let first = (KIND as usize) << 2;
        table[first] = status_of::<KIND, 8>;
        table[first + 1] = status_of::<KIND, 16>;
        table[first + 2] = status_of::<KIND, 32>;
        table[first + 3] = status_of::<KIND, 64>;
        table
    }
    fn none(_: u64, _: u64, _: u64) -> u64 {
        0
    }
    let table = of::<4>(of::<3>(of::<2>(of::<1>([none; 256]))));
    let table = of::<8>(of::<7>(of::<6>(of::<5>(table))));
    of::<12>(of::<11>(of::<10>(of::<9>(table))))
};

/// The flags for the operation whose [`FlagKind`] has the number `KIND`, on operands of `BITS` bits.
fn status_of<const KIND: u64, const BITS: u32>(a: u64, b: u64, c: u64) -> u64 {
    let Some((kind, _)) = LazyOp::decode(KIND << 2) else { return 0 };
    // Shifted left by this, an operand's sign is bit 63, and nothing is above it.
    let unused = 64 - BITS;
    let mask = u64::MAX >> unused;
    let flag = |set: bool, bit: u64| if set { bit } else { 0 };
    let top = |value: u64, bit: u64| (value << unused >> 63) * bit;
    let result_flags = |result: u64| flag(result << unused == 0, ZF) | top(result, SF) | parity(result as u8);
    match kind {
        FlagKind::Eager => a & STATUS,
        FlagKind::Add | FlagKind::Adc => {
            let carry = if kind == FlagKind::Adc { c & 1 } else { 0 };
            let result = a.wrapping_add(b).wrapping_add(carry);
            let carries = a & b | (a | b) & !result;
            result_flags(result) | top(carries, CF) | (a ^ b ^ result) & AF | top((a ^ result) & (b ^ result), OF)
        }
        FlagKind::Sub | FlagKind::Sbb => {
            let borrow = if kind == FlagKind::Sbb { c & 1 } else { 0 };
            let result = a.wrapping_sub(b).wrapping_sub(borrow);
            let borrows = !a & b | (!a | b) & result;
            result_flags(result) | top(borrows, CF) | (a ^ b ^ result) & AF | top((a ^ b) & (a ^ result), OF)
        }
        FlagKind::Logic => result_flags(a),
        FlagKind::Inc => result_flags(a) | c & CF | flag(a & 0xF == 0, AF) | flag(a << unused == 1 << 63, OF),
        FlagKind::Dec => {
            let before = a.wrapping_add(1);
            result_flags(a) | c & CF | flag(a & 0xF == 0xF, AF) | flag(before << unused == 1 << 63, OF)
        }
        FlagKind::Shl => {
            let count = b as u32 & 63;
            let carry = count <= BITS && (a & mask).checked_shr(BITS.wrapping_sub(count)).unwrap_or(0) & 1 != 0;
            let result = a << count;
            result_flags(result) | flag(carry, CF) | flag(carry != (top(result, 1) != 0), OF)
        }
        FlagKind::Shr => {
            let (a, count) = (a & mask, b as u32 & 63);
            result_flags(a >> count) | flag(a.checked_shr(count.wrapping_sub(1)).unwrap_or(0) & 1 != 0, CF) | top(a, OF)
        }
        FlagKind::Sar => {
            let count = b as u32 & 63;
            let wide = (a << unused) as i64 >> unused;
            let carry = wide.checked_shr(count.wrapping_sub(1)).unwrap_or(0) & 1 != 0;
            result_flags((wide >> count) as u64) | flag(carry, CF)
        }
        FlagKind::Mul => result_flags(a) | flag(c & 1 != 0, CF | OF),
    }
}

/// PF of a result's low byte. Without POPCNT, which the least host lacks.
#[inline(always)]
fn parity(byte: u8) -> u64 {
    const EVEN: [u8; 256] = {
        let mut flags = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            flags[byte] = if (byte as u32).count_ones().is_multiple_of(2) { PF as u8 } else { 0 };
            byte += 1;
        }
        flags
    };
    EVEN[usize::from(byte)].into()
}
