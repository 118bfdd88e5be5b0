//! Precise state without stores: where the code generator has put guest registers at each fault site.
//!
//! The emitter writes, before each instruction that can fault, one *carrier* per part of the block that is out of date
//! there: a store of the value to a made-up address in an alias region of its own. The optimiser treats it as any
//! other store. Then the carriers are taken out, and the values they name get a value label each; with those the code
//! generator says in which register or stack slot each value is at any point of the code. What it has merely folded
//! away follows from other values ([`recipe`]); what it would have lost is kept alive ([`keep`]).
//!
//! Labels are documented as best effort. So nothing is taken on trust: behind every compilation each access is
//! checked to have all its values, and where one is missing its carrier becomes a real store and the code is generated
//! again. Code in cold blocks has no labels; accesses there store.

mod keep;
mod recipe;

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::dominator_tree::DominatorTree;
use cranelift_codegen::flowgraph::ControlFlowGraph;
use cranelift_codegen::ir::{
    AliasRegion, Function, Inst, InstructionData, MemFlags, MemFlagsData, Opcode, RelSourceLoc, TrapCode, Value,
    ValueLabel, ValueLabelAssignments, ValueLabelStart,
};
use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::{CodegenError, CodegenResult, CompiledCode, LabelValueLoc};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::Site;
use crate::abi::VCPU_OFFSET;
use crate::emit::{Carrier, SiteRecord, TRAP_CODES};
use crate::statemap::{Entry, Location, StateMap};
use crate::translate::nearest_site;
use recipe::{DEPTH, Recipe, recipe};

/// Offset from the view base at which carriers store, plus eight for each.
pub(crate) const CARRIER_OFFSET: i32 = 0x4000_0000;
/// Most carriers of a region.
pub(crate) const MOST_CARRIERS: usize = (i32::MAX as usize - CARRIER_OFFSET as usize) / 8;
/// Bytes from the frame pointer to the address that the code generator's stack offsets count from: the saved frame
/// pointer and the return address.
const FRAME_TO_CALLER: i64 = 16;

/// How often code is generated at most.
const MOST_ROUNDS: u32 = 6;

/// What emission says about sites.
pub(crate) struct Sites<'a> {
    pub records: &'a [SiteRecord],
    pub carriers: &'a [Carrier],
    pub carrier_region: AliasRegion,
    pub state_region: AliasRegion,
}

/// An instruction that can fault.
#[derive(Default)]
struct Access {
    /// The values its site's carriers name.
    needs: Vec<Value>,
}

/// A carrier as the optimiser has left it.
struct Found {
    inst: Inst,
    /// The instruction it stood before.
    next: Inst,
    value: Value,
    /// It is a real store now.
    stored: bool,
}

/// Whether an instruction stays where it is.
fn has_effect(func: &Function, inst: Inst) -> bool {
    let data = &func.dfg.insts[inst];
    let opcode = data.opcode();
    opcode.is_terminator()
        || opcode.is_branch()
        || opcode.is_call()
        || opcode.can_load()
        || opcode.can_store()
        || opcode.can_trap()
        || opcode.other_side_effects()
}

/// The site that an instruction with this trap code and source location belongs to.
fn site_of(code: TrapCode, location: u32, count: usize) -> Option<usize> {
    let code = usize::from(code.as_raw().get());
    if !(1..=TRAP_CODES).contains(&code) {
        return None;
    }
    nearest_site(code - 1, location as usize, count)
}

fn trap_code(func: &Function, inst: Inst) -> Option<TrapCode> {
    match func.dfg.insts[inst] {
        InstructionData::CondTrap { code, .. } => Some(code),
        ref data => data.memflags_trap_code(&func.dfg),
    }
}

struct Locator<'a> {
    sites: &'a Sites<'a>,
    /// For stores to the block.
    state_flags: MemFlags,
    func: &'a mut Function,
    /// By carrier number; `None` for those in code that cannot be reached.
    found: Vec<Option<Found>>,
}

