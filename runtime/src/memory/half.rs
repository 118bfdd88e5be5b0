//! One half of an address space: which frames its pages are, and with what rights.

use std::collections::BTreeMap;
use std::sync::Arc;

use lstar_arch::PAGE_SIZE;
use lstar_translator::abi::{KERNEL_END, KERNEL_START, USER_END};

use super::table::{Entry, FRAME_MASK, PageTable};
use super::window::{MemoryFile, Window};
use super::{Frames, HostProtection, MapError, host_protection};

/// A contiguous guest range that shows a contiguous part of some frames.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    pub size: u64,
    pub frames: Arc<Frames>,
    pub frame_offset: u64,
    /// Nobody else can see these frames: holes may be punched on partial unmaps.
    pub private: bool,
}

impl Extent {
    /// Offset of its first frame in the memory file.
    pub fn file_offset(&self) -> u64 {
        self.frames.offset + self.frame_offset
    }
}

/// The user half of one address space, or the kernel half of all.
#[derive(Debug)]
pub(super) struct Half {
    pub table: PageTable,
    pub extents: BTreeMap<u64, Extent>,
}

impl Half {
    /// An empty user half.
    pub fn user() -> Result<Self, MapError> {
        Ok(Self { table: PageTable::new(0, USER_END)?, extents: BTreeMap::new() })
    }

    /// An empty kernel half.
    pub fn kernel() -> Result<Self, MapError> {
        Ok(Self { table: PageTable::new(KERNEL_START, KERNEL_END - KERNEL_START)?, extents: BTreeMap::new() })
    }

    /// Whether anything is mapped in a range.
    pub fn overlaps(&self, start: u64, size: u64) -> bool {
        self.extents.range(..start + size).next_back().is_some_and(|(&at, extent)| at + extent.size > start)
    }

    /// Splits extents so that none crosses `at`.
    pub fn split_at(&mut self, at: u64) {
        let Some((&start, extent)) = self.extents.range_mut(..at).next_back() else { return };
        if start + extent.size <= at {
            return;
        }
        let head = at - start;
        let tail = Extent { size: extent.size - head, frame_offset: extent.frame_offset + head, ..extent.clone() };
        extent.size = head;
        self.extents.insert(at, tail);
    }

    /// Runs of pages in a range that have the same host protection: start, size, protection.
    pub fn runs(&self, start: u64, size: u64) -> impl Iterator<Item = (u64, u64, HostProtection)> + '_ {
        let end = start + size;
        let mut at = start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let run = at;
            let host = host_protection(self.table.get(run) as u8);
            at += PAGE_SIZE;
            while at < end && host_protection(self.table.get(at) as u8) == host {
                at += PAGE_SIZE;
            }
            Some((run, at - run, host))
        })
    }

    /// Maps all pages in a window that shows none of them.
    pub fn show(&self, window: &Window, file: &MemoryFile) -> Result<(), MapError> {
        for (&start, extent) in &self.extents {
            for (run, size, host) in self.runs(start, extent.size) {
                window.map(run, size, file, extent.file_offset() + (run - start), host)?;
            }
        }
        Ok(())
    }

    /// Changes the state of a page, whose frame stays.
    pub fn set_state(&mut self, page: u64, state: u8) {
        let frame: Entry = self.table.get(page) & FRAME_MASK;
        self.table.set(page, frame | Entry::from(state));
    }
}
