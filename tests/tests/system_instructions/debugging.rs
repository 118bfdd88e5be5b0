//! Single step, breakpoints, INT1 and INT3 (SDM vol. 3, chapter 17), on both engines.

use iced_x86::code_asm::*;
use lstar_arch::Gpr;
use lstar_runtime::{Registers, Vcpu};

use crate::bench::Expect::{Fault, FaultAt, Next, Trap};
use crate::bench::Level::{Compatibility, Kernel, User};
use crate::bench::*;

const TF: u64 = 0x302;
const BS: u64 = 1 << 14;
const DEBUGCTL_MSR: u32 = 0x1D9;
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

#[test]
fn only_loads_of_ss_hold_steps_off() {
    run(&[
        row(
            "STI is stepped although it holds interrupts off",
            Kernel,
            |a| a.sti(),
            FaultAt(DB, None, KERNEL_CODE + 1, 0),
        )
        .rflags(0x102)
        .check(|seen| assert_eq!(seen.dr6, DR6 | BS)),
        row("HLT is left at once", Kernel, |a| a.hlt(), FaultAt(DB, None, KERNEL_CODE + 1, 0)).rflags(0x102),
        // Measured: each load holds the trap off anew.
        row("MOV SS behind MOV SS", User, |a| a.nop(), Trap(DB))
            .setup(|a| {
                a.mov(ecx, ss)?;
                a.push(TF as i32)?;
                a.popfq()?;
                a.mov(ss, ecx)?;
                a.mov(ss, ecx)
            })
            .check(stepped),
        row("LSS holds nothing off", Compatibility, |a| a.db(&[0x0F, 0xB2, 0x24, 0x24]), Trap(DB))
            .setup(|a| {
                a.mov(ecx, esp)?;
                a.db(&[0x16])?;
                a.push(ecx)?;
                a.push(TF as i32)?;
                a.popfd()
            })
            .check(stepped),
        row("a step of a repetition on Intel's processors pushes RF", User, |a| a.rep().stosb(), Fault(DB, None))
            .rflags(TF)
            .prepare(|vcpu| {
                vcpu.set_reg(Gpr::Rcx, 3);
                vcpu.set_reg(Gpr::Rdi, WATCHED);
            })
            .check(|seen| assert_eq!((seen.rflags >> 16 & 1, seen.dr6), (1, DR6 | BS))),
        row("on AMD's it does not", User, |a| a.rep().stosb(), Fault(DB, None))
            .amd()
            .rflags(TF)
            .prepare(|vcpu| {
                vcpu.set_reg(Gpr::Rcx, 3);
                vcpu.set_reg(Gpr::Rdi, WATCHED);
            })
            .check(|seen| assert_eq!((seen.rflags >> 16 & 1, seen.dr6), (0, DR6 | BS))),
    ]);
}

/// The code of a row at CPL 3 up to the first step, where IA32_DEBUGCTL.BTF is set.
fn by_branches(name: &'static str, code: Code, end: u64) -> Row {
    row(name, User, code, FaultAt(DB, None, USER_CODE + end, 3))
        .rflags(TF)
        .prepare(|vcpu| {
            vcpu.set_reg(Gpr::Rdi, WATCHED);
            assert!(vcpu.write_msr(DEBUGCTL_MSR, 2));
        })
        .check(|seen| assert_eq!((seen.dr6, seen.handler_rflags & 0x100), (DR6 | BS, 0)))
}

