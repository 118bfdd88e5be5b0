//! Sockets of a machine whose network is off: they can be created, named and asked about, and lead nowhere.
//!
//! That is what a Windows machine without a network offers, and programs that make sockets only to see what there is run
//! on. A connection to the guest itself is refused, one to anywhere else finds no route; the user is told.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::address::{self, AF_INET};
use super::native;
use super::poll::MAX_POLL;
use super::{SOCK_DGRAM, SOCK_STREAM, Socket, code, event};
use crate::io::file::FileKind;
use crate::io::info::Bytes;
use crate::io::transfer::Completion;
use crate::kernel::Kernel;
use crate::object::{Body, Handle, ObjectId};
use crate::service::{Call, Outcome};
use crate::status::Status;
use crate::user_ptr::UserBuffer;
use crate::wait::Wait;

/// A socket.
#[derive(Clone, Debug, Default)]
pub struct OfflineSocket {
    /// Address family, type, protocol; zero until it is created.
    pub kind: [u32; 3],
    /// Own address, as SOCKADDR.
    address: Option<Vec<u8>>,
    listening: bool,
    nonblocking: bool,
    /// Values of options by the number of the control code that sets them.
    options: BTreeMap<u32, Vec<u8>>,
}

/// Longest SOCKADDR that is kept.
const MAX_ADDRESS: usize = 128;
/// First port that is given to sockets that ask for any.
const FIRST_DYNAMIC_PORT: u16 = 49_152;
/// The options: number of the getting and the setting function, value of a fresh socket. A value of 0 bytes stands for a
/// setting without a query (memberships).
const OPTIONS: &[(u32, u32, &[u8])] = &[
    (220, 221, &[0; 4]),
    (223, 224, &[0; 4]),
    (225, 226, &[0; 4]),
    (227, 228, &[0; 4]),
    (230, 229, &0x1_0000u32.to_le_bytes()),
    (232, 231, &[0; 4]),
    (233, 234, &[0; 4]),
    (236, 235, &0x1_0000u32.to_le_bytes()),
    (237, 238, &[0; 4]),
    (0, 239, &[]),
    (0, 240, &[]),
    (0, 241, &[]),
    (242, 243, &[0; 4]),
    (0, 244, &[]),
    (0, 245, &[]),
    (246, 247, &[0; 4]),
    (248, 249, &[0; 4]),
    (250, 251, &[1, 0, 0, 0]),
    (252, 253, &[1, 0, 0, 0]),
    (256, 257, &[0; 4]),
    (258, 259, &[0; 4]),
    (260, 261, &[128, 0, 0, 0]),
    (0, 262, &[]),
    (263, 264, &[0; 4]),
    (0, 265, &[]),
    (266, 267, &[0; 4]),
    (0, 268, &[]),
    (269, 270, &[1, 0, 0, 0]),
    (271, 272, &[0; 4]),
    (273, 274, &[1, 0, 0, 0]),
    (275, 276, &[128, 0, 0, 0]),
    (277, 278, &[0; 4]),
    (279, 280, &[1, 0, 0, 0]),
    (284, 285, &[0; 4]),
    (286, 287, &[0; 4]),
    (288, 289, &[0; 4]),
    (290, 291, &[0; 4]),
    (293, 294, &[0; 4]),
    (295, 296, &[0; 4]),
    (297, 298, &[0; 4]),
    (299, 300, &0x1C20u32.to_le_bytes()),
    (301, 302, &[10, 0, 0, 0]),
    (303, 304, &[1, 0, 0, 0]),
];

