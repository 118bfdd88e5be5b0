//! `lstar` and `lstar run` with the embedded images: output, exit statuses, one-line errors. Nothing is downloaded.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lstar_guest_images::{demo, ntdll};

fn lstar(arguments: &[&str], data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lstar"));
    command.args(arguments).env("XDG_DATA_HOME", data).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str], data: &Path) -> Output {
    lstar(arguments, data).output().expect("lstar starts")
}

#[test]
fn without_arguments_the_demonstration_runs() {
    let data = tempfile::tempdir().expect("folder");
    let output = output(&[], data.path());
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let (program, summary) = text.split_at(demo::expected_output().len());
    assert_eq!(program, demo::expected_output());
    for line in ["guest instructions", "MIPS", "blocks in", "time in translation", "system calls", "privilege switches"]
    {
        assert!(summary.contains(line), "{line}: {summary}");
    }
    assert_eq!(fs::read_dir(data.path()).expect("folder").count(), 0, "nothing is left behind");
}

#[test]
fn errors_are_one_line_with_status_2() {
    let data = tempfile::tempdir().expect("folder");
    let folder = data.path().join("files");
    fs::create_dir(&folder).expect("folder");
    let demo = demo::demo().expect("demo").pe;
    let mut arm = demo.clone();
    let header = u32::from_le_bytes([demo[0x3C], demo[0x3D], demo[0x3E], demo[0x3F]]) as usize;
    arm[header + 4..header + 6].copy_from_slice(&0xAA64u16.to_le_bytes());
    for (name, bytes) in
        [("demo.exe", &demo[..]), ("arm.exe", &arm), ("cut.exe", &demo[..demo.len() / 2]), ("text.exe", b"hello")]
    {
        fs::write(folder.join(name), bytes).expect("file");
    }
    let at = |name: &str| folder.join(name).display().to_string();
    let demo = at("demo.exe");
    // Until there is a system root, that is what is wrong.
    let no_root = output(&["run", &demo], data.path());
    let text = String::from_utf8_lossy(&no_root.stderr).into_owned();
    assert!(no_root.status.code() == Some(2) && text.contains("run `lstar setup` once"), "{text}");

    let system32 = data.path().join("lstar/system-root/windows/system32");
    fs::create_dir_all(&system32).expect("folder");
    let dll = ntdll::ntdll().expect("ntdll").pe;
    for name in ["ntdll", "kernel32", "kernelbase", "msvcrt", "bcryptprimitives"] {
        fs::write(system32.join(format!("{name}.dll")), &dll).expect("dll");
    }
    for (arguments, expected) in [
        (&["run", &at("arm.exe")][..], "ARM64"),
        (&["run", &at("cut.exe")], "truncated"),
        (&["run", &at("text.exe")], "a text file"),
        (&["run", &at("absent.exe")], "no such file"),
        (&["run", &folder.display().to_string()], "a folder"),
        (&["run", &demo], "imports win32u.dll"),
        (&["run", "--system-root", "/nowhere", &demo], "is not a folder"),
        (&["run", "--mount", "Q:=/nowhere", &demo], "cannot mount"),
        (&["setup", "--from", "/nowhere"], "is not a folder"),
        (&["kd", &at("text.exe")], "a text file"),
    ] {
        let output = output(arguments, data.path());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(expected) && text.lines().count() == 1, "{arguments:?}: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn bad_options_are_refused() {
    let data = tempfile::tempdir().expect("folder");
    for arguments in [
        &["run"][..],
        &["run", "--timeout", "-1", "x.exe"],
        &["run", "--mount", "nonsense", "x.exe"],
        &["run", "--engine", "steam", "x.exe"],
        &["run", "--max-memory", "lots", "x.exe"],
        &["frobnicate"],
    ] {
        assert_eq!(output(arguments, data.path()).status.code(), Some(2), "{arguments:?}");
    }
}

/// A program that never ends: the demonstration's entry point overwritten by a jump to itself.
fn endless(folder: &Path) -> String {
    let image = demo::demo().expect("demo");
    let mapped = lstar_guest_images::map_pe(&image.pe).expect("image");
    let code = mapped.read(mapped.entry_rva, 16).expect("entry");
    let at = image.pe.windows(16).position(|bytes| bytes == code).expect("entry in the file");
    let mut pe = image.pe;
    pe[at..at + 2].copy_from_slice(&[0xEB, 0xFE]);
    let system32 = folder.join("root/windows/system32");
    fs::create_dir_all(&system32).expect("folder");
    let dll = ntdll::ntdll().expect("ntdll").pe;
    for name in ["ntdll", "kernel32", "kernelbase", "msvcrt", "bcryptprimitives"] {
        fs::write(system32.join(format!("{name}.dll")), &dll).expect("dll");
    }
    fs::write(system32.join("win32u.dll"), ntdll::win32u().expect("win32u").pe).expect("dll");
    let program = folder.join("endless.exe");
    fs::write(&program, pe).expect("program");
    program.display().to_string()
}

#[test]
fn an_endless_program_is_stopped_by_the_time_limit_and_by_ctrl_c() {
    let data = tempfile::tempdir().expect("folder");
    let program = endless(data.path());
    let root = data.path().join("root").display().to_string();
    for engine in ["interpreter", "translator"] {
        let common = ["run", "--engine", engine, "--system-root", &root];
        let timed = output(&[&common[..], &["--timeout", "0.3", &program]].concat(), data.path());
        let text = String::from_utf8_lossy(&timed.stderr).into_owned();
        assert_eq!(timed.status.code(), Some(124), "{engine}: {text}");
        assert!(text.contains("the time limit is reached"), "{engine}: {text}");

        let arguments = [&common[..], &["--timeout", "60", &program]].concat();
        let mut child = lstar(&arguments, data.path()).stderr(Stdio::null()).spawn().expect("lstar starts");
        std::thread::sleep(Duration::from_millis(500));
        let started = Instant::now();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signal");
        assert_eq!(child.wait().expect("it ends").code(), Some(130), "{engine}");
        assert!(started.elapsed() < Duration::from_secs(5), "{engine}: at once");
    }
}

#[test]
fn a_run_is_confined_and_leaves_nothing_behind_when_it_is_killed() {
    let data = tempfile::tempdir().expect("folder");
    let program = endless(data.path());
    let root = data.path().join("root").display().to_string();
    let temporary = data.path().join("tmp");
    fs::create_dir(&temporary).expect("folder");
    let count = || fs::read_dir(&temporary).expect("folder").count();
    for signal in [rustix::process::Signal::KILL, rustix::process::Signal::INT] {
        let mut command = lstar(&["run", "--system-root", &root, &program], data.path());
        let mut child = command.env("TMPDIR", &temporary).stderr(Stdio::null()).spawn().expect("lstar starts");
        let status = format!("/proc/{}/status", child.id());
        let has = |line: &str| fs::read_to_string(&status).is_ok_and(|text| text.lines().any(|l| l == line));
        // The drive's own folder is made by a process that is confined already.
        wait_until(|| {
            count() == 1
                && fs::read_dir(&temporary)
                    .expect("folder")
                    .flatten()
                    .any(|entry| fs::read_dir(entry.path()).is_ok_and(|inner| inner.count() != 0))
        });
        if Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
            assert!(has("Seccomp:\t2") && has("NoNewPrivs:\t1"));
        }
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).expect("signal");
        child.wait().expect("it ends");
        wait_until(|| count() == 0);
    }
}

