//! SYSCALL, SYSRET, SYSENTER, SYSEXIT and SWAPGS.

use super::{OperandSize, require, require_cpl0};
use crate::control::efer;
use crate::cpuid::Vendor;
use crate::exception::Exception;
use crate::is_canonical;
use crate::rflags::Rflags;
use crate::segment::{Segment, SegmentIndex};
use crate::state::{CpuState, Gpr};

/// RFLAGS bits that SYSRET takes from R11 (SDM vol. 2, SYSRET).
const SYSRET_RFLAGS: u64 = 0x3C_7FD7;

/// SYSCALL of 64-bit code at CPL 3 and SYSRETQ back to it, with what the latter loads worked out once for the MSRs that say it.
#[derive(Clone, Copy, Debug)]
pub struct FastCall {
    efer: u64,
    star: u64,
    lstar: u64,
    fmask: u64,
    /// CS and SS behind SYSRETQ.
    user: [Segment; 2],
}

impl FastCall {
    /// For the MSRs that `cpu` now has; `None` where SYSCALL raises an exception.
    #[must_use]
    pub fn new(cpu: &CpuState) -> Option<Self> {
        let mut there = cpu.clone();
        syscall(&mut there).ok()?;
        let mut back = there.clone();
        // Any address will do: only the segments are looked at.
        back.set_reg(Gpr::Rcx, 0);
        sysret(&mut back, OperandSize::Qword).ok()?;
        let user = [*back.segment(SegmentIndex::Cs), *back.segment(SegmentIndex::Ss)];
        Some(Self { efer: cpu.efer, star: cpu.star, lstar: cpu.lstar, fmask: cpu.fmask, user })
    }

    /// Whether SYSCALL would now lead to [`FastCall::target`], and SYSRETQ from there put back the code and the stack segment.
    #[inline(always)]
    #[must_use]
    pub fn applies(&self, cpu: &CpuState) -> bool {
        let [code, stack] = &self.user;
        let changed =
            difference(code, cpu.segment(SegmentIndex::Cs)) | difference(stack, cpu.segment(SegmentIndex::Ss));
        self.is_current(cpu) && changed | u64::from(cpu.cpl ^ 3) == 0
    }

    /// Whether SYSRETQ to a canonical address would now do what [`FastCall::leave`] does.
    #[inline(always)]
    #[must_use]
    pub fn is_behind(&self, cpu: &CpuState) -> bool {
        self.is_current(cpu) && cpu.cpl == 0 && cpu.is_64bit()
    }

    #[inline(always)]
    fn is_current(&self, cpu: &CpuState) -> bool {
        let changed = self.efer ^ cpu.efer | self.star ^ cpu.star | self.lstar ^ cpu.lstar | self.fmask ^ cpu.fmask;
        changed == 0
    }

    /// Where SYSCALL leads.
    #[must_use]
    pub fn target(&self) -> u64 {
        self.lstar
    }

    /// Loads CS and SS of 64-bit code at CPL 3, which SYSCALL forgets, with what SYSRETQ will load, so that they need not change
    /// any more.
    pub fn forget_segments(&self, cpu: &mut CpuState) {
        if cpu.cpl == 3 && cpu.is_64bit() {
            load_flat(cpu, &self.user, 3);
        }
    }

    /// SYSRETQ, where it [leads back](Self::is_behind), but for RIP; `r11` is what R11 holds.
    #[inline(always)]
    pub fn leave(&self, cpu: &mut CpuState, r11: u64) {
        Self::return_rflags(cpu, r11);
        load_flat(cpu, &self.user, 3);
    }

    /// What SYSRETQ does to RFLAGS, `r11` being what R11 holds.
    #[inline(always)]
    pub fn return_rflags(cpu: &mut CpuState, r11: u64) {
        cpu.rflags = r11 & SYSRET_RFLAGS | Rflags::FIXED.bits();
    }
}

/// 0 if they are the same.
#[inline(always)]
fn difference(a: &Segment, b: &Segment) -> u64 {
    // One load, where they follow one another.
    let rest = |it: &Segment| u64::from(it.limit) | u64::from(it.selector) << 32 | u64::from(it.attributes) << 48;
    a.base ^ b.base | rest(a) ^ rest(b)
}

#[inline(always)]
fn load_flat(cpu: &mut CpuState, [code, stack]: &[Segment; 2], cpl: u8) {
    *cpu.segment_mut(SegmentIndex::Cs) = *code;
    *cpu.segment_mut(SegmentIndex::Ss) = *stack;
    cpu.cpl = cpl;
}

/// RFLAGS behind SYSCALL.
#[inline(always)]
fn inside(rflags: u64, fmask: u64) -> u64 {
    rflags & !(Rflags::RF | Rflags::VM).bits() & !fmask | Rflags::FIXED.bits()
}

