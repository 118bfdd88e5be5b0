//! Compatibility mode: far transfers between 32-bit and 64-bit code, segment checks, what only 32-bit code has.

use iced_x86::code_asm::*;
use lstar_arch::{Gpr, SegmentIndex};
use lstar_runtime::Registers;

use crate::bench::Expect::{At, Fault, Next, Trap};
use crate::bench::Level::{Compatibility, User};
use crate::bench::*;

const BR: u8 = 5;
const CODE: [u8; 4] = (USER_CODE as u32).to_le_bytes();
const TARGET: [u8; 4] = (USER_TARGET as u32).to_le_bytes();

/// A far transfer with opcode `$op` to `$selector`:USER_TARGET.
macro_rules! far {
    ($op:literal, $selector:expr) => {
        |a| a.db(&[$op, TARGET[0], TARGET[1], TARGET[2], TARGET[3], $selector as u8, 0])
    };
}

#[test]
fn between_the_modes() {
    run(&[
        row("JMP FAR from 32-bit to 64-bit code", Compatibility, far!(0xEA, USER_CS), At(USER_TARGET, 3))
            .check(|seen| assert_eq!(seen.cs, USER_CS)),
        row("CALL FAR from 32-bit to 64-bit code", Compatibility, far!(0x9A, USER_CS), At(USER_TARGET, 3))
            .check(|seen| assert_eq!((seen.cs, seen.rsp), (USER_CS, 0x50_8000 - 8))),
        row("RETF from 32-bit to 64-bit code", Compatibility, |a| a.retf(), At(USER_TARGET, 3)).setup(|a| {
            a.push(i32::from(USER_CS))?;
            a.push(USER_TARGET as i32)
        }),
        row("IRETD from 32-bit to 64-bit code", Compatibility, |a| a.iretd(), At(USER_TARGET, 3))
            .setup(|a| {
                a.push(0x203)?;
                a.push(i32::from(USER_CS))?;
                a.push(USER_TARGET as i32)
            })
            .check(|seen| assert_eq!((seen.cs, seen.rsp, seen.rflags & 1), (USER_CS, 0x50_8000, 1))),
        row("JMP FAR to a data segment", Compatibility, far!(0xEA, USER_SS), Fault(GP, Some(0x28))),
        row("JMP FAR to code that is not present", Compatibility, far!(0xEA, ABSENT_CS), Fault(NP, Some(0x60))),
        row("RETF from 64-bit to 32-bit code", User, |a| a.db(&[0x48, 0xCB]), At(USER_TARGET, 3))
            .setup(|a| {
                a.push(i32::from(USER_CS32))?;
                a.push(USER_TARGET as i32)
            })
            .check(|seen| assert_eq!(seen.cs, USER_CS32)),
        row("IRETQ from 64-bit to 32-bit code", User, |a| a.iretq(), At(USER_TARGET, 3))
            .setup(|a| {
                a.push(i32::from(USER_SS))?;
                a.push(0x50_7000)?;
                a.push(0x202)?;
                a.push(i32::from(USER_CS32))?;
                a.push(USER_TARGET as i32)
            })
            .check(|seen| assert_eq!((seen.cs, seen.rsp), (USER_CS32, 0x50_7000))),
        // Heaven's gate and back: what 64-bit code leaves in R8 is there afterwards.
        row("there and back", Compatibility, |a| a.nop(), Next)
            .setup(|a| {
                // call far 33:+7; jmp short over; (64-bit) mov r8d, 5; retf
                let inner = (USER_CODE as u32 + 9).to_le_bytes();
                a.db(&[0x9A, inner[0], inner[1], inner[2], inner[3], USER_CS as u8, 0])?;
                a.db(&[0xEB, 0x07])?;
                a.db(&[0x41, 0xB8, 5, 0, 0, 0, 0xCB])
            })
            .check(|seen| assert_eq!((seen.cs, seen.reg(Gpr::R8), seen.rsp), (USER_CS32, 5, 0x50_8000))),
    ]);
    assert_eq!(CODE[2], 0x40);
}

