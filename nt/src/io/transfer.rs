//! Services that move data: reading, writing, locking; and how an operation completes.
#![expect(clippy::too_many_arguments, reason = "handlers have as many as their services")]

use std::os::unix::fs::FileExt as _;

use super::afd;
use super::changes::filter;
use super::console::{self, ConsoleEnd};
use super::file::{self, FileKind};
use super::mailslot_services;
use super::pipe_services;
use super::services::IoStatusPtr;
use super::status_of_io;
use crate::object::{Body, CompletionPacket, Handle, ObjectId, ObjectType};
use crate::service::{Call, Outcome};
use crate::services;
use crate::status::Status;
use crate::thread::Apc;
use crate::user_ptr::{UserBuffer, UserMemory, UserPtr};
use crate::wait::Wait;

services! { pub SERVICES;
    /// Reads from a file or stream.
    NtReadFile(file: Handle, event: Handle, apc: u64, apc_context: u64, io_status: IoStatusPtr, buffer: u64, length: u32, offset: UserPtr<i64>, key: UserPtr<u32>) = read_file;
    /// Writes to a file or stream.
    NtWriteFile(file: Handle, event: Handle, apc: u64, apc_context: u64, io_status: IoStatusPtr, buffer: u64, length: u32, offset: UserPtr<i64>, key: UserPtr<u32>) = write_file;
    /// Brings written data to the disk.
    NtFlushBuffersFile(file: Handle, io_status: IoStatusPtr) = flush_buffers;
    /// The same with flags.
    NtFlushBuffersFileEx(file: Handle, flags: u32, parameters: u64, length: u32, io_status: IoStatusPtr) = flush_buffers_ex;
    /// Locks a range of a file.
    NtLockFile(file: Handle, event: Handle, apc: u64, apc_context: u64, io_status: IoStatusPtr, offset: UserPtr<u64>, length: UserPtr<u64>, key: u32, fail_immediately: bool, exclusive: bool) = lock_file;
    /// Unlocks a range of a file.
    NtUnlockFile(file: Handle, io_status: IoStatusPtr, offset: UserPtr<u64>, length: UserPtr<u64>, key: u32) = unlock_file;
}

/// Bytes moved at a time: bounds what a guest's length makes the host allocate.
const CHUNK: usize = 1 << 20;

/// How the caller wants to learn that an operation is complete.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    /// Event to signal.
    pub event: Handle,
    /// APC routine.
    pub apc: u64,
    /// Its context, or that of the packet at the completion port.
    pub apc_context: u64,
    /// IO_STATUS_BLOCK.
    pub io_status: IoStatusPtr,
}

impl Completion {
    /// Starts an operation: its event and the file are no longer signalled. An operation that fails before it has
    /// begun leaves them so.
    pub(super) fn begin(self, call: &mut Call<'_, '_>, id: ObjectId) -> Result<(), Status> {
        // One or the other, says the I/O manager.
        if self.apc != 0 && call.kernel.file(id)?.completion.is_some() {
            return Err(Status::INVALID_PARAMETER);
        }
        if self.event != Handle::NULL
            && let Body::Event(event) = call.body(self.event, ObjectType::Event, 2)?
        {
            event.set(false);
        }
        call.kernel.file_mut(id)?.signaled = false;
        Ok(())
    }

    /// Completes an operation on a file: IO_STATUS_BLOCK, event, APC or completion port.
    pub(super) fn finish(
        self,
        call: &mut Call<'_, '_>,
        id: ObjectId,
        status: Status,
        information: u64,
    ) -> Result<(), Status> {
        call.write_io_status(self.io_status, status, information)?;
        self.announce(call, id, status, information)
    }

    /// The same for NtLockFile, whose callers in Wine's kernelbase give no IO_STATUS_BLOCK.
    fn finish_lock(self, call: &mut Call<'_, '_>, id: ObjectId, status: Status) -> Result<(), Status> {
        if !self.io_status.is_null() {
            call.write_io_status(self.io_status, status, 0)?;
        }
        self.announce(call, id, status, 0)
    }

    /// Completes an operation on a disk file: on one that was opened for asynchronous I/O it is done at once, but its
    /// caller learns of that as if it had taken a while, as since Windows Vista.
    pub(super) fn finish_disk(
        self,
        call: &mut Call<'_, '_>,
        id: ObjectId,
        status: Status,
        information: u64,
    ) -> Result<Outcome, Status> {
        if !call.kernel.file(id)?.is_synchronous() {
            return self.finish_pended(call, id, status, information);
        }
        self.finish(call, id, status, information)?;
        Ok(Outcome::Return(status))
    }

