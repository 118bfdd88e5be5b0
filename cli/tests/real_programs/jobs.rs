//! The jobs: programs, what they are asked to do, and what native Windows makes of it.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::inputs;

/// What of a job is compared.
#[derive(Clone, Copy)]
pub enum Check {
    /// Standard output with `expected/NAME.out`.
    Output,
    /// Standard error, where that is where the program speaks.
    Error,
    /// A file that the program writes.
    File(&'static str),
    /// Something else, given the job's folder and its output.
    By(fn(&Path, &[u8]) -> Result<(), String>),
}

/// On which engines a job is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Engines {
    /// On both.
    Both,
    /// On the translator only: it has several threads, or would take the interpreter minutes.
    Translator,
}

/// One job.
pub struct Job {
    /// Name, and that of its expected output.
    pub name: &'static str,
    /// The executable below the folder of programs.
    pub program: &'static str,
    /// Arguments.
    pub arguments: &'static [&'static str],
    /// Folder below that of programs which becomes drive E:, where the program needs more than its own folder.
    pub drive: Option<&'static str>,
    /// File in the job's folder that is its standard input.
    pub input: Option<&'static str>,
    /// Makes its input files.
    pub prepare: fn(&Path),
    /// Native's exit status.
    pub status: i32,
    /// What is compared.
    pub check: Check,
    /// Engines.
    pub engines: Engines,
}

/// A job that prints, has no input files, ends with 0 and runs on both engines.
const PLAIN: Job = Job {
    name: "",
    program: "",
    arguments: &[],
    drive: None,
    input: None,
    prepare: inputs::nothing,
    status: 0,
    check: Check::Output,
    engines: Engines::Both,
};

