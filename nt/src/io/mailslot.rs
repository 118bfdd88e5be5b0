//! Mailslots: named queues of messages that one process reads and any may write to.
//!
//! Source: the documented behaviour of CreateMailslot, GetMailslotInfo and SetMailslotInfo. Like [`super::pipe`] nothing
//! here knows of threads, guest memory or file objects; the caller finishes the reads that a write has satisfied.

use std::collections::{BTreeMap, VecDeque};

use super::requests::{Done, RequestId};
use crate::status::Status;

/// A mailslot's number.
pub type MailslotId = u64;

/// What FileMailslotQueryInformation tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailslotFacts {
    /// Longest message, 0 for any.
    pub max_message: u32,
    /// Quota of its creation.
    pub quota: u32,
    /// Bytes of the first message.
    pub next: Option<u32>,
    /// Messages.
    pub messages: u32,
    /// How long a read waits, as NT gives times.
    pub read_timeout: i64,
}

#[derive(Debug)]
struct Mailslot {
    name: String,
    max_message: u32,
    quota: u32,
    read_timeout: i64,
    messages: VecDeque<Vec<u8>>,
    readers: VecDeque<(RequestId, usize)>,
}

/// All mailslots.
#[derive(Debug, Default)]
pub struct Mailslots {
    slots: BTreeMap<MailslotId, Mailslot>,
}

impl Mailslots {
    /// Makes a mailslot; `id` is a number that nothing else has.
    pub fn create(
        &mut self,
        id: MailslotId,
        name: &str,
        max_message: u32,
        quota: u32,
        read_timeout: i64,
    ) -> Result<(), Status> {
        if self.find(name).is_some() {
            return Err(Status::OBJECT_NAME_COLLISION);
        }
        let name = name.to_uppercase();
        let (messages, readers) = (VecDeque::new(), VecDeque::new());
        self.slots.insert(id, Mailslot { name, max_message, quota, read_timeout, messages, readers });
        Ok(())
    }

    /// The mailslot of a name, in any case.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<MailslotId> {
        let name = name.to_uppercase();
        self.slots.iter().find(|(_, slot)| slot.name == name).map(|(&id, _)| id)
    }

    /// Adds a message. The result is the read that it ends, if one was waiting.
    pub fn write(&mut self, id: MailslotId, data: Vec<u8>) -> Result<Option<(RequestId, Done)>, Status> {
        // Whoever writes to a mailslot whose owner has gone writes to nobody.
        let slot = self.slots.get_mut(&id).ok_or(Status::FILE_CLOSED)?;
        if slot.max_message != 0 && data.len() > slot.max_message as usize {
            return Err(Status::INVALID_PARAMETER);
        }
        slot.messages.push_back(data);
        let Some(&(request, length)) = slot.readers.front() else { return Ok(None) };
        slot.readers.pop_front();
        Ok(Some((request, slot.take(length))))
    }

    /// Reads the first message. `None`: there is none, and the request waits.
    pub fn read(&mut self, id: MailslotId, request: RequestId, length: usize) -> Result<Option<Done>, Status> {
        let slot = self.slots.get_mut(&id).ok_or(Status::FILE_CLOSED)?;
        if !slot.messages.is_empty() {
            return Ok(Some(slot.take(length)));
        }
        if slot.read_timeout == 0 {
            return Err(Status::IO_TIMEOUT);
        }
        slot.readers.push_back((request, length));
        Ok(None)
    }

    /// Takes a read back; `false` when it waits for nothing here.
    pub fn cancel(&mut self, request: RequestId) -> bool {
        let mut found = false;
        for slot in self.slots.values_mut() {
            slot.readers.retain(|&(reader, _)| {
                found |= reader == request;
                reader != request
            });
        }
        found
    }

    /// The owner closes it: messages are lost; the result is the reads that end.
    pub fn close(&mut self, id: MailslotId) -> Vec<RequestId> {
        let readers = self.slots.remove(&id).map(|slot| slot.readers).unwrap_or_default();
        readers.into_iter().map(|(request, _)| request).collect()
    }

    /// FileMailslotQueryInformation.
    #[must_use]
    pub fn facts(&self, id: MailslotId) -> Option<MailslotFacts> {
        let slot = self.slots.get(&id)?;
        Some(MailslotFacts {
            max_message: slot.max_message,
            quota: slot.quota,
            next: slot.messages.front().map(|message| message.len() as u32),
            messages: slot.messages.len() as u32,
            read_timeout: slot.read_timeout,
        })
    }

    /// FileMailslotSetInformation.
    pub fn set_read_timeout(&mut self, id: MailslotId, timeout: i64) -> Result<(), Status> {
        self.slots.get_mut(&id).ok_or(Status::FILE_CLOSED)?.read_timeout = timeout;
        Ok(())
    }
}

impl Mailslot {
    /// The first message, if it fits: else it stays.
    fn take(&mut self, length: usize) -> Done {
        match self.messages.front() {
            Some(message) if message.len() > length => Done::status(Status::BUFFER_TOO_SMALL),
            _ => Done::with(Status::SUCCESS, self.messages.pop_front().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_in_order_and_whole() {
        let mut slots = Mailslots::default();
        slots.create(1, "Box", 0, 0, 0).unwrap();
        assert_eq!(slots.create(2, "bOX", 0, 0, 0), Err(Status::OBJECT_NAME_COLLISION));
        assert_eq!(slots.read(1, 10, 4), Err(Status::IO_TIMEOUT));
        assert_eq!(slots.write(1, b"first".to_vec()), Ok(None));
        assert_eq!(slots.write(1, Vec::new()), Ok(None));
        assert_eq!(slots.facts(1).map(|facts| (facts.next, facts.messages)), Some((Some(5), 2)));
        assert_eq!(slots.read(1, 10, 4), Ok(Some(Done::status(Status::BUFFER_TOO_SMALL))));
        assert_eq!(slots.read(1, 10, 5), Ok(Some(Done::with(Status::SUCCESS, b"first".to_vec()))));
        assert_eq!(slots.read(1, 10, 5), Ok(Some(Done::with(Status::SUCCESS, Vec::new()))));
        assert_eq!(slots.facts(1).map(|facts| (facts.next, facts.messages)), Some((None, 0)));
    }

    #[test]
    fn a_waiting_read_ends_with_a_write_a_cancel_or_the_owner() {
        let mut slots = Mailslots::default();
        slots.create(1, "x", 3, 0, i64::MAX).unwrap();
        assert_eq!(slots.read(1, 10, 4), Ok(None));
        assert_eq!(slots.write(1, b"long".to_vec()), Err(Status::INVALID_PARAMETER));
        assert_eq!(slots.write(1, b"abc".to_vec()), Ok(Some((10, Done::with(Status::SUCCESS, b"abc".to_vec())))));
        assert_eq!(slots.read(1, 11, 4), Ok(None));
        assert!(slots.cancel(11) && !slots.cancel(11));
        assert_eq!(slots.read(1, 12, 4), Ok(None));
        assert_eq!(slots.close(1), [12]);
        assert_eq!(slots.write(1, b"a".to_vec()), Err(Status::FILE_CLOSED));
        assert_eq!(slots.find("X"), None);
    }
}
