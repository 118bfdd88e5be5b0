//! x87 arithmetic (SDM vol. 1, 8.3.5).

use iced_x86::{Mnemonic, OpKind};
use lstar_arch::GuestMemory;

use super::{C0, C1, C2, C3, propagate_nan};
use crate::exec::{Exec, Op};
use crate::softfloat::{Class, Environment, Float, Format, Rounding, flags};

/// `(environment, format, destination, source) -> result` for numbers.
type Binary = fn(&mut Environment, &Format, Float, Float) -> Float;

const REVERSE_SUBTRACT: Binary = |environment, format, a, b| environment.subtract(format, b, a);
const REVERSE_DIVIDE: Binary = |environment, format, a, b| environment.divide(format, b, a);

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    if let Some((f, pop)) = two_operands(mnemonic) {
        return Some(binary(ex, f, pop));
    }
    Some(match mnemonic {
        Mnemonic::Fchs => sign(ex, |image| image ^ 1 << 79),
        Mnemonic::Fabs => sign(ex, |image| image & !(1 << 79)),
        Mnemonic::Fsqrt => {
            let format = ex.x87_precision();
            unary(ex, |environment, a| environment.square_root(&format, a))
        }
        Mnemonic::Frndint => unary(ex, round_to_integral),
        Mnemonic::Fscale => top_two(ex, scale),
        Mnemonic::Fprem => remainder(ex, Rounding::TowardZero),
        Mnemonic::Fprem1 => remainder(ex, Rounding::Nearest),
        Mnemonic::Fxtract => extract(ex),
        _ => return None,
    })
}

/// The operation and whether it pops.
fn two_operands(mnemonic: Mnemonic) -> Option<(Binary, bool)> {
    Some(match mnemonic {
        Mnemonic::Fadd | Mnemonic::Fiadd => (Environment::add, false),
        Mnemonic::Faddp => (Environment::add, true),
        Mnemonic::Fmul | Mnemonic::Fimul => (Environment::multiply, false),
        Mnemonic::Fmulp => (Environment::multiply, true),
        Mnemonic::Fsub | Mnemonic::Fisub => (Environment::subtract, false),
        Mnemonic::Fsubp => (Environment::subtract, true),
        Mnemonic::Fsubr | Mnemonic::Fisubr => (REVERSE_SUBTRACT, false),
        Mnemonic::Fsubrp => (REVERSE_SUBTRACT, true),
        Mnemonic::Fdiv | Mnemonic::Fidiv => (Environment::divide, false),
        Mnemonic::Fdivp => (Environment::divide, true),
        Mnemonic::Fdivr | Mnemonic::Fidivr => (REVERSE_DIVIDE, false),
        Mnemonic::Fdivrp => (REVERSE_DIVIDE, true),
        _ => return None,
    })
}

/// `destination = f(destination, source)`; with a memory operand the destination is ST(0).
fn binary<M: GuestMemory>(ex: &mut Exec<'_, M>, f: Binary, pop: bool) -> Op {
    let registers = ex.insn.op0_kind() == OpKind::Register;
    let destination = if registers { ex.insn.op0_register().number() } else { 0 };
    let source = ex.x87_operand(u32::from(registers))?;
    let format = ex.x87_precision();
    let a = ex.st(destination).map(|image| Format::EXTENDED.unpack(image));
    operate(ex, destination, a.zip(source), |environment, a, b| f(environment, &format, a, b));
    if pop && took_effect(ex) {
        ex.pop_st();
    }
    Ok(())
}

/// Whether no unmasked pre-computation exception left operands and stack as they were.
pub(super) fn took_effect<M: GuestMemory>(ex: &Exec<'_, M>) -> bool {
    ex.cpu.x87.status & !ex.cpu.x87.control & flags::PRE_COMPUTATION as u16 == 0
}

