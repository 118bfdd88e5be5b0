//! The file system: opening, sharing, locking, renaming and deleting files of the mounted volumes.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::changes::{Action, Changes, filter};
use super::directory::{Enumeration, matches};
use super::file::{self, FileKind, FileObject};
use super::info::{ATTRIBUTE_READONLY, ATTRIBUTES_KEPT, FileStat, OpenFacts, VolumeFacts};
use super::mapped::{MappedFiles, MappedUse, MappingKind};
use super::path::{NtPath, fold};
use super::requests::RequestId;
use super::status_of_io;
use super::volume::{Found, Quota, Volume};
use crate::status::Status;

/// CreateOptions.
pub mod options {
    /// Only a directory will do.
    pub const DIRECTORY_FILE: u32 = 0x1;
    /// Only a non-directory will do.
    pub const NON_DIRECTORY_FILE: u32 = 0x40;
    /// Deleted when closed.
    pub const DELETE_ON_CLOSE: u32 = 0x1000;
    /// The name is a file identifier.
    pub const OPEN_BY_FILE_ID: u32 = 0x2000;
    /// All bits with a meaning.
    pub const VALID: u32 = 0x00FF_FFFF;
}

/// Arguments of NtCreateFile for a volume.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// Index of the volume.
    pub volume: usize,
    /// Path on it.
    pub path: NtPath,
    /// Access asked for, generic bits already mapped.
    pub access: u32,
    /// FileAttributes of a new file.
    pub attributes: u32,
    /// ShareAccess.
    pub share: u32,
    /// CreateDisposition, 0 to 5.
    pub disposition: u32,
    /// CreateOptions.
    pub options: u32,
}

/// IO_STATUS_BLOCK.Information of NtCreateFile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateResult {
    /// FILE_SUPERSEDED.
    Superseded = 0,
    /// FILE_OPENED.
    Opened = 1,
    /// FILE_CREATED.
    Created = 2,
    /// FILE_OVERWRITTEN.
    Overwritten = 3,
}

/// A byte-range lock.
#[derive(Clone, Copy, Debug)]
struct Lock {
    opening: u64,
    start: u64,
    /// The first byte behind it, which can be 2^64.
    end: u128,
    exclusive: bool,
}

/// Everyone who has one file open.
#[derive(Debug)]
struct Openings {
    volume: usize,
    path: Vec<String>,
    /// Opening number, access, share access.
    by: Vec<(u64, u32, u32)>,
    locks: Vec<Lock>,
    delete_pending: bool,
    /// The name is gone already; what is open lives on without one.
    unlinked: bool,
}

/// The mounted volumes and what is open on them.
#[derive(Debug, Default)]
pub struct FileSystem {
    volumes: Vec<Volume>,
    open: BTreeMap<u64, Openings>,
    by_path: HashMap<(usize, String), u64>,
    next: u64,
    quota: Rc<Quota>,
    /// Watched directories.
    pub changes: Changes,
    /// Files that sections show.
    mapped: MappedFiles,
}

/// Times to set; zero keeps, -1 keeps too (it would stop the system's own updates).
#[derive(Clone, Copy, Debug, Default)]
pub struct NewTimes {
    /// LastAccessTime.
    pub last_access: i64,
    /// LastWriteTime.
    pub last_write: i64,
}

impl NewTimes {
    fn is_change(self) -> bool {
        self.last_access > 0 || self.last_write > 0
    }

    fn for_host(self) -> Result<std::fs::FileTimes, Status> {
        let mut set = std::fs::FileTimes::new();
        if self.last_access > 0 {
            set = set.set_accessed(host_time(self.last_access)?);
        }
        if self.last_write > 0 {
            set = set.set_modified(host_time(self.last_write)?);
        }
        Ok(set)
    }
}

impl FileSystem {
    /// A file system of these volumes.
    #[must_use]
    pub fn new(volumes: Vec<Volume>) -> Self {
        Self { volumes, ..Self::default() }
    }

    /// Lets all volumes together grow by at most `bytes`.
    pub fn limit(&mut self, bytes: u64) {
        self.quota = Rc::new(Quota::new(bytes));
        for volume in &mut self.volumes {
            volume.set_quota(Rc::clone(&self.quota));
        }
    }

