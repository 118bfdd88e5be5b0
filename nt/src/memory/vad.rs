//! Virtual address descriptors: what each part of user space is allocated as.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use lstar_arch::PAGE_SIZE;
use lstar_runtime::{AddressSpace, Frames, MapError, Protection};
use rangemap::{RangeMap, RangeSet};

use super::protection::PageProtection;
use super::section::Section;
use super::{ALLOCATION_GRANULARITY, HIGHEST_USER_ADDRESS, LOWEST_USER_ADDRESS};
use crate::status::Status;

impl From<MapError> for Status {
    fn from(error: MapError) -> Self {
        match error {
            MapError::BadRange { .. } => Self::INVALID_PARAMETER,
            MapError::Conflict { .. } => Self::CONFLICTING_ADDRESSES,
            MapError::OutOfMemory { .. } => Self::COMMITMENT_LIMIT,
            MapError::BadSpace(_) => Self::INVALID_HANDLE,
            MapError::Host(_) => Self::NO_MEMORY,
        }
    }
}

/// Bytes of a file that are read at a touch at least, and at most.
const FILE_PIECE: u64 = 0x1_0000;
const MOST_AHEAD: u64 = 0x10_0000;

/// What backs an allocation.
#[derive(Clone, Debug)]
pub enum Backing {
    /// Private memory.
    Private,
    /// A reservation that only NtAllocateVirtualMemoryEx or NtMapViewOfSectionEx can turn into something.
    Placeholder,
    /// A thread's stack, grown on demand; the TEB whose StackLimit follows.
    Stack {
        /// The thread's TEB.
        teb: u64,
    },
    /// Frames of the kernel's own, the same in every process (KUSER_SHARED_DATA).
    KernelFrames(Arc<Frames>),
    /// A view of a data section, starting that many bytes into it.
    View {
        /// The section.
        section: Arc<Section>,
        /// Its memory.
        frames: Arc<Frames>,
        /// Offset of the view's first byte.
        offset: u64,
    },
    /// A view of an image.
    Image(Arc<Section>),
}

/// One allocation.
#[derive(Clone, Debug)]
pub struct Vad {
    /// End address.
    pub end: u64,
    /// What backs it.
    pub backing: Backing,
    /// AllocationProtect.
    pub protection: PageProtection,
    /// Committed pages, by address.
    pub pages: RangeMap<u64, PageProtection>,
    /// Pages of a view that were written and are private copies.
    pub private: RangeSet<u64>,
    /// MEM_WRITE_WATCH: the pages that were written since they were allocated or reset.
    pub written: Option<RangeSet<u64>>,
    /// Committed pages that are read from a file at the first touch; the machine has none there.
    pub unloaded: RangeSet<u64>,
    /// What was read last at a touch.
    ahead: Range<u64>,
}

/// All allocations of a process, by start address.
#[derive(Debug, Default)]
pub struct VadTree {
    vads: BTreeMap<u64, Vad>,
}

/// Where a new allocation may go.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// Lowest first byte.
    pub low: u64,
    /// Highest last byte.
    pub high: u64,
    /// Alignment, a power of two.
    pub alignment: u64,
    /// Prefer high addresses (MEM_TOP_DOWN).
    pub top_down: bool,
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            low: LOWEST_USER_ADDRESS,
            high: HIGHEST_USER_ADDRESS,
            alignment: ALLOCATION_GRANULARITY,
            top_down: false,
        }
    }
}

