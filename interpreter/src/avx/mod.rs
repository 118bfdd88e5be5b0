//! AVX, AVX2, FMA, F16C, VAES and VPCLMULQDQ (SDM vol. 1, chapter 14): the vector instructions in VEX encoding.
//!
//! A 256-bit register is two 128-bit lanes, [`Vector`]. Where an instruction is its legacy counterpart with a
//! destination of its own, lane by lane, the operation comes from the tables of [`crate::sse`]; the rest is here, a file
//! per group. Three things differ from the legacy forms throughout: a result of 128 bits clears the upper half of its
//! register, memory operands need no alignment unless the mnemonic says so, and the operating system must have enabled
//! the state (CR4.OSXSAVE, XCR0).

mod convert;
mod counterparts;
mod float;
mod fma;
mod integer;
mod memory;
mod moves;
mod permute;

use iced_x86::{CpuidFeature, EncodingKind, OpKind, Register};
use lstar_arch::control::{cr0, cr4};
use lstar_arch::cpuid::Features;
use lstar_arch::{Exception, GuestMemory};

use crate::exec::{Exec, Op};

/// The lanes of a YMM register, low one first.
type Vector = [u128; 2];

/// XCR0: SSE and AVX state.
const XCR0_AVX: u64 = 6;

/// Executes a VEX-encoded vector instruction; `None` when it is none of those implemented here.
pub(crate) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Option<Op> {
    if ex.insn.encoding() != EncodingKind::VEX {
        return None;
    }
    let required = required_features(ex)?;
    if let Err(exception) = check_available(ex, required) {
        return Some(Err(exception));
    }
    let mnemonic = ex.insn.mnemonic();
    moves::execute(ex, mnemonic)
        .or_else(|| integer::execute(ex, mnemonic))
        .or_else(|| permute::execute(ex, mnemonic))
        .or_else(|| float::execute(ex, mnemonic))
        .or_else(|| fma::execute(ex, mnemonic))
        .or_else(|| convert::execute(ex, mnemonic))
        .or_else(|| memory::execute(ex, mnemonic))
}

/// The CPUID features that the instruction needs; `None` when it belongs to another group.
fn required_features<M: GuestMemory>(ex: &Exec<'_, M>) -> Option<Features> {
    ex.insn.cpuid_features().iter().try_fold(Features::empty(), |required, feature| {
        Some(required.union(match feature {
            CpuidFeature::AVX => Features::AVX,
            CpuidFeature::AVX2 => Features::AVX2,
            CpuidFeature::FMA => Features::FMA,
            CpuidFeature::F16C => Features::F16C,
            CpuidFeature::AES => Features::AES,
            CpuidFeature::PCLMULQDQ => Features::PCLMUL,
            CpuidFeature::VAES => Features::VAES,
            CpuidFeature::VPCLMULQDQ => Features::VPCLMUL,
            _ => return None,
        }))
    })
}

/// The conditions that hold for every instruction here (SDM vol. 2, 2.6 and vol. 1, 14.3). The decoder has refused LOCK,
/// 66, F2, F3 and REX in front of a VEX prefix.
fn check_available<M: GuestMemory>(ex: &Exec<'_, M>, required: Features) -> Op {
    let cpu = &*ex.cpu;
    let enabled = cpu.cr4 & cr4::OSXSAVE != 0 && cpu.xcr0 & XCR0_AVX == XCR0_AVX;
    if !cpu.model.features.contains(required) || !enabled {
        return Err(Exception::UD);
    }
    if cpu.cr0 & cr0::TS != 0 { Err(Exception::NM) } else { Ok(()) }
}

/// How many lanes an instruction works on: two if one of its operands is a YMM register or as long.
fn lanes<M: GuestMemory>(ex: &Exec<'_, M>) -> usize {
    let wide = |op| ex.insn.op_kind(op) == OpKind::Register && ex.insn.op_register(op).is_ymm();
    if (0..ex.insn.op_count()).any(wide) || ex.insn.memory_size().size() == 32 { 2 } else { 1 }
}

/// `f` for each of the first `count` lanes; a lane that is not computed is zero.
fn each(count: usize, mut f: impl FnMut(usize) -> u128) -> Vector {
    [f(0), if count == 2 { f(1) } else { 0 }]
}

