//! Generates programs and states from random numbers.
//!
//! Registers have roles, so that most memory operands hit something: some hold pointers, R13 a small index, R14 and R15
//! count loops. Programs mostly leave them alone; single instructions take anything.

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, MemorySize, Mnemonic, OpCodeOperandKind, OpKind, Register};

use super::catalog;
use super::program::{Item, Program, define_flags};
use super::random::Random;
use super::{DATA, DATA_SIZE, GS_BASE, IMAGES, READ_ONLY, STACK, STACK_SIZE, State, X87, x87};

/// Registers that hold pointers, by encoding.
const POINTERS: [usize; 5] = [3, 5, 6, 7, 12];
const RSP: usize = 4;
const INDEX: usize = 13;
/// Registers with plain values, and those that count loops.
const PLAIN: [usize; 7] = [0, 1, 2, 8, 9, 10, 11];
const COUNTERS: [Register; 2] = [Register::R15, Register::R14];

/// RFLAGS bits that POPF may load: not TF and AC, which change how the processor runs.
const POPPED_FLAGS: i32 = 0x0020_4CD5;
/// Masks of the x87's control word.
const UNDERFLOW_AND_OVERFLOW: u16 = 0x18;
/// MXCSR bits that LDMXCSR may load: not AMD's misaligned-exception mask.
const LOADED_MXCSR: i32 = !0x0002_0000;

/// Branches of programs, in their short forms.
const SHORT_BRANCHES: [Code; 20] = [
    Code::Jo_rel8_64,
    Code::Jno_rel8_64,
    Code::Jb_rel8_64,
    Code::Jae_rel8_64,
    Code::Je_rel8_64,
    Code::Jne_rel8_64,
    Code::Jbe_rel8_64,
    Code::Ja_rel8_64,
    Code::Js_rel8_64,
    Code::Jns_rel8_64,
    Code::Jp_rel8_64,
    Code::Jnp_rel8_64,
    Code::Jl_rel8_64,
    Code::Jge_rel8_64,
    Code::Jle_rel8_64,
    Code::Jg_rel8_64,
    Code::Jrcxz_rel8_64,
    Code::Jecxz_rel8_64,
    Code::Jmp_rel8_64,
    Code::Loop_rel8_64_RCX,
];

/// The control transfers that programs are made of.
pub fn transfers() -> impl Iterator<Item = Code> {
    let branches = SHORT_BRANCHES.into_iter().flat_map(|code| [code, code.as_near_branch()]);
    branches.chain([Code::Call_rel32_64, Code::Call_rm64, Code::Jmp_rm64, Code::Retnq, Code::Retnq_imm16])
}

fn wide(number: usize) -> Register {
    Register::RAX + number as u32
}

/// What an operand is chosen for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A program of one instruction: any register will do.
    Single,
    /// Part of a longer one: roles are respected.
    Part,
    /// Inside a function: the return address must survive.
    Callee,
}

/// Makes programs and states.
#[derive(Debug)]
pub struct Generator {
    /// The encodings that are tested.
    pub encodings: Vec<Code>,
    /// Where everything comes from.
    pub random: Random,
    /// Lanes for vector registers, made once for all states of a program.
    pool: Vec<u64>,
}

