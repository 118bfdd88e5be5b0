//! Threads: what the kernel knows of each, its KTHREAD and kernel stack in guest memory.

pub mod information;
pub mod services;
pub mod waits;

use std::collections::VecDeque;
use std::fmt;

use lstar_arch::{Gpr, PAGE_SIZE};
use lstar_guest_images::layout::{THREAD_FLAG_GUI, TRAP_FRAME_BIAS, ThreadOffsets, kpcr};
use lstar_runtime::{AddressSpace, Protection, Registers, ThreadContext, Vcpu};

use crate::context::{TRAP_FRAME_SIZE, UserContext};
use crate::object::ObjectId;
use crate::process::ProcessId;
use crate::status::Status;
use crate::wait::{Continuation, Wait};

/// UniqueThread of a client identifier.
pub type ThreadId = u32;

/// Kernel addresses from which threads get a KTHREAD and a stack, [`SLOT_SIZE`] bytes each.
const SLOTS: u64 = 0xFFFF_F880_0000_0000;
/// An unmapped page, the stack, the KTHREAD.
const SLOT_SIZE: u64 = 0x1_0000;
const STACK_SIZE: u64 = 0x8000;
/// Most threads at a time.
pub const MAX_THREADS: usize = 4096;

/// A queued user APC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apc {
    /// Routine in user mode.
    pub routine: u64,
    /// Its three arguments.
    pub arguments: [u64; 3],
}

/// Where a thread's kernel structures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSlot {
    index: u32,
}

impl KernelSlot {
    fn base(self) -> u64 {
        SLOTS + u64::from(self.index) * SLOT_SIZE
    }
    /// Top of the kernel stack.
    #[must_use]
    pub fn stack_top(self) -> u64 {
        self.base() + PAGE_SIZE + STACK_SIZE
    }
    /// The KTHREAD.
    #[must_use]
    pub fn kthread(self) -> u64 {
        self.stack_top()
    }
    /// The trap frame of the thread's entry from user mode.
    #[must_use]
    pub fn user_frame(self) -> u64 {
        self.stack_top() - TRAP_FRAME_SIZE
    }
}

/// Gives out kernel slots.
#[derive(Debug, Default)]
pub struct KernelSlots {
    used: Vec<bool>,
}

impl KernelSlots {
    /// Maps a slot and initialises its KTHREAD.
    pub fn allocate(
        &mut self,
        space: &mut AddressSpace,
        offsets: &ThreadOffsets,
        teb: u64,
    ) -> Result<KernelSlot, Status> {
        let index = self.used.iter().position(|used| !used).unwrap_or(self.used.len());
        if index >= MAX_THREADS {
            return Err(Status::INSUFFICIENT_RESOURCES);
        }
        let slot = KernelSlot { index: index as u32 };
        space.map(slot.base() + PAGE_SIZE, STACK_SIZE + PAGE_SIZE, Protection::RW)?;
        if index == self.used.len() {
            self.used.push(true);
        } else {
            self.used[index] = true;
        }
        for (field, value) in [
            (offsets.initial_stack, slot.stack_top()),
            (offsets.kernel_stack, slot.stack_top()),
            (offsets.stack_limit, slot.base() + PAGE_SIZE),
            (offsets.teb, teb),
        ] {
            space.write_unchecked(slot.kthread() + u64::from(field), &value.to_le_bytes())?;
        }
        space.write_unchecked(slot.kthread() + u64::from(offsets.previous_mode), &[1])?;
        Ok(slot)
    }

    /// Unmaps a slot whose thread is gone.
    pub fn free(&mut self, space: &mut AddressSpace, slot: KernelSlot) {
        if let Some(used) = self.used.get_mut(slot.index as usize) {
            *used = false;
            // Mapped by `allocate`; unmapping what the host lost anyway is no loss.
            let _ = space.unmap(slot.base() + PAGE_SIZE, STACK_SIZE + PAGE_SIZE);
        }
    }
}

/// What a thread is doing.
#[derive(Debug)]
pub enum ThreadState {
    /// On the processor.
    Running,
    /// Could run, unless suspended.
    Ready,
    /// Blocked in a service.
    Waiting(Wait),
}

