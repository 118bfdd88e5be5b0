//! User-mode register state: as a thread has it, in a KTRAP_FRAME, and as a CONTEXT.
//!
//! While a thread is in the kernel its user registers are in two places: the trap frame at the top of its kernel stack,
//! and, for R12 to R15 and XMM6 to XMM15, still in the registers themselves, because the guest kernel preserves them.

use lstar_arch::state::X87State;
use lstar_arch::{Gpr, PageFault};
use lstar_guest_images::layout::{TRAP_FRAME_BIAS, ktrap_frame as frame};
use lstar_runtime::{AddressSpace, Registers, Vcpu};

use crate::memory::HIGHEST_USER_ADDRESS;
use crate::user_ptr::GuestValue;

/// Selectors of 64-bit user mode.
pub const USER_CS: u16 = 0x33;
/// Data and stack selector of user mode.
pub const USER_SS: u16 = 0x2B;
/// Selector that user mode has in FS.
const USER_FS: u16 = 0x53;

/// CONTEXT_* flags.
pub mod flags {
    /// CONTEXT_AMD64.
    pub const AMD64: u32 = 0x10_0000;
    /// CONTEXT_CONTROL: CS, SS, RIP, RSP, EFLAGS.
    pub const CONTROL: u32 = 0x1;
    /// CONTEXT_INTEGER: the other general-purpose registers.
    pub const INTEGER: u32 = 0x2;
    /// CONTEXT_SEGMENTS.
    pub const SEGMENTS: u32 = 0x4;
    /// CONTEXT_FLOATING_POINT: x87, XMM, MXCSR.
    pub const FLOATING_POINT: u32 = 0x8;
    /// CONTEXT_DEBUG_REGISTERS.
    pub const DEBUG_REGISTERS: u32 = 0x10;
    /// CONTEXT_ALL.
    pub const ALL: u32 = AMD64 | CONTROL | INTEGER | SEGMENTS | FLOATING_POINT | DEBUG_REGISTERS;
}

/// RFLAGS bits that user mode may set: all arithmetic ones, TF, DF, NT, RF, AC, ID.
const USER_RFLAGS: u64 = 0x25_4DD5;
/// DR7 bits that user mode may set: local enables, the two that are Windows' own, kinds and lengths.
const LEGAL_DR7: u64 = 0xFFFF_0355;
/// What Windows takes DR7.GE for, which modern processors ignore: TF steps by branches.
const TRACE_BRANCH: u64 = 1 << 9;
/// Bits that are always set in user mode: the fixed one and IF.
const FIXED_RFLAGS: u64 = 0x202;

/// The user-mode registers of a thread.
#[derive(Clone, Debug, PartialEq)]
pub struct UserContext {
    /// General-purpose registers, indexed by [`Gpr`].
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// XMM registers.
    pub xmm: [u128; 16],
    /// MXCSR.
    pub mxcsr: u32,
    /// x87 state.
    pub x87: X87State,
    /// DR0 to DR3, DR6, DR7.
    pub debug: [u64; 6],
}

impl Default for UserContext {
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: FIXED_RFLAGS,
            xmm: [0; 16],
            mxcsr: 0x1F80,
            x87: X87State::default(),
            debug: [0; 6],
        }
    }
}

/// Bytes of a trap frame.
pub const TRAP_FRAME_SIZE: u64 = frame::LAYOUT.size as u64;
/// General-purpose registers that live in the trap frame, with their fields.
const FRAME_GPRS: [(Gpr, u32); 12] = [
    (Gpr::Rax, frame::RAX),
    (Gpr::Rcx, frame::RCX),
    (Gpr::Rdx, frame::RDX),
    (Gpr::Rbx, frame::RBX),
    (Gpr::Rsp, frame::RSP),
    (Gpr::Rbp, frame::RBP),
    (Gpr::Rsi, frame::RSI),
    (Gpr::Rdi, frame::RDI),
    (Gpr::R8, frame::R8),
    (Gpr::R9, frame::R9),
    (Gpr::R10, frame::R10),
    (Gpr::R11, frame::R11),
];
const LIVE_GPRS: [Gpr; 4] = [Gpr::R12, Gpr::R13, Gpr::R14, Gpr::R15];
/// XMM registers that the trap frame holds; the rest stay live.
const FRAME_XMMS: usize = 6;
const DEBUG_INDICES: [usize; 6] = [0, 1, 2, 3, 6, 7];

/// A trap frame's bytes.
pub struct TrapFrame([u8; TRAP_FRAME_SIZE as usize]);

impl TrapFrame {
    /// Reads a frame of the guest kernel.
    pub fn read(space: &AddressSpace, address: u64) -> Result<Self, PageFault> {
        let mut bytes = [0; TRAP_FRAME_SIZE as usize];
        space.read_unchecked(address, &mut bytes)?;
        Ok(Self(bytes))
    }

