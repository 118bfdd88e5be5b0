//! NtCreateUserProcess: arguments, attribute list, parameters, what a child inherits.
//!
//! Source: the documented CreateProcessW, PS_ATTRIBUTE_LIST and PS_CREATE_INFO as public headers (phnt) give them, and
//! what user-mode callers pass.

use std::sync::Arc;

use super::{Process, ProcessId, ProcessState, access};
use crate::kernel::Kernel;
use crate::loader;
use crate::memory::MemoryManager;
use crate::memory::section::{Section, attributes as sec};
use crate::object::{Body, HandleEntry, HandleTable, ObjectId, ObjectType};
use crate::service::{Call, Handle};
use crate::status::Status;
use crate::strings::{ObjectAttributes, RawObjectAttributes, UnicodeString};
use crate::thread::ThreadId;
use crate::user_ptr::{GuestValue, UserMemory, UserPtr};

crate::services! {
    pub SERVICES;
    /// Creates a process with its first thread.
    NtCreateUserProcess(process: UserPtr<Handle>, thread: UserPtr<Handle>, process_access: u32, thread_access: u32, process_attributes: UserPtr<RawObjectAttributes>, thread_attributes: UserPtr<RawObjectAttributes>, process_flags: u32, thread_flags: u32, parameters: UserPtr<u8>, create_info: UserPtr<u64>, list: UserPtr<u64>) = nt_create_user_process;
}

/// PROCESS_CREATE_FLAGS_*.
mod flag {
    pub const BREAKAWAY: u32 = 0x1;
    pub const INHERIT_HANDLES: u32 = 0x4;
    pub const SUSPENDED: u32 = 0x200;
    /// PROCESS_CREATE_FLAGS_NO_DEBUG_INHERIT.
    pub const NO_DEBUG_INHERIT: u32 = 0x2;
    /// THREAD_CREATE_FLAGS_CREATE_SUSPENDED.
    pub const THREAD_SUSPENDED: u32 = 0x1;
}

/// PS_ATTRIBUTE_NUM values: the low half of an attribute.
mod attribute {
    pub const PARENT_PROCESS: u16 = 0;
    pub const DEBUG_OBJECT: u16 = 1;
    pub const CLIENT_ID: u16 = 3;
    pub const TEB_ADDRESS: u16 = 4;
    pub const IMAGE_NAME: u16 = 5;
    pub const IMAGE_INFO: u16 = 6;
    pub const PRIORITY_CLASS: u16 = 8;
    pub const ERROR_MODE: u16 = 9;
    pub const HANDLE_LIST: u16 = 11;
    pub const JOB_LIST: u16 = 19;
}

/// Attributes read at most, and handles in one of them.
const MAX_ATTRIBUTES: u64 = 64;
const MAX_LISTED: u64 = 0x4000;
/// Bytes of parameters and environment accepted at most.
const MAX_PARAMETERS: u64 = 16 << 20;

/// One PS_ATTRIBUTE.
#[derive(Clone, Copy, Debug)]
struct Attribute {
    number: u16,
    size: u64,
    value: u64,
    returned: UserPtr<u64>,
}

/// What the attribute list asks for.
#[derive(Debug, Default)]
struct Wishes {
    image_name: Option<Vec<u16>>,
    parent: Option<ProcessId>,
    handles: Option<Vec<Handle>>,
    jobs: Vec<ObjectId>,
    debug: Option<ObjectId>,
    priority_class: Option<u8>,
    error_mode: Option<u32>,
    outputs: Vec<Attribute>,
}

