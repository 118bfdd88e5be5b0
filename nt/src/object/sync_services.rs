//! Services of dispatcher objects: events, semaphores, mutants, timers, keyed events.
#![expect(clippy::too_many_arguments, reason = "handlers have as many as their services")]

use super::support::AttributesPtr;
use super::{Body, Event, EventKind, Handle, KeyedEvent, Mutant, ObjectId, ObjectType, Semaphore, Timer};
use crate::io::info::{Answer, Bytes};
use crate::kernel::Kernel;
use crate::service::{Call, Outcome};
use crate::services;
use crate::status::Status;
use crate::thread::Apc;
use crate::user_ptr::{UserBuffer, UserPtr};
use crate::wait::Wait;

services! { pub SERVICES;
    /// Creates or opens an event.
    NtCreateEvent(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, kind: u32, signaled: bool) = create_event;
    /// Opens a named event.
    NtOpenEvent(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr) = open_event;
    /// Signals an event.
    NtSetEvent(handle: Handle, previous: UserPtr<i32>) = set_event;
    /// Takes an event's signal away and tells whether it was there.
    NtResetEvent(handle: Handle, previous: UserPtr<i32>) = reset_event;
    /// Takes an event's signal away.
    NtClearEvent(handle: Handle) = clear_event;
    /// Releases those who wait now.
    NtPulseEvent(handle: Handle, previous: UserPtr<i32>) = pulse_event;
    /// Tells an event's kind and state.
    NtQueryEvent(handle: Handle, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query_event;
    /// Creates or opens a semaphore.
    NtCreateSemaphore(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, count: i32, limit: i32) = create_semaphore;
    /// Opens a named semaphore.
    NtOpenSemaphore(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr) = open_semaphore;
    /// Adds to a semaphore's count.
    NtReleaseSemaphore(handle: Handle, amount: i32, previous: UserPtr<i32>) = release_semaphore;
    /// Tells a semaphore's count and limit.
    NtQuerySemaphore(handle: Handle, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query_semaphore;
    /// Creates or opens a mutant.
    NtCreateMutant(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, owned: bool) = create_mutant;
    /// Opens a named mutant.
    NtOpenMutant(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr) = open_mutant;
    /// Gives one acquisition of a mutant back.
    NtReleaseMutant(handle: Handle, previous: UserPtr<i32>) = release_mutant;
    /// Tells a mutant's count and owner.
    NtQueryMutant(handle: Handle, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query_mutant;
    /// Creates or opens a timer.
    NtCreateTimer(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, kind: u32) = create_timer;
    /// Opens a named timer.
    NtOpenTimer(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr) = open_timer;
    /// Sets a timer.
    NtSetTimer(handle: Handle, due: UserPtr<i64>, routine: u64, context: u64, resume: bool, period_ms: u32, previous: UserPtr<u8>) = set_timer;
    /// Unsets a timer.
    NtCancelTimer(handle: Handle, previous: UserPtr<u8>) = cancel_timer;
    /// Tells a timer's remaining time and state.
    NtQueryTimer(handle: Handle, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query_timer;
    /// Creates or opens a keyed event.
    NtCreateKeyedEvent(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, flags: u32) = create_keyed_event;
    /// Opens a named keyed event.
    NtOpenKeyedEvent(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr) = open_keyed_event;
    /// Waits for a release of a key.
    NtWaitForKeyedEvent(handle: Handle, key: u64, alertable: bool, timeout: UserPtr<i64>) = wait_for_keyed_event;
    /// Releases one waiter of a key, waiting for it if there is none.
    NtReleaseKeyedEvent(handle: Handle, key: u64, alertable: bool, timeout: UserPtr<i64>) = release_keyed_event;
}

type Out = UserPtr<Handle>;

/// EVENT_QUERY_STATE and its likes.
const QUERY_STATE: u32 = 1;
/// EVENT_MODIFY_STATE and its likes.
const MODIFY_STATE: u32 = 2;

fn create_event(
    call: &mut Call<'_, '_>,
    out: Out,
    access: u32,
    attributes: AttributesPtr,
    kind: u32,
    signaled: bool,
) -> Result<Status, Status> {
    out.write(call, Handle::NULL)?;
    let event = Event::new(EventKind::from_raw(kind)?, signaled);
    call.create_object(out, access, attributes, Body::Event(event))
}

fn open_event(call: &mut Call<'_, '_>, out: Out, access: u32, attributes: AttributesPtr) -> Result<(), Status> {
    call.open_object(out, access, attributes, ObjectType::Event)
}

fn event<'a>(call: &'a mut Call<'_, '_>, handle: Handle, access: u32) -> Result<&'a mut Event, Status> {
    match call.body(handle, ObjectType::Event, access)? {
        Body::Event(event) => Ok(event),
        _ => Err(Status::OBJECT_TYPE_MISMATCH),
    }
}

fn set_event(call: &mut Call<'_, '_>, handle: Handle, previous: UserPtr<i32>) -> Result<(), Status> {
    let was = event(call, handle, MODIFY_STATE)?.set(true);
    previous.write_optional(call, i32::from(was))
}

fn reset_event(call: &mut Call<'_, '_>, handle: Handle, previous: UserPtr<i32>) -> Result<(), Status> {
    let was = event(call, handle, MODIFY_STATE)?.set(false);
    previous.write_optional(call, i32::from(was))
}

fn clear_event(call: &mut Call<'_, '_>, handle: Handle) -> Result<(), Status> {
    event(call, handle, MODIFY_STATE)?.set(false);
    Ok(())
}

fn pulse_event(call: &mut Call<'_, '_>, handle: Handle, previous: UserPtr<i32>) -> Result<(), Status> {
    let was = event(call, handle, MODIFY_STATE)?.set(true);
    call.kernel.wake(call.vcpu);
    event(call, handle, MODIFY_STATE)?.set(false);
    previous.write_optional(call, i32::from(was))
}

fn basic_class(class: u32) -> Result<(), Status> {
    if class == 0 { Ok(()) } else { Err(Status::INVALID_INFO_CLASS) }
}

fn reply(
    call: &mut Call<'_, '_>,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
    bytes: Vec<u8>,
) -> Result<Status, Status> {
    // These queries want exactly the structure's size.
    if length as usize != bytes.len() {
        return Err(Status::INFO_LENGTH_MISMATCH);
    }
    call.answer(UserBuffer::new(buffer, u64::from(length)), returned, &Answer::fixed(bytes))
}

fn query_event(
    call: &mut Call<'_, '_>,
    handle: Handle,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    basic_class(class)?;
    let event = event(call, handle, QUERY_STATE)?;
    let bytes = Bytes::default().u32s(&[event.kind as u32, u32::from(event.signaled)]).0;
    reply(call, buffer, length, returned, bytes)
}

fn create_semaphore(
    call: &mut Call<'_, '_>,
    out: Out,
    access: u32,
    attributes: AttributesPtr,
    count: i32,
    limit: i32,
) -> Result<Status, Status> {
    out.write(call, Handle::NULL)?;
    let semaphore = Semaphore::new(count, limit)?;
    call.create_object(out, access, attributes, Body::Semaphore(semaphore))
}

fn open_semaphore(call: &mut Call<'_, '_>, out: Out, access: u32, attributes: AttributesPtr) -> Result<(), Status> {
    call.open_object(out, access, attributes, ObjectType::Semaphore)
}

fn semaphore<'a>(call: &'a mut Call<'_, '_>, handle: Handle, access: u32) -> Result<&'a mut Semaphore, Status> {
    match call.body(handle, ObjectType::Semaphore, access)? {
        Body::Semaphore(semaphore) => Ok(semaphore),
        _ => Err(Status::OBJECT_TYPE_MISMATCH),
    }
}