    /// Writes it back.
    pub fn write(&self, space: &mut AddressSpace, address: u64) -> Result<(), PageFault> {
        space.write_unchecked(address, &self.0)
    }

    /// A field by its offset.
    #[must_use]
    pub fn get<T: GuestValue>(&self, field: u32) -> T {
        T::from_bytes(&self.0[field as usize..])
    }

    /// Sets a field.
    pub fn set<T: GuestValue>(&mut self, field: u32, value: T) {
        value.to_bytes(&mut self.0[field as usize..]);
    }

    /// Whether it interrupted user mode.
    #[must_use]
    pub fn is_user(&self) -> bool {
        self.get::<u16>(frame::SEG_CS) & 1 != 0
    }
}

impl UserContext {
    /// The state in which a thread starts: x87 precision is 53 bits, unlike after FNINIT.
    #[must_use]
    pub fn of_new_thread() -> Self {
        let mut context = Self::default();
        context.x87.control = 0x27F;
        context
    }

    /// The state of a thread that is in user mode.
    #[must_use]
    pub fn of_registers(registers: &impl Registers) -> Self {
        Self {
            gpr: Gpr::ALL.map(|register| registers.reg(register)),
            rip: registers.rip(),
            rflags: registers.rflags(),
            xmm: std::array::from_fn(|index| registers.xmm(index)),
            mxcsr: registers.mxcsr(),
            x87: *registers.x87(),
            debug: DEBUG_INDICES.map(|index| registers.debug_register(index)),
        }
    }

    /// The state of a thread that is in the kernel, below the trap frame at `address`.
    pub fn of_frame(registers: &impl Registers, space: &AddressSpace, address: u64) -> Result<Self, PageFault> {
        let trap = TrapFrame::read(space, address)?;
        let mut context = Self::of_registers(registers);
        for (register, field) in FRAME_GPRS {
            context.gpr[register as usize] = trap.get(field);
        }
        for index in 0..FRAME_XMMS {
            context.xmm[index] = trap.get(frame::XMM0 + 16 * index as u32);
        }
        context.rip = trap.get(frame::RIP);
        context.rflags = u64::from(trap.get::<u32>(frame::EFLAGS));
        context.mxcsr = trap.get(frame::MXCSR);
        Ok(context)
    }

    /// Puts the state on a thread in user mode.
    pub fn to_registers(&self, registers: &mut impl Registers) {
        for register in Gpr::ALL {
            registers.set_reg(register, self.gpr[register as usize]);
        }
        registers.set_rip(self.rip);
        registers.set_rflags(self.rflags & USER_RFLAGS | FIXED_RFLAGS);
        for (index, value) in self.xmm.iter().enumerate() {
            registers.set_xmm(index, *value);
        }
        self.put_rest(registers);
        registers.set_mxcsr(self.mxcsr);
    }

    /// Puts the state where a thread has it that is in the kernel: the trap frame's part in guest memory ...
    pub fn to_frame(&self, space: &mut AddressSpace, address: u64) -> Result<(), PageFault> {
        let mut trap = TrapFrame::read(space, address)?;
        for (register, field) in FRAME_GPRS {
            trap.set(field, self.gpr[register as usize]);
        }
        for (index, value) in self.xmm.iter().take(FRAME_XMMS).enumerate() {
            trap.set(frame::XMM0 + 16 * index as u32, *value);
        }
        trap.set(frame::RIP, self.rip);
        trap.set(frame::EFLAGS, (self.rflags & USER_RFLAGS | FIXED_RFLAGS) as u32);
        trap.set(frame::SEG_CS, USER_CS);
        trap.set(frame::SEG_SS, USER_SS);
        trap.set(frame::MXCSR, self.mxcsr & 0xFFFF);
        trap.write(space, address)
    }

    /// ... and the part that stays in registers. The guest kernel must then leave by the exit that restores everything.
    pub fn to_live_registers(&self, registers: &mut impl Registers) {
        for register in LIVE_GPRS {
            registers.set_reg(register, self.gpr[register as usize]);
        }
        for (index, value) in self.xmm.iter().enumerate().skip(FRAME_XMMS) {
            registers.set_xmm(index, *value);
        }
        self.put_rest(registers);
    }

    /// Both, for the thread on the processor.
    pub fn apply(&self, vcpu: &mut Vcpu<'_>, frame: u64) -> Result<(), PageFault> {
        self.to_frame(vcpu.memory, frame)?;
        self.to_live_registers(vcpu);
        Ok(())
    }

