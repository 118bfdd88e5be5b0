//! The driver: budgets, outcomes, faults, self-modifying code.

mod support;

use iced_x86::code_asm::*;
use lstar_arch::Exception;
use lstar_interpreter::Outcome;
use support::{CODE, Machine};

#[test]
fn runs_a_loop_to_the_end() {
    let mut machine = Machine::new(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 10)?;
        a.xor(eax, eax)?;
        a.set_label(&mut top)?;
        a.add(eax, ecx)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    });
    assert_eq!(machine.run(1000), Outcome::Halt);
    assert_eq!(machine.cpu.gpr[0], 55);
}

#[test]
fn stops_when_the_budget_is_used_up() {
    let mut machine = Machine::new(|a| {
        for _ in 0..8 {
            a.inc(rax)?;
        }
        a.hlt()
    });
    assert_eq!(machine.run(3), Outcome::Retired);
    assert_eq!(machine.cpu.gpr[0], 3);
    assert_eq!(machine.cpu.rip, CODE + 9);
}

#[test]
fn faults_leave_rip_on_the_instruction() {
    let mut machine = Machine::new(|a| {
        a.inc(rax)?;
        a.ud2()
    });
    assert_eq!(machine.run(10), Outcome::Exception(Exception::UD));
    assert_eq!(machine.cpu.rip, CODE + 3);
}
