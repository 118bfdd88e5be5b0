//! Operations that wait for the network: trying, completing, timing out.
//!
//! A request holds guest addresses, not data: what it sends is read, and what it receives written, in its process when the
//! host takes or has it, as with a driver that locks the caller's pages.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

use lstar_arch::Privilege;
use lstar_runtime::AddressSpace;
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};

use super::errors::status_of;
use super::poll::Poll;
use super::socket::State;
use super::{INTERVAL, Socket, address, event};
use crate::io::file::{FileKind, FileObject};
use crate::io::pending::PendingIo;
use crate::io::requests::RequestId;
use crate::io::transfer::Completion;
use crate::kernel::Kernel;
use crate::object::manager::attributes::INHERIT;
use crate::object::{Body, ObjectId};
use crate::service::{Call, Outcome};
use crate::status::Status;
use crate::user_ptr::{UserBuffer, UserMemory};
use crate::wait::Wait;

/// Bytes that are moved at a time on a stream.
const CHUNK: u64 = 1 << 18;
/// Most bytes of a datagram; the host knows the exact limit.
const MAX_DATAGRAM: u64 = 1 << 17;

/// How an operation ended.
#[derive(Debug, Default)]
pub struct Done {
    /// Status.
    pub status: Status,
    /// IO_STATUS_BLOCK.Information.
    pub information: u64,
    /// What is written to the guest, and where.
    pub writes: Vec<(u64, Vec<u8>)>,
}

impl Done {
    /// Nothing but a status.
    #[must_use]
    pub fn with(status: Status) -> Self {
        Self { status, ..Self::default() }
    }
}

/// Receiving.
#[derive(Clone, Debug, Default)]
pub struct Receive {
    /// Where to.
    pub buffers: Vec<UserBuffer>,
    /// MSG_OOB.
    pub urgent: bool,
    /// MSG_PEEK.
    pub peek: bool,
    /// Address and capacity of the sender's SOCKADDR, and where its length goes.
    pub address: Option<(UserBuffer, u64)>,
    /// WSABUF of control messages, which get none.
    pub control: Option<u64>,
}

/// Where data to be sent lies.
#[derive(Clone, Copy, Debug)]
pub enum Segment {
    /// In the guest's memory.
    Memory(UserBuffer),
    /// In a file that the request refers to: where, and how much of it.
    File(ObjectId, u64, u64),
}

impl Segment {
    fn length(self) -> u64 {
        match self {
            Self::Memory(buffer) => buffer.length,
            Self::File(_, _, length) => length,
        }
    }
}

/// Sending.
#[derive(Clone, Debug, Default)]
pub struct Send {
    /// What.
    pub segments: Vec<Segment>,
    /// To whom, for datagrams.
    pub to: Option<std::net::SocketAddr>,
    /// MSG_OOB.
    pub urgent: bool,
    /// Bytes that the host has taken.
    pub sent: u64,
    /// The connection is ended behind the data.
    pub disconnect: bool,
}

/// Accepting into a socket that exists.
#[derive(Clone, Debug)]
pub struct AcceptInto {
    /// That socket, which the request refers to.
    pub socket: ObjectId,
    /// Bytes to be received first.
    pub receive: u32,
    /// Room for the own address.
    pub local: u32,
    /// Where all of it goes.
    pub output: UserBuffer,
    /// The connection is there, its data is not.
    pub accepted: bool,
}

/// What is to be done.
#[derive(Debug)]
pub enum Operation {
    /// Receive.
    Receive(Receive),
    /// Send.
    Send(Send),
    /// Accept as a new socket, whose handle goes there.
    Accept(u64),
    /// Accept and keep: where the connection's number and its peer's name go.
    WaitForListen(UserBuffer),
    /// Accept into a socket.
    AcceptInto(AcceptInto),
    /// Wait for the connection, then send.
    Connect(Send),
    /// Wait for events.
    Poll(Poll),
    /// Wait for what never happens.
    Never,
}

