//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lstar_arch::CpuModel;
use lstar_arch::cpuid::Features;
use lstar_nt::io::afd::NetworkAccess;
use lstar_nt::status::Status;
use lstar_runtime::{Engine, MachineConfig, SyscallDispatch};

/// Runs Windows x64 programs by translating their code; a real SYSCALL reaches a guest kernel and its service tables.
///
/// Without a command it runs the embedded demonstration.
#[derive(Debug, Parser)]
#[command(
    name = "lstar",
    version,
    after_help = "Examples:
  lstar                                  run the embedded demonstration
  lstar setup                            get the Windows DLLs that programs need, once
  lstar run ninja.exe --version          run a program
  lstar trace --summary hello.exe        show its system calls
  lstar kd -c 'uf nt!ZwCreateFile'       look into the guest kernel

Exit status: the guest's own, its low 8 bits; 2 for an error of lstar itself; 124 after --timeout; 130 after Ctrl-C.
A guest that ends by an exception gives 139 (access violation, stack overflow), 136 (arithmetic), 132 (illegal or
privileged instruction), 133 (breakpoint) or 134 (anything else)."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Get the Windows DLLs that programs need
    Setup(Setup),
    /// Run a program
    Run(Run),
    /// Run a program and show its system calls
    Trace(Trace),
    /// Run a program on both engines and compare them
    Diff(Diff),
    /// Debug with a WinDbg-like shell
    Kd(Kd),
    /// List the system services and what is implemented
    Services(Services),
    /// Look after the translated code that is kept between runs
    Cache(CacheArgs),
    /// Answer names on standard input with addresses
    #[command(hide = true)]
    Resolve,
    /// Remove the folder of a run when standard input ends
    #[command(hide = true)]
    Sweep {
        /// The folder
        folder: PathBuf,
    },
    /// Write what `--state` keeps, for a run that cannot
    #[command(hide = true)]
    Keep {
        /// The file
        file: PathBuf,
    },
}

/// `lstar setup`.
#[derive(Debug, Args)]
#[command(after_help = "Looks for an installed Wine 9 or newer; else downloads Wine 10 with apt's own tools, without \
installing it. The result goes to $XDG_DATA_HOME/lstar or ~/.local/share/lstar.

Examples:
  lstar setup
  lstar setup --from /opt/wine-stable
  lstar setup --from /mnt/c/Windows")]
