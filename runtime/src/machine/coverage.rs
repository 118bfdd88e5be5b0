//! Which basic blocks have been executed.

use std::collections::BTreeSet;

use lstar_interpreter::Interpreter;
use lstar_translator::Probe;

use crate::memory::SpaceId;

/// A basic block that was entered at least once. Blocks can overlap: a jump into the middle of one makes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CoveredBlock {
    /// The address space it was executed in.
    pub space: SpaceId,
    /// Guest address of its first instruction.
    pub start: u64,
    /// Bytes of its instructions.
    pub size: u32,
}

/// What was found so far, and the probes that are still to be looked at.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    found: BTreeSet<CoveredBlock>,
    waiting: Vec<(SpaceId, Probe)>,
}

impl Coverage {
    /// A region's probes may be set from now on.
    pub fn watch(&mut self, space: SpaceId, probes: &[Probe]) {
        self.waiting.extend(probes.iter().map(|&probe| (space, probe)));
    }

    /// Takes over what an interpreter has executed.
    pub fn take_interpreted(&mut self, space: SpaceId, interpreter: &Interpreter) {
        let block = |(start, end): (u64, u64)| CoveredBlock { space, start, size: end.wrapping_sub(start) as u32 };
        self.found.extend(interpreter.executed().map(block));
    }

    /// Takes over the probes that `is_set` says are set.
    pub fn take_probed(&mut self, mut is_set: impl FnMut(u32) -> bool) {
        let found = &mut self.found;
        self.waiting.retain(|&(space, Probe { start, size, number })| {
            let set = is_set(number);
            if set && size != 0 {
                found.insert(CoveredBlock { space, start, size });
            }
            !set
        });
    }

    /// All blocks, by space and address.
    pub fn blocks(&self) -> Vec<CoveredBlock> {
        self.found.iter().copied().collect()
    }
}
