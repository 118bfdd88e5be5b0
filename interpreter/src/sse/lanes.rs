//! Lanes of a vector held as `u128`: lane 0 is the least significant.

/// An integer type that a vector can be divided into.
pub(crate) trait Lane: Copy {
    /// Width in bits.
    const BITS: u32;
    /// The low [`Lane::BITS`] bits.
    fn truncate(bits: u128) -> Self;
    /// Zero-extended bits.
    fn widen(self) -> u128;
}

macro_rules! lanes {
    ($($signed:ident $unsigned:ident)*) => {$(
        impl Lane for $unsigned {
            const BITS: u32 = $unsigned::BITS;
            #[inline]
            fn truncate(bits: u128) -> Self {
                bits as $unsigned
            }
            #[inline]
            fn widen(self) -> u128 {
                self.into()
            }
        }
        impl Lane for $signed {
            const BITS: u32 = $signed::BITS;
            #[inline]
            fn truncate(bits: u128) -> Self {
                bits as $signed
            }
            #[inline]
            fn widen(self) -> u128 {
                (self as $unsigned).into()
            }
        }
    )*};
}
lanes!(i8 u8 i16 u16 i32 u32 i64 u64);

/// Lane `index` (counted from 0, within the vector).
#[inline]
pub(crate) fn lane<T: Lane>(vector: u128, index: u32) -> T {
    T::truncate(vector >> (index * T::BITS))
}

/// `vector` with lane `index` replaced.
#[inline]
pub(crate) fn with_lane<T: Lane>(vector: u128, index: u32, value: T) -> u128 {
    let shift = index * T::BITS;
    vector & !((u128::MAX >> (128 - T::BITS)) << shift) | value.widen() << shift
}

/// The low `width` bits of a vector built lane by lane.
#[inline]
pub(crate) fn build<T: Lane>(width: u32, mut f: impl FnMut(u32) -> T) -> u128 {
    (0..width / T::BITS).fold(0, |vector, index| vector | f(index).widen() << (index * T::BITS))
}

/// Applies `f` to each pair of lanes.
#[inline]
pub(crate) fn map2<T: Lane>(a: u128, b: u128, f: impl Fn(T, T) -> T) -> u128 {
    build(128, |index| f(lane(a, index), lane(b, index)))
}

/// Applies `f` to each lane.
#[inline]
pub(crate) fn map<T: Lane>(a: u128, f: impl Fn(T) -> T) -> u128 {
    build(128, |index| f(lane(a, index)))
}

/// The most significant bit of each lane, gathered: lane 0 in bit 0.
#[inline]
pub(crate) fn sign_bits<T: Lane>(vector: u128, width: u32) -> u64 {
    (0..width / T::BITS).fold(0, |mask, index| mask | ((vector >> (index * T::BITS + T::BITS - 1)) as u64 & 1) << index)
}
