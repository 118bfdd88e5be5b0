//! CLI, STI, PUSHF and POPF (SDM vol. 2).
//!
//! CR4.VME and CR4.PVI are not offered by any model, so IOPL alone decides.

use super::OperandSize;
use crate::exception::Exception;
use crate::rflags::Rflags;
use crate::state::CpuState;

fn require_iopl(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.cpl <= cpu.flags().iopl() { Ok(()) } else { Err(Exception::GP0) }
}

/// CLI.
pub fn cli(cpu: &mut CpuState) -> Result<(), Exception> {
    require_iopl(cpu)?;
    cpu.rflags &= !Rflags::IF.bits();
    Ok(())
}

/// STI: interrupts stay held off for one more instruction if they were disabled.
pub fn sti(cpu: &mut CpuState) -> Result<(), Exception> {
    require_iopl(cpu)?;
    if !cpu.flags().contains(Rflags::IF) {
        cpu.interrupt_shadow = 1;
    }
    cpu.rflags |= Rflags::IF.bits();
    Ok(())
}

/// The image that PUSHF pushes: RF and VM read as 0.
#[must_use]
pub const fn pushf(cpu: &CpuState, size: OperandSize) -> u64 {
    cpu.rflags & 0xFC_FFFF & size.mask()
}

/// POPF of `value`: bits that CPL and IOPL protect stay as they are, without a fault.
pub fn popf(cpu: &mut CpuState, value: u64, size: OperandSize) {
    let mut writable = loadable(cpu, size);
    if size != OperandSize::Word {
        // RF, VIF and VIP are not loaded but cleared.
        writable |= Rflags::RF | Rflags::VIF | Rflags::VIP;
    }
    let value = value & !(Rflags::RF | Rflags::VIF | Rflags::VIP).bits();
    merge(cpu, value, writable);
}

/// Flags that a return from an interrupt takes from the stack (SDM vol. 2, IRET).
pub(super) fn iret_flags(cpu: &mut CpuState, value: u64, size: OperandSize) {
    let mut writable = loadable(cpu, size);
    if size != OperandSize::Word {
        writable |= Rflags::RF;
        if cpu.cpl == 0 {
            writable |= Rflags::VIF | Rflags::VIP;
        }
    }
    merge(cpu, value, writable);
}

/// What both POPF and IRET may load at the current CPL and IOPL.
fn loadable(cpu: &CpuState, size: OperandSize) -> Rflags {
    let mut writable = Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT;
    if size != OperandSize::Word {
        writable |= Rflags::AC | Rflags::ID;
    }
    if cpu.cpl <= cpu.flags().iopl() {
        writable |= Rflags::IF;
    }
    if cpu.cpl == 0 {
        writable |= Rflags::IOPL;
    }
    writable
}

fn merge(cpu: &mut CpuState, value: u64, writable: Rflags) {
    cpu.rflags = cpu.rflags & !writable.bits() | value & writable.bits() | Rflags::FIXED.bits();
}
