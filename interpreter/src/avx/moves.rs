//! Moves, masks of sign bits, VZEROALL and VZEROUPPER, MXCSR (SDM vol. 1, 14.1 and table 14-2).

use iced_x86::{Mnemonic, OpKind};
use lstar_arch::{Exception, GuestMemory};

use super::{each, element, lanes};
use crate::exec::{Exec, Op};
use crate::sse;
use crate::sse::lanes::{build, lane, sign_bits, with_lane};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    use Mnemonic as N;
    Some(match mnemonic {
        N::Vmovups | N::Vmovupd | N::Vmovdqu | N::Vlddqu => copy(ex),
        N::Vmovaps | N::Vmovapd | N::Vmovdqa | N::Vmovntps | N::Vmovntpd | N::Vmovntdq | N::Vmovntdqa => {
            aligned_copy(ex)
        }
        N::Vmovd => low(ex, 32),
        N::Vmovq => low(ex, 64),
        N::Vmovss => scalar(ex, 32),
        N::Vmovsd => scalar(ex, 64),
        N::Vmovlps | N::Vmovlpd => half(ex, 0),
        N::Vmovhps | N::Vmovhpd => half(ex, 1),
        N::Vmovhlps => combine(ex, |a, b| with_lane(a, 0, lane::<u64>(b, 1))),
        N::Vmovlhps => combine(ex, |a, b| with_lane(a, 1, lane::<u64>(b, 0))),
        N::Vmovddup => duplicate(ex, |b| build(128, |_| lane::<u64>(b, 0))),
        N::Vmovsldup => duplicate(ex, |b| build(128, |index| lane::<u32>(b, index & !1))),
        N::Vmovshdup => duplicate(ex, |b| build(128, |index| lane::<u32>(b, index | 1))),
        N::Vmovmskps => mask(ex, sign_bits::<u32>),
        N::Vmovmskpd => mask(ex, sign_bits::<u64>),
        N::Vpmovmskb => mask(ex, sign_bits::<u8>),
        N::Vmaskmovdqu => sse::masked_store(ex),
        N::Vzeroall => {
            for number in 0..registers(ex) {
                (ex.cpu.xmm[number], ex.cpu.ymm_high[number]) = ([0; 2], [0; 2]);
            }
            Ok(())
        }
        N::Vzeroupper => {
            let count = registers(ex);
            ex.cpu.ymm_high[..count].fill([0; 2]);
            Ok(())
        }
        N::Vldmxcsr => ex.wide_source(0).and_then(|[value, _]| sse::set_mxcsr(ex, value as u32)),
        N::Vstmxcsr => {
            let value = ex.cpu.mxcsr.into();
            ex.write_wide([value, 0])
        }
        _ => return None,
    })
}

/// Number of vector registers in the present mode.
fn registers<M: GuestMemory>(ex: &Exec<'_, M>) -> usize {
    if ex.cpu.is_64bit() { 16 } else { 8 }
}

fn copy<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let value = ex.wide_source(1)?;
    ex.write_wide(value)
}

/// #GP(0) unless the memory operand is aligned to its size.
fn aligned_copy<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let in_memory = ex.insn.op0_kind() == OpKind::Memory || ex.insn.op1_kind() == OpKind::Memory;
    if in_memory && !ex.linear_address().is_multiple_of(ex.insn.memory_size().size() as u64) {
        return Err(Exception::GP0);
    }
    copy(ex)
}

/// VMOVD and VMOVQ: the low bits, zero-extended.
fn low<M: GuestMemory>(ex: &mut Exec<'_, M>, bits: u32) -> Op {
    let value = element(ex.wide_source(1)?, bits, 0);
    ex.write_wide([value.into(), 0])
}

/// VMOVSS and VMOVSD: between registers the rest comes from the first source; a load clears it.
fn scalar<M: GuestMemory>(ex: &mut Exec<'_, M>, bits: u32) -> Op {
    let last = ex.insn.op_count() - 1;
    let value = element(ex.wide_source(last)?, bits, 0);
    let rest = if last == 2 { ex.ymm(ex.insn.op1_register())[0] } else { 0 };
    ex.write_wide([rest >> bits << bits | u128::from(value), 0])
}

/// VMOVLPx and VMOVHPx: a load replaces one quadword of the first source.
fn half<M: GuestMemory>(ex: &mut Exec<'_, M>, index: u32) -> Op {
    if ex.insn.op0_kind() == OpKind::Register {
        let value = ex.wide_source(2)?[0] as u64;
        let first = ex.ymm(ex.insn.op1_register())[0];
        ex.write_wide([with_lane(first, index, value), 0])
    } else {
        let value: u64 = lane(ex.wide_source(1)?[0], index);
        ex.write_wide([value.into(), 0])
    }
}

fn combine<M: GuestMemory>(ex: &mut Exec<'_, M>, f: fn(u128, u128) -> u128) -> Op {
    let (a, b) = (ex.wide_source(1)?, ex.wide_source(2)?);
    ex.write_wide([f(a[0], b[0]), 0])
}

fn duplicate<M: GuestMemory>(ex: &mut Exec<'_, M>, f: fn(u128) -> u128) -> Op {
    let source = ex.wide_source(1)?;
    let count = lanes(ex);
    ex.write_wide(each(count, |lane| f(source[lane])))
}

fn mask<M: GuestMemory>(ex: &mut Exec<'_, M>, gather: fn(u128, u32) -> u64) -> Op {
    let [low, high] = ex.wide_source(1)?;
    // All ones tell the number of bits in a lane.
    let bits = gather(u128::MAX, 128).count_ones();
    let upper = if lanes(ex) == 2 { gather(high, 128) << bits } else { 0 };
    ex.write_wide([(gather(low, 128) | upper).into(), 0])
}
