//! Service declarations: each system service is declared once, with [`services!`](crate::services).
//!
//! The declaration gives its name, its typed parameters and its handler; marshalling, the dispatch entry, the count of
//! stack arguments for the SSDT, tracing and the coverage table come from it. A handler is a function of a [`Call`] and
//! the typed arguments; it returns anything that is a [`Reply`].

use lstar_arch::Privilege;
use lstar_runtime::Vcpu;

use crate::context::UserContext;
use crate::kernel::Kernel;
use crate::status::Status;
use crate::thread::ThreadId;
use crate::user_ptr::{UserMemory, UserPtr};
use crate::wait::Wait;

/// A handle as a caller passed it, pseudo handles included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Handle(pub u64);

impl Handle {
    /// No handle.
    pub const NULL: Self = Self(0);
    /// NtCurrentProcess().
    pub const CURRENT_PROCESS: Self = Self(u64::MAX);
    /// NtCurrentThread().
    pub const CURRENT_THREAD: Self = Self(u64::MAX - 1);
    /// NtCurrentProcessToken().
    pub const CURRENT_PROCESS_TOKEN: Self = Self(u64::MAX - 3);
    /// NtCurrentThreadToken().
    pub const CURRENT_THREAD_TOKEN: Self = Self(u64::MAX - 4);
    /// NtCurrentThreadEffectiveToken().
    pub const CURRENT_EFFECTIVE_TOKEN: Self = Self(u64::MAX - 5);

    /// Whether this is one of the negative values that stand for "the current ..." without a table entry.
    #[must_use]
    pub const fn is_pseudo(self) -> bool {
        let value = self.0 as i64;
        -6 <= value && value < 0
    }

    /// Whether it is the null handle.
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }
}

crate::user_ptr::guest_newtype!(Handle, u64);

/// What kind of value a parameter is, for marshalling and tracing.
#[derive(Clone, Copy, Debug)]
pub enum ParameterKind {
    /// A handle.
    Handle,
    /// A pointer; the function names the type it points to.
    Pointer(fn() -> &'static str),
    /// An integer of that many bytes.
    Integer(u8),
    /// BOOLEAN.
    Boolean,
}

/// One declared parameter.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Name in the declaration.
    pub name: &'static str,
    /// Kind of value.
    pub kind: ParameterKind,
}

/// A type that a parameter can have. Registers and stack slots are 64 bits wide; upper bits beyond the type are
/// whatever the caller left there.
pub trait Argument {
    /// What tracing makes of it.
    const KIND: ParameterKind;
    /// Takes the slot's value.
    fn from_slot(slot: u64) -> Self;
}

macro_rules! integer_arguments {
    ($($type:ty),*) => {$(
        impl Argument for $type {
            const KIND: ParameterKind = ParameterKind::Integer(size_of::<$type>() as u8);
            fn from_slot(slot: u64) -> Self {
                slot as $type
            }
        }
    )*};
}
integer_arguments!(u8, u16, u32, u64, i32, i64);

impl Argument for bool {
    const KIND: ParameterKind = ParameterKind::Boolean;
    fn from_slot(slot: u64) -> Self {
        slot as u8 != 0
    }
}

impl Argument for Handle {
    const KIND: ParameterKind = ParameterKind::Handle;
    fn from_slot(slot: u64) -> Self {
        Self(slot)
    }
}

impl<T> Argument for UserPtr<T> {
    const KIND: ParameterKind = ParameterKind::Pointer(std::any::type_name::<T>);
    fn from_slot(slot: u64) -> Self {
        Self::new(slot)
    }
}

/// How a service ends.
#[derive(Debug)]
pub enum Outcome {
    /// Return to the caller with this status in RAX.
    Return(Status),
    /// The thread waits; it returns to its caller with the wait's status when that is satisfied, times out or is
    /// interrupted by an APC or alert. The scheduler tries the wait at once, so a handler need not test first.
    Wait(Wait),
    /// Return with success after others had their turn, or with STATUS_NO_YIELD_PERFORMED when nobody else could run.
    Yield,
    /// Don't return to the caller but to this user-mode state, every register of it.
    Redirect(Box<UserContext>),
    /// The calling thread has ended; run another one.
    ThreadEnded,
    /// The process has ended, or the system cannot go on: the reason is in the kernel's state.
    Stop,
}

