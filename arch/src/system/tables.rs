//! Descriptor-table registers and the instructions that examine descriptors (SDM vol. 2).

use super::{OperandSize, require, require_cpl0, require_no_umip};
use crate::descriptor::{Descriptor, is_null, rpl, selector_code, system_type};
use crate::exception::Exception;
use crate::is_canonical;
use crate::memory::GuestMemory;
use crate::rflags::Rflags;
use crate::segment::{DescriptorTable, Segment};
use crate::state::CpuState;

/// Reads the pseudo-descriptor operand of LGDT and LIDT: 2 bytes of limit, then 8 bytes of base (4 in compatibility
/// mode).
fn read_table<M: GuestMemory>(cpu: &CpuState, mem: &mut M, address: u64) -> Result<DescriptorTable, Exception> {
    require_cpl0(cpu)?;
    let mut bytes = [0; 10];
    let len = if cpu.is_64bit() { 10 } else { 6 };
    require(is_canonical(address) && is_canonical(address.wrapping_add(len as u64 - 1)), Exception::GP0)?;
    mem.read(address, &mut bytes[..len], cpu.privilege())?;
    let [l0, l1, base @ ..] = bytes;
    let table = DescriptorTable { base: u64::from_le_bytes(base), limit: u16::from_le_bytes([l0, l1]) };
    require(is_canonical(table.base), Exception::GP0)?;
    Ok(table)
}

fn write_table<M: GuestMemory>(
    cpu: &CpuState,
    mem: &mut M,
    address: u64,
    table: DescriptorTable,
) -> Result<(), Exception> {
    require_no_umip(cpu)?;
    let len = if cpu.is_64bit() { 10 } else { 6 };
    require(is_canonical(address) && is_canonical(address.wrapping_add(len as u64 - 1)), Exception::GP0)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    Ok(mem.write(address, &bytes[..len], cpu.privilege())?)
}

/// LGDT from the linear `address`.
pub fn lgdt<M: GuestMemory>(cpu: &mut CpuState, mem: &mut M, address: u64) -> Result<(), Exception> {
    cpu.gdtr = read_table(cpu, mem, address)?;
    Ok(())
}

/// LIDT from the linear `address`.
pub fn lidt<M: GuestMemory>(cpu: &mut CpuState, mem: &mut M, address: u64) -> Result<(), Exception> {
    cpu.idtr = read_table(cpu, mem, address)?;
    Ok(())
}

/// SGDT to the linear `address`.
pub fn sgdt<M: GuestMemory>(cpu: &CpuState, mem: &mut M, address: u64) -> Result<(), Exception> {
    write_table(cpu, mem, address, cpu.gdtr)
}

/// SIDT to the linear `address`.
pub fn sidt<M: GuestMemory>(cpu: &CpuState, mem: &mut M, address: u64) -> Result<(), Exception> {
    write_table(cpu, mem, address, cpu.idtr)
}

/// Finds the GDT descriptor of system type `kind` for LLDT and LTR, with its 64-bit base.
fn system_segment<M: GuestMemory>(
    cpu: &CpuState,
    mem: &mut M,
    selector: u16,
    kind: u8,
) -> Result<(Descriptor, Segment), Exception> {
    let code = selector_code(selector);
    require(selector & 4 == 0, Exception::gp(code))?;
    let descriptor = Descriptor::read(cpu, mem, selector)?;
    require(descriptor.is_system() && descriptor.kind() == kind, Exception::gp(code))?;
    let upper = descriptor.read_upper(cpu, mem, selector)?;
    require(descriptor.is_present(), Exception::np(code))?;
    let base = descriptor.base() | upper << 32;
    require(is_canonical(base), Exception::gp(code))?;
    Ok((descriptor, Segment { base, ..descriptor.segment(selector) }))
}

/// LLDT. A null selector makes the LDT unusable.
pub fn lldt<M: GuestMemory>(cpu: &mut CpuState, mem: &mut M, selector: u16) -> Result<(), Exception> {
    require_cpl0(cpu)?;
    cpu.ldtr = if is_null(selector) {
        Segment { selector, ..Segment::default() }
    } else {
        system_segment(cpu, mem, selector, system_type::LDT)?.1
    };
    Ok(())
}

