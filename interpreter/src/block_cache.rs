//! Decoded basic blocks, found by address and processor mode.
//!
//! A block never crosses into a second page except with its last instruction, so invalidation by page finds it. Blocks
//! live in slots; a direct-mapped table in front of the hash map and a successor hint in each block make the common
//! look-up one comparison. Hints may be stale: a slot's key says what it holds now.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl};
use lstar_arch::{
    CpuState, Exception, GuestMemory, Hooked, HookedCode, PAGE_SIZE, Privilege, SegmentIndex, Vendor, is_canonical,
};

use crate::decode::Decoded;

/// Instructions in a block at most.
const BLOCK_LIMIT: usize = 64;
/// Bytes fetched at once when decoding starts.
const FETCH_LIMIT: usize = 256;
/// Longest instruction (SDM vol. 2, 2.3.11).
const INSTRUCTION_LIMIT: usize = 15;
const DIRECT_BITS: u32 = 14;
/// Blocks kept at most; beyond that everything is dropped and decoded again.
const CACHE_LIMIT: usize = 1 << 17;

/// What a block is found by: its RIP with the mode in the bits that canonical addresses leave free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(u64);

impl Key {
    /// Belongs to no block.
    const EMPTY: Self = Self(u64::MAX);
    /// Any RIP that is not canonical: never found, and cannot be decoded.
    const NOT_CANONICAL: Self = Self(u64::MAX - 1);

    /// The key of the code at RIP.
    #[inline]
    pub fn of(cpu: &CpuState) -> Self {
        // SYSRET of an AMD processor can load such a RIP; its upper bits must not be taken for the mode.
        if !is_canonical(cpu.rip) {
            return Self::NOT_CANONICAL;
        }
        let cs = cpu.segment(SegmentIndex::Cs);
        Self::new(cpu.rip, u64::from(cs.attributes >> 13 & 3), cpu.cpl == 3)
    }

    /// `size` is CS.L, and CS.D as bit 1.
    fn new(rip: u64, size: u64, user: bool) -> Self {
        let mode = size << 1 | u64::from(user);
        Self(rip & ((1 << 56) - 1) | mode << 56)
    }

    fn direct_index(self) -> usize {
        ((self.0 ^ self.0 >> DIRECT_BITS ^ self.0 >> 56) & ((1 << DIRECT_BITS) - 1)) as usize
    }
}

/// Linear addresses of the first byte and behind the last one.
type Span = (u64, u64);

/// A slot for a basic block.
#[derive(Debug)]
pub(crate) struct Block {
    key: Key,
    span: Span,
    pub instructions: Box<[Decoded]>,
    /// How often the block was executed.
    pub visits: u32,
    /// Slot of the block that followed last time.
    pub successor: u32,
    /// Whether it begins at a stop. Then `visits` is beyond every threshold.
    pub stops: bool,
    /// Whether it ends in a near jump to a computed target.
    pub jumps_indirectly: bool,
    /// Where that jump went, with how often: the first few targets only.
    targets: Vec<(u64, u32)>,
}

/// All decoded blocks.
#[derive(Debug)]
pub(crate) struct BlockCache {
    slots: Vec<Block>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    by_page: HashMap<u64, Vec<u32>>,
    direct: Box<[u32]>,
    /// CS base that compatibility-mode blocks were decoded with.
    code_base: u64,
    /// Spans of executed blocks that are not kept any more, if somebody wants to know.
    executed: Option<HashSet<Span>>,
    /// Values of RIP at which blocks begin that are not to be executed.
    stops: Stops,
}

/// See [`BlockCache::stops_at`].
#[derive(Debug, Default)]
struct Stops {
    single: BTreeSet<u64>,
    hooked: Arc<HookedCode>,
}

impl Stops {
    fn is_empty(&self) -> bool {
        self.single.is_empty() && self.hooked.is_empty()
    }

    fn contains(&self, rip: u64) -> bool {
        self.single.contains(&rip) || !self.hooked.is_empty() && self.hooked.at(rip).is_some()
    }
}

impl Block {
    /// Most targets remembered of one jump.
    const TARGETS: usize = 256;

