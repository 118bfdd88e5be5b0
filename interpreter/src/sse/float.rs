//! Floating-point arithmetic, comparison and rounding (SDM vol. 1, 10.4.1.2 to 10.4.1.4, 11.4.1, 11.5, 12.3, 12.8).

use std::cmp::Ordering;

use iced_x86::Mnemonic;
use lstar_arch::control::cr4;
use lstar_arch::{Exception, GuestMemory, Rflags};

use super::lanes::{lane, with_lane};
use crate::exec::{Exec, Op};
use crate::softfloat::{Class, Environment, Float, Format, Rounding, flags};
use crate::x87::{Transcendental, provided_single};

/// `(environment, format, destination lane, source lane) -> result lane`, as encodings.
pub(crate) type LaneOp = fn(&mut Environment, &Format, u64, u64) -> u64;

/// Which lanes an instruction works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    PackedSingle,
    PackedDouble,
    ScalarSingle,
    ScalarDouble,
}

impl Shape {
    pub fn is_double(self) -> bool {
        matches!(self, Self::PackedDouble | Self::ScalarDouble)
    }
    pub fn format(self) -> &'static Format {
        if self.is_double() { &Format::DOUBLE } else { &Format::SINGLE }
    }
    /// Number of lanes computed; lanes above keep the destination's value.
    pub fn lanes(self) -> u32 {
        match self {
            Self::PackedSingle => 4,
            Self::PackedDouble => 2,
            Self::ScalarSingle | Self::ScalarDouble => 1,
        }
    }
    /// Lane `index`, zero-extended.
    pub fn get(self, vector: u128, index: u32) -> u64 {
        if self.is_double() { lane(vector, index) } else { lane::<u32>(vector, index).into() }
    }
    pub fn set(self, vector: u128, index: u32, value: u64) -> u128 {
        if self.is_double() { with_lane(vector, index, value) } else { with_lane(vector, index, value as u32) }
    }
}

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    use Shape::{PackedDouble as PD, PackedSingle as PS, ScalarDouble as SD, ScalarSingle as SS};
    if let Some((shape, f)) = lane_operation(mnemonic) {
        return Some(lanewise(ex, shape, f));
    }
    Some(match mnemonic {
        Mnemonic::Cmpps => compare(ex, PS),
        Mnemonic::Cmppd => compare(ex, PD),
        Mnemonic::Cmpss => compare(ex, SS),
        Mnemonic::Cmpsd => compare(ex, SD),
        Mnemonic::Comiss => compare_to_flags(ex, SS, true),
        Mnemonic::Comisd => compare_to_flags(ex, SD, true),
        Mnemonic::Ucomiss => compare_to_flags(ex, SS, false),
        Mnemonic::Ucomisd => compare_to_flags(ex, SD, false),
        Mnemonic::Roundps => round(ex, PS),
        Mnemonic::Roundpd => round(ex, PD),
        Mnemonic::Roundss => round(ex, SS),
        Mnemonic::Roundsd => round(ex, SD),
        Mnemonic::Haddps => horizontal(ex, PS, add),
        Mnemonic::Haddpd => horizontal(ex, PD, add),
        Mnemonic::Hsubps => horizontal(ex, PS, subtract),
        Mnemonic::Hsubpd => horizontal(ex, PD, subtract),
        Mnemonic::Addsubps => add_subtract(ex, PS),
        Mnemonic::Addsubpd => add_subtract(ex, PD),
        Mnemonic::Dpps => dot_product(ex, PS),
        Mnemonic::Dppd => dot_product(ex, PD),
        _ => return None,
    })
}