    /// A file is about to change its size. STATUS_DISK_FULL where the guest may not have that much.
    pub fn resize(&self, from: u64, to: u64) -> Result<(), Status> {
        self.quota.resize(from, to)
    }

    /// Mounted volumes.
    #[must_use]
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    fn volume(&self, index: usize) -> Result<&Volume, Status> {
        self.volumes.get(index).ok_or(Status::NO_SUCH_DEVICE)
    }

    /// NT path of a volume's device.
    #[must_use]
    pub fn device_name(volume: usize) -> String {
        format!("\\Device\\HarddiskVolume{}", volume + 1)
    }

    /// NtCreateFile.
    pub fn create(&mut self, request: &CreateRequest) -> Result<(FileObject, CreateResult), Status> {
        let CreateRequest { volume, access, options, disposition, .. } = *request;
        if disposition > 5
            || options & !options::VALID != 0
            || options & options::DIRECTORY_FILE != 0 && options & options::NON_DIRECTORY_FILE != 0
            || options & file::SYNCHRONOUS_IO != 0 && access & file::SYNCHRONIZE == 0
            || options & file::SYNCHRONOUS_IO == file::SYNCHRONOUS_IO
            || options & options::DIRECTORY_FILE != 0 && matches!(disposition, 0 | 4 | 5)
            || options & options::DELETE_ON_CLOSE != 0 && access & file::DELETE == 0
        {
            return Err(Status::INVALID_PARAMETER);
        }
        match self.volume(volume)?.lookup(&request.path.parts)? {
            Found::Missing(parent, name) => {
                // OPEN and OVERWRITE want an existing file.
                if matches!(disposition, 1 | 4) {
                    return Err(Status::OBJECT_NAME_NOT_FOUND);
                }
                let directory = options & options::DIRECTORY_FILE != 0;
                if request.path.directory && !directory {
                    return Err(Status::OBJECT_NAME_INVALID);
                }
                self.create_new(request, &parent, &name, directory)
            }
            found => self.open_existing(request, found),
        }
    }

    fn create_new(
        &mut self,
        request: &CreateRequest,
        parent: &super::volume::Directory,
        name: &str,
        directory: bool,
    ) -> Result<(FileObject, CreateResult), Status> {
        let volume = self.volume(request.volume)?;
        let kind = if directory {
            let directory = volume.create_directory(parent, name)?;
            FileKind::Directory { volume: request.volume, directory, enumeration: None }
        } else {
            let (file, node) = volume.create_file(parent, name)?;
            if request.attributes & ATTRIBUTE_READONLY != 0 {
                set_read_only(&file, true)?;
            }
            FileKind::Disk { volume: request.volume, path: node.path(), file }
        };
        let object = self.register(request, kind)?;
        self.report_name(&object, Action::Added);
        if let (Some((index, path)), kept) = (object.location(), request.attributes & ATTRIBUTES_KEPT)
            && kept != 0
            && let Some(volume) = self.volumes.get_mut(index)
        {
            volume.set_extra_attributes(path, kept);
        }
        Ok((object, CreateResult::Created))
    }

