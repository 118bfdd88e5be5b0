//! The guest programs of `guest-images` as functions to call, on a machine or on the host.
#![expect(unsafe_code, reason = "runs guest programs on the host processor for comparison")]

use lstar_arch::Gpr;
use lstar_guest_images::programs::Program;
use lstar_runtime::{GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, Vcpu, VmExit};

/// End of the stack that programs run on.
const STACK_END: u64 = 0x3_0000_0000;
const STACK_SIZE: u64 = 0x10_0000;
/// Kernel-mode code that a program returns to: `vmcall`.
const RETURN: u64 = 0x3_1000_0000;

struct Stop;

impl ServiceGate for Stop {
    fn service(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        GateAction::Stop
    }
}

/// A program loaded into a machine.
pub struct LoadedProgram {
    /// The machine.
    pub machine: Machine,
    entry: u64,
}

impl LoadedProgram {
    /// Loads a program. Panics on failure: this is for tests and benchmarks.
    #[must_use]
    pub fn new(program: &Program, config: MachineConfig) -> Self {
        let mut machine = Machine::new(config).expect("machine");
        let memory = machine.memory();
        let page = |size: u64| size.next_multiple_of(0x1000).max(0x1000);
        memory.map(program.base, page(program.code.len() as u64), Protection::RX).expect("code");
        memory.write_unchecked(program.base, &program.code).expect("code");
        if program.data_size > 0 {
            memory.map(program.data_base, page(program.data_size as u64), Protection::RW).expect("data");
            memory.write_unchecked(program.data_base, &program.data).expect("data");
        }
        memory.map(STACK_END - STACK_SIZE, STACK_SIZE, Protection::RW).expect("stack");
        memory.map(RETURN, 0x1000, Protection::RX).expect("return gate");
        // `hlt` raises #GP at CPL 3, which without an IDT shuts the processor down: the end of a call.
        memory.write_unchecked(RETURN, &[0xF4]).expect("return gate");
        Self { machine, entry: program.entry }
    }

    /// Calls the program's function with `n` in user mode and returns its result.
    pub fn call(&mut self, n: u64) -> u64 {
        let mut vcpu = self.machine.vcpu();
        vcpu.enter_user_mode(0x33, 0x2B);
        vcpu.set_reg(Gpr::Rsp, STACK_END - 0x1008);
        vcpu.set_reg(Gpr::Rcx, n);
        vcpu.set_rip(self.entry);
        vcpu.memory.write_unchecked(STACK_END - 0x1008, &RETURN.to_le_bytes()).expect("stack");
        let exit = self.machine.run(&mut Stop, u64::MAX);
        assert_eq!((exit, self.machine.vcpu().rip()), (VmExit::Shutdown, RETURN), "the program returns");
        self.machine.vcpu().reg(Gpr::Rax)
    }
}

/// A program mapped at its own addresses in this process.
pub struct NativeProgram {
    entry: u64,
    mappings: Vec<(u64, usize)>,
}

impl NativeProgram {
    /// Maps a program; `None` when its addresses are taken in this process.
    #[must_use]
    pub fn new(program: &Program) -> Option<Self> {
        let mut native = Self { entry: program.entry, mappings: Vec::new() };
        native.map(program.base, &program.code, program.code.len(), libc::PROT_EXEC)?;
        if program.data_size > 0 {
            native.map(program.data_base, &program.data, program.data_size, libc::PROT_WRITE)?;
        }
        Some(native)
    }

    fn map(&mut self, address: u64, bytes: &[u8], size: usize, extra: libc::c_int) -> Option<()> {
        let size = size.next_multiple_of(0x1000).max(0x1000);
        // SAFETY: MAP_FIXED_NOREPLACE never touches what exists; the result is checked.
        let at = unsafe {
            libc::mmap(
                address as *mut libc::c_void,
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return None;
        }
        self.mappings.push((address, size));
        // SAFETY: the mapping above is at least `size` bytes, writable, and owned by `self`.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.cast(), bytes.len());
            libc::mprotect(at, size, libc::PROT_READ | extra);
        }
        Some(())
    }

    /// Calls the program's function with `n`.
    pub fn call(&mut self, n: u64) -> u64 {
        // SAFETY: the program is this project's own, mapped at the addresses it was assembled for, and follows the Windows x64
        // calling convention.
        unsafe {
            let function: extern "win64" fn(u64) -> u64 = std::mem::transmute(self.entry);
            function(n)
        }
    }
}

impl Drop for NativeProgram {
    fn drop(&mut self) {
        for &(address, size) in &self.mappings {
            // SAFETY: mapped by `map` and owned by `self`.
            unsafe { libc::munmap(address as *mut libc::c_void, size) };
        }
    }
}
