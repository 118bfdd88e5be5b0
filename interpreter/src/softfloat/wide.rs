//! Floating point with 128 bits of significand, for the functions in [`super::elementary`].
//!
//! Results are truncated, not rounded: they carry an error of a unit or two of the last place, which is far below what a
//! result of 64 bits depends on.

/// `significand * 2^(exponent - 127)`; bit 127 of the significand is set unless the value is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wide {
    pub negative: bool,
    pub exponent: i32,
    pub significand: u128,
}

/// High half of the product of two 128-bit integers, and the low half.
fn multiply(a: u128, b: u128) -> (u128, u128) {
    const LOW: u128 = u64::MAX as u128;
    let (a_high, a_low, b_high, b_low) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let low = a_low * b_low;
    let (cross, other) = (a_high * b_low, a_low * b_high);
    let middle = (low >> 64) + (cross & LOW) + (other & LOW);
    (a_high * b_high + (cross >> 64) + (other >> 64) + (middle >> 64), low & LOW | middle << 64)
}

/// High half of the product of two 128-bit integers.
pub(super) fn multiply_high(a: u128, b: u128) -> u128 {
    multiply(a, b).0
}

/// One digit of a long division: `(rest * 2^64) / divisor` and the new rest. Bit 127 of the divisor is set and
/// `rest < divisor` (Knuth, algorithm D).
fn divide_digit(rest: u128, divisor: u128) -> (u128, u128) {
    let (high, low) = (divisor >> 64, divisor & u128::from(u64::MAX));
    let mut digit = (rest / high).min(u64::MAX.into());
    let mut partial = rest - digit * high;
    while partial >> 64 == 0 && digit * low > partial << 64 {
        digit -= 1;
        partial += high;
    }
    (digit, (partial << 64).wrapping_sub(digit * low))
}

impl Wide {
    pub const ZERO: Self = Self { negative: false, exponent: 0, significand: 0 };
    pub const ONE: Self = Self { negative: false, exponent: 0, significand: 1 << 127 };

    /// `value * 2^(exponent - 127)`, normalised.
    pub fn new(negative: bool, exponent: i32, value: u128) -> Self {
        match value.leading_zeros() {
            128 => Self::ZERO,
            shift => Self { negative, exponent: exponent - shift as i32, significand: value << shift },
        }
    }

    pub fn from_integer(value: i32) -> Self {
        Self::new(value < 0, 127, value.unsigned_abs().into())
    }

    pub fn is_zero(self) -> bool {
        self.significand == 0
    }

    pub fn negated(self) -> Self {
        Self { negative: !self.negative, ..self }
    }

    pub fn absolute(self) -> Self {
        Self { negative: false, ..self }
    }

    /// The value times `2^power`.
    pub fn scaled(self, power: i32) -> Self {
        Self { exponent: self.exponent + power, ..self }
    }

    /// The magnitude, below 1, as an integer in units of `2^-128`.
    pub fn fraction(self) -> u128 {
        self.significand.checked_shr((-1 - self.exponent) as u32).unwrap_or(0)
    }

    pub fn multiply(self, other: Self) -> Self {
        if self.is_zero() || other.is_zero() {
            return Self::ZERO;
        }
        let negative = self.negative != other.negative;
        let (high, low) = multiply(self.significand, other.significand);
        let exponent = self.exponent + other.exponent + 1;
        match high >> 127 {
            0 => Self { negative, exponent: exponent - 1, significand: high << 1 | low >> 127 },
            _ => Self { negative, exponent, significand: high },
        }
    }

    /// The quotient; the divisor is not zero.
    pub fn divide(self, divisor: Self) -> Self {
        if self.is_zero() {
            return Self::ZERO;
        }
        let negative = self.negative != divisor.negative;
        let carry = self.significand >= divisor.significand;
        let (first, rest) = divide_digit(self.significand >> u32::from(carry), divisor.significand);
        let (second, _) = divide_digit(rest, divisor.significand);
        let exponent = self.exponent - divisor.exponent - i32::from(!carry);
        Self { negative, exponent, significand: first << 64 | second }
    }

    pub fn add(self, other: Self) -> Self {
        if self.is_zero() {
            return other;
        }
        if other.is_zero() {
            return self;
        }
        let (large, small) = if (self.exponent, self.significand) >= (other.exponent, other.significand) {
            (self, other)
        } else {
            (other, self)
        };
        let shifted = small.significand.checked_shr((large.exponent - small.exponent) as u32).unwrap_or(0);
        if large.negative == small.negative {
            let (sum, carry) = large.significand.overflowing_add(shifted);
            return match carry {
                true => Self { exponent: large.exponent + 1, significand: sum >> 1 | 1 << 127, ..large },
                false => Self { significand: sum, ..large },
            };
        }
        Self::new(large.negative, large.exponent, large.significand - shifted)
    }

    pub fn subtract(self, other: Self) -> Self {
        self.add(other.negated())
    }
}
