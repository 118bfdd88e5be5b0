//! Guest pointers. A pointer that user code hands in is an allegation until it has been probed and read.
//!
//! [`UserPtr`] and [`UserBuffer`] carry an address and nothing else; every access goes through a [`UserMemory`], which
//! checks it with the rights of the caller's previous mode and answers STATUS_ACCESS_VIOLATION when they don't suffice.
//! [`guest_struct!`](crate::guest_struct) describes a fixed NT structure once, by the offsets its documentation gives.

use std::marker::PhantomData;

use crate::status::Status;

/// Guest memory as a service may use it: with the rights of whoever called the service.
pub trait UserMemory {
    /// Reads `buf.len()` bytes or nothing.
    fn read_user(&mut self, address: u64, buf: &mut [u8]) -> Result<(), Status>;
    /// Writes all of `data` or nothing.
    fn write_user(&mut self, address: u64, data: &[u8]) -> Result<(), Status>;
}

/// A value with a fixed size and little-endian layout in guest memory.
pub trait GuestValue: Sized {
    /// Bytes in guest memory.
    const SIZE: usize;
    /// Decodes; `bytes` holds [`GuestValue::SIZE`] bytes.
    fn from_bytes(bytes: &[u8]) -> Self;
    /// Encodes into `bytes`, which holds [`GuestValue::SIZE`] bytes and was zeroed.
    fn to_bytes(&self, bytes: &mut [u8]);

    /// Encodes into a vector.
    fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::SIZE];
        self.to_bytes(&mut bytes);
        bytes
    }
}