fn read_wishes(call: &mut Call<'_, '_>, list: UserPtr<u64>) -> Result<Wishes, Status> {
    const ENTRY: u64 = 0x20;
    let mut wishes = Wishes::default();
    if list.is_null() {
        return Ok(wishes);
    }
    let count = list.read(call)?.saturating_sub(8) / ENTRY;
    if count > MAX_ATTRIBUTES {
        return Err(Status::INVALID_PARAMETER);
    }
    for index in 0..count {
        let [attribute, size, value, returned] = list.byte_add::<[u64; 4]>(8 + index * ENTRY).read(call)?;
        let entry = Attribute { number: attribute as u16, size, value, returned: UserPtr::new(returned) };
        match entry.number {
            attribute::PARENT_PROCESS => {
                wishes.parent = Some(call.process_by_handle(Handle(value), access::CREATE_PROCESS)?);
            }
            attribute::IMAGE_NAME => {
                let length = u16::try_from(size & !1).map_err(|_| Status::NAME_TOO_LONG)?;
                let name = UnicodeString { length, maximum_length: length, buffer: value };
                wishes.image_name = Some(name.read_text(call)?);
            }
            attribute::HANDLE_LIST => {
                wishes.handles = Some(UserPtr::<Handle>::new(value).read_array(call, (size / 8).min(MAX_LISTED))?);
            }
            attribute::DEBUG_OBJECT => {
                const PROCESS_ASSIGN: u32 = 2;
                wishes.debug = Some(call.object(Handle(value), Some(ObjectType::DebugObject), PROCESS_ASSIGN)?);
            }
            attribute::JOB_LIST => {
                const JOB_ASSIGN: u32 = 1;
                for job in UserPtr::<Handle>::new(value).read_array(call, (size / 8).min(MAX_LISTED))? {
                    wishes.jobs.push(call.object(job, Some(ObjectType::Job), JOB_ASSIGN)?);
                }
            }
            attribute::PRIORITY_CLASS if size >= 1 => {
                // PROCESS_PRIORITY_CLASS has the class in its second byte; a lone byte is the class.
                let bytes = UserPtr::<u8>::new(value).read_array(call, size.min(2))?;
                wishes.priority_class = bytes.last().copied();
            }
            attribute::ERROR_MODE if size >= 4 => {
                wishes.error_mode = Some(UserPtr::<u32>::new(value).read(call)?);
            }
            attribute::CLIENT_ID | attribute::TEB_ADDRESS | attribute::IMAGE_INFO => wishes.outputs.push(entry),
            // Token, affinities, mitigations and protection levels: one processor, one user, nothing to mitigate.
            _ => {}
        }
    }
    Ok(wishes)
}

/// Where the strings of RTL_USER_PROCESS_PARAMETERS are.
const STRINGS: [usize; 8] = [0x38, 0x50, 0x60, 0x70, 0xB0, 0xC0, 0xD0, 0xE0];
/// Flags, console handle, standard handles, current directory's handle, environment and its size.
mod parameter {
    pub const FLAGS: usize = 0x8;
    pub const CONSOLE_HANDLE: usize = 0x10;
    pub const STANDARD_HANDLES: usize = 0x20;
    pub const CURRENT_DIRECTORY_HANDLE: usize = 0x48;
    pub const IMAGE_PATH: usize = 0x60;
    pub const COMMAND_LINE: usize = 0x70;
    pub const ENVIRONMENT: usize = 0x80;
    pub const WINDOW_FLAGS: usize = 0xA4;
    pub const ENVIRONMENT_SIZE: usize = 0x3F0;
    /// Bytes up to and including the environment's size.
    pub const MINIMUM: usize = 0x3F8;
    /// RTL_USER_PROC_PARAMS_NORMALIZED.
    pub const NORMALIZED: u32 = 1;
    /// STARTF_USESTDHANDLES.
    pub const USE_STANDARD_HANDLES: u32 = 0x100;
}

/// Parameters as the caller passed them, apart from their place in memory.
#[derive(Debug)]
struct Parameters {
    /// The structure; its pointers mean nothing.
    fixed: Vec<u8>,
    /// The strings of [`STRINGS`], as bytes, with room for their maximum length.
    strings: Vec<(Vec<u8>, u16)>,
    environment: Vec<u8>,
    /// The child's handle of the console that it shares.
    console: Option<Handle>,
}

