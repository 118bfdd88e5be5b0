//! Random programs give the same registers, flags, memory and faults on interpreter and translator.
//!
//! A program is a chain of blocks of random instructions, with forward branches, a counted loop and calls, placed at an
//! address of its own. Flags that an instruction leaves undefined are overwritten right behind it, after the defined
//! ones have been saved to memory. Programs end with HLT or with whatever fault they run into.

mod program;

use lstar_arch::{Segment, SegmentIndex};
use lstar_runtime::{Engine, GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, Vcpu, VmExit};
use program::{CODE_SIZE, DATA_SIZE, Layout, NARROW, Program, Rng, STACK_SIZE, START_SIZE, WIDE};

struct Stop;

impl ServiceGate for Stop {
    fn service(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        GateAction::Stop
    }
}

fn machine(engine: Engine, layout: Layout) -> Machine {
    let config = MachineConfig { engine, hot_threshold: 0, memory_limit: 1 << 30, ..MachineConfig::default() };
    let mut machine = Machine::new(config).expect("machine");
    let memory = machine.memory();
    memory.map(layout.code, CODE_SIZE, Protection::RX).expect("code");
    memory.map(layout.data, DATA_SIZE, Protection::RW).expect("data");
    memory.map(layout.stack, STACK_SIZE, Protection::RW).expect("stack");
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

/// Segments of 32-bit user code as Linux has them: flat, but for a null FS, and GS with a limit.
fn enter_compatibility_mode(vcpu: &mut Vcpu<'_>, data: u64) {
    vcpu.enter_user_mode(0x33, 0x2B);
    let state = vcpu.state_mut();
    *state.segment_mut(SegmentIndex::Cs) = Segment::flat_code32(0x23, 3);
    for index in [SegmentIndex::Ds, SegmentIndex::Es] {
        *state.segment_mut(index) = Segment::flat_data(0x2B, 3);
    }
    *state.segment_mut(SegmentIndex::Fs) = Segment::default();
    let base = data + 0x100;
    *state.segment_mut(SegmentIndex::Gs) = Segment { base, limit: 0x7FF, ..Segment::flat_data(0x2B, 3) };
}

fn run(machine: &mut Machine, program: &Program, user: bool) -> Outcome {
    let Layout { bits, data: data_start, stack: stack_start, .. } = program.layout;
    let memory = machine.memory();
    memory.write_unchecked(program.start, &program.code).expect("code is mapped");
    memory.write_unchecked(data_start, &program.data).expect("data is mapped");
    memory.write_unchecked(stack_start, &vec![0; STACK_SIZE as usize]).expect("stack is mapped");
    let mut vcpu = machine.vcpu();
    if bits == 32 {
        enter_compatibility_mode(&mut vcpu, data_start);
    } else if user {
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
    if bits == 64 {
        vcpu.set_gs_base(data_start + 0x100);
    }
    let exit = machine.run(&mut Stop, 200_000);
    let mut data = vec![0; program.data.len()];
    let mut stack = vec![0; STACK_SIZE as usize];
    let memory = machine.memory();
    memory.read_unchecked(data_start, &mut data).expect("data is mapped");
    memory.read_unchecked(stack_start, &mut stack).expect("stack is mapped");
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

fn campaign(layout: Layout, first_seed: u64, count: u64) {
    let mut reference = machine(Engine::Interpreter, layout);
    let mut translated = machine(Engine::Translator, layout);
    let mut failures = 0;
    for index in 0..count {
        let seed = first_seed + index;
        let program = Program::random(seed, layout, layout.code + index * START_SIZE % CODE_SIZE);
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

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn random_programs_agree() {
    campaign(WIDE, number("LOCKSTEP_SEED", 1), number("LOCKSTEP_COUNT", 300));
}

#[test]
fn random_32bit_programs_agree() {
    campaign(NARROW, number("LOCKSTEP_SEED", 1), number("LOCKSTEP_COUNT", 150));
}
