//! The memory manager: address descriptors, commitment, sections, faults.
//!
//! The machine's [`AddressSpace`] knows pages and their rights; this module knows what NT says about them. Every page
//! that is committed here is mapped there, with no rights while it is a guard page or PAGE_NOACCESS.

pub mod exports;
pub mod image;
pub mod protection;
pub mod section;
pub mod section_services;
pub mod services;
pub mod vad;
pub mod view;

use std::sync::Arc;

use lstar_arch::{GuestMemory, PAGE_SIZE, PageFault, PageFaultCode, Privilege};
use lstar_runtime::AddressSpace;

use crate::status::Status;
pub use protection::PageProtection;
use section::Section;
pub use vad::Placement;
use vad::{Backing, VadTree, page_range};

/// Allocations start at multiples of this.
pub const ALLOCATION_GRANULARITY: u64 = 0x1_0000;
/// MmLowestUserAddress.
pub const LOWEST_USER_ADDRESS: u64 = 0x1_0000;
/// MmHighestUserAddress of Windows 7: user space is 8 TiB.
pub const HIGHEST_USER_ADDRESS: u64 = 0x7FF_FFFE_FFFF;
/// Offset of StackLimit in the TEB.
const TEB_STACK_LIMIT: u64 = 0x10;
/// Pages at the low end of a stack that only the handling of its overflow may use, and one that nothing may.
const STACK_RESERVE_PAGES: u64 = 3;

/// What a fault on user memory turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultResolution {
    /// The access can be repeated.
    Retry,
    /// A guard page was touched; it is none any more.
    GuardPage,
    /// The stack is used up.
    StackOverflow,
    /// The access is wrong.
    AccessViolation,
}

/// One process's virtual memory as NT accounts for it.
#[derive(Debug, Default)]
pub struct MemoryManager {
    /// Allocations.
    pub vads: VadTree,
}

impl MemoryManager {
    /// Reads guest memory for a service, serving demand faults as hardware accesses would.
    pub fn read(
        &mut self,
        space: &mut AddressSpace,
        address: u64,
        buf: &mut [u8],
        mode: Privilege,
    ) -> Result<(), Status> {
        // Nothing is read from wherever an empty buffer is said to be.
        if buf.is_empty() {
            return Ok(());
        }
        while let Err(fault) = space.read(address, buf, mode) {
            self.serve_fault(space, fault)?;
        }
        Ok(())
    }

    /// Writes guest memory for a service.
    pub fn write(
        &mut self,
        space: &mut AddressSpace,
        address: u64,
        data: &[u8],
        mode: Privilege,
    ) -> Result<(), Status> {
        if data.is_empty() {
            return Ok(());
        }
        while let Err(fault) = space.write(address, data, mode) {
            self.serve_fault(space, fault)?;
        }
        Ok(())
    }

    /// Whether a service could write there: all pages are committed, or will be at the first touch, and writable.
    #[must_use]
    pub fn may_write(&self, address: u64, length: u64) -> bool {
        let Some(end) = address.checked_add(length) else { return false };
        let mut at = address;
        while at < end {
            let Some((_, vad)) = self.vads.find(at) else { return false };
            let (run, protection) = vad.run_at(at & !(PAGE_SIZE - 1));
            at = match (protection, &vad.backing) {
                (_, Backing::Stack { .. }) => vad.end,
                (Some(protection), _) => {
                    let writable = protection.access().contains(lstar_runtime::Protection::WRITE);
                    if protection.is_guard() || !writable && !protection.is_copy() {
                        return false;
                    }
                    run
                }
                // Committed through another view, perhaps.
                (None, Backing::View { .. }) => run,
                (None, _) => return false,
            };
        }
        true
    }

    /// Whether a service could read there: all pages are committed, or will be at the first touch, and readable.
    #[must_use]
    pub fn may_read(&self, address: u64, length: u64) -> bool {
        let Some(end) = address.checked_add(length) else { return false };
        let mut at = address;
        while at < end {
            let Some((_, vad)) = self.vads.find(at) else { return false };
            let (run, protection) = vad.run_at(at & !(PAGE_SIZE - 1));
            at = match (protection, &vad.backing) {
                (_, Backing::Stack { .. }) => vad.end,
                (Some(protection), _) if protection.access().contains(lstar_runtime::Protection::READ) => run,
                (None, Backing::View { .. }) => run,
                _ => return false,
            };
        }
        true
    }

    /// ProbeForWrite: an output buffer must be writable from end to end before a service does anything, and the probe's
    /// own write to each page counts where writes are watched.
    pub fn probe_for_write(&mut self, space: &mut AddressSpace, address: u64, length: u64) -> Result<(), Status> {
        if !self.may_write(address, length) {
            return Err(Status::ACCESS_VIOLATION);
        }
        let range = page_range(address, length).ok_or(Status::ACCESS_VIOLATION)?;
        let mut at = range.start;
        while let Some((_, vad)) = self.vads.find_mut(at).filter(|_| at < range.end) {
            let end = vad.end.min(range.end);
            vad.touch_for_write(space, &(at..end))?;
            at = end;
        }
        Ok(())
    }

