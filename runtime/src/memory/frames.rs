//! Page frames: runs of pages in the memory file, and who owns them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lstar_arch::PAGE_SIZE;

use super::MapError;
use super::window::MemoryFile;

/// From so many bytes on a system call costs less than the faults that it spares.
pub(super) const MANY: usize = 16 << 10;

/// Allocator of page frames (offsets in the memory file).
#[derive(Debug)]
pub(super) struct FrameStore {
    pub file: MemoryFile,
    state: Mutex<FrameState>,
    limit: u64,
}

#[derive(Debug, Default)]
struct FrameState {
    /// Everything from here on has never been used.
    next: u64,
    used: u64,
    /// Free runs below `next`, by offset; no two touch.
    free: BTreeMap<u64, u64>,
    /// The same as (size, offset).
    by_size: BTreeSet<(u64, u64)>,
}

impl FrameState {
    /// The smallest free run that is large enough, cut to size.
    fn take_free(&mut self, size: u64) -> Option<u64> {
        let &(free, offset) = self.by_size.range((size, 0)..).next()?;
        self.by_size.remove(&(free, offset));
        self.free.remove(&offset);
        if free > size {
            self.free.insert(offset + size, free - size);
            self.by_size.insert((free - size, offset + size));
        }
        Some(offset)
    }

    fn give_back(&mut self, mut offset: u64, mut size: u64) {
        if let Some((&before, &length)) = self.free.range(..offset).next_back()
            && before + length == offset
        {
            self.free.remove(&before);
            self.by_size.remove(&(length, before));
            offset = before;
            size += length;
        }
        if let Some(length) = self.free.remove(&(offset + size)) {
            self.by_size.remove(&(length, offset + size));
            size += length;
        }
        if offset + size == self.next {
            self.next = offset;
            return;
        }
        self.free.insert(offset, size);
        self.by_size.insert((size, offset));
    }
}

impl FrameStore {
    /// Frames for `limit` bytes at most.
    pub fn new(limit: u64) -> Result<Self, MapError> {
        // Sparse: the file's size costs nothing, only what is touched does. Twice the limit leaves room for fragmentation.
        let file = MemoryFile::new(limit.saturating_mul(2).saturating_add(1 << 30).min(1 << 44))?;
        Ok(Self { file, state: Mutex::default(), limit })
    }

    fn state(&self) -> MutexGuard<'_, FrameState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.state().used
    }

    /// Zero-filled frames of `size` bytes, rounded up to pages.
    pub fn allocate(self: &Arc<Self>, size: u64) -> Result<Arc<Frames>, MapError> {
        let size = size.max(1).checked_next_multiple_of(PAGE_SIZE).ok_or(MapError::BadRange { start: 0, size })?;
        let full = MapError::OutOfMemory { limit: self.limit };
        let mut state = self.state();
        if size > self.limit.saturating_sub(state.used) {
            return Err(full);
        }
        let offset = match state.take_free(size) {
            Some(offset) => offset,
            None if size <= self.file.size().saturating_sub(state.next) => {
                state.next += size;
                state.next - size
            }
            None => return Err(full),
        };
        state.used += size;
        Ok(Arc::new(Frames { store: Arc::clone(self), offset, size }))
    }
}

/// A run of page frames, zero-filled when allocated: what a section object owns, and what mappings show. Freed with its
/// last owner.
#[derive(Debug)]
pub struct Frames {
    store: Arc<FrameStore>,
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Frames {
    /// Size in bytes, a multiple of the page size.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Copies bytes in, wherever the frames are mapped; `false`, with nothing copied, if they do not fit.
    ///
    /// Only for frames that nobody executes: translated code does not learn of the change.
    #[must_use]
    pub fn fill(&self, offset: u64, data: &[u8]) -> bool {
        let fits = offset.checked_add(data.len() as u64).is_some_and(|end| end <= self.size);
        if fits {
            match data.len() {
                ..MANY => self.store.file.write(self.offset + offset, data),
                MANY.. => self.store.file.write_many(self.offset + offset, data),
            }
        }
        fits
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.store.file.punch_hole(self.offset, self.size);
        let mut state = self.store.state();
        state.used -= self.size;
        state.give_back(self.offset, self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_runs_join_and_are_used_again() {
        let store = Arc::new(FrameStore::new(1 << 20).unwrap());
        let all: Vec<_> = (0..4).map(|_| store.allocate(0x2000).unwrap()).collect();
        let last = store.allocate(0x1000).unwrap();
        drop(all);
        let joined = store.allocate(0x8000).unwrap();
        assert_eq!((joined.offset, last.offset), (0, 0x8000));
        drop((joined, last));
        assert_eq!((store.used(), store.state().next), (0, 0));
        assert!(store.state().free.is_empty() && store.state().by_size.is_empty());
    }
}
