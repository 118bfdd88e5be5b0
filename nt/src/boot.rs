//! From a configuration to a process that is about to run.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Arc;

use lstar_runtime::{GateAction, Machine};

use crate::direct::DirectDispatch;
use crate::io::afd::Afd;
use crate::io::console::{Console, ConsoleEnd};
use crate::io::file::{FileKind, FileObject};
use crate::io::mailslot::Mailslots;
use crate::io::pipe::PipeSystem;
use crate::io::volume::Found;
use crate::io::{FileSystem, Host, NtPath, StdStream, StreamType, Volume};
use crate::kernel::{DispatchEntry, DispatchTable, Kernel, service_by_name};
use crate::loader::{self, StartParameters};
use crate::memory::exports::ImageReader;
use crate::memory::section::{Section, SectionFile};
use crate::memory::{MemoryManager, SectionTable};
use crate::object::manager::attributes::INHERIT;
use crate::object::{Body, HandleTable, ObjectManager};
use crate::process::create::{CreateError, SystemImages};
use crate::process::{EntryPoints, Process};
use crate::registry::{Registry, hive, state, system_hives};
use crate::scheduler::Scheduler;
use crate::service::Handle;
use crate::status::Status;
use crate::system::{BootError, SystemConfig};
use crate::system_state::SystemState;
use crate::thread::KernelLayout;
use crate::time::Clock;

/// UniqueProcessId of the process; threads follow in steps of four.
const PROCESS_ID: u32 = 0x20;
const NTDLL: &str = r"C:\windows\system32\ntdll.dll";
const WIN32U: &str = r"C:\windows\system32\win32u.dll";
const API_SET_SCHEMA: &str = r"C:\windows\system32\apisetschema.dll";
/// Service numbers from here on belong to the shadow table.
const FIRST_SHADOW_SERVICE: u32 = 0x1000;
/// SEC_IMAGE.
const SEC_IMAGE: u32 = crate::memory::section::attributes::IMAGE;

/// What [`create_process`] needs of the configuration.
pub(crate) struct Start {
    parameters: StartParameters,
}

/// Opens a file of a mounted drive by its DOS path.
fn open(volumes: &[Volume], name: &str) -> Result<SectionFile, BootError> {
    let failed = |status| BootError::Open { name: name.to_owned(), status };
    let letter = name.chars().next().map(|letter| letter.to_ascii_uppercase());
    let position = volumes.iter().position(|volume| Some(volume.letter) == letter && name.get(1..3) == Some(":\\"));
    let index = position.ok_or(failed(Status::OBJECT_PATH_NOT_FOUND))?;
    let path = NtPath::parse(&name[3..]).map_err(failed)?;
    let found = volumes[index].lookup(&path.parts).map_err(failed)?;
    let Found::File(mut node) = found else { return Err(failed(Status::OBJECT_NAME_NOT_FOUND)) };
    let file = volumes[index].open_file(&mut node, false).map_err(failed)?;
    let name = format!("{}{}", FileSystem::device_name(index), NtPath::display(&node.path()));
    Ok(SectionFile { file, name, held: None })
}

fn open_image(volumes: &[Volume], name: &str) -> Result<Arc<Section>, BootError> {
    let file = open(volumes, name)?;
    let section =
        Section::of_image(file, SEC_IMAGE).map_err(|error| BootError::Image { name: name.to_owned(), error })?;
    Ok(Arc::new(section))
}

fn open_program(volumes: &[Volume], name: &str) -> Result<Arc<Section>, BootError> {
    let section = open_image(volumes, name)?;
    let refused = |reason| Err(BootError::Program { name: name.to_owned(), reason });
    match section.image() {
        Some(headers) if headers.is_managed_only() => refused("a .NET program without native code"),
        Some(headers) if headers.is_dll() => refused("a DLL, not a program"),
        _ => Ok(section),
    }
}

