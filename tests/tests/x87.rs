//! x87 and MMX on all engines: random programs that load a random x87 state, execute some instructions and save the state
//! must leave the same on the interpreter, the translator and the host processor.
//!
//! `LSTAR_X87_PROGRAMS` sets the number of programs, `LSTAR_X87_SEED` the first seed.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind,
    OpKind, Register,
};
use lstar_tests::differential::interpreted::Interpreted;
use lstar_tests::differential::native::Native;
use lstar_tests::differential::program::leave;
use lstar_tests::differential::random::Random;
use lstar_tests::differential::translated::Translated;
use lstar_tests::differential::{CODE, DATA, Engine, IMAGES, Memory, Outcome, State, Tolerance};

/// Where the state comes from and where it goes, and what RBX points at.
const STATE: u64 = DATA + 0x1000;
const RESULT: u64 = DATA + 0x1100;
const OPERANDS: u64 = DATA + 0x400;

/// One instruction as bytes.
type Bytes = Vec<u8>;

/// An x87 instruction from its two opcode bytes, with `[rbx+disp]` where it has a memory operand.
fn x87_instruction(random: &mut Random, selectors_differ: bool) -> Option<Bytes> {
    let first = 0xD8 | random.below(8) as u8;
    let second = random.bits() as u8;
    let mut bytes = vec![first];
    if random.percent(45) {
        bytes.push(second | 0xC0);
    } else {
        // Mostly aligned, sometimes at the end of the writable page or beyond the read-only one.
        let displacement: u32 = match random.below(16) {
            0 => 0x1BF0 + random.below(32) as u32,
            1 => random.below(256) as u32,
            2 => 0x2BF8,
            _ => 8 * random.below(96) as u32,
        };
        bytes.push(second & 0x38 | 0x83);
        bytes.extend(displacement.to_le_bytes());
    }
    let insn = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
    use Mnemonic as M;
    // These write the data segment's selector, which is the system's, or the code segment's: saved at the end only.
    let selectors = selectors_differ && matches!(insn.mnemonic(), M::Fnstenv | M::Fnsave);
    // With a shortened precision control FPTAN rounds differently when executed alone: `host_transcendental` has its ulps.
    let tangent = insn.mnemonic() == M::Fptan;
    let plain = !insn.is_invalid() && insn.len() == bytes.len();
    (plain && !selectors && !tangent).then_some(bytes)
}

/// Encodings with MMX registers.
fn mmx_codes() -> Vec<Code> {
    use OpCodeOperandKind as K;
    Code::values()
        .filter(|code| {
            let info = code.op_code();
            info.mode64()
                && info.is_instruction()
                && info.encoding() == EncodingKind::Legacy
                && code.mnemonic() != Mnemonic::Maskmovq
                && (info.op_kinds().iter().any(|kind| matches!(kind, K::mm_reg | K::mm_rm | K::mm_or_mem))
                    || code.mnemonic() == Mnemonic::Emms)
                && code.cpuid_features().iter().all(|feature| {
                    use CpuidFeature as F;
                    matches!(feature, F::MMX | F::SSE | F::SSE2 | F::SSSE3)
                })
        })
        .collect()
}

fn mmx_instruction(codes: &[Code], random: &mut Random) -> Option<Bytes> {
    use OpCodeOperandKind as K;
    let code = random.pick(codes);
    let info = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    for op in 0..info.op_count() {
        let memory = random.percent(40);
        let number = random.below(8) as u32;
        // Not RBX, which points at the operands, nor RSP and RDI.
        let general = random.pick(&[0, 1, 2, 5, 6, 9]);
        let register = match info.op_kind(op) {
            K::mm_reg | K::mm_rm => Register::MM0 + number,
            K::mm_or_mem if !memory => Register::MM0 + number,
            K::xmm_reg | K::xmm_rm => Register::XMM0 + number,
            K::xmm_or_mem if !memory => Register::XMM0 + number,
            K::r32_reg | K::r32_rm => Register::EAX + general,
            K::r64_reg | K::r64_rm => Register::RAX + general,
            K::r32_or_mem | K::r32_or_mem_mpx if !memory => Register::EAX + general,
            K::r64_or_mem | K::r64_or_mem_mpx if !memory => Register::RAX + general,
            K::r32_reg_mem | K::r64_reg_mem => return None,
            K::imm8 => {
                insn.set_op_kind(op, OpKind::Immediate8);
                insn.set_immediate8(random.bits() as u8);
                continue;
            }
            K::mem | K::mm_or_mem | K::xmm_or_mem | K::r32_or_mem | K::r64_or_mem => {
                insn.set_op_kind(op, OpKind::Memory);
                insn.set_memory_base(Register::RBX);
                insn.set_memory_displacement64(16 * random.below(48));
                insn.set_memory_displ_size(4);
                continue;
            }
            _ => return None,
        };
        insn.set_op_kind(op, OpKind::Register);
        insn.set_op_register(op, register);
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&insn, CODE).ok()?;
    Some(encoder.take_buffer())
}

