//! LDMXCSR and STMXCSR (SDM vol. 1, 10.4.3). In translated code the host's MXCSR is the guest's.

use cranelift_codegen::ir::{InstBuilder, types};
use iced_x86::{Instruction, Mnemonic};

use super::Lifter;
use crate::abi::Helper;
use crate::emit::{Emitter, Lifted, NotLifted};

/// MXCSR bits that may be set.
const MXCSR_MASK: i64 = 0xFFFF;
/// Masks of the exceptions (IM, DM, ZM, OM, UM, PM).
const EXCEPTION_MASKS: i64 = 0x1F80;

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    Some(match mnemonic {
        Mnemonic::Ldmxcsr => ldmxcsr,
        Mnemonic::Stmxcsr => stmxcsr,
        _ => return None,
    })
}

/// Nothing orders floating-point operations of the code generator, which are pure to it, with a change of MXCSR. So these
/// lifters serve regions without such operations, above all system-call entries and exits.
fn only_without_arithmetic(e: &Emitter<'_>) -> Lifted {
    use Mnemonic as M;
    let harmless = |insn: &Instruction| {
        matches!(
            insn.mnemonic(),
            M::Movaps | M::Movups | M::Movapd | M::Movupd | M::Movdqa | M::Movdqu | M::Movd | M::Movq | M::Pxor
        ) || !(0..insn.op_count()).any(|operand| insn.op_register(operand).is_xmm())
    };
    if e.instructions().all(harmless) { Ok(()) } else { Err(NotLifted) }
}

fn ldmxcsr(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_without_arithmetic(e)?;
    let host = e.address(insn)?;
    let value = e.load(types::I32, host);
    // Reserved bits fault, and with an exception unmasked translated code must not go on: the interpreter decides.
    let masked = e.b.ins().bxor_imm_u(value, EXCEPTION_MASKS);
    let refused = e.b.ins().band_imm_u(masked, !MXCSR_MASK & 0xFFFF_FFFF | EXCEPTION_MASKS);
    e.trap_if(refused);
    let value = e.b.ins().uextend(types::I64, value);
    e.call_helper(Helper::LoadMxcsr, &[value]);
    Ok(())
}

fn stmxcsr(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_without_arithmetic(e)?;
    let host = e.address(insn)?;
    let nothing = e.iconst(types::I64, 0);
    let value = e.call_helper(Helper::StoreMxcsr, &[nothing]);
    let value = e.b.ins().ireduce(types::I32, value);
    e.store(value, host);
    Ok(())
}
