//! The control codes of sockets.

use rustix::net::sockopt;

use super::errors::winsock_error;
use super::offline::{self, words};
use super::poll::Poll;
use super::request::{AcceptInto, Answering, Operation, Receive, Segment, Send, start};
use super::socket::State;
use super::{HostSocket, NetworkAccess, Socket, address, code, options};
use crate::io::file::{FileKind, READ_DATA};
use crate::io::info::Bytes;
use crate::io::pending::PendingIo;
use crate::io::transfer::Completion;
use crate::kernel::Kernel;
use crate::object::{Body, Handle, ObjectId, ObjectType};
use crate::service::{Call, Outcome};
use crate::status::Status;
use crate::user_ptr::{UserBuffer, UserMemory, UserPtr};

/// Most buffers of one operation.
const MAX_BUFFERS: u32 = 4096;
/// MSG_OOB and MSG_PEEK.
const MSG_OOB: u32 = 1;
const MSG_PEEK: u32 = 2;

/// Serves a control code of a file of the device.
pub(in crate::io) fn control(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    completion: Completion,
    code: u32,
    source: UserBuffer,
    output: UserBuffer,
) -> Result<Outcome, Status> {
    /// Bounds what a guest makes the host allocate.
    const MAX_INPUT: u64 = 1 << 20;
    // What lies behind an option's value does not matter.
    let length = if options::is_option(code) { source.length.min(options::MAX_VALUE) } else { source.length };
    if length > MAX_INPUT {
        return Err(Status::INVALID_PARAMETER);
    }
    let input = &UserBuffer::new(source.address, length).read(call)?[..];
    if call.kernel.afd.access == NetworkAccess::Off {
        return offline::control(call, id, completion, code, input, output);
    }
    let mut session = Session { call, id, completion, source: source.address, output };
    match code {
        code::CREATE => session.create(input),
        code::POLL => session.poll(input),
        code::COMPLETE_ASYNC => {
            let Some([status]) = words(input) else { return Err(Status::BUFFER_TOO_SMALL) };
            let io = PendingIo::of(session.call, id, completion)?;
            // A failure goes to a completion port, too.
            session.call.kernel.complete_io(session.call.vcpu.memory, io, Status(status), 0, &[]);
            Ok(Outcome::Return(Status(status)))
        }
        _ => {
            // Everything else needs a socket that has been created.
            session.socket()?;
            session.control(code, input)
        }
    }
}

/// NtReadFile of a socket.
pub(in crate::io) fn read(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    completion: Completion,
    buffer: UserBuffer,
) -> Result<Outcome, Status> {
    call.kernel.host_socket(id).map_err(|_| Status::INVALID_CONNECTION)?;
    probe(call, &[buffer])?;
    let receive = Receive { buffers: vec![buffer], ..Receive::default() };
    start(call, id, completion, Operation::Receive(receive), Answering::Overlapped, None)
}

/// NtWriteFile of a socket.
pub(in crate::io) fn write(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    completion: Completion,
    buffer: UserBuffer,
) -> Result<Outcome, Status> {
    call.kernel.host_socket(id).map_err(|_| Status::INVALID_CONNECTION)?;
    let send = Send { segments: vec![Segment::Memory(buffer)], ..Send::default() };
    start(call, id, completion, Operation::Send(send), Answering::Overlapped, None)
}

/// Reads an array of WSABUF.
pub(super) fn buffers(call: &mut Call<'_, '_>, at: u64, count: u32) -> Result<Vec<UserBuffer>, Status> {
    if count > MAX_BUFFERS {
        return Err(Status::INVALID_PARAMETER);
    }
    let pairs = UserPtr::<[u64; 2]>::new(at).read_array(call, u64::from(count))?;
    Ok(pairs.iter().map(|[length, address]| UserBuffer::new(*address, length & 0xFFFF_FFFF)).collect())
}

