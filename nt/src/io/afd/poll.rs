//! Waiting for events: AFD_POLL, selected events, and lstar's own waiting for the host.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::offline::words;
use super::request::{Done, Operation};
use super::socket::State;
use super::{HostSocket, Socket, event};
use crate::io::file::FileKind;
use crate::io::info::Bytes;
use crate::kernel::Kernel;
use crate::object::{Body, Handle, ObjectId, ObjectType};
use crate::service::Call;
use crate::status::Status;
use crate::user_ptr::UserBuffer;

/// Most sockets that one poll may ask about.
pub const MAX_POLL: usize = 4096;
/// Bytes of AFD_POLL_INFO before its entries, and of an entry.
const HEAD: usize = 16;
const ENTRY: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Entry {
    handle: u64,
    socket: ObjectId,
    wanted: u32,
}

/// An AFD_POLL.
#[derive(Debug)]
pub struct Poll {
    entries: Vec<Entry>,
    timeout: i64,
    /// A later exclusive one of a socket that it is the main poll of ends it.
    pub exclusive: bool,
    /// Sockets that had no main poll when it came.
    pub main_of: Vec<ObjectId>,
    /// Such a one has come.
    pub superseded: bool,
    output: UserBuffer,
}

impl Poll {
    /// Reads AFD_POLL_INFO: timeout, count, exclusive; then handle, events and status of each socket.
    pub fn read(call: &Call<'_, '_>, input: &[u8], output: UserBuffer) -> Result<Self, Status> {
        let Some([low, high, count, exclusive]) = words(input) else { return Err(Status::INVALID_PARAMETER) };
        let count = count as usize;
        let fits = input.len() >= HEAD + ENTRY * count && output.length >= input.len() as u64;
        if count == 0 || count > MAX_POLL || !fits {
            return Err(Status::INVALID_PARAMETER);
        }
        let mut entries = Vec::new();
        for entry in input[HEAD..].chunks_exact(ENTRY).take(count) {
            let Some([handle_low, handle_high, wanted, _]) = words(entry) else { continue };
            let handle = u64::from(handle_high) << 32 | u64::from(handle_low);
            let socket = call.object(Handle(handle), Some(ObjectType::File), 0)?;
            if !matches!(call.kernel.file(socket)?.kind, FileKind::Socket(_)) {
                return Err(Status::OBJECT_TYPE_MISMATCH);
            }
            entries.push(Entry { handle, socket, wanted });
        }
        let timeout = i64::from(high as i32) << 32 | i64::from(low);
        Ok(Self { entries, timeout, exclusive: exclusive & 0xFF != 0, main_of: Vec::new(), superseded: false, output })
    }

    /// Interrupt time at which it is over; `None`: never.
    #[must_use]
    pub fn deadline(&self, kernel: &Kernel) -> Option<u64> {
        if self.timeout == i64::MAX { None } else { kernel.clock.deadline(self.timeout) }
    }

    /// The sockets that it asks about.
    #[must_use]
    pub fn sockets(&self) -> Vec<ObjectId> {
        self.entries.iter().map(|entry| entry.socket).collect()
    }

    /// The answer: AFD_POLL_INFO with the sockets that have events.
    #[must_use]
    pub fn answer(&self, status: Status, found: &[(u64, u32, Status)]) -> Done {
        let head = [found.len() as u32, u32::from(self.exclusive)];
        let bytes = found.iter().fold(Bytes::default().i64s(&[self.timeout]).u32s(&head), |bytes, row| {
            bytes.u64s(&[row.0]).u32s(&[row.1, row.2.0])
        });
        let information = bytes.0.len() as u64;
        Done { status, information, writes: vec![(self.output.address, bytes.0)] }
    }
}

impl Kernel {
    /// Sees whether a poll is over. One that has waited ends with the first socket that has events.
    pub(super) fn attempt_poll(&mut self, poll: &Poll, waited: bool) -> Option<Done> {
        let now = self.clock.interrupt_time();
        let mut found = Vec::new();
        for entry in &poll.entries {
            let closed = self.objects.get(entry.socket).is_none_or(|object| object.handle_count == 0);
            if closed {
                found.push((entry.handle, event::CLOSE, Status::SUCCESS));
            } else if let Ok(socket) = self.host_socket(entry.socket) {
                let events = socket.ready_events(now) & entry.wanted;
                if events != 0 {
                    found.push((entry.handle, events, socket.status_of_events(events)));
                }
            }
        }
        if waited {
            found.truncate(1);
        }
        let over = !found.is_empty() || poll.timeout == 0 || poll.superseded;
        over.then(|| poll.answer(Status::SUCCESS, &found))
    }