impl OfflineSocket {
    /// Serves a control code: the bytes of the answer. `capacity` is the size of the caller's buffer.
    pub fn control(
        &mut self,
        code: u32,
        input: &[u8],
        capacity: usize,
        ports: &mut PortsInUse,
    ) -> Result<Vec<u8>, Status> {
        if code == code::CREATE {
            return self.create(input).map(|()| Vec::new());
        }
        let [family, kind, _] = self.kind;
        if family == 0 {
            return Err(Status::INVALID_HANDLE);
        }
        let number = |value: u32| value.to_le_bytes().to_vec();
        let answer = match code {
            code::BIND => self.bind(input.get(4..).unwrap_or_default(), ports)?,
            code::GET_NAME => self.address.clone().ok_or(Status::INVALID_PARAMETER)?,
            code::LISTEN if self.address.is_none() || kind != SOCK_STREAM => return Err(Status::INVALID_PARAMETER),
            code::LISTEN => {
                self.listening = true;
                Vec::new()
            }
            code::CONNECT => return Err(self.connect(input)),
            code::SEND_MESSAGE | code::TRANSMIT if kind == SOCK_STREAM => return Err(Status::INVALID_CONNECTION),
            // Without an address that is sent to, or to one that no route leads to.
            code::SEND_MESSAGE | code::TRANSMIT => return Err(Status::NETWORK_UNREACHABLE),
            code::SHUTDOWN | code::PEER_NAME => return Err(Status::INVALID_CONNECTION),
            code::CONNECT_TIME => number(u32::MAX),
            code::FIONBIO => {
                self.nonblocking = input.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).unwrap_or(0) != 0;
                Vec::new()
            }
            code::FIONREAD | code::GET_ERROR => number(0),
            code::AT_MARK => number(1),
            code::KEEPALIVE_VALUES | code::EVENT_SELECT => Vec::new(),
            // Flags, then a status for each of thirteen events.
            code::GET_EVENTS => vec![0; 56],
            code::GET_INFO => self.kind.map(u32::to_le_bytes).concat(),
            code::IS_LISTENING => number(u32::from(self.listening)),
            _ => self.option(code, input)?,
        };
        if answer.len() > capacity {
            return Err(Status::BUFFER_TOO_SMALL);
        }
        Ok(answer)
    }

    /// A created socket.
    pub(super) fn of(kind: [u32; 3]) -> Result<Self, Status> {
        super::check_kind(kind)?;
        Ok(Self { kind, ..Self::default() })
    }

    fn create(&mut self, input: &[u8]) -> Result<(), Status> {
        let Some([family, kind, protocol, _]) = words(input) else { return Err(Status::INVALID_PARAMETER) };
        if self.kind[0] != 0 {
            return Err(Status::INVALID_PARAMETER);
        }
        super::check_kind([family, kind, protocol])?;
        self.kind = [family, kind, protocol];
        Ok(())
    }

    fn bind(&mut self, address: &[u8], ports: &mut PortsInUse) -> Result<Vec<u8>, Status> {
        if self.address.is_some() {
            return Err(Status::ADDRESS_ALREADY_ASSOCIATED);
        }
        let needed = if self.kind[0] == AF_INET { 16 } else { 28 };
        let Some(address) = address.get(..needed) else { return Err(Status::BUFFER_TOO_SMALL) };
        if u32::from(u16::from_le_bytes([address[0], address[1]])) != self.kind[0] {
            return Err(Status::INVALID_ADDRESS_COMPONENT);
        }
        if !is_any(address) && !is_loopback(address) {
            // The machine has no other address.
            return Err(Status::INVALID_ADDRESS_COMPONENT);
        }
        let mut address = address.to_vec();
        let port = ports.take(u16::from_be_bytes([address[2], address[3]]));
        address[2..4].copy_from_slice(&port.to_be_bytes());
        self.address = Some(address.clone());
        Ok(address)
    }

    /// Nobody listens, neither here nor elsewhere.
    fn connect(&self, input: &[u8]) -> Status {
        let Some([length, _]) = words(input) else { return Status::INVALID_PARAMETER };
        let Some(address) = input.get(8..).and_then(|rest| rest.get(..length as usize)) else {
            return Status::INVALID_PARAMETER;
        };
        if self.listening || address.len() < 16 || address.len() > MAX_ADDRESS {
            return Status::INVALID_PARAMETER;
        }
        if is_loopback(address) || is_any(address) { Status::CONNECTION_REFUSED } else { Status::NETWORK_UNREACHABLE }
    }

    fn option(&mut self, code: u32, input: &[u8]) -> Result<Vec<u8>, Status> {
        let function = code.checked_sub(code::wine(0)).map(|code| code >> 2).filter(|_| code & 3 == 0);
        let function = function.ok_or(Status::NOT_SUPPORTED)?;
        for &(get, set, value) in OPTIONS {
            if function == set {
                if input.is_empty() || input.len() > MAX_ADDRESS {
                    return Err(Status::BUFFER_TOO_SMALL);
                }
                self.options.insert(set, input.to_vec());
                return Ok(Vec::new());
            }
            if function == get {
                return Ok(self.options.get(&set).map_or_else(|| value.to_vec(), Clone::clone));
            }
        }
        Err(Status::NOT_SUPPORTED)
    }

    /// The AFD_POLL_* events that have happened.
    #[must_use]
    pub fn events(&self) -> u32 {
        // Datagrams can be sent, into nothing.
        if self.kind[1] == SOCK_DGRAM { event::WRITE } else { 0 }
    }

    /// What a receiving operation meets; `None`: it waits for ever.
    fn receive(&self) -> Option<Status> {
        match self.kind[1] {
            SOCK_STREAM => Some(Status::INVALID_CONNECTION),
            _ if self.address.is_none() => Some(Status::INVALID_PARAMETER),
            _ => self.nonblocking.then_some(Status::DEVICE_NOT_READY),
        }
    }

    /// What an accepting operation meets.
    fn accept(&self) -> Option<Status> {
        match (self.listening, self.nonblocking) {
            (false, _) => Some(Status::INVALID_PARAMETER),
            (true, nonblocking) => nonblocking.then_some(Status::DEVICE_NOT_READY),
        }
    }
}

