//! Change notifications: NtNotifyChangeKey and what completes it.
//!
//! Each open key object can be watched. Filter and depth are those of the first request on it; later requests only
//! queue. All requests of an object complete together, at the first change that the filter lets through, or when its
//! handle is closed.
#![expect(clippy::too_many_arguments, reason = "handlers have as many as their services")]

use std::collections::BTreeMap;

use super::KeyId;
use super::services::key_of;
use crate::kernel::Kernel;
use crate::object::{Body, Handle, ObjectId, ObjectType};
use crate::service::{Call, Outcome};
use crate::services;
use crate::status::Status;
use crate::thread::{Apc, ThreadId};
use crate::user_ptr::UserPtr;
use crate::wait::Wait;

services! { pub SERVICES;
    /// Asks to be told of a change below a key.
    NtNotifyChangeKey(key: Handle, event: Handle, apc: u64, apc_context: u64, io_status: UserPtr<u64>, filter: u32, subtree: bool, buffer: u64, length: u32, asynchronous: bool) = notify_change;
    /// The same with further keys, of which none may be given here.
    NtNotifyChangeMultipleKeys(key: Handle, count: u32, others: u64, event: Handle, apc: u64, apc_context: u64, io_status: UserPtr<u64>, filter: u32, subtree: bool, buffer: u64, length: u32, asynchronous: bool) = notify_change_multiple;
}

/// KEY_NOTIFY.
const NOTIFY: u32 = 0x10;
/// REG_NOTIFY_CHANGE_NAME: a subkey was added, renamed or deleted.
pub const CHANGE_NAME: u32 = 1;
/// REG_NOTIFY_CHANGE_ATTRIBUTES.
pub const CHANGE_ATTRIBUTES: u32 = 2;
/// REG_NOTIFY_CHANGE_LAST_SET: a value was set or deleted.
pub const CHANGE_LAST_SET: u32 = 4;
/// REG_NOTIFY_CHANGE_SECURITY.
pub const CHANGE_SECURITY: u32 = 8;
/// Every kind of change, and REG_NOTIFY_THREAD_AGNOSTIC.
const VALID_FILTER: u32 = 0x1000_000F;

/// One request.
#[derive(Clone, Copy, Debug)]
struct Request {
    /// Signaled on completion; referenced.
    event: Option<ObjectId>,
    /// Thread, routine, context and IO_STATUS_BLOCK of an APC.
    apc: Option<(ThreadId, Apc)>,
    /// IO_STATUS_BLOCK.
    io_status: u64,
    /// Thread that waits in the service, when it does.
    waiter: Option<ThreadId>,
}

/// What is watched through one key object.
#[derive(Debug)]
struct Watch {
    key: KeyId,
    filter: u32,
    subtree: bool,
    requests: Vec<Request>,
}

/// All watches, by key object.
#[derive(Debug, Default)]
pub struct Watches {
    watches: BTreeMap<ObjectId, Watch>,
    /// Threads whose synchronous requests are done, with the status.
    done: BTreeMap<ThreadId, Status>,
}

impl Kernel {
    /// A key changed in one way (a REG_NOTIFY_CHANGE_* bit): completes the requests of those who watch it, or a key above
    /// it. Call it before a key is deleted.
    pub fn registry_changed(&mut self, key: KeyId, change: u32) -> Vec<u64> {
        if self.watches.watches.is_empty() {
            return Vec::new();
        }
        let mut above = Vec::new();
        let mut at = Some(key);
        while let Some(id) = at {
            above.push(id);
            at = self.registry.key(id).ok().and_then(|key| key.parent);
        }
        let matching = |watch: &Watch| {
            let depth = above.iter().position(|&id| id == watch.key);
            watch.filter & change != 0 && depth.is_some_and(|depth| depth == 0 || watch.subtree)
        };
        let mut requests = Vec::new();
        for watch in self.watches.watches.values_mut().filter(|watch| matching(watch)) {
            requests.append(&mut watch.requests);
        }
        self.finish_requests(requests, Status::NOTIFY_ENUM_DIR)
    }

    /// The key was deleted: whoever watches it through any handle is told.
    pub fn registry_deleted(&mut self, key: KeyId) -> Vec<u64> {
        let mut requests = Vec::new();
        for watch in self.watches.watches.values_mut().filter(|watch| watch.key == key) {
            requests.append(&mut watch.requests);
        }
        self.finish_requests(requests, Status::NOTIFY_ENUM_DIR)
    }