    /// Keeps an eye on a socket whose events are selected, or that is being connected; on others no longer.
    pub(super) fn watch(&mut self, id: ObjectId) {
        let watched = |socket: &HostSocket| socket.events.mask != 0 || socket.state == State::Connecting;
        if self.socket_of(id).is_some_and(watched) {
            self.afd.watched.insert(id);
        } else {
            self.afd.watched.remove(&id);
        }
    }

    /// Sets the event objects of sockets whose selected events have happened; whether there was one.
    pub(super) fn note_socket_events(&mut self, now: u64) -> bool {
        let mut noted = false;
        let watched: Vec<ObjectId> = self.afd.watched.iter().copied().collect();
        for id in watched {
            if let Ok(socket) = self.host_socket(id) {
                let before = socket.state;
                socket.note_events(now);
                noted |= socket.state != before;
            }
            noted |= self.signal_socket(id);
            self.watch(id);
        }
        noted
    }

    /// Sets a socket's event object if there is reason to.
    pub(super) fn signal_socket(&mut self, id: ObjectId) -> bool {
        let Some(object) = self.host_socket(id).ok().and_then(|socket| socket.events.take_signal()) else {
            return false;
        };
        if let Ok(Body::Event(event)) = self.objects.body_mut(object) {
            event.set(true);
        }
        true
    }

    fn socket_of(&self, id: ObjectId) -> Option<&HostSocket> {
        match self.objects.body(id) {
            Ok(Body::File(file)) => match &file.kind {
                FileKind::Socket(socket) => match socket.as_ref() {
                    Socket::Host(socket) => Some(socket),
                    Socket::Offline(_) => None,
                },
                _ => None,
            },
            _ => None,
        }
    }

    /// What the host has to be asked for.
    fn awaited(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut awaited = Vec::new();
        let mut add = |id: ObjectId, wanted: u32| {
            if let Some(socket) = self.socket_of(id) {
                let flags = socket.poll_flags(wanted);
                if !flags.is_empty() {
                    awaited.push((socket.descriptor(), flags));
                }
            }
        };
        for (_, request) in self.afd.requests() {
            match &request.operation {
                Operation::Poll(poll) => poll.entries.iter().for_each(|entry| add(entry.socket, entry.wanted)),
                Operation::AcceptInto(accept) if accept.accepted => add(accept.socket, event::READ),
                operation => add(request.io.file, operation.awaited()),
            }
        }
        for &id in &self.afd.watched {
            if let Some(socket) = self.socket_of(id) {
                add(id, socket.events.awaited());
            }
        }
        awaited
    }

    /// No thread can run: waits for the host, `limit` at most, for standard input too if a thread waits for that.
    /// `false`: nothing has come, or nothing can come.
    pub(crate) fn wait_for_network(&mut self, limit: Option<Duration>, input: bool) -> bool {
        /// Between attempts when sockets are ready in a way that nobody has asked about.
        const PAUSE: Duration = Duration::from_millis(1);
        let started = Instant::now();
        if self.afd.in_vain {
            std::thread::sleep(limit.unwrap_or(PAUSE).min(PAUSE));
        }
        let awaited = self.awaited();
        let descriptor = if input { self.host.input_descriptor() } else { None };
        if awaited.is_empty() && descriptor.is_none() {
            return false;
        }
        let mut polled: Vec<PollFd<'_>> =
            awaited.iter().map(|(descriptor, flags)| PollFd::from_borrowed_fd(*descriptor, *flags)).collect();
        polled.extend(descriptor.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN)));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        // An interrupted wait is tried again by the caller.
        let ready = rustix::event::poll(&mut polled, limit.as_ref()).map_or(true, |ready| ready > 0);
        drop(polled);
        self.clock.pass(started.elapsed());
        self.afd.hurry();
        self.afd.in_vain = ready;
        ready
    }
}
