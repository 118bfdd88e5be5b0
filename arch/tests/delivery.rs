//! Delivery through the IDT: gates, stacks, flags, error codes and nested faults.

mod machine;

use lstar_arch::control::dr;
use lstar_arch::delivery::{Event, deliver};
use lstar_arch::{CpuModel, CpuState, Exception, PageFault, PageFaultCode, SegmentIndex, Vector};
use machine::*;

const RFLAGS: u64 = 0x2 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 14 | 1; // TF, IF, DF, NT, CF
const INTERRUPT: u8 = 0x8E;
const TRAP: u8 = 0x8F;
const DPL3: u8 = 0x60;

/// The pushed slots from the new RSP upwards.
fn frame<const N: usize>(cpu: &CpuState, mem: &mut Memory) -> [u64; N] {
    core::array::from_fn(|i| mem.peek(cpu.gpr[4] + 8 * i as u64))
}

fn install_all(mem: &mut Memory) {
    for vector in 0..=255 {
        set_gate(mem, vector, KERNEL_CS, INTERRUPT, 0, HANDLER + u64::from(vector));
    }
}

#[test]
fn fault_from_user_mode_switches_to_rsp0() {
    let (mut cpu, mut mem) = user_machine(CpuModel::INTEL);
    install_all(&mut mem);
    cpu.rflags = RFLAGS;
    cpu.interrupt_shadow = 1;
    deliver(&mut cpu, &mut mem, Event::Exception(Exception::gp(0x58))).unwrap();
    assert_eq!(cpu.rip, HANDLER + 13);
    assert_eq!(cpu.gpr[4], KERNEL_STACK - 48);
    let user_rsp = USER_STACK - 0x100;
    assert_eq!(frame(&cpu, &mut mem), [0x58, 0x40_0002, 0x33, RFLAGS | 1 << 16, user_rsp, 0x2B]);
    assert_eq!(cpu.rflags, 0x2 | 1 << 10 | 1, "TF, IF and NT cleared, DF and CF kept");
    assert_eq!((cpu.cpl, cpu.interrupt_shadow), (0, 0));
    assert_eq!(cpu.segment(SegmentIndex::Cs).selector, KERNEL_CS);
    assert!(cpu.is_64bit());
    let ss = cpu.segment(SegmentIndex::Ss);
    assert_eq!((ss.selector, ss.dpl()), (0, 0), "SS is null after a change of privilege");
    assert_eq!(mem.peek(GDT + 0x10) >> 40 & 1, 1, "CS marked accessed");
}

#[test]
fn kernel_fault_stays_on_its_aligned_stack() {
    let (mut cpu, mut mem) = machine(CpuModel::INTEL);
    set_gate(&mut mem, 6, KERNEL_CS, TRAP, 0, HANDLER);
    cpu.rflags = 0x202;
    cpu.gpr[4] -= 3;
    let old = cpu.gpr[4];
    deliver(&mut cpu, &mut mem, Event::Exception(Exception::UD)).unwrap();
    assert_eq!(cpu.gpr[4], (old & !15) - 40);
    assert_eq!(frame(&cpu, &mut mem), [0xFFFF_F800_0010_0002, 0x10, 0x1_0202, old, 0x18]);
    assert_eq!(cpu.rflags, 0x202, "a trap gate leaves IF");
    assert_eq!(cpu.segment(SegmentIndex::Ss).selector, KERNEL_SS);
}

#[test]
fn interrupt_stack_table_is_used_at_any_level() {
    for (mut cpu, mut mem) in
        [machine(CpuModel::AMD), user_machine(CpuModel::AMD), compatibility_machine(CpuModel::AMD)]
    {
        set_gate(&mut mem, 2, KERNEL_CS, INTERRUPT, 1, HANDLER);
        let cs = u64::from(cpu.segment(SegmentIndex::Cs).selector);
        deliver(&mut cpu, &mut mem, Event::External(2)).unwrap();
        assert_eq!(cpu.gpr[4], IST1_STACK - 40);
        assert_eq!(frame::<3>(&cpu, &mut mem)[1..], [cs, 2]);
        assert!(cpu.is_64bit());
    }
}

#[test]
fn resume_flag_is_pushed_for_faults_only() {
    let bd = Exception::db(dr::DR6_BD);
    let step = Exception::db(dr::DR6_BS);
    let cases = [
        (Event::Exception(Exception::DE), true),
        (Event::Exception(bd), true),
        (Event::Exception(step), false),
        (Event::Exception(Exception::BP), false),
        (Event::Exception(Exception::DF), false),
        (Event::Software(3), false),
        (Event::External(0x30), false),
    ];
    for (event, rf) in cases {
        let (mut cpu, mut mem) = machine(CpuModel::INTEL);
        install_all(&mut mem);
        deliver(&mut cpu, &mut mem, event).unwrap();
        let has_code = matches!(event, Event::Exception(e) if e.error_code.is_some());
        let flags = mem.peek(cpu.gpr[4] + if has_code { 24 } else { 16 });
        assert_eq!(flags >> 16 & 1 != 0, rf, "{event:?}");
    }
}

