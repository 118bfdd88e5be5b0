//! `u` and `uf`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use iced_x86::OpKind;

use crate::kd::Fault;
use crate::kd::disassembly::{Flow, Line, flow};
use crate::kd::shell::{CommandError, CommandResult, Shell};

/// Instructions that `u` shows by default.
const DEFAULT_COUNT: u64 = 8;
/// Instructions that `u` shows at most.
const MOST_INSTRUCTIONS: u64 = 0x1_0000;
/// Instructions that `uf` follows at most.
const MOST_IN_FUNCTION: usize = 0x4000;

/// `u`.
pub fn unassemble(shell: &mut Shell, _: &'static str, mut operands: &str) -> CommandResult {
    let given = shell.take_optional(&mut operands)?;
    let start = match given.or(shell.next_code) {
        Some(address) => address,
        None => shell.target.rip(),
    };
    let (count, end) = if operands.trim_start().starts_with(['L', 'l']) || operands.trim().is_empty() {
        let count = shell.take_count(&mut operands, start, 1, MOST_INSTRUCTIONS)?;
        (count.unwrap_or(DEFAULT_COUNT), u64::MAX)
    } else {
        (MOST_INSTRUCTIONS, shell.take_value(&mut operands)?)
    };
    Shell::finish(operands)?;
    let mut address = start;
    for index in 0..count {
        if address > end {
            break;
        }
        let Some(line) = shell.target.disassemble(address) else {
            if index == 0 {
                return Err(Fault(address).into());
            }
            let _ = writeln!(shell.out, "{}", Fault(address));
            break;
        };
        let label = if index == 0 { shell.target.symbols.name(address) } else { shell.target.symbols.exact(address) };
        if let Some(label) = label {
            writeln!(shell.out, "{label}:")?;
        }
        writeln!(shell.out, "{line}")?;
        address = line.next();
        shell.next_code = Some(address);
    }
    Ok(())
}

/// `uf`.
pub fn unassemble_function(shell: &mut Shell, _: &'static str, mut operands: &str) -> CommandResult {
    let address = shell.take_value(&mut operands)?;
    Shell::finish(operands)?;
    let start = shell.target.symbols.start_of(address).unwrap_or(address);
    let function = Function::follow(shell, start);
    if function.lines.is_empty() {
        return Err(CommandError::Text(format!("No code found at {}", crate::kd::disassembly::tick(address))));
    }
    if !function.complete {
        writeln!(shell.out, "Flow analysis was incomplete, some code may be missing")?;
    }
    let mut expected = None;
    for (address, line) in &function.lines {
        if expected != Some(*address) || function.leaders.contains(address) {
            if expected.is_some() {
                writeln!(shell.out)?;
            }
            if let Some(label) = shell.target.symbols.name(*address) {
                writeln!(shell.out, "{label}:")?;
            }
        }
        // Within the function, a branch is marked as such; leaving it is a plain jump.
        let inside = match flow(&line.instruction) {
            Flow::Jump(target) | Flow::Branch(target) => shell.target.symbols.start_of(target) == Some(start),
            _ => false,
        };
        writeln!(shell.out, "{line}{}", if inside { "  Branch" } else { "" })?;
        expected = Some(line.next());
    }
    Ok(())
}

/// The instructions that can be reached from an address without returning, calls aside.
struct Function {
    lines: BTreeMap<u64, Line>,
    /// Starts of basic blocks.
    leaders: BTreeSet<u64>,
    /// Whether every successor was found.
    complete: bool,
}

impl Function {
    fn follow(shell: &mut Shell, start: u64) -> Self {
        let mut function = Self { lines: BTreeMap::new(), leaders: BTreeSet::from([start]), complete: true };
        let mut waiting = vec![start];
        while let Some(mut address) = waiting.pop() {
            while !function.lines.contains_key(&address) {
                let line = shell.target.disassemble(address).filter(|line| line.mnemonic != "???");
                let Some(line) = line.filter(|_| function.lines.len() < MOST_IN_FUNCTION) else {
                    function.complete = false;
                    break;
                };
                let next = line.next();
                let follow = flow(&line.instruction);
                // A jump through an import slot leaves for another module; a computed one may stay.
                let import = matches!(line.instruction.op0_kind(), OpKind::Memory)
                    && line.instruction.is_ip_rel_memory_operand();
                function.lines.insert(address, line);
                match follow {
                    Flow::Next => {
                        address = next;
                        continue;
                    }
                    Flow::Branch(target) => {
                        function.leaders.extend([target, next]);
                        waiting.extend([target, next]);
                    }
                    Flow::Jump(target) => {
                        function.leaders.insert(target);
                        waiting.push(target);
                    }
                    Flow::Unknown => function.complete &= import,
                    Flow::End => {}
                }
                break;
            }
        }
        function
    }
}
