//! Runs single vector and x87 instructions on the host processor.
//!
//! A [`State`] is loaded with FXRSTOR, one instruction runs, and FXSAVE stores the result: that covers x87, MMX, XMM and
//! MXCSR alike. A fault of the instruction is caught and reported as its signal.
#![expect(unsafe_code, reason = "generated code runs on the host processor, faults included")]

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What an instruction can read and write. The layout is known to [`PROLOGUE`] and [`EPILOGUE`].
#[repr(C, align(64))]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// FXSAVE64 image.
    pub image: [u8; 512],
    /// RAX, RCX, RDX.
    pub gpr: [u64; 3],
    /// RFLAGS.
    pub rflags: u64,
    /// MXCSR of the test program, which runs between the instructions.
    default_mxcsr: u64,
    padding: [u64; 3],
    /// The memory operand; RSI and RDI point here while the instruction runs.
    pub memory: [u8; 576],
}

/// Offset of [`State::memory`].
const MEMORY: usize = 576;

impl Default for State {
    fn default() -> Self {
        Self { image: [0; 512], gpr: [0; 3], rflags: 0x202, default_mxcsr: 0x1F80, padding: [0; 3], memory: [0; 576] }
    }
}

impl State {
    /// Address that RSI and RDI have while the instruction runs.
    #[allow(dead_code, reason = "not all test binaries use memory operands")]
    pub fn memory_address(&self) -> u64 {
        self.memory.as_ptr() as u64
    }
}

/// push rbx; mov rbx, rdi; lea rsi, [rdi+576]; fxrstor64 [rbx]; mov rax, [rbx+512]; mov rcx, [rbx+520];
/// mov rdx, [rbx+528]; push qword [rbx+536]; popfq; mov rdi, rsi
const PROLOGUE: &[u8] = &[
    0x53, 0x48, 0x89, 0xFB, 0x48, 0x8D, 0xB7, 0x40, 0x02, 0x00, 0x00, 0x48, 0x0F, 0xAE, 0x0B, 0x48, 0x8B, 0x83, 0x00,
    0x02, 0x00, 0x00, 0x48, 0x8B, 0x8B, 0x08, 0x02, 0x00, 0x00, 0x48, 0x8B, 0x93, 0x10, 0x02, 0x00, 0x00, 0xFF, 0xB3,
    0x18, 0x02, 0x00, 0x00, 0x9D, 0x48, 0x89, 0xF7,
];
/// pushfq; pop qword [rbx+536]; mov [rbx+512], rax; mov [rbx+520], rcx; mov [rbx+528], rdx; fxsave64 [rbx]; fninit;
/// ldmxcsr [rbx+544]; cld; pop rbx; ret
const EPILOGUE: &[u8] = &[
    0x9C, 0x8F, 0x83, 0x18, 0x02, 0x00, 0x00, 0x48, 0x89, 0x83, 0x00, 0x02, 0x00, 0x00, 0x48, 0x89, 0x8B, 0x08, 0x02,
    0x00, 0x00, 0x48, 0x89, 0x93, 0x10, 0x02, 0x00, 0x00, 0x48, 0x0F, 0xAE, 0x03, 0xDB, 0xE3, 0x0F, 0xAE, 0x93, 0x20,
    0x02, 0x00, 0x00, 0xFC, 0x5B, 0xC3,
];

const PAGE: usize = 4096;

/// Where the instruction under test is, where to continue when it faults, and the signal that told so.
static INSTRUCTION: AtomicUsize = AtomicUsize::new(0);
static RECOVERY: AtomicUsize = AtomicUsize::new(0);
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// One instruction at a time: the statics above belong to whoever holds this.
static EXCLUSIVE: Mutex<()> = Mutex::new(());

/// An instruction, ready to run.
pub struct Host {
    page: *mut u8,
    _exclusive: MutexGuard<'static, ()>,
}

impl Host {
    /// Reserves the processor for one instruction. Release it before creating the next one.
    pub fn new(instruction: &[u8]) -> Self {
        let exclusive = EXCLUSIVE.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(instruction.len() <= 15);
        let code = [PROLOGUE, instruction, EPILOGUE].concat();
        // SAFETY: an anonymous mapping at an address of the kernel's choice disturbs nothing; the code is shorter than
        // the page; it is made executable before anyone calls it. The handler has the signature SA_SIGINFO asks for.
        unsafe {
            let page = libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(page, libc::MAP_FAILED);
            std::ptr::copy_nonoverlapping(code.as_ptr(), page.cast(), code.len());
            assert_eq!(libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_EXEC), 0);
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGILL, libc::SIGBUS] {
                assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
            }
            INSTRUCTION.store(page as usize + PROLOGUE.len(), Ordering::Relaxed);
            RECOVERY.store(page as usize + PROLOGUE.len() + instruction.len(), Ordering::Relaxed);
            Self { page: page.cast(), _exclusive: exclusive }
        }
    }

    /// Where the instruction is on the host.
    #[allow(dead_code, reason = "not all test binaries compare it")]
    pub fn instruction_address(&self) -> u64 {
        INSTRUCTION.load(Ordering::Relaxed) as u64
    }

    /// Runs the instruction; a fault comes back as its signal number.
    pub fn run(&self, state: &mut State) -> Result<(), i32> {
        SIGNAL.store(0, Ordering::Relaxed);
        // SAFETY: the page holds a complete function that follows the C convention (it restores RBX, MXCSR, the x87 state
        // and DF) and touches only `state`: the tests only use RSI and RDI, which point into it, as addresses.
        unsafe {
            let function: extern "sysv64" fn(*mut State) = std::mem::transmute(self.page);
            function(state);
        }
        match SIGNAL.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(signal),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody executes it any more.
        unsafe {
            libc::munmap(self.page.cast(), PAGE);
        }
    }
}

/// Continues behind the instruction under test; any other fault gets its default action.
extern "C" fn on_fault(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the third argument is the interrupted context, exclusively ours while the handler runs.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
        if *rip as usize == INSTRUCTION.load(Ordering::Relaxed) {
            *rip = RECOVERY.load(Ordering::Relaxed) as i64;
            SIGNAL.store(signal, Ordering::Relaxed);
        } else {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

const _: () = assert!(std::mem::offset_of!(State, memory) == MEMORY);
