//! Machine code of the host operations: see [`lstar_translator::host_op`].
#![expect(unsafe_code, reason = "a few instructions each, with a calling convention that Rust does not have")]

use lstar_translator::foreach_host_op;
use lstar_translator::host_op::{HostOp, StringOp};

macro_rules! define_host_ops {
    ($($(#[$doc:meta])* $name:ident $feature:ident $signature:ident [$($line:literal),+] [$($byte:literal),*];)*) => {
        $(
            // SAFETY: reads and writes only the registers of its signature, and red-zone bytes below the stack pointer.
            // Only code that knows the convention calls it, and only on hosts that have the instruction.
            #[unsafe(naked)]
            #[allow(non_snake_case, reason = "functions have the names of the table's rows")]
            unsafe extern "C" fn $name() {
                core::arch::naked_asm!($($line,)+ "ret")
            }
        )*

        /// Host address of an operation.
        pub(crate) fn address(op: HostOp) -> u64 {
            (match op { $(HostOp::$name => $name as *const (),)* }) as u64
        }
    };
}
foreach_host_op!(define_host_ops);

/// Defines a string comparison for all immediates: instruction bytes before the immediate, code around them.
macro_rules! string_operation {
    ($name:ident, $symbol:literal, $before:literal, $opcode:literal, $after:literal) => {
        // SAFETY: as for the operations above; registers other than the results are saved and restored.
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                concat!(".set .L", $symbol, ", 0"),
                ".rept 256",
                $before,
                concat!(".byte ", $opcode, ", .L", $symbol),
                $after,
                "ret",
                concat!(".set .L", $symbol, ", .L", $symbol, " + 1"),
                ".endr",
            )
        }
    };
}

// pcmpistri xmm0, xmm1, imm and its like; 64-bit lengths.
string_operation!(
    implicit_index,
    "pcmpistri",
    "push rcx",
    "0x66, 0x0F, 0x3A, 0x63, 0xC1",
    "pushfq\npop rax\nshl rax, 8\nor rax, rcx\npop rcx"
);
string_operation!(implicit_mask, "pcmpistrm", "", "0x66, 0x0F, 0x3A, 0x62, 0xC1", "pushfq\npop rax\nshl rax, 8");
string_operation!(
    explicit_index,
    "pcmpestri",
    "push rcx\npush rdx\nmov rax, rdi\nmov rdx, rsi",
    "0x66, 0x48, 0x0F, 0x3A, 0x61, 0xC1",
    "pushfq\npop rax\nshl rax, 8\nor rax, rcx\npop rdx\npop rcx"
);
string_operation!(
    explicit_mask,
    "pcmpestrm",
    "push rdx\nmov rax, rdi\nmov rdx, rsi",
    "0x66, 0x48, 0x0F, 0x3A, 0x60, 0xC1",
    "pushfq\npop rax\nshl rax, 8\npop rdx"
);

/// Host address of a string comparison with the immediate 0.
pub(crate) fn string_address(op: StringOp) -> u64 {
    (match op {
        StringOp::ImplicitIndex => implicit_index as *const (),
        StringOp::ImplicitMask => implicit_mask as *const (),
        StringOp::ExplicitIndex => explicit_index as *const (),
        StringOp::ExplicitMask => explicit_mask as *const (),
    }) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_operations_are_what_their_bytes_say() {
        for op in HostOp::ALL.iter().copied().filter(|op| !op.code().is_empty()) {
            let start = address(op) as *const u8;
            // SAFETY: the function's code, which is readable and at least as long as it says.
            let code: [u8; 6] = unsafe { core::ptr::read_unaligned(start.cast()) };
            assert_eq!(code[..=op.code().len()], [op.code(), &[0xC3]].concat(), "{op:?}");
        }
    }

    /// The distance from one return to the next is the stride.
    #[test]
    fn string_comparisons_are_a_stride_apart() {
        for op in StringOp::ALL {
            let start = string_address(op) as *const u8;
            for control in 0..=255u64 {
                let offset = (control * op.stride()) as usize;
                // SAFETY: inside the function's code, which is readable.
                let code: [u8; 27] = unsafe { core::ptr::read_unaligned(start.add(offset).cast()) };
                let code = &code[..op.stride() as usize];
                assert_eq!(code.last(), Some(&0xC3), "{op:?} {control}");
                let at = code.windows(2).position(|bytes| bytes == [0x0F, 0x3A]).expect("an opcode");
                assert_eq!(u64::from(code[at + 4]), control, "{op:?}");
            }
        }
    }
}