pub(crate) fn lane_operation(mnemonic: Mnemonic) -> Option<(Shape, LaneOp)> {
    use Shape::{PackedDouble as PD, PackedSingle as PS, ScalarDouble as SD, ScalarSingle as SS};
    Some(match mnemonic {
        Mnemonic::Addps => (PS, add),
        Mnemonic::Addpd => (PD, add),
        Mnemonic::Addss => (SS, add),
        Mnemonic::Addsd => (SD, add),
        Mnemonic::Subps => (PS, subtract),
        Mnemonic::Subpd => (PD, subtract),
        Mnemonic::Subss => (SS, subtract),
        Mnemonic::Subsd => (SD, subtract),
        Mnemonic::Mulps => (PS, multiply),
        Mnemonic::Mulpd => (PD, multiply),
        Mnemonic::Mulss => (SS, multiply),
        Mnemonic::Mulsd => (SD, multiply),
        Mnemonic::Divps => (PS, divide),
        Mnemonic::Divpd => (PD, divide),
        Mnemonic::Divss => (SS, divide),
        Mnemonic::Divsd => (SD, divide),
        Mnemonic::Sqrtps => (PS, square_root),
        Mnemonic::Sqrtpd => (PD, square_root),
        Mnemonic::Sqrtss => (SS, square_root),
        Mnemonic::Sqrtsd => (SD, square_root),
        Mnemonic::Minps => (PS, minimum),
        Mnemonic::Minpd => (PD, minimum),
        Mnemonic::Minss => (SS, minimum),
        Mnemonic::Minsd => (SD, minimum),
        Mnemonic::Maxps => (PS, maximum),
        Mnemonic::Maxpd => (PD, maximum),
        Mnemonic::Maxss => (SS, maximum),
        Mnemonic::Maxsd => (SD, maximum),
        Mnemonic::Rcpps => (PS, reciprocal),
        Mnemonic::Rcpss => (SS, reciprocal),
        Mnemonic::Rsqrtps => (PS, reciprocal_square_root),
        Mnemonic::Rsqrtss => (SS, reciprocal_square_root),
        _ => return None,
    })
}

/// Runs `f` for each lane of the shape and writes the result if no exception is unmasked.
fn lanewise<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape, f: LaneOp) -> Op {
    each_lane(ex, shape, |environment, index, old, source| {
        f(environment, shape.format(), shape.get(old, index), shape.get(source, index))
    })
}

/// Computes each lane from the lane's index and both operands.
fn each_lane<M: GuestMemory>(
    ex: &mut Exec<'_, M>,
    shape: Shape,
    f: impl Fn(&mut Environment, u32, u128, u128) -> u64,
) -> Op {
    let source = ex.source(1)?;
    let old = ex.vector(ex.insn.op0_register());
    let mut environment = Environment::from_mxcsr(ex.cpu.mxcsr);
    let result =
        (0..shape.lanes()).fold(old, |result, index| shape.set(result, index, f(&mut environment, index, old, source)));
    ex.report(&environment)?;
    ex.set_vector(ex.insn.op0_register(), result);
    Ok(())
}

impl<M: GuestMemory> Exec<'_, M> {
    /// Makes the exceptions of an operation sticky in MXCSR and raises #XM for unmasked ones. If one of them is a
    /// pre-computation exception the operation was not carried out, in no lane (SDM vol. 1, 11.5.1 and 11.5.3).
    pub(crate) fn report(&mut self, environment: &Environment) -> Op {
        let mut raised = environment.flags;
        if raised & flags::PRE_COMPUTATION & !environment.masks != 0 {
            raised &= flags::PRE_COMPUTATION;
        }
        self.cpu.mxcsr |= raised;
        if raised & !environment.masks == 0 {
            Ok(())
        } else if self.cpu.cr4 & cr4::OSXMMEXCPT != 0 {
            Err(Exception::XM)
        } else {
            Err(Exception::UD)
        }
    }
}

/// The result for NaN operands: the first NaN, made quiet (SDM vol. 1, table 4-7).
pub(crate) fn propagate_nan(environment: &mut Environment, operands: &[Float]) -> Option<Float> {
    let nan = *operands.iter().find(|operand| operand.is_nan())?;
    if operands.iter().any(|operand| operand.class == Class::Signaling) {
        environment.raise(flags::IE);
    }
    Some(nan.quieted())
}

/// An arithmetic operation on numbers, completed by what SSE does with NaNs.
fn arithmetic(
    environment: &mut Environment,
    format: &Format,
    a: u64,
    b: u64,
    f: fn(&mut Environment, &Format, Float, Float) -> Float,
) -> u64 {
    let (a, b) = (environment.operand(format, a.into()), environment.operand(format, b.into()));
    let result = match propagate_nan(environment, &[a, b]) {
        Some(nan) => nan,
        None => f(environment, format, a, b),
    };
    format.pack(result) as u64
}

