//! Every legacy SSE to SSE4.2 instruction gives the same result on the interpreter and in translated code.
//!
//! The forms come from iced-x86's list of opcodes: each opcode of these sets is encoded with every combination of
//! operand kinds that it takes, with memory operands that are aligned, misaligned, cut by the end of the mapping and
//! outside it, and run on numbers at which arithmetic goes wrong. Translated code must not leave any to the interpreter.

use std::collections::BTreeMap;

use iced_x86::code_asm::*;
use iced_x86::{Code, CpuidFeature, Encoder, EncodingKind, Instruction, MemoryOperand, OpKind, Register};
use lstar_arch::CpuState;
use lstar_arch::cpuid::{CpuModel, Features};
use lstar_runtime::{Engine, GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, Vcpu, VmExit};

const CODE: u64 = 0x1_4000_0000;
const SLOT: u64 = 64;
const DATA: u64 = 0x1_5000_0000;
const DATA_SIZE: usize = 0x1000;
const RSI: usize = 6;

struct Stop;

impl ServiceGate for Stop {
    fn service(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        GateAction::Stop
    }
}

/// xorshift64*.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[(self.next() >> 20) as usize % values.len()]
    }

    fn double(&mut self) -> u64 {
        let special = [
            0,
            1 << 63,
            1.0f64.to_bits(),
            (-1.5f64).to_bits(),
            2.5f64.to_bits(),
            0.5f64.to_bits(),
            f64::INFINITY.to_bits(),
            f64::NEG_INFINITY.to_bits(),
            f64::MAX.to_bits(),
            1,
            0x8000_0000_0000_1234,
            0x7FF8_0000_0000_0001,
            0xFFF8_0000_0000_0BAD,
            0x7FF0_0000_0000_0042,
            0xFFF4_0000_0000_0007,
            2_147_483_647.5f64.to_bits(),
            (-2_147_483_648.5f64).to_bits(),
            9_223_372_036_854_775_808.0f64.to_bits(),
            (-9_223_372_036_854_775_808.0f64).to_bits(),
            1e300f64.to_bits(),
            3e-310f64.to_bits(),
            (f64::from(f32::MAX) * 1.5).to_bits(),
            1e-42f64.to_bits(),
        ];
        match self.next() >> 61 {
            0 => ((self.next() as i32) as f64 / 8.0).to_bits(),
            1 => self.next(),
            _ => self.pick(&special),
        }
    }

    fn single(&mut self) -> u32 {
        let special = [
            0,
            0x8000_0000,
            1.0f32.to_bits(),
            (-1.5f32).to_bits(),
            2.5f32.to_bits(),
            f32::INFINITY.to_bits(),
            f32::NEG_INFINITY.to_bits(),
            f32::MAX.to_bits(),
            1,
            0x8000_1234,
            0x7FC0_0001,
            0xFFC0_0BAD,
            0x7F80_0042,
            0xFFA0_0007,
            2_147_483_648.0f32.to_bits(),
            (-2_147_483_648.0f32).to_bits(),
            9_223_372_036_854_775_808.0f32.to_bits(),
            1e30f32.to_bits(),
            1e-40f32.to_bits(),
        ];
        match self.next() >> 61 {
            0 => ((self.next() as i16) as f32 / 8.0).to_bits(),
            1 => self.next() as u32,
            _ => self.pick(&special),
        }
    }

    /// A register's content; `kind` says what it is good for.
    fn vector(&mut self, kind: usize) -> [u64; 2] {
        std::array::from_fn(|_| match kind % 5 {
            0 | 3 => self.double(),
            1 => u64::from(self.single()) | u64::from(self.single()) << 32,
            2 => (self.next() >> 16) % 70,
            _ => {
                let lanes = [0x0000_8000_7FFF_FFFF, 0x8080_7F7F_0101_FF00, 0xFFFF_FFFF_8000_0000, 0, u64::MAX];
                if self.next() >> 63 == 0 { self.next() } else { self.pick(&lanes) }
            }
        })
    }
}

#[derive(Clone, Copy)]
enum Operand {
    Register(Register),
    Memory,
    Immediate,
}

