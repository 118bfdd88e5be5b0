//! The name space: directories, symbolic links, and the way from a path to an object.

use std::collections::BTreeMap;

use super::manager::{ObjectId, ObjectManager, attributes};
use super::types::{Body, Device};
use crate::io::mount_manager::volume_name;
use crate::status::Status;

/// A directory of the name space.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    entries: BTreeMap<String, ObjectId>,
}

impl Directory {
    /// Entry of that name.
    #[must_use]
    pub fn find(&self, name: &str, ignore_case: bool) -> Option<ObjectId> {
        if let Some(&id) = self.entries.get(name) {
            return Some(id);
        }
        let wanted = ignore_case.then(|| crate::io::fold(name))?;
        self.entries.iter().find(|(key, _)| crate::io::fold(key) == wanted).map(|(_, &id)| id)
    }

    /// All entries in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, ObjectId)> + '_ {
        self.entries.iter().map(|(name, &id)| (name.as_str(), id))
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.entries.remove(name);
    }
}

/// A link of the name space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolicLink {
    /// Absolute path it stands for.
    pub target: String,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The last object that the name space itself knows.
    pub object: ObjectId,
    /// Path behind a device, without the separator; `None` when the path ends at the object. A path that ends in
    /// `\` behind a device leaves `Some("")`: the device's root, not the device.
    pub remaining: Option<String>,
}

/// A name that does not exist yet: where it would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vacancy {
    /// Directory.
    pub directory: ObjectId,
    /// Last component.
    pub name: String,
}

/// Result of [`ObjectManager::resolve`].
pub type Lookup = Result<Result<Resolved, Vacancy>, Status>;

/// Links followed before a path is taken for a loop, as many as Windows does.
const MAX_REPARSE: usize = 32;

impl ObjectManager {
    /// Follows `path`, absolute or relative to a directory. `Ok(Err(..))`: only the last component is missing.
    pub fn resolve(&self, root: Option<ObjectId>, path: &str, attributes: u32) -> Lookup {
        let ignore_case = attributes & attributes::CASE_INSENSITIVE != 0;
        let mut path = path.to_owned();
        let mut at = match root {
            Some(root) => root,
            None => {
                let Some(rest) = path.strip_prefix('\\') else { return Err(Status::OBJECT_PATH_SYNTAX_BAD) };
                path = rest.to_owned();
                self.root()
            }
        };
        if root.is_some() && path.starts_with('\\') {
            return Err(Status::OBJECT_PATH_SYNTAX_BAD);
        }
        let mut rest: Option<String> = Some(path).filter(|p| !p.is_empty());
        for _ in 0..MAX_REPARSE {
            match self.walk(at, rest, ignore_case, attributes & attributes::OPENLINK != 0)? {
                Step::Done(result) => return Ok(result),
                Step::Link { target, remaining } => {
                    at = self.root();
                    let mut next = target.trim_start_matches('\\').to_owned();
                    if let Some(remaining) = remaining {
                        if !next.is_empty() {
                            next.push('\\');
                        }
                        next.push_str(&remaining);
                    }
                    rest = Some(next).filter(|p| !p.is_empty());
                }
            }
        }
        Err(Status::OBJECT_PATH_NOT_FOUND)
    }

    /// Goes down until the end, a device, or a link.
    fn walk(
        &self,
        start: ObjectId,
        mut rest: Option<String>,
        ignore_case: bool,
        open_link: bool,
    ) -> Result<Step, Status> {
        let mut at = start;
        loop {
            match self.body(at).map_err(|_| Status::OBJECT_PATH_NOT_FOUND)? {
                Body::SymbolicLink(link) if !(rest.is_none() && open_link) => {
                    return Ok(Step::Link { target: link.target.clone(), remaining: rest });
                }
                Body::Device(_) => return Ok(Step::Done(Ok(Resolved { object: at, remaining: rest }))),
                Body::Directory(directory) => {
                    let Some(path) = rest else { return Ok(Step::Done(Ok(Resolved { object: at, remaining: None }))) };
                    let (name, remaining) = match path.split_once('\\') {
                        Some((name, remaining)) => (name, Some(remaining.to_owned())),
                        None => (path.as_str(), None),
                    };
                    if name.is_empty() {
                        return Err(Status::OBJECT_NAME_INVALID);
                    }
                    match directory.find(name, ignore_case) {
                        Some(next) => at = next,
                        None if remaining.is_none() => {
                            return Ok(Step::Done(Err(Vacancy { directory: at, name: name.to_owned() })));
                        }
                        None => return Err(Status::OBJECT_PATH_NOT_FOUND),
                    }
                    rest = remaining;
                }
                _ if rest.is_some() => return Err(Status::OBJECT_PATH_NOT_FOUND),
                _ => return Ok(Step::Done(Ok(Resolved { object: at, remaining: None }))),
            }
        }
    }

    /// Puts an object into a directory under a name.
    pub fn link(&mut self, id: ObjectId, directory: ObjectId, name: &str, permanent: bool) -> Result<(), Status> {
        let Body::Directory(parent) = self.body_mut(directory)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
        if parent.entries.contains_key(name) {
            return Err(Status::OBJECT_NAME_COLLISION);
        }
        parent.entries.insert(name.to_owned(), id);
        self.reference(directory);
        if let Some(object) = self.get_mut(id) {
            object.name = Some((directory, name.to_owned()));
            object.permanent = permanent;
        }
        Ok(())
    }

