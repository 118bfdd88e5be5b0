//! NtNotifyChangeDirectoryFile.
#![expect(clippy::too_many_arguments, reason = "handlers have as many as their services")]

use super::changes::filter;
use super::file;
use super::pending::{Waiting, settle};
use super::services::IoStatusPtr;
use super::transfer::Completion;
use crate::kernel::Kernel;
use crate::object::{Body, Handle, ObjectType};
use crate::service::{Call, Outcome};
use crate::services;
use crate::status::Status;

services! { pub SERVICES;
    /// Asks to be told of changes in a directory.
    NtNotifyChangeDirectoryFile(file: Handle, event: Handle, apc: u64, apc_context: u64, io_status: IoStatusPtr, buffer: u64, length: u32, filter: u32, subtree: bool) = notify_change;
    /// The same for a kind of records; only the first kind is known.
    NtNotifyChangeDirectoryFileEx(file: Handle, event: Handle, apc: u64, apc_context: u64, io_status: IoStatusPtr, buffer: u64, length: u32, filter: u32, subtree: bool, class: u32) = notify_change_ex;
}

fn notify_change(
    call: &mut Call<'_, '_>,
    handle: Handle,
    event: Handle,
    apc: u64,
    apc_context: u64,
    io_status: IoStatusPtr,
    buffer: u64,
    length: u32,
    wanted: u32,
    subtree: bool,
) -> Result<Outcome, Status> {
    if io_status.is_null() {
        return Err(Status::ACCESS_VIOLATION);
    }
    if wanted == 0 || wanted & !filter::VALID != 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    let id = call.object(handle, Some(ObjectType::File), file::READ_DATA)?;
    let length = if buffer == 0 { 0 } else { length };
    let completion = Completion { event, apc, apc_context, io_status };
    let request = call.kernel.pipes.request();
    let Kernel { objects, files, .. } = &mut *call.kernel;
    let Body::File(file) = objects.body(id)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
    files.watch(file, wanted, subtree, request, length as usize)?;
    completion.begin(call, id)?;
    call.kernel.take_changes();
    settle(call, id, request, completion, buffer, Waiting::Never)
}

fn notify_change_ex(
    call: &mut Call<'_, '_>,
    handle: Handle,
    event: Handle,
    apc: u64,
    apc_context: u64,
    io_status: IoStatusPtr,
    buffer: u64,
    length: u32,
    wanted: u32,
    subtree: bool,
    class: u32,
) -> Result<Outcome, Status> {
    /// DirectoryNotifyInformation.
    const PLAIN: u32 = 1;
    if class != PLAIN {
        return Err(Status::INVALID_INFO_CLASS);
    }
    notify_change(call, handle, event, apc, apc_context, io_status, buffer, length, wanted, subtree)
}

impl Kernel {
    /// Ends the requests that changes have satisfied since the last call.
    pub(super) fn take_changes(&mut self) {
        for (request, done) in self.files.changes.take_done() {
            self.pipes.requests.finish(request, done);
        }
    }
}
