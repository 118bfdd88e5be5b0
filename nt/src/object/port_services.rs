//! Services of I/O completion ports and jobs.

use super::support::AttributesPtr;
use super::{Body, CompletionPacket, Handle, IoCompletion, ObjectId, ObjectType};
use crate::io::info::{Answer, Bytes};
use crate::kernel::Kernel;
use crate::service::{Call, Outcome};
use crate::services;
use crate::status::Status;
use crate::user_ptr::{UserBuffer, UserMemory, UserPtr};
use crate::wait::Wait;

services! { pub SERVICES;
    /// Creates or opens a completion port.
    NtCreateIoCompletion(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, concurrency: u32) = create_port;
    /// Opens a named completion port.
    NtOpenIoCompletion(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr) = open_port;
    /// Queues a packet.
    NtSetIoCompletion(port: Handle, key: u64, context: u64, status: u32, information: u64) = set_completion;
    /// Queues a packet with a reserve object.
    NtSetIoCompletionEx(port: Handle, reserve: Handle, key: u64, context: u64, status: u32, information: u64) = set_completion_ex;
    /// Takes a packet, waiting for one.
    NtRemoveIoCompletion(port: Handle, key: UserPtr<u64>, context: UserPtr<u64>, io_status: UserPtr<u64>, timeout: UserPtr<i64>) = remove_completion;
    /// Takes several packets, waiting for the first.
    NtRemoveIoCompletionEx(port: Handle, entries: u64, count: u32, removed: UserPtr<u32>, timeout: UserPtr<i64>, alertable: bool) = remove_completion_ex;
    /// Tells how many packets are queued.
    NtQueryIoCompletion(port: Handle, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query_port;
}

type Out = UserPtr<Handle>;

/// IO_COMPLETION_QUERY_STATE, JOB_OBJECT_ASSIGN_PROCESS.
const BIT_0: u32 = 1;
/// IO_COMPLETION_MODIFY_STATE, JOB_OBJECT_SET_ATTRIBUTES.
const BIT_1: u32 = 2;
fn create_port(
    call: &mut Call<'_, '_>,
    out: Out,
    access: u32,
    attributes: AttributesPtr,
    concurrency: u32,
) -> Result<Status, Status> {
    call.create_object(out, access, attributes, Body::IoCompletion(IoCompletion::new(concurrency)))
}

fn open_port(call: &mut Call<'_, '_>, out: Out, access: u32, attributes: AttributesPtr) -> Result<(), Status> {
    call.open_object(out, access, attributes, ObjectType::IoCompletion)
}

fn port(kernel: &mut Kernel, id: ObjectId) -> Result<&mut IoCompletion, Status> {
    match kernel.objects.body_mut(id)? {
        Body::IoCompletion(port) => Ok(port),
        _ => Err(Status::OBJECT_TYPE_MISMATCH),
    }
}

fn set_completion(
    call: &mut Call<'_, '_>,
    handle: Handle,
    key: u64,
    context: u64,
    status: u32,
    information: u64,
) -> Result<(), Status> {
    /// Packets that one port holds at most: bounds what a guest can make the host allocate.
    const MAX_PACKETS: usize = 1 << 20;
    let id = call.object(handle, Some(ObjectType::IoCompletion), BIT_1)?;
    let port = port(call.kernel, id)?;
    if port.packets.len() >= MAX_PACKETS {
        return Err(Status::INSUFFICIENT_RESOURCES);
    }
    port.packets.push_back(CompletionPacket { key, context, status: Status(status), information });
    Ok(())
}

fn set_completion_ex(
    call: &mut Call<'_, '_>,
    handle: Handle,
    _reserve: Handle,
    key: u64,
    context: u64,
    status: u32,
    information: u64,
) -> Result<(), Status> {
    set_completion(call, handle, key, context, status, information)
}

/// Waits until the port has a packet, then lets `take` deliver; without the port when the wait has ended otherwise.
fn wait_for_packet(
    call: &mut Call<'_, '_>,
    handle: Handle,
    timeout: UserPtr<i64>,
    alertable: bool,
    take: impl FnOnce(&mut Call<'_, '_>, Option<ObjectId>) -> Result<(), Status> + 'static,
) -> Result<Outcome, Status> {
    let deadline = call.deadline(timeout)?;
    let id = call.object(handle, Some(ObjectType::IoCompletion), BIT_1)?;
    call.kernel.objects.reference(id);
    let wait = Wait::until("completion port", move |kernel, thread| {
        let port = port(kernel, id).ok()?;
        // The packets are promised to this thread from here until it runs.
        port.claim(thread).then_some(Status::SUCCESS)
    });
    Ok(Outcome::Wait(wait.with_deadline(deadline).alertable(alertable).then(move |call, status| {
        let result = take(call, (status == Status::SUCCESS).then_some(id));
        if let Ok(port) = port(call.kernel, id) {
            port.release_claim(call.thread);
        }
        call.kernel.objects.dereference(id);
        call.kernel.reap();
        Outcome::Return(result.err().unwrap_or(status))
    })))
}

fn remove_completion(
    call: &mut Call<'_, '_>,
    handle: Handle,
    key: UserPtr<u64>,
    context: UserPtr<u64>,
    io_status: UserPtr<u64>,
    timeout: UserPtr<i64>,
) -> Result<Outcome, Status> {
    wait_for_packet(call, handle, timeout, false, move |call, id| {
        let Some(id) = id else { return Ok(()) };
        let Some(packet) = port(call.kernel, id)?.packets.pop_front() else { return Ok(()) };
        key.write(call, packet.key)?;
        context.write(call, packet.context)?;
        call.write_io_status(io_status, packet.status, packet.information)
    })
}

fn remove_completion_ex(
    call: &mut Call<'_, '_>,
    handle: Handle,
    entries: u64,
    count: u32,
    removed: UserPtr<u32>,
    timeout: UserPtr<i64>,
    alertable: bool,
) -> Result<Outcome, Status> {
    if count == 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    wait_for_packet(call, handle, timeout, alertable, move |call, id| {
        // Whoever got nothing is told of one, too.
        let Some(id) = id else { return removed.write(call, 1) };
        let mut bytes = Bytes::default();
        let mut taken = 0;
        // Packets promised to other threads stay.
        let limit = count.min(port(call.kernel, id)?.unclaimed_by_others(call.thread) as u32);
        while taken < limit
            && let Some(packet) = port(call.kernel, id)?.packets.pop_front()
        {
            // FILE_IO_COMPLETION_INFORMATION.
            let status = u64::from(packet.status.0);
            bytes = bytes.u64s(&[packet.key, packet.context, status, packet.information]);
            taken += 1;
        }
        call.write_user(entries, &bytes.0)?;
        removed.write_optional(call, taken)
    })
}

fn query_port(
    call: &mut Call<'_, '_>,
    handle: Handle,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    if class != 0 {
        return Err(Status::INVALID_INFO_CLASS);
    }
    let id = call.object(handle, Some(ObjectType::IoCompletion), BIT_0)?;
    let depth = port(call.kernel, id)?.packets.len() as u32;
    let answer = Answer::fixed(depth.to_le_bytes().into());
    call.answer(UserBuffer::new(buffer, u64::from(length)), returned, &answer)
}
