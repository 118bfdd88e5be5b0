//! Transactions of the kernel transaction manager: refused.
//!
//! There is no transaction manager: none can be made, so that no handle can be one. Callers that can do without learn so
//! from the status, as on Windows where the service is not running.

use super::services::locate;
use crate::object::Handle;
use crate::object::support::AttributesPtr;
use crate::service::Call;
use crate::services;
use crate::status::Status;
use crate::strings::UnicodeString;
use crate::user_ptr::UserPtr;

services! { pub SERVICES;
    /// Begins a transaction: refused, there is no transaction manager.
    NtCreateTransaction(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, unit: u64, manager: Handle, options: u32, isolation: u32, flags: u32, timeout: u64, description: UserPtr<UnicodeString>) = create;
    /// Ends a transaction: no handle is one.
    NtCommitTransaction(transaction: Handle, wait: bool) = end;
    /// Takes a transaction back: no handle is one.
    NtRollbackTransaction(transaction: Handle, wait: bool) = end;
    /// Opens a key or creates it within a transaction: no handle is one.
    NtCreateKeyTransacted(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, title_index: u32, class: UserPtr<UnicodeString>, options: u32, transaction: Handle, disposition: UserPtr<u32>) = create_key;
    /// Opens a key within a transaction: no handle is one.
    NtOpenKeyTransacted(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, transaction: Handle) = open_key;
    /// Opens a key within a transaction, with options: no handle is one.
    NtOpenKeyTransactedEx(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, options: u32, transaction: Handle) = open_key_ex;
}

#[expect(clippy::too_many_arguments, reason = "the service has as many")]
fn create(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    _access: u32,
    _attributes: AttributesPtr,
    _unit: u64,
    _manager: Handle,
    _options: u32,
    _isolation: u32,
    _flags: u32,
    _timeout: u64,
    _description: UserPtr<UnicodeString>,
) -> Result<(), Status> {
    out.write(call, Handle::NULL)?;
    Err(Status::RM_NOT_ACTIVE)
}

/// What a handle that is to be a transaction is instead.
fn no_transaction(call: &Call<'_, '_>, handle: Handle) -> Status {
    // Whatever it names is of another type.
    call.object(handle, None, 0).err().unwrap_or(Status::OBJECT_TYPE_MISMATCH)
}

fn end(call: &mut Call<'_, '_>, transaction: Handle, _wait: bool) -> Result<(), Status> {
    Err(no_transaction(call, transaction))
}

fn open_key(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    _access: u32,
    attributes: AttributesPtr,
    transaction: Handle,
) -> Result<(), Status> {
    out.write(call, Handle::NULL)?;
    let attributes = attributes.read_attributes(call)?;
    locate(call, &attributes)?;
    Err(no_transaction(call, transaction))
}

fn open_key_ex(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
    _options: u32,
    transaction: Handle,
) -> Result<(), Status> {
    open_key(call, out, access, attributes, transaction)
}

#[expect(clippy::too_many_arguments, reason = "the service has as many")]
fn create_key(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
    _title_index: u32,
    _class: UserPtr<UnicodeString>,
    _options: u32,
    transaction: Handle,
    _disposition: UserPtr<u32>,
) -> Result<(), Status> {
    open_key(call, out, access, attributes, transaction)
}
