//! Entry point of the `lstar` program.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    lstar_cli::execute(lstar_cli::args::Cli::parse()).into()
}
