//! The machine: one virtual processor, its memory, and the engines that run guest code on it.

pub(crate) mod core;
mod coverage;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

pub use coverage::CoveredBlock;
use lstar_arch::CpuModel;
pub use lstar_translator::TranslatorConfig;

use crate::code_store::CodeStore;
use crate::hooks::{Hook, HookEvent, HookHandler, HookId};
use crate::memory::{AddressSpace, MapError};
use crate::vcpu::Vcpu;

/// Which engine executes guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Engine {
    /// The interpreter alone.
    Interpreter,
    /// The interpreter for cold code, translated regions for the rest.
    #[default]
    Translator,
}

/// How SYSCALL reaches a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SyscallDispatch {
    /// Through the guest kernel's own entry code, always.
    Architectural,
    /// By the SYSCALL helper itself, as long as LSTAR points at unmodified entry code.
    #[default]
    Direct,
}

/// Settings of a [`Machine`].
#[derive(Clone, Copy, Debug)]
pub struct MachineConfig {
    /// Which engine.
    pub engine: Engine,
    /// How SYSCALL is lowered in translated code.
    pub dispatch: SyscallDispatch,
    /// What CPUID says.
    pub model: CpuModel,
    /// Most bytes of guest memory that can be committed.
    pub memory_limit: u64,
    /// Visits of a block before its region is translated.
    pub hot_threshold: u32,
    /// Translate on another thread. What the guest does is the same; how far the interpreter gets meanwhile is not.
    pub background: bool,
    /// Settings of the translator; the instruction sets are those of the model.
    pub translator: TranslatorConfig,
    /// Bytes of host code kept at most. When they are used up, code that has changed goes, and of the rest the older.
    pub code_cache_size: usize,
    /// Most guest instructions in one region.
    pub region_limit: usize,
    /// Keep account of the basic blocks that are executed: see [`Machine::coverage`]. No code store is used then.
    pub coverage: bool,
    /// Changes code on its way to the translator (address, bytes, region limit): how tests plant a bug to be found.
    #[doc(hidden)]
    pub mistranslate: Option<fn(u64, &mut [u8], usize)>,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            engine: Engine::default(),
            dispatch: SyscallDispatch::default(),
            model: CpuModel::default(),
            memory_limit: 16 << 30,
            hot_threshold: 1000,
            background: false,
            translator: TranslatorConfig::default(),
            code_cache_size: 256 << 20,
            region_limit: 2000,
            coverage: false,
            mistranslate: None,
        }
    }
}

/// What the service gate wants after serving a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateAction {
    /// Go on behind the gate instruction. RIP and privilege are as they were; other registers may have changed.
    Resume,
    /// Go on with whatever state the processor now has (another thread, another RIP or privilege).
    Redirect,
    /// Leave [`Machine::run`] with [`VmExit::Stopped`]; the processor's state is kept.
    Stop,
}

/// What has become of a system call that was offered to [`ServiceGate::system_call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemCall {
    /// It was served and has come back: SYSRETQ has returned behind SYSCALL, TF, RF and AC are clear, MXCSR masks all exceptions,
    /// and no other register has changed than by the guest's entry and exit code.
    Returned,
    /// Nothing, and the registers are unchanged: SYSCALL is to execute and the guest's code to run.
    Declined,
    /// It was served and is behind the gate or behind SYSRETQ: as [`GateAction::Resume`].
    Resume,
    /// As [`GateAction::Redirect`].
    Redirect,
    /// As [`GateAction::Stop`].
    Stop,
}

impl From<GateAction> for SystemCall {
    fn from(action: GateAction) -> Self {
        match action {
            GateAction::Resume => Self::Resume,
            GateAction::Redirect => Self::Redirect,
            GateAction::Stop => Self::Stop,
        }
    }
}