pub struct Setup {
    /// A Wine installation, or a copy of C:\Windows
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
    /// Set up again, replacing what is there
    #[arg(long)]
    pub force: bool,
    /// Report as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// `lstar run`.
#[derive(Debug, Args)]
#[command(after_help = "The guest sees the system root as C: (what it writes there is forgotten), the current folder \
as D: and the program's folder as the next drive, both read-only unless --rw or --mount says otherwise, and nothing \
else of the host. Everything behind the program belongs to the guest, hyphens included.

Examples:
  lstar run ninja.exe --version
  lstar run --rw --stats lightningcss.exe --minify in.css -o out.css
  lstar run --mount D:=/data:ro --cwd /data --timeout 60 rg.exe -c TODO notes.txt
  lstar run --engine interpreter --cpu amd hello.exe
  lstar run --net host curl.exe https://example.org/
  lstar run --deny 'NtCreateFile=DISK_FULL' --seed 7 hello.exe

Two runs are the same: time is virtual, starts on 2026-01-01 and follows the instructions executed; random numbers follow \
from --seed. --realtime gives the guest the real ones. With --net the network's timing makes runs differ.

Exit status: the guest's low 8 bits; 2 for an error of lstar; 124 after --timeout; 130 after Ctrl-C; 132 to 139 when \
the guest ends by an exception (see lstar --help).")]
pub struct Run {
    /// Print what the run has cost to standard error
    #[arg(long)]
    pub stats: bool,
    /// Print it as one line of JSON
    #[arg(long, requires = "stats")]
    pub json: bool,
    /// Tell perf(1) whose the translated code is, for `perf record lstar run --perf PROGRAM.exe` (with TMPDIR unset)
    #[arg(long)]
    pub perf: bool,
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// The program and its arguments; everything behind the program is the guest's
    #[arg(value_name = "PROGRAM.exe [ARGS]...", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub program: Vec<OsString>,
}

/// `lstar trace`.
#[derive(Debug, Args)]
#[command(after_help = "Lines go to standard error: thread, time, service, decoded arguments, result, caller. Exit \
status as for `lstar run`.

Examples:
  lstar trace hello.exe
  lstar trace --filter 'Nt*File,!NtReadFile' -o calls.txt rg.exe -c TODO notes.txt
  lstar trace --json -o calls.jsonl ninja.exe --version
  lstar trace --summary hello.exe
  lstar trace --functions 'kernel32!Create*,ntdll!Ldr*' hello.exe
  lstar trace --blocks packed.exe
  lstar trace --blocks='packed,dynamic' --each-time --json -o blocks.jsonl packed.exe
  lstar trace --coverage hello.drcov hello.exe")]
pub struct Trace {
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Only services of these names; * and ? match, ! in front takes out
    #[arg(long, value_name = "NAME,..")]
    pub filter: Option<String>,
    /// Calls of exported functions of these names, with the first four arguments, as MODULE!NAME or NAME; * and ? match, !
    /// in front takes out; without --filter, system calls are not written
    #[arg(long, value_name = "NAME,..", conflicts_with = "summary")]
    pub functions: Option<String>,
    /// Basic blocks, each when it executes for the first time, of modules of these names (* and ? match, ! in front takes out)
    /// and of code outside of modules (`dynamic`); without names, of everything but the system's own DLLs; without --filter,
    /// system calls are not written
    #[arg(
        long,
        value_name = "NAME,..",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        conflicts_with_all = ["summary", "coverage"]
    )]
    pub blocks: Option<String>,
    /// With --blocks: each execution, not the first one only
    #[arg(long, requires = "blocks")]
    pub each_time: bool,
    /// Only a table of counts, errors and times in the end
    #[arg(long)]
    pub summary: bool,
    /// Write to a file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write the basic blocks that were executed to a file, in drcov's format; without another option, calls are not written
    #[arg(long, value_name = "FILE")]
    pub coverage: Option<PathBuf>,
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// The program and its arguments; everything behind the program is the guest's
    #[arg(value_name = "PROGRAM.exe [ARGS]...", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub program: Vec<OsString>,
}

/// `lstar diff`.
#[derive(Debug, Args)]
#[command(
    after_help = "The program runs on the translator, then on the interpreter, with the same virtual clock, input, \
entropy and thread switches; all registers are compared at every arrival at the service gate, and the output in the end. \
Where they differ, both runs are made again to find the first instruction that translated code gets wrong, and a \
regression case for it is printed. Exit status: 0 if nothing differs, 1 if something does.

Examples:
  lstar diff
  lstar diff hello.exe
  lstar diff --every 10000 hello.exe
  lstar diff --json ninja.exe --version"
)]
pub struct Diff {
    /// Compare every N instructions, too, wherever the program is then (some thousand let translated code run)
    #[arg(long, value_name = "N")]
    pub every: Option<std::num::NonZeroU64>,
    /// One line of JSON
    #[arg(long)]
    pub json: bool,
    /// The guest; the engine is given
    #[command(flatten)]
    pub guest: GuestArgs,
    /// The program and its arguments [default: the embedded demonstration]
    #[arg(value_name = "PROGRAM.exe [ARGS]...", trailing_var_arg = true, allow_hyphen_values = true)]
    pub program: Vec<OsString>,
}

/// `lstar services`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lstar services
  lstar services --missing
  lstar services --json --system-root /mnt/windows-copy")]
pub struct Services {
    /// Folder whose "windows" folder holds the DLLs [default: what `lstar setup` made]
    #[arg(long, value_name = "DIR")]
    pub system_root: Option<PathBuf>,
    /// Only those that are not implemented
    #[arg(long)]
    pub missing: bool,
    /// One line of JSON
    #[arg(long)]
    pub json: bool,
}

/// `lstar cache`.
#[derive(Debug, Args)]
#[command(
    after_help = "Translated code is kept in $XDG_CACHE_HOME/lstar or ~/.cache/lstar, so that the next run of a \
program starts faster. It is checked against the program's code, and only used by the build of lstar that made it.

