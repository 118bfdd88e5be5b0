//! The library's hooks: both engines call the same ones, in the same order and with the same state, whatever programs do; they
//! come and go while code is hot; what panics in one ends its run only.

use std::sync::{Arc, Mutex};

use iced_x86::code_asm::*;
use lstar_arch::Gpr;
use lstar_runtime::{
    Engine, GateAction, Hook, HookEvent, HookHandler, MachineConfig, Registers, SyscallDispatch, Vcpu, VmExit,
};
use lstar_tests::bare::{BareSystem, USER_CODE, USER_DATA};
use lstar_tests::differential::generate::Generator;
use lstar_tests::differential::translated::Translated;
use lstar_tests::differential::{CODE, CODE_SIZE, DATA, Engine as _, Memory, Outcome, STACK, STACK_SIZE};

/// What hooks have seen: events with the instructions retired before and the registers.
type Log = Arc<Mutex<Vec<(HookEvent, u64, [u64; 16])>>>;

fn recorder(log: &Log) -> HookHandler {
    let log = log.clone();
    Box::new(move |vcpu, event| {
        let registers = Gpr::ALL.map(|register| vcpu.reg(register));
        log.lock().expect("log").push((*event, vcpu.retired, registers));
        GateAction::Resume
    })
}

fn take(log: &Log) -> Vec<(HookEvent, u64, [u64; 16])> {
    std::mem::take(&mut log.lock().expect("log"))
}

/// Sets of hooks on generated programs.
fn hooks_for(case: u64) -> Vec<Hook> {
    let code = CODE..CODE + CODE_SIZE;
    // Somewhere in the code, so that blocks begin before the range and end behind it.
    let part = CODE + 5 + case % 23..CODE + 30 + case % 41;
    match case % 6 {
        0 => vec![Hook::Blocks(code)],
        1 => vec![Hook::Instructions(code)],
        2 => vec![Hook::Blocks(part), Hook::Exceptions],
        3 => vec![Hook::Instructions(part.clone()), Hook::Blocks(part.start + 8..CODE + CODE_SIZE)],
        4 => vec![Hook::accesses(DATA + 0x100..DATA + 0x900), Hook::PrivilegeSwitches],
        _ => vec![Hook::writes(STACK + 0x700..STACK + STACK_SIZE), Hook::reads(DATA..DATA + 8), Hook::Blocks(code)],
    }
}

#[test]
fn both_engines_call_the_same_hooks_in_generated_programs() {
    const PROGRAMS: u64 = 1500;
    let logs: [Log; 2] = Default::default();
    let mut engines = [Engine::Interpreter, Engine::Translator]
        .map(|engine| Translated::new(MachineConfig { engine, ..Translated::config() }).expect("machine"));
    let mut generator = Generator::new(7);
    let (mut seen, mut compared) = (0, 0);
    for case in 0..PROGRAMS {
        generator.start(case);
        let program = generator.program(5 + (case % 50) as usize);
        let Some(assembled) = program.assemble() else { continue };
        let state = generator.state(&program, false);
        let image = Memory::image(state.image);
        let mut memory = Memory::zeroed();
        (memory.data, memory.stack) = (image.data, image.stack);
        let mut outcomes = [Outcome::default(), Outcome::default()];
        for ((engine, log), outcome) in engines.iter_mut().zip(&logs).zip(&mut outcomes) {
            engine.load(&assembled.code);
            let added: Vec<_> =
                hooks_for(case).into_iter().map(|hook| engine.machine.add_hook(hook, recorder(log))).collect();
            engine.run(&state, &memory, outcome);
            added.into_iter().for_each(|id| engine.machine.remove_hook(id));
        }
        // Flags that an instruction leaves undefined may lead engines apart.
        let same = outcomes[0].rip == outcomes[1].rip && outcomes[0].gpr == outcomes[1].gpr;
        let [literal, translated] = [take(&logs[0]), take(&logs[1])];
        if program.uses_undefined().is_some() || !same {
            continue;
        }
        compared += 1;
        seen += literal.len();
        if literal != translated {
            let at = literal.iter().zip(&translated).take_while(|(a, b)| a == b).count();
            let code: String = assembled.code.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!(
                "case {case}, event {at}:\n{:x?}\n{:x?}\nbefore: {:x?}\n{} and {} events\n{code}",
                literal.get(at),
                translated.get(at),
                at.checked_sub(1).map(|before| &literal[before].0),
                literal.len(),
                translated.len()
            );
        }
    }
    assert!(compared > PROGRAMS as usize / 2 && seen > 5000, "{compared} programs, {seen} events");
}

