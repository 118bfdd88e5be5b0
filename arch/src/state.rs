//! The complete register state of one logical processor.

use crate::control::{cr0, cr4, dr, efer};
use crate::entropy::Entropy;
use crate::memory::Privilege;
use crate::model::CpuModel;
use crate::rflags::Rflags;
use crate::segment::{DescriptorTable, Segment, SegmentIndex};

/// General-purpose registers in encoding order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the architectural names say it all")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// All sixteen, in encoding order.
    pub const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];
}

/// x87 and MMX state, as FXSAVE lays it out in meaning (SDM vol. 1, 8.1 and 10.5).
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X87State {
    /// Physical registers R0..R7 (not stack-relative): 80-bit images in the low ten bytes. MMX registers alias the
    /// low eight bytes.
    pub registers: [[u8; 16]; 8],
    /// Control word.
    pub control: u16,
    /// Status word, TOP in bits 11..=13.
    pub status: u16,
    /// Abridged tag word: bit i set means physical register i is not empty.
    pub valid: u8,
    /// Last opcode (11 bits).
    pub opcode: u16,
    /// Last instruction pointer.
    pub instruction_pointer: u64,
    /// Last data pointer.
    pub data_pointer: u64,
    /// Selectors that belong to the pointers: code, data. Processors that deprecate them hold zeros.
    pub selectors: [u16; 2],
}

impl Default for X87State {
    fn default() -> Self {
        Self {
            registers: [[0; 16]; 8],
            control: 0x37F,
            status: 0,
            valid: 0,
            opcode: 0,
            instruction_pointer: 0,
            data_pointer: 0,
            selectors: [0; 2],
        }
    }
}

/// The register state of one logical processor in long mode.
///
/// The layout is `repr(C)` because translated code addresses it; `rflags` is exact whenever control is outside
/// translated code.
#[repr(C, align(64))]
#[derive(Clone, Debug, PartialEq)]
pub struct CpuState {
    /// General-purpose registers, indexed by [`Gpr`].
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Low halves of the vector registers: XMM0..XMM15.
    pub xmm: [[u64; 2]; 16],
    /// High halves of the vector registers (bits 128..=255 of YMM0..YMM15).
    pub ymm_high: [[u64; 2]; 16],
    /// SSE control and status.
    pub mxcsr: u32,
    /// Current privilege level: always `SS.DPL`, kept apart for speed.
    pub cpl: u8,
    /// One while interrupts are held off after MOV SS, POP SS or STI; the first two hold debug traps off as well.
    pub interrupt_shadow: u8,
    /// Segment registers, indexed by [`SegmentIndex`]. FS and GS bases live here.
    pub segments: [Segment; 6],
    /// IA32_KERNEL_GS_BASE: what SWAPGS exchanges with the GS base.
    pub kernel_gs_base: u64,
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table register.
    pub idtr: DescriptorTable,
    /// Control register 0.
    pub cr0: u64,
    /// Page-fault linear address.
    pub cr2: u64,
    /// Page-table base; names an address space, tables are not walked.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Task priority.
    pub cr8: u64,
    /// Extended control register 0.
    pub xcr0: u64,
    /// Debug registers; 4 and 5 are unused (they alias 6 and 7).
    pub dr: [u64; 8],
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u32,
    /// Time-stamp counter at the last update by the runtime.
    pub tsc: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_SYSENTER_CS, ESP, EIP.
    pub sysenter: [u64; 3],
    /// x87 and MMX state.
    pub x87: X87State,
    /// The processor the guest sees through CPUID.
    pub model: CpuModel,
    /// The source of RDRAND and RDSEED.
    pub entropy: Entropy,
    /// IA32_DEBUGCTL: of its bits there is only BTF.
    pub debugctl: u64,
    /// No register: the RIP that execution has got to inside a basic block, not at its start, if hooks of blocks may want to know
    /// ([`crate::hooked`]); 0 if there is none.
    pub inside_block: u64,
    /// No register: the RIP whose hooks have been called although the instruction there has not executed, or not to its end; 0 if
    /// there is none.
    pub hooks_passed: u64,
}

