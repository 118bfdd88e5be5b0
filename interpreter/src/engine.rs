//! The driver: finds blocks, executes their instructions, turns results into outcomes.

use std::collections::BTreeSet;

use lstar_arch::control::{cr0, dr};
use lstar_arch::{CpuState, Exception, GuestMemory, Rflags, Vector};

use crate::block_cache::{BlockCache, decode_one};
use crate::decode::{After, Decoded};
use crate::dispatch::execute;
use crate::exec::Exec;
use crate::{Outcome, RunOptions, Unimplemented, watch};

/// Executes guest code instruction by instruction, from a cache of decoded blocks.
#[derive(Debug)]
pub struct Interpreter {
    cache: BlockCache,
    unimplemented: UnimplementedLog,
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
        Self { cache: BlockCache::new(), unimplemented: UnimplementedLog::default() }
    }

    /// Executes exactly one instruction (of a long repeated string instruction: some iterations). It is decoded anew,
    /// so stale cached blocks do no harm. Counts no visit and never returns [`Outcome::Hot`], [`Outcome::Call`] or
    /// [`Outcome::Return`].
    pub fn step<M: GuestMemory>(&mut self, cpu: &mut CpuState, mem: &mut M) -> Outcome {
        match self.step_in_full(cpu, mem) {
            Outcome::Call | Outcome::Return => Outcome::Retired,
            outcome => outcome,
        }
    }

    /// Executes until `budget` instructions are used up or something happens. `budget` goes down by the number of
    /// instructions that retired; a raised exception is not counted. See [`Outcome`] and [`RunOptions`].
    pub fn run<M: GuestMemory>(
        &mut self,
        cpu: &mut CpuState,
        mem: &mut M,
        budget: &mut i64,
        options: RunOptions,
    ) -> Outcome {
        let mut slot = 0;
        while *budget > 0 {
            if needs_care(cpu) {
                let outcome = self.step_in_full(cpu, mem);
                match outcome {
                    Outcome::Exception(exception) if exception.vector != Vector::Debug => return outcome,
                    Outcome::Exception(_) => {}
                    _ => *budget -= 1,
                }
                match outcome {
                    Outcome::Retired => continue,
                    Outcome::Call | Outcome::Return if !options.stop_at_calls => continue,
                    _ => return outcome,
                }
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
                return Outcome::Hot;
            }
            block.visits += 1;
            let length = block.instructions.len().min(usize::try_from(*budget).unwrap_or(usize::MAX));
            let mut done = 0;
            let mut after = After::Continue;
            for decoded in &block.instructions[..length] {
                cpu.rip = decoded.insn.next_ip();
                let result = execute(&mut Exec::new(cpu, mem, decoded));
                if !matches!(result, Some(Ok(()))) {
                    *budget -= done;
                    return self.unimplemented.exception(cpu, decoded, result);
                }
                done += 1;
                if decoded.after != After::Continue {
                    if mem.code_modified() && !is_event(decoded.after) {
                        *budget -= done;
                        return Outcome::CodeModified;
                    }
                    after = decoded.after;
                }
            }
            *budget -= done;
            match after {
                After::Continue | After::Stored => {}
                After::Call if options.stop_at_calls => return Outcome::Call,
                After::Return if options.stop_at_calls => return Outcome::Return,
                After::Call | After::Return => {}
                After::Interrupt => return software_interrupt(block.instructions.last()),
                After::ServiceGate => return Outcome::ServiceGate,
                After::Halt => return Outcome::Halt,
            }
        }
        Outcome::Retired
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

    /// One instruction with everything that can happen around it: interrupt shadow, RF, single step, breakpoints,
    /// alignment check.
    fn step_in_full<M: GuestMemory>(&mut self, cpu: &mut CpuState, mem: &mut M) -> Outcome {
        let rf = Rflags::RF.bits();
        if cpu.rflags & rf == 0
            && let Some(hit) = watch::instruction_breakpoint(cpu)
        {
            return Outcome::Exception(hit);
        }
        let decoded = match decode_one(cpu, mem) {
            Ok(decoded) => decoded,
            Err(exception) => return Outcome::Exception(exception),
        };
        if let Some(exception) = watch::misaligned(cpu, mem, &decoded) {
            return Outcome::Exception(exception);
        }
        let (flags_before, shadow_before) = (cpu.rflags, cpu.interrupt_shadow);
        let data_hits = watch::data_breakpoints(cpu, &decoded);
        let start = cpu.rip;
        cpu.rip = decoded.insn.next_ip();
        cpu.interrupt_shadow = 0;
        let result = execute(&mut Exec::new(cpu, mem, &decoded));
        if !matches!(result, Some(Ok(()))) {
            cpu.interrupt_shadow = shadow_before;
            return self.unimplemented.exception(cpu, &decoded, result);
        }
        let repeating = cpu.rip == start && decoded.insn.is_string_instruction();
        if flags_before & rf != 0 && !repeating && !watch::loads_rf(&decoded) {
            cpu.rflags &= !rf;
        }
        let mut dr6 = data_hits;
        if flags_before & Rflags::TF.bits() != 0 && cpu.interrupt_shadow == 0 && !watch::absorbs_trap(&decoded) {
            dr6 |= dr::DR6_BS;
        }
        if dr6 != 0 {
            return Outcome::Exception(Exception::db(dr6));
        }
        match decoded.after {
            After::Interrupt => software_interrupt(Some(&decoded)),
            After::ServiceGate => Outcome::ServiceGate,
            After::Halt => Outcome::Halt,
            _ if decoded.after != After::Continue && mem.code_modified() => Outcome::CodeModified,
            After::Call => Outcome::Call,
            After::Return => Outcome::Return,
            After::Continue | After::Stored => Outcome::Retired,
        }
    }
}

/// Whether the next instruction needs more than plain execution.
#[inline]
fn needs_care(cpu: &CpuState) -> bool {
    let flags = (Rflags::TF | Rflags::RF).bits();
    cpu.rflags & flags != 0 || cpu.interrupt_shadow != 0 || cpu.dr[7] & 0xFF != 0 || checks_alignment(cpu)
}

/// Whether #AC is armed (SDM vol. 3, 6.15, interrupt 17).
#[inline]
pub(crate) fn checks_alignment(cpu: &CpuState) -> bool {
    cpu.rflags & Rflags::AC.bits() != 0 && cpu.cpl == 3 && cpu.cr0 & cr0::AM != 0
}

/// Whether the instruction's own outcome goes before [`Outcome::CodeModified`].
fn is_event(after: After) -> bool {
    matches!(after, After::Interrupt | After::ServiceGate | After::Halt)
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
    /// The outcome of an instruction that did not retire. RIP goes back to it, except for the traps INT3 and INTO.
    #[cold]
    fn exception(&mut self, cpu: &mut CpuState, decoded: &Decoded, result: Option<crate::exec::Op>) -> Outcome {
        let rip = decoded.insn.ip();
        let exception = match result {
            Some(Err(exception)) => exception,
            _ => {
                if self.seen.insert(rip) {
                    self.met.push(Unimplemented { rip, text: decoded.insn.to_string() });
                }
                Exception::UD
            }
        };
        if !exception.software {
            cpu.rip = rip;
        }
        Outcome::Exception(exception)
    }
}
