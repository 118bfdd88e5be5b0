//! Direct dispatch: the guest kernel's system-call entry and exit, done by the host instead of guest code.
//!
//! [`DirectDispatch::enter`] leaves the processor and memory as SYSCALL and the entry code leave them at the service gate of a
//! plain service stub, [`DirectDispatch::leave`] as the exit code leaves them behind SYSRETQ: every register, every
//! byte of the trap frame, every flag. Both read the guest's own tables on each call, so that hooks of table entries
//! work, and both decline whatever is out of the ordinary (an unknown number, a hooked entry, a pending APC, a fault)
//! before anything has changed that the guest code, which then runs, would not write itself.
//!
//! Only valid while LSTAR is the unmodified entry and its code is as built: see [`DirectDispatch::code_changed`].

use std::ops::Range;

use lstar_arch::system::{self, FastCall};
use lstar_arch::{CpuState, Gpr, GuestMemory, PAGE_SIZE, Privilege, Rflags, is_canonical};
use lstar_guest_images::kernel::{FastPathLayout, MAX_STACK_ARGUMENTS};
use lstar_guest_images::layout::{
    Build, TEB_GDI_BATCH_COUNT, THREAD_FLAG_GUI, TRAP_FRAME_BIAS, kpcr, ktrap_frame as frame,
};
use lstar_runtime::{AddressSpace, Deferred, Fields, Pin, PinGroup, Pinned, Registers, SystemCall, Vcpu};

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
/// MXCSR's exception masks.
const SIMD_MASKS: u32 = 0x1F80;
/// What MXCSR may else contain.
const SIMD_FLAGS_AND_MODES: u32 = 0xFFFF & !SIMD_MASKS;

/// Bytes below a trap frame that the path writes: copied arguments, home slots, the service's return address.
const BELOW: usize = ARGUMENT_AREA as usize + 8;
/// The part of a kernel stack that the path writes.
const STACK_PART: usize = BELOW + FRAME;
/// Services that a table can have: the number's low 12 bits index it.
const SERVICES: usize = 0x1000;
/// Offset of the trap frame in that part.
const IN_STACK: u32 = BELOW as u32;
/// Both descriptors of a table pair.
const TABLES_PART: usize = 0x40;

/// The structures of the thread that called last, checked.
#[derive(Clone, Copy, Debug)]
struct Pins {
    /// KPCR, KTHREAD, top of the kernel stack, descriptors of both pairs of tables.
    group: PinGroup<KPCR_PART, THREAD_PART, STACK_PART, TABLES_PART, TABLES_PART>,
    /// End of user addresses.
    probe: Pin<8>,
}

/// Their fields.
struct Structures<'a> {
    pcr: Fields<'a, KPCR_PART>,
    thread: Fields<'a, THREAD_PART>,
    stack: Fields<'a, STACK_PART>,
    tables: Fields<'a, TABLES_PART>,
    shadow_tables: Fields<'a, TABLES_PART>,
}

impl Pins {
    fn new(layout: &FastPathLayout, memory: &mut AddressSpace, kpcr_base: u64) -> Option<Self> {
        let pcr = memory.pin(kpcr_base)?;
        let pinned = memory.pinned();
        let fields = pinned.fields(&pcr)?;
        let (thread, rsp_base) = (fields.quad(kpcr::CURRENT_THREAD), fields.quad(kpcr::RSP_BASE));
        let pins = (
            pcr,
            memory.pin(thread)?,
            memory.pin(rsp_base.wrapping_sub(STACK_PART as u64))?,
            memory.pin(layout.descriptor_table)?,
            memory.pin(layout.descriptor_table_shadow)?,
        );
        Some(Self { group: PinGroup::new(pins)?, probe: memory.pin(layout.user_probe_address)? })
    }

    #[inline(always)]
    fn fields<'a>(&self, pinned: &'a Pinned<'_>) -> Option<Structures<'a>> {
        let (pcr, thread, stack, tables, shadow_tables) = pinned.group(&self.group)?;
        Some(Structures { pcr, thread, stack, tables, shadow_tables })
    }

