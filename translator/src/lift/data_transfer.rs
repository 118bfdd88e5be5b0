//! Data transfer (SDM vol. 1, 7.3.1): moves, exchanges, stack, extensions, conditional moves.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use iced_x86::{Code, Instruction, Mnemonic, Register};

use std::mem::offset_of;

use super::{Lifter, only_if};
use crate::abi::VcpuBlock;
use crate::effects::{ALL_FLAGS, ZF};
use crate::emit::{Arithmetic, Emitter, Lifted, NotLifted, Place, int_type};
use crate::flags::FlagKind;
use lstar_arch::CpuState;

const RBP: usize = 5;

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Mov => mov,
        M::Movzx => movzx,
        M::Movsx | M::Movsxd => movsx,
        M::Movbe => movbe,
        M::Movnti => mov,
        M::Lea => lea,
        M::Push => push,
        M::Pop => pop,
        M::Leave => leave,
        M::Xchg => xchg,
        M::Xadd => xadd,
        M::Cmpxchg => cmpxchg,
        M::Cmpxchg8b | M::Cmpxchg16b => cmpxchg_double,
        M::Pushfq | M::Pushfd | M::Pushf => push_flags,
        M::Enter => enter,
        M::Xlatb => xlat,
        M::Clflush | M::Clflushopt | M::Clwb => touch,
        M::Bswap => bswap,
        M::Cbw | M::Cwde | M::Cdqe => extend_accumulator,
        M::Cwd | M::Cdq | M::Cqo => extend_into_dx,
        M::Cmova | M::Cmovae | M::Cmovb | M::Cmovbe | M::Cmove | M::Cmovg | M::Cmovge | M::Cmovl | M::Cmovle => cmov,
        M::Cmovne | M::Cmovno | M::Cmovnp | M::Cmovns | M::Cmovo | M::Cmovp | M::Cmovs => cmov,
        _ => return None,
    })
}

/// MOV, also of a selector, which is extended into a register.
fn mov(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let value = match e.selector(insn.op1_register()) {
        Some(selector) => e.resize(selector, ty),
        None => e.read(insn, 1, ty)?,
    };
    let place = e.place(insn, 0)?;
    e.put(place, value);
    Ok(())
}

fn movzx(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let value = e.read(insn, 1, ty)?;
    let value = e.resize(value, ty);
    e.set_gpr(insn.op0_register(), value);
    Ok(())
}

fn movsx(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let value = e.read(insn, 1, ty)?;
    let value = if e.type_of(value) == ty { value } else { e.b.ins().sextend(ty, value) };
    e.set_gpr(insn.op0_register(), value);
    Ok(())
}

fn movbe(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let value = e.read(insn, 1, ty)?;
    let value = e.b.ins().bswap(value);
    let place = e.place(insn, 0)?;
    e.put(place, value);
    Ok(())
}

fn lea(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let address = e.effective_address(insn);
    let ty = int_type(insn.op0_register().size())?;
    let address = e.resize(address, ty);
    e.set_gpr(insn.op0_register(), address);
    Ok(())
}

/// Size of a stack operation's operand: that of the stack pointer unless an operand-size prefix makes it 2.
fn stack_operand(e: &Emitter<'_>, insn: &Instruction) -> Result<i64, NotLifted> {
    match insn.stack_pointer_increment().unsigned_abs() {
        2 => Ok(2),
        size if size == e.stack_type().bytes() => Ok(size.into()),
        _ => Err(NotLifted),
    }
}

fn push(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let size = stack_operand(e, insn)?;
    let ty = int_type(size as usize)?;
    let value = match e.selector(insn.op0_register()) {
        // In 32-bit code processors differ about the upper half.
        Some(_) if e.is_32bit() => return Err(NotLifted),
        Some(selector) => e.resize(selector, ty),
        None => e.read(insn, 0, ty)?,
    };
    let rsp = e.stack_pointer();
    let host = e.address_at(rsp, -size)?;
    e.store(value, host);
    e.move_stack_pointer(rsp, -size);
    Ok(())
}

fn pop(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let size = stack_operand(e, insn)?;
    let ty = int_type(size as usize)?;
    let rsp = e.stack_pointer();
    let host = e.address_at(rsp, 0)?;
    let value = e.load(ty, host);
    // Before the store, which can fault: its address counts from the new stack pointer. The site has been opened with the old one.
    e.move_stack_pointer(rsp, size);
    let place = e.place(insn, 0)?;
    // POP RSP: the popped value wins over the increment.
    e.put(place, value);
    Ok(())
}

