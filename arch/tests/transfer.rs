//! Segment loads, far transfers and IRET.

mod machine;

use lstar_arch::system::{OperandSize, far_call, far_jmp, far_ret, iret, load_segment};
use lstar_arch::{CpuModel, CpuState, Exception, Segment, SegmentIndex, Vector};
use machine::*;

const NON_CANONICAL: u64 = 1 << 47;
const USER_RIP: u64 = 0x7FFF_1000_0000;

type Machine = (CpuState, Memory);
type Setup = fn() -> Machine;
type Outcome = Result<(), Exception>;

fn kernel() -> Machine {
    machine(CpuModel::INTEL)
}

fn user() -> Machine {
    user_machine(CpuModel::INTEL)
}

fn compatibility() -> Machine {
    compatibility_machine(CpuModel::INTEL)
}

/// Writes slots of `size` bytes at the stack pointer, lowest first.
fn put_stack(cpu: &CpuState, mem: &mut Memory, size: OperandSize, values: &[u64]) {
    for (i, value) in values.iter().enumerate() {
        let address = cpu.gpr[4] + i as u64 * size.bytes();
        let old = mem.peek(address);
        mem.poke(address, old & !size.mask() | value & size.mask());
    }
}

fn where_is(cpu: &CpuState) -> (u16, u64, u16, u64, u8) {
    (cpu.segment(SegmentIndex::Cs).selector, cpu.rip, cpu.segment(SegmentIndex::Ss).selector, cpu.gpr[4], cpu.cpl)
}

#[test]
fn iretq_to_user_mode() {
    let (mut cpu, mut mem) = kernel();
    *cpu.segment_mut(SegmentIndex::Fs) = Segment { base: 0x5000, ..Segment::flat_data(0x18, 0) };
    *cpu.segment_mut(SegmentIndex::Gs) = Segment { base: 0x6000, ..Segment::flat_data(USER_SS, 3) };
    let frame = [USER_RIP, USER_CS.into(), 0x3F_7FD7, USER_STACK + 3, USER_SS.into()];
    put_stack(&cpu, &mut mem, OperandSize::Qword, &frame);
    iret(&mut cpu, &mut mem, OperandSize::Qword).unwrap();
    assert_eq!(where_is(&cpu), (USER_CS, USER_RIP, USER_SS, USER_STACK + 3, 3));
    assert_eq!(cpu.rflags, 0x3D_7FD7, "CPL 0 loads everything but VM");
    assert!(cpu.is_64bit());
    let (ds, fs, gs) = (cpu.segment(SegmentIndex::Ds), cpu.segment(SegmentIndex::Fs), cpu.segment(SegmentIndex::Gs));
    assert_eq!((ds.selector, fs.selector, gs.selector), (0, 0, USER_SS), "DPL 0 segments become null");
    assert_eq!((fs.base, gs.base), (0x5000, 0x6000));
}

#[test]
fn iret_within_a_level() {
    // 64-bit mode pops SS and RSP all the same; user code keeps IOPL and IF.
    let (mut cpu, mut mem) = user();
    let frame = [USER_RIP, USER_CS.into(), 0x7FD7, 0x1234, USER_SS.into()];
    put_stack(&cpu, &mut mem, OperandSize::Qword, &frame);
    cpu.rflags = 2;
    iret(&mut cpu, &mut mem, OperandSize::Qword).unwrap();
    assert_eq!(where_is(&cpu), (USER_CS, USER_RIP, USER_SS, 0x1234, 3));
    assert_eq!(cpu.rflags, 0x4DD7);

    // Kernel code may have a null SS.
    let (mut cpu, mut mem) = kernel();
    put_stack(&cpu, &mut mem, OperandSize::Qword, &[HANDLER, KERNEL_CS.into(), 2, KERNEL_STACK, 0]);
    iret(&mut cpu, &mut mem, OperandSize::Qword).unwrap();
    assert_eq!(where_is(&cpu), (KERNEL_CS, HANDLER, 0, KERNEL_STACK, 0));

    // Compatibility mode pops three slots.
    let (mut cpu, mut mem) = compatibility();
    put_stack(&cpu, &mut mem, OperandSize::Dword, &[0x1000, USER_CS32.into(), 0x246, 0xBAD, 0xBAD]);
    iret(&mut cpu, &mut mem, OperandSize::Dword).unwrap();
    assert_eq!(where_is(&cpu), (USER_CS32, 0x1000, USER_SS, USER_STACK - 0x100 + 12, 3));
    assert_eq!(cpu.rflags, 0x46);
}

