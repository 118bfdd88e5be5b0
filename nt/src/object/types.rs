//! Object types: names, access rights, and the bodies behind them.

use super::namespace::{Directory, SymbolicLink};
use super::sync::{Event, IoCompletion, Job, KeyedEvent, Mutant, Semaphore, Timer, WaitOutcome};
use crate::debug::DebugObject;
use crate::io::FileObject;
use crate::registry::KeyObject;
use crate::token::Token;

macro_rules! object_types {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, read $read:literal, write $write:literal, execute $execute:literal, all $all:literal;)*) => {
        /// Kind of an object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ObjectType {
            $($(#[$doc])* $variant,)*
        }

        impl ObjectType {
            /// All types, in the order of their indices.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Name as in `\ObjectTypes`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// GENERIC_MAPPING: read, write, execute, all (specific and standard rights).
            #[must_use]
            pub fn generic_mapping(self) -> [u32; 4] {
                match self { $(Self::$variant => [$read, $write, $execute, $all],)* }
            }
        }
    };
}

object_types! {
    /// A directory of the name space.
    Directory = "Directory", read 0x20003, write 0x2000C, execute 0x20003, all 0xF000F;
    /// A link of the name space.
    SymbolicLink = "SymbolicLink", read 0x20001, write 0x20000, execute 0x20001, all 0xF0001;
    /// An access token.
    Token = "Token", read 0x2001A, write 0x201E0, execute 0x20005, all 0xF01FF;
    /// A job.
    Job = "Job", read 0x20004, write 0x2000B, execute 0x120000, all 0x1F003F;
    /// A process.
    Process = "Process", read 0x20410, write 0x20BEA, execute 0x121001, all 0x1FFFFF;
    /// A thread.
    Thread = "Thread", read 0x20048, write 0x20437, execute 0x121800, all 0x1FFFFF;
    /// An event.
    Event = "Event", read 0x20001, write 0x20002, execute 0x120000, all 0x1F0003;
    /// A mutant (mutex).
    Mutant = "Mutant", read 0x20001, write 0x20000, execute 0x120000, all 0x1F0001;
    /// A semaphore.
    Semaphore = "Semaphore", read 0x20001, write 0x20002, execute 0x120000, all 0x1F0003;
    /// A timer.
    Timer = "Timer", read 0x20001, write 0x20002, execute 0x120000, all 0x1F0003;
    /// A keyed event.
    KeyedEvent = "KeyedEvent", read 0x20001, write 0x20002, execute 0x20000, all 0xF0003;
    /// An I/O completion port.
    IoCompletion = "IoCompletion", read 0x20001, write 0x20002, execute 0x120000, all 0x1F0003;
    /// A section (file mapping).
    Section = "Section", read 0x20005, write 0x20002, execute 0x20008, all 0xF001F;
    /// A registry key.
    Key = "Key", read 0x20019, write 0x20006, execute 0x20039, all 0xF003F;
    /// A device.
    Device = "Device", read 0x120089, write 0x120116, execute 0x1200A0, all 0x1F01FF;
    /// An open file, directory, pipe end, volume or device.
    File = "File", read 0x120089, write 0x120116, execute 0x1200A0, all 0x1F01FF;
    /// A type of objects.
    Type = "Type", read 0x20000, write 0x20000, execute 0x20000, all 0xF0001;
    /// A desktop.
    Desktop = "Desktop", read 0x20041, write 0x200BE, execute 0x20100, all 0xF01FF;
    /// A window station.
    WindowStation = "WindowStation", read 0x20303, write 0x2001C, execute 0x20060, all 0xF037F;
    /// A debug object.
    DebugObject = "DebugObject", read 0x20001, write 0x20002, execute 0x120000, all 0x1F000F;
}

const GENERIC_READ: u32 = 0x8000_0000;
const GENERIC_WRITE: u32 = 0x4000_0000;
const GENERIC_EXECUTE: u32 = 0x2000_0000;
const GENERIC_ALL: u32 = 0x1000_0000;
const MAXIMUM_ALLOWED: u32 = 0x0200_0000;

impl ObjectType {
    /// `OBJECT_TYPE_INFORMATION.TypeIndex`; the first two are reserved as on Windows.
    #[must_use]
    pub fn index(self) -> u8 {
        Self::ALL.iter().position(|&t| t == self).map_or(0, |i| i as u8 + 2)
    }

    /// ValidAccessMask: rights that a handle can have. Some types can be waited for although "all" does not say so.
    #[must_use]
    pub fn valid_access(self) -> u32 {
        let all = self.generic_mapping()[3];
        match self {
            Self::Key | Self::KeyedEvent | Self::Section | Self::Token | Self::Type => all | 0x10_0000,
            _ => all,
        }
    }

