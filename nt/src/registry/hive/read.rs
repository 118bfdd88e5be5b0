//! From a hive to keys and values.

use std::collections::HashSet;

use super::{
    BIN_HEADER, BLOCK, CHECKSUM, HiveError, MAX_DEPTH, NARROW_VALUE_NAME, NONE, RESIDENT, SEGMENT, checksum, key_flags,
};
use crate::registry::{CreateOptions, KeyId, Registry};

/// Lists of subkeys below each other: a list of lists, and no deeper.
const MAX_LIST_DEPTH: usize = 2;
/// Least bytes of a cell that holds a value.
const VALUE_CELL: usize = 24;

/// Reads a hive into a key that exists and is empty. On an error the key may hold part of it.
pub fn read(registry: &mut Registry, into: KeyId, bytes: &[u8]) -> Result<(), HiveError> {
    let hive = Hive::new(bytes)?;
    let mut reader = Reader { hive, registry, seen: HashSet::new(), values: bytes.len() / VALUE_CELL };
    let root = reader.hive.root;
    let mut queue = vec![(root, into, 1)];
    let node = reader.node(root)?;
    reader.values(into, &node)?;
    reader.registry.restore_stamp(into, &reader.class(&node)?, node.last_write);
    while let Some((offset, key, depth)) = queue.pop() {
        if depth > MAX_DEPTH {
            return Err(HiveError::Deep);
        }
        let node = reader.node(offset)?;
        if node.subkeys == 0 {
            continue;
        }
        let mut children = Vec::new();
        reader.list(node.subkey_list, MAX_LIST_DEPTH, &mut children)?;
        if children.len() != node.subkeys as usize {
            return Err(HiveError::Malformed { what: "the list of subkeys", offset: node.subkey_list });
        }
        for child in children {
            let id = reader.child(key, child)?;
            queue.push((child, id, depth + 1));
        }
        // Creating subkeys has changed it.
        reader.registry.restore_stamp(key, &reader.class(&node)?, node.last_write);
    }
    Ok(())
}

/// The fields of a key node.
struct Node<'a> {
    offset: u32,
    flags: u16,
    last_write: i64,
    subkeys: u32,
    subkey_list: u32,
    values: u32,
    value_list: u32,
    class: u32,
    class_length: u16,
    name: &'a [u8],
}

/// The bytes behind the base block.
#[derive(Clone, Copy)]
struct Hive<'a> {
    bins: &'a [u8],
    root: u32,
    /// Large values are cut into segments.
    segments: bool,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes([field[0], field[1], field[2], field[3]]))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes([field[0], field[1]]))
}

impl<'a> Hive<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, HiveError> {
        let base = bytes.get(..BLOCK).filter(|base| base.starts_with(b"regf")).ok_or(HiveError::NotAHive)?;
        let field = |at| word(base, at).unwrap_or(0);
        let (major, minor) = (field(0x14), field(0x18));
        // File type 0 is a hive, 1 and more are its logs; format 1 is the only one.
        if major != 1 || !(2..=6).contains(&minor) || field(0x1C) != 0 || field(0x20) != 1 {
            return Err(HiveError::Version(major, minor));
        }
        if field(CHECKSUM) != checksum(base) {
            return Err(HiveError::Checksum);
        }
        let length = field(0x28) as usize;
        let bins = bytes[BLOCK..].get(..length).ok_or(HiveError::Missing { what: "a bin", offset: field(0x28) })?;
        Ok(Self { bins, root: field(0x24), segments: minor >= 4 })
    }

    /// The bytes of an allocated cell.
    fn cell(&self, offset: u32, what: &'static str) -> Result<&'a [u8], HiveError> {
        let at = offset as usize;
        let missing = HiveError::Missing { what, offset };
        if at < BIN_HEADER {
            return Err(missing);
        }
        let size = word(self.bins, at).ok_or(missing)? as i32;
        // A positive size is that of a free cell.
        if size >= 0 || size % 8 != 0 || !at.is_multiple_of(8) {
            return Err(HiveError::Malformed { what, offset });
        }
        self.bins.get(at + 4..at.saturating_add(size.unsigned_abs() as usize)).ok_or(missing)
    }
}

struct Reader<'a, 'r> {
    hive: Hive<'a>,
    registry: &'r mut Registry,
    seen: HashSet<u32>,
    /// Values that may still follow: as many as the hive has room for.
    values: usize,
}