impl Parameters {
    fn read(call: &mut Call<'_, '_>, from: UserPtr<u8>) -> Result<Self, Status> {
        let [_, length] = from.cast::<[u32; 2]>().read(call)?;
        if (length as usize) < parameter::MINIMUM || u64::from(length) > MAX_PARAMETERS {
            return Err(Status::INVALID_PARAMETER);
        }
        let size = loader::PARAMETERS_SIZE;
        let mut fixed = vec![0; size.min(length as usize)];
        call.read_user(from.address(), &mut fixed)?;
        fixed.resize(size, 0);
        let normalized = u32::from_bytes(&fixed[parameter::FLAGS..]) & parameter::NORMALIZED != 0;
        let place = |pointer: u64| match pointer {
            0 => 0,
            pointer if normalized => pointer,
            offset => from.address().wrapping_add(offset),
        };
        let mut strings = Vec::with_capacity(STRINGS.len());
        for offset in STRINGS {
            let string = UnicodeString::from_bytes(&fixed[offset..]);
            let length = if string.buffer == 0 { 0 } else { string.length & !1 };
            let mut bytes = vec![0; usize::from(length)];
            call.read_user(place(string.buffer), &mut bytes)?;
            strings.push((bytes, string.maximum_length.max(length)));
        }
        let at = u64::from_bytes(&fixed[parameter::ENVIRONMENT..]);
        let environment = read_environment(call, at, u64::from_bytes(&fixed[parameter::ENVIRONMENT_SIZE..]))?;
        Ok(Self { fixed, strings, environment, console: None })
    }

    fn text(&self, offset: usize) -> String {
        let index = STRINGS.iter().position(|&at| at == offset);
        let bytes = index.and_then(|index| self.strings.get(index)).map_or(&[][..], |(bytes, _)| bytes);
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    }

    fn standard_handle(&self, index: usize) -> Handle {
        Handle(u64::from_bytes(&self.fixed[parameter::STANDARD_HANDLES + index * 8..]))
    }

    fn set_standard_handle(&mut self, index: usize, handle: Handle) {
        handle.0.to_bytes(&mut self.fixed[parameter::STANDARD_HANDLES + index * 8..]);
    }

    fn uses_standard_handles(&self) -> bool {
        u32::from_bytes(&self.fixed[parameter::WINDOW_FLAGS..]) & parameter::USE_STANDARD_HANDLES != 0
    }

    /// Writes them into the current process; returns their address.
    fn write(mut self, kernel: &mut Kernel, space: &mut lstar_runtime::AddressSpace) -> Result<u64, Status> {
        use crate::memory::{PageProtection, Placement};
        let room: usize = self.strings.iter().map(|(bytes, maximum)| bytes.len().max((*maximum).into()) + 18).sum();
        let size = (self.fixed.len() + room + self.environment.len() + 16) as u64;
        let address = kernel.memory.allocate(space, size, PageProtection::READWRITE, Placement::default())?;
        let mut tail: Vec<u8> = Vec::new();
        let start = address + self.fixed.len() as u64;
        for (offset, (bytes, maximum)) in STRINGS.into_iter().zip(&self.strings) {
            let length = bytes.len() as u16;
            let string = UnicodeString { length, maximum_length: *maximum, buffer: start + tail.len() as u64 };
            string.to_bytes(&mut self.fixed[offset..]);
            let end = tail.len() + usize::from((*maximum).max(length)) + 2;
            tail.extend(bytes);
            tail.resize(end.next_multiple_of(8), 0);
        }
        let environment = start + tail.len() as u64;
        [size as u32; 2].to_bytes(&mut self.fixed);
        let flags = u32::from_bytes(&self.fixed[parameter::FLAGS..]) | parameter::NORMALIZED;
        flags.to_bytes(&mut self.fixed[parameter::FLAGS..]);
        for (offset, value) in [
            (parameter::CURRENT_DIRECTORY_HANDLE, 0),
            (parameter::ENVIRONMENT, environment),
            (parameter::ENVIRONMENT_SIZE, self.environment.len() as u64),
        ] {
            value.to_bytes(&mut self.fixed[offset..]);
        }
        // Whatever console the caller wants the child to have, it shares the one that all processes have.
        if u64::from_bytes(&self.fixed[parameter::CONSOLE_HANDLE..]) != 0 {
            let console = self.console.map_or(loader::CONSOLE_HANDLE_SHELL_NO_WINDOW, |handle| handle.0);
            console.to_bytes(&mut self.fixed[parameter::CONSOLE_HANDLE..]);
        }
        let mut bytes = self.fixed;
        bytes.extend(tail);
        bytes.extend(self.environment);
        space.write_unchecked(address, &bytes)?;
        Ok(address)
    }
}