    /// Takes note of where the block's indirect jump went.
    pub fn note_target(&mut self, rip: u64) {
        if let Some((_, count)) = self.targets.iter_mut().find(|(target, _)| *target == rip) {
            *count = count.saturating_add(1);
        } else if self.targets.len() < Self::TARGETS {
            self.targets.push((rip, 1));
        }
    }
}

impl BlockCache {
    pub fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            by_page: HashMap::new(),
            direct: vec![0; 1 << DIRECT_BITS].into_boxed_slice(),
            code_base: 0,
            executed: None,
            stops: Stops::default(),
        }
    }

    /// Whether a stop is set at `rip`.
    pub fn stops_at(&self, rip: u64) -> bool {
        self.stops.contains(rip)
    }

    /// Sets or removes a stop.
    pub fn set_stop(&mut self, rip: u64, on: bool) {
        let stops = &mut self.stops.single;
        let changed = if on { stops.insert(rip) } else { stops.remove(&rip) };
        if changed {
            self.invalidate(rip, rip.saturating_add(1));
        }
    }

    /// Makes every block in `hooked` one that is not to be executed. Decodings of code whose state changes must be dropped.
    pub fn set_hooked(&mut self, hooked: Arc<HookedCode>) {
        self.stops.hooked = hooked;
    }

    /// Whether control goes on inside a basic block behind the block in a slot, all of which has executed.
    pub fn falls_through(&self, slot: u32) -> bool {
        let last = self.slots.get(slot as usize).and_then(|block| block.instructions.last());
        last.is_some_and(|last| last.insn.flow_control() == FlowControl::Next)
    }

    /// The block in a slot that [`BlockCache::find`] returned.
    #[inline]
    pub fn block_mut(&mut self, slot: u32) -> Option<&mut Block> {
        self.slots.get_mut(slot as usize)
    }

    /// Slot of the block at RIP, decoding it when it is new. `hint` is the slot to try first. The error is the
    /// exception that fetching or decoding its first instruction raises.
    #[inline]
    pub fn find<M: GuestMemory>(&mut self, cpu: &CpuState, mem: &mut M, hint: u32) -> Result<u32, Exception> {
        let key = Key::of(cpu);
        let holds = |slot: u32| self.slots.get(slot as usize).is_some_and(|block| block.key == key);
        if !cpu.is_64bit() && self.code_base != cpu.segment(SegmentIndex::Cs).base {
            self.clear();
            self.code_base = cpu.segment(SegmentIndex::Cs).base;
        } else if holds(hint) {
            return Ok(hint);
        } else if holds(self.direct[key.direct_index()]) {
            return Ok(self.direct[key.direct_index()]);
        }
        self.find_slow(cpu, mem, key)
    }

    #[cold]
    #[inline(never)]
    fn find_slow<M: GuestMemory>(&mut self, cpu: &CpuState, mem: &mut M, key: Key) -> Result<u32, Exception> {
        let slot = match self.by_key.get(&key) {
            Some(slot) => *slot,
            None => {
                let decoded = decode_block(cpu, mem, &self.stops)?;
                if self.by_key.len() >= CACHE_LIMIT {
                    self.clear();
                }
                self.insert(key, self.stops.contains(cpu.rip), decoded)
            }
        };
        self.direct[key.direct_index()] = slot;
        Ok(slot)
    }

    fn insert(&mut self, key: Key, stops: bool, (instructions, span): (Box<[Decoded]>, Span)) -> u32 {
        let jumps_indirectly =
            instructions.last().is_some_and(|last| last.insn.flow_control() == FlowControl::IndirectBranch);
        let visits = if stops { u32::MAX } else { 0 };
        let block =
            Block { key, span, instructions, visits, successor: 0, stops, jumps_indirectly, targets: Vec::new() };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = block;
                slot
            }
            None => {
                self.slots.push(block);
                (self.slots.len() - 1) as u32
            }
        };
        self.by_key.insert(key, slot);
        for page in pages(span.0, span.1) {
            self.by_page.entry(page).or_default().push(slot);
        }
        slot
    }

    /// From now on, executed blocks are remembered when they are dropped.
    pub fn remember_executed(&mut self) {
        self.executed.get_or_insert_default();
    }

    /// Spans of all blocks that were executed since they were decoded, and of those remembered.
    pub fn executed(&self) -> impl Iterator<Item = (u64, u64)> {
        let kept = self.by_key.values().map(|&slot| &self.slots[slot as usize]);
        let kept = kept.filter(|block| block.visits > 0 && !block.stops).map(|block| block.span);
        kept.chain(self.executed.iter().flatten().copied())
    }

    /// Whether a block that begins at `rip` was executed since it was decoded, in 64-bit or in 32-bit mode, as user or not.
    pub fn was_executed(&self, rip: u64, is_64bit: bool, user: bool) -> bool {
        let slot = self.by_key.get(&Key::new(rip, if is_64bit { 1 } else { 2 }, user));
        slot.is_some_and(|&slot| self.slots[slot as usize].visits > 0)
    }

    /// Where the indirect jump at linear address `jump` has gone, most frequent first.
    pub fn indirect_targets(&self, jump: u64) -> Vec<u64> {
        let ends_there = |block: &&Block| {
            block.jumps_indirectly && block.instructions.last().is_some_and(|last| last.insn.ip() == jump)
        };
        let mut counted: Vec<(u64, u32)> = Vec::new();
        for &(target, count) in self.slots.iter().filter(ends_there).flat_map(|block| &block.targets) {
            match counted.iter_mut().find(|(known, _)| *known == target) {
                Some((_, total)) => *total = total.saturating_add(count),
                None => counted.push((target, count)),
            }
        }
        counted.sort_by_key(|&(target, count)| (std::cmp::Reverse(count), target));
        counted.into_iter().map(|(target, _)| target).collect()
    }

    /// Drops the blocks that overlap `start..end` (linear addresses).
    pub fn invalidate(&mut self, start: u64, end: u64) {
        if end <= start {
            return;
        }
        let wanted = pages(start, end);
        let affected: Vec<u64> = if wanted.end() - wanted.start() < self.by_page.len() as u64 {
            wanted.filter(|page| self.by_page.contains_key(page)).collect()
        } else {
            self.by_page.keys().copied().filter(|page| wanted.contains(page)).collect()
        };
        for page in affected {
            let slots = self.by_page.get(&page).cloned().unwrap_or_default();
            for slot in slots {
                let (first, last) = self.slots[slot as usize].span;
                if first < end && start < last {
                    self.remove(slot);
                }
            }
        }
    }

    fn remove(&mut self, slot: u32) {
        let block = &mut self.slots[slot as usize];
        let (key, span) = (block.key, block.span);
        if let Some(executed) = self.executed.as_mut().filter(|_| block.visits > 0 && !block.stops) {
            executed.insert(span);
        }
        block.key = Key::EMPTY;
        block.instructions = Box::default();
        self.by_key.remove(&key);
        for page in pages(span.0, span.1) {
            if let Some(slots) = self.by_page.get_mut(&page) {
                slots.retain(|other| *other != slot);
                if slots.is_empty() {
                    self.by_page.remove(&page);
                }
            }
        }
        self.free.push(slot);
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        if self.executed.is_some() {
            let spans: Vec<Span> = self.executed().collect();
            self.executed.get_or_insert_default().extend(spans);
        }
        self.slots.clear();
        self.free.clear();
        self.by_key.clear();
        self.by_page.clear();
    }
}

