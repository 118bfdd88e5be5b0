//! Services that wait.

use super::ThreadId;
use crate::io::console::{self, ConsoleEnd};
use crate::kernel::Kernel;
use crate::object::{Body, ObjectId, WaitOutcome};
use crate::service::{Call, Handle, Outcome};
use crate::status::Status;
use crate::user_ptr::UserPtr;
use crate::wait::Wait;

crate::services! {
    pub SERVICES;
    /// Waits for an object.
    NtWaitForSingleObject(handle: Handle, alertable: bool, timeout: UserPtr<i64>) = nt_wait_for_single_object;
    /// Waits for one or all of several objects.
    NtWaitForMultipleObjects(count: u32, handles: UserPtr<Handle>, wait_type: u32, alertable: bool, timeout: UserPtr<i64>) = nt_wait_for_multiple_objects;
    /// Signals an object and waits for another one.
    NtSignalAndWaitForSingleObject(signal: Handle, target: Handle, alertable: bool, timeout: UserPtr<i64>) = nt_signal_and_wait_for_single_object;
    /// Waits for a time.
    NtDelayExecution(alertable: bool, interval: UserPtr<i64>) = nt_delay_execution;
    /// Waits for NtAlertThreadByThreadId. The address only helps debuggers.
    NtWaitForAlertByThreadId(address: u64, timeout: UserPtr<i64>) = nt_wait_for_alert_by_thread_id;
}

fn nt_delay_execution(call: &mut Call<'_, '_>, alertable: bool, interval: UserPtr<i64>) -> Result<Outcome, Status> {
    // Wine's SleepEx passes no interval for INFINITE.
    let interval = interval.read_optional(call)?;
    if interval == Some(0) && !alertable {
        return Ok(Outcome::Yield);
    }
    let deadline = interval.and_then(|interval| call.kernel.clock.deadline(interval));
    let wait = Wait::until("a delay", |_, _| None).alertable(alertable).with_deadline(deadline);
    Ok(Outcome::Wait(
        wait.then(|_, status| Outcome::Return(if status == Status::TIMEOUT { Status::SUCCESS } else { status })),
    ))
}

fn nt_wait_for_alert_by_thread_id(
    call: &mut Call<'_, '_>,
    _address: u64,
    timeout: UserPtr<i64>,
) -> Result<Outcome, Status> {
    let deadline = call.deadline(timeout)?;
    let wait = Wait::until("an alert by thread identifier", |kernel, thread| {
        let thread = kernel.scheduler.threads.get_mut(&thread)?;
        std::mem::take(&mut thread.alerted_by_id).then_some(Status::ALERTED)
    });
    Ok(Outcome::Wait(wait.with_deadline(deadline)))
}

/// MAXIMUM_WAIT_OBJECTS.
const MAXIMUM_WAIT_OBJECTS: u32 = 64;
/// SYNCHRONIZE.
const SYNCHRONIZE: u32 = 0x10_0000;

fn is_signaled(kernel: &mut Kernel, id: ObjectId, thread: ThreadId) -> bool {
    if is_console_input(kernel, id) {
        return kernel.console_ready();
    }
    kernel.objects.body(id).ok().and_then(|body| body.is_signaled(thread)).unwrap_or(false)
}

/// Input that the host may bring at any time.
fn is_console_input(kernel: &Kernel, id: ObjectId) -> bool {
    console::end_of(kernel, id) == Some(ConsoleEnd::Input)
}

/// Takes what a satisfied wait takes; whether a mutant was abandoned.
fn satisfy(kernel: &mut Kernel, id: ObjectId, thread: ThreadId) -> bool {
    kernel.objects.body_mut(id).is_ok_and(|body| body.satisfy(thread) == WaitOutcome::Abandoned)
}

