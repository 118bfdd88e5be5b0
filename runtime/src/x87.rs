//! x87 instructions for translated code: what the helpers do with the guest's registers around one operation on the host.
//!
//! Only the common case is handled: the x87 is available, all exceptions are masked, no register is missing or in the way.
//! Everything else is declined before anything has changed, and left to the interpreter.

use std::cmp::Ordering;

use lstar_arch::control::cr0;
use lstar_arch::state::X87State;
use lstar_arch::{CpuState, Vendor};
use lstar_translator::x87::{Descriptor, HIGH_SHIFT, Operation, Source};

#[cfg(target_arch = "x86_64")]
use crate::host_x87 as host;

/// Exception flags; in the control word their masks.
const EXCEPTIONS: u16 = 0x3F;
/// Condition codes.
const C0: u16 = 1 << 8;
const C1: u16 = 1 << 9;
const C2: u16 = 1 << 10;
const C3: u16 = 1 << 14;
const CONDITIONS: u16 = C0 | C1 | C2 | C3;

/// Result of a helper that has done nothing.
const DECLINED: u64 = 1;

fn is_available(cpu: &CpuState) -> bool {
    cpu.cr0 & (cr0::EM | cr0::TS) == 0 && cpu.x87.control & EXCEPTIONS == EXCEPTIONS
}

/// Physical number of ST(`index`).
fn physical(x87: &X87State, index: u8) -> usize {
    usize::from(((x87.status >> 11) as u8 + index) & 7)
}

/// ST(`index`) if it is not empty.
fn st(x87: &X87State, index: u8) -> Option<usize> {
    let number = physical(x87, index);
    (x87.valid >> number & 1 != 0).then_some(number)
}

/// The register that a push would fill, if it is free.
fn room(x87: &X87State) -> Option<usize> {
    let number = physical(x87, 7);
    (x87.valid >> number & 1 == 0).then_some(number)
}

fn set_top(x87: &mut X87State, top: usize) {
    x87.status = x87.status & !(7 << 11) | (top as u16 & 7) << 11;
}

fn push(x87: &mut X87State, number: usize) {
    set_top(x87, number);
    x87.valid |= 1 << number;
}

fn pop(x87: &mut X87State, count: u8) {
    for _ in 0..count {
        let top = physical(x87, 0);
        x87.valid &= !(1 << top);
        set_top(x87, top + 1);
    }
}

/// Merges the host's exception flags and those condition codes that the operation defines.
fn merge(x87: &mut X87State, host_status: u16, conditions: u16) {
    x87.status = x87.status & !conditions | host_status & (conditions | EXCEPTIONS);
}

/// The selectors that go with the pointers. Intel's processors have deprecated them.
fn selectors(cpu: &CpuState, descriptor: Descriptor) -> [u16; 2] {
    if cpu.model.vendor != Vendor::Amd {
        return [0; 2];
    }
    let data = descriptor.segment.map_or(cpu.x87.selectors[1], |segment| cpu.segment(segment).selector);
    [cpu.segment(lstar_arch::SegmentIndex::Cs).selector, data]
}

/// Executes an instruction; see [`lstar_translator::abi::Helper::X87Execute`].
pub(crate) fn execute(cpu: &mut CpuState, bits: u64, operand: u64, rip: u64, offset: u64) -> u64 {
    let Some(descriptor) = Descriptor::unpack(bits) else { return DECLINED };
    if !is_available(cpu) {
        return DECLINED;
    }
    let high = (bits >> HIGH_SHIFT) as u16;
    let keeps_c1 = cpu.model.vendor == Vendor::Amd;
    let Some(result) = operate(&mut cpu.x87, descriptor, operand, high, keeps_c1) else { return DECLINED };
    if let Some(opcode) = descriptor.opcode {
        let selectors = selectors(cpu, descriptor);
        let x87 = &mut cpu.x87;
        x87.instruction_pointer = rip;
        x87.opcode = opcode;
        x87.selectors = selectors;
        if descriptor.segment.is_some() {
            x87.data_pointer = offset;
        }
    }
    result << 1
}