#[test]
fn iret_to_compatibility_mode() {
    let (mut cpu, mut mem) = kernel();
    let frame = [0xF_0040_1000, USER_CS32.into(), 0x202, 0xF_0010_0000, USER_SS.into()];
    put_stack(&cpu, &mut mem, OperandSize::Qword, &frame);
    iret(&mut cpu, &mut mem, OperandSize::Qword).unwrap();
    assert_eq!(where_is(&cpu), (USER_CS32, 0x40_1000, USER_SS, 0x10_0000, 3));
    assert!(!cpu.is_64bit());
}

#[test]
fn iret_refusals() {
    let good = [USER_RIP, u64::from(USER_CS), 2, USER_STACK, u64::from(USER_SS)];
    let with = |slot: usize, value: u64| {
        let mut frame = good;
        frame[slot] = value;
        frame
    };
    let cases: &[(&str, [u64; 5], Exception)] = &[
        ("null CS", with(1, 3), Exception::GP0),
        ("CS beyond the GDT", with(1, 0x103), Exception::gp(0x100)),
        ("CS is data", with(1, USER_SS.into()), Exception::gp(0x28)),
        ("CS is a system segment", with(1, 0x43), Exception::gp(0x40)),
        ("DPL below RPL", with(1, (KERNEL_CS | 3).into()), Exception::gp(0x10)),
        ("DPL above RPL", with(1, 0x30), Exception::gp(0x30)),
        ("CS with L and D", with(1, BOTH_L_AND_D.into()), Exception::gp(0x90)),
        ("CS not present", with(1, ABSENT_CS.into()), Exception::np(0x98)),
        ("non-canonical RIP", with(0, NON_CANONICAL), Exception::GP0),
        ("null SS at CPL 3", with(4, 3), Exception::GP0),
        ("SS beyond the GDT", with(4, 0x103), Exception::gp(0x100)),
        ("SS with another RPL", with(4, 0x28), Exception::gp(0x28)),
        ("SS with another DPL", with(4, 0x1B), Exception::gp(0x18)),
        ("SS read-only", with(4, READ_ONLY_DATA.into()), Exception::gp(0x80)),
        ("SS not present", with(4, ABSENT_DATA.into()), Exception::ss(0x58)),
    ];
    for (name, frame, exception) in cases {
        let (mut cpu, mut mem) = kernel();
        put_stack(&cpu, &mut mem, OperandSize::Qword, frame);
        let before = cpu.clone();
        assert_eq!(iret(&mut cpu, &mut mem, OperandSize::Qword), Err(*exception), "{name}");
        assert_eq!(cpu, before, "{name}: nothing changed");
    }
    let (mut cpu, mut mem) = kernel();
    put_stack(&cpu, &mut mem, OperandSize::Qword, &good);
    cpu.rflags |= 1 << 14;
    assert_eq!(iret(&mut cpu, &mut mem, OperandSize::Qword), Err(Exception::GP0), "nested task");
    let (mut cpu, mut mem) = user();
    put_stack(&cpu, &mut mem, OperandSize::Qword, &with(1, KERNEL_CS.into()));
    assert_eq!(iret(&mut cpu, &mut mem, OperandSize::Qword), Err(Exception::gp(0x10)), "to an inner level");
    cpu.gpr[4] = NON_CANONICAL - 16;
    assert_eq!(iret(&mut cpu, &mut mem, OperandSize::Qword).unwrap_err().vector, Vector::PageFault);
    cpu.gpr[4] = NON_CANONICAL;
    assert_eq!(iret(&mut cpu, &mut mem, OperandSize::Qword), Err(Exception::SS0));
}

