//! The fused multiply-add (SDM vol. 1, 14.5.3) and the half-precision format (vol. 1, 4.2.2).

use std::cmp::Ordering;

use super::{Class, Environment, Float, Format, Rounding, shift_right_sticky};

impl Format {
    pub const HALF: Self = Self { precision: 11, exponent_bits: 5, fraction_bits: 10 };
}

impl Environment {
    /// `a * b + c`, rounded once. None is a NaN; the precision of the operands is at most 53 bits, so that everything that
    /// decides about rounding fits into 128.
    pub fn multiply_add(&mut self, format: &Format, a: Float, b: Float, c: Float) -> Float {
        use Class::{Infinite, Zero};
        let negative = a.negative != b.negative;
        if matches!((a.class, b.class), (Infinite, Zero) | (Zero, Infinite)) {
            return self.invalid();
        }
        let infinite_product = a.class == Infinite || b.class == Infinite;
        if infinite_product && c.class == Infinite && c.negative != negative {
            return self.invalid();
        }
        self.note_denormals([&a, &b]);
        self.note_denormals([&c, &c]);
        if infinite_product {
            return Float::infinity(negative);
        }
        if c.class == Infinite {
            return c;
        }
        let addend = (u128::from(c.significand) << 64, c.exponent);
        if a.is_zero() || b.is_zero() {
            return match c.class {
                Zero if c.negative == negative => c,
                Zero => Float::zero(self.rounding == Rounding::Down),
                _ => self.round(format, c.negative, addend.1, addend.0),
            };
        }
        let product = u128::from(a.significand) * u128::from(b.significand);
        let normal = product.leading_zeros();
        let product = (product << normal, a.exponent + b.exponent + 1 - normal as i32);
        if c.is_zero() {
            return self.round(format, negative, product.1, product.0);
        }
        let order = (product.1, product.0).cmp(&(addend.1, addend.0));
        let (large, small, sign) = match order {
            Ordering::Less => (addend, product, c.negative),
            _ => (product, addend, negative),
        };
        // Bit 127 stays free for the carry; the lowest bits of both are zero.
        let distance = (large.1 - small.1).min(128) as u32;
        let aligned = shift_right_sticky(small.0 >> 1, distance);
        let sum = if negative == c.negative { (large.0 >> 1) + aligned } else { (large.0 >> 1) - aligned };
        if sum == 0 {
            return Float::zero(self.rounding == Rounding::Down);
        }
        self.round(format, sign, large.1 + 1, sum)
    }
}
