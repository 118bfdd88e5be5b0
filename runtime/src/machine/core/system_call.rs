//! SYSCALL and SYSRET from translated code, direct dispatch, and the service gate.
#![expect(unsafe_code, reason = "the gate is a pointer made from the reference that the run holds")]

use lstar_arch::control::dr;
use lstar_arch::delivery::Event;
use lstar_arch::{Exception, Rflags, system};

use super::{After, Core};
use crate::machine::{GateAction, SystemCall, VmExit};

/// More instructions than direct dispatch does the work of.
const MOST_DISPATCHED: i64 = 512;

impl Core {
    /// SYSCALL, from translated code. `Continue` when the call has already come back behind the instruction, and translated code
    /// can go on.
    #[inline(always)]
    pub fn syscall(&mut self, next: u64) -> After {
        self.cpu_mut().rip = next;
        match self.direct_dispatch(next) {
            Some(after) => after,
            None => self.syscall_architecturally(next),
        }
    }

    #[inline(never)]
    fn syscall_architecturally(&mut self, next: u64) -> After {
        let cpu = self.cpu_mut();
        let cpl = cpu.cpl;
        match system::syscall(cpu) {
            Ok(()) => {
                self.statistics.syscalls += 1;
                self.switched(cpl).unwrap_or(After::Redirect)
            }
            Err(exception) => {
                self.cpu_mut().rip = next.wrapping_sub(2);
                self.block_mut().budget += 1;
                self.deliver(Event::Exception(exception))
            }
        }
    }

    /// SYSRETQ (`quad`) or SYSRETL at `rip`, from translated code.
    pub fn sysret(&mut self, rip: u64, quad: bool) -> After {
        let size = if quad { system::OperandSize::Qword } else { system::OperandSize::Dword };
        let cpu = self.cpu_mut();
        // Only an exception looks at it, and that restores it.
        cpu.rip = rip;
        match system::sysret(cpu, size) {
            Ok(()) => {
                if let Some(after) = self.switched(0) {
                    return after;
                }
                if self.cpu().rflags & Rflags::TF.bits() != 0 {
                    return self.deliver(Event::Exception(Exception::db(dr::DR6_BS)));
                }
                After::Redirect
            }
            Err(exception) => {
                self.cpu_mut().rip = rip;
                self.block_mut().budget += 1;
                self.deliver(Event::Exception(exception))
            }
        }
    }

    /// Lets the gate do the work of SYSCALL and the entry code, where that is wanted: `Continue` when the call has come back
    /// to `next`. `None`, with nothing changed, when SYSCALL is to execute.
    #[inline(always)]
    fn direct_dispatch(&mut self, next: u64) -> Option<After> {
        let gate = self.gate.filter(|_| self.dispatches_directly)?;
        // The guest code may not last as long as the run; then it must itself be where the run ends.
        if self.block().budget < MOST_DISPATCHED {
            return None;
        }
        let mut vcpu = self.vcpu();
        let before = vcpu.retired;
        // SAFETY: as in `service_gate`.
        let outcome = unsafe { (*gate).system_call(&mut vcpu) };
        if outcome != SystemCall::Returned {
            vcpu.settle();
        }
        let done = vcpu.retired.wrapping_sub(before);
        self.block_mut().budget -= done as i64;
        if outcome == SystemCall::Returned && !self.memory.has_changes() {
            // Back in user mode: `next` is there.
            self.statistics.syscalls += 1;
            self.statistics.privilege_switches += 2;
            return Some(After::Continue);
        }
        match outcome {
            SystemCall::Declined => None,
            SystemCall::Returned | SystemCall::Resume => Some(self.come_back(GateAction::Resume, next)),
            SystemCall::Redirect => Some(self.come_back(GateAction::Redirect, next)),
            SystemCall::Stop => Some(self.come_back(GateAction::Stop, next)),
        }
    }

    /// What follows a system call that has not simply come back.
    #[inline(never)]
    fn come_back(&mut self, action: GateAction, next: u64) -> After {
        self.statistics.syscalls += 1;
        self.statistics.privilege_switches += 1 + u64::from(self.cpu().cpl != 0);
        let stale = self.drop_stale();
        match action {
            GateAction::Resume => {
                let here = self.cpu().cpl == 3 && self.cpu().rip == next;
                if !stale && here && !self.must_redispatch() { After::Continue } else { After::Redirect }
            }
            GateAction::Redirect => After::Redirect,
            GateAction::Stop => {
                self.exit = Some(VmExit::Stopped);
                After::Exit
            }
        }
    }

    /// The gate instruction has executed; RIP is `next`.
    pub fn service_gate(&mut self, next: u64) -> After {
        self.cpu_mut().rip = next;
        let Some(gate) = self.gate else {
            self.exit = Some(VmExit::Halted);
            return After::Exit;
        };
        let cpl = self.cpu().cpl;
        // SAFETY: the pointer was made from the exclusive reference that `run` holds for the whole run; the gate has no way
        // to reach the core, so this is the only use of it at a time.
        let action = unsafe { (*gate).service(&mut self.vcpu()) };
        let switched = self.switched(cpl);
        let stale = self.drop_stale();
        match action {
            _ if switched == Some(After::Exit) => After::Exit,
            GateAction::Resume if !stale && switched.is_none() => After::Continue,
            GateAction::Resume | GateAction::Redirect => After::Redirect,
            GateAction::Stop => {
                self.exit = Some(VmExit::Stopped);
                After::Exit
            }
        }
    }
}
