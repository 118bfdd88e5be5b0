//! Single step, resume flag, interrupt shadow, breakpoints, alignment check, and system instructions by the driver.

mod support;

use iced_x86::code_asm::*;
use lstar_arch::control::dr;
use lstar_arch::cpuid::Features;
use lstar_arch::{Exception, PageFault, PageFaultCode, Rflags, Segment, SegmentIndex};
use lstar_interpreter::Outcome;
use support::{CODE, DATA, Machine, READ_ONLY, STACK, UNMAPPED};

const TF: u64 = Rflags::TF.bits();
const RF: u64 = Rflags::RF.bits();
const STEP: Outcome = Outcome::Exception(Exception::db(dr::DR6_BS));

fn breakpoint(hits: u64) -> Outcome {
    Outcome::Exception(Exception::db(hits))
}

#[test]
fn single_step_traps_after_each_instruction() {
    let mut machine = Machine::new(|a| {
        a.inc(rax)?;
        a.inc(rax)
    });
    machine.cpu.rflags |= TF;
    assert_eq!((machine.run(10), machine.cpu.rip), (STEP, CODE + 3));
    assert_eq!((machine.run(10), machine.cpu.rip), (STEP, CODE + 6));
}

#[test]
fn popf_that_sets_or_clears_tf() {
    let mut machine = Machine::new(|a| {
        a.popfq()?;
        a.nop()?;
        a.push(2)?;
        a.popfq()?;
        a.nop()?;
        a.hlt()
    });
    machine.cpu.gpr[4] = STACK - 8;
    machine.mem.poke(STACK - 8, &(TF | 2).to_le_bytes());
    // Not after the POPF that sets it, but after the one that clears it.
    assert_eq!((machine.run(10), machine.cpu.rip), (STEP, CODE + 2));
    assert_eq!((machine.run(10), machine.cpu.rip), (STEP, CODE + 4));
    assert_eq!((machine.run(10), machine.cpu.rip), (STEP, CODE + 5));
    assert_eq!(machine.run(10), Outcome::Halt);
}

#[test]
fn loading_ss_holds_the_trap_off() {
    let mut machine = Machine::new(|a| {
        a.mov(ss, eax)?;
        a.nop()?;
        a.nop()
    });
    // A null selector is a valid SS at CPL 0 in 64-bit mode.
    machine.cpu.rflags |= TF;
    assert_eq!((machine.run(10), machine.cpu.rip), (STEP, CODE + 3));
    assert_eq!(machine.cpu.interrupt_shadow, 0);
}

#[test]
fn sti_shadows_one_instruction() {
    let mut machine = Machine::new(|a| {
        a.sti()?;
        a.nop()?;
        a.nop()
    });
    assert_eq!(machine.run(1), Outcome::Retired);
    assert_eq!(machine.cpu.interrupt_shadow, 1);
    assert_eq!(machine.run(1), Outcome::Retired);
    assert_eq!(machine.cpu.interrupt_shadow, 0);
}

#[test]
fn a_repetition_traps_after_each_iteration() {
    let mut machine = Machine::new(|a| a.rep().stosb());
    machine.cpu.rflags |= TF;
    machine.cpu.gpr[1] = 2;
    machine.cpu.gpr[7] = DATA;
    assert_eq!((machine.run(1), machine.cpu.rip, machine.cpu.gpr[1]), (STEP, CODE, 1));
    assert_eq!((machine.run(1), machine.cpu.gpr[1]), (STEP, 0));
}

#[test]
fn instruction_breakpoints_and_the_resume_flag() {
    let mut machine = Machine::new(|a| {
        a.inc(rax)?;
        a.inc(rax)?;
        a.hlt()
    });
    machine.cpu.dr[1] = CODE + 3;
    machine.cpu.dr[7] |= 1 << 2;
    assert_eq!((machine.run(10), machine.cpu.rip), (breakpoint(2), CODE + 3));
    // RF lets the instruction pass and is gone afterwards.
    machine.cpu.rflags |= RF;
    assert_eq!((machine.run(1), machine.cpu.gpr[0]), (Outcome::Retired, 2));
    assert_eq!(machine.cpu.rflags & RF, 0);
    assert_eq!(machine.run(10), Outcome::Halt);
}

