//! 32-bit code beside 64-bit code: hot loops behind far transfers, and everything that must not be mixed up between the modes.
//! Each program runs on both engines, with translation from the first visit and later on.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lstar_arch::{Gpr, Segment, SegmentIndex};
use lstar_runtime::{
    Engine, GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, Statistics, Vcpu, VmExit,
};
use lstar_tests::bare::BareSystem;

/// 64-bit code, where far transfers with 32-bit offsets reach it.
const WIDE: u64 = 0x50_0000;
/// 32-bit code.
const NARROW: u64 = 0x51_0000;
/// Far pointer to [`NARROW`].
const POINTER: u64 = 0x52_0000;
/// Data that programs may use.
const DATA: u64 = 0x52_1000;
/// End of a stack that both modes reach.
const STACK: u64 = 0x54_0000;
const CODE32: u16 = 0x23;
const CODE64: u16 = 0x33;

type Code<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn assemble(bits: u32, address: u64, code: Code<'_>) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).expect("assembler");
    code(&mut a).expect("instructions");
    a.assemble(address).expect("code")
}

/// What a program left: registers at its system call, and [`DATA`].
#[derive(Debug, PartialEq)]
struct Seen {
    gpr: [u64; 16],
    data: Vec<u8>,
}

fn run_once(config: MachineConfig, wide: Code<'_>, narrow: Code<'_>) -> (Seen, Statistics) {
    let mut system = BareSystem::boot(config, &[(1, "NtStop", 0)], &[]);
    let memory = system.machine.memory();
    memory.map(WIDE, 0x2_0000, Protection::RWX).expect("code");
    memory.map(POINTER, STACK - POINTER, Protection::RW).expect("data");
    for (address, bytes) in [
        (WIDE, assemble(64, WIDE, wide)),
        (NARROW, assemble(32, NARROW, narrow)),
        (POINTER, [&(NARROW as u32).to_le_bytes()[..], &CODE32.to_le_bytes()].concat()),
    ] {
        memory.write_unchecked(address, &bytes).expect("mapped");
    }
    system.enter_user(WIDE);
    let mut gpr = [0; 16];
    let (exit, _) = system.run(false, &mut |vcpu, id| {
        assert_eq!(id, 1, "the program calls NtStop");
        gpr = Gpr::ALL.map(|register| vcpu.reg(register));
        GateAction::Stop
    });
    assert_eq!(exit, VmExit::Stopped);
    let statistics = system.machine.statistics();
    // What SYSCALL and the kernel use says nothing of the program.
    for register in [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::R10, Gpr::R11, Gpr::Rsp, Gpr::Rbp] {
        gpr[register as usize] = 0;
    }
    (Seen { gpr, data: system.read(DATA, 0x1000) }, statistics)
}

/// Runs a program that calls or jumps from 64-bit to 32-bit code on both engines, which must agree.
fn run(wide: Code<'_>, narrow: Code<'_>) -> Seen {
    let config = MachineConfig { memory_limit: 1 << 28, ..MachineConfig::default() };
    let (expected, _) = run_once(MachineConfig { engine: Engine::Interpreter, ..config }, wide, narrow);
    for hot_threshold in [0, 3, 40] {
        let (seen, statistics) = run_once(MachineConfig { hot_threshold, ..config }, wide, narrow);
        assert_eq!(seen, expected, "translated after {hot_threshold} visits");
        // Code that changes itself never gets as far as several visits.
        assert!(statistics.regions_32bit > 0 || hot_threshold > 0, "no 32-bit code was translated");
    }
    expected
}

/// The end of a 64-bit program.
fn stop(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, 1)?;
    a.syscall()
}

/// `call far [POINTER]` with ESP in reach of 32-bit code; R14 is lost.
fn through_the_gate(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(r14, rsp)?;
    a.mov(esp, STACK as u32)?;
    a.call(fword_ptr(POINTER))?;
    a.mov(rsp, r14)
}

