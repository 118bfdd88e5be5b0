//! Guest images that lstar builds for itself: the guest kernel, a small ntdll, the demonstration and the programs
//! that tests and benches run.
//!
//! Everything here is genuine x86-64 guest code in genuine PE files: the machine below executes it as it would any
//! other image, and nothing in it depends on which engine runs it. The crate knows no engine and no host.
//!
//! * [`layout`]: offsets of KPCR, KTHREAD and KTRAP_FRAME per Windows build, as data.
//! * [`kernel`]: `ntoskrnl.exe`: system-call entry and exit, service tables, trap handlers, start-up.
//! * [`ntdll`]: `ntdll.dll` and `win32u.dll` with the service stubs of Windows 7.
//! * [`demo`]: the demonstration program.
//! * [`programs`]: what tests and benches run.
//! * [`image`]: reads any PE image into mappable pieces; safe on malformed input.
#![forbid(unsafe_code)]

mod assemble;
pub mod demo;
pub mod image;
pub mod kernel;
pub mod layout;
pub mod ntdll;
mod pe;
pub mod programs;

pub use image::{ImageError, MappedImage, map_pe};
pub use kernel::{FastPathLayout, GateId, KernelConfig, KernelImage, ServiceEntry};
pub use layout::Build;

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The assembler rejected an instruction or a branch target.
    #[error("assembler: {0}")]
    Assemble(#[from] iced_x86::IcedError),
    /// The PE writer failed.
    #[error("PE writer: {0}")]
    Pe(#[from] object::write::Error),
    /// A service table has more entries than twelve bits of a service number can select.
    #[error("service table {table} has {count} entries; a service number selects at most 4096")]
    TooManyServices {
        /// 0 for the native table, 1 for the shadow one.
        table: u8,
        /// Entries asked for.
        count: usize,
    },
    /// A service takes more stack arguments than the argument copy moves.
    #[error("service {name} takes {count} stack arguments; at most {} can be copied", kernel::MAX_STACK_ARGUMENTS)]
    TooManyArguments {
        /// The service.
        name: String,
        /// Stack arguments asked for.
        count: u8,
    },
    /// Code grew past the room that its fixed address leaves.
    #[error("{what} at {address:#x} overlaps its neighbour")]
    Overlap {
        /// What does not fit.
        what: String,
        /// Where it starts.
        address: u64,
    },
}

/// A named address in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Name without the module ("KiSystemCall64").
    pub name: String,
    /// Virtual address at the image's preferred base.
    pub address: u64,
    /// Bytes up to the end of the function or datum.
    pub size: u64,
}

/// A user-mode image.
#[derive(Clone, Debug)]
pub struct UserImage {
    /// File name ("ntdll.dll").
    pub name: &'static str,
    /// The PE file.
    pub pe: Vec<u8>,
    /// Preferred base; the image has no relocations.
    pub base: u64,
    /// Entry point; `None` for DLLs.
    pub entry: Option<u64>,
    /// Every named address, ascending.
    pub symbols: Vec<Symbol>,
}

impl UserImage {
    /// Address of a symbol by name.
    #[must_use]
    pub fn address_of(&self, name: &str) -> Option<u64> {
        self.symbols.iter().find(|symbol| symbol.name == name).map(|symbol| symbol.address)
    }
}
