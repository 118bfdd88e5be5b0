//! Services that end and open processes.

use crate::service::{Call, Handle, Outcome};
use crate::status::Status;
use crate::strings::RawObjectAttributes;
use crate::thread::ThreadId;
use crate::user_ptr::UserPtr;

crate::services! {
    pub SERVICES;
    /// Ends a process; with the null handle, its other threads only.
    NtTerminateProcess(process: Handle, status: u32) = nt_terminate_process;
    /// Opens a process by its identifier.
    NtOpenProcess(handle: UserPtr<Handle>, access: u32, attributes: UserPtr<RawObjectAttributes>, client: UserPtr<[u64; 2]>) = nt_open_process;
    /// Opens the process that follows another one: there is none.
    NtGetNextProcess(process: Handle, access: u32, attributes: u32, flags: u32, handle: UserPtr<Handle>) = nt_get_next_process;
}

fn nt_terminate_process(call: &mut Call<'_, '_>, process: Handle, status: u32) -> Result<Outcome, Status> {
    if !process.is_null() {
        call.kernel.require_current_process(process)?;
        call.kernel.end_process(call.vcpu, Status(status));
        return Ok(Outcome::Stop);
    }
    let others: Vec<ThreadId> = call.kernel.scheduler.threads.keys().copied().filter(|&id| id != call.thread).collect();
    for id in others {
        call.kernel.end_thread(call.vcpu, id, Status(status));
    }
    Ok(Outcome::Return(Status::SUCCESS))
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
    let kernel = &mut *call.kernel;
    let by_thread = thread != 0 && !kernel.scheduler.threads.keys().any(|&id| u64::from(id) == thread);
    if process != u64::from(kernel.process.id) || by_thread {
        return Err(Status::INVALID_CID);
    }
    let new = kernel.objects.open(&mut kernel.handles, kernel.process.object, access, attributes.flags.bits())?;
    handle.write(call, new)?;
    Ok(Status::SUCCESS)
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
    if !process.is_null() {
        return Err(Status::NO_MORE_ENTRIES);
    }
    let kernel = &mut *call.kernel;
    let new = kernel.objects.open(&mut kernel.handles, kernel.process.object, access, attributes)?;
    handle.write(call, new)?;
    Ok(Status::SUCCESS)
}