    /// Whether these, with these fields, are the structures of the thread that now runs on `kpcr_base`.
    #[inline(always)]
    fn current(&self, fields: &Structures<'_>, kpcr_base: u64) -> bool {
        let [pcr, thread, stack, ..] = self.group.addresses();
        pcr == kpcr_base
            && fields.pcr.quad(kpcr::CURRENT_THREAD) == thread
            && fields.pcr.quad(kpcr::RSP_BASE).wrapping_sub(STACK_PART as u64) == stack
    }

    #[inline(always)]
    fn kpcr(&self) -> u64 {
        self.group.addresses()[0]
    }

    #[inline(always)]
    fn thread(&self) -> u64 {
        self.group.addresses()[1]
    }

    /// Address of the pinned part of the kernel stack.
    #[inline(always)]
    fn stack(&self) -> u64 {
        self.group.addresses()[2]
    }

    #[inline(always)]
    fn trap_frame(&self) -> u64 {
        self.stack().wrapping_add(BELOW as u64)
    }
}

/// What the last call has found: valid for the next one as long as it holds.
#[derive(Clone, Copy, Debug)]
struct Ready {
    call: FastCall,
    pins: Pins,
    /// Addresses of KTHREAD and trap frame.
    arrival: [u64; 2],
}

impl Ready {
    /// Whether the processor is still in the kernel that the call entered, on the same thread.
    fn still_holds(&self, vcpu: &mut Vcpu<'_>) -> bool {
        let (cpu, memory) = vcpu.parts();
        let pinned = memory.pinned();
        self.call.is_behind(cpu)
            && self.pins.fields(&pinned).is_some_and(|fields| self.pins.current(&fields, cpu.gs_base()))
            && cpu.reg(Gpr::Rbp).wrapping_sub(TRAP_FRAME_BIAS.into()) == self.pins.trap_frame()
    }
}

/// A table entry that was called before, and what its stub was found to be. The stub's page counts as fetched, so a
/// change of it is reported; the entry itself is compared at each call.
#[derive(Clone, Copy, Debug)]
struct Line {
    place: Pin<4>,
    entry: u32,
    /// Arguments on the caller's stack ([`COUNT`]), and [`SHADOW`].
    shape: u64,
    /// What the stub puts into EAX.
    id: u64,
    /// The stub, and the distance of it from the table.
    target: u64,
    distance: u64,
    /// Instructions up to the stub's gate.
    instructions: u64,
}

/// Bits of [`Line::shape`]: how many arguments are on the caller's stack.
const COUNT: u64 = 0xF;
/// Bit of [`Line::shape`]: the service is in the shadow table.
const SHADOW: u64 = 0x10;

/// What SYSCALL, the entry code and the stub up to its gate do to the registers, but for RAX.
///
/// The details: KTHREAD and trap frame, the stub, what is left in R11, where the arguments on the caller's stack are if
/// there are any, and [`Line::shape`].
fn arrive(cpu: &mut CpuState, deferred: &Deferred) {
    let [thread, trap_frame, target, scratch, arguments, shape] = deferred.detail;
    // Neither raises an exception where direct dispatch applies.
    let _ = system::syscall(cpu);
    let _ = system::swapgs(cpu);
    let count = shape & COUNT;
    let mut status = Rflags::ZF | Rflags::PF;
    let mut rdi = if shape & SHADOW != 0 { 0x20 } else { 0 };
    if count != 0 {
        cpu.set_reg(Gpr::Rsi, arguments);
        rdi = deferred.rsp.wrapping_add(0x20);
        status = status_of_sub(scratch.wrapping_add(count * 8), count * 8);
    }
    cpu.set_reg(Gpr::Rdi, rdi);
    cpu.set_mxcsr(deferred.mxcsr);
    cpu.set_reg(Gpr::Rcx, cpu.reg(Gpr::R10));
    cpu.set_reg(Gpr::Rbx, thread);
    cpu.set_reg(Gpr::Rsp, deferred.rsp);
    cpu.set_reg(Gpr::Rbp, trap_frame.wrapping_add(TRAP_FRAME_BIAS.into()));
    cpu.set_reg(Gpr::R10, target);
    cpu.set_reg(Gpr::R11, scratch);
    cpu.set_rflags(cpu.rflags() & !Rflags::STATUS.bits() | (status | Rflags::IF).bits());
    cpu.set_rip(target.wrapping_add(GATE_OFFSET));
}

