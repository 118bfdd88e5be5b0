//! MXCSR and the FXSAVE image (SDM vol. 1, 10.5), which is also the first part of an XSAVE image.

use iced_x86::Mnemonic;
use lstar_arch::control::cr0;
use lstar_arch::{Exception, GuestMemory, Vendor};

use crate::exec::{Exec, Op};

/// MXCSR bits that may be set: all of the low half (MXCSR_MASK).
const MXCSR_MASK: u32 = 0xFFFF;

/// Offsets in the images.
pub(crate) const REGISTERS: usize = 32;
pub(crate) const XMM: usize = 160;
pub(crate) const XMM_END: usize = 416;

/// LDMXCSR and STMXCSR, which belong to SSE proper.
pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    Some(match mnemonic {
        Mnemonic::Ldmxcsr => ex.source(0).and_then(|value| set_mxcsr(ex, value as u32)),
        Mnemonic::Stmxcsr => {
            let value = ex.cpu.mxcsr.into();
            ex.write_destination(value)
        }
        _ => return None,
    })
}

/// FXSAVE and FXRSTOR; `None` when it is none of them.
pub(super) fn execute_images<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    Some(match mnemonic {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => fx_address(ex).and_then(|linear| fxsave(ex, linear)),
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => fx_address(ex).and_then(|linear| fxrstor(ex, linear)),
        _ => return None,
    })
}

pub(crate) fn set_mxcsr<M: GuestMemory>(ex: &mut Exec<'_, M>, value: u32) -> Op {
    if value & !MXCSR_MASK != 0 {
        return Err(Exception::GP0);
    }
    ex.cpu.mxcsr = value;
    Ok(())
}

/// Address of an FXSAVE image, after the checks.
fn fx_address<M: GuestMemory>(ex: &Exec<'_, M>) -> Result<u64, Exception> {
    if ex.insn.has_lock_prefix() {
        return Err(Exception::UD);
    }
    if ex.cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(Exception::NM);
    }
    // That it is not canonical counts before that it is not aligned, other than for XSAVE's images.
    match ex.linear_address() {
        linear if !lstar_arch::is_canonical(linear) => Err(ex.non_canonical()),
        linear => aligned(linear, 16),
    }
}

pub(crate) fn aligned(linear: u64, alignment: u64) -> Result<u64, Exception> {
    if linear.is_multiple_of(alignment) { Ok(linear) } else { Err(Exception::GP0) }
}

/// Whether pointers have 64 bits instead of a selector and 32.
fn wide_pointers<M: GuestMemory>(ex: &Exec<'_, M>) -> bool {
    matches!(
        ex.insn.mnemonic(),
        Mnemonic::Fxsave64
            | Mnemonic::Fxrstor64
            | Mnemonic::Xsave64
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaves64
            | Mnemonic::Xrstor64
            | Mnemonic::Xrstors64
    )
}

/// The first 416 bytes of the image: x87, MXCSR and XMM.
pub(crate) fn image<M: GuestMemory>(ex: &Exec<'_, M>) -> [u8; XMM_END] {
    let x87 = &ex.cpu.x87;
    let mut image = [0; XMM_END];
    // AMD's processors save the last opcode and pointers only while an unmasked exception is pending.
    if ex.cpu.model.vendor != Vendor::Amd || x87.status & 1 << 7 != 0 {
        let pointer = |pointer: u64, selector: u16| match wide_pointers(ex) {
            true => pointer,
            false => pointer & 0xFFFF_FFFF | u64::from(selector) << 32,
        };
        image[6..8].copy_from_slice(&x87.opcode.to_le_bytes());
        image[8..16].copy_from_slice(&pointer(x87.instruction_pointer, x87.selectors[0]).to_le_bytes());
        image[16..24].copy_from_slice(&pointer(x87.data_pointer, x87.selectors[1]).to_le_bytes());
    }
    image[0..2].copy_from_slice(&x87.control.to_le_bytes());
    image[2..4].copy_from_slice(&x87.status.to_le_bytes());
    image[4] = x87.valid;
    image[24..28].copy_from_slice(&ex.cpu.mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    for (index, slot) in image[REGISTERS..XMM].chunks_exact_mut(16).enumerate() {
        slot[..10].copy_from_slice(&x87.registers[ex.physical(index)][..10]);
    }
    for (slot, value) in image[XMM..].chunks_exact_mut(8).zip(ex.cpu.xmm.as_flattened()) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    image
}

fn word(image: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(std::array::from_fn(|index| image[at + index]))
}

pub(crate) fn quadword(image: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| image[at + index]))
}

pub(crate) fn load_x87<M: GuestMemory>(ex: &mut Exec<'_, M>, image: &[u8; XMM_END]) {
    let wide = wide_pointers(ex);
    // The registers have as many bits as a canonical address.
    let pointer = |value: u64| if wide { ((value << 16) as i64 >> 16) as u64 } else { value & 0xFFFF_FFFF };
    let x87 = &mut ex.cpu.x87;
    x87.selectors = if wide { [0; 2] } else { [word(image, 12), word(image, 20)] };
    x87.status = word(image, 2);
    x87.valid = image[4];
    x87.opcode = word(image, 6) & 0x7FF;
    x87.instruction_pointer = pointer(quadword(image, 8));
    x87.data_pointer = pointer(quadword(image, 16));
    for (index, slot) in image[REGISTERS..XMM].chunks_exact(16).enumerate() {
        let physical = ex.physical(index);
        ex.cpu.x87.registers[physical][..10].copy_from_slice(&slot[..10]);
    }
    crate::x87::set_control(ex, word(image, 0));
}

pub(crate) fn load_xmm<M: GuestMemory>(ex: &mut Exec<'_, M>, image: &[u8; XMM_END]) {
    ex.cpu.xmm = std::array::from_fn(|register| {
        let at = XMM + 16 * register;
        [quadword(image, at), quadword(image, at + 8)]
    });
}

/// The number of XMM registers outside 64-bit mode is 8; their images end here.
pub(crate) fn xmm_end<M: GuestMemory>(ex: &Exec<'_, M>) -> usize {
    if ex.cpu.is_64bit() { XMM_END } else { XMM + 8 * 16 }
}

fn fxsave<M: GuestMemory>(ex: &mut Exec<'_, M>, linear: u64) -> Op {
    let image = image(ex);
    ex.write_range(linear, &image[..xmm_end(ex)])
}

fn fxrstor<M: GuestMemory>(ex: &mut Exec<'_, M>, linear: u64) -> Op {
    let mut bytes: [u8; XMM_END] = ex.load(linear)?;
    keep_high_xmm(ex, &mut bytes);
    set_mxcsr(ex, quadword(&bytes, 24) as u32)?;
    load_x87(ex, &bytes);
    load_xmm(ex, &bytes);
    Ok(())
}

/// Outside 64-bit mode XMM8 to XMM15 are neither saved nor restored.
pub(crate) fn keep_high_xmm<M: GuestMemory>(ex: &Exec<'_, M>, bytes: &mut [u8; XMM_END]) {
    let end = xmm_end(ex);
    bytes[end..].copy_from_slice(&image(ex)[end..]);
}

impl<M: GuestMemory> Exec<'_, M> {
    /// Stores a part of an image.
    pub(crate) fn write_range(&mut self, linear: u64, data: &[u8]) -> Op {
        if self.is_out_of_reach(linear, data.len() as u64) {
            return Err(self.non_canonical());
        }
        Ok(self.mem.write(linear, data, self.cpu.privilege())?)
    }
}
