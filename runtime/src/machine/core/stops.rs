//! Stops: guest addresses before which neither engine goes on by itself, breakpoints and address hooks.
//!
//! Regions end before a stop and decoded blocks begin at it, so that code elsewhere pays nothing. The instruction at a stop
//! is always executed by the interpreter, alone.
#![expect(unsafe_code, reason = "calls the gate, which is borrowed for the whole run")]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lstar_arch::PAGE_SIZE;
use lstar_interpreter::Outcome;
use lstar_translator::abi::USER_END;

use super::{After, Core};
use crate::machine::{GateAction, VmExit};

/// The addresses, by what is to happen there.
#[derive(Debug, Default)]
pub(super) struct Stops {
    breakpoints: BTreeSet<u64>,
    hooks: BTreeSet<u64>,
    /// Both.
    all: BTreeSet<u64>,
    /// A stop whose instruction has executed in part (a repeated string instruction): the rest of it is no new arrival.
    passing: Option<u64>,
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
    fn apply_stops(&mut self) {
        let all: BTreeSet<u64> = &self.stops.breakpoints | &self.stops.hooks;
        for &address in all.symmetric_difference(&self.stops.all) {
            let on = all.contains(&address);
            let parked = self.parked.values_mut().map(|(interpreter, _)| interpreter);
            for interpreter in parked.chain([&mut self.interpreter]) {
                interpreter.set_stop(address, on);
            }
            if on {
                let page = address & !(PAGE_SIZE - 1);
                let page = page..page.saturating_add(PAGE_SIZE);
                self.statistics.invalidations += self.cache.invalidate(None, &page);
                if let Some(compiler) = &mut self.compiler {
                    compiler.invalidate(None, &page);
                }
            }
        }
        self.stops.all = all;
    }

    /// Whether there is a stop at RIP.
    pub(super) fn is_at_stop(&self) -> bool {
        !self.stops.all.is_empty() && self.stops.all.contains(&self.cpu().rip)
    }

    /// RIP has got to a stop: does what is wanted there, and executes the instruction unless that leads elsewhere.
    pub(super) fn arrive(&mut self) -> After {
        let rip = self.cpu().rip;
        if self.stops.passing.take() != Some(rip) {
            // A run that starts at a breakpoint passes it.
            if self.stops.breakpoints.contains(&rip) && self.block().budget != self.granted {
                self.exit = Some(VmExit::Breakpoint(rip));
                return After::Exit;
            }
            if self.stops.hooks.contains(&rip)
                && let Some(after) = self.call_hook(rip)
            {
                return after;
            }
        }
        let outcome = self.step_charged();
        if outcome == Outcome::Retired && self.cpu().rip == rip {
            self.stops.passing = Some(rip);
        }
        self.finish(outcome)
    }

    /// Calls the gate for the hook at `rip`; `None` where the instruction there comes next.
    fn call_hook(&mut self, rip: u64) -> Option<After> {
        let gate = self.gate?;
        // SAFETY: as in `service_gate`. What a panic leaves of the gate is its owner's business, who learns of it.
        let called = catch_unwind(AssertUnwindSafe(|| unsafe { (*gate).address_reached(&mut self.vcpu()) }));
        let action = match called {
            Ok(action) => action,
            Err(payload) => {
                let text = payload.downcast_ref::<&str>().map(ToString::to_string);
                let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
                self.hook_panic = Some(text.unwrap_or_else(|| "no message".to_owned()));
                self.exit = Some(VmExit::HookPanicked(rip));
                return Some(After::Exit);
            }
        };
        let stale = self.drop_stale();
        match action {
            GateAction::Stop => {
                self.exit = Some(VmExit::Stopped);
                Some(After::Exit)
            }
            GateAction::Resume if !stale && self.cpu().rip == rip => None,
            GateAction::Resume | GateAction::Redirect => Some(After::Redirect),
        }
    }
}
