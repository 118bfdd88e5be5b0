//! Packed integer arithmetic, comparison, logic and shifts (SDM vol. 1, 9.4, 10.4.4, 11.4.2, 12.5, 12.10).

use iced_x86::{Mnemonic, OpKind};
use lstar_arch::{GuestMemory, Rflags};

use super::lanes::{Lane, build, lane, map, map2};
use crate::exec::{Exec, Op};

/// `(destination, source, width in bits) -> result`; bits above the width are ignored.
pub(crate) type Binary = fn(u128, u128, u32) -> u128;

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    if let Some(f) = lane_binary(mnemonic) {
        return Some(binary(ex, f));
    }
    if let Some(f) = shift(mnemonic) {
        return Some(shift_by(ex, f));
    }
    match mnemonic {
        Mnemonic::Ptest => Some(ptest(ex)),
        Mnemonic::Mpsadbw => Some(mpsadbw(ex)),
        _ => None,
    }
}

/// The operations on two vectors (or one: those ignore the first).
pub(crate) fn lane_binary(mnemonic: Mnemonic) -> Option<Binary> {
    logic(mnemonic).or_else(|| arithmetic(mnemonic)).or_else(|| comparison(mnemonic)).or_else(|| horizontal(mnemonic))
}

/// Executes `op0 = f(op0, op1)`.
pub(super) fn binary<M: GuestMemory>(ex: &mut Exec<'_, M>, f: Binary) -> Op {
    let width = ex.vector_width();
    let source = ex.source(1)?;
    let old = ex.vector(ex.insn.op0_register());
    ex.set_vector(ex.insn.op0_register(), f(old, source, width));
    if width == 64 {
        ex.enter_mmx();
    }
    Ok(())
}

fn logic(mnemonic: Mnemonic) -> Option<Binary> {
    Some(match mnemonic {
        Mnemonic::Pand | Mnemonic::Andps | Mnemonic::Andpd => |a, b, _| a & b,
        Mnemonic::Pandn | Mnemonic::Andnps | Mnemonic::Andnpd => |a, b, _| !a & b,
        Mnemonic::Por | Mnemonic::Orps | Mnemonic::Orpd => |a, b, _| a | b,
        Mnemonic::Pxor | Mnemonic::Xorps | Mnemonic::Xorpd => |a, b, _| a ^ b,
        _ => return None,
    })
}

