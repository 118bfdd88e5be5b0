//! The oracle: executes guest code one instruction at a time, literally as the manual says.
//!
//! Semantics are written independently of the translator and share with it only the decoder, the state types and
//! the leaf operations of `lstar_arch`. Exceptions are returned as values, never delivered: the caller decides.
#![forbid(unsafe_code)]

mod accesses;
mod arithmetic;
mod avx;
mod bit;
mod block_cache;
mod bmi;
mod control_flow;
mod data_transfer;
mod decode;
mod dispatch;
mod engine;
mod exec;
mod flags;
mod limits;
mod logic;
mod shift;
mod softfloat;
mod sse;
mod string;
mod system;
mod watch;
mod x87;
mod xsave;

pub use engine::Interpreter;
use lstar_arch::Exception;
pub use lstar_arch::system::TSC_PER_INSTRUCTION;
pub use x87::{Provider, Transcendental, provide_transcendentals};

/// How a [`Interpreter::step`] or [`Interpreter::run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The instruction retired (`step`), or the budget is used up (`run`).
    Retired,
    /// An exception to deliver. `cpu.rip` is the address to push (instruction for faults, successor for traps).
    Exception(Exception),
    /// INT n (not INT3): a software interrupt to deliver through the IDT; `cpu.rip` is behind the instruction.
    SoftwareInterrupt(u8),
    /// VMCALL at CPL 0: the service gate. `cpu.rip` is behind the instruction.
    ServiceGate,
    /// HLT at CPL 0. `cpu.rip` is behind the instruction.
    Halt,
    /// The instruction retired and wrote to a page that holds code: cached decodings and translations are stale.
    CodeModified,
    /// `cpu.rip` is a block entry that has been reached as often as the threshold says (`run` only).
    Hot,
    /// Execution reached a block entry that has been visited [`RunOptions::warm_threshold`] times.
    Warm,
    /// `cpu.rip` is where a stop is set ([`Interpreter::set_stop`]); the instruction there has not executed (`run` only).
    Stop,
    /// A near CALL retired (`run` with [`RunOptions::stop_at_calls`] only).
    Call,
    /// A near RET retired (`run` with [`RunOptions::stop_at_calls`] only).
    Return,
}

/// What makes [`Interpreter::run`] return early.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Visits of a block entry after which `run` returns [`Outcome::Hot`] instead of executing it, each time it gets
    /// there; `u32::MAX` for never. Whoever has nothing better goes on with [`Interpreter::step`] or another threshold.
    pub hot_threshold: u32,
    /// Return [`Outcome::Warm`], once, from a block entry that has been visited this often; `u32::MAX` for never.
    pub warm_threshold: u32,
    /// Return after each near CALL and near RET, so that the caller can keep track of nesting.
    pub stop_at_calls: bool,
    /// Return [`Outcome::Retired`] behind SYSCALL and behind returns to another privilege level.
    pub stop_at_switches: bool,
    /// Execute the block at RIP even if it begins at a stop, and return [`Outcome::Retired`] behind it.
    pub one_block: bool,
}

impl RunOptions {
    /// Never early.
    pub const PLAIN: Self = Self {
        hot_threshold: u32::MAX,
        warm_threshold: u32::MAX,
        stop_at_calls: false,
        stop_at_switches: false,
        one_block: false,
    };
}

/// What happened inside [`Interpreter::run`] and [`Interpreter::step`] that their outcome does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// SYSCALL instructions retired.
    pub syscalls: u64,
    /// Retired instructions that changed the privilege level.
    pub privilege_switches: u64,
}

/// An instruction that had no implementation and raised #UD for that reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unimplemented {
    /// Its address.
    pub rip: u64,
    /// Its text.
    pub text: String,
}
