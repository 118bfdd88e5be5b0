//! Descriptor-table registers and the instructions that examine descriptors.

mod machine;

use lstar_arch::control::cr4;
use lstar_arch::system::{OperandSize, lar, lgdt, lidt, lldt, lsl, ltr, sgdt, sidt, sldt, str, verr, verw};
use lstar_arch::{CpuModel, DescriptorTable, Exception, Rflags};
use machine::*;

const OPERAND: u64 = 0x10_0000;

#[test]
fn table_registers() {
    let (mut cpu, mut mem) = machine(CpuModel::INTEL);
    let table = DescriptorTable { base: 0xFFFF_8765_4321_0FED, limit: 0x1234 };
    mem.poke(OPERAND, table.base << 16 | 0x1234);
    mem.poke(OPERAND + 8, 0xABCD_0000_0000_0000 | table.base >> 48);
    lgdt(&mut cpu, &mut mem, OPERAND).unwrap();
    lidt(&mut cpu, &mut mem, OPERAND).unwrap();
    assert_eq!((cpu.gdtr, cpu.idtr), (table, table));
    mem.poke(OPERAND + 0x20, u64::MAX);
    mem.poke(OPERAND + 0x28, u64::MAX);
    sgdt(&cpu, &mut mem, OPERAND + 0x20).unwrap();
    assert_eq!(mem.peek(OPERAND + 0x28), 0xFFFF_FFFF_FFFF_FFFF, "ten bytes");
    assert_eq!(mem.peek(OPERAND + 0x20), 0x8765_4321_0FED_1234);
    mem.poke(OPERAND + 8, 0x7FFF);
    assert_eq!(lgdt(&mut cpu, &mut mem, OPERAND), Err(Exception::GP0), "non-canonical base");
    assert_eq!(lgdt(&mut cpu, &mut mem, 1 << 47), Err(Exception::GP0), "non-canonical operand");

    let (mut cpu, mut mem) = compatibility_machine(CpuModel::INTEL);
    mem.poke(OPERAND, u64::MAX);
    cpu.idtr = table;
    sidt(&cpu, &mut mem, OPERAND).unwrap();
    assert_eq!(mem.peek(OPERAND), 0xFFFF_4321_0FED_1234, "six bytes");
    assert_eq!(lidt(&mut cpu, &mut mem, OPERAND), Err(Exception::GP0));
    cpu.cr4 |= cr4::UMIP;
    assert_eq!(
        (sgdt(&cpu, &mut mem, OPERAND), sidt(&cpu, &mut mem, OPERAND)),
        (Err(Exception::GP0), Err(Exception::GP0))
    );
}

#[test]
fn task_and_ldt_registers() {
    let (mut cpu, mut mem) = machine(CpuModel::INTEL);
    ltr(&mut cpu, &mut mem, TSS_SELECTOR).unwrap();
    assert_eq!((cpu.tr.base, cpu.tr.limit, cpu.tr.attributes, str(&cpu)), (TSS, 0x67, 0x8B, Ok(TSS_SELECTOR)));
    assert_eq!(mem.peek(GDT + 0x40) >> 40 & 0xFF, 0x8B, "busy in memory too");
    assert_eq!(ltr(&mut cpu, &mut mem, TSS_SELECTOR), Err(Exception::gp(0x40)), "busy");
    lldt(&mut cpu, &mut mem, LDT_SELECTOR).unwrap();
    assert_eq!((cpu.ldtr.base, cpu.ldtr.limit, sldt(&cpu)), (TSS + 0x800, 7, Ok(LDT_SELECTOR)));
    lldt(&mut cpu, &mut mem, 0).unwrap();
    assert_eq!(sldt(&cpu), Ok(0));

    assert_eq!(ltr(&mut cpu, &mut mem, 0), Err(Exception::GP0));
    for (selector, exception) in [
        (4, Exception::gp(4)),
        (KERNEL_SS, Exception::gp(0x18)),
        (BEYOND, Exception::gp(0x100)),
        (CALL_GATE & !3, Exception::gp(0x70)),
    ] {
        assert_eq!(ltr(&mut cpu, &mut mem, selector), Err(exception));
        let expected = if selector == 4 { Exception::gp(4) } else { exception };
        assert_eq!(lldt(&mut cpu, &mut mem, selector), Err(expected));
    }
    let low = mem.peek(GDT + 0x60);
    mem.poke(GDT + 0x60, low & !(1 << 47));
    assert_eq!(lldt(&mut cpu, &mut mem, LDT_SELECTOR), Err(Exception::np(0x60)));
    mem.poke(GDT + 0x60, low);
    mem.poke(GDT + 0x68, 0x1234_5678);
    assert_eq!(lldt(&mut cpu, &mut mem, LDT_SELECTOR), Err(Exception::gp(0x60)), "non-canonical base");
    cpu.gdtr.limit = 0x67;
    assert_eq!(lldt(&mut cpu, &mut mem, LDT_SELECTOR), Err(Exception::gp(0x60)), "upper half beyond the limit");
    cpu.cpl = 3;
    assert_eq!(
        (ltr(&mut cpu, &mut mem, 0x40), lldt(&mut cpu, &mut mem, 0)),
        (Err(Exception::GP0), Err(Exception::GP0))
    );
}

