//! Who runs: blocking, waking, switching threads on the one processor.
//!
//! A thread that blocks stays in the middle of its service: its registers are saved behind the gate instruction, on its
//! own kernel stack. When its wait ends it returns from there. Switches happen only at gates and, when a time slice is
//! used up, in user mode; the guest kernel's code is never interrupted by one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use lstar_arch::{Gpr, Privilege};
use lstar_runtime::{GateAction, Registers, Vcpu};

use crate::context::current_frame;
use crate::kernel::Kernel;
use crate::process::ProcessId;
use crate::service::{Call, MAX_ARGUMENTS, Outcome};
use crate::status::Status;
use crate::system::StopReason;
use crate::thread::{KernelSlots, Thread, ThreadId, ThreadState};
use crate::wait::Wait;

/// The threads and whose turn it is.
#[derive(Debug, Default)]
pub struct Scheduler {
    /// All threads that have not ended.
    pub threads: BTreeMap<ThreadId, Thread>,
    /// The one on the processor.
    pub current: ThreadId,
    /// Ready ones in order of their turns.
    pub ready: VecDeque<ThreadId>,
    /// Kernel stacks and KTHREADs.
    pub slots: KernelSlots,
    /// Slots of ended threads, to be unmapped once nothing runs on them.
    retired_slots: Vec<crate::thread::KernelSlot>,
    /// Instruction count at the last switch.
    switched_at: u64,
    /// Threads blocked.
    waiting: usize,
    /// Processes whose debuggers have not continued them.
    pub frozen: BTreeSet<ProcessId>,
}

/// What follows a service.
enum Settled {
    /// Its thread goes on.
    Resume,
    /// Its thread goes on somewhere else.
    Redirect,
    /// Its thread is blocked, queued or gone: another one runs.
    Switch,
    /// Nothing runs any more.
    Stop,
}

impl Scheduler {
    /// Whether a thread may run: neither it is suspended nor its process held by a debugger.
    fn may_run(&self, thread: &Thread) -> bool {
        thread.suspend_count == 0 && !self.frozen.contains(&thread.process)
    }

    /// The running thread.
    #[must_use]
    pub fn current(&self) -> Option<&Thread> {
        self.threads.get(&self.current)
    }

    /// The running thread, to change.
    pub fn current_mut(&mut self) -> Option<&mut Thread> {
        self.threads.get_mut(&self.current)
    }

    /// A thread by its identifier.
    pub fn thread_mut(&mut self, id: ThreadId) -> Result<&mut Thread, Status> {
        self.threads.get_mut(&id).ok_or(Status::THREAD_IS_TERMINATING)
    }

    /// Threads of a process.
    pub fn threads_of(&self, process: ProcessId) -> impl Iterator<Item = &Thread> + '_ {
        self.threads.values().filter(move |thread| thread.process == process)
    }

    /// Instructions since the running thread's turn began.
    #[must_use]
    pub fn turn(&self, retired: u64) -> u64 {
        retired.saturating_sub(self.switched_at)
    }

    /// The process of a thread that has not ended.
    #[must_use]
    pub fn process_of(&self, id: ThreadId) -> Option<ProcessId> {
        self.threads.get(&id).map(|thread| thread.process)
    }

    /// Adds a thread that can run at once (unless it is suspended).
    pub fn add(&mut self, thread: Thread) {
        self.ready.push_back(thread.id);
        self.threads.insert(thread.id, thread);
    }

    /// Removes a thread that has ended.
    pub fn remove(&mut self, id: ThreadId) -> Option<Thread> {
        self.ready.retain(|&ready| ready != id);
        let thread = self.threads.remove(&id)?;
        if matches!(thread.state, ThreadState::Waiting(_)) {
            self.waiting -= 1;
        }
        self.retired_slots.push(thread.slot);
        Some(thread)
    }
}

impl Kernel {
    /// Finishes a service of the current thread as its outcome says.
    pub fn complete(&mut self, vcpu: &mut Vcpu<'_>, outcome: Outcome) -> GateAction {
        match self.settle(vcpu, outcome) {
            Settled::Resume => GateAction::Resume,
            Settled::Redirect => GateAction::Redirect,
            Settled::Switch => self.switch(vcpu),
            Settled::Stop => GateAction::Stop,
        }
    }

