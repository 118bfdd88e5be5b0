//! Translated regions: their host code, how guest addresses and link slots lead to it, and what a fault in it means.
//!
//! Host code does not depend on the address space it was translated in, only on the bytes it was translated from. So a
//! region can serve several spaces; what leads to it is kept for each space: its own target tables, entries and pages. A
//! space takes a region of another one over when it has the same bytes at the same addresses. Link slots are part of the
//! code and common to all spaces; on a switch those are pointed elsewhere whose target is another one.

mod arena;
mod evict;

use std::io;
use std::ops::Range;

use lstar_arch::PAGE_SIZE;
use lstar_translator::abi::{Mode, Slot, Target};
use lstar_translator::statemap::StateMap;
use lstar_translator::{CompiledRegion, Site};
use rustc_hash::FxHashMap;

use arena::{CodeArena, TargetTable};

use crate::entry;
use crate::memory::SpaceId;

/// Regions of other spaces with the same entry that are compared with the current space's bytes at most.
const CANDIDATES: usize = 4;

/// UD2.
const UD2: [u8; 2] = [0x0F, 0x0B];

/// What is kept of a region.
#[derive(Debug)]
struct Region {
    entry: u64,
    mode: Mode,
    /// Executable host addresses.
    code: Range<u64>,
    /// Where the link slots begin in it.
    links_offset: u32,
    sites: Vec<Site>,
    /// Guest addresses it was translated from, and what was there.
    source: Vec<(Range<u64>, Box<[u8]>)>,
    map: StateMap,
}

/// What leads to the regions in one address space.
#[derive(Debug)]
struct Map {
    tables: [TargetTable; Mode::COUNT],
    by_entry: FxHashMap<(u64, Mode), usize>,
    by_page: FxHashMap<u64, Vec<usize>>,
}

impl Map {
    fn new() -> Self {
        Self {
            tables: std::array::from_fn(|_| TargetTable::new()),
            by_entry: FxHashMap::default(),
            by_page: FxHashMap::default(),
        }
    }

    /// Makes a region reachable.
    fn add(&mut self, index: usize, region: &Region) {
        for (range, _) in &region.source {
            let first = range.start & !(PAGE_SIZE - 1);
            for page in (first..range.end).step_by(PAGE_SIZE as usize) {
                let regions = self.by_page.entry(page).or_default();
                if regions.last() != Some(&index) {
                    regions.push(index);
                }
            }
        }
        self.by_entry.insert((region.entry, region.mode), index);
        self.tables[region.mode as usize].insert(region.entry, region.code.start);
    }
}

/// All translated code of one machine.
#[derive(Debug)]
pub(crate) struct CodeCache {
    code: CodeArena,
    /// In order of host address.
    regions: Vec<Region>,
    /// Regions of all spaces by entry, newest last.
    known: FxHashMap<(u64, Mode), Vec<usize>>,
    space: SpaceId,
    /// The current space's.
    map: Map,
    others: FxHashMap<SpaceId, Map>,
    /// Addresses of the slots that lead to a target, whether there is code for it or not.
    links: FxHashMap<(u64, Mode), Vec<u64>>,
    /// Code that was overwritten to make a site fault: where and what was there.
    forced: Option<(u64, [u8; 2])>,
}

impl CodeCache {
    pub fn new(size: usize) -> io::Result<Self> {
        Ok(Self {
            code: CodeArena::new(size)?,
            regions: Vec::new(),
            known: FxHashMap::default(),
            space: SpaceId::FIRST,
            map: Map::new(),
            others: FxHashMap::default(),
            links: FxHashMap::default(),
            forced: None,
        })
    }

    /// The target tables of the current space, by mode, for the block.
    pub fn table_pointers(&self) -> [*mut Target; Mode::COUNT] {
        std::array::from_fn(|mode| self.map.tables[mode].pointer())
    }

    /// Makes another space the current one. Only while no translated code of the current one will go on: its frames on
    /// the host stack must all be left.
    pub fn switch_space(&mut self, space: SpaceId) {
        if space == self.space {
            return;
        }
        let next = self.others.remove(&space).unwrap_or_else(Map::new);
        let previous = std::mem::replace(&mut self.map, next);
        for (key, index) in &previous.by_entry {
            match self.map.by_entry.get(key) {
                Some(same) if same == index => {}
                other => {
                    let code = other.map_or_else(entry::miss_slot_address, |&index| self.regions[index].code.start);
                    point_links(&mut self.code, &self.links, *key, code);
                }
            }
        }
        for (key, &index) in self.map.by_entry.iter().filter(|(key, _)| !previous.by_entry.contains_key(key)) {
            point_links(&mut self.code, &self.links, *key, self.regions[index].code.start);
        }
        self.others.insert(self.space, previous);
        self.space = space;
    }

