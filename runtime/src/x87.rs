//! The guest's x87 state on its way between the vCPU block and the host's x87: see [`lstar_translator::x87`].
#![expect(unsafe_code, reason = "x87 instructions, and functions with a calling convention that Rust does not have")]

use std::arch::{asm, naked_asm};

use lstar_arch::Vendor;
use lstar_arch::control::cr0;
use lstar_translator::abi::VcpuBlock;
use lstar_translator::x87::unpack_last;

#[cfg(target_arch = "x86_64")]
use crate::host_x87 as host;

/// Exception flags; in the control word their masks.
const EXCEPTIONS: u16 = 0x3F;
/// ES in the status word.
const ERROR_SUMMARY: u16 = 1 << 7;

/// What FNSAVE stores and FRSTOR loads in 64-bit mode (SDM vol. 1, figure 8-9, and 8.1.10). The registers are in stack order.
#[repr(C)]
struct Image {
    control: u32,
    status: u32,
    /// Two bits for each physical register, 3 if it is empty.
    tags: u32,
    pointers: [u32; 4],
    registers: [[u8; 10]; 8],
}

/// Moves the state into the host's x87. Not if an exception is not masked, or the x87 not available: then the interpreter carries
/// out the instruction.
extern "C" fn enter_host(block: *mut VcpuBlock) -> u64 {
    // SAFETY: translated code passes its own live block and is stopped.
    let block = unsafe { &mut *block };
    let x87 = &block.cpu.x87;
    let masked = x87.control & EXCEPTIONS == EXCEPTIONS && x87.status & ERROR_SUMMARY == 0;
    if !masked || block.cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return 1;
    }
    let top = usize::from(x87.status >> 11 & 7);
    let tag = |number: u32| if x87.valid >> number & 1 != 0 { 0 } else { 3 << (2 * number) };
    let image = Image {
        control: x87.control.into(),
        status: x87.status.into(),
        tags: (0..8).map(tag).sum(),
        pointers: [0; 4],
        registers: std::array::from_fn(|index| {
            let register = &x87.registers[(top + index) & 7];
            std::array::from_fn(|byte| register[byte])
        }),
    };
    // SAFETY: loads the x87's state, which nothing else uses until `leave`, from a complete image. No exception is pending.
    unsafe { asm!("frstor [{}]", in(reg) &raw const image, options(nostack, readonly)) };
    block.x87_live = 1;
    block.x87_last = 0;
    block.x87_segment = 0;
    0
}

/// Moves the state into the block, if it is in the host's x87.
#[inline]
pub(crate) fn leave(block: &mut VcpuBlock) {
    if block.x87_live != 0 {
        leave_host(block);
    }
}

#[cold]
fn leave_host(block: &mut VcpuBlock) {
    let mut image = Image { control: 0, status: 0, tags: 0, pointers: [0; 4], registers: [[0; 10]; 8] };
    // SAFETY: stores the x87's state into an image of the right size, and initialises it.
    unsafe { asm!("fnsave [{}]", in(reg) &raw mut image, options(nostack)) };
    let x87 = &mut block.cpu.x87;
    x87.control = image.control as u16;
    x87.status = image.status as u16;
    x87.valid = (0..8).map(|number| u8::from(image.tags >> (2 * number) & 3 != 3) << number).sum();
    let top = usize::from(x87.status >> 11 & 7);
    for (index, register) in image.registers.iter().enumerate() {
        x87.registers[(top + index) & 7][..10].copy_from_slice(register);
    }
    block.x87_live = 0;
    if let Some((rip, opcode)) = unpack_last(block.x87_last) {
        let cpu = &mut block.cpu;
        cpu.x87.instruction_pointer = rip;
        cpu.x87.opcode = opcode;
        // Intel's processors have deprecated the selectors.
        cpu.x87.selectors = match cpu.model.vendor {
            Vendor::Intel => [0; 2],
            Vendor::Amd => {
                let operand = usize::try_from(block.x87_segment).ok().and_then(|number| number.checked_sub(1));
                let operand = operand.and_then(|number| cpu.segments.get(number));
                let data = operand.map_or(cpu.x87.selectors[1], |segment| segment.selector);
                [cpu.segment(lstar_arch::SegmentIndex::Cs).selector, data]
            }
        };
    }
}

