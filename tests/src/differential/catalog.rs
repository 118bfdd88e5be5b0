//! Which instruction encodings are tested, and which are not and why.

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Mnemonic, OpCodeOperandKind};

/// Instructions that are left out, with the reason.
pub const EXCLUDED: &[(&[Mnemonic], &str)] = {
    use Mnemonic as M;
    &[
        (
            &[M::Maskmovdqu, M::Vmaskmovdqu, M::Maskmovq],
            "the processor decides whether bytes that are masked out fault",
        ),
        (
            &[M::Cpuid, M::Rdtsc, M::Rdtscp, M::Rdpid, M::Rdrand, M::Rdseed, M::Rdpmc, M::Xgetbv, M::Rdpru],
            "the result belongs to the machine",
        ),
        (
            &[M::Syscall, M::Sysenter, M::Int, M::Int1, M::Into, M::Vmcall, M::Vmmcall, M::Vmgexit],
            "calls the system: has tests of its own",
        ),
        (
            &[
                M::Lar,
                M::Lsl,
                M::Verr,
                M::Verw,
                M::Lfs,
                M::Lgs,
                M::Lss,
                M::Sgdt,
                M::Sidt,
                M::Sldt,
                M::Str,
                M::Smsw,
                M::Rdfsbase,
                M::Rdgsbase,
                M::Wrfsbase,
                M::Wrgsbase,
            ],
            "descriptors and segment bases belong to the system",
        ),
        (
            &[M::Fnstenv, M::Fnsave, M::Fxsave, M::Fxsave64],
            "stores the addresses of the last x87 instruction and operand, which belong to vendor and system",
        ),
        (
            &[M::Fstcw, M::Fstsw, M::Fclex, M::Finit, M::Fstenv, M::Fsave, M::Fdisi, M::Feni, M::Fsetpm],
            "WAIT and another instruction",
        ),
        (&[M::Invlpga, M::Monitor, M::Mwait, M::Monitorx, M::Mwaitx], "not offered by the model"),
        (
            &[M::Jmpe, M::Loadall, M::Storeall, M::Cl1invmb, M::Ud0, M::Ud1, M::Umov],
            "not an instruction of these processors, or one with a length that vendors disagree about",
        ),
    ]
};

/// Why an encoding is left out; `None` if it is tested.
#[must_use]
pub fn reason(code: Code) -> Option<&'static str> {
    use OpCodeOperandKind as K;
    let info = code.op_code();
    if let Some((_, reason)) = EXCLUDED.iter().find(|(mnemonics, _)| mnemonics.contains(&code.mnemonic())) {
        return Some(reason);
    }
    for kind in info.op_kinds() {
        match kind {
            K::seg_reg | K::fs | K::gs | K::cs | K::ds | K::es | K::ss => {
                return Some("selectors belong to the system");
            }
            K::farbr2_2 | K::farbr4_2 | K::xbegin_2 | K::xbegin_4 => return Some("far transfer"),
            _ => {}
        }
    }
    if matches!(code, Code::Movsxd_r16_rm16) {
        return Some("reads 16 bits on Intel's processors, 32 on AMD's");
    }
    if matches!(
        code.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::Call
    ) && info.operand_size() == 16
    {
        return Some("AMD's processors truncate RIP, Intel's ignore the prefix");
    }
    if matches!(code, Code::Bswap_r16) {
        return Some("undefined result");
    }
    // Flow of control is part of the program's shape, not of its instructions.
    let plain =
        matches!(info.code().mnemonic(), Mnemonic::Int3 | Mnemonic::Ud2) || code.flow_control() == FlowControl::Next;
    (!plain).then_some("a control transfer that generated programs do not have")
}

/// Whether the host has a feature; where the host is no x86-64 it does not take part, and any will do.
macro_rules! on_host {
    ($name:tt) => {{
        #[cfg(target_arch = "x86_64")]
        let present = std::arch::is_x86_feature_detected!($name);
        #[cfg(not(target_arch = "x86_64"))]
        let present = true;
        present
    }};
}

/// Whether CPUID says on this host what no other query tells.
fn model_has(feature: CpuidFeature) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use lstar_arch::cpuid::{CpuModel, Features};
        let host = CpuModel::from_cpuid(|leaf, subleaf| {
            let result = std::arch::x86_64::__cpuid_count(leaf, subleaf);
            [result.eax, result.ebx, result.ecx, result.edx]
        });
        host.features.contains(match feature {
            CpuidFeature::CLFLUSHOPT => Features::CLFLUSHOPT,
            CpuidFeature::CLWB => Features::CLWB,
            _ => Features::CLZERO,
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = feature;
        true
    }
}

