//! x87 environment and state images (SDM vol. 1, 8.1.10): FNSTENV, FLDENV, FNSAVE, FRSTOR, in protected-mode layout.

use iced_x86::{Code, Mnemonic};
use lstar_arch::{Exception, GuestMemory};

use super::control::{initialise, set_control, summarise};
use crate::exec::{Exec, Op};
use crate::softfloat::{Class, Format};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    Some(match mnemonic {
        Mnemonic::Fnstenv => store_environment(ex),
        Mnemonic::Fldenv => load_environment(ex).map(|_| ()),
        Mnemonic::Fnsave => save(ex),
        Mnemonic::Frstor => restore(ex),
        _ => return None,
    })
}

/// Whether the image has the layout of a 16-bit operand size: words instead of doublewords.
fn is_short<M: GuestMemory>(ex: &Exec<'_, M>) -> bool {
    matches!(ex.insn.code(), Code::Fnstenv_m14byte | Code::Fldenv_m14byte | Code::Fnsave_m94byte | Code::Frstor_m94byte)
}

/// The seven fields: control, status, tags, IP, CS and opcode, DP, DS (SDM vol. 1, 8.1.8).
fn environment<M: GuestMemory>(ex: &Exec<'_, M>) -> [u32; 7] {
    let x87 = &ex.cpu.x87;
    let opcode = if is_short(ex) { 0 } else { u32::from(x87.opcode & 0x7FF) << 16 };
    [
        x87.control.into(),
        x87.status.into(),
        tag_word(ex).into(),
        x87.instruction_pointer as u32,
        opcode | u32::from(x87.selectors[0]),
        x87.data_pointer as u32,
        x87.selectors[1].into(),
    ]
}

/// The full tag word: valid 0, zero 1, special 2, empty 3, by physical register.
fn tag_word<M: GuestMemory>(ex: &Exec<'_, M>) -> u16 {
    ex.cpu.x87.registers.iter().enumerate().fold(0, |tags, (index, image)| {
        let float = Format::EXTENDED.unpack(u128::from_le_bytes(*image));
        let tag = match float.class {
            _ if ex.cpu.x87.valid >> index & 1 == 0 => 3,
            Class::Zero => 1,
            Class::Finite if !float.denormal => 0,
            _ => 2,
        };
        tags | tag << (2 * index)
    })
}

/// Writes the fields and masks all exceptions, as FNSTENV does. Nothing is changed when the store faults.
fn store_environment<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let fields = environment(ex);
    let linear = ex.linear_address();
    if is_short(ex) {
        ex.store::<14>(linear, std::array::from_fn(|at| fields[at / 2].to_le_bytes()[at % 2]))?;
    } else {
        ex.store::<28>(linear, long_bytes(fields))?;
    }
    let control = ex.cpu.x87.control | 0x3F;
    set_control(ex, control);
    Ok(())
}

/// The doubleword layout; the upper halves of the first three fields, and of the last, read as ones.
fn long_bytes(fields: [u32; 7]) -> [u8; 28] {
    const UPPER: [u32; 7] = [0xFFFF_0000, 0xFFFF_0000, 0xFFFF_0000, 0, 0, 0, 0xFFFF_0000];
    std::array::from_fn(|at| (fields[at / 4] | UPPER[at / 4]).to_le_bytes()[at % 4])
}

/// Loads the fields and returns the number of bytes they take.
fn load_environment<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Result<u64, Exception> {
    let linear = ex.linear_address();
    // Processors find out first whether they reach the last byte.
    ex.load::<1>(linear.wrapping_add(if is_short(ex) { 13 } else { 27 }))?;
    let (fields, size): ([u32; 7], u64) = if is_short(ex) {
        let bytes: [u8; 14] = ex.load(linear)?;
        (std::array::from_fn(|at| u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).into()), 14)
    } else {
        let bytes: [u8; 28] = ex.load(linear)?;
        (std::array::from_fn(|at| u32::from_le_bytes(std::array::from_fn(|byte| bytes[4 * at + byte]))), 28)
    };
    let [control, status, tags, instruction, opcode, data, data_selector] = fields;
    let x87 = &mut ex.cpu.x87;
    x87.status = status as u16;
    x87.valid = (0..8).fold(0, |valid, index| valid | u8::from(tags >> (2 * index) & 3 != 3) << index);
    x87.instruction_pointer = instruction.into();
    x87.opcode = (opcode >> 16 & 0x7FF) as u16;
    x87.data_pointer = data.into();
    x87.selectors = [opcode as u16, data_selector as u16];
    set_control(ex, control as u16);
    summarise(ex);
    Ok(size)
}

/// Stores environment and registers in stack order as one access, then initialises.
fn save<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let fields = environment(ex);
    let linear = ex.linear_address();
    let registers: [[u8; 16]; 8] = std::array::from_fn(|index| ex.cpu.x87.registers[ex.physical(index)]);
    let register_byte = |at: usize| registers[at / 10][at % 10];
    if is_short(ex) {
        ex.store::<94>(
            linear,
            std::array::from_fn(|at| match at {
                0..14 => fields[at / 2].to_le_bytes()[at % 2],
                _ => register_byte(at - 14),
            }),
        )?;
    } else {
        let header = long_bytes(fields);
        ex.store::<108>(linear, std::array::from_fn(|at| if at < 28 { header[at] } else { register_byte(at - 28) }))?;
    }
    initialise(ex);
    Ok(())
}

fn restore<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let linear = ex.linear_address();
    let size = if is_short(ex) { 14 } else { 28 };
    // The registers first: nothing changes when either part faults. Their last byte is read before everything else.
    ex.load::<1>(linear.wrapping_add(size + 79))?;
    let registers: [u8; 80] = ex.load(linear.wrapping_add(size))?;
    load_environment(ex)?;
    for index in 0..8 {
        let physical = ex.physical(index);
        ex.cpu.x87.registers[physical][..10].copy_from_slice(&registers[10 * index..10 * index + 10]);
    }
    Ok(())
}
