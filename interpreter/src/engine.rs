//! The driver: finds blocks, executes their instructions, turns results into outcomes.

use std::collections::BTreeSet;
use std::sync::Arc;

use iced_x86::{FlowControl, Mnemonic};
use lstar_arch::control::{cr0, dr};
use lstar_arch::{CpuState, Exception, GuestMemory, HookedCode, Rflags};

use crate::block_cache::{BlockCache, decode_one};
use crate::decode::{After, Decoded};
use crate::dispatch::{UNIMPLEMENTED, execute};
use crate::exec::Exec;
use crate::{Counters, Outcome, RunOptions, TSC_PER_INSTRUCTION, Unimplemented, limits, watch};

/// Executes guest code instruction by instruction, from a cache of decoded blocks.
#[derive(Debug)]
pub struct Interpreter {
    cache: BlockCache,
    unimplemented: UnimplementedLog,
    counters: Counters,
    /// DR6 bits of data breakpoints that a load of SS has hit: they wait for the instruction behind it ...
    held: u64,
    /// ... and when that was a software interrupt, for its handler, whose first instruction they go before.
    pending: u64,
    /// See [`Interpreter::is_inside_block`].
    inside: bool,
}

impl Default for Interpreter {
    fn default() -> Self {
        Self::new()
    }
}