impl VadTree {
    /// The allocation that holds `address`.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<(u64, &Vad)> {
        self.vads.range(..=address).next_back().filter(|(_, vad)| address < vad.end).map(|(&start, vad)| (start, vad))
    }

    /// The allocation that holds `address`, to change.
    pub fn find_mut(&mut self, address: u64) -> Option<(u64, &mut Vad)> {
        let (&start, vad) = self.vads.range_mut(..=address).next_back()?;
        (address < vad.end).then_some((start, vad))
    }

    /// The allocation that holds all of a range.
    pub fn find_range(&mut self, range: &Range<u64>) -> Option<(u64, &mut Vad)> {
        self.find_mut(range.start).filter(|(_, vad)| range.end <= vad.end)
    }

    /// Start of the first allocation at or above `address`.
    #[must_use]
    pub fn next_start(&self, address: u64) -> Option<u64> {
        self.vads.range(address..).next().map(|(&start, _)| start)
    }

    /// All allocations in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Vad)> + '_ {
        self.vads.iter().map(|(&start, vad)| (start, vad))
    }

    /// Whether nothing is allocated in a range.
    #[must_use]
    pub fn is_free(&self, range: &Range<u64>) -> bool {
        self.vads.range(..range.end).next_back().is_none_or(|(_, vad)| vad.end <= range.start)
    }

    /// Finds room for `size` bytes.
    #[must_use]
    pub fn find_free(&self, size: u64, placement: Placement) -> Option<u64> {
        let Placement { low, high, alignment, top_down } = placement;
        let low = low.max(LOWEST_USER_ADDRESS);
        let end = high.min(HIGHEST_USER_ADDRESS) + 1;
        if top_down {
            let mut gap_end = end;
            for (&start, vad) in self.vads.range(..end).rev() {
                let candidate = gap_end.checked_sub(size)? & !(alignment - 1);
                if candidate >= vad.end {
                    return (candidate >= low).then_some(candidate);
                }
                gap_end = gap_end.min(start);
            }
            let candidate = gap_end.checked_sub(size)? & !(alignment - 1);
            return (candidate >= low).then_some(candidate);
        }
        let mut candidate = low.checked_next_multiple_of(alignment)?;
        // Rounding up can lead into or past allocations that begin below the candidate: each is looked at.
        let first = self.find(candidate).map_or(candidate, |(start, _)| start);
        for (&start, vad) in self.vads.range(first..) {
            if vad.end <= candidate {
                continue;
            }
            if candidate.checked_add(size)? <= start {
                break;
            }
            candidate = vad.end.checked_next_multiple_of(alignment)?;
        }
        (candidate.checked_add(size)? <= end).then_some(candidate)
    }

    /// Adds an allocation with nothing committed. The range must be free.
    pub fn insert(&mut self, range: Range<u64>, backing: Backing, protection: PageProtection) -> Result<(), Status> {
        if !self.is_free(&range) {
            return Err(Status::CONFLICTING_ADDRESSES);
        }
        let vad = Vad {
            end: range.end,
            backing,
            protection,
            pages: RangeMap::new(),
            private: RangeSet::new(),
            written: None,
            unloaded: RangeSet::new(),
            ahead: 0..0,
        };
        self.vads.insert(range.start, vad);
        Ok(())
    }

    /// Removes a whole allocation and unmaps its pages.
    pub fn remove(&mut self, space: &mut AddressSpace, start: u64) -> Result<Vad, Status> {
        let vad = self.vads.remove(&start).ok_or(Status::MEMORY_NOT_ALLOCATED)?;
        space.unmap(start, vad.end - start)?;
        Ok(vad)
    }

    /// Cuts allocations so that none crosses `at`.
    pub fn split(&mut self, at: u64) {
        let Some((start, vad)) = self.find_mut(at) else { return };
        if start == at {
            return;
        }
        let end = vad.end;
        let mut tail = vad.clone();
        if let Backing::View { offset, .. } = &mut tail.backing {
            *offset += at - start;
        }
        tail.pages.remove(0..at);
        vad.pages.remove(at..u64::MAX);
        tail.private.remove(0..at);
        vad.private.remove(at..u64::MAX);
        tail.unloaded.remove(0..at);
        vad.unloaded.remove(at..u64::MAX);
        if let (Some(tail), Some(head)) = (&mut tail.written, &mut vad.written) {
            tail.remove(0..at);
            head.remove(at..u64::MAX);
        }
        vad.end = at;
        self.vads.insert(at, Vad { end, ..tail });
    }

    /// Removes a range out of allocations, whatever remains of them.
    pub fn remove_range(&mut self, space: &mut AddressSpace, range: Range<u64>) -> Result<(), Status> {
        self.split(range.start);
        self.split(range.end);
        let starts: Vec<u64> = self.vads.range(range).map(|(&start, _)| start).collect();
        for start in starts {
            self.remove(space, start)?;
        }
        Ok(())
    }

    /// Joins the allocations of a range into one, if they are placeholders and cover it exactly.
    pub fn coalesce(&mut self, range: Range<u64>) -> Result<(), Status> {
        let mut at = range.start;
        while at < range.end {
            match self.vads.get(&at) {
                Some(Vad { end, backing: Backing::Placeholder, .. }) => at = *end,
                _ => return Err(Status::CONFLICTING_ADDRESSES),
            }
        }
        if at != range.end {
            return Err(Status::CONFLICTING_ADDRESSES);
        }
        let starts: Vec<u64> = self.vads.range(range.clone()).map(|(&start, _)| start).collect();
        for start in starts {
            self.vads.remove(&start);
        }
        self.insert(range, Backing::Placeholder, PageProtection::NOACCESS)
    }
}

