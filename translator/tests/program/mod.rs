//! Random guest programs.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory, IntelFormatter,
    Mnemonic, OpAccess, OpKind, Register, RflagsBits,
};

/// Where code lies.
pub const CODE: u64 = 0x1_4000_0000;
/// Bytes of code.
pub const CODE_SIZE: u64 = 0x40_0000;
/// Room for one program.
pub const START_SIZE: u64 = 0x1_0000;
/// Where data lies; the pages behind it are not mapped.
pub const DATA: u64 = 0x1_5000_0000;
/// Bytes of data.
pub const DATA_SIZE: u64 = 0x2000;
/// Where the stack lies.
pub const STACK: u64 = 0x1_6000_0000;
/// Bytes of stack.
pub const STACK_SIZE: u64 = 0x1000;

/// xorshift64*.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        let mut rng = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        rng.next();
        rng.next();
        rng
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    /// A value of the kinds at which arithmetic goes wrong.
    fn interesting(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(4),
            1 => self.below(256),
            2 => 0u64.wrapping_sub(self.below(4) + 1),
            3 => 1 << self.below(64),
            4 => (1u64 << self.below(64)).wrapping_sub(1),
            5 => u64::from(u32::MAX) - self.below(3),
            _ => self.next(),
        }
    }
}

/// A program with its initial state.
pub struct Program {
    pub seed: u64,
    pub start: u64,
    pub code: Vec<u8>,
    pub gpr: [u64; 16],
    pub xmm: [[u64; 2]; 16],
    pub rflags: u64,
    pub data: Vec<u8>,
}

const RBX: u32 = 3;
const RSP: u32 = 4;
const RBP: u32 = 5;
const R15: u32 = 15;

struct Writer<'a> {
    rng: &'a mut Rng,
    start: u64,
    code: Vec<u8>,
    factory: InstructionInfoFactory,
    /// Per cent of accesses through arbitrary registers that are let through.
    wild: u64,
}

