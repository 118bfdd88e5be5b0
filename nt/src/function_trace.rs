//! Tracing of calls of exported functions: which, with which arguments, from where. Address hooks see the calls, so that
//! code elsewhere runs as fast as without.

use std::collections::BTreeMap;
use std::fmt;

use lstar_arch::Gpr;
use lstar_runtime::{AddressSpace, Registers, SpaceId, Vcpu};
use serde::Serialize;

use crate::io::directory::matches;
use crate::kernel::Kernel;
use crate::memory::exports::ImageReader;
use crate::memory::section::Section;
use crate::trace::Observed;
use crate::user_ptr::UserMemory;

/// Index of the export directory.
const EXPORT_DIRECTORY: usize = 0;
/// Functions watched at most.
const MOST_FUNCTIONS: usize = 1 << 16;
/// Longest text shown of what an argument points to, in bytes.
const MAX_TEXT: u64 = 256;

/// Chooses functions by module and name.
#[derive(Clone, Debug, Default)]
pub struct FunctionFilter {
    /// Whether it takes in, the module's pattern, the name's pattern.
    patterns: Vec<(bool, String, String)>,
}

impl FunctionFilter {
    /// From patterns as a user writes them, separated by commas: `module!name` or `name`, with `*` and `?`; a leading `!`
    /// takes out.
    #[must_use]
    pub fn parse(patterns: &str) -> Self {
        let patterns = patterns.split(',').map(str::trim).filter(|pattern| !pattern.is_empty()).map(|pattern| {
            let (taken, pattern) = pattern.strip_prefix('!').map_or((true, pattern), |pattern| (false, pattern));
            let (module, name) = pattern.split_once('!').unwrap_or(("*", pattern));
            (taken, module.to_owned(), name.to_owned())
        });
        Self { patterns: patterns.collect() }
    }

    /// Whether calls of a function are recorded: the last pattern that matches decides. `.dll` may be left out.
    #[must_use]
    pub fn wants(&self, module: &str, name: &str) -> bool {
        let stem = module.rsplit_once('.').map_or(module, |(stem, _)| stem);
        let hit = |pattern: &str, text: &str| matches(pattern, text);
        self.patterns
            .iter()
            .rev()
            .find(|(_, m, n)| (hit(m, module) || hit(m, stem)) && hit(n, name))
            .is_some_and(|(taken, ..)| *taken)
    }
}

/// What is known of the functions that are watched.
#[derive(Debug, Default)]
pub struct FunctionTracer {
    filter: FunctionFilter,
    functions: BTreeMap<(SpaceId, u64), (String, String)>,
}

/// One argument: the four that are passed in registers are shown, whether the function has as many or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PassedArgument {
    /// The register's value.
    pub value: u64,
    /// Text that it points to, if that looks like some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// A call of a function.
#[derive(Clone, Debug, Serialize)]
pub struct FunctionRecord {
    /// UniqueThread of the caller.
    pub thread: u32,
    /// 100 ns since boot.
    pub time: u64,
    /// The function's module.
    pub module: String,
    /// Its name.
    pub function: String,
    /// RCX, RDX, R8, R9.
    pub arguments: [PassedArgument; 4],
    /// The return address.
    pub caller: u64,
    /// Module that called, and offset in it.
    pub caller_module: Option<(String, u64)>,
}

impl fmt::Display for FunctionRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.time / 10_000_000, self.time / 10 % 1_000_000);
        write!(f, "{:>5} {seconds}.{micros:06} {}!{}(", self.thread, self.module, self.function)?;
        for (index, argument) in self.arguments.iter().enumerate() {
            let separator = if index > 0 { ", " } else { "" };
            match &argument.text {
                Some(text) => write!(f, "{separator}{text}")?,
                None => write!(f, "{separator}{:#x}", argument.value)?,
            }
        }
        match &self.caller_module {
            Some((module, offset)) => write!(f, ")  [{module}+{offset:#x}]"),
            None => write!(f, ")  [{:#x}]", self.caller),
        }
    }
}

/// Text at an address, if there seems to be some: printable and terminated, in UTF-16 or ASCII.
fn text_at(memory: &mut impl UserMemory, address: u64) -> Option<String> {
    const PAGE: u64 = 0x1000;
    if address < crate::memory::LOWEST_USER_ADDRESS {
        return None;
    }
    let mut bytes = vec![0; MAX_TEXT.min(PAGE - address % PAGE) as usize];
    memory.read_user(address, &mut bytes).ok()?;
    let printable = |c: char| c < '\u{500}' && (!c.is_control() || matches!(c, '\t' | '\n' | '\r'));
    let wide: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
    let end = wide.iter().position(|&unit| unit == 0).filter(|&end| end >= 2);
    let text = end.and_then(|end| String::from_utf16(&wide[..end]).ok()).filter(|text| text.chars().all(printable));
    if let Some(text) = text {
        return Some(format!("L{text:?}"));
    }
    let end = bytes.iter().position(|&byte| byte == 0).filter(|&end| end >= 3)?;
    let text = bytes[..end].iter().all(|byte| byte.is_ascii() && printable(char::from(*byte)));
    text.then(|| format!("{:?}", String::from_utf8_lossy(&bytes[..end])))
}

