//! Service tables, the gate stubs that their entries lead to, and the kernel-mode Zw stubs.

use iced_x86::Register;
use iced_x86::code_asm::*;

use super::map::{self, Data, Item};
use super::{KernelConfig, MAX_STACK_ARGUMENTS, ServiceEntry};
use crate::assemble::{Code64, Piece, at, size_symbols};
use crate::layout::TRAP_FRAME_BIAS;
use crate::{BuildError, Symbol};

/// Entries that twelve bits of a service number can select.
const MAX_SERVICES: usize = 0x1000;
const STATUS_INVALID_SYSTEM_SERVICE: u32 = 0xC000_001C;
/// Services that replace the caller's whole context when they succeed, so that SYSRET would lose registers.
const CONTEXT_SERVICES: [&str; 3] = ["NtContinue", "NtContinueEx", "NtRaiseException"];
/// What a shadow service returns when the thread cannot become a GUI thread; 1 asks for C000001Ch instead.
const GUI_FAILURE_RESULT: u8 = 0;
const GUI_FAILURE_INVALID: u8 = 1;

/// The tables in `.data`.
pub(super) struct Tables {
    pub descriptors: Item,
    pub descriptors_shadow: Item,
    bases: [Item; 2],
    argument_counts: [Item; 2],
}

/// Refuses tables that the guest's formats cannot express.
pub(super) fn check(config: &KernelConfig) -> Result<(), BuildError> {
    for (table, services) in [(0, &config.services), (1, &config.shadow_services)] {
        if services.len() > MAX_SERVICES {
            return Err(BuildError::TooManyServices { table, count: services.len() });
        }
        if let Some(service) = services.iter().flatten().find(|s| s.stack_arguments > MAX_STACK_ARGUMENTS) {
            let (name, count) = (service.name.clone(), service.stack_arguments);
            return Err(BuildError::TooManyArguments { name, count });
        }
    }
    Ok(())
}

impl Tables {
    pub fn reserve(data: &mut Data, config: &KernelConfig) -> Self {
        let counts = [config.services.len(), config.shadow_services.len()];
        Self {
            descriptors: data.reserve("KeServiceDescriptorTable", 0x40, 64),
            descriptors_shadow: data.reserve("KeServiceDescriptorTableShadow", 0x40, 64),
            bases: [
                data.reserve("KiServiceTable", counts[0] * 4, 64),
                // The signed results for failed conversions follow the entries.
                data.reserve("W32pServiceTable", counts[1] * 5, 64),
            ],
            argument_counts: [
                data.reserve("KiArgumentTable", counts[0], 16),
                data.reserve("W32pArgumentTable", counts[1], 16),
            ],
        }
    }

    /// Writes descriptors and packed entries: `(target - base) << 4 | stack arguments`.
    pub fn fill(&self, data: &mut Data, config: &KernelConfig, stubs: &GateStubs) {
        let tables = [&config.services, &config.shadow_services];
        for (table, services) in tables.into_iter().enumerate() {
            let (base, counts) = (self.bases[table], self.argument_counts[table]);
            for (index, service) in services.iter().enumerate() {
                let target = match service {
                    Some(_) => stubs.address(table, index),
                    None => stubs.invalid,
                };
                let arguments = service.as_ref().map_or(0, |service| service.stack_arguments);
                let offset = target.wrapping_sub(base.address) as i32;
                let entry = offset << 4 | i32::from(arguments);
                data.put(base.address + index as u64 * 4, &entry.to_le_bytes());
                data.put(counts.address + index as u64, &[arguments * 8]);
                if table == 1 {
                    let result = if service.is_some() { GUI_FAILURE_RESULT } else { GUI_FAILURE_INVALID };
                    data.put(base.address + services.len() as u64 * 4 + index as u64, &[result]);
                }
            }
            let descriptor = [base.address, 0, services.len() as u64, counts.address];
            for (slot, value) in (0u64..).zip(descriptor) {
                if table == 0 {
                    data.put_u64(self.descriptors.address + slot * 8, value);
                }
                data.put_u64(self.descriptors_shadow.address + table as u64 * 0x20 + slot * 8, value);
            }
        }
    }
}

/// The gate stubs: `mov eax, id; vmcall; ret`, one per table slot.
pub(super) struct GateStubs {
    pub code: Code64,
    /// Stub of empty slots: answers C000001Ch itself.
    invalid: u64,
    tables: [u64; 2],
}

impl GateStubs {
    /// Bytes that [`GateStubs::assemble`] will need.
    pub fn size(config: &KernelConfig) -> u64 {
        (config.services.len() + config.shadow_services.len() + 1) as u64 * map::GATE_STUB_STRIDE
    }

