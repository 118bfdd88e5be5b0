//! From two runs that differ to the instruction that is to blame.
//!
//! Both runs are deterministic, and end at any instruction count: translated code leaves what does not fit to the
//! interpreter. [`Search::narrow`] finds the count at which the runs first differ, that is, where the piece of translated
//! code ends that did something wrong; [`lstar_runtime::bisect`] takes it from there.

use std::collections::VecDeque;
use std::fmt::Write as _;

use anyhow::Result;
use lstar_nt::lockstep::Lockstep;
use lstar_nt::system::{RunEnd, System};
use lstar_runtime::bisect::{self, Finding, Found};
use lstar_runtime::{Engine, MachineConfig, Registers};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A system, and the folder it lives in.
pub type Booted = (System, Option<TempDir>);

/// Makes a system that has run nothing yet.
pub type Boot<'a> = dyn Fn(Engine) -> Result<Booted> + 'a;

/// Stops that one pass of the interpreter is compared at.
const POINTS: u64 = 4;

/// A stretch of both runs: equal at its start, different at its end.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    /// Instructions retired where a search by single instructions may begin.
    pub from: u64,
    /// Instructions retired at its start.
    pub start: u64,
    /// Instructions retired at its end.
    pub end: u64,
}

/// What can be made again.
pub struct Search<'a> {
    /// Makes systems.
    pub boot: &'a Boot<'a>,
    /// How the translator's machine was set up.
    pub config: MachineConfig,
    /// Time slices of the translator's run.
    pub slices: VecDeque<u64>,
    /// The arrival at the service gate that must not be served any more.
    pub arrival: usize,
}

impl Search<'_> {
    /// The translator's run up to `limit` instructions.
    fn translated(&self, limit: u64) -> Result<Booted> {
        let (mut system, folder) = (self.boot)(Engine::Translator)?;
        system.kernel.lockstep = Some(Lockstep::watch().stop_at(self.arrival));
        system.set_instruction_limit(Some(limit));
        system.run();
        Ok((system, folder))
    }

    /// The interpreter's run, to be taken further with [`advance`].
    fn interpreted(&self) -> Result<Booted> {
        let (mut system, folder) = (self.boot)(Engine::Interpreter)?;
        system.kernel.lockstep = Some(Lockstep::replay(self.slices.clone()).stop_at(self.arrival));
        Ok((system, folder))
    }

    /// Whether the engines differ after `count` instructions.
    fn differ(&self, count: u64, interpreted: &mut System, memory: bool) -> Result<bool> {
        let (translated, _folder) = self.translated(count)?;
        advance(interpreted, count);
        Ok(!bisect::differences(&interpreted.machine, &translated.machine, memory).is_empty())
    }

    /// The instruction count at which the runs part.
    ///
    /// `start` is where they were last seen equal, `end` where they differ. A difference in memory may be older than the
    /// one in registers that gave it away; then the search begins at the program's start.
    pub fn narrow(&self, start: u64, end: u64) -> Result<Stretch> {
        let mut memory = true;
        let mut start = start;
        // Address space is short: never more machines at a time than need be.
        let (mut interpreted, folder) = self.interpreted()?;
        let origin = interpreted.retired();
        start = start.max(origin);
        let different = self.differ(start, &mut interpreted, true)?;
        drop((interpreted, folder));
        if different {
            let (mut interpreted, _folder) = self.interpreted()?;
            memory = !self.differ(origin, &mut interpreted, true)?;
            if memory {
                start = origin;
            }
        }
        let mut stretch = Stretch { from: start, start, end };
        while stretch.end > stretch.start + 1 {
            let (mut interpreted, _folder) = self.interpreted()?;
            let length = stretch.end - stretch.start;
            let points = POINTS.min(length - 1);
            let base = stretch.start;
            for point in 1..=points {
                let count = (base + length * point / (points + 1)).clamp(stretch.start + 1, stretch.end - 1);
                if self.differ(count, &mut interpreted, memory)? {
                    stretch.end = count;
                    break;
                }
                stretch.start = count;
                if stretch.start + 1 == stretch.end {
                    break;
                }
            }
        }
        Ok(stretch)
    }

    /// Looks into a stretch instruction by instruction.
    pub fn look_into(&self, stretch: Stretch) -> Result<Located> {
        let (mut system, _folder) = self.interpreted()?;
        // What does not fit into the rest of a run is left to the interpreter: where the runs first differ a piece of
        // translated code has just ended, which may have begun that far before.
        let start = stretch.from.max(stretch.end.saturating_sub(self.config.region_limit as u64));
        advance(&mut system, start);
        let finding = bisect::search(&system.machine, self.config, stretch.end.saturating_sub(start))?;
        let place = match &finding {
            Finding::Found(found) => found.path.last().map_or(0, |last| last.ip),
            Finding::NotReproduced { .. } => system.machine.vcpu().rip(),
        };
        let module = system.kernel.memory.module_at(place).map(|(base, name)| format!("{name}+{:#x}", place - base));
        Ok(Located { stretch, finding, place, module })
    }
}

