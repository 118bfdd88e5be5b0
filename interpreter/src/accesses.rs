//! The memory accesses that an instruction is about to make, for data breakpoints and alignment checks.
//!
//! iced-x86 lists them for most instructions. What depends on more than the addressing registers is listed here: masks,
//! index vectors, bit strings, state components.

use iced_x86::{
    Instruction, InstructionInfoFactory, InstructionInfoOptions, MemorySize, Mnemonic as M, OpAccess, OpKind, Register,
    UsedMemory,
};
use lstar_arch::{CpuState, Gpr};

use crate::decode::{Decoded, is_high_byte, segment};
use crate::flags::{mask, sign_extend};

/// A memory access an instruction will make.
pub(crate) struct Access {
    pub address: u64,
    pub size: u64,
    pub writes: bool,
}

/// All data accesses of the instruction with the registers as they are now.
pub(crate) fn accesses(cpu: &CpuState, decoded: &Decoded) -> Vec<Access> {
    let insn = &decoded.insn;
    if insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix()) {
        let width = if cpu.is_64bit() { u64::MAX } else { 0xFFFF_FFFF };
        // A count of zero: no access.
        if cpu.reg(Gpr::Rcx) & width == 0 {
            return Vec::new();
        }
    }
    let listed = match decoded.mnemonic {
        _ if insn.is_vsib() => gathered(cpu, insn),
        M::Vmaskmovps | M::Vpmaskmovd => masked(cpu, insn, 4),
        M::Vmaskmovpd | M::Vpmaskmovq => masked(cpu, insn, 8),
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => masked_bytes(cpu, insn),
        M::Bt | M::Bts | M::Btr | M::Btc if insn.op1_kind() == OpKind::Register => bit_string(cpu, insn),
        // Flushing a line looks like a read of the byte that names it.
        M::Clflush | M::Clflushopt | M::Clwb => address(cpu, insn, 0).map(|address| vec![read(address, 1)]),
        _ if is_state_image(insn) => state_image(cpu, insn),
        _ => None,
    };
    listed.unwrap_or_else(|| {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info_options(insn, InstructionInfoOptions::NO_REGISTER_USAGE);
        info.used_memory().iter().filter_map(|used| access(cpu, used)).collect()
    })
}

fn access(cpu: &CpuState, used: &UsedMemory) -> Option<Access> {
    let writes = match used.access() {
        OpAccess::None | OpAccess::NoMemAccess => return None,
        OpAccess::Read | OpAccess::CondRead => false,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => true,
    };
    let address = used.virtual_address(0, |register, _, _| Some(register_value(cpu, register)))?;
    Some(Access { address: truncated(cpu, address), size: used.memory_size().size() as u64, writes })
}

const fn read(address: u64, size: u64) -> Access {
    Access { address, size, writes: false }
}

const fn write(address: u64, size: u64) -> Access {
    Access { address, size, writes: true }
}

fn truncated(cpu: &CpuState, address: u64) -> u64 {
    if cpu.is_64bit() { address } else { address & 0xFFFF_FFFF }
}

/// The linear address of the memory operand, or of one of its elements where an index vector tells.
fn address(cpu: &CpuState, insn: &Instruction, index: usize) -> Option<u64> {
    let operand = (0..insn.op_count()).find(|&operand| {
        matches!(
            insn.op_kind(operand),
            OpKind::Memory | OpKind::MemorySegRDI | OpKind::MemorySegEDI | OpKind::MemorySegDI
        )
    })?;
    let address = insn.virtual_address(operand, index, |register, index, size| {
        Some(if register.is_vector_register() {
            element(vector(cpu, register), size, index)
        } else {
            register_value(cpu, register)
        })
    })?;
    Some(truncated(cpu, address))
}

/// A vector register's 32 bytes.
fn vector(cpu: &CpuState, register: Register) -> [u64; 4] {
    let number = register.number() % 16;
    let ([a, b], [c, d]) = (cpu.xmm[number], cpu.ymm_high[number]);
    [a, b, c, d]
}

fn element(vector: [u64; 4], size: usize, index: usize) -> u64 {
    let byte = index * size;
    vector.get(byte / 8).map_or(0, |quad| quad >> (byte % 8 * 8) & mask(size as u8))
}

/// Whether element `index` of a mask selects.
fn selects(mask: [u64; 4], size: usize, index: usize) -> bool {
    element(mask, size, index) >> (8 * size - 1) != 0
}

