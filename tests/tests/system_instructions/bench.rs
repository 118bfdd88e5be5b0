//! A test bench for single instructions: descriptor tables of its own, a handler for every vector, and rows that say
//! what one instruction must do. Each row runs on both engines.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, ax, eax, fword_ptr, rax};
use lstar_arch::{CpuModel, Gpr, SegmentIndex};
use lstar_runtime::{Engine, GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, Vcpu, VmExit};

/// Start-up code of the bench.
const START: u64 = 0xFFFF_F800_0000_0000;
/// Code of rows at CPL 0 to 2.
pub const KERNEL_CODE: u64 = START + 0x1000;
/// One VMCALL for each vector.
const HANDLERS: u64 = START + 0x2000;
/// Where LSTAR points.
pub const LSTAR: u64 = START + 0x2800;
/// Where CSTAR points.
pub const CSTAR: u64 = START + 0x2900;
/// Writable kernel memory.
const DATA: u64 = START + 0x10000;
pub const GDT: u64 = DATA;
pub const IDT: u64 = DATA + 0x1000;
const TSS: u64 = DATA + 0x2000;
/// Operands of LGDT and LIDT.
const TABLE_REGISTERS: u64 = DATA + 0x2800;
/// The IRETQ frame that enters the row.
const FRAME: u64 = DATA + 0x2900;
/// Memory for rows at CPL 0.
pub const SCRATCH: u64 = DATA + 0x3000;
/// Ends of the stacks for CPL 0, of IST 1 and of rows at CPL 0 to 2.
const KERNEL_STACK: u64 = DATA + 0x6000;
pub const IST_STACK: u64 = DATA + 0x8000;
const ROW_STACK: u64 = DATA + 0xA000;
/// Code of rows at CPL 3, within the reach of compatibility mode.
pub const USER_CODE: u64 = 0x40_0000;
/// Holds the end marker: a place to return to.
pub const USER_TARGET: u64 = 0x41_0000;
const USER_STACK: u64 = 0x50_8000;

/// Reports the end of a row above CPL 0.
const END_VECTOR: u8 = 0x81;
/// Interrupt gate with DPL 3.
pub const OPEN_VECTOR: u8 = 0x80;
/// Trap gate with DPL 3.
pub const TRAP_VECTOR: u8 = 0x82;
/// Interrupt gate with DPL 3 on the stack of IST 1.
pub const IST_VECTOR: u8 = 0x83;
/// DPL 3, not present.
pub const ABSENT_VECTOR: u8 = 0x90;
/// Interrupt gate with DPL 0.
pub const CLOSED_VECTOR: u8 = 0x91;
/// First vector beyond the IDT's limit.
pub const LIMIT_VECTOR: u8 = 0xF0;

/// Selectors.
pub const KERNEL_CS: u16 = 0x10;
pub const KERNEL_SS: u16 = 0x18;
pub const USER_CS32: u16 = 0x23;
pub const USER_SS: u16 = 0x2B;
pub const USER_CS: u16 = 0x33;
pub const BUSY_TSS: u16 = 0x40;
const RING1_CS: u16 = 0x51;
const RING1_SS: u16 = 0x59;
/// User code that is not present.
pub const ABSENT_CS: u16 = 0x63;
/// A TSS that nobody uses.
pub const FREE_TSS: u16 = 0x70;
/// Beyond the GDT's limit.
pub const LIMIT_SELECTOR: u16 = 0x80;

const GDT_ENTRIES: [(u16, u64); 10] = [
    (KERNEL_CS, 0x0020_9B00_0000_0000),
    (KERNEL_SS, 0x00CF_9300_0000_FFFF),
    (USER_CS32, 0x00CF_FB00_0000_FFFF),
    (USER_SS, 0x00CF_F300_0000_FFFF),
    (USER_CS, 0x0020_FB00_0000_0000),
    (RING1_CS, 0x0020_BB00_0000_0000),
    (RING1_SS, 0x00CF_B300_0000_FFFF),
    (ABSENT_CS, 0x0020_7B00_0000_0000),
    (BUSY_TSS, 0x67 | (TSS & 0xFF_FFFF) << 16 | 0x89 << 40 | (TSS >> 24 & 0xFF) << 56),
    (FREE_TSS, 0x67 | (TSS & 0xFF_FFFF) << 16 | 0x89 << 40 | (TSS >> 24 & 0xFF) << 56),
];