/// Why [`DirectDispatch::enter`] leaves a call to the guest's code.
#[derive(Clone, Copy)]
enum Refusal {
    /// It is out of the ordinary.
    Declined,
    /// Not yet: [`Ready`] does not hold.
    Unprepared,
    /// Not yet: the service's table entry must be examined first.
    Unknown { base: u64, service: usize },
}

/// The short cut through the guest kernel.
#[derive(Clone, Debug)]
pub struct DirectDispatch {
    layout: FastPathLayout,
    /// KiSystemServiceCopyEnd.
    copy_end: u64,
    pristine: bool,
    ready: Option<Ready>,
    /// By number: first those of the service table, then those of the shadow table.
    lines: Box<[Option<Line>; 2 * SERVICES]>,
}

impl DirectDispatch {
    /// For a kernel image that is mapped in `memory`; `copy_end` is its symbol KiSystemServiceCopyEnd. Its code counts as
    /// fetched from now on, so that changes of it are reported.
    pub fn new(layout: FastPathLayout, copy_end: u64, memory: &mut AddressSpace) -> Self {
        let mut fetch = |code: &Range<u64>| {
            let first = code.start & !(PAGE_SIZE - 1);
            let mut pages = (first..code.end).step_by(PAGE_SIZE as usize);
            pages.all(|page| memory.fetch(page, &mut [0], KERNEL).is_ok())
        };
        let pristine = fetch(&layout.code) && fetch(&layout.gate_stubs);
        Self { layout, copy_end, pristine, ready: None, lines: no_lines() }
    }

    /// Takes note that guest code was overwritten: a change of the path's own code ends direct dispatch.
    pub fn code_changed(&mut self, range: &Range<u64>) {
        if range.start < self.layout.code.end && self.layout.code.start < range.end {
            self.pristine = false;
            self.ready = None;
        }
        if range.start < self.layout.gate_stubs.end && self.layout.gate_stubs.start < range.end {
            self.lines.fill(None);
        }
    }

    /// From a SYSCALL of 64-bit user code, RIP being behind it, to the service gate. `false`, with the registers unchanged,
    /// when SYSCALL must execute and the guest's code run instead.
    #[inline]
    pub fn enter(&mut self, vcpu: &mut Vcpu<'_>) -> bool {
        match self.try_enter(vcpu) {
            Ok(()) => true,
            Err(Refusal::Declined) => false,
            Err(refusal) => self.enter_anew(vcpu, &refusal),
        }
    }

    /// From behind a plain stub's gate to behind SYSRETQ, for the call that [`DirectDispatch::enter`] entered last on this
    /// `vcpu`. Where the guest's code must run for that, it is still behind the gate.
    #[inline]
    pub fn leave(&mut self, vcpu: &mut Vcpu<'_>) -> SystemCall {
        let windows7 = self.layout.build == Build::Windows7;
        if vcpu.is_deferred() {
            let left = if windows7 { self.leave_unseen::<false>(vcpu) } else { self.leave_unseen::<true>(vcpu) };
            if left {
                return SystemCall::Returned;
            }
        } else {
            self.leave_slowly(vcpu);
        }
        SystemCall::Resume
    }

    #[inline(never)]
    fn leave_slowly(&mut self, vcpu: &mut Vcpu<'_>) {
        // Where it declines, the guest's code does it.
        let _ = match self.layout.build {
            Build::Windows7 => self.leave_seen::<false>(vcpu),
            Build::Windows11 => self.leave_seen::<true>(vcpu),
        };
    }

    /// [`DirectDispatch::enter`] where something must be found out first.
    #[cold]
    #[inline(never)]
    fn enter_anew(&mut self, vcpu: &mut Vcpu<'_>, refusal: &Refusal) -> bool {
        // Either can be the first that is noticed, and examining a service can end what was prepared.
        let mut refusal = *refusal;
        for _ in 0..3 {
            let found = match refusal {
                Refusal::Declined => false,
                Refusal::Unprepared => self.prepare(vcpu),
                Refusal::Unknown { base, service } => self.learn(vcpu.memory, base, service),
            };
            if !found {
                return false;
            }
            match self.try_enter(vcpu) {
                Ok(()) => return true,
                Err(next) => refusal = next,
            }
        }
        false
    }

