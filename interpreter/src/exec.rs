//! The context in which one instruction executes: processor, memory, decoded instruction.

use iced_x86::{Instruction, Register};
use lstar_arch::{CpuState, Exception, GuestMemory, SegmentIndex, is_canonical};

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
}

impl<M: GuestMemory> Exec<'_, M> {
    /// Base of the segment that `register` (CS, DS, ..) names; in 64-bit mode only FS and GS have one.
    pub fn segment_base(&self, register: Register) -> u64 {
        let index = match register {
            Register::FS => SegmentIndex::Fs,
            Register::GS => SegmentIndex::Gs,
            _ if self.cpu.is_64bit() => return 0,
            Register::ES => SegmentIndex::Es,
            Register::CS => SegmentIndex::Cs,
            Register::SS => SegmentIndex::Ss,
            _ => SegmentIndex::Ds,
        };
        self.cpu.segment(index).base
    }

    /// Offset of the memory operand within its segment, truncated to the address size: what LEA yields.
    pub fn effective_address(&self) -> u64 {
        let insn = self.insn;
        if insn.is_ip_rel_memory_operand() {
            return insn.ip_rel_memory_address();
        }
        let mut address = insn.memory_displacement64();
        if insn.memory_base() != Register::None {
            address = address.wrapping_add(self.gpr(insn.memory_base()));
        }
        if insn.memory_index() != Register::None {
            address =
                address.wrapping_add(self.gpr(insn.memory_index()).wrapping_mul(u64::from(insn.memory_index_scale())));
        }
        let narrow = insn.memory_base().is_gpr32() || insn.memory_index().is_gpr32();
        if narrow || insn.memory_displ_size() == 4 && !self.cpu.is_64bit() { address & 0xFFFF_FFFF } else { address }
    }

    /// Linear address of the memory operand.
    pub fn linear_address(&self) -> u64 {
        let linear = self.effective_address().wrapping_add(self.segment_base(self.insn.memory_segment()));
        if self.cpu.is_64bit() { linear } else { linear & 0xFFFF_FFFF }
    }

    /// The exception for a non-canonical memory operand: #SS(0) for stack-segment references, else #GP(0).
    pub fn non_canonical(&self) -> Exception {
        if self.insn.memory_segment() == Register::SS { Exception::SS0 } else { Exception::GP0 }
    }

    /// Loads `N` bytes of the memory operand or of any linear address derived from it.
    #[inline]
    pub fn load<const N: usize>(&mut self, linear: u64) -> Result<[u8; N], Exception> {
        if !is_canonical(linear) || !is_canonical(linear.wrapping_add(N as u64 - 1)) {
            return Err(self.non_canonical());
        }
        Ok(self.mem.load(linear, self.cpu.privilege())?)
    }

    /// Stores `N` bytes at a linear address derived from the memory operand.
    #[inline]
    pub fn store<const N: usize>(&mut self, linear: u64, data: [u8; N]) -> Op {
        if !is_canonical(linear) || !is_canonical(linear.wrapping_add(N as u64 - 1)) {
            return Err(self.non_canonical());
        }
        Ok(self.mem.store(linear, data, self.cpu.privilege())?)
    }

    /// Value of a general-purpose register of any width, zero-extended.
    #[inline]
    pub fn gpr(&self, register: Register) -> u64 {
        let full = self.cpu.gpr[register.full_register().number()];
        match register.size() {
            8 => full,
            4 => full & 0xFFFF_FFFF,
            2 => full & 0xFFFF,
            _ if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) => full >> 8 & 0xFF,
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
            _ if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) => {
                *full & !0xFF00 | (value & 0xFF) << 8
            }
            _ => *full & !0xFF | value & 0xFF,
        };
    }
}
