//! `\Device\Afd`: sockets.
//!
//! User-mode code opens the device and speaks to the file in control codes ([`code`]). Those below 2_0000h (device 1) are
//! Windows' own, the others (device 12h) are what Wine's ws2_32 uses instead of Windows' undocumented ones (the header of
//! its socket driver). Both meet in [`control`]; [`native`] has those of Windows' that Wine does without.
//!
//! What a guest reaches is for the user to say ([`NetworkAccess`]). Without a network sockets exist and lead nowhere
//! ([`offline`]). With one each has a non-blocking socket of the host's ([`socket`]); operations that cannot be done at
//! once become requests ([`request`]) that are tried again at time slices and whenever no thread can run: then lstar
//! waits for the host, too. Names are resolved in [`names`].
//!
//! Runs with a network are not the same every time: its timing is the host's.

pub mod address;
pub mod control;
pub mod errors;
pub mod names;
pub mod native;
pub mod offline;
pub mod options;
pub mod poll;
pub mod request;
pub mod socket;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

pub use names::Resolver;
pub use offline::OfflineSocket;
pub use socket::HostSocket;

use crate::io::requests::RequestId;
use crate::kernel::Kernel;
use crate::object::{Body, ObjectId};
use crate::status::Status;
use crate::thread::ThreadId;
use request::Request;

use super::file::FileKind;

/// SOCK_STREAM.
pub const SOCK_STREAM: u32 = 1;
/// SOCK_DGRAM.
pub const SOCK_DGRAM: u32 = 2;

/// What a guest may reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkAccess {
    /// Nothing: sockets lead nowhere.
    #[default]
    Off,
    /// Loopback addresses of the host.
    Loopback,
    /// What the host reaches.
    Host,
}

/// Control codes.
pub mod code {
    /// Gives a socket a name.
    pub const BIND: u32 = 0x1_2003;
    /// Has it accept connections.
    pub const LISTEN: u32 = 0x1_200B;
    /// Receives.
    pub const RECEIVE: u32 = 0x1_2017;
    /// Waits for events of several sockets.
    pub const POLL: u32 = 0x1_2024;
    /// A socket's own name.
    pub const GET_NAME: u32 = 0x1_202F;
    /// Has an event set when events happen.
    pub const EVENT_SELECT: u32 = 0x1_2087;
    /// The events that have happened.
    pub const GET_EVENTS: u32 = 0x1_208B;

    /// The code of one of Wine's functions.
    #[must_use]
    pub const fn wine(function: u32) -> u32 {
        0x12 << 16 | function << 2
    }
    /// Makes the file a socket.
    pub const CREATE: u32 = wine(200);
    /// Accepts a connection as a new socket.
    pub const ACCEPT: u32 = wine(201);
    /// Accepts a connection as a socket that exists.
    pub const ACCEPT_INTO: u32 = wine(202);
    /// Connects.
    pub const CONNECT: u32 = wine(203);
    /// Ends a direction.
    pub const SHUTDOWN: u32 = wine(204);
    /// Receives, with address and flags.
    pub const RECEIVE_MESSAGE: u32 = wine(205);
    /// Sends.
    pub const SEND_MESSAGE: u32 = wine(206);
    /// Sends a file.
    pub const TRANSMIT: u32 = wine(207);
    /// Waits for a change of the machine's addresses.
    pub const ADDRESS_LIST_CHANGE: u32 = wine(208);
    /// Non-blocking or not.
    pub const FIONBIO: u32 = wine(209);
    /// Completes an operation that ws2_32 has carried out itself.
    pub const COMPLETE_ASYNC: u32 = wine(210);
    /// Bytes to be received.
    pub const FIONREAD: u32 = wine(211);
    /// Whether the next byte is behind the urgent one.
    pub const AT_MARK: u32 = wine(212);
    /// The machine's interfaces.
    pub const INTERFACE_LIST: u32 = wine(213);
    /// Keep-alive settings.
    pub const KEEPALIVE_VALUES: u32 = wine(214);
    /// The peer's name.
    pub const PEER_NAME: u32 = wine(216);
    /// Puts an accepted connection back (a condition function has deferred it).
    pub const DEFER: u32 = wine(217);
    /// Family, type, protocol.
    pub const GET_INFO: u32 = wine(218);
    /// SO_ACCEPTCONN.
    pub const IS_LISTENING: u32 = wine(219);
    /// SO_ERROR.
    pub const GET_ERROR: u32 = wine(222);
    /// SO_CONNECT_TIME.
    pub const CONNECT_TIME: u32 = wine(292);
}