    /// Finds out what SYSCALL does now, and the structures of the running thread; `false` where the guest's code must run.
    fn prepare(&mut self, vcpu: &mut Vcpu<'_>) -> bool {
        self.ready = None;
        if !self.pristine {
            return false;
        }
        let kpcr_base = vcpu.kernel_gs_base();
        let Some(pins) = Pins::new(&self.layout, vcpu.memory, kpcr_base) else { return false };
        let Some(call) = vcpu.fast_call().filter(|call| call.target() == self.layout.lstar) else { return false };
        call.forget_segments(vcpu.parts().0);
        self.ready = Some(Ready { call, arrival: [pins.thread(), pins.trap_frame()], pins });
        true
    }

    /// Examines a service that was not called yet, or whose table entry has changed.
    fn learn(&mut self, memory: &mut AddressSpace, base: u64, service: usize) -> bool {
        let line = self.examine(memory, base, service);
        let Some(place) = self.lines.get_mut(service) else { return false };
        *place = line;
        line.is_some()
    }

    /// What the stub behind a table entry does, if it is a plain one.
    fn examine(&self, memory: &mut AddressSpace, base: u64, service: usize) -> Option<Line> {
        let address = base.wrapping_add((service % SERVICES) as u64 * 4);
        let entry = read_u32(memory, address)?;
        let target = base.wrapping_add((i64::from(entry as i32) >> 4) as u64);
        if !self.layout.gate_stubs.contains(&target) {
            return None;
        }
        let mut stub = [0; 9];
        memory.fetch(target, &mut stub, KERNEL).ok()?;
        let instructions = u64::from_le_bytes(*stub.first_chunk()?);
        if instructions & 0xFFFF_FF00_0000_00FF != MOV_EAX_VMCALL || stub[8] != RET {
            return None;
        }
        let count = entry & 0xF;
        Some(Line {
            // Behind the fetch, which can end pins.
            place: memory.pin(address)?,
            entry,
            shape: u64::from(count) | if service >= SERVICES { SHADOW } else { 0 },
            id: instructions >> 8 & 0xFFFF_FFFF,
            target,
            distance: target.wrapping_sub(base),
            instructions: entered(service >= SERVICES, count.into()),
        })
    }

    #[inline(always)]
    fn try_enter(&mut self, vcpu: &mut Vcpu<'_>) -> Result<(), Refusal> {
        match self.layout.build {
            Build::Windows7 => self.try_enter_build::<false>(vcpu),
            Build::Windows11 => self.try_enter_build::<true>(vcpu),
        }
    }

