//! SYSCALL, SYSRET, SYSENTER, SYSEXIT and SWAPGS: every condition of the manuals, per vendor.

mod machine;

use lstar_arch::control::efer;
use lstar_arch::system::{OperandSize, swapgs, syscall, sysenter, sysexit, sysret};
use lstar_arch::{CpuModel, CpuState, Exception, SegmentIndex};
use machine::*;

const LSTAR: u64 = 0xFFFF_F800_03E7_BEC0;
const CSTAR: u64 = 0xFFFF_F800_03E7_BC00;
const NON_CANONICAL: u64 = 0x0000_8000_0000_0000;
const VENDORS: [CpuModel; 2] = [CpuModel::INTEL, CpuModel::AMD];

fn with_msrs((mut cpu, _): (CpuState, Memory)) -> CpuState {
    cpu.star = 0x0023_0010_0000_0000;
    cpu.lstar = LSTAR;
    cpu.cstar = CSTAR;
    cpu.fmask = 0x4700;
    cpu
}

fn selectors(cpu: &CpuState) -> (u16, u16, u8) {
    (cpu.segment(SegmentIndex::Cs).selector, cpu.segment(SegmentIndex::Ss).selector, cpu.cpl)
}

#[test]
fn syscall_enters_at_lstar() {
    for model in VENDORS {
        let mut cpu = with_msrs(user_machine(model));
        cpu.rflags = 0x5_4746; // AC, RF, NT, DF, IF, TF, ZF, PF
        let rsp = cpu.gpr[4];
        syscall(&mut cpu).unwrap();
        assert_eq!(cpu.rip, LSTAR);
        assert_eq!((cpu.gpr[1], cpu.gpr[11], cpu.gpr[4]), (0x40_0002, 0x4_4746, rsp));
        assert_eq!(cpu.rflags, 0x4_0046);
        assert_eq!(selectors(&cpu), (0x10, 0x18, 0));
        assert!(cpu.is_64bit());
    }
}

#[test]
fn syscall_masks_and_selectors() {
    let mut cpu = with_msrs(user_machine(CpuModel::INTEL));
    cpu.rflags = 0x3F_7FD7 & !(1 << 16 | 1 << 17);
    cpu.fmask = 0xFFFF_FFFF;
    cpu.star = 0x0013_0000_0000;
    syscall(&mut cpu).unwrap();
    assert_eq!(cpu.rflags, 2, "the fixed bit survives the mask");
    assert_eq!(selectors(&cpu), (0x10, 0x1B, 0), "only CS loses its RPL");
}

#[test]
fn syscall_without_sce_is_undefined() {
    for model in VENDORS {
        let mut cpu = with_msrs(user_machine(model));
        cpu.efer &= !efer::SCE;
        assert_eq!(syscall(&mut cpu), Err(Exception::UD));
        assert_eq!(sysret(&mut cpu, OperandSize::Qword), Err(Exception::UD), "before the privilege check");
    }
}

#[test]
fn syscall_from_compatibility_mode() {
    let mut cpu = with_msrs(compatibility_machine(CpuModel::INTEL));
    assert_eq!(syscall(&mut cpu), Err(Exception::UD));
    let mut cpu = with_msrs(compatibility_machine(CpuModel::AMD));
    syscall(&mut cpu).unwrap();
    assert_eq!((cpu.rip, cpu.gpr[1]), (CSTAR, 0x40_0002));
    assert!(cpu.is_64bit());
}

