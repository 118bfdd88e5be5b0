//! CPUID: how a processor model shows itself to the guest, and how a model is read off a real processor.

use crate::control::cr4;
pub use crate::model::{CpuModel, Features, Vendor};
use crate::state::CpuState;

/// Width of a physical address (CPUID 8000_0008h): bounds CR3 and IA32_APIC_BASE.
pub const PHYSICAL_ADDRESS_BITS: u32 = 46;

/// Size of the legacy area and header of an XSAVE image.
const XSAVE_LEGACY_BYTES: u32 = 576;
/// Size of the AVX component of an XSAVE image, which directly follows the header.
const XSAVE_AVX_BYTES: u32 = 256;

/// What CPUID reports besides the model: state that the operating system controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidContext {
    /// CR4.OSXSAVE is set.
    pub os_xsave: bool,
    /// XCR0: decides the current XSAVE size.
    pub xcr0: u64,
    /// CPUID executes in 64-bit mode (Intel reports SYSCALL only there).
    pub is_64bit: bool,
}

/// Where a feature is reported: register (0 to 3 for EAX to EDX) and bit.
struct FeatureBit(Features, usize, u32);

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

const LEAF_1: &[FeatureBit] = &[
    FeatureBit(Features::SSE3, ECX, 0),
    FeatureBit(Features::PCLMUL, ECX, 1),
    FeatureBit(Features::SSSE3, ECX, 9),
    FeatureBit(Features::FMA, ECX, 12),
    FeatureBit(Features::CX16, ECX, 13),
    FeatureBit(Features::SSE4_1, ECX, 19),
    FeatureBit(Features::SSE4_2, ECX, 20),
    FeatureBit(Features::MOVBE, ECX, 22),
    FeatureBit(Features::POPCNT, ECX, 23),
    FeatureBit(Features::AES, ECX, 25),
    FeatureBit(Features::XSAVE, ECX, 26),
    FeatureBit(Features::AVX, ECX, 28),
    FeatureBit(Features::F16C, ECX, 29),
    FeatureBit(Features::RDRAND, ECX, 30),
];

const LEAF_7: &[FeatureBit] = &[
    FeatureBit(Features::FSGSBASE, EBX, 0),
    FeatureBit(Features::BMI1, EBX, 3),
    FeatureBit(Features::AVX2, EBX, 5),
    FeatureBit(Features::BMI2, EBX, 8),
    FeatureBit(Features::ERMS, EBX, 9),
    FeatureBit(Features::RDSEED, EBX, 18),
    FeatureBit(Features::ADX, EBX, 19),
    FeatureBit(Features::CLFLUSHOPT, EBX, 23),
    FeatureBit(Features::CLWB, EBX, 24),
    FeatureBit(Features::SHA, EBX, 29),
    FeatureBit(Features::UMIP, ECX, 2),
    FeatureBit(Features::VAES, ECX, 9),
    FeatureBit(Features::VPCLMUL, ECX, 10),
    FeatureBit(Features::RDPID, ECX, 22),
    FeatureBit(Features::FSRM, EDX, 4),
];

/// Subleaf 1 of leaf 0DH.
const LEAF_D_1: &[FeatureBit] = &[
    FeatureBit(Features::XSAVEOPT, EAX, 0),
    FeatureBit(Features::XSAVEC, EAX, 1),
    FeatureBit(Features::XGETBV1, EAX, 2),
    FeatureBit(Features::XSAVES, EAX, 3),
];

const LEAF_8000_0001: &[FeatureBit] = &[
    FeatureBit(Features::LAHF, ECX, 0),
    FeatureBit(Features::LZCNT, ECX, 5),
    FeatureBit(Features::SSE4A, ECX, 6),
    FeatureBit(Features::PREFETCHW, ECX, 8),
    FeatureBit(Features::RDTSCP, EDX, 27),
];

/// AMD only.
const LEAF_8000_0008: &[FeatureBit] = &[FeatureBit(Features::CLZERO, EBX, 0)];

