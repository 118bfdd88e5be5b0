//! The XSAVE feature set (SDM vol. 1, chapter 13): XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS.
//!
//! The components are x87, SSE and AVX; there is no supervisor component. XSAVEOPT and XSAVES use the init optimisation
//! and never the modified optimisation, which software cannot rely on.

use iced_x86::Mnemonic;
use lstar_arch::control::{cr0, cr4};
use lstar_arch::cpuid::Features;
use lstar_arch::state::X87State;
use lstar_arch::{Exception, GuestMemory};

use crate::exec::{Exec, Op};
use crate::sse::set_mxcsr;
use crate::sse::state::{
    REGISTERS, XMM, XMM_END, aligned, image, keep_high_xmm, load_x87, load_xmm, quadword, xmm_end,
};

/// State components, as numbered by XCR0.
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;

/// Offsets in the image. The AVX component, the only extended one, lies at the same place in both formats.
const MXCSR: usize = 24;
const HEADER: u64 = 512;
const YMM_HIGH: u64 = 576;
/// XCOMP_BV: the image is compacted.
const COMPACTED: u64 = 1 << 63;
/// MXCSR at reset.
const MXCSR_INITIAL: u32 = 0x1F80;

/// What the saving instructions differ in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// XSAVE.
    Plain,
    /// XSAVEOPT: leaves out components in their initial configuration.
    Optimised,
    /// XSAVEC and XSAVES: likewise, in the compacted format.
    Compacted,
}

/// Executes one of these instructions; `None` when it is none of them.
pub(crate) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Option<Op> {
    use Mnemonic as N;
    let (feature, save) = match ex.decoded.mnemonic {
        N::Xsave | N::Xsave64 => (Features::XSAVE, Some(Form::Plain)),
        N::Xsaveopt | N::Xsaveopt64 => (Features::XSAVEOPT, Some(Form::Optimised)),
        N::Xsavec | N::Xsavec64 => (Features::XSAVEC, Some(Form::Compacted)),
        N::Xsaves | N::Xsaves64 => (Features::XSAVES, Some(Form::Compacted)),
        N::Xrstor | N::Xrstor64 => (Features::XSAVE, None),
        N::Xrstors | N::Xrstors64 => (Features::XSAVES, None),
        _ => return None,
    };
    let privileged = matches!(ex.decoded.mnemonic, N::Xsaves | N::Xsaves64 | N::Xrstors | N::Xrstors64);
    Some(address(ex, feature, privileged).and_then(|linear| match save {
        Some(form) => xsave(ex, linear, form),
        None => xrstor(ex, linear, privileged),
    }))
}

/// Address of the image, after the checks.
fn address<M: GuestMemory>(ex: &Exec<'_, M>, feature: Features, privileged: bool) -> Result<u64, Exception> {
    ex.require(feature)?;
    if ex.cpu.cr4 & cr4::OSXSAVE == 0 || ex.insn.has_lock_prefix() {
        return Err(Exception::UD);
    }
    if ex.cpu.cr0 & cr0::TS != 0 {
        return Err(Exception::NM);
    }
    if privileged && ex.cpu.cpl != 0 {
        return Err(Exception::GP0);
    }
    aligned(ex.linear_address(), 64)
}

/// The components that the instruction is asked for and that are enabled.
fn requested<M: GuestMemory>(ex: &Exec<'_, M>) -> u64 {
    let mask = ex.cpu.gpr[2] << 32 | ex.cpu.gpr[0] & 0xFFFF_FFFF;
    mask & ex.cpu.xcr0
}

/// Number of vector registers in the present mode.
fn registers<M: GuestMemory>(ex: &Exec<'_, M>) -> usize {
    if ex.cpu.is_64bit() { 16 } else { 8 }
}

