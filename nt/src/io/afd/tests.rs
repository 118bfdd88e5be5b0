//! Sockets of the host's, without a guest.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::socket::EventRecord;
use super::*;
use crate::io::afd::address::{AF_INET, AF_INET6};

fn socket(family: u32, kind: u32, access: NetworkAccess) -> HostSocket {
    HostSocket::create([family, kind, 0], access).expect("a socket")
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Repeats until something has come, which between two sockets of one machine is soon.
fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "nothing has come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn name(socket: &HostSocket) -> SocketAddr {
    address::parse(&socket.name().expect("bound")).expect("a name")
}

/// A listener, and a client and a server that are connected by it.
fn connection(access: NetworkAccess) -> [HostSocket; 3] {
    let mut listener = socket(AF_INET, SOCK_STREAM, access);
    listener.bind(at("127.0.0.1:0")).expect("bound");
    listener.listen(5).expect("listening");
    let mut client = socket(AF_INET, SOCK_STREAM, access);
    client.connect(name(&listener), 0).expect("connecting");
    assert_eq!(eventually(|| client.connecting(7)), Status::SUCCESS);
    let server = eventually(|| listener.accept().ok());
    [listener, client, server]
}

#[test]
fn only_tcp_and_udp_are_made() {
    for (kind, error) in [
        ([1, SOCK_STREAM, 0], 10047),
        ([0xFFFF_FFFF, SOCK_STREAM, 0], 10047),
        ([AF_INET, 3, 1], 10013),
        ([AF_INET, 0x101, 0], 10044),
        ([AF_INET, SOCK_STREAM, 17], 10043),
        ([AF_INET6, SOCK_DGRAM, 6], 10043),
    ] {
        let made = HostSocket::create(kind, NetworkAccess::Host).map(|_| ());
        assert_eq!(made, Err(Status(0xC001_0000 | error)), "{kind:?}");
    }
}

#[test]
fn loopback_access_reaches_loopback_only() {
    for kind in [SOCK_STREAM, SOCK_DGRAM] {
        for host in ["10.0.0.1:80", "8.8.8.8:53", "224.0.0.1:80", "255.255.255.255:80"] {
            let mut v4 = socket(AF_INET, kind, NetworkAccess::Loopback);
            assert_eq!(v4.bind(at(host)), Err(Status::INVALID_ADDRESS_COMPONENT), "{host}");
            assert_eq!(v4.connect(at(host), 0), Err(Status::NETWORK_UNREACHABLE), "{host}");
            assert_eq!(v4.destination(at(host)), Err(Status::NETWORK_UNREACHABLE), "{host}");
        }
        for host in ["[::ffff:8.8.8.8]:53", "[::8.8.8.8]:53", "[2001:db8::1]:80", "[fe80::1%1]:80", "[ff02::1]:80"] {
            let mut v6 = socket(AF_INET6, kind, NetworkAccess::Loopback);
            assert_eq!(v6.bind(at(host)), Err(Status::INVALID_ADDRESS_COMPONENT), "{host}");
            assert_eq!(v6.connect(at(host), 0), Err(Status::NETWORK_UNREACHABLE), "{host}");
        }
        for host in ["0.0.0.0:80", "[::]:80", "[::ffff:0.0.0.0]:80"] {
            for access in [NetworkAccess::Loopback, NetworkAccess::Host] {
                let family = if host.starts_with('[') { AF_INET6 } else { AF_INET };
                let any = socket(family, kind, access);
                assert_eq!(any.destination(at(host)), Err(Status::INVALID_ADDRESS_COMPONENT), "{host}");
            }
        }
    }
    connection(NetworkAccess::Loopback);
    connection(NetworkAccess::Host);
}

