//! The driver: budgets, outcomes, decoding faults, self-modifying code, block cache.

mod support;

use iced_x86::code_asm::*;
use lstar_arch::{Exception, PAGE_SIZE, PageFault, PageFaultCode};
use lstar_interpreter::{Outcome, RunOptions};
use support::{CODE, DATA, Machine, PLAIN, STACK, UNMAPPED};

fn page_fault(address: u64, code: PageFaultCode) -> Outcome {
    Outcome::Exception(PageFault { address, code }.into())
}

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
    let mut budget = 3;
    let outcome = machine.interpreter.run(&mut machine.cpu, &mut machine.mem, &mut budget, PLAIN);
    assert_eq!((outcome, budget), (Outcome::Retired, 0));
    assert_eq!((machine.cpu.gpr[0], machine.cpu.rip), (3, CODE + 9));
}

#[test]
fn faults_leave_rip_on_the_instruction_and_do_not_count() {
    let mut machine = Machine::new(|a| {
        a.inc(rax)?;
        a.ud2()
    });
    let mut budget = 10;
    let outcome = machine.interpreter.run(&mut machine.cpu, &mut machine.mem, &mut budget, PLAIN);
    assert_eq!((outcome, budget), (Outcome::Exception(Exception::UD), 9));
    assert_eq!(machine.cpu.rip, CODE + 3);
    assert!(machine.interpreter.take_unimplemented().is_empty());
}

#[test]
fn traps_and_software_interrupts_leave_rip_behind() {
    for (bytes, outcome) in [
        (&[0xCC][..], Outcome::Exception(Exception::BP)),
        (&[0xF1], Outcome::Exception(Exception::db(0))),
        (&[0xCD, 0x2E], Outcome::SoftwareInterrupt(0x2E)),
        (&[0x0F, 0x01, 0xC1], Outcome::ServiceGate),
        (&[0xF4], Outcome::Halt),
    ] {
        let mut machine = Machine::with_bytes(bytes);
        assert_eq!(machine.step(), outcome);
        assert_eq!(machine.cpu.rip, CODE + bytes.len() as u64);
        let mut machine = Machine::with_bytes(bytes);
        assert_eq!(machine.run(5), outcome);
        assert_eq!(machine.cpu.rip, CODE + bytes.len() as u64);
    }
}

#[test]
fn user_mode_has_no_gate_and_no_halt() {
    for (bytes, exception) in [(&[0x0F, 0x01, 0xC1][..], Exception::UD), (&[0xF4], Exception::GP0)] {
        let mut machine = Machine::with_bytes(bytes);
        machine.enter_user_mode();
        assert_eq!(machine.run(1), Outcome::Exception(exception));
        assert_eq!(machine.cpu.rip, CODE);
    }
}

#[test]
fn hot_blocks_are_reported_before_they_execute() {
    let mut machine = Machine::new(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.jmp(top)
    });
    let options = RunOptions { hot_threshold: 5, ..RunOptions::PLAIN };
    for _ in 0..2 {
        let outcome = machine.interpreter.run(&mut machine.cpu, &mut machine.mem, &mut 1000, options);
        assert_eq!((outcome, machine.cpu.gpr[0]), (Outcome::Hot, 5));
        assert_eq!(machine.cpu.rip, CODE);
    }
    assert_eq!(machine.run(2), Outcome::Retired);
    assert_eq!(machine.cpu.gpr[0], 6);
}

#[test]
fn stops_at_calls_and_returns() {
    let mut machine = Machine::new(|a| {
        let mut function = a.create_label();
        a.call(function)?;
        a.hlt()?;
        a.set_label(&mut function)?;
        a.nop()?;
        a.ret()
    });
    let options = RunOptions { stop_at_calls: true, ..RunOptions::PLAIN };
    let mut run = || machine.interpreter.run(&mut machine.cpu, &mut machine.mem, &mut 100, options);
    assert_eq!([run(), run(), run()], [Outcome::Call, Outcome::Return, Outcome::Halt]);
    assert_eq!(machine.cpu.gpr[4], STACK);
}

#[test]
fn unknown_instructions_raise_ud_and_are_listed_once() {
    // ENCLU.
    let mut machine = Machine::with_bytes(&[0x0F, 0x01, 0xD7]);
    for _ in 0..2 {
        assert_eq!(machine.run(1), Outcome::Exception(Exception::UD));
    }
    let list = machine.interpreter.take_unimplemented();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].rip, list[0].text.as_str()), (CODE, "enclu"));
}

