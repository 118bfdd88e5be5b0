//! What one instruction reads, writes and can do, as the data-flow analysis and the code generator see it.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
    RflagsBits,
};
use lstar_arch::cpuid::Features;

/// A set of registers: GPRs in bits 0 to 15 by encoding, XMM0 to XMM15 in bits 16 to 31, the upper halves of YMM0 to YMM15
/// in bits 32 to 47.
pub(crate) type RegSet = u64;

/// First bit of the XMM registers in a [`RegSet`].
pub(crate) const XMM_BITS: usize = 16;
/// First bit of the YMM registers' upper halves in a [`RegSet`].
pub(crate) const HIGH_BITS: usize = 32;
/// All upper halves.
const ALL_HIGH: RegSet = 0xFFFF << HIGH_BITS;

/// A set of status flags in iced-x86's bit positions, which all code in this crate uses as flag indices.
pub(crate) type FlagSet = u8;

/// Index of OF in a [`FlagSet`].
pub(crate) const OF: usize = RflagsBits::OF.trailing_zeros() as usize;
/// Index of SF in a [`FlagSet`].
pub(crate) const SF: usize = RflagsBits::SF.trailing_zeros() as usize;
/// Index of ZF in a [`FlagSet`].
pub(crate) const ZF: usize = RflagsBits::ZF.trailing_zeros() as usize;
/// Index of AF in a [`FlagSet`].
pub(crate) const AF: usize = RflagsBits::AF.trailing_zeros() as usize;
/// Index of CF in a [`FlagSet`].
pub(crate) const CF: usize = RflagsBits::CF.trailing_zeros() as usize;
/// Index of PF in a [`FlagSet`].
pub(crate) const PF: usize = RflagsBits::PF.trailing_zeros() as usize;
/// All six status flags.
pub(crate) const ALL_FLAGS: FlagSet = 0x3F;
/// Number of status flags.
pub(crate) const FLAG_COUNT: usize = 6;

/// How an instruction changes status flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagWrite {
    /// Not at all, or it surely gives these a (possibly undefined) value and keeps the rest.
    Sure(FlagSet),
    /// Perhaps (a shift by CL, whose count may be zero).
    Perhaps,
}

/// Effects of one instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effects {
    /// Registers whose old value matters.
    pub reads: RegSet,
    /// Registers that may change.
    pub writes: RegSet,
    /// Registers that are overwritten completely.
    pub kills: RegSet,
    /// Flags whose old value matters.
    pub flag_reads: FlagSet,
    /// Flags that change.
    pub flag_write: FlagWrite,
    /// It can fault: registers and flags must be in the block before it, or at a checkpoint before it.
    pub faults: bool,
    /// It changes guest memory, or something else that executing it again would change again.
    pub stores: bool,
    /// It can change MXCSR.
    pub calculates: bool,
}

/// Bits of a register in a [`RegSet`]: two for a YMM register (or a ZMM register, of which there is no more), 0 for
/// registers that are not kept in SSA form.
pub(crate) fn register_bit(register: Register) -> RegSet {
    if register.is_gpr() {
        return 1 << register.full_register().number();
    }
    if !register.is_vector_register() || register.number() >= 16 {
        return 0;
    }
    let low = 1 << (XMM_BITS + register.number());
    if register.is_xmm() { low } else { low | high_bit(register) }
}

/// Bit of the upper half of a vector register with a number below 16.
pub(crate) fn high_bit(register: Register) -> RegSet {
    1 << (HIGH_BITS + (register.number() & 15))
}

/// Whether the instruction clears its destination whatever is in it: VPXOR and its like of a register with itself.
pub(crate) fn clears_by_xor(insn: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(insn.mnemonic(), M::Vpxor | M::Vxorps | M::Vxorpd)
        && insn.op2_kind() == OpKind::Register
        && insn.op1_register() == insn.op2_register()
}

/// The vector registers that a VEX-encoded instruction reads and replaces. Every destination is replaced in all its bits.
fn vex_registers(insn: &Instruction, reads: &mut RegSet, writes: &mut RegSet, kills: &mut RegSet) {
    match insn.mnemonic() {
        Mnemonic::Vzeroupper => {
            *reads &= 0xFFFF;
            (*writes, *kills) = (ALL_HIGH, ALL_HIGH);
        }
        _ if clears_by_xor(insn) => {}
        _ => {
            // iced-x86 reports no read where equal operands make the result a constant; the lifters look all the same.
            let sources = (1..insn.op_count()).filter(|&index| insn.op_kind(index) == OpKind::Register);
            for register in sources.map(|index| insn.op_register(index)).filter(|source| source.is_vector_register()) {
                *reads |= register_bit(register);
            }
        }
    }
}

