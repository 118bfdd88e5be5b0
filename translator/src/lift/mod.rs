//! Lifters: one function per family of mnemonics, a file per chapter of the manual.
//!
//! A lifter gets the [`Emitter`] and the decoded instruction. It must not write a register, the flags or memory before
//! all accesses that can fault have been made, except that its own store comes last before register writes, and it may
//! decline with [`NotLifted`] as long as it has emitted pure computations only. Registers it writes must be among those
//! that iced-x86 reports as written (`crate::effects`). To add a family: write a file with a
//! `lifter(Mnemonic) -> Option<Lifter>` and name it in [`lifter`].

pub(crate) mod arithmetic;
pub(crate) mod avx;
pub(crate) mod avx_masked;
pub(crate) mod bit;
pub(crate) mod control_flow;
pub(crate) mod crypto;
pub(crate) mod data_transfer;
pub(crate) mod divide;
pub(crate) mod fma;
pub(crate) mod logic;
pub(crate) mod mmx;
pub(crate) mod shift;
pub(crate) mod sse4a;
pub(crate) mod sse_convert;
pub(crate) mod sse_float;
pub(crate) mod sse_integer;
pub(crate) mod sse_move;
pub(crate) mod sse_scalar;
pub(crate) mod sse_shuffle;
pub(crate) mod sse_state;
pub(crate) mod sse_string;
pub(crate) mod string;
pub(crate) mod system;
pub(crate) mod x87;

use std::collections::HashMap;
use std::sync::LazyLock;

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind};

use crate::effects::is_mmx;
use crate::emit::{Emitter, Lifted, NotLifted};

/// Emits code for one instruction.
pub(crate) type Lifter = fn(&mut Emitter<'_>, &Instruction) -> Lifted;

/// The families, in the order in which they are asked.
const FAMILIES: &[fn(Mnemonic) -> Option<Lifter>] = &[
    data_transfer::lifter,
    arithmetic::lifter,
    logic::lifter,
    shift::lifter,
    bit::lifter,
    divide::lifter,
    sse_move::lifter,
    sse_scalar::lifter,
    sse_integer::lifter,
    sse_float::lifter,
    sse_shuffle::lifter,
    sse_convert::lifter,
    sse_state::lifter,
    sse_string::lifter,
    sse4a::lifter,
    avx::lifter,
    avx_masked::lifter,
    fma::lifter,
    crypto::lifter,
    system::lifter,
    x87::lifter,
];

/// The lifter for `insn`, if there is one.
pub(crate) fn lifter(insn: &Instruction) -> Option<Lifter> {
    if !matches!(insn.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return None;
    }
    // Some have the mnemonics of SSE instructions. Only here do the repeat prefixes mean something: elsewhere they are ignored
    // or part of the opcode.
    if insn.is_string_instruction() {
        return string::lifter(insn);
    }
    let mnemonic = base(insn);
    if is_mmx(insn) || matches!(mnemonic, Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd) {
        return mmx::lifter(insn);
    }
    FAMILIES.iter().find_map(|family| family(mnemonic))
}

/// Families whose instructions set MXCSR's flags or load it.
const CALCULATING: &[fn(Mnemonic) -> Option<Lifter>] =
    &[sse_scalar::lifter, sse_float::lifter, sse_convert::lifter, sse_state::lifter, fma::lifter];

/// Whether `insn` can change MXCSR.
pub(crate) fn calculates(insn: &Instruction) -> bool {
    let mnemonic = base(insn);
    is_mmx(insn) || CALCULATING.iter().any(|family| family(mnemonic).is_some())
}

/// For each mnemonic, that of the legacy SSE instruction that does the same, or itself.
static BASES: LazyLock<Vec<Mnemonic>> = LazyLock::new(|| {
    let lower = |mnemonic: Mnemonic| format!("{mnemonic:?}").to_lowercase();
    let names: HashMap<String, Mnemonic> = Mnemonic::values().map(|mnemonic| (lower(mnemonic), mnemonic)).collect();
    Mnemonic::values()
        .map(|mnemonic| lower(mnemonic).strip_prefix('v').and_then(|name| names.get(name)).copied().unwrap_or(mnemonic))
        .collect()
});

/// The mnemonic, without the V of VEX-encoded forms of SSE instructions.
pub(crate) fn base(insn: &Instruction) -> Mnemonic {
    let mnemonic = insn.mnemonic();
    if insn.encoding() == EncodingKind::VEX {
        BASES.get(mnemonic as usize).copied().unwrap_or(mnemonic)
    } else {
        mnemonic
    }
}

/// Index of the last operand that is no immediate.
fn last_source(insn: &Instruction) -> u32 {
    (0..insn.op_count())
        .rev()
        .find(|&index| matches!(insn.op_kind(index), OpKind::Register | OpKind::Memory))
        .unwrap_or(0)
}

/// Index of the first source: the destination, or the operand behind it in forms with a destination of its own.
pub(crate) fn first_source(insn: &Instruction) -> u32 {
    u32::from(insn.encoding() == EncodingKind::VEX && last_source(insn) >= 2)
}

/// Turns a condition that rules a form out into a refusal.
fn only_if(condition: bool) -> Lifted {
    if condition { Ok(()) } else { Err(NotLifted) }
}