impl Vad {
    /// Commits the pages of a range: fresh ones get memory, committed ones the new protection.
    pub fn commit(
        &mut self,
        space: &mut AddressSpace,
        start: u64,
        range: Range<u64>,
        protection: PageProtection,
    ) -> Result<(), Status> {
        self.load(space, start, &range)?;
        let gaps: Vec<Range<u64>> = self.pages.gaps(&range).collect();
        let committed: Vec<Range<u64>> = self.pages.overlapping(&range).map(|(r, _)| r.clone()).collect();
        let access = match self.written {
            // The first write to a watched page must fault.
            Some(_) => protection.access() - Protection::WRITE,
            None => protection.access(),
        };
        for gap in gaps {
            let size = gap.end - gap.start;
            match &self.backing {
                Backing::View { section, frames, offset } => {
                    let frame_offset = offset + (gap.start - start);
                    if section.is_unread(&(frame_offset..frame_offset + size)) {
                        self.commit_unloaded(gap, protection);
                        continue;
                    }
                    space.map_frames(gap.start, size, frames, frame_offset, access)?;
                }
                Backing::KernelFrames(frames) => {
                    space.map_frames(gap.start, size, frames, gap.start - start, access)?;
                }
                _ => space.map(gap.start, size, access)?,
            }
            self.pages.insert(gap, protection);
        }
        for old in committed {
            let part = old.start.max(range.start)..old.end.min(range.end);
            self.set_protection(space, part, protection)?;
        }
        Ok(())
    }

    /// Commits pages that are to be read from a file at the first touch.
    pub fn commit_unloaded(&mut self, range: Range<u64>, protection: PageProtection) {
        self.pages.insert(range.clone(), protection);
        self.unloaded.insert(range);
    }

    /// A page was touched that has not been read yet: reads some of what follows it, too; the more, the longer it goes on like
    /// that.
    pub fn load_at(&mut self, space: &mut AddressSpace, start: u64, page: u64) -> Result<bool, Status> {
        let first = page & !(FILE_PIECE - 1);
        let length = match self.ahead.end == first {
            true => (2 * (self.ahead.end - self.ahead.start)).clamp(FILE_PIECE, MOST_AHEAD),
            false => FILE_PIECE,
        };
        self.ahead = first..first + length;
        self.load(space, start, &(first..first + length))
    }

    /// Reads what of a range has not been read from a file; `start` is where the view begins. Says whether there was
    /// anything.
    pub fn load(&mut self, space: &mut AddressSpace, start: u64, range: &Range<u64>) -> Result<bool, Status> {
        let missing: Vec<Range<u64>> =
            self.unloaded.overlapping(range).map(|part| part.start.max(range.start)..part.end.min(range.end)).collect();
        for part in &missing {
            let access = self.pages.get(&part.start).ok_or(Status::NOT_COMMITTED)?.access();
            let size = part.end - part.start;
            match &self.backing {
                Backing::Image(section) => {
                    space.map(part.start, size, access)?;
                    section.load_image_part(space, start, part)?;
                }
                Backing::View { section, frames, offset } => {
                    let first = offset + (part.start - start);
                    section.read_file(&(first..first + size))?;
                    space.map_frames(part.start, size, frames, first, access)?;
                }
                _ => return Err(Status::NOT_COMMITTED),
            }
            self.unloaded.remove(part.clone());
        }
        Ok(!missing.is_empty())
    }

    /// Gives the memory of a range back; it stays reserved.
    pub fn decommit(&mut self, space: &mut AddressSpace, range: Range<u64>) -> Result<(), Status> {
        space.unmap(range.start, range.end - range.start)?;
        self.unloaded.remove(range.clone());
        // Whether a watched page was written is remembered beyond its memory.
        self.pages.remove(range);
        Ok(())
    }

