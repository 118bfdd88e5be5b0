//! Address hooks on functions, system-call stubs and the guest kernel's entry code: each arrival is seen once, and the
//! guest does what it does without them.

use std::collections::BTreeMap;

use iced_x86::code_asm::*;
use lstar_arch::Gpr;
use lstar_runtime::{Engine, GateAction, MachineConfig, Registers, SyscallDispatch, Vcpu, VmExit};
use lstar_tests::bare::{BareSystem, USER_CODE};

const ROUNDS: u64 = 4000;
const STOP: u32 = 1;

/// What a run did.
struct Run {
    arrivals: BTreeMap<u64, u64>,
    short_cuts: u64,
    /// What the leaf function has added up.
    sum: u64,
    instructions: u64,
}

/// Addresses in the user program.
#[derive(Clone, Copy, Default)]
struct Places {
    leaf: u64,
    stub: u64,
    back: u64,
}

/// Calls a leaf function and a service in each round.
fn program(a: &mut CodeAssembler) -> Places {
    let (mut top, mut leaf, mut stub) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(r15, ROUNDS).unwrap();
    a.set_label(&mut top).unwrap();
    a.call(leaf).unwrap();
    a.call(stub).unwrap();
    let back = a.instructions().len();
    a.dec(r15).unwrap();
    a.jnz(top).unwrap();
    a.mov(eax, STOP).unwrap();
    a.syscall().unwrap();
    let leaf_at = a.instructions().len();
    a.set_label(&mut leaf).unwrap();
    a.lea(rbx, ptr(rbx + r15)).unwrap();
    a.ret().unwrap();
    let stub_at = a.instructions().len();
    a.set_label(&mut stub).unwrap();
    a.mov(r10, rcx).unwrap();
    a.mov(eax, 0).unwrap();
    a.syscall().unwrap();
    a.ret().unwrap();
    let bytes = a.assemble(USER_CODE).unwrap();
    let decoder = iced_x86::Decoder::with_ip(64, &bytes, USER_CODE, 0);
    let addresses: Vec<u64> = decoder.into_iter().map(|insn| insn.ip()).collect();
    Places { leaf: addresses[leaf_at], stub: addresses[stub_at], back: addresses[back] }
}

fn run(engine: Engine, dispatch: SyscallDispatch, choose: impl FnOnce(Places, u64) -> Vec<u64>) -> Run {
    let config =
        MachineConfig { engine, dispatch, memory_limit: 1 << 30, hot_threshold: 10, ..MachineConfig::default() };
    let mut system = BareSystem::boot(config, &[(0, "NtEmpty", 0), (1, "NtStop", 0)], &[]);
    let mut places = Places::default();
    system.load_user(|a| places = program(a));
    let lstar = system.kernel.address_of("KiSystemCall64").expect("symbol");
    for address in choose(places, lstar) {
        system.machine.hook_address(address);
    }
    let mut serve = |_: &mut Vcpu<'_>, id: u32| if id == STOP { GateAction::Stop } else { GateAction::Resume };
    let (exit, short_cuts, arrivals) = system.run_hooked(dispatch == SyscallDispatch::Direct, &mut serve);
    assert_eq!(exit, VmExit::Stopped);
    let instructions = system.machine.statistics().instructions;
    Run { arrivals, short_cuts, sum: system.machine.vcpu().reg(Gpr::Rbx), instructions }
}

const CONFIGURATIONS: [(Engine, SyscallDispatch); 3] = [
    (Engine::Interpreter, SyscallDispatch::Architectural),
    (Engine::Translator, SyscallDispatch::Architectural),
    (Engine::Translator, SyscallDispatch::Direct),
];

#[test]
fn functions_and_stubs_are_seen_once_a_call() {
    for (engine, dispatch) in CONFIGURATIONS {
        let plain = run(engine, dispatch, |_, _| Vec::new());
        let mut hooked = Places::default();
        let gate = run(engine, dispatch, |places, _| {
            hooked = places;
            vec![places.leaf, places.stub, places.back]
        });
        assert_eq!((gate.sum, gate.instructions), (plain.sum, plain.instructions), "{engine:?} {dispatch:?}");
        for place in [hooked.leaf, hooked.stub, hooked.back] {
            assert_eq!(gate.arrivals.get(&place), Some(&ROUNDS), "{engine:?} {dispatch:?}");
        }
    }
}

#[test]
fn hooks_in_the_entry_code_are_not_passed_by() {
    for (engine, dispatch) in CONFIGURATIONS {
        let plain = run(engine, dispatch, |_, _| Vec::new());
        assert_eq!(plain.short_cuts > 0, dispatch == SyscallDispatch::Direct, "{engine:?}");
        let mut entry = 0;
        let gate = run(engine, dispatch, |_, lstar| {
            entry = lstar;
            vec![lstar]
        });
        assert_eq!(gate.arrivals.get(&entry), Some(&(ROUNDS + 1)), "{engine:?} {dispatch:?}");
        assert_eq!(gate.short_cuts, 0);
    }
}
