//! A processor with a little paged memory and Windows-like descriptor tables, for the tests of this crate.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashMap;

use lstar_arch::descriptor::selector_code;
use lstar_arch::{
    CpuModel, CpuState, DescriptorTable, GuestMemory, PageFault, PageFaultCode, Privilege, Segment, SegmentIndex,
};

pub const GDT: u64 = 0xFFFF_F800_0000_1000;
pub const IDT: u64 = 0xFFFF_F800_0000_2000;
pub const TSS: u64 = 0xFFFF_F800_0000_3000;
pub const KERNEL_STACK: u64 = 0xFFFF_F800_0000_6000;
pub const IST1_STACK: u64 = 0xFFFF_F800_0000_8000;
pub const USER_STACK: u64 = 0x0000_0000_0010_1000;
pub const HANDLER: u64 = 0xFFFF_F800_1234_5678;

/// Selectors of the GDT below.
pub const KERNEL_CS: u16 = 0x10;
pub const KERNEL_SS: u16 = 0x18;
pub const USER_CS32: u16 = 0x23;
pub const USER_SS: u16 = 0x2B;
pub const USER_CS: u16 = 0x33;
pub const TSS_SELECTOR: u16 = 0x40;
pub const CONFORMING_CS: u16 = 0x50;
pub const ABSENT_DATA: u16 = 0x5B;
pub const LDT_SELECTOR: u16 = 0x60;
pub const CALL_GATE: u16 = 0x73;
pub const READ_ONLY_DATA: u16 = 0x83;
pub const KERNEL_CS32: u16 = 0x88;
pub const BOTH_L_AND_D: u16 = 0x90;
pub const ABSENT_CS: u16 = 0x98;
pub const EXECUTE_ONLY_CS: u16 = 0xA3;
pub const BEYOND: u16 = 0x100;

const ENTRIES: &[(u16, u64)] = &[
    (KERNEL_CS, 0x00AF_9A00_0000_FFFF),
    (KERNEL_SS, 0x00CF_9200_0000_FFFF),
    (USER_CS32, 0x00CF_FA00_0000_FFFF),
    (USER_SS, 0x00CF_F200_0000_FFFF),
    (USER_CS, 0x00AF_FA00_0000_FFFF),
    (CONFORMING_CS, 0x00AF_9E00_0000_FFFF),
    (ABSENT_DATA, 0x00CF_7200_0000_FFFF),
    (READ_ONLY_DATA, 0x0040_F012_3456_0FFF),
    (KERNEL_CS32, 0x00CF_9A00_0000_FFFF),
    (BOTH_L_AND_D, 0x00EF_9A00_0000_FFFF),
    (ABSENT_CS, 0x00AF_1A00_0000_FFFF),
    (EXECUTE_ONLY_CS, 0x00AF_F800_0000_FFFF),
];

/// Pages by number; pages of the upper half are out of reach for user accesses.
#[derive(Default)]
pub struct Memory {
    pages: HashMap<u64, Box<[u8; 4096]>>,
    pub read_only: Vec<u64>,
}

impl Memory {
    pub fn map(&mut self, address: u64) {
        self.pages.insert(address >> 12, Box::new([0; 4096]));
    }

    pub fn unmap(&mut self, address: u64) {
        self.pages.remove(&(address >> 12));
    }

    pub fn peek(&mut self, address: u64) -> u64 {
        self.read_u64(address, Privilege::Supervisor).unwrap()
    }

    pub fn poke(&mut self, address: u64, value: u64) {
        self.write_u64(address, value, Privilege::Supervisor).unwrap();
    }

    fn check(&self, address: u64, len: u64, privilege: Privilege, code: PageFaultCode) -> Result<(), PageFault> {
        for i in 0..len {
            let address = address.wrapping_add(i);
            let present = self.pages.contains_key(&(address >> 12));
            let user = privilege == Privilege::User;
            let write = code.contains(PageFaultCode::WRITE);
            let denied = user && address >> 63 != 0 || write && self.read_only.contains(&(address >> 12));
            if !present || denied {
                let mut code = code;
                code.set(PageFaultCode::PRESENT, present);
                code.set(PageFaultCode::USER, user);
                return Err(PageFault { address, code });
            }
        }
        Ok(())
    }
}

