//! The machine with small guest programs, on both engines.

use iced_x86::code_asm::*;
use lstar_arch::{Gpr, SegmentIndex};
use lstar_runtime::{Engine, GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, Vcpu, VmExit};

const CODE: u64 = 0x1_4000_0000;
const DATA: u64 = 0x1_5000_0000;
const STACK: u64 = 0x1_6000_0000;

/// Stops at the gate.
struct Stop;

impl ServiceGate for Stop {
    fn service(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        GateAction::Stop
    }
}

/// Counts gates, and stops when RAX is zero.
#[derive(Default)]
struct Count(u64);

impl ServiceGate for Count {
    fn service(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        if vcpu.reg(Gpr::Rax) == 0 {
            return GateAction::Stop;
        }
        self.0 += 1;
        vcpu.set_reg(Gpr::Rax, self.0);
        GateAction::Resume
    }
}

fn machine(engine: Engine, program: impl FnOnce(&mut CodeAssembler)) -> Machine {
    configured(MachineConfig { engine, ..MachineConfig::default() }, program)
}

fn configured(config: MachineConfig, program: impl FnOnce(&mut CodeAssembler)) -> Machine {
    let mut assembler = CodeAssembler::new(64).unwrap();
    program(&mut assembler);
    let code = assembler.assemble(CODE).unwrap();
    let config = MachineConfig { hot_threshold: 3, memory_limit: 1 << 30, ..config };
    let mut machine = Machine::new(config).unwrap();
    machine.memory().map(CODE, 0x10000, Protection::RWX).unwrap();
    machine.memory().map(DATA, 0x10000, Protection::RW).unwrap();
    machine.memory().map(STACK, 0x10000, Protection::RW).unwrap();
    machine.memory().write_unchecked(CODE, &code).unwrap();
    let mut vcpu = machine.vcpu();
    vcpu.set_rip(CODE);
    vcpu.set_reg(Gpr::Rsp, STACK + 0x8000);
    machine
}

const ENGINES: [Engine; 2] = [Engine::Interpreter, Engine::Translator];

#[test]
fn a_loop_runs_to_its_end() {
    for engine in ENGINES {
        let mut machine = machine(engine, |a| {
            let mut top = a.create_label();
            a.xor(eax, eax).unwrap();
            a.mov(ecx, 100_000).unwrap();
            a.set_label(&mut top).unwrap();
            a.add(rax, rcx).unwrap();
            a.dec(ecx).unwrap();
            a.jnz(top).unwrap();
            a.vmcall().unwrap();
        });
        assert_eq!(machine.run(&mut Stop, u64::MAX), VmExit::Stopped);
        assert_eq!(machine.vcpu().reg(Gpr::Rax), 5_000_050_000, "{engine:?}");
        assert_eq!(machine.statistics().instructions, 300_003, "{engine:?}");
    }
}

#[test]
fn the_budget_ends_an_endless_loop_and_it_goes_on_from_there() {
    for engine in ENGINES {
        let mut machine = machine(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top).unwrap();
            a.inc(rax).unwrap();
            a.jmp(top).unwrap();
        });
        for _ in 0..10 {
            assert_eq!(machine.run(&mut Stop, 1000), VmExit::Budget);
        }
        assert_eq!(machine.statistics().instructions, 10_000, "{engine:?}");
        assert_eq!(machine.vcpu().reg(Gpr::Rax), 5000, "{engine:?}");
    }
}

/// Calls, loops, a repeated string instruction and an instruction without a lifter, for ever.
fn busy(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    let mut inner = a.create_label();
    let mut function = a.create_label();
    a.set_label(&mut top).unwrap();
    a.mov(ecx, 7).unwrap();
    a.set_label(&mut inner).unwrap();
    a.add(rax, rcx).unwrap();
    a.call(function).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(inner).unwrap();
    a.mov(rdi, DATA).unwrap();
    a.mov(ecx, 9000).unwrap();
    a.rep().stosb().unwrap();
    a.cpuid().unwrap();
    a.jmp(top).unwrap();
    a.set_label(&mut function).unwrap();
    a.lea(rdx, rax + rax * 2).unwrap();
    a.mov(qword_ptr(rsp - 0x40), rdx).unwrap();
    a.ret().unwrap();
}

