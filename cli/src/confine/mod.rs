//! The process confines itself before guest code runs: a bug that lets a guest out of its sandbox finds a process that
//! can do no more than the run needs.
//!
//! [Landlock](landlock) bounds files to the mounts, the folder of the run and the cache, and TCP; the
//! filter of system calls (`filter`) allows what lstar is known to use: no programs, no processes, no sockets unless the
//! guest may have some. What is open already (standard streams, a trace's file) stays usable.
//!
//! Both concern the calling thread and the threads that it starts from then on, so they are set up while there is no
//! other one. A kernel without one of them is no reason not to run; [`Confinement`] tells what is in effect.

mod filter;

use std::fmt;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

/// What the process keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Files and folders whose contents can be read.
    pub read: Vec<PathBuf>,
    /// Folders in which anything can be changed.
    pub write: Vec<PathBuf>,
    /// Sockets.
    pub network: bool,
}

/// What Landlock enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRules {
    /// Everything that was asked for.
    Full,
    /// What a kernel of that age can.
    Partial,
    /// Nothing: the kernel has no Landlock, or it is disabled.
    None,
}

/// What is in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// Landlock.
    pub files: FileRules,
    /// The filter of system calls.
    pub filter: bool,
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.files {
            FileRules::Full => "Landlock",
            FileRules::Partial => "Landlock (in part: the kernel is old)",
            FileRules::None => "no Landlock (the kernel has none)",
        })?;
        f.write_str(if self.filter { ", seccomp" } else { ", no seccomp (the kernel has none)" })
    }
}

/// The newest Landlock whose rights are handled; older kernels enforce those that they know.
const LANDLOCK: ABI = ABI::V7;

/// Confines the calling thread and those that it will start.
pub fn confine(allowed: &Allowed) -> Confinement {
    // Finding it reads /proc, which is out of reach afterwards.
    lstar_runtime::learn_stack_limit();
    let files = restrict_files(allowed).unwrap_or(FileRules::None);
    // In this order: the filter does not allow what Landlock is set up with.
    let filter = filter::apply(allowed.network).is_ok();
    Confinement { files, filter }
}

fn restrict_files(allowed: &Allowed) -> Result<FileRules, RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?;
    if !allowed.network {
        rules = rules.handle_access(AccessNet::from_all(LANDLOCK))?;
    }
    let devices = [("/dev/null", read | AccessFs::WriteFile), ("/dev/urandom", read)];
    let mut rules = rules
        .create()?
        .add_rules(path_beneath_rules(&allowed.read, read))?
        .add_rules(path_beneath_rules(&allowed.write, write))?;
    for (device, access) in devices {
        rules = rules.add_rules(path_beneath_rules([device], access))?;
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => FileRules::Full,
        RulesetStatus::PartiallyEnforced => FileRules::Partial,
        RulesetStatus::NotEnforced => FileRules::None,
    })
}

#[cfg(test)]
mod tests;
