//! Loading segment registers, far transfers and IRET (SDM vol. 2; vol. 3, 5.8).
//!
//! Code segments are checked by `load_code`; what differs between the instructions is the privilege rule.

use super::flags::iret_flags;
use super::{OperandSize, require};
use crate::delivery::tss_stack_pointer;
use crate::descriptor::{Descriptor, Gate, is_null, rpl, selector_code, system_type};
use crate::exception::Exception;
use crate::is_canonical;
use crate::memory::{GuestMemory, Privilege};
use crate::rflags::Rflags;
use crate::segment::{Segment, SegmentIndex};
use crate::state::{CpuState, Gpr};

/// MOV or POP to a segment register, and the segment half of LSS, LFS and LGS.
///
/// Loading SS holds off interrupts for one instruction; LSS alone does not, and its engine undoes that. A null selector
/// clears the base, as Intel and recent AMD processors do.
pub fn load_segment<M: GuestMemory>(
    cpu: &mut CpuState,
    mem: &mut M,
    index: SegmentIndex,
    selector: u16,
) -> Result<(), Exception> {
    let segment = match index {
        SegmentIndex::Cs => return Err(Exception::UD),
        SegmentIndex::Ss => {
            let segment = stack_segment(cpu, mem, selector, cpu.cpl, cpu.is_64bit())?;
            require(rpl(selector) == cpu.cpl, Exception::GP0)?;
            cpu.interrupt_shadow = 1;
            segment
        }
        _ if is_null(selector) => Segment { selector, ..Segment::default() },
        _ => data_segment(cpu, mem, selector)?,
    };
    *cpu.segment_mut(index) = segment;
    Ok(())
}

fn data_segment<M: GuestMemory>(cpu: &CpuState, mem: &mut M, selector: u16) -> Result<Segment, Exception> {
    let code = selector_code(selector);
    let mut descriptor = Descriptor::read(cpu, mem, selector)?;
    let privileged = descriptor.is_conforming() || descriptor.dpl() >= cpu.cpl.max(rpl(selector));
    require(descriptor.is_readable() && privileged, Exception::gp(code))?;
    require(descriptor.is_present(), Exception::np(code))?;
    descriptor.mark_accessed(mem)?;
    Ok(descriptor.segment(selector))
}

/// Checks a selector for SS at privilege level `cpl`. Null is fine in 64-bit code at CPL 0 to 2.
fn stack_segment<M: GuestMemory>(
    cpu: &CpuState,
    mem: &mut M,
    selector: u16,
    cpl: u8,
    long: bool,
) -> Result<Segment, Exception> {
    if is_null(selector) {
        require(long && cpl < 3, Exception::GP0)?;
        return Ok(Segment { selector, ..Segment::null_stack(cpl) });
    }
    let code = selector_code(selector);
    let mut descriptor = Descriptor::read(cpu, mem, selector)?;
    let privileged = rpl(selector) == cpl && descriptor.dpl() == cpl;
    require(privileged && descriptor.is_writable(), Exception::gp(code))?;
    require(descriptor.is_present(), Exception::ss(code))?;
    descriptor.mark_accessed(mem)?;
    Ok(descriptor.segment(selector))
}

/// Reads a selector that must name a descriptor.
fn read_non_null<M: GuestMemory>(cpu: &CpuState, mem: &mut M, selector: u16) -> Result<Descriptor, Exception> {
    require(!is_null(selector), Exception::GP0)?;
    Descriptor::read(cpu, mem, selector)
}

/// Checks a code segment whose privilege rule is `privileged`, and `offset` as a target in it. Yields the register for
/// privilege level `cpl` and the effective target.
fn load_code<M: GuestMemory>(
    mem: &mut M,
    mut descriptor: Descriptor,
    selector: u16,
    offset: u64,
    cpl: u8,
    privileged: bool,
) -> Result<(Segment, u64), Exception> {
    let code = selector_code(selector);
    let valid = descriptor.is_code() && !(descriptor.is_long() && descriptor.is_big());
    require(valid && privileged, Exception::gp(code))?;
    require(descriptor.is_present(), Exception::np(code))?;
    let target = if descriptor.is_long() { offset } else { offset & 0xFFFF_FFFF };
    let within = if descriptor.is_long() { is_canonical(target) } else { target <= u64::from(descriptor.limit()) };
    require(within, Exception::GP0)?;
    descriptor.mark_accessed(mem)?;
    Ok((descriptor.segment(selector & !3 | u16::from(cpl)), target))
}

