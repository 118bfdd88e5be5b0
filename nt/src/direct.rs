//! Direct dispatch: the guest kernel's system-call entry and exit, done by the host instead of guest code.
//!
//! [`DirectDispatch::enter`] leaves the processor and memory as the entry code leaves them at the service gate of a
//! plain service stub, [`DirectDispatch::leave`] as the exit code leaves them behind SYSRETQ: every register, every
//! byte of the trap frame, every flag. Both read the guest's own tables on each call, so that hooks of table entries
//! work, and both decline whatever is out of the ordinary (an unknown number, a hooked entry, a pending APC, a fault)
//! before anything has changed that the guest code, which then runs, would not write itself.
//!
//! Only valid while LSTAR is the unmodified entry and its code is as built: see [`DirectDispatch::code_changed`].

use std::ops::Range;

use lstar_arch::{Gpr, GuestMemory, PAGE_SIZE, PageFault, Privilege, Rflags, SegmentIndex, is_canonical};
use lstar_guest_images::kernel::{FastPathLayout, MAX_STACK_ARGUMENTS};
use lstar_guest_images::layout::{
    Build, TEB_GDI_BATCH_COUNT, THREAD_FLAG_GUI, TRAP_FRAME_BIAS, kpcr, ktrap_frame as frame,
};
use lstar_runtime::{AddressSpace, Registers, Vcpu};

const KERNEL: Privilege = Privilege::Supervisor;
/// Room below the trap frame for home slots and copied arguments.
const ARGUMENT_AREA: u64 = 0x70;
/// Bytes of a plain stub before the instruction behind its gate: `b8 id`, `0f 01 c1`.
const GATE_OFFSET: u64 = 8;
const USER_CS: u64 = 0x33;
const USER_SS: u64 = 0x2B;

/// The short cut through the guest kernel.
#[derive(Clone, Debug)]
pub struct DirectDispatch {
    layout: FastPathLayout,
    /// KiSystemServiceCopyEnd.
    copy_end: u64,
    pristine: bool,
}

impl DirectDispatch {
    /// For a kernel image that is mapped in `memory`; `copy_end` is its symbol KiSystemServiceCopyEnd. Its code counts as
    /// fetched from now on, so that changes of it are reported.
    pub fn new(layout: FastPathLayout, copy_end: u64, memory: &mut AddressSpace) -> Self {
        let mut pristine = true;
        let first = layout.code.start & !(PAGE_SIZE - 1);
        for page in (first..layout.code.end).step_by(PAGE_SIZE as usize) {
            pristine &= memory.fetch(page, &mut [0], KERNEL).is_ok();
        }
        Self { layout, copy_end, pristine }
    }

    /// Takes note that guest code was overwritten: a change of the path's own code ends direct dispatch.
    pub fn code_changed(&mut self, range: &Range<u64>) {
        if range.start < self.layout.code.end && self.layout.code.start < range.end {
            self.pristine = false;
        }
    }

    /// From behind SYSCALL (RIP = LSTAR, CPL 0, GS not yet swapped) to the service gate. `false`, with the registers
    /// unchanged, when the guest's code must run instead.
    pub fn enter(&self, vcpu: &mut Vcpu<'_>) -> bool {
        self.pristine && vcpu.rip() == self.layout.lstar && self.try_enter(vcpu).is_ok_and(|entered| entered)
    }

    /// From behind a plain stub's gate to behind SYSRETQ. `false`, with nothing changed, when the guest's code must run.
    pub fn leave(&self, vcpu: &mut Vcpu<'_>) -> bool {
        self.pristine && self.try_leave(vcpu).is_ok_and(|left| left)
    }

