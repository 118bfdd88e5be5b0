//! Services of all objects: closing, duplicating, querying; directories and symbolic links.
#![expect(clippy::too_many_arguments, reason = "handlers have as many as their services")]

use super::namespace::{Directory, SymbolicLink};
use super::support::{AttributesPtr, unicode_string};
use super::{Body, Handle, ObjectType};
use crate::io::info::{Answer, Bytes};
use crate::service::Call;
use crate::services;
use crate::status::Status;
use crate::strings::{UnicodeString, utf16_bytes};
use crate::token::Sid;
use crate::user_ptr::{UserBuffer, UserMemory, UserPtr};

services! { pub SERVICES;
    /// Closes a handle.
    NtClose(handle: Handle) = close;
    /// Copies a handle, into the same process.
    NtDuplicateObject(source_process: Handle, source: Handle, target_process: Handle, target: UserPtr<Handle>, access: u32, attributes: u32, options: u32) = duplicate;
    /// Tells an object's counts, name, type or its handle's flags.
    NtQueryObject(handle: Handle, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query;
    /// Sets a handle's flags.
    NtSetInformationObject(handle: Handle, class: u32, buffer: UserPtr<[u8; 2]>, length: u32) = set_information;
    /// Whether two handles name one object.
    NtCompareObjects(first: Handle, second: Handle) = compare;
    /// Lets an object's name go with its last handle.
    NtMakeTemporaryObject(handle: Handle) = make_temporary;
    /// Lets an object outlive its handles.
    NtMakePermanentObject(handle: Handle) = make_permanent;
    /// Tells an object's security descriptor: the owner, and no access list.
    NtQuerySecurityObject(handle: Handle, information: u32, descriptor: u64, length: u32, needed: UserPtr<u32>) = query_security;
    /// Accepts a security descriptor; everything stays open to the one user there is.
    NtSetSecurityObject(handle: Handle, information: u32, descriptor: u64) = set_security;
    /// Creates a directory of the name space.
    NtCreateDirectoryObject(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr) = create_directory;
    /// Opens a directory of the name space.
    NtOpenDirectoryObject(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr) = open_directory;
    /// Lists a directory of the name space.
    NtQueryDirectoryObject(handle: Handle, buffer: u64, length: u32, single: bool, restart: bool, context: UserPtr<u32>, returned: UserPtr<u32>) = query_directory;
    /// Creates a link of the name space.
    NtCreateSymbolicLinkObject(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, target: UserPtr<UnicodeString>) = create_link;
    /// Opens a link of the name space itself.
    NtOpenSymbolicLinkObject(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr) = open_link;
    /// Tells a link's target.
    NtQuerySymbolicLinkObject(handle: Handle, target: UserPtr<UnicodeString>, returned: UserPtr<u32>) = query_link;
}

fn close(call: &mut Call<'_, '_>, handle: Handle) -> Result<(), Status> {
    if handle.is_pseudo() {
        return Ok(());
    }
    call.kernel.objects.close(&mut call.kernel.handles, handle)?;
    call.kernel.reap();
    Ok(())
}

fn duplicate(
    call: &mut Call<'_, '_>,
    source_process: Handle,
    source: Handle,
    target_process: Handle,
    target: UserPtr<Handle>,
    access: u32,
    attributes: u32,
    options: u32,
) -> Result<(), Status> {
    const DUP_HANDLE: u32 = crate::process::access::DUP_HANDLE;
    const CLOSE_SOURCE: u32 = 1;
    const SAME_ACCESS: u32 = 2;
    const SAME_ATTRIBUTES: u32 = 4;
    target.write_optional(call, Handle::NULL)?;
    let from = call.process_by_handle(source_process, DUP_HANDLE)?;
    // The target may be absent when the source is only closed.
    let to = match target_process {
        Handle::NULL if options & CLOSE_SOURCE != 0 => None,
        process => Some(call.process_by_handle(process, DUP_HANDLE)?),
    };
    let own = call.kernel.process.id;
    let (object, entry) = if source.is_pseudo() {
        // Another process's "current thread" is none; its "current process" is what it says.
        let object = match source {
            Handle::CURRENT_PROCESS => call.kernel.process_by_id(from).map(|process| process.object),
            _ if from == own => Some(call.object(source, None, 0)?),
            _ => None,
        };
        (object.ok_or(Status::INVALID_HANDLE)?, None)
    } else {
        let entry = call.kernel.handles_of(from)?.get(source)?;
        (entry.object, Some(entry))
    };
    let same = entry.map_or(0x0200_0000, |entry| entry.access);
    let access = if options & SAME_ACCESS != 0 { same } else { access };
    let attributes = match (options & SAME_ATTRIBUTES != 0, entry) {
        (true, Some(entry)) => u32::from(entry.inherit) * super::manager::attributes::INHERIT,
        _ => attributes,
    };
    call.kernel.objects.reference(object);
    if options & CLOSE_SOURCE != 0 && entry.is_some() {
        // Before the new handle is made, which can so get the old one's value; one that is protected from closing just
        // stays.
        let _ = call.kernel.close_for(from, source);
    }
    let opened = to.map(|to| call.kernel.open_for(to, object, access, attributes));
    call.kernel.objects.dereference(object);
    call.kernel.reap();
    match opened.transpose()? {
        Some(handle) if !target.is_null() => target.write(call, handle),
        _ => Ok(()),
    }
}

fn query(
    call: &mut Call<'_, '_>,
    handle: Handle,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    // ObjectTypesInformation is about no handle.
    if class == 3 {
        let mut bytes = Bytes::default().u32s(&[ObjectType::ALL.len() as u32, 0]).0;
        for &kind in ObjectType::ALL {
            let at = buffer.wrapping_add(bytes.len() as u64);
            bytes.extend(call.kernel.describe_type(kind, at));
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        return answer_whole(call, UserBuffer::new(buffer, u64::from(length)), returned, &bytes);
    }
    let id = call.object(handle, None, 0)?;
    let entry = if handle.is_pseudo() { None } else { Some(call.kernel.handles.get(handle)?) };
    let object = call.kernel.objects.get(id).ok_or(Status::INVALID_HANDLE)?;
    let kind = object.body.object_type();
    let answer = match class {
        // ObjectBasicInformation.
        0 => {
            let access = entry.map_or(0x1F_FFFF, |entry| entry.access);
            let attributes = u32::from(object.permanent) * super::manager::attributes::PERMANENT;
            let pointers = object.handle_count.saturating_add(object.pointer_count);
            let counts = [attributes, access, object.handle_count, pointers, 0, 0, 0, 0, 0, 0, 0, 0];
            Answer::fixed(Bytes::default().u32s(&counts).i64s(&[0]).0)
        }
        // ObjectNameInformation.
        1 => {
            let text = utf16_bytes(&call.kernel.object_name(id)?);
            let head = if text.is_empty() { vec![0; 16] } else { unicode_string(text.len(), buffer.wrapping_add(16)) };
            let tail: &[u8] = if text.is_empty() { &[] } else { &[0, 0] };
            let bytes = [&head, &text[..], tail].concat();
            // Only the name of a file is told in part.
            if kind != ObjectType::File {
                return answer_whole(call, UserBuffer::new(buffer, u64::from(length)), returned, &bytes);
            }
            Answer { bytes, fixed: 16 }
        }
        // ObjectTypeInformation.
        2 => {
            let bytes = call.kernel.describe_type(kind, buffer);
            return answer_whole(call, UserBuffer::new(buffer, u64::from(length)), returned, &bytes);
        }
        // ObjectHandleFlagInformation.
        4 => {
            let entry = entry.ok_or(Status::INVALID_HANDLE)?;
            Answer::fixed(vec![u8::from(entry.inherit), u8::from(entry.protect_from_close)])
        }
        _ => return Err(Status::INVALID_INFO_CLASS),
    };
    call.answer(UserBuffer::new(buffer, u64::from(length)), returned, &answer)
}

/// An answer that is told as a whole or not at all.
fn answer_whole(
    call: &mut Call<'_, '_>,
    buffer: UserBuffer,
    returned: UserPtr<u32>,
    bytes: &[u8],
) -> Result<Status, Status> {
    returned.write_optional(call, u32::try_from(bytes.len()).unwrap_or(u32::MAX))?;
    if buffer.length < bytes.len() as u64 {
        return Err(Status::INFO_LENGTH_MISMATCH);
    }
    call.write_user(buffer.address, bytes)?;
    Ok(Status::SUCCESS)
}

impl crate::kernel::Kernel {
    /// OBJECT_TYPE_INFORMATION, with the name behind it, as it stands at an address.
    fn describe_type(&self, kind: ObjectType, address: u64) -> Vec<u8> {
        let name = utf16_bytes(kind.name());
        let (objects, handles) = self
            .objects
            .iter()
            .filter(|(_, o)| o.body.object_type() == kind)
            .fold((0u32, 0u32), |(objects, handles), (_, object)| {
                (objects + 1, handles.saturating_add(object.handle_count))
            });
        let mut bytes = unicode_string(name.len(), address.wrapping_add(0x68));
        // Objects and handles now; pool usage, which is not counted; the most there were at a time: no fewer than now.
        bytes.extend([objects, handles, 0, 0, 0, 0, objects, handles].map(u32::to_le_bytes).concat());
        bytes.resize(0x44, 0);
        let mapping = kind.generic_mapping();
        bytes.extend(mapping.map(u32::to_le_bytes).concat());
        bytes.extend(kind.valid_access().to_le_bytes());
        bytes.extend([0, 0, kind.index(), 0]);
        bytes.resize(0x68, 0);
        bytes.extend(name);
        bytes.extend([0, 0]);
        bytes
    }
}

fn set_information(
    call: &mut Call<'_, '_>,
    handle: Handle,
    class: u32,
    buffer: UserPtr<[u8; 2]>,
    length: u32,
) -> Result<(), Status> {
    if class != 4 {
        return Err(Status::INVALID_INFO_CLASS);
    }
    if length < 2 {
        return Err(Status::INFO_LENGTH_MISMATCH);
    }
    let [inherit, protect] = buffer.read(call)?;
    if handle.is_pseudo() {
        return Ok(());
    }
    let entry = call.kernel.handles.get_mut(handle)?;
    entry.inherit = inherit != 0;
    entry.protect_from_close = protect != 0;
    Ok(())
}

fn compare(call: &mut Call<'_, '_>, first: Handle, second: Handle) -> Result<(), Status> {
    if call.object(first, None, 0)? == call.object(second, None, 0)? { Ok(()) } else { Err(Status::NOT_SAME_OBJECT) }
}

fn make_temporary(call: &mut Call<'_, '_>, handle: Handle) -> Result<(), Status> {
    let id = call.object(handle, None, super::super::io::file::DELETE)?;
    call.kernel.objects.make_temporary(id);
    Ok(())
}

fn make_permanent(call: &mut Call<'_, '_>, handle: Handle) -> Result<(), Status> {
    call.object(handle, None, 0)?;
    Err(Status::PRIVILEGE_NOT_HELD)
}

fn query_security(
    call: &mut Call<'_, '_>,
    handle: Handle,
    information: u32,
    descriptor: u64,
    length: u32,
    needed: UserPtr<u32>,
) -> Result<(), Status> {
    const OWNER: u32 = 1;
    const GROUP: u32 = 2;
    const DACL: u32 = 4;
    call.object(handle, None, 0)?;
    // SECURITY_DESCRIPTOR_RELATIVE: revision 1, SE_SELF_RELATIVE, a present but NULL list when it is asked for.
    let control = 0x8000u16 | if information & DACL != 0 { 4 } else { 0 };
    let mut sids = Vec::new();
    let mut offsets = [0u32; 2];
    for (offset, (bit, sid)) in offsets.iter_mut().zip([(OWNER, Sid::USER), (GROUP, Sid::DOMAIN_USERS)]) {
        if information & bit != 0 {
            *offset = 20 + sids.len() as u32;
            sids.extend(sid.to_bytes());
        }
    }
    let mut bytes = vec![1, 0];
    bytes.extend(control.to_le_bytes());
    bytes.extend([offsets[0], offsets[1], 0, 0].map(u32::to_le_bytes).concat());
    bytes.extend(sids);
    needed.write(call, bytes.len() as u32)?;
    if (length as usize) < bytes.len() {
        return Err(Status::BUFFER_TOO_SMALL);
    }
    call.write_user(descriptor, &bytes)
}

fn set_security(call: &mut Call<'_, '_>, handle: Handle, _information: u32, descriptor: u64) -> Result<(), Status> {
    call.object(handle, None, 0)?;
    UserPtr::<[u8; 4]>::new(descriptor).read(call)?;
    Ok(())
}

fn create_directory(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
) -> Result<Status, Status> {
    call.create_object(out, access, attributes, Body::Directory(Directory::default()))
}

fn open_directory(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
) -> Result<(), Status> {
    call.open_object(out, access, attributes, ObjectType::Directory)
}

fn query_directory(
    call: &mut Call<'_, '_>,
    handle: Handle,
    buffer: u64,
    length: u32,
    single: bool,
    restart: bool,
    context: UserPtr<u32>,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    /// OBJECT_DIRECTORY_INFORMATION.
    const ENTRY: usize = 0x20;
    let id = call.object(handle, Some(ObjectType::Directory), 1)?;
    let told = context.read(call)? as usize;
    let start = if restart { 0 } else { told };
    let Body::Directory(directory) = call.kernel.objects.body(id)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
    let mut entries: Vec<[Vec<u8>; 2]> = Vec::new();
    let mut size = ENTRY;
    let mut more = false;
    let mut first_needed = ENTRY;
    for (name, object) in directory.iter().skip(start) {
        let kind = call.kernel.objects.body(object)?.object_type().name();
        let texts = [name, kind].map(|text| [utf16_bytes(text), vec![0, 0]].concat());
        let needed = ENTRY + texts[0].len() + texts[1].len();
        if entries.is_empty() {
            first_needed = size + needed;
        }
        if size + needed > length as usize || single && !entries.is_empty() {
            more = true;
            break;
        }
        size += needed;
        entries.push(texts);
    }
    if entries.is_empty() {
        let needed = if more { first_needed } else { ENTRY };
        // With nothing to tell, the terminating entry is all there is.
        if !more && length as usize >= ENTRY {
            call.write_user(buffer, &[0; ENTRY])?;
        }
        returned.write_optional(call, needed as u32)?;
        return Err(if more { Status::BUFFER_TOO_SMALL } else { Status::NO_MORE_ENTRIES });
    }
    // An array of entries, a zero one at its end, then the texts.
    let mut at = buffer.wrapping_add(((entries.len() + 1) * ENTRY) as u64);
    let mut heads = Vec::new();
    for text in entries.iter().flatten() {
        heads.extend(unicode_string(text.len() - 2, at));
        at = at.wrapping_add(text.len() as u64);
    }
    heads.resize(heads.len() + ENTRY, 0);
    let bytes = [heads, entries.concat().concat()].concat();
    call.write_user(buffer, &bytes)?;
    context.write(call, (start + entries.len()) as u32)?;
    returned.write_optional(call, bytes.len() as u32)?;
    Ok(if more && !single { Status::MORE_ENTRIES } else { Status::SUCCESS })
}

fn create_link(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
    target: UserPtr<UnicodeString>,
) -> Result<Status, Status> {
    out.write(call, Handle::NULL)?;
    let raw = target.read(call)?;
    if raw.maximum_length == 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    let target = raw.read_text(call)?;
    if target.is_empty() {
        return Err(Status::INVALID_PARAMETER_4);
    }
    let target = String::from_utf16_lossy(&target);
    // A link without a name could never be followed.
    attributes.read(call)?;
    call.create_object(out, access, attributes, Body::SymbolicLink(SymbolicLink { target }))
}

fn open_link(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
) -> Result<(), Status> {
    out.write(call, Handle::NULL)?;
    if attributes.is_null() {
        return Err(Status::INVALID_PARAMETER);
    }
    let attributes = attributes.read_attributes(call)?;
    let name = super::support::wanted_name(&attributes)?;
    let root = match attributes.root_directory {
        Handle::NULL => None,
        handle if name.is_empty() => Some(call.object(handle, None, 0)?),
        handle => Some(call.object(handle, Some(ObjectType::Directory), 0)?),
    };
    let flags = attributes.flags.bits() | super::manager::attributes::OPENLINK;
    let found = call.kernel.objects.resolve(root, &name, flags)?.map_err(|_| Status::OBJECT_NAME_NOT_FOUND)?;
    if found.remaining.is_some() || !matches!(call.kernel.objects.body(found.object)?, Body::SymbolicLink(_)) {
        return Err(Status::OBJECT_TYPE_MISMATCH);
    }
    call.open_handle(out, found.object, access, &attributes)
}

fn query_link(
    call: &mut Call<'_, '_>,
    handle: Handle,
    target: UserPtr<UnicodeString>,
    returned: UserPtr<u32>,
) -> Result<(), Status> {
    let Body::SymbolicLink(link) = call.body(handle, ObjectType::SymbolicLink, 1)? else {
        return Err(Status::OBJECT_TYPE_MISMATCH);
    };
    let mut text = utf16_bytes(&link.target);
    // Terminated; the terminator counts for the room that is needed and not for the length.
    text.extend([0, 0]);
    let string = target.read(call)?;
    returned.write_optional(call, text.len() as u32)?;
    if usize::from(string.maximum_length) < text.len() {
        return Err(Status::BUFFER_TOO_SMALL);
    }
    call.write_user(string.buffer, &text)?;
    target.write(call, UnicodeString { length: text.len() as u16 - 2, ..string })
}
