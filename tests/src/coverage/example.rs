//! One instruction of an encoding, to be executed or translated on its own.

use iced_x86::{Code, Encoder, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register};

use crate::differential::{CODE, DATA};

/// The forms of an encoding: with registers and with memory where an operand can be either, else one. The memory operand is
/// `[rbx]`, immediates are 0; ENTER also has a nesting level.
#[must_use]
pub fn examples(code: Code) -> Vec<Vec<u8>> {
    let mut forms: Vec<Vec<u8>> = [false, true].into_iter().filter_map(|memory| example(code, memory)).collect();
    forms.dedup();
    if code.mnemonic() == Mnemonic::Enter {
        // With enclosing frames.
        let nested = forms.iter().filter_map(|form| Some([form.split_last()?.1, &[2]].concat()));
        forms = nested.chain(forms.iter().cloned()).collect();
    }
    forms
}

fn example(code: Code, memory: bool) -> Option<Vec<u8>> {
    use OpCodeOperandKind as K;
    let info = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    for i in 0..info.op_count() {
        let n = i + 1;
        let kind = match info.op_kind(i) {
            K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::mm_or_mem if memory => K::mem,
            K::xmm_or_mem | K::ymm_or_mem if memory => K::mem,
            kind => kind,
        };
        let register = match kind {
            K::r8_reg | K::r8_opcode | K::r8_or_mem => Register::AL + n,
            K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode | K::r16_or_mem => Register::AX + n,
            K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv | K::r32_or_mem => Register::EAX + n,
            K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv | K::r64_or_mem => Register::RAX + n,
            K::mm_reg | K::mm_rm | K::mm_or_mem => Register::MM0 + n,
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 | K::xmm_or_mem => Register::XMM0 + n,
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 | K::ymm_or_mem => Register::YMM0 + n,
            K::seg_reg => Register::ES,
            K::cr_reg => Register::CR0,
            K::dr_reg => Register::DR0,
            K::sti_opcode => Register::ST1,
            K::st0 => Register::ST0,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::es => Register::ES,
            K::cs => Register::CS,
            K::ss => Register::SS,
            K::ds => Register::DS,
            K::fs => Register::FS,
            K::gs => Register::GS,
            _ => Register::None,
        };
        if register != Register::None {
            insn.set_op_kind(i, OpKind::Register);
            insn.set_op_register(i, register);
            continue;
        }
        match kind {
            K::mem | K::mem_mib => {
                insn.set_op_kind(i, OpKind::Memory);
                insn.set_memory_base(Register::RBX);
            }
            K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y => {
                insn.set_op_kind(i, OpKind::Memory);
                insn.set_memory_base(Register::RBX);
                let wide = matches!(kind, K::mem_vsib32y | K::mem_vsib64y);
                insn.set_memory_index(if wide { Register::YMM7 } else { Register::XMM7 });
            }
            K::mem_offs => {
                insn.set_op_kind(i, OpKind::Memory);
                insn.set_memory_displacement64(DATA);
                insn.set_memory_displ_size(8);
            }
            K::imm4_m2z => insn.set_op_kind(i, OpKind::Immediate8),
            K::imm8 if i > 0 && matches!(insn.op_kind(i - 1), OpKind::Immediate8 | OpKind::Immediate16) => {
                insn.set_op_kind(i, OpKind::Immediate8_2nd);
            }
            K::imm8 => insn.set_op_kind(i, OpKind::Immediate8),
            K::imm8_const_1 => {
                insn.set_op_kind(i, OpKind::Immediate8);
                insn.set_immediate8(1);
            }
            K::imm8sex16 => insn.set_op_kind(i, OpKind::Immediate8to16),
            K::imm8sex32 => insn.set_op_kind(i, OpKind::Immediate8to32),
            K::imm8sex64 => insn.set_op_kind(i, OpKind::Immediate8to64),
            K::imm16 => insn.set_op_kind(i, OpKind::Immediate16),
            K::imm32 => insn.set_op_kind(i, OpKind::Immediate32),
            K::imm32sex64 => insn.set_op_kind(i, OpKind::Immediate32to64),
            K::imm64 => insn.set_op_kind(i, OpKind::Immediate64),
            K::seg_rSI => insn.set_op_kind(i, OpKind::MemorySegRSI),
            K::seg_rDI => insn.set_op_kind(i, OpKind::MemorySegRDI),
            K::es_rDI => insn.set_op_kind(i, OpKind::MemoryESRDI),
            K::seg_rBX_al => {
                insn.set_op_kind(i, OpKind::Memory);
                insn.set_memory_base(Register::RBX);
                insn.set_memory_index(Register::AL);
            }
            K::br16_1 | K::br16_2 => {
                insn.set_op_kind(i, OpKind::NearBranch16);
                insn.set_near_branch16(CODE as u16);
            }
            K::br32_1 | K::br32_4 => {
                insn.set_op_kind(i, OpKind::NearBranch32);
                insn.set_near_branch32(CODE as u32 + 2);
            }
            K::br64_1 | K::br64_4 | K::xbegin_4 => {
                insn.set_op_kind(i, OpKind::NearBranch64);
                insn.set_near_branch64(CODE + 2);
            }
            _ => return None,
        }
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&insn, CODE).ok()?;
    Some(encoder.take_buffer())
}