fn release_semaphore(
    call: &mut Call<'_, '_>,
    handle: Handle,
    amount: i32,
    previous: UserPtr<i32>,
) -> Result<(), Status> {
    let was = semaphore(call, handle, MODIFY_STATE)?.release(amount)?;
    previous.write_optional(call, was)
}

fn query_semaphore(
    call: &mut Call<'_, '_>,
    handle: Handle,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    basic_class(class)?;
    let semaphore = semaphore(call, handle, QUERY_STATE)?;
    let bytes = Bytes::default().u32s(&[semaphore.count as u32, semaphore.limit as u32]).0;
    reply(call, buffer, length, returned, bytes)
}

fn create_mutant(
    call: &mut Call<'_, '_>,
    out: Out,
    access: u32,
    attributes: AttributesPtr,
    owned: bool,
) -> Result<Status, Status> {
    let mutant = Mutant::new(owned.then_some(call.thread));
    call.create_object(out, access, attributes, Body::Mutant(mutant))
}

fn open_mutant(call: &mut Call<'_, '_>, out: Out, access: u32, attributes: AttributesPtr) -> Result<(), Status> {
    call.open_object(out, access, attributes, ObjectType::Mutant)
}

fn mutant<'a>(call: &'a mut Call<'_, '_>, handle: Handle, access: u32) -> Result<&'a mut Mutant, Status> {
    match call.body(handle, ObjectType::Mutant, access)? {
        Body::Mutant(mutant) => Ok(mutant),
        _ => Err(Status::OBJECT_TYPE_MISMATCH),
    }
}

