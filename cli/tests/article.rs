//! Replays the debugging session of the article "win64 system calls": every command in it, in its order, must give
//! the article's addresses, bytes, mnemonics and operands.
//!
//! `article-session.txt` holds the session as published. Only runs of blanks are normalised: the article's columns
//! were made by another formatter version (`mov   qword` and `mov     qword` in one listing).

use lstar_cli::kd::shell::Shell;
use lstar_cli::kd::target::Target;
use lstar_nt::io::host::CapturedHost;
use lstar_runtime::MachineConfig;

const SESSION: &str = include_str!("article-session.txt");

/// A command with the output that must follow.
fn commands() -> Vec<(&'static str, Vec<String>)> {
    let mut commands: Vec<(&str, Vec<String>)> = Vec::new();
    for line in SESSION.lines() {
        if let Some((_, command)) = line.split_once("kd> ") {
            commands.push((command, Vec::new()));
        } else if let Some((_, output)) = commands.last_mut() {
            output.push(normalised(line));
        }
    }
    // The article puts an empty line before the prose that follows a listing.
    for (_, output) in &mut commands {
        while output.last().is_some_and(String::is_empty) {
            output.pop();
        }
    }
    commands
}

fn normalised(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_articles_session_replays() {
    let target =
        Target::embedded(MachineConfig::default(), Box::<CapturedHost>::default()).expect("the embedded image boots");
    let mut shell = Shell::new(target);
    let commands = commands();
    assert_eq!(commands.len(), 9, "the session has nine commands");
    for (command, expected) in commands {
        let output = shell.execute(command);
        let output: Vec<String> = output.lines().map(normalised).collect();
        assert_eq!(output, expected, "{command}");
    }
}