impl Operation {
    /// Operations that go one behind the other.
    fn lane(&self) -> Option<u8> {
        match self {
            Self::Receive(_) => Some(0),
            Self::Send(_) => Some(1),
            Self::Accept(_) | Self::WaitForListen(_) | Self::AcceptInto(_) => Some(2),
            Self::Connect(_) | Self::Poll(_) | Self::Never => None,
        }
    }

    /// The events that the socket that it was asked of must have.
    pub(super) fn awaited(&self) -> u32 {
        match self {
            Self::Receive(receive) if receive.urgent => event::OUT_OF_BAND,
            Self::Receive(_) => event::READ,
            Self::Send(_) | Self::Connect(_) => event::WRITE,
            Self::Accept(_) | Self::WaitForListen(_) | Self::AcceptInto(_) => event::ACCEPT,
            Self::Poll(_) | Self::Never => 0,
        }
    }

    fn is_poll(&self) -> bool {
        matches!(self, Self::Poll(_))
    }

    /// Objects that it refers to beside its own file.
    fn references(&self) -> Vec<ObjectId> {
        match self {
            Self::Send(send) | Self::Connect(send) => {
                let file = |segment: &Segment| match segment {
                    Segment::File(id, ..) => Some(*id),
                    Segment::Memory(_) => None,
                };
                send.segments.iter().filter_map(file).collect()
            }
            Self::AcceptInto(accept) => vec![accept.socket],
            Self::Poll(poll) => poll.sockets(),
            Self::Receive(_) | Self::Accept(_) | Self::WaitForListen(_) | Self::Never => Vec::new(),
        }
    }
}

/// An operation under way.
#[derive(Debug)]
pub struct Request {
    /// Who asked, and how the end is told.
    pub io: PendingIo,
    /// What.
    pub operation: Operation,
    /// Interrupt time at which it ends with STATUS_IO_TIMEOUT, a poll with STATUS_TIMEOUT.
    pub deadline: Option<u64>,
    /// Its thread waits for it.
    pub waited_for: bool,
    /// It was taken back.
    pub cancelled: bool,
}

/// Whether the caller learns the outcome at once if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answering {
    /// At once, or a socket that does not block says so.
    Direct,
    /// At once, or later although the socket does not block.
    Overlapped,
    /// Always STATUS_PENDING, then the completion.
    Later,
}

/// Starts an operation on a socket's file.
pub(super) fn start(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    completion: Completion,
    mut operation: Operation,
    answering: Answering,
    deadline: Option<u64>,
) -> Result<Outcome, Status> {
    let synchronous = call.kernel.file(id)?.is_synchronous();
    let done = match operation.lane() {
        // Whoever was here first is served first.
        Some(lane) if call.kernel.afd.is_busy(id, lane) => None,
        _ => call.kernel.attempt(call.vcpu.memory, id, &mut operation, false),
    };
    if let Some(done) = done {
        if answering != Answering::Later || synchronous {
            if done.status.is_error() {
                return Err(done.status);
            }
            for (address, bytes) in &done.writes {
                call.write_user(*address, bytes)?;
            }
            completion.finish(call, id, done.status, done.information)?;
            return Ok(Outcome::Return(done.status));
        }
        let io = PendingIo::of(call, id, completion)?;
        call.kernel.complete_io(call.vcpu.memory, io, done.status, done.information, &done.writes);
        return Ok(Outcome::Return(Status::PENDING));
    }
    if answering == Answering::Direct && call.kernel.host_socket(id).is_ok_and(|socket| socket.nonblocking) {
        if let Operation::Send(send) = &operation {
            call.kernel.host_socket(id)?.events.enable(event::WRITE);
            if send.sent > 0 {
                // A part is better than nothing; Windows would take all of it.
                completion.finish(call, id, Status::SUCCESS, send.sent)?;
                return Ok(Outcome::Return(Status::SUCCESS));
            }
        }
        return Err(Status::DEVICE_NOT_READY);
    }
    let io = PendingIo::of(call, id, completion)?;
    for object in operation.references() {
        call.kernel.objects.reference(object);
    }
    let number = call.kernel.afd.add(Request { io, operation, deadline, waited_for: synchronous, cancelled: false });
    if !synchronous {
        return Ok(Outcome::Return(Status::PENDING));
    }
    let wait = Wait::until("a socket", move |kernel, _| kernel.afd.ended.remove(&number));
    Ok(Outcome::Wait(wait))
}

