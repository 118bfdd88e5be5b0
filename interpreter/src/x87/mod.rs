//! x87 instructions (SDM vol. 1, chapter 8).
//!
//! Registers are 80-bit images held as `u128`. An unmasked exception does not fault: it sets ES, and the next waiting
//! instruction raises #MF. Pre-computation exceptions that are unmasked leave operands and stack alone.

mod arithmetic;
mod compare;
mod control;
mod data;
mod image;
mod transcendental;

pub(crate) use control::set_control;
pub(crate) use transcendental::provided_single;
pub use transcendental::{Provider, Transcendental, provide_transcendentals};

use iced_x86::{CodeSize, CpuidFeature, EncodingKind, Instruction, MemorySize, Mnemonic, OpKind, Register};
use lstar_arch::control::cr0;
use lstar_arch::cpuid::Features;
use lstar_arch::{Exception, GuestMemory, SegmentIndex, Vendor};

use crate::exec::{Exec, Op};
use crate::softfloat::{Class, Environment, Float, Format, flags};

/// Status word bit ES: an unmasked exception is pending. B mirrors it in bit 15.
const ERROR_SUMMARY: u16 = 1 << 7;
/// Status word bit SF: the invalid operation was a stack fault.
const STACK_FAULT: u16 = 1 << 6;
/// Status word bits of the condition codes.
const C0: u16 = 1 << 8;
const C1: u16 = 1 << 9;
const C2: u16 = 1 << 10;
const C3: u16 = 1 << 14;

/// Executes an x87 instruction; `None` when it is none of those implemented here.
pub(crate) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Option<Op> {
    let x87 =
        |feature: &CpuidFeature| matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387);
    let mnemonic = ex.insn.mnemonic();
    if ex.insn.encoding() != EncodingKind::Legacy
        || mnemonic != Mnemonic::Wait && !ex.insn.cpuid_features().iter().any(x87)
    {
        return None;
    }
    if let Err(exception) = check_available(ex, mnemonic) {
        return Some(Err(exception));
    }
    let result = execute_available(ex, mnemonic);
    if matches!(result, Some(Ok(()))) && !control::is_control(mnemonic) {
        record_pointers(ex);
    }
    result
}

fn execute_available<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    data::execute(ex, mnemonic)
        .or_else(|| arithmetic::execute(ex, mnemonic))
        .or_else(|| compare::execute(ex, mnemonic))
        .or_else(|| transcendental::execute(ex, mnemonic))
        .or_else(|| control::execute(ex, mnemonic))
        .or_else(|| image::execute(ex, mnemonic))
}

/// The last instruction and data pointers (SDM vol. 1, 8.1.8). The data pointer stays when there is no memory operand.
fn record_pointers<M: GuestMemory>(ex: &mut Exec<'_, M>) {
    // Intel's processors have deprecated the selectors (CPUID.7.0:EBX bit 13).
    let has_selectors = ex.cpu.model.vendor == Vendor::Amd;
    let selector = |index: SegmentIndex| if has_selectors { ex.cpu.segment(index).selector } else { 0 };
    let code = selector(SegmentIndex::Cs);
    if (0..ex.insn.op_count()).any(|op| ex.insn.op_kind(op) == OpKind::Memory) {
        let data = selector(match ex.insn.memory_segment() {
            Register::ES => SegmentIndex::Es,
            Register::CS => SegmentIndex::Cs,
            Register::SS => SegmentIndex::Ss,
            Register::FS => SegmentIndex::Fs,
            Register::GS => SegmentIndex::Gs,
            _ => SegmentIndex::Ds,
        });
        ex.cpu.x87.data_pointer = ex.effective_address();
        ex.cpu.x87.selectors[1] = data;
    }
    ex.cpu.x87.selectors[0] = code;
    ex.cpu.x87.instruction_pointer = ex.insn.ip();
    ex.cpu.x87.opcode = opcode(ex.insn);
}

