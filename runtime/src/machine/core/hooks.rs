//! Hooks at work: who is called, when, and what follows. What engines do for it is in the modules named in
//! [`crate::hooks`], [`lstar_arch::hooked`] and `memory/watch.rs`.
#![expect(unsafe_code, reason = "calls the gate, which is borrowed for the whole run")]

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use lstar_arch::delivery::Event;
use lstar_arch::{HookedCode, PAGE_SIZE, Vector};
use lstar_interpreter::Outcome;
use lstar_translator::abi::{Mode, USER_END};
use rustc_hash::FxHashMap;

use super::{After, Core, raised};
use crate::hooks::{Hook, HookChange, HookEvent, HookId, Target, panic_message};
use crate::machine::{GateAction, VmExit};
use crate::memory::watch::{Watch, touches};

/// Blocks of hooked code whose visits are counted at most.
const MOST_COUNTED: usize = 1 << 16;

/// All hooks of a machine, and what has to be known of them quickly.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    list: Vec<(HookId, Hook, Target)>,
    /// Where blocks and instructions are hooked.
    code: Arc<HookedCode>,
    exceptions: bool,
    switches: bool,
    /// The guest's own entry code must run, because hooks are on it or on what it touches.
    wants_entry_code: bool,
    /// Visits of hooked blocks in the interpreter.
    visits: FxHashMap<(u64, Mode), u32>,
    /// Address of the instruction whose accesses are noted.
    noting: u64,
    /// The privilege level that an interpreted instruction has left.
    left_level: Option<u8>,
}

impl Hooks {
    pub fn code(&self) -> &Arc<HookedCode> {
        &self.code
    }

    pub fn wants_entry_code(&self) -> bool {
        self.wants_entry_code
    }

    pub fn wants_switches(&self) -> bool {
        self.switches
    }

    /// Addresses at which engines stop for hooks.
    pub fn addresses(&self) -> impl Iterator<Item = u64> {
        self.list.iter().filter_map(|(_, hook, _)| match hook {
            Hook::Address(address) => Some(*address),
            _ => None,
        })
    }

    /// Counts a visit of the hooked block at `rip`; says how many there have been.
    pub fn count_visit(&mut self, rip: u64, mode: Mode) -> u32 {
        if self.visits.len() >= MOST_COUNTED {
            self.visits.clear();
        }
        let visits = self.visits.entry((rip, mode)).or_default();
        *visits = visits.saturating_add(1);
        *visits
    }

    fn watches(&self) -> Vec<Watch> {
        let watch = |hook: &Hook| match hook.clone() {
            Hook::Memory { range, reads, writes } => Some(Watch { range, reads, writes }),
            _ => None,
        };
        self.list.iter().filter_map(|(_, hook, _)| watch(hook)).collect()
    }

    fn hooked_code(&self) -> HookedCode {
        let blocks = self.list.iter().filter_map(|(_, hook, _)| match hook {
            Hook::Blocks(range) => Some(range.clone()),
            _ => None,
        });
        let instructions = self.list.iter().filter_map(|(_, hook, _)| match hook {
            Hook::Instructions(range) => Some(range.clone()),
            _ => None,
        });
        HookedCode::new(blocks, instructions)
    }
}

/// Whether a hook is to be told of an event.
fn wants(hook: &Hook, event: &HookEvent) -> bool {
    match (hook, event) {
        (Hook::Address(address), HookEvent::Address { rip }) => address == rip,
        (Hook::Blocks(range), HookEvent::Block { rip })
        | (Hook::Instructions(range), HookEvent::Instruction { rip }) => range.contains(rip),
        (Hook::Memory { range, reads, writes }, HookEvent::Memory { address, size, write, .. }) => {
            (if *write { *writes } else { *reads }) && touches(range, *address, *size)
        }
        (Hook::Exceptions, HookEvent::Exception { .. })
        | (Hook::PrivilegeSwitches, HookEvent::PrivilegeSwitch { .. }) => true,
        _ => false,
    }
}

impl Core {
    /// Adds and removes the hooks that have been asked for; says whether there were any.
    pub(super) fn take_hook_changes(&mut self) -> bool {
        let changes = self.memory.take_hook_changes();
        if changes.is_empty() {
            return false;
        }
        let mut ranges = Vec::new();
        for change in changes {
            let hook = match change {
                HookChange::Add(id, hook, target) => {
                    self.hooks.list.push((id, hook.clone(), target));
                    hook
                }
                HookChange::Remove(id) => {
                    let Some(index) = self.hooks.list.iter().position(|(other, ..)| *other == id) else { continue };
                    self.hooks.list.remove(index).1
                }
            };
            if let Hook::Blocks(range) | Hook::Instructions(range) = hook {
                ranges.push(range);
            }
        }
        self.apply_hooks(&ranges);
        true
    }