/// The operation proper: the flags of a comparison, else 0.
#[cfg(target_arch = "x86_64")]
fn operate(x87: &mut X87State, descriptor: Descriptor, operand: u64, high: u16, keeps_c1: bool) -> Option<u64> {
    use Operation as O;
    let destination = descriptor.destination;
    match descriptor.operation {
        O::Nothing => {}
        O::Load => load(x87, descriptor, operand, high)?,
        O::Store | O::StoreTruncated => {
            let (from, to) = (st(x87, 0)?, physical(x87, destination));
            x87.registers[to] = x87.registers[from];
            x87.valid |= 1 << to;
            x87.status &= !C1;
            pop(x87, descriptor.pops);
        }
        O::Exchange => {
            let (a, b) = (st(x87, destination)?, st(x87, descriptor.register)?);
            x87.registers.swap(a, b);
            x87.status &= !C1;
        }
        O::ConditionalMove => {
            let (a, b) = (st(x87, 0)?, st(x87, descriptor.register)?);
            if operand != 0 {
                x87.registers[a] = x87.registers[b];
            }
        }
        O::Add | O::Multiply | O::Subtract | O::SubtractReverse | O::Divide | O::DivideReverse => {
            let (a, b) = operands(x87, descriptor)?;
            host::prepare(x87.control, x87.status);
            let (left, right) = (x87.registers[a], x87.registers[b]);
            let status = host::arithmetic(
                descriptor.operation,
                descriptor.source,
                &mut x87.registers[a],
                &left,
                &right,
                operand,
            );
            merge(x87, status, C1);
            pop(x87, descriptor.pops);
        }
        O::Compare | O::CompareUnordered | O::Test => {
            let a = st(x87, 0)?;
            let b = match descriptor.source {
                Source::Register if descriptor.operation == O::Test => a,
                Source::Register => st(x87, compared(descriptor))?,
                _ => a,
            };
            host::prepare(x87.control, x87.status);
            let status =
                host::compare(descriptor.operation, descriptor.source, &x87.registers[a], &x87.registers[b], operand);
            merge(x87, status, CONDITIONS);
            pop(x87, descriptor.pops);
        }
        O::CompareFlags | O::CompareFlagsUnordered => {
            let (a, b) = (st(x87, 0)?, st(x87, descriptor.register)?);
            if let Some(order) = order(&x87.registers[a], &x87.registers[b]) {
                if !keeps_c1 {
                    x87.status &= !C1;
                }
                pop(x87, descriptor.pops);
                return Some(match order {
                    Ordering::Less => 1,
                    Ordering::Equal => 4,
                    Ordering::Greater => 0,
                });
            }
            host::prepare(x87.control, x87.status);
            let unordered = descriptor.operation == O::CompareFlagsUnordered;
            let (status, flags) = host::compare_flags(unordered, &x87.registers[a], &x87.registers[b]);
            merge(x87, status, 0);
            if !keeps_c1 {
                x87.status &= !C1;
            }
            pop(x87, descriptor.pops);
            return Some(flags);
        }
        O::Examine => {
            let a = st(x87, 0)?;
            let status = host::examine(&x87.registers[a]);
            x87.status = x87.status & !CONDITIONS | status & CONDITIONS;
        }
        O::ChangeSign | O::Absolute => {
            let a = st(x87, 0)?;
            let sign = &mut x87.registers[a][9];
            *sign = if descriptor.operation == O::Absolute { *sign & 0x7F } else { *sign ^ 0x80 };
            x87.status &= !C1;
        }
        O::SquareRoot | O::Round | O::Exponential => {
            let a = st(x87, 0)?;
            host::prepare(x87.control, x87.status);
            let status = host::unary(descriptor.operation, &mut x87.registers[a]);
            merge(x87, status, C1);
        }
        O::Sine | O::Cosine => {
            let a = st(x87, 0)?;
            host::prepare(x87.control, x87.status);
            let status = host::unary(descriptor.operation, &mut x87.registers[a]);
            merge(x87, status, C1 | C2);
        }
        O::Scale | O::Remainder | O::RemainderNearest => {
            let (a, b) = (st(x87, 0)?, st(x87, 1)?);
            let other = x87.registers[b];
            // Without a quotient some condition codes stay: that the interpreter decides.
            if descriptor.operation != O::Scale && !(is_number(&x87.registers[a]) && is_number(&other)) {
                return None;
            }
            host::prepare(x87.control, x87.status);
            let status = host::binary(descriptor.operation, &mut x87.registers[a], &other);
            let defined = if descriptor.operation == O::Scale { C1 } else { CONDITIONS };
            merge(x87, status, defined);
        }
        O::Logarithm | O::LogarithmOfNext | O::ArcTangent => {
            let (a, b) = (st(x87, 0)?, st(x87, 1)?);
            host::prepare(x87.control, x87.status);
            let x = x87.registers[a];
            let status = host::binary_popping(descriptor.operation, &x, &mut x87.registers[b]);
            merge(x87, status, C1);
            pop(x87, 1);
        }
        O::Extract | O::Tangent | O::SineCosine => {
            let (a, b) = (st(x87, 0)?, room(x87)?);
            if descriptor.operation != O::Extract && is_beyond_range(&x87.registers[a]) {
                return None;
            }
            host::prepare(x87.control, x87.status);
            let (first, second, status) = host::splitting(descriptor.operation, &x87.registers[a]);
            x87.registers[a] = first;
            x87.registers[b] = second;
            push(x87, b);
            merge(x87, status, if descriptor.operation == O::Extract { C1 } else { C1 | C2 });
        }
        O::One | O::Zero | O::Pi | O::Log2E | O::Log2Ten | O::LogTwo | O::LnTwo => {
            let number = room(x87)?;
            host::prepare(x87.control, x87.status);
            host::constant(descriptor.operation, &mut x87.registers[number]);
            x87.status &= !C1;
            push(x87, number);
        }
        O::Increment | O::Decrement => {
            let top = physical(x87, if descriptor.operation == O::Increment { 1 } else { 7 });
            set_top(x87, top);
            x87.status &= !C1;
        }
        O::Free => {
            let number = physical(x87, destination);
            x87.valid &= !(1 << number);
            x87.status &= !C1;
            pop(x87, descriptor.pops);
        }
        O::ClearExceptions => x87.status &= 0x7F00,
        O::Initialise => *x87 = X87State { registers: x87.registers, ..X87State::default() },
        O::LoadControl => {
            let control = operand as u16 & 0x1F3F | 0x40;
            if control & EXCEPTIONS != EXCEPTIONS {
                return None;
            }
            x87.control = control;
        }
    }
    Some(0)
}

