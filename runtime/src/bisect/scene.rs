//! A processor state with the memory around it, and the interpreter on it.

use std::collections::HashMap;
use std::rc::Rc;

use lstar_arch::delivery::Event;
use lstar_arch::{CpuState, Exception, GuestMemory, PAGE_SIZE, PageFault, PageFaultCode, Privilege, Rflags};
use lstar_interpreter::{Interpreter, Outcome};
use lstar_translator::abi::USER_END;

use crate::machine::Machine;
use crate::memory::{AddressSpace, Protection};

/// Bytes of a page.
pub const PAGE: usize = PAGE_SIZE as usize;

/// A page of guest memory as copied, with what may be done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The bytes; shared until somebody writes.
    pub bytes: Rc<[u8; PAGE]>,
    /// The rights.
    pub protection: Protection,
}

/// Where the pages of a scene come from.
pub trait Backing {
    /// The page that begins at `address`; `None` where nothing is mapped.
    fn page(&self, address: u64) -> Option<Page>;
}

impl Backing for AddressSpace {
    fn page(&self, address: u64) -> Option<Page> {
        let protection = self.protection(address)?;
        let mut bytes = [0; PAGE];
        self.read_unchecked(address, &mut bytes).ok()?;
        Some(Page { bytes: Rc::new(bytes), protection })
    }
}

impl Backing for HashMap<u64, Page> {
    fn page(&self, address: u64) -> Option<Page> {
        self.get(&address).cloned()
    }
}

/// One contiguous access that the interpreter made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// First byte.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// The memory of a scene.
#[derive(Clone)]
pub struct SceneMemory<'a> {
    backing: &'a dyn Backing,
    pages: HashMap<u64, Option<Page>>,
    /// Data accesses, while they are wanted.
    pub(super) log: Option<Vec<Access>>,
}

impl std::fmt::Debug for SceneMemory<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SceneMemory").field("pages", &self.pages.len()).finish_non_exhaustive()
    }
}

impl<'a> SceneMemory<'a> {
    fn new(backing: &'a dyn Backing) -> Self {
        Self { backing, pages: HashMap::new(), log: None }
    }

    /// The page that holds `address`.
    pub fn page(&mut self, address: u64) -> Option<&mut Page> {
        let start = address & !(PAGE_SIZE - 1);
        let backing = self.backing;
        self.pages.entry(start).or_insert_with(|| backing.page(start)).as_mut()
    }

    /// The byte at an address, whatever the rights.
    pub fn byte(&mut self, address: u64) -> Option<u8> {
        let page = self.page(address)?;
        page.bytes.get((address % PAGE_SIZE) as usize).copied()
    }

    /// Addresses of the pages that were needed so far.
    pub(super) fn known(&self) -> Vec<u64> {
        let mut list: Vec<u64> = self.pages.iter().filter(|(_, page)| page.is_some()).map(|(at, _)| *at).collect();
        list.sort_unstable();
        list
    }

    fn note(&mut self, address: u64, size: usize) {
        if let Some(log) = &mut self.log {
            log.push(Access { address, size: size as u64 });
        }
    }

    /// Calls `visit` with the offset in the access, the page, and the range in it, for each page; checks all first.
    fn each(
        &mut self,
        address: u64,
        size: usize,
        need: Protection,
        code: PageFaultCode,
        privilege: Privilege,
        mut visit: impl FnMut(usize, &mut Page, std::ops::Range<usize>),
    ) -> Result<(), PageFault> {
        for checking in [true, false] {
            let mut done = 0;
            while done < size {
                let at = address.wrapping_add(done as u64);
                let offset = (at % PAGE_SIZE) as usize;
                let count = (PAGE - offset).min(size - done);
                let mut fault = PageFault { address: at, code };
                fault.code.set(PageFaultCode::USER, privilege == Privilege::User);
                if privilege == Privilege::User && at >= USER_END {
                    // As in `AddressSpace`: what is there is nobody's business.
                    fault.code.set(PageFaultCode::PRESENT, self.page(at).is_some());
                    return Err(fault);
                }
                let Some(page) = self.page(at) else { return Err(fault) };
                if !page.protection.contains(need) {
                    fault.code |= PageFaultCode::PRESENT;
                    return Err(fault);
                }
                if !checking {
                    visit(done, page, offset..offset + count);
                }
                done += count;
            }
        }
        Ok(())
    }
}

