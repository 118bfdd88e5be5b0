//! Stores of 256 bits, which are two stores, of which either both must happen or none.
//!
//! Where they cross a page border, the last byte is written back to itself before. Stores at the same registers with other
//! displacements, which usually follow, are asked about at once.
//!
//! The lower half is stored first: stores that do not ascend, and cross cache lines, take more than twice their time on AMD's
//! Zen 3.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind};
use smallvec::SmallVec;

use super::memory::{DISPLACEMENT, Guest, Host};
use super::{Emitter, Lowering};

const PAGE: i64 = lstar_arch::PAGE_SIZE as i64;
/// Bytes of a store.
const SIZE: i64 = 32;
/// Most bytes that are asked about at once.
const MOST: i64 = 512;

/// Where stores are known to happen as a whole.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    /// The value that the bytes lie behind.
    root: Value,
    low: i64,
    high: i64,
    /// Distance between the stores of which this is known.
    step: i64,
}

/// Whether the instruction is a store of 256 bits that need not be aligned.
fn is_wide_store(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Vmovdqu | Mnemonic::Vmovups | Mnemonic::Vmovupd)
        && insn.op0_kind() == OpKind::Memory
        && insn.op1_register().is_ymm()
}

/// Whether two memory operands differ in nothing but the displacement.
fn are_neighbours(a: &Instruction, b: &Instruction) -> bool {
    a.memory_base() == b.memory_base()
        && a.memory_index() == b.memory_index()
        && a.memory_index_scale() == b.memory_index_scale()
        && a.memory_segment() == b.memory_segment()
        && !a.is_ip_rel_memory_operand()
        && !b.is_ip_rel_memory_operand()
}

impl Emitter<'_> {
    /// Before `insn` stores 256 bits at `host`, the lower half first: sees to it that either both halves are stored or none.
    pub(super) fn prepare_wide_store(&mut self, insn: &Instruction, host: Host) {
        let Guest::Value(guest) = host.guest else {
            return self.touch_constant(host);
        };
        let (root, offset) = self.root(guest);
        let offset = offset + i64::from(host.offset);
        let is_ready = |ready: &Ready| {
            let inside = ready.low <= offset && offset + SIZE <= ready.high;
            ready.root == root && inside && (offset - ready.low) % ready.step == 0
        };
        if self.local.ready.iter().any(is_ready) {
            return;
        }
        let mut others = self.wide_stores_behind(insn);
        let is_near = |distance: &mut i64| DISPLACEMENT.contains(&(i64::from(host.offset) + *distance));
        others.retain(is_near);
        let low = others.iter().copied().fold(0, i64::min);
        let high = others.iter().copied().fold(0, i64::max) + SIZE;
        // Multiples of the size never cross.
        let may_be_aligned = others.iter().all(|distance| distance % SIZE == 0);
        let step = if may_be_aligned { SIZE } else { 1 };
        self.local.ready.push(Ready { root, low: offset + low, high: offset + high, step });

        let address = self.b.ins().iadd_imm_s(guest, i64::from(host.offset));
        // Not cold blocks: there, fault sites store all that has changed.
        let [unaligned, crossing, next] = std::array::from_fn(|_| self.b.create_block());
        if may_be_aligned {
            let misalignment = self.b.ins().band_imm_u(address, SIZE - 1);
            self.b.ins().brif(misalignment, unaligned, &[], next, &[]);
        } else {
            self.b.ins().jump(unaligned, &[]);
        }
        self.b.switch_to_block(unaligned);
        self.b.seal_block(unaligned);
        let first = self.b.ins().iadd_imm_s(address, low);
        let in_page = self.b.ins().band_imm_u(first, PAGE - 1);
        let crosses = self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, in_page, PAGE - (high - low));
        self.b.ins().brif(crosses, crossing, &[], next, &[]);
        self.b.switch_to_block(crossing);
        self.b.seal_block(crossing);
        self.touch(host);
        for distance in others {
            self.touch(host.plus(distance as i32));
        }
        self.b.ins().jump(next, &[]);
        self.b.switch_to_block(next);
        self.b.seal_block(next);
    }

    /// Writes the last byte back to itself.
    fn touch(&mut self, host: Host) {
        let host = host.plus(SIZE as i32 - 1);
        let byte = self.load(types::I8, host);
        self.store(byte, host);
    }

    /// The same where the address is known.
    fn touch_constant(&mut self, host: Host) {
        let base = if let Guest::Constant(address) = host.guest { address as i64 } else { 0 };
        if (base + i64::from(host.offset)) & (PAGE - 1) > PAGE - SIZE {
            self.touch(host);
        }
    }

    /// How far from the operand of `insn`, the current instruction, stores behind it in its block store through the same registers,
    /// before these change or anything else can change what is mapped.
    fn wide_stores_behind(&self, insn: &Instruction) -> SmallVec<[i64; 8]> {
        let mut found = SmallVec::new();
        // 32-bit code's addresses wrap, so that their distance tells nothing.
        if !is_wide_store(insn) || self.is_32bit() {
            return found;
        }
        let registers = [insn.memory_base(), insn.memory_index()].map(crate::effects::register_bit);
        let registers = registers[0] | registers[1];
        let behind =
            self.region.blocks[self.index].insns.iter().skip_while(|other| other.raw.ip() != insn.ip()).skip(1);
        for other in behind {
            if !matches!(other.lowering, Lowering::Lift(_)) || other.effects.writes & registers != 0 {
                break;
            }
            if is_wide_store(&other.raw) && are_neighbours(insn, &other.raw) {
                let from = insn.memory_displacement64() as i64;
                let distance = (other.raw.memory_displacement64() as i64).wrapping_sub(from);
                if (SIZE - MOST..=MOST - SIZE).contains(&distance) {
                    found.push(distance);
                }
            }
        }
        let spread = |distances: &[i64]| {
            let low = distances.iter().copied().fold(0, i64::min);
            distances.iter().copied().fold(0, i64::max) - low
        };
        if spread(&found) > MOST - SIZE {
            found.retain(|distance| *distance >= 0);
        }
        found
    }
}