/// The rule for JMP and CALL to a code segment without a gate.
fn direct_rule(cpu: &CpuState, descriptor: Descriptor, selector: u16) -> bool {
    if descriptor.is_conforming() {
        descriptor.dpl() <= cpu.cpl
    } else {
        rpl(selector) <= cpu.cpl && descriptor.dpl() == cpu.cpl
    }
}

/// The rule for RET and IRET to the privilege level of the popped selector.
fn return_rule(cpu: &CpuState, descriptor: Descriptor, selector: u16) -> bool {
    let target = rpl(selector);
    let level = if descriptor.is_conforming() { descriptor.dpl() <= target } else { descriptor.dpl() == target };
    target >= cpu.cpl && level
}

/// Resolves a call gate: the code segment behind it and the target. The descriptor must be 64-bit code.
fn through_gate<M: GuestMemory>(
    cpu: &CpuState,
    mem: &mut M,
    gate: Descriptor,
    selector: u16,
) -> Result<(Descriptor, u16, u64), Exception> {
    let code = selector_code(selector);
    let reachable = gate.kind() == system_type::CALL_GATE && gate.dpl() >= cpu.cpl.max(rpl(selector));
    require(reachable, Exception::gp(code))?;
    let upper = gate.read_upper(cpu, mem, selector)?;
    require(gate.is_present(), Exception::np(code))?;
    let gate = Gate::decode(gate.raw, upper);
    let descriptor = read_non_null(cpu, mem, gate.selector)?;
    require(descriptor.is_long(), Exception::gp(selector_code(gate.selector)))?;
    Ok((descriptor, gate.selector, gate.offset))
}

/// Far JMP to `selector:offset`; the offset is already zero-extended from its operand size.
pub fn far_jmp<M: GuestMemory>(cpu: &mut CpuState, mem: &mut M, selector: u16, offset: u64) -> Result<(), Exception> {
    let descriptor = read_non_null(cpu, mem, selector)?;
    let (segment, target) = if descriptor.is_system() {
        let (descriptor, selector, offset) = through_gate(cpu, mem, descriptor, selector)?;
        let privileged =
            if descriptor.is_conforming() { descriptor.dpl() <= cpu.cpl } else { descriptor.dpl() == cpu.cpl };
        load_code(mem, descriptor, selector, offset, cpu.cpl, privileged)?
    } else {
        load_code(mem, descriptor, selector, offset, cpu.cpl, direct_rule(cpu, descriptor, selector))?
    };
    *cpu.segment_mut(SegmentIndex::Cs) = segment;
    cpu.rip = target;
    Ok(())
}

/// Far CALL to `selector:offset` with return slots of `size`; through a call gate slots have 8 bytes, and the stack is
/// switched when the gate leads to an inner privilege level.
pub fn far_call<M: GuestMemory>(
    cpu: &mut CpuState,
    mem: &mut M,
    selector: u16,
    offset: u64,
    size: OperandSize,
) -> Result<(), Exception> {
    let descriptor = read_non_null(cpu, mem, selector)?;
    let cs = u64::from(cpu.segment(SegmentIndex::Cs).selector);
    if !descriptor.is_system() {
        let privileged = direct_rule(cpu, descriptor, selector);
        let (segment, target) = load_code(mem, descriptor, selector, offset, cpu.cpl, privileged)?;
        let stack = Stack::of(cpu);
        let rsp = stack.push(mem, size, &[cs, cpu.rip], cpu.privilege())?;
        stack.commit(cpu, rsp);
        *cpu.segment_mut(SegmentIndex::Cs) = segment;
        cpu.rip = target;
        return Ok(());
    }
    let (descriptor, selector, offset) = through_gate(cpu, mem, descriptor, selector)?;
    let cpl = if descriptor.is_conforming() { cpu.cpl } else { descriptor.dpl() };
    let privileged = descriptor.dpl() <= cpu.cpl;
    let (segment, target) = load_code(mem, descriptor, selector, offset, cpl, privileged)?;
    let rsp = cpu.reg(Gpr::Rsp);
    let rsp = if cpl < cpu.cpl {
        let stack = Stack::long(tss_stack_pointer(cpu, mem, cpl, 0, 0)?);
        let ss = u64::from(cpu.segment(SegmentIndex::Ss).selector);
        stack.push(mem, OperandSize::Qword, &[ss, rsp, cs, cpu.rip], Privilege::Supervisor)?
    } else {
        Stack::long(rsp).push(mem, OperandSize::Qword, &[cs, cpu.rip], cpu.privilege())?
    };
    if cpl < cpu.cpl {
        *cpu.segment_mut(SegmentIndex::Ss) = Segment::null_stack(cpl);
    }
    cpu.set_reg(Gpr::Rsp, rsp);
    *cpu.segment_mut(SegmentIndex::Cs) = segment;
    cpu.cpl = cpl;
    cpu.rip = target;
    Ok(())
}

