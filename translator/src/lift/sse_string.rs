//! String comparisons of SSE4.2 (SDM vol. 1, 12.10.4), by host operations.

use cranelift_codegen::ir::{InstBuilder, Value, types};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::{Lifter, base};
use crate::emit::{Emitter, Lifted, NotLifted};
use crate::host_op::StringOp;

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    operation(mnemonic).map(|_| compare as Lifter)
}

fn operation(mnemonic: Mnemonic) -> Option<StringOp> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Pcmpistri => StringOp::ImplicitIndex,
        M::Pcmpistrm => StringOp::ImplicitMask,
        M::Pcmpestri | M::Pcmpestri64 => StringOp::ExplicitIndex,
        M::Pcmpestrm | M::Pcmpestrm64 => StringOp::ExplicitMask,
        _ => return None,
    })
}

/// The length in EAX or RAX, EDX or RDX, as a signed 64-bit number.
fn length(e: &mut Emitter<'_>, narrow: Register, wide: Register, is_wide: bool) -> Value {
    if is_wide {
        return e.gpr(wide);
    }
    let value = e.gpr(narrow);
    e.b.ins().sextend(types::I64, value)
}

/// Memory operands need no alignment, in the legacy form neither.
fn compare(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    use StringOp as S;
    let op = operation(base(insn)).ok_or(NotLifted)?;
    let b = match insn.op1_kind() {
        OpKind::Memory => {
            let host = e.address(insn)?;
            e.load(types::I8X16, host)
        }
        _ => e.xmm(insn.op1_register(), types::I8X16),
    };
    let a = e.xmm(insn.op0_register(), types::I8X16);
    let mut arguments = vec![a, b];
    if matches!(op, S::ExplicitIndex | S::ExplicitMask) {
        let wide = matches!(insn.code(), Code::Pcmpestri64_xmm_xmmm128_imm8 | Code::Pcmpestrm64_xmm_xmmm128_imm8)
            || matches!(insn.code(), Code::VEX_Vpcmpestri64_xmm_xmmm128_imm8 | Code::VEX_Vpcmpestrm64_xmm_xmmm128_imm8);
        arguments.push(length(e, Register::EAX, Register::RAX, wide));
        arguments.push(length(e, Register::EDX, Register::RDX, wide));
    }
    let results = e.string_op(op, insn.immediate8(), &arguments)?;
    let packed = if matches!(op, S::ImplicitMask | S::ExplicitMask) {
        e.set_xmm(Register::XMM0, results[0]);
        if crate::emit::is_vex(insn) {
            e.clear_high(Register::XMM0);
        }
        results[1]
    } else {
        let index = e.b.ins().band_imm_u(results[0], 0xFF);
        e.set_gpr64(1, index);
        results[0]
    };
    let word = e.b.ins().ushr_imm_u(packed, 8);
    e.set_status_word(word);
    Ok(())
}
