//! Services that create, end, stop and inspect threads.

use lstar_arch::Gpr;

use super::{Apc, Thread, ThreadId, ThreadState, initial_registers};
use crate::context::{CONTEXT_SIZE, UserContext, context_flags, flags};
use crate::debug::Event;
use crate::kernel::Kernel;
use crate::loader::{self, TebParameters};
use crate::object::{Body, ObjectType};
use crate::process::access;
use crate::service::{Call, Handle, Outcome};
use crate::status::Status;
use crate::strings::RawObjectAttributes;
use crate::user_ptr::{UserMemory, UserPtr};

crate::services! {
    pub SERVICES;
    /// Creates a thread.
    NtCreateThreadEx(handle: UserPtr<Handle>, access: u32, attributes: UserPtr<RawObjectAttributes>, process: Handle, start: u64, argument: u64, flags: u32, zero_bits: u64, stack_commit: u64, stack_reserve: u64, list: UserPtr<u64>) = nt_create_thread_ex;
    /// Ends a thread.
    NtTerminateThread(thread: Handle, status: u32) = nt_terminate_thread;
    /// Opens a thread by its identifier.
    NtOpenThread(handle: UserPtr<Handle>, access: u32, attributes: UserPtr<RawObjectAttributes>, client: UserPtr<[u64; 2]>) = nt_open_thread;
    /// Opens the thread that follows another one of a process.
    NtGetNextThread(process: Handle, thread: Handle, access: u32, attributes: u32, flags: u32, handle: UserPtr<Handle>) = nt_get_next_thread;
    /// Stops a thread until it is resumed.
    NtSuspendThread(thread: Handle, previous: UserPtr<u32>) = nt_suspend_thread;
    /// Undoes one suspension.
    NtResumeThread(thread: Handle, previous: UserPtr<u32>) = nt_resume_thread;
    /// Undoes one suspension and interrupts an alertable wait.
    NtAlertResumeThread(thread: Handle, previous: UserPtr<u32>) = nt_alert_resume_thread;
    /// Interrupts an alertable wait.
    NtAlertThread(thread: Handle) = nt_alert_thread;
    /// Lets NtWaitForAlertByThreadId of a thread return.
    NtAlertThreadByThreadId(thread: u64) = nt_alert_thread_by_thread_id;
    /// Queues a user APC.
    NtQueueApcThread(thread: Handle, routine: u64, argument1: u64, argument2: u64, argument3: u64) = nt_queue_apc_thread;
    /// Queues a user APC; reserve objects and special APCs are taken as plain ones.
    NtQueueApcThreadEx(thread: Handle, reserve: Handle, routine: u64, argument1: u64, argument2: u64, argument3: u64) = nt_queue_apc_thread_ex;
    /// Reads a thread's registers.
    NtGetContextThread(thread: Handle, context: UserPtr<u8>) = nt_get_context_thread;
    /// Replaces a thread's registers.
    NtSetContextThread(thread: Handle, context: UserPtr<u8>) = nt_set_context_thread;
    /// Gives other threads their turn.
    NtYieldExecution() = nt_yield_execution;
    /// The processor the caller runs on.
    NtGetCurrentProcessorNumber() = nt_get_current_processor_number;
}

/// THREAD_CREATE_FLAGS_CREATE_SUSPENDED.
const CREATE_SUSPENDED: u32 = 1;
/// THREAD_CREATE_FLAGS_HIDE_FROM_DEBUGGER.
const HIDE_FROM_DEBUGGER: u32 = 4;
/// PS_ATTRIBUTE_CLIENT_ID and PS_ATTRIBUTE_TEB_ADDRESS: outputs of a thread attribute list.
const ATTRIBUTE_CLIENT_ID: u64 = 0x1_0003;
const ATTRIBUTE_TEB_ADDRESS: u64 = 0x1_0004;
/// Attributes read at most.
const MAX_ATTRIBUTES: u64 = 32;
/// MAXIMUM_SUSPEND_COUNT.
const MAX_SUSPEND_COUNT: u32 = 127;

