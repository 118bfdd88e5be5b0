//! Segment checks of compatibility mode (SDM vol. 3, 5.3 and 5.5): limits, types, null selectors.
//!
//! 64-bit mode has none. What flat segments, which nearly all code uses, still refuse is looked at when memory is accessed:
//! [`crate::exec::Exec::is_out_of_reach`].

use iced_x86::{InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, Register};
use lstar_arch::{CpuState, Exception, Gpr, Segment, SegmentIndex};

use crate::accesses::register_value;
use crate::decode::{Decoded, segment};
use crate::flags::mask;

/// Type bits of [`Segment::attributes`]: code, and for data expand-down and writable, for code readable.
const CODE: u16 = 8;
const EXPAND_DOWN: u16 = 4;
const WRITABLE_OR_READABLE: u16 = 2;

/// Whether an access to SS, DS or ES, or one without a memory operand, can violate a segment other than by reaching beyond 4 GiB,
/// which is found out when the access is made.
fn is_unusual(cpu: &CpuState) -> bool {
    let data = [SegmentIndex::Ss, SegmentIndex::Ds, SegmentIndex::Es];
    cpu.segment(SegmentIndex::Cs).limit != u32::MAX
        || !data.into_iter().all(|index| cpu.segment(index).is_unlimited_data())
}

/// Whether the code segment is one of 16 bits, in which nothing is executed.
#[inline]
pub(crate) fn is_16bit(cpu: &CpuState) -> bool {
    let cs = cpu.segment(SegmentIndex::Cs);
    !cs.is_long() && !cs.is_big()
}

/// #GP(0) for an offset that is no place in the code segment.
#[inline]
pub(crate) fn check_target(cpu: &CpuState, offset: u64) -> Result<(), Exception> {
    let outside = !cpu.is_64bit() && offset > u64::from(cpu.segment(SegmentIndex::Cs).limit);
    if outside { Err(Exception::GP0) } else { Ok(()) }
}

/// Whether a string instruction with this source segment could violate a segment in a later iteration than the first.
pub(crate) fn may_violate_later(cpu: &CpuState, source: Register) -> bool {
    let unlimited = |register| segment(register, false).is_none_or(|index| cpu.segment(index).is_unlimited_data());
    !(cpu.is_64bit() || unlimited(source) && unlimited(Register::ES))
}

/// Checks the memory accesses that the instruction at RIP is about to make, in compatibility mode.
pub(crate) fn check(cpu: &CpuState, decoded: &Decoded) -> Result<(), Exception> {
    let insn = &decoded.insn;
    if !is_unusual(cpu) && !matches!(insn.segment_prefix(), Register::CS | Register::FS | Register::GS) {
        return Ok(());
    }
    if insn.mnemonic() == Mnemonic::Enter {
        // Its accesses are checked one after the other, as it makes them: an earlier one may fault otherwise.
        return check_target(cpu, cpu.rip.wrapping_add(insn.len() as u64 - 1));
    }
    let last = cpu.rip.wrapping_add(insn.len() as u64 - 1);
    check_target(cpu, last)?;
    let repeated = insn.has_rep_prefix() || insn.has_repne_prefix();
    if insn.is_string_instruction() && repeated && cpu.reg(Gpr::Rcx) & mask(4) == 0 {
        return Ok(());
    }
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info_options(insn, InstructionInfoOptions::NO_REGISTER_USAGE);
    for used in info.used_memory() {
        let writes = match used.access() {
            OpAccess::None | OpAccess::NoMemAccess => continue,
            OpAccess::Read | OpAccess::CondRead => false,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => true,
        };
        let Some(index) = segment(used.segment(), false) else { continue };
        let offset = used.virtual_address(0, |register, _, _| {
            Some(if register.is_segment_register() { 0 } else { register_value(cpu, register) })
        });
        let Some(offset) = offset else { continue };
        // An operand of unknown size (a state image) is checked by its first byte.
        let size = (used.memory_size().size() as u64).max(1);
        if !permits(cpu.segment(index), offset & 0xFFFF_FFFF, size, writes) {
            return Err(if index == SegmentIndex::Ss { Exception::SS0 } else { Exception::GP0 });
        }
    }
    Ok(())
}

/// Checks one access to the stack, at an offset of the stack segment.
pub(crate) fn check_stack(cpu: &CpuState, offset: u64, size: u8, writes: bool) -> Result<(), Exception> {
    let outside = !cpu.is_64bit() && !permits(cpu.segment(SegmentIndex::Ss), offset & 0xFFFF_FFFF, size.into(), writes);
    if outside { Err(Exception::SS0) } else { Ok(()) }
}

/// Whether the segment lets `size` bytes at `offset` be read, or written.
fn permits(segment: &Segment, offset: u64, size: u64, writes: bool) -> bool {
    let kind = segment.attributes;
    if kind & Segment::PRESENT == 0 || kind & Segment::CODE_OR_DATA == 0 {
        return false;
    }
    let allowed = match (kind & CODE != 0, kind & WRITABLE_OR_READABLE != 0) {
        (true, readable) => readable && !writes,
        (false, writable) => writable || !writes,
    };
    let last = offset + size - 1;
    let limit = u64::from(segment.limit);
    let within = if kind & (CODE | EXPAND_DOWN) == EXPAND_DOWN {
        let top = if segment.is_big() { u64::from(u32::MAX) } else { 0xFFFF };
        offset > limit && last <= top
    } else {
        last <= limit
    };
    allowed && within
}
