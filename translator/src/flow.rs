//! Where control goes from a single instruction, and what may be asked about code: common to regions and inlined functions.

use iced_x86::{Code, FlowControl, Instruction, OpKind, Register};
use lstar_arch::cpuid::Features;
use rustc_hash::FxHashSet;

use crate::abi::{Helper, Mode};
use crate::effects::Effects;
use crate::lift;

/// What discovery needs to know besides the code.
pub(crate) struct Limits<'a> {
    /// Most instructions.
    pub max_instructions: usize,
    /// Whether CALL is a host call.
    pub host_calls: bool,
    /// Available instruction sets.
    pub features: Features,
    /// See [`crate::TranslatorConfig`].
    pub known_targets: bool,
    /// See [`crate::TranslatorConfig`].
    pub executed_only: bool,
    /// See [`crate::TranslatorConfig`].
    pub look_ahead: bool,
    /// See [`crate::TranslatorConfig`].
    pub inline_leaves: bool,
    /// See [`crate::TranslatorConfig`].
    pub inline_system_calls: bool,
    /// Addresses of instructions whose lifter has declined.
    pub declined: &'a FxHashSet<u64>,
}

/// How an instruction ends its block, before targets are known to be in the region.
pub(crate) enum Flow {
    Next,
    Jump(u64),
    Branch(u64),
    IndirectJump,
    Call,
    Return,
    Helper(Helper, [u64; 2]),
}

/// How `insn` ends its block, if it does.
pub(crate) fn flow(insn: &Instruction, mode: Mode) -> Flow {
    let rip = insn.ip();
    if has_16bit_address(insn) {
        return match insn.flow_control() {
            FlowControl::Next if !lift::system::leaves(insn, mode) => Flow::Next,
            _ => Flow::Helper(Helper::InterpretJump, [rip, 0]),
        };
    }
    // With an operand-size prefix, 32-bit code branches within the first 64 KiB.
    let branch = if mode.is_32bit() { OpKind::NearBranch32 } else { OpKind::NearBranch64 };
    let near = insn.op_count() > 0 && insn.op0_kind() == branch;
    match insn.flow_control() {
        FlowControl::UnconditionalBranch if near => Flow::Jump(insn.near_branch_target()),
        FlowControl::ConditionalBranch if near && lift::control_flow::has_condition(insn) => {
            Flow::Branch(insn.near_branch_target())
        }
        FlowControl::Call if near => Flow::Call,
        FlowControl::IndirectCall if matches!(insn.code(), Code::Call_rm64 | Code::Call_rm32) => Flow::Call,
        FlowControl::IndirectBranch if matches!(insn.code(), Code::Jmp_rm64 | Code::Jmp_rm32) => Flow::IndirectJump,
        FlowControl::Return => match insn.code() {
            Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnd_imm16 => Flow::Return,
            Code::Iretq => Flow::Helper(Helper::Iret, [rip, 0]),
            Code::Sysretq => Flow::Helper(Helper::Sysret, [rip, 8]),
            Code::Sysretd => Flow::Helper(Helper::Sysret, [rip, 4]),
            _ => Flow::Helper(Helper::InterpretJump, [rip, 0]),
        },
        // The helper takes the instruction for two bytes long; with a prefix it is the interpreter's.
        FlowControl::Call if insn.code() == Code::Syscall && insn.len() == 2 && !mode.is_32bit() => {
            if mode == Mode::User {
                return Flow::Next;
            }
            Flow::Helper(Helper::Syscall, [insn.next_ip(), 0])
        }
        FlowControl::Next if !lift::system::leaves(insn, mode) => Flow::Next,
        FlowControl::Call if insn.code() == Code::Vmcall && mode == Mode::Kernel => Flow::Next,
        _ => Flow::Helper(Helper::InterpretJump, [rip, 0]),
    }
}

/// Whether the memory operand has a 16-bit address, which only 32-bit code can have: such instructions are the interpreter's.
pub(crate) fn has_16bit_address(insn: &Instruction) -> bool {
    let memory = insn.op_kinds().any(|kind| kind == OpKind::Memory);
    memory && (insn.memory_displ_size() == 2 || insn.memory_base().is_gpr16() || insn.memory_index().is_gpr16())
}

/// Whether the instruction writes through CS, which faults outside of 64-bit mode.
pub(crate) fn writes_code_segment(insn: &Instruction, effects: &Effects, mode: Mode) -> bool {
    mode.is_32bit() && effects.stores && insn.memory_segment() == Register::CS
}