/// Control codes of Windows' that Wine's ws2_32 has others for.
pub mod native_code {
    /// Connects.
    pub const CONNECT: u32 = 0x1_2007;
    /// Waits for a connection and gives it a number.
    pub const WAIT_FOR_LISTEN: u32 = 0x1_200C;
    /// Makes a numbered connection a socket's.
    pub const ACCEPT: u32 = 0x1_2010;
    /// Receives a datagram.
    pub const RECEIVE_DATAGRAM: u32 = 0x1_201B;
    /// Sends.
    pub const SEND: u32 = 0x1_201F;
    /// Sends a datagram.
    pub const SEND_DATAGRAM: u32 = 0x1_2023;
    /// Ends directions.
    pub const DISCONNECT: u32 = 0x1_202B;
    /// Sets a mode.
    pub const SET_INFORMATION: u32 = 0x1_203B;
    /// The peer's name.
    pub const GET_PEER_NAME: u32 = 0x1_203F;
    /// What the caller keeps with the socket.
    pub const GET_CONTEXT: u32 = 0x1_2043;
    /// Keeps something with the socket.
    pub const SET_CONTEXT: u32 = 0x1_2047;
}

/// AFD_POLL_* events.
pub mod event {
    /// Data can be received.
    pub const READ: u32 = 0x1;
    /// Urgent data.
    pub const OUT_OF_BAND: u32 = 0x2;
    /// Data can be sent.
    pub const WRITE: u32 = 0x4;
    /// The peer sends no more, or the connection is broken.
    pub const HANG_UP: u32 = 0x8;
    /// The peer has reset the connection.
    pub const RESET: u32 = 0x10;
    /// The guest has closed the socket.
    pub const CLOSE: u32 = 0x20;
    /// It is connected.
    pub const CONNECT: u32 = 0x40;
    /// A connection can be accepted.
    pub const ACCEPT: u32 = 0x80;
    /// Connecting has failed.
    pub const CONNECT_ERROR: u32 = 0x100;
    /// Events that AFD_GET_EVENTS has room for.
    pub const COUNT: usize = 13;
    /// Bit number of [`HANG_UP`].
    pub const HANG_UP_INDEX: usize = 3;
    /// Bit number of [`CONNECT_ERROR`].
    pub const CONNECT_ERROR_INDEX: usize = 8;
}

/// What an open file of the device is.
#[derive(Debug)]
pub enum Socket {
    /// Not a socket yet, or one without a network.
    Offline(OfflineSocket),
    /// One of the host's.
    Host(HostSocket),
}

impl Default for Socket {
    fn default() -> Self {
        Self::Offline(OfflineSocket::default())
    }
}

impl Socket {
    /// The event object it refers to.
    #[must_use]
    pub fn event_object(&self) -> Option<ObjectId> {
        match self {
            Self::Offline(_) => None,
            Self::Host(socket) => socket.events.object,
        }
    }
}

/// Whether there are sockets of an address family, type and protocol: TCP and UDP over both IPs. Wine's ws2_32 expects
/// Winsock's own error, as a status.
fn check_kind(kind: [u32; 3]) -> Result<(), Status> {
    const ACCESS: u32 = 10013;
    const PROTOCOL: u32 = 10043;
    const TYPE: u32 = 10044;
    const FAMILY: u32 = 10047;
    const SOCK_RAW: u32 = 3;
    const SOCK_SEQUENCED: u32 = 5;
    let [family, kind, protocol] = kind;
    let error = match (kind, protocol) {
        (0 | 6.., _) if (family as i32) >= 0 => TYPE,
        _ if !matches!(family, address::AF_INET | address::AF_INET6) => FAMILY,
        (SOCK_STREAM, 0 | 6) | (SOCK_DGRAM, 0 | 17) => return Ok(()),
        // They are for administrators.
        (SOCK_RAW, _) => ACCESS,
        (4..=SOCK_SEQUENCED, _) => TYPE,
        _ => PROTOCOL,
    };
    Err(Status(0xC001_0000 | error))
}

/// How long requests may stay untried while threads run.
const INTERVAL: Duration = Duration::from_micros(50);

/// The device's state.
#[derive(Debug, Default)]
pub struct Afd {
    /// What the guest may reach.
    pub access: NetworkAccess,
    /// Who knows the host's names.
    pub resolver: Option<Box<dyn Resolver>>,
    /// Ports given to sockets without a network.
    pub ports: offline::PortsInUse,
    /// What has not been done yet, in the order in which it was asked for.
    requests: BTreeMap<RequestId, Request>,
    /// How requests have ended whose threads wait for them.
    ended: BTreeMap<RequestId, Status>,
    last_request: RequestId,
    /// Sockets whose events are selected, or that are being connected.
    watched: BTreeSet<ObjectId>,
    /// When requests were tried last.
    tried: Option<Instant>,
    /// The last wait for the host was over for nothing.
    in_vain: bool,
}

