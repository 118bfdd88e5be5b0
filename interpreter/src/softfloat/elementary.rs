//! The elementary functions behind the x87's transcendental instructions (SDM vol. 1, 8.3.8 to 8.3.10).
//!
//! Each computes about 120 bits of a result that is rounded to 64 afterwards: correct rounding but for one argument in
//! 2^55. Processors come within a unit of the last place of it. What no finite precision decides is settled as they do:
//! a result that differs from a representable number by less than can be seen here lies on the mathematically right side
//! of it. Arguments are finite and not zero; domains are the callers' business.

use super::wide::{Wide, multiply_high};

/// 1 in units of 2^-127, the fixed point of the series.
const ONE: u128 = 1 << 127;

const LN_2: Wide = Wide { negative: false, exponent: -1, significand: 0xB172_17F7_D1CF_79AB_C9E3_B398_03F2_F6AF };
const LOG2_E: Wide = Wide { negative: false, exponent: 0, significand: 0xB8AA_3B29_5C17_F0BB_BE87_FED0_691D_3E88 };
const PI: Wide = Wide { negative: false, exponent: 1, significand: 0xC90F_DAA2_2168_C234_C4C6_628B_80DC_1CD1 };
/// Half of the pi by which processors reduce arguments, 66 bits of it (SDM vol. 1, 8.3.8), in units of 2^-65.
const HALF_PI: u128 = 0x3_243F_6A88_85A3_08D3;

/// Arc tangents of the sixteenths up to 1, in units of 2^-128.
const ARC_TANGENTS: [u128; 17] = [
    0,
    0x0FFA_ADDB_967E_F4E3_6CB2_792D_C0E2_E0D5,
    0x1FD5_BA9A_AC2F_6DC6_5912_F313_E7D1_11DE,
    0x2F72_F697_9CB6_044D_1EC2_D3E2_0727_1D21,
    0x3EB6_EBF2_5901_BAC5_5B71_E7BD_7DE8_85F9,
    0x4D89_DCDC_1FAF_2F34_E2D5_DA4C_693D_7994,
    0x5BD8_6507_937B_C239_C551_9091_6E7F_2241,
    0x6993_BB0F_308F_F2DB_213E_4AF4_800F_389B,
    0x76B1_9C15_86ED_3DA2_B7F2_22F6_5E1D_4681,
    0x832B_F4A6_D986_7E2A_4B6A_09CB_61A5_15C0,
    0x8F00_5D5E_F7F5_9F9B_5C83_5E16_65C4_3747,
    0x9A2F_80E6_71BD_DA20_4226_F8E2_204F_F3BC,
    0xA4BC_7D19_34F7_0924_19A8_7F2A_457D_AC9E,
    0xAEAC_4C38_B4D8_C080_1472_5E2F_3E52_070A,
    0xB805_3E2B_C231_9E73_CB2D_A552_10A4_443D,
    0xC0CE_85B8_AC52_6640_89DD_62C4_6E92_FA24,
    0xC90F_DAA2_2168_C234_C4C6_628B_80DC_1CD1,
];

/// The reciprocals of the odd numbers from 1, in units of 2^-127.
const ODD_RECIPROCALS: [u128; 27] = {
    let mut table = [ONE; 27];
    let mut index = 1;
    while index < table.len() {
        table[index] = ONE / (2 * index as u128 + 1);
        index += 1;
    }
    table
};

/// The reciprocals of the factorials from 0!, in units of 2^-127.
const FACTORIAL_RECIPROCALS: [u128; 35] = {
    let mut table = [ONE; 35];
    let mut index = 1;
    while index < table.len() {
        table[index] = table[index - 1] / index as u128;
        index += 1;
    }
    table
};

/// The sum of `coefficient[k] * z^k`, `z` in units of 2^-128.
fn series(coefficients: impl DoubleEndedIterator<Item = u128>, z: u128) -> u128 {
    coefficients.rev().fold(0, |sum, coefficient| coefficient + multiply_high(sum, z))
}

/// The sum of `coefficient[k] * (-z)^k`, which decreases term by term from 1; below 1 if `z` is not zero but too small to
/// be seen.
fn alternating(coefficients: impl DoubleEndedIterator<Item = u128>, z: u128) -> u128 {
    coefficients.rev().fold(0, |sum, coefficient| coefficient - multiply_high(sum, z)).min(ONE - 1)
}

/// A value in the series' fixed point.
fn fixed(value: u128) -> Wide {
    Wide::new(false, 0, value)
}

/// `2^x - 1` for `|x| < 1`.
pub(crate) fn exponential(x: Wide) -> Wide {
    let y = x.multiply(LN_2);
    let coefficients = FACTORIAL_RECIPROCALS[1..].iter().copied();
    let z = y.absolute().fraction();
    y.multiply(fixed(if y.negative { alternating(coefficients, z) } else { series(coefficients, z) }))
}