/// An 80-bit image, often a moderate number.
fn extended(random: &mut Random) -> u128 {
    let exponent = match random.below(12) {
        0 => 0,
        1 => 0x7FFF,
        2 => random.below(0x8000),
        3 => 1 + random.below(70),
        4 => 0x7FFE - random.below(70),
        5 | 6 => 0x3FFF + random.below(66),
        _ => 0x3FFF - 4 + random.below(8),
    };
    let fraction = match random.below(6) {
        0 => 0,
        1 => u64::MAX << random.below(64),
        2 => random.bits() << random.below(64),
        _ => random.bits(),
    };
    let integer = u64::from(exponent != 0 && random.below(32) != 0) << 63;
    u128::from(fraction & !(1 << 63) | integer) | u128::from(exponent | (random.bits() & 1) << 15) << 64
}

/// A state as FRSTOR loads it (SDM vol. 1, 8.1.10).
fn state_image(random: &mut Random) -> [u8; 112] {
    let masks = if random.percent(15) { random.bits() as u16 & 0x3F } else { 0x3F };
    let control = masks | 0x40 | random.bits() as u16 & 0xF00;
    let status = random.bits() as u16 & 0x7F00;
    let tags = match random.below(4) {
        0 => 0xFFFF,
        1 => random.bits() as u16,
        // A few registers in use, from the top.
        _ => {
            let used = 1 + random.below(6);
            (0..8).fold(0, |tags, index| {
                let physical = (u64::from(status >> 11 & 7) + index) & 7;
                tags | if index < used { 0 } else { 3 << (2 * physical) }
            })
        }
    };
    let mut image = [0; 112];
    for (at, word) in [(0, control), (4, status), (8, tags)] {
        image[at..at + 2].copy_from_slice(&word.to_le_bytes());
    }
    for index in 0..8 {
        image[28 + 10 * index..][..10].copy_from_slice(&extended(random).to_le_bytes()[..10]);
    }
    image
}

/// A program: its instructions, and the bytes around them.
fn assemble(instructions: &[Bytes]) -> Bytes {
    let displacement = |address: u64| ((address - OPERANDS) as u32).to_le_bytes();
    let mut code = vec![0xDB, 0xE3];
    // frstor [rbx+..]; ..; fnsave [rbx+..]; mov word ptr [rbx+..],0 over the data segment's selector
    code.extend([0xDD, 0xA3]);
    code.extend(displacement(STATE));
    code.extend(instructions.concat());
    code.extend([0xDD, 0xB3]);
    code.extend(displacement(RESULT));
    code.extend([0x66, 0xC7, 0x83]);
    code.extend(displacement(RESULT + 24));
    code.extend([0, 0]);
    code.extend(leave());
    code
}

fn listing(instructions: &[Bytes]) -> String {
    let mut text = String::new();
    for bytes in instructions {
        let insn = Decoder::with_ip(64, bytes, CODE, DecoderOptions::NONE).decode();
        text += &format!("    {insn} {bytes:02x?}\n");
    }
    text
}

struct Engines {
    engines: Vec<Box<dyn Engine>>,
}

impl Engines {
    fn outcomes(&mut self, instructions: &[Bytes], state: &State, memory: &Memory) -> Vec<Outcome> {
        let code = assemble(instructions);
        self.engines
            .iter_mut()
            .map(|engine| {
                let mut outcome = Outcome::default();
                engine.load(&code);
                engine.run(state, memory, &mut outcome);
                outcome
            })
            .collect()
    }