impl Call<'_, '_> {
    /// The thread behind a handle with some access. STATUS_THREAD_IS_TERMINATING once it has ended.
    pub fn thread_by_handle(&self, handle: Handle, access: u32) -> Result<ThreadId, Status> {
        if handle == Handle::CURRENT_THREAD {
            return Ok(self.thread);
        }
        let kernel = &self.kernel;
        let id = kernel.objects.by_handle(&kernel.handles, handle, Some(ObjectType::Thread), access)?;
        match kernel.objects.body(id)? {
            Body::Thread { id, ended: false, .. } => Ok(*id),
            Body::Thread { .. } => Err(Status::THREAD_IS_TERMINATING),
            _ => Err(Status::OBJECT_TYPE_MISMATCH),
        }
    }
}

impl Kernel {
    /// Queues the APC of a timer that has expired: its context and the time it was due, as TIMER_APC_ROUTINE takes them.
    pub fn queue_timer_apc(&mut self, thread: ThreadId, routine: u64, context: u64, due: u64) {
        if let Some(thread) = self.scheduler.threads.get_mut(&thread) {
            let arguments = [context, due & 0xFFFF_FFFF, due >> 32];
            thread.apcs.push_back(Apc { routine, arguments });
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "the service has as many")]
fn nt_create_thread_ex(
    call: &mut Call<'_, '_>,
    handle: UserPtr<Handle>,
    access: u32,
    attributes: UserPtr<RawObjectAttributes>,
    process: Handle,
    start: u64,
    argument: u64,
    flags: u32,
    zero_bits: u64,
    stack_commit: u64,
    stack_reserve: u64,
    list: UserPtr<u64>,
) -> Result<Status, Status> {
    let target = call.process_by_handle(process, access::CREATE_THREAD)?;
    let attributes = attributes.read_attributes_optional(call)?;
    // Outputs are probed before anything is made.
    handle.write(call, Handle::NULL)?;
    let id = call.attached(target, |call| {
        let image = call.kernel.process.image.image().map(|headers| (headers.stack_reserve, headers.stack_commit));
        let (default_reserve, default_commit) = image.unwrap_or((0x10_0000, 0x1000));
        let reserve = if stack_reserve == 0 { default_reserve } else { stack_reserve };
        let commit = if stack_commit == 0 { default_commit } else { stack_commit };
        let stack_placement = crate::memory::services::placement_of_zero_bits(zero_bits)?;
        let parameters = TebParameters { stack_reserve: reserve, stack_commit: commit, stack_placement };
        create_thread(call, parameters, start, argument)
    })?;
    let thread = call.kernel.scheduler.thread_mut(id)?;
    thread.suspend_count = u32::from(flags & CREATE_SUSPENDED != 0);
    thread.hidden = flags & HIDE_FROM_DEBUGGER != 0;
    let (object, teb, hidden) = (thread.object, thread.teb, thread.hidden);
    if !hidden {
        call.kernel.report(target, id, Event::ThreadCreated { start });
    }
    let kernel = &mut *call.kernel;
    let new = kernel.objects.open(&mut kernel.handles, object, access, attributes.flags.bits())?;
    handle.write(call, new)?;
    write_attribute_list(call, list, [target, id], teb)?;
    Ok(Status::SUCCESS)
}

/// Creates a thread that is ready to enter ntdll's start-up code.
pub fn create_thread(
    call: &mut Call<'_, '_>,
    parameters: TebParameters,
    start: u64,
    argument: u64,
) -> Result<ThreadId, Status> {
    let kernel = &mut *call.kernel;
    let id = kernel.allocate_client_id();
    let created = kernel.clock.interrupt_time();
    let entry = kernel.process.entry_points;
    let prepared = loader::prepare_thread(kernel, call.vcpu.memory, id, parameters)?;
    let context_address = loader::write_initial_context(
        kernel,
        call.vcpu.memory,
        prepared.stack_top,
        [start, argument, entry.user_thread_start],
    )?;
    let slot = kernel.scheduler.slots.allocate(call.vcpu.memory, &kernel.layout.thread, prepared.teb)?;
    let process = kernel.process.id;
    let object = kernel.objects.insert(Body::Thread { id, process, ended: false });

    // A register state can only be made on the processor: the caller's is put back afterwards.
    let caller = call.vcpu.save();
    let mut user = UserContext { rip: entry.loader_thunk, ..UserContext::of_new_thread() };
    user.set_reg(Gpr::Rcx, context_address);
    user.set_reg(Gpr::Rdx, kernel.process.ntdll_base);
    user.set_reg(Gpr::Rsp, context_address.wrapping_sub(8));
    initial_registers(call.vcpu, &kernel.layout, prepared.teb, &user);
    let context = call.vcpu.save();
    call.vcpu.restore(&caller);

    kernel.scheduler.add(Thread {
        id,
        process,
        object,
        teb: prepared.teb,
        stack: prepared.stack,
        slot,
        start_address: start,
        state: ThreadState::Ready,
        context: Some(context),
        continuation: None,
        suspend_count: 0,
        apcs: std::collections::VecDeque::new(),
        alerted: false,
        alerted_by_id: false,
        name: Vec::new(),
        priority: 0,
        affinity: 1,
        created,
        instructions: 0,
        hidden: false,
        initial_context: Some(context_address),
    });
    Ok(id)
}

/// Fills the outputs of a PS_ATTRIBUTE_LIST: total length, then entries of attribute, size, value, returned length.
fn write_attribute_list(call: &mut Call<'_, '_>, list: UserPtr<u64>, client: [u32; 2], teb: u64) -> Result<(), Status> {
    if list.is_null() {
        return Ok(());
    }
    let count = (list.read(call)?.saturating_sub(8) / 0x20).min(MAX_ATTRIBUTES);
    for index in 0..count {
        let [attribute, size, value, returned] = list.byte_add::<[u64; 4]>(8 + index * 0x20).read(call)?;
        let bytes: Vec<u8> = match attribute {
            ATTRIBUTE_CLIENT_ID => client.map(|id| u64::from(id).to_le_bytes()).concat(),
            ATTRIBUTE_TEB_ADDRESS => teb.to_le_bytes().to_vec(),
            _ => continue,
        };
        let length = (size as usize).min(bytes.len());
        call.write_user(value, &bytes[..length])?;
        UserPtr::<u64>::new(returned).write_optional(call, length as u64)?;
    }
    Ok(())
}

fn nt_terminate_thread(call: &mut Call<'_, '_>, thread: Handle, status: u32) -> Result<Outcome, Status> {
    const THREAD_TERMINATE: u32 = 1;
    // The null handle means the caller as well.
    let id = if thread.is_null() { call.thread } else { call.thread_by_handle(thread, THREAD_TERMINATE)? };
    let process = call.kernel.scheduler.process_of(id).ok_or(Status::THREAD_IS_TERMINATING)?;
    if call.kernel.scheduler.threads_of(process).count() == 1 {
        call.kernel.end_process(call.vcpu, process, Status(status));
    } else {
        call.kernel.end_thread(call.vcpu, id, Status(status));
    }
    Ok(if id == call.thread { Outcome::ThreadEnded } else { Outcome::Return(Status::SUCCESS) })
}

fn nt_open_thread(
    call: &mut Call<'_, '_>,
    handle: UserPtr<Handle>,
    access: u32,
    attributes: UserPtr<RawObjectAttributes>,
    client: UserPtr<[u64; 2]>,
) -> Result<Status, Status> {
    handle.write(call, Handle::NULL)?;
    let attributes = attributes.read_attributes_optional(call)?;
    // The two lowest bits of an identifier do not count.
    let [process, thread] = client.read(call)?.map(|id| id & !3);
    let kernel = &mut *call.kernel;
    let id = ThreadId::try_from(thread).map_err(|_| Status::INVALID_CID)?;
    let target = kernel.scheduler.threads.get(&id).ok_or(Status::INVALID_CID)?;
    if process != 0 && process != u64::from(target.process) {
        return Err(Status::INVALID_CID);
    }
    let object = target.object;
    let new = kernel.objects.open(&mut kernel.handles, object, access, attributes.flags.bits())?;
    handle.write(call, new)?;
    Ok(Status::SUCCESS)
}

fn nt_get_next_thread(
    call: &mut Call<'_, '_>,
    process: Handle,
    thread: Handle,
    access: u32,
    attributes: u32,
    flags: u32,
    handle: UserPtr<Handle>,
) -> Result<Status, Status> {
    if flags > 1 {
        return Err(Status::INVALID_PARAMETER);
    }
    handle.write(call, Handle::NULL)?;
    let process = call.process_by_handle(process, access::QUERY_INFORMATION)?;
    let after = match thread {
        Handle::NULL => None,
        Handle::CURRENT_THREAD => Some(call.thread),
        handle => match call.body(handle, ObjectType::Thread, 0)? {
            Body::Thread { id, .. } => Some(*id),
            _ => return Err(Status::OBJECT_TYPE_MISMATCH),
        },
    };
    let kernel = &mut *call.kernel;
    // Those that have ended are passed, too, as long as somebody holds them.
    let threads = kernel.objects.iter().filter_map(|(object, entry)| match entry.body {
        Body::Thread { id, process: of, .. } if of == process => Some((id, object)),
        _ => None,
    });
    let next = threads.filter(|&(id, _)| after.is_none_or(|after| id > after)).min();
    let (_, object) = next.ok_or(Status::NO_MORE_ENTRIES)?;
    let new = kernel.objects.open(&mut kernel.handles, object, access, attributes)?;
    handle.write(call, new)?;
    Ok(Status::SUCCESS)
}

const THREAD_SUSPEND_RESUME: u32 = 2;
const THREAD_ALERT: u32 = 4;
const THREAD_GET_CONTEXT: u32 = 8;
const THREAD_SET_CONTEXT: u32 = 0x10;

fn nt_suspend_thread(call: &mut Call<'_, '_>, thread: Handle, previous: UserPtr<u32>) -> Result<Status, Status> {
    let id = call.thread_by_handle(thread, THREAD_SUSPEND_RESUME)?;
    let target = call.kernel.scheduler.thread_mut(id)?;
    let count = target.suspend_count;
    if count >= MAX_SUSPEND_COUNT {
        return Err(Status::SUSPEND_COUNT_EXCEEDED);
    }
    target.suspend_count = count + 1;
    previous.write_optional(call, count)?;
    Ok(Status::SUCCESS)
}

fn nt_resume_thread(call: &mut Call<'_, '_>, thread: Handle, previous: UserPtr<u32>) -> Result<Status, Status> {
    let id = match call.thread_by_handle(thread, THREAD_SUSPEND_RESUME) {
        // One that has ended is not suspended.
        Err(Status::THREAD_IS_TERMINATING) => {
            previous.write_optional(call, 0)?;
            return Ok(Status::SUCCESS);
        }
        id => id?,
    };
    let target = call.kernel.scheduler.thread_mut(id)?;
    let count = target.suspend_count;
    target.suspend_count = count.saturating_sub(1);
    previous.write_optional(call, count)?;
    Ok(Status::SUCCESS)
}

fn nt_alert_resume_thread(call: &mut Call<'_, '_>, thread: Handle, previous: UserPtr<u32>) -> Result<Status, Status> {
    nt_alert_thread(call, thread)?;
    nt_resume_thread(call, thread, previous)
}

fn nt_alert_thread(call: &mut Call<'_, '_>, thread: Handle) -> Result<Status, Status> {
    let id = call.thread_by_handle(thread, THREAD_ALERT)?;
    call.kernel.scheduler.thread_mut(id)?.alerted = true;
    Ok(Status::SUCCESS)
}

fn nt_alert_thread_by_thread_id(call: &mut Call<'_, '_>, thread: u64) -> Result<Status, Status> {
    let id = ThreadId::try_from(thread).map_err(|_| Status::INVALID_CID)?;
    match call.kernel.scheduler.threads.get_mut(&id) {
        Some(target) => target.alerted_by_id = true,
        // One that has ended and is still held takes no notice.
        None => {
            let held = |body: &Body| matches!(body, Body::Thread { id: held, .. } if *held == id);
            call.kernel.objects.iter().find(|(_, object)| held(&object.body)).ok_or(Status::INVALID_CID)?;
        }
    }
    Ok(Status::SUCCESS)
}

fn nt_queue_apc_thread(
    call: &mut Call<'_, '_>,
    thread: Handle,
    routine: u64,
    argument1: u64,
    argument2: u64,
    argument3: u64,
) -> Result<Status, Status> {
    // No APC runs in a thread that has ended.
    let gone = |status| if status == Status::THREAD_IS_TERMINATING { Status::UNSUCCESSFUL } else { status };
    let id = call.thread_by_handle(thread, THREAD_SET_CONTEXT).map_err(gone)?;
    // An APC without a routine does nothing but end an alertable wait.
    let apc = Apc { routine, arguments: [argument1, argument2, argument3] };
    call.kernel.scheduler.thread_mut(id)?.apcs.push_back(apc);
    Ok(Status::SUCCESS)
}

fn nt_queue_apc_thread_ex(
    call: &mut Call<'_, '_>,
    thread: Handle,
    _reserve: Handle,
    routine: u64,
    argument1: u64,
    argument2: u64,
    argument3: u64,
) -> Result<Status, Status> {
    nt_queue_apc_thread(call, thread, routine, argument1, argument2, argument3)
}

fn nt_get_context_thread(call: &mut Call<'_, '_>, thread: Handle, context: UserPtr<u8>) -> Result<Status, Status> {
    let id = call.thread_by_handle(thread, THREAD_GET_CONTEXT)?;
    let mut bytes = [0; CONTEXT_SIZE];
    call.read_user(context.address(), &mut bytes)?;
    let user = if id == call.thread {
        call.user_context()?
    } else if let Some((_, user)) = initial_context(call, id)? {
        user
    } else {
        call.kernel.scheduler.thread_mut(id)?.user_context(call.vcpu.memory)?
    };
    let wanted = context_flags(&bytes);
    user.store(&mut bytes, wanted);
    call.write_user(context.address(), &bytes)?;
    Ok(Status::SUCCESS)
}

/// The CONTEXT with which a thread that has not run yet will begin, and where it is.
fn initial_context(call: &mut Call<'_, '_>, id: ThreadId) -> Result<Option<(u64, UserContext)>, Status> {
    let thread = call.kernel.scheduler.thread_mut(id)?;
    let (Some(address), process) = (thread.initial_context, thread.process) else { return Ok(None) };
    let bytes = call.attached(process, |call| {
        let mut bytes = [0; CONTEXT_SIZE];
        call.read_user(address, &mut bytes)?;
        Ok(bytes)
    })?;
    let mut user = UserContext::of_new_thread();
    user.load(&bytes);
    Ok(Some((address, user)))
}

fn nt_set_context_thread(call: &mut Call<'_, '_>, thread: Handle, context: UserPtr<u8>) -> Result<Outcome, Status> {
    let id = call.thread_by_handle(thread, THREAD_SET_CONTEXT)?;
    let mut bytes = [0; CONTEXT_SIZE];
    call.read_user(context.address(), &mut bytes)?;
    if id == call.thread {
        let mut user = call.user_context()?;
        user.set_reg(Gpr::Rax, u64::from(Status::SUCCESS.0));
        user.load(&bytes);
        return Ok(Outcome::Redirect(user.into()));
    }
    if let Some((address, mut user)) = initial_context(call, id)? {
        user.load(&bytes);
        let process = call.kernel.scheduler.thread_mut(id)?.process;
        call.attached(process, |call| {
            let mut stored = [0; CONTEXT_SIZE];
            user.store(&mut stored, flags::ALL);
            call.write_user(address, &stored)
        })?;
        return Ok(Outcome::Return(Status::SUCCESS));
    }
    let layout = call.kernel.layout;
    let target = call.kernel.scheduler.thread_mut(id)?;
    let mut user = target.user_context(call.vcpu.memory)?;
    user.load(&bytes);
    target.set_user_context(call.vcpu.memory, &layout, &user)?;
    Ok(Outcome::Return(Status::SUCCESS))
}

fn nt_yield_execution(_call: &mut Call<'_, '_>) -> Outcome {
    Outcome::Yield
}

fn nt_get_current_processor_number(_call: &mut Call<'_, '_>) -> Status {
    Status(0)
}
