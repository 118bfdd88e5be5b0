//! The flat page table of one half of an address space.
#![expect(unsafe_code, reason = "a sparse array in a mapping of its own")]

use std::io;
use std::ptr;

use lstar_arch::PAGE_SIZE;

/// What is known of a guest page: the offset of its frame in the memory file, and in the low bits its state. 0: nothing
/// is mapped there.
pub(super) type Entry = u64;

/// The part of an [`Entry`] that is the frame's offset.
pub(super) const FRAME_MASK: Entry = !(PAGE_SIZE - 1);

/// One entry for each guest page of a half, in an array whose untouched parts cost nothing.
#[derive(Debug)]
pub(super) struct PageTable {
    entries: *mut Entry,
    first_address: u64,
    pages: usize,
}

// SAFETY: the array is owned by this value; which thread uses it is the owner's business.
unsafe impl Send for PageTable {}

impl PageTable {
    /// An all-zero table for `size` bytes of guest addresses from `first_address`.
    pub fn new(first_address: u64, size: u64) -> io::Result<Self> {
        let pages = (size / PAGE_SIZE) as usize;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                pages * size_of::<Entry>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { entries: start.cast(), first_address, pages })
    }

    /// Entry of the page that holds a guest address; 0 for addresses outside the half.
    #[inline(always)]
    pub fn get(&self, guest: u64) -> Entry {
        let index = (guest.wrapping_sub(self.first_address) / PAGE_SIZE) as usize;
        if index >= self.pages {
            return 0;
        }
        // SAFETY: the index is inside the mapping that this value owns.
        unsafe { self.entries.wrapping_add(index).read() }
    }

    /// Sets the entry of the page that holds a guest address inside the half.
    #[inline]
    pub fn set(&mut self, guest: u64, entry: Entry) {
        let index = (guest.wrapping_sub(self.first_address) / PAGE_SIZE) as usize;
        assert!(index < self.pages, "guest address {guest:#x} outside the half");
        // SAFETY: the index is inside the mapping that this value owns, and `self` is borrowed exclusively.
        unsafe { self.entries.wrapping_add(index).write(entry) };
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and is owned by this value.
        unsafe { libc::munmap(self.entries.cast(), self.pages * size_of::<Entry>()) };
    }
}