#[test]
fn data_breakpoints_trap_after_the_access() {
    let write_quad = 1 << 16 | 2 << 18;
    for (kind, assemble, hit) in [
        (write_quad, (|a| a.mov(byte_ptr(rbx + 7), al)) as fn(&mut CodeAssembler) -> _, true),
        (write_quad, |a| a.mov(al, byte_ptr(rbx + 7)), false),
        (write_quad | 3 << 16, |a| a.mov(al, byte_ptr(rbx + 7)), true),
        (write_quad, |a| a.mov(byte_ptr(rbx + 8), al), false),
        (write_quad, |a| a.mov(qword_ptr(rbx - 7), rax), true),
        (write_quad, |a| a.push(rax), false),
    ] {
        let mut machine = Machine::new(assemble);
        machine.cpu.gpr[3] = DATA + 64;
        machine.cpu.dr[0] = DATA + 64;
        machine.cpu.dr[7] |= 1 | kind;
        assert_eq!(machine.run(1), if hit { breakpoint(1) } else { Outcome::Retired });
        assert_ne!(machine.cpu.rip, CODE);
    }
}

#[test]
fn alignment_check_in_user_mode_only() {
    let misaligned = |a: &mut CodeAssembler| a.mov(eax, dword_ptr(rbx));
    let fault = |address, code| Outcome::Exception(PageFault { address, code }.into());
    for (user, address, outcome) in [
        (true, DATA + 1, Outcome::Exception(Exception::AC)),
        (true, DATA + 4, Outcome::Retired),
        (false, DATA + 1, Outcome::Retired),
        (true, UNMAPPED + 1, fault(UNMAPPED + 1, PageFaultCode::USER)),
        (true, (1 << 47) + 1, Outcome::Exception(Exception::GP0)),
    ] {
        let mut machine = Machine::new(misaligned);
        machine.cpu.gpr[3] = address;
        machine.cpu.rflags |= Rflags::AC.bits();
        if user {
            machine.enter_user_mode();
        }
        assert_eq!(machine.run(1), outcome, "{address:x}");
    }
}

#[test]
fn non_canonical_operands() {
    for (assemble, exception) in [
        ((|a| a.mov(rax, qword_ptr(rbx))) as fn(&mut CodeAssembler) -> _, Exception::GP0),
        (|a| a.mov(rax, qword_ptr(rbp)), Exception::SS0),
        (|a| a.mov(rax, qword_ptr(rbx - 4)), Exception::GP0),
    ] {
        let mut machine = Machine::new(assemble);
        machine.cpu.gpr[3] = 1 << 47;
        machine.cpu.gpr[5] = 1 << 47;
        assert_eq!(machine.run(1), Outcome::Exception(exception));
    }
}

#[test]
fn syscall_and_sysret_change_mode_under_the_driver() {
    let mut machine = Machine::new(|a| {
        a.syscall()?;
        a.hlt()
    });
    let entry = CODE + 0x100;
    // SWAPGS; SYSRETQ.
    machine.mem.poke(entry, &[0x0F, 0x01, 0xF8, 0x48, 0x0F, 0x07]);
    machine.enter_user_mode();
    machine.cpu.lstar = entry;
    machine.cpu.star = 0x0023_0010 << 32;
    machine.cpu.fmask = Rflags::IF.bits();
    machine.cpu.kernel_gs_base = 0x1234;
    assert_eq!(machine.run(2), Outcome::Retired);
    assert_eq!((machine.cpu.cpl, machine.cpu.rip, machine.cpu.gpr[1]), (0, entry + 3, CODE + 2));
    assert_eq!(machine.cpu.segment(SegmentIndex::Gs).base, 0x1234);
    // Back in user mode HLT is refused.
    assert_eq!(machine.run(2), Outcome::Exception(Exception::GP0));
    assert_eq!((machine.cpu.cpl, machine.cpu.rip), (3, CODE + 2));
}

#[test]
fn privileged_instructions_fault_in_user_mode() {
    let cases: [&[u8]; 9] = [
        &[0x0F, 0x32],
        &[0x0F, 0x30],
        &[0x0F, 0x20, 0xC0],
        &[0x0F, 0x22, 0xC0],
        &[0x0F, 0x01, 0xF8],
        &[0xFA],
        &[0x0F, 0x01, 0x13],
        &[0x0F, 0x01, 0x3B],
        &[0x0F, 0x09],
    ];
    for bytes in cases {
        let mut machine = Machine::with_bytes(bytes);
        machine.cpu.gpr[3] = DATA;
        machine.enter_user_mode();
        assert_eq!(machine.run(1), Outcome::Exception(Exception::GP0), "{bytes:x?}");
    }
}

