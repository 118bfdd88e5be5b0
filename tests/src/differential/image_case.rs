//! Cases from real programs: what `lstar diff` prints when the engines differ. Code and memory lie where they lay there.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::rc::Rc;

use lstar_arch::{CpuModel, CpuState, PAGE_SIZE, Rflags, Segment, SegmentIndex};
use lstar_runtime::bisect::{self, Landing, PAGE, Page, Probe, Scene};
use lstar_runtime::{MachineConfig, MachineError, Protection};

use super::regression::Expect;
use super::{COMPARED_FLAGS, Ending, X87};

/// Some instructions of a real program, what they start from, and what they must leave.
#[derive(Clone, Copy, Debug)]
pub struct ImageCase {
    /// What it shows.
    pub name: &'static str,
    /// Instructions to execute.
    pub steps: u64,
    /// Where they begin.
    pub rip: u64,
    /// The code: address and bytes.
    pub code: &'static [(u64, &'static [u8])],
    /// Memory, writable: address and bytes. The rest of its pages is zero.
    pub memory: &'static [(u64, &'static [u8])],
    /// General-purpose registers that are not zero.
    pub gpr: &'static [(usize, u64)],
    /// RFLAGS.
    pub rflags: u64,
    /// XMM registers that are not zero.
    pub xmm: &'static [(usize, u128)],
    /// Upper halves of YMM registers that are not zero.
    pub ymm_high: &'static [(usize, u128)],
    /// MXCSR.
    pub mxcsr: u32,
    /// Privilege level.
    pub cpl: u8,
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// Flags that mean nothing behind it.
    pub undefined: u64,
    /// What it must leave, on both engines.
    pub expected: &'static [Expect],
}

impl ImageCase {
    /// A case of zeros at CPL 3.
    pub const EMPTY: Self = Self {
        name: "",
        steps: 1,
        rip: 0,
        code: &[],
        memory: &[],
        gpr: &[],
        rflags: 0x202,
        xmm: &[],
        ymm_high: &[],
        mxcsr: 0x1F80,
        cpl: 3,
        fs_base: 0,
        gs_base: 0,
        undefined: 0,
        expected: &[],
    };

    fn cpu(&self, model: CpuModel) -> CpuState {
        let mut cpu = CpuState::new(model);
        cpu.cpl = self.cpl;
        if self.cpl == 3 {
            *cpu.segment_mut(SegmentIndex::Cs) = Segment::flat_code64(0x33, 3);
            *cpu.segment_mut(SegmentIndex::Ss) = Segment::flat_data(0x2B, 3);
        }
        cpu.segment_mut(SegmentIndex::Fs).base = self.fs_base;
        cpu.segment_mut(SegmentIndex::Gs).base = self.gs_base;
        cpu.rip = self.rip;
        cpu.rflags = self.rflags | Rflags::FIXED.bits();
        cpu.mxcsr = self.mxcsr;
        for &(index, value) in self.gpr {
            cpu.gpr[index] = value;
        }
        for &(index, value) in self.xmm {
            cpu.xmm[index] = [value as u64, (value >> 64) as u64];
        }
        for &(index, value) in self.ymm_high {
            cpu.ymm_high[index] = [value as u64, (value >> 64) as u64];
        }
        cpu
    }

    fn pages(&self) -> HashMap<u64, Page> {
        let mut pages: HashMap<u64, Page> = HashMap::new();
        let code = self.code.iter().map(|piece| (piece, Protection::RX));
        for (&(address, bytes), protection) in code.chain(self.memory.iter().map(|piece| (piece, Protection::RW))) {
            for (at, byte) in (address..).zip(bytes) {
                let page = pages
                    .entry(at & !(PAGE_SIZE - 1))
                    .or_insert_with(|| Page { bytes: Rc::new([0; PAGE]), protection: Protection::READ });
                page.protection |= protection;
                Rc::make_mut(&mut page.bytes)[(at % PAGE_SIZE) as usize] = *byte;
            }
        }
        pages
    }

    /// Runs it on both engines; the result lists what is wrong, empty if nothing is.
    pub fn check(&self, config: MachineConfig) -> Result<String, MachineError> {
        let pages = self.pages();
        let start = Scene::new(self.cpu(config.model), &pages);
        let mut text = String::new();
        let mut interpreted = start.clone();
        let landing = interpreted.interpret(self.steps);
        self.compare("interpreter", &landing, &mut |address| interpreted.memory.byte(address), &mut text);
        let mut probe = Probe::new(config)?;
        let limit = usize::try_from(self.steps).unwrap_or(usize::MAX);
        let Some(landing) = probe.run(&mut start.clone(), limit, self.steps) else {
            let _ = writeln!(text, "{}: cannot be shown to the translator", self.name);
            return Ok(text);
        };
        self.compare("translator", &landing, &mut |address| probe.byte(address), &mut text);
        Ok(text)
    }

    fn compare(&self, engine: &str, landing: &Landing, byte: &mut dyn FnMut(u64) -> Option<u8>, text: &mut String) {
        let cpu = &landing.cpu;
        for expect in self.expected {
            let actual = match *expect {
                Expect::Register(index, _) => Expect::Register(index, cpu.gpr[index]),
                Expect::Vector(index, _) => {
                    let [low, high] = cpu.xmm[index];
                    Expect::Vector(index, u128::from(high) << 64 | u128::from(low))
                }
                Expect::High(index, _) => {
                    let [low, high] = cpu.ymm_high[index];
                    Expect::High(index, u128::from(high) << 64 | u128::from(low))
                }
                Expect::Flags(_) => Expect::Flags(cpu.rflags & COMPARED_FLAGS & 0xCD5 & !self.undefined),
                Expect::Byte(address, _) => Expect::Byte(address, byte(address).unwrap_or(0)),
                Expect::Ending(_) => Expect::Ending(match landing.ending {
                    bisect::Ending::Exception(exception) => Ending::Exception {
                        vector: exception.vector as u8,
                        error_code: exception.error_code.unwrap_or(0),
                        cr2: exception.cr2.unwrap_or(0),
                    },
                    bisect::Ending::Running | bisect::Ending::Left => Ending::Finished,
                }),
                Expect::Rip(_) => Expect::Rip(cpu.rip),
                Expect::X87(_) => Expect::X87(X87::of(&cpu.x87)),
                Expect::Mxcsr(_) => Expect::Mxcsr(cpu.mxcsr & !0x3F),
            };
            if actual != *expect {
                let _ = writeln!(text, "{} on {engine}: {actual:x?} instead of {expect:x?}", self.name);
            }
        }
    }
}