/// All encodings of `code` with these immediates, as machine code.
fn encodings(code: Code) -> Vec<(Instruction, Vec<u8>)> {
    let template = {
        let mut insn = Instruction::default();
        insn.set_code(code);
        insn
    };
    let count = template.op_count();
    let choices = |position: u32| {
        let registers = if position == 0 {
            [Register::XMM1, Register::EAX, Register::RAX]
        } else {
            [Register::XMM2, Register::ECX, Register::RCX]
        };
        let mut all: Vec<Operand> = registers.into_iter().map(Operand::Register).collect();
        if position == 1 {
            all.push(Operand::Register(Register::XMM1));
        }
        if position == 2 {
            all.push(Operand::Register(Register::XMM0));
        }
        all.extend([Operand::Memory, Operand::Immediate]);
        all
    };
    let mut lists: Vec<Vec<Operand>> = vec![vec![]];
    for position in 0..count {
        lists = lists
            .iter()
            .flat_map(|list| choices(position).into_iter().map(|choice| [list.as_slice(), &[choice]].concat()))
            .collect();
    }
    let mut found = Vec::new();
    for list in lists {
        let immediate = list.iter().any(|operand| matches!(operand, Operand::Immediate));
        let values: &[u8] = match immediate {
            true => &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x0B, 15, 16, 17, 0x1B, 31, 32, 33, 0x4E, 63, 64, 0x93, 0xE4, 0xFF],
            false => &[0],
        };
        for &value in values {
            let mut insn = template;
            for (position, operand) in (0..).zip(&list) {
                match *operand {
                    Operand::Register(register) => {
                        insn.set_op_kind(position, OpKind::Register);
                        insn.set_op_register(position, register);
                    }
                    Operand::Memory => {
                        insn.set_op_kind(position, OpKind::Memory);
                        let memory = MemoryOperand::with_base(Register::RSI);
                        insn.set_memory_base(memory.base);
                    }
                    Operand::Immediate => {
                        insn.set_op_kind(position, OpKind::Immediate8);
                        insn.set_immediate8(value);
                    }
                }
            }
            let mut encoder = Encoder::new(64);
            if encoder.encode(&insn, 0).is_ok() {
                found.push((insn, encoder.take_buffer()));
            }
        }
    }
    found
}

/// What precedes the instruction: nothing; POR XMM1, XMM5 and POR XMM2, XMM5 with XMM5 zero, which keep the translator
/// from holding the registers as pairs of doubles; MOVSD XMM1, [RSI], a load that might be fused into the instruction.
const PREFIXES: [&[u8]; 3] = [&[], &[0x66, 0x0F, 0xEB, 0xCD, 0x66, 0x0F, 0xEB, 0xD5], &[0xF2, 0x0F, 0x10, 0x0E]];

/// A program: perhaps something that makes the translator keep XMM1 as a vector, the instruction, the end.
struct Case {
    code: Code,
    start: u64,
    text: String,
    memory: bool,
    immediate: bool,
}

/// All programs, the memory that holds them, and the number of programs for each opcode.
fn cases() -> (Vec<Case>, Vec<u8>, BTreeMap<Code, u64>) {
    let (mut cases, mut bytes, mut codes) = (Vec::new(), Vec::new(), BTreeMap::new());
    let sets = [
        CpuidFeature::SSE,
        CpuidFeature::SSE2,
        CpuidFeature::SSE3,
        CpuidFeature::SSSE3,
        CpuidFeature::SSE4_1,
        CpuidFeature::SSE4_2,
    ];
    let all = Code::values().filter(|code| {
        code.encoding() == EncodingKind::Legacy
            && !code.cpuid_features().is_empty()
            && code.cpuid_features().iter().all(|feature| sets.contains(feature))
    });
    for code in all {
        for (insn, encoded) in encodings(code) {
            for prefix in PREFIXES {
                *codes.entry(code).or_default() += 1;
                let start = CODE + bytes.len() as u64;
                bytes.extend_from_slice(prefix);
                bytes.extend_from_slice(&encoded);
                bytes.extend([0x0F, 0x01, 0xC1, 0xF4]);
                bytes.resize(bytes.len().next_multiple_of(SLOT as usize), 0xF4);
                let has = |kind| (0..insn.op_count()).any(|position| insn.op_kind(position) == kind);
                let (memory, immediate) = (has(OpKind::Memory), has(OpKind::Immediate8));
                cases.push(Case { code, start, text: insn.to_string(), memory, immediate });
            }
        }
    }
    (cases, bytes, codes)
}

fn machine(engine: Engine, code: &[u8]) -> Machine {
    let mut model = CpuModel::default();
    model.features |= Features::SSSE3 | Features::SSE4_1 | Features::SSE4_2;
    let config = MachineConfig { engine, model, hot_threshold: 0, memory_limit: 1 << 30, ..MachineConfig::default() };
    let mut machine = Machine::new(config).expect("machine");
    let memory = machine.memory();
    memory.map(CODE, (code.len() as u64).next_multiple_of(0x1000), Protection::RX).expect("code");
    memory.map(DATA, DATA_SIZE as u64, Protection::RW).expect("data");
    memory.write_unchecked(CODE, code).expect("code is mapped");
    machine
}

