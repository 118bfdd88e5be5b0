//! x87 data transfer and constants (SDM vol. 1, 8.3.2 to 8.3.4).

use iced_x86::{MemorySize, Mnemonic, OpKind};
use lstar_arch::{Exception, GuestMemory, Rflags};

use super::propagate_nan;
use crate::exec::{Exec, Op, is_split};
use crate::softfloat::{Environment, Float, Format, Rounding, flags};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    if let Some(constant) = constant(mnemonic) {
        return Some(load_constant(ex, constant));
    }
    Some(match mnemonic {
        Mnemonic::Fld | Mnemonic::Fild => load(ex),
        Mnemonic::Fst => store(ex, false),
        Mnemonic::Fstp => store(ex, true),
        Mnemonic::Fstpnce => {
            move_and_pop(ex);
            Ok(())
        }
        Mnemonic::Fist => store_integer(ex, false, false),
        Mnemonic::Fistp => store_integer(ex, true, false),
        Mnemonic::Fisttp => store_integer(ex, true, true),
        Mnemonic::Fbld => load_decimal(ex),
        Mnemonic::Fbstp => store_decimal(ex),
        Mnemonic::Fxch => exchange(ex),
        Mnemonic::Fcmovb => conditional_move(ex, Rflags::CF, true),
        Mnemonic::Fcmove => conditional_move(ex, Rflags::ZF, true),
        Mnemonic::Fcmovbe => conditional_move(ex, Rflags::CF | Rflags::ZF, true),
        Mnemonic::Fcmovu => conditional_move(ex, Rflags::PF, true),
        Mnemonic::Fcmovnb => conditional_move(ex, Rflags::CF, false),
        Mnemonic::Fcmovne => conditional_move(ex, Rflags::ZF, false),
        Mnemonic::Fcmovnbe => conditional_move(ex, Rflags::CF | Rflags::ZF, false),
        Mnemonic::Fcmovnu => conditional_move(ex, Rflags::PF, false),
        _ => return None,
    })
}

/// Exponent and significand (64 bits and 64 more to round by) of the constants.
fn constant(mnemonic: Mnemonic) -> Option<(i32, u128)> {
    Some(match mnemonic {
        Mnemonic::Fldz => (0, 0),
        Mnemonic::Fld1 => (0, 1 << 127),
        Mnemonic::Fldpi => (1, 0xC90F_DAA2_2168_C234_C4C6_628B_80DC_1CD1),
        Mnemonic::Fldl2e => (0, 0xB8AA_3B29_5C17_F0BB_BE87_FED0_691D_3E88),
        Mnemonic::Fldl2t => (1, 0xD49A_784B_CD1B_8AFE_492B_F6FF_4DAF_DB4C),
        Mnemonic::Fldlg2 => (-2, 0x9A20_9A84_FBCF_F798_8F89_59AC_0B7C_9178),
        Mnemonic::Fldln2 => (-1, 0xB172_17F7_D1CF_79AB_C9E3_B398_03F2_F6AF),
        _ => return None,
    })
}

/// Constants are rounded by the rounding control, and silently so.
fn load_constant<M: GuestMemory>(ex: &mut Exec<'_, M>, (exponent, significand): (i32, u128)) -> Op {
    let float = match significand {
        0 => Float::zero(false),
        _ => ex.x87_environment().round(&Format::EXTENDED, false, exponent, significand),
    };
    ex.set_condition(super::C1, false);
    ex.push_st(Format::EXTENDED.pack(float));
    Ok(())
}

/// FLD and FILD. Only single and double operands are converted; the others are copied, whatever they hold.
fn load<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.insn.op0_kind() == OpKind::Register || ex.insn.memory_size() == MemorySize::Float80 {
        let image = match ex.insn.op0_kind() {
            OpKind::Register => ex.st(ex.insn.op0_register().number()),
            _ => {
                let linear = ex.linear_address();
                let bytes: [u8; 10] = ex.load(linear)?;
                let mut image = [0; 16];
                image[..10].copy_from_slice(&bytes);
                Some(u128::from_le_bytes(image))
            }
        };
        ex.set_condition(super::C1, false);
        match image {
            Some(image) => ex.push_st(image),
            None if ex.stack_fault(false) => ex.push_st_over(Format::EXTENDED.pack(Float::INDEFINITE)),
            None => {}
        }
        return Ok(());
    }
    let Some(operand) = ex.x87_operand(0)? else { return Ok(()) };
    if ex.st(7).is_some() {
        ex.push_st(0);
        return Ok(());
    }
    let mut environment = ex.x87_environment();
    let float = match propagate_nan(&mut environment, operand, operand) {
        Some(nan) => nan,
        None => environment.convert(&Format::EXTENDED, operand),
    };
    ex.x87_report(&environment);
    // A denormal operand is loaded even if that exception is unmasked.
    if environment.flags & !environment.masks & flags::IE == 0 {
        ex.push_st(Format::EXTENDED.pack(float));
    }
    Ok(())
}

