//! Floating-point arithmetic, comparison and rounding (SDM vol. 1, 14.2 and 14.9; vol. 2, CMPPS for the predicates).

use std::cmp::Ordering;

use iced_x86::Mnemonic;
use lstar_arch::{Exception, GuestMemory};

use super::counterparts::counterpart;
use super::{Vector, lanes};
use crate::exec::{Exec, Op};
use crate::softfloat::Environment;
use crate::sse::float::{LaneOp, Shape, add, compare_to_flags, lane_operation, multiply, order, round_lane, subtract};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    use Mnemonic as N;
    use Shape::{PackedDouble as PD, PackedSingle as PS, ScalarDouble as SD, ScalarSingle as SS};
    if let Some((shape, f)) = counterpart(mnemonic).and_then(lane_operation) {
        return Some(lanewise(ex, shape, f));
    }
    Some(match mnemonic {
        N::Vcmpps => compare(ex, PS),
        N::Vcmppd => compare(ex, PD),
        N::Vcmpss => compare(ex, SS),
        N::Vcmpsd => compare(ex, SD),
        N::Vcomiss => compare_to_flags(ex, SS, true),
        N::Vcomisd => compare_to_flags(ex, SD, true),
        N::Vucomiss => compare_to_flags(ex, SS, false),
        N::Vucomisd => compare_to_flags(ex, SD, false),
        N::Vroundps => round(ex, PS),
        N::Vroundpd => round(ex, PD),
        N::Vroundss => round(ex, SS),
        N::Vroundsd => round(ex, SD),
        N::Vhaddps => horizontal(ex, PS, add),
        N::Vhaddpd => horizontal(ex, PD, add),
        N::Vhsubps => horizontal(ex, PS, subtract),
        N::Vhsubpd => horizontal(ex, PD, subtract),
        N::Vaddsubps => add_subtract(ex, PS),
        N::Vaddsubpd => add_subtract(ex, PD),
        N::Vdpps => dot_product(ex, PS),
        N::Vdppd => dot_product(ex, PD),
        _ => return None,
    })
}

/// Computes each element of the result from its index within the lane and the lanes of both sources; a scalar form
/// takes what it does not compute from the first source.
fn each_element<M: GuestMemory>(
    ex: &mut Exec<'_, M>,
    shape: Shape,
    (a, b): (Vector, Vector),
    mut f: impl FnMut(&mut Environment, u32, u128, u128) -> u64,
) -> Op {
    let mut environment = Environment::from_mxcsr(ex.cpu.mxcsr);
    let scalar = matches!(shape, Shape::ScalarSingle | Shape::ScalarDouble);
    let count = if scalar { 1 } else { lanes(ex) };
    let mut result = [if scalar { a[0] } else { 0 }, 0];
    for (lane, slot) in result.iter_mut().enumerate().take(count) {
        for index in 0..shape.lanes() {
            *slot = shape.set(*slot, index, f(&mut environment, index, a[lane], b[lane]));
        }
    }
    ex.report(&environment)?;
    ex.set_result(result)
}

/// Both sources of `op0 = f(op1, op2)`; of `op0 = f(op1)` the second one.
fn sources<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Result<(Vector, Vector), Exception> {
    let last = ex.insn.op_count() - 1 - u32::from(is_immediate(ex));
    Ok((if last == 2 { ex.wide_source(1)? } else { [0; 2] }, ex.wide_source(last)?))
}

fn is_immediate<M: GuestMemory>(ex: &Exec<'_, M>) -> bool {
    ex.insn.op_kind(ex.insn.op_count() - 1) == iced_x86::OpKind::Immediate8
}

fn lanewise<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape, f: LaneOp) -> Op {
    let operands = sources(ex)?;
    each_element(ex, shape, operands, |environment, index, a, b| {
        f(environment, shape.format(), shape.get(a, index), shape.get(b, index))
    })
}

