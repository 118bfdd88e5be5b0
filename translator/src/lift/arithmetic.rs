//! Binary arithmetic (SDM vol. 1, 7.3.2) without division: addition, subtraction, comparison, multiplication.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Lifter;
use crate::effects::{ALL_FLAGS, CF, OF};
use crate::emit::{Arithmetic, Emitter, Lifted};
use crate::flags::FlagKind;

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Add => add,
        M::Sub => sub,
        M::Adc | M::Sbb => with_carry,
        M::Adcx | M::Adox => add_one_flag,
        M::Cmp => cmp,
        M::Inc | M::Dec => inc_dec,
        M::Neg => neg,
        M::Mul => mul,
        M::Imul => imul,
        M::Mulx => mulx,
        _ => return None,
    })
}

fn binary(
    e: &mut Emitter<'_>,
    insn: &Instruction,
    kind: FlagKind,
    op: fn(&mut Emitter<'_>, Value, Value) -> Value,
) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let b = e.read(insn, 1, ty)?;
    let place = e.place(insn, 0)?;
    let a = e.get(place);
    let result = op(e, a, b);
    e.put(place, result);
    e.set_flags(Arithmetic { kind, a, b, carry: None, result });
    Ok(())
}

fn add(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    binary(e, insn, FlagKind::Add, |e, a, b| e.b.ins().iadd(a, b))
}

fn sub(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    binary(e, insn, FlagKind::Sub, |e, a, b| e.b.ins().isub(a, b))
}

fn with_carry(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let b = e.read(insn, 1, ty)?;
    let place = e.place(insn, 0)?;
    let a = e.get(place);
    let carry = e.flag(CF);
    let wide = e.resize(carry, ty);
    let (kind, result) = if insn.mnemonic() == Mnemonic::Adc {
        let sum = e.b.ins().iadd(a, b);
        (FlagKind::Adc, e.b.ins().iadd(sum, wide))
    } else {
        let difference = e.b.ins().isub(a, b);
        (FlagKind::Sbb, e.b.ins().isub(difference, wide))
    };
    e.put(place, result);
    e.set_flags(Arithmetic { kind, a, b, carry: Some(carry), result });
    Ok(())
}

/// ADCX and ADOX: addition with, and changing, CF or OF only.
fn add_one_flag(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let flag = if insn.mnemonic() == Mnemonic::Adcx { CF } else { OF };
    let ty = e.operand_type(insn, 0)?;
    let b = e.read(insn, 1, ty)?;
    let a = e.gpr(insn.op0_register());
    let carry = e.flag(flag);
    let wide = e.resize(carry, ty);
    let sum = e.b.ins().iadd(a, b);
    let first = e.b.ins().icmp(IntCC::UnsignedLessThan, sum, a);
    let result = e.b.ins().iadd(sum, wide);
    let second = e.b.ins().icmp(IntCC::UnsignedLessThan, result, sum);
    let out = e.b.ins().bor(first, second);
    e.set_gpr(insn.op0_register(), result);
    e.set_flag_bits(ALL_FLAGS, &[(flag, out)]);
    Ok(())
}

fn cmp(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let a = e.read(insn, 0, ty)?;
    let b = e.read(insn, 1, ty)?;
    let result = e.b.ins().isub(a, b);
    e.set_flags(Arithmetic { kind: FlagKind::Sub, a, b, carry: None, result });
    Ok(())
}

fn inc_dec(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let place = e.place(insn, 0)?;
    let value = e.get(place);
    let (kind, step) = if insn.mnemonic() == Mnemonic::Inc { (FlagKind::Inc, 1) } else { (FlagKind::Dec, -1) };
    let result = e.b.ins().iadd_imm_s(value, step);
    e.put(place, result);
    let carry = e.kept_carry();
    e.set_flags(Arithmetic { kind, a: result, b: result, carry, result });
    Ok(())
}

fn neg(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let place = e.place(insn, 0)?;
    let b = e.get(place);
    let result = e.b.ins().ineg(b);
    let ty = e.type_of(b);
    let a = e.iconst(ty, 0);
    e.put(place, result);
    e.set_flags(Arithmetic { kind: FlagKind::Sub, a, b, carry: None, result });
    Ok(())
}

/// MUL, and IMUL with one operand: accumulator times operand into a double-width result.
fn multiply_accumulator(e: &mut Emitter<'_>, insn: &Instruction, signed: bool) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let b = e.read(insn, 0, ty)?;
    if ty == types::I8 {
        let a = e.gpr(Register::AL);
        let [a, b] = [a, b].map(|value| {
            if signed { e.b.ins().sextend(types::I16, value) } else { e.b.ins().uextend(types::I16, value) }
        });
        let product = e.b.ins().imul(a, b);
        let low = e.b.ins().ireduce(types::I8, product);
        let again = if signed { e.b.ins().sextend(types::I16, low) } else { e.b.ins().uextend(types::I16, low) };
        let overflow = e.b.ins().icmp(IntCC::NotEqual, again, product);
        e.set_gpr(Register::AX, product);
        e.set_flags(Arithmetic { kind: FlagKind::Mul, a: low, b: low, carry: Some(overflow), result: low });
        return Ok(());
    }
    let (low_register, high_register) = match ty {
        types::I16 => (Register::AX, Register::DX),
        types::I32 => (Register::EAX, Register::EDX),
        _ => (Register::RAX, Register::RDX),
    };
    let a = e.gpr(low_register);
    let low = e.b.ins().imul(a, b);
    let high = if signed { e.b.ins().smulhi(a, b) } else { e.b.ins().umulhi(a, b) };
    let expected = if signed { e.b.ins().sshr_imm_u(low, i64::from(ty.bits() - 1)) } else { e.iconst(ty, 0) };
    let overflow = e.b.ins().icmp(IntCC::NotEqual, high, expected);
    e.set_gpr(low_register, low);
    e.set_gpr(high_register, high);
    e.set_flags(Arithmetic { kind: FlagKind::Mul, a: low, b: low, carry: Some(overflow), result: low });
    Ok(())
}

fn mul(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    multiply_accumulator(e, insn, false)
}

fn imul(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    if insn.op_count() == 1 {
        return multiply_accumulator(e, insn, true);
    }
    let ty = e.operand_type(insn, 0)?;
    let first = if insn.op_count() == 3 { 1 } else { 0 };
    let a = e.read(insn, first, ty)?;
    let b = e.read(insn, first + 1, ty)?;
    let low = e.b.ins().imul(a, b);
    let high = e.b.ins().smulhi(a, b);
    let expected = e.b.ins().sshr_imm_u(low, i64::from(ty.bits() - 1));
    let overflow = e.b.ins().icmp(IntCC::NotEqual, high, expected);
    e.set_gpr(insn.op0_register(), low);
    e.set_flags(Arithmetic { kind: FlagKind::Mul, a: low, b: low, carry: Some(overflow), result: low });
    Ok(())
}

fn mulx(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let source = if insn.op_kind(2) == OpKind::Register || insn.op_kind(2) == OpKind::Memory { 2 } else { 1 };
    let b = e.read(insn, source, ty)?;
    let a = e.gpr(if ty == types::I64 { Register::RDX } else { Register::EDX });
    let low = e.b.ins().imul(a, b);
    let high = e.b.ins().umulhi(a, b);
    // With equal destinations the high half wins.
    e.set_gpr(insn.op1_register(), low);
    e.set_gpr(insn.op0_register(), high);
    Ok(())
}
