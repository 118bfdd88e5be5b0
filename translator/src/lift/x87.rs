//! x87 (SDM vol. 1, chapter 8). The guest's state is in the host's x87 (see [`crate::x87`]), where each instruction is executed
//! as it is, a memory operand at RDI. What an instruction would fault on is touched before: the site is where that happens.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use iced_x86::{CodeSize, ConditionCode, Instruction, Mnemonic, OpKind, Register};
use lstar_arch::SegmentIndex;
use smallvec::SmallVec;

use super::{Lifter, only_if};
use crate::effects::{AF, CF, OF, PF, SF, ZF};
use crate::emit::{Emitter, Host, Lifted, NotLifted};
use crate::host_op::HostSignature;

/// Masks of all exceptions in the control word.
const MASKS: i64 = 0x3F;

/// Lifters of this chapter: all but those that store or load the whole state or environment. They need an x86-64 host.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    Some(match mnemonic {
        M::Fld | M::Fild | M::Fbld | M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp | M::Fxch => execute,
        M::Fstpnce => execute,
        M::Fadd | M::Fiadd | M::Faddp | M::Fmul | M::Fimul | M::Fmulp | M::Fsub | M::Fisub | M::Fsubp => execute,
        M::Fsubr | M::Fisubr | M::Fsubrp | M::Fdiv | M::Fidiv | M::Fdivp | M::Fdivr | M::Fidivr | M::Fdivrp => execute,
        M::Fcom | M::Ficom | M::Fcomp | M::Ficomp | M::Fcompp | M::Fucom | M::Fucomp | M::Fucompp => execute,
        M::Ftst | M::Fxam | M::Fchs | M::Fabs | M::Fsqrt | M::Frndint | M::Fscale | M::Fprem | M::Fprem1 => execute,
        M::Fxtract | M::F2xm1 | M::Fyl2x | M::Fyl2xp1 | M::Fptan | M::Fpatan | M::Fsin | M::Fcos | M::Fsincos => {
            execute
        }
        M::Fld1 | M::Fldz | M::Fldpi | M::Fldl2e | M::Fldl2t | M::Fldlg2 | M::Fldln2 => execute,
        M::Fincstp | M::Fdecstp | M::Ffree | M::Ffreep | M::Fnop | M::Fnclex => execute,
        M::Fcmovb | M::Fcmove | M::Fcmovbe | M::Fcmovu | M::Fcmovnb | M::Fcmovne | M::Fcmovnbe | M::Fcmovnu => {
            conditional_move
        }
        M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip => compare,
        M::Fnstcw | M::Fnstsw => store_word,
        M::Fldcw => load_control,
        M::Fninit => initialise,
        M::Wait => wait,
        _ => return None,
    })
}

/// Whether the instruction stores to its memory operand.
fn stores(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp | M::Fnstcw | M::Fnstsw)
}

fn has_memory(insn: &Instruction) -> bool {
    insn.op_count() > 0 && insn.op0_kind() == OpKind::Memory
}

/// The two bytes of an instruction without memory operand.
fn encoding(insn: &Instruction) -> Result<[u8; 2], NotLifted> {
    let info = insn.code().op_code();
    only_if(info.op_code_len() == 2)?;
    // The register's number is in the low bits; of two operands at most one is not ST(0).
    let stack = |op: u32| match op < insn.op_count() {
        true if insn.op_register(op).is_st() => insn.op_register(op).number() as u16,
        _ => 0,
    };
    Ok((info.op_code() as u16 | stack(0) | stack(1)).to_be_bytes())
}

/// First byte and REG field of an instruction with a memory operand.
fn memory_encoding(insn: &Instruction) -> (u8, u8) {
    let info = insn.code().op_code();
    (info.op_code() as u8, info.group_index().max(0) as u8)
}

/// What the last-opcode register takes: three bits of the first byte and the ModRM byte, as it must have been.
fn opcode(insn: &Instruction) -> Result<u16, NotLifted> {
    if !has_memory(insn) {
        return Ok(u16::from_be_bytes(encoding(insn)?) & 0x7FF);
    }
    let (first, group) = memory_encoding(insn);
    let base = insn.memory_base();
    let (mode, operand) = if insn.is_ip_rel_memory_operand() {
        (0, 5)
    } else if base == Register::None {
        // Assemblers take the shorter encoding that 64-bit code has not.
        let short = insn.memory_index() == Register::None && insn.code_size() == CodeSize::Code32;
        (0, if short { 5 } else { 4 })
    } else {
        let number = base.number() as u16 & 7;
        let operand = if insn.memory_index() == Register::None { number } else { 4 };
        (insn.memory_displ_size().min(2) as u16, operand)
    };
    Ok(u16::from(first & 7) << 8 | mode << 6 | u16::from(group) << 3 | operand)
}

/// The segment of the memory operand.
fn segment(insn: &Instruction) -> SegmentIndex {
    match insn.memory_segment() {
        Register::ES => SegmentIndex::Es,
        Register::CS => SegmentIndex::Cs,
        Register::SS => SegmentIndex::Ss,
        Register::FS => SegmentIndex::Fs,
        Register::GS => SegmentIndex::Gs,
        _ => SegmentIndex::Ds,
    }
}