/// SYSCALL. In compatibility mode an Intel processor raises #UD and an AMD one enters at CSTAR.
#[inline]
pub fn syscall(cpu: &mut CpuState) -> Result<(), Exception> {
    let long = cpu.is_64bit();
    require(cpu.efer & efer::SCE != 0, Exception::UD)?;
    require(long || cpu.model.vendor == Vendor::Amd, Exception::UD)?;
    cpu.set_reg(Gpr::Rcx, if long { cpu.rip } else { cpu.rip & 0xFFFF_FFFF });
    cpu.set_reg(Gpr::R11, cpu.rflags & !Rflags::RF.bits());
    cpu.rflags = inside(cpu.rflags, cpu.fmask);
    cpu.rip = if long { cpu.lstar } else { cpu.cstar };
    let selector = (cpu.star >> 32) as u16;
    load_flat(cpu, &[Segment::flat_code64(selector & !3, 0), Segment::flat_data(selector.wrapping_add(8), 0)], 0);
    Ok(())
}

/// SYSRET; `Qword` (REX.W) returns to 64-bit mode, else to compatibility mode.
///
/// An Intel processor refuses a non-canonical RCX with #GP(0) at CPL 0; an AMD one returns, and the fetch of the next
/// instruction raises #GP(0) at CPL 3, as any fetch from a non-canonical RIP must.
#[inline]
pub fn sysret(cpu: &mut CpuState, size: OperandSize) -> Result<(), Exception> {
    require(cpu.efer & efer::SCE != 0, Exception::UD)?;
    require(cpu.is_64bit() || cpu.model.vendor == Vendor::Amd, Exception::UD)?;
    require_cpl0(cpu)?;
    let selector = (cpu.star >> 48) as u16;
    let target = cpu.reg(Gpr::Rcx);
    let code = if size == OperandSize::Qword {
        require(is_canonical(target) || cpu.model.vendor == Vendor::Amd, Exception::GP0)?;
        cpu.rip = target;
        Segment::flat_code64(selector.wrapping_add(16) | 3, 3)
    } else {
        cpu.rip = target & 0xFFFF_FFFF;
        Segment::flat_code32(selector | 3, 3)
    };
    cpu.rflags = cpu.reg(Gpr::R11) & SYSRET_RFLAGS | Rflags::FIXED.bits();
    load_flat(cpu, &[code, Segment::flat_data(selector.wrapping_add(8) | 3, 3)], 3);
    Ok(())
}

/// SYSENTER: #UD on AMD processors in long mode (APM vol. 3, SYSENTER).
pub fn sysenter(cpu: &mut CpuState) -> Result<(), Exception> {
    require(cpu.model.vendor == Vendor::Intel, Exception::UD)?;
    let [selector, rsp, rip] = cpu.sysenter;
    let selector = selector as u16 & !3;
    require(selector != 0, Exception::GP0)?;
    cpu.rflags &= !(Rflags::VM | Rflags::IF | Rflags::RF).bits();
    cpu.set_reg(Gpr::Rsp, rsp);
    cpu.rip = rip;
    load_flat(cpu, &[Segment::flat_code64(selector, 0), Segment::flat_data(selector.wrapping_add(8), 0)], 0);
    Ok(())
}

/// SYSEXIT; `Qword` (REX.W) returns to 64-bit mode, else to compatibility mode. #UD on AMD processors in long mode.
pub fn sysexit(cpu: &mut CpuState, size: OperandSize) -> Result<(), Exception> {
    require(cpu.model.vendor == Vendor::Intel, Exception::UD)?;
    let selector = cpu.sysenter[0] as u16 & !3;
    require(selector != 0, Exception::GP0)?;
    require_cpl0(cpu)?;
    let (rsp, rip) = (cpu.reg(Gpr::Rcx), cpu.reg(Gpr::Rdx));
    let (code, stack) = if size == OperandSize::Qword {
        require(is_canonical(rsp) && is_canonical(rip), Exception::GP0)?;
        cpu.set_reg(Gpr::Rsp, rsp);
        cpu.rip = rip;
        (Segment::flat_code64(selector.wrapping_add(32) | 3, 3), selector.wrapping_add(40) | 3)
    } else {
        cpu.set_reg(Gpr::Rsp, rsp & 0xFFFF_FFFF);
        cpu.rip = rip & 0xFFFF_FFFF;
        (Segment::flat_code32(selector.wrapping_add(16) | 3, 3), selector.wrapping_add(24) | 3)
    };
    load_flat(cpu, &[code, Segment::flat_data(stack, 3)], 3);
    Ok(())
}

/// SWAPGS: exchanges the GS base with IA32_KERNEL_GS_BASE.
#[inline]
pub fn swapgs(cpu: &mut CpuState) -> Result<(), Exception> {
    require(cpu.is_64bit(), Exception::UD)?;
    require_cpl0(cpu)?;
    core::mem::swap(&mut cpu.kernel_gs_base, &mut cpu.segments[SegmentIndex::Gs as usize].base);
    Ok(())
}