impl<'a> Reader<'a, '_> {
    fn node(&self, offset: u32) -> Result<Node<'a>, HiveError> {
        let cell = self.hive.cell(offset, "a key")?;
        let malformed = HiveError::Malformed { what: "a key", offset };
        if !cell.starts_with(b"nk") || cell.len() < 0x4C {
            return Err(malformed);
        }
        let field = |at| word(cell, at).unwrap_or(NONE);
        let short = |at| half(cell, at).unwrap_or(0);
        let time = u64::from(field(4)) | u64::from(field(8)) << 32;
        Ok(Node {
            offset,
            flags: short(2),
            last_write: i64::try_from(time).unwrap_or(0),
            subkeys: field(0x14),
            subkey_list: field(0x1C),
            values: field(0x24),
            value_list: field(0x28),
            class: field(0x30),
            class_length: short(0x4A),
            name: cell.get(0x4C..0x4C + usize::from(short(0x48))).ok_or(malformed)?,
        })
    }

    fn class(&self, node: &Node<'_>) -> Result<String, HiveError> {
        if node.class == NONE || node.class_length == 0 {
            return Ok(String::new());
        }
        let cell = self.hive.cell(node.class, "a key's class")?;
        let missing = HiveError::Missing { what: "a key's class", offset: node.class };
        Ok(text(cell.get(..usize::from(node.class_length)).ok_or(missing)?, false))
    }

    /// Makes a subkey with its values.
    fn child(&mut self, parent: KeyId, offset: u32) -> Result<KeyId, HiveError> {
        if !self.seen.insert(offset) || offset == self.hive.root {
            return Err(HiveError::Twice(offset));
        }
        let node = self.node(offset)?;
        let name = text(node.name, node.flags & key_flags::NARROW_NAME != 0);
        let malformed = HiveError::Malformed { what: "the name of a key", offset };
        if name.is_empty() || name.contains(['\\', '\0']) {
            return Err(malformed);
        }
        let class = self.class(&node)?;
        let options = CreateOptions {
            class: &class,
            link: node.flags & key_flags::SYMBOLIC_LINK != 0,
            open_link: true,
            volatile: false,
        };
        let created = self.registry.create(parent, &name, options, node.last_write);
        let (id, new) = created.map_err(|status| match status {
            crate::status::Status::INSUFFICIENT_RESOURCES => HiveError::Full,
            _ => malformed,
        })?;
        if !new {
            return Err(malformed);
        }
        self.values(id, &node)?;
        Ok(id)
    }

    /// Offsets of the keys in a list.
    fn list(&self, offset: u32, depth: usize, keys: &mut Vec<u32>) -> Result<(), HiveError> {
        const WHAT: &str = "the list of subkeys";
        let cell = self.hive.cell(offset, WHAT)?;
        let malformed = HiveError::Malformed { what: WHAT, offset };
        let count = usize::from(half(cell, 2).ok_or(malformed)?);
        // With each offset the hints have a word of their name, the hashes its hash.
        let (size, lists) = match &cell[..2] {
            b"li" => (4, false),
            b"lf" | b"lh" => (8, false),
            b"ri" if depth > 1 => (4, true),
            _ => return Err(malformed),
        };
        let entries = cell.get(4..4 + count * size).ok_or(malformed)?;
        for entry in entries.chunks_exact(size) {
            let named = word(entry, 0).unwrap_or(NONE);
            if lists {
                self.list(named, depth - 1, keys)?;
            } else {
                keys.push(named);
            }
            // A key has a cell of its own.
            if keys.len() > self.hive.bins.len() / 0x50 {
                return Err(malformed);
            }
        }
        Ok(())
    }

    fn values(&mut self, key: KeyId, node: &Node<'_>) -> Result<(), HiveError> {
        const WHAT: &str = "the list of values";
        if node.values == 0 {
            return Ok(());
        }
        let count = node.values as usize;
        self.values = self.values.checked_sub(count).ok_or(HiveError::Malformed { what: WHAT, offset: node.offset })?;
        let cell = self.hive.cell(node.value_list, WHAT)?;
        let missing = HiveError::Missing { what: WHAT, offset: node.value_list };
        let offsets = cell.get(..count * 4).ok_or(missing)?;
        for offset in offsets.chunks_exact(4) {
            self.value(key, word(offset, 0).unwrap_or(NONE), node)?;
        }
        Ok(())
    }

    fn value(&mut self, key: KeyId, offset: u32, node: &Node<'_>) -> Result<(), HiveError> {
        let cell = self.hive.cell(offset, "a value")?;
        let malformed = HiveError::Malformed { what: "a value", offset };
        if !cell.starts_with(b"vk") || cell.len() < 0x14 {
            return Err(malformed);
        }
        let field = |at| word(cell, at).unwrap_or(0);
        let length = usize::from(half(cell, 2).unwrap_or(0));
        let narrow = half(cell, 0x10).unwrap_or(0) & NARROW_VALUE_NAME != 0;
        let name = text(cell.get(0x14..0x14 + length).ok_or(malformed)?, narrow);
        let (size, at) = (field(4), field(8));
        let data = if size & RESIDENT != 0 {
            let size = (size & !RESIDENT) as usize;
            at.to_le_bytes().get(..size).ok_or(malformed)?.to_vec()
        } else {
            self.data(at, size as usize)?
        };
        self.registry.set_value(key, &name, field(0xC), data, node.last_write).map_err(|status| match status {
            crate::status::Status::INSUFFICIENT_RESOURCES => HiveError::Full,
            _ => malformed,
        })
    }

    fn data(&self, offset: u32, size: usize) -> Result<Vec<u8>, HiveError> {
        const WHAT: &str = "a value's data";
        if size == 0 {
            return Ok(Vec::new());
        }
        // Nothing in it can be larger than the hive.
        let missing = HiveError::Missing { what: WHAT, offset };
        if size > self.hive.bins.len() {
            return Err(missing);
        }
        let cell = self.hive.cell(offset, WHAT)?;
        if !self.hive.segments || size <= SEGMENT || !cell.starts_with(b"db") {
            return cell.get(..size).map(<[u8]>::to_vec).ok_or(missing);
        }
        let count = usize::from(half(cell, 2).unwrap_or(0));
        let list = self.hive.cell(word(cell, 4).ok_or(missing)?, WHAT)?;
        let mut data = Vec::with_capacity(size);
        for segment in list.get(..count * 4).ok_or(missing)?.chunks_exact(4) {
            let segment = self.hive.cell(word(segment, 0).unwrap_or(NONE), WHAT)?;
            let rest = size - data.len();
            data.extend_from_slice(&segment[..segment.len().min(SEGMENT).min(rest)]);
        }
        if data.len() == size { Ok(data) } else { Err(missing) }
    }
}

/// A name: Latin-1, or UTF-16.
fn text(bytes: &[u8], narrow: bool) -> String {
    if narrow {
        return bytes.iter().map(|&byte| char::from(byte)).collect();
    }
    let units: Vec<u16> = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    String::from_utf16_lossy(&units)
}
