//! Processes: identity, image, address space, handles, life and end.
//!
//! One process is *current*: its parts are the kernel's own `process`, `memory` and `handles`, and its address space is
//! the machine's. [`Kernel::enter_process`] makes another one current: the scheduler when it switches threads, a service
//! for as long as it works on another process ([`Call::attached`]), as KeStackAttachProcess does on Windows.

pub mod create;
pub mod create_services;
pub mod information;
pub mod jobs;
pub mod services;

use std::collections::BTreeMap;
use std::sync::Arc;

use lstar_runtime::{AddressSpace, SpaceId, Vcpu};

use crate::debug::Event;
use crate::kernel::Kernel;
use crate::memory::MemoryManager;
use crate::memory::image::SectionImageInformation;
use crate::memory::section::Section;
use crate::object::{Body, HandleTable, ObjectId, ObjectType};
use crate::service::{Call, Handle};
use crate::status::Status;
use crate::thread::ThreadId;

/// UniqueProcess of a client identifier.
pub type ProcessId = u32;

/// Access rights to processes.
pub mod access {
    /// PROCESS_TERMINATE.
    pub const TERMINATE: u32 = 0x1;
    /// PROCESS_CREATE_THREAD.
    pub const CREATE_THREAD: u32 = 0x2;
    /// PROCESS_VM_OPERATION.
    pub const VM_OPERATION: u32 = 0x8;
    /// PROCESS_VM_READ.
    pub const VM_READ: u32 = 0x10;
    /// PROCESS_VM_WRITE.
    pub const VM_WRITE: u32 = 0x20;
    /// PROCESS_DUP_HANDLE.
    pub const DUP_HANDLE: u32 = 0x40;
    /// PROCESS_CREATE_PROCESS.
    pub const CREATE_PROCESS: u32 = 0x80;
    /// PROCESS_SET_INFORMATION.
    pub const SET_INFORMATION: u32 = 0x200;
    /// PROCESS_QUERY_INFORMATION.
    pub const QUERY_INFORMATION: u32 = 0x400;
    /// PROCESS_SUSPEND_RESUME.
    pub const SUSPEND_RESUME: u32 = 0x800;
    /// PROCESS_QUERY_LIMITED_INFORMATION, which PROCESS_QUERY_INFORMATION includes.
    pub const QUERY_LIMITED_INFORMATION: u32 = 0x1000;
}

/// User-mode code that the kernel enters, as ntdll exports it. 0: this ntdll has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct EntryPoints {
    /// LdrInitializeThunk.
    pub loader_thunk: u64,
    /// RtlUserThreadStart.
    pub user_thread_start: u64,
    /// KiUserExceptionDispatcher.
    pub exception_dispatcher: u64,
    /// KiUserApcDispatcher.
    pub apc_dispatcher: u64,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// UniqueProcessId.
    pub id: ProcessId,
    /// UniqueProcessId of the process that made it; 0 for the first.
    pub parent: ProcessId,
    /// Its object.
    pub object: ObjectId,
    /// Its address space.
    pub space: SpaceId,
    /// Section of its program.
    pub image: Arc<Section>,
    /// Where the program is mapped.
    pub image_base: u64,
    /// Where ntdll is mapped.
    pub ntdll_base: u64,
    /// PEB.
    pub peb: u64,
    /// NT path of the program ("\Device\HarddiskVolume1\a.exe").
    pub image_name: String,
    /// The same with a drive letter ("C:\a.exe").
    pub dos_name: String,
    /// Command line.
    pub command_line: String,
    /// Entry points of user mode.
    pub entry_points: EntryPoints,
    /// Status it ended with.
    pub exit_status: Option<Status>,
    /// Interrupt time of its start.
    pub created: u64,
    /// Interrupt time of its end.
    pub ended: u64,
    /// Instructions that its ended threads have executed.
    pub instructions: u64,
    /// ProcessDefaultHardErrorMode.
    pub hard_error_mode: u32,
    /// Priority class.
    pub priority_class: u8,
    /// ProcessExecuteFlags.
    pub execute_flags: u32,
    /// ProcessCookie.
    pub cookie: u32,
    /// The job it is in, or was when it ended.
    pub job: Option<ObjectId>,
    /// What it is debugged through; referenced.
    pub debug_object: Option<ObjectId>,
    /// Its children are debugged with it.
    pub debug_inherit: bool,
    /// Exit statuses of threads that have ended.
    pub ended_threads: BTreeMap<ThreadId, Status>,
}

impl Process {
    /// SECTION_IMAGE_INFORMATION of its program, where it is mapped.
    pub fn image_information(&self) -> Result<SectionImageInformation, Status> {
        let headers = self.image.image().ok_or(Status::SECTION_NOT_IMAGE)?;
        let mut information = headers.information(self.image.file_size());
        information.transfer_address = self.image_base.wrapping_add(u64::from(headers.entry_rva));
        Ok(information)
    }

