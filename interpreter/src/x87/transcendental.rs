//! x87 transcendental instructions (SDM vol. 1, 8.3.6 to 8.3.10).
//!
//! Rounding control concerns them, precision control hardly; every computed result counts as inexact.

use std::sync::OnceLock;

use iced_x86::Mnemonic;
use lstar_arch::GuestMemory;

use super::arithmetic::{operate, took_effect, unary};
use super::{C1, C2, propagate_nan};
use crate::exec::{Exec, Op};
use crate::softfloat::wide::Wide;
use crate::softfloat::{Class, Environment, Float, Format, elementary, flags};

/// A function that a [`Provider`] computes: of the x87, or an approximation of SSE that every processor has its own of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transcendental {
    /// `2^x - 1` (F2XM1).
    Exponential,
    /// `y * log2(x)` (FYL2X).
    Logarithm,
    /// `y * log2(x + 1)` (FYL2XP1).
    LogarithmOfNext,
    /// The angle of (`x`, `y`) (FPATAN).
    ArcTangent,
    /// FPTAN.
    Tangent,
    /// FSIN, and FSINCOS for its sine.
    Sine,
    /// FCOS, and FSINCOS for its cosine.
    Cosine,
    /// RCPPS of a single, which the image holds in its low 32 bits.
    Reciprocal,
    /// RSQRTPS, likewise.
    ReciprocalSquareRoot,
}

/// Computes a function of numbers in its domain: the function, `x` and `y` as 80-bit images, and a control
/// word in which all exceptions are masked. Returns the image of the result and the status word behind it.
pub type Provider = fn(Transcendental, u128, u128, u16) -> (u128, u16);

static PROVIDER: OnceLock<Provider> = OnceLock::new();

/// Makes all interpreters of this process take transcendental functions from `provider` instead of rounding them correctly.
/// Processors differ in the last place: a machine whose translated code uses the host's x87 wants the interpreter to agree
/// with it. The first call decides.
pub fn provide_transcendentals(provider: Provider) {
    let _ = PROVIDER.set(provider);
}

/// What RCPPS or RSQRTPS gives for a single, if there is a provider.
pub(crate) fn provided_single(function: Transcendental, x: u64) -> Option<u64> {
    let provider = PROVIDER.get()?;
    Some(u64::from(provider(function, x.into(), 0, 0x37F).0 as u32))
}

/// The provider's result, if there is a provider and none of the exceptions that arise keeps the result from being it.
fn provided(environment: &mut Environment, function: Transcendental, x: Float, y: Float) -> Option<Float> {
    let provider = PROVIDER.get()?;
    // A denormal with the integer bit set has no place among the values that are packed.
    let image = |float: Float| match Format::EXTENDED.pack(float) {
        image if float.denormal => image & !(0x7FFF << 64),
        image => image,
    };
    // Precision control has a say in some of FPTAN's results.
    let (result, status) = provider(function, image(x), image(y), environment.control | 0x7F);
    let raised = u32::from(status) & 0x3F;
    if raised & !environment.masks & !flags::PE != 0 {
        return None;
    }
    environment.raise(raised);
    environment.rounded_up = status & C1 != 0;
    Some(Format::EXTENDED.unpack(result))
}

/// Rounds what `compute` returns, unless a provider has the result.
fn approximate(
    environment: &mut Environment,
    function: Transcendental,
    x: Float,
    y: Float,
    compute: impl FnOnce() -> Wide,
) -> Float {
    match provided(environment, function, x, y) {
        Some(result) => result,
        None => environment.round_approximation(compute()),
    }
}

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    Some(match mnemonic {
        Mnemonic::F2xm1 => unary(ex, exponential),
        Mnemonic::Fyl2x => top_two_and_pop(ex, logarithm),
        Mnemonic::Fyl2xp1 => top_two_and_pop(ex, logarithm_of_next),
        Mnemonic::Fpatan => top_two_and_pop(ex, arc_tangent),
        Mnemonic::Fsin => angle(ex, |environment, x| sine_or(environment, x, true)),
        Mnemonic::Fcos => angle(ex, |environment, x| sine_or(environment, x, false)),
        Mnemonic::Fptan => angle_and_push(ex, |environment, x| match x.class {
            Class::Finite => {
                let compute = || elementary::tangent(x.to_wide());
                let tangent = approximate(environment, Transcendental::Tangent, x, x, compute);
                (tangent, Float::from_integer(1))
            }
            _ => (x, Float::from_integer(1)),
        }),
        Mnemonic::Fsincos => angle_and_push(ex, |environment, x| {
            // The rounding that is reported is that of the sine.
            let cosine = sine_or(environment, x, false);
            (sine_or(environment, x, true), cosine)
        }),
        _ => return None,
    })
}