/// EAX becomes 1 in 64-bit code and 0 in 32-bit code; the same bytes in both.
const WHICH_MODE: [u8; 6] = [0x48, 0x31, 0xC0, 0x48, 0xFF, 0xC0];

#[test]
fn hot_32bit_code_behind_the_gate_is_translated() {
    const TURNS: u32 = 300;
    let wide = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(r12d, TURNS)?;
        a.xor(r15d, r15d)?;
        a.mov(rsi, 0x1122_3344_5566_7788u64)?;
        a.mov(rbx, 0xAAAA_BBBB_0000_0003u64)?;
        a.set_label(&mut again)?;
        a.mov(ecx, 20)?;
        through_the_gate(a)?;
        a.add(r15, rax)?;
        a.dec(r12d)?;
        a.jne(again)?;
        a.mov(r13, rbx)?;
        stop(a)
    };
    let narrow = |a: &mut CodeAssembler| {
        let (mut again, mut inner) = (a.create_label(), a.create_label());
        a.xor(edx, edx)?;
        // An 8-bit write keeps the upper half of RBX.
        a.add(bl, 1)?;
        a.set_label(&mut again)?;
        a.push(ecx)?;
        a.call(inner)?;
        a.pop(ecx)?;
        a.add(edx, eax)?;
        a.loop_(again)?;
        a.mov(eax, edx)?;
        a.retf()?;
        a.set_label(&mut inner)?;
        a.push(ebp)?;
        a.mov(ebp, esp)?;
        a.imul_3(eax, dword_ptr(ebp + 8), 31)?;
        a.add(eax, dword_ptr(DATA + 64 + ecx * 4))?;
        a.xor(dword_ptr(DATA + ecx * 4), eax)?;
        a.leave()?;
        a.ret()
    };
    let seen = run(&wide, &narrow);
    assert_eq!(
        (seen.gpr[Gpr::Rsi as usize], seen.gpr[Gpr::R13 as usize]),
        (0x1122_3344_5566_7788, 0xAAAA_BBBB_0000_002F)
    );
    // Little is left to the interpreter.
    let (_, statistics) =
        run_once(MachineConfig { memory_limit: 1 << 28, hot_threshold: 3, ..MachineConfig::default() }, &wide, &narrow);
    assert!(statistics.interpreted * 4 < statistics.instructions, "{statistics:?}");
}

/// A function that host frames of 64-bit code wait for returns to their very address, but in 32-bit code.
#[test]
fn a_return_in_the_other_mode_is_no_return() {
    let wide = |a: &mut CodeAssembler| {
        let (mut again, mut function, mut bad, mut next) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.mov(r12d, 200)?;
        a.set_label(&mut again)?;
        a.mov(r14, rsp)?;
        a.mov(esp, STACK as u32)?;
        a.call(function)?;
        // RET has taken four bytes.
        a.db(&WHICH_MODE)?;
        a.test(eax, eax)?;
        a.jne(bad)?;
        // push CODE64; call +0; add dword [esp], 6; retf: to behind it.
        a.db(&[0x6A, CODE64 as u8, 0xE8, 0, 0, 0, 0, 0x83, 0x04, 0x24, 5, 0xCB])?;
        a.set_label(&mut next)?;
        a.inc(r15)?;
        a.set_label(&mut bad)?;
        a.mov(rsp, r14)?;
        a.dec(r12d)?;
        a.jne(again)?;
        stop(a)?;
        a.set_label(&mut function)?;
        a.jmp(fword_ptr(POINTER))
    };
    let narrow = |a: &mut CodeAssembler| {
        a.add(dword_ptr(DATA), 3)?;
        a.ret()
    };
    let seen = run(&wide, &narrow);
    assert_eq!((seen.gpr[Gpr::R15 as usize], seen.data[0], seen.data[1]), (200, 0x58, 2));
}

