//! Guest memory: one memory file, seen through three windows of host addresses.
//!
//! * the **user view**, in which translated CPL-3 code runs: kernel half inaccessible;
//! * the **kernel view**, for CPL-0 code: both halves;
//! * the **alias**, in which everything mapped is writable: the runtime, the interpreter and services go through it,
//!   with explicit checks against the page table, so that they never depend on the state of the views.
//!
//! Pages from which code was fetched are write-protected in the views. A write to one, from wherever, is recorded (see
//! [`AddressSpace::take_modified`]) and lifts the protection; the owner of cached code must then drop what is stale.

mod window;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bitflags::bitflags;
use lstar_arch::{GuestMemory, PAGE_SIZE, PageFault, PageFaultCode, Privilege};
use lstar_translator::abi::{KERNEL_END, KERNEL_START, USER_END};

use window::{HostProtection, MemoryFile, PageTable, Room, Window};

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

/// Page-table byte: the protection bits, plus these.
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
    /// The host refused.
    #[error("the host cannot map guest memory: {0}")]
    Host(#[from] io::Error),
}

/// Allocator of page frames (offsets in the memory file).
#[derive(Debug)]
struct FrameStore {
    file: MemoryFile,
    state: Mutex<FrameState>,
    limit: u64,
}

#[derive(Debug, Default)]
struct FrameState {
    next: u64,
    used: u64,
    free: Vec<(u64, u64)>,
}

impl FrameStore {
    fn allocate(self: &Arc<Self>, size: u64) -> Result<Arc<Frames>, MapError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if size > self.limit.saturating_sub(state.used) {
            return Err(MapError::OutOfMemory { limit: self.limit });
        }
        state.used += size;
        let exact = state.free.iter().position(|&(_, free)| free == size);
        let fit = exact.or_else(|| state.free.iter().position(|&(_, free)| free > size));
        let offset = match fit {
            Some(index) => {
                let (offset, free) = state.free[index];
                if free == size {
                    state.free.swap_remove(index);
                } else {
                    state.free[index] = (offset + size, free - size);
                }
                offset
            }
            None => {
                state.next += size;
                state.next - size
            }
        };
        Ok(Arc::new(Frames { store: Arc::clone(self), offset, size }))
    }
}

/// A run of page frames, zero-filled when allocated: what a section object owns, and what mappings show. Freed with its
/// last owner.
#[derive(Debug)]
pub struct Frames {
    store: Arc<FrameStore>,
    offset: u64,
    size: u64,
}

impl Frames {
    /// Size in bytes, a multiple of the page size.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.store.file.punch_hole(self.offset, self.size);
        let mut state = self.store.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.used -= self.size;
        state.free.push((self.offset, self.size));
    }
}

/// Source of epochs: unique among all address spaces of the process.
static EPOCHS: AtomicU64 = AtomicU64::new(1);

/// `N` bytes of plain kernel data whose pages have been checked; valid until any page changes its state.
#[derive(Clone, Copy, Debug)]
pub struct Pin<const N: usize> {
    address: u64,
    epoch: u64,
}