/// Far RET that releases `release` bytes of arguments, to the same or an outer privilege level.
pub fn far_ret<M: GuestMemory>(
    cpu: &mut CpuState,
    mem: &mut M,
    size: OperandSize,
    release: u16,
) -> Result<(), Exception> {
    let stack = Stack::of(cpu);
    let privilege = cpu.privilege();
    let [offset, selector] = stack.pop(mem, size, 0, privilege)?;
    let (selector, release) = (selector as u16, u64::from(release));
    let descriptor = read_non_null(cpu, mem, selector)?;
    let cpl = rpl(selector);
    let code = load_code(mem, descriptor, selector, offset, cpl, return_rule(cpu, descriptor, selector))?;
    let used = 2 * size.bytes() + release;
    if cpl == cpu.cpl {
        stack.commit(cpu, stack.pointer.wrapping_add(used));
        *cpu.segment_mut(SegmentIndex::Cs) = code.0;
        cpu.rip = code.1;
        return Ok(());
    }
    let [rsp, ss] = stack.pop(mem, size, used, privilege)?;
    let ss = stack_segment(cpu, mem, ss as u16, cpl, descriptor.is_long())?;
    return_with_stack(cpu, code, ss, rsp.wrapping_add(release));
    Ok(())
}

/// IRET, IRETD and IRETQ. 64-bit mode always pops RSP and SS, compatibility mode only on a change of privilege.
pub fn iret<M: GuestMemory>(cpu: &mut CpuState, mem: &mut M, size: OperandSize) -> Result<(), Exception> {
    require(!cpu.flags().contains(Rflags::NT), Exception::GP0)?;
    let stack = Stack::of(cpu);
    let privilege = cpu.privilege();
    let [offset, selector, flags] = stack.pop(mem, size, 0, privilege)?;
    let selector = selector as u16;
    let descriptor = read_non_null(cpu, mem, selector)?;
    let cpl = rpl(selector);
    let code = load_code(mem, descriptor, selector, offset, cpl, return_rule(cpu, descriptor, selector))?;
    let used = 3 * size.bytes();
    if cpl == cpu.cpl && !cpu.is_64bit() {
        stack.commit(cpu, stack.pointer.wrapping_add(used));
        iret_flags(cpu, flags, size);
        *cpu.segment_mut(SegmentIndex::Cs) = code.0;
        cpu.rip = code.1;
        return Ok(());
    }
    let [rsp, ss] = stack.pop(mem, size, used, privilege)?;
    let ss = stack_segment(cpu, mem, ss as u16, cpl, descriptor.is_long())?;
    // The flags that may change are those of the old privilege level.
    iret_flags(cpu, flags, size);
    return_with_stack(cpu, code, ss, rsp);
    Ok(())
}

