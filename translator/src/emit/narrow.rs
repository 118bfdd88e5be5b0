//! What 32-bit code has of its own: addresses that wrap at 4 GiB, a stack of doublewords, segments with limits.
//!
//! Registers keep 64 bits: what 64-bit code has left in the upper halves comes back when 32-bit code does not write the register.
//! An address is made of lower halves and is 32 bits wide by construction, so it needs no check.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Type, Value, types};
use iced_x86::{Instruction, Register};
use lstar_arch::{CpuState, Segment, SegmentIndex};
use std::mem::offset_of;

use super::memory::{Host, Linear};
use super::{Emitter, NotLifted};
use crate::abi::{VCPU_OFFSET, VcpuBlock};

const RSP: usize = lstar_arch::Gpr::Rsp as usize;

impl Emitter<'_> {
    /// Whether the region is 32-bit code.
    pub fn is_32bit(&self) -> bool {
        self.region.mode.is_32bit()
    }

    /// Whether the region is code at CPL 3.
    pub fn is_user(&self) -> bool {
        self.region.mode.is_user()
    }

    /// What CALL and PUSH push.
    pub fn stack_type(&self) -> Type {
        if self.is_32bit() { types::I32 } else { types::I64 }
    }

    /// `base + displacement`; in 32-bit code its lower half.
    pub fn wrapped(&mut self, base: Value, displacement: i64) -> Value {
        if !self.is_32bit() {
            return if displacement == 0 { base } else { self.b.ins().iadd_imm_s(base, displacement) };
        }
        if displacement == 0 && self.is_narrow(base) {
            return base;
        }
        let narrow = self.b.ins().ireduce(types::I32, base);
        let narrow = if displacement == 0 { narrow } else { self.b.ins().iadd_imm_s(narrow, displacement) };
        self.b.ins().uextend(types::I64, narrow)
    }

    /// The memory operand's offset.
    pub(super) fn effective_32bit(&mut self, insn: &Instruction) -> Linear {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let displacement = i64::from(insn.memory_displacement32() as i32);
        let mut sum = if base == Register::None { None } else { Some(self.gpr(base)) };
        if index != Register::None {
            let value = self.index(index, types::I32);
            let shift = insn.memory_index_scale().trailing_zeros();
            let scaled = if shift == 0 { value } else { self.b.ins().ishl_imm_u(value, i64::from(shift)) };
            sum = Some(match sum {
                Some(base) => self.b.ins().iadd(base, scaled),
                None => scaled,
            });
        }
        let Some(sum) = sum else { return Linear { base: None, displacement: displacement & 0xFFFF_FFFF } };
        let sum = if displacement == 0 { sum } else { self.b.ins().iadd_imm_s(sum, displacement) };
        Linear { base: Some(self.b.ins().uextend(types::I64, sum)), displacement: 0 }
    }

    /// The register as an address, at the width of addresses.
    pub fn pointer(&mut self, number: usize) -> Value {
        let value = self.gpr64(number);
        self.wrapped(value, 0)
    }

    /// Address of the top of the stack.
    pub fn stack_pointer(&mut self) -> Value {
        self.pointer(RSP)
    }

    /// Sets the stack pointer to `top + distance`.
    pub fn move_stack_pointer(&mut self, top: Value, distance: i64) {
        let top = self.wrapped(top, distance);
        self.set_gpr64(RSP, top);
    }

    /// The address of a memory operand in FS or GS, whose limit and rights count in 32-bit code: where they are not those of an
    /// ordinary data segment, or where the access lies beyond the limit, it traps to the site.
    pub(super) fn address_in_segment(
        &mut self,
        insn: &Instruction,
        segment: SegmentIndex,
        size: i64,
    ) -> Result<Host, NotLifted> {
        /// Present, code or data, code, expand-down, writable.
        const KIND: i64 = (Segment::PRESENT | Segment::CODE_OR_DATA | 0xE) as i64;
        const ORDINARY: i64 = (Segment::PRESENT | Segment::CODE_OR_DATA | 2) as i64;
        let attributes = self.segment_field(types::I16, segment, offset_of!(Segment, attributes));
        let kind = self.b.ins().band_imm_u(attributes, KIND);
        let other = self.b.ins().icmp_imm_u(IntCC::NotEqual, kind, ORDINARY);
        self.trap_if(other);
        let offset = self.effective_address(insn);
        let last = self.b.ins().iadd_imm_s(offset, size - 1);
        let limit = self.segment_field(types::I32, segment, offset_of!(Segment, limit));
        let limit = self.b.ins().uextend(types::I64, limit);
        let beyond = self.b.ins().icmp(IntCC::UnsignedGreaterThan, last, limit);
        self.trap_if(beyond);
        let base = self.segment_base(segment);
        let linear = self.b.ins().iadd(base, offset);
        self.address_at(linear, 0)
    }

    pub(super) fn segment_field(&mut self, ty: Type, segment: SegmentIndex, field: usize) -> Value {
        let segment = offset_of!(CpuState, segments) + segment as usize * size_of::<Segment>();
        let offset = offset_of!(VcpuBlock, cpu) + segment + field;
        let flags = MemFlagsData::trusted().with_alias_region(Some(self.alias.segments));
        let view = self.view();
        self.b.ins().load(ty, flags, view, VCPU_OFFSET + offset as i32)
    }
}