/// Whether a write access to an XMM register replaces all of it.
fn replaces_xmm(insn: &Instruction) -> bool {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Movss | M::Movsd => insn.op1_kind() == OpKind::Memory,
        M::Movaps | M::Movups | M::Movapd | M::Movupd | M::Movdqa | M::Movdqu | M::Lddqu | M::Movd | M::Movq => true,
        M::Xorps | M::Xorpd | M::Pxor => insn.op0_register() == insn.op1_register(),
        M::Pshufd | M::Pshuflw | M::Pshufhw | M::Movddup | M::Movshdup | M::Movsldup => true,
        M::Cvtdq2ps | M::Cvtps2dq | M::Cvttps2dq | M::Cvtdq2pd | M::Cvtps2pd | M::Cvtpd2ps | M::Cvttpd2dq => true,
        _ => false,
    }
}

/// Whether the instruction shifts by a count that is only known at run time.
pub(crate) fn shifts_by_cl(insn: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(insn.mnemonic(), M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd)
        && insn.op_kind(insn.op_count().saturating_sub(1)) == OpKind::Register
}

/// Whether the instruction is CMPS or SCAS under a repeat prefix, which leaves the flags alone if RCX is zero.
fn repeats_comparison(insn: &Instruction) -> bool {
    insn.is_string_instruction()
        && (insn.has_rep_prefix() || insn.has_repne_prefix())
        && insn.rflags_modified() as FlagSet & ALL_FLAGS != 0
}

/// Whether a lifter changes the block otherwise than by registers and status flags.
fn changes_system_state(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Ldmxcsr | M::Vldmxcsr | M::Swapgs | M::Cli | M::Sti | M::Cld | M::Std)
        || matches!(mnemonic, M::Wrfsbase | M::Wrgsbase)
}

/// Whether a lifter can trap to the site for another reason than those that iced-x86 tells of.
fn checks_system_state(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Rdtsc | M::Rdtscp | M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase)
        // These behave as loads.
        || matches!(mnemonic, M::Clflush | M::Clflushopt | M::Clwb)
}

/// Whether the instruction works on the x87's registers, which are never in SSA form.
pub(crate) fn is_x87(insn: &Instruction) -> bool {
    let x87 =
        |feature: &CpuidFeature| matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387);
    insn.mnemonic() == Mnemonic::Wait || insn.cpuid_features().iter().any(x87) || is_mmx(insn)
}

/// Whether the instruction works on MMX registers, which are the x87's.
pub(crate) fn is_mmx(insn: &Instruction) -> bool {
    let names_one = (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Register && insn.op_register(op).is_mm());
    names_one || insn.mnemonic() == Mnemonic::Emms
}

/// Computes the effects of `insn`.
pub(crate) fn effects(insn: &Instruction, factory: &mut InstructionInfoFactory) -> Effects {
    let info = factory.info(insn);
    let vex = insn.encoding() == EncodingKind::VEX;
    let (mut reads, mut writes, mut kills) = (0, 0, 0);
    for used in info.used_registers() {
        let register = used.register();
        let bit = register_bit(register);
        if bit == 0 {
            continue;
        }
        let whole = if vex || !register.is_vector_register() { register.size() >= 4 } else { replaces_xmm(insn) };
        match used.access() {
            OpAccess::None | OpAccess::NoMemAccess => {}
            OpAccess::Read | OpAccess::CondRead => reads |= bit,
            OpAccess::Write if whole => {
                writes |= bit;
                kills |= bit;
            }
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
                reads |= bit;
                writes |= bit;
            }
        }
    }
    if vex {
        vex_registers(insn, &mut reads, &mut writes, &mut kills);
    }
    let memory = info.used_memory().iter().any(|used| !matches!(used.access(), OpAccess::None | OpAccess::NoMemAccess));
    let stores = info.used_memory().iter().any(|used| {
        !matches!(used.access(), OpAccess::None | OpAccess::NoMemAccess | OpAccess::Read | OpAccess::CondRead)
    });
    let x87 = is_x87(insn);
    let divides = matches!(insn.mnemonic(), Mnemonic::Div | Mnemonic::Idiv);
    // MOV to and from control and debug registers leaves the flags undefined, but not if it faults for want of privilege.
    let refused = insn.is_privileged() && insn.rflags_undefined() != 0;
    let flag_write = if shifts_by_cl(insn) || repeats_comparison(insn) {
        FlagWrite::Perhaps
    } else {
        FlagWrite::Sure(insn.rflags_modified() as FlagSet & ALL_FLAGS)
    };
    Effects {
        reads,
        writes,
        kills: kills & !reads,
        flag_reads: insn.rflags_read() as FlagSet & ALL_FLAGS,
        flag_write,
        stores: stores || x87 || changes_system_state(insn.mnemonic()),
        calculates: crate::lift::calculates(insn),
        faults: x87
            || memory
            || divides
            || refused
            || checks_system_state(insn.mnemonic())
            || insn.is_jmp_near_indirect()
            || insn.is_call_near_indirect(),
    }
}

