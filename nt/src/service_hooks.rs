//! Hooks on system services: functions of the embedder's that see calls before they are served, may answer instead, and learn what
//! came of them. They are called at the service gate, on both engines and however SYSCALL got there.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lstar_arch::Gpr;
use lstar_runtime::hooks::panic_message;
use lstar_runtime::{GateAction, Registers, Vcpu};

use crate::kernel::Kernel;
use crate::service::MAX_ARGUMENTS;
use crate::status::Status;
use crate::system::StopReason;
use crate::thread::ThreadId;
use crate::trace::TraceFilter;

/// A call of a service.
#[derive(Debug)]
pub struct ServiceCall<'a> {
    /// Service number as in EAX.
    pub number: u32,
    /// Name.
    pub name: &'a str,
    /// UniqueThread of the caller.
    pub thread: ThreadId,
    /// Arguments, as many as the service has and zeros behind them. Changes before it is served count.
    pub arguments: &'a mut [u64; MAX_ARGUMENTS],
    /// What it has returned; `None`: it has not been served yet.
    pub returned: Option<Status>,
}

/// A hook: called before a call is served (`Some(status)` answers it instead), and when it has returned (the result is ignored).
/// Services that do not return, as those that end the thread, are seen once. A panic ends the run.
pub type ServiceHook = Box<dyn FnMut(&mut Vcpu<'_>, &mut ServiceCall<'_>) -> Option<Status> + Send>;

/// Names a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceHookId(u64);

/// A call that has not returned.
#[derive(Debug)]
struct Pending {
    number: u32,
    name: String,
    arguments: [u64; MAX_ARGUMENTS],
}

/// All of them.
#[derive(Default)]
pub struct ServiceHooks {
    list: Vec<(ServiceHookId, TraceFilter, ServiceHook)>,
    next: u64,
    pending: BTreeMap<ThreadId, Pending>,
    /// What the one said that panicked.
    panic: Option<String>,
}

impl fmt::Debug for ServiceHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceHooks").field("count", &self.list.len()).finish_non_exhaustive()
    }
}

impl ServiceHooks {
    /// From now on, calls of the services that `filter` wants are told to `hook`.
    pub fn add(&mut self, filter: TraceFilter, hook: ServiceHook) -> ServiceHookId {
        let id = ServiceHookId(self.next);
        self.next += 1;
        self.list.push((id, filter, hook));
        id
    }

    /// Removes a hook; says whether it was there.
    pub fn remove(&mut self, id: ServiceHookId) -> bool {
        let before = self.list.len();
        self.list.retain(|(other, ..)| *other != id);
        self.list.len() != before
    }

    /// The message of the hook whose panic ended the run.
    #[must_use]
    pub fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    /// Calls the hooks that want a call, until one panics; returns the first answer.
    fn call(&mut self, vcpu: &mut Vcpu<'_>, call: &mut ServiceCall<'_>) -> Result<Option<Status>, String> {
        let mut answer = None;
        for (_, filter, hook) in &mut self.list {
            if filter.wants(call.name) {
                let status = catch_unwind(AssertUnwindSafe(|| hook(vcpu, call)));
                answer = answer.or(status.map_err(|payload| panic_message(&*payload))?);
            }
        }
        Ok(answer)
    }
}

impl Kernel {
    /// A service is about to be served. `Some`: it is answered.
    pub(crate) fn hooks_enter(
        &mut self,
        vcpu: &mut Vcpu<'_>,
        number: u32,
        name: &str,
        arguments: &mut [u64; MAX_ARGUMENTS],
    ) -> Option<Status> {
        if self.service_hooks.list.is_empty() {
            return None;
        }
        let thread = self.scheduler.current;
        let mut call = ServiceCall { number, name, thread, arguments, returned: None };
        match self.service_hooks.call(vcpu, &mut call) {
            Ok(answer) => {
                let pending = Pending { number, name: name.to_owned(), arguments: *arguments };
                self.service_hooks.pending.insert(thread, pending);
                answer
            }
            Err(message) => {
                self.hook_panicked(message);
                // Nobody sees it.
                Some(Status::UNSUCCESSFUL)
            }
        }
    }

    /// The current thread returns from a service with its status in RAX.
    pub(crate) fn hooks_leave(&mut self, vcpu: &mut Vcpu<'_>) {
        let thread = self.scheduler.current;
        let Some(mut pending) = self.service_hooks.pending.remove(&thread) else { return };
        let returned = Some(Status(vcpu.reg(Gpr::Rax) as u32));
        let (number, arguments) = (pending.number, &mut pending.arguments);
        let mut call = ServiceCall { number, name: &pending.name, thread, arguments, returned };
        if let Err(message) = self.service_hooks.call(vcpu, &mut call) {
            self.hook_panicked(message);
        }
    }

    /// What follows, unless a hook has ended the run.
    pub(crate) fn unless_hook_panicked(&self, action: GateAction) -> GateAction {
        if self.stop == Some(StopReason::HookPanicked) { GateAction::Stop } else { action }
    }

    fn hook_panicked(&mut self, message: String) {
        self.service_hooks.panic = Some(message);
        self.stop = Some(StopReason::HookPanicked);
    }
}
