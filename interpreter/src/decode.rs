//! What the interpreter keeps of a decoded instruction: iced's form plus the operands in directly usable shape, so that
//! executing it again costs no table look-ups.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use lstar_arch::SegmentIndex;

/// Where an operand lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Place {
    /// A general-purpose register or a part of one.
    Gpr,
    /// The immediate, or a near branch's target.
    Immediate,
    /// The memory operand.
    Memory,
    /// Anything else: vector, segment and control registers, implicit string operands, far pointers.
    Other,
}

/// One explicit operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    pub place: Place,
    /// Number of the general-purpose register.
    pub register: u8,
    /// Bits the register is shifted right by: 8 for AH, CH, DH and BH.
    pub shift: u8,
    /// Size in bytes.
    pub size: u8,
}

/// What the driver does after the instruction has retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum After {
    /// Goes on with the next instruction.
    Continue,
    /// Looks whether code was modified, then goes on.
    Stored,
    /// A near CALL; it has stored as well.
    Call,
    /// A near RET.
    Return,
    /// INT n.
    Interrupt,
    /// VMCALL.
    ServiceGate,
    /// HLT.
    Halt,
    /// SYSCALL.
    SystemCall,
    /// SYSRET.
    SystemReturn,
}

/// A decoded instruction.
#[derive(Clone, Debug)]
pub(crate) struct Decoded {
    pub insn: Instruction,
    pub mnemonic: Mnemonic,
    pub after: After,
    /// Low nibble of Jcc, SETcc and CMOVcc opcodes.
    pub condition: u8,
    pub operands: [Operand; 3],
    /// The immediate, sign-extended, or the target of a near branch.
    pub immediate: u64,
    /// Displacement of the memory operand; the whole address when it is relative to RIP.
    displacement: u64,
    /// Keeps what the address size leaves of an offset.
    address_mask: u64,
    base: u8,
    index: u8,
    scale: u8,
    segment: u8,
}

const NONE: u8 = u8::MAX;

impl Decoded {
    pub fn new(insn: Instruction, is_64bit: bool) -> Self {
        let mut operands = [Operand { place: Place::Other, register: 0, shift: 0, size: 0 }; 3];
        let mut immediate = 0;
        for (i, operand) in operands.iter_mut().enumerate().take(insn.op_count() as usize) {
            match insn.op_kind(i as u32) {
                OpKind::Register if insn.op_register(i as u32).is_gpr() => {
                    let register = insn.op_register(i as u32);
                    *operand = Operand {
                        place: Place::Gpr,
                        register: register.full_register().number() as u8,
                        shift: if is_high_byte(register) { 8 } else { 0 },
                        size: register.size() as u8,
                    };
                }
                OpKind::Memory => {
                    *operand =
                        Operand { place: Place::Memory, register: 0, shift: 0, size: insn.memory_size().size() as u8 };
                }
                OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                    operand.place = Place::Immediate;
                    operand.size = 8;
                    immediate = insn.near_branch_target();
                }
                OpKind::Immediate8
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate32to64
                | OpKind::Immediate64 => {
                    operand.place = Place::Immediate;
                    operand.size = 8;
                    immediate = insn.immediate(i as u32);
                }
                _ => {}
            }
        }
        let [first, second, third] = &mut operands;
        for other in [second, third] {
            if other.place == Place::Immediate && matches!(first.place, Place::Gpr | Place::Memory) && first.size != 0 {
                other.size = first.size;
            }
        }
        let relative = insn.is_ip_rel_memory_operand();
        let gpr_number = |register: Register| {
            if relative || !register.is_gpr() { NONE } else { register.full_register().number() as u8 }
        };
        Self {
            mnemonic: insn.mnemonic(),
            after: after(&insn),
            condition: (insn.condition_code() as u8).wrapping_sub(1) & 15,
            operands,
            immediate,
            displacement: if relative { insn.ip_rel_memory_address() } else { insn.memory_displacement64() },
            address_mask: u64::MAX >> (64 - 8 * address_size(&insn, is_64bit)),
            base: gpr_number(insn.memory_base()),
            index: gpr_number(insn.memory_index()),
            scale: insn.memory_index_scale().trailing_zeros() as u8,
            segment: segment(insn.memory_segment(), is_64bit).map_or(NONE, |index| index as u8),
            insn,
        }
    }

    /// Offset of the memory operand within its segment.
    #[inline]
    pub fn effective_address(&self, gpr: &[u64; 16]) -> u64 {
        let mut address = self.displacement;
        if let Some(base) = gpr.get(usize::from(self.base)) {
            address = address.wrapping_add(*base);
        }
        if let Some(index) = gpr.get(usize::from(self.index)) {
            address = address.wrapping_add(*index << self.scale);
        }
        address & self.address_mask
    }

    /// Keeps what the address size leaves of an offset.
    #[inline]
    pub fn truncate_address(&self, offset: u64) -> u64 {
        offset & self.address_mask
    }

    /// Index of the segment whose base is added to the memory operand's offset, if it can have one.
    #[inline]
    pub fn segment(&self) -> Option<usize> {
        (self.segment != NONE).then_some(usize::from(self.segment))
    }

    /// Whether the instruction must be the first one of its block: it reads the time-stamp counter, which is exact there.
    pub fn starts_block(&self) -> bool {
        matches!(self.mnemonic, Mnemonic::Rdtsc | Mnemonic::Rdtscp | Mnemonic::Rdmsr)
    }

    /// Whether the instruction must be the last one of its block.
    pub fn ends_block(&self) -> bool {
        use Mnemonic as M;
        self.insn.flow_control() != iced_x86::FlowControl::Next
            || self.insn.has_rep_prefix()
            || self.insn.has_repne_prefix()
            || matches!(self.mnemonic, M::Popf | M::Popfd | M::Popfq | M::Sti | M::Cli | M::Wrmsr | M::Hlt | M::Swapgs)
            || matches!(self.mnemonic, M::Lss | M::Lds | M::Les | M::Lfs | M::Lgs)
            || matches!(self.mnemonic, M::Mov | M::Pop) && self.mnemonic_touches_system()
    }

    /// MOV and POP with a segment, control or debug register.
    fn mnemonic_touches_system(&self) -> bool {
        let register = self.insn.op0_register();
        register.is_segment_register() || register.is_cr() || register.is_dr()
    }
}

