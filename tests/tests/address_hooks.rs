//! Address hooks on functions, system-call stubs and the guest kernel's entry code: each arrival is seen once, and the
//! guest does what it does without them.

use std::collections::BTreeMap;

use iced_x86::code_asm::*;
use lstar_arch::Gpr;
use lstar_nt::direct::DirectDispatch;
use lstar_runtime::{Engine, GateAction, MachineConfig, Registers, ServiceGate, SyscallDispatch, Vcpu, VmExit};
use lstar_tests::bare::{BareSystem, USER_CODE};

const ROUNDS: u64 = 4000;
const STOP: u32 = 1;

/// Counts arrivals; serves the two services.
struct Gate {
    direct: Option<DirectDispatch>,
    arrivals: BTreeMap<u64, u64>,
    short_cuts: u64,
}

impl Gate {
    fn serve(vcpu: &mut Vcpu<'_>) -> GateAction {
        if vcpu.reg(Gpr::Rax) as u32 == STOP { GateAction::Stop } else { GateAction::Resume }
    }
}

impl ServiceGate for Gate {
    fn service(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        Self::serve(vcpu)
    }

    fn system_call(&mut self, vcpu: &mut Vcpu<'_>) -> Option<GateAction> {
        let direct = self.direct.as_mut()?;
        if !direct.enter(vcpu) {
            return None;
        }
        self.short_cuts += 1;
        let action = Self::serve(vcpu);
        if action == GateAction::Resume {
            direct.leave(vcpu);
        }
        Some(action)
    }

    fn address_reached(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        *self.arrivals.entry(vcpu.rip()).or_default() += 1;
        GateAction::Resume
    }

    fn code_changed(&mut self, range: std::ops::Range<u64>) {
        if let Some(direct) = &mut self.direct {
            direct.code_changed(&range);
        }
    }
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

fn run(engine: Engine, dispatch: SyscallDispatch, choose: impl FnOnce(Places, u64) -> Vec<u64>) -> (Gate, u64, u64) {
    let config =
        MachineConfig { engine, dispatch, memory_limit: 1 << 30, hot_threshold: 10, ..MachineConfig::default() };
    let mut system = BareSystem::boot(config, &[(0, "NtEmpty", 0), (1, "NtStop", 0)], &[]);
    let mut places = Places::default();
    system.load_user(|a| places = program(a));
    let lstar = system.kernel.address_of("KiSystemCall64").expect("symbol");
    for address in choose(places, lstar) {
        system.machine.hook_address(address);
    }
    let direct = (dispatch == SyscallDispatch::Direct).then(|| system.direct_dispatch());
    let mut gate = Gate { direct, arrivals: BTreeMap::new(), short_cuts: 0 };
    assert_eq!(system.machine.run(&mut gate, u64::MAX), VmExit::Stopped);
    let instructions = system.machine.statistics().instructions;
    (gate, system.machine.vcpu().reg(Gpr::Rbx), instructions)
}

const CONFIGURATIONS: [(Engine, SyscallDispatch); 3] = [
    (Engine::Interpreter, SyscallDispatch::Architectural),
    (Engine::Translator, SyscallDispatch::Architectural),
    (Engine::Translator, SyscallDispatch::Direct),
];

#[test]
fn functions_and_stubs_are_seen_once_a_call() {
    for (engine, dispatch) in CONFIGURATIONS {
        let (_, sum, instructions) = run(engine, dispatch, |_, _| Vec::new());
        let mut hooked = Places::default();
        let (gate, same_sum, same_count) = run(engine, dispatch, |places, _| {
            hooked = places;
            vec![places.leaf, places.stub, places.back]
        });
        assert_eq!((same_sum, same_count), (sum, instructions), "{engine:?} {dispatch:?}");
        for place in [hooked.leaf, hooked.stub, hooked.back] {
            assert_eq!(gate.arrivals.get(&place), Some(&ROUNDS), "{engine:?} {dispatch:?}");
        }
    }
}

#[test]
fn hooks_in_the_entry_code_are_not_passed_by() {
    for (engine, dispatch) in CONFIGURATIONS {
        let (plain, ..) = run(engine, dispatch, |_, _| Vec::new());
        assert_eq!(plain.short_cuts > 0, dispatch == SyscallDispatch::Direct, "{engine:?}");
        let mut entry = 0;
        let (gate, ..) = run(engine, dispatch, |_, lstar| {
            entry = lstar;
            vec![lstar]
        });
        assert_eq!(gate.arrivals.get(&entry), Some(&(ROUNDS + 1)), "{engine:?} {dispatch:?}");
        assert_eq!(gate.short_cuts, 0);
    }
}
