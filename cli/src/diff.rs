//! `lstar diff`: one program on both engines, compared at every arrival at the service gate.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, bail};
use lstar_nt::io::host::{CapturedHost, Host, StdStream};
use lstar_nt::lockstep::Lockstep;
use lstar_nt::system::{RunEnd, System};
use lstar_runtime::{Engine, MachineConfig};
use serde_json::json;
use tempfile::TempDir;

use crate::args::Diff;
use crate::run;

/// Exit status when the engines differ.
const DIFFERENT: u8 = 1;

/// 1 January 2020, in 100 ns units since 1601: what the guest's clock starts from.
const START_TIME: i64 = 132_223_104_000_000_000;

/// The same surroundings for each run, with the output kept where it can be compared.
#[derive(Debug)]
struct SameHost {
    inner: CapturedHost,
    output: Rc<RefCell<Vec<u8>>>,
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
    end: String,
    lockstep: Lockstep,
    instructions: u64,
}

/// `lstar diff`.
pub fn run(args: &Diff) -> Result<u8> {
    let first = execute(args, Engine::Interpreter, Lockstep::record())?;
    let second = execute(args, Engine::Translator, Lockstep::compare_with(first.lockstep))?;
    let difference = second.lockstep.difference();
    let missing = second.lockstep.missing();
    let same = difference.is_none() && missing == 0 && first.end == second.end && first.output == second.output;
    if args.json {
        let line = json!({
            "same": same,
            "arrivals": second.lockstep.agreed(),
            "instructions": [first.instructions, second.instructions],
            "ends": [first.end, second.end],
            "difference": difference.map(ToString::to_string),
        });
        println!("{line}");
    } else if let Some(difference) = difference {
        print!("interpreter and translator differ {difference}");
    } else if !same {
        println!(
            "interpreter: {}, {} bytes of output\ntranslator:  {}, {} bytes of output, {missing} arrivals earlier",
            first.end,
            first.output.len(),
            second.end,
            second.output.len(),
        );
    } else {
        println!(
            "the same: {} arrivals at the service gate, {} instructions, {}",
            second.lockstep.agreed(),
            second.instructions,
            second.end
        );
    }
    Ok(if same { 0 } else { DIFFERENT })
}

/// Runs the program on one engine.
fn execute(args: &Diff, engine: Engine, lockstep: Lockstep) -> Result<Ended> {
    let machine = MachineConfig { engine, ..args.guest.machine.config() };
    let output = Rc::new(RefCell::new(Vec::new()));
    let host = SameHost { inner: CapturedHost::default(), output: Rc::clone(&output) };
    let (mut system, _folder) = boot(args, machine, Box::new(host))?;
    system.kernel.lockstep = Some(lockstep);
    let end = run::run_guarded(&mut system, args.guest.timeout);
    if let RunEnd::TimedOut | RunEnd::Interrupted = end {
        bail!("the {engine:?} run was stopped before its end: {end:?}");
    }
    let instructions = system.machine.statistics().instructions;
    let lockstep = system.kernel.lockstep.take().unwrap_or_default();
    Ok(Ended { output: output.take(), end: format!("{end:?}"), lockstep, instructions })
}

fn boot(args: &Diff, machine: MachineConfig, host: Box<dyn Host>) -> Result<(System, Option<TempDir>)> {
    if args.guest.realtime {
        bail!("runs that are compared need the virtual clock; leave out --realtime");
    }
    if args.program.is_empty() {
        let (system, folder) = run::boot_demonstration(machine, host)?;
        return Ok((system, Some(folder)));
    }
    Ok((run::boot_on(&args.guest, &args.program, machine, host)?, None))
}
