//! Small functions that become part of the regions that call them, whatever they do to their stack, on both engines.

use iced_x86::code_asm::*;
use lstar_arch::{Gpr, SegmentIndex};
use lstar_runtime::{Engine, GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, Vcpu, VmExit};

const CODE: u64 = 0x1_4000_0000;
const DATA: u64 = 0x1_5000_0000;
const STACK: u64 = 0x1_6000_0000;

struct Stop;

impl ServiceGate for Stop {
    fn service(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        GateAction::Stop
    }
}

/// All that a program leaves.
#[derive(Debug, PartialEq)]
struct End {
    exit: VmExit,
    registers: [u64; 16],
    rip: u64,
    rflags: u64,
    cr2: u64,
    instructions: u64,
    stack: Vec<u8>,
}

/// Runs `program` in user mode, for at most `budget` instructions, and reports how that ended.
fn end_of(engine: Engine, inline: bool, budget: u64, program: &dyn Fn(&mut CodeAssembler)) -> End {
    let mut assembler = CodeAssembler::new(64).unwrap();
    program(&mut assembler);
    let code = assembler.assemble(CODE).unwrap();
    let mut config = MachineConfig { engine, hot_threshold: 3, memory_limit: 1 << 30, ..MachineConfig::default() };
    config.translator.inline_leaves = inline;
    config.background = false;
    let mut machine = Machine::new(config).unwrap();
    machine.memory().map(CODE, 0x10000, Protection::RWX).unwrap();
    machine.memory().map(DATA, 0x1000, Protection::RW).unwrap();
    machine.memory().map(STACK, 0x10000, Protection::RW).unwrap();
    machine.memory().write_unchecked(CODE, &code).unwrap();
    let mut vcpu = machine.vcpu();
    vcpu.enter_user_mode(0x33, 0x2B);
    vcpu.set_rip(CODE);
    vcpu.set_reg(Gpr::Rsp, STACK + 0x8000);
    vcpu.set_data_segment(SegmentIndex::Ds, 0x2B, u32::MAX);
    let exit = machine.run(&mut Stop, budget);
    let mut stack = vec![0; 0x10000];
    machine.memory().read_unchecked(STACK, &mut stack).unwrap();
    let instructions = machine.statistics().instructions;
    let vcpu = machine.vcpu();
    End {
        exit,
        registers: Gpr::ALL.map(|register| vcpu.reg(register)),
        rip: vcpu.rip(),
        rflags: vcpu.rflags(),
        cr2: vcpu.cr2(),
        instructions,
        stack,
    }
}

/// Compares the engines, with and without inlining, at the end of `program` and at many points before it.
fn compare(program: &dyn Fn(&mut CodeAssembler)) -> End {
    let whole = end_of(Engine::Interpreter, false, 1_000_000, program);
    let length = whole.instructions;
    let last = (0..40).map(|back| length.saturating_sub(back));
    for budget in (1..=12).map(|part| length * part / 13).chain(last) {
        let exact = end_of(Engine::Interpreter, false, budget, program);
        for inline in [false, true] {
            let translated = end_of(Engine::Translator, inline, budget, program);
            assert_eq!(translated, exact, "after {budget} instructions, inlined: {inline}");
        }
    }
    whole
}

/// A loop of a thousand rounds around `body`; what follows `int3` is only called.
fn repeat(a: &mut CodeAssembler, body: impl FnOnce(&mut CodeAssembler), functions: impl FnOnce(&mut CodeAssembler)) {
    let mut top = a.create_label();
    a.mov(r15d, 1000).unwrap();
    a.set_label(&mut top).unwrap();
    body(a);
    a.dec(r15d).unwrap();
    a.jnz(top).unwrap();
    a.int3().unwrap();
    functions(a);
}

#[test]
fn flags_and_registers_pass_through() {
    let program = |a: &mut CodeAssembler| {
        let (mut least, mut first) = (a.create_label(), a.create_label());
        repeat(
            a,
            move |a| {
                a.imul_3(ecx, r15d, 0x9E37_79B1_u32 as i32).unwrap();
                a.cmp(ecx, r15d).unwrap();
                a.call(least).unwrap();
                // The flags are still those of the comparison.
                a.adc(rbx, rax).unwrap();
                a.call(least).unwrap();
                a.sbb(rsi, rax).unwrap();
            },
            move |a| {
                a.set_label(&mut least).unwrap();
                a.mov(eax, ecx).unwrap();
                a.jb(first).unwrap();
                a.mov(eax, r15d).unwrap();
                a.set_label(&mut first).unwrap();
                a.ret().unwrap();
            },
        );
    };
    compare(&program);
}

