//! Unmodified Windows programs through `lstar run`: exit status and output must be those of native Windows (Wine 10).
//!
//! They need downloads, so they are ignored by default. `tests/programs/fetch.sh DIR` and `lstar setup` bring what they
//! need; `LSTAR_TEST_PROGRAMS` names DIR. `.ci/run` does all of it. `LSTAR_TEST_JOBS=name,name` runs some jobs only.
//!
//! The expected outputs in `tests/programs/expected` were made by native Wine 10 or compared with it. With
//! `LSTAR_BLESS=1` outputs that differ are written there, and `docs/programs.md` is made anew.

mod beside_native;
mod inputs;
mod jobs;
mod table;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use jobs::{Check, Engines, JOBS, Job};

/// Folder of the downloaded programs.
fn programs() -> PathBuf {
    std::env::var_os("LSTAR_TEST_PROGRAMS")
        .map(PathBuf::from)
        .expect("LSTAR_TEST_PROGRAMS names the folder that tests/programs/fetch.sh filled")
}

/// A path below the repository's root.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// Jobs that this run is about.
fn selected() -> impl Iterator<Item = &'static Job> {
    let wanted = std::env::var("LSTAR_TEST_JOBS").unwrap_or_default();
    let names: Vec<String> = wanted.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    JOBS.iter().filter(move |job| names.is_empty() || names.iter().any(|name| name == job.name))
}

/// `lstar COMMAND OPTIONS PROGRAM ARGUMENTS` in a job's folder.
fn lstar_command(job: &Job, directory: &Path, command: &str, options: &[&str]) -> Command {
    let input = match job.input {
        Some(name) => std::fs::File::open(directory.join(name)).expect("the job's standard input").into(),
        None => Stdio::null(),
    };
    let mut lstar = Command::new(env!("CARGO_BIN_EXE_lstar"));
    lstar.arg(command).args(["--rw", "--timeout", "900"]);
    if let Some(folder) = job.drive {
        lstar.arg("--mount").arg(format!("E:={}", programs().join(folder).display()));
    }
    lstar.args(options).arg(programs().join(job.program)).args(job.arguments).current_dir(directory).stdin(input);
    lstar
}

/// Runs that.
fn lstar(job: &Job, directory: &Path, command: &str, options: &[&str]) -> Output {
    lstar_command(job, directory, command, options).output().expect("lstar starts")
}

/// Runs a job on an engine in a folder of its own; says what differs from native.
fn run(job: &Job, engine: &str) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("temporary folder");
    (job.prepare)(directory.path());
    let output = lstar(job, directory.path(), "run", &["--engine", engine]);
    judge(job, directory.path(), &output).map_err(|what| format!("{} on the {engine}: {what}", job.name))
}

/// Says what of a run differs from native.
fn judge(job: &Job, directory: &Path, output: &Output) -> Result<(), String> {
    let verdict = if output.status.code() != Some(job.status) {
        Err(format!("{}, native: {}", output.status, job.status))
    } else {
        match job.check {
            Check::Output => compare(job.name, &output.stdout),
            Check::Error => compare(job.name, &output.stderr),
            Check::File(name) => match std::fs::read(directory.join(name)) {
                Ok(bytes) => compare(job.name, &bytes),
                Err(error) => Err(format!("{name}: {error}")),
            },
            Check::By(check) => check(directory, &output.stdout),
        }
    };
    verdict.map_err(|what| {
        let show = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(3000)]).into_owned();
        format!("{what}\nstdout: {}\nstderr: {}", show(&output.stdout), show(&output.stderr))
    })
}

/// Compares with the expected output of a job.
fn compare(name: &str, actual: &[u8]) -> Result<(), String> {
    let path = repository(&format!("tests/programs/expected/{name}.out"));
    let expected = std::fs::read(&path).unwrap_or_default();
    if expected == actual {
        return Ok(());
    }
    if is_set("LSTAR_BLESS") {
        std::fs::write(&path, actual).expect("expected output");
        return Ok(());
    }
    Err(format!("the output is not that of {}", path.display()))
}

/// How a job went on one engine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Native,
    Differs,
    NotTried,
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn programs_do_what_they_do_natively() {
    let mut failures = Vec::new();
    let mut outcomes = Vec::new();
    for job in selected() {
        let started = std::time::Instant::now();
        let mut on = |engine: &str| match run(job, engine) {
            Ok(()) => Outcome::Native,
            Err(failure) => {
                eprintln!("FAILED {failure}\n");
                failures.push(format!("{} on the {engine}", job.name));
                Outcome::Differs
            }
        };
        let translator = on("translator");
        let interpreter = match job.engines {
            Engines::Both => on("interpreter"),
            Engines::Translator => Outcome::NotTried,
        };
        eprintln!("done {} in {:.1} s", job.name, started.elapsed().as_secs_f64());
        outcomes.push((job, translator, interpreter));
    }
    if !is_set("LSTAR_TEST_JOBS") {
        let text = table::render(&outcomes);
        let path = repository("docs/programs.md");
        if is_set("LSTAR_BLESS") {
            std::fs::write(&path, &text).expect("docs/programs.md");
        }
        if std::fs::read_to_string(&path).unwrap_or_default() != text {
            failures.push("docs/programs.md is not what this run gives (LSTAR_BLESS=1 writes it)".to_owned());
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn two_runs_make_the_same_system_calls() {
    let mut failures = Vec::new();
    for job in selected() {
        let directory = tempfile::tempdir().expect("temporary folder");
        let traces = [0, 1].map(|number| {
            // The same folder twice: its name is the guest's current folder.
            let work = directory.path().join("work");
            std::fs::create_dir(&work).expect("folder");
            (job.prepare)(&work);
            let trace = directory.path().join(format!("{number}.jsonl"));
            lstar(job, &work, "trace", &["--json", "--output", trace.to_str().expect("UTF-8")]);
            std::fs::remove_dir_all(&work).expect("folder");
            std::fs::read_to_string(trace).expect("trace")
        });
        let [first, second] = &traces;
        let differing = first.lines().zip(second.lines()).position(|(a, b)| a != b);
        if first.is_empty() || first != second {
            let line = differing.unwrap_or(first.lines().count().min(second.lines().count()));
            let show = |text: &str| text.lines().nth(line).unwrap_or("the end").to_owned();
            failures.push(format!("{}, line {}:\n  {}\n  {}", job.name, line + 1, show(first), show(second)));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