impl Interpreter {
    /// An interpreter that has seen no code yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            cache: BlockCache::new(),
            unimplemented: UnimplementedLog::default(),
            counters: Counters::default(),
            held: 0,
            pending: 0,
            inside: false,
        }
    }

    /// Executes exactly one instruction (of a long repeated string instruction: some iterations). It is decoded anew,
    /// so stale cached blocks do no harm. Counts no visit and never returns [`Outcome::Hot`], [`Outcome::Call`] or
    /// [`Outcome::Return`].
    pub fn step<M: GuestMemory>(&mut self, cpu: &mut CpuState, mem: &mut M) -> Outcome {
        match self.step_in_full(cpu, mem).0 {
            Outcome::Call | Outcome::Return if mem.code_modified() => Outcome::CodeModified,
            Outcome::Call | Outcome::Return => Outcome::Retired,
            outcome => outcome,
        }
    }

    /// Executes until `budget` instructions are used up or something happens. `budget` goes down by the number of
    /// instructions that retired; one that faults is not counted. When code has been modified since the last
    /// invalidation, returns [`Outcome::CodeModified`] at once. See [`Outcome`] and [`RunOptions`].
    ///
    /// `cpu.tsc` must be what the first instruction would read, and advances with each block.
    pub fn run<M: GuestMemory>(
        &mut self,
        cpu: &mut CpuState,
        mem: &mut M,
        budget: &mut i64,
        options: RunOptions,
    ) -> Outcome {
        if mem.code_modified() {
            return Outcome::CodeModified;
        }
        let mut slot = 0;
        // Of the block that was executed last, unless the last instruction was executed by itself.
        let (mut previous, mut partial) = (None, false);
        self.inside = false;
        while *budget > 0 {
            if needs_care(cpu) {
                if !options.one_block && self.cache.stops_at(cpu.rip) {
                    self.note_inside(previous, false);
                    return Outcome::Stop;
                }
                (previous, partial) = (None, false);
                let (outcome, retired) = self.step_in_full(cpu, mem);
                *budget -= i64::from(retired);
                cpu.tsc = cpu.tsc.wrapping_add(u64::from(retired) * TSC_PER_INSTRUCTION);
                match outcome {
                    Outcome::Retired => {}
                    Outcome::Call | Outcome::Return if !options.stop_at_calls => {
                        if mem.code_modified() {
                            return Outcome::CodeModified;
                        }
                    }
                    _ => return outcome,
                }
                if options.one_block {
                    return Outcome::Retired;
                }
                continue;
            }
            let hint = self.cache.block_mut(slot).map_or(0, |block| block.successor);
            let next = match self.cache.find(cpu, mem, hint) {
                Ok(next) => next,
                Err(exception) => return Outcome::Exception(exception),
            };
            if next != hint
                && let Some(block) = self.cache.block_mut(slot)
            {
                block.successor = next;
            }
            slot = next;
            let Some(block) = self.cache.block_mut(slot) else { continue };
            if block.visits >= options.hot_threshold {
                let outcome = if block.stops { Outcome::Stop } else { Outcome::Hot };
                if outcome != Outcome::Stop || !options.one_block {
                    self.note_inside(previous, false);
                    return outcome;
                }
            }
            block.visits = block.visits.saturating_add(1);
            // It has not run yet, and the count says that this question has been asked.
            if block.visits == options.warm_threshold && !block.stops {
                self.note_inside(previous, false);
                return Outcome::Warm;
            }
            previous = Some(slot);
            let length = block.instructions.len().min(usize::try_from(*budget).unwrap_or(usize::MAX));
            partial = length < block.instructions.len();
            let mut done = 0;
            let mut after = After::Continue;
            let (cpl, checks_segments) = (cpu.cpl, !cpu.is_64bit());
            for decoded in &block.instructions[..length] {
                if checks_segments && let Err(exception) = limits::check(cpu, decoded) {
                    *budget -= done;
                    return Outcome::Exception(exception);
                }
                cpu.rip = decoded.insn.next_ip();
                if let Err(exception) = execute(&mut Exec::new(cpu, mem, decoded)) {
                    *budget -= done;
                    return self.unimplemented.exception(cpu, decoded, exception);
                }
                done += 1;
                if decoded.after != After::Continue {
                    if mem.code_modified() && !is_event(decoded.after, options) {
                        *budget -= done;
                        self.counters.count(decoded.after, cpl, cpu.cpl);
                        self.inside = decoded.insn.flow_control() == FlowControl::Next;
                        return Outcome::CodeModified;
                    }
                    after = decoded.after;
                }
            }
            *budget -= done;
            cpu.tsc = cpu.tsc.wrapping_add(done as u64 * TSC_PER_INSTRUCTION);
            self.counters.count(after, cpl, cpu.cpl);
            if block.jumps_indirectly {
                block.note_target(cpu.rip);
            }
            match after {
                After::Continue | After::Stored | After::SystemCall => {}
                After::SystemReturn if cpu.rflags & Rflags::TF.bits() != 0 => {
                    return Outcome::Exception(Exception::db(dr::DR6_BS));
                }
                After::SystemReturn => {}
                After::Call if options.stop_at_calls => return Outcome::Call,
                After::Return if options.stop_at_calls => return Outcome::Return,
                After::Call | After::Return => {}
                After::Interrupt => return software_interrupt(block.instructions.last()),
                After::ServiceGate => return Outcome::ServiceGate,
                After::Halt => return Outcome::Halt,
            }
            if options.one_block || options.stop_at_switches && cpu.cpl != cpl {
                break;
            }
        }
        self.note_inside(previous, partial);
        Outcome::Retired
    }

    /// Takes note of where RIP is behind the block in a slot, which has executed, perhaps not to its end.
    #[cold]
    #[inline(never)]
    fn note_inside(&mut self, slot: Option<u32>, partial: bool) {
        if let Some(slot) = slot {
            self.inside = partial || self.cache.falls_through(slot);
        }
    }

    /// Whether RIP is inside a basic block, as [`lstar_arch::hooked`] has it, behind the last instruction that
    /// [`Interpreter::run`] or [`Interpreter::step`] has executed. `false` where none retired.
    #[must_use]
    pub fn is_inside_block(&self) -> bool {
        self.inside
    }

    /// Where [`Interpreter::run`] has seen the near indirect jump at `jump` go, most frequent target first: a profile for
    /// translators, neither complete nor binding.
    #[must_use]
    pub fn indirect_targets(&self, jump: u64) -> Vec<u64> {
        self.cache.indirect_targets(jump)
    }

    /// Whether [`Interpreter::run`] has executed a basic block that begins at `rip`, as far as is known, in 64-bit or in 32-bit
    /// mode, as user or not.
    #[must_use]
    pub fn has_executed(&self, rip: u64, is_64bit: bool, user: bool) -> bool {
        self.cache.was_executed(rip, is_64bit, user)
    }

    /// From now on, what was executed is still known after its decodings are dropped.
    pub fn remember_executed(&mut self) {
        self.cache.remember_executed();
    }

    /// First byte and end (linear addresses) of each basic block that [`Interpreter::run`] has entered; after
    /// [`Interpreter::remember_executed`], of all of them.
    pub fn executed(&self) -> impl Iterator<Item = (u64, u64)> {
        self.cache.executed()
    }

    /// From now on, [`Interpreter::run`] returns [`Outcome::Stop`] when RIP gets to `rip`, or does so no more.
    pub fn set_stop(&mut self, rip: u64, on: bool) {
        self.cache.set_stop(rip, on);
    }

    /// From now on, the same goes for all blocks that begin in hooked code. Decodings of code that is hooked now or was before must
    /// be dropped ([`Interpreter::invalidate`]).
    pub fn set_hooked(&mut self, hooked: Arc<HookedCode>) {
        self.cache.set_hooked(hooked);
    }

    /// Drops cached decodings that overlap the linear addresses `start..end`.
    pub fn invalidate(&mut self, start: u64, end: u64) {
        self.cache.invalidate(start, end);
    }

    /// Drops all cached decodings.
    pub fn invalidate_all(&mut self) {
        self.cache.clear();
    }

    /// The instructions met without an implementation since the last call, each address once.
    pub fn take_unimplemented(&mut self) -> Vec<Unimplemented> {
        std::mem::take(&mut self.unimplemented.met)
    }

    /// What was counted since the last call.
    pub fn take_counters(&mut self) -> Counters {
        std::mem::take(&mut self.counters)
    }

    /// One instruction with everything that can happen around it: interrupt shadow, RF, single step, breakpoints,
    /// alignment check. Also says whether it retired.
    fn step_in_full<M: GuestMemory>(&mut self, cpu: &mut CpuState, mem: &mut M) -> (Outcome, bool) {
        let rf = Rflags::RF.bits();
        self.inside = false;
        // Whatever happens, the shadow of the instruction before ends here.
        cpu.interrupt_shadow = 0;
        let held = std::mem::take(&mut self.held);
        let pending = std::mem::take(&mut self.pending);
        if pending != 0 {
            return (Outcome::Exception(Exception::db(pending)), false);
        }
        if limits::is_16bit(cpu) {
            return (self.unimplemented.segment_of_16_bits(cpu.rip), false);
        }
        if cpu.rflags & rf == 0
            && let Some(hit) = watch::instruction_breakpoint(cpu)
        {
            return (Outcome::Exception(hit), false);
        }
        let decoded = match decode_one(cpu, mem) {
            Ok(decoded) => decoded,
            Err(exception) => return (Outcome::Exception(exception), false),
        };
        if !cpu.is_64bit()
            && let Err(exception) = limits::check(cpu, &decoded)
        {
            return (Outcome::Exception(exception), false);
        }
        if let Some(exception) = watch::misaligned(cpu, mem, &decoded) {
            return (Outcome::Exception(exception), false);
        }
        let flags_before = cpu.rflags;
        let step = watch::Step::before(cpu, &decoded);
        let mut dr6 = watch::data_breakpoints(cpu, &decoded) | held;
        let start = cpu.rip;
        let cpl = cpu.cpl;
        cpu.rip = decoded.insn.next_ip();
        if let Err(exception) = execute(&mut Exec::new(cpu, mem, &decoded)) {
            if exception.software {
                self.pending = held;
            }
            return (self.unimplemented.exception(cpu, &decoded, exception), false);
        }
        self.inside = decoded.insn.flow_control() == FlowControl::Next;
        self.counters.count(decoded.after, cpl, cpu.cpl);
        let repeating = cpu.rip == start && decoded.insn.is_string_instruction();
        if flags_before & rf != 0 && !repeating && !watch::loads_rf(&decoded) {
            cpu.rflags &= !rf;
        }
        if decoded.after == After::Interrupt {
            self.pending = held;
            return (software_interrupt(Some(&decoded)), true);
        }
        if step.traps(&decoded, cpu) {
            dr6 |= dr::DR6_BS;
        }
        if watch::holds_traps_off(cpu, &decoded) {
            self.held = std::mem::take(&mut dr6);
        }
        if repeating && watch::sets_rf_between_iterations(cpu, dr6) {
            cpu.rflags |= rf;
        }
        let outcome = match decoded.after {
            // The gate belongs to the emulated kernel, which nobody steps.
            After::ServiceGate => Outcome::ServiceGate,
            _ if dr6 != 0 => Outcome::Exception(Exception::db(dr6)),
            After::Halt => Outcome::Halt,
            After::Call => Outcome::Call,
            After::Return => Outcome::Return,
            After::Stored if mem.code_modified() => Outcome::CodeModified,
            _ => Outcome::Retired,
        };
        (outcome, true)
    }
}

