//! `d*` and `e*`.

use std::fmt::Write as _;

use crate::kd::Fault;
use crate::kd::disassembly::tick;
use crate::kd::image::Memory;
use crate::kd::shell::{CommandError, CommandResult, Shell};

/// Bytes that a display command shows at most.
const MOST_BYTES: u64 = 0x10_0000;
/// Characters of a string at most.
const MOST_CHARACTERS: u64 = 0x1000;

/// `d`.
pub fn display_again(shell: &mut Shell, _: &'static str, operands: &str) -> CommandResult {
    match shell.last_display {
        name @ "dps" => display_symbols(shell, name, operands),
        name => display(shell, name, operands),
    }
}

/// `db`, `dw`, `dd`, `dq`: rows of 16 bytes.
pub fn display(shell: &mut Shell, name: &'static str, mut operands: &str) -> CommandResult {
    let unit: usize = match name {
        "db" => 1,
        "dw" => 2,
        "dd" => 4,
        _ => 8,
    };
    let start = start(shell, &mut operands)?;
    let most = MOST_BYTES / unit as u64;
    let count = shell.take_count(&mut operands, start, unit as u64, most)?;
    let count = count.unwrap_or(0x80 / unit as u64) as usize;
    Shell::finish(operands)?;
    shell.last_display = name;
    let size = count * unit;
    for offset in (0..size).step_by(16) {
        let address = start.wrapping_add(offset as u64);
        let row = bytes(shell, address, 16.min(size - offset));
        let mut numbers = String::new();
        for (index, chunk) in row.chunks(unit).enumerate() {
            // WinDbg joins the halves of a row of bytes by a hyphen.
            let separator = if unit == 1 && index == 8 { '-' } else { ' ' };
            if index != 0 {
                numbers.push(separator);
            }
            numbers.push_str(&number(chunk));
        }
        write!(shell.out, "{}  {numbers}", tick(address))?;
        if unit == 1 {
            let text: String = row
                .iter()
                .map(|byte| match byte {
                    None => '?',
                    Some(byte @ 0x20..=0x7E) => char::from(*byte),
                    Some(_) => '.',
                })
                .collect();
            write!(shell.out, "{:width$}  {text}", "", width = 47 - numbers.len())?;
        }
        writeln!(shell.out)?;
    }
    shell.next_data = Some(start.wrapping_add(size as u64));
    Ok(())
}

/// `dps`: a quadword and its symbol a line.
pub fn display_symbols(shell: &mut Shell, name: &'static str, mut operands: &str) -> CommandResult {
    let start = start(shell, &mut operands)?;
    let count = shell.take_count(&mut operands, start, 8, MOST_BYTES / 8)?.unwrap_or(16);
    Shell::finish(operands)?;
    shell.last_display = name;
    for index in 0..count {
        let address = start.wrapping_add(8 * index);
        let row = bytes(shell, address, 8);
        write!(shell.out, "{}  {}", tick(address), number(&row))?;
        let value = shell.target.memory().number(address, 8).ok();
        if let Some(symbol) = value.and_then(|value| shell.target.symbols.name(value)) {
            write!(shell.out, " {symbol}")?;
        }
        writeln!(shell.out)?;
    }
    shell.next_data = Some(start.wrapping_add(8 * count));
    Ok(())
}

/// `da` and `du`.
pub fn display_string(shell: &mut Shell, name: &'static str, mut operands: &str) -> CommandResult {
    let unit = if name == "du" { 2 } else { 1 };
    let start = start(shell, &mut operands)?;
    let most = shell.take_count(&mut operands, start, unit, MOST_CHARACTERS)?.unwrap_or(MOST_CHARACTERS);
    Shell::finish(operands)?;
    let mut units = Vec::new();
    for index in 0..most {
        match shell.target.memory().number(start.wrapping_add(index * unit), unit as usize) {
            Ok(0) => break,
            Ok(value) => units.push(value as u16),
            Err(fault) if units.is_empty() => return Err(fault.into()),
            Err(_) => break,
        }
    }
    // Rows of 32 characters, as WinDbg breaks them.
    for (index, row) in units.chunks(32).enumerate() {
        let text: String = char::decode_utf16(row.iter().copied())
            .map(|c| c.ok().filter(|c| !c.is_control()).unwrap_or('.'))
            .collect();
        writeln!(shell.out, "{}  \"{text}\"", tick(start.wrapping_add(index as u64 * 32 * unit)))?;
    }
    if units.is_empty() {
        writeln!(shell.out, "{}  \"\"", tick(start))?;
    }
    shell.next_data = Some(start.wrapping_add((units.len() as u64 + 1) * unit));
    Ok(())
}

/// `eb`, `ew`, `ed`, `eq`.
pub fn enter(shell: &mut Shell, name: &'static str, mut operands: &str) -> CommandResult {
    let unit = match name {
        "eb" => 1,
        "ew" => 2,
        "ed" => 4,
        _ => 8,
    };
    let address = shell.take_value(&mut operands)?;
    let mut data = Vec::new();
    while let Some(value) = shell.take_optional(&mut operands)? {
        // Sign extension of the unit is a fitting value too.
        let extended = (value as i64) << (64 - 8 * unit) >> (64 - 8 * unit);
        if unit < 8 && value >> (8 * unit) != 0 && extended as u64 != value {
            return Err(CommandError::Text(format!("Overflow error: {value:x} does not fit {unit} bytes")));
        }
        data.extend_from_slice(&value.to_le_bytes()[..unit]);
    }
    if data.is_empty() {
        return Err(CommandError::Text("Missing values to enter".into()));
    }
    Ok(shell.target.write(address, &data)?)
}

fn start(shell: &mut Shell, operands: &mut &str) -> Result<u64, CommandError> {
    let given = shell.take_optional(operands)?;
    Ok(match given.or(shell.next_data) {
        Some(address) => address,
        None => shell.target.rip(),
    })
}

/// Bytes of which some may be unreadable.
fn bytes(shell: &mut Shell, address: u64, size: usize) -> Vec<Option<u8>> {
    let mut bytes = vec![0; size];
    if shell.target.read(address, &mut bytes).is_ok() {
        return bytes.into_iter().map(Some).collect();
    }
    (0..size as u64)
        .map(|offset| -> Result<u8, Fault> {
            let mut byte = [0];
            shell.target.read(address.wrapping_add(offset), &mut byte)?;
            Ok(byte[0])
        })
        .map(Result::ok)
        .collect()
}

/// A little-endian number in hexadecimal, question marks when any of its bytes is unreadable.
fn number(bytes: &[Option<u8>]) -> String {
    let digits: String = match bytes.iter().rev().copied().collect::<Option<Vec<u8>>>() {
        Some(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        None => "??".repeat(bytes.len()),
    };
    if digits.len() == 16 { format!("{}`{}", &digits[..8], &digits[8..]) } else { digits }
}