    /// Forgets what led to regions in a space that is gone; the regions stay for others.
    pub fn forget_space(&mut self, space: SpaceId) {
        self.others.remove(&space);
    }

    /// Host code of the region that starts at `rip`. Found ones enter the target table.
    pub fn lookup(&mut self, rip: u64, mode: Mode) -> Option<u64> {
        let table = &mut self.map.tables[mode as usize];
        // The table's empty entries match the last address of all, and hold no code.
        if let Some(code) = table.get(rip).filter(|&code| code != 0) {
            return Some(code);
        }
        let &index = self.map.by_entry.get(&(rip, mode))?;
        let code = self.regions[index].code.start;
        table.insert(rip, code);
        Some(code)
    }

    /// Whether there may be code of other spaces to adopt.
    pub fn knows_other_spaces(&self) -> bool {
        !self.others.is_empty() || self.space != SpaceId::FIRST
    }

    /// Takes over a region that another space has for `rip`, if `same` says that the current space holds the same bytes
    /// (and watches them from then on).
    pub fn adopt(&mut self, rip: u64, mode: Mode, mut same: impl FnMut(u64, &[u8]) -> bool) -> Option<u64> {
        let key = (rip, mode);
        let candidates = self.known.get(&key)?;
        let fits = |&&index: &&usize| self.regions[index].source.iter().all(|(range, bytes)| same(range.start, bytes));
        let &index = candidates.iter().rev().take(CANDIDATES).find(fits)?;
        let region = &self.regions[index];
        self.map.add(index, region);
        let code = region.code.start;
        point_links(&mut self.code, &self.links, key, code);
        Some(code)
    }

    /// Target RIP of a slot.
    pub fn slot_rip(&self, slot: u64) -> u64 {
        self.code.slot_rip(slot)
    }

    /// Takes a region of a space in and links it; `read` reads what it was translated from. One that is not `plain` depends on
    /// more than that, and is not taken over by other spaces, nor found again once it is dropped. `None` when the code
    /// memory is full.
    pub fn insert(
        &mut self,
        space: SpaceId,
        region: CompiledRegion,
        plain: bool,
        mut read: impl FnMut(u64, &mut [u8]),
    ) -> Option<u64> {
        let start = self.code.push(&region.code)?;
        let key = (region.entry, region.mode);
        let index = self.regions.len();
        let source = region.ranges.iter().map(|range| {
            let mut bytes = vec![0; (range.end - range.start) as usize].into_boxed_slice();
            read(range.start, &mut bytes);
            (range.clone(), bytes)
        });
        let (links, links_offset) = (region.links, region.links_offset);
        let region = Region {
            entry: region.entry,
            mode: region.mode,
            code: start..start + region.code.len() as u64,
            links_offset,
            source: source.collect(),
            sites: region.sites,
            map: region.map,
        };
        let current = space == self.space;
        if current {
            self.map.add(index, &region);
        } else {
            self.others.entry(space).or_insert_with(Map::new).add(index, &region);
        }
        self.regions.push(region);
        if plain {
            self.known.entry(key).or_default().push(index);
        }
        for (number, &rip) in (0u64..).zip(&links) {
            let address = start + u64::from(links_offset) + number * size_of::<Slot>() as u64;
            let target = (rip, key.1);
            let linked = self.map.by_entry.get(&target).map(|&index| self.regions[index].code.start);
            self.code.write_slot(address, Slot { code: linked.unwrap_or_else(entry::miss_slot_address), rip });
            self.links.entry(target).or_default().push(address);
        }
        if current {
            point_links(&mut self.code, &self.links, key, start);
        }
        Some(start)
    }

    /// Whether the instruction at `rip` belongs to a region of the current space.
    pub fn covers(&self, rip: u64, mode: Mode) -> bool {
        let regions = self.map.by_page.get(&(rip & !(PAGE_SIZE - 1))).map_or(&[][..], |regions| regions);
        regions
            .iter()
            .map(|&index| &self.regions[index])
            .any(|region| region.mode == mode && region.source.iter().any(|(range, _)| range.contains(&rip)))
    }

