//! Windows' own control codes, and its way of making a socket: an extended attribute of the opening.
//!
//! Sources: the documented structures of Winsock's kernel interface as public headers give them (System Informer's
//! `ntafd.h`); they are those of 64-bit callers. Programs that go round ws2_32 use them.

use super::control::{Session, buffers, probe, wide};
use super::offline::words;
use super::request::{Answering, Operation, Receive, Segment, Send};
use super::socket::State;
use super::{HostSocket, NetworkAccess, OfflineSocket, Socket, address, code, native_code};
use crate::object::{Handle, ObjectType};
use crate::service::{Call, Outcome};
use crate::status::Status;
use crate::user_ptr::{UserBuffer, UserPtr};

/// Most bytes of a SOCKADDR.
const MAX_ADDRESS: u64 = 128;
/// Most bytes that a socket keeps for its caller.
const MAX_CONTEXT: usize = 0x1000;
/// Most connections that were waited for and neither accepted nor closed.
const MAX_WAITING: usize = 1024;

/// Reads the attribute that an opening of the device may have: address family, type and protocol.
pub(in crate::io) fn open_packet(call: &mut Call<'_, '_>, at: u64, length: u32) -> Result<[u32; 3], Status> {
    const NAME: &[u8] = b"AfdOpenPacketXX";
    // Next, flags, lengths of name and value; name; flags and group of the endpoint.
    const KIND: usize = 32;
    const ENOUGH: u32 = 256;
    let bytes = UserBuffer::new(at, u64::from(length.min(ENOUGH))).read(call)?;
    if bytes.get(5).copied() != Some(NAME.len() as u8) || bytes.get(8..8 + NAME.len()) != Some(NAME) {
        return Err(Status::EAS_NOT_SUPPORTED);
    }
    bytes.get(KIND..).and_then(words).ok_or(Status::INVALID_PARAMETER)
}

impl Socket {
    /// A socket as NtCreateFile makes it.
    pub(in crate::io) fn open(access: NetworkAccess, kind: [u32; 3]) -> Result<Self, Status> {
        let made = match access {
            NetworkAccess::Off => OfflineSocket::of(kind).map(Self::Offline),
            access => HostSocket::create(kind, access).map(Self::Host),
        };
        // Only Wine's ws2_32 expects Winsock's numbers.
        const DENIED: Status = Status(0xC001_271D);
        made.map_err(|status| match status {
            DENIED => Status::ACCESS_DENIED,
            Status(0xC001_0000..=0xC001_FFFF) => Status::NOT_SUPPORTED,
            status => status,
        })
    }
}

impl HostSocket {
    /// Keeps an accepted connection until it is asked for: its number.
    pub fn keep(&mut self, connection: Self) -> Result<u32, Status> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(Status::INSUFFICIENT_RESOURCES);
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.waiting.insert(self.sequence, connection);
        Ok(self.sequence)
    }
}