/// SYSCALL's selectors from 10h, SYSRET's from 23h.
const STAR: u64 = 0x0023_0010_0000_0000;
pub const EFER_MSR: u32 = 0xC000_0080;
pub const STAR_MSR: u32 = 0xC000_0081;
pub const LSTAR_MSR: u32 = 0xC000_0082;
const CSTAR_MSR: u32 = 0xC000_0083;
pub const FMASK_MSR: u32 = 0xC000_0084;

/// GS bases that every row starts with.
pub const ACTIVE_GS: u64 = 0x1111_0000;
pub const KERNEL_GS: u64 = 0xFFFF_F811_2222_0000;

/// Vectors, for expectations.
pub const DB: u8 = 1;
pub const BP: u8 = 3;
pub const OF: u8 = 4;
pub const UD: u8 = 6;
pub const DF: u8 = 8;
pub const NP: u8 = 11;
pub const GP: u8 = 13;

/// Emits instructions.
pub type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Mode and privilege of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Kernel,
    Ring1,
    User,
    /// CPL 3 in compatibility mode.
    Compatibility,
}

/// What the tested instruction must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Raise an exception that names the instruction.
    Fault(u8, Option<u32>),
    /// Be done, and raise an exception that names the next one.
    Trap(u8),
    /// Raise an exception that names another address, at a CPL.
    FaultAt(u8, Option<u32>, u64, u8),
    /// Go on behind itself.
    Next,
    /// Go on at an address, at a CPL.
    At(u64, u8),
    /// Stop the processor.
    Halt,
}

/// The machine when the row has ended: what was interrupted by the exception or the end marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The exception's vector; `None` at an end marker and after HLT.
    pub vector: Option<u8>,
    pub error_code: Option<u32>,
    pub rip: u64,
    pub cs: u16,
    pub ss: u16,
    pub rsp: u64,
    pub rflags: u64,
    /// RFLAGS in the handler.
    pub handler_rflags: u64,
    /// RSP in the handler, before anything was pushed there.
    pub handler_frame: u64,
    pub gpr: [u64; 16],
    pub gs: [u64; 2],
    pub dr6: u64,
    pub dr7: u64,
    /// The quadwords at [`SCRATCH`].
    pub scratch: [u64; 2],
}

impl Seen {
    pub fn reg(&self, register: Gpr) -> u64 {
        self.gpr[register as usize]
    }

    pub fn cpl(&self) -> u8 {
        (self.cs & 3) as u8
    }
}

