//! The whole machine, with translation from the first visit.
//!
//! A minimal kernel sends every exception to a service gate of its own: an interrupt descriptor table whose entries are
//! VMCALL instructions. When the gate is asked, the registers are the program's, and the frame that the processor pushed
//! says the rest.

use lstar_arch::{Gpr, Privilege};
use lstar_runtime::{GateAction, Machine, MachineConfig, MachineError, Protection, Registers, ServiceGate, Vcpu};

use super::{
    BUDGET, CODE, CODE_SIZE, DATA, DATA_SIZE, EXIT, Ending, Engine, GS_BASE, MODEL, Memory, Outcome, READ_ONLY, STACK,
    STACK_SIZE, State, Stepping, X87, read_only_page,
};

const PAGE: u64 = lstar_arch::PAGE_SIZE;
/// Start-up code, and the entry of each vector.
const KERNEL: u64 = 0xFFFF_F800_0000_0000;
const VECTORS: u64 = KERNEL + 0x100;
const VECTOR_SPACING: u64 = 16;
const VECTOR_COUNT: u64 = 32;
const GDT: u64 = KERNEL + PAGE;
const IDT: u64 = GDT + 0x100;
const TSS: u64 = IDT + VECTOR_COUNT * 16;
const DESCRIPTOR_POINTERS: u64 = GDT + 0x800;
const KERNEL_STACK: u64 = KERNEL + 4 * PAGE;

const KERNEL_CODE: u16 = 0x10;
const USER_DATA: u16 = 0x2B;
const USER_CODE: u16 = 0x33;
const TASK: u16 = 0x40;

const VMCALL: [u8; 3] = [0x0F, 0x01, 0xC1];
const TSS_LIMIT: u64 = 0x67;

/// What the processor pushed, and where it went.
#[derive(Default)]
struct Gate {
    vector: u8,
    error_code: u32,
    rip: u64,
    rflags: u64,
    rsp: u64,
}

impl ServiceGate for Gate {
    fn service(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        use lstar_arch::GuestMemory;
        self.vector = (vcpu.rip().wrapping_sub(VECTORS) / VECTOR_SPACING) as u8;
        let mut frame = vcpu.reg(Gpr::Rsp);
        let mut next = || {
            let value = vcpu.memory.read_u64(frame, Privilege::Supervisor).unwrap_or(0);
            frame += 8;
            value
        };
        // SDM vol. 3, table 6-1.
        self.error_code = if matches!(self.vector, 8 | 10..=14 | 17 | 21) { next() as u32 } else { 0 };
        self.rip = next();
        let _cs = next();
        self.rflags = next();
        self.rsp = next();
        GateAction::Stop
    }
}

/// The machine as an engine.
#[derive(Debug)]
pub struct Translated {
    /// The machine.
    pub machine: Machine,
    /// Its instruction count at the last start.
    started_at: u64,
    /// In each run another site of the translated code is made to fault; this one is next.
    forced: Option<usize>,
    narrow: bool,
}

impl Translated {
    /// Settings of [`Translated::translating`].
    #[must_use]
    pub fn config() -> MachineConfig {
        MachineConfig {
            model: MODEL,
            hot_threshold: 0,
            memory_limit: 1 << 26,
            code_cache_size: 64 << 20,
            ..MachineConfig::default()
        }
    }

    /// A machine with the areas of a program and the minimal kernel.
    pub fn new(config: MachineConfig) -> Result<Self, MachineError> {
        let mut machine = Machine::new(config)?;
        let memory = machine.memory();
        for (start, size, protection) in [
            (CODE, CODE_SIZE, Protection::RX),
            (EXIT, PAGE, Protection::RX),
            (DATA, DATA_SIZE, Protection::RW),
            (READ_ONLY, PAGE, Protection::READ),
            (STACK, STACK_SIZE, Protection::RW),
            (KERNEL, PAGE, Protection::RX),
            (GDT, 3 * PAGE, Protection::RW),
        ] {
            memory.map(start, size, protection)?;
        }
        let mut engine = Self { machine, started_at: 0, forced: None, narrow: false };
        engine.write(EXIT, &[0xCC]);
        engine.write(READ_ONLY, &read_only_page());
        engine.boot();
        Ok(engine)
    }

    /// The translator from the first visit of a block on.
    pub fn translating() -> Result<Self, MachineError> {
        Self::new(Self::config())
    }

    /// As [`Translated::translating`]; in each run one point that can fault does, another one each time.
    pub fn faulting() -> Result<Self, MachineError> {
        Ok(Self { forced: Some(0), ..Self::translating()? })
    }

    /// Whether programs are 32-bit code from now on.
    pub fn set_32bit(&mut self, narrow: bool) {
        self.narrow = narrow;
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        self.machine.memory().write_unchecked(address, bytes).expect("mapped");
    }

