//! Stack instructions and near control transfers: values, sizes, and nothing half done on a fault.

mod support;

use iced_x86::code_asm::*;
use lstar_arch::{Exception, PageFault, PageFaultCode};
use lstar_interpreter::Outcome;
use support::{CODE, DATA, Machine, READ_ONLY, STACK, UNMAPPED};

const NON_CANONICAL: u64 = 1 << 47;

#[test]
fn push_and_pop_by_size() {
    let mut machine = Machine::new(|a| {
        a.push(rax)?;
        a.push(-2)?;
        a.push(ax)?;
        a.push(rsp)?;
        a.pop(rbx)?;
        a.pop(cx)?;
        a.pop(rdx)?;
        a.pop(rsp)
    });
    machine.cpu.gpr[0] = 0x1122_3344_5566_7788;
    machine.cpu.gpr[1] = u64::MAX;
    assert_eq!(machine.run(8), Outcome::Retired);
    assert_eq!(machine.cpu.gpr[3], STACK - 18);
    assert_eq!(machine.cpu.gpr[1], 0xFFFF_FFFF_FFFF_7788);
    assert_eq!(machine.cpu.gpr[2], -2i64 as u64);
    assert_eq!(machine.cpu.gpr[4], 0x1122_3344_5566_7788);
}

#[test]
fn pop_to_memory_addresses_with_the_incremented_stack_pointer() {
    let mut machine = Machine::new(|a| a.pop(qword_ptr(rsp + 8)));
    machine.cpu.gpr[4] = STACK - 32;
    machine.mem.poke(STACK - 32, &[7]);
    assert_eq!(machine.step(), Outcome::Retired);
    assert_eq!(machine.mem.peek_u64(STACK - 16), 7);
    assert_eq!(machine.cpu.gpr[4], STACK - 24);
}

#[test]
fn faults_leave_the_stack_pointer() {
    let unmapped = |write| {
        let code = if write { PageFaultCode::WRITE } else { PageFaultCode::empty() };
        Exception::from(PageFault { address: UNMAPPED, code })
    };
    let cases: [(&[u8], u64, Exception); 9] = [
        (&[0x50], UNMAPPED + 8, unmapped(true)),
        (&[0x58], UNMAPPED, unmapped(false)),
        (&[0xC3], UNMAPPED, unmapped(false)),
        (&[0xE8, 0, 0, 0, 0], UNMAPPED + 8, unmapped(true)),
        (&[0x9C], UNMAPPED + 8, unmapped(true)),
        // ENTER 0, 0.
        (&[0xC8, 0, 0, 0], UNMAPPED + 8, unmapped(true)),
        (&[0x50], NON_CANONICAL + 8, Exception::SS0),
        (&[0x58], NON_CANONICAL, Exception::SS0),
        (&[0xC3], NON_CANONICAL - 4, Exception::SS0),
    ];
    for (bytes, top, exception) in cases {
        let mut machine = Machine::with_bytes(bytes);
        machine.cpu.gpr[4] = top;
        let before = machine.cpu.clone();
        assert_eq!(machine.run(1), Outcome::Exception(exception), "{bytes:x?}");
        assert!(machine.cpu == before, "{bytes:x?} at {top:x}");
    }
    // POP [mem] with a target that cannot be written.
    let mut machine = Machine::new(|a| a.pop(qword_ptr(rbx)));
    machine.cpu.gpr[3] = READ_ONLY;
    machine.cpu.gpr[4] = STACK - 8;
    assert!(matches!(machine.step(), Outcome::Exception(_)));
    assert_eq!(machine.cpu.gpr[4], STACK - 8);
}

#[test]
fn non_canonical_targets_fault_at_the_branch() {
    for assemble in [|a: &mut CodeAssembler| a.call(rax), |a: &mut CodeAssembler| a.jmp(rax)] {
        let mut machine = Machine::new(assemble);
        machine.cpu.gpr[0] = NON_CANONICAL;
        assert_eq!(machine.run(1), Outcome::Exception(Exception::GP0));
        assert_eq!((machine.cpu.rip, machine.cpu.gpr[4]), (CODE, STACK));
    }
    let mut machine = Machine::new(|a| a.ret());
    machine.cpu.gpr[4] = STACK - 8;
    machine.mem.poke(STACK - 8, &NON_CANONICAL.to_le_bytes());
    assert_eq!(machine.run(1), Outcome::Exception(Exception::GP0));
    assert_eq!((machine.cpu.rip, machine.cpu.gpr[4]), (CODE, STACK - 8));
}

#[test]
fn call_and_ret_with_arguments() {
    let mut machine = Machine::new(|a| {
        let mut function = a.create_label();
        a.push(1)?;
        a.call(function)?;
        a.hlt()?;
        a.set_label(&mut function)?;
        a.mov(rax, qword_ptr(rsp + 8))?;
        a.ret_1(8)
    });
    assert_eq!(machine.run(10), Outcome::Halt);
    assert_eq!((machine.cpu.gpr[0], machine.cpu.gpr[4]), (1, STACK));
}

