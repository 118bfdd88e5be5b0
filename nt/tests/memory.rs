//! The memory services, called as a guest would call them.

use std::path::PathBuf;

use lstar_nt::io::host::CapturedHost;
use lstar_nt::kernel::service_by_name;
use lstar_nt::memory::image::{ImageError, ImageHeaders};
use lstar_nt::service::{MAX_ARGUMENTS, Outcome};
use lstar_nt::status::Status;
use lstar_nt::system::{self, System};
use lstar_runtime::{AddressSpace, Engine, MachineConfig, Protection};

const CURRENT_PROCESS: u64 = u64::MAX;
const COMMIT: u64 = 0x1000;
const RESERVE: u64 = 0x2000;
const READONLY: u64 = 2;
const READWRITE: u64 = 4;
const GUARD_READWRITE: u64 = 0x104;

struct Guest {
    system: System,
    folder: PathBuf,
    /// A page for arguments that are passed by address.
    scratch: u64,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Guest {
    fn boot(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("lstar-memory-{name}-{}", std::process::id()));
        let machine = MachineConfig { engine: Engine::Interpreter, memory_limit: 1 << 30, ..MachineConfig::default() };
        let config = system::demonstration(&folder, machine, Box::new(CapturedHost::default())).unwrap();
        let system = System::boot(config).unwrap();
        let scratch = system.kernel.process.peb + 0x8000;
        Self { system, folder, scratch }
    }

    fn memory(&mut self) -> &mut AddressSpace {
        self.system.machine.memory()
    }

    fn put(&mut self, slot: u64, value: u64) -> u64 {
        let address = self.scratch + slot * 8;
        self.memory().write_unchecked(address, &value.to_le_bytes()).unwrap();
        address
    }

