//! x87 (SDM vol. 1, chapter 8). The registers are in the block; helpers execute one instruction each on the host's own x87,
//! as long as all exceptions are masked and no register is missing. What they decline traps to the interpreter.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use iced_x86::{ConditionCode, Instruction, MemorySize, Mnemonic, OpKind, Register};
use lstar_arch::control::cr0;
use lstar_arch::state::X87State;
use lstar_arch::{CpuState, SegmentIndex};
use std::mem::offset_of;

use super::{Lifter, only_if};
use crate::abi::{Helper, VcpuBlock};
use crate::effects::{AF, CF, OF, PF, SF, ZF};
use crate::emit::{Emitter, Lifted, NotLifted};
use crate::x87::{Descriptor, HIGH_SHIFT, Operation, Source};

const CPU: usize = offset_of!(VcpuBlock, cpu);
const X87: usize = CPU + offset_of!(CpuState, x87);
const CONTROL: usize = X87 + offset_of!(X87State, control);
const STATUS: usize = X87 + offset_of!(X87State, status);

/// Lifters of this chapter. The helpers need an x86-64 host.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    Some(match mnemonic {
        Mnemonic::Fst | Mnemonic::Fstp | Mnemonic::Fist | Mnemonic::Fistp | Mnemonic::Fisttp => store,
        Mnemonic::Fnstsw | Mnemonic::Fnstcw => store_word,
        mnemonic if operation(mnemonic).is_some() => execute,
        _ => return None,
    })
}

/// The operation and how often it pops.
fn operation(mnemonic: Mnemonic) -> Option<(Operation, u8)> {
    use Mnemonic as M;
    use Operation as O;
    Some(match mnemonic {
        M::Fld | M::Fild => (O::Load, 0),
        M::Fst => (O::Store, 0),
        M::Fstp => (O::Store, 1),
        M::Fxch => (O::Exchange, 0),
        M::Fcmovb | M::Fcmove | M::Fcmovbe | M::Fcmovu => (O::ConditionalMove, 0),
        M::Fcmovnb | M::Fcmovne | M::Fcmovnbe | M::Fcmovnu => (O::ConditionalMove, 0),
        M::Fadd | M::Fiadd => (O::Add, 0),
        M::Faddp => (O::Add, 1),
        M::Fmul | M::Fimul => (O::Multiply, 0),
        M::Fmulp => (O::Multiply, 1),
        M::Fsub | M::Fisub => (O::Subtract, 0),
        M::Fsubp => (O::Subtract, 1),
        M::Fsubr | M::Fisubr => (O::SubtractReverse, 0),
        M::Fsubrp => (O::SubtractReverse, 1),
        M::Fdiv | M::Fidiv => (O::Divide, 0),
        M::Fdivp => (O::Divide, 1),
        M::Fdivr | M::Fidivr => (O::DivideReverse, 0),
        M::Fdivrp => (O::DivideReverse, 1),
        M::Fcom | M::Ficom => (O::Compare, 0),
        M::Fcomp | M::Ficomp => (O::Compare, 1),
        M::Fcompp => (O::Compare, 2),
        M::Fucom => (O::CompareUnordered, 0),
        M::Fucomp => (O::CompareUnordered, 1),
        M::Fucompp => (O::CompareUnordered, 2),
        M::Fcomi => (O::CompareFlags, 0),
        M::Fcomip => (O::CompareFlags, 1),
        M::Fucomi => (O::CompareFlagsUnordered, 0),
        M::Fucomip => (O::CompareFlagsUnordered, 1),
        M::Ftst => (O::Test, 0),
        M::Fxam => (O::Examine, 0),
        M::Fchs => (O::ChangeSign, 0),
        M::Fabs => (O::Absolute, 0),
        M::Fsqrt => (O::SquareRoot, 0),
        M::Frndint => (O::Round, 0),
        M::Fscale => (O::Scale, 0),
        M::Fprem => (O::Remainder, 0),
        M::Fprem1 => (O::RemainderNearest, 0),
        M::Fxtract => (O::Extract, 0),
        M::F2xm1 => (O::Exponential, 0),
        M::Fyl2x => (O::Logarithm, 1),
        M::Fyl2xp1 => (O::LogarithmOfNext, 1),
        M::Fptan => (O::Tangent, 0),
        M::Fpatan => (O::ArcTangent, 1),
        M::Fsin => (O::Sine, 0),
        M::Fcos => (O::Cosine, 0),
        M::Fsincos => (O::SineCosine, 0),
        M::Fld1 => (O::One, 0),
        M::Fldz => (O::Zero, 0),
        M::Fldpi => (O::Pi, 0),
        M::Fldl2e => (O::Log2E, 0),
        M::Fldl2t => (O::Log2Ten, 0),
        M::Fldlg2 => (O::LogTwo, 0),
        M::Fldln2 => (O::LnTwo, 0),
        M::Fincstp => (O::Increment, 0),
        M::Fdecstp => (O::Decrement, 0),
        M::Ffree => (O::Free, 0),
        M::Ffreep => (O::Free, 1),
        M::Fnop | M::Wait => (O::Nothing, 0),
        M::Fnclex => (O::ClearExceptions, 0),
        M::Fninit => (O::Initialise, 0),
        M::Fldcw => (O::LoadControl, 0),
        _ => return None,
    })
}

