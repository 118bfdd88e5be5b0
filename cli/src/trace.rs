//! `lstar trace`: runs a program and writes its system calls.

use std::fs::File;
use std::io::{self, BufWriter, LineWriter, Stderr, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use lstar_nt::block_trace::BlockFilter;
use lstar_nt::function_trace::FunctionFilter;
use lstar_nt::system::System;
use lstar_nt::trace::{JsonSink, Summary, TextSink, TraceFilter, TraceRecord, TraceSink, Tracer};
use lstar_runtime::MachineConfig;
use serde_json::json;

use crate::args::Trace;
use crate::coverage;
use crate::premises::Premises;
use crate::run::{conclude, host, run_guarded};

/// Runs the command.
pub fn run(args: &Trace) -> Result<u8> {
    let output = match &args.output {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Output::File(BufWriter::new(file))
        }
        None => Output::Stderr(LineWriter::new(io::stderr())),
    };
    let coverage = args.coverage.as_deref().map(coverage::create).transpose()?;
    let premises = Premises::enter(&args.guest, &args.program, Vec::new())?;
    let machine = MachineConfig { coverage: args.coverage.is_some(), ..args.guest.machine.config() };
    let mut system = premises.boot(&args.guest, machine, host(&args.guest))?;
    let summary = Arc::new(Mutex::new(Summary::default()));
    // A summary comes after the run; until then nobody writes.
    let mut waiting = None;
    let sink: Box<dyn TraceSink> = if args.summary {
        waiting = Some(output);
        Box::new(Counter(Arc::clone(&summary)))
    } else if only_coverage(args) {
        Box::new(Nobody)
    } else if args.json {
        Box::new(JsonSink::new(output))
    } else {
        Box::new(TextSink::new(output))
    };
    let wanted = if args.functions.is_some() || args.blocks.is_some() { "!*" } else { "" };
    let filter = TraceFilter::parse(args.filter.as_deref().unwrap_or(wanted));
    system.kernel.tracer = Some(Tracer::new(sink, filter));
    if let Some(functions) = &args.functions {
        system.kernel.trace_functions(system.machine.memory(), FunctionFilter::parse(functions));
    }
    if let Some(blocks) = &args.blocks {
        let System { machine, kernel, .. } = &mut system;
        kernel.trace_blocks(machine.memory(), BlockFilter::parse(blocks), args.each_time);
    }
    let end = run_guarded(&mut system, args.guest.timeout);
    // Hands over the calls that never returned, and closes the output.
    drop(system.kernel.tracer.take().map(Tracer::finish));
    if let Some(mut output) = waiting {
        let summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
        let text = if args.json { json_summary(&summary) } else { summary.to_string() };
        writeln!(output, "{text}").and_then(|()| output.flush()).context("cannot write the summary")?;
    }
    if let Some((mut file, path)) = coverage {
        let covered = coverage::write(&mut file, &mut system);
        covered.with_context(|| format!("cannot write {}", path.display()))?;
    }
    premises.save_state(&system)?;
    conclude(&system, &end, false)
}

/// Whether nobody has asked for the calls.
fn only_coverage(args: &Trace) -> bool {
    args.coverage.is_some() && !args.json && args.output.is_none() && args.filter.is_none() && args.functions.is_none()
}

/// Drops the calls.
#[derive(Debug)]
struct Nobody;

impl TraceSink for Nobody {
    fn record(&mut self, _: &TraceRecord) {}
}

/// The counts as one line.
fn json_summary(summary: &Summary) -> String {
    let services: serde_json::Map<_, _> = summary
        .services
        .iter()
        .map(|(name, counts)| {
            // Times are counted in units of 100 ns.
            let counts = json!({
                "calls": counts.calls,
                "errors": counts.errors,
                "microseconds": counts.time / 10,
            });
            (name.clone(), counts)
        })
        .collect();
    serde_json::Value::Object(services).to_string()
}

/// Where lines go.
#[derive(Debug)]
enum Output {
    Stderr(LineWriter<Stderr>),
    File(BufWriter<File>),
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stderr(out) => out.write(buf),
            Self::File(out) => out.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stderr(out) => out.flush(),
            Self::File(out) => out.flush(),
        }
    }
}

/// Counts into a summary that outlives the tracer.
#[derive(Debug)]
struct Counter(Arc<Mutex<Summary>>);

impl TraceSink for Counter {
    fn record(&mut self, record: &TraceRecord) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).record(record);
    }
}
