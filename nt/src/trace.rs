//! Tracing of system services: what was called, with which arguments, from where, and what came of it.
//!
//! The kernel decodes a record when a service is entered and completes it when the service returns; a [`TraceSink`]
//! gets complete records. [`TextSink`] writes lines like strace's, [`JsonSink`] one JSON object a line, and [`Summary`]
//! counts.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Write;

use lstar_arch::Gpr;
use lstar_guest_images::layout::ktrap_frame::RSP;
use lstar_runtime::{AddressSpace, GateAction, Registers, Vcpu};
use serde::Serialize;

use crate::block_trace::BlockRecord;
use crate::context::{TrapFrame, current_frame};
use crate::function_trace::FunctionRecord;
use crate::io::directory::matches;
use crate::kernel::{Kernel, service_by_name};
use crate::object::Handle;
use crate::prototypes::{Argument, ArgumentKind, prototype};
use crate::service::{Parameter, ParameterKind};
use crate::status::Status;
use crate::strings::{RawObjectAttributes, UnicodeString};
use crate::thread::ThreadId;
use crate::user_ptr::{UserMemory, UserPtr};

/// A decoded argument.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TracedArgument {
    /// Name.
    pub name: &'static str,
    /// The slot as passed.
    pub value: u64,
    /// What it means, when that says more: a name, an object, what a pointer points to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(skip)]
    kind: ArgumentKind,
}

/// A call of a service.
#[derive(Clone, Debug, Serialize)]
pub struct TraceRecord {
    /// UniqueThread of the caller.
    pub thread: u32,
    /// 100 ns since boot at entry.
    pub time: u64,
    /// Service number as passed in EAX.
    pub number: u32,
    /// Name.
    pub service: String,
    /// Arguments.
    pub arguments: Vec<TracedArgument>,
    /// Status; `None`: the service did not return.
    pub status: Option<u32>,
    /// The status by name.
    pub result: Option<String>,
    /// Address behind the SYSCALL instruction.
    pub caller: u64,
    /// Module that called, and offset in it.
    pub module: Option<(String, u64)>,
    /// 100 ns from entry to return.
    pub duration: u64,
}

/// Takes complete records.
pub trait TraceSink: fmt::Debug {
    /// One call.
    fn record(&mut self, record: &TraceRecord);
    /// A call of a function.
    fn record_function(&mut self, record: &FunctionRecord) {
        let _ = record;
    }
    /// A basic block.
    fn record_block(&mut self, record: &BlockRecord) {
        let _ = record;
    }
}

/// Longest text that a trace shows of a name.
const MAX_TEXT: usize = 512;

fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_TEXT).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        shown.push_str("...");
    }
    format!("\"{shown}\"")
}

fn text_at(memory: &mut impl UserMemory, address: u64) -> Option<String> {
    UserPtr::<UnicodeString>::new(address).read_text(memory).ok().map(|text| quoted(&text))
}

/// Decodes an argument; `after`: the service has returned, so that what it filled in can be shown.
fn decode(
    memory: &mut impl UserMemory,
    describe: &impl Fn(Handle) -> Option<String>,
    kind: ArgumentKind,
    value: u64,
    after: bool,
) -> Option<String> {
    if value == 0 && !matches!(kind, ArgumentKind::Boolean) {
        return None;
    }
    let handle = |handle: Handle| {
        let value = handle.0;
        match (handle, describe(handle)) {
            (Handle::CURRENT_PROCESS, _) => "current process".to_owned(),
            (Handle::CURRENT_THREAD, _) => "current thread".to_owned(),
            (_, Some(object)) => format!("{value:#x} {object}"),
            _ => format!("{value:#x}"),
        }
    };
    match kind {
        ArgumentKind::Handle => Some(handle(Handle(value))),
        ArgumentKind::OutHandle if after => UserPtr::<u64>::new(value).read(memory).ok().map(|h| handle(Handle(h))),
        ArgumentKind::Attributes if !after => {
            let raw = UserPtr::<RawObjectAttributes>::new(value).read(memory).ok()?;
            let name = match raw.object_name {
                0 => None,
                address => text_at(memory, address),
            };
            match (raw.root_directory, name) {
                (0, name) => name,
                (root, name) => Some(format!("{} + {}", handle(Handle(root)), name.unwrap_or_default())),
            }
        }
        ArgumentKind::Text => text_at(memory, value),
        ArgumentKind::Value => UserPtr::<u64>::new(value).read(memory).ok().map(|v| format!("[{v:#x}]")),
        ArgumentKind::Timeout if !after => {
            let timeout = UserPtr::<i64>::new(value).read(memory).ok()?;
            // 100 ns units; negative is relative.
            Some(if timeout < 0 {
                format!("{} us", timeout.unsigned_abs() / 10)
            } else {
                format!("until {timeout:#x}")
            })
        }
        ArgumentKind::IoStatus if after => {
            let [_, information] = UserPtr::<[u64; 2]>::new(value).read(memory).ok()?;
            Some(format!("{{information {information:#x}}}"))
        }
        ArgumentKind::Boolean => Some(if value as u8 == 0 { "false" } else { "true" }.to_owned()),
        _ => None,
    }
}

