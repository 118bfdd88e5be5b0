//! Logical instructions and flag control (SDM vol. 1, 7.3.4 and 7.3.13), SETcc, BMI1's bit-field operations.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{Lifter, only_if};
use crate::effects::{ALL_FLAGS, CF, OF, SF, ZF};
use crate::emit::{Emitter, Lifted};

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::And => and,
        M::Or => or,
        M::Xor => xor,
        M::Not => not,
        M::Test => test,
        M::Andn => andn,
        M::Blsi | M::Blsr | M::Blsmsk => lowest_set,
        M::Seta | M::Setae | M::Setb | M::Setbe | M::Sete | M::Setg | M::Setge | M::Setl | M::Setle => setcc,
        M::Setne | M::Setno | M::Setnp | M::Setns | M::Seto | M::Setp | M::Sets => setcc,
        M::Clc | M::Stc | M::Cmc => carry,
        M::Lahf => lahf,
        M::Sahf => sahf,
        M::Nop
        | M::Reservednop
        | M::Cldemote
        | M::Prefetchit0
        | M::Prefetchit1
        | M::Pause
        | M::Endbr64
        | M::Endbr32 => nop,
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetchw | M::Prefetch => nop,
        M::Mfence | M::Lfence | M::Sfence => nop,
        _ => return None,
    })
}

fn binary(e: &mut Emitter<'_>, insn: &Instruction, op: fn(&mut Emitter<'_>, Value, Value) -> Value) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let b = e.read(insn, 1, ty)?;
    let place = e.place(insn, 0)?;
    let a = e.get(place);
    let result = op(e, a, b);
    e.put(place, result);
    e.set_flags_logic(result);
    Ok(())
}

fn and(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    binary(e, insn, |e, a, b| e.b.ins().band(a, b))
}

fn or(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    binary(e, insn, |e, a, b| e.b.ins().bor(a, b))
}

fn xor(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    if insn.op1_kind() == OpKind::Register
        && insn.op0_kind() == OpKind::Register
        && insn.op0_register() == insn.op1_register()
    {
        let ty = e.operand_type(insn, 0)?;
        let zero = e.iconst(ty, 0);
        e.set_gpr(insn.op0_register(), zero);
        e.set_flags_logic(zero);
        return Ok(());
    }
    binary(e, insn, |e, a, b| e.b.ins().bxor(a, b))
}

fn not(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let place = e.place(insn, 0)?;
    let value = e.get(place);
    let value = e.b.ins().bnot(value);
    e.put(place, value);
    Ok(())
}

fn test(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let a = e.read(insn, 0, ty)?;
    let b = e.read(insn, 1, ty)?;
    let result = if a == b { a } else { e.b.ins().band(a, b) };
    e.set_flags_logic(result);
    Ok(())
}

fn andn(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let b = e.read(insn, 2, ty)?;
    let a = e.gpr(insn.op1_register());
    let result = e.b.ins().band_not(b, a);
    e.set_gpr(insn.op0_register(), result);
    e.set_flags_logic(result);
    Ok(())
}

fn lowest_set(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let source = e.read(insn, 1, ty)?;
    let zero = e.iconst(ty, 0);
    let is_zero = e.b.ins().icmp(IntCC::Equal, source, zero);
    let less = e.b.ins().iadd_imm_s(source, -1);
    let (result, carry) = match insn.mnemonic() {
        Mnemonic::Blsr => (e.b.ins().band(source, less), is_zero),
        Mnemonic::Blsmsk => (e.b.ins().bxor(source, less), is_zero),
        _ => {
            let negated = e.b.ins().ineg(source);
            (e.b.ins().band(source, negated), e.b.ins().icmp(IntCC::NotEqual, source, zero))
        }
    };
    e.set_gpr(insn.op0_register(), result);
    let zero_flag = e.b.ins().icmp(IntCC::Equal, result, zero);
    let sign = e.b.ins().icmp(IntCC::SignedLessThan, result, zero);
    let clear = e.iconst(types::I8, 0);
    e.set_flag_bits(0, &[(CF, carry), (ZF, zero_flag), (SF, sign), (OF, clear)]);
    Ok(())
}

fn setcc(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let place = e.place(insn, 0)?;
    let value = e.condition(insn.condition_code());
    e.put(place, value);
    Ok(())
}

fn carry(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = match insn.mnemonic() {
        Mnemonic::Clc => e.iconst(types::I8, 0),
        Mnemonic::Stc => e.iconst(types::I8, 1),
        _ => {
            let carry = e.flag(CF);
            e.b.ins().bxor_imm_u(carry, 1)
        }
    };
    e.set_flag_bits(ALL_FLAGS, &[(CF, value)]);
    Ok(())
}

fn lahf(e: &mut Emitter<'_>, _: &Instruction) -> Lifted {
    let word = e.status_word();
    let byte = e.b.ins().ireduce(types::I8, word);
    // Bit 1 of RFLAGS reads as one.
    let byte = e.b.ins().bor_imm_u(byte, 2);
    e.set_gpr(Register::AH, byte);
    Ok(())
}

fn sahf(e: &mut Emitter<'_>, _: &Instruction) -> Lifted {
    let overflow = e.flag(OF);
    let ah = e.gpr(Register::AH);
    let word = e.zero_extend64(ah);
    let wide = e.b.ins().uextend(types::I64, overflow);
    let placed = e.b.ins().ishl_imm_u(wide, 11);
    let word = e.b.ins().bor(word, placed);
    e.set_status_word(word);
    Ok(())
}

/// Not 0F 0D with a register, which AMD's processors do not know.
fn nop(_: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    use iced_x86::Code as C;
    let code = insn.code();
    only_if(!matches!(code, C::Reservednop_rm16_r16_0F0D | C::Reservednop_rm32_r32_0F0D | C::Reservednop_rm64_r64_0F0D))
}
