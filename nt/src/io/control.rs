//! Control codes of files, pipes and devices, and cancelling.
#![expect(clippy::too_many_arguments, reason = "handlers have as many as their services")]

use std::os::unix::fs::FileExt as _;

use super::file::{self, FileKind};
use super::host::StdStream;
use super::info::Bytes;
use super::pipe_services;
use super::services::IoStatusPtr;
use super::transfer::Completion;
use super::{afd, console, mount_manager, status_of_io};
use crate::object::{Body, Handle, ObjectId, ObjectType};
use crate::service::{Call, Outcome};
use crate::services;
use crate::status::Status;
use crate::user_ptr::{UserBuffer, UserMemory, UserPtr};

services! { pub SERVICES;
    /// File-system control codes.
    NtFsControlFile(file: Handle, event: Handle, apc: u64, apc_context: u64, io_status: IoStatusPtr, code: u32, input: u64, input_length: u32, output: u64, output_length: u32) = fs_control;
    /// Device control codes.
    NtDeviceIoControlFile(file: Handle, event: Handle, apc: u64, apc_context: u64, io_status: IoStatusPtr, code: u32, input: u64, input_length: u32, output: u64, output_length: u32) = device_control;
    /// Cancels operations of the thread on a file.
    NtCancelIoFile(file: Handle, io_status: IoStatusPtr) = cancel;
    /// Cancels one operation on a file, or all.
    NtCancelIoFileEx(file: Handle, target: u64, io_status: IoStatusPtr) = cancel_ex;
    /// Cancels what a thread waits for in a service.
    NtCancelSynchronousIoFile(thread: Handle, target: u64, io_status: IoStatusPtr) = cancel_synchronous;
}

fn fs_control(
    call: &mut Call<'_, '_>,
    handle: Handle,
    event: Handle,
    apc: u64,
    apc_context: u64,
    io_status: IoStatusPtr,
    code: u32,
    input: u64,
    input_length: u32,
    output: u64,
    output_length: u32,
) -> Result<Outcome, Status> {
    const PIPE_PEEK: u32 = 0x11_400C;
    const PIPE_CONNECTED: u32 = 3;
    const SET_ZERO_DATA: u32 = 0x9_80C8;
    const QUERY_ALLOCATED_RANGES: u32 = 0x9_40CF;
    let id = call.object(handle, Some(ObjectType::File), 0)?;
    let completion = Completion { event, apc, apc_context, io_status };
    completion.begin(call, id)?;
    match call.kernel.file(id)?.kind {
        FileKind::Pipe(_) => {
            let (input, output) = ((input, input_length), (output, output_length));
            return pipe_services::control(call, id, completion, code, input, output);
        }
        FileKind::PipeRoot => {
            return pipe_services::root_control(call, id, completion, code, (input, input_length));
        }
        _ => {}
    }
    let bytes = match (&call.kernel.file(id)?.kind, code) {
        (FileKind::Stream(StdStream::Input), PIPE_PEEK) => {
            // State, bytes, messages, length of the first message; what would be read is not told.
            let Some(available) = call.kernel.host.input_available() else { return Err(Status::PIPE_BROKEN) };
            let available = u32::try_from(available).unwrap_or(u32::MAX);
            Bytes::default().u32s(&[PIPE_CONNECTED, available, 0, 0]).0
        }
        (FileKind::Disk { .. }, SET_ZERO_DATA) => zero_data(call, id, input, input_length)?,
        (FileKind::Disk { .. }, QUERY_ALLOCATED_RANGES) => allocated_ranges(call, id, input, input_length)?,
        (FileKind::Disk { .. } | FileKind::Directory { .. }, _) => disk_control(call, id, code, output_length)?,
        _ => return Err(Status::INVALID_DEVICE_REQUEST),
    };
    if bytes.len() > output_length as usize {
        return Err(Status::BUFFER_TOO_SMALL);
    }
    call.write_user(output, &bytes)?;
    completion.finish(call, id, Status::SUCCESS, bytes.len() as u64)?;
    Ok(Outcome::Return(Status::SUCCESS))
}

