//! Host signals raised by translated code.
//!
//! A SIGSEGV, SIGBUS, SIGILL, SIGTRAP or SIGFPE whose program counter is a known site of translated code becomes a return
//! from [`crate::entry::enter`] with [`FAULT`](crate::entry::FAULT), after the guest state has been completed from the
//! site. Anything else goes to the handler that was there before.
#![expect(unsafe_code, reason = "signal handlers")]

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

use lstar_translator::abi::VcpuBlock;
use lstar_translator::statemap::{Entry, HostState};

use crate::code_cache::CodeCache;
use crate::entry;

thread_local! {
    /// What the handler consults while this thread runs translated code. Constant-initialised and without destructor,
    /// so that reading it in a handler is safe.
    static ACTIVE: Cell<*const Scope> = const { Cell::new(ptr::null()) };
}

/// The running machine, as the handler needs it.
pub(crate) struct Scope {
    pub block: *mut VcpuBlock,
    pub cache: *const CodeCache,
}

/// Makes `scope` the one that faults of this thread belong to; returns the previous one.
pub(crate) fn activate(scope: *const Scope) -> *const Scope {
    ACTIVE.with(|active| active.replace(scope))
}

const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGFPE];

static PREVIOUS: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

/// Installs the handlers, once per process.
pub(crate) fn install() {
    PREVIOUS.get_or_init(|| {
        SIGNALS.map(|signal| {
            // SAFETY: an all-zero sigaction is valid; both pointers are to live values; the handler is async-signal-safe.
            unsafe {
                let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
                let mut previous: libc::sigaction = MaybeUninit::zeroed().assume_init();
                action.sa_sigaction =
                    handler as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&raw mut action.sa_mask);
                libc::sigaction(signal, &raw const action, &raw mut previous);
                previous
            }
        })
    });
}

/// Indices into `gregs` by hardware encoding.
const GENERAL: [libc::c_int; 16] = [
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

/// Host code of a region, stopped at one of its sites.
struct Stopped<'a>(&'a libc::mcontext_t);

impl HostState for Stopped<'_> {
    fn general(&self, register: u8) -> u64 {
        self.0.gregs[GENERAL[usize::from(register & 15)] as usize] as u64
    }

    fn vector(&self, register: u8) -> u128 {
        // SAFETY: the kernel has saved the vector registers here for the time that the handler runs.
        let saved = unsafe { &(*self.0.fpregs)._xmm[usize::from(register & 15)].element };
        saved.iter().rev().fold(0, |value, &part| value << 32 | u128::from(part))
    }

    fn denormals_are_zero(&self) -> bool {
        const DAZ: u32 = 1 << 6;
        // SAFETY: as in `vector`.
        unsafe { (*self.0.fpregs).mxcsr & DAZ != 0 }
    }

    fn frame(&self, offset: i32) -> u128 {
        let at = self.0.gregs[libc::REG_RBP as usize].wrapping_add(offset.into()) as *const u128;
        // SAFETY: regions keep a frame pointer, and the offsets in their maps are those of 16 or 8 bytes of stack slots below
        // it; 8 bytes above such a slot belong to the frame, too.
        unsafe { at.read_unaligned() }
    }
}

/// Writes a value to the block.
///
/// # Safety
/// `block` is valid and nothing refers to it.
unsafe fn write_entry(block: *mut VcpuBlock, entry: Entry, value: u128) {
    let (offset, bytes) = (usize::from(entry.offset), entry.bytes());
    if offset + bytes > size_of::<VcpuBlock>() {
        return;
    }
    let value = if entry.bits < 64 { value & ((1 << entry.bits) - 1) } else { value };
    // SAFETY: by contract, and within the block as checked. The parts that entries name are integers or bytes of such.
    unsafe { ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), block.cast::<u8>().add(offset), bytes) };
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let scope = ACTIVE.with(Cell::get);
    // SAFETY: the kernel passes a ucontext_t to SA_SIGINFO handlers; this is the only reference to it.
    let machine = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext };
    if !scope.is_null() {
        // SAFETY: a non-null scope was activated by this thread and outlives the run; the thread is stopped in translated
        // code (checked by the site look-up), during which nothing modifies the cache.
        let (block, cache) = unsafe { ((*scope).block, &*(*scope).cache) };
        let pc = machine.gregs[libc::REG_RIP as usize] as u64;
        if let Some((site, map)) = cache.site_at(pc) {
            for entry in site.entries(map) {
                let value = map.value(entry.location, &Stopped(machine));
                // SAFETY: translated code owns the block while it runs, and it is stopped.
                unsafe { write_entry(block, *entry, value) };
            }
            let registers = &mut machine.gregs;
            // SAFETY: as above.
            unsafe {
                site.restore(&mut *block);
                registers[libc::REG_RSP as usize] = (*block).recovery_rsp as i64;
            }
            registers[libc::REG_RIP as usize] = entry::landing_address() as i64;
            registers[libc::REG_RAX as usize] = entry::FAULT as i64;
            return;
        }
    }
    chain(signal, info, context);
}

/// Hands a signal that is not ours to whoever handled it before.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let index = SIGNALS.iter().position(|&known| known == signal);
    let previous = index.and_then(|index| PREVIOUS.get().map(|all| all[index]));
    let action = previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
    if action == libc::SIG_IGN {
        return;
    }
    if action == libc::SIG_DFL {
        // SAFETY: restoring the default disposition; the instruction faults again and the process ends as it should.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    if previous.is_some_and(|previous| previous.sa_flags & libc::SA_SIGINFO != 0) {
        // SAFETY: with SA_SIGINFO the field holds a function of this type.
        let function: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(action) };
        function(signal, info, context);
    } else {
        // SAFETY: without SA_SIGINFO the field holds a function of this type.
        let function: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(action) };
        function(signal);
    }
}