/// As [`leave`], for assembly.
pub(crate) extern "C" fn leave_block(block: *mut VcpuBlock) {
    // SAFETY: callers pass the live block of the translated code that has just stopped.
    leave(unsafe { &mut *block });
}

/// Defines a function that keeps all registers but RAX, or all, around a function of the C calling convention, which takes the
/// block in RDI.
macro_rules! keeping_registers {
    ($name:ident, $function:ident, $after:literal) => {
        // SAFETY: saves and restores all registers that the C calling convention does not keep; of the vector registers the lower
        // halves, as translated code has nothing in the others.
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                "push rbp",
                "mov rbp, rsp",
                "push rax",
                "push rcx",
                "push rdx",
                "push rsi",
                "push rdi",
                "push r8",
                "push r9",
                "push r10",
                "push r11",
                "sub rsp, 256",
                "and rsp, -16",
                "movaps [rsp], xmm0",
                "movaps [rsp + 16], xmm1",
                "movaps [rsp + 32], xmm2",
                "movaps [rsp + 48], xmm3",
                "movaps [rsp + 64], xmm4",
                "movaps [rsp + 80], xmm5",
                "movaps [rsp + 96], xmm6",
                "movaps [rsp + 112], xmm7",
                "movaps [rsp + 128], xmm8",
                "movaps [rsp + 144], xmm9",
                "movaps [rsp + 160], xmm10",
                "movaps [rsp + 176], xmm11",
                "movaps [rsp + 192], xmm12",
                "movaps [rsp + 208], xmm13",
                "movaps [rsp + 224], xmm14",
                "movaps [rsp + 240], xmm15",
                "call {function}",
                $after,
                "movaps xmm0, [rsp]",
                "movaps xmm1, [rsp + 16]",
                "movaps xmm2, [rsp + 32]",
                "movaps xmm3, [rsp + 48]",
                "movaps xmm4, [rsp + 64]",
                "movaps xmm5, [rsp + 80]",
                "movaps xmm6, [rsp + 96]",
                "movaps xmm7, [rsp + 112]",
                "movaps xmm8, [rsp + 128]",
                "movaps xmm9, [rsp + 144]",
                "movaps xmm10, [rsp + 160]",
                "movaps xmm11, [rsp + 176]",
                "movaps xmm12, [rsp + 192]",
                "movaps xmm13, [rsp + 208]",
                "movaps xmm14, [rsp + 224]",
                "movaps xmm15, [rsp + 240]",
                "lea rsp, [rbp - 72]",
                "pop r11",
                "pop r10",
                "pop r9",
                "pop r8",
                "pop rdi",
                "pop rsi",
                "pop rdx",
                "pop rcx",
                "pop rax",
                "pop rbp",
                "ret",
                function = sym $function,
            )
        }
    };
}
keeping_registers!(enter_keeping_registers, enter_host, "mov [rbp - 8], rax");
keeping_registers!(leave_keeping_registers, leave_block, "");

/// Host address of the code that moves the state in.
pub(crate) fn enter_address() -> u64 {
    enter_keeping_registers as *const () as u64
}

/// Host address of the code that moves it out.
pub(crate) fn leave_address() -> u64 {
    leave_keeping_registers as *const () as u64
}

/// Lets all interpreters of this process have the host's transcendental functions and approximations, which translated code
/// uses. Every [`crate::Machine`] does so.
#[cfg(target_arch = "x86_64")]
pub fn provide_transcendentals() {
    lstar_interpreter::provide_transcendentals(|function, x, y, control| {
        use lstar_interpreter::Transcendental as T;
        host::prepare(control, 0);
        let x = x.to_le_bytes();
        let mut result = x;
        let status = match function {
            T::Exponential | T::Sine | T::Cosine => host::unary(function, &mut result),
            T::Reciprocal | T::ReciprocalSquareRoot => {
                let [a, b, c, d, ..] = x;
                let single = host::approximation(function == T::Reciprocal, u32::from_le_bytes([a, b, c, d]));
                result = u128::from(single).to_le_bytes();
                0
            }
            T::Tangent => host::tangent(&mut result),
            T::Logarithm | T::LogarithmOfNext | T::ArcTangent => {
                result = y.to_le_bytes();
                host::binary(function, &x, &mut result)
            }
        };
        (u128::from_le_bytes(result), status)
    });
}

/// The interpreter computes everything itself.
#[cfg(not(target_arch = "x86_64"))]
pub fn provide_transcendentals() {}