#[test]
fn steps_by_branches() {
    fn jumps(a: &mut CodeAssembler, bytes: &[u8]) -> Result<(), iced_x86::IcedError> {
        // XOR EAX, EAX; INC ECX; the jump; NOP; NOP.
        a.db(&[&[0x31, 0xC0, 0xFF, 0xC1], bytes, &[0x90, 0x90, 0x90]].concat())
    }
    run(&[
        by_branches("a jump", |a| jumps(a, &[0xEB, 1]), 7),
        by_branches("a taken jump to the next instruction", |a| jumps(a, &[0x75, 0]), 6),
        by_branches("one that is not taken, then one that is", |a| jumps(a, &[0x74, 1, 0x75, 1]), 9),
        by_branches("LOOP that ends, JRCXZ", |a| jumps(a, &[0xB1, 1, 0xE2, 0, 0x88, 0xC9, 0xE3, 0]), 12),
        by_branches("LOOPNE", |a| jumps(a, &[0xB1, 9, 0x38, 0xC0, 0xE0, 0, 0x38, 0xC1, 0xE0, 0]), 14),
        by_branches("CALL", |a| jumps(a, &[0xE8, 1, 0, 0, 0]), 10),
        by_branches("RET", |a| jumps(a, &[0x68, 8, 0, 0x40, 0, 0xC3]), 8),
        by_branches("a repetition is none", |a| jumps(a, &[0xB9, 5, 0, 0, 0, 0xF3, 0xAA, 0xEB, 0]), 13),
        row("without TF nothing traps", User, |a| a.db(&[0xEB, 0]), Next)
            .prepare(|vcpu| assert!(vcpu.write_msr(DEBUGCTL_MSR, 2))),
        row("#DB clears it", Kernel, |a| a.rdmsr(), Next)
            .boot(|a| a.mov(ecx, DEBUGCTL_MSR))
            .prepare(|vcpu| {
                assert!(vcpu.write_msr(DEBUGCTL_MSR, 2));
                assert!(!vcpu.write_msr(DEBUGCTL_MSR, 1), "there are no records of branches");
            })
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax), 2, "but nothing else")),
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

/// What is read and written where more than the addressing registers decides; hits and misses as measured on a Zen 3
/// processor. The watched bytes are the four at `WATCHED`.
#[test]
fn data_breakpoints_of_vectors_bit_strings_and_images() {
    const ACCESS_4: u64 = 0b1111;
    fn hit(seen: &Seen) {
        assert_eq!(seen.dr6, DR6 | 4, "breakpoint 2 alone");
    }
    fn prepare(vcpu: &mut Vcpu<'_>, kind: u64) {
        vcpu.set_reg(Gpr::Rcx, WATCHED);
        vcpu.set_reg(Gpr::Rdi, WATCHED);
        // Requests all state components.
        vcpu.set_reg(Gpr::Rdx, 0);
        // The mask: elements 2 and 3 of four, or the upper eight bytes; XMM1 selects nothing, XMM2 is an index vector.
        vcpu.set_xmm(0, u128::MAX << 64);
        vcpu.set_xmm(2, 8 << 96);
        watch(vcpu, WATCHED, kind);
    }
    /// A write of an element at WATCHED, or of others only.
    fn on(name: &'static str, kind: u64, code: Code, hits: bool) -> Row {
        let row = row(name, User, code, if hits { Trap(DB) } else { Next });
        let row = if kind == WRITE_4 {
            row.prepare(|vcpu| prepare(vcpu, WRITE_4))
        } else {
            row.prepare(|vcpu| prepare(vcpu, ACCESS_4))
        };
        if hits { row.check(hit) } else { row }
    }
    const MASK_8: Code = |a| a.mov(eax, 7);
    run(&[
        on("a failing CMPXCHG writes", WRITE_4, |a| a.lock().cmpxchg(qword_ptr(rcx), rdx), true),
        on("BT far from its base", ACCESS_4, |a| a.bt(qword_ptr(rcx - 64), rbx), false).setup(|a| a.mov(ebx, 576)),
        on("BTS of the watched bit", WRITE_4, |a| a.bts(qword_ptr(rcx - 64), rbx), true).setup(|a| a.mov(ebx, 512)),
        on("BTS of a bit below its base", WRITE_4, |a| a.bts(dword_ptr(rcx + 4), ebx), true).setup(|a| a.mov(ebx, -1)),
        on("BT does not write", WRITE_4, |a| a.bt(qword_ptr(rcx), rdx), false),
        on("MASKMOVDQU of other bytes", WRITE_4, |a| a.maskmovdqu(xmm1, xmm0), false),
        on("MASKMOVDQU of these", WRITE_4, |a| a.maskmovdqu(xmm1, xmm0), true).setup(|a| a.sub(rdi, 8)),
        on("VMASKMOVPS stores other elements", WRITE_4, |a| a.vmaskmovps(xmmword_ptr(rcx), xmm0, xmm1), false),
        on("VMASKMOVPS stores these", WRITE_4, |a| a.vmaskmovps(xmmword_ptr(rcx - 8), xmm0, xmm1), true),
        on("VMASKMOVPS loads around", ACCESS_4, |a| a.vmaskmovps(xmm1, xmm0, xmmword_ptr(rcx)), true),
        on("VMASKMOVPS loads nothing", ACCESS_4, |a| a.vmaskmovps(xmm1, xmm1, xmmword_ptr(rcx)), false),
        on("VPGATHERDD by its last element", ACCESS_4, |a| a.db(&[0xC4, 0xE2, 0x79, 0x90, 0x4C, 0x11, 0xF8]), true),
        on("VPGATHERDD of nothing", ACCESS_4, |a| a.db(&[0xC4, 0xE2, 0x71, 0x90, 0x5C, 0x11, 0xF8]), false),
        on("CLFLUSH looks like a read", ACCESS_4, |a| a.clflush(byte_ptr(rcx)), true),
        on("CLFLUSH of a neighbour", ACCESS_4, |a| a.clflush(byte_ptr(rcx + 8)), false),
        on("PREFETCH does not access", ACCESS_4, |a| a.prefetcht0(byte_ptr(rcx)), false),
        on("NOP does not access", ACCESS_4, |a| a.nop_1::<AsmMemoryOperand>(dword_ptr(rcx)), false),
        on("FXSAVE", WRITE_4, |a| a.fxsave(byte_ptr(rcx - 64)), true),
        on("XSAVE's header", WRITE_4, |a| a.xsave(ptr(rcx - 512)), true).setup(MASK_8),
        on("XSAVE without the x87", WRITE_4, |a| a.xsave(ptr(rcx - 64)), false).setup(|a| a.mov(eax, 6)),
        on("XRSTOR reads", WRITE_4, |a| a.xrstor(ptr(rcx - 64)), false).setup(|a| a.mov(eax, 1)),
        on("FNSTENV", WRITE_4, |a| a.fnstenv(ptr(rcx - 24)), true),
        on("POP to memory", WRITE_4, |a| a.pop(qword_ptr(rcx)), true).setup(|a| a.push(rdx)),
        on("XLAT", ACCESS_4, |a| a.xlatb(), true).setup(|a| {
            a.lea(rbx, qword_ptr(rcx - 0x20))?;
            a.mov(eax, 0x21)
        }),
    ]);
}