/// `ST(1) = f(ST(0), ST(1))`, then pop.
fn top_two_and_pop<M: GuestMemory>(ex: &mut Exec<'_, M>, f: fn(&mut Environment, Float, Float) -> Float) -> Op {
    let [x, y] = [0, 1].map(|index| ex.st(index).map(|image| Format::EXTENDED.unpack(image)));
    operate(ex, 1, x.zip(y), f);
    if took_effect(ex) {
        ex.pop_st();
    }
    Ok(())
}

fn note_denormals(environment: &mut Environment, operands: &[Float]) {
    if operands.iter().any(|operand| operand.denormal) {
        environment.raise(flags::DE);
    }
}

/// F2XM1. Beyond -1 and 1, where the manual leaves the result undefined, processors return the operand.
fn exponential(environment: &mut Environment, x: Float) -> Float {
    note_denormals(environment, &[x]);
    match x.class {
        Class::Finite if x.exponent < 0 => {
            approximate(environment, Transcendental::Exponential, x, x, || elementary::exponential(x.to_wide()))
        }
        Class::Finite => approximate(environment, Transcendental::Exponential, x, x, || {
            if (x.exponent, x.significand) == (0, 1 << 63) && x.negative {
                Wide { negative: true, ..Wide::ONE.scaled(-1) }
            } else {
                x.to_wide()
            }
        }),
        Class::Infinite if x.negative => Float { negative: true, ..Float::from_integer(1) },
        _ => x,
    }
}

/// `y` times a logarithm that is not computed: zero or infinite.
fn times(environment: &mut Environment, y: Float, logarithm: Float) -> Float {
    environment.multiply(&Format::EXTENDED, y, logarithm)
}

/// `y` times the `function` of `x`.
fn scaled(environment: &mut Environment, function: Transcendental, x: Float, y: Float, logarithm: Wide) -> Float {
    note_denormals(environment, &[y]);
    let negative = logarithm.negative != y.negative;
    match y.class {
        Class::Finite if logarithm.is_zero() => Float::zero(negative),
        Class::Finite => approximate(environment, function, x, y, || logarithm.multiply(y.to_wide())),
        Class::Infinite if logarithm.is_zero() => environment.invalid(),
        _ => Float { negative, ..y },
    }
}

/// FYL2X: `y * log2(x)`.
fn logarithm(environment: &mut Environment, x: Float, y: Float) -> Float {
    match x.class {
        Class::Zero if y.class == Class::Finite => {
            environment.raise(flags::ZE);
            Float::infinity(!y.negative)
        }
        Class::Zero => times(environment, y, Float::infinity(true)),
        _ if x.negative => environment.invalid(),
        Class::Finite => {
            note_denormals(environment, &[x]);
            scaled(environment, Transcendental::Logarithm, x, y, elementary::logarithm(x.to_wide()))
        }
        _ => times(environment, y, x),
    }
}

/// FYL2XP1: `y * log2(x + 1)`. Where there is no logarithm processors return `x`.
fn logarithm_of_next(environment: &mut Environment, x: Float, y: Float) -> Float {
    match x.class {
        Class::Infinite if x.negative => environment.invalid(),
        Class::Zero | Class::Infinite => times(environment, y, x),
        _ => {
            note_denormals(environment, &[x]);
            match y.class {
                Class::Finite if x.negative && x.exponent >= 0 => {
                    note_denormals(environment, &[y]);
                    environment.round_approximation(x.to_wide())
                }
                Class::Finite => {
                    let logarithm = elementary::logarithm_of_next(x.to_wide());
                    scaled(environment, Transcendental::LogarithmOfNext, x, y, logarithm)
                }
                _ => Float { negative: x.negative != y.negative, ..y },
            }
        }
    }
}

