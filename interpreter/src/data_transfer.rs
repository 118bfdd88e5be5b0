//! Data transfer instructions (SDM vol. 1, 5.1.1): moves, exchanges, stack operations, conversions.

use iced_x86::{Mnemonic, OpKind, Register};
use lstar_arch::cpuid::Features;
use lstar_arch::{Exception, Gpr, GuestMemory, Rflags, Vendor, is_canonical};

use crate::decode::Place;
use crate::exec::{Exec, Op};
use crate::flags::{CF, ZF, condition, mask, sign_extend, sub};
use crate::{limits, system};

pub(crate) fn mov<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.decoded.operands[1].place == Place::Other || ex.decoded.operands[0].place == Place::Other {
        return system::mov_special(ex);
    }
    let value = ex.read(1)?;
    ex.write(0, value)
}

pub(crate) fn movsx<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let value = ex.read(1)?;
    ex.write(0, sign_extend(value, ex.size(1)))
}

/// MOVBE, and BSWAP of what it moves.
pub(crate) fn movbe<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.require(Features::MOVBE)?;
    let value = ex.read(1)?;
    ex.write(0, swap_bytes(value, ex.size(0)))
}

/// With a 16-bit operand the result is undefined by the manual; processors yield zero.
pub(crate) fn bswap<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let value = ex.read(0)?;
    ex.write(0, if ex.size(0) == 2 { 0 } else { swap_bytes(value, ex.size(0)) })
}

const fn swap_bytes(value: u64, size: u8) -> u64 {
    value.swap_bytes() >> (64 - 8 * size as u32)
}

pub(crate) fn lea<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.write(0, ex.effective_address())
}

/// CMOVcc loads whatever the condition says, and clears the upper half of a 32-bit destination either way.
pub(crate) fn cmovcc<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let moved = ex.read(1)?;
    let value = if condition(ex.decoded.condition, ex.cpu.rflags) { moved } else { ex.read(0)? };
    ex.write(0, value)
}

pub(crate) fn setcc<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.write(0, condition(ex.decoded.condition, ex.cpu.rflags).into())
}

pub(crate) fn xchg<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (a, b) = (ex.read_destination()?, ex.read(1)?);
    ex.write(0, b)?;
    ex.write(1, a)
}

pub(crate) fn xadd<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (a, b) = (ex.read_destination()?, ex.read(1)?);
    let (sum, flags) = crate::flags::add(a, b, 0, ex.size(0));
    if ex.decoded.operands[0].place == Place::Memory {
        ex.write(0, sum)?;
        ex.write(1, a)?;
    } else {
        // With equal registers the sum wins (TEMP := SRC + DEST; SRC := DEST; DEST := TEMP).
        ex.write(1, a)?;
        ex.write(0, sum)?;
    }
    ex.set_status(flags);
    Ok(())
}

/// The destination is written back even when the comparison fails.
pub(crate) fn cmpxchg<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = ex.size(0);
    let accumulator = ex.cpu.reg(Gpr::Rax) & mask(size);
    let (destination, source) = (ex.read_destination()?, ex.read(1)?);
    let (_, flags) = sub(accumulator, destination, 0, size);
    if flags & ZF != 0 {
        ex.write(0, source)?;
    } else {
        if ex.decoded.operands[0].place == Place::Memory {
            ex.write(0, destination)?;
        }
        ex.set_register(Gpr::Rax, destination, size);
    }
    ex.set_status(flags);
    Ok(())
}

pub(crate) fn cmpxchg8b<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let linear = ex.linear_address();
    let old = ex.load_for_store(linear, 8)?;
    let pair = |ex: &Exec<'_, M>, high, low| ex.cpu.reg(high) << 32 | ex.cpu.reg(low) & 0xFFFF_FFFF;
    let equal = pair(ex, Gpr::Rdx, Gpr::Rax) == old;
    ex.store_sized(linear, if equal { pair(ex, Gpr::Rcx, Gpr::Rbx) } else { old }, 8)?;
    if !equal {
        ex.set_register(Gpr::Rax, old, 4);
        ex.set_register(Gpr::Rdx, old >> 32, 4);
    }
    ex.set_flags(ZF, if equal { ZF } else { 0 });
    Ok(())
}

pub(crate) fn cmpxchg16b<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.require(Features::CX16)?;
    let linear = ex.linear_address();
    if linear & 15 != 0 {
        return Err(Exception::GP0);
    }
    // The first load names a missing page with the write bit set; alignment keeps both halves on one page.
    ex.load_for_store(linear, 8)?;
    let old = u128::from_le_bytes(ex.load(linear)?);
    let pair = |ex: &Exec<'_, M>, high, low| u128::from(ex.cpu.reg(high)) << 64 | u128::from(ex.cpu.reg(low));
    let equal = pair(ex, Gpr::Rdx, Gpr::Rax) == old;
    let new = if equal { pair(ex, Gpr::Rcx, Gpr::Rbx) } else { old };
    ex.store(linear, new.to_le_bytes())?;
    if !equal {
        ex.cpu.set_reg(Gpr::Rax, old as u64);
        ex.cpu.set_reg(Gpr::Rdx, (old >> 64) as u64);
    }
    ex.set_flags(ZF, if equal { ZF } else { 0 });
    Ok(())
}

