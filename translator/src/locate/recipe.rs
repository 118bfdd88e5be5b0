//! How a value follows from others: what the state map can compute instead of finding it somewhere.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{Function, InstructionData, Opcode, Type, Value, ValueDef};
use smallvec::SmallVec;

use crate::statemap::{FloatRelation, Operation, Relation};

/// Longest chain of computations.
pub(super) const DEPTH: u32 = 24;

/// A value that follows from others.
pub(super) enum Recipe {
    /// It is this.
    Constant(u64),
    /// The operation, the width of its operands in bits, the operands.
    Computed(Operation, u8, SmallVec<[Value; 3]>),
}

fn relation(code: IntCC) -> Relation {
    match code {
        IntCC::Equal => Relation::Equal,
        IntCC::NotEqual => Relation::NotEqual,
        IntCC::SignedLessThan => Relation::Less,
        IntCC::SignedGreaterThanOrEqual => Relation::GreaterOrEqual,
        IntCC::SignedGreaterThan => Relation::Greater,
        IntCC::SignedLessThanOrEqual => Relation::LessOrEqual,
        IntCC::UnsignedLessThan => Relation::Below,
        IntCC::UnsignedGreaterThanOrEqual => Relation::AboveOrEqual,
        IntCC::UnsignedGreaterThan => Relation::Above,
        IntCC::UnsignedLessThanOrEqual => Relation::BelowOrEqual,
    }
}

fn float_relation(code: FloatCC) -> FloatRelation {
    let (less, equal, greater, unordered) = match code {
        FloatCC::Ordered => (true, true, true, false),
        FloatCC::Unordered => (false, false, false, true),
        FloatCC::Equal => (false, true, false, false),
        FloatCC::NotEqual => (true, false, true, true),
        FloatCC::OrderedNotEqual => (true, false, true, false),
        FloatCC::UnorderedOrEqual => (false, true, false, true),
        FloatCC::LessThan => (true, false, false, false),
        FloatCC::LessThanOrEqual => (true, true, false, false),
        FloatCC::GreaterThan => (false, false, true, false),
        FloatCC::GreaterThanOrEqual => (false, true, true, false),
        FloatCC::UnorderedOrLessThan => (true, false, false, true),
        FloatCC::UnorderedOrLessThanOrEqual => (true, true, false, true),
        FloatCC::UnorderedOrGreaterThan => (false, false, true, true),
        FloatCC::UnorderedOrGreaterThanOrEqual => (false, true, true, true),
    };
    FloatRelation { less, equal, greater, unordered }
}

fn width(ty: Type) -> Option<u8> {
    let scalar = ty.is_int() || ty.is_float();
    (scalar && ty.bits() <= 64 || ty.is_vector() && ty.bits() == 128).then_some(ty.bits() as u8)
}

/// How `value` follows from others, if it does.
pub(super) fn recipe(func: &Function, value: Value) -> Option<Recipe> {
    let dfg = &func.dfg;
    let ValueDef::Result(inst, 0) = dfg.value_def(value) else { return None };
    let bits = |value: Value| width(dfg.value_type(value));
    let integer = |value: Value| dfg.value_type(value).is_int() && dfg.value_type(value).bits() <= 64;
    let computed =
        |operation, bits, operands: &[Value]| Some(Recipe::Computed(operation, bits, SmallVec::from_slice(operands)));
    match dfg.insts[inst] {
        InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } => Some(Recipe::Constant(imm.bits() as u64)),
        InstructionData::UnaryIeee32 { imm, .. } => Some(Recipe::Constant(imm.bits().into())),
        InstructionData::UnaryIeee64 { imm, .. } => Some(Recipe::Constant(imm.bits())),
        InstructionData::UnaryConst { opcode: Opcode::Vconst, constant_handle } => {
            let zero = dfg.constants.get(constant_handle).iter().all(|&byte| byte == 0);
            zero.then_some(Recipe::Constant(0))
        }
        InstructionData::LoadNoOffset { opcode: Opcode::Bitcast, arg, .. } => {
            computed(Operation::ZeroExtend, bits(arg)?, &[arg])
        }
        InstructionData::Unary { opcode, arg } if integer(arg) && integer(value) => {
            let operation = match opcode {
                Opcode::Uextend => Operation::ZeroExtend,
                Opcode::Ireduce => return computed(Operation::ZeroExtend, bits(value)?, &[arg]),
                Opcode::Sextend => Operation::SignExtend,
                Opcode::Ineg => Operation::Negate,
                Opcode::Bnot => Operation::Not,
                Opcode::Popcnt => Operation::CountOnes,
                _ => return None,
            };
            computed(operation, bits(arg)?, &[arg])
        }
        InstructionData::Binary { opcode, args } if integer(value) && args.iter().all(|&arg| integer(arg)) => {
            // Shift counts of any width have the few bits that matter.
            let operation = match opcode {
                Opcode::Iadd => Operation::Add,
                Opcode::Isub => Operation::Subtract,
                Opcode::Imul => Operation::Multiply,
                Opcode::Band => Operation::And,
                Opcode::Bor => Operation::Or,
                Opcode::Bxor => Operation::Xor,
                Opcode::Ishl => Operation::ShiftLeft,
                Opcode::Ushr => Operation::ShiftRight,
                Opcode::Sshr => Operation::ShiftRightSigned,
                _ => return None,
            };
            computed(operation, bits(value)?, &args)
        }
        InstructionData::IntCompare { opcode: Opcode::Icmp, args, cond } if integer(args[0]) => {
            computed(Operation::Compare(relation(cond)), bits(args[0])?, &args)
        }
        InstructionData::FloatCompare { opcode: Opcode::Fcmp, args, cond }
            if matches!(dfg.value_type(args[0]).bits(), 32 | 64) =>
        {
            computed(Operation::CompareFloat(float_relation(cond)), bits(args[0])?, &args)
        }
        // A choice of floating-point numbers can be MINSD and its like, which makes zeros of denormals if MXCSR says so.
        InstructionData::Ternary { opcode: Opcode::Select, args } if integer(args[0]) && integer(value) => {
            // The width is that of what decides.
            computed(Operation::Select, bits(value).and(bits(args[0]))?, &args)
        }
        _ => None,
    }
}