/// Whether the model, and the host if it takes part, has this instruction set.
fn is_offered(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    match feature {
        F::INTEL8086
        | F::INTEL8086_ONLY
        | F::INTEL186
        | F::INTEL286
        | F::INTEL386
        | F::INTEL486
        | F::X64
        | F::CMOV
        | F::CX8
        | F::FPU
        | F::FPU287
        | F::FPU387
        | F::MMX
        | F::FXSR
        | F::SSE
        | F::SSE2
        | F::MULTIBYTENOP
        | F::PAUSE
        | F::PREFETCHW
        | F::CLFSH
        | F::SMM
        | F::MSR => true,
        F::SSE3 => on_host!("sse3"),
        F::SSSE3 => on_host!("ssse3"),
        F::SSE4_1 => on_host!("sse4.1"),
        F::SSE4_2 => on_host!("sse4.2"),
        F::POPCNT => on_host!("popcnt"),
        F::LZCNT => on_host!("lzcnt"),
        F::BMI1 => on_host!("bmi1"),
        F::BMI2 => on_host!("bmi2"),
        F::ADX => on_host!("adx"),
        F::MOVBE => on_host!("movbe"),
        F::CMPXCHG16B => on_host!("cmpxchg16b"),
        F::AES => on_host!("aes"),
        F::PCLMULQDQ => on_host!("pclmulqdq"),
        F::SHA => on_host!("sha"),
        F::XSAVE => on_host!("xsave"),
        F::XSAVEC => on_host!("xsavec"),
        F::XSAVEOPT => on_host!("xsaveopt"),
        F::XSAVES => on_host!("xsaves"),
        F::AVX => on_host!("avx"),
        F::AVX2 => on_host!("avx2"),
        F::FMA => on_host!("fma"),
        F::F16C => on_host!("f16c"),
        F::VAES => on_host!("vaes"),
        F::VPCLMULQDQ => on_host!("vpclmulqdq"),
        F::SSE4A => on_host!("sse4a"),
        F::CLFLUSHOPT | F::CLWB | F::CLZERO => model_has(feature),
        _ => false,
    }
}

/// Whether an instruction set belongs to what [`MODEL`](super::MODEL) advertises, whatever this host has.
#[must_use]
pub fn is_advertised(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL8086_ONLY
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::FPU387SL_ONLY
            | F::MMX
            | F::CMOV
            | F::CX8
            | F::CMPXCHG16B
            | F::FXSR
            | F::TSC
            | F::CPUID
            | F::SYSCALL
            | F::MULTIBYTENOP
            | F::PAUSE
            | F::PREFETCHW
            | F::CLFSH
            | F::CLFLUSHOPT
            | F::CLWB
            | F::CLZERO
            | F::MSR
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::SSE4A
            | F::POPCNT
            | F::LZCNT
            | F::BMI1
            | F::BMI2
            | F::ADX
            | F::MOVBE
            | F::AES
            | F::PCLMULQDQ
            | F::SHA
            | F::AVX
            | F::AVX2
            | F::FMA
            | F::F16C
            | F::VAES
            | F::VPCLMULQDQ
            | F::XSAVE
            | F::XSAVEC
            | F::XSAVEOPT
            | F::XSAVES
            | F::RDTSCP
            | F::RDPID
            | F::RDRAND
            | F::RDSEED
            | F::FSGSBASE
            | F::CET_IBT
    )
}

/// All tested encodings.
#[must_use]
pub fn encodings() -> Vec<Code> {
    candidates().filter(|code| reason(*code).is_none()).collect()
}

/// Encodings of the same instruction sets that are not tested, with the reason.
pub fn excluded() -> impl Iterator<Item = (Code, &'static str)> {
    candidates().filter_map(|code| reason(code).map(|reason| (code, reason)))
}

fn candidates() -> impl Iterator<Item = Code> {
    Code::values().filter(|code| {
        let info = code.op_code();
        info.mode64()
            && info.is_instruction()
            && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
            && code.cpuid_features().iter().all(|feature| is_offered(*feature))
    })
}
