//! MXCSR and the FXSAVE and XSAVE images (SDM vol. 1, 10.5 and chapter 13), XSAVE in its standard form.

use iced_x86::{Code, CpuidFeature, Mnemonic};
use lstar_arch::control::{cr0, cr4};
use lstar_arch::cpuid::Features;
use lstar_arch::state::X87State;
use lstar_arch::{Exception, GuestMemory};

use crate::exec::{Exec, Op};

/// MXCSR bits that may be set: all of the low half (MXCSR_MASK).
const MXCSR_MASK: u32 = 0xFFFF;

/// State components, as numbered by XCR0.
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;

/// Offsets in the images.
const REGISTERS: usize = 32;
const XMM: usize = 160;
const XMM_END: usize = 416;
const HEADER: u64 = 512;
const YMM_HIGH: u64 = 576;

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

/// The instructions that save and restore whole states; `None` when it is none of them.
pub(super) fn execute_images<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    let features = ex.insn.cpuid_features();
    Some(match mnemonic {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => fx_address(ex).and_then(|linear| fxsave(ex, linear)),
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => fx_address(ex).and_then(|linear| fxrstor(ex, linear)),
        Mnemonic::Xsave | Mnemonic::Xsave64 => xsave_address(ex).and_then(|linear| xsave(ex, linear)),
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => xsave_address(ex).and_then(|linear| xrstor(ex, linear)),
        // No model offers the compacted, optimised and supervisor forms (CPUID.0DH.1:EAX is 0).
        _ if features
            .iter()
            .any(|feature| matches!(feature, CpuidFeature::XSAVEC | CpuidFeature::XSAVEOPT | CpuidFeature::XSAVES)) =>
        {
            Err(Exception::UD)
        }
        _ => return None,
    })
}

fn set_mxcsr<M: GuestMemory>(ex: &mut Exec<'_, M>, value: u32) -> Op {
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
    aligned(ex.linear_address(), 16)
}

/// Address of an XSAVE image, after the checks.
fn xsave_address<M: GuestMemory>(ex: &Exec<'_, M>) -> Result<u64, Exception> {
    if !ex.cpu.model.features.contains(Features::XSAVE) || ex.cpu.cr4 & cr4::OSXSAVE == 0 || ex.insn.has_lock_prefix() {
        return Err(Exception::UD);
    }
    if ex.cpu.cr0 & cr0::TS != 0 {
        return Err(Exception::NM);
    }
    aligned(ex.linear_address(), 64)
}

fn aligned(linear: u64, alignment: u64) -> Result<u64, Exception> {
    if linear.is_multiple_of(alignment) { Ok(linear) } else { Err(Exception::GP0) }
}

/// Whether pointers have 64 bits instead of a selector and 32.
fn wide_pointers<M: GuestMemory>(ex: &Exec<'_, M>) -> bool {
    matches!(
        ex.insn.code(),
        Code::Fxsave64_m512byte | Code::Fxrstor64_m512byte | Code::Xsave64_mem | Code::Xrstor64_mem
    )
}

/// The first 416 bytes of the image: x87, MXCSR and XMM.
fn image<M: GuestMemory>(ex: &Exec<'_, M>) -> [u8; XMM_END] {
    let x87 = &ex.cpu.x87;
    let mut image = [0; XMM_END];
    let pointer_mask = if wide_pointers(ex) { u64::MAX } else { 0xFFFF_FFFF };
    image[0..2].copy_from_slice(&x87.control.to_le_bytes());
    image[2..4].copy_from_slice(&x87.status.to_le_bytes());
    image[4] = x87.valid;
    image[6..8].copy_from_slice(&x87.opcode.to_le_bytes());
    image[8..16].copy_from_slice(&(x87.instruction_pointer & pointer_mask).to_le_bytes());
    image[16..24].copy_from_slice(&(x87.data_pointer & pointer_mask).to_le_bytes());
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

fn quadword(image: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| image[at + index]))
}

fn load_x87<M: GuestMemory>(ex: &mut Exec<'_, M>, image: &[u8; XMM_END]) {
    let pointer_mask = if wide_pointers(ex) { u64::MAX } else { 0xFFFF_FFFF };
    let x87 = &mut ex.cpu.x87;
    x87.status = word(image, 2);
    x87.valid = image[4];
    x87.opcode = word(image, 6) & 0x7FF;
    x87.instruction_pointer = quadword(image, 8) & pointer_mask;
    x87.data_pointer = quadword(image, 16) & pointer_mask;
    for (index, slot) in image[REGISTERS..XMM].chunks_exact(16).enumerate() {
        let physical = ex.physical(index);
        ex.cpu.x87.registers[physical][..10].copy_from_slice(&slot[..10]);
    }
    crate::x87::set_control(ex, word(image, 0));
}

fn load_xmm<M: GuestMemory>(ex: &mut Exec<'_, M>, image: &[u8; XMM_END]) {
    ex.cpu.xmm = std::array::from_fn(|register| {
        let at = XMM + 16 * register;
        [quadword(image, at), quadword(image, at + 8)]
    });
}

