//! `lstar diff`: one program on both engines, compared at every arrival at the service gate or every so many instructions.

mod locate;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lstar_nt::io::host::{CapturedHost, Host, StdStream};
use lstar_nt::lockstep::Lockstep;
use lstar_nt::system::{RunEnd, System};
use lstar_runtime::{Engine, MachineConfig, bisect};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::args::{Diff, NetName};
use crate::premises::Premises;
use crate::run;

/// Exit status when the engines differ.
const DIFFERENT: u8 = 1;

/// 1 January 2020, in 100 ns units since 1601: what the guest's clock starts from.
const START_TIME: i64 = 132_223_104_000_000_000;

/// What a guest has written to its standard streams.
pub type Output = Rc<RefCell<Vec<u8>>>;

/// Makes a system for an engine, with the folder it lives in and what it writes to its standard streams.
pub type Boot<'a> = dyn Fn(Engine) -> Result<(System, Option<TempDir>, Output)> + 'a;

/// The same surroundings for each run, with the output kept where it can be compared.
#[derive(Debug)]
struct SameHost {
    inner: CapturedHost,
    output: Output,
}

/// A host with which a program does the same each time, and where its output goes.
#[must_use]
pub fn same_host() -> (Box<dyn Host>, Output) {
    let output = Output::default();
    (Box::new(SameHost { inner: CapturedHost::default(), output: Rc::clone(&output) }), output)
}

impl Host for SameHost {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.inner.read(buf)
    }
    fn write(&mut self, _: StdStream, data: &[u8]) -> std::io::Result<()> {
        self.output.borrow_mut().extend_from_slice(data);
        Ok(())
    }
    fn system_time(&mut self) -> i64 {
        START_TIME
    }
    fn entropy(&mut self, buf: &mut [u8]) {
        self.inner.entropy(buf);
    }
}

/// How one of the runs ended.
struct Ended {
    output: Vec<u8>,
    end: RunEnd,
    lockstep: Lockstep,
    instructions: u64,
    config: MachineConfig,
}

/// What a comparison has shown.
pub struct Comparison {
    /// Whether nothing differs.
    pub same: bool,
    /// What differs, or what agreed.
    pub text: String,
    /// The same as JSON.
    pub json: Value,
}

/// `lstar diff`.
pub fn run(args: &Diff) -> Result<u8> {
    if args.guest.realtime {
        bail!("runs that are compared need the virtual clock; leave out --realtime");
    }
    if args.guest.net != NetName::Off {
        bail!("runs that are compared have no network; leave out --net");
    }
    let premises = Premises::enter(&args.guest, &args.program, Vec::new())?;
    let boot = |engine: Engine| {
        let machine = MachineConfig { engine, background: false, ..args.guest.machine.config() };
        let (host, output) = same_host();
        Ok((premises.boot(&args.guest, machine, host)?, None, output))
    };
    let comparison = match args.every {
        Some(every) => side_by_side(&boot, args.guest.timeout, every.get())?,
        None => compare(&boot, args.guest.timeout)?,
    };
    if args.json {
        println!("{}", comparison.json)
    } else {
        print!("{}", comparison.text)
    }
    Ok(if comparison.same { 0 } else { DIFFERENT })
}

/// Runs the program on both engines, compares at every arrival at the service gate, and finds the instruction to blame
/// for a difference. Programs that do not come to their end within `timeout` are compared as far as they came.
pub fn compare(boot: &Boot<'_>, timeout: Option<Duration>) -> Result<Comparison> {
    // Translated code first: the interpreter can end its time slices wherever that one has ended them.
    let first = execute(boot, Engine::Translator, Lockstep::record(), timeout)?;
    let (counts, slices) = (first.lockstep.counts(), first.lockstep.slices().clone());
    let second = execute(boot, Engine::Interpreter, Lockstep::compare_with(first.lockstep), timeout)?;
    if matches!(second.end, RunEnd::TimedOut | RunEnd::Interrupted) {
        bail!("the interpreter's run was stopped before its end: {:?}", second.end);
    }
    let difference = second.lockstep.difference();
    let missing = second.lockstep.missing();
    let ends = [format!("{:?}", second.end), format!("{:?}", first.end)];
    let same = difference.is_none() && missing == 0 && ends[0] == ends[1] && first.output == second.output;
    let mut text = match difference {
        Some(difference) => format!("translator and interpreter differ {difference}"),
        None if same => format!(
            "the same: {} arrivals at the service gate, {} instructions, {}\n",
            second.lockstep.agreed(),
            second.instructions,
            ends[0]
        ),
        None => format!(
            "interpreter: {}, {} bytes of output\ntranslator:  {}, {} bytes of output, {missing} more arrivals\n",
            ends[0],
            second.output.len(),
            ends[1],
            first.output.len(),
        ),
    };
    let mut json = json!({
        "same": same,
        "arrivals": second.lockstep.agreed(),
        "instructions": [second.instructions, first.instructions],
        "ends": ends,
        "difference": difference.map(ToString::to_string),
    });
    if !same {
        let agreed = second.lockstep.agreed();
        let start = agreed.checked_sub(1).and_then(|last| counts.get(last)).copied().unwrap_or(0);
        let end = first.instructions.max(second.instructions);
        let located = locate(boot, first.config, slices, agreed, |search| search.narrow(start, end))?;
        text.push_str(&located.text());
        json["first_difference"] = located.json();
    }
    Ok(Comparison { same, text, json })
}

