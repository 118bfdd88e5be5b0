//! The host processor as an engine.
//!
//! The areas of a program are mapped at their guest addresses. A trampoline saves the host's own state in a control page,
//! loads the program's and jumps to it; the program comes back through code at [`EXIT`], or by a fault, whose signal
//! handler takes the registers from the signal frame and continues at the way back.
//!
//! Programs must be tame: no system calls, no TF or AC in RFLAGS, no FS. A wild pointer can reach host memory in theory;
//! generated pointers are data addresses, or such that no process has anything mapped there.
#![expect(unsafe_code, reason = "executes generated code on the host processor, faults included")]

use std::mem::{MaybeUninit, offset_of};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};

use super::{
    CODE, CODE_SIZE, DATA, DATA_SIZE, EXIT, Engine, GS_BASE, Memory, Outcome, READ_ONLY, STACK, STACK_SIZE, State, X87,
    read_only_page,
};

const PAGE: u64 = lstar_arch::PAGE_SIZE;
/// The control page, and the entry trampoline behind it, near the exit: far from where program addresses lead.
const CONTROL: u64 = EXIT + PAGE;
const ENTRY: u64 = CONTROL + PAGE;
/// Alternate stack of the signal handler.
const SIGNAL_STACK_SIZE: usize = 64 << 10;

const REGISTERS: [AsmRegister64; 16] = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
const RSP: usize = 4;
const SAVED: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];

/// Layout of the control page.
#[repr(C, align(64))]
struct Control {
    /// FXSAVE64 image: x87 and XMM registers and MXCSR.
    image: [u8; 512],
    /// YMM registers, if the processor has them.
    ymm: [[u128; 2]; 16],
    gpr: [u64; 16],
    rflags: u64,
    host_rsp: u64,
    host_mxcsr: u64,
    /// RIP, vector, error code and CR2 of the exception that ended the program; vector [`NONE`] if it finished.
    exception: [u64; 4],
    /// Where programs start.
    start: u64,
    /// What the trampolines push goes below `scratch_top`.
    scratch: [u64; 16],
    scratch_top: [u64; 2],
}

/// No exception.
const NONE: u64 = u64::MAX;
/// Offset of MXCSR and of XMM0 in an FXSAVE image (SDM vol. 1, 10.5.1).
const IMAGE_MXCSR: usize = 24;
const IMAGE_XMM: usize = 160;

/// Where a signal frame says whether it is an XSAVE image, XSTATE_BV in it, and the upper halves of YMM (SDM vol. 1, 13.4;
/// Linux's `struct _fpx_sw_bytes`).
const IMAGE_MAGIC: usize = 464;
const IMAGE_XSTATE_BV: usize = 512;
const IMAGE_YMM_HIGH: usize = 576;
const XSAVE_MAGIC: u32 = 0x4650_5853;

/// Whether programs have YMM registers here.
fn has_ymm() -> bool {
    std::arch::is_x86_feature_detected!("avx")
}

/// YMM register `index`, and its place in the control page relative to RSP.
fn ymm_slot(index: u32) -> Result<(Register, MemoryOperand), IcedError> {
    let offset = offset_of!(Control, ymm) + 32 * index as usize;
    let displacement = offset as i64 - offset_of!(Control, scratch_top) as i64;
    Ok((Register::YMM0 + index, MemoryOperand::with_base_displ(Register::RSP, displacement)))
}

/// The thread that is in a program, so that its next fault is the program's; 0 for none.
static RUNNING: AtomicI32 = AtomicI32::new(0);
/// The areas exist once in a process.
static EXCLUSIVE: Mutex<()> = Mutex::new(());
static PREVIOUS: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();
const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGFPE];

/// Address of a field of the control page.
const fn field(offset: usize) -> u64 {
    CONTROL + offset as u64
}

/// The field as an operand relative to RSP, which points at `scratch_top`.
fn from_scratch(offset: usize) -> AsmMemoryOperand {
    rsp + (offset as i64 - offset_of!(Control, scratch_top) as i64)
}

/// The field as an operand relative to RIP, for when no register is free.
fn from_rip(offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(Register::RIP, field(offset) as i64)
}

