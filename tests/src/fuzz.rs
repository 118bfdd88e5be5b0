//! Arbitrary bytes as code and state, for decoder, interpreter and translator: no panic, no endless run, no host fault.
//!
//! [`Fuzzer::one`] takes what a fuzzer gives; [`Source`] makes such inputs from a seed: noise, soups of prefixes, instructions
//! of 15 bytes and more, valid ones with flipped bits, code that writes to itself or ends at a page's end.
//! Where a single instruction ended on both engines, what it left must agree.

use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction, Mnemonic};
use lstar_runtime::MachineError;

use crate::differential::generate::Generator;
use crate::differential::interpreted::Interpreted;
use crate::differential::random::Random;
use crate::differential::translated::Translated;
use crate::differential::undefined;
use crate::differential::{
    CODE, CODE_SIZE, DATA, Ending, Engine, Outcome, STACK, STACK_SIZE, State, Stepping, Tolerance,
};

/// Instructions after which a run is given up.
const STEPS: u64 = 2_000;
/// Most bytes of code.
const MOST_CODE: usize = 256;
/// Bytes of input that become the state.
const STATE: usize = 16 * 9 + 3;
/// In the last of them: it is 32-bit code.
const NARROW: u8 = 0x10;

/// Both engines, and what they left.
#[derive(Debug)]
pub struct Fuzzer {
    interpreted: Interpreted,
    translated: Translated,
    outcomes: [Outcome; 2],
    /// Inputs run.
    pub runs: u64,
    /// Of these, single instructions that were compared: of 64-bit and of 32-bit code.
    pub compared: [u64; 2],
}

impl Fuzzer {
    /// How much of the machine's 32-bit code was translated, and what was interpreted inside it.
    #[must_use]
    pub fn statistics(&self) -> lstar_runtime::Statistics {
        self.translated.machine.statistics()
    }
}

impl Fuzzer {
    /// Engines that offer everything they implement.
    pub fn new() -> Result<Self, MachineError> {
        Ok(Self {
            interpreted: Interpreted::default(),
            translated: Translated::translating()?,
            outcomes: [Outcome::default(), Outcome::default()],
            runs: 0,
            compared: [0; 2],
        })
    }

    /// Runs one input. A description of what the engines make differently of a single instruction.
    pub fn one(&mut self, input: &[u8]) -> Option<String> {
        let (state_bytes, code) = input.split_at(input.len().min(STATE));
        let narrow = state_bytes.get(STATE - 1).is_some_and(|byte| byte & NARROW != 0);
        let state = state(state_bytes, narrow);
        self.interpreted.set_32bit(narrow);
        self.translated.set_32bit(narrow);
        let code = &code[..code.len().min(MOST_CODE)];
        self.runs += 1;
        // Decoding in all modes must end.
        for bitness in [16, 32, 64] {
            for insn in Decoder::with_ip(bitness, code, CODE, DecoderOptions::AMD).iter() {
                let _ = insn.to_string();
            }
        }
        let memory = state.memory();
        let bitness = if narrow { 32 } else { 64 };
        let insn = Decoder::with_ip(bitness, code, CODE, DecoderOptions::NONE).decode();
        let single = !insn.is_invalid() && insn.len() == code.len();
        let mut page = code.to_vec();
        if state_bytes.first().is_some_and(|byte| byte & 1 != 0) && !single {
            // At the end of the page, where the next one cannot be fetched.
            page = vec![0x90; CODE_SIZE as usize - code.len()];
            page.extend_from_slice(code);
        }
        // Behind a single instruction is INT3.
        let steps = if single { 64 } else { STEPS + page.len() as u64 };
        self.interpreted.load(&page);
        self.interpreted.start(&state, &memory);
        self.interpreted.advance(steps, &mut self.outcomes[0]);
        self.translated.load(&page);
        self.translated.start(&state, &memory);
        self.translated.advance(steps, &mut self.outcomes[1]);
        let [right, wrong] = &self.outcomes;
        let ended = right.ending != Ending::Stuck && wrong.ending != Ending::Stuck;
        let comparable = single && ended && !depends_on_the_engine(&insn);
        if !comparable {
            return None;
        }
        self.compared[usize::from(narrow)] += 1;
        let tolerance =
            Tolerance::between(&self.interpreted, &self.translated).without_flags(undefined::after(&insn, 0));
        (!tolerance.agree(right, wrong))
            .then(|| format!("{insn} ({bitness} bits, {code:02x?})\n{}", tolerance.differences(right, wrong)))
    }
}

