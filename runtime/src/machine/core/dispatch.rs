//! The engines' loop.
//!
//! [`dispatch`] picks, for the current RIP, a translated region or the interpreter, runs it, and deals with how it ended.
//! It is re-entered (*nested*) when translated code calls or jumps to code that has no translation: the interpreter then
//! runs until the guest returns from that function, and the result goes back to the translated caller as if a region
//! had returned it. So cold callees cost no host frames. Whatever cannot be expressed as such a return (a stop, an
//! exception that leaves the function for good, a change of the code itself) unwinds all host frames by returning
//! [`UNWIND`] from each, down to the outermost loop, which goes on from the registers in the block.
#![expect(unsafe_code, reason = "enters translated code and shares the vCPU block with it")]

use std::ptr;

use lstar_interpreter::{Outcome, RunOptions, TSC_PER_INSTRUCTION};
use lstar_translator::abi::{ExitReason, Mode, UNWIND};

use super::stops::Arrival;
use super::{After, Core};
use crate::compiler::Compiler;
use crate::entry::{self, FAULT};
use crate::fault::{self, Scope};
use crate::machine::{ServiceGate, VmExit};

/// Host stack kept free for Rust code below the point where translated code stops making host calls.
const STACK_RESERVE: u64 = 256 << 10;
/// The visit of a block at which regions of earlier runs are looked through.
const STORE_THRESHOLD: u32 = 2;

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
pub(super) unsafe fn dispatch(core: *mut Core, nested: bool) -> u64 {
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
            this.statistics.evictions += 1;
            this.statistics.evicted_regions += this.cache.evict() as u64;
            this.cache_full = false;
        }
        let mode = this.mode();
        if !nested {
            this.space_changed = false;
            if let Some(mode) = mode.filter(|mode| mode.is_user()) {
                this.frames = mode;
            }
        } else if this.space_changed || this.is_foreign_to_frames() {
            this.block_mut().exit = ExitReason::Redispatch as u64;
            return UNWIND;
        }
        let translated = this.translates && !this.finishing && !this.must_redispatch();
        if this.compiler.as_ref().is_some_and(Compiler::is_busy) {
            this.take_translated();
        }
        let rip = this.cpu().rip;
        let code = mode.filter(|_| translated).and_then(|mode| this.cache.lookup(rip, mode));
        // Without a window, which the host can refuse, the interpreter runs everything.
        let Some((code, base)) = code.zip(this.view_for(code)) else {
            match interpret(this, mode.filter(|_| translated), nested, &mut depth) {
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
        this.count_exit(result);
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

impl Core {
    fn count_exit(&mut self, result: u64) {
        let reason = self.block().exit;
        let exits = &mut self.statistics.exits;
        *match result {
            UNWIND if reason == ExitReason::Budget as u64 => &mut exits.budget,
            UNWIND if reason == ExitReason::Helper as u64 => &mut exits.ends,
            UNWIND => &mut exits.redispatches,
            FAULT => &mut exits.faults,
            _ => &mut exits.returns,
        } += 1;
    }
}

/// One turn of the interpreter. `mode` is that of translated code that could go on instead.
fn interpret(this: &mut Core, mode: Option<Mode>, nested: bool, depth: &mut u64) -> Next {
    if this.must_step() {
        let after = if this.is_at_stop() {
            match this.arrive(None, nested) {
                Arrival::Nothing(after) => after,
                Arrival::Executed(outcome) => this.finish(outcome),
            }
        } else {
            let outcome = this.step_charged();
            this.finish(outcome)
        };
        return next(this, after, nested);
    }
    let rip = this.cpu().rip;
    let translatable = mode.is_some_and(|mode| !this.untranslatable.contains(&(rip, mode)) && !this.is_expected(mode));
    let threshold = if translatable { this.config.hot_threshold } else { u32::MAX };
    let stored = this.store.as_ref().is_some_and(|store| !store.is_empty());
    let warm_threshold = match (mode.is_some(), this.cache.knows_other_spaces()) {
        // Other spaces' code is looked through before anything runs.
        (true, true) => 1,
        (true, false) if stored => STORE_THRESHOLD,
        _ => u32::MAX,
    };
    let options = RunOptions {
        hot_threshold: threshold,
        warm_threshold,
        stop_at_calls: nested,
        stop_at_switches: this.hooks.wants_switches(),
        one_block: false,
    };
    let leashed = threshold == u32::MAX && this.translates;
    // What cannot be translated, or is being translated, gets a short leash, so that what follows it can be.
    let budget = this.block().budget;
    let mut outcome = this.run_interpreter(if leashed { budget.min(256) } else { budget }, options);
    if outcome == Outcome::Stop {
        let rip = this.cpu().rip;
        let translatable = |mode: &Mode| !this.untranslatable.contains(&(rip, *mode)) && !this.is_expected(*mode);
        match this.arrive(mode.filter(translatable), nested) {
            Arrival::Nothing(after) => return next(this, after, nested),
            Arrival::Executed(executed) => outcome = executed,
        }
    }
    match outcome {
        Outcome::Warm => {
            if !this.has_code_at_rip() {
                this.load_stored();
            }
            Next::Again
        }
        Outcome::Hot => {
            // The block may have been reached by interpreted code, and be translated already.
            let expected = this.mode().is_some_and(|mode| this.is_expected(mode));
            if !this.has_code_at_rip() && !expected {
                // Visits at the ends of time slices, when nothing is looked up, count too: it may not have been warm.
                this.load_stored();
                if !this.has_code_at_rip() {
                    this.translate();
                }
            }
            Next::Again
        }
        // The function that host frames wait for returns in their mode; elsewhere they are left.
        _ if nested && this.is_foreign_to_frames() && matches!(outcome, Outcome::Call | Outcome::Return) => Next::Again,
        Outcome::Call if nested && this.cpu().cpl == 3 => {
            *depth += 1;
            Next::Again
        }
        Outcome::Return if nested && this.cpu().cpl == 3 => {
            if *depth == 0 {
                // What was interpreted can have unmasked an exception, say, with which translated code must not go on.
                if this.must_redispatch() {
                    this.block_mut().exit = ExitReason::Redispatch as u64;
                    return Next::Leave(UNWIND);
                }
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
    core.choose_dispatch();
    core.exit = None;
    core.finishing = false;
    core.block_mut().stack_limit = stack_limit();
}

/// See [`crate::machine::Machine::run`].
pub(crate) fn run(core: &mut Core, gate: &mut dyn ServiceGate, budget: u64) -> VmExit {
    prepare(core, gate);
    let granted = i64::try_from(budget).unwrap_or(i64::MAX);
    core.granted = granted;
    let end = core.statistics.instructions.wrapping_add(granted as u64);
    let block = core.block_mut();
    (block.budget, block.tsc_at_end) = (granted, end.wrapping_mul(TSC_PER_INSTRUCTION));
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

/// See [`crate::machine::Machine::step`].
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
