//! Processor models: a vendor and the instruction sets it advertises. What CPUID says about them is in
//! [`crate::cpuid`].

use core::str::FromStr;

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

/// One list of the features, expanded to the bits, their names on the command line, and what they build on.
macro_rules! features {
    ($($(#[doc = $doc:literal])* $name:ident = $bit:literal, $text:literal, needs [$($needed:ident)*];)*) => {
        bitflags! {
            /// Optional instruction sets a model advertises. What is not advertised raises #UD.
            #[repr(transparent)]
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub struct Features: u64 {
                $($(#[doc = $doc])* const $name = 1 << $bit;)*
            }
        }

        impl Features {
            /// Every feature with its name on the command line and the features it directly builds on.
            pub const LIST: &[(Self, &str, Self)] =
                &[$((Self::$name, $text, Self::empty()$(.union(Self::$needed))*)),*];
        }
    };
}

features! {
    /// SSE3.
    SSE3 = 0, "sse3", needs [];
    /// SSSE3.
    SSSE3 = 1, "ssse3", needs [SSE3];
    /// SSE4.1.
    SSE4_1 = 2, "sse4.1", needs [SSSE3];
    /// SSE4.2.
    SSE4_2 = 3, "sse4.2", needs [SSE4_1];
    /// POPCNT.
    POPCNT = 4, "popcnt", needs [];
    /// CMPXCHG16B.
    CX16 = 5, "cx16", needs [];
    /// LAHF and SAHF in 64-bit mode.
    LAHF = 6, "lahf", needs [];
    /// MOVBE.
    MOVBE = 7, "movbe", needs [];
    /// LZCNT.
    LZCNT = 8, "lzcnt", needs [];
    /// BMI1.
    BMI1 = 9, "bmi1", needs [];
    /// BMI2.
    BMI2 = 10, "bmi2", needs [];
    /// ADX.
    ADX = 11, "adx", needs [];
    /// AVX.
    AVX = 12, "avx", needs [SSE4_2 XSAVE];
    /// AVX2.
    AVX2 = 13, "avx2", needs [AVX];
    /// FMA3.
    FMA = 14, "fma", needs [AVX];
    /// F16C.
    F16C = 15, "f16c", needs [AVX];
    /// AES-NI.
    AES = 16, "aes", needs [];
    /// PCLMULQDQ.
    PCLMUL = 17, "pclmul", needs [];
    /// SHA extensions.
    SHA = 18, "sha", needs [SSSE3];
    /// RDTSCP.
    RDTSCP = 19, "rdtscp", needs [];
    /// RDRAND.
    RDRAND = 20, "rdrand", needs [];
    /// RDSEED.
    RDSEED = 21, "rdseed", needs [];
    /// RDFSBASE and its kin.
    FSGSBASE = 22, "fsgsbase", needs [];
    /// XSAVE, XGETBV.
    XSAVE = 23, "xsave", needs [];
    /// PREFETCHW.
    PREFETCHW = 24, "prefetchw", needs [];
    /// SSE4A (AMD).
    SSE4A = 25, "sse4a", needs [SSE3];
    /// RDPID.
    RDPID = 26, "rdpid", needs [];
    /// User-mode instruction prevention (CR4.UMIP).
    UMIP = 27, "umip", needs [];
    /// XSAVEOPT.
    XSAVEOPT = 28, "xsaveopt", needs [XSAVE];
    /// XSAVEC and the compacted form of XRSTOR.
    XSAVEC = 29, "xsavec", needs [XSAVE];
    /// XGETBV with ECX = 1.
    XGETBV1 = 30, "xgetbv1", needs [XSAVE];
    /// XSAVES, XRSTORS and IA32_XSS.
    XSAVES = 31, "xsaves", needs [XSAVEC];
    /// CLFLUSHOPT.
    CLFLUSHOPT = 32, "clflushopt", needs [];
    /// CLWB.
    CLWB = 33, "clwb", needs [];
    /// VAES: the AES instructions on 256 bits.
    VAES = 34, "vaes", needs [AVX AES];
    /// VPCLMULQDQ on 256 bits.
    VPCLMUL = 35, "vpclmul", needs [AVX PCLMUL];
    /// CLZERO (AMD).
    CLZERO = 36, "clzero", needs [];
    /// Fast REP MOVSB and STOSB: only a hint.
    ERMS = 37, "erms", needs [];
    /// Fast short REP MOVSB: only a hint.
    FSRM = 38, "fsrm", needs [];
}

impl Features {
    /// The feature of this name.
    #[must_use]
    pub fn from_cpu_name(name: &str) -> Option<Self> {
        Self::LIST.iter().find(|(_, known, _)| known.eq_ignore_ascii_case(name)).map(|(feature, ..)| *feature)
    }

    /// These and everything they build on.
    #[must_use]
    pub fn with_prerequisites(self) -> Self {
        let step = |all: Self| {
            Self::LIST
                .iter()
                .filter(|(feature, ..)| all.contains(*feature))
                .fold(all, |all, (_, _, needed)| all.union(*needed))
        };
        let mut all = self;
        while step(all) != all {
            all = step(all);
        }
        all
    }

    /// These without what builds on something that is not among them.
    #[must_use]
    pub fn consistent(self) -> Self {
        Self::LIST
            .iter()
            .map(|(feature, ..)| *feature)
            .filter(|feature| self.contains(feature.with_prerequisites()))
            .fold(Self::empty(), Self::union)
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

/// [`CpuModel::V2`].
impl Default for CpuModel {
    fn default() -> Self {
        Self::V2
    }
}

impl CpuModel {
    /// What Windows 10 demands of a processor: SSE2 and SSE3, CMPXCHG16B, LAHF, PREFETCHW.
    pub const BASELINE: Self = Self {
        vendor: Vendor::Intel,
        features: Features::SSE3.union(Features::CX16).union(Features::LAHF).union(Features::PREFETCHW),
    };

    /// x86-64-v2 with what processors without AVX also have (the Goldmont Plus generation).
    pub const V2: Self = Self {
        vendor: Vendor::Intel,
        features: Self::BASELINE
            .features
            .union(Features::SSSE3)
            .union(Features::SSE4_1)
            .union(Features::SSE4_2)
            .union(Features::POPCNT)
            .union(Features::MOVBE)
            .union(Features::AES)
            .union(Features::PCLMUL)
            .union(Features::SHA)
            .union(Features::RDTSCP)
            .union(Features::RDRAND)
            .union(Features::RDSEED)
            .union(Features::FSGSBASE)
            .union(Features::RDPID)
            .union(Features::UMIP)
            .union(Features::CLFLUSHOPT)
            .union(Features::XSAVE)
            .union(Features::XSAVEOPT)
            .union(Features::XSAVEC)
            .union(Features::XGETBV1)
            .union(Features::XSAVES)
            .union(Features::ERMS),
    };

    /// [`CpuModel::V2`] and x86-64-v3.
    pub const V3: Self = Self {
        vendor: Vendor::Intel,
        features: Self::V2
            .features
            .union(Features::AVX)
            .union(Features::AVX2)
            .union(Features::BMI1)
            .union(Features::BMI2)
            .union(Features::F16C)
            .union(Features::FMA)
            .union(Features::LZCNT)
            .union(Features::ADX),
    };

    /// An Intel processor with everything that both engines execute and Intel makes without AVX-512 (the Gracemont
    /// generation).
    pub const INTEL: Self = Self {
        vendor: Vendor::Intel,
        features: Self::V3
            .features
            .union(Features::VAES)
            .union(Features::VPCLMUL)
            .union(Features::CLWB)
            .union(Features::FSRM),
    };

    /// An AMD processor (the Zen 3 generation).
    pub const AMD: Self =
        Self { vendor: Vendor::Amd, features: Self::INTEL.features.union(Features::SSE4A).union(Features::CLZERO) };

    /// The models that have a name on the command line, with it.
    pub const NAMED: [(&str, Self); 5] =
        [("baseline", Self::BASELINE), ("v2", Self::V2), ("v3", Self::V3), ("intel", Self::INTEL), ("amd", Self::AMD)];

    /// The model that `description` asks for: a model's name (one of [`CpuModel::NAMED`], or `host` for `host`), then
    /// changes in order: `+feature` with all it builds on, `-feature` with all that builds on it, `intel` or `amd` for
    /// the vendor. Without a name in front the changes apply to the default model. All separated by commas.
    ///
    /// # Errors
    /// Says which part has no meaning.
    pub fn parse(description: &str, host: Option<Self>) -> Result<Self, UnknownCpu> {
        let mut model = Self::default();
        for (position, part) in description.split(',').map(str::trim).enumerate() {
            let unknown = || UnknownCpu(part.to_owned());
            let feature = |name: &str| Features::from_cpu_name(name).ok_or_else(unknown);
            let named = Self::NAMED.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(part));
            match (part.split_at_checked(1), named) {
                (Some(("+", name)), _) => model.features |= feature(name)?.with_prerequisites(),
                (Some(("-", name)), _) => model.features = (model.features - feature(name)?).consistent(),
                (_, Some((_, named))) if position == 0 => model = named,
                (_, Some(("intel", _))) => model.vendor = Vendor::Intel,
                (_, Some(("amd", _))) => model.vendor = Vendor::Amd,
                _ if position == 0 && part.eq_ignore_ascii_case("host") => model = host.ok_or_else(unknown)?,
                _ => return Err(unknown()),
            }
        }
        Ok(model)
    }
}

/// A part of a model's description that has no meaning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no processor: write baseline, v2, v3, intel, amd or host, then +FEATURE or -FEATURE, separated by commas"
)]
pub struct UnknownCpu(String);

impl FromStr for CpuModel {
    type Err = UnknownCpu;

    /// [`CpuModel::parse`] where no host is known.
    fn from_str(text: &str) -> Result<Self, UnknownCpu> {
        Self::parse(text, None)
    }
}
