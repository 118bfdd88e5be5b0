//! Binary floating point in software, exact in every bit and flag (SDM vol. 1, 4.8, 8.4 to 8.5 and 11.5).
//!
//! A [`Float`] is an unpacked value with a 64-bit significand. The operations of [`Environment`] compute an exact or
//! sticky 128-bit significand and round once, to the precision and exponent range of a [`Format`]: that covers single,
//! double and extended values as well as x87 precision control, where precision and storage differ. What SSE and x87
//! do differently with NaN operands is left to them: the arithmetic here takes numbers only.
//!
//! Unlike general libraries it detects tininess after rounding, flushes to zero, and delivers what an unmasked
//! overflow or underflow needs.

pub(crate) mod elementary;
mod fused;
#[cfg(test)]
mod tests;
pub(crate) mod wide;

use std::cmp::Ordering;

use wide::Wide;

/// Exception flags, laid out as in MXCSR bits 5:0 and in the x87 status word.
pub(crate) mod flags {
    pub const IE: u32 = 1 << 0;
    pub const DE: u32 = 1 << 1;
    pub const ZE: u32 = 1 << 2;
    pub const OE: u32 = 1 << 3;
    pub const UE: u32 = 1 << 4;
    pub const PE: u32 = 1 << 5;
    /// Exceptions that are detected before the operation is carried out.
    pub const PRE_COMPUTATION: u32 = IE | DE | ZE;
}

/// Rounding mode, as encoded in MXCSR.RC and the x87 control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Down,
    Up,
    TowardZero,
}

impl Rounding {
    /// Decodes the two bits of a rounding control field.
    pub fn from_control(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::TowardZero,
        }
    }
}

/// A binary interchange format, or the extended format with reduced precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// Bits of the significand that rounding keeps, integer bit included.
    pub precision: u32,
    /// Bits of the exponent field.
    exponent_bits: u32,
    /// Bits of the significand field: 64 means that the integer bit is explicit.
    fraction_bits: u32,
}

impl Format {
    pub const SINGLE: Self = Self { precision: 24, exponent_bits: 8, fraction_bits: 23 };
    pub const DOUBLE: Self = Self { precision: 53, exponent_bits: 11, fraction_bits: 52 };
    pub const EXTENDED: Self = Self { precision: 64, exponent_bits: 15, fraction_bits: 64 };

    /// This format with another precision: results keep the range and encoding.
    pub const fn with_precision(self, precision: u32) -> Self {
        Self { precision, ..self }
    }

    /// Bias of the exponent field, and the largest exponent of a finite number.
    const fn bias(&self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }
    /// Smallest exponent of a normal number.
    const fn min_exponent(&self) -> i32 {
        1 - self.bias()
    }
    /// Whether a normal number can have this exponent.
    pub fn has_exponent(&self, exponent: i32) -> bool {
        (self.min_exponent()..=self.bias()).contains(&exponent)
    }
    /// What an unmasked overflow subtracts from the exponent, and an unmasked underflow adds (SDM vol. 1, 8.5.4).
    const fn wrap(&self) -> i32 {
        3 << (self.exponent_bits - 2)
    }

    /// Decodes an encoding.
    pub fn unpack(&self, bits: u128) -> Float {
        let explicit = self.fraction_bits == 64;
        let field = (bits & ((1 << self.fraction_bits) - 1)) as u64;
        let exponent_mask = (1 << self.exponent_bits) - 1;
        let biased = (bits >> self.fraction_bits) as i32 & exponent_mask;
        let negative = bits >> (self.fraction_bits + self.exponent_bits) & 1 != 0;
        // The significand with the binary point behind bit 63.
        let fraction = if explicit { field } else { field << (63 - self.fraction_bits) };
        let float = |class, exponent, significand| Float { negative, class, exponent, significand, denormal: false };
        if biased == 0 {
            if fraction == 0 {
                return float(Class::Zero, 0, 0);
            }
            let shift = fraction.leading_zeros();
            let exponent = self.min_exponent() - shift as i32;
            return Float { denormal: true, ..float(Class::Finite, exponent, fraction << shift) };
        }
        if explicit && fraction & INTEGER_BIT == 0 {
            return float(Class::Unsupported, 0, fraction);
        }
        let significand = fraction | INTEGER_BIT;
        if biased < exponent_mask {
            float(Class::Finite, biased - self.bias(), significand)
        } else if significand == INTEGER_BIT {
            float(Class::Infinite, 0, 0)
        } else if significand & QUIET_BIT != 0 {
            float(Class::Quiet, 0, significand)
        } else {
            float(Class::Signaling, 0, significand)
        }
    }