    /// The same whatever the file was opened for.
    pub(super) fn finish_pended(
        self,
        call: &mut Call<'_, '_>,
        id: ObjectId,
        status: Status,
        information: u64,
    ) -> Result<Outcome, Status> {
        call.write_io_status(self.io_status, status, information)?;
        self.announce_to(call, id, status, information, true)?;
        Ok(Outcome::Return(Status::PENDING))
    }

    /// Event, APC or completion port.
    fn announce(self, call: &mut Call<'_, '_>, id: ObjectId, status: Status, information: u64) -> Result<(), Status> {
        self.announce_to(call, id, status, information, false)
    }

    /// The same; of an operation that was pending a completion port is always told.
    fn announce_to(
        self,
        call: &mut Call<'_, '_>,
        id: ObjectId,
        status: Status,
        information: u64,
        pended: bool,
    ) -> Result<(), Status> {
        /// FILE_SKIP_COMPLETION_PORT_ON_SUCCESS.
        const SKIP_PORT: u32 = 1;
        if self.event != Handle::NULL
            && let Body::Event(event) = call.body(self.event, ObjectType::Event, 2)?
        {
            event.set(true);
        }
        let file = call.kernel.file_mut(id)?;
        file.signaled |= self.event == Handle::NULL || file.is_synchronous();
        if self.apc != 0 {
            if status.is_error() && !pended {
                return Ok(());
            }
            let apc = Apc { routine: self.apc, arguments: [self.apc_context, self.io_status.address(), 0] };
            call.kernel.scheduler.thread_mut(call.thread)?.apcs.push_back(apc);
            return Ok(());
        }
        let file = call.kernel.file(id)?;
        if let Some((port, key)) = file.completion
            && self.apc_context != 0
            && (pended || file.completion_flags & SKIP_PORT == 0 && !status.is_error())
            && let Ok(Body::IoCompletion(port)) = call.kernel.objects.body_mut(port)
        {
            port.packets.push_back(CompletionPacket { key, context: self.apc_context, status, information });
        }
        Ok(())
    }
}

/// Where a transfer starts.
pub(super) enum Start {
    /// At an offset.
    At(u64),
    /// Behind the last byte.
    End,
}

/// What an offset argument means.
pub(super) fn start_of(call: &mut Call<'_, '_>, id: ObjectId, offset: UserPtr<i64>) -> Result<Start, Status> {
    const WRITE_TO_END: i64 = -1;
    const USE_POSITION: i64 = -2;
    let offset = offset.read_optional(call)?;
    let file = call.kernel.file(id)?;
    match offset {
        Some(WRITE_TO_END) => Ok(Start::End),
        Some(USE_POSITION) | None if file.is_synchronous() => Ok(Start::At(file.current_position())),
        Some(offset) if offset >= 0 => Ok(Start::At(offset as u64)),
        _ => Err(Status::INVALID_PARAMETER),
    }
}

/// What the I/O manager asks of transfers to anything but pipes and mailslots: where a file has no position, because it was
/// opened for asynchronous I/O, the caller says where.
fn require_offset(call: &Call<'_, '_>, id: ObjectId, offset: UserPtr<i64>) -> Result<(), Status> {
    if offset.is_null() && !call.kernel.file(id)?.is_synchronous() {
        return Err(Status::INVALID_PARAMETER);
    }
    Ok(())
}

/// What a handle's file is, as far as a transfer cares.
enum Source {
    Disk,
    Stream(super::StdStream),
    Null,
    Pipe,
    Socket,
    Console(ConsoleEnd),
    Mailslot,
}

fn source_of(call: &Call<'_, '_>, id: ObjectId) -> Result<Source, Status> {
    match &call.kernel.file(id)?.kind {
        FileKind::Disk { .. } | FileKind::Redirected(_) => Ok(Source::Disk),
        FileKind::Stream(stream) => Ok(Source::Stream(*stream)),
        FileKind::Null => Ok(Source::Null),
        FileKind::Pipe(_) => Ok(Source::Pipe),
        FileKind::Console(end) => Ok(Source::Console(*end)),
        FileKind::Mailslot(_) | FileKind::MailslotWriter(_) => Ok(Source::Mailslot),
        FileKind::Socket(_) => Ok(Source::Socket),
        FileKind::Directory { .. }
        | FileKind::Volume(_)
        | FileKind::PipeRoot
        | FileKind::MailslotRoot
        | FileKind::MountManager
        | FileKind::Random => Err(Status::INVALID_DEVICE_REQUEST),
    }
}

