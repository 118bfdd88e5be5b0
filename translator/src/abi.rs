//! The contract between translated code and the runtime: memory layout, calling convention, helper table.
//!
//! **Pinned register.** Translated code keeps in Cranelift's pinned register (r15 on x86-64) the host address of guest
//! address 0 in the memory *view* of the current privilege level. The host address of a guest access is
//! `pinned + guest address` with wrap-around: user addresses (`0..USER_END`) lie above the base, kernel addresses
//! (`KERNEL_START..KERNEL_END`, negative as signed numbers) below it. Nothing is masked; see [`crate`] for the checks.
//! The [`VcpuBlock`] is mapped at `pinned + VCPU_OFFSET` in both views, so that one register serves both. No guest
//! access can reach it: addresses in `KERNEL_END..2^64` are refused at every privilege.
//!
//! **Regions** are functions of Cranelift's `tail` convention, `fn(argument, budget, rsp) -> (rip, budget, rsp)`, all 64 bits
//! wide. The argument is for stubs only (slot address or target RIP); a region ignores it. A region returns a RIP only
//! from a guest near RET: the one returned to. Every other way out is a tail call (another region, a stub, what a `Jump`
//! helper returned) or the value [`UNWIND`] with `cpu.rip` and `exit` set, on which each caller returns [`UNWIND`] in
//! turn. At every call and every way out, all guest registers are in the [`VcpuBlock`] and the flags in `lazy`/`rflags`,
//! except the budget and RSP where they are passed or returned; with [`UNWIND`] and at helpers they, too, are in the block.
//!
//! **Modes.** While host frames of one user [`Mode`] exist, no code of another one runs: whoever changes between 64-bit and
//! 32-bit code unwinds first, so that a return value never crosses them. In [`Mode::Compatibility`] RIPs are below 4 GiB.
//!
//! **Calls.** In user mode a guest CALL is a host call through a slot or the target table; the result is compared
//! with the guest return address: equal continues, otherwise it is returned to the host caller. Kernel-mode regions
//! make no host calls and leave through the target table, so that a return value can never cross privilege levels.

use lstar_arch::CpuState;

use crate::host_op::{HostOp, StringOp};

/// Bytes from the view base to the [`VcpuBlock`].
pub const VCPU_OFFSET: i32 = -(1 << 30);
/// First address above the user half (exclusive end): 8 TiB.
pub const USER_END: u64 = 1 << 43;
/// First address of the kernel half.
pub const KERNEL_START: u64 = (-(1i64 << 43)) as u64;
/// Exclusive end of the kernel half: 2 TiB, which keeps a machine's reservations small enough for several in a process.
pub const KERNEL_END: u64 = KERNEL_START + (1 << 41);
/// Bytes above `USER_END` (and below `KERNEL_START`) that are reserved and never accessible in any view, so that a checked base
/// plus a 32-bit displacement faults in the host's MMU.
pub const GUARD_SIZE: u64 = 1 << 31;

/// Bytes behind the [`VcpuBlock`] that blocks set when they are entered, if coverage is wanted: one for each block of each
/// region, see [`crate::CompiledRegion::probes`].
pub const PROBES: u32 = 1 << 24;

/// What a region or a helper returns to make every host frame return to the dispatcher. Not canonical, so no RIP.
pub const UNWIND: u64 = 0xDEAD_0000_0000_0001;

/// log2 of the number of entries in each indirect-branch target table.
pub const TARGET_TABLE_BITS: u32 = 16;

/// What the processor mode contributes to the identity of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Mode {
    /// 64-bit code at CPL 3.
    User = 0,
    /// 64-bit code at CPL 0.
    Kernel = 1,
    /// 32-bit code at CPL 3 in the flat model ([`CpuState::is_flat_32bit`]), with nothing mapped on one side of the 4 GiB border.
    /// So an offset is a linear address, and an access beyond the border faults in the host's MMU.
    Compatibility = 2,
}

