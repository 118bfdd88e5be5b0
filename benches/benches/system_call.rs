//! The round trip SYSCALL -> KiSystemCall64 -> SSDT -> an empty service -> SYSRET, and the host's own beside it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use iced_x86::code_asm::*;
use lstar_runtime::{Engine, GateAction, MachineConfig, SyscallDispatch, Vcpu, VmExit};
use lstar_tests::bare::BareSystem;

const STOP: u32 = 1;

/// Time of `count` calls of an empty service in a guest loop.
fn round_trips(system: &mut BareSystem, direct: bool, count: u64) -> Duration {
    system.enter_user(lstar_tests::bare::USER_CODE);
    lstar_runtime::Registers::set_reg(&mut system.machine.vcpu(), lstar_arch::Gpr::R15, count);
    let start = Instant::now();
    let (exit, _) = system.run(direct, &mut |_: &mut Vcpu<'_>, id| {
        if id == STOP { GateAction::Stop } else { GateAction::Resume }
    });
    let elapsed = start.elapsed();
    assert!(matches!(exit, VmExit::Stopped | VmExit::Budget));
    elapsed
}

fn system(engine: Engine, dispatch: SyscallDispatch) -> BareSystem {
    let config = MachineConfig { engine, dispatch, memory_limit: 1 << 30, ..MachineConfig::default() };
    let mut system = BareSystem::boot(config, &[(0, "NtEmpty", 0), (1, "NtStop", 0)], &[]);
    system.load_user(|a| {
        let mut top = a.create_label();
        let mut stub = a.create_label();
        a.set_label(&mut top).unwrap();
        a.call(stub).unwrap();
        a.dec(r15).unwrap();
        a.jnz(top).unwrap();
        a.mov(eax, STOP).unwrap();
        a.syscall().unwrap();
        // As ntdll's stubs look.
        a.set_label(&mut stub).unwrap();
        a.mov(r10, rcx).unwrap();
        a.mov(eax, 0).unwrap();
        a.syscall().unwrap();
        a.ret().unwrap();
    });
    system
}

fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("system_call");
    for (name, engine, dispatch) in [
        ("interpreter", Engine::Interpreter, SyscallDispatch::Architectural),
        ("architectural", Engine::Translator, SyscallDispatch::Architectural),
        ("direct", Engine::Translator, SyscallDispatch::Direct),
    ] {
        let mut system = system(engine, dispatch);
        let direct = dispatch == SyscallDispatch::Direct;
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| round_trips(&mut system, direct, count));
        });
    }
    group.bench_function("host_getppid", |bencher| {
        bencher.iter(|| black_box(std::os::unix::process::parent_id()));
    });
    group.finish();
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
