//! RFLAGS (SDM vol. 1, 3.4.3).

use bitflags::bitflags;

bitflags! {
    /// The bits of RFLAGS that software can see. IOPL is a two-bit field: see [`Rflags::iopl`].
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Rflags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Reserved, always 1.
        const FIXED = 1 << 1;
        /// Parity of the low result byte.
        const PF = 1 << 2;
        /// Auxiliary (nibble) carry.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Trap after each instruction.
        const TF = 1 << 8;
        /// External interrupts enabled.
        const IF = 1 << 9;
        /// String direction: set means downwards.
        const DF = 1 << 10;
        /// Overflow.
        const OF = 1 << 11;
        /// I/O privilege level (both bits).
        const IOPL = 3 << 12;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume: suppresses instruction breakpoints for one instruction.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment check (CPL 3, with CR0.AM) and SMAP override.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID is available (a writable bit).
        const ID = 1 << 21;
    }
}

impl Rflags {
    /// The six arithmetic status flags.
    pub const STATUS: Self = Self::CF.union(Self::PF).union(Self::AF).union(Self::ZF).union(Self::SF).union(Self::OF);

    /// I/O privilege level, 0 to 3.
    #[must_use]
    pub const fn iopl(self) -> u8 {
        (self.bits() >> 12 & 3) as u8
    }
}