/// One condition of one instruction.
pub struct Row {
    name: &'static str,
    level: Level,
    model: CpuModel,
    rflags: u64,
    prepare: fn(&mut Vcpu<'_>),
    boot: Code,
    setup: Code,
    test: Code,
    then: Code,
    expect: Expect,
    check: fn(&Seen),
}

/// `test` at `level` must do what `expect` says.
pub fn row(name: &'static str, level: Level, test: Code, expect: Expect) -> Row {
    Row {
        name,
        level,
        model: CpuModel::INTEL,
        rflags: 0x202,
        prepare: |_| {},
        boot: |_| Ok(()),
        setup: |_| Ok(()),
        test,
        then: |_| Ok(()),
        expect,
        check: |_| {},
    }
}

impl Row {
    pub fn amd(mut self) -> Self {
        self.model = CpuModel::AMD;
        self
    }
    /// RFLAGS at the row's first instruction.
    pub fn rflags(mut self, rflags: u64) -> Self {
        self.rflags = rflags;
        self
    }
    /// Changes the machine before it starts.
    pub fn prepare(mut self, prepare: fn(&mut Vcpu<'_>)) -> Self {
        self.prepare = prepare;
        self
    }
    /// Code at CPL 0 before the row is entered.
    pub fn boot(mut self, boot: Code) -> Self {
        self.boot = boot;
        self
    }
    /// Code in front of the tested instruction.
    pub fn setup(mut self, setup: Code) -> Self {
        self.setup = setup;
        self
    }
    /// Code behind it.
    pub fn then(mut self, then: Code) -> Self {
        self.then = then;
        self
    }
    /// What else must hold when the row has ended.
    pub fn check(mut self, check: fn(&Seen)) -> Self {
        self.check = check;
        self
    }
}

/// Runs every row on both engines.
pub fn run(rows: &[Row]) {
    for row in rows {
        let [interpreted, translated] = [Engine::Interpreter, Engine::Translator].map(|engine| {
            let what = format!("{} on the {engine:?}", row.name);
            let seen = run_row(row, engine, &what);
            (row.check)(&seen);
            seen
        });
        assert_eq!(interpreted, translated, "{}: the engines differ", row.name);
    }
}

/// Says which row failed when its `check` does.
struct Name<'a>(&'a str);

impl Drop for Name<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("row: {}", self.0);
        }
    }
}

fn assemble(bitness: u32, address: u64, code: Code) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bitness).expect("assembler");
    code(&mut assembler).expect("instructions");
    if assembler.instructions().is_empty() {
        return Vec::new();
    }
    assembler.assemble(address).expect("code")
}

/// Takes the machine's state at the first VMCALL.
#[derive(Default)]
struct Recorder(Option<Seen>);

impl ServiceGate for Recorder {
    fn service(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        self.0 = Some(seen(vcpu, 3));
        GateAction::Stop
    }
}

fn quadword(vcpu: &mut Vcpu<'_>, address: u64) -> u64 {
    let mut bytes = [0; 8];
    vcpu.memory.read_unchecked(address, &mut bytes).expect("mapped");
    u64::from_le_bytes(bytes)
}

/// `length` is that of the marker behind which RIP is.
fn seen(vcpu: &mut Vcpu<'_>, length: u64) -> Seen {
    let rip = vcpu.rip() - length;
    let mut seen = Seen {
        vector: None,
        error_code: None,
        rip,
        cs: vcpu.selector(SegmentIndex::Cs),
        ss: vcpu.selector(SegmentIndex::Ss),
        rsp: vcpu.reg(Gpr::Rsp),
        rflags: vcpu.rflags(),
        handler_rflags: vcpu.rflags(),
        handler_frame: 0,
        gpr: Gpr::ALL.map(|register| vcpu.reg(register)),
        gs: [vcpu.gs_base(), vcpu.kernel_gs_base()],
        dr6: vcpu.debug_register(6),
        dr7: vcpu.debug_register(7),
        scratch: [quadword(vcpu, SCRATCH), quadword(vcpu, SCRATCH + 8)],
    };
    let Some(offset) = rip.checked_sub(HANDLERS).filter(|&offset| offset < 0x400) else { return seen };
    let vector = (offset / 4) as u8;
    assert_eq!(seen.cs, KERNEL_CS, "handlers run at CPL 0");
    let mut frame = seen.rsp;
    if matches!(vector, 8 | 10..=14 | 17) {
        seen.error_code = Some(quadword(vcpu, frame) as u32);
        frame += 8;
    }
    let [rip, cs, rflags, rsp, ss] = [0, 8, 16, 24, 32].map(|slot| quadword(vcpu, frame + slot));
    seen.handler_frame = frame + 40;
    (seen.rip, seen.cs, seen.rflags, seen.rsp, seen.ss) = (rip, cs as u16, rflags, rsp, ss as u16);
    seen.gpr[Gpr::Rsp as usize] = rsp;
    if vector == END_VECTOR {
        seen.rip -= 2;
    } else {
        seen.vector = Some(vector);
    }
    seen
}

