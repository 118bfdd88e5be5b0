//! `cargo run --release -p lstar_tests --bin campaign`: compares generated programs on all engines.

use std::process::ExitCode;
use std::time::Duration;

use lstar_tests::differential::campaign::{EngineKind, Report, Settings, make_engine, run};
use lstar_tests::differential::catalog;

const USAGE: &str =
    "usage: campaign [--cases N | --seconds S] [--seed X] [--engines native,interpreter,translator,faulting]
                [--only NAME,..] [--mismatches N] [--states N] [--coverage]

Compares random programs on the given engines (the first is the reference). Ends with status 1 on a mismatch.";

struct Arguments {
    settings: Settings,
    engines: Vec<EngineKind>,
    coverage: bool,
}

fn parse() -> Result<Arguments, String> {
    let mut arguments = Arguments {
        settings: Settings { cases: 10_000_000, ..Settings::default() },
        engines: Vec::new(),
        coverage: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--coverage" {
            arguments.coverage = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.replace('_', "").parse::<u64>().map_err(|_| format!("{word}: {value} is no number"));
        let settings = &mut arguments.settings;
        match word.as_str() {
            "--cases" => settings.cases = number()?,
            "--seconds" => (settings.time, settings.cases) = (Duration::from_secs(number()?), u64::MAX),
            "--seed" => settings.seed = number()?,
            "--mismatches" => settings.mismatches = number()? as usize,
            "--states" => settings.states = [number()?; 2],
            "--only" => settings.only = value.split(',').map(str::to_owned).collect(),
            "--engines" => {
                for name in value.split(',') {
                    let known = EngineKind::ALL.into_iter().find(|(known, _)| *known == name);
                    arguments.engines.push(known.ok_or_else(|| format!("no engine is called {name}"))?.1);
                }
            }
            _ => return Err(format!("unknown option {word}")),
        }
    }
    Ok(arguments)
}

fn progress(report: &Report) {
    let seconds = report.elapsed.as_secs_f64();
    eprint!(
        "\r{:.0} s: {} cases ({:.0} a second), {} programs, {} runs, {} encodings, {} mismatches ",
        seconds,
        report.cases,
        report.cases as f64 / seconds.max(0.001),
        report.programs,
        report.runs,
        report.coverage.len(),
        report.mismatches.len()
    );
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let all = EngineKind::ALL.map(|(_, kind)| kind).to_vec();
    let explicit = !arguments.engines.is_empty();
    let mut engines = Vec::new();
    for kind in if explicit { arguments.engines } else { all } {
        match make_engine(kind) {
            Ok(engine) => engines.push(engine),
            Err(problem) if explicit => {
                eprintln!("{problem}");
                return ExitCode::from(2);
            }
            Err(problem) => eprintln!("without {kind:?}: {problem}"),
        }
    }
    let report = run(&mut engines, &arguments.settings, &mut progress);
    progress(&report);
    eprintln!();
    let names: Vec<_> = engines.iter().map(|engine| engine.name()).collect();
    println!(
        "engines {}, seed {}: {} cases ({} in programs of one instruction), {} programs, {} runs, {:.1} s",
        names.join(", "),
        arguments.settings.seed,
        report.cases,
        report.single_cases,
        report.programs,
        report.runs,
        report.elapsed.as_secs_f64()
    );
    println!("region ends compared on the way: {}", report.region_ends);
    println!("runs that did not end: {}", report.endless_runs);
    println!("runs not made, because they reach the host's own memory: {}", report.unjudged_runs);
    println!("runs that ended with an exception, by vector: {:?}", report.exceptions);
    println!("encodings compared one by one: {} of {}", report.coverage.len(), catalog::encodings().len());
    if arguments.coverage {
        for (code, tally) in &report.coverage {
            println!("  {code:?}: {} runs, {} exceptions", tally.runs, tally.exceptions);
        }
        println!("not compared: {:?}", report.not_covered());
        for (code, reason) in catalog::excluded() {
            println!("excluded {code:?}: {reason}");
        }
    }
    for mismatch in &report.mismatches {
        println!("\nMISMATCH {}", mismatch.report);
    }
    println!("mismatches: {} ({} runs)", report.mismatches.len(), report.mismatching_runs);
    if report.mismatches.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