fn gathered(cpu: &CpuState, insn: &Instruction) -> Option<Vec<Access>> {
    let size = insn.memory_size().size();
    let index_size = if insn.is_vsib64() { 8 } else { 4 };
    let count = (insn.op0_register().size() / size).min(insn.memory_index().size() / index_size);
    let mask = vector(cpu, insn.op2_register());
    (0..count)
        .filter(|&index| selects(mask, size, index))
        .map(|index| address(cpu, insn, index).map(|address| read(address, size as u64)))
        .collect()
}

/// A store touches the selected elements, a load all of its operand unless nothing is selected, as on AMD's processors.
fn masked(cpu: &CpuState, insn: &Instruction, size: usize) -> Option<Vec<Access>> {
    let first = address(cpu, insn, 0)?;
    let width = insn.op1_register().size();
    let mask = vector(cpu, insn.op1_register());
    let mut selected = (0..width / size).filter(|&index| selects(mask, size, index));
    Some(if insn.op0_kind() == OpKind::Register {
        selected.next().map(|_| read(first, width as u64)).into_iter().collect()
    } else {
        selected.map(|index| write(first.wrapping_add((index * size) as u64), size as u64)).collect()
    })
}

fn masked_bytes(cpu: &CpuState, insn: &Instruction) -> Option<Vec<Access>> {
    let first = address(cpu, insn, 0)?;
    let (mask, width) = if insn.op2_register().is_mm() {
        let top = cpu.x87.registers[insn.op2_register().number()];
        let low = top[..8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        ([low, 0, 0, 0], 8)
    } else {
        (vector(cpu, insn.op2_register()), 16)
    };
    Some((0..width).filter(|&i| selects(mask, 1, i)).map(|i| write(first.wrapping_add(i as u64), 1)).collect())
}

/// BT and its like reach the unit of the operand's size that holds the bit.
fn bit_string(cpu: &CpuState, insn: &Instruction) -> Option<Vec<Access>> {
    if insn.op0_kind() == OpKind::Register {
        return Some(Vec::new());
    }
    let size = insn.op1_register().size() as u8;
    let bit = sign_extend(register_value(cpu, insn.op1_register()), size) as i64;
    let bits = i64::from(size) * 8;
    let offset = bit.div_euclid(bits).wrapping_mul(i64::from(size)) as u64;
    let address = truncated(cpu, address(cpu, insn, 0)?.wrapping_add(offset));
    Some(vec![Access { address, size: size.into(), writes: insn.mnemonic() != M::Bt }])
}

/// Whether the memory operand is an XSAVE image, whose alignment the instruction itself checks.
pub(crate) fn is_state_image(insn: &Instruction) -> bool {
    insn.op_count() == 1 && matches!(insn.memory_size(), MemorySize::Xsave | MemorySize::Xsave64)
}

/// The parts of an XSAVE image that belong to the requested components, and its header (SDM vol. 1, 13.4).
fn state_image(cpu: &CpuState, insn: &Instruction) -> Option<Vec<Access>> {
    let first = address(cpu, insn, 0)?;
    let low = |register| cpu.reg(register) & 0xFFFF_FFFF;
    let requested = (low(Gpr::Rdx) << 32 | low(Gpr::Rax)) & cpu.xcr0;
    let writes = !matches!(insn.mnemonic(), M::Xrstor | M::Xrstor64 | M::Xrstors | M::Xrstors64);
    let always = !writes || matches!(insn.mnemonic(), M::Xsave | M::Xsave64);
    let saved = if always { requested } else { requested & cpu.xinuse() };
    let parts = [(saved & 1, 0, 24), (saved & 1, 32, 128), (saved & 2, 160, 256), (saved & 4, 576, 256)];
    let mxcsr = (requested & 6, 24, 8);
    let header = (1, 512, 8);
    let wanted = parts.into_iter().chain([mxcsr, header]).filter(|part| part.0 != 0);
    Some(wanted.map(|(_, offset, size)| Access { address: first.wrapping_add(offset), size, writes }).collect())
}

pub(crate) fn register_value(cpu: &CpuState, register: Register) -> u64 {
    if register.is_segment_register() {
        return segment(register, cpu.is_64bit()).map_or(0, |index| cpu.segment(index).base);
    }
    let full = if register.is_gpr() { cpu.gpr[register.full_register().number()] } else { cpu.rip };
    match register.size() {
        8 => full,
        4 => full & 0xFFFF_FFFF,
        2 => full & 0xFFFF,
        _ if is_high_byte(register) => full >> 8 & 0xFF,
        _ => full & 0xFF,
    }
}