const STOP: u32 = 1;
const ROUNDS: u64 = 3000;

/// In each round: a call, a block that is also jumped into, stores, a system call, and now and then a division by zero, whose handler
/// nobody has: the observer stops there.
fn program(a: &mut CodeAssembler) {
    let (mut top, mut inner, mut skip, mut function) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.mov(rdi, USER_DATA).unwrap();
    a.mov(r15, ROUNDS).unwrap();
    a.set_label(&mut top).unwrap();
    a.mov(eax, r15d).unwrap();
    a.test(al, 1).unwrap();
    a.jz(inner).unwrap();
    a.add(rbx, rax).unwrap();
    a.cpuid().unwrap();
    a.set_label(&mut inner).unwrap();
    a.mov(qword_ptr(rdi + 0x40), r15).unwrap();
    a.add(qword_ptr(rdi + 0x48), 1).unwrap();
    a.call(function).unwrap();
    a.test(r15b, 7).unwrap();
    a.jnz(skip).unwrap();
    a.xor(eax, eax).unwrap();
    a.syscall().unwrap();
    a.mov(rdi, USER_DATA).unwrap();
    a.set_label(&mut skip).unwrap();
    a.dec(r15).unwrap();
    a.jnz(top).unwrap();
    a.mov(eax, STOP).unwrap();
    a.syscall().unwrap();
    a.set_label(&mut function).unwrap();
    a.mov(rcx, qword_ptr(rdi + 0x48)).unwrap();
    a.mov(ecx, 5).unwrap();
    a.lea(rsi, qword_ptr(rdi + 0x100)).unwrap();
    a.mov(rdx, rdi).unwrap();
    a.mov(rdi, rsi).unwrap();
    a.rep().stosb().unwrap();
    a.mov(rdi, rdx).unwrap();
    a.ret().unwrap();
}

const CONFIGURATIONS: [(Engine, SyscallDispatch, bool); 4] = [
    (Engine::Interpreter, SyscallDispatch::Architectural, false),
    (Engine::Translator, SyscallDispatch::Architectural, false),
    (Engine::Translator, SyscallDispatch::Direct, false),
    (Engine::Translator, SyscallDispatch::Direct, true),
];

fn boot((engine, dispatch, background): (Engine, SyscallDispatch, bool)) -> BareSystem {
    let config = MachineConfig {
        engine,
        dispatch,
        background,
        memory_limit: 1 << 30,
        hot_threshold: 10,
        ..MachineConfig::default()
    };
    let mut system = BareSystem::boot(config, &[(0, "NtEmpty", 0), (1, "NtStop", 0)], &[]);
    system.load_user(program);
    system
}

fn serve(_: &mut Vcpu<'_>, id: u32) -> GateAction {
    if id == STOP { GateAction::Stop } else { GateAction::Resume }
}

#[test]
fn every_kind_of_hook_sees_the_same_on_both_engines() {
    let user = USER_CODE..USER_CODE + 0x1000;
    for hooks in [
        vec![Hook::Blocks(user.clone())],
        vec![Hook::Instructions(user.clone())],
        vec![Hook::Blocks(0..u64::MAX)],
        vec![Hook::accesses(USER_DATA + 0x44..USER_DATA + 0x50)],
        vec![Hook::writes(USER_DATA + 0x100..USER_DATA + 0x103), Hook::Blocks(user.start + 20..user.end)],
        vec![Hook::PrivilegeSwitches, Hook::Exceptions],
        vec![Hook::Address(USER_CODE + 20), Hook::Instructions(USER_CODE + 20..USER_CODE + 21)],
    ] {
        let mut first: Option<Vec<_>> = None;
        for configuration in CONFIGURATIONS {
            let log = Log::default();
            let mut system = boot(configuration);
            for hook in &hooks {
                system.machine.add_hook(hook.clone(), recorder(&log));
            }
            let direct = configuration.1 == SyscallDispatch::Direct;
            assert_eq!(system.run(direct, &mut serve).0, VmExit::Stopped);
            let events = take(&log);
            assert!(events.len() >= ROUNDS as usize / 8, "{hooks:x?}: {}", events.len());
            match &first {
                Some(expected) => {
                    let at = expected.iter().zip(&events).take_while(|(a, b)| a == b).count();
                    assert!(
                        *expected == events,
                        "{hooks:x?} {configuration:?} event {at}: {:x?} {:x?}",
                        expected.get(at),
                        events.get(at)
                    );
                }
                None => first = Some(events),
            }
        }
    }
}

