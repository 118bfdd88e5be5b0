//! The engines' loop.
//!
//! [`dispatch`] picks, for the current RIP, a translated region or the interpreter, runs it, and deals with how it ended.
//! It is re-entered (*nested*) when translated code calls or jumps to code that has no translation: the interpreter then
//! runs until the guest returns from that function, and the result goes back to the translated caller as if a region
//! had returned it. So cold callees cost no host frames. Whatever cannot be expressed as such a return (a stop, an
//! exception that leaves the function for good, a change of the code itself) unwinds all host frames by returning
//! [`UNWIND`] from each, down to the outermost loop, which goes on from the registers in the block.
#![expect(unsafe_code, reason = "enters translated code and shares the vCPU block with it")]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ptr;
use std::time::Instant;

use lstar_arch::Vector;
use lstar_arch::control::{cr0, dr};
use lstar_arch::delivery::{self, Event};
use lstar_arch::{CpuState, Exception, GuestMemory, Privilege, Rflags, system};
use lstar_interpreter::{Interpreter, Outcome, RunOptions, TSC_PER_INSTRUCTION};
use lstar_translator::abi::{ExitReason, Helper, Mode, Stub, UNWIND, VCPU_OFFSET, VcpuBlock};
use lstar_translator::host_op::{HostOp, StringOp};
use lstar_translator::{CodeSource, Translator, TranslatorConfig, flags};

use super::{Engine, GateAction, MachineConfig, MachineError, ServiceGate, Statistics, SyscallDispatch, VmExit};
use crate::code_cache::CodeCache;
use crate::code_store::{CodeStore, GuestCode};
use crate::compiler::{Compiler, Translated};
use crate::entry::{self, FAULT, MissKind, Resolution};
use crate::fault::{self, Scope};
use crate::helpers;
use crate::host_ops;
use crate::memory::{AddressSpace, ModifiedCode, SpaceId};
use crate::vcpu::Vcpu;

/// Host stack kept free for Rust code below the point where translated code stops making host calls.
const STACK_RESERVE: u64 = 256 << 10;
/// The visit of a block at which regions of earlier runs are looked through.
const STORE_THRESHOLD: u32 = 2;
/// MXCSR's exception masks.
const MXCSR_MASKS: u32 = 0x1F80;

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
    pub breakpoints: BTreeSet<u64>,
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
    gate: Option<*mut (dyn ServiceGate + 'static)>,
    exit: Option<VmExit>,
    /// Code memory is full; cleared from the outermost loop.
    cache_full: bool,
    statistics: Statistics,
    fallbacks: BTreeMap<String, u64>,
    /// The rest of the budget is too small for translated code.
    finishing: bool,
    /// Budget at the start of the current run.
    granted: i64,
    /// Where it is `Some`, exceptions and interrupts are left here and end the run instead of being delivered.
    pub intercept: Option<Option<Event>>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("config", &self.config).field("exit", &self.exit).finish_non_exhaustive()
    }
}