    fn address(&self, table: usize, index: usize) -> u64 {
        self.tables[table] + index as u64 * map::GATE_STUB_STRIDE
    }

    pub fn assemble(address: u64, config: &KernelConfig, exit_2: u64) -> Result<Self, BuildError> {
        let first_shadow = address + (1 + config.services.len() as u64) * map::GATE_STUB_STRIDE;
        let mut stubs = Self {
            code: Code64 { address, bytes: Vec::new(), symbols: Vec::new() },
            invalid: address,
            tables: [address + map::GATE_STUB_STRIDE, first_shadow],
        };
        let mut invalid = Piece::new()?;
        invalid.mark("KiInvalidSystemService")?;
        invalid.mov(eax, STATUS_INVALID_SYSTEM_SERVICE)?;
        invalid.ret()?;
        place(&mut stubs.code, invalid.finish(address)?);
        for (table, services) in [&config.services, &config.shadow_services].into_iter().enumerate() {
            for (index, service) in services.iter().enumerate() {
                if let Some(service) = service {
                    let id = (index | table << 12) as u32;
                    let stub = gate_stub(stubs.address(table, index), id, &service.name, exit_2)?;
                    place(&mut stubs.code, stub);
                }
            }
        }
        let end = address + Self::size(config);
        stubs.code.bytes.resize((end - address) as usize, super::FILL);
        size_symbols(&mut stubs.code.symbols, end);
        Ok(stubs)
    }
}

fn gate_stub(address: u64, id: u32, name: &str, exit_2: u64) -> Result<Code64, BuildError> {
    let mut a = Piece::new()?;
    a.mark(name)?;
    a.mov(eax, id)?;
    a.vmcall()?;
    if CONTEXT_SERVICES.contains(&name) {
        let mut failed = a.create_label();
        a.test(eax, eax)?;
        a.js(failed)?;
        a.lea(rsp, rbp - TRAP_FRAME_BIAS as i32)?;
        a.jmp(exit_2)?;
        a.set_label(&mut failed)?;
    }
    a.ret()?;
    a.finish(address)
}

/// Puts a piece at its own address into `code`, filling the gap before it.
pub(super) fn place(code: &mut Code64, piece: Code64) {
    code.bytes.resize((piece.address - code.address) as usize, super::FILL);
    code.bytes.extend(piece.bytes);
    code.symbols.extend(piece.symbols);
}

/// The kernel-mode stubs, in ascending order of address.
pub(super) fn zw_stubs(services: &[Option<ServiceEntry>], service_internal: u64) -> Result<Vec<Code64>, BuildError> {
    // Slots go by service number, except that NtCreateFile always has the slot of its Windows 7 number.
    const CREATE_FILE_SLOT: usize = 0x52;
    let create_file = services.iter().position(|s| s.as_ref().is_some_and(|s| s.name == "NtCreateFile"));
    let slot_of = |number: usize| match create_file {
        Some(at) if number == at => CREATE_FILE_SLOT,
        Some(at) if number == CREATE_FILE_SLOT => at,
        _ => number,
    };
    let mut stubs = Vec::new();
    for (number, service) in services.iter().enumerate() {
        let Some(name) = service.as_ref().and_then(|service| service.name.strip_prefix("Nt")) else { continue };
        let slot = slot_of(number);
        let address = match slot.checked_sub(map::ZW_FIRST_RUN) {
            None => map::ZW_STUBS + slot as u64 * map::ZW_STRIDE,
            Some(beyond) => map::ZW_SECOND_RUN + beyond as u64 * map::ZW_STRIDE,
        };
        let mut a = Piece::new()?;
        a.mark(format!("Zw{name}"))?;
        a.mov_8b(Register::RAX, Register::RSP)?;
        a.cli()?;
        a.sub(rsp, 0x10)?;
        a.push(rax)?;
        a.pushfq()?;
        a.push(0x10)?;
        a.lea(rax, at(map::SERVICE_LINKAGE))?;
        a.push(rax)?;
        a.mov(eax, number as u32)?;
        a.jmp(service_internal)?;
        stubs.push(a.finish(address)?);
    }
    stubs.sort_by_key(|stub| stub.address);
    Ok(stubs)
}

/// Symbols of several pieces whose sizes are already right.
pub(super) fn symbols_of<'a>(pieces: impl IntoIterator<Item = &'a Code64>) -> Vec<Symbol> {
    pieces.into_iter().flat_map(|piece| piece.symbols.iter().cloned()).collect()
}
