//! Where RDRAND and RDSEED get their numbers: a generator that whoever owns the processor seeds, from a real source or
//! with a constant for runs that can be repeated. The numbers are the ChaCha20 key stream (RFC 8439, 2.3), so that a
//! guest that was seeded well may use them as keys.

use crate::cpuid::Features;
use crate::exception::Exception;
use crate::rflags::Rflags;
use crate::state::CpuState;

/// The generator's state.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entropy {
    key: [u32; 8],
    /// Numbers handed out so far.
    counter: u64,
}

impl Entropy {
    /// A generator whose numbers follow from `seed`.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let (words, _) = seed.as_chunks::<4>();
        Self { key: core::array::from_fn(|i| words.get(i).map_or(0, |word| u32::from_le_bytes(*word))), counter: 0 }
    }

    /// The next 64 bits: the start of the next block of the key stream.
    pub fn next_u64(&mut self) -> u64 {
        let mut input = [0; 16];
        input[..4].copy_from_slice(&[0x6170_7865, 0x3320_646E, 0x7962_2D32, 0x6B20_6574]);
        input[4..12].copy_from_slice(&self.key);
        input[12] = self.counter as u32;
        input[13] = (self.counter >> 32) as u32;
        self.counter = self.counter.wrapping_add(1);
        let mut words = input;
        for _ in 0..10 {
            for [a, b, c, d] in [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]] {
                quarter_round(&mut words, a, b, c, d);
            }
            for [a, b, c, d] in [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]] {
                quarter_round(&mut words, a, b, c, d);
            }
        }
        u64::from(words[0].wrapping_add(input[0])) | u64::from(words[1].wrapping_add(input[1])) << 32
    }
}

fn quarter_round(words: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    for (target, addend, mixed, distance) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        words[target] = words[target].wrapping_add(words[addend]);
        words[mixed] = (words[mixed] ^ words[target]).rotate_left(distance);
    }
}

/// RDRAND: a number, and CF set for "there was one"; the other status flags are cleared. The caller truncates to the
/// operand (SDM vol. 2, RDRAND).
///
/// # Errors
/// #UD if the model does not have it.
pub fn rdrand(cpu: &mut CpuState) -> Result<u64, Exception> {
    number(cpu, Features::RDRAND)
}

/// RDSEED, as [`rdrand`].
///
/// # Errors
/// #UD if the model does not have it.
pub fn rdseed(cpu: &mut CpuState) -> Result<u64, Exception> {
    number(cpu, Features::RDSEED)
}

fn number(cpu: &mut CpuState, feature: Features) -> Result<u64, Exception> {
    if !cpu.model.features.contains(feature) {
        return Err(Exception::UD);
    }
    cpu.rflags = cpu.rflags & !Rflags::STATUS.bits() | Rflags::CF.bits();
    Ok(cpu.entropy.next_u64())
}

#[cfg(test)]
mod tests {
    use super::Entropy;

    /// RFC 8439, appendix A.1, test vector 1 (all zero), and vector 2's block, which is the next counter.
    #[test]
    fn key_stream() {
        let mut entropy = Entropy::default();
        assert_eq!(entropy.next_u64().to_le_bytes(), [0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90]);
        assert_eq!(entropy.next_u64().to_le_bytes(), [0x9f, 0x07, 0xe7, 0xbe, 0x55, 0x51, 0x38, 0x7a]);
        let mut other = Entropy::from_seed([1; 32]);
        assert_ne!(other.next_u64(), Entropy::default().next_u64());
    }
}
