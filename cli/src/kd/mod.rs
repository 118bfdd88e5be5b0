//! `lstar kd`: a WinDbg-like shell over guest memory and registers.
//!
//! [`target::Target`] is what is debugged; [`shell::Shell`] reads command lines and runs [`commands`] on it. Commands
//! print what WinDbg prints, so that its documentation, and a listing made with it, apply.

pub mod commands;
pub mod disassembly;
pub mod expression;
pub mod image;
pub mod registers;
pub mod shell;
pub mod symbols;
pub mod target;
pub mod unwind;

use std::fs::File;

use anyhow::Context as _;
use lstar_nt::io::SystemHost;

use crate::premises::Premises;
use crate::run::host;

/// Guest memory that cannot be read or written: the first such address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Memory access error at {}", disassembly::tick(self.0))]
pub struct Fault(pub u64);

/// Runs the command.
pub fn run(args: crate::args::Kd) -> anyhow::Result<u8> {
    crate::interrupt::watch();
    let input = match (args.commands, args.file) {
        (Some(line), _) => shell::Input::Line(line),
        (None, Some(path)) => {
            let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
            shell::Input::File(file)
        }
        (None, None) => shell::Input::Standard,
    };
    // The history of command lines is kept between sessions.
    let keep = shell::prepare_history();
    let premises = Premises::enter(&args.guest, &args.program, keep.into_iter().collect())?;
    let host = if args.program.is_empty() { Box::new(SystemHost) } else { host(&args.guest) };
    let target = target::Target::new(premises.boot(&args.guest, args.guest.machine.config(), host)?, None);
    shell::session(&mut shell::Shell::new(target), input)?;
    Ok(0)
}