/// Saves the host's state, loads the program's, jumps to it.
fn entry_code() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for register in SAVED {
        a.push(register)?;
    }
    a.mov(rax, rsp)?;
    a.mov(rsp, field(offset_of!(Control, scratch_top)))?;
    a.mov(qword_ptr(from_scratch(offset_of!(Control, host_rsp))), rax)?;
    a.stmxcsr(dword_ptr(from_scratch(offset_of!(Control, host_mxcsr))))?;
    a.fxrstor64(ptr(from_scratch(offset_of!(Control, image))))?;
    if has_ymm() {
        for index in 0..16 {
            let (register, slot) = ymm_slot(index)?;
            a.add_instruction(Instruction::with2(Code::VEX_Vmovups_ymm_ymmm256, register, slot)?)?;
        }
    }
    a.push(qword_ptr(from_scratch(offset_of!(Control, rflags))))?;
    a.popfq()?;
    let rest = REGISTERS.into_iter().enumerate().filter(|(_, register)| *register != rsp);
    for (i, register) in rest.chain([(RSP, rsp)]) {
        a.mov(register, qword_ptr(from_scratch(offset_of!(Control, gpr) + 8 * i)))?;
    }
    a.add_instruction(Instruction::with1(Code::Jmp_rm64, from_rip(offset_of!(Control, start)))?)?;
    a.assemble(ENTRY)
}

/// Stores the program's state and goes back; also the address of the way back alone.
fn exit_code() -> Result<(Vec<u8>, u64), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut way_back = a.create_label();
    let stack_pointer = from_rip(offset_of!(Control, gpr) + 8 * RSP);
    a.add_instruction(Instruction::with2(Code::Mov_rm64_r64, stack_pointer, Register::RSP)?)?;
    a.mov(rsp, field(offset_of!(Control, scratch_top)))?;
    a.pushfq()?;
    // POP computes its address from the RSP behind it.
    a.pop(qword_ptr(from_scratch(offset_of!(Control, rflags))))?;
    for (i, register) in REGISTERS.into_iter().enumerate().filter(|(_, register)| *register != rsp) {
        a.mov(qword_ptr(from_scratch(offset_of!(Control, gpr) + 8 * i)), register)?;
    }
    if has_ymm() {
        for index in 0..16 {
            let (register, slot) = ymm_slot(index)?;
            a.add_instruction(Instruction::with2(Code::VEX_Vmovups_ymmm256_ymm, slot, register)?)?;
        }
    }
    a.fxsave64(ptr(from_scratch(offset_of!(Control, image))))?;
    a.set_label(&mut way_back)?;
    if has_ymm() {
        a.vzeroupper()?;
    }
    a.fninit()?;
    a.mov(rsp, field(offset_of!(Control, scratch_top)))?;
    a.ldmxcsr(dword_ptr(from_scratch(offset_of!(Control, host_mxcsr))))?;
    a.mov(rsp, qword_ptr(from_scratch(offset_of!(Control, host_rsp))))?;
    a.cld()?;
    for register in SAVED.into_iter().rev() {
        a.pop(register)?;
    }
    a.ret()?;
    let result = a.assemble_options(EXIT, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let offset = result.label_ip(&way_back)?;
    Ok((result.inner.code_buffer, offset))
}

/// Reserves a range at its guest address.
fn map(address: u64, size: u64) -> Option<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE maps fresh pages where nothing is, or fails.
    let result =
        unsafe { libc::mmap(address as *mut _, size as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if result as u64 == address {
        return Some(());
    }
    if result != libc::MAP_FAILED {
        // SAFETY: the mapping was just made and is not used.
        unsafe { libc::munmap(result, size as usize) };
    }
    None
}

fn protect(address: u64, size: u64, protection: libc::c_int) {
    // SAFETY: only called with ranges that `Native` has mapped, while no program runs.
    let result = unsafe { libc::mprotect(address as *mut _, size as usize, protection) };
    assert_eq!(result, 0, "mprotect");
}

/// Every range `Native` maps: address and size.
const RANGES: [(u64, u64); 5] =
    [(CODE, CODE_SIZE), (DATA, DATA_SIZE + PAGE), (STACK, STACK_SIZE), (EXIT, PAGE), (CONTROL, 2 * PAGE)];

/// The host processor as an engine. It belongs to the thread that made it.
pub struct Native {
    signal_stack: Vec<u8>,
    previous_stack: libc::stack_t,
    _exclusive: MutexGuard<'static, ()>,
}

impl std::fmt::Debug for Native {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Native")
    }
}

