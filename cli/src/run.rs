//! `lstar run` and the embedded demonstration: boots a system, runs it to its end, tells what happened.

use std::io::Write;
use std::path::Path;
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use indicatif::{HumanBytes, HumanCount};
use lstar_nt::io::{DeterministicHost, Host, SystemHost, terminal};
use lstar_nt::system::{self, RunEnd, System};
use lstar_runtime::{MachineConfig, Statistics};
use serde_json::json;
use tempfile::TempDir;

use crate::args::{EngineName, GuestArgs, Run};
use crate::confine::Confinement;
use crate::premises::Premises;
use crate::{cache, interrupt, perf, status};

/// `lstar run`.
pub fn run(args: &Run) -> Result<u8> {
    let cached = !args.guest.machine.no_cache && args.guest.machine.engine == EngineName::Translator;
    let keep = if cached { cache::prepare() } else { None };
    let map = args.perf.then(perf::create).transpose()?;
    let premises = Premises::enter(&args.guest, &args.program, keep.into_iter().collect())?;
    let mut system = premises.boot(&args.guest, args.guest.machine.config(), host(&args.guest))?;
    if let Some(program) = args.program.first().filter(|_| cached) {
        cache::attach(&mut system, Path::new(program));
    }
    let started = Instant::now();
    let end = run_guarded(&mut system, args.guest.timeout);
    if cached {
        cache::save(&mut system);
    }
    if let Some(mut map) = map {
        perf::write(&mut map, &system).context("cannot write the map for perf")?;
    }
    premises.save_state(&system)?;
    let status = conclude(&system, &end, args.stats);
    if args.stats {
        let statistics = system.machine.statistics();
        let text = summary(&statistics, started.elapsed(), &premises.confinement, args.json);
        let _ = write!(std::io::stderr(), "{text}");
    }
    // The process is about to end, and the host takes its memory faster in one piece than it is given back in parts.
    let System { machine, .. } = system;
    std::mem::forget(machine);
    status
}

/// The host that a command line asks for.
#[must_use]
pub fn host(args: &GuestArgs) -> Box<dyn Host> {
    if args.realtime { Box::new(SystemHost) } else { Box::new(DeterministicHost::new(args.seed)) }
}

/// The demonstration: the embedded kernel, DLLs and program.
pub fn demonstration() -> Result<u8> {
    let started = Instant::now();
    let premises = Premises::of_demonstration()?;
    let mut system = premises.boot_demonstration(MachineConfig::default(), Box::new(SystemHost))?;
    let end = run_guarded(&mut system, None);
    let elapsed = started.elapsed();
    let status = conclude(&system, &end, false)?;
    print!("\n{}", summary(&system.machine.statistics(), elapsed, &premises.confinement, false));
    Ok(status)
}

/// Boots the demonstration without confining the process; it lives in the folder, which goes with it.
pub fn boot_demonstration(machine: MachineConfig, host: Box<dyn Host>) -> Result<(System, TempDir)> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder; set TMPDIR to a writable one")?;
    let mut config = system::demonstration(folder.path(), machine, host)?;
    config.interrupt = interrupt::watch();
    Ok((System::boot(config)?, folder))
}

/// How long a guest that has been told to stop may take; one that waits for input on the host would take forever.
const GRACE: Duration = Duration::from_secs(1);

/// Runs a system to its end. Ends the process when the guest cannot be stopped because the host blocks it.
pub fn run_guarded(system: &mut System, timeout: Option<Duration>) -> RunEnd {
    let (done, ended) = mpsc::channel::<()>();
    let guard = thread::spawn(move || {
        let started = Instant::now();
        let mut interrupted: Option<Instant> = None;
        while ended.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
            if timeout.is_some_and(|limit| started.elapsed() > limit.saturating_add(GRACE)) {
                terminal::restore();
                eprintln!("{TIME_LIMIT}");
                process::exit(status::TIMED_OUT.into());
            }
            if !interrupt::requested() {
                interrupted = None;
            } else if interrupted.get_or_insert_with(Instant::now).elapsed() > GRACE {
                terminal::restore();
                process::exit(status::INTERRUPTED.into());
            }
        }
    });
    let end = system.run();
    drop(done);
    // It only waits and exits; a panic in it could not concern the guest.
    let _ = guard.join();
    end
}

/// What is said at `--timeout`.
const TIME_LIMIT: &str = "lstar: stopped: the time limit is reached (--timeout)";

/// Statuses with which ntdll's loader gives up before the program's first instruction.
const LOADER_FAILURES: [u32; 5] = [0xC000_007B, 0xC000_0135, 0xC000_0138, 0xC000_0139, 0xC000_0142];

