//! The border between Rust and translated code: the way in, the landing pad for faults, and the stubs.
//!
//! [`enter`] saves the host's callee-saved registers and MXCSR, remembers its stack pointer in the block's
//! `recovery_rsp`, loads the pinned register and the guest's MXCSR, and calls. A fault in translated code resumes at
//! [`landing_address`] with that stack pointer and [`FAULT`] as result: translated frames hold nothing that would need
//! unwinding, and Rust frames are never skipped, because each of them that runs guest code goes through its own `enter`.
//! On the way out the guest's x87 state, if it is in the host's x87, moves to the block.
#![expect(unsafe_code, reason = "assembly, and calls of translated code")]

use std::arch::global_asm;
use std::mem::offset_of;

use lstar_arch::CpuState;
use lstar_translator::abi::{UNWIND, VCPU_OFFSET, VcpuBlock};

/// Result of [`enter`] when a host fault ended translated code. Not canonical, so no RIP.
pub(crate) const FAULT: u64 = 0xDEAD_0000_0000_0002;

/// How a stub was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum MissKind {
    /// Through a link slot: the argument is the slot's address.
    Slot = 0,
    /// Through the target table: the argument is the RIP.
    Target = 1,
}

/// What the resolver tells a stub to do: tail-call `code` with `value` as argument, or return `value` when `code` is 0.
#[repr(C)]
pub(crate) struct Resolution {
    pub code: u64,
    pub value: u64,
}

global_asm!(
    ".balign 16",
    ".globl lstar_enter",
    ".hidden lstar_enter",
    "lstar_enter:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov rbx, rdi",
    "push qword ptr [rbx + {recovery}]",
    "sub rsp, 16",
    "stmxcsr [rsp]",
    "mov [rsp + 8], rbx",
    "mov [rbx + {recovery}], rsp",
    "mov r15, [rbx + {view_base}]",
    "ldmxcsr [rbx + {mxcsr}]",
    "mov rax, rsi",
    "mov rdi, rdx",
    "mov rsi, [rbx + {budget}]",
    "mov rdx, [rbx + {rsp}]",
    "call rax",
    "movabs rdi, {unwind}",
    "cmp rax, rdi",
    "je lstar_landing",
    "mov rbx, [rsp + 8]",
    "mov [rbx + {budget}], rcx",
    "mov [rbx + {rsp}], rdx",
    ".globl lstar_landing",
    ".hidden lstar_landing",
    "lstar_landing:",
    "mov rbx, [rsp + 8]",
    "stmxcsr [rbx + {mxcsr}]",
    "ldmxcsr [rsp]",
    "cmp qword ptr [rbx + {x87_live}], 0",
    "je 4f",
    "mov r12, rax",
    "mov rdi, rbx",
    "call {x87_leave}",
    "mov rax, r12",
    "4:",
    "add rsp, 16",
    "pop qword ptr [rbx + {recovery}]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    ".balign 16",
    ".globl lstar_miss_slot",
    ".hidden lstar_miss_slot",
    "lstar_miss_slot:",
    "mov ecx, 0",
    "jmp 2f",
    ".balign 16",
    ".globl lstar_miss_target",
    ".hidden lstar_miss_target",
    "lstar_miss_target:",
    "mov ecx, 1",
    "2:",
    "mov rax, rdx",
    "mov rdx, rcx",
    "lea rcx, [r15 + {vcpu}]",
    "mov [rcx + {budget}], rsi",
    "mov [rcx + {rsp}], rax",
    "mov rsi, rdi",
    "mov rdi, rcx",
    "sub rsp, 8",
    "call {resolve}",
    "add rsp, 8",
    "lea rcx, [r15 + {vcpu}]",
    "test rax, rax",
    "jz 3f",
    "mov rdi, rdx",
    "mov rsi, [rcx + {budget}]",
    "mov rdx, [rcx + {rsp}]",
    "jmp rax",
    "3:",
    "mov rax, rdx",
    "mov rdx, [rcx + {rsp}]",
    "mov rcx, [rcx + {budget}]",
    "ret",
    ".balign 16",
    ".globl lstar_unwind",
    ".hidden lstar_unwind",
    "lstar_unwind:",
    "movabs rax, {unwind}",
    "ret",
    recovery = const offset_of!(VcpuBlock, recovery_rsp),
    view_base = const offset_of!(VcpuBlock, view_base),
    budget = const offset_of!(VcpuBlock, budget),
    rsp = const offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, gpr) + 8 * lstar_arch::Gpr::Rsp as usize,
    mxcsr = const offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, mxcsr),
    vcpu = const VCPU_OFFSET,
    unwind = const UNWIND,
    resolve = sym crate::helpers::resolve,
    x87_live = const offset_of!(VcpuBlock, x87_live),
    x87_leave = sym crate::x87::leave_block,
);

unsafe extern "C" {
    fn lstar_enter(block: *mut VcpuBlock, code: u64, argument: u64) -> u64;
    fn lstar_landing();
    fn lstar_miss_slot();
    fn lstar_miss_target();
    fn lstar_unwind();
}

/// Runs translated code until it returns.
///
/// # Safety
/// `block` is a live block whose tables, stubs and helpers are filled in, `code` the address of a region or stub, and no
/// Rust reference to the block or to what its `context` points to is live across the call.
#[inline]
pub(crate) unsafe fn enter(block: *mut VcpuBlock, code: u64, argument: u64) -> u64 {
    // SAFETY: the caller vouches for the arguments; the assembly keeps the C calling convention.
    unsafe { lstar_enter(block, code, argument) }
}

/// Where a fault in translated code resumes.
pub(crate) fn landing_address() -> u64 {
    lstar_landing as *const () as u64
}

/// The stub that resolves link slots.
pub(crate) fn miss_slot_address() -> u64 {
    lstar_miss_slot as *const () as u64
}

/// The stub that resolves target-table misses.
pub(crate) fn miss_target_address() -> u64 {
    lstar_miss_target as *const () as u64
}

/// The stub that returns [`UNWIND`].
pub(crate) fn unwind_address() -> u64 {
    lstar_unwind as *const () as u64
}
