//! Fused multiply-add (SDM vol. 1, 14.5).

use iced_x86::Mnemonic;
use lstar_arch::GuestMemory;

use super::lanes;
use crate::exec::{Exec, Op};
use crate::softfloat::{Class, Environment, Format, flags};
use crate::sse::float::Shape;

/// What is done with the product and the addend.
#[derive(Clone, Copy)]
enum Kind {
    /// `a * b + c`.
    Add,
    /// `a * b - c`.
    Subtract,
    /// `-(a * b) + c`.
    NegatedAdd,
    /// `-(a * b) - c`.
    NegatedSubtract,
    /// Subtracts in even elements, adds in odd ones.
    AddSubtract,
    /// Adds in even elements, subtracts in odd ones.
    SubtractAdd,
}

impl Kind {
    /// Whether the product and the addend are negated in element `index`.
    fn signs(self, index: u32) -> (bool, bool) {
        match self {
            Self::Add => (false, false),
            Self::Subtract => (false, true),
            Self::NegatedAdd => (true, false),
            Self::NegatedSubtract => (true, true),
            Self::AddSubtract => (false, index & 1 == 0),
            Self::SubtractAdd => (false, index & 1 != 0),
        }
    }
}

/// Which operands are multiplied and which is added, by the number in the mnemonic.
type Order = [usize; 3];
const O132: Order = [0, 2, 1];
const O213: Order = [1, 0, 2];
const O231: Order = [1, 2, 0];

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    let (kind, order, shape) = operation(mnemonic)?;
    Some(multiply_add(ex, kind, order, shape))
}

fn operation(mnemonic: Mnemonic) -> Option<(Kind, Order, Shape)> {
    use Kind::{Add, AddSubtract, NegatedAdd, NegatedSubtract, Subtract, SubtractAdd};
    use Mnemonic as N;
    use Shape::{PackedDouble as PD, PackedSingle as PS, ScalarDouble as SD, ScalarSingle as SS};
    Some(match mnemonic {
        N::Vfmadd132ps => (Add, O132, PS),
        N::Vfmadd132pd => (Add, O132, PD),
        N::Vfmadd132ss => (Add, O132, SS),
        N::Vfmadd132sd => (Add, O132, SD),
        N::Vfmadd213ps => (Add, O213, PS),
        N::Vfmadd213pd => (Add, O213, PD),
        N::Vfmadd213ss => (Add, O213, SS),
        N::Vfmadd213sd => (Add, O213, SD),
        N::Vfmadd231ps => (Add, O231, PS),
        N::Vfmadd231pd => (Add, O231, PD),
        N::Vfmadd231ss => (Add, O231, SS),
        N::Vfmadd231sd => (Add, O231, SD),
        N::Vfmsub132ps => (Subtract, O132, PS),
        N::Vfmsub132pd => (Subtract, O132, PD),
        N::Vfmsub132ss => (Subtract, O132, SS),
        N::Vfmsub132sd => (Subtract, O132, SD),
        N::Vfmsub213ps => (Subtract, O213, PS),
        N::Vfmsub213pd => (Subtract, O213, PD),
        N::Vfmsub213ss => (Subtract, O213, SS),
        N::Vfmsub213sd => (Subtract, O213, SD),
        N::Vfmsub231ps => (Subtract, O231, PS),
        N::Vfmsub231pd => (Subtract, O231, PD),
        N::Vfmsub231ss => (Subtract, O231, SS),
        N::Vfmsub231sd => (Subtract, O231, SD),
        N::Vfnmadd132ps => (NegatedAdd, O132, PS),
        N::Vfnmadd132pd => (NegatedAdd, O132, PD),
        N::Vfnmadd132ss => (NegatedAdd, O132, SS),
        N::Vfnmadd132sd => (NegatedAdd, O132, SD),
        N::Vfnmadd213ps => (NegatedAdd, O213, PS),
        N::Vfnmadd213pd => (NegatedAdd, O213, PD),
        N::Vfnmadd213ss => (NegatedAdd, O213, SS),
        N::Vfnmadd213sd => (NegatedAdd, O213, SD),
        N::Vfnmadd231ps => (NegatedAdd, O231, PS),
        N::Vfnmadd231pd => (NegatedAdd, O231, PD),
        N::Vfnmadd231ss => (NegatedAdd, O231, SS),
        N::Vfnmadd231sd => (NegatedAdd, O231, SD),
        N::Vfnmsub132ps => (NegatedSubtract, O132, PS),
        N::Vfnmsub132pd => (NegatedSubtract, O132, PD),
        N::Vfnmsub132ss => (NegatedSubtract, O132, SS),
        N::Vfnmsub132sd => (NegatedSubtract, O132, SD),
        N::Vfnmsub213ps => (NegatedSubtract, O213, PS),
        N::Vfnmsub213pd => (NegatedSubtract, O213, PD),
        N::Vfnmsub213ss => (NegatedSubtract, O213, SS),
        N::Vfnmsub213sd => (NegatedSubtract, O213, SD),
        N::Vfnmsub231ps => (NegatedSubtract, O231, PS),
        N::Vfnmsub231pd => (NegatedSubtract, O231, PD),
        N::Vfnmsub231ss => (NegatedSubtract, O231, SS),
        N::Vfnmsub231sd => (NegatedSubtract, O231, SD),
        N::Vfmaddsub132ps => (AddSubtract, O132, PS),
        N::Vfmaddsub132pd => (AddSubtract, O132, PD),
        N::Vfmaddsub213ps => (AddSubtract, O213, PS),
        N::Vfmaddsub213pd => (AddSubtract, O213, PD),
        N::Vfmaddsub231ps => (AddSubtract, O231, PS),
        N::Vfmaddsub231pd => (AddSubtract, O231, PD),
        N::Vfmsubadd132ps => (SubtractAdd, O132, PS),
        N::Vfmsubadd132pd => (SubtractAdd, O132, PD),
        N::Vfmsubadd213ps => (SubtractAdd, O213, PS),
        N::Vfmsubadd213pd => (SubtractAdd, O213, PD),
        N::Vfmsubadd231ps => (SubtractAdd, O231, PS),
        N::Vfmsubadd231pd => (SubtractAdd, O231, PD),
        _ => return None,
    })
}

