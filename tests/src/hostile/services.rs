//! Services called with whatever: wild pointers, huge sizes, handles of other kinds.

use std::path::PathBuf;

use lstar_nt::io::host::CapturedHost;
use lstar_nt::kernel::SERVICE_TABLES;
use lstar_nt::service::{MAX_ARGUMENTS, Outcome, Service};
use lstar_nt::system::{self, System};
use lstar_runtime::{Engine, GateAction, MachineConfig};

use super::Chooser;

/// Values that sit on edges: of pages, halves of the address space, handle tables, sizes.
fn value(random: &mut impl Chooser, places: &[u64]) -> u64 {
    const EDGES: [u64; 28] = [
        0,
        1,
        2,
        3,
        4,
        8,
        0xC,
        0x10,
        0x18,
        0x20,
        0x40,
        0x7F,
        0x100,
        0x1000,
        0x2000,
        0x4000,
        0x8000,
        0xFFFF,
        0x1_0000,
        0x100_0000,
        0x7FFF_FFFF,
        0x8000_0000,
        u32::MAX as u64,
        0x7FF_FFFE_FFFF,
        0x0000_8000_0000_0000,
        0xFFFF_F800_03E7_0000,
        u64::MAX - 1,
        u64::MAX,
    ];
    match random.next() % 8 {
        0..=2 => EDGES[(random.next() % EDGES.len() as u64) as usize],
        3..=5 => {
            let place = places[(random.next() % places.len() as u64) as usize];
            place.wrapping_add(random.next() % 0x40 * 8)
        }
        6 => random.next() % 0x80,
        _ => random.next(),
    }
}

/// A system whose services are called from outside; a run that ends begins anew.
#[derive(Debug)]
pub struct Caller {
    folder: PathBuf,
    system: Option<System>,
    /// Calls made.
    pub calls: u64,
}

impl Caller {
    /// A caller with a folder of its own.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            folder: std::env::temp_dir().join(format!("lstar-hostile-{name}-{}", std::process::id())),
            system: None,
            calls: 0,
        }
    }

    /// The services there are.
    pub fn services() -> impl Iterator<Item = &'static Service> {
        SERVICE_TABLES.iter().flat_map(|table| table.iter())
    }

    /// Calls a service of the chooser's choice.
    pub fn call_any(&mut self, choose: &mut impl Chooser) {
        let count = Self::services().count();
        let wanted = choose.next().wrapping_add(choose.next() << 8);
        let service = Self::services().nth((wanted % count as u64) as usize);
        self.call(service.expect("one of them"), choose);
    }

    /// Calls the service with chosen arguments, and some memory around them set as chosen.
    pub fn call(&mut self, service: &Service, choose: &mut impl Chooser) {
        let folder = &self.folder;
        let system = self.system.get_or_insert_with(|| boot(folder));
        let Some((teb, stack)) = system.kernel.scheduler.current().map(|thread| (thread.teb, thread.stack)) else {
            self.system = None;
            return;
        };
        let places = [teb, stack, stack + 0xF_F000, 0x1_4000_3000, system.kernel.process.peb, 0x7FFE_0000];
        // Some structures the services follow: lengths and pointers at the places themselves.
        for place in places {
            let junk: Vec<u8> = (0..8).flat_map(|_| value(choose, &places).to_le_bytes()).collect();
            let _ = system.machine.memory().write_unchecked(place + 0x100, &junk);
        }
        let mut slots = [0; MAX_ARGUMENTS];
        for slot in &mut slots {
            *slot = value(choose, &places);
        }
        if choose.next().is_multiple_of(4) {
            // The calling thread or process.
            slots[0] = u64::MAX;
        }
        let mut vcpu = system.machine.vcpu();
        let mut call = system.kernel.call(&mut vcpu);
        call.slots = slots;
        let outcome = (service.invoke)(&mut call);
        self.calls += 1;
        let action = match outcome {
            Outcome::ThreadEnded => GateAction::Stop,
            outcome => system.kernel.complete(&mut vcpu, outcome),
        };
        system.kernel.reap();
        if action == GateAction::Stop || system.kernel.stop.is_some() {
            self.system = None;
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.system = None;
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn boot(folder: &std::path::Path) -> System {
    let machine = MachineConfig { engine: Engine::Interpreter, memory_limit: 64 << 20, ..MachineConfig::default() };
    let config = system::demonstration(folder, machine, Box::new(CapturedHost::default()));
    System::boot(config.expect("the demonstration")).expect("a system")
}
