//! Control, debug and model-specific registers, descriptor tables, counters, CPUID, HLT.

use iced_x86::code_asm::*;
use lstar_arch::Gpr;
use lstar_runtime::{Registers, Vcpu};

use crate::bench::Expect::{Fault, Halt, Next};
use crate::bench::Level::{Compatibility, Kernel, Ring1, User};
use crate::bench::*;

const RDMSR: Code = |a| a.rdmsr();
const WRMSR: Code = |a| a.wrmsr();
const TSC_AUX: u32 = 0xC000_0103;

/// Loads the registers of RDMSR and WRMSR. The upper halves, which must not matter, are all ones.
macro_rules! msr {
    ($index:expr, $value:expr) => {
        |vcpu: &mut Vcpu<'_>| {
            let value: u64 = $value;
            vcpu.set_reg(Gpr::Rcx, u64::from($index) | 0xFFFF_FFFF << 32);
            vcpu.set_reg(Gpr::Rbx, value | 0xFFFF_FFFF << 32);
            vcpu.set_reg(Gpr::Rdx, value >> 32 | 0xFFFF_FFFF << 32);
        }
    };
}
/// RAX is the bench's own until the row starts.
const RAX_FROM_RBX: Code = |a| a.mov(rax, rbx);

#[test]
fn model_specific_registers() {
    let write = |name, expect| row(name, Kernel, WRMSR, expect).setup(RAX_FROM_RBX);
    let read = |name, expect| row(name, Kernel, RDMSR, expect).setup(RAX_FROM_RBX);
    run(&[
        read("RDMSR of LSTAR", Next)
            .prepare(msr!(LSTAR_MSR, 0))
            .check(|seen| assert_eq!((seen.reg(Gpr::Rdx), seen.reg(Gpr::Rax)), (LSTAR >> 32, LSTAR & 0xFFFF_FFFF))),
        read("RDMSR of STAR", Next)
            .prepare(msr!(STAR_MSR, 0))
            .check(|seen| assert_eq!((seen.reg(Gpr::Rdx), seen.reg(Gpr::Rax)), (0x23_0010, 0))),
        read("RDMSR of EFER", Next)
            .prepare(msr!(EFER_MSR, 0))
            .check(|seen| assert_eq!((seen.reg(Gpr::Rdx), seen.reg(Gpr::Rax)), (0, 0xD01), "SCE, LME, LMA, NXE")),
        read("RDMSR of an unknown register", Fault(GP, Some(0)))
            .prepare(msr!(0x4000_0123u32, 0))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rdx), 0xFFFF_FFFF_0000_0000, "nothing has changed")),
        row("RDMSR at CPL 3", User, RDMSR, Fault(GP, Some(0))).prepare(msr!(LSTAR_MSR, 0)),
        row("RDMSR at CPL 1", Ring1, RDMSR, Fault(GP, Some(0))).prepare(msr!(LSTAR_MSR, 0)),
        write("WRMSR of KERNEL_GS_BASE", Next)
            .prepare(msr!(0xC000_0102u32, 0xFFFF_F800_1234_5678))
            .check(|seen| assert_eq!(seen.gs, [ACTIVE_GS, 0xFFFF_F800_1234_5678])),
        write("WRMSR of GS_BASE", Next)
            .prepare(msr!(0xC000_0101u32, 0x7FF0_0000))
            .check(|seen| assert_eq!(seen.gs, [0x7FF0_0000, KERNEL_GS])),
        write("WRMSR of LSTAR, not canonical", Fault(GP, Some(0))).prepare(msr!(LSTAR_MSR, 0x8000_0000_0000)),
        write("WRMSR of CSTAR, not canonical", Fault(GP, Some(0))).prepare(msr!(0xC000_0083u32, 1 << 63)),
        write("WRMSR of FS_BASE, not canonical", Fault(GP, Some(0))).prepare(msr!(0xC000_0100u32, 1 << 47)),
        write("WRMSR of GS_BASE, not canonical", Fault(GP, Some(0))).prepare(msr!(0xC000_0101u32, 1 << 47)),
        write("WRMSR of KERNEL_GS_BASE, not canonical", Fault(GP, Some(0))).prepare(msr!(0xC000_0102u32, 1 << 47)),
        write("WRMSR of SYSENTER_EIP, not canonical", Fault(GP, Some(0))).prepare(msr!(0x176u32, 1 << 47)),
        write("WRMSR of an unknown register", Fault(GP, Some(0))).prepare(msr!(0x4000_0123u32, 0)),
        write("WRMSR of EFER clears SCE", Next).prepare(msr!(EFER_MSR, 0xD00)).then(RDMSR).check(|seen| {
            assert_eq!(seen.reg(Gpr::Rax), 0xD00);
        }),
        write("WRMSR of EFER cannot clear LMA", Next).prepare(msr!(EFER_MSR, 0x901)).then(RDMSR).check(|seen| {
            assert_eq!(seen.reg(Gpr::Rax), 0xD01);
        }),
        write("WRMSR of EFER cannot clear LME", Fault(GP, Some(0))).prepare(msr!(EFER_MSR, 0xC01)),
        write("WRMSR of EFER, reserved bit 1", Fault(GP, Some(0))).prepare(msr!(EFER_MSR, 0xD03)),
        write("WRMSR of EFER, reserved bit 63", Fault(GP, Some(0))).prepare(msr!(EFER_MSR, 1 << 63 | 0xD01)),
        write("WRMSR of FMASK, upper half, on Intel", Fault(GP, Some(0))).prepare(msr!(FMASK_MSR, 1 << 32)),
        write("WRMSR of FMASK, upper half, on AMD", Next)
            .amd()
            .prepare(msr!(FMASK_MSR, 1 << 32 | 5))
            .then(RDMSR)
            .check(|seen| assert_eq!((seen.reg(Gpr::Rdx), seen.reg(Gpr::Rax)), (0, 5))),
        write("WRMSR of PAT, reserved type", Fault(GP, Some(0))).prepare(msr!(0x277u32, 2)),
        write("WRMSR of a read-only register", Fault(GP, Some(0))).prepare(msr!(0xFEu32, 1)),
        row("WRMSR at CPL 3", User, WRMSR, Fault(GP, Some(0))).prepare(msr!(LSTAR_MSR, LSTAR)),
        row("WRMSR at CPL 1", Ring1, WRMSR, Fault(GP, Some(0))).prepare(msr!(LSTAR_MSR, LSTAR)),
    ]);
}