impl Writer<'_> {
    fn here(&self) -> u64 {
        self.start + self.code.len() as u64
    }

    /// A random instruction that does not transfer control and leaves RBX, RSP, RBP and R15 alone.
    fn instruction(&mut self) {
        for _ in 0..1000 {
            let bytes = self.random_bytes();
            let mut decoder = Decoder::with_ip(64, &bytes, self.here(), DecoderOptions::NONE);
            let insn = decoder.decode();
            if insn.is_invalid() || !self.wanted(&insn) {
                continue;
            }
            self.code.extend_from_slice(&bytes[..insn.len()]);
            let undefined = insn.rflags_undefined();
            if undefined != 0 {
                self.define_flags(undefined);
            }
            return;
        }
    }

    fn random_bytes(&mut self) -> Vec<u8> {
        let rng = &mut *self.rng;
        let mut bytes = Vec::new();
        if rng.chance(3) {
            bytes.push(0x65);
        }
        if rng.chance(2) {
            bytes.push(0x67);
        }
        if rng.chance(15) {
            bytes.push(0x66);
        } else if rng.chance(15) {
            bytes.push(if rng.chance(50) { 0xF2 } else { 0xF3 });
        }
        if rng.chance(50) {
            bytes.push(0x40 | rng.below(16) as u8 | if rng.chance(60) { 8 } else { 0 });
        }
        match rng.below(10) {
            0..=4 => bytes.push(rng.next() as u8),
            5..=7 => bytes.extend([0x0F, rng.next() as u8]),
            8 => bytes.extend([0x0F, 0x38, 0xF0 + rng.below(16) as u8]),
            _ => {
                // VEX-coded general-purpose instructions.
                bytes.clear();
                let map = 2 + rng.below(2) as u8;
                let vex = [0xC4, 0xE0 & rng.next() as u8 | map, rng.next() as u8 & !4, 0xF0 + rng.below(8) as u8];
                bytes.extend(vex);
            }
        }
        let register = (rng.next() as u8 & 7) << 3;
        if rng.chance(50) {
            bytes.push(0xC0 | register | rng.next() as u8 & 7);
        } else {
            match rng.below(16) {
                0 => bytes.push(rng.next() as u8 & 0xC7 | register),
                1..=8 => bytes.extend([0x40 | register | if rng.chance(50) { 3 } else { 5 }, rng.next() as u8 & 0x7F]),
                9..=13 => {
                    let offset = rng.below(0x1000) as u32;
                    bytes.push(0x80 | register | 3);
                    bytes.extend(offset.to_le_bytes());
                }
                14 => bytes.extend([0x04 | register, 0xC0 & rng.next() as u8 | (rng.next() as u8 & 7) << 3 | 3]),
                _ => bytes.extend([0x44 | register, 0x24, rng.next() as u8 & 0x78]),
            }
        }
        let value = rng.interesting();
        bytes.extend(value.to_le_bytes());
        bytes
    }

    fn wanted(&mut self, insn: &Instruction) -> bool {
        use Mnemonic as M;
        if insn.flow_control() != FlowControl::Next || insn.is_privileged() || insn.is_string_instruction() {
            return false;
        }
        let excluded =
            matches!(
                insn.mnemonic(),
                M::Cpuid | M::Rdtsc | M::Rdtscp | M::Rdrand | M::Rdseed | M::Rdpid | M::Rdpmc | M::Xgetbv | M::Syscall
            ) || matches!(insn.mnemonic(), M::Popf | M::Popfq | M::Pushf | M::Pushfq | M::Enter | M::Leave | M::Wait)
                || matches!(
                    insn.mnemonic(),
                    M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw | M::Lar | M::Lsl | M::Verr
                )
                || matches!(
                    insn.mnemonic(),
                    M::Lss | M::Lfs | M::Lgs | M::Verw | M::Emms | M::Ldmxcsr | M::Stmxcsr | M::Fxsave | M::Fxrstor
                )
                || matches!(insn.mnemonic(), M::Fxsave64 | M::Fxrstor64 | M::Cli | M::Sti | M::In | M::Out | M::Push)
                || matches!(insn.mnemonic(), M::Pop | M::Xlatb | M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase)
                || matches!(insn.mnemonic(), M::Maskmovdqu | M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss | M::Std)
                || matches!(insn.code(), Code::INVALID | Code::Cmpxchg16b_m128);
        if excluded || insn.is_vsib() {
            return false;
        }
        let known = insn.cpuid_features().iter().all(|feature| {
            use iced_x86::CpuidFeature as F;
            matches!(
                feature,
                F::INTEL8086
                    | F::INTEL186
                    | F::INTEL286
                    | F::INTEL386
                    | F::INTEL486
                    | F::X64
                    | F::CMOV
                    | F::SSE
                    | F::SSE2
                    | F::SSE3
                    | F::POPCNT
                    | F::BMI1
                    | F::BMI2
                    | F::LZCNT
                    | F::MOVBE
                    | F::ADX
                    | F::MULTIBYTENOP
                    | F::CX8
            )
        });
        // Far pointers, segment registers and x87 are tested elsewhere.
        let plain = (0..insn.op_count()).all(|index| match insn.op_kind(index) {
            OpKind::Register => {
                let register = insn.op_register(index);
                register.is_gpr() || register.is_xmm()
            }
            OpKind::Memory => insn.memory_size().size() <= 16 || insn.mnemonic() == M::Lea,
            OpKind::FarBranch16 | OpKind::FarBranch32 => false,
            _ => true,
        });
        if !known || !plain {
            return false;
        }
        // What mostly ends a program early: divisions, 16-byte operands that want alignment, wild addresses.
        let risky = matches!(insn.mnemonic(), M::Div | M::Idiv)
            || insn.op_kinds().any(|kind| kind == OpKind::Memory)
                && (insn.memory_size().size() == 16
                    || !matches!(insn.memory_base(), Register::RBX | Register::RBP | Register::RSP)
                    || insn.memory_index() != Register::None
                    || insn.memory_displacement64() > 0x1000
                    || insn.segment_prefix() != Register::None
                    || matches!(insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
                        && insn.op1_kind() == OpKind::Register);
        if risky && self.wild == 0 {
            return false;
        }
        let info = self.factory.info(insn);
        let protected = info.used_registers().iter().any(|used| {
            let register = used.register();
            register.is_gpr()
                && matches!(register.full_register().number() as u32, RBX | RSP | RBP | R15)
                && !matches!(
                    used.access(),
                    OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess
                )
        });
        let faulty = insn.memory_base() != Register::None
            && !matches!(insn.memory_base().full_register().number() as u32, RBX | RSP | RBP);
        !protected && (!faulty || self.rng.chance(self.wild))
    }

    /// Saves the defined flags with SETcc and sets all of them anew.
    fn define_flags(&mut self, undefined: u32) {
        for (bit, opcode) in [
            (RflagsBits::OF, 0x90),
            (RflagsBits::CF, 0x92),
            (RflagsBits::ZF, 0x94),
            (RflagsBits::SF, 0x98),
            (RflagsBits::PF, 0x9A),
        ] {
            if undefined & bit == 0 {
                // SETcc [rbx + disp8]
                self.code.extend([0x0F, opcode, 0x43, self.rng.next() as u8 & 0x7F]);
            }
        }
        // CMP r32, r32
        let modrm = 0xC0 | self.rng.next() as u8 & 0x3F;
        self.code.extend([0x39, modrm]);
    }

    fn instructions(&mut self, most: u64) {
        for _ in 0..1 + self.rng.below(most) {
            if self.rng.chance(6) {
                // PUSH, some instruction, POP.
                let register = [0, 1, 2, 6, 7][self.rng.below(5) as usize];
                self.code.push(0x50 + register);
                self.instruction();
                self.code.push(0x58 + register);
            } else {
                self.instruction();
            }
        }
    }

    /// Appends a jump over what `body` writes, with this opcode (Jcc or JMP, near).
    fn jump_over(&mut self, opcode: &[u8], body: impl FnOnce(&mut Self)) {
        self.code.extend_from_slice(opcode);
        let at = self.code.len();
        self.code.extend([0; 4]);
        body(self);
        let distance = (self.code.len() - at - 4) as u32;
        self.code[at..at + 4].copy_from_slice(&distance.to_le_bytes());
    }

    fn piece(&mut self, depth: u32) {
        match self.rng.below(if depth > 2 { 3 } else { 8 }) {
            0..=2 => self.instructions(8),
            3 | 4 => {
                let condition = 0x80 + self.rng.below(16) as u8;
                self.jump_over(&[0x0F, condition], |this| this.piece(depth + 1));
            }
            5 => {
                // MOV R15D, n; body; SUB R15D, 1; JNZ body. Only the outermost loop may use the counter.
                if depth > 0 {
                    return self.instructions(4);
                }
                let count = 1 + self.rng.below(5) as u8;
                self.code.extend([0x41, 0xBF, count, 0, 0, 0]);
                let top = self.code.len();
                self.piece(depth + 1);
                self.piece(depth + 1);
                self.code.extend([0x41, 0x83, 0xEF, 1, 0x0F, 0x85]);
                let distance = top as i64 - (self.code.len() as i64 + 4);
                self.code.extend((distance as i32).to_le_bytes());
            }
            6 => {
                // CALL over a function that returns here.
                let mut function = 0;
                self.jump_over(&[0xE9], |this| {
                    function = this.code.len();
                    this.piece(depth + 1);
                    this.code.push(0xC3);
                });
                self.code.push(0xE8);
                let distance = function as i64 - (self.code.len() as i64 + 4);
                self.code.extend((distance as i32).to_le_bytes());
            }
            _ => {
                self.piece(depth + 1);
                self.piece(depth + 1);
            }
        }
    }
}

