//! Watched memory: accesses of guest instructions that memory hooks are to be told of.
//!
//! A page with a watched range has its rights *hidden*: they move to other bits of its page-table byte, so that translated code
//! faults on it and the interpreter's short way declines; nobody asks anything elsewhere. The slow way knows the rights all the
//! same. It refuses while the interpreter runs many instructions, notes while it executes a single one, and passes everything that
//! is no guest instruction.

use std::ops::Range;

use lstar_arch::PAGE_SIZE;

use super::half::Half;
use super::views::Views;
use super::{AddressSpace, CODE, PRESENT, Protection, SpaceId, pages};
use crate::hooks::{Hook, HookChange, HookHandler, HookId, Target};

/// The three rights move this far.
const HIDDEN_SHIFT: u32 = 5;
const RIGHTS: u8 = 7;

/// The rights of a page, hidden or not.
#[inline(always)]
pub(super) fn rights(state: u8) -> u8 {
    (state | state >> HIDDEN_SHIFT) & RIGHTS
}

/// Whether they are hidden.
fn is_hidden(state: u8) -> bool {
    state >> HIDDEN_SHIFT != 0
}

/// What becomes of accesses to watched pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Policy {
    #[default]
    Pass,
    Refuse,
    Note,
}

/// A range of memory that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    pub range: Range<u64>,
    pub reads: bool,
    pub writes: bool,
}

impl Watch {
    fn covers(&self, address: u64, size: u64, write: bool) -> bool {
        let wanted = if write { self.writes } else { self.reads };
        wanted && touches(&self.range, address, size)
    }
}

/// Whether an access of `size` bytes, which may wrap, touches a range.
pub(crate) fn touches(range: &Range<u64>, address: u64, size: u64) -> bool {
    range.start < range.end
        && (range.start.wrapping_sub(address) < size || address.wrapping_sub(range.start) < range.end - range.start)
}

/// An access that was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    pub address: u64,
    pub size: u64,
    pub write: bool,
}

/// All watched ranges, and what has happened to them.
#[derive(Debug, Default)]
pub(super) struct Watches {
    list: Vec<Watch>,
    policy: Policy,
    noted: Vec<Noted>,
    pub changes: Vec<HookChange>,
    next_hook: u64,
}

impl Watches {
    /// The page-table byte for a page with these rights and other bits.
    pub fn state(&self, page: u64, plain: u8) -> u8 {
        let all = plain & RIGHTS;
        let (mut reads, mut writes) = (false, false);
        for watch in self.list.iter().filter(|watch| touches(&watch.range, page, PAGE_SIZE)) {
            reads |= watch.reads;
            writes |= watch.writes;
        }
        let visible = match (reads, writes) {
            _ if all == 0 => 0,
            (false, false) => return plain,
            (true, _) => 0,
            (false, true) => all & !Protection::WRITE.bits() | Protection::READ.bits(),
        };
        plain & !RIGHTS | visible | all << HIDDEN_SHIFT
    }
}

impl AddressSpace {
    /// Asks for a hook, as [`crate::Machine::add_hook`] makes it, from a service or a hook: it is there when guest code runs next.
    pub fn add_hook(&mut self, hook: Hook, handler: HookHandler) -> HookId {
        self.request_hook(hook, Target::Handler(Some(handler)))
    }

    /// The same for a hook that calls [`crate::ServiceGate::hooked`].
    pub fn add_gate_hook(&mut self, hook: Hook) -> HookId {
        self.request_hook(hook, Target::Gate)
    }

    /// Asks for the removal of a hook.
    pub fn remove_hook(&mut self, id: HookId) {
        self.change_hooks(HookChange::Remove(id));
    }

    fn request_hook(&mut self, hook: Hook, target: Target) -> HookId {
        let id = HookId(self.watches.next_hook);
        self.watches.next_hook += 1;
        self.change_hooks(HookChange::Add(id, hook, target));
        id
    }