/// All jobs, easy ones first.
pub const JOBS: &[Job] = &[
    Job { name: "hello", program: "hello.exe", ..PLAIN },
    Job { name: "services", program: "services.exe", ..PLAIN },
    Job { name: "ninja-version", program: "ninja.exe", arguments: &["--version"], ..PLAIN },
    Job {
        name: "lightningcss-minify",
        program: "lightningcss.exe",
        arguments: &["--minify", "in.css"],
        prepare: inputs::styles,
        ..PLAIN
    },
    Job {
        name: "ripgrep-count",
        program: "ripgrep.exe",
        arguments: &["-c", "STATUS", "words.txt"],
        prepare: inputs::words,
        ..PLAIN
    },
    Job {
        name: "ripgrep-absent",
        program: "ripgrep.exe",
        arguments: &["-c", "ABSENT", "words.txt"],
        prepare: inputs::words,
        status: 1,
        ..PLAIN
    },
    Job {
        name: "ripgrep-lines",
        program: "ripgrep.exe",
        arguments: &["-j1", "-n", "STATUS_[A-Z]+", "words.txt"],
        prepare: inputs::words,
        check: Check::By(check_lines),
        ..PLAIN
    },
    Job {
        name: "7za-add",
        program: "7za.exe",
        arguments: &["a", "-mmt1", "archive.7z", "tree"],
        prepare: inputs::tree,
        check: Check::By(check_archive),
        ..PLAIN
    },
    Job {
        name: "7za-extract",
        program: "7za.exe",
        arguments: &["x", "-mmt1", "archive.7z"],
        prepare: inputs::archive,
        check: Check::By(check_tree),
        ..PLAIN
    },
    Job {
        name: "7za-benchmark",
        program: "7za.exe",
        arguments: &["b", "-mmt1", "1", "-md18"],
        check: Check::By(check_benchmark),
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "7za-benchmark-threads",
        program: "7za.exe",
        arguments: &["b", "-mmt2", "1", "-md18"],
        check: Check::By(check_benchmark),
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "clang-format",
        program: "clang-format.exe",
        arguments: &["big.c"],
        prepare: inputs::big_c_file,
        check: Check::By(check_formatted),
        ..PLAIN
    },
    Job {
        name: "zig-fmt",
        program: "zig/zig.exe",
        arguments: &["fmt", "--stdin"],
        input: Some("a.zig"),
        prepare: inputs::zig,
        ..PLAIN
    },
    Job {
        name: "zig-ast-check",
        program: "zig/zig.exe",
        arguments: &["ast-check", "a.zig"],
        prepare: inputs::zig,
        status: 1,
        check: Check::Error,
        ..PLAIN
    },
    Job { name: "processes", program: "processes.exe", ..PLAIN },
    Job { name: "ninja-build", program: "ninja.exe", prepare: inputs::build, check: Check::File("c.txt"), ..PLAIN },
    Job {
        name: "cmake-configure",
        program: "cmake/bin/cmake.exe",
        arguments: &["-G", "Ninja", "-S", ".", "-B", "build", "-DCMAKE_MAKE_PROGRAM=D:/ninja.exe"],
        drive: Some("cmake"),
        prepare: inputs::project,
        check: Check::By(configured),
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "cmake-sha256sum",
        program: "cmake/bin/cmake.exe",
        arguments: &["-E", "sha256sum", "words.txt"],
        prepare: inputs::words,
        ..PLAIN
    },
    Job {
        name: "ruff-check",
        program: "ruff.exe",
        arguments: &["check", "--no-cache", "--isolated", "--select", "ALL", "a.py"],
        prepare: inputs::python,
        status: 1,
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "esbuild-bundle",
        program: "esbuild.exe",
        arguments: &["in.js", "--bundle", "--minify", "--format=esm", "--outfile=out.js"],
        prepare: inputs::modules,
        check: Check::File("out.js"),
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "shellcheck",
        program: "shellcheck.exe",
        arguments: &["a.sh"],
        prepare: inputs::shell,
        status: 1,
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "ffmpeg-md5",
        program: "ffmpeg.exe",
        arguments: &["-f", "lavfi", "-i", "testsrc=duration=1:size=160x120:rate=10", "-f", "md5", "-"],
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "node-script",
        program: "node/node.exe",
        arguments: &["script.js"],
        prepare: inputs::script,
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "typos",
        program: "typos.exe",
        arguments: &["typos.txt"],
        prepare: inputs::typos,
        status: 2,
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "taplo-fmt",
        program: "taplo.exe",
        arguments: &["fmt", "-"],
        input: Some("a.toml"),
        prepare: inputs::toml,
        engines: Engines::Translator,
        ..PLAIN
    },
    Job { name: "just-dump", program: "just.exe", arguments: &["--dump"], prepare: inputs::justfile, ..PLAIN },
    Job {
        name: "pngquant",
        program: "pngquant.exe",
        arguments: &["16", "--output", "out.png", "a.png"],
        prepare: inputs::picture,
        check: Check::File("out.png"),
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "shfmt",
        program: "shfmt.exe",
        arguments: &["-d", "format.sh"],
        prepare: inputs::unformatted_shell,
        status: 1,
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "actionlint",
        program: "actionlint.exe",
        arguments: &["-no-color", "workflow.yml"],
        prepare: inputs::workflow,
        status: 1,
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "tsgo",
        program: "tsgo/lib/tsgo.exe",
        arguments: &["--noEmit", "--pretty", "false", "a.ts"],
        prepare: inputs::typescript,
        status: 1,
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "hadolint",
        program: "hadolint.exe",
        arguments: &["--no-color", "Dockerfile"],
        prepare: inputs::dockerfile,
        status: 1,
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "protoc",
        program: "protoc/bin/protoc.exe",
        arguments: &["--proto_path=.", "--descriptor_set_out=out.pb", "message.proto"],
        prepare: inputs::message,
        check: Check::File("out.pb"),
        ..PLAIN
    },
    Job {
        name: "cppcheck",
        program: "cppcheck/cppcheck.exe",
        arguments: &["--enable=all", "a.c"],
        prepare: inputs::c_file,
        check: Check::Error,
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "dart-sass",
        program: "dart-sass/src/dart.exe",
        arguments: &["E:\\sass.snapshot", "a.scss"],
        prepare: inputs::scss,
        engines: Engines::Translator,
        ..PLAIN
    },
    Job {
        name: "bun-run",
        program: "bun.exe",
        arguments: &["a.ts"],
        prepare: inputs::typescript,
        engines: Engines::Translator,
        ..PLAIN
    },
];