/// Whether the instruction records its address, opcode and operand address.
fn records_pointers(mnemonic: Mnemonic) -> bool {
    !matches!(mnemonic, Mnemonic::Wait | Mnemonic::Fnclex | Mnemonic::Fninit | Mnemonic::Fldcw)
}

fn has_memory(insn: &Instruction) -> bool {
    insn.op_count() > 0 && insn.op0_kind() == OpKind::Memory
}

/// What the last-opcode register takes: three bits of the first byte and the ModRM byte, as it must have been.
fn opcode(insn: &Instruction) -> u16 {
    let info = insn.code().op_code();
    if !has_memory(insn) {
        // The register's number is in the low bits; of two operands one is ST(0).
        let stack = |op: u32| match insn.op_register(op) {
            register if op < insn.op_count() && register.is_st() => register.number() as u16,
            _ => 0,
        };
        return (info.op_code() as u16 | stack(0) | stack(1)) & 0x7FF;
    }
    let group = info.group_index().max(0) as u16;
    let base = insn.memory_base();
    let (mode, operand) = if insn.is_ip_rel_memory_operand() {
        (0, 5)
    } else if base == Register::None {
        (0, 4)
    } else {
        let number = base.number() as u16 & 7;
        let operand = if insn.memory_index() == Register::None { number } else { 4 };
        (insn.memory_displ_size().min(2) as u16, operand)
    };
    (info.op_code() as u16 & 7) << 8 | mode << 6 | group << 3 | operand
}

fn descriptor(insn: &Instruction, operation: Operation, pops: u8) -> Result<Descriptor, NotLifted> {
    only_if(!insn.has_lock_prefix())?;
    let mut descriptor = Descriptor {
        operation,
        source: Source::Register,
        destination: 0,
        register: 1,
        pops,
        opcode: records_pointers(insn.mnemonic()).then(|| opcode(insn)),
        segment: None,
    };
    if has_memory(insn) {
        descriptor.source = match insn.memory_size() {
            MemorySize::Float32 => Source::F32,
            MemorySize::Float64 => Source::F64,
            MemorySize::Float80 => Source::F80,
            MemorySize::Int16 | MemorySize::UInt16 => Source::I16,
            MemorySize::Int32 => Source::I32,
            MemorySize::Int64 => Source::I64,
            _ => return Err(NotLifted),
        };
        descriptor.segment = match insn.memory_segment() {
            Register::DS => Some(SegmentIndex::Ds),
            Register::SS => Some(SegmentIndex::Ss),
            _ => return Err(NotLifted),
        };
        return Ok(descriptor);
    }
    let number = |op: u32| insn.op_register(op).number() as u8;
    match insn.op_count() {
        0 => {}
        // FFREE, FST and FLD with one register operand.
        1 => (descriptor.destination, descriptor.register) = (number(0), number(0)),
        _ => (descriptor.destination, descriptor.register) = (number(0), number(1)),
    }
    Ok(descriptor)
}

/// FCMOVcc's condition.
fn condition(mnemonic: Mnemonic) -> Option<ConditionCode> {
    Some(match mnemonic {
        Mnemonic::Fcmovb => ConditionCode::b,
        Mnemonic::Fcmove => ConditionCode::e,
        Mnemonic::Fcmovbe => ConditionCode::be,
        Mnemonic::Fcmovu => ConditionCode::p,
        Mnemonic::Fcmovnb => ConditionCode::ae,
        Mnemonic::Fcmovne => ConditionCode::ne,
        Mnemonic::Fcmovnbe => ConditionCode::a,
        Mnemonic::Fcmovnu => ConditionCode::np,
        _ => return None,
    })
}

/// Traps if the x87 may not be used.
fn check_available(e: &mut Emitter<'_>) {
    let control = e.load_state(types::I64, CPU + offset_of!(CpuState, cr0));
    let unavailable = e.b.ins().band_imm_u(control, (cr0::EM | cr0::TS) as i64);
    e.trap_if(unavailable);
}

