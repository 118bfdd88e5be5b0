//! PAGE_* protections.

use lstar_runtime::Protection;

use crate::status::Status;

/// A PAGE_* value: one basic protection, perhaps with modifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageProtection(u32);

#[expect(missing_docs, reason = "the NT names say it all")]
impl PageProtection {
    pub const NOACCESS: Self = Self(0x1);
    pub const READONLY: Self = Self(0x2);
    pub const READWRITE: Self = Self(0x4);
    pub const WRITECOPY: Self = Self(0x8);
    pub const EXECUTE: Self = Self(0x10);
    pub const EXECUTE_READ: Self = Self(0x20);
    pub const EXECUTE_READWRITE: Self = Self(0x40);
    pub const EXECUTE_WRITECOPY: Self = Self(0x80);
}

const GUARD: u32 = 0x100;
const NOCACHE: u32 = 0x200;
const WRITECOMBINE: u32 = 0x400;
/// PAGE_TARGETS_INVALID and PAGE_TARGETS_NO_UPDATE are one bit: control-flow guard's, without effect here.
const TARGETS_INVALID: u32 = 0x4000_0000;

impl PageProtection {
    /// Checks a caller's value: exactly one basic protection; no modifiers on PAGE_NOACCESS; one caching mode at most.
    pub fn from_raw(raw: u32) -> Result<Self, Status> {
        let raw = raw & !TARGETS_INVALID;
        let basic = raw & 0xFF;
        let modifiers = raw & !0xFF;
        let known = modifiers & !(GUARD | NOCACHE | WRITECOMBINE) == 0;
        let exclusive = modifiers & (NOCACHE | WRITECOMBINE) != NOCACHE | WRITECOMBINE;
        if !basic.is_power_of_two() || !known || !exclusive || basic == Self::NOACCESS.0 && modifiers != 0 {
            return Err(Status::INVALID_PAGE_PROTECTION);
        }
        Ok(Self(raw))
    }

    /// The value as callers see it.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// PAGE_GUARD is set.
    #[must_use]
    pub const fn is_guard(self) -> bool {
        self.0 & GUARD != 0
    }

    /// No section can be created with it.
    #[must_use]
    pub const fn is_noaccess_or_guard(self) -> bool {
        self.0 & (Self::NOACCESS.0 | GUARD) != 0
    }

    /// With PAGE_GUARD.
    #[must_use]
    pub const fn with_guard(self) -> Self {
        Self(self.0 | GUARD)
    }

    /// Without PAGE_GUARD.
    #[must_use]
    pub const fn without_guard(self) -> Self {
        Self(self.0 & !GUARD)
    }

    /// One of the PAGE_EXECUTE rights.
    #[must_use]
    pub const fn is_executable(self) -> bool {
        self.0 & 0xF0 != 0
    }

    /// PAGE_WRITECOPY or PAGE_EXECUTE_WRITECOPY.
    #[must_use]
    pub const fn is_copy(self) -> bool {
        self.0 & (Self::WRITECOPY.0 | Self::EXECUTE_WRITECOPY.0) != 0
    }

    /// The hardware's rights. A guard page has none, so that the first access faults; a copy-on-write page cannot be
    /// written, so that the first write faults.
    #[must_use]
    pub fn access(self) -> Protection {
        if self.is_guard() {
            return Protection::empty();
        }
        match Self(self.0 & 0xFF) {
            Self::NOACCESS => Protection::empty(),
            Self::READONLY | Self::WRITECOPY => Protection::READ,
            Self::READWRITE => Protection::RW,
            Self::EXECUTE_READWRITE => Protection::RWX,
            _ => Protection::RX,
        }
    }

    /// Whether pages of something with protection `granted` may have this protection: it must not grant more, except
    /// that a copy may always be written.
    #[must_use]
    pub fn is_compatible_with(self, granted: Self) -> bool {
        // EXECUTE alone does not grant reading.
        let rights = |protection: Self| {
            let access = Self(protection.0 & 0xFF).access();
            if protection.0 & 0xFF == Self::EXECUTE.0 { access - Protection::READ } else { access }
        };
        rights(granted).contains(rights(self))
    }

    /// What remains after the first write to a copy-on-write page: the copy's protection.
    #[must_use]
    pub const fn written(self) -> Self {
        match self.0 & 0xFF {
            0x8 => Self(self.0 & !0xFF | Self::READWRITE.0),
            0x80 => Self(self.0 & !0xFF | Self::EXECUTE_READWRITE.0),
            _ => self,
        }
    }

    /// Write rights become copy-on-write: what asking for them means on pages of an image that are still shared.
    #[must_use]
    pub const fn copying(self) -> Self {
        match self.0 & 0xFF {
            0x4 => Self(self.0 & !0xFF | Self::WRITECOPY.0),
            0x40 => Self(self.0 & !0xFF | Self::EXECUTE_WRITECOPY.0),
            _ => self,
        }
    }

    /// With the caching of the allocation, which no later change of protection can alter.
    #[must_use]
    pub const fn with_caching_of(self, allocation: Self) -> Self {
        let caching = NOCACHE | WRITECOMBINE;
        if self.0 & 0xFF == Self::NOACCESS.0 { self } else { Self(self.0 & !caching | allocation.0 & caching) }
    }

    /// With the caching that a section's SEC_* attributes ask for.
    #[must_use]
    pub const fn with_caching_of_section(self, attributes: u32) -> Self {
        use super::section::attributes as sec;
        if self.0 & 0xFF == Self::NOACCESS.0 || attributes & sec::IMAGE != 0 {
            return self;
        }
        let nocache = if attributes & sec::NOCACHE != 0 { NOCACHE } else { 0 };
        let combine = if attributes & sec::WRITECOMBINE != 0 { WRITECOMBINE } else { 0 };
        Self(self.0 & !(NOCACHE | WRITECOMBINE) | nocache | combine)
    }

    /// Protection of a section of an image, from its read, write and execute flags. Images are private copies.
    #[must_use]
    pub const fn of_image_section(read: bool, write: bool, execute: bool) -> Self {
        match (read, write, execute) {
            (_, true, true) => Self::EXECUTE_WRITECOPY,
            (_, true, false) => Self::WRITECOPY,
            (true, false, true) => Self::EXECUTE_READ,
            (false, false, true) => Self::EXECUTE,
            (true, false, false) => Self::READONLY,
            (false, false, false) => Self::NOACCESS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_callers_may_pass() {
        for good in [0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x40, 0x80, 0x104, 0x204, 0x404, 0x140, 0x4000_0040] {
            assert!(PageProtection::from_raw(good).is_ok(), "{good:#x}");
        }
        for bad in [0, 0x3, 0x6, 0x100, 0x101, 0x201, 0x604, 0x804, 0x8000_0004] {
            assert_eq!(PageProtection::from_raw(bad), Err(Status::INVALID_PAGE_PROTECTION), "{bad:#x}");
        }
    }

    #[test]
    fn views_never_exceed_their_section() {
        let section = PageProtection::READONLY;
        assert!(PageProtection::READONLY.is_compatible_with(section));
        assert!(PageProtection::WRITECOPY.is_compatible_with(section));
        assert!(!PageProtection::READWRITE.is_compatible_with(section));
        assert!(!PageProtection::EXECUTE_READ.is_compatible_with(section));
        assert_eq!(PageProtection::READWRITE.with_guard().access(), Protection::empty());
    }
}
