//! What a run may use: `tests/programs/limits.c` against `--max-memory`, `--max-disk`, `--max-processes` and `--timeout`.
//!
//! Ignored by default, as the other real programs are: it needs `lstar setup` and what `tests/programs/fetch.sh DIR` has
//! built; `LSTAR_TEST_PROGRAMS` names DIR.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn run(folder: &Path, options: &[&str], word: &str) -> (Option<i32>, String, String) {
    let programs = std::env::var_os("LSTAR_TEST_PROGRAMS").map(PathBuf::from);
    let programs = programs.expect("LSTAR_TEST_PROGRAMS names the folder that tests/programs/fetch.sh filled");
    let output = Command::new(env!("CARGO_BIN_EXE_lstar"))
        .args(["run", "--rw"])
        .args(options)
        .arg(programs.join("limits.exe"))
        .arg(word)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("lstar starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text").replace("\r\n", "\n");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn memory_ends_where_the_user_says() {
    let folder = tempfile::tempdir().expect("folder");
    let (status, out, error) = run(folder.path(), &["--max-memory", "300M", "--timeout", "120"], "memory");
    // ERROR_COMMITMENT_LIMIT.
    assert_eq!((status, out.as_str()), (Some(0), "memory: error 1455 after some\n"), "{error}");
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn files_end_where_the_user_says() {
    let folder = tempfile::tempdir().expect("folder");
    let (status, out, error) = run(folder.path(), &["--max-disk", "1M", "--timeout", "120"], "disk");
    // ERROR_DISK_FULL.
    let expected = "disk: error 112 after 1024 KB\ndisk: deleting gives 1\ndisk: there is room again: 1\n";
    assert_eq!((status, out.as_str()), (Some(0), expected), "{error}");
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).expect("folder").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(left, ["small"]);
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn processes_end_where_the_user_says() {
    let folder = tempfile::tempdir().expect("folder");
    let (status, out, error) = run(folder.path(), &["--max-processes", "5", "--timeout", "120"], "processes");
    assert_eq!(status, Some(0), "{out}{error}");
    // The first one counts. ERROR_NOT_ENOUGH_QUOTA.
    assert_eq!(out, "processes: error 1816 after 4\n", "{error}");
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn time_ends_where_the_user_says() {
    let folder = tempfile::tempdir().expect("folder");
    let started = Instant::now();
    // With real time a wait is one; with virtual time one for ever is a deadlock, and told.
    let (status, _, error) = run(folder.path(), &["--realtime", "--timeout", "1.5"], "memory-not");
    assert_eq!(status, Some(1), "{error}");
    let (status, out, error) = run(folder.path(), &["--timeout", "60"], "wait");
    assert_eq!((status, out.as_str()), (Some(2), ""), "{error}");
    assert!(error.contains("every thread is blocked"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(50));
}