    /// Brings everything in line with the list of hooks; those on code in `ranges` have changed.
    fn apply_hooks(&mut self, ranges: &[Range<u64>]) {
        let hooks = &mut self.hooks;
        let any = |wanted: fn(&Hook) -> bool| hooks.list.iter().any(|(_, hook, _)| wanted(hook));
        hooks.exceptions = any(|hook| *hook == Hook::Exceptions);
        hooks.switches = any(|hook| *hook == Hook::PrivilegeSwitches);
        let watches = hooks.watches();
        let code = hooks.hooked_code();
        let in_kernel = code.any_in(USER_END, u64::MAX);
        hooks.wants_entry_code = hooks.switches || in_kernel || !watches.is_empty();
        if code != *hooks.code {
            hooks.code = Arc::new(code);
            hooks.visits.clear();
            let code = hooks.code.clone();
            let parked = self.parked.values_mut().map(|(interpreter, _)| interpreter);
            for interpreter in parked.chain([&mut self.interpreter]) {
                interpreter.set_hooked(code.clone());
                for range in ranges {
                    interpreter.invalidate(range.start.saturating_sub(1), range.end);
                }
            }
            for range in ranges {
                // Code that leads into the range, too.
                let pages = range.start.saturating_sub(1) & !(PAGE_SIZE - 1)..range.end;
                self.statistics.invalidations += self.cache.invalidate(None, &pages);
                if let Some(compiler) = &mut self.compiler {
                    compiler.invalidate(None, &pages);
                }
            }
        }
        self.memory.set_watches(watches);
        self.apply_stops();
        self.choose_dispatch();
    }

    /// Calls those who want to know of an event; says what they want. `None` where one has panicked.
    fn call_each(&mut self, event: &HookEvent) -> Option<GateAction> {
        let rip = self.cpu().rip;
        let mut action = GateAction::Resume;
        for index in 0..self.hooks.list.len() {
            let (_, hook, target) = &mut self.hooks.list[index];
            if !wants(hook, event) {
                continue;
            }
            let handler = match target {
                Target::Gate => None,
                Target::Handler(handler) => handler.take(),
            };
            let called = match (handler, self.gate) {
                (Some(mut handler), _) => {
                    let called = catch_unwind(AssertUnwindSafe(|| handler(&mut self.vcpu(), event)));
                    // The list changes between calls only.
                    if let Target::Handler(place) = &mut self.hooks.list[index].2 {
                        *place = Some(handler);
                    }
                    called
                }
                (None, Some(gate)) => catch_unwind(AssertUnwindSafe(|| {
                    // SAFETY: as in `service_gate`. What a panic leaves of the gate is its owner's business, who learns of it.
                    unsafe { (*gate).hooked(&mut self.vcpu(), event) }
                })),
                (None, None) => continue,
            };
            match called {
                Ok(GateAction::Resume) => {}
                Ok(GateAction::Redirect) if action == GateAction::Stop => {}
                Ok(other) => action = other,
                Err(payload) => {
                    self.hook_panicked(rip, &*payload);
                    return None;
                }
            }
        }
        Some(action)
    }

    /// Calls those who want to know of an event. `None` where the guest goes on as if there were no hooks.
    pub(super) fn call_hooks(&mut self, event: &HookEvent) -> Option<After> {
        let rip = self.cpu().rip;
        let Some(action) = self.call_each(event) else { return Some(After::Exit) };
        let stale = self.drop_stale();
        self.follow(action, rip, stale)
    }

    /// The same for what is at RIP, where the instruction comes next: it is not told again if that is not at once.
    pub(super) fn call_hooks_here(&mut self, event: &HookEvent) -> Option<After> {
        let rip = self.cpu().rip;
        let Some(action) = self.call_each(event) else { return Some(After::Exit) };
        let stale = self.drop_stale();
        let after = self.follow(action, rip, stale);
        if after.is_some() && action != GateAction::Redirect {
            self.pass(rip);
        }
        after
    }

    /// What follows from hooks called at `rip`.
    pub(super) fn follow(&mut self, action: GateAction, rip: u64, stale: bool) -> Option<After> {
        match action {
            GateAction::Stop => {
                self.exit = Some(VmExit::Stopped);
                Some(After::Exit)
            }
            GateAction::Resume if !stale && self.cpu().rip == rip => None,
            GateAction::Resume | GateAction::Redirect => Some(After::Redirect),
        }
    }

    /// Ends the run because the hook at `rip` has panicked.
    pub(super) fn hook_panicked(&mut self, rip: u64, payload: &(dyn Any + Send)) {
        self.hook_panic = Some(panic_message(payload));
        self.exit = Some(VmExit::HookPanicked(rip));
    }

