//! Watched directories: what NtNotifyChangeDirectoryFile is told.
//!
//! Each open directory can be watched. Filter and depth are those of the first request on it. From then on changes are
//! kept for it, up to the size of that request's buffer; a request takes what is there, or waits for the next change.
//! The guest's own changes are seen, those of other programs of the host are not.
//!
//! Source: the documentation of ReadDirectoryChangesW and FILE_NOTIFY_INFORMATION.

use std::collections::{BTreeMap, VecDeque};

use super::path::fold;
use super::requests::{Done, RequestId};
use crate::status::Status;

/// FILE_NOTIFY_CHANGE_*: what may have changed.
pub mod filter {
    /// A file's name.
    pub const FILE_NAME: u32 = 0x1;
    /// A directory's name.
    pub const DIRECTORY_NAME: u32 = 0x2;
    /// Attributes.
    pub const ATTRIBUTES: u32 = 0x4;
    /// A file's size.
    pub const SIZE: u32 = 0x8;
    /// Time of the last write.
    pub const LAST_WRITE: u32 = 0x10;
    /// Time of the last access.
    pub const LAST_ACCESS: u32 = 0x20;
    /// All bits with a meaning.
    pub const VALID: u32 = 0xFFF;
}

/// FILE_ACTION_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// There is a new name.
    Added = 1,
    /// A name is gone.
    Removed = 2,
    /// Something else about it changed.
    Modified = 3,
    /// It was renamed from this name.
    RenamedOld = 4,
    /// It was renamed to this name.
    RenamedNew = 5,
}

/// Number of an opening of a directory.
pub type OpeningId = u64;

#[derive(Debug)]
struct Watch {
    volume: usize,
    /// Path, without case.
    path: Vec<String>,
    filter: u32,
    subtree: bool,
    /// Bytes of changes that are kept while nobody asks.
    room: usize,
    kept: Vec<(Action, String)>,
    /// More happened than was kept.
    overflow: bool,
    requests: VecDeque<(RequestId, usize)>,
}

/// All watched directories.
#[derive(Debug, Default)]
pub struct Changes {
    watches: BTreeMap<OpeningId, Watch>,
    done: Vec<(RequestId, Done)>,
}

impl Changes {
    /// Whether anyone watches anything.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        !self.watches.is_empty()
    }

    /// A request of `length` bytes for what changes in an open directory.
    #[expect(clippy::too_many_arguments, reason = "a request has as many facts")]
    pub fn watch(
        &mut self,
        opening: OpeningId,
        volume: usize,
        path: &[String],
        wanted: u32,
        subtree: bool,
        request: RequestId,
        length: usize,
    ) {
        let watch = self.watches.entry(opening).or_insert_with(|| Watch {
            volume,
            path: path.iter().map(|part| fold(part)).collect(),
            filter: wanted,
            subtree,
            room: length,
            kept: Vec::new(),
            overflow: false,
            requests: VecDeque::new(),
        });
        watch.requests.push_back((request, length));
        self.done.extend(watch.answer());
    }

    /// Something happened to paths of a volume, all by one operation. `changed` has the `filter` bits of it.
    pub fn report(&mut self, volume: usize, changed: u32, what: &[(Action, &[String])]) {
        for watch in self.watches.values_mut().filter(|w| w.volume == volume && w.filter & changed != 0) {
            for (action, path) in what {
                watch.note(*action, path);
            }
            self.done.extend(watch.answer());
        }
    }

    /// A watched directory is closed, or gone: its requests end.
    pub fn close(&mut self, opening: OpeningId, status: Status) {
        let requests = self.watches.remove(&opening).map(|watch| watch.requests).unwrap_or_default();
        self.done.extend(requests.into_iter().map(|(request, _)| (request, Done::status(status))));
    }

    /// Takes a request back; `false` when it waits for nothing here.
    pub fn cancel(&mut self, request: RequestId) -> bool {
        let mut found = false;
        for watch in self.watches.values_mut() {
            watch.requests.retain(|&(waiting, _)| {
                found |= waiting == request;
                waiting != request
            });
        }
        found
    }

    /// Requests that have ended since the last call.
    pub fn take_done(&mut self) -> Vec<(RequestId, Done)> {
        std::mem::take(&mut self.done)
    }
}

