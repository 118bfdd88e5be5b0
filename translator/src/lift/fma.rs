//! FMA3 (SDM vol. 1, 14.5). Lifted only where the host has FMA: Cranelift would call a library otherwise.
//!
//! Where several operands are NaNs the instructions prefer the first factor, then the second, then the summand, factors
//! numbered as in their names. Cranelift's `fma` of (x, y, z) becomes VFMADD213 x, y, z, which prefers y; so the first factor
//! is passed second. The other one is made opaque: as a load it would be taken for the operand that can be memory, in a form
//! that prefers it.

use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic};

use super::{Lifter, only_if};
use crate::emit::{Emitter, Halves, Lifted, NotLifted, is_wide};
use crate::host_op::{HostFeatures, HostOp};

/// What is computed from first factor, second factor and summand.
#[derive(Clone, Copy)]
enum Kind {
    /// Product and summand, each negated or not.
    Plain { negate_product: bool, negate_summand: bool },
    /// Alternating, by a host operation.
    Alternating { singles: HostOp, doubles: HostOp },
}

/// The number in a mnemonic: which operands are first factor, second factor and summand.
type Order = [u32; 3];

const ORDER_132: Order = [0, 2, 1];
const ORDER_213: Order = [1, 0, 2];
const ORDER_231: Order = [1, 2, 0];

macro_rules! family {
    ($mnemonic:expr, $($kind:expr => $p132:ident $p213:ident $p231:ident, $d132:ident $d213:ident $d231:ident
        $(, $s132:ident $s213:ident $s231:ident, $t132:ident $t213:ident $t231:ident)?;)*) => {
        match $mnemonic {
            $(
                Mnemonic::$p132 => Some(($kind, ORDER_132, types::F32X4)),
                Mnemonic::$p213 => Some(($kind, ORDER_213, types::F32X4)),
                Mnemonic::$p231 => Some(($kind, ORDER_231, types::F32X4)),
                Mnemonic::$d132 => Some(($kind, ORDER_132, types::F64X2)),
                Mnemonic::$d213 => Some(($kind, ORDER_213, types::F64X2)),
                Mnemonic::$d231 => Some(($kind, ORDER_231, types::F64X2)),
                $(
                    Mnemonic::$s132 => Some(($kind, ORDER_132, types::F32)),
                    Mnemonic::$s213 => Some(($kind, ORDER_213, types::F32)),
                    Mnemonic::$s231 => Some(($kind, ORDER_231, types::F32)),
                    Mnemonic::$t132 => Some(($kind, ORDER_132, types::F64)),
                    Mnemonic::$t213 => Some(($kind, ORDER_213, types::F64)),
                    Mnemonic::$t231 => Some(($kind, ORDER_231, types::F64)),
                )?
            )*
            _ => None,
        }
    };
}

fn operation(mnemonic: Mnemonic) -> Option<(Kind, Order, Type)> {
    const ADD: Kind = Kind::Plain { negate_product: false, negate_summand: false };
    const SUBTRACT: Kind = Kind::Plain { negate_product: false, negate_summand: true };
    const NEGATED_ADD: Kind = Kind::Plain { negate_product: true, negate_summand: false };
    const NEGATED_SUBTRACT: Kind = Kind::Plain { negate_product: true, negate_summand: true };
    const ADD_SUBTRACT: Kind = Kind::Alternating { singles: HostOp::FmaddsubSingles, doubles: HostOp::FmaddsubDoubles };
    const SUBTRACT_ADD: Kind = Kind::Alternating { singles: HostOp::FmsubaddSingles, doubles: HostOp::FmsubaddDoubles };
    family! { mnemonic,
        ADD => Vfmadd132ps Vfmadd213ps Vfmadd231ps, Vfmadd132pd Vfmadd213pd Vfmadd231pd,
            Vfmadd132ss Vfmadd213ss Vfmadd231ss, Vfmadd132sd Vfmadd213sd Vfmadd231sd;
        SUBTRACT => Vfmsub132ps Vfmsub213ps Vfmsub231ps, Vfmsub132pd Vfmsub213pd Vfmsub231pd,
            Vfmsub132ss Vfmsub213ss Vfmsub231ss, Vfmsub132sd Vfmsub213sd Vfmsub231sd;
        NEGATED_ADD => Vfnmadd132ps Vfnmadd213ps Vfnmadd231ps, Vfnmadd132pd Vfnmadd213pd Vfnmadd231pd,
            Vfnmadd132ss Vfnmadd213ss Vfnmadd231ss, Vfnmadd132sd Vfnmadd213sd Vfnmadd231sd;
        NEGATED_SUBTRACT => Vfnmsub132ps Vfnmsub213ps Vfnmsub231ps, Vfnmsub132pd Vfnmsub213pd Vfnmsub231pd,
            Vfnmsub132ss Vfnmsub213ss Vfnmsub231ss, Vfnmsub132sd Vfnmsub213sd Vfnmsub231sd;
        ADD_SUBTRACT => Vfmaddsub132ps Vfmaddsub213ps Vfmaddsub231ps, Vfmaddsub132pd Vfmaddsub213pd Vfmaddsub231pd;
        SUBTRACT_ADD => Vfmsubadd132ps Vfmsubadd213ps Vfmsubadd231ps, Vfmsubadd132pd Vfmsubadd213pd Vfmsubadd231pd;
    }
}

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    operation(mnemonic).is_some().then_some(fused as Lifter)
}

fn fused(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(e.host_has(HostFeatures::FMA))?;
    let (kind, order, ty) = operation(insn.mnemonic()).ok_or(NotLifted)?;
    if !ty.is_vector() {
        let [x, y, z] = order.map(|index| e.read_scalar(insn, index, ty));
        let result = compute(e, kind, [x?, y?, z?])?;
        // The destination's other lanes stay, whichever operand it is.
        e.set_xmm_lane(insn.op0_register(), 0, result);
        return Ok(());
    }
    let wide = is_wide(insn);
    let [x, y, z] = order.map(|index| e.halves(insn, index, ty, wide));
    let (x, y, z) = (x?, y?, z?);
    let low = compute(e, kind, [x.low, y.low, z.low])?;
    let high = match (x.high, y.high, z.high) {
        (Some(x), Some(y), Some(z)) => Some(compute(e, kind, [x, y, z])?),
        _ => None,
    };
    e.set_halves(insn.op0_register(), Halves { low, high });
    Ok(())
}

fn compute(e: &mut Emitter<'_>, kind: Kind, [first, second, summand]: [Value; 3]) -> Result<Value, NotLifted> {
    match kind {
        Kind::Plain { negate_product, negate_summand } => {
            let second = e.opaque(second);
            let first = if negate_product { e.b.ins().fneg(first) } else { first };
            let summand = if negate_summand { e.b.ins().fneg(summand) } else { summand };
            Ok(e.b.ins().fma(second, first, summand))
        }
        Kind::Alternating { singles, doubles } => {
            let ty = e.type_of(first);
            let op = if ty == types::F32X4 { singles } else { doubles };
            let result = e.host_op(op, &[second, first, summand])?;
            Ok(e.reinterpret(result, ty))
        }
    }
}
