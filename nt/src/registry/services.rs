//! Registry services.
#![expect(clippy::too_many_arguments, reason = "handlers have as many as their services")]

use super::{CreateOptions, Key, KeyId, KeyObject, Value, notify};
use crate::io::info::{Answer, Bytes};
use crate::object::support::{AttributesPtr, name_of};
use crate::object::{Body, Device, Handle, ObjectType};
use crate::service::Call;
use crate::services;
use crate::status::Status;
use crate::strings::{ObjectAttributes, ObjectFlags, UnicodeString, utf16_bytes};
use crate::user_ptr::{UserBuffer, UserMemory, UserPtr};

services! { pub SERVICES;
    /// Opens a key or creates it.
    NtCreateKey(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, title_index: u32, class: UserPtr<UnicodeString>, options: u32, disposition: UserPtr<u32>) = create_key;
    /// Opens a key.
    NtOpenKey(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr) = open_key;
    /// Opens a key with options.
    NtOpenKeyEx(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, options: u32) = open_key_ex;
    /// Deletes a key without subkeys.
    NtDeleteKey(key: Handle) = delete_key;
    /// Renames a key.
    NtRenameKey(key: Handle, name: UserPtr<UnicodeString>) = rename_key;
    /// Brings a key to the disk: it has none.
    NtFlushKey(key: Handle) = flush_key;
    /// Tells facts about a key.
    NtQueryKey(key: Handle, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query_key;
    /// Tells facts about a subkey by its number.
    NtEnumerateKey(key: Handle, index: u32, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = enumerate_key;
    /// Tells a value by its name.
    NtQueryValueKey(key: Handle, name: UserPtr<UnicodeString>, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query_value;
    /// Tells several values by their names, their data in one buffer.
    NtQueryMultipleValueKey(key: Handle, entries: UserPtr<ValueEntry>, count: u32, buffer: u64, length: UserPtr<u32>, required: UserPtr<u32>) = query_values;
    /// Tells a value by its number.
    NtEnumerateValueKey(key: Handle, index: u32, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = enumerate_value;
    /// Sets a value.
    NtSetValueKey(key: Handle, name: UserPtr<UnicodeString>, title_index: u32, kind: u32, data: u64, length: u32) = set_value;
    /// Deletes a value.
    NtDeleteValueKey(key: Handle, name: UserPtr<UnicodeString>) = delete_value;
    /// Sets attributes of a key: write time, virtualization flags. They have no effect here.
    NtSetInformationKey(key: Handle, class: u32, buffer: u64, length: u32) = set_information;
}

/// KEY_QUERY_VALUE.
const QUERY_VALUE: u32 = 1;
/// KEY_SET_VALUE.
const SET_VALUE: u32 = 2;
/// KEY_ENUMERATE_SUB_KEYS.
const ENUMERATE_SUB_KEYS: u32 = 8;
/// DELETE.
const DELETE: u32 = 0x1_0000;

/// Key that a name is relative to, and the rest of the name.
pub(super) fn locate(call: &Call<'_, '_>, attributes: &ObjectAttributes) -> Result<(KeyId, String), Status> {
    if attributes.name.is_none() {
        return Err(Status::ACCESS_VIOLATION);
    }
    let name = name_of(attributes)?.unwrap_or_default();
    if attributes.root_directory != Handle::NULL {
        if name.starts_with('\\') {
            return Err(Status::OBJECT_PATH_SYNTAX_BAD);
        }
        return Ok((key_of(call, attributes.root_directory, 0)?, name));
    }
    let attributes = ObjectAttributes { flags: attributes.flags | ObjectFlags::CASE_INSENSITIVE, ..attributes.clone() };
    let found = call.resolve(&attributes, &name)?.map_err(|_| Status::OBJECT_NAME_NOT_FOUND)?;
    match call.kernel.objects.body(found.object)? {
        Body::Device(Device::Registry) => Ok((call.kernel.registry.root(), found.remaining.unwrap_or_default())),
        _ => Err(Status::OBJECT_TYPE_MISMATCH),
    }
}

pub(super) fn key_of(call: &Call<'_, '_>, handle: Handle, access: u32) -> Result<KeyId, Status> {
    let id = call.object(handle, Some(ObjectType::Key), access)?;
    match call.kernel.objects.body(id)? {
        Body::Key(key) => Ok(key.key),
        _ => Err(Status::OBJECT_TYPE_MISMATCH),
    }
}

/// Bits that choose between the 32-bit and the 64-bit view; there is one view.
const WOW64_VIEWS: u32 = 0x300;

pub(super) fn give(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    key: KeyId,
    access: u32,
    attributes: &ObjectAttributes,
) -> Result<(), Status> {
    let object = call.kernel.objects.insert(Body::Key(KeyObject { key }));
    let result = call.open_handle(out, object, access & !WOW64_VIEWS, attributes);
    call.kernel.objects.dereference(object);
    call.kernel.reap();
    result
}

fn create_key(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
    _title_index: u32,
    class: UserPtr<UnicodeString>,
    options: u32,
    disposition: UserPtr<u32>,
) -> Result<(), Status> {
    const VOLATILE: u32 = 1;
    const CREATE_LINK: u32 = 2;
    out.write(call, Handle::NULL)?;
    let attributes = attributes.read_attributes(call)?;
    let class = if class.is_null() { String::new() } else { class.read_text(call)? };
    let (base, path) = locate(call, &attributes)?;
    let now = call.kernel.clock.system_time();
    let options = CreateOptions {
        class: &class,
        volatile: options & VOLATILE != 0,
        link: options & CREATE_LINK != 0,
        open_link: attributes.flags.contains(ObjectFlags::OPENLINK),
    };
    let (key, new) = call.kernel.registry.create(base, &path, options, now)?;
    if new && let Some(parent) = call.kernel.registry.key(key)?.parent {
        notify::changed(call, parent, notify::CHANGE_NAME);
    }
    give(call, out, key, access, &attributes)?;
    // REG_CREATED_NEW_KEY or REG_OPENED_EXISTING_KEY.
    disposition.write_optional(call, if new { 1 } else { 2 })
}

fn open_key(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
) -> Result<(), Status> {
    out.write(call, Handle::NULL)?;
    let attributes = attributes.read_attributes(call)?;
    let (base, path) = locate(call, &attributes)?;
    let open_link = attributes.flags.contains(ObjectFlags::OPENLINK);
    let key = call.kernel.registry.open_with(base, &path, open_link)?;
    give(call, out, key, access, &attributes)
}

fn open_key_ex(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
    _options: u32,
) -> Result<(), Status> {
    open_key(call, out, access, attributes)
}

fn delete_key(call: &mut Call<'_, '_>, key: Handle) -> Result<(), Status> {
    let key = key_of(call, key, DELETE)?;
    let now = call.kernel.clock.system_time();
    match call.kernel.registry.key(key) {
        // Deleting it again changes nothing.
        Err(_) => return Ok(()),
        Ok(found) if found.parent.is_none() || found.children().len() > 0 => return Err(Status::CANNOT_DELETE),
        Ok(_) => notify::deleting(call, key),
    }
    call.kernel.registry.delete(key, now)
}

fn rename_key(call: &mut Call<'_, '_>, key: Handle, name: UserPtr<UnicodeString>) -> Result<(), Status> {
    let name = name.read_text(call)?;
    if key != Handle::NULL && name.is_empty() {
        return Err(Status::INVALID_PARAMETER);
    }
    let key = key_of(call, key, 0x6)?;
    let now = call.kernel.clock.system_time();
    call.kernel.registry.rename(key, &name, now)?;
    let parent = call.kernel.registry.key(key)?.parent;
    notify::changed(call, parent.unwrap_or(key), notify::CHANGE_NAME);
    Ok(())
}

fn flush_key(call: &mut Call<'_, '_>, key: Handle) -> Result<(), Status> {
    key_of(call, key, 0).map(|_| ())
}

/// Registry queries want BUFFER_TOO_SMALL where others want INFO_LENGTH_MISMATCH.
fn reply(
    call: &mut Call<'_, '_>,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
    answer: &Answer,
) -> Result<Status, Status> {
    // The needed length is told even when nothing fits.
    returned.write(call, u32::try_from(answer.bytes.len()).unwrap_or(u32::MAX))?;
    let (part, status) = answer.fit(length as usize).map_err(|_| Status::BUFFER_TOO_SMALL)?;
    UserBuffer::new(buffer, u64::from(length)).write(call, part)?;
    Ok(status)
}

/// Length in bytes of a name in the guest's form.
fn wide(text: &str) -> u32 {
    (text.encode_utf16().count() * 2) as u32
}

fn describe(call: &Call<'_, '_>, id: KeyId, class: u32) -> Result<Answer, Status> {
    let registry = &call.kernel.registry;
    let key: &Key = registry.key(id)?;
    let no_class = u32::MAX;
    let sizes = || {
        let names = key.children().filter_map(|child| registry.key(child).ok());
        let (name, class) =
            names.fold((0, 0), |(name, class), child| (wide(&child.name).max(name), wide(&child.class).max(class)));
        let (value, data) = key
            .values()
            .fold((0, 0), |(name, data), value| (wide(&value.name).max(name), (value.data.len() as u32).max(data)));
        [key.children().len() as u32, name, class, key.values().len() as u32, value, data]
    };
    let head = Bytes::default().i64s(&[key.last_write]).u32s(&[0]);
    Ok(match class {
        // KeyBasicInformation.
        0 => Answer { bytes: head.counted(&key.name).0, fixed: 0x10 },
        // KeyNodeInformation.
        1 => {
            let (name, class) = (utf16_bytes(&key.name), utf16_bytes(&key.class));
            let offset = if class.is_empty() { no_class } else { (0x18 + name.len()) as u32 };
            let lengths = [offset, class.len() as u32, name.len() as u32];
            Answer { bytes: head.u32s(&lengths).bytes(&name).bytes(&class).0, fixed: 0x18 }
        }
        // KeyFullInformation.
        2 => {
            let text = utf16_bytes(&key.class);
            let offset = if text.is_empty() { no_class } else { 0x2C };
            Answer { bytes: head.u32s(&[offset, text.len() as u32]).u32s(&sizes()).bytes(&text).0, fixed: 0x2C }
        }
        // KeyNameInformation.
        3 => Answer { bytes: Bytes::default().counted(&registry.path_of(id)?).0, fixed: 4 },
        // KeyCachedInformation.
        4 => {
            let [keys, name, _, values, value, data] = sizes();
            let bytes = head.u32s(&[keys, name, values, value, data, wide(&key.name), 0]);
            Answer::fixed(bytes.0)
        }
        // KeyFlagsInformation.
        5 => Answer::fixed(vec![0; 12]),
        // KeyHandleTagsInformation.
        7 => Answer::fixed(vec![0; 4]),
        _ => return Err(Status::INVALID_INFO_CLASS),
    })
}

fn query_key(
    call: &mut Call<'_, '_>,
    key: Handle,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    // The name alone needs no right.
    let key = key_of(call, key, if class == 3 { 0 } else { QUERY_VALUE })?;
    let answer = describe(call, key, class)?;
    reply(call, buffer, length, returned, &answer)
}

fn enumerate_key(
    call: &mut Call<'_, '_>,
    key: Handle,
    index: u32,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    let key = key_of(call, key, ENUMERATE_SUB_KEYS)?;
    let child = call.kernel.registry.key(key)?.children().nth(index as usize).ok_or(Status::NO_MORE_ENTRIES)?;
    if class > 2 {
        return Err(Status::INVALID_INFO_CLASS);
    }
    let answer = describe(call, child, class)?;
    reply(call, buffer, length, returned, &answer)
}

fn describe_value(value: &Value, class: u32) -> Result<Answer, Status> {
    let length = value.data.len() as u32;
    Ok(match class {
        // KeyValueBasicInformation.
        0 => Answer { bytes: Bytes::default().u32s(&[0, value.kind]).counted(&value.name).0, fixed: 0xC },
        // KeyValueFullInformation.
        1 => {
            let name = utf16_bytes(&value.name);
            let offset = (0x14 + name.len()).next_multiple_of(4);
            let mut bytes =
                Bytes::default().u32s(&[0, value.kind, offset as u32, length, name.len() as u32]).bytes(&name).0;
            bytes.resize(offset, 0);
            bytes.extend_from_slice(&value.data);
            Answer { bytes, fixed: 0x14 }
        }
        // KeyValuePartialInformation.
        2 => Answer { bytes: Bytes::default().u32s(&[0, value.kind, length]).bytes(&value.data).0, fixed: 0xC },
        // KeyValuePartialInformationAlign64.
        4 => Answer { bytes: Bytes::default().u32s(&[value.kind, length]).bytes(&value.data).0, fixed: 8 },
        _ => return Err(Status::INVALID_INFO_CLASS),
    })
}

fn query_value(
    call: &mut Call<'_, '_>,
    key: Handle,
    name: UserPtr<UnicodeString>,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    let name = name.read_text(call)?;
    let key = key_of(call, key, QUERY_VALUE)?;
    let value = call.kernel.registry.key(key)?.value(&name).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
    let answer = describe_value(value, class)?;
    reply(call, buffer, length, returned, &answer)
}

crate::guest_struct! {
    /// KEY_VALUE_ENTRY.
    struct ValueEntry: 0x18 {
        name @ 0: u64,
        data_length @ 8: u32,
        data_offset @ 0xC: u32,
        kind @ 0x10: u32,
    }
}

/// Data of several values, each at a multiple of four. A buffer that is too small is filled as far as whole values go.
fn query_values(
    call: &mut Call<'_, '_>,
    key: Handle,
    entries: UserPtr<ValueEntry>,
    count: u32,
    buffer: u64,
    length: UserPtr<u32>,
    required: UserPtr<u32>,
) -> Result<Status, Status> {
    /// Most values of one call, as on Windows.
    const MOST: u32 = 0x1_0000;
    let key = key_of(call, key, QUERY_VALUE)?;
    if count > MOST {
        return Err(Status::INSUFFICIENT_RESOURCES);
    }
    let capacity = length.read(call)?;
    let (mut offset, mut used, mut status) = (0u32, 0, Status::SUCCESS);
    for index in 0..count {
        let slot = entries.element(u64::from(index));
        let entry = slot.read(call)?;
        let name = UserPtr::<UnicodeString>::new(entry.name).read_text(call)?;
        let value = call.kernel.registry.key(key)?.value(&name).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
        let (kind, data) = (value.kind, value.data.clone());
        let at = offset.checked_next_multiple_of(4).ok_or(Status::INSUFFICIENT_RESOURCES)?;
        offset = at.checked_add(data.len() as u32).ok_or(Status::INSUFFICIENT_RESOURCES)?;
        if offset > capacity {
            status = Status::BUFFER_OVERFLOW;
            continue;
        }
        call.write_user(buffer.wrapping_add(u64::from(at)), &data)?;
        used = offset;
        slot.write(call, ValueEntry { data_length: data.len() as u32, data_offset: at, kind, ..entry })?;
    }
    length.write(call, used)?;
    required.write_optional(call, offset)?;
    Ok(status)
}

fn enumerate_value(
    call: &mut Call<'_, '_>,
    key: Handle,
    index: u32,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    let key = key_of(call, key, QUERY_VALUE)?;
    let value = call.kernel.registry.key(key)?.values().nth(index as usize).ok_or(Status::NO_MORE_ENTRIES)?;
    let answer = describe_value(value, class)?;
    reply(call, buffer, length, returned, &answer)
}

fn set_value(
    call: &mut Call<'_, '_>,
    key: Handle,
    name: UserPtr<UnicodeString>,
    _title_index: u32,
    kind: u32,
    data: u64,
    length: u32,
) -> Result<(), Status> {
    let name = name.read_text(call)?;
    let key = key_of(call, key, SET_VALUE)?;
    let data = UserBuffer::new(data, u64::from(length)).read(call)?;
    let now = call.kernel.clock.system_time();
    call.kernel.registry.set_value(key, &name, kind, data, now)?;
    notify::changed(call, key, notify::CHANGE_LAST_SET);
    Ok(())
}

fn delete_value(call: &mut Call<'_, '_>, key: Handle, name: UserPtr<UnicodeString>) -> Result<(), Status> {
    let name = name.read_text(call)?;
    let key = key_of(call, key, SET_VALUE)?;
    let now = call.kernel.clock.system_time();
    call.kernel.registry.delete_value(key, &name, now)?;
    notify::changed(call, key, notify::CHANGE_LAST_SET);
    Ok(())
}

fn set_information(call: &mut Call<'_, '_>, key: Handle, _class: u32, buffer: u64, length: u32) -> Result<(), Status> {
    key_of(call, key, SET_VALUE)?;
    let mut probe = vec![0; (length as usize).min(64)];
    call.read_user(buffer, &mut probe)
}