fn pages(start: u64, end: u64) -> std::ops::RangeInclusive<u64> {
    start / PAGE_SIZE..=end.saturating_sub(1).max(start) / PAGE_SIZE
}

/// Decodes from RIP up to the first instruction that ends a block, the end of the page, the next stop, or the first
/// instruction that raises.
fn decode_block<M: GuestMemory>(
    cpu: &CpuState,
    mem: &mut M,
    stops: &Stops,
) -> Result<(Box<[Decoded]>, Span), Exception> {
    let mode = DecodeMode::of(cpu);
    let start = mode.linear(cpu.rip);
    let mut buffer = [0; FETCH_LIMIT];
    let in_page = (PAGE_SIZE - start % PAGE_SIZE) as usize;
    let window = buffer.get_mut(..in_page.min(FETCH_LIMIT)).unwrap_or_default();
    let fetched =
        if is_canonical(start) { mem.fetch(start, window, mode.privilege)? } else { return Err(Exception::GP0) };
    let mut decoder = Decoder::with_ip(mode.bitness, window.get(..fetched).unwrap_or_default(), cpu.rip, mode.options);
    let mut instructions = Vec::new();
    while instructions.len() < BLOCK_LIMIT && decoder.can_decode() {
        if !stops.is_empty() && !instructions.is_empty() && stops_before(stops, cpu.rip, decoder.ip()) {
            break;
        }
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        let decoded = Decoded::new(instruction, mode.bitness == 64);
        if decoded.starts_block() && !instructions.is_empty() {
            break;
        }
        let last = decoded.ends_block();
        instructions.push(decoded);
        if last {
            break;
        }
    }
    if instructions.is_empty() {
        instructions.push(decode_one(cpu, mem)?);
    }
    let length: u64 = instructions.iter().map(|decoded| decoded.insn.len() as u64).sum();
    Ok((instructions.into_boxed_slice(), (start, start.wrapping_add(length))))
}

