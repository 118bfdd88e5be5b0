//! Names of hosts for guests that may reach what the host reaches (`--net host`).
//!
//! The host's own ways of finding a name (resolver settings, a hosts file, name service plug-ins) need files and sockets
//! that a confined process has not. So a process of its own does it, started before the confinement: lstar itself, with
//! the command that [`serve`] serves. It reads one name a line and answers with one line of addresses; nothing else can be
//! asked of it, and it ends with the run.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Result;
use lstar_nt::io::afd::Resolver;

/// The process, and the ends of its pipes.
#[derive(Debug)]
pub struct ResolverProcess {
    child: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl ResolverProcess {
    /// Starts the process.
    pub fn start() -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("resolve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // The terminal's Ctrl-C is for the run.
            .process_group(0)
            .spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(questions), Some(answers)) => {
                Ok(Self { child, questions: Some(questions), answers: BufReader::new(answers) })
            }
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Resolver for ResolverProcess {
    fn resolve(&mut self, name: &str) -> io::Result<Vec<IpAddr>> {
        if !is_host_name(name) {
            return Ok(Vec::new());
        }
        let questions = self.questions.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(questions, "{name}")?;
        let mut answer = String::new();
        if self.answers.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answer.split_whitespace().filter_map(|address| address.parse().ok()).collect())
    }
}

impl Drop for ResolverProcess {
    fn drop(&mut self) {
        drop(self.questions.take());
        // It ends when there are no more questions.
        let _ = self.child.wait();
    }
}

/// Whether a name could be a host's: letters, digits, hyphens, underscores and dots.
fn is_host_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=253).contains(&name.len()) && name.bytes().all(plain)
}

/// Answers questions until there are no more.
pub fn serve() -> Result<u8> {
    answer(io::stdin().lock(), io::stdout().lock())?;
    Ok(0)
}

fn answer(questions: impl BufRead, mut answers: impl Write) -> io::Result<()> {
    for name in questions.lines() {
        let name = name?;
        let found = if is_host_name(&name) { (name.as_str(), 0).to_socket_addrs().ok() } else { None };
        let mut addresses: Vec<String> = Vec::new();
        for address in found.into_iter().flatten() {
            let text = address.ip().to_string();
            if !addresses.contains(&text) {
                addresses.push(text);
            }
        }
        writeln!(answers, "{}", addresses.join(" "))?;
        answers.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_answered_line_by_line() {
        let mut answers = Vec::new();
        answer(&b"localhost\n127.0.0.9\nno such name\n\n"[..], &mut answers).expect("answered");
        let lines: Vec<&str> = std::str::from_utf8(&answers).expect("text").lines().collect();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[0].split(' ').any(|address| address == "127.0.0.1" || address == "::1"), "{lines:?}");
        assert_eq!(lines[1..], ["127.0.0.9", "", ""]);
    }

    #[test]
    fn what_is_no_name_is_not_asked() {
        for name in ["", "a b", "a\nb", "a/b", "ä", "a;b", &"x".repeat(254)] {
            assert!(!is_host_name(name), "{name:?}");
        }
        assert!(is_host_name("www.example.org") && is_host_name("_sip._tcp.example"));
    }
}
