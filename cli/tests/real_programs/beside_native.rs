//! The jobs, and loads beyond them, under lstar and under native Wine side by side: wall time and memory.
//!
//! `benches/native.sh` starts this and says what it needs. Both must give the job's exit status and output; the runs take
//! turns, so that what else the machine does weighs on both. Writes `docs/native.md`.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::jobs::{JOBS, Job, LOADS};
use crate::{judge, lstar_command, programs, repository};

/// A Wine of this machine, or of a folder that is changed to as the root.
struct Wine {
    root: PathBuf,
    loader: String,
    prefix: PathBuf,
    /// A program that waits for input, so that the server and the services stay.
    idle: Option<Child>,
}

impl Wine {
    /// Takes it from the environment, and makes a new prefix whose server goes on running.
    fn from_environment(prefix: &Path) -> Self {
        let root = std::env::var_os("LSTAR_NATIVE_ROOT").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let loader = std::env::var("LSTAR_NATIVE_WINE").unwrap_or_else(|_| "wine".to_owned());
        let mut wine = Self { root, loader, prefix: prefix.to_owned(), idle: None };
        std::fs::create_dir(prefix).expect("prefix");
        let boot = wine.command(prefix, &["wineboot", "-i"]).stderr(Stdio::null()).status().expect("Wine starts");
        assert!(boot.success(), "wineboot: {boot}");
        let idle = wine.command(prefix, &["cmd", "/q"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        wine.idle = Some(idle.expect("Wine starts"));
        wine
    }

    /// What a path is called below the root.
    fn inside(&self, path: &Path) -> PathBuf {
        let below = path.strip_prefix(&self.root);
        let below = below.unwrap_or_else(|_| panic!("{} is not in {}", path.display(), self.root.display()));
        Path::new("/").join(below)
    }

    /// The loader with arguments, in a folder.
    fn command(&self, folder: &Path, arguments: &[&str]) -> Command {
        let mut command = if self.root == Path::new("/") {
            Command::new("env")
        } else {
            let mut command = Command::new("chroot");
            command.arg(&self.root);
            command
        };
        command
            .args(["sh", "-c", "cd \"$0\" && exec \"$@\""])
            .arg(self.inside(folder))
            .arg(&self.loader)
            .args(arguments)
            .env("WINEPREFIX", self.inside(&self.prefix))
            .env("WINEDEBUG", "-all")
            .env("WINEDLLOVERRIDES", "winemenubuilder.exe=d")
            .env("XDG_RUNTIME_DIR", self.inside(&self.prefix))
            .stdin(Stdio::null());
        command
    }

    /// A job in its folder, with the drives that lstar gives it.
    fn job(&self, job: &Job, directory: &Path) -> Command {
        let drive = |letter: &str, folder: &Path| {
            let link = self.prefix.join("dosdevices").join(letter);
            let _ = std::fs::remove_file(&link);
            symlink(self.inside(folder), link).expect("drive");
        };
        drive("d:", directory);
        let program = programs().join(job.program);
        drive(
            "e:",
            &job.drive.map_or_else(|| program.parent().expect("a folder").to_owned(), |name| programs().join(name)),
        );
        let program = self.inside(&program);
        let arguments: Vec<&str> =
            std::iter::once(program.to_str().expect("UTF-8")).chain(job.arguments.iter().copied()).collect();
        self.command(directory, &arguments)
    }
}

impl Drop for Wine {
    fn drop(&mut self) {
        if let Some(mut idle) = self.idle.take() {
            drop(idle.stdin.take());
            let _ = idle.wait();
        }
        let _ = self.command(&self.prefix, &["wineboot", "-k"]).stderr(Stdio::null()).status();
    }
}

/// Most memory a process has had resident, in MiB, asked for while it runs.
fn high_water(child: &Child) -> impl FnOnce() -> u64 + use<> {
    let status = format!("/proc/{}/status", child.id());
    let sampler = std::thread::spawn(move || {
        let mut most = 0;
        while let Ok(text) = std::fs::read_to_string(&status) {
            let Some(line) = text.lines().find(|line| line.starts_with("VmHWM:")) else { break };
            most = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(most);
            std::thread::sleep(Duration::from_millis(2));
        }
        most / 1024
    });
    move || sampler.join().expect("sampler")
}

/// What a run took.
struct Run {
    seconds: f64,
    memory: u64,
    output: Output,
}

/// Runs a job in a new folder, and holds it to its status and output.
fn run(job: &Job, scratch: &Path, sample: bool, command: impl FnOnce(&Path) -> Command) -> Result<Run, String> {
    let directory = tempfile::tempdir_in(scratch).expect("folder");
    (job.prepare)(directory.path());
    let mut command = command(directory.path());
    if let Some(name) = job.input {
        command.stdin(std::fs::File::open(directory.path().join(name)).expect("the job's standard input"));
    }
    let started = Instant::now();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let memory = sample.then(|| high_water(&child));
    let output = child.wait_with_output().expect("the program ends");
    let seconds = started.elapsed().as_secs_f64();
    let memory = memory.map_or(0, |memory| memory());
    judge(job, directory.path(), &output)?;
    Ok(Run { seconds, memory, output })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The rating that 7-Zip's benchmark ends with, in MIPS.
fn rating(output: &Output) -> Option<f64> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().find(|line| line.starts_with("Tot:"))?.split_whitespace().last()?.parse().ok()
}

/// Seconds of both together from which on a job is measured once.
const LONG: f64 = 10.0;

/// A row of the table, and what of it is beyond the limits.
fn compare(job: &Job, wine: &Wine, scratch: &Path, runs: usize, limit: f64) -> (String, Option<String>) {
    let measure = || -> Result<(String, Option<String>), String> {
        // The first runs warm caches of both, and are those whose memory is looked at.
        let theirs = |sample| {
            run(job, scratch, sample, |folder| wine.job(job, folder)).map_err(|error| format!("native: {error}"))
        };
        let ours = |sample| {
            // Real time: a guest that measures itself shall see how long it has taken.
            run(job, scratch, sample, |folder| lstar_command(job, folder, "run", &["--realtime"]))
                .map_err(|error| format!("lstar: {error}"))
        };
        let (native, lstar) = (theirs(true)?, ours(true)?);
        // What takes long varies less; but lstar's first run may have been spent on translation.
        let runs = if native.seconds + lstar.seconds > LONG { runs.min(1) } else { runs };
        let (mut native_times, mut lstar_times) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            native_times.push(theirs(false)?.seconds);
            lstar_times.push(ours(false)?.seconds);
        }
        if runs == 0 {
            native_times.push(native.seconds);
            lstar_times.push(lstar.seconds);
        }
        let (native_time, lstar_time) = (median(native_times), median(lstar_times));
        let ratio = lstar_time / native_time;
        let beyond = ratio > limit || lstar.memory > native.memory + 250;
        let mips = match (rating(&native.output), rating(&lstar.output)) {
            (Some(native), Some(lstar)) => format!(" {lstar:.0} of {native:.0} MIPS: {:.2}", lstar / native),
            _ => String::new(),
        };
        let row = format!(
            "| {} | {:.0} | {:.0} | {ratio:.2} | {} | {} |{mips}{} |\n",
            job.name,
            native_time * 1e3,
            lstar_time * 1e3,
            native.memory,
            lstar.memory,
            if beyond { " **beyond**" } else { "" }
        );
        Ok((row, beyond.then(|| format!("{}: {ratio:.2} times native", job.name))))
    };
    match measure() {
        Ok(measured) => measured,
        Err(error) => {
            let head: String = error.lines().next().unwrap_or_default().chars().take(100).collect();
            let row = format!("| {} | | | | | | not compared: {} |\n", job.name, head.replace('|', "\\|"));
            (row, Some(format!("{}: {error}", job.name)))
        }
    }
}

const HEAD: &str = "# Beside native Wine

The jobs of docs/programs.md under lstar and under native Wine 10 on the same machine, in turns: medians of wall time,
start-up included, and most resident memory (lstar's for the whole process tree; Wine's for its first process, without its
server). Wine has a prefix that is set up and a server that runs; lstar has translated code of earlier runs. Time should be at
most 3 times native's, 5 times for loads, memory at most native's and 250 MB. Written by `benches/native.sh`.

";
const COLUMNS: &str =
    "| job | native ms | lstar ms | ratio | native MB | lstar MB | |\n|---|---:|---:|---:|---:|---:|---|\n";

#[test]
#[ignore = "a benchmark: needs a native Wine, downloaded programs and DLLs"]
fn beside_native_wine() {
    let setting = |name: &str| std::env::var(name).unwrap_or_default();
    let runs = setting("LSTAR_NATIVE_RUNS").parse().unwrap_or(5);
    let root = setting("LSTAR_NATIVE_ROOT");
    let scratch = match root.as_str() {
        "" => tempfile::tempdir(),
        root => tempfile::tempdir_in(Path::new(root).join("tmp")),
    };
    let scratch = scratch.expect("scratch folder");
    let wine = Wine::from_environment(&scratch.path().join("prefix"));
    let wanted = setting("LSTAR_TEST_JOBS");
    let is_wanted = |job: &&Job| wanted.is_empty() || wanted.split(',').any(|name| name == job.name);

    let mut text = HEAD.to_owned();
    let mut beyond = Vec::new();
    for (title, jobs, runs, limit) in [("Jobs", JOBS, runs, 3.0), ("Loads", LOADS, 0, 5.0)] {
        let _ = write!(text, "## {title}\n\n{COLUMNS}");
        for job in jobs.iter().filter(is_wanted) {
            let (row, complaint) = compare(job, &wine, scratch.path(), runs, limit);
            eprint!("{row}");
            text += &row;
            beyond.extend(complaint);
        }
        text += "\n";
    }
    if wanted.is_empty() {
        std::fs::write(repository("docs/native.md"), text.trim_end().to_owned() + "\n").expect("docs/native.md");
    }
    drop(wine);
    assert!(beyond.is_empty(), "{beyond:#?}");
}
