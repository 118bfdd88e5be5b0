//! Region discovery: from an entry address to the control-flow graph of guest instructions that becomes one function.
//!
//! Direct jumps and branches are followed, decoding continues behind a CALL when calls are host calls, and everything
//! else ends a block. A block ends before the next leader. Blocks are kept in reverse postorder, entry first, so that
//! an edge to a block with an index not above its source's closes a loop.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory, OpKind};
use lstar_arch::Hooked;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::CodeSource;
use crate::abi::{Helper, Mode};
use crate::effects::{ALL_FLAGS, Effects, FlagWrite, available, effects, is_mmx, is_x87, without_counts};
use crate::flow::{Flow, Limits, flow, has_16bit_address, writes_code_segment};
use crate::leaf::{self, Leaf};
use crate::lift::{self, Lifter};
use crate::reader::{Reader, Snapshot};

/// Farthest distance at which the target of an unconditional jump still counts as part of the same function.
const NEAR_JUMP: u64 = 16 * 1024;
/// Most targets of an indirect jump that are part of the region.
const JUMP_TARGETS: usize = 256;
/// How an instruction is carried out.
#[derive(Clone, Copy)]
pub(crate) enum Lowering {
    /// By code from this lifter.
    Lift(Lifter),
    /// By a `Check` helper with this argument.
    Check(Helper, u64),
    /// It ends its block; see [`Terminator`].
    Terminate,
    /// A CALL that ends its block and goes on inside the region: see [`crate::leaf`].
    Enter,
    /// No instruction: this helper calls the hooks of the one that follows.
    Hook(Helper),
}

/// An instruction with what was found out about it.
#[derive(Clone, Copy)]
pub(crate) struct Insn {
    /// Decoded form.
    pub raw: Instruction,
    /// Effects.
    pub effects: Effects,
    /// Lowering.
    pub lowering: Lowering,
}

impl Insn {
    /// Whether guest registers live only in the block while it executes.
    pub fn is_barrier(&self) -> bool {
        match self.lowering {
            Lowering::Lift(_) | Lowering::Enter => false,
            Lowering::Check(..) | Lowering::Hook(_) => true,
            Lowering::Terminate => self.is_host_call(),
        }
    }

    /// Whether it is a CALL that ends its block (and is a host call if calls are).
    pub fn is_host_call(&self) -> bool {
        let call = matches!(self.raw.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
        call && matches!(self.lowering, Lowering::Terminate)
    }
}

/// Where control goes from a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Successor {
    /// A block of this region, by index.
    Block(usize),
    /// A guest address outside.
    Outside(u64),
}

/// How a block ends.
#[derive(Clone, Debug)]
pub(crate) enum Terminator {
    /// No instruction: the next block follows (also after a CALL that is a host call).
    Fall(Successor),
    /// JMP to a known target.
    Jump(Successor),
    /// Jcc, JRCXZ, LOOPcc: taken, not taken.
    Branch(Successor, Successor),
    /// JMP to a computed target: those known to be frequent.
    IndirectJump(Rc<[Successor]>),
    /// CALL with a host call: where it continues.
    Call(Successor),
    /// CALL of a function that is part of the region: its first block.
    Enter(Successor),
    /// CALL as a jump out of the region.
    CallOut,
    /// Near RET.
    Return,
    /// Near RET of a function that is part of the region: behind the call.
    Leave(Successor),
    /// Left to a `Jump` helper with these arguments.
    Helper(Helper, [u64; 2]),
}

impl Terminator {
    /// The blocks and addresses control may continue at, as far as they are known.
    pub fn successors(&self) -> impl Iterator<Item = Successor> {
        let (first, second, more) = match self {
            Self::Fall(next) | Self::Jump(next) | Self::Call(next) | Self::Enter(next) | Self::Leave(next) => {
                (Some(*next), None, None)
            }
            Self::Branch(taken, next) => (Some(*taken), Some(*next), None),
            Self::IndirectJump(targets) => (None, None, Some(targets)),
            _ => (None, None, None),
        };
        let more = more.map_or(&[][..], |targets| targets);
        first.into_iter().chain(second).chain(more.iter().copied())
    }

