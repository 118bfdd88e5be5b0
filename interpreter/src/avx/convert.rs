//! Conversions, half precision included (SDM vol. 1, 14.4 and 4.8.4.2).

use iced_x86::{Mnemonic, OpKind};
use lstar_arch::GuestMemory;

use super::{Vector, element, elements, lanes, with_element};
use crate::exec::{Exec, Op};
use crate::softfloat::{Environment, Format, Rounding};
use crate::sse::convert::{Kind, lane_value};
use crate::sse::float::propagate_nan;

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    use Kind::{Double, Integer, Single};
    use Mnemonic as N;
    let singles = 4 * lanes(ex) as u32;
    let doubles = singles / 2;
    Some(match mnemonic {
        N::Vcvtdq2ps => packed(ex, singles, Integer(32), Single, false),
        N::Vcvtdq2pd => packed(ex, doubles, Integer(32), Double, false),
        N::Vcvtps2dq => packed(ex, singles, Single, Integer(32), false),
        N::Vcvttps2dq => packed(ex, singles, Single, Integer(32), true),
        N::Vcvtpd2dq => packed(ex, doubles, Double, Integer(32), false),
        N::Vcvttpd2dq => packed(ex, doubles, Double, Integer(32), true),
        N::Vcvtps2pd => packed(ex, doubles, Single, Double, false),
        N::Vcvtpd2ps => packed(ex, doubles, Double, Single, false),
        N::Vcvtss2sd => merged(ex, Single, Double),
        N::Vcvtsd2ss => merged(ex, Double, Single),
        N::Vcvtsi2ss => merged(ex, Integer(source_bits(ex)), Single),
        N::Vcvtsi2sd => merged(ex, Integer(source_bits(ex)), Double),
        N::Vcvtss2si => to_register(ex, Single, false),
        N::Vcvttss2si => to_register(ex, Single, true),
        N::Vcvtsd2si => to_register(ex, Double, false),
        N::Vcvttsd2si => to_register(ex, Double, true),
        N::Vcvtph2ps => from_half(ex),
        N::Vcvtps2ph => to_half(ex),
        _ => return None,
    })
}

/// Width of the general-purpose register or memory operand that VCVTSI2Sx converts.
fn source_bits<M: GuestMemory>(ex: &Exec<'_, M>) -> u32 {
    let bytes = match ex.insn.op2_kind() {
        OpKind::Register => ex.insn.op2_register().size(),
        _ => ex.insn.memory_size().size(),
    };
    bytes as u32 * 8
}

fn environment<M: GuestMemory>(ex: &Exec<'_, M>, truncate: bool) -> Environment {
    let mut environment = Environment::from_mxcsr(ex.cpu.mxcsr);
    if truncate {
        environment.rounding = Rounding::TowardZero;
    }
    environment
}

/// Converts `count` elements; the rest of the destination becomes zero.
fn packed<M: GuestMemory>(ex: &mut Exec<'_, M>, count: u32, from: Kind, to: Kind, truncate: bool) -> Op {
    let source = ex.wide_source(1)?;
    let mut environment = environment(ex, truncate);
    let result =
        elements(count, to.bits(), |index| lane_value(&mut environment, element(source, from.bits(), index), from, to));
    ex.report(&environment)?;
    ex.set_result(result)
}

/// Converts one element; the rest comes from the first source.
fn merged<M: GuestMemory>(ex: &mut Exec<'_, M>, from: Kind, to: Kind) -> Op {
    let (rest, source) = (ex.wide_source(1)?, ex.wide_source(2)?);
    let mut environment = environment(ex, false);
    let value = lane_value(&mut environment, element(source, from.bits(), 0), from, to);
    ex.report(&environment)?;
    ex.set_result(with_element(rest, to.bits(), 0, value))
}

fn to_register<M: GuestMemory>(ex: &mut Exec<'_, M>, from: Kind, truncate: bool) -> Op {
    let source = ex.wide_source(1)?;
    let to = Kind::Integer(ex.insn.op0_register().size() as u32 * 8);
    let mut environment = environment(ex, truncate);
    let value = lane_value(&mut environment, element(source, from.bits(), 0), from, to);
    ex.report(&environment)?;
    ex.write_wide([value.into(), 0])
}

/// VCVTPH2PS: exact, and denormal halves are neither flushed nor signalled.
fn from_half<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let source = ex.wide_source(1)?;
    let mut environment = environment(ex, false);
    let count = if ex.insn.op0_register().is_ymm() { 8 } else { 4 };
    let result = elements(count, 32, |index| {
        let value = Format::HALF.unpack(element(source, 16, index).into());
        let value = propagate_nan(&mut environment, &[value]).unwrap_or(value);
        Format::SINGLE.pack(value) as u64
    });
    ex.report(&environment)?;
    ex.set_result(result)
}

/// VCVTPS2PH: rounds as the immediate says (bit 2: as MXCSR says) and never flushes results to zero.
fn to_half<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let source: Vector = ex.ymm(ex.insn.op1_register());
    let control = u32::from(ex.insn.immediate8());
    let mut environment = environment(ex, false);
    environment.flush_to_zero = false;
    if control & 4 == 0 {
        environment.rounding = Rounding::from_control(control);
    }
    let count = if ex.insn.op1_register().is_ymm() { 8 } else { 4 };
    let result = elements(count, 16, |index| {
        let value = environment.operand(&Format::SINGLE, element(source, 32, index).into());
        let value = match propagate_nan(&mut environment, &[value]) {
            Some(nan) => nan,
            None => environment.convert(&Format::HALF, value),
        };
        Format::HALF.pack(value) as u64
    });
    // A page fault goes before the exceptions, and leaves MXCSR alone.
    if ex.insn.op0_kind() == OpKind::Memory {
        ex.probe_range(ex.linear_address(), u64::from(count * 2))?;
    }
    ex.report(&environment)?;
    ex.write_wide(result)
}
