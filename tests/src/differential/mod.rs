//! Differential testing: the same generated program on several engines, from the same state, must end the same way.
//!
//! A [`Program`](program::Program) is user-mode code in a fixed memory [layout](CODE), a [`State`] is what it starts
//! from, an [`Outcome`] what it left: registers, flags, vectors, memory, and whether it reached its end or which
//! exception it raised. Engines are the interpreter alone, the machine running translated code, and the host processor.
//! Where two outcomes differ, [`minimise`] makes program and state small and prints them as a [`Case`](regression::Case).
//!
//! What is not compared, and why, is data: [`catalog::EXCLUDED`] for instructions, [`undefined`] for flags.

pub mod campaign;
pub mod catalog;
pub mod generate;
pub mod image_case;
pub mod interpreted;
pub mod minimise;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod native;
pub mod program;
pub mod random;
pub mod region_ends;
pub mod regression;
pub mod translated;
pub mod undefined;
pub mod x87;

use std::fmt::Write as _;

use lstar_arch::{CpuModel, CpuState, Rflags, Segment, SegmentIndex};

use random::Random;
pub use x87::X87;

/// The program: one page, readable and executable. This and
/// the data areas lie below 2 GiB, so that every form of address reaches them.
pub const CODE: u64 = 0x1000_0000;
/// Bytes of program area.
pub const CODE_SIZE: u64 = 0x1000;
/// Where a program ends: INT3 for guests, the way back for the host processor. A page of its own, where
/// no sum of other addresses leads: what is there differs.
pub const EXIT: u64 = 0x0512_3456_7000;
/// Data: writable, between an unmapped page and [`READ_ONLY`].
pub const DATA: u64 = 0x2000_0000;
/// Bytes of writable data.
pub const DATA_SIZE: u64 = 0x2000;
/// A page that is readable only, directly behind the data; nothing is mapped behind it.
pub const READ_ONLY: u64 = DATA + DATA_SIZE;
/// Stack: one writable page between unmapped ones.
pub const STACK: u64 = 0x3000_0000;
/// Bytes of stack.
pub const STACK_SIZE: u64 = 0x1000;
/// The GS base of programs.
pub const GS_BASE: u64 = DATA + 0x400;
/// Instructions after which a guest program is stopped: more than any generated program needs.
pub const BUDGET: u64 = 1 << 20;

/// The processor that programs run on: everything the engines implement.
pub const MODEL: CpuModel = CpuModel::AMD;

/// The flags that programs can change and engines must agree on.
pub const COMPARED_FLAGS: u64 = Rflags::STATUS.bits() | Rflags::DF.bits() | Rflags::NT.bits() | Rflags::ID.bits();

/// Puts a processor into 32-bit user code: flat segments, but for a null FS, and GS, which has a limit.
pub fn enter_32bit(cpu: &mut CpuState) {
    let flat = Segment::flat_data(0x2B, 3);
    *cpu.segment_mut(SegmentIndex::Cs) = Segment::flat_code32(0x23, 3);
    for index in [SegmentIndex::Ss, SegmentIndex::Ds, SegmentIndex::Es] {
        *cpu.segment_mut(index) = flat;
    }
    *cpu.segment_mut(SegmentIndex::Fs) = Segment::default();
    *cpu.segment_mut(SegmentIndex::Gs) = Segment { base: GS_BASE, limit: 0x7FF, ..flat };
}

