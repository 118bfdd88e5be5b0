//! The commands, a module for each group, and the table that says what there is.

mod code;
mod execution;
mod information;
mod memory;
mod structures;

use super::shell::{CommandResult, Shell};

/// A command.
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// Operands, for `.help`.
    pub operands: &'static str,
    /// What it does, for `.help`.
    pub help: &'static str,
    /// Executes it with its name and its operands.
    pub run: fn(&mut Shell, &'static str, &str) -> CommandResult,
}

macro_rules! commands {
    ($($name:literal $(| $alias:literal)*, $operands:literal, $help:literal => $run:path;)*) => {
        /// Every command, in the order of `.help`.
        pub const COMMANDS: &[Command] =
            &[$(Command { name: $name, aliases: &[$($alias),*], operands: $operands, help: $help, run: $run }),*];
    };
}

commands! {
    "uf", "ADDRESS", "unassemble a whole function" => code::unassemble_function;
    "u", "[ADDRESS [L COUNT]]", "unassemble" => code::unassemble;
    "r", "[REGISTER[=VALUE], ..]", "show or set registers" => information::registers;
    "rdmsr", "NUMBER", "show a model-specific register" => information::read_msr;
    "wrmsr", "NUMBER VALUE", "set a model-specific register" => information::write_msr;
    "d", "[RANGE]", "display memory as the last display command did" => memory::display_again;
    "db", "[RANGE]", "display bytes and characters" => memory::display;
    "dw", "[RANGE]", "display words" => memory::display;
    "dd", "[RANGE]", "display doublewords" => memory::display;
    "dq" | "dp", "[RANGE]", "display quadwords" => memory::display;
    "dps" | "dqs", "[RANGE]", "display quadwords with symbols" => memory::display_symbols;
    "da", "[ADDRESS]", "display an ANSI string" => memory::display_string;
    "du", "[ADDRESS]", "display a Unicode string" => memory::display_string;
    "eb", "ADDRESS VALUE ..", "enter bytes" => memory::enter;
    "ew", "ADDRESS VALUE ..", "enter words" => memory::enter;
    "ed", "ADDRESS VALUE ..", "enter doublewords" => memory::enter;
    "eq" | "ep", "ADDRESS VALUE ..", "enter quadwords" => memory::enter;
    "x", "MODULE!PATTERN", "list symbols that match" => information::examine_symbols;
    "ln", "ADDRESS", "name the nearest symbol" => information::nearest_symbol;
    "lm", "[PATTERN]", "list modules" => information::list_modules;
    ".reload", "", "read the list of user modules again" => information::reload;
    "k" | "kn", "[COUNT]", "show the call stack" => execution::stack;
    "g", "[ADDRESS]", "go, to a breakpoint or an address" => execution::go;
    "gu", "", "go up: to the caller" => execution::go_up;
    "p", "[COUNT]", "step over calls" => execution::step_over;
    "t", "[COUNT]", "step into calls" => execution::step_into;
    "bp", "ADDRESS", "set a breakpoint" => execution::set_breakpoint;
    "ba", "e|w|r SIZE ADDRESS", "set a breakpoint on execution, writes, or any access" => execution::set_data_breakpoint;
    "bl", "", "list breakpoints" => execution::list_breakpoints;
    "bc", "NUMBER ..|*", "clear breakpoints" => execution::change_breakpoints;
    "bd", "NUMBER ..|*", "disable breakpoints" => execution::change_breakpoints;
    "be", "NUMBER ..|*", "enable breakpoints" => execution::change_breakpoints;
    "!ssdt", "[PATTERN]", "list both system service tables" => structures::service_tables;
    "dt", "[nt!]TYPE [ADDRESS] [FIELD ..]", "display a structure: KTRAP_FRAME, KPCR, KTHREAD" => structures::display_type;
    "?", "EXPRESSION", "evaluate" => information::evaluate;
    ".help" | ".hh", "", "list the commands" => information::help;
    "q" | "qq", "", "end the session" => information::quit;
}