/// What a handler may return.
pub trait Reply {
    /// As an outcome.
    fn into_outcome(self) -> Outcome;
}

impl Reply for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

impl Reply for Status {
    fn into_outcome(self) -> Outcome {
        Outcome::Return(self)
    }
}

impl<R: Reply> Reply for Result<R, Status> {
    fn into_outcome(self) -> Outcome {
        match self {
            Ok(reply) => reply.into_outcome(),
            Err(status) => Outcome::Return(status),
        }
    }
}

impl Reply for () {
    fn into_outcome(self) -> Outcome {
        Outcome::Return(Status::SUCCESS)
    }
}

/// A service being served: who called, and everything the handler works on.
#[derive(Debug)]
pub struct Call<'a, 'm> {
    /// The executive's state.
    pub kernel: &'a mut Kernel,
    /// The stopped processor and guest memory.
    pub vcpu: &'a mut Vcpu<'m>,
    /// The calling thread.
    pub thread: ThreadId,
    /// Previous mode: whose rights the guest pointers are checked with.
    pub mode: Privilege,
    /// Argument slots, as many as the service declares.
    pub slots: [u64; MAX_ARGUMENTS],
}

/// Most arguments a service can take: four registers and fourteen stack slots.
pub const MAX_ARGUMENTS: usize = 18;

impl Call<'_, '_> {
    /// Probes an output buffer of the caller's for writing; see
    /// [`MemoryManager::probe_for_write`](crate::memory::MemoryManager::probe_for_write). The kernel's own buffers are
    /// not probed.
    pub fn probe_for_write(&mut self, address: u64, length: u64) -> Result<(), Status> {
        if length == 0 || self.mode == Privilege::Supervisor {
            return Ok(());
        }
        self.kernel.memory.probe_for_write(self.vcpu.memory, address, length)
    }
}

impl UserMemory for Call<'_, '_> {
    fn read_user(&mut self, address: u64, buf: &mut [u8]) -> Result<(), Status> {
        self.kernel.memory.read(self.vcpu.memory, address, buf, self.mode)
    }
    fn write_user(&mut self, address: u64, data: &[u8]) -> Result<(), Status> {
        self.kernel.memory.write(self.vcpu.memory, address, data, self.mode)
    }
}

/// A service's declaration.
#[derive(Clone, Copy)]
pub struct Service {
    /// Exported name, with its Nt prefix (or the exact exported name of a private service).
    pub name: &'static str,
    /// What it does, from the declaration's doc comment.
    pub doc: &'static str,
    /// Parameters in order.
    pub parameters: &'static [Parameter],
    /// Unpacks the slots and calls the handler.
    pub invoke: fn(&mut Call<'_, '_>) -> Outcome,
}

impl Service {
    /// Arguments that the caller passes on its stack.
    #[must_use]
    pub const fn stack_arguments(&self) -> u8 {
        self.parameters.len().saturating_sub(4) as u8
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.name, self.parameters.len())
    }
}

/// Declares services: `services! { pub SERVICES; /// doc \n NtName(argument: Type, ...) = handler; ... }` makes a
/// `pub const SERVICES: &[Service]`. Register the table in [`crate::kernel::SERVICE_TABLES`].
#[macro_export]
macro_rules! services {
    ($vis:vis $table:ident; $($(#[doc = $doc:literal])+ $name:ident($($argument:ident: $type:ty),* $(,)?) = $handler:path;)*) => {
        /// The services of this module.
        $vis const $table: &[$crate::service::Service] = &[$(
            $crate::service::Service {
                name: stringify!($name),
                doc: concat!($($doc, "\n"),+),
                parameters: &[$($crate::service::Parameter {
                    name: stringify!($argument),
                    kind: <$type as $crate::service::Argument>::KIND,
                }),*],
                invoke: |call| {
                    let slots = &mut call.slots.into_iter();
                    $(let $argument = <$type as $crate::service::Argument>::from_slot(slots.next().unwrap_or(0));)*
                    let _ = slots;
                    $crate::service::Reply::into_outcome($handler(call $(, $argument)*))
                },
            },
        )*];
    };
}