impl<const N: usize> Pin<N> {
    /// Guest address of the first byte.
    #[inline]
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// A contiguous guest range that shows a contiguous part of some frames.
#[derive(Clone, Debug)]
struct Extent {
    size: u64,
    frames: Arc<Frames>,
    frame_offset: u64,
    /// Nobody else can see these frames: holes may be punched on partial unmaps.
    private: bool,
}

/// The guest's address space.
#[derive(Debug)]
pub struct AddressSpace {
    user: Window,
    kernel: Window,
    alias: Window,
    table: PageTable,
    extents: BTreeMap<u64, Extent>,
    modified: Vec<u64>,
    code_modified: bool,
    /// Names the present contents of `table`; 0 while nobody has asked since the last change. See [`Pin`].
    epoch: u64,
    store: Arc<FrameStore>,
    /// Keeps the vCPU block's frames alive.
    vcpu_frames: Vec<Arc<Frames>>,
}

impl AddressSpace {
    /// An empty address space in which at most `limit` bytes can be committed.
    pub fn new(limit: u64) -> Result<Self, MapError> {
        // Sparse: the file's size costs nothing, only what is touched does. Twice the limit leaves room for fragmentation.
        let file = MemoryFile::new(limit.saturating_mul(2).saturating_add(1 << 30).min(1 << 44))?;
        Ok(Self {
            user: Window::new(Room::User)?,
            kernel: Window::new(Room::Both)?,
            alias: Window::new(Room::Both)?,
            table: PageTable::new()?,
            extents: BTreeMap::new(),
            modified: Vec::new(),
            code_modified: false,
            epoch: 0,
            store: Arc::new(FrameStore { file, state: Mutex::default(), limit }),
            vcpu_frames: Vec::new(),
        })
    }

    /// Allocates zero-filled frames that can be mapped several times with [`AddressSpace::map_frames`].
    pub fn allocate_frames(&self, size: u64) -> Result<Arc<Frames>, MapError> {
        let size = size.max(1).checked_next_multiple_of(PAGE_SIZE).ok_or(MapError::BadRange { start: 0, size })?;
        self.store.allocate(size)
    }

    /// Bytes of guest memory in use (committed, whether touched or not).
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.store.state.lock().unwrap_or_else(PoisonError::into_inner).used
    }

    /// Changes a page-table byte; every pin ends.
    fn set_state(&mut self, address: u64, state: u8) {
        self.epoch = 0;
        self.table.set(address, state);
    }

    fn check_range(start: u64, size: u64) -> Result<(), MapError> {
        let aligned = start.is_multiple_of(PAGE_SIZE) && size.is_multiple_of(PAGE_SIZE) && size != 0;
        let end = start.checked_add(size);
        let inside = end.is_some_and(|end| end <= USER_END || start >= KERNEL_START && end <= KERNEL_END);
        if aligned && inside { Ok(()) } else { Err(MapError::BadRange { start, size }) }
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
        if self.overlaps(start, size) {
            return Err(MapError::Conflict { start, size });
        }
        let offset = extent.frames.offset + extent.frame_offset;
        let host = host_protection(protection.bits());
        let file = &self.store.file;
        self.alias.map(start, size, file, offset, HostProtection::ReadWrite)?;
        self.kernel.map(start, size, file, offset, host)?;
        if start < USER_END {
            self.user.map(start, size, file, offset, host)?;
        }
        self.extents.insert(start, extent);
        for page in pages(start, size) {
            self.set_state(page, PRESENT | protection.bits());
        }
        Ok(())
    }

    fn overlaps(&self, start: u64, size: u64) -> bool {
        self.extents.range(..start + size).next_back().is_some_and(|(&at, extent)| at + extent.size > start)
    }

    /// Splits extents so that none crosses `at`.
    fn split_at(&mut self, at: u64) {
        let Some((&start, extent)) = self.extents.range_mut(..at).next_back() else { return };
        if start + extent.size <= at {
            return;
        }
        let head = at - start;
        let tail = Extent { size: extent.size - head, frame_offset: extent.frame_offset + head, ..extent.clone() };
        extent.size = head;
        self.extents.insert(at, tail);
    }

    /// Unmaps whatever is mapped in the range.
    pub fn unmap(&mut self, start: u64, size: u64) -> Result<(), MapError> {
        Self::check_range(start, size)?;
        self.split_at(start);
        self.split_at(start + size);
        let starts: Vec<u64> = self.extents.range(start..start + size).map(|(&at, _)| at).collect();
        for at in starts {
            let Some(extent) = self.extents.remove(&at) else { continue };
            self.alias.unmap(at, extent.size)?;
            self.kernel.unmap(at, extent.size)?;
            if at < USER_END {
                self.user.unmap(at, extent.size)?;
            }
            for page in pages(at, extent.size) {
                if self.table.get(page) & CODE != 0 {
                    self.record_modified(page);
                }
                self.set_state(page, 0);
            }
            if extent.private && Arc::strong_count(&extent.frames) > 1 {
                self.store.file.punch_hole(extent.frames.offset + extent.frame_offset, extent.size);
            }
        }
        Ok(())
    }