/// LTR: also marks the TSS busy.
pub fn ltr<M: GuestMemory>(cpu: &mut CpuState, mem: &mut M, selector: u16) -> Result<(), Exception> {
    require_cpl0(cpu)?;
    require(!is_null(selector), Exception::GP0)?;
    let (mut descriptor, mut segment) = system_segment(cpu, mem, selector, system_type::TSS_AVAILABLE)?;
    descriptor.mark(mem, system_type::TSS_BUSY)?;
    segment.attributes = descriptor.attributes();
    cpu.tr = segment;
    Ok(())
}

/// SLDT: the selector, zero-extended to the operand.
pub fn sldt(cpu: &CpuState) -> Result<u16, Exception> {
    require_no_umip(cpu)?;
    Ok(cpu.ldtr.selector)
}

/// STR: the selector, zero-extended to the operand.
pub fn str(cpu: &CpuState) -> Result<u16, Exception> {
    require_no_umip(cpu)?;
    Ok(cpu.tr.selector)
}

/// Finds the descriptor that LAR, LSL, VERR or VERW examine, if it may be seen from the current CPL. Conforming code
/// may always be seen.
fn visible<M: GuestMemory>(cpu: &CpuState, mem: &mut M, selector: u16) -> Result<Option<Descriptor>, Exception> {
    if is_null(selector) {
        return Ok(None);
    }
    let privileged = |d: &Descriptor| d.is_conforming() || d.dpl() >= cpu.cpl.max(rpl(selector));
    Ok(Descriptor::lookup(cpu, mem, selector)?.filter(privileged))
}

/// Sets ZF to whether there is a result, and passes it on.
fn with_zf<T>(cpu: &mut CpuState, result: Option<T>) -> Option<T> {
    cpu.rflags = cpu.rflags & !Rflags::ZF.bits() | if result.is_some() { Rflags::ZF.bits() } else { 0 };
    result
}

/// LAR: sets ZF; the access rights to write to the destination if ZF is set.
pub fn lar<M: GuestMemory>(
    cpu: &mut CpuState,
    mem: &mut M,
    selector: u16,
    size: OperandSize,
) -> Result<Option<u64>, Exception> {
    use system_type::{CALL_GATE, LDT, TSS_AVAILABLE, TSS_BUSY};
    let rights = visible(cpu, mem, selector)?
        .filter(|d| !d.is_system() || matches!(d.kind(), LDT | TSS_AVAILABLE | TSS_BUSY | CALL_GATE))
        .map(|d| d.raw >> 32 & 0x00FF_FF00 & size.mask());
    Ok(with_zf(cpu, rights))
}

/// LSL: sets ZF; the limit in bytes to write to the destination if ZF is set.
pub fn lsl<M: GuestMemory>(
    cpu: &mut CpuState,
    mem: &mut M,
    selector: u16,
    size: OperandSize,
) -> Result<Option<u64>, Exception> {
    use system_type::{LDT, TSS_AVAILABLE, TSS_BUSY};
    let limit = visible(cpu, mem, selector)?
        .filter(|d| !d.is_system() || matches!(d.kind(), LDT | TSS_AVAILABLE | TSS_BUSY))
        .map(|d| u64::from(d.limit()) & size.mask());
    Ok(with_zf(cpu, limit))
}

/// VERR: ZF says whether the segment can be read.
pub fn verr<M: GuestMemory>(cpu: &mut CpuState, mem: &mut M, selector: u16) -> Result<(), Exception> {
    let readable = visible(cpu, mem, selector)?.filter(|d| d.is_readable());
    with_zf(cpu, readable);
    Ok(())
}

/// VERW: ZF says whether the segment can be written.
pub fn verw<M: GuestMemory>(cpu: &mut CpuState, mem: &mut M, selector: u16) -> Result<(), Exception> {
    let writable = visible(cpu, mem, selector)?.filter(|d| d.is_writable());
    with_zf(cpu, writable);
    Ok(())
}
