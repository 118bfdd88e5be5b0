//! What a run has changed in the registry, as text: the format of Windows' registry editor, so that people can read it, and
//! bring it to a Windows and back.
//!
//! One extension: characters that would end a line are written as `\uXXXX` in names of values. The class of a key and its
//! time of change are not kept, and keys that do not outlive a restart are left out.

use std::fmt::Write as _;

use super::{CreateOptions, Key, KeyId, LINK_VALUE, Registry, Value, value_type};
use crate::status::Status;

const HEAD: &str = "Windows Registry Editor Version 5.00";
/// Branches as the format calls them, and as the registry does.
const BRANCHES: [(&str, &str); 2] = [("HKEY_LOCAL_MACHINE", "Machine"), ("HKEY_USERS", "User")];

/// A line that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct StateError {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// What makes `now` of `base`.
#[must_use]
pub fn changes(base: &Registry, now: &Registry) -> String {
    let mut text = format!("{HEAD}\r\n");
    for (name, branch) in BRANCHES {
        let old = base.open(base.root(), branch);
        if let (Ok(old), Ok(new)) = (old, now.open(now.root(), branch)) {
            compare(&mut text, name, (base, Some(old)), (now, new));
        }
    }
    text
}

fn compare(text: &mut String, path: &str, (base, old): (&Registry, Option<KeyId>), (now, new): (&Registry, KeyId)) {
    let old_key = old.and_then(|id| base.key(id).ok());
    let Ok(key) = now.key(new) else { return };
    let gone = old_key.into_iter().flat_map(Key::values).filter(|value| key.value(&value.name).is_none());
    let gone: Vec<&Value> = gone.collect();
    let set = key.values().filter(|value| old_key.and_then(|old| old.value(&value.name)) != Some(value));
    let set: Vec<&Value> = set.collect();
    if old_key.is_none() || !gone.is_empty() || !set.is_empty() {
        let _ = write!(text, "\r\n[{path}]\r\n");
        for value in gone {
            let _ = write!(text, "{}=-\r\n", quoted_name(&value.name));
        }
        for value in set {
            let _ = write!(text, "{}={}\r\n", quoted_name(&value.name), data(value));
        }
    }
    let below = |name: &str| format!("{path}\\{name}");
    for child in old_key.into_iter().flat_map(Key::children).filter_map(|id| base.key(id).ok()) {
        let still = now.child(new, &child.name).ok().flatten();
        if still.is_none() && !child.volatile && is_plain(&child.name) {
            let _ = write!(text, "\r\n[-{}]\r\n", below(&child.name));
        }
    }
    for id in key.children() {
        let Ok(child) = now.key(id) else { continue };
        if child.volatile || now.loaded.contains(&id) || !is_plain(&child.name) {
            continue;
        }
        let old = old.and_then(|old| base.child(old, &child.name).ok().flatten());
        compare(text, &below(&child.name), (base, old), (now, id));
    }
}

/// Names of keys that a line cannot hold are left out.
fn is_plain(name: &str) -> bool {
    !name.contains(char::is_control)
}

fn quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            _ if character.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(character));
            }
            _ => quoted.push(character),
        }
    }
    quoted + "\""
}

fn quoted_name(name: &str) -> String {
    if name.is_empty() { "@".to_owned() } else { quoted(name) }
}

fn data(value: &Value) -> String {
    if value.kind == value_type::DWORD
        && let Ok(bytes) = <[u8; 4]>::try_from(value.data.as_slice())
    {
        return format!("dword:{:08x}", u32::from_le_bytes(bytes));
    }
    if value.kind == value_type::SZ
        && let Some(text) = text_of(&value.data).filter(|text| !text.contains(char::is_control))
    {
        return quoted(&text);
    }
    let bytes: Vec<String> = value.data.iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = bytes.join(",");
    if value.kind == value_type::BINARY { format!("hex:{bytes}") } else { format!("hex({:x}):{bytes}", value.kind) }
}

/// The text of a value that holds one, and its end, as a string should.
fn text_of(data: &[u8]) -> Option<String> {
    let body = data.strip_suffix(&[0, 0]).filter(|body| body.len().is_multiple_of(2))?;
    let units: Vec<u16> = body.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    String::from_utf16(&units).ok().filter(|text| !text.contains('\0'))
}

