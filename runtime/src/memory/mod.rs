//! Guest memory: address spaces over one memory file.
//!
//! Each *address space* is a user half with its own page table; the kernel half is common to all. One space is current:
//! addresses below [`USER_END`] mean its pages. The memory file is mapped whole, and the runtime, the interpreter and
//! services find a page's bytes in it through the page table, with explicit checks; so they reach every space and depend
//! on no window. Translated code sees a space in a *window* of host addresses (see `views`), where the host's page
//! tables check its accesses. It never leaves the half that its privilege allows: the translator checks every base
//! register, and no displacement spans the guard zones.
//!
//! Pages from which code was fetched are write-protected in the windows. A write to one, from wherever, is recorded (see
//! [`AddressSpace::take_modified`]) and lifts the protection; the owner of cached code must then drop what is stale.

mod code_pages;
mod frames;
mod half;
mod pins;
mod table;
mod views;
pub(crate) mod watch;
mod window;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bitflags::bitflags;
use lstar_arch::{GuestMemory, PAGE_SIZE, PageFault, PageFaultCode, Privilege};
use lstar_translator::abi::{KERNEL_END, KERNEL_START, USER_END};

pub use code_pages::ModifiedCode;
use frames::FrameStore;
pub use frames::Frames;
use half::{Extent, Half};
pub use pins::{Fields, Pin, PinGroup, Pinned};
use table::{Entry, FRAME_MASK};
use views::Views;
use watch::Watches;
use window::HostProtection;

bitflags! {
    /// Rights of a guest page. Execute and write imply read, as on x86.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Protection: u8 {
        /// Readable.
        const READ = 1;
        /// Writable (at every privilege: CR0.WP is always honoured as set).
        const WRITE = 2;
        /// Executable.
        const EXECUTE = 4;
    }
}

impl Protection {
    /// Read and write.
    pub const RW: Self = Self::READ.union(Self::WRITE);
    /// Read and execute.
    pub const RX: Self = Self::READ.union(Self::EXECUTE);
    /// Read, write and execute.
    pub const RWX: Self = Self::READ.union(Self::WRITE).union(Self::EXECUTE);
}

/// Page-table byte: the protection bits, which may be hidden in the highest three (see [`watch`]), plus these.
const CODE: u8 = 8;
const PRESENT: u8 = 16;

/// Why a mapping operation was refused.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The range is empty, not page-aligned, or not inside one half of the guest's address space.
    #[error("guest range {start:#x}+{size:#x} is empty, unaligned or outside the address space")]
    BadRange {
        /// First address.
        start: u64,
        /// Bytes.
        size: u64,
    },
    /// Part of the range is already mapped (`map`), or not mapped (`protect`).
    #[error("guest range {start:#x}+{size:#x} conflicts with what is mapped there")]
    Conflict {
        /// First address.
        start: u64,
        /// Bytes.
        size: u64,
    },
    /// The configured limit of guest memory is reached.
    #[error("guest memory limit of {limit} bytes reached")]
    OutOfMemory {
        /// The limit.
        limit: u64,
    },
    /// There is no address space of that name, or it is current and must stay.
    #[error("no such address space, or it is in use: {0:?}")]
    BadSpace(SpaceId),
    /// The host refused.
    #[error("the host cannot map guest memory: {0}")]
    Host(#[from] io::Error),
}

/// Name of an address space; never used twice in a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceId(u32);

impl SpaceId {
    /// The space that a machine starts with.
    pub const FIRST: Self = Self(0);
}

/// Guest memory: the current address space, and the others that can become it.
#[derive(Debug)]
pub struct AddressSpace {
    store: Arc<FrameStore>,
    kernel: Half,
    /// The current space's.
    user: Half,
    current: SpaceId,
    others: BTreeMap<SpaceId, Half>,
    next_space: u32,
    views: Views,
    /// Base of the current space's window; 0 while it has none.
    view_base: u64,
    modified: Vec<(SpaceId, u64)>,
    code_modified: bool,
    /// Code was modified, or spaces were changed or destroyed, since [`AddressSpace::followed`].
    changes: bool,
    /// Names the present contents of the kernel half; 0 while nobody has asked since the last change. See [`Pin`].
    epoch: u64,
    destroyed: Vec<SpaceId>,
    hook_requests: Vec<(u64, bool)>,
    watches: Watches,
}

