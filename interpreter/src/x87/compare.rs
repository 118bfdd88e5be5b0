//! x87 comparison and classification (SDM vol. 1, 8.3.6).

use std::cmp::Ordering;

use iced_x86::{Mnemonic, OpKind};
use lstar_arch::{Exception, GuestMemory, Rflags, Vendor};

use super::{C0, C1, C2, C3};
use crate::exec::{Exec, Op};
use crate::softfloat::{Class, Float, Format, flags};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    Some(match mnemonic {
        Mnemonic::Fcom | Mnemonic::Ficom => compare(ex, true, 0),
        Mnemonic::Fcomp | Mnemonic::Ficomp => compare(ex, true, 1),
        Mnemonic::Fcompp => compare(ex, true, 2),
        Mnemonic::Fucom => compare(ex, false, 0),
        Mnemonic::Fucomp => compare(ex, false, 1),
        Mnemonic::Fucompp => compare(ex, false, 2),
        Mnemonic::Fcomi => compare_to_flags(ex, true, 0),
        Mnemonic::Fcomip => compare_to_flags(ex, true, 1),
        Mnemonic::Fucomi => compare_to_flags(ex, false, 0),
        Mnemonic::Fucomip => compare_to_flags(ex, false, 1),
        Mnemonic::Ftst => {
            let (order, proceeds) = order(ex, Some(Float::zero(false)), true);
            if proceeds || compares_regardless(ex) {
                set_condition_codes(ex, order);
            }
            Ok(())
        }
        Mnemonic::Fxam => {
            examine(ex);
            Ok(())
        }
        _ => return None,
    })
}

/// Compares ST(0) with `other` and raises what that raises: the order, none if the operands are unordered, and whether no
/// unmasked exception keeps the comparison from taking effect.
fn order<M: GuestMemory>(ex: &mut Exec<'_, M>, other: Option<Float>, signal_quiet: bool) -> (Option<Ordering>, bool) {
    let first = ex.st(0).map(|image| Format::EXTENDED.unpack(image));
    let Some((a, b)) = first.zip(other) else {
        return (None, ex.stack_fault(false));
    };
    let mut environment = ex.x87_environment();
    let comparable = |float: &Float| !float.is_nan() && float.class != Class::Unsupported;
    let order = if comparable(&a) && comparable(&b) {
        if a.denormal || b.denormal {
            environment.raise(flags::DE);
        }
        Some(a.compare(&b))
    } else {
        if signal_quiet || a.class != Class::Quiet && !comparable(&a) || b.class != Class::Quiet && !comparable(&b) {
            environment.raise(flags::IE);
        }
        None
    };
    (order, ex.x87_report(&environment))
}

/// AMD's processors set condition codes or flags even if an exception of the comparison is unmasked; only the stack stays.
fn compares_regardless<M: GuestMemory>(ex: &Exec<'_, M>) -> bool {
    ex.cpu.model.vendor == Vendor::Amd
}

/// The second operand: the last explicit one, or ST(1).
fn second_operand<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Result<Option<Float>, Exception> {
    match ex.insn.op_count() {
        0 => Ok(ex.st(1).map(|image| Format::EXTENDED.unpack(image))),
        count if ex.insn.op0_kind() == OpKind::Register => ex.x87_operand(count - 1),
        _ => ex.x87_operand(0),
    }
}

fn compare<M: GuestMemory>(ex: &mut Exec<'_, M>, signal_quiet: bool, pops: u32) -> Op {
    let other = second_operand(ex)?;
    let (order, proceeds) = order(ex, other, signal_quiet);
    if proceeds || compares_regardless(ex) {
        set_condition_codes(ex, order);
    }
    if proceeds {
        (0..pops).for_each(|_| ex.pop_st());
    }
    Ok(())
}

fn set_condition_codes<M: GuestMemory>(ex: &mut Exec<'_, M>, order: Option<Ordering>) {
    ex.set_condition(C0 | C2 | C3, false);
    let codes = match order {
        None => C0 | C2 | C3,
        Some(Ordering::Greater) => 0,
        Some(Ordering::Less) => C0,
        Some(Ordering::Equal) => C3,
    };
    ex.set_condition(codes, true);
}

fn compare_to_flags<M: GuestMemory>(ex: &mut Exec<'_, M>, signal_quiet: bool, pops: u32) -> Op {
    let other = second_operand(ex)?;
    let old_c1 = ex.cpu.x87.status & C1 != 0;
    let stack_fault = ex.st(0).is_none() || other.is_none();
    let (order, proceeds) = order(ex, other, signal_quiet);
    if compares_regardless(ex) && !stack_fault {
        // They keep C1 as well.
        ex.set_condition(C1, old_c1);
    }
    if proceeds || compares_regardless(ex) {
        let flags = crate::sse::order_flags(order);
        ex.cpu.rflags = ex.cpu.rflags & !Rflags::STATUS.bits() | flags.bits();
    }
    if proceeds {
        (0..pops).for_each(|_| ex.pop_st());
    }
    Ok(())
}

/// FXAM: the class of ST(0) in C3, C2 and C0, its sign in C1, empty or not.
fn examine<M: GuestMemory>(ex: &mut Exec<'_, M>) {
    let image = u128::from_le_bytes(ex.cpu.x87.registers[ex.physical(0)]);
    let float = Format::EXTENDED.unpack(image);
    let codes = match float.class {
        _ if ex.st(0).is_none() => C3 | C0,
        Class::Unsupported => 0,
        Class::Quiet | Class::Signaling => C0,
        Class::Infinite => C2 | C0,
        Class::Zero => C3,
        Class::Finite if float.denormal => C3 | C2,
        Class::Finite => C2,
    };
    ex.set_condition(C0 | C1 | C2 | C3, false);
    ex.set_condition(codes | if float.negative { C1 } else { 0 }, true);
}
