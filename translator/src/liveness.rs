//! Data flow over a region: which registers and flags are live, and which registers differ from the block.
//!
//! Three analyses at instruction granularity. *Dirty* (forward, may): registers changed since they were last stored;
//! a point that stores registers stores the dirty ones. *Live registers* (backward): read later, where storing counts
//! as reading. *Live flags* (backward), of two kinds: flags that a later instruction reads, which cross block borders
//! as SSA values, and flags that must be exact in the block (at faults, calls and exits), which cross them in memory.

use crate::config::PreciseState;
use crate::discover::{Insn, Region, Successor, Terminator};
use crate::effects::{ALL_FLAGS, FlagSet, FlagWrite, RegSet};
use crate::recover::FlagSource;

/// Flags wanted by what follows a point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LiveFlags {
    /// Wanted as SSA values.
    pub read: FlagSet,
    /// Wanted in the block's lazy flags or RFLAGS.
    pub memory: FlagSet,
}

impl LiveFlags {
    const IN_MEMORY: Self = Self { read: 0, memory: ALL_FLAGS };

    /// Wanted at all.
    pub fn any(self) -> FlagSet {
        self.read | self.memory
    }

    fn union(self, other: Self) -> Self {
        Self { read: self.read | other.read, memory: self.memory | other.memory }
    }
}

/// Registers that regions pass each other in host registers: RSP. The block's value is out of date where one begins.
pub(crate) const PASSED_REGISTERS: RegSet = 1 << lstar_arch::Gpr::Rsp as u32;

/// Facts about one block.
#[derive(Clone, Default)]
pub(crate) struct BlockFacts {
    /// Registers that may be dirty at its start.
    pub dirty_in: RegSet,
    /// A checkpoint of its only predecessor may serve its first accesses.
    checkpoint_in: bool,
    /// Registers live at its start.
    pub live_in: RegSet,
    /// Flags live at its start.
    pub flags_in: LiveFlags,
    /// What registers the flags at its start can be had from, if all ways in agree.
    pub flag_source: Option<FlagSource>,
    /// As `flag_source`, for the ways round the loop only: see [`crate::recover::AtStart`].
    pub repeated_flag_source: Option<FlagSource>,
    /// For each instruction, the registers live behind it.
    pub live_after: Vec<RegSet>,
    /// For each instruction, the flags wanted behind it.
    pub flags_after: Vec<FlagSet>,
    /// For each instruction, whether flags must be exact in the block at some later point.
    pub flags_stored_after: Vec<bool>,
    /// Number of edges into it; the region's entry counts as one.
    pub predecessors: u32,
    /// An edge into it closes a loop.
    pub loop_head: bool,
}

/// Registers that differ from the block behind a run of instructions, given those before it, as far as the checkpoints
/// that the emitter is sure to make tell; it may make more.
#[derive(Clone, Copy)]
struct Dirty {
    registers: RegSet,
    /// A checkpoint before this point serves accesses behind it.
    checkpoint: bool,
}

impl Dirty {
    fn at_start(facts: &BlockFacts) -> Self {
        Self { registers: facts.dirty_in, checkpoint: facts.checkpoint_in }
    }

    fn after(self, insn: &Insn, precise: PreciseState) -> Self {
        if insn.is_barrier() {
            let returned = if insn.is_host_call() { PASSED_REGISTERS } else { 0 };
            return Self { registers: returned, checkpoint: false };
        }
        let fresh = precise == PreciseState::Checkpoints && insn.effects.faults && !self.checkpoint;
        let kept = if fresh { 0 } else { self.registers };
        let checkpoint = (self.checkpoint || fresh) && !insn.effects.stores;
        Self { registers: kept | insn.effects.writes, checkpoint }
    }
}

fn flags_before(insn: &Insn, after: LiveFlags) -> LiveFlags {
    if insn.is_barrier() {
        return LiveFlags::IN_MEMORY;
    }
    let mut before = match insn.effects.flag_write {
        FlagWrite::Sure(0) => after,
        FlagWrite::Sure(ALL_FLAGS) => LiveFlags::default(),
        // The flags it keeps are handed on as values.
        FlagWrite::Sure(written) => LiveFlags { read: after.any() & !written, memory: 0 },
        FlagWrite::Perhaps => LiveFlags { read: 0, memory: after.any() },
    };
    before.read |= insn.effects.flag_reads;
    if insn.effects.faults {
        before.memory = ALL_FLAGS;
    }
    before
}

