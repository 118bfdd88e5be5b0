//! Access to guest memory by linear address, as the engines see it.

use bitflags::bitflags;

/// Whose rights an access has. CPL 0 to 2 are [`Privilege::Supervisor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// CPL 3: the kernel half of the address space is out of reach.
    User,
    /// CPL 0 to 2, and implicit accesses to descriptor tables and the TSS.
    Supervisor,
}

bitflags! {
    /// Page-fault error code (SDM vol. 3, 4.7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PageFaultCode: u32 {
        /// The page was present: a protection violation.
        const PRESENT = 1 << 0;
        /// The access was a write.
        const WRITE = 1 << 1;
        /// The access was made at CPL 3.
        const USER = 1 << 2;
        /// A reserved bit was set in a paging structure.
        const RESERVED = 1 << 3;
        /// The access was an instruction fetch.
        const FETCH = 1 << 4;
    }
}

/// A failed access: becomes #PF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("page fault at {address:#x} ({code:?})")]
pub struct PageFault {
    /// The first byte that could not be accessed.
    pub address: u64,
    /// Why.
    pub code: PageFaultCode,
}

/// Guest memory at linear addresses.
///
/// Callers have already added the segment base and checked that the address is canonical; an
/// address that no mapping can hold reads as not present. An access is all or nothing: when any of
/// its bytes is out of reach nothing is written, and the fault names the first such byte. Reads
/// take `&mut self` because an implementation may resolve or count them.
pub trait GuestMemory {
    /// Reads `buf.len()` bytes.
    fn read(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<(), PageFault>;

    /// Writes `data`. Writing to bytes that were handed out by [`GuestMemory::fetch`] must be noticed: see
    /// [`GuestMemory::code_modified`].
    fn write(&mut self, address: u64, data: &[u8], privilege: Privilege) -> Result<(), PageFault>;

    /// Copies `len` bytes between ranges that do not overlap, all or nothing. Implementations override this to do
    /// without a buffer.
    fn copy(&mut self, from: u64, to: u64, len: usize, privilege: Privilege) -> Result<(), PageFault> {
        let mut buffer = vec![0; len];
        self.read(from, &mut buffer, privilege)?;
        self.write(to, &buffer, privilege)
    }

    /// Checks that `len` bytes are writable without changing them (for instructions that must not fault half way).
    fn probe_write(&mut self, address: u64, len: u64, privilege: Privilege) -> Result<(), PageFault>;

    /// Fetches instruction bytes: fills as much of `buf` as is executable and returns that count, at least 1.
    /// Faults when not even the first byte is executable. The pages touched count as holding code from then on.
    fn fetch(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<usize, PageFault>;

    /// Whether a page that holds fetched code was written since the last invalidation. Engines look after each
    /// instruction that can write, and stop using cached decodings until whoever drives them has dropped what is stale.
    fn code_modified(&self) -> bool;

    /// Reads a fixed number of bytes. Implementations override this with a fast path.
    #[inline]
    fn load<const N: usize>(&mut self, address: u64, privilege: Privilege) -> Result<[u8; N], PageFault> {
        let mut buf = [0; N];
        self.read(address, &mut buf, privilege)?;
        Ok(buf)
    }

    /// Writes a fixed number of bytes. Implementations override this with a fast path.
    #[inline]
    fn store<const N: usize>(&mut self, address: u64, data: [u8; N], privilege: Privilege) -> Result<(), PageFault> {
        self.write(address, &data, privilege)
    }

    /// Reads a little-endian quadword.
    #[inline]
    fn read_u64(&mut self, address: u64, privilege: Privilege) -> Result<u64, PageFault> {
        Ok(u64::from_le_bytes(self.load(address, privilege)?))
    }

    /// Writes a little-endian quadword.
    #[inline]
    fn write_u64(&mut self, address: u64, value: u64, privilege: Privilege) -> Result<(), PageFault> {
        self.store(address, value.to_le_bytes(), privilege)
    }
}
