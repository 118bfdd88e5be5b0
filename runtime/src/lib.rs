//! The machine: guest memory, the engines' loop, helpers for translated code, the code cache, host faults.
//!
//! Everything above this crate sees [`Machine`], [`Vcpu`] and [`AddressSpace`]; no host
//! address leaves it.

pub mod bisect;
mod code_cache;
pub mod code_store;
mod compiler;
mod entry;
mod fault;
mod helpers;
pub mod hooks;
mod host_flags;
mod host_ops;
#[cfg(target_arch = "x86_64")]
mod host_x87;
pub mod machine;
pub mod memory;
pub mod vcpu;
mod x87;

pub use hooks::{Hook, HookEvent, HookHandler, HookId};
pub use machine::core::learn_stack_limit;
pub use machine::{
    Ahead, CoveredBlock, Engine, Exits, GateAction, Machine, MachineConfig, MachineError, ServiceGate, Statistics,
    SyscallDispatch, SystemCall, VmExit,
};
pub use memory::{AddressSpace, Fields, Frames, MapError, ModifiedCode, Pin, PinGroup, Pinned, Protection, SpaceId};
pub use vcpu::{Deferred, Registers, ThreadContext, Vcpu};
pub use x87::provide_transcendentals;