fn read_file(
    call: &mut Call<'_, '_>,
    handle: Handle,
    event: Handle,
    apc: u64,
    apc_context: u64,
    io_status: IoStatusPtr,
    buffer: u64,
    length: u32,
    offset: UserPtr<i64>,
    _key: UserPtr<u32>,
) -> Result<Outcome, Status> {
    let id = call.object(handle, Some(ObjectType::File), file::READ_DATA)?;
    let length = length as usize;
    let completion = Completion { event, apc, apc_context, io_status };
    // What is wrong with the caller's memory is found before anything happens.
    if io_status.is_null() {
        return Err(Status::ACCESS_VIOLATION);
    }
    call.probe_for_write(buffer, length as u64)?;
    completion.begin(call, id)?;
    let (total, end) = match source_of(call, id)? {
        Source::Disk => {
            let Start::At(start) = start_of(call, id, offset)? else { return Err(Status::INVALID_PARAMETER) };
            call.kernel.files.check_locks(call.kernel.file(id)?, start, length as u64, false)?;
            let total = read_disk(call, id, start, buffer, length)?;
            let file = call.kernel.file_mut(id)?;
            if file.is_synchronous() {
                file.set_position(start.saturating_add(total));
            }
            let status = if total == 0 && length > 0 { Status::END_OF_FILE } else { Status::SUCCESS };
            return completion.finish_disk(call, id, status, total);
        }
        Source::Stream(super::StdStream::Input) => return Ok(read_input(call, id, completion, buffer, length)),
        Source::Stream(_) => return Err(Status::ACCESS_DENIED),
        Source::Null => {
            require_offset(call, id, offset)?;
            (0, Status::END_OF_FILE)
        }
        Source::Console(end) => {
            return console::read_file(call, id, end, completion, UserBuffer::new(buffer, length as u64));
        }
        Source::Pipe => return pipe_services::read(call, id, completion, buffer, length as u32),
        Source::Mailslot => return mailslot_services::read(call, id, completion, buffer, length as u32),
        Source::Socket => return afd::control::read(call, id, completion, UserBuffer::new(buffer, length as u64)),
    };
    let status = if total == 0 && length > 0 { end } else { Status::SUCCESS };
    if status.is_error() && !call.kernel.file(id)?.is_synchronous() {
        return Err(status);
    }
    completion.finish(call, id, status, total)?;
    Ok(Outcome::Return(status))
}

/// Reads from the host's standard input; other threads run while there is nothing to read. A read of no bytes waits too:
/// that is how asynchronous readers learn of input.
fn read_input(call: &mut Call<'_, '_>, id: ObjectId, completion: Completion, buffer: u64, length: usize) -> Outcome {
    call.kernel.objects.reference(id);
    let ready = |kernel: &mut crate::kernel::Kernel, _| {
        kernel.host.wait_for_input(Some(std::time::Duration::ZERO)).then_some(Status::SUCCESS)
    };
    let read = move |call: &mut Call<'_, '_>| -> Result<Status, Status> {
        let mut data = vec![0; length.min(CHUNK)];
        let read = match length {
            0 => 0,
            _ => call.kernel.host.read(&mut data).map_err(|error| status_of_io(&error))?,
        };
        call.write_user(buffer, data.get(..read).unwrap_or(&[]))?;
        let ended = if length == 0 { call.kernel.host.input_available().is_none() } else { read == 0 };
        // The other end of a pipe is gone: that is how programs see the end of redirected input.
        let status = if ended { Status::PIPE_BROKEN } else { Status::SUCCESS };
        completion.finish(call, id, status, read as u64)?;
        Ok(status)
    };
    Outcome::Wait(Wait::until("standard input", ready).on_host().then(move |call, _| {
        let result = read(call);
        call.kernel.objects.dereference(id);
        call.kernel.reap();
        Outcome::Return(result.unwrap_or_else(|status| status))
    }))
}

/// Reads from a disk file; the result is less than `length` at its end.
pub(super) fn read_disk(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    start: u64,
    buffer: u64,
    length: usize,
) -> Result<u64, Status> {
    let mut data = vec![0; length.min(CHUNK)];
    let mut total = 0u64;
    while (total as usize) < length {
        let wanted = (length - total as usize).min(CHUNK);
        let Some(part) = data.get_mut(..wanted) else { break };
        let at = start.checked_add(total).filter(|&at| at <= i64::MAX as u64).ok_or(Status::INVALID_PARAMETER)?;
        let host = call.kernel.file(id)?.host_file().ok_or(Status::INVALID_DEVICE_REQUEST)?;
        let read = match host.read_at(part, at) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(status_of_io(&error)),
        };
        call.write_user(buffer.wrapping_add(total), part.get(..read).unwrap_or(&[]))?;
        total += read as u64;
    }
    Ok(total)
}