    #[inline(always)]
    fn try_enter_build<const WINDOWS11: bool>(&mut self, vcpu: &mut Vcpu<'_>) -> Result<(), Refusal> {
        let Ready { call, pins, arrival: [thread_address, trap_frame] } =
            self.ready.as_ref().ok_or(Refusal::Unprepared)?;
        let (cpu, memory) = vcpu.parts();
        let pinned = memory.pinned();
        let kernel = pins.fields(&pinned).ok_or(Refusal::Unprepared)?;
        if !call.applies(cpu) || !pins.current(&kernel, cpu.kernel_gs_base) {
            return Err(Refusal::Unprepared);
        }
        let Structures { pcr, thread, stack, tables, shadow_tables } = kernel;
        let thread_at = const { build::<WINDOWS11>().thread_offsets() };

        // The entry code has written the frame and its other notes by the time it looks at the tables; doing so first
        // is right even if it has to do it again. Registers are read anew where they are needed: to hold all of them would
        // only mean to put them on the stack.
        pcr.put_quad(kpcr::USER_RSP, cpu.reg(Gpr::Rsp));
        thread.put_quad(thread_at.first_argument, cpu.reg(Gpr::R10));
        thread.put(thread_at.system_call_number, (cpu.reg(Gpr::Rax) as u32).to_le_bytes());
        thread.put_quad(thread_at.trap_frame, *trap_frame);
        for (offset, register) in [
            (frame::RSP, Gpr::Rsp),
            (frame::RBX, Gpr::Rbx),
            (frame::RDI, Gpr::Rdi),
            (frame::RSI, Gpr::Rsi),
            (frame::RBP, Gpr::Rbp),
            (frame::RAX, Gpr::Rax),
            (frame::RCX, Gpr::R10),
            (frame::RDX, Gpr::Rdx),
            (frame::R8, Gpr::R8),
            (frame::R9, Gpr::R9),
            (frame::R10, Gpr::R10),
        ] {
            stack.put_quad(IN_STACK + offset, cpu.reg(register));
        }
        // As SYSCALL leaves it in R11.
        let user_flags = cpu.rflags() & !Rflags::RF.bits();
        stack.put_quad(IN_STACK + frame::RIP, cpu.rip());
        stack.put_quad(IN_STACK + frame::SEG_CS, USER_CS);
        stack.put_quad(IN_STACK + frame::EFLAGS, user_flags);
        stack.put_quad(IN_STACK + frame::R11, user_flags);
        stack.put_quad(IN_STACK + frame::SEG_SS, USER_SS);
        stack.put(IN_STACK + frame::EXCEPTION_ACTIVE, [2]);
        stack.put(IN_STACK + frame::PREVIOUS_MODE, [1]);
        stack.put(IN_STACK + frame::MXCSR, cpu.mxcsr().to_le_bytes());
        stack.put(IN_STACK + frame::DR7, [0, 0]);
        for index in 0..6 {
            stack.put(IN_STACK + frame::XMM0 + 16 * index, cpu.xmm(index as usize).to_le_bytes());
        }

        // KiSystemServiceStart and KiSystemServiceRepeat.
        let service = cpu.reg(Gpr::Rax) as usize % (2 * SERVICES);
        let table = (service / SERVICES * 0x20) as u32;
        let index = (service % SERVICES) as u64;
        let gui = thread.double(thread_at.thread_flags) & THREAD_FLAG_GUI != 0;
        let tables = if gui { shadow_tables } else { tables };
        if index >= u64::from(tables.double(table + 0x10)) {
            return Err(Refusal::Declined);
        }
        let base = tables.quad(table);
        let line = match &self.lines[service] {
            Some(line)
                if line.place.address() == base.wrapping_add(index * 4)
                    && pinned.fields(&line.place).is_some_and(|entry| entry.double(0) == line.entry) =>
            {
                line
            }
            _ => return Err(Refusal::Unknown { base, service }),
        };
        let mxcsr = pcr.double(kpcr::MXCSR);
        // Made where it is put, not moved there.
        let deferred = || {
            let detail = [*thread_address, *trap_frame, line.target, line.distance, 0, line.shape];
            Deferred { work: arrive, rsp: trap_frame.wrapping_sub(8), detail, mxcsr }
        };
        let (id, instructions) = (line.id, line.instructions);
        if line.shape == 0 {
            stack.put_quad(IN_STACK - 8, self.layout.service_return);
            cpu.set_reg(Gpr::Rax, id);
            vcpu.defer(deferred());
        } else {
            let teb = thread.quad(thread_at.teb);
            let more = self.more_to_do(memory, pins, teb, cpu.reg(Gpr::Rsp), deferred()).ok_or(Refusal::Declined)?;
            vcpu.set_result(id);
            vcpu.defer(more);
        }
        vcpu.retired += instructions;
        Ok(())
    }

    /// What [`DirectDispatch::enter`] does more where a service is in the shadow table, or has arguments on the caller's
    /// stack. `None` where the guest's code must run.
    #[inline(never)]
    fn more_to_do(
        &self,
        memory: &mut AddressSpace,
        pins: &Pins,
        teb: u64,
        user_rsp: u64,
        mut deferred: Deferred,
    ) -> Option<Deferred> {
        let [_, trap_frame, _, scratch, arguments, shape] = &mut deferred.detail;
        if *shape & SHADOW != 0 {
            if read_u32(memory, teb.wrapping_add(TEB_GDI_BATCH_COUNT.into())) != Some(0) {
                return None;
            }
            *scratch = teb;
        }
        let count = *shape & COUNT;
        let mut rsp = *trap_frame;
        if count != 0 {
            *arguments = copy_arguments(memory, pins, user_rsp, count)?;
            rsp = rsp.wrapping_sub(ARGUMENT_AREA);
            *scratch = self.copy_end.wrapping_sub(count * 8);
        }
        deferred.rsp = rsp.wrapping_sub(8);
        let pinned = memory.pinned();
        let stack = pins.fields(&pinned)?.stack;
        stack.put_quad(deferred.rsp.wrapping_sub(pins.stack()) as u32, self.layout.service_return);
        Some(deferred)
    }

