//! Random guest programs.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory, IntelFormatter,
    Mnemonic, OpAccess, OpKind, Register, RflagsBits,
};

/// What kind of code programs are, and where everything lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// 64 or 32.
    pub bits: u32,
    /// Where code lies.
    pub code: u64,
    /// Where data lies; the pages behind it are not mapped.
    pub data: u64,
    /// Where the stack lies.
    pub stack: u64,
}

/// 64-bit programs.
pub const WIDE: Layout = Layout { bits: 64, code: 0x1_4000_0000, data: 0x1_5000_0000, stack: 0x1_6000_0000 };
/// 32-bit programs; above 2 GiB, where sign extension would be noticed.
pub const NARROW: Layout = Layout { bits: 32, code: 0x9000_0000, data: 0xA000_0000, stack: 0xB000_0000 };

/// Bytes of code.
pub const CODE_SIZE: u64 = 0x40_0000;
/// Room for one program.
pub const START_SIZE: u64 = 0x1_0000;
/// Bytes of data.
pub const DATA_SIZE: u64 = 0x2000;
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
    pub layout: Layout,
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

struct Writer<'a> {
    rng: &'a mut Rng,
    layout: Layout,
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

    /// The register that counts loops: R15, in 32-bit code ESI.
    fn counter(&self) -> u32 {
        if self.layout.bits == 64 { 15 } else { 6 }
    }

    /// A random instruction that does not transfer control and leaves RBX, RSP, RBP and the counter alone.
    fn instruction(&mut self) {
        for _ in 0..1000 {
            let bytes = self.random_bytes();
            let mut decoder = Decoder::with_ip(self.layout.bits, &bytes, self.here(), DecoderOptions::NONE);
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
        let narrow = self.layout.bits == 32;
        let absolute = self.layout.data + self.rng.below(0x1F00);
        let rng = &mut *self.rng;
        let mut bytes = Vec::new();
        if narrow && rng.chance(6) {
            // CS, SS, DS, ES, FS.
            bytes.push([0x2E, 0x36, 0x3E, 0x26, 0x64][rng.below(5) as usize]);
        }
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
        if !narrow && rng.chance(50) {
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
                // In 32-bit code these bits tell it from LES.
                let registers = if narrow { 0xE0 } else { 0xE0 & rng.next() as u8 };
                let vex = [0xC4, registers | map, rng.next() as u8 & !4, 0xF0 + rng.below(8) as u8];
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
                9..=12 => {
                    let offset = rng.below(0x1000) as u32;
                    bytes.push(0x80 | register | 3);
                    bytes.extend(offset.to_le_bytes());
                }
                13 if narrow => {
                    bytes.push(0x05 | register);
                    bytes.extend((absolute as u32).to_le_bytes());
                }
                13 => bytes.extend([0x83 | register, rng.next() as u8, rng.next() as u8 & 0xF, 0, 0]),
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
                    M::Lss
                        | M::Lfs
                        | M::Lgs
                        | M::Lds
                        | M::Les
                        | M::Verw
                        | M::Emms
                        | M::Ldmxcsr
                        | M::Stmxcsr
                        | M::Fxsave
                        | M::Fxrstor
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
        let risky = matches!(insn.mnemonic(), M::Div | M::Idiv | M::Aam | M::Bound)
            || insn.op_kinds().any(|kind| kind == OpKind::Memory)
                && (insn.memory_size().size() == 16
                    || !matches!(
                        insn.memory_base(),
                        Register::RBX | Register::RBP | Register::RSP | Register::EBX | Register::EBP | Register::ESP
                    )
                    || insn.memory_index() != Register::None
                    || insn.memory_displacement64() > 0x1000
                    || insn.segment_prefix() != Register::None
                    || matches!(insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
                        && insn.op1_kind() == OpKind::Register);
        if risky && self.wild == 0 {
            return false;
        }
        let counter = self.counter();
        let info = self.factory.info(insn);
        let protected = info.used_registers().iter().any(|used| {
            let register = used.register();
            register.is_gpr()
                && (register.full_register().number() as u32 == counter
                    || matches!(register.full_register().number() as u32, RBX | RSP | RBP))
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
            if self.layout.bits == 32 && self.rng.chance(8) {
                self.only_32bit();
            } else if self.rng.chance(6) {
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

    /// Stack frames, PUSHAD, PUSHFD and string instructions of 32-bit code.
    fn only_32bit(&mut self) {
        match self.rng.below(4) {
            0 => {
                // PUSHAD; some instruction; POPAD.
                self.code.push(0x60);
                self.instruction();
                self.code.push(0x61);
            }
            1 => {
                // ENTER, or PUSH EBP and MOV EBP, ESP; some instruction; LEAVE.
                let size = self.rng.next() as u8 & 0x1C;
                let level = self.rng.below(3) as u8;
                match self.rng.below(2) {
                    0 => self.code.extend([0xC8, size, 0, level]),
                    _ => self.code.extend([0x55, 0x89, 0xE5]),
                }
                self.instruction();
                self.code.push(0xC9);
            }
            2 => {
                // PUSHFD; POP EAX.
                self.code.extend([0x9C, 0x58]);
            }
            _ => self.string_instruction(),
        }
    }

    /// A string instruction, mostly within the data, with ESI and EDI saved.
    fn string_instruction(&mut self) {
        let mut pointer = || {
            let near_the_end = self.wild > 0 && self.rng.chance(10);
            let offset = if near_the_end { DATA_SIZE - self.rng.below(64) } else { 0x200 + self.rng.below(0x1800) };
            (self.layout.data + offset) as u32
        };
        let (from, to) = (pointer(), pointer());
        let count = match self.rng.below(8) {
            0 => 0,
            1 => 100 + self.rng.below(100),
            _ => self.rng.below(20),
        };
        // PUSH ESI; PUSH EDI; MOV ESI, from; MOV EDI, to; MOV ECX, count.
        self.code.extend([0x56, 0x57, 0xBE]);
        self.code.extend(from.to_le_bytes());
        self.code.push(0xBF);
        self.code.extend(to.to_le_bytes());
        self.code.push(0xB9);
        self.code.extend((count as u32).to_le_bytes());
        let down = self.rng.chance(20);
        if down {
            self.code.push(0xFD);
        }
        if self.rng.chance(15) {
            self.code.push(0x66);
        }
        match self.rng.below(6) {
            0..=2 => self.code.push(0xF3),
            3 => self.code.push(0xF2),
            _ => {}
        }
        let operations = [0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF];
        self.code.push(operations[self.rng.below(10) as usize]);
        if down {
            self.code.push(0xFC);
        }
        self.code.extend([0x5F, 0x5E]);
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
                // MOV counter, n; body; SUB counter, 1; JNZ body. Only the outermost loop may use the counter.
                if depth > 0 {
                    return self.instructions(4);
                }
                let count = 1 + self.rng.below(5) as u8;
                let wide = self.layout.bits == 64;
                let (load, step): (&[u8], &[u8]) =
                    if wide { (&[0x41, 0xBF], &[0x41, 0x83, 0xEF]) } else { (&[0xBE], &[0x83, 0xEE]) };
                self.code.extend_from_slice(load);
                self.code.extend([count, 0, 0, 0]);
                let top = self.code.len();
                self.piece(depth + 1);
                self.piece(depth + 1);
                self.code.extend_from_slice(step);
                self.code.extend([1, 0x0F, 0x85]);
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
    pub fn random(seed: u64, layout: Layout, start: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut gpr: [u64; 16] = std::array::from_fn(|_| rng.interesting());
        // 32-bit code does not see upper halves.
        let unseen = if layout.bits == 32 { !0xFFFF_FFFF } else { 0 };
        let mut pointer = |address: u64| address | rng.next() & unseen;
        gpr[RBX as usize] = pointer(layout.data + 0x800);
        gpr[RBP as usize] = pointer(layout.data + 0x400);
        gpr[RSP as usize] = pointer(layout.stack + STACK_SIZE / 2);
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
            Writer { rng: &mut rng, layout, start, code: Vec::new(), factory: InstructionInfoFactory::new(), wild };
        for _ in 0..pieces {
            writer.piece(0);
        }
        writer.code.push(0xF4);
        let code = writer.code;
        assert!(code.len() < START_SIZE as usize, "program of {} bytes", code.len());
        Self { seed, layout, start, code, gpr, xmm, rflags, data }
    }

    /// Its instructions as text.
    pub fn listing(&self) -> String {
        let mut text = String::new();
        let mut formatter = IntelFormatter::new();
        for insn in &mut Decoder::with_ip(self.layout.bits, &self.code, self.start, DecoderOptions::NONE) {
            let mut line = String::new();
            formatter.format(&insn, &mut line);
            text += &format!("{:x}: {line}\n", insn.ip());
        }
        text
    }
}