/// Touches the operand as the instruction will: reads it, and writes it back if the instruction stores. Nothing changes, and
/// behind it the instruction itself cannot fault. Returns what the first bytes hold.
fn touch(e: &mut Emitter<'_>, insn: &Instruction, host: Host) -> Result<Value, NotLifted> {
    let size = insn.memory_size().size();
    let (ty, rest) = match size {
        2 => (types::I16, None),
        4 => (types::I32, None),
        8 => (types::I64, None),
        10 => (types::I64, Some(host.above(8)?)),
        _ => return Err(NotLifted),
    };
    let value = e.load(ty, host);
    let upper = rest.map(|upper| (upper, e.load(types::I16, upper)));
    if stores(insn.mnemonic()) {
        e.store(value, host);
        if let Some((host, value)) = upper {
            e.store(value, host);
        }
    }
    Ok(value)
}

/// The one result of a host instruction.
fn result(results: SmallVec<[Value; 2]>) -> Result<Value, NotLifted> {
    results.first().copied().ok_or(NotLifted)
}

/// Executes an instruction with a memory operand. `check` sees the operand before.
fn on_memory(e: &mut Emitter<'_>, insn: &Instruction, check: impl FnOnce(&mut Emitter<'_>, Value)) -> Lifted {
    let (first, reg) = memory_encoding(insn);
    let host = e.address(insn)?;
    e.enter_x87();
    let value = touch(e, insn, host)?;
    check(e, value);
    let address = e.host_address(host);
    // With RDI as base.
    e.host_instruction(&[first, reg << 3 | 7], HostSignature::I_N, &[address])?;
    Ok(())
}

/// Any instruction that takes nothing from and gives nothing to other registers.
fn execute(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    let opcode = opcode(insn)?;
    if has_memory(insn) {
        let offset = e.effective_address(insn);
        on_memory(e, insn, |_, _| {})?;
        e.record_x87_operand(offset, segment(insn));
    } else {
        e.enter_x87();
        e.host_instruction(&encoding(insn)?, HostSignature::N_N, &[])?;
    }
    if insn.mnemonic() != Mnemonic::Fnclex {
        e.record_x87(opcode);
    }
    Ok(())
}

/// FCMOVcc.
fn conditional_move(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    let condition = match insn.mnemonic() {
        Mnemonic::Fcmovb => ConditionCode::b,
        Mnemonic::Fcmove => ConditionCode::e,
        Mnemonic::Fcmovbe => ConditionCode::be,
        Mnemonic::Fcmovu => ConditionCode::p,
        Mnemonic::Fcmovnb => ConditionCode::ae,
        Mnemonic::Fcmovne => ConditionCode::ne,
        Mnemonic::Fcmovnbe => ConditionCode::a,
        _ => ConditionCode::np,
    };
    let opcode = opcode(insn)?;
    let condition = e.condition(condition);
    let condition = e.zero_extend64(condition);
    e.enter_x87();
    let source = encoding(insn)?[1] & 7;
    // test edi,edi; fcmovne st0,sti
    e.host_instruction(&[0x85, 0xFF, 0xDB, 0xC8 | source], HostSignature::I_N, &[condition])?;
    e.record_x87(opcode);
    Ok(())
}

/// FCOMI and its like.
fn compare(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    let opcode = opcode(insn)?;
    e.enter_x87();
    const LAHF: u8 = 0x9F;
    let [first, second] = encoding(insn)?;
    let result = result(e.host_instruction(&[first, second, LAHF], HostSignature::N_I, &[])?)?;
    if e.compare_clears_c1() {
        // fincstp; fdecstp
        e.host_instruction(&[0xD9, 0xF7, 0xD9, 0xF6], HostSignature::N_N, &[])?;
    }
    e.record_x87(opcode);
    // LAHF puts CF, PF and ZF there, in AH.
    let mut flag = |bit: i64| {
        let shifted = e.b.ins().ushr_imm_u(result, 8 + bit);
        let shifted = e.b.ins().band_imm_u(shifted, 1);
        e.b.ins().ireduce(types::I8, shifted)
    };
    let (carry, parity, zero) = (flag(0), flag(2), flag(6));
    let clear = e.iconst(types::I8, 0);
    e.set_flag_bits(0, &[(CF, carry), (PF, parity), (ZF, zero), (OF, clear), (SF, clear), (AF, clear)]);
    Ok(())
}

/// FNSTSW and FNSTCW, which record nothing.
fn store_word(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    if has_memory(insn) {
        return on_memory(e, insn, |_, _| {});
    }
    e.enter_x87();
    let status = result(e.host_instruction(&encoding(insn)?, HostSignature::N_I, &[])?)?;
    let status = e.b.ins().ireduce(types::I16, status);
    e.set_gpr(insn.op0_register(), status);
    Ok(())
}

/// FLDCW. One that unmasks an exception is the interpreter's.
fn load_control(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    on_memory(e, insn, |e, control| {
        let masks = e.b.ins().band_imm_u(control, MASKS);
        let unmasks = e.b.ins().icmp_imm_u(IntCC::NotEqual, masks, MASKS);
        e.trap_if(unmasks);
    })
}

/// FNINIT, which leaves the registers as they are, but empty.
fn initialise(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    e.enter_x87();
    e.host_instruction(&encoding(insn)?, HostSignature::N_N, &[])?;
    e.forget_x87_pointers();
    Ok(())
}

/// WAIT: nothing is pending while all exceptions are masked.
fn wait(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(!insn.has_lock_prefix())?;
    e.enter_x87();
    Ok(())
}
