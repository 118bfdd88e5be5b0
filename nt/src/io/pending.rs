//! Operations that end later: what their callers get then, and how they are taken back.
//!
//! A component that cannot answer at once (pipes, mailslots, watched directories) notes the operation under a
//! [`RequestId`] and finishes it in [`Requests`](super::requests::Requests) when it can. `settle` decides how the caller
//! learns of it: at once, by a wait when the file was opened for synchronous I/O, else by event, APC or completion port.

use super::requests::{Done, RequestId};
use super::transfer::Completion;
use crate::kernel::Kernel;
use crate::object::{Body, CompletionPacket, Handle, ObjectId, ObjectType};
use crate::process::ProcessId;
use crate::service::{Call, Outcome};
use crate::status::Status;
use crate::thread::{Apc, ThreadId};
use crate::user_ptr::UserMemory;
use crate::wait::Wait;

/// Who asked for an operation that is not complete yet, and how its end is told.
#[derive(Debug)]
pub struct PendingIo {
    /// The process that memory belongs to.
    pub(super) process: ProcessId,
    /// The thread that gets the APC.
    pub(super) thread: ThreadId,
    /// The file; referenced.
    pub(super) file: ObjectId,
    event: Option<ObjectId>,
    apc: u64,
    apc_context: u64,
    /// Address of the IO_STATUS_BLOCK.
    pub(super) io_status: u64,
    /// It does not end with its thread: only a completion port learns of its end.
    pub(super) outlives_thread: bool,
}

impl PendingIo {
    /// An operation of the calling thread; the file and the event are referenced until it completes.
    pub(super) fn of(call: &mut Call<'_, '_>, id: ObjectId, completion: Completion) -> Result<Self, Status> {
        let event = match completion.event {
            Handle::NULL => None,
            event => Some(call.object(event, Some(ObjectType::Event), 2)?),
        };
        if let Some(id) = event {
            call.kernel.objects.reference(id);
        }
        call.kernel.objects.reference(id);
        let port = call.kernel.file(id)?.completion.is_some();
        Ok(Self {
            outlives_thread: port && completion.apc_context != 0 && event.is_none(),
            process: call.kernel.process.id,
            thread: call.thread,
            file: id,
            event,
            apc: completion.apc,
            apc_context: completion.apc_context,
            io_status: completion.io_status.address(),
        })
    }
}

/// An operation under a number that a caller did not wait for.
#[derive(Debug)]
pub struct PendingRequest {
    io: PendingIo,
    /// Where what it reads goes.
    buffer: u64,
}

/// A thread that waits for the end of an operation.
#[derive(Clone, Copy, Debug)]
pub struct WaitingIo {
    thread: ThreadId,
    file: ObjectId,
    io_status: u64,
}

/// Whether the caller of an operation waits for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// If it has opened the file for synchronous I/O.
    AsOpened,
    /// In any case.
    Always,
    /// In no case: kernelbase waits itself where its own caller wants that.
    Never,
}

impl Kernel {
    /// Completes operations whose callers went on in the meantime.
    pub(crate) fn deliver_io(&mut self, space: &mut lstar_runtime::AddressSpace) {
        self.take_changes();
        self.advance_network(space);
        loop {
            let mut pending = self.pending_io.keys();
            let Some(&request) = pending.find(|&&request| self.pipes.is_done(request)) else { return };
            if let (Some(pending), Some(done)) = (self.pending_io.remove(&request), self.pipes.take(request)) {
                self.complete_io(space, pending.io, done.status, done.information, &[(pending.buffer, done.data)]);
            }
        }
    }

    /// Completes an operation: results are written in its process, its end is told.
    pub(super) fn complete_io(
        &mut self,
        space: &mut lstar_runtime::AddressSpace,
        io: PendingIo,
        status: Status,
        information: u64,
        writes: &[(u64, Vec<u8>)],
    ) {
        if let Ok(previous) = self.enter_process(space, io.process) {
            let block = [u64::from(status.0), information].map(u64::to_le_bytes).concat();
            // What the caller has unmapped in the meantime is its loss.
            let user = lstar_arch::Privilege::User;
            for (address, bytes) in writes {
                let _ = self.memory.write(space, *address, bytes, user);
            }
            let _ = self.memory.write(space, io.io_status, &block, user);
            let _ = self.enter_process(space, previous);
        }
        let has_event = io.event.is_some();
        if let Some(id) = io.event {
            if let Ok(Body::Event(event)) = self.objects.body_mut(id) {
                event.set(true);
            }
            self.objects.dereference(id);
        }
        if io.apc != 0 {
            if let Ok(thread) = self.scheduler.thread_mut(io.thread) {
                let arguments = [io.apc_context, io.io_status, 0];
                thread.apcs.push_back(Apc { routine: io.apc, arguments });
            }
        } else if let Ok(file) = self.file(io.file)
            && let Some((port, key)) = file.completion
            && io.apc_context != 0
            && let Ok(Body::IoCompletion(port)) = self.objects.body_mut(port)
        {
            port.packets.push_back(CompletionPacket { key, context: io.apc_context, status, information });
        }
        if let Ok(file) = self.file_mut(io.file) {
            file.signaled |= !has_event || file.is_synchronous();
        }
        self.objects.dereference(io.file);
    }

