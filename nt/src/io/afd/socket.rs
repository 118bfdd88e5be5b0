//! A socket of the host's behind a socket of the guest's: state, addresses, and the events that AFD reports.
//!
//! The host's socket never blocks. What has to wait is a request (see [`super::request`]) that is tried again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::net::{self, AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto, sockopt};

use super::address::{self, AF_INET};
use super::errors::status_of;
use super::{NetworkAccess, SOCK_STREAM, event};
use crate::object::ObjectId;
use crate::status::Status;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A stream that is not connected.
    Unconnected,
    /// The host is at it.
    Connecting,
    /// A stream that was connected.
    Connected,
    /// It accepts connections.
    Listening,
    /// Datagrams.
    Connectionless,
}

/// The events of a socket as WSAEventSelect and WSAEnumNetworkEvents see them: each is told once, until something
/// that the guest does re-enables it.
#[derive(Debug, Default)]
pub struct EventRecord {
    /// The event object that is set, referenced by the socket.
    pub object: Option<ObjectId>,
    /// Which events the guest selected.
    pub mask: u32,
    /// Happened and not asked for yet.
    pub pending: u32,
    /// Told, and not re-enabled since.
    reported: u32,
    /// The object is to be set.
    signal: bool,
}

impl EventRecord {
    /// Takes note of events.
    pub fn post(&mut self, events: u32) {
        let new = events & !self.reported;
        self.pending |= new;
        self.reported |= new;
        self.signal |= new & self.mask != 0;
    }

    /// Selects events; those that have happened already count.
    pub fn select(&mut self, object: Option<ObjectId>, mask: u32) {
        (self.object, self.mask) = (object, mask);
        self.signal = self.pending & mask != 0;
    }

    /// The object to be set, once.
    pub fn take_signal(&mut self) -> Option<ObjectId> {
        std::mem::take(&mut self.signal).then_some(self.object).flatten()
    }

    /// Lets events be told again.
    pub fn enable(&mut self, events: u32) {
        self.pending &= !events;
        self.reported &= !events;
    }

    /// Selected events that have not been told yet.
    #[must_use]
    pub fn awaited(&self) -> u32 {
        self.mask & !self.reported
    }
}

/// A created socket.
#[derive(Debug)]
pub struct HostSocket {
    /// Address family, type and protocol in Windows' numbers.
    pub kind: [u32; 3],
    descriptor: OwnedFd,
    access: NetworkAccess,
    /// The kernel lets the socket use the loopback device only.
    confined: bool,
    /// How far it is.
    pub state: State,
    /// Its own name, as the guest is told.
    name: Option<SocketAddr>,
    /// The name that it was given by the guest.
    given_name: Option<SocketAddr>,
    /// A connection that was accepted and put back.
    deferred: Option<Box<HostSocket>>,
    /// Connections that were waited for, by their numbers, and the last number.
    pub waiting: BTreeMap<u32, HostSocket>,
    /// See there.
    pub sequence: u32,
    /// What the caller keeps with the socket.
    pub context: Vec<u8>,
    /// Operations that would wait fail instead, unless they are asynchronous.
    pub nonblocking: bool,
    /// The guest receives no more.
    pub receive_shut: bool,
    /// The guest sends no more.
    pub send_shut: bool,
    reset: bool,
    /// SO_REUSEADDR and SO_EXCLUSIVEADDRUSE as set.
    pub sharing: [bool; 2],
    /// SO_RCVTIMEO and SO_SNDTIMEO in milliseconds, 0: none.
    pub timeouts: [u32; 2],
    /// SO_RCVBUF and SO_SNDBUF as set; the host doubles what it is given.
    pub buffer_sizes: [u32; 2],
    /// Interrupt time at which it was connected.
    pub connected_at: Option<u64>,
    /// See there.
    pub events: EventRecord,
    /// What went wrong, by event.
    errors: [Option<Errno>; event::COUNT],
}

