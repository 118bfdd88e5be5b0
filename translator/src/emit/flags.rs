//! Status flags during code generation: where they are, single bits, conditions, and storing them lazily.
//!
//! The formulas here are those of [`crate::flags::status`], in SSA form and for one bit at a time.

use cranelift_codegen::ir::condcodes::{CondCode, FloatCC, IntCC};
use cranelift_codegen::ir::{BlockArg, InstBuilder, InstructionData, Opcode, Type, Value, types};
use iced_x86::ConditionCode;
use lstar_arch::CpuState;
use std::mem::offset_of;

use super::{Emitter, SiteRecord};
use crate::SiteFlags;
use crate::abi::{Helper, LazyFlags, VcpuBlock};
use crate::config::PreciseState;
use crate::effects::{AF, ALL_FLAGS, CF, FLAG_COUNT, FlagSet, OF, PF, RegSet, SF, ZF};
use crate::flags::{self as lazy, FlagKind, LazyOp};
use crate::liveness::LiveFlags;
use crate::recover::{FlagSource, Form, Operand};

/// Positions in RFLAGS, by flag index.
const RFLAGS_BITS: [u64; FLAG_COUNT] = {
    let mut bits = [0; FLAG_COUNT];
    bits[OF] = lazy::OF;
    bits[SF] = lazy::SF;
    bits[ZF] = lazy::ZF;
    bits[AF] = lazy::AF;
    bits[CF] = lazy::CF;
    bits[PF] = lazy::PF;
    bits
};

/// A flag-setting integer operation whose flags have not been computed.
#[derive(Clone, Copy)]
pub(crate) struct Arithmetic {
    /// Kind.
    pub kind: FlagKind,
    /// First operand as [`FlagKind`] defines it, at operand size.
    pub a: Value,
    /// Second operand.
    pub b: Value,
    /// Carry or whatever the kind defines, as an 8-bit 0 or 1.
    pub carry: Option<Value>,
    /// The result.
    pub result: Value,
}

/// What determines the flags that are not in [`FlagState::bits`].
#[derive(Clone, Copy)]
enum Source {
    /// The block: lazy operands or RFLAGS.
    Memory,
    /// An operation.
    Operation(Arithmetic),
    /// Registers, as long as they do not change.
    Registers(FlagSource),
    /// UCOMISS and the like: AF, SF and OF are zero.
    Compare(Value, Value),
    /// Nothing: such flags are not wanted by anybody and read as zero.
    Nothing,
}

/// How much of the flags the block holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    Nothing,
    /// Nothing (but the carry that INC and DEC keep), and nothing need be: registers give the operands back.
    Recoverable(FlagSource),
    Operands(LazyOp),
    Everything,
    /// Everything, or what tells that registers give the operands back.
    EverythingUnlessRepeated(FlagSource),
}

/// Where the flags are.
#[derive(Clone)]
pub(crate) struct FlagState {
    source: Source,
    stored: Stored,
    /// Flags with a known value (8 bits wide, 0 or 1); they take precedence over the source.
    pub bits: [Option<Value>; FLAG_COUNT],
}

impl FlagState {
    /// All flags are in the block.
    pub fn in_memory() -> Self {
        Self { source: Source::Memory, stored: Stored::Everything, bits: [None; FLAG_COUNT] }
    }

    /// Only the flags put into `bits` matter.
    pub fn unknown() -> Self {
        Self { source: Source::Nothing, stored: Stored::Nothing, bits: [None; FLAG_COUNT] }
    }

    /// The flags at a block's start that all ways in find in the same registers.
    pub fn in_registers(source: FlagSource) -> Self {
        Self { source: Source::Registers(source), stored: Stored::Recoverable(source), bits: [None; FLAG_COUNT] }
    }

    /// All flags are in the block, or in registers if the loop has been repeated.
    pub fn in_memory_or(source: FlagSource) -> Self {
        Self { stored: Stored::EverythingUnlessRepeated(source), ..Self::in_memory() }
    }

    /// Whether registers give the flags back.
    pub fn are_recoverable(&self) -> bool {
        matches!(self.stored, Stored::Recoverable(_))
    }