/// Computes ST(`destination`); operands that are missing are a stack underflow.
pub(super) fn operate<M: GuestMemory>(
    ex: &mut Exec<'_, M>,
    destination: usize,
    operands: Option<(Float, Float)>,
    f: impl FnOnce(&mut Environment, Float, Float) -> Float,
) {
    let result = match operands {
        Some((a, b)) => {
            let mut environment = ex.x87_environment();
            let result = match propagate_nan(&mut environment, a, b) {
                Some(nan) => nan,
                None => f(&mut environment, a, b),
            };
            ex.x87_report(&environment).then_some(result)
        }
        None => ex.stack_fault(false).then_some(Float::INDEFINITE),
    };
    if let Some(result) = result {
        ex.set_st(destination, Format::EXTENDED.pack(result));
    }
}

/// `ST(0) = f(ST(0))`.
pub(super) fn unary<M: GuestMemory>(ex: &mut Exec<'_, M>, f: impl FnOnce(&mut Environment, Float) -> Float) -> Op {
    let a = ex.st(0).map(|image| Format::EXTENDED.unpack(image));
    operate(ex, 0, a.zip(a), |environment, a, _| f(environment, a));
    Ok(())
}

/// `ST(0) = f(ST(0), ST(1))`.
fn top_two<M: GuestMemory>(ex: &mut Exec<'_, M>, f: impl FnOnce(&mut Environment, Float, Float) -> Float) -> Op {
    let a = ex.st(0).map(|image| Format::EXTENDED.unpack(image));
    let b = ex.st(1).map(|image| Format::EXTENDED.unpack(image));
    operate(ex, 0, a.zip(b), f);
    Ok(())
}

/// FCHS and FABS work on the sign bit of anything but an empty register.
fn sign<M: GuestMemory>(ex: &mut Exec<'_, M>, f: fn(u128) -> u128) -> Op {
    ex.set_condition(C1, false);
    match ex.st(0) {
        Some(image) => ex.set_st(0, f(image)),
        None if ex.stack_fault(false) => ex.set_st(0, Format::EXTENDED.pack(Float::INDEFINITE)),
        None => {}
    }
    Ok(())
}

fn round_to_integral(environment: &mut Environment, a: Float) -> Float {
    if a.denormal {
        environment.raise(flags::DE);
    }
    let (integral, inexact) = a.to_integral(environment.rounding);
    if inexact {
        environment.raise(flags::PE);
        environment.rounded_up = integral != a.to_integral(Rounding::TowardZero).0;
    }
    integral
}

/// FSCALE: ST(0) times two to the power of ST(1), truncated.
fn scale(environment: &mut Environment, a: Float, b: Float) -> Float {
    match (a.class, b.class, b.negative) {
        (Class::Zero, Class::Infinite, false) | (Class::Infinite, Class::Infinite, true) => {
            return environment.invalid();
        }
        _ => {}
    }
    if a.denormal || b.denormal {
        environment.raise(flags::DE);
    }
    match (a.class, b.class) {
        (Class::Finite, Class::Infinite) if b.negative => Float::zero(a.negative),
        (Class::Finite, Class::Infinite) => Float::infinity(a.negative),
        (Class::Finite, _) => {
            // Beyond this everything overflows or underflows alike.
            const LIMIT: i64 = 0x1_0000;
            let power = match b.to_integer(64, Rounding::TowardZero) {
                Some((power, _)) => power.clamp(-LIMIT, LIMIT) as i32,
                None if b.negative => -LIMIT as i32,
                None => LIMIT as i32,
            };
            let result =
                environment.round(&Format::EXTENDED, a.negative, a.exponent + power, u128::from(a.significand) << 64);
            // An unmasked overflow or underflow so massive that not even the adjusted exponent fits.
            if result.class != Class::Finite
                || Format::EXTENDED.has_exponent(result.exponent)
                || environment.flags & (flags::OE | flags::UE) & !environment.masks == 0
            {
                return result;
            }
            environment.raise(flags::PE);
            environment.rounded_up = power > 0;
            if power > 0 { Float::infinity(a.negative) } else { Float::zero(a.negative) }
        }
        _ => a,
    }
}