#[cfg(not(target_arch = "x86_64"))]
fn operate(_: &mut X87State, _: Descriptor, _: u64, _: u16, _: bool) -> Option<u64> {
    None
}

/// Whether FPTAN and FSINCOS leave the angle alone: a number of at least 2^63.
#[cfg(target_arch = "x86_64")]
fn is_beyond_range(image: &[u8; 16]) -> bool {
    let exponent = u16::from_le_bytes([image[8], image[9]]) & 0x7FFF;
    (0x3FFF + 63..0x7FFF).contains(&exponent)
}

/// Index of the register that FCOM and its like compare with. FCOM names one register, FUCOM none or one as well, and the
/// decoder gives ST(0) first.
#[cfg(target_arch = "x86_64")]
fn compared(descriptor: Descriptor) -> u8 {
    descriptor.register
}

/// Destination and source of arithmetic; with a memory operand the source does not matter.
#[cfg(target_arch = "x86_64")]
fn operands(x87: &X87State, descriptor: Descriptor) -> Option<(usize, usize)> {
    if descriptor.source == Source::Register {
        Some((st(x87, descriptor.destination)?, st(x87, descriptor.register)?))
    } else {
        let a = st(x87, 0)?;
        Some((a, a))
    }
}

#[cfg(target_arch = "x86_64")]
fn load(x87: &mut X87State, descriptor: Descriptor, operand: u64, high: u16) -> Option<()> {
    let number = room(x87)?;
    match descriptor.source {
        Source::Register => x87.registers[number] = x87.registers[st(x87, descriptor.register)?],
        Source::F80 => {
            let image = u128::from(operand) | u128::from(high) << 64;
            x87.registers[number] = image.to_le_bytes();
        }
        source => match exactly(source, operand) {
            Some(image) => x87.registers[number] = image,
            None => {
                host::prepare(x87.control, x87.status);
                let status = host::load(source, operand, &mut x87.registers[number]);
                merge(x87, status, 0);
            }
        },
    }
    x87.status &= !C1;
    push(x87, number);
    Some(())
}