    /// Changes the protection of a wholly mapped range.
    pub fn protect(&mut self, start: u64, size: u64, protection: Protection) -> Result<(), MapError> {
        Self::check_range(start, size)?;
        if pages(start, size).any(|page| self.table.get(page) & PRESENT == 0) {
            return Err(MapError::Conflict { start, size });
        }
        for page in pages(start, size) {
            let old = self.table.get(page);
            // Losing the right to execute makes what was fetched stale; a page that keeps it keeps its code and its
            // write protection in the views.
            let keep = if protection.contains(Protection::EXECUTE) { old & CODE } else { 0 };
            if old & CODE != 0 && keep == 0 {
                self.record_modified(page);
            }
            self.set_state(page, PRESENT | protection.bits() | keep);
        }
        self.apply_views(start, size)
    }

    /// Brings the views' host protections in line with the page table, in as few calls as possible.
    fn apply_views(&self, start: u64, size: u64) -> Result<(), MapError> {
        let end = start + size;
        let mut run = start;
        while run < end {
            let host = host_protection(self.table.get(run));
            let mut next = run + PAGE_SIZE;
            while next < end && host_protection(self.table.get(next)) == host {
                next += PAGE_SIZE;
            }
            self.kernel.protect(run, next - run, host)?;
            if run < USER_END {
                self.user.protect(run, next - run, host)?;
            }
            run = next;
        }
        Ok(())
    }

    /// Protection of the page that holds `address`; `None` when nothing is mapped there.
    #[must_use]
    pub fn protection(&self, address: u64) -> Option<Protection> {
        let state = self.table.get(address);
        (state & PRESENT != 0).then(|| Protection::from_bits_truncate(state))
    }

    /// What is mapped, in ascending order: start and size.
    pub fn mapped(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.extents.iter().map(|(&start, extent)| (start, extent.size))
    }

    /// Writes whatever the page's protection says (loaders, debuggers). Fails where nothing is mapped.
    pub fn write_unchecked(&mut self, address: u64, data: &[u8]) -> Result<(), PageFault> {
        self.check(address, data.len() as u64, PRESENT, PageFaultCode::WRITE, Privilege::Supervisor)?;
        self.note_code_writes(address, data.len() as u64);
        // SAFETY: `check` found every page present, and present pages are writable in the alias.
        #[expect(unsafe_code, reason = "guest memory is raw host memory")]
        unsafe {
            self.alias.write(address, data);
        }
        Ok(())
    }

    /// Reads whatever the page's protection says (debuggers). Fails where nothing is mapped.
    pub fn read_unchecked(&self, address: u64, buf: &mut [u8]) -> Result<(), PageFault> {
        self.check(address, buf.len() as u64, PRESENT, PageFaultCode::empty(), Privilege::Supervisor)?;
        // SAFETY: `check` found every page present, and present pages are readable in the alias.
        #[expect(unsafe_code, reason = "guest memory is raw host memory")]
        unsafe {
            self.alias.read(address, buf);
        }
        Ok(())
    }