impl AddressSpace {
    /// One empty address space; at most `limit` bytes can be committed in all that follow.
    pub fn new(limit: u64) -> Result<Self, MapError> {
        let store = Arc::new(FrameStore::new(limit)?);
        Ok(Self {
            kernel: Half::kernel()?,
            user: Half::user()?,
            current: SpaceId::FIRST,
            others: BTreeMap::new(),
            next_space: SpaceId::FIRST.0 + 1,
            views: Views::new(&store),
            view_base: 0,
            modified: Vec::new(),
            code_modified: false,
            changes: false,
            epoch: 0,
            destroyed: Vec::new(),
            hook_requests: Vec::new(),
            watches: Watches::default(),
            store,
        })
    }

    /// The current space.
    #[must_use]
    pub fn current_space(&self) -> SpaceId {
        self.current
    }

    /// Makes an empty space; it does not become the current one.
    pub fn create_space(&mut self) -> Result<SpaceId, MapError> {
        let id = SpaceId(self.next_space);
        self.others.insert(id, Half::user()?);
        self.next_space += 1;
        Ok(id)
    }

    /// Makes another space the current one; returns the one that was.
    pub fn switch_space(&mut self, space: SpaceId) -> Result<SpaceId, MapError> {
        let previous = self.current;
        if space == previous {
            return Ok(previous);
        }
        let user = self.others.remove(&space).ok_or(MapError::BadSpace(space))?;
        self.others.insert(previous, std::mem::replace(&mut self.user, user));
        self.changes |= self.current != space;
        self.current = space;
        self.view_base = 0;
        Ok(previous)
    }

    /// Drops a space that is not the current one, with everything mapped in it.
    pub fn destroy_space(&mut self, space: SpaceId) -> Result<(), MapError> {
        let half = self.others.remove(&space).ok_or(MapError::BadSpace(space))?;
        self.views.forget(space);
        self.destroyed.push(space);
        self.changes = true;
        drop(half);
        Ok(())
    }

    /// Whether there may be modified code, another current space or destroyed ones that nobody has followed yet.
    #[inline(always)]
    pub(crate) fn has_changes(&self) -> bool {
        self.changes
    }

    /// All changes so far have been followed.
    pub(crate) fn followed(&mut self) {
        self.changes = false;
    }

    /// Spaces destroyed since the last call.
    pub(crate) fn take_destroyed(&mut self) -> Vec<SpaceId> {
        std::mem::take(&mut self.destroyed)
    }

    /// Allocates zero-filled frames that can be mapped several times with [`AddressSpace::map_frames`].
    pub fn allocate_frames(&self, size: u64) -> Result<Arc<Frames>, MapError> {
        self.store.allocate(size)
    }