#[test]
fn sysret_returns_to_either_mode() {
    for model in VENDORS {
        let mut cpu = with_msrs(machine(model));
        (cpu.gpr[1], cpu.gpr[11]) = (0x7FFF_1234_5678, u64::MAX);
        cpu.star = 0x0020_0010_0000_0000; // RPL 3 comes from the instruction
        let mut narrow = cpu.clone();
        sysret(&mut cpu, OperandSize::Qword).unwrap();
        assert_eq!((cpu.rip, cpu.rflags), (0x7FFF_1234_5678, 0x3C_7FD7));
        assert_eq!(selectors(&cpu), (0x33, 0x2B, 3));
        assert!(cpu.is_64bit());
        narrow.gpr[11] = 0;
        sysret(&mut narrow, OperandSize::Dword).unwrap();
        assert_eq!((narrow.rip, narrow.rflags), (0x1234_5678, 2));
        assert_eq!(selectors(&narrow), (0x23, 0x2B, 3));
        assert!(!narrow.is_64bit() && narrow.segment(SegmentIndex::Cs).is_big());
    }
}

#[test]
fn sysret_refusals() {
    for model in VENDORS {
        let mut cpu = with_msrs(user_machine(model));
        assert_eq!(sysret(&mut cpu, OperandSize::Qword), Err(Exception::GP0));
    }
    let mut cpu = with_msrs(machine(CpuModel::INTEL));
    cpu.gpr[1] = NON_CANONICAL;
    let before = cpu.clone();
    assert_eq!(sysret(&mut cpu, OperandSize::Qword), Err(Exception::GP0));
    assert_eq!(cpu, before, "Intel faults before the switch");
    let mut cpu = with_msrs(machine(CpuModel::AMD));
    cpu.gpr[1] = NON_CANONICAL;
    sysret(&mut cpu, OperandSize::Qword).unwrap();
    assert_eq!((cpu.rip, cpu.cpl), (NON_CANONICAL, 3), "AMD faults on the fetch at CPL 3");
}

#[test]
fn sysenter_and_sysexit() {
    let mut cpu = user_machine(CpuModel::INTEL).0;
    cpu.sysenter = [0x10, KERNEL_STACK, LSTAR];
    cpu.rflags = 0x203;
    sysenter(&mut cpu).unwrap();
    assert_eq!((cpu.rip, cpu.gpr[4], cpu.rflags), (LSTAR, KERNEL_STACK, 3));
    assert_eq!(selectors(&cpu), (0x10, 0x18, 0));
    (cpu.gpr[1], cpu.gpr[2]) = (0x1_2000_0000, 0x1_3000_0000);
    let mut narrow = cpu.clone();
    sysexit(&mut cpu, OperandSize::Qword).unwrap();
    assert_eq!((cpu.gpr[4], cpu.rip, selectors(&cpu)), (0x1_2000_0000, 0x1_3000_0000, (0x33, 0x3B, 3)));
    sysexit(&mut narrow, OperandSize::Dword).unwrap();
    assert_eq!((narrow.gpr[4], narrow.rip, selectors(&narrow)), (0x2000_0000, 0x3000_0000, (0x23, 0x2B, 3)));
    assert_eq!(sysexit(&mut cpu, OperandSize::Qword), Err(Exception::GP0), "CPL 3");
    cpu.sysenter[0] = 3;
    assert_eq!(sysenter(&mut cpu), Err(Exception::GP0), "null CS");
    let mut cpu = machine(CpuModel::AMD).0;
    assert_eq!(sysenter(&mut cpu), Err(Exception::UD));
    assert_eq!(sysexit(&mut cpu, OperandSize::Qword), Err(Exception::UD));
}

#[test]
fn swapgs_conditions() {
    let mut cpu = machine(CpuModel::INTEL).0;
    cpu.kernel_gs_base = 0x1000;
    cpu.segment_mut(SegmentIndex::Gs).base = 0x2000;
    swapgs(&mut cpu).unwrap();
    assert_eq!((cpu.kernel_gs_base, cpu.segment(SegmentIndex::Gs).base), (0x2000, 0x1000));
    assert_eq!(swapgs(&mut user_machine(CpuModel::INTEL).0), Err(Exception::GP0));
    assert_eq!(swapgs(&mut compatibility_machine(CpuModel::INTEL).0), Err(Exception::UD));
}
