//! What the machine is made of, and the work that helpers and the engines' loop ask of it.
#![expect(unsafe_code, reason = "shares the vCPU block with translated code")]

/// A [`Fetcher`] that borrows just what it needs of a core.
macro_rules! source {
    ($core:ident) => {
        source!($core, Some(&$core.cache))
    };
    ($core:ident, $cache:expr) => {
        Fetcher {
            memory: &mut $core.memory,
            interpreter: &$core.interpreter,
            mistranslate: $core.config.mistranslate,
            region_limit: $core.translator_config.max_instructions,
            stops: $core.stops.all(),
            hooked: $core.hooks.code(),
            lacks_targets: false,
            knows_executed: $core.config.hot_threshold >= $crate::machine::core::LEAST_PROFILE,
            cache: $cache,
        }
    };
}

mod ahead;
mod dispatch;
mod hooks;
mod source;
mod stops;
mod system_call;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ptr;
use std::sync::Arc;
use std::time::Instant;

use lstar_arch::Vector;
use lstar_arch::control::{cr0, cr4, dr};
use lstar_arch::cpuid::Features;
use lstar_arch::delivery::{self, Event};
use lstar_arch::{CpuState, GuestMemory, HookedCode, PAGE_SIZE, Rflags, Vendor};
use lstar_interpreter::{Interpreter, Outcome, RunOptions, TSC_PER_INSTRUCTION};
use lstar_translator::abi::{ExitReason, Helper, Mode, PROBES, Stub, UNWIND, VCPU_OFFSET, VcpuBlock};
use lstar_translator::host_op::{HostOp, StringOp};
use lstar_translator::{Translator, TranslatorConfig};

use super::coverage::{Coverage, CoveredBlock};
use super::{Engine, MachineConfig, MachineError, ServiceGate, Statistics, SyscallDispatch, VmExit};
use crate::code_cache::CodeCache;
use crate::code_store::CodeStore;
use crate::compiler::{Compiler, Translated};
use crate::entry::{self, MissKind, Resolution};
use crate::fault;
use crate::helpers;
use crate::host_ops;
use crate::memory::{AddressSpace, ModifiedCode, SpaceId};
use crate::vcpu::Vcpu;
pub use dispatch::learn_stack_limit;
pub(crate) use dispatch::{run, step};
use hooks::Hooks;
use source::Fetcher;
use stops::Stops;

/// MXCSR's exception masks.
const MXCSR_MASKS: u32 = 0x1F80;
/// Visits before translation from which on a block without any counts as cold.
const LEAST_PROFILE: u32 = 100;

/// How the guest goes on after a helper's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Behind the instruction.
    Continue,
    /// At whatever RIP and privilege the block now says.
    Redirect,
    /// Not at all: `exit` is set.
    Exit,
}