/// Bytes that PUSH, POP, CALL and their kin move the stack pointer by.
pub(crate) fn stack_slot<M: GuestMemory>(ex: &Exec<'_, M>) -> u8 {
    ex.insn.stack_pointer_increment().unsigned_abs() as u8
}

pub(crate) fn push<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let value = match ex.decoded.operands[0].place {
        Place::Immediate => ex.decoded.immediate,
        Place::Other => u64::from(system::selector(ex, ex.insn.op0_register())),
        Place::Gpr | Place::Memory => ex.read(0)?,
    };
    ex.push(value, stack_slot(ex))
}

/// POP to memory computes its address with the incremented stack pointer, which a failing store must not leave behind.
pub(crate) fn pop<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.decoded.operands[0].place == Place::Other {
        return system::pop_segment(ex);
    }
    let saved = ex.cpu.reg(Gpr::Rsp);
    let value = ex.pop(stack_slot(ex))?;
    ex.write(0, value).inspect_err(|_| ex.cpu.set_reg(Gpr::Rsp, saved))
}

/// PUSHA and PUSHAD: the value of the stack pointer that is pushed is the one before the instruction.
pub(crate) fn pusha<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = if ex.decoded.mnemonic == Mnemonic::Pushad { 4 } else { 2 };
    let before = ex.cpu.gpr;
    for value in &before[..8] {
        ex.push(*value, size).inspect_err(|_| ex.cpu.gpr = before)?;
    }
    Ok(())
}

pub(crate) fn popa<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = if ex.decoded.mnemonic == Mnemonic::Popad { 4 } else { 2 };
    let before = ex.cpu.gpr;
    for register in Gpr::ALL[..8].iter().rev() {
        let value = ex.pop(size).inspect_err(|_| ex.cpu.gpr = before)?;
        if *register != Gpr::Rsp {
            ex.set_register(*register, value, size);
        }
    }
    Ok(())
}

/// ENTER (SDM vol. 2A): everything is written before RSP and RBP change.
pub(crate) fn enter<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let frame_size = u64::from(ex.insn.immediate16());
    let level = ex.insn.immediate8_2nd() % 32;
    let size = match ex.insn.code() {
        iced_x86::Code::Enterw_imm16_imm8 => 2,
        iced_x86::Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let width = ex.stack_size();
    let before = ex.cpu.gpr;
    let result = (|| {
        push_checked(ex, ex.cpu.reg(Gpr::Rbp), size)?;
        let frame = ex.cpu.reg(Gpr::Rsp);
        for i in 1..level {
            let link = ex.cpu.reg(Gpr::Rbp).wrapping_sub(u64::from(i) * u64::from(size)) & mask(width);
            limits::check_stack(ex.cpu, link, size, false)?;
            let value = ex.load_stack(link, size)?;
            push_checked(ex, value, size)?;
        }
        if level > 0 {
            push_checked(ex, frame, size)?;
        }
        let top = ex.cpu.reg(Gpr::Rsp).wrapping_sub(frame_size) & mask(width);
        if !is_canonical(top) {
            return Err(Exception::SS0);
        }
        ex.set_register(Gpr::Rbp, frame, size);
        ex.set_register(Gpr::Rsp, top, width);
        // The new top of the stack must be writable, although nothing is written to it.
        let probe = ex.linear(top);
        Ok(ex.mem.probe_write(probe, u64::from(size), ex.cpu.privilege())?)
    })();
    result.inspect_err(|_| ex.cpu.gpr = before)
}

/// Pushes with a check of the stack segment, for ENTER, whose accesses are not checked in advance.
fn push_checked<M: GuestMemory>(ex: &mut Exec<'_, M>, value: u64, size: u8) -> Op {
    let top = ex.cpu.reg(Gpr::Rsp).wrapping_sub(u64::from(size)) & mask(ex.stack_size());
    limits::check_stack(ex.cpu, top, size, true)?;
    ex.push(value, size)
}

pub(crate) fn leave<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = match ex.insn.code() {
        iced_x86::Code::Leavew => 2,
        iced_x86::Code::Leaved => 4,
        _ => 8,
    };
    let width = ex.stack_size();
    let frame = ex.cpu.reg(Gpr::Rbp) & mask(width);
    let value = ex.load_stack(frame, size)?;
    ex.set_register(Gpr::Rbp, value, size);
    ex.set_register(Gpr::Rsp, frame.wrapping_add(u64::from(size)), width);
    Ok(())
}

