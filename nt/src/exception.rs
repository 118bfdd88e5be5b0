//! Exceptions: from the guest kernel's trap handlers to the process's own dispatcher.
//!
//! The trap handler has built a KTRAP_FRAME and asks what to do. Faults that memory management can serve are repeated;
//! everything else becomes an EXCEPTION_RECORD and a CONTEXT on the user stack, and the frame is changed so that the
//! trap returns to ntdll!KiUserExceptionDispatcher.

use iced_x86::{Decoder, DecoderOptions};
use lstar_arch::{Gpr, PAGE_SIZE, PageFaultCode, Privilege};
use lstar_guest_images::layout::ktrap_frame as frame;
use lstar_runtime::{GateAction, Registers, Vcpu};

use crate::context::{CONTEXT_SIZE, TrapFrame, UserContext, current_frame, flags};
use crate::crash::LastException;
use crate::kernel::Kernel;
use crate::memory::{FaultResolution, PageProtection};
use crate::service::{Call, Outcome};
use crate::status::Status;
use crate::system::StopReason;
use crate::thread::Apc;
use crate::user_ptr::{GuestValue, UserMemory, UserPtr};

crate::services! {
    pub SERVICES;
    /// Raises an exception, or, when its first chance is over, ends the process with its code.
    NtRaiseException(record: UserPtr<ExceptionRecord>, context: UserPtr<u8>, first_chance: bool) = nt_raise_exception;
    /// Replaces the caller's registers; with an alert test, pending APCs run first.
    NtContinue(context: UserPtr<u8>, test_alert: bool) = nt_continue;
    /// Replaces the caller's registers; the second argument is a BOOLEAN or points to KCONTINUE_ARGUMENT.
    NtContinueEx(context: UserPtr<u8>, argument: u64) = nt_continue_ex;
    /// Delivers pending user APCs.
    NtTestAlert() = nt_test_alert;
}

crate::guest_struct! {
    /// EXCEPTION_RECORD.
    pub struct ExceptionRecord: 0x98 {
        /// The exception's status.
        pub code @ 0: u32,
        /// EXCEPTION_NONCONTINUABLE and the like.
        pub flags @ 4: u32,
        /// Record of the exception during whose handling this one arose.
        pub nested @ 8: u64,
        /// Where.
        pub address @ 0x10: u64,
        /// How many of the parameters count.
        pub parameter_count @ 0x18: u32,
        /// What the exception's kind defines.
        pub parameters @ 0x20: [u64; 15],
    }
}

impl ExceptionRecord {
    /// A record with parameters (fifteen at most count).
    #[must_use]
    pub fn new(code: Status, address: u64, parameters: &[u64]) -> Self {
        let mut record = Self { code: code.0, address, ..Self::default() };
        for (slot, value) in record.parameters.iter_mut().zip(parameters) {
            *slot = *value;
            record.parameter_count += 1;
        }
        record
    }
}

/// The frame that KiUserExceptionDispatcher finds at RSP: CONTEXT, CONTEXT_EX, EXCEPTION_RECORD, machine frame.
mod dispatch_frame {
    pub const CONTEXT_EX: usize = 0x4D0;
    pub const RECORD: usize = 0x4F0;
    pub const MACHINE_FRAME: usize = 0x590;
    pub const SIZE: usize = 0x5C0;
    /// Alignment of the whole.
    pub const ALIGNMENT: u64 = 64;
}

/// CONTEXT_EX: the CONTEXT lies below it, there is no extended state. Offset and length of the whole, of the CONTEXT,
/// of the extended state.
const CONTEXT_EX_CHUNKS: [i32; 6] = [-0x4D0, 0x4E8, -0x4D0, 0x4D0, 0x18, 0];
/// KiUserApcDispatcher finds a CONTEXT with room for the machine frame behind it.
const APC_FRAME_SIZE: u64 = 0x500;
/// RFLAGS.TF.
const TRAP_FLAG: u64 = 0x100;