    /// [`DirectDispatch::leave`] while the registers are as user code left them: the service has not looked at others.
    #[inline(always)]
    fn leave_unseen<const WINDOWS11: bool>(&mut self, vcpu: &mut Vcpu<'_>) -> bool {
        let Some(Ready { pins, .. }) = &self.ready else { return false };
        let top = vcpu.reg(Gpr::Rsp);
        let (cpu, memory) = vcpu.parts();
        let pinned = memory.pinned();
        let Some(Structures { thread, stack, .. }) = pins.fields(&pinned) else { return false };
        let thread_at = const { build::<WINDOWS11>().thread_offsets() };
        // The service can have written what it likes to the kernel's memory.
        let below = top.wrapping_sub(pins.stack());
        if below >= BELOW as u64 || stack.quad(below as u32) != self.layout.service_return {
            return false;
        }
        let saved = |offset| stack.quad(IN_STACK + offset);
        let flags = saved(frame::EFLAGS);
        let mxcsr = stack.double(IN_STACK + frame::MXCSR);
        let [cs] = stack.get(IN_STACK + frame::SEG_CS);
        let [apc_pending] = thread.get(thread_at.user_apc_pending);
        // In one word, so that there is one branch.
        let unusual = u64::from(cs ^ USER_CS as u8 | apc_pending)
            | u64::from(mxcsr & !SIMD_FLAGS_AND_MODES ^ SIMD_MASKS)
            | flags & (Rflags::TF | Rflags::RF | Rflags::AC).bits()
            | saved(frame::RIP) ^ cpu.rip();
        if unusual != 0 {
            return false;
        }
        Self::put_back::<WINDOWS11>(cpu, stack);
        cpu.set_reg(Gpr::Rcx, cpu.rip());
        FastCall::return_rflags(cpu, flags);
        vcpu.forget_deferred();
        vcpu.retired += LEFT;
        true
    }

    /// [`DirectDispatch::leave`] from the registers behind the gate.
    fn leave_seen<const WINDOWS11: bool>(&mut self, vcpu: &mut Vcpu<'_>) -> Option<()> {
        if vcpu.is_touched() && !self.is_behind_gate(vcpu) {
            return None;
        }
        let Ready { call, pins, .. } = self.ready.as_ref()?;
        let top = vcpu.reg(Gpr::Rsp);
        let (cpu, memory) = vcpu.parts();
        let pinned = memory.pinned();
        let Structures { thread, stack, .. } = pins.fields(&pinned)?;
        let below = top.wrapping_sub(pins.stack());
        if below >= BELOW as u64 || stack.quad(below as u32) != self.layout.service_return {
            return None;
        }
        let thread_at = const { build::<WINDOWS11>().thread_offsets() };
        let saved = |offset| stack.quad(IN_STACK + offset);
        let [return_rip, flags] = [frame::RIP, frame::EFLAGS].map(saved);
        let [cs] = stack.get(IN_STACK + frame::SEG_CS);
        let [apc_pending] = thread.get(thread_at.user_apc_pending);
        let unusual = cs != USER_CS as u8
            || apc_pending != 0
            || stack.double(IN_STACK + frame::MXCSR) > 0xFFFF
            || flags & Rflags::TF.bits() != 0
            || !is_canonical(return_rip);
        if unusual {
            return None;
        }
        // SWAPGS and SYSRETQ.
        cpu.set_gs_base(cpu.kernel_gs_base());
        cpu.set_kernel_gs_base(pins.kpcr());
        call.leave(cpu, flags);
        cpu.set_rip(return_rip);
        cpu.set_reg(Gpr::Rcx, return_rip);
        Self::put_back::<WINDOWS11>(cpu, stack);
        vcpu.retired += LEFT;
        Some(())
    }