    fn serve_fault(&mut self, space: &mut AddressSpace, fault: PageFault) -> Result<(), Status> {
        match self.resolve_fault(space, fault.address, fault.code) {
            FaultResolution::Retry => Ok(()),
            FaultResolution::GuardPage => Err(Status::GUARD_PAGE_VIOLATION),
            FaultResolution::StackOverflow => Err(Status::STACK_OVERFLOW),
            FaultResolution::AccessViolation => Err(Status::ACCESS_VIOLATION),
        }
    }

    /// Decides what a fault at a user address means, and does what is needed for a retry.
    pub fn resolve_fault(&mut self, space: &mut AddressSpace, address: u64, code: PageFaultCode) -> FaultResolution {
        let page = address & !(PAGE_SIZE - 1);
        if self.adopt_commits(space, address) {
            return FaultResolution::Retry;
        }
        let Some((start, vad)) = self.vads.find_mut(address) else { return FaultResolution::AccessViolation };
        if vad.unloaded.contains(&page) {
            return match vad.load_at(space, start, page) {
                Ok(true) => FaultResolution::Retry,
                _ => FaultResolution::AccessViolation,
            };
        }
        if let Backing::Stack { teb } = vad.backing {
            let teb_limit = teb.wrapping_add(TEB_STACK_LIMIT);
            let committed = vad.pages.get(&page).copied();
            if committed.is_none_or(PageProtection::is_guard) {
                return grow_stack(space, start, vad, page, teb_limit).unwrap_or(FaultResolution::AccessViolation);
            }
        }
        match vad.pages.get(&page).copied() {
            Some(protection) if protection.is_guard() => {
                let range = page..page + PAGE_SIZE;
                match vad.protect(space, start, range, protection.without_guard()) {
                    Ok(_) => FaultResolution::GuardPage,
                    Err(_) => FaultResolution::AccessViolation,
                }
            }
            Some(protection) => {
                if code.contains(PageFaultCode::WRITE) && vad.resolve_write(space, page) == Ok(true) {
                    return FaultResolution::Retry;
                }
                // The rights may have been raised since the access faulted.
                let access = protection.access();
                let needed = if code.contains(PageFaultCode::WRITE) {
                    lstar_runtime::Protection::WRITE
                } else if code.contains(PageFaultCode::FETCH) {
                    lstar_runtime::Protection::EXECUTE
                } else {
                    lstar_runtime::Protection::READ
                };
                let stale = access.contains(needed) && space.protection(page).is_none_or(|now| now != access);
                if stale && space.protect(page, PAGE_SIZE, access).is_ok() {
                    FaultResolution::Retry
                } else {
                    FaultResolution::AccessViolation
                }
            }
            None => FaultResolution::AccessViolation,
        }
    }

    /// Pages of a SEC_RESERVE section are committed for all its views at once: gives the view at `address` those that
    /// were committed through another one. Says whether there were any.
    pub fn adopt_commits(&mut self, space: &mut AddressSpace, address: u64) -> bool {
        let Some((start, vad)) = self.vads.find_mut(address) else { return false };
        let Backing::View { section, offset, .. } = &vad.backing else { return false };
        let offset = *offset;
        let mut adopted = false;
        for part in section.committed_within(offset..offset + (vad.end - start)) {
            let range = start + (part.start - offset)..start + (part.end - offset);
            let missing: Vec<std::ops::Range<u64>> = vad.pages.gaps(&range).collect();
            for gap in missing {
                // Without memory for it the page stays absent, and an access to it faults.
                adopted |= vad.commit(space, start, gap, vad.protection).is_ok();
            }
        }
        adopted
    }

    /// Reserves and commits memory where there is room.
    pub fn allocate(
        &mut self,
        space: &mut AddressSpace,
        size: u64,
        protection: PageProtection,
        placement: Placement,
    ) -> Result<u64, Status> {
        let size = page_range(0, size).ok_or(Status::NO_MEMORY)?.end;
        let start = self.vads.find_free(size, placement).ok_or(Status::NO_MEMORY)?;
        self.allocate_at(space, start, size, protection)?;
        Ok(start)
    }

    /// Reserves and commits memory at a fixed place.
    pub fn allocate_at(
        &mut self,
        space: &mut AddressSpace,
        start: u64,
        size: u64,
        protection: PageProtection,
    ) -> Result<(), Status> {
        let range = page_range(start, size).ok_or(Status::CONFLICTING_ADDRESSES)?;
        self.vads.insert(range.clone(), Backing::Private, protection)?;
        let Some((start, vad)) = self.vads.find_mut(start) else { return Err(Status::NO_MEMORY) };
        let committed = vad.commit(space, start, range, protection);
        if committed.is_err() {
            self.vads.remove(space, start)?;
        }
        committed
    }

