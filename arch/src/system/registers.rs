//! Control, debug and extended control registers, counters, MSRs and the other register-only system instructions.

use super::{OperandSize, require, require_cpl0, require_no_umip};
use crate::control::{cr0, cr4, dr};
use crate::cpuid::{Features, PHYSICAL_ADDRESS_BITS};
use crate::exception::Exception;
use crate::is_canonical;
use crate::msr;
use crate::segment::SegmentIndex;
use crate::state::{CpuState, Gpr};

/// Writes EDX:EAX, clearing the upper halves of RDX and RAX.
fn set_edx_eax(cpu: &mut CpuState, value: u64) {
    cpu.set_reg(Gpr::Rax, value & 0xFFFF_FFFF);
    cpu.set_reg(Gpr::Rdx, value >> 32);
}

fn edx_eax(cpu: &CpuState) -> u64 {
    cpu.reg(Gpr::Rdx) << 32 | cpu.reg(Gpr::Rax) & 0xFFFF_FFFF
}

fn ecx(cpu: &CpuState) -> u32 {
    cpu.reg(Gpr::Rcx) as u32
}

/// MOV from a control register, the full 64 bits; #UD if there is no such register.
pub fn mov_from_cr(cpu: &CpuState, index: u8) -> Result<u64, Exception> {
    let value = match index {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.cr8,
        _ => return Err(Exception::UD),
    };
    require_cpl0(cpu)?;
    Ok(value)
}

/// MOV to a control register (SDM vol. 2, MOV to/from control registers). Leaving long mode is refused with #GP(0), as
/// 64-bit mode itself does.
pub fn mov_to_cr(cpu: &mut CpuState, index: u8, value: u64) -> Result<(), Exception> {
    require(matches!(index, 0 | 2 | 3 | 4 | 8), Exception::UD)?;
    require_cpl0(cpu)?;
    match index {
        0 => {
            const KNOWN: u64 = cr0::PE
                | cr0::MP
                | cr0::EM
                | cr0::TS
                | cr0::ET
                | cr0::NE
                | cr0::WP
                | cr0::AM
                | cr0::NW
                | cr0::CD
                | cr0::PG;
            let long_mode = value & cr0::PE != 0 && value & cr0::PG != 0;
            let caching = value & cr0::NW == 0 || value & cr0::CD != 0;
            require(value >> 32 == 0 && long_mode && caching, Exception::GP0)?;
            cpu.cr0 = value & KNOWN | cr0::ET;
        }
        2 => cpu.cr2 = value,
        3 => {
            require(value >> PHYSICAL_ADDRESS_BITS == 0, Exception::GP0)?;
            cpu.cr3 = value;
        }
        4 => {
            require(value & !cpu.model.supported_cr4() == 0 && value & cr4::PAE != 0, Exception::GP0)?;
            cpu.cr4 = value;
        }
        _ => {
            require(value <= 15, Exception::GP0)?;
            cpu.cr8 = value;
        }
    }
    Ok(())
}

/// Checks common to both directions; yields the register after the aliasing of DR4 and DR5.
fn debug_register(cpu: &CpuState, index: u8) -> Result<u8, Exception> {
    require(index < 8, Exception::UD)?;
    require_cpl0(cpu)?;
    let aliased = matches!(index, 4 | 5);
    require(!aliased || cpu.cr4 & cr4::DE == 0, Exception::UD)?;
    require(cpu.dr[7] & dr::DR7_GD == 0, Exception::db(dr::DR6_BD))?;
    Ok(if aliased { index + 2 } else { index })
}

/// MOV from a debug register.
pub fn mov_from_dr(cpu: &CpuState, index: u8) -> Result<u64, Exception> {
    let index = debug_register(cpu, index)?;
    Ok(cpu.dr[usize::from(index)])
}

/// MOV to a debug register: the upper halves of DR6 and DR7 are reserved, other reserved bits keep their fixed value.
pub fn mov_to_dr(cpu: &mut CpuState, index: u8, value: u64) -> Result<(), Exception> {
    const DR6_WRITABLE: u64 = 0xE00F;
    const DR7_WRITABLE: u64 = 0xFFFF_23FF;
    let index = debug_register(cpu, index)?;
    require(index < 6 || value >> 32 == 0, Exception::GP0)?;
    cpu.dr[usize::from(index)] = match index {
        6 => value & DR6_WRITABLE | dr::DR6_FIXED,
        7 => value & DR7_WRITABLE | dr::DR7_FIXED,
        _ => value,
    };
    Ok(())
}

/// CLTS.
pub fn clts(cpu: &mut CpuState) -> Result<(), Exception> {
    require_cpl0(cpu)?;
    cpu.cr0 &= !cr0::TS;
    Ok(())
}

/// LMSW: loads MP, EM and TS; can set PE but not clear it.
pub fn lmsw(cpu: &mut CpuState, value: u16) -> Result<(), Exception> {
    const LOADED: u64 = cr0::MP | cr0::EM | cr0::TS;
    require_cpl0(cpu)?;
    cpu.cr0 = cpu.cr0 & !LOADED | u64::from(value) & (LOADED | cr0::PE);
    Ok(())
}

