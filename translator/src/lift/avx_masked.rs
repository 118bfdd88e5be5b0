//! Loads and stores under a mask (SDM vol. 1, 14.1.5 and 14.4): VMASKMOV, VPMASKMOV, gathers.
//!
//! Lanes that are masked out must not fault. Memory is protected by pages, so a vector that lies in one page can be loaded
//! whole if any lane of it is wanted; one that crosses a border goes to the interpreter. Stores are made lane by lane, since
//! what is masked out may be written by others; in one page either the first of them faults or none.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{BlockArg, InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::sse_shuffle::sign_bits;
use super::{Lifter, only_if};
use crate::emit::{Emitter, Halves, Lifted, NotLifted, is_wide};

/// Lifters of this chapter.
pub(crate) fn lifter(mnemonic: Mnemonic) -> Option<Lifter> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vmaskmovps | M::Vpmaskmovd => |e, insn| move_masked(e, insn, types::I32X4),
        M::Vmaskmovpd | M::Vpmaskmovq => |e, insn| move_masked(e, insn, types::I64X2),
        M::Vgatherdps | M::Vpgatherdd => |e, insn| gather(e, insn, types::I32, types::I32),
        M::Vgatherdpd | M::Vpgatherdq => |e, insn| gather(e, insn, types::I64, types::I32),
        M::Vgatherqps | M::Vpgatherqd => |e, insn| gather(e, insn, types::I32, types::I64),
        M::Vgatherqpd | M::Vpgatherqq => |e, insn| gather(e, insn, types::I64, types::I64),
        _ => return None,
    })
}

/// All bits of a lane where its sign is set.
fn spread_signs(e: &mut Emitter<'_>, mask: Value) -> Value {
    let zero = e.zero_vector(e.type_of(mask));
    e.b.ins().icmp(IntCC::SignedLessThan, mask, zero)
}

fn move_masked(e: &mut Emitter<'_>, insn: &Instruction, ty: Type) -> Lifted {
    let wide = is_wide(insn);
    let mask = e.halves(insn, 1, ty, wide)?;
    let host = e.address(insn)?;
    let bytes = if wide { 32 } else { 16 };
    let bits = sign_bits(e, mask);
    let (some, done) = (e.b.create_block(), e.b.create_block());
    if insn.op0_kind() == OpKind::Memory {
        let value = e.halves(insn, 2, ty, wide)?;
        e.b.ins().brif(bits, some, &[], done, &[]);
        e.b.switch_to_block(some);
        e.b.seal_block(some);
        e.trap_if_crossing(host, bytes);
        let mut at = 0;
        for half in [Some(value.low), value.high].into_iter().flatten() {
            for lane in 0..ty.lane_count() as u8 {
                let (store, next) = (e.b.create_block(), e.b.create_block());
                let wanted = e.b.ins().band_imm_u(bits, 1 << at);
                e.b.ins().brif(wanted, store, &[], next, &[]);
                e.b.switch_to_block(store);
                e.b.seal_block(store);
                let value = e.b.ins().extractlane(half, lane);
                e.store(value, host.plus(at * ty.lane_type().bytes() as i32));
                e.b.ins().jump(next, &[]);
                e.b.switch_to_block(next);
                e.b.seal_block(next);
                at += 1;
            }
        }
        e.b.ins().jump(done, &[]);
        e.b.switch_to_block(done);
        e.b.seal_block(done);
        return Ok(());
    }
    let zero = e.zero_vector(ty);
    let results: Vec<Value> = (0..if wide { 2 } else { 1 }).map(|_| e.b.append_block_param(done, ty)).collect();
    let zeros: Vec<BlockArg> = results.iter().map(|_| BlockArg::Value(zero)).collect();
    e.b.ins().brif(bits, some, &[], done, &zeros);
    e.b.switch_to_block(some);
    e.b.seal_block(some);
    e.trap_if_crossing(host, bytes);
    let low = e.load(ty, host);
    let high = wide.then(|| e.load(ty, host.plus(16)));
    let kept = mask.map(|half| spread_signs(e, half));
    let kept = Halves { low, high }.zip(kept, |value, kept| e.b.ins().band(value, kept));
    let loaded: Vec<BlockArg> = [Some(kept.low), kept.high].into_iter().flatten().map(BlockArg::Value).collect();
    e.b.ins().jump(done, &loaded);
    e.b.switch_to_block(done);
    e.b.seal_block(done);
    e.set_halves(insn.op0_register(), Halves { low: results[0], high: results.get(1).copied() });
    Ok(())
}