    /// NtMakeTemporaryObject: the name goes with the last handle.
    pub fn make_temporary(&mut self, id: ObjectId) {
        if let Some(object) = self.get_mut(id) {
            object.permanent = false;
            self.collect(id);
        }
    }

    /// Creates a permanent object at an absolute path, making missing directories; for building the name space.
    pub fn create_at(&mut self, path: &str, body: Body) -> Result<ObjectId, Status> {
        let (parents, name) = path.rsplit_once('\\').ok_or(Status::OBJECT_PATH_SYNTAX_BAD)?;
        let mut directory = self.root();
        for part in parents.split('\\').filter(|p| !p.is_empty()) {
            let Body::Directory(parent) = self.body(directory)? else { return Err(Status::OBJECT_PATH_NOT_FOUND) };
            directory = match parent.find(part, true) {
                Some(id) => id,
                None => {
                    let id = self.insert(Body::Directory(Directory::default()));
                    self.link(id, directory, part, true)?;
                    id
                }
            };
        }
        let id = self.insert(body);
        self.link(id, directory, name, true)?;
        Ok(id)
    }

    /// Full path of a named object, empty for others.
    #[must_use]
    pub fn path_of(&self, id: ObjectId) -> String {
        let mut parts = Vec::new();
        let mut at = id;
        while let Some((directory, name)) = self.get(at).and_then(|o| o.name.as_ref()) {
            parts.push(name.as_str());
            at = *directory;
        }
        if at != self.root() {
            return String::new();
        }
        let mut path = String::new();
        for part in parts.iter().rev() {
            path.push('\\');
            path.push_str(part);
        }
        if path.is_empty() { "\\".to_owned() } else { path }
    }

    /// Builds what the boot of NT leaves in the name space: DOS devices for `drives` (letter, volume index), session
    /// directories, device objects. `\KnownDlls` stays absent: the loader then searches files.
    pub fn populate(&mut self, drives: &[(char, usize)], session: u32) -> Result<(), Status> {
        let directory = || Body::Directory(Directory::default());
        let link = |target: &str| Body::SymbolicLink(SymbolicLink { target: target.to_owned() });
        for path in ["\\GLOBAL??", "\\BaseNamedObjects", "\\Device", "\\Driver", "\\FileSystem", "\\KernelObjects"] {
            self.create_at(path, directory())?;
        }
        self.create_at(&format!("\\Sessions\\{session}\\BaseNamedObjects"), directory())?;
        self.create_at(&format!("\\Sessions\\{session}\\DosDevices"), directory())?;
        self.create_at(&format!("\\Sessions\\BNOLINKS\\{session}"), link("\\BaseNamedObjects"))?;
        self.create_at(
            &format!("\\BaseNamedObjects\\Session\\{session}"),
            link(&format!("\\Sessions\\{session}\\BaseNamedObjects")),
        )?;
        self.create_at("\\BaseNamedObjects\\Global", link("\\BaseNamedObjects"))?;
        self.create_at("\\BaseNamedObjects\\Local", link("\\BaseNamedObjects"))?;
        let own = format!("\\Sessions\\{session}\\BaseNamedObjects");
        self.create_at(&format!("{own}\\Global"), link("\\BaseNamedObjects"))?;
        self.create_at(&format!("{own}\\Local"), link(&own))?;
        self.create_at("\\??", link("\\GLOBAL??"))?;
        self.create_at("\\DosDevices", link("\\??"))?;
        self.create_at("\\Device\\Null", Body::Device(Device::Null))?;
        self.create_at("\\Device\\ConDrv", Body::Device(Device::Console))?;
        self.create_at("\\Device\\NamedPipe", Body::Device(Device::NamedPipe))?;
        self.create_at("\\Device\\Mailslot", Body::Device(Device::Mailslot))?;
        self.create_at("\\Device\\MountPointManager", Body::Device(Device::MountManager))?;
        self.create_at("\\Device\\Afd", Body::Device(Device::Sockets))?;
        for device in ["\\Device\\CNG", "\\Device\\KsecDD"] {
            self.create_at(device, Body::Device(Device::Random))?;
        }
        self.create_at("\\REGISTRY", Body::Device(Device::Registry))?;
        for (name, target) in [
            ("NUL", "\\Device\\Null"),
            ("PIPE", "\\Device\\NamedPipe"),
            ("MAILSLOT", "\\Device\\Mailslot"),
            ("MountPointManager", "\\Device\\MountPointManager"),
            ("CON", "\\Device\\ConDrv\\Console"),
            ("CONIN$", "\\Device\\ConDrv\\CurrentIn"),
            ("CONOUT$", "\\Device\\ConDrv\\CurrentOut"),
            ("GLOBALROOT", ""),
            ("Global", "\\GLOBAL??"),
        ] {
            self.create_at(&format!("\\GLOBAL??\\{name}"), link(target))?;
        }
        for (number, &(letter, volume)) in drives.iter().enumerate() {
            let device = format!("\\Device\\HarddiskVolume{}", number + 1);
            self.create_at(&device, Body::Device(Device::Volume(volume)))?;
            self.create_at(&format!("\\GLOBAL??\\{}:", letter.to_ascii_uppercase()), link(&device))?;
            self.create_at(&format!("\\GLOBAL??\\{}", volume_name(letter)), link(&device))?;
        }
        Ok(())
    }
}

enum Step {
    Done(Result<Resolved, Vacancy>),
    Link { target: String, remaining: Option<String> },
}
