//! What a terminal sends for keys, as INPUT_RECORDs (wincon.h).

/// A KEY_EVENT_RECORD. Other kinds of events never come from a terminal; those that a guest puts in are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct KeyRecord {
    /// Pressed, not released.
    pub down: bool,
    /// wVirtualKeyCode.
    pub key: u16,
    /// UnicodeChar.
    pub character: u16,
    /// dwControlKeyState.
    pub state: u32,
}

/// KEY_EVENT.
const KEY_EVENT: u16 = 1;
/// RIGHT_ALT_PRESSED to ENHANCED_KEY, those that a terminal can tell.
const LEFT_ALT: u32 = 2;
const LEFT_CTRL: u32 = 8;
const SHIFT: u32 = 0x10;
const ENHANCED: u32 = 0x100;

impl KeyRecord {
    /// Bytes of an INPUT_RECORD.
    pub const SIZE: usize = 20;

    /// As an INPUT_RECORD.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::SIZE);
        for half in [KEY_EVENT, 0, u16::from(self.down), 0, 1, self.key, 0, self.character] {
            bytes.extend(half.to_le_bytes());
        }
        bytes.extend(self.state.to_le_bytes());
        bytes
    }

    /// From an INPUT_RECORD, if it is about a key.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let state = u32::from(half(16)?) | u32::from(half(18)?) << 16;
        let record = Self { down: half(4)? | half(6)? != 0, key: half(10)?, character: half(14)?, state };
        (half(0)? == KEY_EVENT).then_some(record)
    }
}

/// Sequences behind ESC and their virtual keys: both forms of the arrows, Home and End; Insert, Delete, paging.
const SEQUENCES: &[(&str, u16)] = &[
    ("[A", 0x26),
    ("[B", 0x28),
    ("[C", 0x27),
    ("[D", 0x25),
    ("OA", 0x26),
    ("OB", 0x28),
    ("OC", 0x27),
    ("OD", 0x25),
    ("[H", 0x24),
    ("[F", 0x23),
    ("[1~", 0x24),
    ("[4~", 0x23),
    ("[2~", 0x2D),
    ("[3~", 0x2E),
    ("[5~", 0x21),
    ("[6~", 0x22),
];

/// The records of what was typed; with `verbatim` sequences are not taken apart (ENABLE_VIRTUAL_TERMINAL_INPUT).
pub fn records(text: &str, verbatim: bool) -> Vec<KeyRecord> {
    let mut records = Vec::new();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let sequence = SEQUENCES.iter().filter(|_| !verbatim && character == '\x1b');
        let sequence = sequence.copied().find(|(sequence, _)| rest[1..].starts_with(sequence));
        if let Some((sequence, key)) = sequence {
            press(&mut records, KeyRecord { key, state: ENHANCED, ..KeyRecord::default() });
            rest = &rest[1 + sequence.len()..];
            continue;
        }
        rest = &rest[character.len_utf8()..];
        // ESC and a character in one go: Alt.
        let alt = match rest.chars().next() {
            Some(next) if character == '\x1b' && !verbatim && next.is_ascii_alphanumeric() => {
                rest = &rest[1..];
                Some(next)
            }
            _ => None,
        };
        let mut units = [0; 2];
        for &mut unit in alt.unwrap_or(character).encode_utf16(&mut units) {
            let mut record = of_character(unit);
            record.state |= if alt.is_some() { LEFT_ALT } else { 0 };
            press(&mut records, record);
        }
    }
    records
}

fn press(records: &mut Vec<KeyRecord>, record: KeyRecord) {
    records.extend([KeyRecord { down: true, ..record }, record]);
}

fn of_character(unit: u16) -> KeyRecord {
    let ascii = u8::try_from(unit).ok().filter(u8::is_ascii);
    let (key, character, state) = match ascii {
        // Terminals send DEL for Backspace.
        Some(0x7F | 8) => (8, 8, 0),
        Some(b'\n' | b'\r') => (0xD, 0xD, 0),
        Some(b'\t' | 0x1B | b' ') => (unit, unit, 0),
        Some(control @ 1..=26) => (u16::from(control + b'@'), unit, LEFT_CTRL),
        Some(letter @ b'A'..=b'Z') => (u16::from(letter), unit, SHIFT),
        Some(letter) if letter.is_ascii_alphanumeric() => (u16::from(letter.to_ascii_uppercase()), unit, 0),
        _ => (0, unit, 0),
    };
    KeyRecord { down: false, key, character, state }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_codes() {
        for (text, key, character, state) in [
            ("a", 0x41, 0x61, 0),
            ("A", 0x41, 0x41, SHIFT),
            ("\r", 0xD, 0xD, 0),
            ("\x7f", 8, 8, 0),
            ("\x03", 0x43, 3, LEFT_CTRL),
            ("\x1b[A", 0x26, 0, ENHANCED),
            ("\x1b[3~", 0x2E, 0, ENHANCED),
            ("\x1bx", 0x58, 0x78, LEFT_ALT),
            ("é", 0, 0xE9, 0),
        ] {
            let expected = KeyRecord { down: true, key, character, state };
            assert_eq!(records(text, false), [expected, KeyRecord { down: false, ..expected }], "{text:?}");
        }
        assert_eq!(records("\x1b[A", true).len(), 6, "three characters");
        let record = records("q", false)[0];
        assert_eq!(KeyRecord::from_bytes(&record.to_bytes()), Some(record));
        assert_eq!(KeyRecord::from_bytes(&[0; 20]), None);
    }
}