    /// Encodes a value that fits: rounded to this format, or a NaN (whose payload is truncated).
    pub fn pack(&self, float: Float) -> u128 {
        let exponent_mask = (1 << self.exponent_bits) - 1;
        let (biased, significand) = match float.class {
            Class::Zero => (0, 0),
            Class::Infinite => (exponent_mask, INTEGER_BIT),
            Class::Quiet | Class::Signaling | Class::Unsupported => (exponent_mask, float.significand),
            Class::Finite => match self.min_exponent() - float.exponent {
                shift @ 1.. => (0, float.significand.checked_shr(shift as u32).unwrap_or(0)),
                _ => (float.exponent + self.bias(), float.significand),
            },
        };
        let field = if self.fraction_bits == 64 {
            significand.into()
        } else {
            u128::from(significand << 1 >> (64 - self.fraction_bits))
        };
        u128::from(float.negative) << (self.fraction_bits + self.exponent_bits)
            | (biased as u128) << self.fraction_bits
            | field
    }
}

/// Significand bit left of the binary point.
const INTEGER_BIT: u64 = 1 << 63;
/// Significand bit that makes a NaN quiet.
const QUIET_BIT: u64 = 1 << 62;

/// What a [`Float`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Zero,
    Finite,
    Infinite,
    Quiet,
    Signaling,
    /// An extended encoding without integer bit that no arithmetic accepts (SDM vol. 1, 8.2.2).
    Unsupported,
}

/// An unpacked value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Float {
    pub negative: bool,
    pub class: Class,
    /// Exponent of the integer bit ([`Class::Finite`] only).
    pub exponent: i32,
    /// Finite numbers: normalised, bit 63 is the integer bit. NaNs: payload, bit 62 is the quiet bit.
    pub significand: u64,
    /// Came from an encoding with a zero exponent field.
    pub denormal: bool,
}

impl Float {
    /// The NaN that masked invalid operations return: "real indefinite".
    pub const INDEFINITE: Self = Self {
        negative: true,
        class: Class::Quiet,
        exponent: 0,
        significand: INTEGER_BIT | QUIET_BIT,
        denormal: false,
    };

    pub const fn zero(negative: bool) -> Self {
        Self { negative, class: Class::Zero, exponent: 0, significand: 0, denormal: false }
    }
    pub const fn infinity(negative: bool) -> Self {
        Self { class: Class::Infinite, ..Self::zero(negative) }
    }
    const fn finite(negative: bool, exponent: i32, significand: u64) -> Self {
        Self { negative, class: Class::Finite, exponent, significand, denormal: false }
    }

    pub fn is_nan(&self) -> bool {
        matches!(self.class, Class::Quiet | Class::Signaling)
    }
    pub fn is_zero(&self) -> bool {
        self.class == Class::Zero
    }

    /// A NaN made quiet.
    pub fn quieted(self) -> Self {
        Self { class: Class::Quiet, significand: self.significand | QUIET_BIT, ..self }
    }
    pub fn negated(self) -> Self {
        Self { negative: !self.negative, ..self }
    }

    /// An integer, exactly when it has at most 64 significant bits (all that x86 converts from).
    pub fn from_integer(value: i64) -> Self {
        let magnitude = value.unsigned_abs();
        match magnitude.leading_zeros() {
            64 => Self::zero(false),
            shift => Self::finite(value < 0, 63 - shift as i32, magnitude << shift),
        }
    }

    /// The value of a finite number.
    pub fn to_wide(self) -> Wide {
        match self.class {
            Class::Finite => Wide::new(self.negative, self.exponent, u128::from(self.significand) << 64),
            _ => Wide::ZERO,
        }
    }