    fn try_enter(&self, vcpu: &mut Vcpu<'_>) -> Result<bool, PageFault> {
        let layout = &self.layout;
        let thread_at = layout.thread;
        let kpcr_base = vcpu.kernel_gs_base();
        let user_gs = vcpu.gs_base();
        let [rax, rcx, rdx, rbx, user_rsp, rbp, rsi, rdi] =
            [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx, Gpr::Rsp, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi].map(|r| vcpu.reg(r));
        let [r8, r9, r10, r11] = [Gpr::R8, Gpr::R9, Gpr::R10, Gpr::R11].map(|r| vcpu.reg(r));
        let mxcsr = vcpu.mxcsr();
        let vectors: [u128; 6] = std::array::from_fn(|index| vcpu.xmm(index));
        let memory = &mut *vcpu.memory;

        let rsp_base = memory.read_u64(kpcr_base.wrapping_add(kpcr::RSP_BASE.into()), KERNEL)?;
        let thread = memory.read_u64(kpcr_base.wrapping_add(kpcr::CURRENT_THREAD.into()), KERNEL)?;
        let kernel_mxcsr = read_u32(memory, kpcr_base.wrapping_add(kpcr::MXCSR.into()))?;
        let thread_flags = read_u32(memory, thread.wrapping_add(thread_at.thread_flags.into()))?;

        // KiSystemServiceStart and KiSystemServiceRepeat.
        let table = u64::from(rax as u32 >> 7 & 0x20);
        let index = rax & 0xFFF;
        let gui = thread_flags & THREAD_FLAG_GUI != 0;
        let descriptor = if gui { layout.descriptor_table_shadow } else { layout.descriptor_table } + table;
        if index >= u64::from(read_u32(memory, descriptor + 0x10)?) {
            return Ok(false);
        }
        let base = memory.read_u64(descriptor, KERNEL)?;
        let entry = i64::from(read_u32(memory, base.wrapping_add(index * 4))? as i32);
        let target = base.wrapping_add((entry >> 4) as u64);
        let count = entry as u64 & 0xF;
        let mut scratch = (entry >> 4) as u64;
        if table != 0 {
            let teb = memory.read_u64(thread.wrapping_add(thread_at.teb.into()), KERNEL)?;
            if read_u32(memory, teb.wrapping_add(TEB_GDI_BATCH_COUNT.into()))? != 0 {
                return Ok(false);
            }
            scratch = teb;
        }
        if !layout.gate_stubs.contains(&target) || count > u64::from(MAX_STACK_ARGUMENTS) {
            return Ok(false);
        }
        let [0xB8, i0, i1, i2, i3, 0x0F, 0x01, 0xC1, 0xC3] = memory.load::<9>(target, KERNEL)? else {
            return Ok(false);
        };
        let id = u32::from_le_bytes([i0, i1, i2, i3]);

        // The arguments on the caller's stack.
        let trap_frame = rsp_base.wrapping_sub(frame::LAYOUT.size.into());
        let (stack, new_rsi, new_rdi, status) = if count == 0 {
            (trap_frame, rsi, table, Rflags::ZF | Rflags::PF)
        } else {
            let stack = trap_frame.wrapping_sub(ARGUMENT_AREA);
            let probe = memory.read_u64(layout.user_probe_address, KERNEL)?;
            let source = match user_rsp.wrapping_add(0x20) {
                beyond if beyond >= probe => probe,
                source => source,
            };
            let destination = stack.wrapping_add(0x18);
            for argument in 1..=count {
                let value = memory.load::<8>(source.wrapping_add(argument * 8), KERNEL)?;
                memory.store(destination.wrapping_add(argument * 8), value, KERNEL)?;
            }
            scratch = self.copy_end.wrapping_sub(count * 8);
            (stack, source, destination, status_of_sub(self.copy_end, count * 8))
        };

        // What the entry code writes, in blocks of neighbouring fields.
        let at = |offset: u32| trap_frame.wrapping_add(offset.into());
        memory.write_u64(kpcr_base.wrapping_add(kpcr::USER_RSP.into()), user_rsp, KERNEL)?;
        memory.store(at(frame::RIP), quadwords::<5, 40>([rcx, USER_CS, r11, user_rsp, USER_SS]), KERNEL)?;
        memory.store(at(frame::RBX), quadwords::<4, 32>([rbx, rdi, rsi, rbp]), KERNEL)?;
        memory.store(at(frame::EXCEPTION_ACTIVE), [2], KERNEL)?;
        memory.store(at(frame::MXCSR), mxcsr.to_le_bytes(), KERNEL)?;
        memory.store(at(frame::DR7), [0, 0], KERNEL)?;
        memory.store(at(frame::PREVIOUS_MODE), [1], KERNEL)?;
        memory.store(at(frame::RAX), quadwords::<7, 56>([rax, r10, rdx, r8, r9, r10, r11]), KERNEL)?;
        let mut image = [0; 96];
        for (bytes, value) in image.chunks_exact_mut(16).zip(vectors) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        memory.store(at(frame::XMM0), image, KERNEL)?;
        memory.write_u64(thread.wrapping_add(thread_at.first_argument.into()), r10, KERNEL)?;
        let number_at = thread.wrapping_add(thread_at.system_call_number.into());
        memory.store(number_at, (rax as u32).to_le_bytes(), KERNEL)?;
        memory.write_u64(thread.wrapping_add(thread_at.trap_frame.into()), trap_frame, KERNEL)?;
        let stack = stack.wrapping_sub(8);
        memory.write_u64(stack, layout.service_return, KERNEL)?;

        vcpu.set_gs_base(kpcr_base);
        vcpu.set_kernel_gs_base(user_gs);
        vcpu.set_mxcsr(kernel_mxcsr);
        for (register, value) in [
            (Gpr::Rax, id.into()),
            (Gpr::Rcx, r10),
            (Gpr::Rbx, thread),
            (Gpr::Rsp, stack),
            (Gpr::Rbp, trap_frame.wrapping_add(TRAP_FRAME_BIAS.into())),
            (Gpr::Rsi, new_rsi),
            (Gpr::Rdi, new_rdi),
            (Gpr::R10, target),
            (Gpr::R11, scratch),
        ] {
            vcpu.set_reg(register, value);
        }
        let flags = Rflags::from_bits_truncate(vcpu.rflags()).difference(Rflags::STATUS);
        vcpu.set_rflags((flags | status | Rflags::IF).bits());
        vcpu.set_rip(target.wrapping_add(GATE_OFFSET));
        Ok(true)
    }

