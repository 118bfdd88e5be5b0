//! What a hostile guest may bring: malformed images, services with arbitrary arguments. For tests with fixed seeds and for the
//! fuzz targets, which choose by themselves.

pub mod images;
pub mod services;

/// Where decisions come from.
pub trait Chooser {
    /// The next decision; its low bits are as good as the others.
    fn next(&mut self) -> u64;

    /// One below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Reproducible pseudo-random numbers (xorshift).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed, which is not 0.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl Chooser for Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Decisions from a fuzzer's input: mostly a byte each, so that small changes of the input are small changes of the run.
#[derive(Clone, Debug)]
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// Decides as `input` says, and with zeros behind its end.
    #[must_use]
    pub const fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// Whether all of the input has been used.
    #[must_use]
    pub const fn is_exhausted(&self) -> bool {
        self.0.is_empty()
    }
}

impl Chooser for Choices<'_> {
    fn next(&mut self) -> u64 {
        const WIDE: u8 = 0xF0;
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        if first < WIDE {
            return first.into();
        }
        // The low bits tell how many bytes follow.
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(first & 7) + 1));
        self.0 = rest;
        bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }
}