/// The same the other way round: 32-bit code waits, and 64-bit code returns.
#[test]
fn a_return_from_64bit_code_is_no_return_of_32bit_code() {
    let wide = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(r12d, 20)?;
        a.set_label(&mut again)?;
        through_the_gate(a)?;
        a.dec(r12d)?;
        a.jne(again)?;
        stop(a)
    };
    let narrow = |a: &mut CodeAssembler| {
        let (mut again, mut function, mut elsewhere, mut inner) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, 10)?;
        a.set_label(&mut again)?;
        // The upper half of a 64-bit return address.
        a.push(0)?;
        a.call(function)?;
        a.db(&WHICH_MODE)?;
        a.test(eax, eax)?;
        a.je(elsewhere)?;
        // In 64-bit code: count (INC [EDI] or [RDI]), and go back: push CODE32; call +0; add qword [rsp], 7; retfq.
        a.mov(edi, DATA as u32)?;
        a.db(&[0xFF, 0x07])?;
        a.set_label(&mut elsewhere)?;
        a.db(&[0x6A, CODE32 as u8, 0xE8, 0, 0, 0, 0, 0x48, 0x83, 0x04, 0x24, 7, 0x48, 0xCB])?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.retf()?;
        a.set_label(&mut function)?;
        a.call(inner)?;
        a.nop()?;
        // push CODE64; call +0; add dword [esp], 5; retf; then, in 64-bit code, ret.
        a.set_label(&mut inner)?;
        a.add(esp, 4)?;
        a.db(&[0x6A, CODE64 as u8, 0xE8, 0, 0, 0, 0, 0x83, 0x04, 0x24, 5, 0xCB, 0xC3])
    };
    let seen = run(&wide, &narrow);
    assert_eq!(u32::from_le_bytes([seen.data[0], seen.data[1], seen.data[2], seen.data[3]]), 200);
}

/// The same function, by direct and by indirect calls, as code of both modes.
#[test]
fn code_at_one_address_is_translated_for_each_mode() {
    const SHARED: u32 = NARROW as u32 + 0x100;
    let wide = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(r12d, 200)?;
        a.set_label(&mut again)?;
        a.mov(edx, SHARED)?;
        a.call(u64::from(SHARED))?;
        a.call(rdx)?;
        through_the_gate(a)?;
        a.dec(r12d)?;
        a.jne(again)?;
        stop(a)
    };
    let narrow = |a: &mut CodeAssembler| {
        a.call(u64::from(SHARED))?;
        a.call(edx)?;
        a.retf()
    };
    let shared = |a: &mut CodeAssembler| {
        a.db(&WHICH_MODE)?;
        // add [DATA + eax * 4], 1 by way of EDI; ret.
        a.mov(edi, DATA as u32)?;
        a.db(&[0x83, 0x04, 0x87, 0x01, 0xC3])
    };
    let both = |a: &mut CodeAssembler| {
        let mut bytes = assemble(32, NARROW, &narrow);
        bytes.resize(0x100, 0xCC);
        bytes.extend(assemble(32, u64::from(SHARED), &shared));
        a.db(&bytes)
    };
    let seen = run(&wide, &both);
    assert_eq!((&seen.data[..2], &seen.data[4..6]), (&[0x90, 1][..], &[0x90, 1][..]));
}

#[test]
fn hot_32bit_code_that_changes_itself() {
    let wide = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(r12d, 30)?;
        a.set_label(&mut again)?;
        through_the_gate(a)?;
        a.add(r15, rax)?;
        a.dec(r12d)?;
        a.jne(again)?;
        stop(a)
    };
    let narrow = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.xor(eax, eax)?;
        a.mov(ecx, 40)?;
        a.set_label(&mut again)?;
        // The immediate operand of the next instruction: ADD EAX, imm32 with an opcode of one byte.
        a.mov(byte_ptr(NARROW + 7 + 6 + 1), cl)?;
        a.db(&[0x05, 0, 0, 0, 0])?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.retf()
    };
    let seen = run(&wide, &narrow);
    assert_eq!(seen.gpr[Gpr::R15 as usize], 30 * (40 * 41 / 2));
}

struct NoGate;

impl ServiceGate for NoGate {
    fn service(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        GateAction::Stop
    }
}

