//! Services that bring keys to files and back: NtSaveKey, NtRestoreKey, NtLoadKey and their like.
#![expect(clippy::too_many_arguments, reason = "handlers have as many as their services")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::services::{give, key_of, locate};
use super::system_hives::MOST_BYTES;
use super::{CreateOptions, KeyId, Registry, hive, notify};
use crate::io::services::open_section_file;
use crate::io::{file, status_of_io};
use crate::object::support::AttributesPtr;
use crate::object::{Body, Handle, ObjectType};
use crate::service::Call;
use crate::services;
use crate::status::Status;
use crate::strings::ObjectAttributes;
use crate::user_ptr::UserPtr;

services! { pub SERVICES;
    /// Writes a key and what is below it to a file, as a hive.
    NtSaveKey(key: Handle, file: Handle) = save_key;
    /// The same in a wanted format, of which there is one.
    NtSaveKeyEx(key: Handle, file: Handle, format: u32) = save_key_ex;
    /// Puts what a hive holds in the place of what a key holds.
    NtRestoreKey(key: Handle, file: Handle, flags: u32) = restore_key;
    /// Makes a key of a hive's contents.
    NtLoadKey(target: AttributesPtr, source: AttributesPtr) = load_key;
    /// The same with flags.
    NtLoadKey2(target: AttributesPtr, source: AttributesPtr, flags: u32) = load_key2;
    /// The same, which also can open the key.
    NtLoadKeyEx(target: AttributesPtr, source: AttributesPtr, flags: u32, trust: Handle, event: Handle, access: u32, root: UserPtr<Handle>, reserved: u64) = load_key_ex;
    /// Removes a key that was made of a hive.
    NtUnloadKey(target: AttributesPtr) = unload_key;
    /// The same with flags.
    NtUnloadKey2(target: AttributesPtr, flags: u32) = unload_key2;
}

/// SeBackupPrivilege and SeRestorePrivilege.
const BACKUP: u32 = 17;
const RESTORE: u32 = 18;
/// REG_APP_HIVE: for the caller alone, below `\Registry\A`.
const APP_HIVE: u32 = 0x10;

fn need(call: &mut Call<'_, '_>, privilege: u32) -> Result<(), Status> {
    let token = call.kernel.primary_token();
    match call.kernel.objects.body(token)? {
        Body::Token(token) if token.has_enabled(privilege) => Ok(()),
        _ => Err(Status::PRIVILEGE_NOT_HELD),
    }
}

/// The host's file behind a handle.
fn host_file(call: &Call<'_, '_>, handle: Handle, access: u32) -> Result<File, Status> {
    let object = call.object(handle, Some(ObjectType::File), access)?;
    let Body::File(file) = call.kernel.objects.body(object)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
    let file = file.host_file().ok_or(Status::INVALID_DEVICE_REQUEST)?;
    file.try_clone().map_err(|error| status_of_io(&error))
}

fn save_key_ex(call: &mut Call<'_, '_>, key: Handle, file: Handle, format: u32) -> Result<(), Status> {
    // REG_STANDARD_FORMAT, REG_LATEST_FORMAT, REG_NO_COMPRESSION.
    if !matches!(format, 1 | 2 | 4) {
        return Err(Status::INVALID_PARAMETER);
    }
    save_key(call, key, file)
}

fn save_key(call: &mut Call<'_, '_>, key: Handle, handle: Handle) -> Result<(), Status> {
    need(call, BACKUP)?;
    let key = key_of(call, key, 0)?;
    let file = host_file(call, handle, file::WRITE_DATA)?;
    let bytes = hive::write(&call.kernel.registry, key)?;
    let failed = |error: std::io::Error| status_of_io(&error);
    let (old, new) = (file.metadata().map_err(failed)?.len(), bytes.len() as u64);
    call.kernel.files.resize(old, new)?;
    file.write_all_at(&bytes, 0).and_then(|()| file.set_len(new)).map_err(failed)
}

