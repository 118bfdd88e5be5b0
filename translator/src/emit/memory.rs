//! Guest memory: effective addresses, validity checks, loads and stores.
//!
//! An address is a base value plus a constant. The base (or a value it differs from by a constant) is checked once;
//! see the crate documentation for the rules.

use cranelift_codegen::ir::immediates::Offset32;
use cranelift_codegen::ir::{
    self, InstBuilder, InstructionData, MemFlagsData, Opcode, TrapCode, Type, Value, ValueDef, condcodes::IntCC, types,
};
use iced_x86::{Instruction, Register};
use lstar_arch::{CpuState, Segment, SegmentIndex};
use std::mem::offset_of;

use super::{Emitter, NotLifted};
use crate::abi::{GUARD_SIZE, KERNEL_END, KERNEL_START, Mode, USER_END, VCPU_OFFSET, VcpuBlock};

/// Displacements that a checked base may have, with room for the access itself.
pub(super) const DISPLACEMENT: std::ops::RangeInclusive<i64> = -(512 << 20)..=i32::MAX as i64 - 64;

/// Most addresses that are looked through for one that is known already.
const MOST_REMEMBERED: usize = 64;

/// A checked host address: the view, a guest address, a displacement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    view: Value,
    pub(super) guest: Guest,
    pub(super) offset: i32,
}

impl Host {
    /// The address `offset` bytes further on, which must lie inside the access that was checked.
    pub fn plus(self, offset: i32) -> Self {
        match (self.guest, self.offset.checked_add(offset)) {
            (_, Some(offset)) => Self { offset, ..self },
            // Only a constant can lie so near the end.
            (_, None) => {
                let address = i64::from(self.offset) + i64::from(offset);
                Self { guest: Guest::Constant(address as u64), offset: 0, ..self }
            }
        }
    }
}

/// The variable part of a guest address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Guest {
    None,
    Constant(u64),
    Value(Value),
}

/// A guest address before checks: an optional value plus a constant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    pub base: Option<Value>,
    pub displacement: i64,
}

/// The segment whose base counts for the memory operand.
pub(super) fn segment_of(insn: &Instruction) -> Option<SegmentIndex> {
    match insn.memory_segment() {
        Register::FS => Some(SegmentIndex::Fs),
        Register::GS => Some(SegmentIndex::Gs),
        _ => None,
    }
}

impl Host {
    /// The address `bytes` further on, within the same access.
    pub fn above(self, bytes: i32) -> Result<Self, NotLifted> {
        let offset = self.offset.checked_add(bytes).ok_or(NotLifted)?;
        Ok(Self { offset, ..self })
    }
}