#[test]
fn any_address_is_loopback_with_loopback_access() {
    let mut listener = socket(AF_INET, SOCK_STREAM, NetworkAccess::Loopback);
    listener.bind(at("0.0.0.0:0")).expect("bound");
    listener.listen(5).expect("listening");
    let named = name(&listener);
    assert!(named.ip().is_unspecified() && named.port() != 0, "the guest is told what it asked for");
    let reached = |host: std::net::IpAddr| {
        std::net::TcpStream::connect_timeout(&SocketAddr::new(host, named.port()), Duration::from_millis(300)).is_ok()
    };
    assert!(reached(at("127.0.0.1:0").ip()));
    // The machine's own address, if it has one beside loopback: what leads there is found without sending anything.
    let own =
        UdpSocket::bind("0.0.0.0:0").and_then(|probe| probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()));
    if let Ok(own) = own {
        // Delivered by the loopback device, too; the connection must not be the guest's.
        let _ = reached(own.ip());
    }
    let accepted = eventually(|| listener.accept().ok());
    assert!(address::is_loopback(address::parse(&accepted.peer().expect("a peer")).expect("its name").ip()));
    assert!(listener.accept().is_err(), "nobody else");
}

#[test]
fn datagrams_get_a_name_before_they_are_sent() {
    let mut sender = socket(AF_INET, SOCK_DGRAM, NetworkAccess::Loopback);
    assert_eq!(sender.name(), Err(Status::INVALID_PARAMETER));
    sender.bind_to_any().expect("bound");
    assert!(name(&sender).port() != 0);
    assert_eq!(sender.bind(at("127.0.0.1:0")), Err(Status::ADDRESS_ALREADY_ASSOCIATED));
}

#[test]
fn events_follow_the_connection() {
    let [mut listener, mut client, mut server] = connection(NetworkAccess::Host);
    assert_eq!(listener.ready_events(0), 0);
    assert_eq!(client.ready_events(0), event::CONNECT | event::WRITE);
    rustix::net::send(server.descriptor(), b"x", rustix::net::SendFlags::empty()).expect("sent");
    eventually(|| (client.ready_events(0) & event::READ != 0).then_some(()));
    assert_eq!(client.available(), Ok(1));
    server.shut_down(1).expect("shut down");
    assert_eq!(server.shut_down(3), Err(Status::INVALID_PARAMETER));
    // First the data, then the end.
    assert_eq!(client.ready_events(0) & (event::READ | event::HANG_UP), event::READ);
    rustix::net::recv(client.descriptor(), &mut [0u8; 1], rustix::net::RecvFlags::empty()).expect("received");
    eventually(|| (client.ready_events(0) & event::HANG_UP != 0).then_some(()));
    assert_eq!(client.ready_events(0) & event::READ, 0);

    let port = name(&listener).port();
    drop((listener, client, server));
    let mut refused = socket(AF_INET, SOCK_STREAM, NetworkAccess::Host);
    if refused.connect(SocketAddr::new(at("127.0.0.1:0").ip(), port), 0).is_ok() {
        assert_eq!(eventually(|| refused.connecting(0)), Status::CONNECTION_REFUSED);
        assert_eq!(refused.ready_events(0), event::CONNECT_ERROR);
        assert_eq!(refused.status_of_events(event::CONNECT_ERROR), Status::CONNECTION_REFUSED);
    }
}

#[test]
fn streams_that_are_not_connected_refuse() {
    let mut fresh = socket(AF_INET, SOCK_STREAM, NetworkAccess::Host);
    assert_eq!(fresh.ready_events(0), 0);
    assert_eq!(fresh.listen(1), Err(Status::INVALID_PARAMETER));
    assert_eq!(fresh.shut_down(0), Err(Status::INVALID_CONNECTION));
    assert_eq!(fresh.peer(), Err(Status::INVALID_CONNECTION));
    assert!(fresh.poll_flags(event::READ | event::WRITE).is_empty());
    assert_eq!(fresh.bind(at("[::1]:0")), Err(Status::INVALID_ADDRESS));
}

#[test]
fn an_event_is_told_once_until_it_is_enabled() {
    let mut record = EventRecord::default();
    record.post(event::WRITE);
    record.select(None, event::READ | event::WRITE);
    assert_eq!((record.pending, record.awaited()), (event::WRITE, event::READ));
    record.pending = 0;
    record.post(event::WRITE | event::READ);
    assert_eq!((record.pending, record.awaited()), (event::READ, 0));
    record.enable(event::READ);
    assert_eq!((record.pending, record.awaited()), (0, event::READ));
}
