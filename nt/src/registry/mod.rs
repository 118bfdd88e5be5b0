//! The registry: a tree of keys and values in memory.
//!
//! A run starts from the hives of the system root, and from [`defaults`] where there are none. What it changes is forgotten,
//! or kept as a list of changes ([`state`]); the hives themselves are never written.

pub mod defaults;
pub mod hive;
pub mod hive_services;
pub mod notify;
pub mod services;
pub mod state;
pub mod system_hives;
mod time_zones;
pub mod transactions;

use std::collections::{BTreeMap, HashSet};

use crate::io::fold;
use crate::status::Status;

/// Names a key as long as it exists; stale ones answer STATUS_KEY_DELETED.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId {
    index: usize,
    generation: u32,
}

/// What a key handle refers to.
#[derive(Clone, Copy, Debug)]
pub struct KeyObject {
    /// The key.
    pub key: KeyId,
}

/// REG_* value types.
pub mod value_type {
    /// Text.
    pub const SZ: u32 = 1;
    /// Text with environment variables.
    pub const EXPAND_SZ: u32 = 2;
    /// Bytes.
    pub const BINARY: u32 = 3;
    /// 32-bit number.
    pub const DWORD: u32 = 4;
    /// Path of another key.
    pub const LINK: u32 = 6;
    /// Texts, each terminated, the whole terminated again.
    pub const MULTI_SZ: u32 = 7;
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Name in its original spelling; the default value's is empty.
    pub name: String,
    /// REG_* type; any number is allowed.
    pub kind: u32,
    /// Data bytes.
    pub data: Vec<u8>,
}

/// A key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Last component in its original spelling.
    pub name: String,
    /// Class name.
    pub class: String,
    /// Containing key.
    pub parent: Option<KeyId>,
    /// System time of the last change.
    pub last_write: i64,
    /// Not kept over a restart (REG_OPTION_VOLATILE); told to queries only.
    pub volatile: bool,
    /// A symbolic link (REG_OPTION_CREATE_LINK): its value [`LINK_VALUE`] names the key it stands for.
    pub link: bool,
    children: BTreeMap<String, KeyId>,
    values: BTreeMap<String, Value>,
}

impl Key {
    /// Subkeys in order of their names.
    pub fn children(&self) -> impl ExactSizeIterator<Item = KeyId> + '_ {
        self.children.values().copied()
    }

    /// Values in order of their names.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &Value> + '_ {
        self.values.values()
    }

    /// The value of that name.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.values.get(&fold(name))
    }
}

#[derive(Clone, Debug, Default)]
struct Slot {
    generation: u32,
    key: Option<Key>,
}

/// The tree. Its root is `\Registry`.
#[derive(Clone, Debug)]
pub struct Registry {
    slots: Vec<Slot>,
    free: Vec<usize>,
    bytes: usize,
    /// Keys that NtLoadKey has made of hives: their files keep them.
    loaded: HashSet<KeyId>,
}

/// The only value of a symbolic link.
pub const LINK_VALUE: &str = "SymbolicLinkValue";
/// Links followed before a path is taken for a loop.
const MAX_LINKS: usize = 32;

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Key(KeyId),
    /// Only the last component is missing.
    Vacancy {
        parent: KeyId,
        name: String,
    },
}

/// How a key is created.
#[derive(Clone, Copy, Debug, Default)]
pub struct CreateOptions<'a> {
    /// Class name.
    pub class: &'a str,
    /// REG_OPTION_VOLATILE.
    pub volatile: bool,
    /// REG_OPTION_CREATE_LINK: the new key is a symbolic link.
    pub link: bool,
    /// OBJ_OPENLINK: a link at the end of the path is opened itself.
    pub open_link: bool,
}