impl HostSocket {
    /// Creates a socket of Windows' address family, type and protocol.
    pub fn create(kind: [u32; 3], access: NetworkAccess) -> Result<Self, Status> {
        super::check_kind(kind)?;
        let family = if kind[0] == AF_INET { AddressFamily::INET } else { AddressFamily::INET6 };
        let (socket_type, protocol, state) = if kind[1] == SOCK_STREAM {
            (SocketType::STREAM, ipproto::TCP, State::Unconnected)
        } else {
            (SocketType::DGRAM, ipproto::UDP, State::Connectionless)
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let descriptor = net::socket_with(family, socket_type, flags, Some(protocol)).map_err(status_of)?;
        if family == AddressFamily::INET6 {
            // Windows' default, which the guest may change.
            let _ = sockopt::set_ipv6_v6only(&descriptor, true);
        }
        if kind[1] == SOCK_STREAM {
            // A Windows listener can be bound again at once; what SO_REUSEADDR means there the host does not offer.
            let _ = sockopt::set_socket_reuseaddr(&descriptor, true);
        }
        // Windows sends datagrams in pieces where need be, and streams never.
        let whole = kind[1] == SOCK_STREAM;
        if family == AddressFamily::INET {
            let way = if whole { Ipv4PathMtuDiscovery::DO } else { Ipv4PathMtuDiscovery::DONT };
            let _ = sockopt::set_ip_mtu_discover(&descriptor, way);
        } else {
            let way = if whole { Ipv6PathMtuDiscovery::DO } else { Ipv6PathMtuDiscovery::DONT };
            let _ = sockopt::set_ipv6_mtu_discover(&descriptor, way);
        }
        let confined = access == NetworkAccess::Loopback && bind_to_loopback_device(&descriptor);
        Ok(Self::of(descriptor, kind, access, confined, state))
    }

    fn of(descriptor: OwnedFd, kind: [u32; 3], access: NetworkAccess, confined: bool, state: State) -> Self {
        let size = |size: rustix::io::Result<usize>| size.map_or(0, |size| u32::try_from(size).unwrap_or(u32::MAX));
        let receive = size(sockopt::socket_recv_buffer_size(&descriptor));
        let send = size(sockopt::socket_send_buffer_size(&descriptor));
        Self {
            kind,
            descriptor,
            access,
            confined,
            state,
            name: None,
            given_name: None,
            deferred: None,
            waiting: BTreeMap::new(),
            sequence: 0,
            context: Vec::new(),
            nonblocking: false,
            receive_shut: false,
            send_shut: false,
            reset: false,
            sharing: [false; 2],
            timeouts: [0; 2],
            buffer_sizes: [receive, send],
            connected_at: None,
            events: EventRecord::default(),
            errors: [None; event::COUNT],
        }
    }

    /// The host's socket.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// What the guest may reach.
    #[must_use]
    pub fn access(&self) -> NetworkAccess {
        self.access
    }

    /// Whether it carries a stream.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.kind[1] == SOCK_STREAM
    }

    /// The name that it was given by the guest, if it was.
    #[must_use]
    pub fn given_name(&self) -> Option<SocketAddr> {
        self.given_name
    }

    /// Puts an accepted connection back: it is the next one to be accepted.
    pub fn put_back(&mut self, connection: Self) {
        self.deferred = Some(Box::new(connection));
    }

    /// Its own name as SOCKADDR, once it has one.
    pub fn name(&self) -> Result<Vec<u8>, Status> {
        self.name.map(address::encode).ok_or(Status::INVALID_PARAMETER)
    }

