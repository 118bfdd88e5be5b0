//! `lstar cache build`: translates a program's code before it runs.
//!
//! The program is loaded as in a run, so that code lies where it will lie, and stopped at its entry point, when the DLLs that it
//! names are there. From the functions that images list, translation goes on to all that these lead to.

use std::collections::HashSet;
use std::io::IsTerminal;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use lstar_nt::block_trace::BlockFilter;
use lstar_nt::memory::exports::ImageReader;
use lstar_nt::system::{RunEnd, System};
use lstar_runtime::MachineConfig;
use serde_json::json;

use crate::args::CacheBuild;
use crate::premises::Premises;
use crate::run::{conclude, host, run_guarded};
use crate::{cache, interrupt};

/// Runs the command.
pub fn run(args: &CacheBuild, as_json: bool) -> Result<u8> {
    let folder = cache::prepare().context(cache::NO_FOLDER)?;
    let program = [args.program.clone()];
    let premises = Premises::enter(&args.guest, &program, vec![folder])?;
    // The machine's own thread translates: there is nothing else to do.
    let machine = MachineConfig { background: false, ..args.guest.machine.config() };
    let mut system = premises.boot(&args.guest, machine, host(&args.guest))?;
    cache::attach(&mut system, Path::new(&args.program));
    let entry = system.kernel.mapped_images.first().context("the program has no image")?.entry;
    system.machine.set_breakpoints([entry].into());
    let end = run_guarded(&mut system, args.guest.timeout);
    if !matches!(end, RunEnd::Breakpoint(_)) {
        conclude(&system, &end, true)?;
        bail!("the program ends before its entry point");
    }
    system.machine.set_breakpoints([].into());
    let filter = BlockFilter::parse(args.modules.as_deref().unwrap_or_default());
    let (entries, ranges) = functions(&system, &filter);
    if ranges.is_empty() {
        bail!("no module of the program has a name that --modules wants");
    }
    let built = translate(&mut system, entries, &ranges)?;
    cache::save(&mut system);
    let Built { regions, instructions, left, seconds, complete } = built;
    if as_json {
        let line = json!({
            "modules": ranges.len(),
            "regions": regions,
            "instructions": instructions,
            "left_to_runs": left,
            "seconds": seconds,
            "complete": complete,
        });
        println!("{line}");
    } else {
        println!(
            "translated {} regions of {} modules, {} instructions, in {seconds:.1} s; {} regions are left to the first run{}",
            HumanCount(regions),
            ranges.len(),
            HumanCount(instructions),
            HumanCount(left),
            if complete { "" } else { "; interrupted" }
        );
    }
    Ok(0)
}

/// What was done.
struct Built {
    regions: u64,
    instructions: u64,
    /// Regions that depend on what a run will know, or are there already.
    left: u64,
    seconds: f64,
    complete: bool,
}

/// Where functions begin in the modules that are wanted, and where these modules are.
fn functions(system: &System, filter: &BlockFilter) -> (Vec<u64>, Vec<Range<u64>>) {
    let (mut entries, mut ranges) = (Vec::new(), Vec::new());
    for (start, section) in system.kernel.memory.images() {
        let name = section.file.as_ref().map_or("", |file| file.name.as_str());
        let Some(headers) = section.image().filter(|_| filter.wants_image(name)) else { continue };
        ranges.push(start..start + u64::from(headers.size));
        entries.push(start + u64::from(headers.entry_rva));
        entries.extend(ImageReader::new(section).functions().into_iter().map(|rva| start + u64::from(rva)));
    }
    (entries, ranges)
}

/// Translates all regions at `entries`, and those in `ranges` that they lead to.
fn translate(system: &mut System, entries: Vec<u64>, ranges: &[Range<u64>]) -> Result<Built> {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(entries.len() as u64), target);
    let style = ProgressStyle::with_template("translating {bar:30} {pos}/{len} regions {per_sec} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(100));
    let started = Instant::now();
    let mut built = Built { regions: 0, instructions: 0, left: 0, seconds: 0.0, complete: true };
    let mut seen: HashSet<u64> = entries.iter().copied().collect();
    let mut work = entries;
    while let Some(entry) = work.pop() {
        if interrupt::requested() {
            built.complete = false;
            break;
        }
        // Not all that is listed is code: exports of data, say.
        if let Some(ahead) = system.machine.translate_ahead(entry)? {
            let new = ahead.links.into_iter().filter(|link| ranges.iter().any(|range| range.contains(link)));
            work.extend(new.filter(|link| seen.insert(*link)));
            built.regions += u64::from(ahead.is_new);
            built.left += u64::from(!ahead.is_new);
            built.instructions += if ahead.is_new { u64::from(ahead.instructions) } else { 0 };
        }
        bar.set_length(seen.len() as u64);
        bar.inc(1);
    }
    bar.finish_and_clear();
    built.seconds = started.elapsed().as_secs_f64();
    Ok(built)
}
