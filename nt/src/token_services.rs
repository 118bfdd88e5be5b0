//! Services of access tokens.
#![expect(clippy::too_many_arguments, reason = "handlers have as many as their services")]

use crate::io::info::{Answer, Bytes};
use crate::object::support::AttributesPtr;
use crate::object::{Body, Handle, ObjectType};
use crate::service::Call;
use crate::services;
use crate::status::Status;
use crate::token::{GROUPS, Sid, Token, TokenType};
use crate::user_ptr::{UserBuffer, UserMemory, UserPtr};

services! { pub SERVICES;
    /// Opens a process's token.
    NtOpenProcessToken(process: Handle, access: u32, out: UserPtr<Handle>) = open_process_token;
    /// Opens a process's token with handle attributes.
    NtOpenProcessTokenEx(process: Handle, access: u32, attributes: u32, out: UserPtr<Handle>) = open_process_token_ex;
    /// Opens a thread's token: no thread impersonates.
    NtOpenThreadToken(thread: Handle, access: u32, as_self: bool, out: UserPtr<Handle>) = open_thread_token;
    /// Opens a thread's token with handle attributes: no thread impersonates.
    NtOpenThreadTokenEx(thread: Handle, access: u32, as_self: bool, attributes: u32, out: UserPtr<Handle>) = open_thread_token_ex;
    /// Tells facts about a token.
    NtQueryInformationToken(token: Handle, class: u32, buffer: u64, length: u32, returned: UserPtr<u32>) = query_information;
    /// Enables, disables or removes privileges.
    NtAdjustPrivilegesToken(token: Handle, disable_all: bool, new: u64, length: u32, previous: u64, returned: UserPtr<u32>) = adjust_privileges;
    /// Whether privileges are enabled.
    NtPrivilegeCheck(token: Handle, set: u64, result: UserPtr<u8>) = privilege_check;
    /// Copies a token.
    NtDuplicateToken(token: Handle, access: u32, attributes: AttributesPtr, effective_only: bool, kind: u32, out: UserPtr<Handle>) = duplicate_token;
    /// Checks access: the one user there is may do everything.
    NtAccessCheck(descriptor: u64, token: Handle, desired: u32, mapping: UserPtr<[u32; 4]>, privileges: u64, privileges_length: UserPtr<u32>, granted: UserPtr<u32>, status: UserPtr<u32>) = access_check;
}

/// TOKEN_QUERY.
const QUERY: u32 = 8;
/// TOKEN_ADJUST_PRIVILEGES.
const ADJUST_PRIVILEGES: u32 = 0x20;
/// TOKEN_DUPLICATE.
const DUPLICATE: u32 = 2;
/// Most privileges a caller may list.
const MAX_PRIVILEGES: u32 = 128;

fn open_process_token(
    call: &mut Call<'_, '_>,
    process: Handle,
    access: u32,
    out: UserPtr<Handle>,
) -> Result<(), Status> {
    open_process_token_ex(call, process, access, 0, out)
}

fn open_process_token_ex(
    call: &mut Call<'_, '_>,
    process: Handle,
    access: u32,
    attributes: u32,
    out: UserPtr<Handle>,
) -> Result<(), Status> {
    out.write(call, Handle::NULL)?;
    call.object(process, Some(ObjectType::Process), 0)?;
    let object = call.kernel.primary_token();
    let handle = call.kernel.objects.open(&mut call.kernel.handles, object, access, attributes)?;
    call.give_handle(out, handle)
}

fn open_thread_token(
    call: &mut Call<'_, '_>,
    thread: Handle,
    _access: u32,
    _as_self: bool,
    out: UserPtr<Handle>,
) -> Result<(), Status> {
    out.write(call, Handle::NULL)?;
    call.object(thread, Some(ObjectType::Thread), 0)?;
    Err(Status::NO_TOKEN)
}

fn open_thread_token_ex(
    call: &mut Call<'_, '_>,
    thread: Handle,
    access: u32,
    as_self: bool,
    _attributes: u32,
    out: UserPtr<Handle>,
) -> Result<(), Status> {
    open_thread_token(call, thread, access, as_self, out)
}

impl crate::kernel::Kernel {
    pub(crate) fn primary_token(&mut self) -> crate::object::ObjectId {
        match self.system.token {
            Some(id) => id,
            None => {
                let id = self.objects.insert(Body::Token(Token::primary(0x3E9)));
                self.system.token = Some(id);
                id
            }
        }
    }
}