    /// Changes the protection of committed pages and returns the first one's old protection.
    pub fn protect(
        &mut self,
        space: &mut AddressSpace,
        start: u64,
        range: Range<u64>,
        protection: PageProtection,
    ) -> Result<PageProtection, Status> {
        if self.pages.gaps(&range).next().is_some() {
            return Err(Status::NOT_COMMITTED);
        }
        let old = self.pages.get(&range.start).copied().ok_or(Status::NOT_COMMITTED)?;
        self.load(space, start, &range)?;
        self.set_protection(space, range, protection)?;
        Ok(old)
    }

    /// Protection of committed pages as asked for. Pages of views that are private copies can be written; those of
    /// images that are not are copied first.
    fn set_protection(
        &mut self,
        space: &mut AddressSpace,
        range: Range<u64>,
        protection: PageProtection,
    ) -> Result<(), Status> {
        let protection = protection.with_caching_of(self.protection);
        let shared = match self.backing {
            Backing::Image(_) => protection.copying(),
            _ => protection,
        };
        if self.private.is_empty() || matches!(self.backing, Backing::Private | Backing::Stack { .. }) {
            return self.set_pages(space, range, shared);
        }
        let copied: Vec<Range<u64>> = self.private.overlapping(&range).cloned().collect();
        for part in copied {
            let part = part.start.max(range.start)..part.end.min(range.end);
            self.set_pages(space, part, protection.written())?;
        }
        let rest: Vec<Range<u64>> = self.private.gaps(&range).collect();
        rest.into_iter().try_for_each(|part| self.set_pages(space, part, shared))
    }

    fn set_pages(
        &mut self,
        space: &mut AddressSpace,
        range: Range<u64>,
        protection: PageProtection,
    ) -> Result<(), Status> {
        let access = protection.access();
        match &self.written {
            Some(written) if access.contains(Protection::WRITE) => {
                for part in written.overlapping(&range) {
                    let part = part.start.max(range.start)..part.end.min(range.end);
                    space.protect(part.start, part.end - part.start, access)?;
                }
                for part in written.gaps(&range) {
                    space.protect(part.start, part.end - part.start, access - Protection::WRITE)?;
                }
            }
            _ => space.protect(range.start, range.end - range.start, access)?,
        }
        self.pages.insert(range, protection);
        Ok(())
    }

    /// A write to a committed page that the hardware refused: whether it is to be repeated, because the page was copied
    /// or is now known as written.
    pub fn resolve_write(&mut self, space: &mut AddressSpace, page: u64) -> Result<bool, Status> {
        let range = page..page + PAGE_SIZE;
        let Some(protection) = self.pages.get(&page).copied() else { return Ok(false) };
        if protection.is_copy() {
            let written = protection.written();
            if matches!(self.backing, Backing::View { .. }) && !self.private.contains(&page) {
                let mut contents = [0; PAGE_SIZE as usize];
                space.read_unchecked(page, &mut contents)?;
                space.unmap(page, PAGE_SIZE)?;
                space.map(page, PAGE_SIZE, written.access())?;
                space.write_unchecked(page, &contents)?;
            }
            self.private.insert(range.clone());
            self.set_pages(space, range, written)?;
            return Ok(true);
        }
        if let Some(written) = &mut self.written
            && protection.access().contains(Protection::WRITE)
            && !written.contains(&page)
        {
            written.insert(range);
            space.protect(page, PAGE_SIZE, protection.access())?;
            return Ok(true);
        }
        Ok(false)
    }

    /// What a service's probing of an output buffer does: watched pages of a range count as written, whatever the service
    /// then writes there.
    pub fn touch_for_write(&mut self, space: &mut AddressSpace, range: &Range<u64>) -> Result<(), Status> {
        let Some(written) = &self.written else { return Ok(()) };
        let untouched: Vec<u64> =
            written.gaps(range).flat_map(|gap| (gap.start..gap.end).step_by(PAGE_SIZE as usize)).collect();
        untouched.into_iter().try_for_each(|page| self.resolve_write(space, page).map(drop))
    }