/// The environment block: as long as it says, or up to the empty string that ends it.
fn read_environment(call: &mut Call<'_, '_>, at: u64, size: u64) -> Result<Vec<u8>, Status> {
    if at == 0 {
        return Ok(vec![0; 4]);
    }
    if size > MAX_PARAMETERS {
        return Err(Status::INVALID_PARAMETER);
    }
    if size != 0 {
        let mut bytes = vec![0; size as usize];
        call.read_user(at, &mut bytes)?;
        return Ok(bytes);
    }
    let mut bytes = Vec::new();
    while bytes.len() < 4 || bytes[bytes.len() - 4..] != [0; 4] {
        if bytes.len() as u64 >= MAX_PARAMETERS {
            return Err(Status::INVALID_PARAMETER);
        }
        let mut unit = [0; 2];
        call.read_user(at + bytes.len() as u64, &mut unit)?;
        bytes.extend(unit);
    }
    Ok(bytes)
}

/// The handles a child starts with; its standard handles are put into `parameters`.
fn inherit(
    kernel: &mut Kernel,
    parent: ProcessId,
    flags: u32,
    listed: Option<&[Handle]>,
    parameters: &mut Parameters,
) -> Result<HandleTable, Status> {
    let mut table = HandleTable::new();
    let standard = [0, 1, 2].map(|index| parameters.standard_handle(index));
    let source: Vec<_> = kernel.handles_of(parent)?.iter().collect();
    let console = Handle(u64::from_bytes(&parameters.fixed[parameter::CONSOLE_HANDLE..]));
    let shared = source
        .iter()
        .find(|(handle, entry)| *handle == console && crate::io::console::end_of(kernel, entry.object).is_some());
    let shared = shared.map(|(_, entry)| *entry);
    inherit_others(kernel, flags, listed, parameters, source, standard, &mut table)?;
    if let Some(entry) = shared {
        // Behind the others, which keep their numbers.
        parameters.console = Some(table.insert(entry)?);
        kernel.objects.count_handle(entry.object);
    }
    Ok(table)
}

/// All but the console's.
fn inherit_others(
    kernel: &mut Kernel,
    flags: u32,
    listed: Option<&[Handle]>,
    parameters: &mut Parameters,
    source: Vec<(Handle, HandleEntry)>,
    standard: [Handle; 3],
    table: &mut HandleTable,
) -> Result<(), Status> {
    if flags & flag::INHERIT_HANDLES != 0 {
        for (handle, entry) in source {
            let wanted = listed.is_none_or(|listed| listed.contains(&handle) || standard.contains(&handle));
            if entry.inherit && wanted {
                table.insert_at(handle, entry)?;
                kernel.objects.count_handle(entry.object);
            }
        }
        return Ok(());
    }
    if parameters.uses_standard_handles() {
        return Ok(());
    }
    // A child on the same console gets copies of its parent's standard handles, whatever it inherits.
    for (index, handle) in standard.into_iter().enumerate() {
        if let Some((_, entry)) = source.iter().find(|(known, _)| *known == handle) {
            let copy = table.insert(*entry)?;
            kernel.objects.count_handle(entry.object);
            parameters.set_standard_handle(index, copy);
        }
    }
    Ok(())
}

/// Opens the program.
fn open_image(call: &mut Call<'_, '_>, name: &[u16]) -> Result<Arc<Section>, Status> {
    let attributes = ObjectAttributes { name: Some(name.to_vec()), ..ObjectAttributes::default() };
    let file = crate::io::services::open_section_file(call, &attributes)?;
    let section = Section::of_image(file, sec::IMAGE | sec::FILE)?;
    match section.image() {
        Some(headers) if headers.is_dll() => Err(Status::INVALID_IMAGE_FORMAT),
        Some(headers) if headers.is_managed_only() => Err(Status::INVALID_IMAGE_FORMAT),
        _ => Ok(Arc::new(section)),
    }
}

