//! XMM registers: representation in SSA form and access.
//!
//! A register is one 128-bit vector, or, where a region uses it for scalar double arithmetic only, a pair of doubles,
//! which spares an insertion into the upper half at every operation. Lifters need not know which.

use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use lstar_arch::CpuState;
use std::mem::offset_of;

use super::register::int_type;
use super::{Emitter, NotLifted};
use crate::abi::{VCPU_OFFSET, VcpuBlock};
use crate::discover::Region;

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
    pub fn new(region: &Region) -> Self {
        let (mut double, mut vector) = (0u16, 0u16);
        for insn in region.blocks.iter().flat_map(|block| &block.insns) {
            let registers = (0..insn.raw.op_count())
                .filter(|&index| insn.raw.op_kind(index) == OpKind::Register)
                .map(|index| insn.raw.op_register(index))
                .filter(|register| register.is_xmm() && register.number() < 16)
                .fold(0, |set, register| set | 1 << register.number());
            match usage(insn.raw.mnemonic()) {
                Use::Double => double |= registers,
                Use::Any => {}
                Use::Vector => vector |= registers,
            }
        }
        Self { pairs: double & !vector }
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
        self.mark_dirty(register);
    }

    /// Copies a whole register.
    pub fn copy_xmm(&mut self, to: Register, from: Register) {
        if self.plan.is_pair(to.number()) && self.plan.is_pair(from.number()) {
            let halves = self.vars.xmm[from.number() & 15].map(|half| self.b.use_var(half));
            self.set_halves(to, halves);
        } else {
            let value = self.xmm(from, types::I8X16);
            self.set_xmm(to, value);
        }
    }

    fn set_halves(&mut self, register: Register, halves: [Value; 2]) {
        for (variable, value) in self.vars.xmm[register.number() & 15].into_iter().zip(halves) {
            self.b.def_var(variable, value);
        }
        self.mark_dirty(register);
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
            self.mark_dirty(register);
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
            self.set_halves(register, [low, high]);
            return;
        }
        let vector = self.b.ins().scalar_to_vector(vector_of(ty), value);
        self.set_xmm(register, vector);
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
            self.set_halves(register, [zero, zero]);
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

    /// As [`Emitter::read_vector`], for instructions that demand an aligned memory operand.
    pub fn read_aligned(&mut self, insn: &Instruction, index: u32, ty: Type) -> Result<Value, NotLifted> {
        if insn.op_kind(index) == OpKind::Memory {
            self.check_aligned(insn);
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

    /// Traps to the site (where the interpreter raises #GP) if the memory operand is not 16-byte aligned. Called by
    /// lifters of legacy SSE instructions that demand alignment, before they load or store.
    pub fn check_aligned(&mut self, insn: &Instruction) {
        let segment = super::memory::segment_of(insn);
        if segment.is_none() && insn.is_ip_rel_memory_operand() && insn.ip_rel_memory_address() & 15 == 0 {
            return;
        }
        let mut address = self.effective_address(insn);
        if let Some(segment) = segment {
            let base = self.segment_base(segment);
            address = self.b.ins().iadd(address, base);
        }
        let (root, offset) = self.root(address);
        let known = (root, offset & 15);
        if self.local.aligned.contains(&known) {
            return;
        }
        self.local.aligned.push(known);
        let low = self.b.ins().band_imm_u(address, 15);
        self.trap_if(low);
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

fn xmm_offset(number: usize) -> usize {
    offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, xmm) + 16 * number
}
