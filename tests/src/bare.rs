//! The guest kernel with user code above it and nothing behind its services: what tests of the system-call path and
//! its benchmarks run on.

use std::collections::BTreeMap;

use iced_x86::code_asm::CodeAssembler;
use lstar_arch::Gpr;
use lstar_guest_images::image::map_pe;
use lstar_guest_images::kernel::{GateId, KernelConfig, KernelImage, ServiceEntry};
use lstar_guest_images::layout::Build;
use lstar_nt::direct::DirectDispatch;
use lstar_runtime::{GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, SystemCall, Vcpu, VmExit};

/// Where user code is loaded.
pub const USER_CODE: u64 = 0x1_4000_0000;
/// A writable page area for user data.
pub const USER_DATA: u64 = 0x1_5000_0000;
/// End of the user stack.
pub const USER_STACK: u64 = 0x1_6001_0000;
/// GS base of user code.
pub const TEB: u64 = 0x7FF0_0000;
/// Bytes of each of the user areas.
pub const AREA: u64 = 0x10_0000;

/// One call at the service gate, as the gate saw it.
pub type Observer<'a> = dyn FnMut(&mut Vcpu<'_>, u32) -> GateAction + 'a;

/// A gate that hands everything to a closure, with direct dispatch in front of it.
pub struct Gate<'a> {
    /// Called with the processor and the id in EAX.
    pub observer: &'a mut Observer<'a>,
    /// The short cut, if it is to be used.
    pub direct: Option<DirectDispatch>,
    /// System calls that took the short cut.
    pub short_cuts: u64,
    /// How often RIP got to each hooked address.
    pub arrivals: BTreeMap<u64, u64>,
}

impl ServiceGate for Gate<'_> {
    fn service(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        let id = vcpu.reg(Gpr::Rax) as u32;
        (self.observer)(vcpu, id)
    }

    fn system_call(&mut self, vcpu: &mut Vcpu<'_>) -> SystemCall {
        let Some(direct) = &mut self.direct else { return SystemCall::Declined };
        if !direct.enter(vcpu) {
            return SystemCall::Declined;
        }
        self.short_cuts += 1;
        let id = vcpu.reg(Gpr::Rax) as u32;
        match (self.observer)(vcpu, id) {
            GateAction::Resume => direct.leave(vcpu),
            other => other.into(),
        }
    }

    fn address_reached(&mut self, vcpu: &mut Vcpu<'_>) -> GateAction {
        *self.arrivals.entry(vcpu.rip()).or_default() += 1;
        GateAction::Resume
    }

    fn code_changed(&mut self, range: std::ops::Range<u64>) {
        if let Some(direct) = &mut self.direct {
            direct.code_changed(&range);
        }
    }
}

/// A machine whose guest kernel has started.
pub struct BareSystem {
    /// The machine.
    pub machine: Machine,
    /// The kernel on it.
    pub kernel: KernelImage,
}

impl BareSystem {
    /// Maps a kernel with the given services, starts it, and prepares a user address space with a stack, a data area
    /// and a TEB. Panics on failure: this is for tests.
    #[must_use]
    pub fn boot(config: MachineConfig, services: &[(usize, &str, u8)], shadow: &[(usize, &str, u8)]) -> Self {
        Self::boot_build(Build::default(), config, services, shadow)
    }

