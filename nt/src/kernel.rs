//! The executive: all state behind the service tables, and the service gate.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use lstar_arch::{Gpr, Privilege};
use lstar_guest_images::GateId;
use lstar_runtime::{AddressSpace, Frames, GateAction, HookEvent, Registers, ServiceGate, SpaceId, SystemCall, Vcpu};

use crate::block_trace::BlockTracer;
use crate::crash::{CrashReport, LastException};
use crate::debug::EventId;
use crate::direct::DirectDispatch;
use crate::function_trace::FunctionTracer;
use crate::io::afd::Afd;
use crate::io::mailslot::Mailslots;
use crate::io::pending::{PendingRequest, WaitingIo};
use crate::io::pipe::PipeSystem;
use crate::io::requests::RequestId;
use crate::io::{FileSystem, Host, StdStream};
use crate::lockstep::Lockstep;
use crate::memory::section::Section;
use crate::memory::{MemoryManager, SectionTable};
use crate::object::{HandleTable, ObjectManager};
use crate::process::create::SystemImages;
use crate::process::{Process, ProcessId, ProcessState};
use crate::prototypes::{prototype, stack_arguments};
use crate::registry::Registry;
use crate::scheduler::Scheduler;
use crate::service::{Call, MAX_ARGUMENTS, Outcome, Service};
use crate::service_hooks::ServiceHooks;
use crate::status::Status;
use crate::system::StopReason;
use crate::system_state::SystemState;
use crate::thread::{KernelLayout, ThreadId};
use crate::time::Clock;
use crate::trace::Tracer;

/// Every service declaration of the crate.
pub const SERVICE_TABLES: &[&[Service]] = &[
    crate::debug::SERVICES,
    crate::exception::SERVICES,
    crate::io::change_services::SERVICES,
    crate::io::mailslot_services::SERVICES,
    crate::io::pipe_services::SERVICES,
    crate::io::scatter::SERVICES,
    crate::io::services::SERVICES,
    crate::io::transfer::SERVICES,
    crate::io::control::SERVICES,
    crate::memory::section_services::SERVICES,
    crate::memory::services::SERVICES,
    crate::nls::SERVICES,
    crate::object::port_services::SERVICES,
    crate::object::services::SERVICES,
    crate::object::sync_services::SERVICES,
    crate::process::create_services::SERVICES,
    crate::process::information::SERVICES,
    crate::process::jobs::SERVICES,
    crate::process::services::SERVICES,
    crate::registry::notify::SERVICES,
    crate::registry::hive_services::SERVICES,
    crate::registry::services::SERVICES,
    crate::registry::transactions::SERVICES,
    crate::system_services::SERVICES,
    crate::thread::information::SERVICES,
    crate::thread::services::SERVICES,
    crate::thread::waits::SERVICES,
    crate::token_services::SERVICES,
    crate::win32k::SERVICES,
    crate::wine::SERVICES,
];

/// The declaration of a service by name.
#[must_use]
pub fn service_by_name(name: &str) -> Option<&'static Service> {
    SERVICE_TABLES.iter().flat_map(|table| table.iter()).find(|service| service.name == name)
}

/// One slot of a service table: its name in the system root's DLL and, when it is implemented, its declaration.
#[derive(Clone, Debug)]
pub struct DispatchEntry {
    /// Name.
    pub name: String,
    /// Declaration.
    pub service: Option<&'static Service>,
    /// Answer without doing anything: a failure that the user injects.
    pub denied: Option<Status>,
}

/// The services by number: native and shadow table.
#[derive(Debug, Default)]
pub struct DispatchTable {
    /// Tables indexed by service number.
    pub tables: [Vec<Option<DispatchEntry>>; 2],
}

impl DispatchTable {
    /// Lets the services whose names match `pattern` (`*` and `?`) answer with a status instead of serving; returns
    /// how many there are.
    pub fn deny(&mut self, pattern: &str, status: Status) -> usize {
        let filter = crate::trace::TraceFilter::parse(pattern);
        let entries = self.tables.iter_mut().flatten().flatten().filter(|entry| filter.wants(&entry.name));
        entries.map(|entry| entry.denied = Some(status)).count()
    }