/// A gather of `element`s by indices of type `index`. Registers change only when all lanes have been loaded: a fault restarts
/// the instruction in the interpreter, which leaves what the manual says of those before it.
fn gather(e: &mut Emitter<'_>, insn: &Instruction, element: Type, index: Type) -> Lifted {
    let (to, mask_register, indices) = (insn.op0_register(), insn.op2_register(), insn.memory_index());
    only_if(to.number() != indices.number() && to.number() != mask_register.number())?;
    only_if(mask_register.number() != indices.number() && indices.is_vector_register())?;
    only_if(!insn.memory_base().is_gpr32() && !e.is_32bit())?;
    let elements = vector_size(to) / element.bytes();
    let count = elements.min(vector_size(indices) / index.bytes()) as u8;
    let displacement = insn.memory_displacement64() as i64;
    let base = match insn.memory_base() {
        Register::None => None,
        base => Some(e.gpr(base)),
    };
    let segment = e.segment_base_of(insn);
    let shift = i64::from(insn.memory_index_scale().trailing_zeros());
    let vector = element.by(16 / element.bytes()).ok_or(NotLifted)?;
    let old = e.halves(insn, 0, vector, elements * element.bytes() > 16)?;
    let mut parts = [old.low, old.high.unwrap_or(old.low)];
    for lane in 0..count {
        let address = lane_of(e, indices, index, lane);
        let address = if index == types::I32 { e.b.ins().sextend(types::I64, address) } else { address };
        let mut address = e.b.ins().ishl_imm_u(address, shift);
        for part in [base, segment].into_iter().flatten() {
            address = e.b.ins().iadd(address, part);
        }
        let address = e.b.ins().iadd_imm_s(address, displacement);
        let mask = lane_of(e, mask_register, element, lane);
        let zero = e.iconst(element, 0);
        let active = e.b.ins().icmp(IntCC::SignedLessThan, mask, zero);
        let loaded = e.load_if(element, active, address);
        let per_half = (16 / element.bytes()) as u8;
        let part = &mut parts[usize::from(lane / per_half)];
        let kept = e.b.ins().extractlane(*part, lane % per_half);
        let value = e.b.ins().select(active, loaded, kept);
        *part = e.b.ins().insertlane(*part, value, lane % per_half);
    }
    if u32::from(count) * element.bytes() == 8 {
        // Two quadword indices give two doublewords; the others are cleared.
        let zero = e.zero_vector(vector);
        parts[0] = super::sse_shuffle::picked(e, parts[0], zero, &[0, 1, 4, 4]);
    }
    e.clear_xmm(mask_register);
    e.clear_high(mask_register);
    e.set_halves(to, Halves { low: parts[0], high: old.high.map(|_| parts[1]) });
    Ok(())
}

fn vector_size(register: Register) -> u32 {
    register.size() as u32
}

/// Lane `lane` of a register of 128 or 256 bits.
fn lane_of(e: &mut Emitter<'_>, register: Register, ty: Type, lane: u8) -> Value {
    let per_half = (16 / ty.bytes()) as u8;
    if lane < per_half {
        return e.xmm_lane(register, ty, lane);
    }
    let vector = e.high(register, ty.by(16 / ty.bytes()).unwrap_or(types::I8X16));
    e.b.ins().extractlane(vector, lane - per_half)
}