/// Everything behind a [`super::Machine`].
pub(crate) struct Core {
    pub memory: AddressSpace,
    pub config: MachineConfig,
    stops: Stops,
    hooks: Hooks,
    /// What the hook said that panicked.
    pub hook_panic: Option<String>,
    block: *mut VcpuBlock,
    /// The address space that the next fields belong to: the memory's current one, outside of services.
    space: SpaceId,
    interpreter: Interpreter,
    /// Whether hot code is translated at all.
    translates: bool,
    /// Translates on this thread.
    translator: Option<Translator>,
    /// Translates on another one.
    compiler: Option<Compiler>,
    translator_config: TranslatorConfig,
    /// Regions of earlier runs.
    pub store: Option<CodeStore>,
    pub cache: CodeCache,
    /// Entries whose translation failed: left to the interpreter.
    untranslatable: HashSet<(u64, Mode)>,
    /// The same of other spaces.
    parked: HashMap<SpaceId, (Interpreter, HashSet<(u64, Mode)>)>,
    /// The space has changed: host frames of translated code are to be left before anything else runs.
    space_changed: bool,
    /// The user mode that host frames of translated code belong to, if there are any.
    frames: Mode,
    gate: Option<*mut (dyn ServiceGate + 'static)>,
    /// The gate is offered the work of the guest's entry code: that is wanted, and nobody wants to stop in that code.
    dispatches_directly: bool,
    exit: Option<VmExit>,
    /// Code memory is full; cleared from the outermost loop.
    cache_full: bool,
    statistics: Statistics,
    /// By [`Helper`].
    helper_calls: [u64; Helper::COUNT],
    fallbacks: BTreeMap<String, u64>,
    /// CR0, CR4 and XCR0 as they were when vector instructions last were found to be switched on.
    vector_state: [u64; 3],
    /// The rest of the budget is too small for translated code.
    finishing: bool,
    /// Budget at the start of the current run.
    granted: i64,
    coverage: Coverage,
    /// Where it is `Some`, exceptions and interrupts are left here and end the run instead of being delivered.
    pub intercept: Option<Option<Event>>,
}

fn new_interpreter(coverage: bool, stops: &BTreeSet<u64>, hooked: &Arc<HookedCode>) -> Interpreter {
    let mut interpreter = Interpreter::new();
    if coverage {
        interpreter.remember_executed();
    }
    for &stop in stops {
        interpreter.set_stop(stop, true);
    }
    interpreter.set_hooked(hooked.clone());
    interpreter
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("config", &self.config).field("exit", &self.exit).finish_non_exhaustive()
    }
}

impl Core {
    pub fn new(config: MachineConfig) -> Result<Box<Self>, MachineError> {
        let mut memory = AddressSpace::new(config.memory_limit)?;
        let probes = if config.coverage { u64::from(PROBES) } else { 0 };
        let block = memory.map_vcpu_block(VCPU_OFFSET, size_of::<VcpuBlock>() as u64 + probes)?.cast::<VcpuBlock>();
        let cache = CodeCache::new(config.code_cache_size)
            .map_err(|error| MachineError::Translation(format!("no memory for host code: {error}")))?;
        let translates = config.engine == Engine::Translator;
        let translator_config = TranslatorConfig {
            features: config.model.features,
            compare_clears_c1: config.model.vendor == Vendor::Intel,
            max_instructions: config.region_limit,
            coverage: config.coverage,
            inline_system_calls: config.dispatch == SyscallDispatch::Direct,
            ..config.translator
        };
        let (mut translator, mut compiler) = (None, None);
        if translates && config.background {
            compiler = Some(Compiler::start(translator_config).map_err(MachineError::Translation)?);
        } else if translates {
            let made = Translator::new(translator_config);
            translator = Some(made.map_err(|error| MachineError::Translation(error.to_string()))?);
        }
        let mut core = Box::new(Self {
            memory,
            config,
            stops: Stops::default(),
            hooks: Hooks::default(),
            hook_panic: None,
            block,
            space: SpaceId::FIRST,
            interpreter: new_interpreter(config.coverage, &BTreeSet::new(), &Arc::default()),
            coverage: Coverage::default(),
            untranslatable: HashSet::new(),
            parked: HashMap::new(),
            space_changed: false,
            frames: Mode::User,
            translates,
            translator,
            compiler,
            translator_config,
            store: None,
            cache,
            gate: None,
            dispatches_directly: false,
            exit: None,
            cache_full: false,
            statistics: Statistics::default(),
            helper_calls: [0; Helper::COUNT],
            fallbacks: BTreeMap::new(),
            vector_state: [u64::MAX; 3],
            finishing: false,
            granted: 0,
            intercept: None,
        });
        let context: *mut Self = &raw mut *core;
        let mut stubs = [0; Stub::COUNT];
        stubs[Stub::Miss as usize] = entry::miss_target_address();
        stubs[Stub::Unwind as usize] = entry::unwind_address();
        let mut helper_table = [0; Helper::COUNT];
        for &helper in Helper::ALL {
            helper_table[helper as usize] = helpers::address(helper);
        }
        let initial = VcpuBlock {
            host_ops: std::array::from_fn(|op| host_ops::address(HostOp::ALL[op])),
            string_ops: StringOp::ALL.map(host_ops::string_address),
            cpu: CpuState::new(config.model),
            lazy: lstar_translator::abi::LazyFlags::default(),
            budget: 0,
            exit: ExitReason::None as u64,
            view_base: 0,
            targets: core.cache.table_pointers(),
            stack_limit: 0,
            recovery_rsp: 0,
            context: context.cast(),
            stubs,
            helpers: helper_table,
            mxcsr_newer: 0,
            x87_live: 0,
            x87_last: 0,
            x87_segment: 0,
            x87_enter: crate::x87::enter_address(),
            x87_leave: crate::x87::leave_address(),
            tsc_at_end: 0,
        };
        // SAFETY: `block` is a fresh mapping of the right size and alignment, owned by `memory`.
        unsafe { block.write(initial) };
        fault::install();
        crate::x87::provide_transcendentals();
        Ok(core)
    }

