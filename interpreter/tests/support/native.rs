//! Runs one instruction on the host processor, with the guest's data pages at the same addresses.
#![allow(unsafe_code, reason = "executes generated machine code")]

use iced_x86::code_asm::*;
use lstar_arch::PAGE_SIZE;

use super::DATA;

/// Registers in encoding order and RFLAGS; RSP is the host's own and stays out.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    pub gpr: [u64; 16],
    pub rflags: u64,
}

/// Executable memory and the guest's data pages.
pub struct Native {
    code: *mut u8,
    data: *mut u8,
}

const CODE_SIZE: usize = PAGE_SIZE as usize;
const DATA_SIZE: usize = 2 * PAGE_SIZE as usize;

const REGISTERS: [AsmRegister64; 16] = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
const SAVED: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];

/// Loads the registers from what RDI points to, executes `instruction`, stores them back.
fn trampoline(instruction: &[u8]) -> Result<Vec<u8>, iced_x86::IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for register in SAVED {
        a.push(register)?;
    }
    a.push(rdi)?;
    a.push(qword_ptr(rdi + 128))?;
    a.popfq()?;
    for (i, register) in REGISTERS.into_iter().enumerate() {
        if register != rsp && register != rdi {
            a.mov(register, qword_ptr(rdi + 8 * i))?;
        }
    }
    a.mov(rdi, qword_ptr(rdi + 56))?;
    a.db(instruction)?;
    a.pushfq()?;
    a.cld()?;
    a.push(rax)?;
    a.mov(rax, qword_ptr(rsp + 16))?;
    for (i, register) in REGISTERS.into_iter().enumerate() {
        if register != rsp && register != rax {
            a.mov(qword_ptr(rax + 8 * i), register)?;
        }
    }
    a.pop(rcx)?;
    a.mov(qword_ptr(rax), rcx)?;
    a.pop(rcx)?;
    a.mov(qword_ptr(rax + 128), rcx)?;
    a.pop(rdi)?;
    for register in SAVED.into_iter().rev() {
        a.pop(register)?;
    }
    a.ret()?;
    a.assemble(0)
}

fn map(address: u64, size: usize, protection: i32, flags: i32) -> *mut u8 {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh anonymous mapping; MAP_FIXED_NOREPLACE, where asked for, replaces nothing.
    let pointer = unsafe { libc::mmap(address as *mut libc::c_void, size, protection, flags, -1, 0) };
    assert_ne!(pointer, libc::MAP_FAILED, "mmap");
    pointer.cast()
}

impl Native {
    pub fn new() -> Self {
        let (rw, rwx) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        let data = map(DATA, DATA_SIZE, rw, libc::MAP_FIXED_NOREPLACE);
        assert_eq!(data as u64, DATA);
        Self { code: map(0, CODE_SIZE, rwx, 0), data }
    }

    /// The data pages.
    pub fn data(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours for as long as `self` lives, and `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.data, DATA_SIZE) }
    }

    /// Executes `instruction`, which must neither branch, fault, nor use RSP.
    pub fn execute(&mut self, instruction: &[u8], registers: &mut Registers) {
        let code = trampoline(instruction).expect("encodable");
        assert!(code.len() <= CODE_SIZE);
        // SAFETY: the page is writable and executable and large enough; the trampoline keeps the C calling
        // convention; the caller vouches for the instruction, whose memory operand lies in the data pages.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.code, code.len());
            let entry: extern "C" fn(*mut Registers) = std::mem::transmute(self.code);
            entry(registers);
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: both mappings were made by `new` and nothing refers to them any more.
        unsafe {
            libc::munmap(self.code.cast(), CODE_SIZE);
            libc::munmap(self.data.cast(), DATA_SIZE);
        }
    }
}
