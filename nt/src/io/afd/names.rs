//! Names of hosts and services: what Wine's ws2_32 asks of its Unix side.
//!
//! `localhost`, the guest's own name and numeric addresses need nobody. Other names are for the [`Resolver`] that the
//! embedder provides with access to the host's network; the whole guest stands still while it works. Addresses have no
//! names but those of loopback, so that nothing is looked up in reverse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::address::{self, AF_INET, AF_INET6};
use super::{Afd, NetworkAccess};
use crate::io::info::Bytes;
use crate::service::Call;
use crate::status::Status;
use crate::user_ptr::{UserBuffer, UserMemory, UserPtr};

/// Someone who knows the addresses of hosts.
pub trait Resolver: std::fmt::Debug {
    /// Addresses of a host, the best one first; none: there is no such host.
    fn resolve(&mut self, name: &str) -> std::io::Result<Vec<IpAddr>>;
}

/// The guest's own name, as its environment and registry tell it.
const HOST_NAME: &str = "LSTAR";
/// Longest name, with its end.
const MAX_NAME: u64 = 1025;
/// Most addresses of one host that a guest is told.
const MAX_ADDRESSES: usize = 256;

/// Winsock errors, which these functions return, and ERROR_INSUFFICIENT_BUFFER.
mod error {
    pub const INSUFFICIENT_BUFFER: u32 = 122;
    pub const FAULT: u32 = 10014;
    pub const FAMILY: u32 = 10047;
    pub const SERVICE_NOT_FOUND: u32 = 10109;
    pub const HOST_NOT_FOUND: u32 = 11001;
    pub const TRY_AGAIN: u32 = 11002;
}

/// Services that programs name, by IANA's registry.
const SERVICES: &[(&str, u16)] = &[
    ("echo", 7),
    ("discard", 9),
    ("daytime", 13),
    ("ftp-data", 20),
    ("ftp", 21),
    ("ssh", 22),
    ("telnet", 23),
    ("smtp", 25),
    ("time", 37),
    ("domain", 53),
    ("tftp", 69),
    ("gopher", 70),
    ("finger", 79),
    ("http", 80),
    ("kerberos", 88),
    ("pop3", 110),
    ("nntp", 119),
    ("ntp", 123),
    ("imap", 143),
    ("snmp", 161),
    ("irc", 194),
    ("ldap", 389),
    ("https", 443),
    ("submission", 587),
    ("ldaps", 636),
    ("imaps", 993),
    ("pop3s", 995),
    ("socks", 1080),
    ("mysql", 3306),
    ("postgresql", 5432),
];

/// Codes of ws2_32's functions.
mod code {
    pub const GET_ADDRESS_INFO: u32 = 0;
    pub const GET_HOST_BY_ADDRESS: u32 = 1;
    pub const GET_HOST_BY_NAME: u32 = 2;
    pub const GET_HOST_NAME: u32 = 3;
    pub const GET_NAME_INFO: u32 = 4;
}

/// AI_PASSIVE, AI_CANONNAME, AI_NUMERICHOST, AI_NUMERICSERV.
mod hint {
    pub const PASSIVE: u32 = 1;
    pub const CANONICAL_NAME: u32 = 2;
    pub const NUMERIC_HOST: u32 = 4;
    pub const NUMERIC_SERVICE: u32 = 8;
}

/// Why a function fails: a Winsock error.
struct Failure(u32);

impl From<Status> for Failure {
    fn from(_: Status) -> Self {
        // The caller's memory is the only thing that statuses come from here.
        Self(error::FAULT)
    }
}

type Reply = Result<(), Failure>;

/// Serves a call of ws2_32's Unix functions; they return Winsock errors.
pub fn unix_call(call: &mut Call<'_, '_>, code: u32, arguments: u64) -> Status {
    let result = match code {
        code::GET_ADDRESS_INFO => get_address_info(call, arguments),
        code::GET_HOST_BY_ADDRESS => get_host_by_address(call, arguments),
        code::GET_HOST_BY_NAME => get_host_by_name(call, arguments),
        code::GET_HOST_NAME => get_host_name(call, arguments),
        code::GET_NAME_INFO => get_name_info(call, arguments),
        _ => return Status::NOT_SUPPORTED,
    };
    match result {
        Ok(()) => Status::SUCCESS,
        Err(Failure(error)) => Status(error),
    }
}