    /// Changes each of [`Self::successors`].
    fn change_successors(&mut self, change: impl Fn(&mut Successor)) {
        match self {
            Self::Fall(next) | Self::Jump(next) | Self::Call(next) | Self::Enter(next) | Self::Leave(next) => {
                change(next);
            }
            Self::Branch(taken, next) => {
                change(taken);
                change(next);
            }
            Self::IndirectJump(targets) => {
                *targets = targets
                    .iter()
                    .map(|&target| {
                        let mut target = target;
                        change(&mut target);
                        target
                    })
                    .collect();
            }
            Self::CallOut | Self::Return | Self::Helper(..) => {}
        }
    }

    /// The successors that are blocks.
    pub fn blocks(&self) -> impl Iterator<Item = usize> {
        self.successors().filter_map(|successor| match successor {
            Successor::Block(index) => Some(index),
            Successor::Outside(_) => None,
        })
    }
}

/// A basic block.
pub(crate) struct BasicBlock {
    /// Address of its first instruction.
    pub start: u64,
    /// Its instructions, the terminating one included; empty only when nothing could be decoded at `start`.
    pub insns: Vec<Insn>,
    /// How it ends.
    pub end: Terminator,
}

/// The control-flow graph of a region, blocks in reverse postorder.
pub(crate) struct Region {
    /// Entry address.
    pub entry: u64,
    /// Mode.
    pub mode: Mode,
    /// Whether CALL is a host call.
    pub host_calls: bool,
    /// Blocks; the first one is at `entry`.
    pub blocks: Vec<BasicBlock>,
    /// Guest bytes covered, sorted.
    pub ranges: Vec<Range<u64>>,
    /// Addresses outside whose code overwrites all status flags before anything can look at them.
    ignoring_flags: FxHashSet<u64>,
    /// Addresses outside at which a basic block goes on that hooks may want to know of.
    inside_blocks: FxHashSet<u64>,
}

impl Region {
    /// Whether control is inside a basic block of hooked code when it has got to `rip`, outside the region, without a branch.
    pub fn is_inside_block(&self, rip: u64) -> bool {
        self.inside_blocks.contains(&rip)
    }

    /// Whether the code at `rip`, outside the region, overwrites all status flags before anything can look at them.
    pub fn ignores_flags(&self, rip: u64) -> bool {
        self.ignoring_flags.contains(&rip)
    }
}

impl Region {
    /// Most instructions that can retire from instruction `at` of block `index` on until the budget is looked at again: at
    /// back edges, behind calls and helpers, and at the entries of other regions.
    pub fn instructions_until_check(&self, index: usize, at: usize, cost_of: &[u32]) -> u32 {
        let block = &self.blocks[index];
        let rest = &block.insns[at..];
        if let Some(helper) = rest.iter().position(|insn| matches!(insn.lowering, Lowering::Check(..))) {
            return count_instructions(&rest[..=helper]);
        }
        let beyond = match block.end {
            Terminator::Call(_) => 0,
            _ => block.end.blocks().filter(|&next| next > index).map(|next| cost_of[next]).max().unwrap_or(0),
        };
        count_instructions(rest) + beyond
    }

    /// [`Region::instructions_until_check`] from the start of each block.
    pub fn check_costs(&self) -> Vec<u32> {
        let mut costs = vec![0; self.blocks.len()];
        // Forward edges lead to higher indices.
        for index in (0..self.blocks.len()).rev() {
            costs[index] = self.instructions_until_check(index, 0, &costs);
        }
        costs
    }
}

/// How many of them are instructions.
pub(crate) fn count_instructions(insns: &[Insn]) -> u32 {
    insns.iter().filter(|insn| !matches!(insn.lowering, Lowering::Hook(_))).count() as u32
}

/// Frequent targets of the indirect jump at `rip` that can belong to the same function.
fn near_targets(reader: &mut Reader<'_>, rip: u64, limits: &Limits<'_>) -> Vec<u64> {
    if !limits.known_targets {
        return Vec::new();
    }
    let mut targets = reader.indirect_targets(rip);
    targets.retain(|target| target.abs_diff(rip) <= NEAR_JUMP);
    targets.truncate(JUMP_TARGETS);
    targets
}

/// What belongs to a region.
struct Explored {
    /// Instructions by address, those of inlined functions apart.
    decoded: BTreeMap<u64, Instruction>,
    /// Where blocks begin.
    leaders: BTreeSet<u64>,
    /// Inlined functions by the address of their call.
    leaves: BTreeMap<u64, Rc<Leaf>>,
}

