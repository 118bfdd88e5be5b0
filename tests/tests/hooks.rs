//! Hooks as on the real machine: a guest that rewrites a service table entry, LSTAR, an IDT entry or the entry code
//! itself gets its own code run, on both engines, with and without direct dispatch. And the other ways in: Zw calls
//! from kernel mode and INT 2Eh.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lstar_arch::Gpr;
use lstar_guest_images::kernel::GateId;
use lstar_runtime::{Engine, GateAction, MachineConfig, Protection, Registers, SyscallDispatch, Vcpu, VmExit};
use lstar_tests::bare::{BareSystem, TEB, USER_CODE, USER_STACK};

const CLOSE: u32 = 0x0C;
const CREATE_FILE: u32 = 0x52;
const TERMINATE: u32 = 0x29;
const USER_FIVE: u32 = 0x1005;
const SERVICES: &[(usize, &str, u8)] =
    &[(0, "NtZero", 0), (0x0C, "NtClose", 1), (0x52, "NtCreateFile", 11), (0x29, "NtTerminateProcess", 2)];
const SHADOW: &[(usize, &str, u8)] = &[(5, "NtUserFive", 6)];

/// System calls in each phase.
const CALLS: u64 = 12;
/// What the service answers.
const SERVED: u64 = 0x77;
/// What a hook answers.
const HOOKED: u64 = 0x1234;
/// The gate that the code behind a change of the kernel ends in.
const CHANGED: u32 = 0x7000_0000;
const LSTAR: u32 = 0xC000_0082;

/// Where the hook, the code that installs it and the code that removes it lie within a page near the kernel.
const HOOK: u64 = 0;
const INSTALL: u64 = 0x400;
const REMOVE: u64 = 0x800;

type Emit<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

const CONFIGURATIONS: [(Engine, SyscallDispatch); 3] = [
    (Engine::Interpreter, SyscallDispatch::Architectural),
    (Engine::Translator, SyscallDispatch::Architectural),
    (Engine::Translator, SyscallDispatch::Direct),
];

struct Bench {
    system: BareSystem,
    direct: bool,
    /// The page for hooks.
    area: u64,
}

/// What one phase did.
#[derive(Debug, PartialEq, Eq)]
struct Phase {
    /// RAX behind the last call.
    result: u64,
    /// Calls that reached the gate.
    served: u64,
}

const UNHOOKED: Phase = Phase { result: SERVED, served: CALLS };

impl Bench {
    fn new(engine: Engine, dispatch: SyscallDispatch, hot_threshold: u32) -> Self {
        let config =
            MachineConfig { engine, dispatch, hot_threshold, memory_limit: 1 << 30, ..MachineConfig::default() };
        let mut system = BareSystem::boot(config, SERVICES, SHADOW);
        let area = system.kernel.base + 0x100_0000;
        system.machine.memory().map(area, 0x1000, Protection::RWX).expect("hook area");
        Self { system, direct: dispatch == SyscallDispatch::Direct, area }
    }

    fn symbol(&self, name: &str) -> u64 {
        self.system.kernel.address_of(name).expect("symbol")
    }

    fn put_code(&mut self, offset: u64, emit: Emit<'_>) {
        let mut assembler = CodeAssembler::new(64).expect("assembler");
        emit(&mut assembler).expect("instructions");
        let code = assembler.assemble(self.area + offset).expect("code");
        self.system.machine.memory().write_unchecked(self.area + offset, &code).expect("hook area");
    }

    /// Code that installs a hook by overwriting guest memory, and code that undoes it.
    fn overwrite(&mut self, address: u64, bytes: &[u8]) {
        let original = self.system.read(address, bytes.len() as u64);
        for (offset, bytes) in [(INSTALL, bytes), (REMOVE, &original)] {
            self.put_code(offset, &|a| {
                a.mov(rdx, address)?;
                for (index, byte) in (0i32..).zip(bytes) {
                    a.mov(byte_ptr(rdx + index), u32::from(*byte))?;
                }
                a.mov(eax, CHANGED)?;
                a.vmcall()
            });
        }
    }

