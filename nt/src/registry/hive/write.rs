//! From keys and values to a hive, of version 1.3: what every Windows reads.

use super::{BIN_HEADER, BLOCK, CHECKSUM, NARROW_VALUE_NAME, NONE, RESIDENT, checksum, key_flags};
use crate::registry::{Key, KeyId, Registry, Value};
use crate::status::Status;
use crate::strings::utf16_bytes;

/// Subkeys that one list names; more are in a list of lists.
const LIST_LENGTH: usize = 1000;

/// The hive of a key and what is below it. Keys that do not outlive a restart are left out.
pub fn write(registry: &Registry, root: KeyId) -> Result<Vec<u8>, Status> {
    let mut writer = Writer { registry, bins: Vec::new(), free: 0..0, security: NONE, keys: 0 };
    writer.security = writer.security_cell();
    let last_write = registry.key(root)?.last_write;
    let offset = writer.key(root, NONE)?;
    writer.close_bin();
    // The descriptor counts who refers to it.
    let count = writer.security as usize + 4 + 0xC;
    writer.bins[count..count + 4].copy_from_slice(&writer.keys.to_le_bytes());
    let mut base = vec![0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| base[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"regf");
    // Two equal sequence numbers: it is complete.
    for (at, number) in [(4, 1), (8, 1), (0x14, 1), (0x18, 3), (0x20, 1), (0x24, offset), (0x2C, 1)] {
        put(at, &u32::to_le_bytes(number));
    }
    put(0xC, &last_write.to_le_bytes());
    put(0x28, &(writer.bins.len() as u32).to_le_bytes());
    let sum = checksum(&base);
    base[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_le_bytes());
    base.append(&mut writer.bins);
    Ok(base)
}

struct Writer<'a> {
    registry: &'a Registry,
    bins: Vec<u8>,
    /// Room that is left in the last bin.
    free: std::ops::Range<usize>,
    security: u32,
    keys: u32,
}

/// A name, and whether it is Latin-1.
fn name_bytes(name: &str) -> (Vec<u8>, bool) {
    match name.chars().map(|character| u8::try_from(character).ok()).collect() {
        Some(bytes) => (bytes, true),
        None => (utf16_bytes(name), false),
    }
}

