//! Unmodified Windows programs through `lstar run`, on both engines.
//!
//! They need downloads, so they are ignored by default. `tests/programs/fetch.sh DIR` and `lstar setup` bring what they
//! need; `LSTAR_TEST_PROGRAMS` names DIR. `.ci/run` does all of it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Folder of the downloaded programs.
fn programs() -> PathBuf {
    std::env::var_os("LSTAR_TEST_PROGRAMS")
        .map(PathBuf::from)
        .expect("LSTAR_TEST_PROGRAMS names the folder that tests/programs/fetch.sh filled")
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/programs").join(name)
}

/// Runs a program in `directory` on an engine.
fn run(engine: &str, directory: &Path, program: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lstar"))
        .args(["run", "--engine", engine, "--timeout", "120"])
        .arg(programs().join(program))
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .expect("lstar starts")
}

/// Runs a program on both engines and compares status and output with native's.
fn check(directory: &Path, program: &str, arguments: &[&str], status: i32, stdout: &[u8]) {
    for engine in ["interpreter", "translator"] {
        let output = run(engine, directory, program, arguments);
        assert!(
            output.status.code() == Some(status) && output.stdout == stdout,
            "{program} {arguments:?} on the {engine}: {}\nstdout: {}\nstderr: {}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
    }
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn hello() {
    check(Path::new("/"), "hello.exe", &[], 0, b"hello\r\n");
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn ninja_version() {
    check(Path::new("/"), "ninja.exe", &["--version"], 0, b"1.13.2.git.kitware.jobserver-pipe-1\r\n");
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn lightningcss_minify() {
    let expected = std::fs::read(data("in.min.css")).expect("expected output");
    let directory = data("");
    check(&directory, "lightningcss.exe", &["--minify", "in.css"], 0, &expected);
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn ripgrep_counts_lines() {
    let directory = tempfile::tempdir().expect("temporary folder");
    let mut file = std::fs::File::create(directory.path().join("words.txt")).expect("input file");
    let mut matches = 0;
    for line in 0..20_000u32 {
        let hit = line.wrapping_mul(2_654_435_761) >> 29 == 3;
        matches += u32::from(hit);
        writeln!(file, "line {line} {} end", if hit { "STATUS_HIT" } else { "nothing" }).expect("write");
    }
    drop(file);
    let expected = format!("{matches}\n");
    check(directory.path(), "ripgrep.exe", &["-c", "STATUS", "words.txt"], 0, expected.as_bytes());
    check(directory.path(), "ripgrep.exe", &["-c", "ABSENT", "words.txt"], 1, b"");
}