/// Completes a return that loads CS:RIP and SS:RSP. Data segments that an outer level must not use become null; FS and
/// GS keep their bases, which are no longer tied to a selector.
fn return_with_stack(cpu: &mut CpuState, code: (Segment, u64), ss: Segment, rsp: u64) {
    let cpl = rpl(code.0.selector);
    let rsp = if code.0.is_long() { rsp } else { rsp & 0xFFFF_FFFF };
    if cpl > cpu.cpl {
        for index in [SegmentIndex::Es, SegmentIndex::Ds, SegmentIndex::Fs, SegmentIndex::Gs] {
            let segment = cpu.segment_mut(index);
            if segment.dpl() < cpl && !segment.is_null() && !segment.is_conforming() {
                segment.selector = 0;
                segment.attributes &= !Segment::PRESENT;
            }
        }
    }
    *cpu.segment_mut(SegmentIndex::Cs) = code.0;
    *cpu.segment_mut(SegmentIndex::Ss) = ss;
    cpu.set_reg(Gpr::Rsp, rsp);
    cpu.rip = code.1;
    cpu.cpl = cpl;
}

/// The stack of the executing code: flat and 64 bits wide in 64-bit mode, else within SS.
#[derive(Clone, Copy)]
pub(crate) struct Stack {
    base: u64,
    /// Bits of RSP that address the stack.
    mask: u64,
    /// Bits of a linear address.
    linear: u64,
    pointer: u64,
}

impl Stack {
    fn of(cpu: &CpuState) -> Self {
        let pointer = cpu.reg(Gpr::Rsp);
        let ss = cpu.segment(SegmentIndex::Ss);
        if cpu.is_64bit() {
            Self::long(pointer)
        } else {
            Self { base: ss.base, mask: if ss.is_big() { 0xFFFF_FFFF } else { 0xFFFF }, linear: 0xFFFF_FFFF, pointer }
        }
    }

    /// A 64-bit stack at `pointer`.
    pub(crate) const fn long(pointer: u64) -> Self {
        Self { base: 0, mask: u64::MAX, linear: u64::MAX, pointer }
    }

    /// Linear address of the `len` bytes at `pointer`; #SS(0) when not canonical.
    fn linear(&self, pointer: u64, len: u64) -> Result<u64, Exception> {
        let address = self.base.wrapping_add(pointer & self.mask) & self.linear;
        let last = address.wrapping_add(len - 1) & self.linear;
        require(is_canonical(address) && is_canonical(last), Exception::SS0)?;
        Ok(address)
    }

    /// Reads `N` slots of `size`, `skip` bytes above the stack pointer, which stays.
    fn pop<const N: usize, M: GuestMemory>(
        &self,
        mem: &mut M,
        size: OperandSize,
        skip: u64,
        privilege: Privilege,
    ) -> Result<[u64; N], Exception> {
        let mut values = [0; N];
        let mut pointer = self.pointer.wrapping_add(skip);
        for value in &mut values {
            let address = self.linear(pointer, size.bytes())?;
            let mut bytes = [0; 8];
            mem.read(address, &mut bytes[..size.bytes() as usize], privilege)?;
            *value = u64::from_le_bytes(bytes);
            pointer = pointer.wrapping_add(size.bytes());
        }
        Ok(values)
    }

    /// Pushes `values` (at most 8) in order, all or none; yields the new stack pointer.
    pub(crate) fn push<M: GuestMemory>(
        &self,
        mem: &mut M,
        size: OperandSize,
        values: &[u64],
        privilege: Privilege,
    ) -> Result<u64, Exception> {
        let slot = size.bytes() as usize;
        let mut image = [0; 64];
        for (bytes, value) in image.chunks_exact_mut(slot).zip(values.iter().rev()) {
            bytes.copy_from_slice(&value.to_le_bytes()[..slot]);
        }
        let len = slot * values.len();
        let pointer = self.pointer.wrapping_sub(len as u64);
        mem.write(self.linear(pointer, len as u64)?, &image[..len], privilege)?;
        Ok(pointer)
    }

    /// Makes `pointer` the stack pointer, leaving bits of RSP that do not address the stack.
    fn commit(&self, cpu: &mut CpuState, pointer: u64) {
        let kept = if self.mask == 0xFFFF { cpu.reg(Gpr::Rsp) & !self.mask } else { 0 };
        cpu.set_reg(Gpr::Rsp, pointer & self.mask | kept);
    }
}
