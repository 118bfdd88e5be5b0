//! Which guest code is watched: what engines ask so that both call the same hooks.
//!
//! A *block* begins where control arrives by a transfer, or behind an instruction that is one (taken or not), and ends with the
//! next such instruction. So blocks depend on what was executed only, neither on how an engine cuts code into pieces nor on what
//! else jumps there.

use std::ops::Range;

/// What is wanted of the code at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hooked {
    /// To know of the blocks that begin there.
    Blocks,
    /// To know of each instruction (and perhaps of blocks).
    Instructions,
}

/// Addresses whose code is watched, as sorted ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookedCode {
    blocks: Vec<Range<u64>>,
    instructions: Vec<Range<u64>>,
}

impl HookedCode {
    /// From ranges in any order.
    #[must_use]
    pub fn new(
        blocks: impl IntoIterator<Item = Range<u64>>,
        instructions: impl IntoIterator<Item = Range<u64>>,
    ) -> Self {
        Self { blocks: joined(blocks), instructions: joined(instructions) }
    }

    /// Whether nothing is watched.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.instructions.is_empty()
    }

    /// What is wanted at an address.
    #[must_use]
    pub fn at(&self, address: u64) -> Option<Hooked> {
        if overlap(&self.instructions, address, address) {
            Some(Hooked::Instructions)
        } else {
            overlap(&self.blocks, address, address).then_some(Hooked::Blocks)
        }
    }

    /// Whether anything in a range, its last address included, is watched.
    #[must_use]
    pub fn any_in(&self, first: u64, last: u64) -> bool {
        overlap(&self.blocks, first, last) || overlap(&self.instructions, first, last)
    }
}

fn joined(ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut sorted: Vec<Range<u64>> = ranges.into_iter().filter(|range| range.start < range.end).collect();
    sorted.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Whether one of the sorted `ranges` holds an address of `first..=last`.
fn overlap(ranges: &[Range<u64>], first: u64, last: u64) -> bool {
    let index = ranges.partition_point(|range| range.end <= first);
    ranges.get(index).is_some_and(|range| range.start <= last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_found() {
        let code = HookedCode::new([30..40, 10..20, 18..25, 50..50], [12..13, 100..u64::MAX]);
        assert_eq!(code.blocks, [10..25, 30..40]);
        for (address, wanted) in [
            (9, None),
            (10, Some(Hooked::Blocks)),
            (12, Some(Hooked::Instructions)),
            (24, Some(Hooked::Blocks)),
            (25, None),
            (39, Some(Hooked::Blocks)),
            (50, None),
            (u64::MAX - 1, Some(Hooked::Instructions)),
        ] {
            assert_eq!(code.at(address), wanted, "{address}");
        }
        assert!(
            code.any_in(25, 30)
                && !code.any_in(25, 29)
                && !code.any_in(40, 99)
                && !HookedCode::default().any_in(0, u64::MAX)
        );
    }
}
