//! What services of all components share: handles to objects, named objects, guest answers.

use super::manager::attributes;
use super::namespace::Vacancy;
use super::{Body, Handle, ObjectId, ObjectType, Resolved};
use crate::io::FileKind;
use crate::io::info::Answer;
use crate::io::mailslot::MailslotId;
use crate::io::pipe::PipeEnd;
use crate::kernel::Kernel;
use crate::service::Call;
use crate::status::Status;
use crate::strings::{ObjectAttributes, RawObjectAttributes};
use crate::user_ptr::{GuestValue, UserBuffer, UserMemory, UserPtr};

/// OBJECT_ATTRIBUTES as services take it.
pub type AttributesPtr = UserPtr<RawObjectAttributes>;

/// A name as text; one that is not Unicode cannot name anything.
pub fn name_of(attributes: &ObjectAttributes) -> Result<Option<String>, Status> {
    let name = attributes.name.as_deref().filter(|name| !name.is_empty());
    name.map(|name| String::from_utf16(name).map_err(|_| Status::OBJECT_NAME_INVALID)).transpose()
}

/// The name of an object to open: relative to a directory it may be empty, which means the directory itself.
pub fn wanted_name(attributes: &ObjectAttributes) -> Result<String, Status> {
    match (name_of(attributes)?, attributes.root_directory) {
        (Some(name), _) => Ok(name),
        (None, Handle::NULL) => Err(Status::OBJECT_PATH_SYNTAX_BAD),
        (None, _) if attributes.name.is_some() => Ok(String::new()),
        (None, _) => Err(Status::OBJECT_NAME_INVALID),
    }
}

/// What somebody at another end learns of when a file is closed.
enum EndToClose {
    None,
    Pipe(PipeEnd),
    Mailslot(MailslotId),
}

impl EndToClose {
    fn of(kind: &FileKind) -> Self {
        match *kind {
            FileKind::Pipe(end) => Self::Pipe(end),
            FileKind::Mailslot(slot) => Self::Mailslot(slot),
            _ => Self::None,
        }
    }
}

impl Kernel {
    /// The current process's object.
    #[must_use]
    pub fn process_object(&self) -> Option<ObjectId> {
        Some(self.process.object)
    }

    /// A thread's object.
    #[must_use]
    pub fn thread_object(&self, thread: u32) -> Option<ObjectId> {
        self.scheduler.threads.get(&thread).map(|thread| thread.object)
    }

    /// An object's name as NtQueryObject tells it, empty if it has none. A file is named by its DOS device: that is the
    /// form from which user-mode code can make a path again without asking a mount manager.
    pub fn object_name(&self, id: ObjectId) -> Result<String, Status> {
        match self.objects.body(id)? {
            Body::File(file) => {
                let volume = file.location().and_then(|(volume, _)| self.files.volumes().get(volume));
                Ok(match volume {
                    Some(volume) => format!("\\??\\{}:{}", volume.letter, file.name),
                    None => file.full_name(),
                })
            }
            Body::Key(key) => self.registry.path_of(key.key),
            _ => Ok(self.objects.path_of(id)),
        }
    }

    /// A handle's object for people to read: type and name.
    #[must_use]
    pub fn describe_handle(&self, handle: Handle) -> Option<String> {
        let id = self.handles.get(handle).ok()?.object;
        let kind = self.objects.body(id).ok()?.object_type().name();
        let name = self.object_name(id).unwrap_or_default();
        Some(if name.is_empty() { kind.to_owned() } else { format!("{kind} {name}") })
    }

    /// The last handle to a file is gone. Operations that are still under way keep the object, and end now.
    fn cleanup_file(&mut self, id: ObjectId) {
        let Ok(Body::File(file)) = self.objects.body(id) else { return };
        self.files.cleanup(file);
        let end = EndToClose::of(&file.kind);
        self.close_end(end);
    }

    fn close_end(&mut self, end: EndToClose) {
        match end {
            EndToClose::Pipe(end) => self.pipes.close(end),
            EndToClose::Mailslot(slot) => self.close_mailslot(slot),
            EndToClose::None => {}
        }
    }

