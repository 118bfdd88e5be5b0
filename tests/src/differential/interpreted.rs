//! The interpreter on its own, with the smallest memory that holds a program.

use lstar_arch::{
    CpuState, Exception, GuestMemory, PAGE_SIZE, PageFault, PageFaultCode, Privilege, Rflags, Segment, SegmentIndex,
};
use lstar_interpreter::{Interpreter, Outcome as Stop, RunOptions};

use super::{
    BUDGET, CODE, CODE_SIZE, DATA, DATA_SIZE, EXIT, Ending, Engine, GS_BASE, MODEL, Memory, Outcome, READ_ONLY, STACK,
    STACK_SIZE, State, Stepping, X87, read_only_page,
};

/// The four areas of a program.
#[derive(Debug)]
struct Areas {
    code: [u8; CODE_SIZE as usize],
    exit: [u8; PAGE_SIZE as usize],
    read_only: [u8; PAGE_SIZE as usize],
    memory: Box<Memory>,
}

#[derive(Clone, Copy, PartialEq)]
enum Access {
    Read,
    Write,
    Fetch,
}

impl Areas {
    /// The bytes from `address` to the end of its area, if the area permits the access.
    fn area(&mut self, address: u64, access: Access, privilege: Privilege) -> Result<&mut [u8], PageFault> {
        let areas: [(u64, &mut [u8], Access); 5] = [
            (CODE, &mut self.code, Access::Fetch),
            (EXIT, &mut self.exit, Access::Fetch),
            (DATA, &mut self.memory.data, Access::Write),
            (READ_ONLY, &mut self.read_only, Access::Read),
            (STACK, &mut self.memory.stack, Access::Write),
        ];
        let mut code = match access {
            Access::Read => PageFaultCode::empty(),
            Access::Write => PageFaultCode::WRITE,
            Access::Fetch => PageFaultCode::FETCH,
        };
        code.set(PageFaultCode::USER, privilege == Privilege::User);
        for (start, bytes, best) in areas {
            let offset = address.wrapping_sub(start);
            if offset < bytes.len() as u64 {
                return if access == Access::Read || access == best {
                    Ok(&mut bytes[offset as usize..])
                } else {
                    Err(PageFault { address, code: code | PageFaultCode::PRESENT })
                };
            }
        }
        Err(PageFault { address, code })
    }

    /// Calls `visit` with each contiguous part of a range, after checking all of it.
    fn each(
        &mut self,
        address: u64,
        length: usize,
        access: Access,
        privilege: Privilege,
        mut visit: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), PageFault> {
        for check in [true, false] {
            let mut done = 0;
            while done < length {
                let part = self.area(address.wrapping_add(done as u64), access, privilege)?;
                let count = part.len().min(length - done);
                if !check {
                    visit(done, &mut part[..count]);
                } else if count == length {
                    visit(0, &mut part[..count]);
                    return Ok(());
                }
                done += count;
            }
        }
        Ok(())
    }
}

