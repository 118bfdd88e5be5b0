//! Where everything in the kernel image lies.

use crate::Symbol;

/// Preferred base of the kernel image. The addresses below are those of a Windows 7 x64 debugging session.
pub const KERNEL_BASE: u64 = 0xFFFF_F800_03E7_0000;

/// `.text` starts here with start-up code and trap handlers.
pub(super) const TEXT: u64 = KERNEL_BASE + 0x1000;
/// First Zw stub; stub `n` lies `n * ZW_STRIDE` further, so that `ZwCreateFile` (52h) is at fffff800`03e75f00.
pub(super) const ZW_STUBS: u64 = 0xFFFF_F800_03E7_54C0;
/// Distance between Zw stubs.
pub(super) const ZW_STRIDE: u64 = 0x20;
/// Stubs that fit before `KiServiceLinkage`: as many as Windows 7 has services.
pub(super) const ZW_FIRST_RUN: usize = 0x191;
/// `KiServiceLinkage`.
pub(super) const SERVICE_LINKAGE: u64 = 0xFFFF_F800_03E7_86F0;
/// `KiSystemCall32`.
pub(super) const SYSTEM_CALL_32: u64 = 0xFFFF_F800_03E7_BC00;
/// `KiServiceInternal`.
pub(super) const SERVICE_INTERNAL: u64 = 0xFFFF_F800_03E7_BE40;
/// `KiSystemCall64`.
pub(super) const SYSTEM_CALL_64: u64 = 0xFFFF_F800_03E7_BEC0;
/// `KiSystemServiceStart`.
pub(super) const SYSTEM_SERVICE_START: u64 = 0xFFFF_F800_03E7_BFDE;
/// Zw stubs beyond [`ZW_FIRST_RUN`]; room for the body of the system-call code lies before.
pub(super) const ZW_SECOND_RUN: u64 = 0xFFFF_F800_03E7_C800;

/// Distance between service gate stubs.
pub const GATE_STUB_STRIDE: u64 = 0x20;

/// Highest user address that the argument copy reads from (`MmUserProbeAddress`).
pub const USER_PROBE_ADDRESS: u64 = 0x7FF_FFFF_0000;

/// Number of interrupt vectors.
pub(super) const IDT_ENTRIES: usize = 256;
/// Bytes of the GDT: selectors 0 to 58h.
pub(super) const GDT_SIZE: usize = 0x60;
/// Bytes of a 64-bit TSS without an I/O map (SDM vol. 3, 8.7).
pub(super) const TSS_SIZE: usize = 0x68;
/// Bytes of each kernel stack that the image carries for start-up and IST entries.
pub(super) const BOOT_STACK_SIZE: usize = 0x8000;
pub(super) const IST_STACK_SIZE: usize = 0x4000;

/// The `.data` section under construction: named items with addresses that are known before their contents.
pub(super) struct Data {
    pub address: u64,
    pub bytes: Vec<u8>,
    pub symbols: Vec<Symbol>,
}

/// Address and size of a datum in [`Data`].
#[derive(Clone, Copy)]
pub(super) struct Item {
    pub address: u64,
    pub size: usize,
}

impl Item {
    pub fn end(self) -> u64 {
        self.address + self.size as u64
    }
}

impl Data {
    pub fn new(address: u64) -> Self {
        Self { address, bytes: Vec::new(), symbols: Vec::new() }
    }

    /// Reserves a zeroed datum.
    pub fn reserve(&mut self, name: &str, size: usize, alignment: usize) -> Item {
        let offset = self.bytes.len().next_multiple_of(alignment);
        self.bytes.resize(offset + size, 0);
        let address = self.address + offset as u64;
        self.symbols.push(Symbol { name: name.to_owned(), address, size: size as u64 });
        Item { address, size }
    }

    /// Writes into a reserved datum.
    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        let offset = (address - self.address) as usize;
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub fn put_u64(&mut self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }
}