    /// Bytes of guest memory in use (committed, whether touched or not), in all spaces.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.store.used()
    }

    fn check_range(start: u64, size: u64) -> Result<(), MapError> {
        let aligned = start.is_multiple_of(PAGE_SIZE) && size.is_multiple_of(PAGE_SIZE) && size != 0;
        let end = start.checked_add(size);
        let inside = end.is_some_and(|end| end <= USER_END || start >= KERNEL_START && end <= KERNEL_END);
        if aligned && inside { Ok(()) } else { Err(MapError::BadRange { start, size }) }
    }

    #[inline(always)]
    fn entry(&self, address: u64) -> Entry {
        if address < USER_END { self.user.table.get(address) } else { self.kernel.table.get(address) }
    }

    /// The state of the page that holds `address`.
    #[inline(always)]
    fn state(&self, address: u64) -> u8 {
        self.entry(address) as u8
    }

    /// Where the byte at `address`, on a page that is present, is in the memory file.
    #[inline(always)]
    fn file_offset(&self, address: u64) -> u64 {
        (self.entry(address) & FRAME_MASK) + address % PAGE_SIZE
    }

    /// The half that `address` is in, to change: pins of the kernel half end.
    fn half_mut(&mut self, address: u64) -> &mut Half {
        if address < USER_END {
            return &mut self.user;
        }
        self.epoch = 0;
        &mut self.kernel
    }

    /// Maps fresh zero pages.
    pub fn map(&mut self, start: u64, size: u64, protection: Protection) -> Result<(), MapError> {
        Self::check_range(start, size)?;
        let frames = self.store.allocate(size)?;
        self.map_extent(start, Extent { size, frames, frame_offset: 0, private: true }, protection)
    }

    /// Maps part of `frames`; every mapping of a frame shows the same bytes.
    pub fn map_frames(
        &mut self,
        start: u64,
        size: u64,
        frames: &Arc<Frames>,
        frame_offset: u64,
        protection: Protection,
    ) -> Result<(), MapError> {
        Self::check_range(start, size)?;
        if !frame_offset.is_multiple_of(PAGE_SIZE) || frame_offset.checked_add(size).is_none_or(|e| e > frames.size) {
            return Err(MapError::BadRange { start: frame_offset, size });
        }
        let extent = Extent { size, frames: Arc::clone(frames), frame_offset, private: false };
        self.map_extent(start, extent, protection)
    }

    fn map_extent(&mut self, start: u64, extent: Extent, protection: Protection) -> Result<(), MapError> {
        let size = extent.size;
        let current = self.current;
        if self.half_mut(start).overlaps(start, size) {
            return Err(MapError::Conflict { start, size });
        }
        let offset = extent.file_offset();
        self.views.map(current, start, size, offset, host_protection(protection.bits()))?;
        let plain = PRESENT | protection.bits();
        let half = self.half_mut(start);
        half.extents.insert(start, extent);
        for (index, page) in pages(start, size).enumerate() {
            let frame = offset + index as u64 * PAGE_SIZE;
            half.table.set(page, frame | Entry::from(plain));
        }
        if self.is_watching() {
            for page in pages(start, size) {
                let state = self.watches.state(page, plain);
                self.half_mut(page).set_state(page, state);
            }
            self.apply_views(start, size)?;
        }
        Ok(())
    }

    /// Unmaps whatever is mapped in the range.
    pub fn unmap(&mut self, start: u64, size: u64) -> Result<(), MapError> {
        Self::check_range(start, size)?;
        let current = self.current;
        let half = self.half_mut(start);
        half.split_at(start);
        half.split_at(start + size);
        let starts: Vec<u64> = half.extents.range(start..start + size).map(|(&at, _)| at).collect();
        for at in starts {
            let Some(extent) = self.half_mut(at).extents.remove(&at) else { continue };
            self.views.unmap(current, at, extent.size)?;
            for page in pages(at, extent.size) {
                if self.state(page) & CODE != 0 {
                    self.record_modified(page);
                }
                self.half_mut(page).table.set(page, 0);
            }
            if extent.private && Arc::strong_count(&extent.frames) > 1 {
                self.store.file.punch_hole(extent.file_offset(), extent.size);
            }
        }
        Ok(())
    }

    /// Replaces the frames of wholly mapped pages by private copies with some protection, if others may see them.
    pub fn make_private(&mut self, start: u64, size: u64, protection: Protection) -> Result<(), MapError> {
        Self::check_range(start, size)?;
        let half = self.half_mut(start);
        half.split_at(start);
        half.split_at(start + size);
        let shared: Vec<(u64, u64)> = half
            .extents
            .range(start..start + size)
            .filter(|(_, extent)| !extent.private)
            .map(|(&at, extent)| (at, extent.size))
            .collect();
        for (at, size) in shared {
            let mut bytes = vec![0; usize::try_from(size).map_err(|_| MapError::BadRange { start: at, size })?];
            self.copy_out(at, &mut bytes);
            self.unmap(at, size)?;
            self.map(at, size, protection)?;
            self.copy_in(at, &bytes);
        }
        Ok(())
    }

    /// Changes the protection of a wholly mapped range.
    pub fn protect(&mut self, start: u64, size: u64, protection: Protection) -> Result<(), MapError> {
        Self::check_range(start, size)?;
        if pages(start, size).any(|page| self.state(page) & PRESENT == 0) {
            return Err(MapError::Conflict { start, size });
        }
        for page in pages(start, size) {
            let old = self.state(page);
            // Losing the right to execute makes what was fetched stale; a page that keeps it keeps its code and its
            // write protection in the windows.
            let keep = if protection.contains(Protection::EXECUTE) { old & CODE } else { 0 };
            if old & CODE != 0 && keep == 0 {
                self.record_modified(page);
            }
            let state = self.watches.state(page, PRESENT | protection.bits() | keep);
            self.half_mut(page).set_state(page, state);
        }
        self.apply_views(start, size)
    }

    /// Brings the windows' host protections in line with the page table, in as few calls as possible.
    fn apply_views(&self, start: u64, size: u64) -> Result<(), MapError> {
        let half = if start < USER_END { &self.user } else { &self.kernel };
        for (run, size, host) in half.runs(start, size) {
            self.views.protect(self.current, run, size, host)?;
        }
        Ok(())
    }

    /// Protection of the page that holds `address`; `None` when nothing is mapped there.
    #[must_use]
    pub fn protection(&self, address: u64) -> Option<Protection> {
        let state = self.state(address);
        (state & PRESENT != 0).then(|| Protection::from_bits_truncate(watch::rights(state)))
    }

    /// What is mapped in the current space, in ascending order: start and size.
    pub fn mapped(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.user.extents.iter().chain(&self.kernel.extents).map(|(&start, extent)| (start, extent.size))
    }

    /// Copies from pages that are present.
    fn copy_out(&self, address: u64, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() {
            let (offset, length) = self.contiguous(address.wrapping_add(done as u64), buf.len() - done);
            let part = &mut buf[done..done + length];
            match length {
                ..frames::MANY => self.store.file.read(offset, part),
                frames::MANY.. => self.store.file.read_many(offset, part),
            }
            done += length;
        }
    }

    /// Copies to pages that are present.
    fn copy_in(&self, address: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let (offset, length) = self.contiguous(address.wrapping_add(done as u64), data.len() - done);
            let part = &data[done..done + length];
            match length {
                ..frames::MANY => self.store.file.write(offset, part),
                frames::MANY.. => self.store.file.write_many(offset, part),
            }
            done += length;
        }
    }

    /// Where the bytes at `address`, on pages that are present, are in the memory file, and how many of `most` bytes follow
    /// each other there.
    #[inline(always)]
    fn contiguous(&self, address: u64, most: usize) -> (u64, usize) {
        let offset = self.file_offset(address);
        let mut length = in_page(address);
        while length < most && self.file_offset(address.wrapping_add(length as u64)) == offset + length as u64 {
            length += PAGE_SIZE as usize;
        }
        (offset, length.min(most))
    }

    /// Writes whatever the page's protection says (loaders, debuggers). Fails where nothing is mapped.
    pub fn write_unchecked(&mut self, address: u64, data: &[u8]) -> Result<(), PageFault> {
        self.check(address, data.len() as u64, PRESENT, PageFaultCode::WRITE, Privilege::Supervisor)?;
        self.note_code_writes(address, data.len() as u64);
        self.copy_in(address, data);
        Ok(())
    }

    /// Reads whatever the page's protection says (debuggers). Fails where nothing is mapped.
    pub fn read_unchecked(&self, address: u64, buf: &mut [u8]) -> Result<(), PageFault> {
        self.check(address, buf.len() as u64, PRESENT, PageFaultCode::empty(), Privilege::Supervisor)?;
        self.copy_out(address, buf);
        Ok(())
    }

    /// Checks that each page of the range has all bits of `need`; the fault names the first byte that fails.
    fn check(
        &self,
        address: u64,
        size: u64,
        need: u8,
        code: PageFaultCode,
        privilege: Privilege,
    ) -> Result<(), PageFault> {
        let mut at = address;
        let mut left = size;
        while left != 0 {
            let state = if code.contains(PageFaultCode::FETCH) {
                let state = self.state(at);
                state | watch::rights(state)
            } else {
                self.access_state(at)
            };
            let reachable = privilege == Privilege::Supervisor || at < USER_END;
            if state & need != need || !reachable {
                let mut code = code;
                code.set(PageFaultCode::PRESENT, state & PRESENT != 0);
                code.set(PageFaultCode::USER, privilege == Privilege::User);
                return Err(PageFault { address: at, code });
            }
            let step = (PAGE_SIZE - at % PAGE_SIZE).min(left);
            at = at.wrapping_add(step);
            left -= step;
        }
        Ok(())
    }

    /// Checks that every page of the range is readable; pages whose protection is empty are present but unreadable.
    fn check_readable(&self, address: u64, size: u64, privilege: Privilege) -> Result<(), PageFault> {
        let mut at = address;
        let mut left = size;
        while left != 0 {
            if self.access_state(at) & ANY_RIGHT == 0 {
                self.check(at, 1, PRESENT | Protection::READ.bits(), PageFaultCode::empty(), privilege)?;
            }
            self.check(at, 1, PRESENT, PageFaultCode::empty(), privilege)?;
            let step = (PAGE_SIZE - at % PAGE_SIZE).min(left);
            at = at.wrapping_add(step);
            left -= step;
        }
        Ok(())
    }

    /// Base of the window in which translated code sees the current space.
    #[inline(always)]
    pub(crate) fn view_base(&mut self) -> Result<u64, MapError> {
        if self.view_base == 0 {
            self.view_base = self.views.show(self.current, &self.user, &self.kernel)?;
        }
        Ok(self.view_base)
    }

    /// Allocates zeroed frames of `size` bytes that every window shows at `displacement` from its base; returns their
    /// host address outside of windows. To be called before there are any.
    pub(crate) fn map_vcpu_block(&mut self, displacement: i32, size: u64) -> Result<*mut u8, MapError> {
        let frames = self.allocate_frames(size)?;
        let pointer = self.store.file.pointer(frames.offset, size as usize);
        self.views.reserve(displacement, frames);
        Ok(pointer)
    }
}