impl super::Afd {
    fn add(&mut self, request: Request) -> RequestId {
        self.last_request += 1;
        self.requests.insert(self.last_request, request);
        self.last_request
    }

    fn is_busy(&self, file: ObjectId, lane: u8) -> bool {
        self.requests.values().any(|request| request.io.file == file && request.operation.lane() == Some(lane))
    }

    /// The requests with their numbers.
    pub(super) fn requests(&self) -> impl Iterator<Item = (RequestId, &Request)> {
        self.requests.iter().map(|(&number, request)| (number, request))
    }

    /// Ends earlier exclusive polls that a new one takes the place of. The first poll of a socket is its main poll until
    /// it ends; only that one is looked at.
    pub(super) fn supersede(&mut self, new: &mut Poll) {
        let mut sockets = new.sockets();
        for request in self.requests.values_mut() {
            let Operation::Poll(poll) = &mut request.operation else { continue };
            let before = poll.main_of.len();
            if poll.exclusive && new.exclusive {
                poll.main_of.retain(|socket| !sockets.contains(socket));
                poll.superseded |= poll.main_of.len() != before;
            }
            sockets.retain(|socket| !poll.main_of.contains(socket));
        }
        new.main_of = sockets;
        self.hurry();
    }
}

impl Kernel {
    /// Tries what waits for the network, completes what is done, sets events that were selected.
    pub(crate) fn advance_network(&mut self, space: &mut AddressSpace) {
        if !self.afd.is_waiting() {
            return;
        }
        let now = self.clock.interrupt_time();
        let overdue = self.afd.next_deadline().is_some_and(|deadline| deadline <= now);
        if !overdue && self.afd.tried.is_some_and(|tried| tried.elapsed() < INTERVAL) {
            return;
        }
        let mut progress = false;
        let mut blocked = BTreeSet::new();
        let numbers: Vec<RequestId> = self.afd.requests.keys().copied().collect();
        // What is received or accepted is no event any more for a poll.
        let is_poll =
            |number: &RequestId| self.afd.requests.get(number).is_some_and(|request| request.operation.is_poll());
        let (polls, others): (Vec<RequestId>, Vec<RequestId>) = numbers.into_iter().partition(is_poll);
        for number in others.into_iter().chain(polls) {
            let Some(mut request) = self.afd.requests.remove(&number) else { continue };
            let lane = request.operation.lane().map(|lane| (request.io.file, lane));
            let closed = self.objects.get(request.io.file).is_none_or(|object| object.handle_count == 0);
            let mut done = match lane {
                // A poll tells that one of its sockets was closed.
                _ if request.cancelled || (closed && !request.operation.is_poll()) => {
                    Some(Done::with(Status::CANCELLED))
                }
                Some(lane) if blocked.contains(&lane) => None,
                _ => self.attempt_in(space, &mut request),
            };
            if done.is_none() && request.deadline.is_some_and(|deadline| deadline <= now) {
                done = Some(match &request.operation {
                    Operation::Poll(poll) => poll.answer(Status::TIMEOUT, &[]),
                    _ => Done::with(Status::IO_TIMEOUT),
                });
            }
            match done {
                Some(done) => {
                    progress = true;
                    self.end_request(space, number, request, &done);
                }
                None => {
                    blocked.extend(lane);
                    self.afd.requests.insert(number, request);
                }
            }
        }
        progress |= self.note_socket_events(now);
        self.afd.in_vain &= !progress;
        self.afd.tried = Some(Instant::now());
        self.reap();
    }