impl Native {
    /// Maps the areas and installs the signal handlers; waits until no other thread has an engine of this kind. `None`
    /// if this process has something else at the addresses.
    #[must_use]
    pub fn new() -> Option<Self> {
        let exclusive = EXCLUSIVE.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, (address, size)) in RANGES.into_iter().enumerate() {
            if map(address, size).is_none() {
                for (address, size) in &RANGES[..index] {
                    // SAFETY: mapped by the iterations before.
                    unsafe { libc::munmap(*address as *mut _, *size as usize) };
                }
                return None;
            }
        }
        let (exit, way_back) = exit_code().expect("encodable");
        copy_in(EXIT, &[0xCC; PAGE as usize]);
        for (address, code) in [(EXIT, exit), (ENTRY, entry_code().expect("encodable"))] {
            copy_in(address, &code);
            protect(address, PAGE, libc::PROT_READ | libc::PROT_EXEC);
        }
        copy_in(READ_ONLY, &read_only_page());
        protect(READ_ONLY, PAGE, libc::PROT_READ);
        WAY_BACK.get_or_init(|| way_back);
        install_handlers();
        let mut signal_stack = vec![0u8; SIGNAL_STACK_SIZE];
        let stack = libc::stack_t { ss_sp: signal_stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: SIGNAL_STACK_SIZE };
        let mut previous_stack = MaybeUninit::uninit();
        // SAFETY: the new stack lives until `drop` restores the previous one; the old value is written by the call. GS is
        // used by nobody on x86-64 Linux in user mode.
        let previous_stack = unsafe {
            assert_eq!(libc::sigaltstack(&raw const stack, previous_stack.as_mut_ptr()), 0);
            const ARCH_SET_GS: libc::c_int = 0x1001;
            assert_eq!(libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, GS_BASE), 0);
            previous_stack.assume_init()
        };
        Some(Self { signal_stack, previous_stack, _exclusive: exclusive })
    }

    fn control(&mut self) -> &mut Control {
        // SAFETY: the control page is mapped for as long as `self` lives, large and aligned enough, and any bytes are a
        // valid `Control`; the borrow of `self` keeps programs from running meanwhile.
        unsafe { &mut *(CONTROL as *mut Control) }
    }
}

/// Copies bytes into an area of this module's own mappings.
fn copy_in(address: u64, bytes: &[u8]) {
    // SAFETY: callers name writable ranges among `RANGES`.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
}

/// Copies bytes out of an area of this module's own mappings.
fn copy_out(address: u64, bytes: &mut [u8]) {
    // SAFETY: callers name readable ranges among `RANGES`.
    unsafe { ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
}

static WAY_BACK: OnceLock<u64> = OnceLock::new();

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: restores what `new` replaced, on the same thread (`Native` is not `Send`: it holds a mutex guard), and
        // unmaps what it mapped; no program runs.
        unsafe {
            libc::sigaltstack(&raw const self.previous_stack, ptr::null_mut());
            for (address, size) in RANGES {
                libc::munmap(address as *mut _, size as usize);
            }
        }
        self.signal_stack.clear();
    }
}

impl Engine for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn gives_up(&self) -> bool {
        false
    }

    fn hides_kernel_half(&self) -> bool {
        true
    }

    fn exposes(&self, address: u64) -> bool {
        // Position-independent programs and all that the kernel places lie above, the guest's areas below.
        const HOST_START: u64 = 0x5500_0000_0000;
        let page = address & !(PAGE - 1);
        let mut resident = 0;
        // SAFETY: asks whether the page is mapped; writes one byte.
        address >= HOST_START && unsafe { libc::mincore(page as *mut _, PAGE as usize, &raw mut resident) } == 0
    }

    fn load(&mut self, code: &[u8]) {
        protect(CODE, CODE_SIZE, libc::PROT_READ | libc::PROT_WRITE);
        let mut page = [0xCC; CODE_SIZE as usize];
        page[..code.len()].copy_from_slice(code);
        copy_in(CODE, &page);
        protect(CODE, CODE_SIZE, libc::PROT_READ | libc::PROT_EXEC);
    }

    fn run(&mut self, state: &State, memory: &Memory, outcome: &mut Outcome) {
        copy_in(DATA, &memory.data);
        copy_in(STACK, &memory.stack);
        let control = self.control();
        state.x87.write_image(&mut control.image);
        control.image[IMAGE_MXCSR..][..4].copy_from_slice(&state.mxcsr.to_le_bytes());
        for (slot, value) in control.image[IMAGE_XMM..].chunks_exact_mut(16).zip(state.xmm) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        for (slot, (low, high)) in control.ymm.iter_mut().zip(state.xmm.into_iter().zip(state.ymm_high)) {
            *slot = [low, high];
        }
        control.gpr = state.gpr;
        control.rflags = state.rflags;
        control.start = CODE;
        control.exception = [EXIT, NONE, 0, 0];
        // SAFETY: asks the kernel who this is.
        RUNNING.store(unsafe { libc::gettid() }, Ordering::SeqCst);
        // SAFETY: the trampoline keeps the C calling convention, whatever the program does to the registers; programs
        // are tame as the module says.
        unsafe {
            let enter: extern "sysv64" fn() = std::mem::transmute(ENTRY);
            enter();
        }
        RUNNING.store(0, Ordering::SeqCst);
        let control = self.control();
        let [rip, vector, error_code, address] = control.exception;
        if vector == NONE {
            (outcome.rip, outcome.ending) = (EXIT, super::Ending::Finished);
        } else {
            outcome.set_exception(rip, vector as u8, error_code as u32, address);
        }
        outcome.gpr = control.gpr;
        outcome.rflags = control.rflags;
        let image = &control.image;
        outcome.x87 = X87::from_image(image);
        outcome.mxcsr = u32::from_le_bytes(std::array::from_fn(|i| image[IMAGE_MXCSR + i]));
        for (value, slot) in outcome.xmm.iter_mut().zip(image[IMAGE_XMM..].as_chunks::<16>().0) {
            *value = u128::from_le_bytes(*slot);
        }
        if has_ymm() {
            outcome.ymm_high = control.ymm.map(|[_, high]| high);
        }
        copy_out(DATA, &mut outcome.memory.data);
        copy_out(STACK, &mut outcome.memory.stack);
    }
}