pub(crate) fn add(environment: &mut Environment, format: &Format, a: u64, b: u64) -> u64 {
    arithmetic(environment, format, a, b, Environment::add)
}

pub(crate) fn subtract(environment: &mut Environment, format: &Format, a: u64, b: u64) -> u64 {
    arithmetic(environment, format, a, b, Environment::subtract)
}

pub(crate) fn multiply(environment: &mut Environment, format: &Format, a: u64, b: u64) -> u64 {
    arithmetic(environment, format, a, b, Environment::multiply)
}

fn divide(environment: &mut Environment, format: &Format, a: u64, b: u64) -> u64 {
    arithmetic(environment, format, a, b, Environment::divide)
}

fn square_root(environment: &mut Environment, format: &Format, _: u64, b: u64) -> u64 {
    arithmetic(environment, format, b, b, |environment, format, b, _| environment.square_root(format, b))
}

fn minimum(environment: &mut Environment, format: &Format, a: u64, b: u64) -> u64 {
    select(environment, format, a, b, Ordering::Less)
}

fn maximum(environment: &mut Environment, format: &Format, a: u64, b: u64) -> u64 {
    select(environment, format, a, b, Ordering::Greater)
}

/// MIN and MAX: the first operand only if it compares as wanted; else the second, even if it is an SNaN.
fn select(environment: &mut Environment, format: &Format, a: u64, b: u64, wanted: Ordering) -> u64 {
    let (first, second) = (environment.operand(format, a.into()), environment.operand(format, b.into()));
    let order = order(environment, &first, &second, true);
    format.pack(if order == Some(wanted) { first } else { second }) as u64
}

/// Compares; `None` is "unordered". SNaNs are always invalid operands, QNaNs when `signal_quiet`.
pub(crate) fn order(environment: &mut Environment, a: &Float, b: &Float, signal_quiet: bool) -> Option<Ordering> {
    if a.is_nan() || b.is_nan() {
        if signal_quiet || a.class == Class::Signaling || b.class == Class::Signaling {
            environment.raise(flags::IE);
        }
        return None;
    }
    if a.denormal || b.denormal {
        environment.raise(flags::DE);
    }
    Some(a.compare(b))
}

fn compare<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape) -> Op {
    let predicate = ex.insn.immediate8() & 7;
    let format = shape.format();
    each_lane(ex, shape, |environment, index, old, source| {
        let a = environment.operand(format, shape.get(old, index).into());
        let b = environment.operand(format, shape.get(source, index).into());
        // LT, LE, NLT and NLE signal; bit 2 negates.
        let order = order(environment, &a, &b, matches!(predicate & 3, 1 | 2));
        let holds = match predicate & 3 {
            0 => order == Some(Ordering::Equal),
            1 => order == Some(Ordering::Less),
            2 => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            _ => order.is_none(),
        };
        if holds != (predicate & 4 != 0) { u64::MAX } else { 0 }
    })
}

/// COMISx and UCOMISx: ZF, PF, CF; the other status flags are cleared.
pub(crate) fn compare_to_flags<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape, signal_quiet: bool) -> Op {
    let format = shape.format();
    let source = ex.source(1)?;
    let old = ex.vector(ex.insn.op0_register());
    let mut environment = Environment::from_mxcsr(ex.cpu.mxcsr);
    let a = environment.operand(format, shape.get(old, 0).into());
    let b = environment.operand(format, shape.get(source, 0).into());
    let order = order(&mut environment, &a, &b, signal_quiet);
    ex.report(&environment)?;
    ex.cpu.rflags = ex.cpu.rflags & !Rflags::STATUS.bits() | order_flags(order).bits();
    Ok(())
}

/// How COMISx, FCOMI and their like report an order.
pub(crate) fn order_flags(order: Option<Ordering>) -> Rflags {
    match order {
        None => Rflags::ZF | Rflags::PF | Rflags::CF,
        Some(Ordering::Greater) => Rflags::empty(),
        Some(Ordering::Less) => Rflags::CF,
        Some(Ordering::Equal) => Rflags::ZF,
    }
}