struct Input {
    gpr: [u64; 16],
    xmm: [[u64; 2]; 16],
    mxcsr: u32,
    data: Vec<u8>,
}

fn input(rng: &mut Rng, round: usize, memory: bool) -> Input {
    let mut gpr: [u64; 16] = std::array::from_fn(|_| rng.next());
    // Aligned, misaligned, cut by the end, outside.
    let offset = match round % 8 {
        _ if !memory => 0x200,
        5 => 0x208,
        6 => [0xFF8, 0x1000, 0xFFE, 0xFFF][round / 8 % 4],
        7 => 0x201,
        _ => 0x200,
    };
    gpr[RSI] = DATA + offset;
    let mut xmm = std::array::from_fn(|_| rng.vector(round));
    if round % 5 == 3 {
        xmm[0] = rng.vector(4);
    }
    if round % 10 == 2 {
        // Numbers to be shifted by the counts.
        xmm[1] = rng.vector(4);
    }
    xmm[5] = [0; 2];
    let mxcsr = [0x1F80, 0x1F80, 0x1F80, 0x3F80, 0x5F80, 0x7F80, 0x9FC0][round / 3 % 7];
    let mut data: Vec<u8> = (0..DATA_SIZE).map(|_| 0).collect();
    for at in (0x1F0..0x230).step_by(8) {
        data[at..at + 8].copy_from_slice(&rng.vector(round)[0].to_le_bytes());
    }
    data[0xFF0..].copy_from_slice(&[0x5A; 16]);
    Input { gpr, xmm, mxcsr, data }
}

#[derive(Debug, PartialEq)]
struct Outcome {
    exit: VmExit,
    rip: u64,
    rflags: u64,
    gpr: [u64; 16],
    xmm: [[u64; 2]; 16],
    mxcsr_control: u32,
    cr2: u64,
    data: Vec<u8>,
}

fn run(machine: &mut Machine, case: &Case, input: &Input) -> Outcome {
    machine.memory().write_unchecked(DATA, &input.data).expect("data is mapped");
    let mut vcpu = machine.vcpu();
    vcpu.enter_kernel_mode(0x10, 0x18);
    let state = vcpu.state_mut();
    state.gpr = input.gpr;
    state.xmm = input.xmm;
    state.mxcsr = input.mxcsr;
    state.rflags = 2;
    state.rip = case.start;
    state.cr2 = 0;
    let exit = machine.run(&mut Stop, 1000);
    let mut data = vec![0; DATA_SIZE];
    machine.memory().read_unchecked(DATA, &mut data).expect("data is mapped");
    let vcpu = machine.vcpu();
    let state = vcpu.state();
    Outcome {
        exit,
        rip: state.rip,
        rflags: state.rflags,
        gpr: state.gpr,
        xmm: state.xmm,
        // Sticky flags may differ: results that nobody uses are not computed.
        mxcsr_control: state.mxcsr & !0x3F,
        cr2: state.cr2,
        data,
    }
}

