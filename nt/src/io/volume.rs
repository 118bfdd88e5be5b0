//! A volume: a host folder seen as an NT file system that no path leads out of.
//!
//! Every host file is named by one checked component relative to an open folder and never through a link; links are
//! read and resolved here, one component at a time, and may not climb over the mount's root. A copy-on-write volume
//! has two layers: changes go to an upper folder that is removed at the end, the mounted folder below is only read.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::listings::{Change, Listings, names_in};
use super::path::fold;
use super::{status_of, status_of_io};
use crate::status::Status;

/// What a guest may do to a mounted folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountAccess {
    /// Nothing changes.
    ReadOnly,
    /// Changes reach the folder.
    ReadWrite,
    /// Changes are kept aside and forgotten at the end.
    CopyOnWrite,
}

/// A folder for the changes of a copy-on-write volume, removed when dropped.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; the folder is in the host's temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Which layer holds an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    Upper,
    Lower,
}

/// A directory as seen through both layers.
#[derive(Clone, Debug)]
pub struct Directory {
    upper: Option<Rc<OwnedFd>>,
    lower: Option<Rc<OwnedFd>>,
    /// Real names from the root, links resolved.
    pub path: Vec<String>,
}

/// What a path leads to.
#[derive(Clone, Debug)]
pub enum Found {
    /// A directory.
    Directory(Directory),
    /// A regular file in a directory.
    File(FileNode),
    /// Nothing yet; this is where it would be.
    Missing(Directory, String),
}

/// A regular file.
#[derive(Clone, Debug)]
pub struct FileNode {
    parent: Directory,
    name: String,
    layer: Layer,
}

impl FileNode {
    /// Real names from the root.
    #[must_use]
    pub fn path(&self) -> Vec<String> {
        joined(&self.parent.path, &self.name)
    }
}

/// A mounted folder.
#[derive(Debug)]
pub struct Volume {
    /// Drive letter, upper case.
    pub letter: char,
    /// What may change.
    pub access: MountAccess,
    /// VolumeSerialNumber.
    pub serial: u32,
    quota: Rc<Quota>,
    upper: Option<Rc<OwnedFd>>,
    lower: Option<Rc<OwnedFd>>,
    host_root: PathBuf,
    /// Upper-case paths that the lower layer no longer shows.
    hidden: BTreeSet<String>,
    /// Attributes that the host cannot keep (hidden, system), by upper-case path.
    attributes: BTreeMap<String, u32>,
    /// Names in folders of both layers.
    listings: Listings,
    _scratch: Option<Scratch>,
}

/// How much all volumes together may grow on the host.
#[derive(Debug)]
pub struct Quota {
    limit: u64,
    used: Cell<u64>,
}

impl Default for Quota {
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

impl Quota {
    /// Allows `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, used: Cell::new(0) }
    }

    /// A file is about to change its size; refuses what exceeds the limit.
    pub fn resize(&self, from: u64, to: u64) -> Result<(), Status> {
        let used = if to < from {
            self.used.get().saturating_sub(from - to)
        } else {
            let used = self.used.get().saturating_add(to - from);
            if used > self.limit && to > from {
                return Err(Status::DISK_FULL);
            }
            used
        };
        self.used.set(used);
        Ok(())
    }

    /// Bytes that are left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used.get())
    }
}

/// Links followed before a path counts as a loop: the host's own limit.
const MAX_LINKS: usize = 40;
/// Flags of every open below: no link, no terminal, no waiting for a pipe's other end.
const SAFE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

fn joined(path: &[String], name: &str) -> Vec<String> {
    path.iter().cloned().chain([name.to_owned()]).collect()
}

fn key_of(path: &[String]) -> String {
    fold(&path.join("\\"))
}

fn open_folder(at: BorrowedFd<'_>, name: &str) -> Result<Rc<OwnedFd>, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty()).map(Rc::new)
}

fn type_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

