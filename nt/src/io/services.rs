//! Services that open, query and change files.
#![expect(clippy::too_many_arguments, reason = "handlers have as many as their services")]

use super::afd::{self, Socket};
use super::changes::filter;
use super::console::ConsoleEnd;
use super::directory::{EntryLayout, fill};
use super::file::{self, FileKind, FileObject};
use super::filesystem::{CreateRequest, CreateResult, FileSystem, NewTimes, options};
use super::info::{self, Answer, Bytes};
use super::mailslot_services;
use super::path::NtPath;
use super::pipe::PipeEnd;
use super::pipe_services;
use super::transfer::Completion;
use super::volume::Found;
use crate::kernel::Kernel;
use crate::memory::section::SectionFile;
use crate::object::support::{AttributesPtr, name_of, read_information};
use crate::object::{Body, Device, Handle, ObjectId, ObjectType};
use crate::service::Call;
use crate::services;
use crate::status::Status;
use crate::strings::{ObjectAttributes, UnicodeString};
use crate::user_ptr::{UserBuffer, UserMemory, UserPtr};

/// IO_STATUS_BLOCK, written by [`Call::write_io_status`].
pub type IoStatusPtr = UserPtr<u64>;

services! { pub SERVICES;
    /// Opens or creates a file or directory.
    NtCreateFile(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, io_status: IoStatusPtr, allocation: UserPtr<i64>, file_attributes: u32, share: u32, disposition: u32, options: u32, ea: u64, ea_length: u32) = create_file;
    /// Opens a file or directory.
    NtOpenFile(out: UserPtr<Handle>, access: u32, attributes: AttributesPtr, io_status: IoStatusPtr, share: u32, options: u32) = open_file;
    /// Deletes a file by its name.
    NtDeleteFile(attributes: AttributesPtr) = delete_file;
    /// Tells a file's times and attributes by its name.
    NtQueryAttributesFile(attributes: AttributesPtr, buffer: u64) = query_attributes;
    /// Tells a file's times, sizes and attributes by its name.
    NtQueryFullAttributesFile(attributes: AttributesPtr, buffer: u64) = query_full_attributes;
    /// Tells facts about an open file.
    NtQueryInformationFile(file: Handle, io_status: IoStatusPtr, buffer: u64, length: u32, class: u32) = query_information;
    /// Changes an open file: times, position, size, name, deletion, completion port.
    NtSetInformationFile(file: Handle, io_status: IoStatusPtr, buffer: u64, length: u32, class: u32) = set_information;
    /// Tells facts about the volume or device of an open file.
    NtQueryVolumeInformationFile(file: Handle, io_status: IoStatusPtr, buffer: u64, length: u32, class: u32) = query_volume;
    /// Lists a directory.
    NtQueryDirectoryFile(file: Handle, event: Handle, apc: u64, apc_context: u64, io_status: IoStatusPtr, buffer: u64, length: u32, class: u32, single: bool, pattern: UserPtr<UnicodeString>, restart: bool) = query_directory;
    /// Sets extended attributes: refused.
    NtSetEaFile(file: Handle, io_status: IoStatusPtr, buffer: u64, length: u32) = set_ea;
    /// Sets facts about a volume: refused.
    NtSetVolumeInformationFile(file: Handle, io_status: IoStatusPtr, buffer: u64, length: u32, class: u32) = set_volume;
    /// Tells extended attributes: there are none.
    NtQueryEaFile(file: Handle, io_status: IoStatusPtr, buffer: u64, length: u32, single: bool, list: u64, list_length: u32, index: UserPtr<u32>, restart: bool) = query_ea;
}

/// Where a file name leads.
enum Target {
    Volume(usize, NtPath),
    Device(FileKind, String),
    /// A pipe by its name, or by a server's end.
    Pipe(String, Option<PipeEnd>),
    /// A mailslot by its name.
    Mailslot(String),
}