    fn block(&self) -> &VcpuBlock {
        // SAFETY: the block lives as long as `memory`; translated code is stopped while Rust code of the core runs.
        unsafe { &*self.block }
    }

    pub fn block_mut(&mut self) -> &mut VcpuBlock {
        // SAFETY: as in `block`, and `self` is borrowed exclusively.
        unsafe { &mut *self.block }
    }

    pub fn cpu(&self) -> &CpuState {
        &self.block().cpu
    }

    pub fn cpu_mut(&mut self) -> &mut CpuState {
        &mut self.block_mut().cpu
    }

    /// The processor, memory and interpreter at once.
    fn parts(&mut self) -> (&mut VcpuBlock, &mut AddressSpace, &mut Interpreter) {
        // SAFETY: the block is no field of `self`, and nothing else refers to it while Rust code of the core runs.
        (unsafe { &mut *self.block }, &mut self.memory, &mut self.interpreter)
    }

    pub fn vcpu(&mut self) -> Vcpu<'_> {
        let retired = self.retired();
        let (block, memory, _) = self.parts();
        Vcpu::new(&mut block.cpu, memory, retired)
    }

    pub fn retired(&self) -> u64 {
        self.statistics.instructions + (self.granted - self.block().budget) as u64
    }

    pub fn statistics(&self) -> Statistics {
        let mut statistics = self.statistics.clone();
        statistics.instructions = self.retired();
        statistics.fallbacks = self.fallbacks.clone();
        let called = Helper::ALL.iter().map(|&helper| (helper.name(), self.helper_calls[helper as usize]));
        statistics.helper_calls = called.filter(|(_, calls)| *calls > 0).collect();
        statistics
    }

    /// Takes note that translated code has called a helper.
    #[inline(always)]
    pub fn count_call(&mut self, helper: Helper) {
        self.helper_calls[helper as usize] += 1;
    }

    pub fn read_tsc(&mut self) -> u64 {
        self.retired().wrapping_mul(TSC_PER_INSTRUCTION)
    }

    /// Makes `cpu.rflags` exact.
    pub fn fold_flags(&mut self) {
        crate::host_flags::materialize(self.block_mut());
    }

    /// The mode of the code at hand; `None` for code that is not translated: at CPL 1 and 2, where instructions fault that
    /// kernel-mode regions execute without a check, and 32-bit code that is not as [`Mode::Compatibility`] has it.
    #[inline]
    fn mode(&self) -> Option<Mode> {
        let cpu = self.cpu();
        match (cpu.cpl, cpu.is_64bit()) {
            (3, true) => Some(Mode::User),
            (0, true) => Some(Mode::Kernel),
            (3, false) => self.is_flat_32bit().then_some(Mode::Compatibility),
            _ => None,
        }
    }

    #[inline(never)]
    fn is_flat_32bit(&self) -> bool {
        const BORDER: u64 = 1 << 32;
        let is_free = |page| self.memory.protection(page).is_none();
        // Behind the last page EIP wraps.
        self.cpu().rip < BORDER - PAGE_SIZE
            && self.cpu().is_flat_32bit()
            && (is_free(BORDER) || is_free(BORDER - PAGE_SIZE))
    }

    /// Whether the code at hand is user code of another mode than the host frames of translated code.
    fn is_foreign_to_frames(&self) -> bool {
        self.cpu().cpl == 3 && self.mode() != Some(self.frames)
    }

    /// Whether only the interpreter, instruction by instruction, gives the right behaviour: single-stepping, hardware
    /// breakpoints, alignment checks, RF, which the next instruction clears.
    fn must_step(&self) -> bool {
        let cpu = self.cpu();
        let alignment = cpu.rflags & Rflags::AC.bits() != 0 && cpu.cpl == 3 && cpu.cr0 & cr0::AM != 0;
        let care = (Rflags::TF | Rflags::RF).bits();
        cpu.rflags & care != 0 || cpu.dr[7] & 0xFF != 0 || alignment
    }

    /// Whether translated code cannot go on after a helper.
    #[inline(always)]
    pub fn must_redispatch(&mut self) -> bool {
        let cpu = self.cpu();
        let [cr0, cr4, xcr0] = self.vector_state;
        // One branch for all that is rare; bit 1 of CPL + 1 is set for CPL 1 and 2.
        let unusual = cpu.rflags & (Rflags::TF | Rflags::RF | Rflags::AC).bits()
            | cpu.dr[7] & 0xFF
            | u64::from(!cpu.mxcsr & MXCSR_MASKS | u32::from((cpu.cpl + 1) & 2))
            | (cpu.cr0 ^ cr0 | cpu.cr4 ^ cr4 | cpu.xcr0 ^ xcr0)
            | u64::from(self.space_changed)
            | u64::from(!cpu.is_64bit() | (self.frames as u8 == Mode::Compatibility as u8));
        unusual != 0 && self.must_leave()
    }

    /// [`Core::must_redispatch`] in full.
    #[cold]
    #[inline(never)]
    fn must_leave(&mut self) -> bool {
        let cpu = self.cpu();
        let vectors = has_vector_state(cpu);
        if vectors {
            self.vector_state = [cpu.cr0, cpu.cr4, cpu.xcr0];
        }
        let elsewhere = match self.mode() {
            None => true,
            Some(Mode::Kernel) => false,
            Some(mode) => mode != self.frames,
        };
        // Translated code runs vector arithmetic without fault sites: #XM is the interpreter's.
        self.space_changed || self.must_step() || elsewhere || self.cpu().mxcsr & MXCSR_MASKS != MXCSR_MASKS || !vectors
    }

    /// Says which host code continues at RIP.
    pub fn continue_at_rip(&mut self) -> u64 {
        let Some(mode) = self.mode().filter(|_| !self.must_redispatch()) else {
            self.block_mut().exit = ExitReason::Redispatch as u64;
            return entry::unwind_address();
        };
        let rip = self.cpu().rip;
        self.cache.lookup(rip, mode).unwrap_or_else(entry::miss_target_address)
    }

    /// Base of the window for translated code, if there is code to run in it.
    fn view_for(&mut self, code: Option<u64>) -> Option<u64> {
        code.and_then(|_| self.memory.view_base().ok())
    }

    /// Executes the instruction at `rip`, all of it if it is a repeated string instruction.
    pub fn interpret_one(&mut self, rip: u64) -> After {
        self.cpu_mut().rip = rip;
        loop {
            let outcome = self.step_cached();
            if raised(outcome) {
                self.block_mut().budget += 1;
            }
            let after = self.finish(outcome);
            let repeat = after == After::Continue && self.cpu().rip == rip && outcome == Outcome::Retired;
            if !repeat {
                return after;
            }
            if self.block().budget <= 0 {
                return After::Redirect;
            }
            self.block_mut().budget -= 1;
        }
    }

    /// As [`Core::step_once`], and takes the instruction off the budget if it retires: before it executes, so that one that
    /// reads the counter is counted itself.
    fn step_charged(&mut self) -> Outcome {
        self.block_mut().budget -= 1;
        let outcome = self.step_once();
        self.block_mut().budget += i64::from(raised(outcome));
        outcome
    }

    /// Executes one instruction from the interpreter's cache of decoded blocks: for those that translated code leaves to
    /// it time and again.
    fn step_cached(&mut self) -> Outcome {
        let tsc = self.read_tsc();
        let (rip, level) = self.begin_instruction();
        let (block, memory, interpreter) = self.parts();
        block.cpu.tsc = tsc;
        let options = RunOptions { one_block: true, ..RunOptions::PLAIN };
        let outcome = interpreter.run(&mut block.cpu, memory, &mut 1, options);
        self.statistics.interpreted += 1;
        self.count_interpreted();
        self.note_position(rip, level);
        outcome
    }

    /// Runs the interpreter for at most `budget` instructions, which are taken off the machine's.
    fn run_interpreter(&mut self, budget: i64, options: RunOptions) -> Outcome {
        // As in translated code, an instruction that reads the counter is counted itself.
        let tsc = self.read_tsc().wrapping_add(TSC_PER_INSTRUCTION);
        let (rip, level) = (self.cpu().rip, self.cpu().cpl);
        let (block, memory, interpreter) = self.parts();
        block.cpu.tsc = tsc;
        memory.refuse_watched();
        let mut left = budget;
        let outcome = interpreter.run(&mut block.cpu, memory, &mut left, options);
        let used = budget - left;
        block.budget -= used;
        self.statistics.interpreted += used as u64;
        self.count_interpreted();
        if used > 0 {
            self.note_position(rip, level);
        }
        if self.is_refused(outcome) { self.step_charged() } else { outcome }
    }

    fn step_once(&mut self) -> Outcome {
        let tsc = self.read_tsc();
        let (rip, level) = self.begin_instruction();
        let (block, memory, interpreter) = self.parts();
        block.cpu.tsc = tsc;
        let outcome = interpreter.step(&mut block.cpu, memory);
        self.statistics.interpreted += 1;
        self.count_interpreted();
        self.note_position(rip, level);
        outcome
    }

    /// Takes over what the interpreter has counted.
    fn count_interpreted(&mut self) {
        self.memory.end_watching();
        let counters = self.interpreter.take_counters();
        self.statistics.syscalls += counters.syscalls;
        self.statistics.privilege_switches += counters.privilege_switches;
    }

    fn deliver(&mut self, event: Event) -> After {
        if let Some(intercepted) = &mut self.intercept {
            *intercepted = Some(event);
            self.exit = Some(VmExit::Stopped);
            return After::Exit;
        }
        if let Some(after) = self.call_exception_hooks(event) {
            return after;
        }
        self.statistics.exceptions += 1;
        let (block, memory, _) = self.parts();
        let cpl = block.cpu.cpl;
        (block.cpu.inside_block, block.cpu.hooks_passed) = (0, 0);
        let result = delivery::deliver(&mut block.cpu, memory, event);
        let after = self.switched(cpl);
        if result.is_err() {
            self.exit = Some(VmExit::Shutdown);
            return After::Exit;
        }
        self.drop_stale();
        after.unwrap_or(After::Redirect)
    }

    /// Decides how SYSCALL reaches a service: the guest's own code must run while anybody wants to see it run.
    fn choose_dispatch(&mut self) {
        let seen = self.stops.any_in_kernel() || self.hooks.wants_entry_code();
        self.dispatches_directly = self.config.dispatch == SyscallDispatch::Direct && !seen;
    }

    /// Takes over what services did to code: drops what was decoded and translated from pages that have changed, and
    /// follows a change of the address space. Says whether there was anything.
    #[inline(always)]
    pub fn drop_stale(&mut self) -> bool {
        self.memory.has_changes() && self.follow_changes()
    }

    #[cold]
    #[inline(never)]
    fn follow_changes(&mut self) -> bool {
        let stale = self.memory.code_modified();
        if stale {
            for modified in self.memory.take_modified() {
                self.drop_modified(modified);
            }
            let requests = self.memory.take_hook_requests();
            if !requests.is_empty() {
                self.set_hooks(&requests);
            }
            self.take_hook_changes();
        }
        let changed = self.follow_space();
        self.memory.followed();
        changed || stale
    }

    fn drop_modified(&mut self, modified: ModifiedCode) {
        let ModifiedCode { space, range } = modified;
        self.statistics.invalidations += self.cache.invalidate(space, &range);
        let current = (&self.space, (&mut self.interpreter, &mut self.untranslatable));
        let parked = self.parked.iter_mut().map(|(id, (interpreter, failed))| (id, (interpreter, failed)));
        for (&id, (interpreter, untranslatable)) in parked.chain([current]) {
            if space.is_none_or(|space| space == id) {
                interpreter.invalidate(range.start, range.end);
                untranslatable.retain(|&(rip, _)| !range.contains(&rip));
            }
        }
        if let Some(compiler) = &mut self.compiler {
            compiler.invalidate(space, &range);
        }
        if let Some(gate) = self.gate {
            // SAFETY: as in `service_gate`.
            unsafe { (*gate).code_changed(range) };
        }
    }

    /// Goes on in the memory's current space.
    fn follow_space(&mut self) -> bool {
        let space = self.memory.current_space();
        let changed = space != self.space;
        if changed {
            self.cache.switch_space(space);
            let (interpreter, untranslatable) = self.parked.remove(&space).unwrap_or_else(|| {
                (new_interpreter(self.config.coverage, self.stops.all(), self.hooks.code()), HashSet::new())
            });
            let previous = (
                std::mem::replace(&mut self.interpreter, interpreter),
                std::mem::replace(&mut self.untranslatable, untranslatable),
            );
            self.parked.insert(self.space, previous);
            self.space = space;
            self.block_mut().targets = self.cache.table_pointers();
            self.space_changed = true;
        }
        for space in self.memory.take_destroyed() {
            if let Some((interpreter, _)) = self.parked.remove(&space).filter(|_| self.config.coverage) {
                self.coverage.take_interpreted(space, &interpreter);
            }
            self.cache.forget_space(space);
        }
        changed
    }

    /// Deals with how an interpreted instruction ended.
    fn finish(&mut self, outcome: Outcome) -> After {
        let late = self.call_late_hooks(outcome);
        let after = self.finish_instruction(outcome);
        match (late, after) {
            (Some(late), After::Continue | After::Redirect) => late,
            (_, after) => after,
        }
    }

    fn finish_instruction(&mut self, outcome: Outcome) -> After {
        match outcome {
            Outcome::Retired | Outcome::Hot | Outcome::Warm | Outcome::Call | Outcome::Return => After::Continue,
            Outcome::Exception(exception) => {
                self.report_unimplemented();
                self.deliver(Event::Exception(exception))
            }
            Outcome::SoftwareInterrupt(vector) => self.deliver(Event::Software(vector)),
            Outcome::ServiceGate => {
                let next = self.cpu().rip;
                self.service_gate(next)
            }
            Outcome::Halt => {
                self.exit = Some(VmExit::Halted);
                After::Exit
            }
            // The loop will get there.
            Outcome::Stop => After::Redirect,
            Outcome::CodeModified => {
                self.drop_stale();
                After::Redirect
            }
        }
    }

    fn report_unimplemented(&mut self) {
        for instruction in self.interpreter.take_unimplemented() {
            if let Some(gate) = self.gate {
                // SAFETY: as in `service_gate`.
                unsafe { (*gate).unimplemented_instruction(instruction.rip, &instruction.text) };
            }
        }
    }

    /// See [`super::Machine::retranslate`].
    pub fn retranslate(&mut self, region_limit: usize) {
        self.translator_config.max_instructions = region_limit;
        if let Some(translator) = &mut self.translator {
            translator.set_max_instructions(region_limit);
        }
        self.cache.clear();
        self.untranslatable.clear();
        self.interpreter.invalidate_all();
    }

    /// Translates the region at RIP, if it can be, or asks for it.
    fn translate(&mut self) {
        let Some(mode) = self.mode() else { return };
        let entry = self.cpu().rip;
        let mut source = source!(self);
        if let Some(translator) = &mut self.translator {
            let start = Instant::now();
            let result = translator.translate(entry, mode, &mut source);
            self.take_in(Translated { space: self.space, entry, mode, result, time: start.elapsed() });
        } else if let Some(compiler) =
            self.compiler.as_mut().filter(|compiler| !compiler.expects(self.space, entry, mode))
        {
            let code = Translator::read_ahead(&self.translator_config, entry, mode, &mut source);
            if !compiler.request(self.space, entry, mode, code) {
                self.untranslatable.insert((entry, mode));
            }
        }
    }

    /// Takes in what another thread has translated.
    fn take_translated(&mut self) {
        while let Some(ready) = self.compiler.as_mut().and_then(Compiler::take) {
            self.take_in(ready);
        }
    }

    /// Whether the region at RIP is being translated.
    fn is_expected(&self, mode: Mode) -> bool {
        self.compiler.as_ref().is_some_and(|compiler| compiler.expects(self.space, self.cpu().rip, mode))
    }

    /// See [`crate::Machine::coverage`].
    pub fn coverage(&mut self) -> Vec<CoveredBlock> {
        if self.config.coverage {
            // SAFETY: the probes lie behind the block, in the same mapping; translated code is stopped.
            let is_set = |number: u32| unsafe { *self.block.add(1).cast::<u8>().add(number as usize) != 0 };
            self.coverage.take_probed(is_set);
            self.coverage.take_interpreted(self.space, &self.interpreter);
            for (&space, (interpreter, _)) in &self.parked {
                self.coverage.take_interpreted(space, interpreter);
            }
        }
        self.coverage.blocks()
    }

    pub fn fingerprint(&self) -> Result<String, MachineError> {
        Translator::fingerprint(&self.translator_config).map_err(|error| MachineError::Translation(error.to_string()))
    }

    /// Looks for the region at RIP among those of earlier runs.
    fn load_stored(&mut self) {
        let Some(mode) = self.mode() else { return };
        let entry = self.cpu().rip;
        if self.cache.lookup(entry, mode).is_some() {
            return;
        }
        let mut source = source!(self);
        if let Some(region) = self.store.as_ref().and_then(|store| store.find(entry, mode, &mut source)) {
            self.statistics.regions_loaded += 1;
            let memory = &self.memory;
            let read = |address, buf: &mut [u8]| {
                // Compared just now, so present.
                let _ = memory.read_unchecked(address, buf);
            };
            self.cache_full |= self.cache.insert(self.space, region, true, read).is_none();
        }
    }

    fn take_in(&mut self, translated: Translated) {
        self.statistics.translation_time += translated.time;
        let Ok(region) = translated.result else {
            let key = (translated.entry, translated.mode);
            if translated.space == self.space {
                self.untranslatable.insert(key);
            } else if let Some((_, untranslatable)) = self.parked.get_mut(&translated.space) {
                untranslatable.insert(key);
            }
            return;
        };
        self.statistics.regions += 1;
        self.statistics.regions_32bit += u64::from(region.mode.is_32bit());
        self.statistics.blocks += u64::from(region.blocks);
        self.statistics.translated_instructions += u64::from(region.instructions);
        self.statistics.host_code_bytes += region.code.len() as u64;
        for &(code, count) in &region.fallbacks {
            *self.fallbacks.entry(format!("{code:?}")).or_default() += u64::from(count);
        }
        self.coverage.watch(translated.space, &region.probes);
        // Unchanged since it was read for translation. A space that is gone takes its code with it.
        let Ok(previous) = self.memory.switch_space(translated.space) else { return };
        // Another run has other stops.
        let stopping = self.has_stops();
        let plain = !stopping || self.is_plain(&region);
        if let Some(store) = self.store.as_mut().filter(|_| !stopping) {
            store.add(&region, &mut source!(self));
        }
        let memory = &self.memory;
        let read = |address, buf: &mut [u8]| {
            let _ = memory.read_unchecked(address, buf);
        };
        self.cache_full |= self.cache.insert(translated.space, region, plain, read).is_none();
        let restored = self.memory.switch_space(previous);
        debug_assert!(restored.is_ok(), "it was current a moment ago");
    }

    /// Host code for RIP that was translated in another address space from the same bytes.
    fn adopt(&mut self, rip: u64, mode: Mode) -> Option<u64> {
        if self.config.coverage {
            // Its probes belong to the space it was translated for.
            return None;
        }
        let mut source = source!(self, None);
        self.cache.adopt(rip, mode, |address, bytes| source.holds(address, bytes, mode))
    }

    /// Whether there is host code for RIP, perhaps from another address space.
    fn has_code_at_rip(&mut self) -> bool {
        let rip = self.cpu().rip;
        self.mode().is_some_and(|mode| self.cache.lookup(rip, mode).is_some() || self.adopt(rip, mode).is_some())
    }

    /// Where a stub goes on: with code, or, after running the guest until it returned to the caller, with a value.
    ///
    /// # Safety
    /// `core` is the core whose translated code called the stub; no reference to it is live.
    pub unsafe fn resolve(core: *mut Self, argument: u64, kind: MissKind) -> Resolution {
        // SAFETY: by contract; the reference ends before guest code runs again.
        let this = unsafe { &mut *core };
        let rip = match kind {
            MissKind::Slot => this.cache.slot_rip(argument),
            MissKind::Target => argument,
        };
        // The stub was called by translated code, and that has not changed the mode.
        let mode = if this.cpu().cpl == 3 { this.frames } else { Mode::Kernel };
        if let Some(code) = this.cache.lookup(rip, mode) {
            return Resolution { code, value: rip };
        }
        this.fold_flags();
        this.cpu_mut().rip = rip;
        let marker = 0u8;
        let room = ptr::from_ref(&marker) as u64 > this.block().stack_limit;
        if mode == Mode::Kernel || !room {
            this.block_mut().exit = ExitReason::Redispatch as u64;
            return Resolution { code: 0, value: UNWIND };
        }
        // SAFETY: by contract, and `this` is not used any more.
        Resolution { code: 0, value: unsafe { dispatch::dispatch(core, true) } }
    }
}

/// Whether an instruction raised a fault, and so did not retire; debug exceptions come behind an instruction.
fn raised(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Exception(exception) if exception.vector != Vector::Debug)
}

const _: () = assert!(dr::DR7_FIXED & 0xFF == 0, "DR7's fixed bits must not look like an enabled breakpoint");

/// Whether x87, SSE and AVX instructions execute as far as the model offers them. Translated code does not ask before each: while
/// the system has some switched off, everything is interpreted (SDM vol. 1, 13.3; vol. 3, 2.5).
fn has_vector_state(cpu: &CpuState) -> bool {
    const SSE_AND_AVX: u64 = 6;
    let avx = cpu.cr4 & cr4::OSXSAVE != 0 && cpu.xcr0 & SSE_AND_AVX == SSE_AND_AVX;
    cpu.cr0 & (cr0::EM | cr0::TS) == 0
        && cpu.cr4 & cr4::OSFXSR != 0
        && (avx || !cpu.model.features.contains(Features::AVX))
}