/// Ports that were given to sockets. Nothing is ever delivered to one, so that two sockets may have the same.
#[derive(Clone, Debug, Default)]
pub struct PortsInUse {
    /// The port given last to a socket that asked for any.
    last: u16,
}

impl PortsInUse {
    /// The port for a socket that asks for `wanted`, 0 being any.
    fn take(&mut self, wanted: u16) -> u16 {
        if wanted != 0 {
            return wanted;
        }
        self.last = self.last.max(FIRST_DYNAMIC_PORT - 1).checked_add(1).unwrap_or(FIRST_DYNAMIC_PORT);
        self.last
    }
}

pub(super) fn words<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let mut words = [0; N];
    for (index, word) in words.iter_mut().enumerate() {
        *word = u32::from_le_bytes(*bytes.get(4 * index..)?.first_chunk()?);
    }
    Some(words)
}

fn host_part(address: &[u8]) -> Option<IpAddr> {
    address::parse(address).ok().map(|address| address.ip())
}

fn is_any(address: &[u8]) -> bool {
    host_part(address).is_some_and(address::is_any)
}

fn is_loopback(address: &[u8]) -> bool {
    host_part(address).is_some_and(address::is_loopback)
}

/// Serves a control code of a file of the device.
pub(super) fn control(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    completion: Completion,
    code: u32,
    input: &[u8],
    output: UserBuffer,
) -> Result<Outcome, Status> {
    let (code, input) = native::as_wine(code, input);
    let input = &input[..];
    if matches!(code, code::CONNECT | code::SEND_MESSAGE | code::TRANSMIT | code::LISTEN) {
        call.kernel
            .note("the program asked for the network, which is off; --net loopback or --net host allows it".into());
    }
    let Kernel { objects, afd, .. } = &mut *call.kernel;
    let Body::File(file) = objects.body_mut(id)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
    let FileKind::Socket(socket) = &mut file.kind else { return Err(Status::INVALID_HANDLE) };
    let Socket::Offline(socket) = socket.as_mut() else { return Err(Status::INVALID_HANDLE) };
    if waits(code) {
        let socket = socket.clone();
        return control_that_waits(call, &socket, code, input, output, move |call, status, length| {
            completion.finish(call, id, status, length)
        });
    }
    let answer = socket.control(code, input, output.length as usize, &mut afd.ports)?;
    output.write(call, &answer)?;
    completion.finish(call, id, Status::SUCCESS, answer.len() as u64)?;
    Ok(Outcome::Return(Status::SUCCESS))
}