#[test]
fn control_registers() {
    let cr0_write: Code = |a| a.mov(cr0, rcx);
    let cr4_write: Code = |a| a.mov(cr4, rcx);
    let write = |name, test: Code, expect| row(name, Kernel, test, expect);
    run(&[
        write("MOV from CR0", |a| a.mov(rax, cr0), Next)
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax), 0x8005_0033, "PG, AM, WP, NE, ET, MP, PE")),
        write("MOV to CR0: ET stays", cr0_write, Next)
            .setup(|a| a.mov(ecx, 0x8001_0021u32))
            .then(|a| a.mov(rax, cr0))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax), 0x8001_0031)),
        write("MOV to CR0, upper half", cr0_write, Fault(GP, Some(0))).setup(|a| a.mov(rcx, 0x1_8005_0033u64)),
        write("MOV to CR0 without PG", cr0_write, Fault(GP, Some(0))).setup(|a| a.mov(ecx, 0x5_0033)),
        write("MOV to CR0 without PE", cr0_write, Fault(GP, Some(0))).setup(|a| a.mov(ecx, 0x8005_0032u32)),
        write("MOV to CR0, NW without CD", cr0_write, Fault(GP, Some(0))).setup(|a| a.mov(ecx, 0xA005_0033u32)),
        write("MOV CR1", |a| a.db(&[0x0F, 0x20, 0xC8]), Fault(UD, None)),
        write("MOV CR5", |a| a.db(&[0x0F, 0x22, 0xE8]), Fault(UD, None)),
        write("MOV CR2", |a| a.mov(cr2, rcx), Next)
            .setup(|a| a.mov(rcx, 0x1234_5678_9ABC_DEF0u64))
            .then(|a| a.mov(rax, cr2))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax), 0x1234_5678_9ABC_DEF0)),
        write("MOV to CR3, reserved", |a| a.mov(cr3, rcx), Fault(GP, Some(0))).setup(|a| a.mov(rcx, 1u64 << 60)),
        write("MOV to CR4, reserved", cr4_write, Fault(GP, Some(0))).setup(|a| a.mov(rcx, 0x8000_0020u64)),
        write("MOV to CR4 without PAE", cr4_write, Fault(GP, Some(0))).setup(|a| a.mov(ecx, 0x600)),
        write("MOV to CR8", |a| a.mov(cr8, rcx), Next)
            .setup(|a| a.mov(ecx, 15))
            .then(|a| a.mov(rax, cr8))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax), 15)),
        write("MOV to CR8, reserved", |a| a.mov(cr8, rcx), Fault(GP, Some(0))).setup(|a| a.mov(ecx, 16)),
        row("MOV from CR0 at CPL 3", User, |a| a.mov(rax, cr0), Fault(GP, Some(0))),
        row("MOV from CR8 at CPL 1", Ring1, |a| a.mov(rax, cr8), Fault(GP, Some(0))),
        row("MOV to CR0 at CPL 3", User, cr0_write, Fault(GP, Some(0))),
        row("MOV to CR4 at CPL 3", User, cr4_write, Fault(GP, Some(0))),
        row("CLTS at CPL 3", User, |a| a.clts(), Fault(GP, Some(0))),
        row("CLTS", Kernel, |a| a.clts(), Next)
            .setup(|a| {
                a.mov(ecx, 0x8005_003Bu32)?;
                a.mov(cr0, rcx)
            })
            .then(|a| a.mov(rax, cr0))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax), 0x8005_0033)),
        row("LMSW at CPL 3", User, |a| a.lmsw(cx), Fault(GP, Some(0))),
        row("INVLPG", Kernel, |a| a.invlpg(byte_ptr(rsp)), Next),
        row("INVLPG at CPL 3", User, |a| a.invlpg(byte_ptr(rsp)), Fault(GP, Some(0))),
        row("INVLPG at CPL 1", Ring1, |a| a.invlpg(byte_ptr(rsp)), Fault(GP, Some(0))),
        row("WBINVD at CPL 3", User, |a| a.wbinvd(), Fault(GP, Some(0))),
        row("HLT", Kernel, |a| a.hlt(), Halt),
        row("HLT at CPL 3", User, |a| a.hlt(), Fault(GP, Some(0))),
        row("HLT at CPL 1", Ring1, |a| a.hlt(), Fault(GP, Some(0))),
        row("HLT in compatibility mode", Compatibility, |a| a.hlt(), Fault(GP, Some(0))),
    ]);
}