/// Decodes everything that belongs to the region.
fn explore(entry: u64, mode: Mode, limits: &Limits<'_>, reader: &mut Reader<'_>) -> Explored {
    let mut decoded = BTreeMap::new();
    let mut leaves = BTreeMap::new();
    let mut known_leaves: FxHashMap<u64, Option<Rc<Leaf>>> = FxHashMap::default();
    let mut inlined = 0;
    let mut leaders = BTreeSet::from([entry]);
    reader.in_hooked_code = reader.hooked_at(entry).is_some();
    if reader.in_hooked_code {
        // One basic block, whatever jumps into it.
        let mut rip = entry;
        while decoded.len() < limits.max_instructions {
            let Some(insn) = reader.decode(rip).map(|insn| without_counts(insn, limits.features)) else { break };
            decoded.insert(rip, insn);
            if insn.flow_control() != FlowControl::Next {
                break;
            }
            rip = insn.next_ip();
        }
        return Explored { decoded, leaders, leaves };
    }
    let warm = |reader: &mut Reader<'_>, rip| !limits.executed_only || !reader.is_cold(rip);
    // Breadth first: when the limit is reached, what is near the entry has been taken.
    let mut work = std::collections::VecDeque::from([entry]);
    while let Some(start) = work.pop_front() {
        let mut rip = start;
        while decoded.len() + inlined < limits.max_instructions && !decoded.contains_key(&rip) {
            let Some(insn) = reader.decode(rip).map(|insn| without_counts(insn, limits.features)) else { break };
            decoded.insert(rip, insn);
            match flow(&insn, mode) {
                Flow::Next => {}
                Flow::Jump(target) => {
                    if target.abs_diff(rip) <= NEAR_JUMP && warm(reader, target) {
                        leaders.insert(target);
                        work.push_back(target);
                    }
                    break;
                }
                Flow::Branch(target) => {
                    let [taken, next] = [target, insn.next_ip()].map(|rip| warm(reader, rip));
                    leaders.extend([target, insn.next_ip()]);
                    // A branch that was not executed either leads to both.
                    if taken || !next {
                        work.push_back(target);
                    }
                    if taken && !next {
                        break;
                    }
                }
                Flow::Call if limits.host_calls => {
                    leaders.insert(insn.next_ip());
                    if limits.inline_leaves && insn.is_call_near() {
                        let target = insn.near_branch_target();
                        let leaf = known_leaves
                            .entry(target)
                            .or_insert_with(|| leaf::find(target, mode, limits, reader).map(Rc::new));
                        if let Some(leaf) = leaf {
                            inlined += leaf.decoded.len();
                            leaves.insert(rip, leaf.clone());
                        }
                    }
                    if !warm(reader, insn.next_ip()) {
                        break;
                    }
                }
                Flow::IndirectJump => {
                    for target in near_targets(reader, rip, limits) {
                        leaders.insert(target);
                        work.push_back(target);
                    }
                    break;
                }
                Flow::Call | Flow::Return | Flow::Helper(..) => break,
            }
            rip = insn.next_ip();
        }
    }
    Explored { decoded, leaders, leaves }
}

/// Reads all that [`discover`] would read.
pub(crate) fn read_ahead(entry: u64, mode: Mode, source: &mut dyn CodeSource, limits: &Limits<'_>) -> Snapshot {
    let mut reader = Reader::new(source, mode);
    explore(entry, mode, limits, &mut reader);
    reader.into_snapshot()
}