/// Whether a control code may take time: receiving, accepting and polling.
#[must_use]
fn waits(code: u32) -> bool {
    let receives = matches!(code, code::RECEIVE | code::RECEIVE_MESSAGE);
    receives || matches!(code, code::ACCEPT | code::ACCEPT_INTO | code::POLL)
}

/// Serves such a control code.
fn control_that_waits(
    call: &mut Call<'_, '_>,
    socket: &OfflineSocket,
    code: u32,
    input: &[u8],
    output: UserBuffer,
    finish: impl FnOnce(&mut Call<'_, '_>, Status, u64) -> Result<(), Status> + 'static,
) -> Result<Outcome, Status> {
    let refused = match code {
        code::POLL => return poll(call, input, output, finish),
        code::ACCEPT | code::ACCEPT_INTO => socket.accept(),
        _ => socket.receive(),
    };
    match refused {
        Some(status) => Err(status),
        None => Ok(Outcome::Wait(Wait::until("a network that is off", |_, _| None))),
    }
}

/// AFD_POLL_INFO: timeout, count, exclusive; then handle, events and status of each socket.
fn poll(
    call: &mut Call<'_, '_>,
    input: &[u8],
    output: UserBuffer,
    finish: impl FnOnce(&mut Call<'_, '_>, Status, u64) -> Result<(), Status> + 'static,
) -> Result<Outcome, Status> {
    const HEAD: usize = 16;
    const ENTRY: usize = 16;
    let Some([low, high, count, exclusive]) = words(input) else { return Err(Status::INVALID_PARAMETER) };
    let count = count as usize;
    if count > MAX_POLL || input.len() < HEAD + ENTRY * count || output.length < input.len() as u64 {
        return Err(Status::INVALID_PARAMETER);
    }
    let timeout = (i64::from(high as i32) << 32) | i64::from(low);
    let deadline = call.kernel.clock.deadline(timeout).filter(|_| timeout != i64::MAX);
    let mut asked = Vec::new();
    for entry in input[HEAD..].chunks_exact(ENTRY).take(count) {
        let Some([handle_low, handle_high, events, _]) = words(entry) else { continue };
        let handle = u64::from(handle_high) << 32 | u64::from(handle_low);
        let id = call.object(Handle(handle), None, 0).map_err(|_| Status::INVALID_HANDLE)?;
        asked.push((handle, id, events));
    }
    let head = Bytes::default().i64s(&[timeout]);
    let ready = move |kernel: &Kernel| -> Vec<(u64, u32)> {
        let events = |id| match kernel.objects.body(id) {
            Ok(Body::File(file)) => file.offline_socket().map_or(0, OfflineSocket::events),
            _ => 0,
        };
        let found = asked.iter().map(|&(handle, id, wanted)| (handle, events(id) & wanted));
        found.filter(|(_, events)| *events != 0).collect()
    };
    let again = ready.clone();
    let wait = Wait::until("sockets", move |kernel, _| (!ready(kernel).is_empty()).then_some(Status::SUCCESS));
    Ok(Outcome::Wait(wait.with_deadline(deadline).then(move |call, status| {
        let ready = again(call.kernel);
        let mut answer = head.u32s(&[ready.len() as u32, exclusive]);
        for (handle, events) in ready {
            answer = answer.u64s(&[handle]).u32s(&[events, 0]);
        }
        let written = output.write(call, &answer.0);
        let result = written.and_then(|()| finish(call, status, answer.0.len() as u64));
        Outcome::Return(result.err().unwrap_or(status))
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::afd::address::AF_INET6;

    fn created(family: u32, kind: u32) -> OfflineSocket {
        let mut socket = OfflineSocket::default();
        let input = [family, kind, 0, 0].map(u32::to_le_bytes).concat();
        socket.control(code::CREATE, &input, 0, &mut PortsInUse::default()).unwrap();
        socket
    }

    fn address(host: [u8; 4], port: u16) -> Vec<u8> {
        [&[2, 0][..], &port.to_be_bytes(), &host, &[0; 8]].concat()
    }

    #[test]
    fn sockets_are_created_once_and_of_known_families() {
        let mut ports = PortsInUse::default();
        let mut socket = created(AF_INET, SOCK_STREAM);
        let input = [AF_INET, SOCK_STREAM, 6, 0].map(u32::to_le_bytes).concat();
        assert_eq!(socket.control(code::CREATE, &input, 0, &mut ports), Err(Status::INVALID_PARAMETER));
        let mut fresh = OfflineSocket::default();
        assert_eq!(fresh.control(code::GET_INFO, &[], 12, &mut ports), Err(Status::INVALID_HANDLE));
        let input = [1, SOCK_STREAM, 0, 0].map(u32::to_le_bytes).concat();
        assert_eq!(fresh.control(code::CREATE, &input, 0, &mut ports), Err(Status(0xC001_273F)));
        assert_eq!(fresh.control(code::CREATE, &input[..9], 0, &mut ports), Err(Status::INVALID_PARAMETER));
    }

    #[test]
    fn binding_gives_a_port() {
        let mut ports = PortsInUse::default();
        let mut socket = created(AF_INET, SOCK_STREAM);
        assert_eq!(socket.control(code::GET_NAME, &[], 64, &mut ports), Err(Status::INVALID_PARAMETER));
        let input = [&[0; 4][..], &address([127, 0, 0, 1], 0)].concat();
        let bound = socket.control(code::BIND, &input, 64, &mut ports).unwrap();
        assert_eq!(bound, address([127, 0, 0, 1], FIRST_DYNAMIC_PORT));
        assert_eq!(socket.control(code::GET_NAME, &[], 64, &mut ports).unwrap(), bound);
        assert_eq!(socket.control(code::BIND, &input, 64, &mut ports), Err(Status::ADDRESS_ALREADY_ASSOCIATED));
        socket.control(code::LISTEN, &[0; 12], 0, &mut ports).unwrap();
        assert_eq!(socket.control(code::IS_LISTENING, &[], 4, &mut ports).unwrap(), [1, 0, 0, 0]);
        let elsewhere = [&[0; 4][..], &address([10, 0, 0, 1], 80)].concat();
        let refused = created(AF_INET, SOCK_STREAM).control(code::BIND, &elsewhere, 64, &mut ports);
        assert_eq!(refused, Err(Status::INVALID_ADDRESS_COMPONENT));
    }

    #[test]
    fn nothing_is_reached() {
        let mut ports = PortsInUse::default();
        let mut socket = created(AF_INET, SOCK_STREAM);
        for (host, status) in
            [([127, 0, 0, 1], Status::CONNECTION_REFUSED), ([8, 8, 8, 8], Status::NETWORK_UNREACHABLE)]
        {
            let input = [&16u32.to_le_bytes()[..], &[0; 4], &address(host, 80)].concat();
            assert_eq!(socket.control(code::CONNECT, &input, 0, &mut ports), Err(status));
        }
        let mut long = vec![0xFF; 12];
        long[4..].fill(0);
        assert_eq!(socket.control(code::CONNECT, &long, 0, &mut ports), Err(Status::INVALID_PARAMETER));
        let mut loopback6 = [&[23, 0][..], &[0; 26]].concat();
        loopback6[23] = 1;
        assert!(is_loopback(&loopback6) && !is_any(&loopback6));
    }

    #[test]
    fn options_are_kept() {
        let mut ports = PortsInUse::default();
        let mut socket = created(AF_INET6, SOCK_DGRAM);
        assert_eq!(socket.control(code::wine(260), &[], 4, &mut ports).unwrap(), [128, 0, 0, 0]);
        socket.control(code::wine(261), &[7, 0, 0, 0], 0, &mut ports).unwrap();
        assert_eq!(socket.control(code::wine(260), &[], 4, &mut ports).unwrap(), [7, 0, 0, 0]);
        assert_eq!(socket.control(code::wine(260), &[], 3, &mut ports), Err(Status::BUFFER_TOO_SMALL));
        assert_eq!(socket.control(code::wine(999), &[], 4, &mut ports), Err(Status::NOT_SUPPORTED));
        assert_eq!(socket.control(0xFFFF_FFFF, &[], 4, &mut ports), Err(Status::NOT_SUPPORTED));
    }
}