    /// Tidies up behind objects that died: files close, timers are disarmed.
    pub fn reap(&mut self) {
        for id in self.objects.take_closed() {
            match self.objects.body(id) {
                Ok(Body::Job(_)) => self.job_closed(id),
                Ok(Body::File(_)) => self.cleanup_file(id),
                Ok(Body::DebugObject(_)) => self.debug_object_closed(id),
                _ => {}
            }
        }
        // Closing can let other objects die.
        loop {
            let dead = self.objects.take_dead();
            if dead.is_empty() {
                return;
            }
            for (id, body) in dead {
                match body {
                    Body::File(file) => {
                        if let Some((port, _)) = file.completion {
                            self.objects.dereference(port);
                        }
                        self.close_end(EndToClose::of(&file.kind));
                        if let FileKind::Socket(socket) = &file.kind
                            && let Some(event) = socket.event_object()
                        {
                            self.objects.dereference(event);
                        }
                        self.files.cleanup(&file);
                        self.files.close(*file);
                    }
                    Body::Job(job) => {
                        if let Some((port, _)) = job.completion {
                            self.objects.dereference(port);
                        }
                    }
                    Body::Section(number) => self.sections.remove(number),
                    Body::Process { id, .. } => self.forget_process(id),
                    Body::Key(_) => self.key_closed(id),
                    Body::Timer(_) => self.system.armed_timers.retain(|&timer| timer != id),
                    _ => {}
                }
            }
        }
    }
}

impl Call<'_, '_> {
    /// The object behind a handle, pseudo handles of process and thread included.
    pub fn object(&self, handle: Handle, wanted: Option<ObjectType>, access: u32) -> Result<ObjectId, Status> {
        let pseudo = match handle {
            Handle::CURRENT_PROCESS => Some((ObjectType::Process, self.kernel.process_object())),
            Handle::CURRENT_THREAD => Some((ObjectType::Thread, self.kernel.thread_object(self.thread))),
            _ => None,
        };
        match pseudo {
            Some((kind, _)) if wanted.is_some_and(|wanted| wanted != kind) => Err(Status::OBJECT_TYPE_MISMATCH),
            Some((_, object)) => object.ok_or(Status::INVALID_HANDLE),
            None => self.kernel.objects.by_handle(&self.kernel.handles, handle, wanted, access),
        }
    }

    /// The body behind a handle of one type.
    pub fn body(&mut self, handle: Handle, wanted: ObjectType, access: u32) -> Result<&mut Body, Status> {
        let id = self.object(handle, Some(wanted), access)?;
        self.kernel.objects.body_mut(id)
    }

    /// Hands a handle to the caller; it is closed again if the caller's variable cannot be written.
    pub fn give_handle(&mut self, out: UserPtr<Handle>, handle: Handle) -> Result<(), Status> {
        out.write(self, handle).inspect_err(|_| {
            // The handle was opened just now: closing it cannot fail.
            let _ = self.kernel.objects.close(&mut self.kernel.handles, handle);
            self.kernel.reap();
        })
    }

    /// Opens a handle to an object and hands it to the caller.
    pub fn open_handle(
        &mut self,
        out: UserPtr<Handle>,
        object: ObjectId,
        access: u32,
        attributes: &ObjectAttributes,
    ) -> Result<(), Status> {
        let handle = self.kernel.objects.open(&mut self.kernel.handles, object, access, attributes.flags.bits())?;
        self.give_handle(out, handle)
    }

    /// Follows an object name.
    pub fn resolve(&self, attributes: &ObjectAttributes, name: &str) -> Result<Result<Resolved, Vacancy>, Status> {
        let root = match attributes.root_directory {
            Handle::NULL => None,
            // Only nothing at all is found relative to something that is no directory: itself.
            handle if name.is_empty() => Some(self.object(handle, None, 0)?),
            handle => Some(self.object(handle, Some(ObjectType::Directory), 0)?),
        };
        self.kernel.objects.resolve(root, name, attributes.flags.bits())
    }

