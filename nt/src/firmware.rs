//! SystemFirmwareTableInformation: what GetSystemFirmwareTable tells of the machine's SMBIOS.
//!
//! The table describes this machine and no host: the same bytes in every run. Source: the SMBIOS reference specification
//! (DSP0134) for the structures, the Windows SDK's GetSystemFirmwareTable for RawSMBIOSData.

use crate::io::info::Bytes;
use crate::service::Call;
use crate::status::Status;
use crate::user_ptr::{UserBuffer, UserMemory as _, UserPtr};

/// SYSTEM_FIRMWARE_TABLE_INFORMATION without its table: provider, action, identifier, length.
const HEAD: u32 = 0x10;
/// The provider 'RSMB'.
const RAW_SMBIOS: u32 = 0x5253_4D42;
/// SystemFirmwareTable_Enumerate and SystemFirmwareTable_Get.
const ENUMERATE: u32 = 0;
const GET: u32 = 1;

/// One SMBIOS structure: its formatted part behind type, length and handle, and its strings.
fn structure(kind: u8, handle: u16, formatted: &[u8], strings: &[&str]) -> Vec<u8> {
    let mut bytes = vec![kind, formatted.len() as u8 + 4];
    bytes.extend(handle.to_le_bytes());
    bytes.extend(formatted);
    for string in strings {
        bytes.extend(string.as_bytes());
        bytes.push(0);
    }
    if strings.is_empty() {
        bytes.push(0);
    }
    bytes.push(0);
    bytes
}

/// RawSMBIOSData: versions, length and the structures.
fn raw_smbios() -> Vec<u8> {
    const UUID: [u8; 16] = *b"lstar\0\0\x40\x80machine";
    // Vendor, version, segment, date, size, "characteristics not supported", extension bytes, releases.
    let bios = [&[1, 2][..], &[0, 0xF0], &[3, 0], &[8, 0, 0, 0, 0, 0, 0, 0], &[0, 0, 1, 0, 0xFF, 0xFF]].concat();
    // Manufacturer, product, version, serial number, UUID, woken by the power switch, no SKU, no family.
    let system = [&[1, 2, 3, 4][..], &UUID, &[6, 0, 0]].concat();
    // Manufacturer, product, version, serial number.
    let board = [1, 2, 3, 4];
    // Manufacturer, "other" kind, version, serial number, asset tag, states "safe", no security.
    let chassis = [1, 1, 2, 3, 0, 3, 3, 3, 2];
    let table = [
        structure(0, 0, &bios, &["lstar", "1.0", "01/01/2020"]),
        structure(1, 1, &system, &["lstar", "Virtual machine", "1.0", "0"]),
        structure(2, 2, &board, &["lstar", "Virtual board", "1.0", "0"]),
        structure(3, 3, &chassis, &["lstar", "1.0", "0"]),
        structure(127, 4, &[], &[]),
    ]
    .concat();
    // Not by calling the BIOS; SMBIOS 2.4.
    Bytes::default().bytes(&[0, 2, 4, 0]).u32s(&[table.len() as u32]).bytes(&table).0
}

/// Answers NtQuerySystemInformation.
pub(crate) fn query(
    call: &mut Call<'_, '_>,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    if length < HEAD {
        returned.write_optional(call, HEAD)?;
        return Err(Status::INFO_LENGTH_MISMATCH);
    }
    let [provider, action, identifier] = UserPtr::<[u32; 3]>::new(buffer).read(call)?;
    let table = match (provider, action, identifier) {
        // There is one table, number 0.
        (RAW_SMBIOS, ENUMERATE, _) => vec![0; 4],
        (RAW_SMBIOS, GET, 0) => raw_smbios(),
        (RAW_SMBIOS, GET, _) => Vec::new(),
        _ => {
            returned.write_optional(call, 0)?;
            return Err(Status::NOT_IMPLEMENTED);
        }
    };
    let size = table.len() as u32;
    returned.write_optional(call, HEAD + size)?;
    call.write_user(buffer + u64::from(HEAD) - 4, &size.to_le_bytes())?;
    if length - HEAD < size {
        return Err(Status::BUFFER_TOO_SMALL);
    }
    UserBuffer::new(buffer + u64::from(HEAD), u64::from(size)).write(call, &table)?;
    Ok(Status::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_can_be_walked() {
        let raw = raw_smbios();
        assert_eq!(u32::from_le_bytes(*raw[4..].first_chunk().unwrap()) as usize, raw.len() - 8);
        let (mut rest, mut kinds) = (&raw[8..], Vec::new());
        while let [kind, length, ..] = *rest {
            kinds.push(kind);
            let strings = &rest[usize::from(length)..];
            let end = strings.windows(2).position(|pair| pair == [0, 0]).expect("the strings end");
            rest = &strings[end + 2..];
        }
        assert_eq!(kinds, [0, 1, 2, 3, 127]);
        assert!(rest.is_empty());
    }
}