/// Every table with its leaf and subleaf.
const REPORTS: [(u32, u32, &[FeatureBit]); 5] = [
    (1, 0, LEAF_1),
    (7, 0, LEAF_7),
    (0xD, 1, LEAF_D_1),
    (0x8000_0001, 0, LEAF_8000_0001),
    (0x8000_0008, 0, LEAF_8000_0008),
];

/// CPUID.1:EDX of every x86-64 processor here: FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, PGE, MCA, CMOV, PAT,
/// PSE36, CLFSH, MMX, FXSR, SSE, SSE2. Neither VME nor MTRR is offered.
const BASELINE_EDX: u32 = 0x078B_EBFD;
/// The part of [`BASELINE_EDX`] that AMD repeats in 8000_0001h:EDX: all up to MMX and FXSR but SEP and CLFSH.
const AMD_REPEATED_EDX: u32 = BASELINE_EDX & 0x0183_F3FF;

/// Deterministic cache parameters (leaf 4, and 8000_001Dh on AMD).
struct Cache {
    /// 1 data, 2 instruction, 3 unified.
    kind: u32,
    level: u32,
    ways: u32,
    sets: u32,
}

/// L1D 32 KiB, L1I 32 KiB, L2 512 KiB, L3 8 MiB; lines of 64 bytes.
const CACHES: [Cache; 4] = [
    Cache { kind: 1, level: 1, ways: 8, sets: 64 },
    Cache { kind: 2, level: 1, ways: 8, sets: 64 },
    Cache { kind: 3, level: 2, ways: 8, sets: 1024 },
    Cache { kind: 3, level: 3, ways: 16, sets: 8192 },
];

impl CpuModel {
    const MAX_BASIC: u32 = 0xD;

    const fn max_extended(&self) -> u32 {
        match self.vendor {
            Vendor::Intel => 0x8000_0008,
            Vendor::Amd => 0x8000_0021,
        }
    }

    /// Family, model and stepping as CPUID.1:EAX, of a processor that has about these features: Skylake, Goldmont Plus,
    /// Merom; Zen 3, Bobcat.
    const fn signature(&self) -> u32 {
        match self.vendor {
            Vendor::Intel if self.features.contains(Features::AVX2) => 0x0005_06E3,
            Vendor::Intel if self.features.contains(Features::SSE4_2) => 0x0007_06A8,
            Vendor::Intel => 0x0000_06FB,
            Vendor::Amd if self.features.contains(Features::AVX2) => 0x00A2_0F12,
            Vendor::Amd => 0x0050_0F20,
        }
    }

    /// The model of a real processor, from what its CPUID says (EAX to EDX for a leaf and subleaf), as far as there are
    /// [`Features`] for it.
    #[must_use]
    pub fn from_cpuid(mut cpuid: impl FnMut(u32, u32) -> [u32; 4]) -> Self {
        let [max_basic, ebx, ..] = cpuid(0, 0);
        let vendor = if ebx == u32::from_le_bytes(*b"Auth") { Vendor::Amd } else { Vendor::Intel };
        let [max_extended, ..] = cpuid(0x8000_0000, 0);
        let mut features = Features::empty();
        for (leaf, subleaf, table) in REPORTS {
            let highest = if leaf < 0x8000_0000 { max_basic } else { max_extended };
            let registers = if leaf <= highest { cpuid(leaf, subleaf) } else { [0; 4] };
            for FeatureBit(feature, register, bit) in table {
                features.set(*feature, registers[*register] >> bit & 1 != 0);
            }
        }
        Self { vendor, features: features.consistent() }
    }

    /// The XCR0 bits that may be set (0 without XSAVE).
    #[must_use]
    pub const fn supported_xcr0(&self) -> u64 {
        if !self.features.contains(Features::XSAVE) {
            0
        } else if self.features.contains(Features::AVX) {
            7
        } else {
            3
        }
    }