/// Machine, register, selector, outcome.
#[test]
fn segment_loads() {
    use SegmentIndex::{Cs, Ds, Fs, Ss};
    let cases: &[(Setup, SegmentIndex, u16, Outcome)] = &[
        (user, Cs, USER_CS, Err(Exception::UD)),
        (user, Ds, USER_SS, Ok(())),
        (user, Ds, 0, Ok(())),
        (user, Fs, 3, Ok(())),
        (user, Ds, 4, Err(Exception::gp(4))), // no LDT
        (user, Ds, KERNEL_SS, Err(Exception::gp(0x18))),
        (kernel, Ds, KERNEL_SS | 3, Err(Exception::gp(0x18))),
        (kernel, Ds, USER_SS, Ok(())),
        (user, Ds, READ_ONLY_DATA, Ok(())),
        (user, Ds, USER_CS, Ok(())), // readable code
        (user, Ds, CONFORMING_CS | 3, Ok(())),
        (user, Ds, EXECUTE_ONLY_CS, Err(Exception::gp(0xA0))),
        (user, Ds, TSS_SELECTOR, Err(Exception::gp(0x40))),
        (user, Ds, ABSENT_DATA, Err(Exception::np(0x58))),
        (user, Ds, BEYOND, Err(Exception::gp(0x100))),
        (user, Ss, USER_SS, Ok(())),
        (user, Ss, USER_SS & !3, Err(Exception::gp(0x28))),
        (user, Ss, 3, Err(Exception::GP0)),
        (user, Ss, ABSENT_DATA, Err(Exception::ss(0x58))),
        (user, Ss, READ_ONLY_DATA, Err(Exception::gp(0x80))),
        (kernel, Ss, 0, Ok(())),
        (kernel, Ss, 3, Err(Exception::GP0)),
        (compatibility, Ss, 0, Err(Exception::GP0)),
    ];
    for (machine, index, selector, expected) in cases {
        let (mut cpu, mut mem) = machine();
        assert_eq!(load_segment(&mut cpu, &mut mem, *index, *selector), *expected, "{index:?} <- {selector:#x}");
        if expected.is_ok() {
            assert_eq!(cpu.segment(*index).selector, *selector);
            assert_eq!(cpu.interrupt_shadow, u8::from(*index == Ss));
        }
    }
    let (mut cpu, mut mem) = user();
    cpu.ldtr = Segment { base: TSS + 0x800, limit: 7, selector: LDT_SELECTOR, attributes: 0x82 };
    load_segment(&mut cpu, &mut mem, Ds, 7).unwrap();
    assert_eq!(load_segment(&mut cpu, &mut mem, Ds, 0xF), Err(Exception::gp(0xC)));
    load_segment(&mut cpu, &mut mem, Fs, READ_ONLY_DATA).unwrap();
    let fs = cpu.segment(Fs);
    assert_eq!((fs.base, fs.limit, fs.attributes), (0x12_3456, 0xFFF, 0x40F1), "accessed bit set");
    load_segment(&mut cpu, &mut mem, Fs, 0).unwrap();
    assert_eq!(cpu.segment(Fs).base, 0);
}

#[test]
fn heavens_gate_there_and_back() {
    let (mut cpu, mut mem) = compatibility();
    far_call(&mut cpu, &mut mem, USER_CS, 0x1234, OperandSize::Dword).unwrap();
    let rsp = USER_STACK - 0x108;
    assert_eq!(where_is(&cpu), (USER_CS, 0x1234, USER_SS, rsp, 3));
    assert!(cpu.is_64bit());
    assert_eq!(mem.peek(rsp), 0x0000_0023_0040_0002);
    far_ret(&mut cpu, &mut mem, OperandSize::Dword, 16).unwrap();
    assert_eq!(where_is(&cpu), (USER_CS32, 0x40_0002, USER_SS, rsp + 24, 3));
    assert!(!cpu.is_64bit());
}

