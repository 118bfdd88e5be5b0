//! XMM registers: representation in SSA form and access.
//!
//! A register is one 128-bit vector, or, where a region uses it for scalar double arithmetic only, a pair of doubles,
//! which spares an insertion into the upper half at every operation. Lifters need not know which. The upper half of a YMM
//! register is a value of its own, so that code that does not use it has nothing to do with it; VEX-encoded instructions
//! with 128-bit destinations make it a known zero.

use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};
use lstar_arch::CpuState;
use std::mem::offset_of;

use super::register::int_type;
use super::{Emitter, Lifted, NotLifted};
use crate::abi::{VCPU_OFFSET, VcpuBlock};
use crate::discover::Region;
use crate::effects::{Effects, XMM_BITS, high_bit};
use crate::lift::{base, first_source};

/// Whether VEX's rules hold: memory operands need not be aligned, and the destination's other bits are cleared.
pub(crate) fn is_vex(insn: &Instruction) -> bool {
    insn.encoding() == EncodingKind::VEX
}

/// Whether an operand is a YMM register.
pub(crate) fn is_wide(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|index| insn.op_kind(index) == OpKind::Register && insn.op_register(index).is_ymm())
}

/// A vector operand: 128 bits, or 256 as low and high half.
#[derive(Clone, Copy)]
pub(crate) struct Halves {
    /// Bits 0 to 127.
    pub low: Value,
    /// Bits 128 to 255, of a 256-bit operand.
    pub high: Option<Value>,
}

impl Halves {
    /// Applies `op` to each half.
    pub fn map(self, mut op: impl FnMut(Value) -> Value) -> Self {
        Self { low: op(self.low), high: self.high.map(op) }
    }

    /// Applies `op` to the low halves and to the high halves of operands of the same width.
    pub fn zip(self, other: Self, mut op: impl FnMut(Value, Value) -> Value) -> Self {
        Self { low: op(self.low, other.low), high: self.high.zip(other.high).map(|(a, b)| op(a, b)) }
    }

    /// As [`Halves::map`], for what may decline.
    pub fn try_map(self, mut op: impl FnMut(Value) -> Result<Value, NotLifted>) -> Result<Self, NotLifted> {
        Ok(Self { low: op(self.low)?, high: self.high.map(op).transpose()? })
    }
}

/// Representation of each XMM register in a region.
pub(crate) struct XmmPlan {
    pairs: u16,
}

/// How an instruction uses vector registers.
enum Use {
    /// As doubles in the low half.
    Double,
    /// Moves and zeroing: any representation will do.
    Any,
    /// As vectors, or as something other than doubles.
    Vector,
}

fn usage(mnemonic: Mnemonic) -> Use {
    use Mnemonic as M;
    match mnemonic {
        M::Addsd | M::Subsd | M::Mulsd | M::Divsd | M::Sqrtsd | M::Minsd | M::Maxsd => Use::Double,
        M::Ucomisd | M::Comisd | M::Cvtsi2sd | M::Cvttsd2si | M::Cvtsd2si | M::Cvtsd2ss | M::Cvtss2sd => Use::Double,
        M::Movaps | M::Movups | M::Movapd | M::Movupd | M::Movdqa | M::Movdqu | M::Movsd | M::Movq => Use::Any,
        M::Movlpd | M::Movhpd | M::Movlps | M::Movhps | M::Unpcklpd => Use::Any,
        M::Xorps | M::Xorpd | M::Pxor | M::Andpd | M::Andps => Use::Any,
        _ => Use::Vector,
    }
}

impl XmmPlan {
    /// Chooses representations for `region`.
    pub fn new(region: &Region, scalar_pairs: bool) -> Self {
        let (mut double, mut vector) = (0u16, 0u16);
        for insn in region.blocks.iter().flat_map(|block| &block.insns) {
            let registers = (0..insn.raw.op_count())
                .filter(|&index| insn.raw.op_kind(index) == OpKind::Register)
                .map(|index| insn.raw.op_register(index))
                .filter(|register| register.is_vector_register() && register.number() < 16)
                .fold(0, |set, register| set | 1 << register.number());
            match usage(base(&insn.raw)) {
                _ if is_wide(&insn.raw) => vector |= registers,
                Use::Double => double |= registers,
                Use::Any => {}
                Use::Vector => vector |= registers,
            }
        }
        Self { pairs: if scalar_pairs { double & !vector } else { 0 } }
    }

    /// Whether register `number` is a pair of doubles.
    pub fn is_pair(&self, number: usize) -> bool {
        self.pairs >> (number & 15) & 1 != 0
    }
}

