//! Objects and their lifetimes.

use super::handle::{Handle, HandleEntry, HandleTable};
use super::namespace::Directory;
use super::types::{Body, ObjectType};
use crate::status::Status;

/// Names an object for as long as it lives; stale ones are detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    index: u32,
    generation: u32,
}

impl ObjectId {
    /// Where a debugger would be told that the object lies: unique, and nothing is there.
    #[must_use]
    pub const fn pointer(self) -> u64 {
        0xFFFF_FA80_0000_0000 + (self.index as u64) * 0x80
    }
}

/// An object with its header.
#[derive(Debug)]
pub struct Object {
    /// What it is.
    pub body: Body,
    /// Last component of its name and the directory that holds it.
    pub name: Option<(ObjectId, String)>,
    /// Survives without handles (OBJ_PERMANENT).
    pub permanent: bool,
    /// Open handles.
    pub handle_count: u32,
    /// References by other objects, threads and running services, handles not included.
    pub pointer_count: u32,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    object: Option<Object>,
}

/// All objects.
#[derive(Debug)]
pub struct ObjectManager {
    slots: Vec<Slot>,
    free: Vec<u32>,
    dead: Vec<(ObjectId, Body)>,
    /// Jobs, files and debug objects that have lost their last handle.
    closed: Vec<ObjectId>,
    root: ObjectId,
}

/// `OBJECT_ATTRIBUTES.Attributes` bits.
pub mod attributes {
    /// Children inherit the handle.
    pub const INHERIT: u32 = 0x2;
    /// The object outlives its handles.
    pub const PERMANENT: u32 = 0x10;
    /// Only one handle may be open at a time.
    pub const EXCLUSIVE: u32 = 0x20;
    /// Names compare without case.
    pub const CASE_INSENSITIVE: u32 = 0x40;
    /// An existing object is opened instead of failing.
    pub const OPENIF: u32 = 0x80;
    /// A symbolic link itself is opened, not its target.
    pub const OPENLINK: u32 = 0x100;
    /// Bits a caller may set.
    pub const VALID: u32 = 0x1FF2;
}

impl Default for ObjectManager {
    fn default() -> Self {
        Self::new()
    }
}

impl ObjectManager {
    /// A manager with an empty root directory.
    #[must_use]
    pub fn new() -> Self {
        let root = ObjectId { index: 0, generation: 0 };
        let object = Object {
            body: Body::Directory(Directory::default()),
            name: None,
            permanent: true,
            handle_count: 0,
            pointer_count: 1,
        };
        Self {
            slots: vec![Slot { generation: 0, object: Some(object) }],
            free: Vec::new(),
            dead: Vec::new(),
            closed: Vec::new(),
            root,
        }
    }

    /// The directory `\`.
    #[must_use]
    pub fn root(&self) -> ObjectId {
        self.root
    }

    /// Adds an object without a name; the caller holds one reference to it.
    pub fn insert(&mut self, body: Body) -> ObjectId {
        let object = Object { body, name: None, permanent: false, handle_count: 0, pointer_count: 1 };
        match self.free.pop() {
            Some(index) => {
                // A freed index always has its slot.
                let slot = &mut self.slots[index as usize];
                slot.object = Some(object);
                ObjectId { index, generation: slot.generation }
            }
            None => {
                let index = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
                self.slots.push(Slot { generation: 0, object: Some(object) });
                ObjectId { index, generation: 0 }
            }
        }
    }

    /// The object, unless it is gone.
    #[must_use]
    pub fn get(&self, id: ObjectId) -> Option<&Object> {
        self.slots.get(id.index as usize).filter(|s| s.generation == id.generation)?.object.as_ref()
    }

    /// The object, unless it is gone.
    pub fn get_mut(&mut self, id: ObjectId) -> Option<&mut Object> {
        self.slots.get_mut(id.index as usize).filter(|s| s.generation == id.generation)?.object.as_mut()
    }

    /// The object's body.
    pub fn body(&self, id: ObjectId) -> Result<&Body, Status> {
        self.get(id).map(|o| &o.body).ok_or(Status::INVALID_HANDLE)
    }

    /// The object's body, to change.
    pub fn body_mut(&mut self, id: ObjectId) -> Result<&mut Body, Status> {
        self.get_mut(id).map(|o| &mut o.body).ok_or(Status::INVALID_HANDLE)
    }

    /// Counts one more reference.
    pub fn reference(&mut self, id: ObjectId) {
        if let Some(object) = self.get_mut(id) {
            object.pointer_count = object.pointer_count.saturating_add(1);
        }
    }