/// Vectors that the guest's IDT leads here.
mod vector {
    pub const DIVIDE: u32 = 0;
    pub const DEBUG: u32 = 1;
    pub const BREAKPOINT: u32 = 3;
    pub const OVERFLOW: u32 = 4;
    pub const BOUND: u32 = 5;
    pub const INVALID_OPCODE: u32 = 6;
    pub const GENERAL_PROTECTION: u32 = 13;
    pub const PAGE_FAULT: u32 = 14;
    pub const X87: u32 = 16;
    pub const ALIGNMENT: u32 = 17;
    pub const SIMD: u32 = 19;
    pub const FAST_FAIL: u32 = 0x29;
    pub const ASSERTION: u32 = 0x2C;
    pub const DEBUG_SERVICE: u32 = 0x2D;
}

impl Kernel {
    /// A trap handler asks: ECX = vector, RDX = trap frame.
    pub fn exception(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        let vector = vcpu.reg(Gpr::Rcx) as u32;
        let frame_address = vcpu.reg(Gpr::Rdx);
        match self.dispatch_trap(vcpu, vector, frame_address) {
            Ok(action) => action,
            Err(_) => {
                self.stop.get_or_insert(StopReason::KernelFault);
                GateAction::Stop
            }
        }
    }

    fn dispatch_trap(&mut self, vcpu: &mut Vcpu<'_>, vector: u32, frame_address: u64) -> Result<GateAction, Status> {
        let trap = TrapFrame::read(vcpu.memory, frame_address)?;
        let address: u64 = trap.get(frame::FAULT_ADDRESS);
        let error = PageFaultCode::from_bits_truncate(trap.get::<u64>(frame::ERROR_CODE) as u32);
        let resolution = if vector == vector::PAGE_FAULT {
            self.memory.resolve_fault(vcpu.memory, address, error)
        } else {
            FaultResolution::AccessViolation
        };
        if resolution == FaultResolution::Retry {
            return Ok(GateAction::Resume);
        }
        if !trap.is_user() {
            let mut user = UserContext::of_frame(vcpu, vcpu.memory, frame_address)?;
            user.rip = trap.get(frame::RIP);
            let record = ExceptionRecord::new(Status::ACCESS_VIOLATION, user.rip, &[u64::from(vector), address]);
            self.note_exception(&record, &user);
            return Err(Status::UNHANDLED_EXCEPTION);
        }
        let resolution = match resolution {
            FaultResolution::GuardPage => self.grow_current_stack(vcpu, address).unwrap_or(resolution),
            other => other,
        };
        if resolution == FaultResolution::Retry {
            return Ok(GateAction::Resume);
        }
        let mut user = UserContext::of_frame(vcpu, vcpu.memory, frame_address)?;
        if vector == vector::DEBUG_SERVICE && self.debug_service(vcpu, &mut user) {
            user.apply(vcpu, frame_address)?;
            return Ok(GateAction::Resume);
        }
        let code = match resolution {
            FaultResolution::GuardPage => Status::GUARD_PAGE_VIOLATION,
            FaultResolution::StackOverflow => Status::STACK_OVERFLOW,
            _ => Status::ACCESS_VIOLATION,
        };
        let trap_rip = user.rip;
        let record = if vector == vector::PAGE_FAULT {
            ExceptionRecord::new(code, user.rip, &[access_kind(error), address])
        } else {
            self.record_of_vector(vcpu, vector, &mut user)
        };
        if vector == vector::FAST_FAIL {
            self.end_with_exception(vcpu, &record, &user);
            return Ok(self.complete(vcpu, Outcome::ThreadEnded));
        }
        let rip_change = user.rip.wrapping_sub(trap_rip);
        if let Some(outcome) = self.report_exception(&record, true, rip_change, frame_address) {
            // The step is over for whoever goes on from here, too.
            user.rip = trap_rip;
            user.apply(vcpu, frame_address)?;
            return Ok(self.complete(vcpu, outcome));
        }
        if self.raise(vcpu, &record, &mut user, frame_address)? {
            return Ok(GateAction::Resume);
        }
        Ok(self.complete(vcpu, Outcome::ThreadEnded))
    }