    /// Exit status of a thread that has ended.
    #[must_use]
    pub fn thread_exit_status(&self, id: ThreadId) -> Status {
        self.ended_threads.get(&id).copied().unwrap_or(Status::SUCCESS)
    }

    /// File name of its program.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.image_name.rsplit('\\').next().unwrap_or_default()
    }
}

/// What belongs to a process that is not current.
#[derive(Debug)]
pub struct ProcessState {
    /// Identity.
    pub process: Process,
    /// Virtual memory.
    pub memory: MemoryManager,
    /// Handles.
    pub handles: HandleTable,
}

impl Kernel {
    /// The process with an identifier, ended or not.
    #[must_use]
    pub fn process_by_id(&self, id: ProcessId) -> Option<&Process> {
        if id == self.process.id { Some(&self.process) } else { self.others.get(&id).map(|state| &state.process) }
    }

    /// The same, to change.
    pub fn process_by_id_mut(&mut self, id: ProcessId) -> Option<&mut Process> {
        if id == self.process.id {
            return Some(&mut self.process);
        }
        self.others.get_mut(&id).map(|state| &mut state.process)
    }

    /// Handles of a process.
    pub fn handles_of(&mut self, id: ProcessId) -> Result<&mut HandleTable, Status> {
        if id == self.process.id {
            return Ok(&mut self.handles);
        }
        self.others.get_mut(&id).map(|state| &mut state.handles).ok_or(Status::PROCESS_IS_TERMINATING)
    }

    /// Opens a handle in a process's table.
    pub fn open_for(
        &mut self,
        process: ProcessId,
        object: ObjectId,
        access: u32,
        attributes: u32,
    ) -> Result<Handle, Status> {
        let mut table = std::mem::take(self.handles_of(process)?);
        let opened = self.objects.open(&mut table, object, access, attributes);
        *self.handles_of(process)? = table;
        opened
    }

    /// Closes a handle in a process's table.
    pub fn close_for(&mut self, process: ProcessId, handle: Handle) -> Result<(), Status> {
        let mut table = std::mem::take(self.handles_of(process)?);
        let closed = self.objects.close(&mut table, handle);
        *self.handles_of(process)? = table;
        closed
    }

