//! The screen as far as it is known: size, cursor, colours; and the sequences that change it on a terminal (ECMA-48).

use crate::io::info::Bytes;
use crate::status::Status;

/// Where a sequence is being read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Parser {
    #[default]
    Text,
    Escape,
    /// Parameters of a control sequence.
    Control(String),
    /// A string that ends with BEL or ST.
    Command,
}

/// The screen.
#[derive(Debug)]
pub struct Screen {
    width: u16,
    height: u16,
    x: u16,
    y: u16,
    saved: (u16, u16),
    attributes: u16,
    cursor_size: u16,
    cursor_visible: bool,
    parser: Parser,
}

/// Light grey on black.
const DEFAULT_ATTRIBUTES: u16 = 7;
/// Longest parameters of a control sequence that are looked at.
const MAX_PARAMETERS: usize = 64;

/// SET_CONSOLE_OUTPUT_INFO_...
mod change {
    pub const CURSOR_GEOMETRY: u32 = 1;
    pub const CURSOR_POSITION: u32 = 2;
    pub const ATTRIBUTES: u32 = 8;
}

/// Bytes of struct condrv_output_info.
const INFORMATION: usize = 100;

/// The colours of a new console, as COLORREF.
const COLOURS: [u32; 16] = [
    0x00_0000, 0x80_0000, 0x00_8000, 0x80_8000, 0x00_0080, 0x80_0080, 0x00_8080, 0xC0_C0C0, 0x80_8080, 0xFF_0000,
    0x00_FF00, 0xFF_FF00, 0x00_00FF, 0xFF_00FF, 0x00_FFFF, 0xFF_FFFF,
];

impl Default for Screen {
    fn default() -> Self {
        Self {
            width: 80,
            height: 25,
            x: 0,
            y: 0,
            saved: (0, 0),
            attributes: DEFAULT_ATTRIBUTES,
            cursor_size: 25,
            cursor_visible: true,
            parser: Parser::Text,
        }
    }
}

/// Columns of a character: two for the wide ones of East Asia and for pictures.
fn width_of(character: char) -> u16 {
    let wide = matches!(u32::from(character),
        0x1100..=0x115F | 0x2E80..=0xA4CF | 0xAC00..=0xD7A3 | 0xF900..=0xFAFF | 0xFE30..=0xFE6F | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6 | 0x1_F300..=0x1_FAFF | 0x2_0000..=0x3_FFFD);
    if wide { 2 } else { 1 }
}

/// Select Graphic Rendition for attributes of the console.
fn rendition(attributes: u16) -> String {
    if attributes == DEFAULT_ATTRIBUTES {
        return "\x1b[0m".to_owned();
    }
    // Blue and red change places.
    let colour = |bits: u16| (bits & 2) | (bits & 1) << 2 | (bits & 4) >> 2;
    let (front, back) = (attributes & 0xF, attributes >> 4 & 0xF);
    let mut sequence = format!("\x1b[0;{}", if front & 8 == 0 { 30 } else { 90 } + colour(front));
    if back != 0 {
        sequence += &format!(";{}", if back & 8 == 0 { 40 } else { 100 } + colour(back));
    }
    // COMMON_LVB_REVERSE_VIDEO, COMMON_LVB_UNDERSCORE.
    for (flag, parameter) in [(0x4000, ";7"), (0x8000, ";4")] {
        if attributes & flag != 0 {
            sequence += parameter;
        }
    }
    sequence + "m"
}