fn arithmetic(mnemonic: Mnemonic) -> Option<Binary> {
    Some(match mnemonic {
        Mnemonic::Paddb => |a, b, _| map2(a, b, u8::wrapping_add),
        Mnemonic::Paddw => |a, b, _| map2(a, b, u16::wrapping_add),
        Mnemonic::Paddd => |a, b, _| map2(a, b, u32::wrapping_add),
        Mnemonic::Paddq => |a, b, _| map2(a, b, u64::wrapping_add),
        Mnemonic::Paddsb => |a, b, _| map2(a, b, i8::saturating_add),
        Mnemonic::Paddsw => |a, b, _| map2(a, b, i16::saturating_add),
        Mnemonic::Paddusb => |a, b, _| map2(a, b, u8::saturating_add),
        Mnemonic::Paddusw => |a, b, _| map2(a, b, u16::saturating_add),
        Mnemonic::Psubb => |a, b, _| map2(a, b, u8::wrapping_sub),
        Mnemonic::Psubw => |a, b, _| map2(a, b, u16::wrapping_sub),
        Mnemonic::Psubd => |a, b, _| map2(a, b, u32::wrapping_sub),
        Mnemonic::Psubq => |a, b, _| map2(a, b, u64::wrapping_sub),
        Mnemonic::Psubsb => |a, b, _| map2(a, b, i8::saturating_sub),
        Mnemonic::Psubsw => |a, b, _| map2(a, b, i16::saturating_sub),
        Mnemonic::Psubusb => |a, b, _| map2(a, b, u8::saturating_sub),
        Mnemonic::Psubusw => |a, b, _| map2(a, b, u16::saturating_sub),
        Mnemonic::Pmullw => |a, b, _| map2(a, b, u16::wrapping_mul),
        Mnemonic::Pmulld => |a, b, _| map2(a, b, u32::wrapping_mul),
        Mnemonic::Pmulhw => |a, b, _| map2(a, b, |a: i16, b| ((i32::from(a) * i32::from(b)) >> 16) as i16),
        Mnemonic::Pmulhuw => |a, b, _| map2(a, b, |a: u16, b| ((u32::from(a) * u32::from(b)) >> 16) as u16),
        Mnemonic::Pmulhrsw => {
            |a, b, _| map2(a, b, |a: i16, b| (((i32::from(a) * i32::from(b)) >> 14).wrapping_add(1) >> 1) as i16)
        }
        Mnemonic::Pmuludq => |a, b, _| map2(a, b, |a: u64, b| u64::from(a as u32) * u64::from(b as u32)),
        Mnemonic::Pmuldq => |a, b, _| map2(a, b, |a: i64, b| i64::from(a as i32) * i64::from(b as i32)),
        Mnemonic::Pmaddwd => |a, b, _| map2(a, b, |a: u32, b| dot_words(a, b) as u32),
        Mnemonic::Pmaddubsw => |a, b, _| map2(a, b, dot_bytes),
        Mnemonic::Psadbw => |a, b, _| map2(a, b, sum_of_differences),
        Mnemonic::Pavgb => |a, b, _| map2(a, b, |a: u8, b| ((u16::from(a) + u16::from(b) + 1) >> 1) as u8),
        Mnemonic::Pavgw => |a, b, _| map2(a, b, |a: u16, b| ((u32::from(a) + u32::from(b) + 1) >> 1) as u16),
        Mnemonic::Pminub => |a, b, _| map2(a, b, Ord::min as fn(u8, u8) -> u8),
        Mnemonic::Pminuw => |a, b, _| map2(a, b, Ord::min as fn(u16, u16) -> u16),
        Mnemonic::Pminud => |a, b, _| map2(a, b, Ord::min as fn(u32, u32) -> u32),
        Mnemonic::Pminsb => |a, b, _| map2(a, b, Ord::min as fn(i8, i8) -> i8),
        Mnemonic::Pminsw => |a, b, _| map2(a, b, Ord::min as fn(i16, i16) -> i16),
        Mnemonic::Pminsd => |a, b, _| map2(a, b, Ord::min as fn(i32, i32) -> i32),
        Mnemonic::Pmaxub => |a, b, _| map2(a, b, Ord::max as fn(u8, u8) -> u8),
        Mnemonic::Pmaxuw => |a, b, _| map2(a, b, Ord::max as fn(u16, u16) -> u16),
        Mnemonic::Pmaxud => |a, b, _| map2(a, b, Ord::max as fn(u32, u32) -> u32),
        Mnemonic::Pmaxsb => |a, b, _| map2(a, b, Ord::max as fn(i8, i8) -> i8),
        Mnemonic::Pmaxsw => |a, b, _| map2(a, b, Ord::max as fn(i16, i16) -> i16),
        Mnemonic::Pmaxsd => |a, b, _| map2(a, b, Ord::max as fn(i32, i32) -> i32),
        Mnemonic::Pabsb => |_, b, _| map(b, i8::wrapping_abs),
        Mnemonic::Pabsw => |_, b, _| map(b, i16::wrapping_abs),
        Mnemonic::Pabsd => |_, b, _| map(b, i32::wrapping_abs),
        Mnemonic::Psignb => |a, b, _| map2(a, b, |a: i8, b: i8| a.wrapping_mul(b.signum())),
        Mnemonic::Psignw => |a, b, _| map2(a, b, |a: i16, b: i16| a.wrapping_mul(b.signum())),
        Mnemonic::Psignd => |a, b, _| map2(a, b, |a: i32, b: i32| a.wrapping_mul(b.signum())),
        _ => return None,
    })
}

/// PMADDWD: the sum wraps only for four factors of -32768.
fn dot_words(a: u32, b: u32) -> i32 {
    let product = |shift: u32| i32::from((a >> shift) as i16) * i32::from((b >> shift) as i16);
    product(0).wrapping_add(product(16))
}

/// PMADDUBSW: unsigned bytes of the destination with signed bytes of the source, saturating.
fn dot_bytes(a: i16, b: i16) -> i16 {
    let product = |shift: u32| i32::from((a >> shift) as u8) * i32::from((b >> shift) as i8);
    (product(0) + product(8)).clamp(i16::MIN.into(), i16::MAX.into()) as i16
}

fn sum_of_differences(a: u64, b: u64) -> u64 {
    a.to_le_bytes().into_iter().zip(b.to_le_bytes()).map(|(a, b)| u64::from(a.abs_diff(b))).sum()
}

fn comparison(mnemonic: Mnemonic) -> Option<Binary> {
    Some(match mnemonic {
        Mnemonic::Pcmpeqb => |a, b, _| map2(a, b, |a: i8, b| -i8::from(a == b)),
        Mnemonic::Pcmpeqw => |a, b, _| map2(a, b, |a: i16, b| -i16::from(a == b)),
        Mnemonic::Pcmpeqd => |a, b, _| map2(a, b, |a: i32, b| -i32::from(a == b)),
        Mnemonic::Pcmpeqq => |a, b, _| map2(a, b, |a: i64, b| -i64::from(a == b)),
        Mnemonic::Pcmpgtb => |a, b, _| map2(a, b, |a: i8, b| -i8::from(a > b)),
        Mnemonic::Pcmpgtw => |a, b, _| map2(a, b, |a: i16, b| -i16::from(a > b)),
        Mnemonic::Pcmpgtd => |a, b, _| map2(a, b, |a: i32, b| -i32::from(a > b)),
        Mnemonic::Pcmpgtq => |a, b, _| map2(a, b, |a: i64, b| -i64::from(a > b)),
        _ => return None,
    })
}

