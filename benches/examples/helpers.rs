//! What the instructions cost that translated code does not carry out inline: nanoseconds for one of each, on the host and in
//! translated code, in a loop of sixteen: `cargo run --release -p lstar_benches --example helpers`. Writes the table of
//! `docs/helpers.md` with `--markdown`.

use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};
use lstar_arch::CpuModel;
use lstar_guest_images::programs::{CODE_BASE, DATA_BASE, Program};
use lstar_runtime::{Engine, MachineConfig};
use lstar_tests::programs::{LoadedProgram, NativeProgram};

/// How often the instruction stands in the loop.
const COPIES: u64 = 16;
/// Rounds of the loop in one measurement.
const ROUNDS: u64 = 20_000;
/// Measurements, of which the least counts: other work on the machine disturbs it least.
const MEASUREMENTS: usize = 7;

/// An instruction, or the few that make it repeatable.
struct Case {
    name: &'static str,
    /// The instruction; R10 points to 4 KiB of memory that is zero at the start, RCX counts rounds.
    emit: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    /// How translated code does it.
    how: &'static str,
}

const INLINE: &str = "inline";
const OPERATION: &str = "stub of one host instruction";
const HELPER: &str = "helper";
const INTERPRETER: &str = "interpreter";

const CASES: &[Case] = &[
    Case { name: "(nothing but the loop)", emit: |_| Ok(()), how: INLINE },
    Case { name: "PADDD", emit: |a| a.paddd(xmm0, xmm1), how: INLINE },
    Case { name: "AESENC", emit: |a| a.aesenc(xmm0, xmm1), how: INLINE },
    Case { name: "AESKEYGENASSIST", emit: |a| a.aeskeygenassist(xmm0, xmm1, 1), how: OPERATION },
    Case { name: "PCLMULQDQ", emit: |a| a.pclmulqdq(xmm0, xmm1, 0), how: OPERATION },
    Case { name: "SHA256RNDS2", emit: |a| a.sha256rnds2(xmm1, xmm2), how: OPERATION },
    Case { name: "CRC32 r64", emit: |a| a.crc32(rax, rdx), how: OPERATION },
    Case { name: "DPPS", emit: |a| a.dpps(xmm0, xmm1, 0x31), how: OPERATION },
    Case { name: "DPPD", emit: |a| a.dppd(xmm0, xmm1, 0x31), how: OPERATION },
    Case { name: "VDPPS ymm", emit: |a| a.vdpps(ymm0, ymm0, ymm1, 0x31), how: OPERATION },
    Case { name: "MPSADBW", emit: |a| a.mpsadbw(xmm0, xmm1, 1), how: OPERATION },
    Case { name: "PCMPESTRI", emit: |a| a.pcmpestri(xmm0, xmm1, 0x0C), how: OPERATION },
    Case { name: "PCMPESTRM", emit: |a| a.pcmpestrm(xmm1, xmm2, 0x0C), how: OPERATION },
    Case { name: "PCMPISTRI", emit: |a| a.pcmpistri(xmm0, xmm1, 0x0C), how: OPERATION },
    Case { name: "PCMPISTRM", emit: |a| a.pcmpistrm(xmm1, xmm2, 0x0C), how: OPERATION },
    Case { name: "VCVTPS2PH", emit: |a| a.vcvtps2ph(xmm0, xmm1, 0), how: OPERATION },
    Case {
        name: "DIV r64 (with XOR EDX)",
        emit: |a| {
            a.xor(edx, edx)?;
            a.div(r9)
        },
        how: HELPER,
    },
    Case { name: "STMXCSR", emit: |a| a.stmxcsr(dword_ptr(r10 + 0x40)), how: HELPER },
    Case { name: "LDMXCSR", emit: |a| a.ldmxcsr(dword_ptr(r10 + 0x80)), how: HELPER },
    Case {
        name: "XLAT (with LEA RBX)",
        emit: |a| {
            a.lea(rbx, qword_ptr(r10))?;
            a.movzx(eax, al)?;
            a.xlatb()
        },
        how: INLINE,
    },
    Case { name: "CMPXCHG r64, r64", emit: |a| a.cmpxchg(rdx, r11), how: INLINE },
    Case { name: "RDTSC", emit: |a| a.rdtsc(), how: INLINE },
    Case {
        name: "PUSHFQ and POPFQ",
        emit: |a| {
            a.pushfq()?;
            a.popfq()
        },
        how: INTERPRETER,
    },
    Case { name: "FXSAVE", emit: |a| a.fxsave(ptr(r10 + 0x200)), how: INTERPRETER },
    Case {
        name: "ENTER and LEAVE",
        emit: |a| {
            a.enter(16, 0)?;
            a.leave()
        },
        how: INLINE,
    },
];

