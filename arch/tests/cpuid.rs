//! CPUID leaves of both models.

use lstar_arch::cpuid::Features;
use lstar_arch::{CpuModel, CpuState, Segment, SegmentIndex, Vendor, system};

const MODELS: [CpuModel; 2] = [CpuModel::INTEL, CpuModel::AMD];

fn with(model: CpuModel, features: Features) -> CpuState {
    CpuState::new(CpuModel { features: model.features | features, ..model })
}

fn text(registers: &[u32]) -> String {
    registers.iter().flat_map(|r| r.to_le_bytes()).filter(|b| *b != 0).map(char::from).collect()
}

#[test]
fn identification() {
    for (model, vendor, signature, brand) in [
        (CpuModel::INTEL, "GenuineIntel", 0x506E3, "lstar x86-64 processor (Intel model)"),
        (CpuModel::AMD, "AuthenticAMD", 0xA2_0F12, "lstar x86-64 processor (AMD model)"),
    ] {
        let cpu = CpuState::new(model);
        let [max, b, c, d] = cpu.cpuid(0, 0);
        assert_eq!((max, text(&[b, d, c])), (0xD, vendor.to_owned()));
        assert_eq!(cpu.cpuid(1, 0)[0], signature);
        let leaves: Vec<u32> = (0x8000_0002..=0x8000_0004).flat_map(|leaf| cpu.cpuid(leaf, 0)).collect();
        assert_eq!(text(&leaves), brand);
    }
}

/// Each optional feature: leaf, register, bit, as the manuals number them.
#[test]
fn feature_bits_follow_the_model() {
    let bits = [
        (Features::SSE3, 1, 2, 0),
        (Features::PCLMUL, 1, 2, 1),
        (Features::SSSE3, 1, 2, 9),
        (Features::FMA, 1, 2, 12),
        (Features::CX16, 1, 2, 13),
        (Features::SSE4_1, 1, 2, 19),
        (Features::SSE4_2, 1, 2, 20),
        (Features::MOVBE, 1, 2, 22),
        (Features::POPCNT, 1, 2, 23),
        (Features::AES, 1, 2, 25),
        (Features::XSAVE, 1, 2, 26),
        (Features::AVX, 1, 2, 28),
        (Features::F16C, 1, 2, 29),
        (Features::RDRAND, 1, 2, 30),
        (Features::FSGSBASE, 7, 1, 0),
        (Features::BMI1, 7, 1, 3),
        (Features::AVX2, 7, 1, 5),
        (Features::BMI2, 7, 1, 8),
        (Features::RDSEED, 7, 1, 18),
        (Features::ADX, 7, 1, 19),
        (Features::SHA, 7, 1, 29),
        (Features::UMIP, 7, 2, 2),
        (Features::RDPID, 7, 2, 22),
        (Features::LAHF, 0x8000_0001, 2, 0),
        (Features::LZCNT, 0x8000_0001, 2, 5),
        (Features::SSE4A, 0x8000_0001, 2, 6),
        (Features::PREFETCHW, 0x8000_0001, 2, 8),
        (Features::RDTSCP, 0x8000_0001, 3, 27),
        (Features::ERMS, 7, 1, 9),
        (Features::CLFLUSHOPT, 7, 1, 23),
        (Features::CLWB, 7, 1, 24),
        (Features::VAES, 7, 2, 9),
        (Features::VPCLMUL, 7, 2, 10),
        (Features::FSRM, 7, 3, 4),
    ];
    // The forms of XSAVE are in subleaf 1 of leaf 0DH and CLZERO is AMD's alone: below.
    let elsewhere = 5;
    assert_eq!(bits.len() + elsewhere, Features::all().iter().count(), "every feature is reported somewhere");
    assert_eq!(Features::LIST.len(), Features::all().iter().count(), "every feature has a name");
    for (feature, leaf, register, bit) in bits {
        let named = Features::LIST.iter().filter(|(listed, ..)| *listed == feature).count();
        assert_eq!(named, 1, "{feature:?}");
        for model in MODELS {
            for features in [Features::empty(), feature] {
                let cpu = CpuState::new(CpuModel { features, ..model });
                let reported = cpu.cpuid(leaf, 0)[register] >> bit & 1 != 0;
                assert_eq!(reported, !features.is_empty(), "{feature:?}");
            }
        }
    }
}

#[test]
fn baseline_and_operating_system_bits() {
    for model in MODELS {
        let mut cpu = CpuState::new(model);
        let [_, ebx, ecx, edx] = cpu.cpuid(1, 0);
        assert_eq!((edx, ebx >> 8 & 0xFF), (0x078B_EBFD, 8));
        assert_eq!(ecx >> 27 & 1, 1, "OSXSAVE mirrors CR4");
        cpu.cr4 = 0x620;
        assert_eq!(cpu.cpuid(1, 0)[2] >> 27 & 1, 0);
        let extended = cpu.cpuid(0x8000_0001, 0)[3];
        assert_eq!(extended & (1 << 29 | 1 << 20 | 1 << 11), 1 << 29 | 1 << 20 | 1 << 11, "LM, NX, SYSCALL");
        *cpu.segment_mut(SegmentIndex::Cs) = Segment::flat_code32(0x23, 3);
        let syscall = cpu.cpuid(0x8000_0001, 0)[3] >> 11 & 1 != 0;
        assert_eq!(syscall, model == CpuModel::AMD, "Intel shows SYSCALL in 64-bit mode only");
    }
}