/// Follows the name of a file, absolute or relative to an open directory.
fn locate(call: &Call<'_, '_>, attributes: &ObjectAttributes) -> Result<Target, Status> {
    let name = name_of(attributes)?.unwrap_or_default();
    if attributes.root_directory != Handle::NULL {
        let root = call.object(attributes.root_directory, None, 0)?;
        if let Body::File(file) = call.kernel.objects.body(root)? {
            return match file.kind {
                FileKind::Console(_) => console_end(call.kernel, &name),
                _ => relative(file, &name),
            };
        }
    }
    if name.is_empty() {
        return Err(Status::OBJECT_PATH_SYNTAX_BAD);
    }
    // Drives and devices have no case, whatever the caller says.
    let mut attributes = attributes.clone();
    attributes.flags |= crate::strings::ObjectFlags::CASE_INSENSITIVE;
    let found = call.resolve(&attributes, &name)?.map_err(|_| Status::OBJECT_NAME_NOT_FOUND)?;
    let Body::Device(device) = call.kernel.objects.body(found.object)? else {
        return Err(Status::OBJECT_TYPE_MISMATCH);
    };
    let path = call.kernel.objects.path_of(found.object);
    match (device, found.remaining.as_deref()) {
        (Device::Volume(volume), Some(rest)) => Ok(Target::Volume(*volume, NtPath::parse(rest)?)),
        (Device::Volume(volume), None) => Ok(Target::Device(FileKind::Volume(*volume), path)),
        (Device::Null, None | Some("")) => Ok(Target::Device(FileKind::Null, path)),
        (Device::Console, Some(rest)) => console_end(call.kernel, rest),
        (Device::Sockets, _) => Ok(Target::Device(FileKind::Socket(Box::default()), path)),
        (Device::Random, None | Some("")) => Ok(Target::Device(FileKind::Random, path)),
        (Device::NamedPipe, None | Some("")) => Ok(Target::Device(FileKind::PipeRoot, path)),
        (Device::NamedPipe, Some(rest)) => Ok(Target::Pipe(rest.to_owned(), None)),
        (Device::Mailslot, None | Some("")) => Ok(Target::Device(FileKind::MailslotRoot, path)),
        (Device::Mailslot, Some(rest)) => Ok(Target::Mailslot(rest.to_owned())),
        (Device::MountManager, None | Some("")) => Ok(Target::Device(FileKind::MountManager, path)),
        (Device::Registry, _) => Err(Status::OBJECT_TYPE_MISMATCH),
        _ => Err(Status::OBJECT_NAME_NOT_FOUND),
    }
}

/// An end of the console by its name, if there is one.
fn console_end(kernel: &Kernel, name: &str) -> Result<Target, Status> {
    let end = match name.to_ascii_lowercase().as_str() {
        "input" | "currentin" => ConsoleEnd::Input,
        // Which one is meant would follow from the access; programs that read from it name the input.
        "output" | "currentout" | "console" => ConsoleEnd::Output,
        "connection" | "reference" if kernel.console.is_some() => ConsoleEnd::Connection,
        // No console beside the host's, as for a process that was started without one.
        "connection" | "reference" | "server" => return Err(Status::NOT_SUPPORTED),
        "screenbuffer" => return Err(Status::INVALID_HANDLE),
        _ => return Err(Status::OBJECT_NAME_NOT_FOUND),
    };
    match kernel.console {
        Some(_) => Ok(Target::Device(FileKind::Console(end), "\\Device\\ConDrv".to_owned())),
        None => Err(Status::INVALID_HANDLE),
    }
}

/// A name that is to be relative to something, but is not there at all. (One without characters is fine: pipes can have
/// none.)
fn require_name(attributes: &ObjectAttributes) -> Result<(), Status> {
    match attributes.name {
        None if attributes.root_directory != Handle::NULL => Err(Status::OBJECT_NAME_INVALID),
        _ => Ok(()),
    }
}

/// Follows a name that is a file's identifier, on the volume of an open file.
fn locate_identifier(call: &Call<'_, '_>, attributes: &ObjectAttributes) -> Result<Target, Status> {
    let root = call.object(attributes.root_directory, Some(ObjectType::File), 0)?;
    let name = attributes.name.as_deref().unwrap_or_default();
    let (volume, path) = call.kernel.files.by_identifier(call.kernel.file(root)?, name)?;
    Ok(Target::Volume(volume, path))
}

