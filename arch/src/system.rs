//! System instructions, with all conditions of the manuals (SDM vol. 2; APM vol. 3).
//!
//! Convention: when a function is called, `cpu.rip` is the address of the **next** instruction. On success it is left
//! there unless the instruction transfers control, which then sets RIP, CPL and segments. On `Err` nothing but memory
//! bits that hardware sets too (accessed, busy) has changed, and the caller points RIP back at the instruction.
//! Memory operands are linear addresses; those of compatibility mode are already truncated.
//!
//! | module | instructions |
//! |---|---|
//! | [`fast_call`] | SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS |
//! | [`flags`] | CLI, STI, PUSHF, POPF |
//! | [`registers`] | MOV CR/DR, CLTS, LMSW, SMSW, INVLPG, HLT, XGETBV, XSETBV, RDTSC(P), RDPMC, RDPID, RDMSR, WRMSR, RD/WRFSBASE, CPUID |
//! | [`tables`] | LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR, LAR, LSL, VERR, VERW |
//! | [`transfer`] | MOV/POP to a segment register, far JMP, CALL and RET, IRET |

pub mod fast_call;
pub mod flags;
pub mod registers;
pub mod tables;
pub mod transfer;

pub use fast_call::{FastCall, swapgs, syscall, sysenter, sysexit, sysret};
pub use flags::{cli, popf, pushf, sti};
pub use registers::{
    TSC_PER_INSTRUCTION, clts, cpuid, hlt, invlpg, lmsw, mov_from_cr, mov_from_dr, mov_to_cr, mov_to_dr, rdbase, rdmsr,
    rdpid, rdpmc, rdtsc, rdtscp, smsw, wrbase, wrmsr, xgetbv, xsetbv,
};
pub use tables::{lar, lgdt, lidt, lldt, lsl, ltr, sgdt, sidt, sldt, str, verr, verw};
pub use transfer::{far_call, far_jmp, far_ret, iret, load_segment};

use crate::control::cr4;
use crate::exception::Exception;
use crate::state::CpuState;

/// Operand size of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperandSize {
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

impl OperandSize {
    /// Size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// All bits of an operand of this size.
    #[must_use]
    pub const fn mask(self) -> u64 {
        match self {
            Self::Word => 0xFFFF,
            Self::Dword => 0xFFFF_FFFF,
            Self::Qword => u64::MAX,
        }
    }
}

/// #GP(0) unless CPL is 0.
fn require_cpl0(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.cpl == 0 { Ok(()) } else { Err(Exception::GP0) }
}

/// #GP(0) where CR4.UMIP keeps user code from reading system state.
fn require_no_umip(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.cpl > 0 && cpu.cr4 & cr4::UMIP != 0 { Err(Exception::GP0) } else { Ok(()) }
}

/// `exception` unless `condition`.
fn require(condition: bool, exception: Exception) -> Result<(), Exception> {
    if condition { Ok(()) } else { Err(exception) }
}
