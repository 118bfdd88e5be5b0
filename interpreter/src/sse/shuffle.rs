//! Packing, interleaving, shuffling, blending, insertion, extraction and extension of lanes (SDM vol. 1, 9.4.4 to 9.4.5,
//! 10.4.2, 11.4.1.4, 12.6, 12.10).

use iced_x86::{Mnemonic, OpKind};
use lstar_arch::GuestMemory;

use super::integer::{Binary, binary};
use super::lanes::{Lane, build, lane, map2, with_lane};
use crate::exec::{Exec, Op};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    if let Some(f) = interleave(mnemonic).or_else(|| extend(mnemonic)) {
        return Some(binary(ex, f));
    }
    if let Some(f) = by_immediate(mnemonic) {
        return Some(immediate(ex, f));
    }
    Some(match mnemonic {
        Mnemonic::Pblendvb => blend_by_xmm0::<i8, M>(ex),
        Mnemonic::Blendvps => blend_by_xmm0::<i32, M>(ex),
        Mnemonic::Blendvpd => blend_by_xmm0::<i64, M>(ex),
        Mnemonic::Pinsrb => insert::<u8, M>(ex),
        Mnemonic::Pinsrw => insert::<u16, M>(ex),
        Mnemonic::Pinsrd => insert::<u32, M>(ex),
        Mnemonic::Pinsrq => insert::<u64, M>(ex),
        Mnemonic::Pextrb => extract::<u8, M>(ex),
        Mnemonic::Pextrw => extract::<u16, M>(ex),
        Mnemonic::Pextrd | Mnemonic::Extractps => extract::<u32, M>(ex),
        Mnemonic::Pextrq => extract::<u64, M>(ex),
        Mnemonic::Insertps => insertps(ex),
        _ => return None,
    })
}

pub(crate) fn interleave(mnemonic: Mnemonic) -> Option<Binary> {
    Some(match mnemonic {
        Mnemonic::Punpcklbw => |a, b, width| unpack::<u8>(a, b, width, 0),
        Mnemonic::Punpcklwd => |a, b, width| unpack::<u16>(a, b, width, 0),
        Mnemonic::Punpckldq | Mnemonic::Unpcklps => |a, b, width| unpack::<u32>(a, b, width, 0),
        Mnemonic::Punpcklqdq | Mnemonic::Unpcklpd => |a, b, width| unpack::<u64>(a, b, width, 0),
        Mnemonic::Punpckhbw => |a, b, width| unpack::<u8>(a, b, width, width / 2),
        Mnemonic::Punpckhwd => |a, b, width| unpack::<u16>(a, b, width, width / 2),
        Mnemonic::Punpckhdq | Mnemonic::Unpckhps => |a, b, width| unpack::<u32>(a, b, width, width / 2),
        Mnemonic::Punpckhqdq | Mnemonic::Unpckhpd => |a, b, width| unpack::<u64>(a, b, width, width / 2),
        Mnemonic::Packsswb => {
            |a, b, width| pack(a, b, width, |value: i16| value.clamp(i8::MIN.into(), i8::MAX.into()) as i8)
        }
        Mnemonic::Packssdw => {
            |a, b, width| pack(a, b, width, |value: i32| value.clamp(i16::MIN.into(), i16::MAX.into()) as i16)
        }
        Mnemonic::Packuswb => |a, b, width| pack(a, b, width, |value: i16| value.clamp(0, u8::MAX.into()) as u8),
        Mnemonic::Packusdw => |a, b, width| pack(a, b, width, |value: i32| value.clamp(0, u16::MAX.into()) as u16),
        Mnemonic::Pshufb => |a, b, width| {
            build(width, |index| {
                let select: u8 = lane(b, index);
                if select & 0x80 != 0 { 0 } else { lane::<u8>(a, u32::from(select) & (width / 8 - 1)) }
            })
        },
        _ => return None,
    })
}

/// Interleaves the halves of both operands that start at bit `from`.
fn unpack<T: Lane>(a: u128, b: u128, width: u32, from: u32) -> u128 {
    build(width, |index| lane::<T>(if index & 1 == 0 { a } else { b } >> from, index / 2))
}

/// Narrows the lanes of the destination, then those of the source.
fn pack<W: Lane, N: Lane>(a: u128, b: u128, width: u32, narrow: fn(W) -> N) -> u128 {
    let half = width / W::BITS;
    build(width, |index| narrow(if index < half { lane(a, index) } else { lane(b, index - half) }))
}

pub(crate) fn extend(mnemonic: Mnemonic) -> Option<Binary> {
    /// Widens the low lanes of the source.
    fn widen<N: Lane, W: Lane>(b: u128, f: fn(N) -> W) -> u128 {
        build(128, |index| f(lane(b, index)))
    }
    Some(match mnemonic {
        Mnemonic::Pmovsxbw => |_, b, _| widen::<i8, i16>(b, i16::from),
        Mnemonic::Pmovsxbd => |_, b, _| widen::<i8, i32>(b, i32::from),
        Mnemonic::Pmovsxbq => |_, b, _| widen::<i8, i64>(b, i64::from),
        Mnemonic::Pmovsxwd => |_, b, _| widen::<i16, i32>(b, i32::from),
        Mnemonic::Pmovsxwq => |_, b, _| widen::<i16, i64>(b, i64::from),
        Mnemonic::Pmovsxdq => |_, b, _| widen::<i32, i64>(b, i64::from),
        Mnemonic::Pmovzxbw => |_, b, _| widen::<u8, u16>(b, u16::from),
        Mnemonic::Pmovzxbd => |_, b, _| widen::<u8, u32>(b, u32::from),
        Mnemonic::Pmovzxbq => |_, b, _| widen::<u8, u64>(b, u64::from),
        Mnemonic::Pmovzxwd => |_, b, _| widen::<u16, u32>(b, u32::from),
        Mnemonic::Pmovzxwq => |_, b, _| widen::<u16, u64>(b, u64::from),
        Mnemonic::Pmovzxdq => |_, b, _| widen::<u32, u64>(b, u64::from),
        _ => return None,
    })
}