fn release_mutant(call: &mut Call<'_, '_>, handle: Handle, previous: UserPtr<i32>) -> Result<(), Status> {
    let thread = call.thread;
    let was = mutant(call, handle, 0)?.release(thread)?;
    previous.write_optional(call, was)
}

fn query_mutant(
    call: &mut Call<'_, '_>,
    handle: Handle,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    let thread = call.thread;
    let mutant = mutant(call, handle, QUERY_STATE)?;
    let bytes = match class {
        // MutantBasicInformation.
        0 => {
            let owned = mutant.owner == Some(thread);
            let flags = [u8::from(owned), u8::from(mutant.abandoned), 0, 0];
            Bytes::default().u32s(&[mutant.current_count() as u32]).bytes(&flags).0
        }
        // MutantOwnerInformation.
        1 => {
            let owner = mutant.owner;
            let process = owner.and_then(|owner| call.kernel.scheduler.process_of(owner)).unwrap_or(0);
            let owner = owner.map_or([0; 2], |owner| [u64::from(process), u64::from(owner)]);
            Bytes::default().u64s(&owner).0
        }
        _ => return Err(Status::INVALID_INFO_CLASS),
    };
    reply(call, buffer, length, returned, bytes)
}

fn create_timer(
    call: &mut Call<'_, '_>,
    out: Out,
    access: u32,
    attributes: AttributesPtr,
    kind: u32,
) -> Result<Status, Status> {
    out.write(call, Handle::NULL)?;
    let timer = Timer::new(EventKind::from_raw(kind)?);
    call.create_object(out, access, attributes, Body::Timer(timer))
}

fn open_timer(call: &mut Call<'_, '_>, out: Out, access: u32, attributes: AttributesPtr) -> Result<(), Status> {
    call.open_object(out, access, attributes, ObjectType::Timer)
}

fn timer(kernel: &mut Kernel, id: ObjectId) -> Result<&mut Timer, Status> {
    match kernel.objects.body_mut(id)? {
        Body::Timer(timer) => Ok(timer),
        _ => Err(Status::OBJECT_TYPE_MISMATCH),
    }
}

fn set_timer(
    call: &mut Call<'_, '_>,
    handle: Handle,
    due: UserPtr<i64>,
    routine: u64,
    context: u64,
    _resume: bool,
    period_ms: u32,
    previous: UserPtr<u8>,
) -> Result<(), Status> {
    if period_ms > i32::MAX as u32 {
        return Err(Status::INVALID_PARAMETER_6);
    }
    let due = due.read(call)?;
    let id = call.object(handle, Some(ObjectType::Timer), MODIFY_STATE)?;
    call.kernel.expire_timers();
    let deadline = call.kernel.clock.deadline(due);
    let apc = (routine != 0).then_some((call.thread, routine, context));
    let timer = timer(call.kernel, id)?;
    let was = timer.signaled;
    *timer = Timer { signaled: false, due: deadline, period_ms, apc, ..*timer };
    let armed = &mut call.kernel.system.armed_timers;
    if !armed.contains(&id) {
        armed.push(id);
    }
    previous.write_optional(call, u8::from(was))
}

fn cancel_timer(call: &mut Call<'_, '_>, handle: Handle, previous: UserPtr<u8>) -> Result<(), Status> {
    let id = call.object(handle, Some(ObjectType::Timer), MODIFY_STATE)?;
    call.kernel.expire_timers();
    let timer = timer(call.kernel, id)?;
    timer.due = None;
    timer.apc = None;
    let was = timer.signaled;
    call.kernel.system.armed_timers.retain(|&armed| armed != id);
    previous.write_optional(call, u8::from(was))
}

fn query_timer(
    call: &mut Call<'_, '_>,
    handle: Handle,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    basic_class(class)?;
    let id = call.object(handle, Some(ObjectType::Timer), QUERY_STATE)?;
    let now = call.kernel.clock.interrupt_time();
    let timer = timer(call.kernel, id)?;
    let remaining = timer.due.map_or(0, |due| due.saturating_sub(now));
    let bytes = Bytes::default().u64s(&[remaining]).u32s(&[u32::from(timer.signaled), 0]).0;
    reply(call, buffer, length, returned, bytes)
}

