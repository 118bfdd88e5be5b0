//! Conversion between integers and floating-point formats (SDM vol. 1, 10.4.3, 11.4.1.6 and 4.8.4.2).

use iced_x86::{Mnemonic, OpKind};
use lstar_arch::GuestMemory;

use super::float::propagate_nan;
use super::lanes::{lane, with_lane};
use crate::exec::{Exec, Op};
use crate::softfloat::{Environment, Float, Format, Rounding, flags};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    use Kind::{Double, Integer, Single};
    Some(match mnemonic {
        Mnemonic::Cvtdq2ps => packed(ex, 4, Integer(32), Single, false),
        Mnemonic::Cvtdq2pd => packed(ex, 2, Integer(32), Double, false),
        Mnemonic::Cvtps2dq => packed(ex, 4, Single, Integer(32), false),
        Mnemonic::Cvttps2dq => packed(ex, 4, Single, Integer(32), true),
        Mnemonic::Cvtpd2dq | Mnemonic::Cvtpd2pi => packed(ex, 2, Double, Integer(32), false),
        Mnemonic::Cvttpd2dq | Mnemonic::Cvttpd2pi => packed(ex, 2, Double, Integer(32), true),
        Mnemonic::Cvtps2pd => packed(ex, 2, Single, Double, false),
        Mnemonic::Cvtpd2ps => packed(ex, 2, Double, Single, false),
        Mnemonic::Cvtps2pi => packed(ex, 2, Single, Integer(32), false),
        Mnemonic::Cvttps2pi => packed(ex, 2, Single, Integer(32), true),
        Mnemonic::Cvtpi2pd => packed(ex, 2, Integer(32), Double, false),
        Mnemonic::Cvtpi2ps => merged(ex, 2, Integer(32), Single),
        Mnemonic::Cvtss2sd => merged(ex, 1, Single, Double),
        Mnemonic::Cvtsd2ss => merged(ex, 1, Double, Single),
        Mnemonic::Cvtsi2ss => merged(ex, 1, Integer(source_bits(ex)), Single),
        Mnemonic::Cvtsi2sd => merged(ex, 1, Integer(source_bits(ex)), Double),
        Mnemonic::Cvtss2si => packed(ex, 1, Single, Integer(destination_bits(ex)), false),
        Mnemonic::Cvttss2si => packed(ex, 1, Single, Integer(destination_bits(ex)), true),
        Mnemonic::Cvtsd2si => packed(ex, 1, Double, Integer(destination_bits(ex)), false),
        Mnemonic::Cvttsd2si => packed(ex, 1, Double, Integer(destination_bits(ex)), true),
        _ => return None,
    })
}

/// What a lane holds.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A signed integer of 32 or 64 bits.
    Integer(u32),
    Single,
    Double,
}

impl Kind {
    fn format(self) -> Option<&'static Format> {
        match self {
            Self::Integer(_) => None,
            Self::Single => Some(&Format::SINGLE),
            Self::Double => Some(&Format::DOUBLE),
        }
    }
    pub fn bits(self) -> u32 {
        match self {
            Self::Integer(bits) => bits,
            Self::Single => 32,
            Self::Double => 64,
        }
    }
    /// Lane `index`, zero-extended.
    pub fn get(self, vector: u128, index: u32) -> u64 {
        if self.bits() == 64 { lane(vector, index) } else { lane::<u32>(vector, index).into() }
    }
    pub fn set(self, vector: u128, index: u32, value: u64) -> u128 {
        if self.bits() == 64 { with_lane(vector, index, value) } else { with_lane(vector, index, value as u32) }
    }
}

/// Width of the general-purpose register or memory operand that is converted.
fn source_bits<M: GuestMemory>(ex: &Exec<'_, M>) -> u32 {
    let bytes = match ex.insn.op1_kind() {
        OpKind::Register => ex.insn.op1_register().size(),
        _ => ex.insn.memory_size().size(),
    };
    bytes as u32 * 8
}

fn destination_bits<M: GuestMemory>(ex: &Exec<'_, M>) -> u32 {
    ex.insn.op0_register().size() as u32 * 8
}

/// Converts `lanes` lanes; the rest of the destination becomes zero.
fn packed<M: GuestMemory>(ex: &mut Exec<'_, M>, lanes: u32, from: Kind, to: Kind, truncate: bool) -> Op {
    convert(ex, 0, lanes, from, to, truncate)
}

/// Converts `lanes` lanes; the rest of the destination stays.
fn merged<M: GuestMemory>(ex: &mut Exec<'_, M>, lanes: u32, from: Kind, to: Kind) -> Op {
    let old = ex.vector(ex.insn.op0_register());
    convert(ex, old, lanes, from, to, false)
}

fn convert<M: GuestMemory>(ex: &mut Exec<'_, M>, old: u128, lanes: u32, from: Kind, to: Kind, truncate: bool) -> Op {
    let source = ex.source(1)?;
    let mut environment = Environment::from_mxcsr(ex.cpu.mxcsr);
    if truncate {
        environment.rounding = Rounding::TowardZero;
    }
    let result = (0..lanes).fold(old, |result, index| {
        to.set(result, index, lane_value(&mut environment, from.get(source, index), from, to))
    });
    // The transition to MMX happens when an MMX register takes part, even if the conversion then faults.
    if ex.vector_width() == 64 {
        ex.enter_mmx();
    }
    ex.report(&environment)?;
    ex.set_vector(ex.insn.op0_register(), result);
    Ok(())
}

pub(crate) fn lane_value(environment: &mut Environment, value: u64, from: Kind, to: Kind) -> u64 {
    match (from.format(), to.format()) {
        (None, Some(format)) => {
            let integer = if from.bits() == 64 { value as i64 } else { i64::from(value as i32) };
            format.pack(environment.convert(format, Float::from_integer(integer))) as u64
        }
        (Some(source), Some(target)) => {
            let operand = environment.operand(source, value.into());
            let result = match propagate_nan(environment, &[operand]) {
                Some(nan) => nan,
                None => environment.convert(target, operand),
            };
            target.pack(result) as u64
        }
        (Some(format), None) => to_integer(environment, environment.operand(format, value.into()), to.bits()),
        (None, None) => value,
    }
}

/// Rounds to an integer; what does not fit (NaNs included) is the integer indefinite, 80..0.
fn to_integer(environment: &mut Environment, value: Float, bits: u32) -> u64 {
    match value.to_integer(bits, environment.rounding) {
        Some((integer, inexact)) => {
            if inexact {
                environment.raise(flags::PE);
            }
            integer as u64
        }
        None => {
            environment.raise(flags::IE);
            1 << (bits - 1)
        }
    }
}