impl Generator {
    /// A generator whose programs and states depend on `seed` alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { encodings: catalog::encodings(), random: Random::new(seed), pool: Vec::new() }
    }

    fn register_number(&mut self, shape: Shape) -> usize {
        let r = &mut self.random;
        let any = if shape == Shape::Single { 45 } else { 6 };
        loop {
            let number = if r.percent(any) { r.below(16) as usize } else { r.pick(&PLAIN) };
            let reserved = number == RSP && !(shape == Shape::Single && r.percent(20))
                || shape != Shape::Single && number >= 14
                || shape == Shape::Callee && number == RSP;
            if !reserved {
                return number;
            }
        }
    }

    fn register(&mut self, size: usize, shape: Shape) -> Register {
        let number = self.register_number(shape) as u32;
        match size {
            1 if number < 4 && self.random.percent(40) => Register::AH + number,
            1 if number < 4 => Register::AL + number,
            1 => Register::SPL + (number - 4),
            2 => Register::AX + number,
            4 => Register::EAX + number,
            _ => Register::RAX + number,
        }
    }

    /// The vector registers of programs come from a few, so that results are used.
    fn vector_register(&mut self, shape: Shape) -> Register {
        let limit = if shape == Shape::Single { 16 } else { 6 };
        Register::XMM0 + self.random.below(limit) as u32
    }

    fn wide_vector_register(&mut self, shape: Shape) -> Register {
        Register::YMM0 + (self.vector_register(shape) as u32 - Register::XMM0 as u32)
    }

    fn displacement(&mut self) -> i64 {
        match self.random.below(8) {
            0..=2 => 0,
            3 | 4 => self.random.below(16) as i64 * 16 - 128,
            5 | 6 => self.random.below(256) as i64 - 128,
            _ => self.random.below(0x1000) as i64 - 0x800,
        }
    }

    fn memory_operand(&mut self, shape: Shape) -> MemoryOperand {
        let displacement = self.displacement();
        let narrow = self.random.percent(8);
        let segment = match self.random.below(24) {
            0 => Register::DS,
            1 => Register::ES,
            2 => Register::GS,
            3 => Register::SS,
            _ => Register::None,
        };
        let shrink = |register: Register| {
            if narrow { Register::EAX + (register as u32 - Register::RAX as u32) } else { register }
        };
        let choice = self.random.below(100);
        if choice < 6 {
            let address = DATA.wrapping_add(0x800).wrapping_add(displacement as u64);
            let base = if choice < 3 { Register::RIP } else { Register::None };
            let size = if base == Register::RIP { 8 } else { 4 };
            return MemoryOperand::new(base, Register::None, 1, address as i64, size, false, Register::None);
        }
        let base = if choice < 12 && shape != Shape::Callee {
            wide(RSP)
        } else if choice < 16 && shape == Shape::Single {
            wide(self.random.below(16) as usize)
        } else {
            wide(self.random.pick(&POINTERS))
        };
        let index = match self.random.below(100) {
            0..=64 => Register::None,
            65..=94 => wide(INDEX),
            _ => wide(self.random.pick(&PLAIN)),
        };
        let scale = 1 << self.random.below(4);
        let scale = if index == Register::None { 1 } else { scale };
        let size = match displacement {
            0 => 0,
            -128..=127 if self.random.percent(90) => 1,
            _ if narrow => 4,
            _ => 8,
        };
        let (base, index) = (shrink(base), if index == Register::None { index } else { shrink(index) });
        // With the segment's base added, the address is as far from GS_BASE as it would be from 0.
        let segment = if segment == Register::GS && !self.random.percent(30) { Register::None } else { segment };
        MemoryOperand::new(base, index, scale, displacement, size, false, segment)
    }

    fn set_memory(&mut self, insn: &mut Instruction, operand: u32, shape: Shape) {
        let memory = self.memory_operand(shape);
        insn.set_op_kind(operand, OpKind::Memory);
        insn.set_memory_base(memory.base);
        insn.set_memory_index(memory.index);
        insn.set_memory_index_scale(memory.scale);
        insn.set_memory_displacement64(memory.displacement as u64);
        insn.set_memory_displ_size(memory.displ_size);
        insn.set_segment_prefix(memory.segment_prefix);
    }

    /// Turns the memory operand into one of a gather: a base and a vector of indices.
    fn make_vector_index(&mut self, insn: &mut Instruction, ymm: bool, shape: Shape) {
        let index = if ymm { self.wide_vector_register(shape) } else { self.vector_register(shape) };
        insn.set_memory_index(index);
        insn.set_memory_index_scale(1 << self.random.below(4));
        if !insn.memory_base().is_gpr() {
            insn.set_memory_base(wide(self.random.pick(&POINTERS)));
            insn.set_memory_displacement64(0);
            insn.set_memory_displ_size(0);
        }
    }

    fn set_immediate(&mut self, insn: &mut Instruction, operand: u32, kind: OpKind) {
        let value = self.random.value() as i64;
        insn.set_op_kind(operand, kind);
        insn.set_immediate_i64(
            operand,
            match kind {
                OpKind::Immediate8 | OpKind::Immediate8to16 | OpKind::Immediate8to32 | OpKind::Immediate8to64 => {
                    i64::from(value as i8)
                }
                OpKind::Immediate16 => i64::from(value as i16),
                OpKind::Immediate64 => value,
                _ => i64::from(value as i32),
            },
        );
    }

    /// An instruction of this encoding; `None` for a form that is not tested.
    fn instruction(&mut self, code: Code, shape: Shape) -> Option<Instruction> {
        use OpCodeOperandKind as K;
        let info = code.op_code();
        let mut insn = Instruction::default();
        insn.set_code(code);
        for i in 0..info.op_count() {
            let kind = info.op_kind(i);
            let register = match kind {
                K::r8_reg | K::r8_opcode | K::r8_or_mem => self.register(1, shape),
                K::r16_reg | K::r16_opcode | K::r16_rm | K::r16_or_mem | K::r16_reg_mem => self.register(2, shape),
                K::r32_reg | K::r32_opcode | K::r32_rm | K::r32_vvvv | K::r32_or_mem | K::r32_reg_mem => {
                    self.register(4, shape)
                }
                K::r64_reg | K::r64_opcode | K::r64_rm | K::r64_vvvv | K::r64_or_mem | K::r64_reg_mem => {
                    self.register(8, shape)
                }
                K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_or_mem => self.vector_register(shape),
                K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_or_mem => self.wide_vector_register(shape),
                K::mm_reg | K::mm_rm | K::mm_or_mem => Register::MM0 + self.random.below(8) as u32,
                K::sti_opcode => Register::ST0 + self.random.below(8) as u32,
                K::st0 => Register::ST0,
                K::al => Register::AL,
                K::cl => Register::CL,
                K::ax => Register::AX,
                K::eax => Register::EAX,
                K::rax => Register::RAX,
                K::dx => Register::DX,
                K::cr_reg => Register::CR0,
                K::dr_reg => Register::DR0 + self.random.below(4) as u32,
                _ => Register::None,
            };
            let memory = match kind {
                K::mem | K::mem_vsib32x | K::mem_vsib32y | K::mem_vsib64x | K::mem_vsib64y => true,
                K::r8_or_mem
                | K::r16_or_mem
                | K::r32_or_mem
                | K::r64_or_mem
                | K::xmm_or_mem
                | K::ymm_or_mem
                | K::mm_or_mem => self.random.percent(45),
                _ => false,
            };
            match kind {
                K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y => {
                    self.set_memory(&mut insn, i, shape);
                    let wide = matches!(kind, K::mem_vsib32y | K::mem_vsib64y);
                    self.make_vector_index(&mut insn, wide, shape);
                }
                _ if memory => self.set_memory(&mut insn, i, shape),
                _ if register != Register::None => {
                    insn.set_op_kind(i, OpKind::Register);
                    insn.set_op_register(i, register);
                }
                // ENTER's nesting level: more levels copy frames from wherever RBP points.
                K::imm8 if i == 1 && matches!(code.mnemonic(), Mnemonic::Enter) => {
                    insn.set_op_kind(i, OpKind::Immediate8_2nd);
                    insn.set_immediate8_2nd(self.random.below(4) as u8);
                }
                K::imm8 => self.set_immediate(&mut insn, i, OpKind::Immediate8),
                K::imm8_const_1 => {
                    insn.set_op_kind(i, OpKind::Immediate8);
                    insn.set_immediate8(1);
                }
                K::imm8sex16 => self.set_immediate(&mut insn, i, OpKind::Immediate8to16),
                K::imm8sex32 => self.set_immediate(&mut insn, i, OpKind::Immediate8to32),
                K::imm8sex64 => self.set_immediate(&mut insn, i, OpKind::Immediate8to64),
                K::imm16 => self.set_immediate(&mut insn, i, OpKind::Immediate16),
                K::imm32 => self.set_immediate(&mut insn, i, OpKind::Immediate32),
                K::imm32sex64 => self.set_immediate(&mut insn, i, OpKind::Immediate32to64),
                K::imm64 => self.set_immediate(&mut insn, i, OpKind::Immediate64),
                K::mem_offs => {
                    insn.set_op_kind(i, OpKind::Memory);
                    insn.set_memory_displacement64(DATA + self.random.below(DATA_SIZE + 0x1800));
                    insn.set_memory_displ_size(8);
                }
                K::seg_rSI => {
                    let kind = if self.random.percent(10) { OpKind::MemorySegESI } else { OpKind::MemorySegRSI };
                    insn.set_op_kind(i, kind);
                }
                K::seg_rDI => insn.set_op_kind(i, OpKind::MemorySegRDI),
                // Both operands of MOVS and CMPS have the same address size.
                K::es_rDI => {
                    let other = (0..i).map(|j| insn.op_kind(j)).find(|kind| *kind != OpKind::Register);
                    let narrow = other.map_or(self.random.percent(10), |kind| kind == OpKind::MemorySegESI);
                    insn.set_op_kind(i, if narrow { OpKind::MemoryESEDI } else { OpKind::MemoryESRDI });
                }
                K::seg_rBX_al => {
                    insn.set_op_kind(i, OpKind::Memory);
                    insn.set_memory_base(if self.random.percent(20) { Register::EBX } else { Register::RBX });
                    insn.set_memory_index(Register::AL);
                }
                _ => return None,
            }
        }
        self.prefixes(&mut insn);
        self.narrow(&mut insn, shape).then_some(insn)
    }

    fn prefixes(&mut self, insn: &mut Instruction) {
        if insn.is_string_instruction() {
            let compares = matches!(
                insn.mnemonic(),
                Mnemonic::Cmpsb
                    | Mnemonic::Cmpsw
                    | Mnemonic::Cmpsd
                    | Mnemonic::Cmpsq
                    | Mnemonic::Scasb
                    | Mnemonic::Scasw
                    | Mnemonic::Scasd
                    | Mnemonic::Scasq
            );
            match self.random.below(5) {
                0..=2 => insn.set_has_rep_prefix(true),
                3 => insn.set_has_repne_prefix(compares),
                _ => {}
            }
        }
        let lockable = insn.op_code().can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory;
        if lockable && self.random.percent(30) {
            insn.set_has_lock_prefix(true);
        }
    }

    /// Keeps an instruction within what is tested; `false` if it cannot be.
    fn narrow(&mut self, insn: &mut Instruction, shape: Shape) -> bool {
        use Mnemonic as M;
        let touches_stack = insn.is_stack_instruction();
        match insn.mnemonic() {
            // A count beyond a 16-bit operand leaves the result undefined.
            M::Shld | M::Shrd if insn.op1_register().size() == 2 && insn.op2_kind() == OpKind::Immediate8 => {
                insn.set_immediate8(insn.immediate8() & 15);
            }
            // Bit offsets are addresses too: mostly small ones.
            M::Bt | M::Bts | M::Btr | M::Btc
                if insn.op0_kind() == OpKind::Memory
                    && insn.op1_kind() == OpKind::Register
                    && (shape != Shape::Single || self.random.percent(75)) =>
            {
                let base = match insn.op1_register().size() {
                    2 => Register::AX,
                    4 => Register::EAX,
                    _ => Register::RAX,
                };
                insn.set_op1_register(base + INDEX as u32);
            }
            // Intel's manual demands aligned operands, AMD's processors do not.
            M::Sha1msg1
            | M::Sha1msg2
            | M::Sha1nexte
            | M::Sha1rnds4
            | M::Sha256msg1
            | M::Sha256msg2
            | M::Sha256rnds2
                if insn.op1_kind() == OpKind::Memory =>
            {
                insn.set_op1_kind(OpKind::Register);
                insn.set_op1_register(self.vector_register(shape));
            }
            M::Enter => insn.set_immediate16(insn.immediate16() & 0xFF),
            _ => {}
        }
        // The exception flags of MXCSR, which translated code may miss, would get into memory.
        let stores_flags = matches!(insn.mnemonic(), M::Stmxcsr | M::Vstmxcsr) || saves_mxcsr_mask(insn.mnemonic());
        if stores_flags && shape != Shape::Single {
            return false;
        }
        // With an underflow that is not masked, the last place of these depends on the processor: see `suit`.
        if is_transcendental(insn.mnemonic()) && shape != Shape::Single {
            return false;
        }
        shape != Shape::Callee || !touches_stack
    }

    /// An instruction with what it needs in front of it.
    fn unit(&mut self, code: Code, shape: Shape) -> Option<Vec<Item>> {
        let insn = self.instruction(code, shape)?;
        let item = |insn| Item { insn, target: None, undefined: 0 };
        let mask = |insn: Result<Instruction, _>| insn.ok().map(item);
        let mut items = Vec::new();
        match insn.mnemonic() {
            Mnemonic::Popfq | Mnemonic::Popf => {
                let top = MemoryOperand::with_base(Register::RSP);
                items.push(mask(Instruction::with2(Code::And_rm32_imm32, top, POPPED_FLAGS))?);
            }
            // As in `narrow`, for a count in CL.
            Mnemonic::Shld | Mnemonic::Shrd
                if insn.op1_register().size() == 2 && insn.op2_kind() == OpKind::Register =>
            {
                items.push(mask(Instruction::with2(Code::And_rm32_imm32, Register::ECX, 15))?);
            }
            Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => {
                let mut and =
                    Instruction::with2(Code::And_rm32_imm32, MemoryOperand::with_base(Register::RBX), 0).ok()?;
                copy_memory_operand(&mut and, &insn);
                and.set_immediate32(LOADED_MXCSR as u32);
                items.push(item(and));
            }
            _ => {}
        }
        items.push(item(insn));
        if saves_mxcsr_mask(insn.mnemonic()) {
            // MXCSR_MASK has AMD's bit for misaligned operands on some processors.
            let mut and = Instruction::with2(Code::And_rm32_imm32, MemoryOperand::with_base(Register::RBX), 0).ok()?;
            copy_memory_operand(&mut and, &insn);
            and.set_memory_displacement64(insn.memory_displacement64().wrapping_add(28));
            and.set_memory_displ_size(if insn.memory_displ_size() == 0 { 1 } else { 8 });
            and.set_immediate32(0xFFFF);
            items.push(item(and));
        }
        // What cannot be encoded (AH with REX, ..) is found here, not when everything is put together.
        let mut encoder = Encoder::new(64);
        items.iter().all(|item| encoder.encode(&item.insn, super::CODE).is_ok()).then_some(items)
    }

    fn any_unit(&mut self, shape: Shape) -> Vec<Item> {
        loop {
            let code = self.encodings[self.random.below(self.encodings.len() as u64) as usize];
            // Most of what faults at CPL 3 always does: enough to have it in programs now and then.
            if shape != Shape::Single && code.op_code().cpl0() && !code.op_code().cpl3() && !self.random.percent(2) {
                continue;
            }
            if shape != Shape::Single
                && matches!(code, Code::Int3 | Code::Ud2 | Code::Leaveq | Code::Leavew | Code::In_AL_imm8)
                && !self.random.percent(10)
            {
                continue;
            }
            if let Some(items) = self.unit(code, shape) {
                return items;
            }
        }
    }

    /// A program of one instruction of this encoding; `None` for a form that is not tested.
    pub fn single(&mut self, code: Code) -> Option<Program> {
        let items = (0..8).find_map(|_| self.unit(code, Shape::Single))?;
        let mut program = Program { items: items.into_iter().map(Some).collect(), undefined: 0 };
        program.settle_flags();
        // What stands in front of some instructions defines the flags they use.
        program.uses_undefined().is_none().then_some(program)
    }

    /// A program of about `length` instructions with branches, loops and calls.
    pub fn program(&mut self, length: usize) -> Program {
        loop {
            let mut items = Vec::new();
            self.sequence(&mut items, length, 0, Shape::Part);
            let mut program = Program { items: items.into_iter().map(Some).collect(), undefined: 0 };
            program.settle_flags();
            while let Some(index) = program.uses_undefined() {
                // In front of a loop's end comes the instruction whose flags it tests.
                let back = program.items[index].as_ref().and_then(|item| item.target).is_some_and(|to| to <= index);
                insert(&mut program, if back { index - 1 } else { index }, define_flags());
                program.settle_flags();
            }
            if program.assemble().is_some() {
                return program;
            }
        }
    }

    fn sequence(&mut self, items: &mut Vec<Item>, length: usize, depth: usize, shape: Shape) {
        let end = items.len() + length;
        while items.len() < end {
            match self.random.below(100) {
                0..=13 => self.forward_branch(items, shape, depth),
                14..=17 if depth < COUNTERS.len() => self.counted_loop(items, shape, depth),
                18..=21 if depth < COUNTERS.len() => self.call(items, depth),
                22..=23 => self.indirect_jump(items, shape),
                _ => items.extend(self.any_unit(shape)),
            }
        }
    }

    /// A conditional or unconditional jump over a few instructions.
    fn forward_branch(&mut self, items: &mut Vec<Item>, shape: Shape, depth: usize) {
        let code = self.random.pick(&SHORT_BRANCHES);
        let code = if self.random.percent(50) { code.as_near_branch() } else { code };
        let at = items.len();
        items.push(branch(code));
        let length = 1 + self.random.below(4) as usize;
        self.sequence(items, length, depth.max(1), shape);
        items[at].target = Some(items.len());
    }

    /// `mov counter, n; top: ...; dec counter; jnz top`.
    fn counted_loop(&mut self, items: &mut Vec<Item>, shape: Shape, depth: usize) {
        let counter = COUNTERS[depth];
        let count = 1 + self.random.below(6) as i32;
        let item = |insn: Result<Instruction, _>| Item { insn: insn.unwrap_or_default(), target: None, undefined: 0 };
        items.push(item(Instruction::with2(Code::Mov_rm64_imm32, counter, count)));
        let top = items.len();
        let length = 1 + self.random.below(8) as usize;
        self.sequence(items, length, depth + 1, shape);
        items.push(item(Instruction::with1(Code::Dec_rm64, counter)));
        items.push(Item { target: Some(top), ..branch(Code::Jne_rel32_64) });
    }

    /// `call f; jmp over; f: ...; ret; over:`, the call direct or through a register.
    fn call(&mut self, items: &mut Vec<Item>, depth: usize) {
        let item = |insn| Item { insn, target: None, undefined: 0 };
        let direct = self.random.percent(60);
        let call = items.len();
        if direct {
            items.push(branch(Code::Call_rel32_64));
        } else {
            let register = wide(self.random.pick(&PLAIN));
            items.push(item(label_address(register)));
            items.push(item(Instruction::with1(Code::Call_rm64, register).unwrap_or_default()));
        }
        let over = items.len();
        items.push(branch(Code::Jmp_rel32_64));
        items[call].target = Some(items.len());
        let length = 1 + self.random.below(6) as usize;
        self.sequence(items, length, depth + 1, Shape::Callee);
        if self.random.percent(80) {
            items.push(item(Instruction::with(Code::Retnq)));
        } else {
            let size = self.random.below(4) as u32 * 8;
            items.push(item(Instruction::with1(Code::Retnq_imm16, size).unwrap_or_default()));
        }
        items[over].target = Some(items.len());
    }

    /// `lea r, [over]; jmp r; over:`, rarely with a wild register.
    fn indirect_jump(&mut self, items: &mut Vec<Item>, shape: Shape) {
        let register = wide(self.random.pick(&PLAIN));
        let item = |insn| Item { insn, target: None, undefined: 0 };
        let at = items.len();
        items.push(item(label_address(register)));
        let to = if self.random.percent(5) { wide(self.random.pick(&PLAIN)) } else { register };
        items.push(item(Instruction::with1(Code::Jmp_rm64, to).unwrap_or_default()));
        if self.random.percent(50) {
            items.extend(self.any_unit(shape));
        }
        items[at].target = Some(items.len());
    }

    /// An address for a pointer register.
    fn pointer(&mut self) -> u64 {
        let r = &mut self.random;
        let middle = DATA + 0x800;
        match r.below(100) {
            0..=59 => middle + r.below(0x1000 / 64) * 64,
            60..=74 => middle + r.below(0x1000),
            // Across the pages of the data area.
            75..=84 => DATA + 0x1000 - 40 + r.below(48),
            85..=87 => DATA + r.below(24) - 8,
            88..=91 => READ_ONLY - 40 + r.below(48),
            92 => READ_ONLY + 0x1000 - 40 + r.below(48),
            93 => READ_ONLY + r.below(64) * 64,
            94 => STACK + STACK_SIZE - 40 + r.below(48),
            // Not canonical, or at an edge of what is.
            95 => r.pick(&[0x0000_7FFF_FFFF_FFFC, 0x0000_8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFE, 0x1234_5678_9ABC_DEF0]),
            // The kernel half, the null page, beyond what guests can map.
            96 => r.pick(&[0xFFFF_8000_0000_0000, u64::MAX - 3, u64::MAX - 16]),
            97 => r.below(32),
            98 => r.pick(&[GS_BASE.wrapping_neg(), 0x0000_0FFF_FFFF_FFF8, 1 << 42]),
            _ => middle | 0xFFFF_FFFF_0000_0000,
        }
    }

    /// Starts on a program whose random numbers follow from `seed` alone.
    pub fn start(&mut self, seed: u64) {
        const LANES: usize = 1 << 10;
        self.random = Random::new(seed);
        self.pool.clear();
        self.pool.extend((0..LANES).map(|_| self.random.lane()));
    }

    /// A state for a program that has executed nothing yet. `single` is the program's only instruction.
    pub fn state(&mut self, program: &Program, single: bool) -> State {
        let mut state = State::default();
        for value in &mut state.gpr {
            *value = self.random.value();
        }
        for number in POINTERS {
            state.gpr[number] = self.pointer();
        }
        state.gpr[RSP] = match self.random.below(100) {
            0..=87 => STACK + 0x800 + self.random.below(64) * 8,
            88..=91 => STACK + self.random.below(24),
            92..=95 => STACK + STACK_SIZE - self.random.below(24),
            96..=97 => STACK + 0x800 + self.random.below(64),
            _ => self.pointer(),
        };
        state.gpr[INDEX] = match self.random.below(100) {
            0..=79 => self.random.below(17) * 8,
            80..=94 => self.random.below(64).wrapping_sub(32),
            _ => self.random.value(),
        };
        if self.random.percent(70) {
            state.gpr[1] = self.random.below(40);
        }
        let random = &mut self.random;
        state.rflags = 0x202 | random.bits() & 0x8D5;
        if random.percent(20) {
            state.rflags |= 0x400;
        }
        if random.percent(30) {
            let masks = if random.percent(20) { random.bits() as u32 & 0x1F80 } else { 0x1F80 };
            state.mxcsr = masks | random.bits() as u32 & 0xE040 | random.bits() as u32 & 0x3F & masks >> 7;
        }
        for value in state.xmm.iter_mut().chain(&mut state.ymm_high) {
            *value = match self.pool.as_slice() {
                [] => random.vector(),
                _ if random.percent(6) => random.vector(),
                pool => {
                    let choice = random.bits();
                    let pick = |bits: u64| u128::from(pool[bits as u32 as usize % pool.len()]);
                    pick(choice) | pick(choice >> 32) << 64
                }
            };
        }
        if random.percent(15) {
            // Equality, cancellation, exact quotients.
            let (a, b) = (random.below(16) as usize, random.below(16) as usize);
            state.xmm[a] = state.xmm[b];
            state.ymm_high[a] = state.ymm_high[b];
        }
        let uses = program.instructions().map(|item| x87::uses(&item.insn));
        match uses.fold([false; 2], |[a, b], [c, d]| [a | c, b | d]) {
            [false, false] => {}
            [x87, mmx] => {
                let mmx = mmx && !(x87 && random.percent(50));
                state.x87 = X87::random(random, mmx);
            }
        }
        state.image = random.below(u64::from(IMAGES)) as u8;
        if single && let Some(item) = program.instructions().last() {
            self.suit(&item.insn, &mut state);
        }
        for number in POINTERS {
            if self.random.percent(30) {
                state.patches.push((state.gpr[number], self.random.lane()));
            }
        }
        state
    }

    /// Makes the interesting cases of an instruction more likely.
    fn suit(&mut self, insn: &Instruction, state: &mut State) {
        use Mnemonic as M;
        match insn.mnemonic() {
            // Often a quotient that fits.
            M::Div if self.random.percent(60) => state.gpr[2] = self.random.below(4),
            M::Idiv if self.random.percent(60) => {
                state.gpr[2] = (state.gpr[0] as i64 >> 63) as u64;
                if self.random.percent(50) {
                    state.gpr[0] = i64::from(state.gpr[0] as i16) as u64;
                }
            }
            // Often equal.
            M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b if self.random.percent(50) => {
                (state.gpr[0], state.gpr[2], state.image) = (0, 0, 0);
            }
            M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xsaveopt | M::Xsaveopt64 | M::Xrstor | M::Xrstor64
                if self.random.percent(85) =>
            {
                self.suit_xsave(insn, state);
            }
            _ if insn.memory_size() == MemorySize::Float80 && self.random.percent(85) => {
                let base = insn.memory_base();
                if base.is_gpr64() && insn.memory_index() == Register::None {
                    let address = state.gpr[base.number()].wrapping_add(insn.memory_displacement64());
                    let value = x87::extended(&mut self.random);
                    state.patches.push((address, value as u64));
                    state.patches.push((address.wrapping_add(8), (value >> 64) as u64));
                }
            }
            _ if is_transcendental(insn.mnemonic()) => state.x87.control |= UNDERFLOW_AND_OVERFLOW,
            M::Clzero if self.random.percent(80) => state.gpr[0] = self.pointer(),
            _ if insn.is_vsib() && self.random.percent(85) => self.suit_indices(insn, state),
            _ if insn.is_string_instruction() && self.random.percent(50) => {
                // Overlapping, and near.
                state.gpr[7] = state.gpr[6].wrapping_add(self.random.below(32)).wrapping_sub(16);
            }
            _ => {}
        }
    }
}

