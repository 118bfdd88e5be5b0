//! The guest kernel: a PE `ntoskrnl.exe` of genuine guest code.
//!
//! It holds what the processor and the system-call path need: start-up, descriptor tables, trap handlers, the
//! system-call entry and exits, the service tables. Everything behind a service is reached through a **gate**: the
//! reserved instruction VMCALL (`0f 01 c1`) at CPL 0 inside this image, with an id in EAX. The gate's handler sees
//! the machine state as a service sees it, answers in RAX and continues behind the instruction.
//!
//! At a service stub: RCX, RDX, R8, R9 and `[rsp+28h]`.. are the arguments, RBX the current thread, RBP the trap
//! frame + 80h. R12-R15 and XMM6-XMM15 are still the caller's: no frame holds them.

mod boot;
mod entry;
mod map;
mod services;
mod traps;

use std::ops::Range;

use iced_x86::code_asm::*;
use object::pe;

use crate::assemble::{Code64, Piece};
use crate::layout::{Build, ThreadOffsets};
use crate::pe::{PeImage, SECTION_ALIGNMENT, Section, SectionKind};
use crate::{BuildError, Symbol};

pub use map::{GATE_STUB_STRIDE, KERNEL_BASE, USER_PROBE_ADDRESS};

/// Stack arguments that KiSystemServiceCopyEnd's preceding code can copy.
pub const MAX_STACK_ARGUMENTS: u8 = 14;

/// Fills unused code bytes: INT3.
const FILL: u8 = 0xCC;

/// Gates for events inside the kernel. A service's id is its index, with bit 12 set for the shadow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum GateId {
    /// Start-up is complete. Whoever answers starts the first thread; returning reaches the idle loop (STI, HLT).
    KernelStart = 0x8000_0000,
    /// An exception: ECX = vector, RDX = trap frame. On return every register is restored from the frame.
    Exception = 0x8000_0001,
    /// RBX = thread that calls its first shadow service. RAX = 0 makes it a GUI thread (the guest code then sets
    /// `ThreadFlags`), anything else fails the conversion.
    ConvertToGuiThread = 0x8000_0002,
    /// RCX = thread whose `UserApcPending` was set (and has been cleared), RDX = trap frame, complete up to Rax.
    /// RAX = 0 if at most the frame's Rip, Rsp and Rax changed; else every register is restored from it.
    DeliverApc = 0x8000_0003,
    /// RBX = thread about to call a shadow service while its TEB's GdiBatchCount is not zero.
    GdiFlush = 0x8000_0004,
    /// A page fault while the system-call path read user memory: ECX = 14, RDX = trap frame. RAX >= 0 (as a 32-bit
    /// status) retries the access; else, and when the handler leaves RAX alone, the caller gets C0000005h.
    CopyFault = 0x8000_0005,
}

impl GateId {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::KernelStart,
        Self::Exception,
        Self::ConvertToGuiThread,
        Self::DeliverApc,
        Self::GdiFlush,
        Self::CopyFault,
    ];

    /// The gate whose id is in EAX, if it is not a service's.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|gate| *gate as u32 == id)
    }
}

/// One slot of a service table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Name of the service ("NtCreateFile").
    pub name: String,
    /// Arguments beyond the four in registers, at most [`MAX_STACK_ARGUMENTS`].
    pub stack_arguments: u8,
}

impl ServiceEntry {
    /// A service that takes `arguments` arguments altogether.
    #[must_use]
    pub fn new(name: impl Into<String>, arguments: u8) -> Self {
        Self { name: name.into(), stack_arguments: arguments.saturating_sub(4) }
    }
}

/// What the kernel image is built for.
#[derive(Clone, Debug, Default)]
pub struct KernelConfig {
    /// Whose structure offsets and exit behaviour to use.
    pub build: Build,
    /// The native table, indexed by number. Empty slots answer C000001Ch.
    pub services: Vec<Option<ServiceEntry>>,
    /// The shadow table, indexed by number less 1000h.
    pub shadow_services: Vec<Option<ServiceEntry>>,
}

/// What a system-call helper needs that does the work of the entry code itself.
///
/// It may do so while LSTAR is [`lstar`](Self::lstar) and the bytes in [`code`](Self::code) are unmodified. To leave
/// the same memory behind it must write what the code writes: KPCR.UserRsp, the trap frame (machine frame, error code
/// slot untouched, Rbp, Rbx, Rdi, Rsi, ExceptionActive = 2, PreviousMode = 1, MxCsr, low word of Dr7 = 0, Rax, Rcx
/// (from R10), Rdx, R8..R11, Xmm0..5), KTHREAD.FirstArgument, SystemCallNumber and TrapFrame, the copied arguments
/// and, below them, the return address [`service_return`](Self::service_return).
#[derive(Clone, Debug)]
pub struct FastPathLayout {
    /// Structure offsets' build.
    pub build: Build,
    /// KTHREAD offsets; those of KPCR and KTRAP_FRAME are constants in [`crate::layout`].
    pub thread: ThreadOffsets,
    /// All code of the path, from KiSystemCall32 to the last exit, KiServiceInternal included.
    pub code: Range<u64>,
    /// KiSystemCall64.
    pub lstar: u64,
    /// KiSystemCall32.
    pub cstar: u64,
    /// KeServiceDescriptorTable: two descriptors of 20h bytes (Base, Counter, Limit, Number).
    pub descriptor_table: u64,
    /// KeServiceDescriptorTableShadow.
    pub descriptor_table_shadow: u64,
    /// MmUserProbeAddress, the variable.
    pub user_probe_address: u64,
    /// Where a service returns to: KiSystemServiceExit.
    pub service_return: u64,
    /// Exit by IRETQ that restores every register; expects RBP = trap frame + 80h, RSP = trap frame.
    pub iret_exit: u64,
    /// The gate stubs of all services. Only a stub of the plain form (`b8 id 0f01c1 c3`) may be short-cut: the others
    /// decide themselves how to leave.
    pub gate_stubs: Range<u64>,
    /// The initial KPCR.
    pub kpcr: u64,
}

