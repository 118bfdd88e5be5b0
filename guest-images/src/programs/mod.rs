//! Programs for tests and benches: one function each, `fn(n) -> checksum` in the Windows x64 calling convention.
//!
//! They have no imports and reach memory only in their own data block (and on the stack), in the shapes that
//! compilers emit. All addresses are RIP-relative, so that a program runs wherever its code and data lie at their
//! distance: in a guest, and on the host for comparison. The expected checksum is computed independently in Rust.

mod branches;
mod calls;
mod extended;
mod float;
mod hashing;
mod memory;
mod sorting;
mod vector;

use iced_x86::code_asm::*;

use crate::BuildError;
use crate::assemble::{Code64, Piece};

/// Where the code of every program is meant to lie.
pub const CODE_BASE: u64 = 0x2_0000_0000;
/// Where the data of every program is meant to lie.
pub const DATA_BASE: u64 = 0x2_0010_0000;

/// A program.
#[derive(Clone, Debug)]
pub struct Program {
    /// Name for reports.
    pub name: &'static str,
    /// Machine code, to be mapped at [`CODE_BASE`] (or anywhere, with the data at its distance).
    pub code: Vec<u8>,
    /// Address of `code`.
    pub base: u64,
    /// Address of the data block.
    pub data_base: u64,
    /// Size of the data block in bytes, a multiple of the page size.
    pub data_size: usize,
    /// Initial bytes of the data block; the rest is zero. Every run starts from this state.
    pub data: Vec<u8>,
    /// Address of the function.
    pub entry: u64,
    /// An `n` that takes the order of ten million instructions.
    pub default_n: u64,
    /// The checksum that the function returns for `n`.
    pub expected: fn(u64) -> u64,
}

/// How a program is described where it is written.
struct Recipe {
    name: &'static str,
    data_size: usize,
    /// Initial data, given the assembled code (whose addresses it may hold as differences).
    data: fn(&Code64) -> Vec<u8>,
    default_n: u64,
    expected: fn(u64) -> u64,
    assemble: fn(&mut Piece) -> Result<(), BuildError>,
}

impl Recipe {
    fn build(self) -> Result<Program, BuildError> {
        let mut a = Piece::new()?;
        a.mark("entry")?;
        (self.assemble)(&mut a)?;
        let code = a.finish(CODE_BASE)?;
        Ok(Program {
            name: self.name,
            data: (self.data)(&code),
            entry: code.address,
            code: code.bytes,
            base: CODE_BASE,
            data_base: DATA_BASE,
            data_size: self.data_size.next_multiple_of(0x1000),
            default_n: self.default_n,
            expected: self.expected,
        })
    }
}

/// All programs that need no operating system.
///
/// # Errors
/// If the assembler fails.
pub fn programs() -> Result<Vec<Program>, BuildError> {
    [
        sorting::integer_sort(),
        sorting::sieve(),
        hashing::sha256(),
        hashing::hash_table(),
        branches::bytecode(),
        calls::recursion(),
        calls::virtual_calls(),
        memory::copy(),
        float::nbody(),
        float::matrix(),
        vector::mandelbrot(),
        vector::integers(),
        vector::copy_16(),
        extended::mandelbrot(),
    ]
    .into_iter()
    .map(Recipe::build)
    .collect()
}

/// Programs that need a processor with AVX2.
///
/// # Errors
/// If the assembler fails.
pub fn avx_programs() -> Result<Vec<Program>, BuildError> {
    [vector::copy_32(), float::matrix_256()].into_iter().map(Recipe::build).collect()
}

/// A loop of `n` system calls with the given number, all arguments zero; returns the sum of their results plus `n`.
///
/// # Errors
/// If the assembler fails.
pub fn syscall_loop(number: u32) -> Result<Program, BuildError> {
    let mut a = Piece::new()?;
    let mut next = a.create_label();
    let mut done = a.create_label();
    a.push(rbx)?;
    a.push(rsi)?;
    a.mov(rbx, rcx)?;
    a.mov(rsi, rcx)?;
    a.test(rbx, rbx)?;
    a.je(done)?;
    a.set_label(&mut next)?;
    a.xor(r10d, r10d)?;
    a.xor(edx, edx)?;
    a.xor(r8d, r8d)?;
    a.xor(r9d, r9d)?;
    a.mov(eax, number)?;
    a.syscall()?;
    a.add(rsi, rax)?;
    a.dec(rbx)?;
    a.jne(next)?;
    a.set_label(&mut done)?;
    a.mov(rax, rsi)?;
    a.pop(rsi)?;
    a.pop(rbx)?;
    a.ret()?;
    let code = a.finish(CODE_BASE)?;
    Ok(Program {
        name: "syscall",
        entry: code.address,
        code: code.bytes,
        base: CODE_BASE,
        data_base: DATA_BASE,
        data_size: 0x1000,
        data: Vec::new(),
        default_n: 100_000,
        // For a service that answers STATUS_SUCCESS.
        expected: |n| n,
    })
}

/// Registers that a function of the Windows x64 convention preserves, in the order in which compilers push them.
const PRESERVED: [AsmRegister64; 8] = [rbx, rbp, rsi, rdi, r12, r13, r14, r15];

fn push_preserved(a: &mut Piece, registers: &[AsmRegister64]) -> Result<(), BuildError> {
    registers.iter().try_for_each(|&register| Ok(a.push(register)?))
}

fn pop_preserved(a: &mut Piece, registers: &[AsmRegister64]) -> Result<(), BuildError> {
    registers.iter().rev().try_for_each(|&register| Ok(a.pop(register)?))
}

/// The generator that programs fill their data with: `state * MULTIPLIER + INCREMENT` (Knuth's MMIX).
const LCG_MULTIPLIER: u64 = 6_364_136_223_846_793_005;
const LCG_INCREMENT: u64 = 1_442_695_040_888_963_407;

fn lcg(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(LCG_MULTIPLIER).wrapping_add(LCG_INCREMENT);
    *state
}