#[test]
fn only_32_bit_code_has_these() {
    run(&[
        row("INTO with OF", Compatibility, |a| a.into(), Trap(OF)).rflags(0xA02),
        row("INTO without OF", Compatibility, |a| a.into(), Next),
        row("INTO in 64-bit code", User, |a| a.db(&[0xCE]), Fault(UD, None)),
        row("PUSHAD, POPAD", Compatibility, |a| a.popad(), Next)
            .setup(|a| {
                a.mov(ebx, 7)?;
                a.pushad()?;
                a.mov(ebx, 8)
            })
            .check(|seen| assert_eq!((seen.reg(Gpr::Rbx), seen.rsp), (7, 0x50_8000))),
        row("PUSHAD in 64-bit code", User, |a| a.db(&[0x60]), Fault(UD, None)),
        row("BOUND within", Compatibility, |a| a.bound(eax, qword_ptr(esp)), Next).setup(bounds),
        row("BOUND outside", Compatibility, |a| a.bound(eax, qword_ptr(esp)), Fault(BR, None)).setup(|a| {
            bounds(a)?;
            a.mov(eax, 21)
        }),
        row("ARPL raises", Compatibility, |a| a.arpl(ax, cx), Next)
            .setup(|a| {
                a.mov(eax, 0x28)?;
                a.mov(ecx, 3)
            })
            .check(|seen| assert_eq!((seen.reg(Gpr::Rax), seen.rflags & 0x40), (0x2B, 0x40))),
        row("SALC", Compatibility, |a| a.salc(), Next)
            .setup(|a| a.stc())
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax) & 0xFF, 0xFF)),
        row("LES", Compatibility, |a| a.les(eax, fword_ptr(esp)), Next)
            .setup(|a| {
                a.push(i32::from(USER_SS))?;
                a.push(0x1234)
            })
            .check(|seen| assert_eq!(seen.reg(Gpr::Rax), 0x1234)),
        row("SYSENTER without a target", Compatibility, |a| a.sysenter(), Fault(GP, Some(0))),
        row("AAM by zero", Compatibility, |a| a.db(&[0xD4, 0]), Fault(0, None)),
        row("DAA", Compatibility, |a| a.daa(), Next)
            .setup(|a| {
                a.mov(al, 0x79)?;
                a.add(al, 0x35)
            })
            .check(|seen| assert_eq!((seen.reg(Gpr::Rax) & 0xFF, seen.rflags & 1), (0x14, 1))),
    ]);
}

fn bounds(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.push(20)?;
    a.push(10)?;
    a.mov(eax, 15)
}

#[test]
fn segments_are_checked() {
    const LIMIT: u32 = 0x50_7FFF;
    run(&[
        row("a read beyond the limit", Compatibility, |a| a.mov(eax, dword_ptr(0x50_7FFD)), Fault(GP, Some(0)))
            .prepare(|vcpu| vcpu.set_data_segment(SegmentIndex::Ds, USER_SS, LIMIT)),
        row("a read up to the limit", Compatibility, |a| a.mov(eax, dword_ptr(0x50_7FFC)), Next)
            .prepare(|vcpu| vcpu.set_data_segment(SegmentIndex::Ds, USER_SS, LIMIT)),
        row("a read through a null selector", Compatibility, |a| a.mov(eax, dword_ptr(0x50_7000)), Fault(GP, Some(0)))
            .setup(|a| {
                a.xor(eax, eax)?;
                a.mov(ds, eax)
            }),
        row("a read through a null ES", Compatibility, |a| a.scasb(), Fault(GP, Some(0))).setup(|a| {
            a.mov(edi, 0x50_7000)?;
            a.xor(eax, eax)?;
            a.mov(es, eax)
        }),
        row(
            "a write to the code segment",
            Compatibility,
            |a| a.mov(dword_ptr(0x50_7000).cs(), eax),
            Fault(GP, Some(0)),
        ),
        row("a read from the code segment", Compatibility, |a| a.mov(eax, dword_ptr(0x40_0000).cs()), Next),
        row("64-bit code has no limits", User, |a| a.mov(eax, dword_ptr(0x50_7FFC)), Next)
            .prepare(|vcpu| vcpu.set_data_segment(SegmentIndex::Ds, USER_SS, 0)),
    ]);
}