/// MOV to DR7 with GD.
const GUARD: Code = |a| {
    a.mov(eax, 0x2400)?;
    a.mov(dr7, rax)
};
/// Clears CR4.DE.
const NO_DE: Code = |a| {
    a.mov(rax, cr4)?;
    a.and(rax, !8)?;
    a.mov(cr4, rax)
};

#[test]
fn debug_registers() {
    run(&[
        row("MOV to DR0", Kernel, |a| a.mov(dr0, rcx), Next)
            .setup(|a| a.mov(rcx, 0x1234_5678_9ABC_DEF0u64))
            .then(|a| a.mov(rax, dr0))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax), 0x1234_5678_9ABC_DEF0)),
        row("MOV to DR6: fixed bits", Kernel, |a| a.mov(dr6, rcx), Next)
            .setup(|a| a.mov(ecx, 0xF00F))
            .check(|seen| assert_eq!(seen.dr6, 0xFFFF_EFFF)),
        row("MOV to DR7: fixed bits", Kernel, |a| a.mov(dr7, rcx), Next)
            .setup(|a| a.mov(ecx, 0xD800))
            .check(|seen| assert_eq!(seen.dr7, 0x400)),
        row("MOV to DR6, upper half", Kernel, |a| a.mov(dr6, rcx), Fault(GP, Some(0)))
            .setup(|a| a.mov(rcx, 1u64 << 32)),
        row("MOV to DR7, upper half", Kernel, |a| a.mov(dr7, rcx), Fault(GP, Some(0)))
            .setup(|a| a.mov(rcx, 1u64 << 63)),
        row("MOV from DR4 with DE", Kernel, |a| a.db(&[0x0F, 0x21, 0xE0]), Fault(UD, None)),
        row("MOV to DR5 with DE", Kernel, |a| a.db(&[0x0F, 0x23, 0xE8]), Fault(UD, None)),
        row("MOV from DR4 without DE", Kernel, |a| a.db(&[0x0F, 0x21, 0xE0]), Next)
            .setup(NO_DE)
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax), 0xFFFF_0FF0, "DR6")),
        row("MOV from DR5 without DE", Kernel, |a| a.db(&[0x0F, 0x21, 0xE8]), Next)
            .setup(NO_DE)
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax), 0x400, "DR7")),
        row("MOV from a guarded register", Kernel, |a| a.mov(rax, dr0), Fault(DB, None)).setup(GUARD).check(|seen| {
            assert_eq!((seen.dr6, seen.dr7), (0xFFFF_2FF0, 0x400), "BD is reported, GD is cleared");
        }),
        row("MOV to a guarded register", Kernel, |a| a.mov(dr3, rax), Fault(DB, None)).setup(GUARD),
        row("MOV from a guarded register at CPL 3", User, |a| a.mov(rax, dr0), Fault(GP, Some(0))).boot(GUARD),
        row("MOV from DR0 at CPL 3", User, |a| a.mov(rax, dr0), Fault(GP, Some(0))),
        row("MOV to DR7 at CPL 3", User, |a| a.mov(dr7, rax), Fault(GP, Some(0))),
        row("MOV to DR7 at CPL 1", Ring1, |a| a.mov(dr7, rax), Fault(GP, Some(0))),
        row("an instruction breakpoint", Kernel, |a| a.nop(), Fault(DB, None))
            .setup(|a| {
                a.mov(rax, KERNEL_CODE + 21)?;
                a.mov(dr0, rax)?;
                a.mov(eax, 1)?;
                a.mov(dr7, rax)
            })
            .check(|seen| assert_eq!((seen.dr6, seen.rflags), (0xFFFF_0FF1, 0x202))),
    ]);
}

