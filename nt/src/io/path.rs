//! File names as NT takes them: components without wildcards, streams or dots.

use crate::status::Status;

/// Longest component in UTF-16 units.
const MAX_COMPONENT: usize = 255;
/// Longest path in UTF-16 units (UNICODE_STRING's limit).
const MAX_PATH: usize = 32_767;

/// Upper case as NT compares names: one code unit at a time, so letters whose upper case is longer stay as they are.
#[must_use]
pub fn fold(name: &str) -> String {
    name.chars().map(fold_char).collect()
}

/// Upper case of one character. NT's tables know no pairs of surrogates, and nothing that changes the length.
#[must_use]
pub fn fold_char(character: char) -> char {
    let mut upper = character.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(single), None) if u32::from(character) < 0x1_0000 && u32::from(single) < 0x1_0000 => single,
        _ => character,
    }
}

/// A path on a volume, checked.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NtPath {
    /// Components from the root.
    pub parts: Vec<String>,
    /// It ended in a separator: only a directory will do.
    pub directory: bool,
}

impl NtPath {
    /// Parses what follows the volume's name. A leading separator must be gone already.
    pub fn parse(path: &str) -> Result<Self, Status> {
        if path.encode_utf16().count() > MAX_PATH {
            return Err(Status::OBJECT_NAME_INVALID);
        }
        // The volume's own separator may be doubled.
        let path = path.strip_prefix('\\').unwrap_or(path);
        let (path, directory) = match path.strip_suffix('\\') {
            Some(path) => (path, true),
            None => (path, path.is_empty()),
        };
        if path.is_empty() {
            return Ok(Self { parts: Vec::new(), directory });
        }
        let count = path.split('\\').count();
        let parts = path
            .split('\\')
            .enumerate()
            .map(|(i, part)| component(part, i + 1 == count && !directory))
            .collect::<Result<_, _>>()?;
        Ok(Self { parts, directory })
    }

    /// `\a\b`, or `\` for the root.
    #[must_use]
    pub fn display(parts: &[String]) -> String {
        if parts.is_empty() {
            return "\\".to_owned();
        }
        parts.iter().fold(String::new(), |path, part| path + "\\" + part)
    }
}

/// Checks one component. The unnamed data stream may be spelled out on the last one; others are not supported.
fn component(name: &str, last: bool) -> Result<String, Status> {
    let name = match name.split_once(':') {
        Some((file, stream)) if last && stream.eq_ignore_ascii_case(":$DATA") => file,
        Some(_) => return Err(Status::OBJECT_NAME_INVALID),
        None => name,
    };
    let bad = |c: char| c < ' ' || matches!(c, '"' | '*' | '/' | '<' | '>' | '?' | '|' | '\\');
    if name.is_empty() || name == "." || name == ".." || name.contains(bad) {
        return Err(Status::OBJECT_NAME_INVALID);
    }
    if name.encode_utf16().count() > MAX_COMPONENT {
        return Err(Status::OBJECT_NAME_INVALID);
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_paths() {
        for (path, parts, directory) in [
            ("", &[][..], true),
            ("a", &["a"], false),
            ("Program Files\\x.y.z", &["Program Files", "x.y.z"], false),
            ("a\\b\\", &["a", "b"], true),
            ("a::$data", &["a"], false),
            ("trailing. ", &["trailing. "], false),
            ("...", &["..."], false),
            ("NUL", &["NUL"], false),
            ("\\a", &["a"], false),
        ] {
            let parsed = NtPath::parse(path).unwrap();
            assert_eq!((parsed.parts, parsed.directory), (parts.iter().map(|s| (*s).to_owned()).collect(), directory));
        }
    }

    #[test]
    fn bad_paths() {
        let long = "x".repeat(256);
        for path in [
            "..",
            "a\\..\\b",
            ".",
            "a\\.\\b",
            "\\\\a",
            "a\\\\b",
            "a\\b\\\\",
            "a:stream",
            "a:b:$DATA",
            "C:\\x",
            "a::$DATA\\b",
            "a/b",
            "../x",
            "a*",
            "a?",
            "a<b",
            "a>b",
            "a\"b",
            "a|b",
            "a\0b",
            "a\nb",
            &long,
        ] {
            assert_eq!(NtPath::parse(path), Err(Status::OBJECT_NAME_INVALID), "{path:?}");
        }
        assert!(NtPath::parse(&"a\\".repeat(20_000)).is_err());
    }

    #[test]
    fn folding_is_per_character() {
        assert_eq!(fold("Straße ÿ ı"), "STRAßE Ÿ I");
    }
}
