//! Code generation: walks a region's blocks and builds one Cranelift function.
//!
//! Lifters (`crate::lift`) see an [`Emitter`] as a small machine: read and write operands, registers, flags, memory.
//! What they need not see is kept here: which registers are dirty, where the flags are, which addresses have been
//! checked, how many instructions have run. That knowledge is the [`Local`] state; a block with one predecessor
//! continues with its predecessor's, any other starts from what the analyses promise.

mod crossing;
mod exit;
mod flags;
mod host;
mod memory;
mod narrow;
mod register;
mod vector;
mod x87;

use std::mem::offset_of;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    self, AbiParam, AliasRegion, AliasRegionData, InstBuilder, MemFlagsData, Signature, SourceLoc, Type, Value, types,
};
use cranelift_codegen::isa::CallConv;
use cranelift_frontend::{FunctionBuilder, Variable};
use iced_x86::{Code, Instruction};
use lstar_arch::CpuState;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::SiteFlags;
use crate::abi::{Helper, VCPU_OFFSET, VcpuBlock};
use crate::config::PreciseState;
use crate::discover::{Lowering, Region, Successor, Terminator};
use crate::effects::{ALL_FLAGS, FLAG_COUNT, FlagSet, FlagWrite, RegSet};
use crate::host_op::{HostFeatures, HostSignature};
use crate::liveness::{BlockFacts, PASSED_REGISTERS, stores_at_entry};
use crate::locate::{CARRIER_OFFSET, MOST_CARRIERS};
use crate::recover::describe;

pub(crate) use flags::{Arithmetic, FlagState};
pub(crate) use host::{HostInstruction, INSTRUCTIONS};
pub(crate) use memory::Host;
pub(crate) use register::{Place, int_type};
pub(crate) use vector::{Halves, XmmPlan, is_vex, is_wide};

/// Where the vCPU block has [`CpuState::inside_block`].
const INSIDE_BLOCK: usize = offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, inside_block);

/// Trap codes that Cranelift leaves to its users: 1 to this.
pub(crate) const TRAP_CODES: usize = 250;

/// A lifter's refusal: the instruction (in this form) goes to the interpreter. Nothing with an effect has been emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotLifted;

/// A lifter's answer.
pub(crate) type Lifted = Result<(), NotLifted>;

/// Most targets of an indirect jump that are compared with one after the other even where a table would do.
const MOST_COMPARED: usize = 3;
/// Most targets that are compared with one after the other where a table would not do.
const MOST_CHAINED: usize = 12;

/// Some bits of addresses that tell them apart.
struct PerfectHash {
    shift: u32,
    bits: u32,
}

impl PerfectHash {
    /// The fewest bits that do for these blocks.
    fn of(blocks: &[(usize, u64)]) -> Option<Self> {
        const MOST_BITS: u32 = 10;
        let least = usize::BITS - (blocks.len() - 1).leading_zeros();
        (least..=MOST_BITS).flat_map(|bits| (0..12).map(move |shift| Self { shift, bits })).find(|hash| {
            let mut taken = vec![false; 1 << hash.bits];
            blocks.iter().all(|&(_, address)| {
                let slot = (address >> hash.shift) as usize & ((1 << hash.bits) - 1);
                !std::mem::replace(&mut taken[slot], true)
            })
        })
    }
}

/// What a fault site is before its host offset is known.
#[derive(Clone, Debug)]
pub(crate) struct SiteRecord {
    pub rip: u64,
    pub flags: SiteFlags,
    pub retired: u32,
    /// Its carriers, by number.
    pub carriers: std::ops::Range<u32>,
}

/// A part of the block that is out of date at a site: see [`crate::locate`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carrier {
    /// Offset in the block.
    pub offset: u16,
    /// Width of the value in bits.
    pub bits: u8,
}

/// Alias regions that [`crate::locate`] must know.
#[derive(Clone, Copy)]
pub(crate) struct CarrierRegions {
    pub carriers: AliasRegion,
    pub state: AliasRegion,
}