/// AH, CH, DH or BH.
pub(crate) fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// The segment register that `register` names when it can have a base: in 64-bit mode only FS and GS.
pub(crate) fn segment(register: Register, is_64bit: bool) -> Option<SegmentIndex> {
    match register {
        Register::FS => Some(SegmentIndex::Fs),
        Register::GS => Some(SegmentIndex::Gs),
        Register::None => None,
        _ if is_64bit => None,
        Register::ES => Some(SegmentIndex::Es),
        Register::CS => Some(SegmentIndex::Cs),
        Register::SS => Some(SegmentIndex::Ss),
        _ => Some(SegmentIndex::Ds),
    }
}

/// Address size in bytes, as the memory operand tells it.
fn address_size(insn: &Instruction, is_64bit: bool) -> u32 {
    for register in [insn.memory_base(), insn.memory_index()] {
        if register == Register::EIP {
            return 4;
        }
        if register.is_gpr() {
            return register.size() as u32;
        }
    }
    match insn.memory_displ_size() {
        2 if !is_64bit => 2,
        4 => 4,
        _ if is_64bit => 8,
        _ => 4,
    }
}

fn after(insn: &Instruction) -> After {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Call if !is_far(insn) => After::Call,
        M::Ret => After::Return,
        M::Int => After::Interrupt,
        M::Vmcall => After::ServiceGate,
        M::Hlt => After::Halt,
        M::Syscall => After::SystemCall,
        M::Sysret | M::Sysretq => After::SystemReturn,
        M::Cmp | M::Test | M::Bt | M::Nop | M::Jmp => After::Continue,
        _ if insn.is_stack_instruction() || insn.is_string_instruction() || writes_memory_operand(insn) => {
            After::Stored
        }
        _ => After::Continue,
    }
}

fn writes_memory_operand(insn: &Instruction) -> bool {
    insn.op_count() > 0 && !matches!(insn.op0_kind(), OpKind::Register) && insn.memory_size().size() != 0
        || matches!(insn.mnemonic(), Mnemonic::Sgdt | Mnemonic::Sidt)
        || insn.op_count() > 0 && insn.op0_kind() == OpKind::Memory
}

/// A far CALL or JMP: through a pointer in memory or in the instruction.
pub(crate) fn is_far(insn: &Instruction) -> bool {
    insn.is_call_far() || insn.is_call_far_indirect() || insn.is_jmp_far() || insn.is_jmp_far_indirect()
}
