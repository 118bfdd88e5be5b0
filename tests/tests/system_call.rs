//! The system-call path on both engines: stub, SYSCALL, KiSystemCall64, SSDT, service, SYSRET; hooks; direct dispatch.

use iced_x86::code_asm::*;
use lstar_arch::Gpr;
use lstar_guest_images::layout::Build;
use lstar_runtime::{Engine, GateAction, MachineConfig, Registers, SyscallDispatch, Vcpu, VmExit};
use lstar_tests::bare::BareSystem;

const SERVICES: &[(usize, &str, u8)] =
    &[(0, "NtZero", 0), (0x0C, "NtClose", 1), (0x52, "NtCreateFile", 11), (0x29, "NtTerminateProcess", 2)];
const SHADOW: &[(usize, &str, u8)] = &[(0, "NtUserGetThreadState", 1), (5, "NtUserFive", 6)];
const ENGINES: [Engine; 2] = [Engine::Interpreter, Engine::Translator];

fn boot(engine: Engine, dispatch: SyscallDispatch) -> BareSystem {
    BareSystem::boot(config(engine, dispatch), SERVICES, SHADOW)
}

fn config(engine: Engine, dispatch: SyscallDispatch) -> MachineConfig {
    MachineConfig { engine, dispatch, hot_threshold: 2, memory_limit: 1 << 30, ..MachineConfig::default() }
}

fn stub(a: &mut CodeAssembler, number: u32) {
    a.mov(r10, rcx).unwrap();
    a.mov(eax, number).unwrap();
    a.syscall().unwrap();
}

/// Everything user code can see behind a system call, and what the kernel has written.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    registers: Vec<u64>,
    vectors: Vec<u128>,
    rip: u64,
    rflags: u64,
    mxcsr: u32,
    selectors: [u16; 2],
    bases: [u64; 2],
    /// Instructions so far.
    retired: u64,
}

fn seen(vcpu: &Vcpu<'_>) -> Seen {
    use lstar_arch::SegmentIndex::{Cs, Ss};
    Seen {
        registers: Gpr::ALL.iter().map(|&register| vcpu.reg(register)).collect(),
        vectors: (0..16).map(|index| vcpu.xmm(index)).collect(),
        rip: vcpu.rip(),
        rflags: vcpu.rflags(),
        mxcsr: vcpu.mxcsr(),
        selectors: [vcpu.selector(Cs), vcpu.selector(Ss)],
        bases: [vcpu.gs_base(), vcpu.kernel_gs_base()],
        retired: vcpu.retired,
    }
}

#[test]
fn arguments_and_results_travel_both_ways() {
    for engine in ENGINES {
        for dispatch in [SyscallDispatch::Architectural, SyscallDispatch::Direct] {
            let mut system = boot(engine, dispatch);
            system.load_user(|a| {
                let mut top = a.create_label();
                a.mov(ebp, 20).unwrap();
                a.set_label(&mut top).unwrap();
                for argument in 5..=11 {
                    a.mov(qword_ptr(rsp + argument * 8 - 8 + 8), argument).unwrap();
                }
                a.mov(ecx, 1).unwrap();
                a.mov(edx, 2).unwrap();
                a.mov(r8d, 3).unwrap();
                a.mov(r9d, 4).unwrap();
                stub(a, 0x52);
                a.dec(ebp).unwrap();
                a.jnz(top).unwrap();
                a.mov(r12, rax).unwrap();
                stub(a, 0x29);
            });
            let mut calls = 0;
            let (exit, _) = system.run(true, &mut |vcpu, id| {
                if id == 0x29 {
                    return GateAction::Stop;
                }
                assert_eq!(id, 0x52);
                calls += 1;
                let registers = [Gpr::Rcx, Gpr::Rdx, Gpr::R8, Gpr::R9].map(|register| vcpu.reg(register));
                assert_eq!(registers, [1, 2, 3, 4]);
                let stack = vcpu.reg(Gpr::Rsp);
                for argument in 5..=11u64 {
                    let mut value = [0; 8];
                    vcpu.memory.read_unchecked(stack + argument * 8, &mut value).unwrap();
                    assert_eq!(u64::from_le_bytes(value), argument, "{engine:?} {dispatch:?}");
                }
                vcpu.set_reg(Gpr::Rax, 0xC000_0034);
                GateAction::Resume
            });
            assert_eq!(exit, VmExit::Stopped);
            assert_eq!(calls, 20);
            assert_eq!(system.machine.vcpu().reg(Gpr::R12), 0xC000_0034, "the status came back");
        }
    }
}

/// The state at every gate and behind every SYSRET, and the kernel's memory, are the same to the last bit whether the
/// guest's own code runs or the short cut is taken.
#[test]
fn direct_dispatch_equals_the_guest_code() {
    for build in [Build::Windows7, Build::Windows11] {
        for looking_at_each in [1, 3] {
            direct_dispatch_equals_the_guest_code_of(build, looking_at_each);
        }
    }
}