/// Reads a hive into a registry of its own: what cannot be read changes nothing.
fn read_hive(file: &File) -> Result<(Registry, KeyId), Status> {
    let length = file.metadata().map_err(|error| status_of_io(&error))?.len();
    if length > MOST_BYTES {
        return Err(Status::INSUFFICIENT_RESOURCES);
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|error| status_of_io(&error))?;
    let mut registry = Registry::new();
    let root = registry.create_all(registry.root(), "Machine", 0)?;
    match hive::read(&mut registry, root, &bytes) {
        Ok(()) => Ok((registry, root)),
        Err(hive::HiveError::NotAHive | hive::HiveError::Version(..)) => Err(Status::NOT_REGISTRY_FILE),
        Err(hive::HiveError::Full) => Err(Status::INSUFFICIENT_RESOURCES),
        Err(_) => Err(Status::REGISTRY_CORRUPT),
    }
}

fn restore_key(call: &mut Call<'_, '_>, key: Handle, file: Handle, flags: u32) -> Result<(), Status> {
    // REG_WHOLE_HIVE_VOLATILE, REG_REFRESH_HIVE, REG_NO_LAZY_FLUSH, REG_FORCE_RESTORE.
    if flags & !0xF != 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    need(call, RESTORE)?;
    let key = key_of(call, key, 0)?;
    if call.kernel.registry.key(key)?.parent.is_none() {
        return Err(Status::ACCESS_DENIED);
    }
    let file = host_file(call, file, file::READ_DATA)?;
    let (from, root) = read_hive(&file)?;
    let now = call.kernel.clock.system_time();
    call.kernel.registry.clear(key, now)?;
    call.kernel.registry.copy(&from, root, key)?;
    notify::changed(call, key, notify::CHANGE_NAME);
    notify::changed(call, key, notify::CHANGE_LAST_SET);
    Ok(())
}

fn load_key(call: &mut Call<'_, '_>, target: AttributesPtr, source: AttributesPtr) -> Result<(), Status> {
    load_key2(call, target, source, 0)
}

fn load_key2(call: &mut Call<'_, '_>, target: AttributesPtr, source: AttributesPtr, flags: u32) -> Result<(), Status> {
    let target = target.read_attributes(call)?;
    let source = source.read_attributes(call)?;
    load(call, &target, &source, flags).map(drop)
}

fn load_key_ex(
    call: &mut Call<'_, '_>,
    target: AttributesPtr,
    source: AttributesPtr,
    flags: u32,
    _trust: Handle,
    _event: Handle,
    access: u32,
    root: UserPtr<Handle>,
    _reserved: u64,
) -> Result<(), Status> {
    let target = target.read_attributes(call)?;
    let source = source.read_attributes(call)?;
    // Only a hive of the caller's own is handed out, and nobody else finds it.
    if root.is_null() == (flags & APP_HIVE != 0) {
        return Err(Status::INVALID_PARAMETER_7);
    }
    let key = load(call, &target, &source, flags)?;
    if root.is_null() { Ok(()) } else { give(call, root, key, access, &target) }
}

fn load(
    call: &mut Call<'_, '_>,
    target: &ObjectAttributes,
    source: &ObjectAttributes,
    flags: u32,
) -> Result<KeyId, Status> {
    let (base, path) = locate(call, target)?;
    let own = flags & APP_HIVE != 0;
    if !own {
        need(call, RESTORE)?;
    } else if !path.to_ascii_lowercase().starts_with("a\\") {
        return Err(Status::INVALID_PARAMETER);
    }
    let file = open_section_file(call, source)?;
    let (from, root) = read_hive(&file.file)?;
    let now = call.kernel.clock.system_time();
    let options = CreateOptions::default();
    let registry = &mut call.kernel.registry;
    if own {
        registry.create_all(registry.root(), "A", now)?;
    }
    let (key, new) = registry.create(base, &path, options, now)?;
    if !new {
        return Err(Status::SHARING_VIOLATION);
    }
    registry.copy(&from, root, key)?;
    registry.loaded.insert(key);
    Ok(key)
}

fn unload_key2(call: &mut Call<'_, '_>, target: AttributesPtr, _flags: u32) -> Result<(), Status> {
    unload_key(call, target)
}

fn unload_key(call: &mut Call<'_, '_>, target: AttributesPtr) -> Result<(), Status> {
    let target = target.read_attributes(call)?;
    let (base, path) = locate(call, &target)?;
    need(call, RESTORE)?;
    let key = call.kernel.registry.open(base, &path)?;
    if !call.kernel.registry.loaded.remove(&key) {
        return Err(Status::INVALID_PARAMETER);
    }
    let now = call.kernel.clock.system_time();
    call.kernel.registry.clear(key, now)?;
    notify::deleting(call, key);
    call.kernel.registry.delete(key, now)
}
