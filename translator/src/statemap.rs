//! Where translated code keeps guest state at its fault sites: the map that a fault handler restores the block from.
//!
//! At a [`crate::Site`] some of the [`crate::abi::VcpuBlock`] is out of date, because registers that have changed are
//! in host registers or stack slots, or follow from such by a short computation. The site's [`Entry`]s name those parts
//! of the block and the [`Location`] of the value of each.

use serde::{Deserialize, Serialize};

/// What a fault handler knows of the stopped host code.
pub trait HostState {
    /// A general-purpose register by its hardware encoding.
    fn general(&self, register: u8) -> u64;
    /// A vector register by its hardware encoding.
    fn vector(&self, register: u8) -> u128;
    /// 16 bytes of the stack at `offset` from the frame pointer. Only offsets from the map are asked for.
    fn frame(&self, offset: i32) -> u128;
    /// Whether floating-point operations of the stopped code take denormal numbers for zero.
    fn denormals_are_zero(&self) -> bool;
}

/// One part of the block that is elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Offset in the block.
    pub offset: u16,
    /// Width of the value in bits: 128, or at most 64, in which case it is zero-extended to 64.
    pub bits: u8,
    /// Index into [`StateMap::locations`].
    pub location: u32,
}

impl Entry {
    /// Bytes to be written to the block.
    #[must_use]
    pub const fn bytes(self) -> usize {
        if self.bits > 64 { 16 } else { 8 }
    }
}

/// Where a value is. Bits above the value's width are arbitrary unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Location {
    /// In a general-purpose register, by hardware encoding.
    General(u8),
    /// In a vector register, by hardware encoding.
    Vector(u8),
    /// In memory at this offset from the frame pointer.
    Frame(i32),
    /// It is this.
    Constant(u64),
    /// Computed from other locations, which come earlier in the map: operation, width of its operands in bits, operands (an
    /// unused one repeats the first).
    Computed(Operation, u8, [u32; 3]),
}

/// How a value is computed from others. Operands have the operation's width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operation {
    /// The operand, zero-extended.
    ZeroExtend,
    /// The operand, sign-extended.
    SignExtend,
    /// Sum.
    Add,
    /// Difference.
    Subtract,
    /// Product.
    Multiply,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
    /// Left shift by the second operand modulo the width.
    ShiftLeft,
    /// Logical right shift, likewise.
    ShiftRight,
    /// Arithmetic right shift, likewise.
    ShiftRightSigned,
    /// Two's complement.
    Negate,
    /// One's complement.
    Not,
    /// Number of one bits.
    CountOnes,
    /// 1 if the relation holds between the operands, else 0.
    Compare(Relation),
    /// As `Compare`, of floating-point numbers.
    CompareFloat(FloatRelation),
    /// Second operand if the first, which has the operation's width, is not zero, else third.
    Select,
}

/// A relation between integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Relation {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// Below as signed numbers.
    Less,
    /// Below or equal as signed numbers.
    LessOrEqual,
    /// Above as signed numbers.
    Greater,
    /// Above or equal as signed numbers.
    GreaterOrEqual,
    /// Below as unsigned numbers.
    Below,
    /// Below or equal as unsigned numbers.
    BelowOrEqual,
    /// Above as unsigned numbers.
    Above,
    /// Above or equal as unsigned numbers.
    AboveOrEqual,
}

/// A set of outcomes of a floating-point comparison: the relation holds if the operands' outcome is among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FloatRelation {
    /// The first is below the second.
    pub less: bool,
    /// They are equal.
    pub equal: bool,
    /// The first is above the second.
    pub greater: bool,
    /// At least one is not a number.
    pub unordered: bool,
}

/// The locations of a region's values at its sites.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMap {
    /// What [`crate::Site::entries`] index.
    pub entries: Vec<Entry>,
    /// What [`Entry::location`] indexes.
    pub locations: Vec<Location>,
}

impl StateMap {
    /// The value at a location. Async-signal-safe. Indices that are out of range or do not point backwards give 0.
    #[must_use]
    pub fn value(&self, location: u32, host: &dyn HostState) -> u128 {
        match self.locations.get(location as usize) {
            None => 0,
            Some(&Location::General(register)) => host.general(register).into(),
            Some(&Location::Vector(register)) => host.vector(register),
            Some(&Location::Frame(offset)) => host.frame(offset),
            Some(&Location::Constant(value)) => value.into(),
            Some(&Location::Computed(operation, bits, operands)) => {
                let operand = |index: usize| {
                    let at = operands[index];
                    if at < location { self.value(at, host) } else { 0 }
                };
                compute(operation, bits, operand, || host.denormals_are_zero())
            }
        }
    }
}

fn mask(bits: u8) -> u64 {
    u64::MAX >> 64u32.saturating_sub(u32::from(bits).max(1))
}

fn sign_extend(value: u64, bits: u8) -> i64 {
    let unused = 64u32.saturating_sub(u32::from(bits));
    (value << unused) as i64 >> unused
}