    /// Drops the regions translated from any page of `range` in a space, or in all; returns how many. Their host code
    /// stays in place, since it may be on the stack, but nothing in that space leads to it any more.
    pub fn invalidate(&mut self, space: Option<SpaceId>, range: &Range<u64>) -> u64 {
        let mut dropped = 0;
        if space.is_none_or(|space| space == self.space) {
            let (code, links) = (&mut self.code, &self.links);
            dropped += drop_regions(&mut self.map, &self.regions, range, |key| {
                point_links(code, links, key, entry::miss_slot_address());
            });
        }
        for (&other, map) in &mut self.others {
            if space.is_none_or(|space| space == other) {
                // Its links are set when it becomes current.
                dropped += drop_regions(map, &self.regions, range, |_| {});
            }
        }
        dropped
    }

    /// Drops everything. Only while no translated code is on the stack.
    pub fn clear(&mut self) {
        self.code.clear();
        self.map.tables.iter_mut().for_each(TargetTable::clear);
        self.map.by_entry.clear();
        self.map.by_page.clear();
        self.others.clear();
        self.regions.clear();
        self.known.clear();
        self.links.clear();
        self.forced = None;
    }

    /// The site at a host address, if it is one, and the map it belongs to. Async-signal-safe.
    pub fn site_at(&self, pc: u64) -> Option<(&Site, &StateMap)> {
        let index = self.regions.partition_point(|region| region.code.end <= pc);
        let region = self.regions.get(index)?;
        let offset = u32::try_from(pc.checked_sub(region.code.start)?).ok()?;
        let site = region.sites.binary_search_by_key(&offset, |site| site.host_offset).ok()?;
        Some((&region.sites[site], &region.map))
    }

    /// Host code and guest entry of all regions, those that are not in use any more included.
    pub fn regions(&self) -> impl Iterator<Item = (Range<u64>, u64)> {
        self.regions.iter().map(|region| (region.code.clone(), region.entry))
    }

    /// Number of fault sites in regions that are in use.
    pub fn site_count(&self) -> usize {
        self.map.by_entry.values().map(|&index| self.regions[index].sites.len()).sum()
    }

    /// Makes site `number` of those in use fault whenever it is reached, or none any more. Only while no translated code runs.
    pub fn force_fault(&mut self, number: Option<usize>) {
        if let Some((address, bytes)) = self.forced.take() {
            self.code.patch(address, bytes);
        }
        let Some(mut number) = number else { return };
        let mut indices: Vec<usize> = self.map.by_entry.values().copied().collect();
        indices.sort_unstable();
        for index in indices {
            let region = &self.regions[index];
            let Some(site) = region.sites.get(number) else {
                number -= region.sites.len();
                continue;
            };
            let address = region.code.start + u64::from(site.host_offset);
            let Some(old) = self.code.patch(address, UD2) else { return };
            if old == UD2 {
                // A check traps here. The jump that leads here is made unconditional: 0F 8x becomes NOP, JMP.
                let lead =
                    (region.code.start..region.code.end - 6).find(|&jump| self.code.jump_target(jump) == Some(address));
                if let Some((jump, old)) = lead.and_then(|jump| Some((jump, self.code.patch(jump, [0x90, 0xE9])?))) {
                    self.forced = Some((jump, old));
                }
            } else {
                self.forced = Some((address, old));
            }
            return;
        }
    }
}

/// Points all slots for a target at other code.
fn point_links(arena: &mut CodeArena, links: &FxHashMap<(u64, Mode), Vec<u64>>, key: (u64, Mode), code: u64) {
    for &slot in links.get(&key).into_iter().flatten() {
        arena.write_slot(slot, Slot { code, rip: key.0 });
    }
}

/// Takes the regions translated from any page of `range` out of a map; calls `unlink` for each.
fn drop_regions(map: &mut Map, regions: &[Region], range: &Range<u64>, mut unlink: impl FnMut((u64, Mode))) -> u64 {
    let mut dropped = 0;
    let first = range.start & !(PAGE_SIZE - 1);
    let pages: Vec<u64> = if (range.end.saturating_sub(first) / PAGE_SIZE) as usize > map.by_page.len() {
        map.by_page.keys().copied().filter(|page| (first..range.end).contains(page)).collect()
    } else {
        (first..range.end).step_by(PAGE_SIZE as usize).collect()
    };
    for page in pages {
        for index in map.by_page.remove(&page).unwrap_or_default() {
            let region = &regions[index];
            let key = (region.entry, region.mode);
            if map.by_entry.get(&key) == Some(&index) {
                map.by_entry.remove(&key);
                map.tables[region.mode as usize].remove(region.entry);
                unlink(key);
                dropped += 1;
            }
        }
    }
    dropped
}
