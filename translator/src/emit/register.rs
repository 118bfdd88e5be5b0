//! General-purpose registers and the operand interface of the lifters.

use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, OpKind, Register};
use std::mem::offset_of;

use super::{Emitter, Host, NotLifted};
use crate::abi::VcpuBlock;
use crate::effects::{HIGH_BITS, RegSet, XMM_BITS};
use lstar_arch::{CpuState, Segment, SegmentIndex};

/// An operand that is read and written back.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// A general-purpose register of any width.
    Register(Register),
    /// Memory, address computed and checked.
    Memory(Host, Type),
}

/// The integer type of `bytes` bytes.
pub(crate) fn int_type(bytes: usize) -> Result<Type, NotLifted> {
    match bytes {
        1 => Ok(types::I8),
        2 => Ok(types::I16),
        4 => Ok(types::I32),
        8 => Ok(types::I64),
        _ => Err(NotLifted),
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

impl Emitter<'_> {
    /// All 64 bits of the register with encoding `number`.
    pub fn gpr64(&mut self, number: usize) -> Value {
        self.b.use_var(self.vars.gpr[number & 15])
    }

    /// Writes all 64 bits.
    pub fn set_gpr64(&mut self, number: usize, value: Value) {
        self.b.def_var(self.vars.gpr[number & 15], value);
        self.local.dirty |= 1 << (number & 15);
    }

    /// A general-purpose register at its own width.
    pub fn gpr(&mut self, register: Register) -> Value {
        let full = self.gpr64(register.full_register().number());
        match register.size() {
            8 => full,
            4 => self.b.ins().ireduce(types::I32, full),
            2 => self.b.ins().ireduce(types::I16, full),
            _ if is_high_byte(register) => {
                let shifted = self.b.ins().ushr_imm_u(full, 8);
                self.b.ins().ireduce(types::I8, shifted)
            }
            _ => self.b.ins().ireduce(types::I8, full),
        }
    }

    /// Writes a register at its own width: 32-bit writes clear the upper half, narrower ones merge.
    pub fn set_gpr(&mut self, register: Register, value: Value) {
        let new = self.merged(register, value);
        self.set_gpr64(register.full_register().number(), new);
    }

    /// All 64 bits of the register as [`Emitter::set_gpr`] would leave them.
    pub fn merged(&mut self, register: Register, value: Value) -> Value {
        let number = register.full_register().number();
        match register.size() {
            8 => value,
            4 => self.b.ins().uextend(types::I64, value),
            size => {
                let old = self.gpr64(number);
                let wide = self.b.ins().uextend(types::I64, value);
                let (wide, mask) = if is_high_byte(register) {
                    (self.b.ins().ishl_imm_u(wide, 8), !0xFF00)
                } else {
                    (wide, if size == 2 { !0xFFFF } else { !0xFF })
                };
                let kept = self.b.ins().band_imm_s(old, mask);
                self.b.ins().bor(kept, wide)
            }
        }
    }

    /// The selector in a segment register.
    pub fn selector(&mut self, register: Register) -> Option<Value> {
        let segment = match register {
            Register::ES => SegmentIndex::Es,
            Register::CS => SegmentIndex::Cs,
            Register::SS => SegmentIndex::Ss,
            Register::DS => SegmentIndex::Ds,
            Register::FS => SegmentIndex::Fs,
            Register::GS => SegmentIndex::Gs,
            _ => return None,
        };
        Some(self.segment_field(types::I16, segment, offset_of!(Segment, selector)))
    }

    /// Reads operand `index` (register, memory or immediate) as an integer of its own width; immediates get `ty`.
    pub fn read(&mut self, insn: &Instruction, index: u32, ty: Type) -> Result<Value, NotLifted> {
        match insn.op_kind(index) {
            OpKind::Register => {
                let register = insn.op_register(index);
                if register.is_gpr() { Ok(self.gpr(register)) } else { Err(NotLifted) }
            }
            OpKind::Memory => {
                let ty = int_type(insn.memory_size().size())?;
                let host = self.address(insn)?;
                Ok(self.load(ty, host))
            }
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => Ok(self.iconst(ty, insn.immediate(index) as i64)),
            _ => Err(NotLifted),
        }
    }

    /// The integer type of operand `index`.
    pub fn operand_type(&self, insn: &Instruction, index: u32) -> Result<Type, NotLifted> {
        match insn.op_kind(index) {
            OpKind::Register if insn.op_register(index).is_gpr() => int_type(insn.op_register(index).size()),
            OpKind::Memory => int_type(insn.memory_size().size()),
            _ => Err(NotLifted),
        }
    }

    /// Prepares operand `index` for reading and writing back.
    pub fn place(&mut self, insn: &Instruction, index: u32) -> Result<Place, NotLifted> {
        let ty = self.operand_type(insn, index)?;
        match insn.op_kind(index) {
            OpKind::Register => Ok(Place::Register(insn.op_register(index))),
            _ => Ok(Place::Memory(self.address(insn)?, ty)),
        }
    }

    /// Reads a place.
    pub fn get(&mut self, place: Place) -> Value {
        match place {
            Place::Register(register) => self.gpr(register),
            Place::Memory(host, ty) => self.load(ty, host),
        }
    }

    /// Writes a place.
    pub fn put(&mut self, place: Place, value: Value) {
        match place {
            Place::Register(register) => self.set_gpr(register, value),
            Place::Memory(host, _) => self.store(value, host),
        }
    }

    /// Zero-extends to 64 bits.
    pub fn zero_extend64(&mut self, value: Value) -> Value {
        if self.b.func.dfg.value_type(value) == types::I64 { value } else { self.b.ins().uextend(types::I64, value) }
    }

    /// Zero-extends, truncates or keeps an integer so that it has type `ty`.
    pub fn resize(&mut self, value: Value, ty: Type) -> Value {
        let from = self.b.func.dfg.value_type(value);
        match from.bits().cmp(&ty.bits()) {
            std::cmp::Ordering::Equal => value,
            std::cmp::Ordering::Less => self.b.ins().uextend(ty, value),
            std::cmp::Ordering::Greater => self.b.ins().ireduce(ty, value),
        }
    }

    /// Stores `value` as a register's content into the block and marks the register clean.
    pub(super) fn store_gpr(&mut self, number: usize, value: Value) {
        self.store_state(value, gpr_offset(number & 15));
        self.local.dirty &= !(1 << (number & 15));
    }

    /// Stores the dirty registers into the block.
    pub(super) fn store_registers(&mut self) {
        for number in 0..16 {
            if self.local.dirty >> number & 1 != 0 {
                let value = self.gpr64(number);
                self.store_state(value, gpr_offset(number));
            }
            if self.local.dirty >> (XMM_BITS + number) & 1 != 0 {
                self.store_xmm(number);
            }
            if self.local.dirty >> (HIGH_BITS + number) & 1 != 0 {
                self.store_high(number);
            }
        }
        self.local.dirty = 0;
    }

    /// Loads `registers` from the block; they are clean afterwards.
    pub(super) fn reload(&mut self, registers: RegSet) {
        for number in 0..16 {
            if registers >> number & 1 != 0 {
                let value = self.load_state(types::I64, gpr_offset(number));
                self.b.def_var(self.vars.gpr[number], value);
            }
            if registers >> (XMM_BITS + number) & 1 != 0 {
                self.load_xmm(number);
            }
            if registers >> (HIGH_BITS + number) & 1 != 0 {
                self.load_high(number);
            }
        }
    }
}

fn gpr_offset(number: usize) -> usize {
    offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, gpr) + 8 * number
}