/// Takes both engines through the program side by side, and compares them every `every` instructions: translated code
/// is left at the end of a region or of a round of a loop, and the interpreter does the rest.
pub fn side_by_side(boot: &Boot<'_>, timeout: Option<Duration>, every: u64) -> Result<Comparison> {
    let started = Instant::now();
    let (mut translated, _folder, _) = boot(Engine::Translator)?;
    let (mut interpreted, _other_folder, _) = boot(Engine::Interpreter)?;
    translated.kernel.lockstep = Some(Lockstep::watch());
    interpreted.kernel.lockstep = Some(Lockstep::replay(VecDeque::new()));
    let (mut stops, mut slices) = (0u64, VecDeque::new());
    loop {
        let start = translated.retired();
        translated.set_instruction_limit(Some(start + every));
        let end = translated.run();
        let all = translated.kernel.lockstep.as_ref().map(|lockstep| lockstep.slices().clone()).unwrap_or_default();
        if let Some(lockstep) = &mut interpreted.kernel.lockstep {
            lockstep.add_slices(all.iter().skip(slices.len()).copied());
        }
        slices = all;
        let stop = translated.retired();
        let other = locate::advance(&mut interpreted, stop);
        let running = matches!(end, RunEnd::InstructionLimit);
        // Memory is compared now and then, and in the end.
        let memory = !running || stops.is_multiple_of(64);
        let differences = bisect::differences(&interpreted.machine, &translated.machine, memory);
        let ends = [format!("{other:?}"), format!("{:?}", Some(&end).filter(|_| !running))];
        if !differences.is_empty() || ends[0] != ends[1] {
            let mut text = format!("interpreter and translator differ after {stops} equal stops:\n");
            for (what, a, b) in &differences {
                text.push_str(&format!("  {what:<12} {a} but {b}\n"));
            }
            let config = *translated.machine.config();
            drop((translated, interpreted));
            let located = locate(boot, config, slices, usize::MAX, |search| search.narrow(start, stop))?;
            text.push_str(&located.text());
            let json = json!({ "same": false, "stops": stops, "first_difference": located.json() });
            return Ok(Comparison { same: false, text, json });
        }
        stops += 1;
        if !running || timeout.is_some_and(|limit| started.elapsed() > limit) {
            let text = format!("the same at {stops} stops, {stop} instructions, {end:?}\n");
            let json = json!({ "same": true, "stops": stops, "instructions": stop, "end": format!("{end:?}") });
            return Ok(Comparison { same: true, text, json });
        }
    }
}

/// Makes the runs again to find the instruction to blame between the stops that `narrow` finds.
fn locate(
    boot: &Boot<'_>,
    config: MachineConfig,
    slices: VecDeque<u64>,
    arrival: usize,
    narrow: impl FnOnce(&locate::Search<'_>) -> Result<locate::Stretch>,
) -> Result<locate::Located> {
    let boot = |engine| boot(engine).map(|(system, folder, _)| (system, folder));
    let search = locate::Search { boot: &boot, config, slices, arrival };
    let stretch = narrow(&search)?;
    search.look_into(stretch)
}

/// Runs the program on one engine.
fn execute(boot: &Boot<'_>, engine: Engine, lockstep: Lockstep, timeout: Option<Duration>) -> Result<Ended> {
    let (mut system, _folder, output) = boot(engine)?;
    system.kernel.lockstep = Some(lockstep);
    let end = run::run_guarded(&mut system, timeout);
    if let RunEnd::Interrupted = end {
        bail!("the {engine:?} run was stopped before its end: {end:?}");
    }
    let instructions = system.machine.statistics().instructions;
    let lockstep = system.kernel.lockstep.take().unwrap_or_default();
    let config = *system.machine.config();
    Ok(Ended { output: output.take(), end, lockstep, instructions, config })
}