#[test]
fn what_the_model_does_not_advertise_is_undefined() {
    let cases: [(&[u8], Features); 7] = [
        (&[0xF3, 0x0F, 0xB8, 0xC1], Features::POPCNT),
        (&[0x0F, 0x38, 0xF0, 0x03], Features::MOVBE),
        (&[0xF2, 0x0F, 0x38, 0xF0, 0xC1], Features::SSE4_2),
        (&[0x66, 0x0F, 0x38, 0xF6, 0xC1], Features::ADX),
        (&[0xC4, 0xE2, 0x70, 0xF2, 0xC2], Features::BMI1),
        (&[0xC4, 0xE2, 0x73, 0xF5, 0xC2], Features::BMI2),
        (&[0x0F, 0xC7, 0xF0], Features::RDRAND),
    ];
    for (bytes, feature) in cases {
        for present in [true, false] {
            let mut machine = Machine::with_bytes(bytes);
            machine.cpu.gpr[3] = DATA;
            machine.cpu.model.features.set(feature, present);
            let expected = if present { Outcome::Retired } else { Outcome::Exception(Exception::UD) };
            assert_eq!(machine.run(1), expected, "{bytes:x?}");
        }
    }
    // TZCNT and LZCNT become BSF and BSR.
    for (opcode, with, without) in [(0xBC, 4, 4), (0xBD, 59, 4)] {
        for (features, expected) in [(Features::all(), with), (Features::empty(), without)] {
            let mut machine = Machine::with_bytes(&[0xF3, 0x48, 0x0F, opcode, 0xC1]);
            machine.cpu.gpr[1] = 16;
            machine.cpu.model.features = features;
            assert_eq!(machine.run(1), Outcome::Retired);
            assert_eq!(machine.cpu.gpr[0], expected);
        }
    }
}

#[test]
fn stores_to_read_only_memory_change_nothing() {
    let mut machine = Machine::new(|a| a.cmpxchg(qword_ptr(rbx), rcx));
    machine.cpu.gpr[3] = READ_ONLY;
    machine.cpu.gpr[0] = 5;
    let before = machine.cpu.clone();
    // Even a failing comparison stores.
    assert!(matches!(machine.run(1), Outcome::Exception(Exception { cr2: Some(READ_ONLY), .. })));
    assert!(machine.cpu == before);
}

#[test]
fn segment_bases_count_for_fs_and_gs_only() {
    let mut machine = Machine::with_bytes(&[0x65, 0x8B, 0x03, 0x3E, 0x8B, 0x0B]);
    *machine.cpu.segment_mut(SegmentIndex::Gs) = Segment { base: DATA, ..Segment::flat_data(0x2B, 3) };
    machine.cpu.segment_mut(SegmentIndex::Ds).base = 0x7000_0000;
    machine.mem.poke(DATA + 0x10, &[1]);
    machine.cpu.gpr[3] = 0x10;
    assert_eq!(machine.run(1), Outcome::Retired);
    assert_eq!(machine.cpu.gpr[0], 1);
    machine.cpu.gpr[3] = DATA + 0x10;
    assert_eq!(machine.run(1), Outcome::Retired);
    assert_eq!(machine.cpu.gpr[1], 1);
}

#[test]
fn division_errors() {
    // Operand bytes, RAX, RDX, RCX.
    let cases: [(&[u8], u64, u64, u64); 6] = [
        (&[0xF7, 0xF1], 1, 0, 0),
        (&[0xF7, 0xF1], 0, 5, 5),
        (&[0x48, 0xF7, 0xF9], 1 << 63, u64::MAX, u64::MAX),
        (&[0xF7, 0xF9], 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFFF),
        (&[0xF6, 0xF9], 0x0080, 0, 1),
        (&[0x48, 0xF7, 0xF9], 0, 1 << 63, u64::MAX),
    ];
    for (bytes, low, high, divisor) in cases {
        let mut machine = Machine::with_bytes(bytes);
        (machine.cpu.gpr[0], machine.cpu.gpr[2], machine.cpu.gpr[1]) = (low, high, divisor);
        let before = machine.cpu.clone();
        assert_eq!(machine.run(1), Outcome::Exception(Exception::DE), "{bytes:x?}");
        assert!(machine.cpu == before);
    }
}