impl GuestMemory for Memory {
    fn read(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<(), PageFault> {
        self.check(address, buf.len() as u64, privilege, PageFaultCode::empty())?;
        for (byte, address) in buf.iter_mut().zip(address..) {
            *byte = self.pages[&(address >> 12)][address as usize & 0xFFF];
        }
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8], privilege: Privilege) -> Result<(), PageFault> {
        self.probe_write(address, data.len() as u64, privilege)?;
        for (byte, address) in data.iter().zip(address..) {
            self.pages.get_mut(&(address >> 12)).unwrap()[address as usize & 0xFFF] = *byte;
        }
        Ok(())
    }

    fn probe_write(&mut self, address: u64, len: u64, privilege: Privilege) -> Result<(), PageFault> {
        self.check(address, len, privilege, PageFaultCode::WRITE)
    }

    fn fetch(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<usize, PageFault> {
        self.read(address, buf, privilege)?;
        Ok(buf.len())
    }

    fn code_modified(&self) -> bool {
        false
    }
}

/// A processor in 64-bit kernel mode with its memory.
pub fn machine(model: CpuModel) -> (CpuState, Memory) {
    let mut cpu = CpuState::new(model);
    let mut mem = Memory::default();
    for page in
        [GDT, IDT, TSS, KERNEL_STACK - 0x1000, KERNEL_STACK, IST1_STACK - 0x1000, USER_STACK - 0x1000, USER_STACK]
    {
        mem.map(page);
    }
    for (selector, descriptor) in ENTRIES {
        mem.poke(GDT + u64::from(selector & !7), *descriptor);
    }
    mem.poke(GDT + u64::from(TSS_SELECTOR), 0x0000_8900_0000_0067 | (TSS & 0xFF_FFFF) << 16);
    mem.poke(GDT + u64::from(TSS_SELECTOR) + 8, TSS >> 32);
    // One LDT entry, user data, in the TSS's page.
    mem.poke(GDT + u64::from(LDT_SELECTOR), 0x0000_8200_3800_0007);
    mem.poke(GDT + u64::from(LDT_SELECTOR) + 8, TSS >> 32);
    mem.poke(TSS + 0x800, 0x00CF_F200_0000_FFFF);
    mem.poke(GDT + u64::from(CALL_GATE & !7), 0x1234_EC00_0010_5678);
    mem.poke(GDT + u64::from(CALL_GATE & !7) + 8, HANDLER >> 32);
    mem.poke(TSS + 4, KERNEL_STACK);
    mem.poke(TSS + 0x24, IST1_STACK);
    cpu.gdtr = DescriptorTable { base: GDT, limit: 0xFF };
    cpu.idtr = DescriptorTable { base: IDT, limit: 0xFFF };
    cpu.tr = Segment { base: TSS, limit: 0x67, selector: TSS_SELECTOR, attributes: 0x8B };
    cpu.gpr[4] = KERNEL_STACK - 0x100;
    cpu.rip = 0xFFFF_F800_0010_0002;
    (cpu, mem)
}

/// The same in 64-bit user mode.
pub fn user_machine(model: CpuModel) -> (CpuState, Memory) {
    let (mut cpu, mem) = machine(model);
    enter_user(&mut cpu, Segment::flat_code64(USER_CS, 3));
    (cpu, mem)
}

/// The same in compatibility mode.
pub fn compatibility_machine(model: CpuModel) -> (CpuState, Memory) {
    let (mut cpu, mem) = machine(model);
    enter_user(&mut cpu, Segment::flat_code32(USER_CS32, 3));
    (cpu, mem)
}

fn enter_user(cpu: &mut CpuState, code: Segment) {
    *cpu.segment_mut(SegmentIndex::Cs) = code;
    *cpu.segment_mut(SegmentIndex::Ss) = Segment::flat_data(USER_SS, 3);
    cpu.cpl = 3;
    cpu.gpr[4] = USER_STACK - 0x100;
    cpu.rip = 0x40_0002;
}

/// Writes the IDT gate of `vector`: type and DPL in `rights` (0x8E = present interrupt gate, DPL 0).
pub fn set_gate(mem: &mut Memory, vector: u8, selector: u16, rights: u8, ist: u8, offset: u64) {
    let address = IDT + u64::from(vector) * 16;
    let low = offset & 0xFFFF
        | u64::from(selector) << 16
        | u64::from(ist) << 32
        | u64::from(rights) << 40
        | (offset >> 16 & 0xFFFF) << 48;
    mem.poke(address, low);
    mem.poke(address + 8, offset >> 32);
}

/// The error code that names `selector`.
pub fn code(selector: u16) -> u32 {
    selector_code(selector)
}