    fn put_rest(&self, registers: &mut impl Registers) {
        *registers.x87_mut() = self.x87;
        let [addresses @ .., status, control] = self.debug;
        for (index, address) in addresses.into_iter().enumerate() {
            // User mode does not break into the kernel.
            registers.set_debug_register(index, if address <= HIGHEST_USER_ADDRESS { address } else { 0 });
        }
        registers.set_debug_register(6, status);
        registers.set_debug_register(7, control & LEGAL_DR7);
        registers.set_steps_by_branches(control & TRACE_BRANCH != 0);
    }

    /// A general-purpose register.
    #[must_use]
    pub const fn reg(&self, register: Gpr) -> u64 {
        self.gpr[register as usize]
    }

    /// Sets a general-purpose register.
    pub const fn set_reg(&mut self, register: Gpr, value: u64) {
        self.gpr[register as usize] = value;
    }
}

/// The address of the trap frame that RBP points into while the guest kernel runs.
#[must_use]
pub fn current_frame(registers: &impl Registers) -> u64 {
    registers.reg(Gpr::Rbp).wrapping_sub(u64::from(TRAP_FRAME_BIAS))
}

/// Bytes of a CONTEXT.
pub const CONTEXT_SIZE: usize = 0x4D0;

/// Offsets of CONTEXT's fields.
mod offset {
    pub const CONTEXT_FLAGS: usize = 0x30;
    pub const MXCSR: usize = 0x34;
    pub const SEGMENTS: usize = 0x38;
    pub const EFLAGS: usize = 0x44;
    pub const DEBUG: usize = 0x48;
    pub const GPRS: usize = 0x78;
    pub const RIP: usize = 0xF8;
    pub const FLOAT_SAVE: usize = 0x100;
    pub const FLOAT_REGISTERS: usize = 0x120;
    pub const XMM: usize = 0x1A0;
}

fn get<T: GuestValue>(bytes: &[u8; CONTEXT_SIZE], at: usize) -> T {
    T::from_bytes(&bytes[at..])
}

fn put<T: GuestValue>(bytes: &mut [u8; CONTEXT_SIZE], at: usize, value: T) {
    value.to_bytes(&mut bytes[at..]);
}

/// ContextFlags of a CONTEXT.
#[must_use]
pub fn context_flags(bytes: &[u8; CONTEXT_SIZE]) -> u32 {
    get(bytes, offset::CONTEXT_FLAGS)
}

impl UserContext {
    /// Writes the parts that `wanted` names into a CONTEXT, and its flags.
    pub fn store(&self, bytes: &mut [u8; CONTEXT_SIZE], wanted: u32) {
        put(bytes, offset::CONTEXT_FLAGS, wanted);
        if wanted & flags::CONTROL != 0 {
            put(bytes, offset::SEGMENTS, USER_CS);
            put(bytes, offset::SEGMENTS + 10, USER_SS);
            put(bytes, offset::EFLAGS, self.rflags as u32);
            put(bytes, offset::GPRS + 8 * Gpr::Rsp as usize, self.reg(Gpr::Rsp));
            put(bytes, offset::RIP, self.rip);
        }
        if wanted & flags::INTEGER != 0 {
            for register in Gpr::ALL.into_iter().filter(|&register| register != Gpr::Rsp) {
                put(bytes, offset::GPRS + 8 * register as usize, self.reg(register));
            }
        }
        if wanted & flags::SEGMENTS != 0 {
            // DS, ES, FS, GS.
            put(bytes, offset::SEGMENTS + 2, [USER_SS, USER_SS, USER_FS, USER_SS]);
        }
        if wanted & flags::FLOATING_POINT != 0 {
            put(bytes, offset::MXCSR, self.mxcsr);
            self.store_float(bytes);
        }
        if wanted & flags::DEBUG_REGISTERS != 0 {
            put(bytes, offset::DEBUG, self.debug);
        }
    }

    /// The legacy FXSAVE image (SDM vol. 1, 10.5.1).
    fn store_float(&self, bytes: &mut [u8; CONTEXT_SIZE]) {
        let area = offset::FLOAT_SAVE;
        put(bytes, area, self.x87.control);
        put(bytes, area + 2, self.x87.status);
        put(bytes, area + 4, self.x87.valid);
        put(bytes, area + 6, self.x87.opcode);
        put(bytes, area + 8, self.x87.instruction_pointer);
        put(bytes, area + 16, self.x87.data_pointer);
        put(bytes, area + 24, self.mxcsr);
        put(bytes, area + 28, 0xFFFFu32);
        let top = usize::from(self.x87.status >> 11 & 7);
        for index in 0..8 {
            let register = self.x87.registers[(top + index) % 8];
            bytes[offset::FLOAT_REGISTERS + 16 * index..][..10].copy_from_slice(&register[..10]);
        }
        put(bytes, offset::XMM, self.xmm);
    }