/// The instruction as a processor with `features` executes it: without BMI1 TZCNT is BSF with an ignored prefix, without
/// LZCNT that is BSR (SDM vol. 2, TZCNT and LZCNT). Compilers emit them for any processor where both mean the same.
pub(crate) fn without_counts(mut insn: Instruction, features: Features) -> Instruction {
    let (needed, code) = match insn.code() {
        Code::Tzcnt_r16_rm16 => (Features::BMI1, Code::Bsf_r16_rm16),
        Code::Tzcnt_r32_rm32 => (Features::BMI1, Code::Bsf_r32_rm32),
        Code::Tzcnt_r64_rm64 => (Features::BMI1, Code::Bsf_r64_rm64),
        Code::Lzcnt_r16_rm16 => (Features::LZCNT, Code::Bsr_r16_rm16),
        Code::Lzcnt_r32_rm32 => (Features::LZCNT, Code::Bsr_r32_rm32),
        Code::Lzcnt_r64_rm64 => (Features::LZCNT, Code::Bsr_r64_rm64),
        _ => return insn,
    };
    if !features.contains(needed) {
        insn.set_code(code);
    }
    insn
}

/// Whether all instruction sets that `insn` belongs to are among `features` (or are part of every x86-64 processor).
pub(crate) fn available(insn: &Instruction, features: Features) -> bool {
    insn.cpuid_features().iter().all(|feature| {
        let needed = match feature {
            CpuidFeature::SSE3 => Features::SSE3,
            CpuidFeature::SSSE3 => Features::SSSE3,
            CpuidFeature::SSE4_1 => Features::SSE4_1,
            CpuidFeature::SSE4_2 => Features::SSE4_2,
            CpuidFeature::POPCNT => Features::POPCNT,
            CpuidFeature::CMPXCHG16B => Features::CX16,
            CpuidFeature::MOVBE => Features::MOVBE,
            CpuidFeature::LZCNT => Features::LZCNT,
            CpuidFeature::BMI1 => Features::BMI1,
            CpuidFeature::BMI2 => Features::BMI2,
            CpuidFeature::ADX => Features::ADX,
            CpuidFeature::AES => Features::AES,
            CpuidFeature::PCLMULQDQ => Features::PCLMUL,
            CpuidFeature::SHA => Features::SHA,
            CpuidFeature::RDTSCP => Features::RDTSCP,
            CpuidFeature::FSGSBASE => Features::FSGSBASE,
            CpuidFeature::PREFETCHW => Features::PREFETCHW,
            CpuidFeature::AVX => Features::AVX,
            CpuidFeature::AVX2 => Features::AVX2,
            CpuidFeature::FMA => Features::FMA,
            CpuidFeature::F16C => Features::F16C,
            CpuidFeature::VAES => Features::VAES,
            CpuidFeature::VPCLMULQDQ => Features::VPCLMUL,
            CpuidFeature::SSE4A => Features::SSE4A,
            CpuidFeature::RDRAND => Features::RDRAND,
            CpuidFeature::RDSEED => Features::RDSEED,
            CpuidFeature::RDPID => Features::RDPID,
            CpuidFeature::CLFLUSHOPT => Features::CLFLUSHOPT,
            CpuidFeature::CLWB => Features::CLWB,
            CpuidFeature::CLZERO => Features::CLZERO,
            _ => Features::empty(),
        };
        features.contains(needed)
    })
}