    /// A guard page was touched in memory that user mode made a stack of (a fiber's): it grows like the thread's own. The
    /// TEB says where it is.
    fn grow_current_stack(&mut self, vcpu: &mut Vcpu<'_>, address: u64) -> Option<FaultResolution> {
        const STACK_BASE: u64 = 0x8;
        const STACK_LIMIT: u64 = 0x10;
        const DEALLOCATION_STACK: u64 = 0x1478;
        /// Pages at the low end that only the handling of an overflow may use.
        const RESERVED_PAGES: u64 = 2;
        let teb = self.scheduler.current()?.teb;
        let mut field = |offset: u64| {
            let mut bytes = [0; 8];
            let read = self.memory.read(vcpu.memory, teb.wrapping_add(offset), &mut bytes, Privilege::User);
            read.ok().map(|()| u64::from_le_bytes(bytes))
        };
        let (base, low) = (field(STACK_BASE)?, field(DEALLOCATION_STACK)?);
        let page = address & !(PAGE_SIZE - 1);
        if !(low..base).contains(&page) {
            return None;
        }
        let (start, vad) = self.memory.vads.find_mut(page).filter(|(start, _)| *start == low)?;
        let guard = page.wrapping_sub(PAGE_SIZE);
        let overflow = guard < low + RESERVED_PAGES * PAGE_SIZE;
        if !overflow {
            let protection = PageProtection::READWRITE.with_guard();
            vad.commit(vcpu.memory, start, guard..page, protection).ok()?;
        }
        self.memory.write(vcpu.memory, teb.wrapping_add(STACK_LIMIT), &page.to_le_bytes(), Privilege::User).ok()?;
        Some(if overflow { FaultResolution::StackOverflow } else { FaultResolution::Retry })
    }

    /// The record of an exception that is no page fault. Breakpoints report the instruction itself.
    fn record_of_vector(&mut self, vcpu: &mut Vcpu<'_>, vector: u32, user: &mut UserContext) -> ExceptionRecord {
        let code = match vector {
            vector::DIVIDE => Status::INTEGER_DIVIDE_BY_ZERO,
            vector::DEBUG => {
                // One step was asked for, not one after another.
                user.rflags &= !TRAP_FLAG;
                Status::SINGLE_STEP
            }
            vector::BREAKPOINT => {
                user.rip = user.rip.wrapping_sub(1);
                return ExceptionRecord::new(Status::BREAKPOINT, user.rip, &[0]);
            }
            vector::OVERFLOW => Status::INTEGER_OVERFLOW,
            vector::BOUND => Status::ARRAY_BOUNDS_EXCEEDED,
            vector::INVALID_OPCODE => Status::ILLEGAL_INSTRUCTION,
            vector::X87 => x87_status(user.x87.status, user.x87.control),
            vector::ALIGNMENT => Status::DATATYPE_MISALIGNMENT,
            vector::SIMD => simd_status(user.mxcsr),
            vector::FAST_FAIL => {
                user.rip = user.rip.wrapping_sub(2);
                let mut record =
                    ExceptionRecord::new(Status::STACK_BUFFER_OVERRUN, user.rip, &[user.reg(Gpr::Rcx) & 0xFFFF_FFFF]);
                record.flags = 1;
                return record;
            }
            vector::ASSERTION => {
                // Like a breakpoint it is reported at the instruction itself, INT 2Ch.
                user.rip = user.rip.wrapping_sub(2);
                Status::ASSERTION_FAILURE
            }
            vector::DEBUG_SERVICE => Status::BREAKPOINT,
            vector::GENERAL_PROTECTION if self.is_privileged(vcpu, user.rip) => Status::PRIVILEGED_INSTRUCTION,
            // A selector or a non-canonical address: Windows cannot say more than this.
            _ => return ExceptionRecord::new(Status::ACCESS_VIOLATION, user.rip, &[0, u64::MAX]),
        };
        ExceptionRecord::new(code, user.rip, &[])
    }