impl Program {
    /// The program of `seed`, placed at `start`.
    pub fn random(seed: u64, start: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut gpr: [u64; 16] = std::array::from_fn(|_| rng.interesting());
        gpr[RBX as usize] = DATA + 0x800;
        gpr[RBP as usize] = DATA + 0x400;
        gpr[RSP as usize] = STACK + STACK_SIZE / 2;
        let xmm = std::array::from_fn(|_| {
            std::array::from_fn(|_| match rng.below(4) {
                0 => rng.interesting(),
                1 => (rng.below(2000) as f64 - 1000.0).to_bits(),
                2 => u64::from((rng.below(2000) as f32 / 8.0 - 100.0).to_bits()),
                _ => rng.next(),
            })
        });
        let rflags = 2 | rng.next() & 0x8D5;
        let data = (0..DATA_SIZE).map(|_| rng.next() as u8).collect();
        // Mostly short programs with many faults, some long ones with few.
        let (pieces, wild) = if rng.chance(10) { (100, 0) } else { (1 + rng.below(5), 10) };
        let mut writer =
            Writer { rng: &mut rng, start, code: Vec::new(), factory: InstructionInfoFactory::new(), wild };
        for _ in 0..pieces {
            writer.piece(0);
        }
        writer.code.push(0xF4);
        let code = writer.code;
        assert!(code.len() < START_SIZE as usize, "program of {} bytes", code.len());
        Self { seed, start, code, gpr, xmm, rflags, data }
    }

    /// Its instructions as text.
    pub fn listing(&self) -> String {
        let mut text = String::new();
        let mut formatter = IntelFormatter::new();
        for insn in &mut Decoder::with_ip(64, &self.code, self.start, DecoderOptions::NONE) {
            let mut line = String::new();
            formatter.format(&insn, &mut line);
            text += &format!("{:x}: {line}\n", insn.ip());
        }
        text
    }
}
