//! Tracing of basic blocks: which code of a program runs, in which order, and on which thread.
//!
//! Hooks of the machine see the blocks. They are on the code that is asked for only, so that everything else, the system's
//! DLLs above all, runs as fast as without.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use lstar_runtime::{AddressSpace, Hook, HookId, SpaceId, Vcpu};
use serde::Serialize;

use crate::io::directory::matches;
use crate::kernel::{Kernel, MappedImage};

/// End of user addresses.
const USER_END: u64 = 1 << 43;
/// What stands for code outside of images in a filter.
const DYNAMIC: &str = "dynamic";

/// Chooses code by module.
#[derive(Clone, Debug, Default)]
pub struct BlockFilter {
    /// Whether it takes in, and the module's pattern. None: everything but the system's own DLLs.
    patterns: Vec<(bool, String)>,
}

impl BlockFilter {
    /// From patterns as a user writes them, separated by commas: names of modules with `*` and `?`, `.dll` and `.exe` may be left
    /// out; `dynamic` for code outside of images; a leading `!` takes out. Without any, everything is traced but the
    /// modules of the system root.
    #[must_use]
    pub fn parse(patterns: &str) -> Self {
        let patterns = patterns.split(',').map(str::trim).filter(|pattern| !pattern.is_empty());
        let taken = |pattern: &str| match pattern.strip_prefix('!') {
            Some(rest) => (false, rest.to_owned()),
            None => (true, pattern.to_owned()),
        };
        Self { patterns: patterns.map(taken).collect() }
    }

    fn decide(&self, name: &str) -> Option<bool> {
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let hit = |pattern: &str| matches(pattern, name) || matches(pattern, stem);
        self.patterns.iter().rev().find(|(_, pattern)| hit(pattern)).map(|(taken, _)| *taken)
    }

    /// Whether a name that no pattern matches is taken.
    fn takes_others(&self) -> bool {
        self.patterns.iter().all(|(taken, _)| !taken)
    }

    /// Whether code of the image with this name in the NT name space is traced.
    #[must_use]
    pub fn wants_image(&self, name: &str) -> bool {
        let module = name.rsplit('\\').next().unwrap_or(name);
        // The system root's volume is the first one.
        let system = || matches("\\Device\\HarddiskVolume1\\windows\\*", name);
        self.decide(module).unwrap_or_else(|| self.takes_others() && !system())
    }

    /// Whether code outside of images is.
    #[must_use]
    pub fn wants_dynamic(&self) -> bool {
        self.patterns
            .iter()
            .rev()
            .find(|(_, pattern)| pattern == DYNAMIC)
            .map_or(self.takes_others(), |(taken, _)| *taken)
    }
}

/// A basic block that is about to execute.
#[derive(Clone, Debug, Serialize)]
pub struct BlockRecord {
    /// UniqueThread.
    pub thread: u32,
    /// UniqueProcess.
    pub process: u32,
    /// 100 ns since boot.
    pub time: u64,
    /// Where it begins.
    pub block: u64,
    /// The module it is in, and the offset there.
    pub module: Option<(String, u64)>,
}

impl fmt::Display for BlockRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.time / 10_000_000, self.time / 10 % 1_000_000);
        write!(f, "{:>5} {seconds}.{micros:06} {:#x}", self.thread, self.block)?;
        match &self.module {
            Some((module, offset)) => write!(f, "  [{module}+{offset:#x}]"),
            None => Ok(()),
        }
    }
}

/// What is traced, and what has been.
#[derive(Debug)]
pub struct BlockTracer {
    filter: BlockFilter,
    /// Each execution is told, not the first one only.
    each_time: bool,
    seen: HashSet<(SpaceId, u64)>,
    /// Images that have been decided on.
    images: Vec<(Range<u64>, bool)>,
    hooks: Vec<(Range<u64>, HookId)>,
}

impl BlockTracer {
    /// The hooked parts of the address space: the images that are wanted and, if code outside of images is, everything but the
    /// others.
    fn ranges(&self) -> Vec<Range<u64>> {
        if !self.filter.wants_dynamic() {
            return self.images.iter().filter(|(_, wanted)| *wanted).map(|(range, _)| range.clone()).collect();
        }
        let mut unwanted: Vec<_> =
            self.images.iter().filter(|(_, wanted)| !wanted).map(|(range, _)| range.clone()).collect();
        unwanted.sort_by_key(|range| range.start);
        let mut ranges = Vec::new();
        let mut start = 0;
        for range in unwanted {
            if start < range.start {
                ranges.push(start..range.start);
            }
            start = start.max(range.end);
        }
        ranges.push(start..USER_END);
        ranges
    }
}