    /// Order of two values that are no NaNs.
    pub fn compare(&self, other: &Self) -> Ordering {
        let magnitude = |float: &Self| match float.class {
            Class::Zero => (0, 0, 0),
            Class::Finite => (1, float.exponent, float.significand),
            _ => (2, 0, 0),
        };
        let (a, b) = (magnitude(self), magnitude(other));
        match (self.negative, other.negative) {
            _ if self.is_zero() && other.is_zero() => Ordering::Equal,
            (false, false) => a.cmp(&b),
            (true, true) => b.cmp(&a),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }

    /// The magnitude rounded to an integer, and whether that changed it. The exponent is below 64.
    fn integer_magnitude(&self, rounding: Rounding) -> (u128, bool) {
        if self.is_zero() {
            return (0, false);
        }
        let scaled = u128::from(self.significand) << 64;
        // Below one quarter only "not zero" matters.
        let fixed = shift_right_sticky(scaled, (63 - self.exponent).clamp(0, 66) as u32);
        let (integer, fraction) = (fixed >> 64, fixed as u64);
        (integer + u128::from(rounds_up(rounding, self.negative, integer & 1 != 0, fraction, 1 << 63)), fraction != 0)
    }

    /// Converts to a signed integer of `bits` bits and reports inexactness; `None` when it does not fit.
    pub fn to_integer(self, bits: u32, rounding: Rounding) -> Option<(i64, bool)> {
        match self.class {
            Class::Zero => Some((0, false)),
            Class::Finite if self.exponent < 64 => {
                let (magnitude, inexact) = self.integer_magnitude(rounding);
                let value = if self.negative { -(magnitude as i128) } else { magnitude as i128 };
                let limit = 1i128 << (bits - 1);
                (-limit..limit).contains(&value).then_some((value as i64, inexact))
            }
            _ => None,
        }
    }

    /// Rounds a number to an integral value and reports inexactness.
    pub fn to_integral(self, rounding: Rounding) -> (Self, bool) {
        if self.class != Class::Finite || self.exponent >= 63 {
            return (self, false);
        }
        let (magnitude, inexact) = self.integer_magnitude(rounding);
        // At most 2^63, as the exponent is below 63.
        let magnitude = magnitude as u64;
        let shift = magnitude.leading_zeros();
        let float = if magnitude == 0 {
            Self::zero(self.negative)
        } else {
            Self::finite(self.negative, 63 - shift as i32, magnitude << shift)
        };
        (float, inexact)
    }
}

/// Shifts right and keeps in bit 0 whether anything was lost.
fn shift_right_sticky(value: u128, shift: u32) -> u128 {
    match shift {
        0 => value,
        1..=127 => value >> shift | u128::from(value << (128 - shift) != 0),
        _ => u128::from(value != 0),
    }
}

/// Whether the magnitude is incremented, given the discarded part and what half a unit would be there.
fn rounds_up<T: PartialOrd + Default>(rounding: Rounding, negative: bool, odd: bool, rest: T, half: T) -> bool {
    match rounding {
        Rounding::Nearest => rest > half || rest == half && odd,
        Rounding::Down => negative && rest != T::default(),
        Rounding::Up => !negative && rest != T::default(),
        Rounding::TowardZero => false,
    }
}

/// Rounds a significand (binary point behind bit 127) to `precision` bits, at most 64 and possibly 0: the
/// significand behind bit 63, whether it carried out into the next binade (and was halved), and whether it is inexact.
fn round_significand(significand: u128, precision: u32, rounding: Rounding, negative: bool) -> (u64, bool, bool) {
    let dropped = 128 - precision;
    let (kept, rest) = match dropped {
        128 => (0, significand),
        _ => (significand >> dropped, significand & ((1 << dropped) - 1)),
    };
    let up = rounds_up(rounding, negative, kept & 1 != 0, rest, 1 << (dropped - 1));
    let kept = kept + u128::from(up);
    if kept >> precision != 0 {
        (INTEGER_BIT, true, rest != 0)
    } else {
        ((kept << (64 - precision)) as u64, false, rest != 0)
    }
}

/// Control and status of floating-point operations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Environment {
    pub rounding: Rounding,
    /// Results that underflow become zero (while underflow is masked).
    pub flush_to_zero: bool,
    /// Denormal operands count as zero.
    pub denormals_are_zero: bool,
    /// Masked exceptions, laid out like [`flags`].
    pub masks: u32,
    /// Exceptions so far.
    pub flags: u32,
    /// Whether the last rounding increased the magnitude (x87 condition code C1).
    pub rounded_up: bool,
}

impl Environment {
    /// Decodes MXCSR; the flags start empty.
    pub fn from_mxcsr(mxcsr: u32) -> Self {
        Self {
            rounding: Rounding::from_control(mxcsr >> 13),
            flush_to_zero: mxcsr & 1 << 15 != 0,
            denormals_are_zero: mxcsr & 1 << 6 != 0,
            masks: mxcsr >> 7 & 0x3F,
            flags: 0,
            rounded_up: false,
        }
    }