fn multiply_add<M: GuestMemory>(ex: &mut Exec<'_, M>, kind: Kind, order: Order, shape: Shape) -> Op {
    let operands = [ex.wide_source(0)?, ex.wide_source(1)?, ex.wide_source(2)?];
    let scalar = matches!(shape, Shape::ScalarSingle | Shape::ScalarDouble);
    let count = if scalar { 1 } else { lanes(ex) };
    let mut environment = Environment::from_mxcsr(ex.cpu.mxcsr);
    // The scalar forms keep the rest of the destination's low lane.
    let mut result = [if scalar { operands[0][0] } else { 0 }, 0];
    for (lane, slot) in result.iter_mut().enumerate().take(count) {
        for index in 0..shape.lanes() {
            let [a, b, c] = order.map(|operand| shape.get(operands[operand][lane], index));
            let value = element(&mut environment, shape.format(), [a, b, c], kind.signs(index));
            *slot = shape.set(*slot, index, value);
        }
    }
    ex.report(&environment)?;
    ex.set_result(result)
}

/// One element. NaNs are passed on unnegated, the first of multiplicand, multiplier and addend.
fn element(
    environment: &mut Environment,
    format: &Format,
    operands: [u64; 3],
    (negate_product, negate_addend): (bool, bool),
) -> u64 {
    let [a, b, c] = operands.map(|bits| environment.operand(format, bits.into()));
    let result = match [a, b, c].into_iter().find(|operand| operand.is_nan()) {
        Some(nan) => {
            if [a, b, c].iter().any(|operand| operand.class == Class::Signaling) {
                environment.raise(flags::IE);
            }
            nan.quieted()
        }
        None => {
            let a = if negate_product { a.negated() } else { a };
            let c = if negate_addend { c.negated() } else { c };
            environment.multiply_add(format, a, b, c)
        }
    };
    format.pack(result) as u64
}