/// A built kernel.
#[derive(Clone, Debug)]
pub struct KernelImage {
    /// The PE file.
    pub pe: Vec<u8>,
    /// Preferred base; the image has no relocations.
    pub base: u64,
    /// KiSystemStartup.
    pub entry: u64,
    /// Every named address, ascending.
    pub symbols: Vec<Symbol>,
    /// For direct dispatch of system calls.
    pub fast_path: FastPathLayout,
}

impl KernelImage {
    /// Assembles the kernel and writes its PE file.
    ///
    /// # Errors
    /// If the tables do not fit the guest's formats, or code its place.
    pub fn build(config: &KernelConfig) -> Result<Self, BuildError> {
        services::check(config)?;
        let build = config.build;

        let zw_overflow = config.services.len().saturating_sub(map::ZW_FIRST_RUN) as u64 * map::ZW_STRIDE;
        let page = (map::ZW_SECOND_RUN + zw_overflow).next_multiple_of(SECTION_ALIGNMENT.into());
        let data_address = (page + services::GateStubs::size(config)).next_multiple_of(SECTION_ALIGNMENT.into());

        let mut data = map::Data::new(data_address);
        let boot_data = boot::BootData::reserve(&mut data, build);
        let tables = services::Tables::reserve(&mut data, config);
        let user_probe_address = data.reserve("MmUserProbeAddress", 8, 8);
        let highest_user_address = data.reserve("MmHighestUserAddress", 8, 8);

        let path = entry::assemble(
            build,
            &entry::PathData {
                descriptor_table: tables.descriptors,
                descriptor_table_shadow: tables.descriptors_shadow,
                user_probe_address,
            },
        )?;
        let startup = boot::assemble(&boot_data)?;
        let handlers = traps::assemble(startup.end().next_multiple_of(0x40), &path)?;
        let iret_exit = path.body.address_of("KiServiceExit2");
        let stubs = services::GateStubs::assemble(page, config, iret_exit)?;

        data.put_u64(user_probe_address.address, USER_PROBE_ADDRESS);
        data.put_u64(highest_user_address.address, USER_PROBE_ADDRESS - 1);
        tables.fill(&mut data, config, &stubs);
        boot_data.fill(&mut data, build, &handlers);

        let fast_path = FastPathLayout {
            build,
            thread: build.thread_offsets(),
            code: map::SYSTEM_CALL_32..path.body.end(),
            lstar: map::SYSTEM_CALL_64,
            cstar: map::SYSTEM_CALL_32,
            descriptor_table: tables.descriptors.address,
            descriptor_table_shadow: tables.descriptors_shadow.address,
            user_probe_address: user_probe_address.address,
            service_return: path.body.address_of("KiSystemServiceExit"),
            iret_exit,
            gate_stubs: page..stubs.code.end(),
            kpcr: boot_data.pcr_address(),
        };

        let mut pieces = vec![startup, handlers];
        pieces.extend(services::zw_stubs(&config.services, map::SERVICE_INTERNAL)?);
        pieces.extend([
            path.service_linkage,
            path.system_call_32,
            path.service_internal,
            path.system_call_64,
            path.body,
        ]);
        let text = link(map::TEXT, pieces)?;
        let entry = text.address_of("KiSystemStartup");

        let mut symbols = services::symbols_of([&text, &stubs.code]);
        symbols.extend(data.symbols.iter().cloned());
        symbols.sort_by(|a, b| (a.address, &a.name).cmp(&(b.address, &b.name)));
        let rva = |address: u64| (address - KERNEL_BASE) as u32;
        let exports = symbols.iter().map(|symbol| (symbol.name.clone(), rva(symbol.address))).collect();
        let section = |name, kind, address, bytes| Section { name, kind, rva: rva(address), bytes };
        let pe = PeImage {
            dll: false,
            subsystem: pe::IMAGE_SUBSYSTEM_NATIVE,
            base: KERNEL_BASE,
            entry_rva: rva(entry),
            sections: vec![
                section(".text", SectionKind::Code, text.address, text.bytes),
                section("PAGE", SectionKind::Code, page, stubs.code.bytes),
                section(".data", SectionKind::Data, data.address, data.bytes),
            ],
            export_name: Some("ntoskrnl.exe"),
            exports,
            imports: None,
            import_addresses: None,
        }
        .write()?;
        Ok(Self { pe, base: KERNEL_BASE, entry, symbols, fast_path })
    }

    /// Address of a symbol by name.
    #[must_use]
    pub fn address_of(&self, name: &str) -> Option<u64> {
        self.symbols.iter().find(|symbol| symbol.name == name).map(|symbol| symbol.address)
    }
}

/// Lays pieces out at their addresses; they must not overlap.
fn link(address: u64, mut pieces: Vec<Code64>) -> Result<Code64, BuildError> {
    pieces.sort_by_key(|piece| piece.address);
    let mut code = Code64 { address, bytes: Vec::new(), symbols: Vec::new() };
    for piece in pieces {
        if piece.address < code.end() {
            let what = piece.symbols.first().map_or_else(String::new, |symbol| symbol.name.clone());
            return Err(BuildError::Overlap { what, address: piece.address });
        }
        services::place(&mut code, piece);
    }
    Ok(code)
}

/// `mov eax, id; vmcall`.
fn asm_gate(a: &mut Piece, gate: GateId) -> Result<(), BuildError> {
    a.mov(eax, gate as u32)?;
    a.vmcall()?;
    Ok(())
}
