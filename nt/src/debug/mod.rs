//! Debug objects: what a debugger process is told of the processes it debugs, and its answers.
//!
//! A debugged process reports events: its own and its threads' beginning and end, images that it maps and unmaps,
//! exceptions. It stands still from an event until the debugger has continued it; a thread with an exception learns the
//! answer. Events of one process are told one at a time.
//!
//! Source: the documentation of WaitForDebugEvent and ContinueDebugEvent; the layout of DBGUI_WAIT_STATE_CHANGE as public
//! headers (phnt, Wine) have it.

mod report;
mod services;

use std::collections::VecDeque;

pub use services::SERVICES;

use crate::exception::ExceptionRecord;
use crate::process::ProcessId;
use crate::status::Status;
use crate::thread::ThreadId;

/// Number of an event.
pub type EventId = u64;

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A thread was created.
    ThreadCreated {
        /// Where it starts.
        start: u64,
    },
    /// The process was created, or is debugged from now on.
    ProcessCreated {
        /// NT path of its program.
        image: String,
        /// Where that is mapped.
        base: u64,
        /// Where its first thread starts.
        start: u64,
    },
    /// A thread has ended.
    ThreadExited(Status),
    /// The process has ended.
    ProcessExited(Status),
    /// An exception.
    Exception {
        /// Its record.
        record: Box<ExceptionRecord>,
        /// Whether the process has not been asked yet.
        first_chance: bool,
    },
    /// An image was mapped.
    ImageMapped {
        /// NT path of its file.
        image: String,
        /// Where.
        base: u64,
    },
    /// An image was unmapped.
    ImageUnmapped {
        /// Where it was.
        base: u64,
    },
}

/// An event that is not continued yet.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Its number.
    pub id: EventId,
    /// The process.
    pub process: ProcessId,
    /// The thread.
    pub thread: ThreadId,
    /// What happened.
    pub event: Event,
    /// The debugger's thread that it was, or is being, told to.
    told: Option<ThreadId>,
}

/// A debug object.
#[derive(Debug, Default)]
pub struct DebugObject {
    /// DEBUG_KILL_ON_CLOSE: what is debugged ends with it.
    pub kill_on_close: bool,
    events: VecDeque<Pending>,
}

impl DebugObject {
    /// Whether there is something to tell.
    #[must_use]
    pub fn is_signaled(&self) -> bool {
        self.next().is_some()
    }

    /// The first event of a process that the debugger has nothing else of.
    fn next(&self) -> Option<usize> {
        let busy = |process| self.events.iter().any(|event| event.process == process && event.told.is_some());
        self.events.iter().position(|event| event.told.is_none() && !busy(event.process))
    }

    /// Takes the next event for a thread of the debugger. It stays until it is continued.
    fn tell(&mut self, reader: ThreadId) -> Option<EventId> {
        let index = self.next()?;
        let event = self.events.get_mut(index)?;
        event.told = Some(reader);
        Some(event.id)
    }

    fn get(&self, id: EventId) -> Option<&Pending> {
        self.events.iter().find(|event| event.id == id)
    }

    /// Removes the event of a thread that was told.
    fn continued(&mut self, process: ProcessId, thread: ThreadId) -> Option<Pending> {
        let own = |event: &Pending| event.process == process && event.thread == thread && event.told.is_some();
        let index = self.events.iter().position(own)?;
        self.events.remove(index)
    }

    /// Removes all events of a process.
    fn forget(&mut self, process: ProcessId) -> Vec<Pending> {
        let (gone, kept): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.events).into_iter().partition(|event| event.process == process);
        self.events = kept;
        gone.into()
    }

    /// Whether a process waits for the debugger.
    fn holds(&self, process: ProcessId) -> bool {
        self.events.iter().any(|event| event.process == process)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(id: EventId, process: ProcessId, thread: ThreadId) -> Pending {
        Pending { id, process, thread, event: Event::ImageUnmapped { base: 0 }, told: None }
    }

    #[test]
    fn events_of_a_process_are_told_one_at_a_time() {
        let mut object = DebugObject::default();
        object.events.extend([pending(1, 4, 8), pending(2, 4, 12), pending(3, 20, 24)]);
        assert_eq!(object.tell(100), Some(1));
        assert_eq!(object.tell(100), Some(3), "another process does not wait for the first one");
        assert!(!object.is_signaled());
        assert!(object.continued(4, 12).is_none(), "it has not been told yet");
        assert_eq!(object.continued(4, 8).map(|event| event.id), Some(1));
        assert!(object.is_signaled() && object.holds(4));
        assert_eq!(object.tell(100), Some(2));
        assert_eq!(object.forget(4).len(), 1);
        assert!(!object.holds(4) && object.holds(20));
    }
}