fn write_file(
    call: &mut Call<'_, '_>,
    handle: Handle,
    event: Handle,
    apc: u64,
    apc_context: u64,
    io_status: IoStatusPtr,
    buffer: u64,
    length: u32,
    offset: UserPtr<i64>,
    _key: UserPtr<u32>,
) -> Result<Outcome, Status> {
    let id = call.object(handle, Some(ObjectType::File), 0)?;
    let access = call.kernel.handles.get(handle)?.access;
    if access & (file::WRITE_DATA | file::APPEND_DATA) == 0 {
        return Err(Status::ACCESS_DENIED);
    }
    let completion = Completion { event, apc, apc_context, io_status };
    completion.begin(call, id)?;
    match source_of(call, id)? {
        Source::Disk => {
            let start = match start_of(call, id, offset)? {
                // Without FILE_WRITE_DATA all writes append.
                Start::At(at) if access & file::WRITE_DATA != 0 => at,
                _ => call.kernel.size_of_disk_file(id)?,
            };
            write_disk(call, id, start, buffer, length)?;
            let file = call.kernel.file_mut(id)?;
            if file.is_synchronous() {
                file.set_position(start.saturating_add(u64::from(length)));
            }
            return completion.finish_disk(call, id, Status::SUCCESS, u64::from(length));
        }
        Source::Stream(super::StdStream::Input) => return Err(Status::ACCESS_DENIED),
        Source::Stream(stream) => for_each_chunk(call, buffer, length, |call, _, data| {
            call.kernel.host.write(stream, data).map_err(|error| status_of_io(&error))
        })?,
        Source::Pipe => return pipe_services::write(call, id, completion, buffer, length),
        Source::Mailslot => return mailslot_services::write(call, id, completion, buffer, length),
        Source::Socket => {
            return afd::control::write(call, id, completion, UserBuffer::new(buffer, u64::from(length)));
        }
        Source::Console(ConsoleEnd::Output) => {
            for_each_chunk(call, buffer, length, |call, _, data| call.kernel.write_console_bytes(data))?;
        }
        Source::Console(_) => return Err(Status::INVALID_DEVICE_REQUEST),
        // Even what goes nowhere is read.
        Source::Null => {
            require_offset(call, id, offset)?;
            for_each_chunk(call, buffer, length, |_, _, _| Ok(()))?;
        }
    }
    completion.finish(call, id, Status::SUCCESS, u64::from(length))?;
    Ok(Outcome::Return(Status::SUCCESS))
}

/// Writes to a disk file.
pub(super) fn write_disk(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    start: u64,
    buffer: u64,
    length: u32,
) -> Result<(), Status> {
    let size = call.kernel.size_of_disk_file(id)?;
    let kernel = &*call.kernel;
    kernel.files.check_locks(kernel.file(id)?, start, u64::from(length), true)?;
    let end = start.checked_add(u64::from(length)).ok_or(Status::INVALID_PARAMETER)?;
    kernel.files.resize(size, size.max(end))?;
    for_each_chunk(call, buffer, length, |call, done, data| {
        let at = start.checked_add(done).filter(|&at| at <= i64::MAX as u64).ok_or(Status::INVALID_PARAMETER)?;
        let host = call.kernel.file(id)?.host_file().ok_or(Status::INVALID_DEVICE_REQUEST)?;
        host.write_all_at(data, at).map_err(|error| status_of_io(&error))
    })?;
    if call.kernel.files.changes.is_watching() {
        let crate::kernel::Kernel { objects, files, .. } = &mut *call.kernel;
        if let Ok(Body::File(file)) = objects.body(id) {
            let grown = if end > size { filter::SIZE } else { 0 };
            files.report_modified(file, filter::LAST_WRITE | grown);
        }
    }
    Ok(())
}

impl crate::kernel::Kernel {
    /// Size of a disk file.
    pub(super) fn size_of_disk_file(&self, id: ObjectId) -> Result<u64, Status> {
        let host = self.file(id)?.host_file().ok_or(Status::INVALID_DEVICE_REQUEST)?;
        Ok(host.metadata().map_err(|error| status_of_io(&error))?.len())
    }
}

