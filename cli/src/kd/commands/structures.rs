//! `!ssdt` and `dt`.

use std::fmt::Write as _;

use lstar_guest_images::layout::{Field, FieldType, Structure};
use lstar_nt::prototypes::prototype;

use crate::kd::disassembly::tick;
use crate::kd::expression;
use crate::kd::image::Memory;
use crate::kd::shell::{CommandError, CommandResult, Shell};

/// Entries of a table at most: twelve bits select one.
const MOST_SERVICES: u64 = 0x1000;

/// `!ssdt`: reads the tables as the system-call path does.
pub fn service_tables(shell: &mut Shell, _: &'static str, operands: &str) -> CommandResult {
    let pattern = operands.trim().to_ascii_lowercase();
    let pattern = pattern.trim_matches('*');
    // The second half of the shadow table's pair is the GUI services' table.
    for (symbol, offset, first) in
        [("nt!KeServiceDescriptorTable", 0, 0), ("nt!KeServiceDescriptorTableShadow", 0x20, 0x1000)]
    {
        let Some(table) = shell.target.symbols.lookup(symbol) else {
            return Err(CommandError::Text(format!("Couldn't resolve {symbol}")));
        };
        let descriptor = table.wrapping_add(offset);
        let field = |shell: &mut Shell, at: u64| shell.target.memory().number(descriptor.wrapping_add(at), 8);
        let base = field(shell, 0)?;
        let limit = field(shell, 0x10)?;
        let plus = if offset == 0 { String::new() } else { format!("+0x{offset:x}") };
        writeln!(shell.out, "{symbol}{plus} ({}): base {}, {limit:x}h services", tick(descriptor), tick(base))?;
        writeln!(shell.out, "number  address            arguments  name")?;
        for index in 0..limit.min(MOST_SERVICES) {
            let entry = shell.target.memory().u32(base.wrapping_add(4 * index))? as i32;
            let address = base.wrapping_add((entry >> 4) as i64 as u64);
            let name = shell.target.symbols.name(address).unwrap_or_else(|| "(outside all modules)".into());
            if !name.to_ascii_lowercase().contains(pattern) {
                continue;
            }
            // The table counts stack arguments only; four more travel in registers, or as many as are known.
            let known = name.strip_prefix("nt!").and_then(prototype).map(|prototype| prototype.arguments.len());
            let arguments = match (entry & 0xF, known) {
                (0, Some(known @ 0..=4)) => known.to_string(),
                (0, _) => "<=4".into(),
                (stack, _) => (stack + 4).to_string(),
            };
            writeln!(shell.out, "{:5x}h  {}  {arguments:>9}  {name}", first + index, tick(address))?;
        }
    }
    Ok(())
}

/// `dt`.
pub fn display_type(shell: &mut Shell, _: &'static str, operands: &str) -> CommandResult {
    let (name, mut rest) = operands.split_once(char::is_whitespace).unwrap_or((operands, ""));
    let wanted = name.rsplit('!').next().unwrap_or(name).trim_start_matches('_');
    let structure = shell
        .target
        .structures
        .iter()
        .find(|structure| structure.name.trim_start_matches('_').eq_ignore_ascii_case(wanted))
        .copied();
    let Some(structure) = structure else {
        let names: Vec<&str> = shell.target.structures.iter().map(|structure| structure.name).collect();
        return Err(CommandError::Text(format!("Symbol {name} not found; known types: {}", names.join(", "))));
    };
    // Field names and an address may come in any order; what is a field's name is no address.
    let mut address = None;
    let mut fields: Vec<&Field> = Vec::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            break;
        }
        let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let matching: Vec<&Field> = structure.fields.iter().filter(|field| matches_field(word, field.name)).collect();
        if !matching.is_empty() {
            fields.extend(matching);
            rest = after;
        } else if address.is_none() {
            let (value, after) = expression::evaluate(rest, &mut shell.target)?;
            address = Some(value);
            rest = after;
        } else {
            return Err(CommandError::Text(format!("{} has no field '{word}'", structure.name)));
        }
    }
    if fields.is_empty() {
        fields.extend(structure.fields);
    }
    if address.is_none() {
        writeln!(shell.out, "nt!{}", structure.name)?;
    }
    for field in fields {
        let text = match address {
            Some(address) => value(shell, &structure, field, address)?,
            None => field.ty.to_string(),
        };
        writeln!(shell.out, "   +0x{:03x} {:<16} : {text}", field.offset, field.name)?;
    }
    Ok(())
}

/// Whether a word names a field; a star at its end matches any rest.
fn matches_field(word: &str, field: &str) -> bool {
    match word.strip_suffix('*') {
        Some(start) => field.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start)),
        None => field.eq_ignore_ascii_case(word),
    }
}

/// A field's value as `dt` shows it.
fn value(shell: &mut Shell, structure: &Structure, field: &Field, address: u64) -> Result<String, CommandError> {
    let at = address.wrapping_add(field.offset.into());
    if let FieldType::Structure(name, size) = field.ty {
        debug_assert!(field.offset + size <= structure.size);
        return Ok(format!("{name} at {}", tick(at)));
    }
    let value = shell.target.memory().number(at, field.ty.size() as usize)?;
    let hex = if value < 10 { value.to_string() } else { format!("0x{value:x}") };
    Ok(match field.ty {
        FieldType::Char | FieldType::UChar => {
            let character = char::from(value as u8);
            let shown = if character.is_ascii_graphic() { character.to_string() } else { String::new() };
            format!("{hex} '{shown}'")
        }
        FieldType::Pointer(target) if value == 0 => format!("(null) {target}"),
        FieldType::Pointer(target) => format!("0x{} {target}", tick(value)),
        FieldType::Uint8B if value > 0xFFFF_FFFF => format!("0x{}", tick(value)),
        _ => hex,
    })
}