/// Builds the region at `entry`.
pub(crate) fn discover(entry: u64, mode: Mode, source: &mut dyn CodeSource, limits: &Limits<'_>) -> Region {
    let mut reader = Reader::new(source, mode);
    let Explored { decoded, leaders, leaves } = explore(entry, mode, limits, &mut reader);
    let mut builder = Builder {
        reader: &mut reader,
        limits,
        factory: InstructionInfoFactory::new(),
        blocks: Vec::new(),
        inside_blocks: FxHashSet::default(),
    };
    let function = Function { decoded: &decoded, leaders: &leaders, leaves: Some(&leaves), back: None };
    let index_of = builder.add(entry, &function);
    let functions_own = builder.blocks.len();
    for (&call, leaf) in &leaves {
        let Some(insn) = decoded.get(&call) else { continue };
        let inner = Function {
            decoded: &leaf.decoded,
            leaders: &leaf.leaders,
            leaves: None,
            back: Some(
                index_of.get(&insn.next_ip()).map_or(Successor::Outside(insn.next_ip()), |&at| Successor::Block(at)),
            ),
        };
        let inner_index_of = builder.add(insn.near_branch_target(), &inner);
        for block in &mut builder.blocks[..functions_own] {
            if block.insns.last().is_some_and(|last| last.raw.ip() == call) {
                block.end.change_successors(|target| resolve(target, &inner_index_of));
            }
        }
    }
    let Builder { mut factory, blocks, inside_blocks, .. } = builder;
    let blocks = in_reverse_postorder(blocks, index_of.get(&entry).copied().unwrap_or(0));
    let mut spans: Vec<Range<u64>> = blocks
        .iter()
        .filter_map(|block| Some(block.start..block.insns.last()?.raw.next_ip()))
        .filter(|span| span.start < span.end)
        .collect();
    let mut ignoring_flags = FxHashSet::default();
    for target in blocks.iter().flat_map(outside_targets).filter(|_| limits.look_ahead) {
        if let Some(end) = overwrites_flags(target, &mut reader, limits, &mut factory)
            && ignoring_flags.insert(target)
        {
            // The code there has become part of what this region depends on.
            spans.push(target..end);
        }
    }
    let ranges = covered(spans);
    Region { entry, mode, host_calls: limits.host_calls, blocks, ranges, ignoring_flags, inside_blocks }
}

/// Known addresses outside the region that control goes to from `block`.
fn outside_targets(block: &BasicBlock) -> impl Iterator<Item = u64> {
    let called = block
        .insns
        .last()
        .filter(|insn| insn.raw.is_call_near() && matches!(insn.lowering, Lowering::Terminate))
        .map(|insn| insn.raw.near_branch_target());
    let jumped = block.end.successors().filter_map(|successor| match successor {
        Successor::Outside(rip) => Some(rip),
        Successor::Block(_) => None,
    });
    called.into_iter().chain(jumped.collect::<Vec<_>>())
}

/// Where the code at `rip` has overwritten all status flags, if nothing before can read them or fault.
fn overwrites_flags(
    rip: u64,
    reader: &mut Reader<'_>,
    limits: &Limits<'_>,
    factory: &mut InstructionInfoFactory,
) -> Option<u64> {
    const LOOK_AHEAD: usize = 6;
    let (mut rip, mut pending) = (rip, ALL_FLAGS);
    for _ in 0..LOOK_AHEAD {
        let insn = without_counts(reader.decode(rip)?, limits.features);
        let effects = effects(&insn, factory);
        let lifted = lift::lifter(&insn).is_some() && lift::system::helper(&insn, reader.mode).is_none();
        let lifted = lifted && !has_16bit_address(&insn) && !writes_code_segment(&insn, &effects, reader.mode);
        let harmless = lifted && available(&insn, limits.features);
        if effects.faults
            || effects.flag_reads & pending != 0
            || !harmless
            || !matches!(flow(&insn, reader.mode), Flow::Next)
        {
            return None;
        }
        if let FlagWrite::Sure(written) = effects.flag_write {
            pending &= !written;
        }
        rip = insn.next_ip();
        if pending == 0 {
            return Some(rip);
        }
    }
    None
}

/// Turns an address into a block's index, if there is one.
fn resolve(successor: &mut Successor, index_of: &FxHashMap<u64, usize>) {
    if let Successor::Outside(rip) = *successor
        && let Some(&index) = index_of.get(&rip)
    {
        *successor = Successor::Block(index);
    }
}

/// The region's own function, or an inlined one.
struct Function<'a> {
    decoded: &'a BTreeMap<u64, Instruction>,
    leaders: &'a BTreeSet<u64>,
    /// Functions inlined into it, by the address of their call; inlined functions have none.
    leaves: Option<&'a BTreeMap<u64, Rc<Leaf>>>,
    /// Where an inlined function returns to.
    back: Option<Successor>,
}

/// Makes blocks from decoded instructions.
struct Builder<'a, 'r> {
    reader: &'a mut Reader<'r>,
    limits: &'a Limits<'a>,
    factory: InstructionInfoFactory,
    blocks: Vec<BasicBlock>,
    inside_blocks: FxHashSet<u64>,
}

