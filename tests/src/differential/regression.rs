//! Single cases as data: what a found bug becomes.

use std::fmt::Write as _;

use iced_x86::{Decoder, DecoderOptions};

use super::program::leave;
use super::{CODE, Ending, Engine, Memory, Outcome, State, Tolerance, X87};

/// Names of the general-purpose registers in encoding order.
pub const GPR_NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// Something that a case must leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// A general-purpose register, by encoding.
    Register(usize, u64),
    /// A vector register's low half.
    Vector(usize, u128),
    /// A vector register's high half.
    High(usize, u128),
    /// The compared flags.
    Flags(u64),
    /// The byte at an address of the writable areas.
    Byte(u64, u8),
    /// How it ends.
    Ending(Ending),
    /// RIP at the end.
    Rip(u64),
    /// The compared bits of MXCSR.
    Mxcsr(u32),
    /// x87 and MMX registers.
    X87(X87),
}

/// A program with a state and what it must leave.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it shows.
    pub name: &'static str,
    /// Machine code at [`CODE`]; its end leads to [`EXIT`](super::EXIT).
    pub code: &'static [u8],
    /// Flags that are undefined at the end.
    pub undefined: u64,
    /// General-purpose registers that are not zero.
    pub gpr: &'static [(usize, u64)],
    /// RFLAGS.
    pub rflags: u64,
    /// MXCSR.
    pub mxcsr: u32,
    /// Vector registers that are not zero.
    pub xmm: &'static [(usize, u128)],
    /// Upper halves of vector registers that are not zero.
    pub ymm_high: &'static [(usize, u128)],
    /// x87 and MMX registers.
    pub x87: X87,
    /// Number of the memory image.
    pub image: u8,
    /// Quadwords written over it.
    pub patches: &'static [(u64, u64)],
    /// What it must leave, on every engine.
    pub expected: &'static [Expect],
}

impl Case {
    /// A case that starts from zeros.
    pub const EMPTY: Self = Self {
        name: "",
        code: &[],
        undefined: 0,
        gpr: &[],
        rflags: 0x202,
        mxcsr: 0x1F80,
        xmm: &[],
        ymm_high: &[],
        x87: X87 { registers: [0; 8], control: 0x37F, status: 0, valid: 0 },
        image: 0,
        patches: &[],
        expected: &[],
    };

    /// The state it starts from.
    #[must_use]
    pub fn state(&self) -> State {
        let mut state =
            State { rflags: self.rflags, mxcsr: self.mxcsr, image: self.image, x87: self.x87, ..State::default() };
        for &(index, value) in self.gpr {
            state.gpr[index] = value;
        }
        for &(index, value) in self.xmm {
            state.xmm[index] = value;
        }
        for &(index, value) in self.ymm_high {
            state.ymm_high[index] = value;
        }
        state.patches = self.patches.to_vec();
        state
    }

    /// Runs it on all engines; the result lists what is wrong, empty if nothing is.
    #[must_use]
    pub fn check(&self, engines: &mut [Box<dyn Engine>]) -> String {
        let mut text = String::new();
        let code = [self.code, &leave()].concat();
        let mut reference: Option<(Outcome, usize)> = None;
        for index in 0..engines.len() {
            let outcome = execute(&mut *engines[index], &code, &self.state());
            let name = engines[index].name();
            for expect in self.expected {
                let actual = actual(*expect, &outcome, self.undefined);
                if actual != *expect {
                    let _ = writeln!(text, "{} on {name}: {actual:x?} instead of {expect:x?}", self.name);
                }
            }
            if let Some((first, at)) = &reference {
                let tolerance = Tolerance::between(&*engines[*at], &*engines[index]).without_flags(self.undefined);
                if !tolerance.agree(first, &outcome) {
                    let differences = tolerance.differences(first, &outcome);
                    let _ = write!(text, "{}: {} / {name}:\n{differences}", self.name, engines[*at].name());
                }
            } else {
                reference = Some((outcome, index));
            }
        }
        text
    }
}

/// What the outcome has in place of the expectation.
fn actual(expect: Expect, outcome: &Outcome, undefined: u64) -> Expect {
    match expect {
        Expect::Register(index, _) => Expect::Register(index, outcome.gpr[index]),
        Expect::Vector(index, _) => Expect::Vector(index, outcome.xmm[index]),
        Expect::High(index, _) => Expect::High(index, outcome.ymm_high[index]),
        Expect::Flags(_) => Expect::Flags(outcome.rflags & super::COMPARED_FLAGS & !undefined),
        Expect::Byte(address, _) => Expect::Byte(address, byte(&outcome.memory, address)),
        Expect::Ending(_) => Expect::Ending(outcome.ending),
        Expect::Rip(_) => Expect::Rip(outcome.rip),
        Expect::X87(_) => Expect::X87(outcome.x87),
        Expect::Mxcsr(_) => Expect::Mxcsr(outcome.mxcsr & !0x3F),
    }
}

fn byte(memory: &Memory, address: u64) -> u8 {
    let data = memory.data.get(address.wrapping_sub(super::DATA) as usize);
    data.or_else(|| memory.stack.get(address.wrapping_sub(super::STACK) as usize)).copied().unwrap_or(0)
}

