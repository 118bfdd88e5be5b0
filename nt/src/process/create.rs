//! What a new process finds in its user space: its program, ntdll, shared data, PEB and parameters, a first thread.

use std::sync::Arc;

use lstar_arch::PAGE_SIZE;
use lstar_runtime::AddressSpace;

use super::EntryPoints;
use crate::kernel::Kernel;
use crate::loader::{self, TebParameters};
use crate::memory::exports::ImageReader;
use crate::memory::section::Section;
use crate::memory::{PageProtection, Placement};
use crate::service::Call;
use crate::status::Status;
use crate::thread::{ThreadId, services::create_thread};

/// Entry of the data directory that holds base relocations.
const RELOCATIONS: usize = 5;

/// Images that every process gets, and what is known of them.
#[derive(Debug)]
pub struct SystemImages {
    ntdll: Arc<Section>,
    /// RVAs of what the kernel needs of ntdll: 0 for what it does not export.
    entries: EntryPoints,
    /// Where the gate's address and the handle of Wine's Unix calls go, and their service number.
    unix_call: Option<UnixCall>,
    api_set: Option<Arc<Section>>,
    preloaded: Vec<Arc<Section>>,
}

#[derive(Clone, Copy, Debug)]
struct UnixCall {
    number: u32,
    dispatcher: Option<u32>,
    handle: Option<u32>,
}

/// Why a process could not be made, and at which step.
#[derive(Clone, Copy, Debug)]
pub struct CreateError {
    /// The step.
    pub what: &'static str,
    /// Why.
    pub status: Status,
}

impl SystemImages {
    /// Looks at ntdll's exports; the error is the name of one that is missing.
    pub fn new(
        ntdll: Arc<Section>,
        api_set: Option<Arc<Section>>,
        preloaded: Vec<Arc<Section>>,
        unix_call: Option<u32>,
    ) -> Result<Self, &'static str> {
        let exports = ImageReader::new(&ntdll).exports();
        let find = |name: &str| exports.get(name).copied();
        let need = |name: &'static str| find(name).map(u64::from).ok_or(name);
        let entries = EntryPoints {
            loader_thunk: need("LdrInitializeThunk")?,
            user_thread_start: need("RtlUserThreadStart")?,
            exception_dispatcher: find("KiUserExceptionDispatcher").map_or(0, u64::from),
            apc_dispatcher: find("KiUserApcDispatcher").map_or(0, u64::from),
        };
        let unix_call = unix_call.map(|number| UnixCall {
            number,
            dispatcher: find(crate::wine::DISPATCHER_EXPORT),
            handle: find(crate::wine::HANDLE_EXPORT),
        });
        Ok(Self { ntdll, entries, unix_call, api_set, preloaded })
    }
}

impl Kernel {
    /// Fills the user space of the current process, which is empty. `parameters` makes RTL_USER_PROCESS_PARAMETERS.
    fn populate(
        &mut self,
        space: &mut AddressSpace,
        parameters: impl FnOnce(&mut Self, &mut AddressSpace) -> Result<u64, Status>,
    ) -> Result<(), CreateError> {
        let failed = |what| move |status| CreateError { what, status };
        let images = Arc::clone(&self.images);
        loader::map_shared_data(self, space).map_err(failed("KUSER_SHARED_DATA"))?;

        // The program first: nothing else may take its place.
        let image = Arc::clone(&self.process.image);
        let (image_base, _, status) =
            self.memory.map_image(space, &image, None, Placement::default()).map_err(failed("mapping the program"))?;
        let fixed = image.image().is_some_and(|headers| headers.directory(RELOCATIONS).is_none());
        if status == Status::IMAGE_NOT_AT_BASE && fixed {
            return Err(CreateError { what: "mapping the program at its base", status });
        }
        let (ntdll_base, _, _) =
            self.memory.map_image(space, &images.ntdll, None, Placement::default()).map_err(failed("mapping ntdll"))?;
        for dll in &images.preloaded {
            let mapped = self.memory.map_image(space, dll, None, Placement::default());
            let (base, ..) = mapped.map_err(failed("mapping a preloaded DLL"))?;
            self.note_image(space, base, dll);
        }
        self.note_image(space, image_base, &image);
        self.note_image(space, ntdll_base, &images.ntdll);
        self.process.image_base = image_base;
        self.process.ntdll_base = ntdll_base;
        let at = |rva: u64| if rva == 0 { 0 } else { ntdll_base + rva };
        self.process.entry_points = EntryPoints {
            loader_thunk: at(images.entries.loader_thunk),
            user_thread_start: at(images.entries.user_thread_start),
            exception_dispatcher: at(images.entries.exception_dispatcher),
            apc_dispatcher: at(images.entries.apc_dispatcher),
        };
        if let Some(unix_call) = images.unix_call {
            self.map_unix_gate(space, unix_call).map_err(failed("the gate of Unix calls"))?;
        }
        self.process.peb = loader::allocate_peb(self, space).map_err(failed("the PEB"))?;
        let api_set_map = match &images.api_set {
            Some(schema) => loader::map_api_set(self, space, schema).map_err(failed("the API-set map"))?,
            None => 0,
        };
        let parameters = parameters(self, space).map_err(failed("the process parameters"))?;
        loader::fill_peb(self, space, parameters, api_set_map).map_err(failed("the PEB"))
    }

    fn map_unix_gate(&mut self, space: &mut AddressSpace, unix_call: UnixCall) -> Result<(), Status> {
        let gate = self.memory.allocate(space, PAGE_SIZE, PageProtection::EXECUTE_READ, Placement::default())?;
        space.write_unchecked(gate, &crate::wine::gate_code(unix_call.number))?;
        for (rva, value) in [(unix_call.dispatcher, gate), (unix_call.handle, crate::wine::NTDLL_HANDLE)] {
            if let Some(rva) = rva {
                let address = self.process.ntdll_base + u64::from(rva);
                space.write_unchecked(address, &value.to_le_bytes())?;
            }
        }
        Ok(())
    }
}

impl Call<'_, '_> {
    /// Fills the user space of the current process, and makes its first thread, which is ready to run.
    pub fn start_process(
        &mut self,
        parameters: impl FnOnce(&mut Kernel, &mut AddressSpace) -> Result<u64, Status>,
    ) -> Result<ThreadId, CreateError> {
        self.kernel.populate(self.vcpu.memory, parameters)?;
        let process = &self.kernel.process;
        let (entry, stack_reserve, stack_commit) = process.image.image().map_or((0, 0, 0), |headers| {
            (process.image_base + u64::from(headers.entry_rva), headers.stack_reserve, headers.stack_commit)
        });
        let peb = process.peb;
        create_thread(
            self,
            TebParameters { stack_reserve, stack_commit, stack_placement: Placement::default() },
            entry,
            peb,
        )
        .map_err(|status| CreateError { what: "the first thread", status })
    }
}
