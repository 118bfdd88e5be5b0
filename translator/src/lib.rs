//! Guest code to host code: regions, lifting, flags, Cranelift.
//!
//! The translator knows no operating system and holds no guest state. It reads guest code through [`CodeSource`],
//! and returns a [`CompiledRegion`]: position-independent host code with its link slots behind it, and the table of its
//! fault sites.
//!
//! **Addresses.** A guest access at `base + displacement` is made at host address `pinned + base + displacement`.
//! Before it, `base` must have been *checked*: in user mode `base < USER_END`, else a trap is taken (one compare and a
//! never-taken branch; a base is checked once per block and SSA value). A checked base plus a displacement in
//! `-512 MiB..=i32::MAX` reaches only guest memory or guard zones; any other combination is folded into a new base and
//! checked itself.
//!
//! **Precise state.** A host fault or check trap maps through its [`Site`] to a guest instruction, from where the
//! interpreter goes on: it resolves the access or raises the exact exception. So a site never needs the cause of its
//! fault. The registers and flag operands that the block lacks there are in host registers and stack slots, where a
//! [`statemap::StateMap`] finds them. Or, with [`PreciseState::Checkpoints`], they are stored to the block at
//! *checkpoints*; one serves all accesses behind it until something other than a register changes, above all up to and
//! including the next store to guest memory: executing loads once more changes nothing.

pub mod abi;
mod config;
pub mod coverage;
mod discover;
mod effects;
mod emit;
pub mod flags;
mod flow;
pub mod host_op;
mod leaf;
mod lift;
mod liveness;
mod locate;
mod reader;
mod recover;
pub mod statemap;
mod translate;
pub mod x87;

use std::sync::Arc;

use abi::{Mode, Slot, VcpuBlock};
use lstar_arch::HookedCode;
use serde::{Deserialize, Serialize};

pub use config::{CallMode, HostTarget, OptLevel, PreciseState, TranslatorConfig, TranslatorError, TranslatorStats};
pub use reader::Snapshot;
pub use recover::{FlagSource, Form, Operand};
pub use translate::Translator;

use statemap::{Entry, StateMap};

/// Reads guest code.
pub trait CodeSource {
    /// Fills as much of `buf` as is executable from `address` on in `mode`, and returns that count (0 if nothing is).
    fn fetch(&mut self, address: u64, buf: &mut [u8], mode: Mode) -> usize;

    /// Where the indirect jump at `jump` is known to have gone, most frequent target first. A hint: those near by become
    /// part of the region, any other target leaves it.
    fn indirect_targets(&mut self, jump: u64, mode: Mode) -> Vec<u64> {
        let _ = (jump, mode);
        Vec::new()
    }

    /// Whether the code at `rip` is known not to have been executed yet. A hint: it does not become part of the region.
    fn is_cold(&mut self, rip: u64, mode: Mode) -> bool {
        let _ = (rip, mode);
        false
    }

    /// Addresses in `range` at which no translated code is wanted: regions end before them.
    fn stops(&mut self, range: std::ops::Range<u64>) -> Vec<u64> {
        let _ = range;
        Vec::new()
    }

    /// Code whose blocks or instructions call [`abi::Helper::Hook`].
    fn hooked(&mut self) -> Arc<HookedCode> {
        Arc::default()
    }
}

/// What a fault at one point of translated code means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Offset in the region's code of the instruction that can fault.
    pub host_offset: u32,
    /// Guest instruction to go on at in the interpreter: the one that faulted, or one before it since which nothing
    /// but registers has changed (the block still has those of that point).
    pub rip: u64,
    /// Where the status flags are at this point.
    pub flags: SiteFlags,
    /// Guest instructions retired since `budget` was last stored.
    pub retired: u32,
    /// First of the entries of [`CompiledRegion::map`] that say what of the block is elsewhere.
    pub first_entry: u32,
    /// Their number.
    pub entry_count: u32,
}