    /// Code that makes `hook` the value of LSTAR, and code that undoes it.
    fn redirect_lstar(&mut self, hook: u64) {
        for (offset, value) in [(INSTALL, hook), (REMOVE, self.symbol("KiSystemCall64"))] {
            self.put_code(offset, &|a| {
                a.mov(ecx, LSTAR)?;
                a.mov(eax, value as u32)?;
                a.mov(edx, (value >> 32) as u32)?;
                a.wrmsr()?;
                a.mov(eax, CHANGED)?;
                a.vmcall()
            });
        }
    }

    /// Three phases of calls by user code: before the hook, with it, after its removal. Also says how many calls took
    /// the short cut.
    fn phases(&mut self, call: Emit<'_>) -> ([Phase; 3], u64) {
        self.system.load_user(|a| {
            let mut top = a.create_label();
            a.mov(ebp, CALLS as u32).unwrap();
            a.set_label(&mut top).unwrap();
            call(a).unwrap();
            a.dec(ebp).unwrap();
            a.jnz(top).unwrap();
            a.mov(r12, rax).unwrap();
            a.mov(eax, TERMINATE).unwrap();
            a.syscall().unwrap();
        });
        let kpcr = self.system.kernel.fast_path.kpcr;
        let area = self.area;
        let mut phases = Vec::new();
        let mut served = 0;
        let (exit, short_cuts) = self.system.run(self.direct, &mut |vcpu, id| match id {
            TERMINATE => {
                phases.push(Phase { result: vcpu.reg(Gpr::R12), served: std::mem::take(&mut served) });
                let change = match phases.len() {
                    1 => INSTALL,
                    2 => REMOVE,
                    _ => return GateAction::Stop,
                };
                vcpu.set_rip(area + change);
                GateAction::Redirect
            }
            CHANGED => {
                enter_user(vcpu, kpcr);
                GateAction::Redirect
            }
            _ if id == GateId::ConvertToGuiThread as u32 => {
                vcpu.set_reg(Gpr::Rax, 0);
                GateAction::Resume
            }
            CLOSE | USER_FIVE => {
                served += 1;
                vcpu.set_reg(Gpr::Rax, SERVED);
                GateAction::Resume
            }
            _ => panic!("gate {id:#x}"),
        });
        assert_eq!(exit, VmExit::Stopped);
        (phases.try_into().expect("three phases"), short_cuts)
    }
}

fn enter_user(vcpu: &mut Vcpu<'_>, kpcr: u64) {
    vcpu.enter_user_mode(0x33, 0x2B);
    vcpu.set_gs_base(TEB);
    vcpu.set_kernel_gs_base(kpcr);
    vcpu.set_rflags(0x202);
    vcpu.set_rip(USER_CODE);
    vcpu.set_reg(Gpr::Rsp, USER_STACK - 0x1000);
}

fn call(number: u32) -> impl Fn(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        a.mov(r10, rcx)?;
        a.mov(eax, number)?;
        a.syscall()
    }
}

/// Runs the three phases in every configuration. `install` prepares the hook; `short_cuts` is how many calls take the
/// short cut where it is allowed.
fn hooked(install: impl Fn(&mut Bench), user: Emit<'_>, short_cuts: u64) {
    for (engine, dispatch) in CONFIGURATIONS {
        let mut bench = Bench::new(engine, dispatch, 0);
        install(&mut bench);
        let (phases, taken) = bench.phases(user);
        let hooked = Phase { result: HOOKED, served: 0 };
        assert_eq!(phases, [UNHOOKED, hooked, UNHOOKED], "{engine:?} {dispatch:?}");
        assert_eq!(taken, if bench.direct { short_cuts } else { 0 }, "{engine:?} {dispatch:?}: short cuts");
    }
}

