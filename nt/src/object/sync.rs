//! Dispatcher objects: what can be waited for, as plain data.
//!
//! The scheduler decides who runs; these types only say whether a wait is satisfied and what satisfying takes.

use std::collections::VecDeque;

use super::manager::ObjectId;
use crate::status::Status;

/// How a satisfied wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// STATUS_WAIT_0.
    Signaled,
    /// STATUS_ABANDONED_WAIT_0: the mutant's owner ended without releasing it.
    Abandoned,
}

/// EVENT_TYPE and TIMER_TYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Stays signaled until it is reset.
    Notification,
    /// One wait resets it.
    Synchronization,
}

impl EventKind {
    /// From the guest's value.
    pub fn from_raw(value: u32) -> Result<Self, Status> {
        match value {
            0 => Ok(Self::Notification),
            1 => Ok(Self::Synchronization),
            _ => Err(Status::INVALID_PARAMETER),
        }
    }
}

/// An event.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Its kind.
    pub kind: EventKind,
    /// Its state.
    pub signaled: bool,
}

impl Event {
    /// An event in a state.
    #[must_use]
    pub fn new(kind: EventKind, signaled: bool) -> Self {
        Self { kind, signaled }
    }

    /// Sets the state and returns the previous one.
    pub fn set(&mut self, signaled: bool) -> bool {
        std::mem::replace(&mut self.signaled, signaled)
    }

    pub(super) fn satisfy(&mut self) {
        if self.kind == EventKind::Synchronization {
            self.signaled = false;
        }
    }
}

/// A semaphore.
#[derive(Clone, Copy, Debug)]
pub struct Semaphore {
    /// Waits that succeed at once.
    pub count: i32,
    /// Most it can count.
    pub limit: i32,
}

impl Semaphore {
    /// A semaphore, if the counts make sense.
    pub fn new(count: i32, limit: i32) -> Result<Self, Status> {
        if limit <= 0 || count < 0 || count > limit {
            return Err(Status::INVALID_PARAMETER);
        }
        Ok(Self { count, limit })
    }

    /// Adds to the count and returns the previous one.
    pub fn release(&mut self, amount: i32) -> Result<i32, Status> {
        if amount <= 0 {
            return Err(Status::INVALID_PARAMETER);
        }
        match self.count.checked_add(amount).filter(|&n| n <= self.limit) {
            Some(count) => Ok(std::mem::replace(&mut self.count, count)),
            None => Err(Status::SEMAPHORE_LIMIT_EXCEEDED),
        }
    }
}

/// A mutant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mutant {
    /// Owning thread.
    pub owner: Option<u32>,
    /// Acquisitions by the owner.
    pub recursion: u32,
    /// The last owner ended while it held it.
    pub abandoned: bool,
}

impl Mutant {
    /// A mutant, owned at once if `owner` says so.
    #[must_use]
    pub fn new(owner: Option<u32>) -> Self {
        Self { owner, recursion: u32::from(owner.is_some()), abandoned: false }
    }

    /// Whether `thread` could take it.
    #[must_use]
    pub fn is_available(&self, thread: u32) -> bool {
        self.owner.is_none_or(|owner| owner == thread)
    }

    pub(super) fn acquire(&mut self, thread: u32) -> WaitOutcome {
        self.owner = Some(thread);
        self.recursion = self.recursion.saturating_add(1);
        if std::mem::take(&mut self.abandoned) { WaitOutcome::Abandoned } else { WaitOutcome::Signaled }
    }

    /// Releases one acquisition; the result is the count before, as MUTANT counts (0: one acquisition, -1: two ...).
    pub fn release(&mut self, thread: u32) -> Result<i32, Status> {
        if self.owner != Some(thread) {
            return Err(Status::MUTANT_NOT_OWNED);
        }
        let previous = self.current_count();
        self.recursion = self.recursion.saturating_sub(1);
        if self.recursion == 0 {
            self.owner = None;
        }
        Ok(previous)
    }

    /// MUTANT_BASIC_INFORMATION.CurrentCount: 1 when free, then down.
    #[must_use]
    pub fn current_count(&self) -> i32 {
        1i32.saturating_sub_unsigned(self.recursion)
    }

    /// The owner ended: returns whether that made the mutant available.
    pub fn abandon(&mut self, thread: u32) -> bool {
        if self.owner != Some(thread) {
            return false;
        }
        *self = Self { owner: None, recursion: 0, abandoned: true };
        true
    }
}

/// A timer.
#[derive(Clone, Copy, Debug)]
pub struct Timer {
    /// Its kind.
    pub kind: EventKind,
    /// Its state.
    pub signaled: bool,
    /// Interrupt time (100 ns) of the next expiry.
    pub due: Option<u64>,
    /// Period in milliseconds, 0 for one shot.
    pub period_ms: u32,
    /// APC to queue on expiry: thread, routine, context.
    pub apc: Option<(u32, u64, u64)>,
}

