//! Bit test, bit scan and bit counting (SDM vol. 1, 7.3.7), BMI1/BMI2 field operations, CRC32.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Lifter, only_if};
use crate::effects::{ALL_FLAGS, CF, OF, SF, ZF};
use crate::emit::{Emitter, Lifted, NotLifted, Place};
use crate::host_op::HostOp;

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Bt | M::Bts | M::Btr | M::Btc => bit_test,
        M::Bsf | M::Bsr => bit_scan,
        M::Tzcnt | M::Lzcnt => count_zeros,
        M::Popcnt => popcnt,
        M::Bextr => bextr,
        M::Bzhi => bzhi,
        M::Pext | M::Pdep => gather_scatter,
        M::Crc32 => crc32,
        _ => return None,
    })
}

/// The operand that holds the bit. With a bit offset in a register and the bit string in memory the offset, a signed number,
/// reaches beyond the addressed one.
fn bit_place(e: &mut Emitter<'_>, insn: &Instruction, ty: Type, offset: Value) -> Result<Place, NotLifted> {
    if insn.op0_kind() == OpKind::Register || insn.op1_kind() == OpKind::Immediate8 {
        return e.place(insn, 0);
    }
    // What wraps below 64 bits is simple only where no segment base comes on top.
    let narrow = insn.memory_base().is_gpr32() || insn.memory_index().is_gpr32();
    only_if(if e.is_32bit() { !e.has_segment_base(insn) } else { !narrow })?;
    let mut address = e.effective_address(insn);
    if let Some(base) = e.segment_base_of(insn) {
        address = e.b.ins().iadd(address, base);
    }
    let wide = if ty == types::I64 { offset } else { e.b.ins().sextend(types::I64, offset) };
    let units = e.b.ins().sshr_imm_u(wide, i64::from(ty.bits().trailing_zeros()));
    let distance = e.b.ins().ishl_imm_u(units, i64::from(ty.bytes().trailing_zeros()));
    let address = e.b.ins().iadd(address, distance);
    Ok(Place::Memory(e.address_at(address, 0)?, ty))
}

/// BT and its modifying forms. CF is the bit; the other flags keep their values.
fn bit_test(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let offset = e.read(insn, 1, ty)?;
    let place = bit_place(e, insn, ty, offset)?;
    let value = e.get(place);
    let offset = e.b.ins().band_imm_u(offset, i64::from(ty.bits() - 1));
    let shifted = e.b.ins().ushr(value, offset);
    let low = e.resize(shifted, types::I8);
    let carry = e.b.ins().band_imm_u(low, 1);
    let one = e.iconst(ty, 1);
    let bit = e.b.ins().ishl(one, offset);
    let result = match insn.mnemonic() {
        Mnemonic::Bts => Some(e.b.ins().bor(value, bit)),
        Mnemonic::Btr => Some(e.b.ins().band_not(value, bit)),
        Mnemonic::Btc => Some(e.b.ins().bxor(value, bit)),
        _ => None,
    };
    if let Some(result) = result {
        e.put(place, result);
    }
    e.set_flag_bits(ALL_FLAGS, &[(CF, carry)]);
    Ok(())
}

/// BSF and BSR. A zero source leaves the whole destination register as it is; the undefined flags keep their values.
fn bit_scan(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let source = e.read(insn, 1, ty)?;
    let zero = e.iconst(ty, 0);
    let is_zero = e.b.ins().icmp(IntCC::Equal, source, zero);
    let index = if insn.mnemonic() == Mnemonic::Bsf {
        e.b.ins().ctz(source)
    } else {
        let leading = e.b.ins().clz(source);
        e.b.ins().bxor_imm_u(leading, i64::from(ty.bits() - 1))
    };
    let number = insn.op0_register().full_register().number();
    let old = e.gpr64(number);
    e.set_gpr(insn.op0_register(), index);
    let new = e.gpr64(number);
    let kept = e.b.ins().select(is_zero, old, new);
    e.set_gpr64(number, kept);
    e.set_flag_bits(ALL_FLAGS, &[(ZF, is_zero)]);
    Ok(())
}

