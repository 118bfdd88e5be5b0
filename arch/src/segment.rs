//! Segment registers with their hidden parts, and descriptor tables (SDM vol. 3, chapter 3).

/// Index of a segment register, in the order of the instruction encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the architectural names say it all")]
pub enum SegmentIndex {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// A segment register: the visible selector and the cached descriptor.
///
/// `attributes` uses bits 8..=15 and 20..=23 of the descriptor's second doubleword, shifted right
/// by 8: type in 0..=3, S in 4, DPL in 5..=6, P in 7, AVL in 12, L in 13, D/B in 14, G in 15.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes (granularity already applied).
    pub limit: u32,
    /// Visible selector.
    pub selector: u16,
    /// Access rights, laid out as described on the type.
    pub attributes: u16,
}

impl Segment {
    /// Attribute bit: present.
    pub const PRESENT: u16 = 1 << 7;
    /// Attribute bit: code or data (not a system segment).
    pub const CODE_OR_DATA: u16 = 1 << 4;
    /// Attribute bit: 64-bit code.
    pub const LONG: u16 = 1 << 13;
    /// Attribute bit: default operation size 32.
    pub const DEFAULT_BIG: u16 = 1 << 14;
    /// Attribute bit: limit counted in pages.
    pub const GRANULAR: u16 = 1 << 15;

    /// A flat 64-bit code segment as SYSCALL and SYSRET load it: base 0, limit 4 GiB, execute/read, accessed.
    #[must_use]
    pub const fn flat_code64(selector: u16, dpl: u8) -> Self {
        Self { base: 0, limit: u32::MAX, selector, attributes: 0xA09B | (dpl as u16) << 5 }
    }

    /// A flat 32-bit (compatibility mode) code segment.
    #[must_use]
    pub const fn flat_code32(selector: u16, dpl: u8) -> Self {
        Self { base: 0, limit: u32::MAX, selector, attributes: 0xC09B | (dpl as u16) << 5 }
    }

    /// A flat data or stack segment: base 0, limit 4 GiB, read/write, accessed.
    #[must_use]
    pub const fn flat_data(selector: u16, dpl: u8) -> Self {
        Self { base: 0, limit: u32::MAX, selector, attributes: 0xC093 | (dpl as u16) << 5 }
    }

    /// The null stack segment that 64-bit code gets when it is entered from an outer privilege level.
    #[must_use]
    pub const fn null_stack(cpl: u8) -> Self {
        Self { base: 0, limit: 0, selector: cpl as u16, attributes: (cpl as u16) << 5 }
    }

    /// Whether this is a conforming code segment.
    #[must_use]
    pub const fn is_conforming(&self) -> bool {
        self.attributes & (Self::CODE_OR_DATA | 0xC) == Self::CODE_OR_DATA | 0xC
    }

    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    /// Whether this code segment selects 64-bit mode.
    #[must_use]
    pub const fn is_long(&self) -> bool {
        self.attributes & Self::LONG != 0
    }

    /// Whether the default operand size is 32 bits (D/B).
    #[must_use]
    pub const fn is_big(&self) -> bool {
        self.attributes & Self::DEFAULT_BIG != 0
    }

    /// Whether this is a present data segment over all 4 GiB, expand-up and writable: one that no access can violate.
    #[must_use]
    pub const fn is_unlimited_data(&self) -> bool {
        const KIND: u16 = Segment::PRESENT | Segment::CODE_OR_DATA | 0xE;
        self.limit == u32::MAX && self.attributes & KIND == Segment::PRESENT | Segment::CODE_OR_DATA | 2
    }

    /// Whether this is a present, readable 32-bit code segment over all 4 GiB.
    #[must_use]
    pub const fn is_unlimited_code32(&self) -> bool {
        const KIND: u16 = Segment::PRESENT | Segment::CODE_OR_DATA | Segment::LONG | Segment::DEFAULT_BIG | 0xA;
        const PLAIN: u16 = Segment::PRESENT | Segment::CODE_OR_DATA | Segment::DEFAULT_BIG | 0xA;
        self.limit == u32::MAX && self.attributes & KIND == PLAIN
    }

    /// Whether the register holds a null selector.
    #[must_use]
    pub const fn is_null(&self) -> bool {
        self.selector & !3 == 0
    }
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Last valid byte offset.
    pub limit: u16,
}