    /// Takes an operation back, whosever it is; `false` when it has ended already.
    fn cancel_request(&mut self, request: RequestId) -> bool {
        if self.pipes.cancel(request) {
            return true;
        }
        let found = self.mailslots.cancel(request) || self.files.changes.cancel(request);
        if found {
            self.pipes.requests.finish(request, Done::status(Status::CANCELLED));
        }
        found
    }

    /// Takes back what a thread that ends was doing.
    pub(crate) fn cancel_io_of(&mut self, thread: ThreadId) {
        self.afd.cancel_thread(thread);
        let own = |pending: &PendingRequest| pending.io.thread == thread;
        let pending = self.pending_io.iter().filter(|(_, pending)| own(pending)).map(|(&request, _)| request);
        let waiting = self.waiting_io.iter().filter(|(_, io)| io.thread == thread).map(|(&request, _)| request);
        let requests: Vec<RequestId> = pending.chain(waiting).collect();
        for request in requests {
            self.cancel_request(request);
            if self.waiting_io.remove(&request).is_some() {
                self.pipes.take(request);
            }
        }
    }

    /// Cancels operations on a file, of one thread or all, the one with an IO_STATUS_BLOCK or all, those that their
    /// callers wait for included; says whether there was any.
    pub(crate) fn cancel_pending(&mut self, file: ObjectId, thread: Option<ThreadId>, io_status: u64) -> bool {
        let matches = |of: (ObjectId, ThreadId, u64)| {
            of.0 == file && thread.is_none_or(|thread| thread == of.1) && (io_status == 0 || io_status == of.2)
        };
        let pending = self
            .pending_io
            .iter()
            .map(|(&request, PendingRequest { io, .. })| (request, (io.file, io.thread, io.io_status)));
        let waiting = self.waiting_io.iter().map(|(&request, io)| (request, (io.file, io.thread, io.io_status)));
        let requests: Vec<RequestId> =
            pending.chain(waiting).filter(|(_, of)| matches(*of)).map(|(request, _)| request).collect();
        requests.iter().filter(|&&request| self.cancel_request(request)).count() > 0
    }

    /// Cancels what a thread waits for in a service of its own; says whether there was any.
    pub(super) fn cancel_waiting(&mut self, thread: ThreadId, io_status: u64) -> bool {
        let matches = |io: &WaitingIo| io.thread == thread && (io_status == 0 || io_status == io.io_status);
        let requests: Vec<RequestId> =
            self.waiting_io.iter().filter(|(_, io)| matches(io)).map(|(&request, _)| request).collect();
        requests.iter().filter(|&&request| self.cancel_request(request)).count() > 0
    }
}

/// Ends an operation that was just submitted: now, later with STATUS_PENDING, or with a wait.
pub(super) fn settle(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    request: RequestId,
    completion: Completion,
    buffer: u64,
    wait: Waiting,
) -> Result<Outcome, Status> {
    settle_by(call, id, request, completion, buffer, wait, None)
}

/// The same for an operation that a caller waits for until an interrupt time at most.
pub(super) fn settle_by(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    request: RequestId,
    completion: Completion,
    buffer: u64,
    wait: Waiting,
    deadline: Option<u64>,
) -> Result<Outcome, Status> {
    if let Some(done) = call.kernel.pipes.take(request) {
        return deliver(call, id, completion, buffer, &done).map(Outcome::Return);
    }
    let file = call.kernel.file(id)?;
    let alertable = file.is_alertable();
    let waits = match wait {
        Waiting::AsOpened => file.is_synchronous(),
        Waiting::Always => true,
        Waiting::Never => false,
    };
    if waits {
        call.kernel.objects.reference(id);
        let waiting = WaitingIo { thread: call.thread, file: id, io_status: completion.io_status.address() };
        call.kernel.waiting_io.insert(request, waiting);
        let wait = Wait::until("I/O", move |kernel, _| kernel.pipes.is_done(request).then_some(Status::SUCCESS));
        return Ok(Outcome::Wait(wait.with_deadline(deadline).alertable(alertable).then(move |call, status| {
            call.kernel.waiting_io.remove(&request);
            if status != Status::SUCCESS {
                // An APC or alert: the operation has not happened.
                call.kernel.cancel_request(request);
                call.kernel.pipes.take(request);
            }
            let status = match call.kernel.pipes.take(request) {
                None if status == Status::TIMEOUT => Status::IO_TIMEOUT,
                // A failure leaves the caller's IO_STATUS_BLOCK and event alone: the status is returned.
                Some(done) if done.status.is_error() => {
                    let _ = call.kernel.file_mut(id).map(|file| file.signaled = true);
                    done.status
                }
                Some(done) => deliver(call, id, completion, buffer, &done).unwrap_or_else(|status| status),
                None => Status::CANCELLED,
            };
            call.kernel.objects.dereference(id);
            call.kernel.reap();
            Outcome::Return(status)
        })));
    }
    let io = PendingIo::of(call, id, completion)?;
    call.kernel.pending_io.insert(request, PendingRequest { io, buffer });
    Ok(Outcome::Return(Status::PENDING))
}

/// Hands the result of an operation to its caller.
pub(super) fn deliver(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    completion: Completion,
    buffer: u64,
    done: &Done,
) -> Result<Status, Status> {
    call.write_user(buffer, &done.data)?;
    completion.finish(call, id, done.status, done.information)?;
    Ok(done.status)
}
