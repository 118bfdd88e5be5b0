//! Guest code for the translator.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use lstar_arch::{GuestMemory, HookedCode, Privilege};
use lstar_interpreter::Interpreter;
use lstar_translator::CodeSource;
use lstar_translator::abi::Mode;

use crate::code_cache::CodeCache;
use crate::code_store::GuestCode;
use crate::memory::AddressSpace;

/// Reads code for the translator.
pub(super) struct Fetcher<'a> {
    pub memory: &'a mut AddressSpace,
    /// Has seen where indirect jumps go.
    pub interpreter: &'a Interpreter,
    /// See [`crate::MachineConfig::mistranslate`].
    pub mistranslate: Option<fn(u64, &mut [u8], usize)>,
    /// Whether code is interpreted often enough before it is translated to know what is executed.
    pub knows_executed: bool,
    /// Translated code, where it is asked for.
    pub cache: Option<&'a CodeCache>,
    /// The translator's limit.
    pub region_limit: usize,
    /// Where regions end.
    pub stops: &'a BTreeSet<u64>,
    /// Whose hooks regions call.
    pub hooked: &'a Arc<HookedCode>,
    /// Targets of an indirect jump have been asked for, and none is known.
    pub lacks_targets: bool,
}

impl Fetcher<'_> {
    fn has_stop(&self, address: u64, length: usize) -> bool {
        let end = address.saturating_add(length as u64);
        !self.stops.is_empty() && self.stops.range(address..end).next().is_some()
            || !self.hooked.is_empty() && self.hooked.any_in(address, end.saturating_sub(1))
    }

    /// Whether executable memory holds these bytes, and no stop is among them; if so, changes will be noticed.
    pub fn holds(&mut self, address: u64, bytes: &[u8], mode: Mode) -> bool {
        let mut buf = vec![0; bytes.len()];
        // Looking first keeps pages unprotected that hold something else.
        !self.has_stop(address, bytes.len())
            && self.memory.read_unchecked(address, &mut buf).is_ok()
            && buf == bytes
            && self.fetch(address, &mut buf, mode) == bytes.len()
    }
}

impl CodeSource for Fetcher<'_> {
    fn fetch(&mut self, address: u64, buf: &mut [u8], mode: Mode) -> usize {
        let privilege = if mode.is_user() { Privilege::User } else { Privilege::Supervisor };
        let count = self.memory.fetch(address, buf, privilege).unwrap_or(0);
        if let Some(mistranslate) = self.mistranslate {
            mistranslate(address, &mut buf[..count], self.region_limit);
        }
        count
    }

    fn indirect_targets(&mut self, jump: u64, _: Mode) -> Vec<u64> {
        let targets = self.interpreter.indirect_targets(jump);
        self.lacks_targets |= targets.is_empty();
        targets
    }

    fn is_cold(&mut self, rip: u64, mode: Mode) -> bool {
        // What belongs to another region may have been executed there.
        self.knows_executed
            && !self.interpreter.has_executed(rip, !mode.is_32bit(), mode.is_user())
            && !self.cache.is_some_and(|cache| cache.covers(rip, mode))
    }

    fn stops(&mut self, range: Range<u64>) -> Vec<u64> {
        self.stops.range(range).copied().collect()
    }

    fn hooked(&mut self) -> Arc<HookedCode> {
        Arc::clone(self.hooked)
    }
}

impl GuestCode for Fetcher<'_> {
    fn read(&mut self, address: u64, buf: &mut [u8], mode: Mode) -> bool {
        !self.has_stop(address, buf.len()) && self.fetch(address, buf, mode) == buf.len()
    }
}