#[test]
fn a_function_may_change_where_it_returns_to() {
    let program = |a: &mut CodeAssembler| {
        let mut skip = a.create_label();
        let mut next = a.create_label();
        repeat(
            a,
            move |a| {
                // Skips the two bytes behind the call in every other round.
                a.call(skip).unwrap();
                a.inc(ebx).unwrap();
                a.inc(esi).unwrap();
                // Reads its own address, as position-independent code does.
                a.call(next).unwrap();
                a.set_label(&mut next).unwrap();
                a.pop(rdi).unwrap();
            },
            move |a| {
                a.set_label(&mut skip).unwrap();
                a.mov(eax, r15d).unwrap();
                a.and(eax, 1).unwrap();
                a.lea(rax, qword_ptr(rax + rax)).unwrap();
                a.add(qword_ptr(rsp), rax).unwrap();
                a.ret().unwrap();
            },
        );
    };
    let end = compare(&program);
    assert_eq!((end.registers[Gpr::Rbx as usize], end.registers[Gpr::Rsi as usize]), (500, 1000));
}

#[test]
fn a_fault_inside_is_precise() {
    let program = |a: &mut CodeAssembler| {
        let mut store = a.create_label();
        a.mov(rdi, DATA).unwrap();
        repeat(
            a,
            move |a| {
                a.add(ebx, 3).unwrap();
                a.call(store).unwrap();
                a.add(rdi, 8).unwrap();
            },
            move |a| {
                a.set_label(&mut store).unwrap();
                a.push(rbx).unwrap();
                a.lea(rcx, qword_ptr(rbx * 2 + 1)).unwrap();
                // Leaves the page after 512 rounds.
                a.mov(qword_ptr(rdi), rcx).unwrap();
                a.pop(rdx).unwrap();
                a.ret().unwrap();
            },
        );
    };
    let end = compare(&program);
    assert_eq!(end.registers[Gpr::Rdi as usize], DATA + 0x1000);
    assert_eq!(end.registers[Gpr::Rsp as usize], STACK + 0x8000 - 16);
}

#[test]
fn a_stack_that_ends_is_noticed_at_the_call() {
    let program = |a: &mut CodeAssembler| {
        let mut nothing = a.create_label();
        a.lea(rsp, qword_ptr(rsp - 0x8000 + 1000 * 8)).unwrap();
        repeat(
            a,
            move |a| {
                a.call(nothing).unwrap();
                a.lea(rsp, qword_ptr(rsp - 16)).unwrap();
            },
            move |a| {
                a.set_label(&mut nothing).unwrap();
                a.inc(rax).unwrap();
                a.ret().unwrap();
            },
        );
    };
    let end = compare(&program);
    assert_eq!(end.registers[Gpr::Rsp as usize], STACK);
}

#[test]
fn a_function_that_is_rewritten_runs_its_new_code() {
    let program = |a: &mut CodeAssembler| {
        let (mut count, mut go_on) = (a.create_label(), a.create_label());
        repeat(
            a,
            move |a| {
                a.call(count).unwrap();
                a.cmp(r15d, 500).unwrap();
                a.jne(go_on).unwrap();
                // inc ebx becomes dec ebx.
                a.lea(rax, qword_ptr(count)).unwrap();
                a.mov(byte_ptr(rax + 1), 0xCB).unwrap();
                a.set_label(&mut go_on).unwrap();
                a.nop().unwrap();
            },
            move |a| {
                a.set_label(&mut count).unwrap();
                a.inc(ebx).unwrap();
                a.ret().unwrap();
            },
        );
    };
    let end = compare(&program);
    assert_eq!(end.registers[Gpr::Rbx as usize], 501 - 499);
}

#[test]
fn wide_and_odd_returns_are_left_alone() {
    let program = |a: &mut CodeAssembler| {
        let (mut pops, mut tail, mut target) = (a.create_label(), a.create_label(), a.create_label());
        repeat(
            a,
            move |a| {
                a.push(rbx).unwrap();
                a.call(pops).unwrap();
                a.call(tail).unwrap();
            },
            move |a| {
                a.set_label(&mut pops).unwrap();
                a.inc(ebx).unwrap();
                a.ret_1(8).unwrap();
                a.set_label(&mut tail).unwrap();
                a.lea(rax, qword_ptr(target)).unwrap();
                a.jmp(rax).unwrap();
                a.set_label(&mut target).unwrap();
                a.add(esi, ebx).unwrap();
                a.ret().unwrap();
            },
        );
    };
    let end = compare(&program);
    assert_eq!(end.registers[Gpr::Rbx as usize], 1000);
}