impl Volume {
    /// Mounts a host folder. Changes that are not to reach it go to a new folder in `scratch`.
    pub fn mount(letter: char, folder: &Path, access: MountAccess, scratch: &Path) -> std::io::Result<Self> {
        let host_root = folder.canonicalize()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = Rc::new(rustix::fs::open(&host_root, flags, Mode::empty())?);
        let (upper, lower, scratch) = match access {
            MountAccess::ReadOnly => (None, Some(root), None),
            MountAccess::ReadWrite => (Some(root), None, None),
            MountAccess::CopyOnWrite => {
                let scratch = new_scratch(scratch)?;
                let upper = Rc::new(rustix::fs::open(&scratch.0, flags, Mode::empty())?);
                (Some(upper), Some(root), Some(scratch))
            }
        };
        // FNV-1a over letter and path: stable from run to run, different between drives.
        let serial =
            host_root.as_os_str().as_encoded_bytes().iter().fold(0x811C_9DC5 ^ u32::from(letter), |hash, &byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
        Ok(Self {
            letter: letter.to_ascii_uppercase(),
            access,
            serial,
            upper,
            lower,
            host_root,
            quota: Rc::default(),
            hidden: BTreeSet::new(),
            attributes: BTreeMap::new(),
            listings: Listings::default(),
            _scratch: scratch,
        })
    }

    /// Counts what is written against a quota.
    pub fn set_quota(&mut self, quota: Rc<Quota>) {
        self.quota = quota;
    }

    /// Whether anything can change.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.upper.is_some()
    }

    /// Total and free bytes of the file system behind it.
    pub fn space(&self) -> Result<(u64, u64), Status> {
        let root = self.upper.as_ref().or(self.lower.as_ref()).ok_or(Status::NO_SUCH_DEVICE)?;
        let stat = rustix::fs::fstatvfs(root).map_err(status_of)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize).min(self.quota.left());
        Ok((stat.f_blocks.saturating_mul(stat.f_frsize), free))
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Directory {
        Directory { upper: self.upper.clone(), lower: self.lower.clone(), path: Vec::new() }
    }

