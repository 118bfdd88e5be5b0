//! Single operations on the host's x87, for the interpreter.
//!
//! Rust code on x86-64 does not use the x87, so that its control word and exception flags may stay what the last guest
//! operation needed; [`prepare`] brings them in line. All exceptions are masked at all times.
#![expect(unsafe_code, reason = "x87 instructions")]

use std::arch::asm;

use lstar_interpreter::Transcendental;

/// What RCPSS or RSQRTSS gives for a single, both as bits.
pub(crate) fn approximation(reciprocal: bool, single: u32) -> u32 {
    let result: f32;
    let value = f32::from_bits(single);
    // SAFETY: SSE is part of x86-64; the instructions touch nothing but the register.
    unsafe {
        if reciprocal {
            asm!("rcpss {0}, {1}", out(xmm_reg) result, in(xmm_reg) value, options(pure, nomem, nostack));
        } else {
            asm!("rsqrtss {0}, {1}", out(xmm_reg) result, in(xmm_reg) value, options(pure, nomem, nostack));
        }
    }
    result.to_bits()
}

/// An 80-bit image.
pub(crate) type Register = [u8; 16];

/// `asm!` that uses the x87's stack and leaves it empty.
macro_rules! x87 {
    ($($body:tt)*) => {
        asm!(
            $($body)*
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nostack)
        )
    };
}

/// Loads a guest's control word, all of whose exceptions are masked, and removes exception flags that are not among
/// the guest's: operations add to them.
#[inline]
pub(crate) fn prepare(control: u16, status: u16) {
    let (mut host_control, host_status): (u16, u16);
    host_control = 0;
    // SAFETY: reads control and status word.
    unsafe {
        asm!("fnstcw word ptr [{}]", in(reg) &raw mut host_control, options(nostack));
        asm!("fnstsw ax", out("ax") host_status, options(nostack));
    }
    if host_status & !status & 0x7F != 0 {
        // SAFETY: clears the exception flags.
        unsafe { asm!("fnclex", options(nostack)) };
    }
    if host_control != control {
        // SAFETY: no exception becomes unmasked, so that none can become pending.
        unsafe { asm!("fldcw word ptr [{}]", in(reg) &raw const control, options(nostack, readonly)) };
    }
}

/// Replaces a register by a function of it; returns the status word.
pub(crate) fn unary(function: Transcendental, a: &mut Register) -> u16 {
    let a: *mut Register = a;
    let status: u16;
    macro_rules! unary {
        ($instruction:literal) => {
            // SAFETY: the operand is live and writable; the stack is empty at the end.
            unsafe {
                x87!(
                    "fld tbyte ptr [{a}]", $instruction, "fnstsw ax", "fstp tbyte ptr [{a}]",
                    a = in(reg) a, out("ax") status,
                )
            }
        };
    }
    match function {
        Transcendental::Exponential => unary!("f2xm1"),
        Transcendental::Sine => unary!("fsin"),
        _ => unary!("fcos"),
    }
    status
}

/// Replaces ST(1), `y`, by a function of it and ST(0), `x`; returns the status word.
pub(crate) fn binary(function: Transcendental, x: &Register, y: &mut Register) -> u16 {
    let y: *mut Register = y;
    let status: u16;
    macro_rules! binary {
        ($instruction:literal) => {
            // SAFETY: the operands are live, the second one is writable; the stack is empty at the end.
            unsafe {
                x87!(
                    "fld tbyte ptr [{y}]", "fld tbyte ptr [{x}]", $instruction, "fnstsw ax", "fstp tbyte ptr [{y}]",
                    x = in(reg) x, y = in(reg) y, out("ax") status,
                )
            }
        };
    }
    match function {
        Transcendental::Logarithm => binary!("fyl2x"),
        Transcendental::LogarithmOfNext => binary!("fyl2xp1"),
        _ => binary!("fpatan"),
    }
    status
}

/// Replaces `a`, which is no number beyond FPTAN's range, by its tangent; returns the status word.
pub(crate) fn tangent(a: &mut Register) -> u16 {
    let a: *mut Register = a;
    let status: u16;
    // SAFETY: the operand is live and writable; the instruction pushes, as the operand is in its range; the stack is empty at
    // the end.
    unsafe {
        x87!(
            "fld tbyte ptr [{a}]", "fptan", "fnstsw ax", "fstp st(0)", "fstp tbyte ptr [{a}]",
            a = in(reg) a, out("ax") status,
        );
    }
    status
}