impl Core {
    pub fn new(config: MachineConfig) -> Result<Box<Self>, MachineError> {
        let mut memory = AddressSpace::new(config.memory_limit)?;
        let block = memory.map_vcpu_block(VCPU_OFFSET, size_of::<VcpuBlock>() as u64)?.cast::<VcpuBlock>();
        let cache = CodeCache::new(config.code_cache_size)
            .map_err(|error| MachineError::Translation(format!("no memory for host code: {error}")))?;
        let translates = config.engine == Engine::Translator;
        let translator_config = TranslatorConfig {
            features: config.model.features,
            max_instructions: config.region_limit,
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
            breakpoints: BTreeSet::new(),
            block,
            space: SpaceId::FIRST,
            interpreter: Interpreter::new(),
            untranslatable: HashSet::new(),
            parked: HashMap::new(),
            space_changed: false,
            translates,
            translator,
            compiler,
            translator_config,
            store: None,
            cache,
            gate: None,
            exit: None,
            cache_full: false,
            statistics: Statistics::default(),
            fallbacks: BTreeMap::new(),
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
            x87_pending: [0; 3],
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
        Vcpu { cpu: &mut block.cpu, memory, retired }
    }

    pub fn retired(&self) -> u64 {
        self.statistics.instructions + (self.granted - self.block().budget) as u64
    }

    pub fn statistics(&self) -> Statistics {
        let mut statistics = self.statistics.clone();
        statistics.instructions = self.retired();
        statistics.fallbacks = self.fallbacks.clone();
        statistics
    }

    pub fn read_tsc(&mut self) -> u64 {
        self.retired().wrapping_mul(TSC_PER_INSTRUCTION)
    }

    /// Makes `cpu.rflags` exact.
    pub fn fold_flags(&mut self) {
        flags::materialize(self.block_mut());
    }

    fn mode(&self) -> Mode {
        if self.cpu().cpl == 3 { Mode::User } else { Mode::Kernel }
    }

    /// Whether only the interpreter, instruction by instruction, gives the right behaviour: single-stepping, hardware
    /// or debugger breakpoints, alignment checks, RF, which the next instruction clears.
    fn must_step(&self) -> bool {
        let cpu = self.cpu();
        let alignment = cpu.rflags & Rflags::AC.bits() != 0 && cpu.cpl == 3 && cpu.cr0 & cr0::AM != 0;
        let care = (Rflags::TF | Rflags::RF).bits();
        cpu.rflags & care != 0 || cpu.dr[7] & 0xFF != 0 || alignment || !self.breakpoints.is_empty()
    }

    /// Whether translated code cannot go on after a helper.
    pub fn must_redispatch(&self) -> bool {
        let cpu = self.cpu();
        // Translated code runs vector arithmetic without fault sites: #XM is the interpreter's. So are CPL 1 and 2,
        // where instructions fault that kernel-mode regions execute without a check.
        self.space_changed
            || self.must_step()
            || !cpu.is_64bit()
            || matches!(cpu.cpl, 1 | 2)
            || cpu.mxcsr & MXCSR_MASKS != MXCSR_MASKS
    }

    /// Says which host code continues at RIP.
    pub fn continue_at_rip(&mut self) -> u64 {
        let mode = self.mode();
        if self.must_redispatch() {
            self.block_mut().exit = ExitReason::Redispatch as u64;
            return entry::unwind_address();
        }
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
        let (block, memory, interpreter) = self.parts();
        block.cpu.tsc = tsc;
        let options = RunOptions::PLAIN;
        let outcome = interpreter.run(&mut block.cpu, memory, &mut 1, options);
        self.statistics.interpreted += 1;
        self.count_interpreted();
        outcome
    }

    fn step_once(&mut self) -> Outcome {
        let tsc = self.read_tsc();
        let (block, memory, interpreter) = self.parts();
        block.cpu.tsc = tsc;
        let outcome = interpreter.step(&mut block.cpu, memory);
        self.statistics.interpreted += 1;
        self.count_interpreted();
        outcome
    }

    /// Takes over what the interpreter has counted.
    fn count_interpreted(&mut self) {
        let counters = self.interpreter.take_counters();
        self.statistics.syscalls += counters.syscalls;
        self.statistics.privilege_switches += counters.privilege_switches;
    }

    /// Counts a change of privilege from `cpl` that the interpreter has not seen.
    fn count_switch(&mut self, cpl: u8) {
        if self.cpu().cpl != cpl {
            self.statistics.privilege_switches += 1;
        }
    }

    /// SYSCALL, from translated code. `Continue` when the call has already come back behind the instruction.
    pub fn syscall(&mut self, next: u64) -> After {
        let rip = next.wrapping_sub(2);
        let cpu = self.cpu_mut();
        cpu.rip = next;
        let cpl = cpu.cpl;
        match system::syscall(cpu) {
            Ok(()) => {
                self.statistics.syscalls += 1;
                self.count_switch(cpl);
                let after = self.direct_dispatch();
                let back = cpl == 3 && self.cpu().cpl == 3 && self.cpu().rip == next;
                if after == After::Continue && !back { After::Redirect } else { after }
            }
            Err(exception) => {
                self.cpu_mut().rip = rip;
                self.block_mut().budget += 1;
                self.deliver(Event::Exception(exception))
            }
        }
    }

    /// SYSRETQ (`quad`) or SYSRETL at `rip`, from translated code.
    pub fn sysret(&mut self, rip: u64, quad: bool) -> After {
        let size = if quad { system::OperandSize::Qword } else { system::OperandSize::Dword };
        let cpu = self.cpu_mut();
        // Only an exception looks at it, and that restores it.
        cpu.rip = rip;
        match system::sysret(cpu, size) {
            Ok(()) => {
                self.statistics.privilege_switches += 1;
                if self.cpu().rflags & Rflags::TF.bits() != 0 {
                    return self.deliver(Event::Exception(Exception::db(dr::DR6_BS)));
                }
                After::Redirect
            }
            Err(exception) => {
                self.cpu_mut().rip = rip;
                self.block_mut().budget += 1;
                self.deliver(Event::Exception(exception))
            }
        }
    }

    /// Lets the gate do the entry code's work, where that is wanted.
    fn direct_dispatch(&mut self) -> After {
        let Some(gate) = self.gate.filter(|_| self.config.dispatch == SyscallDispatch::Direct) else {
            return After::Redirect;
        };
        // SAFETY: as in `service_gate`.
        let action = unsafe { (*gate).system_call(&mut self.vcpu()) };
        let Some(action) = action else { return After::Redirect };
        self.count_switch(0);
        let stale = self.drop_stale();
        match action {
            GateAction::Resume if !stale => After::Continue,
            GateAction::Resume | GateAction::Redirect => After::Redirect,
            GateAction::Stop => {
                self.exit = Some(VmExit::Stopped);
                After::Exit
            }
        }
    }

    /// The gate instruction has executed; RIP is `next`.
    pub fn service_gate(&mut self, next: u64) -> After {
        self.cpu_mut().rip = next;
        let Some(gate) = self.gate else {
            self.exit = Some(VmExit::Halted);
            return After::Exit;
        };
        let cpl = self.cpu().cpl;
        // SAFETY: the pointer was made from the exclusive reference that `run` holds for the whole run; the gate has no way
        // to reach the core, so this is the only use of it at a time.
        let action = unsafe { (*gate).service(&mut self.vcpu()) };
        self.count_switch(cpl);
        let stale = self.drop_stale();
        match action {
            GateAction::Resume if !stale => After::Continue,
            GateAction::Resume | GateAction::Redirect => After::Redirect,
            GateAction::Stop => {
                self.exit = Some(VmExit::Stopped);
                After::Exit
            }
        }
    }

    fn deliver(&mut self, event: Event) -> After {
        if let Some(intercepted) = &mut self.intercept {
            *intercepted = Some(event);
            self.exit = Some(VmExit::Stopped);
            return After::Exit;
        }
        self.statistics.exceptions += 1;
        let (block, memory, _) = self.parts();
        let cpl = block.cpu.cpl;
        let result = delivery::deliver(&mut block.cpu, memory, event);
        self.count_switch(cpl);
        if result.is_err() {
            self.exit = Some(VmExit::Shutdown);
            return After::Exit;
        }
        self.drop_stale();
        After::Redirect
    }

    /// Takes over what services did to code: drops what was decoded and translated from pages that have changed, and
    /// follows a change of the address space. Says whether there was anything.
    #[inline]
    fn drop_stale(&mut self) -> bool {
        let stale = self.memory.code_modified();
        if !stale && !self.memory.spaces_changed(self.space) {
            return false;
        }
        self.drop_modified_code(stale)
    }

    #[cold]
    #[inline(never)]
    fn drop_modified_code(&mut self, stale: bool) -> bool {
        if stale {
            for modified in self.memory.take_modified() {
                self.drop_modified(modified);
            }
        }
        self.follow_space() || stale
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
            let (interpreter, untranslatable) = self.parked.remove(&space).unwrap_or_default();
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
            self.parked.remove(&space);
            self.cache.forget_space(space);
        }
        changed
    }

