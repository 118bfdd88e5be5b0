//! Operations that the host does in one instruction and CLIF cannot express.
//!
//! Each is a few bytes of machine code in the runtime, called through a table in the block; those of five bytes at most stand in
//! translated code itself instead. It takes its operands in the
//! registers of Cranelift's `preserve_all` convention (vectors in XMM0 to XMM2, integers in RDI, RSI, RDX), leaves the
//! result in XMM0 or RAX (a second one in RDX), and keeps every other register, so that a call costs little more than the
//! instruction: nothing is spilled. It runs with the guest's MXCSR and touches no memory but the host stack; the string
//! operations touch guest memory of which the caller knows that it is there.

use std::ops::BitOr;

/// What an operation takes and returns: `V` is a vector, `D` and `S` a scalar double and single, `I` a 64-bit integer,
/// `N` nothing.
#[expect(non_camel_case_types, reason = "arguments, an underscore, results")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum HostSignature {
    /// One vector to a vector.
    V_V,
    /// Two vectors to a vector.
    VV_V,
    /// Three vectors to a vector.
    VVV_V,
    /// A double to an integer.
    D_I,
    /// A single to an integer.
    S_I,
    /// Two integers to an integer.
    II_I,
    /// Nothing to nothing.
    N_N,
    /// Nothing to an integer.
    N_I,
    /// An integer to nothing.
    I_N,
    /// An integer to an integer.
    I_I,
    /// Three integers to two.
    III_II,
    /// Three integers to nothing.
    III_N,
    /// Two vectors to an integer.
    VV_I,
    /// Two vectors to a vector and an integer.
    VV_VI,
    /// Two vectors and two integers to an integer.
    VVII_I,
    /// Two vectors and two integers to a vector and an integer.
    VVII_VI,
}

impl HostSignature {
    /// Number of signatures.
    pub const COUNT: usize = Self::VVII_VI as usize + 1;

    /// Argument and result letters.
    #[must_use]
    pub const fn letters(self) -> (&'static str, &'static str) {
        match self {
            Self::V_V => ("V", "V"),
            Self::VV_V => ("VV", "V"),
            Self::VVV_V => ("VVV", "V"),
            Self::D_I => ("D", "I"),
            Self::S_I => ("S", "I"),
            Self::II_I => ("II", "I"),
            Self::N_N => ("", ""),
            Self::N_I => ("", "I"),
            Self::I_N => ("I", ""),
            Self::I_I => ("I", "I"),
            Self::III_II => ("III", "II"),
            Self::III_N => ("III", ""),
            Self::VV_I => ("VV", "I"),
            Self::VV_VI => ("VV", "VI"),
            Self::VVII_I => ("VVII", "I"),
            Self::VVII_VI => ("VVII", "VI"),
        }
    }
}

/// A set of the host's instruction sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFeatures(u32);

impl HostFeatures {
    /// Nothing beyond x86-64.
    pub const BASE: Self = Self(0);
    /// SSE4.1.
    pub const SSE41: Self = Self(1);
    /// SSE4.2.
    pub const SSE42: Self = Self(1 << 1);
    /// AES-NI.
    pub const AES: Self = Self(1 << 2);
    /// PCLMULQDQ.
    pub const PCLMUL: Self = Self(1 << 3);
    /// SHA extensions.
    pub const SHA: Self = Self(1 << 4);
    /// AVX2.
    pub const AVX2: Self = Self(1 << 5);
    /// FMA3.
    pub const FMA: Self = Self(1 << 6);
    /// F16C.
    pub const F16C: Self = Self(1 << 7);
    /// BMI2.
    pub const BMI2: Self = Self(1 << 8);

    /// All of them.
    pub const ALL: Self = Self((1 << 9) - 1);

    /// What this host has.
    #[must_use]
    pub fn detect() -> Self {
        let mut found = Self::BASE;
        #[cfg(target_arch = "x86_64")]
        {
            let present = [
                (is_x86_feature_detected!("sse4.1"), Self::SSE41),
                (is_x86_feature_detected!("sse4.2"), Self::SSE42),
                (is_x86_feature_detected!("aes"), Self::AES),
                (is_x86_feature_detected!("pclmulqdq"), Self::PCLMUL),
                (is_x86_feature_detected!("sha"), Self::SHA),
                (is_x86_feature_detected!("avx2"), Self::AVX2),
                (is_x86_feature_detected!("avx") && is_x86_feature_detected!("fma"), Self::FMA),
                (is_x86_feature_detected!("f16c"), Self::F16C),
                (is_x86_feature_detected!("bmi2"), Self::BMI2),
            ];
            for (has, feature) in present {
                if has {
                    found = found | feature;
                }
            }
        }
        found
    }

