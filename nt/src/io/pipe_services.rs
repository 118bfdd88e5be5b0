//! Named pipes as files: creating, opening, transfers, control codes.
#![expect(clippy::too_many_arguments, reason = "handlers have as many as their services")]

use super::file::{self, FileKind, FileObject};
use super::info::{Answer, Bytes};
use super::pending::{Waiting, deliver, settle};
use super::pipe::{PipeEnd, PipeParameters, Side};
use super::requests::Done;
use super::services::IoStatusPtr;
use super::transfer::Completion;
use crate::kernel::Kernel;
use crate::object::support::AttributesPtr;
use crate::object::{Body, Handle, ObjectId, ObjectType};
use crate::service::{Call, Outcome};
use crate::services;
use crate::status::Status;
use crate::strings::ObjectAttributes;
use crate::user_ptr::{UserBuffer, UserPtr};
use crate::wait::Wait;

services! { pub SERVICES;
    /// Creates a named pipe, or another instance of one.
    NtCreateNamedPipeFile(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, io_status: IoStatusPtr, share: u32, disposition: u32, options: u32, pipe_type: u32, read_mode: u32, completion_mode: u32, max_instances: u32, inbound_quota: u32, outbound_quota: u32, timeout: UserPtr<i64>) = create_named_pipe;
}

/// FSCTL_PIPE_*.
pub(super) mod code {
    pub const ASSIGN_EVENT: u32 = 0x11_0000;
    pub const DISCONNECT: u32 = 0x11_0004;
    pub const QUERY_EVENT: u32 = 0x11_0010;
    pub const SET_CLIENT_PROCESS: u32 = 0x11_0024;
    pub const LISTEN: u32 = 0x11_0008;
    pub const PEEK: u32 = 0x11_400C;
    pub const TRANSCEIVE: u32 = 0x11_C017;
    pub const WAIT: u32 = 0x11_0018;
    pub const IMPERSONATE: u32 = 0x11_001C;
    pub const GET_PIPE_ATTRIBUTE: u32 = 0x11_0028;
    pub const GET_CONNECTION_ATTRIBUTE: u32 = 0x11_0030;
}