    /// Deals with how an interpreted instruction ended.
    fn finish(&mut self, outcome: Outcome) -> After {
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
        let (entry, mode) = (self.cpu().rip, self.mode());
        let mut source = Fetcher {
            memory: &mut self.memory,
            interpreter: &self.interpreter,
            mistranslate: self.config.mistranslate,
            region_limit: self.translator_config.max_instructions,
        };
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
    fn is_expected(&self) -> bool {
        self.compiler.as_ref().is_some_and(|compiler| compiler.expects(self.space, self.cpu().rip, self.mode()))
    }

    pub fn fingerprint(&self) -> Result<String, MachineError> {
        Translator::fingerprint(&self.translator_config).map_err(|error| MachineError::Translation(error.to_string()))
    }

    /// Looks for the region at RIP among those of earlier runs.
    fn load_stored(&mut self) {
        let (entry, mode) = (self.cpu().rip, self.mode());
        if self.cache.lookup(entry, mode).is_some() {
            return;
        }
        let mut source = Fetcher {
            memory: &mut self.memory,
            interpreter: &self.interpreter,
            mistranslate: self.config.mistranslate,
            region_limit: self.translator_config.max_instructions,
        };
        if let Some(region) = self.store.as_ref().and_then(|store| store.find(entry, mode, &mut source)) {
            self.statistics.regions_loaded += 1;
            let memory = &self.memory;
            let read = |address, buf: &mut [u8]| {
                // Compared just now, so present.
                let _ = memory.read_unchecked(address, buf);
            };
            self.cache_full |= self.cache.insert(self.space, region, read).is_none();
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
        self.statistics.blocks += u64::from(region.blocks);
        self.statistics.translated_instructions += u64::from(region.instructions);
        self.statistics.host_code_bytes += region.code.len() as u64;
        for &(code, count) in &region.fallbacks {
            *self.fallbacks.entry(format!("{code:?}")).or_default() += u64::from(count);
        }
        // Unchanged since it was read for translation. A space that is gone takes its code with it.
        let Ok(previous) = self.memory.switch_space(translated.space) else { return };
        if let Some(store) = &mut self.store {
            store.add(
                &region,
                &mut Fetcher {
                    memory: &mut self.memory,
                    interpreter: &self.interpreter,
                    mistranslate: self.config.mistranslate,
                    region_limit: self.translator_config.max_instructions,
                },
            );
        }
        let memory = &self.memory;
        let read = |address, buf: &mut [u8]| {
            let _ = memory.read_unchecked(address, buf);
        };
        self.cache_full |= self.cache.insert(translated.space, region, read).is_none();
        let restored = self.memory.switch_space(previous);
        debug_assert!(restored.is_ok(), "it was current a moment ago");
    }

    /// Host code for RIP that was translated in another address space from the same bytes.
    fn adopt(&mut self, rip: u64, mode: Mode) -> Option<u64> {
        let Self { cache, memory, interpreter, config, translator_config, .. } = self;
        let (mistranslate, region_limit) = (config.mistranslate, translator_config.max_instructions);
        let mut source = Fetcher { memory, interpreter, mistranslate, region_limit };
        cache.adopt(rip, mode, |address, bytes| source.holds(address, bytes, mode))
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
        let mode = this.mode();
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
        Resolution { code: 0, value: unsafe { dispatch(core, true) } }
    }
}

/// Reads code for the translator.
struct Fetcher<'a> {
    memory: &'a mut AddressSpace,
    /// Has seen where indirect jumps go.
    interpreter: &'a Interpreter,
    /// See [`MachineConfig::mistranslate`].
    mistranslate: Option<fn(u64, &mut [u8], usize)>,
    /// The translator's limit.
    region_limit: usize,
}

impl Fetcher<'_> {
    /// Whether executable memory holds these bytes; if so, changes will be noticed.
    fn holds(&mut self, address: u64, bytes: &[u8], mode: Mode) -> bool {
        let mut buf = vec![0; bytes.len()];
        // Looking first keeps pages unprotected that hold something else.
        self.memory.read_unchecked(address, &mut buf).is_ok()
            && buf == bytes
            && self.fetch(address, &mut buf, mode) == bytes.len()
    }
}