    /// The CR4 bits that may be set.
    #[must_use]
    pub fn supported_cr4(&self) -> u64 {
        const PSE: u64 = 1 << 4;
        const MCE: u64 = 1 << 6;
        let always = cr4::TSD | cr4::DE | PSE | cr4::PAE | MCE | cr4::PGE | cr4::PCE | cr4::OSFXSR | cr4::OSXMMEXCPT;
        [(Features::UMIP, cr4::UMIP), (Features::FSGSBASE, cr4::FSGSBASE), (Features::XSAVE, cr4::OSXSAVE)]
            .into_iter()
            .filter(|(feature, _)| self.features.contains(*feature))
            .fold(always, |bits, (_, bit)| bits | bit)
    }

    fn report(&self, table: &[FeatureBit]) -> [u32; 4] {
        let mut registers = [0; 4];
        for FeatureBit(feature, register, bit) in table {
            registers[*register] |= u32::from(self.features.contains(*feature)) << bit;
        }
        registers
    }

    /// CPUID: EAX, EBX, ECX, EDX for a leaf and subleaf (SDM vol. 2, CPUID; APM vol. 3, appendix E).
    ///
    /// Beyond the highest leaf Intel repeats the highest basic leaf and AMD returns zeros.
    #[must_use]
    pub fn cpuid(&self, leaf: u32, subleaf: u32, context: CpuidContext) -> [u32; 4] {
        let amd = self.vendor == Vendor::Amd;
        match leaf {
            0..=Self::MAX_BASIC => self.basic_leaf(leaf, subleaf, context),
            0x8000_0000.. if leaf <= self.max_extended() => self.extended_leaf(leaf, subleaf, context),
            _ if amd => [0; 4],
            _ => self.basic_leaf(Self::MAX_BASIC, subleaf, context),
        }
    }

    fn basic_leaf(&self, leaf: u32, subleaf: u32, context: CpuidContext) -> [u32; 4] {
        let amd = self.vendor == Vendor::Amd;
        match leaf {
            0 => {
                let [ebx, edx, ecx] = quads(if amd { b"AuthenticAMD" } else { b"GenuineIntel" });
                [Self::MAX_BASIC, ebx, ecx, edx]
            }
            1 => {
                let [_, _, ecx, _] = self.report(LEAF_1);
                let os_xsave = u32::from(context.os_xsave) << 27;
                // EBX: CLFLUSH line of 8 quadwords, one logical processor, APIC ID 0.
                [self.signature(), 0x0001_0800, ecx | os_xsave, BASELINE_EDX]
            }
            // "See leaf 4 for caches; no TLB information."
            2 if !amd => [0x00FE_FF01, 0, 0, 0],
            4 if !amd => cache_leaf(subleaf),
            7 if subleaf == 0 => self.report(LEAF_7),
            // x2APIC ID 0 in EDX; one thread, one core.
            0xB => match subleaf {
                0 => [0, 1, 0x100, 0],
                1 => [0, 1, 0x201, 0],
                _ => [0, 0, subleaf & 0xFF, 0],
            },
            0xD => self.xsave_leaf(subleaf, context.xcr0),
            _ => [0; 4],
        }
    }

    fn xsave_leaf(&self, subleaf: u32, xcr0: u64) -> [u32; 4] {
        let supported = self.supported_xcr0();
        let size = |components: u64| match components {
            0 => 0,
            _ if components & 4 != 0 => XSAVE_LEGACY_BYTES + XSAVE_AVX_BYTES,
            _ => XSAVE_LEGACY_BYTES,
        };
        match subleaf {
            0 if supported != 0 => [supported as u32, size(xcr0 | 1), size(supported), 0],
            // No supervisor state component exists, so IA32_XSS adds nothing to the size of the compacted image.
            1 if supported != 0 => {
                let [eax, ..] = self.report(LEAF_D_1);
                let compacted = self.features.contains(Features::XSAVEC);
                [eax, if compacted { size(xcr0 | 1) } else { 0 }, 0, 0]
            }
            2 if supported & 4 != 0 => [XSAVE_AVX_BYTES, XSAVE_LEGACY_BYTES, 0, 0],
            _ => [0; 4],
        }
    }