/// "C:\a.exe" of "\??\C:\a.exe".
fn dos_name(name: &str) -> String {
    name.strip_prefix("\\??\\").unwrap_or(name).to_owned()
}

/// Makes the process and its thread, which is suspended if it is to be.
fn create(
    call: &mut Call<'_, '_>,
    wishes: &Wishes,
    mut parameters: Parameters,
    process_flags: u32,
    suspended: bool,
) -> Result<(ProcessId, ThreadId), Status> {
    let name = wishes.image_name.clone().ok_or(Status::INVALID_PARAMETER)?;
    let image = open_image(call, &name)?;
    let parent = wishes.parent.unwrap_or(call.kernel.process.id);
    let caller_handles = call.kernel.process.id;
    if call.kernel.live_processes().len() >= call.kernel.max_processes {
        call.kernel.note(format!("no more than {} processes may run at a time", call.kernel.max_processes));
        return Err(Status::QUOTA_EXCEEDED);
    }
    call.kernel.check_job_limits(parent)?;
    let listed = wishes.handles.as_deref();
    // Standard handles are the caller's; everything else comes from the parent.
    let source = if process_flags & flag::INHERIT_HANDLES != 0 { parent } else { caller_handles };
    let handles = inherit(call.kernel, source, process_flags, listed, &mut parameters)?;
    let space = match call.vcpu.memory.create_space() {
        Ok(space) => space,
        Err(error) => {
            let mut handles = handles;
            call.kernel.objects.close_all(&mut handles);
            return Err(error.into());
        }
    };
    let kernel = &mut *call.kernel;
    let id = kernel.allocate_client_id();
    let mut cookie = [0; 4];
    kernel.host.entropy(&mut cookie);
    let object = kernel.objects.insert(Body::Process { id, ended: false });
    let process = Process {
        id,
        parent,
        object,
        space,
        image_base: 0,
        ntdll_base: 0,
        peb: 0,
        image_name: image.file.as_ref().map(|file| file.name.clone()).unwrap_or_default(),
        dos_name: dos_name(&parameters.text(parameter::IMAGE_PATH)),
        command_line: parameters.text(parameter::COMMAND_LINE),
        image,
        entry_points: super::EntryPoints::default(),
        exit_status: None,
        created: kernel.clock.interrupt_time(),
        ended: 0,
        instructions: 0,
        hard_error_mode: wishes.error_mode.unwrap_or(kernel.process.hard_error_mode),
        priority_class: wishes.priority_class.unwrap_or(super::information::NORMAL_CLASS),
        execute_flags: kernel.process.execute_flags,
        cookie: u32::from_le_bytes(cookie),
        job: None,
        debug_object: None,
        debug_inherit: process_flags & flag::NO_DEBUG_INHERIT == 0,
        ended_threads: std::collections::BTreeMap::new(),
    };
    kernel.others.insert(id, ProcessState { process, memory: MemoryManager::default(), handles });
    let started = call.attached(id, |call| {
        call.start_process(|kernel, space| parameters.write(kernel, space)).map_err(|error| error.status)
    });
    let result = started.and_then(|thread| {
        call.kernel.join_jobs(id, parent, &wishes.jobs, process_flags & flag::BREAKAWAY != 0)?;
        call.kernel.scheduler.thread_mut(thread)?.suspend_count = u32::from(suspended);
        Ok((id, thread))
    });
    if let Err(status) = result {
        call.kernel.end_process(call.vcpu, id, status);
    }
    result
}