impl CodeSource for Fetcher<'_> {
    fn fetch(&mut self, address: u64, buf: &mut [u8], mode: Mode) -> usize {
        let privilege = match mode {
            Mode::User => Privilege::User,
            Mode::Kernel => Privilege::Supervisor,
        };
        let count = self.memory.fetch(address, buf, privilege).unwrap_or(0);
        if let Some(mistranslate) = self.mistranslate {
            mistranslate(address, &mut buf[..count], self.region_limit);
        }
        count
    }

    fn indirect_targets(&mut self, jump: u64, _: Mode) -> Vec<u64> {
        self.interpreter.indirect_targets(jump)
    }
}

impl GuestCode for Fetcher<'_> {
    fn read(&mut self, address: u64, buf: &mut [u8], mode: Mode) -> bool {
        self.fetch(address, buf, mode) == buf.len()
    }
}

/// Whether an instruction raised a fault, and so did not retire; debug exceptions come behind an instruction.
fn raised(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Exception(exception) if exception.vector != Vector::Debug)
}

/// What the loop does next.
enum Next {
    Again,
    Leave(u64),
}

/// Turns what a helper-like operation asks for into the loop's next action.
fn next(core: &mut Core, after: After, nested: bool) -> Next {
    match after {
        After::Continue => Next::Again,
        After::Redirect if nested => {
            core.block_mut().exit = ExitReason::Redispatch as u64;
            Next::Leave(UNWIND)
        }
        After::Redirect => Next::Again,
        After::Exit => {
            core.block_mut().exit = ExitReason::Helper as u64;
            Next::Leave(UNWIND)
        }
    }
}