#[test]
fn debug_and_page_fault_registers() {
    let (mut cpu, mut mem) = machine(CpuModel::INTEL);
    install_all(&mut mem);
    cpu.dr[7] |= dr::DR7_GD;
    deliver(&mut cpu, &mut mem, Event::Exception(Exception::db(dr::DR6_BS))).unwrap();
    assert_eq!((cpu.dr[6], cpu.dr[7]), (0xFFFF_4FF0, 0x400));
    let fault = PageFault { address: 0x1234, code: PageFaultCode::WRITE | PageFaultCode::USER };
    deliver(&mut cpu, &mut mem, Event::Exception(fault.into())).unwrap();
    assert_eq!(cpu.cr2, 0x1234);
    assert_eq!(mem.peek(cpu.gpr[4]), 6);
}

/// What delivering an event that meets a bad gate, segment or stack raises instead: vector, error code.
#[test]
fn faults_during_delivery() {
    type Setup = fn(&mut CpuState, &mut Memory);
    let software = Event::Software(0x2E);
    let external = Event::External(0x2E);
    let breakpoint = Event::Exception(Exception::BP);
    let gate = |vector: u32| vector * 8 + 2;
    let cases: &[(&str, Event, Setup, u8, u32)] = &[
        ("software interrupt through a DPL 0 gate", software, |_, _| {}, 13, gate(0x2E)),
        ("INT3 through a DPL 0 gate", breakpoint, |_, _| {}, 13, gate(3)),
        ("beyond the IDT", external, |cpu, _| cpu.idtr.limit = 0x2EE, 13, gate(0x2E) + 1),
        ("not a gate", external, |_, m| set_gate(m, 0x2E, KERNEL_CS, 0x85, 0, HANDLER), 13, gate(0x2E) + 1),
        ("gate not present", external, |_, m| set_gate(m, 0x2E, KERNEL_CS, 0x0E, 0, HANDLER), 11, gate(0x2E) + 1),
        ("software, not present", software, |_, m| set_gate(m, 0x2E, KERNEL_CS, 0x6E, 0, HANDLER), 11, gate(0x2E)),
        ("null selector", external, |_, m| set_gate(m, 0x2E, 0, INTERRUPT, 0, HANDLER), 13, 1),
        ("null selector, software", software, |_, m| set_gate(m, 0x2E, 3, INTERRUPT | DPL3, 0, HANDLER), 13, 0),
        ("selector beyond the GDT", external, |_, m| set_gate(m, 0x2E, BEYOND, INTERRUPT, 0, HANDLER), 13, 0x101),
        ("data segment", external, |_, m| set_gate(m, 0x2E, KERNEL_SS, INTERRUPT, 0, HANDLER), 13, 0x19),
        ("32-bit code", external, |_, m| set_gate(m, 0x2E, KERNEL_CS32, INTERRUPT, 0, HANDLER), 13, 0x89),
        ("code with L and D", external, |_, m| set_gate(m, 0x2E, BOTH_L_AND_D, INTERRUPT, 0, HANDLER), 13, 0x91),
        ("code not present", external, |_, m| set_gate(m, 0x2E, ABSENT_CS, INTERRUPT, 0, HANDLER), 11, 0x99),
        ("non-canonical handler", external, |_, m| set_gate(m, 0x2E, KERNEL_CS, INTERRUPT, 0, 1 << 63), 13, 1),
    ];
    for (name, event, setup, vector, error) in cases {
        let (mut cpu, mut mem) = user_machine(CpuModel::INTEL);
        install_all(&mut mem);
        setup(&mut cpu, &mut mem);
        deliver(&mut cpu, &mut mem, *event).unwrap();
        assert_eq!(cpu.rip, HANDLER + u64::from(*vector), "{name}");
        let [code, rip, _, _] = frame(&cpu, &mut mem);
        assert_eq!(code, u64::from(*error), "{name}");
        let back = match event {
            Event::Software(_) => 2,
            Event::Exception(_) => 1,
            Event::External(_) => 0,
        };
        assert_eq!(rip, 0x40_0002 - back, "{name}: the instruction itself is named");
    }
}

#[test]
fn software_interrupt_through_a_dpl_3_gate() {
    let (mut cpu, mut mem) = user_machine(CpuModel::INTEL);
    set_gate(&mut mem, 0x2E, KERNEL_CS, INTERRUPT | DPL3, 0, HANDLER);
    deliver(&mut cpu, &mut mem, Event::Software(0x2E)).unwrap();
    assert_eq!(frame(&cpu, &mut mem), [0x40_0002, 0x33, 2, USER_STACK - 0x100, 0x2B]);
}