/// The low three bits of the first opcode byte and the second byte. The decoder does not keep the second one where it is a
/// ModRM byte with a memory operand; its parts follow from the operand.
fn opcode(insn: &Instruction) -> u16 {
    let info = insn.code().op_code();
    let number = |op: u32| if op < insn.op_count() { insn.op_register(op) } else { Register::None };
    if info.op_code_len() == 2 {
        // At most one of the operands is not ST(0).
        let index = |register: Register| if register.is_st() { register.number() as u16 } else { 0 };
        return (info.op_code() as u16 + index(number(0)) + index(number(1))) & 0x7FF;
    }
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let mode = match insn.memory_displ_size() {
        _ if insn.is_ip_rel_memory_operand() || base == Register::None => 0,
        0 => 0,
        1 => 1,
        _ => 2,
    };
    let number = base.number() as u16 & 7;
    let operand = match base {
        _ if insn.is_ip_rel_memory_operand() => 5,
        // Assemblers take the shorter encoding that 64-bit code has not.
        Register::None if index == Register::None && insn.code_size() == CodeSize::Code32 => 5,
        _ if index != Register::None || base == Register::None || number == 4 => 4,
        _ => number,
    };
    let group = info.group_index().max(0) as u16;
    (info.op_code() as u16 & 7) << 8 | mode << 6 | group << 3 | operand
}

/// #NM by CR0.EM and CR0.TS (for WAIT by TS with MP), then #MF for a pending exception unless the instruction is one
/// of the non-waiting ones.
fn check_available<M: GuestMemory>(ex: &Exec<'_, M>, mnemonic: Mnemonic) -> Op {
    if ex.insn.has_lock_prefix() || mnemonic == Mnemonic::Fisttp && !ex.cpu.model.features.contains(Features::SSE3) {
        return Err(Exception::UD);
    }
    let unavailable = if mnemonic == Mnemonic::Wait {
        ex.cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS
    } else {
        ex.cpu.cr0 & (cr0::EM | cr0::TS) != 0
    };
    if unavailable {
        return Err(Exception::NM);
    }
    let waits = !matches!(
        mnemonic,
        Mnemonic::Fninit
            | Mnemonic::Fnclex
            | Mnemonic::Fnstcw
            | Mnemonic::Fnstsw
            | Mnemonic::Fnstenv
            | Mnemonic::Fnsave
            | Mnemonic::Fneni
            | Mnemonic::Fndisi
            | Mnemonic::Fnsetpm
    );
    if waits && ex.cpu.x87.status & ERROR_SUMMARY != 0 { Err(Exception::MF) } else { Ok(()) }
}