/// The token behind a handle, the pseudo handles of process and effective token included.
fn token<'a>(call: &'a mut Call<'_, '_>, handle: Handle, access: u32) -> Result<&'a mut Token, Status> {
    let id = match handle {
        Handle::CURRENT_PROCESS_TOKEN | Handle::CURRENT_EFFECTIVE_TOKEN => call.kernel.primary_token(),
        Handle::CURRENT_THREAD_TOKEN => return Err(Status::NO_TOKEN),
        handle => call.object(handle, Some(ObjectType::Token), access)?,
    };
    match call.kernel.objects.body_mut(id)? {
        Body::Token(token) => Ok(token),
        _ => Err(Status::OBJECT_TYPE_MISMATCH),
    }
}

/// SID_AND_ATTRIBUTES entries behind `head` bytes, then the SIDs; `base` is the buffer's address.
fn sids(head: Vec<u8>, list: &[(Sid, u32)], base: u64) -> Vec<u8> {
    let mut texts = Vec::new();
    let start = head.len() + 16 * list.len();
    let mut bytes = head;
    for (sid, attributes) in list {
        let at = base.wrapping_add((start + texts.len()) as u64);
        bytes.extend(at.to_le_bytes());
        bytes.extend(attributes.to_le_bytes());
        bytes.extend([0; 4]);
        texts.extend(sid.to_bytes());
    }
    bytes.extend(texts);
    bytes
}

/// A pointer to the SID right behind it.
fn one_sid(sid: Sid, base: u64) -> Vec<u8> {
    [&base.wrapping_add(8).to_le_bytes()[..], &sid.to_bytes()].concat()
}

fn counted_sids(list: &[(Sid, u32)], base: u64) -> Vec<u8> {
    sids(Bytes::default().u32s(&[list.len() as u32, 0]).0, list, base)
}

fn query_information(
    call: &mut Call<'_, '_>,
    handle: Handle,
    class: u32,
    buffer: u64,
    length: u32,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    const INTEGRITY_ENABLED: u32 = 0x60;
    const LOGON_ID: u32 = 0x3E7_0001;
    let session = call.kernel.system.session;
    // TOKEN_QUERY_SOURCE alone is enough for the source.
    let token = token(call, handle, if class == 7 { 0x10 } else { QUERY })?;
    let privileges = token.privileges.len() as u32;
    let number = |value: u32| value.to_le_bytes().to_vec();
    let bytes = match class {
        // TokenUser, TokenGroups.
        1 => sids(Vec::new(), &[(Sid::USER, 0)], buffer),
        2 => counted_sids(GROUPS, buffer),
        // TokenPrivileges.
        3 => {
            let list = token.privileges.iter();
            list.fold(Bytes::default().u32s(&[privileges]), |bytes, &(luid, attributes)| {
                bytes.u32s(&[luid, 0, attributes])
            })
            .0
        }
        // TokenOwner, TokenPrimaryGroup, TokenDefaultDacl.
        4 => one_sid(Sid::USER, buffer),
        5 => one_sid(Sid::DOMAIN_USERS, buffer),
        6 => vec![0; 8],
        // TokenSource.
        7 => Bytes::default().bytes(b"User32 \0").u32s(&[LOGON_ID, 0]).0,
        // TokenType, TokenImpersonationLevel.
        8 => number(token.kind as u32),
        9 if token.kind == TokenType::Primary => return Err(Status::INVALID_PARAMETER),
        9 => number(token.impersonation_level),
        // TokenStatistics.
        10 => {
            Bytes::default()
                .u64s(&[token.id, u64::from(LOGON_ID)])
                .i64s(&[i64::MAX])
                .u32s(&[token.kind as u32, token.impersonation_level, 0x1000, 0, GROUPS.len() as u32, privileges])
                .u64s(&[token.modified_id])
                .0
        }
        // TokenRestrictedSids, TokenCapabilities, TokenRestrictedDeviceGroups.
        11 | 30 | 38 => vec![0; 8],
        // TokenSessionId.
        12 => number(session),
        // TokenSandBoxInert, TokenHasRestrictions, TokenVirtualization (allowed, enabled), TokenUIAccess,
        // TokenIsAppContainer.
        15 | 21 | 23 | 24 | 26 | 29 => number(0),
        // TokenOrigin.
        17 => Bytes::default().u64s(&[0x3E7]).0,
        // TokenElevationType (default), TokenElevation.
        18 | 20 => number(1),
        // TokenIntegrityLevel, TokenLogonSid.
        25 => sids(Vec::new(), &[(Sid::HIGH_INTEGRITY, INTEGRITY_ENABLED)], buffer),
        28 => counted_sids(GROUPS.last().map(std::slice::from_ref).unwrap_or(&[]), buffer),
        // TokenMandatoryPolicy: no write up.
        27 => number(1),
        // TokenAppContainerSid.
        31 => vec![0; 8],
        // TokenAppContainerNumber.
        32 => number(0),
        // TokenLinkedToken.
        19 => return Err(Status::NO_SUCH_LOGON_SESSION),
        _ => return Err(Status::INVALID_INFO_CLASS),
    };
    returned.write(call, bytes.len() as u32)?;
    if (length as usize) < bytes.len() {
        return Err(Status::BUFFER_TOO_SMALL);
    }
    call.answer(UserBuffer::new(buffer, u64::from(length)), returned, &Answer::fixed(bytes))
}