impl TraceRecord {
    /// Decodes a call that is about to be served. `slots` are the argument slots, `describe` names a handle's object.
    pub fn enter(
        thread: u32,
        time: u64,
        number: u32,
        service: &str,
        slots: &[u64],
        memory: &mut impl UserMemory,
        describe: &impl Fn(Handle) -> Option<String>,
    ) -> Self {
        let known = prototype(service).map_or(&[][..], |prototype| &prototype.arguments);
        let unknown = [1, 2, 3, 4].map(|_| Argument { name: "?", kind: ArgumentKind::Flags });
        let list = if prototype(service).is_some() { known } else { &unknown };
        let declared = service_by_name(service).map_or(&[][..], |service| service.parameters);
        let arguments = list
            .iter()
            .zip(slots)
            .enumerate()
            .map(|(index, (&Argument { name, kind }, &slot))| {
                let value = narrow(kind, declared.get(index), slot);
                TracedArgument { name, value, text: decode(memory, describe, kind, value, false), kind }
            })
            .collect();
        Self {
            thread,
            time,
            number,
            service: service.to_owned(),
            arguments,
            status: None,
            result: None,
            caller: 0,
            module: None,
            duration: 0,
        }
    }

    /// The service has returned `status` at `time`.
    pub fn leave(
        &mut self,
        status: Status,
        time: u64,
        memory: &mut impl UserMemory,
        describe: &impl Fn(Handle) -> Option<String>,
    ) {
        self.status = Some(status.0);
        self.result = Some(status.to_string());
        self.duration = time.saturating_sub(self.time);
        if status.is_error() {
            return;
        }
        for argument in &mut self.arguments {
            let after = decode(memory, describe, argument.kind, argument.value, true);
            match (argument.kind, after) {
                (ArgumentKind::OutHandle | ArgumentKind::IoStatus, Some(text)) => argument.text = Some(text),
                (ArgumentKind::Value, Some(text)) if argument.text.as_ref() != Some(&text) => {
                    let before = argument.text.take().unwrap_or_default();
                    argument.text = Some(format!("{before}->{text}"));
                }
                _ => {}
            }
        }
    }
}

/// Narrow arguments leave the rest of their slot undefined: the declaration knows how wide they are, the kind else.
fn narrow(kind: ArgumentKind, declared: Option<&Parameter>, slot: u64) -> u64 {
    match (kind, declared.map(|parameter| parameter.kind)) {
        (_, Some(ParameterKind::Integer(bytes @ 1..8))) => slot & ((1 << (8 * bytes)) - 1),
        (_, Some(ParameterKind::Boolean)) | (ArgumentKind::Boolean, _) => slot & 0xFF,
        (ArgumentKind::Access | ArgumentKind::Decimal | ArgumentKind::Class, None) => slot & 0xFFFF_FFFF,
        _ => slot,
    }
}

impl fmt::Display for TracedArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.name)?;
        match (&self.text, self.kind) {
            (Some(text), _) => f.write_str(text),
            (None, ArgumentKind::Decimal) => write!(f, "{}", self.value as i32),
            (None, _) if self.value == 0 => f.write_str("0"),
            (None, _) => write!(f, "{:#x}", self.value),
        }
    }
}

impl fmt::Display for TraceRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.time / 10_000_000, self.time / 10 % 1_000_000);
        write!(f, "{:>5} {seconds}.{micros:06} {}(", self.thread, self.service)?;
        for (index, argument) in self.arguments.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{argument}")?;
        }
        write!(f, ") = {}", self.result.as_deref().unwrap_or("?"))?;
        match &self.module {
            Some((module, offset)) => write!(f, "  [{module}+{offset:#x}]"),
            None if self.caller != 0 => write!(f, "  [{:#x}]", self.caller),
            None => Ok(()),
        }
    }
}

