//! [`lstar_translator::flags::status`] against the host processor.
#![cfg(target_arch = "x86_64")]
#![expect(unsafe_code, reason = "executes single instructions to see the flags they leave")]

use std::arch::asm;

use lstar_translator::flags::{AF, CF, FlagKind, LazyOp, OF, STATUS, status};

/// Operands at which carries, signs and parities change.
fn operands() -> Vec<u64> {
    let mut values = vec![0, 1, 2, 0xF, 0x10, 0x55, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x1_0000];
    values.extend([0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x1_0000_0000, i64::MAX as u64, i64::MIN as u64, u64::MAX]);
    let mut seed = 0x1234_5678_9ABC_DEF1u64;
    for _ in 0..24 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        values.push(seed ^ seed >> 29);
    }
    values
}

/// Executes `$insn` on (`$a`, `$b`, count in CL) with the carry set to `$carry`; gives the result and the status flags.
macro_rules! execute {
    ($insn:expr, $a:expr, $b:expr, $carry:expr) => {{
        let mut a: u64 = $a;
        let flags: u64;
        // SAFETY: touches the named registers, the flags and one stack slot.
        unsafe {
            asm!(
                "neg {carry:r} /* {b} */",
                $insn,
                "pushfq",
                "pop {flags}",
                carry = inout(reg) $carry => _,
                a = inout(reg_abcd) a,
                b = in(reg_abcd) $b,
                flags = out(reg) flags,
                in("rcx") $b,
            );
        }
        (a, flags & STATUS)
    }};
}

/// One instruction at the four operand sizes.
macro_rules! sizes {
    ($name:literal, $b8:literal, $b16:literal, $b32:literal, $b64:literal) => {
        [
            |a: u64, b: u64, c: u64| execute!(concat!($name, " {a:l}, ", $b8), a, b, c),
            |a: u64, b: u64, c: u64| execute!(concat!($name, " {a:x}, ", $b16), a, b, c),
            |a: u64, b: u64, c: u64| execute!(concat!($name, " {a:e}, ", $b32), a, b, c),
            |a: u64, b: u64, c: u64| execute!(concat!($name, " {a:r}, ", $b64), a, b, c),
        ]
    };
    ($name:literal) => {
        sizes!($name, "{b:l}", "{b:x}", "{b:e}", "{b:r}")
    };
    (one $name:literal) => {
        [
            |a: u64, b: u64, c: u64| execute!(concat!($name, " {a:l}"), a, b, c),
            |a: u64, b: u64, c: u64| execute!(concat!($name, " {a:x}"), a, b, c),
            |a: u64, b: u64, c: u64| execute!(concat!($name, " {a:e}"), a, b, c),
            |a: u64, b: u64, c: u64| execute!(concat!($name, " {a:r}"), a, b, c),
        ]
    };
}

type Execute = fn(u64, u64, u64) -> (u64, u64);

const fn mask(bytes: u32) -> u64 {
    u64::MAX >> (64 - 8 * bytes)
}

/// Compares all operands; `operands` turns (a, b, carry, result) into what is stored lazily, `defined` masks flags.
fn check(kind: FlagKind, insns: [Execute; 4], lazy: fn(u64, u64, u64, u64) -> (u64, u64, u64), defined: u64) {
    let values = operands();
    for (size, execute) in insns.into_iter().enumerate() {
        let bytes = 1 << size;
        for &a in &values {
            for &b in &values {
                for carry in 0..2 {
                    let (result, expected) = execute(a, b, carry);
                    let (x, y, z) = lazy(a, b, carry, result);
                    let got = status(LazyOp::new(kind, bytes).number(), x & mask(bytes), y & mask(bytes), z);
                    assert_eq!(
                        got & defined,
                        expected & defined,
                        "{kind:?} of {bytes} bytes: {a:#x}, {b:#x}, carry {carry}"
                    );
                }
            }
        }
    }
}

#[test]
fn addition_and_subtraction() {
    check(FlagKind::Add, sizes!("add"), |a, b, _, _| (a, b, 0), STATUS);
    check(FlagKind::Adc, sizes!("adc"), |a, b, c, _| (a, b, c), STATUS);
    check(FlagKind::Sub, sizes!("sub"), |a, b, _, _| (a, b, 0), STATUS);
    check(FlagKind::Sub, sizes!("cmp"), |a, b, _, _| (a, b, 0), STATUS);
    check(FlagKind::Sbb, sizes!("sbb"), |a, b, c, _| (a, b, c), STATUS);
    check(FlagKind::Sub, sizes!(one "neg"), |a, _, _, _| (0, a, 0), STATUS);
}

#[test]
fn increment_and_decrement_keep_the_carry() {
    check(FlagKind::Inc, sizes!(one "inc"), |_, _, c, result| (result, 0, c), STATUS);
    check(FlagKind::Dec, sizes!(one "dec"), |_, _, c, result| (result, 0, c), STATUS);
}

#[test]
fn logic() {
    check(FlagKind::Logic, sizes!("and"), |_, _, _, result| (result, 0, 0), STATUS & !AF);
    check(FlagKind::Logic, sizes!("or"), |_, _, _, result| (result, 0, 0), STATUS & !AF);
    check(FlagKind::Logic, sizes!("xor"), |_, _, _, result| (result, 0, 0), STATUS & !AF);
}

#[test]
fn shifts() {
    for (kind, insns) in [
        (FlagKind::Shl, sizes!("shl", "cl", "cl", "cl", "cl")),
        (FlagKind::Shr, sizes!("shr", "cl", "cl", "cl", "cl")),
        (FlagKind::Sar, sizes!("sar", "cl", "cl", "cl", "cl")),
    ] {
        for (size, execute) in insns.into_iter().enumerate() {
            let bytes = 1u32 << size;
            for a in operands() {
                for count in 1..if bytes == 8 { 64 } else { 32 } {
                    let (_, expected) = execute(a, count, 0);
                    let got = status(LazyOp::new(kind, bytes).number(), a & mask(bytes), count, 0);
                    // OF is defined for one position, CF up to the operand's width, AF never.
                    let mut defined = STATUS & !AF;
                    if count > 1 {
                        defined &= !OF;
                    }
                    if count > u64::from(8 * bytes) && kind != FlagKind::Sar {
                        defined &= !CF;
                    }
                    assert_eq!(got & defined, expected & defined, "{kind:?} of {bytes} bytes: {a:#x} by {count}");
                }
            }
        }
    }
}

#[test]
fn multiplication_sets_carry_and_overflow() {
    let product = status(LazyOp::new(FlagKind::Mul, 4).number(), 6, 0, 1);
    assert_eq!(product & (CF | OF), CF | OF);
    assert_eq!(status(LazyOp::new(FlagKind::Mul, 4).number(), 6, 0, 0) & (CF | OF), 0);
}

#[test]
fn eager_flags_and_unknown_numbers() {
    assert_eq!(status(LazyOp::EAGER.number(), u64::MAX, 0, 0), STATUS);
    assert_eq!(status(0, u64::MAX, 0, 0), 0);
    assert_eq!(LazyOp::decode(0), None);
    assert_eq!(LazyOp::decode(u64::MAX), None);
    assert_eq!(LazyOp::decode(LazyOp::new(FlagKind::Mul, 8).number()), Some((FlagKind::Mul, 64)));
}
