use super::*;
use crate::registry::{CreateOptions, KeyId, Registry, defaults, state};

/// A registry with what is hard to write: many subkeys, long data, other scripts, a link, a class.
fn example() -> (Registry, KeyId) {
    let mut registry = Registry::new();
    let root = registry.create_all(registry.root(), "Machine", 5).unwrap();
    let many = registry.create_all(root, "Many", 5).unwrap();
    for number in 0..2500 {
        registry.create_all(many, &format!("key {number}"), 7).unwrap();
    }
    let options = CreateOptions { class: "Klasse", ..CreateOptions::default() };
    let classed = registry.create(root, "Größe Ωmega", options, 9).unwrap().0;
    for length in [0, 1, 4, 5, 20_000] {
        let data = (0..length).map(|number| number as u8).collect();
        registry.set_value(classed, &format!("värde {length} ж"), 3, data, 9).unwrap();
    }
    let link = CreateOptions { link: true, ..CreateOptions::default() };
    let link = registry.create(root, "link", link, 9).unwrap().0;
    registry.set_value(link, crate::registry::LINK_VALUE, 6, b"x\0".to_vec(), 9).unwrap();
    let passing = CreateOptions { volatile: true, ..CreateOptions::default() };
    registry.create(root, "passing", passing, 9).unwrap();
    (registry, root)
}

fn read_new(bytes: &[u8]) -> Result<Registry, HiveError> {
    let mut registry = Registry::new();
    let machine = registry.create_all(registry.root(), "Machine", 0).unwrap();
    read(&mut registry, machine, bytes).map(|()| registry)
}

#[test]
fn what_was_written_is_read() {
    let (registry, root) = example();
    let bytes = write(&registry, root).unwrap();
    assert_eq!(bytes.len() % BLOCK, 0);
    let again = read_new(&bytes).unwrap();
    assert_eq!(state::changes(&registry, &again), state::changes(&registry, &registry));
    assert_eq!(state::changes(&again, &registry), state::changes(&registry, &registry));
    let key =
        again.open(again.root(), "Machine\\GRÖSSE ωMEGA").or_else(|_| again.open(again.root(), "Machine\\Größe Ωmega"));
    let key = again.key(key.unwrap()).unwrap();
    assert_eq!((key.class.as_str(), key.last_write), ("Klasse", 9));
    assert!(again.open(again.root(), "Machine\\passing").is_err());
}

#[test]
fn the_defaults_survive_a_hive() {
    let registry = defaults::registry(3).unwrap();
    let machine = registry.open(registry.root(), "Machine").unwrap();
    let bytes = write(&registry, machine).unwrap();
    let again = read_new(&bytes).unwrap();
    assert_eq!(write(&again, again.open(again.root(), "Machine").unwrap()).unwrap(), bytes);
}

#[test]
fn data_in_segments_is_joined() {
    // A hive of one value, with the data of a "db" cell, put together by hand.
    let mut registry = Registry::new();
    let root = registry.create_all(registry.root(), "Machine", 0).unwrap();
    let long: Vec<u8> = (0..40_000u32).map(|number| number as u8).collect();
    registry.set_value(root, "v", 3, long.clone(), 0).unwrap();
    let mut bytes = write(&registry, root).unwrap();
    let found = bytes.windows(2).position(|pair| pair == b"vk").unwrap();
    // Three segments and their list in a bin of their own, behind the others.
    let bin = bytes.len() - BLOCK;
    let mut cells = vec![0; BIN_HEADER];
    let mut place = |data: &[u8]| {
        let at = (bin + cells.len()) as u32;
        let size = (data.len() + 4).next_multiple_of(8);
        cells.extend((-(size as i32)).to_le_bytes());
        cells.extend(data);
        cells.resize(at as usize - bin + size, 0);
        at
    };
    let segments: Vec<u8> = long.chunks(SEGMENT).flat_map(|part| place(part).to_le_bytes()).collect();
    let list = place(&segments);
    let header = place(&[b"db\x03\0".as_slice(), &list.to_le_bytes()].concat());
    cells.resize(cells.len().next_multiple_of(BLOCK), 0);
    cells[..4].copy_from_slice(b"hbin");
    bytes.extend(cells);
    bytes[found + 8..found + 12].copy_from_slice(&header.to_le_bytes());
    bytes[0x18] = 5;
    reseal(&mut bytes);
    let again = read_new(&bytes).unwrap();
    let key = again.open(again.root(), "Machine").unwrap();
    assert_eq!(again.key(key).unwrap().value("v").unwrap().data, long);
}

/// Makes length and checksum right again.
fn reseal(bytes: &mut [u8]) {
    let length = (bytes.len() - BLOCK) as u32;
    bytes[0x28..0x2C].copy_from_slice(&length.to_le_bytes());
    let sum = checksum(&bytes[..BLOCK]);
    bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn hostile_hives_are_refused() {
    let mut registry = Registry::new();
    let root = registry.create_all(registry.root(), "Machine", 0).unwrap();
    let inner = registry.create_all(root, "one\\two", 0).unwrap();
    registry.set_value(inner, "value", 1, vec![7; 100], 0).unwrap();
    let good = write(&registry, root).unwrap();
    assert_eq!(read_new(b"MZ").err(), Some(HiveError::NotAHive));
    assert_eq!(read_new(&good[..BLOCK - 1]).err(), Some(HiveError::NotAHive));
    let mut other = good.clone();
    other[0x14] = 2;
    assert_eq!(read_new(&other).err(), Some(HiveError::Version(2, 3)));
    other = good.clone();
    other[0x30] = 1;
    assert_eq!(read_new(&other).err(), Some(HiveError::Checksum));
    assert!(matches!(read_new(&good[..good.len() - 8]), Err(HiveError::Missing { .. })));

    // A key that is below itself.
    let list = good.windows(4).position(|bytes| bytes == b"lf\x01\0").unwrap();
    let mut cycle = good.clone();
    let root_offset: [u8; 4] = good[0x24..0x28].try_into().unwrap();
    cycle[list + 4..list + 8].copy_from_slice(&root_offset);
    assert_eq!(read_new(&cycle).err(), Some(HiveError::Twice(u32::from_le_bytes(root_offset))));

    // Any byte changed: an error or some tree, and nothing else.
    for at in BLOCK..good.len() {
        for change in [0x01, 0x80, 0xFF] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            let _ = read_new(&bytes);
        }
    }
}