impl Watch {
    /// Keeps a change, if it is one below this directory.
    fn note(&mut self, action: Action, path: &[String]) {
        let Some((above, below)) = path.split_at_checked(self.path.len()) else { return };
        let inside = above.iter().zip(&self.path).all(|(part, own)| fold(part) == *own);
        if !inside || below.is_empty() || below.len() > 1 && !self.subtree {
            return;
        }
        let name = below.join("\\");
        // One write after another is one change until somebody has been told.
        if action == Action::Modified && self.kept.last().is_some_and(|last| *last == (action, name.clone())) {
            return;
        }
        self.kept.push((action, name));
        if self.requests.is_empty() && encode(&self.kept).len() > self.room {
            self.overflow = true;
            self.kept.clear();
        }
    }

    /// Gives what was kept to the first request.
    fn answer(&mut self) -> Option<(RequestId, Done)> {
        if self.kept.is_empty() && !self.overflow {
            return None;
        }
        let (request, length) = self.requests.pop_front()?;
        let bytes = encode(&self.kept);
        self.kept.clear();
        let lost = std::mem::take(&mut self.overflow) || bytes.len() > length;
        Some((request, if lost { Done::status(Status::NOTIFY_ENUM_DIR) } else { Done::with(Status::SUCCESS, bytes) }))
    }
}

/// FILE_NOTIFY_INFORMATION records: offset of the next one, action, bytes of the name, name.
fn encode(changes: &[(Action, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut last = 0;
    for (action, name) in changes {
        let at = bytes.len().next_multiple_of(4);
        bytes.resize(at, 0);
        if at > 0 {
            bytes.splice(last..last + 4, ((at - last) as u32).to_le_bytes());
        }
        last = at;
        let units: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for word in [0, *action as u32, units.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(units);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<String> {
        text.split('\\').map(str::to_owned).collect()
    }

    fn watching(subtree: bool, room: usize) -> Changes {
        let mut changes = Changes::default();
        changes.watch(1, 0, &path("Dir"), filter::FILE_NAME, subtree, 10, room);
        changes
    }

    #[test]
    fn the_first_change_that_passes_ends_a_request() {
        let mut changes = watching(false, 100);
        changes.report(1, filter::FILE_NAME, &[(Action::Added, &path("dir\\x"))]);
        changes.report(0, filter::SIZE, &[(Action::Modified, &path("dir\\x"))]);
        changes.report(0, filter::FILE_NAME, &[(Action::Added, &path("dir\\sub\\x"))]);
        changes.report(0, filter::FILE_NAME, &[(Action::Added, &path("x"))]);
        assert_eq!(changes.take_done(), []);
        changes.report(0, filter::FILE_NAME, &[(Action::Added, &path("dIR\\Xy"))]);
        let record = [0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, b'X', 0, b'y', 0];
        assert_eq!(changes.take_done(), [(10, Done::with(Status::SUCCESS, record.to_vec()))]);
    }

    #[test]
    fn changes_are_kept_between_requests_as_far_as_there_is_room() {
        let mut changes = watching(true, 40);
        let (old, new) = (path("dir\\a"), path("dir\\s\\b"));
        changes.report(0, filter::FILE_NAME, &[(Action::RenamedOld, &old), (Action::RenamedNew, &new)]);
        let (_, done) = changes.take_done().remove(0);
        assert_eq!((done.data[0], done.information), (16, 34), "the second record is aligned");
        changes.report(0, filter::FILE_NAME, &[(Action::Added, &old)]);
        changes.watch(1, 0, &path("Dir"), 0, false, 11, 100);
        assert_eq!(changes.take_done().remove(0).1.information, 14);
        for _ in 0..4 {
            changes.report(0, filter::FILE_NAME, &[(Action::Added, &old)]);
        }
        changes.watch(1, 0, &path("Dir"), 0, false, 12, 100);
        assert_eq!(changes.take_done(), [(12, Done::status(Status::NOTIFY_ENUM_DIR))]);
    }

    #[test]
    fn requests_end_with_the_directory() {
        let mut changes = watching(false, 0);
        assert!(changes.cancel(10) && !changes.cancel(10));
        changes.watch(1, 0, &path("Dir"), 0, false, 11, 0);
        changes.close(1, Status::NOTIFY_CLEANUP);
        assert_eq!(changes.take_done(), [(11, Done::status(Status::NOTIFY_CLEANUP))]);
        assert!(!changes.is_watching());
    }
}
