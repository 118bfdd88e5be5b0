//! Mailslots as files: creating, opening, transfers, facts.

use super::file::{FileKind, FileObject};
use super::info::{Answer, Bytes};
use super::mailslot::MailslotId;
use super::pending::{Waiting, deliver, settle_by};
use super::services::IoStatusPtr;
use super::transfer::Completion;
use crate::kernel::Kernel;
use crate::object::support::{AttributesPtr, read_information};
use crate::object::{Body, Handle, ObjectId, ObjectType};
use crate::service::{Call, Outcome};
use crate::services;
use crate::status::Status;
use crate::user_ptr::{UserBuffer, UserPtr};

services! { pub SERVICES;
    /// Creates a mailslot and opens its reading end.
    NtCreateMailslotFile(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, io_status: IoStatusPtr, options: u32, quota: u32, max_message: u32, timeout: UserPtr<i64>) = create_mailslot;
}

/// ReadTimeout of a mailslot whose reads wait for ever.
const FOREVER: i64 = -1;

#[expect(clippy::too_many_arguments, reason = "as many as the service has")]
fn create_mailslot(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
    io_status: IoStatusPtr,
    options: u32,
    quota: u32,
    max_message: u32,
    timeout: UserPtr<i64>,
) -> Result<(), Status> {
    const FILE_CREATED: u64 = 2;
    if attributes.is_null() {
        return Err(Status::INVALID_PARAMETER);
    }
    out.write(call, Handle::NULL)?;
    let attributes = attributes.read_attributes(call)?;
    let timeout = timeout.read_optional(call)?.unwrap_or(FOREVER);
    let name = super::services::locate_mailslot(call, &attributes)?;
    let id = call.kernel.pipes.request();
    call.kernel.mailslots.create(id, &name, max_message, quota, timeout)?;
    let access = ObjectType::File.map_access(access);
    let mut object = FileObject::device(FileKind::Mailslot(id), DEVICE, access, options);
    object.name = format!("\\{name}");
    let body = Body::File(Box::new(object));
    let handle = call.kernel.objects.open_new(&mut call.kernel.handles, body, access, attributes.flags.bits());
    call.kernel.reap();
    call.give_handle(out, handle?)?;
    call.write_io_status(io_status, Status::SUCCESS, FILE_CREATED)
}

/// NT path of the device.
const DEVICE: &str = "\\Device\\Mailslot";

/// NtOpenFile of a mailslot's name: an end to write to.
pub(super) fn open(kernel: &Kernel, name: &str, access: u32, options: u32) -> Result<FileObject, Status> {
    let id = kernel.mailslots.find(name).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
    let mut object = FileObject::device(FileKind::MailslotWriter(id), DEVICE, access, options);
    object.name = format!("\\{name}");
    Ok(object)
}

impl Kernel {
    /// The mailslot whose reading end a file is.
    fn mailslot(&self, id: ObjectId) -> Result<MailslotId, Status> {
        match self.file(id)?.kind {
            FileKind::Mailslot(slot) => Ok(slot),
            _ => Err(Status::INVALID_DEVICE_REQUEST),
        }
    }

    /// The last handle to the reading end is gone.
    pub(crate) fn close_mailslot(&mut self, slot: MailslotId) {
        for request in self.mailslots.close(slot) {
            self.pipes.requests.finish(request, super::requests::Done::status(Status::CANCELLED));
        }
    }
}

/// NtReadFile.
pub(super) fn read(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    completion: Completion,
    buffer: u64,
    length: u32,
) -> Result<Outcome, Status> {
    let slot = call.kernel.mailslot(id)?;
    let request = call.kernel.pipes.request();
    if let Some(done) = call.kernel.mailslots.read(slot, request, length as usize)? {
        return deliver(call, id, completion, buffer, &done).map(Outcome::Return);
    }
    let timeout = call.kernel.mailslots.facts(slot).map_or(FOREVER, |facts| facts.read_timeout);
    let deadline = if matches!(timeout, FOREVER | i64::MAX) { None } else { call.kernel.clock.deadline(timeout) };
    settle_by(call, id, request, completion, buffer, Waiting::AsOpened, deadline)
}

/// NtWriteFile.
pub(super) fn write(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    completion: Completion,
    buffer: u64,
    length: u32,
) -> Result<Outcome, Status> {
    let FileKind::MailslotWriter(slot) = call.kernel.file(id)?.kind else { return Err(Status::ACCESS_DENIED) };
    let data = UserBuffer::new(buffer, u64::from(length)).read(call)?;
    if let Some((request, done)) = call.kernel.mailslots.write(slot, data)? {
        call.kernel.pipes.requests.finish(request, done);
    }
    completion.finish(call, id, Status::SUCCESS, u64::from(length))?;
    Ok(Outcome::Return(Status::SUCCESS))
}

/// FileMailslotQueryInformation (26); `None` for other classes and files.
pub(super) fn query(kernel: &Kernel, id: ObjectId, class: u32) -> Option<Result<Answer, Status>> {
    const NO_MESSAGE: u32 = u32::MAX;
    if class != 26 {
        return None;
    }
    let facts = match kernel.mailslot(id) {
        Ok(slot) => kernel.mailslots.facts(slot)?,
        Err(status) => return Some(Err(status)),
    };
    let words = [facts.max_message, facts.quota, facts.next.unwrap_or(NO_MESSAGE), facts.messages];
    Some(Ok(Answer::fixed(Bytes::default().u32s(&words).u64s(&[facts.read_timeout as u64]).0)))
}

/// FileMailslotSetInformation.
pub(super) fn set(call: &mut Call<'_, '_>, id: ObjectId, buffer: UserBuffer) -> Result<(), Status> {
    let slot = call.kernel.mailslot(id)?;
    let timeout = read_information::<i64>(call, buffer)?;
    call.kernel.mailslots.set_read_timeout(slot, timeout)
}