    /// The first engine's differences from the second, for the first pair that differs.
    fn differences(&mut self, instructions: &[Bytes], state: &State, memory: &Memory) -> Option<String> {
        let outcomes = self.outcomes(instructions, state, memory);
        for index in 0..outcomes.len() - 1 {
            let (a, b) = (&*self.engines[index], &*self.engines[index + 1]);
            let tolerance = Tolerance::between(a, b);
            if !tolerance.agree(&outcomes[index], &outcomes[index + 1]) {
                let text = tolerance.differences(&outcomes[index], &outcomes[index + 1]);
                return Some(format!("  {} / {}\n{text}", a.name(), b.name()));
            }
        }
        None
    }
}

/// What a program starts from.
struct Start {
    state: State,
    memory: Box<Memory>,
    image: [u8; 112],
}

impl Start {
    fn random(random: &mut Random) -> Self {
        let mut memory = Memory::image(random.below(IMAGES.into()) as u8);
        let image = state_image(random);
        for (at, chunk) in image.as_chunks::<8>().0.iter().enumerate() {
            memory.patch(STATE + 8 * at as u64, u64::from_le_bytes(*chunk));
        }
        for slot in 0..16 {
            let value = extended(random);
            memory.patch(OPERANDS + 48 * slot, value as u64);
            memory.patch(OPERANDS + 48 * slot + 8, (value >> 64) as u64);
        }
        let mut state = State::default();
        for register in &mut state.gpr {
            *register = random.value();
        }
        state.gpr[3] = OPERANDS;
        state.gpr[4] = lstar_tests::differential::STACK + 0x800;
        state.rflags = 0x202 | random.bits() & 0x8D5;
        Self { state, memory, image }
    }

    fn describe(&self) -> String {
        let word = |at: usize| u16::from_le_bytes([self.image[at], self.image[at + 1]]);
        format!("control {:04x} status {:04x} tags {:04x}", word(0), word(4), word(8))
    }
}

impl Engines {
    fn all() -> Self {
        Self {
            engines: vec![
                Box::new(Interpreted::default()),
                Box::new(Translated::translating().expect("machine")),
                Box::new(Native::new().expect("free addresses")),
            ],
        }
    }

    /// Those that have the same selectors.
    fn ours() -> Self {
        Self {
            engines: vec![
                Box::new(Interpreted::default()),
                Box::new(Translated::translating().expect("machine")),
                Box::new(Translated::faulting().expect("machine")),
            ],
        }
    }