/// Keys of the root. `A` is there once a program has loaded a hive of its own.
const BRANCHES: [&str; 3] = ["MACHINE", "USER", "A"];
/// Longest key name in UTF-16 units.
const MAX_KEY_NAME: usize = 256;
/// Longest value name in UTF-16 units.
const MAX_VALUE_NAME: usize = 16_383;
/// Deepest nesting.
const MAX_DEPTH: usize = 512;
/// Bytes of names and data that a guest may store.
const MAX_BYTES: usize = 256 << 20;
/// What a key itself costs beside its name.
const KEY_COST: usize = 256;

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// A tree of nothing but its root.
    #[must_use]
    pub fn new() -> Self {
        let root = Key {
            name: "REGISTRY".to_owned(),
            class: String::new(),
            parent: None,
            last_write: 0,
            volatile: false,
            link: false,
            children: BTreeMap::new(),
            values: BTreeMap::new(),
        };
        Self {
            slots: vec![Slot { generation: 0, key: Some(root) }],
            free: Vec::new(),
            bytes: 0,
            loaded: HashSet::new(),
        }
    }

    /// `\Registry`.
    #[must_use]
    pub fn root(&self) -> KeyId {
        KeyId { index: 0, generation: 0 }
    }

    /// The key, unless it was deleted.
    pub fn key(&self, id: KeyId) -> Result<&Key, Status> {
        let slot = self.slots.get(id.index).filter(|slot| slot.generation == id.generation);
        slot.and_then(|slot| slot.key.as_ref()).ok_or(Status::KEY_DELETED)
    }

    fn key_mut(&mut self, id: KeyId) -> Result<&mut Key, Status> {
        let slot = self.slots.get_mut(id.index).filter(|slot| slot.generation == id.generation);
        slot.and_then(|slot| slot.key.as_mut()).ok_or(Status::KEY_DELETED)
    }

    /// Components of a path relative to a key. Separators may be repeated, and may end the path.
    fn components(path: &str) -> Result<Vec<&str>, Status> {
        let parts: Vec<&str> = path.split('\\').filter(|part| !part.is_empty()).collect();
        if parts.iter().any(|part| part.encode_utf16().count() > MAX_KEY_NAME) {
            return Err(Status::INVALID_PARAMETER);
        }
        Ok(parts)
    }

    fn child(&self, id: KeyId, name: &str) -> Result<Option<KeyId>, Status> {
        Ok(self.key(id)?.children.get(&fold(name)).copied())
    }

    /// Follows a path and the symbolic links on it; one at its end only without `open_link`.
    fn find(&self, base: KeyId, path: &str, open_link: bool) -> Result<Found, Status> {
        self.key(base)?;
        let mut at = base;
        let mut rest: Vec<String> = Self::components(path)?.into_iter().rev().map(str::to_owned).collect();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            let Some(child) = self.child(at, &part)? else {
                return if rest.is_empty() {
                    Ok(Found::Vacancy { parent: at, name: part })
                } else {
                    Err(Status::OBJECT_NAME_NOT_FOUND)
                };
            };
            let key = self.key(child)?;
            if !key.link || rest.is_empty() && open_link {
                at = child;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Status::NAME_TOO_LONG);
            }
            let target = key.value(LINK_VALUE).map(link_target).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
            let inside = strip_root(&target).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
            rest.extend(Self::components(inside)?.into_iter().rev().map(str::to_owned));
            at = self.root();
        }
        Ok(Found::Key(at))
    }

    /// Opens an existing key by a path relative to `base`, through symbolic links.
    pub fn open(&self, base: KeyId, path: &str) -> Result<KeyId, Status> {
        self.open_with(base, path, false)
    }

    /// The same; with `open_link` a link at the end of the path is opened itself.
    pub fn open_with(&self, base: KeyId, path: &str, open_link: bool) -> Result<KeyId, Status> {
        match self.find(base, path, open_link)? {
            Found::Key(key) => Ok(key),
            Found::Vacancy { .. } => Err(Status::OBJECT_NAME_NOT_FOUND),
        }
    }

    /// Opens a key or creates its last component; the flag says whether it is new.
    pub fn create(
        &mut self,
        base: KeyId,
        path: &str,
        options: CreateOptions<'_>,
        now: i64,
    ) -> Result<(KeyId, bool), Status> {
        let (at, last) = match self.find(base, path, options.open_link || options.link)? {
            Found::Key(_) if options.link => return Err(Status::OBJECT_NAME_COLLISION),
            Found::Key(key) => return Ok((key, false)),
            Found::Vacancy { parent, name } => (parent, name),
        };
        let CreateOptions { class, volatile, link, .. } = options;
        // `\Registry` itself takes no keys beside its branches.
        if at == self.root() && !BRANCHES.contains(&fold(&last).as_str()) {
            return Err(Status::ACCESS_DENIED);
        }
        if self.key(at)?.volatile && !volatile {
            return Err(Status::CHILD_MUST_BE_VOLATILE);
        }
        if self.depth(at) >= MAX_DEPTH {
            return Err(Status::INVALID_PARAMETER);
        }
        self.charge(KEY_COST + last.len() + class.len())?;
        let key = Key {
            name: last.clone(),
            class: class.to_owned(),
            parent: Some(at),
            last_write: now,
            volatile,
            link,
            children: BTreeMap::new(),
            values: BTreeMap::new(),
        };
        let id = match self.free.pop() {
            Some(index) => {
                // A freed index always has its slot.
                let slot = &mut self.slots[index];
                slot.key = Some(key);
                KeyId { index, generation: slot.generation }
            }
            None => {
                self.slots.push(Slot { generation: 0, key: Some(key) });
                KeyId { index: self.slots.len() - 1, generation: 0 }
            }
        };
        let parent = self.key_mut(at)?;
        parent.children.insert(fold(&last), id);
        parent.last_write = now;
        Ok((id, true))
    }

    /// Creates every missing component; for building trees.
    pub fn create_all(&mut self, base: KeyId, path: &str, now: i64) -> Result<KeyId, Status> {
        let mut at = base;
        for part in Self::components(path)? {
            at = self.create(at, part, CreateOptions::default(), now)?.0;
        }
        Ok(at)
    }

    /// Deletes a key without subkeys.
    pub fn delete(&mut self, id: KeyId, now: i64) -> Result<(), Status> {
        let key = self.key(id)?;
        let Some(parent) = key.parent.filter(|_| key.children.is_empty()) else { return Err(Status::CANNOT_DELETE) };
        let name = fold(&key.name);
        let cost = KEY_COST
            + key.name.len()
            + key.class.len()
            + key.values.values().map(|v| v.name.len() + v.data.len()).sum::<usize>();
        let parent = self.key_mut(parent)?;
        parent.children.remove(&name);
        parent.last_write = now;
        self.loaded.remove(&id);
        let slot = &mut self.slots[id.index];
        slot.key = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        self.bytes = self.bytes.saturating_sub(cost);
        Ok(())
    }

    /// Renames a key in its parent.
    pub fn rename(&mut self, id: KeyId, name: &str, now: i64) -> Result<(), Status> {
        if name.is_empty() || name.contains('\\') || name.encode_utf16().count() > MAX_KEY_NAME {
            return Err(Status::INVALID_PARAMETER);
        }
        let key = self.key(id)?;
        let parent = key.parent.ok_or(Status::ACCESS_DENIED)?;
        let (old, new) = (fold(&key.name), fold(name));
        if self.key(parent)?.children.contains_key(&new) {
            return Err(Status::CANNOT_DELETE);
        }
        let siblings = &mut self.key_mut(parent)?.children;
        siblings.remove(&old);
        siblings.insert(new, id);
        let key = self.key_mut(id)?;
        name.clone_into(&mut key.name);
        key.last_write = now;
        Ok(())
    }

    /// Sets a value.
    pub fn set_value(&mut self, id: KeyId, name: &str, kind: u32, data: Vec<u8>, now: i64) -> Result<(), Status> {
        if name.encode_utf16().count() > MAX_VALUE_NAME {
            return Err(Status::INVALID_PARAMETER);
        }
        if self.key(id)?.link && (kind != value_type::LINK || fold(name) != fold(LINK_VALUE)) {
            return Err(Status::ACCESS_DENIED);
        }
        let old = self.key(id)?.value(name).map_or(0, |v| v.name.len() + v.data.len());
        self.charge(name.len() + data.len())?;
        self.bytes = self.bytes.saturating_sub(old);
        let key = self.key_mut(id)?;
        key.values.insert(fold(name), Value { name: name.to_owned(), kind, data });
        key.last_write = now;
        Ok(())
    }

    /// Deletes a value.
    pub fn delete_value(&mut self, id: KeyId, name: &str, now: i64) -> Result<(), Status> {
        let key = self.key_mut(id)?;
        let value = key.values.remove(&fold(name)).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
        key.last_write = now;
        self.bytes = self.bytes.saturating_sub(value.name.len() + value.data.len());
        Ok(())
    }

    /// Deletes all values and subkeys of a key.
    pub fn clear(&mut self, id: KeyId, now: i64) -> Result<(), Status> {
        let mut stack: Vec<KeyId> = self.key(id)?.children().collect();
        while let Some(&key) = stack.last() {
            let before = stack.len();
            stack.extend(self.key(key)?.children());
            if stack.len() == before {
                stack.pop();
                self.delete(key, now)?;
            }
        }
        let key = self.key_mut(id)?;
        key.last_write = now;
        let values = std::mem::take(&mut key.values);
        let bytes: usize = values.values().map(|value| value.name.len() + value.data.len()).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
        Ok(())
    }

    /// Copies what a key of another registry holds into an empty one.
    pub fn copy(&mut self, from: &Self, source: KeyId, target: KeyId) -> Result<(), Status> {
        let mut queue = vec![(source, target)];
        while let Some((source, target)) = queue.pop() {
            let key = from.key(source)?;
            let volatile = self.key(target)?.volatile;
            for value in key.values() {
                self.set_value(target, &value.name, value.kind, value.data.clone(), key.last_write)?;
            }
            for child in key.children() {
                let below = from.key(child)?;
                let options = CreateOptions { class: &below.class, link: below.link, volatile, open_link: true };
                queue.push((child, self.create(target, &below.name, options, below.last_write)?.0));
            }
            self.restore_stamp(target, &key.class, key.last_write);
        }
        Ok(())
    }

    /// Gives a key the class and the time of change that it had elsewhere.
    fn restore_stamp(&mut self, id: KeyId, class: &str, last_write: i64) {
        if let Ok(key) = self.key_mut(id) {
            class.clone_into(&mut key.class);
            key.last_write = last_write;
        }
    }

    /// What is there now does not count as stored by the guest.
    fn forgive(&mut self) {
        self.bytes = 0;
    }

    /// `\REGISTRY\...` path of a key.
    pub fn path_of(&self, id: KeyId) -> Result<String, Status> {
        let mut parts = Vec::new();
        let mut at = Some(id);
        while let Some(id) = at {
            let key = self.key(id)?;
            parts.push(key.name.as_str());
            at = key.parent;
        }
        Ok(parts.iter().rev().fold(String::new(), |path, part| path + "\\" + part))
    }

    fn depth(&self, id: KeyId) -> usize {
        std::iter::successors(Some(id), |&at| self.key(at).ok()?.parent).take(MAX_DEPTH + 1).count()
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Status> {
        self.bytes = self.bytes.checked_add(bytes).filter(|&n| n <= MAX_BYTES).ok_or(Status::INSUFFICIENT_RESOURCES)?;
        Ok(())
    }
}