impl GuestMemory for SceneMemory<'_> {
    fn read(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<(), PageFault> {
        self.note(address, buf.len());
        self.each(address, buf.len(), Protection::READ, PageFaultCode::empty(), privilege, |at, page, range| {
            buf[at..at + range.len()].copy_from_slice(&page.bytes[range]);
        })
    }

    fn write(&mut self, address: u64, data: &[u8], privilege: Privilege) -> Result<(), PageFault> {
        self.note(address, data.len());
        self.each(address, data.len(), Protection::WRITE, PageFaultCode::WRITE, privilege, |at, page, range| {
            let bytes = &data[at..at + range.len()];
            Rc::make_mut(&mut page.bytes)[range].copy_from_slice(bytes);
        })
    }

    fn probe_write(&mut self, address: u64, len: u64, privilege: Privilege) -> Result<(), PageFault> {
        self.each(address, len as usize, Protection::WRITE, PageFaultCode::WRITE, privilege, |_, _, _| {})
    }

    fn fetch(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<usize, PageFault> {
        let in_page = PAGE - (address % PAGE_SIZE) as usize;
        let count = in_page.min(buf.len());
        self.each(address, count, Protection::EXECUTE, PageFaultCode::FETCH, privilege, |at, page, range| {
            buf[at..at + range.len()].copy_from_slice(&page.bytes[range]);
        })?;
        if count < buf.len() {
            let rest = address.wrapping_add(count as u64);
            return Ok(count + self.fetch(rest, &mut buf[count..], privilege).unwrap_or(0));
        }
        Ok(count)
    }

    fn code_modified(&self) -> bool {
        false
    }
}

/// How an engine came to a stop in a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It executed what was asked for.
    Running,
    /// It raised an exception, which was not delivered.
    Exception(Exception),
    /// INT n, the service gate, HLT: nothing behind it belongs to the scene.
    Left,
}

impl Ending {
    /// For an event that was not delivered.
    pub(crate) fn of(event: Event) -> Self {
        match event {
            Event::Exception(exception) => Self::Exception(exception),
            Event::Software(_) | Event::External(_) => Self::Left,
        }
    }
}

/// A processor state with the memory around it.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    /// The registers.
    pub cpu: CpuState,
    /// The memory.
    pub memory: SceneMemory<'a>,
}

impl<'a> Scene<'a> {
    /// From registers and a place where pages come from.
    #[must_use]
    pub fn new(cpu: CpuState, backing: &'a dyn Backing) -> Self {
        Self { cpu, memory: SceneMemory::new(backing) }
    }

    /// From a stopped machine; its memory is copied where it is needed.
    #[must_use]
    pub fn of(machine: &'a Machine) -> Self {
        Self::new(machine.core.cpu().clone(), &machine.core.memory)
    }

    /// The bytes at RIP, up to the longest instruction.
    pub(super) fn next_bytes(&mut self) -> Vec<u8> {
        let mut bytes = [0; 15];
        let count = self.memory.fetch(self.cpu.rip, &mut bytes, self.cpu.privilege()).unwrap_or(0);
        bytes[..count].to_vec()
    }

    /// Executes one instruction in the interpreter (of a long repeated string instruction: some iterations).
    pub fn step(&mut self, interpreter: &mut Interpreter) -> Ending {
        match interpreter.step(&mut self.cpu, &mut self.memory) {
            Outcome::Exception(exception) => Ending::Exception(exception),
            Outcome::SoftwareInterrupt(_) | Outcome::ServiceGate | Outcome::Halt => Ending::Left,
            Outcome::Retired
            | Outcome::CodeModified
            | Outcome::Hot
            | Outcome::Warm
            | Outcome::Stop
            | Outcome::Call
            | Outcome::Return => Ending::Running,
        }
    }