/// Binds the services of the system root's DLLs by name, and adds the private ones behind the last of ntdll.
fn bind_services(ntdll: &Section, win32u: Option<&Section>) -> (DispatchTable, Option<u32>) {
    let mut table = DispatchTable::default();
    for dll in [Some(ntdll), win32u].into_iter().flatten() {
        let reader = ImageReader::new(dll);
        for (number, name) in reader.service_numbers(&reader.exports()) {
            let (index, services) = match number.checked_sub(FIRST_SHADOW_SERVICE) {
                None => (number, &mut table.tables[0]),
                Some(index) => (index, &mut table.tables[1]),
            };
            // A stub that asks for more than a number can select is never reached.
            if index < FIRST_SHADOW_SERVICE {
                put(services, index as usize, name);
            }
        }
    }
    let next = table.tables[0].len() as u32;
    let exports = ImageReader::new(ntdll).exports();
    let wants_unix_calls = exports.contains_key(crate::wine::DISPATCHER_EXPORT) && next < FIRST_SHADOW_SERVICE;
    if wants_unix_calls {
        put(&mut table.tables[0], next as usize, crate::wine::UNIX_CALL.to_owned());
    }
    (table, wants_unix_calls.then_some(next))
}

fn put(services: &mut Vec<Option<DispatchEntry>>, index: usize, name: String) {
    if services.len() <= index {
        services.resize(index + 1, None);
    }
    let service = service_by_name(&name);
    services[index] = Some(DispatchEntry { name, service, denied: None });
}

/// Mounts the drives, binds the services, builds and maps the guest kernel.
pub(crate) fn prepare(
    config: SystemConfig,
    machine: &mut Machine,
) -> Result<(Kernel, lstar_guest_images::KernelImage, Start), BootError> {
    let SystemConfig {
        program,
        arguments,
        current_directory,
        environment,
        mounts,
        preloaded,
        clock,
        mut host,
        network,
        resolver,
        denied,
        disk_limit,
        scratch,
        max_processes,
        state,
        ..
    } = config;
    let mut volumes = Vec::new();
    let system_drive = mounts.iter().find(|mount| mount.letter.eq_ignore_ascii_case(&'C'));
    let system32 = system_drive.map(|mount| mount.folder.join("windows").join("system32")).unwrap_or_default();
    let scratch = scratch.unwrap_or_else(std::env::temp_dir);
    for mount in mounts {
        let volume = Volume::mount(mount.letter, &mount.folder, mount.access, &scratch)
            .map_err(|error| BootError::Mount { letter: mount.letter, folder: mount.folder.clone(), error })?;
        volumes.push(volume);
    }
    let image = open_program(&volumes, &program)?;
    let ntdll = open_image(&volumes, NTDLL)?;
    let win32u = match open_image(&volumes, WIN32U) {
        Ok(win32u) => Some(win32u),
        Err(BootError::Open { .. }) => None,
        Err(error) => return Err(error),
    };
    let preloaded = preloaded.iter().map(|name| open_image(&volumes, name)).collect::<Result<_, _>>()?;
    let (mut dispatch, unix_call) = bind_services(&ntdll, win32u.as_deref());
    for (name, status) in denied {
        if dispatch.deny(&name, status) == 0 {
            return Err(BootError::Service(name));
        }
    }
    let api_set = open_image(&volumes, API_SET_SCHEMA).ok();
    let images = SystemImages::new(ntdll, api_set, preloaded, unix_call)
        .map_err(|export| BootError::Export { name: NTDLL.to_owned(), export })?;
    let kernel_image = crate::system::map_kernel(machine, &dispatch)?;
    let layout = KernelLayout {
        thread: kernel_image.fast_path.thread,
        kpcr: kernel_image.fast_path.kpcr,
        iret_exit: kernel_image.fast_path.iret_exit,
    };

    let direct = kernel_image
        .address_of("KiSystemServiceCopyEnd")
        .map(|copy_end| DirectDispatch::new(kernel_image.fast_path.clone(), copy_end, machine.memory()));

    let failed = |what| move |status| BootError::Process { what, status };
    let now = host.system_time();
    let system = SystemState::new(system32, PROCESS_ID);
    let mut objects = ObjectManager::new();
    let drives: Vec<(char, usize)> = volumes.iter().enumerate().map(|(index, volume)| (volume.letter, index)).collect();
    objects.populate(&drives, system.session).map_err(failed("the object name space"))?;
    let object = objects.insert(Body::Process { id: PROCESS_ID, ended: false });
    let mut handles = HandleTable::new();
    let StandardStreams { handles: standard_handles, console, connection } =
        standard_handles(&mut objects, &mut handles, &mut *host).map_err(failed("standard handles"))?;
    let (registry, registry_base, notes) = make_registry(&volumes, state.as_deref(), now)?;
    let clock = Clock::new(clock, now);
    let command_line = loader::command_line(&program, &arguments);
    let shared_data = machine.memory().allocate_frames(lstar_arch::PAGE_SIZE).map_err(Status::from);
    let shared_data = shared_data.map_err(failed("KUSER_SHARED_DATA"))?;
    let process = Process {
        id: PROCESS_ID,
        parent: 0,
        space: machine.memory().current_space(),
        ended: 0,
        instructions: 0,
        object,
        image_base: 0,
        ntdll_base: 0,
        peb: 0,
        image_name: image.file.as_ref().map(|file| file.name.clone()).unwrap_or_default(),
        dos_name: program.clone(),
        command_line: command_line.clone(),
        image,
        entry_points: EntryPoints::default(),
        exit_status: None,
        created: clock.interrupt_time(),
        hard_error_mode: 1,
        priority_class: crate::process::information::NORMAL_CLASS,
        execute_flags: 0x4D,
        cookie: cookie(&mut *host),
        job: None,
        debug_object: None,
        debug_inherit: true,
        ended_threads: std::collections::BTreeMap::new(),
    };
    let mut files = FileSystem::new(volumes);
    make_standard_folders(&mut files);
    files.limit(disk_limit);
    let kernel = Kernel {
        memory: MemoryManager::default(),
        scheduler: Scheduler::default(),
        process,
        others: BTreeMap::new(),
        root_process: PROCESS_ID,
        max_processes,
        images: Arc::new(images),
        shared_data,
        sections: SectionTable::default(),
        doomed: Vec::new(),
        crash: None,
        layout,
        kernel_image: (kernel_image.base, image_size(&kernel_image.pe)),
        objects,
        handles,
        files,
        pipes: PipeSystem::default(),
        mailslots: Mailslots::default(),
        pending_io: BTreeMap::new(),
        waiting_io: BTreeMap::new(),
        debug_answers: BTreeMap::new(),
        debug_told: BTreeMap::new(),
        afd: Afd::new(network, resolver),
        registry,
        registry_base,
        watches: crate::registry::notify::Watches::default(),
        system,
        clock,
        host,
        console,
        dispatch,
        direct,
        stop: None,
        last_exception: None,
        notes,
        mapped_images: Vec::new(),
        function_tracer: None,
        block_tracer: None,
        service_hooks: crate::service_hooks::ServiceHooks::default(),
        tracer: None,
        lockstep: None,
        noted: std::collections::BTreeSet::new(),
        next_client_id: PROCESS_ID,
        services_called: 0,
    };
    let current_directory =
        if current_directory.ends_with('\\') { current_directory } else { current_directory + "\\" };
    let mut environment = environment;
    if unix_call.is_some() {
        crate::wine::complete_environment(&mut environment);
    }
    let parameters = StartParameters {
        image_path: program,
        command_line,
        current_directory,
        environment,
        console: connection,
        standard_handles,
    };
    Ok((kernel, kernel_image, Start { parameters }))
}