    /// `N` bytes of plain data: present, writable, and not on a page from which code was fetched. `None` for anything
    /// else. For callers that read and write many fields of one structure.
    #[inline(always)]
    pub fn data_mut<const N: usize>(&mut self, address: u64, privilege: Privilege) -> Option<&mut [u8; N]> {
        let plain = |state: u8| state & (Protection::WRITE.bits() | CODE) == Protection::WRITE.bits();
        let last = address.checked_add(N as u64)?.checked_sub(1)?;
        if privilege == Privilege::User && last >= USER_END || last / PAGE_SIZE - address / PAGE_SIZE > 1 {
            return None;
        }
        if !plain(self.table.get(address)) || !plain(self.table.get(last)) {
            return None;
        }
        // SAFETY: the range lies on at most two pages, both present (rights imply presence) and thus writable in the
        // alias. The slice borrows `self`, through which all other accesses of Rust code go, and translated code does
        // not run while Rust code holds the borrow.
        #[expect(unsafe_code, reason = "guest memory is raw host memory")]
        let bytes = unsafe { self.alias.bytes_mut(address, N) };
        bytes.try_into().ok()
    }

    /// Checks a structure of plain data as [`AddressSpace::data_mut`] does at kernel privilege, for repeated use by
    /// [`AddressSpace::pinned`].
    pub fn pin<const N: usize>(&mut self, address: u64) -> Option<Pin<N>> {
        self.data_mut::<N>(address, Privilege::Supervisor)?;
        if self.epoch == 0 {
            self.epoch = EPOCHS.fetch_add(1, Ordering::Relaxed);
        }
        Some(Pin { address, epoch: self.epoch })
    }

    /// The bytes of a pinned structure; `None` when any page of the address space has changed its state since.
    #[inline(always)]
    pub fn pinned<const N: usize>(&mut self, pin: &Pin<N>) -> Option<&mut [u8; N]> {
        if pin.epoch != self.epoch {
            return None;
        }
        // SAFETY: the pin was made by this address space, as epochs are unique and never 0 in a pin, and no page has changed
        // since: what `data_mut` checked still holds. The slice borrows `self` as there.
        #[expect(unsafe_code, reason = "guest memory is raw host memory")]
        let bytes = unsafe { self.alias.bytes_mut(pin.address, N) };
        bytes.try_into().ok()
    }

    /// Pages that held code and were written, unmapped or made non-executable since the last call. What was decoded or
    /// translated from them is stale.
    pub fn take_modified(&mut self) -> Vec<Range<u64>> {
        self.code_modified = false;
        std::mem::take(&mut self.modified).into_iter().map(|page| page..page + PAGE_SIZE).collect()
    }

    fn record_modified(&mut self, page: u64) {
        self.modified.push(page & !(PAGE_SIZE - 1));
        self.code_modified = true;
    }

    fn note_code_writes(&mut self, address: u64, size: u64) {
        if size == 0 {
            return;
        }
        let first = address & !(PAGE_SIZE - 1);
        let last = (address + size - 1) & !(PAGE_SIZE - 1);
        for page in (first..=last).step_by(PAGE_SIZE as usize) {
            let state = self.table.get(page);
            if state & CODE != 0 {
                self.set_state(page, state & !CODE);
                self.record_modified(page);
                // Failing leaves the page write-protected in the views: the next store faults and comes here again.
                let _ = self.apply_views(page, PAGE_SIZE);
            }
        }
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
            let state = self.table.get(at);
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
            if self.table.get(at) & ANY_RIGHT == 0 {
                self.check(at, 1, PRESENT | Protection::READ.bits(), PageFaultCode::empty(), privilege)?;
            }
            self.check(at, 1, PRESENT, PageFaultCode::empty(), privilege)?;
            let step = (PAGE_SIZE - at % PAGE_SIZE).min(left);
            at = at.wrapping_add(step);
            left -= step;
        }
        Ok(())
    }

    /// Host base of the view for a privilege.
    pub(crate) fn view_base(&self, privilege: Privilege) -> u64 {
        match privilege {
            Privilege::User => self.user.base(),
            Privilege::Supervisor => self.kernel.base(),
        }
    }

    /// Maps zeroed frames of `size` bytes at `displacement` from the base of each window; returns the alias address.
    pub(crate) fn map_vcpu_block(&mut self, displacement: i32, size: u64) -> Result<*mut u8, MapError> {
        let frames = self.allocate_frames(size)?;
        self.user.map_reserved(displacement, frames.size, &self.store.file, frames.offset)?;
        self.kernel.map_reserved(displacement, frames.size, &self.store.file, frames.offset)?;
        let pointer = self.alias.map_reserved(displacement, frames.size, &self.store.file, frames.offset)?;
        self.vcpu_frames.push(frames);
        Ok(pointer)
    }
}

