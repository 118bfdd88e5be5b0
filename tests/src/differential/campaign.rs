//! Many programs, many states: the campaign behind the `campaign` command and the short test.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use iced_x86::Code;
use lstar_runtime::MachineError;

use super::generate::Generator;
use super::interpreted::Interpreted;
use super::minimise::{Mismatch, minimise};
use super::program::Program;
use super::region_ends::{compare_at_region_ends, stepping_pair};
use super::translated::Translated;
use super::{Engine, IMAGES, Memory, Outcome, State, Tolerance, catalog};

/// Runs of one program that do not end, after which it is given up.
const ENDLESS_RUNS: u32 = 4;

/// Vector of #PF.
const PAGE_FAULT: u8 = 14;

/// Which engines ran.
enum Ran {
    /// All.
    All,
    /// Not those that do not give up: one of the others did.
    Endless,
    /// Not those that would have accessed their own memory where the guest has none.
    Exposed,
}

/// An engine by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// The interpreter alone.
    Interpreter,
    /// The machine with translated code.
    Translator,
    /// As `Translator`; in each run one point of the translated code is made to fault.
    Faulting,
    /// The host processor.
    Native,
}

impl EngineKind {
    /// All, with their names.
    pub const ALL: [(&'static str, Self); 4] = [
        ("native", Self::Native),
        ("interpreter", Self::Interpreter),
        ("translator", Self::Translator),
        ("faulting", Self::Faulting),
    ];
}

/// Why an engine cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The machine cannot be made.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The host is no x86-64 Linux, or its address space is in use.
    #[error("the host processor cannot run guest programs here")]
    NoNative,
}

/// Makes an engine. A native one blocks others in the process until it is dropped.
pub fn make_engine(kind: EngineKind) -> Result<Box<dyn Engine>, EngineError> {
    match kind {
        EngineKind::Interpreter => {
            lstar_runtime::provide_transcendentals();
            Ok(Box::new(Interpreted::default()))
        }
        EngineKind::Translator => Ok(Box::new(Translated::translating()?)),
        EngineKind::Faulting => Ok(Box::new(Translated::faulting()?)),
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        EngineKind::Native => match super::native::Native::new() {
            Some(native) => Ok(Box::new(native)),
            None => Err(EngineError::NoNative),
        },
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        EngineKind::Native => Err(EngineError::NoNative),
    }
}

/// All engines that this host has, the most trustworthy first.
pub fn all_engines() -> Result<Vec<Box<dyn Engine>>, EngineError> {
    let mut engines = Vec::new();
    for (_, kind) in EngineKind::ALL {
        match make_engine(kind) {
            Err(EngineError::NoNative) => {}
            other => engines.push(other?),
        }
    }
    Ok(engines)
}

/// How long to go on, and from where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seed of everything random.
    pub seed: u64,
    /// Stop after this many cases (instruction x state).
    pub cases: u64,
    /// Stop after this time.
    pub time: Duration,
    /// Stop after this many different mismatches.
    pub mismatches: usize,
    /// States for each single instruction and for each longer program.
    pub states: [u64; 2],
    /// States in which each longer program is also compared at every region end, on the first two engines that can be
    /// stopped there.
    pub region_ends: u64,
    /// Only encodings whose name contains one of these, and no longer programs; empty for all.
    pub only: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            cases: u64::MAX,
            time: Duration::MAX,
            mismatches: 20,
            states: [256, 64],
            region_ends: 4,
            only: Vec::new(),
        }
    }
}

/// What happened to one encoding as a program of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Runs compared.
    pub runs: u64,
    /// Of these, runs that raised an exception.
    pub exceptions: u64,
}

/// What a campaign did.
#[derive(Debug, Default)]
pub struct Report {
    /// Instructions executed and compared: for a single instruction its runs, for a longer program the instructions
    /// retired in each run.
    pub cases: u64,
    /// Of these, in programs of one instruction.
    pub single_cases: u64,
    /// Programs made.
    pub programs: u64,
    /// Runs compared.
    pub runs: u64,
    /// Runs that did not end on some engine, and were not compared.
    pub endless_runs: u64,
    /// Runs that were not made, because an access to nothing would have reached an engine's own memory.
    pub unjudged_runs: u64,
    /// Region ends compared.
    pub region_ends: u64,
    /// Runs that ended with an exception, by vector.
    pub exceptions: BTreeMap<u8, u64>,
    /// Coverage, for single instructions.
    pub coverage: BTreeMap<Code, Tally>,
    /// Disagreements, one for each set of instructions that shows it.
    pub mismatches: Vec<Mismatch>,
    /// Runs that disagreed, those with a known cause included.
    pub mismatching_runs: u64,
    /// Time taken.
    pub elapsed: Duration,
}

impl Report {
    /// Tested encodings that were not reached.
    #[must_use]
    pub fn not_covered(&self) -> Vec<Code> {
        catalog::encodings().into_iter().filter(|code| !self.coverage.contains_key(code)).collect()
    }
}

/// A running campaign.
struct Campaign<'a> {
    engines: &'a mut [Box<dyn Engine>],
    images: Vec<Box<Memory>>,
    outcomes: Vec<Outcome>,
    report: Report,
    /// Instructions of the mismatches found so far.
    known: BTreeSet<String>,
}

