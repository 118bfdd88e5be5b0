//! Every condition of the system instructions (SDM vol. 2; APM vol. 3), a table row each, on both engines.

mod bench;
mod compatibility;
mod debugging;
mod fast_call;
mod flags;
mod interrupts;
mod registers;
mod vectors;