    fn open_existing(&mut self, request: &CreateRequest, found: Found) -> Result<(FileObject, CreateResult), Status> {
        let disposition = request.disposition;
        if disposition == 2 {
            return Err(Status::OBJECT_NAME_COLLISION);
        }
        let volume = self.volume(request.volume)?;
        let overwrite = matches!(disposition, 0 | 4 | 5);
        let writes = file::WRITE_DATA | file::APPEND_DATA;
        match found {
            Found::Directory(directory) => {
                if request.options & options::NON_DIRECTORY_FILE != 0 {
                    return Err(Status::FILE_IS_A_DIRECTORY);
                }
                if overwrite {
                    return Err(Status::OBJECT_NAME_COLLISION);
                }
                if request.options & options::DELETE_ON_CLOSE != 0 {
                    volume.is_writable().then_some(()).ok_or(Status::MEDIA_WRITE_PROTECTED)?;
                }
                self.check_sharing(request, &directory.path)?;
                let kind = FileKind::Directory { volume: request.volume, directory, enumeration: None };
                Ok((self.register(request, kind)?, CreateResult::Opened))
            }
            Found::File(mut node) => {
                if request.path.directory {
                    return Err(Status::OBJECT_NAME_INVALID);
                }
                if request.options & options::DIRECTORY_FILE != 0 {
                    return Err(Status::NOT_A_DIRECTORY);
                }
                let stat = FileStat::new(&volume.stat(&Found::File(node.clone()))?, 0);
                let wants_write = overwrite || request.access & writes != 0;
                if wants_write && stat.attributes & ATTRIBUTE_READONLY != 0 {
                    return Err(Status::ACCESS_DENIED);
                }
                if wants_write || request.access & file::DELETE != 0 && request.options & options::DELETE_ON_CLOSE != 0
                {
                    volume.is_writable().then_some(()).ok_or(Status::MEDIA_WRITE_PROTECTED)?;
                }
                if request.options & options::DELETE_ON_CLOSE != 0 && stat.attributes & ATTRIBUTE_READONLY != 0 {
                    return Err(Status::CANNOT_DELETE);
                }
                self.check_mapping(request, &node.path(), overwrite)?;
                self.check_sharing(request, &node.path())?;
                if overwrite && self.mapped.is_mapped(&Self::key(request.volume, &node.path())) {
                    return Err(Status::USER_MAPPED_FILE);
                }
                let file = self.volume(request.volume)?.open_file(&mut node, wants_write)?;
                if overwrite {
                    self.resize(stat.size, 0)?;
                    file.set_len(0).map_err(|error| status_of_io(&error))?;
                }
                let kind = FileKind::Disk { volume: request.volume, path: node.path(), file };
                let result = match disposition {
                    0 => CreateResult::Superseded,
                    4 | 5 => CreateResult::Overwritten,
                    _ => CreateResult::Opened,
                };
                let object = self.register(request, kind)?;
                if overwrite {
                    self.report_modified(&object, filter::ATTRIBUTES | filter::SIZE | filter::LAST_WRITE);
                }
                Ok((object, result))
            }
            Found::Missing(..) => Err(Status::OBJECT_NAME_NOT_FOUND),
        }
    }

    fn key(volume: usize, path: &[String]) -> (usize, String) {
        (volume, fold(&path.join("\\")))
    }

    /// Everyone must tolerate what everyone else may do.
    fn check_sharing(&self, request: &CreateRequest, path: &[String]) -> Result<(), Status> {
        let Some(openings) = self.by_path.get(&Self::key(request.volume, path)).and_then(|id| self.open.get(id)) else {
            return Ok(());
        };
        if openings.delete_pending {
            return Err(Status::DELETE_PENDING);
        }
        let wanted = share_bits(request.access);
        let conflict = openings.by.iter().any(|&(_, access, share)| {
            let held = share_bits(access);
            // An opening for attributes alone takes no part in sharing.
            wanted != 0 && held != 0 && (wanted & !share != 0 || held & !request.share != 0)
        });
        if conflict { Err(Status::SHARING_VIOLATION) } else { Ok(()) }
    }

    /// A section that shows the file counts like an opening that nobody closes.
    fn check_mapping(&self, request: &CreateRequest, path: &[String], overwrite: bool) -> Result<(), Status> {
        const SHARE_WRITE: u32 = 2;
        let key = Self::key(request.volume, path);
        let image = self.mapped.has_image(&key);
        let writes = overwrite || request.access & file::WRITE_DATA != 0;
        if self.mapped.is_written(&key) && request.share & SHARE_WRITE == 0 || image && writes {
            return Err(Status::SHARING_VIOLATION);
        }
        if image && request.options & options::DELETE_ON_CLOSE != 0 {
            return Err(Status::CANNOT_DELETE);
        }
        Ok(())
    }

