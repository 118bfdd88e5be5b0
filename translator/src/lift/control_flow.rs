//! Conditions of control transfers (SDM vol. 1, 7.3.8). The transfers themselves end blocks: `crate::emit`.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use iced_x86::{ConditionCode, Instruction, Mnemonic, Register};

use crate::effects::ZF;
use crate::emit::Emitter;

/// Whether [`condition`] knows this branch.
pub(crate) fn has_condition(insn: &Instruction) -> bool {
    use Mnemonic as M;
    insn.is_jcc_short_or_near()
        || matches!(insn.mnemonic(), M::Jrcxz | M::Jecxz | M::Loop | M::Loope | M::Loopne) && counter(insn).is_some()
}

/// The counter register that JRCXZ and LOOP use, by address size.
fn counter(insn: &Instruction) -> Option<Register> {
    use iced_x86::Code as C;
    Some(match insn.code() {
        C::Jrcxz_rel8_64 | C::Loop_rel8_64_RCX | C::Loope_rel8_64_RCX | C::Loopne_rel8_64_RCX => Register::RCX,
        C::Jecxz_rel8_64 | C::Loop_rel8_64_ECX | C::Loope_rel8_64_ECX | C::Loopne_rel8_64_ECX => Register::ECX,
        C::Jecxz_rel8_32 | C::Loop_rel8_32_ECX | C::Loope_rel8_32_ECX | C::Loopne_rel8_32_ECX => Register::ECX,
        _ => return None,
    })
}

/// Emits the condition of a branch, and LOOP's decrement.
pub(crate) fn condition(e: &mut Emitter<'_>, insn: &Instruction) -> Value {
    let Some(counter) = counter(insn) else { return e.condition(insn.condition_code()) };
    let value = e.gpr(counter);
    if matches!(insn.mnemonic(), Mnemonic::Jrcxz | Mnemonic::Jecxz) {
        return e.b.ins().icmp_imm_u(IntCC::Equal, value, 0);
    }
    let less = e.b.ins().iadd_imm_s(value, -1);
    e.set_gpr(counter, less);
    let more = e.b.ins().icmp_imm_u(IntCC::NotEqual, less, 0);
    match insn.mnemonic() {
        Mnemonic::Loope => {
            let zero = e.flag(ZF);
            e.b.ins().band(more, zero)
        }
        Mnemonic::Loopne => {
            let other = e.condition(ConditionCode::ne);
            e.b.ins().band(more, other)
        }
        _ => more,
    }
}