    /// Takes the parts of a CONTEXT that its flags name.
    pub fn load(&mut self, bytes: &[u8; CONTEXT_SIZE]) {
        let present = context_flags(bytes);
        if present & flags::CONTROL != 0 {
            self.rflags = u64::from(get::<u32>(bytes, offset::EFLAGS)) & USER_RFLAGS | FIXED_RFLAGS;
            self.set_reg(Gpr::Rsp, get(bytes, offset::GPRS + 8 * Gpr::Rsp as usize));
            self.rip = get(bytes, offset::RIP);
        }
        if present & flags::INTEGER != 0 {
            for register in Gpr::ALL.into_iter().filter(|&register| register != Gpr::Rsp) {
                self.set_reg(register, get(bytes, offset::GPRS + 8 * register as usize));
            }
        }
        if present & flags::FLOATING_POINT != 0 {
            self.mxcsr = get::<u32>(bytes, offset::MXCSR) & 0xFFFF;
            let area = offset::FLOAT_SAVE;
            self.x87.control = get(bytes, area);
            self.x87.status = get(bytes, area + 2);
            self.x87.valid = get(bytes, area + 4);
            self.x87.opcode = get::<u16>(bytes, area + 6) & 0x7FF;
            self.x87.instruction_pointer = get(bytes, area + 8);
            self.x87.data_pointer = get(bytes, area + 16);
            let top = usize::from(self.x87.status >> 11 & 7);
            for index in 0..8 {
                let image = &bytes[offset::FLOAT_REGISTERS + 16 * index..][..10];
                self.x87.registers[(top + index) % 8][..10].copy_from_slice(image);
            }
            self.xmm = get(bytes, offset::XMM);
        }
        if present & flags::DEBUG_REGISTERS != 0 {
            self.debug = get(bytes, offset::DEBUG);
        }
    }
}

#[cfg(test)]
mod tests {
    use lstar_arch::{CpuModel, CpuState};

    use super::*;

    fn sample() -> UserContext {
        let mut context = UserContext { rip: 0x1234, rflags: 0x246, mxcsr: 0x1FA0, ..Default::default() };
        context.gpr = std::array::from_fn(|index| 0x100 + index as u64);
        context.xmm = std::array::from_fn(|index| 0x55 << (index * 4) | 1);
        context.x87.status = 3 << 11;
        context.x87.registers =
            std::array::from_fn(|index| std::array::from_fn(|b| if b < 10 { index as u8 } else { 0 }));
        context.debug = [1, 2, 3, 4, 5, 6];
        context
    }

    #[test]
    fn a_context_survives_the_round_trip() {
        let mut bytes = [0; CONTEXT_SIZE];
        sample().store(&mut bytes, flags::ALL);
        let mut back = UserContext::default();
        back.load(&bytes);
        assert_eq!(back, sample());
        // winnt.h: Rip at F8h, Rsp at 98h, SegSs at 42h, first x87 register is ST(0).
        assert_eq!(bytes[0xF8..0x100], 0x1234u64.to_le_bytes());
        assert_eq!(bytes[0x98..0xA0], 0x104u64.to_le_bytes());
        assert_eq!(bytes[0x42..0x44], [0x2B, 0]);
        assert_eq!(bytes[0x120], 3);
    }

    #[test]
    fn debug_registers_stay_in_user_mode() {
        let mut registers = CpuState::new(CpuModel::INTEL);
        let mut context = sample();
        context.debug = [0x1000, HIGHEST_USER_ADDRESS + 1, u64::MAX, 4, 0x4001, 0xFFFF_FFFF];
        context.to_registers(&mut registers);
        assert_eq!(registers.dr[..4], [0x1000, 0, 0, 4]);
        assert_eq!((registers.dr[6], registers.dr[7]), (0xFFFF_4FF1, 0xFFFF_0755), "no global enables, no GD");
        assert_eq!(registers.debugctl, 2, "DR7.GE asks for steps by branches");
        context.debug[5] = 1;
        context.to_registers(&mut registers);
        assert_eq!(registers.debugctl, 0);
    }

    #[test]
    fn only_named_parts_are_taken() {
        let mut bytes = [0; CONTEXT_SIZE];
        sample().store(&mut bytes, flags::AMD64 | flags::CONTROL);
        let mut back = UserContext::default();
        back.load(&bytes);
        assert_eq!((back.rip, back.reg(Gpr::Rsp), back.reg(Gpr::Rax)), (0x1234, 0x104, 0));
        put(&mut bytes, offset::EFLAGS, u32::MAX);
        back.load(&bytes);
        assert_eq!(back.rflags & !USER_RFLAGS, FIXED_RFLAGS, "IOPL, VM and the like stay as they are");
    }
}
