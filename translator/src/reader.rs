//! Reading and decoding guest code, and remembering what was read.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};
use lstar_arch::{Hooked, HookedCode, PAGE_SIZE};
use rustc_hash::FxHashMap;

use crate::CodeSource;
use crate::abi::Mode;

/// Longest x86 instruction (SDM vol. 2, 2.3.11).
const MAX_INSTRUCTION: usize = 15;

/// Everything that discovery asked of a [`CodeSource`], to be asked again on another thread.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pages: FxHashMap<u64, Vec<u8>>,
    targets: FxHashMap<u64, Vec<u64>>,
    /// On those pages.
    stops: BTreeSet<u64>,
    hooked: Arc<HookedCode>,
    /// Code that was not executed yet.
    cold: BTreeSet<u64>,
}

impl Snapshot {
    /// Guest addresses of the pages in it.
    pub fn pages(&self) -> impl Iterator<Item = u64> {
        self.pages.keys().copied()
    }
}

impl CodeSource for Snapshot {
    fn fetch(&mut self, address: u64, buf: &mut [u8], _: Mode) -> usize {
        let page = address & !(PAGE_SIZE - 1);
        let rest = self.pages.get(&page).and_then(|bytes| bytes.get((address - page) as usize..)).unwrap_or_default();
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        count
    }

    fn indirect_targets(&mut self, jump: u64, _: Mode) -> Vec<u64> {
        self.targets.get(&jump).cloned().unwrap_or_default()
    }

    fn is_cold(&mut self, rip: u64, _: Mode) -> bool {
        self.cold.contains(&rip)
    }

    fn stops(&mut self, range: Range<u64>) -> Vec<u64> {
        self.stops.range(range).copied().collect()
    }

    fn hooked(&mut self) -> Arc<HookedCode> {
        Arc::clone(&self.hooked)
    }
}

/// Reads code page by page.
pub(crate) struct Reader<'a> {
    source: &'a mut dyn CodeSource,
    /// Mode of the code.
    pub mode: Mode,
    seen: Snapshot,
    /// Whether the region is one of hooked code; others have none in them.
    pub in_hooked_code: bool,
}

impl<'a> Reader<'a> {
    /// Reads the code that `source` has for `mode`.
    pub fn new(source: &'a mut dyn CodeSource, mode: Mode) -> Self {
        let seen = Snapshot { hooked: source.hooked(), ..Snapshot::default() };
        Self { source, mode, seen, in_hooked_code: false }
    }

    /// All that was read.
    pub fn into_snapshot(self) -> Snapshot {
        self.seen
    }

    fn page(&mut self, page: u64) -> &[u8] {
        let (source, mode) = (&mut *self.source, self.mode);
        let Snapshot { pages, stops, .. } = &mut self.seen;
        pages.entry(page).or_insert_with(|| {
            let mut bytes = vec![0; PAGE_SIZE as usize];
            let count = source.fetch(page, &mut bytes, mode);
            bytes.truncate(count);
            stops.extend(source.stops(page..page.saturating_add(PAGE_SIZE)));
            bytes
        })
    }

    /// Whether there is hooked code at `rip`.
    pub fn hooked_at(&self, rip: u64) -> Option<Hooked> {
        if self.seen.hooked.is_empty() { None } else { self.seen.hooked.at(rip) }
    }

    /// Decodes the instruction at `rip`; `None` when its bytes cannot be fetched or mean nothing, or where no translated code
    /// is wanted.
    pub fn decode(&mut self, rip: u64) -> Option<Instruction> {
        /// The last page below 4 GiB, behind which EIP wraps.
        const LAST_PAGE: u64 = (1 << 32) - PAGE_SIZE;
        let bitness = if self.mode.is_32bit() { 32 } else { 64 };
        if self.mode.is_32bit() && rip >= LAST_PAGE {
            return None;
        }
        let page = rip & !(PAGE_SIZE - 1);
        let offset = (rip - page) as usize;
        self.page(page);
        if self.seen.stops.contains(&rip) || !self.in_hooked_code && self.hooked_at(rip).is_some() {
            return None;
        }
        let bytes = self.page(page).get(offset..)?;
        let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
        let insn = decoder.decode();
        if !insn.is_invalid() {
            return Some(if depends_on_vendor(&insn, bytes) { as_amd_does(bytes, rip, bitness) } else { insn });
        }
        if decoder.last_error() != DecoderError::NoMoreBytes || bytes.len() >= MAX_INSTRUCTION {
            return None;
        }
        let mut joined = bytes.to_vec();
        if offset + joined.len() < PAGE_SIZE as usize {
            return None;
        }
        let rest = self.page(page.checked_add(PAGE_SIZE)?);
        joined.extend_from_slice(&rest[..rest.len().min(MAX_INSTRUCTION)]);
        let insn = Decoder::with_ip(bitness, &joined, rip, DecoderOptions::NONE).decode();
        let insn = if depends_on_vendor(&insn, &joined) { as_amd_does(&joined, rip, bitness) } else { insn };
        (!insn.is_invalid()).then_some(insn)
    }

    /// Whether the source knows that the code at `rip` was not executed yet.
    pub fn is_cold(&mut self, rip: u64) -> bool {
        let cold = self.source.is_cold(rip, self.mode);
        if cold {
            self.seen.cold.insert(rip);
        }
        cold
    }

    /// What the source knows of where the indirect jump at `rip` goes, most frequent target first.
    pub fn indirect_targets(&mut self, rip: u64) -> Vec<u64> {
        let (source, mode) = (&mut *self.source, self.mode);
        self.seen.targets.entry(rip).or_insert_with(|| source.indirect_targets(rip, mode)).clone()
    }
}

/// The instruction as AMD's processors understand it. A transfer that then is one of 16 bits is left to the interpreter.
fn as_amd_does(bytes: &[u8], rip: u64, bitness: u32) -> Instruction {
    Decoder::with_ip(bitness, bytes, rip, DecoderOptions::AMD).decode()
}

/// Whether it is a control transfer with an operand-size prefix: in 64-bit code AMD's processors heed it, Intel's do not (AMD64
/// Architecture Programmer's Manual vol. 3, 1.2.2 and Jcc).
fn depends_on_vendor(insn: &Instruction, bytes: &[u8]) -> bool {
    const OPERAND_SIZE: u8 = 0x66;
    let is_prefix = |byte: &&u8| matches!(**byte, 0x26 | 0x2E | 0x36 | 0x3E | 0x64..=0x67 | 0xF0 | 0xF2 | 0xF3);
    insn.flow_control() != FlowControl::Next && bytes.iter().take_while(is_prefix).any(|&byte| byte == OPERAND_SIZE)
}