/// Hands the caller's buffer over in pieces.
fn for_each_chunk<'a, 'm>(
    call: &mut Call<'a, 'm>,
    buffer: u64,
    length: u32,
    mut consume: impl FnMut(&mut Call<'a, 'm>, u64, &[u8]) -> Result<(), Status>,
) -> Result<(), Status> {
    let mut done = 0u64;
    while done < u64::from(length) {
        let size = (u64::from(length) - done).min(CHUNK as u64);
        let data = UserBuffer::new(buffer.wrapping_add(done), size).read(call);
        let data = data.map_err(|_| Status::INVALID_USER_BUFFER)?;
        consume(call, done, &data)?;
        done += size;
    }
    Ok(())
}

fn flush_buffers(call: &mut Call<'_, '_>, handle: Handle, io_status: IoStatusPtr) -> Result<Outcome, Status> {
    let id = call.object(handle, Some(ObjectType::File), 0)?;
    let file = call.kernel.file(id)?;
    if file.access & (file::WRITE_DATA | file::APPEND_DATA) == 0 {
        return Err(Status::ACCESS_DENIED);
    }
    if matches!(file.kind, FileKind::Pipe(_)) {
        return pipe_services::flush(call, id, io_status);
    }
    if let Some(host) = file.host_file() {
        host.sync_data().map_err(|error| status_of_io(&error))?;
    }
    call.write_io_status(io_status, Status::SUCCESS, 0)?;
    Ok(Outcome::Return(Status::SUCCESS))
}

fn flush_buffers_ex(
    call: &mut Call<'_, '_>,
    handle: Handle,
    _flags: u32,
    _parameters: u64,
    _length: u32,
    io_status: IoStatusPtr,
) -> Result<Outcome, Status> {
    flush_buffers(call, handle, io_status)
}

fn lock_file(
    call: &mut Call<'_, '_>,
    handle: Handle,
    event: Handle,
    apc: u64,
    apc_context: u64,
    io_status: IoStatusPtr,
    offset: UserPtr<u64>,
    length: UserPtr<u64>,
    _key: u32,
    fail_immediately: bool,
    exclusive: bool,
) -> Result<Outcome, Status> {
    let id = call.object(handle, Some(ObjectType::File), 0)?;
    let (start, length) = (offset.read(call)?, length.read(call)?);
    let file = call.kernel.file(id)?;
    if file.access & (file::READ_DATA | file::WRITE_DATA | file::APPEND_DATA) == 0 {
        return Err(Status::ACCESS_DENIED);
    }
    let try_lock = move |kernel: &mut crate::kernel::Kernel| {
        let crate::kernel::Kernel { objects, files, .. } = kernel;
        match objects.body(id)? {
            Body::File(file) => files.lock(file, start, length, exclusive),
            _ => Err(Status::OBJECT_TYPE_MISMATCH),
        }
    };
    match try_lock(call.kernel) {
        Ok(()) => {
            Completion { event, apc, apc_context, io_status }.finish_lock(call, id, Status::SUCCESS)?;
            Ok(Outcome::Return(Status::SUCCESS))
        }
        Err(Status::LOCK_NOT_GRANTED) if !fail_immediately => {
            call.kernel.objects.reference(id);
            let wait = Wait::until("file lock", move |kernel, _| match try_lock(kernel) {
                Err(Status::LOCK_NOT_GRANTED) => None,
                result => Some(result.err().unwrap_or(Status::SUCCESS)),
            });
            Ok(Outcome::Wait(wait.then(move |call, status| {
                let written = Completion { event, apc, apc_context, io_status }.finish_lock(call, id, status);
                call.kernel.objects.dereference(id);
                call.kernel.reap();
                Outcome::Return(written.err().unwrap_or(status))
            })))
        }
        Err(status) => Err(status),
    }
}

fn unlock_file(
    call: &mut Call<'_, '_>,
    handle: Handle,
    io_status: IoStatusPtr,
    offset: UserPtr<u64>,
    length: UserPtr<u64>,
    _key: u32,
) -> Result<(), Status> {
    let id = call.object(handle, Some(ObjectType::File), 0)?;
    let (start, length) = (offset.read(call)?, length.read(call)?);
    let crate::kernel::Kernel { objects, files, .. } = &mut *call.kernel;
    let Body::File(file) = objects.body(id)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
    files.unlock(file, start, length)?;
    if io_status.is_null() {
        return Ok(());
    }
    call.write_io_status(io_status, Status::SUCCESS, 0)
}
