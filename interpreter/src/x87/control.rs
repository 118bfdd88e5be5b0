//! x87 control instructions (SDM vol. 1, 8.3.11 and 8.1.10).

use iced_x86::Mnemonic;
use lstar_arch::GuestMemory;

use super::ERROR_SUMMARY;
use crate::exec::{Exec, Op};

/// Exception flags and, in the control word, their masks.
pub(super) const EXCEPTIONS: u16 = 0x3F;
/// Status word bit B.
const BUSY: u16 = 1 << 15;

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    Some(match mnemonic {
        Mnemonic::Fninit => {
            initialise(ex);
            Ok(())
        }
        Mnemonic::Fnclex => {
            ex.cpu.x87.status &= 0x7F00;
            Ok(())
        }
        Mnemonic::Fldcw => load_control(ex),
        Mnemonic::Fnstcw => store_word(ex, ex.cpu.x87.control),
        Mnemonic::Fnstsw => store_word(ex, ex.cpu.x87.status),
        Mnemonic::Fincstp => rotate(ex, 1),
        Mnemonic::Fdecstp => rotate(ex, 7),
        Mnemonic::Ffree => {
            ex.set_condition(super::C1, false);
            ex.free_st(ex.insn.op0_register().number());
            Ok(())
        }
        Mnemonic::Ffreep => {
            ex.set_condition(super::C1, false);
            ex.free_st(ex.insn.op0_register().number());
            ex.pop_st();
            Ok(())
        }
        // The last three controlled the 8087 and 80287 and do nothing since.
        Mnemonic::Wait | Mnemonic::Fnop | Mnemonic::Fneni | Mnemonic::Fndisi | Mnemonic::Fnsetpm => Ok(()),
        _ => return None,
    })
}

/// Whether the instruction leaves the last instruction and data pointers alone.
pub(super) fn is_control(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Fninit
            | Mnemonic::Fnclex
            | Mnemonic::Fldcw
            | Mnemonic::Fnstcw
            | Mnemonic::Fnstsw
            | Mnemonic::Fnstenv
            | Mnemonic::Fldenv
            | Mnemonic::Fnsave
            | Mnemonic::Frstor
            | Mnemonic::Fneni
            | Mnemonic::Fndisi
            | Mnemonic::Fnsetpm
            | Mnemonic::Wait
    )
}

/// FNINIT: the registers' contents stay, all of them become empty.
pub(super) fn initialise<M: GuestMemory>(ex: &mut Exec<'_, M>) {
    let registers = ex.cpu.x87.registers;
    ex.cpu.x87 = lstar_arch::state::X87State { registers, ..Default::default() };
}

/// Sets the control word; bit 6 always reads as one, other reserved bits as zero.
pub(crate) fn set_control<M: GuestMemory>(ex: &mut Exec<'_, M>, control: u16) {
    ex.cpu.x87.control = control & 0x1F3F | 0x40;
    summarise(ex);
}

/// Recomputes ES and B after a change to flags or masks.
pub(super) fn summarise<M: GuestMemory>(ex: &mut Exec<'_, M>) {
    let x87 = &mut ex.cpu.x87;
    x87.status &= !(ERROR_SUMMARY | BUSY);
    if x87.status & !x87.control & EXCEPTIONS != 0 {
        x87.status |= ERROR_SUMMARY | BUSY;
    }
}

fn load_control<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let linear = ex.linear_address();
    let control = u16::from_le_bytes(ex.load(linear)?);
    set_control(ex, control);
    Ok(())
}

fn store_word<M: GuestMemory>(ex: &mut Exec<'_, M>, word: u16) -> Op {
    if ex.insn.op0_kind() == iced_x86::OpKind::Register {
        ex.set_gpr(ex.insn.op0_register(), word.into());
        return Ok(());
    }
    let linear = ex.linear_address();
    ex.store(linear, word.to_le_bytes())
}

/// FINCSTP and FDECSTP: TOP moves, the tags do not.
fn rotate<M: GuestMemory>(ex: &mut Exec<'_, M>, by: u16) -> Op {
    ex.set_condition(super::C1, false);
    ex.set_top(ex.top() + by);
    Ok(())
}