impl Locator<'_> {
    /// Takes the carriers out.
    fn take_carriers(&mut self) {
        let func = &mut *self.func;
        let blocks: Vec<_> = func.layout.blocks().collect();
        for block in blocks {
            let mut next = None;
            let insts: Vec<Inst> = func.layout.block_insts(block).collect();
            for inst in insts.into_iter().rev() {
                let data = &func.dfg.insts[inst];
                let carrier = match *data {
                    InstructionData::Store { opcode: Opcode::Store, args, offset, .. }
                        if data.alias_region(&func.dfg) == Some(self.sites.carrier_region) =>
                    {
                        usize::try_from((i32::from(offset) - CARRIER_OFFSET) / 8).ok().map(|number| (number, args[0]))
                    }
                    _ => None,
                };
                match (carrier, next) {
                    (Some((number, value)), Some(next)) => {
                        func.layout.remove_inst(inst);
                        if let Some(found) = self.found.get_mut(number) {
                            *found = Some(Found { inst, next, value, stored: false });
                        }
                    }
                    _ => next = Some(inst),
                }
            }
        }
    }

    /// The accesses, with what their sites need. Those in cold blocks get stores.
    fn accesses(&mut self) -> FxHashMap<Inst, Access> {
        let mut accesses: FxHashMap<Inst, Access> = FxHashMap::default();
        let mut cold = FxHashSet::default();
        for block in self.func.layout.blocks() {
            for inst in self.func.layout.block_insts(block) {
                let Some(code) = trap_code(self.func, inst) else { continue };
                let location = self.func.srcloc(inst).bits();
                let Some(site) = site_of(code, location, self.sites.records.len()) else { continue };
                if self.func.layout.is_cold(block) {
                    cold.insert(site);
                }
                let carriers = self.sites.records[site].carriers.clone();
                let needs = carriers
                    .filter_map(|number| self.found[number as usize].as_ref())
                    .map(|found| found.value)
                    .collect();
                accesses.insert(inst, Access { needs });
            }
        }
        for site in cold {
            for number in self.sites.records[site].carriers.clone() {
                self.store(number as usize);
            }
        }
        accesses
    }

    /// Makes a carrier a real store.
    fn store(&mut self, number: usize) {
        let Some(found) = self.found[number].as_mut().filter(|found| !found.stored) else { return };
        found.stored = true;
        let func = &mut *self.func;
        func.layout.insert_inst(found.inst, found.next);
        let carrier = self.sites.carriers[number];
        if let InstructionData::Store { offset, flags: old, .. } = &mut func.dfg.insts[found.inst] {
            *offset = (VCPU_OFFSET + i32::from(carrier.offset)).into();
            *old = self.state_flags;
        }
    }

    /// Labels all values that sites need, and those that they follow from.
    fn label(&mut self) {
        let mut seen = FxHashSet::default();
        let mut work: Vec<(Value, u32)> = self.found.iter().flatten().map(|found| (found.value, DEPTH)).collect();
        while let Some((value, depth)) = work.pop() {
            if !seen.insert(value) {
                continue;
            }
            if depth > 0
                && let Some(Recipe::Computed(_, _, operands)) = recipe(self.func, value)
            {
                work.extend(operands.into_iter().map(|operand| (operand, depth - 1)));
            }
        }
        let label = |value: Value| {
            let start = ValueLabelStart { from: RelSourceLoc::default(), label: ValueLabel::from_u32(value.as_u32()) };
            (value, ValueLabelAssignments::Starts(vec![start]))
        };
        self.func.dfg.values_labels = Some(seen.into_iter().map(label).collect());
    }
}

/// Collects the locations of one compilation.
struct Mapper<'a> {
    func: &'a Function,
    compiled: &'a CompiledCode,
    map: StateMap,
    numbers: FxHashMap<Location, u32>,
}

impl Mapper<'_> {
    fn number(&mut self, location: Location) -> u32 {
        let next = self.map.locations.len() as u32;
        *self.numbers.entry(location).or_insert_with(|| {
            self.map.locations.push(location);
            next
        })
    }

    /// Where a label says `value` is at all of `points`.
    fn labelled(&self, value: Value, points: &[u32]) -> Option<Location> {
        let ranges = self.compiled.value_labels_ranges.get(&ValueLabel::from_u32(value.as_u32()))?;
        let at = |&point: &u32| {
            let range = ranges.iter().find(|range| range.start <= point && point < range.end)?;
            match range.loc {
                LabelValueLoc::Reg(register) => {
                    let register = register.to_real_reg()?;
                    match register.class() {
                        regalloc2::RegClass::Int => Some(Location::General(register.hw_enc())),
                        regalloc2::RegClass::Float => Some(Location::Vector(register.hw_enc())),
                        regalloc2::RegClass::Vector => None,
                    }
                }
                LabelValueLoc::CFAOffset(offset) => i32::try_from(offset + FRAME_TO_CALLER).ok().map(Location::Frame),
            }
        };
        let (first, rest) = points.split_first()?;
        let location = at(first)?;
        rest.iter().all(|point| at(point) == Some(location)).then_some(location)
    }

    fn locate(&mut self, value: Value, points: &[u32], depth: u32) -> Option<u32> {
        let found = recipe(self.func, value);
        if let Some(Recipe::Constant(constant)) = found {
            return Some(self.number(Location::Constant(constant)));
        }
        if let Some(location) = self.labelled(value, points) {
            return Some(self.number(location));
        }
        match found {
            Some(Recipe::Computed(operation, bits, operands)) if depth > 0 => {
                let mut numbers = [0; 3];
                for (index, operand) in operands.iter().enumerate() {
                    numbers[index] = self.locate(*operand, points, depth - 1)?;
                }
                for index in operands.len()..3 {
                    numbers[index] = numbers[0];
                }
                Some(self.number(Location::Computed(operation, bits, numbers)))
            }
            _ => None,
        }
    }
}