impl Kernel {
    /// From now on, basic blocks of the code that `filter` wants are handed to the tracer when they execute for the first time in
    /// their process, or each time.
    pub fn trace_blocks(&mut self, space: &mut AddressSpace, filter: BlockFilter, each_time: bool) {
        let seen = HashSet::new();
        self.block_tracer = Some(BlockTracer { filter, each_time, seen, images: Vec::new(), hooks: Vec::new() });
        for image in self.mapped_images.clone() {
            self.watch_blocks(space, &image);
        }
        self.place_block_hooks(space);
    }

    /// Decides on an image that has been mapped. Images at the same address in several processes are as a rule the same.
    pub(crate) fn watch_blocks(&mut self, space: &mut AddressSpace, image: &MappedImage) {
        let Some(tracer) = &mut self.block_tracer else { return };
        let wanted = tracer.filter.wants_image(&image.name);
        if tracer.images.iter().any(|(range, decided)| *range == image.range && *decided == wanted) {
            return;
        }
        tracer.images.retain(|(range, _)| range.end <= image.range.start || image.range.end <= range.start);
        tracer.images.push((image.range.clone(), wanted));
        self.place_block_hooks(space);
    }

    fn place_block_hooks(&mut self, space: &mut AddressSpace) {
        let Some(tracer) = &mut self.block_tracer else { return };
        let ranges = tracer.ranges();
        tracer.hooks.retain(|(range, id)| {
            let stays = ranges.contains(range);
            if !stays {
                space.remove_hook(*id);
            }
            stays
        });
        for range in ranges {
            if !tracer.hooks.iter().any(|(hooked, _)| *hooked == range) {
                let id = space.add_gate_hook(Hook::Blocks(range.clone()));
                tracer.hooks.push((range, id));
            }
        }
    }

    /// A block that is hooked is about to execute.
    pub(crate) fn trace_block(&mut self, vcpu: &Vcpu<'_>, block: u64) {
        let Some(tracer) = &mut self.block_tracer else { return };
        if !tracer.each_time && !tracer.seen.insert((vcpu.memory.current_space(), block)) {
            return;
        }
        self.clock.advance(vcpu.retired);
        let record = BlockRecord {
            thread: self.scheduler.current,
            process: self.process.id,
            time: self.clock.elapsed(),
            block,
            module: self.memory.module_at(block).map(|(base, name)| (name.to_owned(), block - base)),
        };
        if let Some(tracer) = &mut self.tracer {
            tracer.record_block(&record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_choose_modules_and_code_outside_of_them() {
        for (patterns, image, wanted, dynamic) in [
            ("", "\\Device\\HarddiskVolume3\\hello.exe", true, true),
            ("", "\\Device\\HarddiskVolume1\\windows\\system32\\ntdll.dll", false, true),
            ("ntdll", "\\Device\\HarddiskVolume1\\windows\\system32\\ntdll.dll", true, false),
            ("ntdll", "\\Device\\HarddiskVolume3\\hello.exe", false, false),
            ("hello,dynamic", "\\Device\\HarddiskVolume3\\hello.exe", true, true),
            ("!hello", "\\Device\\HarddiskVolume3\\hello.exe", false, true),
            ("!hello", "\\Device\\HarddiskVolume3\\other.dll", true, true),
            ("*,!ntdll,!dynamic", "\\Device\\HarddiskVolume1\\windows\\system32\\kernel32.dll", true, false),
        ] {
            let filter = BlockFilter::parse(patterns);
            assert_eq!((filter.wants_image(image), filter.wants_dynamic()), (wanted, dynamic), "{patterns} {image}");
        }
    }

    #[test]
    fn hooks_leave_out_what_nobody_wants() {
        let tracer = |patterns| BlockTracer {
            filter: BlockFilter::parse(patterns),
            each_time: false,
            seen: HashSet::new(),
            images: vec![(0x5000..0x6000, false), (0x1000..0x2000, true), (0x2000..0x4000, false)],
            hooks: Vec::new(),
        };
        assert_eq!(tracer("").ranges(), [0..0x2000, 0x4000..0x5000, 0x6000..USER_END]);
        let only = 0x1000..0x2000;
        assert_eq!(tracer("hello").ranges(), std::slice::from_ref(&only));
    }
}