    /// Follows a path from the root.
    pub fn lookup(&self, parts: &[String]) -> Result<Found, Status> {
        let mut stack = vec![self.root()];
        let mut queue: VecDeque<Option<String>> = parts.iter().cloned().map(Some).collect();
        let mut links = 0;
        while let Some(step) = queue.pop_front() {
            let Some(name) = step else {
                // A link's "..": up, but never over the root.
                if stack.len() < 2 {
                    return Err(Status::ACCESS_DENIED);
                }
                stack.pop();
                continue;
            };
            let Some(at) = stack.last() else { return Err(Status::ACCESS_DENIED) };
            let Some((layer, real, stat)) = self.find(at, &name)? else {
                return match queue.is_empty() {
                    true => Ok(Found::Missing(at.clone(), name)),
                    false => Err(Status::OBJECT_PATH_NOT_FOUND),
                };
            };
            match type_of(&stat) {
                FileType::Directory => {
                    let directory = self.enter(at, layer, &real)?;
                    stack.push(directory);
                }
                FileType::RegularFile => {
                    return match queue.is_empty() {
                        true => Ok(Found::File(FileNode { parent: at.clone(), name: real, layer })),
                        false => Err(Status::OBJECT_PATH_NOT_FOUND),
                    };
                }
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Status::ACCESS_DENIED);
                    }
                    let absolute = self.splice_link(at, layer, &real, &mut queue)?;
                    if absolute {
                        stack.truncate(1);
                    }
                }
                _ => return Err(Status::ACCESS_DENIED),
            }
        }
        stack.pop().map(Found::Directory).ok_or(Status::OBJECT_PATH_NOT_FOUND)
    }

    /// Puts a link's target in front of the queue; says whether it starts at the root.
    fn splice_link(
        &self,
        at: &Directory,
        layer: Layer,
        name: &str,
        queue: &mut VecDeque<Option<String>>,
    ) -> Result<bool, Status> {
        let folder = at.layer(layer).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
        let target = rustix::fs::readlinkat(folder, name, Vec::new()).map_err(status_of)?;
        let target = PathBuf::from(target.into_string().map_err(|_| Status::ACCESS_DENIED)?);
        let absolute = target.is_absolute();
        let relative = match absolute {
            // An absolute link is one of the mount only if it points below the mounted folder.
            true => target.strip_prefix(&self.host_root).map_err(|_| Status::ACCESS_DENIED)?,
            false => target.as_path(),
        };
        let steps: Vec<Option<String>> = relative
            .components()
            .filter_map(|component| match component {
                Component::Normal(name) => Some(name.to_str().map(|n| Some(n.to_owned())).ok_or(Status::ACCESS_DENIED)),
                Component::ParentDir => Some(Ok(None)),
                Component::CurDir => None,
                Component::RootDir | Component::Prefix(_) => Some(Err(Status::ACCESS_DENIED)),
            })
            .collect::<Result<_, _>>()?;
        for step in steps.into_iter().rev() {
            queue.push_front(step);
        }
        Ok(absolute)
    }

    /// The entry of that name in any case, upper layer first; links are not followed.
    fn find(&self, at: &Directory, name: &str) -> Result<Option<(Layer, String, Stat)>, Status> {
        if let Some(upper) = &at.upper
            && let Some((real, stat)) = find_in(upper.as_fd(), name, |folder, name| self.listings.find(folder, name))?
        {
            return Ok(Some((Layer::Upper, real, stat)));
        }
        match &at.lower {
            Some(lower) if !self.is_hidden(&at.path, name) => {
                let found = find_in(lower.as_fd(), name, |folder, name| self.listings.find(folder, name))?;
                Ok(found.map(|(real, stat)| (Layer::Lower, real, stat)))
            }
            _ => Ok(None),
        }
    }

    fn is_hidden(&self, path: &[String], name: &str) -> bool {
        !self.hidden.is_empty() && self.hidden.contains(&key_of(&joined(path, name)))
    }

    /// Opens a subdirectory in both layers.
    fn enter(&self, at: &Directory, layer: Layer, real: &str) -> Result<Directory, Status> {
        let path = joined(&at.path, real);
        let open = |folder: &Rc<OwnedFd>, name: &str| open_folder(folder.as_fd(), name).map_err(status_of);
        let upper = match (&at.upper, layer) {
            (Some(upper), Layer::Upper) => Some(open(upper, real)?),
            _ => None,
        };
        let lower = match (&at.lower, layer) {
            (Some(lower), Layer::Lower) => Some(open(lower, real)?),
            (Some(lower), Layer::Upper) if !self.is_hidden(&at.path, real) => {
                match find_in(lower.as_fd(), real, |folder, name| self.listings.find(folder, name))? {
                    Some((name, stat)) if type_of(&stat) == FileType::Directory => Some(open(lower, &name)?),
                    _ => None,
                }
            }
            _ => None,
        };
        Ok(Directory { upper, lower, path })
    }

    /// The upper folder of a directory, created with its parents if the lower layer alone has it.
    fn upper_of(&self, directory: &Directory) -> Result<Rc<OwnedFd>, Status> {
        if let Some(upper) = &directory.upper {
            return Ok(upper.clone());
        }
        let mut at = self.upper.clone().ok_or(Status::MEDIA_WRITE_PROTECTED)?;
        for name in &directory.path {
            let make = || rustix::fs::mkdirat(&at, name.as_str(), Mode::from_raw_mode(0o755));
            match self.listings.change(at.as_fd(), Change::Added(name), make) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(status_of(error)),
            }
            at = open_folder(at.as_fd(), name).map_err(status_of)?;
        }
        Ok(at)
    }

    /// Opens a file; for writing, a file of the lower layer is copied first.
    pub fn open_file(&self, node: &mut FileNode, write: bool) -> Result<File, Status> {
        if write && !self.is_writable() {
            return Err(Status::MEDIA_WRITE_PROTECTED);
        }
        if write && node.layer == Layer::Lower {
            self.copy_up(node)?;
        }
        let folder = node.parent.layer(node.layer).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
        let mode = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let file = rustix::fs::openat(folder, node.name.as_str(), mode | SAFE, Mode::empty()).map_err(status_of)?;
        // Another process may have put something else there since the look-up.
        let stat = rustix::fs::fstat(&file).map_err(status_of)?;
        if type_of(&stat) != FileType::RegularFile {
            return Err(Status::ACCESS_DENIED);
        }
        Ok(File::from(file))
    }

    /// Opens a directory to change its times; one of the lower layer appears in the upper one.
    pub fn open_directory_to_change(&self, directory: &Directory) -> Result<File, Status> {
        let upper = self.upper_of(directory)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | SAFE;
        rustix::fs::openat(upper, ".", flags, Mode::empty()).map(File::from).map_err(status_of)
    }

    fn copy_up(&self, node: &mut FileNode) -> Result<(), Status> {
        let folder = node.parent.layer(node.layer).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
        let source = rustix::fs::openat(folder, node.name.as_str(), OFlags::RDONLY | SAFE, Mode::empty());
        let mut source = File::from(source.map_err(status_of)?);
        let stat = rustix::fs::fstat(&source).map_err(status_of)?;
        if type_of(&stat) != FileType::RegularFile {
            return Err(Status::ACCESS_DENIED);
        }
        let upper = self.upper_of(&node.parent)?;
        self.quota.resize(0, u64::try_from(stat.st_size).unwrap_or(0))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | SAFE;
        // The copy belongs to lstar: it must be writable whatever the original says.
        let mode = Mode::from_raw_mode(stat.st_mode & 0o777 | 0o600);
        let create = || rustix::fs::openat(&upper, node.name.as_str(), flags, mode);
        let copy = self.listings.change(upper.as_fd(), Change::Added(&node.name), create).map_err(status_of)?;
        let mut copy = File::from(copy);
        std::io::copy(&mut source, &mut copy).map_err(|error| status_of_io(&error))?;
        let modified = source.metadata().and_then(|m| m.modified()).map_err(|error| status_of_io(&error))?;
        copy.set_modified(modified).map_err(|error| status_of_io(&error))?;
        node.parent.upper = Some(upper);
        node.layer = Layer::Upper;
        Ok(())
    }

    /// Creates an empty file where there is none.
    pub fn create_file(&self, parent: &Directory, name: &str) -> Result<(File, FileNode), Status> {
        let upper = self.upper_of(parent)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | SAFE;
        let create = || rustix::fs::openat(&upper, name, flags, Mode::from_raw_mode(0o644));
        let file = self.listings.change(upper.as_fd(), Change::Added(name), create).map_err(status_of)?;
        let parent = Directory { upper: Some(upper), ..parent.clone() };
        Ok((File::from(file), FileNode { parent, name: name.to_owned(), layer: Layer::Upper }))
    }

    /// Creates a directory where there is none.
    pub fn create_directory(&self, parent: &Directory, name: &str) -> Result<Directory, Status> {
        let upper = self.upper_of(parent)?;
        let make = || rustix::fs::mkdirat(&upper, name, Mode::from_raw_mode(0o755));
        self.listings.change(upper.as_fd(), Change::Added(name), make).map_err(status_of)?;
        let folder = open_folder(upper.as_fd(), name).map_err(status_of)?;
        // A lower directory of that name was hidden when it was deleted, or never was.
        Ok(Directory { upper: Some(folder), lower: None, path: joined(&parent.path, name) })
    }

    /// Deletes a file or an empty directory.
    pub fn delete(&mut self, parts: &[String]) -> Result<(), Status> {
        if !self.is_writable() {
            return Err(Status::MEDIA_WRITE_PROTECTED);
        }
        let (path, flags) = match self.lookup(parts)? {
            Found::Missing(..) => return Err(Status::OBJECT_NAME_NOT_FOUND),
            Found::Directory(directory) => {
                if !self.list(&directory)?.is_empty() {
                    return Err(Status::DIRECTORY_NOT_EMPTY);
                }
                (directory.path, AtFlags::REMOVEDIR)
            }
            Found::File(node) => (node.path(), AtFlags::empty()),
        };
        self.remove_upper(&path, flags)?;
        self.hide(&path);
        Ok(())
    }

    /// Removes the upper layer's entry, if it has one. A directory there may still hold names that are hidden below.
    fn remove_upper(&self, path: &[String], flags: AtFlags) -> Result<(), Status> {
        let Some((name, parent)) = path.split_last() else { return Err(Status::CANNOT_DELETE) };
        let Found::Directory(Directory { upper: Some(upper), .. }) = self.lookup(parent)? else { return Ok(()) };
        let before = rustix::fs::statat(&upper, name.as_str(), AtFlags::SYMLINK_NOFOLLOW);
        let remove = || rustix::fs::unlinkat(&upper, name.as_str(), flags);
        match self.listings.change(upper.as_fd(), Change::Removed(name), remove) {
            Ok(()) => {
                // What it took is free again; a name of several frees nothing.
                if let Ok(stat) = before
                    && type_of(&stat) == FileType::RegularFile
                    && stat.st_nlink == 1
                {
                    self.quota.resize(u64::try_from(stat.st_size).unwrap_or(0), 0)?;
                }
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(status_of(error)),
        }
    }

    fn hide(&mut self, path: &[String]) {
        let key = key_of(path);
        self.attributes.remove(&key);
        if self.lower.is_some() {
            self.hidden.insert(key);
        }
    }

    /// Moves a file or directory within the volume. The target's parent must exist.
    pub fn rename(&mut self, from: &[String], to: &[String], replace: bool) -> Result<Vec<String>, Status> {
        if !self.is_writable() {
            return Err(Status::MEDIA_WRITE_PROTECTED);
        }
        let source = match self.lookup(from)? {
            Found::Missing(..) => return Err(Status::OBJECT_NAME_NOT_FOUND),
            Found::Directory(directory) if directory.path.is_empty() => return Err(Status::ACCESS_DENIED),
            Found::Directory(directory) => {
                self.copy_tree_up(&directory)?;
                directory.path
            }
            Found::File(mut node) => {
                if node.layer == Layer::Lower {
                    self.copy_up(&mut node)?;
                }
                node.path()
            }
        };
        let (target_name, target_parent) = to.split_last().ok_or(Status::OBJECT_NAME_INVALID)?;
        let Found::Directory(target_parent) = self.lookup(target_parent)? else {
            return Err(Status::OBJECT_PATH_NOT_FOUND);
        };
        if target_parent.path.len() >= source.len() && key_of(&target_parent.path[..source.len()]) == key_of(&source) {
            return Err(Status::SHARING_VIOLATION);
        }
        let target = joined(&target_parent.path, target_name);
        let same_name = key_of(&target) == key_of(&source);
        match self.lookup(&target)? {
            _ if same_name => {}
            Found::Missing(..) => {}
            Found::Directory(_) => {
                return Err(if replace { Status::ACCESS_DENIED } else { Status::OBJECT_NAME_COLLISION });
            }
            Found::File(_) if !replace => return Err(Status::OBJECT_NAME_COLLISION),
            // Its spelling may differ in case from the new name.
            Found::File(node) => self.remove_upper(&node.path(), AtFlags::empty())?,
        }
        let (source_name, source_parent) = source.split_last().ok_or(Status::ACCESS_DENIED)?;
        let Found::Directory(source_parent) = self.lookup(source_parent)? else {
            return Err(Status::OBJECT_PATH_NOT_FOUND);
        };
        let (old, new) = (self.upper_of(&source_parent)?, self.upper_of(&target_parent)?);
        let (old_name, new_name) = (source_name.as_str(), target_name.as_str());
        let rename = || {
            rustix::fs::renameat_with(&old, old_name, &new, new_name, RenameFlags::NOREPLACE).or_else(|error| {
                match error {
                    // The same spelling: nothing to do.
                    Errno::EXIST if source == target => Ok(()),
                    Errno::INVAL => rustix::fs::renameat(&old, old_name, &new, new_name),
                    error => Err(error),
                }
            })
        };
        let listings = &self.listings;
        listings
            .change(old.as_fd(), Change::Other, || listings.change(new.as_fd(), Change::Other, rename))
            .map_err(status_of)?;
        self.hide(&source);
        self.hide(&target);
        Ok(target)
    }

    /// Gives a file another name on the volume. The target's parent must exist.
    pub fn link(&mut self, from: &[String], to: &[String], replace: bool) -> Result<Vec<String>, Status> {
        if !self.is_writable() {
            return Err(Status::MEDIA_WRITE_PROTECTED);
        }
        let Found::File(mut source) = self.lookup(from)? else { return Err(Status::OBJECT_NAME_NOT_FOUND) };
        let (name, parent) = to.split_last().ok_or(Status::OBJECT_NAME_INVALID)?;
        let Found::Directory(parent) = self.lookup(parent)? else { return Err(Status::OBJECT_PATH_NOT_FOUND) };
        let target = joined(&parent.path, name);
        match self.lookup(&target)? {
            Found::Missing(..) => {}
            Found::Directory(_) if replace => return Err(Status::ACCESS_DENIED),
            Found::Directory(_) => return Err(Status::OBJECT_NAME_COLLISION),
            Found::File(_) if !replace => return Err(Status::OBJECT_NAME_COLLISION),
            // Already a name of this file.
            Found::File(node) if key_of(&node.path()) == key_of(&source.path()) => return Ok(node.path()),
            Found::File(node) => {
                let stat = self.stat(&Found::File(node.clone()))?;
                if stat.st_mode & 0o222 == 0 {
                    return Err(Status::ACCESS_DENIED);
                }
                self.remove_upper(&node.path(), AtFlags::empty())?;
            }
        }
        if source.layer == Layer::Lower {
            self.copy_up(&mut source)?;
        }
        let folder = source.parent.layer(source.layer).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
        let new = self.upper_of(&parent)?;
        let link = || rustix::fs::linkat(folder, source.name.as_str(), &new, name.as_str(), AtFlags::empty());
        self.listings.change(new.as_fd(), Change::Added(name), link).map_err(status_of)?;
        self.hide(&target);
        Ok(target)
    }

    fn copy_tree_up(&self, directory: &Directory) -> Result<(), Status> {
        if directory.lower.is_none() {
            return Ok(());
        }
        self.upper_of(directory)?;
        for name in self.list(directory)? {
            match self.lookup(&joined(&directory.path, &name))? {
                Found::Directory(below) if below.path.starts_with(&directory.path) => self.copy_tree_up(&below)?,
                Found::File(mut node) if node.layer == Layer::Lower => self.copy_up(&mut node)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Real names in a directory, both layers, sorted as NTFS sorts. Links that lead nowhere or out are left out.
    pub fn list(&self, directory: &Directory) -> Result<Vec<String>, Status> {
        let mut names = BTreeMap::new();
        if let Some(lower) = &directory.lower {
            for name in names_in(lower.as_fd()).map_err(status_of)? {
                if !self.is_hidden(&directory.path, &name) {
                    names.insert(fold(&name), name);
                }
            }
        }
        if let Some(upper) = &directory.upper {
            for name in names_in(upper.as_fd()).map_err(status_of)? {
                names.insert(fold(&name), name);
            }
        }
        Ok(names.into_values().collect())
    }

    /// The host's facts about a found file or directory.
    pub fn stat(&self, found: &Found) -> Result<Stat, Status> {
        match found {
            Found::Directory(directory) => {
                let folder = directory.upper.as_ref().or(directory.lower.as_ref());
                rustix::fs::fstat(folder.ok_or(Status::OBJECT_NAME_NOT_FOUND)?).map_err(status_of)
            }
            Found::File(node) => {
                let folder = node.parent.layer(node.layer).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
                rustix::fs::statat(folder, node.name.as_str(), AtFlags::SYMLINK_NOFOLLOW).map_err(status_of)
            }
            Found::Missing(..) => Err(Status::OBJECT_NAME_NOT_FOUND),
        }
    }

    /// Attributes beyond what the host's mode says.
    #[must_use]
    pub fn extra_attributes(&self, path: &[String]) -> u32 {
        if self.attributes.is_empty() { 0 } else { self.attributes.get(&key_of(path)).copied().unwrap_or(0) }
    }

    /// Remembers attributes that the host cannot keep.
    pub fn set_extra_attributes(&mut self, path: &[String], attributes: u32) {
        match attributes {
            0 => self.attributes.remove(&key_of(path)),
            _ => self.attributes.insert(key_of(path), attributes),
        };
    }
}

impl Directory {
    fn layer(&self, layer: Layer) -> Option<&Rc<OwnedFd>> {
        match layer {
            Layer::Upper => self.upper.as_ref(),
            Layer::Lower => self.lower.as_ref(),
        }
    }
}

/// Finds `name` in a folder: as spelled, else by `scan` in any case.
fn find_in(
    folder: BorrowedFd<'_>,
    name: &str,
    scan: impl FnOnce(BorrowedFd<'_>, &str) -> Result<Option<String>, Errno>,
) -> Result<Option<(String, Stat)>, Status> {
    let stat = |name: &str| match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some((name.to_owned(), stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(status_of(error)),
    };
    if let Some(found) = stat(name)? {
        return Ok(Some(found));
    }
    match scan(folder, name).map_err(status_of)? {
        Some(real) => stat(&real),
        None => Ok(None),
    }
}

fn new_scratch(base: &Path) -> std::io::Result<Scratch> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    let process = std::process::id();
    for attempt in 0..1000u32 {
        let path = base.join(format!("lstar-{process}-{attempt}"));
        match builder.create(&path) {
            Ok(()) => return Ok(Scratch(path)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, "no free name for a temporary folder"))
}