impl Mode {
    /// Number of modes.
    pub const COUNT: usize = 3;

    /// Whether it is code at CPL 3.
    #[must_use]
    pub const fn is_user(self) -> bool {
        !matches!(self, Self::Kernel)
    }

    /// Whether it is 32-bit code.
    #[must_use]
    pub const fn is_32bit(self) -> bool {
        matches!(self, Self::Compatibility)
    }
}

/// Why translated code returned [`UNWIND`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum ExitReason {
    /// Nothing recorded.
    None = 0,
    /// The instruction budget ran out; `cpu.rip` is where to go on.
    Budget = 1,
    /// Continue at `cpu.rip` from the dispatcher (host stack used up, or a helper asked for it).
    Redispatch = 2,
    /// A helper has recorded an exit with the runtime.
    Helper = 3,
}

/// Entry of a target table: indexed by the low [`TARGET_TABLE_BITS`] bits of the RIP.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Guest RIP of a region's entry; `u64::MAX` when empty.
    pub rip: u64,
    /// Host address of its code.
    pub code: u64,
}

/// A direct link: translated code jumps and calls through `code` with the slot's own address as argument.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Host address: a region's code or a stub that resolves it.
    pub code: u64,
    /// Guest RIP of the target.
    pub rip: u64,
}

/// Flag operands of the last flag-setting operation: see [`crate::flags`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LazyFlags {
    /// [`crate::flags::LazyOp`] as a number; 0 means `cpu.rflags` is exact.
    pub op: u64,
    /// First operand or whatever the operation defines.
    pub a: u64,
    /// Second operand.
    pub b: u64,
    /// A third value.
    pub c: u64,
    /// The carry that an INC or DEC has kept whose other operand is in a register: see [`crate::FlagSource`].
    pub kept: u64,
}

/// Everything translated code addresses through the pinned register.
#[repr(C, align(4096))]
pub struct VcpuBlock {
    /// The guest's registers.
    pub cpu: CpuState,
    /// Status flags not yet folded into `cpu.rflags`.
    pub lazy: LazyFlags,
    /// Instructions left before translated code must return with [`ExitReason::Budget`]; may go below zero.
    pub budget: i64,
    /// An [`ExitReason`].
    pub exit: u64,
    /// View base of the current privilege level; helpers that change privilege update it.
    pub view_base: u64,
    /// Target tables, by [`Mode`].
    pub targets: [*mut Target; Mode::COUNT],
    /// Host stack pointer below which regions make no further host calls.
    pub stack_limit: u64,
    /// Host stack pointer that a fault in translated code returns to.
    pub recovery_rsp: u64,
    /// The runtime's own context, for helpers.
    pub context: *mut u8,
    /// Stub addresses, by [`Stub`].
    pub stubs: [u64; Stub::COUNT],
    /// Helper addresses, by [`Helper`].
    pub helpers: [u64; Helper::COUNT],
    /// Addresses of host operations, by [`HostOp`].
    pub host_ops: [u64; HostOp::COUNT],
    /// Addresses of string comparisons, by [`StringOp`].
    pub string_ops: [u64; StringOp::COUNT],
    /// Not 0 if the processor's MXCSR may be newer than the one in `cpu`: translated code says so before it calculates.
    pub mxcsr_newer: u64,
    /// Not 0 while the guest's x87 state is in the host's x87: see [`crate::x87`].
    pub x87_live: u64,
    /// While it is there, [`crate::x87::last`] of the last instruction; 0 before the first one.
    pub x87_last: u64,
    /// While it is there, 1 and the number of the segment of the last memory operand; 0 before the first one.
    pub x87_segment: u64,
    /// Address of the code, called like a host operation, that moves the x87 state of the block that RDI points at into the host's
    /// x87; RAX is not 0 if it cannot be there.
    pub x87_enter: u64,
    /// Address of the code, called like a host operation, that moves it back into the block.
    pub x87_leave: u64,
    /// The time-stamp counter when `budget` will be 0: it counts retired instructions
    /// ([`lstar_arch::system::TSC_PER_INSTRUCTION`] for each).
    pub tsc_at_end: u64,
}