/// The number of XMM registers outside 64-bit mode is 8; their images end here.
fn xmm_end<M: GuestMemory>(ex: &Exec<'_, M>) -> usize {
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
fn keep_high_xmm<M: GuestMemory>(ex: &Exec<'_, M>, bytes: &mut [u8; XMM_END]) {
    let end = xmm_end(ex);
    bytes[end..].copy_from_slice(&image(ex)[end..]);
}

/// The components that the instruction is asked for and that are enabled.
fn requested<M: GuestMemory>(ex: &Exec<'_, M>) -> u64 {
    let mask = ex.cpu.gpr[2] << 32 | ex.cpu.gpr[0] & 0xFFFF_FFFF;
    mask & ex.cpu.xcr0
}

/// The components that are not in their initial state.
fn in_use<M: GuestMemory>(ex: &Exec<'_, M>) -> u64 {
    let flag = |used, bit| if used { bit } else { 0 };
    flag(ex.cpu.x87 != X87State::default(), X87)
        | flag(ex.cpu.xmm != [[0; 2]; 16], SSE)
        | flag(ex.cpu.ymm_high != [[0; 2]; 16], AVX)
}

/// Writes the requested components and updates their bits in XSTATE_BV; other parts of the image stay.
fn xsave<M: GuestMemory>(ex: &mut Exec<'_, M>, linear: u64) -> Op {
    let components = requested(ex);
    let image = image(ex);
    let old = u64::from_le_bytes(ex.load(linear.wrapping_add(HEADER))?);
    // The whole area first, so that nothing is written when part of it faults.
    let area = if components & AVX != 0 { YMM_HIGH + 256 } else { YMM_HIGH };
    ex.mem.probe_write(linear, area, ex.cpu.privilege()).map_err(Exception::from)?;
    if components & X87 != 0 {
        ex.write_range(linear, &image[..24])?;
        ex.write_range(linear.wrapping_add(REGISTERS as u64), &image[REGISTERS..XMM])?;
    }
    if components & (SSE | AVX) != 0 {
        ex.write_range(linear.wrapping_add(24), &image[24..REGISTERS])?;
    }
    if components & SSE != 0 {
        ex.write_range(linear.wrapping_add(XMM as u64), &image[XMM..xmm_end(ex)])?;
    }
    if components & AVX != 0 {
        let count = if ex.cpu.is_64bit() { 16 } else { 8 };
        for index in 0..count {
            let [low, high] = ex.cpu.ymm_high[index];
            let value = u128::from(low) | u128::from(high) << 64;
            ex.store(linear.wrapping_add(YMM_HIGH + 16 * index as u64), value.to_le_bytes())?;
        }
    }
    let present = old & !components | in_use(ex) & components;
    ex.store(linear.wrapping_add(HEADER), present.to_le_bytes())
}

/// Loads the requested components that the image holds and initialises those it does not.
fn xrstor<M: GuestMemory>(ex: &mut Exec<'_, M>, linear: u64) -> Op {
    let components = requested(ex);
    let header: [u8; 64] = ex.load(linear.wrapping_add(HEADER))?;
    let present = quadword(&header, 0);
    // The compacted form is not offered, so XCOMP_BV has to be zero like the rest of the header.
    if present & !ex.cpu.xcr0 != 0 || header[8..].iter().any(|&byte| byte != 0) {
        return Err(Exception::GP0);
    }
    let mut bytes: [u8; XMM_END] = ex.load(linear)?;
    keep_high_xmm(ex, &mut bytes);
    let ymm_high: [u8; 256] =
        if components & present & AVX != 0 { ex.load(linear.wrapping_add(YMM_HIGH))? } else { [0; 256] };
    if components & (SSE | AVX) != 0 {
        set_mxcsr(ex, quadword(&bytes, 24) as u32)?;
    }
    if components & X87 != 0 {
        if present & X87 != 0 {
            load_x87(ex, &bytes);
        } else {
            ex.cpu.x87 = X87State::default();
        }
    }
    if components & SSE != 0 {
        if present & SSE != 0 {
            load_xmm(ex, &bytes);
        } else {
            ex.cpu.xmm = [[0; 2]; 16];
        }
    }
    if components & AVX != 0 {
        let count = if ex.cpu.is_64bit() { 16 } else { 8 };
        for (index, register) in ex.cpu.ymm_high.iter_mut().enumerate().take(count) {
            *register = [quadword(&ymm_high, 16 * index), quadword(&ymm_high, 16 * index + 8)];
        }
    }
    Ok(())
}

impl<M: GuestMemory> Exec<'_, M> {
    /// Stores a part of an image.
    fn write_range(&mut self, linear: u64, data: &[u8]) -> Op {
        let last = linear.wrapping_add(data.len() as u64 - 1);
        if !lstar_arch::is_canonical(linear) || !lstar_arch::is_canonical(last) {
            return Err(self.non_canonical());
        }
        Ok(self.mem.write(linear, data, self.cpu.privilege())?)
    }
}
