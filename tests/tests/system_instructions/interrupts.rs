//! INT n, INT3, INT1, INTO and IRETQ.

use iced_x86::code_asm::*;
use lstar_arch::Gpr;

use crate::bench::Expect::{At, Fault, Next, Trap};
use crate::bench::Level::{Compatibility, Kernel, Ring1, User};
use crate::bench::*;

/// Error code that names a vector.
const fn of_vector(vector: u8) -> Option<u32> {
    Some((vector as u32) << 3 | 2)
}

const fn of_selector(selector: u16) -> Option<u32> {
    Some(selector as u32 & !3)
}

#[test]
fn software_interrupts() {
    run(&[
        row("INT n with DPL 3", User, |a| a.int(i32::from(OPEN_VECTOR)), Trap(OPEN_VECTOR)).check(|seen| {
            assert_eq!((seen.cs, seen.ss, seen.rflags), (USER_CS, USER_SS, 0x202));
            assert_eq!(seen.handler_rflags, 2, "an interrupt gate clears IF");
        }),
        row("INT n through a trap gate", User, |a| a.int(i32::from(TRAP_VECTOR)), Trap(TRAP_VECTOR))
            .rflags(0x4202)
            .check(|seen| assert_eq!((seen.rflags, seen.handler_rflags), (0x4202, 0x202), "IF stays, NT goes")),
        row("INT n on an IST stack", User, |a| a.int(i32::from(IST_VECTOR)), Trap(IST_VECTOR))
            .check(|seen| assert_eq!(seen.handler_frame, IST_STACK)),
        row("INT n on an IST stack at CPL 0", Kernel, |a| a.int(i32::from(IST_VECTOR)), Trap(IST_VECTOR))
            .check(|seen| assert_eq!(seen.handler_frame, IST_STACK)),
        row("INT n at CPL 0 stays on its stack, aligned", Kernel, |a| a.int(i32::from(OPEN_VECTOR)), Trap(OPEN_VECTOR))
            .setup(|a| a.sub(rsp, 8))
            .check(|seen| {
                assert_eq!(seen.handler_frame, seen.rsp - 8);
                assert_eq!(seen.ss, KERNEL_SS);
            }),
        row("INT n with DPL 0", User, |a| a.int(i32::from(CLOSED_VECTOR)), Fault(GP, of_vector(CLOSED_VECTOR))),
        row(
            "INT n with DPL 0 at CPL 1",
            Ring1,
            |a| a.int(i32::from(CLOSED_VECTOR)),
            Fault(GP, of_vector(CLOSED_VECTOR)),
        ),
        row("INT n with DPL 0 at CPL 0", Kernel, |a| a.int(i32::from(CLOSED_VECTOR)), Trap(CLOSED_VECTOR)),
        row("INT n, not present", User, |a| a.int(i32::from(ABSENT_VECTOR)), Fault(NP, of_vector(ABSENT_VECTOR))),
        row("INT n beyond the limit", User, |a| a.int(i32::from(LIMIT_VECTOR)), Fault(GP, of_vector(LIMIT_VECTOR))),
        row("INT n in compatibility mode", Compatibility, |a| a.int(i32::from(OPEN_VECTOR)), Trap(OPEN_VECTOR))
            .check(|seen| assert_eq!(seen.cs, USER_CS32)),
        row("INT n with TF", User, |a| a.int(i32::from(OPEN_VECTOR)), Trap(OPEN_VECTOR))
            .rflags(0x302)
            .check(|seen| assert_eq!((seen.rflags, seen.handler_rflags), (0x302, 2), "the handler runs first")),
        row("INT3", User, |a| a.int3(), Trap(BP)).check(|seen| assert_eq!(seen.rflags, 0x202)),
        row("INT3 at CPL 0", Kernel, |a| a.int3(), Trap(BP)),
        row("INT3 after RF has gone", User, |a| a.int3(), Trap(BP))
            .rflags(0x1_0202)
            .setup(|a| a.nop())
            .check(|seen| assert_eq!(seen.rflags, 0x202)),
        row("INT3 with DPL 0", User, |a| a.int3(), Fault(GP, of_vector(BP)))
            .prepare(|vcpu| vcpu.memory.write_unchecked(IDT + 16 * u64::from(BP) + 5, &[0x8E]).expect("IDT")),
        row("INT1", User, |a| a.int1(), Trap(DB)),
        row("INTO with OF", Compatibility, |a| a.into(), Trap(OF)).rflags(0xA02),
        row("INTO without OF", Compatibility, |a| a.into(), Next),
        row("INTO with DPL 0", Compatibility, |a| a.into(), Fault(GP, of_vector(OF)))
            .rflags(0xA02)
            .prepare(|vcpu| vcpu.memory.write_unchecked(IDT + 16 * u64::from(OF) + 5, &[0x8E]).expect("IDT")),
        row("INTO in 64-bit mode", User, |a| a.db(&[0xCE]), Fault(UD, None)),
        row("VMCALL at CPL 3", User, |a| a.vmcall(), Fault(UD, None)),
        row("VMCALL at CPL 1", Ring1, |a| a.vmcall(), Fault(UD, None)),
        row("UD2", User, |a| a.ud2(), Fault(UD, None))
            .check(|seen| assert_eq!(seen.rflags, 0x1_0202, "faults push RF")),
    ]);
}

