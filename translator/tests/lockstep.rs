//! Random programs give the same registers, flags, memory and faults on interpreter and translator.
//!
//! A program is a chain of blocks of random instructions, with forward branches, a counted loop and calls, placed at an
//! address of its own. Flags that an instruction leaves undefined are overwritten right behind it, after the defined
//! ones have been saved to memory. Programs end with HLT or with whatever fault they run into.

mod program;

use lstar_runtime::{Engine, GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, Vcpu, VmExit};
use program::{CODE, CODE_SIZE, DATA, DATA_SIZE, Program, Rng, STACK, STACK_SIZE, START_SIZE};

struct Stop;

impl ServiceGate for Stop {
    fn service(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        GateAction::Stop
    }
}

fn machine(engine: Engine) -> Machine {
    let config = MachineConfig { engine, hot_threshold: 0, memory_limit: 1 << 30, ..MachineConfig::default() };
    let mut machine = Machine::new(config).expect("machine");
    let memory = machine.memory();
    memory.map(CODE, CODE_SIZE, Protection::RX).expect("code");
    memory.map(DATA, DATA_SIZE, Protection::RW).expect("data");
    memory.map(STACK, STACK_SIZE, Protection::RW).expect("stack");
    machine
}

/// What a run leaves.
#[derive(Debug, PartialEq)]
struct Outcome {
    exit: VmExit,
    rip: u64,
    gpr: [u64; 16],
    rflags: u64,
    xmm: [[u64; 2]; 16],
    cr2: u64,
    data: Vec<u8>,
    stack: Vec<u8>,
}

fn run(machine: &mut Machine, program: &Program, user: bool) -> Outcome {
    let memory = machine.memory();
    memory.write_unchecked(program.start, &program.code).expect("code is mapped");
    memory.write_unchecked(DATA, &program.data).expect("data is mapped");
    memory.write_unchecked(STACK, &vec![0; STACK_SIZE as usize]).expect("stack is mapped");
    let mut vcpu = machine.vcpu();
    if user {
        vcpu.enter_user_mode(0x33, 0x2B);
    } else {
        vcpu.enter_kernel_mode(0x10, 0x18);
    }
    let state = vcpu.state_mut();
    state.gpr = program.gpr;
    state.xmm = program.xmm;
    state.mxcsr = 0x1F80;
    state.rflags = program.rflags;
    state.rip = program.start;
    state.cr2 = 0;
    vcpu.set_gs_base(DATA + 0x100);
    let exit = machine.run(&mut Stop, 200_000);
    let mut data = vec![0; program.data.len()];
    let mut stack = vec![0; STACK_SIZE as usize];
    let memory = machine.memory();
    memory.read_unchecked(DATA, &mut data).expect("data is mapped");
    memory.read_unchecked(STACK, &mut stack).expect("stack is mapped");
    let vcpu = machine.vcpu();
    let state = vcpu.state();
    Outcome { exit, rip: state.rip, gpr: state.gpr, rflags: state.rflags, xmm: state.xmm, cr2: state.cr2, data, stack }
}

fn report(program: &Program, expected: &Outcome, got: &Outcome) -> String {
    let mut text = format!("seed {}\n{}\n", program.seed, program.listing());
    let mut line = |what: String, a: u64, b: u64| {
        if a != b {
            text += &format!("{what}: interpreter {a:#x}, translator {b:#x}\n");
        }
    };
    line("rip".into(), expected.rip, got.rip);
    line("rflags".into(), expected.rflags, got.rflags);
    line("cr2".into(), expected.cr2, got.cr2);
    for n in 0..16 {
        line(format!("gpr {n}"), expected.gpr[n], got.gpr[n]);
        line(format!("xmm {n} low"), expected.xmm[n][0], got.xmm[n][0]);
        line(format!("xmm {n} high"), expected.xmm[n][1], got.xmm[n][1]);
    }
    for (name, a, b) in [("data", &expected.data, &got.data), ("stack", &expected.stack, &got.stack)] {
        for (at, (a, b)) in a.iter().zip(b).enumerate() {
            line(format!("{name}+{at:#x}"), u64::from(*a), u64::from(*b));
        }
    }
    text + &format!("exit: interpreter {:?}, translator {:?}\n", expected.exit, got.exit)
}

fn campaign(first_seed: u64, count: u64) {
    let mut reference = machine(Engine::Interpreter);
    let mut translated = machine(Engine::Translator);
    let mut failures = 0;
    for index in 0..count {
        let seed = first_seed + index;
        let program = Program::random(seed, CODE + index * START_SIZE % CODE_SIZE);
        let user = Rng::new(seed).below(4) != 0;
        let expected = run(&mut reference, &program, user);
        let got = run(&mut translated, &program, user);
        // A budget is kept only about.
        if expected.exit == VmExit::Budget && got.exit == VmExit::Budget {
            continue;
        }
        if expected != got {
            failures += 1;
            if failures <= 3 {
                eprintln!("{}", report(&program, &expected, &got));
            }
        }
    }
    let statistics = translated.statistics();
    assert_eq!(failures, 0, "of {count} programs");
    assert!(statistics.regions >= count / 2, "only {} regions were translated", statistics.regions);
    assert!(
        statistics.interpreted * 10 < statistics.instructions,
        "{} of {} instructions were interpreted",
        statistics.interpreted,
        statistics.instructions
    );
}

#[test]
fn random_programs_agree() {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    campaign(number("LOCKSTEP_SEED", 1), number("LOCKSTEP_COUNT", 300));
}