fn horizontal(mnemonic: Mnemonic) -> Option<Binary> {
    Some(match mnemonic {
        Mnemonic::Phaddw => |a, b, width| pairs(a, b, width, i16::wrapping_add),
        Mnemonic::Phaddd => |a, b, width| pairs(a, b, width, i32::wrapping_add),
        Mnemonic::Phaddsw => |a, b, width| pairs(a, b, width, i16::saturating_add),
        Mnemonic::Phsubw => |a, b, width| pairs(a, b, width, i16::wrapping_sub),
        Mnemonic::Phsubd => |a, b, width| pairs(a, b, width, i32::wrapping_sub),
        Mnemonic::Phsubsw => |a, b, width| pairs(a, b, width, i16::saturating_sub),
        Mnemonic::Phminposuw => |_, b, _| {
            let (value, index) = (0..8).map(|index| (lane::<u16>(b, index), index)).min().unwrap_or_default();
            u128::from(value) | u128::from(index) << 16
        },
        _ => return None,
    })
}

/// Combines neighbours: the destination's pairs make the lower half of the result, the source's the upper half.
fn pairs<T: Lane>(a: u128, b: u128, width: u32, f: fn(T, T) -> T) -> u128 {
    let half = width / T::BITS / 2;
    build(width, |index| {
        let (vector, pair) = if index < half { (a, index) } else { (b, index - half) };
        f(lane(vector, 2 * pair), lane(vector, 2 * pair + 1))
    })
}

/// `(value, count) -> result`; counts are not reduced: a count of the lane's width or more shifts everything out.
pub(crate) type Shift = fn(u128, u64) -> u128;

pub(crate) fn shift(mnemonic: Mnemonic) -> Option<Shift> {
    /// The count, if it is within the lane.
    fn within<T: Lane>(count: u64) -> Option<u32> {
        u32::try_from(count).ok().filter(|&count| count < T::BITS)
    }
    macro_rules! logical {
        ($lane:ty, $op:tt) => {
            |value, count| within::<$lane>(count).map_or(0, |count| map(value, |lane: $lane| lane $op count))
        };
    }
    macro_rules! arithmetic {
        ($lane:ty) => {
            |value, count| map(value, |lane: $lane| lane >> within::<$lane>(count).unwrap_or(<$lane>::BITS - 1))
        };
    }
    Some(match mnemonic {
        Mnemonic::Psllw => logical!(u16, <<),
        Mnemonic::Pslld => logical!(u32, <<),
        Mnemonic::Psllq => logical!(u64, <<),
        Mnemonic::Psrlw => logical!(u16, >>),
        Mnemonic::Psrld => logical!(u32, >>),
        Mnemonic::Psrlq => logical!(u64, >>),
        Mnemonic::Psraw => arithmetic!(i16),
        Mnemonic::Psrad => arithmetic!(i32),
        Mnemonic::Pslldq => |value, count| if count < 16 { value << (count * 8) } else { 0 },
        Mnemonic::Psrldq => |value, count| if count < 16 { value >> (count * 8) } else { 0 },
        _ => return None,
    })
}

fn shift_by<M: GuestMemory>(ex: &mut Exec<'_, M>, f: Shift) -> Op {
    let count = match ex.insn.op1_kind() {
        OpKind::Immediate8 => ex.insn.immediate8().into(),
        _ => ex.source(1)? as u64,
    };
    let register = ex.insn.op0_register();
    ex.set_vector(register, f(ex.vector(register), count));
    if register.is_mm() {
        ex.enter_mmx();
    }
    Ok(())
}

fn ptest<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let source = ex.source(1)?;
    let other = ex.vector(ex.insn.op0_register());
    ex.set_test_flags(source & other == 0, source & !other == 0);
    Ok(())
}

impl<M: GuestMemory> Exec<'_, M> {
    /// How PTEST and VTESTPx report: ZF for "no common bits", CF for "no bits beyond"; the other status flags are cleared.
    pub(crate) fn set_test_flags(&mut self, disjoint: bool, contained: bool) {
        let mut flags = Rflags::empty();
        flags.set(Rflags::ZF, disjoint);
        flags.set(Rflags::CF, contained);
        self.cpu.rflags = self.cpu.rflags & !Rflags::STATUS.bits() | flags.bits();
    }
}

/// Sums of absolute differences of one source group of four bytes with eight overlapping destination groups.
fn mpsadbw<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let source = ex.source(1)?;
    let register = ex.insn.op0_register();
    let value = ex.vector(register);
    let sums = sums_of_differences(value, source, ex.insn.immediate8().into());
    ex.set_vector(register, sums);
    Ok(())
}

/// MPSADBW: bits 1:0 of the control select the source's group, bit 2 where the destination's begin.
pub(crate) fn sums_of_differences(value: u128, source: u128, control: u32) -> u128 {
    let (source_at, value_at) = ((control & 3) * 4, (control >> 2 & 1) * 4);
    build(128, |index| {
        (0..4).fold(0u16, |sum, byte| {
            let a: u8 = lane(value, value_at + index + byte);
            let b: u8 = lane(source, source_at + byte);
            sum + u16::from(a.abs_diff(b))
        })
    })
}