/// Runs a campaign on these engines; the first is the reference. `progress` is called now and then.
pub fn run(engines: &mut [Box<dyn Engine>], settings: &Settings, progress: &mut dyn FnMut(&Report)) -> Report {
    let start = Instant::now();
    let outcomes = engines.iter().map(|_| Outcome::default()).collect();
    let images = (0..IMAGES).map(Memory::image).collect();
    let mut campaign = Campaign { engines, images, outcomes, report: Report::default(), known: BTreeSet::new() };
    let mut generator = Generator::new(settings.seed);
    if !settings.only.is_empty() {
        generator.encodings.retain(|code| settings.only.iter().any(|name| format!("{code:?}").contains(name)));
    }
    let mut order = Vec::new();
    let mut last_progress = start;
    for round in 0u64.. {
        let report = &mut campaign.report;
        report.elapsed = start.elapsed();
        if last_progress.elapsed() > Duration::from_secs(1) {
            progress(report);
            last_progress = Instant::now();
        }
        let done = report.cases >= settings.cases || report.elapsed >= settings.time;
        if done || report.mismatches.len() >= settings.mismatches || generator.encodings.is_empty() {
            break;
        }
        // Each program has a seed of its own, so that one can be made again without those before it.
        generator.start(settings.seed.wrapping_mul(0x1_0000_0001).wrapping_add(round));
        if order.is_empty() {
            order.clone_from(&generator.encodings);
        }
        if settings.only.is_empty() && round % 3 == 2 {
            let length = 5 + generator.random.below(56) as usize;
            let program = generator.program(length);
            campaign.program(&mut generator, &program, settings, None);
        } else {
            // Every encoding in turn, in random order.
            let code = order.swap_remove(generator.random.below(order.len() as u64) as usize);
            if let Some(program) = generator.single(code) {
                campaign.program(&mut generator, &program, settings, Some(code));
            }
        }
    }
    let mut report = campaign.report;
    report.elapsed = start.elapsed();
    report
}

impl Campaign<'_> {
    /// Compares one program in many states.
    fn program(&mut self, generator: &mut Generator, program: &Program, settings: &Settings, single: Option<Code>) {
        let states = settings.states[usize::from(single.is_none())];
        let Some(assembled) = program.assemble() else { return };
        for engine in self.engines.iter_mut() {
            engine.load(&assembled.code);
        }
        self.report.programs += 1;
        let mut memory = Memory::zeroed();
        let length = program.instructions().count() as u64;
        let mut endless = 0;
        for number in 0..states {
            let state = generator.state(program, single.is_some());
            let image = &self.images[usize::from(state.image)];
            memory.data = image.data;
            memory.stack = image.stack;
            for &(address, value) in &state.patches {
                memory.patch(address, value);
            }
            match self.run_engines(&state, &memory) {
                Ran::All => {}
                Ran::Endless => {
                    self.report.endless_runs += 1;
                    endless += 1;
                    // Each costs as much as a thousand others: it is the program that does not end.
                    if endless == ENDLESS_RUNS {
                        return;
                    }
                    continue;
                }
                Ran::Exposed => {
                    self.report.unjudged_runs += 1;
                    continue;
                }
            }
            let first = &self.outcomes[0];
            let exception = match first.ending {
                super::Ending::Exception { vector, .. } => {
                    *self.report.exceptions.entry(vector).or_default() += 1;
                    true
                }
                _ => false,
            };
            self.report.runs += 1;
            let reached = assembled.addresses.iter().take_while(|address| **address <= first.rip).count() as u64;
            let cases = match single {
                Some(code) => {
                    let tally = self.report.coverage.entry(code).or_default();
                    tally.runs += 1;
                    tally.exceptions += u64::from(exception);
                    self.report.single_cases += 1;
                    1
                }
                None if exception => reached.clamp(1, length),
                None => length,
            };
            self.report.cases += cases;
            let undefined = program.undefined_at(&assembled, first.rip);
            for other in 1..self.engines.len() {
                let base = Tolerance::between(&*self.engines[0], &*self.engines[other]);
                let (a, b) = (&self.outcomes[0], &self.outcomes[other]);
                let excused = || program.excuses(&assembled, a) || program.excuses(&assembled, b);
                if !base.without_flags(undefined).agree(a, b) && !excused() {
                    self.mismatch([0, other], program, &state, &assembled.code);
                    return;
                }
            }
            if single.is_none()
                && number < settings.region_ends
                && let Some(pair) = stepping_pair(self.engines)
            {
                let (stops, differing) =
                    compare_at_region_ends(self.engines, pair, program, &assembled, &state, &memory);
                self.report.region_ends += stops;
                if differing.is_some() {
                    self.mismatch(pair, program, &state, &assembled.code);
                    return;
                }
            }
        }
    }

    /// Runs all engines, those first that give up on an endless program.
    fn run_engines(&mut self, state: &State, memory: &Memory) -> Ran {
        for gives_up in [true, false] {
            for (engine, outcome) in self.engines.iter_mut().zip(&mut self.outcomes) {
                if engine.gives_up() == gives_up {
                    engine.run(state, memory, outcome);
                    if outcome.ending == super::Ending::Stuck {
                        return Ran::Endless;
                    }
                }
            }
            let ran = self.engines.iter().zip(&self.outcomes).filter(|(engine, _)| gives_up && engine.gives_up());
            let exposed = ran.filter_map(|(_, outcome)| match outcome.ending {
                super::Ending::Exception { vector: PAGE_FAULT, cr2, .. } => Some(cr2),
                _ => None,
            });
            if { exposed }.any(|address| self.engines.iter().any(|engine| engine.exposes(address))) {
                return Ran::Exposed;
            }
        }
        Ran::All
    }

    fn mismatch(&mut self, pair: [usize; 2], program: &Program, state: &State, code: &[u8]) {
        self.report.mismatching_runs += 1;
        let found = minimise(self.engines, pair, program, state);
        let key: Vec<String> = found.program.instructions().map(|item| format!("{:?}", item.insn.mnemonic())).collect();
        if self.known.insert(format!("{:?} {}", found.engines, key.join(" "))) {
            self.report.mismatches.push(found);
        }
        for engine in self.engines.iter_mut() {
            engine.load(code);
        }
    }
}
