//! Single operations on the host's x87, for guests' x87 registers.
//!
//! Rust code on x86-64 does not use the x87, so that its control word and exception flags may stay what the last guest
//! operation needed; [`prepare`] brings them in line. All exceptions are masked at all times.
#![expect(unsafe_code, reason = "x87 instructions")]

use std::arch::asm;

use lstar_translator::x87::{Operation, Source};

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

/// One function for each source operand: `ST(0)` is loaded from `a`.
macro_rules! with_source {
    ($source:expr, $a:expr, $b:expr, $operand:expr, $result:expr,
     $register:literal, $f32:literal, $f64:literal, $i16:literal, $i32:literal) => {{
        let (a, b, operand, result): (*const Register, *const Register, *const u64, *mut Register) =
            ($a, $b, $operand, $result);
        let status: u16;
        // SAFETY: the operands are live, `result` is writable and long enough; the stack is empty at the end.
        unsafe {
            match $source {
                Source::Register => x87!(
                    "fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]", $register, "fnstsw ax",
                    "fstp tbyte ptr [{r}]", "fstp st(0)",
                    a = in(reg) a, b = in(reg) b, r = in(reg) result, out("ax") status,
                ),
                Source::F32 => x87!(
                    "fld tbyte ptr [{a}]", $f32, "fnstsw ax", "fstp tbyte ptr [{r}]",
                    a = in(reg) a, m = in(reg) operand, r = in(reg) result, out("ax") status,
                ),
                Source::F64 => x87!(
                    "fld tbyte ptr [{a}]", $f64, "fnstsw ax", "fstp tbyte ptr [{r}]",
                    a = in(reg) a, m = in(reg) operand, r = in(reg) result, out("ax") status,
                ),
                Source::I16 => x87!(
                    "fld tbyte ptr [{a}]", $i16, "fnstsw ax", "fstp tbyte ptr [{r}]",
                    a = in(reg) a, m = in(reg) operand, r = in(reg) result, out("ax") status,
                ),
                _ => x87!(
                    "fld tbyte ptr [{a}]", $i32, "fnstsw ax", "fstp tbyte ptr [{r}]",
                    a = in(reg) a, m = in(reg) operand, r = in(reg) result, out("ax") status,
                ),
            }
        }
        status
    }};
}

/// `result = a op b`, where `b` is a register or the operand in memory.
#[inline]
pub(crate) fn arithmetic(
    operation: Operation,
    source: Source,
    result: &mut Register,
    a: &Register,
    b: &Register,
    operand: u64,
) -> u16 {
    let operand = &raw const operand;
    match operation {
        Operation::Add => with_source!(
            source,
            a,
            b,
            operand,
            result,
            "fadd st(0), st(1)",
            "fadd dword ptr [{m}]",
            "fadd qword ptr [{m}]",
            "fiadd word ptr [{m}]",
            "fiadd dword ptr [{m}]"
        ),
        Operation::Multiply => with_source!(
            source,
            a,
            b,
            operand,
            result,
            "fmul st(0), st(1)",
            "fmul dword ptr [{m}]",
            "fmul qword ptr [{m}]",
            "fimul word ptr [{m}]",
            "fimul dword ptr [{m}]"
        ),
        Operation::Subtract => with_source!(
            source,
            a,
            b,
            operand,
            result,
            "fsub st(0), st(1)",
            "fsub dword ptr [{m}]",
            "fsub qword ptr [{m}]",
            "fisub word ptr [{m}]",
            "fisub dword ptr [{m}]"
        ),
        Operation::SubtractReverse => with_source!(
            source,
            a,
            b,
            operand,
            result,
            "fsubr st(0), st(1)",
            "fsubr dword ptr [{m}]",
            "fsubr qword ptr [{m}]",
            "fisubr word ptr [{m}]",
            "fisubr dword ptr [{m}]"
        ),
        Operation::Divide => with_source!(
            source,
            a,
            b,
            operand,
            result,
            "fdiv st(0), st(1)",
            "fdiv dword ptr [{m}]",
            "fdiv qword ptr [{m}]",
            "fidiv word ptr [{m}]",
            "fidiv dword ptr [{m}]"
        ),
        _ => with_source!(
            source,
            a,
            b,
            operand,
            result,
            "fdivr st(0), st(1)",
            "fdivr dword ptr [{m}]",
            "fdivr qword ptr [{m}]",
            "fidivr word ptr [{m}]",
            "fidivr dword ptr [{m}]"
        ),
    }
}

