//! Structures of the guest kernel that host code reads and writes field by field, time and again: their pages are checked
//! once, not at each access.
#![expect(unsafe_code, reason = "guest memory is raw host memory")]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use lstar_arch::PAGE_SIZE;
use lstar_translator::abi::USER_END;

use super::table::{Entry, FRAME_MASK};
use super::{AddressSpace, CODE, Protection};

/// Source of epochs: unique among all machines of the process, and never 0.
static EPOCHS: AtomicU64 = AtomicU64::new(1);

/// `N` bytes of plain kernel data whose pages have been checked; valid until any page of the kernel half changes.
#[derive(Clone, Copy, Debug)]
pub struct Pin<const N: usize> {
    address: u64,
    bytes: *mut u8,
    epoch: u64,
}

// SAFETY: the pointer is used only by `Pinned`, on the thread that holds the address space, as long as the epoch says that
// it points to N bytes of the space's memory file.
unsafe impl<const N: usize> Send for Pin<N> {}
// SAFETY: as for `Send`; a pin itself never changes.
unsafe impl<const N: usize> Sync for Pin<N> {}

impl<const N: usize> Pin<N> {
    /// Guest address of the first byte.
    #[inline]
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// Structures that were pinned together: one look says whether all are still valid.
#[derive(Clone, Copy, Debug)]
pub struct PinGroup<const A: usize, const B: usize, const C: usize, const D: usize, const E: usize> {
    pins: (Pin<A>, Pin<B>, Pin<C>, Pin<D>, Pin<E>),
}

impl<const A: usize, const B: usize, const C: usize, const D: usize, const E: usize> PinGroup<A, B, C, D, E> {
    /// Groups pins; `None` unless all were made since any page of the kernel half last changed.
    #[must_use]
    pub fn new(pins: (Pin<A>, Pin<B>, Pin<C>, Pin<D>, Pin<E>)) -> Option<Self> {
        let epochs = [pins.1.epoch, pins.2.epoch, pins.3.epoch, pins.4.epoch];
        epochs.iter().all(|&epoch| epoch == pins.0.epoch).then_some(Self { pins })
    }

    /// Guest addresses of the structures.
    #[inline(always)]
    #[must_use]
    pub fn addresses(&self) -> [u64; 5] {
        let (a, b, c, d, e) = &self.pins;
        [a.address, b.address, c.address, d.address, e.address]
    }
}

/// Access to an address space's pinned structures.
#[derive(Debug)]
pub struct Pinned<'a> {
    epoch: u64,
    // Not to be shared with other threads, either.
    memory: PhantomData<(&'a mut AddressSpace, *mut u8)>,
}

impl Pinned<'_> {
    /// A structure's fields; `None` when any page of the kernel half has changed its state since it was pinned.
    #[inline(always)]
    #[must_use]
    pub fn fields<const N: usize>(&self, pin: &Pin<N>) -> Option<Fields<'_, N>> {
        (pin.epoch == self.epoch).then_some(Fields { bytes: pin.bytes, memory: PhantomData })
    }
}

impl Pinned<'_> {
    /// The fields of each of a group's structures; `None` as in [`Pinned::fields`].
    #[inline(always)]
    #[must_use]
    pub fn group<const A: usize, const B: usize, const C: usize, const D: usize, const E: usize>(
        &self,
        group: &PinGroup<A, B, C, D, E>,
    ) -> Option<(Fields<'_, A>, Fields<'_, B>, Fields<'_, C>, Fields<'_, D>, Fields<'_, E>)> {
        #[inline(always)]
        fn fields<'a, const N: usize>(pin: &Pin<N>) -> Fields<'a, N> {
            Fields { bytes: pin.bytes, memory: PhantomData }
        }
        let (a, b, c, d, e) = &group.pins;
        // All have the same epoch.
        (a.epoch == self.epoch).then(|| (fields(a), fields(b), fields(c), fields(d), fields(e)))
    }
}

/// The fields of a pinned structure, by their offset in bytes. Several may be held at once, and may overlap.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a, const N: usize> {
    bytes: *mut u8,
    memory: PhantomData<&'a Pinned<'a>>,
}

impl<const N: usize> Fields<'_, N> {
    /// `LEN` bytes; zeros where they are not wholly inside the structure.
    #[inline(always)]
    #[must_use]
    pub fn get<const LEN: usize>(self, offset: u32) -> [u8; LEN] {
        if offset as usize > N || LEN > N - offset as usize {
            return [0; LEN];
        }
        // SAFETY: inside the structure, as just checked. The pin was made by this machine, as epochs are unique, and no page
        // has changed since: the structure lies in the memory file. `Pinned` borrows the address space, through which all
        // other accesses of Rust code go, and translated code does not run while Rust code holds the borrow.
        unsafe { self.bytes.add(offset as usize).cast::<[u8; LEN]>().read() }
    }

    /// Writes bytes; nothing where they are not wholly inside the structure.
    #[inline(always)]
    pub fn put<const LEN: usize>(self, offset: u32, value: [u8; LEN]) {
        if offset as usize > N || LEN > N - offset as usize {
            return;
        }
        // SAFETY: as in `get`.
        unsafe { self.bytes.add(offset as usize).cast::<[u8; LEN]>().write(value) }
    }

    /// A quadword.
    #[inline(always)]
    #[must_use]
    pub fn quad(self, offset: u32) -> u64 {
        u64::from_le_bytes(self.get(offset))
    }

    /// A doubleword.
    #[inline(always)]
    #[must_use]
    pub fn double(self, offset: u32) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }

    /// Writes a quadword.
    #[inline(always)]
    pub fn put_quad(self, offset: u32, value: u64) {
        self.put(offset, value.to_le_bytes());
    }
}

impl AddressSpace {
    /// Checks a structure of plain kernel data: present, writable, not on a page from which code was fetched, and in one
    /// piece in the memory file. `None` for anything else.
    pub fn pin<const N: usize>(&mut self, address: u64) -> Option<Pin<N>> {
        let plain = |entry: Entry| entry as u8 & (Protection::WRITE.bits() | CODE) == Protection::WRITE.bits();
        let last = address.checked_add(N as u64)?.checked_sub(1)?;
        let pages = last / PAGE_SIZE - address / PAGE_SIZE;
        if address < USER_END || pages > 1 {
            return None;
        }
        let (first, second) = (self.entry(address), self.entry(last));
        let joined = first & FRAME_MASK == (second & FRAME_MASK).wrapping_sub(pages * PAGE_SIZE);
        if !plain(first) || !plain(second) || !joined {
            return None;
        }
        if self.epoch == 0 {
            self.epoch = EPOCHS.fetch_add(1, Ordering::Relaxed);
        }
        let bytes = self.store.file.pointer((first & FRAME_MASK) + address % PAGE_SIZE, N);
        Some(Pin { address, bytes, epoch: self.epoch })
    }

    /// Access to what [`AddressSpace::pin`] has checked.
    #[inline(always)]
    pub fn pinned(&mut self) -> Pinned<'_> {
        Pinned { epoch: self.epoch, memory: PhantomData }
    }
}