/// Hand-written entry points with a region's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Stub {
    /// Argument: RIP. The target table missed on a jump, or on a CALL whose return address is already pushed.
    Miss = 0,
    /// Argument ignored: returns [`UNWIND`].
    Unwind = 1,
}

impl Stub {
    /// Number of stubs.
    pub const COUNT: usize = 2;
}

/// How translated code treats a helper's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelperKind {
    /// A pure value; guest registers need not be in the block and stay where they are.
    Leaf,
    /// All registers are flushed before and reloaded after; a result other than 0 is returned as [`UNWIND`].
    /// `budget` already counts the instruction itself, for this kind and for `Jump`, and is read again afterwards.
    Check,
    /// All registers are flushed before; the helper moves `cpu.rip`, may change privilege, and returns the host code
    /// to tail-call, after the pinned register has been reloaded from `view_base`, with `cpu.rip` as argument.
    Jump,
    /// As `Check` if the result is 0, otherwise as `Jump`.
    Resume,
}

/// Declares the helper table: one list, from which the enum, the signatures and the runtime's shims come.
///
/// Each row is `Name(number of u64 arguments after the block pointer) kind "documentation";`. Calls a macro with all rows.
#[macro_export]
macro_rules! foreach_helper {
    ($mac:ident) => {
        $mac! {
            /// Executes the one instruction at `rip` (argument) in the interpreter and continues behind it. For operations without a lifter.
            Interpret(1) Check;
            /// As `Interpret`, for an instruction that can change RIP, privilege or mode.
            InterpretJump(1) Jump;
            /// SYSCALL. Argument: address of the next instruction. 0 where the whole call was done in the helper: control is behind
            /// the instruction, at the same privilege; never 0 for an instruction at CPL 0.
            Syscall(1) Resume;
            /// SYSRET. Arguments: address of this instruction, operand size (8: SYSRETQ, 4: SYSRETL).
            Sysret(2) Jump;
            /// IRETQ. Argument: address of this instruction.
            Iret(1) Jump;
            /// Calls the hooks of the code at `rip` (argument), whose instruction comes next and is not counted yet.
            Hook(1) Check;
            /// The same where `rip` is inside a basic block.
            HookInside(1) Check;
            /// The service gate (VMCALL at CPL 0). Argument: address of the next instruction.
            ServiceGate(1) Check;
            /// Loads the processor's MXCSR. Argument: the value, without reserved bits.
            LoadMxcsr(1) Leaf;
            /// The processor's MXCSR. Argument: unused.
            StoreMxcsr(1) Leaf;
            /// Folds `lazy` into `cpu.rflags` and returns the exact RFLAGS. Argument: unused.
            ReadFlags(1) Leaf;
        }
    };
}

macro_rules! declare_helpers {
    ($($(#[$doc:meta])* $name:ident($args:literal) $kind:ident;)*) => {
        /// Functions of the runtime that translated code calls, `extern "C" fn(*mut VcpuBlock, u64, ..) -> u64`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Helper { $($(#[$doc])* $name,)* }

        impl Helper {
            /// All helpers in table order.
            pub const ALL: &[Self] = &[$(Self::$name),*];
            /// Number of helpers.
            pub const COUNT: usize = Self::ALL.len();
            /// How the result is treated.
            #[must_use]
            pub const fn kind(self) -> HelperKind {
                match self { $(Self::$name => HelperKind::$kind,)* }
            }
            /// Number of `u64` arguments after the block pointer.
            #[must_use]
            pub const fn arguments(self) -> usize {
                match self { $(Self::$name => $args,)* }
            }
            /// The helper's name, for lists and symbols.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}
foreach_helper!(declare_helpers);
