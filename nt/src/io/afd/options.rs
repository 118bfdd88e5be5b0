//! Socket options, as Wine's control codes get and set them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rustix::io;
use rustix::net::sockopt::{self as host, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};

use super::address::AF_INET;
use super::errors::status_of;
use super::offline::words;
use super::{HostSocket, NetworkAccess, code};
use crate::status::Status;

/// An option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Broadcast,
    KeepAlive,
    Linger,
    OutOfBandInLine,
    Buffer(usize),
    Timeout(usize),
    ReuseAddress,
    ExclusiveAddress,
    DontFragment,
    MulticastInterface,
    MulticastLoop,
    MulticastTtl,
    ReceiveTos,
    Tos,
    Ttl,
    DontFragment6,
    MulticastHops6,
    MulticastInterface6,
    MulticastLoop6,
    ReceiveTrafficClass6,
    UnicastHops6,
    V6Only,
    NoDelay,
    KeepIdle,
    KeepCount,
    KeepInterval,
    /// Joining (or leaving) an IPv4 group.
    Membership(bool),
    /// The same with IPv6.
    Membership6(bool),
    /// What the host cannot do without messages of control: it can be read as off, and set to off.
    Off,
    /// The interface to send by, which is the host's to choose: none.
    UnicastInterface,
    /// IP_HDRINCL is for raw sockets.
    HeaderIncluded,
}

impl Name {
    /// Whether it takes all four bytes or none.
    fn is_whole(self) -> bool {
        matches!(self, Self::Buffer(_) | Self::Timeout(_))
    }

    /// Whether it can be a byte, as IPv4's options can on the host.
    fn is_byte(self) -> bool {
        matches!(self, Self::MulticastLoop | Self::MulticastTtl | Self::Tos | Self::Ttl)
    }
}

/// The options by the numbers of the functions that get and set them; 0: there is none.
const OPTIONS: &[(u32, u32, Name)] = &[
    (220, 221, Name::Broadcast),
    (223, 224, Name::KeepAlive),
    (225, 226, Name::Linger),
    (227, 228, Name::OutOfBandInLine),
    (230, 229, Name::Buffer(0)),
    (232, 231, Name::Timeout(0)),
    (233, 234, Name::ReuseAddress),
    (236, 235, Name::Buffer(1)),
    (237, 238, Name::Timeout(1)),
    (0, 239, Name::Membership(true)),
    (242, 243, Name::DontFragment),
    (0, 244, Name::Membership(false)),
    (246, 247, Name::HeaderIncluded),
    (248, 249, Name::MulticastInterface),
    (250, 251, Name::MulticastLoop),
    (252, 253, Name::MulticastTtl),
    (256, 257, Name::Off),
    (258, 259, Name::Tos),
    (260, 261, Name::Ttl),
    (263, 264, Name::UnicastInterface),
    (0, 265, Name::Membership6(true)),
    (266, 267, Name::DontFragment6),
    (0, 268, Name::Membership6(false)),
    (269, 270, Name::MulticastHops6),
    (271, 272, Name::MulticastInterface6),
    (273, 274, Name::MulticastLoop6),
    (275, 276, Name::UnicastHops6),
    (277, 278, Name::UnicastInterface),
    (279, 280, Name::V6Only),
    (284, 285, Name::NoDelay),
    (286, 287, Name::Off),
    (288, 289, Name::Off),
    (290, 291, Name::ReceiveTrafficClass6),
    (293, 294, Name::Off),
    (295, 296, Name::ReceiveTos),
    (297, 298, Name::ExclusiveAddress),
    (299, 300, Name::KeepIdle),
    (301, 302, Name::KeepCount),
    (303, 304, Name::KeepInterval),
];

/// Most bytes of an option's value.
pub(super) const MAX_VALUE: u64 = 128;

fn function_of(code: u32) -> Option<u32> {
    code.checked_sub(code::wine(0)).filter(|code| code & 3 == 0).map(|code| code >> 2)
}

/// Whether a code gets or sets an option.
pub(super) fn is_option(code: u32) -> bool {
    function_of(code).is_some_and(|function| OPTIONS.iter().any(|&(get, set, _)| function == get || function == set))
}

/// Serves the code of an option.
pub(super) fn control(socket: &mut HostSocket, code: u32, input: &[u8], capacity: usize) -> Result<Vec<u8>, Status> {
    let function = function_of(code).ok_or(Status::NOT_SUPPORTED)?;
    for &(get, set, name) in OPTIONS {
        if function == get {
            let mut value = socket.option(name)?;
            if capacity == 0 || (capacity < value.len() && name.is_whole()) {
                return Err(Status::BUFFER_TOO_SMALL);
            }
            // A caller with less room gets the low bytes, one of IPv4's options the lowest.
            let short = capacity < value.len() && name.is_byte();
            value.truncate(if short { 1 } else { capacity });
            return Ok(value);
        }
        if function == set {
            socket.set_option(name, input)?;
            return Ok(Vec::new());
        }
    }
    Err(Status::NOT_SUPPORTED)
}