    /// The same without switching: says whether another thread must run.
    fn settle(&mut self, vcpu: &mut Vcpu<'_>, mut outcome: Outcome) -> Settled {
        loop {
            outcome = match outcome {
                Outcome::Return(status) => {
                    vcpu.set_result(u64::from(status.0));
                    self.wake(vcpu);
                    if self.scheduler.current().is_some_and(|thread| self.scheduler.may_run(thread)) {
                        return Settled::Resume;
                    }
                    self.requeue(vcpu);
                    return Settled::Switch;
                }
                Outcome::Wait(mut wait) => match self.try_wait(vcpu, &mut wait) {
                    Some(status) => match wait.then {
                        Some(then) => then(&mut self.call(vcpu), status),
                        None => Outcome::Return(status),
                    },
                    None => {
                        self.scheduler.waiting += 1;
                        if let Some(thread) = self.scheduler.current_mut() {
                            thread.state = ThreadState::Waiting(wait);
                            thread.context = Some(vcpu.save());
                        }
                        return Settled::Switch;
                    }
                },
                Outcome::Yield => {
                    self.wake(vcpu);
                    if self.scheduler.ready.is_empty() {
                        Outcome::Return(Status::NO_YIELD_PERFORMED)
                    } else {
                        vcpu.set_reg(Gpr::Rax, u64::from(Status::SUCCESS.0));
                        self.requeue(vcpu);
                        return Settled::Switch;
                    }
                }
                Outcome::Redirect(user) => {
                    let frame = current_frame(vcpu);
                    if user.apply(vcpu, frame).is_err() {
                        self.stop.get_or_insert(StopReason::KernelFault);
                        return Settled::Stop;
                    }
                    self.layout.leave_by_frame(vcpu, frame);
                    return Settled::Redirect;
                }
                Outcome::ThreadEnded => return Settled::Switch,
                Outcome::Stop => return Settled::Stop,
            };
        }
    }

    /// A call in the context of the current thread, without arguments.
    pub fn call<'a, 'm>(&'a mut self, vcpu: &'a mut Vcpu<'m>) -> Call<'a, 'm> {
        let thread = self.scheduler.current;
        Call { kernel: self, vcpu, thread, mode: Privilege::User, slots: [0; MAX_ARGUMENTS] }
    }

    /// Whether a wait of the current thread is over at once, and how.
    fn try_wait(&mut self, vcpu: &mut Vcpu<'_>, wait: &mut Wait) -> Option<Status> {
        let id = self.scheduler.current;
        self.expire_timers();
        if let Some(status) = (wait.condition)(self, id) {
            return Some(status);
        }
        if wait.alertable
            && let Some(status) = self.interrupt_wait(vcpu, id)
        {
            return Some(status);
        }
        wait.deadline.is_some_and(|deadline| deadline <= self.clock.interrupt_time()).then_some(Status::TIMEOUT)
    }

    /// Whether an alert or a user APC ends an alertable wait of a thread.
    fn interrupt_wait(&mut self, vcpu: &mut Vcpu<'_>, id: ThreadId) -> Option<Status> {
        let layout = self.layout;
        let thread = self.scheduler.threads.get_mut(&id)?;
        if std::mem::take(&mut thread.alerted) {
            return Some(Status::ALERTED);
        }
        if thread.apcs.is_empty() {
            return None;
        }
        layout.set_apc_pending(vcpu.memory, thread.slot, true);
        Some(Status::USER_APC)
    }

    /// Ends the waits that are over and makes their threads ready.
    pub fn wake(&mut self, vcpu: &mut Vcpu<'_>) {
        self.deliver_io(vcpu.memory);
        if self.scheduler.waiting == 0 {
            return;
        }
        self.expire_timers();
        let now = self.clock.interrupt_time();
        // A wait that ends may satisfy or undo another one: in order of thread identifiers, repeated until stable.
        loop {
            let waiting: Vec<ThreadId> = self
                .scheduler
                .threads
                .iter()
                .filter(|(_, thread)| matches!(thread.state, ThreadState::Waiting(_)))
                .map(|(&id, _)| id)
                .collect();
            let mut woken = false;
            for id in waiting {
                woken |= self.wake_one(vcpu, id, now);
            }
            if !woken {
                return;
            }
        }
    }

    fn wake_one(&mut self, vcpu: &mut Vcpu<'_>, id: ThreadId, now: u64) -> bool {
        let Some(thread) = self.scheduler.threads.get_mut(&id) else { return false };
        let ThreadState::Waiting(mut wait) = std::mem::replace(&mut thread.state, ThreadState::Ready) else {
            return false;
        };
        let status = match (wait.condition)(self, id) {
            Some(status) => Some(status),
            None if wait.alertable => self.interrupt_wait(vcpu, id),
            None => None,
        };
        let status = status.or_else(|| wait.deadline.filter(|&at| at <= now).map(|_| Status::TIMEOUT));
        let Some(thread) = self.scheduler.threads.get_mut(&id) else { return false };
        let Some(status) = status else {
            thread.state = ThreadState::Waiting(wait);
            return false;
        };
        match wait.then {
            Some(then) => thread.continuation = Some((then, status)),
            None => {
                if let Some(context) = &mut thread.context {
                    context.set_reg(Gpr::Rax, u64::from(status.0));
                }
            }
        }
        self.scheduler.waiting -= 1;
        self.scheduler.ready.push_back(id);
        true
    }

