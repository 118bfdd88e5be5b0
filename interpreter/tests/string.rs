//! String instructions: repetition, direction, restart after a fault, long counts.

mod support;

use lstar_arch::{Exception, PAGE_SIZE, PageFault, PageFaultCode, Rflags};
use lstar_interpreter::Outcome;
use support::{CODE, DATA, Machine, UNMAPPED};

const RSI: usize = 6;
const RDI: usize = 7;
const RCX: usize = 1;

#[test]
fn a_fault_keeps_finished_iterations() {
    // The stack page is the last one before the read-only page's neighbour: end of the data is the end of two pages.
    let end = DATA + 2 * PAGE_SIZE;
    for down in [false, true] {
        let mut machine = Machine::new(|a| a.rep().stosd());
        machine.cpu.gpr[0] = 0x1122_3344;
        machine.cpu.gpr[RCX] = 10;
        machine.cpu.gpr[RDI] = if down { DATA + 8 } else { end - 12 };
        machine.cpu.rflags |= if down { Rflags::DF.bits() } else { 0 };
        let fault = PageFault { address: if down { DATA - 4 } else { end }, code: PageFaultCode::WRITE };
        assert_eq!(machine.run(5), Outcome::Exception(fault.into()));
        assert_eq!((machine.cpu.rip, machine.cpu.gpr[RCX], machine.cpu.gpr[RDI]), (CODE, 7, fault.address));
        let stored = machine.mem.peek::<12>(if down { DATA } else { end - 12 });
        assert_eq!(stored.as_chunks().0, [0x1122_3344u32.to_le_bytes(); 3]);
    }
}

#[test]
fn an_element_across_a_border_is_all_or_nothing() {
    let end = DATA + 2 * PAGE_SIZE;
    let mut machine = Machine::new(|a| a.rep().movsq());
    machine.cpu.gpr[RCX] = 4;
    machine.cpu.gpr[RSI] = DATA;
    machine.cpu.gpr[RDI] = end - 12;
    machine.mem.poke(DATA, &[0xAA; 32]);
    assert!(matches!(machine.run(5), Outcome::Exception(Exception { cr2: Some(address), .. }) if address == end));
    assert_eq!((machine.cpu.gpr[RCX], machine.cpu.gpr[RSI], machine.cpu.gpr[RDI]), (3, DATA + 8, end - 4));
    assert_eq!(machine.mem.peek::<12>(end - 12), [0xAA, 0xAA, 0xAA, 0xAA, 0xAA, 0xAA, 0xAA, 0xAA, 0, 0, 0, 0]);
}

#[test]
fn long_counts_take_several_steps() {
    let mut machine = Machine::new(|a| {
        a.rep().lodsb()?;
        a.hlt()
    });
    machine.cpu.gpr[RCX] = 6000;
    machine.cpu.gpr[RSI] = DATA;
    assert_eq!(machine.step(), Outcome::Retired);
    assert_eq!(machine.cpu.rip, CODE);
    assert!((1..6000).contains(&machine.cpu.gpr[RCX]));
    assert_eq!(machine.run(100), Outcome::Halt);
    assert_eq!((machine.cpu.gpr[RCX], machine.cpu.gpr[RSI]), (0, DATA + 6000));
}

#[test]
fn an_overlapping_upward_move_replicates() {
    let mut machine = Machine::new(|a| a.rep().movsb());
    machine.mem.poke(DATA, b"abc");
    machine.cpu.gpr[RCX] = 9;
    machine.cpu.gpr[RSI] = DATA;
    machine.cpu.gpr[RDI] = DATA + 3;
    assert_eq!(machine.run(1), Outcome::Retired);
    assert_eq!(&machine.mem.peek::<12>(DATA), b"abcabcabcabc");
}

#[test]
fn zero_count_touches_nothing() {
    let mut machine = Machine::new(|a| a.rep().movsb());
    machine.cpu.gpr[RSI] = UNMAPPED;
    machine.cpu.gpr[RDI] = 1 << 63;
    let mut expected = machine.cpu.clone();
    assert_eq!(machine.run(1), Outcome::Retired);
    (expected.rip, expected.tsc) = (machine.cpu.rip, machine.cpu.tsc);
    assert!(machine.cpu == expected);
}

#[test]
fn comparison_stops_at_the_difference() {
    for (count, found, left) in [(10, true, 6), (3, false, 0)] {
        let mut machine = Machine::new(|a| a.repe().cmpsb());
        machine.mem.poke(DATA, b"abcdefgh");
        machine.mem.poke(DATA + 64, b"abcXefgh");
        machine.cpu.gpr[RCX] = count;
        machine.cpu.gpr[RSI] = DATA;
        machine.cpu.gpr[RDI] = DATA + 64;
        assert_eq!(machine.run(1), Outcome::Retired);
        assert_eq!(machine.cpu.gpr[RCX], left);
        assert_eq!(machine.status().contains(Rflags::ZF), !found);
    }
}

#[test]
fn source_segment_can_be_overridden() {
    let mut machine = Machine::with_bytes(&[0x65, 0xAC]);
    machine.cpu.segments[5].base = DATA;
    machine.cpu.gpr[RSI] = 5;
    machine.mem.poke(DATA + 5, &[0x42]);
    assert_eq!(machine.run(1), Outcome::Retired);
    assert_eq!((machine.cpu.gpr[0], machine.cpu.gpr[RSI]), (0x42, 6));
}

#[test]
fn ports_are_out_of_reach() {
    for bytes in [[0xE4, 0x60], [0x6C, 0x90], [0xEF, 0x90]] {
        assert_eq!(Machine::with_bytes(&bytes).run(1), Outcome::Exception(Exception::GP0));
    }
}
