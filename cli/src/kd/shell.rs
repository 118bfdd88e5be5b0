//! The shell: reads command lines, finds the command, keeps what commands remember between lines.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustyline::error::ReadlineError;

use super::Fault;
use super::commands::{COMMANDS, Command};
use super::expression::{self, ExpressionError};
use super::target::Target;
use crate::interrupt;

/// Why a command has failed; the text is what the shell prints.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// An operand has no value.
    #[error("{0}")]
    Expression(#[from] ExpressionError),
    /// Memory cannot be accessed.
    #[error("{0}")]
    Memory(#[from] Fault),
    /// Anything else.
    #[error("{0}")]
    Text(String),
}

impl From<std::fmt::Error> for CommandError {
    fn from(_: std::fmt::Error) -> Self {
        Self::Text("Output failed".into())
    }
}

/// What a command does with its output and operands.
pub type CommandResult = Result<(), CommandError>;

/// A session.
#[derive(Debug)]
pub struct Shell {
    /// What is debugged.
    pub target: Target,
    /// Output of the line in work.
    pub out: String,
    /// Where `u` goes on.
    pub next_code: Option<u64>,
    /// Where the `d` commands go on.
    pub next_data: Option<u64>,
    /// Whether `q` was given.
    pub quit: bool,
    /// The `d` command that a bare `d` repeats.
    pub last_display: &'static str,
}

impl Shell {
    /// A session on a target.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self { target, out: String::new(), next_code: None, next_data: None, quit: false, last_display: "db" }
    }

    /// Executes a line of one or more commands, separated by semicolons, and returns what it prints.
    pub fn execute(&mut self, line: &str) -> String {
        self.out.clear();
        for part in split_commands(line) {
            let part = part.trim();
            // A comment, or the rest of the line after `*`.
            if part.is_empty() || part.starts_with('*') || part.starts_with("$$") {
                continue;
            }
            if let Err(error) = self.dispatch(part) {
                // Writing to a string cannot fail.
                let _ = writeln!(self.out, "{error}");
            }
            if self.quit {
                break;
            }
        }
        std::mem::take(&mut self.out)
    }

    fn dispatch(&mut self, text: &str) -> CommandResult {
        let (name, operands) = split_name(text);
        match find(name) {
            Some(command) => (command.run)(self, command.name, operands),
            None => Err(CommandError::Text(format!("Unknown command '{name}'; .help lists the commands"))),
        }
    }

    /// Evaluates the expression at the start of `operands` and removes it.
    pub fn take_value(&mut self, operands: &mut &str) -> Result<u64, CommandError> {
        let (value, rest) = expression::evaluate(operands, &mut self.target)?;
        *operands = rest;
        Ok(value)
    }

    /// As [`Self::take_value`], `None` when there is nothing left.
    pub fn take_optional(&mut self, operands: &mut &str) -> Result<Option<u64>, CommandError> {
        if operands.trim().is_empty() { Ok(None) } else { self.take_value(operands).map(Some) }
    }

    /// Takes a length, `L20`, or an end address, and returns the number of units; `None` when there is neither.
    pub fn take_count(
        &mut self,
        operands: &mut &str,
        start: u64,
        unit: u64,
        most: u64,
    ) -> Result<Option<u64>, CommandError> {
        let text = operands.trim_start();
        if text.is_empty() {
            return Ok(None);
        }
        let count = if let Some(rest) = text.strip_prefix(['L', 'l']) {
            *operands = rest.strip_prefix('?').unwrap_or(rest);
            self.take_value(operands)?
        } else {
            let end = self.take_value(operands)?;
            if end < start {
                return Err(CommandError::Text("Range error: the end lies before the start".into()));
            }
            (end - start) / unit + 1
        };
        if count > most {
            return Err(CommandError::Text(format!("Range error: at most L{most:x}")));
        }
        Ok(Some(count))
    }

    /// Refuses what is left of the operands.
    pub fn finish(operands: &str) -> CommandResult {
        match operands.trim() {
            "" => Ok(()),
            rest => Err(CommandError::Text(format!("Extra character error in '{rest}'"))),
        }
    }
}

