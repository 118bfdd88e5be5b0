//! Text of the console in code pages: UTF-8 and 437; in others only what Latin-1 has.

use std::collections::VecDeque;

/// CP_UTF8.
const UTF8: u32 = 65001;
const OEM: u32 = 437;
/// The upper half of code page 437.
const OEM_UPPER: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{A0}";

/// Takes the whole characters from the front; bytes that are none become replacement characters.
pub fn take_utf8(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(valid) => {
                text.push_str(valid);
                bytes.clear();
                return text;
            }
            Err(error) => {
                text.push_str(&String::from_utf8_lossy(&bytes[..error.valid_up_to()]));
                let Some(bad) = error.error_len() else {
                    bytes.drain(..error.valid_up_to());
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes.drain(..error.valid_up_to() + bad);
            }
        }
    }
}

/// Text of bytes in a code page.
pub fn decode(bytes: &[u8], page: u32) -> String {
    let upper = |byte: u8| match page {
        OEM => OEM_UPPER.chars().nth(usize::from(byte - 0x80)).unwrap_or(char::REPLACEMENT_CHARACTER),
        _ => char::from(byte),
    };
    match page {
        UTF8 => String::from_utf8_lossy(bytes).into_owned(),
        _ => bytes.iter().map(|&byte| if byte < 0x80 { char::from(byte) } else { upper(byte) }).collect(),
    }
}

fn encode(character: char, page: u32) -> Vec<u8> {
    let known = match page {
        UTF8 => return character.to_string().into_bytes(),
        _ if character.is_ascii() => Some(character as u8),
        OEM => OEM_UPPER.chars().position(|known| known == character).map(|index| 0x80 + index as u8),
        _ => u8::try_from(u32::from(character)).ok(),
    };
    vec![known.unwrap_or(b'?')]
}

/// Takes as many characters from the front as fit into `length` bytes of a code page.
pub fn take_encoded(text: &mut VecDeque<u16>, page: u32, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(next) = char::decode_utf16(text.iter().copied()).next() {
        let (character, units) = match next {
            Ok(character) => (character, character.len_utf16()),
            Err(_) => (char::REPLACEMENT_CHARACTER, 1),
        };
        let encoded = encode(character, page);
        if bytes.len() + encoded.len() > length {
            break;
        }
        bytes.extend(encoded);
        text.drain(..units);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back() {
        assert_eq!(OEM_UPPER.chars().count(), 128);
        let all: Vec<u8> = (0..=255).collect();
        for page in [OEM, 1252] {
            let mut text: VecDeque<u16> = decode(&all, page).encode_utf16().collect();
            assert_eq!(take_encoded(&mut text, page, 1000), all, "{page}");
        }
        let mut text: VecDeque<u16> = "aé𝄞\u{FFFF}".encode_utf16().collect();
        assert_eq!(take_encoded(&mut text, UTF8, 4), "aé".as_bytes(), "no half characters");
        assert_eq!(take_encoded(&mut text, OEM, 9), b"??");
    }

    #[test]
    fn characters_may_arrive_in_pieces() {
        let mut bytes = "aé".as_bytes()[..2].to_vec();
        assert_eq!(take_utf8(&mut bytes), "a");
        bytes.push(0xA9);
        assert_eq!(take_utf8(&mut bytes), "é");
        bytes.extend(b"x\xFFy\xE2\x82");
        assert_eq!((take_utf8(&mut bytes).as_str(), bytes.len()), ("x\u{FFFD}y", 2));
    }
}
