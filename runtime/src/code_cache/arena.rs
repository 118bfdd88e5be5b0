//! Raw memory of the code cache: host code, link slots, target tables. All of the cache's `unsafe` is here.
#![expect(unsafe_code, reason = "executable memory and tables that translated code reads")]

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
    const ALIGNMENT: usize = 32;

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

/// Link slots at stable addresses.
#[derive(Debug, Default)]
pub(super) struct SlotArena {
    chunks: Vec<*mut [Slot; Self::CHUNK]>,
    used: usize,
}

impl SlotArena {
    const CHUNK: usize = 1024;

    /// A new slot; returns its address, which stays valid for the arena's life.
    pub fn push(&mut self, slot: Slot) -> u64 {
        let (chunk, index) = (self.used / Self::CHUNK, self.used % Self::CHUNK);
        if chunk == self.chunks.len() {
            self.chunks.push(Box::into_raw(Box::new([Slot { code: 0, rip: 0 }; Self::CHUNK])));
        }
        self.used += 1;
        // SAFETY: the chunk was leaked from a box above and is freed only on drop; the index is in bounds.
        let address = unsafe { (&raw mut (*self.chunks[chunk])[index]).cast::<Slot>() };
        // SAFETY: as above; translated code reads slots only while no Rust code of this thread writes them.
        unsafe { address.write(slot) };
        address as u64
    }

    /// Points a slot at other code.
    pub fn set_code(&mut self, address: u64, code: u64) {
        // SAFETY: addresses come from `push` and stay valid; see there for concurrency.
        unsafe { (*(address as *mut Slot)).code = code };
    }

    /// The target RIP of a slot.
    pub fn rip(&self, address: u64) -> u64 {
        // SAFETY: addresses come from `push` and stay valid.
        unsafe { (*(address as *const Slot)).rip }
    }
}

impl Drop for SlotArena {
    fn drop(&mut self) {
        for &chunk in &self.chunks {
            // SAFETY: each chunk was leaked from a box in `push` and is freed once.
            drop(unsafe { Box::from_raw(chunk) });
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
        let entries = vec![Self::EMPTY; Self::LENGTH].into_boxed_slice();
        Self { entries: Box::into_raw(entries).cast() }
    }

    pub fn pointer(&self) -> *mut Target {
        self.entries
    }

    fn entry(&mut self, rip: u64) -> &mut Target {
        let index = rip as usize & (Self::LENGTH - 1);
        // SAFETY: the index is in bounds of the slice leaked in `new`, and translated code does not run meanwhile.
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
        // SAFETY: the slice leaked in `new` has this length, and translated code does not run meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.entries, Self::LENGTH) }.fill(Self::EMPTY);
    }
}

impl Drop for TargetTable {
    fn drop(&mut self) {
        // SAFETY: leaked in `new` with this length, and freed once.
        drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(self.entries, Self::LENGTH)) });
    }
}