/// Chooses services by name.
#[derive(Clone, Debug, Default)]
pub struct TraceFilter {
    /// Patterns with `*` and `?`; a leading `!` takes out. None: everything.
    patterns: Vec<String>,
}

impl TraceFilter {
    /// From patterns as a user writes them, separated by commas.
    #[must_use]
    pub fn parse(patterns: &str) -> Self {
        Self { patterns: patterns.split(',').map(str::trim).filter(|p| !p.is_empty()).map(str::to_owned).collect() }
    }

    /// Whether calls of a service are recorded: the last pattern that matches decides.
    #[must_use]
    pub fn wants(&self, service: &str) -> bool {
        let all_negative = self.patterns.iter().all(|pattern| pattern.starts_with('!'));
        self.patterns.iter().fold(all_negative, |wanted, pattern| match pattern.strip_prefix('!') {
            Some(pattern) => wanted && !matches(pattern, service),
            None => wanted || matches(pattern, service),
        })
    }
}

/// Traces a kernel's services.
#[derive(Debug)]
pub struct Tracer {
    sink: Box<dyn TraceSink>,
    filter: TraceFilter,
    /// Calls that have not returned, by thread.
    pending: BTreeMap<ThreadId, TraceRecord>,
}

impl Tracer {
    /// Hands the calls that `filter` wants to `sink`.
    #[must_use]
    pub fn new(sink: Box<dyn TraceSink>, filter: TraceFilter) -> Self {
        Self { sink, filter, pending: BTreeMap::new() }
    }

    /// Hands on a call of a function.
    pub(crate) fn record_function(&mut self, record: &FunctionRecord) {
        self.sink.record_function(record);
    }

    /// Hands on a basic block.
    pub(crate) fn record_block(&mut self, record: &BlockRecord) {
        self.sink.record_block(record);
    }

    /// Gives the sink back; calls that never returned are handed to it first.
    #[must_use]
    pub fn finish(mut self) -> Box<dyn TraceSink> {
        for record in std::mem::take(&mut self.pending).into_values() {
            self.sink.record(&record);
        }
        self.sink
    }
}

/// Guest memory as tracing reads it: without rights, and without the faults that a service's reads may cause.
pub(crate) struct Observed<'a>(pub &'a AddressSpace);

impl UserMemory for Observed<'_> {
    fn read_user(&mut self, address: u64, buf: &mut [u8]) -> Result<(), Status> {
        Ok(self.0.read_unchecked(address, buf)?)
    }
    fn write_user(&mut self, _address: u64, _data: &[u8]) -> Result<(), Status> {
        Err(Status::ACCESS_VIOLATION)
    }
}

impl Kernel {
    /// The current thread enters a service.
    pub(crate) fn trace_enter(&mut self, vcpu: &Vcpu<'_>, number: u32, service: &str, slots: &[u64]) {
        let Some(mut tracer) = self.tracer.take() else { return };
        if tracer.filter.wants(service) {
            let mut memory = Observed(vcpu.memory);
            let (thread, time) = (self.scheduler.current, self.clock.elapsed());
            let describe = |handle| self.describe_handle(handle);
            let mut record = TraceRecord::enter(thread, time, number, service, slots, &mut memory, &describe);
            // The stub's own return address: who called the exported service.
            let frame = TrapFrame::read(vcpu.memory, current_frame(vcpu)).ok().filter(TrapFrame::is_user);
            let caller = frame.and_then(|frame| UserPtr::<u64>::new(frame.get(RSP)).read(&mut memory).ok());
            if let Some(caller) = caller {
                record.caller = caller;
                record.module =
                    self.memory.module_at(caller).map(|(base, name)| (name.to_owned(), caller.wrapping_sub(base)));
            }
            if let Some(lost) = tracer.pending.insert(thread, record) {
                tracer.sink.record(&lost);
            }
        }
        self.tracer = Some(tracer);
    }

    /// The current thread returns from a service with its status in RAX.
    pub(crate) fn trace_return(&mut self, vcpu: &Vcpu<'_>) {
        let Some(mut tracer) = self.tracer.take() else { return };
        if let Some(mut record) = tracer.pending.remove(&self.scheduler.current) {
            let status = Status(vcpu.reg(Gpr::Rax) as u32);
            let describe = |handle| self.describe_handle(handle);
            record.leave(status, self.clock.elapsed(), &mut Observed(vcpu.memory), &describe);
            tracer.sink.record(&record);
        }
        self.tracer = Some(tracer);
    }