/// The name of a pipe to be made: what follows the device, empty for one without a name.
pub(super) fn locate_pipe(call: &Call<'_, '_>, attributes: &ObjectAttributes) -> Result<String, Status> {
    require_name(attributes)?;
    match locate(call, attributes)? {
        Target::Pipe(name, None) => Ok(name),
        _ => Err(Status::OBJECT_NAME_INVALID),
    }
}

/// The name of a mailslot to be made.
pub(super) fn locate_mailslot(call: &Call<'_, '_>, attributes: &ObjectAttributes) -> Result<String, Status> {
    require_name(attributes)?;
    match locate(call, attributes)? {
        Target::Mailslot(name) if !name.is_empty() => Ok(name),
        _ => Err(Status::OBJECT_NAME_INVALID),
    }
}

/// Opens a file by its name to make a section of it.
pub fn open_section_file(call: &Call<'_, '_>, attributes: &ObjectAttributes) -> Result<SectionFile, Status> {
    let Target::Volume(volume, path) = locate(call, attributes)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
    let files = &call.kernel.files;
    let volumes = files.volumes();
    let found = volumes.get(volume).ok_or(Status::OBJECT_PATH_NOT_FOUND)?.lookup(&path.parts)?;
    let mut node = match found {
        Found::File(node) => node,
        Found::Directory(_) => return Err(Status::FILE_IS_A_DIRECTORY),
        Found::Missing(..) => return Err(Status::OBJECT_NAME_NOT_FOUND),
    };
    let file = volumes[volume].open_file(&mut node, false)?;
    let name = format!("{}{}", FileSystem::device_name(volume), NtPath::display(&node.path()));
    Ok(SectionFile { file, name, held: None })
}

fn relative(file: &FileObject, name: &str) -> Result<Target, Status> {
    match file.kind {
        FileKind::Pipe(end) if name.is_empty() => {
            return Ok(Target::Pipe(file.name.trim_start_matches('\\').to_owned(), Some(end)));
        }
        FileKind::PipeRoot => return Ok(Target::Pipe(name.to_owned(), None)),
        FileKind::MailslotRoot => return Ok(Target::Mailslot(name.to_owned())),
        _ => {}
    }
    if name.starts_with('\\') {
        return Err(Status::INVALID_PARAMETER);
    }
    let mut path = NtPath::parse(name)?;
    match &file.kind {
        FileKind::Directory { volume, directory, .. } => {
            path.parts.splice(0..0, directory.path.iter().cloned());
            path.directory &= !name.is_empty();
            Ok(Target::Volume(*volume, path))
        }
        // An empty name opens the same file once more.
        FileKind::Disk { volume, path: own, .. } if name.is_empty() => {
            Ok(Target::Volume(*volume, NtPath { parts: own.clone(), directory: false }))
        }
        FileKind::Volume(volume) => Ok(Target::Volume(*volume, path)),
        _ => Err(Status::OBJECT_PATH_NOT_FOUND),
    }
}

fn locate_path(call: &mut Call<'_, '_>, attributes: AttributesPtr) -> Result<(usize, NtPath), Status> {
    let attributes = attributes.read_attributes(call)?;
    match locate(call, &attributes)? {
        Target::Volume(volume, path) => Ok((volume, path)),
        Target::Device(..) | Target::Pipe(..) | Target::Mailslot(_) => Err(Status::INVALID_DEVICE_REQUEST),
    }
}

/// What is asked for beside the name.
struct Wish {
    access: u32,
    file_attributes: u32,
    share: u32,
    disposition: u32,
    options: u32,
    /// Address family, type and protocol of the socket that it is to be.
    socket: Option<[u32; 3]>,
}

