//! Services of debuggers.

use super::{DebugObject, Event, EventId};
use crate::io::filesystem::{CreateRequest, FileSystem};
use crate::io::path::NtPath;
use crate::kernel::Kernel;
use crate::object::support::{AttributesPtr, read_information};
use crate::object::{Body, Handle, ObjectId, ObjectType};
use crate::process::{ProcessId, access};
use crate::service::{Call, Outcome};
use crate::services;
use crate::status::Status;
use crate::thread::ThreadId;
use crate::user_ptr::{GuestValue, UserBuffer, UserMemory, UserPtr};
use crate::wait::Wait;

services! { pub SERVICES;
    /// Makes a debug object.
    NtCreateDebugObject(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, flags: u32) = create_debug_object;
    /// Starts to debug a process.
    NtDebugActiveProcess(process: Handle, debug: Handle) = debug_active_process;
    /// Ends debugging a process.
    NtRemoveProcessDebug(process: Handle, debug: Handle) = remove_process_debug;
    /// Waits for an event of a debugged process.
    NtWaitForDebugEvent(debug: Handle, alertable: bool, timeout: UserPtr<i64>, change: u64) = wait_for_debug_event;
    /// Lets a debugged process go on.
    NtDebugContinue(debug: Handle, client: UserPtr<[u64; 2]>, status: u32) = debug_continue;
    /// Changes a debug object: whether what it debugs ends with it.
    NtSetInformationDebugObject(debug: Handle, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = set_information;
}

/// DEBUG_KILL_ON_CLOSE.
const KILL_ON_CLOSE: u32 = 1;

/// Access rights of debug objects.
mod right {
    pub const READ_EVENT: u32 = 1;
    pub const PROCESS_ASSIGN: u32 = 2;
    pub const SET_INFORMATION: u32 = 4;
}

/// DBGUI_WAIT_STATE_CHANGE.
mod change {
    pub const SIZE: usize = 0xB8;
    pub const CLIENT_ID: usize = 0x8;
    pub const INFORMATION: usize = 0x18;
    pub const CREATE_THREAD: u32 = 2;
    pub const CREATE_PROCESS: u32 = 3;
    pub const EXIT_THREAD: u32 = 4;
    pub const EXIT_PROCESS: u32 = 5;
    pub const EXCEPTION: u32 = 6;
    pub const BREAKPOINT: u32 = 7;
    pub const SINGLE_STEP: u32 = 8;
    pub const LOAD_DLL: u32 = 9;
    pub const UNLOAD_DLL: u32 = 10;
}

fn create_debug_object(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
    flags: u32,
) -> Result<Status, Status> {
    out.write(call, Handle::NULL)?;
    if flags & !KILL_ON_CLOSE != 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    let object = DebugObject { kill_on_close: flags & KILL_ON_CLOSE != 0, ..DebugObject::default() };
    call.create_object(out, access, attributes, Body::DebugObject(object))
}

fn debug_active_process(call: &mut Call<'_, '_>, process: Handle, debug: Handle) -> Result<(), Status> {
    let target = call.process_by_handle(process, access::SUSPEND_RESUME)?;
    let object = call.object(debug, Some(ObjectType::DebugObject), right::PROCESS_ASSIGN)?;
    if target == call.kernel.process.id {
        return Err(Status::ACCESS_DENIED);
    }
    call.kernel.debug_process(call.vcpu.memory, target, object)?;
    // Whoever is attached to does not hand its debugger on.
    if let Some(process) = call.kernel.process_by_id_mut(target) {
        process.debug_inherit = false;
    }
    Ok(())
}

fn remove_process_debug(call: &mut Call<'_, '_>, process: Handle, debug: Handle) -> Result<(), Status> {
    let target = call.process_by_handle(process, access::SUSPEND_RESUME)?;
    let object = call.object(debug, Some(ObjectType::DebugObject), right::PROCESS_ASSIGN)?;
    if call.kernel.process_by_id(target).and_then(|process| process.debug_object) != Some(object) {
        return Err(Status::PORT_NOT_SET);
    }
    call.kernel.undebug_process(call.vcpu.memory, target);
    Ok(())
}

fn wait_for_debug_event(
    call: &mut Call<'_, '_>,
    debug: Handle,
    alertable: bool,
    timeout: UserPtr<i64>,
    change: u64,
) -> Result<Outcome, Status> {
    let object = call.object(debug, Some(ObjectType::DebugObject), right::READ_EVENT)?;
    let deadline = call.deadline(timeout)?;
    call.kernel.objects.reference(object);
    let wait = Wait::until("an event of a debugged process", move |kernel, thread| {
        let id = kernel.debug_object(object).ok()?.tell(thread)?;
        kernel.debug_told.insert(thread, id);
        Some(Status::SUCCESS)
    });
    Ok(Outcome::Wait(wait.with_deadline(deadline).alertable(alertable).then(move |call, status| {
        let told = call.kernel.debug_told.remove(&call.thread);
        let result = told.map_or(Ok(()), |id| tell(call, object, id, change));
        call.kernel.objects.dereference(object);
        call.kernel.reap();
        Outcome::Return(result.err().unwrap_or(status))
    })))
}

/// Writes DBGUI_WAIT_STATE_CHANGE, with handles for the debugger.
fn tell(call: &mut Call<'_, '_>, object: ObjectId, id: EventId, address: u64) -> Result<(), Status> {
    let Some(pending) = call.kernel.debug_object(object)?.get(id).cloned() else { return Err(Status::UNSUCCESSFUL) };
    let mut bytes = vec![0; change::SIZE];
    let mut put = |at: usize, value: u64| value.to_bytes(&mut bytes[at..]);
    put(change::CLIENT_ID, u64::from(pending.process));
    put(change::CLIENT_ID + 8, u64::from(pending.thread));
    let at = change::INFORMATION;
    let kind = match &pending.event {
        Event::ThreadCreated { start } => {
            put(at, thread_handle(call, pending.thread));
            put(at + 0x10, *start);
            change::CREATE_THREAD
        }
        Event::ProcessCreated { image, base, start } => {
            put(at, process_handle(call, pending.process));
            put(at + 0x8, thread_handle(call, pending.thread));
            put(at + 0x18, file_handle(call.kernel, image));
            put(at + 0x20, *base);
            put(at + 0x38, *start);
            change::CREATE_PROCESS
        }
        Event::ThreadExited(status) => {
            put(at, u64::from(status.0));
            change::EXIT_THREAD
        }
        Event::ProcessExited(status) => {
            put(at, u64::from(status.0));
            change::EXIT_PROCESS
        }
        Event::Exception { record, first_chance } => {
            record.to_bytes(&mut bytes[at..]);
            u32::from(*first_chance).to_bytes(&mut bytes[at + 0x98..]);
            match Status(record.code) {
                Status::BREAKPOINT => change::BREAKPOINT,
                Status::SINGLE_STEP => change::SINGLE_STEP,
                _ => change::EXCEPTION,
            }
        }
        Event::ImageMapped { image, base } => {
            put(at, file_handle(call.kernel, image));
            put(at + 0x8, *base);
            change::LOAD_DLL
        }
        Event::ImageUnmapped { base } => {
            put(at, *base);
            change::UNLOAD_DLL
        }
    };
    kind.to_bytes(&mut bytes);
    call.write_user(address, &bytes)
}

/// A handle for the debugger; 0 where the object is gone.
fn open(kernel: &mut Kernel, object: Option<ObjectId>, access: u32) -> u64 {
    let Some(object) = object else { return 0 };
    kernel.objects.open(&mut kernel.handles, object, access, 0).map_or(0, |handle| handle.0)
}

fn thread_handle(call: &mut Call<'_, '_>, thread: ThreadId) -> u64 {
    const ALL: u32 = 0x1F_FFFF;
    let object = call.kernel.thread_object(thread);
    open(call.kernel, object, ALL)
}

fn process_handle(call: &mut Call<'_, '_>, process: ProcessId) -> u64 {
    const ALL: u32 = 0x1F_FFFF;
    let object = call.kernel.process_by_id(process).map(|process| process.object);
    open(call.kernel, object, ALL)
}

/// A handle to the file of an image, open for reading; 0 where it cannot be opened.
fn file_handle(kernel: &mut Kernel, name: &str) -> u64 {
    const READ: u32 = 0x12_0089;
    const OPEN: u32 = 1;
    const SYNCHRONOUS: u32 = 0x20;
    let volumes = 0..kernel.files.volumes().len();
    let found = volumes.into_iter().find_map(|volume| {
        let rest = name.strip_prefix(&FileSystem::device_name(volume))?.strip_prefix('\\')?;
        Some((volume, NtPath::parse(rest).ok()?))
    });
    let Some((volume, path)) = found else { return 0 };
    let request =
        CreateRequest { volume, path, access: READ, attributes: 0, share: 7, disposition: OPEN, options: SYNCHRONOUS };
    let Ok((file, _)) = kernel.files.create(&request) else { return 0 };
    kernel.objects.open_new(&mut kernel.handles, Body::File(Box::new(file)), READ, 0).map_or(0, |handle| handle.0)
}

fn debug_continue(
    call: &mut Call<'_, '_>,
    debug: Handle,
    client: UserPtr<[u64; 2]>,
    status: u32,
) -> Result<(), Status> {
    let object = call.object(debug, Some(ObjectType::DebugObject), right::READ_EVENT)?;
    let [process, thread] = client.read(call)?.map(|id| u32::try_from(id).unwrap_or(0));
    let status = Status(status);
    let known = [
        Status::DBG_CONTINUE,
        Status::DBG_EXCEPTION_HANDLED,
        Status::DBG_EXCEPTION_NOT_HANDLED,
        Status::DBG_REPLY_LATER,
        Status::DBG_TERMINATE_THREAD,
        Status::DBG_TERMINATE_PROCESS,
    ];
    if !known.contains(&status) {
        return Err(Status::INVALID_PARAMETER);
    }
    let mut event = call.kernel.debug_object(object)?.continued(process, thread).ok_or(Status::INVALID_PARAMETER)?;
    match status {
        Status::DBG_REPLY_LATER => {
            // It will be told again.
            event.told = None;
            call.kernel.debug_object(object)?.events.push_front(event);
            return Ok(());
        }
        Status::DBG_TERMINATE_PROCESS => call.kernel.doomed.push((process, Status::CONTROL_C_EXIT)),
        Status::DBG_TERMINATE_THREAD => call.kernel.end_thread(call.vcpu, thread, Status::SUCCESS),
        _ => {}
    }
    call.kernel.answer(&event, status);
    call.kernel.unfreeze(process);
    Ok(())
}

fn set_information(
    call: &mut Call<'_, '_>,
    debug: Handle,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<(), Status> {
    /// DebugObjectKillProcessOnExitInformation.
    const KILL_PROCESS_ON_EXIT: u32 = 1;
    if class != KILL_PROCESS_ON_EXIT {
        return Err(Status::INVALID_PARAMETER);
    }
    if length != 4 {
        returned.write_optional(call, 4)?;
        return Err(Status::INFO_LENGTH_MISMATCH);
    }
    let flags = read_information::<u32>(call, UserBuffer::new(buffer, u64::from(length)))?;
    if flags & !KILL_ON_CLOSE != 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    let object = call.object(debug, Some(ObjectType::DebugObject), right::SET_INFORMATION)?;
    call.kernel.debug_object(object)?.kill_on_close = flags & KILL_ON_CLOSE != 0;
    returned.write_optional(call, 0)
}