/// Whether the edge from block `from` to block `to` enters a loop before which registers are stored, once, so that those the
/// loop does not change are clean inside.
pub(crate) fn stores_at_entry(facts: &[BlockFacts], from: usize, to: usize, precise: PreciseState) -> bool {
    precise == PreciseState::Checkpoints && facts[to].loop_head && from < to
}

/// Whether something at the block's end stores all dirty registers, and flags.
fn flushes_at_end(end: &Terminator, index: usize) -> bool {
    match end {
        Terminator::Fall(_) | Terminator::Jump(_) | Terminator::Branch(..) | Terminator::Enter(_) => {
            end.successors().any(|successor| {
                matches!(successor, Successor::Outside(_)) || matches!(successor, Successor::Block(to) if to <= index)
            })
        }
        _ => true,
    }
}

/// Runs the analyses.
pub(crate) fn analyse(region: &Region, precise: PreciseState) -> Vec<BlockFacts> {
    let mut facts = vec![BlockFacts::default(); region.blocks.len()];
    facts[0].predecessors = 1;
    facts[0].dirty_in = PASSED_REGISTERS;
    for (facts, source) in facts.iter_mut().zip(crate::recover::analyse(region)) {
        facts.flag_source = source.always;
        facts.repeated_flag_source = source.when_repeated;
    }
    for (index, block) in region.blocks.iter().enumerate() {
        for next in block.end.blocks() {
            facts[next].predecessors += 1;
            facts[next].loop_head |= next <= index;
        }
    }

    let mut changed = true;
    while std::mem::take(&mut changed) {
        for (index, block) in region.blocks.iter().enumerate() {
            let start = Dirty::at_start(&facts[index]);
            let end = block.insns.iter().fold(start, |dirty, insn| dirty.after(insn, precise));
            for next in block.end.blocks() {
                // The emitter hands its knowledge on in this case only.
                if facts[next].predecessors == 1 && index < next {
                    changed |= end.checkpoint != std::mem::replace(&mut facts[next].checkpoint_in, end.checkpoint);
                }
                let handed_on = if stores_at_entry(&facts, index, next, precise) { 0 } else { end.registers };
                let joined = facts[next].dirty_in | handed_on;
                changed |= joined != std::mem::replace(&mut facts[next].dirty_in, joined);
            }
        }
    }

    changed = true;
    let mut dirty_before = Vec::new();
    while std::mem::take(&mut changed) {
        for (index, block) in region.blocks.iter().enumerate().rev() {
            dirty_before.clear();
            let mut state = Dirty::at_start(&facts[index]);
            for insn in &block.insns {
                dirty_before.push(state.registers);
                state = state.after(insn, precise);
            }
            let dirty = state.registers;
            let (mut live, mut flags) = (0, LiveFlags::default());
            for successor in block.end.successors() {
                match successor {
                    Successor::Block(next) => {
                        live |= facts[next].live_in;
                        flags = flags.union(facts[next].flags_in);
                    }
                    Successor::Outside(_) => flags = flags.union(LiveFlags::IN_MEMORY),
                }
            }
            if flushes_at_end(&block.end, index) {
                live |= dirty | PASSED_REGISTERS;
                flags = flags.union(LiveFlags::IN_MEMORY);
            }
            if block.end.blocks().any(|next| stores_at_entry(&facts, index, next, precise)) {
                live |= dirty;
            }
            let count = block.insns.len();
            let (mut live_after, mut flags_after) = (vec![0; count], vec![0; count]);
            let mut flags_stored_after = vec![false; count];
            for (at, insn) in block.insns.iter().enumerate().rev() {
                live_after[at] = live;
                flags_after[at] = flags.any();
                flags_stored_after[at] = flags.memory != 0;
                flags = flags_before(insn, flags);
                if insn.is_barrier() {
                    live = insn.effects.reads | dirty_before[at] | insn.effects.writes;
                } else if at + 1 == count && matches!(block.end, Terminator::Helper(..)) {
                    // The registers are stored before a helper executes the instruction, also those that it overwrites.
                    live |= insn.effects.reads | dirty_before[at];
                } else {
                    live = live & !insn.effects.kills | insn.effects.reads;
                    if insn.effects.faults {
                        live |= dirty_before[at];
                    }
                }
            }
            let block_facts = &mut facts[index];
            if flags.any() != 0 {
                live |= block_facts.flag_source.map_or(0, |source| source.registers());
            }
            changed |= block_facts.live_in != live || block_facts.flags_in != flags;
            (block_facts.live_in, block_facts.flags_in) = (live, flags);
            (block_facts.live_after, block_facts.flags_after) = (live_after, flags_after);
            block_facts.flags_stored_after = flags_stored_after;
        }
    }
    facts
}