fn leave(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let register = match insn.code() {
        Code::Leavew => Register::BP,
        Code::Leaved => Register::EBP,
        _ => Register::RBP,
    };
    let rbp = e.pointer(RBP);
    let host = e.address_at(rbp, 0)?;
    let saved = e.load(int_type(register.size())?, host);
    e.move_stack_pointer(rbp, register.size() as i64);
    e.set_gpr(register, saved);
    Ok(())
}

/// ENTER without enclosing frames. (With them it is rare: interpreter.)
fn enter(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(insn.immediate8_2nd().is_multiple_of(32))?;
    let register = match insn.code() {
        Code::Enterw_imm16_imm8 => Register::BP,
        Code::Enterd_imm16_imm8 => Register::EBP,
        _ => Register::RBP,
    };
    let (ty, size) = (int_type(register.size())?, register.size() as i64);
    let rsp = e.stack_pointer();
    let saved = e.gpr(register);
    // The new top of the stack must be writable, although nothing is written to it.
    let below = size + i64::from(insn.immediate16());
    let top = e.address_at(rsp, -below)?;
    let there = e.load(ty, top);
    e.store(there, top);
    let host = e.address_at(rsp, -size)?;
    e.store(saved, host);
    let frame = e.wrapped(rsp, -size);
    let frame = e.resize(frame, ty);
    e.set_gpr(register, frame);
    e.move_stack_pointer(rsp, -below);
    Ok(())
}

/// XLAT.
fn xlat(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let host = e.address(insn)?;
    let value = e.load(types::I8, host);
    e.set_gpr(Register::AL, value);
    Ok(())
}

/// CLFLUSH and its like: a load of one byte.
fn touch(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let host = e.address(insn)?;
    e.load(types::I8, host);
    Ok(())
}

fn xchg(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let first = e.place(insn, 0)?;
    let second = e.place(insn, 1)?;
    let (a, b) = (e.get(first), e.get(second));
    // The memory operand, if there is one, is written before any register.
    if let Place::Memory(..) = second {
        e.put(second, a);
        e.put(first, b);
    } else {
        e.put(first, b);
        e.put(second, a);
    }
    Ok(())
}

fn xadd(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let place = e.place(insn, 0)?;
    let a = e.get(place);
    let b = e.gpr(insn.op1_register());
    let result = e.b.ins().iadd(a, b);
    if let Place::Memory(..) = place {
        e.put(place, result);
        e.set_gpr(insn.op1_register(), a);
    } else {
        // XADD of a register with itself leaves the sum.
        e.set_gpr(insn.op1_register(), a);
        e.put(place, result);
    }
    e.set_flags(Arithmetic { kind: FlagKind::Add, a, b, carry: None, result });
    Ok(())
}

fn cmpxchg(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let place = e.place(insn, 0)?;
    let accumulator = match e.operand_type(insn, 0)? {
        types::I8 => Register::AL,
        types::I16 => Register::AX,
        types::I32 => Register::EAX,
        _ => Register::RAX,
    };
    let old = e.get(place);
    let expected = e.gpr(accumulator);
    let source = e.gpr(insn.op1_register());
    let equal = e.b.ins().icmp(IntCC::Equal, expected, old);
    let difference = e.b.ins().isub(expected, old);
    let flags = Arithmetic { kind: FlagKind::Sub, a: expected, b: old, carry: None, result: difference };
    if let Place::Register(destination) = place {
        exchange_registers(e, equal, [destination, accumulator], [source, old]);
        e.set_flags(flags);
        return Ok(());
    }
    // The destination is always written (with its old value on a mismatch), as on hardware.
    let new = e.b.ins().select(equal, source, old);
    let accumulator_before = e.gpr64(0);
    e.put(place, new);
    e.set_gpr(accumulator, old);
    let loaded = e.gpr64(0);
    let rax = e.b.ins().select(equal, accumulator_before, loaded);
    e.set_gpr64(0, rax);
    e.set_flags(flags);
    Ok(())
}

/// Writes the first register if `equal`, else the second. The other one is not touched at all, so that it keeps its upper half.
fn exchange_registers(e: &mut Emitter<'_>, equal: Value, registers: [Register; 2], values: [Value; 2]) {
    let numbers = registers.map(|register| register.full_register().number());
    let before = numbers.map(|number| e.gpr64(number));
    let written = [0, 1].map(|index| e.merged(registers[index], values[index]));
    if numbers[0] == numbers[1] {
        // AH and AL, or a register with itself.
        let value = e.b.ins().select(equal, written[0], written[1]);
        e.set_gpr64(numbers[0], value);
        return;
    }
    let first = e.b.ins().select(equal, written[0], before[0]);
    let second = e.b.ins().select(equal, before[1], written[1]);
    e.set_gpr64(numbers[0], first);
    e.set_gpr64(numbers[1], second);
}

