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

use lstar_arch::{Gpr, GuestMemory, PAGE_SIZE, Privilege, Rflags, is_canonical};
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
/// `b8 id 0f 01 c1` as a little-endian quadword, with zeros for the id.
const MOV_EAX_VMCALL: u64 = 0xC101_0F00_0000_00B8;
/// Near RET.
const RET: u8 = 0xC3;
/// Bytes of a trap frame.
const FRAME: usize = frame::LAYOUT.size as usize;
/// Bytes of the KPCR up to the last field used here.
const KPCR_PART: usize = kpcr::RSP_BASE as usize + 8;
/// Bytes of a KTHREAD that hold the fields used here, in every build.
const THREAD_PART: usize = 0x240;
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
        self.pristine && vcpu.rip() == self.layout.lstar && self.try_enter(vcpu).is_some()
    }

    /// From behind a plain stub's gate to behind SYSRETQ. `false`, with nothing changed, when the guest's code must run.
    pub fn leave(&self, vcpu: &mut Vcpu<'_>) -> bool {
        self.pristine && self.try_leave(vcpu).is_some()
    }

    fn try_enter(&self, vcpu: &mut Vcpu<'_>) -> Option<()> {
        let layout = &self.layout;
        let thread_at = layout.thread;
        let kpcr_base = vcpu.kernel_gs_base();
        let user_gs = vcpu.gs_base();
        let user_rsp = vcpu.reg(Gpr::Rsp);
        let rax = vcpu.reg(Gpr::Rax);
        // The entry code has written the frame and its other notes by the time it looks at the tables; doing so first
        // is right even if it has to do it again.
        let machine_frame = [vcpu.reg(Gpr::Rcx), USER_CS, vcpu.reg(Gpr::R11), user_rsp, USER_SS];
        let saved = [Gpr::Rbx, Gpr::Rdi, Gpr::Rsi, Gpr::Rbp].map(|register| vcpu.reg(register));
        let r10 = vcpu.reg(Gpr::R10);
        let volatile = [rax, r10, vcpu.reg(Gpr::Rdx), vcpu.reg(Gpr::R8), vcpu.reg(Gpr::R9), r10, vcpu.reg(Gpr::R11)];
        let mxcsr = vcpu.mxcsr();
        let vectors: [u128; 6] = std::array::from_fn(|index| vcpu.xmm(index));
        let memory = &mut *vcpu.memory;

        let pcr = memory.data_mut::<KPCR_PART>(kpcr_base, KERNEL)?;
        put(pcr, kpcr::USER_RSP, user_rsp.to_le_bytes());
        let rsp_base = quad(pcr, kpcr::RSP_BASE);
        let thread = quad(pcr, kpcr::CURRENT_THREAD);
        let kernel_mxcsr = double(pcr, kpcr::MXCSR);
        let trap_frame = rsp_base.wrapping_sub(frame::LAYOUT.size.into());

        let thread_part = memory.data_mut::<THREAD_PART>(thread, KERNEL)?;
        put(thread_part, thread_at.first_argument, r10.to_le_bytes());
        put(thread_part, thread_at.system_call_number, (rax as u32).to_le_bytes());
        put(thread_part, thread_at.trap_frame, trap_frame.to_le_bytes());
        let thread_flags = double(thread_part, thread_at.thread_flags);
        let teb = quad(thread_part, thread_at.teb);

        let bytes = memory.data_mut::<FRAME>(trap_frame, KERNEL)?;
        put_quads(bytes, frame::RIP, &machine_frame);
        put_quads(bytes, frame::RBX, &saved);
        put_quads(bytes, frame::RAX, &volatile);
        put(bytes, frame::EXCEPTION_ACTIVE, [2]);
        put(bytes, frame::PREVIOUS_MODE, [1]);
        put(bytes, frame::MXCSR, mxcsr.to_le_bytes());
        put(bytes, frame::DR7, [0, 0]);
        for (offset, value) in (frame::XMM0..).step_by(16).zip(vectors) {
            put(bytes, offset, value.to_le_bytes());
        }

        // KiSystemServiceStart and KiSystemServiceRepeat.
        let table = u64::from(rax as u32 >> 7 & 0x20);
        let index = rax & 0xFFF;
        let gui = thread_flags & THREAD_FLAG_GUI != 0;
        let tables = if gui { layout.descriptor_table_shadow } else { layout.descriptor_table };
        let descriptor = memory.data_mut::<0x18>(tables + table, KERNEL)?;
        if index >= u64::from(double(descriptor, 0x10)) {
            return None;
        }
        let base = quad(descriptor, 0);
        let entry = i64::from(read_u32(memory, base.wrapping_add(index * 4))? as i32);
        let target = base.wrapping_add((entry >> 4) as u64);
        let count = entry as u64 & 0xF;
        let mut scratch = (entry >> 4) as u64;
        if table != 0 {
            if read_u32(memory, teb.wrapping_add(TEB_GDI_BATCH_COUNT.into()))? != 0 {
                return None;
            }
            scratch = teb;
        }
        if !layout.gate_stubs.contains(&target) || count > u64::from(MAX_STACK_ARGUMENTS) {
            return None;
        }
        let stub = memory.read_u64(target, KERNEL).ok()?;
        if stub & 0xFFFF_FF00_0000_00FF != MOV_EAX_VMCALL
            || memory.load::<1>(target + GATE_OFFSET, KERNEL).ok()? != [RET]
        {
            return None;
        }
        let id = (stub >> 8) as u32;

        // The arguments on the caller's stack.
        let (stack, new_rsi, new_rdi, status) = if count == 0 {
            (trap_frame, vcpu.reg(Gpr::Rsi), table, Rflags::ZF | Rflags::PF)
        } else {
            let probe = vcpu.memory.read_u64(layout.user_probe_address, KERNEL).ok()?;
            let source = match user_rsp.wrapping_add(0x20) {
                beyond if beyond >= probe => probe,
                source => source,
            };
            let below = trap_frame.wrapping_sub(ARGUMENT_AREA);
            let destination = below.wrapping_add(0x18);
            for argument in 1..=count {
                let value = vcpu.memory.load::<8>(source.wrapping_add(argument * 8), KERNEL).ok()?;
                vcpu.memory.store(destination.wrapping_add(argument * 8), value, KERNEL).ok()?;
            }
            scratch = self.copy_end.wrapping_sub(count * 8);
            (below, source, destination, status_of_sub(self.copy_end, count * 8))
        };
        let stack = stack.wrapping_sub(8);
        vcpu.memory.write_u64(stack, layout.service_return, KERNEL).ok()?;

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
        Some(())
    }

    fn try_leave(&self, vcpu: &mut Vcpu<'_>) -> Option<()> {
        let layout = &self.layout;
        let rip = vcpu.rip();
        let behind_plain_gate = vcpu.cpl() == 0 && layout.gate_stubs.contains(&rip.wrapping_sub(GATE_OFFSET));
        let stack = vcpu.reg(Gpr::Rsp);
        let trap_frame = vcpu.reg(Gpr::Rbp).wrapping_sub(TRAP_FRAME_BIAS.into());
        let kpcr_base = vcpu.gs_base();
        let memory = &mut *vcpu.memory;
        if !behind_plain_gate || memory.load::<1>(rip, KERNEL).ok()? != [RET] {
            return None;
        }
        if memory.read_u64(stack, KERNEL).ok()? != layout.service_return {
            return None;
        }
        let thread = quad(memory.data_mut::<KPCR_PART>(kpcr_base, KERNEL)?, kpcr::CURRENT_THREAD);
        let apc_at = thread.wrapping_add(layout.thread.user_apc_pending.into());
        if memory.load::<1>(apc_at, KERNEL).ok()? != [0] {
            return None;
        }
        let bytes = memory.data_mut::<FRAME>(trap_frame, KERNEL)?;
        let [return_rip, cs, flags, user_rsp] =
            [frame::RIP, frame::SEG_CS, frame::EFLAGS, frame::RSP].map(|offset| quad(bytes, offset));
        let [rbx, rdi, rsi, rbp] = [frame::RBX, frame::RDI, frame::RSI, frame::RBP].map(|offset| quad(bytes, offset));
        let mxcsr = double(bytes, frame::MXCSR);
        let traps = flags & Rflags::TF.bits() != 0;
        if cs as u8 != USER_CS as u8 || mxcsr & !0xFFFF != 0 || !is_canonical(return_rip) || traps {
            return None;
        }
        let saved = [Gpr::Rcx, Gpr::R11].map(|register| (register, vcpu.reg(register)));
        vcpu.set_reg(Gpr::Rcx, return_rip);
        vcpu.set_reg(Gpr::R11, flags);
        if !vcpu.swapgs_sysretq() {
            for (register, value) in saved {
                vcpu.set_reg(register, value);
            }
            return None;
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
        Some(())
    }
}

fn read_u32(memory: &mut AddressSpace, address: u64) -> Option<u32> {
    memory.load(address, KERNEL).ok().map(u32::from_le_bytes)
}

/// A quadword of a structure; 0 beyond its end.
fn quad(bytes: &[u8], offset: u32) -> u64 {
    bytes.get(offset as usize..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// A doubleword of a structure; 0 beyond its end.
fn double(bytes: &[u8], offset: u32) -> u32 {
    bytes.get(offset as usize..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Writes a field of a structure, if it is inside.
fn put<const N: usize>(bytes: &mut [u8], offset: u32, value: [u8; N]) {
    if let Some(field) = bytes.get_mut(offset as usize..).and_then(<[u8]>::first_chunk_mut) {
        *field = value;
    }
}

/// Writes neighbouring quadwords.
fn put_quads(bytes: &mut [u8], offset: u32, values: &[u64]) {
    for (offset, value) in (offset..).step_by(8).zip(values) {
        put(bytes, offset, value.to_le_bytes());
    }
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