/// Far JMP and CALL to a code segment share their conditions.
#[test]
fn far_transfer_conditions() {
    let cases: &[(Setup, u16, u64, Outcome)] = &[
        (user, USER_CS, USER_RIP, Ok(())),
        (user, USER_CS & !3, USER_RIP, Ok(())),
        (user, USER_CS32, 0x1000, Ok(())),
        (user, CONFORMING_CS, USER_RIP, Ok(())),
        (kernel, KERNEL_CS, HANDLER, Ok(())),
        (user, USER_CS, NON_CANONICAL, Err(Exception::GP0)),
        (user, 3, 0, Err(Exception::GP0)),
        (user, BEYOND, 0, Err(Exception::gp(0x100))),
        (user, KERNEL_CS | 3, 0, Err(Exception::gp(0x10))),
        (kernel, USER_CS, 0, Err(Exception::gp(0x30))),
        (kernel, KERNEL_CS | 3, 0, Err(Exception::gp(0x10))),
        (user, USER_SS, 0, Err(Exception::gp(0x28))),
        (user, TSS_SELECTOR, 0, Err(Exception::gp(0x40))),
        (kernel, BOTH_L_AND_D, 0, Err(Exception::gp(0x90))),
        (kernel, ABSENT_CS, 0, Err(Exception::np(0x98))),
    ];
    for (machine, selector, offset, expected) in cases {
        let (mut cpu, mut mem) = machine();
        let (old_rsp, cpl) = (cpu.gpr[4], cpu.cpl);
        assert_eq!(far_jmp(&mut cpu, &mut mem, *selector, *offset), *expected, "jmp {selector:#x}:{offset:#x}");
        let (mut called, mut mem) = machine();
        let call = far_call(&mut called, &mut mem, *selector, *offset, OperandSize::Qword);
        assert_eq!(call, *expected, "call {selector:#x}:{offset:#x}");
        if expected.is_ok() {
            assert_eq!(cpu.segment(SegmentIndex::Cs).selector, selector & !3 | u16::from(cpl));
            assert_eq!((cpu.rip, cpu.gpr[4], cpu.cpl), (*offset, old_rsp, cpl));
            assert_eq!((called.rip, called.gpr[4]), (*offset, old_rsp - 16));
        } else {
            assert_eq!(called.gpr[4], old_rsp);
        }
    }
}

#[test]
fn call_gate_to_the_kernel_and_back() {
    let (mut cpu, mut mem) = user();
    far_call(&mut cpu, &mut mem, CALL_GATE, 0xDEAD, OperandSize::Dword).unwrap();
    assert_eq!(where_is(&cpu), (KERNEL_CS, HANDLER, 0, KERNEL_STACK - 32, 0));
    let frame: [u64; 4] = core::array::from_fn(|i| mem.peek(cpu.gpr[4] + 8 * i as u64));
    assert_eq!(frame, [0x40_0002, USER_CS.into(), USER_STACK - 0x100, USER_SS.into()]);
    far_ret(&mut cpu, &mut mem, OperandSize::Qword, 0).unwrap();
    assert_eq!(where_is(&cpu), (USER_CS, 0x40_0002, USER_SS, USER_STACK - 0x100, 3));
    assert_eq!(cpu.segment(SegmentIndex::Ds).selector, 0, "kernel data does not leak out");
    assert_eq!(far_jmp(&mut cpu, &mut mem, CALL_GATE, 0), Err(Exception::gp(0x10)), "JMP cannot gain privilege");

    let gate = GDT + u64::from(CALL_GATE & !7);
    for (low, exception) in [
        (0x1234_8C00_0010_5678, Exception::gp(0x70)), // DPL 0
        (0x1234_6C00_0010_5678, Exception::np(0x70)),
        (0x1234_EC00_0000_5678, Exception::GP0),
        (0x1234_EC00_0018_5678, Exception::gp(0x18)),
        (0x1234_EC00_0088_5678, Exception::gp(0x88)), // 32-bit code
    ] {
        mem.poke(gate, low);
        assert_eq!(far_call(&mut cpu, &mut mem, CALL_GATE, 0, OperandSize::Qword), Err(exception), "{low:#x}");
    }
}

#[test]
fn far_return_conditions() {
    let (mut cpu, mut mem) = kernel();
    put_stack(&cpu, &mut mem, OperandSize::Qword, &[USER_RIP, USER_CS.into(), 0, USER_STACK, USER_SS.into()]);
    far_ret(&mut cpu, &mut mem, OperandSize::Qword, 8).unwrap();
    assert_eq!(where_is(&cpu), (USER_CS, USER_RIP, USER_SS, USER_STACK + 8, 3), "both stacks release");
    let cases = [
        ([USER_RIP, 0], Exception::GP0),
        ([HANDLER, u64::from(KERNEL_CS)], Exception::gp(0x10)),
        ([NON_CANONICAL, u64::from(USER_CS)], Exception::GP0),
        ([USER_RIP, u64::from(USER_SS)], Exception::gp(0x28)),
        ([USER_RIP, u64::from(BEYOND | 3)], Exception::gp(0x100)),
    ];
    for (frame, exception) in cases {
        let (mut cpu, mut mem) = user();
        put_stack(&cpu, &mut mem, OperandSize::Qword, &frame);
        assert_eq!(far_ret(&mut cpu, &mut mem, OperandSize::Qword, 0), Err(exception), "{frame:x?}");
    }
}
