//! NtReadFileScatter and NtWriteFileGather: transfers between a file and pages here and there.
#![expect(clippy::too_many_arguments, reason = "handlers have as many as their services")]

use lstar_arch::PAGE_SIZE;

use super::file::{self, FileKind};
use super::services::IoStatusPtr;
use super::transfer::{Completion, Start, read_disk, start_of, write_disk};
use crate::object::{Handle, ObjectId, ObjectType};
use crate::service::{Call, Outcome};
use crate::services;
use crate::status::Status;
use crate::user_ptr::UserPtr;

services! { pub SERVICES;
    /// Reads from a file opened without buffering, a page here and a page there.
    NtReadFileScatter(file: Handle, event: Handle, apc: u64, apc_context: u64, io_status: IoStatusPtr, segments: UserPtr<u64>, length: u32, offset: UserPtr<i64>, key: UserPtr<u32>) = read_scatter;
    /// Writes to a file opened without buffering, a page from here and a page from there.
    NtWriteFileGather(file: Handle, event: Handle, apc: u64, apc_context: u64, io_status: IoStatusPtr, segments: UserPtr<u64>, length: u32, offset: UserPtr<i64>, key: UserPtr<u32>) = write_gather;
}

/// FILE_NO_INTERMEDIATE_BUFFERING.
const UNBUFFERED: u32 = 0x8;

/// What both services check, and where the transfer starts.
fn prepare(call: &mut Call<'_, '_>, id: ObjectId, offset: UserPtr<i64>) -> Result<Start, Status> {
    let file = call.kernel.file(id)?;
    let disk = matches!(file.kind, FileKind::Disk { .. });
    if !disk || file.is_synchronous() || file.options & UNBUFFERED == 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    start_of(call, id, offset)
}

fn read_scatter(
    call: &mut Call<'_, '_>,
    handle: Handle,
    event: Handle,
    apc: u64,
    apc_context: u64,
    io_status: IoStatusPtr,
    segments: UserPtr<u64>,
    length: u32,
    offset: UserPtr<i64>,
    _key: UserPtr<u32>,
) -> Result<Outcome, Status> {
    let id = call.object(handle, Some(ObjectType::File), file::READ_DATA)?;
    let completion = Completion { event, apc, apc_context, io_status };
    let Start::At(start) = prepare(call, id, offset)? else { return Err(Status::INVALID_PARAMETER) };
    let segments = segments.read_array(call, u64::from(length).div_ceil(PAGE_SIZE))?;
    completion.begin(call, id)?;
    call.kernel.files.check_locks(call.kernel.file(id)?, start, u64::from(length), false)?;
    let mut total = 0;
    for segment in segments {
        let wanted = PAGE_SIZE.min(u64::from(length) - total);
        let read = read_disk(call, id, start.saturating_add(total), segment, wanted as usize)?;
        total += read;
        if read < wanted {
            break;
        }
    }
    let status = if total == 0 && length > 0 { Status::END_OF_FILE } else { Status::SUCCESS };
    completion.finish_pended(call, id, status, total)
}

fn write_gather(
    call: &mut Call<'_, '_>,
    handle: Handle,
    event: Handle,
    apc: u64,
    apc_context: u64,
    io_status: IoStatusPtr,
    segments: UserPtr<u64>,
    length: u32,
    offset: UserPtr<i64>,
    _key: UserPtr<u32>,
) -> Result<Outcome, Status> {
    let id = call.object(handle, Some(ObjectType::File), file::WRITE_DATA)?;
    let completion = Completion { event, apc, apc_context, io_status };
    let start = prepare(call, id, offset)?;
    if u64::from(length) % PAGE_SIZE != 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    let segments = segments.read_array(call, u64::from(length) / PAGE_SIZE)?;
    completion.begin(call, id)?;
    let mut at = match start {
        Start::At(at) => at,
        Start::End => call.kernel.size_of_disk_file(id)?,
    };
    // All of it, before any of it is written.
    call.kernel.files.check_locks(call.kernel.file(id)?, at, u64::from(length), true)?;
    for segment in segments {
        write_disk(call, id, at, segment, PAGE_SIZE as u32)?;
        at = at.saturating_add(PAGE_SIZE);
    }
    completion.finish_pended(call, id, Status::SUCCESS, u64::from(length))
}
