//! SYSCALL, SYSRET and SWAPGS.

use lstar_arch::Gpr;
use lstar_runtime::{Registers, Vcpu};

use crate::bench::Expect::{At, Fault, FaultAt, Next};
use crate::bench::Level::{Compatibility, Kernel, Ring1, User};
use crate::bench::*;

const SYSCALL: Code = |a| a.syscall();
const SYSRETQ: Code = |a| a.sysretq();
const SYSRETL: Code = |a| a.sysret();
/// A RIP that an AMD processor takes from RCX and cannot fetch from; without its upper bits it is user code.
const NOT_CANONICAL: u64 = 0x0100_0000_0000_0000 + USER_TARGET;

fn no_sce(vcpu: &mut Vcpu<'_>) {
    let efer = vcpu.read_msr(EFER_MSR).expect("EFER");
    assert!(vcpu.write_msr(EFER_MSR, efer & !1));
}

#[test]
fn syscall() {
    run(&[
        row("SYSCALL", User, SYSCALL, At(LSTAR, 0)).rflags(0x646).check(|seen| {
            assert_eq!(seen.reg(Gpr::Rcx), USER_CODE + 2);
            assert_eq!(seen.reg(Gpr::R11), 0x646, "RFLAGS");
            assert_eq!(seen.rflags, 0x46, "FMASK clears IF and DF");
            assert_eq!((seen.cs, seen.ss), (KERNEL_CS, KERNEL_SS));
            assert_eq!(seen.gs, [ACTIVE_GS, KERNEL_GS], "GS is SWAPGS's business");
            assert_eq!(seen.rsp, 0x50_8000, "RSP is the entry code's business");
        }),
        row("SYSCALL with every flag masked", User, SYSCALL, At(LSTAR, 0))
            .rflags(0x4_0ED7)
            .prepare(|vcpu| assert!(vcpu.write_msr(FMASK_MSR, 0xFFFF_FFFF)))
            .check(|seen| assert_eq!((seen.rflags, seen.reg(Gpr::R11)), (2, 0x4_0ED7))),
        row("SYSCALL with no flag masked", User, SYSCALL, At(LSTAR, 0))
            .rflags(0x4ED7)
            .prepare(|vcpu| assert!(vcpu.write_msr(FMASK_MSR, 0)))
            .check(|seen| assert_eq!((seen.rflags, seen.reg(Gpr::R11)), (0x4ED7, 0x4ED7))),
        row("SYSCALL: selectors from STAR", User, SYSCALL, At(LSTAR, 0))
            .prepare(|vcpu| assert!(vcpu.write_msr(STAR_MSR, 0x0023_00A3_0000_0000)))
            .check(|seen| assert_eq!((seen.cs, seen.ss), (0xA0, 0xAB), "only CS loses its RPL")),
        row("SYSCALL at CPL 0", Kernel, SYSCALL, At(LSTAR, 0))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rcx), KERNEL_CODE + 2)),
        row("SYSCALL at CPL 1", Ring1, SYSCALL, At(LSTAR, 0)),
        row("SYSCALL without SCE", User, SYSCALL, Fault(UD, None)).prepare(no_sce).check(|seen| {
            assert_eq!((seen.reg(Gpr::Rcx), seen.reg(Gpr::R11)), (0, 0), "nothing has changed");
        }),
        row("SYSCALL with a prefix", User, |a| a.db(&[0x48, 0x0F, 0x05]), At(LSTAR, 0))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rcx), USER_CODE + 3)),
        row("SYSCALL with a prefix without SCE", User, |a| a.db(&[0x48, 0x0F, 0x05]), Fault(UD, None)).prepare(no_sce),
        row("SYSCALL without SCE on AMD", User, SYSCALL, Fault(UD, None)).prepare(no_sce).amd(),
        row("SYSCALL on AMD", User, SYSCALL, At(LSTAR, 0)).amd(),
        row("SYSCALL in compatibility mode on Intel", Compatibility, SYSCALL, Fault(UD, None)),
        row("SYSCALL in compatibility mode on AMD", Compatibility, SYSCALL, At(CSTAR, 0)).amd().rflags(0x646).check(
            |seen| {
                assert_eq!((seen.reg(Gpr::Rcx), seen.reg(Gpr::R11), seen.rflags), (USER_CODE + 2, 0x646, 0x46));
                assert_eq!((seen.cs, seen.ss), (KERNEL_CS, KERNEL_SS));
            },
        ),
        row("SYSCALL in compatibility mode on AMD without SCE", Compatibility, SYSCALL, Fault(UD, None))
            .amd()
            .prepare(no_sce),
        row("SYSCALL with RF", User, SYSCALL, At(LSTAR, 0)).rflags(0x1_0202).check(|seen| {
            assert_eq!((seen.reg(Gpr::R11), seen.rflags), (0x202, 2), "RF is neither saved nor kept");
        }),
        row("SYSCALL with TF in FMASK", User, SYSCALL, At(LSTAR, 0))
            .rflags(0x302)
            .check(|seen| assert_eq!((seen.reg(Gpr::R11), seen.rflags), (0x302, 2), "no trap in the kernel")),
        row("SYSCALL with TF, not in FMASK", User, SYSCALL, FaultAt(DB, None, LSTAR, 0))
            .rflags(0x302)
            .prepare(|vcpu| assert!(vcpu.write_msr(FMASK_MSR, 0x4600)))
            .check(|seen| assert_eq!((seen.rflags, seen.dr6), (0x102, 0xFFFF_4FF0))),
    ]);
}