    fn register(&mut self, request: &CreateRequest, kind: FileKind) -> Result<FileObject, Status> {
        let device = Self::device_name(request.volume);
        let mut object = FileObject::device(kind, &device, request.access, request.options);
        let (volume, path) = object.location().ok_or(Status::NO_SUCH_DEVICE)?;
        let path = path.to_vec();
        object.name = NtPath::display(&path);
        object.delete_on_close = request.options & options::DELETE_ON_CLOSE != 0;
        self.next += 1;
        let opening = self.next;
        let id = *self.by_path.entry(Self::key(volume, &path)).or_insert(opening);
        let openings = self.open.entry(id).or_insert_with(|| Openings {
            volume,
            path,
            by: Vec::new(),
            locks: Vec::new(),
            delete_pending: false,
            unlinked: false,
        });
        openings.by.push((opening, request.access, request.share));
        object.opening = Some((id, opening));
        Ok(object)
    }

    /// The last handle to a file object is gone.
    pub fn close(&mut self, object: FileObject) {
        let Some((id, opening)) = object.opening else { return };
        let Some(openings) = self.open.get_mut(&id) else { return };
        openings.by.retain(|&(number, ..)| number != opening);
        openings.locks.retain(|lock| lock.opening != opening);
        openings.delete_pending |= object.delete_on_close;
        let directory = matches!(object.kind, FileKind::Directory { .. });
        // The host's file must be closed before its name goes, as everything else sees it.
        drop(object);
        if !openings.by.is_empty() {
            return;
        }
        let Some(openings) = self.open.remove(&id) else { return };
        if openings.unlinked {
            return;
        }
        self.by_path.remove(&Self::key(openings.volume, &openings.path));
        if openings.delete_pending
            && let Some(volume) = self.volumes.get_mut(openings.volume)
        {
            // A directory that was filled meanwhile stays, as on NTFS; closing cannot fail.
            if volume.delete(&openings.path).is_ok() {
                self.report(openings.volume, directory, &[(Action::Removed, &openings.path)]);
            }
        }
    }

    /// Names of files or directories came or went.
    fn report(&mut self, volume: usize, directory: bool, what: &[(Action, &[String])]) {
        let changed = if directory { filter::DIRECTORY_NAME } else { filter::FILE_NAME };
        self.changes.report(volume, changed, what);
    }

    fn report_name(&mut self, object: &FileObject, action: Action) {
        if let (true, Some((volume, path))) = (self.changes.is_watching(), object.location()) {
            let directory = matches!(object.kind, FileKind::Directory { .. });
            self.report(volume, directory, &[(action, path)]);
        }
    }

    /// Tells those who watch its directory that a file has changed; `changed` has bits of [`filter`].
    pub fn report_modified(&mut self, object: &FileObject, changed: u32) {
        if let (true, Some((volume, path))) = (self.changes.is_watching(), object.location()) {
            self.changes.report(volume, changed, &[(Action::Modified, path)]);
        }
    }

    /// A request for what changes in an open directory.
    pub fn watch(
        &mut self,
        object: &FileObject,
        wanted: u32,
        subtree: bool,
        request: RequestId,
        length: usize,
    ) -> Result<(), Status> {
        let FileKind::Directory { volume, directory, .. } = &object.kind else {
            return Err(Status::INVALID_PARAMETER);
        };
        let openings = self.openings(object).ok_or(Status::INVALID_HANDLE)?;
        if openings.delete_pending {
            return Err(Status::DELETE_PENDING);
        }
        let (_, opening) = object.opening.ok_or(Status::INVALID_HANDLE)?;
        self.changes.watch(opening, *volume, &directory.path, wanted, subtree, request, length);
        Ok(())
    }

    /// The last handle to a file object is gone, although the object may live on.
    pub fn cleanup(&mut self, object: &FileObject) {
        if let (true, Some((_, opening))) = (self.changes.is_watching(), object.opening) {
            self.changes.close(opening, Status::NOTIFY_CLEANUP);
        }
    }

    fn openings(&self, object: &FileObject) -> Option<&Openings> {
        self.open.get(&object.opening?.0)
    }

    fn openings_mut(&mut self, object: &FileObject) -> Result<&mut Openings, Status> {
        let (id, _) = object.opening.ok_or(Status::INVALID_DEVICE_REQUEST)?;
        self.open.get_mut(&id).ok_or(Status::INVALID_HANDLE)
    }

