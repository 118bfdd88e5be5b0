//! Programs that once went wrong.

use iced_x86::code_asm::*;
use lstar_arch::Gpr;
use lstar_runtime::{Engine, GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, Vcpu, VmExit};

const CODE: u64 = 0x1_4000_0000;
const DATA: u64 = 0x1_5000_0000;

struct Stop;

impl ServiceGate for Stop {
    fn service(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        GateAction::Stop
    }
}

/// Runs a program that ends in VMCALL on both engines and compares the general-purpose registers.
fn agree(program: impl Fn(&mut CodeAssembler)) {
    let results = [Engine::Interpreter, Engine::Translator].map(|engine| {
        let mut assembler = CodeAssembler::new(64).expect("assembler");
        program(&mut assembler);
        let code = assembler.assemble(CODE).expect("program");
        let config = MachineConfig { engine, hot_threshold: 3, memory_limit: 1 << 30, ..MachineConfig::default() };
        let mut machine = Machine::new(config).expect("machine");
        machine.memory().map(CODE, 0x1000, Protection::RX).expect("code");
        machine.memory().map(DATA, 0x20000, Protection::RW).expect("data");
        machine.memory().write_unchecked(CODE, &code).expect("code");
        let mut vcpu = machine.vcpu();
        vcpu.set_rip(CODE);
        vcpu.set_reg(Gpr::Rsp, DATA + 0x1F000);
        assert_eq!(machine.run(&mut Stop, 10_000_000), VmExit::Stopped, "{engine:?}");
        Gpr::ALL.map(|register| machine.vcpu().reg(register))
    });
    assert_eq!(results[0], results[1]);
}

/// A region that starts at the REP instruction inherits the loop's last checkpoint at the loop's head.
#[test]
fn registers_changed_behind_an_inherited_checkpoint_reach_the_block() {
    agree(|a| {
        let mut top = a.create_label();
        let mut copy = a.create_label();
        a.mov(ebx, 20).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(rsi, DATA).unwrap();
        a.mov(rdi, DATA + 0x8000).unwrap();
        a.xor(qword_ptr(rsi), rbx).unwrap();
        a.mov(ecx, 0x4000).unwrap();
        a.rep().movsb().unwrap();
        a.mov(rdx, DATA).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut copy).unwrap();
        a.mov(r8, qword_ptr(rdx + rax)).unwrap();
        a.mov(qword_ptr(rdx + rax + 1), r8).unwrap();
        a.add(rax, 16).unwrap();
        a.cmp(rax, 0x400).unwrap();
        a.jne(copy).unwrap();
        a.add(rbp, qword_ptr(rdx + 0x100)).unwrap();
        a.dec(rbx).unwrap();
        a.jne(top).unwrap();
        a.vmcall().unwrap();
    });
}
