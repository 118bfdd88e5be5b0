//! Status flags as the host computes them: the same as [`lstar_translator::flags::status`], in fewer instructions, for the
//! operations that usually come before a system call.
#![expect(unsafe_code, reason = "instructions for the flags they leave")]

use std::arch::asm;

use lstar_translator::abi::{LazyFlags, VcpuBlock};
use lstar_translator::flags::{AF, FlagKind, LazyOp, STATUS, status};

/// Computes the flags of an operation.
type StatusOf = fn(&LazyFlags) -> u64;

/// What computes the flags, by the low byte of the operation's number.
static STATUS_OF: [StatusOf; 256] = {
    const fn index(kind: FlagKind, bytes: u32) -> usize {
        LazyOp::new(kind, bytes).number() as usize
    }
    let mut table: [StatusOf; 256] = [|flags| status(flags.op, flags.a, flags.b, flags.c); 256];
    table[index(FlagKind::Add, 8)] = add64;
    table[index(FlagKind::Add, 4)] = add32;
    table[index(FlagKind::Sub, 8)] = sub64;
    table[index(FlagKind::Sub, 4)] = sub32;
    table[index(FlagKind::Logic, 8)] = logic64;
    table[index(FlagKind::Logic, 4)] = logic32;
    table[index(FlagKind::Logic, 1)] = logic8;
    table[index(FlagKind::Inc, 8)] = inc64;
    table[index(FlagKind::Inc, 4)] = inc32;
    table[index(FlagKind::Dec, 8)] = dec64;
    table[index(FlagKind::Dec, 4)] = dec32;
    table
};

/// Folds the lazy flags into `cpu.rflags`, which is exact afterwards.
#[inline(always)]
pub(crate) fn materialize(block: &mut VcpuBlock) {
    if block.lazy.op != 0 {
        fold(block);
    }
}

#[inline(never)]
fn fold(block: &mut VcpuBlock) {
    let status = STATUS_OF[usize::from(block.lazy.op as u8)](&block.lazy);
    block.cpu.rflags = block.cpu.rflags & !STATUS | status;
    block.lazy.op = 0;
}

/// A function that computes flags by instructions that need nothing but registers.
macro_rules! by_host {
    ($name:ident, |$flags:ident| $($instruction:literal),+; $($operand:tt)+) => {
        fn $name($flags: &LazyFlags) -> u64 {
            let ax: u64;
            // SAFETY: computes with registers only.
            unsafe {
                asm!(
                    $($instruction,)+ "lahf", "seto al",
                    $($operand)+, out("rax") ax, options(pure, nomem, nostack)
                );
            }
            (ax >> 8 & 0xFF | (ax & 1) << 11) & STATUS
        }
    };
}

by_host!(add64, |flags| "add {a}, {b}"; a = inout(reg) flags.a => _, b = in(reg) flags.second());
by_host!(add32, |flags| "add {a:e}, {b:e}"; a = inout(reg) flags.a => _, b = in(reg) flags.second());
by_host!(sub64, |flags| "cmp {a}, {b}"; a = in(reg) flags.a, b = in(reg) flags.second());
by_host!(sub32, |flags| "cmp {a:e}, {b:e}"; a = in(reg) flags.a, b = in(reg) flags.second());
by_host!(test64, |flags| "test {a}, {a}"; a = in(reg) flags.a);
by_host!(test32, |flags| "test {a:e}, {a:e}"; a = in(reg) flags.a);
by_host!(test8, |flags| "test {a}, {a}"; a = in(reg_byte) flags.a as u8);
by_host!(inc64, |flags| "bt {c:e}, 0", "inc {a}"; a = inout(reg) flags.a.wrapping_sub(1) => _, c = in(reg) flags.c);
by_host!(inc32, |flags| "bt {c:e}, 0", "inc {a:e}"; a = inout(reg) flags.a.wrapping_sub(1) => _, c = in(reg) flags.c);
by_host!(dec64, |flags| "bt {c:e}, 0", "dec {a}"; a = inout(reg) flags.a.wrapping_add(1) => _, c = in(reg) flags.c);
by_host!(dec32, |flags| "bt {c:e}, 0", "dec {a:e}"; a = inout(reg) flags.a.wrapping_add(1) => _, c = in(reg) flags.c);

/// AF is undefined behind TEST, and clear by [`FlagKind::Logic`].
fn logic64(flags: &LazyFlags) -> u64 {
    test64(flags) & !AF
}

fn logic32(flags: &LazyFlags) -> u64 {
    test32(flags) & !AF
}

fn logic8(flags: &LazyFlags) -> u64 {
    test8(flags) & !AF
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_agrees_with_the_definition() {
        let edges = [0, 1, 2, 0xF, 0x10, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF];
        let values: Vec<u64> = edges.iter().flat_map(|&edge| [edge, !edge, edge << 32, 1 << 63 | edge]).collect();
        for number in 0..256 {
            let Some((kind, bits)) = LazyOp::decode(number) else { continue };
            let bytes = bits / 8;
            let mask = u64::MAX >> (64 - bits);
            for (&a, &b) in values.iter().flat_map(|a| values.iter().map(move |b| (a, b))) {
                for c in [0, 1] {
                    let (a, b) = (a & mask, b & mask);
                    for (op, b) in [(LazyOp::new(kind, bytes), b), (LazyOp::new(kind, bytes).with_operand(-5), 0)] {
                        let flags = LazyFlags { op: op.number(), a, b, c, kept: 0 };
                        let defined = status(flags.op, a, b, c);
                        assert_eq!(STATUS_OF[number as usize](&flags), defined, "{kind:?} {bits} {a:#x} {b:#x} {c}");
                    }
                }
            }
        }
    }
}
