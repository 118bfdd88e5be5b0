//! Shared by the integration tests and the benchmarks.

pub mod bare;
pub mod differential;
pub mod fuzz;
pub mod programs;
