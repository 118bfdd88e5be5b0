//! UNICODE_STRING and OBJECT_ATTRIBUTES as callers pass them.

use bitflags::bitflags;

use crate::service::Handle;
use crate::status::Status;
use crate::user_ptr::{GuestValue, UserBuffer, UserMemory, UserPtr};

crate::guest_struct! {
    /// UNICODE_STRING: counted UTF-16, lengths in bytes.
    pub struct UnicodeString: 0x10 {
        /// Bytes used.
        pub length @ 0: u16,
        /// Bytes available.
        pub maximum_length @ 2: u16,
        /// Address of the first code unit.
        pub buffer @ 8: u64,
    }
}

impl UnicodeString {
    /// Reads the text. An odd length is STATUS_INVALID_PARAMETER.
    pub fn read_text(&self, memory: &mut impl UserMemory) -> Result<Vec<u16>, Status> {
        if !self.length.is_multiple_of(2) {
            return Err(Status::INVALID_PARAMETER);
        }
        let bytes = UserBuffer::new(self.buffer, u64::from(self.length)).read(memory)?;
        Ok(bytes.chunks_exact(2).map(u16::from_bytes).collect())
    }
}

/// Longest name of an object in bytes.
const MAX_NAME: u16 = 65_532;

impl UnicodeString {
    /// Reads the text as the name of an object: one of odd or excessive length is STATUS_OBJECT_NAME_INVALID.
    fn read_name(&self, memory: &mut impl UserMemory) -> Result<Vec<u16>, Status> {
        if self.length != 0 && !self.buffer.is_multiple_of(2) {
            return Err(Status::DATATYPE_MISALIGNMENT);
        }
        if !self.length.is_multiple_of(2) || self.length > MAX_NAME {
            return Err(Status::OBJECT_NAME_INVALID);
        }
        self.read_text(memory)
    }
}

impl UserPtr<UnicodeString> {
    /// Reads the text as UTF-16 code units.
    pub fn read_utf16(self, memory: &mut impl UserMemory) -> Result<Vec<u16>, Status> {
        self.read(memory)?.read_text(memory)
    }

    /// Reads the text; unpaired surrogates become U+FFFD.
    pub fn read_text(self, memory: &mut impl UserMemory) -> Result<String, Status> {
        Ok(String::from_utf16_lossy(&self.read_utf16(memory)?))
    }
}

bitflags! {
    /// OBJ_* attributes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct ObjectFlags: u32 {
        /// OBJ_INHERIT.
        const INHERIT = 0x2;
        /// OBJ_PERMANENT.
        const PERMANENT = 0x10;
        /// OBJ_EXCLUSIVE.
        const EXCLUSIVE = 0x20;
        /// OBJ_CASE_INSENSITIVE.
        const CASE_INSENSITIVE = 0x40;
        /// OBJ_OPENIF.
        const OPENIF = 0x80;
        /// OBJ_OPENLINK.
        const OPENLINK = 0x100;
        /// OBJ_KERNEL_HANDLE.
        const KERNEL_HANDLE = 0x200;
    }
}

crate::guest_struct! {
    /// OBJECT_ATTRIBUTES.
    pub struct RawObjectAttributes: 0x30 {
        /// Size of the structure.
        pub length @ 0: u32,
        /// Directory, key or file the name is relative to.
        pub root_directory @ 8: u64,
        /// Pointer to a UNICODE_STRING.
        pub object_name @ 0x10: u64,
        /// OBJ_* flags.
        pub attributes @ 0x18: u32,
        /// Pointer to a security descriptor.
        pub security_descriptor @ 0x20: u64,
        /// Pointer to SECURITY_QUALITY_OF_SERVICE.
        pub security_quality_of_service @ 0x28: u64,
    }
}

/// OBJECT_ATTRIBUTES with the name read.
#[derive(Clone, Debug, Default)]
pub struct ObjectAttributes {
    /// Directory, key or file the name is relative to; the null handle for none.
    pub root_directory: Handle,
    /// The name; `None` when there is none (an empty one is `Some("")`).
    pub name: Option<Vec<u16>>,
    /// OBJ_* flags; unknown bits are dropped.
    pub flags: ObjectFlags,
}

impl ObjectAttributes {
    /// The name as text, lossy; empty when there is none.
    #[must_use]
    pub fn name_text(&self) -> String {
        self.name.as_deref().map(String::from_utf16_lossy).unwrap_or_default()
    }
}

impl UserPtr<RawObjectAttributes> {
    /// Reads the structure and its name. A wrong length is STATUS_INVALID_PARAMETER.
    pub fn read_attributes(self, memory: &mut impl UserMemory) -> Result<ObjectAttributes, Status> {
        let raw = self.read(memory)?;
        if raw.length as usize != RawObjectAttributes::SIZE {
            return Err(Status::INVALID_PARAMETER);
        }
        let name = match raw.object_name {
            0 => None,
            address => Some(UserPtr::<UnicodeString>::new(address).read(memory)?.read_name(memory)?),
        };
        Ok(ObjectAttributes {
            root_directory: Handle(raw.root_directory),
            name,
            flags: ObjectFlags::from_bits_truncate(raw.attributes),
        })
    }

    /// The same, with NULL standing for an unnamed object without flags.
    pub fn read_attributes_optional(self, memory: &mut impl UserMemory) -> Result<ObjectAttributes, Status> {
        if self.is_null() { Ok(ObjectAttributes::default()) } else { self.read_attributes(memory) }
    }
}

/// `text` as UTF-16 in little-endian bytes, without a terminator.
#[must_use]
pub fn utf16_bytes(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user_ptr::TestMemory;

    #[test]
    fn object_attributes_with_name() {
        let mut memory = TestMemory { base: 0x1000, bytes: vec![0; 0x200] };
        memory.write_user(0x1100, &utf16_bytes("\\??\\C:\\a")).unwrap();
        let name = UnicodeString { length: 16, maximum_length: 18, buffer: 0x1100 };
        UserPtr::new(0x1080).write(&mut memory, name).unwrap();
        let raw = RawObjectAttributes {
            length: 0x30,
            root_directory: 0x44,
            object_name: 0x1080,
            attributes: 0x40,
            ..Default::default()
        };
        let pointer = UserPtr::<RawObjectAttributes>::new(0x1000);
        pointer.write(&mut memory, raw).unwrap();
        let read = pointer.read_attributes(&mut memory).unwrap();
        assert_eq!(read.name_text(), "\\??\\C:\\a");
        assert_eq!((read.root_directory, read.flags), (Handle(0x44), ObjectFlags::CASE_INSENSITIVE));

        pointer.write(&mut memory, RawObjectAttributes { length: 0x2C, ..raw }).unwrap();
        assert_eq!(pointer.read_attributes(&mut memory).unwrap_err(), Status::INVALID_PARAMETER);
        UserPtr::new(0x1080).write(&mut memory, UnicodeString { length: 15, ..name }).unwrap();
        assert_eq!(
            UserPtr::<UnicodeString>::new(0x1080).read_text(&mut memory).unwrap_err(),
            Status::INVALID_PARAMETER
        );
    }
}