fn gate(vector: u8) -> [u64; 2] {
    let target = HANDLERS + u64::from(vector) * 4;
    let kind: u64 = match vector {
        DF => 0x8E01,
        TRAP_VECTOR => 0xEF00,
        IST_VECTOR => 0xEE01,
        ABSENT_VECTOR => 0x6E00,
        3 | 4 | OPEN_VECTOR | END_VECTOR => 0xEE00,
        _ => 0x8E00,
    };
    let low = target & 0xFFFF | u64::from(KERNEL_CS) << 16 | kind << 32 | (target >> 16 & 0xFFFF) << 48;
    [low, target >> 32]
}

/// What the bench has in memory besides code.
fn tables(row: &Row) -> Vec<(u64, Vec<u8>)> {
    let mut tables = Vec::new();
    let mut put = |address: u64, values: &[u64]| {
        tables.push((address, values.iter().flat_map(|value| value.to_le_bytes()).collect()));
    };
    for (selector, descriptor) in GDT_ENTRIES {
        put(GDT + u64::from(selector & !7), &[descriptor]);
    }
    for tss in [BUSY_TSS, FREE_TSS] {
        put(GDT + u64::from(tss) + 8, &[TSS >> 32]);
    }
    for vector in 0..LIMIT_VECTOR {
        put(IDT + u64::from(vector) * 16, &gate(vector));
    }
    put(TSS + 4, &[KERNEL_STACK, KERNEL_STACK - 0x1000]);
    put(TSS + 0x24, &[IST_STACK]);
    // Limit in 16 bits, then the base.
    put(TABLE_REGISTERS + 2, &[GDT]);
    put(TABLE_REGISTERS, &[(u64::from(LIMIT_SELECTOR) - 1) | GDT << 16]);
    put(TABLE_REGISTERS + 0x12, &[IDT]);
    put(TABLE_REGISTERS + 0x10, &[(u64::from(LIMIT_VECTOR) * 16 - 1) | IDT << 16]);
    let (rip, cs, rsp, ss) = match row.level {
        Level::Kernel => (KERNEL_CODE, KERNEL_CS, ROW_STACK, KERNEL_SS),
        Level::Ring1 => (KERNEL_CODE, RING1_CS, ROW_STACK, RING1_SS),
        Level::User => (USER_CODE, USER_CS, USER_STACK, USER_SS),
        Level::Compatibility => (USER_CODE, USER_CS32, USER_STACK, USER_SS),
    };
    put(FRAME, &[rip, cs.into(), row.rflags, rsp, ss.into()]);
    tables
}