Examples:
  lstar cache stat
  lstar cache stat --json
  lstar cache clear
  lstar cache build clang-format.exe
  lstar run --no-cache hello.exe"
)]
pub struct CacheArgs {
    /// What to do
    #[command(subcommand)]
    pub action: CacheAction,
    /// One line of JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// What `lstar cache` can do.
#[derive(Debug, Subcommand)]
pub enum CacheAction {
    /// Say where it is and how large
    Stat,
    /// Remove all of it
    Clear,
    /// Translate a program before it runs, so that its first run is as fast as later ones
    Build(Box<CacheBuild>),
}

/// `lstar cache build`.
#[derive(Debug, Args)]
#[command(
    after_help = "The program is loaded, with the DLLs that it names, and does not run: only the DLLs' own start-up code does. \
Translated are exported functions, those that the exception directory lists, and what they lead to. Functions with jump \
tables are left to the first run, which knows where these lead. Give the options that shape code, as --cpu, as for the run.

Examples:
  lstar cache build clang-format.exe
  lstar cache build --modules '*' hello.exe
  lstar cache build --modules 'tool,helper*' tool.exe"
)]
pub struct CacheBuild {
    /// Modules whose code is translated; * and ? match, ! in front takes out [default: all but the system's own DLLs]
    #[arg(long, value_name = "NAME,..")]
    pub modules: Option<String>,
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// The program
    #[arg(value_name = "PROGRAM.exe", required = true)]
    pub program: OsString,
}

/// `lstar kd`.
#[derive(Debug, Args)]
#[command(
    after_help = "The target is booted and stops before the first instruction of its first thread. Commands come \
from the terminal, from -c, from -f, or from standard input.

Examples:
  lstar kd
  lstar kd -c 'rdmsr c0000082; u nt!KiSystemCall64'
  lstar kd -c 'bp ntdll!NtWriteFile; g; k' hello.exe
  lstar kd -f session.txt
  echo '!ssdt' | lstar kd"
)]
pub struct Kd {
    /// Commands to execute, separated by semicolons
    #[arg(short, long, value_name = "COMMANDS", conflicts_with = "file")]
    pub commands: Option<String>,
    /// File of commands
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// The program and its arguments [default: the embedded demonstration]
    #[arg(value_name = "PROGRAM.exe [ARGS]...", trailing_var_arg = true, allow_hyphen_values = true)]
    pub program: Vec<OsString>,
}

/// Options about the machine.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// What executes guest code
    #[arg(long, value_enum, default_value_t = EngineName::Translator)]
    pub engine: EngineName,
    /// The processor the guest sees: baseline, v2, v3, intel, amd or host; then +FEATURE, -FEATURE, or a vendor
    #[arg(long, value_name = "MODEL[,+FEATURE|,-FEATURE]..", default_value = "v2", value_parser = parse_cpu)]
    #[arg(allow_hyphen_values = true)]
    pub cpu: CpuModel,
    /// How SYSCALL reaches a service
    #[arg(long, value_enum, default_value_t = DispatchName::Direct)]
    pub dispatch: DispatchName,
    /// Most memory the guest can commit
    #[arg(long, value_name = "SIZE", default_value = "16G", value_parser = parse_size)]
    pub max_memory: u64,
    /// Neither use nor keep translated code of other runs
    #[arg(long)]
    pub no_cache: bool,
    /// Most memory for translated code; when it is full, code that has changed goes, and of the rest the older
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub code_cache_size: u64,
}

impl MachineArgs {
    /// The machine's settings.
    #[must_use]
    pub fn config(&self) -> MachineConfig {
        MachineConfig {
            engine: match self.engine {
                EngineName::Interpreter => Engine::Interpreter,
                EngineName::Translator => Engine::Translator,
            },
            dispatch: match self.dispatch {
                DispatchName::Direct => SyscallDispatch::Direct,
                DispatchName::Architectural => SyscallDispatch::Architectural,
            },
            model: self.cpu,
            memory_limit: self.max_memory,
            // Smaller ones could not hold the largest regions.
            code_cache_size: self.code_cache_size.clamp(4 << 20, 1 << 30) as usize,
            background: true,
            ..MachineConfig::default()
        }
    }
}

