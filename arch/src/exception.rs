//! Exceptions as values (SDM vol. 3, chapter 6).

use crate::memory::PageFault;

/// Exception and interrupt vectors 0 to 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the architectural names say it all")]
pub enum Vector {
    DivideError = 0,
    Debug = 1,
    Nmi = 2,
    Breakpoint = 3,
    Overflow = 4,
    BoundRange = 5,
    InvalidOpcode = 6,
    DeviceNotAvailable = 7,
    DoubleFault = 8,
    InvalidTss = 10,
    SegmentNotPresent = 11,
    StackFault = 12,
    GeneralProtection = 13,
    PageFault = 14,
    X87 = 16,
    AlignmentCheck = 17,
    MachineCheck = 18,
    Simd = 19,
}

/// An exception raised by an instruction, not yet delivered.
///
/// By the time an engine hands one out, `CpuState::rip` already is the address that delivery must
/// push: the instruction itself for a fault, the next instruction for a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Which exception.
    pub vector: Vector,
    /// Error code, for the vectors that push one.
    pub error_code: Option<u32>,
    /// The faulting linear address: the new CR2 (page faults only).
    pub cr2: Option<u64>,
    /// Bits to set in DR6 before delivery (debug exceptions only).
    pub dr6: u64,
    /// Raised by INT3, INTO or INT n: the gate's DPL is checked and the error code's EXT bit stays 0.
    pub software: bool,
}

impl Exception {
    const fn bare(vector: Vector, error_code: Option<u32>) -> Self {
        Self { vector, error_code, cr2: None, dr6: 0, software: false }
    }
    /// #DE.
    pub const DE: Self = Self::bare(Vector::DivideError, None);
    /// #UD.
    pub const UD: Self = Self::bare(Vector::InvalidOpcode, None);
    /// #NM.
    pub const NM: Self = Self::bare(Vector::DeviceNotAvailable, None);
    /// #MF.
    pub const MF: Self = Self::bare(Vector::X87, None);
    /// #XM.
    pub const XM: Self = Self::bare(Vector::Simd, None);
    /// #AC(0).
    pub const AC: Self = Self::bare(Vector::AlignmentCheck, Some(0));
    /// #DF, whose error code is always 0.
    pub const DF: Self = Self::bare(Vector::DoubleFault, Some(0));
    /// #GP(0), by far the most frequent form.
    pub const GP0: Self = Self::gp(0);
    /// #SS(0).
    pub const SS0: Self = Self::bare(Vector::StackFault, Some(0));

    /// #GP with an error code (a selector or 0).
    #[must_use]
    pub const fn gp(code: u32) -> Self {
        Self::bare(Vector::GeneralProtection, Some(code))
    }
    /// #NP with a selector.
    #[must_use]
    pub const fn np(code: u32) -> Self {
        Self::bare(Vector::SegmentNotPresent, Some(code))
    }
    /// #SS with a selector.
    #[must_use]
    pub const fn ss(code: u32) -> Self {
        Self::bare(Vector::StackFault, Some(code))
    }
    /// #TS with a selector.
    #[must_use]
    pub const fn ts(code: u32) -> Self {
        Self::bare(Vector::InvalidTss, Some(code))
    }
    /// #DB with the DR6 bits it reports.
    #[must_use]
    pub const fn db(dr6: u64) -> Self {
        Self { vector: Vector::Debug, error_code: None, cr2: None, dr6, software: false }
    }
    /// #BP, raised by INT3.
    pub const BP: Self = Self { vector: Vector::Breakpoint, error_code: None, cr2: None, dr6: 0, software: true };
    /// #OF, raised by INTO.
    pub const OF: Self = Self { vector: Vector::Overflow, error_code: None, cr2: None, dr6: 0, software: true };
}

impl From<PageFault> for Exception {
    fn from(fault: PageFault) -> Self {
        Self {
            vector: Vector::PageFault,
            error_code: Some(fault.code.bits()),
            cr2: Some(fault.address),
            dr6: 0,
            software: false,
        }
    }
}