#[test]
fn enter_builds_a_display() {
    let mut machine = Machine::new(|a| {
        a.enter(32, 3)?;
        a.leave()
    });
    let link = STACK - 64;
    machine.cpu.gpr[5] = link;
    machine.cpu.gpr[4] = STACK - 128;
    machine.mem.poke(link - 8, &0x11u64.to_le_bytes());
    machine.mem.poke(link - 16, &0x22u64.to_le_bytes());
    assert_eq!(machine.run(1), Outcome::Retired);
    let frame = STACK - 136;
    assert_eq!((machine.cpu.gpr[5], machine.cpu.gpr[4]), (frame, frame - 24 - 32));
    let words = [frame, frame - 8, frame - 16, frame - 24].map(|address| machine.mem.peek_u64(address));
    assert_eq!(words, [link, 0x11, 0x22, frame]);
    assert_eq!(machine.run(1), Outcome::Retired);
    assert_eq!((machine.cpu.gpr[5], machine.cpu.gpr[4]), (link, STACK - 128));
}

#[test]
fn conditions() {
    // Condition nibble, flags that make it true, flags that make it false.
    let (of, cf, zf, sf, pf) = (0x800, 1, 0x40, 0x80, 4);
    let cases = [
        (0x0, of, 0),
        (0x2, cf, 0),
        (0x4, zf, 0),
        (0x6, cf, 0),
        (0x6, zf, 0),
        (0x8, sf, 0),
        (0xA, pf, 0),
        (0xC, sf, sf | of),
        (0xC, of, 0),
        (0xE, zf, 0),
        (0xE, of, sf | of),
    ];
    for (nibble, yes, no) in cases {
        for (opcode, flags, taken) in
            [(nibble, yes, true), (nibble, no, false), (nibble | 1, yes, false), (nibble | 1, no, true)]
        {
            let mut machine = Machine::with_bytes(&[0x70 | opcode, 0x10]);
            machine.cpu.rflags = 2 | flags;
            assert_eq!(machine.run(1), Outcome::Retired);
            assert_eq!(machine.cpu.rip, CODE + if taken { 0x12 } else { 2 }, "{opcode:x} with {flags:x}");
        }
    }
}

#[test]
fn loops_count_in_the_address_size() {
    // LOOP, LOOPE, LOOPNE, JRCXZ with and without a 67h prefix: opcode bytes, RCX, ZF, taken, RCX after.
    let high = 0x1_0000_0000;
    let cases: [(&[u8], u64, bool, bool, u64); 10] = [
        (&[0xE2, 0x10], 2, false, true, 1),
        (&[0xE2, 0x10], 1, false, false, 0),
        (&[0xE2, 0x10], 0, false, true, u64::MAX),
        (&[0x67, 0xE2, 0x10], high | 1, false, false, 0),
        (&[0x67, 0xE2, 0x10], 0, false, true, 0xFFFF_FFFF),
        (&[0xE1, 0x10], 2, false, false, 1),
        (&[0xE1, 0x10], 2, true, true, 1),
        (&[0xE0, 0x10], 2, true, false, 1),
        (&[0xE3, 0x10], high, false, false, high),
        (&[0x67, 0xE3, 0x10], high, false, true, high),
    ];
    for (bytes, count, zero, taken, after) in cases {
        let mut machine = Machine::with_bytes(bytes);
        machine.cpu.gpr[1] = count;
        machine.cpu.rflags |= if zero { 0x40 } else { 0 };
        assert_eq!(machine.run(1), Outcome::Retired);
        let end = CODE + bytes.len() as u64;
        assert_eq!((machine.cpu.rip, machine.cpu.gpr[1]), (if taken { end + 16 } else { end }, after), "{bytes:x?}");
    }
}

#[test]
fn read_modify_write_faults_report_a_write() {
    for assemble in [
        |a: &mut CodeAssembler| a.add(dword_ptr(rbx), 1),
        |a: &mut CodeAssembler| a.xchg(dword_ptr(rbx), eax),
        |a: &mut CodeAssembler| a.shl(dword_ptr(rbx), 3),
        |a: &mut CodeAssembler| a.bts(dword_ptr(rbx), 3),
        |a: &mut CodeAssembler| a.cmpxchg(dword_ptr(rbx), ecx),
        |a: &mut CodeAssembler| a.lock().xadd(dword_ptr(rbx), ecx),
    ] {
        for (address, present) in [(UNMAPPED, false), (READ_ONLY, true)] {
            let mut machine = Machine::new(assemble);
            machine.cpu.gpr[3] = address;
            machine.enter_user_mode();
            let before = machine.cpu.clone();
            let mut code = PageFaultCode::WRITE | PageFaultCode::USER;
            code.set(PageFaultCode::PRESENT, present);
            assert_eq!(machine.run(1), Outcome::Exception(PageFault { address, code }.into()));
            assert!(machine.cpu == before);
        }
    }
}

#[test]
fn compatibility_mode_pushes_words_of_four_bytes() {
    let mut machine = Machine::with_bytes(&support::assembled(32, |a| {
        a.push(eax)?;
        a.pusha()?;
        a.popa()?;
        a.pop(ecx)?;
        a.mov(edx, dword_ptr(DATA as u32))
    }));
    machine.enter_compatibility_mode();
    machine.cpu.gpr[0] = 0x1234_5678;
    machine.cpu.gpr[4] |= 0xFFFF_0000_0000_0000;
    machine.mem.poke(DATA, &[1, 2, 3, 4]);
    assert_eq!(machine.run(5), Outcome::Retired);
    assert_eq!((machine.cpu.gpr[1], machine.cpu.gpr[2]), (0x1234_5678, 0x0403_0201));
    assert_eq!(machine.cpu.gpr[4], STACK);
}