    /// Turns generic rights into the type's own. The guest is its own administrator: everything asked for is granted.
    #[must_use]
    pub fn map_access(self, desired: u32) -> u32 {
        let [read, write, execute, all] = self.generic_mapping();
        let mut access = desired & !(GENERIC_READ | GENERIC_WRITE | GENERIC_EXECUTE | GENERIC_ALL | MAXIMUM_ALLOWED);
        for (bit, rights) in [
            (GENERIC_READ, read),
            (GENERIC_WRITE, write),
            (GENERIC_EXECUTE, execute),
            (GENERIC_ALL | MAXIMUM_ALLOWED, all),
        ] {
            if desired & bit != 0 {
                access |= rights;
            }
        }
        // The right to everything includes the right to what is less.
        access
            | match self {
                Self::Thread => (access & 0x60) << 5,
                Self::Process => (access & 0x400) << 2,
                _ => 0,
            }
    }
}

/// A device of the name space that files are opened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// A disk volume: index into the file system's volumes.
    Volume(usize),
    /// `\Device\Null`.
    Null,
    /// `\Device\ConDrv`.
    Console,
    /// `\Device\NamedPipe`.
    NamedPipe,
    /// `\Device\Mailslot`.
    Mailslot,
    /// `\Device\Afd`: sockets.
    Sockets,
    /// `\Device\CNG` and `\Device\KsecDD`: random numbers.
    Random,
    /// `\Device\MountPointManager`.
    MountManager,
    /// `\Registry`: the remaining path is a key's.
    Registry,
}

/// What an object is.
#[derive(Debug)]
pub enum Body {
    /// A directory of the name space.
    Directory(Directory),
    /// A link of the name space.
    SymbolicLink(SymbolicLink),
    /// A device.
    Device(Device),
    /// An event.
    Event(Event),
    /// A mutant.
    Mutant(Mutant),
    /// A semaphore.
    Semaphore(Semaphore),
    /// A timer.
    Timer(Timer),
    /// A keyed event.
    KeyedEvent(KeyedEvent),
    /// An I/O completion port.
    IoCompletion(IoCompletion),
    /// A job.
    Job(Job),
    /// An open file.
    File(Box<FileObject>),
    /// An open registry key.
    Key(KeyObject),
    /// An access token.
    Token(Token),
    /// A process, by its identifier, and whether it has ended.
    Process {
        /// UniqueProcessId.
        id: u32,
        /// Set when it ends: waits are satisfied.
        ended: bool,
    },
    /// A thread, by its identifier, and whether it has ended.
    Thread {
        /// UniqueThread.
        id: u32,
        /// UniqueProcess.
        process: u32,
        /// Set when it ends: waits are satisfied.
        ended: bool,
    },
    /// A debug object.
    DebugObject(DebugObject),
    /// A section: index into the memory manager's sections.
    Section(u64),
}

impl Body {
    /// The object's type.
    #[must_use]
    pub fn object_type(&self) -> ObjectType {
        match self {
            Self::Directory(_) => ObjectType::Directory,
            Self::SymbolicLink(_) => ObjectType::SymbolicLink,
            Self::Device(_) => ObjectType::Device,
            Self::Event(_) => ObjectType::Event,
            Self::Mutant(_) => ObjectType::Mutant,
            Self::Semaphore(_) => ObjectType::Semaphore,
            Self::Timer(_) => ObjectType::Timer,
            Self::KeyedEvent(_) => ObjectType::KeyedEvent,
            Self::IoCompletion(_) => ObjectType::IoCompletion,
            Self::Job(_) => ObjectType::Job,
            Self::File(_) => ObjectType::File,
            Self::Key(_) => ObjectType::Key,
            Self::Token(_) => ObjectType::Token,
            Self::Process { .. } => ObjectType::Process,
            Self::Thread { .. } => ObjectType::Thread,
            Self::Section(_) => ObjectType::Section,
            Self::DebugObject(_) => ObjectType::DebugObject,
        }
    }

    /// Whether a wait by thread `thread` would be satisfied now; `None`: the object cannot be waited for.
    #[must_use]
    pub fn is_signaled(&self, thread: u32) -> Option<bool> {
        match self {
            Self::Event(event) => Some(event.signaled),
            Self::Mutant(mutant) => Some(mutant.is_available(thread)),
            Self::Semaphore(semaphore) => Some(semaphore.count > 0),
            Self::Timer(timer) => Some(timer.signaled),
            Self::Job(job) => Some(job.signaled),
            Self::Process { ended, .. } | Self::Thread { ended, .. } => Some(*ended),
            Self::File(file) => Some(file.signaled),
            Self::DebugObject(object) => Some(object.is_signaled()),
            Self::IoCompletion(port) => Some(!port.packets.is_empty()),
            // Not made to be waited for: waits for it end at once.
            Self::KeyedEvent(_) => Some(true),
            _ => None,
        }
    }

    /// Takes what a satisfied wait takes: a count, a synchronization event's signal, a mutant's ownership.
    pub fn satisfy(&mut self, thread: u32) -> WaitOutcome {
        match self {
            Self::Event(event) => event.satisfy(),
            Self::Mutant(mutant) => return mutant.acquire(thread),
            Self::Semaphore(semaphore) => semaphore.count = semaphore.count.saturating_sub(1).max(0),
            Self::Timer(timer) => timer.satisfy(),
            _ => {}
        }
        WaitOutcome::Signaled
    }
}