/// Settings that shape the code.
#[derive(Clone, Copy)]
pub(crate) struct EmitOptions {
    pub budget_checks: bool,
    /// What the host can do in one instruction.
    pub host: HostFeatures,
    pub scalar_pairs: bool,
    pub precise: PreciseState,
    pub compare_clears_c1: bool,
    /// Number of the first block's probe, where blocks have probes.
    pub probes: Option<u32>,
}

/// What emission leaves besides the function.
#[derive(Default)]
pub(crate) struct Emitted {
    /// Fault sites; an access's source location is its site's index plus one, its trap code 1 + index modulo 250.
    pub sites: Vec<SiteRecord>,
    /// Guest addresses that link slots lead to.
    pub links: Vec<u64>,
    /// Carriers, by number.
    pub carriers: Vec<Carrier>,
    /// There are carriers, in these alias regions.
    pub carrier_regions: Option<CarrierRegions>,
    /// Addresses whose lifters declined: the function is unusable unless this is empty.
    pub declined: Vec<u64>,
    /// Instructions lowered to a call of the interpreter.
    pub fallbacks: FxHashMap<Code, u32>,
    /// Number of calls of host operations.
    pub host_operations: u32,
    /// Helpers that are called, a bit for each.
    pub helpers: u64,
    /// Instructions that stand in the code as calls, by the number of the function called: see [`host`].
    pub instructions: Vec<HostInstruction>,
}

/// Compile-time knowledge at a point of the code.
#[derive(Clone)]
struct Local {
    /// Registers whose SSA value differs from the block.
    dirty: RegSet,
    flags: FlagState,
    /// Where faults go on, if nothing but registers has changed since.
    checkpoint: Option<SiteRecord>,
    /// Values known to be valid access bases.
    checked: SmallVec<[Value; 8]>,
    /// Values known to be multiples of the second number if the first is added.
    aligned: SmallVec<[(Value, i64, i64); 4]>,
    /// YMM registers whose upper half is known to be zero, by number.
    zero_high: u16,
    /// Sums of two registers in addresses.
    sums: SmallVec<[((Value, Value), Value); 4]>,
    /// Scaled index registers.
    scaled: SmallVec<[((Value, u32), Value); 4]>,
    /// Where 256 bits can be stored.
    ready: SmallVec<[crossing::Ready; 2]>,
    /// Bases of FS and GS.
    segments: [Option<Value>; 2],
    /// The x87 state.
    x87: x87::X87,
    /// The block says that MXCSR may be newer than the one there.
    mxcsr_newer: bool,
    /// Instructions not yet subtracted from the budget variable.
    pending: u32,
    /// Instructions since the budget was last stored in the block.
    since_store: Option<u32>,
}

/// Variables of the guest state.
struct Variables {
    gpr: [Variable; 16],
    /// Vector registers: one vector, or the low and the high double.
    xmm: [[Variable; 2]; 16],
    /// Upper halves of the YMM registers.
    high: [Variable; 16],
    flags: [Variable; FLAG_COUNT],
    budget: Variable,
    view: Variable,
}

/// The instruction being emitted.
#[derive(Clone, Copy, Default)]
struct Current {
    rip: u64,
    live_after: RegSet,
    flags_after: FlagSet,
    trap_code: u8,
}

/// Alias regions: kinds of memory that never overlap.
#[derive(Clone, Copy)]
struct AliasRegions {
    /// Registers, flags and bookkeeping in the block.
    state: AliasRegion,
    /// Segment bases.
    segments: AliasRegion,
    /// Guest memory.
    guest: AliasRegion,
    /// What carriers seem to write.
    carriers: AliasRegion,
}