    fn is_privileged(&mut self, vcpu: &mut Vcpu<'_>, rip: u64) -> bool {
        let mut bytes = [0; 15];
        let available = (1..=bytes.len())
            .rev()
            .find(|&length| self.memory.read(vcpu.memory, rip, &mut bytes[..length], Privilege::User).is_ok());
        let code = &bytes[..available.unwrap_or(0)];
        Decoder::with_ip(64, code, rip, DecoderOptions::NONE).decode().is_privileged()
    }

    /// INT 2Dh, the kernel debugger's services: there is no debugger, so printing does nothing. A breakpoint byte
    /// follows the instruction and is skipped. Other services are breakpoints.
    fn debug_service(&mut self, vcpu: &mut Vcpu<'_>, user: &mut UserContext) -> bool {
        const BREAKPOINT_PRINT: u64 = 1;
        const BREAKPOINT_PROMPT: u64 = 2;
        if !matches!(user.reg(Gpr::Rax) & 0xFFFF_FFFF, BREAKPOINT_PRINT | BREAKPOINT_PROMPT) {
            return false;
        }
        let mut next = [0];
        if self.memory.read(vcpu.memory, user.rip, &mut next, Privilege::User).is_ok() && next == [0xCC] {
            user.rip = user.rip.wrapping_add(1);
        }
        user.set_reg(Gpr::Rax, 0);
        true
    }

    /// Hands an exception to the process: pushes the frame and lets the trap return to KiUserExceptionDispatcher. When
    /// the stack cannot take it, the process ends, and the result is `false`.
    pub fn raise(
        &mut self,
        vcpu: &mut Vcpu<'_>,
        record: &ExceptionRecord,
        user: &mut UserContext,
        frame_address: u64,
    ) -> Result<bool, Status> {
        self.note_exception(record, user);
        let dispatcher = self.process.entry_points.exception_dispatcher;
        let sp = user.reg(Gpr::Rsp);
        let base = sp.wrapping_sub(dispatch_frame::SIZE as u64) & !(dispatch_frame::ALIGNMENT - 1);
        let bytes = exception_frame(record, user);
        if dispatcher == 0 || self.memory.write(vcpu.memory, base, &bytes, Privilege::User).is_err() {
            self.end_with_exception(vcpu, record, user);
            return Ok(false);
        }
        user.set_reg(Gpr::Rsp, base);
        user.rip = dispatcher;
        user.rflags &= !TRAP_FLAG;
        user.apply(vcpu, frame_address)?;
        Ok(true)
    }

    fn note_exception(&mut self, record: &ExceptionRecord, user: &UserContext) {
        let thread = self.scheduler.current;
        self.last_exception = Some(LastException { thread, record: *record, user: user.clone() });
    }

    /// Ends the process because of an exception that nothing handles.
    pub fn end_with_exception(&mut self, vcpu: &mut Vcpu<'_>, record: &ExceptionRecord, user: &UserContext) {
        self.note_exception(record, user);
        let process = self.process.id;
        self.end_process(vcpu, process, Status(record.code));
    }

    /// A page fault while the guest kernel copied a service's stack arguments: RDX = trap frame. A non-negative RAX
    /// repeats the access.
    pub fn copy_fault(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        let served = TrapFrame::read(vcpu.memory, vcpu.reg(Gpr::Rdx)).is_ok_and(|trap| {
            let address: u64 = trap.get(frame::FAULT_ADDRESS);
            let error = PageFaultCode::from_bits_truncate(trap.get::<u64>(frame::ERROR_CODE) as u32);
            self.memory.resolve_fault(vcpu.memory, address, error) == FaultResolution::Retry
        });
        let status = if served { Status::SUCCESS } else { Status::ACCESS_VIOLATION };
        vcpu.set_reg(Gpr::Rax, u64::from(status.0));
        GateAction::Resume
    }