impl Kernel {
    /// From now on, calls of exported functions that `filter` wants are handed to the tracer: those of images mapped
    /// already, and of all that follow.
    pub fn trace_functions(&mut self, space: &mut AddressSpace, filter: FunctionFilter) {
        self.function_tracer = Some(FunctionTracer { filter, functions: BTreeMap::new() });
        let images: Vec<_> = self.memory.images().map(|(start, section)| (start, section.clone())).collect();
        for (start, section) in images {
            self.watch_functions(space, start, &section);
        }
    }

    /// Hooks the functions of an image that has been mapped.
    pub(crate) fn watch_functions(&mut self, space: &mut AddressSpace, start: u64, section: &Section) {
        let Some(tracer) = &mut self.function_tracer else { return };
        let Some(headers) = section.image() else { return };
        let path = section.file.as_ref().map_or("", |file| file.name.as_str());
        let module = path.rsplit('\\').next().unwrap_or(path);
        // An export that lies in the directory itself is the name of another module's (PE format, export address table).
        let forwarders = headers.directory(EXPORT_DIRECTORY).map_or(0..0, |(rva, size)| rva..rva.saturating_add(size));
        let is_code = |rva: u32| {
            let part = headers.parts.iter().find(|part| rva.wrapping_sub(part.rva) < part.size);
            part.is_some_and(|part| part.protection.is_executable())
        };
        for (name, rva) in ImageReader::new(section).exports() {
            let wanted = !forwarders.contains(&rva) && is_code(rva) && tracer.filter.wants(module, &name);
            if wanted && tracer.functions.len() < MOST_FUNCTIONS {
                let address = start + u64::from(rva);
                let place = tracer.functions.entry((space.current_space(), address));
                place.or_insert_with(|| (module.to_owned(), name));
                space.hook_address(address);
            }
        }
    }

    /// RIP has got to a hooked function.
    pub(crate) fn trace_function(&mut self, vcpu: &Vcpu<'_>) {
        let place = (vcpu.memory.current_space(), vcpu.rip());
        let Some((module, function)) = self.function_tracer.as_ref().and_then(|t| t.functions.get(&place)) else {
            return;
        };
        let mut memory = Observed(vcpu.memory);
        let arguments = [Gpr::Rcx, Gpr::Rdx, Gpr::R8, Gpr::R9].map(|register| {
            let value = vcpu.reg(register);
            PassedArgument { value, text: text_at(&mut memory, value) }
        });
        let mut caller = [0; 8];
        // A call without a stack is shown without a caller.
        let _ = memory.read_user(vcpu.reg(Gpr::Rsp), &mut caller);
        let caller = u64::from_le_bytes(caller);
        let record = FunctionRecord {
            thread: self.scheduler.current,
            time: self.clock.elapsed(),
            module: module.clone(),
            function: function.clone(),
            arguments,
            caller,
            caller_module: self.memory.module_at(caller).map(|(base, name)| (name.to_owned(), caller - base)),
        };
        if let Some(tracer) = &mut self.tracer {
            tracer.record_function(&record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strings::utf16_bytes;
    use crate::user_ptr::TestMemory;

    #[test]
    fn filters() {
        for (patterns, module, name, wanted) in [
            ("CreateFileW", "kernel32.dll", "CreateFileW", true),
            ("kernel32!create*", "kernel32.dll", "CreateFileW", true),
            ("kernel32.dll!*", "kernel32.dll", "Sleep", true),
            ("ntdll!*", "kernel32.dll", "Sleep", false),
            ("kernel32!*,!kernel32!Sleep", "kernel32.dll", "Sleep", false),
            ("kernel32!*, !*Sleep*", "kernel32.dll", "SleepEx", false),
            ("", "kernel32.dll", "Sleep", false),
        ] {
            assert_eq!(FunctionFilter::parse(patterns).wants(module, name), wanted, "{patterns} {module}!{name}");
        }
    }

    #[test]
    fn text_is_shown_if_it_is_some() {
        let mut memory = TestMemory { base: 0x2_0000, bytes: vec![0; 0x1000] };
        memory.write_user(0x2_0000, &utf16_bytes("C:\\Données")).unwrap();
        memory.write_user(0x2_0100, b"kernel32.dll\0").unwrap();
        memory.write_user(0x2_0200, &[1, 2, 3, 0]).unwrap();
        memory.write_user(0x2_0FFD, b"abc").unwrap();
        assert_eq!(text_at(&mut memory, 0x2_0000).as_deref(), Some("L\"C:\\\\Données\""));
        assert_eq!(text_at(&mut memory, 0x2_0100).as_deref(), Some("\"kernel32.dll\""));
        for address in [0x2_0200, 0x2_0FFD, 0x2_0300, 4, 0x9_0000, u64::MAX] {
            assert_eq!(text_at(&mut memory, address), None, "{address:#x}");
        }
    }
}