/// The registry from the system root's hives, with changes of earlier runs; what it was before these, when they are to be kept;
/// and what there is to be told.
fn make_registry(
    volumes: &[Volume],
    state: Option<&str>,
    now: i64,
) -> Result<(Registry, Option<Registry>, Vec<String>), BootError> {
    let (mut hives, mut notes) = (Vec::new(), Vec::new());
    for place in system_hives::PLACES {
        for &name in place.files {
            let Ok(SectionFile { file, .. }) = open(volumes, name) else { continue };
            let failed = |error: std::io::Error| BootError::Hive(format!("{name}: {error}"));
            if file.metadata().map_err(failed)?.len() > system_hives::MOST_BYTES {
                return Err(BootError::Hive(format!("{name}: longer than any hive that lstar reads")));
            }
            let mut bytes = Vec::new();
            (&file).read_to_end(&mut bytes).map_err(failed)?;
            if hive::is_dirty(&bytes) {
                notes.push(format!("{name} was not closed: what its logs hold is missing"));
            }
            hives.push((place, name, bytes));
            break;
        }
    }
    let mut registry = system_hives::registry(now, &hives).map_err(|error| BootError::Hive(error.to_string()))?;
    let Some(text) = state else { return Ok((registry, None, notes)) };
    let base = registry.clone();
    state::apply(&mut registry, text, now).map_err(BootError::State)?;
    Ok((registry, Some(base), notes))
}