const IRETQ: Code = |a| a.iretq();

/// Pushes an IRETQ frame; R8 to R12 hold RIP, CS, RFLAGS, RSP and SS.
const PUSH_FRAME: Code = |a| {
    for register in [r12, r11, r10, r9, r8] {
        a.push(register)?;
    }
    Ok(())
};

/// Prepares R8 to R12.
macro_rules! frame {
    ($rip:expr, $cs:expr, $rflags:expr, $rsp:expr, $ss:expr) => {
        |vcpu: &mut lstar_runtime::Vcpu<'_>| {
            use lstar_runtime::Registers;
            let values = [$rip, u64::from($cs), $rflags, $rsp, u64::from($ss)];
            for (register, value) in [Gpr::R8, Gpr::R9, Gpr::R10, Gpr::R11, Gpr::R12].into_iter().zip(values) {
                vcpu.set_reg(register, value);
            }
        }
    };
}

const STACK: u64 = 0x50_4000;
/// Address of PUSH_FRAME's end: the instruction behind it is IRETQ.
const BEHIND_IRETQ: u64 = KERNEL_CODE + 12;

#[test]
fn iretq() {
    let refused = |name, code, vector| row(name, Kernel, IRETQ, Fault(vector, code)).setup(PUSH_FRAME);
    run(&[
        row("IRETQ to user mode", Kernel, IRETQ, At(USER_TARGET, 3))
            .setup(PUSH_FRAME)
            .prepare(frame!(USER_TARGET, USER_CS, 0x246, STACK, USER_SS))
            .check(|seen| assert_eq!((seen.rsp, seen.rflags, seen.ss), (STACK, 0x246, USER_SS))),
        row("IRETQ to compatibility mode", Kernel, IRETQ, At(USER_TARGET, 3))
            .setup(PUSH_FRAME)
            .prepare(frame!(USER_TARGET, USER_CS32, 0x202, STACK, USER_SS))
            .check(|seen| assert_eq!(seen.cs, USER_CS32)),
        row("IRETQ loads IOPL at CPL 0", Kernel, IRETQ, At(USER_TARGET, 3))
            .setup(PUSH_FRAME)
            .prepare(frame!(USER_TARGET, USER_CS, 0x7202, STACK, USER_SS))
            .check(|seen| assert_eq!(seen.rflags, 0x7202)),
        row("IRETQ within the kernel", Kernel, IRETQ, Next)
            .setup(PUSH_FRAME)
            .prepare(frame!(BEHIND_IRETQ, KERNEL_CS, 0x8D7, SCRATCH + 0x800, KERNEL_SS))
            .check(|seen| assert_eq!((seen.rsp, seen.rflags), (SCRATCH + 0x800, 0x8D7), "pops RSP and SS too")),
        row("IRETQ within the kernel, null SS", Kernel, IRETQ, Next)
            .setup(PUSH_FRAME)
            .prepare(frame!(BEHIND_IRETQ, KERNEL_CS, 2, SCRATCH + 0x800, 0u16))
            .check(|seen| assert_eq!(seen.ss, 0)),
        row("IRETQ in user mode", User, IRETQ, At(USER_TARGET, 3))
            .setup(PUSH_FRAME)
            .prepare(frame!(USER_TARGET, USER_CS, 0x30D7, STACK, USER_SS))
            .check(|seen| assert_eq!(seen.rflags, 0x2D7, "IF and IOPL stay")),
        row("IRETQ in user mode to the kernel", User, IRETQ, Fault(GP, of_selector(KERNEL_CS)))
            .setup(PUSH_FRAME)
            .prepare(frame!(KERNEL_CODE, KERNEL_CS, 2, STACK, KERNEL_SS)),
        row("IRETQ with NT", Kernel, IRETQ, Fault(GP, Some(0))).rflags(0x4202).setup(PUSH_FRAME).prepare(frame!(
            USER_TARGET,
            USER_CS,
            0x202,
            STACK,
            USER_SS
        )),
        refused("IRETQ, null CS", Some(0), GP).prepare(frame!(USER_TARGET, 3u16, 0x202, STACK, USER_SS)),
        refused("IRETQ, CS is data", of_selector(USER_SS), GP).prepare(frame!(USER_TARGET, USER_SS, 2, STACK, USER_SS)),
        refused("IRETQ, RPL below DPL", of_selector(USER_CS), GP).prepare(frame!(
            USER_TARGET,
            USER_CS & !3,
            2,
            STACK,
            USER_SS
        )),
        refused("IRETQ, CS not present", of_selector(ABSENT_CS), NP).prepare(frame!(
            USER_TARGET,
            ABSENT_CS,
            2,
            STACK,
            USER_SS
        )),
        refused("IRETQ, CS beyond the GDT", of_selector(LIMIT_SELECTOR), GP).prepare(frame!(
            USER_TARGET,
            LIMIT_SELECTOR,
            2,
            STACK,
            USER_SS
        )),
        refused("IRETQ, null SS for CPL 3", Some(0), GP).prepare(frame!(USER_TARGET, USER_CS, 2, STACK, 0u16)),
        refused("IRETQ, SS of another level", of_selector(KERNEL_SS), GP).prepare(frame!(
            USER_TARGET,
            USER_CS,
            2,
            STACK,
            KERNEL_SS
        )),
        refused("IRETQ, SS is code", of_selector(USER_CS), GP).prepare(frame!(USER_TARGET, USER_CS, 2, STACK, USER_CS)),
        refused("IRETQ to nowhere", Some(0), GP)
            .prepare(frame!(0x0000_8000_0000_0000, USER_CS, 2, STACK, USER_SS))
            .check(|seen| assert_eq!(seen.cs, KERNEL_CS)),
        row("IRETQ from a stack that is not canonical", Kernel, IRETQ, Fault(DF, Some(0)))
            .setup(|a| a.mov(rsp, 0x0100_0000_0000_0000u64))
            .check(|seen| assert_eq!(seen.handler_frame, IST_STACK, "#SS finds no stack either")),
        row("IRETQ with TF", Kernel, IRETQ, Expect::FaultAt(DB, None, USER_CODE + 1, 3)).setup(PUSH_FRAME).prepare(
            |vcpu| {
                vcpu.memory.write_unchecked(USER_CODE, &[0x90, 0x90]).expect("code");
                frame!(USER_CODE, USER_CS, 0x302, STACK, USER_SS)(vcpu);
            },
        ),
        row("IRETQ clears TF: the trap still comes", Kernel, IRETQ, Expect::FaultAt(DB, None, USER_TARGET, 3))
            .setup(|a| {
                PUSH_FRAME(a)?;
                a.push(0x102)?;
                a.popfq()
            })
            .prepare(frame!(USER_TARGET, USER_CS, 0x202, STACK, USER_SS)),
    ]);
}