#[test]
fn a_budget_is_kept_to_the_instruction_on_each_engine() {
    // One machine at a time: each takes much of the host's address space.
    let run = |config| {
        let mut machine = configured(config, busy);
        let states: Vec<_> = (0..3000u64)
            .map(|round| {
                assert_eq!(machine.run(&mut Stop, 1 + round * round % 131), VmExit::Budget);
                let retired = machine.statistics().instructions;
                let vcpu = machine.vcpu();
                (vcpu.rip(), Gpr::ALL.map(|register| vcpu.reg(register)), vcpu.rflags(), retired)
            })
            .collect();
        (states, machine.statistics().regions)
    };
    let (expected, _) = run(MachineConfig { engine: Engine::Interpreter, ..MachineConfig::default() });
    for background in [false, true] {
        let (states, regions) = run(MachineConfig { background, ..MachineConfig::default() });
        let differing = states.iter().zip(&expected).position(|(state, expected)| state != expected);
        if let Some(round) = differing {
            panic!("background: {background}, round {round}: {:x?} instead of {:x?}", states[round], expected[round]);
        }
        assert!(background || regions > 0);
    }
}

#[test]
fn user_mode_calls_nest_and_return() {
    for engine in ENGINES {
        // fib(n): recursion in user mode; a privileged instruction ends it (no IDT: shutdown).
        let mut machine = machine(engine, |a| {
            let mut fib = a.create_label();
            let mut small = a.create_label();
            a.mov(edi, 20).unwrap();
            a.call(fib).unwrap();
            a.mov(qword_ptr(DATA), rax).unwrap();
            a.hlt().unwrap();
            a.set_label(&mut fib).unwrap();
            a.cmp(edi, 2).unwrap();
            a.jb(small).unwrap();
            a.push(rdi).unwrap();
            a.dec(edi).unwrap();
            a.call(fib).unwrap();
            a.pop(rdi).unwrap();
            a.push(rax).unwrap();
            a.sub(edi, 2).unwrap();
            a.call(fib).unwrap();
            a.pop(rcx).unwrap();
            a.add(rax, rcx).unwrap();
            a.ret().unwrap();
            a.set_label(&mut small).unwrap();
            a.mov(eax, edi).unwrap();
            a.ret().unwrap();
        });
        machine.vcpu().enter_user_mode(0x33, 0x2B);
        assert_eq!(machine.run(&mut Stop, u64::MAX), VmExit::Shutdown);
        let mut result = [0; 8];
        machine.memory().read_unchecked(DATA, &mut result).unwrap();
        assert_eq!(u64::from_le_bytes(result), 6765, "{engine:?}");
        assert_eq!(machine.vcpu().reg(Gpr::Rsp), STACK + 0x8000);
    }
}

#[test]
fn gates_resume_behind_the_instruction() {
    for engine in ENGINES {
        let mut machine = machine(engine, |a| {
            let mut top = a.create_label();
            a.mov(ebx, 50).unwrap();
            a.set_label(&mut top).unwrap();
            a.mov(eax, 7).unwrap();
            a.vmcall().unwrap();
            a.add(rsi, rax).unwrap();
            a.dec(ebx).unwrap();
            a.jnz(top).unwrap();
            a.xor(eax, eax).unwrap();
            a.vmcall().unwrap();
        });
        let mut gate = Count::default();
        assert_eq!(machine.run(&mut gate, u64::MAX), VmExit::Stopped);
        assert_eq!(machine.vcpu().reg(Gpr::Rsi), 50 * 51 / 2, "{engine:?}");
    }
}

