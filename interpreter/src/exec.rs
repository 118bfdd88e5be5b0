//! The context in which one instruction executes: processor, memory, decoded instruction.

use iced_x86::{Instruction, Register};
use lstar_arch::cpuid::Features;
use lstar_arch::{CpuState, Exception, Gpr, GuestMemory, SegmentIndex, is_canonical};

use crate::decode::{Decoded, Place, is_high_byte, segment};
use crate::flags::{STATUS, mask};
use crate::limits;

/// Result of an instruction's body. On `Err` nothing visible has changed except what the manual says.
pub(crate) type Op = Result<(), Exception>;

/// One instruction in flight.
pub(crate) struct Exec<'a, M: GuestMemory> {
    /// The processor. `rip` already points behind the instruction; the driver puts it back on a fault.
    pub cpu: &'a mut CpuState,
    /// Guest memory.
    pub mem: &'a mut M,
    /// The decoded instruction.
    pub insn: &'a Instruction,
    /// The same with its operands prepared.
    pub decoded: &'a Decoded,
}

/// Whether the first eight of the x87's ten-byte operands are canonical: the processor accesses the others separately, after them.
pub(crate) fn is_split<const N: usize>(linear: u64) -> bool {
    N == 10 && is_canonical(linear) && is_canonical(linear.wrapping_add(7))
}

impl<'a, M: GuestMemory> Exec<'a, M> {
    pub fn new(cpu: &'a mut CpuState, mem: &'a mut M, decoded: &'a Decoded) -> Self {
        Self { cpu, mem, insn: &decoded.insn, decoded }
    }

    /// Base of the segment that `register` (CS, DS, ..) names; in 64-bit mode only FS and GS have one.
    pub fn segment_base(&self, register: Register) -> u64 {
        segment(register, self.cpu.is_64bit()).map_or(0, |index| self.cpu.segment(index).base)
    }

    /// Offset of the memory operand within its segment, truncated to the address size: what LEA yields.
    #[inline]
    pub fn effective_address(&self) -> u64 {
        self.decoded.effective_address(&self.cpu.gpr)
    }

    /// Linear address of the memory operand.
    #[inline]
    pub fn linear_address(&self) -> u64 {
        let offset = self.effective_address();
        match self.decoded.segment() {
            None => offset,
            Some(index) => self.linear(self.cpu.segments[index].base.wrapping_add(offset)),
        }
    }

    /// Truncates a linear address in compatibility mode.
    #[inline]
    pub fn linear(&self, address: u64) -> u64 {
        if self.cpu.is_64bit() { address } else { address & 0xFFFF_FFFF }
    }

    /// The exception for a non-canonical memory operand: #SS(0) for stack-segment references, else #GP(0). In 64-bit mode
    /// overrides other than FS and GS are ignored, so that the base register alone decides.
    #[cold]
    pub fn non_canonical(&self) -> Exception {
        let ignored = matches!(self.insn.segment_prefix(), Register::CS | Register::DS | Register::ES | Register::SS);
        let stack = if ignored && self.cpu.is_64bit() {
            matches!(self.insn.memory_base(), Register::RSP | Register::RBP | Register::ESP | Register::EBP)
        } else {
            self.insn.memory_segment() == Register::SS
        };
        if stack { Exception::SS0 } else { Exception::GP0 }
    }

    /// Whether no access of `size` bytes can be made at a linear address: it is not canonical, or the segment of compatibility-mode
    /// code ends at 4 GiB at the latest.
    #[inline]
    pub fn is_out_of_reach(&self, linear: u64, size: u64) -> bool {
        let last = linear.wrapping_add(size - 1);
        if self.cpu.is_64bit() {
            return !is_canonical(linear) || !is_canonical(last);
        }
        last > u64::from(u32::MAX)
    }

    /// Loads `N` bytes of the memory operand or of any linear address derived from it.
    #[inline]
    pub fn load<const N: usize>(&mut self, linear: u64) -> Result<[u8; N], Exception> {
        if self.is_out_of_reach(linear, N as u64) {
            if is_split::<N>(linear) {
                self.load::<8>(linear)?;
            }
            return Err(self.non_canonical());
        }
        Ok(self.mem.load(linear, self.cpu.privilege())?)
    }