    /// Decodes an x87 control word; the flags start empty.
    pub fn from_x87_control(control: u16) -> Self {
        Self {
            rounding: Rounding::from_control(u32::from(control) >> 10),
            flush_to_zero: false,
            denormals_are_zero: false,
            masks: u32::from(control) & 0x3F,
            flags: 0,
            rounded_up: false,
        }
    }

    pub fn raise(&mut self, flags: u32) {
        self.flags |= flags;
    }

    /// Decodes an operand.
    pub fn operand(&self, format: &Format, bits: u128) -> Float {
        let float = format.unpack(bits);
        if float.denormal && self.denormals_are_zero { Float::zero(float.negative) } else { float }
    }

    /// An invalid operation without NaN operand.
    pub fn invalid(&mut self) -> Float {
        self.raise(flags::IE);
        Float::INDEFINITE
    }

    fn note_denormals(&mut self, operands: [&Float; 2]) {
        if operands.iter().any(|operand| operand.denormal) {
            self.raise(flags::DE);
        }
    }

    /// Rounds `significand * 2^(exponent - 127)`; the significand is not zero and sticky in bit 0.
    pub fn round(&mut self, format: &Format, negative: bool, exponent: i32, significand: u128) -> Float {
        let normal = significand.leading_zeros();
        let (exponent, significand) = (exponent - normal as i32, significand << normal);
        let (rounded, carry, inexact) = round_significand(significand, format.precision, self.rounding, negative);
        let inexact_flag = if inexact { flags::PE } else { 0 };
        let result = Float::finite(negative, exponent + i32::from(carry), rounded);
        self.rounded_up = carry || u128::from(rounded) > significand >> 64;
        if result.exponent > format.bias() {
            if self.masks & flags::OE == 0 {
                self.raise(flags::OE | inexact_flag);
                return Float { exponent: result.exponent - format.wrap(), ..result };
            }
            self.raise(flags::OE | flags::PE);
            let infinite = match self.rounding {
                Rounding::Nearest => true,
                Rounding::Down => negative,
                Rounding::Up => !negative,
                Rounding::TowardZero => false,
            };
            self.rounded_up = infinite;
            return if infinite {
                Float::infinity(negative)
            } else {
                Float::finite(negative, format.bias(), u64::MAX << (64 - format.precision))
            };
        }
        if result.exponent < format.min_exponent() {
            if self.masks & flags::UE == 0 {
                self.raise(flags::UE | inexact_flag);
                return Float { exponent: result.exponent + format.wrap(), ..result };
            }
            if self.flush_to_zero {
                self.raise(flags::UE | flags::PE);
                self.rounded_up = false;
                return Float::zero(negative);
            }
            return self.denormalise(format, negative, exponent, significand);
        }
        self.raise(inexact_flag);
        result
    }

    /// Rounds a value that is not zero and known to be inexact, whatever its bits say, to extended precision.
    pub fn round_approximation(&mut self, value: Wide) -> Float {
        let result = self.round(&Format::EXTENDED, value.negative, value.exponent, value.significand);
        let tiny =
            value.exponent < Format::EXTENDED.min_exponent() && result.exponent < Format::EXTENDED.min_exponent();
        self.raise(if tiny { flags::PE | flags::UE } else { flags::PE });
        result
    }

    /// The masked response to underflow: rounds at the smallest denormal's weight.
    fn denormalise(&mut self, format: &Format, negative: bool, exponent: i32, significand: u128) -> Float {
        let shift = (format.min_exponent() - exponent) as u32;
        let precision = format.precision.saturating_sub(shift);
        // With no bit left to keep, the value lies below half of the smallest denormal, or just at its weight.
        let significand = shift_right_sticky(significand, shift.saturating_sub(format.precision));
        let (rounded, carry, inexact) = round_significand(significand, precision, self.rounding, negative);
        self.rounded_up = carry || u128::from(rounded) > significand >> 64;
        if inexact {
            self.raise(flags::UE | flags::PE);
        }
        match (carry, rounded) {
            (false, 0) => Float::zero(negative),
            (false, _) => Float::finite(negative, exponent, rounded),
            // One unit above the kept bits: at precision 0 that is the smallest denormal itself.
            (true, _) if precision == 0 => {
                Float::finite(negative, format.min_exponent() - format.precision as i32 + 1, INTEGER_BIT)
            }
            (true, _) => Float::finite(negative, exponent + 1, INTEGER_BIT),
        }
    }