    /// A key object is gone: its requests end.
    pub fn key_closed(&mut self, object: ObjectId) {
        if let Some(watch) = self.watches.watches.remove(&object) {
            self.finish_requests(watch.requests, Status::NOTIFY_CLEANUP);
        }
    }

    /// Completes requests; the result is the addresses of the status blocks that want to be written.
    fn finish_requests(&mut self, requests: Vec<Request>, status: Status) -> Vec<u64> {
        let mut blocks = Vec::new();
        for request in requests {
            if let Some(event) = request.event {
                if let Ok(Body::Event(event)) = self.objects.body_mut(event) {
                    event.set(true);
                }
                self.objects.dereference(event);
            }
            if let Some((thread, apc)) = request.apc
                && let Ok(thread) = self.scheduler.thread_mut(thread)
            {
                thread.apcs.push_back(apc);
            }
            if let Some(waiter) = request.waiter {
                self.watches.done.insert(waiter, status);
            }
            if request.io_status != 0 {
                blocks.push(request.io_status);
            }
        }
        blocks
    }
}

/// Tells the watchers of a key about a change.
pub fn changed(call: &mut Call<'_, '_>, key: KeyId, change: u32) {
    let blocks = call.kernel.registry_changed(key, change);
    write_blocks(call, &blocks);
}

/// Tells the watchers of a key that is about to be deleted.
pub fn deleting(call: &mut Call<'_, '_>, key: KeyId) {
    let parent = call.kernel.registry.key(key).ok().and_then(|key| key.parent);
    if let Some(parent) = parent {
        changed(call, parent, CHANGE_NAME);
    }
    let blocks = call.kernel.registry_deleted(key);
    write_blocks(call, &blocks);
}

fn write_blocks(call: &mut Call<'_, '_>, blocks: &[u64]) {
    for &block in blocks {
        // The block is its owner's affair: one that is gone is not written.
        let _ = call.write_io_status(UserPtr::new(block), Status::NOTIFY_ENUM_DIR, 0);
    }
}

fn notify_change(
    call: &mut Call<'_, '_>,
    key: Handle,
    event: Handle,
    apc: u64,
    apc_context: u64,
    io_status: UserPtr<u64>,
    filter: u32,
    subtree: bool,
    _buffer: u64,
    _length: u32,
    asynchronous: bool,
) -> Result<Outcome, Status> {
    /// EVENT_MODIFY_STATE.
    const MODIFY_STATE: u32 = 2;
    if filter & !VALID_FILTER != 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    let id = key_of(call, key, NOTIFY)?;
    call.kernel.registry.key(id)?;
    let object = call.object(key, Some(ObjectType::Key), NOTIFY)?;
    let event = match event {
        Handle::NULL => None,
        handle => Some(call.object(handle, Some(ObjectType::Event), MODIFY_STATE)?),
    };
    call.write_io_status(io_status, Status::PENDING, 0)?;
    if let Some(event) = event {
        if let Body::Event(event) = call.kernel.objects.body_mut(event)? {
            event.set(false);
        }
        call.kernel.objects.reference(event);
    }
    let thread = call.thread;
    let request = Request {
        event,
        apc: (apc != 0).then_some((thread, Apc { routine: apc, arguments: [apc_context, io_status.address(), 0] })),
        io_status: io_status.address(),
        waiter: (!asynchronous).then_some(thread),
    };
    let watch = call.kernel.watches.watches.entry(object);
    watch.or_insert_with(|| Watch { key: id, filter, subtree, requests: Vec::new() }).requests.push(request);
    if asynchronous {
        return Ok(Outcome::Return(Status::PENDING));
    }
    Ok(Outcome::Wait(Wait::until("registry change", |kernel, thread| kernel.watches.done.remove(&thread))))
}

fn notify_change_multiple(
    call: &mut Call<'_, '_>,
    key: Handle,
    count: u32,
    _others: u64,
    event: Handle,
    apc: u64,
    apc_context: u64,
    io_status: UserPtr<u64>,
    filter: u32,
    subtree: bool,
    buffer: u64,
    length: u32,
    asynchronous: bool,
) -> Result<Outcome, Status> {
    match count {
        0 => {
            notify_change(call, key, event, apc, apc_context, io_status, filter, subtree, buffer, length, asynchronous)
        }
        1 => Err(Status::NOT_SUPPORTED),
        _ => Err(Status::INVALID_PARAMETER),
    }
}
