//! Model-specific registers (SDM vol. 4; APM vol. 2, appendix A).
//!
//! [`rdmsr`] and [`wrmsr`] are the registers themselves, free of CPL checks (debuggers use them too); the instructions
//! are in [`crate::system`].

use crate::control::{cr0, debugctl, efer};
use crate::cpuid::{Features, PHYSICAL_ADDRESS_BITS, Vendor};
use crate::exception::Exception;
use crate::is_canonical;
use crate::segment::SegmentIndex;
use crate::state::CpuState;

#[expect(missing_docs, reason = "the architectural names say it all")]
mod index {
    pub const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
    pub const IA32_APIC_BASE: u32 = 0x1B;
    pub const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
    pub const IA32_BIOS_SIGN_ID: u32 = 0x8B;
    pub const IA32_SYSENTER_CS: u32 = 0x174;
    pub const IA32_SYSENTER_ESP: u32 = 0x175;
    pub const IA32_SYSENTER_EIP: u32 = 0x176;
    pub const IA32_MCG_STATUS: u32 = 0x17A;
    pub const IA32_MISC_ENABLE: u32 = 0x1A0;
    pub const IA32_DEBUGCTL: u32 = 0x1D9;
    pub const IA32_PAT: u32 = 0x277;
    pub const IA32_XSS: u32 = 0xDA0;
    pub const IA32_EFER: u32 = 0xC000_0080;
    pub const IA32_STAR: u32 = 0xC000_0081;
    pub const IA32_LSTAR: u32 = 0xC000_0082;
    pub const IA32_CSTAR: u32 = 0xC000_0083;
    pub const IA32_FMASK: u32 = 0xC000_0084;
    pub const IA32_FS_BASE: u32 = 0xC000_0100;
    pub const IA32_GS_BASE: u32 = 0xC000_0101;
    pub const IA32_KERNEL_GS_BASE: u32 = 0xC000_0102;
    pub const IA32_TSC_AUX: u32 = 0xC000_0103;
}
pub use index::*;

/// Registers that exist but hold nothing here: they read as 0. The third column says whether 0 may be written.
const ZERO: &[(core::ops::RangeInclusive<u32>, Option<Vendor>, bool)] = &[
    (0x17..=0x17, Some(Vendor::Intel), false),            // IA32_PLATFORM_ID
    (IA32_BIOS_SIGN_ID..=IA32_BIOS_SIGN_ID, None, true),  // microcode revision
    (0xFE..=0xFE, None, false),                           // IA32_MTRRCAP
    (0x179..=0x179, None, false),                         // IA32_MCG_CAP: no banks
    (IA32_MCG_STATUS..=IA32_MCG_STATUS, None, true),      // IA32_MCG_STATUS
    (0x200..=0x20F, None, true),                          // IA32_MTRR_PHYSBASE/MASK 0 to 7
    (0x250..=0x250, None, true),                          // IA32_MTRR_FIX64K
    (0x258..=0x259, None, true),                          // IA32_MTRR_FIX16K
    (0x268..=0x26F, None, true),                          // IA32_MTRR_FIX4K
    (0x2FF..=0x2FF, None, true),                          // IA32_MTRR_DEF_TYPE
    (0xC001_0010..=0xC001_0010, Some(Vendor::Amd), true), // SYSCFG
    (0xC001_0015..=0xC001_0015, Some(Vendor::Amd), true), // HWCR
    (0xC001_001F..=0xC001_001F, Some(Vendor::Amd), true), // NB_CFG
];

/// Writable bits of IA32_MISC_ENABLE: fast strings, thermal control, SpeedStep, MONITOR, xTPR.
const MISC_ENABLE_WRITABLE: u64 = 1 << 0 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 23;
/// BSP flag, global enable and base.
const APIC_BASE_WRITABLE: u64 = ((1 << PHYSICAL_ADDRESS_BITS) - 1) & !0xFFF | 1 << 8 | 1 << 11;

fn zero_register(cpu: &CpuState, index: u32) -> Option<bool> {
    ZERO.iter()
        .find(|(range, vendor, _)| range.contains(&index) && vendor.is_none_or(|vendor| vendor == cpu.model.vendor))
        .map(|(_, _, writable)| *writable)
}

fn has_tsc_aux(cpu: &CpuState) -> bool {
    cpu.model.features.intersects(Features::RDTSCP.union(Features::RDPID))
}

