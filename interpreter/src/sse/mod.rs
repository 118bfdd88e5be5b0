//! MMX and SSE to SSE4.2, AES, PCLMULQDQ and SHA (SDM vol. 1, chapters 9 to 12), legacy encodings.
//!
//! [`execute`] decides whether an instruction belongs here and whether it may run at all (CPUID, CR0, CR4), then asks
//! one file per group of the manual. Registers and memory operands travel as `u128`, low lane in the low bits; MMX
//! operands use the low half. A group is a table from mnemonic to a function on such values, so that an operation is
//! written once for its MMX, register and memory forms.

pub(crate) mod convert;
pub(crate) mod crypto;
pub(crate) mod float;
pub(crate) mod integer;
pub(crate) mod lanes;
mod moves;
pub(crate) mod shuffle;
mod sse4a;
pub(crate) mod state;
pub(crate) mod string;

pub(crate) use float::order_flags;
pub(crate) use moves::masked_store;
pub(crate) use state::set_mxcsr;

use iced_x86::{CpuidFeature, EncodingKind, Mnemonic, OpKind, Register};
use lstar_arch::control::{cr0, cr4};
use lstar_arch::cpuid::Features;
use lstar_arch::{Exception, GuestMemory};

use crate::exec::{Exec, Op};

/// Executes an MMX or SSE instruction; `None` when it is none of those implemented here.
pub(crate) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Option<Op> {
    let mnemonic = ex.insn.mnemonic();
    let Some(required) = required_features(ex) else {
        return state::execute_images(ex, mnemonic);
    };
    match mnemonic {
        Mnemonic::Movnti => return Some(moves::movnti(ex)),
        // Not part of the vector state: neither CR0 nor CR4.OSFXSR concern them.
        Mnemonic::Pause
        | Mnemonic::Lfence
        | Mnemonic::Sfence
        | Mnemonic::Mfence
        | Mnemonic::Clflush
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Crc32 => return None,
        _ => {}
    }
    if let Err(exception) = check_available(ex, required) {
        return Some(Err(exception));
    }
    moves::execute(ex, mnemonic)
        .or_else(|| integer::execute(ex, mnemonic))
        .or_else(|| shuffle::execute(ex, mnemonic))
        .or_else(|| float::execute(ex, mnemonic))
        .or_else(|| convert::execute(ex, mnemonic))
        .or_else(|| state::execute(ex, mnemonic))
        .or_else(|| string::execute(ex, mnemonic))
        .or_else(|| crypto::execute(ex, mnemonic))
        .or_else(|| sse4a::execute(ex, mnemonic))
}

/// The CPUID features that the instruction needs beyond SSE2; `None` when it belongs to another group.
fn required_features<M: GuestMemory>(ex: &Exec<'_, M>) -> Option<Features> {
    if ex.insn.encoding() != EncodingKind::Legacy {
        return None;
    }
    ex.insn.cpuid_features().iter().try_fold(Features::empty(), |required, feature| {
        Some(required.union(match feature {
            CpuidFeature::MMX | CpuidFeature::SSE | CpuidFeature::SSE2 => Features::empty(),
            CpuidFeature::SSE3 => Features::SSE3,
            CpuidFeature::SSSE3 => Features::SSSE3,
            CpuidFeature::SSE4_1 => Features::SSE4_1,
            CpuidFeature::SSE4_2 => Features::SSE4_2,
            CpuidFeature::AES => Features::AES,
            CpuidFeature::PCLMULQDQ => Features::PCLMUL,
            CpuidFeature::SHA => Features::SHA,
            CpuidFeature::SSE4A => Features::SSE4A,
            _ => return None,
        }))
    })
}

/// The conditions of SDM vol. 2, 2.4 (exception types) and vol. 3, 13.2 that hold for every instruction here, in their
/// order of priority. Instructions on MMX registers also report pending x87 exceptions.
fn check_available<M: GuestMemory>(ex: &Exec<'_, M>, required: Features) -> Op {
    let cpu = &*ex.cpu;
    let unhindered =
        cpu.cr0 & (cr0::EM | cr0::TS) == 0 && cpu.cr4 & cr4::OSFXSR != 0 && cpu.x87.status & X87_ERROR_SUMMARY == 0;
    if unhindered && cpu.model.features.contains(required) && !ex.insn.has_lock_prefix() {
        return Ok(());
    }
    let mmx = ex.insn.mnemonic() == Mnemonic::Emms || names_register(ex, Register::is_mm);
    let xmm = !mmx || names_register(ex, Register::is_xmm);
    if !cpu.model.features.contains(required)
        || cpu.cr0 & cr0::EM != 0
        || xmm && cpu.cr4 & cr4::OSFXSR == 0
        || ex.insn.has_lock_prefix()
    {
        return Err(Exception::UD);
    }
    if cpu.cr0 & cr0::TS != 0 {
        return Err(Exception::NM);
    }
    if mmx && cpu.x87.status & X87_ERROR_SUMMARY != 0 {
        return Err(Exception::MF);
    }
    Ok(())
}

