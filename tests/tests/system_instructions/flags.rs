//! CLI, STI, PUSHF and POPF at each CPL and IOPL.

use iced_x86::code_asm::*;
use lstar_arch::Gpr;

use crate::bench::Expect::{Fault, Next};
use crate::bench::Level::{Compatibility, Kernel, Ring1, User};
use crate::bench::*;

const CLI: Code = |a| a.cli();
const STI: Code = |a| a.sti();
const PUSHFQ: Code = |a| a.pushfq();
const POPFQ: Code = |a| a.popfq();

#[test]
fn interrupt_flag() {
    run(&[
        row("CLI at CPL 0", Kernel, CLI, Next).check(|seen| assert_eq!(seen.rflags, 2)),
        row("STI at CPL 0", Kernel, STI, Next).rflags(2).check(|seen| assert_eq!(seen.rflags, 0x202)),
        row("CLI at CPL 1, IOPL 0", Ring1, CLI, Fault(GP, Some(0))),
        row("CLI at CPL 1, IOPL 1", Ring1, CLI, Next).rflags(0x1202).check(|seen| assert_eq!(seen.rflags, 0x1002)),
        row("CLI at CPL 3, IOPL 0", User, CLI, Fault(GP, Some(0))).check(|seen| assert_eq!(seen.rflags, 0x1_0202)),
        row("CLI at CPL 3, IOPL 2", User, CLI, Fault(GP, Some(0))).rflags(0x2202),
        row("CLI at CPL 3, IOPL 3", User, CLI, Next).rflags(0x3202).check(|seen| assert_eq!(seen.rflags, 0x3002)),
        row("STI at CPL 3, IOPL 0", User, STI, Fault(GP, Some(0))).rflags(2),
        row("STI at CPL 3, IOPL 3", User, STI, Next).rflags(0x3002).check(|seen| assert_eq!(seen.rflags, 0x3202)),
        row("STI in compatibility mode, IOPL 0", Compatibility, STI, Fault(GP, Some(0))),
        row("CLI in compatibility mode, IOPL 3", Compatibility, CLI, Next).rflags(0x3202),
    ]);
}

#[test]
fn pushf() {
    run(&[
        row("PUSHFQ at CPL 3", User, PUSHFQ, Next)
            .rflags(0x24_4EC7)
            .then(|a| a.pop(rax))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax), 0x24_4EC7)),
        row("PUSHFQ with RF", User, PUSHFQ, Next)
            .rflags(0x1_0202)
            .then(|a| a.pop(rax))
            .check(|seen| assert_eq!((seen.reg(Gpr::Rax), seen.rflags), (0x202, 0x202))),
        row("PUSHF, 16 bits", User, |a| a.pushf(), Next)
            .rflags(0x20_0ED7)
            .setup(|a| a.push(-1))
            .then(|a| {
                a.add(rsp, -6)?;
                a.pop(rax)?;
                a.add(rsp, 6)
            })
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax) >> 48, 0x0ED7)),
        row("PUSHFQ behind an operation", Kernel, PUSHFQ, Next)
            .setup(|a| {
                a.mov(eax, 0x8000_0000u32)?;
                a.add(eax, eax)
            })
            .then(|a| a.pop(rax))
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax), 0xA47, "IF, OF, ZF, PF, CF")),
    ]);
}

#[test]
fn popf() {
    // Everything that POPF can be asked to load, but TF.
    let everything: Code = |a| a.push(0x3F_7ED7);
    let nothing: Code = |a| a.push(0);
    run(&[
        row("POPFQ of ones at CPL 0", Kernel, POPFQ, Next)
            .rflags(2)
            .setup(everything)
            .check(|seen| assert_eq!(seen.rflags, 0x24_7ED7, "RF, VM, VIF and VIP are not loaded")),
        row("POPFQ of zeros at CPL 0", Kernel, POPFQ, Next)
            .rflags(0x24_7ED7)
            .setup(nothing)
            .check(|seen| assert_eq!(seen.rflags, 2)),
        row("POPFQ of ones at CPL 3, IOPL 0", User, POPFQ, Next)
            .rflags(2)
            .setup(everything)
            .check(|seen| assert_eq!(seen.rflags, 0x24_4CD7, "neither IF nor IOPL")),
        row("POPFQ of zeros at CPL 3, IOPL 0", User, POPFQ, Next)
            .rflags(0x202)
            .setup(nothing)
            .check(|seen| assert_eq!(seen.rflags, 0x202, "IF stays")),
        row("POPFQ of zeros at CPL 3, IOPL 3", User, POPFQ, Next)
            .rflags(0x3202)
            .setup(nothing)
            .check(|seen| assert_eq!(seen.rflags, 0x3002, "IOPL stays")),
        row("POPFQ of ones at CPL 1, IOPL 1", Ring1, POPFQ, Next)
            .rflags(0x1002)
            .setup(everything)
            .check(|seen| assert_eq!(seen.rflags, 0x24_5ED7, "IF, but not IOPL")),
        row("POPFQ of ones at CPL 1, IOPL 0", Ring1, POPFQ, Next)
            .rflags(2)
            .setup(everything)
            .check(|seen| assert_eq!(seen.rflags, 0x24_4CD7)),
        row("POPF, 16 bits, at CPL 0", Kernel, |a| a.popf(), Next)
            .rflags(0x24_0002)
            .setup(|a| {
                a.mov(word_ptr(rsp - 2), 0x7ED7)?;
                a.lea(rsp, rsp - 2)
            })
            .check(|seen| assert_eq!(seen.rflags, 0x24_7ED7, "the upper half stays")),
        row("POPFD in compatibility mode, IOPL 0", Compatibility, |a| a.popfd(), Next)
            .rflags(0x202)
            .setup(|a| a.push(0x24_4CD7))
            .check(|seen| assert_eq!(seen.rflags, 0x24_4ED7)),
        row("POPFQ sets TF", User, POPFQ, Expect::FaultAt(DB, None, USER_CODE + 7, 3))
            .setup(|a| a.push(0x302))
            .then(|a| a.nop())
            .check(|seen| assert_eq!((seen.rflags, seen.dr6), (0x302, 0xFFFF_4FF0), "the trap follows the next one")),
        row("MOV SS holds the trap off", Kernel, |a| a.mov(ss, eax), Expect::FaultAt(DB, None, KERNEL_CODE + 14, 0))
            .rflags(0x202)
            .setup(|a| {
                a.mov(eax, u32::from(KERNEL_SS))?;
                a.push(0x102)?;
                a.popfq()
            })
            .then(|a| {
                a.nop()?;
                a.nop()
            }),
    ]);
}
