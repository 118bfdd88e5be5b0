//! The process: its identity, its image, its end.

pub mod information;
pub mod services;

use std::collections::BTreeMap;
use std::sync::Arc;

use lstar_runtime::Vcpu;

use crate::kernel::Kernel;
use crate::memory::section::Section;
use crate::object::{Body, ObjectId, ObjectType};
use crate::service::Handle;
use crate::status::Status;
use crate::system::StopReason;
use crate::thread::ThreadId;

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

/// The process.
#[derive(Debug)]
pub struct Process {
    /// UniqueProcessId.
    pub id: u32,
    /// Its object.
    pub object: ObjectId,
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
    /// ProcessDefaultHardErrorMode.
    pub hard_error_mode: u32,
    /// Priority class.
    pub priority_class: u8,
    /// ProcessExecuteFlags.
    pub execute_flags: u32,
    /// ProcessCookie.
    pub cookie: u32,
    /// Exit statuses of threads that have ended.
    pub ended_threads: BTreeMap<ThreadId, Status>,
}

impl Process {
    /// Exit status of a thread that has ended.
    #[must_use]
    pub fn thread_exit_status(&self, id: ThreadId) -> Status {
        self.ended_threads.get(&id).copied().unwrap_or(Status::SUCCESS)
    }
}

impl Kernel {
    /// Checks that a handle names the one process there is.
    pub fn require_current_process(&self, handle: Handle) -> Result<(), Status> {
        if handle == Handle::CURRENT_PROCESS {
            return Ok(());
        }
        let object = self.objects.by_handle(&self.handles, handle, Some(ObjectType::Process), 0)?;
        if object == self.process.object { Ok(()) } else { Err(Status::ACCESS_DENIED) }
    }

    /// A new identifier for a thread: multiples of four, as Windows gives them.
    pub fn allocate_client_id(&mut self) -> u32 {
        self.next_client_id = self.next_client_id.wrapping_add(4);
        self.next_client_id
    }

    /// Ends a thread: its mutants are abandoned, its stack and TEB freed, its object signaled.
    pub fn end_thread(&mut self, vcpu: &mut Vcpu<'_>, id: ThreadId, status: Status) {
        let Some(thread) = self.scheduler.remove(id) else { return };
        self.process.ended_threads.insert(id, status);
        self.memory.release(vcpu.memory, thread.stack);
        self.memory.release(vcpu.memory, thread.teb);
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

    /// Ends the process: files are brought up to date, nothing runs any more.
    pub fn end_process(&mut self, vcpu: &mut Vcpu<'_>, status: Status) {
        self.memory.flush_all(vcpu.memory);
        self.process.exit_status = Some(status);
        self.stop = Some(StopReason::Exited);
        if let Ok(Body::Process { ended, .. }) = self.objects.body_mut(self.process.object) {
            *ended = true;
        }
    }
}
