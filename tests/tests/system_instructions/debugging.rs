//! Single step, breakpoints, INT1 and INT3 (SDM vol. 3, chapter 17), on both engines.

use iced_x86::code_asm::*;
use lstar_arch::Gpr;
use lstar_runtime::{Registers, Vcpu};

use crate::bench::Expect::{Fault, FaultAt, Next, Trap};
use crate::bench::Level::{Compatibility, Kernel, User};
use crate::bench::*;

const TF: u64 = 0x302;
const BS: u64 = 1 << 14;
const DR6: u64 = 0xFFFF_0FF0;
/// In the rows' stack.
const WATCHED: u64 = 0x50_7000;

fn stepped(seen: &Seen) {
    assert_eq!(seen.dr6, DR6 | BS, "BS alone");
    assert_eq!(seen.handler_rflags & 0x100, 0, "the handler does not step");
    assert_eq!(seen.rflags & 0x100, 0x100, "the code goes on stepping");
}

#[test]
fn single_step_over_everything() {
    let mut rows = Vec::new();
    let plain: [(&'static str, Code); 16] = [
        ("TF over NOP", |a| a.nop()),
        ("TF over CPUID", |a| a.cpuid()),
        ("TF over RDTSC", |a| a.rdtsc()),
        ("TF over RDTSCP", |a| a.rdtscp()),
        ("TF over PUSHFQ", |a| a.pushfq()),
        ("TF over PAUSE", |a| a.pause()),
        ("TF over XGETBV", |a| a.xgetbv()),
        ("TF over LEA", |a| a.lea(rax, qword_ptr(rsp + 8))),
        ("TF over LFENCE", |a| a.lfence()),
        ("TF over a shift", |a| a.shl(rax, 3)),
        ("TF over XOR", |a| a.db(&[0x48, 0x31, 0xD2])),
        ("TF over XCHG", |a| a.xchg(rax, rbx)),
        ("TF over MOVDQA", |a| a.movdqa(xmm0, xmm1)),
        ("TF over FNOP", |a| a.fnop()),
        ("TF over a load", |a| a.mov(rax, qword_ptr(rsp - 8))),
        ("TF over MOV from SS", |a| a.mov(eax, ss)),
    ];
    for (name, code) in plain {
        rows.push(row(name, User, code, Trap(DB)).rflags(TF).setup(|_| Ok(())).check(stepped));
    }
    rows.push(row("TF in compatibility mode", Compatibility, |a| a.inc(eax), Trap(DB)).rflags(TF).check(stepped));
    // A repetition stops after each round, on itself.
    rows.push(
        row("TF over REP", User, |a| a.rep().movsb(), Fault(DB, None))
            .rflags(TF)
            .prepare(|vcpu| {
                vcpu.set_reg(Gpr::Rcx, 3);
                vcpu.set_reg(Gpr::Rsi, WATCHED);
                vcpu.set_reg(Gpr::Rdi, WATCHED + 64);
            })
            .check(|seen| assert_eq!((seen.reg(Gpr::Rcx), seen.reg(Gpr::Rsi), seen.dr6), (2, WATCHED + 1, DR6 | BS))),
    );
    rows.push(row("a fault goes before the step", User, |a| a.ud2(), Fault(UD, None)).rflags(TF));
    rows.push(row("INT3 hands over without a step", User, |a| a.int3(), Trap(BP)).rflags(TF));
    run(&rows);
}

#[test]
fn instructions_that_move_the_trap_flag() {
    run(&[
        row("POPFQ that sets TF steps behind the next one", User, |a| a.nop(), Trap(DB))
            .setup(|a| {
                a.push(TF as i32)?;
                a.popfq()
            })
            .check(stepped),
        row("POPFQ that clears TF is stepped", User, |a| a.popfq(), Trap(DB))
            .setup(|a| {
                a.push(0x202)?;
                a.push(TF as i32)?;
                a.popfq()
            })
            .then(|a| a.nop())
            // The step that ends it is behind the first instruction that ran with TF: the POPFQ itself.
            .check(|seen| assert_eq!((seen.dr6, seen.rflags & 0x100), (DR6 | BS, 0))),
        row("MOV SS holds the step off", User, |a| a.nop(), Trap(DB))
            .setup(|a| {
                a.mov(ecx, ss)?;
                a.push(TF as i32)?;
                a.popfq()?;
                a.mov(ss, ecx)
            })
            .check(stepped),
        row("POP SS in compatibility mode holds the step off", Compatibility, |a| a.nop(), Trap(DB))
            .setup(|a| {
                a.db(&[0x16])?;
                a.push(TF as i32)?;
                a.popfd()?;
                a.db(&[0x17])
            })
            .check(stepped),
    ]);
}

fn watch(vcpu: &mut Vcpu<'_>, address: u64, kind_and_length: u64) {
    vcpu.set_debug_register(2, address);
    vcpu.set_debug_register(7, 1 << 4 | kind_and_length << 24);
}

const WRITE_1: u64 = 0b0001;
const WRITE_2: u64 = 0b0101;
const WRITE_4: u64 = 0b1101;
const WRITE_8: u64 = 0b1001;
const ACCESS_1: u64 = 0b0011;
const ACCESS_8: u64 = 0b1011;

#[test]
fn data_breakpoints() {
    fn hit(seen: &Seen) {
        assert_eq!(seen.dr6, DR6 | 4, "breakpoint 2 alone");
    }
    let store: Code = |a| a.mov(byte_ptr(WATCHED + 7), al);
    let load: Code = |a| a.mov(al, byte_ptr(WATCHED + 7));
    run(&[
        row("a write in 8 bytes", User, store, Trap(DB)).prepare(|vcpu| watch(vcpu, WATCHED, WRITE_8)).check(hit),
        row("a write beside 4 bytes", User, store, Next).prepare(|vcpu| watch(vcpu, WATCHED, WRITE_4)),
        row("a write in the second 4 bytes", User, store, Trap(DB))
            .prepare(|vcpu| watch(vcpu, WATCHED + 4, WRITE_4))
            .check(hit),
        row("a write in 2 bytes", User, store, Trap(DB)).prepare(|vcpu| watch(vcpu, WATCHED + 6, WRITE_2)).check(hit),
        row("a write of 1 byte", User, store, Trap(DB)).prepare(|vcpu| watch(vcpu, WATCHED + 7, WRITE_1)).check(hit),
        row("a write beside 1 byte", User, store, Next).prepare(|vcpu| watch(vcpu, WATCHED + 6, WRITE_1)),
        row("a read does not write", User, load, Next).prepare(|vcpu| watch(vcpu, WATCHED, WRITE_8)),
        row("a read is an access", User, load, Trap(DB)).prepare(|vcpu| watch(vcpu, WATCHED, ACCESS_8)).check(hit),
        row("a write is an access", User, store, Trap(DB))
            .prepare(|vcpu| watch(vcpu, WATCHED + 7, ACCESS_1))
            .check(hit),
        row("an access that begins before", User, |a| a.mov(qword_ptr(WATCHED - 7), rax), Trap(DB))
            .prepare(|vcpu| watch(vcpu, WATCHED, WRITE_8))
            .check(hit),
        row("PUSH", User, |a| a.push(rax), Trap(DB)).prepare(|vcpu| watch(vcpu, 0x50_7FF8, WRITE_8)).check(hit),
        row("a repetition of nothing", User, |a| a.rep().movsb(), Next).prepare(|vcpu| {
            vcpu.set_reg(Gpr::Rcx, 0);
            vcpu.set_reg(Gpr::Rsi, WATCHED);
            vcpu.set_reg(Gpr::Rdi, WATCHED);
            watch(vcpu, WATCHED, ACCESS_8);
        }),
        row("a repetition stops at the round that hits", User, |a| a.rep().stosb(), Fault(DB, None))
            .prepare(|vcpu| {
                vcpu.set_reg(Gpr::Rcx, 4);
                vcpu.set_reg(Gpr::Rdi, WATCHED - 1);
                watch(vcpu, WATCHED, WRITE_1);
            })
            .check(|seen| assert_eq!((seen.reg(Gpr::Rcx), seen.dr6), (2, DR6 | 4))),
    ]);
}

#[test]
fn instruction_breakpoints() {
    run(&[
        row("a breakpoint on an instruction is a fault", User, |a| a.nop(), Fault(DB, None))
            .prepare(|vcpu| {
                vcpu.set_debug_register(1, USER_CODE);
                vcpu.set_debug_register(7, 1 << 2);
            })
            .check(|seen| assert_eq!((seen.dr6, seen.rflags & 0x1_0000), (DR6 | 2, 0))),
        row("RF lets it pass", User, |a| a.nop(), Next).rflags(0x1_0202).prepare(|vcpu| {
            vcpu.set_debug_register(1, USER_CODE);
            vcpu.set_debug_register(7, 1 << 2);
        }),
        row("RF lets one instruction pass", User, |a| a.nop(), FaultAt(DB, None, USER_CODE + 1, 3))
            .rflags(0x1_0202)
            .prepare(|vcpu| {
                vcpu.set_debug_register(0, USER_CODE);
                vcpu.set_debug_register(1, USER_CODE + 1);
                vcpu.set_debug_register(7, 0b101);
            })
            .check(|seen| assert_eq!(seen.dr6, DR6 | 2)),
        row("two at one address", User, |a| a.nop(), Fault(DB, None))
            .prepare(|vcpu| {
                vcpu.set_debug_register(0, USER_CODE);
                vcpu.set_debug_register(3, USER_CODE);
                vcpu.set_debug_register(7, 1 << 7 | 1);
            })
            .check(|seen| assert_eq!(seen.dr6, DR6 | 9)),
        row("in compatibility mode", Compatibility, |a| a.nop(), Fault(DB, None)).prepare(|vcpu| {
            vcpu.set_debug_register(1, USER_CODE);
            vcpu.set_debug_register(7, 1 << 2);
        }),
        row("one that is not enabled", User, |a| a.nop(), Next).prepare(|vcpu| vcpu.set_debug_register(1, USER_CODE)),
    ]);
}

#[test]
fn traps_by_instruction() {
    run(&[
        row("INT1", User, |a| a.int1(), Trap(DB)).check(|seen| assert_eq!(seen.dr6 & 0xE00F, 0, "DR6 tells nothing")),
        row("INT1 at CPL 0", Kernel, |a| a.int1(), FaultAt(DB, None, KERNEL_CODE + 1, 0)),
        row("INT3", User, |a| a.int3(), Trap(BP)),
        row("INT 3 in two bytes", User, |a| a.db(&[0xCD, 3]), Trap(BP)),
        row("INT3 in compatibility mode", Compatibility, |a| a.int3(), Trap(BP)),
        row("DR7.GD stops MOV from DR", Kernel, |a| a.mov(rax, dr0), Fault(DB, None))
            .prepare(|vcpu| vcpu.set_debug_register(7, 1 << 13))
            .check(|seen| assert_eq!((seen.dr6, seen.dr7 & 1 << 13), (DR6 | 1 << 13, 0), "the handler may use them")),
    ]);
}