    /// The entry that a gate identifier (table in bit 12, index below) names.
    #[must_use]
    pub fn entry(&self, id: u32) -> Option<&DispatchEntry> {
        let table = self.tables.get((id >> 12) as usize)?;
        table.get((id & 0xFFF) as usize)?.as_ref()
    }
}

/// An image in an address space, for reports: still there or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedImage {
    /// The address space.
    pub space: SpaceId,
    /// Guest addresses.
    pub range: Range<u64>,
    /// Address of its entry point, its base if it has none.
    pub entry: u64,
    /// The checksum in its header.
    pub check_sum: u32,
    /// Its file's name in the NT name space; empty for one that has none.
    pub name: String,
}

/// All executive state. The processor and guest memory belong to the machine and come with each
/// [`Call`].
#[derive(Debug)]
pub struct Kernel {
    /// Virtual memory of the current process.
    pub memory: MemoryManager,
    /// Threads and whose turn it is.
    pub scheduler: Scheduler,
    /// The current process; see [`crate::process`].
    pub process: Process,
    /// The others, and ended ones that somebody may still ask about.
    pub others: BTreeMap<ProcessId, ProcessState>,
    /// The first process: the run ends with its status.
    pub root_process: ProcessId,
    /// Most processes at a time.
    pub max_processes: usize,
    /// Images that every process gets.
    pub images: Arc<SystemImages>,
    /// KUSER_SHARED_DATA, which every process sees.
    pub shared_data: Arc<Frames>,
    /// Sections of all processes.
    pub sections: SectionTable,
    /// Where the guest kernel keeps its data.
    pub layout: KernelLayout,
    /// Base and size of the guest kernel's image.
    pub kernel_image: (u64, u32),
    /// Objects.
    pub objects: ObjectManager,
    /// Handles of the current process.
    pub handles: HandleTable,
    /// Volumes and what is open on them.
    pub files: FileSystem,
    /// Named pipes.
    pub pipes: PipeSystem,
    /// Mailslots.
    pub mailslots: Mailslots,
    /// Operations whose callers did not wait for them.
    pub pending_io: BTreeMap<RequestId, PendingRequest>,
    /// Threads that wait for an operation of their own.
    pub waiting_io: BTreeMap<RequestId, WaitingIo>,
    /// Sockets.
    pub afd: Afd,
    /// What debuggers have made of exceptions, until the threads learn of it.
    pub debug_answers: BTreeMap<EventId, Status>,
    /// Events that debuggers' threads are being told.
    pub debug_told: BTreeMap<ThreadId, EventId>,
    /// The registry.
    pub registry: Registry,
    /// What it was before any changes, where they are to be told.
    pub registry_base: Option<Registry>,
    /// Who watches it.
    pub watches: crate::registry::notify::Watches,
    /// Atoms, identifiers, NLS, armed timers.
    pub system: SystemState,
    /// Clocks.
    pub clock: Clock,
    /// Standard streams, wall clock, entropy.
    pub host: Box<dyn Host>,
    /// The console, if a standard stream is a terminal.
    pub console: Option<crate::io::console::Console>,
    /// Services by number.
    pub dispatch: DispatchTable,
    /// The short cut through the guest kernel's system-call code.
    pub direct: Option<DirectDispatch>,
    /// Why nothing runs any more.
    pub stop: Option<StopReason>,
    /// The exception that was dispatched last.
    pub last_exception: Option<LastException>,
    /// Processes that end before the current service returns, and with what status.
    pub doomed: Vec<(ProcessId, Status)>,
    /// The exception that ended the first process.
    pub crash: Option<Box<CrashReport>>,
    /// Lines about what the guest asked for and did not get; each once.
    pub notes: Vec<String>,
    /// Every image that was mapped, in any process, each once.
    pub mapped_images: Vec<MappedImage>,
    /// Who wants to know of every service.
    pub tracer: Option<Tracer>,
    /// Functions whose calls the tracer is told of.
    pub function_tracer: Option<FunctionTracer>,
    /// Code whose basic blocks the tracer is told of.
    pub block_tracer: Option<BlockTracer>,
    /// The embedder's hooks on services.
    pub service_hooks: ServiceHooks,
    /// Records this run, or compares it with another.
    pub lockstep: Option<Lockstep>,
    pub(crate) noted: BTreeSet<String>,
    pub(crate) next_client_id: u32,
    pub(crate) services_called: u64,
}