/// FSCTL_SET_ZERO_DATA: clears a part of a file, as far as the file goes (FILE_ZERO_DATA_INFORMATION).
fn zero_data(call: &mut Call<'_, '_>, id: ObjectId, input: u64, length: u32) -> Result<Vec<u8>, Status> {
    const PIECE: usize = 0x1_0000;
    if length < 0x10 {
        return Err(Status::INVALID_PARAMETER);
    }
    let [start, end] = UserPtr::<[i64; 2]>::new(input).read(call)?;
    let start = u64::try_from(start).map_err(|_| Status::INVALID_PARAMETER)?;
    let end = u64::try_from(end).ok().filter(|&end| end >= start).ok_or(Status::INVALID_PARAMETER)?;
    let end = end.min(call.kernel.size_of_disk_file(id)?);
    let kernel = &*call.kernel;
    let file = kernel.file(id)?;
    if file.access & file::WRITE_DATA == 0 {
        return Err(Status::ACCESS_DENIED);
    }
    kernel.files.check_locks(file, start, end.saturating_sub(start), true)?;
    let host = file.host_file().ok_or(Status::INVALID_DEVICE_REQUEST)?;
    let zeros = vec![0; PIECE];
    let mut at = start;
    while at < end {
        let size = (end - at).min(PIECE as u64);
        let piece = zeros.get(..size as usize).unwrap_or_default();
        host.write_all_at(piece, at).map_err(|error| status_of_io(&error))?;
        at += size;
    }
    Ok(Vec::new())
}

/// FSCTL_QUERY_ALLOCATED_RANGES: a part of a file as one range, as far as the file goes (FILE_ALLOCATED_RANGE_BUFFER).
fn allocated_ranges(call: &mut Call<'_, '_>, id: ObjectId, input: u64, length: u32) -> Result<Vec<u8>, Status> {
    if length < 0x10 {
        return Err(Status::INVALID_PARAMETER);
    }
    let [start, length] = UserPtr::<[i64; 2]>::new(input).read(call)?;
    let start = u64::try_from(start).map_err(|_| Status::INVALID_PARAMETER)?;
    let length = u64::try_from(length).map_err(|_| Status::INVALID_PARAMETER)?;
    let end = start.saturating_add(length).min(call.kernel.size_of_disk_file(id)?);
    Ok(if end > start { Bytes::default().u64s(&[start, end - start]).0 } else { Vec::new() })
}

/// Control codes of files and directories.
fn disk_control(call: &Call<'_, '_>, id: ObjectId, code: u32, capacity: u32) -> Result<Vec<u8>, Status> {
    const GET_OBJECT_ID: u32 = 0x9_009C;
    const CREATE_OR_GET_OBJECT_ID: u32 = 0x9_00C0;
    const GET_REPARSE_POINT: u32 = 0x9_00A8;
    const SET_SPARSE: u32 = 0x9_00C4;
    const GET_COMPRESSION: u32 = 0x9_003C;
    Ok(match code {
        GET_OBJECT_ID | CREATE_OR_GET_OBJECT_ID => super::services::object_id(call, id)?,
        // Links are resolved on the host's side: the guest sees none.
        GET_REPARSE_POINT if capacity == 0 => return Err(Status::INVALID_USER_BUFFER),
        GET_REPARSE_POINT => return Err(Status::NOT_A_REPARSE_POINT),
        SET_SPARSE => Vec::new(),
        GET_COMPRESSION => vec![0, 0],
        _ => return Err(Status::INVALID_DEVICE_REQUEST),
    })
}

/// Control codes of a volume: it lies on disk 0, one partition after the other, each as large as its file system.
fn volume_control(call: &Call<'_, '_>, volume: usize, code: u32) -> Result<Vec<u8>, Status> {
    const GET_VOLUME_DISK_EXTENTS: u32 = 0x56_0000;
    const GET_DEVICE_NUMBER: u32 = 0x2D_1080;
    const GET_LENGTH: u32 = 0x7_405C;
    const FILE_DEVICE_DISK: u32 = 7;
    let size =
        |index: usize| call.kernel.files.volumes().get(index).map_or(0, |volume| volume.space().map_or(0, |s| s.0));
    Ok(match code {
        // One extent: disk, start, length.
        GET_VOLUME_DISK_EXTENTS => {
            let start: u64 = (0..volume).map(size).fold(0x10_0000, u64::saturating_add);
            Bytes::default().u64s(&[1, 0, start, size(volume)]).0
        }
        GET_DEVICE_NUMBER => Bytes::default().u32s(&[FILE_DEVICE_DISK, 0, volume as u32 + 1]).0,
        GET_LENGTH => Bytes::default().u64s(&[size(volume)]).0,
        _ => return Err(Status::INVALID_DEVICE_REQUEST),
    })
}