/// Folders that every installation has and programs write to: the system root that people bring is not one.
const STANDARD_FOLDERS: [&str; 12] = [
    r"windows\temp",
    r"ProgramData",
    r"Program Files\Common Files",
    r"users\Public",
    r"users\user\AppData\Local\Temp",
    r"users\user\AppData\LocalLow",
    r"users\user\AppData\Roaming",
    r"users\user\Desktop",
    r"users\user\Documents",
    r"users\user\Downloads",
    r"users\user\Music",
    r"users\user\Pictures",
];

/// Makes the standard folders on C: where it can be written to.
fn make_standard_folders(files: &mut FileSystem) {
    use crate::io::{CreateRequest, NtPath, file, filesystem::options};
    const OPEN_IF: u32 = 3;
    let Some(volume) = files.volumes().iter().position(|volume| volume.letter == 'C' && volume.is_writable()) else {
        return;
    };
    for folder in STANDARD_FOLDERS {
        let mut parts = Vec::new();
        for part in folder.split('\\') {
            parts.push(part.to_owned());
            let made = files.create(&CreateRequest {
                volume,
                path: NtPath { parts: parts.clone(), directory: false },
                access: file::READ_ATTRIBUTES,
                attributes: 0,
                share: 7,
                disposition: OPEN_IF,
                options: options::DIRECTORY_FILE,
            });
            // A program that needs one of them says so better than lstar could.
            let Ok((object, _)) = made else { break };
            files.close(object);
        }
    }
}

fn cookie(host: &mut dyn Host) -> u32 {
    let mut bytes = [0; 4];
    host.entropy(&mut bytes);
    u32::from_le_bytes(bytes)
}

/// What the first process finds open.
struct StandardStreams {
    handles: [Handle; 3],
    console: Option<Console>,
    /// Its handle of the console.
    connection: Option<Handle>,
}

fn standard_handles(
    objects: &mut ObjectManager,
    handles: &mut HandleTable,
    host: &mut dyn Host,
) -> Result<StandardStreams, Status> {
    let mut opened = [Handle::NULL; 3];
    let (mut terminal, mut screen) = (false, None);
    for (slot, stream) in opened.iter_mut().zip([StdStream::Input, StdStream::Output, StdStream::Error]) {
        let file = match host.stream_type(stream) {
            StreamType::Pipe => FileObject::stream(stream),
            StreamType::Terminal => {
                terminal = true;
                let end = if stream == StdStream::Input { ConsoleEnd::Input } else { ConsoleEnd::Output };
                screen = screen.or((end == ConsoleEnd::Output).then_some(stream));
                FileObject::console(end)
            }
            StreamType::Null => {
                let mut file = FileObject::stream(stream);
                (file.kind, file.device) = (FileKind::Null, "\\Device\\Null".to_owned());
                file
            }
            StreamType::File(file) => FileObject::redirected(stream, file),
        };
        let access = file.access;
        *slot = objects.open_new(handles, Body::File(Box::new(file)), access, INHERIT)?;
    }
    let mut streams = StandardStreams { handles: opened, console: None, connection: None };
    if terminal {
        let connection = FileObject::console(ConsoleEnd::Connection);
        let access = connection.access;
        streams.connection = Some(objects.open_new(handles, Body::File(Box::new(connection)), access, 0)?);
        streams.console = Some(Console::new(screen));
    }
    Ok(streams)
}

/// Creates the first process, whose first thread then is on the processor.
pub(crate) fn create_process(kernel: &mut Kernel, machine: &mut Machine, start: Start) -> Result<(), BootError> {
    let model = machine.config().model;
    let mut vcpu = machine.vcpu();
    let mut seed = [0; 32];
    kernel.host.entropy(&mut seed);
    vcpu.seed_entropy(seed);
    loader::fill_shared_data(kernel, &model);
    let parameters = start.parameters;
    kernel
        .call(&mut vcpu)
        .start_process(|kernel, space| loader::write_parameters(kernel, space, &parameters))
        .map_err(|CreateError { what, status }| BootError::Process { what, status })?;
    match kernel.switch(&mut vcpu) {
        GateAction::Stop => Err(BootError::Process { what: "starting the first thread", status: Status::UNSUCCESSFUL }),
        _ => Ok(()),
    }
}

/// SizeOfImage of the guest kernel, from its headers.
fn image_size(pe: &[u8]) -> u32 {
    let field = |at: usize| pe.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    // e_lfanew, signature and file header, then offset 38h of the optional header.
    field(field(0x3C) as usize + 0x18 + 0x38)
}
