//! From two runs that differ to the instruction that is to blame.
//!
//! Both runs are deterministic, so that each can be made again up to any instruction count; translated code stops where
//! the region, or the round of a loop, that is running there ends. [`Search::narrow`] finds two neighbouring stops of
//! which only the first is equal on both engines; [`lstar_runtime::bisect`] takes it from there.

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
    /// The translator's run up to the first stop at or behind `limit`.
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

    /// Whether the engines differ when the translator stops at or behind `count`, and where that is.
    fn differ(&self, count: u64, interpreted: &mut System, memory: bool) -> Result<(bool, u64)> {
        let (mut translated, _folder) = self.translated(count)?;
        let stop = translated.retired();
        advance(interpreted, stop);
        Ok((!bisect::differences(&interpreted.machine, &translated.machine, memory).is_empty(), stop))
    }

    /// The two neighbouring stops of the translator between which the runs part.
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
        let different = self.differ(start, &mut interpreted, true)?.0;
        drop((interpreted, folder));
        if different {
            let (mut interpreted, _folder) = self.interpreted()?;
            memory = !self.differ(origin, &mut interpreted, true)?.0;
            if memory {
                start = origin;
            }
        }
        let mut stretch = Stretch { start, end };
        loop {
            let (mut interpreted, folder) = self.interpreted()?;
            let length = stretch.end - stretch.start;
            let points = POINTS.min(length.saturating_sub(1)).max(1);
            let mut narrowed = stretch;
            for point in 1..=points {
                // A bare step at the end of the search: the translator's next stop behind the start.
                let count = (stretch.start + length * point / (points + 1)).max(stretch.start + 1);
                if count <= narrowed.start || count >= stretch.end && narrowed.end < stretch.end {
                    continue;
                }
                let (differ, stop) = self.differ(count, &mut interpreted, memory)?;
                if differ {
                    narrowed.end = stop.min(narrowed.end);
                    if stop >= stretch.end {
                        // Nothing between here and the end can be stopped at.
                        drop((interpreted, folder));
                        return self.first_behind(narrowed.start, stop, memory);
                    }
                    break;
                }
                narrowed.start = stop;
            }
            if narrowed.start == stretch.start && narrowed.end == stretch.end || narrowed.end <= narrowed.start + 1 {
                return Ok(narrowed);
            }
            stretch = narrowed;
        }
    }

    /// Steps from one stop of the translator to the next, until they differ.
    fn first_behind(&self, start: u64, end: u64, memory: bool) -> Result<Stretch> {
        let mut start = start;
        let (mut interpreted, _folder) = self.interpreted()?;
        while start < end {
            let (differ, stop) = self.differ(start + 1, &mut interpreted, memory)?;
            if differ || stop <= start {
                return Ok(Stretch { start, end: stop.max(start + 1) });
            }
            start = stop;
        }
        Ok(Stretch { start, end })
    }

    /// Looks into a stretch instruction by instruction.
    pub fn look_into(&self, stretch: Stretch) -> Result<Located> {
        let (mut system, _folder) = self.interpreted()?;
        advance(&mut system, stretch.start);
        let finding = bisect::search(&system.machine, self.config, stretch.end.saturating_sub(stretch.start))?;
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
        let Stretch { start, end } = self.stretch;
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