    fn end_request(&mut self, space: &mut AddressSpace, number: RequestId, request: Request, done: &Done) {
        for object in request.operation.references() {
            self.objects.dereference(object);
        }
        let waits = request.waited_for && self.scheduler.threads.contains_key(&request.io.thread);
        self.complete_io(space, request.io, done.status, done.information, &done.writes);
        if waits {
            self.afd.ended.insert(number, done.status);
        }
    }

    /// Tries a request in its process.
    fn attempt_in(&mut self, space: &mut AddressSpace, request: &mut Request) -> Option<Done> {
        let Ok(previous) = self.enter_process(space, request.io.process) else {
            return Some(Done::with(Status::CANCELLED));
        };
        let done = self.attempt(space, request.io.file, &mut request.operation, true);
        // It was current a moment ago.
        let _ = self.enter_process(space, previous);
        done
    }

    /// Tries an operation of the current process; `None`: it has to wait.
    fn attempt(
        &mut self,
        space: &mut AddressSpace,
        id: ObjectId,
        operation: &mut Operation,
        waited: bool,
    ) -> Option<Done> {
        let result = match operation {
            Operation::Receive(receive) => self.receive(id, receive),
            Operation::Send(send) => self.send(space, id, send),
            Operation::Accept(output) => self.accept(id, *output),
            Operation::WaitForListen(output) => self.wait_for_listen(id, *output),
            Operation::AcceptInto(accept) => self.accept_into(id, accept),
            Operation::Connect(send) => {
                let now = self.clock.interrupt_time();
                let connected = self.host_socket(id).map(|socket| socket.connecting(now));
                match connected {
                    Ok(None) => return None,
                    Ok(Some(Status::SUCCESS)) if !send.segments.is_empty() => self.send(space, id, send),
                    Ok(Some(Status::SUCCESS)) => Ok(Done::default()),
                    Ok(Some(status)) | Err(status) => Err(status),
                }
            }
            Operation::Poll(poll) => return self.attempt_poll(poll, waited),
            Operation::Never => return None,
        };
        match result {
            Ok(done) => Some(done),
            Err(Status::DEVICE_NOT_READY) => None,
            Err(status) => Some(Done::with(status)),
        }
    }

    fn receive(&mut self, id: ObjectId, receive: &Receive) -> Result<Done, Status> {
        let socket = self.host_socket(id)?;
        socket.events.enable(if receive.urgent { event::OUT_OF_BAND } else { event::READ });
        if socket.receive_shut {
            return Err(Status::PIPE_DISCONNECTED);
        }
        if socket.is_stream() && socket.state != State::Connected {
            return Err(Status::INVALID_CONNECTION);
        }
        let wanted: u64 = receive.buffers.iter().fold(0, |sum, buffer| sum.saturating_add(buffer.length));
        let mut flags = RecvFlags::DONTWAIT;
        flags.set(RecvFlags::PEEK, receive.peek);
        flags.set(RecvFlags::OOB, receive.urgent);
        // With it, and only for datagrams, the host tells a datagram's whole length.
        flags.set(RecvFlags::TRUNC, !socket.is_stream());
        let limit = if socket.is_stream() { CHUNK } else { MAX_DATAGRAM };
        let mut data = vec![0; wanted.min(limit) as usize];
        let received = rustix::io::retry_on_intr(|| net::recvfrom(socket.descriptor(), &mut data[..], flags));
        let (_, length, sender) = received.map_err(|error| match error {
            // That is how the host says that there is no urgent data.
            Errno::INVAL if receive.urgent => Status::DEVICE_NOT_READY,
            error => status_of(error),
        })?;
        let truncated = length > data.len();
        let length = length.min(data.len());
        let mut writes = Vec::new();
        let mut rest = &data[..length];
        for buffer in &receive.buffers {
            let (part, behind) = rest.split_at(rest.len().min(buffer.length as usize));
            writes.push((buffer.address, part.to_vec()));
            rest = behind;
        }
        if let Some((buffer, length_at)) = receive.address
            && let Some(sender) = sender.and_then(|sender| std::net::SocketAddr::try_from(sender).ok())
        {
            let sender = address::encode(sender);
            if sender.len() as u64 <= buffer.length {
                writes.push((length_at, (sender.len() as u32).to_le_bytes().to_vec()));
                writes.push((buffer.address, sender));
            }
        }
        if let Some(control) = receive.control {
            writes.push((control, vec![0; 4]));
        }
        let status = if truncated { Status::BUFFER_OVERFLOW } else { Status::SUCCESS };
        Ok(Done { status, information: length as u64, writes })
    }

