//! Start-up code and the tables that it loads.

use iced_x86::code_asm::*;

use super::map::{self, Data, Item};
use super::{GateId, asm_gate, traps};
use crate::BuildError;
use crate::assemble::{Code64, Piece, at};
use crate::layout::{Build, kpcr};

/// IA32_STAR: SYSRET selectors from 23h, SYSCALL selectors from 10h.
const STAR: u64 = 0x0023_0010_0000_0000;
/// IA32_FMASK: NT, DF, IF and TF are cleared at entry.
const FMASK: u64 = 0x4700;
/// EFER.SCE and EFER.NXE.
const EFER_BITS: u32 = 0x801;
/// PG, AM, WP, NE, ET, MP, PE.
const CR0: u32 = 0x8005_0033;
/// OSXMMEXCPT, OSFXSR, PGE, MCE, PAE, PSE, DE.
const CR4_BITS: u32 = 0x6F8;
/// MXCSR with every exception masked.
const INITIAL_MXCSR: u32 = 0x1F80;

/// Selectors 00h to 58h as Windows x64 lays them out; the TSS descriptor (40h) is added with its base.
const GDT: [(usize, u64); 6] = [
    (0x10, 0x0020_9B00_0000_0000),
    (0x18, 0x00CF_9300_0000_FFFF),
    (0x20, 0x00CF_FB00_0000_FFFF),
    (0x28, 0x00CF_F300_0000_FFFF),
    (0x30, 0x0020_FB00_0000_0000),
    (0x50, 0x0040_F300_0000_3C00),
];
const TSS_SELECTOR: u32 = 0x40;

/// Addresses of the data that start-up needs.
pub(super) struct BootData {
    gdt: Item,
    idt: Item,
    tss: Item,
    gdt_register: Item,
    idt_register: Item,
    pcr: Item,
    idle_thread: Item,
    boot_stack: Item,
    ist_stacks: [Item; 3],
}

impl BootData {
    pub fn reserve(data: &mut Data, build: Build) -> Self {
        // The stacks come first: an overflow then hits the read-only section before this one, not a table.
        let boot_stack = data.reserve("KiBootStack", map::BOOT_STACK_SIZE, 4096);
        let ist_stacks = ["KiDoubleFaultStack", "KiNmiStack", "KiMcheckStack"]
            .map(|name| data.reserve(name, map::IST_STACK_SIZE, 4096));
        Self {
            boot_stack,
            ist_stacks,
            idt: data.reserve("KiIdt", map::IDT_ENTRIES * 16, 4096),
            pcr: data.reserve("KiInitialPCR", kpcr::LAYOUT.size as usize, 4096),
            gdt: data.reserve("KiGdt", map::GDT_SIZE, 16),
            tss: data.reserve("KiTss", map::TSS_SIZE, 16),
            gdt_register: data.reserve("KiGdtRegister", 10, 16),
            idt_register: data.reserve("KiIdtRegister", 10, 16),
            idle_thread: data.reserve("KiInitialThread", build.kthread().size as usize, 64),
        }
    }

    /// The initial KPCR.
    pub fn pcr_address(&self) -> u64 {
        self.pcr.address
    }