#[test]
fn decoding_faults() {
    // LOCK on an instruction that cannot be locked; an undefined opcode; sixteen bytes.
    assert_eq!(Machine::with_bytes(&[0xF0, 0x89, 0xC0]).run(1), Outcome::Exception(Exception::UD));
    assert_eq!(Machine::with_bytes(&[0x06]).run(1), Outcome::Exception(Exception::UD));
    let mut long = [0x66; 16];
    long[15] = 0x90;
    assert_eq!(Machine::with_bytes(&long).run(1), Outcome::Exception(Exception::GP0));
    assert_eq!(Machine::with_bytes(&long[1..]).run(1), Outcome::Retired);
    // Nothing executable here.
    let mut machine = Machine::with_bytes(&[]);
    machine.cpu.rip = UNMAPPED;
    assert_eq!(machine.run(1), page_fault(UNMAPPED, PageFaultCode::FETCH));
    machine.cpu.rip = DATA + 8;
    machine.enter_user_mode();
    let code = PageFaultCode::FETCH | PageFaultCode::PRESENT | PageFaultCode::USER;
    assert_eq!(machine.run(1), page_fault(DATA + 8, code));
    machine.cpu.rip = 1 << 47;
    assert_eq!(machine.run(1), Outcome::Exception(Exception::GP0));
}

#[test]
fn instructions_across_pages() {
    let border = CODE + PAGE_SIZE;
    // MOV EAX, 12345678h with two bytes on the first page.
    let mut machine = Machine::with_bytes(&[]);
    machine.mem.poke(border - 2, &[0xB8, 0x78, 0x56, 0x34, 0x12]);
    machine.cpu.rip = border - 2;
    assert_eq!(machine.run(1), Outcome::Retired);
    assert_eq!((machine.cpu.gpr[0], machine.cpu.rip), (0x1234_5678, border + 3));
    // The same at the end of what is executable: the fault names the first missing byte.
    let end = border + PAGE_SIZE;
    machine.mem.poke(end - 2, &[0xB8, 0x78]);
    machine.cpu.rip = end - 2;
    assert_eq!(machine.run(1), page_fault(end, PageFaultCode::FETCH));
    assert_eq!(machine.cpu.rip, end - 2);
    // A whole instruction before that end is fine.
    machine.mem.poke(end - 1, &[0x90]);
    machine.cpu.rip = end - 1;
    assert_eq!(machine.run(1), Outcome::Retired);
}

#[test]
fn modified_code_is_reported_and_executed_after_invalidation() {
    let mut machine = Machine::new(|a| {
        let mut patched = a.create_label();
        a.lea(rbx, ptr(patched))?;
        a.mov(byte_ptr(rbx), 0x40)?;
        a.set_label(&mut patched)?;
        // INC EAX in compatibility mode; here REX, after patching, in front of NOP.
        a.int3()?;
        a.nop()?;
        a.hlt()
    });
    assert_eq!(machine.run(100), Outcome::CodeModified);
    assert_eq!(machine.run(100), Outcome::CodeModified);
    machine.mem.accept_modifications();
    machine.interpreter.invalidate(CODE, CODE + PAGE_SIZE);
    assert_eq!(machine.run(100), Outcome::Halt);
}

#[test]
fn invalidation_drops_overlapping_blocks_only() {
    let mut machine = Machine::with_bytes(&[0xFF, 0xC0, 0xF4]);
    machine.mem.poke(CODE + 64, &[0xFF, 0xC0, 0xF4]);
    let run_at = |machine: &mut Machine, rip| {
        machine.cpu.rip = rip;
        machine.cpu.gpr[0] = 0;
        assert_eq!(machine.run(2), Outcome::Halt);
        machine.cpu.gpr[0]
    };
    assert_eq!([run_at(&mut machine, CODE), run_at(&mut machine, CODE + 64)], [1, 1]);
    // INC EAX becomes DEC EAX behind the interpreter's back.
    machine.mem.poke(CODE, &[0xFF, 0xC8]);
    machine.mem.poke(CODE + 64, &[0xFF, 0xC8]);
    machine.interpreter.invalidate(CODE + 2, CODE + 3);
    assert_eq!([run_at(&mut machine, CODE), run_at(&mut machine, CODE + 64)], [0xFFFF_FFFF, 1]);
    machine.interpreter.invalidate_all();
    assert_eq!(run_at(&mut machine, CODE + 64), 0xFFFF_FFFF);
}

#[test]
fn modes_do_not_share_decodings() {
    // 48h is REX.W in 64-bit mode and DEC EAX in compatibility mode.
    let mut machine = Machine::with_bytes(&[0x48, 0xFF, 0xC0]);
    assert_eq!(machine.run(1), Outcome::Retired);
    assert_eq!((machine.cpu.gpr[0], machine.cpu.rip), (1, CODE + 3));
    machine.cpu.rip = CODE;
    machine.enter_compatibility_mode();
    assert_eq!(machine.run(1), Outcome::Retired);
    assert_eq!((machine.cpu.gpr[0], machine.cpu.rip), (0, CODE + 1));
}
