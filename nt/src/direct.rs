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
use lstar_runtime::{AddressSpace, Pin, Registers, Vcpu};

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

/// Bytes below a trap frame that the path writes: copied arguments, home slots, the service's return address.
const BELOW: usize = ARGUMENT_AREA as usize + 8;
/// The part of a kernel stack that the path writes.
const STACK_PART: usize = BELOW + FRAME;
/// Services that a table can have: the number's low 12 bits index it.
const SERVICES: usize = 0x1000;
/// Both descriptors of a table pair.
const TABLES_PART: usize = 0x40;

/// The structures of the thread that called last, checked: KPCR, KTHREAD and top of the kernel stack.
#[derive(Clone, Copy, Debug)]
struct Pins {
    pcr: Pin<KPCR_PART>,
    thread: Pin<THREAD_PART>,
    stack: Pin<STACK_PART>,
    tables: Pin<TABLES_PART>,
    shadow_tables: Pin<TABLES_PART>,
    probe: Pin<8>,
}

impl Pins {
    fn new(layout: &FastPathLayout, memory: &mut AddressSpace, kpcr_base: u64) -> Option<Self> {
        let pcr = memory.pin(kpcr_base)?;
        let bytes = memory.pinned(&pcr)?;
        let (thread, rsp_base) = (quad(bytes, kpcr::CURRENT_THREAD), quad(bytes, kpcr::RSP_BASE));
        Some(Self {
            pcr,
            thread: memory.pin(thread)?,
            stack: memory.pin(rsp_base.wrapping_sub(STACK_PART as u64))?,
            tables: memory.pin(layout.descriptor_table)?,
            shadow_tables: memory.pin(layout.descriptor_table_shadow)?,
            probe: memory.pin(layout.user_probe_address)?,
        })
    }

    /// Whether these are the structures of the thread that now runs on `kpcr_base`.
    #[inline(always)]
    fn current(&self, memory: &mut AddressSpace, kpcr_base: u64) -> bool {
        let Some(pcr) = memory.pinned(&self.pcr) else { return false };
        self.pcr.address() == kpcr_base
            && quad(pcr, kpcr::CURRENT_THREAD) == self.thread.address()
            && quad(pcr, kpcr::RSP_BASE).wrapping_sub(STACK_PART as u64) == self.stack.address()
    }

    #[inline(always)]
    fn trap_frame(&self) -> u64 {
        self.stack.address().wrapping_add(BELOW as u64)
    }
}

/// A table entry that was called before, and what its stub was found to be. The stub's page counts as fetched, so a
/// change of it is reported; the entry itself is compared at each call.
#[derive(Clone, Copy, Debug)]
struct Line {
    place: Pin<4>,
    entry: u32,
    /// What the stub puts into EAX.
    id: u32,
    target: u64,
}