impl GuestMemory for Areas {
    fn read(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<(), PageFault> {
        let length = buf.len();
        self.each(address, length, Access::Read, privilege, |at, part| buf[at..at + part.len()].copy_from_slice(part))
    }

    fn write(&mut self, address: u64, data: &[u8], privilege: Privilege) -> Result<(), PageFault> {
        self.each(address, data.len(), Access::Write, privilege, |at, part| {
            part.copy_from_slice(&data[at..at + part.len()]);
        })
    }

    fn probe_write(&mut self, address: u64, len: u64, privilege: Privilege) -> Result<(), PageFault> {
        self.each(address, len as usize, Access::Write, privilege, |_, _| {})
    }

    fn fetch(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<usize, PageFault> {
        let part = self.area(address, Access::Fetch, privilege)?;
        let count = part.len().min(buf.len());
        buf[..count].copy_from_slice(&part[..count]);
        Ok(count)
    }

    fn code_modified(&self) -> bool {
        false
    }
}

/// The interpreter as an engine.
#[derive(Debug)]
pub struct Interpreted {
    cpu: CpuState,
    /// What every program starts from, but for the model: the one before may have changed its privilege.
    initial: CpuState,
    areas: Areas,
    interpreter: Interpreter,
    /// Instructions executed so far.
    pub retired: u64,
    /// The same since the last start.
    since_start: u64,
    narrow: bool,
}

impl Default for Interpreted {
    fn default() -> Self {
        let mut cpu = CpuState::new(MODEL);
        cpu.cpl = 3;
        *cpu.segment_mut(SegmentIndex::Cs) = Segment::flat_code64(0x33, 3);
        *cpu.segment_mut(SegmentIndex::Ss) = Segment::flat_data(0x2B, 3);
        cpu.segment_mut(SegmentIndex::Gs).base = GS_BASE;
        let areas = Areas {
            code: [0; CODE_SIZE as usize],
            exit: [0xCC; PAGE_SIZE as usize],
            read_only: read_only_page(),
            memory: Memory::zeroed(),
        };
        Self {
            initial: cpu.clone(),
            cpu,
            areas,
            interpreter: Interpreter::new(),
            retired: 0,
            since_start: 0,
            narrow: false,
        }
    }
}

impl Interpreted {
    /// The processor model, to change.
    pub fn model_mut(&mut self) -> &mut lstar_arch::CpuModel {
        &mut self.cpu.model
    }

    /// Whether programs are 32-bit code from now on.
    pub fn set_32bit(&mut self, narrow: bool) {
        self.narrow = narrow;
    }

    /// The instructions met without an implementation since the last call.
    pub fn take_unimplemented(&mut self) -> Vec<lstar_interpreter::Unimplemented> {
        self.interpreter.take_unimplemented()
    }

    /// The registers that a program starts with.
    fn cpu_for(&self, state: &State) -> CpuState {
        let mut cpu = CpuState { model: self.cpu.model, ..self.initial.clone() };
        cpu.gpr = state.gpr;
        cpu.rip = CODE;
        cpu.rflags = state.rflags | Rflags::FIXED.bits();
        cpu.mxcsr = state.mxcsr;
        cpu.x87 = state.x87.to_state();
        let split = |value: u128| [value as u64, (value >> 64) as u64];
        cpu.xmm = state.xmm.map(split);
        cpu.ymm_high = state.ymm_high.map(split);
        if self.narrow {
            super::enter_32bit(&mut cpu);
        }
        cpu
    }

    fn stop(&mut self, stop: Stop, outcome: &mut Outcome) {
        match stop {
            Stop::Exception(exception) => {
                let Exception { vector, error_code, cr2, .. } = exception;
                outcome.set_exception(self.cpu.rip, vector as u8, error_code.unwrap_or(0), cr2.unwrap_or(0));
            }
            // The gates of all other vectors have DPL 0 (SDM vol. 3, 6.12.1.2).
            Stop::SoftwareInterrupt(3) => outcome.set_exception(self.cpu.rip, 3, 0, 0),
            Stop::SoftwareInterrupt(vector) => {
                const GENERAL_PROTECTION: u8 = 13;
                const INT_N_LENGTH: u64 = 2;
                let rip = self.cpu.rip.wrapping_sub(INT_N_LENGTH);
                outcome.set_exception(rip, GENERAL_PROTECTION, u32::from(vector) << 3 | 2, 0);
            }
            _ => (outcome.rip, outcome.ending) = (self.cpu.rip, Ending::Stuck),
        }
    }
}

impl Engine for Interpreted {
    fn name(&self) -> &'static str {
        "interpreter"
    }

    fn load(&mut self, code: &[u8]) {
        self.areas.code.fill(0xCC);
        self.areas.code[..code.len()].copy_from_slice(code);
        self.interpreter.invalidate(CODE, CODE + CODE_SIZE);
    }

    fn run(&mut self, state: &State, memory: &Memory, outcome: &mut Outcome) {
        self.start(state, memory);
        self.advance(BUDGET, outcome);
    }

    fn stepping(&mut self) -> Option<&mut dyn Stepping> {
        Some(self)
    }
}

impl Stepping for Interpreted {
    fn start(&mut self, state: &State, memory: &Memory) {
        self.areas.memory.data = memory.data;
        self.areas.memory.stack = memory.stack;
        self.cpu = self.cpu_for(state);
        self.since_start = 0;
    }

    fn advance(&mut self, count: u64, outcome: &mut Outcome) -> u64 {
        let granted = count.saturating_sub(self.since_start) as i64;
        let mut budget = granted;
        let options = RunOptions::PLAIN;
        let stop = self.interpreter.run(&mut self.cpu, &mut self.areas, &mut budget, options);
        self.since_start += (granted - budget) as u64;
        self.retired += (granted - budget) as u64;
        self.stop(stop, outcome);
        outcome.gpr = self.cpu.gpr;
        outcome.rflags = self.cpu.rflags;
        outcome.mxcsr = self.cpu.mxcsr;
        let join = |[low, high]: [u64; 2]| u128::from(low) | u128::from(high) << 64;
        outcome.xmm = self.cpu.xmm.map(join);
        outcome.ymm_high = self.cpu.ymm_high.map(join);
        outcome.x87 = X87::of(&self.cpu.x87);
        outcome.memory.data = self.areas.memory.data;
        outcome.memory.stack = self.areas.memory.stack;
        self.since_start
    }

    fn registers(&self, state: &State) -> Option<CpuState> {
        Some(self.cpu_for(state))
    }
}

const _: () = assert!(DATA_SIZE.is_multiple_of(PAGE_SIZE) && STACK_SIZE.is_multiple_of(PAGE_SIZE));
