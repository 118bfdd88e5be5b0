//! Packed integer arithmetic, logic, shifts, shuffles and the string comparisons (SDM vol. 1, 14.2.1 and 14.6.1).

use iced_x86::{Mnemonic, OpKind, Register};
use lstar_arch::GuestMemory;

use super::counterparts::counterpart;
use super::{each, element, elements, lanes};
use crate::exec::{Exec, Op};
use crate::sse::integer::{Binary, Shift, lane_binary, shift, sums_of_differences};
use crate::sse::lanes::sign_bits;
use crate::sse::shuffle::{ByImmediate, by_immediate, extend, interleave};
use crate::sse::{crypto, string};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    if let Some(legacy) = counterpart(mnemonic) {
        if let Some(f) = lane_binary(legacy).or_else(|| interleave(legacy)).or_else(|| crypto::round(legacy)) {
            return Some(binary(ex, f));
        }
        if let Some(f) = extend(legacy) {
            return Some(extension(ex, f, legacy));
        }
        if let Some(f) = shift(legacy) {
            return Some(shift_by(ex, f));
        }
        if let Some(f) = by_immediate(legacy) {
            return Some(immediate(ex, f, legacy));
        }
        if let Some(f) = crypto::with_immediate(legacy) {
            return Some(crypto_immediate(ex, f));
        }
    }
    use Mnemonic as N;
    Some(match mnemonic {
        N::Vpsllvd => variable_shift(ex, 32, |value, count| value.checked_shl(count).unwrap_or(0)),
        N::Vpsllvq => variable_shift(ex, 64, |value, count| value.checked_shl(count).unwrap_or(0)),
        N::Vpsrlvd => variable_shift(ex, 32, |value, count| value.checked_shr(count).unwrap_or(0)),
        N::Vpsrlvq => variable_shift(ex, 64, |value, count| value.checked_shr(count).unwrap_or(0)),
        N::Vpsravd => variable_shift(ex, 32, |value, count| (i64::from(value as i32) >> count.min(31)) as u64),
        N::Vmpsadbw => mpsadbw(ex),
        N::Vptest => test(ex, |a, b| (a & b == 0, !a & b == 0)),
        N::Vtestps => test(ex, |a, b| (signs::<u32>(a & b), signs::<u32>(!a & b))),
        N::Vtestpd => test(ex, |a, b| (signs::<u64>(a & b), signs::<u64>(!a & b))),
        N::Vpcmpestri | N::Vpcmpestri64 | N::Vpcmpestrm | N::Vpcmpestrm64 | N::Vpcmpistri | N::Vpcmpistrm => {
            compare_strings(ex, mnemonic)?
        }
        _ => return None,
    })
}

/// Both sources of `op0 = f(op1, op2)`, or of `op0 = f(op1)`, whose operations ignore the first argument.
fn sources<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Result<(super::Vector, super::Vector), lstar_arch::Exception> {
    let two = ex.insn.op_count() > 2 && !matches!(ex.insn.op2_kind(), OpKind::Immediate8);
    if two { Ok((ex.wide_source(1)?, ex.wide_source(2)?)) } else { Ok(([0; 2], ex.wide_source(1)?)) }
}

fn binary<M: GuestMemory>(ex: &mut Exec<'_, M>, f: Binary) -> Op {
    let (a, b) = sources(ex)?;
    let count = lanes(ex);
    ex.set_result(each(count, |lane| f(a[lane], b[lane], 128)))
}

/// VPMOVSXxx and VPMOVZXxx: both lanes of the result come from the low lane of the source.
fn extension<M: GuestMemory>(ex: &mut Exec<'_, M>, f: Binary, legacy: Mnemonic) -> Op {
    use Mnemonic as N;
    // Bits of the source that make one lane of the result.
    let used = match legacy {
        N::Pmovsxbq | N::Pmovzxbq => 16,
        N::Pmovsxbd | N::Pmovzxbd | N::Pmovsxwq | N::Pmovzxwq => 32,
        _ => 64,
    };
    let [source, _] = ex.wide_source(1)?;
    let count = lanes(ex);
    ex.set_result(each(count, |lane| f(0, source >> (used * lane), 128)))
}

/// Shifts of all elements by one count: an immediate, or the low quadword of a vector.
fn shift_by<M: GuestMemory>(ex: &mut Exec<'_, M>, f: Shift) -> Op {
    let by = match ex.insn.op2_kind() {
        OpKind::Immediate8 => ex.insn.immediate8().into(),
        _ => ex.wide_source(2)?[0] as u64,
    };
    let value = ex.wide_source(1)?;
    let count = lanes(ex);
    ex.set_result(each(count, |lane| f(value[lane], by)))
}

/// Each element by a count of its own; `f` gets counts of the element's width or more unchanged.
fn variable_shift<M: GuestMemory>(ex: &mut Exec<'_, M>, bits: u32, f: fn(u64, u32) -> u64) -> Op {
    let (values, counts) = (ex.wide_source(1)?, ex.wide_source(2)?);
    let count = lanes(ex) as u32 * 128 / bits;
    ex.set_result(elements(count, bits, |index| {
        let by = u32::try_from(element(counts, bits, index)).unwrap_or(u32::MAX);
        f(element(values, bits, index), by)
    }))
}

fn immediate<M: GuestMemory>(ex: &mut Exec<'_, M>, f: ByImmediate, legacy: Mnemonic) -> Op {
    let (a, b) = sources(ex)?;
    let control = u32::from(ex.insn.immediate8());
    // Where the control has bits for each element of both lanes.
    let step = match legacy {
        Mnemonic::Blendps => 4,
        Mnemonic::Blendpd | Mnemonic::Shufpd => 2,
        _ => 0,
    };
    let count = lanes(ex);
    ex.set_result(each(count, |lane| f(a[lane], b[lane], control >> (step * lane), 128)))
}

fn crypto_immediate<M: GuestMemory>(ex: &mut Exec<'_, M>, f: fn(u128, u128, u8) -> u128) -> Op {
    let (a, b) = sources(ex)?;
    let control = ex.insn.immediate8();
    let count = lanes(ex);
    ex.set_result(each(count, |lane| f(a[lane], b[lane], control)))
}

fn mpsadbw<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (a, b) = sources(ex)?;
    let control = u32::from(ex.insn.immediate8());
    let count = lanes(ex);
    ex.set_result(each(count, |lane| sums_of_differences(a[lane], b[lane], control >> (3 * lane))))
}

/// Whether no element has its sign bit set.
fn signs<T: crate::sse::lanes::Lane>(vector: u128) -> bool {
    sign_bits::<T>(vector, 128) == 0
}

/// `f` says for one lane whether ZF and CF can be set; both lanes must agree.
fn test<M: GuestMemory>(ex: &mut Exec<'_, M>, f: fn(u128, u128) -> (bool, bool)) -> Op {
    let (a, b) = (ex.ymm(ex.insn.op0_register()), ex.wide_source(1)?);
    let both = [0, 1].map(|lane| f(a[lane], b[lane]));
    ex.set_test_flags(both.iter().all(|(zero, _)| *zero), both.iter().all(|(_, carry)| *carry));
    Ok(())
}

/// The masks of VPCMPxSTRM go to XMM0, whose upper half is cleared.
fn compare_strings<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    use Mnemonic as N;
    let result = string::execute(ex, mnemonic)?;
    if result.is_ok() && matches!(mnemonic, N::Vpcmpestrm | N::Vpcmpestrm64 | N::Vpcmpistrm) {
        let mask = ex.ymm(Register::XMM0);
        ex.set_ymm(Register::XMM0, mask);
    }
    Some(result)
}
