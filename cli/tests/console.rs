//! Programs on a terminal: a pseudo-terminal with `tests/programs/console.c` on it.
//!
//! Ignored by default, as the other real programs are: it needs `lstar setup` and what `tests/programs/fetch.sh DIR` has
//! built; `LSTAR_TEST_PROGRAMS` names DIR.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Termios, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

/// lstar on a terminal of its own.
struct Session {
    child: Child,
    terminal: File,
    /// The program's side, to look at its settings.
    slave: OwnedFd,
    output: Receiver<Vec<u8>>,
    seen: String,
    before: Termios,
}

impl Session {
    fn start(arguments: &[&str]) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&terminal).and_then(|()| unlockpt(&terminal)).expect("access");
        let name = ptsname(&terminal, Vec::new()).expect("its name").into_string().expect("text");
        let slave: OwnedFd = File::options().read(true).write(true).open(name).expect("the other side").into();
        let before = tcgetattr(&slave).expect("settings");
        tcsetattr(&slave, OptionalActions::Now, &before).expect("settings");
        tcsetwinsize(&slave, Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).expect("size");
        let copy = || slave.try_clone().expect("a copy");
        let programs = std::env::var_os("LSTAR_TEST_PROGRAMS").map(PathBuf::from);
        let programs = programs.expect("LSTAR_TEST_PROGRAMS names the folder that tests/programs/fetch.sh filled");
        let child = Command::new(env!("CARGO_BIN_EXE_lstar"))
            .args(["run", "--timeout", "120"])
            .arg(programs.join("console.exe"))
            .args(arguments)
            .stdin(copy())
            .stdout(copy())
            .stderr(copy())
            .spawn()
            .expect("lstar starts");
        let terminal = File::from(terminal);
        let mut reader = terminal.try_clone().expect("a copy");
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read) = reader.read(&mut bytes) {
                if read == 0 || sender.send(bytes[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, terminal, slave, output, seen: String::new(), before }
    }

    /// Waits for output; what was before it is forgotten.
    fn expect(&mut self, wanted: &str) {
        let end = Instant::now() + Duration::from_secs(100);
        loop {
            if let Some(at) = self.seen.find(wanted) {
                self.seen.drain(..at + wanted.len());
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("no {wanted:?} in {:?}", self.seen),
            }
        }
    }

    fn send(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).expect("typed");
    }

    /// Whether the terminal is as it was before.
    fn is_restored(&self) -> bool {
        let now = tcgetattr(&self.slave).expect("settings");
        now.local_modes == self.before.local_modes && now.input_modes == self.before.input_modes
    }
}

#[test]
#[ignore = "needs programs and DLLs: LSTAR_TEST_PROGRAMS, lstar setup"]
fn a_program_talks_to_the_terminal() {
    let mut session = Session::start(&[]);
    session.expect("modes 1f7 3\r\n");
    session.expect("modes 1f7 3\r\n");
    session.expect("types 2 2\r\n");
    session.expect("size 100x30\r\n");
    session.expect("wé\r\n");
    session.expect("\x1b[0;91mred\r\n\x1b[0m");
    session.expect("\x1b[3;5Hcursor 4,2\r\n");
    session.expect("\x1b]0;title\x07");
    session.expect("line?\r\n");
    session.send("ab\u{e9}x\x7f\r");
    session.expect("read 5, last a\r\n");
    session.expect("bytes?\r\n");
    session.send("q\r");
    session.expect("read 3, first 71\r\n");
    session.expect("key? 102\r\n");
    session.send("\x1b[A");
    session.expect("key 26 1\r\n");
    session.expect("control?\r\n");
    session.send("\x03");
    session.expect("control 3\r\n");
    assert_eq!(session.child.wait().expect("it ends").code(), Some(0));
    assert!(session.is_restored());
}

#[test]
#[ignore = "needs programs and DLLs: LSTAR_TEST_PROGRAMS, lstar setup"]
fn the_terminal_is_given_back_when_a_run_is_ended() {
    let mut session = Session::start(&["sleep"]);
    session.expect("sleeping\r\n");
    let local = tcgetattr(&session.slave).expect("settings").local_modes;
    assert!(!local.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "{local:?}");
    let pid = rustix::process::Pid::from_child(&session.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
    assert_eq!(session.child.wait().expect("it ends").code(), Some(130));
    assert!(session.is_restored());
}
