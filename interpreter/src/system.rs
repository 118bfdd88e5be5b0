//! System instructions (SDM vol. 1, 5.20): operands are decoded here, the operations live in `lstar_arch`.

use iced_x86::Register;
use lstar_arch::{Exception, GuestMemory, SegmentIndex};

use crate::exec::{Exec, Op};

/// The segment register's number.
fn segment_index(register: Register) -> SegmentIndex {
    match register {
        Register::ES => SegmentIndex::Es,
        Register::CS => SegmentIndex::Cs,
        Register::SS => SegmentIndex::Ss,
        Register::FS => SegmentIndex::Fs,
        Register::GS => SegmentIndex::Gs,
        _ => SegmentIndex::Ds,
    }
}

/// Visible part of a segment register.
pub(crate) fn selector<M: GuestMemory>(ex: &Exec<'_, M>, register: Register) -> u16 {
    ex.cpu.segment(segment_index(register)).selector
}

pub(crate) fn mov_special<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.insn.op1_register().is_segment_register() {
        let value = selector(ex, ex.insn.op1_register());
        return ex.write(0, value.into());
    }
    Err(Exception::UD)
}
pub(crate) fn pop_segment<M: GuestMemory>(_: &mut Exec<'_, M>) -> Op {
    Err(Exception::UD)
}
pub(crate) fn far_transfer<M: GuestMemory>(_: &mut Exec<'_, M>) -> Op {
    Err(Exception::UD)
}

/// HLT: #GP(0) above CPL 0.
pub(crate) fn hlt<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.cpu.cpl == 0 { Ok(()) } else { Err(Exception::GP0) }
}

/// VMCALL: the service gate at CPL 0; without virtualization it does not exist otherwise.
pub(crate) fn vmcall<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    if ex.cpu.cpl == 0 { Ok(()) } else { Err(Exception::UD) }
}