fn to_user(vcpu: &mut Vcpu<'_>) {
    vcpu.set_reg(Gpr::Rcx, USER_TARGET);
    vcpu.set_reg(Gpr::R11, 0x202);
}

fn to_nowhere(vcpu: &mut Vcpu<'_>) {
    to_user(vcpu);
    vcpu.set_reg(Gpr::Rcx, NOT_CANONICAL);
}

#[test]
fn sysret() {
    run(&[
        row("SYSRETQ", Kernel, SYSRETQ, At(USER_TARGET, 3)).prepare(to_user).check(|seen| {
            assert_eq!((seen.cs, seen.ss, seen.rflags), (USER_CS, USER_SS, 0x202));
            assert_eq!(seen.gs, [ACTIVE_GS, KERNEL_GS]);
        }),
        row("SYSRETQ: flags", Kernel, SYSRETQ, At(USER_TARGET, 3))
            .prepare(|vcpu| {
                to_user(vcpu);
                // All but TF, which would trap.
                vcpu.set_reg(Gpr::R11, !0x100);
            })
            .check(|seen| assert_eq!(seen.rflags, 0x3C_7ED7, "RF, VM and reserved bits are not loaded")),
        row("SYSRETQ: no flags", Kernel, SYSRETQ, At(USER_TARGET, 3))
            .prepare(|vcpu| {
                to_user(vcpu);
                vcpu.set_reg(Gpr::R11, 0);
            })
            .check(|seen| assert_eq!(seen.rflags, 2)),
        row("SYSRETQ with TF", Kernel, SYSRETQ, FaultAt(DB, None, USER_TARGET, 3))
            .prepare(|vcpu| {
                to_user(vcpu);
                vcpu.set_reg(Gpr::R11, 0x302);
            })
            .check(|seen| assert_eq!(seen.dr6, 0xFFFF_4FF0, "the trap comes at once")),
        row("SYSRETQ: selectors from STAR", Kernel, SYSRETQ, At(USER_TARGET, 3))
            .prepare(|vcpu| {
                to_user(vcpu);
                assert!(vcpu.write_msr(STAR_MSR, 0x0040_0010_0000_0000));
            })
            .check(|seen| assert_eq!((seen.cs, seen.ss), (0x53, 0x4B), "RPL 3 is forced")),
        row("SYSRETL", Kernel, SYSRETL, At(USER_TARGET, 3))
            .prepare(|vcpu| {
                to_user(vcpu);
                vcpu.set_reg(Gpr::Rcx, 0xFFFF_FFFF_0000_0000 + USER_TARGET);
            })
            .check(|seen| assert_eq!((seen.cs, seen.ss), (USER_CS32, USER_SS), "compatibility mode, RIP from ECX")),
        row("SYSRETQ at CPL 3", User, SYSRETQ, Fault(GP, Some(0))).prepare(to_user),
        row("SYSRETL at CPL 3", User, SYSRETL, Fault(GP, Some(0))).prepare(to_user),
        row("SYSRETQ at CPL 1", Ring1, SYSRETQ, Fault(GP, Some(0))).prepare(to_user),
        row("SYSRETQ without SCE", Kernel, SYSRETQ, Fault(UD, None)).prepare(|vcpu| {
            to_user(vcpu);
            no_sce(vcpu);
        }),
        row("SYSRETQ at CPL 3 without SCE", User, SYSRETQ, Fault(UD, None)).prepare(no_sce),
        row("SYSRETQ to nowhere on Intel", Kernel, SYSRETQ, Fault(GP, Some(0)))
            .prepare(to_nowhere)
            .check(|seen| assert_eq!((seen.cs, seen.ss), (KERNEL_CS, KERNEL_SS), "raised at CPL 0, on its stack")),
        row("SYSRETQ to nowhere on AMD", Kernel, SYSRETQ, FaultAt(GP, Some(0), NOT_CANONICAL, 3))
            .prepare(to_nowhere)
            .amd()
            .check(|seen| assert_eq!((seen.cs, seen.ss), (USER_CS, USER_SS), "raised by the fetch, at CPL 3")),
        row("SYSRETL to nowhere on Intel", Kernel, SYSRETL, At(USER_TARGET, 3)).prepare(to_nowhere),
        row("SYSRETL in compatibility mode on Intel", Compatibility, SYSRETL, Fault(UD, None)),
        row("SYSRETL in compatibility mode at CPL 3 on AMD", Compatibility, SYSRETL, Fault(GP, Some(0))).amd(),
    ]);
}

#[test]
fn swapgs() {
    const SWAPGS: Code = |a| a.swapgs();
    let bytes: Code = |a| a.db(&[0x0F, 0x01, 0xF8]);
    run(&[
        row("SWAPGS", Kernel, SWAPGS, Next).check(|seen| assert_eq!(seen.gs, [KERNEL_GS, ACTIVE_GS])),
        row("SWAPGS twice", Kernel, SWAPGS, Next)
            .then(SWAPGS)
            .check(|seen| assert_eq!(seen.gs, [ACTIVE_GS, KERNEL_GS])),
        row("SWAPGS at CPL 3", User, SWAPGS, Fault(GP, Some(0)))
            .check(|seen| assert_eq!(seen.gs, [ACTIVE_GS, KERNEL_GS])),
        row("SWAPGS at CPL 1", Ring1, SWAPGS, Fault(GP, Some(0))),
        row("SWAPGS in compatibility mode", Compatibility, bytes, Fault(UD, None)),
    ]);
}
