//! Reproducible random numbers with a taste for edge cases.

/// xorshift64*: small, fast, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator whose sequence depends on `seed` alone.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // SplitMix64's finaliser: neighbouring seeds give unrelated sequences, and the state is not zero.
        let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        Self((z ^ z >> 31) | 1)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((self.bits() >> 32) * limit) >> 32
    }

    /// True in `percent` of 100 cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// An integer, often at an edge of some width.
    pub fn value(&mut self) -> u64 {
        const EDGES: [u64; 10] =
            [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFF_FFFF, 0x8000_0000, 0x7FFF_FFFF_FFFF_FFFF];
        match self.below(8) {
            0 => self.pick(&EDGES),
            1 => !self.pick(&EDGES),
            2 => self.below(256),
            3 => self.below(70),
            4 => self.bits() as i32 as u64,
            _ => self.bits(),
        }
    }

    /// A float with this many exponent and fraction bits, often at an edge of the format.
    fn float(&mut self, exponent_bits: u32, fraction_bits: u32) -> u64 {
        let ones = |bits: u32| (1u64 << bits) - 1;
        let bias = ones(exponent_bits - 1);
        let near = self.bits() & 3;
        let exponent = match self.below(10) {
            0 => 0,
            1 => ones(exponent_bits),
            2 => ones(exponent_bits) - 1 - near,
            3 => 1 + near,
            4 => bias / 2 + near,
            5 => bias + bias / 2 + near,
            6 => bias + self.below(66),
            7 => self.bits() & ones(exponent_bits),
            _ => bias + near - 2,
        };
        let fraction = match self.below(8) {
            0 => 0,
            1 => 1,
            2 => ones(fraction_bits),
            3 => 1 << (fraction_bits - 1),
            4 => 1 << (fraction_bits - 1) | 1,
            5 => self.bits() >> self.below(64),
            6 => (self.bits() & 0xFF) << (fraction_bits - 8),
            _ => self.bits(),
        };
        (self.bits() & 1) << (exponent_bits + fraction_bits)
            | exponent << fraction_bits
            | fraction & ones(fraction_bits)
    }

    /// 64 bits that mean something to some vector instruction.
    pub fn lane(&mut self) -> u64 {
        match self.below(8) {
            0 | 1 => self.float(11, 52),
            2..=4 => self.float(8, 23) << 32 | self.float(8, 23),
            5 | 6 => self.value(),
            _ => self.bits(),
        }
    }

    /// 128 bits that mean something to some vector instruction.
    pub fn vector(&mut self) -> u128 {
        u128::from(self.lane()) << 64 | u128::from(self.lane())
    }
}
