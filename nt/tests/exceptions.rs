//! What a faulting program ends with: status, parameters, address.

use iced_x86::code_asm::*;
use lstar_nt::io::host::CapturedHost;
use lstar_nt::status::Status;
use lstar_nt::system::{self, RunEnd, System};
use lstar_runtime::{Engine, MachineConfig, Registers};

/// Where the demonstration's code starts: its place is taken by the test's.
const ENTRY: u64 = 0x1_4000_1000;

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;
type IcedError = iced_x86::IcedError;

/// Name, code, offset of the faulting instruction, exit status, parameters.
type Case = (&'static str, Program, u64, Status, &'static [u64]);

const CASES: [Case; 10] = [
    ("null-read", |a| a.mov(eax, dword_ptr(8)), 0, Status::ACCESS_VIOLATION, &[0, 8]),
    ("code-write", |a| a.mov(byte_ptr(0x1_4000_1000_u64), al), 0, Status::ACCESS_VIOLATION, &[1, ENTRY]),
    (
        "wild-jump",
        |a| {
            a.mov(rax, 0x1234_5678_u64)?;
            a.jmp(rax)
        },
        0,
        Status::ACCESS_VIOLATION,
        &[8, 0x1234_5678],
    ),
    (
        "kernel-read",
        |a| a.mov(rax, qword_ptr(0xFFFF_F800_03E7_0000_u64)),
        0,
        Status::ACCESS_VIOLATION,
        &[0, 0xFFFF_F800_03E7_0000],
    ),
    (
        "non-canonical",
        |a| {
            a.mov(rax, 1u64 << 62)?;
            a.mov(ecx, dword_ptr(rax))
        },
        10,
        Status::ACCESS_VIOLATION,
        &[0, u64::MAX],
    ),
    (
        "divide",
        |a| {
            a.xor(ecx, ecx)?;
            a.div(ecx)
        },
        2,
        Status::INTEGER_DIVIDE_BY_ZERO,
        &[],
    ),
    ("undefined", |a| a.ud2(), 0, Status::ILLEGAL_INSTRUCTION, &[]),
    (
        "breakpoint",
        |a| {
            a.nop()?;
            a.int3()
        },
        1,
        Status::BREAKPOINT,
        &[0],
    ),
    ("privileged", |a| a.hlt(), 0, Status::PRIVILEGED_INSTRUCTION, &[]),
    (
        "fast-fail",
        |a| {
            a.mov(ecx, 5)?;
            a.int(0x29)
        },
        5,
        Status::STACK_BUFFER_OVERRUN,
        &[5],
    ),
];

fn run(name: &str, engine: Engine, program: Program) -> RunEnd {
    run_prepared(name, engine, program, |_| ())
}

fn run_prepared(name: &str, engine: Engine, program: Program, prepare: fn(&mut System)) -> RunEnd {
    let folder = std::env::temp_dir().join(format!("lstar-exception-{name}-{engine:?}-{}", std::process::id()));
    let machine = MachineConfig { engine, hot_threshold: 2, ..MachineConfig::default() };
    let config = system::demonstration(&folder, machine, Box::new(CapturedHost::default())).unwrap();
    let mut system = System::boot(config).unwrap();
    let mut assembler = CodeAssembler::new(64).unwrap();
    program(&mut assembler).unwrap();
    system.machine.memory().write_unchecked(ENTRY, &assembler.assemble(ENTRY).unwrap()).unwrap();
    prepare(&mut system);
    let end = system.run();
    drop(system);
    std::fs::remove_dir_all(&folder).unwrap();
    end
}

#[test]
fn each_fault_ends_the_process_with_its_status() {
    for engine in [Engine::Interpreter, Engine::Translator] {
        for (name, program, offset, expected, parameters) in CASES {
            let RunEnd::Exited { status, crash: Some(crash) } = run(name, engine, program) else {
                panic!("{name}: no crash");
            };
            assert_eq!((status, crash.code), (expected, expected), "{name}");
            assert_eq!(crash.parameters, parameters, "{name}");
            if name != "wild-jump" {
                assert_eq!(crash.address.address, ENTRY + offset, "{name}");
                assert_eq!(crash.address.module, Some(("demo.exe".to_owned(), 0x1000 + offset)), "{name}");
            }
        }
    }
}

#[test]
fn endless_recursion_ends_in_a_stack_overflow() {
    let recursion: Program = |a| {
        let mut start = a.create_label();
        a.set_label(&mut start)?;
        a.push(rax)?;
        a.call(start)
    };
    for engine in [Engine::Interpreter, Engine::Translator] {
        let RunEnd::Exited { status, crash } = run("recursion", engine, recursion) else { panic!("no exit") };
        assert_eq!(status, Status::STACK_OVERFLOW);
        assert_eq!(crash.unwrap().parameters[0], 1);
    }
}

#[test]
fn a_single_step_is_reported_once() {
    const TRAP_FLAG: u64 = 0x100;
    let step: Program = |a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), TRAP_FLAG as i32)?;
        a.popfq()?;
        a.nop()?;
        a.nop()
    };
    for engine in [Engine::Interpreter, Engine::Translator] {
        let RunEnd::Exited { status, crash: Some(crash) } = run("step", engine, step) else { panic!("no crash") };
        assert_eq!(status, Status::SINGLE_STEP);
        assert_eq!(crash.registers.rflags & TRAP_FLAG, 0, "the handler goes on without stepping");
    }
}

#[test]
fn a_return_of_the_entry_point_ends_the_process() {
    let end = run("return", Engine::Interpreter, |a| {
        a.mov(eax, 42)?;
        a.ret()
    });
    assert!(matches!(end, RunEnd::Exited { status: Status(42), crash: None }), "{end:?}");
}

/// A breakpoint that MOV SS hits is reported behind the next instruction; when that enters the kernel, it is the kernel that
/// gets it, on the user's stack, and must go on.
#[test]
fn the_kernel_survives_breakpoints_that_follow_into_it() {
    const WATCHED: u64 = 0x1_4000_3100;
    /// DR7: the first breakpoint, for reads and writes of 2 bytes.
    const ACCESS_2: u64 = 7 << 16 | 1;
    let watch: fn(&mut System) = |system| {
        system.machine.memory().write_unchecked(WATCHED, &[0x2B, 0]).unwrap();
        let mut vcpu = system.machine.vcpu();
        vcpu.set_debug_register(0, WATCHED);
        vcpu.set_debug_register(7, ACCESS_2);
    };
    let call: Program = |a| {
        a.mov(eax, 0xFFF)?;
        a.mov(rbx, WATCHED)?;
        a.mov(ss, word_ptr(rbx))?;
        a.syscall()?;
        a.mov(eax, 0xFFF)?;
        a.mov(ss, word_ptr(rbx))?;
        a.int(0x2E)?;
        a.mov(eax, 42)?;
        a.ret()
    };
    let breakpoint: Program = |a| {
        a.mov(rbx, WATCHED)?;
        a.mov(ss, word_ptr(rbx))?;
        a.int3()
    };
    let hit: Program = |a| {
        a.mov(rbx, WATCHED)?;
        a.mov(ss, word_ptr(rbx))?;
        a.nop()
    };
    for engine in [Engine::Interpreter, Engine::Translator] {
        for (name, program, expected) in [
            ("held-call", call, Status(42)),
            ("held-int3", breakpoint, Status::BREAKPOINT),
            ("held", hit, Status::SINGLE_STEP),
        ] {
            let end = run_prepared(name, engine, program, watch);
            assert!(matches!(end, RunEnd::Exited { status, .. } if status == expected), "{name}: {end:?}");
        }
    }
}
