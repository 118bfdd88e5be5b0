//! AES, carry-less multiplication and SHA (SDM vol. 1, 12.13, 12.14 and 5.23), by host operations.

use cranelift_codegen::ir::{InstBuilder, Value, types};
use iced_x86::{Instruction, Mnemonic, Register};

use super::sse_shuffle::picked;
use super::{Lifter, base, first_source, last_source, only_if};
use crate::emit::{Emitter, Halves, Lifted, is_wide};
use crate::host_op::HostOp;

fn operation(mnemonic: Mnemonic) -> Option<HostOp> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Aesenc => HostOp::Aesenc,
        M::Aesenclast => HostOp::Aesenclast,
        M::Aesdec => HostOp::Aesdec,
        M::Aesdeclast => HostOp::Aesdeclast,
        M::Sha1msg1 => HostOp::Sha1msg1,
        M::Sha1msg2 => HostOp::Sha1msg2,
        M::Sha1nexte => HostOp::Sha1nexte,
        M::Sha256msg1 => HostOp::Sha256msg1,
        M::Sha256msg2 => HostOp::Sha256msg2,
        _ => return None,
    })
}

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Aesimc => inverse_mix,
        M::Aeskeygenassist => key_assist,
        M::Pclmulqdq => multiply,
        M::Sha1rnds4 => sha1_rounds,
        M::Sha256rnds2 => sha256_rounds,
        _ => {
            operation(mnemonic)?;
            binary
        }
    })
}

fn binary(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let Some(op) = operation(base(insn)) else { return only_if(false) };
    apply(e, insn, op, |_, half, _| half)
}

/// `op` of first and last source, after `prepare` on each half, which is told whether it is the last source's.
fn apply(
    e: &mut Emitter<'_>,
    insn: &Instruction,
    op: HostOp,
    mut prepare: impl FnMut(&mut Emitter<'_>, Value, bool) -> Value,
) -> Lifted {
    only_if(e.host_has(op.feature()))?;
    let wide = is_wide(insn);
    let b = e.halves(insn, last_source(insn), types::I64X2, wide)?;
    let a = e.halves(insn, first_source(insn), types::I64X2, wide)?;
    let a = a.map(|half| prepare(e, half, false));
    let b = b.map(|half| prepare(e, half, true));
    let low = e.host_op(op, &[a.low, b.low])?;
    let high = match (a.high, b.high) {
        (Some(a), Some(b)) => Some(e.host_op(op, &[a, b])?),
        _ => None,
    };
    e.set_halves(insn.op0_register(), Halves { low, high });
    Ok(())
}

fn inverse_mix(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_aligned(insn, 1, types::I8X16)?;
    let result = e.host_op(HostOp::Aesimc, &[value])?;
    e.set_xmm(insn.op0_register(), result);
    Ok(())
}

/// AESKEYGENASSIST: the round constant is added to the doublewords 1 and 3.
fn key_assist(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let value = e.read_aligned(insn, 1, types::I8X16)?;
    let result = e.host_op(HostOp::Aeskeygen, &[value])?;
    let constant = insn.immediate8();
    let constant = e.constant_vector(types::I8X16, std::array::from_fn(|at| if at % 8 == 4 { constant } else { 0 }));
    let result = e.b.ins().bxor(result, constant);
    e.set_xmm(insn.op0_register(), result);
    Ok(())
}

/// PCLMULQDQ: bits 0 and 4 of the immediate choose a quadword of each source.
fn multiply(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let control = insn.immediate8();
    apply(e, insn, HostOp::Pclmul, |e, half, last| {
        let upper = control >> if last { 4 } else { 0 } & 1 != 0;
        if upper { picked(e, half, half, &[1, 1]) } else { half }
    })
}

fn sha1_rounds(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let op = [HostOp::Sha1rnds0, HostOp::Sha1rnds1, HostOp::Sha1rnds2, HostOp::Sha1rnds3];
    apply(e, insn, op[usize::from(insn.immediate8() & 3)], |_, half, _| half)
}

fn sha256_rounds(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    only_if(e.host_has(HostOp::Sha256rnds2.feature()))?;
    let source = e.read_aligned(insn, 1, types::I8X16)?;
    let destination = e.xmm(insn.op0_register(), types::I8X16);
    let keys = e.xmm(Register::XMM0, types::I8X16);
    let result = e.host_op(HostOp::Sha256rnds2, &[keys, source, destination])?;
    e.set_xmm(insn.op0_register(), result);
    Ok(())
}