    /// Stores `N` bytes at a linear address derived from the memory operand.
    #[inline]
    pub fn store<const N: usize>(&mut self, linear: u64, data: [u8; N]) -> Op {
        if self.is_out_of_reach(linear, N as u64) {
            return Err(self.non_canonical());
        }
        Ok(self.mem.store(linear, data, self.cpu.privilege())?)
    }

    /// Loads `size` (1, 2, 4 or 8) bytes, zero-extended.
    #[inline]
    pub fn load_sized(&mut self, linear: u64, size: u8) -> Result<u64, Exception> {
        Ok(match size {
            1 => u64::from(u8::from_le_bytes(self.load(linear)?)),
            2 => u64::from(u16::from_le_bytes(self.load(linear)?)),
            4 => u64::from(u32::from_le_bytes(self.load(linear)?)),
            _ => u64::from_le_bytes(self.load(linear)?),
        })
    }

    /// Stores the low `size` (1, 2, 4 or 8) bytes of `value`.
    #[inline]
    pub fn store_sized(&mut self, linear: u64, value: u64, size: u8) -> Op {
        match size {
            1 => self.store(linear, (value as u8).to_le_bytes()),
            2 => self.store(linear, (value as u16).to_le_bytes()),
            4 => self.store(linear, (value as u32).to_le_bytes()),
            _ => self.store(linear, value.to_le_bytes()),
        }
    }

    /// Like [`Exec::load_sized`] for an instruction that will store to the same place: its #PF reports a write, at the
    /// first byte that cannot be written.
    #[inline]
    pub fn load_for_store(&mut self, linear: u64, size: u8) -> Result<u64, Exception> {
        self.load_sized(linear, size).map_err(|exception| self.as_write(linear, size, exception))
    }

    /// The exception of a load that was to be followed by a store to the same place.
    #[cold]
    fn as_write(&mut self, linear: u64, size: u8, exception: Exception) -> Exception {
        if exception.cr2.is_none() {
            return exception;
        }
        match self.mem.probe_write(linear, u64::from(size), self.cpu.privilege()) {
            Err(fault) => fault.into(),
            Ok(()) => exception,
        }
    }

    /// Size of explicit operand `i` in bytes.
    #[inline]
    pub fn size(&self, i: usize) -> u8 {
        self.decoded.operands[i].size
    }

    /// Value of explicit operand `i` (general-purpose register, memory or immediate), zero-extended.
    #[inline(always)]
    pub fn read(&mut self, i: usize) -> Result<u64, Exception> {
        let operand = self.decoded.operands[i];
        match operand.place {
            Place::Gpr => Ok(self.cpu.gpr[usize::from(operand.register & 15)] >> operand.shift & mask(operand.size)),
            Place::Immediate => Ok(self.decoded.immediate & mask(operand.size)),
            Place::Memory => self.load_sized(self.linear_address(), operand.size),
            Place::Other => Err(Exception::UD),
        }
    }

    /// Value of operand 0 of a read-modify-write instruction: a #PF reports a write, as hardware does.
    #[inline(always)]
    pub fn read_destination(&mut self) -> Result<u64, Exception> {
        match self.decoded.operands[0].place {
            Place::Memory => self.load_for_store(self.linear_address(), self.size(0)),
            _ => self.read(0),
        }
    }

    /// Writes explicit operand `i` (general-purpose register or memory).
    #[inline(always)]
    pub fn write(&mut self, i: usize, value: u64) -> Op {
        let operand = self.decoded.operands[i];
        match operand.place {
            Place::Gpr => {
                let full = &mut self.cpu.gpr[usize::from(operand.register & 15)];
                let kept = match operand.size {
                    4 | 8 => 0,
                    size => *full & !(mask(size) << operand.shift),
                };
                *full = kept | (value & mask(operand.size)) << operand.shift;
                Ok(())
            }
            Place::Memory => self.store_sized(self.linear_address(), value, operand.size),
            Place::Immediate | Place::Other => Err(Exception::UD),
        }
    }

    /// Replaces the flags in `which` by those bits of `flags`.
    #[inline]
    pub fn set_flags(&mut self, which: u64, flags: u64) {
        self.cpu.rflags = self.cpu.rflags & !which | flags & which;
    }

    /// Replaces all six status flags.
    #[inline]
    pub fn set_status(&mut self, flags: u64) {
        self.set_flags(STATUS, flags);
    }