/// Bytes from `address` to the end of its page.
#[inline(always)]
fn in_page(address: u64) -> usize {
    (PAGE_SIZE - address % PAGE_SIZE) as usize
}

fn pages(start: u64, size: u64) -> impl Iterator<Item = u64> {
    (0..size / PAGE_SIZE).map(move |index| start + index * PAGE_SIZE)
}

/// What the windows allow for a page-table byte: code pages lose write access.
fn host_protection(state: u8) -> HostProtection {
    let protection = Protection::from_bits_truncate(state);
    if protection.is_empty() {
        HostProtection::None
    } else if protection.contains(Protection::WRITE) && state & CODE == 0 {
        HostProtection::ReadWrite
    } else {
        HostProtection::Read
    }
}

/// A page is readable when any right is set; tested with a mask instead of an equality.
const ANY_RIGHT: u8 = 7;

impl AddressSpace {
    /// Copies between pages that are present, in ascending order: right unless `to` lies inside the source.
    fn copy_up(&self, from: u64, to: u64, len: usize) {
        let mut done = 0;
        while done < len {
            let (source, target) = (from.wrapping_add(done as u64), to.wrapping_add(done as u64));
            let length = in_page(source).min(in_page(target)).min(len - done);
            self.store.file.copy(self.file_offset(source), self.file_offset(target), length);
            done += length;
        }
    }

