//! Handles: small multiples of four that name objects of one process.

use super::manager::ObjectId;
pub use crate::service::Handle;
use crate::status::Status;

/// What a handle refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandleEntry {
    /// The object.
    pub object: ObjectId,
    /// Granted access mask.
    pub access: u32,
    /// Children inherit it (OBJ_INHERIT).
    pub inherit: bool,
    /// NtClose refuses (HANDLE_FLAG_PROTECT_FROM_CLOSE).
    pub protect_from_close: bool,
}

/// Handles of one process.
#[derive(Debug, Default)]
pub struct HandleTable {
    slots: Vec<Option<HandleEntry>>,
    free: Vec<usize>,
    live: usize,
}

/// Most handles a process may have: the limit of Windows' own table.
const MAX_HANDLES: usize = 1 << 24;

impl HandleTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry. The caller has counted the handle on the object ([`super::ObjectManager::open`] does both).
    pub fn insert(&mut self, entry: HandleEntry) -> Result<Handle, Status> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < MAX_HANDLES => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return Err(Status::INSUFFICIENT_RESOURCES),
        };
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(entry);
        }
        self.live += 1;
        Ok(Handle((index as u64 + 1) * 4))
    }

    /// Adds an entry under the value that it has in another process. The value must be free.
    pub fn insert_at(&mut self, handle: Handle, entry: HandleEntry) -> Result<(), Status> {
        let index = Self::index(handle).filter(|&index| index < MAX_HANDLES).ok_or(Status::INVALID_HANDLE)?;
        for vacant in self.slots.len()..index {
            self.free.push(vacant);
        }
        if index >= self.slots.len() {
            self.slots.resize(index + 1, None);
        } else {
            self.free.retain(|&vacant| vacant != index);
        }
        match self.slots.get_mut(index) {
            Some(slot @ None) => *slot = Some(entry),
            _ => return Err(Status::INVALID_HANDLE),
        }
        self.live += 1;
        Ok(())
    }

    /// Slot of a handle value. The two low bits are the application's own ("tag bits") and do not count.
    fn index(handle: Handle) -> Option<usize> {
        usize::try_from(handle.0 >> 2).ok()?.checked_sub(1)
    }

    /// The entry behind a handle.
    pub fn get(&self, handle: Handle) -> Result<HandleEntry, Status> {
        Self::index(handle).and_then(|i| self.slots.get(i).copied().flatten()).ok_or(Status::INVALID_HANDLE)
    }

    /// The entry behind a handle, to change its attributes.
    pub fn get_mut(&mut self, handle: Handle) -> Result<&mut HandleEntry, Status> {
        Self::index(handle).and_then(|i| self.slots.get_mut(i)).and_then(Option::as_mut).ok_or(Status::INVALID_HANDLE)
    }

    /// Takes an entry out. The caller still has to uncount the handle on the object.
    pub fn remove(&mut self, handle: Handle) -> Result<HandleEntry, Status> {
        let index = Self::index(handle).ok_or(Status::INVALID_HANDLE)?;
        let slot = self.slots.get_mut(index).ok_or(Status::INVALID_HANDLE)?;
        let entry = slot.take().ok_or(Status::INVALID_HANDLE)?;
        self.free.push(index);
        self.live -= 1;
        Ok(entry)
    }

    /// Number of open handles.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether no handle is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// All open handles, in order of their values.
    pub fn iter(&self) -> impl Iterator<Item = (Handle, HandleEntry)> + '_ {
        self.slots.iter().enumerate().filter_map(|(i, slot)| slot.map(|entry| (Handle((i as u64 + 1) * 4), entry)))
    }
}
