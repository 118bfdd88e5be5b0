//! Sockets: `tests/programs/network.c` through `lstar run`, with and without `--net`.
//!
//! Ignored by default, as the other real programs are: it needs `lstar setup` and what `tests/programs/fetch.sh DIR` has
//! built; `LSTAR_TEST_PROGRAMS` names DIR. Native Wine 10 prints the same lines (but for services by name, where the
//! machine has no list of them).

use std::path::PathBuf;
use std::process::{Command, Stdio};

fn run(options: &[&str], words: &[&str]) -> (String, String) {
    let programs = std::env::var_os("LSTAR_TEST_PROGRAMS").map(PathBuf::from);
    let programs = programs.expect("LSTAR_TEST_PROGRAMS names the folder that tests/programs/fetch.sh filled");
    let output = Command::new(env!("CARGO_BIN_EXE_lstar"))
        .args(["run", "--timeout", "120"])
        .args(options)
        .arg(programs.join("network.exe"))
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("lstar starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text").replace("\r\n", "\n");
    let (out, error) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{options:?} {words:?}: {out}{error}");
    (out, error)
}

const LOOPBACK: &str = "tcp: 4194304 bytes came back right
ipv6: 4194304 bytes came back right
udp: 100 of 100 answers right
udp: a datagram of 10 bytes into 4: -1, error 10040, 0123
select: 0 ready without data
select: 1 ready, readable 0, writable 1
select: 1 ready after the other thread has sent, recv gives 1
select: 1 ready after the peer has closed, recv gives 0
poll: 0 ready without data
poll: 1 ready, events 100 and 0
nonblocking: accept gives -1, error 10035
nonblocking: 1 connected, SO_ERROR 0
nonblocking: recv gives -1, error 10035
nonblocking: 1 failed (1), SO_ERROR 10061
blocking: connect to nobody gives -1, error 10061
overlapped: receiving gives -1, error 997
overlapped: nothing after 10 ms: 0, error 258
overlapped: 1, 7 bytes, key 42, the receiving: abc defg
overlapped: 1, 10 bytes sent, the sending
overlapped: cancelled: 0, error 995
overlapped: event 0, 1 byte
apc: the wait gives c0, the routine got 1 byte
events: wait 0, found 2
events: wait 0, found 1, recv gives 1
events: wait without anything new 258
events: wait 0, found 20, error 0
acceptex: 0, error 997
acceptex: accepted 1, 5 bytes: hello
acceptex: connected 1, 5 bytes sent
acceptex: getpeername 0, 127.0.0.1
names: localhost 0, IPv4 1
names: no such name: 11001
names: numeric 0, 127.0.0.5, port 4711
names: getnameinfo 0, 127.0.0.1, 80
names: gethostname 0, some name
names: gethostbyname 127.0.0.1
";

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn everything_works_over_loopback() {
    for options in [&["--net", "loopback"][..], &["--net", "host"], &["--net", "loopback", "--realtime"]] {
        let (out, _) = run(options, &[]);
        assert_eq!(out, LOOPBACK, "{options:?}");
    }
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn programs_that_go_round_ws2_32_work_by_windows_own_codes() {
    let (out, _) = run(&["--net", "loopback"], &["native"]);
    assert_eq!(
        out,
        "native: open 0, bind 0, listen 0, connect 0, wait 0 from 127.0.0.1, accept 0\n\
         native: send 0, 10 bytes, receive 0, 10 bytes: a question, peer 0 127.0.0.1\n\
         native: send 0, 8 bytes, receive 0, 8 bytes: datagram from 127.0.0.1\n"
    );
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn without_a_network_sockets_lead_nowhere_and_the_user_is_told() {
    let (out, error) =
        run(&["--stats"], &["outside", "127.0.0.1", "outside", "192.0.2.1", "lookup", "example.org", "80"]);
    assert_eq!(
        out,
        "outside: socket 1, sendto 10051, bind 0, connect 10061, mapped 10061, any 0, raw 10013\n\
         outside: socket 1, sendto 10051, bind 10049, connect 10051, mapped 10051, any 0, raw 10013\n\
         lookup: 11001 \n"
    );
    assert!(error.contains("asked for the network, which is off; --net"), "{error}");
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn loopback_is_not_left() {
    let words = ["outside", "127.0.0.1", "outside", "192.0.2.1", "outside", "0.0.0.0", "lookup", "example.org", "80"];
    let (out, _) = run(&["--net", "loopback"], &words);
    assert_eq!(
        out,
        "outside: socket 1, sendto 0, bind 10022, connect 10035, mapped 10035, any 0, raw 10013\n\
         outside: socket 1, sendto 10051, bind 10022, connect 10051, mapped 10051, any 0, raw 10013\n\
         outside: socket 1, sendto 10049, bind 10022, connect 10049, mapped 10049, any 0, raw 10013\n\
         lookup: 11001 \n"
    );
}