/// The binary logarithm of `(1 + s) / (1 - s)`, for `s` of at most 0.172 in magnitude.
fn logarithm_of_ratio(s: Wide) -> Wide {
    let sum = series(ODD_RECIPROCALS.iter().copied(), s.multiply(s).fraction());
    s.multiply(fixed(sum)).multiply(LOG2_E).scaled(1)
}

/// The binary logarithm of `x > 0`; exact where that is an integer.
pub(crate) fn logarithm(x: Wide) -> Wide {
    /// The square root of 2 as a significand.
    const ROOT_2: u128 = 0xB504_F333_F9DE_6484_597D_89B3_754A_BE9F;
    let exponent = x.exponent + i32::from(x.significand > ROOT_2);
    let mantissa = Wide { exponent: x.exponent - exponent, ..x };
    let s = mantissa.subtract(Wide::ONE).divide(mantissa.add(Wide::ONE));
    Wide::from_integer(exponent).add(logarithm_of_ratio(s))
}

/// The binary logarithm of `1 + x`, for `x > -1`.
pub(crate) fn logarithm_of_next(x: Wide) -> Wide {
    if x.exponent < -2 { logarithm_of_ratio(x.divide(Wide::ONE.scaled(1).add(x))) } else { logarithm(Wide::ONE.add(x)) }
}

/// The angle of the point (`x`, `y`), between -pi and pi, neither coordinate zero.
pub(crate) fn arc_tangent(y: Wide, x: Wide) -> Wide {
    let (a, b) = (y.absolute(), x.absolute());
    let steep = (a.exponent, a.significand) > (b.exponent, b.significand);
    let acute = if steep { arc_tangent_of_fraction(b.divide(a)) } else { arc_tangent_of_fraction(a.divide(b)) };
    let upper = match (steep, x.negative) {
        (false, false) => acute,
        (false, true) => PI.subtract(acute),
        (true, false) => half_pi().subtract(acute),
        (true, true) => half_pi().add(acute),
    };
    Wide { negative: y.negative, ..upper }
}

/// Pi.
pub(crate) fn pi() -> Wide {
    PI
}

/// Half of pi.
pub(crate) fn half_pi() -> Wide {
    PI.scaled(-1)
}

/// The arc tangent of `t`, which is positive and at most 1.
fn arc_tangent_of_fraction(t: Wide) -> Wide {
    // The nearest sixteenth, whose arc tangent is known: the rest is at most 1/32.
    let index = match t.exponent {
        0 => 16,
        -6..0 => ((t.significand >> 122 >> -t.exponent) + 1) >> 1,
        _ => 0,
    } as usize;
    let known = Wide::new(false, -1, ARC_TANGENTS[index]);
    let sixteenth = Wide::from_integer(index as i32).scaled(-4);
    let rest = t.subtract(sixteenth).divide(Wide::ONE.add(t.multiply(sixteenth)));
    if rest.is_zero() {
        return known;
    }
    let sum = alternating(ODD_RECIPROCALS[..16].iter().copied(), rest.multiply(rest).fraction());
    known.add(rest.multiply(fixed(sum)))
}

/// What remains of an angle below 2^63, between -pi/4 and pi/4, and the number of right angles (modulo 4) taken away.
fn reduce(x: Wide) -> (Wide, u32) {
    // Smaller than pi/4 for sure.
    if x.exponent < -1 {
        return (x, 0);
    }
    let mut rest = x.significand >> 64;
    let mut quotient = 0u32;
    // The significand is in units of 2^(exponent - 63).
    for _ in 0..x.exponent + 2 {
        rest <<= 1;
        quotient <<= 1;
        if rest >= HALF_PI {
            rest -= HALF_PI;
            quotient |= 1;
        }
    }
    let mut negative = false;
    if 2 * rest > HALF_PI {
        rest = HALF_PI - rest;
        quotient = quotient.wrapping_add(1);
        negative = true;
    }
    // The angle of -x is that of x mirrored.
    let angle = Wide::new(negative != x.negative, 127 - 65, rest);
    (angle, if x.negative { quotient.wrapping_neg() & 3 } else { quotient & 3 })
}

/// Sine and cosine of an angle below 2^63.
pub(crate) fn sine_and_cosine(x: Wide) -> (Wide, Wide) {
    let (angle, quadrant) = reduce(x);
    let z = angle.multiply(angle).fraction();
    let sine = angle.multiply(fixed(alternating(FACTORIAL_RECIPROCALS.iter().copied().skip(1).step_by(2), z)));
    let cosine = fixed(alternating(FACTORIAL_RECIPROCALS.iter().copied().step_by(2), z));
    match quadrant {
        0 => (sine, cosine),
        1 => (cosine, sine.negated()),
        2 => (sine.negated(), cosine.negated()),
        _ => (cosine.negated(), sine),
    }
}

/// Tangent of an angle below 2^63. Tiny angles are their own tangents, in directed rounding too: so processors have it.
pub(crate) fn tangent(x: Wide) -> Wide {
    const TINY: i32 = -34;
    if x.exponent < TINY {
        return x;
    }
    let (sine, cosine) = sine_and_cosine(x);
    sine.divide(cosine)
}