/// Contents of the writable areas.
#[derive(Clone, PartialEq, Eq)]
pub struct Memory {
    /// At [`DATA`].
    pub data: [u8; DATA_SIZE as usize],
    /// At [`STACK`].
    pub stack: [u8; STACK_SIZE as usize],
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl Memory {
    /// All zero.
    #[must_use]
    pub fn zeroed() -> Box<Self> {
        Box::new(Self { data: [0; DATA_SIZE as usize], stack: [0; STACK_SIZE as usize] })
    }

    /// Image `number`: zeros for 0, else a mixture of values that mean something to some instruction.
    #[must_use]
    pub fn image(number: u8) -> Box<Self> {
        let mut memory = Self::zeroed();
        if number != 0 {
            let mut random = Random::new(u64::from(number));
            let Self { data, stack } = &mut *memory;
            for chunk in data.as_chunks_mut::<8>().0.iter_mut().chain(stack.as_chunks_mut::<8>().0) {
                *chunk = random.lane().to_le_bytes();
            }
        }
        memory
    }

    /// Writes a quadword where it lies wholly in one of the areas.
    pub fn patch(&mut self, address: u64, value: u64) {
        for (start, area) in [(DATA, &mut self.data[..]), (STACK, &mut self.stack[..])] {
            let offset = address.wrapping_sub(start) as usize;
            if let Some(bytes) = area.get_mut(offset..).and_then(|rest| rest.get_mut(..8)) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

/// Contents of the read-only page.
#[must_use]
pub fn read_only_page() -> [u8; 0x1000] {
    Memory::image(1).stack
}

/// Number of memory images that states choose from.
pub const IMAGES: u8 = 8;

/// What a program starts from; RIP is [`CODE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// General-purpose registers in encoding order.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// MXCSR.
    pub mxcsr: u32,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// The upper halves of YMM0 to YMM15.
    pub ymm_high: [u128; 16],
    /// x87 and MMX registers.
    pub x87: X87,
    /// Number of the [`Memory::image`].
    pub image: u8,
    /// Quadwords written over the image: address and value.
    pub patches: Vec<(u64, u64)>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            rflags: 0x202,
            mxcsr: 0x1F80,
            xmm: [0; 16],
            ymm_high: [0; 16],
            x87: X87::default(),
            image: 0,
            patches: Vec::new(),
        }
    }
}

impl State {
    /// The writable areas that it stands for.
    #[must_use]
    pub fn memory(&self) -> Box<Memory> {
        let mut memory = Memory::image(self.image);
        for &(address, value) in &self.patches {
            memory.patch(address, value);
        }
        memory
    }
}

/// Where Linux's user space ends: a page below the end of the canonical lower half.
const LINUX_USER_END: u64 = (1 << 47) - 0x1000;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It reached [`EXIT`].
    Finished,
    /// It raised an exception.
    Exception {
        /// Vector.
        vector: u8,
        /// Error code, 0 for vectors without one.
        error_code: u32,
        /// The address, for page faults; else 0.
        cr2: u64,
    },
    /// It did not end in time, or the engine stopped for a reason of its own.
    Stuck,
}

/// What a program left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// RIP as an exception handler sees it.
    pub rip: u64,
    /// General-purpose registers.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// MXCSR.
    pub mxcsr: u32,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// The upper halves of YMM0 to YMM15.
    pub ymm_high: [u128; 16],
    /// x87 and MMX registers.
    pub x87: X87,
    /// The writable areas.
    pub memory: Box<Memory>,
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            ending: Ending::Stuck,
            rip: 0,
            gpr: [0; 16],
            rflags: 0,
            mxcsr: 0,
            xmm: [0; 16],
            ymm_high: [0; 16],
            x87: X87::default(),
            memory: Memory::zeroed(),
        }
    }
}

impl Outcome {
    /// Puts the end of a program in one form: what a guest sees as a breakpoint at [`EXIT`] is [`Ending::Finished`], and
    /// only page faults have an address.
    fn set_exception(&mut self, rip: u64, vector: u8, error_code: u32, cr2: u64) {
        const BREAKPOINT: u8 = 3;
        const PAGE_FAULT: u8 = 14;
        self.rip = rip;
        self.ending = if vector == BREAKPOINT && rip == EXIT + 1 {
            self.rip = EXIT;
            Ending::Finished
        } else {
            Ending::Exception { vector, error_code, cr2: if vector == PAGE_FAULT { cr2 } else { 0 } }
        };
    }
}

/// Something that runs programs.
pub trait Engine {
    /// Its name on the command line.
    fn name(&self) -> &'static str;
    /// Whether MXCSR's exception flags are exact; translated code may miss some (they are deliberately approximate).
    fn has_exact_mxcsr(&self) -> bool {
        true
    }
    /// Whether the page-fault code for the kernel half says "present", whatever is there (Linux hides what is).
    fn hides_kernel_half(&self) -> bool {
        false
    }
    /// Whether it gives up on a program that does not end.
    fn gives_up(&self) -> bool {
        true
    }
    /// Whether a guest would reach something of the engine's own at an address where it has nothing mapped.
    fn exposes(&self, _address: u64) -> bool {
        false
    }
    /// Replaces the program.
    fn load(&mut self, code: &[u8]);
    /// Runs it from `state`, with `memory` in the writable areas.
    fn run(&mut self, state: &State, memory: &Memory, outcome: &mut Outcome);
    /// The same engine stop by stop, if it can be stopped on the way.
    fn stepping(&mut self) -> Option<&mut dyn Stepping> {
        None
    }
}