impl<M: GuestMemory> Exec<'_, M> {
    fn top(&self) -> u16 {
        self.cpu.x87.status >> 11 & 7
    }

    fn set_top(&mut self, top: u16) {
        let status = &mut self.cpu.x87.status;
        *status = *status & !(7 << 11) | (top & 7) << 11;
    }

    /// Physical number of ST(`index`).
    pub(crate) fn physical(&self, index: usize) -> usize {
        (usize::from(self.top()) + index) & 7
    }

    /// The image in ST(`index`); `None` if it is empty.
    fn st(&self, index: usize) -> Option<u128> {
        let physical = self.physical(index);
        let image = u128::from_le_bytes(self.cpu.x87.registers[physical]) & ((1 << 80) - 1);
        (self.cpu.x87.valid >> physical & 1 != 0).then_some(image)
    }

    fn set_st(&mut self, index: usize, image: u128) {
        let physical = self.physical(index);
        self.cpu.x87.registers[physical] = image.to_le_bytes();
        self.cpu.x87.valid |= 1 << physical;
    }

    fn free_st(&mut self, index: usize) {
        self.cpu.x87.valid &= !(1 << self.physical(index));
    }

    fn pop_st(&mut self) {
        self.free_st(0);
        self.set_top(self.top() + 1);
    }

    /// Pushes an image. Pushing onto a register in use is a stack overflow: masked, the indefinite is pushed instead.
    fn push_st(&mut self, image: u128) {
        let full = self.cpu.x87.valid >> self.physical(7) & 1 != 0;
        match full {
            true if !self.stack_fault(true) => {}
            true => self.push_st_over(Format::EXTENDED.pack(Float::INDEFINITE)),
            false => self.push_st_over(image),
        }
    }

    /// Pushes an image, whatever the register held.
    fn push_st_over(&mut self, image: u128) {
        self.set_top(self.top().wrapping_sub(1));
        self.set_st(0, image);
    }

    fn set_condition(&mut self, bits: u16, set: bool) {
        let status = &mut self.cpu.x87.status;
        *status = if set { *status | bits } else { *status & !bits };
    }

    /// Raises a stack overflow or underflow and tells whether it is masked.
    fn stack_fault(&mut self, overflow: bool) -> bool {
        let mut environment = self.x87_environment();
        environment.raise(flags::IE);
        let masked = self.x87_report(&environment);
        self.cpu.x87.status |= STACK_FAULT;
        self.set_condition(C1, overflow);
        masked
    }

    fn x87_environment(&self) -> Environment {
        Environment::from_x87_control(self.cpu.x87.control)
    }

    /// The extended format with the precision that the control word asks for (SDM vol. 1, 8.1.5.2).
    fn x87_precision(&self) -> Format {
        let precision = match self.cpu.x87.control >> 8 & 3 {
            0 => Format::SINGLE.precision,
            2 => Format::DOUBLE.precision,
            _ => Format::EXTENDED.precision,
        };
        Format::EXTENDED.with_precision(precision)
    }

    /// Records an operation's exceptions and its rounding direction; `false` if an unmasked pre-computation exception
    /// keeps it from taking effect.
    fn x87_report(&mut self, environment: &Environment) -> bool {
        let mut raised = environment.flags;
        let proceeds = raised & flags::PRE_COMPUTATION & !environment.masks == 0;
        if !proceeds {
            raised &= flags::PRE_COMPUTATION;
        }
        self.cpu.x87.status |= raised as u16;
        self.set_condition(C1, environment.rounded_up && raised & flags::PE != 0);
        control::summarise(self);
        proceeds
    }

    /// The value of a register or memory operand; `None` for an empty register.
    fn x87_operand(&mut self, op: u32) -> Result<Option<Float>, Exception> {
        if self.insn.op_kind(op) == OpKind::Register {
            let image = self.st(self.insn.op_register(op).number());
            return Ok(image.map(|image| Format::EXTENDED.unpack(image)));
        }
        let linear = self.linear_address();
        Ok(Some(match self.insn.memory_size() {
            MemorySize::Float32 => Format::SINGLE.unpack(u32::from_le_bytes(self.load(linear)?).into()),
            MemorySize::Float64 => Format::DOUBLE.unpack(u64::from_le_bytes(self.load(linear)?).into()),
            MemorySize::Int16 => Float::from_integer(i16::from_le_bytes(self.load(linear)?).into()),
            MemorySize::Int32 => Float::from_integer(i32::from_le_bytes(self.load(linear)?).into()),
            MemorySize::Int64 => Float::from_integer(i64::from_le_bytes(self.load(linear)?)),
            _ => {
                let bytes: [u8; 10] = self.load(linear)?;
                let mut image = [0; 16];
                image[..10].copy_from_slice(&bytes);
                Format::EXTENDED.unpack(u128::from_le_bytes(image))
            }
        }))
    }
}

/// The result for operands that are no numbers (SDM vol. 1, table 4-7): of two NaNs the quiet one, else the one with the
/// larger significand, else the positive one.
fn propagate_nan(environment: &mut Environment, a: Float, b: Float) -> Option<Float> {
    if a.class == Class::Unsupported || b.class == Class::Unsupported {
        return Some(environment.invalid());
    }
    if !a.is_nan() && !b.is_nan() {
        return None;
    }
    if a.class == Class::Signaling || b.class == Class::Signaling {
        environment.raise(flags::IE);
    }
    let rank = |float: &Float| (float.is_nan(), float.class == Class::Quiet, float.significand, !float.negative);
    Some(if rank(&a) >= rank(&b) { a } else { b }.quieted())
}
