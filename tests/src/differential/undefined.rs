//! Flags that the manual leaves undefined, and how instructions read and write the rest.
//!
//! The static part (MUL, DIV, shifts by more than one, BSF, ..) is iced-x86's table, which follows the SDM. What depends
//! on operands is here.

use iced_x86::{Instruction, Mnemonic, OpKind, RflagsBits};
use lstar_arch::Rflags;

/// A set of iced-x86's status-flag bits as RFLAGS bits.
fn rflags(bits: u32) -> u64 {
    const FLAGS: [(u32, Rflags); 7] = [
        (RflagsBits::OF, Rflags::OF),
        (RflagsBits::SF, Rflags::SF),
        (RflagsBits::ZF, Rflags::ZF),
        (RflagsBits::AF, Rflags::AF),
        (RflagsBits::CF, Rflags::CF),
        (RflagsBits::PF, Rflags::PF),
        (RflagsBits::DF, Rflags::DF),
    ];
    FLAGS.into_iter().filter(|(bit, _)| bits & bit != 0).fold(0, |all, (_, flag)| all | flag.bits())
}

/// Flags whose value the instruction uses.
#[must_use]
pub fn reads(insn: &Instruction) -> u64 {
    rflags(insn.rflags_read())
}

/// Flags that the instruction leaves undefined, if it executes with the operands that leave most undefined.
fn makes_undefined(insn: &Instruction) -> u64 {
    use Mnemonic as M;
    let flags = rflags(insn.rflags_undefined());
    match insn.mnemonic() {
        // CF is undefined for counts at or beyond the operand size; counts are masked to 31, so only narrow operands
        // have such counts (SDM, SAL/SAR/SHL/SHR).
        M::Shl | M::Sal | M::Shr if size(insn) < 4 && is_count(insn) => flags | Rflags::CF.bits(),
        _ => flags,
    }
}

/// Bytes of the first operand.
fn size(insn: &Instruction) -> usize {
    if insn.op0_kind() == OpKind::Register { insn.op0_register().size() } else { insn.memory_size().size() }
}

/// The last operand is a count other than the constant 1.
fn is_count(insn: &Instruction) -> bool {
    insn.op_kind(insn.op_count().saturating_sub(1)) != OpKind::Immediate8 || insn.immediate8() > 7
}

/// Whether the instruction may leave all flags alone: a shift whose count is zero, a repeated comparison of nothing.
fn may_skip(insn: &Instruction) -> bool {
    use Mnemonic as M;
    let shift = matches!(
        insn.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    );
    shift || insn.has_rep_prefix() || insn.has_repne_prefix()
}

/// The undefined flags behind `insn`, given those before it.
#[must_use]
pub fn after(insn: &Instruction, before: u64) -> u64 {
    let made = makes_undefined(insn);
    if may_skip(insn) {
        return before | made;
    }
    before & !rflags(insn.rflags_modified()) | made
}