/// SMSW: the value of CR0, to be truncated to the operand (16 bits for a memory operand).
pub fn smsw(cpu: &CpuState) -> Result<u64, Exception> {
    require_no_umip(cpu)?;
    Ok(cpu.cr0)
}

/// INVLPG: only the privilege check; translations are the engine's.
pub fn invlpg(cpu: &CpuState) -> Result<(), Exception> {
    require_cpl0(cpu)
}

/// HLT: only the privilege check; stopping is the engine's.
pub fn hlt(cpu: &CpuState) -> Result<(), Exception> {
    require_cpl0(cpu)
}

/// XGETBV into EDX:EAX: XCR0, or with ECX = 1 which of its components are in use.
pub fn xgetbv(cpu: &mut CpuState) -> Result<(), Exception> {
    require(cpu.cr4 & cr4::OSXSAVE != 0, Exception::UD)?;
    let value = match ecx(cpu) {
        0 => cpu.xcr0,
        1 if cpu.model.features.contains(Features::XGETBV1) => cpu.xcr0 & cpu.xinuse(),
        _ => return Err(Exception::GP0),
    };
    set_edx_eax(cpu, value);
    Ok(())
}

/// XSETBV from EDX:EAX.
pub fn xsetbv(cpu: &mut CpuState) -> Result<(), Exception> {
    require(cpu.cr4 & cr4::OSXSAVE != 0, Exception::UD)?;
    require_cpl0(cpu)?;
    let value = edx_eax(cpu);
    // x87 always; AVX only with SSE.
    let consistent = value & 1 != 0 && (value & 4 == 0 || value & 2 != 0);
    let supported = value & !cpu.model.supported_xcr0() == 0;
    require(ecx(cpu) == 0 && consistent && supported, Exception::GP0)?;
    cpu.xcr0 = value;
    Ok(())
}

/// Ticks of the time-stamp counter for each instruction retired.
pub const TSC_PER_INSTRUCTION: u64 = 1;

fn require_tsc(cpu: &CpuState) -> Result<(), Exception> {
    require(cpu.cpl == 0 || cpu.cr4 & cr4::TSD == 0, Exception::GP0)
}

/// RDTSC. The engine has brought `cpu.tsc` up to date.
pub fn rdtsc(cpu: &mut CpuState) -> Result<(), Exception> {
    require_tsc(cpu)?;
    set_edx_eax(cpu, cpu.tsc);
    Ok(())
}

/// RDTSCP: RDTSC, and IA32_TSC_AUX into ECX.
pub fn rdtscp(cpu: &mut CpuState) -> Result<(), Exception> {
    require(cpu.model.features.contains(Features::RDTSCP), Exception::UD)?;
    rdtsc(cpu)?;
    cpu.set_reg(Gpr::Rcx, u64::from(cpu.tsc_aux));
    Ok(())
}

/// RDPMC. No model has performance counters, so every counter number is invalid: always #GP(0).
pub fn rdpmc(_cpu: &mut CpuState) -> Result<(), Exception> {
    Err(Exception::GP0)
}

/// RDPID: the value of IA32_TSC_AUX.
pub fn rdpid(cpu: &CpuState) -> Result<u64, Exception> {
    require(cpu.model.features.contains(Features::RDPID), Exception::UD)?;
    Ok(u64::from(cpu.tsc_aux))
}

/// RDMSR: the register that ECX names into EDX:EAX.
pub fn rdmsr(cpu: &mut CpuState) -> Result<(), Exception> {
    require_cpl0(cpu)?;
    let value = msr::rdmsr(cpu, ecx(cpu))?;
    set_edx_eax(cpu, value);
    Ok(())
}

/// WRMSR: EDX:EAX into the register that ECX names.
pub fn wrmsr(cpu: &mut CpuState) -> Result<(), Exception> {
    require_cpl0(cpu)?;
    msr::wrmsr(cpu, ecx(cpu), edx_eax(cpu))
}

fn require_fsgsbase(cpu: &CpuState) -> Result<(), Exception> {
    require(cpu.is_64bit() && cpu.cr4 & cr4::FSGSBASE != 0, Exception::UD)
}

/// RDFSBASE and RDGSBASE: the base of `segment` (FS or GS), truncated to the operand.
pub fn rdbase(cpu: &CpuState, segment: SegmentIndex, size: OperandSize) -> Result<u64, Exception> {
    require_fsgsbase(cpu)?;
    Ok(cpu.segment(segment).base & size.mask())
}

/// WRFSBASE and WRGSBASE: sets the base of `segment` (FS or GS).
pub fn wrbase(cpu: &mut CpuState, segment: SegmentIndex, value: u64, size: OperandSize) -> Result<(), Exception> {
    require_fsgsbase(cpu)?;
    let value = value & size.mask();
    require(is_canonical(value), Exception::GP0)?;
    cpu.segment_mut(segment).base = value;
    Ok(())
}

/// CPUID: EAX and ECX select, EAX to EDX receive.
pub fn cpuid(cpu: &mut CpuState) {
    let registers = cpu.cpuid(cpu.reg(Gpr::Rax) as u32, ecx(cpu));
    for (register, value) in [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].into_iter().zip(registers) {
        cpu.set_reg(register, u64::from(value));
    }
}