/// Runs guest code until something ends the run ([`UNWIND`], `exit` set) or, when nested, until the guest returns from
/// the function it is in (the RIP returned to).
///
/// # Safety
/// `core` is live and no reference to it is. The thread's fault scope names it.
unsafe fn dispatch(core: *mut Core, nested: bool) -> u64 {
    // Guest calls made by interpreted code since this loop began.
    let mut depth = 0u64;
    loop {
        // SAFETY: by contract; the reference ends before translated code is entered.
        let this = unsafe { &mut *core };
        if this.exit.is_some() {
            this.block_mut().exit = ExitReason::Helper as u64;
            return UNWIND;
        }
        if this.block().budget <= 0 {
            this.exit = Some(VmExit::Budget);
            continue;
        }
        if this.finishing && nested {
            this.block_mut().exit = ExitReason::Redispatch as u64;
            return UNWIND;
        }
        if this.cache_full {
            if nested {
                this.block_mut().exit = ExitReason::Redispatch as u64;
                return UNWIND;
            }
            this.cache.clear();
            this.cache_full = false;
        }
        if !nested {
            this.space_changed = false;
        } else if this.space_changed {
            this.block_mut().exit = ExitReason::Redispatch as u64;
            return UNWIND;
        }
        let translated = this.translates && !this.finishing && !this.must_redispatch();
        if this.compiler.as_ref().is_some_and(Compiler::is_busy) {
            this.take_translated();
        }
        let (rip, mode) = (this.cpu().rip, this.mode());
        let code = if translated { this.cache.lookup(rip, mode) } else { None };
        // Without a window, which the host can refuse, the interpreter runs everything.
        let Some((code, base)) = code.zip(this.view_for(code)) else {
            match interpret(this, translated, nested, &mut depth) {
                Next::Again => continue,
                Next::Leave(value) => return value,
            }
        };
        this.block_mut().view_base = base;
        this.block_mut().exit = ExitReason::None as u64;
        let block = this.block;
        // SAFETY: the block is set up, `code` is a live region of it, and `this` is not used across the call.
        let result = unsafe { entry::enter(block, code, rip) };
        // SAFETY: by contract; translated code has returned.
        let this = unsafe { &mut *core };
        this.fold_flags();
        let step = match result {
            UNWIND if this.exit.is_none() && this.block().exit == ExitReason::Budget as u64 => {
                this.finishing = true;
                if nested { Next::Leave(UNWIND) } else { Next::Again }
            }
            // The outermost loop forgets a redispatch; a nested one passes it on.
            UNWIND if nested || this.exit.is_some() => Next::Leave(UNWIND),
            UNWIND => Next::Again,
            FAULT => {
                this.statistics.faults += 1;
                let outcome = this.step_charged();
                let after = this.finish(outcome);
                next(this, after, nested)
            }
            returned => {
                this.cpu_mut().rip = returned;
                if nested && depth == 0 {
                    return returned;
                }
                depth = depth.saturating_sub(1);
                Next::Again
            }
        };
        match step {
            Next::Again => {}
            Next::Leave(value) => return value,
        }
    }
}