impl Counters {
    /// Takes note of a retired instruction that may have changed the privilege level; only the last one of a block can.
    #[inline]
    fn count(&mut self, after: After, before: u8, now: u8) {
        self.syscalls += u64::from(after == After::SystemCall);
        self.privilege_switches += u64::from(before != now);
    }
}

/// Whether the next instruction needs more than plain execution.
#[inline]
fn needs_care(cpu: &CpuState) -> bool {
    let flags = (Rflags::TF | Rflags::RF).bits();
    cpu.rflags & flags != 0
        || cpu.interrupt_shadow != 0
        || cpu.dr[7] & 0xFF != 0
        || checks_alignment(cpu)
        || limits::is_16bit(cpu)
}

/// Whether #AC is armed (SDM vol. 3, 6.15, interrupt 17).
#[inline]
pub(crate) fn checks_alignment(cpu: &CpuState) -> bool {
    cpu.rflags & Rflags::AC.bits() != 0 && cpu.cpl == 3 && cpu.cr0 & cr0::AM != 0
}

/// Whether the instruction's own outcome goes before [`Outcome::CodeModified`], which the next `run` then returns.
fn is_event(after: After, options: RunOptions) -> bool {
    match after {
        After::Interrupt | After::ServiceGate | After::Halt => true,
        After::Call | After::Return => options.stop_at_calls,
        After::Continue | After::Stored | After::SystemCall | After::SystemReturn => false,
    }
}

