//! Directory enumeration: DOS wildcards and the entry layouts of NtQueryDirectoryFile.

use super::info::FileStat;
use super::path::fold;
use crate::status::Status;
use crate::strings::utf16_bytes;

/// An enumeration that has begun.
#[derive(Clone, Debug, Default)]
pub struct Enumeration {
    /// Upper-case pattern.
    pub pattern: String,
    /// Matching names.
    pub names: Vec<String>,
    /// Next one to tell.
    pub next: usize,
}

const DOS_STAR: char = '<';
const DOS_QM: char = '>';
const DOS_DOT: char = '"';

/// Whether a name matches an expression, as FsRtlIsNameInExpression defines it, without case.
///
/// `*` is any run, `?` any character, `<` any run that leaves the last period, `>` a character or nothing before a
/// period or the end, `"` a period or nothing at the end.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = fold(name).chars().collect();
    let last_dot = name.iter().rposition(|&c| c == '.');
    // reach[i]: the expression so far can have consumed the first i characters.
    let mut reach = vec![false; name.len() + 1];
    if let Some(start) = reach.first_mut() {
        *start = true;
    }
    for expected in fold(pattern).chars() {
        let mut next = vec![false; name.len() + 1];
        let mut run = false;
        for (i, slot) in next.iter_mut().enumerate() {
            let here = reach.get(i).copied().unwrap_or(false);
            let before = i.checked_sub(1);
            let from_before = before.and_then(|j| reach.get(j)).copied().unwrap_or(false);
            let consumed = before.and_then(|j| name.get(j)).copied();
            let current = name.get(i).copied();
            *slot = match expected {
                '*' => {
                    run |= here;
                    run
                }
                DOS_STAR => {
                    run = here || (run && before != last_dot);
                    run
                }
                '?' => from_before,
                DOS_QM => (from_before && consumed != Some('.')) || (here && matches!(current, None | Some('.'))),
                DOS_DOT => (from_before && consumed == Some('.')) || (here && current.is_none()),
                literal => from_before && consumed == Some(literal),
            };
        }
        reach = next;
    }
    reach.last().copied().unwrap_or(false)
}

/// FILE_*_INFORMATION classes of NtQueryDirectoryFile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryLayout {
    /// FileDirectoryInformation.
    Directory,
    /// FileFullDirectoryInformation.
    Full,
    /// FileBothDirectoryInformation.
    Both,
    /// FileNamesInformation.
    Names,
    /// FileIdBothDirectoryInformation.
    IdBoth,
    /// FileIdFullDirectoryInformation.
    IdFull,
    /// FileIdExtdDirectoryInformation.
    IdExtended,
    /// FileIdExtdBothDirectoryInformation.
    IdExtendedBoth,
}

impl EntryLayout {
    /// From the information class.
    pub fn from_class(class: u32) -> Result<Self, Status> {
        match class {
            1 => Ok(Self::Directory),
            2 => Ok(Self::Full),
            3 => Ok(Self::Both),
            0xC => Ok(Self::Names),
            0x25 => Ok(Self::IdBoth),
            0x26 => Ok(Self::IdFull),
            0x3C => Ok(Self::IdExtended),
            0x3F => Ok(Self::IdExtendedBoth),
            _ => Err(Status::INVALID_INFO_CLASS),
        }
    }

    /// Offset of FileName.
    #[must_use]
    pub fn name_offset(self) -> usize {
        match self {
            Self::Directory => 0x40,
            Self::Full => 0x44,
            Self::Both => 0x5E,
            Self::Names => 0xC,
            Self::IdBoth => 0x68,
            Self::IdFull => 0x50,
            Self::IdExtended => 0x58,
            Self::IdExtendedBoth => 0x72,
        }
    }

    /// Bytes that a buffer must have at least: the structure with a name of one character, padded.
    #[must_use]
    pub fn least_size(self) -> usize {
        (self.name_offset() + 2).next_multiple_of(8)
    }

    /// One entry; NextEntryOffset is zero.
    #[must_use]
    pub fn encode(self, name: &str, stat: &FileStat) -> Vec<u8> {
        let name = utf16_bytes(name);
        let mut bytes = vec![0; self.name_offset()];
        let mut put = |offset: usize, data: &[u8]| {
            if let Some(slot) = bytes.get_mut(offset..offset + data.len()) {
                slot.copy_from_slice(data);
            }
        };
        let length = (name.len() as u32).to_le_bytes();
        if self == Self::Names {
            put(8, &length);
        } else {
            for (i, time) in [stat.creation, stat.last_access, stat.last_write, stat.change].into_iter().enumerate() {
                put(8 + 8 * i, &time.to_le_bytes());
            }
            put(0x28, &stat.size.to_le_bytes());
            put(0x30, &stat.allocation.to_le_bytes());
            put(0x38, &stat.attributes.to_le_bytes());
            put(0x3C, &length);
        }
        match self {
            Self::IdBoth => put(0x60, &stat.id.to_le_bytes()),
            // The 128-bit identifiers are these with zeros above them.
            Self::IdFull | Self::IdExtended | Self::IdExtendedBoth => put(0x48, &stat.id.to_le_bytes()),
            _ => {}
        }
        bytes.extend(name);
        bytes
    }
}