impl Generator {
    /// An aligned area inside the data, a mask of a few components, a header that is often valid.
    fn suit_xsave(&mut self, insn: &Instruction, state: &mut State) {
        let random = &mut self.random;
        if insn.memory_base().is_gpr() && !matches!(insn.memory_base().full_register(), Register::RAX | Register::RDX) {
            let area = DATA + 0x400 + random.below(40) * 64;
            let base = insn.memory_base().full_register().number();
            state.gpr[base] = area.wrapping_sub(insn.memory_displacement64());
            let index = insn.memory_index();
            if index.is_gpr() {
                state.gpr[index.full_register().number()] = 0;
            }
            let mut components = || random.below(8);
            let (present, layout) = (components(), components());
            state.patches.push((area + 512, present));
            let layout = match random.below(4) {
                0 | 1 => 0,
                2 => 1 << 63 | layout | present,
                _ => 1 << 63 | layout,
            };
            state.patches.push((area + 520, layout));
            for offset in (528..576).step_by(8) {
                let value = if random.percent(3) { random.bits() } else { 0 };
                state.patches.push((area + offset, value));
            }
            let mxcsr = if random.percent(95) { random.bits() & 0xFFFF } else { random.bits() & 0xFFFD_FFFF };
            state.patches.push((area + 24, mxcsr));
        }
        (state.gpr[0], state.gpr[2]) = (self.random.below(8), 0);
    }