    fn extended_leaf(&self, leaf: u32, subleaf: u32, context: CpuidContext) -> [u32; 4] {
        const SYSCALL: u32 = 1 << 11;
        const NX: u32 = 1 << 20;
        const MMXEXT: u32 = 1 << 22;
        const LONG_MODE: u32 = 1 << 29;
        const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
        const NULL_SELECTOR_CLEARS_BASE: u32 = 1 << 6;
        let amd = self.vendor == Vendor::Amd;
        match leaf & 0xFF {
            0 if amd => {
                let [ebx, edx, ecx] = quads(b"AuthenticAMD");
                [self.max_extended(), ebx, ecx, edx]
            }
            0 => [self.max_extended(), 0, 0, 0],
            1 => {
                let [_, _, mut ecx, mut edx] = self.report(LEAF_8000_0001);
                edx |= NX | LONG_MODE;
                if amd {
                    edx |= AMD_REPEATED_EDX | MMXEXT;
                    ecx |= TOPOLOGY_EXTENSIONS;
                }
                if amd || context.is_64bit {
                    edx |= SYSCALL;
                }
                [if amd { self.signature() } else { 0 }, 0, ecx, edx]
            }
            part @ 2..=4 => {
                let mut brand = [0; 48];
                let name: &[u8] =
                    if amd { b"lstar x86-64 processor (AMD model)" } else { b"lstar x86-64 processor (Intel model)" };
                brand[..name.len()].copy_from_slice(name);
                let (words, _) = brand.as_chunks::<16>();
                let [a, b, c, d] = quads(&words[part as usize - 2]);
                [a, b, c, d]
            }
            // L1D, L1I: 32 KiB, 8 ways, 1 line per tag, 64 bytes.
            5 if amd => [0, 0, 0x2008_0140, 0x2008_0140],
            // L2: 512 KiB, 8 ways; L3 (AMD): 16 units of 512 KiB, 16 ways.
            6 => [0, 0, 0x0200_6040 | u32::from(amd) << 8, if amd { 0x0040_8140 } else { 0 }],
            // The TSC is invariant.
            7 => [0, 0, 0, 1 << 8],
            8 => {
                let ebx = if amd { self.report(LEAF_8000_0008)[EBX] } else { 0 };
                [48 << 8 | PHYSICAL_ADDRESS_BITS, ebx, 0, 0]
            }
            0x1D => cache_leaf(subleaf),
            0x21 => [NULL_SELECTOR_CLEARS_BASE, 0, 0, 0],
            _ => [0; 4],
        }
    }
}

impl CpuState {
    /// What CPUID returns on this processor in its present state.
    #[must_use]
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let context =
            CpuidContext { os_xsave: self.cr4 & cr4::OSXSAVE != 0, xcr0: self.xcr0, is_64bit: self.is_64bit() };
        self.model.cpuid(leaf, subleaf, context)
    }
}

/// Text as the doublewords of registers, four characters each.
fn quads<const BYTES: usize, const WORDS: usize>(text: &[u8; BYTES]) -> [u32; WORDS] {
    let (words, _) = text.as_chunks::<4>();
    core::array::from_fn(|i| words.get(i).map_or(0, |word| u32::from_le_bytes(*word)))
}

fn cache_leaf(subleaf: u32) -> [u32; 4] {
    const SELF_INITIALIZING: u32 = 1 << 8;
    const LINE_BYTES: u32 = 64;
    CACHES.get(subleaf as usize).map_or([0; 4], |cache| {
        [
            cache.kind | cache.level << 5 | SELF_INITIALIZING,
            (LINE_BYTES - 1) | (cache.ways - 1) << 22,
            cache.sets - 1,
            0,
        ]
    })
}
