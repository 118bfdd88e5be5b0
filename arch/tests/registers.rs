//! Control and debug registers, flags, counters and MSRs.

mod machine;

use lstar_arch::control::{cr0, cr4, dr};
use lstar_arch::cpuid::Features;
use lstar_arch::system::{self, OperandSize, cli, mov_from_cr, mov_from_dr, mov_to_cr, mov_to_dr, popf, pushf, sti};
use lstar_arch::{CpuModel, CpuState, Exception, SegmentIndex, msr};
use machine::*;

const GP: Result<(), Exception> = Err(Exception::GP0);
const IF: u64 = 1 << 9;
const IOPL3: u64 = 3 << 12;

fn kernel() -> CpuState {
    machine(CpuModel::INTEL).0
}

fn user() -> CpuState {
    user_machine(CpuModel::INTEL).0
}

#[test]
fn interrupt_flag_obeys_iopl() {
    let mut cpu = user();
    assert_eq!((cli(&mut cpu), sti(&mut cpu)), (GP, GP));
    cpu.rflags = IOPL3 | 2;
    sti(&mut cpu).unwrap();
    assert_eq!((cpu.rflags & IF, cpu.interrupt_shadow), (IF, 1));
    cpu.interrupt_shadow = 0;
    sti(&mut cpu).unwrap();
    assert_eq!(cpu.interrupt_shadow, 0, "no shadow when interrupts were enabled");
    cli(&mut cpu).unwrap();
    assert_eq!(cpu.rflags & IF, 0);
}

/// CPL 3, old flags, popped value, size, new flags.
#[test]
fn popf_masks() {
    use OperandSize::{Qword, Word};
    const ALL: u64 = u64::MAX;
    let cases = [
        (false, 0x2, ALL, Qword, 0x24_7FD7),
        (true, 0x2, ALL, Qword, 0x24_4DD7),
        (true, IOPL3 | 2, ALL, Qword, 0x24_7FD7),
        (true, IF | 2, 0, Qword, IF | 2),
        (true, IF | IOPL3 | 2, 0, Qword, IOPL3 | 2),
        (false, 0x1_7FD7, 0, Qword, 2),
        (false, 0x24_0002, 0, Word, 0x24_0002),
        (false, 0x2, ALL, Word, 0x7FD7),
    ];
    for (is_user, old, value, size, new) in cases {
        let mut cpu = if is_user { user() } else { kernel() };
        cpu.rflags = old;
        popf(&mut cpu, value, size);
        assert_eq!(cpu.rflags, new, "user {is_user}, {old:#x} <- {value:#x} {size:?}");
    }
    let mut cpu = kernel();
    cpu.rflags = 0x25_0246;
    assert_eq!((pushf(&cpu, Qword), pushf(&cpu, Word)), (0x24_0246, 0x0246), "RF reads as 0");
}