    /// Shows frames that other processes see too, where the kernel wants them.
    pub fn map_kernel_frames(
        &mut self,
        space: &mut AddressSpace,
        start: u64,
        frames: &Arc<lstar_runtime::Frames>,
        protection: PageProtection,
    ) -> Result<(), Status> {
        let range = start..start + frames.size();
        self.vads.insert(range.clone(), Backing::KernelFrames(Arc::clone(frames)), protection)?;
        let Some((start, vad)) = self.vads.find_mut(start) else { return Err(Status::NO_MEMORY) };
        vad.commit(space, start, range, protection)
    }

    /// Reserves a stack and commits its upper end; what lies below a guard page follows on demand. Returns the range
    /// that is reserved and the first StackLimit.
    pub fn allocate_stack(
        &mut self,
        space: &mut AddressSpace,
        teb: u64,
        reserve: u64,
        commit: u64,
        placement: Placement,
    ) -> Result<(std::ops::Range<u64>, u64), Status> {
        let size = reserve
            .max(commit)
            .max(ALLOCATION_GRANULARITY)
            .checked_next_multiple_of(ALLOCATION_GRANULARITY)
            .ok_or(Status::NO_MEMORY)?;
        let start = self.vads.find_free(size, placement).ok_or(Status::NO_MEMORY)?;
        let range = start..start + size;
        self.vads.insert(range.clone(), Backing::Stack { teb }, PageProtection::READWRITE)?;
        let floor = start + (STACK_RESERVE_PAGES + 1) * PAGE_SIZE;
        let wanted = commit.max(4 * PAGE_SIZE).next_multiple_of(PAGE_SIZE);
        let limit = range.end.saturating_sub(wanted).max(floor);
        let Some((_, vad)) = self.vads.find_mut(start) else { return Err(Status::NO_MEMORY) };
        let guard = PageProtection::READWRITE.with_guard();
        let committed = vad
            .commit(space, start, limit..range.end, PageProtection::READWRITE)
            .and_then(|()| vad.commit(space, start, limit - PAGE_SIZE..limit, guard));
        if let Err(status) = committed {
            self.vads.remove(space, start)?;
            return Err(status);
        }
        Ok((range, limit))
    }

    /// Gives a whole allocation back (stacks and TEBs of ended threads).
    pub fn release(&mut self, space: &mut AddressSpace, start: u64) {
        // Nothing else to do when it is gone already: the guest may have freed it itself.
        let _ = self.vads.remove(space, start);
    }
}

/// Sections by number, which section objects carry.
#[derive(Debug, Default)]
pub struct SectionTable {
    sections: std::collections::BTreeMap<u64, Arc<Section>>,
    next: u64,
}

impl SectionTable {
    /// Keeps a section and returns its number.
    pub fn add(&mut self, section: Section) -> u64 {
        self.next += 1;
        self.sections.insert(self.next, Arc::new(section));
        self.next
    }

    /// The section with a number.
    pub fn get(&self, number: u64) -> Result<Arc<Section>, Status> {
        self.sections.get(&number).cloned().ok_or(Status::INVALID_HANDLE)
    }

    /// Forgets a section whose object is gone; views keep it alive.
    pub fn remove(&mut self, number: u64) {
        self.sections.remove(&number);
    }
}

/// Commits a stack down to `page` and sets the guard page below it.
fn grow_stack(
    space: &mut AddressSpace,
    start: u64,
    vad: &mut vad::Vad,
    page: u64,
    teb_limit: u64,
) -> Result<FaultResolution, Status> {
    let floor = start + STACK_RESERVE_PAGES * PAGE_SIZE;
    let overflow = page < floor + PAGE_SIZE;
    let first = if overflow { start + PAGE_SIZE } else { page };
    if page < first {
        return Ok(FaultResolution::AccessViolation);
    }
    let uncommitted = vad.pages.gaps(&(first..vad.end)).last().map_or(first, |gap| gap.end);
    let guarded = vad.pages.overlapping(&(first..vad.end)).filter(|(_, p)| p.is_guard()).map(|(r, _)| r.end).max();
    let end = guarded.unwrap_or(first).max(uncommitted).max(page + PAGE_SIZE).min(vad.end);
    vad.commit(space, start, first..end, PageProtection::READWRITE)?;
    if !overflow {
        vad.commit(space, start, first - PAGE_SIZE..first, PageProtection::READWRITE.with_guard())?;
    }
    // The TEB is the guest's to overwrite or unmap; a stale StackLimit then is its own affair.
    let _ = space.write_unchecked(teb_limit, &first.to_le_bytes());
    Ok(if overflow { FaultResolution::StackOverflow } else { FaultResolution::Retry })
}