    /// What the exit code loads from the trap frame, and clears, but for RCX and RFLAGS.
    #[inline(always)]
    fn put_back<const WINDOWS11: bool>(cpu: &mut CpuState, stack: Fields<'_, STACK_PART>) {
        let saved = |offset| stack.quad(IN_STACK + offset);
        let user_rsp = saved(frame::RSP);
        let rbp = saved(frame::RBP);
        cpu.set_reg(Gpr::R11, saved(frame::EFLAGS));
        cpu.set_reg(Gpr::Rbx, saved(frame::RBX));
        cpu.set_reg(Gpr::Rdi, saved(frame::RDI));
        cpu.set_reg(Gpr::Rsi, saved(frame::RSI));
        cpu.set_reg(Gpr::Rbp, rbp);
        cpu.set_reg(Gpr::Rsp, user_rsp);
        cpu.set_reg(Gpr::Rdx, 0);
        cpu.set_reg(Gpr::R8, user_rsp);
        cpu.set_reg(Gpr::R9, if WINDOWS11 { 0 } else { rbp });
        cpu.set_reg(Gpr::R10, 0);
        for index in 0..6 {
            cpu.set_xmm(index, 0);
        }
        cpu.set_mxcsr(stack.double(IN_STACK + frame::MXCSR));
    }

    /// Whether a call is still behind a plain stub's gate, after a service that may have changed registers.
    #[inline(never)]
    fn is_behind_gate(&self, vcpu: &mut Vcpu<'_>) -> bool {
        let rip = vcpu.rip();
        let behind_plain_gate = self.layout.gate_stubs.contains(&rip.wrapping_sub(GATE_OFFSET))
            && vcpu.memory.load::<1>(rip, KERNEL).is_ok_and(|byte| byte == [RET]);
        behind_plain_gate && self.ready.as_ref().is_some_and(|ready| ready.still_holds(vcpu))
    }
}

/// Copies a call's arguments from the caller's stack to where the entry code copies them to. Returns where they were
/// taken from; `None` where the guest's code must do it: it faults, or counts more than it has room for.
#[inline(never)]
fn copy_arguments(memory: &mut AddressSpace, pins: &Pins, user_rsp: u64, count: u64) -> Option<u64> {
    if count > u64::from(MAX_STACK_ARGUMENTS) {
        return None;
    }
    let probe = memory.pinned().fields(&pins.probe)?.quad(0);
    let source = match user_rsp.wrapping_add(0x20) {
        beyond if beyond >= probe => probe,
        source => source,
    };
    for argument in 1..=count {
        let value = memory.load::<8>(source.wrapping_add(argument * 8), KERNEL).ok()?;
        // Behind the return address and the home slots.
        pins.fields(&memory.pinned())?.stack.put(0x20 + argument as u32 * 8, value);
    }
    Some(source)
}

fn no_lines() -> Box<[Option<Line>; 2 * SERVICES]> {
    let lines = vec![None; 2 * SERVICES].into_boxed_slice();
    lines.try_into().unwrap_or_else(|_| unreachable!("as many as the type says"))
}

/// Instructions of the guest code from LSTAR up to and including a stub's gate, whose work [`DirectDispatch::enter`] does;
/// they count as retired, so that a run is the same whichever way its calls go.
const fn entered(shadow: bool, arguments: u64) -> u64 {
    const PLAIN: u64 = 73;
    /// A look at the GDI batch.
    const SHADOW_TABLE: u64 = 3;
    /// Finding the arguments on the caller's stack, and copying each.
    const ARGUMENTS: u64 = 12;
    const ARGUMENT: u64 = 2;
    let plain = if shadow { PLAIN + SHADOW_TABLE } else { PLAIN };
    if arguments == 0 { plain } else { plain + ARGUMENTS + arguments * ARGUMENT }
}

/// The same from behind the gate up to and including SYSRETQ.
const LEFT: u64 = 30;

const fn build<const WINDOWS11: bool>() -> Build {
    if WINDOWS11 { Build::Windows11 } else { Build::Windows7 }
}

#[inline(always)]
fn read_u32(memory: &mut AddressSpace, address: u64) -> Option<u32> {
    memory.load(address, KERNEL).ok().map(u32::from_le_bytes)
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