/// Loads: `tests/programs/loads.c`. Not among the jobs, since each takes many seconds.
pub const LOADS: &[Job] = &[
    Job {
        name: "load-files",
        program: "loads.exe",
        arguments: &["files", "100000"],
        check: Check::By(loaded),
        ..PLAIN
    },
    Job {
        name: "load-lock",
        program: "loads.exe",
        arguments: &["lock", "64", "4000"],
        check: Check::By(loaded),
        ..PLAIN
    },
    Job {
        name: "load-processes",
        program: "loads.exe",
        arguments: &["processes", "1000"],
        check: Check::By(loaded),
        ..PLAIN
    },
    Job { name: "load-map", program: "loads.exe", arguments: &["map", "4096"], check: Check::By(loaded), ..PLAIN },
];

/// A load tells that all of it was done, and that nothing has leaked.
fn loaded(_: &Path, output: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(output);
    if text.trim_end().ends_with(": done, nothing left") {
        Ok(())
    } else {
        Err("not done, or something leaked".to_owned())
    }
}

fn check_lines(_: &Path, output: &[u8]) -> Result<(), String> {
    let expected: String = inputs::lines()
        .enumerate()
        .filter(|(_, line)| line.contains("STATUS_"))
        .map(|(number, line)| format!("{}:{line}\n", number + 1))
        .collect();
    same(&expected, output)
}

fn check_formatted(_: &Path, output: &[u8]) -> Result<(), String> {
    same(&inputs::formatted_c_file(), output)
}

fn same(expected: &str, actual: &[u8]) -> Result<(), String> {
    let actual = String::from_utf8_lossy(actual);
    if actual == expected {
        return Ok(());
    }
    let line = actual.lines().zip(expected.lines()).position(|(a, e)| a != e);
    Err(format!("the output differs in line {}", line.map_or(0, |line| line + 1)))
}

/// The archive's report, and what a native 7-Zip makes of it.
fn check_archive(directory: &Path, output: &[u8]) -> Result<(), String> {
    crate::compare("7za-add", output)?;
    let Some(program) = native_7z() else {
        eprintln!("7za-add: no native 7z (Debian: 7zip): the archive's exchange with it is not tested");
        return Ok(());
    };
    std::fs::rename(directory.join("tree"), directory.join("original")).map_err(|error| error.to_string())?;
    native(program, directory, &["x", "-y", "archive.7z"])?;
    compare_trees(&directory.join("original"), &directory.join("tree"))
}

/// The extracted tree against the one that was packed.
fn check_tree(directory: &Path, _: &[u8]) -> Result<(), String> {
    compare_trees(&directory.join("original"), &directory.join("tree"))
}

/// The first 7-Zip that this machine has.
pub fn native_7z() -> Option<&'static str> {
    ["7zz", "7z", "7za", "7zr"].into_iter().find(|program| {
        let found = Command::new(program).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    })
}

/// Runs a native program in a folder.
pub fn native(program: &str, directory: &Path, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).current_dir(directory).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {arguments:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stdout)))
}

fn compare_trees(expected: &Path, actual: &Path) -> Result<(), String> {
    let names = inputs::files_below(expected);
    if names != inputs::files_below(actual) {
        return Err(format!("the trees hold other files: {names:?}, {:?}", inputs::files_below(actual)));
    }
    for name in names {
        let time = |root: &Path| root.join(&name).metadata().and_then(|data| data.modified()).ok();
        if time(expected) != time(actual) {
            return Err(format!("{name} has another time"));
        }
        if expected.join(&name).is_dir() {
            continue;
        }
        let read = |root: &Path| std::fs::read(root.join(&name)).map_err(|error| format!("{name}: {error}"));
        if read(expected)? != read(actual)? {
            return Err(format!("{name} differs"));
        }
    }
    Ok(())
}

/// A benchmark verifies what it has packed and unpacked; its figures are the machine's.
fn check_benchmark(_: &Path, output: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(output);
    let rows = text.lines().filter(|line| line.starts_with("18:") || line.starts_with("Avr:")).count();
    if rows == 2 && text.contains("Tot:") { Ok(()) } else { Err("no table of results".to_owned()) }
}

/// Whether cmake has told what its child printed, and written a build file.
fn configured(directory: &Path, output: &[u8]) -> Result<(), String> {
    let output = String::from_utf8_lossy(output);
    let build = std::fs::read_to_string(directory.join("build/build.ninja")).map_err(|error| error.to_string())?;
    let told = output.contains("-- the child says: hello") && output.contains("-- Generating done");
    if told && build.contains("CUSTOM_COMMAND") { Ok(()) } else { Err("not configured".to_owned()) }
}
