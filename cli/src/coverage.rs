//! Coverage files in the format of DynamoRIO's drcov tool, version 2, which reverse engineers' tools read: a text header
//! with the modules, then a record of eight bytes for each basic block: offset in its module (32 bits), size and module
//! (16 bits each).

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lstar_nt::kernel::MappedImage;
use lstar_nt::system::System;
use lstar_runtime::SpaceId;

/// Opens the file before the run, so that a bad name is told at once.
pub fn create(path: &Path) -> Result<(BufWriter<File>, PathBuf)> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok((BufWriter::new(file), path.to_owned()))
}

/// The image that holds an address of a space (of any, if none is given), and its number; the newest one if several have
/// been there.
pub fn image_at(images: &[MappedImage], space: Option<SpaceId>, address: u64) -> Option<(usize, &MappedImage)> {
    let holds = |image: &MappedImage| space.is_none_or(|space| space == image.space) && image.range.contains(&address);
    images.iter().enumerate().rev().find(|(_, image)| holds(image))
}

/// Writes what the system has executed. Blocks outside of any image, as code made at run time is, have no place in the
/// format and are left out.
pub fn write(out: &mut impl Write, system: &mut System) -> std::io::Result<()> {
    let blocks = system.machine.coverage();
    let images = &system.kernel.mapped_images;
    let mut records = Vec::new();
    for block in &blocks {
        let place = image_at(images, Some(block.space), block.start);
        let Some((number, image)) = place else { continue };
        let (Ok(number), Ok(size)) = (u16::try_from(number), u16::try_from(block.size)) else { continue };
        let offset = (block.start - image.range.start) as u32;
        records.push((offset, size, number));
    }
    writeln!(out, "DRCOV VERSION: 2")?;
    writeln!(out, "DRCOV FLAVOR: lstar")?;
    writeln!(out, "Module Table: version 2, count {}", images.len())?;
    writeln!(out, "Columns: id, base, end, entry, checksum, timestamp, path")?;
    for (number, MappedImage { range, entry, check_sum, name, .. }) in images.iter().enumerate() {
        let (start, end) = (range.start, range.end);
        writeln!(out, "{number:3}, {start:#018x}, {end:#018x}, {entry:#018x}, {check_sum:#010x}, 0x00000000, {name}")?;
    }
    writeln!(out, "BB Table: {} bbs", records.len())?;
    for (offset, size, number) in records {
        out.write_all(&offset.to_le_bytes())?;
        out.write_all(&size.to_le_bytes())?;
        out.write_all(&number.to_le_bytes())?;
    }
    out.flush()
}