/// An engine that can be stopped on the way.
pub trait Stepping {
    /// Sets everything up as [`Engine::run`] does, and executes nothing.
    fn start(&mut self, state: &State, memory: &Memory);
    /// Goes on until `count` instructions have retired since the start. Fills `outcome` ([`Ending::Stuck`] where the program has not
    /// ended), and returns how many have retired.
    fn advance(&mut self, count: u64, outcome: &mut Outcome) -> u64;
    /// Settings of the machine that runs translated code.
    fn machine(&self) -> Option<lstar_runtime::MachineConfig> {
        None
    }
    /// The registers that a program starts with.
    fn registers(&self, state: &State) -> Option<lstar_arch::CpuState> {
        let _ = state;
        None
    }
}

/// What is left out of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tolerance {
    /// RFLAGS bits that are compared.
    pub flags: u64,
    /// MXCSR bits that are compared.
    pub mxcsr: u32,
    /// The present bit of page faults in the kernel half is not compared.
    pub kernel_half: bool,
}

impl Tolerance {
    /// What these two engines can be held to, but for the undefined flags.
    #[must_use]
    pub fn between(a: &dyn Engine, b: &dyn Engine) -> Self {
        const EXCEPTION_FLAGS: u32 = 0x3F;
        let exact = a.has_exact_mxcsr() && b.has_exact_mxcsr();
        Self {
            flags: COMPARED_FLAGS,
            mxcsr: if exact { u32::MAX } else { !EXCEPTION_FLAGS },
            kernel_half: a.hides_kernel_half() || b.hides_kernel_half(),
        }
    }

    /// The same without these flags.
    #[must_use]
    pub fn without_flags(self, undefined: u64) -> Self {
        Self { flags: self.flags & !undefined, ..self }
    }

    fn endings_agree(self, a: Ending, b: Ending) -> bool {
        match (a, b) {
            (
                Ending::Exception { vector: 14, error_code, cr2 },
                Ending::Exception { vector: 14, error_code: other, cr2: address },
            ) if self.kernel_half && cr2 >= LINUX_USER_END => error_code | 1 == other | 1 && cr2 == address,
            _ => a == b,
        }
    }

    /// Whether the outcomes agree.
    #[must_use]
    pub fn agree(self, a: &Outcome, b: &Outcome) -> bool {
        a.gpr == b.gpr
            && a.rip == b.rip
            && (a.rflags ^ b.rflags) & self.flags == 0
            && (a.mxcsr ^ b.mxcsr) & self.mxcsr == 0
            && self.endings_agree(a.ending, b.ending)
            && a.xmm == b.xmm
            && a.ymm_high == b.ymm_high
            && a.x87 == b.x87
            && a.memory == b.memory
    }

    /// The differences, a line each: what `a` says, what `b` says.
    #[must_use]
    pub fn differences(self, a: &Outcome, b: &Outcome) -> String {
        let mut text = String::new();
        let mut line = |name: &str, a: String, b: String| {
            let _ = writeln!(text, "    {name}: {a} / {b}");
        };
        if !self.endings_agree(a.ending, b.ending) {
            line("ending", format!("{:x?}", a.ending), format!("{:x?}", b.ending));
        }
        if a.rip != b.rip {
            line("rip", format!("{:#x}", a.rip), format!("{:#x}", b.rip));
        }
        for (i, (a, b)) in a.gpr.iter().zip(&b.gpr).enumerate().filter(|(_, (a, b))| a != b) {
            line(regression::GPR_NAMES[i], format!("{a:#x}"), format!("{b:#x}"));
        }
        if (a.rflags ^ b.rflags) & self.flags != 0 {
            let flags = |value: u64| format!("{:?}", Rflags::from_bits_truncate(value & self.flags));
            line("rflags", flags(a.rflags), flags(b.rflags));
        }
        if (a.mxcsr ^ b.mxcsr) & self.mxcsr != 0 {
            line("mxcsr", format!("{:#x}", a.mxcsr), format!("{:#x}", b.mxcsr));
        }
        for (part, a, b) in [("xmm", &a.xmm, &b.xmm), ("high half of ymm", &a.ymm_high, &b.ymm_high)] {
            for (i, (a, b)) in a.iter().zip(b).enumerate().filter(|(_, (a, b))| a != b) {
                line(&format!("{part}{i}"), format!("{a:#034x}"), format!("{b:#034x}"));
            }
        }
        text += &a.x87.differences(&b.x87);
        let mut line = |name: &str, a: String, b: String| {
            let _ = writeln!(text, "    {name}: {a} / {b}");
        };
        for (start, a, b) in
            [(DATA, &a.memory.data[..], &b.memory.data[..]), (STACK, &a.memory.stack[..], &b.memory.stack[..])]
        {
            for (address, (a, b)) in (start..).zip(a.iter().zip(b)).filter(|(_, (a, b))| a != b).take(32) {
                line(&format!("[{address:#x}]"), format!("{a:#x}"), format!("{b:#x}"));
            }
        }
        text
    }
}
