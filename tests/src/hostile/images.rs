//! Images made wrong on purpose: the embedded ones with bytes changed, cut off or put in. What is refused is refused with
//! one of NT's statuses and one line; what is not runs to some end, within the sandbox.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use lstar_guest_images::{demo, ntdll};
use lstar_nt::io::host::CapturedHost;
use lstar_nt::memory::section::{Section, SectionFile};
use lstar_nt::status::Status;
use lstar_nt::system::{self, RunEnd, System};
use lstar_runtime::{Engine, MachineConfig};

use super::Chooser;

/// Changes an image in one to six places, mostly in its headers, with values that sit on edges.
#[must_use]
pub fn mutate(image: &[u8], random: &mut impl Chooser) -> Vec<u8> {
    const EDGES: [u64; 12] =
        [0, 1, 2, 0x7F, 0x80, 0xFF, 0x1000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_F000, u64::MAX];
    let mut bytes = image.to_vec();
    for _ in 0..1 + random.below(6) {
        let region = if random.below(4) == 0 { bytes.len() } else { bytes.len().min(0x400) };
        let at = random.below(region);
        let width = [1, 2, 4, 8][random.below(4)];
        match random.below(16) {
            0 => bytes.truncate(at),
            1 => {
                let extra: Vec<u8> = (0..random.below(64)).map(|_| random.next() as u8).collect();
                bytes.splice(at..at, extra);
            }
            2..=5 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            kind => {
                let value = if kind < 12 { EDGES[random.below(EDGES.len())] } else { random.next() };
                if let Some(field) = bytes.get_mut(at..at + width) {
                    field.copy_from_slice(&value.to_le_bytes()[..width]);
                }
            }
        }
    }
    bytes
}

/// The demonstration, its ntdll.dll and win32u.dll.
#[must_use]
pub fn originals() -> [Vec<u8>; 3] {
    [demo::demo(), ntdll::ntdll(), ntdll::win32u()].map(|image| image.expect("the embedded images").pe)
}

/// Statuses with which NT refuses an image.
const REFUSALS: [Status; 6] = [
    Status::INVALID_IMAGE_FORMAT,
    Status::INVALID_IMAGE_NOT_MZ,
    Status::INVALID_IMAGE_PROTECT,
    Status::INVALID_IMAGE_WIN_16,
    Status::INVALID_FILE_FOR_SECTION,
    Status::IMAGE_MACHINE_TYPE_MISMATCH,
];

/// Gives images to the loader, in a folder that goes with it.
#[derive(Debug)]
pub struct Loader {
    folder: PathBuf,
}

impl Loader {
    /// A loader with a folder of its own.
    pub fn new() -> std::io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("lstar-malformed-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// Whether the bytes make an image section. `Err` tells of a refusal that is not one of NT's, or not one line.
    pub fn section(&mut self, bytes: &[u8]) -> Result<bool, String> {
        const SEC_IMAGE: u32 = 0x100_0000;
        let path = self.folder.join("image");
        std::fs::write(&path, bytes).map_err(|error| error.to_string())?;
        let file = std::fs::File::open(&path).map_err(|error| error.to_string())?;
        let file = SectionFile { file, name: r"\image".to_owned(), held: None };
        let Err(error) = Section::of_image(file, SEC_IMAGE) else { return Ok(true) };
        let text = error.to_string();
        let status = Status::from(error);
        if text.is_empty() || text.contains('\n') || !REFUSALS.contains(&status) {
            return Err(format!("{status}: {text:?}"));
        }
        Ok(false)
    }

    /// Boots the demonstration with one of its files replaced, and runs it for a while. `Err` is the one line of a refusal.
    ///
    /// # Panics
    /// When the refusal has no text, or more than one line.
    pub fn run(&mut self, name: &str, bytes: &[u8]) -> Result<RunEnd, String> {
        let machine = MachineConfig { engine: Engine::Interpreter, memory_limit: 64 << 20, ..MachineConfig::default() };
        let config = system::demonstration(&self.folder, machine, Box::new(CapturedHost::default()));
        let mut config = config.map_err(|error| error.to_string())?;
        config.instruction_limit = Some(1_000_000);
        std::fs::write(self.folder.join(name), bytes).map_err(|error| error.to_string())?;
        match System::boot(config) {
            Ok(mut system) => Ok(system.run()),
            Err(error) => {
                let text = error.to_string();
                assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
                Err(text)
            }
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