impl Kernel {
    /// Lets timers that are due expire, with their APCs.
    pub fn expire_timers(&mut self) {
        if self.system.armed_timers.is_empty() {
            return;
        }
        let now = self.clock.interrupt_time();
        let mut armed = std::mem::take(&mut self.system.armed_timers);
        let mut apcs = Vec::new();
        armed.retain(|&id| {
            let Ok(timer) = timer(self, id) else { return false };
            if let Some(due) = timer.due
                && timer.advance(now)
                && let Some(apc) = timer.apc
            {
                apcs.push((apc, due));
            }
            timer.due.is_some()
        });
        self.system.armed_timers = armed;
        for ((thread, routine, context), due) in apcs {
            // The timer's APC gets its context and the time of expiry in two halves.
            let due = self.clock.system_time_at(due) as u64;
            // A thread that has ended meanwhile gets none.
            if let Ok(thread) = self.scheduler.thread_mut(thread) {
                thread.apcs.push_back(Apc { routine, arguments: [context, due & 0xFFFF_FFFF, due >> 32] });
            }
        }
    }

    /// Interrupt time of the next expiry.
    #[must_use]
    pub fn next_timer(&self) -> Option<u64> {
        let armed = self.system.armed_timers.iter();
        armed
            .filter_map(|&id| match self.objects.body(id) {
                Ok(Body::Timer(timer)) => timer.due,
                _ => None,
            })
            .min()
    }
}

fn create_keyed_event(
    call: &mut Call<'_, '_>,
    out: Out,
    access: u32,
    attributes: AttributesPtr,
    flags: u32,
) -> Result<Status, Status> {
    out.write(call, Handle::NULL)?;
    if flags != 0 {
        return Err(Status::INVALID_PARAMETER_4);
    }
    call.create_object(out, access, attributes, Body::KeyedEvent(KeyedEvent::default()))
}

fn open_keyed_event(call: &mut Call<'_, '_>, out: Out, access: u32, attributes: AttributesPtr) -> Result<(), Status> {
    call.open_object(out, access, attributes, ObjectType::KeyedEvent)
}

fn keyed_event(kernel: &mut Kernel, id: ObjectId) -> Option<&mut KeyedEvent> {
    match kernel.objects.body_mut(id) {
        Ok(Body::KeyedEvent(event)) => Some(event),
        _ => None,
    }
}

fn wait_for_keyed_event(
    call: &mut Call<'_, '_>,
    handle: Handle,
    key: u64,
    alertable: bool,
    timeout: UserPtr<i64>,
) -> Result<Outcome, Status> {
    meet(call, handle, key, alertable, timeout, QUERY_STATE, KeyedEvent::wait)
}

fn release_keyed_event(
    call: &mut Call<'_, '_>,
    handle: Handle,
    key: u64,
    alertable: bool,
    timeout: UserPtr<i64>,
) -> Result<Outcome, Status> {
    meet(call, handle, key, alertable, timeout, MODIFY_STATE, KeyedEvent::release)
}

fn meet(
    call: &mut Call<'_, '_>,
    handle: Handle,
    key: u64,
    alertable: bool,
    timeout: UserPtr<i64>,
    access: u32,
    side: fn(&mut KeyedEvent, u32, u64) -> Option<u32>,
) -> Result<Outcome, Status> {
    if key & 1 != 0 {
        return Err(Status::INVALID_PARAMETER_1);
    }
    let deadline = call.deadline(timeout)?;
    let id = match handle {
        // No handle: the event that the whole system shares for this.
        Handle::NULL => call.kernel.shared_keyed_event(),
        handle => call.object(handle, Some(ObjectType::KeyedEvent), access)?,
    };
    let thread = call.thread;
    let event = keyed_event(call.kernel, id).ok_or(Status::OBJECT_TYPE_MISMATCH)?;
    if side(event, thread, key).is_some() {
        return Ok(Outcome::Return(Status::SUCCESS));
    }
    call.kernel.objects.reference(id);
    let wait = Wait::until("keyed event", move |kernel, thread| {
        let event = keyed_event(kernel, id)?;
        let queued = event.waiters.iter().chain(&event.releasers).any(|&(queued, _)| queued == thread);
        (!queued).then_some(Status::SUCCESS)
    });
    Ok(Outcome::Wait(wait.with_deadline(deadline).alertable(alertable).then(move |call, status| {
        if let Some(event) = keyed_event(call.kernel, id) {
            event.forget(call.thread);
        }
        call.kernel.objects.dereference(id);
        Outcome::Return(status)
    })))
}

impl Kernel {
    fn shared_keyed_event(&mut self) -> ObjectId {
        if let Some(id) = self.system.shared_keyed_event {
            return id;
        }
        let id = self.objects.insert(Body::KeyedEvent(KeyedEvent::default()));
        self.system.shared_keyed_event = Some(id);
        id
    }
}