impl ServiceGate for Kernel {
    fn service(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        self.clock.advance(vcpu.retired);
        if let Some(lockstep) = &mut self.lockstep
            && !lockstep.arrive(vcpu)
        {
            self.stop = Some(StopReason::Diverged);
            return GateAction::Stop;
        }
        let id = vcpu.reg(Gpr::Rax) as u32;
        match GateId::from_id(id) {
            Some(gate) => self.event(vcpu, gate),
            None => self.serve(vcpu, id),
        }
    }

    fn system_call(&mut self, vcpu: &mut Vcpu<'_>) -> SystemCall {
        if !self.direct.as_mut().is_some_and(|direct| direct.enter(vcpu)) {
            return SystemCall::Declined;
        }
        match (self.service(vcpu), &mut self.direct) {
            (GateAction::Resume, Some(direct)) => direct.leave(vcpu),
            (action, _) => action.into(),
        }
    }

    fn address_reached(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        self.clock.advance(vcpu.retired);
        self.trace_function(vcpu);
        GateAction::Resume
    }

    fn hooked(&mut self, vcpu: &mut Vcpu<'_>, event: &HookEvent) -> GateAction {
        if let HookEvent::Block { rip } = *event {
            self.trace_block(vcpu, rip);
        }
        GateAction::Resume
    }

    fn code_changed(&mut self, range: Range<u64>) {
        if let Some(direct) = &mut self.direct {
            direct.code_changed(&range);
        }
    }

    fn unimplemented_instruction(&mut self, rip: u64, text: &str) {
        self.note(format!("instruction not implemented at {rip:#x}: {text}"));
    }
}

impl Kernel {
    /// Takes note of an image that has been mapped.
    pub fn note_image(&mut self, space: &mut AddressSpace, start: u64, section: &Section) {
        let Some(headers) = section.image() else { return };
        let image = MappedImage {
            space: space.current_space(),
            range: start..start + u64::from(headers.size),
            entry: start + u64::from(headers.entry_rva),
            check_sum: headers.check_sum,
            name: section.file.as_ref().map_or_else(String::new, |file| file.name.clone()),
        };
        if !self.mapped_images.contains(&image) {
            self.watch_blocks(space, &image);
            self.mapped_images.push(image);
        }
        self.watch_functions(space, start, section);
    }

    fn event(&mut self, vcpu: &mut Vcpu<'_>, gate: GateId) -> GateAction {
        match gate {
            GateId::KernelStart => {
                self.stop = Some(StopReason::Started);
                GateAction::Stop
            }
            GateId::Exception => self.exception(vcpu),
            GateId::ConvertToGuiThread | GateId::GdiFlush => {
                vcpu.set_reg(Gpr::Rax, 0);
                GateAction::Resume
            }
            GateId::DeliverApc => self.deliver_apc(vcpu),
            GateId::CopyFault => self.copy_fault(vcpu),
        }
    }

    fn serve(&mut self, vcpu: &mut Vcpu<'_>, id: u32) -> GateAction {
        self.services_called += 1;
        let entry = self.dispatch.entry(id);
        let Some(service) = entry.and_then(|entry| entry.service) else {
            let name = entry.map_or_else(|| format!("service {id:#x}"), |entry| entry.name.clone());
            let denied = entry.and_then(|entry| entry.denied);
            let mut arguments = self.slots(vcpu, 4 + usize::from(stack_arguments(&name)));
            let answer = self.hooks_enter(vcpu, id, &name, &mut arguments);
            if answer.is_none() {
                self.unknown_service(&name, &arguments);
            }
            self.trace_enter(vcpu, id, &name, &arguments);
            let thread = self.scheduler.current;
            // Shadow services return handles and BOOLs rather than statuses: 0 is their failure.
            let unknown = if id >> 12 == 0 { Status::NOT_IMPLEMENTED } else { Status(0) };
            let status = answer.or(denied).unwrap_or(unknown);
            let action = self.complete(vcpu, Outcome::Return(status));
            return self.leave_service(vcpu, thread, action);
        };
        let denied = entry.and_then(|entry| entry.denied);
        let mut slots = self.slots(vcpu, service.parameters.len());
        let answer = self.hooks_enter(vcpu, id, service.name, &mut slots);
        let mode = self.previous_mode(vcpu);
        let thread = self.scheduler.current;
        self.trace_enter(vcpu, id, service.name, &slots);
        let outcome = match answer.or(denied) {
            Some(status) => Outcome::Return(status),
            None => (service.invoke)(&mut Call { kernel: self, vcpu, thread, mode, slots }),
        };
        self.reap();
        let outcome = self.end_doomed(vcpu, outcome);
        self.deliver_io(vcpu.memory);
        let action = self.complete(vcpu, outcome);
        let action = self.leave_service(vcpu, thread, action);
        self.reap();
        action
    }