/// `--engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// One instruction at a time
    Interpreter,
    /// Hot code translated, the rest interpreted
    Translator,
}

/// `--net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NetName {
    /// Nothing
    Off,
    /// 127.0.0.0/8 and ::1 of the host
    Loopback,
    /// What the host reaches, with its names
    Host,
}

impl NetName {
    /// The system's setting.
    #[must_use]
    pub fn access(self) -> NetworkAccess {
        match self {
            Self::Off => NetworkAccess::Off,
            Self::Loopback => NetworkAccess::Loopback,
            Self::Host => NetworkAccess::Host,
        }
    }
}

/// `--cpu`.
pub fn parse_cpu(text: &str) -> Result<CpuModel, String> {
    CpuModel::parse(text, host_model()).map_err(|unknown| {
        let names: Vec<&str> = Features::LIST.iter().map(|(_, name, _)| *name).collect();
        format!("{unknown}; the features are {}", names.join(", "))
    })
}

/// The processor that lstar runs on, if it is an x86-64.
fn host_model() -> Option<CpuModel> {
    #[cfg(target_arch = "x86_64")]
    {
        Some(CpuModel::from_cpuid(|leaf, subleaf| {
            let result = std::arch::x86_64::__cpuid_count(leaf, subleaf);
            [result.eax, result.ebx, result.ecx, result.edx]
        }))
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        None
    }
}

/// `--dispatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DispatchName {
    /// By the SYSCALL helper, while the guest kernel's entry code is unmodified
    Direct,
    /// Always through the guest kernel's entry code
    Architectural,
}

/// A size in bytes, with an optional K, M, G or T.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is not a size; write a number with K, M, G or T, such as 512M");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).filter(|size| *size != 0).ok_or_else(bad)
}

/// A time in seconds, fractions allowed.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok().filter(|seconds| *seconds > 0.0);
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("'{text}' is not a number of seconds greater than 0"))
}

/// How a host folder appears in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountMode {
    /// Writing is refused.
    ReadOnly,
    /// Writing changes the folder.
    ReadWrite,
    /// Writing changes what the guest sees, not the folder.
    CopyOnWrite,
}

/// A host folder as a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Drive letter, upper case.
    pub drive: char,
    /// The folder.
    pub folder: PathBuf,
    /// How.
    pub mode: MountMode,
}

/// `C:=DIR`, optionally with `:ro`, `:rw` or `:cow` behind it.
pub fn parse_mount(text: &str) -> Result<Mount, String> {
    let bad = || format!("'{text}' is not a mount; write DRIVE:=DIR[:ro|:rw|:cow], such as D:=/data:rw");
    let (drive, rest) = text.split_once(":=").or_else(|| text.split_once('=')).ok_or_else(bad)?;
    let mut letters = drive.chars();
    let (Some(letter), None) = (letters.next(), letters.next()) else { return Err(bad()) };
    let drive = letter.to_ascii_uppercase();
    let (folder, mode) = match rest.rsplit_once(':') {
        Some((folder, "ro")) => (folder, MountMode::ReadOnly),
        Some((folder, "rw")) => (folder, MountMode::ReadWrite),
        Some((folder, "cow")) => (folder, MountMode::CopyOnWrite),
        _ => (rest, MountMode::ReadOnly),
    };
    if !drive.is_ascii_uppercase() || folder.is_empty() {
        return Err(bad());
    }
    Ok(Mount { drive, folder: folder.into(), mode })
}

/// `NAME=VALUE`.
pub fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err(format!("'{text}' is not a variable; write NAME=VALUE")),
    }
}

/// `SERVICE`, optionally with `=STATUS` behind it: a name or a number.
pub fn parse_denial(text: &str) -> Result<(String, Status), String> {
    let (service, status) = text.split_once('=').unwrap_or((text, "ACCESS_DENIED"));
    let number = match status.strip_prefix("0x").or_else(|| status.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok().map(Status),
        None => Status::by_name(status),
    };
    match number {
        Some(status) if !service.is_empty() => Ok((service.into(), status)),
        _ => Err(format!("'{text}' is not a denial; write SERVICE or SERVICE=STATUS, such as NtReadFile=DISK_FULL")),
    }
}