/// Writes the requested components and their bits in XSTATE_BV; other parts of the image stay.
fn xsave<M: GuestMemory>(ex: &mut Exec<'_, M>, linear: u64, form: Form) -> Op {
    let components = requested(ex);
    let image = image(ex);
    let mut in_use = ex.cpu.xinuse();
    // MXCSR counts as part of the SSE component in the compacted format only.
    if form == Form::Compacted && ex.cpu.mxcsr != MXCSR_INITIAL {
        in_use |= SSE;
    }
    let saved = if form == Form::Plain { components } else { components & in_use };
    let with_mxcsr = if form == Form::Compacted { saved & SSE != 0 } else { components & (SSE | AVX) != 0 };
    // The whole area first, so that nothing is written when part of it faults.
    let area = if components & AVX != 0 { YMM_HIGH + 256 } else { YMM_HIGH };
    // Processors touch its ends first, which shows in the address of a page fault.
    ex.probe_range(linear, 1)?;
    ex.probe_range(linear.wrapping_add(area - 1), 1)?;
    ex.probe_range(linear, area)?;
    let old = u64::from_le_bytes(ex.load(linear.wrapping_add(HEADER))?);
    if saved & X87 != 0 {
        ex.write_range(linear, &image[..MXCSR])?;
        ex.write_range(linear.wrapping_add(REGISTERS as u64), &image[REGISTERS..XMM])?;
    }
    if with_mxcsr {
        ex.write_range(linear.wrapping_add(MXCSR as u64), &image[MXCSR..REGISTERS])?;
    }
    if saved & SSE != 0 {
        ex.write_range(linear.wrapping_add(XMM as u64), &image[XMM..xmm_end(ex)])?;
    }
    if saved & AVX != 0 {
        for index in 0..registers(ex) {
            let [low, high] = ex.cpu.ymm_high[index];
            let value = u128::from(low) | u128::from(high) << 64;
            ex.store(linear.wrapping_add(YMM_HIGH + 16 * index as u64), value.to_le_bytes())?;
        }
    }
    if form == Form::Compacted {
        ex.store(linear.wrapping_add(HEADER + 8), (components | COMPACTED).to_le_bytes())?;
        return ex.store(linear.wrapping_add(HEADER), saved.to_le_bytes());
    }
    let present = old & !components | in_use & components;
    ex.store(linear.wrapping_add(HEADER), present.to_le_bytes())
}

/// The header's fields, if they are consistent: XSTATE_BV, and whether the image is compacted.
fn header<M: GuestMemory>(ex: &Exec<'_, M>, header: &[u8; 64], supervisor: bool) -> Result<(u64, bool), Exception> {
    let (present, layout) = (quadword(header, 0), quadword(header, 8));
    let compacted = layout & COMPACTED != 0;
    let reserved_clear = |from: usize| header.get(from..).unwrap_or_default().iter().all(|byte| *byte == 0);
    let valid = if compacted {
        let components = layout & !COMPACTED;
        ex.cpu.model.features.contains(Features::XSAVEC)
            && components & !ex.cpu.xcr0 == 0
            && present & !components == 0
            && reserved_clear(16)
    } else {
        !supervisor && present & !ex.cpu.xcr0 == 0 && header[8..24].iter().all(|byte| *byte == 0)
    };
    if valid { Ok((present, compacted)) } else { Err(Exception::GP0) }
}

/// Loads the requested components that the image holds and initialises those it does not.
fn xrstor<M: GuestMemory>(ex: &mut Exec<'_, M>, linear: u64, supervisor: bool) -> Op {
    let components = requested(ex);
    // What faults first when several parts do: the start of the image, its header, the rest.
    ex.load::<1>(linear)?;
    let bytes: [u8; 64] = ex.load(linear.wrapping_add(HEADER))?;
    let (present, compacted) = header(ex, &bytes, supervisor)?;
    let mut bytes: [u8; XMM_END] = ex.load(linear)?;
    keep_high_xmm(ex, &mut bytes);
    let ymm_high: [u8; 256] =
        if components & present & AVX != 0 { ex.load(linear.wrapping_add(YMM_HIGH))? } else { [0; 256] };
    let mxcsr = quadword(&bytes, MXCSR) as u32;
    if !compacted && components & (SSE | AVX) != 0 || compacted && components & present & SSE != 0 {
        set_mxcsr(ex, mxcsr)?;
    } else if compacted && components & SSE != 0 {
        ex.cpu.mxcsr = MXCSR_INITIAL;
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
            let count = registers(ex);
            ex.cpu.xmm[..count].fill([0; 2]);
        }
    }
    if components & AVX != 0 {
        let count = registers(ex);
        for (index, register) in ex.cpu.ymm_high.iter_mut().enumerate().take(count) {
            *register = [quadword(&ymm_high, 16 * index), quadword(&ymm_high, 16 * index + 8)];
        }
    }
    Ok(())
}

impl<M: GuestMemory> Exec<'_, M> {
    /// Checks that a whole range can be written.
    pub(crate) fn probe_range(&mut self, linear: u64, size: u64) -> Op {
        if self.is_out_of_reach(linear, size) {
            return Err(self.non_canonical());
        }
        Ok(self.mem.probe_write(linear, size, self.cpu.privilege())?)
    }
}