    /// The guest kernel is about to return to user mode and a user APC is pending: RDX = trap frame.
    pub fn deliver_apc(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        let frame_address = vcpu.reg(Gpr::Rdx);
        vcpu.set_reg(Gpr::Rax, 0);
        // An APC without a routine only ends the wait.
        let next = self
            .scheduler
            .current_mut()
            .and_then(|thread| std::iter::from_fn(|| thread.apcs.pop_front()).find(|apc| apc.routine != 0));
        let Some(apc) = next else { return GateAction::Resume };
        match self.push_apc(vcpu, frame_address, apc) {
            Ok(()) => GateAction::Resume,
            Err(status) => {
                let process = self.process.id;
                self.end_process(vcpu, process, status);
                self.complete(vcpu, Outcome::ThreadEnded)
            }
        }
    }

    fn push_apc(&mut self, vcpu: &mut Vcpu<'_>, frame_address: u64, apc: Apc) -> Result<(), Status> {
        let mut user = UserContext::of_frame(vcpu, vcpu.memory, frame_address)?;
        let mut bytes = [0; CONTEXT_SIZE];
        user.store(&mut bytes, flags::ALL);
        // P1Home to P4Home carry the arguments and the routine.
        for (slot, value) in [apc.arguments[0], apc.arguments[1], apc.arguments[2], apc.routine].into_iter().enumerate()
        {
            value.to_bytes(&mut bytes[slot * 8..]);
        }
        let base = user.reg(Gpr::Rsp).wrapping_sub(APC_FRAME_SIZE) & !0x3F;
        self.memory.write(vcpu.memory, base, &bytes, Privilege::User)?;
        user.set_reg(Gpr::Rsp, base);
        user.rip = self.process.entry_points.apc_dispatcher;
        // Further APCs follow when the dispatcher calls NtContinue with an alert test.
        user.apply(vcpu, frame_address)?;
        Ok(())
    }
}

/// First parameter of an access violation: 0 for reads, 1 for writes, 8 for execution.
fn access_kind(code: PageFaultCode) -> u64 {
    if code.contains(PageFaultCode::FETCH) { 8 } else { u64::from(code.contains(PageFaultCode::WRITE)) }
}

fn exception_frame(record: &ExceptionRecord, user: &UserContext) -> Vec<u8> {
    let mut bytes = vec![0; dispatch_frame::SIZE];
    let mut context = [0; CONTEXT_SIZE];
    user.store(&mut context, flags::ALL);
    bytes[..CONTEXT_SIZE].copy_from_slice(&context);
    CONTEXT_EX_CHUNKS.to_bytes(&mut bytes[dispatch_frame::CONTEXT_EX..]);
    record.to_bytes(&mut bytes[dispatch_frame::RECORD..]);
    let machine_frame = [
        user.rip,
        u64::from(crate::context::USER_CS),
        user.rflags,
        user.reg(Gpr::Rsp),
        u64::from(crate::context::USER_SS),
    ];
    machine_frame.to_bytes(&mut bytes[dispatch_frame::MACHINE_FRAME..]);
    bytes
}

/// Status of the first unmasked exception in priority order, from pending and mask bits in the x87 layout (bit 0
/// invalid, 1 denormal, 2 zero divide, 3 overflow, 4 underflow, 5 precision).
fn float_status(unmasked: u32) -> Status {
    const BY_BIT: [Status; 6] = [
        Status::FLOAT_INVALID_OPERATION,
        Status::FLOAT_DENORMAL_OPERAND,
        Status::FLOAT_DIVIDE_BY_ZERO,
        Status::FLOAT_OVERFLOW,
        Status::FLOAT_UNDERFLOW,
        Status::FLOAT_INEXACT_RESULT,
    ];
    BY_BIT.get(unmasked.trailing_zeros() as usize).copied().unwrap_or(Status::FLOAT_INVALID_OPERATION)
}

