//! x87 and MMX registers in states and outcomes.

use std::fmt::Write as _;

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind};
use lstar_arch::state::X87State;

use super::random::Random;

/// The bits of an 80-bit register.
const REGISTER: u128 = (1 << 80) - 1;
/// As FNINIT leaves it.
const INITIAL_CONTROL: u16 = 0x37F;

/// x87 state. The pointers to the last instruction and operand are not compared: what FXSAVE stores of them depends on the
/// vendor, and on whether the system has switched threads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct X87 {
    /// Physical registers R0 to R7; the low 64 bits are MM0 to MM7.
    pub registers: [u128; 8],
    /// Control word.
    pub control: u16,
    /// Status word.
    pub status: u16,
    /// Bit i: R(i) is not empty.
    pub valid: u8,
}

impl Default for X87 {
    fn default() -> Self {
        Self { registers: [0; 8], control: INITIAL_CONTROL, status: 0, valid: 0 }
    }
}

impl std::fmt::Debug for X87 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let registers = self.registers.map(|register| format!("{register:#x}")).join(", ");
        let Self { control, status, valid, .. } = self;
        write!(f, "X87 {{ registers: [{registers}], control: {control:#x}, status: {status:#x}, valid: {valid:#x} }}")
    }
}

impl X87 {
    /// The part of a processor's state that is compared.
    #[must_use]
    pub fn of(state: &X87State) -> Self {
        Self {
            registers: state.registers.map(|register| u128::from_le_bytes(register) & REGISTER),
            control: state.control,
            status: state.status,
            valid: state.valid,
        }
    }

    /// The same as a processor's state.
    #[must_use]
    pub fn to_state(self) -> X87State {
        X87State {
            registers: self.registers.map(u128::to_le_bytes),
            control: self.control,
            status: self.status,
            valid: self.valid,
            ..X87State::default()
        }
    }

    fn top(self) -> usize {
        usize::from(self.status >> 11 & 7)
    }

    /// Writes the x87 part of an FXSAVE image, whose registers are in stack order (SDM vol. 1, 10.5.1).
    pub fn write_image(self, image: &mut [u8; 512]) {
        image[..160].fill(0);
        image[..2].copy_from_slice(&self.control.to_le_bytes());
        image[2..4].copy_from_slice(&self.status.to_le_bytes());
        image[4] = self.valid;
        for (index, slot) in image[32..160].as_chunks_mut::<16>().0.iter_mut().enumerate() {
            *slot = self.registers[(self.top() + index) & 7].to_le_bytes();
        }
    }

    /// Reads it back.
    #[must_use]
    pub fn from_image(image: &[u8; 512]) -> Self {
        let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let mut x87 = Self { registers: [0; 8], control: word(0), status: word(2), valid: image[4] };
        for (index, slot) in image[32..160].as_chunks::<16>().0.iter().enumerate() {
            x87.registers[(x87.top() + index) & 7] = u128::from_le_bytes(*slot) & REGISTER;
        }
        x87
    }

    /// A state in which many instructions have something to do: mostly full, mostly with all exceptions masked.
    pub fn random(random: &mut Random, mmx: bool) -> Self {
        let masks = if random.percent(12) { random.bits() as u16 & 0x3F } else { 0x3F };
        let control = 0x40 | masks | if random.percent(50) { 0x300 } else { random.bits() as u16 & 0xF00 };
        // A flag whose exception is not masked would be pending.
        let flags = if random.percent(20) { random.bits() as u16 & masks } else { 0 };
        let conditions = random.bits() as u16 & 0x4700;
        let top = if mmx && random.percent(70) { 0 } else { random.bits() as u16 & 0x3800 };
        let mut valid = match random.below(8) {
            0 => random.bits() as u8,
            1 => 0,
            2 => 0x7F,
            _ => 0xFF,
        };
        if random.percent(30) {
            // Room for a push.
            valid &= !(1 << (((top >> 11) + 7) & 7));
        }
        let registers = std::array::from_fn(|_| match mmx {
            true => u128::from(random.lane()) | 0xFFFF << 64,
            false => extended(random),
        });
        Self { registers, control, status: top | conditions | flags, valid }
    }

    /// The differences, a line each.
    pub fn differences(&self, other: &Self) -> String {
        let mut text = String::new();
        for (name, a, b) in [
            ("x87 control", self.control, other.control),
            ("x87 status", self.status, other.status),
            ("x87 valid", self.valid.into(), other.valid.into()),
        ] {
            if a != b {
                let _ = writeln!(text, "    {name}: {a:#x} / {b:#x}");
            }
        }
        for (i, (a, b)) in self.registers.iter().zip(&other.registers).enumerate().filter(|(_, (a, b))| a != b) {
            let _ = writeln!(text, "    x87 R{i}: {a:#x} / {b:#x}");
        }
        text
    }
}

/// An 80-bit image, often at an edge of the format, sometimes an unsupported one.
pub fn extended(random: &mut Random) -> u128 {
    const BIAS: u64 = 0x3FFF;
    let near = random.below(4);
    let exponent = match random.below(12) {
        0 => 0,
        1 => 0x7FFF,
        2 => 0x7FFE - near,
        3 => 1 + near,
        4 => BIAS - 1030 + random.below(2100),
        5 => BIAS + random.below(70),
        6 => random.below(0x8000),
        _ => BIAS + near - 2,
    };
    let significand = match random.below(6) {
        0 => random.bits(),
        1 => 0,
        2 => u64::MAX << random.below(64),
        3 => random.bits() & 0xFFFF_FF00_0000_0000,
        4 => random.bits() & !0x7FF,
        _ => random.lane(),
    };
    let integer_bit = u64::from(exponent != 0 && !random.percent(3)) << 63;
    let sign = random.below(2) << 15;
    u128::from(significand & !(1 << 63) | integer_bit) | u128::from(sign | exponent) << 64
}

/// Whether an instruction works on x87 registers, and whether on MMX registers.
#[must_use]
pub fn uses(insn: &Instruction) -> [bool; 2] {
    let names = |kind: fn(iced_x86::Register) -> bool| {
        (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Register && kind(insn.op_register(op)))
    };
    let mmx = insn.mnemonic() == Mnemonic::Emms || names(iced_x86::Register::is_mm);
    let x87 = |feature: &CpuidFeature| {
        use CpuidFeature as F;
        matches!(feature, F::FPU | F::FPU287 | F::FPU387)
    };
    [insn.mnemonic() == Mnemonic::Wait || insn.cpuid_features().iter().any(x87), mmx]
}