/// To [`NARROW`], as flat 32-bit code.
fn enter_narrow(machine: &mut Machine) {
    let mut vcpu = machine.vcpu();
    vcpu.enter_user_mode(CODE64, 0x2B);
    *vcpu.state_mut().segment_mut(SegmentIndex::Cs) = Segment::flat_code32(CODE32, 3);
    vcpu.set_data_segment(SegmentIndex::Ds, 0x2B, u32::MAX);
    vcpu.set_data_segment(SegmentIndex::Es, 0x2B, u32::MAX);
    vcpu.set_rip(NARROW);
}

/// What is left when nothing handles the exception: RIP, CR2, registers, and how many regions there were.
fn until_fault(engine: Engine, mapped: &[u64], code: Code<'_>, steps: u64) -> ((u64, u64, [u64; 16], VmExit), u64) {
    let config = MachineConfig { engine, hot_threshold: 0, memory_limit: 1 << 28, ..MachineConfig::default() };
    let mut machine = Machine::new(config).expect("machine");
    let memory = machine.memory();
    memory.map(NARROW, 0x1000, Protection::RX).expect("code");
    memory.write_unchecked(NARROW, &assemble(32, NARROW, code)).expect("mapped");
    for &page in mapped {
        memory.map(page, 0x1000, Protection::RW).expect("page");
        memory.write_unchecked(page, &[0x5A; 0x1000]).expect("mapped");
    }
    enter_narrow(&mut machine);
    let exit = machine.run(&mut NoGate, steps);
    let regions = machine.statistics().regions_32bit;
    let vcpu = machine.vcpu();
    ((vcpu.rip(), vcpu.cr2(), Gpr::ALL.map(|register| vcpu.reg(register)), exit), regions)
}

/// Code in the last page below 4 GiB is interpreted, and counted.
#[test]
fn an_endless_loop_below_4_gib_ends_with_the_budget() {
    const LAST: u64 = (1 << 32) - 0x1000;
    let config = MachineConfig { hot_threshold: 0, memory_limit: 1 << 28, ..MachineConfig::default() };
    let mut machine = Machine::new(config).expect("machine");
    for (page, code) in [(NARROW, &[0xE9, 0xFB, 0xEF, 0xAE, 0xFF][..]), (LAST, &[0x40, 0xEB, 0xFD])] {
        machine.memory().map(page, 0x1000, Protection::RX).expect("page");
        machine.memory().write_unchecked(page, code).expect("mapped");
    }
    enter_narrow(&mut machine);
    assert_eq!(machine.run(&mut NoGate, 1001), VmExit::Budget);
    assert_eq!((machine.vcpu().reg(Gpr::Rax), machine.vcpu().rip()), (500, LAST));
}

/// An access that crosses 4 GiB, and strings that come there.
#[test]
fn the_border_of_4_gib() {
    const LAST: u64 = (1 << 32) - 0x1000;
    let load = |a: &mut CodeAssembler| {
        a.mov(ebx, 0xFFFF_FFF0u32)?;
        a.mov(eax, dword_ptr(ebx + 12))?;
        a.inc(edx)?;
        a.mov(eax, dword_ptr(ebx + 14))?;
        a.inc(edx)?;
        a.mov(eax, dword_ptr(ebx + 0x20))?;
        a.hlt()
    };
    let string = |a: &mut CodeAssembler| {
        a.mov(edi, 0xFFFF_FF03u32)?;
        a.mov(ecx, 0x100)?;
        a.mov(eax, 7)?;
        a.rep().stosd()?;
        a.hlt()
    };
    for code in [&load as Code<'_>, &string] {
        for mapped in [&[LAST][..], &[1 << 32], &[LAST, 1 << 32], &[]] {
            let (expected, _) = until_fault(Engine::Interpreter, mapped, code, 1000);
            let (seen, regions) = until_fault(Engine::Translator, mapped, code, 1000);
            assert_eq!(seen, expected, "mapped: {mapped:x?}");
            assert_eq!(regions > 0, mapped.len() < 2, "mapped: {mapped:x?}");
        }
    }
}