impl Session<'_, '_, '_> {
    /// Serves one of Windows' codes.
    pub(super) fn native(mut self, code: u32, input: &[u8]) -> Result<Outcome, Status> {
        let now = self.now();
        match code {
            native_code::CONNECT => {
                let wanted = address::parse(input.get(24..).unwrap_or_default())?;
                let socket = self.socket()?;
                match socket.state {
                    State::Listening | State::Connecting => return Err(Status::INVALID_PARAMETER),
                    State::Connected => return Err(Status::CONNECTION_ACTIVE),
                    State::Unconnected | State::Connectionless => socket.connect(wanted, now)?,
                }
                let state = socket.state;
                let id = self.id;
                self.call.kernel.watch(id);
                if state == State::Connectionless {
                    return self.answer(&[]);
                }
                self.start(Operation::Connect(Send::default()), Answering::Overlapped, None)
            }
            native_code::WAIT_FOR_LISTEN => {
                if self.output.length < 4 + address::SOCKADDR_IN as u64 {
                    return Err(Status::BUFFER_TOO_SMALL);
                }
                let output = self.output;
                self.start(Operation::WaitForListen(output), Answering::Direct, None)
            }
            native_code::ACCEPT => {
                let (Some([_, sequence]), Some(handle)) = (words(input), wide(input, 8)) else {
                    return Err(Status::INVALID_PARAMETER);
                };
                let target = self.call.object(Handle(handle), Some(ObjectType::File), 0)?;
                if self.call.kernel.host_socket(target)?.state != State::Unconnected {
                    return Err(Status::INVALID_PARAMETER);
                }
                let mut connection = self.socket()?.waiting.remove(&sequence).ok_or(Status::INVALID_PARAMETER)?;
                let target = self.call.kernel.host_socket(target)?;
                // Events and the mode are the target's own.
                connection.events = std::mem::take(&mut target.events);
                connection.nonblocking = target.nonblocking;
                *target = connection;
                self.answer(&[])
            }
            native_code::SEND => {
                let send = Send { segments: self.segments(input)?, urgent: flag(input, 0x20), ..Send::default() };
                self.start_sending(send)
            }
            native_code::SEND_DATAGRAM => {
                // The address is told at the end, behind two structures of the transport interface.
                let (Some(length), Some(at)) = (wide(input, 88), wide(input, 96)) else {
                    return Err(Status::INVALID_PARAMETER);
                };
                let sockaddr = UserBuffer::new(at, (length & 0xFFFF_FFFF).min(MAX_ADDRESS)).read(self.call)?;
                let to = Some(address::parse(&sockaddr)?);
                let send = Send { segments: self.segments(input)?, to, ..Send::default() };
                self.start_sending(send)
            }
            native_code::RECEIVE_DATAGRAM => {
                let (Some(at), Some([_, _, count, afd_flags, flags, _])) = (wide(input, 0), words(input)) else {
                    return Err(Status::INVALID_PARAMETER);
                };
                let address = match (wide(input, 24), wide(input, 32)) {
                    (Some(0) | None, _) | (_, Some(0) | None) => None,
                    (Some(at), Some(length_at)) => {
                        let room = UserPtr::<u32>::new(length_at).read(self.call)?;
                        Some((UserBuffer::new(at, u64::from(room)), length_at))
                    }
                };
                let buffers = buffers(self.call, at, count)?;
                probe(self.call, &buffers)?;
                let receive = Receive { buffers, peek: flags & 0x80 != 0, address, ..Receive::default() };
                let answering = if afd_flags & 2 != 0 { Answering::Overlapped } else { Answering::Direct };
                self.start(Operation::Receive(receive), answering, None)
            }
            native_code::DISCONNECT => {
                let Some([mode]) = words(input) else { return Err(Status::INVALID_PARAMETER) };
                let socket = self.socket()?;
                match mode & 0xF {
                    8 => socket.disconnect()?,
                    // Sending, receiving, both; what is broken off is ended as well.
                    1 => socket.shut_down(1)?,
                    2 => socket.shut_down(0)?,
                    3 | 4 => socket.shut_down(2)?,
                    _ => return Err(Status::INVALID_PARAMETER),
                }
                self.answer(&[])
            }
            native_code::GET_PEER_NAME => {
                let peer = self.socket()?.peer()?;
                self.answer(&peer)
            }
            native_code::SET_CONTEXT => {
                self.socket()?.context = input.get(..input.len().min(MAX_CONTEXT)).unwrap_or_default().to_vec();
                self.answer(&[])
            }
            native_code::GET_CONTEXT => {
                let context = self.socket()?.context.clone();
                self.answer(&context)
            }
            native_code::SET_INFORMATION => {
                const NONBLOCKING: u32 = 2;
                let Some([kind, _, value]) = words(input) else { return Err(Status::INVALID_PARAMETER) };
                match kind {
                    NONBLOCKING => self.socket()?.nonblocking = value & 0xFF != 0,
                    _ => return Err(Status::NOT_SUPPORTED),
                }
                self.answer(&[])
            }
            _ => Err(Status::NOT_SUPPORTED),
        }
    }

    fn segments(&mut self, input: &[u8]) -> Result<Vec<Segment>, Status> {
        let (Some(at), Some([_, _, count])) = (wide(input, 0), words(input)) else {
            return Err(Status::INVALID_PARAMETER);
        };
        Ok(buffers(self.call, at, count)?.into_iter().map(Segment::Memory).collect())
    }

    fn start_sending(self, send: Send) -> Result<Outcome, Status> {
        self.start(Operation::Send(send), Answering::Direct, None)
    }
}

/// A flag of the transport interface in AFD_SEND_INFO.
fn flag(input: &[u8], wanted: u32) -> bool {
    words::<5>(input).is_some_and(|[.., flags]| flags & wanted != 0)
}

/// Windows' code as the one of Wine's that asks for the same, for sockets that lead nowhere.
pub(super) fn as_wine(code: u32, input: &[u8]) -> (u32, Vec<u8>) {
    match code {
        native_code::CONNECT => {
            let sockaddr = input.get(24..).unwrap_or_default();
            let head = [sockaddr.len() as u32, 1].map(u32::to_le_bytes).concat();
            (code::CONNECT, [&head, sockaddr].concat())
        }
        native_code::WAIT_FOR_LISTEN => (code::ACCEPT, Vec::new()),
        native_code::SEND | native_code::SEND_DATAGRAM => (code::SEND_MESSAGE, Vec::new()),
        native_code::RECEIVE_DATAGRAM => (code::RECEIVE_MESSAGE, Vec::new()),
        native_code::GET_PEER_NAME => (code::PEER_NAME, Vec::new()),
        code => (code, input.to_vec()),
    }
}