/// Loads of SS hold data breakpoints off, too; between iterations RF is set.
#[test]
fn data_breakpoints_that_come_later() {
    let watched: fn(&mut Vcpu<'_>) = |vcpu| {
        vcpu.set_reg(Gpr::Rcx, 4);
        vcpu.set_reg(Gpr::Rdi, WATCHED - 1);
        vcpu.set_reg(Gpr::Rbx, WATCHED);
        watch(vcpu, WATCHED, ACCESS_1);
    };
    run(&[
        row("MOV SS, then the breakpoint", User, |a| a.nop(), Trap(DB))
            .prepare(|vcpu| {
                vcpu.set_reg(Gpr::Rbx, WATCHED);
                vcpu.memory.write_unchecked(WATCHED, &USER_SS.to_le_bytes()).expect("mapped");
                watch(vcpu, WATCHED, 0b0111);
            })
            .setup(|a| a.mov(ss, word_ptr(rbx))),
        row("between iterations RF is pushed", User, |a| a.rep().stosb(), Fault(DB, None))
            .prepare(watched)
            .check(|seen| assert_eq!((seen.rflags >> 16 & 1, seen.reg(Gpr::Rcx)), (1, 2))),
        row("behind the last one it is not", User, |a| a.rep().stosb(), Trap(DB))
            .prepare(watched)
            .setup(|a| a.mov(ecx, 2))
            .check(|seen| assert_eq!((seen.rflags >> 16 & 1, seen.reg(Gpr::Rcx)), (0, 0))),
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