fn open(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    attributes: AttributesPtr,
    io_status: IoStatusPtr,
    wish: &Wish,
) -> Result<(), Status> {
    // A failure leaves no handle.
    out.write(call, Handle::NULL)?;
    let attributes = attributes.read_attributes(call)?;
    let access = ObjectType::File.map_access(wish.access);
    let target = match wish.options & options::OPEN_BY_FILE_ID {
        0 => locate(call, &attributes)?,
        _ => locate_identifier(call, &attributes)?,
    };
    let (object, result) = match target {
        Target::Volume(..) | Target::Pipe(..) | Target::Mailslot(..) if wish.socket.is_some() => {
            return Err(Status::EAS_NOT_SUPPORTED);
        }
        Target::Volume(volume, path) => call.kernel.files.create(&CreateRequest {
            volume,
            path,
            access,
            attributes: wish.file_attributes,
            share: wish.share,
            disposition: wish.disposition,
            options: wish.options,
        })?,
        // The null device takes any option, but nobody may delete it: its security grants reading, writing, executing.
        Target::Device(FileKind::Null, _) if wish.options & options::DELETE_ON_CLOSE != 0 => {
            return Err(Status::ACCESS_DENIED);
        }
        Target::Device(ref kind, _)
            if wish.options & options::DIRECTORY_FILE != 0 && !matches!(kind, FileKind::Null) =>
        {
            return Err(Status::NOT_A_DIRECTORY);
        }
        Target::Pipe(name, server) => {
            let mut end = pipe_services::connect(call, &name, server, access)?;
            end.options = wish.options;
            (end, CreateResult::Opened)
        }
        Target::Mailslot(name) => {
            let end = mailslot_services::open(call.kernel, &name, access, wish.options)?;
            (end, CreateResult::Opened)
        }
        Target::Device(kind, name) => {
            let kind = match (kind, wish.socket) {
                (FileKind::Socket(_), Some(socket)) => {
                    FileKind::Socket(Box::new(Socket::open(call.kernel.afd.access, socket)?))
                }
                (_, Some(_)) => return Err(Status::EAS_NOT_SUPPORTED),
                (kind, None) => kind,
            };
            (FileObject::device(kind, &name, access, wish.options), CreateResult::Opened)
        }
    };
    let body = Body::File(Box::new(object));
    let flags = attributes.flags.bits();
    let handle = call.kernel.objects.open_new(&mut call.kernel.handles, body, access, flags);
    call.kernel.reap();
    call.give_handle(out, handle?)?;
    call.write_io_status(io_status, Status::SUCCESS, result as u64)
}

fn create_file(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
    io_status: IoStatusPtr,
    _allocation: UserPtr<i64>,
    file_attributes: u32,
    share: u32,
    disposition: u32,
    options: u32,
    ea: u64,
    ea_length: u32,
) -> Result<(), Status> {
    // Extended attributes say what socket is to be made, and nothing else.
    let socket = if ea_length == 0 { None } else { Some(afd::native::open_packet(call, ea, ea_length)?) };
    open(call, out, attributes, io_status, &Wish { access, file_attributes, share, disposition, options, socket })
}

fn open_file(
    call: &mut Call<'_, '_>,
    out: UserPtr<Handle>,
    access: u32,
    attributes: AttributesPtr,
    io_status: IoStatusPtr,
    share: u32,
    options: u32,
) -> Result<(), Status> {
    open(
        call,
        out,
        attributes,
        io_status,
        &Wish { access, file_attributes: 0, share, disposition: 1, options, socket: None },
    )
}

fn delete_file(call: &mut Call<'_, '_>, attributes: AttributesPtr) -> Result<(), Status> {
    let (volume, path) = locate_path(call, attributes)?;
    let access = file::DELETE | file::READ_ATTRIBUTES;
    // It is opened and closed: a folder that is not empty then stays, without an error.
    let options = options::DELETE_ON_CLOSE;
    let request = CreateRequest { volume, path, access, attributes: 0, share: 7, disposition: 1, options };
    let files = &mut call.kernel.files;
    let (object, _) = files.create(&request)?;
    files.close(object);
    Ok(())
}

fn query_attributes(call: &mut Call<'_, '_>, attributes: AttributesPtr, buffer: u64) -> Result<(), Status> {
    let (volume, path) = locate_path(call, attributes)?;
    let stat = call.kernel.files.stat_path(volume, &path)?;
    call.write_user(buffer, &stat.basic())
}

fn query_full_attributes(call: &mut Call<'_, '_>, attributes: AttributesPtr, buffer: u64) -> Result<(), Status> {
    let (volume, path) = locate_path(call, attributes)?;
    let stat = call.kernel.files.stat_path(volume, &path)?;
    call.write_user(buffer, &stat.network_open())
}

