//! Running, stepping, breakpoints, the call stack.

use std::fmt::Write as _;

use lstar_nt::crash::CrashReport;
use lstar_nt::system::RunEnd;

use crate::kd::disassembly::tick;
use crate::kd::shell::{CommandError, CommandResult, Shell};
use crate::kd::target::{Breakpoint, Stop, Watch};

/// Steps of one command at most.
const MOST_STEPS: u64 = 0x10_0000;

/// Shows where the target is: symbol and instruction.
pub fn show_location(shell: &mut Shell) -> CommandResult {
    let rip = shell.target.rip();
    if let Some(name) = shell.target.symbols.name(rip) {
        writeln!(shell.out, "{name}:")?;
    }
    match shell.target.disassemble(rip) {
        Some(line) => writeln!(shell.out, "{line}")?,
        None => writeln!(shell.out, "{} ??              ???", tick(rip))?,
    }
    shell.next_code = Some(rip);
    Ok(())
}

fn report(shell: &mut Shell, stop: Stop) -> CommandResult {
    match stop {
        Stop::Step | Stop::Reached => {}
        Stop::Breakpoint(number) | Stop::Data(number) => writeln!(shell.out, "Breakpoint {number} hit")?,
        Stop::Interrupted => writeln!(shell.out, "Interrupted")?,
        Stop::Ended => {
            let text = shell.target.end.as_ref().map_or_else(String::new, describe_end);
            return Ok(writeln!(shell.out, "{}", text.trim_end())?);
        }
    }
    show_location(shell)
}

/// How the guest has ended, in words.
fn describe_end(end: &RunEnd) -> String {
    let crash =
        |crash: &Option<Box<CrashReport>>| crash.as_ref().map_or_else(String::new, |crash| format!("\n{crash}"));
    match end {
        RunEnd::Exited { status, crash: report } => format!("The process has ended with {status}{}", crash(report)),
        RunEnd::KernelStopped { exit, crash: report } => {
            format!("The guest kernel has stopped ({exit:?}){}", crash(report))
        }
        RunEnd::Deadlock => "Every thread waits for something that cannot happen".into(),
        RunEnd::TimedOut => "The time limit is reached".into(),
        RunEnd::HookPanicked(message) => format!("A hook has panicked: {message}"),
        RunEnd::InstructionLimit => "The instruction limit is reached".into(),
        RunEnd::Interrupted | RunEnd::Breakpoint(_) | RunEnd::Diverged | RunEnd::StoppedByHook => "Stopped".into(),
    }
}

/// `g`.
pub fn go(shell: &mut Shell, _: &'static str, mut operands: &str) -> CommandResult {
    let until = shell.take_optional(&mut operands)?;
    Shell::finish(operands)?;
    let stop = shell.target.go(until);
    report(shell, stop)
}

/// `gu`.
pub fn go_up(shell: &mut Shell, _: &'static str, operands: &str) -> CommandResult {
    Shell::finish(operands)?;
    let stack = shell.target.stack();
    let Some(frame) = stack.first().filter(|frame| frame.return_address != 0) else {
        return Err(CommandError::Text("No caller is known".into()));
    };
    let stop = shell.target.go(Some(frame.return_address));
    report(shell, stop)
}

/// `p`.
pub fn step_over(shell: &mut Shell, _: &'static str, operands: &str) -> CommandResult {
    steps(shell, operands, true)
}

/// `t`.
pub fn step_into(shell: &mut Shell, _: &'static str, operands: &str) -> CommandResult {
    steps(shell, operands, false)
}

fn steps(shell: &mut Shell, mut operands: &str, over: bool) -> CommandResult {
    let count = shell.take_optional(&mut operands)?.unwrap_or(1);
    Shell::finish(operands)?;
    if count > MOST_STEPS {
        return Err(CommandError::Text(format!("Range error: at most {MOST_STEPS:x} steps")));
    }
    for _ in 0..count {
        let stop = if over { shell.target.step_over() } else { shell.target.step() };
        report(shell, stop)?;
        if stop != Stop::Step {
            break;
        }
    }
    Ok(())
}

