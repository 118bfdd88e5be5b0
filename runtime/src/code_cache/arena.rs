//! Raw memory of the code cache: host code, link slots, target tables. All of the cache's `unsafe` is here.
#![expect(unsafe_code, reason = "executable memory and tables that translated code reads")]

use std::alloc::Layout;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use lstar_translator::abi::{Slot, TARGET_TABLE_BITS, Target};

/// Host code memory, mapped twice: writable here, executable there (W^X).
#[derive(Debug)]
pub(super) struct CodeArena {
    writable: *mut u8,
    executable: *mut u8,
    size: usize,
    used: usize,
}

impl CodeArena {
    /// A cache line, as link slots want theirs to hold nothing else.
    const ALIGNMENT: usize = 64;

    pub fn new(size: usize) -> io::Result<Self> {
        // SAFETY: the name is a valid C string; the result is checked before it is owned.
        let fd = unsafe { libc::memfd_create(c"lstar-code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned by the kernel and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain system call on an owned descriptor.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let map = |protection| {
            // SAFETY: a new shared mapping at an address of the kernel's choice touches nothing that exists.
            let at = unsafe { libc::mmap(ptr::null_mut(), size, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
            if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast::<u8>()) }
        };
        let writable = map(libc::PROT_READ | libc::PROT_WRITE)?;
        let executable = map(libc::PROT_READ | libc::PROT_EXEC)?;
        Ok(Self { writable, executable, size, used: 0 })
    }

    /// Copies code in and returns its executable address; `None` when the arena is full.
    pub fn push(&mut self, code: &[u8]) -> Option<u64> {
        let start = self.used.next_multiple_of(Self::ALIGNMENT);
        let end = start.checked_add(code.len())?;
        if end > self.size {
            return None;
        }
        // SAFETY: `start..end` is inside the mapping; nothing executes there, since it was never handed out (or the arena
        // was cleared, for which the caller has made sure that no translated code is on the stack).
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(start), code.len()) };
        self.used = end;
        Some(self.executable as u64 + start as u64)
    }

    /// Bytes of the whole.
    pub fn size(&self) -> usize {
        self.size
    }

    /// A copy of code that was handed out.
    pub fn bytes(&self, code: &std::ops::Range<u64>) -> Vec<u8> {
        let start = code.start.saturating_sub(self.executable as u64) as usize;
        let length = (code.end - code.start) as usize;
        assert!(start.saturating_add(length) <= self.used, "not of this arena");
        // SAFETY: within the part of the mapping that has been handed out; only this thread writes there.
        unsafe { std::slice::from_raw_parts(self.writable.add(start), length) }.to_vec()
    }

    /// Where the slot at executable address `address` can be written; `None` when it is not in the used part.
    fn slot(&self, address: u64) -> Option<*mut Slot> {
        let offset = usize::try_from(address.checked_sub(self.executable as u64)?).ok()?;
        let inside = offset.checked_add(size_of::<Slot>())? <= self.used && offset.is_multiple_of(align_of::<Slot>());
        // SAFETY: the offset is inside the mapping.
        inside.then(|| unsafe { self.writable.add(offset) }.cast::<Slot>())
    }

    /// Fills in the link slot at executable address `address`.
    pub fn write_slot(&mut self, address: u64, slot: Slot) {
        if let Some(place) = self.slot(address) {
            // SAFETY: inside the mapping and aligned; translated code reads slots only while no Rust code of this thread
            // writes them.
            unsafe { place.write(slot) };
        }
    }

    /// The target RIP of a slot.
    pub fn slot_rip(&self, address: u64) -> u64 {
        // SAFETY: inside the mapping and aligned; nothing writes meanwhile.
        self.slot(address).map_or(u64::MAX, |place| unsafe { (*place).rip })
    }

    /// Where the six-byte conditional jump at `address` leads, if there is one.
    pub fn jump_target(&self, address: u64) -> Option<u64> {
        let offset = usize::try_from(address.checked_sub(self.executable as u64)?).ok()?;
        if offset.checked_add(6)? > self.used {
            return None;
        }
        // SAFETY: within the part of the mapping that has been handed out; only this thread writes there.
        let bytes = unsafe { self.writable.add(offset).cast::<[u8; 6]>().read() };
        let distance = i32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
        let jump = bytes[0] == 0x0F && bytes[1] & 0xF0 == 0x80;
        jump.then(|| address.wrapping_add(6).wrapping_add_signed(distance.into()))
    }

    /// Overwrites code that was handed out, and returns what was there. Only while it does not run.
    pub fn patch(&mut self, address: u64, bytes: [u8; 2]) -> Option<[u8; 2]> {
        let offset = usize::try_from(address.checked_sub(self.executable as u64)?).ok()?;
        if offset.checked_add(bytes.len())? > self.used {
            return None;
        }
        let at = self.writable.wrapping_add(offset).cast::<[u8; 2]>();
        // SAFETY: within the part of the mapping that has been handed out; nothing executes there, as the caller makes sure.
        Some(unsafe { std::mem::replace(&mut *at, bytes) })
    }

    pub fn clear(&mut self) {
        self.used = 0;
    }
}

impl Drop for CodeArena {
    fn drop(&mut self) {
        // SAFETY: both mappings were made by `new` and are owned by this value.
        unsafe {
            libc::munmap(self.writable.cast(), self.size);
            libc::munmap(self.executable.cast(), self.size);
        }
    }
}

/// A target table that translated code reads.
#[derive(Debug)]
pub(super) struct TargetTable {
    entries: *mut Target,
}

impl TargetTable {
    const LENGTH: usize = 1 << TARGET_TABLE_BITS;
    const EMPTY: Target = Target { rip: u64::MAX, code: 0 };

    pub fn new() -> Self {
        // Zeroed memory costs nothing before it is used. An entry of zeros holds RIP 0, which only the first can match.
        let layout = Layout::new::<[Target; Self::LENGTH]>();
        // SAFETY: the layout is not empty; zeros are a valid value of integers.
        let entries = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<Target>();
        if entries.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        // SAFETY: the table was just allocated, and is not empty.
        unsafe { entries.write(Self::EMPTY) };
        Self { entries }
    }

    pub fn pointer(&self) -> *mut Target {
        self.entries
    }

    fn entry(&mut self, rip: u64) -> &mut Target {
        let index = rip as usize & (Self::LENGTH - 1);
        // SAFETY: the index is in bounds of the table allocated in `new`, and translated code does not run meanwhile.
        unsafe { &mut *self.entries.add(index) }
    }

    pub fn get(&mut self, rip: u64) -> Option<u64> {
        let entry = self.entry(rip);
        (entry.rip == rip).then_some(entry.code)
    }

    pub fn insert(&mut self, rip: u64, code: u64) {
        *self.entry(rip) = Target { rip, code };
    }

    pub fn remove(&mut self, rip: u64) {
        let entry = self.entry(rip);
        if entry.rip == rip {
            *entry = Self::EMPTY;
        }
    }

    pub fn clear(&mut self) {
        // SAFETY: the table allocated in `new` has this length, and translated code does not run meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.entries, Self::LENGTH) }.fill(Self::EMPTY);
    }
}

impl Drop for TargetTable {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { std::alloc::dealloc(self.entries.cast(), Layout::new::<[Target; Self::LENGTH]>()) };
    }
}