/// Where the state is looked up for traps that are out of line: at the branches that lead there.
fn branches_to(code: &[u8], traps: impl Iterator<Item = u32>) -> FxHashMap<u32, Vec<u32>> {
    const UD2: [u8; 2] = [0x0F, 0x0B];
    let mut found: FxHashMap<u32, Vec<u32>> = traps
        .filter(|&trap| code.get(trap as usize..trap as usize + 2) == Some(&UD2))
        .map(|trap| (trap, Vec::new()))
        .collect();
    // Conditional jumps are found by their bytes. That other bytes look like a jump to just this place would cost precision in
    // no case: all hits must agree.
    for at in 0..code.len().saturating_sub(5) {
        if code[at] != 0x0F || code[at + 1] & 0xF0 != 0x80 {
            continue;
        }
        let distance = i32::from_le_bytes([code[at + 2], code[at + 3], code[at + 4], code[at + 5]]);
        let target = (at as i64 + 6 + i64::from(distance)) as u64;
        if let Some(hits) = u32::try_from(target).ok().and_then(|target| found.get_mut(&target)) {
            hits.push(at as u32);
        }
    }
    found
}

/// A compiled function with its sites.
pub(crate) struct Located {
    pub compiled: CompiledCode,
    pub sites: Vec<Site>,
    pub map: StateMap,
    /// Carriers that had to become stores.
    pub stores: u32,
    /// How often code was generated.
    pub rounds: u32,
}

/// Generates code for an optimised function and finds the state of each site.
pub(crate) fn compile(
    func: &mut Function,
    isa: &dyn TargetIsa,
    allocator: &mut regalloc2::Ctx,
    sites: &Sites<'_>,
) -> CodegenResult<Located> {
    let found = sites.carriers.iter().map(|_| None).collect();
    let state_flags = MemFlagsData::trusted().with_alias_region(Some(sites.state_region));
    let state_flags = func
        .dfg
        .mem_flags
        .insert(state_flags)
        .map_err(|_| CodegenError::Unsupported("too many kinds of memory access".to_owned()))?;
    let mut locator = Locator { sites, state_flags, func, found };
    locator.take_carriers();
    let accesses = locator.accesses();
    keep::keep_alive(locator.func, &accesses);
    locator.label();
    let mut rounds = 0;
    let mut stores = locator.found.iter().flatten().filter(|found| found.stored).count() as u32;
    loop {
        rounds += 1;
        let flow = ControlFlowGraph::with_function(locator.func);
        let dominators = DominatorTree::with_function(locator.func, &flow);
        let stencil =
            isa.compile_function(locator.func, &dominators, allocator, false, &mut ControlPlane::default())?;
        let compiled = stencil.apply_params(&locator.func.params);
        let (mapped, map, missing) = map_sites(&locator, &compiled);
        if missing.is_empty() {
            return Ok(Located { compiled, sites: mapped, map, stores, rounds });
        }
        stores += missing.len() as u32;
        if rounds == MOST_ROUNDS {
            return Err(CodegenError::Unsupported("guest state that cannot be located".to_owned()));
        }
        for number in missing {
            locator.store(number);
        }
    }
}

/// The sites of compiled code, their map, and the carriers whose values are nowhere.
fn map_sites(locator: &Locator<'_>, compiled: &CompiledCode) -> (Vec<Site>, StateMap, FxHashSet<usize>) {
    let records = locator.sites.records;
    let locations = compiled.buffer.get_srclocs_sorted();
    let traps = compiled.buffer.traps();
    let out_of_line = branches_to(compiled.code_buffer(), traps.iter().map(|trap| trap.offset));
    let mut mapper = Mapper { func: locator.func, compiled, map: StateMap::default(), numbers: FxHashMap::default() };
    let (mut found, mut missing) = (Vec::new(), FxHashSet::default());
    for trap in traps {
        let Some(at) = locations.partition_point(|location| location.start <= trap.offset).checked_sub(1) else {
            continue;
        };
        let Some(index) = site_of(trap.code, locations[at].loc.bits(), records.len()) else { continue };
        let record = &records[index];
        let here = [trap.offset];
        let points = out_of_line.get(&trap.offset).map_or(&here[..], |branches| branches);
        let first = mapper.map.entries.len();
        for number in record.carriers.clone() {
            let Some(carried) = &locator.found[number as usize] else {
                missing.insert(number as usize);
                continue;
            };
            if carried.stored {
                continue;
            }
            match mapper.locate(carried.value, points, DEPTH) {
                Some(location) => {
                    let Carrier { offset, bits } = locator.sites.carriers[number as usize];
                    mapper.map.entries.push(Entry { offset, bits, location });
                }
                None => {
                    missing.insert(number as usize);
                }
            }
        }
        found.push(Site {
            host_offset: trap.offset,
            rip: record.rip,
            flags: record.flags,
            retired: record.retired,
            first_entry: first as u32,
            entry_count: (mapper.map.entries.len() - first) as u32,
        });
    }
    found.sort_by_key(|site| site.host_offset);
    (found, mapper.map, missing)
}
