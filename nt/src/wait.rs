//! What a blocked thread waits for.

use std::fmt;

use crate::kernel::Kernel;
use crate::service::{Call, Outcome};
use crate::status::Status;
use crate::thread::ThreadId;

/// A test that the scheduler repeats whenever something may have changed. `Some` ends the wait with that status; what a
/// satisfied wait takes (a count, a packet) must be taken in the same call.
pub type Condition = Box<dyn FnMut(&mut Kernel, ThreadId) -> Option<Status>>;

/// Runs in the context of the waiting thread when its wait has ended, before it returns to its caller.
pub type Continuation = Box<dyn FnOnce(&mut Call<'_, '_>, Status) -> Outcome>;

/// A wait that a service asks for. See [`Outcome::Wait`].
pub struct Wait {
    /// When it is satisfied.
    pub condition: Condition,
    /// Interrupt time (100 ns units, see the clock) at which it ends with STATUS_TIMEOUT; `None`: never.
    pub deadline: Option<u64>,
    /// User APCs and alerts end it.
    pub alertable: bool,
    /// The host may end it, by input.
    pub on_host: bool,
    /// What remains to be done then; without it the thread returns with the wait's status.
    pub then: Option<Continuation>,
    /// What for, for traces and the report of a deadlock.
    pub reason: &'static str,
}

impl Wait {
    /// Waits for `condition`, for ever and not alertably.
    pub fn until(
        reason: &'static str,
        condition: impl FnMut(&mut Kernel, ThreadId) -> Option<Status> + 'static,
    ) -> Self {
        Self { condition: Box::new(condition), deadline: None, alertable: false, on_host: false, then: None, reason }
    }

    /// Ends at an interrupt time with STATUS_TIMEOUT.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<u64>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Lets user APCs and alerts end it.
    #[must_use]
    pub fn alertable(mut self, alertable: bool) -> Self {
        self.alertable = alertable;
        self
    }

    /// Says that input on the host may end it.
    #[must_use]
    pub fn on_host(mut self) -> Self {
        self.on_host = true;
        self
    }

    /// Runs `then` when it has ended.
    #[must_use]
    pub fn then(mut self, then: impl FnOnce(&mut Call<'_, '_>, Status) -> Outcome + 'static) -> Self {
        self.then = Some(Box::new(then));
        self
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("reason", &self.reason).field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