    /// Builds the descriptor tables and lets the guest load them.
    fn boot(&mut self) {
        let tss = TSS & 0xFF_FFFF;
        let gdt: [u64; 10] = [
            0,
            0,
            0x0020_9B00_0000_0000,
            0x00CF_9300_0000_FFFF,
            0x00CF_FB00_0000_FFFF,
            0x00CF_F300_0000_FFFF,
            0x0020_FB00_0000_0000,
            0,
            TSS_LIMIT | tss << 16 | 0x89 << 40 | (TSS >> 24 & 0xFF) << 56,
            TSS >> 32,
        ];
        self.write(GDT, gdt.map(u64::to_le_bytes).as_flattened());
        for vector in 0..VECTOR_COUNT {
            let target = VECTORS + vector * VECTOR_SPACING;
            self.write(target, &VMCALL);
            // Interrupt gates (SDM vol. 3, 6.14.1); programs may raise #BP and #OF.
            let privilege = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let flags = 0x8E00 | privilege << 13;
            let low = target & 0xFFFF | u64::from(KERNEL_CODE) << 16 | flags << 32 | (target >> 16 & 0xFFFF) << 48;
            self.write(IDT + vector * 16, [low, target >> 32].map(u64::to_le_bytes).as_flattened());
        }
        self.write(TSS + 4, &KERNEL_STACK.to_le_bytes());
        for (offset, limit, base) in [(0, gdt.len() as u16 * 8 - 1, GDT), (16, VECTOR_COUNT as u16 * 16 - 1, IDT)] {
            self.write(DESCRIPTOR_POINTERS + offset, &limit.to_le_bytes());
            self.write(DESCRIPTOR_POINTERS + offset + 2, &base.to_le_bytes());
        }
        // lgdt [rax]; lidt [rax+16]; ltr cx; vmcall
        self.write(KERNEL, &[0x0F, 0x01, 0x10, 0x0F, 0x01, 0x58, 0x10, 0x0F, 0x00, 0xD9, 0x0F, 0x01, 0xC1]);
        let mut vcpu = self.machine.vcpu();
        vcpu.set_rip(KERNEL);
        vcpu.set_reg(Gpr::Rax, DESCRIPTOR_POINTERS);
        vcpu.set_reg(Gpr::Rcx, u64::from(TASK));
        vcpu.set_reg(Gpr::Rsp, KERNEL_STACK - 0x100);
        let exit = self.machine.run(&mut Gate::default(), 100);
        assert_eq!(exit, lstar_runtime::VmExit::Stopped, "the minimal kernel starts");
    }
}

impl Engine for Translated {
    fn name(&self) -> &'static str {
        if self.forced.is_some() { "faulting" } else { "translator" }
    }

    fn has_exact_mxcsr(&self) -> bool {
        false
    }

    fn load(&mut self, code: &[u8]) {
        let mut page = [0xCC; CODE_SIZE as usize];
        page[..code.len()].copy_from_slice(code);
        self.write(CODE, &page);
    }

    fn run(&mut self, state: &State, memory: &Memory, outcome: &mut Outcome) {
        self.start(state, memory);
        self.advance(BUDGET, outcome);
    }

    fn stepping(&mut self) -> Option<&mut dyn Stepping> {
        Some(self)
    }
}

impl Stepping for Translated {
    fn start(&mut self, state: &State, memory: &Memory) {
        self.write(DATA, &memory.data);
        self.write(STACK, &memory.stack);
        let mut vcpu = self.machine.vcpu();
        vcpu.enter_user_mode(USER_CODE, USER_DATA);
        vcpu.set_gs_base(GS_BASE);
        if self.narrow {
            super::enter_32bit(vcpu.state_mut());
        }
        for (register, value) in Gpr::ALL.into_iter().zip(state.gpr) {
            vcpu.set_reg(register, value);
        }
        for (index, value) in state.xmm.into_iter().enumerate() {
            vcpu.set_xmm(index, value);
        }
        for (index, value) in state.ymm_high.into_iter().enumerate() {
            vcpu.set_ymm_high(index, value);
        }
        vcpu.set_rip(CODE);
        vcpu.set_rflags(state.rflags);
        vcpu.set_mxcsr(state.mxcsr);
        *vcpu.x87_mut() = state.x87.to_state();
        self.started_at = vcpu.retired;
    }

    fn advance(&mut self, count: u64, outcome: &mut Outcome) -> u64 {
        let mut gate = Gate::default();
        if let Some(turn) = &mut self.forced {
            *turn += 1;
            if let Some(number) = turn.checked_rem(self.machine.fault_sites()) {
                self.machine.force_fault(Some(number));
            }
        }
        let left = (self.started_at + count).saturating_sub(self.machine.vcpu().retired);
        let mut exit = self.machine.run(&mut gate, left);
        // An exception is under way to its gate.
        while exit == lstar_runtime::VmExit::Budget && self.machine.vcpu().cpl() != 3 {
            exit = self.machine.run(&mut gate, 1);
        }
        let retired = self.machine.vcpu().retired - self.started_at;
        self.machine.force_fault(None);
        let mut vcpu = self.machine.vcpu();
        outcome.gpr = Gpr::ALL.map(|register| vcpu.reg(register));
        outcome.xmm = std::array::from_fn(|index| vcpu.xmm(index));
        outcome.ymm_high = std::array::from_fn(|index| vcpu.ymm_high(index));
        outcome.mxcsr = vcpu.mxcsr();
        outcome.x87 = X87::of(vcpu.x87_mut());
        if exit == lstar_runtime::VmExit::Stopped {
            outcome.gpr[Gpr::Rsp as usize] = gate.rsp;
            outcome.rflags = gate.rflags;
            outcome.set_exception(gate.rip, gate.vector, gate.error_code, vcpu.cr2());
        } else {
            (outcome.rflags, outcome.rip, outcome.ending) = (vcpu.rflags(), vcpu.rip(), Ending::Stuck);
        }
        let memory = self.machine.memory();
        memory.read_unchecked(DATA, &mut outcome.memory.data).expect("mapped");
        memory.read_unchecked(STACK, &mut outcome.memory.stack).expect("mapped");
        retired
    }

    fn machine(&self) -> Option<MachineConfig> {
        Some(*self.machine.config())
    }
}