    /// Executes up to `steps` instructions in the interpreter.
    pub fn interpret(&mut self, steps: u64) -> Landing {
        let mut interpreter = Interpreter::new();
        let mut retired = 0;
        while retired < steps {
            let ending = self.step(&mut interpreter);
            if ending != Ending::Running {
                return Landing { cpu: self.cpu.clone(), retired, ending, stores: Vec::new() };
            }
            retired += 1;
        }
        Landing { cpu: self.cpu.clone(), retired, ending: Ending::Running, stores: Vec::new() }
    }
}

/// Where an engine came to a stop in a scene.
#[derive(Clone, Debug)]
pub struct Landing {
    /// The registers; RIP is the address that an exception would push.
    pub cpu: CpuState,
    /// Instructions retired.
    pub retired: u64,
    /// Why it stopped.
    pub ending: Ending,
    /// Where the probe's memory differs from the scene it is compared with: address, byte there, byte in the probe.
    pub stores: Vec<(u64, u8, u8)>,
}

/// MXCSR's exception flags, which translated code may miss.
const MXCSR_FLAGS: u32 = 0x3F;

impl Landing {
    /// The differences, a line each: what it is, what `self` (the interpreter) has, what `other` has. `undefined` are
    /// status flags that mean nothing here.
    #[must_use]
    pub fn differences(&self, other: &Self, undefined: u64) -> Vec<(String, String, String)> {
        let mut list = Vec::new();
        let mut compare = |name: String, a: u128, b: u128| {
            if a != b {
                list.push((name, format!("{a:#x}"), format!("{b:#x}")));
            }
        };
        let (a, b) = (&self.cpu, &other.cpu);
        compare("rip".into(), a.rip.into(), b.rip.into());
        for (index, name) in super::case::GPR_NAMES.iter().enumerate() {
            compare((*name).into(), a.gpr[index].into(), b.gpr[index].into());
        }
        let flags = !(undefined | Rflags::RF.bits());
        compare("rflags".into(), (a.rflags & flags).into(), (b.rflags & flags).into());
        let mxcsr = |cpu: &CpuState| u128::from(cpu.mxcsr & !MXCSR_FLAGS);
        compare("mxcsr".into(), mxcsr(a), mxcsr(b));
        let wide = |[low, high]: [u64; 2]| u128::from(high) << 64 | u128::from(low);
        for index in 0..16 {
            compare(format!("xmm{index}"), wide(a.xmm[index]), wide(b.xmm[index]));
            compare(format!("ymm{index} (high)"), wide(a.ymm_high[index]), wide(b.ymm_high[index]));
        }
        for index in 0..8 {
            let register = |cpu: &CpuState| u128::from_le_bytes(cpu.x87.registers[index]);
            compare(format!("x87 register {index}"), register(a), register(b));
        }
        let x87 = |cpu: &CpuState| {
            u128::from(cpu.x87.control) << 32 | u128::from(cpu.x87.status) << 8 | u128::from(cpu.x87.valid)
        };
        compare("x87 control, status, tags".into(), x87(a), x87(b));
        compare("cpl".into(), a.cpl.into(), b.cpl.into());
        for (index, (left, right)) in a.segments.iter().zip(&b.segments).enumerate() {
            compare(format!("selector {index}"), left.selector.into(), right.selector.into());
            compare(format!("base of segment {index}"), left.base.into(), right.base.into());
        }
        if self.ending != other.ending {
            list.push(("ending".into(), format!("{:x?}", self.ending), format!("{:x?}", other.ending)));
        }
        for &(address, left, right) in other.stores.iter().take(32) {
            list.push((format!("[{address:#x}]"), format!("{left:#04x}"), format!("{right:#04x}")));
        }
        list
    }
}
