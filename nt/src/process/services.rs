//! Services that end, stop and open processes.

use super::{ProcessId, access};
use crate::service::{Call, Handle, Outcome};
use crate::status::Status;
use crate::strings::RawObjectAttributes;
use crate::thread::ThreadId;
use crate::user_ptr::UserPtr;

crate::services! {
    pub SERVICES;
    /// Ends a process; with the null handle, the other threads of the caller's.
    NtTerminateProcess(process: Handle, status: u32) = nt_terminate_process;
    /// Stops all threads of a process until they are resumed.
    NtSuspendProcess(process: Handle) = nt_suspend_process;
    /// Undoes one suspension of all threads of a process.
    NtResumeProcess(process: Handle) = nt_resume_process;
    /// Opens a process by its identifier, or by that of one of its threads.
    NtOpenProcess(handle: UserPtr<Handle>, access: u32, attributes: UserPtr<RawObjectAttributes>, client: UserPtr<[u64; 2]>) = nt_open_process;
    /// Opens the process that follows another one.
    NtGetNextProcess(process: Handle, access: u32, attributes: u32, flags: u32, handle: UserPtr<Handle>) = nt_get_next_process;
}

fn nt_terminate_process(call: &mut Call<'_, '_>, process: Handle, status: u32) -> Result<Outcome, Status> {
    let own = call.kernel.process.id;
    if process.is_null() {
        let threads = call.kernel.scheduler.threads_of(own).map(|thread| thread.id);
        let others: Vec<ThreadId> = threads.filter(|&id| id != call.thread).collect();
        for id in others {
            call.kernel.end_thread(call.vcpu, id, Status(status));
        }
        return Ok(Outcome::Return(Status::SUCCESS));
    }
    let target = call.process_by_handle(process, access::TERMINATE)?;
    if call.kernel.process_by_id(target).is_none_or(|process| process.exit_status.is_some()) {
        return Err(Status::PROCESS_IS_TERMINATING);
    }
    call.kernel.end_process(call.vcpu, target, Status(status));
    Ok(if target == own { Outcome::ThreadEnded } else { Outcome::Return(Status::SUCCESS) })
}

/// The threads of a process behind a handle.
fn threads(call: &Call<'_, '_>, process: Handle) -> Result<Vec<ThreadId>, Status> {
    let target = call.process_by_handle(process, access::SUSPEND_RESUME)?;
    Ok(call.kernel.scheduler.threads_of(target).map(|thread| thread.id).collect())
}

fn nt_suspend_process(call: &mut Call<'_, '_>, process: Handle) -> Result<Status, Status> {
    for id in threads(call, process)? {
        let thread = call.kernel.scheduler.thread_mut(id)?;
        thread.suspend_count = thread.suspend_count.saturating_add(1);
    }
    Ok(Status::SUCCESS)
}

fn nt_resume_process(call: &mut Call<'_, '_>, process: Handle) -> Result<Status, Status> {
    for id in threads(call, process)? {
        let thread = call.kernel.scheduler.thread_mut(id)?;
        thread.suspend_count = thread.suspend_count.saturating_sub(1);
    }
    Ok(Status::SUCCESS)
}

/// Opens a handle to a process.
fn open(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    process: ProcessId,
    access: u32,
    attributes: u32,
) -> Result<Status, Status> {
    let kernel = &mut *call.kernel;
    let object = kernel.process_by_id(process).ok_or(Status::INVALID_CID)?.object;
    let new = kernel.objects.open(&mut kernel.handles, object, access, attributes)?;
    call.give_handle(out, new)?;
    Ok(Status::SUCCESS)
}

fn nt_open_process(
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
    let known = |id: u64| ProcessId::try_from(id).map_err(|_| Status::INVALID_CID);
    let of_thread = match thread {
        0 => None,
        thread => Some(call.kernel.scheduler.process_of(known(thread)?).ok_or(Status::INVALID_CID)?),
    };
    let process = match (known(process)?, of_thread) {
        (0, Some(of_thread)) => of_thread,
        (process, Some(of_thread)) if process != of_thread => return Err(Status::INVALID_CID),
        (process, _) => process,
    };
    if process == 0 {
        return Err(Status::INVALID_CID);
    }
    open(call, handle, process, access, attributes.flags.bits())
}

fn nt_get_next_process(
    call: &mut Call<'_, '_>,
    process: Handle,
    access: u32,
    attributes: u32,
    flags: u32,
    handle: UserPtr<Handle>,
) -> Result<Status, Status> {
    if flags > 1 {
        return Err(Status::INVALID_PARAMETER);
    }
    handle.write(call, Handle::NULL)?;
    let after = if process.is_null() { None } else { Some(call.process_by_handle(process, 0)?) };
    let live = call.kernel.live_processes();
    // PROCESS_GET_NEXT_FLAGS_PREVIOUS_PROCESS goes the other way.
    let next = if flags == 0 {
        live.into_iter().find(|&id| after.is_none_or(|after| id > after))
    } else {
        live.into_iter().rev().find(|&id| after.is_none_or(|after| id < after))
    };
    open(call, handle, next.ok_or(Status::NO_MORE_ENTRIES)?, access, attributes)
}
