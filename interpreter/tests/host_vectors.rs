//! Every MMX, SSE and x87 instruction, in register and memory form, against the host processor.
//!
//! The instructions come from the decoder's own list, so that none is forgotten: what the interpreter does not
//! implement has to be in [`NOT_IMPLEMENTED`]. Inputs are random, with a strong taste for edge cases, under random rounding
//! modes, FTZ, DAZ and exception masks. `LSTAR_HOST_CASES` sets the number of cases per instruction form.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod host;

use std::collections::BTreeMap;

use host::{Host, State};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind,
    OpKind, Register,
};
use lstar_arch::cpuid::Features;
use lstar_arch::{CpuModel, CpuState, Exception, GuestMemory, PageFault, PageFaultCode, Privilege, Rflags, Vendor};
use lstar_interpreter::{Interpreter, Outcome};

/// What the interpreter leaves out.
const NOT_IMPLEMENTED: &[Mnemonic] = &[];

/// A small generator of reproducible numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }
    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
    /// A float of `exponent_bits` and `fraction_bits`, often at an edge of the format.
    fn float(&mut self, exponent_bits: u32, fraction_bits: u32) -> u64 {
        let ones = |bits: u32| (1u64 << bits) - 1;
        let bias = ones(exponent_bits - 1);
        let near = self.next() & 3;
        let exponent = match self.below(10) {
            0 => 0,
            1 => ones(exponent_bits),
            2 => ones(exponent_bits) - 1 - near,
            3 => 1 + near,
            4 => bias / 2 + near,
            5 => bias + bias / 2 + near,
            6 => bias + self.next() % 66,
            7 => self.next() & ones(exponent_bits),
            _ => bias.wrapping_add(near).wrapping_sub(2),
        };
        let fraction = match self.below(8) {
            0 => 0,
            1 => 1,
            2 => ones(fraction_bits),
            3 => 1 << (fraction_bits - 1),
            4 => (1 << (fraction_bits - 1)) | 1,
            5 => self.next() >> self.below(64),
            6 => (self.next() & 0xFF) << (fraction_bits - 8),
            _ => self.next(),
        };
        (self.next() & 1) << (exponent_bits + fraction_bits)
            | exponent << fraction_bits
            | fraction & ones(fraction_bits)
    }
    /// Sixteen bytes that mean something to some instruction.
    fn vector(&mut self) -> [u8; 16] {
        let mut halves = || match self.below(8) {
            0..=1 => self.float(11, 52),
            2..=4 => self.float(8, 23) << 32 | self.float(8, 23),
            5 => {
                let edges: &[u32] =
                    &[0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, u32::MAX];
                u64::from(self.pick(edges)) << 32 | u64::from(self.pick(edges))
            }
            6 => self.next() % 70,
            _ => self.next(),
        };
        let (low, high) = (halves(), halves());
        (u128::from(low) | u128::from(high) << 64).to_le_bytes()
    }
    /// An 80-bit image, sometimes an unsupported one.
    fn extended(&mut self) -> [u8; 16] {
        let double = self.float(15, 48);
        let exponent = (double >> 48) as u16;
        let significand = match self.below(6) {
            0 => self.next(),
            1 => 1 << 63,
            2 => u64::MAX << self.below(64),
            _ => double << 15 | self.next() >> self.below(64),
        };
        let integer_bit = u64::from(exponent & 0x7FFF != 0 && self.below(24) != 0) << 63;
        let mut image = [0; 16];
        image[..8].copy_from_slice(&(significand & !(1 << 63) | integer_bit).to_le_bytes());
        image[8..10].copy_from_slice(&exponent.to_le_bytes());
        image
    }
}

/// Address of the instruction.
const CODE: u64 = 0x1000;

/// The instruction, and its memory operand at the address it has on the host.
struct Memory<'a> {
    address: u64,
    bytes: &'a mut [u8],
    code: &'a [u8],
}

impl Memory<'_> {
    fn slice(&mut self, address: u64, len: usize) -> Result<&mut [u8], PageFault> {
        let start = address.wrapping_sub(self.address) as usize;
        let fault = PageFault { address, code: PageFaultCode::empty() };
        self.bytes.get_mut(start..).and_then(|bytes| bytes.get_mut(..len)).ok_or(fault)
    }
}

