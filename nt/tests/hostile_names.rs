//! Names that a guest might try to leave its drives by: what each is answered with, and that nothing outside is touched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lstar_nt::io::host::CapturedHost;
use lstar_nt::kernel::service_by_name;
use lstar_nt::service::{MAX_ARGUMENTS, Outcome};
use lstar_nt::status::Status;
use lstar_nt::system::{self, System};
use lstar_runtime::{Engine, MachineConfig};

const READ: u64 = 0x12_0089;
const WRITE: u64 = 0x12_0116;
const DELETE: u64 = 0x11_0000;
const SHARE_ALL: u64 = 7;
const OPEN: u64 = 1;
const OPEN_IF: u64 = 3;
const RENAME_INFORMATION: u64 = 10;
const LINK_INFORMATION: u64 = 11;

/// A system whose C: is a folder beside a secret, with links that lead out of it.
struct Guest {
    system: System,
    base: PathBuf,
    scratch: u64,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.base);
    }
}

impl Guest {
    fn boot(name: &str) -> Self {
        let base = std::env::temp_dir().join(format!("lstar-names-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        let drive = base.join("drive");
        fs::create_dir_all(drive.join("Dir")).unwrap();
        fs::create_dir_all(base.join("outside")).unwrap();
        fs::write(drive.join("Dir/File.txt"), "content").unwrap();
        fs::write(base.join("secret"), "secret").unwrap();
        fs::write(base.join("outside/file"), "outside").unwrap();
        for (target, link) in [
            ("../secret", "up"),
            ("/etc", "etc"),
            ("../outside", "out"),
            ("../gone", "gone"),
            ("/proc/self/root", "magic"),
            ("Dir", "in"),
        ] {
            std::os::unix::fs::symlink(target, drive.join(link)).unwrap();
        }
        let machine = MachineConfig { engine: Engine::Interpreter, memory_limit: 1 << 30, ..MachineConfig::default() };
        let config = system::demonstration(&drive, machine, Box::new(CapturedHost::default())).unwrap();
        let mut system = System::boot(config).unwrap();
        let room = system.kernel.memory.allocate(
            system.machine.memory(),
            0x2_0000,
            lstar_nt::memory::PageProtection::READWRITE,
            lstar_nt::memory::Placement::default(),
        );
        Self { scratch: room.unwrap(), system, base }
    }

    fn call(&mut self, name: &str, arguments: &[u64]) -> Status {
        let service = service_by_name(name).unwrap();
        let mut vcpu = self.system.machine.vcpu();
        let mut call = self.system.kernel.call(&mut vcpu);
        call.slots = [0; MAX_ARGUMENTS];
        call.slots[..arguments.len()].copy_from_slice(arguments);
        let outcome = (service.invoke)(&mut call);
        self.system.kernel.reap();
        match outcome {
            Outcome::Return(status) => status,
            outcome => panic!("{name}: {outcome:?}"),
        }
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> u64 {
        let at = self.scratch + offset;
        self.system.machine.memory().write_unchecked(at, bytes).unwrap();
        at
    }

    /// OBJECT_ATTRIBUTES with a name.
    fn attributes(&mut self, name: &[u16]) -> u64 {
        let bytes: Vec<u8> = name.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let text = self.put(0x1000, &bytes);
        let length = u16::try_from(bytes.len()).unwrap();
        let string = [&length.to_le_bytes()[..], &length.to_le_bytes(), &[0; 4], &text.to_le_bytes()].concat();
        let string = self.put(0x100, &string);
        let words = [0x30, 0, string, 0x40, 0, 0];
        self.put(0x200, &words.map(u64::to_le_bytes).concat())
    }

    fn handle(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.system.machine.memory().read_unchecked(self.scratch, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn create(&mut self, name: &[u16], access: u64, disposition: u64) -> Status {
        let attributes = self.attributes(name);
        let (out, io_status) = (self.scratch, self.scratch + 0x10);
        let arguments = [out, access, attributes, io_status, 0, 0x80, SHARE_ALL, disposition, 0, 0, 0];
        self.call("NtCreateFile", &arguments)
    }

    fn close(&mut self) {
        let handle = self.handle();
        assert_eq!(self.call("NtClose", &[handle]), Status::SUCCESS);
    }

    /// Opens it to read, opens or creates it to write: both statuses.
    fn attempt(&mut self, name: &[u16]) -> [Status; 2] {
        [(READ, OPEN), (WRITE, OPEN_IF)].map(|(access, disposition)| {
            let status = self.create(name, access, disposition);
            if status == Status::SUCCESS {
                self.close();
            }
            status
        })
    }
}

fn units(text: &str) -> Vec<u16> {
    text.encode_utf16().collect()
}

/// Every file beneath a folder with its contents, links not followed.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(tree(&path));
        }
        let contents = if path.is_symlink() { None } else { fs::read(&path).ok() };
        found.insert(path, contents);
    }
    found
}

/// Names in the NT name space, and what opening and opening-or-creating answer.
const NAMES: &[(&str, Status, Status)] = &[
    // What is meant to work.
    (r"\??\C:\Dir\File.txt", Status::SUCCESS, Status::SUCCESS),
    (r"\??\c:\dir\FILE.TXT", Status::SUCCESS, Status::SUCCESS),
    (r"\??\C:\Dir\File.txt::$DATA", Status::SUCCESS, Status::SUCCESS),
    (r"\??\C:\in\File.txt", Status::SUCCESS, Status::SUCCESS),
    (r"\??\GLOBALROOT\??\C:\Dir\File.txt", Status::SUCCESS, Status::SUCCESS),
    (r"\??\NUL", Status::SUCCESS, Status::SUCCESS),
    // Climbing: NT's names have no dots, those of Windows lose them before they get here.
    (r"\??\C:\..\secret", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    (r"\??\C:\Dir\..\..\secret", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    (r"\??\C:\..\..\..\etc\passwd", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    (r"\??\C:\.\Dir\File.txt", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    (r"\??\C:\Dir/../../secret", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    (r"\??\C:/../secret", Status::OBJECT_NAME_NOT_FOUND, Status::OBJECT_NAME_NOT_FOUND),
    (r"\Device\HarddiskVolume1\..\secret", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    // Links that lead out, and beneath them.
    (r"\??\C:\up", Status::ACCESS_DENIED, Status::ACCESS_DENIED),
    (r"\??\C:\etc\passwd", Status::ACCESS_DENIED, Status::ACCESS_DENIED),
    (r"\??\C:\out\file", Status::ACCESS_DENIED, Status::ACCESS_DENIED),
    (r"\??\C:\out\new", Status::ACCESS_DENIED, Status::ACCESS_DENIED),
    (r"\??\C:\gone", Status::ACCESS_DENIED, Status::ACCESS_DENIED),
    (r"\??\C:\magic\etc\passwd", Status::ACCESS_DENIED, Status::ACCESS_DENIED),
    // Streams.
    (r"\??\C:\Dir\File.txt:stream", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    (r"\??\C:\Dir\File.txt:stream:$DATA", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    (r"\??\C:\Dir:$I30:$INDEX_ALLOCATION", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    (r"\??\C:\a:b", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    (r"\??\C:\::$DATA", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    // Other machines, raw disks, other drives.
    (r"\??\UNC\server\share\file", Status::OBJECT_PATH_NOT_FOUND, Status::OBJECT_PATH_NOT_FOUND),
    (r"\Device\Mup\server\share", Status::OBJECT_PATH_NOT_FOUND, Status::OBJECT_PATH_NOT_FOUND),
    (r"\??\PhysicalDrive0", Status::OBJECT_NAME_NOT_FOUND, Status::OBJECT_NAME_NOT_FOUND),
    (r"\Device\Harddisk0\Partition1", Status::OBJECT_PATH_NOT_FOUND, Status::OBJECT_PATH_NOT_FOUND),
    (r"\??\Z:\file", Status::OBJECT_PATH_NOT_FOUND, Status::OBJECT_PATH_NOT_FOUND),
    (r"\??\unix\etc\passwd", Status::OBJECT_PATH_NOT_FOUND, Status::OBJECT_PATH_NOT_FOUND),
    (r"\??\COM1", Status::OBJECT_NAME_NOT_FOUND, Status::OBJECT_NAME_NOT_FOUND),
    // Windows' spellings mean nothing to NT.
    (r"\\?\C:\Dir\File.txt", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    (r"\\.\C:\Dir\File.txt", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    (r"C:\Dir\File.txt", Status::OBJECT_PATH_SYNTAX_BAD, Status::OBJECT_PATH_SYNTAX_BAD),
    (r"Dir\File.txt", Status::OBJECT_PATH_SYNTAX_BAD, Status::OBJECT_PATH_SYNTAX_BAD),
    ("", Status::OBJECT_PATH_SYNTAX_BAD, Status::OBJECT_PATH_SYNTAX_BAD),
    (r"\", Status::OBJECT_TYPE_MISMATCH, Status::OBJECT_TYPE_MISMATCH),
    (r"\??", Status::OBJECT_TYPE_MISMATCH, Status::OBJECT_TYPE_MISMATCH),
    // Wildcards and characters that no name has.
    (r"\??\C:\Dir\*", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    (r"\??\C:\Dir\a<b", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    ("\\??\\C:\\Dir\\a\0b", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    ("\\??\\C:\\Dir\\a\nb", Status::OBJECT_NAME_INVALID, Status::OBJECT_NAME_INVALID),
    // Names of their own for NT: files called so are made.
    (r"\??\C:\Dir\NUL", Status::OBJECT_NAME_NOT_FOUND, Status::SUCCESS),
    (r"\??\C:\Dir\con.txt", Status::OBJECT_NAME_NOT_FOUND, Status::SUCCESS),
    (r"\??\C:\Dir\COM1", Status::OBJECT_NAME_NOT_FOUND, Status::SUCCESS),
    (r"\??\C:\Dir\File.txt.", Status::OBJECT_NAME_NOT_FOUND, Status::SUCCESS),
    (r"\??\C:\Dir\File.txt ", Status::OBJECT_NAME_NOT_FOUND, Status::SUCCESS),
    (r"\??\C:\Dir\...", Status::OBJECT_NAME_NOT_FOUND, Status::SUCCESS),
    (r"\??\C:\Dir\FILE~1.TXT", Status::OBJECT_NAME_NOT_FOUND, Status::SUCCESS),
];

#[test]
fn names_are_answered_as_documented_and_reach_nothing_outside() {
    let mut guest = Guest::boot("table");
    let outside = |guest: &Guest| {
        let mut all = tree(&guest.base);
        all.retain(|path, _| !path.starts_with(guest.base.join("drive")));
        all
    };
    let before = outside(&guest);
    let mut wrong = Vec::new();
    for (name, open, create) in NAMES {
        let found = guest.attempt(&units(name));
        if found != [*open, *create] {
            wrong.push(format!("{name:?}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(outside(&guest), before);
    // What was made lies where its name says.
    let mut made: Vec<String> = fs::read_dir(guest.base.join("drive/Dir"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    made.sort();
    assert_eq!(made, ["...", "COM1", "FILE~1.TXT", "File.txt", "File.txt ", "File.txt.", "NUL", "con.txt"]);
}

#[test]
fn names_that_are_too_long_or_no_text_are_refused() {
    let mut guest = Guest::boot("long");
    let prefix = units(r"\??\C:\");
    let cases: [Vec<u16>; 6] = [
        [&prefix[..], &units(&"x".repeat(256))].concat(),
        [&prefix[..], &units(&r"a\".repeat(16_000))].concat(),
        [&prefix[..], &units(&"ü".repeat(200))].concat(),
        [&prefix[..], &[0xD800]].concat(),
        [&prefix[..], &[0xDC00, u16::from(b'x')]].concat(),
        [&prefix[..], &[u16::from(b'x'); 30_000]].concat(),
    ];
    for name in cases {
        for status in guest.attempt(&name) {
            let refused = [Status::OBJECT_NAME_INVALID, Status::OBJECT_PATH_NOT_FOUND];
            assert!(refused.contains(&status), "{} units: {status}", name.len());
        }
    }
    // A length that is no whole number of characters, and one behind the memory.
    for (length, address) in [(7u16, guest.scratch + 0x1000), (0xFFFE, 0x7FF_FFFE_F000), (8, u64::MAX - 3), (8, 0)] {
        guest.attributes(&units(r"\??\C:\Dir\File.txt"));
        let string = [&length.to_le_bytes()[..], &length.to_le_bytes(), &[0; 4], &address.to_le_bytes()].concat();
        guest.put(0x100, &string);
        let (out, attributes, io_status) = (guest.scratch, guest.scratch + 0x200, guest.scratch + 0x10);
        let status = guest.call("NtOpenFile", &[out, READ, attributes, io_status, SHARE_ALL, 0]);
        assert!(status.is_error(), "{length} bytes at {address:#x}: {status}");
    }
}

#[test]
fn renames_and_links_lead_nowhere_outside() {
    let mut guest = Guest::boot("rename");
    let before = tree(&guest.base);
    let handle_name = units(r"\??\C:\Dir\File.txt");
    for target in [
        r"\??\C:\..\stolen",
        r"\??\C:\out\stolen",
        r"\??\C:\etc\stolen",
        r"\??\C:\gone",
        r"\??\UNC\server\share\stolen",
        r"\??\C:\Dir\File.txt:stream",
        r"..\stolen",
        r"..\..\stolen",
        r"/stolen",
        r"Dir/../../stolen",
    ] {
        for class in [RENAME_INFORMATION, LINK_INFORMATION] {
            assert_eq!(guest.create(&handle_name, READ | DELETE, OPEN), Status::SUCCESS);
            let handle = guest.handle();
            let name: Vec<u8> = units(target).iter().flat_map(|unit| unit.to_le_bytes()).collect();
            // Replace, root directory, length, name.
            let head = [1u64, 0].map(u64::to_le_bytes).concat();
            let information = [&head[..], &(name.len() as u32).to_le_bytes(), &name].concat();
            let at = guest.put(0x8000, &information);
            let io_status = guest.scratch + 0x10;
            let length = information.len() as u64;
            let status = guest.call("NtSetInformationFile", &[handle, io_status, at, length, class]);
            assert!(status.is_error(), "class {class}, {target}: {status}");
            guest.scratch_handle(handle);
            guest.close();
        }
    }
    assert_eq!(tree(&guest.base), before);
}

impl Guest {
    /// Puts a handle where [`Guest::close`] finds it.
    fn scratch_handle(&mut self, handle: u64) {
        self.put(0, &handle.to_le_bytes());
    }
}

#[test]
fn deleting_by_name_reaches_nothing_outside() {
    let mut guest = Guest::boot("delete");
    let before = tree(&guest.base);
    for name in [r"\??\C:\up", r"\??\C:\out\file", r"\??\C:\..\secret", r"\??\C:\gone", r"\??\C:\etc\passwd"] {
        let attributes = guest.attributes(&units(name));
        let status = guest.call("NtDeleteFile", &[attributes]);
        assert!(status.is_error(), "{name}: {status}");
        let (buffer, full) = (guest.scratch + 0x300, "NtQueryFullAttributesFile");
        assert!(guest.call("NtQueryAttributesFile", &[attributes, buffer]).is_error(), "{name}");
        assert!(guest.call(full, &[attributes, buffer]).is_error(), "{name}");
    }
    assert_eq!(tree(&guest.base), before);
}
