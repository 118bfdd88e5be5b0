use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::filesystem::{CreateResult, NewTimes};
use super::volume::{Found, MountAccess, Volume};
use super::*;
use crate::status::Status;

/// A folder tree of its own for each test.
struct Sandbox {
    base: PathBuf,
}

impl Sandbox {
    fn new(name: &str) -> Self {
        let base = std::env::temp_dir().join(format!("lstar-io-test-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        std::fs::create_dir_all(base.join("mount/Dir/Sub")).unwrap();
        std::fs::write(base.join("secret"), "secret").unwrap();
        std::fs::write(base.join("mount/Dir/File.txt"), "content").unwrap();
        std::fs::write(base.join("mount/top"), "top").unwrap();
        Self { base }
    }
    fn mount(&self) -> PathBuf {
        self.base.join("mount")
    }
    fn volume(&self, access: MountAccess) -> Volume {
        Volume::mount('c', &self.mount(), access, &std::env::temp_dir()).unwrap()
    }
    fn files(&self, access: MountAccess) -> FileSystem {
        FileSystem::new(vec![self.volume(access)])
    }
    fn link(&self, target: impl AsRef<Path>, name: &str) {
        std::os::unix::fs::symlink(target, self.mount().join(name)).unwrap();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.base);
    }
}

fn parts(path: &str) -> Vec<String> {
    NtPath::parse(path).unwrap().parts
}

fn request(path: &str, access: u32, disposition: u32) -> CreateRequest {
    CreateRequest {
        volume: 0,
        path: NtPath::parse(path).unwrap(),
        access,
        attributes: 0x80,
        share: 7,
        disposition,
        options: 0,
    }
}

const READ: u32 = 0x12_0089;
const WRITE: u32 = 0x12_0116;
const DELETE: u32 = 0x11_0000;
const OPEN: u32 = 1;
const CREATE: u32 = 2;

fn text(object: &FileObject) -> String {
    let mut text = String::new();
    object.host_file().unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn names_are_found_in_any_case() {
    let sandbox = Sandbox::new("case");
    for access in [MountAccess::ReadOnly, MountAccess::ReadWrite, MountAccess::CopyOnWrite] {
        let volume = sandbox.volume(access);
        let Ok(Found::File(node)) = volume.lookup(&parts("DIR\\file.TXT")) else { panic!("{access:?}") };
        assert_eq!(node.path(), ["Dir", "File.txt"]);
        assert!(matches!(volume.lookup(&parts("dir\\none")), Ok(Found::Missing(_, name)) if name == "none"));
        assert_eq!(volume.lookup(&parts("none\\x")).unwrap_err(), Status::OBJECT_PATH_NOT_FOUND);
        assert_eq!(volume.lookup(&parts("top\\x")).unwrap_err(), Status::OBJECT_PATH_NOT_FOUND);
        assert!(matches!(volume.lookup(&[]), Ok(Found::Directory(d)) if d.path.is_empty()));
    }
}

#[test]
fn links_may_not_leave_the_mount() {
    let sandbox = Sandbox::new("links");
    sandbox.link("../secret", "up");
    sandbox.link("Dir/../../secret", "up2");
    sandbox.link(sandbox.base.join("secret"), "absolute");
    sandbox.link("/etc/passwd", "etc");
    sandbox.link("..", "parent");
    sandbox.link("/", "slash");
    sandbox.link("loop", "loop");
    sandbox.link("/proc/self/root", "magic");
    sandbox.link(sandbox.base.join("mount-other"), "prefix");
    std::fs::create_dir(sandbox.base.join("mount-other")).unwrap();
    for access in [MountAccess::ReadOnly, MountAccess::ReadWrite, MountAccess::CopyOnWrite] {
        let volume = sandbox.volume(access);
        for path in [
            "up",
            "UP2",
            "absolute",
            "etc",
            "parent",
            "parent\\secret",
            "slash\\etc\\passwd",
            "loop",
            "magic\\etc",
            "prefix",
        ] {
            assert_eq!(volume.lookup(&parts(path)).unwrap_err(), Status::ACCESS_DENIED, "{access:?} {path}");
        }
        let names = volume.list(&volume.root()).unwrap();
        assert!(names.contains(&"up".to_owned()));
    }
    let files = sandbox.files(MountAccess::ReadOnly);
    assert!(files.stat_entry(0, &[], "up").is_none(), "an enumeration leaves it out");
}

#[test]
fn links_inside_the_mount_work() {
    let sandbox = Sandbox::new("inside");
    sandbox.link("Dir/Sub/../File.txt", "relative");
    sandbox.link(sandbox.mount().join("Dir"), "absolute");
    sandbox.link("absolute", "chain");
    sandbox.link("Dir/gone", "dangling");
    let volume = sandbox.volume(MountAccess::ReadOnly);
    for path in ["relative", "ABSOLUTE\\file.txt", "chain\\FILE.TXT"] {
        let Ok(Found::File(node)) = volume.lookup(&parts(path)) else { panic!("{path}") };
        assert_eq!(node.path(), ["Dir", "File.txt"]);
    }
    assert!(matches!(volume.lookup(&parts("dangling")), Ok(Found::Missing(d, _)) if d.path == ["Dir"]));
}

#[test]
fn special_files_and_hostile_components_are_refused() {
    let sandbox = Sandbox::new("special");
    let fifo = sandbox.mount().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let volume = sandbox.volume(MountAccess::ReadOnly);
    assert_eq!(volume.lookup(&parts("fifo")).unwrap_err(), Status::ACCESS_DENIED);
    // 255 UTF-16 units can be more bytes than the host's names have.
    assert_eq!(volume.lookup(&parts(&"ü".repeat(200))).unwrap_err(), Status::OBJECT_NAME_INVALID);
}

#[test]
fn read_only_volumes_stay_as_they_are() {
    let sandbox = Sandbox::new("ro");
    let mut files = sandbox.files(MountAccess::ReadOnly);
    for (path, access, disposition) in
        [("new", WRITE, CREATE), ("top", WRITE, OPEN), ("top", READ, 5), ("top", READ, 0), ("new", READ, 3)]
    {
        let status = files.create(&request(path, access, disposition)).unwrap_err();
        assert_eq!(status, Status::MEDIA_WRITE_PROTECTED, "{path} {disposition}");
    }
    let (mut object, _) = files.create(&request("top", READ | DELETE, OPEN)).unwrap();
    assert_eq!(files.set_disposition(&mut object, true, false, false), Err(Status::MEDIA_WRITE_PROTECTED));
    let to = NtPath::parse("other").unwrap();
    assert_eq!(files.rename(&mut object, &to, true), Err(Status::MEDIA_WRITE_PROTECTED));
    assert_eq!(
        files.set_basic(&object, NewTimes { last_access: 1, last_write: 1 }, 1),
        Err(Status::MEDIA_WRITE_PROTECTED)
    );
    assert_eq!(std::fs::read(sandbox.mount().join("top")).unwrap(), b"top");
}

#[test]
fn dispositions() {
    let sandbox = Sandbox::new("dispositions");
    let mut files = sandbox.files(MountAccess::ReadWrite);
    let mut run = |path: &str, disposition| {
        let (object, result) = files.create(&request(path, READ | WRITE, disposition))?;
        let size = files.facts(&object)?.stat.unwrap().size;
        files.close(object);
        Ok((result, size))
    };
    assert_eq!(run("none", OPEN), Err(Status::OBJECT_NAME_NOT_FOUND));
    assert_eq!(run("none", 4), Err(Status::OBJECT_NAME_NOT_FOUND));
    assert_eq!(run("a", CREATE), Ok((CreateResult::Created, 0)));
    assert_eq!(run("A", CREATE), Err(Status::OBJECT_NAME_COLLISION));
    assert_eq!(run("top", 3), Ok((CreateResult::Opened, 3)));
    assert_eq!(run("top", 4), Ok((CreateResult::Overwritten, 0)));
    assert_eq!(run("b", 5), Ok((CreateResult::Created, 0)));
    assert_eq!(run("dir\\FILE.txt", 0), Ok((CreateResult::Superseded, 0)));
    assert_eq!(run("c", 6), Err(Status::INVALID_PARAMETER));
    assert_eq!(run("dir", 5), Err(Status::OBJECT_NAME_COLLISION));
}

#[test]
fn options_are_checked() {
    let sandbox = Sandbox::new("options");
    let mut files = sandbox.files(MountAccess::ReadWrite);
    let mut run = |path: &str, access, options| {
        files.create(&CreateRequest { options, ..request(path, access, OPEN) }).map(|(object, _)| files.close(object))
    };
    assert_eq!(run("dir", READ, 0x40), Err(Status::FILE_IS_A_DIRECTORY));
    assert_eq!(run("top", READ, 1), Err(Status::NOT_A_DIRECTORY));
    assert_eq!(run("top\\", READ, 0), Err(Status::OBJECT_NAME_INVALID));
    assert_eq!(run("top", READ, 0x41), Err(Status::INVALID_PARAMETER));
    assert_eq!(run("top", 1, 0x20), Err(Status::INVALID_PARAMETER), "synchronous I/O needs SYNCHRONIZE");
    assert_eq!(run("top", READ, 0x1000), Err(Status::INVALID_PARAMETER), "deletion needs DELETE");
    assert_eq!(run("dir", READ, 0x1001), Err(Status::INVALID_PARAMETER), "deletion needs DELETE");
    assert_eq!(run("dir\\", READ, 0x21), Ok(()));
}

#[test]
fn sharing_is_mutual() {
    let sandbox = Sandbox::new("sharing");
    let mut files = sandbox.files(MountAccess::ReadWrite);
    let (first, _) = files.create(&CreateRequest { share: 1, ..request("top", READ, OPEN) }).unwrap();
    let mut run = |access, share| {
        files.create(&CreateRequest { share, ..request("TOP", access, OPEN) }).map(|(object, _)| files.close(object))
    };
    assert_eq!(run(READ, 7), Ok(()));
    assert_eq!(run(WRITE, 7), Err(Status::SHARING_VIOLATION));
    assert_eq!(run(READ, 6), Err(Status::SHARING_VIOLATION));
    assert_eq!(run(DELETE, 7), Err(Status::SHARING_VIOLATION));
    assert_eq!(run(0x10_0080, 0), Ok(()), "attributes alone do not share");
    files.close(first);
    let (alone, _) = files.create(&CreateRequest { share: 0, ..request("top", WRITE, OPEN) }).unwrap();
    files.close(alone);
}

#[test]
fn deletion_waits_for_the_last_close() {
    let sandbox = Sandbox::new("delete");
    let mut files = sandbox.files(MountAccess::ReadWrite);
    let path = sandbox.mount().join("top");
    let (mut first, _) = files.create(&request("top", READ | DELETE, OPEN)).unwrap();
    let (second, _) = files.create(&request("top", READ, OPEN)).unwrap();
    files.set_disposition(&mut first, true, false, false).unwrap();
    assert!(files.facts(&second).unwrap().delete_pending);
    assert_eq!(files.create(&request("top", READ, OPEN)).unwrap_err(), Status::DELETE_PENDING);
    files.close(first);
    assert!(path.exists());
    files.close(second);
    assert!(!path.exists());

    let delete_on_close = CreateRequest { options: 0x1000, ..request("temporary", READ | DELETE, CREATE) };
    let (object, _) = files.create(&delete_on_close).unwrap();
    files.close(object);
    assert!(!sandbox.mount().join("temporary").exists());

    let (mut directory, _) = files.create(&request("Dir", READ | DELETE, OPEN)).unwrap();
    assert_eq!(files.set_disposition(&mut directory, true, false, false), Err(Status::DIRECTORY_NOT_EMPTY));
    files.close(directory);
    let (mut root, _) = files.create(&request("", READ | DELETE, OPEN)).unwrap();
    assert_eq!(files.set_disposition(&mut root, true, false, false), Err(Status::CANNOT_DELETE));
}

#[test]
fn posix_deletion_frees_the_name() {
    let sandbox = Sandbox::new("posix");
    let mut files = sandbox.files(MountAccess::ReadWrite);
    let (mut first, _) = files.create(&request("top", READ | DELETE, OPEN)).unwrap();
    let (second, _) = files.create(&request("top", READ, OPEN)).unwrap();
    files.set_disposition(&mut first, true, true, false).unwrap();
    files.close(first);
    let (again, result) = files.create(&request("top", READ | WRITE, CREATE)).unwrap();
    assert_eq!(result, CreateResult::Created);
    assert_eq!(text(&second), "top");
    files.close(second);
    files.close(again);
    assert!(sandbox.mount().join("top").exists(), "closing the old file spares the new one");
}

#[test]
fn renames_move_files_and_refuse_what_nt_refuses() {
    let sandbox = Sandbox::new("rename");
    for access in [MountAccess::CopyOnWrite, MountAccess::ReadWrite] {
        let mut files = sandbox.files(access);
        let to = |path: &str| NtPath::parse(path).unwrap();
        let (mut object, _) = files.create(&request("top", READ | DELETE, OPEN)).unwrap();
        assert_eq!(files.rename(&mut object, &to("dir\\file.txt"), false), Err(Status::OBJECT_NAME_COLLISION));
        assert_eq!(files.rename(&mut object, &to("dir\\sub"), true), Err(Status::ACCESS_DENIED));
        assert_eq!(files.rename(&mut object, &to("no\\x"), true), Err(Status::OBJECT_PATH_NOT_FOUND));
        files.rename(&mut object, &to("TOP"), false).unwrap();
        assert_eq!(object.name, "\\TOP");
        files.rename(&mut object, &to("dir\\FILE.txt"), true).unwrap();
        assert_eq!(object.name, "\\Dir\\FILE.txt");
        files.close(object);
        assert!(files.stat_path(0, &to("top")).is_err());
        let (moved, _) = files.create(&request("dir\\file.txt", READ, OPEN)).unwrap();
        assert_eq!(text(&moved), "top");
        let (mut directory, _) = files.create(&request("dir", READ | DELETE, OPEN)).unwrap();
        assert_eq!(
            files.rename(&mut directory, &to("moved"), false),
            Err(Status::ACCESS_DENIED),
            "a file is open in it"
        );
        files.close(moved);
        assert_eq!(files.rename(&mut directory, &to("dir\\sub\\x"), false), Err(Status::SHARING_VIOLATION));
        files.rename(&mut directory, &to("moved"), false).unwrap();
        files.close(directory);
        assert!(files.stat_path(0, &to("dir")).is_err());
        assert!(files.stat_path(0, &to("moved\\sub")).is_ok());
        assert_eq!(files.stat_path(0, &to("moved\\file.txt")).unwrap().size, 3);
    }
}

#[test]
fn copy_on_write_leaves_the_folder_alone() {
    let sandbox = Sandbox::new("cow");
    let mut files = sandbox.files(MountAccess::CopyOnWrite);
    let (object, _) = files.create(&request("dir\\file.txt", READ | WRITE, OPEN)).unwrap();
    object.host_file().unwrap().write_all(b"CON").unwrap();
    files.close(object);
    let (object, _) = files.create(&request("DIR\\FILE.TXT", READ, OPEN)).unwrap();
    assert_eq!(text(&object), "CONtent");
    files.close(object);
    let (new, _) = files.create(&request("dir\\Sub\\new", READ | WRITE, CREATE)).unwrap();
    files.close(new);
    let (mut gone, _) = files.create(&request("top", READ | DELETE, OPEN)).unwrap();
    files.set_disposition(&mut gone, true, false, false).unwrap();
    files.close(gone);
    assert_eq!(files.create(&request("top", READ, OPEN)).unwrap_err(), Status::OBJECT_NAME_NOT_FOUND);
    let volume = &files.volumes()[0];
    assert_eq!(volume.list(&volume.root()).unwrap(), ["Dir"]);
    let Ok(Found::Directory(sub)) = volume.lookup(&parts("dir\\sub")) else { panic!() };
    assert_eq!(volume.list(&sub).unwrap(), ["new"]);
    // The mounted folder is as it was.
    assert_eq!(std::fs::read(sandbox.mount().join("Dir/File.txt")).unwrap(), b"content");
    assert!(sandbox.mount().join("top").exists() && !sandbox.mount().join("Dir/Sub/new").exists());
    // A new file may take a deleted one's name, and a new directory does not show the old one's files.
    let (again, _) = files.create(&request("top", READ | WRITE, CREATE)).unwrap();
    assert_eq!(files.facts(&again).unwrap().stat.unwrap().size, 0);
}

#[test]
fn deleted_directories_do_not_shine_through() {
    let sandbox = Sandbox::new("opaque");
    let mut files = sandbox.files(MountAccess::CopyOnWrite);
    for path in ["dir\\file.txt", "dir\\sub", "dir"] {
        let (mut object, _) = files.create(&request(path, READ | DELETE, OPEN)).unwrap();
        files.set_disposition(&mut object, true, false, false).unwrap();
        files.close(object);
    }
    let make = CreateRequest { options: 1, ..request("dir", READ, CREATE) };
    let (mut directory, _) = files.create(&make).unwrap();
    files.begin_enumeration(&mut directory, None).unwrap();
    let FileKind::Directory { enumeration: Some(enumeration), .. } = &directory.kind else { panic!() };
    assert_eq!(enumeration.names, [".", ".."]);
    assert!(sandbox.mount().join("Dir/File.txt").exists());
}

#[test]
fn enumerations_filter_and_restart() {
    let sandbox = Sandbox::new("enumerate");
    let files = &mut sandbox.files(MountAccess::ReadOnly);
    let (mut directory, _) = files.create(&request("dir", READ, OPEN)).unwrap();
    let names = |object: &FileObject| match &object.kind {
        FileKind::Directory { enumeration: Some(e), .. } => e.names.clone(),
        _ => Vec::new(),
    };
    files.begin_enumeration(&mut directory, None).unwrap();
    assert_eq!(names(&directory), [".", "..", "File.txt", "Sub"]);
    files.begin_enumeration(&mut directory, Some("<.TXT")).unwrap();
    files.begin_enumeration(&mut directory, None).unwrap();
    assert_eq!(names(&directory), ["File.txt"], "the pattern is kept");
    assert_eq!(files.stat_entry(0, &["Dir".to_owned()], "File.txt").unwrap().size, 7);
    let (mut file, _) = files.create(&request("top", READ, OPEN)).unwrap();
    assert_eq!(files.begin_enumeration(&mut file, None), Err(Status::INVALID_PARAMETER));
}

#[test]
fn attributes_and_times_are_kept() {
    let sandbox = Sandbox::new("attributes");
    let mut files = sandbox.files(MountAccess::ReadWrite);
    let (object, _) = files.create(&request("top", READ | WRITE, OPEN)).unwrap();
    let time = 132_000_000_000_000_000;
    files.set_basic(&object, NewTimes { last_access: 0, last_write: time }, 0x1 | 0x2 | 0x20).unwrap();
    let stat = files.facts(&object).unwrap().stat.unwrap();
    assert_eq!((stat.attributes, stat.last_write), (0x23, time));
    assert_eq!(files.create(&request("top", WRITE, OPEN)).unwrap_err(), Status::ACCESS_DENIED);
    files.set_basic(&object, NewTimes::default(), 0x80).unwrap();
    assert_eq!(files.facts(&object).unwrap().stat.unwrap().attributes, 0x20);
}

#[test]
fn locks_exclude_others() {
    let sandbox = Sandbox::new("locks");
    let mut files = sandbox.files(MountAccess::ReadWrite);
    let (a, _) = files.create(&request("top", READ | WRITE, OPEN)).unwrap();
    let (b, _) = files.create(&request("top", READ | WRITE, OPEN)).unwrap();
    files.lock(&a, 0, 10, true).unwrap();
    assert_eq!(files.lock(&b, 9, 1, false), Err(Status::LOCK_NOT_GRANTED));
    assert_eq!(files.lock(&b, 10, u64::MAX, false), Err(Status::INVALID_LOCK_RANGE));
    files.lock(&b, 10, u64::MAX - 9, false).unwrap();
    assert_eq!(files.lock(&a, u64::MAX, 1, true), Err(Status::LOCK_NOT_GRANTED), "up to the last byte");
    // A shared lock may lie over the owner's exclusive one, which is then the first to be unlocked.
    files.lock(&a, 0, 10, false).unwrap();
    files.unlock(&a, 0, 10).unwrap();
    files.lock(&b, 0, 10, false).unwrap();
    files.unlock(&b, 0, 10).unwrap();
    files.unlock(&a, 0, 10).unwrap();
    files.lock(&a, 0, 10, true).unwrap();
    assert_eq!(files.check_locks(&b, 5, 1, false), Err(Status::FILE_LOCK_CONFLICT));
    assert_eq!(files.check_locks(&a, 5, 1, true), Ok(()));
    assert_eq!(files.check_locks(&a, 20, 1, false), Ok(()));
    assert_eq!(files.check_locks(&a, 20, 1, true), Err(Status::FILE_LOCK_CONFLICT));
    assert_eq!(files.unlock(&b, 0, 10), Err(Status::RANGE_NOT_LOCKED));
    files.close(a);
    assert_eq!(files.check_locks(&b, 5, 1, true), Ok(()));
}

#[test]
fn a_file_is_already_linked_to_its_own_name() {
    let sandbox = Sandbox::new("self-link");
    let mut files = sandbox.files(MountAccess::ReadWrite);
    let (object, _) = files.create(&request("top", READ | WRITE, OPEN)).unwrap();
    let name = crate::io::NtPath::parse("TOP").unwrap();
    assert_eq!(files.link(&object, &name, false), Err(Status::OBJECT_NAME_COLLISION));
    assert_eq!(files.link(&object, &name, true), Ok(()));
}

#[test]
fn captured_hosts_are_deterministic() {
    let (mut a, mut b) = (super::host::CapturedHost::default(), super::host::CapturedHost::default());
    let (mut x, mut y) = ([0; 20], [0; 20]);
    a.entropy(&mut x);
    b.entropy(&mut y);
    assert!(x == y && x != [0; 20]);
    a.write(StdStream::Error, b"e").unwrap();
    a.write(StdStream::Output, b"o").unwrap();
    assert_eq!((a.output.as_slice(), a.error.as_slice()), (&b"o"[..], &b"e"[..]));
}

#[test]
fn times_of_directories_are_set() {
    let sandbox = Sandbox::new("directory-times");
    let times = NewTimes { last_access: 0, last_write: host::UNIX_EPOCH + 1_700_000_000 * 10_000_000 };
    for access in [MountAccess::ReadWrite, MountAccess::CopyOnWrite] {
        let mut files = sandbox.files(access);
        let options = filesystem::options::DIRECTORY_FILE;
        let (object, _) = files.create(&CreateRequest { options, ..request("Dir\\Sub", READ | 0x100, 1) }).unwrap();
        files.set_basic(&object, times, 0x11).unwrap();
        let stat = files.facts(&object).unwrap().stat.unwrap();
        assert_eq!((stat.last_write, stat.attributes), (times.last_write, 0x11), "{access:?}");
        files.close(object);
    }
}

#[test]
fn files_grow_no_further_than_allowed() {
    let sandbox = Sandbox::new("quota");
    let mut files = sandbox.files(MountAccess::CopyOnWrite);
    files.limit(10);
    assert_eq!(files.resize(0, 11), Err(Status::DISK_FULL));
    // Writing to a file of the lower layer copies it first: 7 bytes.
    let (object, _) = files.create(&request("Dir\\File.txt", READ | 2, 1)).unwrap();
    assert_eq!(files.resize(7, 11), Err(Status::DISK_FULL));
    files.resize(7, 10).unwrap();
    files.resize(10, 4).unwrap();
    files.resize(4, 8).unwrap();
    assert_eq!(files.volume_facts(&object).unwrap().unwrap().space.1, 2);
    files.close(object);
}