    /// Whether all of `needed` are there.
    #[must_use]
    pub const fn contains(self, needed: Self) -> bool {
        self.0 & needed.0 == needed.0
    }
}

impl BitOr for HostFeatures {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Declares the host operations: one list, from which the enum, the signatures and the runtime's code come.
///
/// Each row is `Name feature signature [assembly lines] [bytes];`. The RET is added to the lines. The bytes are the same without it,
/// where there are no more than five: such an operation stands in translated code itself instead of a call.
#[macro_export]
macro_rules! foreach_host_op {
    ($mac:ident) => {
        $mac! {
            /// AESENC.
            Aesenc AES VV_V ["aesenc xmm0, xmm1"] [0x66, 0x0F, 0x38, 0xDC, 0xC1];
            /// AESENCLAST.
            Aesenclast AES VV_V ["aesenclast xmm0, xmm1"] [0x66, 0x0F, 0x38, 0xDD, 0xC1];
            /// AESDEC.
            Aesdec AES VV_V ["aesdec xmm0, xmm1"] [0x66, 0x0F, 0x38, 0xDE, 0xC1];
            /// AESDECLAST.
            Aesdeclast AES VV_V ["aesdeclast xmm0, xmm1"] [0x66, 0x0F, 0x38, 0xDF, 0xC1];
            /// AESIMC.
            Aesimc AES V_V ["aesimc xmm0, xmm0"] [0x66, 0x0F, 0x38, 0xDB, 0xC0];
            /// AESKEYGENASSIST with a round constant of zero.
            Aeskeygen AES V_V ["aeskeygenassist xmm0, xmm0, 0"] [];
            /// PCLMULQDQ of the low quadwords.
            Pclmul PCLMUL VV_V ["pclmulqdq xmm0, xmm1, 0"] [];
            /// SHA1MSG1.
            Sha1msg1 SHA VV_V ["sha1msg1 xmm0, xmm1"] [0x0F, 0x38, 0xC9, 0xC1];
            /// SHA1MSG2.
            Sha1msg2 SHA VV_V ["sha1msg2 xmm0, xmm1"] [0x0F, 0x38, 0xCA, 0xC1];
            /// SHA1NEXTE.
            Sha1nexte SHA VV_V ["sha1nexte xmm0, xmm1"] [0x0F, 0x38, 0xC8, 0xC1];
            /// SHA1RNDS4, function 0.
            Sha1rnds0 SHA VV_V ["sha1rnds4 xmm0, xmm1, 0"] [0x0F, 0x3A, 0xCC, 0xC1, 0x00];
            /// SHA1RNDS4, function 1.
            Sha1rnds1 SHA VV_V ["sha1rnds4 xmm0, xmm1, 1"] [0x0F, 0x3A, 0xCC, 0xC1, 0x01];
            /// SHA1RNDS4, function 2.
            Sha1rnds2 SHA VV_V ["sha1rnds4 xmm0, xmm1, 2"] [0x0F, 0x3A, 0xCC, 0xC1, 0x02];
            /// SHA1RNDS4, function 3.
            Sha1rnds3 SHA VV_V ["sha1rnds4 xmm0, xmm1, 3"] [0x0F, 0x3A, 0xCC, 0xC1, 0x03];
            /// SHA256MSG1.
            Sha256msg1 SHA VV_V ["sha256msg1 xmm0, xmm1"] [0x0F, 0x38, 0xCC, 0xC1];
            /// SHA256MSG2.
            Sha256msg2 SHA VV_V ["sha256msg2 xmm0, xmm1"] [0x0F, 0x38, 0xCD, 0xC1];
            /// SHA256RNDS2. Arguments: the keys (XMM0 of the instruction), source, destination.
            Sha256rnds2 SHA VVV_V [
                "movups [rsp - 24], xmm2",
                "sha256rnds2 xmm2, xmm1",
                "movaps xmm0, xmm2",
                "movups xmm2, [rsp - 24]"
            ] [];
            /// MPSADBW of the first block with the first offset.
            Mpsadbw SSE41 VV_V ["mpsadbw xmm0, xmm1, 0"] [];
            /// PHMINPOSUW.
            Phminposuw SSE41 V_V ["phminposuw xmm0, xmm0"] [0x66, 0x0F, 0x38, 0x41, 0xC0];
            /// DPPS of all lanes into all lanes.
            Dpps SSE41 VV_V ["dpps xmm0, xmm1, 0xFF"] [];
            /// DPPD of all lanes into all lanes.
            Dppd SSE41 VV_V ["dppd xmm0, xmm1, 0x33"] [];
            /// ROUNDPS as MXCSR says.
            RoundSingles4 SSE41 V_V ["roundps xmm0, xmm0, 4"] [];
            /// ROUNDPS to nearest without a precision exception.
            RoundSingles8 SSE41 V_V ["roundps xmm0, xmm0, 8"] [];
            /// ROUNDPS down without a precision exception.
            RoundSingles9 SSE41 V_V ["roundps xmm0, xmm0, 9"] [];
            /// ROUNDPS up without a precision exception.
            RoundSingles10 SSE41 V_V ["roundps xmm0, xmm0, 10"] [];
            /// ROUNDPS to zero without a precision exception.
            RoundSingles11 SSE41 V_V ["roundps xmm0, xmm0, 11"] [];
            /// ROUNDPS as MXCSR says without a precision exception.
            RoundSingles12 SSE41 V_V ["roundps xmm0, xmm0, 12"] [];
            /// ROUNDPD as MXCSR says.
            RoundDoubles4 SSE41 V_V ["roundpd xmm0, xmm0, 4"] [];
            /// ROUNDPD to nearest without a precision exception.
            RoundDoubles8 SSE41 V_V ["roundpd xmm0, xmm0, 8"] [];
            /// ROUNDPD down without a precision exception.
            RoundDoubles9 SSE41 V_V ["roundpd xmm0, xmm0, 9"] [];
            /// ROUNDPD up without a precision exception.
            RoundDoubles10 SSE41 V_V ["roundpd xmm0, xmm0, 10"] [];
            /// ROUNDPD to zero without a precision exception.
            RoundDoubles11 SSE41 V_V ["roundpd xmm0, xmm0, 11"] [];
            /// ROUNDPD as MXCSR says without a precision exception.
            RoundDoubles12 SSE41 V_V ["roundpd xmm0, xmm0, 12"] [];
            /// CVTPS2DQ.
            Cvtps2dq BASE V_V ["cvtps2dq xmm0, xmm0"] [0x66, 0x0F, 0x5B, 0xC0];
            /// CVTPD2DQ.
            Cvtpd2dq BASE V_V ["cvtpd2dq xmm0, xmm0"] [0xF2, 0x0F, 0xE6, 0xC0];
            /// CVTSD2SI to 32 bits, zero-extended.
            Cvtsd2si32 BASE D_I ["cvtsd2si eax, xmm0"] [0xF2, 0x0F, 0x2D, 0xC0];
            /// CVTSD2SI to 64 bits.
            Cvtsd2si64 BASE D_I ["cvtsd2si rax, xmm0"] [0xF2, 0x48, 0x0F, 0x2D, 0xC0];
            /// CVTSS2SI to 32 bits, zero-extended.
            Cvtss2si32 BASE S_I ["cvtss2si eax, xmm0"] [0xF3, 0x0F, 0x2D, 0xC0];
            /// CVTSS2SI to 64 bits.
            Cvtss2si64 BASE S_I ["cvtss2si rax, xmm0"] [0xF3, 0x48, 0x0F, 0x2D, 0xC0];
            /// CVTTSD2SI to 64 bits.
            Cvttsd2si BASE D_I ["cvttsd2si rax, xmm0"] [0xF2, 0x48, 0x0F, 0x2C, 0xC0];
            /// CVTTSS2SI to 64 bits.
            Cvttss2si BASE S_I ["cvttss2si rax, xmm0"] [0xF3, 0x48, 0x0F, 0x2C, 0xC0];
            /// VPSLLVD.
            Vpsllvd AVX2 VV_V ["vpsllvd xmm0, xmm0, xmm1"] [0xC4, 0xE2, 0x79, 0x47, 0xC1];
            /// VPSRLVD.
            Vpsrlvd AVX2 VV_V ["vpsrlvd xmm0, xmm0, xmm1"] [0xC4, 0xE2, 0x79, 0x45, 0xC1];
            /// VPSRAVD.
            Vpsravd AVX2 VV_V ["vpsravd xmm0, xmm0, xmm1"] [0xC4, 0xE2, 0x79, 0x46, 0xC1];
            /// VPSLLVQ.
            Vpsllvq AVX2 VV_V ["vpsllvq xmm0, xmm0, xmm1"] [0xC4, 0xE2, 0xF9, 0x47, 0xC1];
            /// VPSRLVQ.
            Vpsrlvq AVX2 VV_V ["vpsrlvq xmm0, xmm0, xmm1"] [0xC4, 0xE2, 0xF9, 0x45, 0xC1];
            /// VCVTPH2PS of the four lowest halves.
            Vcvtph2ps F16C V_V ["vcvtph2ps xmm0, xmm0"] [0xC4, 0xE2, 0x79, 0x13, 0xC0];
            /// VCVTPS2PH to nearest.
            Vcvtps2ph0 F16C V_V ["vcvtps2ph xmm0, xmm0, 0"] [];
            /// VCVTPS2PH down.
            Vcvtps2ph1 F16C V_V ["vcvtps2ph xmm0, xmm0, 1"] [];
            /// VCVTPS2PH up.
            Vcvtps2ph2 F16C V_V ["vcvtps2ph xmm0, xmm0, 2"] [];
            /// VCVTPS2PH to zero.
            Vcvtps2ph3 F16C V_V ["vcvtps2ph xmm0, xmm0, 3"] [];
            /// VCVTPS2PH as MXCSR says.
            Vcvtps2ph4 F16C V_V ["vcvtps2ph xmm0, xmm0, 4"] [];
            /// RCPPS.
            Rcpps BASE V_V ["rcpps xmm0, xmm0"] [0x0F, 0x53, 0xC0];
            /// RSQRTPS.
            Rsqrtps BASE V_V ["rsqrtps xmm0, xmm0"] [0x0F, 0x52, 0xC0];
            /// VFMADDSUB213PS: first factor, second factor, summand.
            FmaddsubSingles FMA VVV_V ["vfmaddsub213ps xmm0, xmm1, xmm2"] [0xC4, 0xE2, 0x71, 0xA6, 0xC2];
            /// VFMADDSUB213PD.
            FmaddsubDoubles FMA VVV_V ["vfmaddsub213pd xmm0, xmm1, xmm2"] [0xC4, 0xE2, 0xF1, 0xA6, 0xC2];
            /// VFMSUBADD213PS.
            FmsubaddSingles FMA VVV_V ["vfmsubadd213ps xmm0, xmm1, xmm2"] [0xC4, 0xE2, 0x71, 0xA7, 0xC2];
            /// VFMSUBADD213PD.
            FmsubaddDoubles FMA VVV_V ["vfmsubadd213pd xmm0, xmm1, xmm2"] [0xC4, 0xE2, 0xF1, 0xA7, 0xC2];
            /// Parallel bit extract: source, mask.
            Pext BMI2 II_I ["pext rax, rdi, rsi"] [0xC4, 0xE2, 0xC2, 0xF5, 0xC6];
            /// Parallel bit deposit: source, mask.
            Pdep BMI2 II_I ["pdep rax, rdi, rsi"] [0xC4, 0xE2, 0xC3, 0xF5, 0xC6];
            /// CRC32 of a byte: initial value, data.
            Crc32Byte SSE42 II_I ["mov eax, edi", "crc32 eax, sil"] [];
            /// CRC32 of a word.
            Crc32Word SSE42 II_I ["mov eax, edi", "crc32 eax, si"] [];
            /// CRC32 of a doubleword.
            Crc32Doubleword SSE42 II_I ["mov eax, edi", "crc32 eax, esi"] [];
            /// CRC32 of a quadword.
            Crc32Quadword SSE42 II_I ["mov eax, edi", "crc32 rax, rsi"] [];
            /// REP MOVSB: destination and source, host addresses, and count, all inside pages that have been touched.
            RepMovsb BASE III_N ["push rcx", "push rdi", "push rsi", "mov rcx, rdx", "rep movsb", "pop rsi", "pop rdi", "pop rcx"] [];
            /// REP MOVSW.
            RepMovsw BASE III_N ["push rcx", "push rdi", "push rsi", "mov rcx, rdx", "rep movsw", "pop rsi", "pop rdi", "pop rcx"] [];
            /// REP MOVSD.
            RepMovsd BASE III_N ["push rcx", "push rdi", "push rsi", "mov rcx, rdx", "rep movsd", "pop rsi", "pop rdi", "pop rcx"] [];
            /// REP MOVSQ.
            RepMovsq BASE III_N ["push rcx", "push rdi", "push rsi", "mov rcx, rdx", "rep movsq", "pop rsi", "pop rdi", "pop rcx"] [];
            /// REP STOSB: destination, value, count.
            RepStosb BASE III_N ["push rax", "push rcx", "push rdi", "mov rax, rsi", "mov rcx, rdx", "rep stosb", "pop rdi", "pop rcx", "pop rax"] [];
            /// REP STOSW.
            RepStosw BASE III_N ["push rax", "push rcx", "push rdi", "mov rax, rsi", "mov rcx, rdx", "rep stosw", "pop rdi", "pop rcx", "pop rax"] [];
            /// REP STOSD.
            RepStosd BASE III_N ["push rax", "push rcx", "push rdi", "mov rax, rsi", "mov rcx, rdx", "rep stosd", "pop rdi", "pop rcx", "pop rax"] [];
            /// REP STOSQ.
            RepStosq BASE III_N ["push rax", "push rcx", "push rdi", "mov rax, rsi", "mov rcx, rdx", "rep stosq", "pop rdi", "pop rcx", "pop rax"] [];
            /// Unsigned division of 128 by 64 bits: low half, divisor, high half, which is below the divisor; quotient and remainder.
            Divide128 BASE III_II ["mov rax, rdi", "div rsi"] [];
        }
    };
}

macro_rules! declare_host_ops {
    ($($(#[$doc:meta])* $name:ident $feature:ident $signature:ident [$($line:literal),+] [$($byte:literal),*];)*) => {
        /// An operation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum HostOp { $($(#[$doc])* $name,)* }

        impl HostOp {
            /// All operations in table order.
            pub const ALL: &[Self] = &[$(Self::$name),*];
            /// Number of operations.
            pub const COUNT: usize = Self::ALL.len();
            /// What the host needs for it.
            #[must_use]
            pub const fn feature(self) -> HostFeatures {
                match self { $(Self::$name => HostFeatures::$feature,)* }
            }
            /// What it takes and returns.
            #[must_use]
            pub const fn signature(self) -> HostSignature {
                match self { $(Self::$name => HostSignature::$signature,)* }
            }
            /// Its machine code, if that is short enough to stand in translated code itself; else it is empty.
            #[must_use]
            pub const fn code(self) -> &'static [u8] {
                match self { $(Self::$name => &[$($byte),*],)* }
            }
            /// Its name, for lists.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}
foreach_host_op!(declare_host_ops);

/// String comparisons (SDM vol. 2, PCMPxSTRx): the code exists for each immediate byte, [`StringOp::stride`] bytes apart.
///
/// Results: the index (or mask) as the instruction gives it; the status flags in RFLAGS positions in bits 8 and up of the
/// integer, whose low byte is the index of the forms that return one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum StringOp {
    /// PCMPISTRI.
    ImplicitIndex,
    /// PCMPISTRM.
    ImplicitMask,
    /// PCMPESTRI; the lengths follow the vectors.
    ExplicitIndex,
    /// PCMPESTRM; the lengths follow the vectors.
    ExplicitMask,
}

impl StringOp {
    /// All operations in table order.
    pub const ALL: [Self; 4] = [Self::ImplicitIndex, Self::ImplicitMask, Self::ExplicitIndex, Self::ExplicitMask];
    /// Number of operations.
    pub const COUNT: usize = Self::ALL.len();

    /// What it takes and returns.
    #[must_use]
    pub const fn signature(self) -> HostSignature {
        match self {
            Self::ImplicitIndex => HostSignature::VV_I,
            Self::ImplicitMask => HostSignature::VV_VI,
            Self::ExplicitIndex => HostSignature::VVII_I,
            Self::ExplicitMask => HostSignature::VVII_VI,
        }
    }

    /// Bytes from the code for one immediate to that for the next.
    #[must_use]
    pub const fn stride(self) -> u64 {
        match self {
            Self::ImplicitIndex => 18,
            Self::ImplicitMask => 13,
            Self::ExplicitIndex => 27,
            Self::ExplicitMask => 22,
        }
    }
}