/// Value of an MSR; #GP(0) if the model has no such register.
pub fn rdmsr(cpu: &CpuState, index: u32) -> Result<u64, Exception> {
    Ok(match index {
        IA32_TIME_STAMP_COUNTER => cpu.tsc,
        IA32_APIC_BASE => cpu.apic_base,
        IA32_SYSENTER_CS => cpu.sysenter[0],
        IA32_SYSENTER_ESP => cpu.sysenter[1],
        IA32_SYSENTER_EIP => cpu.sysenter[2],
        IA32_MISC_ENABLE if cpu.model.vendor == Vendor::Intel => cpu.misc_enable,
        IA32_DEBUGCTL => cpu.debugctl,
        IA32_PAT => cpu.pat,
        IA32_EFER => cpu.efer,
        IA32_STAR => cpu.star,
        IA32_LSTAR => cpu.lstar,
        IA32_CSTAR => cpu.cstar,
        IA32_FMASK => cpu.fmask,
        IA32_FS_BASE => cpu.segment(SegmentIndex::Fs).base,
        IA32_GS_BASE => cpu.segment(SegmentIndex::Gs).base,
        IA32_KERNEL_GS_BASE => cpu.kernel_gs_base,
        IA32_TSC_AUX if has_tsc_aux(cpu) => u64::from(cpu.tsc_aux),
        // There is no supervisor state component to enable.
        IA32_XSS if cpu.model.features.contains(Features::XSAVES) => 0,
        _ if zero_register(cpu, index).is_some() => 0,
        _ => return Err(Exception::GP0),
    })
}

/// Writes an MSR; #GP(0) for an unknown register, a reserved bit or a non-canonical address.
pub fn wrmsr(cpu: &mut CpuState, index: u32, value: u64) -> Result<(), Exception> {
    let canonical = if is_canonical(value) { Ok(value) } else { Err(Exception::GP0) };
    let within = |mask: u64| if value & !mask == 0 { Ok(value) } else { Err(Exception::GP0) };
    // Upper halves that Intel reserves are ignored by AMD.
    let low_half = match cpu.model.vendor {
        Vendor::Intel => within(0xFFFF_FFFF),
        Vendor::Amd => Ok(value & 0xFFFF_FFFF),
    };
    match index {
        IA32_TIME_STAMP_COUNTER => cpu.tsc = value,
        IA32_APIC_BASE => cpu.apic_base = within(APIC_BASE_WRITABLE)?,
        IA32_BIOS_UPDT_TRIG => {} // The update is taken and changes nothing.
        IA32_SYSENTER_CS => cpu.sysenter[0] = value & 0xFFFF_FFFF,
        IA32_SYSENTER_ESP => cpu.sysenter[1] = canonical?,
        IA32_SYSENTER_EIP => cpu.sysenter[2] = canonical?,
        IA32_MISC_ENABLE if cpu.model.vendor == Vendor::Intel => cpu.misc_enable = within(MISC_ENABLE_WRITABLE)?,
        // No last-branch records, no performance counters: all other bits are reserved.
        IA32_DEBUGCTL => cpu.debugctl = within(debugctl::BTF)?,
        IA32_PAT => cpu.pat = valid_pat(value)?,
        IA32_EFER => cpu.efer = next_efer(cpu, value)?,
        IA32_STAR => cpu.star = value,
        IA32_LSTAR => cpu.lstar = canonical?,
        IA32_CSTAR => cpu.cstar = canonical?,
        IA32_FMASK => cpu.fmask = low_half?,
        IA32_FS_BASE => cpu.segment_mut(SegmentIndex::Fs).base = canonical?,
        IA32_GS_BASE => cpu.segment_mut(SegmentIndex::Gs).base = canonical?,
        IA32_KERNEL_GS_BASE => cpu.kernel_gs_base = canonical?,
        IA32_TSC_AUX if has_tsc_aux(cpu) => cpu.tsc_aux = low_half? as u32,
        IA32_XSS if value == 0 && cpu.model.features.contains(Features::XSAVES) => {}
        _ if value == 0 && zero_register(cpu, index) == Some(true) => {}
        _ => return Err(Exception::GP0),
    }
    Ok(())
}

/// Memory types 2, 3 and those above 7 are reserved (SDM vol. 3, 12.12.2).
fn valid_pat(value: u64) -> Result<u64, Exception> {
    let valid = value.to_le_bytes().into_iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
    if valid { Ok(value) } else { Err(Exception::GP0) }
}

/// LMA is read-only, LME cannot change while paging is on, everything not offered is reserved.
fn next_efer(cpu: &CpuState, value: u64) -> Result<u64, Exception> {
    const WRITABLE: u64 = efer::SCE | efer::LME | efer::NXE;
    let reserved = value & !(WRITABLE | efer::LMA) != 0;
    let mode_change = (value ^ cpu.efer) & efer::LME != 0 && cpu.cr0 & cr0::PG != 0;
    if reserved || mode_change {
        return Err(Exception::GP0);
    }
    Ok(value & WRITABLE | cpu.efer & efer::LMA)
}
