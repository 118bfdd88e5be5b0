//! The arithmetic against an independent implementation, on every host.

use rustc_apfloat::ieee::{Double, Single, X87DoubleExtended};
use rustc_apfloat::{Round, Status};

use super::{Class, Environment, Float, Format, Rounding, flags};

/// Reproducible random bits (xorshift64*).
fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_F491_4F6C_DD1D)
}

/// A number of the format whose exponent is often extreme and whose fraction is often sparse.
fn number(format: &Format, state: &mut u64) -> Float {
    let range = format.bias() as u64;
    let near = (next(state) % 4) as i32;
    let exponent = match next(state) % 5 {
        0 => format.min_exponent() + near,
        1 => format.bias() - near,
        2 => (next(state) % range) as i32 - format.bias() / 2,
        _ => near,
    };
    let fraction = match next(state) % 4 {
        0 => 0,
        1 => u64::MAX << (next(state) % 64),
        _ => next(state),
    };
    let significand = (fraction | 1 << 63) & u64::MAX << (64 - format.precision);
    let negative = next(state) & 1 != 0;
    let float = Float { negative, class: Class::Finite, exponent, significand, denormal: false };
    // One in eight is a zero, one in eight denormal.
    match next(state) % 8 {
        0 => Float::zero(negative),
        1 => format.unpack(u128::from(next(state) >> 64u32.saturating_sub(format.precision - 1).max(1))),
        _ => float,
    }
}

fn compare<T: rustc_apfloat::Float>(format: &Format) {
    const MODES: [(Rounding, Round); 4] = [
        (Rounding::Nearest, Round::NearestTiesToEven),
        (Rounding::Down, Round::TowardNegative),
        (Rounding::Up, Round::TowardPositive),
        (Rounding::TowardZero, Round::TowardZero),
    ];
    type Ours = fn(&mut Environment, &Format, Float, Float) -> Float;
    type Theirs<T> = fn(T, T, Round) -> rustc_apfloat::StatusAnd<T>;
    let operations: [(&str, Ours, Theirs<T>); 4] = [
        ("add", Environment::add, T::add_r),
        ("subtract", Environment::subtract, T::sub_r),
        ("multiply", Environment::multiply, T::mul_r),
        ("divide", Environment::divide, T::div_r),
    ];
    let mut state = 0x9E37_79B9_7F4A_7C15;
    for case in 0..40_000 {
        let (a, b) = (number(format, &mut state), number(format, &mut state));
        let (rounding, round) = MODES[case % 4];
        let (name, ours, theirs) = operations[case / 4 % 4];
        let mut environment = Environment::from_mxcsr(0x1F80);
        environment.rounding = rounding;
        let result = format.pack(ours(&mut environment, format, a, b));
        let judge = theirs(T::from_bits(format.pack(a)), T::from_bits(format.pack(b)), round);
        let context = format!("{name} {rounding:?} {a:?} {b:?}");
        if environment.flags & flags::IE != 0 {
            assert!(judge.value.is_nan(), "{context}");
        } else {
            assert_eq!(result, judge.value.to_bits(), "{context}");
        }
        let flag = |bit| environment.flags & bit != 0;
        assert_eq!(flag(flags::PE), judge.status.contains(Status::INEXACT), "{context}");
        assert_eq!(flag(flags::IE), judge.status.contains(Status::INVALID_OP), "{context}");
        assert_eq!(flag(flags::ZE), judge.status.contains(Status::DIV_BY_ZERO), "{context}");
    }
}

#[test]
fn single_arithmetic_agrees() {
    compare::<Single>(&Format::SINGLE);
}

#[test]
fn double_arithmetic_agrees() {
    compare::<Double>(&Format::DOUBLE);
}

#[test]
fn extended_arithmetic_agrees() {
    compare::<X87DoubleExtended>(&Format::EXTENDED);
}
