//! A system: the machine and the kernel on it, from boot to the end of the process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lstar_arch::PAGE_SIZE;
use lstar_guest_images::{ImageError as KernelImageError, KernelConfig, KernelImage, ServiceEntry, map_pe};
use lstar_runtime::{GateAction, Machine, MachineConfig, MachineError, Protection, Registers, VmExit};

use crate::crash::CrashReport;
use crate::io::afd::{NetworkAccess, Resolver};
use crate::io::{Host, MountAccess};
use crate::kernel::{DispatchTable, Kernel};
use crate::lockstep::Lockstep;
use crate::prototypes::{prototype, stack_arguments};
use crate::status::Status;
use crate::time::ClockSource;

/// A host folder as a drive of the guest.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Drive letter.
    pub letter: char,
    /// Host folder.
    pub folder: PathBuf,
    /// What the guest may do to it.
    pub access: MountAccess,
}

/// What to boot.
#[derive(Debug)]
pub struct SystemConfig {
    /// The program as the guest names it ("D:\hello.exe").
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Current directory as the guest names it.
    pub current_directory: String,
    /// Environment.
    pub environment: Vec<(String, String)>,
    /// Drives. C: holds `windows\system32`.
    pub mounts: Vec<Mount>,
    /// DLLs, as the guest names them, that are mapped before the start: for programs that are bound in advance and an
    /// ntdll that loads nothing.
    pub preloaded: Vec<String>,
    /// The machine.
    pub machine: MachineConfig,
    /// Where time comes from.
    pub clock: ClockSource,
    /// Standard streams, wall clock, entropy.
    pub host: Box<dyn Host>,
    /// What sockets reach. With a network two runs are not the same.
    pub network: NetworkAccess,
    /// Who resolves names for guests that may reach what the host reaches; `None`: nobody.
    pub resolver: Option<Box<dyn Resolver>>,
    /// Services (names with `*` and `?`) that answer with a status instead of serving.
    pub denied: Vec<(String, Status)>,
    /// Bytes that the guest's files may grow by.
    pub disk_limit: u64,
    /// Folder for what copy-on-write drives change; `None`: the host's for temporary files.
    pub scratch: Option<PathBuf>,
    /// Changes of the registry that earlier runs made (see [`crate::registry::state`]); with them, this run's can be told.
    pub state: Option<String>,
    /// Most processes at a time.
    pub max_processes: usize,
    /// Ends the run after that long.
    pub timeout: Option<Duration>,
    /// Ends the run after that many guest instructions.
    pub instruction_limit: Option<u64>,
    /// Ends the run as soon as it is set (from a signal handler, another thread).
    pub interrupt: Arc<AtomicBool>,
}