    /// Where a fault finds the flags.
    pub fn at_site(&self) -> SiteFlags {
        match self.stored {
            Stored::Recoverable(source) => SiteFlags::Recoverable(source),
            Stored::EverythingUnlessRepeated(source) => SiteFlags::RecoverableIfRepeated(source),
            Stored::Operands(op) => SiteFlags::Operands(op.number()),
            Stored::Everything | Stored::Nothing => SiteFlags::Current,
        }
    }
}

impl Emitter<'_> {
    /// An operation sets all six flags.
    pub fn set_flags(&mut self, operation: Arithmetic) {
        self.local.flags =
            FlagState { source: Source::Operation(operation), stored: Stored::Nothing, bits: [None; FLAG_COUNT] };
    }

    /// A logical result sets all six flags (CF, OF and AF to zero).
    pub fn set_flags_logic(&mut self, result: Value) {
        self.set_flags(Arithmetic { kind: FlagKind::Logic, a: result, b: result, carry: None, result });
    }

    /// A floating-point comparison sets ZF, PF and CF and clears the rest.
    pub fn set_flags_compare(&mut self, a: Value, b: Value) {
        self.local.flags =
            FlagState { source: Source::Compare(a, b), stored: Stored::Nothing, bits: [None; FLAG_COUNT] };
    }

    /// Replaces the flags for which a value is given; of the others those in `kept` keep theirs and the rest is undefined.
    pub fn set_flag_bits(&mut self, kept: FlagSet, values: &[(usize, Value)]) {
        let mut bits = [None; FLAG_COUNT];
        for (flag, bit) in bits.iter_mut().enumerate() {
            if let Some(&(_, value)) = values.iter().find(|(index, _)| *index == flag) {
                *bit = Some(value);
            } else if kept & self.wanted_flags() & 1 << flag != 0 {
                *bit = Some(self.flag(flag));
            }
        }
        self.local.flags = FlagState { source: Source::Nothing, stored: Stored::Nothing, bits };
    }

    /// CF for an operation that keeps it, if anybody wants it.
    pub fn kept_carry(&mut self) -> Option<Value> {
        (self.wanted_flags() >> CF & 1 != 0).then(|| self.flag(CF))
    }

    /// Takes note that registers give back the flags that the instruction just lifted has set; `wanted` says whether
    /// anybody will look for them in the block.
    pub(super) fn flags_recoverable_from(&mut self, source: FlagSource, wanted: bool) {
        if !wanted || self.local.flags.stored != Stored::Nothing {
            return;
        }
        if source.keeps_carry() && self.options.precise == PreciseState::Checkpoints {
            self.store_kept_carry();
        }
        self.local.flags.stored = Stored::Recoverable(source);
    }

    /// Whether the block holds the carry that INC or DEC has kept, of flags that are in registers.
    fn carry_is_kept(&self) -> bool {
        match self.options.precise {
            PreciseState::Checkpoints => self.local.flags.stored != Stored::Nothing,
            PreciseState::Maps => matches!(self.local.flags.source, Source::Registers(_)),
        }
    }

    /// As [`Emitter::store_flag_operands`], and the carry that may belong to them, for [`Emitter::carry_state`].
    pub(super) fn carry_flags(&mut self) {
        match self.local.flags.stored {
            Stored::Recoverable(source) if source.keeps_carry() && !self.carry_is_kept() => self.store_kept_carry(),
            _ => self.store_flag_operands(),
        }
    }

    /// Stores the carry that INC or DEC has kept.
    fn store_kept_carry(&mut self) {
        let carry = self.flag(CF);
        let carry = self.zero_extend64(carry);
        self.store_state(carry, offset_of!(VcpuBlock, lazy) + offset_of!(LazyFlags, kept));
        let depends = |record: &SiteRecord| matches!(record.flags, SiteFlags::Recoverable(s) if s.keeps_carry());
        if self.local.checkpoint.as_ref().is_some_and(depends) {
            self.local.checkpoint = None;
        }
    }

    /// Before `registers` change: flags that depend on them get values of their own.
    pub(super) fn detach_flags(&mut self, registers: RegSet) {
        if let Stored::Recoverable(source) = self.local.flags.stored
            && source.registers() & registers != 0
        {
            self.flags_from_registers();
            self.local.flags.stored = Stored::Nothing;
        }
    }

    /// Turns flags that are in registers into an operation on these registers' values.
    fn flags_from_registers(&mut self) {
        let Source::Registers(source) = self.local.flags.source else { return };
        let ty = Type::int_with_byte_size(source.bytes.into()).unwrap_or(types::I64);
        let [x, y] = [source.a, source.b].map(|operand| match operand {
            Operand::Register(number) => {
                let value = self.gpr64(number.into());
                self.resize(value, ty)
            }
            Operand::Constant(value) => self.iconst(ty, value as i64),
        });
        let (a, b, result) = match (source.form, source.kind) {
            (Form::Operands, FlagKind::Sub) => (x, y, self.b.ins().isub(x, y)),
            (Form::Operands, FlagKind::Add) => (x, y, self.b.ins().iadd(x, y)),
            (Form::Operands, _) => (x, y, x),
            (Form::Result, FlagKind::Sub) => (self.b.ins().iadd(x, y), y, x),
            (Form::Result, _) => (self.b.ins().isub(x, y), y, x),
            (Form::And, _) => {
                let both = self.b.ins().band(x, y);
                (both, both, both)
            }
        };
        let carry = source.keeps_carry().then(|| {
            let carry = self.load_state(types::I64, offset_of!(VcpuBlock, lazy) + offset_of!(LazyFlags, kept));
            self.resize(carry, types::I8)
        });
        self.local.flags.source = Source::Operation(Arithmetic { kind: source.kind, a, b, carry, result });
    }

    /// One flag, as an 8-bit 0 or 1.
    pub fn flag(&mut self, flag: usize) -> Value {
        if let Some(value) = self.local.flags.bits[flag] {
            return value;
        }
        self.flags_from_registers();
        let value = match self.local.flags.source {
            Source::Operation(operation) => self.operation_flag(&operation, flag),
            Source::Compare(a, b) => match flag {
                ZF => self.b.ins().fcmp(FloatCC::UnorderedOrEqual, a, b),
                CF => self.b.ins().fcmp(FloatCC::UnorderedOrLessThan, a, b),
                PF => self.b.ins().fcmp(FloatCC::Unordered, a, b),
                _ => self.iconst(types::I8, 0),
            },
            Source::Nothing | Source::Registers(_) => self.iconst(types::I8, 0),
            Source::Memory => {
                let rflags = self.read_rflags();
                for (bit, position) in self.local.flags.bits.clone().iter().zip(0..) {
                    if bit.is_none() {
                        let shifted =
                            self.b.ins().ushr_imm_u(rflags, i64::from(RFLAGS_BITS[position].trailing_zeros()));
                        let byte = self.b.ins().ireduce(types::I8, shifted);
                        let value = self.b.ins().band_imm_u(byte, 1);
                        self.local.flags.bits[position] = Some(value);
                    }
                }
                return self.local.flags.bits[flag].unwrap_or(rflags);
            }
        };
        self.local.flags.bits[flag] = Some(value);
        value
    }

    /// RFLAGS, with status flags that are in the block.
    fn read_rflags(&mut self) -> Value {
        let op = self.load_state(types::I64, offset_of!(VcpuBlock, lazy) + offset_of!(LazyFlags, op));
        let (lazy, exact, join) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(lazy);
        let rflags = self.b.append_block_param(join, types::I64);
        self.b.ins().brif(op, lazy, &[], exact, &[]);
        self.b.switch_to_block(lazy);
        self.b.seal_block(lazy);
        let zero = self.iconst(types::I64, 0);
        let computed = self.call_helper(Helper::ReadFlags, &[zero]);
        self.b.ins().jump(join, &[BlockArg::Value(computed)]);
        self.b.switch_to_block(exact);
        self.b.seal_block(exact);
        let known = self.load_state(types::I64, offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, rflags));
        self.b.ins().jump(join, &[BlockArg::Value(known)]);
        self.b.switch_to_block(join);
        self.b.seal_block(join);
        rflags
    }

    fn msb(&mut self, value: Value) -> Value {
        let zero = self.zero_like(value);
        self.b.ins().icmp(IntCC::SignedLessThan, value, zero)
    }

    fn zero_like(&mut self, value: Value) -> Value {
        let ty = self.b.func.dfg.value_type(value);
        self.iconst(ty, 0)
    }

    fn low_bit(&mut self, value: Value) -> Value {
        let byte = self.resize(value, types::I8);
        self.b.ins().band_imm_u(byte, 1)
    }

    fn operation_flag(&mut self, operation: &Arithmetic, flag: usize) -> Value {
        let Arithmetic { kind, a, b, carry, result } = *operation;
        match flag {
            ZF if kind == FlagKind::Sub => return self.b.ins().icmp(IntCC::Equal, a, b),
            ZF => {
                let zero = self.zero_like(result);
                return self.b.ins().icmp(IntCC::Equal, result, zero);
            }
            SF => return self.msb(result),
            PF => {
                let low = self.resize(result, types::I8);
                let count = self.b.ins().popcnt(low);
                let odd = self.b.ins().band_imm_u(count, 1);
                return self.b.ins().bxor_imm_u(odd, 1);
            }
            _ => {}
        }
        match (kind, flag) {
            (FlagKind::Add | FlagKind::Adc | FlagKind::Sub | FlagKind::Sbb, AF) => {
                let mixed = self.b.ins().bxor(a, b);
                let mixed = self.b.ins().bxor(mixed, result);
                let shifted = self.b.ins().ushr_imm_u(mixed, 4);
                self.low_bit(shifted)
            }
            (FlagKind::Add, CF) => self.b.ins().icmp(IntCC::UnsignedLessThan, result, a),
            (FlagKind::Sub, CF) => self.b.ins().icmp(IntCC::UnsignedLessThan, a, b),
            (FlagKind::Adc, CF) => {
                // Carry out of the top bit: generated there, or propagated into a zero.
                let generated = self.b.ins().band(a, b);
                let either = self.b.ins().bor(a, b);
                let propagated = self.b.ins().band_not(either, result);
                let carries = self.b.ins().bor(generated, propagated);
                self.msb(carries)
            }
            (FlagKind::Sbb, CF) => {
                let generated = self.b.ins().band_not(b, a);
                let either = self.b.ins().bor_not(b, a);
                let propagated = self.b.ins().band(either, result);
                let borrows = self.b.ins().bor(generated, propagated);
                self.msb(borrows)
            }
            (FlagKind::Add | FlagKind::Adc, OF) => {
                let x = self.b.ins().bxor(a, result);
                let y = self.b.ins().bxor(b, result);
                let both = self.b.ins().band(x, y);
                self.msb(both)
            }
            (FlagKind::Sub | FlagKind::Sbb, OF) => {
                let x = self.b.ins().bxor(a, b);
                let y = self.b.ins().bxor(a, result);
                let both = self.b.ins().band(x, y);
                self.msb(both)
            }
            (FlagKind::Inc | FlagKind::Dec | FlagKind::Mul, CF) | (FlagKind::Mul, OF) => match carry {
                Some(carry) => carry,
                None => self.iconst(types::I8, 0),
            },
            (FlagKind::Inc | FlagKind::Dec, AF) => {
                let low = self.resize(result, types::I8);
                let nibble = self.b.ins().band_imm_u(low, 0xF);
                let edge = if kind == FlagKind::Inc { 0 } else { 0xF };
                self.b.ins().icmp_imm_u(IntCC::Equal, nibble, edge)
            }
            (FlagKind::Inc | FlagKind::Dec, OF) => {
                let ty = self.b.func.dfg.value_type(result);
                let lowest = 1i64 << (ty.bits() - 1);
                let edge = self.iconst(ty, if kind == FlagKind::Inc { lowest } else { lowest.wrapping_sub(1) });
                self.b.ins().icmp(IntCC::Equal, result, edge)
            }
            (FlagKind::Shl | FlagKind::Shr | FlagKind::Sar, CF) => self.shifted_out(kind, a, b),
            (FlagKind::Shl, OF) => {
                let carry = self.shifted_out(kind, a, b);
                let sign = self.msb(result);
                self.b.ins().bxor(carry, sign)
            }
            (FlagKind::Shr, OF) => {
                let sign = self.msb(a);
                let single = self.b.ins().icmp_imm_u(IntCC::Equal, b, 1);
                self.b.ins().band(sign, single)
            }
            // AF of shifts and multiplications, CF and OF of logical operations.
            _ => self.iconst(types::I8, 0),
        }
    }

    /// The last bit that a shift of `a` by `count` (at least 1) moves out.
    pub fn shifted_out(&mut self, kind: FlagKind, a: Value, count: Value) -> Value {
        let bits = i64::from(self.b.func.dfg.value_type(a).bits());
        // In 64 bits, so that counts beyond a narrow operand's width work out.
        let count = self.zero_extend64(count);
        let before = self.b.ins().iadd_imm_s(count, -1);
        match kind {
            FlagKind::Shl => {
                let wide = self.zero_extend64(a);
                let early = self.b.ins().ishl(wide, before);
                let top = self.b.ins().ushr_imm_u(early, bits - 1);
                self.low_bit(top)
            }
            FlagKind::Shr => {
                let wide = self.zero_extend64(a);
                let early = self.b.ins().ushr(wide, before);
                self.low_bit(early)
            }
            _ => {
                let wide = if bits == 64 { a } else { self.b.ins().sextend(types::I64, a) };
                let early = self.b.ins().sshr(wide, before);
                self.low_bit(early)
            }
        }
    }

    /// The condition of Jcc, SETcc or CMOVcc as an 8-bit 0 or 1.
    pub fn condition(&mut self, code: ConditionCode) -> Value {
        use ConditionCode as C;
        // Conditions come in pairs, the odd one negated.
        let (positive, negate) = match code {
            C::o | C::b | C::e | C::be | C::s | C::p | C::l | C::le => (code, false),
            C::no => (C::o, true),
            C::ae => (C::b, true),
            C::ne => (C::e, true),
            C::a => (C::be, true),
            C::ns => (C::s, true),
            C::np => (C::p, true),
            C::ge => (C::l, true),
            C::g => (C::le, true),
            C::None => return self.iconst(types::I8, 1),
        };
        self.flags_from_registers();
        let fused = match self.local.flags.source {
            Source::Operation(operation) => self.operation_condition(&operation, positive, negate),
            Source::Compare(a, b) => float_condition(positive, negate).map(|cc| self.b.ins().fcmp(cc, a, b)),
            _ => None,
        };
        if let Some(value) = fused {
            return value;
        }
        let value = match positive {
            C::o => self.flag(OF),
            C::b => self.flag(CF),
            C::e => self.flag(ZF),
            C::s => self.flag(SF),
            C::p => self.flag(PF),
            C::be => {
                let (carry, zero) = (self.flag(CF), self.flag(ZF));
                self.b.ins().bor(carry, zero)
            }
            _ => {
                let (sign, overflow) = (self.flag(SF), self.flag(OF));
                let less = self.b.ins().bxor(sign, overflow);
                if positive == C::l {
                    less
                } else {
                    let zero = self.flag(ZF);
                    self.b.ins().bor(less, zero)
                }
            }
        };
        if negate { self.b.ins().bxor_imm_u(value, 1) } else { value }
    }

    /// A condition on an operation's operands or result by one comparison, where there is one.
    fn operation_condition(&mut self, operation: &Arithmetic, code: ConditionCode, negate: bool) -> Option<Value> {
        use ConditionCode as C;
        let Arithmetic { kind, a, b, result, .. } = *operation;
        let (cc, x, y) = match (kind, code) {
            (FlagKind::Sub, C::b) => (IntCC::UnsignedLessThan, a, b),
            (FlagKind::Sub, C::be) => (IntCC::UnsignedLessThanOrEqual, a, b),
            (FlagKind::Sub, C::l) => (IntCC::SignedLessThan, a, b),
            (FlagKind::Sub, C::le) => (IntCC::SignedLessThanOrEqual, a, b),
            (FlagKind::Sub, C::e) => (IntCC::Equal, a, b),
            (_, C::e) => (IntCC::Equal, result, self.zero_like(result)),
            (_, C::s) | (FlagKind::Logic, C::l) => (IntCC::SignedLessThan, result, self.zero_like(result)),
            (FlagKind::Logic, C::le) => (IntCC::SignedLessThanOrEqual, result, self.zero_like(result)),
            (FlagKind::Logic, C::be) => (IntCC::Equal, result, self.zero_like(result)),
            (FlagKind::Add, C::b) => (IntCC::UnsignedLessThan, result, a),
            _ => return None,
        };
        Some(self.b.ins().icmp(if negate { cc.complement() } else { cc }, x, y))
    }

    /// All flags as a 64-bit word in RFLAGS positions.
    pub fn status_word(&mut self) -> Value {
        let mut word = self.iconst(types::I64, 0);
        for (flag, position) in RFLAGS_BITS.iter().enumerate() {
            let bit = self.flag(flag);
            let wide = self.b.ins().uextend(types::I64, bit);
            let placed = self.b.ins().ishl_imm_u(wide, i64::from(position.trailing_zeros()));
            word = self.b.ins().bor(word, placed);
        }
        word
    }

    /// Sets all flags from a word in RFLAGS positions.
    pub fn set_status_word(&mut self, word: Value) {
        let values: [(usize, Value); FLAG_COUNT] = std::array::from_fn(|flag| {
            let shifted = self.b.ins().ushr_imm_u(word, i64::from(RFLAGS_BITS[flag].trailing_zeros()));
            let shifted = self.resize(shifted, types::I8);
            (flag, self.b.ins().band_imm_u(shifted, 1))
        });
        self.set_flag_bits(0, &values);
    }

    /// Stores the operands of the flags' operation unless the block has them.
    pub(super) fn store_flag_operands(&mut self) {
        if self.local.flags.stored != Stored::Nothing || matches!(self.local.flags.source, Source::Memory) {
            return;
        }
        self.flags_from_registers();
        let op = match self.local.flags.source {
            Source::Operation(operation) => self.store_operation(&operation),
            _ => {
                let word = self.status_word();
                self.store_lazy(word, offset_of!(LazyFlags, a));
                LazyOp::EAGER
            }
        };
        self.local.flags.stored = Stored::Operands(op);
    }

    fn store_operation(&mut self, operation: &Arithmetic) -> LazyOp {
        let Arithmetic { kind, a, b, carry, result } = *operation;
        let bytes = self.b.func.dfg.value_type(result).bytes();
        let wide = self.zero_extend64(a);
        self.store_lazy(wide, offset_of!(LazyFlags, a));
        let two = matches!(
            kind,
            FlagKind::Add
                | FlagKind::Adc
                | FlagKind::Sub
                | FlagKind::Sbb
                | FlagKind::Shl
                | FlagKind::Shr
                | FlagKind::Sar
        );
        let constant = if two { self.constant(b) } else { None };
        if two && constant.is_none() {
            let wide = self.zero_extend64(b);
            self.store_lazy(wide, offset_of!(LazyFlags, b));
        }
        if matches!(kind, FlagKind::Adc | FlagKind::Sbb | FlagKind::Inc | FlagKind::Dec | FlagKind::Mul) {
            let carry = match carry {
                Some(carry) => self.zero_extend64(carry),
                None => self.iconst(types::I64, 0),
            };
            self.store_lazy(carry, offset_of!(LazyFlags, c));
        }
        let op = LazyOp::new(kind, bytes);
        constant.map_or(op, |b| op.with_operand(b))
    }

    /// The value of a constant, sign-extended from its own width, if it fits.
    fn constant(&self, value: Value) -> Option<i16> {
        let dfg = &self.b.func.dfg;
        let value = dfg.resolve_aliases(value);
        let unused = 64 - dfg.value_type(value).bits();
        match dfg.insts[dfg.value_def(value).inst()?] {
            InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } => {
                i16::try_from(imm.bits() << unused >> unused).ok()
            }
            _ => None,
        }
    }

    fn store_lazy(&mut self, value: Value, offset: usize) {
        // A checkpoint's flags may be among what is overwritten.
        self.local.checkpoint = None;
        self.store_state(value, offset_of!(VcpuBlock, lazy) + offset);
    }

    /// Makes the block's flags exact.
    pub(super) fn store_flags(&mut self) {
        if let Stored::Recoverable(_) = self.local.flags.stored {
            self.local.flags.stored = Stored::Nothing;
        }
        self.store_flag_operands();
        if let Stored::Operands(op) = self.local.flags.stored {
            let op = self.iconst(types::I64, op.number() as i64);
            self.store_lazy(op, offset_of!(LazyFlags, op));
            self.local.flags.stored = Stored::Everything;
        }
    }

    /// Puts flags that are not in the block into RFLAGS itself, for what will look at it as a whole: cheaper than leaving it
    /// to [`crate::flags::status`].
    pub(super) fn store_rflags(&mut self) {
        if matches!(self.local.flags.source, Source::Memory) {
            return;
        }
        let status = self.status_word();
        let offset = offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, rflags);
        let rflags = self.load_state(types::I64, offset);
        let others = self.b.ins().band_imm_s(rflags, !(lazy::STATUS as i64));
        let rflags = self.b.ins().bor(others, status);
        self.store_state(rflags, offset);
        let none = self.iconst(types::I64, 0);
        self.store_lazy(none, offset_of!(LazyFlags, op));
        self.local.flags.stored = Stored::Everything;
    }

    /// Brings the flags into the form that a block with several predecessors expects.
    /// `source` says that it finds them in registers.
    /// `repeated` says that it recognises flags in registers by a mark in the block.
    pub(super) fn hand_over_flags(&mut self, wanted: LiveFlags, source: Option<FlagSource>, repeated: bool) {
        for flag in 0..FLAG_COUNT {
            if wanted.read >> flag & 1 != 0 {
                let value = self.flag(flag);
                self.b.def_var(self.vars.flags[flag], value);
            }
        }
        if wanted.memory & ALL_FLAGS == 0 {
            return;
        }
        match source {
            None if repeated => {
                let mark = self.iconst(types::I64, SiteFlags::REPEATED as i64);
                self.store_lazy(mark, offset_of!(LazyFlags, op));
            }
            None => self.store_flags(),
            Some(source) if source.keeps_carry() && !self.carry_is_kept() => self.store_kept_carry(),
            Some(_) => {}
        }
    }

    /// Replaces single flags of an operation set just now.
    pub fn override_flags(&mut self, values: &[(usize, Value)]) {
        let wanted = std::mem::replace(&mut self.current.flags_after, ALL_FLAGS);
        self.set_flag_bits(ALL_FLAGS, values);
        self.current.flags_after = wanted;
    }

    /// Makes the block's flags exact, before code that sets flags in some cases only; see [`Emitter::join_flags`].
    pub fn save_flags(&mut self) {
        if self.wanted_flags() != 0 {
            self.store_flags();
        }
    }

    /// Where the cases meet, all of which have called [`Emitter::save_flags`].
    pub fn join_flags(&mut self) {
        self.local.flags = if self.wanted_flags() == 0 { FlagState::unknown() } else { FlagState::in_memory() };
    }

    /// Runs `set`, which sets flags, only if `count` is not zero at run time.
    pub fn unless_zero(&mut self, count: Value, set: impl FnOnce(&mut Self)) {
        if self.wanted_flags() == 0 {
            set(self);
            return;
        }
        self.store_flags();
        let (changed, join) = (self.b.create_block(), self.b.create_block());
        self.b.ins().brif(count, changed, &[], join, &[]);
        self.b.switch_to_block(changed);
        self.b.seal_block(changed);
        set(self);
        self.store_flags();
        self.b.ins().jump(join, &[]);
        self.b.switch_to_block(join);
        self.b.seal_block(join);
        self.local.flags = FlagState::in_memory();
    }

    /// The type of a value.
    pub fn type_of(&self, value: Value) -> Type {
        self.b.func.dfg.value_type(value)
    }
}

fn float_condition(code: ConditionCode, negate: bool) -> Option<FloatCC> {
    use ConditionCode as C;
    let cc = match code {
        C::b => FloatCC::UnorderedOrLessThan,
        C::be => FloatCC::UnorderedOrLessThanOrEqual,
        C::e => FloatCC::UnorderedOrEqual,
        C::p => FloatCC::Unordered,
        _ => return None,
    };
    Some(if negate { cc.complement() } else { cc })
}
