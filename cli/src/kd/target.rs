//! What the debugger debugs: a booted system, and what is known of its images.

use std::collections::BTreeMap;

use anyhow::Result;
use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, Register};
use lstar_arch::{CpuState, Gpr, SegmentIndex, msr};
use lstar_guest_images::layout::{Build, Structure, kpcr};
use lstar_guest_images::map_pe;
use lstar_nt::io::Host;
use lstar_nt::system::{RunEnd, System};
use lstar_runtime::vcpu::is_kernel_address;
use lstar_runtime::{AddressSpace, MachineConfig, Registers};
use tempfile::TempDir;

use super::Fault;
use super::disassembly::{Line, disassemble};
use super::expression::Scope;
use super::image::{Image, Memory, loaded_modules};
use super::symbols::{Module, SymbolSource, Symbols};
use super::unwind::{Context, Frame, walk};
use crate::interrupt;
use crate::run::boot_demonstration;

impl Memory for AddressSpace {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), Fault> {
        self.read_unchecked(address, buf).map_err(|fault| Fault(fault.address))
    }
}

/// Steps between two looks at Ctrl-C.
const STEPS: u64 = 0x1_0000;

/// Why the target stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After one instruction.
    Step,
    /// At a code breakpoint with that number.
    Breakpoint(u32),
    /// At an address that was asked for.
    Reached,
    /// A data breakpoint with that number: the access has just been made.
    Data(u32),
    /// Ctrl-C.
    Interrupted,
    /// The guest has ended: see [`Target::end`].
    Ended,
}

/// What a data breakpoint watches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Execution.
    Execute,
    /// Writes to that many bytes.
    Write(u64),
    /// Reads of or writes to that many bytes.
    Access(u64),
}

/// A breakpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breakpoint {
    /// Where.
    pub address: u64,
    /// For what.
    pub watch: Watch,
    /// Whether it is in force.
    pub enabled: bool,
}

/// The target.
pub struct Target {
    system: System,
    /// Where the embedded demonstration lives.
    _folder: Option<TempDir>,
    /// How the guest has ended.
    pub end: Option<RunEnd>,
    /// Modules and names.
    pub symbols: Symbols,
    /// Structures that `dt` knows.
    pub structures: Vec<Structure>,
    build: Build,
    /// Breakpoints by number.
    pub breakpoints: BTreeMap<u32, Breakpoint>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("breakpoints", &self.breakpoints).finish_non_exhaustive()
    }
}

impl Target {
    /// A booted system; `folder` is kept as long as the target.
    #[must_use]
    pub fn new(system: System, folder: Option<TempDir>) -> Self {
        let kernel = &system.kernel_image;
        let build = kernel.fast_path.build;
        let names = kernel.symbols.iter().map(|symbol| (symbol.address, symbol.name.clone())).collect();
        let size = map_pe(&kernel.pe).map_or(0, |image| u64::from(image.size));
        let range = kernel.base..kernel.base.saturating_add(size);
        let mut target = Self {
            system,
            _folder: folder,
            end: None,
            symbols: Symbols::default(),
            structures: build.structures().to_vec(),
            build,
            breakpoints: BTreeMap::new(),
        };
        target.symbols.add(Module::new("nt", "ntoskrnl.exe", range, SymbolSource::Private, names));
        target.reload();
        target
    }

    /// The embedded demonstration.
    pub fn embedded(machine: MachineConfig, host: Box<dyn Host>) -> Result<Self> {
        let (system, folder) = boot_demonstration(machine, host)?;
        Ok(Self::new(system, Some(folder)))
    }

    /// Reads the user modules from the loader's list.
    pub fn reload(&mut self) {
        // Until the guest's loader has made its list, what the kernel has mapped says more.
        let memory = &self.system.kernel.memory;
        let mapped = memory.vads.iter().filter_map(|(start, _)| memory.module_at(start));
        let mapped: Vec<(u64, String)> = mapped.map(|(base, name)| (base, name.to_owned())).collect();
        let listed = self.peb().map(|peb| loaded_modules(self.memory(), peb)).unwrap_or_default();
        for (base, file) in [mapped, listed].concat() {
            if self.symbols.module_at(base).is_none() {
                self.add_image(base, Some(file));
            }
        }
    }

    /// Adds the image at `base` as a module, if there is one.
    pub fn add_image(&mut self, base: u64, file: Option<String>) {
        let memory: &dyn Memory = self.system.machine.memory();
        if let Some(image) = Image::at(memory, base) {
            self.symbols.add(image.module(memory, file));
        }
    }

    /// Guest memory.
    pub fn memory(&mut self) -> &AddressSpace {
        self.system.machine.memory()
    }

    /// Fills `buf`.
    pub fn read(&mut self, address: u64, buf: &mut [u8]) -> Result<(), Fault> {
        Memory::read(self.memory(), address, buf)
    }

    /// As many bytes as are readable, up to `size`.
    pub fn read_some(&mut self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        while !bytes.is_empty() && self.read(address, &mut bytes).is_err() {
            bytes.pop();
        }
        bytes
    }

