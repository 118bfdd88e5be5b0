//! Functions that translated code calls: thin `extern "C"` shims around safe methods of the machine.
//!
//! Shims run with the guest's MXCSR in the processor; those that reach Rust code of any size put the host's in place
//! for its duration and write changes of the guest's back. A shim never unwinds: a panic aborts the process.
#![expect(unsafe_code, reason = "entered from translated code with raw pointers")]

use lstar_translator::abi::{ExitReason, Helper, UNWIND, VcpuBlock};

use crate::entry::{MissKind, Resolution};
use crate::machine::core::{After, Core};

/// MXCSR of host code: everything masked, round to nearest.
static HOST_MXCSR: u32 = 0x1F80;

/// Keeps the guest's MXCSR in `cpu.mxcsr` and the host's in the processor while alive. The guest's x87 state moves to the block,
/// too, and stays there.
struct HostMxcsr {
    block: *mut VcpuBlock,
    guest: u32,
}

impl HostMxcsr {
    /// `block` is live and not otherwise referenced.
    fn new(block: *mut VcpuBlock) -> Self {
        // SAFETY: the block is live, and translated code is stopped.
        crate::x87::leave(unsafe { &mut *block });
        // SAFETY: stores the control register to the live block, loads it from a constant.
        let guest = unsafe {
            // Slow: 15 cycles.
            if (*block).mxcsr_newer != 0 {
                (*block).mxcsr_newer = 0;
                std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut (*block).cpu.mxcsr, options(nostack));
            }
            let guest = (*block).cpu.mxcsr;
            if guest & !0x3F != HOST_MXCSR {
                std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const HOST_MXCSR, options(nostack, readonly));
            }
            guest
        };
        Self { block, guest }
    }
}

impl Drop for HostMxcsr {
    fn drop(&mut self) {
        // SAFETY: the block outlives the shim's call; the value came from the guest and has no reserved bit set.
        unsafe {
            let guest = (*self.block).cpu.mxcsr;
            if guest != self.guest || guest & !0x3F != HOST_MXCSR {
                std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const guest, options(nostack, readonly));
            }
        }
    }
}

/// Runs `body` on the machine behind the block, for a `Check` helper: 0 to go on, [`UNWIND`] otherwise.
fn check(block: *mut VcpuBlock, helper: Helper, body: impl FnOnce(&mut Core) -> After) -> u64 {
    let _mxcsr = HostMxcsr::new(block);
    // SAFETY: `context` was set by the core that runs this code, which holds no reference to itself meanwhile.
    let core = unsafe { &mut *(*block).context.cast::<Core>() };
    core.count_call(helper);
    core.fold_flags();
    match body(core) {
        After::Continue if !core.must_redispatch() => 0,
        After::Continue | After::Redirect => {
            core.block_mut().exit = ExitReason::Redispatch as u64;
            UNWIND
        }
        After::Exit => {
            core.block_mut().exit = ExitReason::Helper as u64;
            UNWIND
        }
    }
}

/// As [`check`], for a `Jump` helper: the host code to go on with.
fn jump(block: *mut VcpuBlock, helper: Helper, body: impl FnOnce(&mut Core) -> After) -> u64 {
    let _mxcsr = HostMxcsr::new(block);
    // SAFETY: as in `check`.
    let core = unsafe { &mut *(*block).context.cast::<Core>() };
    core.count_call(helper);
    core.fold_flags();
    let after = body(core);
    go_on(core, after)
}

/// The host code to go on with after a helper's work.
fn go_on(core: &mut Core, after: After) -> u64 {
    if after == After::Exit {
        core.block_mut().exit = ExitReason::Helper as u64;
        return crate::entry::unwind_address();
    }
    core.continue_at_rip()
}

extern "C" fn interpret(block: *mut VcpuBlock, rip: u64) -> u64 {
    check(block, Helper::Interpret, |core| core.interpret_one(rip))
}

extern "C" fn interpret_jump(block: *mut VcpuBlock, rip: u64) -> u64 {
    jump(block, Helper::InterpretJump, |core| core.interpret_one(rip))
}

extern "C" fn syscall(block: *mut VcpuBlock, next: u64) -> u64 {
    let _mxcsr = HostMxcsr::new(block);
    // SAFETY: as in `check`.
    let core = unsafe { &mut *(*block).context.cast::<Core>() };
    core.fold_flags();
    match core.syscall(next) {
        After::Continue => 0,
        after => go_on(core, after),
    }
}

extern "C" fn sysret(block: *mut VcpuBlock, rip: u64, size: u64) -> u64 {
    jump(block, Helper::Sysret, |core| core.sysret(rip, size == 8))
}

extern "C" fn iret(block: *mut VcpuBlock, rip: u64) -> u64 {
    jump(block, Helper::Iret, |core| core.interpret_one(rip))
}

extern "C" fn hook(block: *mut VcpuBlock, rip: u64) -> u64 {
    check(block, Helper::Hook, |core| core.hook(rip))
}

extern "C" fn hook_inside(block: *mut VcpuBlock, rip: u64) -> u64 {
    check(block, Helper::HookInside, |core| {
        core.cpu_mut().inside_block = rip;
        core.hook(rip)
    })
}

extern "C" fn service_gate(block: *mut VcpuBlock, next: u64) -> u64 {
    check(block, Helper::ServiceGate, |core| core.service_gate(next))
}

extern "C" fn read_flags(block: *mut VcpuBlock, _: u64) -> u64 {
    // SAFETY: translated code passes its own live block and is stopped.
    let block = unsafe { &mut *block };
    crate::host_flags::materialize(block);
    block.cpu.rflags
}

extern "C" fn load_mxcsr(_: *mut VcpuBlock, value: u64) -> u64 {
    let value = value as u32;
    // SAFETY: loads the control register from a local; translated code has checked the reserved bits.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, readonly)) };
    0
}

extern "C" fn store_mxcsr(_: *mut VcpuBlock, _: u64) -> u64 {
    let mut value = 0u32;
    // SAFETY: stores the control register to a local.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack)) };
    value.into()
}

/// Resolves what a slot or the target table could not; called by the stubs.
pub(crate) extern "C" fn resolve(block: *mut VcpuBlock, argument: u64, kind: u64) -> Resolution {
    let kind = if kind == MissKind::Slot as u64 { MissKind::Slot } else { MissKind::Target };
    let _mxcsr = HostMxcsr::new(block);
    // SAFETY: the block is live and its context points to the core that runs this code; `Core::resolve` takes the
    // pointer, because it runs guest code again.
    unsafe { Core::resolve((*block).context.cast::<Core>(), argument, kind) }
}

/// Host address of a helper.
pub(crate) fn address(helper: Helper) -> u64 {
    (match helper {
        Helper::Interpret => interpret as *const (),
        Helper::InterpretJump => interpret_jump as *const (),
        Helper::Syscall => syscall as *const (),
        Helper::Sysret => sysret as *const (),
        Helper::Iret => iret as *const (),
        Helper::Hook => hook as *const (),
        Helper::HookInside => hook_inside as *const (),
        Helper::ServiceGate => service_gate as *const (),
        Helper::LoadMxcsr => load_mxcsr as *const (),
        Helper::StoreMxcsr => store_mxcsr as *const (),
        Helper::ReadFlags => read_flags as *const (),
    }) as u64
}