#[test]
fn control_registers() {
    let good = kernel().cr0;
    let good4 = kernel().cr4;
    // Register, value, what is read back (None: #GP).
    let cases = [
        (0, good | cr0::TS, Some(good | cr0::TS)),
        (0, good & !cr0::ET | 1 << 10, Some(good)),
        (0, good | 1 << 32, None),
        (0, good & !cr0::PG, None),
        (0, good & !cr0::PE, None),
        (0, good | cr0::NW, None),
        (0, good | cr0::NW | cr0::CD, Some(good | cr0::NW | cr0::CD)),
        (2, u64::MAX, Some(u64::MAX)),
        (3, 0x1A_B000, Some(0x1A_B000)),
        (3, 1 << 46, None),
        (3, 1 << 63, None),
        (4, good4 | cr4::TSD, Some(good4 | cr4::TSD)),
        (4, good4 & !cr4::PAE, None),
        (4, good4 | cr4::SMEP, None),
        (4, good4 & !cr4::FSGSBASE, Some(good4 & !cr4::FSGSBASE)),
        (4, good4 | 1 << 40, None),
        (8, 15, Some(15)),
        (8, 16, None),
    ];
    for (index, value, expected) in cases {
        let mut cpu = kernel();
        let result = mov_to_cr(&mut cpu, index, value).map(|()| mov_from_cr(&cpu, index).unwrap());
        assert_eq!(result, expected.ok_or(Exception::GP0), "CR{index} <- {value:#x}");
    }
    let mut plain = CpuState::new(CpuModel::BASELINE);
    assert_eq!(plain.cr4 & (cr4::FSGSBASE | cr4::OSXSAVE), 0);
    assert_eq!(mov_to_cr(&mut plain, 4, good4 & !cr4::OSXSAVE), GP, "FSGSBASE");
    for index in [1, 5, 6, 7, 9, 15] {
        assert_eq!(mov_to_cr(&mut user(), index, 0), Err(Exception::UD));
        assert_eq!(mov_from_cr(&kernel(), index), Err(Exception::UD));
    }
    assert_eq!((mov_to_cr(&mut user(), 3, 0), mov_from_cr(&user(), 3)), (GP, Err(Exception::GP0)));
}

#[test]
fn machine_status_word() {
    let mut cpu = kernel();
    let old = cpu.cr0;
    system::lmsw(&mut cpu, 0xFFF8).unwrap();
    assert_eq!(cpu.cr0, old & !cr0::MP | cr0::TS, "PE cannot be cleared, bits above 3 are not loaded");
    system::clts(&mut cpu).unwrap();
    assert_eq!(cpu.cr0 & cr0::TS, 0);
    let mut cpu = user();
    assert_eq!((system::lmsw(&mut cpu, 1), system::clts(&mut cpu)), (GP, GP));
    assert_eq!((system::invlpg(&cpu), system::hlt(&cpu)), (GP, GP));
    assert_eq!(system::smsw(&cpu), Ok(old));
    cpu.cr4 |= cr4::UMIP;
    assert_eq!(system::smsw(&cpu), Err(Exception::GP0));
    assert_eq!((system::sldt(&cpu), system::str(&cpu)), (Err(Exception::GP0), Err(Exception::GP0)));
}

#[test]
fn debug_registers() {
    let mut cpu = kernel();
    let cases =
        [(0, u64::MAX, u64::MAX), (6, 0, 0xFFFF_0FF0), (6, 0xFFFF_FFFF, 0xFFFF_EFFF), (7, 0xFFFF_DFFF, 0xFFFF_07FF)];
    for (index, value, read) in cases {
        mov_to_dr(&mut cpu, index, value).unwrap();
        assert_eq!(mov_from_dr(&cpu, index), Ok(read), "DR{index} <- {value:#x}");
    }
    assert_eq!((mov_to_dr(&mut cpu, 6, 1 << 32), mov_to_dr(&mut cpu, 7, 1 << 32)), (GP, GP));
    assert_eq!(mov_from_dr(&cpu, 4), Err(Exception::UD), "CR4.DE");
    cpu.cr4 &= !cr4::DE;
    mov_to_dr(&mut cpu, 5, dr::DR7_GD).unwrap();
    assert_eq!(cpu.dr[7], dr::DR7_GD | 0x400);
    assert_eq!(mov_from_dr(&cpu, 0), Err(Exception::db(dr::DR6_BD)));
    assert_eq!(mov_to_dr(&mut cpu, 7, 0), Err(Exception::db(dr::DR6_BD)));
    assert_eq!(mov_from_dr(&user(), 0), Err(Exception::GP0));
}