/// Applies changes. What was applied before a line that cannot be understood stays.
pub fn apply(registry: &mut Registry, text: &str, now: i64) -> Result<(), StateError> {
    let mut lines = text.trim_start_matches('\u{FEFF}').lines().enumerate();
    let wrong = |index: usize, what: &str| StateError { line: index + 1, what: what.to_owned() };
    match lines.next() {
        Some((_, HEAD)) => {}
        _ => return Err(wrong(0, &format!("must be \"{HEAD}\""))),
    }
    let mut key: Option<Place> = None;
    while let Some((index, line)) = lines.next() {
        let mut line = line.trim().to_owned();
        if line.is_empty() || line.starts_with(';') {
            continue;
        }
        // Long data goes on behind a backslash.
        while line.ends_with('\\') && !line.starts_with('[') {
            line.pop();
            line.push_str(lines.next().map_or("", |(_, line)| line.trim()));
        }
        let failed = |status: Status| wrong(index, &format!("cannot be done: {status}"));
        if let Some(path) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            if let Some(place) = key.take() {
                place.key(registry, now).map_err(failed)?;
            }
            let (path, deleted) = match path.strip_prefix('-') {
                Some(path) => (path, true),
                None => (path, false),
            };
            let place = Place::new(path).ok_or_else(|| wrong(index, "names no branch of the registry"))?;
            if deleted {
                place.delete(registry, now).map_err(failed)?;
            } else {
                key = Some(place);
            }
            continue;
        }
        let place = key.as_mut().ok_or_else(|| wrong(index, "is below no key"))?;
        let (name, rest) = name(&line).ok_or_else(|| wrong(index, "names no value"))?;
        if rest == "-" {
            let id = place.key(registry, now).map_err(failed)?;
            // What is gone already need not go.
            let _ = registry.delete_value(id, &name, now);
            continue;
        }
        let (kind, data) = parse_data(rest).ok_or_else(|| wrong(index, "holds no data"))?;
        place.link = kind == value_type::LINK && name == LINK_VALUE;
        let id = place.key(registry, now).map_err(failed)?;
        registry.set_value(id, &name, kind, data, now).map_err(failed)?;
    }
    if let Some(place) = key {
        place.key(registry, now).map_err(|status| wrong(text.lines().count(), &format!("cannot be done: {status}")))?;
    }
    Ok(())
}

/// A key that a line names.
struct Place {
    path: String,
    /// Its first value makes it a symbolic link.
    link: bool,
}

impl Place {
    fn new(path: &str) -> Option<Self> {
        let (branch, below) = path.split_once('\\').unwrap_or((path, ""));
        let (_, name) = BRANCHES.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(branch))?;
        Some(Self { path: format!("{name}\\{below}"), link: false })
    }

    fn key(&self, registry: &mut Registry, now: i64) -> Result<KeyId, Status> {
        let path = self.path.trim_end_matches('\\');
        if let Ok(key) = registry.open_with(registry.root(), path, true) {
            return Ok(key);
        }
        let (parent, name) = path.rsplit_once('\\').ok_or(Status::OBJECT_NAME_INVALID)?;
        let parent = registry.create_all(registry.root(), parent, now)?;
        let options = CreateOptions { link: self.link, open_link: true, ..CreateOptions::default() };
        Ok(registry.create(parent, name, options, now)?.0)
    }

    fn delete(&self, registry: &mut Registry, now: i64) -> Result<(), Status> {
        let Ok(key) = registry.open_with(registry.root(), &self.path, true) else { return Ok(()) };
        registry.clear(key, now)?;
        registry.delete(key, now)
    }
}

/// The name of a value, and what follows the equals sign.
fn name(line: &str) -> Option<(String, &str)> {
    if let Some(rest) = line.strip_prefix('@') {
        return Some((String::new(), rest.trim_start().strip_prefix('=')?.trim_start()));
    }
    let (name, rest) = unquote(line)?;
    Some((name, rest.trim_start().strip_prefix('=')?.trim_start()))
}

/// Quoted text at the beginning, and what follows it.
fn unquote(line: &str) -> Option<(String, &str)> {
    let body = line.strip_prefix('"')?;
    let mut text = String::new();
    let mut characters = body.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((text, &body[at + 1..])),
            '\\' => match characters.next()? {
                (at, 'u') if body.get(at + 1..at + 5).is_some_and(|d| d.bytes().all(|b| b.is_ascii_hexdigit())) => {
                    text.push(u32::from_str_radix(&body[at + 1..at + 5], 16).ok().and_then(char::from_u32)?);
                    characters = body.char_indices();
                    characters.by_ref().take_while(|(index, _)| *index < at + 4).for_each(drop);
                }
                (_, escaped) => text.push(escaped),
            },
            _ => text.push(character),
        }
    }
    None
}