impl Writer<'_> {
    /// Makes what is left of the last bin a free cell.
    fn close_bin(&mut self) {
        let size = self.free.len() as u32;
        if size != 0 {
            self.bins[self.free.start..self.free.start + 4].copy_from_slice(&size.to_le_bytes());
            self.free = 0..0;
        }
    }

    /// A cell that holds bytes.
    fn cell(&mut self, bytes: &[u8]) -> u32 {
        let size = (bytes.len() + 4).next_multiple_of(8);
        if self.free.len() < size {
            self.close_bin();
            let start = self.bins.len();
            let length = (size + BIN_HEADER).next_multiple_of(BLOCK);
            self.bins.resize(start + length, 0);
            self.bins[start..start + 4].copy_from_slice(b"hbin");
            self.bins[start + 4..start + 8].copy_from_slice(&(start as u32).to_le_bytes());
            self.bins[start + 8..start + 12].copy_from_slice(&(length as u32).to_le_bytes());
            self.free = start + BIN_HEADER..start + length;
        }
        let at = self.free.start;
        self.bins[at..at + 4].copy_from_slice(&(-(size as i32)).to_le_bytes());
        self.bins[at + 4..at + 4 + bytes.len()].copy_from_slice(bytes);
        self.free.start += size;
        at as u32
    }

    /// One security descriptor for all keys: administrators own them, and there is no access list.
    fn security_cell(&mut self) -> u32 {
        const OWNER: [u8; 16] = [1, 2, 0, 0, 0, 0, 0, 5, 32, 0, 0, 0, 0x20, 2, 0, 0];
        const GROUP: [u8; 12] = [1, 1, 0, 0, 0, 0, 0, 5, 18, 0, 0, 0];
        let mut descriptor = vec![1, 0, 4, 0x80];
        for offset in [20u32, 36, 0, 0] {
            descriptor.extend(offset.to_le_bytes());
        }
        descriptor.extend(OWNER);
        descriptor.extend(GROUP);
        // The list of descriptors is a ring: this one is its own neighbour.
        let place = self.free.start.max(BIN_HEADER) as u32;
        let mut cell = b"sk\0\0".to_vec();
        for field in [place, place, 1, descriptor.len() as u32] {
            cell.extend(field.to_le_bytes());
        }
        cell.extend(descriptor);
        self.cell(&cell)
    }

    fn key(&mut self, id: KeyId, parent: u32) -> Result<u32, Status> {
        let registry = self.registry;
        let key = registry.key(id)?;
        self.keys += 1;
        let (name, narrow) = name_bytes(&key.name);
        let class = utf16_bytes(&key.class);
        let values = self.values(key);
        let class_cell = if class.is_empty() { NONE } else { self.cell(&class) };
        let mut flags = if narrow { key_flags::NARROW_NAME } else { 0 };
        flags |= if parent == NONE { key_flags::ROOT } else { 0 };
        flags |= if key.link { key_flags::SYMBOLIC_LINK } else { 0 };
        let mut children = Vec::new();
        for child in key.children() {
            if !registry.key(child)?.volatile {
                children.push(child);
            }
        }
        let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0) as u32;
        let subkeys = || children.iter().filter_map(|&child| registry.key(child).ok());
        let mut cell = b"nk".to_vec();
        cell.extend(flags.to_le_bytes());
        cell.extend(key.last_write.to_le_bytes());
        let fields = [
            0,
            parent,
            children.len() as u32,
            0,
            NONE,
            NONE,
            key.values().len() as u32,
            values,
            self.security,
            class_cell,
            longest(&mut subkeys().map(|key| key.name.encode_utf16().count() * 2)),
            longest(&mut subkeys().map(|key| key.class.encode_utf16().count() * 2)),
            longest(&mut key.values().map(|value| value.name.encode_utf16().count() * 2)),
            longest(&mut key.values().map(|value| value.data.len())),
            0,
        ];
        fields.iter().for_each(|field| cell.extend(field.to_le_bytes()));
        cell.extend((name.len() as u16).to_le_bytes());
        cell.extend((class.len() as u16).to_le_bytes());
        cell.extend(name);
        let offset = self.cell(&cell);
        // The keys below name this one, so that their list follows.
        let mut list = Vec::new();
        for child in children {
            let name = registry.key(child)?.name.clone();
            list.push((self.key(child, offset)?, name));
        }
        let list = self.subkey_list(&list);
        let field = offset as usize + 4 + 0x1C;
        self.bins[field..field + 4].copy_from_slice(&list.to_le_bytes());
        Ok(offset)
    }

    fn subkey_list(&mut self, keys: &[(u32, String)]) -> u32 {
        let lists: Vec<u32> = keys
            .chunks(LIST_LENGTH)
            .map(|keys| {
                let mut cell = b"lf".to_vec();
                cell.extend((keys.len() as u16).to_le_bytes());
                for (offset, name) in keys {
                    // The hint: the name's first four characters, when they are Latin-1.
                    let mut hint = name_bytes(name).0;
                    hint.resize(4, 0);
                    cell.extend(offset.to_le_bytes());
                    cell.extend(hint);
                }
                self.cell(&cell)
            })
            .collect();
        match lists[..] {
            [] => NONE,
            [list] => list,
            _ => {
                let mut cell = b"ri".to_vec();
                cell.extend((lists.len() as u16).to_le_bytes());
                lists.iter().for_each(|list| cell.extend(list.to_le_bytes()));
                self.cell(&cell)
            }
        }
    }

    fn values(&mut self, key: &Key) -> u32 {
        let offsets: Vec<u8> = key.values().flat_map(|value| self.value(value).to_le_bytes()).collect();
        if offsets.is_empty() { NONE } else { self.cell(&offsets) }
    }

    fn value(&mut self, value: &Value) -> u32 {
        let (name, narrow) = name_bytes(&value.name);
        let length = value.data.len() as u32;
        let (length, data) = match value.data.len() {
            0 => (RESIDENT, 0),
            1..=4 => {
                let mut word = [0; 4];
                word[..value.data.len()].copy_from_slice(&value.data);
                (length | RESIDENT, u32::from_le_bytes(word))
            }
            _ => (length, self.cell(&value.data)),
        };
        let mut cell = b"vk".to_vec();
        cell.extend((name.len() as u16).to_le_bytes());
        for field in [length, data, value.kind] {
            cell.extend(field.to_le_bytes());
        }
        cell.extend((if narrow { NARROW_VALUE_NAME } else { 0 }).to_le_bytes());
        cell.extend([0, 0]);
        cell.extend(name);
        self.cell(&cell)
    }
}