    /// Writes whatever the pages' protection.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        self.system.machine.memory().write_unchecked(address, data).map_err(|fault| Fault(fault.address))
    }

    /// The registers.
    pub fn with_registers<T>(&mut self, look: impl FnOnce(&CpuState) -> T) -> T {
        look(self.system.machine.vcpu().state())
    }

    /// Changes registers.
    pub fn change_registers<T>(&mut self, change: impl FnOnce(&mut CpuState) -> T) -> T {
        change(self.system.machine.vcpu().state_mut())
    }

    /// The instruction pointer.
    pub fn rip(&mut self) -> u64 {
        self.with_registers(|cpu| cpu.rip)
    }

    /// A model-specific register; `None` when the processor has no such register.
    pub fn rdmsr(&mut self, index: u32) -> Option<u64> {
        self.with_registers(|cpu| msr::rdmsr(cpu, index).ok())
    }

    /// Sets a model-specific register; `None` when it does not exist or does not take the value.
    pub fn wrmsr(&mut self, index: u32, value: u64) -> Option<()> {
        self.change_registers(|cpu| msr::wrmsr(cpu, index, value).ok())
    }

    /// The processor's KPCR: whichever GS base is in the kernel's half.
    pub fn kpcr(&mut self) -> Option<u64> {
        self.with_registers(|cpu| {
            [cpu.segment(SegmentIndex::Gs).base, cpu.kernel_gs_base].into_iter().find(|base| is_kernel_address(*base))
        })
    }

    /// The current KTHREAD.
    pub fn thread(&mut self) -> Option<u64> {
        let kpcr = self.kpcr()?;
        self.memory().number(kpcr.wrapping_add(kpcr::CURRENT_THREAD.into()), 8).ok()
    }

    /// The current thread's TEB.
    pub fn teb(&mut self) -> Option<u64> {
        let thread = self.thread()?;
        let offset = self.build.thread_offsets().teb;
        self.memory().number(thread.wrapping_add(offset.into()), 8).ok().filter(|teb| *teb != 0)
    }

    /// The current process's PEB.
    pub fn peb(&mut self) -> Option<u64> {
        let teb = self.teb()?;
        self.memory().number(teb.wrapping_add(0x60), 8).ok().filter(|peb| *peb != 0)
    }

    /// Disassembles one instruction; `None` where nothing can be read.
    pub fn disassemble(&mut self, address: u64) -> Option<Line> {
        let bytes = self.read_some(address, 15);
        let bits = self.with_registers(|cpu| if cpu.is_64bit() { 64 } else { 32 });
        (!bytes.is_empty()).then(|| disassemble(address, &bytes, bits, &self.symbols))
    }

    /// The call stack.
    pub fn stack(&mut self) -> Vec<Frame> {
        let context = self.with_registers(|cpu| Context { rip: cpu.rip, gpr: cpu.gpr });
        walk(self.system.machine.memory(), &self.symbols, context)
    }

    /// Executes one instruction.
    pub fn step(&mut self) -> Stop {
        match self.step_quietly() {
            Some(stop) => stop,
            None => self.at_breakpoint().map_or(Stop::Step, Stop::Breakpoint),
        }
    }

    /// Executes one instruction, and what it calls.
    pub fn step_over(&mut self) -> Stop {
        let rip = self.rip();
        let Some(line) = self.disassemble(rip) else { return self.step() };
        use iced_x86::FlowControl::{Call, IndirectCall};
        let calls = matches!(line.instruction.flow_control(), Call | IndirectCall)
            && line.instruction.mnemonic() != iced_x86::Mnemonic::Vmcall;
        if calls || line.instruction.has_rep_prefix() || line.instruction.has_repne_prefix() {
            return match self.go(Some(line.next())) {
                Stop::Reached => Stop::Step,
                other => other,
            };
        }
        self.step()
    }

    /// Runs until something stops it; `until` is a temporary breakpoint.
    pub fn go(&mut self, until: Option<u64>) -> Stop {
        let data = self
            .breakpoints
            .values()
            .any(|breakpoint| breakpoint.enabled && matches!(breakpoint.watch, Watch::Write(_) | Watch::Access(_)));
        let code: Vec<u64> = self
            .breakpoints
            .values()
            .filter(|breakpoint| breakpoint.enabled && breakpoint.watch == Watch::Execute)
            .map(|breakpoint| breakpoint.address)
            .chain(until)
            .collect();
        // A run that starts at a breakpoint passes it; so does the first step.
        let stop = if data {
            self.go_stepping(until)
        } else {
            self.system.machine.set_breakpoints(code.into_iter().collect());
            self.go_running(until)
        };
        self.reload();
        stop
    }

    fn go_running(&mut self, until: Option<u64>) -> Stop {
        let end = self.system.run();
        self.stop_of(end, until)
    }

    fn go_stepping(&mut self, until: Option<u64>) -> Stop {
        for count in 0u64.. {
            if count % STEPS == 0 && interrupt::requested() {
                break;
            }
            if let Some(stop) = self.step_quietly() {
                return stop;
            }
            if Some(self.rip()) == until {
                return Stop::Reached;
            }
            if let Some(number) = self.at_breakpoint() {
                return Stop::Breakpoint(number);
            }
        }
        interrupt::clear();
        Stop::Interrupted
    }

    /// One instruction; a reason to stop other than having executed it.
    fn step_quietly(&mut self) -> Option<Stop> {
        let accessed = self.data_breakpoint();
        match self.system.step() {
            Some(end) => Some(self.stop_of(end, None)),
            None => accessed.map(Stop::Data),
        }
    }

    fn stop_of(&mut self, end: RunEnd, until: Option<u64>) -> Stop {
        match end {
            RunEnd::Breakpoint(address) => match self.at_breakpoint() {
                Some(number) => Stop::Breakpoint(number),
                None if until == Some(address) => Stop::Reached,
                None => Stop::Step,
            },
            RunEnd::Interrupted => {
                interrupt::clear();
                Stop::Interrupted
            }
            end => {
                self.end = Some(end);
                Stop::Ended
            }
        }
    }

    /// The code breakpoint at RIP.
    fn at_breakpoint(&mut self) -> Option<u32> {
        let rip = self.rip();
        let here = |breakpoint: &Breakpoint| {
            breakpoint.enabled && breakpoint.watch == Watch::Execute && breakpoint.address == rip
        };
        self.breakpoints.iter().find(|(_, breakpoint)| here(breakpoint)).map(|(number, _)| *number)
    }

    /// The data breakpoint that the next instruction will touch.
    fn data_breakpoint(&mut self) -> Option<u32> {
        let armed = |breakpoint: &Breakpoint| breakpoint.enabled && breakpoint.watch != Watch::Execute;
        if !self.breakpoints.values().any(armed) {
            return None;
        }
        let rip = self.rip();
        let instruction = self.disassemble(rip)?.instruction;
        let accesses = self.with_registers(|cpu| accesses(&instruction, cpu));
        self.breakpoints.iter().filter(|(_, breakpoint)| armed(breakpoint)).find_map(|(number, breakpoint)| {
            let (length, reads) = match breakpoint.watch {
                Watch::Write(length) => (length, false),
                Watch::Access(length) => (length, true),
                Watch::Execute => return None,
            };
            let touched = accesses.iter().any(|access| {
                (access.write || reads)
                    && access.address < breakpoint.address.saturating_add(length)
                    && breakpoint.address < access.address.saturating_add(access.size)
            });
            touched.then_some(*number)
        })
    }
}