    /// Identifiers of all processes that have not ended, ascending.
    #[must_use]
    pub fn live_processes(&self) -> Vec<ProcessId> {
        let others = self.others.values().map(|state| &state.process);
        let live = others.chain([&self.process]).filter(|process| process.exit_status.is_none());
        let mut ids: Vec<ProcessId> = live.map(|process| process.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Checks that a handle names the current process.
    pub fn require_current_process(&self, handle: Handle) -> Result<(), Status> {
        if handle == Handle::CURRENT_PROCESS {
            return Ok(());
        }
        let object = self.objects.by_handle(&self.handles, handle, Some(ObjectType::Process), 0)?;
        if object == self.process.object { Ok(()) } else { Err(Status::ACCESS_DENIED) }
    }

    /// A new identifier for a process or thread: multiples of four, as Windows gives them.
    pub fn allocate_client_id(&mut self) -> u32 {
        self.next_client_id = self.next_client_id.wrapping_add(4);
        self.next_client_id
    }

    /// Makes a process the current one; returns the one that was. STATUS_PROCESS_IS_TERMINATING when it has ended.
    pub fn enter_process(&mut self, space: &mut AddressSpace, id: ProcessId) -> Result<ProcessId, Status> {
        let previous = self.process.id;
        if id == previous {
            return Ok(previous);
        }
        let target = self.others.get(&id).ok_or(Status::PROCESS_IS_TERMINATING)?;
        if target.process.exit_status.is_some() {
            return Err(Status::PROCESS_IS_TERMINATING);
        }
        space.switch_space(target.process.space)?;
        let Some(next) = self.others.remove(&id) else { return Err(Status::PROCESS_IS_TERMINATING) };
        let left = ProcessState {
            process: std::mem::replace(&mut self.process, next.process),
            memory: std::mem::replace(&mut self.memory, next.memory),
            handles: std::mem::replace(&mut self.handles, next.handles),
        };
        if left.process.exit_status.is_some() {
            // It has ended while it was current.
            let _ = space.destroy_space(left.process.space);
        }
        if self.objects.get(left.process.object).is_some() {
            self.others.insert(previous, left);
        }
        Ok(previous)
    }

    /// Forgets an ended process whose object is gone.
    pub(crate) fn forget_process(&mut self, id: ProcessId) {
        if id != self.process.id && id != self.root_process {
            self.others.remove(&id);
        }
    }

    /// Ends a thread: its mutants are abandoned, its stack and TEB freed, its object signaled.
    pub fn end_thread(&mut self, vcpu: &mut Vcpu<'_>, id: ThreadId, status: Status) {
        let Some(thread) = self.scheduler.remove(id) else { return };
        if let Some(process) = self.process_by_id_mut(thread.process) {
            process.ended_threads.insert(id, status);
            process.instructions += thread.instructions;
        }
        if !thread.hidden {
            self.report(thread.process, id, Event::ThreadExited(status));
        }
        self.cancel_io_of(id);
        if let Ok(previous) = self.enter_process(vcpu.memory, thread.process) {
            self.memory.release(vcpu.memory, thread.stack);
            self.memory.release(vcpu.memory, thread.teb);
            // It was current a moment ago.
            let _ = self.enter_process(vcpu.memory, previous);
        }
        let mutants: Vec<ObjectId> =
            self.objects.iter().filter(|(_, o)| matches!(o.body, Body::Mutant(_))).map(|(id, _)| id).collect();
        for mutant in mutants {
            if let Ok(Body::Mutant(mutant)) = self.objects.body_mut(mutant) {
                mutant.abandon(id);
            }
        }
        if let Ok(Body::Thread { ended, .. }) = self.objects.body_mut(thread.object) {
            *ended = true;
        }
        self.objects.dereference(thread.object);
    }

    /// Ends a process: its threads end, views are written to their files, handles are closed, memory is freed. If it is
    /// the current one, its address space stays until another process is entered; nothing may return to it.
    pub fn end_process(&mut self, vcpu: &mut Vcpu<'_>, id: ProcessId, status: Status) {
        let Ok(previous) = self.enter_process(vcpu.memory, id) else { return };
        if self.process.exit_status.is_some() {
            return;
        }
        if id == self.root_process {
            let exception = self.last_exception.as_ref().filter(|exception| {
                self.scheduler.process_of(exception.thread) == Some(id) && exception.record.code == status.0
            });
            let report = exception.map(|exception| self.crash_report(vcpu.memory, exception));
            self.crash = report.filter(|_| status.0 >= 0x8000_0000).map(Box::new);
        }
        let threads: Vec<ThreadId> = self.scheduler.threads_of(id).map(|thread| thread.id).collect();
        // Of all its threads' ends a debugger learns by that of the process.
        if let Some(&thread) = threads.first() {
            self.report(id, thread, Event::ProcessExited(status));
        }
        let debug_object = self.process.debug_object.take();
        for thread in threads {
            self.end_thread(vcpu, thread, status);
        }
        if let Some(object) = debug_object {
            self.objects.dereference(object);
        }
        self.memory.flush_all(vcpu.memory);
        self.process.exit_status = Some(status);
        self.process.ended = self.clock.interrupt_time();
        self.objects.close_all(&mut self.handles);
        self.memory = MemoryManager::default();
        let object = self.process.object;
        if let Ok(Body::Process { ended, .. }) = self.objects.body_mut(object) {
            *ended = true;
        }
        self.leave_jobs(id);
        if previous != id {
            // It was current a moment ago.
            let _ = self.enter_process(vcpu.memory, previous);
        }
        self.objects.dereference(object);
        self.reap();
    }
}

impl Call<'_, '_> {
    /// The process behind a handle with some access; it may have ended.
    pub fn process_by_handle(&self, handle: Handle, access: u32) -> Result<ProcessId, Status> {
        let kernel = &self.kernel;
        if handle == Handle::CURRENT_PROCESS {
            return Ok(kernel.process.id);
        }
        let object = kernel.objects.by_handle(&kernel.handles, handle, Some(ObjectType::Process), 0)?;
        let mut granted = kernel.handles.get(handle)?.access;
        if granted & access::QUERY_INFORMATION != 0 {
            granted |= access::QUERY_LIMITED_INFORMATION;
        }
        if granted & access != access {
            return Err(Status::ACCESS_DENIED);
        }
        match kernel.objects.body(object)? {
            Body::Process { id, .. } => Ok(*id),
            _ => Err(Status::OBJECT_TYPE_MISMATCH),
        }
    }

    /// Runs `body` with a process current. What it reads and writes is that process's memory, so the caller's arguments
    /// must have been read before, and its results are written afterwards.
    pub fn attached<T>(
        &mut self,
        process: ProcessId,
        body: impl FnOnce(&mut Self) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let previous = self.kernel.enter_process(self.vcpu.memory, process)?;
        let result = body(self);
        self.kernel.enter_process(self.vcpu.memory, previous)?;
        result
    }
}
