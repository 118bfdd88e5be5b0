//! The executive: all state behind the service tables, and the service gate.

use crate::io::{FileSystem, Host};
use crate::memory::MemoryManager;
use crate::object::{HandleTable, ObjectManager};
use crate::registry::Registry;
use crate::service::Service;
use crate::system_state::SystemState;
use crate::time::Clock;

/// Every service declaration of the crate.
pub const SERVICE_TABLES: &[&[Service]] = &[
    crate::io::services::SERVICES,
    crate::io::transfer::SERVICES,
    crate::object::port_services::SERVICES,
    crate::object::services::SERVICES,
    crate::object::sync_services::SERVICES,
    crate::registry::services::SERVICES,
    crate::system_services::SERVICES,
    crate::token_services::SERVICES,
    crate::win32k::SERVICES,
];

/// All executive state. The processor and guest memory belong to the machine and come with each
/// [`Call`](crate::service::Call).
#[derive(Debug)]
pub struct Kernel {
    /// Virtual memory.
    pub memory: MemoryManager,
    /// Objects and the name space.
    pub objects: ObjectManager,
    /// Handles of the process.
    pub handles: HandleTable,
    /// Mounted volumes.
    pub files: FileSystem,
    /// Keys and values.
    pub registry: Registry,
    /// Time.
    pub clock: Clock,
    /// Standard streams, wall clock, entropy.
    pub host: Box<dyn Host>,
    /// Atoms, identifiers, locale, NLS.
    pub system: SystemState,
}
