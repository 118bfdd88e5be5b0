//! Registers, MSRs, symbols, modules, expressions, help.

use std::fmt::Write as _;

use super::COMMANDS;
use super::execution::show_location;
use crate::kd::disassembly::tick;
use crate::kd::registers;
use crate::kd::shell::{CommandError, CommandResult, Shell};
use crate::kd::symbols::SymbolSource;

/// `r`.
pub fn registers(shell: &mut Shell, _: &'static str, operands: &str) -> CommandResult {
    if operands.is_empty() {
        let text = shell.target.with_registers(registers::display);
        shell.out.push_str(&text);
        return show_location(shell);
    }
    for part in operands.split(',') {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (part, None),
        };
        let name = name.trim().trim_start_matches('@').to_ascii_lowercase();
        let bad = || CommandError::Text(format!("Bad register error at '{}'", part.trim()));
        if let Some(mut value) = value {
            let number = shell.take_value(&mut value)?;
            Shell::finish(value)?;
            shell.target.change_registers(|cpu| registers::set(&name, cpu, number)).ok_or_else(bad)?;
        } else if let Some(value) = shell.target.with_registers(|cpu| registers::xmm(&name, cpu)) {
            writeln!(shell.out, "{name}={value:032x}")?;
        } else {
            let value = shell.target.with_registers(|cpu| registers::get(&name, cpu.clone())).ok_or_else(bad)?;
            writeln!(shell.out, "{name}={value:016x}")?;
        }
    }
    Ok(())
}

/// `rdmsr`.
pub fn read_msr(shell: &mut Shell, _: &'static str, mut operands: &str) -> CommandResult {
    let index = msr_index(shell, &mut operands)?;
    Shell::finish(operands)?;
    let value = shell.target.rdmsr(index).ok_or_else(|| CommandError::Text("no such msr".into()))?;
    Ok(writeln!(shell.out, "msr[{index:x}] = {}", tick(value))?)
}

/// `wrmsr`.
pub fn write_msr(shell: &mut Shell, _: &'static str, mut operands: &str) -> CommandResult {
    let index = msr_index(shell, &mut operands)?;
    let value = shell.take_value(&mut operands)?;
    Shell::finish(operands)?;
    let refused = || CommandError::Text(format!("msr[{index:x}] does not exist or does not take {}", tick(value)));
    shell.target.wrmsr(index, value).ok_or_else(refused)
}

fn msr_index(shell: &mut Shell, operands: &mut &str) -> Result<u32, CommandError> {
    let index = shell.take_value(operands)?;
    u32::try_from(index).map_err(|_| CommandError::Text("no such msr".into()))
}

/// `x`.
pub fn examine_symbols(shell: &mut Shell, _: &'static str, operands: &str) -> CommandResult {
    let pattern = operands.trim();
    if pattern.is_empty() {
        return Err(CommandError::Text("Missing pattern, such as nt!Ki*".into()));
    }
    let mut found = shell.target.symbols.matching(pattern);
    found.sort();
    if found.is_empty() {
        return Err(CommandError::Text(format!("No symbol matches {pattern}")));
    }
    for (address, name) in found {
        writeln!(shell.out, "{} {name} (<no parameter info>)", tick(address))?;
    }
    Ok(())
}

/// `ln`.
pub fn nearest_symbol(shell: &mut Shell, _: &'static str, mut operands: &str) -> CommandResult {
    let address = shell.take_value(&mut operands)?;
    Shell::finish(operands)?;
    match shell.target.symbols.name(address) {
        Some(name) => Ok(writeln!(shell.out, "({})   {name}", tick(address))?),
        None => Err(CommandError::Text(format!("{} lies in no module", tick(address)))),
    }
}

/// `lm`.
pub fn list_modules(shell: &mut Shell, _: &'static str, operands: &str) -> CommandResult {
    let pattern = operands.trim().to_ascii_lowercase();
    let pattern = pattern.strip_prefix("m ").unwrap_or(&pattern).trim_matches('*').trim().to_owned();
    writeln!(shell.out, "start             end                 module name")?;
    for module in shell.target.symbols.modules() {
        if module.name.to_ascii_lowercase().contains(&pattern) {
            let source = match module.source {
                SymbolSource::Private => "(private symbols)",
                SymbolSource::Export => "(export symbols)",
            };
            let (start, end) = (tick(module.base), tick(module.base + module.size));
            writeln!(shell.out, "{start} {end}   {:<10} {source:<19} {}", module.name, module.image)?;
        }
    }
    Ok(())
}

/// `.reload`.
pub fn reload(shell: &mut Shell, _: &'static str, operands: &str) -> CommandResult {
    Shell::finish(operands)?;
    shell.target.reload();
    Ok(())
}

/// `?`.
pub fn evaluate(shell: &mut Shell, name: &'static str, mut operands: &str) -> CommandResult {
    if operands.is_empty() {
        return help(shell, name, operands);
    }
    let value = shell.take_value(&mut operands)?;
    Shell::finish(operands)?;
    Ok(writeln!(shell.out, "Evaluate expression: {} = {}", value as i64, tick(value))?)
}

/// `.help`.
pub fn help(shell: &mut Shell, _: &'static str, _: &str) -> CommandResult {
    for command in COMMANDS {
        let names = std::iter::once(&command.name).chain(command.aliases).copied().collect::<Vec<_>>().join(", ");
        writeln!(shell.out, "{:40} {}", format!("{names} {}", command.operands), command.help)?;
    }
    writeln!(shell.out)?;
    writeln!(shell.out, "Addresses are expressions: nt!KiSystemCall64+8, fffff800`03e7bec0, poi(@rsp), @$thread.")?;
    writeln!(
        shell.out,
        "Numbers are hexadecimal; 0n10 is decimal. A range is ADDRESS, ADDRESS END or ADDRESS L COUNT."
    )?;
    writeln!(
        shell.out,
        "Pseudo-registers: $pcr $thread $teb $peb $ra $ip $csp $retreg. Semicolons separate commands."
    )?;
    Ok(())
}

/// `q`.
pub fn quit(shell: &mut Shell, _: &'static str, _: &str) -> CommandResult {
    shell.quit = true;
    Ok(())
}