/// Tells how a run ended, where that is not the guest's own affair, and returns the exit status. What the guest asked for
/// and lstar does not have is told when the run did not end well, or `verbose` says so.
pub fn conclude(system: &System, end: &RunEnd, verbose: bool) -> Result<u8> {
    // What a program could do without does not belong between its messages.
    let well = matches!(end, RunEnd::Exited { crash: None, status } if !LOADER_FAILURES.contains(&status.0));
    if verbose || !well {
        for note in &system.kernel.notes {
            eprintln!("lstar: {note}");
        }
    }
    match end {
        RunEnd::Exited { status: code, crash } => {
            if let Some(crash) = crash {
                eprint!("lstar: the program crashed: {crash}");
            }
            if LOADER_FAILURES.contains(&code.0) {
                bail!("the program could not start: its DLLs cannot be loaded ({code})");
            }
            Ok(status::of_guest(code.0))
        }
        RunEnd::TimedOut => {
            eprintln!("{TIME_LIMIT}");
            Ok(status::TIMED_OUT)
        }
        RunEnd::Interrupted => Ok(status::INTERRUPTED),
        RunEnd::Deadlock => bail!("the program waits for something that cannot happen: every thread is blocked"),
        RunEnd::KernelStopped { exit, crash } => {
            if let Some(crash) = crash {
                eprint!("lstar: the last exception: {crash}");
            }
            bail!("the guest kernel stopped ({exit:?}); this is a fault of lstar or of code that changed the kernel")
        }
        RunEnd::HookPanicked(message) => bail!("a hook has panicked: {message}"),
        RunEnd::InstructionLimit | RunEnd::Breakpoint(_) | RunEnd::Diverged | RunEnd::StoppedByHook => {
            bail!("stopped: {end:?}")
        }
    }
}

/// What a run has cost, as a table or as one line of JSON.
fn summary(statistics: &Statistics, elapsed: Duration, confinement: &Confinement, as_json: bool) -> String {
    let mips = statistics.instructions as f64 / elapsed.as_secs_f64().max(1e-9) / 1e6;
    if as_json {
        let line = json!({
            "seconds": elapsed.as_secs_f64(),
            "instructions": statistics.instructions,
            "interpreted": statistics.interpreted,
            "mips": mips,
            "regions": statistics.regions,
            "regions_loaded": statistics.regions_loaded,
            "blocks": statistics.blocks,
            "translated_instructions": statistics.translated_instructions,
            "host_code_bytes": statistics.host_code_bytes,
            "translation_seconds": statistics.translation_time.as_secs_f64(),
            "system_calls": statistics.syscalls,
            "privilege_switches": statistics.privilege_switches,
            "exceptions": statistics.exceptions,
            "faults": statistics.faults,
            "invalidations": statistics.invalidations,
            "evictions": statistics.evictions,
            "evicted_regions": statistics.evicted_regions,
            "exits": {
                "returns": statistics.exits.returns,
                "faults": statistics.exits.faults,
                "budget": statistics.exits.budget,
                "redispatches": statistics.exits.redispatches,
                "ends": statistics.exits.ends,
            },
            "helper_calls": statistics.helper_calls,
            "fallbacks": statistics.fallbacks,
            "confined_by": confinement.to_string(),
        });
        return format!("{line}\n");
    }
    let share = |part: u64| 100.0 * part as f64 / statistics.instructions.max(1) as f64;
    let count = |number: u64| HumanCount(number).to_string();
    let rows = [
        ("guest instructions", count(statistics.instructions)),
        (
            "  of these interpreted",
            format!("{} ({:.1} %)", count(statistics.interpreted), share(statistics.interpreted)),
        ),
        ("speed", format!("{mips:.0} MIPS over {elapsed:.2?}")),
        ("translated", format!("{} blocks in {} regions", count(statistics.blocks), count(statistics.regions))),
        ("taken from the cache", format!("{} regions", count(statistics.regions_loaded))),
        ("host code", HumanBytes(statistics.host_code_bytes).to_string()),
        ("time in translation", format!("{:.2?}", statistics.translation_time)),
        ("system calls", count(statistics.syscalls)),
        ("privilege switches", count(statistics.privilege_switches)),
        ("exceptions", count(statistics.exceptions)),
        (
            "code dropped",
            format!(
                "{} regions changed, {} for room",
                count(statistics.invalidations),
                count(statistics.evicted_regions)
            ),
        ),
        (
            "translated code left",
            format!(
                "{} by returns, {} faults, {} time slices, {} otherwise",
                count(statistics.exits.returns),
                count(statistics.exits.faults),
                count(statistics.exits.budget),
                count(statistics.exits.redispatches + statistics.exits.ends)
            ),
        ),
        (
            "helpers called",
            match statistics
                .helper_calls
                .iter()
                .map(|(name, calls)| format!("{name} {}", count(*calls)))
                .collect::<Vec<_>>()
            {
                calls if calls.is_empty() => "none".to_owned(),
                calls => calls.join(", "),
            },
        ),
        ("confined by", confinement.to_string()),
    ];
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    for (name, value) in rows {
        table.add_row([name.to_owned(), value]);
    }
    let mut text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    if !statistics.fallbacks.is_empty() {
        let names: Vec<&str> = statistics.fallbacks.keys().map(String::as_str).take(12).collect();
        let more = statistics.fallbacks.len().saturating_sub(names.len());
        let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
        text.push_str(&format!(" translated as calls of the interpreter: {}{rest}\n", names.join(", ")));
    }
    text
}
