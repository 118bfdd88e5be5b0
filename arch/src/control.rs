//! Bits of the control registers, EFER, the debug registers and IA32_DEBUGCTL (SDM vol. 3, 2.2.1, 2.5, 17.2, 17.4).

/// CR0 bits.
pub mod cr0 {
    #![expect(missing_docs, reason = "the architectural names say it all")]
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
pub mod cr4 {
    #![expect(missing_docs, reason = "the architectural names say it all")]
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PAE: u64 = 1 << 5;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// IA32_EFER bits.
pub mod efer {
    #![expect(missing_docs, reason = "the architectural names say it all")]
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const FFXSR: u64 = 1 << 14;
}

/// Bits of IA32_DEBUGCTL.
pub mod debugctl {
    /// TF traps after taken branches only.
    pub const BTF: u64 = 1 << 1;
}

/// DR6 and DR7 bits.
pub mod dr {
    #![expect(missing_docs, reason = "the architectural names say it all")]
    pub const DR6_BD: u64 = 1 << 13;
    pub const DR6_BS: u64 = 1 << 14;
    /// Reset value of DR6, and the bits that always read as one.
    pub const DR6_FIXED: u64 = 0xFFFF_0FF0;
    /// Reset value of DR7, and the bit that always reads as one.
    pub const DR7_FIXED: u64 = 0x400;
    pub const DR7_GD: u64 = 1 << 13;
}