/// Options about the guest's surroundings.
#[derive(Debug, Args)]
pub struct GuestArgs {
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Folder whose "windows" folder holds the DLLs [default: what `lstar setup` made]
    #[arg(long, value_name = "DIR")]
    pub system_root: Option<PathBuf>,
    /// Host folder as a drive; read-only unless it says :rw or :cow (changes seen by the guest only)
    #[arg(long, value_name = "C:=DIR[:ro|:rw|:cow]", value_parser = parse_mount)]
    pub mount: Vec<Mount>,
    /// Let the guest write to the current folder
    #[arg(long)]
    pub rw: bool,
    /// The guest's current folder [default: the host's]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Environment variable of the guest
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub env: Vec<(String, String)>,
    /// What sockets reach; with a network two runs are not the same
    #[arg(long, value_enum, value_name = "off|loopback|host", default_value_t = NetName::Off, hide_possible_values = true)]
    pub net: NetName,
    /// Let services fail: a name (* and ? match), optionally the status they answer with
    #[arg(long, value_name = "SERVICE[=STATUS]", value_parser = parse_denial)]
    pub deny: Vec<(String, Status)>,
    /// Most bytes that the guest's files may grow by
    #[arg(long, value_name = "SIZE", default_value = "16G", value_parser = parse_size)]
    pub max_disk: u64,
    /// File that keeps what runs change in the registry (as .reg text); without it that is forgotten
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Most processes that may run at a time
    #[arg(long, value_name = "NUMBER", default_value_t = lstar_nt::system::DEFAULT_MAX_PROCESSES)]
    pub max_processes: usize,
    /// What the guest's random numbers follow from
    #[arg(long, value_name = "NUMBER", default_value_t = 0, conflicts_with = "realtime")]
    pub seed: u64,
    /// Real time and real random numbers, instead of those that make every run the same
    #[arg(long)]
    pub realtime: bool,
    /// Stop the guest after that time, with exit status 124
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("4GiB"), Ok(4 << 30));
        assert_eq!(parse_size("65536"), Ok(65536));
        for bad in ["", "0", "G", "-1M", "5X", "99999999T", "1.5G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn processors() {
        assert_eq!(parse_cpu("v2"), Ok(CpuModel::V2));
        assert_eq!(parse_cpu("AMD"), Ok(CpuModel::AMD));
        let changed = parse_cpu("v2,amd,+avx2,-sha").expect("a model");
        assert!(changed.features.contains(Features::AVX | Features::AVX2) && !changed.features.contains(Features::SHA));
        assert_eq!(changed.vendor, lstar_arch::Vendor::Amd);
        for bad in ["", "v9", "v2,v3", "v2,avx", "v2,+", "+nothing", "v2,"] {
            assert!(parse_cpu(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_cpu("host").is_ok(), cfg!(target_arch = "x86_64"));
    }

    #[test]
    fn times() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "0", "-1", "x", "inf", "NaN", "1e300"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn denials() {
        assert_eq!(parse_denial("NtReadFile"), Ok(("NtReadFile".into(), Status::ACCESS_DENIED)));
        assert_eq!(parse_denial("Nt*=STATUS_DISK_FULL"), Ok(("Nt*".into(), Status::DISK_FULL)));
        assert_eq!(parse_denial("NtClose=0xC0000008"), Ok(("NtClose".into(), Status::INVALID_HANDLE)));
        for bad in ["", "=DISK_FULL", "NtClose=NO_SUCH", "NtClose=0xZ"] {
            assert!(parse_denial(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts() {
        let mount = |drive, folder: &str, mode| Ok(Mount { drive, folder: folder.into(), mode });
        assert_eq!(parse_mount("C:=/data"), mount('C', "/data", MountMode::ReadOnly));
        assert_eq!(parse_mount("d:=/a:b:rw"), mount('D', "/a:b", MountMode::ReadWrite));
        assert_eq!(parse_mount("E=x:cow"), mount('E', "x", MountMode::CopyOnWrite));
        for bad in ["", "C:", "C:=", "CD:=/x", "1:=/x", "/data", "C:=:rw"] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
    }
}
