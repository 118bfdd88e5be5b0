//! Images made wrong on purpose: the embedded ones with bytes changed, cut off or put in. What is refused is refused with
//! one of NT's statuses and one line; what is not runs to some end, within the sandbox.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use lstar_guest_images::{demo, ntdll};
use lstar_nt::io::host::CapturedHost;
use lstar_nt::memory::section::{Section, SectionFile};
use lstar_nt::status::Status;
use lstar_nt::system::{self, RunEnd, System};
use lstar_runtime::{Engine, MachineConfig};

/// A folder that goes with the test.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("lstar-malformed-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self { path }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Reproducible pseudo-random numbers (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Changes an image in one to six places, mostly in its headers, with values that sit on edges.
fn mutate(image: &[u8], random: &mut Random) -> Vec<u8> {
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

fn originals() -> [Vec<u8>; 3] {
    [demo::demo().unwrap().pe, ntdll::ntdll().unwrap().pe, ntdll::win32u().unwrap().pe]
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

#[test]
fn sections_of_malformed_images_are_refused_with_nts_statuses() {
    const SEC_IMAGE: u32 = 0x100_0000;
    let folder = Folder::new();
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let (mut refused, mut accepted) = (0, 0);
    for original in originals() {
        for _ in 0..2_000 {
            let path = folder.path.as_path().join("image");
            std::fs::write(&path, mutate(&original, &mut random)).unwrap();
            let file = std::fs::File::open(&path).unwrap();
            let file = SectionFile { file, name: r"\image".to_owned(), held: None };
            match Section::of_image(file, SEC_IMAGE) {
                Ok(_) => accepted += 1,
                Err(error) => {
                    let text = error.to_string();
                    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
                    let status = Status::from(error);
                    assert!(REFUSALS.contains(&status), "{status}: {text}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 1_000 && accepted > 1_000, "{refused} refused, {accepted} accepted");
}

/// Boots the demonstration with one of its files replaced, and runs it for a while.
fn run(folder: &Path, name: &str, bytes: &[u8]) -> Result<RunEnd, String> {
    let machine = MachineConfig { engine: Engine::Interpreter, memory_limit: 64 << 20, ..MachineConfig::default() };
    let mut config = system::demonstration(folder, machine, Box::new(CapturedHost::default())).unwrap();
    config.instruction_limit = Some(1_000_000);
    std::fs::write(folder.join(name), bytes).unwrap();
    let mut system = System::boot(config).map_err(|error| error.to_string())?;
    Ok(system.run())
}

#[test]
fn malformed_programs_and_dlls_are_refused_or_run_to_an_end() {
    let folder = Folder::new();
    let mut random = Random(0xA076_1D64_78BD_642F);
    let names = ["demo.exe", "windows/system32/ntdll.dll", "windows/system32/win32u.dll"];
    let (mut refused, mut ran) = (0, 0);
    for (name, original) in names.iter().zip(originals()) {
        for _ in 0..60 {
            match run(folder.path.as_path(), name, &mutate(&original, &mut random)) {
                Ok(_) => ran += 1,
                Err(text) => {
                    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 20 && ran > 20, "{refused} refused, {ran} ran");
}
