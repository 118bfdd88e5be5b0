//! A map for perf(1) of translated code, in the format of its symbol files for just-in-time compilers: one line with host
//! address, size and name for each region.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process;

use anyhow::{Context, Result};
use lstar_nt::system::System;

use crate::coverage::image_at;

/// The file of this process's map, in the system's temporary folder: there perf(1) looks for it, which knows no TMPDIR. The
/// folder is everybody's, so a file or link that somebody has put there is not followed.
pub fn create() -> Result<BufWriter<File>> {
    let path = std::env::temp_dir().join(format!("perf-{}.map", process::id()));
    let _ = std::fs::remove_file(&path);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    Ok(BufWriter::new(file.with_context(|| format!("cannot write {}", path.display()))?))
}

/// Writes the map of what is translated now. perf reads it after the run.
pub fn write(out: &mut impl Write, system: &System) -> std::io::Result<()> {
    for (code, guest) in system.machine.regions() {
        let name = match image_at(&system.kernel.mapped_images, None, guest) {
            Some((_, image)) => {
                let name = image.name.rsplit('\\').next().unwrap_or_default();
                format!("{name}+{:#x}", guest - image.range.start)
            }
            None => format!("guest {guest:#x}"),
        };
        writeln!(out, "{:x} {:x} {name}", code.start, code.end - code.start)?;
    }
    out.flush()
}
