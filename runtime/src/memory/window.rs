//! Host mappings behind guest memory: one memory file, three windows onto it.
//!
//! Every method is a thin, checked wrapper over one system call; offsets and sizes are validated against the window,
//! so that no argument can touch host memory outside it.
#![expect(unsafe_code, reason = "mmap, mprotect and raw loads and stores of guest memory live here and only here")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use lstar_arch::PAGE_SIZE;
use lstar_translator::abi::{GUARD_SIZE, KERNEL_END, USER_END};

/// Bytes of guest address space below and above the base of a window.
const HALF: u64 = USER_END;

/// Host access rights of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostProtection {
    None,
    Read,
    ReadWrite,
}

impl HostProtection {
    const fn bits(self) -> libc::c_int {
        match self {
            Self::None => libc::PROT_NONE,
            Self::Read => libc::PROT_READ,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// The memory file that backs all guest pages.
#[derive(Debug)]
pub(super) struct MemoryFile {
    fd: OwnedFd,
}

impl MemoryFile {
    /// Creates a sparse file of `size` bytes.
    pub fn new(size: u64) -> io::Result<Self> {
        // SAFETY: the name is a valid C string; the result is checked before it is owned.
        let fd = unsafe { libc::memfd_create(c"lstar-guest".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned by the kernel and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain system call on an owned descriptor.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { fd })
    }

    /// Gives the pages of a range back to the host; they read as zero afterwards.
    pub fn punch_hole(&self, offset: u64, size: u64) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: plain system call on an owned descriptor. A failure only means that memory is returned later.
        unsafe { libc::fallocate(self.fd.as_raw_fd(), mode, offset as libc::off_t, size as libc::off_t) };
    }
}

/// What a window must have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// The user half, and the reserved range below it.
    User,
    /// Both halves.
    Both,
}

/// Reserved host addresses: guest address 0 at `base`, the kernel half below, guard zones around each half. The range
/// between the halves is not reserved: no access is ever made there.
#[derive(Debug)]
pub(super) struct Window {
    base: *mut u8,
    room: Room,
}

// SAFETY: a window is an address range owned by this value; which thread uses it is the owner's business.
unsafe impl Send for Window {}

impl Window {
    const LENGTH: usize = (2 * (HALF + GUARD_SIZE)) as usize;

    /// Bytes from the start of the kernel half's guard zone to the end of the one behind it.
    const KERNEL_LENGTH: usize = (KERNEL_END.wrapping_add(HALF) + 2 * GUARD_SIZE) as usize;

    /// Bytes from the lowest address to what is reserved below `base`.
    const GAP_END: usize = HALF as usize;

    /// Reserves the range without access.
    pub fn new(room: Room) -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::LENGTH,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.cast::<u8>();
        let kept = match room {
            Room::User => 0,
            Room::Both => Self::KERNEL_LENGTH,
        };
        // SAFETY: the range is part of the reservation just made, and nothing has been mapped in it.
        unsafe { libc::munmap(start.wrapping_add(kept).cast(), Self::GAP_END - kept) };
        Ok(Self { base: start.wrapping_add((HALF + GUARD_SIZE) as usize), room })
    }

    /// Host address of guest address 0.
    pub fn base(&self) -> u64 {
        self.base as u64
    }

    /// Host pointer for a guest address; asserts that `[guest, guest + size)` lies in the window.
    fn pointer(&self, guest: u64, size: u64) -> *mut u8 {
        let offset = guest.wrapping_add(HALF);
        let kernel_part = KERNEL_END.wrapping_add(HALF);
        let in_kernel_half = self.room == Room::Both && offset < kernel_part && size <= kernel_part - offset;
        let in_user_half = (HALF..2 * HALF).contains(&offset) && size <= 2 * HALF - offset;
        assert!(in_kernel_half || in_user_half, "guest range {guest:#x}+{size:#x} outside the window");
        self.base.wrapping_add(guest as usize)
    }

    /// Maps `size` bytes of `file` from `offset` at a guest address.
    pub fn map(&self, guest: u64, size: u64, file: &MemoryFile, offset: u64, host: HostProtection) -> io::Result<()> {
        // SAFETY: `pointer` has checked that the range is inside this window, which this value owns.
        let result = unsafe {
            libc::mmap(
                self.pointer(guest, size).cast(),
                size as usize,
                host.bits(),
                libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.fd.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if result == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes access to a range away and drops its mapping.
    pub fn unmap(&self, guest: u64, size: u64) -> io::Result<()> {
        // SAFETY: as in `map`.
        let result = unsafe {
            libc::mmap(
                self.pointer(guest, size).cast(),
                size as usize,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if result == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Changes the host protection of a range.
    pub fn protect(&self, guest: u64, size: u64, host: HostProtection) -> io::Result<()> {
        // SAFETY: as in `map`; no Rust reference points into guest memory.
        let result = unsafe { libc::mprotect(self.pointer(guest, size).cast(), size as usize, host.bits()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Copies guest bytes out.
    ///
    /// # Safety
    /// The range must be mapped readable in this window.
    #[inline(always)]
    pub unsafe fn read(&self, guest: u64, buf: &mut [u8]) {
        debug_assert!(guest.wrapping_add(HALF) < 2 * HALF);
        // SAFETY: the caller vouches for the source; the destination is a distinct Rust buffer.
        unsafe { ptr::copy_nonoverlapping(self.base.wrapping_add(guest as usize), buf.as_mut_ptr(), buf.len()) };
    }

    /// Copies bytes into guest memory.
    ///
    /// # Safety
    /// The range must be mapped writable in this window.
    #[inline(always)]
    pub unsafe fn write(&self, guest: u64, data: &[u8]) {
        debug_assert!(guest.wrapping_add(HALF) < 2 * HALF);
        // SAFETY: the caller vouches for the destination; the source is a distinct Rust buffer.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.base.wrapping_add(guest as usize), data.len()) };
    }

    /// Copies guest bytes to another guest address; the ranges may overlap.
    ///
    /// # Safety
    /// The ranges must be mapped readable and writable, respectively, in this window.
    #[inline(always)]
    pub unsafe fn copy(&self, from: u64, to: u64, len: usize) {
        // SAFETY: the caller vouches for both ranges; `copy` allows overlap.
        unsafe { ptr::copy(self.base.wrapping_add(from as usize), self.base.wrapping_add(to as usize), len) };
    }

    /// Guest bytes as a slice.
    ///
    /// # Safety
    /// The range must be mapped writable in this window, and nothing else may access it while the slice lives.
    #[inline(always)]
    pub unsafe fn bytes_mut(&mut self, guest: u64, len: usize) -> &mut [u8] {
        // SAFETY: the caller vouches for the range and for exclusive access; bytes have no alignment or validity.
        unsafe { std::slice::from_raw_parts_mut(self.base.wrapping_add(guest as usize), len) }
    }

    /// Loads a fixed number of bytes.
    ///
    /// # Safety
    /// As for [`Window::read`].
    #[inline(always)]
    pub unsafe fn load<const N: usize>(&self, guest: u64) -> [u8; N] {
        // SAFETY: the caller vouches for the source; a byte array has alignment 1.
        unsafe { self.base.wrapping_add(guest as usize).cast::<[u8; N]>().read() }
    }

    /// Stores a fixed number of bytes.
    ///
    /// # Safety
    /// As for [`Window::write`].
    #[inline(always)]
    pub unsafe fn store<const N: usize>(&self, guest: u64, data: [u8; N]) {
        // SAFETY: the caller vouches for the destination; a byte array has alignment 1.
        unsafe { self.base.wrapping_add(guest as usize).cast::<[u8; N]>().write(data) };
    }

    /// Maps `size` bytes of `file` at a host offset from the base that no guest range covers (for the vCPU block).
    pub fn map_reserved(&self, displacement: i32, size: u64, file: &MemoryFile, offset: u64) -> io::Result<*mut u8> {
        assert!(displacement < 0 && i64::from(displacement) >= -(GUARD_SIZE as i64), "not in the reserved range");
        let address = self.base.wrapping_offset(displacement as isize);
        // SAFETY: the range lies in the top 2 GiB of the kernel half, which is part of this window and never mapped as
        // guest memory.
        let result = unsafe {
            libc::mmap(
                address.cast(),
                size as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.fd.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if result == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let start = self.base.wrapping_sub((HALF + GUARD_SIZE) as usize);
        // SAFETY: the ranges were reserved by `new`, and kept, and are owned by this value.
        unsafe {
            libc::munmap(start.wrapping_add(Self::GAP_END).cast(), Self::LENGTH - Self::GAP_END);
            if self.room == Room::Both {
                libc::munmap(start.cast(), Self::KERNEL_LENGTH);
            }
        }
    }
}

/// One byte of state for each guest page, in a sparse flat array.
#[derive(Debug)]
pub(super) struct PageTable {
    start: *mut u8,
}

// SAFETY: as for `Window`.
unsafe impl Send for PageTable {}

impl PageTable {
    const LENGTH: usize = (2 * HALF / PAGE_SIZE) as usize;

    /// An all-zero table; memory is used only for the parts that are written.
    pub fn new() -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { start: start.cast() }) }
    }

    /// State of the page that holds a guest address; 0 for addresses outside both halves.
    #[inline(always)]
    pub fn get(&self, guest: u64) -> u8 {
        let index = (guest.wrapping_add(HALF) / PAGE_SIZE) as usize;
        if index >= Self::LENGTH {
            return 0;
        }
        // SAFETY: the index is inside the mapping that this value owns.
        unsafe { self.start.wrapping_add(index).read() }
    }

    /// Sets the state of the page that holds a guest address inside a half.
    #[inline]
    pub fn set(&mut self, guest: u64, state: u8) {
        let index = (guest.wrapping_add(HALF) / PAGE_SIZE) as usize;
        assert!(index < Self::LENGTH, "guest address {guest:#x} outside both halves");
        // SAFETY: the index is inside the mapping that this value owns, and `self` is borrowed exclusively.
        unsafe { self.start.wrapping_add(index).write(state) };
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and is owned by this value.
        unsafe { libc::munmap(self.start.cast(), Self::LENGTH) };
    }
}