impl<M: GuestMemory> Exec<'_, M> {
    /// An XMM (upper lane zero), YMM or general-purpose register.
    fn ymm(&self, register: Register) -> Vector {
        if !register.is_xmm() && !register.is_ymm() {
            return [self.gpr(register).into(), 0];
        }
        let join = |[low, high]: [u64; 2]| u128::from(low) | u128::from(high) << 64;
        let number = register.number() & 15;
        [join(self.cpu.xmm[number]), if register.is_ymm() { join(self.cpu.ymm_high[number]) } else { 0 }]
    }

    /// Writes a whole YMM register, whichever of its names is given.
    fn set_ymm(&mut self, register: Register, [low, high]: Vector) {
        let split = |lane: u128| [lane as u64, (lane >> 64) as u64];
        let number = register.number() & 15;
        self.cpu.xmm[number] = split(low);
        self.cpu.ymm_high[number] = split(high);
    }

    /// Writes a register as wide as its name says, the rest of it stays.
    fn set_lanes(&mut self, register: Register, [low, high]: Vector) {
        let upper = if register.is_ymm() { high } else { self.ymm(wide_name(register))[1] };
        self.set_ymm(register, [low, upper]);
    }

    /// Writes operand 0, a vector register.
    fn set_result(&mut self, value: Vector) -> Op {
        self.set_ymm(self.insn.op0_register(), value);
        Ok(())
    }

    /// A source operand: a register, or memory of the size that the instruction implies, zero-extended.
    fn wide_source(&mut self, op: u32) -> Result<Vector, Exception> {
        if self.insn.op_kind(op) == OpKind::Register {
            return Ok(self.ymm(self.insn.op_register(op)));
        }
        let linear = self.linear_address();
        Ok(match self.insn.memory_size().size() {
            1 => [self.load::<1>(linear)?[0].into(), 0],
            2 => [u16::from_le_bytes(self.load(linear)?).into(), 0],
            4 => [u32::from_le_bytes(self.load(linear)?).into(), 0],
            8 => [u64::from_le_bytes(self.load(linear)?).into(), 0],
            16 => [u128::from_le_bytes(self.load(linear)?), 0],
            _ => split_lanes(self.load(linear)?),
        })
    }

    /// Writes operand 0: a register, or as much as the memory operand holds.
    fn write_wide(&mut self, value: Vector) -> Op {
        let register = self.insn.op0_register();
        if self.insn.op0_kind() == OpKind::Register {
            if register.is_gpr() {
                self.set_gpr(register, value[0] as u64);
            } else {
                self.set_ymm(register, value);
            }
            return Ok(());
        }
        let linear = self.linear_address();
        let [low, high] = value;
        match self.insn.memory_size().size() {
            1 => self.store(linear, (low as u8).to_le_bytes()),
            2 => self.store(linear, (low as u16).to_le_bytes()),
            4 => self.store(linear, (low as u32).to_le_bytes()),
            8 => self.store(linear, (low as u64).to_le_bytes()),
            16 => self.store(linear, low.to_le_bytes()),
            _ => {
                let mut bytes = [0; 32];
                bytes[..16].copy_from_slice(&low.to_le_bytes());
                bytes[16..].copy_from_slice(&high.to_le_bytes());
                self.store(linear, bytes)
            }
        }
    }
}

/// The YMM register that an XMM register is part of.
fn wide_name(register: Register) -> Register {
    Register::YMM0 + (register.number() & 15) as u32
}

fn split_lanes(bytes: [u8; 32]) -> Vector {
    let [low, high] = [0, 16].map(|at| u128::from_le_bytes(std::array::from_fn(|i| bytes[at + i])));
    [low, high]
}

/// Element `index` of the whole vector, of `bits` bits (at most 64), zero-extended.
fn element([low, high]: Vector, bits: u32, index: u32) -> u64 {
    let at = index * bits;
    let lane = if at < 128 { low } else { high };
    (lane >> (at % 128)) as u64 & (u64::MAX >> (64 - bits))
}

/// The vector with element `index` replaced by the low `bits` bits of `value`.
fn with_element(mut vector: Vector, bits: u32, index: u32, value: u64) -> Vector {
    let at = index * bits;
    let mask = u128::from(u64::MAX >> (64 - bits));
    let lane = &mut vector[usize::from(at >= 128)];
    *lane = *lane & !(mask << (at % 128)) | (u128::from(value) & mask) << (at % 128);
    vector
}

/// A vector of `count` elements of `bits` bits, the rest zero.
fn elements(count: u32, bits: u32, mut f: impl FnMut(u32) -> u64) -> Vector {
    (0..count).fold([0; 2], |vector, index| with_element(vector, bits, index, f(index)))
}