/// Reads a string that ends with a zero byte; NULL is none.
fn text(call: &mut Call<'_, '_>, at: u64) -> Result<Option<String>, Failure> {
    const PAGE: u64 = 0x1000;
    if at == 0 {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < MAX_NAME {
        let here = at.wrapping_add(bytes.len() as u64);
        let part = UserBuffer::new(here, PAGE - here % PAGE).read(call)?;
        if let Some(end) = part.iter().position(|byte| *byte == 0) {
            bytes.extend(&part[..end]);
            let text = String::from_utf8(bytes).map_err(|_| Failure(error::HOST_NOT_FOUND))?;
            return Ok(Some(text));
        }
        bytes.extend(part);
    }
    Err(Failure(error::HOST_NOT_FOUND))
}

/// Writes text with its end into a buffer; one without room is an error.
fn put_text(call: &mut Call<'_, '_>, at: u64, room: u32, text: &str) -> Reply {
    let bytes = [text.as_bytes(), &[0]].concat();
    if bytes.len() > room as usize {
        return Err(Failure(error::FAULT));
    }
    Ok(call.write_user(at, &bytes)?)
}

/// Pointers into a structure are computed before it is written: it must not wrap around.
fn check_room(at: u64) -> Reply {
    const LARGEST: u64 = 1 << 20;
    at.checked_add(LARGEST).map(|_| ()).ok_or(Failure(error::FAULT))
}

/// Writes a structure if the caller has room for it, and says how much it needs otherwise.
fn put_sized(call: &mut Call<'_, '_>, at: u64, size_at: u64, bytes: &[u8]) -> Reply {
    let size = UserPtr::<u32>::new(size_at);
    if (size.read(call)? as usize) < bytes.len() {
        size.write(call, bytes.len() as u32)?;
        return Err(Failure(error::INSUFFICIENT_BUFFER));
    }
    Ok(call.write_user(at, bytes)?)
}

impl Afd {
    /// The addresses of a host.
    fn addresses_of(&mut self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let plain = name.split_once('%').map_or(name, |(host, _)| host);
        if let Ok(address) = plain.parse::<IpAddr>() {
            return Ok(vec![address]);
        }
        if is_own_name(name) {
            return Ok(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]);
        }
        let resolver = self.resolver.as_mut().filter(|_| self.access == NetworkAccess::Host);
        let Some(resolver) = resolver else { return Err(Failure(error::HOST_NOT_FOUND)) };
        let mut addresses = resolver.resolve(name).map_err(|_| Failure(error::TRY_AGAIN))?;
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() { Err(Failure(error::HOST_NOT_FOUND)) } else { Ok(addresses) }
    }
}

/// Names that stay on the machine, of RFC 6761 and its own.
fn is_own_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name == HOST_NAME.to_ascii_lowercase()
}

/// The port of a service.
fn port_of(service: Option<&str>, numeric: bool) -> Result<u16, Failure> {
    let Some(service) = service.filter(|service| !service.is_empty()) else { return Ok(0) };
    if let Ok(port) = service.parse() {
        return Ok(port);
    }
    if numeric {
        return Err(Failure(error::HOST_NOT_FOUND));
    }
    let known = SERVICES.iter().find(|(name, _)| name.eq_ignore_ascii_case(service));
    known.map(|(_, port)| *port).ok_or(Failure(error::SERVICE_NOT_FOUND))
}

