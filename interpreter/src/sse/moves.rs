//! Data transfer (SDM vol. 1, 9.4.1, 10.4.1.1, 10.4.6, 11.4.1.1, 12.3.2).

use iced_x86::{Mnemonic, OpKind, Register};
use lstar_arch::{Exception, GuestMemory, is_canonical};

use super::lanes::{build, lane, sign_bits, with_lane};
use crate::exec::{Exec, Op};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    Some(match mnemonic {
        Mnemonic::Movaps
        | Mnemonic::Movapd
        | Mnemonic::Movups
        | Mnemonic::Movupd
        | Mnemonic::Movdqa
        | Mnemonic::Movdqu
        | Mnemonic::Lddqu
        | Mnemonic::Movntps
        | Mnemonic::Movntpd
        | Mnemonic::Movntdq
        | Mnemonic::Movntdqa => copy(ex, u128::MAX),
        Mnemonic::Movq | Mnemonic::Movntq | Mnemonic::Movq2dq | Mnemonic::Movdq2q => copy(ex, u64::MAX.into()),
        Mnemonic::Movd => copy(ex, u32::MAX.into()),
        Mnemonic::Movss => scalar(ex, u32::MAX.into()),
        Mnemonic::Movsd => scalar(ex, u64::MAX.into()),
        Mnemonic::Movlps | Mnemonic::Movlpd => half(ex, 0),
        Mnemonic::Movhps | Mnemonic::Movhpd => half(ex, 1),
        Mnemonic::Movhlps => combine(ex, |a, b| with_lane(a, 0, lane::<u64>(b, 1))),
        Mnemonic::Movlhps => combine(ex, |a, b| with_lane(a, 1, lane::<u64>(b, 0))),
        Mnemonic::Movddup => combine(ex, |_, b| build(128, |_| lane::<u64>(b, 0))),
        Mnemonic::Movsldup => combine(ex, |_, b| build(128, |index| lane::<u32>(b, index & !1))),
        Mnemonic::Movshdup => combine(ex, |_, b| build(128, |index| lane::<u32>(b, index | 1))),
        Mnemonic::Movmskps => mask(ex, sign_bits::<u32>),
        Mnemonic::Movmskpd => mask(ex, sign_bits::<u64>),
        Mnemonic::Pmovmskb => mask(ex, sign_bits::<u8>),
        Mnemonic::Maskmovdqu | Mnemonic::Maskmovq => masked_store(ex),
        Mnemonic::Emms => {
            ex.cpu.x87.valid = 0;
            Ok(())
        }
        _ => return None,
    })
}

/// MOVNTI: a plain store here, and no vector instruction: it runs whatever CR0 and CR4 say.
pub(super) fn movnti<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let value = ex.source(1)?;
    ex.write_destination(value)
}

/// Copies what `mask` selects, zero-extended into a register.
fn copy<M: GuestMemory>(ex: &mut Exec<'_, M>, mask: u128) -> Op {
    let value = ex.source(1)? & mask;
    ex.write_destination(value)?;
    if ex.vector_width() == 64 {
        ex.enter_mmx();
    }
    Ok(())
}

/// MOVSS and MOVSD: between registers the upper part of the destination stays, a load clears it.
fn scalar<M: GuestMemory>(ex: &mut Exec<'_, M>, mask: u128) -> Op {
    let mut value = ex.source(1)? & mask;
    if ex.insn.op0_kind() == OpKind::Register && ex.insn.op1_kind() == OpKind::Register {
        value |= ex.vector(ex.insn.op0_register()) & !mask;
    }
    ex.write_destination(value)
}

/// MOVLPx and MOVHPx: one quadword of the register, the other one stays.
fn half<M: GuestMemory>(ex: &mut Exec<'_, M>, index: u32) -> Op {
    if ex.insn.op0_kind() == OpKind::Register {
        let value = ex.source(1)? as u64;
        let old = ex.vector(ex.insn.op0_register());
        ex.write_destination(with_lane(old, index, value))
    } else {
        let value = lane::<u64>(ex.source(1)?, index);
        ex.write_destination(value.into())
    }
}

fn combine<M: GuestMemory>(ex: &mut Exec<'_, M>, f: fn(u128, u128) -> u128) -> Op {
    let source = ex.source(1)?;
    let old = ex.vector(ex.insn.op0_register());
    ex.write_destination(f(old, source))
}

fn mask<M: GuestMemory>(ex: &mut Exec<'_, M>, gather: fn(u128, u32) -> u64) -> Op {
    let width = ex.vector_width();
    let bits = gather(ex.source(1)?, width);
    if width == 64 {
        ex.enter_mmx();
    }
    ex.write_destination(bits.into())
}

/// MASKMOVDQU and MASKMOVQ: only the selected bytes count as accessed, and none is written when one of them faults.
pub(crate) fn masked_store<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let width = ex.vector_width();
    let data = ex.vector(ex.insn.op1_register());
    let selected = sign_bits::<u8>(ex.vector(ex.insn.op2_register()), width);
    let (pointer, limit) = match ex.insn.op0_kind() {
        OpKind::MemorySegRDI => (Register::RDI, u64::MAX),
        OpKind::MemorySegEDI => (Register::EDI, 0xFFFF_FFFF),
        _ => (Register::DI, 0xFFFF_FFFF),
    };
    let base = ex.segment_base(ex.insn.memory_segment()).wrapping_add(ex.gpr(pointer));
    let linear = if ex.cpu.is_64bit() { base } else { base & limit };
    let privilege = ex.cpu.privilege();
    let bytes = (0..width / 8).filter(|index| selected >> index & 1 != 0);
    for index in bytes.clone() {
        let address = linear.wrapping_add(index.into());
        if !is_canonical(address) {
            return Err(ex.non_canonical());
        }
        ex.mem.probe_write(address, 1, privilege).map_err(Exception::from)?;
    }
    for index in bytes {
        ex.store(linear.wrapping_add(index.into()), [lane::<u8>(data, index)])?;
    }
    if width == 64 {
        ex.enter_mmx();
    }
    Ok(())
}