/// Takes the interpreter's run on to an instruction count, or to its end.
pub fn advance(system: &mut System, count: u64) -> Option<RunEnd> {
    if system.retired() >= count {
        return None;
    }
    system.set_instruction_limit(Some(count));
    match system.run() {
        RunEnd::InstructionLimit => None,
        end => Some(end),
    }
}

/// What was found, for people and for programs.
pub struct Located {
    stretch: Stretch,
    finding: Finding,
    place: u64,
    module: Option<String>,
}

impl Located {
    /// A description, with a regression case where there is one instruction to blame.
    pub fn text(&self) -> String {
        let Stretch { start, end, .. } = self.stretch;
        let place = match &self.module {
            Some(module) => format!("{:#x} ({module})", self.place),
            None => format!("{:#x}", self.place),
        };
        let mut text = format!("equal after {start} instructions, different after {end}\n");
        match &self.finding {
            Finding::NotReproduced { tried } => {
                let _ = writeln!(
                    text,
                    "translated afresh from {place} on, these {tried} instructions do what the interpreter does: what is \
                     wrong depends on how the code was reached"
                );
            }
            Finding::Found(found) => describe(&mut text, found, &place),
        }
        text
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        let mut value = json!({
            "equal_after": self.stretch.start,
            "different_after": self.stretch.end,
            "address": format!("{:#x}", self.place),
            "module": self.module,
        });
        if let Finding::Found(found) = &self.finding {
            let rows = found.expected.differences(&found.found, found.undefined);
            let rows: Vec<Value> =
                rows.iter().map(|(what, a, b)| json!({"what": what, "expected": a, "actual": b})).collect();
            value["instruction"] = found.path.last().map(|last| last.text.clone()).into();
            value["behind"] = found.path.len().saturating_sub(1).into();
            value["differences"] = rows.into();
            value["case"] = bisect::case_text(found).into();
        }
        value
    }
}

/// Registers in rows of four.
fn describe(text: &mut String, found: &Found, place: &str) {
    let Some(last) = found.path.last() else { return };
    let _ = writeln!(text, "first differing instruction: {place}: {}", last.text);
    if found.path.len() > 1 {
        let _ = writeln!(text, "it differs only in one region with what leads to it:");
        for item in &found.path {
            let _ = writeln!(text, "  {:#018x}  {}", item.ip, item.text);
        }
    }
    let _ = writeln!(text, "registers before:");
    const NAMES: [&str; 16] =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    for (row, values) in NAMES.chunks(4).zip(found.before.gpr.chunks(4)) {
        let cells: Vec<String> =
            row.iter().zip(values).map(|(name, value)| format!("{name:>3}={value:016x}")).collect();
        let _ = writeln!(text, "  {}", cells.join(" "));
    }
    let _ = writeln!(text, "  rip={:016x} rflags={:x}", found.before.rip, found.before.rflags);
    let _ = writeln!(text, "what it gives (interpreter / translator):");
    for (what, expected, actual) in found.expected.differences(&found.found, found.undefined) {
        let _ = writeln!(text, "  {what}: {expected} / {actual}");
    }
    let _ = write!(text, "a regression case:\n{}", bisect::case_text(found));
}