#[test]
fn extended_control_register() {
    let with_avx = CpuModel::V3;
    let plain = CpuModel::V2;
    let without = CpuModel { features: CpuModel::INTEL.features - Features::XSAVE, ..CpuModel::INTEL };
    assert_eq!((CpuState::new(plain).xcr0, CpuState::new(with_avx).xcr0), (3, 7));
    assert_eq!(CpuState::new(without).cr4 & cr4::OSXSAVE, 0);
    // Model, ECX, value, accepted.
    let cases = [
        (plain, 0, 1, true),
        (plain, 0, 3, true),
        (plain, 0, 7, false),
        (plain, 0, 2, false),
        (plain, 1, 3, false),
        (with_avx, 0, 7, true),
        (with_avx, 0, 5, false),
    ];
    for (model, ecx, value, accepted) in cases {
        let mut cpu = CpuState::new(model);
        (cpu.gpr[0], cpu.gpr[1], cpu.gpr[2]) = (value | 0xFF << 32, ecx, 0);
        assert_eq!(system::xsetbv(&mut cpu), if accepted { Ok(()) } else { GP }, "{value}");
        if accepted {
            cpu.gpr[2] = u64::MAX;
            system::xgetbv(&mut cpu).unwrap();
            assert_eq!((cpu.gpr[0], cpu.gpr[2]), (value, 0));
        }
    }
    let mut cpu = CpuState::new(without);
    assert_eq!((system::xgetbv(&mut cpu), system::xsetbv(&mut cpu)), (Err(Exception::UD), Err(Exception::UD)));
    assert_eq!(system::xsetbv(&mut user()), GP);
}

#[test]
fn time_stamp_counter() {
    let mut cpu = user();
    cpu.tsc = 0x1122_3344_5566_7788;
    cpu.tsc_aux = 9;
    system::rdtscp(&mut cpu).unwrap();
    assert_eq!((cpu.gpr[0], cpu.gpr[2], cpu.gpr[1]), (0x5566_7788, 0x1122_3344, 9));
    cpu.cr4 |= cr4::TSD;
    assert_eq!((system::rdtsc(&mut cpu), system::rdtscp(&mut cpu), system::rdpmc(&mut cpu)), (GP, GP, GP));
    cpu.model.features -= Features::RDTSCP;
    assert_eq!(system::rdtscp(&mut cpu), Err(Exception::UD));
    assert_eq!(system::rdpid(&cpu), Ok(9));
    cpu.model.features -= Features::RDPID;
    assert_eq!(system::rdpid(&cpu), Err(Exception::UD));
    cpu.cpl = 0;
    system::rdtsc(&mut cpu).unwrap();
}

#[test]
fn segment_bases() {
    let mut cpu = user();
    cpu.cr4 &= !cr4::FSGSBASE;
    let (fs, qword, dword) = (SegmentIndex::Fs, OperandSize::Qword, OperandSize::Dword);
    assert_eq!(system::rdbase(&cpu, fs, qword), Err(Exception::UD));
    cpu.cr4 |= cr4::FSGSBASE;
    system::wrbase(&mut cpu, fs, 0x7FFF_1234_5678, qword).unwrap();
    assert_eq!(system::rdbase(&cpu, fs, dword), Ok(0x1234_5678));
    assert_eq!(system::wrbase(&mut cpu, fs, 1 << 47, qword), GP);
    system::wrbase(&mut cpu, fs, 1 << 47 | 5, dword).unwrap();
    assert_eq!(system::rdbase(&cpu, fs, qword), Ok(5));
}