#[test]
fn conforming_handler_keeps_the_level() {
    let (mut cpu, mut mem) = user_machine(CpuModel::INTEL);
    set_gate(&mut mem, 0, CONFORMING_CS, INTERRUPT, 0, HANDLER);
    deliver(&mut cpu, &mut mem, Event::Exception(Exception::DE)).unwrap();
    assert_eq!((cpu.cpl, cpu.segment(SegmentIndex::Cs).selector), (3, CONFORMING_CS | 3));
    assert_eq!(cpu.segment(SegmentIndex::Ss).selector, USER_SS);
    assert_eq!(cpu.gpr[4], USER_STACK - 0x100 - 40);
}

/// First exception, what breaks its delivery, and the vector that arrives in the end (None: shutdown).
#[test]
fn nested_faults() {
    let page_fault = Exception::from(PageFault { address: 0x1000, code: PageFaultCode::empty() });
    let absent = |vectors: &'static [u8]| {
        move |mem: &mut Memory| vectors.iter().for_each(|v| set_gate(mem, *v, KERNEL_CS, 0x0E, 0, HANDLER))
    };
    let cases: &[(Exception, &'static [u8], Option<u8>)] = &[
        (Exception::UD, &[6], Some(11)),
        (Exception::UD, &[6, 11], Some(8)),
        (Exception::GP0, &[13], Some(8)),
        (Exception::DE, &[0], Some(8)),
        (page_fault, &[14], Some(8)),
        (Exception::GP0, &[13, 8], None),
    ];
    for (first, broken, arrives) in cases {
        let (mut cpu, mut mem) = user_machine(CpuModel::INTEL);
        install_all(&mut mem);
        absent(broken)(&mut mem);
        match (deliver(&mut cpu, &mut mem, Event::Exception(*first)), arrives) {
            (Ok(()), Some(vector)) => {
                assert_eq!(cpu.rip, HANDLER + u64::from(*vector), "{first:?} {broken:?}");
                let expected = if *vector == 8 { 0 } else { u64::from(broken[0]) * 8 + 3 };
                assert_eq!(frame::<2>(&cpu, &mut mem), [expected, 0x40_0002]);
            }
            (Err(shutdown), None) => assert_eq!(shutdown.rip, 0x40_0002),
            (result, _) => panic!("{first:?} {broken:?}: {result:?}"),
        }
    }
}

#[test]
fn bad_kernel_stacks() {
    // A page fault while pushing is a page fault of its own, delivered on an IST stack.
    let (mut cpu, mut mem) = user_machine(CpuModel::INTEL);
    install_all(&mut mem);
    set_gate(&mut mem, 14, KERNEL_CS, INTERRUPT, 1, HANDLER + 14);
    mem.unmap(KERNEL_STACK - 0x1000);
    deliver(&mut cpu, &mut mem, Event::Exception(Exception::UD)).unwrap();
    assert_eq!((cpu.rip, cpu.cr2), (HANDLER + 14, KERNEL_STACK - 40));
    assert_eq!(mem.peek(cpu.gpr[4]), 2, "supervisor write, not present");

    // A non-canonical RSP0 is #SS(EXT), a TSS that is too short #TS(selector + EXT).
    for (limit, rsp0, vector, error) in [(0x67, 1 << 60, 12, 1), (0x2B, KERNEL_STACK, 0xFF, 0), (0xA, 0, 10, 0x41)] {
        let (mut cpu, mut mem) = user_machine(CpuModel::INTEL);
        install_all(&mut mem);
        for vector in [10, 12] {
            set_gate(
                &mut mem,
                vector,
                KERNEL_CS,
                INTERRUPT,
                if limit == 0x67 { 1 } else { 0 },
                HANDLER + u64::from(vector),
            );
        }
        mem.poke(TSS + 4, rsp0);
        cpu.tr.limit = limit;
        let result = deliver(&mut cpu, &mut mem, Event::External(0xFF));
        if limit == 0xA {
            // No stack can be found for #TS and #DF either.
            let last = result.unwrap_err().last;
            assert_eq!((last.vector, last.error_code), (Vector::InvalidTss, Some(error)));
        } else {
            result.unwrap();
            assert_eq!(cpu.rip, HANDLER + vector);
            if vector == 12 {
                assert_eq!(mem.peek(cpu.gpr[4]), u64::from(error));
            }
        }
    }
}

#[test]
fn descriptor_tables_that_are_not_mapped() {
    let (mut cpu, mut mem) = user_machine(CpuModel::INTEL);
    install_all(&mut mem);
    mem.unmap(IDT);
    let shutdown = deliver(&mut cpu, &mut mem, Event::Exception(Exception::UD)).unwrap_err();
    assert_eq!(shutdown.last.vector, Vector::PageFault);
    assert_eq!(cpu.cpl, 3, "nothing was entered");
}