    /// A service of `thread` is over, blocked, or will not return, as `action` says.
    pub(crate) fn trace_leave(&mut self, vcpu: &Vcpu<'_>, thread: ThreadId, action: GateAction) {
        if self.tracer.is_none() {
            return;
        }
        let current = self.scheduler.current == thread;
        if current && action == GateAction::Resume {
            return self.trace_return(vcpu);
        }
        let blocked = !current && self.scheduler.threads.contains_key(&thread);
        if !blocked
            && let Some(tracer) = &mut self.tracer
            && let Some(record) = tracer.pending.remove(&thread)
        {
            tracer.sink.record(&record);
        }
    }
}

/// Lines of text.
#[derive(Debug)]
pub struct TextSink<W> {
    out: W,
}

/// One JSON object a line.
#[derive(Debug)]
pub struct JsonSink<W> {
    out: W,
}

impl<W: Write> TextSink<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }
}

impl<W: Write> JsonSink<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }
}

impl<W: Write + fmt::Debug> TraceSink for TextSink<W> {
    fn record(&mut self, record: &TraceRecord) {
        // A reader that went away is no reason to stop the guest.
        let _ = writeln!(self.out, "{record}");
    }
    fn record_function(&mut self, record: &FunctionRecord) {
        let _ = writeln!(self.out, "{record}");
    }
    fn record_block(&mut self, record: &BlockRecord) {
        let _ = writeln!(self.out, "{record}");
    }
}

impl<W: Write + fmt::Debug> TraceSink for JsonSink<W> {
    fn record(&mut self, record: &TraceRecord) {
        if let Ok(line) = serde_json::to_string(record) {
            let _ = writeln!(self.out, "{line}");
        }
    }
    fn record_function(&mut self, record: &FunctionRecord) {
        if let Ok(line) = serde_json::to_string(record) {
            let _ = writeln!(self.out, "{line}");
        }
    }
    fn record_block(&mut self, record: &BlockRecord) {
        if let Ok(line) = serde_json::to_string(record) {
            let _ = writeln!(self.out, "{line}");
        }
    }
}

/// Counts of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounts {
    /// Calls.
    pub calls: u64,
    /// Of these, with an error status.
    pub errors: u64,
    /// 100 ns spent from entry to return.
    pub time: u64,
}

/// Counts by service.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// By name.
    pub services: BTreeMap<String, ServiceCounts>,
}