/// TZCNT and LZCNT: CF for a zero source, ZF for a zero result; the undefined flags keep their values.
fn count_zeros(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let source = e.read(insn, 1, ty)?;
    let result = if insn.mnemonic() == Mnemonic::Tzcnt { e.b.ins().ctz(source) } else { e.b.ins().clz(source) };
    let zero = e.iconst(ty, 0);
    let carry = e.b.ins().icmp(IntCC::Equal, source, zero);
    let none = e.b.ins().icmp(IntCC::Equal, result, zero);
    e.set_gpr(insn.op0_register(), result);
    e.set_flag_bits(ALL_FLAGS, &[(CF, carry), (ZF, none)]);
    Ok(())
}

fn popcnt(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let source = e.read(insn, 1, ty)?;
    let result = e.b.ins().popcnt(source);
    let zero = e.iconst(ty, 0);
    let is_zero = e.b.ins().icmp(IntCC::Equal, source, zero);
    e.set_gpr(insn.op0_register(), result);
    let clear = e.iconst(types::I8, 0);
    e.set_flag_bits(0, &[(ZF, is_zero), (CF, clear), (OF, clear), (SF, clear)]);
    Ok(())
}

fn bextr(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let source = e.read(insn, 1, ty)?;
    let control = e.gpr(insn.op_register(2));
    let bits = i64::from(ty.bits());
    let wide = e.zero_extend64(source);
    let start = e.b.ins().band_imm_u(control, 0xFF);
    let shifted = e.b.ins().ushr(wide, start);
    let zero = e.iconst(types::I64, 0);
    let inside = e.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, start, bits);
    let shifted = e.b.ins().select(inside, shifted, zero);
    let length = e.b.ins().ushr_imm_u(control, 8);
    let length = e.b.ins().band_imm_u(length, 0xFF);
    let masked = low_bits(e, shifted, length);
    let result = e.resize(masked, ty);
    e.set_gpr(insn.op0_register(), result);
    e.set_flags_logic(result);
    Ok(())
}

/// The lowest `length` bits of a 64-bit value, all of them from 64 on.
fn low_bits(e: &mut Emitter<'_>, value: Value, length: Value) -> Value {
    let ones = e.iconst(types::I64, -1);
    let above = e.b.ins().ishl(ones, length);
    let masked = e.b.ins().band_not(value, above);
    let partial = e.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, length, 64);
    e.b.ins().select(partial, masked, value)
}

fn bzhi(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let source = e.read(insn, 1, ty)?;
    let index = e.gpr(insn.op_register(2));
    let index = e.b.ins().band_imm_u(index, 0xFF);
    let wide = e.zero_extend64(source);
    let masked = low_bits(e, wide, index);
    let result = e.resize(masked, ty);
    let carry = e.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, index, i64::from(ty.bits() - 1));
    e.set_gpr(insn.op0_register(), result);
    e.set_flags_logic(result);
    e.override_flags(&[(CF, carry)]);
    Ok(())
}

fn gather_scatter(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 0)?;
    let mask = e.read(insn, 2, ty)?;
    let source = e.gpr(insn.op1_register());
    let (source, mask) = (e.zero_extend64(source), e.zero_extend64(mask));
    let op = if insn.mnemonic() == Mnemonic::Pext { HostOp::Pext } else { HostOp::Pdep };
    let result = e.host_op(op, &[source, mask])?;
    let result = e.resize(result, ty);
    e.set_gpr(insn.op0_register(), result);
    Ok(())
}

fn crc32(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let ty = e.operand_type(insn, 1)?;
    let data = e.read(insn, 1, ty)?;
    let initial = e.gpr(insn.op0_register());
    let (initial, data) = (e.zero_extend64(initial), e.zero_extend64(data));
    let op = match ty {
        types::I8 => HostOp::Crc32Byte,
        types::I16 => HostOp::Crc32Word,
        types::I32 => HostOp::Crc32Doubleword,
        _ => HostOp::Crc32Quadword,
    };
    let result = e.host_op(op, &[initial, data])?;
    e.set_gpr64(insn.op0_register().full_register().number(), result);
    Ok(())
}
