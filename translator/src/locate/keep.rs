//! Which values a region's code would have lost by the time a site needs them, and keeping those alive.
//!
//! A value has a location as long as something will use it. Where a site needs one that nothing uses any more, and that
//! does not follow from others, the block is split behind the access and the value handed to a parameter of the second
//! half that nobody reads: no code, but the register allocator keeps the value up to there.

use cranelift_codegen::cursor::{Cursor, FuncCursor};
use cranelift_codegen::entity::SecondaryMap;
use cranelift_codegen::ir::{Block, BlockArg, Function, Inst, InstBuilder, Opcode, Value};
use rustc_hash::{FxHashMap, FxHashSet};

use super::recipe::{DEPTH, Recipe, recipe};
use super::{Access, has_effect};

/// Values of interest, numbered.
struct Numbering<'a> {
    numbers: FxHashMap<Value, usize>,
    func: &'a Function,
}

impl<'a> Numbering<'a> {
    fn new(func: &'a Function, roots: impl Iterator<Item = Value>) -> Self {
        let mut numbering = Self { numbers: FxHashMap::default(), func };
        for root in roots {
            numbering.add(root, DEPTH);
        }
        numbering
    }

    fn add(&mut self, value: Value, depth: u32) {
        let next = self.numbers.len();
        if self.numbers.contains_key(&value) || depth == 0 {
            return;
        }
        match recipe(self.func, value) {
            Some(Recipe::Constant(_)) => {}
            Some(Recipe::Computed(_, _, operands)) => {
                self.numbers.insert(value, next);
                for operand in operands {
                    self.add(operand, depth - 1);
                }
            }
            None => {
                self.numbers.insert(value, next);
            }
        }
    }
}

/// A set of numbered values.
#[derive(Clone, PartialEq, Eq)]
struct Set(Vec<u64>);

impl Set {
    fn new(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }
    fn contains(&self, number: usize) -> bool {
        self.0[number / 64] >> (number % 64) & 1 != 0
    }
    fn insert(&mut self, number: usize) {
        self.0[number / 64] |= 1 << (number % 64);
    }
    fn remove(&mut self, number: usize) {
        self.0[number / 64] &= !(1 << (number % 64));
    }
    /// Adds all of `other`; says whether anything was new.
    fn union(&mut self, other: &Self) -> bool {
        let mut new = 0;
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            new |= theirs & !*mine;
            *mine |= theirs;
        }
        new != 0
    }
}

/// What one instruction does to the values of interest.
struct Step {
    defines: Vec<usize>,
    uses: Vec<usize>,
    /// The accesses that may happen here.
    accesses: Vec<Inst>,
}

struct Analysis<'a> {
    numbering: Numbering<'a>,
    /// Values that are computed for the code's own sake.
    wanted: Vec<bool>,
}

impl Analysis<'_> {
    /// Makes sure that `value` can be had where `live` are alive, and notes in `kept` what has to be kept for that.
    fn require(&self, value: Value, live: &mut Set, kept: &mut Vec<Value>, depth: u32) {
        let Some(&number) = self.numbering.numbers.get(&value) else { return };
        if live.contains(number) {
            return;
        }
        if depth > 0
            && let Some(Recipe::Computed(_, _, operands)) = recipe(self.numbering.func, value)
        {
            let at_hand = |operand: &Value| self.numbering.numbers.get(operand).is_none_or(|&n| live.contains(n));
            if !self.wanted[number] || operands.iter().all(at_hand) {
                for operand in operands {
                    self.require(operand, live, kept, depth - 1);
                }
                return;
            }
        }
        live.insert(number);
        kept.push(value);
    }
}

/// The instructions whose results are used by code with an effect, as a set of values of interest.
fn wanted(func: &Function, numbering: &Numbering<'_>) -> (Vec<bool>, FxHashSet<Inst>) {
    let mut needed = FxHashSet::default();
    let mut work: Vec<Inst> = Vec::new();
    for block in func.layout.blocks() {
        for inst in func.layout.block_insts(block).filter(|&inst| has_effect(func, inst)) {
            needed.insert(inst);
            work.push(inst);
        }
    }
    while let Some(inst) = work.pop() {
        func.dfg.inst_values(inst).for_each(|value| {
            if let Some(by) = func.dfg.value_def(value).inst()
                && needed.insert(by)
            {
                work.push(by);
            }
        });
    }
    let mut wanted = vec![false; numbering.numbers.len()];
    for (&value, &number) in &numbering.numbers {
        wanted[number] = func.dfg.value_def(value).inst().is_none_or(|inst| needed.contains(&inst));
    }
    (wanted, needed)
}

/// Whether the code generator takes the instruction for a part of what uses its result.
fn is_transparent(opcode: Opcode) -> bool {
    use Opcode as O;
    matches!(opcode, O::Bitcast | O::Ireduce | O::Uextend | O::Sextend | O::ScalarToVector | O::Splat)
}

/// Who uses a value.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Users {
    #[default]
    None,
    One(Inst),
    Several,
}