/// Environment of a process that nobody gave one.
#[must_use]
pub fn default_environment() -> Vec<(String, String)> {
    [
        ("ComSpec", r"C:\windows\system32\cmd.exe"),
        ("NUMBER_OF_PROCESSORS", "1"),
        ("OS", "Windows_NT"),
        ("Path", r"C:\windows\system32;C:\windows"),
        ("PATHEXT", ".COM;.EXE;.BAT;.CMD"),
        ("PROCESSOR_ARCHITECTURE", "AMD64"),
        ("ProgramData", r"C:\ProgramData"),
        ("ProgramFiles", r"C:\Program Files"),
        ("SystemDrive", "C:"),
        ("SystemRoot", r"C:\windows"),
        ("PUBLIC", r"C:\users\Public"),
        ("TEMP", r"C:\users\user\AppData\Local\Temp"),
        ("TMP", r"C:\users\user\AppData\Local\Temp"),
        ("ALLUSERSPROFILE", r"C:\ProgramData"),
        ("COMPUTERNAME", "LSTAR"),
        ("CommonProgramFiles", r"C:\Program Files\Common Files"),
        ("CommonProgramW6432", r"C:\Program Files\Common Files"),
        ("HOMEDRIVE", "C:"),
        ("HOMEPATH", r"\users\user"),
        ("PROCESSOR_IDENTIFIER", "Intel64 Family 6 Model 94 Stepping 3, GenuineIntel"),
        ("PROCESSOR_LEVEL", "6"),
        ("PROCESSOR_REVISION", "5e03"),
        ("ProgramW6432", r"C:\Program Files"),
        ("USERDOMAIN", "LSTAR"),
        ("USERNAME", "user"),
        ("USERPROFILE", r"C:\users\user"),
        ("APPDATA", r"C:\users\user\AppData\Roaming"),
        ("LOCALAPPDATA", r"C:\users\user\AppData\Local"),
        ("windir", r"C:\windows"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// Why a system could not be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The machine could not be made.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A drive could not be mounted.
    #[error("cannot mount {folder} as {letter}: {error}")]
    Mount {
        /// Drive letter.
        letter: char,
        /// Host folder.
        folder: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file that is needed cannot be opened.
    #[error("cannot open {name}: {status}")]
    Open {
        /// The guest's name of it.
        name: String,
        /// Why.
        status: Status,
    },
    /// A file is no image that can run here.
    #[error("{name}: {error}")]
    Image {
        /// The guest's name of it.
        name: String,
        /// Why.
        error: crate::memory::section::ImageFileError,
    },
    /// The program has nothing to run natively.
    #[error("{name}: {reason}")]
    Program {
        /// The guest's name of it.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// ntdll lacks something without which no process starts.
    #[error("{name} exports no {export}: it is no ntdll that lstar can use")]
    Export {
        /// The guest's name of it.
        name: String,
        /// What is missing.
        export: &'static str,
    },
    /// The guest kernel could not be built for the service tables of this system root.
    #[error("cannot build the guest kernel: {0}")]
    Kernel(#[from] lstar_guest_images::BuildError),
    /// The guest kernel's own image cannot be read.
    #[error("cannot map the guest kernel: {0}")]
    KernelImage(#[from] KernelImageError),
    /// The guest kernel did not reach its end of start-up.
    #[error("the guest kernel stopped during start-up: {0:?}")]
    Start(VmExit),
    /// A hive of the system root cannot be used.
    #[error("cannot load the registry: {0}")]
    Hive(String),
    /// Changes of earlier runs cannot be made again.
    #[error("cannot make the registry's changes again: {0}")]
    State(crate::registry::state::StateError),
    /// No service has a name that was given.
    #[error("there is no service {0}; `lstar services` lists them")]
    Service(String),
    /// A step of the process's creation failed.
    #[error("cannot create the process: {what}: {status}")]
    Process {
        /// Which step.
        what: &'static str,
        /// Why.
        status: Status,
    },
    /// The embedded images cannot be written out.
    #[error("cannot write the embedded images to {folder}: {error}")]
    Embedded {
        /// Where.
        folder: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

/// Why the kernel let nothing run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest kernel has started; the first thread does not run yet.
    Started,
    /// The process has ended.
    Exited,
    /// Every thread waits for something that cannot happen.
    Deadlock,
    /// The guest kernel faulted, or its structures were destroyed.
    KernelFault,
    /// The run differs from the one it is compared with.
    Diverged,
    /// A hook on a service has panicked.
    HookPanicked,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub enum RunEnd {
    /// The process ended with this status; a report, when an exception ended it.
    Exited {
        /// Exit status.
        status: Status,
        /// The exception.
        crash: Option<Box<CrashReport>>,
    },
    /// The time limit is reached.
    TimedOut,
    /// The instruction limit is reached.
    InstructionLimit,
    /// The run was interrupted from outside.
    Interrupted,
    /// A breakpoint of the machine is reached.
    Breakpoint(u64),
    /// Every thread waits for something that cannot happen.
    Deadlock,
    /// The run differs from the one it is compared with: see [`crate::lockstep`].
    Diverged,
    /// A hook wants the run to stop; it can go on.
    StoppedByHook,
    /// A hook has panicked, with this message.
    HookPanicked(String),
    /// The guest kernel stopped: HLT, shutdown or a fault of its own.
    KernelStopped {
        /// What the machine said.
        exit: VmExit,
        /// The exception, when one was dispatched.
        crash: Option<Box<CrashReport>>,
    },
}

/// Processes at a time unless the configuration says otherwise.
pub const DEFAULT_MAX_PROCESSES: usize = 256;

/// A machine with the kernel on it and its processes.
#[derive(Debug)]
pub struct System {
    /// The machine.
    pub machine: Machine,
    /// The executive.
    pub kernel: Kernel,
    /// The guest kernel's image, with its symbols.
    pub kernel_image: KernelImage,
    timeout: Option<Duration>,
    instruction_limit: Option<u64>,
    interrupt: Arc<AtomicBool>,
    /// Instruction count at which the current time slice ends.
    slice_end: u64,
}

/// Instructions between looks at the clock, the interrupt flag and the other threads.
const SLICE: u64 = 2_000_000;
/// Instructions after which the guest kernel must have started.
const BOOT_BUDGET: u64 = 1_000_000;
/// Instructions that a thread gets to leave the kernel before a switch is tried again.
const KERNEL_SLICE: u64 = 2_000;

impl System {
    /// Boots the guest kernel and creates the process; nothing of the program has run yet.
    pub fn boot(config: SystemConfig) -> Result<Self, BootError> {
        let mut machine = Machine::new(config.machine)?;
        let (timeout, instruction_limit) = (config.timeout, config.instruction_limit);
        let interrupt = Arc::clone(&config.interrupt);
        let (mut kernel, kernel_image, start) = crate::boot::prepare(config, &mut machine)?;
        machine.vcpu().set_rip(kernel_image.entry);
        let exit = machine.run(&mut kernel, BOOT_BUDGET);
        if exit != VmExit::Stopped || kernel.stop.take() != Some(StopReason::Started) {
            return Err(BootError::Start(exit));
        }
        crate::boot::create_process(&mut kernel, &mut machine, start)?;
        let slice_end = machine.vcpu().retired + SLICE;
        Ok(Self { machine, kernel, kernel_image, timeout, instruction_limit, interrupt, slice_end })
    }

    /// Runs until the process ends, or something else stops it. Can be called again after a breakpoint, a limit or an
    /// interrupt.
    pub fn run(&mut self) -> RunEnd {
        let started = Instant::now();
        loop {
            if self.interrupt.load(Ordering::Relaxed) {
                return RunEnd::Interrupted;
            }
            if self.timeout.is_some_and(|limit| started.elapsed() >= limit) {
                return RunEnd::TimedOut;
            }
            let retired = self.machine.vcpu().retired;
            let left = self.instruction_limit.map_or(u64::MAX, |limit| limit.saturating_sub(retired));
            if left == 0 {
                return RunEnd::InstructionLimit;
            }
            // In a run that follows another one the other one's slices end this one's.
            let replayed = self.kernel.lockstep.as_ref().and_then(Lockstep::next_slice);
            let slice = replayed.unwrap_or(self.slice_end).saturating_sub(retired);
            let exit = if slice == 0 {
                VmExit::Budget
            } else {
                self.machine.run(&mut self.kernel, slice.min(left).min(SLICE))
            };
            if exit == VmExit::Budget && slice != 0 {
                continue;
            }
            if let Some(end) = self.after(exit) {
                return end;
            }
        }
    }

    /// Instructions retired since the machine was made.
    pub fn retired(&mut self) -> u64 {
        self.machine.vcpu().retired
    }

    /// Makes runs end after that many guest instructions, counted since the machine was made; translated code ends them
    /// a little later.
    pub fn set_instruction_limit(&mut self, limit: Option<u64>) {
        self.instruction_limit = limit;
    }

    /// Executes one instruction of the current thread; `None` when there is no reason to stop.
    pub fn step(&mut self) -> Option<RunEnd> {
        let exit = self.machine.step(&mut self.kernel)?;
        self.after(exit)
    }

    fn after(&mut self, exit: VmExit) -> Option<RunEnd> {
        match exit {
            VmExit::Budget => self.end_slice(),
            VmExit::Breakpoint(address) => Some(RunEnd::Breakpoint(address)),
            VmExit::Stopped => Some(self.stopped(exit)),
            VmExit::HookPanicked(_) => Some(RunEnd::HookPanicked(self.machine.take_hook_panic().unwrap_or_default())),
            VmExit::Halted | VmExit::Shutdown => Some(RunEnd::KernelStopped { exit, crash: self.crash() }),
        }
    }

    /// The time slice is used up: clocks advance, others get their turn.
    fn end_slice(&mut self) -> Option<RunEnd> {
        let Self { machine, kernel, slice_end, .. } = self;
        let replays = kernel.lockstep.as_ref().is_some_and(|lockstep| lockstep.next_slice().is_some());
        for _ in 0..KERNEL_SLICE {
            if replays || machine.vcpu().cpl() == 3 {
                break;
            }
            let exit = machine.run(kernel, 1);
            if exit != VmExit::Budget {
                return self.after(exit);
            }
        }
        let mut vcpu = machine.vcpu();
        if let Some(lockstep) = &mut kernel.lockstep {
            lockstep.end_slice(vcpu.retired);
        }
        *slice_end = vcpu.retired + SLICE;
        kernel.clock.advance(vcpu.retired);
        crate::loader::update_shared_data(kernel);
        if vcpu.cpl() == 3 && kernel.preempt(&mut vcpu) == GateAction::Stop {
            return Some(self.stopped(VmExit::Stopped));
        }
        None
    }

    fn stopped(&mut self, exit: VmExit) -> RunEnd {
        match self.kernel.stop {
            Some(StopReason::Exited) => {
                let root = self.kernel.process_by_id(self.kernel.root_process);
                let status = root.and_then(|root| root.exit_status).unwrap_or(Status::SUCCESS);
                RunEnd::Exited { status, crash: self.kernel.crash.clone() }
            }
            Some(StopReason::Deadlock) => RunEnd::Deadlock,
            Some(StopReason::Diverged) => RunEnd::Diverged,
            Some(StopReason::HookPanicked) => {
                RunEnd::HookPanicked(self.kernel.service_hooks.panic().unwrap_or_default().to_owned())
            }
            None => RunEnd::StoppedByHook,
            Some(StopReason::Started | StopReason::KernelFault) => RunEnd::KernelStopped { exit, crash: self.crash() },
        }
    }

    fn crash(&mut self) -> Option<Box<CrashReport>> {
        let exception = self.kernel.last_exception.as_ref()?;
        Some(Box::new(self.kernel.crash_report(self.machine.memory(), exception)))
    }

    /// All changes of the registry, those of earlier runs included, when the configuration has given any.
    #[must_use]
    pub fn registry_changes(&self) -> Option<String> {
        let base = self.kernel.registry_base.as_ref()?;
        Some(crate::registry::state::changes(base, &self.kernel.registry))
    }

    /// Address of a symbol of the guest kernel.
    #[must_use]
    pub fn kernel_symbol(&self, name: &str) -> Option<u64> {
        self.kernel_image.address_of(name)
    }
}

/// Builds the kernel image for the service tables and maps it.
pub(crate) fn map_kernel(machine: &mut Machine, dispatch: &DispatchTable) -> Result<KernelImage, BootError> {
    let entries = |table: usize| {
        let entry = |slot: &Option<crate::kernel::DispatchEntry>| {
            let entry = slot.as_ref()?;
            let stack_arguments = match entry.service {
                Some(service) => service.stack_arguments(),
                // Not implemented, but its arguments are to be reported. A name that nobody knows may have none.
                None => prototype(&entry.name).map_or(0, |_| stack_arguments(&entry.name)),
            };
            Some(ServiceEntry { name: entry.name.clone(), stack_arguments })
        };
        dispatch.tables[table].iter().map(entry).collect()
    };
    let config = KernelConfig { services: entries(0), shadow_services: entries(1), ..KernelConfig::default() };
    let image = KernelImage::build(&config)?;
    let mapped = map_pe(&image.pe)?;
    let space = machine.memory();
    let failed = |status| BootError::Process { what: "mapping the guest kernel", status };
    for piece in &mapped.pieces {
        let mut protection = Protection::READ;
        protection.set(Protection::WRITE, piece.protection.write);
        protection.set(Protection::EXECUTE, piece.protection.execute);
        let address = image.base + u64::from(piece.rva);
        let size = u64::from(piece.size).next_multiple_of(PAGE_SIZE);
        space.map(address, size, protection).map_err(|error| failed(error.into()))?;
        space.write_unchecked(address, &piece.bytes).map_err(|fault| failed(fault.into()))?;
    }
    Ok(image)
}

/// Writes the embedded demonstration into `folder` as a system root with a program, and tells how to boot it.
pub fn demonstration(folder: &Path, machine: MachineConfig, host: Box<dyn Host>) -> Result<SystemConfig, BootError> {
    use lstar_guest_images::{demo, ntdll};
    let system32 = folder.join("windows").join("system32");
    let failed = |error| BootError::Embedded { folder: folder.to_owned(), error };
    std::fs::create_dir_all(&system32).map_err(failed)?;
    let program = demo::demo()?;
    for image in [ntdll::ntdll()?, ntdll::win32u()?] {
        std::fs::write(system32.join(image.name), &image.pe).map_err(failed)?;
    }
    std::fs::write(folder.join(program.name), &program.pe).map_err(failed)?;
    Ok(SystemConfig {
        program: format!("C:\\{}", program.name),
        arguments: Vec::new(),
        current_directory: "C:\\".to_owned(),
        environment: default_environment(),
        mounts: vec![Mount { letter: 'C', folder: folder.to_owned(), access: MountAccess::ReadWrite }],
        preloaded: vec![r"C:\windows\system32\win32u.dll".to_owned()],
        machine,
        clock: ClockSource::Virtual,
        host,
        network: NetworkAccess::Off,
        resolver: None,
        denied: Vec::new(),
        disk_limit: u64::MAX,
        scratch: None,
        state: None,
        max_processes: DEFAULT_MAX_PROCESSES,
        timeout: None,
        instruction_limit: None,
        interrupt: Arc::default(),
    })
}