/// Status word of a comparison of `a` with `b` or the operand in memory.
#[inline]
pub(crate) fn compare(operation: Operation, source: Source, a: &Register, b: &Register, operand: u64) -> u16 {
    let status: u16;
    match operation {
        // SAFETY: the operand is live; the stack is empty at the end.
        Operation::Test => unsafe {
            x87!("fld tbyte ptr [{a}]", "ftst", "fnstsw ax", "fstp st(0)", a = in(reg) a, out("ax") status,)
        },
        // SAFETY: the operands are live; the stack is empty at the end.
        Operation::CompareUnordered => unsafe {
            x87!(
                "fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]", "fucom st(1)", "fnstsw ax", "fstp st(0)", "fstp st(0)",
                a = in(reg) a, b = in(reg) b, out("ax") status,
            )
        },
        _ => {
            let (operand, mut unchanged) = (&raw const operand, [0; 16]);
            status = with_source!(
                source,
                a,
                b,
                operand,
                &raw mut unchanged,
                "fcom st(1)",
                "fcom dword ptr [{m}]",
                "fcom qword ptr [{m}]",
                "ficom word ptr [{m}]",
                "ficom dword ptr [{m}]"
            );
        }
    }
    status
}

/// Status word and flags (CF, PF, ZF in bits 0 to 2) of a comparison.
#[inline]
pub(crate) fn compare_flags(unordered: bool, a: &Register, b: &Register) -> (u16, u64) {
    let (status, carry, parity, zero): (u16, u8, u8, u8);
    macro_rules! compare {
        ($instruction:literal) => {
            // SAFETY: the operands are live; the stack is empty at the end.
            unsafe {
                x87!(
                    "fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]", $instruction, "setb {c}", "setp {p}", "sete {z}",
                    "fnstsw ax", "fstp st(0)", "fstp st(0)",
                    a = in(reg) a, b = in(reg) b, c = out(reg_byte) carry, p = out(reg_byte) parity,
                    z = out(reg_byte) zero, out("ax") status,
                )
            }
        };
    }
    if unordered {
        compare!("fucomi st(0), st(1)")
    } else {
        compare!("fcomi st(0), st(1)")
    }
    (status, u64::from(carry) | u64::from(parity) << 1 | u64::from(zero) << 2)
}

/// Status word of FXAM.
#[inline]
pub(crate) fn examine(a: &Register) -> u16 {
    let status: u16;
    // SAFETY: the operand is live; the stack is empty at the end.
    unsafe { x87!("fld tbyte ptr [{a}]", "fxam", "fnstsw ax", "fstp st(0)", a = in(reg) a, out("ax") status,) };
    status
}

/// Replaces a register by a function of it.
#[inline]
pub(crate) fn unary(operation: Operation, a: &mut Register) -> u16 {
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
    match operation {
        Operation::SquareRoot => unary!("fsqrt"),
        Operation::Round => unary!("frndint"),
        Operation::Exponential => unary!("f2xm1"),
        Operation::Sine => unary!("fsin"),
        _ => unary!("fcos"),
    }
    status
}

/// Replaces ST(0), `a`, by a function of it and ST(1), `b`.
#[inline]
pub(crate) fn binary(operation: Operation, a: &mut Register, b: &Register) -> u16 {
    let a: *mut Register = a;
    let status: u16;
    macro_rules! binary {
        ($instruction:literal) => {
            // SAFETY: the operands are live, the first one is writable; the stack is empty at the end.
            unsafe {
                x87!(
                    "fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]", $instruction, "fnstsw ax", "fstp tbyte ptr [{a}]",
                    "fstp st(0)",
                    a = in(reg) a, b = in(reg) b, out("ax") status,
                )
            }
        };
    }
    match operation {
        Operation::Scale => binary!("fscale"),
        Operation::Remainder => binary!("fprem"),
        _ => binary!("fprem1"),
    }
    status
}