/// One turn of the interpreter.
fn interpret(this: &mut Core, translated: bool, nested: bool, depth: &mut u64) -> Next {
    if this.must_step() {
        if this.breakpoints.contains(&this.cpu().rip) && this.block().budget != this.granted {
            this.exit = Some(VmExit::Breakpoint(this.cpu().rip));
            return Next::Again;
        }
        let outcome = this.step_charged();
        let after = this.finish(outcome);
        return next(this, after, nested);
    }
    let key = (this.cpu().rip, this.mode());
    let translatable = translated && !this.untranslatable.contains(&key) && !this.is_expected();
    let threshold = if translatable { this.config.hot_threshold } else { u32::MAX };
    let stored = this.store.as_ref().is_some_and(|store| !store.is_empty());
    let warm_threshold = match (translated, this.cache.knows_other_spaces()) {
        // Other spaces' code is looked through before anything runs.
        (true, true) => 1,
        (true, false) if stored => STORE_THRESHOLD,
        _ => u32::MAX,
    };
    let options = RunOptions { hot_threshold: threshold, warm_threshold, stop_at_calls: nested };
    let leashed = threshold == u32::MAX && this.translates;
    // As in translated code, an instruction that reads the counter is counted itself.
    let tsc = this.read_tsc().wrapping_add(TSC_PER_INSTRUCTION);
    let (block, memory, interpreter) = this.parts();
    block.cpu.tsc = tsc;
    let before = block.budget;
    // What cannot be translated, or is being translated, gets a short leash, so that what follows it can be.
    let mut budget = if leashed { before.min(256) } else { before };
    let leash = budget;
    let outcome = interpreter.run(&mut block.cpu, memory, &mut budget, options);
    let used = leash - budget;
    block.budget -= used;
    this.statistics.interpreted += used as u64;
    this.count_interpreted();
    match outcome {
        Outcome::Warm => {
            let (rip, mode) = (this.cpu().rip, this.mode());
            if this.cache.lookup(rip, mode).is_none() && this.adopt(rip, mode).is_none() {
                this.load_stored();
            }
            Next::Again
        }
        Outcome::Hot => {
            let (rip, mode) = (this.cpu().rip, this.mode());
            // The block may have been reached by interpreted code, and be translated already.
            if this.cache.lookup(rip, mode).is_none() && this.adopt(rip, mode).is_none() {
                this.translate();
            }
            Next::Again
        }
        Outcome::Call if nested && this.cpu().cpl == 3 => {
            *depth += 1;
            Next::Again
        }
        Outcome::Return if nested && this.cpu().cpl == 3 => {
            if *depth == 0 {
                return Next::Leave(this.cpu().rip);
            }
            *depth -= 1;
            Next::Again
        }
        other => {
            let after = this.finish(other);
            next(this, after, nested)
        }
    }
}

