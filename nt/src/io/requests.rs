//! Operations that end later: their numbers, and how they ended.

use std::collections::BTreeMap;

use crate::status::Status;

/// Number of a submitted operation.
pub type RequestId = u64;

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Status.
    pub status: Status,
    /// IO_STATUS_BLOCK.Information.
    pub information: u64,
    /// What was read.
    pub data: Vec<u8>,
}

impl Done {
    /// An end without data.
    #[must_use]
    pub fn status(status: Status) -> Self {
        Self { status, information: 0, data: Vec::new() }
    }

    /// An end with data, all of which the caller gets.
    #[must_use]
    pub fn with(status: Status, data: Vec<u8>) -> Self {
        Self { status, information: data.len() as u64, data }
    }
}

/// Operations that have ended and whose callers do not know yet.
#[derive(Debug, Default)]
pub struct Requests {
    done: BTreeMap<RequestId, Done>,
    next: RequestId,
}

impl Requests {
    /// A number for an operation (or for anything else that needs one).
    pub fn number(&mut self) -> RequestId {
        self.next += 1;
        self.next
    }

    /// Ends an operation.
    pub fn finish(&mut self, request: RequestId, done: Done) {
        self.done.insert(request, done);
    }

    /// Whether an operation has ended.
    #[must_use]
    pub fn is_done(&self, request: RequestId) -> bool {
        self.done.contains_key(&request)
    }

    /// How an operation ended, once it has.
    pub fn take(&mut self, request: RequestId) -> Option<Done> {
        self.done.remove(&request)
    }
}