/// Rewrites an entry of a service table to lead to a hook that answers itself.
fn hook_entry(bench: &mut Bench, table: &str, index: u64, arguments: u32) {
    bench.put_code(HOOK, &|a| {
        a.mov(eax, HOOKED as u32)?;
        a.ret()
    });
    let base = bench.symbol(table);
    let entry = ((bench.area + HOOK).wrapping_sub(base) as u32) << 4 | arguments;
    bench.overwrite(base + index * 4, &entry.to_le_bytes());
}

#[test]
fn a_rewritten_service_table_entry_runs_the_hook() {
    // Every phase also ends in a call that is not hooked.
    let short_cuts = CALLS + CALLS + 3;
    hooked(|bench| hook_entry(bench, "KiServiceTable", CLOSE.into(), 0), &call(CLOSE), short_cuts);
}

#[test]
fn a_rewritten_shadow_table_entry_runs_the_hook() {
    // The very first call makes the thread a GUI thread, which the guest's own code does.
    let short_cuts = CALLS - 1 + CALLS + 3;
    hooked(|bench| hook_entry(bench, "W32pServiceTable", 5, 2), &call(USER_FIVE), short_cuts);
}

#[test]
fn a_rewritten_lstar_runs_the_hook() {
    let install = |bench: &mut Bench| {
        let original = bench.symbol("KiSystemCall64");
        bench.put_code(HOOK, &|a| {
            let mut other = a.create_label();
            a.cmp(eax, CLOSE)?;
            a.jne(other)?;
            a.mov(eax, HOOKED as u32)?;
            a.sysretq()?;
            a.set_label(&mut other)?;
            a.jmp(original)
        });
        bench.redirect_lstar(bench.area + HOOK);
    };
    hooked(install, &call(CLOSE), CALLS + 1 + CALLS + 1);
}

#[test]
fn patched_entry_code_runs_and_ends_direct_dispatch() {
    let install = |bench: &mut Bench| {
        let original = bench.symbol("KiSystemCall64");
        let memory = bench.system.machine.memory();
        memory.protect(original & !0xFFF, 0x2000, Protection::RWX).expect("entry code");
        let first = bench.system.read(original, 12);
        assert_eq!(first, [0x0F, 0x01, 0xF8, 0x65, 0x48, 0x89, 0x24, 0x25, 0x10, 0, 0, 0], "SWAPGS, MOV GS:[10h], RSP");
        bench.put_code(HOOK, &|a| {
            let mut other = a.create_label();
            a.cmp(eax, CLOSE)?;
            a.jne(other)?;
            a.mov(eax, HOOKED as u32)?;
            a.sysretq()?;
            a.set_label(&mut other)?;
            a.swapgs()?;
            a.mov(qword_ptr(0x10).gs(), rsp)?;
            a.jmp(original + 12)
        });
        let distance = (bench.area + HOOK).wrapping_sub(original + 5) as u32;
        let mut jump = vec![0xE9];
        jump.extend(distance.to_le_bytes());
        bench.overwrite(original, &jump);
    };
    // Code that was once changed is not trusted again.
    hooked(install, &call(CLOSE), CALLS + 1);
}

#[test]
fn a_rewritten_idt_entry_runs_the_hook() {
    let install = |bench: &mut Bench| {
        bench.put_code(HOOK, &|a| {
            a.mov(eax, HOOKED as u32)?;
            a.iretq()
        });
        let target = bench.area + HOOK;
        let low = target & 0xFFFF | 0x10 << 16 | 0xEE00 << 32 | (target >> 16 & 0xFFFF) << 48;
        let mut gate = low.to_le_bytes().to_vec();
        gate.extend((target >> 32).to_le_bytes());
        let entry = bench.symbol("KiIdt") + 0x2E * 16;
        bench.overwrite(entry, &gate);
    };
    // The hooked way in is not SYSCALL; only the calls that end the phases are.
    let user = |a: &mut CodeAssembler| {
        a.mov(r10, rcx)?;
        a.mov(eax, CLOSE)?;
        a.int(0x2E)
    };
    hooked(install, &user, 3);
}

