//! The x87's transcendental instructions against the host processor.
//!
//! The interpreter rounds correctly; processors do not always. Everything but the last place of the result, and the
//! rounding direction in C1 that goes with it, must be the same, and even that in all but few cases: see [`ALLOWED`].
//! `LSTAR_HOST_CASES` sets the number of cases per instruction.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod host;

use host::{Host, State};
use lstar_arch::cpuid::Features;
use lstar_arch::{CpuModel, CpuState, GuestMemory, PageFault, PageFaultCode, Privilege, Vendor};
use lstar_interpreter::{Interpreter, Outcome};

/// The instructions with the per mille of results that may be a unit in the last place off on the host.
///
/// Measured on a Zen 3 with 400,000 operands as [`Random::operand`] chooses them: F2XM1 19, FYL2X 10, FPTAN 135, FPATAN 17,
/// FYL2XP1 18, FSINCOS 8, FSIN 7, FCOS 3. Its results are those of a calculation with about 68 bits, rounded once: a
/// directed or nearly halfway rounding can fall to the other side. FPTAN returns angles below 2^-34 themselves or a
/// little less, depending on all their bits, so that there directed rounding and C1 differ.
const ALLOWED: &[(&str, [u8; 2], u32)] = &[
    ("f2xm1", [0xD9, 0xF0], 60),
    ("fyl2x", [0xD9, 0xF1], 60),
    ("fptan", [0xD9, 0xF2], 180),
    ("fpatan", [0xD9, 0xF3], 60),
    ("fyl2xp1", [0xD9, 0xF9], 60),
    ("fsincos", [0xD9, 0xFB], 25),
    ("fsin", [0xD9, 0xFE], 15),
    ("fcos", [0xD9, 0xFF], 15),
];

/// A small generator of reproducible numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 33) % limit
    }
    /// A number of a magnitude that the functions are made for, or an edge case.
    fn operand(&mut self) -> u128 {
        let exponent = match self.below(16) {
            0 => 0,
            1 => 0x7FFF,
            2 => self.below(0x8000),
            3 => 0x3FFF + self.below(65),
            4 => 1 + self.below(70),
            5 => 0x3FFF - 60 - self.below(20),
            6..=8 => 0x3FFF - self.below(66),
            9 => 0x7FFE - self.below(80),
            _ => 0x3FFF - 6 + self.below(8),
        };
        let fraction = match self.below(8) {
            0 => 0,
            1 => 1 << self.below(63),
            2 => u64::MAX << self.below(64),
            3 => self.next() >> self.below(64),
            _ => self.next(),
        };
        let integer_bit = u64::from(exponent != 0 && self.below(64) != 0) << 63;
        let negative = self.next() & 1;
        u128::from(fraction & !(1 << 63) | integer_bit) | u128::from(exponent | negative << 15) << 64
    }
}

/// Memory that holds the instruction and nothing else.
struct CodeBytes([u8; 2]);

impl GuestMemory for CodeBytes {
    fn read(&mut self, address: u64, _: &mut [u8], _: Privilege) -> Result<(), PageFault> {
        Err(PageFault { address, code: PageFaultCode::empty() })
    }
    fn write(&mut self, address: u64, _: &[u8], _: Privilege) -> Result<(), PageFault> {
        Err(PageFault { address, code: PageFaultCode::empty() })
    }
    fn probe_write(&mut self, address: u64, _: u64, _: Privilege) -> Result<(), PageFault> {
        Err(PageFault { address, code: PageFaultCode::empty() })
    }
    fn fetch(&mut self, address: u64, buf: &mut [u8], _: Privilege) -> Result<usize, PageFault> {
        assert_eq!(address, CODE);
        buf[..2].copy_from_slice(&self.0);
        Ok(2)
    }
    fn code_modified(&self) -> bool {
        false
    }
}

const CODE: u64 = 0x1000;

/// What is compared: status, tags, registers in stack order of the state before.
#[derive(Debug, PartialEq, Clone)]
struct Registers {
    status: u16,
    valid: u8,
    registers: [u128; 8],
}