fn halves(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

fn shown(unit: u16) -> char {
    char::from_u32(u32::from(unit)).filter(|character| !character.is_control()).unwrap_or(' ')
}

impl Screen {
    /// Takes the terminal's size over, columns and rows.
    pub fn resize(&mut self, size: Option<(u16, u16)>) {
        if let Some((width, height)) = size.filter(|&(width, height)| width != 0 && height != 0) {
            // COORDs are signed.
            (self.width, self.height) = (width.min(0x7FFF), height.min(0x7FFF));
        }
        (self.x, self.y) = (self.x.min(self.width - 1), self.y.min(self.height - 1));
    }

    /// Follows the cursor through text that is written.
    pub fn follow(&mut self, text: &str) {
        for character in text.chars() {
            match std::mem::take(&mut self.parser) {
                Parser::Text => self.put(character),
                Parser::Escape => match character {
                    '[' => self.parser = Parser::Control(String::new()),
                    ']' | 'P' | '_' | '^' => self.parser = Parser::Command,
                    '7' => self.saved = (self.x, self.y),
                    '8' => (self.x, self.y) = self.saved,
                    _ => {}
                },
                Parser::Control(mut parameters) => match character {
                    '\x40'..='\x7E' => self.control(character, &parameters),
                    _ => {
                        if parameters.len() < MAX_PARAMETERS {
                            parameters.push(character);
                        }
                        self.parser = Parser::Control(parameters);
                    }
                },
                Parser::Command => match character {
                    '\x07' | '\u{9C}' => {}
                    '\x1b' => self.parser = Parser::Escape,
                    _ => self.parser = Parser::Command,
                },
            }
        }
    }

    fn put(&mut self, character: char) {
        match character {
            '\x1b' => self.parser = Parser::Escape,
            // The terminal moves to the start of the line as well.
            '\n' => (self.x, self.y) = (0, (self.y + 1).min(self.height - 1)),
            '\r' => self.x = 0,
            '\x08' => self.x = self.x.saturating_sub(1),
            '\t' => self.x = (self.x / 8 * 8 + 8).min(self.width - 1),
            character if character.is_control() => {}
            character => {
                self.x += width_of(character);
                if self.x >= self.width {
                    (self.x, self.y) = (0, (self.y + 1).min(self.height - 1));
                }
            }
        }
    }

    fn control(&mut self, function: char, parameters: &str) {
        let mut numbers = parameters.split(';').map(|number| number.parse::<u16>().unwrap_or(0).min(0x7FFF));
        let (first, second) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let count = first.max(1);
        let (right, bottom) = (self.width - 1, self.height - 1);
        match function {
            'A' | 'F' => self.y = self.y.saturating_sub(count),
            'B' | 'E' => self.y = (self.y + count).min(bottom),
            'C' => self.x = (self.x + count).min(right),
            'D' => self.x = self.x.saturating_sub(count),
            'G' => self.x = (count - 1).min(right),
            'd' => self.y = (count - 1).min(bottom),
            'H' | 'f' => (self.x, self.y) = ((second.max(1) - 1).min(right), (count - 1).min(bottom)),
            's' => self.saved = (self.x, self.y),
            'u' => (self.x, self.y) = self.saved,
            _ => {}
        }
        if matches!(function, 'E' | 'F') {
            self.x = 0;
        }
    }

    /// struct condrv_output_info.
    pub fn information(&self) -> Vec<u8> {
        let Self { width, height, .. } = *self;
        let mut bytes = Vec::with_capacity(INFORMATION);
        for half in [self.cursor_size, u16::from(self.cursor_visible), self.x, self.y, width, height]
            .into_iter()
            // Colours of the text and of windows before it.
            .chain([self.attributes, 0xF5])
            // The window, its largest size, the font.
            .chain([0, 0, width - 1, height - 1, width, height, 8, 16, 400, 0x36])
        {
            bytes.extend(half.to_le_bytes());
        }
        bytes.extend(Bytes::default().u32s(&COLOURS).0);
        bytes
    }

    /// struct condrv_output_info_params: what is to change. The size is the terminal's own affair.
    pub fn change(&mut self, input: &[u8]) -> Result<String, Status> {
        if input.len() < 4 + INFORMATION {
            return Err(Status::INVALID_PARAMETER);
        }
        let mask = super::word(input, 0)?;
        let wanted = halves(&input[4..4 + INFORMATION]);
        let mut sequence = String::new();
        if mask & change::CURSOR_GEOMETRY != 0 {
            if !(1..=100).contains(&wanted[0]) {
                return Err(Status::INVALID_PARAMETER);
            }
            (self.cursor_size, self.cursor_visible) = (wanted[0], wanted[1] != 0);
            sequence += if self.cursor_visible { "\x1b[?25h" } else { "\x1b[?25l" };
        }
        if mask & change::CURSOR_POSITION != 0 {
            let (x, y) = (wanted[2], wanted[3]);
            if x >= self.width || y >= self.height {
                return Err(Status::INVALID_PARAMETER);
            }
            (self.x, self.y) = (x, y);
            sequence += &format!("\x1b[{};{}H", y + 1, x + 1);
        }
        if mask & change::ATTRIBUTES != 0 {
            self.attributes = wanted[6];
            sequence += &rendition(self.attributes);
        }
        Ok(sequence)
    }

    /// Cells from a place on, to the end of the screen at most, line by line. The cursor stays where it is.
    fn cells(&self, x: u32, y: u32, cells: impl Iterator<Item = (char, Option<u16>)>) -> (String, u32) {
        let (width, height) = (u32::from(self.width), u32::from(self.height));
        let start = u64::from(y) * u64::from(width) + u64::from(x);
        let end = u64::from(width * height);
        let mut sequence = "\x1b7".to_owned();
        let (mut count, mut attributes) = (0, self.attributes);
        for (index, (character, wanted)) in (start..end).zip(cells) {
            if count == 0 || index % u64::from(width) == 0 {
                sequence += &format!("\x1b[{};{}H", index / u64::from(width) + 1, index % u64::from(width) + 1);
            }
            if let Some(wanted) = wanted.filter(|&wanted| wanted != attributes) {
                attributes = wanted;
                sequence += &rendition(wanted);
            }
            sequence.push(character);
            count += 1;
        }
        if attributes != self.attributes {
            sequence += &rendition(self.attributes);
        }
        (sequence + "\x1b8", count)
    }

    /// struct condrv_fill_output_params: one character many times. Colours alone cannot change, the characters that have
    /// them are not known.
    pub fn fill(&self, input: &[u8]) -> Result<(String, u32), Status> {
        let [x, y, mode, count] = [0, 1, 2, 3].map(|index| super::word(input, index));
        let last = super::word(input, 5)?;
        let (character, attributes) = (shown(last as u16), (last >> 16) as u16);
        let area = u32::from(self.width) * u32::from(self.height);
        let count = count?.min(area) as usize;
        match mode? {
            0 => Ok(self.cells(x?, y?, std::iter::repeat_n((character, None), count))),
            2 => Ok(self.cells(x?, y?, std::iter::repeat_n((character, Some(attributes)), count))),
            1 => Ok((String::new(), count as u32)),
            _ => Err(Status::INVALID_PARAMETER),
        }
    }

    /// struct condrv_output_params with cells behind it: a row of them, or a rectangle. Answers with how many, or which.
    pub fn write(&self, input: &[u8]) -> Result<(String, Vec<u8>), Status> {
        let [x, y, mode, width] = [0, 1, 2, 3].map(|index| super::word(input, index));
        let (x, y, mode, width) = (x?, y?, mode?, width?);
        let data = halves(&input[16..]);
        let cells: Vec<(char, Option<u16>)> = match mode {
            0 => data.iter().map(|&unit| (shown(unit), None)).collect(),
            1 => Vec::new(),
            2 => data.chunks_exact(2).map(|cell| (shown(cell[0]), Some(cell[1]))).collect(),
            _ => return Err(Status::INVALID_PARAMETER),
        };
        if width == 0 {
            let (sequence, written) = self.cells(x, y, cells.into_iter());
            let written = if mode == 1 { data.len() as u32 } else { written };
            return Ok((sequence, written.to_le_bytes().into()));
        }
        if x >= u32::from(self.width) || y >= u32::from(self.height) {
            return Err(Status::INVALID_PARAMETER);
        }
        let rows = cells.chunks(width as usize).take((u32::from(self.height) - y) as usize);
        let (mut sequence, columns) = (String::new(), width.min(u32::from(self.width) - x));
        let mut bottom = y;
        for (row, line) in (y..).zip(rows) {
            sequence += &self.cells(x, row, line.iter().copied().take(columns as usize)).0;
            bottom = row;
        }
        let region = [x, y, x + columns - 1, bottom];
        Ok((sequence, region.iter().flat_map(|&edge| (edge as u16).to_le_bytes()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_is_followed() {
        for (text, place) in [
            ("abc", (3, 0)),
            ("abc\r\nd", (1, 1)),
            ("0123456789", (0, 1)),
            ("\x1b[3;4Hx", (4, 2)),
            ("\x1b[31mred\x1b[0m", (3, 0)),
            ("\x1b]0;title\x07a", (1, 0)),
            ("ab\x1b7\x1b[2;2H\x1b8", (2, 0)),
            ("漢", (2, 0)),
            ("a\tb", (9, 0)),
            ("\x1b[99;99H\x1b[2A", (9, 2)),
            ("\x1b[99999999999999999999C", (1, 0)),
        ] {
            let mut screen = Screen::default();
            screen.resize(Some((10, 5)));
            screen.follow(text);
            assert_eq!((screen.x, screen.y), place, "{text:?}");
        }
    }

    #[test]
    fn changes_become_sequences() {
        let mut screen = Screen::default();
        assert_eq!(screen.information().len(), INFORMATION);
        let mut change = |mask: u32, halves: &[(usize, u16)]| {
            let mut input = vec![0; 104];
            input[..4].copy_from_slice(&mask.to_le_bytes());
            for &(index, value) in halves {
                input[4 + index * 2..6 + index * 2].copy_from_slice(&value.to_le_bytes());
            }
            screen.change(&input)
        };
        assert_eq!(change(2, &[(2, 4), (3, 2)]).as_deref(), Ok("\x1b[3;5H"));
        assert_eq!(change(2, &[(2, 80)]), Err(Status::INVALID_PARAMETER));
        assert_eq!(change(8, &[(6, 0x0C)]).as_deref(), Ok("\x1b[0;91m"));
        assert_eq!(change(8, &[(6, 0x1E)]).as_deref(), Ok("\x1b[0;93;44m"));
        assert_eq!(change(8, &[(6, 7)]).as_deref(), Ok("\x1b[0m"));
        assert_eq!(change(1, &[(0, 25), (1, 0)]).as_deref(), Ok("\x1b[?25l"));
        assert_eq!(Screen::default().change(&[0; 8]), Err(Status::INVALID_PARAMETER));
    }

    #[test]
    fn cells_stay_on_the_screen() {
        let mut screen = Screen::default();
        screen.resize(Some((4, 2)));
        let input = |words: [u32; 4], rest: &[u8]| [&words.map(u32::to_le_bytes).concat()[..], rest].concat();
        let (sequence, count) = screen.fill(&input([2, 0, 0, u32::MAX], &[1, 0, 0, 0, b'x', 0, 0, 0])).unwrap();
        assert_eq!((sequence.as_str(), count), ("\x1b7\x1b[1;3Hxx\x1b[2;1Hxxxx\x1b8", 6));
        let (sequence, count) = screen.fill(&input([u32::MAX; 4].map(|w| w), &[0; 8])).unwrap_or_default();
        assert_eq!((sequence.as_str(), count), ("", 0));
        let (_, region) = screen.write(&input([1, 1, 2, 100], &[b'a', 0, 12, 0].repeat(300))).unwrap();
        assert_eq!(region, [1, 0, 1, 0, 3, 0, 1, 0]);
        assert!(screen.write(&[0; 15]).is_err() && screen.write(&input([9, 0, 0, 1], &[])).is_err());
    }
}
