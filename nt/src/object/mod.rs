//! The object manager: objects with their reference counts, handles, the name space.
//!
//! An object lives in [`ObjectManager`] under an [`ObjectId`] and dies when its last handle and its last reference are
//! gone. Dying objects are queued: [`ObjectManager::take_dead`] hands them to whoever must tidy up behind them (a
//! file deletes itself on close, a mutant tells its waiters), because the manager knows nothing of their meaning.

pub mod handle;
pub mod manager;
pub mod namespace;
pub mod port_services;
pub mod services;
pub mod support;
pub mod sync;
pub mod sync_services;
pub mod types;

pub use handle::{Handle, HandleEntry, HandleTable};
pub use manager::{Object, ObjectId, ObjectManager};
pub use namespace::{Directory, Resolved, SymbolicLink};
pub use sync::{
    CompletionPacket, Event, EventKind, IoCompletion, Job, KeyedEvent, Mutant, Semaphore, Timer, WaitOutcome,
};
pub use types::{Body, Device, ObjectType};

#[cfg(test)]
mod tests;
