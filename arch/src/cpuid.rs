//! CPUID models: which processor the guest sees.

use bitflags::bitflags;

/// Processor vendor. Decides what differs between Intel and AMD: SYSCALL in compatibility mode, SYSRET to a
/// non-canonical address, and CPUID's vendor string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Vendor {
    /// `GenuineIntel`.
    Intel,
    /// `AuthenticAMD`.
    Amd,
}

bitflags! {
    /// Optional instruction sets a model advertises. What is not advertised raises #UD.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// SSE3.
        const SSE3 = 1 << 0;
        /// SSSE3.
        const SSSE3 = 1 << 1;
        /// SSE4.1.
        const SSE4_1 = 1 << 2;
        /// SSE4.2.
        const SSE4_2 = 1 << 3;
        /// POPCNT.
        const POPCNT = 1 << 4;
        /// CMPXCHG16B.
        const CX16 = 1 << 5;
        /// LAHF and SAHF in 64-bit mode.
        const LAHF = 1 << 6;
        /// MOVBE.
        const MOVBE = 1 << 7;
        /// LZCNT.
        const LZCNT = 1 << 8;
        /// BMI1.
        const BMI1 = 1 << 9;
        /// BMI2.
        const BMI2 = 1 << 10;
        /// ADX.
        const ADX = 1 << 11;
        /// AVX.
        const AVX = 1 << 12;
        /// AVX2.
        const AVX2 = 1 << 13;
        /// FMA3.
        const FMA = 1 << 14;
        /// F16C.
        const F16C = 1 << 15;
        /// AES-NI.
        const AES = 1 << 16;
        /// PCLMULQDQ.
        const PCLMUL = 1 << 17;
        /// SHA extensions.
        const SHA = 1 << 18;
        /// RDTSCP.
        const RDTSCP = 1 << 19;
        /// RDRAND.
        const RDRAND = 1 << 20;
        /// RDSEED.
        const RDSEED = 1 << 21;
        /// FSGSBASE.
        const FSGSBASE = 1 << 22;
        /// XSAVE, XGETBV.
        const XSAVE = 1 << 23;
        /// PREFETCHW.
        const PREFETCHW = 1 << 24;
        /// SSE4A (AMD).
        const SSE4A = 1 << 25;
        /// RDPID.
        const RDPID = 1 << 26;
    }
}

/// A processor model: vendor plus features.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// Vendor.
    pub vendor: Vendor,
    /// Advertised features.
    pub features: Features,
}

impl Default for CpuModel {
    fn default() -> Self {
        Self::INTEL
    }
}

impl CpuModel {
    const BASE: Features = Features::SSE3
        .union(Features::CX16)
        .union(Features::LAHF)
        .union(Features::POPCNT)
        .union(Features::MOVBE)
        .union(Features::LZCNT)
        .union(Features::BMI1)
        .union(Features::BMI2)
        .union(Features::ADX)
        .union(Features::RDTSCP)
        .union(Features::XSAVE)
        .union(Features::PREFETCHW);

    /// An Intel processor.
    pub const INTEL: Self = Self { vendor: Vendor::Intel, features: Self::BASE };
    /// An AMD processor.
    pub const AMD: Self = Self { vendor: Vendor::Amd, features: Self::BASE };
}
