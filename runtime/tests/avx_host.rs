//! Every VEX-encoded vector instruction gives the same result in translated code and on the host processor.
//!
//! The forms come from iced-x86's list of opcodes: each is encoded with every combination of operand kinds that it takes
//! and run on numbers at which arithmetic goes wrong. Faults are the business of other tests: memory operands lie inside
//! the data here, aligned and not. Opcodes that translated code leaves to the interpreter are listed.

#![cfg(target_arch = "x86_64")]
#![expect(unsafe_code, reason = "runs the instructions on the host")]

use std::collections::BTreeMap;

use iced_x86::{Code, CpuidFeature, Encoder, EncodingKind, Instruction, MemoryOperand, OpKind, Register};
use lstar_arch::cpuid::{CpuModel, Features};
use lstar_runtime::{Engine, GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, Vcpu, VmExit};

const CODE: u64 = 0x1_4000_0000;
const SLOT: usize = 64;
const DATA: u64 = 0x1_5000_0000;
const DATA_SIZE: usize = 0x1000;
/// Where RSI points.
const MIDDLE: usize = 0x800;
const STATUS_FLAGS: u64 = 0x8D5;

/// Opcodes that translated code leaves to the interpreter.
fn is_interpreted(code: Code) -> bool {
    let name = format!("{code:?}");
    // Precision differs between processors; stores under a byte mask are rare; MXCSR is not ordered with arithmetic.
    ["VEX_Vrcp", "VEX_Vrsqrt", "VEX_Vmaskmovdqu", "VEX_Vldmxcsr", "VEX_Vstmxcsr"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

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
            f64::INFINITY.to_bits(),
            f64::MAX.to_bits(),
            1,
            0x7FF8_0000_0000_0001,
            0xFFF8_0000_0000_0BAD,
            0x7FF0_0000_0000_0042,
            2_147_483_647.5f64.to_bits(),
            9_223_372_036_854_775_808.0f64.to_bits(),
            3e-310f64.to_bits(),
        ];
        match self.next() >> 61 {
            0 => self.next(),
            1..3 => ((self.next() as i32) as f64 / 8.0).to_bits(),
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
            f32::MAX.to_bits(),
            1,
            0x7FC0_0001,
            0xFFC0_0BAD,
            0x7F80_0042,
            2_147_483_648.0f32.to_bits(),
            1e30f32.to_bits(),
            1e-40f32.to_bits(),
        ];
        match self.next() >> 61 {
            0 => self.next() as u32,
            1..3 => ((self.next() as i16) as f32 / 8.0).to_bits(),
            _ => self.pick(&special),
        }
    }

    /// A quadword of a register; `kind` says what it is good for.
    fn quadword(&mut self, kind: usize) -> u64 {
        match kind % 5 {
            0 | 3 => self.double(),
            1 => u64::from(self.single()) | u64::from(self.single()) << 32,
            2 => self.next() >> 58 | (self.next() >> 58) << 32,
            _ => {
                let lanes = [0x0000_8000_7FFF_FFFF, 0x8080_7F7F_0101_FF00, 0xFFFF_FFFF_8000_0000, 0, u64::MAX];
                if self.next() >> 63 == 0 { self.next() } else { self.pick(&lanes) }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Operand {
    Register(Register),
    Memory(Register),
    Immediate,
}

/// Numbers of the registers at each position, and for the lowest, the destination equal to the first source.
fn choices(position: u32) -> Vec<Operand> {
    let number = position as usize;
    let xmm = [Register::XMM1, Register::XMM2, Register::XMM3, Register::XMM4][number];
    let ymm = [Register::YMM1, Register::YMM2, Register::YMM3, Register::YMM4][number];
    let mut all = vec![
        Operand::Register(xmm),
        Operand::Register(ymm),
        Operand::Register(Register::EAX),
        Operand::Register(Register::RAX),
        Operand::Memory(Register::None),
        Operand::Memory(Register::XMM6),
        Operand::Memory(Register::YMM6),
        Operand::Immediate,
    ];
    if position == 1 {
        all.extend([Operand::Register(Register::XMM1), Operand::Register(Register::YMM1)]);
    }
    all
}

/// All encodings of `code`, as machine code.
fn encodings(code: Code) -> Vec<(Instruction, Vec<u8>)> {
    let template = {
        let mut insn = Instruction::default();
        insn.set_code(code);
        insn
    };
    let mut lists: Vec<Vec<Operand>> = vec![vec![]];
    for position in 0..template.op_count() {
        lists = lists
            .iter()
            .flat_map(|list| choices(position).into_iter().map(|choice| [list.as_slice(), &[choice]].concat()))
            .collect();
    }
    let mut found = Vec::new();
    for list in lists {
        let immediate = list.iter().any(|operand| matches!(operand, Operand::Immediate));
        let values: &[u8] = if immediate {
            &[
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 0x1B, 30, 31, 32, 0x4E, 63, 0x93,
                0xE4, 0xFF,
            ]
        } else {
            &[0]
        };
        for &value in values {
            let mut insn = template;
            for (position, operand) in (0..).zip(&list) {
                match *operand {
                    Operand::Register(register) => {
                        insn.set_op_kind(position, OpKind::Register);
                        insn.set_op_register(position, register);
                    }
                    Operand::Memory(index) => {
                        insn.set_op_kind(position, OpKind::Memory);
                        let memory = MemoryOperand::with_base(Register::RSI);
                        insn.set_memory_base(memory.base);
                        insn.set_memory_index(index);
                        insn.set_memory_index_scale(if index == Register::None { 1 } else { 4 });
                    }
                    Operand::Immediate => {
                        insn.set_op_kind(position, OpKind::Immediate8);
                        insn.set_immediate8(value);
                    }
                }
            }
            if insn.is_vsib() && !insn.memory_index().is_vector_register() {
                continue;
            }
            let mut encoder = Encoder::new(64);
            if encoder.encode(&insn, 0).is_ok() {
                found.push((insn, encoder.take_buffer()));
            }
        }
    }
    found
}

/// What precedes the instruction: nothing, or VPOR of registers 1 to 4 with themselves, which keeps the translator from
/// holding registers as pairs of doubles.
const PREFIXES: [&[u8]; 2] =
    [&[], &[0xC5, 0xF5, 0xEB, 0xC9, 0xC5, 0xED, 0xEB, 0xD2, 0xC5, 0xE5, 0xEB, 0xDB, 0xC5, 0xDD, 0xEB, 0xE4]];

struct Case {
    code: Code,
    start: u64,
    body: Vec<u8>,
    text: String,
    immediate: bool,
    aligned: bool,
}

fn is_offered(feature: CpuidFeature) -> bool {
    match feature {
        CpuidFeature::AVX => is_x86_feature_detected!("avx"),
        CpuidFeature::AVX2 => is_x86_feature_detected!("avx2"),
        CpuidFeature::FMA => is_x86_feature_detected!("fma"),
        CpuidFeature::F16C => is_x86_feature_detected!("f16c"),
        CpuidFeature::AES => is_x86_feature_detected!("aes"),
        CpuidFeature::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        CpuidFeature::VAES => is_x86_feature_detected!("vaes"),
        CpuidFeature::VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        _ => false,
    }
}

fn cases() -> (Vec<Case>, Vec<u8>, BTreeMap<Code, u64>) {
    let (mut cases, mut bytes, mut codes) = (Vec::new(), Vec::new(), BTreeMap::new());
    let all = Code::values().filter(|code| {
        code.encoding() == EncodingKind::VEX
            && code.cpuid_features().iter().all(|feature| is_offered(*feature))
            && !is_interpreted(*code)
    });
    for code in all {
        for (insn, encoded) in encodings(code) {
            for prefix in PREFIXES {
                *codes.entry(code).or_default() += 1;
                let start = CODE + bytes.len() as u64;
                let body = [prefix, &encoded].concat();
                bytes.extend_from_slice(&body);
                bytes.extend([0x0F, 0x01, 0xC1, 0xF4]);
                bytes.resize(bytes.len().next_multiple_of(SLOT), 0xF4);
                let immediate = (0..insn.op_count()).any(|position| insn.op_kind(position) == OpKind::Immediate8);
                let text = insn.to_string();
                let aligned = ["vmova", "vmovdqa", "vmovnt"].iter().any(|prefix| text.starts_with(prefix));
                cases.push(Case { code, start, body, text, immediate, aligned });
            }
        }
    }
    (cases, bytes, codes)
}

fn machine(code: &[u8]) -> Machine {
    let mut model = CpuModel::default();
    model.features |= Features::all();
    let config = MachineConfig {
        engine: Engine::Translator,
        model,
        hot_threshold: 0,
        memory_limit: 1 << 30,
        ..MachineConfig::default()
    };
    let mut machine = Machine::new(config).expect("machine");
    let memory = machine.memory();
    memory.map(CODE, (code.len() as u64).next_multiple_of(0x1000), Protection::RX).expect("code");
    memory.map(DATA, DATA_SIZE as u64, Protection::RW).expect("data");
    memory.write_unchecked(CODE, code).expect("code is mapped");
    machine
}

/// Registers and memory before or after. RSI is kept apart, as it differs.
#[derive(Clone, Debug, PartialEq)]
#[repr(C, align(64))]
struct State {
    ymm: [[u64; 4]; 16],
    rax: u64,
    rflags: u64,
    mxcsr: u64,
    data: Vec<u8>,
}

fn input(rng: &mut Rng, round: usize) -> State {
    let mut ymm: [[u64; 4]; 16] = std::array::from_fn(|_| std::array::from_fn(|_| rng.quadword(round)));
    // Indices of gathers.
    ymm[6] = std::array::from_fn(|_| rng.next() >> 59 | (rng.next() >> 63) << 32);
    if round % 4 == 1 {
        ymm[6] = std::array::from_fn(|_| (rng.next() >> 59).wrapping_neg());
    }
    if round % 10 == 2 {
        // Numbers to be shifted by the counts, masks.
        ymm[2] = std::array::from_fn(|_| rng.quadword(4));
    }
    if round.is_multiple_of(3) {
        ymm[3] = std::array::from_fn(|_| rng.quadword(4));
    }
    let mxcsr = [0x1F80, 0x1F80, 0x1F80, 0x3F80, 0x5F80, 0x7F80, 0x9FC0][round / 3 % 7];
    let data = (0..DATA_SIZE / 8).flat_map(|_| rng.quadword(round).to_le_bytes()).collect();
    State { ymm, rax: rng.next(), rflags: 2, mxcsr, data }
}

fn translated(machine: &mut Machine, case: &Case, input: &State, rsi: usize) -> Result<State, VmExit> {
    machine.memory().write_unchecked(DATA, &input.data).expect("data is mapped");
    let mut vcpu = machine.vcpu();
    vcpu.enter_kernel_mode(0x10, 0x18);
    let state = vcpu.state_mut();
    state.gpr[0] = input.rax;
    state.gpr[2] = 5;
    state.gpr[6] = DATA + rsi as u64;
    for (index, [a, b, c, d]) in input.ymm.into_iter().enumerate() {
        state.xmm[index] = [a, b];
        state.ymm_high[index] = [c, d];
    }
    state.mxcsr = input.mxcsr as u32;
    state.rflags = 2;
    state.rip = case.start;
    let exit = machine.run(&mut Stop, 1000);
    let mut data = vec![0; DATA_SIZE];
    machine.memory().read_unchecked(DATA, &mut data).expect("data is mapped");
    if exit != VmExit::Stopped {
        return Err(exit);
    }
    let vcpu = machine.vcpu();
    let state = vcpu.state();
    let ymm = std::array::from_fn(|index| {
        let ([a, b], [c, d]) = (state.xmm[index], state.ymm_high[index]);
        [a, b, c, d]
    });
    let (rflags, mxcsr) = (state.rflags & STATUS_FLAGS, u64::from(state.mxcsr));
    Ok(State { ymm, rax: state.gpr[0], rflags, mxcsr, data })
}

/// Executable memory and data, page-aligned like the guest's.
struct Host {
    page: *mut u8,
    data: *mut u8,
}

impl Host {
    fn new() -> Self {
        let [page, data] = [libc::PROT_EXEC, 0].map(|more| {
            // SAFETY: an anonymous mapping of its own.
            let page = unsafe {
                let protection = libc::PROT_READ | libc::PROT_WRITE | more;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(std::ptr::null_mut(), DATA_SIZE, protection, flags, -1, 0)
            };
            assert_ne!(page, libc::MAP_FAILED);
            page.cast()
        });
        Self { page, data }
    }

    /// Runs `body`, which touches RAX, RFLAGS, vector registers and memory around RSI only.
    fn run(&self, body: &[u8], input: &State, rsi: usize) -> State {
        let mut state = input.clone();
        let mut code = Vec::new();
        let (load, store) = (0x6F, 0x7F);
        let moves = |code: &mut Vec<u8>, opcode: u8| {
            for register in 0..16u8 {
                // vmovdqu ymmN, [rdi + 32 N] or back
                code.extend([0xC5, if register < 8 { 0xFE } else { 0x7E }, opcode, 0x87 | (register & 7) << 3]);
                code.extend((u32::from(register) * 32).to_le_bytes());
            }
        };
        moves(&mut code, load);
        // mov edx, 5; mov rax, [rdi+512]; ldmxcsr [rdi+528]; push 2; popfq
        code.extend([
            0xBA, 5, 0, 0, 0, 0x48, 0x8B, 0x87, 0x00, 0x02, 0, 0, 0x0F, 0xAE, 0x97, 0x10, 0x02, 0, 0, 0x6A, 0x02, 0x9D,
        ]);
        code.extend_from_slice(body);
        // mov [rdi+512], rax; pushfq; pop [rdi+520]; stmxcsr [rdi+528]
        code.extend([0x48, 0x89, 0x87, 0x00, 0x02, 0, 0, 0x9C, 0x8F, 0x87, 0x08, 0x02, 0, 0, 0x0F, 0xAE, 0x9F]);
        code.extend([0x10, 0x02, 0, 0]);
        moves(&mut code, store);
        // vzeroupper; ret
        code.extend([0xC5, 0xF8, 0x77, 0xC3]);
        let normal = 0x1F80u32;
        // SAFETY: the page is writable and executable and long enough. The code saves nothing but what is named clobbered,
        // and memory operands lie in `self.data`. MXCSR is put back.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.page, code.len());
            std::ptr::copy_nonoverlapping(input.data.as_ptr(), self.data, DATA_SIZE);
            std::arch::asm!(
                "call {code}",
                "ldmxcsr [{normal}]",
                code = in(reg) self.page,
                normal = in(reg) &raw const normal,
                in("rdi") &raw mut state,
                in("rsi") self.data.add(rsi),
                inout("rax") 0u64 => _,
                out("rcx") _,
                out("rdx") _,
                clobber_abi("C"),
            );
            std::ptr::copy_nonoverlapping(self.data, state.data.as_mut_ptr(), DATA_SIZE);
        }
        state.rflags &= STATUS_FLAGS;
        state
    }
}

#[test]
fn every_form_agrees_with_the_host() {
    if !is_x86_feature_detected!("avx") {
        eprintln!("not compared: the host has no AVX");
        return;
    }
    let (cases, code, codes) = cases();
    let mut machine = machine(&code);
    let host = Host::new();
    let mut failures: BTreeMap<Code, u32> = BTreeMap::new();
    let mut sticky: BTreeMap<Code, u32> = BTreeMap::new();
    for (index, case) in cases.iter().enumerate() {
        let mut rng = Rng(0x1234_5678_9ABC_DEF1 ^ (index as u64) << 20);
        let rounds = if case.immediate { 6 } else { 24 };
        for round in 0..rounds {
            let mut input = input(&mut rng, round + index);
            if case.text.contains("gatherq") {
                // Quadwords as indices.
                input.ymm[6] = input.ymm[6].map(|index| (index as i32) as u64);
            }
            let rsi = MIDDLE + if case.aligned { 0 } else { [0, 1, 8, 16][round % 4] };
            let expected = host.run(&case.body, &input, rsi);
            let got = translated(&mut machine, case, &input, rsi);
            let flags = |state: &State| state.mxcsr & 0x3F;
            if let Ok(got) = &got
                && flags(got) != flags(&expected)
            {
                *sticky.entry(case.code).or_default() += 1;
            }
            let comparable = |mut state: State| {
                state.mxcsr &= !0x3F;
                state
            };
            let expected = comparable(expected);
            if got.clone().map(comparable).as_ref() == Ok(&expected) {
                continue;
            }
            let count = failures.entry(case.code).or_default();
            *count += 1;
            if *count == 1 {
                eprintln!("{} ({:?}) mxcsr {:#x}", case.text, case.code, input.mxcsr);
                for register in 1..5 {
                    eprintln!("  ymm{register} {:x?}", input.ymm[register]);
                }
                eprintln!("  memory {:x?}", &input.data[rsi..rsi + 32]);
                match got {
                    Ok(got) => {
                        for register in 0..16 {
                            if got.ymm[register] != expected.ymm[register] {
                                eprintln!("  ymm{register} expected {:x?}", expected.ymm[register]);
                                eprintln!("  ymm{register} got      {:x?}", got.ymm[register]);
                            }
                        }
                        eprintln!(
                            "  rax {:x} {:x}, flags {:x} {:x}",
                            expected.rax, got.rax, expected.rflags, got.rflags
                        );
                        eprintln!("  memory differs: {}", expected.data != got.data);
                    }
                    Err(exit) => eprintln!("  {exit:?}"),
                }
            }
        }
    }
    if !sticky.is_empty() {
        eprintln!("exception flags differ: {sticky:?}");
    }
    assert!(failures.is_empty(), "{} opcodes: {failures:?}", failures.len());
    assert!(codes.len() > 500, "{} opcodes", codes.len());
    let fallbacks: Vec<_> =
        machine.statistics().fallbacks.into_iter().filter(|(name, _)| name.starts_with("VEX")).collect();
    assert!(fallbacks.is_empty(), "interpreted: {fallbacks:?}");
}

/// A 256-bit store that faults on one of two pages changes neither; one that does not changes both.
#[test]
fn stores_across_pages_happen_whole_or_not_at_all() {
    const PAGE: u64 = 0x1000;
    // vmovdqu [rsi], ymm1; vmcall; hlt
    let code = [0xC5, 0xFE, 0x7F, 0x0E, 0x0F, 0x01, 0xC1, 0xF4];
    for (first, second) in [
        (Protection::RW, None),
        (Protection::RW, Some(Protection::READ)),
        (Protection::READ, Some(Protection::RW)),
        (Protection::RW, Some(Protection::RW)),
    ] {
        let mut machine = machine(&code);
        let memory = machine.memory();
        let base = DATA + 16 * PAGE;
        memory.map(base, PAGE, first).expect("first page");
        if let Some(second) = second {
            memory.map(base + PAGE, PAGE, second).expect("second page");
        }
        let mapped = if second.is_some() { 2 * PAGE } else { PAGE };
        for distance in 1..32 {
            let blank: Vec<u8> = (0..mapped).map(|at| at as u8 ^ 0x5A).collect();
            machine.memory().write_unchecked(base, &blank).expect("mapped");
            let rsi = base + PAGE - distance;
            let mut vcpu = machine.vcpu();
            vcpu.enter_kernel_mode(0x10, 0x18);
            let state = vcpu.state_mut();
            state.gpr[6] = rsi;
            state.xmm[1] = [0x1111_1111_1111_1111; 2];
            state.ymm_high[1] = [0x2222_2222_2222_2222; 2];
            state.rflags = 2;
            state.rip = CODE;
            let exit = machine.run(&mut Stop, 1000);
            let mut after = vec![0; mapped as usize];
            machine.memory().read_unchecked(base, &mut after).expect("mapped");
            let mut expected = blank;
            if (first, second) == (Protection::RW, Some(Protection::RW)) {
                assert_eq!(exit, VmExit::Stopped);
                let at = (PAGE - distance) as usize;
                expected[at..at + 16].fill(0x11);
                expected[at + 16..at + 32].fill(0x22);
            } else {
                assert_ne!(exit, VmExit::Stopped, "{first:?} {second:?} {distance}");
            }
            assert!(after == expected, "{first:?} {second:?} {distance}");
        }
    }
}