/// A memory access that an instruction makes.
struct Access {
    address: u64,
    size: u64,
    write: bool,
}

/// Where an instruction is going to read and write, given the registers before it.
fn accesses(instruction: &Instruction, cpu: &CpuState) -> Vec<Access> {
    let value = |register: Register| match register {
        Register::FS => cpu.segment(SegmentIndex::Fs).base,
        Register::GS => cpu.segment(SegmentIndex::Gs).base,
        Register::ES | Register::CS | Register::SS | Register::DS => 0,
        _ => cpu.gpr.get(register.full_register().number()).copied().unwrap_or(0),
    };
    let mut factory = InstructionInfoFactory::new();
    let mut accesses = Vec::new();
    for used in factory.info(instruction).used_memory() {
        let write = match used.access() {
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => true,
            OpAccess::Read | OpAccess::CondRead => false,
            _ => continue,
        };
        if let Some(address) = used.virtual_address(0, |register, _, _| Some(value(register))) {
            let repeated = instruction.has_rep_prefix() && instruction.is_string_instruction();
            let count = if repeated { cpu.reg(Gpr::Rcx) } else { 1 };
            let size = used.memory_size().size() as u64;
            let bytes = size.saturating_mul(count);
            // A repeated instruction that goes down starts at its last element.
            let down = repeated && cpu.flags().contains(lstar_arch::Rflags::DF);
            let start = if down { address.wrapping_add(size).saturating_sub(bytes) } else { address };
            accesses.push(Access { address: start, size: bytes, write });
        }
    }
    accesses
}

impl Scope for Target {
    fn symbol(&self, name: &str) -> Option<u64> {
        self.symbols.lookup(name)
    }

    fn register(&mut self, name: &str) -> Option<u64> {
        match name {
            "$pcr" => self.kpcr(),
            "$thread" => self.thread(),
            "$teb" => self.teb(),
            "$peb" => self.peb(),
            "$ra" => self.stack().first().map(|frame| frame.return_address),
            "$ip" => Some(self.rip()),
            "$csp" => super::registers::get("rsp", self.with_registers(Clone::clone)),
            "$retreg" => super::registers::get("rax", self.with_registers(Clone::clone)),
            _ => super::registers::get(name, self.with_registers(Clone::clone)),
        }
    }

    fn read(&mut self, address: u64, size: usize) -> Result<u64, Fault> {
        self.memory().number(address, size)
    }
}
