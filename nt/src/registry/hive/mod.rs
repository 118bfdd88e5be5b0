//! Registry hives: the file format "regf" in which Windows keeps branches of the registry and NtSaveKey writes them.
//!
//! A hive is a base block of one page and *bins*; bins hold *cells*, which name each other by offsets from the first bin.
//! Format: the specification by Maxim Suhanov ("Windows registry file format specification") and that of libregf.
//!
//! A hive is somebody else's bytes: the guest's, or a copied system root's. Reading takes time and memory in proportion to
//! its length; what does not fit together is refused with the reason.

mod read;
mod write;

pub use read::read;
pub use write::write;

/// Length of the base block, and what bins are a multiple of.
const BLOCK: usize = 0x1000;
/// Length of a bin's header.
const BIN_HEADER: usize = 0x20;
/// An offset that names no cell.
const NONE: u32 = u32::MAX;
/// Where the base block's checksum is; it is that of the words before.
const CHECKSUM: usize = 0x1FC;
/// Most bytes of a value that one cell holds where larger ones are cut into segments (minor versions from 4 on).
const SEGMENT: usize = 16_344;
/// Deepest nesting, as in the registry itself.
const MAX_DEPTH: usize = 512;

/// Flags of a key node.
mod key_flags {
    /// The key is a symbolic link.
    pub const SYMBOLIC_LINK: u16 = 0x10;
    /// The root: it cannot be deleted, and is where the hive is entered.
    pub const ROOT: u16 = 0x0C;
    /// The name is Latin-1, a byte a character.
    pub const NARROW_NAME: u16 = 0x20;
}

/// Flag of a value: the name is Latin-1.
const NARROW_VALUE_NAME: u16 = 1;
/// In a value's length: the data is where its offset would be.
const RESIDENT: u32 = 0x8000_0000;

/// Why a hive was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HiveError {
    /// It does not begin as one.
    #[error("not a registry hive")]
    NotAHive,
    /// It is of a version that is not known.
    #[error("a registry hive of version {0}.{1}, which is not known")]
    Version(u32, u32),
    /// The base block is not what was written.
    #[error("the checksum of its base block is wrong")]
    Checksum,
    /// Something is named that is not there.
    #[error("{what} at {offset:#x} is missing or cut off")]
    Missing {
        /// What.
        what: &'static str,
        /// Offset from the first bin.
        offset: u32,
    },
    /// Something is not what it should be.
    #[error("{what} at {offset:#x} is malformed")]
    Malformed {
        /// What.
        what: &'static str,
        /// Offset from the first bin.
        offset: u32,
    },
    /// A key is below itself, or in two places.
    #[error("the key at {0:#x} is in two places")]
    Twice(u32),
    /// It is nested deeper than the registry can be.
    #[error("its keys are nested too deeply")]
    Deep,
    /// It holds more than the registry takes.
    #[error("it holds more than fits into the registry")]
    Full,
}

/// Whether a hive was left while it was being changed: what its logs hold is missing.
#[must_use]
pub fn is_dirty(bytes: &[u8]) -> bool {
    bytes.get(4..8) != bytes.get(8..12)
}

/// XOR of the words before the checksum, with two values that it never has.
fn checksum(base: &[u8]) -> u32 {
    let words = base.chunks_exact(4).take(CHECKSUM / 4);
    match words.fold(0, |sum, word| sum ^ u32::from_le_bytes([word[0], word[1], word[2], word[3]])) {
        0 => 1,
        u32::MAX => u32::MAX - 1,
        sum => sum,
    }
}

#[cfg(test)]
mod tests;
