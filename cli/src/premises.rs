//! Where a guest runs: its drives and folder, and lstar confined to them. Systems are booted on premises.

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use lstar_nt::io::afd::Resolver;
use lstar_nt::io::{Host, MountAccess};
use lstar_nt::system::{self, System, SystemConfig, default_environment};
use lstar_nt::time::ClockSource;
use lstar_runtime::MachineConfig;

use crate::args::{GuestArgs, MountMode, NetName};
use crate::confine::{self, Allowed, Confinement};
use crate::interrupt;
use crate::resolver::ResolverProcess;
use crate::run_folder::RunFolder;
use crate::state::StateFile;
use crate::surroundings::Surroundings;

/// A guest's surroundings, from where on the process can only reach what the guest needs.
#[derive(Debug)]
pub struct Premises {
    /// Without them it is the demonstration that runs.
    surroundings: Option<Surroundings>,
    /// How the process is confined.
    pub confinement: Confinement,
    folder: RunFolder,
    /// Started before the confinement, for the first system that may ask it.
    resolver: RefCell<Option<ResolverProcess>>,
    /// What earlier runs have changed in the registry.
    state: RefCell<Option<StateFile>>,
}

impl Premises {
    /// Arranges what the command line says and confines the calling thread. `keep` are folders that lstar itself needs
    /// to write to. Without a program it will be the demonstration.
    pub fn enter(args: &GuestArgs, program: &[OsString], keep: Vec<PathBuf>) -> Result<Self> {
        let surroundings = match program {
            [] => None,
            program => Some(Surroundings::arrange(args, program)?),
        };
        let state = args.state.as_deref().map(StateFile::open).transpose()?;
        Self::confine(surroundings, keep, args.net, state)
    }

    /// The same for the demonstration.
    pub fn of_demonstration() -> Result<Self> {
        Self::confine(None, Vec::new(), NetName::Off, None)
    }

    fn confine(
        surroundings: Option<Surroundings>,
        keep: Vec<PathBuf>,
        net: NetName,
        state: Option<StateFile>,
    ) -> Result<Self> {
        interrupt::watch();
        let folder = RunFolder::make()?;
        let resolver = match net {
            NetName::Host => Some(ResolverProcess::start().context("cannot start the resolver of names")?),
            NetName::Off | NetName::Loopback => None,
        };
        let mut allowed = Allowed { write: keep, network: net != NetName::Off, ..Allowed::default() };
        allowed.write.push(folder.path().to_owned());
        for mount in surroundings.iter().flat_map(|surroundings| &surroundings.mounts) {
            match mount.mode {
                MountMode::ReadWrite => allowed.write.push(mount.folder.clone()),
                MountMode::ReadOnly | MountMode::CopyOnWrite => allowed.read.push(mount.folder.clone()),
            }
        }
        let confinement = confine::confine(&allowed);
        let (resolver, state) = (RefCell::new(resolver), RefCell::new(state));
        Ok(Self { surroundings, confinement, folder, resolver, state })
    }

    /// Keeps what a run has changed in the registry, if that was asked for.
    pub fn save_state(&self, system: &System) -> Result<()> {
        match (self.state.borrow_mut().as_mut(), system.registry_changes()) {
            (Some(file), Some(changes)) => file.save(&changes),
            _ => Ok(()),
        }
    }

    /// Boots a system; nothing of the program has run yet. Must not outlive the premises, which take its files away.
    pub fn boot(&self, args: &GuestArgs, machine: MachineConfig, host: Box<dyn Host>) -> Result<System> {
        let Some(plan) = &self.surroundings else { return self.boot_demonstration(machine, host) };
        let mut environment = default_environment();
        for (name, value) in &plan.variables {
            // Windows names variables without regard to case.
            environment.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
            environment.push((name.clone(), value.clone()));
        }
        let mounts = plan.mounts.iter().map(|mount| system::Mount {
            letter: mount.drive,
            folder: mount.folder.clone(),
            access: match mount.mode {
                MountMode::ReadOnly => MountAccess::ReadOnly,
                MountMode::ReadWrite => MountAccess::ReadWrite,
                MountMode::CopyOnWrite => MountAccess::CopyOnWrite,
            },
        });
        let config = SystemConfig {
            program: plan.program.clone(),
            arguments: plan.arguments.clone(),
            current_directory: plan.current_folder.clone(),
            environment,
            mounts: mounts.collect(),
            preloaded: Vec::new(),
            machine,
            clock: if args.realtime { ClockSource::Host } else { ClockSource::Virtual },
            host,
            network: args.net.access(),
            resolver: self.resolver.borrow_mut().take().map(|resolver| Box::new(resolver) as Box<dyn Resolver>),
            denied: args.deny.clone(),
            disk_limit: args.max_disk,
            scratch: Some(self.folder.path().to_owned()),
            state: self.state.borrow().as_ref().map(|state| state.text.clone()),
            max_processes: args.max_processes,
            timeout: args.timeout,
            instruction_limit: None,
            interrupt: interrupt::watch(),
        };
        System::boot(config).with_context(|| format!("cannot start {}", plan.program))
    }

    /// Boots the demonstration.
    pub fn boot_demonstration(&self, machine: MachineConfig, host: Box<dyn Host>) -> Result<System> {
        // One that another system of this process has not written to; it goes with the folder of the run.
        let folder = tempfile::tempdir_in(self.folder.path()).context("cannot make a temporary folder")?.keep();
        let mut config = system::demonstration(&folder, machine, host)?;
        config.interrupt = interrupt::watch();
        Ok(System::boot(config)?)
    }
}