/// Looks at both ends of buffers before anything is received for them: what has been received cannot be put back.
pub(super) fn probe(call: &mut Call<'_, '_>, buffers: &[UserBuffer]) -> Result<(), Status> {
    for buffer in buffers.iter().filter(|buffer| buffer.length != 0) {
        let last = buffer.address.checked_add(buffer.length - 1).ok_or(Status::ACCESS_VIOLATION)?;
        for at in [buffer.address, last] {
            call.read_user(at, &mut [0])?;
        }
    }
    Ok(())
}

pub(super) fn wide(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A control code of one socket's file.
pub(super) struct Session<'c, 'a, 'm> {
    pub(super) call: &'c mut Call<'a, 'm>,
    pub(super) id: ObjectId,
    completion: Completion,
    /// Where the input lies.
    source: u64,
    pub(super) output: UserBuffer,
}

impl Session<'_, '_, '_> {
    pub(super) fn socket(&mut self) -> Result<&mut HostSocket, Status> {
        self.call.kernel.host_socket(self.id)
    }

    pub(super) fn now(&self) -> u64 {
        self.call.kernel.clock.interrupt_time()
    }

    /// Answers at once.
    pub(super) fn answer(self, bytes: &[u8]) -> Result<Outcome, Status> {
        self.output.write(self.call, bytes)?;
        self.completion.finish(self.call, self.id, Status::SUCCESS, bytes.len() as u64)?;
        Ok(Outcome::Return(Status::SUCCESS))
    }

    /// The same with nothing in the IO_STATUS_BLOCK but the status.
    fn answer_uncounted(self, value: u32) -> Result<Outcome, Status> {
        self.output.write(self.call, &value.to_le_bytes())?;
        self.completion.finish(self.call, self.id, Status::SUCCESS, 0)?;
        Ok(Outcome::Return(Status::SUCCESS))
    }

    fn number(self, value: u32) -> Result<Outcome, Status> {
        self.answer(&value.to_le_bytes())
    }

    pub(super) fn start(
        self,
        operation: Operation,
        answering: Answering,
        deadline: Option<u64>,
    ) -> Result<Outcome, Status> {
        start(self.call, self.id, self.completion, operation, answering, deadline)
    }

    /// When an operation of that direction (0 receiving, 1 sending) is over, by the socket's timeout.
    fn deadline(&mut self, direction: usize) -> Result<Option<u64>, Status> {
        const UNITS_PER_MILLISECOND: u64 = 10_000;
        let now = self.now();
        let timeout = self.socket()?.timeouts[direction];
        Ok((timeout != 0).then(|| now + u64::from(timeout) * UNITS_PER_MILLISECOND))
    }

    fn create(self, input: &[u8]) -> Result<Outcome, Status> {
        let Some([family, kind, protocol, _]) = words(input) else { return Err(Status::INVALID_PARAMETER) };
        let access = self.call.kernel.afd.access;
        let Body::File(file) = self.call.kernel.objects.body_mut(self.id)? else {
            return Err(Status::OBJECT_TYPE_MISMATCH);
        };
        let FileKind::Socket(socket) = &mut file.kind else { return Err(Status::OBJECT_TYPE_MISMATCH) };
        if matches!(socket.as_ref(), Socket::Host(_)) {
            return Err(Status::INVALID_PARAMETER);
        }
        **socket = Socket::Host(HostSocket::create([family, kind, protocol], access)?);
        self.answer(&[])
    }

    fn poll(self, input: &[u8]) -> Result<Outcome, Status> {
        let mut poll = Poll::read(self.call, input, self.output)?;
        let deadline = poll.deadline(self.call.kernel);
        self.call.kernel.afd.supersede(&mut poll);
        self.start(Operation::Poll(poll), Answering::Overlapped, deadline)
    }

    fn control(mut self, code: u32, input: &[u8]) -> Result<Outcome, Status> {
        let now = self.now();
        match code {
            code::BIND => {
                let sockaddr = input.get(4..).unwrap_or_default();
                if self.output.length < sockaddr.len() as u64 {
                    return Err(Status::INVALID_PARAMETER);
                }
                if sockaddr.len() < 2 {
                    return Err(Status::INVALID_PARAMETER);
                }
                let wanted = address::parse(sockaddr)?;
                if self.socket()?.is_bound() {
                    return Err(Status::ADDRESS_ALREADY_ASSOCIATED);
                }
                let conflict = self.call.kernel.conflict(self.id, wanted);
                let bound = conflict.and_then(|()| self.socket()?.bind(wanted));
                let (status, name) = match bound {
                    Ok(()) => (Status::SUCCESS, self.socket()?.name()?),
                    Err(status) => (status, Vec::new()),
                };
                self.output.write(self.call, &name)?;
                self.completion.finish(self.call, self.id, status, name.len() as u64)?;
                // It takes time, says the driver.
                let synchronous = self.call.kernel.file(self.id)?.is_synchronous();
                Ok(Outcome::Return(if synchronous { status } else { Status::PENDING }))
            }
            code::GET_NAME => {
                let name = self.socket()?.name()?;
                self.answer(&name)
            }
            code::LISTEN => {
                let Some([_, backlog, _]) = words(input) else { return Err(Status::INVALID_PARAMETER) };
                self.socket()?.listen(backlog as i32)?;
                self.answer(&[])
            }
            code::CONNECT => self.connect(input),
            code::ACCEPT if self.output.length != 4 => Err(Status::BUFFER_TOO_SMALL),
            code::ACCEPT => {
                let output = self.output.address;
                self.start(Operation::Accept(output), Answering::Direct, None)
            }
            code::ACCEPT_INTO => self.accept_into(input),
            code::RECEIVE => self.receive(input),
            code::RECEIVE_MESSAGE => self.receive_message(input),
            code::SEND_MESSAGE => self.send_message(input),
            code::TRANSMIT => self.transmit(input),
            code::SHUTDOWN => {
                let Some([how]) = words(input) else { return Err(Status::BUFFER_TOO_SMALL) };
                self.socket()?.shut_down(how)?;
                if how == 2 {
                    // No events any more, and nothing waits.
                    self.socket()?.nonblocking = true;
                    self.select_events(None, 0)?;
                }
                self.answer(&[])
            }
            code::FIONBIO => {
                let Some([value]) = words(input) else { return Err(Status::BUFFER_TOO_SMALL) };
                let socket = self.socket()?;
                if value == 0 && socket.events.mask != 0 {
                    return Err(Status::INVALID_PARAMETER);
                }
                socket.nonblocking = value != 0;
                self.answer(&[])
            }
            code::FIONREAD => {
                let available = self.socket()?.available()?;
                self.answer_uncounted(available)
            }
            code::AT_MARK => self.answer_uncounted(1),
            code::PEER_NAME => {
                let peer = self.socket()?.peer()?;
                self.answer(&peer)
            }
            code::GET_INFO => {
                let kind = self.socket()?.kind;
                self.answer(&kind.map(u32::to_le_bytes).concat())
            }
            code::IS_LISTENING => {
                let listening = self.socket()?.state == State::Listening;
                self.number(u32::from(listening))
            }
            code::GET_ERROR => {
                let error = self.socket()?.error(now).map_or(0, winsock_error);
                self.number(error)
            }
            code::CONNECT_TIME => {
                let socket = self.socket()?;
                let since = socket.connected_at.filter(|_| socket.state == State::Connected);
                self.number(since.map_or(u32::MAX, |at| (now.saturating_sub(at) / 10_000_000) as u32))
            }
            code::EVENT_SELECT => {
                let selected = self.selected(input);
                let Ok((event, mask)) = selected else {
                    // Told in the IO_STATUS_BLOCK, too.
                    self.call.write_io_status(self.completion.io_status, Status::INVALID_PARAMETER, 0)?;
                    return Err(Status::INVALID_PARAMETER);
                };
                self.socket()?.nonblocking = true;
                self.socket()?.note_events(now);
                self.select_events(event, mask)?;
                self.answer(&[])
            }
            code::GET_EVENTS => {
                self.socket()?.note_events(now);
                let (events, statuses) = self.socket()?.take_events();
                let statuses: Vec<u32> = statuses.iter().map(|status| status.0).collect();
                let bytes = Bytes::default().u32s(&[events]).u32s(&statuses).0;
                if self.output.length < bytes.len() as u64 {
                    return Err(Status::INVALID_PARAMETER);
                }
                // In place of a buffer: an event to be reset with it.
                if input.is_empty()
                    && self.source != 0
                    && let Ok(Body::Event(event)) = self.call.body(Handle(self.source), ObjectType::Event, 2)
                {
                    event.set(false);
                }
                self.answer(&bytes)
            }
            code::KEEPALIVE_VALUES => {
                let Some([on, time, interval]) = words(input) else { return Err(Status::BUFFER_TOO_SMALL) };
                options::set_keep_alive(self.socket()?, on != 0, time, interval)?;
                self.answer(&[])
            }
            code::DEFER => {
                let Some([handle]) = words(input) else { return Err(Status::BUFFER_TOO_SMALL) };
                let accepted = self.call.object(Handle(u64::from(handle)), Some(ObjectType::File), 0)?;
                let connection = self.call.kernel.take_host_socket(accepted)?;
                self.socket()?.put_back(connection);
                self.answer(&[])
            }
            code::INTERFACE_LIST => self.answer(&interfaces()),
            code::ADDRESS_LIST_CHANGE => {
                let Some([forced]) = words(input) else { return Err(Status::BUFFER_TOO_SMALL) };
                let answering = if forced != 0 { Answering::Overlapped } else { Answering::Direct };
                self.start(Operation::Never, answering, None)
            }
            _ if !options::is_option(code) => self.native(code, input),
            _ => {
                let capacity = self.output.length;
                let answer = options::control(self.socket()?, code, input, capacity as usize)?;
                self.answer(&answer)
            }
        }
    }

    /// AFD_EVENT_SELECT_INFO: event and mask, both zero to select nothing.
    fn selected(&mut self, input: &[u8]) -> Result<(Option<ObjectId>, u32), Status> {
        let (Some(event), Some([.., mask, _])) = (wide(input, 0), words::<4>(input)) else {
            return Err(Status::INVALID_PARAMETER);
        };
        if (event, mask) == (0, 0) {
            return Ok((None, 0));
        }
        let found = self.call.object(Handle(event), Some(ObjectType::Event), 2);
        Ok((Some(found?), mask))
    }

    fn select_events(&mut self, object: Option<ObjectId>, mask: u32) -> Result<(), Status> {
        let id = self.id;
        let kernel: &mut Kernel = self.call.kernel;
        let previous = kernel.host_socket(id)?.events.object;
        if let Some(object) = object {
            kernel.objects.reference(object);
        }
        kernel.host_socket(id)?.events.select(object, mask);
        if let Some(previous) = previous {
            kernel.objects.dereference(previous);
        }
        kernel.signal_socket(id);
        kernel.watch(id);
        Ok(())
    }

    fn connect(mut self, input: &[u8]) -> Result<Outcome, Status> {
        /// Length and whether the caller waits, before the address.
        const HEAD: usize = 8;
        let Some([length, synchronous]) = words(input) else { return Err(Status::BUFFER_TOO_SMALL) };
        let Some(sockaddr) = input.get(HEAD..).and_then(|rest| rest.get(..length as usize)) else {
            return Err(Status::BUFFER_TOO_SMALL);
        };
        let (now, id) = (self.now(), self.id);
        let socket = self.socket()?;
        // ConnectEx wants a name.
        if synchronous == 0 && !socket.is_bound() {
            return Err(Status::INVALID_PARAMETER);
        }
        match socket.state {
            State::Listening => return Err(Status::INVALID_PARAMETER),
            State::Connecting if synchronous == 0 => return Err(Status::INVALID_PARAMETER),
            State::Connecting => return Err(Status::ADDRESS_ALREADY_ASSOCIATED),
            State::Connected => return Err(Status::CONNECTION_ACTIVE),
            State::Unconnected | State::Connectionless => {}
        }
        if matches!(sockaddr, [0, 0, ..]) && !socket.is_stream() {
            socket.disconnect()?;
            return self.answer(&[]);
        }
        socket.connect(address::parse(sockaddr)?, now)?;
        let state = socket.state;
        let nonblocking = socket.nonblocking;
        self.call.kernel.watch(id);
        if state == State::Connecting && synchronous != 0 && nonblocking {
            return Err(Status::DEVICE_NOT_READY);
        }
        // The data lies behind the address, in the caller's buffer.
        let behind = HEAD + length as usize;
        let data = (input.len() - behind) as u64;
        if state == State::Connectionless || (state == State::Connected && data == 0 && synchronous != 0) {
            return self.answer(&[]);
        }
        let mut send = Send::default();
        if data != 0 {
            let at = self.source.wrapping_add(behind as u64);
            send.segments.push(Segment::Memory(UserBuffer::new(at, data)));
        }
        let answering = if synchronous != 0 { Answering::Direct } else { Answering::Later };
        self.start(Operation::Connect(send), answering, None)
    }

    fn accept_into(self, input: &[u8]) -> Result<Outcome, Status> {
        let Some([handle, receive, local]) = words(input) else { return Err(Status::BUFFER_TOO_SMALL) };
        let rest = self.output.length.checked_sub(u64::from(receive) + u64::from(local));
        if rest.ok_or(Status::BUFFER_TOO_SMALL)? < 4 {
            return Err(Status::INVALID_PARAMETER);
        }
        let socket = self.call.object(Handle(u64::from(handle)), Some(ObjectType::File), READ_DATA)?;
        let taken =
            self.call.kernel.afd.requests().any(
                |(_, request)| matches!(&request.operation, Operation::AcceptInto(accept) if accept.socket == socket),
            );
        if taken || self.call.kernel.host_socket(socket)?.state != State::Unconnected {
            return Err(Status::INVALID_PARAMETER);
        }
        let output = self.output;
        let accept = AcceptInto { socket, receive, local, output, accepted: false };
        self.start(Operation::AcceptInto(accept), Answering::Later, None)
    }

    fn receive(mut self, input: &[u8]) -> Result<Outcome, Status> {
        const NOT_OOB: u32 = 0x20;
        const OOB: u32 = 0x40;
        const PEEK: u32 = 0x80;
        const FORCE_ASYNC: u32 = 2;
        let (Some(at), Some([.., count, receive_flags, flags, _])) = (wide(input, 0), words::<6>(input)) else {
            return Err(Status::INVALID_PARAMETER);
        };
        // One of both.
        let urgent = match flags & (NOT_OOB | OOB) {
            NOT_OOB => false,
            OOB => true,
            _ => return Err(Status::INVALID_PARAMETER),
        };
        self.check_urgent(urgent)?;
        let buffers = buffers(self.call, at, count)?;
        let receive = Receive { buffers, urgent, peek: flags & PEEK != 0, ..Receive::default() };
        self.start_receiving(receive, receive_flags & FORCE_ASYNC != 0)
    }

    /// Urgent data that is in line cannot be received apart.
    fn check_urgent(&mut self, urgent: bool) -> Result<(), Status> {
        let in_line = urgent && sockopt::socket_oobinline(self.socket()?.descriptor()).unwrap_or(false);
        if in_line { Err(Status::INVALID_PARAMETER) } else { Ok(()) }
    }

    fn start_receiving(mut self, receive: Receive, overlapped: bool) -> Result<Outcome, Status> {
        probe(self.call, &receive.buffers)?;
        let deadline = if overlapped { None } else { self.deadline(0)? };
        let answering = if overlapped { Answering::Overlapped } else { Answering::Direct };
        self.start(Operation::Receive(receive), answering, deadline)
    }

    fn receive_message(mut self, input: &[u8]) -> Result<Outcome, Status> {
        let [control, sockaddr, length_at, flags_at, _, at] = match words::<12>(input) {
            Some(_) => [0, 8, 16, 24, 32, 40].map(|at| wide(input, at).unwrap_or(0)),
            None => return Err(Status::BUFFER_TOO_SMALL),
        };
        let Some([.., overlapped, count, _, _]) = words::<12>(input) else { return Err(Status::BUFFER_TOO_SMALL) };
        let flags = UserPtr::<u32>::new(flags_at).read(self.call)?;
        self.check_urgent(flags & MSG_OOB != 0)?;
        let address = match sockaddr {
            0 => None,
            sockaddr => {
                let room = UserPtr::<u32>::new(length_at).read(self.call)?;
                Some((UserBuffer::new(sockaddr, u64::from(room)), length_at))
            }
        };
        let receive = Receive {
            buffers: buffers(self.call, at, count)?,
            urgent: flags & MSG_OOB != 0,
            peek: flags & MSG_PEEK != 0,
            address,
            control: (control != 0).then_some(control),
        };
        self.start_receiving(receive, overlapped != 0)
    }

    fn send_message(mut self, input: &[u8]) -> Result<Outcome, Status> {
        let (Some(sockaddr), Some(at)) = (wide(input, 0), wide(input, 24)) else {
            return Err(Status::BUFFER_TOO_SMALL);
        };
        let Some([_, _, length, flags, overlapped, count]) = words(input) else {
            return Err(Status::BUFFER_TOO_SMALL);
        };
        const MAX_ADDRESS: u32 = 128;
        let to = match sockaddr {
            0 => None,
            at => {
                let bytes = UserBuffer::new(at, u64::from(length.min(MAX_ADDRESS))).read(self.call)?;
                Some(address::parse(&bytes).map_err(|_| Status::ACCESS_VIOLATION)?)
            }
        };
        let segments = buffers(self.call, at, count)?.into_iter().map(Segment::Memory).collect();
        let send = Send { segments, to, urgent: flags & MSG_OOB != 0, ..Send::default() };
        let deadline = if overlapped != 0 { None } else { self.deadline(1)? };
        let answering = if overlapped != 0 { Answering::Overlapped } else { Answering::Direct };
        self.start(Operation::Send(send), answering, deadline)
    }

    fn transmit(mut self, input: &[u8]) -> Result<Outcome, Status> {
        const DISCONNECT: u32 = 1;
        const USE_POSITION: u64 = -2i64 as u64;
        let (Some(offset), Some(head), Some(tail)) = (wide(input, 0), wide(input, 8), wide(input, 16)) else {
            return Err(Status::BUFFER_TOO_SMALL);
        };
        let Some([.., head_length, tail_length, file, length, _, flags]) = words::<12>(input) else {
            return Err(Status::BUFFER_TOO_SMALL);
        };
        self.socket()?.peer()?;
        let mut segments = vec![Segment::Memory(UserBuffer::new(head, u64::from(head_length)))];
        if file != 0 {
            let id = self.call.object(Handle(u64::from(file)), Some(ObjectType::File), READ_DATA)?;
            let file = self.call.kernel.file(id)?;
            let host = file.host_file().ok_or(Status::INVALID_PARAMETER)?;
            let size = host.metadata().map_err(|error| crate::io::status_of_io(&error))?.len();
            let start = if offset == USE_POSITION { file.current_position() } else { offset };
            let behind = size.saturating_sub(start);
            let length = if length == 0 { behind } else { behind.min(u64::from(length)) };
            segments.push(Segment::File(id, start, length));
        }
        segments.push(Segment::Memory(UserBuffer::new(tail, u64::from(tail_length))));
        let send = Send { segments, disconnect: flags & DISCONNECT != 0, ..Send::default() };
        self.start(Operation::Send(send), Answering::Later, None)
    }
}

/// INTERFACE_INFO of the loopback interface: the one that is there whatever the host has.
fn interfaces() -> Vec<u8> {
    /// IFF_UP, IFF_LOOPBACK, IFF_MULTICAST.
    const FLAGS: u32 = 0x15;
    /// Bytes of a sockaddr_gen.
    const ADDRESS: usize = 24;
    let mut bytes = FLAGS.to_le_bytes().to_vec();
    let sockaddr = |host: [u8; 4]| address::encode((host, 0).into());
    // Own address, broadcast address (it has none), mask.
    for mut sockaddr in [sockaddr([127, 0, 0, 1]), Vec::new(), sockaddr([255, 0, 0, 0])] {
        sockaddr.resize(ADDRESS, 0);
        bytes.extend(sockaddr);
    }
    bytes
}
