//! Descriptors in the GDT, LDT and IDT (SDM vol. 3, 3.4.5, 3.5 and 6.14.1).
//!
//! In long mode code and data descriptors have 8 bytes, system descriptors (LDT, TSS, gates) 16.

use crate::exception::Exception;
use crate::memory::{GuestMemory, Privilege};
use crate::segment::Segment;
use crate::state::CpuState;

/// System descriptor types of long mode (SDM vol. 3, table 3-2).
pub mod system_type {
    #![expect(missing_docs, reason = "the architectural names say it all")]
    pub const LDT: u8 = 0x2;
    pub const TSS_AVAILABLE: u8 = 0x9;
    pub const TSS_BUSY: u8 = 0xB;
    pub const CALL_GATE: u8 = 0xC;
    pub const INTERRUPT_GATE: u8 = 0xE;
    pub const TRAP_GATE: u8 = 0xF;
}

/// A selector as an error code: the RPL bits give way to EXT and IDT, here both 0.
#[must_use]
pub const fn selector_code(selector: u16) -> u32 {
    (selector & !3) as u32
}

/// Whether a selector is null (index and table indicator 0, any RPL).
#[must_use]
pub const fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// Requested privilege level of a selector.
#[must_use]
pub const fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// A raw descriptor and where it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its eight bytes (the lower eight of a system descriptor).
    pub raw: u64,
    /// Linear address of the descriptor.
    pub address: u64,
}

impl Descriptor {
    /// Reads the descriptor that a non-null `selector` names. `Ok(None)` when it lies outside its table.
    pub fn lookup<M: GuestMemory>(cpu: &CpuState, mem: &mut M, selector: u16) -> Result<Option<Self>, Exception> {
        let (base, limit) = if selector & 4 == 0 {
            (cpu.gdtr.base, u32::from(cpu.gdtr.limit))
        } else if cpu.ldtr.is_null() {
            return Ok(None);
        } else {
            (cpu.ldtr.base, cpu.ldtr.limit)
        };
        let offset = selector & !7;
        if u32::from(offset) + 7 > limit {
            return Ok(None);
        }
        let address = base.wrapping_add(u64::from(offset));
        Ok(Some(Self { raw: mem.read_u64(address, Privilege::Supervisor)?, address }))
    }

    /// Like [`Descriptor::lookup`], with #GP(selector) outside the table.
    pub fn read<M: GuestMemory>(cpu: &CpuState, mem: &mut M, selector: u16) -> Result<Self, Exception> {
        Self::lookup(cpu, mem, selector)?.ok_or(Exception::gp(selector_code(selector)))
    }

    /// Reads the upper eight bytes of a system descriptor; #GP(selector) when they lie outside the table or their
    /// type field is not 0 (SDM vol. 3, 3.5.2).
    pub fn read_upper<M: GuestMemory>(self, cpu: &CpuState, mem: &mut M, selector: u16) -> Result<u64, Exception> {
        let limit = if selector & 4 == 0 { u32::from(cpu.gdtr.limit) } else { cpu.ldtr.limit };
        let fault = Exception::gp(selector_code(selector));
        if u32::from(selector & !7) + 15 > limit {
            return Err(fault);
        }
        let upper = mem.read_u64(self.address.wrapping_add(8), Privilege::Supervisor)?;
        if upper >> 40 & 0x1F == 0 { Ok(upper) } else { Err(fault) }
    }

    /// Access rights in the layout of [`Segment::attributes`].
    #[must_use]
    pub const fn attributes(self) -> u16 {
        (self.raw >> 40 & 0xF0FF) as u16
    }

    /// The four type bits.
    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.raw >> 40 & 0xF) as u8
    }

    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }

    /// P bit.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.raw >> 47 & 1 != 0
    }

    /// S bit clear: an LDT, TSS or gate.
    #[must_use]
    pub const fn is_system(self) -> bool {
        self.raw >> 44 & 1 == 0
    }

    /// A code segment.
    #[must_use]
    pub const fn is_code(self) -> bool {
        !self.is_system() && self.kind() & 8 != 0
    }

    /// A conforming code segment.
    #[must_use]
    pub const fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    /// A data segment that can be written.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        !self.is_system() && self.kind() & 0xA == 2
    }

    /// A data segment, or a code segment that can be read.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        !self.is_system() && self.kind() & 0xA != 8
    }

    /// L bit: 64-bit code.
    #[must_use]
    pub const fn is_long(self) -> bool {
        self.raw >> 53 & 1 != 0
    }

    /// D/B bit.
    #[must_use]
    pub const fn is_big(self) -> bool {
        self.raw >> 54 & 1 != 0
    }

    /// Limit in bytes, granularity applied.
    #[must_use]
    pub const fn limit(self) -> u32 {
        let limit = (self.raw & 0xFFFF | self.raw >> 32 & 0xF_0000) as u32;
        if self.raw >> 55 & 1 != 0 { limit << 12 | 0xFFF } else { limit }
    }

    /// The 32-bit base.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.raw >> 16 & 0xFF_FFFF | self.raw >> 32 & 0xFF00_0000
    }

    /// The register contents after loading this descriptor through `selector`.
    #[must_use]
    pub const fn segment(self, selector: u16) -> Segment {
        Segment { base: self.base(), limit: self.limit(), selector, attributes: self.attributes() }
    }

    /// Sets type bits (accessed, busy) in the table and in `self`; writes only when they are clear.
    pub fn mark<M: GuestMemory>(&mut self, mem: &mut M, type_bits: u8) -> Result<(), Exception> {
        let marked = self.raw | u64::from(type_bits) << 40;
        if marked != self.raw {
            mem.store(self.address.wrapping_add(5), [(marked >> 40) as u8], Privilege::Supervisor)?;
            self.raw = marked;
        }
        Ok(())
    }

    /// Sets the accessed bit of a code or data segment.
    pub fn mark_accessed<M: GuestMemory>(&mut self, mem: &mut M) -> Result<(), Exception> {
        self.mark(mem, 1)
    }
}

/// A 64-bit call, interrupt or trap gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Target code segment.
    pub selector: u16,
    /// Target address.
    pub offset: u64,
    /// Interrupt stack table index, 0 for none.
    pub ist: u8,
    /// Type bits: see [`system_type`].
    pub kind: u8,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// P bit.
    pub present: bool,
    /// S bit clear, as it must be.
    pub system: bool,
}

impl Gate {
    /// Decodes a gate's two quadwords.
    #[must_use]
    pub const fn decode(low: u64, high: u64) -> Self {
        let descriptor = Descriptor { raw: low, address: 0 };
        Self {
            selector: (low >> 16) as u16,
            offset: low & 0xFFFF | low >> 32 & 0xFFFF_0000 | high << 32,
            ist: (low >> 32 & 7) as u8,
            kind: descriptor.kind(),
            dpl: descriptor.dpl(),
            present: descriptor.is_present(),
            system: descriptor.is_system(),
        }
    }
}