    /// The same in descending order, for a target that begins inside the source.
    fn copy_down(&self, from: u64, to: u64, len: usize) {
        let mut left = len;
        while left > 0 {
            let (source, target) = (from.wrapping_add(left as u64 - 1), to.wrapping_add(left as u64 - 1));
            let behind = |last: u64| (last % PAGE_SIZE + 1) as usize;
            let length = behind(source).min(behind(target)).min(left);
            left -= length;
            let (source, target) = (from.wrapping_add(left as u64), to.wrapping_add(left as u64));
            self.store.file.copy(self.file_offset(source), self.file_offset(target), length);
        }
    }
}

impl GuestMemory for AddressSpace {
    fn read(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<(), PageFault> {
        self.check_readable(address, buf.len() as u64, privilege)?;
        self.note(address, buf.len() as u64, false);
        self.copy_out(address, buf);
        Ok(())
    }

    fn copy(&mut self, from: u64, to: u64, len: usize, privilege: Privilege) -> Result<(), PageFault> {
        self.check_readable(from, len as u64, privilege)?;
        self.probe_write(to, len as u64, privilege)?;
        self.note_code_writes(to, len as u64);
        self.note(from, len as u64, false);
        self.note(to, len as u64, true);
        if to.wrapping_sub(from) >= len as u64 {
            self.copy_up(from, to, len);
        } else {
            self.copy_down(from, to, len);
        }
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8], privilege: Privilege) -> Result<(), PageFault> {
        self.probe_write(address, data.len() as u64, privilege)?;
        self.note_code_writes(address, data.len() as u64);
        self.note(address, data.len() as u64, true);
        self.copy_in(address, data);
        Ok(())
    }