fn compute(operation: Operation, bits: u8, operand: impl Fn(usize) -> u128, flush: impl Fn() -> bool) -> u128 {
    // A value that moves between register classes keeps all its bits.
    if bits > 64 {
        return operand(0);
    }
    let at = |index: usize| operand(index) as u64 & mask(bits);
    let signed = |index: usize| sign_extend(at(index), bits);
    let count = || (at(1) % u64::from(bits.max(1))) as u32;
    let result = match operation {
        Operation::ZeroExtend => at(0),
        Operation::SignExtend => signed(0) as u64,
        Operation::Add => at(0).wrapping_add(at(1)),
        Operation::Subtract => at(0).wrapping_sub(at(1)),
        Operation::Multiply => at(0).wrapping_mul(at(1)),
        Operation::And => at(0) & at(1),
        Operation::Or => at(0) | at(1),
        Operation::Xor => at(0) ^ at(1),
        Operation::ShiftLeft => at(0) << count(),
        Operation::ShiftRight => at(0) >> count(),
        Operation::ShiftRightSigned => (signed(0) >> count()) as u64,
        Operation::Negate => at(0).wrapping_neg(),
        Operation::Not => !at(0),
        Operation::CountOnes => at(0).count_ones().into(),
        Operation::Compare(relation) => {
            let (a, b, x, y) = (at(0), at(1), signed(0), signed(1));
            let holds = match relation {
                Relation::Equal => a == b,
                Relation::NotEqual => a != b,
                Relation::Less => x < y,
                Relation::LessOrEqual => x <= y,
                Relation::Greater => x > y,
                Relation::GreaterOrEqual => x >= y,
                Relation::Below => a < b,
                Relation::BelowOrEqual => a <= b,
                Relation::Above => a > b,
                Relation::AboveOrEqual => a >= b,
            };
            return holds.into();
        }
        Operation::CompareFloat(relation) => {
            let number = |index: usize| {
                let (number, normal) = if bits == 32 {
                    let number = f32::from_bits(at(index) as u32);
                    (f64::from(number), !number.is_subnormal())
                } else {
                    let number = f64::from_bits(at(index));
                    (number, !number.is_subnormal())
                };
                if normal || !flush() { number } else { 0.0 }
            };
            let outcome = number(0).partial_cmp(&number(1));
            let holds = match outcome {
                Some(std::cmp::Ordering::Less) => relation.less,
                Some(std::cmp::Ordering::Equal) => relation.equal,
                Some(std::cmp::Ordering::Greater) => relation.greater,
                None => relation.unordered,
            };
            return holds.into();
        }
        Operation::Select => return if at(0) != 0 { operand(1) } else { operand(2) },
    };
    if operation == Operation::SignExtend { result.into() } else { (result & mask(bits)).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host;

    impl HostState for Host {
        fn general(&self, register: u8) -> u64 {
            0xFFFF_FFFF_0000_0080 + u64::from(register)
        }
        fn vector(&self, register: u8) -> u128 {
            u128::from(f64::to_bits(1.5)) | u128::from(register) << 64
        }
        fn frame(&self, offset: i32) -> u128 {
            offset as u128
        }
        fn denormals_are_zero(&self) -> bool {
            true
        }
    }

    fn evaluate(operation: Operation, bits: u8) -> u128 {
        let locations =
            vec![Location::General(5), Location::Constant(3), Location::Computed(operation, bits, [0, 1, 0])];
        StateMap { entries: Vec::new(), locations }.value(2, &Host)
    }

    #[test]
    fn operands_are_cut_to_the_operations_width() {
        assert_eq!(evaluate(Operation::ZeroExtend, 32), 0x85);
        assert_eq!(evaluate(Operation::SignExtend, 8), u128::from(-123i64 as u64));
        assert_eq!(evaluate(Operation::Add, 32), 0x88);
        assert_eq!(evaluate(Operation::Subtract, 8), 0x82);
        assert_eq!(evaluate(Operation::ShiftRightSigned, 8), 0xF0);
        assert_eq!(evaluate(Operation::Not, 16), 0xFF7A);
        assert_eq!(evaluate(Operation::Compare(Relation::Less), 8), 1);
        assert_eq!(evaluate(Operation::Compare(Relation::Below), 8), 0);
        assert_eq!((evaluate(Operation::Select, 8), evaluate(Operation::Select, 4)), (3, 3));
    }

    #[test]
    fn an_index_that_does_not_point_backwards_is_harmless() {
        let locations = vec![Location::Computed(Operation::Add, 64, [0, 7, 0])];
        assert_eq!(StateMap { entries: Vec::new(), locations }.value(0, &Host), 0);
    }

    #[test]
    fn floating_point_comparisons_know_unordered() {
        let relation = FloatRelation { less: false, equal: false, greater: true, unordered: true };
        let of = |other: f64| {
            let compare = Location::Computed(Operation::CompareFloat(relation), 64, [0, 1, 0]);
            let locations = vec![Location::Vector(1), Location::Constant(other.to_bits()), compare];
            StateMap { entries: Vec::new(), locations }.value(2, &Host)
        };
        assert_eq!([of(1.0), of(1.5), of(2.0), of(f64::NAN), of(5e-324)], [1, 0, 0, 1, 1]);
    }
}
