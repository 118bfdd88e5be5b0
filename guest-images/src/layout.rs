//! Where the fields of the kernel's structures lie, per Windows build, as data.
//!
//! The same tables feed code generation ([`crate::kernel`]), the system-call helpers and a debugger's `dt`. Only
//! fields that the system-call and trap paths, the start-up or a debugger need are listed.

use std::fmt;

/// The Windows build whose structure offsets the kernel image uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Build {
    /// Windows 7 x64.
    #[default]
    Windows7,
    /// Windows 11 x64.
    Windows11,
}

/// Type of a structure field, in the words of WinDbg's `dt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// `Char`: signed byte.
    Char,
    /// `UChar`.
    UChar,
    /// `Uint2B`.
    Uint2B,
    /// `Uint4B`.
    Uint4B,
    /// `Uint8B`.
    Uint8B,
    /// `Ptr64` to the named type.
    Pointer(&'static str),
    /// A nested structure of that name and size in bytes.
    Structure(&'static str, u32),
}

impl FieldType {
    /// Size in bytes.
    #[must_use]
    pub const fn size(self) -> u32 {
        match self {
            Self::Char | Self::UChar => 1,
            Self::Uint2B => 2,
            Self::Uint4B => 4,
            Self::Uint8B | Self::Pointer(_) => 8,
            Self::Structure(_, size) => size,
        }
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Char => f.write_str("Char"),
            Self::UChar => f.write_str("UChar"),
            Self::Uint2B => f.write_str("Uint2B"),
            Self::Uint4B => f.write_str("Uint4B"),
            Self::Uint8B => f.write_str("Uint8B"),
            Self::Pointer(target) => write!(f, "Ptr64 {target}"),
            Self::Structure(name, _) => f.write_str(name),
        }
    }
}

/// One field of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name as in the public symbols ("TrapFrame").
    pub name: &'static str,
    /// Offset in bytes from the start of the structure.
    pub offset: u32,
    /// Type.
    pub ty: FieldType,
}

/// The listed fields of one structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// Name as in the public symbols ("_KTHREAD").
    pub name: &'static str,
    /// Size in bytes.
    pub size: u32,
    /// Fields in ascending order of offset.
    pub fields: &'static [Field],
}