    /// Fills everything reserved.
    pub fn fill(&self, data: &mut Data, build: Build, handlers: &Code64) {
        for (selector, descriptor) in GDT {
            data.put_u64(self.gdt.address + selector as u64, descriptor);
        }
        let tss = self.tss.address;
        let limit = map::TSS_SIZE as u64 - 1;
        let low = limit | (tss & 0xFF_FFFF) << 16 | 0x89 << 40 | (tss >> 24 & 0xFF) << 56;
        data.put_u64(self.gdt.address + u64::from(TSS_SELECTOR), low);
        data.put_u64(self.gdt.address + u64::from(TSS_SELECTOR) + 8, tss >> 32);

        data.put_u64(tss + 4, self.boot_stack.end());
        for (slot, stack) in (0u64..).zip(&self.ist_stacks) {
            data.put_u64(tss + 0x24 + slot * 8, stack.end());
        }
        data.put(tss + 0x66, &(map::TSS_SIZE as u16).to_le_bytes());

        data.put(self.idt.address, &traps::interrupt_descriptor_table(handlers));
        for (register, table) in [(self.gdt_register, self.gdt), (self.idt_register, self.idt)] {
            data.put(register.address, &(table.size as u16 - 1).to_le_bytes());
            data.put_u64(register.address + 2, table.address);
        }

        let pcr = self.pcr.address;
        for (offset, value) in [
            (kpcr::GDT_BASE, self.gdt.address),
            (kpcr::TSS_BASE, tss),
            (kpcr::SELF_POINTER, pcr),
            (kpcr::USED_SELF, pcr),
            (kpcr::CURRENT_PRCB, pcr + u64::from(kpcr::MXCSR)),
            (kpcr::IDT_BASE, self.idt.address),
            (kpcr::MXCSR, u64::from(INITIAL_MXCSR)),
            (kpcr::CURRENT_THREAD, self.idle_thread.address),
            (kpcr::IDLE_THREAD, self.idle_thread.address),
            (kpcr::RSP_BASE, self.boot_stack.end()),
        ] {
            data.put_u64(pcr + u64::from(offset), value);
        }
        data.put(pcr + u64::from(kpcr::MAJOR_VERSION), &1u16.to_le_bytes());
        data.put(pcr + u64::from(kpcr::MINOR_VERSION), &1u16.to_le_bytes());

        let thread = build.thread_offsets();
        for (offset, value) in [
            (thread.initial_stack, self.boot_stack.end()),
            (thread.stack_limit, self.boot_stack.address),
            (thread.kernel_stack, self.boot_stack.end()),
        ] {
            data.put_u64(self.idle_thread.address + u64::from(offset), value);
        }
    }
}

/// `KiSystemStartup`: entered in 64-bit mode at CPL 0 with interrupts off; everything else is set up here.
pub(super) fn assemble(data: &BootData) -> Result<Code64, BuildError> {
    let mut a = Piece::new()?;
    let mut reloaded = a.create_label();
    let mut idle = a.create_label();
    a.mark("KiSystemStartup")?;
    a.cli()?;
    a.lgdt(fword_ptr(at(data.gdt_register.address)))?;
    a.lidt(fword_ptr(at(data.idt_register.address)))?;
    a.lea(rsp, at(data.boot_stack.end()))?;
    // IRETQ loads CS and SS in one go.
    a.mov(rax, rsp)?;
    a.push(0x18)?;
    a.push(rax)?;
    a.push(2)?;
    a.push(0x10)?;
    a.lea(rax, ptr(reloaded))?;
    a.push(rax)?;
    a.iretq()?;
    a.set_label(&mut reloaded)?;
    a.mov(eax, 0x2B)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(gs, eax)?;
    a.mov(eax, 0x53)?;
    a.mov(fs, eax)?;
    a.mov(eax, TSS_SELECTOR)?;
    a.ltr(ax)?;

    a.mov(eax, CR0)?;
    a.mov(cr0, rax)?;
    a.mov(rax, cr4)?;
    a.or(rax, CR4_BITS as i32)?;
    a.mov(cr4, rax)?;
    a.xor(eax, eax)?;
    a.mov(cr8, rax)?;
    for (msr, value) in [
        (0xC000_0101_u32, data.pcr.address),
        (0xC000_0102, 0),
        (0xC000_0081, STAR),
        (0xC000_0082, map::SYSTEM_CALL_64),
        (0xC000_0083, map::SYSTEM_CALL_32),
        (0xC000_0084, FMASK),
    ] {
        a.mov(ecx, msr)?;
        a.mov(eax, value as u32)?;
        a.mov(edx, (value >> 32) as u32)?;
        a.wrmsr()?;
    }
    a.mov(ecx, 0xC000_0080_u32)?;
    a.rdmsr()?;
    a.or(eax, EFER_BITS)?;
    a.wrmsr()?;
    a.ldmxcsr(dword_ptr(kpcr::MXCSR).gs())?;
    asm_gate(&mut a, GateId::KernelStart)?;
    a.mark_label("KiIdleLoop", &mut idle)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(idle)?;
    a.finish(map::TEXT)
}