/// `k`.
pub fn stack(shell: &mut Shell, _: &'static str, mut operands: &str) -> CommandResult {
    let most = shell.take_optional(&mut operands)?.unwrap_or(u64::MAX);
    Shell::finish(operands)?;
    writeln!(shell.out, " # Child-SP          RetAddr               Call Site")?;
    for (index, frame) in shell.target.stack().into_iter().enumerate() {
        if index as u64 >= most {
            break;
        }
        let site = shell.target.symbols.name(frame.rip).unwrap_or_else(|| format!("0x{}", tick(frame.rip)));
        writeln!(shell.out, "{index:02x} {} {}     {site}", tick(frame.rsp), tick(frame.return_address))?;
    }
    Ok(())
}

fn add(shell: &mut Shell, address: u64, watch: Watch) {
    let number = (0..).find(|number| !shell.target.breakpoints.contains_key(number)).unwrap_or(0);
    shell.target.breakpoints.insert(number, Breakpoint { address, watch, enabled: true });
}

/// `bp`.
pub fn set_breakpoint(shell: &mut Shell, _: &'static str, mut operands: &str) -> CommandResult {
    let address = shell.take_value(&mut operands)?;
    Shell::finish(operands)?;
    add(shell, address, Watch::Execute);
    Ok(())
}

/// `ba`.
pub fn set_data_breakpoint(shell: &mut Shell, _: &'static str, operands: &str) -> CommandResult {
    let syntax = || CommandError::Text("Syntax error: ba e|w|r SIZE ADDRESS, with a SIZE of 1, 2, 4 or 8".into());
    let mut characters = operands.chars();
    let kind = characters.next().ok_or_else(syntax)?;
    let rest = characters.as_str().trim_start();
    let size = rest.chars().next().and_then(|digit| digit.to_digit(10)).filter(|size| [1, 2, 4, 8].contains(size));
    let size = u64::from(size.ok_or_else(syntax)?);
    let mut operands = rest[1..].strip_prefix(char::is_whitespace).ok_or_else(syntax)?;
    let watch = match kind {
        'e' => Watch::Execute,
        'w' => Watch::Write(size),
        'r' => Watch::Access(size),
        _ => return Err(syntax()),
    };
    let address = shell.take_value(&mut operands)?;
    Shell::finish(operands)?;
    if address % size != 0 {
        return Err(CommandError::Text(format!("Data breakpoint must be aligned to its size, {size}")));
    }
    add(shell, address, watch);
    Ok(())
}

/// `bl`.
pub fn list_breakpoints(shell: &mut Shell, _: &'static str, operands: &str) -> CommandResult {
    Shell::finish(operands)?;
    for (number, breakpoint) in &shell.target.breakpoints {
        let state = if breakpoint.enabled { 'e' } else { 'd' };
        let watch = match breakpoint.watch {
            Watch::Execute => String::new(),
            Watch::Write(size) => format!("w {size} "),
            Watch::Access(size) => format!("r {size} "),
        };
        let name = shell.target.symbols.name(breakpoint.address).unwrap_or_default();
        writeln!(shell.out, "{number:2} {state} {} {watch}0001 (0001) {name}", tick(breakpoint.address))?;
    }
    Ok(())
}

/// `bc`, `bd`, `be`.
pub fn change_breakpoints(shell: &mut Shell, name: &'static str, mut operands: &str) -> CommandResult {
    let mut numbers = Vec::new();
    if operands.trim() == "*" {
        numbers.extend(shell.target.breakpoints.keys().copied());
    } else {
        while let Some(number) = shell.take_optional(&mut operands)? {
            let known = u32::try_from(number).ok().filter(|number| shell.target.breakpoints.contains_key(number));
            numbers.push(known.ok_or_else(|| CommandError::Text(format!("No breakpoint {number}")))?);
            operands = operands.trim_start_matches(',');
        }
        if numbers.is_empty() {
            return Err(CommandError::Text(format!("{name} needs breakpoint numbers, or *")));
        }
    }
    for number in numbers {
        if name == "bc" {
            shell.target.breakpoints.remove(&number);
        } else if let Some(breakpoint) = shell.target.breakpoints.get_mut(&number) {
            breakpoint.enabled = name == "be";
        }
    }
    Ok(())
}