/// Target of a symbolic link. One that is no Unicode text leads nowhere.
fn link_target(value: &Value) -> String {
    let units: Vec<u16> = value.data.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    String::from_utf16_lossy(&units)
}

/// What follows `\Registry\` in an absolute path.
fn strip_root(path: &str) -> Option<&str> {
    const ROOT: &str = "\\Registry\\";
    path.get(..ROOT.len()).filter(|start| start.eq_ignore_ascii_case(ROOT)).map(|_| &path[ROOT.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: CreateOptions<'_> = CreateOptions { class: "", volatile: false, link: false, open_link: false };

    #[test]
    fn links_lead_to_their_targets() {
        let mut registry = Registry::new();
        let user = registry.create_all(registry.root(), "User", 0).unwrap();
        let link = CreateOptions { link: true, ..PLAIN };
        let (id, _) = registry.create(user, "link", link, 0).unwrap();
        assert_eq!(registry.create(user, "link", link, 0), Err(Status::OBJECT_NAME_COLLISION));
        assert_eq!(registry.open(user, "link"), Err(Status::OBJECT_NAME_NOT_FOUND));
        let set = |registry: &mut Registry, name: &str, kind, target: &str| {
            registry.set_value(id, name, kind, crate::strings::utf16_bytes(target), 0)
        };
        assert_eq!(set(&mut registry, LINK_VALUE, 1, "x"), Err(Status::ACCESS_DENIED));
        assert_eq!(set(&mut registry, "other", value_type::LINK, "x"), Err(Status::ACCESS_DENIED));
        set(&mut registry, "symbolicLINKvalue", value_type::LINK, "\\REGISTRY\\user\\target").unwrap();
        // Creating through the link creates the target.
        let (target, new) = registry.create(user, "link", PLAIN, 0).unwrap();
        assert!(new && target != id);
        assert_eq!(registry.path_of(target).unwrap(), "\\REGISTRY\\User\\target");
        let sub = registry.create_all(user, "link\\sub", 0).unwrap();
        assert_eq!(registry.open(target, "sub"), Ok(sub));
        assert_eq!(registry.open_with(user, "link", true), Ok(id));
        set(&mut registry, LINK_VALUE, value_type::LINK, "\\Registry\\User\\link\\sub").unwrap();
        assert_eq!(registry.open(user, "link"), Err(Status::NAME_TOO_LONG));
        set(&mut registry, LINK_VALUE, value_type::LINK, "relative").unwrap();
        assert_eq!(registry.open(user, "link"), Err(Status::OBJECT_NAME_NOT_FOUND));
    }

    #[test]
    fn keys_ignore_case_and_keep_their_spelling() {
        let mut registry = Registry::new();
        let machine = registry.create_all(registry.root(), "Machine\\Software", 1).unwrap();
        let (id, new) = registry.create(machine, "Ünïcode Key", PLAIN, 2).unwrap();
        assert!(new);
        assert_eq!(registry.create(machine, "üNÏCODE kEY\\", PLAIN, 3), Ok((id, false)));
        assert_eq!(registry.open(registry.root(), "MACHINE\\software\\ÜNÏCODE KEY"), Ok(id));
        assert_eq!(registry.path_of(id).unwrap(), "\\REGISTRY\\Machine\\Software\\Ünïcode Key");
        assert_eq!(registry.key(machine).unwrap().last_write, 2);
    }

    #[test]
    fn only_the_last_component_is_created() {
        let mut registry = Registry::new();
        let user = registry.create_all(registry.root(), "User", 0).unwrap();
        assert_eq!(registry.create(user, "a\\b", PLAIN, 0), Err(Status::OBJECT_NAME_NOT_FOUND));
        assert_eq!(registry.create(user, "a\\\\b", PLAIN, 0), Err(Status::OBJECT_NAME_NOT_FOUND));
        assert!(registry.create(user, "c\\\\", PLAIN, 0).is_ok_and(|(_, new)| new));
        assert_eq!(registry.create(user, &"x".repeat(257), PLAIN, 0), Err(Status::INVALID_PARAMETER));
        assert_eq!(registry.open(user, ""), Ok(user));
        let (volatile, _) = registry.create(user, "v", CreateOptions { volatile: true, ..PLAIN }, 0).unwrap();
        assert_eq!(registry.create(volatile, "s", PLAIN, 0), Err(Status::CHILD_MUST_BE_VOLATILE));
    }

    #[test]
    fn deleted_keys_answer_so() {
        let mut registry = Registry::new();
        let a = registry.create_all(registry.root(), "User\\a", 0).unwrap();
        let b = registry.create_all(a, "b", 0).unwrap();
        assert_eq!(registry.delete(a, 0), Err(Status::CANNOT_DELETE));
        assert_eq!(registry.delete(registry.root(), 0), Err(Status::CANNOT_DELETE));
        registry.delete(b, 0).unwrap();
        assert_eq!(registry.set_value(b, "x", 1, vec![], 0), Err(Status::KEY_DELETED));
        let again = registry.create_all(a, "b", 0).unwrap();
        assert_ne!(again, b);
        assert_eq!(registry.open(b, ""), Err(Status::KEY_DELETED));
    }

    #[test]
    fn values_are_set_enumerated_and_deleted() {
        let mut registry = Registry::new();
        let key = registry.create_all(registry.root(), "User\\k", 0).unwrap();
        registry.set_value(key, "Beta", 4, vec![1, 0, 0, 0], 0).unwrap();
        registry.set_value(key, "", 1, vec![0, 0], 0).unwrap();
        registry.set_value(key, "BETA", 4, vec![2, 0, 0, 0], 5).unwrap();
        let names: Vec<_> = registry.key(key).unwrap().values().map(|v| (v.name.as_str(), v.data.len())).collect();
        assert_eq!(names, [("", 2), ("BETA", 4)]);
        registry.delete_value(key, "beta", 6).unwrap();
        assert_eq!(registry.delete_value(key, "beta", 6), Err(Status::OBJECT_NAME_NOT_FOUND));
        let huge = vec![0; MAX_BYTES];
        assert_eq!(registry.set_value(key, "huge", 3, huge, 0), Err(Status::INSUFFICIENT_RESOURCES));
    }

    #[test]
    fn nesting_is_bounded() {
        let mut registry = Registry::new();
        let mut key = registry.create_all(registry.root(), "User", 0).unwrap();
        let deepest = (0..600).find_map(|_| match registry.create(key, "d", PLAIN, 0) {
            Ok((next, _)) => {
                key = next;
                None
            }
            Err(status) => Some(status),
        });
        assert_eq!(deepest, Some(Status::INVALID_PARAMETER));
    }

    #[test]
    fn keys_are_renamed() {
        let mut registry = Registry::new();
        let key = registry.create_all(registry.root(), "User\\old", 0).unwrap();
        let user = registry.open(registry.root(), "user").unwrap();
        registry.create_all(user, "other", 0).unwrap();
        assert_eq!(registry.rename(key, "OTHER", 0), Err(Status::CANNOT_DELETE));
        assert_eq!(registry.rename(key, "a\\b", 0), Err(Status::INVALID_PARAMETER));
        registry.rename(key, "New", 0).unwrap();
        assert_eq!(registry.open(user, "new"), Ok(key));
        assert!(registry.open(user, "old").is_err());
    }
}
