//! What code above the runtime sees of the processor while a guest is stopped at the service gate or between runs.

use lstar_arch::control::efer;
use lstar_arch::system::FastCall;
use lstar_arch::{CpuState, DescriptorTable, Gpr, Rflags, Segment, SegmentIndex};
use lstar_translator::abi::{KERNEL_START, USER_END};

use crate::memory::AddressSpace;

/// A whole register state that is not on the processor: a guest thread that does not run.
///
/// Everything that belongs to a thread is in it; what belongs to the processor or the system (control registers, MSRs
/// other than FS/GS bases, descriptor tables) stays behind on [`Vcpu::restore`].
#[derive(Clone, Debug)]
pub struct ThreadContext(Box<CpuState>);

/// Registers by name, for the running processor and for stopped threads alike.
pub trait Registers {
    #[doc(hidden)]
    fn state(&self) -> &CpuState;
    #[doc(hidden)]
    fn state_mut(&mut self) -> &mut CpuState;

    /// A general-purpose register.
    #[inline]
    fn reg(&self, register: Gpr) -> u64 {
        self.state().reg(register)
    }
    /// Sets a general-purpose register.
    #[inline]
    fn set_reg(&mut self, register: Gpr, value: u64) {
        self.state_mut().set_reg(register, value);
    }
    /// The instruction pointer.
    #[inline]
    fn rip(&self) -> u64 {
        self.state().rip
    }
    /// Sets the instruction pointer.
    #[inline]
    fn set_rip(&mut self, rip: u64) {
        let state = self.state_mut();
        state.rip = rip;
        (state.inside_block, state.hooks_passed) = (0, 0);
    }
    /// RFLAGS.
    #[inline]
    fn rflags(&self) -> u64 {
        self.state().rflags
    }
    /// Sets RFLAGS; the fixed bit 1 is set in any case.
    #[inline]
    fn set_rflags(&mut self, rflags: u64) {
        self.state_mut().rflags = rflags & 0x3F_7FD7 | Rflags::FIXED.bits();
    }
    /// XMM register `index` (0 to 15).
    #[inline]
    fn xmm(&self, index: usize) -> u128 {
        let [low, high] = self.state().xmm[index];
        u128::from(high) << 64 | u128::from(low)
    }
    /// Sets XMM register `index` (0 to 15).
    #[inline]
    fn set_xmm(&mut self, index: usize, value: u128) {
        self.state_mut().xmm[index] = [value as u64, (value >> 64) as u64];
    }
    /// The high half of YMM register `index` (0 to 15); the low half is [`Registers::xmm`].
    #[inline]
    fn ymm_high(&self, index: usize) -> u128 {
        let [low, high] = self.state().ymm_high[index];
        u128::from(high) << 64 | u128::from(low)
    }
    /// Sets the high half of YMM register `index` (0 to 15).
    #[inline]
    fn set_ymm_high(&mut self, index: usize, value: u128) {
        self.state_mut().ymm_high[index] = [value as u64, (value >> 64) as u64];
    }
    /// MXCSR.
    #[inline]
    fn mxcsr(&self) -> u32 {
        self.state().mxcsr
    }
    /// Sets MXCSR; reserved bits are dropped.
    #[inline]
    fn set_mxcsr(&mut self, mxcsr: u32) {
        self.state_mut().mxcsr = mxcsr & 0xFFFF;
    }
    /// x87 and MMX state.
    fn x87(&self) -> &lstar_arch::state::X87State {
        &self.state().x87
    }
    /// x87 and MMX state, to change.
    fn x87_mut(&mut self) -> &mut lstar_arch::state::X87State {
        &mut self.state_mut().x87
    }
    /// Current privilege level.
    #[inline]
    fn cpl(&self) -> u8 {
        self.state().cpl
    }
    /// A segment register's selector.
    fn selector(&self, segment: SegmentIndex) -> u16 {
        self.state().segment(segment).selector
    }
    /// Active GS base (user mode: the TEB; kernel mode: the KPCR).
    #[inline]
    fn gs_base(&self) -> u64 {
        self.state().segment(SegmentIndex::Gs).base
    }
    /// Sets the active GS base.
    #[inline]
    fn set_gs_base(&mut self, base: u64) {
        self.state_mut().segment_mut(SegmentIndex::Gs).base = base;
    }
    /// What SWAPGS exchanges with the GS base.
    #[inline]
    fn kernel_gs_base(&self) -> u64 {
        self.state().kernel_gs_base
    }
    /// Sets what SWAPGS exchanges with the GS base.
    #[inline]
    fn set_kernel_gs_base(&mut self, base: u64) {
        self.state_mut().kernel_gs_base = base;
    }
    /// Debug register 0 to 7.
    fn debug_register(&self, index: usize) -> u64 {
        self.state().dr[index]
    }
    /// Sets debug register 0 to 7; reserved bits of DR6 and DR7 are put right.
    fn set_debug_register(&mut self, index: usize, value: u64) {
        use lstar_arch::control::dr::{DR6_FIXED, DR7_FIXED};
        self.state_mut().dr[index] = match index {
            6 => value & 0xE00F | DR6_FIXED,
            7 => value & 0xFFFF_23FF | DR7_FIXED,
            _ => value,
        };
    }