thread_local! {
    /// Asking is slow on the main thread: the C library reads the process's memory map.
    static STACK_LIMIT: u64 = find_stack_limit();
}

/// Finds out how far the current thread's stack reaches, for runs on it: that may read `/proc`, which a process that
/// confines itself cannot do later.
pub fn learn_stack_limit() {
    stack_limit();
}

/// Lowest address of the current thread's stack that translated code may reach.
fn stack_limit() -> u64 {
    STACK_LIMIT.with(|limit| *limit)
}

fn find_stack_limit() -> u64 {
    // SAFETY: the attribute object is initialised by the first call, read by the second and destroyed by the third.
    unsafe {
        let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return u64::MAX;
        }
        let mut attributes = attributes.assume_init();
        let mut start = ptr::null_mut();
        let mut size = 0;
        let result = libc::pthread_attr_getstack(&raw const attributes, &raw mut start, &raw mut size);
        libc::pthread_attr_destroy(&raw mut attributes);
        if result == 0 { start as u64 + STACK_RESERVE } else { u64::MAX }
    }
}

/// Restores the previous fault scope and forgets the gate, however the run ends.
struct Running {
    core: *mut Core,
    previous: *const Scope,
}

impl Drop for Running {
    fn drop(&mut self) {
        fault::activate(self.previous);
        // SAFETY: the core outlives the run, and nothing else refers to it when the run ends.
        unsafe { (*self.core).gate = None };
    }
}

fn prepare<'a>(core: &mut Core, gate: &'a mut (dyn ServiceGate + 'a)) {
    let gate: *mut (dyn ServiceGate + 'a) = gate;
    // SAFETY: only the lifetime bound changes; the pointer is dropped by `Running` before the reference ends.
    core.gate =
        Some(unsafe { std::mem::transmute::<*mut (dyn ServiceGate + 'a), *mut (dyn ServiceGate + 'static)>(gate) });
    core.exit = None;
    core.finishing = false;
    core.block_mut().stack_limit = stack_limit();
}

/// See [`super::Machine::run`].
pub(crate) fn run(core: &mut Core, gate: &mut dyn ServiceGate, budget: u64) -> VmExit {
    prepare(core, gate);
    let granted = i64::try_from(budget).unwrap_or(i64::MAX);
    core.granted = granted;
    core.block_mut().budget = granted;
    core.drop_stale();
    let scope = Scope { block: core.block, cache: &raw const core.cache };
    let core: *mut Core = core;
    let running = Running { core, previous: fault::activate(&raw const scope) };
    // SAFETY: `core` comes from an exclusive reference that is not used until the call returns; the scope is active.
    unsafe { dispatch(core, false) };
    drop(running);
    // SAFETY: as above; guest code has stopped.
    let core = unsafe { &mut *core };
    core.statistics.instructions = core.retired();
    core.granted = 0;
    core.block_mut().budget = 0;
    core.exit.take().unwrap_or(VmExit::Budget)
}

/// See [`super::Machine::step`].
pub(crate) fn step(core: &mut Core, gate: &mut dyn ServiceGate) -> Option<VmExit> {
    prepare(core, gate);
    core.drop_stale();
    core.granted = 1;
    let running = Running { core, previous: ptr::null() };
    let outcome = core.step_once();
    core.finish(outcome);
    drop(running);
    core.statistics.instructions += 1;
    core.granted = 0;
    core.block_mut().budget = 0;
    core.exit.take()
}

const _: () = assert!(dr::DR7_FIXED & 0xFF == 0, "DR7's fixed bits must not look like an enabled breakpoint");