/// Where a service does not look at registers, what the entry code does to them is not done; the next service looks at what
/// has become of them.
fn direct_dispatch_equals_the_guest_code_of(build: Build, looking_at_each: usize) {
    let run = |dispatch, direct| {
        let mut system = BareSystem::boot_build(build, config(Engine::Translator, dispatch), SERVICES, SHADOW);
        system.load_user(|a| {
            let mut top = a.create_label();
            a.mov(r15d, 12).unwrap();
            a.set_label(&mut top).unwrap();
            // Recognisable values everywhere, different in each round.
            for (index, register) in [rbx, rbp, rsi, rdi, r8, r9, r11, r12, r13, r14, rdx, rcx].into_iter().enumerate()
            {
                a.mov(register, 0x1111_0000_0000_0000u64 + ((index as u64) << 32)).unwrap();
                a.add(register, r15).unwrap();
            }
            for index in 0..14 {
                a.mov(qword_ptr(rsp + 0x28 + index * 8), r12).unwrap();
            }
            a.movq(xmm0, r12).unwrap();
            a.movq(xmm3, r13).unwrap();
            a.movq(xmm5, r14).unwrap();
            a.movq(xmm9, rbx).unwrap();
            for number in [0, 0x0C, 0x52, 0x1000, 0x1005, 0x52 + 0x2000, 0x77] {
                a.cmp(r12, r15).unwrap();
                // Inexact: a flag of MXCSR, by an instruction that names no vector register.
                a.mov(dword_ptr(rsp + 0x20), 0x3FC0_0000).unwrap();
                a.cvtss2si(r10d, dword_ptr(rsp + 0x20)).unwrap();
                stub(a, number);
                // What the next call would overwrite is to be seen, too.
                a.mov(r13, r11).unwrap();
                a.mov(r14, rcx).unwrap();
                a.mov(r10, rax).unwrap();
                a.mov(rcx, rbx).unwrap();
            }
            a.dec(r15d).unwrap();
            a.jnz(top).unwrap();
            stub(a, 0x29);
        });
        let mut states = Vec::new();
        let mut calls = 0;
        let (exit, short_cuts) = system.run(direct, &mut |vcpu, id| {
            calls += 1;
            if id != 0x29 && calls % looking_at_each != 0 {
                vcpu.set_result(calls as u64);
                return GateAction::Resume;
            }
            states.push(seen(vcpu));
            if id == 0x29 {
                return GateAction::Stop;
            }
            vcpu.set_reg(Gpr::Rax, 0);
            GateAction::Resume
        });
        assert_eq!(exit, VmExit::Stopped);
        let kernel_data = system.kernel_data();
        (states, kernel_data, short_cuts)
    };
    let guest = run(SyscallDispatch::Architectural, false);
    let direct = run(SyscallDispatch::Direct, true);
    assert_eq!(guest.2, 0);
    assert!(direct.2 > 20, "the short cut was taken {} times", direct.2);
    assert_eq!(guest.0.len(), direct.0.len());
    for (index, (left, right)) in guest.0.iter().zip(&direct.0).enumerate() {
        assert_eq!(left, right, "at gate {index}");
    }
    let difference = guest.1.iter().zip(&direct.1).position(|(left, right)| left != right);
    assert_eq!(difference, None, "offset in the kernel's data, stacks included");
}

/// On AMD's processors SYSCALL of 32-bit code goes to CSTAR: KiSystemCall32, which shares the rest of the path.
#[test]
fn system_calls_of_32_bit_code_go_through_cstar() {
    use lstar_arch::{CpuModel, SegmentIndex};
    use lstar_runtime::Protection;
    const CODE: u64 = 0x40_0000;
    const STACK: u64 = 0x50_0000;
    for engine in ENGINES {
        let config = MachineConfig { engine, model: CpuModel::AMD, memory_limit: 1 << 30, ..MachineConfig::default() };
        let mut system = BareSystem::boot(config, SERVICES, SHADOW);
        system.load_user(|a| {
            // To 32-bit code at CODE: retfq.
            a.mov(esp, (STACK + 0x800) as u32).unwrap();
            a.push(0x23).unwrap();
            a.push(CODE as i32).unwrap();
            a.db(&[0x48, 0xCB]).unwrap();
        });
        let memory = system.machine.memory();
        memory.map(CODE, 0x1000, Protection::RX).unwrap();
        memory.map(STACK, 0x1000, Protection::RW).unwrap();
        let code = [
            0xB8, 0x0C, 0, 0, 0, // mov eax, 0Ch: NtClose
            0x60, 0x61, // pushad; popad: this is 32-bit code
            0x0F, 0x05, // syscall
            0xB8, 0x29, 0, 0, 0, // mov eax, 29h: NtTerminateProcess
            0x0F, 0x05, // syscall
        ];
        memory.write_unchecked(CODE, &code).unwrap();
        let mut calls = Vec::new();
        let (exit, _) = system.run(true, &mut |vcpu, id| {
            // SegCs of the trap frame, which RBP points into.
            let mut code_segment = [0; 2];
            vcpu.memory.read_unchecked(vcpu.reg(Gpr::Rbp) + 0xF0, &mut code_segment).unwrap();
            calls.push((id, u16::from_le_bytes(code_segment), vcpu.selector(SegmentIndex::Cs)));
            vcpu.set_reg(Gpr::Rax, 0x1234);
            if id == 0x29 { GateAction::Stop } else { GateAction::Resume }
        });
        assert_eq!(exit, VmExit::Stopped, "{engine:?}");
        assert_eq!(calls, [(0x0C, 0x23, 0x10), (0x29, 0x23, 0x10)], "{engine:?}");
    }
}