fn run_row(row: &Row, engine: Engine, what: &str) -> Seen {
    let _name = Name(what);
    // With a threshold of 0 everything in 64-bit mode is translated before it runs.
    let config =
        MachineConfig { engine, model: row.model, hot_threshold: 0, memory_limit: 1 << 30, ..MachineConfig::default() };
    let mut machine = Machine::new(config).expect("machine");
    let memory = machine.memory();
    for (start, size, protection) in [
        (START, 0x4000, Protection::RX),
        (DATA, 0xA000, Protection::RW),
        (USER_CODE, 0x1000, Protection::RX),
        (USER_TARGET, 0x1000, Protection::RX),
        (USER_STACK - 0x8000, 0x8000, Protection::RW),
    ] {
        memory.map(start, size, protection).expect("memory");
    }

    let mut start = assemble(64, START, |a| {
        a.mov(rax, TABLE_REGISTERS)?;
        a.lgdt(fword_ptr(rax))?;
        a.lidt(fword_ptr(rax + 0x10))?;
        a.mov(eax, u32::from(BUSY_TSS))?;
        a.ltr(ax)
    });
    start.extend(assemble(64, START + start.len() as u64, row.boot));
    start.extend(assemble(64, 0, |a| a.iretq()));
    let (base, bitness) = match row.level {
        Level::Kernel | Level::Ring1 => (KERNEL_CODE, 64),
        Level::User => (USER_CODE, 64),
        Level::Compatibility => (USER_CODE, 32),
    };
    let mut code = assemble(bitness, base, row.setup);
    let tested = base + code.len() as u64;
    code.extend(assemble(bitness, tested, row.test));
    let next = base + code.len() as u64;
    code.extend(assemble(bitness, next, row.then));
    let end = base + code.len() as u64;
    let end_marker = |a: &mut CodeAssembler| {
        a.int(i32::from(END_VECTOR))?;
        a.hlt()
    };
    // HLT, which is not reached, ends regions.
    let vmcall = |a: &mut CodeAssembler| {
        a.vmcall()?;
        a.hlt()
    };
    code.extend(if row.level == Level::Kernel { assemble(64, 0, vmcall) } else { assemble(64, 0, end_marker) });
    let handlers = [0x0F, 0x01, 0xC1, 0xF4].repeat(256);
    for (address, bytes) in [
        (START, start),
        (base, code),
        (HANDLERS, handlers),
        (LSTAR, assemble(64, 0, vmcall)),
        (CSTAR, assemble(64, 0, vmcall)),
        (USER_TARGET, assemble(64, 0, end_marker)),
    ]
    .into_iter()
    .chain(tables(row))
    {
        machine.memory().write_unchecked(address, &bytes).expect("memory");
    }

    let mut vcpu = machine.vcpu();
    vcpu.set_rip(START);
    vcpu.set_reg(Gpr::Rsp, FRAME);
    vcpu.set_gs_base(ACTIVE_GS);
    vcpu.set_kernel_gs_base(KERNEL_GS);
    for (msr, value) in [(STAR_MSR, STAR), (LSTAR_MSR, LSTAR), (CSTAR_MSR, CSTAR), (FMASK_MSR, 0x4700)] {
        assert!(vcpu.write_msr(msr, value));
    }
    if row.level == Level::Compatibility {
        // What the way out to CPL 3 leaves alone.
        vcpu.set_data_segment(SegmentIndex::Ds, USER_SS, u32::MAX);
        vcpu.set_data_segment(SegmentIndex::Es, USER_SS, u32::MAX);
    }
    (row.prepare)(&mut vcpu);

    let mut recorder = Recorder::default();
    let exit = machine.run(&mut recorder, 10_000);
    let halts = row.expect == Expect::Halt;
    assert_eq!(exit, if halts { VmExit::Halted } else { VmExit::Stopped }, "{what}");
    // Armed breakpoints leave everything to the interpreter.
    if engine == Engine::Translator && machine.vcpu().debug_register(7) & 0xFF == 0 {
        // The start-up code, the row and a handler, unless the row is one that only the interpreter runs.
        let mut flat = |segment| machine.vcpu().state().segment(segment).is_unlimited_data();
        let special = row.level == Level::Ring1
            || row.level == Level::Compatibility && !(flat(SegmentIndex::Ds) && flat(SegmentIndex::Es));
        let interpreted = special || row.rflags & 0x1_0100 != 0;
        let within = row.level == Level::Kernel && matches!(row.expect, Expect::Next | Expect::Halt);
        let least = if interpreted || within { 2 } else { 3 };
        assert!(machine.statistics().regions >= least, "{what}: not translated");
    }
    let seen = recorder.0.unwrap_or_else(|| seen(&mut machine.vcpu(), 0));
    let level = match row.level {
        Level::Kernel => 0,
        Level::Ring1 => 1,
        Level::User | Level::Compatibility => 3,
    };
    let (vector, error_code, rip, cpl) = match row.expect {
        Expect::Fault(vector, code) => (Some(vector), code, tested, level),
        Expect::Trap(vector) => (Some(vector), None, next, level),
        Expect::FaultAt(vector, code, rip, cpl) => (Some(vector), code, rip, cpl),
        Expect::Next => (None, None, end, level),
        Expect::At(rip, cpl) => (None, None, rip, cpl),
        Expect::Halt => (None, None, next, level),
    };
    assert_eq!(
        (seen.vector, seen.error_code, seen.rip, seen.cpl()),
        (vector, error_code, rip, cpl),
        "{what}: vector, error code, RIP, CPL of {seen:x?}"
    );
    seen
}
