//! Translated regions: their host code, how guest addresses and link slots lead to it, and what a fault in it means.

mod arena;

use std::io;
use std::ops::Range;

use lstar_arch::PAGE_SIZE;
use lstar_translator::abi::{Mode, Slot, Target};
use lstar_translator::{CompiledRegion, Site};
use rustc_hash::FxHashMap;

use arena::{CodeArena, TargetTable};

use crate::entry;

/// What is kept of a region.
#[derive(Debug)]
struct Region {
    entry: u64,
    mode: Mode,
    /// Executable host addresses.
    code: Range<u64>,
    sites: Vec<Site>,
    live: bool,
}

/// All translated code of one machine.
#[derive(Debug)]
pub(crate) struct CodeCache {
    code: CodeArena,
    tables: [TargetTable; 2],
    /// In order of host address.
    regions: Vec<Region>,
    by_entry: FxHashMap<(u64, Mode), usize>,
    by_page: FxHashMap<u64, Vec<usize>>,
    /// Addresses of the slots that lead to a target, whether there is code for it or not.
    links: FxHashMap<(u64, Mode), Vec<u64>>,
}

impl CodeCache {
    pub fn new(size: usize) -> io::Result<Self> {
        Ok(Self {
            code: CodeArena::new(size)?,
            tables: [TargetTable::new(), TargetTable::new()],
            regions: Vec::new(),
            by_entry: FxHashMap::default(),
            by_page: FxHashMap::default(),
            links: FxHashMap::default(),
        })
    }

    /// The target tables, by mode, for the block.
    pub fn table_pointers(&self) -> [*mut Target; 2] {
        [self.tables[0].pointer(), self.tables[1].pointer()]
    }

    /// Host code of the region that starts at `rip`. Found ones enter the target table.
    pub fn lookup(&mut self, rip: u64, mode: Mode) -> Option<u64> {
        let table = &mut self.tables[mode as usize];
        // The table's empty entries match the last address of all, and hold no code.
        if let Some(code) = table.get(rip).filter(|&code| code != 0) {
            return Some(code);
        }
        let &index = self.by_entry.get(&(rip, mode))?;
        let code = self.regions[index].code.start;
        table.insert(rip, code);
        Some(code)
    }

    /// Target RIP of a slot.
    pub fn slot_rip(&self, slot: u64) -> u64 {
        self.code.slot_rip(slot)
    }

    /// Takes a region in and links it; `None` when the code memory is full.
    pub fn insert(&mut self, region: CompiledRegion) -> Option<u64> {
        let start = self.code.push(&region.code)?;
        let key = (region.entry, region.mode);
        let index = self.regions.len();
        for range in &region.ranges {
            let first = range.start & !(PAGE_SIZE - 1);
            for page in (first..range.end).step_by(PAGE_SIZE as usize) {
                let regions = self.by_page.entry(page).or_default();
                if regions.last() != Some(&index) {
                    regions.push(index);
                }
            }
        }
        self.regions.push(Region {
            entry: region.entry,
            mode: region.mode,
            code: start..start + region.code.len() as u64,
            sites: region.sites,
            live: true,
        });
        self.by_entry.insert(key, index);
        self.tables[region.mode as usize].insert(region.entry, start);
        for (index, &rip) in (0u64..).zip(&region.links) {
            let address = start + u64::from(region.links_offset) + index * size_of::<Slot>() as u64;
            let target = (rip, region.mode);
            let linked = self.by_entry.get(&target).map(|&index| self.regions[index].code.start);
            self.code.write_slot(address, Slot { code: linked.unwrap_or_else(entry::miss_slot_address), rip });
            self.links.entry(target).or_default().push(address);
        }
        self.point_links(key, start);
        Some(start)
    }

    /// Drops the regions translated from any page of `range`; returns how many. Their host code stays in place, since
    /// it may be on the stack, but nothing leads to it any more.
    pub fn invalidate(&mut self, range: &Range<u64>) -> u64 {
        let mut dropped = 0;
        for page in (range.start & !(PAGE_SIZE - 1)..range.end).step_by(PAGE_SIZE as usize) {
            for index in self.by_page.remove(&page).unwrap_or_default() {
                let region = &mut self.regions[index];
                if !std::mem::replace(&mut region.live, false) {
                    continue;
                }
                dropped += 1;
                let key = (region.entry, region.mode);
                if self.by_entry.get(&key) == Some(&index) {
                    self.by_entry.remove(&key);
                    self.tables[region.mode as usize].remove(region.entry);
                    self.point_links(key, entry::miss_slot_address());
                }
            }
        }
        dropped
    }

    /// Drops everything. Only while no translated code is on the stack.
    pub fn clear(&mut self) {
        self.code.clear();
        self.tables.iter_mut().for_each(TargetTable::clear);
        self.regions.clear();
        self.by_entry.clear();
        self.by_page.clear();
        self.links.clear();
    }

    /// The site at a host address, if it is one. Async-signal-safe.
    pub fn site_at(&self, pc: u64) -> Option<Site> {
        let index = self.regions.partition_point(|region| region.code.end <= pc);
        let region = self.regions.get(index)?;
        let offset = u32::try_from(pc.checked_sub(region.code.start)?).ok()?;
        let site = region.sites.binary_search_by_key(&offset, |site| site.host_offset).ok()?;
        Some(region.sites[site])
    }

    /// Points all slots for a target at other code.
    fn point_links(&mut self, (rip, mode): (u64, Mode), code: u64) {
        for &slot in self.links.get(&(rip, mode)).into_iter().flatten() {
            self.code.write_slot(slot, Slot { code, rip });
        }
    }
}