/// A wait for objects, which live as long as somebody waits for them, whatever happens to their handles.
fn wait_for_objects(
    call: &mut Call<'_, '_>,
    ids: Vec<ObjectId>,
    all: bool,
    alertable: bool,
    deadline: Option<u64>,
) -> Outcome {
    for &id in &ids {
        call.kernel.objects.reference(id);
    }
    let held = ids.clone();
    let on_host = ids.iter().any(|&id| is_console_input(call.kernel, id));
    let wait = Wait::until("objects", move |kernel, thread| {
        let (abandoned, position) = if all {
            if !ids.iter().all(|&id| is_signaled(kernel, id, thread)) {
                return None;
            }
            // Every object is satisfied, also behind an abandoned one.
            let abandoned = ids.iter().filter(|&&id| satisfy(kernel, id, thread)).count() > 0;
            (abandoned, 0)
        } else {
            let position = ids.iter().position(|&id| is_signaled(kernel, id, thread))?;
            (satisfy(kernel, ids[position], thread), position as u32)
        };
        let base = if abandoned { Status::ABANDONED_WAIT_0 } else { Status::WAIT_0 };
        Some(Status(base.0 + position))
    });
    let wait = if on_host { wait.on_host() } else { wait };
    Outcome::Wait(wait.alertable(alertable).with_deadline(deadline).then(move |call, status| {
        for id in held {
            call.kernel.objects.dereference(id);
        }
        Outcome::Return(status)
    }))
}

/// The object behind a handle, if it can be waited for.
fn waitable(call: &Call<'_, '_>, handle: Handle) -> Result<ObjectId, Status> {
    let id = call.object(handle, None, SYNCHRONIZE)?;
    match call.kernel.objects.body(id)?.is_signaled(call.thread) {
        Some(_) => Ok(id),
        None => Err(Status::OBJECT_TYPE_MISMATCH),
    }
}

fn nt_wait_for_single_object(
    call: &mut Call<'_, '_>,
    handle: Handle,
    alertable: bool,
    timeout: UserPtr<i64>,
) -> Result<Outcome, Status> {
    let deadline = call.deadline(timeout)?;
    let id = waitable(call, handle)?;
    Ok(wait_for_objects(call, vec![id], false, alertable, deadline))
}

fn nt_wait_for_multiple_objects(
    call: &mut Call<'_, '_>,
    count: u32,
    handles: UserPtr<Handle>,
    wait_type: u32,
    alertable: bool,
    timeout: UserPtr<i64>,
) -> Result<Outcome, Status> {
    if count == 0 || count > MAXIMUM_WAIT_OBJECTS {
        return Err(Status::INVALID_PARAMETER_1);
    }
    if wait_type > 1 {
        return Err(Status::INVALID_PARAMETER_3);
    }
    let handles = handles.read_array(call, u64::from(count))?;
    let deadline = call.deadline(timeout)?;
    let ids = handles.into_iter().map(|handle| waitable(call, handle)).collect::<Result<Vec<_>, _>>()?;
    let all = wait_type == 0;
    if all && ids.iter().enumerate().any(|(index, id)| ids[..index].contains(id)) {
        return Err(Status::INVALID_PARAMETER_MIX);
    }
    Ok(wait_for_objects(call, ids, all, alertable, deadline))
}

fn nt_signal_and_wait_for_single_object(
    call: &mut Call<'_, '_>,
    signal: Handle,
    target: Handle,
    alertable: bool,
    timeout: UserPtr<i64>,
) -> Result<Outcome, Status> {
    let deadline = call.deadline(timeout)?;
    let id = waitable(call, target)?;
    let thread = call.thread;
    let signaled = call.object(signal, None, 0)?;
    match call.kernel.objects.body_mut(signaled)? {
        Body::Event(event) => {
            event.set(true);
        }
        Body::Semaphore(semaphore) => {
            semaphore.release(1)?;
        }
        Body::Mutant(mutant) => {
            mutant.release(thread)?;
        }
        _ => return Err(Status::OBJECT_TYPE_MISMATCH),
    }
    Ok(wait_for_objects(call, vec![id], false, alertable, deadline))
}
