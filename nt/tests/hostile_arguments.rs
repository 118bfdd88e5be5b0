//! Every service survives whatever a guest passes: wild pointers, huge sizes, handles of other kinds.

use lstar_nt::io::host::CapturedHost;
use lstar_nt::kernel::SERVICE_TABLES;
use lstar_nt::memory::{PageProtection, Placement};
use lstar_nt::service::{MAX_ARGUMENTS, Outcome};
use lstar_nt::system::{self, System};
use lstar_runtime::{Engine, GateAction, MachineConfig};

/// Reproducible pseudo-random numbers (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Values that sit on edges: of pages, halves of the address space, handle tables, sizes.
fn value(random: &mut Random, places: &[u64]) -> u64 {
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

fn boot(folder: &std::path::Path) -> System {
    let machine = MachineConfig { engine: Engine::Interpreter, memory_limit: 64 << 20, ..MachineConfig::default() };
    System::boot(system::demonstration(folder, machine, Box::new(CapturedHost::default())).unwrap()).unwrap()
}

/// Control codes of the console with whatever in their buffers; some in the right size for each.
#[test]
fn no_control_code_brings_a_device_down() {
    const ROUNDS: u64 = 40;
    let folder = std::env::temp_dir().join(format!("lstar-hostile-codes-{}", std::process::id()));
    let machine = MachineConfig { engine: Engine::Interpreter, memory_limit: 64 << 20, ..MachineConfig::default() };
    let mut random = Random(0xD1B5_4A32_D192_ED03);
    for round in 0..ROUNDS {
        let input = (0..64).map(|_| random.next() as u8).collect();
        let mut host = CapturedHost::default();
        (host.input, host.terminal) = (input, true);
        let mut system = System::boot(system::demonstration(&folder, machine, Box::new(host)).unwrap()).unwrap();
        let control = SERVICE_TABLES.iter().flat_map(|table| table.iter());
        let control = control.copied().find(|service| service.name == "NtDeviceIoControlFile").unwrap();
        let System { machine, kernel, .. } = &mut system;
        let room = kernel.memory.allocate(machine.memory(), 0x4000, PageProtection::READWRITE, Placement::default());
        let status = room.unwrap();
        let (input, output) = (status + 0x1000, status + 0x3000);
        for function in 0..64u64 {
            for handle in [4, 8, 0x10] {
                let words = [0, 4, 8, 16, 20, 24, 104, 0x1000][random.next() as usize % 8];
                let junk: Vec<u8> = (0..words)
                    .map(|_| match random.next() % 4 {
                        0 => random.next() as u8,
                        1 => random.next() as u8 % 4,
                        _ => 0,
                    })
                    .collect();
                system.machine.memory().write_unchecked(input, &junk).unwrap();
                let access = if round % 2 == 0 { random.next() % 4 } else { 1 + function % 2 };
                let code = 0x50 << 16 | access << 14 | function << 2;
                let length = [0, 4, 40, 100, 0x1000][random.next() as usize % 5];
                let mut vcpu = system.machine.vcpu();
                let mut call = system.kernel.call(&mut vcpu);
                call.slots = [0; MAX_ARGUMENTS];
                let arguments = [handle, 0, 0, 0, status, code, input, words, output, length];
                call.slots[..arguments.len()].copy_from_slice(&arguments);
                let outcome = (control.invoke)(&mut call);
                if system.kernel.complete(&mut vcpu, outcome) == GateAction::Stop {
                    panic!("{code:#x} on {handle:#x} ends the run: {:?}", system.kernel.stop);
                }
            }
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn no_argument_brings_a_service_down() {
    const ROUNDS: u64 = 300;
    let folder = std::env::temp_dir().join(format!("lstar-hostile-{}", std::process::id()));
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut system = boot(&folder);
    let mut calls = 0u64;
    for round in 0..ROUNDS {
        for service in SERVICE_TABLES.iter().flat_map(|table| table.iter()) {
            let thread = system.kernel.scheduler.current().map(|thread| (thread.teb, thread.stack));
            let Some((teb, stack)) = thread else {
                system = boot(&folder);
                continue;
            };
            let places = [teb, stack, stack + 0xF_F000, 0x1_4000_3000, system.kernel.process.peb, 0x7FFE_0000];
            // Some structures the services follow: lengths and pointers at the places themselves.
            for place in places {
                let junk: Vec<u8> = (0..8).flat_map(|_| value(&mut random, &places).to_le_bytes()).collect();
                let _ = system.machine.memory().write_unchecked(place + 0x100, &junk);
            }
            let mut slots = [0; MAX_ARGUMENTS];
            for slot in &mut slots {
                *slot = value(&mut random, &places);
            }
            if round % 4 == 0 {
                slots[0] = u64::MAX;
            }
            let mut vcpu = system.machine.vcpu();
            let mut call = system.kernel.call(&mut vcpu);
            call.slots = slots;
            let outcome = (service.invoke)(&mut call);
            calls += 1;
            let action = match outcome {
                Outcome::ThreadEnded => GateAction::Stop,
                outcome => system.kernel.complete(&mut vcpu, outcome),
            };
            system.kernel.reap();
            if action == GateAction::Stop || system.kernel.stop.is_some() {
                drop(system);
                system = boot(&folder);
            }
        }
    }
    assert!(calls > 1000, "{calls} calls");
    drop(system);
    std::fs::remove_dir_all(&folder).unwrap();
}