#[test]
fn xsave_sizes_agree_with_xcr0() {
    let mut cpu = CpuState::new(CpuModel::V2);
    assert_eq!(cpu.cpuid(0xD, 0), [3, 576, 576, 0]);
    assert_eq!(cpu.cpuid(0xD, 1), [0xF, 576, 0, 0]);
    assert_eq!(cpu.cpuid(0xD, 2), [0; 4]);
    cpu = with(CpuModel::V2, Features::AVX);
    assert_eq!(cpu.cpuid(0xD, 0), [7, 832, 832, 0]);
    assert_eq!(cpu.cpuid(0xD, 1), [0xF, 832, 0, 0]);
    let plain = CpuState::new(CpuModel { features: Features::XSAVE, ..CpuModel::AMD });
    assert_eq!(plain.cpuid(0xD, 1), [0; 4]);
    assert_eq!(cpu.cpuid(0xD, 2), [256, 576, 0, 0]);
    cpu.xcr0 = 1;
    assert_eq!(cpu.cpuid(0xD, 0), [7, 576, 832, 0]);
    let none = CpuState::new(CpuModel { features: Features::empty(), ..CpuModel::AMD });
    assert_eq!(none.cpuid(0xD, 0), [0; 4]);
}

#[test]
fn topology_caches_and_addresses() {
    for model in MODELS {
        let cpu = CpuState::new(model);
        assert_eq!(
            (cpu.cpuid(0xB, 0), cpu.cpuid(0xB, 1), cpu.cpuid(0xB, 2)),
            ([0, 1, 0x100, 0], [0, 1, 0x201, 0], [0, 0, 2, 0])
        );
        assert_eq!(cpu.cpuid(0x8000_0008, 0)[0], 0x302E);
        assert_eq!(cpu.cpuid(0x8000_0007, 0)[3], 0x100);
        let leaf = if model == CpuModel::INTEL { 4 } else { 0x8000_001D };
        let sizes: Vec<u32> = (0..4)
            .map(|i| cpu.cpuid(leaf, i))
            .map(|[_, ebx, ecx, _]| ((ebx >> 22) + 1) * ((ebx & 0xFFF) + 1) * (ecx + 1) / 1024)
            .collect();
        assert_eq!(sizes, [32, 32, 512, 8192]);
        assert_eq!(cpu.cpuid(leaf, 4), [0; 4]);
        assert_eq!(cpu.cpuid(0x8000_0006, 0)[2] >> 16, 512);
    }
}

#[test]
fn leaves_out_of_range() {
    let cpu = CpuState::new(CpuModel::INTEL);
    for leaf in [0xE, 0x4000_0000, 0x8000_0009, u32::MAX] {
        assert_eq!(cpu.cpuid(leaf, 0), cpu.cpuid(0xD, 0), "{leaf:#x}");
        assert_eq!(CpuState::new(CpuModel::AMD).cpuid(leaf | 0x80, 0), [0; 4]);
    }
    assert_eq!(cpu.cpuid(0x8000_0000, 0)[0], 0x8000_0008);
    assert_eq!(CpuState::new(CpuModel::AMD).cpuid(0x8000_0000, 0)[0], 0x8000_0021);
}

#[test]
fn the_instruction_zero_extends() {
    let mut cpu = CpuState::new(CpuModel::INTEL);
    cpu.gpr[..4].copy_from_slice(&[0xFFFF_FFFF_0000_0000, u64::MAX, u64::MAX, u64::MAX]);
    system::cpuid(&mut cpu);
    assert_eq!((cpu.gpr[0], cpu.gpr[3], cpu.gpr[2], cpu.gpr[1]), (0xD, 0x756E_6547, 0x4965_6E69, 0x6C65_746E));
}

#[test]
fn cleared_lines_are_amds() {
    for (model, expected) in [(CpuModel::AMD, 1), (CpuModel { vendor: Vendor::Intel, ..CpuModel::AMD }, 0)] {
        assert_eq!(CpuState::new(model).cpuid(0x8000_0008, 0)[1], expected);
    }
}

/// What a model reports is what a model read off it has.
#[test]
fn models_survive_cpuid() {
    for (name, model) in CpuModel::NAMED {
        let cpu = CpuState::new(model);
        assert_eq!(CpuModel::from_cpuid(|leaf, subleaf| cpu.cpuid(leaf, subleaf)), model, "{name}");
        assert_eq!(model.features.consistent(), model.features, "{name}");
        assert_eq!(name.parse(), Ok(model));
    }
}

#[test]
fn descriptions() {
    let parse = |text: &str| text.parse::<CpuModel>().unwrap().features;
    let v2 = CpuModel::V2.features;
    assert_eq!(parse("v2,+avx2,-sse4.2"), v2 - Features::SSE4_2, "AVX builds on SSE4.2");
    assert_eq!(parse("+fma"), v2 | Features::FMA | Features::AVX);
    assert_eq!(
        parse("v3,-avx"),
        CpuModel::V3.features - Features::AVX - Features::AVX2 - Features::FMA - Features::F16C
    );
    assert_eq!("baseline,amd".parse(), Ok(CpuModel { vendor: Vendor::Amd, ..CpuModel::BASELINE }));
    assert_eq!(CpuModel::parse("host,-avx", Some(CpuModel::AMD)).map(|model| model.vendor), Ok(Vendor::Amd));
    for bad in ["host", "v4", "", "v2,v3", "+", "v2,,+avx"] {
        assert!(bad.parse::<CpuModel>().is_err(), "{bad}");
    }
}