/// A Zw stub in kernel mode: eleven arguments arrive, PreviousMode is KernelMode meanwhile, everything comes back.
#[test]
fn a_zw_call_reaches_the_service() {
    for (engine, dispatch) in CONFIGURATIONS {
        let mut bench = Bench::new(engine, dispatch, 0);
        let stub = bench.symbol("ZwCreateFile");
        bench.put_code(HOOK, &|a| {
            let mut top = a.create_label();
            a.sub(rsp, 0x100)?;
            a.and(rsp, -16)?;
            a.mov(rbx, rsp)?;
            a.mov(esi, CALLS as u32)?;
            a.set_label(&mut top)?;
            for argument in 5..=11 {
                a.mov(qword_ptr(rsp + (argument * 8 - 8)), argument)?;
            }
            a.mov(ecx, 1)?;
            a.mov(edx, 2)?;
            a.mov(r8d, 3)?;
            a.mov(r9d, 4)?;
            a.mov(rax, stub)?;
            a.call(rax)?;
            a.add(rdi, rax)?;
            a.dec(esi)?;
            a.jnz(top)?;
            a.mov(eax, TERMINATE)?;
            a.vmcall()
        });
        let entry = bench.area + HOOK;
        bench.system.machine.vcpu().set_rip(entry);
        let before = bench.system.machine.vcpu().reg(Gpr::Rdi);
        let mut calls = 0;
        let (exit, short_cuts) = bench.system.run(bench.direct, &mut |vcpu, id| {
            if id == TERMINATE {
                return GateAction::Stop;
            }
            assert_eq!((id, vcpu.cpl()), (CREATE_FILE, 0));
            assert_eq!([Gpr::Rcx, Gpr::Rdx, Gpr::R8, Gpr::R9].map(|register| vcpu.reg(register)), [1, 2, 3, 4]);
            let stack = vcpu.reg(Gpr::Rsp);
            for argument in 5..=11u64 {
                let mut value = [0; 8];
                vcpu.memory.read_unchecked(stack + argument * 8, &mut value).expect("stack");
                assert_eq!(u64::from_le_bytes(value), argument, "{engine:?} {dispatch:?}");
            }
            calls += 1;
            vcpu.set_reg(Gpr::Rax, SERVED);
            GateAction::Resume
        });
        assert_eq!((exit, calls, short_cuts), (VmExit::Stopped, CALLS, 0), "{engine:?} {dispatch:?}");
        let vcpu = bench.system.machine.vcpu();
        assert_eq!(vcpu.reg(Gpr::Rdi).wrapping_sub(before), CALLS * SERVED);
        assert_eq!(vcpu.reg(Gpr::Rsp), vcpu.reg(Gpr::Rbx), "the stack is balanced");
    }
}

/// SYSCALL instructions and changes of privilege are counted alike, whoever executes them.
#[test]
fn system_calls_are_counted_alike() {
    for (engine, dispatch) in CONFIGURATIONS {
        for hot_threshold in [0, 3, u32::MAX] {
            let mut bench = Bench::new(engine, dispatch, hot_threshold);
            // Nothing is hooked: the code that would do it ends at once.
            let nothing = |a: &mut CodeAssembler| {
                a.mov(eax, CHANGED)?;
                a.vmcall()
            };
            bench.put_code(INSTALL, &nothing);
            bench.put_code(REMOVE, &nothing);
            let (phases, _) = bench.phases(&call(CLOSE));
            assert_eq!(phases, [UNHOOKED, UNHOOKED, UNHOOKED]);
            let statistics = bench.system.machine.statistics();
            let what = format!("{engine:?} {dispatch:?} threshold {hot_threshold}");
            assert_eq!(statistics.syscalls, 3 * (CALLS + 1), "{what}");
            // Each call goes in and comes back, but for the last one; the test's own returns to user mode count as well.
            assert_eq!(statistics.privilege_switches, 6 * (CALLS + 1) - 1, "{what}");
        }
    }
}