impl Builder<'_, '_> {
    /// Adds the blocks of a function; returns their indices by address. A call of an inlined function still leads to its address.
    fn add(&mut self, entry: u64, function: &Function<'_>) -> FxHashMap<u64, usize> {
        let first = self.blocks.len();
        let mut index_of = FxHashMap::default();
        let decoded = |leader: u64| leader == entry || function.decoded.contains_key(&leader);
        for &start in function.leaders.iter().filter(|&&leader| decoded(leader)) {
            index_of.insert(start, self.blocks.len());
            // Successors hold addresses until all indices are known.
            let block = self.block(start, function);
            self.blocks.push(block);
        }
        for block in &mut self.blocks[first..] {
            if !matches!(block.end, Terminator::Enter(_) | Terminator::Leave(_)) {
                block.end.change_successors(|successor| resolve(successor, &index_of));
            }
        }
        index_of
    }

    fn block(&mut self, start: u64, function: &Function<'_>) -> BasicBlock {
        let limits = self.limits;
        let mode = self.reader.mode;
        let in_function = |rip: u64| function.leaders.contains(&rip) && function.decoded.contains_key(&rip);
        let mut insns = Vec::new();
        let mut rip = start;
        let end = loop {
            if rip != start && in_function(rip) {
                break Terminator::Fall(Successor::Outside(rip));
            }
            let Some(&raw) = function.decoded.get(&rip) else {
                if insns.last().is_some_and(goes_on) && self.reader.hooked_at(rip).is_some() {
                    self.inside_blocks.insert(rip);
                }
                // At the limit decoding can go on in another region; at the entry there is nothing but bad bytes.
                break if rip == start {
                    Terminator::Helper(Helper::InterpretJump, [rip, 0])
                } else {
                    Terminator::Fall(Successor::Outside(rip))
                };
            };
            let next = Successor::Outside(raw.next_ip());
            let end = match flow(&raw, mode) {
                Flow::Next => None,
                Flow::Jump(target) => Some(Terminator::Jump(Successor::Outside(target))),
                Flow::Branch(target) => Some(Terminator::Branch(Successor::Outside(target), next)),
                Flow::IndirectJump => {
                    let known =
                        near_targets(self.reader, rip, limits).into_iter().filter(|&target| in_function(target));
                    Some(Terminator::IndirectJump(known.map(Successor::Outside).collect()))
                }
                Flow::Call if function.leaves.is_some_and(|leaves| leaves.contains_key(&rip)) => {
                    Some(Terminator::Enter(Successor::Outside(raw.near_branch_target())))
                }
                Flow::Call if limits.host_calls => Some(Terminator::Call(next)),
                Flow::Call => Some(Terminator::CallOut),
                Flow::Return => Some(function.back.map_or(Terminator::Return, Terminator::Leave)),
                Flow::Helper(helper, arguments) => Some(Terminator::Helper(helper, arguments)),
            };
            let effects = effects(&raw, &mut self.factory);
            let interpreted = limits.declined.contains(&rip)
                || !available(&raw, limits.features)
                || has_16bit_address(&raw)
                || writes_code_segment(&raw, &effects, mode);
            let lowering = match end {
                Some(Terminator::Enter(_)) => Lowering::Enter,
                Some(_) => Lowering::Terminate,
                None if interpreted => Lowering::Check(Helper::Interpret, rip),
                None => lift::system::helper(&raw, mode)
                    .map(|(helper, argument)| Lowering::Check(helper, argument))
                    .or_else(|| lift::lifter(&raw).map(Lowering::Lift))
                    .unwrap_or(Lowering::Check(Helper::Interpret, rip)),
            };
            let hooked = self.reader.hooked_at(rip);
            if hooked == Some(Hooked::Instructions) || rip == start && hooked.is_some() {
                insns.push(self.hook(rip, if rip == start { Helper::Hook } else { Helper::HookInside }));
            }
            insns.push(Insn { raw, effects, lowering });
            if let Some(end) = end {
                break end;
            }
            if self.reader.in_hooked_code && matches!(lowering, Lowering::Check(..)) {
                // The code behind a helper may be left, and then is gone on with from its start.
                if insns.last().is_some_and(goes_on) && self.reader.hooked_at(raw.next_ip()).is_some() {
                    self.inside_blocks.insert(raw.next_ip());
                }
                break Terminator::Fall(next);
            }
            rip = raw.next_ip();
        };
        mark_harmless_x87(&mut insns);
        BasicBlock { start, insns, end }
    }

