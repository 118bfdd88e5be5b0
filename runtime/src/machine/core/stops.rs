//! Stops: guest addresses before which neither engine goes on by itself, breakpoints and address hooks.
//!
//! Regions end before a stop and decoded blocks begin at it, so that code elsewhere pays nothing. The instruction at a stop
//! is always executed by the interpreter, alone.
#![expect(unsafe_code, reason = "calls the gate, which is borrowed for the whole run")]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lstar_arch::PAGE_SIZE;
use lstar_interpreter::{Outcome, RunOptions};
use lstar_translator::CompiledRegion;
use lstar_translator::abi::{Helper, Mode, USER_END};

use super::{After, Core};
use crate::hooks::HookEvent;
use crate::machine::VmExit;

/// The addresses, by what is to happen there.
#[derive(Debug, Default)]
pub(super) struct Stops {
    breakpoints: BTreeSet<u64>,
    hooks: BTreeSet<u64>,
    /// Both, and those of [`crate::hooks::Hook::Address`].
    all: BTreeSet<u64>,
}

/// What came of getting to a stop or to hooked code.
pub(super) enum Arrival {
    /// No instruction has executed.
    Nothing(After),
    /// Some have, with this outcome.
    Executed(Outcome),
}

impl Stops {
    pub fn all(&self) -> &BTreeSet<u64> {
        &self.all
    }

    /// Whether any is in the kernel half.
    pub fn any_in_kernel(&self) -> bool {
        self.all.range(USER_END..).next().is_some()
    }
}

impl Core {
    /// Makes these the breakpoints.
    pub fn set_breakpoints(&mut self, breakpoints: BTreeSet<u64>) {
        self.stops.breakpoints = breakpoints;
        self.apply_stops();
    }

    /// Adds (`true`) and removes address hooks; says whether that changed anything.
    pub fn set_hooks(&mut self, changes: &[(u64, bool)]) -> bool {
        let hooks = &mut self.stops.hooks;
        let set = |&(address, on): &(u64, bool)| if on { hooks.insert(address) } else { hooks.remove(&address) };
        let changed = changes.iter().map(set).fold(false, |any, one| any | one);
        self.apply_stops();
        changed
    }

    /// Drops the code that does not fit the stops any more.
    pub(super) fn apply_stops(&mut self) {
        let mut all: BTreeSet<u64> = &self.stops.breakpoints | &self.stops.hooks;
        all.extend(self.hooks.addresses());
        for &address in all.symmetric_difference(&self.stops.all) {
            let on = all.contains(&address);
            let parked = self.parked.values_mut().map(|(interpreter, _)| interpreter);
            for interpreter in parked.chain([&mut self.interpreter]) {
                interpreter.set_stop(address, on);
            }
            // Regions that hold it, or that end at it.
            let page = address & !(PAGE_SIZE - 1);
            let page = page..page.saturating_add(PAGE_SIZE);
            self.statistics.invalidations += self.cache.invalidate(None, &page);
            if let Some(compiler) = &mut self.compiler {
                compiler.invalidate(None, &page);
            }
        }
        self.stops.all = all;
        self.choose_dispatch();
    }

    /// Whether there is anything at which engines stop.
    #[inline]
    pub(super) fn has_stops(&self) -> bool {
        !self.stops.all.is_empty() || !self.hooks.code().is_empty()
    }

    /// Whether a region has nothing to do with stops and hooks: it calls none, and does not end because of one.
    pub(super) fn is_plain(&self, region: &CompiledRegion) -> bool {
        let watched = |rip: &u64| self.stops.all.contains(rip) || self.hooks.code().at(*rip).is_some();
        !region.calls(Helper::Hook) && !region.calls(Helper::HookInside) && !region.links.iter().any(watched)
    }

    /// Whether there is a stop or hooked code at RIP.
    pub(super) fn is_at_stop(&self) -> bool {
        let rip = self.cpu().rip;
        self.has_stops() && (self.stops.all.contains(&rip) || self.hooks.code().at(rip).is_some())
    }

    /// RIP has got to a stop or to hooked code, which translated code of `mode` could take over: does what is wanted there, and
    /// executes the instruction, or the block, unless that leads elsewhere.
    pub(super) fn arrive(&mut self, mode: Option<Mode>, nested: bool) -> Arrival {
        let rip = self.cpu().rip;
        let passed = self.cpu().hooks_passed == rip;
        let stops = self.stops.all.contains(&rip);
        // A run that starts at a breakpoint passes it.
        if stops && !passed && self.stops.breakpoints.contains(&rip) && self.block().budget != self.granted {
            self.exit = Some(VmExit::Breakpoint(rip));
            return Arrival::Nothing(After::Exit);
        }
        if self.hooks.code().at(rip).is_some() {
            if let Some(mode) = mode.filter(|_| !stops)
                && self.hooks.count_visit(rip, mode) >= self.config.hot_threshold
            {
                self.translate();
                return Arrival::Nothing(After::Continue);
            }
            if let Some(after) = self.call_code_hooks() {
                return Arrival::Nothing(after);
            }
        }
        self.cpu_mut().hooks_passed = 0;
        if stops
            && !passed
            && let Some(after) = self.call_hook(rip).or_else(|| self.call_hooks_here(&HookEvent::Address { rip }))
        {
            return Arrival::Nothing(after);
        }
        if stops || self.must_step() {
            return Arrival::Executed(self.step_charged());
        }
        let options = RunOptions { stop_at_calls: nested, one_block: true, ..RunOptions::PLAIN };
        let budget = self.block().budget;
        Arrival::Executed(self.run_interpreter(budget, options))
    }

    /// Calls the gate for the hook at `rip`; `None` where the instruction there comes next.
    fn call_hook(&mut self, rip: u64) -> Option<After> {
        let gate = self.gate.filter(|_| self.stops.hooks.contains(&rip))?;
        // SAFETY: as in `service_gate`. What a panic leaves of the gate is its owner's business, who learns of it.
        let called = catch_unwind(AssertUnwindSafe(|| unsafe { (*gate).address_reached(&mut self.vcpu()) }));
        match called {
            Ok(action) => {
                let stale = self.drop_stale();
                self.follow(action, rip, stale)
            }
            Err(payload) => {
                self.hook_panicked(rip, &*payload);
                Some(After::Exit)
            }
        }
    }
}
