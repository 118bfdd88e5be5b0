//! Hooks: what an embedder can have told while guest code runs.
//!
//! A hook costs where it applies. Code hooks are compiled into the regions of the code that they are on; memory hooks take the
//! pages they are on away from translated code, so that only accesses to those pages go through the interpreter; the rest
//! is asked where it happens anyway. Both engines call the same hooks, in the same order.

use std::any::Any;
use std::fmt;
use std::ops::Range;

use crate::machine::GateAction;
use crate::vcpu::Vcpu;

/// What is to be told. Addresses mean every address space.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// RIP has got to an address; the instruction there has not executed.
    Address(u64),
    /// A basic block that begins in the range is about to execute. A block begins where control arrives by a branch, call,
    /// return, exception or system call, and behind each instruction that can be one of these; it ends with the next such
    /// instruction, whatever else jumps into it.
    Blocks(Range<u64>),
    /// An instruction in the range is about to execute; a repeated string instruction counts once. This is also the hook for
    /// execution of a range of memory.
    Instructions(Range<u64>),
    /// A guest instruction has read (read, written) some of the range. What services and the processor itself (pushing an
    /// exception's frame, say) touch does not count. A repeated string instruction may report several elements as one.
    Memory {
        /// Guest addresses.
        range: Range<u64>,
        /// Reads count.
        reads: bool,
        /// Writes count.
        writes: bool,
    },
    /// An exception or software interrupt is about to be delivered, page faults that the guest's kernel resolves included. If
    /// the handler changes RIP, it is not.
    Exceptions,
    /// The privilege level has changed.
    PrivilegeSwitches,
}

impl Hook {
    /// Reads and writes of a range.
    #[must_use]
    pub const fn accesses(range: Range<u64>) -> Self {
        Self::Memory { range, reads: true, writes: true }
    }

    /// Reads of a range.
    #[must_use]
    pub const fn reads(range: Range<u64>) -> Self {
        Self::Memory { range, reads: true, writes: false }
    }

    /// Writes of a range.
    #[must_use]
    pub const fn writes(range: Range<u64>) -> Self {
        Self::Memory { range, reads: false, writes: true }
    }
}

/// What has happened, or is about to: see [`Hook`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookEvent {
    /// See [`Hook::Address`].
    Address {
        /// Where.
        rip: u64,
    },
    /// See [`Hook::Blocks`].
    Block {
        /// Address of its first instruction.
        rip: u64,
    },
    /// See [`Hook::Instructions`].
    Instruction {
        /// Its address.
        rip: u64,
    },
    /// See [`Hook::Memory`]. RIP is already behind the instruction.
    Memory {
        /// Address of the instruction.
        rip: u64,
        /// First byte it has touched.
        address: u64,
        /// Bytes.
        size: u64,
        /// Whether it has written them.
        write: bool,
    },
    /// See [`Hook::Exceptions`]. For software interrupts and traps RIP is behind the instruction.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code, if it has one.
        error_code: Option<u32>,
        /// For page faults, the address.
        address: Option<u64>,
        /// Raised by INT n, INT3 or INTO.
        software: bool,
    },
    /// See [`Hook::PrivilegeSwitches`]. RIP is where the new level begins.
    PrivilegeSwitch {
        /// The level before.
        from: u8,
        /// The level now.
        to: u8,
    },
}

/// Names a hook; never used twice in a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HookId(pub(crate) u64);

/// What a hook calls: as [`crate::ServiceGate::hooked`], which it can also be. A panic in it ends the run with
/// [`crate::VmExit::HookPanicked`].
pub type HookHandler = Box<dyn FnMut(&mut Vcpu<'_>, &HookEvent) -> GateAction + Send>;

/// Who is called.
pub(crate) enum Target {
    /// [`crate::ServiceGate::hooked`].
    Gate,
    /// A function; gone while it is called.
    Handler(Option<HookHandler>),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gate => "Gate",
            Self::Handler(_) => "Handler",
        })
    }
}

/// A change that was asked for.
#[derive(Debug)]
pub(crate) enum HookChange {
    Add(HookId, Hook, Target),
    Remove(HookId),
}

/// What a panic has said, for those who catch one.
#[must_use]
pub fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
