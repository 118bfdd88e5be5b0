//! A machine of its own that runs scenes in translated code.

use std::collections::HashMap;
use std::rc::Rc;

use lstar_arch::{Exception, PAGE_SIZE, Vector};

use super::scene::{Ending, Landing, PAGE, Page, Scene};
use crate::machine::{Engine, GateAction, Machine, MachineConfig, MachineError, ServiceGate};
use crate::vcpu::Vcpu;

/// Refuses every service: a scene ends there.
struct Closed;

impl ServiceGate for Closed {
    fn service(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        GateAction::Stop
    }
}

/// A machine to which the pages of scenes are lent, translating from the first visit on.
#[derive(Debug)]
pub struct Probe {
    machine: Machine,
    /// Pages mapped in it, with what was last put there.
    lent: HashMap<u64, Page>,
}

impl Probe {
    /// Memory for the pages of one scene after the other.
    const MEMORY: u64 = 1 << 28;
    /// Host code of one scene.
    const CODE: usize = 16 << 20;

    /// A probe whose translator is set up as `config` says.
    pub fn new(config: MachineConfig) -> Result<Self, MachineError> {
        let machine = Machine::new(MachineConfig {
            engine: Engine::Translator,
            hot_threshold: 0,
            background: false,
            memory_limit: Self::MEMORY,
            code_cache_size: Self::CODE,
            ..config
        })?;
        Ok(Self { machine, lent: HashMap::new() })
    }

    /// Runs a scene in regions of at most `region_limit` instructions until `steps` instructions have retired; regions that
    /// do not fit into the rest are left to the interpreter. `None` when the scene cannot be shown here.
    pub fn run(&mut self, scene: &mut Scene<'_>, region_limit: usize, steps: u64) -> Option<Landing> {
        // Each turn lends one page more, so this ends.
        loop {
            self.refresh(scene)?;
            self.machine.retranslate(region_limit);
            *self.machine.core.cpu_mut() = scene.cpu.clone();
            self.machine.core.intercept = Some(None);
            let before = self.machine.vcpu().retired;
            let exit = self.machine.run(&mut Closed, steps);
            let event = self.machine.core.intercept.take().flatten();
            let ending = match (event, exit) {
                (Some(event), _) => Ending::of(event),
                (None, crate::VmExit::Budget) => Ending::Running,
                (None, _) => Ending::Left,
            };
            if let Ending::Exception(Exception { vector: Vector::PageFault, cr2: Some(address), .. }) = ending
                && self.lend(scene, address)?
            {
                continue;
            }
            let retired = self.machine.vcpu().retired - before;
            return Some(Landing { cpu: self.machine.core.cpu().clone(), retired, ending, stores: Vec::new() });
        }
    }

    /// The byte at an address as the last run left it.
    pub fn byte(&mut self, address: u64) -> Option<u8> {
        let mut byte = [0];
        self.machine.memory().read_unchecked(address, &mut byte).ok()?;
        Some(byte[0])
    }

    /// Where the probe's memory differs from that of `scene`, in the pages that either has needed.
    pub fn differing_bytes(&mut self, scene: &mut Scene<'_>) -> Vec<(u64, u8, u8)> {
        let mut list = Vec::new();
        let mut pages: Vec<u64> = self.lent.keys().copied().chain(scene.memory.known()).collect();
        pages.sort_unstable();
        pages.dedup();
        for start in pages {
            let Some(expected) = scene.memory.page(start).map(|page| Rc::clone(&page.bytes)) else { continue };
            let mut found = [0; PAGE];
            if self.machine.memory().read_unchecked(start, &mut found).is_err() {
                // Never lent, so it has not been reached: as at the start, which the caller cannot have meant.
                continue;
            }
            let differing = (start..).zip(expected.iter().zip(&found)).filter(|(_, (a, b))| a != b);
            list.extend(differing.map(|(address, (a, b))| (address, *a, *b)));
        }
        list
    }

    /// Brings the pages lent so far to what they are in the scene.
    fn refresh(&mut self, scene: &mut Scene<'_>) -> Option<()> {
        let memory = self.machine.memory();
        for (&start, lent) in &mut self.lent {
            let page = scene.memory.page(start)?.clone();
            if page.protection != lent.protection {
                memory.protect(start, PAGE_SIZE, page.protection).ok()?;
            }
            let mut bytes = [0; PAGE];
            memory.read_unchecked(start, &mut bytes).ok()?;
            if bytes != *page.bytes {
                memory.write_unchecked(start, &*page.bytes).ok()?;
            }
            *lent = page;
        }
        Some(())
    }

    /// Maps the page that holds `address`, if the scene has one and the probe not yet.
    fn lend(&mut self, scene: &mut Scene<'_>, address: u64) -> Option<bool> {
        let start = address & !(PAGE_SIZE - 1);
        if self.lent.contains_key(&start) {
            return Some(false);
        }
        let Some(page) = scene.memory.page(start).cloned() else { return Some(false) };
        let memory = self.machine.memory();
        memory.map(start, PAGE_SIZE, page.protection).ok()?;
        memory.write_unchecked(start, &*page.bytes).ok()?;
        self.lent.insert(start, page);
        Some(true)
    }
}