    /// The next piece of what is to be sent; nothing: the end.
    fn next_piece(&mut self, space: &mut AddressSpace, send: &Send, limit: u64) -> Result<Vec<u8>, Status> {
        let mut piece = Vec::new();
        let mut skip = send.sent;
        for segment in &send.segments {
            let length = segment.length();
            if skip >= length {
                skip -= length;
                continue;
            }
            let room = limit.saturating_sub(piece.len() as u64).min(length - skip) as usize;
            let start = piece.len();
            piece.resize(start + room, 0);
            match *segment {
                Segment::Memory(buffer) => {
                    let at = buffer.address.checked_add(skip).ok_or(Status::ACCESS_VIOLATION)?;
                    self.memory.read(space, at, &mut piece[start..], Privilege::User)?;
                }
                Segment::File(id, offset, _) => {
                    let file = self.file(id)?.host_file().ok_or(Status::INVALID_PARAMETER)?;
                    let read = file.read_at(&mut piece[start..], offset.saturating_add(skip));
                    let read = read.map_err(|error| crate::io::status_of_io(&error))?;
                    if read < room {
                        // It has shrunk meanwhile.
                        return Err(Status::END_OF_FILE);
                    }
                }
            }
            skip = 0;
            if piece.len() as u64 >= limit {
                break;
            }
        }
        Ok(piece)
    }