    /// Gives a reference back.
    pub fn dereference(&mut self, id: ObjectId) {
        if let Some(object) = self.get_mut(id) {
            object.pointer_count = object.pointer_count.saturating_sub(1);
            self.collect(id);
        }
    }

    /// Opens a handle with `desired` access (generic bits are mapped, MAXIMUM_ALLOWED grants everything).
    pub fn open(
        &mut self,
        table: &mut HandleTable,
        id: ObjectId,
        desired: u32,
        attributes: u32,
    ) -> Result<Handle, Status> {
        let object = self.get_mut(id).ok_or(Status::INVALID_HANDLE)?;
        let access = object.body.object_type().map_access(desired);
        let handle = table.insert(HandleEntry {
            object: id,
            access,
            inherit: attributes & attributes::INHERIT != 0,
            protect_from_close: false,
        })?;
        object.handle_count = object.handle_count.saturating_add(1);
        Ok(handle)
    }

    /// Opens the first handle to a new object and gives the caller's reference up to it.
    pub fn open_new(
        &mut self,
        table: &mut HandleTable,
        body: Body,
        desired: u32,
        attributes: u32,
    ) -> Result<Handle, Status> {
        let id = self.insert(body);
        let handle = self.open(table, id, desired, attributes);
        self.dereference(id);
        handle
    }

    /// Closes a handle.
    pub fn close(&mut self, table: &mut HandleTable, handle: Handle) -> Result<(), Status> {
        if table.get(handle)?.protect_from_close {
            return Err(Status::HANDLE_NOT_CLOSABLE);
        }
        let entry = table.remove(handle)?;
        self.handle_closed(entry.object);
        Ok(())
    }

    /// Closes every handle of a process that ends, protected ones too.
    pub fn close_all(&mut self, table: &mut HandleTable) {
        for (_, entry) in std::mem::take(table).iter() {
            self.handle_closed(entry.object);
        }
    }

    fn handle_closed(&mut self, id: ObjectId) {
        if let Some(object) = self.get_mut(id) {
            object.handle_count = object.handle_count.saturating_sub(1);
            if object.handle_count == 0 && matches!(object.body, Body::Job(_) | Body::File(_) | Body::DebugObject(_)) {
                self.closed.push(id);
            }
            self.collect(id);
        }
    }

    /// Resolves a handle to an object of the wanted type with the wanted access; without a wanted type
    /// any will do.
    pub fn by_handle(
        &self,
        table: &HandleTable,
        handle: Handle,
        wanted: Option<ObjectType>,
        access: u32,
    ) -> Result<ObjectId, Status> {
        let entry = table.get(handle)?;
        let body = self.body(entry.object)?;
        if wanted.is_some_and(|t| t != body.object_type()) {
            return Err(Status::OBJECT_TYPE_MISMATCH);
        }
        if entry.access & access != access {
            return Err(Status::ACCESS_DENIED);
        }
        Ok(entry.object)
    }

    /// Removes the object if nothing holds it any more.
    pub(super) fn collect(&mut self, id: ObjectId) {
        let Some(object) = self.get(id) else { return };
        if object.handle_count > 0 {
            return;
        }
        if let Some((directory, name)) = object.name.clone() {
            // The directory's reference keeps a permanent object alive; a temporary one loses its name first.
            if object.permanent {
                return;
            }
            if object.pointer_count == 0 {
                if let Some(Object { body: Body::Directory(parent), .. }) = self.get_mut(directory) {
                    parent.remove(&name);
                }
                self.dereference(directory);
            }
        }
        let Some(slot) = self.slots.get_mut(id.index as usize) else { return };
        if slot.object.as_ref().is_some_and(|o| o.pointer_count == 0 && !o.permanent)
            && let Some(object) = slot.object.take()
        {
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(id.index);
            self.dead.push((id, object.body));
        }
    }

    /// Counts a handle that was copied into a table.
    pub fn count_handle(&mut self, id: ObjectId) {
        if let Some(object) = self.get_mut(id) {
            object.handle_count = object.handle_count.saturating_add(1);
        }
    }

    /// Jobs, files and debug objects whose last handle was closed since the last call. Some are dead already.
    pub fn take_closed(&mut self) -> Vec<ObjectId> {
        std::mem::take(&mut self.closed)
    }

    /// Bodies of objects that died since the last call.
    pub fn take_dead(&mut self) -> Vec<(ObjectId, Body)> {
        std::mem::take(&mut self.dead)
    }

    /// Every living object.
    pub fn iter(&self) -> impl Iterator<Item = (ObjectId, &Object)> + '_ {
        self.slots.iter().enumerate().filter_map(|(i, slot)| {
            let id = ObjectId { index: u32::try_from(i).ok()?, generation: slot.generation };
            Some((id, slot.object.as_ref()?))
        })
    }
}