/// Builds a region's function.
pub(crate) struct Emitter<'a> {
    /// Cranelift's builder; lifters use its instruction builder freely for pure computations.
    pub b: FunctionBuilder<'a>,
    region: &'a Region,
    facts: &'a [BlockFacts],
    /// By block: see [`Region::check_costs`].
    check_costs: Vec<u32>,
    options: EmitOptions,
    plan: XmmPlan,
    vars: Variables,
    alias: AliasRegions,
    region_signature: ir::SigRef,
    helper_signatures: [Option<ir::SigRef>; 5],
    host_signatures: [Option<ir::SigRef>; HostSignature::COUNT],
    /// Functions that stand for host instructions, by their number.
    instructions: Vec<ir::FuncRef>,
    blocks: Vec<ir::Block>,
    /// States at the ends of emitted blocks, for successors with one predecessor.
    inherited: FxHashMap<usize, Local>,
    index: usize,
    local: Local,
    current: Current,
    /// Stores to the block become carriers.
    carrying: bool,
    out: Emitted,
}

/// The signature of a region and of a stub.
pub(crate) fn region_signature() -> Signature {
    let mut signature = Signature::new(CallConv::Tail);
    for list in [&mut signature.params, &mut signature.returns] {
        list.extend([AbiParam::new(types::I64); 3]);
    }
    signature
}