/// Serves the reserved gate instruction, VMCALL at CPL 0.
///
/// When called, RIP is behind the instruction, and RAX says what is asked for.
pub trait ServiceGate {
    /// Serves one request.
    fn service(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction;

    /// Offers the work of SYSCALL and the guest's entry code at the system call of 64-bit code at CPL 3 that ends at RIP;
    /// only with [`SyscallDispatch::Direct`] in translated code.
    ///
    /// The state must be exactly what that code would have left.
    fn system_call(&mut self, vcpu: &mut Vcpu<'_>) -> SystemCall {
        let _ = vcpu;
        SystemCall::Declined
    }

    /// RIP has got to a hooked address ([`Machine::hook_address`]); the instruction there has not executed. With
    /// [`GateAction::Resume`] it executes next, unless RIP has been changed. A panic ends the run with
    /// [`VmExit::HookPanicked`].
    fn address_reached(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        let _ = vcpu;
        GateAction::Resume
    }

    /// A hook that calls the gate ([`Machine::add_gate_hook`]) has something to tell. With [`GateAction::Resume`] the guest goes
    /// on as if there were no hook, unless RIP has been changed; with [`GateAction::Stop`] the run ends, and what was about to
    /// happen happens when the next one begins. A panic ends the run with [`VmExit::HookPanicked`].
    fn hooked(&mut self, vcpu: &mut Vcpu<'_>, event: &HookEvent) -> GateAction {
        let _ = (vcpu, event);
        GateAction::Resume
    }

    /// Code that was fetched from these guest addresses has been overwritten, unmapped or made non-executable.
    fn code_changed(&mut self, range: Range<u64>) {
        let _ = range;
    }

    /// An instruction without implementation is about to raise #UD: where, and its text. Reported once per address.
    fn unimplemented_instruction(&mut self, rip: u64, text: &str) {
        let _ = (rip, text);
    }
}

/// Why [`Machine::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// The budget of instructions is used up.
    Budget,
    /// The service gate asked to stop.
    Stopped,
    /// HLT at CPL 0.
    Halted,
    /// An exception could not be delivered, nor could the double fault: the processor has shut down.
    Shutdown,
    /// RIP has reached a breakpoint ([`Machine::set_breakpoints`]); the instruction there has not executed.
    Breakpoint(u64),
    /// A hook has panicked when RIP was there. What it was to be told of has not happened yet, if that was still to come. See
    /// [`Machine::take_hook_panic`].
    HookPanicked(u64),
}

/// How often translated code was left for the engines' loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// To code that is not translated, by a return.
    pub returns: u64,
    /// By a host fault.
    pub faults: u64,
    /// The instruction budget was used up.
    pub budget: u64,
    /// To go on in another way: another mode or space, changed code, a full host stack.
    pub redispatches: u64,
    /// A helper has ended the run.
    pub ends: u64,
}

/// What happened so far.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// Guest instructions retired.
    pub instructions: u64,
    /// Of these, by the interpreter.
    pub interpreted: u64,
    /// Regions translated.
    pub regions: u64,
    /// Of these, of 32-bit code.
    pub regions_32bit: u64,
    /// Regions taken from a store instead.
    pub regions_loaded: u64,
    /// Guest basic blocks in them.
    pub blocks: u64,
    /// Guest instructions in them.
    pub translated_instructions: u64,
    /// Bytes of host code made.
    pub host_code_bytes: u64,
    /// Time spent in translation.
    pub translation_time: Duration,
    /// SYSCALL instructions executed.
    pub syscalls: u64,
    /// Changes of privilege level, in either direction.
    pub privilege_switches: u64,
    /// Exceptions and software interrupts delivered.
    pub exceptions: u64,
    /// Host faults taken in translated code.
    pub faults: u64,
    /// Regions dropped because their guest code changed.
    pub invalidations: u64,
    /// Times that the code memory was full.
    pub evictions: u64,
    /// Regions in use that were dropped then.
    pub evicted_regions: u64,
    /// Why translated code was left for the engines' loop.
    pub exits: Exits,
    /// Calls of helpers by translated code, by name, but for SYSCALL and those that only compute something.
    pub helper_calls: BTreeMap<&'static str, u64>,
    /// Instructions translated to a call of the interpreter, by name.
    pub fallbacks: BTreeMap<String, u64>,
}

/// A region that was translated ahead: see [`Machine::translate_ahead`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Guest addresses that it leads to by branches and calls.
    pub links: Vec<u64>,
    /// Guest instructions in it.
    pub instructions: u32,
    /// It was not in the store before, and is now.
    pub is_new: bool,
}

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Guest memory could not be reserved.
    #[error("cannot reserve guest memory: {0}")]
    Memory(#[from] MapError),
    /// The host cannot run translated code.
    #[error("cannot set up translation: {0}")]
    Translation(String),
}

/// One virtual processor with its memory.
#[derive(Debug)]
pub struct Machine {
    pub(crate) core: Box<core::Core>,
}

impl Machine {
    /// A machine with empty memory and a processor at CPL 0 in 64-bit mode.
    pub fn new(config: MachineConfig) -> Result<Self, MachineError> {
        Ok(Self { core: core::Core::new(config)? })
    }

    /// Guest memory.
    pub fn memory(&mut self) -> &mut AddressSpace {
        &mut self.core.memory
    }

