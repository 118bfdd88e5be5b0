//! The registry across runs (`--state`), from a system root's hives, and in the guest's files: `tests/programs/registry.c`.
//!
//! Ignored by default, as the other real programs are: it needs `lstar setup` and what `tests/programs/fetch.sh DIR` has
//! built; `LSTAR_TEST_PROGRAMS` names DIR.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn run(folder: &Path, options: &[&str], word: &str) -> (Option<i32>, String, String) {
    let programs = std::env::var_os("LSTAR_TEST_PROGRAMS").map(PathBuf::from);
    let programs = programs.expect("LSTAR_TEST_PROGRAMS names the folder that tests/programs/fetch.sh filled");
    let output = Command::new(env!("CARGO_BIN_EXE_lstar"))
        .args(["run", "--rw", "--timeout", "60"])
        .args(options)
        .arg(programs.join("registry.exe"))
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
fn changes_are_kept_where_the_user_says() {
    let folder = tempfile::tempdir().expect("folder");
    let missing = "open: error 2\n";
    let state = ["--state", "state.reg"];
    assert_eq!(run(folder.path(), &[], "set").0, Some(0));
    assert_eq!(run(folder.path(), &[], "check").1, missing);
    assert_eq!(run(folder.path(), &state, "set"), (Some(0), String::new(), String::new()));
    assert_eq!(run(folder.path(), &state, "check"), (Some(0), "kept 42\n".to_owned(), String::new()));
    assert_eq!(run(folder.path(), &[], "check").1, missing);
    let text = std::fs::read_to_string(folder.path().join("state.reg")).expect("the file");
    assert!(
        text.contains("\\Software\\Example\\Deep]\r\n") && text.contains("\"number\"=dword:0000002a\r\n"),
        "{text}"
    );

    std::fs::write(folder.path().join("state.reg"), "something").expect("file");
    let (status, _, error) = run(folder.path(), &state, "check");
    assert!(status == Some(2) && error.contains("line 1") && error.lines().count() == 1, "{error}");
    let (status, _, error) = run(folder.path(), &["--state", "nowhere/state.reg"], "check");
    assert!(status == Some(2) && error.contains("nowhere") && error.lines().count() == 1, "{error}");
}

#[test]
#[ignore = "needs downloaded programs and DLLs"]
fn keys_are_saved_and_loaded_as_hives() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("not.hiv"), [7; 5000]).expect("file");
    // ERROR_PRIVILEGE_NOT_HELD, ERROR_FILE_NOT_FOUND, ERROR_NOT_REGISTRY_FILE.
    let expected = "without the privilege: 1314\nkept 42\nwhat was not saved: 2\nkept 42\nunloaded: 2\nno hive: 1017\n";
    assert_eq!(run(folder.path(), &[], "hive"), (Some(0), expected.to_owned(), String::new()));

    // The hive as that of the guest's user, on a drive C: of its own: links to the files of the one that is there.
    let home = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")));
    let root = home.expect("HOME").join("lstar/system-root");
    let beside = tempfile::tempdir_in(root.parent().expect("a folder")).expect("folder");
    let drive = beside.path();
    std::fs::create_dir_all(drive.join("users/Default")).expect("folder");
    let copied = Command::new("cp").args(["-r", "-l"]).arg(root.join("windows")).arg(drive).status().expect("cp");
    assert!(copied.success());
    let hive = drive.join("users/Default/NTUSER.DAT");
    std::fs::copy(folder.path().join("saved.hiv"), &hive).expect("the hive");
    let drive_root = drive.to_str().expect("UTF-8");
    // Its root is that of the user: what was saved is not where the program looks, and nothing built in is.
    let (status, out, error) = run(folder.path(), &["--system-root", drive_root], "check");
    assert_eq!((status, out.as_str()), (Some(1), "open: error 2\n"), "{error}");
    let mut bytes = std::fs::read(&hive).expect("the hive");
    bytes[0x30] ^= 1;
    std::fs::write(&hive, &bytes).expect("the hive");
    let (status, _, error) = run(folder.path(), &["--system-root", drive_root], "check");
    assert_eq!(status, Some(2), "{error}");
    assert!(error.contains("NTUSER.DAT") && error.contains("checksum") && error.lines().count() == 1, "{error}");
}
