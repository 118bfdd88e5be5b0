//! What debugged processes report, and what becomes of them meanwhile.

use lstar_runtime::{AddressSpace, Vcpu};

use super::{DebugObject, Event, EventId, Pending};
use crate::context::UserContext;
use crate::exception::ExceptionRecord;
use crate::kernel::Kernel;
use crate::memory::vad::Backing;
use crate::object::{Body, ObjectId};
use crate::process::ProcessId;
use crate::service::{Call, Outcome};
use crate::status::Status;
use crate::thread::ThreadId;
use crate::wait::Wait;

/// PEB.BeingDebugged.
const BEING_DEBUGGED: u64 = 2;

impl Kernel {
    /// The debug object's state.
    pub(super) fn debug_object(&mut self, id: ObjectId) -> Result<&mut DebugObject, Status> {
        match self.objects.body_mut(id)? {
            Body::DebugObject(object) => Ok(object),
            _ => Err(Status::OBJECT_TYPE_MISMATCH),
        }
    }

    /// Reports an event of a process, if it is debugged. The process stands still until it is continued.
    pub fn report(&mut self, process: ProcessId, thread: ThreadId, event: Event) -> Option<EventId> {
        let object = self.process_by_id(process)?.debug_object?;
        let id = self.pipes.request();
        self.debug_object(object).ok()?.events.push_back(Pending { id, process, thread, event, told: None });
        self.scheduler.frozen.insert(process);
        Some(id)
    }

    /// Lets a process go on for which nothing is pending any more.
    pub(super) fn unfreeze(&mut self, process: ProcessId) {
        let object = self.process_by_id(process).and_then(|process| process.debug_object);
        let held = object.is_some_and(|object| self.debug_object(object).is_ok_and(|object| object.holds(process)));
        if !held {
            self.scheduler.frozen.remove(&process);
        }
    }

    /// A process is debugged from now on.
    pub fn debug_process(&mut self, space: &mut AddressSpace, id: ProcessId, object: ObjectId) -> Result<(), Status> {
        let process = self.process_by_id_mut(id).ok_or(Status::INVALID_CID)?;
        if process.exit_status.is_some() {
            return Err(Status::PROCESS_IS_TERMINATING);
        }
        if process.debug_object.is_some() {
            return Err(Status::PORT_ALREADY_SET);
        }
        process.debug_object = Some(object);
        self.objects.reference(object);
        self.set_being_debugged(space, id, true);
        let (image, base, entry) = self.process_by_id(id).map_or_else(Default::default, |process| {
            let entry = process.image.image().map_or(0, |headers| u64::from(headers.entry_rva));
            (process.image_name.clone(), process.image_base, process.image_base + entry)
        });
        let mut threads: Vec<(ThreadId, u64)> =
            self.scheduler.threads_of(id).filter(|thread| !thread.hidden).map(|t| (t.id, t.start_address)).collect();
        threads.sort_unstable();
        let mut threads = threads.into_iter();
        let Some((first, _)) = threads.next() else { return Ok(()) };
        self.report(id, first, Event::ProcessCreated { image, base, start: entry });
        for (thread, start) in threads {
            self.report(id, thread, Event::ThreadCreated { start });
        }
        for (base, image) in self.images_of(id) {
            self.report(id, first, Event::ImageMapped { image, base });
        }
        Ok(())
    }

    /// Images that a process has mapped, its program left out, in the order of their addresses.
    fn images_of(&self, id: ProcessId) -> Vec<(u64, String)> {
        let (memory, program) = if id == self.process.id {
            (&self.memory, self.process.image_base)
        } else {
            match self.others.get(&id) {
                Some(state) => (&state.memory, state.process.image_base),
                None => return Vec::new(),
            }
        };
        let image = |(start, vad): (u64, &crate::memory::vad::Vad)| match &vad.backing {
            Backing::View { section, .. } if vad.is_image() && start != program => {
                Some((start, section.file.as_ref().map_or_else(String::new, |file| file.name.clone())))
            }
            _ => None,
        };
        memory.vads.iter().filter_map(image).collect()
    }

    fn set_being_debugged(&mut self, space: &mut AddressSpace, id: ProcessId, debugged: bool) {
        let Ok(previous) = self.enter_process(space, id) else { return };
        let address = self.process.peb + BEING_DEBUGGED;
        // The PEB belongs to the process: it may have unmapped it.
        let _ = self.memory.write(space, address, &[u8::from(debugged)], lstar_arch::Privilege::User);
        let _ = self.enter_process(space, previous);
    }

