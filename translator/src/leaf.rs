//! Small leaf functions, which become part of the regions that call them.
//!
//! Such a function is decoded once for each region and gets blocks of its own for each call, so that flags, registers and
//! what is known of them pass through it. The call still pushes its return address, and RET still reads it and compares:
//! what the function does to its stack is its own affair.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, Instruction};

use crate::abi::Mode;
use crate::effects::without_counts;
use crate::flow::{Flow, Limits, flow};
use crate::reader::Reader;

/// Most instructions of a function that is inlined.
const MOST_INSTRUCTIONS: usize = 12;

/// A function without calls and loops, each of whose ways leads to a RET or out of translated code.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// Its instructions, by address.
    pub decoded: BTreeMap<u64, Instruction>,
    /// Where its blocks begin.
    pub leaders: BTreeSet<u64>,
}

/// The function at `entry`, if it is small enough to be inlined.
pub(crate) fn find(entry: u64, mode: Mode, limits: &Limits<'_>, reader: &mut Reader<'_>) -> Option<Leaf> {
    let mut leaf = Leaf { decoded: BTreeMap::new(), leaders: BTreeSet::from([entry]) };
    let mut work = vec![entry];
    let mut returns = false;
    while let Some(start) = work.pop() {
        let mut rip = start;
        while !leaf.decoded.contains_key(&rip) {
            let insn = without_counts(reader.decode(rip)?, limits.features);
            if leaf.decoded.len() == MOST_INSTRUCTIONS {
                return None;
            }
            leaf.decoded.insert(rip, insn);
            match flow(&insn, mode) {
                // Where the guest's own code serves it, it comes back to another region, whose RET would find no host frame.
                Flow::Next if insn.code() == Code::Syscall && !limits.inline_system_calls => return None,
                Flow::Next => {}
                Flow::Jump(target) if target > rip => {
                    leaf.leaders.insert(target);
                    work.push(target);
                    break;
                }
                Flow::Branch(target) if target > rip => {
                    leaf.leaders.extend([target, insn.next_ip()]);
                    work.push(target);
                }
                Flow::Return if matches!(insn.code(), Code::Retnq | Code::Retnd) => {
                    returns = true;
                    break;
                }
                Flow::Helper(..) => break,
                _ => return None,
            }
            rip = insn.next_ip();
        }
    }
    returns.then_some(leaf)
}