    /// A number rounded to another format.
    pub fn convert(&mut self, format: &Format, a: Float) -> Float {
        self.note_denormals([&a, &a]);
        if a.class == Class::Finite {
            self.round(format, a.negative, a.exponent, u128::from(a.significand) << 64)
        } else {
            a
        }
    }

    /// `a + b`.
    pub fn add(&mut self, format: &Format, a: Float, b: Float) -> Float {
        use Class::{Infinite, Zero};
        self.note_denormals([&a, &b]);
        match (a.class, b.class) {
            (Infinite, Infinite) if a.negative != b.negative => return self.invalid(),
            (Infinite, _) => return a,
            (_, Infinite) => return b,
            (Zero, Zero) if a.negative == b.negative => return a,
            (Zero, Zero) => return Float::zero(self.rounding == Rounding::Down),
            (Zero, _) => return self.round(format, b.negative, b.exponent, u128::from(b.significand) << 64),
            (_, Zero) => return self.round(format, a.negative, a.exponent, u128::from(a.significand) << 64),
            _ => {}
        }
        let (large, small) = if (a.exponent, a.significand) >= (b.exponent, b.significand) { (a, b) } else { (b, a) };
        let distance = (large.exponent - small.exponent).min(128) as u32;
        // Bit 127 stays free for the carry.
        let large_significand = u128::from(large.significand) << 63;
        let small_significand = shift_right_sticky(u128::from(small.significand) << 63, distance);
        let significand = if large.negative == small.negative {
            large_significand + small_significand
        } else {
            large_significand - small_significand
        };
        if significand == 0 {
            return Float::zero(self.rounding == Rounding::Down);
        }
        self.round(format, large.negative, large.exponent + 1, significand)
    }

    /// `a - b`.
    pub fn subtract(&mut self, format: &Format, a: Float, b: Float) -> Float {
        self.add(format, a, b.negated())
    }

    /// `a * b`.
    pub fn multiply(&mut self, format: &Format, a: Float, b: Float) -> Float {
        use Class::{Infinite, Zero};
        let negative = a.negative != b.negative;
        match (a.class, b.class) {
            (Infinite, Zero) | (Zero, Infinite) => return self.invalid(),
            _ => self.note_denormals([&a, &b]),
        }
        match (a.class, b.class) {
            (Infinite, _) | (_, Infinite) => Float::infinity(negative),
            (Zero, _) | (_, Zero) => Float::zero(negative),
            _ => {
                let product = u128::from(a.significand) * u128::from(b.significand);
                self.round(format, negative, a.exponent + b.exponent + 1, product)
            }
        }
    }

    /// `a / b`.
    pub fn divide(&mut self, format: &Format, a: Float, b: Float) -> Float {
        use Class::{Infinite, Zero};
        let negative = a.negative != b.negative;
        match (a.class, b.class) {
            (Infinite, Infinite) | (Zero, Zero) => return self.invalid(),
            (Class::Finite, Zero) => {
                self.raise(flags::ZE);
                return Float::infinity(negative);
            }
            _ => self.note_denormals([&a, &b]),
        }
        match (a.class, b.class) {
            (Infinite, _) => Float::infinity(negative),
            (Zero, _) | (_, Infinite) => Float::zero(negative),
            _ => {
                let divisor = u128::from(b.significand);
                let dividend = u128::from(a.significand) << 64;
                let (quotient, remainder) = (dividend / divisor, (dividend % divisor) << 62);
                let sticky = u128::from(remainder % divisor != 0);
                let significand = quotient << 62 | (remainder / divisor) | sticky;
                self.round(format, negative, a.exponent - b.exponent + 1, significand)
            }
        }
    }

    /// The square root of `a`.
    pub fn square_root(&mut self, format: &Format, a: Float) -> Float {
        if a.is_zero() || a.class == Class::Infinite && !a.negative {
            return a;
        }
        if a.negative {
            return self.invalid();
        }
        self.note_denormals([&a, &a]);
        let odd = a.exponent & 1;
        let radicand = u128::from(a.significand) << (63 + odd);
        let root = radicand.isqrt();
        let remainder = radicand - root * root;
        // (root + 1/2)^2 = root^2 + root + 1/4: the next bit is set when the remainder exceeds the root.
        let significand = root << 64 | u128::from(remainder > root) << 63 | u128::from(remainder != 0);
        self.round(format, false, (a.exponent - odd) / 2, significand)
    }
}