/// CMPXCHG8B and CMPXCHG16B. The destination is written in any case; ZF tells, the other flags keep their values.
fn cmpxchg_double(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let wide = insn.mnemonic() == Mnemonic::Cmpxchg16b;
    let ty = if wide { types::I64 } else { types::I32 };
    if wide {
        // So it lies in one page, where both stores happen or none.
        e.check_aligned(insn, 16);
    }
    let host = e.address(insn)?;
    let half = ty.bytes() as i32;
    let registers: [usize; 4] = [0, 2, 3, 1];
    let [low_expected, high_expected, low_source, high_source] = registers.map(|number| {
        let value = e.gpr64(number);
        e.resize(value, ty)
    });
    let (low, high) = if wide {
        (e.load(ty, host), e.load(ty, host.plus(half)))
    } else {
        let both = e.load(types::I64, host);
        let upper = e.b.ins().ushr_imm_u(both, 32);
        (e.b.ins().ireduce(ty, both), e.b.ins().ireduce(ty, upper))
    };
    let low_equal = e.b.ins().icmp(IntCC::Equal, low, low_expected);
    let high_equal = e.b.ins().icmp(IntCC::Equal, high, high_expected);
    let equal = e.b.ins().band(low_equal, high_equal);
    let new_low = e.b.ins().select(equal, low_source, low);
    let new_high = e.b.ins().select(equal, high_source, high);
    if wide {
        e.store(new_low, host);
        e.store(new_high, host.plus(half));
    } else {
        let lower = e.b.ins().uextend(types::I64, new_low);
        let upper = e.b.ins().uextend(types::I64, new_high);
        let upper = e.b.ins().ishl_imm_u(upper, 32);
        let both = e.b.ins().bor(upper, lower);
        e.store(both, host);
    }
    // On success the accumulator stays as it is, its upper halves too.
    for (number, loaded) in [(0, low), (2, high)] {
        let old = e.gpr64(number);
        let loaded = e.zero_extend64(loaded);
        let value = e.b.ins().select(equal, old, loaded);
        e.set_gpr64(number, value);
    }
    e.set_flag_bits(ALL_FLAGS, &[(ZF, equal)]);
    Ok(())
}

/// PUSHFQ, PUSHFD and PUSHF; RF and VM are pushed as zero.
fn push_flags(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    const STATUS_FLAGS: i64 = 0x8D5;
    const RF_AND_VM: i64 = 3 << 16;
    let status = e.status_word();
    let rflags = e.load_state(types::I64, offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, rflags));
    let others = e.b.ins().band_imm_s(rflags, !(STATUS_FLAGS | RF_AND_VM));
    let value = e.b.ins().bor(others, status);
    let size = stack_operand(e, insn)?;
    let value = e.resize(value, int_type(size as usize)?);
    let rsp = e.stack_pointer();
    let host = e.address_at(rsp, -size)?;
    e.store(value, host);
    e.move_stack_pointer(rsp, -size);
    Ok(())
}

fn bswap(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let register = insn.op0_register();
    only_if(register.size() >= 4)?;
    let value = e.gpr(register);
    let value = e.b.ins().bswap(value);
    e.set_gpr(register, value);
    Ok(())
}

fn extend_accumulator(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let (from, to, ty) = match insn.mnemonic() {
        Mnemonic::Cbw => (Register::AL, Register::AX, types::I16),
        Mnemonic::Cwde => (Register::AX, Register::EAX, types::I32),
        _ => (Register::EAX, Register::RAX, types::I64),
    };
    let value = e.gpr(from);
    let value = e.b.ins().sextend(ty, value);
    e.set_gpr(to, value);
    Ok(())
}

fn extend_into_dx(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let (from, to, shift) = match insn.mnemonic() {
        Mnemonic::Cwd => (Register::AX, Register::DX, 15),
        Mnemonic::Cdq => (Register::EAX, Register::EDX, 31),
        _ => (Register::RAX, Register::RDX, 63),
    };
    let value = e.gpr(from);
    let value = e.b.ins().sshr_imm_u(value, shift);
    e.set_gpr(to, value);
    Ok(())
}

fn cmov(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let source = e.read(insn, 1, ty)?;
    let old = e.gpr(insn.op0_register());
    let condition = e.condition(insn.condition_code());
    let value = e.b.ins().select(condition, source, old);
    e.set_gpr(insn.op0_register(), value);
    Ok(())
}
