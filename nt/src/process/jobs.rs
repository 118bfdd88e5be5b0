//! Jobs: groups of processes with common limits and a common end.
//!
//! A process is in one job, and in those around it: a job that has never had a process becomes nested in the job of the
//! first that it is given (Windows 8).

use super::ProcessId;
use crate::io::info::{Answer, Bytes};
use crate::kernel::Kernel;
use crate::object::support::{AttributesPtr, read_information};
use crate::object::{Body, CompletionPacket, Handle, Job, ObjectId, ObjectType};
use crate::service::{Call, Outcome};
use crate::status::Status;
use crate::user_ptr::{UserBuffer, UserMemory, UserPtr};

crate::services! {
    pub SERVICES;
    /// Creates a job.
    NtCreateJobObject(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr) = create_job;
    /// Opens a job by its name.
    NtOpenJobObject(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr) = open_job;
    /// Puts a process into a job.
    NtAssignProcessToJobObject(job: Handle, process: Handle) = assign_process;
    /// Whether a process is in a job, or with the null handle in any.
    NtIsProcessInJob(process: Handle, job: Handle) = is_process_in_job;
    /// Ends all processes of a job.
    NtTerminateJobObject(job: Handle, status: u32) = terminate_job;
    /// Tells something about a job.
    NtQueryInformationJobObject(job: Handle, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query_job;
    /// Changes limits and other properties of a job.
    NtSetInformationJobObject(job: Handle, class: u32, buffer: u64, length: u32) = set_job;
}

/// Access rights to jobs.
mod access {
    pub const ASSIGN_PROCESS: u32 = 1;
    pub const SET_ATTRIBUTES: u32 = 2;
    pub const QUERY: u32 = 4;
    pub const TERMINATE: u32 = 8;
}

/// JOB_OBJECT_LIMIT_*.
mod limit {
    pub const ACTIVE_PROCESS: u32 = 0x8;
    pub const BREAKAWAY_OK: u32 = 0x800;
    pub const SILENT_BREAKAWAY_OK: u32 = 0x1000;
    pub const KILL_ON_JOB_CLOSE: u32 = 0x2000;
    /// All that JOBOBJECT_BASIC_LIMIT_INFORMATION knows.
    pub const BASIC: u32 = 0xFF;
    /// All there are.
    pub const VALID: u32 = 0x7F_FFFF;
}

/// JOB_OBJECT_MSG_*.
mod message {
    pub const ACTIVE_PROCESS_LIMIT: u64 = 3;
    pub const ACTIVE_PROCESS_ZERO: u64 = 4;
    pub const NEW_PROCESS: u64 = 6;
    pub const EXIT_PROCESS: u64 = 7;
    pub const ABNORMAL_EXIT_PROCESS: u64 = 8;
}

/// Whether a process that ends so counts as having crashed: the exit statuses that the documentation of
/// JOBOBJECT_ASSOCIATE_COMPLETION_PORT lists.
fn is_abnormal(status: Status) -> bool {
    const FLOAT_DENORMAL_OPERAND: u32 = 0xC000_008D;
    const ARRAY_BOUNDS_EXCEEDED: u32 = 0xC000_008C;
    const PRIVILEGED_INSTRUCTION: u32 = 0xC000_0096;
    const NONCONTINUABLE_EXCEPTION: u32 = 0xC000_0025;
    const IN_PAGE_ERROR: u32 = 0xC000_0006;
    const ILLEGAL_INSTRUCTION: u32 = 0xC000_001D;
    const INVALID_DISPOSITION: u32 = 0xC000_0026;
    const STACK_OVERFLOW: u32 = 0xC000_00FD;
    const CONTROL_C_EXIT: u32 = 0xC000_013A;
    matches!(
        status,
        Status::ACCESS_VIOLATION | Status::BREAKPOINT | Status::DATATYPE_MISALIGNMENT | Status::SINGLE_STEP
    ) || matches!(
        status.0,
        ARRAY_BOUNDS_EXCEEDED | FLOAT_DENORMAL_OPERAND
            ..=PRIVILEGED_INSTRUCTION
                | NONCONTINUABLE_EXCEPTION
                | IN_PAGE_ERROR
                | ILLEGAL_INSTRUCTION
                | INVALID_DISPOSITION
                | STACK_OVERFLOW
                | CONTROL_C_EXIT
    )
}

/// Bytes of JOBOBJECT_BASIC_LIMIT_INFORMATION, and of the extended structure that begins with it.
const BASIC_LIMITS: usize = 0x40;
const EXTENDED_LIMITS: usize = 0x90;
/// LimitFlags and ActiveProcessLimit in them.
const LIMIT_FLAGS: usize = 0x10;
const ACTIVE_PROCESS_LIMIT: usize = 0x28;

impl Kernel {
    fn job_mut(&mut self, id: ObjectId) -> Result<&mut Job, Status> {
        match self.objects.body_mut(id)? {
            Body::Job(job) => Ok(job),
            _ => Err(Status::OBJECT_TYPE_MISMATCH),
        }
    }

    /// Jobs that a process is in, or was when it ended, innermost first.
    fn jobs_of(&self, process: ProcessId) -> Vec<ObjectId> {
        let first = self.process_by_id(process).and_then(|process| process.job);
        self.jobs_around(first)
    }

    /// A job and those that it is nested in.
    fn jobs_around(&self, first: Option<ObjectId>) -> Vec<ObjectId> {
        let job = |id| match self.objects.body(id) {
            Ok(Body::Job(job)) => Some(job),
            _ => None,
        };
        // One that is gone has no processes and no limits any more.
        std::iter::successors(first.filter(|&id| job(id).is_some()), |&id| {
            job(id)?.parent.filter(|&parent| job(parent).is_some())
        })
        .collect()
    }

    fn post_job_message(&mut self, id: ObjectId, message: u64, process: ProcessId) {
        let Ok(Job { completion: Some((port, key)), .. }) = self.job_mut(id).map(|job| &*job) else { return };
        let (port, key) = (*port, *key);
        if let Ok(Body::IoCompletion(port)) = self.objects.body_mut(port) {
            let context = u64::from(process);
            port.packets.push_back(CompletionPacket { key, context, status: Status::SUCCESS, information: message });
        }
    }

    fn has_room(&mut self, id: ObjectId) -> Result<bool, Status> {
        let job = self.job_mut(id)?;
        let limited = job.limit_flags() & limit::ACTIVE_PROCESS != 0;
        Ok(!limited || (job.processes.len() as u32) < job.active_limit())
    }

    /// Puts a process into a job, which becomes nested in the one that the process is in.
    fn join_job(&mut self, id: ObjectId, process: ProcessId) -> Result<(), Status> {
        let current = self.jobs_of(process);
        if current.contains(&id) {
            return Ok(());
        }
        let job = self.job_mut(id)?;
        if let Some(&innermost) = current.first() {
            match job.parent {
                Some(parent) if parent == innermost => {}
                None if job.total_processes == 0 => job.parent = Some(innermost),
                _ => return Err(Status::ACCESS_DENIED),
            }
        }
        let joined: Vec<_> = self.jobs_around(Some(id)).into_iter().filter(|id| !current.contains(id)).collect();
        for &id in &joined {
            if !self.has_room(id)? {
                self.post_job_message(id, message::ACTIVE_PROCESS_LIMIT, process);
                return Err(Status::QUOTA_EXCEEDED);
            }
        }
        for id in joined {
            let job = self.job_mut(id)?;
            job.processes.push(process);
            job.total_processes += 1;
            // A job lives as long as it has members.
            self.objects.reference(id);
            self.post_job_message(id, message::NEW_PROCESS, process);
        }
        if let Some(process) = self.process_by_id_mut(process) {
            process.job = Some(id);
        }
        Ok(())
    }

    /// The innermost job of a process that takes its children: they break away from jobs that let them.
    fn job_for_children(&self, parent: ProcessId, breakaway: bool) -> Option<ObjectId> {
        self.jobs_of(parent).into_iter().find(|&id| {
            let flags = match self.objects.body(id) {
                Ok(Body::Job(job)) => job.limit_flags(),
                _ => 0,
            };
            flags & limit::SILENT_BREAKAWAY_OK == 0 && !(breakaway && flags & limit::BREAKAWAY_OK != 0)
        })
    }

    /// Whether the jobs of `parent` let it have another child.
    pub(super) fn check_job_limits(&mut self, parent: ProcessId) -> Result<(), Status> {
        let first = self.job_for_children(parent, false);
        for job in self.jobs_around(first) {
            if !self.has_room(job)? {
                self.post_job_message(job, message::ACTIVE_PROCESS_LIMIT, parent);
                return Err(Status::QUOTA_EXCEEDED);
            }
        }
        Ok(())
    }

    /// Puts a new process into its parent's jobs, unless it breaks away from them, and into those asked for.
    pub(super) fn join_jobs(
        &mut self,
        process: ProcessId,
        parent: ProcessId,
        asked_for: &[ObjectId],
        breakaway: bool,
    ) -> Result<(), Status> {
        if let Some(&innermost) = self.jobs_of(parent).first()
            && breakaway
            && self.job_mut(innermost)?.limit_flags() & (limit::BREAKAWAY_OK | limit::SILENT_BREAKAWAY_OK) == 0
        {
            return Err(Status::ACCESS_DENIED);
        }
        if let Some(job) = self.job_for_children(parent, breakaway) {
            self.join_job(job, process)?;
        }
        asked_for.iter().try_for_each(|&job| self.join_job(job, process))
    }

    /// Takes an ended process out of its jobs.
    pub(super) fn leave_jobs(&mut self, process: ProcessId) {
        let status = self.process_by_id(process).and_then(|process| process.exit_status).unwrap_or(Status::SUCCESS);
        let abnormal = is_abnormal(status);
        for id in self.jobs_of(process) {
            if !self.job_mut(id).is_ok_and(|job| job.processes.contains(&process)) {
                continue;
            }
            let message = if abnormal { message::ABNORMAL_EXIT_PROCESS } else { message::EXIT_PROCESS };
            self.post_job_message(id, message, process);
            let Ok(job) = self.job_mut(id) else { continue };
            job.processes.retain(|&member| member != process);
            if job.processes.is_empty() {
                job.signaled |= std::mem::take(&mut job.terminating);
                self.post_job_message(id, message::ACTIVE_PROCESS_ZERO, 0);
            }
            self.objects.dereference(id);
        }
    }

    /// The last handle to a job was closed: its processes end, if that was asked for.
    pub(crate) fn job_closed(&mut self, id: ObjectId) {
        if let Ok(job) = self.job_mut(id)
            && job.limit_flags() & limit::KILL_ON_JOB_CLOSE != 0
        {
            let doomed: Vec<_> = job.processes.iter().map(|&process| (process, Status::SUCCESS)).collect();
            self.doomed.extend(doomed);
        }
    }
}

fn create_job(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
) -> Result<Status, Status> {
    call.create_object(out, access, attributes, Body::Job(Job::default()))
}

fn open_job(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
) -> Result<(), Status> {
    call.open_object(out, access, attributes, ObjectType::Job)
}

fn assign_process(call: &mut Call<'_, '_>, handle: Handle, process: Handle) -> Result<(), Status> {
    const PROCESS_SET_QUOTA_TERMINATE: u32 = 0x101;
    let process = call.process_by_handle(process, PROCESS_SET_QUOTA_TERMINATE)?;
    let id = call.object(handle, Some(ObjectType::Job), access::ASSIGN_PROCESS)?;
    if call.kernel.process_by_id(process).is_none_or(|process| process.exit_status.is_some()) {
        return Err(Status::PROCESS_IS_TERMINATING);
    }
    call.kernel.join_job(id, process)
}

fn is_process_in_job(call: &mut Call<'_, '_>, process: Handle, handle: Handle) -> Result<Status, Status> {
    const PROCESS_NOT_IN_JOB: Status = Status(0x123);
    const PROCESS_IN_JOB: Status = Status(0x124);
    let process = call.process_by_handle(process, super::access::QUERY_LIMITED_INFORMATION)?;
    let jobs = call.kernel.jobs_of(process);
    let inside = match handle {
        Handle::NULL => !jobs.is_empty(),
        handle => jobs.contains(&call.object(handle, Some(ObjectType::Job), access::QUERY)?),
    };
    Ok(if inside { PROCESS_IN_JOB } else { PROCESS_NOT_IN_JOB })
}

fn terminate_job(call: &mut Call<'_, '_>, handle: Handle, status: u32) -> Result<Outcome, Status> {
    let id = call.object(handle, Some(ObjectType::Job), access::TERMINATE)?;
    let job = call.kernel.job_mut(id)?;
    let doomed: Vec<_> = job.processes.iter().map(|&process| (process, Status(status))).collect();
    // It is signalled when the last one has ended.
    job.terminating = !doomed.is_empty();
    job.signaled |= doomed.is_empty();
    call.kernel.doomed.extend(doomed);
    Ok(Outcome::Return(Status::SUCCESS))
}

fn query_job(
    call: &mut Call<'_, '_>,
    handle: Handle,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    let id = match handle {
        // The innermost job of the caller; without one there are no limits.
        Handle::NULL => call.kernel.jobs_of(call.kernel.process.id).first().copied(),
        handle => Some(call.object(handle, Some(ObjectType::Job), access::QUERY)?),
    };
    let job = match id {
        Some(id) => call.kernel.job_mut(id)?.clone(),
        None => Job::default(),
    };
    let active = job.processes.len() as u32;
    let accounting = [0, job.total_processes, active, 0];
    let answer = match class {
        // JobObjectBasicAccountingInformation, and with I/O counters.
        1 => Answer::fixed(Bytes::default().u64s(&[0; 4]).u32s(&accounting).0),
        8 => Answer::fixed(Bytes::default().u64s(&[0; 4]).u32s(&accounting).u64s(&[0; 6]).0),
        // JobObjectBasicLimitInformation, JobObjectExtendedLimitInformation.
        2 | 9 => {
            let mut bytes = job.limits.clone();
            bytes.resize(if class == 2 { BASIC_LIMITS } else { EXTENDED_LIMITS }, 0);
            Answer::fixed(bytes)
        }
        // JobObjectBasicProcessIdList.
        3 => {
            if length < 0x10 {
                return Err(Status::INFO_LENGTH_MISMATCH);
            }
            let fits = (length as usize).saturating_sub(8) / 8;
            let ids: Vec<u64> = job.processes.iter().take(fits).map(|&id| u64::from(id)).collect();
            let bytes = Bytes::default().u32s(&[active, ids.len() as u32]).u64s(&ids).0;
            let whole = ids.len() == job.processes.len();
            let status =
                call.answer(UserBuffer::new(buffer, u64::from(length)), returned, &Answer { bytes, fixed: 8 })?;
            return Ok(if whole { status } else { Status::BUFFER_OVERFLOW });
        }
        // JobObjectBasicUIRestrictions, JobObjectEndOfJobTimeInformation: none, and termination.
        4 | 6 => Answer::fixed(vec![0; 4]),
        // JobObjectCpuRateControlInformation: no control.
        15 => Answer::fixed(vec![0; 8]),
        _ => return Err(Status::INVALID_INFO_CLASS),
    };
    call.answer(UserBuffer::new(buffer, u64::from(length)), returned, &answer)
}

fn set_job(call: &mut Call<'_, '_>, handle: Handle, class: u32, buffer: u64, length: u32) -> Result<(), Status> {
    let id = call.object(handle, Some(ObjectType::Job), access::SET_ATTRIBUTES)?;
    let output = UserBuffer::new(buffer, u64::from(length));
    match class {
        // JobObjectBasicLimitInformation, JobObjectExtendedLimitInformation: the number of processes, breaking away and
        // the end with the last handle count; times, memory and scheduling are kept only.
        2 | 9 => {
            let (size, valid) = if class == 2 { (BASIC_LIMITS, limit::BASIC) } else { (EXTENDED_LIMITS, limit::VALID) };
            if length as usize != size {
                return Err(Status::INFO_LENGTH_MISMATCH);
            }
            let mut bytes = vec![0; size];
            call.read_user(buffer, &mut bytes)?;
            let job = call.kernel.job_mut(id)?;
            let old = std::mem::replace(&mut job.limits, bytes);
            if job.limit_flags() & !valid != 0 {
                job.limits = old;
                return Err(Status::INVALID_PARAMETER);
            }
        }
        // JobObjectBasicUIRestrictions, JobObjectEndOfJobTimeInformation.
        4 | 6 => {
            read_information::<u32>(call, output)?;
        }
        // JobObjectAssociateCompletionPortInformation.
        7 => {
            let [key, port] = read_information::<[u64; 2]>(call, output)?;
            let port = match Handle(port) {
                Handle::NULL => None,
                port => Some((call.object(port, Some(ObjectType::IoCompletion), access::SET_ATTRIBUTES)?, key)),
            };
            if let Some((port, _)) = port {
                call.kernel.objects.reference(port);
            }
            let job = call.kernel.job_mut(id)?;
            let old = std::mem::replace(&mut job.completion, port);
            let members = job.processes.clone();
            if let Some((old, _)) = old {
                call.kernel.objects.dereference(old);
            }
            // Members from before the port came are told of, too.
            for process in members {
                call.kernel.post_job_message(id, message::NEW_PROCESS, process);
            }
        }
        // JobObjectCpuRateControlInformation: there is nothing to share out.
        15 => {}
        _ => return Err(Status::INVALID_INFO_CLASS),
    }
    Ok(())
}

impl Job {
    fn word(&self, at: usize) -> u32 {
        let bytes = self.limits.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    }

    /// JOB_OBJECT_LIMIT_* flags.
    fn limit_flags(&self) -> u32 {
        self.word(LIMIT_FLAGS)
    }

    /// ActiveProcessLimit.
    fn active_limit(&self) -> u32 {
        self.word(ACTIVE_PROCESS_LIMIT)
    }
}