/// FSTPNCE, an undocumented FSTP that does not check ST(0): an empty register is popped and not moved.
fn move_and_pop<M: GuestMemory>(ex: &mut Exec<'_, M>) {
    if let Some(image) = ex.st(0) {
        ex.set_st(ex.insn.op0_register().number(), image);
    }
    ex.set_condition(super::C1, false);
    ex.pop_st();
}

/// A store that an unmasked exception suppresses faults all the same where it could not be made.
fn check_destination<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.insn.op0_kind() == OpKind::Register {
        return Ok(());
    }
    let (linear, size) = (ex.linear_address(), ex.insn.memory_size().size() as u64);
    if ex.is_out_of_reach(linear, size) {
        if size == 10 && is_split::<10>(linear) {
            ex.mem.probe_write(linear, 8, ex.cpu.privilege())?;
        }
        return Err(ex.non_canonical());
    }
    Ok(ex.mem.probe_write(linear, size, ex.cpu.privilege())?)
}

/// FST and FSTP. A conversion with an unmasked exception other than inexactness stores and pops nothing.
fn store<M: GuestMemory>(ex: &mut Exec<'_, M>, pop: bool) -> Op {
    check_destination(ex)?;
    let image = match ex.st(0) {
        Some(image) => {
            ex.set_condition(super::C1, false);
            image
        }
        None if ex.stack_fault(false) => Format::EXTENDED.pack(Float::INDEFINITE),
        None => return Ok(()),
    };
    if ex.insn.op0_kind() == OpKind::Register {
        ex.set_st(ex.insn.op0_register().number(), image);
    } else {
        let linear = ex.linear_address();
        let format = match ex.insn.memory_size() {
            MemorySize::Float32 => &Format::SINGLE,
            MemorySize::Float64 => &Format::DOUBLE,
            _ => &Format::EXTENDED,
        };
        if *format == Format::EXTENDED {
            let bytes = image.to_le_bytes();
            ex.store::<10>(linear, std::array::from_fn(|index| bytes[index]))?;
        } else {
            // Storing does not report denormal operands.
            let operand = Float { denormal: false, ..Format::EXTENDED.unpack(image) };
            let mut environment = ex.x87_environment();
            let float = match propagate_nan(&mut environment, operand, operand) {
                Some(nan) => nan,
                None => environment.convert(format, operand),
            };
            let blocked = environment.flags & !environment.masks & !flags::PE != 0;
            if blocked {
                // Without a result there is no rounding to report.
                environment.flags &= !flags::PE;
            } else {
                let bits = format.pack(float);
                match ex.insn.memory_size() {
                    MemorySize::Float32 => ex.store(linear, (bits as u32).to_le_bytes())?,
                    _ => ex.store(linear, (bits as u64).to_le_bytes())?,
                }
            }
            ex.x87_report(&environment);
            if blocked {
                return Ok(());
            }
        }
    }
    if pop {
        ex.pop_st();
    }
    Ok(())
}

/// ST(0) as an integer of `bits` bits: `None` raises invalid.
fn rounded_integer(environment: &mut Environment, value: Float, bits: u32) -> Option<i64> {
    let converted = value.to_integer(bits, environment.rounding);
    match converted {
        Some((integer, inexact)) => {
            let truncated = value.to_integer(bits, Rounding::TowardZero).map(|(truncated, _)| truncated);
            environment.rounded_up = truncated != Some(integer);
            if inexact {
                environment.raise(flags::PE);
            }
            Some(integer)
        }
        None => {
            environment.raise(flags::IE);
            None
        }
    }
}

fn store_integer<M: GuestMemory>(ex: &mut Exec<'_, M>, pop: bool, truncate: bool) -> Op {
    let bits = ex.insn.memory_size().size() as u32 * 8;
    let mut environment = ex.x87_environment();
    if truncate {
        environment.rounding = Rounding::TowardZero;
    }
    store_converted(ex, environment, pop, |environment, value| {
        rounded_integer(environment, value, bits).unwrap_or(i64::MIN >> (64 - bits)).to_le_bytes().into()
    })
}