impl Kernel {
    /// The file object of an identifier.
    pub fn file(&self, id: ObjectId) -> Result<&FileObject, Status> {
        match self.objects.body(id)? {
            Body::File(file) => Ok(file),
            _ => Err(Status::OBJECT_TYPE_MISMATCH),
        }
    }

    /// The file object of an identifier, to change.
    pub fn file_mut(&mut self, id: ObjectId) -> Result<&mut FileObject, Status> {
        match self.objects.body_mut(id)? {
            Body::File(file) => Ok(file),
            _ => Err(Status::OBJECT_TYPE_MISMATCH),
        }
    }
}

/// Answers a query through IO_STATUS_BLOCK.
fn answer(
    call: &mut Call<'_, '_>,
    io_status: IoStatusPtr,
    buffer: UserBuffer,
    answer: &Answer,
) -> Result<Status, Status> {
    let (part, status) = answer.fit(usize::try_from(buffer.length).unwrap_or(usize::MAX))?;
    call.write_user(buffer.address, part)?;
    call.write_io_status(io_status, status, part.len() as u64)?;
    Ok(status)
}

fn query_information(
    call: &mut Call<'_, '_>,
    handle: Handle,
    io_status: IoStatusPtr,
    buffer: u64,
    length: u32,
    class: u32,
) -> Result<Status, Status> {
    /// FileMaximumInformation of the newest builds.
    const END_OF_CLASSES: u32 = 84;
    if class == 0 || class >= END_OF_CLASSES {
        return Err(Status::INVALID_INFO_CLASS);
    }
    let id = call.object(handle, Some(ObjectType::File), 0)?;
    if let Some(facts) = pipe_services::query(call.kernel, id, class) {
        return answer(call, io_status, UserBuffer::new(buffer, u64::from(length)), &facts?);
    }
    if let Some(facts) = mailslot_services::query(call.kernel, id, class) {
        return answer(call, io_status, UserBuffer::new(buffer, u64::from(length)), &facts?);
    }
    let file = call.kernel.file(id)?;
    let answer_bytes = match class {
        // FileIoCompletionNotificationInformation.
        0x29 => info::Answer::fixed(file.completion_flags.to_le_bytes().into()),
        _ => info::query(class, &call.kernel.files.facts(file)?)?,
    };
    answer(call, io_status, UserBuffer::new(buffer, u64::from(length)), &answer_bytes)
}

fn query_volume(
    call: &mut Call<'_, '_>,
    handle: Handle,
    io_status: IoStatusPtr,
    buffer: u64,
    length: u32,
    class: u32,
) -> Result<Status, Status> {
    let id = call.object(handle, Some(ObjectType::File), 0)?;
    let file = call.kernel.file(id)?;
    let facts = call.kernel.files.volume_facts(file)?;
    let answer_bytes = info::query_volume(class, file.device_type(), facts.as_ref())?;
    answer(call, io_status, UserBuffer::new(buffer, u64::from(length)), &answer_bytes)
}

fn query_directory(
    call: &mut Call<'_, '_>,
    handle: Handle,
    event: Handle,
    apc: u64,
    apc_context: u64,
    io_status: IoStatusPtr,
    buffer: u64,
    length: u32,
    class: u32,
    single: bool,
    pattern: UserPtr<UnicodeString>,
    restart: bool,
) -> Result<Status, Status> {
    let layout = EntryLayout::from_class(class).map_err(|status| refused_listing(class, length, status))?;
    let id = call.object(handle, Some(ObjectType::File), file::READ_DATA)?;
    if (length as usize) < layout.least_size() {
        return Err(Status::INFO_LENGTH_MISMATCH);
    }
    let pattern = if pattern.is_null() { None } else { Some(pattern.read_text(call)?) };
    let Kernel { objects, files, .. } = &mut *call.kernel;
    let Body::File(file) = objects.body_mut(id)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
    let first = !matches!(&file.kind, FileKind::Directory { enumeration: Some(_), .. });
    if first || restart {
        files.begin_enumeration(file, pattern.as_deref())?;
    }
    let FileKind::Directory { volume, directory, enumeration: Some(enumeration) } = &mut file.kind else {
        return Err(Status::INVALID_PARAMETER);
    };
    let none = enumeration.names.is_empty();
    let stat_of = |name: &str| files.stat_entry(*volume, &directory.path, name);
    let (bytes, status) = match fill(layout, enumeration, single, length as usize, stat_of) {
        // An error at the first query; later, and from the start again, it is the end, which IO_STATUS_BLOCK tells too.
        Err(Status::NO_MORE_FILES) if none && first => return Err(Status::NO_SUCH_FILE),
        Err(Status::NO_MORE_FILES) => (Vec::new(), Status::NO_MORE_FILES),
        filled => filled?,
    };
    call.write_user(buffer, &bytes)?;
    Completion { event, apc, apc_context, io_status }.finish(call, id, status, bytes.len() as u64)?;
    Ok(status)
}