    /// Puts the current thread at the end of the queue.
    fn requeue(&mut self, vcpu: &mut Vcpu<'_>) {
        let id = self.scheduler.current;
        if let Some(thread) = self.scheduler.current_mut() {
            thread.state = ThreadState::Ready;
            thread.context = Some(vcpu.save());
            self.scheduler.ready.push_back(id);
        }
    }

    /// The time slice is used up: gives the others their turn, if there are any.
    pub fn preempt(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        self.wake(vcpu);
        if self.scheduler.ready.is_empty() {
            return GateAction::Resume;
        }
        self.requeue(vcpu);
        self.switch(vcpu)
    }

    /// Switches to the next thread that can run; lets time pass when all of them wait.
    pub fn switch(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        loop {
            if self.scheduler.ready.is_empty() {
                self.afd.hurry();
            }
            self.wake(vcpu);
            let scheduler = &mut self.scheduler;
            let next = scheduler
                .ready
                .iter()
                .position(|id| scheduler.threads.get(id).is_some_and(|thread| scheduler.may_run(thread)));
            if let Some(id) = next.and_then(|position| scheduler.ready.remove(position)) {
                match self.install(vcpu, id) {
                    Some(action) => return action,
                    None => continue,
                }
            }
            if self.scheduler.threads.is_empty() {
                self.stop.get_or_insert(StopReason::Exited);
                return GateAction::Stop;
            }
            let waits = self.scheduler.threads.values().filter_map(|thread| match &thread.state {
                ThreadState::Waiting(wait) => wait.deadline,
                _ => None,
            });
            let next = waits.chain(self.next_timer()).chain(self.afd.next_deadline()).min();
            let on_host = |thread: &Thread| matches!(&thread.state, ThreadState::Waiting(wait) if wait.on_host);
            let input = self.scheduler.threads.values().any(on_host);
            // Others that wait for ever do not keep a run alive whose own program is done.
            let over = self.process_by_id(self.root_process).is_none_or(|root| root.exit_status.is_some());
            // Input comes in real time: so does what the others wait for meanwhile.
            let now = self.clock.interrupt_time();
            let limit = next.map(|at| Duration::from_nanos(at.saturating_sub(now).saturating_mul(100)));
            let network = self.afd.is_waiting() && !(over && limit.is_none());
            let came = match (network, input) {
                (true, _) => self.wait_for_network(limit, input),
                (false, true) => self.host.wait_for_input(limit),
                (false, false) => false,
            };
            if came {
                continue;
            }
            match next {
                Some(deadline) => {
                    self.clock.idle_until(deadline);
                    // Whoever wakes up reads the time from the shared page.
                    crate::loader::update_shared_data(self);
                }
                None => {
                    self.stop.get_or_insert(if over { StopReason::Exited } else { StopReason::Deadlock });
                    return GateAction::Stop;
                }
            }
        }
    }

    /// Puts a thread on the processor. `None` when it blocked again at once.
    fn install(&mut self, vcpu: &mut Vcpu<'_>, id: ThreadId) -> Option<GateAction> {
        let previous = self.scheduler.current;
        let elapsed = vcpu.retired.saturating_sub(self.scheduler.switched_at);
        self.scheduler.switched_at = vcpu.retired;
        if let Some(thread) = self.scheduler.threads.get_mut(&previous) {
            thread.instructions += elapsed;
        }
        self.scheduler.current = id;
        let thread = self.scheduler.threads.get_mut(&id)?;
        thread.state = ThreadState::Running;
        thread.initial_context = None;
        let context = thread.context.take()?;
        let continuation = thread.continuation.take();
        let (slot, process) = (thread.slot, thread.process);
        if self.enter_process(vcpu.memory, process).is_err() {
            self.stop.get_or_insert(StopReason::KernelFault);
            return Some(GateAction::Stop);
        }
        vcpu.restore(&context);
        if self.layout.set_current(vcpu.memory, slot).is_err() {
            self.stop.get_or_insert(StopReason::KernelFault);
            return Some(GateAction::Stop);
        }
        for slot in std::mem::take(&mut self.scheduler.retired_slots) {
            self.scheduler.slots.free(vcpu.memory, slot);
        }
        let Some((then, status)) = continuation else {
            self.hooks_leave(vcpu);
            self.trace_return(vcpu);
            return Some(self.unless_hook_panicked(GateAction::Redirect));
        };
        let outcome = then(&mut self.call(vcpu), status);
        match self.settle(vcpu, outcome) {
            Settled::Resume | Settled::Redirect => {
                self.hooks_leave(vcpu);
                self.trace_return(vcpu);
                Some(self.unless_hook_panicked(GateAction::Redirect))
            }
            Settled::Switch => None,
            Settled::Stop => Some(GateAction::Stop),
        }
    }
}