#[test]
fn hooks_add_and_remove_hooks_and_unhooked_code_is_fast_again() {
    for configuration in CONFIGURATIONS {
        let mut system = boot(configuration);
        let user = USER_CODE..USER_CODE + 0x1000;
        // The first block asks for a hook on instructions; its 100th call asks for the end of both.
        let (mut blocks, mut inner) = (0, None);
        let counted = Arc::new(Mutex::new(0));
        let (count, range) = (counted.clone(), user.clone());
        let own = Arc::new(Mutex::new(None));
        let name = own.clone();
        let id = system.machine.add_hook(
            Hook::Blocks(user.clone()),
            Box::new(move |vcpu, _| {
                blocks += 1;
                if blocks == 1 {
                    let count = count.clone();
                    let handler: HookHandler = Box::new(move |_, _| {
                        *count.lock().expect("count") += 1;
                        GateAction::Resume
                    });
                    inner = Some(vcpu.memory.add_hook(Hook::Instructions(range.clone()), handler));
                } else if blocks == 100 {
                    inner
                        .take()
                        .into_iter()
                        .chain(*name.lock().expect("name"))
                        .for_each(|id| vcpu.memory.remove_hook(id));
                }
                assert!(blocks <= 100, "the hook is gone");
                GateAction::Resume
            }),
        );
        *own.lock().expect("name") = Some(id);
        assert_eq!(system.run(false, &mut serve).0, VmExit::Stopped);
        let instructions = *counted.lock().expect("count");
        assert!((200..1000).contains(&instructions), "{configuration:?}: {instructions}");
        let statistics = system.machine.statistics();
        let share = statistics.interpreted as f64 / statistics.instructions as f64;
        assert!(
            configuration.0 == Engine::Interpreter || configuration.2 || share < 0.2,
            "{configuration:?}: {share} is interpreted"
        );
    }
}

#[test]
fn hooks_stop_panic_and_lead_elsewhere() {
    for configuration in CONFIGURATIONS {
        let mut system = boot(configuration);
        let user = USER_CODE..USER_CODE + 0x1000;
        let mut calls = 0;
        system.machine.add_hook(
            Hook::Blocks(user),
            Box::new(move |_, _| {
                calls += 1;
                assert!(calls != 500, "this hook is broken");
                if calls % 100 == 0 { GateAction::Stop } else { GateAction::Resume }
            }),
        );
        let mut stops = 0;
        let exit = loop {
            match system.run(false, &mut serve).0 {
                VmExit::Stopped if system.machine.vcpu().cpl() == 3 => stops += 1,
                exit => break exit,
            }
        };
        assert_eq!((stops, matches!(exit, VmExit::HookPanicked(_))), (4, true), "{configuration:?} {exit:?}");
        assert_eq!(system.machine.take_hook_panic().as_deref(), Some("this hook is broken"));
        // The block is told again, and the guest does what it would have done.
        while system.run(false, &mut serve).0 == VmExit::Stopped && system.machine.vcpu().cpl() == 3 {}
        let mut plain = boot(configuration);
        plain.run(false, &mut serve);
        assert_eq!(system.machine.statistics().instructions, plain.machine.statistics().instructions);
        assert_eq!(system.machine.vcpu().reg(Gpr::Rbx), plain.machine.vcpu().reg(Gpr::Rbx), "{configuration:?}");
    }
}