/// Whether more than the state decides what an instruction does: the clock, the tables of the kernel behind it.
fn depends_on_the_engine(insn: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(insn.mnemonic(), M::Rdtsc | M::Rdtscp | M::Rdrand | M::Rdseed | M::Rdpid | M::Sgdt | M::Sidt | M::Str)
        || matches!(insn.mnemonic(), M::Sldt | M::Smsw | M::Lar | M::Lsl | M::Verr | M::Verw | M::Syscall | M::Sysenter)
        || matches!(insn.mnemonic(), M::Xgetbv | M::Rdfsbase | M::Int | M::Int1 | M::Iret | M::Iretd | M::Iretq)
        || matches!(insn.mnemonic(), M::Retf | M::Popf | M::Popfq | M::Popfd | M::Lss | M::Lds | M::Les | M::Lfs | M::Lgs | M::Xsave | M::Xsave64)
        || matches!(insn.mnemonic(), M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64)
        || insn.is_jmp_far()
        || insn.is_jmp_far_indirect()
        || insn.is_call_far()
        || insn.is_call_far_indirect()
        || insn.is_string_instruction()
        || (0..insn.op_count()).any(|i| insn.op_register(i).is_segment_register())
        // x87 state is not part of a program's state.
        || insn.cpuid_features().iter().any(|feature| format!("{feature:?}").starts_with("FPU") || format!("{feature:?}") == "MMX")
}

/// Registers from bytes: each is a number, or points into data, stack or code; for 32-bit code, with anything in the upper half.
fn state(bytes: &[u8], narrow: bool) -> State {
    let mut state = State::default();
    let mut chunks = bytes.chunks(9);
    for register in &mut state.gpr {
        let Some(&[kind, ref value @ ..]) = chunks.next() else { break };
        let mut number = [0; 8];
        number[..value.len()].copy_from_slice(value);
        let number = u64::from_le_bytes(number);
        *register = match kind % 8 {
            0..=2 => DATA + 0x800 + number % 0x1000,
            3 => STACK + number % STACK_SIZE,
            4 => CODE + number % CODE_SIZE,
            5 => number % 64,
            _ => number,
        };
        if narrow {
            *register |= number & !0xFFFF_FFFF;
        }
    }
    if state.gpr[4] % 3 != 0 {
        state.gpr[4] = STACK + 0x800 + state.gpr[4] % 0x400 / 8 * 8;
    }
    if let Some(&[image, flags, more]) = bytes.get(STATE - 3..) {
        state.image = image % crate::differential::IMAGES;
        state.rflags = 0x202 | u64::from(flags) & 0xD5 | u64::from(more & 0xC) << 8;
    }
    state
}

/// Inputs from a seed.
#[derive(Debug)]
pub struct Source {
    random: Random,
    generator: Generator,
}