#[test]
fn a_program_that_rewrites_itself_runs_its_new_code() {
    for engine in ENGINES {
        // The immediate of `mov eax, imm32` in a hot loop counts up by rewriting itself.
        let mut machine = machine(engine, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 200).unwrap();
            a.lea(rdx, ptr(top)).unwrap();
            a.set_label(&mut top).unwrap();
            a.mov(eax, 1000).unwrap();
            a.add(rsi, rax).unwrap();
            a.inc(dword_ptr(rdx + 1)).unwrap();
            a.dec(ecx).unwrap();
            a.jnz(top).unwrap();
            a.vmcall().unwrap();
        });
        assert_eq!(machine.run(&mut Stop, u64::MAX), VmExit::Stopped);
        let expected: u64 = (0..200).map(|i| 1000 + i).sum();
        assert_eq!(machine.vcpu().reg(Gpr::Rsi), expected, "{engine:?}");
    }
}

#[test]
fn breakpoints_stop_before_the_instruction() {
    for engine in ENGINES {
        let mut machine = machine(engine, |a| {
            a.mov(eax, 1).unwrap();
            a.mov(eax, 2).unwrap();
            a.vmcall().unwrap();
        });
        machine.set_breakpoints([CODE + 5].into());
        assert_eq!(machine.run(&mut Stop, u64::MAX), VmExit::Breakpoint(CODE + 5));
        assert_eq!(machine.vcpu().reg(Gpr::Rax), 1);
        assert_eq!(machine.run(&mut Stop, u64::MAX), VmExit::Stopped);
        assert_eq!(machine.vcpu().reg(Gpr::Rax), 2);
        assert_eq!(machine.vcpu().selector(SegmentIndex::Cs), 0x10);
    }
}

/// Counts arrivals at a hooked address, with RAX and the carry flag as they are there.
#[derive(Default)]
struct Arrivals {
    seen: Vec<(u64, u64, bool)>,
    panic: bool,
    skip_to: Option<u64>,
}

impl ServiceGate for Arrivals {
    fn service(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        GateAction::Stop
    }

    fn address_reached(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        assert!(!self.panic, "this hook is broken");
        self.seen.push((vcpu.rip(), vcpu.reg(Gpr::Rax), vcpu.rflags() & 1 != 0));
        if let Some(rip) = self.skip_to {
            vcpu.set_rip(rip);
        }
        GateAction::Resume
    }
}

/// A loop of 5,000 rounds: `sub rax, 2` below zero every other time, `inc rbx` at the returned address, `rep stosb` behind it.
fn hooked_loop(a: &mut CodeAssembler) -> [u64; 3] {
    let mut top = a.create_label();
    a.mov(rcx, 5000u64).unwrap();
    a.mov(rbp, rsp).unwrap();
    a.set_label(&mut top).unwrap();
    a.mov(rax, rcx).unwrap();
    a.and(eax, 1).unwrap();
    a.sub(rax, 1).unwrap();
    let before = a.instructions().len();
    a.inc(rbx).unwrap();
    a.mov(rdx, rcx).unwrap();
    a.lea(rdi, qword_ptr(rbp - 64)).unwrap();
    a.mov(ecx, 16).unwrap();
    let repeated = a.instructions().len();
    a.rep().stosb().unwrap();
    a.mov(rcx, rdx).unwrap();
    a.dec(rcx).unwrap();
    a.jnz(top).unwrap();
    a.vmcall().unwrap();
    let lengths: Vec<u64> = assembled_lengths(a);
    [before, repeated, before + 1].map(|index| CODE + lengths[..index].iter().sum::<u64>())
}

fn assembled_lengths(a: &mut CodeAssembler) -> Vec<u64> {
    let bytes = a.assemble(CODE).unwrap();
    iced_x86::Decoder::with_ip(64, &bytes, CODE, 0).iter().map(|insn| insn.len() as u64).collect()
}