    /// What stands for the call of the hooks of the code at `rip`.
    fn hook(&mut self, rip: u64, helper: Helper) -> Insn {
        let mut raw = Instruction::with(Code::Nopd);
        raw.set_len(0);
        raw.set_ip(rip);
        Insn { raw, effects: effects(&raw, &mut self.factory), lowering: Lowering::Hook(helper) }
    }
}

/// Whether the basic block goes on behind an instruction, as [`lstar_arch::hooked`] has it.
fn goes_on(insn: &Insn) -> bool {
    insn.raw.flow_control() == FlowControl::Next
}

/// The first x87 instruction of a run moves the x87 state to where it can be worked on, or traps; those behind it that touch no
/// memory cannot fault. [`crate::x87`] tells more.
fn mark_harmless_x87(insns: &mut [Insn]) {
    let mut at_hand = false;
    for insn in insns {
        let lifted = matches!(insn.lowering, Lowering::Lift(_));
        if !lifted || is_mmx(&insn.raw) {
            at_hand = false;
        } else if is_x87(&insn.raw) {
            let touches_memory = insn.raw.op_count() > 0 && insn.raw.op0_kind() == OpKind::Memory;
            insn.effects.faults = !at_hand || touches_memory;
            at_hand = true;
        }
    }
}

/// Reorders `blocks` into reverse postorder from `entry` and drops what is not reachable.
fn in_reverse_postorder(blocks: Vec<BasicBlock>, entry: usize) -> Vec<BasicBlock> {
    let mut order = Vec::with_capacity(blocks.len());
    let mut seen = vec![false; blocks.len()];
    let mut stack = vec![(entry, blocks[entry].end.blocks().collect::<Vec<_>>())];
    seen[entry] = true;
    while let Some((index, rest)) = stack.last_mut() {
        // The taken side is visited first, so that the fall-through side comes directly behind its branch.
        if rest.is_empty() {
            order.push(*index);
            stack.pop();
        } else {
            let next = rest.remove(0);
            if !std::mem::replace(&mut seen[next], true) {
                stack.push((next, blocks[next].end.blocks().collect()));
            }
        }
    }
    order.reverse();
    let mut position = vec![usize::MAX; blocks.len()];
    for (new, &old) in order.iter().enumerate() {
        position[old] = new;
    }
    let mut blocks: Vec<Option<BasicBlock>> = blocks.into_iter().map(Some).collect();
    let mut sorted: Vec<BasicBlock> = order.iter().filter_map(|&old| blocks[old].take()).collect();
    let renumber = |successor: &mut Successor| {
        if let Successor::Block(index) = successor {
            *index = position[*index];
        }
    };
    for block in &mut sorted {
        block.end.change_successors(renumber);
    }
    sorted
}