    fn get(&mut self, slot: u64) -> u64 {
        let mut bytes = [0; 8];
        let address = self.scratch + slot * 8;
        self.memory().read_unchecked(address, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn call(&mut self, name: &str, arguments: &[u64]) -> Status {
        let mut slots = [0; MAX_ARGUMENTS];
        slots[..arguments.len()].copy_from_slice(arguments);
        let mut vcpu = self.system.machine.vcpu();
        let mut call = self.system.kernel.call(&mut vcpu);
        call.slots = slots;
        match (service_by_name(name).unwrap().invoke)(&mut call) {
            Outcome::Return(status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn allocate(&mut self, base: u64, size: u64, kind: u64, protect: u64) -> (Status, u64, u64) {
        let (base, size) = (self.put(0, base), self.put(1, size));
        let status = self.call("NtAllocateVirtualMemory", &[CURRENT_PROCESS, base, 0, size, kind, protect]);
        (status, self.get(0), self.get(1))
    }

    fn protect(&mut self, base: u64, size: u64, protect: u64) -> (Status, u32) {
        let (base, size, old) = (self.put(0, base), self.put(1, size), self.put(2, 0));
        let status = self.call("NtProtectVirtualMemory", &[CURRENT_PROCESS, base, size, protect, old]);
        (status, self.get(2) as u32)
    }

    fn free(&mut self, base: u64, size: u64, kind: u64) -> Status {
        let (base, size) = (self.put(0, base), self.put(1, size));
        self.call("NtFreeVirtualMemory", &[CURRENT_PROCESS, base, size, kind])
    }

    /// Allocation base, region size, state, protection, type.
    fn query(&mut self, address: u64) -> (u64, u64, u32, u32, u32) {
        let buffer = self.put(16, 0);
        let status = self.call("NtQueryVirtualMemory", &[CURRENT_PROCESS, address, 0, buffer, 0x30, 0]);
        assert_eq!(status, Status::SUCCESS);
        let narrow = |value: u64| value as u32;
        let (state, kind) = (self.get(20), self.get(21));
        (self.get(17), self.get(19), narrow(state), (state >> 32) as u32, narrow(kind))
    }
}

#[test]
fn reserve_commit_protect_query_free() {
    let mut guest = Guest::boot("life");
    let (status, base, size) = guest.allocate(0, 0x1_2345, RESERVE, READWRITE);
    assert_eq!((status, size), (Status::SUCCESS, 0x1_3000));
    assert_eq!(guest.query(base + 0x5000), (base, 0xE000, 0x2000, 0, 0x2_0000));

    let (status, at, size) = guest.allocate(base + 0x1010, 0x1000, COMMIT, READWRITE);
    assert_eq!((status, at, size), (Status::SUCCESS, base + 0x1000, 0x2000));
    assert_eq!(guest.query(base + 0x1000), (base, 0x2000, 0x1000, 4, 0x2_0000));
    assert_eq!(guest.protect(base + 0x1000, 0x1000, READONLY), (Status::SUCCESS, 4));
    assert_eq!(guest.query(base + 0x1000).1, 0x1000);
    assert_eq!(guest.memory().protection(base + 0x1000), Some(Protection::READ));
    assert_eq!(guest.protect(base, 0x2000, READONLY).0, Status::NOT_COMMITTED);
    assert_eq!(guest.protect(base + 0x1000, 0x1000, 0x99).0, Status::INVALID_PAGE_PROTECTION);

    assert_eq!(guest.free(base + 0x1000, 0, 0x8000), Status::FREE_VM_NOT_AT_BASE);
    assert_eq!(guest.free(base + 0x1000, 0x1000, 0x4000), Status::SUCCESS);
    assert_eq!(guest.query(base + 0x1000).2, 0x2000);
    assert_eq!(guest.free(base, 0, 0x8000), Status::SUCCESS);
    assert_eq!(guest.query(base).2, 0x1_0000);
    assert_eq!(guest.free(base, 0, 0x8000), Status::MEMORY_NOT_ALLOCATED);
}

#[test]
fn probed_buffers_count_as_written() {
    const WRITE_WATCH: u64 = 0x20_0000;
    let mut guest = Guest::boot("watch");
    let (status, base, _) = guest.allocate(0, 0x4000, RESERVE | COMMIT | WRITE_WATCH, READWRITE);
    assert_eq!(status, Status::SUCCESS);
    let (list, count, granularity) = (guest.put(20, 0), guest.put(10, 0), guest.put(11, 0));
    let written = |guest: &mut Guest, reset: u64| {
        guest.put(10, 8);
        let arguments = [CURRENT_PROCESS, reset, base, 0x4000, list, count, granularity];
        assert_eq!(guest.call("NtGetWriteWatch", &arguments), Status::SUCCESS);
        guest.get(10)
    };
    assert_eq!(written(&mut guest, 1), 0);
    // Reading from where nothing is probes the buffer, and then copies nothing.
    let copied = guest.put(12, 0);
    let source = guest.scratch;
    assert_eq!(
        guest.call("NtReadVirtualMemory", &[CURRENT_PROCESS, 0x1234, base, 0x3000, copied]),
        Status::PARTIAL_COPY
    );
    assert_eq!(written(&mut guest, 1), 3);
    // What was written is remembered beyond the memory.
    let value = 7u64.to_le_bytes();
    let place = guest.put(13, u64::from_le_bytes(value));
    assert_eq!(guest.call("NtWriteVirtualMemory", &[CURRENT_PROCESS, base, place, 8, copied]), Status::SUCCESS);
    assert_eq!(guest.free(base, 0x4000, 0x4000), Status::SUCCESS);
    assert_eq!(written(&mut guest, 0), 1);
    // A list that cannot be written, and a caller's buffer that is not there.
    let bad = [CURRENT_PROCESS, 0, base, 0x4000, 0, count, granularity];
    assert_eq!(guest.call("NtGetWriteWatch", &bad), Status::ACCESS_VIOLATION);
    let unwritable = [CURRENT_PROCESS, source, 0x1234, 8, copied];
    assert_eq!(guest.call("NtReadVirtualMemory", &unwritable), Status::ACCESS_VIOLATION);
    assert_eq!(
        (guest.call("NtReadVirtualMemory", &[0x4000, source, source, 8, copied]), guest.get(12)),
        (Status::INVALID_HANDLE, 0)
    );
}

#[test]
fn section_attributes_that_go_together() {
    const COMMITTED: u64 = 0x800_0000;
    const RESERVED: u64 = 0x400_0000;
    const NOCACHE: u64 = 0x1000_0000;
    const COMBINED: u64 = 0x4000_0000;
    const LARGE: u64 = 0x8000_0000;
    const FILE: u64 = 0x80_0000;
    let mut guest = Guest::boot("sections");
    for (attributes, expected) in [
        (COMMITTED, Status::SUCCESS),
        (RESERVED | NOCACHE, Status::SUCCESS),
        (COMMITTED | NOCACHE, Status::SUCCESS),
        (COMMITTED | COMBINED, Status::SUCCESS),
        (COMMITTED | LARGE, Status::PRIVILEGE_NOT_HELD),
        (RESERVED | LARGE, Status::INVALID_PARAMETER_6),
        (COMMITTED | RESERVED, Status::INVALID_PARAMETER_6),
        (COMMITTED | FILE, Status::INVALID_PARAMETER_6),
        (COMMITTED | NOCACHE | COMBINED, Status::INVALID_PARAMETER_6),
        (NOCACHE, Status::INVALID_PARAMETER_6),
    ] {
        let (handle, size) = (guest.put(0, 0), guest.put(1, 0x1000));
        let status = guest.call("NtCreateSection", &[handle, 0xF_001F, 0, size, READWRITE, attributes, 0]);
        assert_eq!(status, expected, "{attributes:#x}");
        if attributes == COMMITTED | NOCACHE {
            // A view is cached as its section says.
            let (section, base, view) = (guest.get(0), guest.put(2, 0), guest.put(3, 0));
            let arguments = [section, CURRENT_PROCESS, base, 0, 0, 0, view, 2, 0, READWRITE];
            assert_eq!(guest.call("NtMapViewOfSection", &arguments), Status::SUCCESS);
            let base = guest.get(2);
            assert_eq!(guest.allocate(base, 0x1000, COMMIT, READWRITE).0, Status::SUCCESS);
            assert_eq!(guest.query(base).3, 0x204);
        }
    }
}

#[test]
fn refused_allocations() {
    let mut guest = Guest::boot("refused");
    let top = 0x7FF_FFFE_FFFF;
    for (base, size, kind, protect, expected) in [
        (0, 0, RESERVE, READWRITE, Status::INVALID_PARAMETER_4),
        (0, u64::MAX, RESERVE, READWRITE, Status::INVALID_PARAMETER_4),
        (top + 1, 0x1000, RESERVE, READWRITE, Status::INVALID_PARAMETER_2),
        (0x1_0000, top, RESERVE, READWRITE, Status::INVALID_PARAMETER_4),
        (0, 0x1000, 0, READWRITE, Status::INVALID_PARAMETER_5),
        (0, 0x1000, RESERVE, 0x6, Status::INVALID_PAGE_PROTECTION),
        (0, 0x1000, RESERVE, 0x8, Status::INVALID_PAGE_PROTECTION),
        (0, 4 << 30, RESERVE | COMMIT, READWRITE, Status::COMMITMENT_LIMIT),
        (0x1_4000_0000, 0x1000, RESERVE, READWRITE, Status::CONFLICTING_ADDRESSES),
        (0x6000_0000, 0x1000, COMMIT, READWRITE, Status::CONFLICTING_ADDRESSES),
    ] {
        assert_eq!(guest.allocate(base, size, kind, protect).0, expected, "{base:#x} {size:#x} {kind:#x} {protect:#x}");
    }
    let committed = guest.memory().committed();
    assert_eq!(guest.allocate(0, 4 << 30, RESERVE | COMMIT, READWRITE).0, Status::COMMITMENT_LIMIT);
    assert_eq!(guest.memory().committed(), committed, "a failed commit leaves nothing behind");
}

#[test]
fn a_guard_page_works_once() {
    let mut guest = Guest::boot("guard");
    let (_, base, _) = guest.allocate(0, 0x1000, RESERVE | COMMIT, GUARD_READWRITE);
    // The service reads its argument there.
    let read = |guest: &mut Guest| guest.call("NtDelayExecution", &[1, base]);
    assert_eq!(guest.query(base).3, 0x104);
    assert_eq!(read(&mut guest), Status::GUARD_PAGE_VIOLATION);
    assert_eq!(guest.query(base).3, 4);
}

#[test]
fn stacks_grow_down_to_their_reserve() {
    let mut guest = Guest::boot("stack");
    let (teb, stack) = guest.system.kernel.scheduler.current().map(|thread| (thread.teb, thread.stack)).unwrap();
    let limit = |guest: &mut Guest| {
        let mut bytes = [0; 8];
        guest.memory().read_unchecked(teb + 0x10, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    let first = limit(&mut guest);
    let target = stack + 0x8008;
    assert!(first > target);
    // A service that writes far below the guard page gets its memory.
    assert_eq!(guest.call("NtQueryPerformanceCounter", &[target, 0]), Status::SUCCESS);
    assert_eq!(limit(&mut guest), stack + 0x8000);
    assert_eq!(guest.query(stack + 0x7000).3, 0x104, "the guard page has moved along");
    assert_eq!(guest.call("NtQueryPerformanceCounter", &[stack + 0x2000, 0]), Status::STACK_OVERFLOW);
    assert_eq!(guest.call("NtQueryPerformanceCounter", &[stack + 0x10, 0]), Status::ACCESS_VIOLATION);
}

#[test]
fn views_of_a_section_show_the_same_memory() {
    let mut guest = Guest::boot("section");
    let (handle, size) = (guest.put(0, 0), guest.put(1, 0x3000));
    assert_eq!(guest.call("NtCreateSection", &[handle, 0xF001F, 0, size, READWRITE, 0x800_0000, 0]), Status::SUCCESS);
    let section = guest.get(0);
    let map = |guest: &mut Guest, protect: u64| {
        let (base, offset, size) = (guest.put(2, 0), guest.put(3, 0), guest.put(4, 0));
        let arguments = [section, CURRENT_PROCESS, base, 0, 0, offset, size, 2, 0, protect];
        (guest.call("NtMapViewOfSection", &arguments), guest.get(2))
    };
    let (status, first) = map(&mut guest, READWRITE);
    assert_eq!(status, Status::SUCCESS);
    guest.memory().write_unchecked(first + 0x2FFF, &[7]).unwrap();
    let (_, second) = map(&mut guest, READONLY);
    let (_, copy) = map(&mut guest, 8);
    guest.memory().write_unchecked(first + 0x2FFE, &[6]).unwrap();
    let mut bytes = [0; 2];
    guest.memory().read_unchecked(second + 0x2FFE, &mut bytes).unwrap();
    assert_eq!(bytes, [6, 7]);
    // A copy-on-write view shows the section until a page of it is written; that page is its own from then on.
    guest.memory().read_unchecked(copy + 0x2FFE, &mut bytes).unwrap();
    assert_eq!(bytes, [6, 7]);
    assert_eq!(guest.call("NtQueryPerformanceCounter", &[copy + 0x2FF0, 0]), Status::SUCCESS);
    assert_eq!((guest.query(copy).3, guest.query(copy + 0x2000).3), (8, 4));
    guest.memory().write_unchecked(first + 0x2FFE, &[5]).unwrap();
    guest.memory().read_unchecked(copy + 0x2FFE, &mut bytes).unwrap();
    assert_eq!(bytes, [6, 7], "a copy is a copy");
    let mut counter = [1; 8];
    guest.memory().read_unchecked(first + 0x2FF0, &mut counter).unwrap();
    assert_eq!(counter, [0; 8]);
    assert_eq!(guest.protect(copy, 0x3000, READONLY), (Status::SUCCESS, 8));
    assert_eq!(guest.protect(copy, 0x3000, 8), (Status::SUCCESS, 2));
    assert_eq!((guest.query(copy).3, guest.query(copy + 0x2000).3), (8, 4), "what is copied can be written");
    assert_eq!(guest.protect(copy, 0x1000, READWRITE).0, Status::SECTION_PROTECTION);
    assert_eq!(map(&mut guest, 0x20).0, Status::SECTION_PROTECTION);
    assert_eq!(guest.query(second).4, 0x4_0000);
    assert_eq!(guest.call("NtUnmapViewOfSection", &[CURRENT_PROCESS, first + 0x1000]), Status::SUCCESS);
    assert_eq!(guest.call("NtUnmapViewOfSection", &[CURRENT_PROCESS, first]), Status::NOT_MAPPED_VIEW);
}

#[test]
fn reserved_sections_are_committed_for_all_views() {
    let mut guest = Guest::boot("reserve");
    let (handle, size) = (guest.put(0, 0), guest.put(1, 0x4000));
    assert_eq!(guest.call("NtCreateSection", &[handle, 0xF001F, 0, size, READWRITE, 0x400_0000, 0]), Status::SUCCESS);
    let section = guest.get(0);
    let map = |guest: &mut Guest| {
        let (base, offset, size) = (guest.put(2, 0), guest.put(3, 0), guest.put(4, 0));
        let arguments = [section, CURRENT_PROCESS, base, 0, 0, offset, size, 2, 0, READWRITE];
        assert_eq!(guest.call("NtMapViewOfSection", &arguments), Status::SUCCESS);
        guest.get(2)
    };
    let (first, second) = (map(&mut guest), map(&mut guest));
    assert_eq!(guest.query(first).2, 0x2000);
    assert_eq!(guest.call("NtQueryPerformanceCounter", &[second + 0x1000, 0]), Status::ACCESS_VIOLATION);
    assert_eq!(guest.allocate(first + 0x1000, 0x1000, COMMIT, READWRITE).0, Status::SUCCESS);
    assert_eq!(guest.call("NtQueryPerformanceCounter", &[second + 0x1000, 0]), Status::SUCCESS);
    assert_eq!(guest.query(second + 0x1000), (second, 0x1000, 0x1000, 4, 0x4_0000));
    let third = map(&mut guest);
    assert_eq!((guest.query(third).2, guest.query(third + 0x1000).2), (0x2000, 0x1000));
}

#[test]
fn written_pages_are_watched() {
    const WRITE_WATCH: u64 = 0x20_0000;
    let mut guest = Guest::boot("watch");
    let (_, base, _) = guest.allocate(0, 0x4000, RESERVE | COMMIT | WRITE_WATCH, READWRITE);
    let written = |guest: &mut Guest, flags: u64| {
        let (count, granularity) = (guest.put(8, 4), guest.put(9, 0));
        let addresses = guest.put(10, 0);
        let arguments = [CURRENT_PROCESS, flags, base, 0x4000, addresses, count, granularity];
        assert_eq!(guest.call("NtGetWriteWatch", &arguments), Status::SUCCESS);
        assert_eq!(guest.get(9), 0x1000);
        (0..guest.get(8)).map(|index| guest.get(10 + index) - base).collect::<Vec<_>>()
    };
    assert!(written(&mut guest, 0).is_empty());
    for page in [0x2000, 0x1000] {
        assert_eq!(guest.call("NtQueryPerformanceCounter", &[base + page, 0]), Status::SUCCESS);
    }
    assert_eq!(written(&mut guest, 0), [0x1000, 0x2000]);
    assert_eq!(written(&mut guest, 1), [0x1000, 0x2000]);
    assert!(written(&mut guest, 0).is_empty());
    assert_eq!(guest.call("NtQueryPerformanceCounter", &[base + 0x1000, 0]), Status::SUCCESS);
    assert_eq!(written(&mut guest, 0), [0x1000]);
    assert_eq!(guest.call("NtResetWriteWatch", &[CURRENT_PROCESS, base, 0x4000]), Status::SUCCESS);
    assert!(written(&mut guest, 0).is_empty());
    let (_, plain, _) = guest.allocate(0, 0x1000, RESERVE | COMMIT, READWRITE);
    assert_eq!(guest.call("NtResetWriteWatch", &[CURRENT_PROCESS, plain, 0x1000]), Status::INVALID_PARAMETER);
}

#[test]
fn malformed_images_are_refused() {
    let image = lstar_guest_images::demo::demo().unwrap().pe;
    let size = image.len() as u64;
    let parsed = ImageHeaders::parse(&image, size).unwrap();
    assert_eq!((parsed.base, parsed.parts[0].rva), (0x1_4000_0000, 0));
    assert_eq!(ImageHeaders::parse(b"#!/bin/sh", 9), Err(ImageError::NotMz));
    assert_eq!(ImageHeaders::parse(&image[..0x40], 0x40), Err(ImageError::NotPe));
    let nt = u32::from_le_bytes(image[0x3C..0x40].try_into().unwrap()) as usize;
    let mut foreign = image.clone();
    foreign[nt + 4..nt + 6].copy_from_slice(&0xAA64u16.to_le_bytes());
    assert_eq!(ImageHeaders::parse(&foreign, size), Err(ImageError::Machine(0xAA64)));
    // Whatever a header byte becomes, the parser answers.
    for at in 0..image.len().min(0x400) {
        for value in [0, 1, 0x7F, 0x80, 0xFF] {
            let mut broken = image.clone();
            broken[at] = value;
            if let Ok(headers) = ImageHeaders::parse(&broken, size) {
                assert!(
                    headers
                        .parts
                        .iter()
                        .all(|part| u64::from(part.rva) + u64::from(part.size) <= u64::from(headers.size))
                );
            }
        }
        let _ = ImageHeaders::parse(&image[..at], size);
    }
}