impl CpuState {
    /// A processor in 64-bit mode at CPL 0 with flat segments, SYSCALL and NX enabled: the state in which a boot
    /// loader enters a 64-bit kernel. MSRs that the kernel sets are zero.
    #[must_use]
    pub fn new(model: CpuModel) -> Self {
        let mut segments = [Segment::flat_data(0x18, 0); 6];
        segments[SegmentIndex::Cs as usize] = Segment::flat_code64(0x10, 0);
        segments[SegmentIndex::Fs as usize].selector = 0;
        segments[SegmentIndex::Gs as usize].selector = 0;
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: Rflags::FIXED.bits(),
            xmm: [[0; 2]; 16],
            ymm_high: [[0; 2]; 16],
            mxcsr: 0x1F80,
            cpl: 0,
            interrupt_shadow: 0,
            segments,
            kernel_gs_base: 0,
            ldtr: Segment { attributes: 0x82, ..Segment::default() },
            tr: Segment { attributes: 0x8B, limit: 0x67, ..Segment::default() },
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            cr0: cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG,
            cr2: 0,
            cr3: 0,
            cr4: (cr4::DE | cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE)
                & model.supported_cr4(),
            cr8: 0,
            // Bit 0 (x87) is 1 even at reset.
            xcr0: model.supported_xcr0() | 1,
            dr: [0, 0, 0, 0, 0, 0, dr::DR6_FIXED, dr::DR7_FIXED],
            efer: efer::SCE | efer::LME | efer::LMA | efer::NXE,
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            tsc_aux: 0,
            tsc: 0,
            apic_base: 0xFEE0_0900,
            pat: 0x0007_0406_0007_0406,
            misc_enable: 1,
            sysenter: [0; 3],
            x87: X87State::default(),
            model,
            entropy: Entropy::default(),
            debugctl: 0,
            inside_block: 0,
            hooks_passed: 0,
        }
    }

    /// Reads a general-purpose register.
    #[inline]
    #[must_use]
    pub const fn reg(&self, register: Gpr) -> u64 {
        self.gpr[register as usize]
    }

    /// Writes a general-purpose register, all 64 bits.
    #[inline]
    pub const fn set_reg(&mut self, register: Gpr, value: u64) {
        self.gpr[register as usize] = value;
    }

    /// RFLAGS with names; bits without a name are dropped.
    #[inline]
    #[must_use]
    pub const fn flags(&self) -> Rflags {
        Rflags::from_bits_truncate(self.rflags)
    }

    /// A segment register.
    #[inline]
    #[must_use]
    pub const fn segment(&self, index: SegmentIndex) -> &Segment {
        &self.segments[index as usize]
    }

    /// A segment register, to change.
    #[inline]
    pub const fn segment_mut(&mut self, index: SegmentIndex) -> &mut Segment {
        &mut self.segments[index as usize]
    }

    /// Whether the processor executes 64-bit code (as opposed to compatibility mode).
    #[inline]
    #[must_use]
    pub const fn is_64bit(&self) -> bool {
        self.segment(SegmentIndex::Cs).is_long()
    }

    /// Whether the processor executes 32-bit code in the flat model: no offset in CS, SS, DS or ES violates its segment, and
    /// each is the linear address. FS and GS may be anything.
    #[must_use]
    pub fn is_flat_32bit(&self) -> bool {
        let flat = |index| self.segment(index).base == 0 && self.segment(index).is_unlimited_data();
        let cs = self.segment(SegmentIndex::Cs);
        cs.base == 0
            && cs.is_unlimited_code32()
            && flat(SegmentIndex::Ss)
            && self.segment(SegmentIndex::Ss).is_big()
            && flat(SegmentIndex::Ds)
            && flat(SegmentIndex::Es)
    }

    /// The state components that are not in their initial configuration, numbered as in XCR0 (SDM vol. 1, 13.6): what
    /// XSAVE marks in XSTATE_BV. SSE always counts as in use, as on AMD's processors; MXCSR belongs to none of them.
    #[must_use]
    pub fn xinuse(&self) -> u64 {
        u64::from(self.x87 != X87State::default()) | 1 << 1 | u64::from(self.ymm_high != [[0; 2]; 16]) << 2
    }

    /// The privilege of explicit memory accesses at the current CPL.
    #[inline]
    #[must_use]
    pub const fn privilege(&self) -> Privilege {
        if self.cpl == 3 { Privilege::User } else { Privilege::Supervisor }
    }
}