fn covered(mut spans: Vec<Range<u64>>) -> Vec<Range<u64>> {
    spans.sort_by_key(|span| span.start);
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for span in spans {
        match ranges.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => ranges.push(span),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use lstar_arch::cpuid::Features;

    use super::*;

    const BASE: u64 = 0x40_1FF8;

    /// Code, and the offsets in it that were not executed.
    struct Bytes(&'static [u8], &'static [u64]);

    impl CodeSource for Bytes {
        fn fetch(&mut self, address: u64, buf: &mut [u8], _: Mode) -> usize {
            let mut count = 0;
            for (byte, at) in buf.iter_mut().zip(address..) {
                // Zeros before the code, nothing behind it.
                *byte = match at.checked_sub(BASE) {
                    None => 0,
                    Some(offset) => match self.0.get(offset as usize) {
                        Some(&byte) => byte,
                        None => break,
                    },
                };
                count += 1;
            }
            count
        }

        fn is_cold(&mut self, rip: u64, _: Mode) -> bool {
            self.1.contains(&(rip - BASE))
        }
    }

    fn region(code: &'static [u8], max_instructions: usize) -> Region {
        region_without(code, max_instructions, &[])
    }

    fn region_without(code: &'static [u8], max_instructions: usize, cold: &'static [u64]) -> Region {
        let declined = FxHashSet::default();
        let limits = Limits {
            max_instructions,
            host_calls: true,
            features: Features::all(),
            known_targets: true,
            executed_only: true,
            look_ahead: true,
            inline_leaves: true,
            inline_system_calls: true,
            declined: &declined,
        };
        discover(BASE, Mode::User, &mut Bytes(code, cold), &limits)
    }

    fn starts(region: &Region) -> Vec<u64> {
        region.blocks.iter().map(|block| block.start - BASE).collect()
    }

    #[test]
    fn blocks_come_in_reverse_postorder_and_reach_over_pages() {
        // test ecx,ecx; je +4; inc eax; jmp +2; dec eax; dec ecx; jne start; ret
        let code = &[0x85, 0xC9, 0x74, 4, 0xFF, 0xC0, 0xEB, 2, 0xFF, 0xC8, 0xFF, 0xC9, 0x75, 0xF2, 0xC3];
        let region = region(code, 100);
        assert_eq!(starts(&region), [0, 4, 8, 10, 14]);
        assert_eq!((region.ranges.len(), region.ranges[0].clone()), (1, BASE..BASE + 15));
        let Terminator::Branch(Successor::Block(taken), Successor::Block(next)) = region.blocks[3].end else {
            panic!("{:?}", region.blocks[3].end)
        };
        assert_eq!((taken, next), (0, 4));
    }

    #[test]
    fn what_was_not_executed_is_left_out() {
        // test ecx,ecx; je +5; mov eax, 1; dec eax; ret
        let code = &[0x85, 0xC9, 0x74, 5, 0xB8, 1, 0, 0, 0, 0xFF, 0xC8, 0xC3];
        for (cold, expected) in [
            (&[][..], &[0, 4, 9][..]),
            (&[4], &[0, 9]),
            // It follows what was executed.
            (&[9], &[0, 4, 9]),
            // The branch itself was not executed.
            (&[4, 9], &[0, 4, 9]),
        ] {
            let region = region_without(code, 100, cold);
            assert_eq!(starts(&region), expected, "without {cold:?}");
            let mut outside: Vec<u64> = region.blocks.iter().flat_map(outside_targets).map(|rip| rip - BASE).collect();
            outside.sort_unstable();
            outside.dedup();
            let left: Vec<u64> = [4, 9].into_iter().filter(|start| !expected.contains(start)).collect();
            assert!(left.iter().all(|start| outside.contains(start)), "{outside:?} without {cold:?}");
        }
    }

    #[test]
    fn a_jump_into_an_instruction_decodes_both_ways() {
        // mov eax, 0xC3C3C3C3 whose bytes are also RETs: jae +1 lands on one.
        let code = &[0x73, 1, 0xB8, 0xC3, 0xC3, 0xC3, 0xC3, 0xC3];
        let region = region(code, 100);
        assert_eq!(starts(&region).len(), 3);
        assert!(region.blocks.iter().any(|block| block.start == BASE + 3));
        assert_eq!((region.ranges.len(), region.ranges[0].clone()), (1, BASE..BASE + 8));
    }

    #[test]
    fn the_limit_leaves_direct_exits() {
        let code = &[0x90, 0x90, 0x90, 0x90, 0xC3];
        let region = region(code, 3);
        assert_eq!(region.blocks.len(), 1);
        assert!(matches!(region.blocks[0].end, Terminator::Fall(Successor::Outside(rip)) if rip == BASE + 3));
    }

    #[test]
    fn nothing_decodable_goes_to_the_interpreter() {
        let region = region(&[0x06], 100);
        assert!(region.blocks[0].insns.is_empty());
        assert!(matches!(region.blocks[0].end, Terminator::Helper(Helper::InterpretJump, [rip, _]) if rip == BASE));
    }

    #[test]
    fn what_vendors_take_for_different_branches_goes_to_the_interpreter() {
        for code in [&[0x66, 0x73, 5, 0x90][..], &[0x2E, 0x66, 0xC3], &[0x66, 0xEB, 0xFD], &[0x66, 0xFF, 0xE0]] {
            let region = region(code, 100);
            // It is there, so that it counts.
            assert_eq!(region.blocks[0].insns.len(), 1, "{code:02x?}");
            assert!(matches!(region.blocks[0].end, Terminator::Helper(Helper::InterpretJump, [rip, _]) if rip == BASE));
        }
    }
}