/// What PS_CREATE_INFO says of a success.
fn write_create_info(call: &mut Call<'_, '_>, info: UserPtr<u64>, process: ProcessId) -> Result<(), Status> {
    const SIZE: u64 = 0x58;
    /// PsCreateSuccess.
    const SUCCESS: u64 = 6;
    const STATE: u64 = 0x8;
    const PEB: u64 = 0x38;
    if info.is_null() || info.read(call)? < SIZE {
        return Ok(());
    }
    let peb = call.kernel.process_by_id(process).map_or(0, |process| process.peb);
    info.byte_add::<u64>(STATE).write(call, SUCCESS)?;
    info.byte_add::<[u8; 0x48]>(0x10).write(call, [0; 0x48])?;
    info.byte_add::<u64>(PEB).write(call, peb)
}

fn write_outputs(call: &mut Call<'_, '_>, wishes: &Wishes, process: ProcessId, thread: ThreadId) -> Result<(), Status> {
    for output in &wishes.outputs {
        let bytes: Vec<u8> = match output.number {
            attribute::CLIENT_ID => [process, thread].map(|id| u64::from(id).to_le_bytes()).concat(),
            attribute::TEB_ADDRESS => {
                call.kernel.scheduler.threads.get(&thread).map_or(0, |thread| thread.teb).to_le_bytes().to_vec()
            }
            _ => {
                let process = call.kernel.process_by_id(process).ok_or(Status::INVALID_HANDLE)?;
                process.image_information()?.to_vec()
            }
        };
        let length = usize::try_from(output.size).map_or(bytes.len(), |size| size.min(bytes.len()));
        call.write_user(output.value, &bytes[..length])?;
        output.returned.write_optional(call, length as u64)?;
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the service has as many")]
fn nt_create_user_process(
    call: &mut Call<'_, '_>,
    process: UserPtr<Handle>,
    thread: UserPtr<Handle>,
    process_access: u32,
    thread_access: u32,
    process_attributes: UserPtr<RawObjectAttributes>,
    thread_attributes: UserPtr<RawObjectAttributes>,
    process_flags: u32,
    thread_flags: u32,
    parameters: UserPtr<u8>,
    create_info: UserPtr<u64>,
    list: UserPtr<u64>,
) -> Result<Status, Status> {
    // Outputs are probed before anything is made.
    process.write(call, Handle::NULL)?;
    thread.write(call, Handle::NULL)?;
    if thread_flags & !flag::THREAD_SUSPENDED != 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    let process_attributes = process_attributes.read_attributes_optional(call)?;
    let thread_attributes = thread_attributes.read_attributes_optional(call)?;
    let wishes = read_wishes(call, list)?;
    let parameters = Parameters::read(call, parameters)?;
    let suspended = process_flags & flag::SUSPENDED != 0 || thread_flags & flag::THREAD_SUSPENDED != 0;
    let (id, first) = create(call, &wishes, parameters, process_flags, suspended)?;
    let finished = finish(call, &wishes, (id, first), |call| {
        let object = call.kernel.process_by_id(id).ok_or(Status::INVALID_HANDLE)?.object;
        call.open_handle(process, object, process_access, &process_attributes)?;
        let object = call.kernel.thread_object(first).ok_or(Status::INVALID_HANDLE)?;
        call.open_handle(thread, object, thread_access, &thread_attributes)?;
        write_create_info(call, create_info, id)
    });
    if let Err(status) = finished {
        call.kernel.end_process(call.vcpu, id, status);
        return Err(status);
    }
    // Whoever debugs the parent debugs its children, if that is wanted.
    let parent = wishes.parent.unwrap_or(call.kernel.process.id);
    let inherited = call.kernel.process_by_id(parent).filter(|parent| parent.debug_inherit);
    if let Some(object) = wishes.debug.or_else(|| inherited.and_then(|parent| parent.debug_object)) {
        call.kernel.debug_process(call.vcpu.memory, id, object)?;
    }
    Ok(Status::SUCCESS)
}

fn finish(
    call: &mut Call<'_, '_>,
    wishes: &Wishes,
    (process, thread): (ProcessId, ThreadId),
    open: impl FnOnce(&mut Call<'_, '_>) -> Result<(), Status>,
) -> Result<(), Status> {
    write_outputs(call, wishes, process, thread)?;
    open(call)
}