    /// Facts for NtQueryInformationFile.
    pub fn facts<'a>(&self, object: &'a FileObject) -> Result<OpenFacts<'a>, Status> {
        let (stat, serial) = match &object.kind {
            FileKind::Disk { volume, path, file } => {
                let volume = self.volume(*volume)?;
                let stat = rustix::fs::fstat(file).map_err(super::status_of)?;
                (Some(FileStat::new(&stat, volume.extra_attributes(path))), volume.serial)
            }
            FileKind::Directory { volume, directory, .. } => {
                let volume = self.volume(*volume)?;
                let stat = volume.stat(&Found::Directory(directory.clone()))?;
                (Some(FileStat::new(&stat, volume.extra_attributes(&directory.path))), volume.serial)
            }
            FileKind::Redirected(file) => {
                (Some(FileStat::new(&rustix::fs::fstat(file).map_err(super::status_of)?, 0)), 0)
            }
            _ => (None, 0),
        };
        Ok(OpenFacts {
            stat,
            access: object.access,
            options: object.options,
            position: object.current_position(),
            name: &object.name,
            delete_pending: self.openings(object).is_some_and(|o| o.delete_pending),
            serial,
        })
    }

    /// Facts about a file by its path (NtQueryAttributesFile).
    pub fn stat_path(&self, volume: usize, path: &NtPath) -> Result<FileStat, Status> {
        let volume = self.volume(volume)?;
        let found = volume.lookup(&path.parts)?;
        let real = match &found {
            Found::Missing(..) => return Err(Status::OBJECT_NAME_NOT_FOUND),
            Found::File(_) if path.directory => return Err(Status::OBJECT_NAME_INVALID),
            Found::File(node) => node.path(),
            Found::Directory(directory) => directory.path.clone(),
        };
        Ok(FileStat::new(&volume.stat(&found)?, volume.extra_attributes(&real)))
    }

    /// Facts about the volume a file is on.
    pub fn volume_facts(&self, object: &FileObject) -> Result<Option<VolumeFacts>, Status> {
        let index = match &object.kind {
            FileKind::Volume(index) => *index,
            // The volume of a redirected stream is none of the guest's: it tells no more than what must be told.
            FileKind::Redirected(_) => {
                let space = (self.quota.left(), self.quota.left());
                return Ok(Some(VolumeFacts { serial: 0, space, read_only: false }));
            }
            _ => match object.location() {
                Some((index, _)) => index,
                None => return Ok(None),
            },
        };
        let volume = self.volume(index)?;
        let (space, read_only) = (volume.space()?, !volume.is_writable());
        Ok(Some(VolumeFacts { serial: volume.serial, space, read_only }))
    }

    /// Starts or restarts an enumeration; `pattern` of an earlier one is kept when none is given.
    pub fn begin_enumeration(&self, object: &mut FileObject, pattern: Option<&str>) -> Result<(), Status> {
        let FileKind::Directory { volume, directory, enumeration } = &mut object.kind else {
            return Err(Status::INVALID_PARAMETER);
        };
        let names = self.volume(*volume)?.list(directory)?;
        let pattern = match (pattern, &enumeration) {
            (Some(pattern), _) if !pattern.is_empty() => pattern.to_owned(),
            (_, Some(earlier)) => earlier.pattern.clone(),
            _ => "*".to_owned(),
        };
        let dots = if directory.path.is_empty() { &[][..] } else { &[".", ".."] };
        let names =
            dots.iter().map(|&dot| dot.to_owned()).chain(names).filter(|name| matches(&pattern, name)).collect();
        *enumeration = Some(Enumeration { pattern, names, next: 0 });
        Ok(())
    }

    /// Facts about an entry of an open directory; `None`: it is gone, or a link that leads out.
    #[must_use]
    pub fn stat_entry(&self, volume: usize, directory: &[String], name: &str) -> Option<FileStat> {
        let mut parts = directory.to_vec();
        match name {
            "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name.to_owned()),
        }
        self.stat_path(volume, &NtPath { parts, directory: false }).ok()
    }

    /// FileBasicInformation: times and attributes.
    pub fn set_basic(&mut self, object: &FileObject, times: NewTimes, attributes: u32) -> Result<(), Status> {
        self.change_basic(object, times, attributes)?;
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let changed = bit(attributes != 0, filter::ATTRIBUTES)
            | bit(times.last_write > 0, filter::LAST_WRITE)
            | bit(times.last_access > 0, filter::LAST_ACCESS);
        self.report_modified(object, changed);
        Ok(())
    }

    fn change_basic(&mut self, object: &FileObject, times: NewTimes, attributes: u32) -> Result<(), Status> {
        let (index, path) = object.location().ok_or(Status::INVALID_DEVICE_REQUEST)?;
        let path = path.to_vec();
        let volume = self.volumes.get_mut(index).ok_or(Status::NO_SUCH_DEVICE)?;
        if !volume.is_writable() {
            return Err(Status::MEDIA_WRITE_PROTECTED);
        }
        let found = volume.lookup(&path)?;
        if attributes != 0 {
            // The host's permissions of a folder are something else than its read-only attribute.
            let kept = if matches!(found, Found::Directory(_)) { ATTRIBUTE_READONLY } else { 0 } | ATTRIBUTES_KEPT;
            volume.set_extra_attributes(&path, attributes & kept);
        }
        let mut node = match found {
            Found::File(node) => node,
            Found::Directory(directory) if times.is_change() => {
                let folder = volume.open_directory_to_change(&directory)?;
                return folder.set_times(times.for_host()?).map_err(|error| status_of_io(&error));
            }
            Found::Directory(_) => return Ok(()),
            Found::Missing(..) => return Err(Status::OBJECT_NAME_NOT_FOUND),
        };
        // Read-only files open for reading only, and that is enough to change mode and times of one's own file.
        let was = FileStat::new(&volume.stat(&Found::File(node.clone()))?, 0);
        let file = volume.open_file(&mut node, was.attributes & ATTRIBUTE_READONLY == 0)?;
        if times.is_change() {
            file.set_times(times.for_host()?).map_err(|error| status_of_io(&error))?;
        }
        if attributes != 0 {
            set_read_only(&file, attributes & ATTRIBUTE_READONLY != 0)?;
        }
        Ok(())
    }

    /// FileDispositionInformation(Ex): marks for deletion, or takes the mark back. With `posix` the name goes when
    /// this object is closed, whoever else has it open.
    pub fn set_disposition(
        &mut self,
        object: &mut FileObject,
        delete: bool,
        posix: bool,
        force: bool,
    ) -> Result<(), Status> {
        if object.access & file::DELETE == 0 {
            return Err(Status::ACCESS_DENIED);
        }
        let facts = self.facts(object)?;
        let stat = facts.stat.ok_or(Status::INVALID_DEVICE_REQUEST)?;
        if delete {
            let (index, path) = object.location().ok_or(Status::INVALID_DEVICE_REQUEST)?;
            let volume = self.volume(index)?;
            if !volume.is_writable() {
                return Err(Status::MEDIA_WRITE_PROTECTED);
            }
            if path.is_empty() || stat.attributes & ATTRIBUTE_READONLY != 0 && !force {
                return Err(Status::CANNOT_DELETE);
            }
            if let FileKind::Directory { directory, .. } = &object.kind
                && !volume.list(directory)?.is_empty()
            {
                return Err(Status::DIRECTORY_NOT_EMPTY);
            }
            if self.mapped.is_mapped(&Self::key(index, path)) {
                return Err(Status::CANNOT_DELETE);
            }
        }
        if posix && delete {
            return self.unlink_now(object);
        }
        self.openings_mut(object)?.delete_pending = delete;
        Ok(())
    }

    /// Removes the name at once; openings live on without one. NT does so when the deleting handle is closed, which
    /// callers do next.
    fn unlink_now(&mut self, object: &FileObject) -> Result<(), Status> {
        let (index, path) = self.openings(object).map(|o| (o.volume, o.path.clone())).ok_or(Status::INVALID_HANDLE)?;
        let openings = self.openings_mut(object)?;
        if openings.unlinked {
            return Ok(());
        }
        openings.unlinked = true;
        openings.delete_pending = true;
        self.by_path.remove(&Self::key(index, &path));
        self.volumes.get_mut(index).ok_or(Status::NO_SUCH_DEVICE)?.delete(&path)?;
        self.report(index, matches!(object.kind, FileKind::Directory { .. }), &[(Action::Removed, &path)]);
        Ok(())
    }

    /// FileRenameInformation: moves to a path on the same volume.
    pub fn rename(&mut self, object: &mut FileObject, to: &NtPath, replace: bool) -> Result<(), Status> {
        if object.access & file::DELETE == 0 {
            return Err(Status::ACCESS_DENIED);
        }
        let (index, from) = object.location().ok_or(Status::INVALID_DEVICE_REQUEST)?;
        let (from, own) = (from.to_vec(), object.opening.map(|(id, _)| id));
        if let Some(target) = self.by_path.get(&Self::key(index, &to.parts))
            && Some(*target) != own
            && replace
        {
            return Err(Status::ACCESS_DENIED);
        }
        // Files open below a directory hold its name.
        let below = fold(&from.join("\\")) + "\\";
        if self.by_path.keys().any(|(volume, path)| *volume == index && path.starts_with(&below)) {
            return Err(Status::ACCESS_DENIED);
        }
        let volume = self.volumes.get_mut(index).ok_or(Status::NO_SUCH_DEVICE)?;
        let target = volume.rename(&from, &to.parts, replace)?;
        let found = volume.lookup(&target)?;
        object.name = NtPath::display(&target);
        match (&mut object.kind, found) {
            (FileKind::Disk { path, .. }, _) => path.clone_from(&target),
            (FileKind::Directory { directory, .. }, Found::Directory(moved)) => *directory = moved,
            _ => {}
        }
        if let Some(id) = own {
            self.by_path.remove(&Self::key(index, &from));
            self.by_path.insert(Self::key(index, &target), id);
            if let Some(openings) = self.open.get_mut(&id) {
                openings.path.clone_from(&target);
            }
        }
        // Into another directory it is a new name there.
        let parent = |path: &[String]| path.split_last().map(|(_, parents)| fold(&parents.join("\\")));
        let moved = parent(&from) != parent(&target);
        let actions = if moved { [Action::Removed, Action::Added] } else { [Action::RenamedOld, Action::RenamedNew] };
        let directory = matches!(object.kind, FileKind::Directory { .. });
        self.report(index, directory, &[(actions[0], &from), (actions[1], &target)]);
        Ok(())
    }

    /// FileLinkInformation: gives a file another name on the same volume.
    pub fn link(&mut self, object: &FileObject, to: &NtPath, replace: bool) -> Result<(), Status> {
        let FileKind::Disk { volume: index, path, .. } = &object.kind else {
            return Err(match object.kind {
                FileKind::Directory { .. } => Status::FILE_IS_A_DIRECTORY,
                _ => Status::INVALID_DEVICE_REQUEST,
            });
        };
        if Self::key(*index, path) == Self::key(*index, &to.parts) {
            // The name that it has already.
            return if replace { Ok(()) } else { Err(Status::OBJECT_NAME_COLLISION) };
        }
        if replace && self.by_path.contains_key(&Self::key(*index, &to.parts)) {
            return Err(Status::ACCESS_DENIED);
        }
        let volume = self.volumes.get_mut(*index).ok_or(Status::NO_SUCH_DEVICE)?;
        let target = volume.link(path, &to.parts, replace)?;
        self.report(*index, false, &[(Action::Added, &target)]);
        Ok(())
    }

    /// A section of an open file is about to be made: what it holds as long as it shows the file.
    pub fn map(&mut self, object: &FileObject, kind: MappingKind) -> Option<MappedUse> {
        let (volume, path) = object.location()?;
        Some(self.mapped.add(Self::key(volume, path), kind))
    }

    /// Whether an open file may become shorter: not while a section shows it.
    pub fn check_truncation(&self, object: &FileObject) -> Result<(), Status> {
        match object.location() {
            Some((volume, path)) if self.mapped.is_mapped(&Self::key(volume, path)) => Err(Status::USER_MAPPED_FILE),
            _ => Ok(()),
        }
    }

    /// Locks a range; a lock that is held by someone else is refused. A shared lock may lie over exclusive ones of the same
    /// opening (LockFileEx documents that), an exclusive one over none.
    pub fn lock(&mut self, object: &FileObject, start: u64, length: u64, exclusive: bool) -> Result<(), Status> {
        let opening = object.opening.ok_or(Status::INVALID_DEVICE_REQUEST)?.1;
        let end = lock_end(start, length)?;
        let locks = &mut self.openings_mut(object)?.locks;
        let refuses = |lock: &Lock| exclusive || lock.exclusive && lock.opening != opening;
        if locks.iter().any(|lock| lock.overlaps(start, end) && refuses(lock)) {
            return Err(Status::LOCK_NOT_GRANTED);
        }
        locks.push(Lock { opening, start, end, exclusive });
        Ok(())
    }

    /// Unlocks exactly one locked range; of two locks of the same range the exclusive one.
    pub fn unlock(&mut self, object: &FileObject, start: u64, length: u64) -> Result<(), Status> {
        let opening = object.opening.ok_or(Status::INVALID_DEVICE_REQUEST)?.1;
        let end = lock_end(start, length)?;
        let locks = &mut self.openings_mut(object)?.locks;
        let matching = locks.iter().enumerate().filter(|(_, lock)| {
            let range = (lock.start, lock.end) == (start, end);
            range && lock.opening == opening
        });
        let (index, _) = matching.max_by_key(|(_, lock)| lock.exclusive).ok_or(Status::RANGE_NOT_LOCKED)?;
        locks.remove(index);
        Ok(())
    }

    /// Whether a read or write is free of others' locks.
    pub fn check_locks(&self, object: &FileObject, start: u64, length: u64, write: bool) -> Result<(), Status> {
        let Some(openings) = self.openings(object).filter(|o| !o.locks.is_empty()) else { return Ok(()) };
        let own = object.opening.map(|(_, opening)| opening);
        let conflict = openings.locks.iter().any(|lock| {
            lock.overlaps(start, u128::from(start) + u128::from(length))
                && (Some(lock.opening) != own && lock.exclusive || write && !lock.exclusive)
        });
        if conflict { Err(Status::FILE_LOCK_CONFLICT) } else { Ok(()) }
    }
}