/// CBW, CWDE, CDQE.
pub(crate) fn cbw<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = match ex.decoded.mnemonic {
        Mnemonic::Cbw => 2,
        Mnemonic::Cwde => 4,
        _ => 8,
    };
    let value = sign_extend(ex.cpu.reg(Gpr::Rax), size / 2);
    ex.set_register(Gpr::Rax, value, size);
    Ok(())
}

/// CWD, CDQ, CQO.
pub(crate) fn cwd<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = match ex.decoded.mnemonic {
        Mnemonic::Cwd => 2,
        Mnemonic::Cdq => 4,
        _ => 8,
    };
    let high = (sign_extend(ex.cpu.reg(Gpr::Rax), size) as i64 >> 63) as u64;
    ex.set_register(Gpr::Rdx, high, size);
    Ok(())
}

pub(crate) fn xlat<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let address_size = match ex.insn.memory_base().size() {
        2 => 2,
        4 => 4,
        _ => 8,
    };
    let offset = ex.cpu.reg(Gpr::Rbx).wrapping_add(ex.cpu.reg(Gpr::Rax) & 0xFF) & mask(address_size);
    let linear = ex.linear(offset.wrapping_add(ex.segment_base(ex.insn.memory_segment())));
    let value = ex.load_sized(linear, 1)?;
    ex.set_register(Gpr::Rax, value, 1);
    Ok(())
}

/// LAHF and SAHF need a feature bit in 64-bit mode only.
pub(crate) fn lahf<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.cpu.is_64bit() {
        ex.require(Features::LAHF)?;
    }
    let low = ex.cpu.rflags & (crate::flags::STATUS & 0xFF) | Rflags::FIXED.bits();
    let rax = ex.cpu.reg(Gpr::Rax) & !0xFF00;
    ex.cpu.set_reg(Gpr::Rax, rax | low << 8);
    Ok(())
}

pub(crate) fn sahf<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.cpu.is_64bit() {
        ex.require(Features::LAHF)?;
    }
    ex.set_flags(crate::flags::STATUS & 0xFF, ex.cpu.reg(Gpr::Rax) >> 8);
    Ok(())
}

/// CLC, STC, CMC, CLD, STD.
pub(crate) fn flag<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let df = Rflags::DF.bits();
    match ex.decoded.mnemonic {
        Mnemonic::Clc => ex.cpu.rflags &= !CF,
        Mnemonic::Stc => ex.cpu.rflags |= CF,
        Mnemonic::Cmc => ex.cpu.rflags ^= CF,
        Mnemonic::Cld => ex.cpu.rflags &= !df,
        _ => ex.cpu.rflags |= df,
    }
    Ok(())
}

/// PREFETCH and the wide NOPs touch nothing; PREFETCHW needs no feature bit on processors in long mode. AMD's processors
/// know 0F 0D with memory operands only (APM vol. 3, PREFETCH).
pub(crate) fn nop<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    use iced_x86::Code as C;
    let reserved = matches!(
        ex.insn.code(),
        C::Reservednop_rm16_r16_0F0D | C::Reservednop_rm32_r32_0F0D | C::Reservednop_rm64_r64_0F0D
    );
    if reserved && ex.cpu.model.vendor == Vendor::Amd { Err(Exception::UD) } else { Ok(()) }
}

/// CLZERO (APM vol. 3): clears the cache line that rAX points into.
pub(crate) fn clzero<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    const LINE: u64 = 64;
    ex.require(Features::CLZERO)?;
    let width = match ex.insn.code() {
        iced_x86::Code::Clzerow => 2,
        iced_x86::Code::Clzerod => 4,
        _ => 8,
    };
    let offset = ex.cpu.reg(Gpr::Rax) & mask(width);
    let segment = match ex.insn.segment_prefix() {
        Register::None => Register::DS,
        segment => segment,
    };
    let linear = ex.linear(offset.wrapping_add(ex.segment_base(segment)));
    ex.store(linear & !(LINE - 1), [0; LINE as usize])
}

/// CLFLUSH, CLFLUSHOPT and CLWB behave as a load of one byte.
pub(crate) fn clflush<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    debug_assert_eq!(ex.insn.op0_kind(), OpKind::Memory);
    match ex.decoded.mnemonic {
        Mnemonic::Clflushopt => ex.require(Features::CLFLUSHOPT)?,
        Mnemonic::Clwb => ex.require(Features::CLWB)?,
        _ => {}
    }
    let linear = ex.linear_address();
    ex.load_sized(linear, 1)?;
    Ok(())
}