    fn change_hooks(&mut self, change: HookChange) {
        self.watches.changes.push(change);
        // The owner of cached code has something to do.
        self.code_modified = true;
        self.changes = true;
    }

    /// Changes of hooks wanted since the last call.
    pub(crate) fn take_hook_changes(&mut self) -> Vec<HookChange> {
        std::mem::take(&mut self.watches.changes)
    }

    /// Watches these ranges in all spaces, and no others.
    pub(crate) fn set_watches(&mut self, list: Vec<Watch>) {
        if list == self.watches.list {
            return;
        }
        let old = std::mem::replace(&mut self.watches.list, list);
        let ranges: Vec<Range<u64>> = old.iter().chain(&self.watches.list).map(|watch| watch.range.clone()).collect();
        let Self { user, kernel, others, watches, views, current, .. } = self;
        let user_halves = others.iter_mut().map(|(&space, half)| (space, half)).chain([(*current, user)]);
        for (space, half) in user_halves.chain([(*current, kernel)]) {
            for range in &ranges {
                update(half, views, space, range, watches);
            }
        }
        self.epoch = 0;
    }

    /// Whether any memory is watched.
    #[inline]
    pub(crate) fn is_watching(&self) -> bool {
        !self.watches.list.is_empty()
    }

    /// Until [`AddressSpace::end_watching`], accesses to watched pages are refused, with page faults.
    #[inline]
    pub(crate) fn refuse_watched(&mut self) {
        if self.is_watching() {
            self.watches.policy = Policy::Refuse;
        }
    }

    /// Until [`AddressSpace::end_watching`], accesses to watched ranges are noted.
    #[inline]
    pub(crate) fn note_watched(&mut self) {
        if self.is_watching() {
            self.watches.policy = Policy::Note;
        }
    }

    /// Accesses to watched pages are accesses like others.
    #[inline]
    pub(crate) fn end_watching(&mut self) {
        self.watches.policy = Policy::Pass;
    }

    /// Whether the rights of the page that holds `address` are hidden.
    pub(crate) fn is_watched(&self, address: u64) -> bool {
        is_hidden(self.state(address))
    }

    /// The accesses noted since the last call.
    pub(crate) fn take_noted(&mut self) -> Vec<Noted> {
        std::mem::take(&mut self.watches.noted)
    }

    /// Whether any have been noted.
    #[inline]
    pub(crate) fn has_noted(&self) -> bool {
        !self.watches.noted.is_empty()
    }

    /// The state of a page as data accesses see it.
    #[inline]
    pub(super) fn access_state(&self, address: u64) -> u8 {
        let state = self.state(address);
        match self.watches.policy {
            Policy::Refuse => state,
            Policy::Pass | Policy::Note => state | rights(state),
        }
    }

    /// Takes note of an access that has been made, if it is watched.
    #[inline]
    pub(super) fn note(&mut self, address: u64, size: u64, write: bool) {
        if self.watches.policy == Policy::Note
            && self.watches.list.iter().any(|watch| watch.covers(address, size, write))
        {
            self.watches.noted.push(Noted { address, size, write });
        }
    }
}

/// Brings the pages of a half in a range in line with what is watched.
fn update(half: &mut Half, views: &Views, space: SpaceId, range: &Range<u64>, watches: &Watches) {
    let extents: Vec<(u64, u64)> = half.extents.iter().map(|(&start, extent)| (start, start + extent.size)).collect();
    for (start, end) in extents {
        let start = start.max(range.start & !(PAGE_SIZE - 1));
        let end = end.min(range.end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(!(PAGE_SIZE - 1)));
        if start >= end {
            continue;
        }
        for page in pages(start, end - start) {
            let state = half.table.get(page) as u8;
            let plain = state & (CODE | PRESENT) | rights(state);
            half.set_state(page, watches.state(page, plain));
        }
        for (run, size, host) in half.runs(start, end - start) {
            // A host that refuses leaves translated code with too few rights, which costs time, or with too many: then accesses
            // of translated code go unnoticed.
            let _ = views.protect(space, run, size, host);
        }
    }
}