impl Lock {
    fn overlaps(&self, start: u64, end: u128) -> bool {
        u128::from(self.start) < end && u128::from(start) < self.end
    }
}

/// Where a range ends that is to be locked: behind the last byte that a file could have at most.
fn lock_end(start: u64, length: u64) -> Result<u128, Status> {
    let end = u128::from(start) + u128::from(length);
    if end > 1 << 64 { Err(Status::INVALID_LOCK_RANGE) } else { Ok(end) }
}

/// What an access mask means to sharing, as FILE_SHARE_* bits: read, write, delete.
fn share_bits(access: u32) -> u32 {
    u32::from(access & (file::READ_DATA | file::EXECUTE) != 0)
        | u32::from(access & (file::WRITE_DATA | file::APPEND_DATA) != 0) << 1
        | u32::from(access & file::DELETE != 0) << 2
}

fn set_read_only(file: &std::fs::File, read_only: bool) -> Result<(), Status> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut permissions = file.metadata().map_err(|error| status_of_io(&error))?.permissions();
    let mode = permissions.mode();
    let wanted = if read_only { mode & !0o222 } else { mode | 0o200 };
    if wanted == mode {
        return Ok(());
    }
    permissions.set_mode(wanted);
    file.set_permissions(permissions).map_err(|error| status_of_io(&error))
}

fn host_time(nt: i64) -> Result<std::time::SystemTime, Status> {
    let since = nt.checked_sub(super::host::UNIX_EPOCH).ok_or(Status::INVALID_PARAMETER)?;
    let span = std::time::Duration::from_nanos(since.unsigned_abs().saturating_mul(100));
    let epoch = std::time::UNIX_EPOCH;
    let time = if since < 0 { epoch.checked_sub(span) } else { epoch.checked_add(span) };
    time.ok_or(Status::INVALID_PARAMETER)
}
