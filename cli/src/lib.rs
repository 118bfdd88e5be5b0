//! The `lstar` program: runs, traces and debugs Windows x64 programs.
//!
//! Each command is a module with a `run` function that returns the exit status; this library exists beside `main` so
//! that commands can be tested.

pub mod args;
pub mod cache;
mod cache_build;
pub mod confine;
pub mod coverage;
pub mod diff;
pub mod inspect;
pub mod interrupt;
pub mod kd;
pub mod perf;
pub mod premises;
pub mod resolver;
pub mod run;
pub mod run_folder;
pub mod services;
pub mod setup;
pub mod state;
pub mod status;
pub mod surroundings;
pub mod trace;

use args::{Cli, Command};

/// Executes a command line and returns the exit status; errors are printed.
#[must_use]
pub fn execute(cli: Cli) -> u8 {
    let result = match cli.command {
        Some(Command::Setup(setup)) => {
            setup::run(&setup::Options { from: setup.from, force: setup.force, json: setup.json })
        }
        Some(Command::Kd(kd)) => kd::run(kd),
        Some(Command::Services(args)) => services::run(&args),
        Some(Command::Trace(args)) => trace::run(&args),
        Some(Command::Run(args)) => run::run(&args),
        Some(Command::Diff(args)) => diff::run(&args),
        Some(Command::Cache(args)) => cache::run(&args),
        Some(Command::Resolve) => resolver::serve(),
        Some(Command::Sweep { folder }) => run_folder::sweep(&folder),
        Some(Command::Keep { file }) => state::keep(&file),
        None => run::demonstration(),
    };
    match result {
        Ok(status) => status,
        Err(error) if error.is::<interrupt::Interrupted>() => status::INTERRUPTED,
        Err(error) => {
            // One line, from what was attempted to why it failed.
            eprintln!("lstar: {error:#}");
            status::ERROR
        }
    }
}