/// Where the status flags are at a [`Site`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiteFlags {
    /// In the block: its lazy flags or RFLAGS are right.
    Current,
    /// The operands are in the block's lazy flags; this is the operation.
    Operands(u64),
    /// In general-purpose registers.
    Recoverable(FlagSource),
    /// In general-purpose registers if the block's `lazy.op` is [`SiteFlags::REPEATED`], else as for `Current`.
    RecoverableIfRepeated(FlagSource),
}

impl SiteFlags {
    /// The value of `lazy.op` that says that a loop has been repeated. Never there when the block's flags are looked at otherwise.
    pub const REPEATED: u64 = u64::MAX;
}

impl Site {
    /// What of the block is elsewhere at this site.
    #[must_use]
    pub fn entries<'a>(&self, map: &'a StateMap) -> &'a [Entry] {
        let first = self.first_entry as usize;
        map.entries.get(first..first + self.entry_count as usize).unwrap_or_default()
    }

    /// Completes the guest state in the block after a fault at this site, once its [`Site::entries`] have been written
    /// to the block. Async-signal-safe.
    pub fn restore(&self, block: &mut VcpuBlock) {
        block.cpu.rip = self.rip;
        block.budget -= i64::from(self.retired);
        match self.flags {
            SiteFlags::Current => {}
            SiteFlags::Operands(op) => block.lazy.op = op,
            SiteFlags::RecoverableIfRepeated(_) if block.lazy.op != SiteFlags::REPEATED => {}
            SiteFlags::Recoverable(source) | SiteFlags::RecoverableIfRepeated(source) => {
                [block.lazy.a, block.lazy.b] = source.operands(&block.cpu);
                block.lazy.c = block.lazy.kept;
                block.lazy.op = source.op();
            }
        }
    }
}

/// A translated region.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompiledRegion {
    /// Guest entry point.
    pub entry: u64,
    /// Mode it was translated for.
    pub mode: Mode,
    /// Host code, position-independent, with room for the link slots behind it.
    pub code: Vec<u8>,
    /// Where the [`abi::Slot`]s begin in `code`; a multiple of 64.
    pub links_offset: u32,
    /// Guest addresses that the link slots lead to, in their order.
    pub links: Vec<u64>,
    /// Fault sites, sorted by `host_offset`.
    pub sites: Vec<Site>,
    /// Where the guest state is at the sites.
    pub map: StateMap,
    /// Guest code covered, as address ranges sorted by start.
    pub ranges: Vec<std::ops::Range<u64>>,
    /// Guest instructions in it.
    pub instructions: u32,
    /// Guest basic blocks in it.
    pub blocks: u32,
    /// Instructions lowered to a call of the interpreter, by iced-x86 code, with counts. Not kept in files.
    #[serde(skip)]
    pub fallbacks: Vec<(iced_x86::Code, u32)>,
    /// Calls of host operations in its code.
    pub host_operations: u32,
    /// Helpers that its code calls, a bit for each.
    pub helpers: u64,
    /// With [`TranslatorConfig::coverage`], the address and size of each block and the number of its byte among the
    /// [`abi::PROBES`]. Not kept in files.
    #[serde(skip)]
    pub probes: Vec<Probe>,
}

/// A basic block, and which byte it sets when it is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Guest address of its first instruction.
    pub start: u64,
    /// Bytes of its instructions.
    pub size: u32,
    /// The byte's number, less than [`abi::PROBES`].
    pub number: u32,
}

impl CompiledRegion {
    /// Whether its code calls a helper.
    #[must_use]
    pub const fn calls(&self, helper: abi::Helper) -> bool {
        self.helpers >> helper as u32 & 1 != 0
    }
}

impl CompiledRegion {
    /// Whether the parts fit together, for a region that was read from a file.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let links = self
            .links
            .len()
            .checked_mul(size_of::<Slot>())
            .and_then(|size| size.checked_add(self.links_offset as usize));
        links == Some(self.code.len())
            && self.links_offset.is_multiple_of(64)
            && self.sites.iter().all(|site| site.host_offset < self.links_offset)
            && self.sites.is_sorted_by_key(|site| site.host_offset)
            && self.ranges.iter().all(|range| range.start < range.end)
    }
}