/// Puts a limit and base at SCRATCH and its address into RCX.
const TABLE: Code = |a| {
    a.mov(rcx, SCRATCH)?;
    a.mov(word_ptr(rcx), 0x123)?;
    a.mov(rax, 0xFFFF_F800_1234_5000u64)?;
    a.mov(qword_ptr(rcx + 2), rax)
};
/// As [`TABLE`] with a base that is not canonical.
const BAD_TABLE: Code = |a| {
    a.mov(rcx, SCRATCH)?;
    a.mov(word_ptr(rcx), 0x123)?;
    a.mov(rax, 0x8000_0000_0000u64)?;
    a.mov(qword_ptr(rcx + 2), rax)
};
/// Loads AX with a selector.
macro_rules! selector {
    ($selector:expr) => {
        |a| a.mov(eax, u32::from($selector))
    };
}
const LTR: Code = |a| a.ltr(ax);

#[test]
fn descriptor_tables() {
    run(&[
        row("LGDT", Kernel, |a| a.lgdt(fword_ptr(rcx)), Next)
            .setup(TABLE)
            .then(|a| {
                a.mov(qword_ptr(rcx), 0)?;
                a.mov(qword_ptr(rcx + 8), 0)?;
                a.sgdt(fword_ptr(rcx))
            })
            .check(|seen| assert_eq!(seen.scratch, [0xF800_1234_5000_0123, 0xFFFF])),
        row("LIDT", Kernel, |a| a.lidt(fword_ptr(rcx)), Next)
            .setup(TABLE)
            .then(|a| {
                a.mov(qword_ptr(rcx), 0)?;
                a.mov(qword_ptr(rcx + 8), 0)?;
                a.sidt(fword_ptr(rcx))
            })
            .check(|seen| assert_eq!(seen.scratch, [0xF800_1234_5000_0123, 0xFFFF])),
        row("LGDT, not canonical", Kernel, |a| a.lgdt(fword_ptr(rcx)), Fault(GP, Some(0))).setup(BAD_TABLE),
        row("LIDT, not canonical", Kernel, |a| a.lidt(fword_ptr(rcx)), Fault(GP, Some(0))).setup(BAD_TABLE),
        row("LGDT at CPL 3", User, |a| a.lgdt(fword_ptr(rsp - 16)), Fault(GP, Some(0))),
        row("LIDT at CPL 3", User, |a| a.lidt(fword_ptr(rsp - 16)), Fault(GP, Some(0))),
        row("LIDT at CPL 1", Ring1, |a| a.lidt(fword_ptr(rsp - 16)), Fault(GP, Some(0))),
        row("LTR", Kernel, LTR, Next)
            .setup(selector!(FREE_TSS))
            .then(|a| {
                a.str(eax)?;
                a.mov(rcx, GDT + u64::from(FREE_TSS))?;
                a.movzx(ecx, byte_ptr(rcx + 5))
            })
            .check(|seen| assert_eq!((seen.reg(Gpr::Rax), seen.reg(Gpr::Rcx)), (FREE_TSS.into(), 0x8B), "now busy")),
        row("LTR of a busy TSS", Kernel, LTR, Fault(GP, Some(0x40))).setup(selector!(BUSY_TSS)),
        row("LTR of a null selector", Kernel, LTR, Fault(GP, Some(0))).setup(selector!(0u16)),
        row("LTR of a data segment", Kernel, LTR, Fault(GP, Some(0x18))).setup(selector!(KERNEL_SS)),
        row("LTR beyond the GDT", Kernel, LTR, Fault(GP, Some(0x80))).setup(selector!(LIMIT_SELECTOR)),
        row("LTR at CPL 3", User, LTR, Fault(GP, Some(0))).setup(selector!(FREE_TSS)),
        row("LTR at CPL 1", Ring1, LTR, Fault(GP, Some(0))).setup(selector!(FREE_TSS)),
        row("LLDT at CPL 3", User, |a| a.lldt(ax), Fault(GP, Some(0))).setup(selector!(0u16)),
    ]);
}