    /// Indices that mostly stay near the base.
    fn suit_indices(&mut self, insn: &Instruction, state: &mut State) {
        let register = insn.memory_index().number();
        let random = &mut self.random;
        let mut indices = || {
            if insn.is_vsib64() {
                let mut index = || (random.below(0x200) as i64 - 0x100) as u64;
                u128::from(index()) | u128::from(index()) << 64
            } else {
                (0..4).fold(0, |all, _| all << 32 | u128::from((random.below(0x200) as i32 - 0x100) as u32))
            }
        };
        (state.xmm[register], state.ymm_high[register]) = (indices(), indices());
    }
}

/// x87 instructions whose last place is the processor's, from which the interpreter takes them unless it has to scale them.
fn is_transcendental(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::F2xm1 | M::Fyl2x | M::Fyl2xp1 | M::Fpatan | M::Fptan | M::Fsin | M::Fcos | M::Fsincos)
}

/// Whether the instruction stores MXCSR_MASK.
fn saves_mxcsr_mask(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64)
}

fn copy_memory_operand(to: &mut Instruction, from: &Instruction) {
    to.set_memory_base(from.memory_base());
    to.set_memory_index(from.memory_index());
    to.set_memory_index_scale(from.memory_index_scale());
    to.set_memory_displacement64(from.memory_displacement64());
    to.set_memory_displ_size(from.memory_displ_size());
    to.set_segment_prefix(from.segment_prefix());
}

fn branch(code: Code) -> Item {
    let insn = Instruction::with_branch(code, super::CODE).unwrap_or_default();
    Item { insn, target: None, undefined: 0 }
}

/// `lea register, [rip + label]`.
fn label_address(register: Register) -> Instruction {
    let memory = MemoryOperand::with_base_displ_size(Register::RIP, super::CODE as i64, 8);
    Instruction::with2(Code::Lea_r64_m, register, memory).unwrap_or_default()
}

/// Inserts an item; branches to `index` then execute it as well.
fn insert(program: &mut Program, index: usize, item: Item) {
    for other in program.items.iter_mut().flatten() {
        if let Some(target) = &mut other.target
            && *target > index
        {
            *target += 1;
        }
    }
    program.items.insert(index, Some(item));
}