macro_rules! guest_integers {
    ($($type:ty),*) => {$(
        impl GuestValue for $type {
            const SIZE: usize = size_of::<$type>();
            fn from_bytes(bytes: &[u8]) -> Self {
                let mut value = [0; size_of::<$type>()];
                value.copy_from_slice(&bytes[..size_of::<$type>()]);
                Self::from_le_bytes(value)
            }
            fn to_bytes(&self, bytes: &mut [u8]) {
                bytes[..size_of::<$type>()].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
guest_integers!(u8, u16, u32, u64, u128, i8, i16, i32, i64);

/// Makes a one-field tuple struct of an integer a guest value.
macro_rules! guest_newtype {
    ($name:ident, $inner:ty) => {
        impl $crate::user_ptr::GuestValue for $name {
            const SIZE: usize = size_of::<$inner>();
            fn from_bytes(bytes: &[u8]) -> Self {
                Self(<$inner as $crate::user_ptr::GuestValue>::from_bytes(bytes))
            }
            fn to_bytes(&self, bytes: &mut [u8]) {
                $crate::user_ptr::GuestValue::to_bytes(&self.0, bytes);
            }
        }
    };
}
pub(crate) use guest_newtype;

impl<T: GuestValue + Copy + Default, const N: usize> GuestValue for [T; N] {
    const SIZE: usize = T::SIZE * N;
    fn from_bytes(bytes: &[u8]) -> Self {
        std::array::from_fn(|index| T::from_bytes(&bytes[index * T::SIZE..]))
    }
    fn to_bytes(&self, bytes: &mut [u8]) {
        for (value, chunk) in self.iter().zip(bytes.chunks_exact_mut(T::SIZE)) {
            value.to_bytes(chunk);
        }
    }
}

/// Declares an NT structure: its size and the offset of each field. Bytes between fields are zero when written and
/// ignored when read.
///
/// ```
/// lstar_nt::guest_struct! {
///     /// UNICODE_STRING.
///     pub struct Raw: 0x10 {
///         /// Bytes.
///         pub length @ 0: u16,
///         /// Pointer.
///         pub buffer @ 8: u64,
///     }
/// }
/// ```
#[macro_export]
macro_rules! guest_struct {
    ($(#[$meta:meta])* $vis:vis struct $name:ident: $size:literal {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident @ $offset:literal: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        $vis struct $name {
            $($(#[$field_meta])* $field_vis $field: $type,)*
        }
        const _: () = {
            $(assert!($offset + <$type as $crate::user_ptr::GuestValue>::SIZE <= $size);)*
        };
        impl $crate::user_ptr::GuestValue for $name {
            const SIZE: usize = $size;
            fn from_bytes(bytes: &[u8]) -> Self {
                Self { $($field: <$type as $crate::user_ptr::GuestValue>::from_bytes(&bytes[$offset..])),* }
            }
            fn to_bytes(&self, bytes: &mut [u8]) {
                $($crate::user_ptr::GuestValue::to_bytes(&self.$field, &mut bytes[$offset..]);)*
            }
        }
    };
}

/// A pointer to a `T` that a caller passed.
pub struct UserPtr<T> {
    address: u64,
    target: PhantomData<fn() -> T>,
}

impl<T> Clone for UserPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for UserPtr<T> {}
impl<T> std::fmt::Debug for UserPtr<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.address)
    }
}

impl<T> UserPtr<T> {
    /// A pointer to `address`, unchecked.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self { address, target: PhantomData }
    }
    /// The address as passed.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.address
    }
    /// Whether it is NULL, which many services take for "not wanted".
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.address == 0
    }
    /// The same address as a pointer to something else.
    #[must_use]
    pub const fn cast<U>(self) -> UserPtr<U> {
        UserPtr::new(self.address)
    }
    /// A pointer `bytes` further on; wraps around like the guest's own arithmetic.
    #[must_use]
    pub const fn byte_add<U>(self, bytes: u64) -> UserPtr<U> {
        UserPtr::new(self.address.wrapping_add(bytes))
    }
}

impl<T: GuestValue> UserPtr<T> {
    /// Reads the value.
    pub fn read(self, memory: &mut impl UserMemory) -> Result<T, Status> {
        let mut bytes = vec![0; T::SIZE];
        memory.read_user(self.address, &mut bytes)?;
        Ok(T::from_bytes(&bytes))
    }
    /// Writes the value.
    pub fn write(self, memory: &mut impl UserMemory, value: T) -> Result<(), Status> {
        memory.write_user(self.address, &value.to_vec())
    }
    /// Reads the value, `None` when the pointer is NULL.
    pub fn read_optional(self, memory: &mut impl UserMemory) -> Result<Option<T>, Status> {
        if self.is_null() { Ok(None) } else { self.read(memory).map(Some) }
    }
    /// Writes the value unless the pointer is NULL.
    pub fn write_optional(self, memory: &mut impl UserMemory, value: T) -> Result<(), Status> {
        if self.is_null() { Ok(()) } else { self.write(memory, value) }
    }
    /// Element `index` of an array that starts here.
    #[must_use]
    pub const fn element(self, index: u64) -> Self {
        self.byte_add((T::SIZE as u64).wrapping_mul(index))
    }
    /// Reads an array of `count` values. The memory is read page by page, so that an absurd count ends at the first
    /// unmapped page and not in a huge allocation.
    pub fn read_array(self, memory: &mut impl UserMemory, count: u64) -> Result<Vec<T>, Status> {
        let size = count.checked_mul(T::SIZE as u64).ok_or(Status::ACCESS_VIOLATION)?;
        let bytes = UserBuffer::new(self.address, size).read(memory)?;
        Ok(bytes.chunks_exact(T::SIZE).map(T::from_bytes).collect())
    }
}

/// A buffer that a caller passed: address and length in bytes.
#[derive(Clone, Copy, Debug)]
pub struct UserBuffer {
    /// First byte.
    pub address: u64,
    /// Bytes the caller claims.
    pub length: u64,
}

impl UserBuffer {
    /// A buffer, unchecked.
    #[must_use]
    pub const fn new(address: u64, length: u64) -> Self {
        Self { address, length }
    }

    /// Reads everything.
    pub fn read(self, memory: &mut impl UserMemory) -> Result<Vec<u8>, Status> {
        const STEP: u64 = 0x1_0000;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < self.length {
            let at = self.address.checked_add(bytes.len() as u64).ok_or(Status::ACCESS_VIOLATION)?;
            let start = bytes.len();
            bytes.resize(start + STEP.min(self.length - start as u64) as usize, 0);
            memory.read_user(at, &mut bytes[start..])?;
        }
        Ok(bytes)
    }

    /// Writes `data`; STATUS_BUFFER_TOO_SMALL when it does not fit.
    pub fn write(self, memory: &mut impl UserMemory, data: &[u8]) -> Result<(), Status> {
        if data.len() as u64 > self.length {
            return Err(Status::BUFFER_TOO_SMALL);
        }
        memory.write_user(self.address, data)
    }

    /// Writes as much of `data` as fits and says how much that was.
    pub fn write_truncated(self, memory: &mut impl UserMemory, data: &[u8]) -> Result<u64, Status> {
        let length = self.length.min(data.len() as u64);
        memory.write_user(self.address, &data[..length as usize])?;
        Ok(length)
    }

    /// Answers a query of a fixed structure: STATUS_INFO_LENGTH_MISMATCH when the buffer is smaller, else writes it
    /// and returns its size.
    pub fn write_struct<T: GuestValue>(self, memory: &mut impl UserMemory, value: &T) -> Result<u32, Status> {
        if self.length < T::SIZE as u64 {
            return Err(Status::INFO_LENGTH_MISMATCH);
        }
        memory.write_user(self.address, &value.to_vec())?;
        Ok(T::SIZE as u32)
    }
}

/// Plain bytes as user memory that starts at an address: for tests of marshalling code.
#[cfg(test)]
pub(crate) struct TestMemory {
    pub base: u64,
    pub bytes: Vec<u8>,
}

#[cfg(test)]
impl TestMemory {
    fn range(&self, address: u64, len: usize) -> Result<std::ops::Range<usize>, Status> {
        let start = address.checked_sub(self.base).ok_or(Status::ACCESS_VIOLATION)?;
        let end = start.checked_add(len as u64).ok_or(Status::ACCESS_VIOLATION)?;
        if end > self.bytes.len() as u64 {
            return Err(Status::ACCESS_VIOLATION);
        }
        Ok(start as usize..end as usize)
    }
}

#[cfg(test)]
impl UserMemory for TestMemory {
    fn read_user(&mut self, address: u64, buf: &mut [u8]) -> Result<(), Status> {
        let range = self.range(address, buf.len())?;
        buf.copy_from_slice(&self.bytes[range]);
        Ok(())
    }
    fn write_user(&mut self, address: u64, data: &[u8]) -> Result<(), Status> {
        let range = self.range(address, data.len())?;
        self.bytes[range].copy_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    guest_struct! {
        struct Sample: 0x10 {
            small @ 2: u16,
            wide @ 8: u64,
        }
    }

    #[test]
    fn structures_keep_their_offsets() {
        let mut memory = TestMemory { base: 0x1000, bytes: vec![0xFF; 0x20] };
        let pointer = UserPtr::<Sample>::new(0x1008);
        pointer.write(&mut memory, Sample { small: 0x1234, wide: 0x1122_3344_5566_7788 }).unwrap();
        assert_eq!(memory.bytes[8..16], [0, 0, 0x34, 0x12, 0, 0, 0, 0]);
        assert_eq!(memory.bytes[16..24], 0x1122_3344_5566_7788u64.to_le_bytes());
        assert_eq!(pointer.read(&mut memory).unwrap().small, 0x1234);
    }

    #[test]
    fn bad_pointers_are_access_violations() {
        let mut memory = TestMemory { base: 0x1000, bytes: vec![0; 0x20] };
        assert_eq!(UserPtr::<u64>::new(0x101C).read(&mut memory), Err(Status::ACCESS_VIOLATION));
        assert_eq!(UserPtr::<u64>::new(0).read_optional(&mut memory), Ok(None));
        assert_eq!(
            UserPtr::<u64>::new(0x1000).read_array(&mut memory, u64::MAX).unwrap_err(),
            Status::ACCESS_VIOLATION
        );
        assert_eq!(UserPtr::<u64>::new(0x1000).read_array(&mut memory, 1 << 40).unwrap_err(), Status::ACCESS_VIOLATION);
        let buffer = UserBuffer::new(0x1000, 4);
        assert_eq!(buffer.write(&mut memory, &[0; 5]), Err(Status::BUFFER_TOO_SMALL));
        assert_eq!(buffer.write_struct(&mut memory, &0u64), Err(Status::INFO_LENGTH_MISMATCH));
        assert_eq!(buffer.write_truncated(&mut memory, b"abcdef"), Ok(4));
    }
}