/// Sets CR4.TSD.
const TSD: Code = |a| {
    a.mov(rax, cr4)?;
    a.or(rax, 4)?;
    a.mov(cr4, rax)
};
/// Clears CR4.OSXSAVE.
const NO_XSAVE: Code = |a| {
    a.mov(rax, cr4)?;
    a.and(rax, !(1 << 18))?;
    a.mov(cr4, rax)
};

/// Clears CR4.FSGSBASE.
const NO_FSGSBASE: Code = |a| {
    a.mov(rax, cr4)?;
    a.and(rax, !(1 << 16))?;
    a.mov(cr4, rax)
};
/// Behind RDTSC: a loop with another one, which counts in R9 what is between the two.
const COUNT_UP: Code = |a| {
    let mut again = a.create_label();
    a.xor(r9d, r9d)?;
    a.mov(r10d, 50)?;
    a.mov(r8, rax)?;
    a.set_label(&mut again)?;
    a.nop()?;
    a.rdtsc()?;
    a.mov(r11, rax)?;
    a.sub(rax, r8)?;
    a.imul_2(r9, r9)?;
    a.add(r9, rax)?;
    a.mov(r8, r11)?;
    a.dec(r10d)?;
    a.jnz(again)
};

fn counts_up(seen: &Seen) {
    // 5 instructions to the first, then rounds of 9.
    let expected = (0..50).fold(0u64, |sum, round| sum.wrapping_mul(sum).wrapping_add(if round == 0 { 5 } else { 9 }));
    assert_eq!(seen.reg(Gpr::R9), expected, "{seen:x?}");
}