fn program(case: &Case) -> Result<Program, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut top = a.create_label();
    // The count comes in RCX, which some of the instructions write.
    a.mov(r8, rcx)?;
    a.push(rbx)?;
    a.push(rbp)?;
    let data = MemoryOperand::with_base_displ(Register::RIP, DATA_BASE as i64);
    a.add_instruction(Instruction::with2(Code::Lea_r64_m, Register::R10, data)?)?;
    a.mov(r9d, 3)?;
    a.mov(dword_ptr(r10 + 0x80), 0x1F80)?;
    a.mov(eax, 7)?;
    a.mov(edx, 5)?;
    for register in [xmm0, xmm1, xmm2] {
        a.pxor(register, register)?;
    }
    a.set_label(&mut top)?;
    for _ in 0..COPIES {
        (case.emit)(&mut a)?;
    }
    a.dec(r8)?;
    a.jnz(top)?;
    a.xor(eax, eax)?;
    a.pop(rbp)?;
    a.pop(rbx)?;
    a.ret()?;
    Ok(Program {
        name: case.name,
        code: a.assemble(CODE_BASE)?,
        base: CODE_BASE,
        data_base: DATA_BASE,
        data_size: 0x1000,
        data: Vec::new(),
        entry: CODE_BASE,
        default_n: ROUNDS,
        expected: |_| 0,
    })
}

/// Processor time of this thread in seconds.
fn now() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The least time of one instruction in nanoseconds.
fn cost(call: &mut dyn FnMut() -> u64) -> f64 {
    let least = (0..MEASUREMENTS)
        .map(|_| {
            let start = now();
            std::hint::black_box(call());
            now() - start
        })
        .fold(f64::INFINITY, f64::min);
    least * 1e9 / (ROUNDS * COPIES) as f64
}

fn main() {
    let markdown = std::env::args().any(|word| word == "--markdown");
    if markdown {
        println!("{HEAD}");
    } else {
        println!("{:24} {:>9} {:>9}  by", "instruction", "host ns", "lstar ns");
    }
    for case in CASES {
        let program = program(case).expect("the assembler takes it");
        let model = CpuModel::V3;
        let config =
            MachineConfig { engine: Engine::Translator, model, memory_limit: 1 << 30, ..MachineConfig::default() };
        let mut translated = LoadedProgram::new(&program, config);
        for _ in 0..100 {
            translated.call(2);
        }
        translated.call(ROUNDS);
        let mut native = NativeProgram::new(&program).expect("native mapping");
        let (host, lstar) = (cost(&mut || native.call(ROUNDS)), cost(&mut || translated.call(ROUNDS)));
        if markdown {
            println!("| {} | {} | {host:.2} | {lstar:.2} |", case.name, case.how);
        } else {
            println!("{:24} {host:9.2} {lstar:9.2}  {}", case.name, case.how);
        }
    }
}

/// The head of the document.
const HEAD: &str = "\
# What helpers cost

Written by `cargo run --release -p lstar_benches --example helpers -- --markdown`: nanoseconds for one instruction on the host and
in translated code, sixteen of them in a loop, the least of several measurements on one machine. The first rows are for comparison.
[instructions.md](instructions.md) lists all encodings that are carried out in each way.

| instruction | in translated code | host ns | lstar ns |
|---|---|---:|---:|";
