//! Shared by the integration tests and the benchmarks.

pub mod bare;
pub mod coverage;
pub mod differential;
pub mod fuzz;
pub mod hostile;
pub mod programs;