#[test]
fn every_form_agrees() {
    let (cases, code, codes) = cases();
    let mut reference = machine(Engine::Interpreter, &code);
    let mut translated = machine(Engine::Translator, &code);
    let mut failures: BTreeMap<Code, u32> = BTreeMap::new();
    for (index, case) in cases.iter().enumerate() {
        let mut rng = Rng(0x1234_5678_9ABC_DEF1 ^ (index as u64) << 20);
        let rounds = if case.immediate { 16 } else { 48 };
        for round in 0..rounds {
            let input = input(&mut rng, round + index, case.memory);
            let expected = run(&mut reference, case, &input);
            let got = run(&mut translated, case, &input);
            if expected == got {
                continue;
            }
            let count = failures.entry(case.code).or_default();
            *count += 1;
            if *count == 1 {
                eprintln!("{} mxcsr {:#x}", case.text, input.mxcsr);
                eprintln!("  xmm0 {:x?} xmm1 {:x?} xmm2 {:x?}", input.xmm[0], input.xmm[1], input.xmm[2]);
                eprintln!("  memory {:x?} rsi {:x}", &input.data[0x200..0x210], input.gpr[RSI]);
                for outcome in [&expected, &got] {
                    eprintln!(
                        "  {:?} rip {:x} rflags {:x} rax {:x} xmm1 {:x?} cr2 {:x} mxcsr {:x}",
                        outcome.exit,
                        outcome.rip,
                        outcome.rflags,
                        outcome.gpr[0],
                        outcome.xmm[1],
                        outcome.cr2,
                        outcome.mxcsr_control
                    );
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:?}");

    let statistics = translated.statistics();
    assert!(codes.len() > 300, "{} opcodes", codes.len());
    assert!(statistics.regions as usize >= cases.len(), "{} regions", statistics.regions);
    let (interpreted, all) = (statistics.interpreted, statistics.instructions);
    assert!(interpreted * 4 < all, "{interpreted} of {all} instructions were interpreted");
    for (code, forms) in codes {
        let interpreted = statistics.fallbacks.get(&format!("{code:?}")).copied().unwrap_or(0);
        // Beside floating-point operations these two are barriers, in regions without any they are lifted.
        if matches!(code, Code::Ldmxcsr_m32 | Code::Stmxcsr_m32) {
            continue;
        }
        assert!(interpreted == 0, "{code:?}: {interpreted} of {forms} forms are interpreted");
    }
}

/// Runs `program` with RSI pointing to `data`; returns how it ended and the state.
fn run_program(engine: Engine, program: fn(&mut CodeAssembler), data: &[u8]) -> (VmExit, CpuState, Vec<u8>) {
    let mut assembler = CodeAssembler::new(64).expect("assembler");
    program(&mut assembler);
    let mut machine = machine(engine, &assembler.assemble(CODE).expect("program"));
    machine.memory().write_unchecked(DATA, data).expect("data is mapped");
    let mut vcpu = machine.vcpu();
    vcpu.enter_kernel_mode(0x10, 0x18);
    let state = vcpu.state_mut();
    state.rip = CODE;
    state.gpr[RSI] = DATA;
    let exit = machine.run(&mut Stop, 1000);
    let mut after = vec![0; data.len()];
    machine.memory().read_unchecked(DATA, &mut after).expect("data is mapped");
    (exit, machine.vcpu().state().clone(), after)
}

#[test]
fn equal_operations_round_as_mxcsr_says_at_each() {
    let program = |a: &mut CodeAssembler| {
        a.movsd_2(xmm1, qword_ptr(rsi)).unwrap();
        a.movapd(xmm2, xmm1).unwrap();
        a.addsd(xmm1, qword_ptr(rsi + 8)).unwrap();
        a.ldmxcsr(dword_ptr(rsi + 16)).unwrap();
        a.addsd(xmm2, qword_ptr(rsi + 8)).unwrap();
        a.stmxcsr(dword_ptr(rsi + 20)).unwrap();
        a.vmcall().unwrap();
    };
    let mut data = [1.0f64.to_le_bytes(), 1e-20f64.to_le_bytes()].concat();
    data.extend([0x5F80u32.to_le_bytes(), [0; 4]].concat());
    for engine in [Engine::Interpreter, Engine::Translator] {
        let (exit, state, data) = run_program(engine, program, &data);
        assert_eq!(exit, VmExit::Stopped);
        assert_eq!(f64::from_bits(state.xmm[1][0]), 1.0, "{engine:?}: to nearest");
        assert_eq!(f64::from_bits(state.xmm[2][0]), 1.0f64.next_up(), "{engine:?}: up");
        // The precision flag of the second addition only.
        assert_eq!(data[20..], 0x5FA0u32.to_le_bytes(), "{engine:?}");
    }
}

#[test]
fn an_unmasked_exception_stops_the_division_that_raises_it() {
    let program = |a: &mut CodeAssembler| {
        a.movsd_2(xmm1, qword_ptr(rsi)).unwrap();
        a.pxor(xmm2, xmm2).unwrap();
        a.ldmxcsr(dword_ptr(rsi + 8)).unwrap();
        a.divsd(xmm1, xmm2).unwrap();
        a.vmcall().unwrap();
    };
    let data = [&1.0f64.to_le_bytes()[..], &0x1D80u32.to_le_bytes()].concat();
    for engine in [Engine::Interpreter, Engine::Translator] {
        let (exit, state, _) = run_program(engine, program, &data);
        // Nothing handles it here.
        assert_eq!(exit, VmExit::Shutdown, "{engine:?}");
        assert_eq!(state.rip, CODE + 12, "{engine:?}");
        assert_eq!(f64::from_bits(state.xmm[1][0]), 1.0, "{engine:?}");
    }
}