/// `getaddrinfo`: node, service, hints, result, its size.
fn get_address_info(call: &mut Call<'_, '_>, arguments: u64) -> Reply {
    let [node, service, hints, info, size] = UserPtr::<[u64; 5]>::new(arguments).read(call)?;
    check_room(info)?;
    let (node, service) = (text(call, node)?, text(call, service)?);
    let [flags, family, kind, protocol] = UserPtr::<[u32; 4]>::new(hints).read_optional(call)?.unwrap_or_default();
    if !matches!(family, 0 | AF_INET | AF_INET6) {
        return Err(Failure(error::FAMILY));
    }
    let port = port_of(service.as_deref(), flags & hint::NUMERIC_SERVICE != 0)?;
    let found = match node.as_deref() {
        None if flags & hint::PASSIVE != 0 => vec![Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()],
        None => vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()],
        Some(name) if flags & hint::NUMERIC_HOST != 0 && name.parse::<IpAddr>().is_err() => {
            return Err(Failure(error::HOST_NOT_FOUND));
        }
        Some(name) => call.kernel.afd.addresses_of(name)?,
    };
    let wanted = |address: &IpAddr| family == 0 || address.is_ipv4() == (family == AF_INET);
    let addresses: Vec<IpAddr> = found.into_iter().filter(wanted).collect();
    if addresses.is_empty() {
        return Err(Failure(error::HOST_NOT_FOUND));
    }
    let mut name = node.filter(|_| flags & hint::CANONICAL_NAME != 0);
    let mut bytes = Bytes::default();
    let mut rest = addresses.iter().peekable();
    // Each ADDRINFO is followed by its name and address.
    while let Some(address) = rest.next() {
        const ADDRINFO: u64 = 48;
        let at = info.wrapping_add(bytes.0.len() as u64);
        let name = name.take().map(|name| [name.as_bytes(), &[0]].concat()).unwrap_or_default();
        let sockaddr = address::encode(SocketAddr::new(*address, port));
        let name_at = at + ADDRINFO;
        let sockaddr_at = (name_at + name.len() as u64).next_multiple_of(8);
        let end = (sockaddr_at + sockaddr.len() as u64).next_multiple_of(8);
        let padding = |from: u64, to: u64| vec![0; (to - from) as usize];
        bytes = bytes
            .u32s(&[flags, if address.is_ipv4() { AF_INET } else { AF_INET6 }, kind, protocol])
            .u64s(&[
                sockaddr.len() as u64,
                if name.is_empty() { 0 } else { name_at },
                sockaddr_at,
                if rest.peek().is_some() { end } else { 0 },
            ])
            .bytes(&name)
            .bytes(&padding(name_at + name.len() as u64, sockaddr_at))
            .bytes(&sockaddr)
            .bytes(&padding(sockaddr_at + sockaddr.len() as u64, end));
    }
    put_sized(call, info, size, &bytes.0)
}

/// HOSTENT: the structure, both lists, addresses, name.
fn put_host(call: &mut Call<'_, '_>, at: u64, size: u64, name: &str, addresses: &[IpAddr]) -> Reply {
    const HOSTENT: u64 = 32;
    check_room(at)?;
    let octets: Vec<Vec<u8>> = addresses
        .iter()
        .map(|address| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        })
        .collect();
    let length = octets.first().map_or(0, Vec::len) as u64;
    let family = if length == 4 { AF_INET } else { AF_INET6 };
    let aliases = at + HOSTENT;
    let list = aliases + 8;
    let first = list + 8 * (octets.len() as u64 + 1);
    let name_at = first + length * octets.len() as u64;
    let pointers: Vec<u64> = (0..octets.len() as u64).map(|index| first + index * length).collect();
    let bytes = Bytes::default()
        .u64s(&[name_at, aliases])
        .u32s(&[family | (length as u32) << 16, 0])
        .u64s(&[list, 0])
        .u64s(&pointers)
        .u64s(&[0])
        .bytes(&octets.concat())
        .bytes(name.as_bytes())
        .bytes(&[0]);
    put_sized(call, at, size, &bytes.0)
}

/// `gethostbyname`: name, result, its size.
fn get_host_by_name(call: &mut Call<'_, '_>, arguments: u64) -> Reply {
    let [name, host, size] = UserPtr::<[u64; 3]>::new(arguments).read(call)?;
    let name = text(call, name)?.ok_or(Failure(error::FAULT))?;
    let mut addresses = call.kernel.afd.addresses_of(&name)?;
    addresses.retain(IpAddr::is_ipv4);
    if addresses.is_empty() {
        return Err(Failure(error::HOST_NOT_FOUND));
    }
    put_host(call, host, size, &name, &addresses)
}