#[test]
fn segment_bases_and_selectors() {
    const USER_BASE: u64 = 0x1234_5678_9ABC;
    run(&[
        row("RDGSBASE", User, |a| a.rdgsbase(rdx), Next).check(|seen| assert_eq!(seen.reg(Gpr::Rdx), ACTIVE_GS)),
        row("RDGSBASE of 32 bits", User, |a| a.rdgsbase(edx), Next)
            .setup(|a| {
                a.mov(rdx, 0x7FFF_8765_4321u64)?;
                a.wrgsbase(rdx)?;
                a.mov(rdx, -1i64)
            })
            .check(|seen| assert_eq!((seen.reg(Gpr::Rdx), seen.gs[0]), (0x8765_4321, 0x7FFF_8765_4321))),
        row("WRGSBASE of 32 bits", User, |a| a.wrgsbase(edx), Next)
            .setup(|a| a.mov(rdx, -2i64))
            .check(|seen| assert_eq!(seen.gs[0], 0xFFFF_FFFE)),
        row("WRGSBASE of a kernel address", User, |a| a.wrgsbase(rdx), Next)
            .setup(|a| a.mov(rdx, 0xFFFF_8000_0000_0000u64))
            .check(|seen| assert_eq!(seen.gs[0], 0xFFFF_8000_0000_0000)),
        row("WRGSBASE of an address that is not canonical", User, |a| a.wrgsbase(rdx), Fault(GP, Some(0)))
            .setup(|a| a.mov(rdx, 0x8000_0000_0000u64)),
        row("WRGSBASE of another one", User, |a| a.wrgsbase(rdx), Fault(GP, Some(0)))
            .setup(|a| a.mov(rdx, 0xFFFF_7FFF_FFFF_FFFFu64)),
        row("WRFSBASE and RDFSBASE", User, |a| a.rdfsbase(r9), Next)
            .setup(|a| {
                a.mov(rdx, USER_BASE)?;
                a.wrfsbase(rdx)?;
                a.mov(r8, -1i64)?;
                a.rdfsbase(r8d)
            })
            .check(|seen| assert_eq!([seen.reg(Gpr::R9), seen.reg(Gpr::R8)], [USER_BASE, USER_BASE & 0xFFFF_FFFF])),
        row("an access behind WRGSBASE", User, |a| a.mov(rdx, qword_ptr(8).gs()), Next)
            .setup(|a| {
                // The row's own stack.
                a.mov(qword_ptr(rsp - 0x40), 0x5A5A)?;
                a.mov(r8, qword_ptr(rsp - 0x60))?;
                a.lea(r8, qword_ptr(rsp - 0x48))?;
                a.wrgsbase(r8)
            })
            .check(|seen| assert_eq!(seen.reg(Gpr::Rdx), 0x5A5A)),
        row("RDFSBASE without FSGSBASE", User, |a| a.rdfsbase(rdx), Fault(UD, None)).boot(NO_FSGSBASE),
        row("WRGSBASE without FSGSBASE", Kernel, |a| a.wrgsbase(rdx), Fault(UD, None)).boot(NO_FSGSBASE),
        row("MOV of a selector into 64 bits", User, |a| a.mov(rdx, cs), Next)
            .setup(|a| a.mov(rdx, -1i64))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rdx), USER_CS.into())),
        row("MOV of a selector into 32 bits", Compatibility, |a| a.mov(edx, ss), Next)
            .check(|seen| assert_eq!(seen.reg(Gpr::Rdx), USER_SS.into())),
        row("MOV of a selector into 16 bits", User, |a| a.mov(dx, ss), Next)
            .setup(|a| a.mov(rdx, -1i64))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rdx), 0xFFFF_FFFF_FFFF_0000 | u64::from(USER_SS))),
        row("MOV of a selector into memory", User, |a| a.mov(word_ptr(rsp - 8), cs), Next)
            .setup(|a| a.mov(qword_ptr(rsp - 8), -1))
            .then(|a| a.mov(rdx, qword_ptr(rsp - 8)))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rdx), 0xFFFF_FFFF_FFFF_0000 | u64::from(USER_CS))),
        row("PUSH FS", User, |a| a.push(fs), Next)
            .setup(|a| a.mov(qword_ptr(rsp - 8), -1))
            .then(|a| a.pop(rdx))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rdx) & 0xFFFF, 0)),
    ]);
}