/// Accesses by the last instruction at which they can happen: a load may be fused into the one that uses it, if nothing else does and
/// nothing in between has an effect. What is used between the two only, is not alive any more then.
fn by_latest_point(func: &Function, accesses: &FxHashMap<Inst, Access>) -> FxHashMap<Inst, Vec<Inst>> {
    // By value: the only user, or that there are several.
    let mut users: SecondaryMap<Value, Users> = SecondaryMap::with_capacity(func.dfg.num_values());
    for block in func.layout.blocks() {
        for inst in func.layout.block_insts(block) {
            for value in func.dfg.inst_values(inst) {
                users[value] = if users[value] == Users::None { Users::One(inst) } else { Users::Several };
            }
        }
    }
    let opcode = |inst: Inst| func.dfg.insts[inst].opcode();
    let mut points: FxHashMap<Inst, Vec<Inst>> = FxHashMap::default();
    for &access in accesses.keys() {
        let mut at = access;
        while opcode(access).can_load()
            && let Some(value) = func.dfg.inst_results(at).first()
            && let Users::One(user) = users[*value]
            && (at == access || is_transparent(opcode(at)) || opcode(user).can_store())
        {
            let mut next = func.layout.next_inst(at);
            while let Some(inst) = next.filter(|&inst| inst != user && !has_effect(func, inst)) {
                next = func.layout.next_inst(inst);
            }
            if next != Some(user) {
                break;
            }
            at = user;
        }
        points.entry(at).or_default().push(access);
    }
    points
}

/// Finds what has to be kept alive behind which access.
fn find(func: &Function, accesses: &FxHashMap<Inst, Access>) -> Vec<(Inst, Vec<Value>)> {
    let insts = || func.layout.blocks().flat_map(|block| func.layout.block_insts(block));
    let roots = insts().filter_map(|inst| accesses.get(&inst)).flat_map(|access| access.needs.iter().copied());
    let mut points = by_latest_point(func, accesses);
    let numbering = Numbering::new(func, roots);
    let (wanted, needed) = wanted(func, &numbering);
    let count = numbering.numbers.len();
    let analysis = Analysis { numbering, wanted };
    let number = |value: Value| analysis.numbering.numbers.get(&value).copied();

    let blocks: Vec<Block> = func.layout.blocks().collect();
    let index: FxHashMap<Block, usize> = blocks.iter().enumerate().map(|(index, &block)| (block, index)).collect();
    let mut steps: Vec<Vec<Step>> = Vec::with_capacity(blocks.len());
    let mut successors: Vec<Vec<usize>> = Vec::with_capacity(blocks.len());
    for &block in &blocks {
        let mut list = Vec::new();
        // What nobody needs may follow from others all the same.
        for inst in func.layout.block_insts(block) {
            let defines: Vec<usize> = func.dfg.inst_results(inst).iter().filter_map(|&value| number(value)).collect();
            let uses: Vec<usize> = match needed.contains(&inst) {
                true => func.dfg.inst_values(inst).filter_map(number).collect(),
                false => Vec::new(),
            };
            let mut here = points.remove(&inst).unwrap_or_default();
            here.sort_unstable();
            if !defines.is_empty() || !uses.is_empty() || !here.is_empty() {
                list.push(Step { defines, uses, accesses: here });
            }
        }
        steps.push(list);
        let end = func.layout.last_inst(block).map_or(&[][..], |inst| {
            func.dfg.insts[inst].branch_destination(&func.dfg.jump_tables, &func.dfg.exception_tables)
        });
        successors.push(end.iter().filter_map(|call| index.get(&call.block(&func.dfg.value_lists)).copied()).collect());
    }

    let mut live_in = vec![Set::new(count); blocks.len()];
    let mut kept: Vec<(Inst, Vec<Value>)> = Vec::new();
    loop {
        kept.clear();
        let mut changed = false;
        for at in (0..blocks.len()).rev() {
            let mut live = Set::new(count);
            for &next in &successors[at] {
                live.union(&live_in[next]);
            }
            for step in steps[at].iter().rev() {
                step.uses.iter().for_each(|&used| live.insert(used));
                for access in &step.accesses {
                    let mut lost = Vec::new();
                    for &value in &accesses[access].needs {
                        analysis.require(value, &mut live, &mut lost, DEPTH);
                    }
                    if !lost.is_empty() {
                        kept.push((*access, lost));
                    }
                }
                step.defines.iter().for_each(|&defined| live.remove(defined));
            }
            for number in func.dfg.block_params(blocks[at]).iter().filter_map(|&value| number(value)) {
                live.remove(number);
            }
            changed |= live_in[at].union(&live);
        }
        if !changed {
            return kept;
        }
    }
}

/// The instruction before which the block is split, so that `values` live up to there.
///
/// Not directly behind the access, so that it can still be fused into its user. But where both halves of a vector are kept, what
/// is computed from the access usually replaces them, and could not have their registers: in a loop that costs moves.
fn split_point(func: &Function, access: Inst, values: &[Value]) -> Option<Inst> {
    let is_vector = |value: Value| func.dfg.value_type(value).is_vector();
    let replaces_vectors = values.iter().filter(|&&value| is_vector(value)).count() > 1
        && func.dfg.inst_results(access).first().copied().is_some_and(is_vector);
    let mut before = func.layout.next_inst(access)?;
    while !replaces_vectors && !has_effect(func, before) {
        before = func.layout.next_inst(before)?;
    }
    Some(before)
}

/// Keeps alive what sites need.
pub(super) fn keep_alive(func: &mut Function, accesses: &FxHashMap<Inst, Access>) {
    for (inst, values) in find(func, accesses) {
        let Some(before) = split_point(func, inst, &values) else { continue };
        let Some(old) = func.layout.inst_block(inst) else { continue };
        let new = func.dfg.make_block();
        let mut arguments = Vec::with_capacity(values.len());
        for value in values {
            let ty = func.dfg.value_type(value);
            func.dfg.append_block_param(new, ty);
            arguments.push(BlockArg::Value(value));
        }
        let cold = func.layout.is_cold(old);
        func.layout.split_block(new, before);
        if cold {
            func.layout.set_cold(new);
        }
        FuncCursor::new(func).at_bottom(old).ins().jump(new, &arguments);
    }
}
