//! Host mappings behind guest memory: the memory file, mapped whole for Rust code, and windows in which translated code
//! sees pages of it at guest addresses.
//!
//! Every method is a thin, checked wrapper over one system call; offsets and sizes are validated, so that no argument can
//! touch host memory outside the file's mapping or the window.
#![expect(unsafe_code, reason = "mmap, mprotect and raw loads and stores of guest memory live here and only here")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

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

/// The memory file that backs all guest pages, and its mapping.
#[derive(Debug)]
pub(super) struct MemoryFile {
    fd: OwnedFd,
    start: *mut u8,
    size: u64,
}

// SAFETY: the mapping is owned by this value. Its methods take frame offsets from whoever owns the frames; that no two
// threads access the same guest memory at a time is the machine's business.
unsafe impl Send for MemoryFile {}
// SAFETY: as for `Send`; the methods change the file's contents only, never this value.
unsafe impl Sync for MemoryFile {}

impl MemoryFile {
    /// Creates a sparse file of `size` bytes and maps it.
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
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { fd, start: start.cast(), size })
    }

    /// Bytes that frames can lie in.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Gives the pages of a range back to the host; they read as zero afterwards.
    pub fn punch_hole(&self, offset: u64, size: u64) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: plain system call on an owned descriptor. A failure only means that memory is returned later.
        unsafe { libc::fallocate(self.fd.as_raw_fd(), mode, offset as libc::off_t, size as libc::off_t) };
    }

    /// Host address of a range of the file; asserts that it is inside.
    #[inline(always)]
    pub fn pointer(&self, offset: u64, len: usize) -> *mut u8 {
        assert!(offset <= self.size && len as u64 <= self.size - offset, "outside the memory file");
        self.start.wrapping_add(offset as usize)
    }

    /// Copies bytes out.
    #[inline(always)]
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        // SAFETY: `pointer` has checked the source; the destination is a distinct Rust buffer.
        unsafe { ptr::copy_nonoverlapping(self.pointer(offset, buf.len()), buf.as_mut_ptr(), buf.len()) };
    }

    /// Copies bytes in.
    #[inline(always)]
    pub fn write(&self, offset: u64, data: &[u8]) {
        // SAFETY: `pointer` has checked the destination; the source is a distinct Rust buffer.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.pointer(offset, data.len()), data.len()) };
    }

    /// Copies many bytes in, as a write to the file: pages that nothing has touched yet are neither cleared nor mapped for it.
    /// What the host does not take that way is copied.
    pub fn write_many(&self, mut offset: u64, mut data: &[u8]) {
        // Asserts that it is inside.
        self.pointer(offset, data.len());
        while !data.is_empty() {
            match rustix::io::pwrite(&self.fd, data, offset) {
                Ok(written) if written != 0 => {
                    offset += written as u64;
                    data = &data[written..];
                }
                _ => return self.write(offset, data),
            }
        }
    }

    /// Copies many bytes out, as a read of the file: pages that nothing has touched yet stay so.
    pub fn read_many(&self, mut offset: u64, mut buf: &mut [u8]) {
        // Asserts that it is inside.
        self.pointer(offset, buf.len());
        while !buf.is_empty() {
            match rustix::io::pread(&self.fd, &mut *buf, offset) {
                Ok(read) if read != 0 => {
                    offset += read as u64;
                    buf = &mut buf[read..];
                }
                _ => return self.read(offset, buf),
            }
        }
    }

    /// Copies bytes from one place of the file to another; the ranges may overlap.
    #[inline(always)]
    pub fn copy(&self, from: u64, to: u64, len: usize) {
        // SAFETY: `pointer` has checked both ranges; `copy` allows overlap.
        unsafe { ptr::copy(self.pointer(from, len), self.pointer(to, len), len) };
    }

    /// Loads a fixed number of bytes.
    #[inline(always)]
    pub fn load<const N: usize>(&self, offset: u64) -> [u8; N] {
        // SAFETY: `pointer` has checked the source; a byte array has alignment 1.
        unsafe { self.pointer(offset, N).cast::<[u8; N]>().read() }
    }

    /// Stores a fixed number of bytes.
    #[inline(always)]
    pub fn store<const N: usize>(&self, offset: u64, data: [u8; N]) {
        // SAFETY: `pointer` has checked the destination; a byte array has alignment 1.
        unsafe { self.pointer(offset, N).cast::<[u8; N]>().write(data) };
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and is owned by this value.
        unsafe { libc::munmap(self.start.cast(), self.size as usize) };
    }
}

/// Reserved host addresses: guest address 0 at `base`, the kernel half below, guard zones around each half. The range
/// between the halves is not reserved: no access is ever made there.
#[derive(Debug)]
pub(super) struct Window {
    base: *mut u8,
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
    pub fn new() -> io::Result<Self> {
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
        // SAFETY: the range is part of the reservation just made, and nothing has been mapped in it.
        unsafe { libc::munmap(start.wrapping_add(Self::KERNEL_LENGTH).cast(), Self::GAP_END - Self::KERNEL_LENGTH) };
        Ok(Self { base: start.wrapping_add((HALF + GUARD_SIZE) as usize) })
    }

    /// Host address of guest address 0.
    pub fn base(&self) -> u64 {
        self.base as u64
    }

    /// Host pointer for a guest address; asserts that `[guest, guest + size)` lies in the window.
    fn pointer(&self, guest: u64, size: u64) -> *mut u8 {
        let offset = guest.wrapping_add(HALF);
        let kernel_part = KERNEL_END.wrapping_add(HALF);
        let in_kernel_half = offset < kernel_part && size <= kernel_part - offset;
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
        // SAFETY: as in `map`; no Rust reference points into a window.
        let result = unsafe { libc::mprotect(self.pointer(guest, size).cast(), size as usize, host.bits()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Maps `size` bytes of `file` at a host offset from the base that no guest range covers (for the vCPU block).
    pub fn map_reserved(&self, displacement: i32, size: u64, file: &MemoryFile, offset: u64) -> io::Result<()> {
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
        if result == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let start = self.base.wrapping_sub((HALF + GUARD_SIZE) as usize);
        // SAFETY: the ranges were reserved by `new`, and kept, and are owned by this value.
        unsafe {
            libc::munmap(start.wrapping_add(Self::GAP_END).cast(), Self::LENGTH - Self::GAP_END);
            libc::munmap(start.cast(), Self::KERNEL_LENGTH);
        }
    }
}