/// Classes of directories that hold indexes of a whole volume, which this file system has not: their lengths are checked
/// nevertheless. (FileObjectIdInformation, FileQuotaInformation, FileReparsePointInformation.)
fn refused_listing(class: u32, length: u32, otherwise: Status) -> Status {
    let size = match class {
        0x1D => 0x48,
        0x20 => 0x38,
        0x21 => 0x10,
        _ => 0,
    };
    if length < size { Status::INFO_LENGTH_MISMATCH } else { otherwise }
}

/// There are no extended attributes, and none can be set.
fn set_ea(
    call: &mut Call<'_, '_>,
    handle: Handle,
    _io_status: IoStatusPtr,
    _buffer: u64,
    _length: u32,
) -> Result<(), Status> {
    call.object(handle, Some(ObjectType::File), 0)?;
    Err(Status::EAS_NOT_SUPPORTED)
}

/// Labels and quotas of volumes are not the guest's to set.
fn set_volume(
    call: &mut Call<'_, '_>,
    handle: Handle,
    _io_status: IoStatusPtr,
    buffer: u64,
    length: u32,
    class: u32,
) -> Result<(), Status> {
    /// FileFsLabelInformation, FileFsControlInformation, FileFsObjectIdInformation: the least that each takes.
    const SIZES: [(u32, u32); 3] = [(2, 4), (6, 0x30), (8, 0x40)];
    let (_, least) = SIZES.into_iter().find(|&(known, _)| known == class).ok_or(Status::INVALID_INFO_CLASS)?;
    if length < least {
        return Err(Status::INFO_LENGTH_MISMATCH);
    }
    call.object(handle, Some(ObjectType::File), 0)?;
    call.read_user(buffer, &mut [0; 4])?;
    Err(Status::ACCESS_DENIED)
}

fn query_ea(
    call: &mut Call<'_, '_>,
    handle: Handle,
    _io_status: IoStatusPtr,
    buffer: u64,
    length: u32,
    _single: bool,
    _list: u64,
    _list_length: u32,
    _index: UserPtr<u32>,
    _restart: bool,
) -> Result<(), Status> {
    /// What is cleared at a time.
    const PIECE: u64 = 0x1_0000;
    call.object(handle, Some(ObjectType::File), 0)?;
    // The file system clears the buffer first, and leaves IO_STATUS_BLOCK alone.
    let mut at = 0;
    while at < u64::from(length) {
        let size = PIECE.min(u64::from(length) - at);
        call.write_user(buffer.wrapping_add(at), &vec![0; size as usize])?;
        at += size;
    }
    Err(Status::NO_EAS_ON_FILE)
}

/// FILE_SKIP_COMPLETION_PORT_ON_SUCCESS.
const SKIP_COMPLETION_PORT_ON_SUCCESS: u32 = 1;

