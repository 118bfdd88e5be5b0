//! SOCKADDR_IN and SOCKADDR_IN6, and which of them stay on the machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::status::Status;

/// AF_INET.
pub const AF_INET: u32 = 2;
/// AF_INET6, which has another number than on the host.
pub const AF_INET6: u32 = 23;
/// Bytes of a SOCKADDR_IN.
pub const SOCKADDR_IN: usize = 16;
/// Bytes of a SOCKADDR_IN6.
pub const SOCKADDR_IN6: usize = 28;

/// Reads a SOCKADDR; STATUS_INVALID_ADDRESS when it is too short or of another family.
pub fn parse(bytes: &[u8]) -> Result<SocketAddr, Status> {
    let field = |at: usize| bytes.get(at..)?.first_chunk::<4>().copied();
    let parsed = || {
        let [low, high, port @ ..] = field(0)?;
        let port = u16::from_be_bytes(port);
        match u32::from(u16::from_le_bytes([low, high])) {
            AF_INET if bytes.len() >= SOCKADDR_IN => Some(SocketAddrV4::new(Ipv4Addr::from(field(4)?), port).into()),
            AF_INET6 if bytes.len() >= SOCKADDR_IN6 => {
                let host: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
                let (flow, scope) = (u32::from_ne_bytes(field(4)?), u32::from_le_bytes(field(24)?));
                Some(SocketAddrV6::new(Ipv6Addr::from(host), port, flow, scope).into())
            }
            _ => None,
        }
    };
    parsed().ok_or(Status::INVALID_ADDRESS)
}

/// Writes a SOCKADDR.
#[must_use]
pub fn encode(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(v4) => [&[AF_INET as u8, 0], &port[..], &v4.ip().octets(), &[0; 8]].concat(),
        SocketAddr::V6(v6) => {
            let (flow, scope) = (v6.flowinfo().to_ne_bytes(), v6.scope_id().to_le_bytes());
            [&[AF_INET6 as u8, 0], &port[..], &flow, &v6.ip().octets(), &scope].concat()
        }
    }
}

/// Whether an address is the machine itself: 127.0.0.0/8 and ::1, also as IPv4 within IPv6.
#[must_use]
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Whether an address stands for all of the machine's own.
#[must_use]
pub fn is_any(address: IpAddr) -> bool {
    address.to_canonical().is_unspecified()
}

/// The loopback address of the same family.
#[must_use]
pub fn loopback_like(address: SocketAddr) -> SocketAddr {
    let host = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(host, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_fields() {
        for text in ["127.0.0.1:80", "0.0.0.0:0", "255.1.2.3:65535", "[::1]:8080", "[fe80::1%7]:1"] {
            let address: SocketAddr = text.parse().expect(text);
            assert_eq!(parse(&encode(address)), Ok(address));
        }
        let v6 = encode("[2001:db8::5]:258".parse().expect("address"));
        assert_eq!((v6.len(), &v6[..4]), (SOCKADDR_IN6, &[23, 0, 1, 2][..]));
        assert_eq!(encode("1.2.3.4:258".parse().expect("address"))[..8], [2, 0, 1, 2, 1, 2, 3, 4]);
    }

    #[test]
    fn short_and_foreign_ones_are_refused() {
        let v4 = encode("1.2.3.4:5".parse().expect("address"));
        let v6 = encode("[::1]:5".parse().expect("address"));
        for bytes in [&[][..], &[2], &v4[..15], &v6[..27], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(parse(bytes), Err(Status::INVALID_ADDRESS), "{bytes:?}");
        }
    }

    #[test]
    fn loopback_has_many_spellings_and_nothing_else_is_loopback() {
        for text in ["127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1", "::ffff:127.3.2.1"] {
            assert!(is_loopback(text.parse().expect(text)), "{text}");
        }
        for text in
            ["0.0.0.0", "::", "126.0.0.1", "128.0.0.1", "8.8.8.8", "::ffff:8.8.8.8", "::127.0.0.1", "::2", "fe80::1"]
        {
            assert!(!is_loopback(text.parse().expect(text)), "{text}");
        }
        for text in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
            assert!(is_any(text.parse().expect(text)), "{text}");
            let narrowed = loopback_like(SocketAddr::new(text.parse().expect(text), 7));
            assert!(is_loopback(narrowed.ip()) && narrowed.port() == 7, "{text}");
        }
    }
}
