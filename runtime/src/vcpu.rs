//! What code above the runtime sees of the processor while a guest is stopped at the service gate or between runs.
#![expect(unsafe_code, reason = "registers that are brought up to date when somebody first looks at them")]

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;

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

/// What SYSCALL and the guest's entry code do to the registers, put off until somebody looks at them: most services do not.
#[derive(Clone, Copy, Debug)]
pub struct Deferred {
    /// Does it. Until then the registers are as user code left them at SYSCALL, with RIP behind the instruction, but RAX, which
    /// is as it will be. RDX, R8, R9 and R12 to R15 stay as they are, and RCX will be what R10 is now.
    pub work: fn(&mut CpuState, &Self),
    /// RSP afterwards.
    pub rsp: u64,
    /// For `work` to use.
    pub detail: [u64; 6],
    /// MXCSR afterwards.
    pub mxcsr: u32,
}

/// The stopped processor and its memory.
#[derive(Debug)]
pub struct Vcpu<'a> {
    /// Not to be looked at while there is deferred work, but by those that know of it.
    cpu: NonNull<CpuState>,
    borrow: PhantomData<&'a mut CpuState>,
    /// Guest memory.
    pub memory: &'a mut AddressSpace,
    /// Guest instructions retired since the machine was made.
    pub retired: u64,
    /// See [`Vcpu::is_touched`].
    touched: bool,
    deferred: Cell<Option<Deferred>>,
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
        self.settle();
        // SAFETY: made from a reference that `self` has borrowed. Nothing is deferred any more, so that `settle`, the only one to
        // change the registers through a shared reference, does not as long as this one lives.
        unsafe { self.cpu.as_ref() }
    }
    #[inline]
    fn state_mut(&mut self) -> &mut CpuState {
        self.settle();
        self.touched = true;
        // SAFETY: made from a reference that `self` has borrowed, and borrowed exclusively.
        unsafe { self.cpu.as_mut() }
    }

    /// What services look at: arguments and the stack they are on. Deferred work need not be done for that.
    #[inline]
    fn reg(&self, register: Gpr) -> u64 {
        // SAFETY: nothing is written to the cell meanwhile: it belongs to this thread, and `settle` does not run.
        let Some(deferred) = (unsafe { &*self.deferred.as_ptr() }) else { return self.state().reg(register) };
        let as_now = match register {
            Gpr::Rsp => return deferred.rsp,
            Gpr::Rcx => Gpr::R10,
            Gpr::Rax | Gpr::Rdx | Gpr::R8 | Gpr::R9 | Gpr::R12 | Gpr::R13 | Gpr::R14 | Gpr::R15 => register,
            _ => return self.state().reg(register),
        };
        // SAFETY: as in `state`; the reference ends here.
        unsafe { self.cpu.as_ref() }.reg(as_now)
    }
}

impl<'a> Vcpu<'a> {
    /// Puts registers and memory together.
    #[inline(always)]
    pub(crate) fn new(cpu: &'a mut CpuState, memory: &'a mut AddressSpace, retired: u64) -> Self {
        let cpu = NonNull::from(cpu);
        Self { cpu, borrow: PhantomData, memory, retired, touched: false, deferred: Cell::new(None) }
    }

    /// Does what was deferred.
    #[inline(always)]
    pub(crate) fn settle(&self) {
        if self.is_deferred() {
            self.carry_out();
        }
    }

    #[inline(never)]
    fn carry_out(&self) {
        if let Some(deferred) = self.deferred.take() {
            // SAFETY: made from a reference that `self` has borrowed. While work is deferred nobody has a reference to the registers:
            // `defer` takes `self` exclusively, `parts` gives them out as long as it is borrowed exclusively, and all others settle first.
            (deferred.work)(unsafe { &mut *self.cpu.as_ptr() }, &deferred);
        }
    }

    /// Puts off work on the registers until somebody looks at them.
    #[inline(always)]
    pub fn defer(&mut self, deferred: Deferred) {
        self.deferred.set(Some(deferred));
    }

    /// Whether work on the registers is still put off.
    #[inline(always)]
    #[must_use]
    pub fn is_deferred(&self) -> bool {
        // SAFETY: nothing is written to the cell meanwhile.
        unsafe { &*self.deferred.as_ptr() }.is_some()
    }

    /// Drops what was put off: it has become void.
    #[inline(always)]
    pub fn forget_deferred(&mut self) {
        self.deferred.set(None);
    }

    /// Copies the registers out.
    #[must_use]
    pub fn save(&self) -> ThreadContext {
        ThreadContext(Box::new(self.state().clone()))
    }

    /// Puts a thread's registers on the processor; control registers, system MSRs and descriptor tables stay.
    pub fn restore(&mut self, context: &ThreadContext) {
        let thread = &context.0;
        let cpu = self.state_mut();
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
        lstar_arch::msr::rdmsr(self.state(), index).ok()
    }

    /// Writes a model-specific register as WRMSR at CPL 0 would; `false` where that raises #GP.
    pub fn write_msr(&mut self, index: u32, value: u64) -> bool {
        lstar_arch::msr::wrmsr(self.state_mut(), index, value).is_ok()
    }

    /// Seeds what RDRAND and RDSEED yield; before the first call that is the same in every run.
    pub fn seed_entropy(&mut self, seed: [u8; 32]) {
        self.state_mut().entropy = lstar_arch::entropy::Entropy::from_seed(seed);
    }

    /// Registers and memory, to use side by side. For those who do what SYSCALL's entry and exit code does: they leave debug
    /// and control registers alone, and put back what user code had in RFLAGS and in the code segment. [Deferred] work is
    /// not done.
    #[inline(always)]
    pub fn parts(&mut self) -> (&mut CpuState, &mut AddressSpace) {
        // SAFETY: made from a reference that `self` has borrowed, and borrowed exclusively.
        (unsafe { self.cpu.as_mut() }, &mut *self.memory)
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
        // Right while work is deferred, too.
        self.parts().0.set_reg(Gpr::Rax, value);
    }

    /// What SYSCALL and SYSRETQ now do; `None` where SYSCALL raises an exception.
    #[must_use]
    pub fn fast_call(&self) -> Option<FastCall> {
        FastCall::new(self.state())
    }

    /// The IDTR (descriptor tables are set by the guest kernel itself).
    #[must_use]
    pub fn idtr(&self) -> DescriptorTable {
        self.state().idtr
    }

    /// Page-fault linear address of the last #PF.
    #[must_use]
    pub fn cr2(&self) -> u64 {
        self.state().cr2
    }

    /// Whether SYSCALL is enabled.
    #[must_use]
    pub fn syscall_enabled(&self) -> bool {
        self.state().efer & efer::SCE != 0
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