fn set_information(
    call: &mut Call<'_, '_>,
    handle: Handle,
    io_status: IoStatusPtr,
    buffer: u64,
    length: u32,
    class: u32,
) -> Result<(), Status> {
    let id = call.object(handle, Some(ObjectType::File), 0)?;
    let buffer = UserBuffer::new(buffer, u64::from(length));
    match class {
        // FileBasicInformation.
        4 => {
            let [_, last_access, last_write, _, attributes] = read_information::<[i64; 5]>(call, buffer)?;
            let times = NewTimes { last_access, last_write };
            let Kernel { objects, files, .. } = &mut *call.kernel;
            let Body::File(file) = objects.body(id)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
            files.set_basic(file, times, attributes as u32)?;
        }
        // FileRenameInformation, FileRenameInformationEx.
        0xA | 0x41 => rename(call, id, buffer)?,
        // FileLinkInformation, FileLinkInformationEx.
        0xB | 0x48 => link(call, id, buffer)?,
        // FileDispositionInformation.
        0xD => {
            let delete = read_information::<u8>(call, buffer)? != 0;
            set_disposition(call, id, delete, false, false)?;
        }
        // FileDispositionInformationEx: delete, POSIX semantics, ignore the read-only attribute.
        0x40 => {
            let flags = read_information::<u32>(call, buffer)?;
            set_disposition(call, id, flags & 1 != 0, flags & 2 != 0, flags & 0x10 != 0)?;
        }
        // FilePositionInformation.
        0xE => {
            let position = read_information::<i64>(call, buffer)?;
            let file = call.kernel.file_mut(id)?;
            file.set_position(u64::try_from(position).map_err(|_| Status::INVALID_PARAMETER)?);
        }
        // FileModeInformation.
        0x10 => {
            read_information::<u32>(call, buffer)?;
        }
        // FileAllocationInformation shortens at most; FileEndOfFileInformation sets the size;
        // FileValidDataLengthInformation has nothing to do.
        0x13 | 0x14 | 0x27 => {
            let size = read_information::<i64>(call, buffer)?;
            let file = call.kernel.file(id)?;
            if file.access & (file::WRITE_DATA | file::APPEND_DATA) == 0 {
                return Err(Status::ACCESS_DENIED);
            }
            let size = u64::try_from(size).map_err(|_| Status::INVALID_PARAMETER)?;
            let host = file.host_file().ok_or(Status::INVALID_PARAMETER)?;
            let current = host.metadata().map_err(|error| super::status_of_io(&error))?.len();
            // All that was written is valid already.
            if class == 0x27 && (size == 0 || size > current) {
                return Err(Status::INVALID_PARAMETER);
            }
            if class != 0x27 && size < current {
                call.kernel.files.check_truncation(file)?;
            }
            if class == 0x14 || class == 0x13 && size < current {
                call.kernel.files.resize(current, size)?;
                host.set_len(size).map_err(|error| super::status_of_io(&error))?;
                let Kernel { objects, files, .. } = &mut *call.kernel;
                if let Body::File(file) = objects.body(id)? {
                    files.report_modified(file, filter::SIZE);
                }
            }
        }
        // FilePipeInformation: read mode and completion mode of a stream are what they are.
        0x17 => {
            read_information::<[u32; 2]>(call, buffer)?;
            let set = pipe_services::set_modes(call, id, buffer)?;
            if !set && !matches!(call.kernel.file(id)?.kind, FileKind::Stream(_)) {
                return Err(Status::OBJECT_TYPE_MISMATCH);
            }
        }
        // FileMailslotSetInformation.
        0x1B => mailslot_services::set(call, id, buffer)?,
        // FileCompletionInformation.
        0x1E => {
            let [port, key] = read_information::<[u64; 2]>(call, buffer)?;
            let port = call.object(Handle(port), Some(ObjectType::IoCompletion), 0)?;
            let file = call.kernel.file_mut(id)?;
            if file.completion.is_some() || file.is_synchronous() {
                return Err(Status::INVALID_PARAMETER);
            }
            file.completion = Some((port, key));
            call.kernel.objects.reference(port);
        }
        // FileIoCompletionNotificationInformation.
        0x29 => {
            let flags = read_information::<u32>(call, buffer)?;
            let file = call.kernel.file_mut(id)?;
            // A port is never told of what a caller waits for.
            if flags & SKIP_COMPLETION_PORT_ON_SUCCESS != 0 && file.is_synchronous() {
                return Err(Status::INVALID_PARAMETER);
            }
            file.completion_flags |= flags & 7;
        }
        // FileIoPriorityHintInformation.
        0x2B => {
            /// Very low, low, normal: those above are the system's own.
            const PRIORITIES: u32 = 3;
            if read_information::<u32>(call, buffer)? >= PRIORITIES {
                return Err(Status::INVALID_PARAMETER);
            }
        }
        _ => return Err(Status::INVALID_INFO_CLASS),
    }
    call.write_io_status(io_status, Status::SUCCESS, 0)
}

