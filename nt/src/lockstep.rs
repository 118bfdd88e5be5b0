//! Two runs of one program, compared at every arrival at the service gate.
//!
//! The first run records; the second one, on another engine, compares and stops at the first difference. Between two
//! arrivals only guest code runs, so that a difference means that an engine executes something wrongly since the
//! arrival before. The first run also records at which instruction counts time slices ended, and the second ends them
//! there: translated code yields only where a region or a round of a loop ends, the interpreter anywhere, so that the
//! translator goes first. Both runs need the same deterministic surroundings: the virtual clock, and a host whose input,
//! time and entropy are the same each time.

use std::collections::VecDeque;
use std::fmt;

use lstar_arch::Gpr;
use lstar_runtime::{Registers, Vcpu};

/// Most arrivals that are recorded; beyond that runs are compared no further.
const LIMIT: usize = 2_000_000;

/// The processor at one arrival at the service gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// What the gate is asked for: a service or an event of the guest kernel.
    pub id: u32,
    /// Guest instructions retired.
    pub retired: u64,
    /// General-purpose registers in encoding order.
    pub registers: [u64; 16],
    /// Instruction pointer, RFLAGS.
    pub rip_and_flags: [u64; 2],
    /// XMM0 to XMM15.
    pub vectors: [u128; 16],
}

impl Arrival {
    fn at(vcpu: &Vcpu<'_>) -> Self {
        Self {
            id: vcpu.reg(Gpr::Rax) as u32,
            retired: vcpu.retired,
            registers: Gpr::ALL.map(|register| vcpu.reg(register)),
            rip_and_flags: [vcpu.rip(), vcpu.rflags()],
            vectors: std::array::from_fn(|index| vcpu.xmm(index)),
        }
    }
}

/// The first difference between two runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Arrivals that agreed before it.
    pub agreed: usize,
    /// What the recorded run had here; `None` where it had ended.
    pub recorded: Option<Box<Arrival>>,
    /// What the compared run had.
    pub found: Box<Arrival>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "after {} equal arrivals at the service gate:", self.agreed)?;
        let Some(recorded) = &self.recorded else {
            return writeln!(f, "  the translator's run had ended; the interpreter asks for {:#x}", self.found.id);
        };
        let mut row = |name: &str, left: u128, right: u128| {
            if left == right { Ok(()) } else { writeln!(f, "  {name:<12} {left:#x} but {right:#x}") }
        };
        row("service", recorded.id.into(), self.found.id.into())?;
        row("retired", recorded.retired.into(), self.found.retired.into())?;
        for register in Gpr::ALL {
            let index = register as usize;
            row(&format!("{register:?}"), recorded.registers[index].into(), self.found.registers[index].into())?;
        }
        row("Rip", recorded.rip_and_flags[0].into(), self.found.rip_and_flags[0].into())?;
        row("Rflags", recorded.rip_and_flags[1].into(), self.found.rip_and_flags[1].into())?;
        for (index, (left, right)) in recorded.vectors.iter().zip(&self.found.vectors).enumerate() {
            row(&format!("Xmm{index}"), *left, *right)?;
        }
        Ok(())
    }
}

/// Records a run's arrivals and time slices, or compares with those of another.
#[derive(Clone, Debug, Default)]
pub struct Lockstep {
    recorded: VecDeque<Arrival>,
    /// Instruction counts at which time slices ended.
    slices: VecDeque<u64>,
    comparing: bool,
    stop_at: Option<usize>,
    agreed: usize,
    difference: Option<Difference>,
}

impl Lockstep {
    /// For the first run.
    #[must_use]
    pub fn record() -> Self {
        Self::default()
    }

    /// For the second run, from what the first has recorded.
    #[must_use]
    pub fn compare_with(first: Self) -> Self {
        Self { comparing: true, ..first }
    }

    /// For a run of the translator again, with its slices as they fall: compares nothing.
    #[must_use]
    pub fn watch() -> Self {
        Self::default()
    }

    /// For a run of the interpreter again, with the time slices of the first run: compares nothing.
    #[must_use]
    pub fn replay(slices: VecDeque<u64>) -> Self {
        Self { slices, comparing: true, stop_at: Some(usize::MAX), ..Self::default() }
    }

    /// Stops the run at the arrival of this number, counted from 0, before it is served. Compares nothing.
    #[must_use]
    pub fn stop_at(self, arrival: usize) -> Self {
        Self { stop_at: Some(arrival), ..self }
    }

    /// Instruction counts at which time slices ended.
    #[must_use]
    pub fn slices(&self) -> &VecDeque<u64> {
        &self.slices
    }

    /// More time slices to end: for two runs that go on side by side.
    pub fn add_slices(&mut self, slices: impl IntoIterator<Item = u64>) {
        self.slices.extend(slices);
    }

    /// The instruction count of each arrival recorded.
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        self.recorded.iter().map(|arrival| arrival.retired).collect()
    }

    /// Whether time slices end where another run's did; if so, the count at which the next one does.
    pub(crate) fn next_slice(&self) -> Option<u64> {
        self.comparing.then(|| self.slices.front().copied().unwrap_or(u64::MAX))
    }

    /// A time slice has ended.
    pub(crate) fn end_slice(&mut self, retired: u64) {
        if self.comparing {
            self.slices.pop_front();
        } else {
            self.slices.push_back(retired);
        }
    }

    /// Takes note of an arrival; `false` when the run need not go on.
    pub(crate) fn arrive(&mut self, vcpu: &Vcpu<'_>) -> bool {
        if let Some(stop) = self.stop_at {
            self.agreed += 1;
            return self.agreed <= stop;
        }
        let found = Arrival::at(vcpu);
        if !self.comparing {
            if self.recorded.len() < LIMIT {
                self.recorded.push_back(found);
            }
            return true;
        }
        let recorded = self.recorded.pop_front();
        if recorded.as_ref() == Some(&found) {
            self.agreed += 1;
            return true;
        }
        if recorded.is_none() && self.agreed >= LIMIT {
            return true;
        }
        self.difference =
            Some(Difference { agreed: self.agreed, recorded: recorded.map(Box::new), found: Box::new(found) });
        false
    }

    /// Arrivals that agreed.
    #[must_use]
    pub fn agreed(&self) -> usize {
        self.agreed
    }

    /// Arrivals of the first run that the second has not come to.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.recorded.len()
    }

    /// The first difference, if there is one.
    #[must_use]
    pub fn difference(&self) -> Option<&Difference> {
        self.difference.as_ref()
    }
}