/// The image with these parts.
fn image(negative: bool, exponent: u64, significand: u64) -> [u8; 16] {
    let upper = exponent | u64::from(negative) << 15;
    (u128::from(significand) | u128::from(upper) << 64).to_le_bytes()
}

/// A memory operand as an extended value, if it is an ordinary number: then nothing is raised.
fn exactly(source: Source, operand: u64) -> Option<[u8; 16]> {
    let float = |exponent_bits: u32, fraction_bits: u32| {
        let mask = (1 << exponent_bits) - 1;
        let biased = operand >> fraction_bits & mask;
        let fraction = operand << (63 - fraction_bits) & !(1 << 63);
        let negative = operand >> (fraction_bits + exponent_bits) & 1 != 0;
        match biased {
            0 if fraction == 0 => Some(image(negative, 0, 0)),
            biased if biased == 0 || biased == mask => None,
            _ => Some(image(negative, biased + 0x3FFF - (mask >> 1), fraction | 1 << 63)),
        }
    };
    let integer = |value: i64| match value.unsigned_abs() {
        0 => Some(image(false, 0, 0)),
        magnitude => {
            let shift = magnitude.leading_zeros();
            Some(image(value < 0, 0x3FFF + 63 - u64::from(shift), magnitude << shift))
        }
    };
    match source {
        Source::F32 => float(8, 23),
        Source::F64 => float(11, 52),
        Source::I16 => integer((operand as i16).into()),
        Source::I32 => integer((operand as i32).into()),
        Source::I64 => integer(operand as i64),
        Source::Register | Source::F80 => None,
    }
}

/// A register as a double, if that is exact and normal.
fn exact_double(image: &[u8; 16]) -> Option<u64> {
    let bits = u128::from_le_bytes(*image);
    let (significand, upper) = (bits as u64, (bits >> 64) as u64 & 0xFFFF);
    let sign = upper >> 15 << 63;
    let exponent = (upper & 0x7FFF).wrapping_sub(0x3FFF - 0x3FF);
    if significand == 0 && upper & 0x7FFF == 0 {
        return Some(sign);
    }
    let ordinary = significand >> 63 != 0 && significand & 0x7FF == 0 && (1..0x7FF).contains(&exponent);
    ordinary.then_some(sign | exponent << 52 | significand << 1 >> 12)
}

/// Whether the register is a normal number and not zero.
fn is_number(image: &[u8; 16]) -> bool {
    image[7] & 0x80 != 0 && order_key(image).is_some()
}