/// Commands by name; operands may follow some without a blank (`?1+1`).
fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name || command.aliases.contains(&name))
}

/// Splits a command into its name and its operands.
fn split_name(text: &str) -> (&str, &str) {
    if let Some(operands) = text.strip_prefix('?') {
        return ("?", operands.trim_start());
    }
    let (name, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (name, operands.trim_start())
}

/// Splits at semicolons outside quotes.
fn split_commands(line: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quoted) = (0, false);
    for (index, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ';' if !quoted => {
                parts.push(&line[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&line[start..]);
    parts
}

/// The prompt.
const PROMPT: &str = "kd> ";

/// Where the history of command lines is kept.
fn history_folder() -> Option<PathBuf> {
    crate::setup::data_folder().ok().map(|folder| folder.join("kd"))
}

/// Makes the folder of the history for sessions on a terminal: one of its own, for a process that confines itself to it.
pub fn prepare_history() -> Option<PathBuf> {
    let folder = history_folder().filter(|_| io::stdin().is_terminal())?;
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder)
}

/// Where command lines come from.
#[derive(Debug, Default)]
pub enum Input {
    /// Standard input, with line editing when it is a terminal.
    #[default]
    Standard,
    /// One line.
    Line(String),
    /// A file.
    File(File),
}

/// Runs a session to the end of its input or to `q`.
pub fn session(shell: &mut Shell, input: Input) -> Result<()> {
    let mut out = io::stdout().lock();
    match input {
        Input::Line(line) => script(shell, std::iter::once(Ok(line)), &mut out),
        Input::File(file) => script(shell, io::BufReader::new(file).lines(), &mut out),
        Input::Standard if io::stdin().is_terminal() => interactive(shell, &mut out),
        Input::Standard => script(shell, io::stdin().lock().lines(), &mut out),
    }
}

/// Without a terminal: each line is echoed behind the prompt, so that the output reads as a log of the session.
fn script(shell: &mut Shell, lines: impl Iterator<Item = io::Result<String>>, out: &mut impl Write) -> Result<()> {
    for line in lines {
        let line = line.context("cannot read the commands")?;
        if line.trim().is_empty() {
            continue;
        }
        let output = shell.execute(&line);
        match write!(out, "{PROMPT}{line}\n{output}").and_then(|()| out.flush()) {
            // Whoever read the output has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.context("cannot write the output")?,
        }
        if shell.quit {
            break;
        }
    }
    Ok(())
}

fn interactive(shell: &mut Shell, out: &mut impl Write) -> Result<()> {
    writeln!(out, "lstar kernel debugger; .help lists the commands, q ends it")?;
    let mut editor = rustyline::DefaultEditor::new().context("cannot edit lines on this terminal")?;
    let history = history_folder().map(|folder| folder.join("history"));
    if let Some(history) = &history {
        // There is none at first.
        let _ = editor.load_history(history);
    }
    let mut last = String::new();
    while !shell.quit {
        match editor.readline(PROMPT) {
            Ok(line) if line.trim().is_empty() => {
                // An empty line repeats, as in WinDbg.
                write!(out, "{}", shell.execute(&last))?;
            }
            Ok(line) => {
                let _ = editor.add_history_entry(&line);
                interrupt::clear();
                write!(out, "{}", shell.execute(&line))?;
                last = line;
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error).context("cannot read from the terminal"),
        }
        out.flush()?;
    }
    if let Some(history) = &history {
        // A read-only home costs the history only.
        let _ = editor.save_history(history);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_split_into_commands() {
        assert_eq!(split_commands("r; u nt!A; da \"x;y\""), ["r", " u nt!A", " da \"x;y\""]);
        assert_eq!(split_name("?1+2"), ("?", "1+2"));
        assert_eq!(split_name("x nt!Ki*"), ("x", "nt!Ki*"));
        assert_eq!(split_name("!ssdt"), ("!ssdt", ""));
    }

    #[test]
    fn each_name_means_one_command() {
        let mut names: Vec<&str> = COMMANDS.iter().flat_map(|c| c.aliases.iter().copied().chain([c.name])).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