/// The short cut through the guest kernel.
#[derive(Clone, Debug)]
pub struct DirectDispatch {
    layout: FastPathLayout,
    /// KiSystemServiceCopyEnd.
    copy_end: u64,
    pristine: bool,
    pins: Option<Pins>,
    /// By number: first those of the service table, then those of the shadow table.
    lines: Vec<Option<Line>>,
    /// Behind the gate of the stub that was entered last, if that is as it was.
    behind_gate: u64,
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
        Self { layout, copy_end, pristine, pins: None, lines: vec![None; 2 * SERVICES], behind_gate: 0 }
    }

    /// Takes note that guest code was overwritten: a change of the path's own code ends direct dispatch.
    pub fn code_changed(&mut self, range: &Range<u64>) {
        if range.start < self.layout.code.end && self.layout.code.start < range.end {
            self.pristine = false;
        }
        if range.start < self.layout.gate_stubs.end && self.layout.gate_stubs.start < range.end {
            self.lines.fill(None);
            self.behind_gate = 0;
        }
    }

    /// From behind SYSCALL (RIP = LSTAR, CPL 0, GS not yet swapped) to the service gate. `false`, with the registers
    /// unchanged, when the guest's code must run instead.
    #[inline]
    pub fn enter(&mut self, vcpu: &mut Vcpu<'_>) -> bool {
        self.pristine
            && vcpu.rip() == self.layout.lstar
            && match self.layout.build {
                Build::Windows7 => self.try_enter::<false>(vcpu),
                Build::Windows11 => self.try_enter::<true>(vcpu),
            }
            .is_some()
    }

    /// From behind a plain stub's gate to behind SYSRETQ. `false`, with nothing changed, when the guest's code must run.
    #[inline]
    pub fn leave(&mut self, vcpu: &mut Vcpu<'_>) -> bool {
        self.pristine
            && match self.layout.build {
                Build::Windows7 => self.try_leave::<false>(vcpu),
                Build::Windows11 => self.try_leave::<true>(vcpu),
            }
            .is_some()
    }

    /// Makes `pins` those of the thread that runs on `kpcr_base`; where that cannot be, there are none.
    #[inline(always)]
    fn pin_current(&mut self, memory: &mut AddressSpace, kpcr_base: u64) {
        if !self.pins.as_ref().is_some_and(|pins| pins.current(memory, kpcr_base)) {
            self.pin_again(memory, kpcr_base);
        }
    }

    #[cold]
    #[inline(never)]
    fn pin_again(&mut self, memory: &mut AddressSpace, kpcr_base: u64) {
        self.pins = Pins::new(&self.layout, memory, kpcr_base);
    }

    /// What the stub at `base`'s entry does, if it is a plain one.
    #[cold]
    #[inline(never)]
    fn examine(&mut self, memory: &mut AddressSpace, base: u64, service: usize) -> Option<Line> {
        let place: Pin<4> = memory.pin(base.wrapping_add((service % SERVICES) as u64 * 4))?;
        let entry = u32::from_le_bytes(*memory.pinned(&place)?);
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
        let line = Line { place, entry, id: (instructions >> 8) as u32, target };
        *self.lines.get_mut(service)? = Some(line);
        Some(line)
    }

    /// The line of a service whose table is at `base`.
    #[inline(always)]
    fn line(&mut self, memory: &mut AddressSpace, base: u64, service: usize) -> Option<Line> {
        let at = base.wrapping_add((service % SERVICES) as u64 * 4);
        if let Some(&Some(line)) = self.lines.get(service)
            && line.place.address() == at
            && let Some(entry) = memory.pinned(&line.place)
            && u32::from_le_bytes(*entry) == line.entry
        {
            return Some(line);
        }
        self.examine(memory, base, service)
    }

    fn try_enter<const WINDOWS11: bool>(&mut self, vcpu: &mut Vcpu<'_>) -> Option<()> {
        let kpcr_base = vcpu.kernel_gs_base();
        self.pin_current(vcpu.memory, kpcr_base);
        let pins = &self.pins?;
        let thread_at = const { build::<WINDOWS11>().thread_offsets() };
        let thread = pins.thread.address();
        let trap_frame = pins.trap_frame();
        let (cpu, memory) = vcpu.parts();
        let user_rsp = cpu.reg(Gpr::Rsp);
        let rax = cpu.reg(Gpr::Rax);
        let r10 = cpu.reg(Gpr::R10);

        // The entry code has written the frame and its other notes by the time it looks at the tables; doing so first
        // is right even if it has to do it again.
        let pcr = memory.pinned(&pins.pcr)?;
        put(pcr, kpcr::USER_RSP, user_rsp.to_le_bytes());
        let kernel_mxcsr = double(pcr, kpcr::MXCSR);

        let thread_part = memory.pinned(&pins.thread)?;
        put(thread_part, thread_at.first_argument, r10.to_le_bytes());
        put(thread_part, thread_at.system_call_number, (rax as u32).to_le_bytes());
        put(thread_part, thread_at.trap_frame, trap_frame.to_le_bytes());
        let thread_flags = double(thread_part, thread_at.thread_flags);
        let teb = quad(thread_part, thread_at.teb);

        let bytes = memory.pinned(&pins.stack)?.last_chunk_mut::<FRAME>()?;
        for (offset, value) in [
            (frame::RIP, cpu.reg(Gpr::Rcx)),
            (frame::SEG_CS, USER_CS),
            (frame::EFLAGS, cpu.reg(Gpr::R11)),
            (frame::RSP, user_rsp),
            (frame::SEG_SS, USER_SS),
            (frame::RBX, cpu.reg(Gpr::Rbx)),
            (frame::RDI, cpu.reg(Gpr::Rdi)),
            (frame::RSI, cpu.reg(Gpr::Rsi)),
            (frame::RBP, cpu.reg(Gpr::Rbp)),
            (frame::RAX, rax),
            (frame::RCX, r10),
            (frame::RDX, cpu.reg(Gpr::Rdx)),
            (frame::R8, cpu.reg(Gpr::R8)),
            (frame::R9, cpu.reg(Gpr::R9)),
            (frame::R10, r10),
            (frame::R11, cpu.reg(Gpr::R11)),
        ] {
            put(bytes, offset, value.to_le_bytes());
        }
        put(bytes, frame::EXCEPTION_ACTIVE, [2]);
        put(bytes, frame::PREVIOUS_MODE, [1]);
        put(bytes, frame::MXCSR, cpu.mxcsr().to_le_bytes());
        put(bytes, frame::DR7, [0, 0]);
        for index in 0..6 {
            put(bytes, frame::XMM0 + 16 * index, cpu.xmm(index as usize).to_le_bytes());
        }

        // KiSystemServiceStart and KiSystemServiceRepeat.
        let table = rax as u32 >> 7 & 0x20;
        let index = rax & 0xFFF;
        let gui = thread_flags & THREAD_FLAG_GUI != 0;
        let tables = memory.pinned(if gui { &pins.shadow_tables } else { &pins.tables })?;
        if index >= u64::from(double(tables, table + 0x10)) {
            return None;
        }
        let base = quad(tables, table);
        let line = self.line(memory, base, (table as usize) << 7 | index as usize)?;
        let count = u64::from(line.entry & 0xF);
        let target = line.target;
        let mut scratch = (i64::from(line.entry as i32) >> 4) as u64;
        if table != 0 {
            if read_u32(memory, teb.wrapping_add(TEB_GDI_BATCH_COUNT.into()))? != 0 {
                return None;
            }
            scratch = teb;
        }
        if count > u64::from(MAX_STACK_ARGUMENTS) {
            return None;
        }

        // The arguments on the caller's stack.
        let (stack, new_rsi, new_rdi, status) = if count == 0 {
            (trap_frame, cpu.reg(Gpr::Rsi), u64::from(table), Rflags::ZF | Rflags::PF)
        } else {
            let probe = u64::from_le_bytes(*memory.pinned(&pins.probe)?);
            let source = match user_rsp.wrapping_add(0x20) {
                beyond if beyond >= probe => probe,
                source => source,
            };
            let below = trap_frame.wrapping_sub(ARGUMENT_AREA);
            let destination = below.wrapping_add(0x18);
            for argument in 1..=count {
                let value = memory.load::<8>(source.wrapping_add(argument * 8), KERNEL).ok()?;
                // From 8 bytes below `below` on.
                put(memory.pinned(&pins.stack)?, 0x20 + argument as u32 * 8, value);
            }
            scratch = self.copy_end.wrapping_sub(count * 8);
            (below, source, destination, status_of_sub(self.copy_end, count * 8))
        };
        let stack = stack.wrapping_sub(8);
        let part = memory.pinned(&pins.stack)?;
        put(part, stack.wrapping_sub(pins.stack.address()) as u32, self.layout.service_return.to_le_bytes());
        self.behind_gate = target.wrapping_add(GATE_OFFSET);

        let user_gs = cpu.gs_base();
        cpu.set_gs_base(kpcr_base);
        cpu.set_kernel_gs_base(user_gs);
        cpu.set_mxcsr(kernel_mxcsr);
        cpu.set_reg(Gpr::Rax, line.id.into());
        cpu.set_reg(Gpr::Rcx, r10);
        cpu.set_reg(Gpr::Rbx, thread);
        cpu.set_reg(Gpr::Rsp, stack);
        cpu.set_reg(Gpr::Rbp, trap_frame.wrapping_add(TRAP_FRAME_BIAS.into()));
        cpu.set_reg(Gpr::Rsi, new_rsi);
        cpu.set_reg(Gpr::Rdi, new_rdi);
        cpu.set_reg(Gpr::R10, target);
        cpu.set_reg(Gpr::R11, scratch);
        cpu.set_rflags(cpu.rflags() & !Rflags::STATUS.bits() | (status | Rflags::IF).bits());
        cpu.set_rip(self.behind_gate);
        vcpu.retired += entered(table != 0, count);
        Some(())
    }

    fn try_leave<const WINDOWS11: bool>(&mut self, vcpu: &mut Vcpu<'_>) -> Option<()> {
        let rip = vcpu.rip();
        let stack = vcpu.reg(Gpr::Rsp);
        let trap_frame = vcpu.reg(Gpr::Rbp).wrapping_sub(TRAP_FRAME_BIAS.into());
        let kpcr_base = vcpu.gs_base();
        let privileged = vcpu.cpl() == 0;
        self.pin_current(vcpu.memory, kpcr_base);
        let pins = &self.pins?;
        let memory = &mut *vcpu.memory;
        if !privileged || trap_frame != pins.trap_frame() {
            return None;
        }
        let behind_plain_gate = rip == self.behind_gate
            || self.layout.gate_stubs.contains(&rip.wrapping_sub(GATE_OFFSET))
                && memory.load::<1>(rip, KERNEL).ok()? == [RET];
        if !behind_plain_gate {
            return None;
        }
        let part = memory.pinned(&pins.stack)?;
        let below = stack.wrapping_sub(pins.stack.address());
        if below >= BELOW as u64 || quad(part, below as u32) != self.layout.service_return {
            return None;
        }
        let thread_at = const { build::<WINDOWS11>().thread_offsets() };
        if memory.pinned(&pins.thread)?.get(thread_at.user_apc_pending as usize) != Some(&0) {
            return None;
        }
        let bytes = memory.pinned(&pins.stack)?.last_chunk::<FRAME>()?;
        let [return_rip, cs, flags, user_rsp] =
            [frame::RIP, frame::SEG_CS, frame::EFLAGS, frame::RSP].map(|offset| quad(bytes, offset));
        let [rbx, rdi, rsi, rbp] = [frame::RBX, frame::RDI, frame::RSI, frame::RBP].map(|offset| quad(bytes, offset));
        let mxcsr = double(bytes, frame::MXCSR);
        let traps = flags & Rflags::TF.bits() != 0;
        if cs as u8 != USER_CS as u8 || mxcsr & !0xFFFF != 0 || !is_canonical(return_rip) || traps {
            return None;
        }
        let (rcx, r11) = (vcpu.reg(Gpr::Rcx), vcpu.reg(Gpr::R11));
        vcpu.set_reg(Gpr::Rcx, return_rip);
        vcpu.set_reg(Gpr::R11, flags);
        if !vcpu.swapgs_sysretq() {
            vcpu.set_reg(Gpr::Rcx, rcx);
            vcpu.set_reg(Gpr::R11, r11);
            return None;
        }
        let r9 = if WINDOWS11 { 0 } else { rbp };
        vcpu.set_reg(Gpr::Rbx, rbx);
        vcpu.set_reg(Gpr::Rdi, rdi);
        vcpu.set_reg(Gpr::Rsi, rsi);
        vcpu.set_reg(Gpr::Rbp, rbp);
        vcpu.set_reg(Gpr::Rsp, user_rsp);
        vcpu.set_reg(Gpr::Rdx, 0);
        vcpu.set_reg(Gpr::R8, user_rsp);
        vcpu.set_reg(Gpr::R9, r9);
        vcpu.set_reg(Gpr::R10, 0);
        for index in 0..6 {
            vcpu.set_xmm(index, 0);
        }
        vcpu.set_mxcsr(mxcsr);
        vcpu.retired += LEFT;
        Some(())
    }
}

/// Instructions of the guest code from LSTAR up to and including a stub's gate, whose work [`DirectDispatch::enter`] does;
/// they count as retired, so that a run is the same whichever way its calls go.
const fn entered(shadow: bool, arguments: u64) -> u64 {
    const PLAIN: u64 = 73;
    /// A look at the GDI batch.
    const SHADOW: u64 = 3;
    /// Finding the arguments on the caller's stack, and copying each.
    const ARGUMENTS: u64 = 12;
    const ARGUMENT: u64 = 2;
    let plain = if shadow { PLAIN + SHADOW } else { PLAIN };
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

/// A quadword of a structure; 0 beyond its end.
#[inline(always)]
fn quad(bytes: &[u8], offset: u32) -> u64 {
    bytes.get(offset as usize..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// A doubleword of a structure; 0 beyond its end.
#[inline(always)]
fn double(bytes: &[u8], offset: u32) -> u32 {
    bytes.get(offset as usize..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Writes a field of a structure, if it is inside.
#[inline(always)]
fn put<const N: usize>(bytes: &mut [u8], offset: u32, value: [u8; N]) {
    if let Some(field) = bytes.get_mut(offset as usize..).and_then(<[u8]>::first_chunk_mut) {
        *field = value;
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