/// Which orders make the predicates 0 to 15 true: less, equal, greater, unordered.
const PREDICATES: [[bool; 4]; 16] = {
    const T: bool = true;
    const F: bool = false;
    [
        [F, T, F, F], // EQ
        [T, F, F, F], // LT
        [T, T, F, F], // LE
        [F, F, F, T], // UNORD
        [T, F, T, T], // NEQ
        [F, T, T, T], // NLT
        [F, F, T, T], // NLE
        [T, T, T, F], // ORD
        [F, T, F, T], // EQ_UQ
        [T, F, F, T], // NGE
        [T, T, F, T], // NGT
        [F, F, F, F], // FALSE
        [T, F, T, F], // NEQ_OQ
        [F, T, T, F], // GE
        [F, F, T, F], // GT
        [T, T, T, T], // TRUE
    ]
};

/// VCMPxx: the upper 16 predicates signal QNaNs where the lower ones do not, and the other way round.
fn compare<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape) -> Op {
    let operands = sources(ex)?;
    let predicate = usize::from(ex.insn.immediate8() & 31);
    let signals = matches!(predicate & 15, 1 | 2 | 5 | 6 | 9 | 10 | 13 | 14) != (predicate >= 16);
    let [less, equal, greater, unordered] = PREDICATES[predicate & 15];
    let format = shape.format();
    each_element(ex, shape, operands, |environment, index, a, b| {
        let a = environment.operand(format, shape.get(a, index).into());
        let b = environment.operand(format, shape.get(b, index).into());
        let holds = match order(environment, &a, &b, signals) {
            Some(Ordering::Less) => less,
            Some(Ordering::Equal) => equal,
            Some(Ordering::Greater) => greater,
            None => unordered,
        };
        if holds { u64::MAX } else { 0 }
    })
}

fn round<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape) -> Op {
    let operands = sources(ex)?;
    let control = u32::from(ex.insn.immediate8());
    each_element(ex, shape, operands, |environment, index, _, b| {
        round_lane(environment, shape.format(), shape.get(b, index), control)
    })
}

/// Neighbours of the first source make the lower half of each lane, those of the second the upper half.
fn horizontal<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape, f: LaneOp) -> Op {
    let operands = sources(ex)?;
    let half = shape.lanes() / 2;
    each_element(ex, shape, operands, |environment, index, a, b| {
        let (vector, pair) = if index < half { (a, index) } else { (b, index - half) };
        f(environment, shape.format(), shape.get(vector, 2 * pair), shape.get(vector, 2 * pair + 1))
    })
}

fn add_subtract<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape) -> Op {
    let operands = sources(ex)?;
    each_element(ex, shape, operands, |environment, index, a, b| {
        let f = if index & 1 == 0 { subtract } else { add };
        f(environment, shape.format(), shape.get(a, index), shape.get(b, index))
    })
}

/// VDPPx: as DPPx in each lane. Each step rounds and raises on its own, for both lanes together: the first one with an
/// unmasked exception is the last one.
fn dot_product<M: GuestMemory>(ex: &mut Exec<'_, M>, shape: Shape) -> Op {
    let (a, b) = sources(ex)?;
    let control = u32::from(ex.insn.immediate8());
    let lanes = lanes(ex);
    let mut environment = Environment::from_mxcsr(ex.cpu.mxcsr);
    let mut terms = [[0; 4]; 2];
    for (lane, terms) in terms.iter_mut().enumerate().take(lanes) {
        for index in (0..shape.lanes()).filter(|index| control >> (4 + index) & 1 != 0) {
            terms[index as usize] =
                multiply(&mut environment, shape.format(), shape.get(a[lane], index), shape.get(b[lane], index));
        }
    }
    let mut count = shape.lanes() as usize;
    while count > 1 {
        ex.report(&environment)?;
        environment.flags = 0;
        count /= 2;
        for terms in terms.iter_mut().take(lanes) {
            for index in 0..count {
                terms[index] = add(&mut environment, shape.format(), terms[2 * index], terms[2 * index + 1]);
            }
        }
    }
    ex.report(&environment)?;
    let result = super::each(lanes, |lane| {
        (0..shape.lanes())
            .filter(|index| control >> index & 1 != 0)
            .fold(0, |result, index| shape.set(result, index, terms[lane][0]))
    });
    ex.set_result(result)
}