/// FPATAN: the angle of the point (`x`, `y`).
fn arc_tangent(environment: &mut Environment, x: Float, y: Float) -> Float {
    note_denormals(environment, &[x, y]);
    let quarter = elementary::half_pi().scaled(-1);
    let upper = match (y.class, x.class) {
        (Class::Infinite, Class::Infinite) if x.negative => quarter.multiply(Wide::from_integer(3)),
        (Class::Infinite, Class::Infinite) => quarter,
        (Class::Infinite, _) => elementary::half_pi(),
        (Class::Zero, _) | (_, Class::Infinite) if x.negative => elementary::pi(),
        (Class::Zero, _) | (_, Class::Infinite) => return Float::zero(y.negative),
        (_, Class::Zero) => elementary::half_pi(),
        _ => elementary::arc_tangent(y.to_wide(), x.to_wide()),
    };
    approximate(environment, Transcendental::ArcTangent, x, y, || Wide { negative: y.negative, ..upper })
}

/// The sine of a number, or the cosine.
fn sine_or(environment: &mut Environment, x: Float, sine: bool) -> Float {
    match x.class {
        Class::Finite => {
            let function = if sine { Transcendental::Sine } else { Transcendental::Cosine };
            approximate(environment, function, x, x, || {
                let (first, second) = elementary::sine_and_cosine(x.to_wide());
                if sine { first } else { second }
            })
        }
        _ if sine => x,
        _ => Float::from_integer(1),
    }
}

/// Whether ST(0) is an angle that is too large to be reduced: only C2 is set then.
fn beyond_range<M: GuestMemory>(ex: &mut Exec<'_, M>) -> bool {
    let float = ex.st(0).map(|image| Format::EXTENDED.unpack(image));
    let beyond = float.is_some_and(|float| float.class == Class::Finite && float.exponent >= 63);
    if beyond {
        ex.set_condition(C1, false);
    }
    ex.set_condition(C2, beyond);
    beyond
}

/// What all functions of angles do with operands that are none, and with denormals.
fn check_angle(environment: &mut Environment, x: Float) -> Option<Float> {
    if x.class == Class::Infinite {
        return Some(environment.invalid());
    }
    note_denormals(environment, &[x]);
    None
}

/// `ST(0) = f(ST(0))` for an angle.
fn angle<M: GuestMemory>(ex: &mut Exec<'_, M>, f: impl FnOnce(&mut Environment, Float) -> Float) -> Op {
    if beyond_range(ex) {
        return Ok(());
    }
    unary(ex, |environment, x| match check_angle(environment, x) {
        Some(result) => result,
        None => f(environment, x),
    })
}

/// Replaces ST(0) by the first result and pushes the second.
fn angle_and_push<M: GuestMemory>(
    ex: &mut Exec<'_, M>,
    f: impl FnOnce(&mut Environment, Float) -> (Float, Float),
) -> Op {
    let x = ex.st(0).map(|image| Format::EXTENDED.unpack(image));
    let overflow = ex.st(7).is_some();
    if !overflow && beyond_range(ex) {
        return Ok(());
    }
    ex.set_condition(C2, false);
    let Some(x) = x.filter(|_| !overflow) else {
        if ex.stack_fault(x.is_some()) {
            let indefinite = Format::EXTENDED.pack(Float::INDEFINITE);
            ex.set_st(0, indefinite);
            ex.push_st_over(indefinite);
        }
        return Ok(());
    };
    let mut environment = ex.x87_environment();
    let (first, second) = match propagate_nan(&mut environment, x, x) {
        Some(nan) => (nan, nan),
        None => match check_angle(&mut environment, x) {
            Some(result) => (result, result),
            None => f(&mut environment, x),
        },
    };
    if ex.x87_report(&environment) {
        ex.set_st(0, Format::EXTENDED.pack(first));
        ex.push_st(Format::EXTENDED.pack(second));
    }
    Ok(())
}