/// Selector seen from CPL 3; LAR, LSL, VERR, VERW.
#[test]
fn examining_descriptors_from_user_mode() {
    let cases = [
        (USER_SS, Some(0x00CF_F200), Some(0xFFFF_FFFF), true, true),
        (USER_CS, Some(0x00AF_FA00), Some(0xFFFF_FFFF), true, false),
        (READ_ONLY_DATA, Some(0x0040_F000), Some(0xFFF), true, false),
        (EXECUTE_ONLY_CS, Some(0x00AF_F800), Some(0xFFFF_FFFF), false, false),
        (CONFORMING_CS, Some(0x00AF_9E00), Some(0xFFFF_FFFF), true, false),
        (CALL_GATE, Some(0x0034_EC00), None, false, false),
        (ABSENT_DATA, Some(0x00CF_7200), Some(0xFFFF_FFFF), true, true),
        (KERNEL_SS, None, None, false, false),
        (TSS_SELECTOR, None, None, false, false),
        (BEYOND, None, None, false, false),
        (0, None, None, false, false),
        (4, None, None, false, false),
    ];
    let (mut cpu, mut mem) = user_machine(CpuModel::INTEL);
    for (selector, rights, limit, readable, writable) in cases {
        let zf = |cpu: &lstar_arch::CpuState| cpu.flags().contains(Rflags::ZF);
        assert_eq!(lar(&mut cpu, &mut mem, selector, OperandSize::Qword), Ok(rights), "LAR {selector:#x}");
        assert_eq!(zf(&cpu), rights.is_some());
        assert_eq!(lsl(&mut cpu, &mut mem, selector, OperandSize::Dword), Ok(limit), "LSL {selector:#x}");
        assert_eq!(zf(&cpu), limit.is_some());
        verr(&mut cpu, &mut mem, selector).unwrap();
        assert_eq!(zf(&cpu), readable, "VERR {selector:#x}");
        verw(&mut cpu, &mut mem, selector).unwrap();
        assert_eq!(zf(&cpu), writable, "VERW {selector:#x}");
    }
    assert_eq!(lar(&mut cpu, &mut mem, USER_SS, OperandSize::Word), Ok(Some(0xF200)));
    assert_eq!(lsl(&mut cpu, &mut mem, USER_SS, OperandSize::Word), Ok(Some(0xFFFF)));
    cpu.cpl = 0;
    assert_eq!(lsl(&mut cpu, &mut mem, TSS_SELECTOR, OperandSize::Qword), Ok(Some(0x67)));
    assert_eq!(lar(&mut cpu, &mut mem, KERNEL_SS | 3, OperandSize::Qword), Ok(None), "RPL counts too");
}