impl Afd {
    /// Nothing is open yet.
    #[must_use]
    pub fn new(access: NetworkAccess, resolver: Option<Box<dyn Resolver>>) -> Self {
        Self { access, resolver, ..Self::default() }
    }

    /// Whether the host may have something to say.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.requests.is_empty() || !self.watched.is_empty()
    }

    /// Interrupt time at which the first request times out.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.requests.values().filter_map(|request| request.deadline).min()
    }

    /// Has requests be tried at the next opportunity.
    pub(crate) fn hurry(&mut self) {
        self.tried = None;
    }

    /// Takes back what a thread that ends has asked for.
    pub fn cancel_thread(&mut self, thread: ThreadId) {
        self.cancel(|request| request.io.thread == thread && !request.io.outlives_thread);
    }

    /// Takes back what was asked of a file, by one thread or all, with one IO_STATUS_BLOCK or any; whether there was
    /// something.
    pub fn cancel_file(&mut self, file: ObjectId, thread: Option<ThreadId>, io_status: u64) -> bool {
        self.cancel(|Request { io, .. }| {
            io.file == file
                && thread.is_none_or(|thread| thread == io.thread)
                && (io_status == 0 || io_status == io.io_status)
        })
    }

    fn cancel(&mut self, matches: impl Fn(&Request) -> bool) -> bool {
        let mut found = false;
        for request in self.requests.values_mut().filter(|request| matches(request)) {
            request.cancelled = true;
            found = true;
        }
        if found {
            self.hurry();
        }
        found
    }
}

impl Kernel {
    /// Takes the host's socket out of a file, which is none any more.
    fn take_host_socket(&mut self, id: ObjectId) -> Result<HostSocket, Status> {
        self.host_socket(id)?;
        self.afd.watched.remove(&id);
        let Body::File(file) = self.objects.body_mut(id)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
        let FileKind::Socket(socket) = &mut file.kind else { return Err(Status::OBJECT_TYPE_MISMATCH) };
        let Socket::Host(mut socket) = std::mem::take(socket.as_mut()) else { return Err(Status::INVALID_HANDLE) };
        if let Some(event) = std::mem::take(&mut socket.events).object {
            self.objects.dereference(event);
        }
        Ok(socket)
    }

    /// Whether another stream of the guest's has a name that keeps one from being given. The host, with SO_REUSEADDR,
    /// would let several have it.
    fn conflict(&mut self, id: ObjectId, wanted: std::net::SocketAddr) -> Result<(), Status> {
        let own = self.host_socket(id)?;
        if !own.is_stream() || wanted.port() == 0 {
            return Ok(());
        }
        let [reuse, exclusive] = own.sharing;
        let others = self.objects.iter().filter_map(|(_, object)| match &object.body {
            Body::File(file) => match &file.kind {
                FileKind::Socket(socket) => match socket.as_ref() {
                    Socket::Host(socket) => Some(socket),
                    Socket::Offline(_) => None,
                },
                _ => None,
            },
            _ => None,
        });
        for other in others.filter(|other| other.is_stream()) {
            let Some(taken) = other.given_name().filter(|taken| taken.port() == wanted.port()) else { continue };
            // Exclusive use of all addresses is use of each.
            let covers = |any: std::net::IpAddr, exclusive: bool| exclusive && address::is_any(any);
            let same = taken.ip() == wanted.ip();
            let covered = covers(taken.ip(), other.sharing[1]) || covers(wanted.ip(), exclusive);
            if (same || covered) && !(reuse && other.sharing[0]) {
                let denied = reuse || covers(taken.ip(), other.sharing[1]);
                return Err(if denied { Status::ACCESS_DENIED } else { Status::SHARING_VIOLATION });
            }
        }
        Ok(())
    }

    /// The host's socket behind a file.
    pub fn host_socket(&mut self, id: ObjectId) -> Result<&mut HostSocket, Status> {
        match self.objects.body_mut(id)? {
            Body::File(file) => match &mut file.kind {
                FileKind::Socket(socket) => match socket.as_mut() {
                    Socket::Host(socket) => Ok(socket),
                    Socket::Offline(_) => Err(Status::INVALID_HANDLE),
                },
                _ => Err(Status::OBJECT_TYPE_MISMATCH),
            },
            _ => Err(Status::OBJECT_TYPE_MISMATCH),
        }
    }
}