impl TraceSink for Summary {
    fn record(&mut self, record: &TraceRecord) {
        let counts = self.services.entry(record.service.clone()).or_default();
        counts.calls += 1;
        counts.errors += u64::from(record.status.is_some_and(|status| Status(status).is_error()));
        counts.time += record.duration;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<_> = self.services.iter().collect();
        rows.sort_by_key(|&(name, counts)| (std::cmp::Reverse(counts.calls), name));
        let mut text = format!("{:>9} {:>9} {:>12} service\n", "calls", "errors", "us");
        let mut total = ServiceCounts::default();
        for (name, counts) in rows {
            writeln!(text, "{:>9} {:>9} {:>12} {name}", counts.calls, counts.errors, counts.time / 10)?;
            total.calls += counts.calls;
            total.errors += counts.errors;
            total.time += counts.time;
        }
        write!(f, "{text}{:>9} {:>9} {:>12} total", total.calls, total.errors, total.time / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strings::utf16_bytes;
    use crate::user_ptr::{GuestValue as _, TestMemory};

    fn memory() -> TestMemory {
        let mut memory = TestMemory { base: 0x1000, bytes: vec![0; 0x400] };
        let text = utf16_bytes("\\??\\C:\\a\"b");
        memory.write_user(0x1200, &text).unwrap();
        let name = UnicodeString { length: text.len() as u16, maximum_length: text.len() as u16, buffer: 0x1200 };
        memory.write_user(0x1100, &name.to_vec()).unwrap();
        let attributes = RawObjectAttributes { length: 0x30, object_name: 0x1100, ..Default::default() };
        memory.write_user(0x1000, &attributes.to_vec()).unwrap();
        memory
    }

    #[test]
    fn calls_are_decoded() {
        let mut memory = memory();
        let describe = |handle: Handle| (handle == Handle(0x44)).then(|| "File".to_owned());
        let slots = [0x1300, 0xFFFF_FFFF_0012_0089, 0x1000, 0x1310, 0, 0x80, 1, 1, 0x60, 0, 0];
        let mut record = TraceRecord::enter(8, 12_345_670, 0x55, "NtCreateFile", &slots, &mut memory, &describe);
        memory.write_user(0x1300, &0x44u64.to_le_bytes()).unwrap();
        memory.write_user(0x1318, &1u64.to_le_bytes()).unwrap();
        record.leave(Status::SUCCESS, 12_345_770, &mut memory, &describe);
        record.module = Some(("ntdll.dll".to_owned(), 0x1234));
        assert_eq!(
            record.to_string(),
            "    8 1.234567 NtCreateFile(FileHandle=0x44 File, DesiredAccess=0x120089, \
             ObjectAttributes=\"\\\\??\\\\C:\\\\a\\\"b\", IoStatusBlock={information 0x1}, AllocationSize=0, \
             FileAttributes=0x80, ShareAccess=0x1, CreateDisposition=1, CreateOptions=0x60, EaBuffer=0, EaLength=0) \
             = STATUS_SUCCESS  [ntdll.dll+0x1234]"
        );
        let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert_eq!(json["service"], "NtCreateFile");
        assert_eq!(json["arguments"][2]["text"], "\"\\\\??\\\\C:\\\\a\\\"b\"");
        assert_eq!((json["duration"].as_u64(), json["result"].as_str()), (Some(100), Some("STATUS_SUCCESS")));
    }

    #[test]
    fn wild_pointers_and_unknown_services_are_shown_as_numbers() {
        let mut memory = memory();
        let slots = [u64::MAX - 7, u64::MAX, 0xDEAD_0000, 0x1000];
        let record = TraceRecord::enter(1, 0, 1, "NtOpenFile", &slots, &mut memory, &|_| None);
        assert!(record.to_string().contains("ObjectAttributes=0xdead0000"));
        assert!(record.to_string().ends_with("= ?"));
        let record = TraceRecord::enter(1, 0, 1, "NtNobodyKnows", &slots, &mut memory, &|_| None);
        assert_eq!(record.arguments.len(), 4);
    }

    #[test]
    fn changed_values_are_shown_before_and_after() {
        let mut memory = memory();
        memory.write_user(0x1308, &0x10u64.to_le_bytes()).unwrap();
        let slots = [u64::MAX, 0x1300, 0, 0x1308, 0x3000, 4];
        let mut record = TraceRecord::enter(1, 0, 1, "NtAllocateVirtualMemory", &slots, &mut memory, &|_| None);
        memory.write_user(0x1300, &0x5_0000u64.to_le_bytes()).unwrap();
        memory.write_user(0x1308, &0x1000u64.to_le_bytes()).unwrap();
        record.leave(Status::SUCCESS, 0, &mut memory, &|_| None);
        let text = record.to_string();
        assert!(text.contains("ProcessHandle=current process, BaseAddress=[0x0]->[0x50000]"), "{text}");
        assert!(text.contains("RegionSize=[0x10]->[0x1000]"), "{text}");
    }

    #[test]
    fn filters() {
        for (patterns, service, wanted) in [
            ("", "NtClose", true),
            ("NtClose", "NtClose", true),
            ("NtClose", "NtOpenFile", false),
            ("*File, !NtReadFile", "NtReadFile", false),
            ("*file,!NtReadFile", "NtOpenFile", true),
            ("!NtQuery*", "NtQueryKey", false),
            ("!NtQuery*", "NtClose", true),
            ("!*", "NtClose", false),
        ] {
            assert_eq!(TraceFilter::parse(patterns).wants(service), wanted, "{patterns} {service}");
        }
    }

    #[test]
    fn summaries_count() {
        let mut summary = Summary::default();
        let mut memory = memory();
        for status in [Status::SUCCESS, Status::INVALID_HANDLE] {
            let mut record = TraceRecord::enter(1, 0, 1, "NtClose", &[4], &mut memory, &|_| None);
            record.leave(status, 30, &mut memory, &|_| None);
            summary.record(&record);
        }
        assert_eq!(summary.services["NtClose"], ServiceCounts { calls: 2, errors: 1, time: 60 });
        assert!(summary.to_string().ends_with("2         1            6 total"), "{summary}");
    }
}