/// Fills a buffer of `capacity` bytes with entries from `names[*next..]`; `next` moves behind the last one told.
///
/// `stat_of` may answer `None` for a name that is gone meanwhile: it is skipped.
pub fn fill(
    layout: EntryLayout,
    enumeration: &mut Enumeration,
    single: bool,
    capacity: usize,
    mut stat_of: impl FnMut(&str) -> Option<FileStat>,
) -> Result<(Vec<u8>, Status), Status> {
    let mut out: Vec<u8> = Vec::new();
    let mut previous: Option<usize> = None;
    while let Some(name) = enumeration.names.get(enumeration.next) {
        let Some(stat) = stat_of(name) else {
            enumeration.next += 1;
            continue;
        };
        let mut entry = layout.encode(name, &stat);
        let start = out.len().next_multiple_of(8);
        if start + entry.len() > capacity {
            if previous.is_some() {
                break;
            }
            // The first entry is told in part rather than not at all.
            if capacity < layout.name_offset() {
                return Err(Status::INFO_LENGTH_MISMATCH);
            }
            entry.truncate(capacity);
            enumeration.next += 1;
            return Ok((entry, Status::BUFFER_OVERFLOW));
        }
        if let Some(slot) = previous.and_then(|at| out.get_mut(at..at + 4).map(|slot| (at, slot))) {
            slot.1.copy_from_slice(&((start - slot.0) as u32).to_le_bytes());
        }
        out.resize(start, 0);
        out.append(&mut entry);
        previous = Some(start);
        enumeration.next += 1;
        if single {
            break;
        }
    }
    if out.is_empty() { Err(Status::NO_MORE_FILES) } else { Ok((out, Status::SUCCESS)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        for (pattern, name, expected) in [
            ("*", "anything.at.all", true),
            ("*", "", true),
            ("*.TXT", "a.txt", true),
            ("*.txt", "a.txt.bak", false),
            ("*.*", "README", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("?", "", false),
            // Win32's "*." arrives as "<".
            ("<", "README", true),
            ("<", "a.txt", false),
            ("<.TXT", "a.b.txt", true),
            ("<.b", "a.b.c", false),
            // Win32's "a??.txt" arrives as "a>>.txt".
            ("A>>.TXT", "a.txt", true),
            ("A>>.TXT", "abc.txt", true),
            ("A>>.TXT", "abcd.txt", false),
            ("A>>", "a", true),
            ("abc\"", "abc", true),
            ("abc\"", "abc.", true),
            ("abc\"*", "abc", true),
            ("abc\"*", "abc.x", true),
            ("ÄB*", "äbc", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn nested_stars_are_cheap() {
        assert!(!matches(&"*a".repeat(100), &"a".repeat(99)));
        assert!(matches(&"*a".repeat(100), &"a".repeat(200)));
    }

    #[test]
    fn entries_are_chained_and_bounded() {
        let names: Vec<String> = ["a", "gone", "bcd", "e"].map(str::to_owned).into();
        let mut enumeration = Enumeration { pattern: "*".to_owned(), names, next: 0 };
        let stat = |name: &str| (name != "gone").then(|| FileStat { size: 7, ..FileStat::default() });
        let (bytes, status) = fill(EntryLayout::Names, &mut enumeration, false, 0x24, stat).unwrap();
        assert_eq!(status, Status::SUCCESS);
        assert_eq!((bytes[0], bytes.len(), enumeration.next), (0x10, 0x22, 3));
        assert_eq!(bytes[0x10..0x14], [0; 4]);
        let (bytes, _) = fill(EntryLayout::Both, &mut enumeration, true, 0x60, stat).unwrap();
        assert_eq!((bytes.len(), bytes[0x28], bytes[0x3C]), (0x60, 7, 2));
        assert_eq!(fill(EntryLayout::Both, &mut enumeration, true, 0x60, stat), Err(Status::NO_MORE_FILES));
        enumeration.next = 2;
        assert_eq!(fill(EntryLayout::Full, &mut enumeration, true, 0x20, stat), Err(Status::INFO_LENGTH_MISMATCH));
        assert_eq!(fill(EntryLayout::Full, &mut enumeration, true, 0x46, stat).unwrap().1, Status::BUFFER_OVERFLOW);
    }
}