/// A thread.
pub struct Thread {
    /// UniqueThread.
    pub id: ThreadId,
    /// UniqueProcess of its process.
    pub process: ProcessId,
    /// Its object.
    pub object: ObjectId,
    /// Its TEB.
    pub teb: u64,
    /// Start of its user stack's allocation.
    pub stack: u64,
    /// KTHREAD and kernel stack.
    pub slot: KernelSlot,
    /// Where it started (Win32StartAddress).
    pub start_address: u64,
    /// What it is doing.
    pub state: ThreadState,
    /// Its registers while it does not run.
    pub context: Option<ThreadContext>,
    /// What its service still has to do with the status of a wait that has ended.
    pub continuation: Option<(Continuation, Status)>,
    /// NtSuspendThread calls not yet resumed.
    pub suspend_count: u32,
    /// Queued user APCs.
    pub apcs: VecDeque<Apc>,
    /// NtAlertThread was called.
    pub alerted: bool,
    /// NtAlertThreadByThreadId was called.
    pub alerted_by_id: bool,
    /// Description (ThreadNameInformation).
    pub name: Vec<u16>,
    /// Base priority increment.
    pub priority: i32,
    /// Affinity mask.
    pub affinity: u64,
    /// Interrupt time of its creation.
    pub created: u64,
    /// Instructions it has executed.
    pub instructions: u64,
    /// Not reported to debuggers (ThreadHideFromDebugger).
    pub hidden: bool,
    /// Before its first instruction: the CONTEXT in its process's memory that it continues with once ntdll has set up the
    /// thread. That is what others see and change as its registers.
    pub initial_context: Option<u64>,
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").field("id", &self.id).field("state", &self.state).finish_non_exhaustive()
    }
}

/// How to reach the guest kernel's per-processor data.
#[derive(Clone, Copy, Debug)]
pub struct KernelLayout {
    /// KTHREAD offsets.
    pub thread: ThreadOffsets,
    /// The KPCR.
    pub kpcr: u64,
    /// The exit that restores every register from the trap frame.
    pub iret_exit: u64,
}

impl KernelLayout {
    /// Tells the guest kernel which thread is current: KPCR.CurrentThread, RspBase, and RSP0 of the TSS.
    pub fn set_current(&self, space: &mut AddressSpace, slot: KernelSlot) -> Result<(), Status> {
        let mut tss = [0; 8];
        space.read_unchecked(self.kpcr + u64::from(kpcr::TSS_BASE), &mut tss)?;
        let top = slot.stack_top().to_le_bytes();
        space.write_unchecked(self.kpcr + u64::from(kpcr::CURRENT_THREAD), &slot.kthread().to_le_bytes())?;
        space.write_unchecked(self.kpcr + u64::from(kpcr::RSP_BASE), &top)?;
        space.write_unchecked(u64::from_le_bytes(tss).wrapping_add(TSS_RSP0), &top)?;
        Ok(())
    }

    /// Asks the guest kernel to deliver APCs before the thread returns to user mode.
    pub fn set_apc_pending(&self, space: &mut AddressSpace, slot: KernelSlot, pending: bool) {
        let address = slot.kthread() + u64::from(self.thread.user_apc_pending);
        // The slot is mapped as long as the thread lives.
        let _ = space.write_unchecked(address, &[u8::from(pending)]);
    }

    /// Makes a thread in the kernel leave it by the exit that restores every register from a trap frame.
    pub fn leave_by_frame(&self, registers: &mut impl Registers, frame: u64) {
        registers.set_reg(Gpr::Rsp, frame);
        registers.set_reg(Gpr::Rbp, frame + u64::from(TRAP_FRAME_BIAS));
        registers.set_rip(self.iret_exit);
    }

    /// Whether the thread has been converted to a GUI thread.
    #[must_use]
    pub fn is_gui_thread(&self, space: &AddressSpace, slot: KernelSlot) -> bool {
        let mut thread_flags = [0; 4];
        let address = slot.kthread() + u64::from(self.thread.thread_flags);
        space.read_unchecked(address, &mut thread_flags).is_ok()
            && u32::from_le_bytes(thread_flags) & THREAD_FLAG_GUI != 0
    }
}

/// Offset of RSP0 in the TSS.
const TSS_RSP0: u64 = 4;

impl Thread {
    /// The user-mode registers of a thread that does not run.
    pub fn user_context(&self, space: &AddressSpace) -> Result<UserContext, Status> {
        let context = self.context.as_ref().ok_or(Status::UNSUCCESSFUL)?;
        if context.cpl() == 3 {
            return Ok(UserContext::of_registers(context));
        }
        Ok(UserContext::of_frame(context, space, self.slot.user_frame())?)
    }

    /// Replaces the user-mode registers of a thread that does not run. If it is in a service, that service's result is
    /// lost, as on Windows.
    pub fn set_user_context(
        &mut self,
        space: &mut AddressSpace,
        layout: &KernelLayout,
        user: &UserContext,
    ) -> Result<(), Status> {
        let frame = self.slot.user_frame();
        let context = self.context.as_mut().ok_or(Status::UNSUCCESSFUL)?;
        if context.cpl() == 3 {
            user.to_registers(context);
            return Ok(());
        }
        user.to_frame(space, frame)?;
        user.to_live_registers(context);
        layout.leave_by_frame(context, frame);
        Ok(())
    }
}

/// Registers with which a thread enters user mode for the first time.
pub fn initial_registers(vcpu: &mut Vcpu<'_>, layout: &KernelLayout, teb: u64, user: &UserContext) {
    user.to_registers(vcpu);
    vcpu.enter_user_mode(crate::context::USER_CS, crate::context::USER_SS);
    vcpu.set_gs_base(teb);
    vcpu.set_kernel_gs_base(layout.kpcr);
}