fn pages(start: u64, size: u64) -> impl Iterator<Item = u64> {
    (0..size / PAGE_SIZE).map(move |index| start + index * PAGE_SIZE)
}

/// What the views allow for a page-table byte: code pages lose write access.
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

#[expect(unsafe_code, reason = "guest memory is raw host memory")]
impl GuestMemory for AddressSpace {
    fn read(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<(), PageFault> {
        self.check_readable(address, buf.len() as u64, privilege)?;
        // SAFETY: every page of the range was found present; present pages are readable in the alias.
        unsafe { self.alias.read(address, buf) };
        Ok(())
    }

    fn copy(&mut self, from: u64, to: u64, len: usize, privilege: Privilege) -> Result<(), PageFault> {
        self.check_readable(from, len as u64, privilege)?;
        self.probe_write(to, len as u64, privilege)?;
        self.note_code_writes(to, len as u64);
        // SAFETY: every page of both ranges was found present, the destination's also writable; in the alias present
        // pages are readable and writable.
        unsafe { self.alias.copy(from, to, len) };
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8], privilege: Privilege) -> Result<(), PageFault> {
        self.probe_write(address, data.len() as u64, privilege)?;
        self.note_code_writes(address, data.len() as u64);
        // SAFETY: every page of the range was found present and writable; present pages are writable in the alias.
        unsafe { self.alias.write(address, data) };
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
            let state = self.table.get(at);
            if state & CODE == 0 {
                self.set_state(at, state | CODE);
                if state & Protection::WRITE.bits() != 0 {
                    let page = at & !(PAGE_SIZE - 1);
                    if self.apply_views(page, PAGE_SIZE).is_err() {
                        // Without write protection a change would go unnoticed: treat the page as not executable.
                        self.set_state(at, state);
                        break;
                    }
                }
            }
            length += ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(buf.len() - length);
        }
        if length == 0 {
            return Err(PageFault { address, code: PageFaultCode::FETCH });
        }
        // SAFETY: every page of the range was found present; present pages are readable in the alias.
        unsafe { self.alias.read(address, &mut buf[..length]) };
        Ok(length)
    }

    #[inline]
    fn code_modified(&self) -> bool {
        self.code_modified
    }

    #[inline(always)]
    fn load<const N: usize>(&mut self, address: u64, privilege: Privilege) -> Result<[u8; N], PageFault> {
        let state = self.table.get(address);
        let reachable = privilege == Privilege::Supervisor || address < USER_END;
        if state & ANY_RIGHT != 0 && reachable && address % PAGE_SIZE + N as u64 <= PAGE_SIZE {
            // SAFETY: the page is present (rights imply presence) and the access does not leave it.
            return Ok(unsafe { self.alias.load(address) });
        }
        let mut buf = [0; N];
        self.read(address, &mut buf, privilege)?;
        Ok(buf)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, address: u64, data: [u8; N], privilege: Privilege) -> Result<(), PageFault> {
        let state = self.table.get(address);
        let reachable = privilege == Privilege::Supervisor || address < USER_END;
        let plain = state & (Protection::WRITE.bits() | CODE) == Protection::WRITE.bits();
        if plain && reachable && address % PAGE_SIZE + N as u64 <= PAGE_SIZE {
            // SAFETY: the page is present and writable, and the access does not leave it.
            unsafe { self.alias.store(address, data) };
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
        assert_eq!(memory.take_modified(), vec![BASE..BASE + 0x1000]);
        memory.write_u64(BASE, 2, Privilege::User).unwrap();
        assert!(!memory.code_modified());
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