fn parse_data(text: &str) -> Option<(u32, Vec<u8>)> {
    if text.starts_with('"') {
        let (text, rest) = unquote(text)?;
        let mut bytes = crate::strings::utf16_bytes(&text);
        bytes.extend([0, 0]);
        return rest.is_empty().then_some((value_type::SZ, bytes));
    }
    if let Some(number) = text.strip_prefix("dword:") {
        let number = u32::from_str_radix(number, 16).ok()?;
        return Some((value_type::DWORD, number.to_le_bytes().to_vec()));
    }
    let (kind, bytes) = match text.strip_prefix("hex:") {
        Some(bytes) => (value_type::BINARY, bytes),
        None => {
            let (kind, bytes) = text.strip_prefix("hex(")?.split_once("):")?;
            (u32::from_str_radix(kind, 16).ok()?, bytes)
        }
    };
    let bytes = bytes.split(',').map(str::trim).filter(|byte| !byte.is_empty());
    let bytes: Option<Vec<u8>> = bytes.map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    Some((kind, bytes?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::defaults;

    fn value(registry: &Registry, path: &str, name: &str) -> Option<(u32, Vec<u8>)> {
        let key = registry.open(registry.root(), path).ok()?;
        registry.key(key).ok()?.value(name).map(|value| (value.kind, value.data.clone()))
    }

    #[test]
    fn changes_are_made_again() {
        let base = defaults::registry(1).unwrap();
        let mut changed = base.clone();
        let root = changed.root();
        let key = changed.create_all(root, "Machine\\Software\\Example\\Deep [x]", 2).unwrap();
        let values: [(&str, u32, &[u8]); 7] = [
            ("", 1, b"a\0\"\0\\\0b\0\0\0"),
            ("number", 4, &[1, 2, 3, 4]),
            ("odd \"name\"\n=", 3, &[1, 2]),
            ("unterminated", 1, b"x\0"),
            ("empty", 1, &[]),
            ("many", 7, b"a\0\0\0b\0\0\0\0\0"),
            ("strange", 0xDEAD, &[9]),
        ];
        for (name, kind, data) in values {
            changed.set_value(key, name, kind, data.to_vec(), 2).unwrap();
        }
        let link = CreateOptions { link: true, ..CreateOptions::default() };
        let link = changed.create(key, "link", link, 2).unwrap().0;
        let target = crate::strings::utf16_bytes("\\Registry\\Machine\\Software\\Example");
        changed.set_value(link, LINK_VALUE, value_type::LINK, target, 2).unwrap();
        let volatile = CreateOptions { volatile: true, ..CreateOptions::default() };
        changed.create(root, "User\\.Default\\Passing", volatile, 2).unwrap();
        let version = changed.open(root, "Machine\\Software\\Microsoft\\Windows NT\\CurrentVersion").unwrap();
        changed.delete_value(version, "ProductName", 2).unwrap();
        let console = changed.open(root, "User\\.Default\\Console").unwrap();
        changed.delete(console, 2).unwrap();

        let text = changes(&base, &changed);
        let mut again = base.clone();
        apply(&mut again, &text, 3).unwrap();
        assert_eq!(changes(&base, &again), text);
        assert_eq!(changes(&changed, &again), format!("{HEAD}\r\n"), "{text}");
        for (name, kind, data) in values {
            let found = value(&again, "Machine\\Software\\Example\\Deep [x]\\link\\Deep [x]", name);
            assert_eq!(found, Some((kind, data.to_vec())), "{name}");
        }
        assert!(again.open(again.root(), "User\\.Default\\Console").is_err());
        assert!(!text.contains("Passing"));
    }

    #[test]
    fn what_the_registry_editor_writes_is_taken() {
        let mut registry = defaults::registry(1).unwrap();
        let text = "\u{FEFF}Windows Registry Editor Version 5.00\r\n\r\n; a remark\r\n[HKEY_LOCAL_MACHINE\\Software\\A]\r\n\
                    \"b\"=hex(2):25,00,\\\r\n  78,00,00,00\r\n@=\"c\"\r\n[-HKEY_LOCAL_MACHINE\\Software\\Nothing]\r\n";
        apply(&mut registry, text, 2).unwrap();
        assert_eq!(value(&registry, "Machine\\Software\\A", "b"), Some((2, b"%\0x\0\0\0".to_vec())));
        assert_eq!(value(&registry, "Machine\\Software\\A", ""), Some((1, b"c\0\0\0".to_vec())));
    }

    #[test]
    fn what_cannot_be_understood_is_told() {
        let mut registry = defaults::registry(1).unwrap();
        let mut told = |text: &str| apply(&mut registry, text, 2).unwrap_err().to_string();
        assert_eq!(told(""), format!("line 1: must be \"{HEAD}\""));
        for (line, what) in [
            ("\"a\"=\"b\"", "is below no key"),
            ("[HKEY_CURRENT_CONFIG\\a]", "names no branch of the registry"),
            ("[HKEY_USERS\\a]\n\"a\"", "names no value"),
            ("[HKEY_USERS\\a]\n\"a\"=dword:x", "holds no data"),
            ("[HKEY_USERS\\a]\n\"a=\"\\u12", "names no value"),
        ] {
            assert!(told(&format!("{HEAD}\n{line}")).ends_with(what), "{line}");
        }
    }
}