fn state(random: &mut Random) -> State {
    let mut state = State::default();
    let masks = if random.below(4) == 0 { random.next() as u16 & 0x3F } else { 0x3F };
    let control = random.next() as u16 & 0xF00 | 0x40 | masks;
    let status = random.next() as u16 & 0x7F00;
    state.image[..2].copy_from_slice(&control.to_le_bytes());
    state.image[2..4].copy_from_slice(&status.to_le_bytes());
    let full = random.below(2) == 0;
    let top = u32::from(status >> 11 & 7);
    let usual = 3u8.rotate_left(top);
    state.image[4] = if random.below(8) == 0 {
        random.next() as u8
    } else if full {
        0xFF
    } else {
        usual
    };
    if random.below(3) != 0 {
        // Room for a second result.
        state.image[4] &= !(1 << ((top + 7) & 7));
    }
    state.image[24..28].copy_from_slice(&0x1F80u32.to_le_bytes());
    for index in 0..8 {
        state.image[32 + 16 * index..][..10].copy_from_slice(&random.operand().to_le_bytes()[..10]);
    }
    state
}

fn word(image: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn result_of(state: &State) -> Registers {
    let status = word(&state.image, 2);
    let top = usize::from(status >> 11 & 7);
    let mut registers = [0; 8];
    for index in 0..8 {
        let mut bytes = [0; 16];
        bytes[..10].copy_from_slice(&state.image[32 + 16 * index..][..10]);
        registers[(top + index) & 7] = u128::from_le_bytes(bytes);
    }
    Registers { status, valid: state.image[4], registers }
}

fn interpret(cpu: &mut CpuState, code: [u8; 2], state: &State) -> Registers {
    let before = result_of(state);
    cpu.rip = CODE;
    cpu.x87.control = word(&state.image, 0);
    cpu.x87.status = before.status;
    cpu.x87.valid = before.valid;
    cpu.x87.registers = before.registers.map(u128::to_le_bytes);
    let outcome = Interpreter::new().step(cpu, &mut CodeBytes(code));
    assert_eq!(outcome, Outcome::Retired);
    let registers = cpu.x87.registers.map(|register| u128::from_le_bytes(register) & ((1 << 80) - 1));
    Registers { status: cpu.x87.status, valid: cpu.x87.valid, registers }
}

/// Whether the results differ by no more than a unit in the last place, and what depends on it: C1, and which side of the
/// smallest normal number they are on.
fn close(a: &Registers, b: &Registers) -> bool {
    const C1: u16 = 1 << 9;
    a.status & !C1 == b.status & !C1
        && a.valid == b.valid
        && a.registers.iter().zip(&b.registers).all(|(a, b)| {
            // Across a power of two the significand wraps.
            let linear = |value: u128| (value >> 64) << 63 | value & ((1 << 63) - 1);
            a >> 79 == b >> 79 && linear(*a).abs_diff(linear(*b)) <= 1
        })
}

#[test]
fn transcendental_instructions_match_the_host() {
    let cases = std::env::var("LSTAR_HOST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(4_000u32);
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut failures = String::new();
    let mut cpu = CpuState::new(CpuModel { vendor: Vendor::Amd, features: Features::all() });
    for &(name, code, allowed) in ALLOWED {
        let host = Host::new(&code);
        let (mut off, mut different) = (0, 0);
        for _ in 0..cases {
            let mut state = state(&mut random);
            let before = result_of(&state);
            let ours = interpret(&mut cpu, code, &state);
            let control = word(&state.image, 0);
            assert_eq!(host.run(&mut state), Ok(()));
            let theirs = result_of(&state);
            if ours == theirs {
                continue;
            }
            if close(&ours, &theirs) {
                off += 1;
                continue;
            }
            different += 1;
            if different <= 3 {
                let mut line =
                    format!("{name} control {control:03x}\n  before {:04x} {:02x}", before.status, before.valid);
                let top = usize::from(before.status >> 11 & 7);
                for index in [0, 1, 7] {
                    line += &format!(" st{index} {:020x}", before.registers[(top + index) & 7]);
                }
                for (name, result) in [("ours", &ours), ("host", &theirs)] {
                    line += &format!("\n  {name}   {:04x} {:02x}", result.status, result.valid);
                    for index in [0, 1, 7] {
                        line += &format!(" st{index} {:020x}", result.registers[(top + index) & 7]);
                    }
                }
                failures += &format!("{line}\n");
            }
        }
        println!("{name}: {cases} cases, {off} a unit in the last place off, {different} different");
        if different > 0 || off > cases * allowed / 1000 {
            failures += &format!("{name}: {different} different, {off} off\n");
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}
