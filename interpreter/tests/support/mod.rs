//! A small paged memory and shorthands for tests that run assembled code.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;

use iced_x86::code_asm::CodeAssembler;
use lstar_arch::{CpuModel, CpuState, GuestMemory, PAGE_SIZE, PageFault, PageFaultCode, Privilege, Rflags};
use lstar_interpreter::{Interpreter, Outcome, RunOptions};

/// Where test code lies.
pub const CODE: u64 = 0x1_0000;
/// Two pages of test data.
pub const DATA: u64 = 0x2_0000;
/// Top of one page of stack.
pub const STACK: u64 = 0x3_1000;
/// A page that is readable but not writable.
pub const READ_ONLY: u64 = 0x4_0000;
/// No page.
pub const UNMAPPED: u64 = 0x5_0000;

/// `run` options that never return early.
pub const PLAIN: RunOptions = RunOptions::PLAIN;

#[derive(Clone)]
struct Page {
    bytes: Vec<u8>,
    writable: bool,
    executable: bool,
    holds_code: bool,
}

/// Guest memory made of single pages.
#[derive(Clone, Default)]
pub struct Paged {
    pages: BTreeMap<u64, Page>,
    modified: bool,
}

impl Paged {
    /// The layout that the constants describe.
    pub fn new() -> Self {
        let mut memory = Self::default();
        memory.map(CODE, 2, true, true);
        memory.map(DATA, 2, true, false);
        memory.map(STACK - PAGE_SIZE, 1, true, false);
        memory.map(READ_ONLY, 1, false, false);
        memory
    }

    pub fn map(&mut self, address: u64, pages: u64, writable: bool, executable: bool) {
        for number in address / PAGE_SIZE..address / PAGE_SIZE + pages {
            let bytes = vec![0; PAGE_SIZE as usize];
            self.pages.insert(number, Page { bytes, writable, executable, holds_code: false });
        }
    }

    /// Forgets that code was modified.
    pub fn accept_modifications(&mut self) {
        self.modified = false;
    }

    /// Writes whatever the protection says.
    pub fn poke(&mut self, address: u64, data: &[u8]) {
        for (address, byte) in (address..).zip(data) {
            let page = self.pages.get_mut(&(address / PAGE_SIZE)).expect("mapped");
            page.bytes[(address % PAGE_SIZE) as usize] = *byte;
        }
    }

    pub fn peek<const N: usize>(&mut self, address: u64) -> [u8; N] {
        self.load(address, Privilege::Supervisor).expect("mapped")
    }

    pub fn peek_u64(&mut self, address: u64) -> u64 {
        u64::from_le_bytes(self.peek(address))
    }

    fn check(&self, address: u64, allowed: impl Fn(&Page) -> bool, code: PageFaultCode) -> Result<(), PageFault> {
        match self.pages.get(&(address / PAGE_SIZE)) {
            None => Err(PageFault { address, code }),
            Some(page) if !allowed(page) => Err(PageFault { address, code: code | PageFaultCode::PRESENT }),
            Some(_) => Ok(()),
        }
    }
}

fn rights(privilege: Privilege) -> PageFaultCode {
    if privilege == Privilege::User { PageFaultCode::USER } else { PageFaultCode::empty() }
}

impl GuestMemory for Paged {
    fn read(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<(), PageFault> {
        let (mut address, mut rest) = (address, buf);
        while !rest.is_empty() {
            self.check(address, |_| true, rights(privilege))?;
            let offset = (address % PAGE_SIZE) as usize;
            let (now, later) = rest.split_at_mut(rest.len().min(PAGE_SIZE as usize - offset));
            now.copy_from_slice(&self.pages[&(address / PAGE_SIZE)].bytes[offset..offset + now.len()]);
            address += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8], privilege: Privilege) -> Result<(), PageFault> {
        self.probe_write(address, data.len() as u64, privilege)?;
        for page in address / PAGE_SIZE..=(address + data.len() as u64 - 1) / PAGE_SIZE {
            self.modified |= self.pages[&page].holds_code;
        }
        self.poke(address, data);
        Ok(())
    }

    fn probe_write(&mut self, address: u64, len: u64, privilege: Privilege) -> Result<(), PageFault> {
        let code = rights(privilege) | PageFaultCode::WRITE;
        (address..address + len).try_for_each(|address| self.check(address, |page| page.writable, code))
    }

    fn fetch(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<usize, PageFault> {
        let code = rights(privilege) | PageFaultCode::FETCH;
        for (i, byte) in buf.iter_mut().enumerate() {
            let address = address + i as u64;
            match self.check(address, |page| page.executable, code) {
                Err(fault) if i == 0 => return Err(fault),
                Err(_) => return Ok(i),
                Ok(()) => {}
            }
            let page = self.pages.get_mut(&(address / PAGE_SIZE)).expect("checked");
            page.holds_code = true;
            *byte = page.bytes[(address % PAGE_SIZE) as usize];
        }
        Ok(buf.len())
    }

    fn code_modified(&self) -> bool {
        self.modified
    }
}

/// A machine with code at [`CODE`], RSP at [`STACK`], at CPL 0.
pub struct Machine {
    pub cpu: CpuState,
    pub mem: Paged,
    pub interpreter: Interpreter,
}

impl Machine {
    pub fn with_bytes(code: &[u8]) -> Self {
        let mut mem = Paged::new();
        mem.poke(CODE, code);
        let mut cpu = CpuState::new(CpuModel::INTEL);
        cpu.rip = CODE;
        cpu.gpr[4] = STACK;
        Self { cpu, mem, interpreter: Interpreter::new() }
    }

    /// Code given to iced's assembler.
    pub fn new(assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Self {
        Self::with_bytes(&assembled(64, assemble))
    }

    pub fn step(&mut self) -> Outcome {
        self.interpreter.step(&mut self.cpu, &mut self.mem)
    }

    /// Runs `count` instructions, or fewer when something happens.
    pub fn run(&mut self, count: i64) -> Outcome {
        let mut budget = count;
        self.interpreter.run(&mut self.cpu, &mut self.mem, &mut budget, PLAIN)
    }

    /// Moves to CPL 3 with flat user segments.
    pub fn enter_user_mode(&mut self) {
        use lstar_arch::{Segment, SegmentIndex};
        self.cpu.cpl = 3;
        *self.cpu.segment_mut(SegmentIndex::Cs) = Segment::flat_code64(0x33, 3);
        *self.cpu.segment_mut(SegmentIndex::Ss) = Segment::flat_data(0x2B, 3);
    }

    /// Moves to compatibility mode at the current privilege.
    pub fn enter_compatibility_mode(&mut self) {
        use lstar_arch::{Segment, SegmentIndex};
        *self.cpu.segment_mut(SegmentIndex::Cs) = Segment::flat_code32(0x23, self.cpu.cpl);
    }

    /// The six status flags.
    pub fn status(&self) -> Rflags {
        self.cpu.flags() & Rflags::STATUS
    }
}

/// Machine code from iced's assembler, linked at [`CODE`].
pub fn assembled(
    bitness: u32,
    assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bitness).expect("bitness");
    assemble(&mut assembler).expect("encodable");
    assembler.assemble(CODE).expect("linkable")
}
