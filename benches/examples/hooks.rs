//! Hooks of the library, what they look like and what they cost: a program that calls a function in a loop, with different
//! hooks, beside the same without.
//!
//! `cargo run --release -p lstar_benches --example hooks`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use lstar_arch::Gpr;
use lstar_runtime::{GateAction, Hook, HookHandler, MachineConfig, Registers, Vcpu};
use lstar_tests::bare::{BareSystem, USER_CODE, USER_DATA};

const STOP: u32 = 1;
const ROUNDS: u64 = 4_000_000;
/// Of these, rounds with a hook that is called often.
const FEWER: u64 = 200_000;

/// In each round: a call of a function of two blocks, arithmetic, a load and a store.
fn program(a: &mut CodeAssembler) {
    let (mut top, mut even, mut function) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rdi, USER_DATA).unwrap();
    a.set_label(&mut top).unwrap();
    a.call(function).unwrap();
    a.dec(r15).unwrap();
    a.jnz(top).unwrap();
    a.mov(eax, STOP).unwrap();
    a.syscall().unwrap();
    a.set_label(&mut function).unwrap();
    a.mov(rax, qword_ptr(rdi + 0x40)).unwrap();
    a.imul_3(rax, rax, 0x343FD).unwrap();
    a.add(rax, 0x26_9EC3).unwrap();
    a.test(al, 1).unwrap();
    a.jz(even).unwrap();
    a.xor(rax, r15).unwrap();
    a.rol(rax, 7).unwrap();
    a.set_label(&mut even).unwrap();
    a.mov(qword_ptr(rdi + 0x40), rax).unwrap();
    a.add(rbx, rax).unwrap();
    a.ret().unwrap();
}

/// Runs the program; returns how long it took and what it has computed.
fn run(system: &mut BareSystem, rounds: u64) -> (Duration, u64) {
    system.enter_user(USER_CODE);
    system.machine.memory().write_unchecked(USER_DATA + 0x40, &[1; 8]).expect("data");
    system.machine.vcpu().set_reg(Gpr::R15, rounds);
    let mut serve = |_: &mut Vcpu<'_>, id: u32| if id == STOP { GateAction::Stop } else { GateAction::Resume };
    let started = Instant::now();
    system.run(false, &mut serve);
    (started.elapsed(), system.machine.vcpu().reg(Gpr::Rbx))
}

fn main() {
    let config = MachineConfig { memory_limit: 1 << 30, ..MachineConfig::default() };
    let mut system = BareSystem::boot(config, &[(0, "NtEmpty", 0), (1, "NtStop", 0)], &[]);
    system.load_user(program);
    run(&mut system, 10_000);
    let best = |system: &mut BareSystem, rounds| (0..5).map(|_| run(system, rounds)).min().expect("runs");
    let (plain, expected) = best(&mut system, ROUNDS);
    let (_, expected_fewer) = best(&mut system, FEWER);
    println!("{:44} {:>10} {:>8} {:>12}", "hook", "ns a round", "calls", "ns a call");
    let report = |name: &str, rounds: u64, time: Duration, calls: u64| {
        let per_round = time.as_nanos() as f64 / rounds as f64;
        let extra = time.as_nanos() as f64 - plain.as_nanos() as f64 * rounds as f64 / ROUNDS as f64;
        let per_call = if calls == 0 { String::new() } else { format!("{:.1}", extra / calls as f64) };
        println!("{name:44} {per_round:>10.2} {:>8.1} {per_call:>12}", calls as f64 / rounds as f64);
    };
    report("none", ROUNDS, plain, 0);
    let code = USER_CODE..USER_CODE + 0x1000;
    // Nothing happens there.
    let elsewhere = USER_CODE + 0x8000..USER_CODE + 0x10000;
    for (name, hook, rounds) in [
        ("blocks of other code", Hook::Blocks(elsewhere.clone()), ROUNDS),
        ("instructions of other code", Hook::Instructions(elsewhere), ROUNDS),
        ("accesses to another page", Hook::accesses(USER_DATA + 0x5000..USER_DATA + 0x5008), ROUNDS),
        ("exceptions", Hook::Exceptions, ROUNDS),
        ("blocks", Hook::Blocks(code.clone()), FEWER),
        ("instructions", Hook::Instructions(code), FEWER),
        ("one address", Hook::Address(USER_CODE + 10), FEWER),
        ("writes of the variable", Hook::writes(USER_DATA + 0x40..USER_DATA + 0x48), FEWER),
        ("writes elsewhere on its page", Hook::writes(USER_DATA + 0x80..USER_DATA + 0x88), FEWER),
    ] {
        let calls = Arc::new(AtomicU64::new(0));
        let counter = calls.clone();
        let handler: HookHandler = Box::new(move |_, _| {
            counter.fetch_add(1, Ordering::Relaxed);
            GateAction::Resume
        });
        let id = system.machine.add_hook(hook, handler);
        run(&mut system, 10_000);
        calls.store(0, Ordering::Relaxed);
        let (time, sum) = best(&mut system, rounds);
        assert_eq!(
            sum,
            if rounds == ROUNDS { expected } else { expected_fewer },
            "{name} changes what the program does"
        );
        report(name, rounds, time, calls.load(Ordering::Relaxed) / 5);
        system.machine.remove_hook(id);
        if std::env::args().len() > 1 {
            run(&mut system, 10_000);
            let (time, _) = best(&mut system, FEWER);
            report("  after it", FEWER, time, 0);
        }
    }
    run(&mut system, 10_000);
    let (time, _) = best(&mut system, ROUNDS);
    report("none any more", ROUNDS, time, 0);
}