    /// NtResetWriteWatch: forgets which pages of a range were written.
    pub fn reset_written(&mut self, space: &mut AddressSpace, range: &Range<u64>) -> Result<(), Status> {
        let Some(written) = &mut self.written else { return Err(Status::INVALID_PARAMETER_1) };
        let parts: Vec<Range<u64>> = written.overlapping(range).cloned().collect();
        written.remove(range.clone());
        for part in parts {
            let part = part.start.max(range.start)..part.end.min(range.end);
            let runs: Vec<(Range<u64>, PageProtection)> =
                self.pages.overlapping(&part).map(|(run, &protection)| (run.clone(), protection)).collect();
            for (run, protection) in runs {
                self.set_pages(space, run.start.max(part.start)..run.end.min(part.end), protection)?;
            }
        }
        Ok(())
    }

    /// Whether it is a view of an image.
    #[must_use]
    pub fn is_image(&self) -> bool {
        matches!(&self.backing, Backing::View { section, .. } if section.image().is_some())
    }

    /// The run of pages around `page` that share state and protection: its end and, when committed, its protection.
    #[must_use]
    pub fn run_at(&self, page: u64) -> (u64, Option<PageProtection>) {
        match self.pages.get_key_value(&page) {
            Some((range, &protection)) => (range.end.min(self.end), Some(protection)),
            None => {
                let next = self.pages.overlapping(&(page..u64::MAX)).next().map_or(self.end, |(range, _)| range.start);
                (next.min(self.end), None)
            }
        }
    }
}

/// The pages that hold a byte range; `None` when it wraps around.
#[must_use]
pub fn page_range(address: u64, size: u64) -> Option<Range<u64>> {
    let end = address.checked_add(size)?.checked_next_multiple_of(PAGE_SIZE)?;
    Some(address & !(PAGE_SIZE - 1)..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(ranges: &[(u64, u64)]) -> VadTree {
        let mut tree = VadTree::default();
        for &(start, end) in ranges {
            tree.insert(start..end, Backing::Private, PageProtection::READWRITE).unwrap();
        }
        tree
    }

    #[test]
    fn room_is_found_between_allocations() {
        let tree = tree(&[(0x1_0000, 0x2_1000), (0x4_0000, 0x5_0000)]);
        let bottom_up = Placement::default();
        assert_eq!(tree.find_free(0x1_0000, bottom_up), Some(0x3_0000));
        assert_eq!(tree.find_free(0x2_0000, bottom_up), Some(0x5_0000));
        assert_eq!(tree.find_free(u64::MAX - 5, bottom_up), None);
        // 0x20000 is taken up to 0x21000: aligned more coarsely the next place lies behind the other allocation.
        assert_eq!(tree.find_free(0x1000, Placement { alignment: 0x4_0000, ..bottom_up }), Some(0x8_0000));
        let top_down = Placement { top_down: true, high: 0x5_FFFF, ..bottom_up };
        assert_eq!(tree.find_free(0x1000, top_down), Some(0x5_0000));
        assert_eq!(tree.find_free(0x1_0000, Placement { high: 0x4_FFFF, ..top_down }), Some(0x3_0000));
        assert_eq!(tree.find_free(0x2_0000, Placement { high: 0x4_FFFF, ..top_down }), None);
    }

    #[test]
    fn splitting_keeps_pages_where_they_are() {
        let mut space = AddressSpace::new(1 << 30).unwrap();
        let mut tree = tree(&[(0x1_0000, 0x4_0000)]);
        let (start, vad) = tree.find_mut(0x1_0000).unwrap();
        vad.commit(&mut space, start, 0x1_0000..0x4_0000, PageProtection::READWRITE).unwrap();
        tree.remove_range(&mut space, 0x2_0000..0x3_0000).unwrap();
        assert!(tree.is_free(&(0x2_0000..0x3_0000)));
        assert_eq!(tree.find(0x1_8000).unwrap().1.end, 0x2_0000);
        let (start, tail) = tree.find(0x3_8000).unwrap();
        assert_eq!((start, tail.run_at(0x3_0000)), (0x3_0000, (0x4_0000, Some(PageProtection::READWRITE))));
        assert_eq!(space.protection(0x2_0000), None);
        assert!(space.protection(0x3_0000).is_some());
    }
}