    fn try_leave(&self, vcpu: &mut Vcpu<'_>) -> Result<bool, PageFault> {
        let layout = &self.layout;
        let rip = vcpu.rip();
        let behind_plain_gate = vcpu.cpl() == 0 && layout.gate_stubs.contains(&rip.wrapping_sub(GATE_OFFSET));
        let kernel_cs = vcpu.selector(SegmentIndex::Cs);
        let stack = vcpu.reg(Gpr::Rsp);
        let trap_frame = vcpu.reg(Gpr::Rbp).wrapping_sub(TRAP_FRAME_BIAS.into());
        let kpcr_base = vcpu.gs_base();
        let memory = &mut *vcpu.memory;
        if !behind_plain_gate || kernel_cs & 3 != 0 || memory.load::<1>(rip, KERNEL)? != [0xC3] {
            return Ok(false);
        }
        if memory.read_u64(stack, KERNEL)? != layout.service_return {
            return Ok(false);
        }
        let thread = memory.read_u64(kpcr_base.wrapping_add(kpcr::CURRENT_THREAD.into()), KERNEL)?;
        let apc_at = thread.wrapping_add(layout.thread.user_apc_pending.into());
        let at = |offset: u32| trap_frame.wrapping_add(offset.into());
        let machine_frame = memory.load::<40>(at(frame::RIP), KERNEL)?;
        let [return_rip, cs, flags, user_rsp, _] = from_quadwords::<5, 40>(machine_frame);
        let [rbx, rdi, rsi, rbp] = from_quadwords::<4, 32>(memory.load::<32>(at(frame::RBX), KERNEL)?);
        let mxcsr = read_u32(memory, at(frame::MXCSR))?;
        let ordinary = cs as u8 == USER_CS as u8
            && memory.load::<1>(apc_at, KERNEL)? == [0]
            && mxcsr & !0xFFFF == 0
            && is_canonical(return_rip);
        if !ordinary {
            return Ok(false);
        }
        let saved = [Gpr::Rcx, Gpr::R11].map(|register| (register, vcpu.reg(register)));
        vcpu.set_reg(Gpr::Rcx, return_rip);
        vcpu.set_reg(Gpr::R11, flags);
        if !vcpu.swapgs_sysretq() {
            for (register, value) in saved {
                vcpu.set_reg(register, value);
            }
            return Ok(false);
        }
        let r9 = match layout.build {
            Build::Windows7 => rbp,
            Build::Windows11 => 0,
        };
        for (register, value) in [
            (Gpr::Rbx, rbx),
            (Gpr::Rdi, rdi),
            (Gpr::Rsi, rsi),
            (Gpr::Rbp, rbp),
            (Gpr::Rsp, user_rsp),
            (Gpr::Rdx, 0),
            (Gpr::R8, user_rsp),
            (Gpr::R9, r9),
            (Gpr::R10, 0),
        ] {
            vcpu.set_reg(register, value);
        }
        for index in 0..6 {
            vcpu.set_xmm(index, 0);
        }
        vcpu.set_mxcsr(mxcsr);
        Ok(true)
    }
}

fn read_u32(memory: &mut AddressSpace, address: u64) -> Result<u32, PageFault> {
    Ok(u32::from_le_bytes(memory.load(address, KERNEL)?))
}

/// `N` quadwords as their `B` bytes in memory.
fn quadwords<const N: usize, const B: usize>(values: [u64; N]) -> [u8; B] {
    let mut bytes = [0; B];
    for (chunk, value) in bytes.chunks_exact_mut(8).zip(values) {
        chunk.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// `B` bytes of memory as `N` quadwords.
fn from_quadwords<const N: usize, const B: usize>(bytes: [u8; B]) -> [u64; N] {
    let mut values = [0; N];
    for (value, chunk) in values.iter_mut().zip(bytes.chunks_exact(8)) {
        *value = chunk.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
    }
    values
}

/// Status flags of `minuend - subtrahend` (SDM vol. 1, 3.4.3.1).
fn status_of_sub(minuend: u64, subtrahend: u64) -> Rflags {
    let result = minuend.wrapping_sub(subtrahend);
    let mut flags = Rflags::empty();
    flags.set(Rflags::CF, minuend < subtrahend);
    flags.set(Rflags::PF, (result as u8).count_ones().is_multiple_of(2));
    flags.set(Rflags::AF, (minuend ^ subtrahend ^ result) & 0x10 != 0);
    flags.set(Rflags::ZF, result == 0);
    flags.set(Rflags::SF, (result as i64) < 0);
    flags.set(Rflags::OF, ((minuend ^ subtrahend) & (minuend ^ result)) >> 63 != 0);
    flags
}