    /// Makes TF trap after taken branches only (IA32_DEBUGCTL.BTF), until the next #DB.
    fn set_steps_by_branches(&mut self, on: bool) {
        self.state_mut().debugctl = if on { lstar_arch::control::debugctl::BTF } else { 0 };
    }

    /// Loads a data segment register as user code would, with base 0 and a limit in bytes, which only compatibility mode
    /// looks at.
    fn set_data_segment(&mut self, segment: SegmentIndex, selector: u16, limit: u32) {
        *self.state_mut().segment_mut(segment) = Segment { limit, ..Segment::flat_data(selector, 3) };
    }

    /// Puts the processor into 64-bit user mode with flat segments (`cs` with RPL 3, `ss` likewise), as IRETQ would.
    fn enter_user_mode(&mut self, cs: u16, ss: u16) {
        let state = self.state_mut();
        *state.segment_mut(SegmentIndex::Cs) = Segment::flat_code64(cs | 3, 3);
        *state.segment_mut(SegmentIndex::Ss) = Segment::flat_data(ss | 3, 3);
        state.cpl = 3;
        state.interrupt_shadow = 0;
    }

    /// Puts the processor into 64-bit kernel mode with flat segments.
    fn enter_kernel_mode(&mut self, cs: u16, ss: u16) {
        let state = self.state_mut();
        *state.segment_mut(SegmentIndex::Cs) = Segment::flat_code64(cs & !3, 0);
        *state.segment_mut(SegmentIndex::Ss) = Segment::flat_data(ss & !3, 0);
        state.cpl = 0;
        state.interrupt_shadow = 0;
    }
}

impl Registers for ThreadContext {
    #[inline]
    fn state(&self) -> &CpuState {
        &self.0
    }
    #[inline]
    fn state_mut(&mut self) -> &mut CpuState {
        &mut self.0
    }
}

/// The stopped processor and its memory.
#[derive(Debug)]
pub struct Vcpu<'a> {
    pub(crate) cpu: &'a mut CpuState,
    /// Guest memory.
    pub memory: &'a mut AddressSpace,
    /// Guest instructions retired since the machine was made.
    pub retired: u64,
    /// See [`Vcpu::is_touched`].
    pub(crate) touched: bool,
}

impl Registers for CpuState {
    #[inline]
    fn state(&self) -> &CpuState {
        self
    }
    #[inline]
    fn state_mut(&mut self) -> &mut CpuState {
        self
    }
}

impl Registers for Vcpu<'_> {
    #[inline]
    fn state(&self) -> &CpuState {
        self.cpu
    }
    #[inline]
    fn state_mut(&mut self) -> &mut CpuState {
        self.touched = true;
        self.cpu
    }
}