/// `gethostbyaddr`: address, its length and family, result, its size.
fn get_host_by_address(call: &mut Call<'_, '_>, arguments: u64) -> Reply {
    let [at, kind, host, size] = UserPtr::<[u64; 4]>::new(arguments).read(call)?;
    let address: IpAddr = match (kind as u32, (kind >> 32) as u32) {
        (4, AF_INET) => Ipv4Addr::from(UserPtr::<[u8; 4]>::new(at).read(call)?).into(),
        (16, AF_INET6) => Ipv6Addr::from(UserPtr::<[u8; 16]>::new(at).read(call)?).into(),
        _ => return Err(Failure(error::FAMILY)),
    };
    if !address::is_loopback(address) {
        return Err(Failure(error::HOST_NOT_FOUND));
    }
    put_host(call, host, size, "localhost", &[address])
}

/// `gethostname`: buffer and its size.
fn get_host_name(call: &mut Call<'_, '_>, arguments: u64) -> Reply {
    let [name, size] = UserPtr::<[u64; 2]>::new(arguments).read(call)?;
    put_text(call, name, size as u32, HOST_NAME)
}

/// `getnameinfo`: address and its length, buffers for both names, flags.
fn get_name_info(call: &mut Call<'_, '_>, arguments: u64) -> Reply {
    const NUMERIC_HOST: u32 = 2;
    const NAME_REQUIRED: u32 = 4;
    const NUMERIC_SERVICE: u32 = 8;
    let [at, length, host, host_room, service, rest] = UserPtr::<[u64; 6]>::new(arguments).read(call)?;
    let (service_room, flags) = (rest as u32, (rest >> 32) as u32);
    let bytes = UserBuffer::new(at, (length & 0xFFFF_FFFF).min(128)).read(call)?;
    let address = address::parse(&bytes).map_err(|_| Failure(error::FAMILY))?;
    if host != 0 && host_room as u32 != 0 {
        let numeric = flags & NUMERIC_HOST != 0;
        let name = match address.ip() {
            ip if !numeric && address::is_loopback(ip) => "localhost".to_owned(),
            _ if !numeric && flags & NAME_REQUIRED != 0 => return Err(Failure(error::HOST_NOT_FOUND)),
            ip => ip.to_string(),
        };
        put_text(call, host, host_room as u32, &name)?;
    }
    if service != 0 && service_room != 0 {
        let known = SERVICES.iter().find(|(_, port)| *port == address.port());
        let name = known.filter(|_| flags & NUMERIC_SERVICE == 0).map(|(name, _)| (*name).to_owned());
        put_text(call, service, service_room, &name.unwrap_or_else(|| address.port().to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_stay_at_home() {
        for name in ["localhost", "LocalHost", "localhost.", "a.b.localhost", "lstar", "LSTAR"] {
            assert!(is_own_name(name), "{name}");
        }
        for name in ["", "localhost.com", "notlocalhost", "lstar.example"] {
            assert!(!is_own_name(name), "{name}");
        }
    }

    #[test]
    fn without_the_hosts_network_nobody_is_asked() {
        #[derive(Debug)]
        struct Someone;
        impl Resolver for Someone {
            fn resolve(&mut self, name: &str) -> std::io::Result<Vec<IpAddr>> {
                assert_eq!(name, "example.org");
                Ok(vec![Ipv4Addr::new(192, 0, 2, 1).into()])
            }
        }
        let mut afd = Afd { resolver: Some(Box::new(Someone)), ..Afd::default() };
        for access in [NetworkAccess::Off, NetworkAccess::Loopback, NetworkAccess::Host] {
            afd.access = access;
            let found = afd.addresses_of("example.org").ok();
            assert_eq!(found.is_some(), access == NetworkAccess::Host);
            assert_eq!(afd.addresses_of("localhost").ok().map(|found| found.len()), Some(2));
            assert_eq!(afd.addresses_of("10.1.2.3").ok(), Some(vec![Ipv4Addr::new(10, 1, 2, 3).into()]));
            assert_eq!(afd.addresses_of("fe80::1%2").ok(), Some(vec!["fe80::1".parse().expect("address")]));
        }
    }

    #[test]
    fn services_have_ports() {
        assert_eq!(port_of(None, false).ok(), Some(0));
        assert_eq!(port_of(Some("8080"), true).ok(), Some(8080));
        assert_eq!(port_of(Some("HTTPS"), false).ok(), Some(443));
        assert!(port_of(Some("https"), true).is_err() && port_of(Some("nonsense"), false).is_err());
        assert!(port_of(Some("65536"), false).is_err() && port_of(Some("-1"), false).is_err());
    }
}