impl Timer {
    /// A timer that is not set.
    #[must_use]
    pub fn new(kind: EventKind) -> Self {
        Self { kind, signaled: false, due: None, period_ms: 0, apc: None }
    }

    /// Lets time advance to `now`; returns whether the timer expired.
    pub fn advance(&mut self, now: u64) -> bool {
        let Some(due) = self.due.filter(|&due| due <= now) else { return false };
        self.signaled = true;
        let period = u64::from(self.period_ms) * 10_000;
        // Periods that passed unnoticed are one expiry, as with a clock tick that comes late.
        self.due = (period > 0).then(|| due.saturating_add(((now - due) / period + 1).saturating_mul(period)));
        true
    }

    pub(super) fn satisfy(&mut self) {
        if self.kind == EventKind::Synchronization {
            self.signaled = false;
        }
    }
}

/// A keyed event: threads meet in pairs under a key.
#[derive(Clone, Debug, Default)]
pub struct KeyedEvent {
    /// Threads inside NtWaitForKeyedEvent, with their keys.
    pub waiters: VecDeque<(u32, u64)>,
    /// Threads inside NtReleaseKeyedEvent that found no waiter, with their keys.
    pub releasers: VecDeque<(u32, u64)>,
}

impl KeyedEvent {
    /// A waiter looks for a releaser of `key`, or queues; the result is the thread to wake.
    pub fn wait(&mut self, thread: u32, key: u64) -> Option<u32> {
        Self::meet(&mut self.releasers, &mut self.waiters, thread, key)
    }

    /// A releaser looks for a waiter of `key`, or queues; the result is the thread to wake.
    pub fn release(&mut self, thread: u32, key: u64) -> Option<u32> {
        Self::meet(&mut self.waiters, &mut self.releasers, thread, key)
    }

    /// Forgets a thread whose wait timed out or that ended.
    pub fn forget(&mut self, thread: u32) {
        self.waiters.retain(|&(t, _)| t != thread);
        self.releasers.retain(|&(t, _)| t != thread);
    }

    fn meet(others: &mut VecDeque<(u32, u64)>, own: &mut VecDeque<(u32, u64)>, thread: u32, key: u64) -> Option<u32> {
        match others.iter().position(|&(_, k)| k == key) {
            Some(position) => others.remove(position).map(|(partner, _)| partner),
            None => {
                own.push_back((thread, key));
                None
            }
        }
    }
}

/// One entry of a completion port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletionPacket {
    /// Key of the file, or given by NtSetIoCompletion.
    pub key: u64,
    /// ApcContext of the operation (Win32: the OVERLAPPED's address).
    pub context: u64,
    /// IO_STATUS_BLOCK.Status.
    pub status: Status,
    /// IO_STATUS_BLOCK.Information.
    pub information: u64,
}

/// An I/O completion port.
#[derive(Clone, Debug, Default)]
pub struct IoCompletion {
    /// Finished operations, oldest first.
    pub packets: VecDeque<CompletionPacket>,
    /// Threads meant to run at a time (kept for queries).
    pub concurrency: u32,
    /// Threads whose wait has ended but that have not taken their packet yet.
    claims: Vec<u32>,
}

impl IoCompletion {
    /// An empty port.
    #[must_use]
    pub fn new(concurrency: u32) -> Self {
        Self { concurrency, ..Self::default() }
    }

    /// Promises a packet to a thread; `false` when all packets are promised to others.
    pub fn claim(&mut self, thread: u32) -> bool {
        let free = self.claims.len() < self.packets.len();
        if free {
            self.claims.push(thread);
        }
        free
    }

    /// Packets that a thread with a promise may take.
    #[must_use]
    pub fn unclaimed_by_others(&self, thread: u32) -> usize {
        self.packets.len().saturating_sub(self.claims.iter().filter(|&&claim| claim != thread).count())
    }

    /// The thread has taken its packet, or gives its promise up.
    pub fn release_claim(&mut self, thread: u32) {
        if let Some(index) = self.claims.iter().position(|&claim| claim == thread) {
            self.claims.swap_remove(index);
        }
    }
}

/// A job.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// Processes in it and in the jobs nested in it.
    pub processes: Vec<u32>,
    /// The job that it is nested in.
    pub parent: Option<ObjectId>,
    /// Its processes are being ended by NtTerminateJobObject.
    pub terminating: bool,
    /// Processes that have ever been members.
    pub total_processes: u32,
    /// JOBOBJECT_EXTENDED_LIMIT_INFORMATION, or as much of it as was set.
    pub limits: Vec<u8>,
    /// Port that gets messages, and its key.
    pub completion: Option<(ObjectId, u64)>,
    /// All members have been ended.
    pub signaled: bool,
}