/// Whether the block that begins at `start` ends before `rip`. One of hooked code goes on in hooked code.
fn stops_before(stops: &Stops, start: u64, rip: u64) -> bool {
    match stops.hooked.at(rip) {
        _ if stops.single.contains(&rip) => true,
        Some(Hooked::Instructions) => true,
        Some(Hooked::Blocks) => stops.hooked.at(start).is_none(),
        None => false,
    }
}

/// Decodes the one instruction at RIP, across a page border if need be.
pub(crate) fn decode_one<M: GuestMemory>(cpu: &CpuState, mem: &mut M) -> Result<Decoded, Exception> {
    let mode = DecodeMode::of(cpu);
    let start = mode.linear(cpu.rip);
    if !is_canonical(start) {
        return Err(Exception::GP0);
    }
    let mut buffer = [0; INSTRUCTION_LIMIT];
    let in_page = ((PAGE_SIZE - start % PAGE_SIZE) as usize).min(INSTRUCTION_LIMIT);
    // The next page is touched only when the instruction really reaches into it.
    for limit in [in_page, INSTRUCTION_LIMIT] {
        let fetched = mem.fetch(start, buffer.get_mut(..limit).unwrap_or_default(), mode.privilege)?;
        let bytes = buffer.get(..fetched).unwrap_or_default();
        let mut decoder = Decoder::with_ip(mode.bitness, bytes, cpu.rip, mode.options);
        let instruction = decoder.decode();
        if !instruction.is_invalid() {
            return Ok(Decoded::new(instruction, mode.bitness == 64));
        }
        if decoder.position() >= INSTRUCTION_LIMIT {
            return Err(Exception::GP0);
        }
        if decoder.last_error() != DecoderError::NoMoreBytes {
            return Err(Exception::UD);
        }
        if fetched < limit {
            return Err(missing_byte(mem, start.wrapping_add(fetched as u64), mode.privilege));
        }
    }
    Err(Exception::GP0)
}

/// The exception for an instruction that goes on at `address`, where nothing could be fetched.
fn missing_byte<M: GuestMemory>(mem: &mut M, address: u64, privilege: Privilege) -> Exception {
    if !is_canonical(address) {
        return Exception::GP0;
    }
    match mem.fetch(address, &mut [0], privilege) {
        Err(fault) => fault.into(),
        Ok(_) => Exception::UD,
    }
}

/// What decoding depends on besides the bytes.
struct DecodeMode {
    bitness: u32,
    options: u32,
    privilege: Privilege,
    code_base: u64,
}

impl DecodeMode {
    fn of(cpu: &CpuState) -> Self {
        let cs = cpu.segment(SegmentIndex::Cs);
        let (bitness, code_base) = match (cs.is_long(), cs.is_big()) {
            (true, _) => (64, 0),
            (false, true) => (32, cs.base),
            (false, false) => (16, cs.base),
        };
        let options = match cpu.model.vendor {
            Vendor::Intel => DecoderOptions::NONE,
            Vendor::Amd => DecoderOptions::AMD,
        };
        Self { bitness, options, privilege: cpu.privilege(), code_base }
    }

    fn linear(&self, rip: u64) -> u64 {
        if self.bitness == 64 { rip } else { rip.wrapping_add(self.code_base) & 0xFFFF_FFFF }
    }
}