/// SIO_KEEPALIVE_VALS: times in milliseconds.
pub(super) fn set_keep_alive(socket: &HostSocket, on: bool, time: u32, interval: u32) -> Result<(), Status> {
    let seconds = |milliseconds: u32| Duration::from_secs(u64::from(milliseconds.saturating_add(500) / 1000).max(1));
    let set = || -> io::Result<()> {
        host::set_socket_keepalive(socket.descriptor(), on)?;
        if on {
            host::set_tcp_keepidle(socket.descriptor(), seconds(time))?;
            host::set_tcp_keepintvl(socket.descriptor(), seconds(interval))?;
        }
        Ok(())
    };
    set().map_err(|_| Status::INVALID_PARAMETER)
}

impl HostSocket {
    /// Multicast is for datagrams.
    fn require_datagrams(&self, name: Name) -> Result<(), Status> {
        let multicast = matches!(
            name,
            Name::MulticastInterface
                | Name::MulticastLoop
                | Name::MulticastTtl
                | Name::MulticastHops6
                | Name::MulticastInterface6
                | Name::MulticastLoop6
                | Name::ReceiveTos
                | Name::ReceiveTrafficClass6
                | Name::Off
        );
        if multicast && self.is_stream() { Err(Status::INVALID_PARAMETER) } else { Ok(()) }
    }

    fn option(&mut self, name: Name) -> Result<Vec<u8>, Status> {
        self.require_datagrams(name)?;
        let fd = self.descriptor();
        let flag = |value: io::Result<bool>| value.map(u32::from);
        let byte = |value: io::Result<u8>| value.map(u32::from);
        let seconds = |value: io::Result<Duration>| value.map(|value| value.as_secs() as u32);
        let value = match name {
            Name::Broadcast => flag(host::socket_broadcast(fd)),
            Name::KeepAlive => flag(host::socket_keepalive(fd)),
            Name::Linger => host::socket_linger(fd)
                .map(|linger| linger.map_or(0, |time| 1 | (time.as_secs().min(0xFFFF) as u32) << 16)),
            Name::OutOfBandInLine => flag(host::socket_oobinline(fd)),
            Name::Buffer(direction) => Ok(self.buffer_sizes[direction]),
            Name::Timeout(direction) => Ok(self.timeouts[direction]),
            Name::ReuseAddress => Ok(u32::from(self.sharing[0])),
            Name::ExclusiveAddress => Ok(u32::from(self.sharing[1])),
            Name::DontFragment => host::ip_mtu_discover(fd).map(|way| u32::from(way != Ipv4PathMtuDiscovery::DONT)),
            Name::DontFragment6 => host::ipv6_mtu_discover(fd).map(|way| u32::from(way != Ipv6PathMtuDiscovery::DONT)),
            Name::MulticastInterface => host::ip_multicast_if(fd).map(|host| u32::from_le_bytes(host.octets())),
            Name::MulticastLoop => flag(host::ip_multicast_loop(fd)),
            Name::MulticastTtl => host::ip_multicast_ttl(fd),
            Name::ReceiveTos => flag(host::ip_recvtos(fd)),
            Name::Tos => byte(host::ip_tos(fd)),
            Name::Ttl => host::ip_ttl(fd),
            Name::MulticastHops6 => host::ipv6_multicast_hops(fd),
            Name::MulticastInterface6 => host::ipv6_multicast_if(fd),
            Name::MulticastLoop6 => flag(host::ipv6_multicast_loop(fd)),
            Name::ReceiveTrafficClass6 => flag(host::ipv6_recvtclass(fd)),
            Name::UnicastHops6 => byte(host::ipv6_unicast_hops(fd)),
            Name::V6Only => flag(host::ipv6_v6only(fd)),
            Name::NoDelay => flag(host::tcp_nodelay(fd)),
            Name::KeepIdle => seconds(host::tcp_keepidle(fd)),
            Name::KeepCount => host::tcp_keepcnt(fd),
            Name::KeepInterval => seconds(host::tcp_keepintvl(fd)),
            Name::Off | Name::UnicastInterface => Ok(0),
            Name::HeaderIncluded => return Err(Status::INVALID_PARAMETER),
            Name::Membership(_) | Name::Membership6(_) => return Err(Status::NOT_SUPPORTED),
        };
        value.map(|value| value.to_le_bytes().to_vec()).map_err(status_of)
    }

