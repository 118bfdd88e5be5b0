//! A guest that makes code for ever: memory for translated code stays bounded, old generations go, code in use stays.

use iced_x86::code_asm::*;
use lstar_arch::Gpr;
use lstar_runtime::{GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, Vcpu, VmExit};

const CODE: u64 = 0x1_4000_0000;
/// Where generations are written.
const MADE: u64 = 0x1_4800_0000;
const STACK: u64 = 0x1_6000_0000;
const GENERATIONS: u64 = 1500;
/// Calls of each.
const CALLS: u64 = 12;
const CACHE: usize = 256 << 10;

struct Stop;

impl ServiceGate for Stop {
    fn service(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        GateAction::Stop
    }
}

/// Writes `mov eax, number; add rbx, rax; ret` anew for each number, and calls it `CALLS` times.
fn program(a: &mut CodeAssembler) {
    let (mut next, mut call) = (a.create_label(), a.create_label());
    a.mov(rsi, MADE).unwrap();
    a.mov(r12, 1u64).unwrap();
    a.set_label(&mut next).unwrap();
    a.mov(byte_ptr(rsi), 0xB8).unwrap();
    a.mov(dword_ptr(rsi + 1), r12d).unwrap();
    // add rbx, rax; ret
    a.mov(dword_ptr(rsi + 5), 0xC3C3_0148u32 as i32).unwrap();
    a.mov(r13, CALLS).unwrap();
    a.set_label(&mut call).unwrap();
    a.call(rsi).unwrap();
    a.dec(r13).unwrap();
    a.jnz(call).unwrap();
    a.inc(r12).unwrap();
    a.cmp(r12d, GENERATIONS as i32).unwrap();
    a.jbe(next).unwrap();
    a.vmcall().unwrap();
}

#[test]
fn a_guest_that_rewrites_its_code_needs_no_more_memory() {
    for background in [false, true] {
        let config = MachineConfig {
            hot_threshold: 3,
            memory_limit: 1 << 30,
            code_cache_size: CACHE,
            background,
            ..MachineConfig::default()
        };
        let mut machine = Machine::new(config).unwrap();
        let mut assembler = CodeAssembler::new(64).unwrap();
        program(&mut assembler);
        let code = assembler.assemble(CODE).unwrap();
        machine.memory().map(CODE, 0x1000, Protection::RX).unwrap();
        machine.memory().map(MADE, 0x1000, Protection::RWX).unwrap();
        machine.memory().map(STACK, 0x10000, Protection::RW).unwrap();
        machine.memory().write_unchecked(CODE, &code).unwrap();
        let mut vcpu = machine.vcpu();
        vcpu.set_rip(CODE);
        vcpu.set_reg(Gpr::Rsp, STACK + 0x8000);
        assert_eq!(machine.run(&mut Stop, u64::MAX), VmExit::Stopped);
        assert_eq!(machine.vcpu().reg(Gpr::Rbx), CALLS * GENERATIONS * (GENERATIONS + 1) / 2, "{background}");
        let statistics = machine.statistics();
        if background {
            // How far the other thread gets is the host's affair.
            continue;
        }
        assert!(statistics.regions > GENERATIONS, "{statistics:?}");
        assert!(statistics.evictions >= 2 && statistics.host_code_bytes > 2 * CACHE as u64, "{statistics:?}");
        assert_eq!(statistics.evicted_regions, 0, "what is in use stays: {statistics:?}");
        let held: u64 = machine.regions().into_iter().map(|(code, _)| code.end - code.start).sum();
        assert!(held <= CACHE as u64);
    }
}