fn software_interrupt(decoded: Option<&Decoded>) -> Outcome {
    Outcome::SoftwareInterrupt(decoded.map_or(0, |decoded| decoded.immediate as u8))
}

/// Instructions without an implementation.
#[derive(Debug, Default)]
struct UnimplementedLog {
    met: Vec<Unimplemented>,
    seen: BTreeSet<u64>,
}

impl UnimplementedLog {
    /// The outcome of code in a 16-bit segment, which is noted once per address.
    #[cold]
    fn segment_of_16_bits(&mut self, rip: u64) -> Outcome {
        if self.seen.insert(rip) {
            self.met.push(Unimplemented { rip, text: "code in a 16-bit segment".to_owned() });
        }
        Outcome::Exception(Exception::UD)
    }

    /// The outcome of an instruction that did not retire. RIP goes back to it, except for the traps INT3, INTO and INT1.
    #[cold]
    fn exception(&mut self, cpu: &mut CpuState, decoded: &Decoded, mut exception: Exception) -> Outcome {
        let rip = decoded.insn.ip();
        if exception == UNIMPLEMENTED {
            if self.seen.insert(rip) {
                self.met.push(Unimplemented { rip, text: decoded.insn.to_string() });
            }
            exception = Exception::UD;
        }
        if !exception.software && decoded.mnemonic != Mnemonic::Int1 {
            cpu.rip = rip;
        }
        Outcome::Exception(exception)
    }
}