/// Replaces ST(1), `y`, by a function of it and ST(0), `x`.
#[inline]
pub(crate) fn binary_popping(operation: Operation, x: &Register, y: &mut Register) -> u16 {
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
    match operation {
        Operation::Logarithm => binary!("fyl2x"),
        Operation::LogarithmOfNext => binary!("fyl2xp1"),
        _ => binary!("fpatan"),
    }
    status
}

/// What replaces ST(0), `a`, and what is pushed.
#[inline]
pub(crate) fn splitting(operation: Operation, a: &Register) -> (Register, Register, u16) {
    let (mut first, mut second): (Register, Register) = ([0; 16], [0; 16]);
    let status: u16;
    macro_rules! split {
        ($instruction:literal) => {
            // SAFETY: the operand is live, the results are writable; the instruction pushes, as the operand is no
            // number beyond its range; the stack is empty at the end.
            unsafe {
                x87!(
                    "fld tbyte ptr [{a}]", $instruction, "fnstsw ax", "fstp tbyte ptr [{s}]", "fstp tbyte ptr [{f}]",
                    a = in(reg) a, f = in(reg) &raw mut first, s = in(reg) &raw mut second, out("ax") status,
                )
            }
        };
    }
    match operation {
        Operation::Extract => split!("fxtract"),
        Operation::Tangent => split!("fptan"),
        _ => split!("fsincos"),
    }
    (first, second, status)
}

/// A constant.
#[inline]
pub(crate) fn constant(operation: Operation, result: &mut Register) {
    let result: *mut Register = result;
    macro_rules! constant {
        ($instruction:literal) => {
            // SAFETY: the result is writable; the stack is empty at the end.
            unsafe { x87!($instruction, "fstp tbyte ptr [{r}]", r = in(reg) result,) }
        };
    }
    match operation {
        Operation::One => constant!("fld1"),
        Operation::Zero => constant!("fldz"),
        Operation::Pi => constant!("fldpi"),
        Operation::Log2E => constant!("fldl2e"),
        Operation::Log2Ten => constant!("fldl2t"),
        Operation::LogTwo => constant!("fldlg2"),
        _ => constant!("fldln2"),
    }
}

/// Converts a memory operand.
#[inline]
pub(crate) fn load(source: Source, operand: u64, result: &mut Register) -> u16 {
    let (operand, result): (*const u64, *mut Register) = (&raw const operand, result);
    let status: u16;
    macro_rules! load {
        ($instruction:literal) => {
            // SAFETY: the operand is live, the result writable; the stack is empty at the end.
            unsafe {
                x87!(
                    $instruction, "fnstsw ax", "fstp tbyte ptr [{r}]",
                    m = in(reg) operand, r = in(reg) result, out("ax") status,
                )
            }
        };
    }
    match source {
        Source::F32 => load!("fld dword ptr [{m}]"),
        Source::F64 => load!("fld qword ptr [{m}]"),
        Source::I16 => load!("fild word ptr [{m}]"),
        Source::I32 => load!("fild dword ptr [{m}]"),
        _ => load!("fild qword ptr [{m}]"),
    }
    status
}

/// Converts a register for a store.
#[inline]
pub(crate) fn store(destination: Source, truncate: bool, a: &Register) -> (u64, u16) {
    let mut value = 0u64;
    let status: u16;
    macro_rules! store {
        ($instruction:literal) => {
            // SAFETY: the operand is live, the value writable; the stack is empty at the end.
            unsafe {
                x87!(
                    "fld tbyte ptr [{a}]", $instruction, "fnstsw ax",
                    a = in(reg) a, m = in(reg) &raw mut value, out("ax") status,
                )
            }
        };
    }
    match (destination, truncate) {
        (Source::F32, _) => store!("fstp dword ptr [{m}]"),
        (Source::F64, _) => store!("fstp qword ptr [{m}]"),
        (Source::I16, false) => store!("fistp word ptr [{m}]"),
        (Source::I16, true) => store!("fisttp word ptr [{m}]"),
        (Source::I32, false) => store!("fistp dword ptr [{m}]"),
        (Source::I32, true) => store!("fisttp dword ptr [{m}]"),
        (_, false) => store!("fistp qword ptr [{m}]"),
        (_, true) => store!("fisttp qword ptr [{m}]"),
    }
    (value, status)
}
