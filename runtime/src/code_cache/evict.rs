//! Making room when the code memory is full.
//!
//! What nothing leads to any more, because its guest code has changed, goes; of the rest the newest half of the memory stays. What is in
//! use and goes all the same is translated again, and then is the newest: so hot code stays, and a guest that makes code without
//! end pays for its own. Nothing is counted in translated code for it.

use std::collections::BTreeSet;

use lstar_translator::abi::Slot;

use super::{CodeCache, Map, Region, TargetTable};

impl Map {
    fn clear(&mut self) {
        self.tables.iter_mut().for_each(TargetTable::clear);
        self.by_entry.clear();
        self.by_page.clear();
    }
}

impl CodeCache {
    /// Makes room; returns how many regions in use have gone. Only while no translated code is on the stack.
    pub fn evict(&mut self) -> usize {
        let used: BTreeSet<usize> =
            self.others.values().chain([&self.map]).flat_map(|map| map.by_entry.values().copied()).collect();
        let mut room = self.code.size() / 2;
        let kept: Vec<usize> = used
            .iter()
            .rev()
            .copied()
            .take_while(|&index| {
                let left = room.checked_sub(self.regions[index].room());
                room = left.unwrap_or(0);
                left.is_some()
            })
            .collect();
        // In their order, which is that of host addresses.
        let kept: Vec<(usize, Vec<u8>)> =
            kept.into_iter().rev().map(|index| (index, self.code.bytes(&self.regions[index].code))).collect();
        let gone = used.len() - kept.len();
        let entries: Vec<_> = self.others.values().chain([&self.map]).map(|map| map.by_entry.clone()).collect();
        let old = std::mem::take(&mut self.regions);
        let known = std::mem::take(&mut self.known);
        self.others.values_mut().chain([&mut self.map]).for_each(Map::clear);
        self.code.clear();
        self.links.clear();
        self.forced = None;
        let mut places = vec![None; old.len()];
        let mut bodies: Vec<Option<Region>> = old.into_iter().map(Some).collect();
        for (index, bytes) in kept {
            // Half of the memory is free for it.
            let (Some(mut region), Some(start)) = (bodies[index].take(), self.code.push(&bytes)) else { continue };
            region.code = start..start + bytes.len() as u64;
            places[index] = Some(self.regions.len());
            self.regions.push(region);
        }
        for (map, entries) in self.others.values_mut().chain([&mut self.map]).zip(entries) {
            for index in entries.values().filter_map(|&index| places[index]) {
                map.add(index, &self.regions[index]);
            }
        }
        for (key, indices) in known {
            let indices: Vec<usize> = indices.into_iter().filter_map(|index| places[index]).collect();
            if !indices.is_empty() {
                self.known.insert(key, indices);
            }
        }
        self.link_all();
        gone
    }

    /// Fills in the slots of all regions anew.
    fn link_all(&mut self) {
        for index in 0..self.regions.len() {
            let region = &self.regions[index];
            let mode = region.mode;
            let first = region.code.start + u64::from(region.links_offset);
            for address in (first..region.code.end).step_by(size_of::<Slot>()) {
                let target = (self.code.slot_rip(address), mode);
                let linked = self.map.by_entry.get(&target).map(|&index| self.regions[index].code.start);
                let code = linked.unwrap_or_else(crate::entry::miss_slot_address);
                self.code.write_slot(address, Slot { code, rip: target.0 });
                self.links.entry(target).or_default().push(address);
            }
        }
    }
}

impl Region {
    /// Bytes of code memory that it takes, what comes between included.
    fn room(&self) -> usize {
        (self.code.end - self.code.start) as usize + 64
    }
}

#[cfg(test)]
mod tests {
    use lstar_translator::CompiledRegion;
    use lstar_translator::abi::Mode;
    use lstar_translator::statemap::StateMap;

    use super::*;
    use crate::memory::SpaceId;

    const ENTRY: u64 = 0x1_4000_0000;
    const PAGE: u64 = lstar_arch::PAGE_SIZE;

    /// A region on a page of its own whose link slot leads to the one before it.
    fn region(number: u64) -> CompiledRegion {
        let entry = ENTRY + number * PAGE;
        CompiledRegion {
            entry,
            mode: Mode::User,
            code: [vec![number as u8; 64], vec![0; 16]].concat(),
            links_offset: 64,
            links: vec![entry - PAGE],
            sites: Vec::new(),
            map: StateMap::default(),
            ranges: [(0, 16)].map(|(start, end)| entry + start..entry + end).to_vec(),
            instructions: 16,
            blocks: 1,
            fallbacks: Vec::new(),
            host_operations: 0,
            helpers: 0,
            probes: Vec::new(),
        }
    }

    fn filled(cache: &mut CodeCache, mut number: u64) -> u64 {
        while cache.insert(SpaceId::FIRST, region(number), true, |_, _| {}).is_some() {
            number += 1;
        }
        number
    }

    #[test]
    fn code_in_use_stays_and_what_has_changed_goes() {
        let mut cache = CodeCache::new(0x10000).expect("memory");
        let count = filled(&mut cache, 0);
        // All but every tenth is stale.
        for number in (0..count).filter(|number| number % 10 != 3) {
            cache.invalidate(None, &(ENTRY + number * PAGE..ENTRY + number * PAGE + 1));
        }
        assert_eq!(cache.evict(), 0);
        for number in 0..count {
            let code = cache.lookup(ENTRY + number * PAGE, Mode::User);
            assert_eq!(code.is_some(), number % 10 == 3, "{number}");
            if let Some(code) = code {
                assert_eq!(cache.code.bytes(&(code..code + 64)), vec![number as u8; 64]);
                assert_eq!(cache.slot_rip(code + 64), ENTRY + (number - 1) * PAGE);
                assert_eq!(cache.site_at(code).map(|_| ()), None);
            }
        }
        // What is dropped is dropped for good, and links are set again.
        let before = cache.lookup(ENTRY + 13 * PAGE, Mode::User).expect("kept");
        let linked = cache.insert(SpaceId::FIRST, region(14), true, |_, _| {}).expect("room");
        let slot = cache.code.bytes(&(linked + 64..linked + 72));
        assert_eq!(slot, before.to_le_bytes());
    }

    #[test]
    fn of_too_much_code_the_newest_half_stays() {
        let mut cache = CodeCache::new(0x10000).expect("memory");
        let mut count = filled(&mut cache, 0);
        for _ in 0..20 {
            let gone = cache.evict() as u64;
            assert!(gone > 0 && gone < count);
            let next = filled(&mut cache, count);
            assert!(next > count, "there is room again");
            count = next;
            let newest = (0..100).all(|back| cache.lookup(ENTRY + (count - 1 - back) * PAGE, Mode::User).is_some());
            assert!(newest && cache.lookup(ENTRY, Mode::User).is_none());
        }
    }
}