impl Kernel {
    fn pipe_end(&self, id: ObjectId) -> Option<PipeEnd> {
        match self.file(id).ok()?.kind {
            FileKind::Pipe(end) => Some(end),
            _ => None,
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
    let end = call.kernel.pipe_end(id).ok_or(Status::INVALID_DEVICE_REQUEST)?;
    let request = call.kernel.pipes.request();
    call.kernel.pipes.read(end, request, length as usize)?;
    settle(call, id, request, completion, buffer, Waiting::AsOpened)
}

/// NtWriteFile.
pub(super) fn write(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    completion: Completion,
    buffer: u64,
    length: u32,
) -> Result<Outcome, Status> {
    let end = call.kernel.pipe_end(id).ok_or(Status::INVALID_DEVICE_REQUEST)?;
    let data = UserBuffer::new(buffer, u64::from(length)).read(call)?;
    let request = call.kernel.pipes.request();
    call.kernel.pipes.write(end, request, data)?;
    settle(call, id, request, completion, 0, Waiting::AsOpened)
}

/// NtFlushBuffersFile: waits for the reader.
pub(super) fn flush(call: &mut Call<'_, '_>, id: ObjectId, io_status: IoStatusPtr) -> Result<Outcome, Status> {
    let end = call.kernel.pipe_end(id).ok_or(Status::INVALID_DEVICE_REQUEST)?;
    let request = call.kernel.pipes.request();
    call.kernel.pipes.flush(end, request)?;
    let completion = Completion { event: Handle::NULL, apc: 0, apc_context: 0, io_status };
    completion.begin(call, id)?;
    settle(call, id, request, completion, 0, Waiting::Always)
}

/// NtFsControlFile on a pipe.
pub(super) fn control(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    completion: Completion,
    code: u32,
    input: (u64, u32),
    output: (u64, u32),
) -> Result<Outcome, Status> {
    let end = call.kernel.pipe_end(id).ok_or(Status::INVALID_DEVICE_REQUEST)?;
    let plain = |call: &mut Call<'_, '_>, bytes: Vec<u8>, status: Status| {
        let done = Done { status, information: bytes.len() as u64, data: bytes };
        deliver(call, id, completion, output.0, &done).map(Outcome::Return)
    };
    match code {
        code::LISTEN => {
            let request = call.kernel.pipes.request();
            call.kernel.pipes.listen(end, request)?;
            settle(call, id, request, completion, 0, Waiting::AsOpened)
        }
        code::DISCONNECT => {
            call.kernel.pipes.disconnect(end)?;
            plain(call, Vec::new(), Status::SUCCESS)
        }
        code::PEEK => {
            const HEAD: usize = 0x10;
            let room = (output.1 as usize).checked_sub(HEAD).ok_or(Status::INFO_LENGTH_MISMATCH)?;
            let peek = call.kernel.pipes.peek(end, room)?;
            // Bytes have no end that could be missing.
            let more = peek.data.len() < peek.message_length as usize;
            let head = [peek.state as u32, peek.available, peek.messages, peek.message_length];
            let bytes = Bytes::default().u32s(&head).bytes(&peek.data).0;
            plain(call, bytes, if more { Status::BUFFER_OVERFLOW } else { Status::SUCCESS })
        }
        code::TRANSCEIVE => {
            let data = UserBuffer::new(input.0, u64::from(input.1)).read(call)?;
            let pipes = &mut call.kernel.pipes;
            pipes.check_transceive(end)?;
            let (sent, answer) = (pipes.request(), pipes.request());
            pipes.write(end, sent, data)?;
            pipes.read(end, answer, output.1 as usize)?;
            // The answer says that the question was read.
            pipes.take(sent);
            settle(call, id, answer, completion, output.0, Waiting::AsOpened)
        }
        code::IMPERSONATE => plain(call, Vec::new(), Status::SUCCESS),
        code::GET_PIPE_ATTRIBUTE | code::GET_CONNECTION_ATTRIBUTE => {
            let name = UserBuffer::new(input.0, u64::from(input.1.min(256))).read(call)?;
            let name = String::from_utf8_lossy(&name);
            let facts = call.kernel.pipes.facts(end).ok_or(Status::PIPE_DISCONNECTED)?;
            let process = match name.trim_end_matches('\0') {
                "ServerProcessId" => facts.processes[Side::Server as usize],
                "ClientProcessId" => facts.processes[Side::Client as usize],
                _ => return Err(Status::NOT_FOUND),
            };
            let bytes = u64::from(process).to_le_bytes();
            plain(call, bytes[..bytes.len().min(output.1 as usize)].to_vec(), Status::SUCCESS)
        }
        _ => Err(Status::INVALID_DEVICE_REQUEST),
    }
}

/// NtFsControlFile on the root of the pipes' device: waiting for an instance.
pub(super) fn root_control(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    completion: Completion,
    code: u32,
    input: (u64, u32),
) -> Result<Outcome, Status> {
    const HEAD: usize = 0xE;
    match code {
        code::WAIT => {}
        code::ASSIGN_EVENT | code::QUERY_EVENT | code::SET_CLIENT_PROCESS => return Err(Status::NOT_SUPPORTED),
        _ => return Err(Status::INVALID_DEVICE_REQUEST),
    }
    let bytes = UserBuffer::new(input.0, u64::from(input.1.min(0x1_0000))).read(call)?;
    let (Some(head), Some(name)) = (bytes.get(..HEAD), bytes.get(HEAD..)) else {
        return Err(Status::INVALID_PARAMETER);
    };
    let word = |at: usize| head.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    let timeout = i64::from(word(4)) << 32 | i64::from(word(0));
    let name = name.get(..word(8) as usize).ok_or(Status::INVALID_PARAMETER)?;
    let units: Vec<u16> = name.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    let name = String::from_utf16_lossy(&units);
    call.kernel.pipes.is_available(&name)?;
    // Fifty milliseconds unless the caller or the pipe says otherwise.
    let timeout = if head[0xC] != 0 { timeout } else { -500_000 };
    let deadline = call.kernel.clock.deadline(timeout);
    let wait = Wait::until("an instance of a pipe", move |kernel, _| match kernel.pipes.is_available(&name) {
        Ok(true) => Some(Status::SUCCESS),
        Ok(false) => None,
        Err(status) => Some(status),
    });
    Ok(Outcome::Wait(wait.with_deadline(deadline).then(move |call, status| {
        if status == Status::TIMEOUT {
            return Outcome::Return(Status::IO_TIMEOUT);
        }
        if status.is_error() {
            return Outcome::Return(status);
        }
        Outcome::Return(completion.finish(call, id, status, 0).err().unwrap_or(status))
    })))
}

fn create_named_pipe(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
    io_status: IoStatusPtr,
    share: u32,
    disposition: u32,
    options: u32,
    pipe_type: u32,
    read_mode: u32,
    completion_mode: u32,
    max_instances: u32,
    inbound_quota: u32,
    outbound_quota: u32,
    timeout: UserPtr<i64>,
) -> Result<(), Status> {
    const SHARE_READ: u32 = 1;
    const SHARE_WRITE: u32 = 2;
    const OPEN: u32 = 1;
    const CREATE: u32 = 2;
    const FILE_OPENED: u64 = 1;
    const FILE_CREATED: u64 = 2;
    out.write(call, Handle::NULL)?;
    if attributes.is_null() {
        return Err(Status::INVALID_PARAMETER);
    }
    let attributes = attributes.read_attributes(call)?;
    let timeout = timeout.read_optional(call)?.unwrap_or(-500_000);
    let directions = share & (SHARE_READ | SHARE_WRITE);
    let messages = pipe_type & 1 != 0;
    if directions == 0 || max_instances == 0 || timeout > 0 || read_mode & 1 != 0 && !messages {
        return Err(Status::INVALID_PARAMETER);
    }
    let name = super::services::locate_pipe(call, &attributes)?;
    let exists = !name.is_empty() && call.kernel.pipes.exists(&name);
    match disposition {
        OPEN if !exists => return Err(Status::OBJECT_NAME_NOT_FOUND),
        CREATE if exists && call.kernel.pipes.is_full(&name) => return Err(Status::INSTANCE_NOT_AVAILABLE),
        CREATE if exists => return Err(Status::ACCESS_DENIED),
        _ => {}
    }
    let parameters = PipeParameters {
        messages,
        read_messages: read_mode & 1 != 0,
        nonblocking: completion_mode & 1 != 0,
        max_instances,
        quotas: [inbound_quota, outbound_quota],
        inbound: directions & SHARE_WRITE != 0,
        outbound: directions & SHARE_READ != 0,
        timeout,
    };
    let process = call.kernel.process.id;
    let end = call.kernel.pipes.create(&name, parameters, process)?;
    open_end(call, out, end, &name, access, options, &attributes)?;
    call.write_io_status(io_status, Status::SUCCESS, if exists { FILE_OPENED } else { FILE_CREATED })
}

fn open_end(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    end: PipeEnd,
    name: &str,
    access: u32,
    options: u32,
    attributes: &ObjectAttributes,
) -> Result<(), Status> {
    let access = ObjectType::File.map_access(access);
    let mut object = FileObject::device(FileKind::Pipe(end), "\\Device\\NamedPipe", access, options);
    object.name = if name.is_empty() { String::new() } else { format!("\\{name}") };
    let body = Body::File(Box::new(object));
    let handle = call.kernel.objects.open_new(&mut call.kernel.handles, body, access, attributes.flags.bits());
    call.kernel.reap();
    call.give_handle(out, handle?)
}

/// NtOpenFile of a pipe's name, or of a server end itself: the client's end.
pub(super) fn connect(
    call: &mut Call<'_, '_>,
    name: &str,
    server: Option<PipeEnd>,
    access: u32,
) -> Result<FileObject, Status> {
    let process = call.kernel.process.id;
    let (reads, writes) = (access & file::READ_DATA != 0, access & file::WRITE_DATA != 0);
    let end = match server {
        Some(server) => call.kernel.pipes.connect_to(server, process, reads, writes)?,
        None => call.kernel.pipes.connect(name, process, reads, writes)?,
    };
    let mut object = FileObject::device(FileKind::Pipe(end), "\\Device\\NamedPipe", access, 0);
    object.name = format!("\\{name}");
    Ok(object)
}

/// FilePipeInformation (23) and FilePipeLocalInformation (24); `None` for other classes and files.
pub(super) fn query(kernel: &Kernel, id: ObjectId, class: u32) -> Option<Result<Answer, Status>> {
    let end = kernel.pipe_end(id)?;
    if matches!(class, 23 | 24) && kernel.file(id).is_ok_and(|file| file.access & file::READ_ATTRIBUTES == 0) {
        return Some(Err(Status::ACCESS_DENIED));
    }
    let Some(facts) = kernel.pipes.facts(end) else { return Some(Err(Status::PIPE_DISCONNECTED)) };
    let bytes = match class {
        23 => Bytes::default().u32s(&[facts.modes.0, facts.modes.1].map(u32::from)),
        24 => {
            let parameters = facts.parameters;
            let configuration = match (parameters.inbound, parameters.outbound) {
                (true, true) => 2,
                (false, true) => 1,
                _ => 0,
            };
            let [inbound, outbound] = parameters.quotas;
            Bytes::default().u32s(&[
                u32::from(parameters.messages),
                configuration,
                parameters.max_instances,
                facts.instances,
                inbound,
                facts.available,
                outbound,
                facts.room,
                facts.state as u32,
                u32::from(end.side() == Side::Server),
            ])
        }
        _ => return None,
    };
    Some(Ok(Answer::fixed(bytes.0)))
}

/// FilePipeInformation; `false` for a file that is no pipe.
pub(super) fn set_modes(call: &mut Call<'_, '_>, id: ObjectId, buffer: UserBuffer) -> Result<bool, Status> {
    let Some(end) = call.kernel.pipe_end(id) else { return Ok(false) };
    let [messages, nonblocking] = crate::object::support::read_information::<[u32; 2]>(call, buffer)?;
    if call.kernel.file(id)?.access & file::WRITE_ATTRIBUTES == 0 {
        return Err(Status::ACCESS_DENIED);
    }
    if messages > 1 || nonblocking > 1 {
        return Err(Status::INVALID_PARAMETER);
    }
    call.kernel.pipes.set_modes(end, messages != 0, nonblocking != 0)?;
    Ok(true)
}
