//! Runs a Windows program on a system root: `run [--interpreter] [--trace] [--root DIR] PROGRAM [ARGS]`. Without a program the
//! embedded demonstration runs. The working folder is drive D:, the program's folder E:.

use std::path::{Path, PathBuf};

use lstar_nt::io::{MountAccess, SystemHost};
use lstar_nt::system::{self, Mount, RunEnd, System, SystemConfig};
use lstar_nt::time::ClockSource;
use lstar_nt::trace::{TextSink, TraceFilter, Tracer};
use lstar_runtime::{Engine, MachineConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut machine = MachineConfig::default();
    let mut trace = false;
    let mut root = PathBuf::from("system-root");
    loop {
        match arguments.first().map(String::as_str) {
            Some("--interpreter") => {
                machine.engine = Engine::Interpreter;
                arguments.remove(0);
            }
            Some("--trace") => {
                trace = true;
                arguments.remove(0);
            }
            Some("--root") => {
                arguments.remove(0);
                root = PathBuf::from(arguments.remove(0));
            }
            _ => break,
        }
    }
    let scratch = std::env::temp_dir().join(format!("lstar-run-{}", std::process::id()));
    let config = if arguments.is_empty() {
        system::demonstration(&scratch, machine, Box::new(SystemHost))?
    } else {
        program(&root, &arguments.remove(0), arguments, machine)?
    };
    let started = std::time::Instant::now();
    let mut system = System::boot(config)?;
    if trace {
        let sink = TextSink::new(std::io::BufWriter::new(std::io::stderr()));
        system.kernel.tracer = Some(Tracer::new(Box::new(sink), TraceFilter::default()));
    }
    let end = system.run();
    drop(system.kernel.tracer.take().map(Tracer::finish));
    let elapsed = started.elapsed();
    for note in &system.kernel.notes {
        eprintln!("[{note}]");
    }
    let statistics = system.machine.statistics();
    eprintln!("[{} instructions, {} system calls, {elapsed:.2?}]", statistics.instructions, statistics.syscalls);
    drop(system);
    // Only the demonstration makes it.
    let _ = std::fs::remove_dir_all(&scratch);
    match end {
        RunEnd::Exited { status, crash } => {
            if let Some(crash) = crash {
                eprintln!("{crash}");
            }
            std::process::exit((status.0 & 0xFF) as i32);
        }
        other => {
            eprintln!("{other:?}");
            std::process::exit(2);
        }
    }
}

fn program(
    root: &Path,
    program: &str,
    arguments: Vec<String>,
    machine: MachineConfig,
) -> Result<SystemConfig, Box<dyn std::error::Error>> {
    let path = Path::new(program).canonicalize()?;
    let folder = path.parent().ok_or("the program has no folder")?.to_owned();
    let name = path.file_name().and_then(|name| name.to_str()).ok_or("the program's name is not Unicode")?;
    Ok(SystemConfig {
        program: format!("E:\\{name}"),
        arguments,
        current_directory: "D:\\".to_owned(),
        environment: system::default_environment(),
        mounts: vec![
            Mount { letter: 'C', folder: root.to_owned(), access: MountAccess::CopyOnWrite },
            Mount { letter: 'D', folder: std::env::current_dir()?, access: MountAccess::ReadWrite },
            Mount { letter: 'E', folder, access: MountAccess::ReadOnly },
        ],
        preloaded: Vec::new(),
        machine,
        clock: ClockSource::Virtual,
        host: Box::new(SystemHost),
        network: lstar_nt::io::afd::NetworkAccess::Off,
        resolver: None,
        denied: Vec::new(),
        disk_limit: u64::MAX,
        scratch: None,
        state: None,
        max_processes: lstar_nt::system::DEFAULT_MAX_PROCESSES,
        timeout: None,
        instruction_limit: None,
        interrupt: std::sync::Arc::default(),
    })
}