#[test]
fn counters_and_identification() {
    let rdtsc: Code = |a| a.rdtsc();
    let rdtscp: Code = |a| a.rdtscp();
    let xgetbv: Code = |a| a.xgetbv();
    let cpuid: Code = |a| a.cpuid();
    run(&[
        row("RDTSC at CPL 3", User, rdtsc, Next).setup(|a| a.mov(rdx, -1i64)).check(|seen| {
            assert!(seen.reg(Gpr::Rdx) == 0 && (1..1000).contains(&seen.reg(Gpr::Rax)), "{seen:x?}");
        }),
        row("RDTSC at CPL 3 with TSD", User, rdtsc, Fault(GP, Some(0))).boot(TSD),
        row("RDTSCP at CPL 3 with TSD", User, rdtscp, Fault(GP, Some(0))).boot(TSD),
        row("RDTSC at CPL 1 with TSD", Ring1, rdtsc, Fault(GP, Some(0))).boot(TSD),
        row("RDTSC at CPL 0 with TSD", Kernel, rdtsc, Next).boot(TSD),
        row("RDTSC counts instructions", User, rdtsc, Next).then(COUNT_UP).check(counts_up),
        row("RDTSC counts instructions at CPL 0", Kernel, rdtsc, Next).then(COUNT_UP).check(counts_up),
        row("RDPID", User, |a| a.rdpid(r9), Next)
            .setup(|a| a.mov(r9, -1i64))
            .prepare(|vcpu| assert!(vcpu.write_msr(TSC_AUX, 0xFEDC_1234)))
            .check(|seen| assert_eq!(seen.reg(Gpr::R9), 0xFEDC_1234)),
        row("RDTSCP", User, rdtscp, Next)
            .setup(|a| a.mov(rcx, -1i64))
            .prepare(|vcpu| assert!(vcpu.write_msr(TSC_AUX, 0x1234)))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rcx), 0x1234)),
        row("XGETBV", User, xgetbv, Next)
            .setup(|a| a.xor(ecx, ecx))
            .check(|seen| assert_eq!((seen.reg(Gpr::Rdx), seen.reg(Gpr::Rax)), (0, 7))),
        row("XGETBV of an unknown register", User, xgetbv, Fault(GP, Some(0))).setup(|a| a.mov(ecx, 7)),
        row("XGETBV without OSXSAVE", User, xgetbv, Fault(UD, None)).boot(NO_XSAVE),
        row("XSETBV at CPL 3", User, |a| a.xsetbv(), Fault(GP, Some(0))),
        row("XSETBV without x87", Kernel, |a| a.xsetbv(), Fault(GP, Some(0))).setup(|a| {
            a.xor(ecx, ecx)?;
            a.xor(edx, edx)?;
            a.mov(eax, 2)
        }),
        row("CPUID 0 on Intel", User, cpuid, Next).setup(|a| a.xor(eax, eax)).check(|seen| {
            let text = [Gpr::Rbx, Gpr::Rdx, Gpr::Rcx].map(|register| (seen.reg(register) as u32).to_le_bytes());
            assert_eq!(text.as_flattened(), b"GenuineIntel");
        }),
        row("CPUID 0 on AMD", User, cpuid, Next).amd().setup(|a| a.xor(eax, eax)).check(|seen| {
            let text = [Gpr::Rbx, Gpr::Rdx, Gpr::Rcx].map(|register| (seen.reg(register) as u32).to_le_bytes());
            assert_eq!(text.as_flattened(), b"AuthenticAMD");
        }),
        row("CPUID clears upper halves", Kernel, cpuid, Next)
            .setup(|a| {
                a.mov(rax, 0xFFFF_FFFF_0000_0001u64)?;
                a.mov(rbx, -1i64)?;
                a.mov(rcx, -1i64)?;
                a.mov(rdx, -1i64)
            })
            .check(|seen| {
                let registers = [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|register| seen.reg(register) >> 32);
                assert_eq!(registers, [0; 4]);
                assert_eq!(seen.reg(Gpr::Rcx) >> 27 & 1, 1, "OSXSAVE");
            }),
        row("CPUID follows CR4.OSXSAVE", Kernel, cpuid, Next)
            .boot(NO_XSAVE)
            .setup(|a| a.mov(eax, 1))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rcx) >> 27 & 1, 0)),
        row("CPUID: SYSCALL in 64-bit mode", User, cpuid, Next)
            .setup(|a| a.mov(eax, 0x8000_0001u32))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rdx) >> 11 & 1, 1)),
        row("CPUID: SYSCALL in compatibility mode on Intel", Compatibility, cpuid, Next)
            .setup(|a| a.mov(eax, 0x8000_0001u32))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rdx) >> 11 & 1, 0)),
        row("CPUID: SYSCALL in compatibility mode on AMD", Compatibility, cpuid, Next)
            .amd()
            .setup(|a| a.mov(eax, 0x8000_0001u32))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rdx) >> 11 & 1, 1)),
    ]);
}