    fn set_option(&mut self, name: Name, input: &[u8]) -> Result<(), Status> {
        self.require_datagrams(name)?;
        if let Name::Membership(join) = name {
            return self.set_membership(join, input);
        }
        if let Name::Membership6(join) = name {
            return self.set_membership6(join, input);
        }
        // BOOL options may be given as a byte.
        let value = match (words(input), input.first()) {
            (Some([value]), _) => value,
            (None, Some(_)) if name.is_whole() => return Err(Status::BUFFER_TOO_SMALL),
            (None, Some(&byte)) => u32::from(byte),
            (None, None) => return Err(Status::BUFFER_TOO_SMALL),
        };
        let on = value != 0;
        let fd = self.descriptor();
        let time = Duration::from_secs(value.into());
        let byte = u8::try_from(value).map_err(|_| Status::INVALID_PARAMETER);
        let result = match name {
            Name::Broadcast => host::set_socket_broadcast(fd, on),
            Name::KeepAlive => host::set_socket_keepalive(fd, on),
            Name::Linger => {
                let time = Duration::from_secs(u64::from(value >> 16));
                host::set_socket_linger(fd, (value & 0xFFFF != 0).then_some(time))
            }
            Name::OutOfBandInLine => host::set_socket_oobinline(fd, on),
            Name::Buffer(direction) => {
                let set = if direction == 0 {
                    host::set_socket_recv_buffer_size(fd, value as usize)
                } else {
                    host::set_socket_send_buffer_size(fd, value as usize)
                };
                self.buffer_sizes[direction] = value;
                set
            }
            Name::Timeout(direction) => {
                self.timeouts[direction] = value;
                Ok(())
            }
            Name::ReuseAddress | Name::ExclusiveAddress => {
                let index = usize::from(name == Name::ExclusiveAddress);
                if on && self.sharing[1 - index] {
                    return Err(Status::INVALID_PARAMETER);
                }
                if index == 0 && !self.is_stream() {
                    host::set_socket_reuseaddr(fd, on).map_err(status_of)?;
                }
                self.sharing[index] = on;
                Ok(())
            }
            Name::DontFragment => {
                let way = if on { Ipv4PathMtuDiscovery::DO } else { Ipv4PathMtuDiscovery::DONT };
                host::set_ip_mtu_discover(fd, way)
            }
            Name::DontFragment6 => {
                let way = if on { Ipv6PathMtuDiscovery::DO } else { Ipv6PathMtuDiscovery::DONT };
                host::set_ipv6_mtu_discover(fd, way)
            }
            Name::MulticastInterface => host::set_ip_multicast_if(fd, &Ipv4Addr::from(value.to_le_bytes())),
            Name::MulticastLoop => host::set_ip_multicast_loop(fd, on),
            Name::MulticastTtl => host::set_ip_multicast_ttl(fd, value),
            Name::ReceiveTos => host::set_ip_recvtos(fd, on),
            Name::Tos => host::set_ip_tos(fd, byte?),
            Name::Ttl => host::set_ip_ttl(fd, value),
            Name::MulticastHops6 => host::set_ipv6_multicast_hops(fd, value),
            Name::MulticastInterface6 => host::set_ipv6_multicast_if(fd, value),
            Name::MulticastLoop6 => host::set_ipv6_multicast_loop(fd, on),
            Name::ReceiveTrafficClass6 => host::set_ipv6_recvtclass(fd, on),
            Name::UnicastHops6 => host::set_ipv6_unicast_hops(fd, Some(byte?)),
            // It means nothing to IPv4 sockets, and does no harm.
            Name::V6Only if self.kind[0] == AF_INET && !self.is_bound() => Ok(()),
            Name::V6Only => host::set_ipv6_v6only(fd, on),
            Name::NoDelay => host::set_tcp_nodelay(fd, on),
            Name::KeepIdle => host::set_tcp_keepidle(fd, time),
            Name::KeepCount => host::set_tcp_keepcnt(fd, value),
            Name::KeepInterval => host::set_tcp_keepintvl(fd, time),
            Name::HeaderIncluded => return Err(Status::INVALID_PARAMETER),
            Name::Off | Name::UnicastInterface if on => return Err(Status::NOT_SUPPORTED),
            Name::Off | Name::UnicastInterface | Name::Membership(_) | Name::Membership6(_) => Ok(()),
        };
        result.map_err(status_of)
    }

    /// Groups have members elsewhere.
    fn require_host_access(&self) -> Result<(), Status> {
        if self.access() == NetworkAccess::Host { Ok(()) } else { Err(Status::NETWORK_UNREACHABLE) }
    }

    /// ip_mreq: group and interface.
    fn set_membership(&self, join: bool, input: &[u8]) -> Result<(), Status> {
        self.require_host_access()?;
        let Some([group, interface]) = words(input) else { return Err(Status::BUFFER_TOO_SMALL) };
        let [group, interface] = [group, interface].map(|host| Ipv4Addr::from(host.to_le_bytes()));
        let change = if join { host::set_ip_add_membership } else { host::set_ip_drop_membership };
        change(self.descriptor(), &group, &interface).map_err(status_of)
    }

    /// ipv6_mreq: group and number of the interface.
    fn set_membership6(&self, join: bool, input: &[u8]) -> Result<(), Status> {
        self.require_host_access()?;
        let group: Option<[u8; 16]> = input.first_chunk().copied();
        let interface = input.get(16..).and_then(words::<1>);
        let (Some(group), Some([interface])) = (group, interface) else { return Err(Status::BUFFER_TOO_SMALL) };
        let change = if join { host::set_ipv6_add_membership } else { host::set_ipv6_drop_membership };
        change(self.descriptor(), &Ipv6Addr::from(group), interface).map_err(status_of)
    }
}