/// Loads and runs a program once.
pub fn execute(engine: &mut dyn Engine, code: &[u8], state: &State) -> Outcome {
    let memory = state.memory();
    let mut outcome = Outcome::default();
    engine.load(code);
    engine.run(state, &memory, &mut outcome);
    outcome
}

/// A [`Case`] as source text. `code` includes the jump to the exit; the expectations are those fields of `right` in which
/// `wrong` differs.
#[must_use]
pub fn source(code: &[u8], state: &State, undefined: u64, right: &Outcome, wrong: &Outcome) -> String {
    let body = &code[..code.len().saturating_sub(leave().len())];
    let mut text = String::from("    Case {\n        name: \"");
    let mut listing = String::new();
    for insn in &mut Decoder::with_ip(64, body, CODE, DecoderOptions::NONE) {
        let at = (insn.ip() - CODE) as usize;
        let bytes: Vec<String> = body[at..at + insn.len()].iter().map(|byte| format!("0x{byte:02X}")).collect();
        let _ = writeln!(listing, "            {}, // {insn}", bytes.join(", "));
    }
    let title = Decoder::with_ip(64, body, CODE, DecoderOptions::NONE).iter().last().map(|insn| insn.to_string());
    let _ = writeln!(text, "{}\",\n        code: &[\n{listing}        ],", title.unwrap_or_default());
    if undefined & super::COMPARED_FLAGS != 0 {
        let _ = writeln!(text, "        undefined: {undefined:#x},");
    }
    let gpr: Vec<String> =
        state.gpr.iter().enumerate().filter(|(_, v)| **v != 0).map(|(i, v)| format!("({i}, {v:#x})")).collect();
    if !gpr.is_empty() {
        let _ = writeln!(text, "        gpr: &[{}],", gpr.join(", "));
    }
    let default = State::default();
    if state.rflags != default.rflags {
        let _ = writeln!(text, "        rflags: {:#x},", state.rflags);
    }
    if state.mxcsr != default.mxcsr {
        let _ = writeln!(text, "        mxcsr: {:#x},", state.mxcsr);
    }
    if state.x87 != default.x87 {
        let _ = writeln!(text, "        x87: {:?},", state.x87);
    }
    for (field, values) in [("xmm", &state.xmm), ("ymm_high", &state.ymm_high)] {
        let set: Vec<String> =
            values.iter().enumerate().filter(|(_, v)| **v != 0).map(|(i, v)| format!("({i}, {v:#x})")).collect();
        if !set.is_empty() {
            let _ = writeln!(text, "        {field}: &[{}],", set.join(", "));
        }
    }
    if state.image != 0 {
        let _ = writeln!(text, "        image: {},", state.image);
    }
    if !state.patches.is_empty() {
        let _ = writeln!(text, "        patches: &{:#x?},", state.patches);
    }
    let _ = writeln!(text, "        expected: &[{}],", expectations(undefined, right, wrong).join(", "));
    text + "        ..Case::EMPTY\n    },\n"
}

fn expectations(undefined: u64, right: &Outcome, wrong: &Outcome) -> Vec<String> {
    let mut list = Vec::new();
    if right.ending != wrong.ending {
        list.push(match right.ending {
            Ending::Exception { vector, error_code, cr2 } => format!(
                "Expect::Ending(Ending::Exception {{ vector: {vector}, error_code: {error_code}, cr2: {cr2:#x} }})"
            ),
            other => format!("Expect::Ending(Ending::{other:?})"),
        });
    }
    if right.rip != wrong.rip {
        list.push(format!("Expect::Rip({:#x})", right.rip));
    }
    for (i, (value, _)) in right.gpr.iter().zip(&wrong.gpr).enumerate().filter(|(_, (a, b))| a != b) {
        list.push(format!("Expect::Register({i}, {value:#x})"));
    }
    for (i, (value, _)) in right.xmm.iter().zip(&wrong.xmm).enumerate().filter(|(_, (a, b))| a != b) {
        list.push(format!("Expect::Vector({i}, {value:#x})"));
    }
    for (i, (value, _)) in right.ymm_high.iter().zip(&wrong.ymm_high).enumerate().filter(|(_, (a, b))| a != b) {
        list.push(format!("Expect::High({i}, {value:#x})"));
    }
    let compared = super::COMPARED_FLAGS & !undefined;
    if (right.rflags ^ wrong.rflags) & compared != 0 {
        list.push(format!("Expect::Flags({:#x})", right.rflags & compared));
    }
    if (right.mxcsr ^ wrong.mxcsr) & !0x3F != 0 {
        list.push(format!("Expect::Mxcsr({:#x})", right.mxcsr & !0x3F));
    }
    if right.x87 != wrong.x87 {
        list.push(format!("Expect::X87({:?})", right.x87));
    }
    for (start, a, b) in [
        (super::DATA, &right.memory.data[..], &wrong.memory.data[..]),
        (super::STACK, &right.memory.stack[..], &wrong.memory.stack[..]),
    ] {
        for (address, (value, _)) in (start..).zip(a.iter().zip(b)).filter(|(_, (a, b))| a != b).take(16) {
            list.push(format!("Expect::Byte({address:#x}, {value:#x})"));
        }
    }
    list
}