impl Structure {
    /// The field of that name, if it is listed.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// Defines a structure's table together with a constant per field that code generation uses.
macro_rules! structure {
    ($(#[$doc:meta])* $module:ident = $name:literal, $size:literal { $($constant:ident = $field:literal @ $offset:literal: $ty:expr;)* }) => {
        $(#[$doc])*
        pub mod $module {
            #[allow(unused_imports, reason = "not every structure uses every type")]
            use super::FieldType::*;
            use super::{Field, Structure};
            $(
                #[doc = concat!("Offset of `", $field, "`.")]
                pub const $constant: u32 = $offset;
            )*
            /// The structure's table.
            pub const LAYOUT: Structure = Structure {
                name: $name,
                size: $size,
                fields: &[$(Field { name: $field, offset: $offset, ty: $ty }),*],
            };
        }
    };
}

structure! {
    /// `KTRAP_FRAME`: the same in every build that is modelled. RBP points 80h into it while the kernel runs.
    ktrap_frame = "_KTRAP_FRAME", 0x190 {
        P1_HOME = "P1Home" @ 0x0: Uint8B;
        P2_HOME = "P2Home" @ 0x8: Uint8B;
        P3_HOME = "P3Home" @ 0x10: Uint8B;
        P4_HOME = "P4Home" @ 0x18: Uint8B;
        P5 = "P5" @ 0x20: Uint8B;
        PREVIOUS_MODE = "PreviousMode" @ 0x28: Char;
        PREVIOUS_IRQL = "PreviousIrql" @ 0x29: UChar;
        FAULT_INDICATOR = "FaultIndicator" @ 0x2A: UChar;
        EXCEPTION_ACTIVE = "ExceptionActive" @ 0x2B: UChar;
        MXCSR = "MxCsr" @ 0x2C: Uint4B;
        RAX = "Rax" @ 0x30: Uint8B;
        RCX = "Rcx" @ 0x38: Uint8B;
        RDX = "Rdx" @ 0x40: Uint8B;
        R8 = "R8" @ 0x48: Uint8B;
        R9 = "R9" @ 0x50: Uint8B;
        R10 = "R10" @ 0x58: Uint8B;
        R11 = "R11" @ 0x60: Uint8B;
        GS_BASE = "GsBase" @ 0x68: Uint8B;
        XMM0 = "Xmm0" @ 0x70: Structure("_M128A", 16);
        XMM1 = "Xmm1" @ 0x80: Structure("_M128A", 16);
        XMM2 = "Xmm2" @ 0x90: Structure("_M128A", 16);
        XMM3 = "Xmm3" @ 0xA0: Structure("_M128A", 16);
        XMM4 = "Xmm4" @ 0xB0: Structure("_M128A", 16);
        XMM5 = "Xmm5" @ 0xC0: Structure("_M128A", 16);
        FAULT_ADDRESS = "FaultAddress" @ 0xD0: Uint8B;
        DR0 = "Dr0" @ 0xD8: Uint8B;
        DR1 = "Dr1" @ 0xE0: Uint8B;
        DR2 = "Dr2" @ 0xE8: Uint8B;
        DR3 = "Dr3" @ 0xF0: Uint8B;
        DR6 = "Dr6" @ 0xF8: Uint8B;
        DR7 = "Dr7" @ 0x100: Uint8B;
        DEBUG_CONTROL = "DebugControl" @ 0x108: Uint8B;
        LAST_BRANCH_TO_RIP = "LastBranchToRip" @ 0x110: Uint8B;
        LAST_BRANCH_FROM_RIP = "LastBranchFromRip" @ 0x118: Uint8B;
        LAST_EXCEPTION_TO_RIP = "LastExceptionToRip" @ 0x120: Uint8B;
        LAST_EXCEPTION_FROM_RIP = "LastExceptionFromRip" @ 0x128: Uint8B;
        SEG_DS = "SegDs" @ 0x130: Uint2B;
        SEG_ES = "SegEs" @ 0x132: Uint2B;
        SEG_FS = "SegFs" @ 0x134: Uint2B;
        SEG_GS = "SegGs" @ 0x136: Uint2B;
        TRAP_FRAME = "TrapFrame" @ 0x138: Uint8B;
        RBX = "Rbx" @ 0x140: Uint8B;
        RDI = "Rdi" @ 0x148: Uint8B;
        RSI = "Rsi" @ 0x150: Uint8B;
        RBP = "Rbp" @ 0x158: Uint8B;
        ERROR_CODE = "ErrorCode" @ 0x160: Uint8B;
        RIP = "Rip" @ 0x168: Uint8B;
        SEG_CS = "SegCs" @ 0x170: Uint2B;
        EFLAGS = "EFlags" @ 0x178: Uint4B;
        RSP = "Rsp" @ 0x180: Uint8B;
        SEG_SS = "SegSs" @ 0x188: Uint2B;
    }
}

structure! {
    /// `KPCR` up to and including the start of its `KPRCB` (whose fields are listed at their distance from GS).
    kpcr = "_KPCR", 0x1000 {
        GDT_BASE = "GdtBase" @ 0x0: Pointer("_KGDTENTRY64");
        TSS_BASE = "TssBase" @ 0x8: Pointer("_KTSS64");
        USER_RSP = "UserRsp" @ 0x10: Uint8B;
        SELF_POINTER = "Self" @ 0x18: Pointer("_KPCR");
        CURRENT_PRCB = "CurrentPrcb" @ 0x20: Pointer("_KPRCB");
        LOCK_ARRAY = "LockArray" @ 0x28: Pointer("_KSPIN_LOCK_QUEUE");
        USED_SELF = "Used_Self" @ 0x30: Pointer("Void");
        IDT_BASE = "IdtBase" @ 0x38: Pointer("_KIDTENTRY64");
        IRQL = "Irql" @ 0x50: UChar;
        MAJOR_VERSION = "MajorVersion" @ 0x60: Uint2B;
        MINOR_VERSION = "MinorVersion" @ 0x62: Uint2B;
        STALL_SCALE_FACTOR = "StallScaleFactor" @ 0x64: Uint4B;
        KD_VERSION_BLOCK = "KdVersionBlock" @ 0x108: Pointer("Void");
        MXCSR = "Prcb.MxCsr" @ 0x180: Uint4B;
        CURRENT_THREAD = "Prcb.CurrentThread" @ 0x188: Pointer("_KTHREAD");
        NEXT_THREAD = "Prcb.NextThread" @ 0x190: Pointer("_KTHREAD");
        IDLE_THREAD = "Prcb.IdleThread" @ 0x198: Pointer("_KTHREAD");
        NESTING_LEVEL = "Prcb.NestingLevel" @ 0x1A0: UChar;
        NUMBER = "Prcb.Number" @ 0x1A4: Uint4B;
        RSP_BASE = "Prcb.RspBase" @ 0x1A8: Uint8B;
    }
}

structure! {
    /// `KTHREAD` of Windows 7.
    kthread_windows7 = "_KTHREAD", 0x368 {
        HEADER = "Header" @ 0x0: Structure("_DISPATCHER_HEADER", 0x18);
        CYCLE_TIME = "CycleTime" @ 0x18: Uint8B;
        INITIAL_STACK = "InitialStack" @ 0x28: Pointer("Void");
        STACK_LIMIT = "StackLimit" @ 0x30: Pointer("Void");
        KERNEL_STACK = "KernelStack" @ 0x38: Pointer("Void");
        APC_STATE = "ApcState" @ 0x50: Structure("_KAPC_STATE", 0x2A);
        USER_APC_PENDING = "ApcState.UserApcPending" @ 0x7A: UChar;
        TEB = "Teb" @ 0xB8: Pointer("Void");
        THREAD_FLAGS = "ThreadFlags" @ 0x100: Uint4B;
        TRAP_FRAME = "TrapFrame" @ 0x1D8: Pointer("_KTRAP_FRAME");
        FIRST_ARGUMENT = "FirstArgument" @ 0x1E0: Pointer("Void");
        PREVIOUS_MODE = "PreviousMode" @ 0x1F6: Char;
        SYSTEM_CALL_NUMBER = "SystemCallNumber" @ 0x1F8: Uint4B;
        PROCESS = "Process" @ 0x210: Pointer("_KPROCESS");
    }
}

structure! {
    /// `KTHREAD` of Windows 11.
    kthread_windows11 = "_KTHREAD", 0x480 {
        HEADER = "Header" @ 0x0: Structure("_DISPATCHER_HEADER", 0x18);
        INITIAL_STACK = "InitialStack" @ 0x28: Pointer("Void");
        STACK_LIMIT = "StackLimit" @ 0x30: Pointer("Void");
        CYCLE_TIME = "CycleTime" @ 0x48: Uint8B;
        KERNEL_STACK = "KernelStack" @ 0x58: Pointer("Void");
        THREAD_FLAGS = "ThreadFlags" @ 0x78: Uint4B;
        SYSTEM_CALL_NUMBER = "SystemCallNumber" @ 0x80: Uint4B;
        FIRST_ARGUMENT = "FirstArgument" @ 0x88: Pointer("Void");
        TRAP_FRAME = "TrapFrame" @ 0x90: Pointer("_KTRAP_FRAME");
        APC_STATE = "ApcState" @ 0x98: Structure("_KAPC_STATE", 0x2A);
        USER_APC_PENDING = "ApcState.UserApcPending" @ 0xC2: UChar;
        TEB = "Teb" @ 0xF0: Pointer("Void");
        PROCESS = "Process" @ 0x220: Pointer("_KPROCESS");
        PREVIOUS_MODE = "PreviousMode" @ 0x232: Char;
    }
}

/// `KTHREAD.ThreadFlags`: the thread has been converted to a GUI thread and uses the shadow service table.
pub const THREAD_FLAG_GUI: u32 = 0x80;

/// Distance from a trap frame's start to the address that RBP holds in the kernel.
pub const TRAP_FRAME_BIAS: u32 = 0x80;

/// `TEB.GdiBatchCount`.
pub const TEB_GDI_BATCH_COUNT: u32 = 0x1740;

/// Offsets in `KTHREAD` of the fields that the system-call path touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as the fields in the tables above")]
pub struct ThreadOffsets {
    pub initial_stack: u32,
    pub stack_limit: u32,
    pub kernel_stack: u32,
    pub user_apc_pending: u32,
    pub teb: u32,
    pub thread_flags: u32,
    pub trap_frame: u32,
    pub first_argument: u32,
    pub previous_mode: u32,
    pub system_call_number: u32,
    pub process: u32,
}

macro_rules! thread_offsets {
    ($module:ident) => {
        ThreadOffsets {
            initial_stack: $module::INITIAL_STACK,
            stack_limit: $module::STACK_LIMIT,
            kernel_stack: $module::KERNEL_STACK,
            user_apc_pending: $module::USER_APC_PENDING,
            teb: $module::TEB,
            thread_flags: $module::THREAD_FLAGS,
            trap_frame: $module::TRAP_FRAME,
            first_argument: $module::FIRST_ARGUMENT,
            previous_mode: $module::PREVIOUS_MODE,
            system_call_number: $module::SYSTEM_CALL_NUMBER,
            process: $module::PROCESS,
        }
    };
}

impl Build {
    /// `KTHREAD` of this build.
    #[must_use]
    pub const fn kthread(self) -> Structure {
        match self {
            Self::Windows7 => kthread_windows7::LAYOUT,
            Self::Windows11 => kthread_windows11::LAYOUT,
        }
    }

    /// The `KTHREAD` offsets that code generation and system-call helpers use.
    #[must_use]
    pub const fn thread_offsets(self) -> ThreadOffsets {
        match self {
            Self::Windows7 => thread_offsets!(kthread_windows7),
            Self::Windows11 => thread_offsets!(kthread_windows11),
        }
    }

    /// Every structure that is known for this build, for a debugger's `dt`.
    #[must_use]
    pub const fn structures(self) -> [Structure; 3] {
        [kpcr::LAYOUT, self.kthread(), ktrap_frame::LAYOUT]
    }
}