#[test]
fn msr_values() {
    const NON_CANONICAL: u64 = 1 << 47;
    // Register, value, accepted by Intel, accepted by AMD.
    let cases = [
        (msr::IA32_STAR, 0x0023_0010_0000_0000, true, true),
        (msr::IA32_LSTAR, 0xFFFF_F800_03E7_BEC0, true, true),
        (msr::IA32_LSTAR, NON_CANONICAL, false, false),
        (msr::IA32_CSTAR, NON_CANONICAL, false, false),
        (msr::IA32_FS_BASE, NON_CANONICAL, false, false),
        (msr::IA32_GS_BASE, NON_CANONICAL, false, false),
        (msr::IA32_KERNEL_GS_BASE, NON_CANONICAL, false, false),
        (msr::IA32_KERNEL_GS_BASE, 0xFFFF_F800_03C4_5D00, true, true),
        (msr::IA32_GS_BASE, 0x7FF_FFFD_E000, true, true),
        (msr::IA32_FMASK, 0x4700, true, true),
        (msr::IA32_EFER, 0xD00, true, true),
        (msr::IA32_EFER, 0xD01 | 1 << 12, false, false),
        (msr::IA32_EFER, 0x401, false, false), // LME cleared under paging
        (msr::IA32_PAT, 0x0007_0106_0007_0406, true, true),
        (msr::IA32_PAT, 0x0007_0206_0007_0406, false, false),
        (msr::IA32_APIC_BASE, 0xFEE0_0800, true, true),
        (msr::IA32_APIC_BASE, 0xFEE0_0C00, false, false),
        (msr::IA32_SYSENTER_CS, 0x10, true, true),
        (msr::IA32_SYSENTER_ESP, NON_CANONICAL, false, false),
        (msr::IA32_SYSENTER_EIP, NON_CANONICAL, false, false),
        (msr::IA32_TSC_AUX, 5, true, true),
        (msr::IA32_TIME_STAMP_COUNTER, 77, true, true),
        (msr::IA32_MISC_ENABLE, 1, true, false),
        (msr::IA32_BIOS_SIGN_ID, 0, true, true),
        (0x2FF, 0, true, true),
        (0x2FF, 0x806, false, false),
        (0xC001_0015, 0, false, true),
        (0xDEAD, 0, false, false),
    ];
    for (index, value, intel, amd) in cases {
        for (model, accepted) in [(CpuModel::INTEL, intel), (CpuModel::AMD, amd)] {
            let mut cpu = CpuState::new(model);
            let before = cpu.clone();
            assert_eq!(msr::wrmsr(&mut cpu, index, value), if accepted { Ok(()) } else { GP }, "{index:#x} {value:#x}");
            if accepted {
                assert_eq!(msr::rdmsr(&cpu, index), Ok(value), "{index:#x}");
            } else {
                assert_eq!(cpu, before);
            }
        }
    }
    assert_eq!(msr::rdmsr(&kernel(), 0xDEAD), Err(Exception::GP0));
    // LMA is read-only; the upper half of FMASK is reserved on Intel and ignored on AMD.
    let mut cpu = kernel();
    msr::wrmsr(&mut cpu, msr::IA32_EFER, 0x901).unwrap();
    assert_eq!(cpu.efer, 0xD01);
    assert_eq!(msr::wrmsr(&mut cpu, msr::IA32_FMASK, 1 << 32), GP);
    let mut cpu = CpuState::new(CpuModel::AMD);
    msr::wrmsr(&mut cpu, msr::IA32_FMASK, 1 << 32 | 0x100).unwrap();
    assert_eq!(cpu.fmask, 0x100);
}

#[test]
fn msr_instructions() {
    let mut cpu = kernel();
    (cpu.gpr[1], cpu.gpr[0], cpu.gpr[2]) = (0xFF_C000_0082, 0xFF_03E7_BEC0, 0xFF_FFFF_F800);
    system::wrmsr(&mut cpu).unwrap();
    assert_eq!(cpu.lstar, 0xFFFF_F800_03E7_BEC0);
    (cpu.gpr[0], cpu.gpr[2]) = (u64::MAX, u64::MAX);
    system::rdmsr(&mut cpu).unwrap();
    assert_eq!((cpu.gpr[0], cpu.gpr[2]), (0x03E7_BEC0, 0xFFFF_F800));
    cpu.cpl = 3;
    assert_eq!((system::rdmsr(&mut cpu), system::wrmsr(&mut cpu)), (GP, GP));
}