/// Status word bit ES: an unmasked x87 exception is pending.
const X87_ERROR_SUMMARY: u16 = 1 << 7;

/// Whether an explicit register operand is of the given kind.
fn names_register<M: GuestMemory>(ex: &Exec<'_, M>, kind: fn(Register) -> bool) -> bool {
    (0..ex.insn.op_count()).any(|op| ex.insn.op_kind(op) == OpKind::Register && kind(ex.insn.op_register(op)))
}

impl<M: GuestMemory> Exec<'_, M> {
    /// Width in bits of the vector register that operand 0 or 1 names: 64 for MMX.
    #[inline]
    fn vector_width(&self) -> u32 {
        // Operands of other kinds have no register here.
        if self.insn.op0_register().is_mm() || self.insn.op1_register().is_mm() { 64 } else { 128 }
    }

    /// Value of an XMM, MMX or general-purpose register, zero-extended.
    #[inline]
    fn vector(&self, register: Register) -> u128 {
        if register.is_xmm() {
            let [low, high] = self.cpu.xmm[register.number()];
            u128::from(low) | u128::from(high) << 64
        } else if register.is_mm() {
            let image = u128::from_le_bytes(self.cpu.x87.registers[register.number()]);
            image & u128::from(u64::MAX)
        } else {
            u128::from(self.gpr(register))
        }
    }

    /// Writes an XMM (all 128 bits; the upper half of the YMM register stays), MMX or general-purpose register.
    #[inline]
    fn set_vector(&mut self, register: Register, value: u128) {
        if register.is_xmm() {
            self.cpu.xmm[register.number()] = [value as u64, (value >> 64) as u64];
        } else if register.is_mm() {
            // The aliased x87 register becomes a NaN: sign and exponent are all ones (SDM vol. 1, 9.2.1).
            let image = value & u128::from(u64::MAX) | 0xFFFF << 64;
            self.cpu.x87.registers[register.number()] = image.to_le_bytes();
        } else {
            self.set_gpr(register, value as u64);
        }
    }

    /// Every MMX instruction but EMMS marks all registers valid and sets TOP to 0 (SDM vol. 1, 9.5.1).
    fn enter_mmx(&mut self) {
        self.cpu.x87.status &= !(7 << 11);
        self.cpu.x87.valid = 0xFF;
    }

    /// Value of a source operand, zero-extended: a register, or memory of the size that the instruction implies.
    fn source(&mut self, op: u32) -> Result<u128, Exception> {
        if self.insn.op_kind(op) == OpKind::Register {
            return Ok(self.vector(self.insn.op_register(op)));
        }
        let linear = self.linear_address();
        Ok(match self.insn.memory_size().size() {
            1 => self.load::<1>(linear)?[0].into(),
            2 => u16::from_le_bytes(self.load(linear)?).into(),
            4 => u32::from_le_bytes(self.load(linear)?).into(),
            8 => u64::from_le_bytes(self.load(linear)?).into(),
            _ => {
                self.check_aligned(linear)?;
                u128::from_le_bytes(self.load(linear)?)
            }
        })
    }

    /// Writes operand 0: a register as [`Exec::set_vector`] does, or as much of `value` as the memory operand holds.
    fn write_destination(&mut self, value: u128) -> Op {
        if self.insn.op0_kind() == OpKind::Register {
            self.set_vector(self.insn.op0_register(), value);
            return Ok(());
        }
        let linear = self.linear_address();
        match self.insn.memory_size().size() {
            1 => self.store(linear, (value as u8).to_le_bytes()),
            2 => self.store(linear, (value as u16).to_le_bytes()),
            4 => self.store(linear, (value as u32).to_le_bytes()),
            8 => self.store(linear, (value as u64).to_le_bytes()),
            _ => {
                self.check_aligned(linear)?;
                self.store(linear, value.to_le_bytes())
            }
        }
    }

    /// #GP(0) for a 16-byte operand that is not aligned, unless the instruction is one of the documented exceptions.
    fn check_aligned(&self, linear: u64) -> Op {
        let exempt = self.insn.encoding() == EncodingKind::VEX
            || matches!(
                self.insn.mnemonic(),
                Mnemonic::Movups
                    | Mnemonic::Movupd
                    | Mnemonic::Movdqu
                    | Mnemonic::Lddqu
                    | Mnemonic::Pcmpestri
                    | Mnemonic::Pcmpestri64
                    | Mnemonic::Pcmpestrm
                    | Mnemonic::Pcmpestrm64
                    | Mnemonic::Pcmpistri
                    | Mnemonic::Pcmpistrm
            );
        if exempt || linear.is_multiple_of(16) { Ok(()) } else { Err(Exception::GP0) }
    }
}