#[test]
fn address_hooks_see_each_arrival_on_both_engines() {
    let mut results = Vec::new();
    for engine in ENGINES {
        let mut addresses = [0; 3];
        let mut machine = machine(engine, |a| addresses = hooked_loop(a));
        let [plain, repeated, _] = addresses;
        assert!(machine.hook_address(plain) && machine.hook_address(repeated) && !machine.hook_address(plain));
        let mut gate = Arrivals::default();
        assert_eq!(machine.run(&mut gate, u64::MAX), VmExit::Stopped);
        let at_plain: Vec<_> = gate.seen.iter().filter(|(rip, ..)| *rip == plain).collect();
        assert_eq!((at_plain.len(), gate.seen.len()), (5000, 10_000), "{engine:?}");
        for (index, (_, value, carry)) in at_plain.into_iter().enumerate() {
            let even = (5000 - index).is_multiple_of(2);
            assert_eq!((*value, *carry), if even { (u64::MAX, true) } else { (0, false) }, "{engine:?}");
        }
        assert_eq!(machine.vcpu().reg(Gpr::Rbx), 5000);
        results.push((gate.seen, machine.statistics().instructions));
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "engines differ");
}

#[test]
fn address_hooks_come_and_go_while_code_is_hot() {
    for engine in ENGINES {
        let mut addresses = [0; 3];
        let mut machine = machine(engine, |a| addresses = hooked_loop(a));
        let [plain, _, behind] = addresses;
        let mut gate = Arrivals::default();
        assert_eq!(machine.run(&mut gate, 20_000), VmExit::Budget);
        assert!(gate.seen.is_empty() && machine.hook_address(plain));
        assert_eq!(machine.run(&mut gate, 10_000), VmExit::Budget);
        let seen = gate.seen.len();
        assert!((200..1000).contains(&seen), "{engine:?}: {seen}");
        // A hook that changes RIP leaves out the instruction.
        gate.skip_to = Some(behind);
        let before = machine.vcpu().reg(Gpr::Rbx);
        assert_eq!(machine.run(&mut gate, 10_000), VmExit::Budget);
        assert!(gate.seen.len() > seen && machine.vcpu().reg(Gpr::Rbx) <= before + 1);
        assert!(machine.unhook_address(plain) && !machine.unhook_address(plain));
        let seen = gate.seen.len();
        assert_eq!(machine.run(&mut gate, u64::MAX), VmExit::Stopped);
        assert_eq!(gate.seen.len(), seen);
    }
}

#[test]
fn a_hook_that_panics_ends_the_run() {
    for engine in ENGINES {
        let mut addresses = [0; 3];
        let mut machine = machine(engine, |a| addresses = hooked_loop(a));
        let mut gate = Arrivals::default();
        assert_eq!(machine.run(&mut gate, 20_000), VmExit::Budget);
        machine.hook_address(addresses[0]);
        gate.panic = true;
        assert_eq!(machine.run(&mut gate, u64::MAX), VmExit::HookPanicked(addresses[0]), "{engine:?}");
        assert_eq!(machine.take_hook_panic().as_deref(), Some("this hook is broken"));
        assert_eq!(machine.vcpu().rip(), addresses[0]);
        gate.panic = false;
        assert_eq!(machine.run(&mut gate, u64::MAX), VmExit::Stopped);
    }
}

/// Asks for a hook in the first service, for its removal in the hundredth, and stops at the two hundredth.
struct FromService {
    address: u64,
    served: u64,
    arrivals: u64,
}

impl ServiceGate for FromService {
    fn service(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        self.served += 1;
        match self.served {
            1 => vcpu.memory.hook_address(self.address),
            100 => vcpu.memory.unhook_address(self.address),
            200 => return GateAction::Stop,
            _ => {}
        }
        GateAction::Resume
    }

    fn address_reached(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        self.arrivals += 1;
        GateAction::Resume
    }
}

#[test]
fn services_add_and_remove_hooks_while_the_guest_runs() {
    for engine in ENGINES {
        let mut machine = machine(engine, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top).unwrap();
            a.vmcall().unwrap();
            a.inc(rbx).unwrap();
            a.jmp(top).unwrap();
        });
        let mut gate = FromService { address: CODE + 3, served: 0, arrivals: 0 };
        assert_eq!(machine.run(&mut gate, u64::MAX), VmExit::Stopped);
        assert_eq!((gate.arrivals, machine.vcpu().reg(Gpr::Rbx)), (99, 199), "{engine:?}");
    }
}
