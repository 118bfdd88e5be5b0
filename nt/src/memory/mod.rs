//! The memory manager: address descriptors, commitment, sections.

use lstar_arch::{GuestMemory, Privilege};
use lstar_runtime::AddressSpace;

use crate::status::Status;

/// The process's virtual memory as NT accounts for it.
#[derive(Debug, Default)]
pub struct MemoryManager {}

impl MemoryManager {
    /// Reads guest memory for a service, serving demand faults as hardware accesses would.
    pub fn read(
        &mut self,
        space: &mut AddressSpace,
        address: u64,
        buf: &mut [u8],
        mode: Privilege,
    ) -> Result<(), Status> {
        space.read(address, buf, mode)?;
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
        space.write(address, data, mode)?;
        Ok(())
    }
}