fn install_handlers() {
    PREVIOUS.get_or_init(|| {
        SIGNALS.map(|signal| {
            // SAFETY: an all-zero sigaction is valid; the handler has the type that SA_SIGINFO asks for.
            unsafe {
                let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
                let mut previous: libc::sigaction = MaybeUninit::zeroed().assume_init();
                action.sa_sigaction =
                    handler as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
                // Programs may fault again before the handler's mask would be restored by a plain jump.
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                libc::sigaction(signal, &raw const action, &raw mut previous);
                previous
            }
        })
    });
}

/// Linux's order of the general registers in a signal frame, in encoding order.
const FRAME_ORDER: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: asks the kernel who this is.
    let thread = unsafe { libc::gettid() };
    if RUNNING.compare_exchange(thread, 0, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        chain(signal, info, context);
        return;
    }
    // SAFETY: the kernel passes a ucontext_t, ours alone; `RUNNING` says that a program was interrupted, so the control
    // page is mapped and nobody else uses it; `fpregs` points into the signal frame and starts like an FXSAVE image.
    unsafe {
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let control = &mut *(CONTROL as *mut Control);
        let register = |index: libc::c_int| machine.gregs[index as usize] as u64;
        for (slot, index) in control.gpr.iter_mut().zip(FRAME_ORDER) {
            *slot = register(index);
        }
        control.rflags = register(libc::REG_EFL);
        control.exception = [libc::REG_RIP, libc::REG_TRAPNO, libc::REG_ERR, libc::REG_CR2].map(register);
        let frame = machine.fpregs.cast::<u8>();
        ptr::copy_nonoverlapping(frame, control.image.as_mut_ptr(), control.image.len());
        control.ymm = [[0; 2]; 16];
        // The frame is 64-byte aligned; it goes on behind the FXSAVE image only if it says so.
        let is_xsave = frame.add(IMAGE_MAGIC).cast::<u32>().read() == XSAVE_MAGIC;
        if is_xsave && frame.add(IMAGE_XSTATE_BV).cast::<u64>().read() & 4 != 0 {
            for (index, slot) in control.ymm.iter_mut().enumerate() {
                slot[1] = frame.add(IMAGE_YMM_HIGH + 16 * index).cast::<u128>().read_unaligned();
            }
        }
        machine.gregs[libc::REG_EFL as usize] = 0x202;
        machine.gregs[libc::REG_RIP as usize] = WAY_BACK.get().copied().unwrap_or(0) as i64;
    }
}

/// Hands a signal that no program caused to whoever handled it before.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let index = SIGNALS.iter().position(|&known| known == signal);
    let previous = index.and_then(|index| PREVIOUS.get().map(|all| all[index]));
    match previous {
        Some(action) if action.sa_flags & libc::SA_SIGINFO != 0 && action.sa_sigaction > libc::SIG_IGN => {
            // SAFETY: with SA_SIGINFO the field holds a function of this type.
            let function: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(action.sa_sigaction) };
            function(signal, info, context);
        }
        // SAFETY: restores the default; the instruction faults again and the process ends as it should.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
        },
    }
}

const _: () = assert!(size_of::<Control>() as u64 <= PAGE);