    fn probe_write(&mut self, address: u64, len: u64, privilege: Privilege) -> Result<(), PageFault> {
        self.check(address, len, PRESENT | Protection::WRITE.bits(), PageFaultCode::WRITE, privilege)
    }

    fn fetch(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<usize, PageFault> {
        let need = PRESENT | Protection::EXECUTE.bits();
        self.check(address, 1, need, PageFaultCode::FETCH, privilege)?;
        let mut length = 0;
        while length < buf.len() {
            let at = address.wrapping_add(length as u64);
            if self.check(at, 1, need, PageFaultCode::FETCH, privilege).is_err() {
                break;
            }
            let state = self.state(at);
            if state & CODE == 0 {
                self.half_mut(at).set_state(at, state | CODE);
                // Where it is watched the windows let nothing be written anyway.
                if state & Protection::WRITE.bits() != 0 {
                    let page = at & !(PAGE_SIZE - 1);
                    if self.apply_views(page, PAGE_SIZE).is_err() {
                        // Without write protection a change would go unnoticed: treat the page as not executable.
                        self.half_mut(at).set_state(at, state);
                        break;
                    }
                }
            }
            length += ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(buf.len() - length);
        }
        if length == 0 {
            return Err(PageFault { address, code: PageFaultCode::FETCH });
        }
        self.copy_out(address, &mut buf[..length]);
        Ok(length)
    }

    #[inline]
    fn code_modified(&self) -> bool {
        self.code_modified
    }

    #[inline(always)]
    fn load<const N: usize>(&mut self, address: u64, privilege: Privilege) -> Result<[u8; N], PageFault> {
        let entry = self.entry(address);
        let state = entry as u8;
        let reachable = privilege == Privilege::Supervisor || address < USER_END;
        if state & ANY_RIGHT != 0 && reachable && address % PAGE_SIZE + N as u64 <= PAGE_SIZE {
            // Rights imply presence, and the access does not leave the page.
            return Ok(self.store.file.load((entry & FRAME_MASK) + address % PAGE_SIZE));
        }
        let mut buf = [0; N];
        self.read(address, &mut buf, privilege)?;
        Ok(buf)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, address: u64, data: [u8; N], privilege: Privilege) -> Result<(), PageFault> {
        let entry = self.entry(address);
        let state = entry as u8;
        let reachable = privilege == Privilege::Supervisor || address < USER_END;
        let plain = state & (Protection::WRITE.bits() | CODE) == Protection::WRITE.bits();
        if plain && reachable && address % PAGE_SIZE + N as u64 <= PAGE_SIZE {
            self.store.file.store((entry & FRAME_MASK) + address % PAGE_SIZE, data);
            return Ok(());
        }
        self.write(address, &data, privilege)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1_4000_0000;

    fn space() -> AddressSpace {
        AddressSpace::new(1 << 30).expect("address space")
    }

    #[test]
    fn maps_reads_and_writes_across_pages() {
        let mut memory = space();
        memory.map(BASE, 0x2000, Protection::RW).unwrap();
        memory.write(BASE + 0xFFC, &[1, 2, 3, 4, 5, 6, 7, 8], Privilege::User).unwrap();
        assert_eq!(memory.load::<8>(BASE + 0xFFC, Privilege::User).unwrap(), [1, 2, 3, 4, 5, 6, 7, 8]);
        let fault = memory.store(BASE + 0x1FFC, [0u8; 8], Privilege::User).unwrap_err();
        assert_eq!(fault.address, BASE + 0x2000);
        assert_eq!(fault.code, PageFaultCode::WRITE | PageFaultCode::USER);
        assert_eq!(memory.load::<4>(BASE + 0x1FFC, Privilege::User).unwrap(), [0; 4], "nothing written");
    }

    #[test]
    fn user_cannot_reach_the_kernel_half() {
        let mut memory = space();
        let kernel = 0xFFFF_F800_0000_0000;
        memory.map(kernel, 0x1000, Protection::RW).unwrap();
        memory.write_u64(kernel, 42, Privilege::Supervisor).unwrap();
        let fault = memory.read_u64(kernel, Privilege::User).unwrap_err();
        assert_eq!(fault.code, PageFaultCode::PRESENT | PageFaultCode::USER);
    }

    #[test]
    fn frames_are_shared_between_mappings_and_freed_with_the_last() {
        let mut memory = space();
        let frames = memory.allocate_frames(0x3000).unwrap();
        memory.map_frames(BASE, 0x2000, &frames, 0x1000, Protection::READ).unwrap();
        memory.map_frames(BASE + 0x10000, 0x3000, &frames, 0, Protection::RW).unwrap();
        memory.write_u64(BASE + 0x11008, 7, Privilege::User).unwrap();
        assert_eq!(memory.read_u64(BASE + 8, Privilege::User).unwrap(), 7);
        assert_eq!(memory.committed(), 0x3000);
        drop(frames);
        memory.unmap(BASE, 0x2000).unwrap();
        memory.unmap(BASE + 0x10000, 0x3000).unwrap();
        assert_eq!(memory.committed(), 0);
    }

    #[test]
    fn partial_unmap_and_protect_split_extents() {
        let mut memory = space();
        memory.map(BASE, 0x4000, Protection::RW).unwrap();
        memory.unmap(BASE + 0x1000, 0x1000).unwrap();
        assert_eq!(memory.protection(BASE + 0x1000), None);
        assert_eq!(memory.protection(BASE + 0x2000), Some(Protection::RW));
        memory.protect(BASE + 0x2000, 0x1000, Protection::READ).unwrap();
        assert!(memory.write_u64(BASE + 0x2000, 1, Privilege::User).is_err());
        assert!(memory.protect(BASE, 0x4000, Protection::READ).is_err(), "a hole in the middle");
        memory.map(BASE + 0x1000, 0x1000, Protection::RW).unwrap();
    }

    #[test]
    fn writes_to_fetched_pages_are_reported_once() {
        let mut memory = space();
        memory.map(BASE, 0x1000, Protection::RWX).unwrap();
        let mut buf = [0; 16];
        assert_eq!(memory.fetch(BASE + 0xFF8, &mut buf, Privilege::User).unwrap(), 8);
        memory.write_u64(BASE, 1, Privilege::User).unwrap();
        assert!(memory.code_modified());
        let page = ModifiedCode { space: Some(SpaceId::FIRST), range: BASE..BASE + 0x1000 };
        assert_eq!(memory.take_modified(), vec![page]);
        memory.write_u64(BASE, 2, Privilege::User).unwrap();
        assert!(!memory.code_modified());
    }

    #[test]
    fn spaces_have_a_user_half_each_and_the_kernel_half_in_common() {
        let mut memory = space();
        let kernel = 0xFFFF_F800_0000_0000;
        memory.map(kernel, 0x1000, Protection::RW).unwrap();
        memory.map(BASE, 0x1000, Protection::RW).unwrap();
        memory.write_u64(BASE, 1, Privilege::User).unwrap();
        let other = memory.create_space().unwrap();
        assert_eq!(memory.switch_space(other).unwrap(), SpaceId::FIRST);
        assert_eq!(memory.protection(BASE), None);
        memory.map(BASE, 0x1000, Protection::RW).unwrap();
        memory.write_u64(BASE, 2, Privilege::User).unwrap();
        memory.write_u64(kernel, 3, Privilege::Supervisor).unwrap();
        assert!(memory.destroy_space(other).is_err(), "it is current");
        memory.switch_space(SpaceId::FIRST).unwrap();
        assert_eq!(memory.read_u64(BASE, Privilege::User).unwrap(), 1);
        assert_eq!(memory.read_u64(kernel, Privilege::Supervisor).unwrap(), 3);
        let committed = memory.committed();
        memory.destroy_space(other).unwrap();
        assert_eq!(memory.committed(), committed - 0x1000);
        assert!(memory.switch_space(other).is_err());
    }

    #[test]
    fn more_spaces_than_windows_take_turns() {
        let mut memory = space();
        let mut bases = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let id = memory.create_space().unwrap();
            memory.switch_space(id).unwrap();
            memory.map(BASE, 0x1000, Protection::RW).unwrap();
            bases.insert(memory.view_base().unwrap());
            memory.map(BASE + 0x1000, 0x1000, Protection::READ).unwrap();
        }
        assert!(bases.len() <= 4);
        memory.switch_space(SpaceId(1)).unwrap();
        assert!(bases.contains(&memory.view_base().unwrap()));
    }

    #[test]
    fn overlapping_copies_keep_the_source() {
        let mut memory = space();
        memory.map(BASE, 0x4000, Protection::RW).unwrap();
        let bytes: Vec<u8> = (0..0x2000u32).map(|i| (i % 251) as u8).collect();
        for (from, to) in [(0x10u64, 0x808u64), (0x808, 0x10), (0, 0x1000), (0x1000, 0)] {
            memory.write(BASE + from, &bytes, Privilege::User).unwrap();
            memory.copy(BASE + from, BASE + to, bytes.len(), Privilege::User).unwrap();
            let mut copied = vec![0; bytes.len()];
            memory.read(BASE + to, &mut copied, Privilege::User).unwrap();
            assert!(copied == bytes, "{from:#x} to {to:#x}");
        }
    }

    #[test]
    fn private_copies_leave_the_frames_alone() {
        let mut memory = space();
        let frames = memory.allocate_frames(0x3000).unwrap();
        assert!(frames.fill(0x1000, &[7]) && !frames.fill(0x3000, &[7]));
        memory.map_frames(BASE, 0x3000, &frames, 0, Protection::READ).unwrap();
        memory.make_private(BASE + 0x1000, 0x1000, Protection::RW).unwrap();
        assert_eq!(memory.read_u64(BASE + 0x1000, Privilege::User).unwrap(), 7);
        memory.write_u64(BASE + 0x1000, 8, Privilege::User).unwrap();
        memory.map_frames(BASE + 0x10000, 0x3000, &frames, 0, Protection::READ).unwrap();
        assert_eq!(memory.read_u64(BASE + 0x11000, Privilege::User).unwrap(), 7);
        assert_eq!(memory.protection(BASE + 0x2000), Some(Protection::READ));
    }

    #[test]
    fn rejects_ranges_outside_the_halves() {
        let mut memory = space();
        for (start, size) in [
            (USER_END, 0x1000),
            (USER_END - 0x1000, 0x2000),
            (KERNEL_END, 0x1000),
            (0x8000_0000_0000_0000, 0x1000),
            (0x1001, 0x1000),
            (0x1000, 0),
            (!0xFFF, 0x1000),
        ] {
            assert!(matches!(memory.map(start, size, Protection::RW), Err(MapError::BadRange { .. })), "{start:#x}");
        }
    }
}