/// Most bytes of a request to the mount manager: more than names of any length take.
const MAX_MOUNT_REQUEST: u64 = 1 << 18;
/// Random bytes at a time: bounds what a guest makes the host allocate.
const MAX_RANDOM: u32 = 1 << 20;

fn device_control(
    call: &mut Call<'_, '_>,
    handle: Handle,
    event: Handle,
    apc: u64,
    apc_context: u64,
    io_status: IoStatusPtr,
    code: u32,
    input: u64,
    input_length: u32,
    output: u64,
    output_length: u32,
) -> Result<Outcome, Status> {
    let id = call.object(handle, Some(ObjectType::File), 0)?;
    let completion = Completion { event, apc, apc_context, io_status };
    completion.begin(call, id)?;
    let output = UserBuffer::new(output, u64::from(output_length));
    let input = UserBuffer::new(input, u64::from(input_length));
    if let Some(end) = console::end_of(call.kernel, id) {
        return console::control(call, id, end, completion, code, input, output);
    }
    let answer = match &call.kernel.file(id)?.kind {
        FileKind::Socket(_) => return afd::control::control(call, id, completion, code, input, output),
        FileKind::Random => {
            // IOCTL_KSEC_RNG, IOCTL_KSEC_RNG_REKEY: the whole buffer.
            if !matches!(code, 0x39_0004 | 0x39_0008) {
                return Err(Status::NOT_SUPPORTED);
            }
            let mut bytes = vec![0; output_length.min(MAX_RANDOM) as usize];
            call.kernel.host.entropy(&mut bytes);
            bytes
        }
        FileKind::Volume(volume) => volume_control(call, *volume, code)?,
        FileKind::MountManager => {
            let input = UserBuffer::new(input.address, input.length.min(MAX_MOUNT_REQUEST)).read(call)?;
            let capacity = usize::try_from(output.length).unwrap_or(usize::MAX);
            let (answer, status) = mount_manager::control(&call.kernel.files, code, &input, capacity)?;
            output.write(call, &answer)?;
            completion.finish(call, id, status, answer.len() as u64)?;
            return Ok(Outcome::Return(status));
        }
        _ => return Err(Status::NOT_SUPPORTED),
    };
    output.write(call, &answer)?;
    completion.finish(call, id, Status::SUCCESS, answer.len() as u64)?;
    Ok(Outcome::Return(Status::SUCCESS))
}

fn cancel(call: &mut Call<'_, '_>, handle: Handle, io_status: IoStatusPtr) -> Result<(), Status> {
    let id = call.object(handle, Some(ObjectType::File), 0)?;
    let thread = call.thread;
    call.kernel.cancel_pending(id, Some(thread), 0);
    call.kernel.afd.cancel_file(id, Some(thread), 0);
    call.write_io_status(io_status, Status::SUCCESS, 0)
}

fn cancel_ex(call: &mut Call<'_, '_>, handle: Handle, target: u64, io_status: IoStatusPtr) -> Result<(), Status> {
    let id = call.object(handle, Some(ObjectType::File), 0)?;
    let cancelled = call.kernel.cancel_pending(id, None, target) | call.kernel.afd.cancel_file(id, None, target);
    if !cancelled {
        return Err(Status::NOT_FOUND);
    }
    call.write_io_status(io_status, Status::SUCCESS, 0)
}

fn cancel_synchronous(
    call: &mut Call<'_, '_>,
    thread: Handle,
    target: u64,
    io_status: IoStatusPtr,
) -> Result<(), Status> {
    /// THREAD_TERMINATE.
    const TERMINATE: u32 = 1;
    let id = call.object(thread, Some(ObjectType::Thread), TERMINATE)?;
    let Body::Thread { id: thread, .. } = *call.kernel.objects.body(id)? else {
        return Err(Status::OBJECT_TYPE_MISMATCH);
    };
    let status = if call.kernel.cancel_waiting(thread, target) { Status::SUCCESS } else { Status::NOT_FOUND };
    call.write_io_status(io_status, status, 0)?;
    if status.is_error() { Err(status) } else { Ok(()) }
}