    /// Nt-Create-something: a new object, named if the caller names it, or the existing one with OBJ_OPENIF.
    pub fn create_object(
        &mut self,
        out: UserPtr<Handle>,
        access: u32,
        attributes: AttributesPtr,
        body: Body,
    ) -> Result<Status, Status> {
        // A failure leaves no handle.
        out.write(self, Handle::NULL)?;
        let attributes = attributes.read_attributes_optional(self)?;
        if attributes.name.is_none() && attributes.root_directory != Handle::NULL {
            return Err(Status::OBJECT_NAME_INVALID);
        }
        let permanent = attributes.flags.bits() & attributes::PERMANENT != 0;
        let kind = body.object_type();
        let (object, status) = match name_of(&attributes)? {
            None => (self.kernel.objects.insert(body), Status::SUCCESS),
            Some(name) => match self.resolve(&attributes, &name)? {
                Ok(found) => {
                    if attributes.flags.bits() & attributes::OPENIF == 0 {
                        return Err(Status::OBJECT_NAME_COLLISION);
                    }
                    self.kernel.check_found(&found, kind)?;
                    self.kernel.objects.reference(found.object);
                    (found.object, Status::OBJECT_NAME_EXISTS)
                }
                Err(vacancy) => {
                    let object = self.kernel.objects.insert(body);
                    if let Err(status) = self.kernel.objects.link(object, vacancy.directory, &vacancy.name, permanent) {
                        self.kernel.objects.dereference(object);
                        return Err(status);
                    }
                    (object, Status::SUCCESS)
                }
            },
        };
        let result = self.open_handle(out, object, access, &attributes);
        self.kernel.objects.dereference(object);
        self.kernel.reap();
        result.map(|()| status)
    }

    /// Nt-Open-something: an existing named object.
    pub fn open_object(
        &mut self,
        out: UserPtr<Handle>,
        access: u32,
        attributes: AttributesPtr,
        kind: ObjectType,
    ) -> Result<(), Status> {
        out.write(self, Handle::NULL)?;
        if attributes.is_null() {
            return Err(Status::INVALID_PARAMETER);
        }
        let attributes = attributes.read_attributes(self)?;
        let name = wanted_name(&attributes)?;
        let found = self.resolve(&attributes, &name)?.map_err(|_| Status::OBJECT_NAME_NOT_FOUND)?;
        // Nothing but a directory is opened relative to itself.
        if name.is_empty() && kind != ObjectType::Directory {
            return Err(Status::OBJECT_TYPE_MISMATCH);
        }
        self.kernel.check_found(&found, kind)?;
        self.open_handle(out, found.object, access, &attributes)
    }

    /// Answers a query with `answer`: as much as fits, the needed length, and the status that says which.
    pub fn answer(&mut self, buffer: UserBuffer, returned: UserPtr<u32>, answer: &Answer) -> Result<Status, Status> {
        returned.write_optional(self, u32::try_from(answer.bytes.len()).unwrap_or(u32::MAX))?;
        let (part, status) = answer.fit(usize::try_from(buffer.length).unwrap_or(usize::MAX))?;
        self.write_user(buffer.address, part)?;
        Ok(status)
    }

    /// Writes IO_STATUS_BLOCK.
    pub fn write_io_status(&mut self, block: UserPtr<u64>, status: Status, information: u64) -> Result<(), Status> {
        let bytes = [u64::from(status.0), information].map(u64::to_le_bytes).concat();
        self.write_user(block.address(), &bytes)
    }

    /// Interrupt time at which a wait with the caller's timeout ends; NULL waits for ever.
    pub fn deadline(&mut self, timeout: UserPtr<i64>) -> Result<Option<u64>, Status> {
        let timeout = timeout.read_optional(self)?;
        Ok(timeout.and_then(|timeout| self.kernel.clock.deadline(timeout)))
    }
}

impl Kernel {
    fn check_found(&self, found: &Resolved, kind: ObjectType) -> Result<(), Status> {
        if found.remaining.is_some() || self.objects.body(found.object)?.object_type() != kind {
            return Err(Status::OBJECT_TYPE_MISMATCH);
        }
        Ok(())
    }
}

/// UNICODE_STRING with its text right behind a structure: the structure's address and size give the pointer.
#[must_use]
pub fn unicode_string(text_bytes: usize, at: u64) -> Vec<u8> {
    let length = u16::try_from(text_bytes).unwrap_or(u16::MAX - 3);
    let mut bytes = Vec::with_capacity(16);
    bytes.extend(length.to_le_bytes());
    bytes.extend((length + 2).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(at.to_le_bytes());
    bytes
}

/// Reads a value of the caller's buffer for a set-information service.
pub fn read_information<T: GuestValue>(call: &mut Call<'_, '_>, buffer: UserBuffer) -> Result<T, Status> {
    if buffer.length < T::SIZE as u64 {
        return Err(Status::INFO_LENGTH_MISMATCH);
    }
    UserPtr::<T>::new(buffer.address).read(call)
}
