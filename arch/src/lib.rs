//! What the CPU is: registers, flags, control registers and MSRs, exceptions, CPUID models, the
//! [`GuestMemory`] trait, and the leaf operations that every engine shares.
//!
//! This crate knows no engine, no host address and no operating system. The interpreter and the
//! translator both build on it and never see each other; ordinary instruction semantics live in
//! them (twice, on purpose), while system operations whose meaning is a page of conditions in the
//! manual (SYSCALL, IRETQ, interrupt delivery, MSR access) live here once, in [`system`],
//! [`msr`] and [`delivery`].
//!
//! Sources are cited as `SDM` (Intel 64 and IA-32 Architectures Software Developer's Manual) and
//! `APM` (AMD64 Architecture Programmer's Manual).

pub mod control;
pub mod cpuid;
pub mod delivery;
pub mod descriptor;
pub mod entropy;
pub mod exception;
pub mod hooked;
pub mod memory;
pub mod model;
pub mod msr;
pub mod rflags;
pub mod segment;
pub mod state;
pub mod system;

pub use exception::{Exception, Vector};
pub use hooked::{Hooked, HookedCode};
pub use memory::{GuestMemory, PageFault, PageFaultCode, Privilege};
pub use model::{CpuModel, Vendor};
pub use rflags::Rflags;
pub use segment::{DescriptorTable, Segment, SegmentIndex};
pub use state::{CpuState, Gpr};

/// Size of a guest page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Whether `address` is canonical for 48-bit virtual addresses (SDM vol. 1, 3.3.7.1).
#[inline]
#[must_use]
pub const fn is_canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}