fn x87_status(status: u16, control: u16) -> Status {
    const STACK_FAULT: u16 = 0x40;
    let unmasked = status & !control & 0x3F;
    if unmasked & 1 != 0 && status & STACK_FAULT != 0 {
        return Status::FLOAT_STACK_CHECK;
    }
    float_status(u32::from(unmasked))
}

fn simd_status(mxcsr: u32) -> Status {
    float_status(mxcsr & !(mxcsr >> 7) & 0x3F)
}

impl Call<'_, '_> {
    /// The caller's user-mode registers.
    pub fn user_context(&self) -> Result<UserContext, Status> {
        Ok(UserContext::of_frame(self.vcpu, self.vcpu.memory, current_frame(self.vcpu))?)
    }

    /// Replaces them. Only services that the guest kernel leaves by its full exit may do this.
    pub fn set_user_context(&mut self, user: &UserContext) -> Result<(), Status> {
        let frame = current_frame(self.vcpu);
        Ok(user.apply(self.vcpu, frame)?)
    }

    /// Marks pending user APCs for delivery on the way out.
    pub fn deliver_pending_apcs(&mut self) {
        let layout = self.kernel.layout;
        if let Some(thread) = self.kernel.scheduler.current().filter(|thread| !thread.apcs.is_empty()) {
            layout.set_apc_pending(self.vcpu.memory, thread.slot, true);
        }
    }

    /// Reads a CONTEXT over the caller's own state.
    fn read_context(&mut self, context: UserPtr<u8>) -> Result<UserContext, Status> {
        let mut bytes = [0; CONTEXT_SIZE];
        self.read_user(context.address(), &mut bytes)?;
        let mut user = self.user_context()?;
        user.load(&bytes);
        Ok(user)
    }
}

fn nt_continue(call: &mut Call<'_, '_>, context: UserPtr<u8>, test_alert: bool) -> Result<Status, Status> {
    let user = call.read_context(context)?;
    call.set_user_context(&user)?;
    if test_alert {
        call.deliver_pending_apcs();
    }
    Ok(Status::SUCCESS)
}

fn nt_continue_ex(call: &mut Call<'_, '_>, context: UserPtr<u8>, argument: u64) -> Result<Status, Status> {
    /// KCONTINUE_FLAG_TEST_ALERT.
    const TEST_ALERT: u32 = 1;
    // Small values are the BOOLEAN of the older service.
    let test_alert = if argument < 0x100 {
        argument != 0
    } else {
        UserPtr::<[u32; 2]>::new(argument).read(call)?[1] & TEST_ALERT != 0
    };
    nt_continue(call, context, test_alert)
}

fn nt_test_alert(call: &mut Call<'_, '_>) -> Status {
    let alerted = call.kernel.scheduler.current_mut().is_some_and(|thread| std::mem::take(&mut thread.alerted));
    call.deliver_pending_apcs();
    if alerted { Status::ALERTED } else { Status::SUCCESS }
}

fn nt_raise_exception(
    call: &mut Call<'_, '_>,
    record: UserPtr<ExceptionRecord>,
    context: UserPtr<u8>,
    first_chance: bool,
) -> Result<Outcome, Status> {
    let record = record.read(call)?;
    let mut user = call.read_context(context)?;
    let frame = current_frame(call.vcpu);
    if let Some(outcome) = call.kernel.report_exception(&record, first_chance, 0, frame) {
        // That is what the debugger sees and may change.
        user.apply(call.vcpu, frame)?;
        return Ok(outcome);
    }
    if !first_chance {
        call.kernel.end_with_exception(call.vcpu, &record, &user);
        return Ok(Outcome::ThreadEnded);
    }
    let raised = call.kernel.raise(call.vcpu, &record, &mut user, frame)?;
    Ok(if raised { Outcome::Return(Status::SUCCESS) } else { Outcome::ThreadEnded })
}