    /// Runs a program; what is left of it when everything has been taken out that a difference does not need.
    fn check(&mut self, mut instructions: Vec<Bytes>, start: &Start) -> Result<(), String> {
        let Start { state, memory, .. } = start;
        if self.differences(&instructions, state, memory).is_none() {
            return Ok(());
        }
        let mut at = 0;
        while at < instructions.len() {
            let mut fewer = instructions.clone();
            fewer.remove(at);
            if self.differences(&fewer, state, memory).is_some() {
                instructions = fewer;
            } else {
                at += 1;
            }
        }
        let text = self.differences(&instructions, state, memory).unwrap_or_default();
        Err(format!("{}\n{}{text}", start.describe(), listing(&instructions)))
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn random_programs_agree() {
    let (programs, seed) = (number("LSTAR_X87_PROGRAMS", 20_000), number("LSTAR_X87_SEED", 1));
    let mut engines = Engines::all();
    let codes = mmx_codes();
    assert!(codes.len() > 80, "{} MMX encodings", codes.len());
    let mut failures = Vec::new();
    let mut executed = 0;
    for index in 0..programs {
        let mut random = Random::new(seed + index);
        let mmx = random.percent(20);
        let count = 1 + random.below(8);
        let instructions: Vec<Bytes> = (0..count)
            .filter_map(|_| match mmx && random.percent(70) {
                true => mmx_instruction(&codes, &mut random),
                false => x87_instruction(&mut random, true),
            })
            .collect();
        let start = Start::random(&mut random);
        executed += instructions.len();
        if let Err(text) = engines.check(instructions, &start) {
            failures.push(format!("seed {} {text}", seed + index));
            if failures.len() == 20 {
                break;
            }
        }
    }
    println!("{programs} programs, {executed} instructions, {} differ", failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The addresses and selectors that FNSTENV, FNSAVE and FXSAVE store are those of the guest's instructions, wherever the state is;
/// and the state survives whatever instructions of the interpreter, MMX instructions and branches there are in between.
#[test]
fn long_programs_agree_with_pointers() {
    let (programs, seed) = (number("LSTAR_X87_PROGRAMS", 6_000), number("LSTAR_X87_SEED", 1) + (1 << 32));
    let mut engines = Engines::ours();
    let codes = mmx_codes();
    for index in 0..programs {
        let mut random = Random::new(seed + index);
        let count = 4 + random.below(36);
        let instructions: Vec<Bytes> = (0..count)
            .filter_map(|_| match random.below(24) {
                0 => mmx_instruction(&codes, &mut random),
                // emms; fxsave64 [rbx+300h]; fxrstor64 [rbx+300h]; fnstenv [rbx+100h]; fninit; rcl eax,cl
                1 => Some(vec![0x0F, 0x77]),
                2 => Some(vec![0x48, 0x0F, 0xAE, 0x83, 0x00, 0x03, 0x00, 0x00]),
                3 => Some(vec![0x48, 0x0F, 0xAE, 0x8B, 0x00, 0x03, 0x00, 0x00]),
                4 => Some(vec![0xD9, 0xB3, 0x00, 0x01, 0x00, 0x00]),
                5 => Some(vec![0xDB, 0xE3]),
                6 => Some(vec![0xD3, 0xD0]),
                // jc over fld1; jp over two bytes of NOPs
                7 => Some(vec![0x72, 0x02, 0xD9, 0xE8]),
                8 => Some(vec![0x7A, 0x02, 0x90, 0x90]),
                // fldcw of a word that masks everything, over a program's own
                9 => Some(vec![0x66, 0xC7, 0x03, 0x7F, 0x03 | random.below(16) as u8, 0xD9, 0x2B]),
                // add eax,ecx
                10 => Some(vec![0x01, 0xC8]),
                _ => x87_instruction(&mut random, false),
            })
            .collect();
        let start = Start::random(&mut random);
        if let Err(text) = engines.check(instructions, &start) {
            panic!("seed {} {text}", seed + index);
        }
    }
}

/// Programs that engines have differed in.
const FOUND: &[(&str, &[&[u8]])] = &[
    ("FSTPNCE does not move an empty register", &[&[0xD9, 0xDF]]),
    ("EMMS resets TOP on AMD's processors", &[&[0x0F, 0x77]]),
    ("a store that an exception suppresses faults", &[&[0xDF, 0x8B, 0x05, 0x1C, 0x00, 0x00]]),
    ("FRSTOR reads its last byte first", &[&[0xDD, 0xA3, 0xF8, 0x2B, 0x00, 0x00]]),
    ("FLDENV reads its last byte first", &[&[0xD9, 0xA3, 0xF8, 0x2B, 0x00, 0x00]]),
    ("FNENI records no pointers", &[&[0xD9, 0xE8], &[0xDB, 0xE0]]),
    ("FNDISI does not wait", &[&[0xDC, 0xC0], &[0xDB, 0xE1]]),
    ("FPREM without a quotient keeps C0 and C3", &[&[0xD9, 0xF8]]),
    ("FPREM1 without a quotient keeps C0 and C3", &[&[0xD9, 0xF5]]),
    ("FCOMI keeps C1 on AMD's processors", &[&[0xDB, 0xF1]]),
    ("FCOM with an unmasked exception sets the codes", &[&[0xD8, 0xD1], &[0xDF, 0xE0]]),
];

#[test]
fn found_programs_agree() {
    let mut engines = Engines::all();
    for (index, (name, program)) in FOUND.iter().enumerate() {
        for seed in 0..300 {
            let start = Start::random(&mut Random::new((index << 32 | seed) as u64));
            let instructions = program.iter().map(|bytes| bytes.to_vec()).collect();
            if let Err(text) = engines.check(instructions, &start) {
                panic!("{name}: {text}");
            }
        }
    }
}