/// `(destination, source, immediate, width in bits) -> result`.
pub(crate) type ByImmediate = fn(u128, u128, u32, u32) -> u128;

pub(crate) fn by_immediate(mnemonic: Mnemonic) -> Option<ByImmediate> {
    Some(match mnemonic {
        Mnemonic::Pshufd => |_, b, control, _| build(128, |index| lane::<u32>(b, select4(control, index))),
        Mnemonic::Pshufw => |_, b, control, _| shuffle_words(b, control),
        Mnemonic::Pshuflw => |_, b, control, _| b >> 64 << 64 | shuffle_words(b, control),
        Mnemonic::Pshufhw => |_, b, control, _| b << 64 >> 64 | shuffle_words(b >> 64, control) << 64,
        Mnemonic::Shufps => {
            |a, b, control, _| build(128, |index| lane::<u32>(if index < 2 { a } else { b }, select4(control, index)))
        }
        Mnemonic::Shufpd => {
            |a, b, control, _| build(128, |index| lane::<u64>(if index == 0 { a } else { b }, control >> index & 1))
        }
        Mnemonic::Palignr => |a, b, count, width| {
            build(width, |index| match index + count {
                from if from < width / 8 => lane::<u8>(b, from),
                from if from < width / 4 => lane::<u8>(a, from - width / 8),
                _ => 0,
            })
        },
        Mnemonic::Blendps => blend_lanes::<u32>,
        Mnemonic::Blendpd => blend_lanes::<u64>,
        Mnemonic::Pblendw => blend_lanes::<u16>,
        _ => return None,
    })
}

/// The two-bit field `index` of a shuffle control.
fn select4(control: u32, index: u32) -> u32 {
    control >> (2 * index) & 3
}

fn shuffle_words(value: u128, control: u32) -> u128 {
    build(64, |index| lane::<u16>(value, select4(control, index)))
}

fn blend_lanes<T: Lane>(a: u128, b: u128, control: u32, width: u32) -> u128 {
    build(width, |index| lane::<T>(if control >> index & 1 != 0 { b } else { a }, index))
}

fn immediate<M: GuestMemory>(ex: &mut Exec<'_, M>, f: ByImmediate) -> Op {
    let width = ex.vector_width();
    let source = ex.source(1)?;
    let register = ex.insn.op0_register();
    let value = f(ex.vector(register), source, ex.insn.immediate8().into(), width);
    ex.set_vector(register, value);
    if width == 64 {
        ex.enter_mmx();
    }
    Ok(())
}

/// Blends by the sign bits of XMM0's lanes.
fn blend_by_xmm0<T: Lane + PartialOrd + Default, M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let source = ex.source(1)?;
    let register = ex.insn.op0_register();
    let old = ex.vector(register);
    let mask = ex.vector(iced_x86::Register::XMM0);
    ex.set_vector(register, blend_by_sign::<T>(old, source, mask));
    Ok(())
}

/// The lanes of `b` where `mask`'s are negative, else those of `a`.
pub(crate) fn blend_by_sign<T: Lane + PartialOrd + Default>(a: u128, b: u128, mask: u128) -> u128 {
    let picked = map2(mask, u128::MAX, |lane: T, ones| if lane < T::default() { ones } else { T::default() });
    b & picked | a & !picked
}

/// The lane that the immediate selects: bits beyond the number of lanes are ignored.
fn selected_lane<T: Lane, M: GuestMemory>(ex: &Exec<'_, M>) -> u32 {
    u32::from(ex.insn.immediate8()) & (ex.vector_width() / T::BITS - 1)
}

fn insert<T: Lane, M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let value = T::truncate(ex.source(1)?);
    let register = ex.insn.op0_register();
    let index = selected_lane::<T, M>(ex);
    ex.set_vector(register, with_lane(ex.vector(register), index, value));
    if register.is_mm() {
        ex.enter_mmx();
    }
    Ok(())
}

fn extract<T: Lane, M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let register = ex.insn.op1_register();
    let value: T = lane(ex.vector(register), selected_lane::<T, M>(ex));
    ex.write_destination(value.widen())?;
    if register.is_mm() {
        ex.enter_mmx();
    }
    Ok(())
}

/// INSERTPS: bits 7:6 select the source lane (registers only), 5:4 the destination lane, 3:0 lanes to clear.
fn insertps<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let in_register = ex.insn.op1_kind() == OpKind::Register;
    let source = ex.source(1)?;
    let register = ex.insn.op0_register();
    ex.set_vector(register, insert_single(ex.vector(register), source, ex.insn.immediate8().into(), in_register));
    Ok(())
}

/// The result of INSERTPS; a source from memory has one lane only.
pub(crate) fn insert_single(old: u128, source: u128, control: u32, in_register: bool) -> u128 {
    let value: u32 = lane(source, if in_register { control >> 6 } else { 0 });
    let merged = with_lane(old, control >> 4 & 3, value);
    build(128, |index| if control >> index & 1 != 0 { 0 } else { lane::<u32>(merged, index) })
}
