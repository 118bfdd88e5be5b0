//! Settings, statistics and errors of the translator.

use std::time::Duration;

use lstar_arch::cpuid::{CpuModel, Features};

/// How much Cranelift optimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OptLevel {
    /// Fast compilation.
    None,
    /// Fast code.
    #[default]
    Speed,
}

/// How a guest CALL of user code is lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CallMode {
    /// As a host call, whose result is compared with the guest's return address.
    #[default]
    Host,
    /// As a jump out of the region; RET goes through the target table.
    Jump,
}

/// How the guest state at a fault is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PreciseState {
    /// What has changed is stored at checkpoints, from which the interpreter goes on. Cheaper to compile.
    Checkpoints,
    /// Nothing is stored: a map says in which host registers and stack slots the state is (see [`crate::statemap`]).
    #[default]
    Maps,
}

/// What host processor code is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HostTarget {
    /// This one.
    #[default]
    Detected,
    /// An x86-64-v3 processor that has every [`HostOp`](crate::host_op::HostOp): the same code on every machine, to look at
    /// rather than to run.
    Fixed,
}

/// Settings of a [`crate::Translator`].
#[derive(Clone, Copy, Debug)]
pub struct TranslatorConfig {
    /// Optimisation level.
    pub opt_level: OptLevel,
    /// Run Cranelift's verifier on each region.
    pub verifier: bool,
    /// Most guest instructions in one region.
    pub max_instructions: usize,
    /// Lowering of CALL in user mode. Kernel code always uses [`CallMode::Jump`].
    pub calls: CallMode,
    /// How the guest state at a fault is had. Maps need [`OptLevel::Speed`].
    pub precise: PreciseState,
    /// Make known targets of indirect jumps part of the region.
    pub known_targets: bool,
    /// Leave out what has not been executed yet, as far as the source of the code knows.
    pub executed_only: bool,
    /// Look at the code at known exits, so that flags that it overwrites at once need not be stored. Whoever stops the guest
    /// between two regions then does not see them, so this is off unless asked for.
    pub look_ahead: bool,
    /// Make small functions without calls part of the regions that call them.
    pub inline_leaves: bool,
    /// The same for functions with a SYSCALL in them: of use where calls come back to the region that makes them, that is, with
    /// direct dispatch.
    pub inline_system_calls: bool,
    /// Keep vector registers that are used for scalar double arithmetic only as two doubles.
    pub scalar_pairs: bool,
    /// What host processor code is made for.
    pub host: HostTarget,
    /// Check the instruction budget at region entries and back edges.
    pub budget_checks: bool,
    /// Make each basic block set its byte in the [`crate::abi::PROBES`] when it is entered.
    pub coverage: bool,
    /// FCOMI and its like clear C1, as on Intel's processors; else they do with it what the host does.
    pub compare_clears_c1: bool,
    /// Instruction sets the guest may use; others are left to the interpreter, which raises #UD.
    pub features: Features,
}

impl Default for TranslatorConfig {
    fn default() -> Self {
        Self {
            opt_level: OptLevel::Speed,
            verifier: false,
            max_instructions: 2000,
            calls: CallMode::Host,
            precise: PreciseState::default(),
            known_targets: true,
            executed_only: true,
            look_ahead: false,
            inline_leaves: true,
            inline_system_calls: false,
            scalar_pairs: true,
            host: HostTarget::default(),
            budget_checks: true,
            coverage: false,
            compare_clears_c1: false,
            features: CpuModel::default().features,
        }
    }
}

/// Why a region could not be translated. None of these is caused by guest code alone.
#[derive(Debug, thiserror::Error)]
pub enum TranslatorError {
    /// This host has no Cranelift backend, or lacks a feature the backend needs.
    #[error("the host processor is not supported: {0}")]
    Host(String),
    /// Cranelift refused its settings.
    #[error("code generator settings: {0}")]
    Settings(String),
    /// Cranelift could not compile a region.
    #[error("region at {entry:#x}: {message}")]
    Compile {
        /// Guest entry point.
        entry: u64,
        /// What Cranelift said.
        message: String,
    },
}

/// What a translator has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct TranslatorStats {
    /// Regions translated.
    pub regions: u64,
    /// Guest instructions in them.
    pub guest_instructions: u64,
    /// Bytes of host code.
    pub host_bytes: u64,
    /// Fault sites.
    pub sites: u64,
    /// Values of fault sites that had to be stored, with [`PreciseState::Maps`].
    pub stored: u64,
    /// Times that code was generated, which may be more than once for a region.
    pub rounds: u64,
    /// Time spent on decoding, analysis and lifting.
    pub front_end: Duration,
    /// Time spent in Cranelift.
    pub back_end: Duration,
}
