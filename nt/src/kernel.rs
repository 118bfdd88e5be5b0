//! The executive: all state behind the service tables, and the service gate.

use crate::memory::MemoryManager;
use crate::service::Service;

/// Every service declaration of the crate.
pub const SERVICE_TABLES: &[&[Service]] = &[];

/// All executive state. The processor and guest memory belong to the machine and come with each
/// [`Call`](crate::service::Call).
#[derive(Debug)]
pub struct Kernel {
    /// Virtual memory.
    pub memory: MemoryManager,
}
