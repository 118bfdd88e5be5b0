//! Guest code for the translator.

use lstar_arch::{GuestMemory, Privilege};
use lstar_interpreter::Interpreter;
use lstar_translator::CodeSource;
use lstar_translator::abi::Mode;

use crate::code_store::GuestCode;
use crate::memory::AddressSpace;

/// Reads code for the translator.
pub(super) struct Fetcher<'a> {
    pub memory: &'a mut AddressSpace,
    /// Has seen where indirect jumps go.
    pub interpreter: &'a Interpreter,
    /// See [`crate::MachineConfig::mistranslate`].
    pub mistranslate: Option<fn(u64, &mut [u8], usize)>,
    /// The translator's limit.
    pub region_limit: usize,
}

impl Fetcher<'_> {
    /// Whether executable memory holds these bytes; if so, changes will be noticed.
    pub fn holds(&mut self, address: u64, bytes: &[u8], mode: Mode) -> bool {
        let mut buf = vec![0; bytes.len()];
        // Looking first keeps pages unprotected that hold something else.
        self.memory.read_unchecked(address, &mut buf).is_ok()
            && buf == bytes
            && self.fetch(address, &mut buf, mode) == bytes.len()
    }
}

impl CodeSource for Fetcher<'_> {
    fn fetch(&mut self, address: u64, buf: &mut [u8], mode: Mode) -> usize {
        let privilege = match mode {
            Mode::User => Privilege::User,
            Mode::Kernel => Privilege::Supervisor,
        };
        let count = self.memory.fetch(address, buf, privilege).unwrap_or(0);
        if let Some(mistranslate) = self.mistranslate {
            mistranslate(address, &mut buf[..count], self.region_limit);
        }
        count
    }

    fn indirect_targets(&mut self, jump: u64, _: Mode) -> Vec<u64> {
        self.interpreter.indirect_targets(jump)
    }
}

impl GuestCode for Fetcher<'_> {
    fn read(&mut self, address: u64, buf: &mut [u8], mode: Mode) -> bool {
        self.fetch(address, buf, mode) == buf.len()
    }
}
