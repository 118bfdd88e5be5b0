//! A small machine for executing images: memory made of regions, the interpreter, delivery through the guest's IDT.
#![allow(dead_code, reason = "each test binary uses its own part")]

use lstar_arch::delivery::{Event, deliver};
use lstar_arch::{CpuModel, CpuState, Gpr, GuestMemory, PageFault, PageFaultCode, Privilege};
use lstar_interpreter::{Interpreter, Outcome, RunOptions};

/// A stretch of memory with one protection.
struct Region {
    base: u64,
    bytes: Vec<u8>,
    writable: bool,
    user: bool,
}

/// Guest memory.
#[derive(Default)]
pub struct Ram {
    regions: Vec<Region>,
}

impl Ram {
    pub fn map(&mut self, base: u64, bytes: Vec<u8>, writable: bool, user: bool) {
        self.regions.push(Region { base, bytes, writable, user });
    }

    fn find(&mut self, address: u64, write: bool, privilege: Privilege) -> Result<(&mut Region, usize), PageFault> {
        let user = privilege == Privilege::User;
        let mut code = PageFaultCode::empty();
        code.set(PageFaultCode::WRITE, write);
        code.set(PageFaultCode::USER, user);
        let region = self.regions.iter_mut().find(|r| address >= r.base && address - r.base < r.bytes.len() as u64);
        match region {
            None => Err(PageFault { address, code }),
            Some(region) if user && !region.user || write && !region.writable => {
                Err(PageFault { address, code: code | PageFaultCode::PRESENT })
            }
            Some(region) => {
                let offset = (address - region.base) as usize;
                Ok((region, offset))
            }
        }
    }
}

impl GuestMemory for Ram {
    fn read(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<(), PageFault> {
        let (region, offset) = self.find(address, false, privilege)?;
        if let Some(bytes) = region.bytes.get(offset..offset + buf.len()) {
            buf.copy_from_slice(bytes);
            return Ok(());
        }
        for (address, byte) in (address..).zip(buf) {
            let (region, offset) = self.find(address, false, privilege)?;
            *byte = region.bytes[offset];
        }
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8], privilege: Privilege) -> Result<(), PageFault> {
        self.probe_write(address, data.len() as u64, privilege)?;
        for (address, byte) in (address..).zip(data) {
            let (region, offset) = self.find(address, true, privilege)?;
            region.bytes[offset] = *byte;
        }
        Ok(())
    }

    fn probe_write(&mut self, address: u64, len: u64, privilege: Privilege) -> Result<(), PageFault> {
        (address..address + len).try_for_each(|address| self.find(address, true, privilege).map(drop))
    }

    fn fetch(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<usize, PageFault> {
        let (region, offset) = self.find(address, false, privilege)?;
        let count = buf.len().min(region.bytes.len() - offset);
        buf[..count].copy_from_slice(&region.bytes[offset..offset + count]);
        Ok(count)
    }

    fn code_modified(&self) -> bool {
        false
    }
}

/// Why [`Machine::run`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The service gate, with EAX.
    Gate(u32),
    /// HLT.
    Halt,
    /// The instruction at this address is about to execute.
    At(u64),
}

pub struct Machine {
    pub cpu: CpuState,
    pub ram: Ram,
    interpreter: Interpreter,
}

impl Machine {
    pub fn new(model: CpuModel) -> Self {
        Self { cpu: CpuState::new(model), ram: Ram::default(), interpreter: Interpreter::new() }
    }

    pub fn reg(&self, register: Gpr) -> u64 {
        self.cpu.reg(register)
    }

    pub fn set_reg(&mut self, register: Gpr, value: u64) {
        self.cpu.set_reg(register, value);
    }

    pub fn u64(&mut self, address: u64) -> u64 {
        self.ram.read_u64(address, Privilege::Supervisor).expect("mapped")
    }

    pub fn set_u64(&mut self, address: u64, value: u64) {
        self.ram.write_u64(address, value, Privilege::Supervisor).expect("mapped");
    }

    pub fn set_u8(&mut self, address: u64, value: u8) {
        self.ram.write(address, &[value], Privilege::Supervisor).expect("mapped");
    }

    /// Replaces code.
    pub fn set_code(&mut self, address: u64, code: &[u8]) {
        self.ram.write(address, code, Privilege::Supervisor).expect("mapped");
        self.interpreter.invalidate_all();
    }

    /// Runs until a gate or HLT, delivering exceptions to the guest on the way.
    pub fn run(&mut self) -> Stop {
        self.run_until(None, 150_000_000)
    }

    /// Runs until RIP is `address`, a gate or HLT.
    pub fn run_to(&mut self, address: u64) -> Stop {
        self.run_until(Some(address), 100_000)
    }

    fn run_until(&mut self, address: Option<u64>, limit: i64) -> Stop {
        let options = RunOptions::PLAIN;
        let mut budget = limit;
        while budget > 0 {
            let outcome = match address {
                Some(address) if self.cpu.rip == address => return Stop::At(address),
                Some(_) => {
                    budget -= 1;
                    self.interpreter.step(&mut self.cpu, &mut self.ram)
                }
                None => self.interpreter.run(&mut self.cpu, &mut self.ram, &mut budget, options),
            };
            let event = match outcome {
                Outcome::ServiceGate => return Stop::Gate(self.reg(Gpr::Rax) as u32),
                Outcome::Halt => return Stop::Halt,
                Outcome::Exception(exception) => Event::Exception(exception),
                Outcome::SoftwareInterrupt(vector) => Event::Software(vector),
                _ => continue,
            };
            if let Err(shutdown) = deliver(&mut self.cpu, &mut self.ram, event) {
                panic!(
                    "{shutdown}; last event {event:?}; not implemented: {:?}",
                    self.interpreter.take_unimplemented()
                );
            }
        }
        panic!("still running at {:#x} after {limit} instructions", self.cpu.rip);
    }
}