    /// RIP has got to hooked code, or perhaps goes on inside a block of it: calls what hooks there are. `None` where the
    /// instruction comes next.
    pub(super) fn call_code_hooks(&mut self) -> Option<After> {
        let rip = self.cpu().rip;
        let cpu = self.cpu_mut();
        let inside = std::mem::take(&mut cpu.inside_block) == rip;
        let passed = std::mem::take(&mut cpu.hooks_passed) == rip;
        if passed {
            return None;
        }
        let block = if inside { None } else { self.call_hooks_here(&HookEvent::Block { rip }) };
        block.or_else(|| self.call_hooks_here(&HookEvent::Instruction { rip }))
    }

    /// The hooks at `rip` have been called, but the instruction there does not come at once.
    pub(super) fn pass(&mut self, rip: u64) {
        if self.cpu().rip == rip {
            self.cpu_mut().hooks_passed = rip;
        }
    }

    /// [`lstar_translator::abi::Helper::Hook`].
    pub fn hook(&mut self, rip: u64) -> After {
        self.cpu_mut().rip = rip;
        match self.call_code_hooks() {
            Some(after) => after,
            None if self.must_redispatch() => {
                self.pass(rip);
                After::Redirect
            }
            None => After::Continue,
        }
    }

    /// Takes note of where the interpreter has got to from `rip` and `level`.
    #[inline]
    pub(super) fn note_position(&mut self, rip: u64, level: u8) {
        if self.hooks.switches && self.cpu().cpl != level {
            self.hooks.left_level = Some(level);
        }
        if !self.has_stops() {
            return;
        }
        let inside = self.interpreter.is_inside_block();
        let cpu = self.cpu_mut();
        if inside {
            cpu.inside_block = cpu.rip;
            // Of a repeated string instruction, some iterations have executed.
            cpu.hooks_passed = if cpu.rip == rip { rip } else { 0 };
        } else {
            (cpu.inside_block, cpu.hooks_passed) = (0, 0);
        }
    }

    /// The privilege level was `from`: counts if it has changed, and calls the hooks.
    pub(super) fn switched(&mut self, from: u8) -> Option<After> {
        let to = self.cpu().cpl;
        if from == to {
            return None;
        }
        self.statistics.privilege_switches += 1;
        if !self.hooks.switches {
            return None;
        }
        self.call_hooks(&HookEvent::PrivilegeSwitch { from, to })
    }

    /// An event is about to be delivered. `None` where it is.
    pub(super) fn call_exception_hooks(&mut self, event: Event) -> Option<After> {
        if !self.hooks.exceptions {
            return None;
        }
        let event = match event {
            Event::Exception(exception) => HookEvent::Exception {
                vector: exception.vector as u8,
                error_code: exception.error_code,
                address: exception.cr2,
                software: exception.software,
            },
            Event::Software(vector) => HookEvent::Exception { vector, error_code: None, address: None, software: true },
            Event::External(_) => return None,
        };
        let rip = self.cpu().rip;
        let Some(action) = self.call_each(&event) else { return Some(After::Exit) };
        self.drop_stale();
        // That code has changed is no reason not to deliver.
        self.follow(action, rip, false)
    }

    /// Before a single instruction is interpreted: its accesses to watched memory are noted. Returns RIP and privilege level.
    #[inline]
    pub(super) fn begin_instruction(&mut self) -> (u64, u8) {
        let (rip, level) = (self.cpu().rip, self.cpu().cpl);
        if self.memory.is_watching() {
            self.hooks.noting = rip;
            self.memory.note_watched();
        }
        (rip, level)
    }

    /// Behind an interpreted instruction: calls the hooks on memory that it has touched and on privilege switches.
    #[inline]
    pub(super) fn call_late_hooks(&mut self, outcome: Outcome) -> Option<After> {
        if self.hooks.left_level.is_none() && !self.memory.has_noted() {
            return None;
        }
        self.call_noted(outcome)
    }

    #[cold]
    fn call_noted(&mut self, outcome: Outcome) -> Option<After> {
        let rip = self.hooks.noting;
        let mut last = None;
        for noted in self.memory.take_noted() {
            // What faults has not happened.
            if !raised(outcome) && last != Some(After::Exit) {
                let event = HookEvent::Memory { rip, address: noted.address, size: noted.size, write: noted.write };
                last = self.call_hooks(&event).or(last);
            }
        }
        if let Some(from) = self.hooks.left_level.take()
            && last != Some(After::Exit)
        {
            let to = self.cpu().cpl;
            last = self.call_hooks(&HookEvent::PrivilegeSwitch { from, to }).or(last);
        }
        last
    }

    /// Whether the interpreter was refused an access to a watched page, which is no fault of the guest's.
    pub(super) fn is_refused(&self, outcome: Outcome) -> bool {
        let Outcome::Exception(exception) = outcome else { return false };
        self.memory.is_watching()
            && exception.vector == Vector::PageFault
            && exception.cr2.is_some_and(|address| self.memory.is_watched(address))
    }
}
