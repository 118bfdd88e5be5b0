//! What vector and x87 instructions need to run at all, and state images beyond what user code sees on the host.

mod support;

use iced_x86::code_asm::*;
use lstar_arch::control::{cr0, cr4};
use lstar_arch::cpuid::Features;
use lstar_arch::{CpuModel, CpuState, Exception, GuestMemory, Privilege, Vendor};
use lstar_interpreter::{Interpreter, Outcome};
use support::{CODE, DATA, Paged, UNMAPPED};

/// A processor with every feature, about to execute what `assemble` emits.
fn prepare(assemble: impl FnOnce(&mut CodeAssembler)) -> (CpuState, Paged) {
    let mut assembler = CodeAssembler::new(64).unwrap();
    assemble(&mut assembler);
    let mut memory = Paged::new();
    memory.write(CODE, &assembler.assemble(CODE).unwrap(), Privilege::Supervisor).unwrap();
    let mut cpu = CpuState::new(CpuModel { vendor: Vendor::Intel, features: Features::all() });
    cpu.rip = CODE;
    (cpu, memory)
}

fn step(cpu: &mut CpuState, memory: &mut Paged) -> Outcome {
    Interpreter::new().step(cpu, memory)
}

/// An instruction, a change to the processor, and the exception that must follow.
type Case = (&'static str, fn(&mut CodeAssembler), fn(&mut CpuState), Option<Exception>);

fn addsd(assembler: &mut CodeAssembler) {
    assembler.addsd(xmm0, xmm1).unwrap();
}

fn paddb_mm(assembler: &mut CodeAssembler) {
    assembler.paddb(mm0, mm1).unwrap();
}

fn fld1(assembler: &mut CodeAssembler) {
    assembler.fld1().unwrap();
}

const CASES: &[Case] = &[
    ("SSE runs", addsd, |_| {}, None),
    ("SSE, CR0.EM", addsd, |cpu| cpu.cr0 |= cr0::EM, Some(Exception::UD)),
    ("SSE, CR0.TS", addsd, |cpu| cpu.cr0 |= cr0::TS, Some(Exception::NM)),
    ("SSE, CR0.EM before TS", addsd, |cpu| cpu.cr0 |= cr0::EM | cr0::TS, Some(Exception::UD)),
    ("SSE without CR4.OSFXSR", addsd, |cpu| cpu.cr4 &= !cr4::OSFXSR, Some(Exception::UD)),
    ("MMX needs no OSFXSR", paddb_mm, |cpu| cpu.cr4 &= !cr4::OSFXSR, None),
    ("MMX, CR0.EM", paddb_mm, |cpu| cpu.cr0 |= cr0::EM, Some(Exception::UD)),
    ("MMX, CR0.TS", paddb_mm, |cpu| cpu.cr0 |= cr0::TS, Some(Exception::NM)),
    ("MMX, pending x87 exception", paddb_mm, |cpu| cpu.x87.status |= 0x80, Some(Exception::MF)),
    ("x87, CR0.EM", fld1, |cpu| cpu.cr0 |= cr0::EM, Some(Exception::NM)),
    ("x87, CR0.TS", fld1, |cpu| cpu.cr0 |= cr0::TS, Some(Exception::NM)),
    ("x87, pending exception", fld1, |cpu| cpu.x87.status |= 0x80, Some(Exception::MF)),
    ("FNSTSW does not wait", |a| a.fnstsw(ax).unwrap(), |cpu| cpu.x87.status |= 0x80, None),
    ("WAIT with TS alone", |a| a.wait().unwrap(), |cpu| cpu.cr0 = cpu.cr0 & !cr0::MP | cr0::TS, None),
    ("WAIT with TS and MP", |a| a.wait().unwrap(), |cpu| cpu.cr0 |= cr0::MP | cr0::TS, Some(Exception::NM)),
    ("MOVNTI is no vector instruction", |a| a.movnti(ptr(rsi), rax).unwrap(), |cpu| cpu.cr0 |= cr0::TS, None),
    ("unaligned MOVAPS", |a| a.movaps(xmm0, ptr(rsi + 8)).unwrap(), |_| {}, Some(Exception::GP0)),
    ("unaligned MOVUPS", |a| a.movups(xmm0, ptr(rsi + 8)).unwrap(), |_| {}, None),
    ("unaligned scalar", |a| a.addsd(xmm0, ptr(rsi + 1)).unwrap(), |_| {}, None),
    ("unaligned PCMPISTRI", |a| a.pcmpistri(xmm0, ptr(rsi + 1), 0).unwrap(), |_| {}, None),
    (
        "PSHUFB without SSSE3",
        |a| a.pshufb(xmm0, xmm1).unwrap(),
        |cpu| disable(cpu, Features::SSSE3),
        Some(Exception::UD),
    ),
    (
        "PTEST without SSE4.1",
        |a| a.ptest(xmm0, xmm1).unwrap(),
        |cpu| disable(cpu, Features::SSE4_1),
        Some(Exception::UD),
    ),
    (
        "PCMPGTQ without SSE4.2",
        |a| a.pcmpgtq(xmm0, xmm1).unwrap(),
        |cpu| disable(cpu, Features::SSE4_2),
        Some(Exception::UD),
    ),
    ("AESENC without AES", |a| a.aesenc(xmm0, xmm1).unwrap(), |cpu| disable(cpu, Features::AES), Some(Exception::UD)),
    (
        "FISTTP without SSE3",
        |a| a.fisttp(dword_ptr(rsi)).unwrap(),
        |cpu| disable(cpu, Features::SSE3),
        Some(Exception::UD),
    ),
    ("FXSAVE, CR0.EM", |a| a.fxsave(ptr(rsi)).unwrap(), |cpu| cpu.cr0 |= cr0::EM, Some(Exception::NM)),
    ("unaligned FXSAVE", |a| a.fxsave(ptr(rsi + 8)).unwrap(), |_| {}, Some(Exception::GP0)),
    ("unaligned XSAVE", |a| a.xsave(ptr(rsi + 16)).unwrap(), |_| {}, Some(Exception::GP0)),
    ("XSAVE without OSXSAVE", |a| a.xsave(ptr(rsi)).unwrap(), |cpu| cpu.cr4 &= !cr4::OSXSAVE, Some(Exception::UD)),
    (
        "XSAVEC is not offered",
        |a| a.xsavec(ptr(rsi)).unwrap(),
        |cpu| disable(cpu, Features::XSAVEC),
        Some(Exception::UD),
    ),
    ("reserved MXCSR bits", |a| a.ldmxcsr(ptr(rsi + 512)).unwrap(), |_| {}, Some(Exception::GP0)),
    ("unmasked division by zero", |a| a.divsd(xmm0, xmm1).unwrap(), unmask, Some(Exception::XM)),
    (
        "the same without CR4.OSXMMEXCPT",
        |a| a.divsd(xmm0, xmm1).unwrap(),
        |cpu| {
            unmask(cpu);
            cpu.cr4 &= !cr4::OSXMMEXCPT;
        },
        Some(Exception::UD),
    ),
];

fn disable(cpu: &mut CpuState, feature: Features) {
    cpu.model.features.remove(feature);
}

/// One divided by zero, with that exception unmasked.
fn unmask(cpu: &mut CpuState) {
    cpu.mxcsr = 0x1D80;
    cpu.xmm[0] = [1f64.to_bits(), 7];
    cpu.xmm[1] = [0, 0];
}

#[test]
fn conditions_and_priorities() {
    for (name, assemble, change, expected) in CASES {
        let (mut cpu, mut memory) = prepare(assemble);
        memory.write(DATA + 512, &0x0001_1F80u32.to_le_bytes(), Privilege::Supervisor).unwrap();
        cpu.gpr[6] = DATA;
        change(&mut cpu);
        let before = cpu.clone();
        let outcome = step(&mut cpu, &mut memory);
        match expected {
            None => assert_eq!(outcome, Outcome::Retired, "{name}"),
            Some(exception) => {
                assert_eq!(outcome, Outcome::Exception(*exception), "{name}");
                // Sticky flags are all that a fault may leave.
                cpu.mxcsr = before.mxcsr;
                assert_eq!(cpu, before, "{name}: state changed");
            }
        }
    }
}

#[test]
fn faulting_stores_change_nothing() {
    for assemble in [
        (|a| a.fstp(dword_ptr(rsi)).unwrap()) as fn(&mut CodeAssembler),
        |a| a.fistp(qword_ptr(rsi)).unwrap(),
        |a| a.fnsave(ptr(rsi)).unwrap(),
        |a| a.fnstenv(ptr(rsi)).unwrap(),
        |a| a.movq(qword_ptr(rsi), mm0).unwrap(),
        |a| a.maskmovdqu(xmm0, xmm1).unwrap(),
        |a| a.xrstor(ptr(rsi)).unwrap(),
    ] {
        let (mut cpu, mut memory) = prepare(assemble);
        (cpu.gpr[6], cpu.gpr[7]) = (UNMAPPED, UNMAPPED);
        cpu.x87.valid = 0xFF;
        cpu.x87.registers = [[0x3F; 16]; 8];
        cpu.xmm = [[u64::MAX; 2]; 16];
        let before = cpu.clone();
        assert!(matches!(step(&mut cpu, &mut memory), Outcome::Exception(_)));
        assert_eq!(cpu, before);
    }
}

/// A processor whose vector and x87 state is nowhere initial.
fn busy(assemble: impl FnOnce(&mut CodeAssembler)) -> (CpuState, Paged) {
    let (mut cpu, memory) = prepare(assemble);
    cpu.gpr[6] = DATA;
    cpu.gpr[0] = 7;
    cpu.mxcsr = 0x3F80;
    for index in 0..16 {
        cpu.xmm[index] = [index as u64 + 1, !(index as u64)];
        cpu.ymm_high[index] = [0x100 + index as u64, !(index as u64) << 8];
    }
    for index in 0..8 {
        cpu.x87.registers[index][..10].copy_from_slice(&[index as u8 + 0x81; 10]);
    }
    cpu.x87.valid = 0x5A;
    cpu.x87.status = 0x1800;
    cpu.x87.control = 0x27F;
    (cpu, memory)
}

#[test]
fn xsave_and_xrstor_round_trip() {
    let (mut cpu, mut memory) = busy(|a| {
        a.xsave64(ptr(rsi)).unwrap();
        a.xrstor64(ptr(rsi)).unwrap();
    });
    let saved = cpu.clone();
    assert_eq!(step(&mut cpu, &mut memory), Outcome::Retired);
    assert_eq!(memory.read_u64(DATA + 512, Privilege::Supervisor), Ok(7), "XSTATE_BV");
    cpu.xmm = [[0; 2]; 16];
    cpu.ymm_high = [[9; 2]; 16];
    cpu.x87 = lstar_arch::state::X87State::default();
    cpu.mxcsr = 0x1F80;
    assert_eq!(step(&mut cpu, &mut memory), Outcome::Retired);
    assert_eq!((&cpu.xmm, &cpu.ymm_high, &cpu.x87, cpu.mxcsr), (&saved.xmm, &saved.ymm_high, &saved.x87, saved.mxcsr));
}

#[test]
fn xrstor_initialises_absent_components_and_leaves_others() {
    let (mut cpu, mut memory) = busy(|a| a.xrstor64(ptr(rsi)).unwrap());
    memory.write(DATA + 24, &0x1F80u32.to_le_bytes(), Privilege::Supervisor).unwrap();
    let before = cpu.clone();
    cpu.gpr[0] = 2;
    assert_eq!(step(&mut cpu, &mut memory), Outcome::Retired);
    assert_eq!(cpu.xmm, [[0; 2]; 16]);
    assert_eq!((cpu.mxcsr, cpu.ymm_high, cpu.x87), (0x1F80, before.ymm_high, before.x87));
}

#[test]
fn xrstor_rejects_bad_headers() {
    // XSTATE_BV, a layout that is not compacted, reserved bytes; a compacted layout without the component, or with one
    // that does not exist.
    let cases: [&[(u64, u8)]; 6] =
        [&[(512, 8)], &[(520, 1)], &[(528, 1)], &[(535, 1)], &[(512, 1), (527, 0x80)], &[(520, 0x10), (527, 0x80)]];
    for case in cases {
        let (mut cpu, mut memory) = busy(|a| a.xrstor64(ptr(rsi)).unwrap());
        for (at, byte) in case {
            memory.write(DATA + at, &[*byte], Privilege::Supervisor).unwrap();
        }
        let before = cpu.clone();
        assert_eq!(step(&mut cpu, &mut memory), Outcome::Exception(Exception::GP0), "{case:?}");
        assert_eq!(cpu, before);
    }
}

#[test]
fn xsavec_and_xrstor_round_trip() {
    let (mut cpu, mut memory) = busy(|a| {
        a.xsavec64(ptr(rsi)).unwrap();
        a.xrstor64(ptr(rsi)).unwrap();
    });
    let saved = cpu.clone();
    assert_eq!(step(&mut cpu, &mut memory), Outcome::Retired);
    assert_eq!(memory.read_u64(DATA + 512, Privilege::Supervisor), Ok(7), "XSTATE_BV");
    assert_eq!(memory.read_u64(DATA + 520, Privilege::Supervisor), Ok(1 << 63 | 7), "XCOMP_BV");
    cpu.xmm = [[0; 2]; 16];
    cpu.ymm_high = [[9; 2]; 16];
    cpu.x87 = lstar_arch::state::X87State::default();
    cpu.mxcsr = 0x1F80;
    assert_eq!(step(&mut cpu, &mut memory), Outcome::Retired);
    assert_eq!((&cpu.xmm, &cpu.ymm_high, &cpu.x87, cpu.mxcsr), (&saved.xmm, &saved.ymm_high, &saved.x87, saved.mxcsr));
}

/// Components in their initial configuration are marked as absent; XSAVEOPT does not write them.
#[test]
fn xsaveopt_leaves_initial_components_out() {
    let (mut cpu, mut memory) = busy(|a| a.xsaveopt64(ptr(rsi)).unwrap());
    cpu.ymm_high = [[0; 2]; 16];
    memory.write(DATA + 576, &[0xAA], Privilege::Supervisor).unwrap();
    assert_eq!(step(&mut cpu, &mut memory), Outcome::Retired);
    assert_eq!(memory.read_u64(DATA + 512, Privilege::Supervisor), Ok(3), "XSTATE_BV");
    assert_eq!(memory.read_u64(DATA + 576, Privilege::Supervisor), Ok(0xAA));
}