fn set_disposition(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    delete: bool,
    posix: bool,
    force: bool,
) -> Result<(), Status> {
    let Kernel { objects, files, .. } = &mut *call.kernel;
    let Body::File(file) = objects.body_mut(id)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
    files.set_disposition(file, delete, posix, force)
}

/// FILE_RENAME_INFORMATION and FILE_LINK_INFORMATION: flags, root directory at 8, length of the name at 10h, name at 14h.
/// The result is whether an existing file is replaced, and the new path, which must be on the file's own volume.
fn read_new_name(call: &mut Call<'_, '_>, id: ObjectId, buffer: UserBuffer) -> Result<(bool, NtPath), Status> {
    if buffer.length < 0x18 {
        return Err(Status::INFO_LENGTH_MISMATCH);
    }
    let [replace, _, root] = read_information::<[u32; 3]>(call, buffer)?;
    let root_high = UserPtr::<u32>::new(buffer.address.wrapping_add(0xC)).read(call)?;
    let length = UserPtr::<u32>::new(buffer.address.wrapping_add(0x10)).read(call)?;
    if u64::from(length) > buffer.length - 0x14 || length % 2 != 0 || length == 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    let units = UserPtr::<u16>::new(buffer.address.wrapping_add(0x14)).read_array(call, u64::from(length / 2))?;
    let name = String::from_utf16(&units).map_err(|_| Status::OBJECT_NAME_INVALID)?;
    let root = Handle(u64::from(root_high) << 32 | u64::from(root));
    let file = call.kernel.file(id)?;
    let (own_volume, own_path) = file.location().ok_or(Status::INVALID_DEVICE_REQUEST)?;
    let (volume, to) = if root == Handle::NULL && !name.contains('\\') {
        // A bare name stays in the file's own directory.
        let mut path = NtPath::parse(&name)?;
        let parents = own_path.split_last().map_or(&[][..], |(_, parents)| parents);
        path.parts.splice(0..0, parents.iter().cloned());
        (own_volume, path)
    } else {
        let attributes = ObjectAttributes { root_directory: root, name: Some(units), ..Default::default() };
        match locate(call, &attributes)? {
            Target::Volume(volume, path) => (volume, path),
            Target::Device(..) | Target::Pipe(..) | Target::Mailslot(_) => return Err(Status::NOT_SAME_DEVICE),
        }
    };
    if volume != own_volume {
        return Err(Status::NOT_SAME_DEVICE);
    }
    Ok((replace & 1 != 0, to))
}

fn rename(call: &mut Call<'_, '_>, id: ObjectId, buffer: UserBuffer) -> Result<(), Status> {
    let (replace, to) = read_new_name(call, id, buffer)?;
    let Kernel { objects, files, .. } = &mut *call.kernel;
    let Body::File(file) = objects.body_mut(id)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
    files.rename(file, &to, replace)
}

fn link(call: &mut Call<'_, '_>, id: ObjectId, buffer: UserBuffer) -> Result<(), Status> {
    let (replace, to) = read_new_name(call, id, buffer)?;
    let Kernel { objects, files, .. } = &mut *call.kernel;
    let Body::File(file) = objects.body(id)? else { return Err(Status::OBJECT_TYPE_MISMATCH) };
    files.link(file, &to, replace)
}

/// FILE_OBJECTID_BUFFER: what tells two files apart.
pub(super) fn object_id(call: &Call<'_, '_>, id: ObjectId) -> Result<Vec<u8>, Status> {
    let facts = call.kernel.files.facts(call.kernel.file(id)?)?;
    let stat = facts.stat.ok_or(Status::INVALID_DEVICE_REQUEST)?;
    Ok(Bytes::default().u64s(&[u64::from(facts.serial), stat.id, 0, 0, 0, 0, 0, 0]).0)
}