/// Waits for what happens soon.
fn wait_until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(30), "it does not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn only_the_folders_of_runs_are_swept() {
    let data = tempfile::tempdir().expect("folder");
    let folder = data.path().join("precious");
    fs::create_dir(&folder).expect("folder");
    assert_eq!(output(&["sweep", &folder.display().to_string()], data.path()).status.code(), Some(2));
    assert!(folder.exists());
}

#[test]
fn services_are_listed() {
    let data = tempfile::tempdir().expect("folder");
    let text = String::from_utf8(output(&["services"], data.path()).stdout).expect("text");
    assert!(text.contains("NtCreateFile"), "{text}");
    let json = output(&["services", "--json"], data.path()).stdout;
    let value: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    assert!(value["implemented"].as_u64() > Some(50), "{value}");
}

/// The demonstration on a system root of the embedded DLLs. Its ntdll loads nothing, so that the call into win32u.dll,
/// for which the program is bound in advance, reaches unmapped memory: files first, then a crash.
fn crashing(folder: &Path) -> (String, String) {
    endless(folder);
    let program = folder.join("demo.exe");
    fs::write(&program, demo::demo().expect("demo").pe).expect("program");
    (folder.join("root").display().to_string(), program.display().to_string())
}

#[test]
fn a_crash_is_told_with_its_place_registers_and_stack() {
    let data = tempfile::tempdir().expect("folder");
    let (root, program) = crashing(data.path());
    for engine in ["interpreter", "translator"] {
        let output = output(&["run", "--engine", engine, "--system-root", &root, &program], data.path());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(139), "{engine}: {text}");
        for part in ["STATUS_ACCESS_VIOLATION", "rax=", "rip=", "stack trace:", "demo.exe+0x"] {
            assert!(text.contains(part), "{engine}: {part}: {text}");
        }
    }
    assert!(!data.path().join("root/demo.txt").exists(), "C: is copy-on-write");
}