/// ROUNDx: bit 2 of the immediate takes the mode from MXCSR, bit 3 suppresses the precision exception.
fn round<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape) -> Op {
    let control = u32::from(ex.insn.immediate8());
    each_lane(ex, shape, |environment, index, _, source| {
        round_lane(environment, shape.format(), shape.get(source, index), control)
    })
}

/// One lane of ROUNDx.
pub(crate) fn round_lane(environment: &mut Environment, format: &Format, value: u64, control: u32) -> u64 {
    let value = environment.operand(format, value.into());
    let rounding = if control & 4 != 0 { environment.rounding } else { Rounding::from_control(control) };
    let result = match propagate_nan(environment, &[value]) {
        Some(nan) => nan,
        None => {
            let (integral, inexact) = value.to_integral(rounding);
            if inexact && control & 8 == 0 {
                environment.raise(flags::PE);
            }
            integral
        }
    };
    format.pack(result) as u64
}

/// Combines neighbours: the destination's pairs make the lower half of the result, the source's the upper half.
fn horizontal<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape, f: LaneOp) -> Op {
    let half = shape.lanes() / 2;
    each_lane(ex, shape, |environment, index, old, source| {
        let (vector, pair) = if index < half { (old, index) } else { (source, index - half) };
        f(environment, shape.format(), shape.get(vector, 2 * pair), shape.get(vector, 2 * pair + 1))
    })
}

fn add_subtract<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape) -> Op {
    each_lane(ex, shape, |environment, index, old, source| {
        let f = if index & 1 == 0 { subtract } else { add };
        f(environment, shape.format(), shape.get(old, index), shape.get(source, index))
    })
}

/// DPPS and DPPD: the products that bits 7:4 select, summed in pairs, go to the lanes that bits 3:0 select. Each step
/// rounds and raises on its own: the first one with an unmasked exception is the last one.
fn dot_product<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape) -> Op {
    let control = u32::from(ex.insn.immediate8());
    let source = ex.source(1)?;
    let old = ex.vector(ex.insn.op0_register());
    let mut environment = Environment::from_mxcsr(ex.cpu.mxcsr);
    let mut terms = [0; 4];
    for index in (0..shape.lanes()).filter(|index| control >> (4 + index) & 1 != 0) {
        terms[index as usize] =
            multiply(&mut environment, shape.format(), shape.get(old, index), shape.get(source, index));
    }
    let mut count = shape.lanes() as usize;
    while count > 1 {
        ex.report(&environment)?;
        environment.flags = 0;
        count /= 2;
        for index in 0..count {
            terms[index] = add(&mut environment, shape.format(), terms[2 * index], terms[2 * index + 1]);
        }
    }
    ex.report(&environment)?;
    let result = (0..shape.lanes())
        .filter(|index| control >> index & 1 != 0)
        .fold(0, |result, index| shape.set(result, index, terms[0]));
    ex.set_vector(ex.insn.op0_register(), result);
    Ok(())
}

/// RCPPS and RSQRTPS ignore MXCSR: denormals are zeros on both sides and nothing is signalled. The manual bounds the
/// relative error by 1.5 * 2^-12 and leaves the bits to the processor: they are the host's where it is asked, else those of
/// the correctly rounded result.
const APPROXIMATION: Environment = Environment {
    rounding: Rounding::Nearest,
    flush_to_zero: true,
    denormals_are_zero: true,
    masks: 0x3F,
    flags: 0,
    rounded_up: false,
    control: 0,
};

fn reciprocal(_: &mut Environment, format: &Format, _: u64, b: u64) -> u64 {
    if let Some(result) = provided_single(Transcendental::Reciprocal, b) {
        return result;
    }
    rounded_reciprocal(format, b)
}

fn rounded_reciprocal(format: &Format, b: u64) -> u64 {
    let one = format.pack(Float::from_integer(1)) as u64;
    divide(&mut APPROXIMATION.clone(), format, one, b)
}

fn reciprocal_square_root(_: &mut Environment, format: &Format, _: u64, b: u64) -> u64 {
    if let Some(result) = provided_single(Transcendental::ReciprocalSquareRoot, b) {
        return result;
    }
    rounded_reciprocal(format, square_root(&mut APPROXIMATION.clone(), format, b, b))
}
