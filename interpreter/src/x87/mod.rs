//! x87 instructions (SDM vol. 1, chapter 8): control here, data and arithmetic in their own files.

mod control;

use iced_x86::{CpuidFeature, EncodingKind, Mnemonic};
use lstar_arch::control::cr0;
use lstar_arch::{Exception, GuestMemory};

use crate::exec::{Exec, Op};

/// Status word bit ES: an unmasked exception is pending. B mirrors it in bit 15.
pub(crate) const ERROR_SUMMARY: u16 = 1 << 7;

/// Executes an x87 instruction; `None` when it is none of those implemented here.
pub(crate) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Option<Op> {
    let x87 = |feature: &CpuidFeature| {
        matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 | CpuidFeature::CMOV)
    };
    let mnemonic = ex.insn.mnemonic();
    if ex.insn.encoding() != EncodingKind::Legacy || !ex.insn.cpuid_features().iter().any(x87) {
        return None;
    }
    if let Err(exception) = check_available(ex, mnemonic) {
        return Some(Err(exception));
    }
    control::execute(ex, mnemonic)
}

/// #NM by CR0.EM and CR0.TS (for WAIT by TS with MP), then #MF for a pending exception unless the instruction is one
/// of the non-waiting ones.
fn check_available<M: GuestMemory>(ex: &Exec<'_, M>, mnemonic: Mnemonic) -> Op {
    let unavailable = if mnemonic == Mnemonic::Wait {
        ex.cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS
    } else {
        ex.cpu.cr0 & (cr0::EM | cr0::TS) != 0
    };
    if unavailable {
        return Err(Exception::NM);
    }
    let waits = !matches!(
        mnemonic,
        Mnemonic::Fninit
            | Mnemonic::Fnclex
            | Mnemonic::Fnstcw
            | Mnemonic::Fnstsw
            | Mnemonic::Fnstenv
            | Mnemonic::Fnsave
            | Mnemonic::Fnop
    );
    if waits && ex.cpu.x87.status & ERROR_SUMMARY != 0 { Err(Exception::MF) } else { Ok(()) }
}