fn execute(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let (operation, pops) = operation(insn.mnemonic()).ok_or(NotLifted)?;
    let descriptor = descriptor(insn, operation, pops)?;
    let mut packed = e.iconst(types::I64, descriptor.pack() as i64);
    let mut operand = e.iconst(types::I64, 0);
    let mut offset = operand;
    if has_memory(insn) {
        let host = e.address(insn)?;
        offset = e.effective_address(insn);
        let ty = match descriptor.source {
            Source::F32 | Source::I32 => types::I32,
            Source::I16 => types::I16,
            _ => types::I64,
        };
        operand = e.load(ty, host);
        if ty != types::I64 {
            operand = e.b.ins().uextend(types::I64, operand);
        }
        if descriptor.source == Source::F80 {
            let high = e.load(types::I16, host.above(8)?);
            let high = e.b.ins().uextend(types::I64, high);
            let high = e.b.ins().ishl_imm_u(high, i64::from(HIGH_SHIFT));
            packed = e.b.ins().bor(packed, high);
        }
    } else if let Some(code) = condition(insn.mnemonic()) {
        let value = e.condition(code);
        operand = e.b.ins().uextend(types::I64, value);
    }
    let rip = e.iconst(types::I64, insn.ip() as i64);
    let result = e.call_helper(Helper::X87Execute, &[packed, operand, rip, offset]);
    let declined = e.b.ins().band_imm_u(result, 1);
    e.trap_if(declined);
    if matches!(operation, Operation::CompareFlags | Operation::CompareFlagsUnordered) {
        let mut flag = |index: i64| {
            let bit = e.b.ins().ushr_imm_u(result, 1 + index);
            let bit = e.b.ins().band_imm_u(bit, 1);
            e.b.ins().ireduce(types::I8, bit)
        };
        let (carry, parity, zero) = (flag(0), flag(1), flag(2));
        let clear = e.iconst(types::I8, 0);
        e.set_flag_bits(0, &[(CF, carry), (PF, parity), (ZF, zero), (OF, clear), (SF, clear), (AF, clear)]);
    }
    Ok(())
}

/// FST, FIST and their like.
fn store(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    if !has_memory(insn) {
        return execute(e, insn);
    }
    let operation = if insn.mnemonic() == Mnemonic::Fisttp { Operation::StoreTruncated } else { Operation::Store };
    let pops = u8::from(!matches!(insn.mnemonic(), Mnemonic::Fst | Mnemonic::Fist));
    let descriptor = descriptor(insn, operation, pops)?;
    let host = e.address(insn)?;
    let offset = e.effective_address(insn);
    if descriptor.source == Source::F80 {
        // Two stores: both happen or none.
        let in_page = e.b.ins().band_imm_u(offset, 0xFFF);
        let limit = e.iconst(types::I64, 0x1000 - 10);
        let crosses = e.b.ins().icmp(IntCC::UnsignedGreaterThan, in_page, limit);
        e.trap_if(crosses);
    }
    let upper = host.above(8)?;
    let packed = e.iconst(types::I64, descriptor.pack() as i64);
    let declined = e.call_helper(Helper::X87Convert, &[packed, packed]);
    e.trap_if(declined);
    let value = e.load_state(types::I64, offset_of!(VcpuBlock, x87_pending));
    let pending = e.load_state(types::I64, offset_of!(VcpuBlock, x87_pending) + 8);
    let ty = match descriptor.source {
        Source::F32 | Source::I32 => types::I32,
        Source::I16 => types::I16,
        _ => types::I64,
    };
    let narrow = if ty == types::I64 { value } else { e.b.ins().ireduce(ty, value) };
    e.store(narrow, host);
    if descriptor.source == Source::F80 {
        let high = e.b.ins().ushr_imm_u(pending, 32);
        let high = e.b.ins().ireduce(types::I16, high);
        e.store(high, upper);
    }
    let status = e.b.ins().ireduce(types::I16, pending);
    e.store_state(status, STATUS);
    let tags = e.b.ins().ushr_imm_u(pending, 16);
    let tags = e.b.ins().ireduce(types::I8, tags);
    e.store_state(tags, X87 + offset_of!(X87State, valid));
    store_pointers(e, insn, descriptor, offset);
    Ok(())
}

/// Records address, opcode and operand address.
fn store_pointers(e: &mut Emitter<'_>, insn: &Instruction, descriptor: Descriptor, offset: Value) {
    let rip = e.iconst(types::I64, insn.ip() as i64);
    e.store_state(rip, X87 + offset_of!(X87State, instruction_pointer));
    e.store_state(offset, X87 + offset_of!(X87State, data_pointer));
    let opcode = e.iconst(types::I16, i64::from(descriptor.opcode.unwrap_or(0)));
    e.store_state(opcode, X87 + offset_of!(X87State, opcode));
    let selectors = e.load_state(types::I32, offset_of!(VcpuBlock, x87_pending) + 16);
    e.store_state(selectors, X87 + offset_of!(X87State, selectors));
}

/// FNSTSW and FNSTCW, which do not wait.
fn store_word(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    check_available(e);
    let from = if insn.mnemonic() == Mnemonic::Fnstsw { STATUS } else { CONTROL };
    if has_memory(insn) {
        let host = e.address(insn)?;
        let value = e.load_state(types::I16, from);
        e.store(value, host);
    } else {
        let value = e.load_state(types::I16, from);
        e.set_gpr(insn.op0_register(), value);
    }
    Ok(())
}
