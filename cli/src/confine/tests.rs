//! Each test confines a thread of its own.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use rustix::net::{AddressFamily, SocketType};

use super::*;

/// Whether this kernel can confine at all.
fn kernel_can() -> bool {
    let file = |name: &str| Path::new(name).exists();
    file("/proc/sys/kernel/seccomp/actions_avail")
}

fn confined<T: Send>(allowed: &Allowed, attempt: impl FnOnce(Confinement) -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(|| attempt(confine(allowed))).join().expect("no panic"))
}

fn refused<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

#[test]
fn files_outside_are_out_of_reach() {
    let scratch = tempfile::tempdir().expect("folder");
    let at = |name: &str| scratch.path().join(name);
    for folder in ["read", "write", "other"] {
        fs::create_dir(at(folder)).expect("folder");
        fs::write(at(folder).join("file"), folder).expect("file");
    }
    std::os::unix::fs::symlink(at("other/file"), at("read/link")).expect("link");
    let mut open_before = File::open(at("other/file")).expect("opened before");
    let allowed = Allowed { read: vec![at("read")], write: vec![at("write")], network: false };
    confined(&allowed, |confinement| {
        if confinement.files == FileRules::None {
            eprintln!("not tested: the kernel has no Landlock");
            return;
        }
        assert_eq!(fs::read(at("read/file")).expect("allowed"), b"read");
        assert!(refused(fs::write(at("read/file"), "x")) && refused(File::create(at("read/new"))));
        assert!(refused(fs::remove_file(at("read/file"))) && refused(fs::create_dir(at("read/folder"))));

        fs::write(at("write/new"), "x").expect("allowed");
        fs::create_dir(at("write/folder")).expect("allowed");
        fs::rename(at("write/new"), at("write/folder/moved")).expect("allowed");
        fs::remove_dir_all(at("write/folder")).expect("allowed");
        assert!(refused(std::os::unix::fs::symlink("/etc", at("write/link"))));

        for path in [at("other/file"), at("read/link"), "/etc/passwd".into(), "/proc/self/maps".into()] {
            assert!(refused(File::open(&path)), "{}", path.display());
        }
        assert!(refused(fs::read_dir(at("other"))) && refused(File::create(at("other/new"))));
        assert!(fs::rename(at("write/file"), at("other/moved")).is_err());
        assert!(refused(fs::read_dir("/")) && refused(File::open("/dev/tty")));
        // Threads are confined with the one that starts them.
        assert!(std::thread::spawn(|| refused(File::open("/etc/passwd"))).join().expect("no panic"));

        let mut text = String::new();
        open_before.read_to_string(&mut text).expect("what was open stays usable");
        assert_eq!(text, "other");
        File::options().write(true).open("/dev/null").expect("the null device").write_all(b"x").expect("written");
        File::open("/dev/urandom").expect("random numbers").read_exact(&mut [0; 4]).expect("read");
    });
    assert!(File::open("/etc/passwd").is_ok(), "only that thread is confined");
}

#[test]
fn there_are_no_programs_and_no_network() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("its address");
    confined(&Allowed::default(), |confinement| {
        if !confinement.filter {
            assert!(!kernel_can(), "the kernel has seccomp");
            return;
        }
        assert!(refused(Command::new("/bin/true").spawn()));
        assert!(refused(TcpStream::connect(address)) && refused(TcpListener::bind("127.0.0.1:0")));
        assert!(refused(UdpSocket::bind("127.0.0.1:0")));
        assert!(refused(
            rustix::process::kill_process(rustix::process::getppid().expect("a parent"), signal()).map_err(Into::into)
        ));
        assert!(refused(rustix::process::chroot("/").map_err(Into::into)));
        // What translation needs.
        let sum: u32 = std::thread::scope(|scope| scope.spawn(|| 1 + 1).join().expect("a thread"));
        assert_eq!(sum, 2);
    });
    confined(&Allowed { network: true, ..Allowed::default() }, |_| {
        TcpStream::connect(address).expect("allowed");
        TcpListener::bind("127.0.0.1:0").expect("allowed");
        UdpSocket::bind("127.0.0.1:0").expect("allowed");
        assert!(UnixStream::connect("/nowhere").is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied));
        let raw = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::ICMP));
        assert!(refused(raw.map_err(Into::into)));
        let netlink = rustix::net::socket(AddressFamily::NETLINK, SocketType::DGRAM, None);
        assert!(refused(netlink.map_err(Into::into)));
    });
}

/// A signal that does nothing to whoever it reaches.
fn signal() -> rustix::process::Signal {
    rustix::process::Signal::CONT
}

#[test]
fn what_is_in_effect_is_told() {
    let tell = |files, filter| Confinement { files, filter }.to_string();
    assert_eq!(tell(FileRules::Full, true), "Landlock, seccomp");
    assert_eq!(tell(FileRules::None, false), "no Landlock (the kernel has none), no seccomp (the kernel has none)");
}