    /// Whether it has a name.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.name.is_some()
    }

    fn learn_name(&mut self) {
        self.name = net::getsockname(&self.descriptor).ok().and_then(|name| name.try_into().ok());
    }

    /// Gives it a name.
    pub fn bind(&mut self, wanted: SocketAddr) -> Result<(), Status> {
        if self.is_bound() {
            return Err(Status::ADDRESS_ALREADY_ASSOCIATED);
        }
        if wanted.is_ipv4() != (self.kind[0] == AF_INET) {
            return Err(Status::INVALID_ADDRESS);
        }
        let any = address::is_any(wanted.ip());
        let mut actual = wanted;
        if self.access == NetworkAccess::Loopback {
            if !any && !address::is_loopback(wanted.ip()) {
                // As if the machine had no other address.
                return Err(Status::INVALID_ADDRESS_COMPONENT);
            }
            if any && !self.confined {
                actual = address::loopback_like(wanted);
            }
        }
        net::bind(&self.descriptor, &actual).map_err(|error| match error {
            Errno::ADDRINUSE if self.sharing[0] => Status::ACCESS_DENIED,
            error => status_of(error),
        })?;
        self.learn_name();
        self.given_name = self.name.map(|name| SocketAddr::new(wanted.ip(), name.port()));
        if any && let Some(name) = &mut self.name {
            // A narrowed name is the sandbox's own affair.
            name.set_ip(wanted.ip());
        }
        Ok(())
    }

    /// Gives a datagram socket a name before it sends, as Windows does.
    pub fn bind_to_any(&mut self) -> Result<(), Status> {
        if self.is_bound() || self.is_stream() {
            return Ok(());
        }
        let any: IpAddr = match self.kind[0] {
            AF_INET => std::net::Ipv4Addr::UNSPECIFIED.into(),
            _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        self.bind(SocketAddr::new(any, 0))
    }

    /// Whether the guest may reach an address, and what that is for the host.
    pub fn destination(&self, wanted: SocketAddr) -> Result<SocketAddr, Status> {
        if address::is_any(wanted.ip()) {
            // The host would take it for itself.
            return Err(Status::INVALID_ADDRESS_COMPONENT);
        }
        if self.access == NetworkAccess::Loopback && !address::is_loopback(wanted.ip()) {
            return Err(Status::NETWORK_UNREACHABLE);
        }
        Ok(wanted)
    }

    /// Accepts connections from now on.
    pub fn listen(&mut self, backlog: i32) -> Result<(), Status> {
        if !self.is_bound() || !self.is_stream() {
            return Err(Status::INVALID_PARAMETER);
        }
        net::listen(&self.descriptor, backlog).map_err(status_of)?;
        self.state = State::Listening;
        Ok(())
    }

    /// Takes a connection; STATUS_DEVICE_NOT_READY while there is none.
    pub fn accept(&mut self) -> Result<Self, Status> {
        if let Some(deferred) = self.deferred.take() {
            self.events.enable(event::ACCEPT);
            return Ok(*deferred);
        }
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let (descriptor, peer) = net::acceptfrom_with(&self.descriptor, flags).map_err(status_of)?;
            self.events.enable(event::ACCEPT);
            let peer: Option<SocketAddr> = peer.and_then(|peer| peer.try_into().ok());
            if self.access == NetworkAccess::Loopback && !peer.is_some_and(|peer| address::is_loopback(peer.ip())) {
                continue;
            }
            let mut accepted = Self::of(descriptor, self.kind, self.access, self.confined, State::Connected);
            accepted.learn_name();
            accepted.nonblocking = self.nonblocking;
            accepted.sharing = self.sharing;
            accepted.timeouts = self.timeouts;
            accepted.buffer_sizes = self.buffer_sizes;
            return Ok(accepted);
        }
    }

    /// Starts to connect. A stream's connection is complete when [`State`] says so.
    pub fn connect(&mut self, wanted: SocketAddr, now: u64) -> Result<(), Status> {
        let destination = self.destination(wanted)?;
        match net::connect(&self.descriptor, &destination) {
            Ok(()) if self.is_stream() => {
                self.state = State::Connected;
                self.connected_at = Some(now);
                self.events.post(event::CONNECT);
            }
            Ok(()) => {}
            Err(Errno::INPROGRESS) => self.state = State::Connecting,
            Err(error) => return Err(status_of(error)),
        }
        self.learn_name();
        Ok(())
    }

    /// Takes a datagram socket's peer away.
    pub fn disconnect(&mut self) -> Result<(), Status> {
        net::connect_unspec(&self.descriptor).map_err(status_of)
    }

    /// Sees whether a connection has been made or has failed: its error, once it has.
    pub fn connecting(&mut self, now: u64) -> Option<Status> {
        self.ready_events(now);
        match self.state {
            State::Connecting => None,
            State::Connected => Some(Status::SUCCESS),
            _ => Some(self.errors[event::CONNECT_ERROR_INDEX].map_or(Status::CONNECTION_REFUSED, status_of)),
        }
    }

    /// The peer's name as SOCKADDR.
    pub fn peer(&self) -> Result<Vec<u8>, Status> {
        let peer = net::getpeername(&self.descriptor).map_err(status_of)?;
        let peer: Option<SocketAddr> = peer.and_then(|peer| peer.try_into().ok());
        peer.map(address::encode).ok_or(Status::INVALID_CONNECTION)
    }

    /// Ends one or both directions: 0 receiving, 1 sending, 2 both.
    pub fn shut_down(&mut self, how: u32) -> Result<(), Status> {
        if how > 2 {
            return Err(Status::INVALID_PARAMETER);
        }
        if !matches!(self.state, State::Connected | State::Connectionless) {
            return Err(Status::INVALID_CONNECTION);
        }
        self.receive_shut |= how != 1;
        if how != 0 {
            self.send_shut = true;
            // The peer may be gone already.
            let _ = net::shutdown(&self.descriptor, net::Shutdown::Write);
        }
        Ok(())
    }

    /// Bytes that can be received at once.
    pub fn available(&self) -> Result<u32, Status> {
        if self.state == State::Listening {
            return Ok(0);
        }
        let available = rustix::io::ioctl_fionread(&self.descriptor).map_err(status_of)?;
        Ok(u32::try_from(available).unwrap_or(u32::MAX))
    }

    /// What the host must be asked for so that a wait for `wanted` events ends in time.
    #[must_use]
    pub fn poll_flags(&self, wanted: u32) -> PollFlags {
        let mut flags = PollFlags::empty();
        if self.state == State::Connecting {
            return PollFlags::OUT;
        }
        // A stream that was never connected has no events, whatever the host says of it.
        if self.state == State::Unconnected || self.reset {
            return flags;
        }
        flags.set(PollFlags::IN, wanted & (event::READ | event::ACCEPT | event::HANG_UP) != 0);
        flags.set(PollFlags::PRI, wanted & event::OUT_OF_BAND != 0);
        flags.set(PollFlags::OUT, wanted & event::WRITE != 0);
        flags
    }

    /// The events that hold now; takes a connection's end of being made into account, and notes errors.
    pub fn ready_events(&mut self, now: u64) -> u32 {
        if self.state == State::Unconnected {
            return if self.errors[event::CONNECT_ERROR_INDEX].is_some() { event::CONNECT_ERROR } else { 0 };
        }
        let mut ready = poll_now(&self.descriptor, PollFlags::IN | PollFlags::PRI | PollFlags::OUT);
        let failed = ready.intersects(PollFlags::ERR | PollFlags::HUP);
        let error = if failed { sockopt::socket_error(&self.descriptor).ok().and_then(Result::err) } else { None };
        match self.state {
            State::Connecting if failed => {
                self.state = State::Unconnected;
                self.errors[event::CONNECT_ERROR_INDEX] = Some(error.unwrap_or(Errno::CONNREFUSED));
                self.events.post(event::CONNECT_ERROR);
                return event::CONNECT_ERROR;
            }
            State::Connecting if ready.contains(PollFlags::OUT) => {
                self.state = State::Connected;
                self.connected_at = Some(now);
                self.errors[event::CONNECT_ERROR_INDEX] = None;
                self.learn_name();
                self.events.post(event::CONNECT);
            }
            State::Connecting => return 0,
            State::Connected | State::Connectionless => match error {
                Some(Errno::CONNRESET | Errno::PIPE) => self.reset = true,
                Some(error) => self.errors[event::HANG_UP_INDEX] = Some(error),
                None => {}
            },
            State::Listening | State::Unconnected => {}
        }
        if self.state == State::Connected && ready.contains(PollFlags::IN) {
            match net::recv(&self.descriptor, &mut [0u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
                // The peer sends no more.
                Ok((_, 0)) => {
                    ready.remove(PollFlags::IN);
                    ready.insert(PollFlags::HUP);
                }
                Ok(_) => {}
                Err(error) => {
                    ready.remove(PollFlags::IN);
                    match error {
                        Errno::CONNRESET | Errno::PIPE => self.reset = true,
                        Errno::AGAIN | Errno::INTR => {}
                        error => self.errors[event::HANG_UP_INDEX] = Some(error),
                    }
                }
            }
        }
        if self.reset {
            ready.remove(PollFlags::IN | PollFlags::ERR | PollFlags::HUP);
        }
        let urgent =
            if sockopt::socket_oobinline(&self.descriptor).unwrap_or(false) { event::READ } else { event::OUT_OF_BAND };
        let readable = if self.state == State::Listening { event::ACCEPT } else { event::READ };
        let rows = [
            (ready.contains(PollFlags::IN) || self.deferred.is_some(), readable),
            (ready.contains(PollFlags::PRI), urgent),
            (ready.contains(PollFlags::OUT) && self.state != State::Listening, event::WRITE),
            (self.state == State::Connected, event::CONNECT),
            (ready.contains(PollFlags::HUP), event::HANG_UP),
            (ready.contains(PollFlags::ERR), event::CONNECT_ERROR),
            (self.reset, event::RESET),
        ];
        rows.into_iter().filter(|row| row.0).fold(0, |events, row| events | row.1)
    }

    /// Notes the events that hold now for WSAEventSelect.
    pub fn note_events(&mut self, now: u64) {
        // Being connected, and failing to, happen once.
        let states = event::CONNECT | event::CONNECT_ERROR;
        let events = self.ready_events(now) & !states;
        self.events.post(events);
    }

    /// AFD_GET_EVENTS: the selected events that happened since the last call, and a status for each event.
    pub fn take_events(&mut self) -> (u32, [Status; event::COUNT]) {
        let events = self.events.pending & self.events.mask;
        self.events.pending &= !self.events.mask;
        (events, self.errors.map(|error| error.map_or(Status::SUCCESS, status_of)))
    }

    /// The status that goes with events of a poll.
    #[must_use]
    pub fn status_of_events(&self, events: u32) -> Status {
        let rows = [(event::CONNECT_ERROR, event::CONNECT_ERROR_INDEX), (event::HANG_UP, event::HANG_UP_INDEX)];
        let failed = rows.into_iter().filter(|row| events & row.0 != 0).find_map(|row| self.errors[row.1]);
        failed.map_or(Status::SUCCESS, status_of)
    }

    /// SO_ERROR in the host's terms: the first error that is known.
    pub fn error(&mut self, now: u64) -> Option<Errno> {
        self.ready_events(now);
        self.errors.iter().flatten().next().copied()
    }
}

/// What a descriptor is ready for now.
pub fn poll_now(descriptor: impl AsFd, flags: PollFlags) -> PollFlags {
    let mut polled = [PollFd::from_borrowed_fd(descriptor.as_fd(), flags)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&now))) {
        Ok(_) => polled[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

/// Has the kernel keep a socket to the loopback device; `false` where it cannot.
fn bind_to_loopback_device(descriptor: &OwnedFd) -> bool {
    use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
    setsockopt(descriptor, BindToDevice, &"lo".into()).is_ok()
}