/// Flags for reinterpreting vectors: lane 0 is the lowest.
fn little() -> MemFlagsData {
    MemFlagsData::new().with_endianness(Endianness::Little)
}

impl Emitter<'_> {
    /// Reinterprets a value as another type of the same size.
    pub fn reinterpret(&mut self, value: Value, ty: Type) -> Value {
        if self.type_of(value) == ty { value } else { self.b.ins().bitcast(ty, little(), value) }
    }

    /// `value` in a form that Cranelift neither takes for a load, which it would fuse into its user as the second operand,
    /// nor for equal to another value. Costs no code.
    pub fn opaque(&mut self, value: Value) -> Value {
        let ty = self.type_of(value);
        self.b.ins().bitcast(ty, little(), value)
    }

    /// A whole register as a 128-bit vector of type `ty`.
    pub fn xmm(&mut self, register: Register, ty: Type) -> Value {
        let [low, high] = self.vars.xmm[register.number() & 15];
        let low = self.b.use_var(low);
        let value = if self.plan.is_pair(register.number()) {
            let high = self.b.use_var(high);
            let vector = self.b.ins().scalar_to_vector(types::F64X2, low);
            self.b.ins().insertlane(vector, high, 1)
        } else {
            low
        };
        self.reinterpret(value, ty)
    }

    /// Writes a whole register with a 128-bit vector of any type.
    pub fn set_xmm(&mut self, register: Register, value: Value) {
        let [low, high] = self.vars.xmm[register.number() & 15];
        if self.plan.is_pair(register.number()) {
            let vector = self.reinterpret(value, types::F64X2);
            let first = self.b.ins().extractlane(vector, 0);
            let second = self.b.ins().extractlane(vector, 1);
            self.b.def_var(low, first);
            self.b.def_var(high, second);
        } else {
            let vector = self.reinterpret(value, types::I8X16);
            self.b.def_var(low, vector);
        }
        self.mark_low_dirty(register);
    }

    /// The upper half of a YMM register as a vector of type `ty`.
    pub fn high(&mut self, register: Register, ty: Type) -> Value {
        let value = self.b.use_var(self.vars.high[register.number() & 15]);
        self.reinterpret(value, ty)
    }

    /// Writes the upper half of a YMM register.
    pub fn set_high(&mut self, register: Register, value: Value) {
        let value = self.reinterpret(value, types::I8X16);
        self.b.def_var(self.vars.high[register.number() & 15], value);
        self.local.dirty |= high_bit(register);
        self.local.zero_high &= !(1 << (register.number() & 15));
    }

    /// Clears the upper half of a YMM register.
    pub fn clear_high(&mut self, register: Register) {
        let bit = 1 << (register.number() & 15);
        if self.local.zero_high & bit == 0 {
            let zero = self.zero_vector(types::I8X16);
            self.set_high(register, zero);
            self.local.zero_high |= bit;
        }
    }

    /// After an instruction: a VEX-encoded one with an XMM register as destination clears the upper half.
    pub(super) fn finish_vex(&mut self, insn: &Instruction, effects: &Effects) {
        let register = insn.op0_register();
        if is_vex(insn) && register.is_xmm() && effects.writes & high_bit(register) != 0 {
            self.clear_high(register);
        }
    }

    /// A vector register or memory operand as vectors of type `ty`; of 256 bits if `wide`. Where legacy SSE demands
    /// alignment, it is checked.
    pub fn halves(&mut self, insn: &Instruction, index: u32, ty: Type, wide: bool) -> Result<Halves, NotLifted> {
        match insn.op_kind(index) {
            OpKind::Register if insn.op_register(index).is_xmm() || insn.op_register(index).is_ymm() => {
                let register = insn.op_register(index);
                Ok(Halves { low: self.xmm(register, ty), high: wide.then(|| self.high(register, ty)) })
            }
            OpKind::Memory => {
                if !is_vex(insn) {
                    self.check_aligned(insn, 16);
                }
                let host = self.address(insn)?;
                Ok(Halves { low: self.load(ty, host), high: wide.then(|| self.load(ty, host.plus(16))) })
            }
            _ => Err(NotLifted),
        }
    }

    /// Writes a vector register, whose upper half stays as it is if `value` has none.
    pub fn set_halves(&mut self, register: Register, value: Halves) {
        self.set_xmm(register, value.low);
        if let Some(high) = value.high {
            self.set_high(register, high);
        }
    }

    /// Stores a vector. 256 bits are two stores, of which either both must happen or none; `aligned` says that they are
    /// known to lie in one page.
    pub fn store_halves(&mut self, insn: &Instruction, value: Halves, aligned: bool) -> Lifted {
        let host = self.address(insn)?;
        if value.high.is_some() && !aligned {
            self.prepare_wide_store(insn, host);
        }
        self.store(value.low, host);
        if let Some(high) = value.high {
            self.store(high, host.plus(16));
        }
        Ok(())
    }

    /// Writes `value`'s lane into what the first source holds, as the destination: merging scalar operations.
    pub fn merge_lane(&mut self, insn: &Instruction, lane: u8, value: Value) {
        let (to, from) = (insn.op0_register(), insn.op_register(first_source(insn)));
        if to != from {
            self.copy_xmm(to, from);
        }
        self.set_xmm_lane(to, lane, value);
    }

    fn mark_low_dirty(&mut self, register: Register) {
        self.local.dirty |= 1 << (XMM_BITS + (register.number() & 15));
    }

    /// Copies a whole register.
    pub fn copy_xmm(&mut self, to: Register, from: Register) {
        if self.plan.is_pair(to.number()) && self.plan.is_pair(from.number()) {
            let halves = self.vars.xmm[from.number() & 15].map(|half| self.b.use_var(half));
            self.set_pair(to, halves);
        } else {
            let value = self.xmm(from, types::I8X16);
            self.set_xmm(to, value);
        }
    }

    fn set_pair(&mut self, register: Register, halves: [Value; 2]) {
        for (variable, value) in self.vars.xmm[register.number() & 15].into_iter().zip(halves) {
            self.b.def_var(variable, value);
        }
        self.mark_low_dirty(register);
    }

    /// Lane `lane` of the register seen as a vector of `ty` (a scalar type).
    pub fn xmm_lane(&mut self, register: Register, ty: Type, lane: u8) -> Value {
        if self.plan.is_pair(register.number()) && ty.bytes() == 8 {
            let half = self.vars.xmm[register.number() & 15][usize::from(lane & 1)];
            let half = self.b.use_var(half);
            return self.reinterpret(half, ty);
        }
        let vector = self.xmm(register, vector_of(ty));
        self.b.ins().extractlane(vector, lane)
    }

    /// Writes one lane and keeps the others.
    pub fn set_xmm_lane(&mut self, register: Register, lane: u8, value: Value) {
        let ty = self.type_of(value);
        if self.plan.is_pair(register.number()) && ty.bytes() == 8 {
            let value = self.reinterpret(value, types::F64);
            let half = self.vars.xmm[register.number() & 15][usize::from(lane & 1)];
            self.b.def_var(half, value);
            self.mark_low_dirty(register);
            return;
        }
        let vector = self.xmm(register, vector_of(ty));
        let vector = self.b.ins().insertlane(vector, value, lane);
        self.set_xmm(register, vector);
    }

    /// Writes the lowest lane and clears everything above it.
    pub fn set_xmm_zero_above(&mut self, register: Register, value: Value) {
        let ty = self.type_of(value);
        if self.plan.is_pair(register.number()) && ty.bytes() == 8 {
            let low = self.reinterpret(value, types::F64);
            let high = self.b.ins().f64const(0.0);
            self.set_pair(register, [low, high]);
            return;
        }
        let vector = self.b.ins().scalar_to_vector(vector_of(ty), value);
        self.set_xmm(register, vector);
    }

    /// A constant 128-bit vector, given by its bytes.
    pub fn constant_vector(&mut self, ty: Type, bytes: [u8; 16]) -> Value {
        let constant = self.b.func.dfg.constants.insert(bytes.to_vec().into());
        self.b.ins().vconst(ty, constant)
    }

    /// A 128-bit vector of zeros.
    pub fn zero_vector(&mut self, ty: Type) -> Value {
        let zero = self.b.func.dfg.constants.insert(vec![0u8; 16].into());
        self.b.ins().vconst(ty, zero)
    }

    /// Clears a register.
    pub fn clear_xmm(&mut self, register: Register) {
        if self.plan.is_pair(register.number()) {
            let zero = self.b.ins().f64const(0.0);
            self.set_pair(register, [zero, zero]);
        } else {
            let zero = self.zero_vector(types::I8X16);
            self.set_xmm(register, zero);
        }
    }

    /// Operand `index`, an XMM register or 16 bytes of memory, as a vector of type `ty`. Alignment is not checked here:
    /// see [`Emitter::check_aligned`].
    pub fn read_vector(&mut self, insn: &Instruction, index: u32, ty: Type) -> Result<Value, NotLifted> {
        match insn.op_kind(index) {
            OpKind::Register if insn.op_register(index).is_xmm() => Ok(self.xmm(insn.op_register(index), ty)),
            OpKind::Memory => {
                let host = self.address(insn)?;
                Ok(self.load(ty, host))
            }
            _ => Err(NotLifted),
        }
    }

    /// As [`Emitter::read_vector`], for instructions that demand an aligned memory operand in their legacy form.
    pub fn read_aligned(&mut self, insn: &Instruction, index: u32, ty: Type) -> Result<Value, NotLifted> {
        if insn.op_kind(index) == OpKind::Memory && !is_vex(insn) {
            self.check_aligned(insn, 16);
        }
        self.read_vector(insn, index, ty)
    }

    /// Operand `index`, an XMM register or at most 8 bytes of memory, which become the lowest, as a vector of type `ty`.
    pub fn read_low(&mut self, insn: &Instruction, index: u32, ty: Type) -> Result<Value, NotLifted> {
        if insn.op_kind(index) != OpKind::Memory {
            return self.read_vector(insn, index, ty);
        }
        let size = int_type(insn.memory_size().size())?;
        let host = self.address(insn)?;
        let value = self.load(size, host);
        let value = if size.bits() < 32 { self.b.ins().uextend(types::I32, value) } else { value };
        let vector = vector_of(self.type_of(value));
        let value = self.b.ins().scalar_to_vector(vector, value);
        Ok(self.reinterpret(value, ty))
    }

    /// Operand `index` as a scalar of type `ty`: an XMM register's lowest lane or memory.
    pub fn read_scalar(&mut self, insn: &Instruction, index: u32, ty: Type) -> Result<Value, NotLifted> {
        match insn.op_kind(index) {
            OpKind::Register if insn.op_register(index).is_xmm() => Ok(self.xmm_lane(insn.op_register(index), ty, 0)),
            OpKind::Memory => {
                let host = self.address(insn)?;
                Ok(self.load(ty, host))
            }
            _ => Err(NotLifted),
        }
    }

    /// Traps to the site (where the interpreter raises #GP) if the memory operand's address is not a multiple of `bytes`, 16
    /// or 32. Called by lifters of instructions that demand alignment, before they load or store.
    pub fn check_aligned(&mut self, insn: &Instruction, bytes: i64) {
        let segment = super::memory::segment_of(insn);
        let mask = bytes - 1;
        if segment.is_none() && insn.is_ip_rel_memory_operand() && insn.ip_rel_memory_address() & mask as u64 == 0 {
            return;
        }
        let mut address = self.effective_address(insn);
        if let Some(segment) = segment {
            let base = self.segment_base(segment);
            address = self.b.ins().iadd(address, base);
        }
        let (root, offset) = self.root(address);
        let known = (root, offset & mask, bytes);
        if self.local.aligned.contains(&known) {
            return;
        }
        self.local.aligned.push(known);
        let low = self.b.ins().band_imm_u(address, mask);
        self.trap_if(low);
    }

    pub(super) fn store_high(&mut self, number: usize) {
        let value = self.b.use_var(self.vars.high[number]);
        self.store_state(value, high_offset(number));
    }

    pub(super) fn load_high(&mut self, number: usize) {
        let value = self.load_state(types::I8X16, high_offset(number));
        self.b.def_var(self.vars.high[number], value);
    }

    pub(super) fn store_xmm(&mut self, number: usize) {
        let [low, high] = self.vars.xmm[number];
        let value = self.b.use_var(low);
        self.store_state(value, xmm_offset(number));
        if self.plan.is_pair(number) {
            let value = self.b.use_var(high);
            self.store_state(value, xmm_offset(number) + 8);
        }
    }

    pub(super) fn load_xmm(&mut self, number: usize) {
        let [low, high] = self.vars.xmm[number];
        let (flags, view) = (self.state_flags(), self.view());
        let offset = VCPU_OFFSET + xmm_offset(number) as i32;
        let pair = self.plan.is_pair(number);
        let ty = if pair { types::F64 } else { types::I8X16 };
        let value = self.b.ins().load(ty, flags, view, offset);
        self.b.def_var(low, value);
        if pair {
            let value = self.b.ins().load(ty, flags, view, offset + 8);
            self.b.def_var(high, value);
        }
    }
}

/// The 128-bit vector type with lanes of type `lane`.
fn vector_of(lane: Type) -> Type {
    lane.by(16 / lane.bytes().max(1)).unwrap_or(types::I8X16)
}

fn high_offset(number: usize) -> usize {
    offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, ymm_high) + 16 * number
}

fn xmm_offset(number: usize) -> usize {
    offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, xmm) + 16 * number
}