#[test]
fn executed_blocks_are_written_in_drcov_format() {
    let data = tempfile::tempdir().expect("folder");
    let (root, program) = crashing(data.path());
    let file = data.path().join("cover.drcov");
    let name = file.display().to_string();
    let output = output(&["trace", "--system-root", &root, "--coverage", &name, &program], data.path());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(139), "{errors}");
    assert!(!errors.contains("NtCreateFile("), "calls were not asked for: {errors}");
    let bytes = fs::read(&file).expect("coverage");
    let table = b"BB Table: ";
    let at = bytes.windows(table.len()).position(|window| window == table).expect("a table of blocks");
    let text = String::from_utf8(bytes[..at].to_vec()).expect("text before the blocks");
    let demo = text.lines().find(|line| line.ends_with("demo.exe")).expect("the program's line");
    let fields: Vec<&str> = demo.split(", ").map(str::trim).collect();
    let hex = |field: &str| u64::from_str_radix(field.trim_start_matches("0x"), 16).expect("a number");
    let number: u16 = fields[0].parse().expect("a number");
    let entry = (hex(fields[3]) - hex(fields[1])) as u32;
    let end = at + bytes[at..].iter().position(|&byte| byte == b'\n').expect("end of line");
    let count: usize =
        String::from_utf8_lossy(&bytes[at + table.len()..end]).trim_end_matches(" bbs").parse().expect("a count");
    let blocks = &bytes[end + 1..];
    assert_eq!(blocks.len(), 8 * count);
    let is_entry = |block: &[u8]| block[..4] == entry.to_le_bytes() && block[6..] == number.to_le_bytes();
    assert!(blocks.chunks(8).any(is_entry), "the program's entry point is covered");
}

#[test]
fn system_calls_are_traced() {
    let data = tempfile::tempdir().expect("folder");
    let (root, program) = crashing(data.path());
    let trace = |options: &[&str]| {
        let log = data.path().join("log");
        let log_name = log.display().to_string();
        let arguments = [&["trace", "--system-root", &root, "-o", &log_name], options, &[&program]].concat();
        let output = output(&arguments, data.path());
        assert_eq!(output.status.code(), Some(139), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(log).expect("log")
    };
    let text = trace(&[]);
    let create = text.lines().find(|line| line.contains("NtCreateFile(")).expect("a line for NtCreateFile");
    assert!(create.contains(r"demo.txt") && create.contains("= STATUS_SUCCESS"), "{create}");
    assert!(create.contains("demo.exe+0x"), "the caller: {create}");
    let text = trace(&["--json", "--filter", "Nt*File,!NtReadFile"]);
    let names: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["service"].to_string())
        .collect();
    assert!(
        names.contains(&"\"NtWriteFile\"".to_owned()) && !names.contains(&"\"NtReadFile\"".to_owned()),
        "{names:?}"
    );
    assert!(!names.contains(&"\"NtClose\"".to_owned()), "{names:?}");
    let functions = ["--functions", "ntdll!Nt*File,!ntdll!NtReadFile"];
    let text = trace(&functions);
    let create = text.lines().find(|line| line.contains("ntdll.dll!NtCreateFile(")).expect("a line for the function");
    assert!(create.contains("[demo.exe+0x") && !text.contains("NtReadFile("), "{text}");
    assert!(text.lines().all(|line| line.contains("ntdll.dll!")), "services were not asked for: {text}");
    let json: serde_json::Value =
        serde_json::from_str(trace(&[&functions[..], &["--json"]].concat()).lines().next().expect("a line"))
            .expect("JSON");
    assert_eq!((json["module"].as_str(), json["arguments"].as_array().map(Vec::len)), (Some("ntdll.dll"), Some(4)));
    // The demonstration's ntdll.dll lies in the system root.
    let blocks = trace(&["--blocks"]);
    assert!(blocks.lines().all(|line| line.contains("[demo.exe+0x")), "only the program's own code: {blocks}");
    let places: Vec<&str> = blocks.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    let distinct: std::collections::BTreeSet<&str> = places.iter().copied().collect();
    assert!(places.len() > 10 && distinct.len() == places.len(), "each block once: {blocks}");
    assert_eq!(trace(&["--blocks", "--engine", "interpreter"]), blocks, "the engines differ");
    let each = trace(&["--blocks=demo,ntdll", "--each-time"]);
    assert!(each.lines().count() > places.len() && each.contains("[ntdll.dll+0x"));
    assert_eq!(trace(&["--blocks=demo,ntdll", "--each-time", "--engine", "interpreter"]), each, "the engines differ");
    let json: serde_json::Value =
        serde_json::from_str(trace(&["--blocks", "--json"]).lines().next().expect("a line")).expect("JSON");
    assert_eq!(json["module"][0].as_str(), Some("demo.exe"), "{json}");
    let table = trace(&["--summary"]);
    assert!(table.lines().any(|line| line.ends_with(" NtCreateFile")), "{table}");
    let counts: serde_json::Value = serde_json::from_str(&trace(&["--summary", "--json"])).expect("JSON");
    assert_eq!(counts["NtCreateFile"]["calls"], 1, "{counts}");
}