    /// The same with the structures of a build of Windows.
    #[must_use]
    pub fn boot_build(
        build: Build,
        config: MachineConfig,
        services: &[(usize, &str, u8)],
        shadow: &[(usize, &str, u8)],
    ) -> Self {
        let table = |list: &[(usize, &str, u8)]| {
            let mut table = vec![None; list.iter().map(|&(number, ..)| number + 1).max().unwrap_or(0)];
            for &(number, name, arguments) in list {
                table[number] = Some(ServiceEntry::new(name, arguments));
            }
            table
        };
        let kernel_config = KernelConfig { build, services: table(services), shadow_services: table(shadow) };
        let kernel = KernelImage::build(&kernel_config).expect("kernel image");
        let mut machine = Machine::new(config).expect("machine");
        let image = map_pe(&kernel.pe).expect("kernel PE");
        for piece in &image.pieces {
            let start = kernel.base + u64::from(piece.rva);
            let size = u64::from(piece.size).next_multiple_of(0x1000);
            let mut protection = Protection::READ;
            protection.set(Protection::WRITE, piece.protection.write);
            protection.set(Protection::EXECUTE, piece.protection.execute);
            machine.memory().map(start, size, protection).expect("kernel section");
            machine.memory().write_unchecked(start, &piece.bytes).expect("kernel section");
        }
        for (start, size, protection) in [
            (USER_CODE, AREA, Protection::RWX),
            (USER_DATA, AREA, Protection::RW),
            (USER_STACK - AREA, AREA, Protection::RW),
            (TEB, 0x2000, Protection::RW),
        ] {
            machine.memory().map(start, size, protection).expect("user area");
        }
        machine.vcpu().set_rip(kernel.entry);
        let mut started = |_: &mut Vcpu<'_>, id: u32| {
            assert_eq!(GateId::from_id(id), Some(GateId::KernelStart));
            GateAction::Stop
        };
        let mut gate = Gate { observer: &mut started, direct: None, short_cuts: 0, arrivals: BTreeMap::new() };
        assert_eq!(machine.run(&mut gate, 1_000_000), VmExit::Stopped, "the guest kernel starts");
        let thread_address = kernel.address_of("KiInitialThread").expect("symbol");
        let teb_field = thread_address + u64::from(kernel.fast_path.thread.teb);
        machine.memory().write_unchecked(teb_field, &TEB.to_le_bytes()).expect("thread");
        Self { machine, kernel }
    }

    /// Loads user code and sets the processor up to run it at CPL 3.
    pub fn load_user(&mut self, program: impl FnOnce(&mut CodeAssembler)) {
        let mut assembler = CodeAssembler::new(64).expect("assembler");
        program(&mut assembler);
        let code = assembler.assemble(USER_CODE).expect("user code");
        self.machine.memory().write_unchecked(USER_CODE, &code).expect("user code");
        self.enter_user(USER_CODE);
    }

    /// Sets the processor up to run user code at `rip`.
    pub fn enter_user(&mut self, rip: u64) {
        let kpcr = self.kernel.fast_path.kpcr;
        let mut vcpu = self.machine.vcpu();
        vcpu.enter_user_mode(0x33, 0x2B);
        vcpu.set_gs_base(TEB);
        vcpu.set_kernel_gs_base(kpcr);
        vcpu.set_rflags(0x202);
        vcpu.set_rip(rip);
        for register in Gpr::ALL {
            vcpu.set_reg(register, 0);
        }
        vcpu.set_reg(Gpr::Rsp, USER_STACK - 0x1000);
    }

    /// The short cut for this kernel.
    pub fn direct_dispatch(&mut self) -> DirectDispatch {
        let copy_end = self.kernel.address_of("KiSystemServiceCopyEnd").expect("symbol");
        DirectDispatch::new(self.kernel.fast_path.clone(), copy_end, self.machine.memory())
    }

    /// Runs until the observer stops it; returns why, and how many calls took the short cut.
    pub fn run(&mut self, direct: bool, observer: &mut Observer<'_>) -> (VmExit, u64) {
        let (exit, short_cuts, _) = self.run_hooked(direct, observer);
        (exit, short_cuts)
    }

    /// The same, with how often RIP got to each hooked address.
    pub fn run_hooked(&mut self, direct: bool, observer: &mut Observer<'_>) -> (VmExit, u64, BTreeMap<u64, u64>) {
        let direct = direct.then(|| self.direct_dispatch());
        // The gate's closure may borrow for less long than the observer's own type says.
        let mut forward = |vcpu: &mut Vcpu<'_>, id: u32| observer(vcpu, id);
        let mut gate = Gate { observer: &mut forward, direct, short_cuts: 0, arrivals: BTreeMap::new() };
        let exit = self.machine.run(&mut gate, u64::MAX);
        (exit, gate.short_cuts, gate.arrivals)
    }

    /// All bytes of the kernel's writable sections, stacks included.
    pub fn kernel_data(&mut self) -> Vec<u8> {
        let image = map_pe(&self.kernel.pe).expect("kernel PE");
        let mut bytes = Vec::new();
        for piece in image.pieces.iter().filter(|piece| piece.protection.write) {
            bytes.extend(self.read(self.kernel.base + u64::from(piece.rva), piece.size.into()));
        }
        bytes
    }

    /// All bytes of a guest range.
    pub fn read(&mut self, address: u64, size: u64) -> Vec<u8> {
        let mut bytes = vec![0; size as usize];
        self.machine.memory().read_unchecked(address, &mut bytes).expect("mapped guest memory");
        bytes
    }
}