impl Emitter<'_> {
    /// The effective address of the memory operand, without segment base: what LEA yields.
    pub fn effective_address(&mut self, insn: &Instruction) -> Value {
        let Linear { base, displacement } = self.effective(insn);
        match base {
            Some(base) if displacement == 0 => base,
            Some(base) => self.b.ins().iadd_imm_s(base, displacement),
            None => self.iconst(types::I64, displacement),
        }
    }

    fn effective(&mut self, insn: &Instruction) -> Linear {
        if self.is_32bit() {
            return self.effective_32bit(insn);
        }
        if insn.is_ip_rel_memory_operand() {
            return Linear { base: None, displacement: insn.ip_rel_memory_address() as i64 };
        }
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let mut sum = None;
        if base != Register::None {
            sum = Some(self.gpr64(base.full_register().number()));
        }
        if index != Register::None {
            let value = self.index(index, types::I64);
            let shift = insn.memory_index_scale().trailing_zeros();
            let scaled = if shift == 0 { value } else { self.scaled(value, shift) };
            sum = Some(match sum {
                Some(base) => self.sum(base, scaled),
                None => scaled,
            });
        }
        let displacement = insn.memory_displacement64() as i64;
        if base.is_gpr32() || index.is_gpr32() {
            // 32-bit address size: everything wraps at 4 GiB.
            let Some(sum) = sum else { return Linear { base: None, displacement: displacement & 0xFFFF_FFFF } };
            let narrow = self.b.ins().ireduce(types::I32, sum);
            let narrow = self.b.ins().iadd_imm_s(narrow, i64::from(displacement as i32));
            return Linear { base: Some(self.b.ins().uextend(types::I64, narrow)), displacement: 0 };
        }
        Linear { base: sum, displacement }
    }

    /// An index register, of which XLAT takes the lowest byte.
    pub(super) fn index(&mut self, register: Register, ty: Type) -> Value {
        if register == Register::AL {
            let byte = self.gpr(register);
            return self.b.ins().uextend(ty, byte);
        }
        let value = self.gpr64(register.full_register().number());
        self.resize(value, ty)
    }

    /// `base + index`, the same value for the same operands: so a check of it counts for later uses.
    fn sum(&mut self, base: Value, index: Value) -> Value {
        let [base, index] = [base, index].map(|value| self.b.func.dfg.resolve_aliases(value));
        let known = self.local.sums.iter().rev().take(MOST_REMEMBERED).find(|(operands, _)| *operands == (base, index));
        if let Some(&(_, sum)) = known {
            return sum;
        }
        let sum = self.b.ins().iadd(base, index);
        self.local.sums.push(((base, index), sum));
        sum
    }

    /// `index << shift`, the same value for the same operands.
    fn scaled(&mut self, index: Value, shift: u32) -> Value {
        let index = self.b.func.dfg.resolve_aliases(index);
        let known =
            self.local.scaled.iter().rev().take(MOST_REMEMBERED).find(|(operands, _)| *operands == (index, shift));
        if let Some(&(_, scaled)) = known {
            return scaled;
        }
        let scaled = self.b.ins().ishl_imm_u(index, i64::from(shift));
        self.local.scaled.push(((index, shift), scaled));
        scaled
    }

    /// The checked address of the memory operand.
    pub fn address(&mut self, insn: &Instruction) -> Result<Host, NotLifted> {
        let mut linear = self.effective(insn);
        let size = (insn.memory_size().size() as i64).max(1);
        if let Some(segment) = segment_of(insn) {
            if self.is_32bit() {
                return self.address_in_segment(insn, segment, size);
            }
            let segment = self.segment_base(segment);
            linear.base = Some(match linear.base {
                Some(base) => self.b.ins().iadd(segment, base),
                None => segment,
            });
        }
        self.host(linear, size)
    }

    /// The checked address `base + displacement` for an access through a register.
    pub fn address_at(&mut self, base: Value, displacement: i64) -> Result<Host, NotLifted> {
        if self.is_32bit() {
            let base = self.wrapped(base, displacement);
            return self.host(Linear { base: Some(base), displacement: 0 }, 8);
        }
        self.host(Linear { base: Some(base), displacement }, 8)
    }

    /// Whether the memory operand's segment is FS or GS.
    pub fn has_segment_base(&self, insn: &Instruction) -> bool {
        segment_of(insn).is_some()
    }

    /// The base of the memory operand's segment, if that is FS or GS.
    pub fn segment_base_of(&mut self, insn: &Instruction) -> Option<Value> {
        segment_of(insn).map(|segment| self.segment_base(segment))
    }

    /// The base of FS or GS.
    pub fn segment_base(&mut self, segment: SegmentIndex) -> Value {
        let slot = usize::from(segment == SegmentIndex::Gs);
        if let Some(value) = self.local.segments[slot] {
            return value;
        }
        let offset = offset_of!(VcpuBlock, cpu)
            + offset_of!(CpuState, segments)
            + segment as usize * size_of::<Segment>()
            + offset_of!(Segment, base);
        let flags = MemFlagsData::trusted().with_alias_region(Some(self.alias.segments));
        let view = self.view();
        let value = self.b.ins().load(types::I64, flags, view, VCPU_OFFSET + offset as i32);
        self.local.segments[slot] = Some(value);
        value
    }

    /// Exchanges the GS base with a quadword of the block.
    pub fn swap_gs_base(&mut self, offset: usize) {
        let current = self.segment_base(SegmentIndex::Gs);
        let other = self.load_state(types::I64, offset);
        self.store_state(current, offset);
        self.set_segment_base(SegmentIndex::Gs, other);
    }

    /// Sets the base of FS or GS.
    pub fn set_segment_base(&mut self, segment: SegmentIndex, base: Value) {
        let offset = offset_of!(VcpuBlock, cpu)
            + offset_of!(CpuState, segments)
            + segment as usize * size_of::<Segment>()
            + offset_of!(Segment, base);
        let flags = MemFlagsData::trusted().with_alias_region(Some(self.alias.segments));
        let view = self.view();
        self.b.ins().store(flags, base, view, VCPU_OFFSET + offset as i32);
        self.local.segments[usize::from(segment == SegmentIndex::Gs)] = Some(base);
    }

    fn host(&mut self, linear: Linear, size: i64) -> Result<Host, NotLifted> {
        let view = self.view();
        let Some(base) = linear.base else { return self.host_constant(linear.displacement as u64, size as u64) };
        let (root, offset) = self.root(base);
        let total = offset.checked_add(linear.displacement).filter(|total| DISPLACEMENT.contains(total));
        if total.is_some() && DISPLACEMENT.contains(&linear.displacement) {
            self.check(root);
            return Ok(Host { view, guest: Guest::Value(base), offset: linear.displacement as i32 });
        }
        let folded = self.b.ins().iadd_imm_s(base, linear.displacement);
        self.check(folded);
        Ok(Host { view, guest: Guest::Value(folded), offset: 0 })
    }

    fn host_constant(&mut self, address: u64, size: u64) -> Result<Host, NotLifted> {
        let end = address.checked_add(size).ok_or(NotLifted)?;
        let valid = end <= USER_END
            || self.region.mode == Mode::Kernel && (KERNEL_START..KERNEL_END).contains(&address) && end <= KERNEL_END;
        if !valid {
            return Err(NotLifted);
        }
        let view = self.view();
        if let Ok(offset) = i32::try_from(address as i64) {
            return Ok(Host { view, guest: Guest::None, offset });
        }
        Ok(Host { view, guest: Guest::Constant(address), offset: 0 })
    }

    /// The value that `value` differs from by a constant, and that constant.
    pub(super) fn root(&self, value: Value) -> (Value, i64) {
        let dfg = &self.b.func.dfg;
        let constant = |value: Value| match dfg.value_def(dfg.resolve_aliases(value)) {
            ValueDef::Result(inst, _) => match dfg.insts[inst] {
                InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } => Some(imm.bits()),
                _ => None,
            },
            _ => None,
        };
        let (mut root, mut offset) = (dfg.resolve_aliases(value), 0i64);
        for _ in 0..32 {
            let ValueDef::Result(inst, _) = dfg.value_def(root) else { break };
            let (sum, sign) = match dfg.insts[inst] {
                InstructionData::Binary { opcode: Opcode::Iadd, args } => (args, 1),
                InstructionData::Binary { opcode: Opcode::Isub, args } => (args, -1),
                _ => break,
            };
            let Some(new) = constant(sum[1]).and_then(|c| c.checked_mul(sign)).and_then(|c| offset.checked_add(c))
            else {
                break;
            };
            if !DISPLACEMENT.contains(&new) {
                break;
            }
            (root, offset) = (dfg.resolve_aliases(sum[0]), new);
        }
        (root, offset)
    }

    /// Whether `value` is below 4 GiB by construction.
    pub(super) fn is_narrow(&self, value: Value) -> bool {
        let dfg = &self.b.func.dfg;
        match dfg.value_def(dfg.resolve_aliases(value)) {
            ValueDef::Result(inst, _) => matches!(dfg.insts[inst].opcode(), Opcode::Uextend | Opcode::Uload32),
            _ => false,
        }
    }

    /// Traps to the current site unless `base` may be the base of an access.
    fn check(&mut self, base: Value) {
        if self.local.checked.contains(&base) || self.is_narrow(base) {
            return;
        }
        self.local.checked.push(base);
        match self.region.mode {
            Mode::User | Mode::Compatibility => self.trap_unless_below(base, USER_END),
            Mode::Kernel => {
                // Valid: [0, USER_END) and [KERNEL_START, KERNEL_END - 2 GiB). The upper end keeps a base with its
                // displacement below KERNEL_END; accesses in between trap and are interpreted.
                let shifted = self.b.ins().iadd_imm_s(base, USER_END as i64);
                self.trap_unless_below(shifted, 2 * USER_END);
                self.trap_unless_below(base, KERNEL_END - GUARD_SIZE);
            }
        }
    }

    fn trap_unless_below(&mut self, value: Value, limit: u64) {
        let limit = self.iconst(types::I64, limit as i64);
        let bad = self.b.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, value, limit);
        self.trap_if(bad);
    }

    /// Traps to the current instruction's site if `condition` is not zero.
    pub fn trap_if(&mut self, condition: Value) {
        let code = self.trap_code();
        self.b.ins().trapnz(condition, code);
    }

    /// Traps to the current instruction's site if `value`, a code address, cannot be jumped to.
    pub fn check_code_address(&mut self, value: Value) {
        if self.is_narrow(value) {
            return;
        }
        match self.region.mode {
            Mode::User | Mode::Compatibility => self.trap_unless_below(value, USER_END),
            Mode::Kernel => {
                // Any canonical address outside the last 2 GiB, where a target table's empty entries match.
                self.trap_unless_below(value, KERNEL_END);
                let shifted = self.b.ins().iadd_imm_s(value, 1 << 47);
                self.trap_unless_below(shifted, 1 << 48);
            }
        }
    }

    fn trap_code(&self) -> TrapCode {
        TrapCode::user(self.current.trap_code.max(1)).unwrap_or(TrapCode::HEAP_OUT_OF_BOUNDS)
    }

    fn guest_flags(&self) -> MemFlagsData {
        MemFlagsData::new()
            .with_alias_region(Some(self.alias.guest))
            .with_trap_code(Some(self.trap_code()))
            .with_endianness(ir::Endianness::Little)
    }

    /// Traps to the site if the `bytes` bytes at `host` cross a page border.
    pub fn trap_if_crossing(&mut self, host: Host, bytes: i64) {
        const PAGE: i64 = lstar_arch::PAGE_SIZE as i64;
        let address = match host.guest {
            Guest::None => self.iconst(types::I64, 0),
            Guest::Constant(address) => self.iconst(types::I64, address as i64),
            Guest::Value(value) => value,
        };
        let address = self.b.ins().iadd_imm_s(address, i64::from(host.offset));
        let offset = self.b.ins().band_imm_u(address, PAGE - 1);
        let crosses = self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, offset, PAGE - bytes);
        self.trap_if(crosses);
    }

    /// Loads from guest address `address`, any value, if `active` (8 bits, 0 or 1), and something otherwise.
    pub fn load_if(&mut self, ty: Type, active: Value, address: Value) -> Value {
        let beyond = |this: &mut Self, value: Value, limit: u64| {
            let limit = this.iconst(types::I64, limit as i64);
            this.b.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, value, limit)
        };
        let wild = match self.region.mode {
            Mode::User | Mode::Compatibility => beyond(self, address, USER_END),
            Mode::Kernel => {
                let shifted = self.b.ins().iadd_imm_s(address, USER_END as i64);
                let between = beyond(self, shifted, 2 * USER_END);
                let above = beyond(self, address, KERNEL_END - GUARD_SIZE);
                self.b.ins().bor(between, above)
            }
        };
        let bad = self.b.ins().band(active, wild);
        self.trap_if(bad);
        let view = self.view();
        let wanted = self.b.ins().iadd(view, address);
        // The block is always there.
        let harmless = self.b.ins().iadd_imm_s(view, i64::from(VCPU_OFFSET));
        let chosen = self.b.ins().select(active, wanted, harmless);
        let flags = self.guest_flags();
        self.b.ins().load(ty, flags, chosen, Offset32::new(0))
    }

    /// The host address itself, for host operations.
    pub fn host_address(&mut self, host: Host) -> Value {
        let base = match host.guest {
            Guest::None => host.view,
            Guest::Constant(address) => {
                let address = self.iconst(types::I64, address as i64);
                self.b.ins().iadd(host.view, address)
            }
            Guest::Value(guest) => self.b.ins().iadd(host.view, guest),
        };
        if host.offset == 0 { base } else { self.b.ins().iadd_imm_s(base, i64::from(host.offset)) }
    }

    /// Loads guest memory.
    pub fn load(&mut self, ty: Type, host: Host) -> Value {
        let flags = self.guest_flags();
        let base = match host.guest {
            Guest::None => host.view,
            Guest::Constant(address) => {
                let address = self.iconst(types::I64, address as i64);
                self.b.ins().iadd(host.view, address)
            }
            Guest::Value(guest) => self.b.ins().iadd(host.view, guest),
        };
        self.b.ins().load(ty, flags, base, Offset32::new(host.offset))
    }

    /// Stores to guest memory.
    ///
    /// The address is put together in another way than a load's. Cranelift drops a store of what a load from the same
    /// address has just brought (`ADD [m], 0`), but whether a page is writable must show all the same.
    pub fn store(&mut self, value: Value, host: Host) {
        const SHIFT: i32 = 8;
        let flags = self.guest_flags();
        let (base, offset) = match host.guest {
            Guest::None => (self.b.ins().iadd_imm_s(host.view, i64::from(host.offset)), 0),
            Guest::Constant(address) => {
                let address = self.iconst(types::I64, address.wrapping_sub(SHIFT as u64) as i64);
                (self.b.ins().iadd(host.view, address), host.offset + SHIFT)
            }
            Guest::Value(guest) => (self.b.ins().iadd(guest, host.view), host.offset),
        };
        self.b.ins().store(flags, value, base, Offset32::new(offset));
    }
}