    /// A service of `thread` is over, blocked, or will not return, as `action` says; returns what follows.
    fn leave_service(&mut self, vcpu: &mut Vcpu<'_>, thread: ThreadId, action: GateAction) -> GateAction {
        if self.scheduler.current == thread && action == GateAction::Resume {
            self.hooks_leave(vcpu);
        }
        self.trace_leave(vcpu, thread, action);
        self.unless_hook_panicked(action)
    }

    /// Ends the processes that a service has condemned; its caller may be among them.
    fn end_doomed(&mut self, vcpu: &mut Vcpu<'_>, outcome: Outcome) -> Outcome {
        if self.doomed.is_empty() {
            return outcome;
        }
        while let Some((process, status)) = self.doomed.pop() {
            self.end_process(vcpu, process, status);
        }
        if self.scheduler.current().is_none() { Outcome::ThreadEnded } else { outcome }
    }

    /// Argument slots: registers, then what the guest kernel copied to its stack.
    fn slots(&self, vcpu: &Vcpu<'_>, count: usize) -> [u64; MAX_ARGUMENTS] {
        const REGISTERS: [Gpr; 4] = [Gpr::Rcx, Gpr::Rdx, Gpr::R8, Gpr::R9];
        /// Return address and home slots.
        const STACK_ARGUMENTS: u64 = 0x28;
        let mut slots = [0; MAX_ARGUMENTS];
        for (slot, register) in slots.iter_mut().zip(REGISTERS) {
            *slot = vcpu.reg(register);
        }
        let stack = count.saturating_sub(4).min(MAX_ARGUMENTS - 4);
        let mut bytes = [0; (MAX_ARGUMENTS - 4) * 8];
        let source = vcpu.reg(Gpr::Rsp).wrapping_add(STACK_ARGUMENTS);
        if vcpu.memory.read_unchecked(source, &mut bytes[..stack * 8]).is_ok() {
            for (slot, chunk) in slots[4..].iter_mut().zip(bytes.chunks_exact(8)).take(stack) {
                *slot = u64::from_le_bytes([
                    chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7],
                ]);
            }
        }
        slots
    }

    fn previous_mode(&self, vcpu: &Vcpu<'_>) -> Privilege {
        let Some(thread) = self.scheduler.current() else { return Privilege::User };
        let mut mode = [1];
        let address = thread.slot.kthread() + u64::from(self.layout.thread.previous_mode);
        match vcpu.memory.read_unchecked(address, &mut mode) {
            Ok(()) if mode == [0] => Privilege::Supervisor,
            _ => Privilege::User,
        }
    }

    fn unknown_service(&mut self, name: &str, slots: &[u64]) {
        if self.noted.insert(name.to_owned()) {
            let names = prototype(name).map_or(&[][..], |prototype| &prototype.arguments);
            let arguments: Vec<String> = match names {
                [] => slots.iter().take(4).map(|slot| format!("{slot:#x}")).collect(),
                names => names.iter().zip(slots).map(|(name, slot)| format!("{}={slot:#x}", name.name)).collect(),
            };
            self.notes.push(format!("{name}({}) is not implemented", arguments.join(", ")));
        }
    }

    /// Adds a line for the user, once.
    pub fn note(&mut self, line: String) {
        if self.noted.insert(line.clone()) {
            self.notes.push(line);
        }
    }

    /// Text that the guest writes for debuggers: it goes to standard error.
    pub fn debug_output(&mut self, bytes: &[u8]) {
        // Nobody can be told that standard error is closed.
        let _ = self.host.write(StdStream::Error, bytes);
    }
}