    fn send(&mut self, space: &mut AddressSpace, id: ObjectId, send: &mut Send) -> Result<Done, Status> {
        let socket = self.host_socket(id)?;
        if socket.send_shut {
            return Err(Status::PIPE_DISCONNECTED);
        }
        let stream = socket.is_stream();
        if stream && socket.state != State::Connected {
            return Err(Status::INVALID_CONNECTION);
        }
        socket.bind_to_any()?;
        let to = send.to.filter(|_| !stream).map(|to| socket.destination(to)).transpose()?;
        let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        flags.set(SendFlags::OOB, send.urgent);
        let total: u64 = send.segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.length()));
        if !stream && total > MAX_DATAGRAM {
            return Err(status_of(Errno::MSGSIZE));
        }
        loop {
            let piece = self.next_piece(space, send, if stream { CHUNK } else { MAX_DATAGRAM })?;
            if stream && piece.is_empty() {
                break;
            }
            let socket = self.host_socket(id)?;
            let sent = rustix::io::retry_on_intr(|| match &to {
                Some(to) => match net::sendto(socket.descriptor(), &piece, flags, to) {
                    Err(Errno::ISCONN) => net::send(socket.descriptor(), &piece, flags),
                    result => result,
                },
                None => net::send(socket.descriptor(), &piece, flags),
            });
            let sent = sent.map_err(|error| {
                if error == Errno::AGAIN {
                    socket.events.enable(event::WRITE);
                }
                status_of(error)
            })?;
            send.sent += sent as u64;
            if !stream {
                break;
            }
        }
        if send.disconnect {
            // The data is gone out; whether the peer is still there does not change that.
            let _ = self.host_socket(id)?.shut_down(2);
        }
        Ok(Done { information: send.sent, ..Done::default() })
    }

    fn accept(&mut self, id: ObjectId, output: u64) -> Result<Done, Status> {
        const ACCESS: u32 = 0xC010_0000;
        let accepted = self.take_connection(id)?;
        let (access, options) = {
            let listener = self.file(id)?;
            (listener.access, listener.options)
        };
        let kind = FileKind::Socket(Box::new(Socket::Host(accepted)));
        let file = FileObject::device(kind, "\\Device\\Afd", access, options);
        let body = Body::File(Box::new(file));
        let handle = self.objects.open_new(&mut self.handles, body, ACCESS, INHERIT)?;
        self.watch(self.handles.get(handle)?.object);
        let bytes = (handle.0 as u32).to_le_bytes().to_vec();
        Ok(Done { writes: vec![(output, bytes)], information: 4, ..Done::default() })
    }

    fn wait_for_listen(&mut self, id: ObjectId, output: UserBuffer) -> Result<Done, Status> {
        let mut connection = self.take_connection(id)?;
        if let Some(object) = std::mem::take(&mut connection.events).object {
            self.objects.dereference(object);
        }
        let peer = connection.peer()?;
        let sequence = self.host_socket(id)?.keep(connection)?;
        let mut bytes = [&sequence.to_le_bytes()[..], &peer].concat();
        bytes.truncate(usize::try_from(output.length).unwrap_or(usize::MAX));
        let information = bytes.len() as u64;
        Ok(Done { information, writes: vec![(output.address, bytes)], ..Done::default() })
    }

    /// Takes a connection of a listening socket; it inherits the selected events.
    fn take_connection(&mut self, id: ObjectId) -> Result<super::HostSocket, Status> {
        let now = self.clock.interrupt_time();
        let listener = self.host_socket(id)?;
        if listener.state != State::Listening {
            return Err(Status::INVALID_PARAMETER);
        }
        let mut accepted = listener.accept()?;
        accepted.connected_at = Some(now);
        accepted.events.mask = listener.events.mask;
        accepted.events.object = listener.events.object;
        if let Some(object) = accepted.events.object {
            self.objects.reference(object);
        }
        Ok(accepted)
    }

    fn accept_into(&mut self, id: ObjectId, accept: &mut AcceptInto) -> Result<Done, Status> {
        if !accept.accepted {
            let mut connection = self.take_connection(id)?;
            let Ok(target) = self.host_socket(accept.socket) else {
                return Err(Status::INVALID_PARAMETER);
            };
            // Events are the target's own.
            let inherited = std::mem::replace(&mut connection.events, std::mem::take(&mut target.events));
            connection.nonblocking = target.nonblocking;
            *target = connection;
            if let Some(object) = inherited.object {
                self.objects.dereference(object);
            }
            accept.accepted = true;
        }
        let socket = self.host_socket(accept.socket)?;
        let mut data = vec![0; accept.receive.min(CHUNK as u32) as usize];
        let mut received = 0;
        if !data.is_empty() {
            received = net::recv(socket.descriptor(), &mut data[..], RecvFlags::DONTWAIT).map_err(status_of)?.1;
            data.truncate(received);
        }
        let mut writes = vec![(accept.output.address, data)];
        let named = |name: Vec<u8>, room: u64| {
            let fits = name.len() as u64 + 4 <= room;
            let bytes = [&(name.len() as u32).to_le_bytes()[..], &name].concat();
            if fits { Ok(bytes) } else { Err(Status::BUFFER_TOO_SMALL) }
        };
        let (receive, local) = (u64::from(accept.receive), u64::from(accept.local));
        let remote = accept.output.length.saturating_sub(receive + local);
        if local > 0 {
            writes.push((accept.output.address.wrapping_add(receive), named(socket.name()?, local)?));
        }
        writes.push((accept.output.address.wrapping_add(receive + local), named(socket.peer()?, remote)?));
        Ok(Done { information: received as u64, writes, ..Done::default() })
    }
}