    /// A process is not debugged any more: it goes on as if everything had been continued.
    pub(super) fn undebug_process(&mut self, space: &mut AddressSpace, id: ProcessId) {
        self.set_being_debugged(space, id, false);
        self.let_go(id);
    }

    fn let_go(&mut self, id: ProcessId) {
        let Some(object) = self.process_by_id_mut(id).and_then(|process| process.debug_object.take()) else { return };
        let events = self.debug_object(object).map(|object| object.forget(id)).unwrap_or_default();
        for event in events {
            self.answer(&event, Status::DBG_EXCEPTION_NOT_HANDLED);
        }
        self.unfreeze(id);
        self.objects.dereference(object);
    }

    /// Tells the thread of an exception what the debugger made of it.
    pub(super) fn answer(&mut self, event: &Pending, status: Status) {
        if matches!(event.event, Event::Exception { .. }) {
            self.debug_answers.insert(event.id, status);
        }
    }

    /// The last handle to a debug object is closed: what it debugs ends with it, or is let go.
    pub(crate) fn debug_object_closed(&mut self, id: ObjectId) {
        let Ok(object) = self.debug_object(id) else { return };
        let kill = object.kill_on_close;
        let debugged: Vec<ProcessId> = self
            .others
            .values()
            .map(|state| &state.process)
            .chain([&self.process])
            .filter(|process| process.debug_object == Some(id))
            .map(|process| process.id)
            .collect();
        for process in debugged {
            let ended = self.process_by_id(process).is_none_or(|process| process.exit_status.is_some());
            self.let_go(process);
            if kill && !ended {
                self.doomed.push((process, Status::DEBUGGER_INACTIVE));
            }
        }
    }

    /// Reports an exception of the current thread to its debugger. `None`: nobody debugs it.
    ///
    /// `rip_change` is what the record's kind adds to RIP for the process's own dispatcher; a debugger sees, and a
    /// continued thread resumes at, the RIP of the trap.
    pub fn report_exception(
        &mut self,
        record: &ExceptionRecord,
        first_chance: bool,
        rip_change: u64,
        frame: u64,
    ) -> Option<Outcome> {
        let (process, thread) = (self.process.id, self.scheduler.current);
        if self.scheduler.current().is_none_or(|thread| thread.hidden) {
            return None;
        }
        let event = Event::Exception { record: Box::new(*record), first_chance };
        let id = self.report(process, thread, event)?;
        let record = *record;
        let wait = Wait::until("a debugger", move |kernel, _| {
            kernel.debug_answers.contains_key(&id).then_some(Status::SUCCESS)
        });
        Some(Outcome::Wait(wait.then(move |call, _| {
            let answer = call.kernel.debug_answers.remove(&id).unwrap_or(Status::DBG_EXCEPTION_NOT_HANDLED);
            resume(call, &record, first_chance, answer, rip_change, frame).unwrap_or_else(|_| {
                call.kernel.stop.get_or_insert(crate::system::StopReason::KernelFault);
                Outcome::Stop
            })
        })))
    }
}

/// The debugger has answered: goes on where the thread stopped, or lets the process handle the exception itself.
fn resume(
    call: &mut Call<'_, '_>,
    record: &ExceptionRecord,
    first_chance: bool,
    answer: Status,
    rip_change: u64,
    frame: u64,
) -> Result<Outcome, Status> {
    // With what the debugger has made of the registers.
    let vcpu: &mut Vcpu<'_> = call.vcpu;
    let mut user = UserContext::of_frame(vcpu, vcpu.memory, frame)?;
    if answer != Status::DBG_EXCEPTION_NOT_HANDLED {
        return Ok(Outcome::Redirect(Box::new(user)));
    }
    user.rip = user.rip.wrapping_add(rip_change);
    if !first_chance {
        call.kernel.end_with_exception(call.vcpu, record, &user);
        return Ok(Outcome::ThreadEnded);
    }
    Ok(if call.kernel.raise(call.vcpu, record, &mut user, frame)? {
        Outcome::Redirect(Box::new(user))
    } else {
        Outcome::ThreadEnded
    })
}