    /// The stopped processor.
    pub fn vcpu(&mut self) -> Vcpu<'_> {
        self.core.vcpu()
    }

    /// What happened so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.core.statistics()
    }

    /// The settings the machine was made with.
    #[must_use]
    pub fn config(&self) -> &MachineConfig {
        &self.core.config
    }

    /// Makes these the addresses at which [`Machine::run`] stops before executing. A run that starts on one executes it.
    /// Only the instructions at breakpoints are slow.
    pub fn set_breakpoints(&mut self, addresses: BTreeSet<u64>) {
        self.core.set_breakpoints(addresses);
    }

    /// From now on, [`ServiceGate::address_reached`] is called whenever RIP gets to `address`, in whatever address space
    /// and privilege level, before the instruction there executes. Code elsewhere runs as fast as before; what was translated
    /// or decoded from the address's page is made anew. [`Machine::step`] calls no hooks. Says whether it was new.
    pub fn hook_address(&mut self, address: u64) -> bool {
        self.core.set_hooks(&[(address, true)])
    }

    /// Removes what [`Machine::hook_address`] has added; says whether there was anything.
    pub fn unhook_address(&mut self, address: u64) -> bool {
        self.core.set_hooks(&[(address, false)])
    }

    /// From now on, `handler` is called when what the hook says happens, after the handlers of earlier hooks. Code that has nothing
    /// to do with it runs as fast as before. Hooks can be added and removed from handlers and services, too
    /// ([`AddressSpace::add_hook`]). [`Machine::step`] calls no hooks on code.
    pub fn add_hook(&mut self, hook: Hook, handler: HookHandler) -> HookId {
        let id = self.core.memory.add_hook(hook, handler);
        self.core.drop_stale();
        id
    }

    /// The same for a hook that calls [`ServiceGate::hooked`].
    pub fn add_gate_hook(&mut self, hook: Hook) -> HookId {
        let id = self.core.memory.add_gate_hook(hook);
        self.core.drop_stale();
        id
    }

    /// Removes a hook; code that it was on is made anew.
    pub fn remove_hook(&mut self, id: HookId) {
        self.core.memory.remove_hook(id);
        self.core.drop_stale();
    }

    /// The message of the hook whose panic ended a run with [`VmExit::HookPanicked`].
    pub fn take_hook_panic(&mut self) -> Option<String> {
        self.core.hook_panic.take()
    }

    /// Drops all translated and decoded code; regions made from now on hold at most `region_limit` instructions.
    pub fn retranslate(&mut self, region_limit: usize) {
        self.core.retranslate(region_limit);
    }

    /// Uses the regions in `store`, and keeps new ones there.
    pub fn use_code_store(&mut self, store: CodeStore) {
        if !self.core.config.coverage {
            self.core.store = Some(store);
        }
    }

    /// What a key of a [`CodeStore`] for this machine must contain.
    pub fn translation_fingerprint(&self) -> Result<String, MachineError> {
        self.core.fingerprint()
    }

    /// Writes new regions to the store, if there is one.
    pub fn save_code(&mut self) -> std::io::Result<bool> {
        self.core.store.as_mut().map_or(Ok(false), CodeStore::save)
    }

    /// With [`MachineConfig::coverage`], the basic blocks executed so far, kernel code included, by space and address.
    /// Code that runs instruction by instruction (single steps, breakpoints) does not count.
    pub fn coverage(&mut self) -> Vec<CoveredBlock> {
        self.core.coverage()
    }

    /// Translates the region of 64-bit user code at `entry`, whether it has run or not, for the store
    /// ([`Machine::use_code_store`]); `None` where there is no code. Regions that depend on where indirect jumps go are left to
    /// runs, which know.
    pub fn translate_ahead(&mut self, entry: u64) -> Result<Option<Ahead>, MachineError> {
        self.core.translate_ahead(entry)
    }

    /// Host address and size of each region in use, and the guest address it begins at.
    #[must_use]
    pub fn regions(&self) -> Vec<(Range<u64>, u64)> {
        self.core.cache.regions().collect()
    }

    /// Number of points of the translated code in use that can fault. See [`Machine::force_fault`].
    #[must_use]
    pub fn fault_sites(&self) -> usize {
        self.core.cache.site_count()
    }

    /// Makes the one of [`Machine::fault_sites`] with this number fault whenever it is reached, or none any more; the
    /// guest does not notice. A test of the recovery of guest state.
    pub fn force_fault(&mut self, number: Option<usize>) {
        self.core.cache.force_fault(number);
    }

    /// Runs guest code for `budget` instructions, or until something else ends it.
    pub fn run(&mut self, gate: &mut dyn ServiceGate, budget: u64) -> VmExit {
        core::run(&mut self.core, gate, budget)
    }

    /// Executes one guest instruction in the interpreter; delivering an exception, or serving the gate, counts as part
    /// of it. `None` when there is no reason to stop.
    pub fn step(&mut self, gate: &mut dyn ServiceGate) -> Option<VmExit> {
        core::step(&mut self.core, gate)
    }
}