/// Reads TOKEN_PRIVILEGES (or the list of PRIVILEGE_SET) as pairs of LUID and attributes.
fn read_privileges(call: &mut Call<'_, '_>, list: u64, count: u32) -> Result<Vec<[u32; 3]>, Status> {
    if count > MAX_PRIVILEGES {
        return Err(Status::INVALID_PARAMETER);
    }
    UserPtr::<[u32; 3]>::new(list).read_array(call, u64::from(count))
}

fn adjust_privileges(
    call: &mut Call<'_, '_>,
    handle: Handle,
    disable_all: bool,
    new: u64,
    length: u32,
    previous: u64,
    returned: UserPtr<u32>,
) -> Result<Status, Status> {
    token(call, handle, ADJUST_PRIVILEGES)?;
    let wanted: Vec<(u32, u32)> = if disable_all {
        token(call, handle, 0)?.privileges.iter().map(|&(luid, _)| (luid, 0)).collect()
    } else {
        let count = UserPtr::<u32>::new(new).read(call)?;
        let list = read_privileges(call, new.wrapping_add(4), count)?;
        list.into_iter().filter(|&[_, high, _]| high == 0).map(|[luid, _, attributes]| (luid, attributes)).collect()
    };
    if previous != 0 {
        let needed = 4 + 12 * wanted.len() as u32;
        returned.write(call, needed)?;
        if length < needed {
            return Err(Status::BUFFER_TOO_SMALL);
        }
    }
    let token = token(call, handle, 0)?;
    let mut changed = Vec::new();
    let mut all = true;
    for (luid, attributes) in wanted {
        match token.adjust(luid, attributes) {
            Some(was) if was & 2 != attributes & 2 => changed.push((luid, was)),
            Some(_) => {}
            None => all = false,
        }
    }
    if previous != 0 {
        let head = Bytes::default().u32s(&[changed.len() as u32]);
        let bytes = changed.iter().fold(head, |bytes, &(luid, was)| bytes.u32s(&[luid, 0, was])).0;
        call.write_user(previous, &bytes)?;
    }
    Ok(if all { Status::SUCCESS } else { Status::NOT_ALL_ASSIGNED })
}

fn privilege_check(call: &mut Call<'_, '_>, handle: Handle, set: u64, result: UserPtr<u8>) -> Result<(), Status> {
    const ALL_NECESSARY: u32 = 1;
    let [count, control] = UserPtr::<[u32; 2]>::new(set).read(call)?;
    let list = read_privileges(call, set.wrapping_add(8), count)?;
    let token = token(call, handle, QUERY)?;
    let mut has = list.iter().map(|&[luid, high, _]| high == 0 && token.has_enabled(luid));
    let granted = if control & ALL_NECESSARY != 0 { has.all(|has| has) } else { has.any(|has| has) };
    result.write(call, u8::from(granted))
}

fn duplicate_token(
    call: &mut Call<'_, '_>,
    handle: Handle,
    access: u32,
    attributes: AttributesPtr,
    _effective_only: bool,
    kind: u32,
    out: UserPtr<Handle>,
) -> Result<(), Status> {
    out.write(call, Handle::NULL)?;
    let kind = match kind {
        1 => TokenType::Primary,
        2 => TokenType::Impersonation,
        _ => return Err(Status::INVALID_PARAMETER),
    };
    let attributes = attributes.read_attributes_optional(call)?;
    let id = call.kernel.system.allocate_luid();
    // SecurityImpersonation.
    let copy = Token { kind, impersonation_level: 2, id, modified_id: id, ..token(call, handle, DUPLICATE)?.clone() };
    let object = call.kernel.objects.insert(Body::Token(copy));
    let result = call.open_handle(out, object, access, &attributes);
    call.kernel.objects.dereference(object);
    result
}

fn access_check(
    call: &mut Call<'_, '_>,
    _descriptor: u64,
    handle: Handle,
    desired: u32,
    mapping: UserPtr<[u32; 4]>,
    _privileges: u64,
    _privileges_length: UserPtr<u32>,
    granted: UserPtr<u32>,
    status: UserPtr<u32>,
) -> Result<(), Status> {
    const MAXIMUM_ALLOWED: u32 = 0x0200_0000;
    if token(call, handle, QUERY)?.kind == TokenType::Primary {
        return Err(Status::NO_IMPERSONATION_TOKEN);
    }
    let all = mapping.read(call)?[3];
    granted.write(call, if desired & MAXIMUM_ALLOWED != 0 { all } else { desired })?;
    status.write(call, Status::SUCCESS.0)
}
