//! Every program, executed: the checksum is the one that Rust computes.

mod support;

use lstar_arch::{CpuModel, Gpr};
use lstar_guest_images::programs::{Program, programs};
use support::{Machine, Stop};

const STACK_TOP: u64 = 0x3_0010_0000;
const STACK_SIZE: usize = 0x10_0000;
/// HLT to return to.
const RETURN: u64 = 0x4_0000_0000;

fn run(program: &Program, n: u64) -> u64 {
    let mut machine = Machine::new(CpuModel::INTEL);
    let mut data = program.data.clone();
    data.resize(program.data_size, 0);
    machine.ram.map(program.base, program.code.clone(), false, true);
    machine.ram.map(program.data_base, data, true, true);
    machine.ram.map(STACK_TOP - STACK_SIZE as u64, vec![0; STACK_SIZE], true, true);
    machine.ram.map(RETURN, vec![0xF4], false, true);
    let rsp = STACK_TOP - 0x28;
    machine.set_u64(rsp, RETURN);
    machine.set_reg(Gpr::Rsp, rsp);
    machine.set_reg(Gpr::Rcx, n);
    let preserved = [Gpr::Rbx, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi, Gpr::R12, Gpr::R13, Gpr::R14, Gpr::R15];
    for (value, register) in (0x1111..).zip(preserved) {
        machine.set_reg(register, value);
    }
    for register in 6..16 {
        machine.cpu.xmm[register] = [register as u64, !(register as u64)];
    }
    machine.cpu.rip = program.entry;
    assert_eq!(machine.run(), Stop::Halt, "{}", program.name);
    assert_eq!(machine.reg(Gpr::Rsp), rsp + 8, "{} keeps RSP", program.name);
    for (value, register) in (0x1111..).zip(preserved) {
        assert_eq!(machine.reg(register), value, "{} keeps {register:?}", program.name);
    }
    for register in 6..16 {
        let kept = [register as u64, !(register as u64)];
        assert_eq!(machine.cpu.xmm[register], kept, "{} keeps XMM{register}", program.name);
    }
    machine.reg(Gpr::Rax)
}

#[test]
fn checksums_are_as_expected() {
    let programs = programs().expect("the programs assemble");
    assert_eq!(programs.len(), 14);
    for program in &programs {
        assert!(program.code.len() as u64 <= program.data_base - program.base);
        assert!(program.data.len() <= program.data_size && program.data_size % 0x1000 == 0);
        for n in [0, 1, 2, 3] {
            assert_eq!(run(program, n), (program.expected)(n), "{}({n})", program.name);
        }
    }
}

#[test]
fn more_rounds_give_other_checksums() {
    for program in programs().expect("the programs assemble") {
        assert_ne!((program.expected)(3), (program.expected)(4), "{}", program.name);
    }
}

#[test]
fn sha256_constants_are_the_standards() {
    let programs = programs().expect("the programs assemble");
    let sha256 = programs.iter().find(|program| program.name == "sha256").expect("sha256");
    let word = |index: usize| {
        let at = 0x40 + index * 4;
        u32::from_le_bytes(sha256.data[at..at + 4].try_into().expect("four bytes"))
    };
    assert_eq!([word(0), word(1), word(63)], [0x428A_2F98, 0x7137_4491, 0xC671_78F2]);
}