impl<'a> Emitter<'a> {
    /// Prepares a function for `region`.
    pub fn new(mut b: FunctionBuilder<'a>, region: &'a Region, facts: &'a [BlockFacts], options: EmitOptions) -> Self {
        let plan = XmmPlan::new(region, options.scalar_pairs);
        let vars = Variables {
            gpr: std::array::from_fn(|_| b.declare_var(types::I64)),
            xmm: std::array::from_fn(|n| {
                let ty = if plan.is_pair(n) { types::F64 } else { types::I8X16 };
                [b.declare_var(ty), b.declare_var(ty)]
            }),
            high: std::array::from_fn(|_| b.declare_var(types::I8X16)),
            flags: std::array::from_fn(|_| b.declare_var(types::I8)),
            budget: b.declare_var(types::I64),
            view: b.declare_var(types::I64),
        };
        let mut alias = |user_id, description: &'static str| {
            b.func.dfg.alias_regions.insert(AliasRegionData { user_id, description: description.into() })
        };
        let alias = AliasRegions {
            state: alias(1, "state"),
            segments: alias(2, "segment bases"),
            guest: alias(3, "guest memory"),
            carriers: alias(4, "carriers"),
        };
        let mut out = Emitted::default();
        if options.precise == PreciseState::Maps {
            out.carrier_regions = Some(CarrierRegions { carriers: alias.carriers, state: alias.state });
        }
        let region_signature = b.import_signature(region_signature());
        let blocks = region.blocks.iter().map(|_| b.create_block()).collect();
        Self {
            b,
            region,
            facts,
            check_costs: region.check_costs(),
            options,
            plan,
            vars,
            alias,
            region_signature,
            helper_signatures: [None; 5],
            host_signatures: [None; HostSignature::COUNT],
            instructions: Vec::new(),
            blocks,
            inherited: FxHashMap::default(),
            index: 0,
            local: Local {
                dirty: 0,
                flags: FlagState::in_memory(),
                checkpoint: None,
                checked: SmallVec::new(),
                aligned: SmallVec::new(),
                zero_high: 0,
                sums: SmallVec::new(),
                scaled: SmallVec::new(),
                ready: SmallVec::new(),
                segments: [None; 2],
                x87: x87::X87::UNKNOWN,
                mxcsr_newer: false,
                pending: 0,
                since_store: Some(0),
            },
            current: Current::default(),
            carrying: false,
            out,
        }
    }

    /// Emits everything.
    pub fn run(mut self, frontend: cranelift_codegen::isa::TargetFrontendConfig) -> Emitted {
        self.entry();
        for index in 0..self.region.blocks.len() {
            self.block(index);
        }
        self.b.seal_all_blocks();
        self.b.finalize(frontend);
        self.out
    }

    /// The function's entry: loads what is live, checks the budget.
    fn entry(&mut self) {
        let block = self.b.create_block();
        self.b.append_block_params_for_function_params(block);
        self.b.switch_to_block(block);
        self.b.seal_block(block);
        self.current.rip = self.region.entry;
        self.read_view();
        let passed = [1, 2].map(|index| self.b.block_params(block)[index]);
        self.receive(passed);
        self.check_budget(self.region.entry, self.check_costs[0]);
        if self.region.blocks.iter().any(|block| matches!(block.end, Terminator::Call(_))) {
            self.check_host_stack(self.region.entry);
        }
        self.reload(self.facts[0].live_in & !PASSED_REGISTERS);
        self.prepare_edges(&[Successor::Block(0)]);
        self.goto_block(0);
    }

    fn block(&mut self, index: usize) {
        let (region, facts) = (self.region, self.facts);
        let block = &region.blocks[index];
        self.index = index;
        self.b.switch_to_block(self.blocks[index]);
        self.local = match self.inherited.remove(&index) {
            Some(local) => local,
            None => self.fresh_local(index),
        };
        if let Some(first) = self.options.probes {
            self.set_probe(first + index as u32);
        }
        // Only the terminators that carry no instruction count none.
        for (at, insn) in block.insns.iter().enumerate() {
            self.current = Current {
                rip: insn.raw.ip(),
                live_after: facts[index].live_after[at],
                flags_after: facts[index].flags_after[at],
                trap_code: 0,
            };
            match insn.lowering {
                Lowering::Lift(lift) => {
                    if insn.effects.calculates && !self.local.mxcsr_newer {
                        self.note_newer_mxcsr();
                    }
                    if insn.effects.faults {
                        self.synchronize();
                    } else {
                        self.b.set_srcloc(SourceLoc::new(self.out.sites.len() as u32));
                    }
                    if insn.effects.flag_write != FlagWrite::Sure(ALL_FLAGS) || insn.effects.flag_reads != 0 {
                        self.detach_flags(insn.effects.writes);
                    }
                    match lift(self, &insn.raw) {
                        Ok(()) => self.finish_vex(&insn.raw, &insn.effects),
                        Err(NotLifted) => self.out.declined.push(insn.raw.ip()),
                    }
                    if let Some(source) = describe(insn) {
                        self.flags_recoverable_from(source, facts[index].flags_stored_after[at]);
                    }
                    if insn.effects.stores {
                        self.local.checkpoint = None;
                    }
                    self.retire();
                }
                Lowering::Check(helper, argument) => {
                    self.retire();
                    if helper == Helper::Interpret {
                        *self.out.fallbacks.entry(insn.raw.code()).or_default() += 1;
                    }
                    self.check_helper(helper, argument);
                    let needed = region.instructions_until_check(index, at + 1, &self.check_costs);
                    self.check_budget(insn.raw.next_ip(), needed);
                }
                Lowering::Hook(helper) => self.check_helper(helper, insn.raw.ip()),
                Lowering::Terminate | Lowering::Enter => {
                    self.detach_flags(insn.effects.writes);
                    if insn.effects.faults && !matches!(block.end, Terminator::Helper(..)) {
                        self.synchronize();
                    } else {
                        self.b.set_srcloc(SourceLoc::new(self.out.sites.len() as u32));
                    }
                    self.retire();
                }
            }
        }
        self.terminate(block.insns.last().map(|insn| &insn.raw), &block.end);
    }

    /// Says in the block that the MXCSR there may be outdated, so that system calls of code that does not calculate need not ask
    /// the processor for it.
    fn note_newer_mxcsr(&mut self) {
        self.local.mxcsr_newer = true;
        let view = self.view();
        let yes = self.iconst(types::I64, 1);
        let offset = VCPU_OFFSET + std::mem::offset_of!(VcpuBlock, mxcsr_newer) as i32;
        self.b.ins().store(MemFlagsData::trusted(), yes, view, offset);
    }

    /// Sets a byte behind the vCPU block. It belongs to no alias region of the guest's state.
    fn set_probe(&mut self, number: u32) {
        let view = self.view();
        let one = self.iconst(types::I8, 1);
        let offset = VCPU_OFFSET + size_of::<VcpuBlock>() as i32 + number as i32;
        self.b.ins().store(MemFlagsData::trusted(), one, view, offset);
    }

    fn fresh_local(&mut self, index: usize) -> Local {
        let facts = &self.facts[index];
        let mut flags = match facts.flag_source {
            Some(source) if facts.flags_in.any() != 0 => FlagState::in_registers(source),
            _ if facts.flags_in.memory != 0 => {
                facts.repeated_flag_source.map_or_else(FlagState::in_memory, FlagState::in_memory_or)
            }
            _ => FlagState::unknown(),
        };
        for bit in 0..FLAG_COUNT {
            if facts.flags_in.read >> bit & 1 != 0 {
                flags.bits[bit] = Some(self.b.use_var(self.vars.flags[bit]));
            }
        }
        Local {
            dirty: facts.dirty_in,
            flags,
            checkpoint: None,
            checked: SmallVec::new(),
            aligned: SmallVec::new(),
            zero_high: 0,
            sums: SmallVec::new(),
            scaled: SmallVec::new(),
            ready: SmallVec::new(),
            segments: [None; 2],
            x87: x87::X87::UNKNOWN,
            mxcsr_newer: false,
            pending: 0,
            since_store: None,
        }
    }

    fn retire(&mut self) {
        self.local.pending += 1;
        if let Some(count) = &mut self.local.since_store {
            *count += 1;
        }
    }

    fn terminate(&mut self, insn: Option<&Instruction>, end: &Terminator) {
        match (end, insn) {
            (Terminator::Fall(next) | Terminator::Jump(next), _) => {
                if let Terminator::Fall(Successor::Outside(rip)) = end
                    && self.region.is_inside_block(*rip)
                {
                    let rip = self.iconst(types::I64, *rip as i64);
                    self.store_state(rip, INSIDE_BLOCK);
                }
                self.goto(*next);
            }
            (Terminator::Branch(taken, next), Some(insn)) => {
                let condition = crate::lift::control_flow::condition(self, insn);
                self.branch(condition, *taken, *next);
            }
            (Terminator::IndirectJump(targets), Some(insn)) => self.indirect_jump(insn, targets),
            (Terminator::Call(next), Some(insn)) => {
                self.host_call(insn);
                if let Successor::Block(index) = *next
                    && index > self.index
                {
                    self.check_budget(self.region.blocks[index].start, self.check_costs[index]);
                }
                self.goto(*next);
            }
            (Terminator::Enter(next), Some(insn)) => self.enter_leaf(insn, *next),
            (Terminator::Leave(next), Some(_)) => self.leave_leaf(*next),
            (Terminator::CallOut, Some(insn)) => self.call_out(insn),
            (Terminator::Return, Some(insn)) => self.guest_return(insn),
            (Terminator::Helper(helper, arguments), _) => self.jump_helper(*helper, arguments),
            (
                Terminator::Branch(..)
                | Terminator::IndirectJump(_)
                | Terminator::Call(_)
                | Terminator::Enter(_)
                | Terminator::Leave(_)
                | Terminator::CallOut
                | Terminator::Return,
                None,
            ) => self.jump_helper(Helper::InterpretJump, &[self.current.rip, 0]),
        }
    }

    /// Continues at `successor`.
    fn goto(&mut self, successor: Successor) {
        match successor {
            Successor::Block(index) => {
                self.prepare_edges(&[successor]);
                self.finish_edge(index);
            }
            Successor::Outside(rip) => self.leave_to(rip),
        }
    }

    /// Continues at the block among `targets` whose address `rip` is; behind it control is where it is none of them.
    fn goto_known(&mut self, rip: Value, targets: &[Successor]) {
        self.prepare_edges(targets);
        let region = self.region;
        let blocks: Vec<(usize, u64)> = targets
            .iter()
            .filter_map(|target| match *target {
                Successor::Block(index) => Some((index, region.blocks[index].start)),
                Successor::Outside(_) => None,
            })
            .collect();
        let hash = if blocks.len() > MOST_COMPARED { PerfectHash::of(&blocks) } else { None };
        let Some(PerfectHash { shift, bits }) = hash else {
            for (index, address) in blocks.into_iter().take(MOST_CHAINED) {
                let miss = self.b.create_block();
                self.goto_if_at(rip, index, address, miss);
                self.b.switch_to_block(miss);
                self.b.seal_block(miss);
            }
            return;
        };
        // A jump table, indexed by a few bits of the address that are different for all of them.
        let miss = self.b.create_block();
        let miss_call = self.b.func.dfg.block_call(miss, &[]);
        let mut hits = vec![miss_call; 1 << bits];
        let mut sides = Vec::with_capacity(blocks.len());
        for (index, address) in blocks {
            let side = self.b.create_block();
            hits[(address >> shift) as usize & ((1 << bits) - 1)] = self.b.func.dfg.block_call(side, &[]);
            sides.push((side, index, address));
        }
        let table = self.b.create_jump_table(ir::JumpTableData::new(miss_call, &hits));
        let shifted = self.b.ins().ushr_imm_u(rip, i64::from(shift));
        let narrow = self.b.ins().ireduce(types::I32, shifted);
        let slot = self.b.ins().band_imm_u(narrow, (1 << bits) - 1);
        self.b.ins().br_table(slot, table);
        for (side, index, address) in sides {
            self.b.switch_to_block(side);
            self.b.seal_block(side);
            self.goto_if_at(rip, index, address, miss);
        }
        self.b.switch_to_block(miss);
        self.b.seal_block(miss);
    }

    /// Continues at block `index` if `rip` is its address, else at `miss`.
    fn goto_if_at(&mut self, rip: Value, index: usize, address: u64, miss: ir::Block) {
        let local = self.local.clone();
        let address = self.iconst(types::I64, address as i64);
        let equal = self.b.ins().icmp(IntCC::Equal, rip, address);
        let hit = self.b.create_block();
        self.b.ins().brif(equal, hit, &[], miss, &[]);
        self.b.switch_to_block(hit);
        self.b.seal_block(hit);
        self.finish_edge(index);
        self.local = local;
    }

    /// Jumps to block `index` from a point that [`Self::prepare_edges`] has prepared.
    fn finish_edge(&mut self, index: usize) {
        if index <= self.index {
            self.check_budget(self.region.blocks[index].start, self.check_costs[index]);
        }
        self.goto_block(index);
    }

    fn goto_block(&mut self, index: usize) {
        if self.facts[index].predecessors == 1 {
            self.inherited.insert(index, self.local.clone());
        }
        let block = self.blocks[index];
        self.b.ins().jump(block, &[]);
    }

    /// Brings flags and budget into the form in which `successors` expect them.
    fn prepare_edges(&mut self, successors: &[Successor]) {
        self.settle_budget();
        self.store_x87_last();
        let may_mark = self.may_mark_repetition(successors);
        for successor in successors {
            if let Successor::Block(index) = *successor
                && self.facts[index].predecessors > 1
            {
                if stores_at_entry(self.facts, self.index, index, self.options.precise) && self.local.dirty != 0 {
                    self.store_registers();
                    self.local.checkpoint = None;
                }
                let facts = &self.facts[index];
                let repeated = may_mark && self.repeats(index);
                self.hand_over_flags(facts.flags_in, facts.flag_source, repeated);
            }
        }
    }

    /// Whether the edge to block `index` closes a loop that recognises its repetition by a mark in the block's flags.
    fn repeats(&self, index: usize) -> bool {
        self.facts[index].repeated_flag_source.is_some() && index <= self.index
    }

    /// Whether a mark may replace the flags in the block: they are in registers, and no successor looks for them in the block.
    fn may_mark_repetition(&self, successors: &[Successor]) -> bool {
        let looks = |successor: &Successor| match *successor {
            Successor::Block(index) => {
                let facts = &self.facts[index];
                let in_block = facts.flags_in.memory != 0 && facts.flag_source.is_none();
                facts.predecessors > 1 && in_block && !self.repeats(index)
            }
            Successor::Outside(_) => false,
        };
        self.local.flags.are_recoverable() && !successors.iter().any(looks)
    }

    fn branch(&mut self, condition: Value, taken: Successor, next: Successor) {
        self.prepare_edges(&[taken, next]);
        // What its own check must ask for where an edge closes a loop.
        let needed = [taken, next].into_iter().filter_map(|successor| match successor {
            Successor::Block(index) if index <= self.index => Some(self.check_costs[index]),
            _ => None,
        });
        if let Some(needed) = needed.max().filter(|_| self.options.budget_checks) {
            // Before the branch, so that the branch itself goes round the loop.
            let addresses = [taken, next].map(|successor| match successor {
                Successor::Block(index) => self.region.blocks[index].start,
                Successor::Outside(rip) => rip,
            });
            self.check_budget_before(condition, addresses, needed);
        }
        let sides = [taken, next].map(|successor| match successor {
            Successor::Block(index) => {
                if self.facts[index].predecessors == 1 {
                    self.inherited.insert(index, self.local.clone());
                }
                (self.blocks[index], None)
            }
            Successor::Outside(_) => (self.b.create_block(), Some(successor)),
        });
        self.b.ins().brif(condition, sides[0].0, &[], sides[1].0, &[]);
        let local = self.local.clone();
        for (block, successor) in sides {
            if let Some(successor) = successor {
                self.b.switch_to_block(block);
                self.b.seal_block(block);
                self.local = local.clone();
                if let Successor::Outside(rip) = successor {
                    self.leave_to(rip);
                }
            }
        }
    }

    /// Before an instruction that can fault: opens its fault site, at a new checkpoint unless there is one.
    fn synchronize(&mut self) {
        let record = match &self.local.checkpoint {
            Some(record) => record.clone(),
            None if self.options.precise == PreciseState::Maps && self.out.carriers.len() < MOST_CARRIERS - 64 => {
                self.carry_state()
            }
            None => self.checkpoint(),
        };
        let index = self.out.sites.len();
        self.out.sites.push(record);
        self.current.trap_code = 1 + (index % TRAP_CODES) as u8;
        self.b.set_srcloc(SourceLoc::new(index as u32 + 1));
    }

    /// Opens a fault site with a checkpoint at the current instruction, whatever there is before it: for instructions that
    /// change memory and registers step by step.
    pub fn synchronize_here(&mut self) {
        // Also with maps, which would bring back the registers as they were before the first step.
        self.local.checkpoint = Some(self.checkpoint());
        self.synchronize();
    }

    /// Runs `body`, which emits code that is not always reached: what it learns about addresses is forgotten.
    pub fn conditionally<T>(&mut self, body: impl FnOnce(&mut Self) -> T) -> T {
        let (checked, aligned) = (self.local.checked.len(), self.local.aligned.len());
        let (sums, scaled, segments) = (self.local.sums.len(), self.local.scaled.len(), self.local.segments);
        let ready = self.local.ready.len();
        let result = body(self);
        self.local.checked.truncate(checked);
        self.local.aligned.truncate(aligned);
        self.local.sums.truncate(sums);
        self.local.scaled.truncate(scaled);
        self.local.ready.truncate(ready);
        self.local.segments = segments;
        result
    }

    /// Writes a general-purpose register to SSA form and to the block, where it is what the fault site finds.
    pub fn set_gpr64_stored(&mut self, number: usize, value: Value) {
        self.set_gpr64(number, value);
        self.store_gpr(number, value);
    }

    /// Stores what has changed, so that the interpreter can go on at the current instruction.
    fn checkpoint(&mut self) -> SiteRecord {
        self.store_registers();
        self.store_x87_last();
        self.carry_flags();
        if self.local.since_store.is_none() {
            let budget = self.b.use_var(self.vars.budget);
            self.store_state(budget, offset_of!(VcpuBlock, budget));
            self.local.since_store = Some(self.local.pending);
        }
        let record = SiteRecord {
            rip: self.current.rip,
            flags: self.local.flags.at_site(),
            retired: self.local.since_store.unwrap_or(0),
            carriers: 0..0,
        };
        self.local.checkpoint = Some(record.clone());
        record
    }

    /// Says where everything is that the block does not hold, so that the interpreter can go on at the current instruction.
    fn carry_state(&mut self) -> SiteRecord {
        let first = self.out.carriers.len() as u32;
        let (dirty, flags, x87) = (self.local.dirty, self.local.flags.clone(), self.local.x87);
        self.carrying = true;
        self.store_registers();
        self.store_x87_last();
        self.carry_flags();
        let retired = self.local.since_store.unwrap_or_else(|| {
            let budget = self.b.use_var(self.vars.budget);
            self.store_state(budget, offset_of!(VcpuBlock, budget));
            self.local.pending
        });
        self.carrying = false;
        let record = SiteRecord {
            rip: self.current.rip,
            flags: self.local.flags.at_site(),
            retired,
            carriers: first..self.out.carriers.len() as u32,
        };
        (self.local.dirty, self.local.flags, self.local.x87) = (dirty, flags, x87);
        record
    }

    /// Flags wanted behind the current instruction.
    pub fn wanted_flags(&self) -> FlagSet {
        self.current.flags_after
    }

    /// An integer constant; bits above the type's width are dropped.
    pub fn iconst(&mut self, ty: Type, value: i64) -> Value {
        let mask = if ty.bits() >= 64 { -1 } else { (1i64 << ty.bits()) - 1 };
        self.b.ins().iconst(ty, value & mask)
    }

    fn state_flags(&self) -> MemFlagsData {
        MemFlagsData::trusted().with_alias_region(Some(self.alias.state))
    }

    /// Stores into the [`VcpuBlock`].
    pub fn store_state(&mut self, value: Value, offset: usize) {
        let view = self.view();
        if self.carrying {
            let number = self.out.carriers.len();
            let bits = self.b.func.dfg.value_type(value).bits() as u8;
            self.out.carriers.push(Carrier { offset: offset as u16, bits });
            let flags = MemFlagsData::trusted().with_alias_region(Some(self.alias.carriers));
            self.b.ins().store(flags, value, view, CARRIER_OFFSET + 8 * number as i32);
            return;
        }
        let flags = self.state_flags();
        self.b.ins().store(flags, value, view, VCPU_OFFSET + offset as i32);
    }

    /// Loads from the [`VcpuBlock`].
    pub fn load_state(&mut self, ty: Type, offset: usize) -> Value {
        let (flags, view) = (self.state_flags(), self.view());
        self.b.ins().load(ty, flags, view, VCPU_OFFSET + offset as i32)
    }

    /// All instructions of the region.
    pub fn instructions(&self) -> impl Iterator<Item = &Instruction> {
        self.region.blocks.iter().flat_map(|block| block.insns.iter().map(|insn| &insn.raw))
    }

    fn view(&mut self) -> Value {
        self.b.use_var(self.vars.view)
    }

    /// Takes the view base from the pinned register, at entry and after calls.
    fn read_view(&mut self) {
        let view = self.b.ins().get_pinned_reg(types::I64);
        self.b.def_var(self.vars.view, view);
    }
}