/// Stores ST(0) as `convert` turns it into the memory operand's bytes, if that raises nothing unmasked but inexactness.
fn store_converted<M: GuestMemory>(
    ex: &mut Exec<'_, M>,
    mut environment: Environment,
    pop: bool,
    convert: impl FnOnce(&mut Environment, Float) -> Bytes,
) -> Op {
    check_destination(ex)?;
    let image = ex.st(0);
    // An empty register converts like a NaN, with the stack fault on top.
    let value = image.map_or(Float::INDEFINITE, |image| Format::EXTENDED.unpack(image));
    let Bytes(bytes) = convert(&mut environment, value);
    if environment.flags & !environment.masks & !flags::PE == 0 {
        let linear = ex.linear_address();
        match ex.insn.memory_size().size() {
            2 => ex.store::<2>(linear, prefix(&bytes))?,
            4 => ex.store::<4>(linear, prefix(&bytes))?,
            8 => ex.store::<8>(linear, prefix(&bytes))?,
            _ => ex.store::<10>(linear, bytes)?,
        }
    }
    let proceeds = ex.x87_report(&environment);
    if image.is_none() {
        ex.stack_fault(false);
    }
    if proceeds && pop {
        ex.pop_st();
    }
    Ok(())
}

/// A memory operand of up to ten bytes.
struct Bytes([u8; 10]);

impl From<[u8; 8]> for Bytes {
    fn from(low: [u8; 8]) -> Self {
        Self(std::array::from_fn(|index| low.get(index).copied().unwrap_or(0)))
    }
}

fn prefix<const N: usize>(bytes: &[u8; 10]) -> [u8; N] {
    std::array::from_fn(|index| bytes[index])
}

/// FBLD: 18 packed decimal digits, the sign in the top bit. Digits above 9 are not checked.
fn load_decimal<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let linear = ex.linear_address();
    let bytes: [u8; 10] = ex.load(linear)?;
    let magnitude =
        bytes[..9].iter().rev().fold(0, |value, byte| value * 100 + i64::from(byte >> 4) * 10 + i64::from(byte & 15));
    let negative = bytes[9] & 0x80 != 0;
    ex.set_condition(super::C1, false);
    ex.push_st(Format::EXTENDED.pack(Float { negative, ..Float::from_integer(magnitude) }));
    Ok(())
}

/// FBSTP: what has more than 18 digits is stored as the packed decimal indefinite.
fn store_decimal<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let environment = ex.x87_environment();
    store_converted(ex, environment, true, |environment, value| {
        let limit = 10u64.pow(18);
        let fits =
            value.to_integer(64, environment.rounding).is_some_and(|(integer, _)| integer.unsigned_abs() < limit);
        let Some(integer) = fits.then(|| rounded_integer(environment, value, 64)).flatten() else {
            environment.raise(flags::IE);
            return Bytes([0, 0, 0, 0, 0, 0, 0, 0xC0, 0xFF, 0xFF]);
        };
        let mut rest = integer.unsigned_abs();
        let mut bytes: [u8; 10] = std::array::from_fn(|_| {
            let pair = (rest % 100) as u8;
            rest /= 100;
            ((pair / 10) << 4) | (pair % 10)
        });
        bytes[9] = u8::from(value.negative) << 7;
        Bytes(bytes)
    })
}

/// FXCH: an empty register counts as the indefinite if the stack fault is masked.
fn exchange<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let other = match ex.insn.op_count() {
        0 => 1,
        count => ex.insn.op_register(count - 1).number(),
    };
    let (a, b) = (ex.st(0), ex.st(other));
    ex.set_condition(super::C1, false);
    if (a.is_none() || b.is_none()) && !ex.stack_fault(false) {
        return Ok(());
    }
    let indefinite = Format::EXTENDED.pack(Float::INDEFINITE);
    ex.set_st(0, b.unwrap_or(indefinite));
    ex.set_st(other, a.unwrap_or(indefinite));
    Ok(())
}

fn conditional_move<M: GuestMemory>(ex: &mut Exec<'_, M>, condition: Rflags, wanted: bool) -> Op {
    let source = ex.st(ex.insn.op1_register().number());
    let (Some(source), Some(_)) = (source, ex.st(0)) else {
        if ex.stack_fault(false) {
            ex.set_st(0, Format::EXTENDED.pack(Float::INDEFINITE));
        }
        return Ok(());
    };
    if ex.cpu.flags().intersects(condition) == wanted {
        ex.set_st(0, source);
    }
    Ok::<(), Exception>(())
}