impl Vcpu<'_> {
    /// Copies the registers out.
    #[must_use]
    pub fn save(&self) -> ThreadContext {
        ThreadContext(Box::new(self.cpu.clone()))
    }

    /// Puts a thread's registers on the processor; control registers, system MSRs and descriptor tables stay.
    pub fn restore(&mut self, context: &ThreadContext) {
        let thread = &context.0;
        self.touched = true;
        let cpu = &mut *self.cpu;
        cpu.gpr = thread.gpr;
        cpu.rip = thread.rip;
        cpu.rflags = thread.rflags;
        cpu.xmm = thread.xmm;
        cpu.ymm_high = thread.ymm_high;
        cpu.mxcsr = thread.mxcsr;
        cpu.cpl = thread.cpl;
        cpu.interrupt_shadow = thread.interrupt_shadow;
        cpu.segments = thread.segments;
        cpu.kernel_gs_base = thread.kernel_gs_base;
        cpu.dr = thread.dr;
        cpu.debugctl = thread.debugctl;
        cpu.x87 = thread.x87;
        cpu.cr2 = thread.cr2;
        cpu.inside_block = thread.inside_block;
        cpu.hooks_passed = thread.hooks_passed;
    }

    /// Reads a model-specific register as RDMSR at CPL 0 would; `None` for one that does not exist.
    #[must_use]
    pub fn read_msr(&self, index: u32) -> Option<u64> {
        lstar_arch::msr::rdmsr(self.cpu, index).ok()
    }

    /// Writes a model-specific register as WRMSR at CPL 0 would; `false` where that raises #GP.
    pub fn write_msr(&mut self, index: u32, value: u64) -> bool {
        self.touched = true;
        lstar_arch::msr::wrmsr(self.cpu, index, value).is_ok()
    }

    /// Seeds what RDRAND and RDSEED yield; before the first call that is the same in every run.
    pub fn seed_entropy(&mut self, seed: [u8; 32]) {
        self.cpu.entropy = lstar_arch::entropy::Entropy::from_seed(seed);
    }

    /// Registers and memory, to use side by side. For those who do what SYSCALL's entry and exit code does: they leave debug
    /// and control registers alone, and put back what user code had in RFLAGS and in the code segment.
    #[inline]
    pub fn parts(&mut self) -> (&mut CpuState, &mut AddressSpace) {
        (&mut *self.cpu, &mut *self.memory)
    }

    /// Whether registers may have been changed otherwise than by [`Vcpu::parts`] and [`Vcpu::set_result`].
    #[inline]
    #[must_use]
    pub fn is_touched(&self) -> bool {
        self.touched
    }

    /// Sets RAX, in which a service returns its result. That it has changed need not be looked for: translated code
    /// expects it.
    #[inline]
    pub fn set_result(&mut self, value: u64) {
        self.cpu.set_reg(Gpr::Rax, value);
    }

    /// What SYSCALL and SYSRETQ now do; `None` where SYSCALL raises an exception.
    #[must_use]
    pub fn fast_call(&self) -> Option<FastCall> {
        FastCall::new(self.cpu)
    }

    /// The IDTR (descriptor tables are set by the guest kernel itself).
    #[must_use]
    pub fn idtr(&self) -> DescriptorTable {
        self.cpu.idtr
    }

    /// Page-fault linear address of the last #PF.
    #[must_use]
    pub fn cr2(&self) -> u64 {
        self.cpu.cr2
    }

    /// Whether SYSCALL is enabled.
    #[must_use]
    pub fn syscall_enabled(&self) -> bool {
        self.cpu.efer & efer::SCE != 0
    }
}

/// Whether `address` can ever be mapped for user mode.
#[must_use]
pub fn is_user_address(address: u64) -> bool {
    address < USER_END
}

/// Whether `address` can ever be mapped for kernel mode only.
#[must_use]
pub fn is_kernel_address(address: u64) -> bool {
    (KERNEL_START..lstar_translator::abi::KERNEL_END).contains(&address)
}