impl Source {
    /// The same inputs for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), generator: Generator::new(seed) }
    }

    /// The next input.
    pub fn input(&mut self) -> Vec<u8> {
        let mut input: Vec<u8> = (0..STATE).map(|_| self.byte()).collect();
        input[STATE - 1] &= !NARROW;
        if self.random.below(4) == 0 {
            input[STATE - 1] |= NARROW;
            let pieces = if self.random.below(4) == 0 { 1 + self.random.below(8) } else { 1 };
            for _ in 0..pieces {
                let code = self.narrow();
                input.extend(code);
            }
            return input;
        }
        match self.random.below(8) {
            0 => input.extend(self.noise()),
            1 => input.extend(self.prefixes()),
            2 | 3 => input.extend(self.flipped()),
            4 => input.extend(self.self_modifying()),
            5 => {
                for _ in 0..1 + self.random.below(8) {
                    let code = self.flipped();
                    input.extend(code);
                }
            }
            6 => {
                let code = self.valid();
                input.extend(code);
            }
            _ => {
                let program = self.generator.program(12);
                input.extend(program.assemble().map(|assembled| assembled.code).unwrap_or_default());
                let flips = 1 + self.random.below(6);
                self.flip(&mut input, flips);
            }
        }
        input
    }

    fn byte(&mut self) -> u8 {
        self.random.below(256) as u8
    }

    fn noise(&mut self) -> Vec<u8> {
        (0..1 + self.random.below(40)).map(|_| self.byte()).collect()
    }

    /// Prefixes in any order and number in front of anything.
    fn prefixes(&mut self) -> Vec<u8> {
        const PREFIXES: [u8; 16] =
            [0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x48, 0x4F, 0xC5, 0xC4, 0x62];
        let count = 1 + self.random.below(18);
        let mut code: Vec<u8> = (0..count).map(|_| PREFIXES[self.random.below(16) as usize]).collect();
        code.extend(if self.random.below(2) == 0 { self.valid() } else { self.noise() });
        code
    }

    /// An instruction of 32-bit code, or what looks like one.
    fn narrow(&mut self) -> Vec<u8> {
        const PREFIXES: [u8; 11] = [0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3];
        let mut code = Vec::new();
        while self.random.below(3) == 0 {
            code.push(PREFIXES[self.random.below(11) as usize]);
        }
        match self.random.below(10) {
            0..=4 => {}
            5..=7 => code.push(0x0F),
            8 => code.extend([0x0F, if self.random.below(2) == 0 { 0x38 } else { 0x3A }]),
            _ => code.extend([0xC4, 0xE1 + self.random.below(3) as u8, self.byte() & 0x87 | 0x40]),
        }
        code.push(self.byte());
        // Mostly a register, or something near where EBX, EBP, ESI or EDI point.
        let register = self.byte() & 0x38;
        match self.random.below(4) {
            0 => code.push(self.byte()),
            1 => code.push(0xC0 | register | self.byte() & 7),
            _ => code.extend([0x40 | register | [3, 5, 6, 7][self.random.below(4) as usize], self.byte()]),
        }
        code.extend((0..10).map(|_| self.byte()));
        let insn = Decoder::with_ip(32, &code, CODE, DecoderOptions::NONE).decode();
        if !insn.is_invalid() {
            code.truncate(insn.len());
        }
        code
    }

    /// One instruction of the campaign's.
    fn valid(&mut self) -> Vec<u8> {
        let index = self.random.below(self.generator.encodings.len() as u64) as usize;
        let code = self.generator.encodings[index];
        let Some(program) = self.generator.single(code) else { return vec![0x90] };
        let mut encoder = Encoder::new(64);
        match program.instructions().next() {
            Some(item) if encoder.encode(&item.insn, CODE).is_ok() => encoder.take_buffer(),
            _ => vec![0x90],
        }
    }

    fn flipped(&mut self) -> Vec<u8> {
        let mut code = self.valid();
        let start = code.len();
        let flips = self.random.below(4);
        for _ in 0..flips {
            let at = self.random.below(start.max(1) as u64) as usize;
            let bit = self.random.below(8);
            if let Some(byte) = code.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        code
    }

    fn flip(&mut self, bytes: &mut [u8], count: u64) {
        for _ in 0..count {
            let at = STATE + self.random.below((bytes.len() - STATE).max(1) as u64) as usize;
            let value = self.byte();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
    }

    /// A store to the code behind it (which is read-only: it faults), or jumps into the middle of things.
    fn self_modifying(&mut self) -> Vec<u8> {
        let mut code = Vec::new();
        for _ in 0..1 + self.random.below(6) {
            match self.random.below(4) {
                // mov byte [rip+d], imm
                0 => code.extend([0xC6, 0x05, self.byte() & 0x3F, 0, 0, 0, self.byte()]),
                // jmp, jcc short
                1 => code.extend([0xEB, self.byte()]),
                2 => code.extend([0x70 | self.byte() & 15, self.byte()]),
                _ => code.extend(self.valid()),
            }
        }
        code
    }
}

/// Runs inputs from a seed; what single instructions did differently, and how many inputs there were.
pub fn campaign(seed: u64, inputs: u64) -> Result<(Fuzzer, Vec<String>), MachineError> {
    let mut fuzzer = Fuzzer::new()?;
    let mut source = Source::new(seed);
    let mut wrong = Vec::new();
    for _ in 0..inputs {
        let input = source.input();
        wrong.extend(fuzzer.one(&input).filter(|_| wrong.len() < 20));
    }
    Ok((fuzzer, wrong))
}