/// FPREM (quotient truncated) and FPREM1 (rounded to nearest). When the exponents are 64 or more apart the reduction
/// is partial: C2 is set and the difference shrinks by 32 to 63, as the manual permits.
fn remainder<M: GuestMemory>(ex: &mut Exec<'_, M>, rounding: Rounding) -> Op {
    let mut quotient = None;
    let mut partial = false;
    top_two(ex, |environment, a, b| {
        if a.class == Class::Infinite || b.is_zero() {
            return environment.invalid();
        }
        if a.denormal || b.denormal {
            environment.raise(flags::DE);
        }
        quotient = Some(0);
        if a.is_zero() {
            return a;
        }
        // A result that equals the operand still underflows if it is denormal.
        let unchanged = u128::from(a.significand) << 64;
        if b.class == Class::Infinite {
            return environment.round(&Format::EXTENDED, a.negative, a.exponent, unchanged);
        }
        let distance = a.exponent - b.exponent;
        if distance < -1 || distance < 0 && rounding == Rounding::TowardZero {
            return environment.round(&Format::EXTENDED, a.negative, a.exponent, unchanged);
        }
        partial = distance >= 64;
        let (shift, weight) = match distance {
            64.. => (distance & 31 | 32, distance - (distance & 31 | 32)),
            _ => (distance, 0),
        };
        // One bit more than the quotient needs, so that a distance of -1 has a place too.
        let dividend = u128::from(a.significand) << (shift + 1);
        let divisor = u128::from(b.significand) << 1;
        let mut whole = dividend / divisor;
        let mut rest = dividend % divisor;
        let mut negative = a.negative;
        let above_half = 2 * rest > divisor || 2 * rest == divisor && whole & 1 != 0;
        if !partial && rounding == Rounding::Nearest && above_half {
            whole += 1;
            rest = divisor - rest;
            negative = !negative;
        }
        quotient = Some(whole);
        match rest {
            0 => Float::zero(a.negative),
            _ => environment.round(&Format::EXTENDED, negative, b.exponent + weight + 63, rest),
        }
    })?;
    // Without a quotient C0 and C3 stay.
    let effective = took_effect(ex);
    ex.set_condition(C2, partial && effective);
    if let Some(quotient) = quotient.filter(|_| effective) {
        let bit = |index: u32| !partial && quotient >> index & 1 != 0;
        ex.set_condition(C0, bit(2));
        ex.set_condition(C3, bit(1));
        ex.set_condition(C1, bit(0));
    }
    Ok(())
}

/// FXTRACT: the exponent replaces ST(0), the significand is pushed.
fn extract<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let Some(a) = ex.st(0).map(|image| Format::EXTENDED.unpack(image)) else {
        if ex.stack_fault(false) {
            let indefinite = Format::EXTENDED.pack(Float::INDEFINITE);
            ex.set_st(0, indefinite);
            ex.push_st_over(indefinite);
        }
        return Ok(());
    };
    if ex.st(7).is_some() {
        if ex.stack_fault(true) {
            let indefinite = Format::EXTENDED.pack(Float::INDEFINITE);
            ex.set_st(0, indefinite);
            ex.push_st_over(indefinite);
        }
        return Ok(());
    }
    let mut environment = ex.x87_environment();
    let (exponent, significand) = match propagate_nan(&mut environment, a, a) {
        Some(nan) => (nan, nan),
        None => match a.class {
            Class::Zero => {
                environment.raise(flags::ZE);
                (Float::infinity(true), a)
            }
            Class::Finite => {
                if a.denormal {
                    environment.raise(flags::DE);
                }
                (Float::from_integer(a.exponent.into()), Float { exponent: 0, ..a })
            }
            _ => (Float::infinity(false), a),
        },
    };
    if ex.x87_report(&environment) {
        ex.set_st(0, Format::EXTENDED.pack(exponent));
        ex.push_st(Format::EXTENDED.pack(significand));
    }
    Ok(())
}