    /// #UD unless the processor model advertises `feature`.
    #[inline]
    pub fn require(&self, feature: Features) -> Op {
        if self.cpu.model.features.contains(feature) { Ok(()) } else { Err(Exception::UD) }
    }

    /// Value of a general-purpose register of any width, zero-extended.
    #[inline]
    pub fn gpr(&self, register: Register) -> u64 {
        let full = self.cpu.gpr[register.full_register().number()];
        match register.size() {
            8 => full,
            4 => full & 0xFFFF_FFFF,
            2 => full & 0xFFFF,
            _ if is_high_byte(register) => full >> 8 & 0xFF,
            _ => full & 0xFF,
        }
    }

    /// Writes a general-purpose register: a 32-bit write clears the upper half, narrower ones merge.
    #[inline]
    pub fn set_gpr(&mut self, register: Register, value: u64) {
        let full = &mut self.cpu.gpr[register.full_register().number()];
        *full = match register.size() {
            8 => value,
            4 => value & 0xFFFF_FFFF,
            2 => *full & !0xFFFF | value & 0xFFFF,
            _ if is_high_byte(register) => *full & !0xFF00 | (value & 0xFF) << 8,
            _ => *full & !0xFF | value & 0xFF,
        };
    }

    /// Writes the `size` low bytes of a register of the given number (not AH..BH).
    #[inline]
    pub fn set_register(&mut self, register: Gpr, value: u64, size: u8) {
        let kept = if size >= 4 { 0 } else { self.cpu.reg(register) & !mask(size) };
        self.cpu.set_reg(register, kept | value & mask(size));
    }

    /// Width of the stack pointer in bytes: 8 in 64-bit mode, else by SS.B.
    #[inline]
    pub fn stack_size(&self) -> u8 {
        match self.cpu.is_64bit() {
            true => 8,
            false if self.cpu.segment(SegmentIndex::Ss).is_big() => 4,
            false => 2,
        }
    }

    /// Linear address of a stack offset.
    fn stack_linear(&self, offset: u64) -> u64 {
        if self.cpu.is_64bit() {
            offset
        } else {
            self.linear(offset.wrapping_add(self.cpu.segment(SegmentIndex::Ss).base))
        }
    }

    /// Loads from the stack without moving the stack pointer; `offset` is relative to SS.
    #[inline]
    pub fn load_stack(&mut self, offset: u64, size: u8) -> Result<u64, Exception> {
        let linear = self.stack_linear(offset);
        if self.is_out_of_reach(linear, size.into()) {
            return Err(Exception::SS0);
        }
        self.load_sized(linear, size)
    }

    /// Stores to the stack without moving the stack pointer.
    #[inline]
    pub fn store_stack(&mut self, offset: u64, value: u64, size: u8) -> Op {
        let linear = self.stack_linear(offset);
        if self.is_out_of_reach(linear, size.into()) {
            return Err(Exception::SS0);
        }
        self.store_sized(linear, value, size)
    }

    /// Pushes the low `size` bytes of `value`; RSP moves only when the store succeeded.
    #[inline]
    pub fn push(&mut self, value: u64, size: u8) -> Op {
        let width = self.stack_size();
        let top = self.cpu.reg(Gpr::Rsp).wrapping_sub(u64::from(size)) & mask(width);
        self.store_stack(top, value, size)?;
        self.set_register(Gpr::Rsp, top, width);
        Ok(())
    }

    /// Pops `size` bytes.
    #[inline]
    pub fn pop(&mut self, size: u8) -> Result<u64, Exception> {
        let width = self.stack_size();
        let top = self.cpu.reg(Gpr::Rsp) & mask(width);
        let value = self.load_stack(top, size)?;
        self.set_register(Gpr::Rsp, top.wrapping_add(u64::from(size)), width);
        Ok(value)
    }

    /// Whether a near branch target is a place to execute from; #GP(0) when it is not canonical, or beyond the limit of a
    /// code segment of compatibility mode.
    #[inline]
    pub fn check_target(&self, target: u64) -> Op {
        if !is_canonical(target) {
            return Err(Exception::GP0);
        }
        limits::check_target(self.cpu, target)
    }

    /// Moves RIP to a near branch target, which is checked.
    #[inline]
    pub fn jump(&mut self, target: u64) -> Op {
        self.check_target(target)?;
        self.cpu.rip = target;
        Ok(())
    }
}