/// A key that orders ordinary numbers, zeros among them; `None` for what needs a closer look.
fn order_key(image: &[u8; 16]) -> Option<i128> {
    let bits = u128::from_le_bytes(*image);
    let magnitude = bits & ((1 << 79) - 1);
    let exponent = (magnitude >> 64) as u64;
    let ordinary = bits as u64 >> 63 != 0 && (1..0x7FFF).contains(&exponent);
    (ordinary || magnitude == 0).then(|| if bits >> 79 & 1 != 0 { -(magnitude as i128) } else { magnitude as i128 })
}

/// How ordinary numbers compare.
fn order(a: &[u8; 16], b: &[u8; 16]) -> Option<Ordering> {
    Some(order_key(a)?.cmp(&order_key(b)?))
}

/// Converts ST(0) for a store; see [`lstar_translator::abi::Helper::X87Convert`].
#[cfg(target_arch = "x86_64")]
pub(crate) fn convert(cpu: &CpuState, bits: u64) -> Option<[u64; 3]> {
    let descriptor = Descriptor::unpack(bits)?;
    if !is_available(cpu) {
        return None;
    }
    let mut x87 = X87State { registers: [[0; 16]; 8], ..cpu.x87 };
    let image = &cpu.x87.registers[st(&x87, 0)?];
    let mut high = 0;
    let value = if descriptor.source == Source::F80 {
        high = u16::from_le_bytes([image[8], image[9]]);
        x87.status &= !C1;
        u64::from_le_bytes(std::array::from_fn(|index| image[index]))
    } else if let Some(value) = exact_double(image).filter(|_| descriptor.source == Source::F64) {
        x87.status &= !C1;
        value
    } else {
        host::prepare(x87.control, x87.status);
        let truncate = descriptor.operation == Operation::StoreTruncated;
        let (value, status) = host::store(descriptor.source, truncate, image);
        merge(&mut x87, status, C1);
        value
    };
    pop(&mut x87, descriptor.pops);
    let [code, data] = selectors(cpu, descriptor);
    Some([
        value,
        u64::from(x87.status) | u64::from(x87.valid) << 16 | u64::from(high) << 32,
        u64::from(code) | u64::from(data) << 16,
    ])
}

/// Converts nothing: there is no x87 here.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn convert(_: &CpuState, _: u64) -> Option<[u64; 3]> {
    None
}

/// Lets all interpreters of this process have the host's transcendental functions and approximations, which translated code
/// uses. Every [`crate::Machine`] does so.
#[cfg(target_arch = "x86_64")]
pub fn provide_transcendentals() {
    lstar_interpreter::provide_transcendentals(|function, x, y, control| {
        use lstar_interpreter::Transcendental as T;
        host::prepare(control, 0);
        let x = x.to_le_bytes();
        let mut result;
        let status = match function {
            T::Exponential | T::Sine | T::Cosine => {
                result = x;
                let operation = match function {
                    T::Exponential => Operation::Exponential,
                    T::Sine => Operation::Sine,
                    _ => Operation::Cosine,
                };
                host::unary(operation, &mut result)
            }
            T::Reciprocal | T::ReciprocalSquareRoot => {
                let [a, b, c, d, ..] = x;
                let single = host::approximation(function == T::Reciprocal, u32::from_le_bytes([a, b, c, d]));
                result = u128::from(single).to_le_bytes();
                0
            }
            T::Tangent => {
                let (tangent, _, status) = host::splitting(Operation::Tangent, &x);
                result = tangent;
                status
            }
            T::Logarithm | T::LogarithmOfNext | T::ArcTangent => {
                result = y.to_le_bytes();
                let operation = match function {
                    T::Logarithm => Operation::Logarithm,
                    T::LogarithmOfNext => Operation::LogarithmOfNext,
                    _ => Operation::ArcTangent,
                };
                host::binary_popping(operation, &x, &mut result)
            }
        };
        (u128::from_le_bytes(result), status)
    });
}

/// The interpreter computes everything itself.
#[cfg(not(target_arch = "x86_64"))]
pub fn provide_transcendentals() {}