impl GuestMemory for Memory<'_> {
    fn read(&mut self, address: u64, buf: &mut [u8], _: Privilege) -> Result<(), PageFault> {
        buf.copy_from_slice(self.slice(address, buf.len())?);
        Ok(())
    }
    fn write(&mut self, address: u64, data: &[u8], _: Privilege) -> Result<(), PageFault> {
        self.slice(address, data.len())?.copy_from_slice(data);
        Ok(())
    }
    fn probe_write(&mut self, address: u64, len: u64, _: Privilege) -> Result<(), PageFault> {
        self.slice(address, len as usize).map(|_| ())
    }
    fn fetch(&mut self, address: u64, buf: &mut [u8], _: Privilege) -> Result<usize, PageFault> {
        assert_eq!(address, CODE);
        let len = buf.len().min(self.code.len());
        buf[..len].copy_from_slice(&self.code[..len]);
        Ok(len)
    }
    fn code_modified(&self) -> bool {
        false
    }
}

fn word(image: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

/// The processor state that `state` describes.
fn processor(state: &State) -> CpuState {
    let mut cpu = CpuState::new(CpuModel { vendor: Vendor::Amd, features: Features::all() });
    cpu.gpr[0] = state.gpr[0];
    cpu.gpr[1] = state.gpr[1];
    cpu.gpr[2] = state.gpr[2];
    cpu.gpr[6] = state.memory_address();
    cpu.gpr[7] = state.memory_address();
    cpu.rflags = state.rflags;
    cpu.cpl = 3;
    let image = &state.image;
    cpu.x87.control = word(image, 0);
    cpu.x87.status = word(image, 2);
    cpu.x87.valid = image[4];
    cpu.x87.opcode = word(image, 6);
    cpu.x87.instruction_pointer = u64::from_le_bytes(image[8..16].try_into().unwrap());
    cpu.x87.data_pointer = u64::from_le_bytes(image[16..24].try_into().unwrap());
    cpu.mxcsr = u32::from_le_bytes(image[24..28].try_into().unwrap());
    let top = usize::from(cpu.x87.status >> 11 & 7);
    for index in 0..8 {
        cpu.x87.registers[(top + index) & 7][..10].copy_from_slice(&image[32 + 16 * index..][..10]);
    }
    for (index, register) in cpu.xmm.iter_mut().enumerate() {
        let bits = u128::from_le_bytes(image[160 + 16 * index..][..16].try_into().unwrap());
        *register = [bits as u64, (bits >> 64) as u64];
    }
    cpu
}

/// What is compared, as text that a failure can show.
fn describe(cpu: &CpuState, memory: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    for (name, value) in [("rax", cpu.gpr[0]), ("rcx", cpu.gpr[1]), ("rdx", cpu.gpr[2])] {
        fields.insert(name.into(), format!("{value:016x}"));
    }
    fields.insert("rflags".into(), format!("{:?}", cpu.flags() & Rflags::STATUS));
    fields.insert("mxcsr".into(), format!("{:04x}", cpu.mxcsr));
    fields.insert("fcw".into(), format!("{:04x}", cpu.x87.control));
    fields.insert("fsw".into(), format!("{:04x}", cpu.x87.status));
    // On the host the pointers show only with an exception pending.
    if cpu.x87.status & 0x80 != 0 {
        fields.insert("fop".into(), format!("{:03x}", cpu.x87.opcode));
        fields.insert("fip".into(), format!("{:x}", cpu.x87.instruction_pointer));
        fields.insert("fdp".into(), format!("{:x}", cpu.x87.data_pointer));
    }
    fields.insert("ftw".into(), format!("{:02x}", cpu.x87.valid));
    for (index, register) in cpu.x87.registers.iter().enumerate() {
        let bits = u128::from_le_bytes(*register) & ((1 << 80) - 1);
        fields.insert(format!("r{index}"), format!("{:04x}:{:016x}", bits >> 64, bits as u64));
    }
    for (index, [low, high]) in cpu.xmm.iter().enumerate() {
        fields.insert(format!("xmm{index:02}"), format!("{high:016x}_{low:016x}"));
    }
    for (index, line) in memory.chunks(16).enumerate() {
        fields.insert(format!("mem{index:02}"), format!("{:032x}", u128::from_le_bytes(line.try_into().unwrap())));
    }
    fields
}

/// Builds the instruction with registers 1, 2, .. or with `[rsi]` as its memory operand; `None` if it has no such form.
fn form(code: Code, memory: bool, immediate: u8, alias: bool) -> Option<Instruction> {
    use OpCodeOperandKind as Kind;
    let info = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    let mut has_memory = false;
    for op in 0..info.op_count() {
        let kind = info.op_kind(op);
        let nth = if alias { 1 } else { op + 1 };
        let register = match kind {
            Kind::xmm_reg | Kind::xmm_rm => Register::XMM0 + nth,
            Kind::mm_reg | Kind::mm_rm => Register::MM0 + nth,
            Kind::r32_reg | Kind::r32_rm => [Register::EAX, Register::ECX][op as usize & 1],
            Kind::r64_reg | Kind::r64_rm => [Register::RAX, Register::RCX][op as usize & 1],
            Kind::xmm_or_mem if !memory => Register::XMM0 + nth,
            Kind::mm_or_mem if !memory => Register::MM0 + nth,
            Kind::r32_or_mem if !memory => [Register::EAX, Register::ECX][op as usize & 1],
            Kind::r64_or_mem if !memory => [Register::RAX, Register::RCX][op as usize & 1],
            Kind::st0 => Register::ST0,
            Kind::sti_opcode => Register::ST0 + u32::from(immediate & 7),
            Kind::ax => Register::AX,
            Kind::imm8 => {
                insn.set_op_kind(op, OpKind::Immediate8);
                insn.set_immediate8(immediate);
                continue;
            }
            Kind::seg_rDI => {
                insn.set_op_kind(op, OpKind::MemorySegRDI);
                continue;
            }
            Kind::mem | Kind::xmm_or_mem | Kind::mm_or_mem | Kind::r32_or_mem | Kind::r64_or_mem => {
                insn.set_op_kind(op, OpKind::Memory);
                insn.set_memory_base(Register::RSI);
                has_memory = true;
                continue;
            }
            _ => return None,
        };
        insn.set_op_kind(op, OpKind::Register);
        insn.set_op_register(op, register);
    }
    (has_memory == memory).then_some(insn)
}

/// Which processor group a test covers.
#[derive(Clone, Copy, PartialEq)]
enum Group {
    Vector,
    X87,
}

fn group(code: Code) -> Option<Group> {
    let info = code.op_code();
    // Not part of the vector state, and the transcendental functions, which have a test of their own.
    let other = matches!(
        code.mnemonic(),
        Mnemonic::F2xm1
            | Mnemonic::Fcos
            | Mnemonic::Fpatan
            | Mnemonic::Fptan
            | Mnemonic::Fsin
            | Mnemonic::Fsincos
            | Mnemonic::Fyl2x
            | Mnemonic::Fyl2xp1
            | Mnemonic::Crc32
            | Mnemonic::Lfence
            | Mnemonic::Mfence
            | Mnemonic::Sfence
            | Mnemonic::Pause
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Clflush
    );
    if info.encoding() != EncodingKind::Legacy || !info.mode64() || !info.is_instruction() || other {
        return None;
    }
    code.cpuid_features().iter().find_map(|feature| match feature {
        CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 => Some(Group::X87),
        CpuidFeature::MMX
        | CpuidFeature::SSE
        | CpuidFeature::SSE2
        | CpuidFeature::SSE3
        | CpuidFeature::SSSE3
        | CpuidFeature::SSE4_1
        | CpuidFeature::SSE4_2
        | CpuidFeature::AES
        | CpuidFeature::PCLMULQDQ
        | CpuidFeature::SHA
        | CpuidFeature::FXSR => Some(Group::Vector),
        _ => None,
    })
}

fn random_state(random: &mut Random, group: Group) -> State {
    let mut state = State::default();
    let control = (random.next() & 0xF00 | 0x7F) as u16;
    let control = if random.below(3) == 0 { control & !0x3F | random.next() as u16 & 0x3F } else { control };
    let top = if group == Group::X87 { random.next() as u16 & 7 } else { 0 };
    let conditions = random.next() as u16 & 0x4700;
    state.image[..2].copy_from_slice(&control.to_le_bytes());
    state.image[2..4].copy_from_slice(&(top << 11 | conditions).to_le_bytes());
    state.image[4] = if random.below(4) == 0 { random.next() as u8 } else { 0xFF };
    // All exceptions masked in most cases; rounding, FTZ and DAZ at will.
    let masks = if random.below(4) == 0 { random.next() as u32 & 0x1F80 } else { 0x1F80 };
    let mxcsr = masks | random.next() as u32 & 0xE040;
    let mxcsr = if random.below(4) == 0 { mxcsr | random.next() as u32 & 0x3F & masks >> 7 } else { mxcsr };
    state.image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    for index in 0..8 {
        let image = if group == Group::X87 { random.extended() } else { random.vector() };
        state.image[32 + 16 * index..][..10].copy_from_slice(&image[..10]);
    }
    for index in 0..16 {
        let image = random.vector();
        state.image[160 + 16 * index..][..16].copy_from_slice(&image);
    }
    // Related operands hit equality, cancellation and exact quotients.
    if random.below(6) == 0 {
        let (first, second) = state.image[160 + 16..].split_at_mut(16);
        second[..16].copy_from_slice(&first[..16]);
    }
    for chunk in state.memory[..512].chunks_mut(16) {
        let image = if group == Group::X87 && random.below(3) == 0 { random.extended() } else { random.vector() };
        chunk.copy_from_slice(&image);
    }
    // As an MXCSR image (LDMXCSR, FXRSTOR) it is valid half of the time, and never has AMD's misalignment bit.
    let valid = random.below(2) == 0;
    for high_half in [2, 26] {
        state.memory[high_half] &= if valid { 0 } else { !2 };
        state.memory[high_half + 1] &= if valid { 0 } else { 0xFF };
    }
    state.gpr = std::array::from_fn(|_| u64::from_le_bytes(random.vector()[..8].try_into().unwrap()));
    state
}

/// Executes one instruction in the interpreter; `None` if it is not implemented.
fn interpret(cpu: &mut CpuState, mem: &mut Memory<'_>) -> Option<Result<(), Exception>> {
    let mut interpreter = Interpreter::new();
    cpu.rip = CODE;
    let result = match interpreter.step(cpu, mem) {
        Outcome::Retired => Ok(()),
        Outcome::Exception(exception) => Err(exception),
        other => panic!("unexpected outcome {other:?}"),
    };
    interpreter.take_unimplemented().is_empty().then_some(result)
}

fn signal_of(exception: Exception) -> i32 {
    match exception {
        Exception::XM | Exception::MF => libc::SIGFPE,
        Exception::UD => libc::SIGILL,
        _ => libc::SIGSEGV,
    }
}

/// Whether an approximation is as close as the manual demands, on both sides.
fn approximately_equal(ours: &CpuState, theirs: &CpuState) -> bool {
    let lanes = |cpu: &CpuState| cpu.xmm.map(|halves| halves.map(|half| [half as u32, (half >> 32) as u32]));
    lanes(ours).as_flattened().as_flattened().iter().zip(lanes(theirs).as_flattened().as_flattened()).all(|(a, b)| {
        let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
        // A processor's result just above the smallest normal may be flushed here, or the reverse.
        let tiny = |value: f32| value.abs() <= f32::MIN_POSITIVE * 1.001;
        a.to_bits() == b.to_bits() || ((a - b) / b).abs() < 1.5 / 4096.0 || tiny(a) && tiny(b)
    })
}

#[derive(Default)]
struct Totals {
    forms: usize,
    cases: usize,
    faults: usize,
    failures: Vec<String>,
    missing: Vec<Mnemonic>,
}

/// Runs `cases` random states through one instruction on both sides.
fn check_form(insn: &Instruction, group: Group, cases: usize, random: &mut Random, totals: &mut Totals) {
    let mut encoder = Encoder::new(64);
    if encoder.encode(insn, CODE).is_err() {
        return;
    }
    let bytes = encoder.take_buffer();
    let decoded = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
    if decoded.code() == Code::Wait && insn.code() != Code::Wait {
        // FSTCW and its like are two instructions: WAIT and the non-waiting form, which is on the list itself.
        return;
    }
    assert_eq!(decoded.code(), insn.code(), "encoding does not round-trip");
    let host = Host::new(&bytes);
    totals.forms += 1;
    let mut failures = 0;
    let mut sample = String::new();
    for _ in 0..cases {
        let mut state = random_state(random, group);
        let mut cpu = processor(&state);
        let before = describe(&cpu, &state.memory);
        let mut memory = state.memory;
        let mut mem = Memory { address: state.memory_address(), bytes: &mut memory, code: &bytes };
        let Some(ours) = interpret(&mut cpu, &mut mem) else {
            totals.missing.push(insn.mnemonic());
            return;
        };
        let theirs = host.run(&mut state);
        let mut judge = processor(&state);
        if judge.x87.instruction_pointer == host.instruction_address() {
            judge.x87.instruction_pointer = CODE;
        }
        if matches!(insn.mnemonic(), Mnemonic::Fxsave | Mnemonic::Fxsave64) {
            // MXCSR_MASK: AMD's processors have a bit more.
            state.memory[30] &= !2;
        }
        totals.cases += 1;
        totals.faults += usize::from(theirs.is_err());
        let (mine, expected) = (describe(&cpu, &memory), describe(&judge, &state.memory));
        let ours = ours.map_err(signal_of);
        let approximate =
            matches!(insn.mnemonic(), Mnemonic::Rcpps | Mnemonic::Rcpss | Mnemonic::Rsqrtps | Mnemonic::Rsqrtss);
        if mine != expected && !(approximate && approximately_equal(&cpu, &judge)) || ours != theirs {
            failures += 1;
            if sample.is_empty() {
                sample = format!("  ours {ours:?}, host {theirs:?}\n");
                for name in mine.keys().filter(|&name| expected.contains_key(name)) {
                    let unknown = String::from("-");
                    let before = before.get(name).unwrap_or(&unknown);
                    let interesting = ["mxcsr", "fcw", "fsw", "ftw", "r0", "xmm01", "xmm02", "xmm00", "mem00"];
                    if mine[name] != expected[name] || interesting.contains(&name.as_str()) {
                        let mark = if mine[name] == expected[name] { ' ' } else { '*' };
                        sample +=
                            &format!("  {mark}{name}: before {before} ours {} host {}\n", mine[name], expected[name]);
                    }
                }
            }
        }
    }
    if failures > 0 {
        totals.failures.push(format!("{insn} ({:?}): {failures} of {cases} differ\n{sample}", insn.code()));
    }
}

fn check_group(wanted: Group) {
    let cases = std::env::var("LSTAR_HOST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut totals = Totals::default();
    let only = std::env::var("LSTAR_HOST_ONLY").unwrap_or_default();
    for code in Code::values().filter(|&code| group(code) == Some(wanted)) {
        if !only.is_empty() && !format!("{code:?}").starts_with(&only) {
            continue;
        }
        let immediates = code
            .op_code()
            .op_kinds()
            .iter()
            .find_map(|kind| match kind {
                OpCodeOperandKind::imm8 => Some(32),
                OpCodeOperandKind::sti_opcode => Some(8),
                _ => None,
            })
            .unwrap_or(1);
        for index in 0..immediates {
            let immediate = if index < 8 { index as u8 } else { random.next() as u8 };
            for (memory, alias) in [(false, false), (false, true), (true, false)] {
                if let Some(insn) = form(code, memory, immediate, alias) {
                    check_form(&insn, wanted, cases / immediates.min(8), &mut random, &mut totals);
                }
            }
        }
    }
    totals.missing.sort_unstable();
    totals.missing.dedup();
    println!(
        "{} forms, {} cases, {} of them faults, {} forms differ; not implemented: {:?}",
        totals.forms,
        totals.cases,
        totals.faults,
        totals.failures.len(),
        totals.missing
    );
    assert!(totals.failures.is_empty(), "{}", totals.failures.join("\n"));
    let unexpected: Vec<_> = totals.missing.iter().filter(|mnemonic| !NOT_IMPLEMENTED.contains(mnemonic)).collect();
    assert!(unexpected.is_empty(), "not implemented: {unexpected:?}");
}

#[test]
fn vector_instructions_match_the_host() {
    check_group(Group::Vector);
}

#[test]
fn x87_instructions_match_the_host() {
    check_group(Group::X87);
}
