//! Lifters: one function per family of mnemonics, a file per chapter of the manual.
//!
//! A lifter gets the [`Emitter`] and the decoded instruction. It must not write a register, the flags or memory before
//! all accesses that can fault have been made, except that its own store comes last before register writes, and it may
//! decline with [`NotLifted`] as long as it has emitted pure computations only. Registers it writes must be among those
//! that iced-x86 reports as written (`crate::effects`). To add a family: write a file with a
//! `lifter(Mnemonic) -> Option<Lifter>` and name it in [`lifter`].

pub(crate) mod arithmetic;
pub(crate) mod bit;
pub(crate) mod control_flow;
pub(crate) mod data_transfer;
pub(crate) mod divide;
pub(crate) mod logic;
pub(crate) mod shift;
pub(crate) mod sse_convert;
pub(crate) mod sse_float;
pub(crate) mod sse_integer;
pub(crate) mod sse_move;
pub(crate) mod sse_scalar;
pub(crate) mod sse_shuffle;
pub(crate) mod sse_state;
pub(crate) mod system;

use iced_x86::{Instruction, Mnemonic};

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
    system::lifter,
];

/// The lifter for `insn`, if there is one.
pub(crate) fn lifter(insn: &Instruction) -> Option<Lifter> {
    if insn.has_rep_prefix() || insn.has_repne_prefix() {
        // Only string instructions give these prefixes a meaning; elsewhere they are ignored or part of the opcode.
        if insn.is_string_instruction() {
            return None;
        }
    }
    FAMILIES.iter().find_map(|family| family(insn.mnemonic()))
}

/// Turns a condition that rules a form out into a refusal.
fn only_if(condition: bool) -> Lifted {
    if condition { Ok(()) } else { Err(NotLifted) }
}
