//! Devices survive whatever a guest passes with a control code.

use lstar_nt::io::afd::NetworkAccess;
use lstar_nt::io::host::CapturedHost;
use lstar_nt::io::{FileKind, FileObject};
use lstar_nt::kernel::SERVICE_TABLES;
use lstar_nt::memory::{PageProtection, Placement};
use lstar_nt::object::Body;
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

/// Control codes of sockets with whatever in their buffers, without a network and with loopback.
#[test]
fn no_control_code_brings_a_socket_down() {
    const ROUNDS: u64 = 12;
    let folder = std::env::temp_dir().join(format!("lstar-hostile-sockets-{}", std::process::id()));
    let machine = MachineConfig { engine: Engine::Interpreter, memory_limit: 64 << 20, ..MachineConfig::default() };
    let mut random = Random(0x8BB8_4B93_962E_ACC9);
    for round in 0..ROUNDS {
        let mut config = system::demonstration(&folder, machine, Box::new(CapturedHost::default())).unwrap();
        config.network = if round % 4 == 0 { NetworkAccess::Off } else { NetworkAccess::Loopback };
        let mut system = System::boot(config).unwrap();
        let control = SERVICE_TABLES.iter().flat_map(|table| table.iter());
        let control = control.copied().find(|service| service.name == "NtDeviceIoControlFile").unwrap();
        let System { machine, kernel, .. } = &mut system;
        let room = kernel.memory.allocate(machine.memory(), 0x8000, PageProtection::READWRITE, Placement::default());
        let status = room.unwrap();
        let (input, output, data) = (status + 0x1000, status + 0x3000, status + 0x5000);
        // A stream, datagrams, one that is no socket yet; of IPv4 and IPv6.
        let sockets: Vec<u64> = (0..6)
            .map(|_| {
                let kind = FileKind::Socket(Box::default());
                let file = FileObject::device(kind, r"\Device\Afd", 0x12_019F, 0);
                let body = Body::File(Box::new(file));
                kernel.objects.open_new(&mut kernel.handles, body, 0x12_019F, 0).unwrap().0
            })
            .collect();
        for step in 0..1_500u64 {
            let socket = sockets[random.next() as usize % sockets.len()];
            let words = [0u64, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 0x200][random.next() as usize % 12];
            let mut junk: Vec<u8> = (0..words)
                .map(|_| match random.next() % 4 {
                    0 => random.next() as u8,
                    1 => random.next() as u8 % 4,
                    _ => 0,
                })
                .collect();
            // Pointers into memory that is there, now and then.
            for chunk in junk.chunks_exact_mut(8) {
                if random.next().is_multiple_of(3) {
                    chunk.copy_from_slice(&(data + random.next() % 0x40 * 8).to_le_bytes());
                }
            }
            let shared = [
                0x1_2003, 0x1_2007, 0x1_200B, 0x1_200C, 0x1_2010, 0x1_2017, 0x1_201B, 0x1_201F, 0x1_2023, 0x1_2024,
                0x1_202B, 0x1_202F, 0x1_203B, 0x1_203F, 0x1_2043, 0x1_2047, 0x1_2087, 0x1_208B,
            ];
            let mut code = match random.next() % 4 {
                0 => shared[random.next() as usize % shared.len()],
                1 => 0x12_0000 | (200 + random.next() % 20) << 2,
                _ => 0x12_0000 | (200 + random.next() % 110) << 2,
            };
            if step < sockets.len() as u64 - 1 {
                let family = if step % 2 == 0 { 2u32 } else { 23 };
                junk = [family, 1 + step as u32 / 3, 0, 0].map(u32::to_le_bytes).concat();
                code = 0x12_0320;
            } else if random.next().is_multiple_of(8) {
                // An address to bind or connect to.
                let sockaddr = [2u8, 0, 0, random.next() as u8, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
                let (head, wanted) = if random.next().is_multiple_of(2) {
                    (vec![0; 4], 0x1_2003)
                } else {
                    ([16u32, 1].map(u32::to_le_bytes).concat(), 0x12_032C)
                };
                junk = [&head[..], &sockaddr].concat();
                code = wanted;
            }
            let socket = if step < sockets.len() as u64 - 1 { sockets[step as usize] } else { socket };
            system.machine.memory().write_unchecked(input, &junk).unwrap();
            let length = [0, 4, 16, 56, 100, 0x1000][random.next() as usize % 6];
            let mut vcpu = system.machine.vcpu();
            let mut call = system.kernel.call(&mut vcpu);
            call.slots = [0; MAX_ARGUMENTS];
            let arguments = [socket, 0, 0, 0, status, code, input, junk.len() as u64, output, length];
            call.slots[..arguments.len()].copy_from_slice(&arguments);
            let outcome = (control.invoke)(&mut call);
            assert!(matches!(outcome, Outcome::Return(_) | Outcome::Wait(_)), "{code:#x}: {outcome:?}");
            if matches!(outcome, Outcome::Wait(_)) {
                continue;
            }
            if system.kernel.complete(&mut vcpu, outcome) == GateAction::Stop {
                panic!("{code:#x} ends the run: {:?}", system.kernel.stop);
            }
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
