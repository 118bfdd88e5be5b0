//! Integer code over arrays: quicksort, sieve of Eratosthenes.

use iced_x86::code_asm::*;

use super::{DATA_BASE, LCG_INCREMENT, LCG_MULTIPLIER, Recipe, lcg, pop_preserved, push_preserved};
use crate::BuildError;
use crate::assemble::{Piece, at};

const ELEMENTS: u32 = 4096;

/// `n` rounds of filling an array with random 32-bit numbers and sorting it by recursive quicksort.
pub(super) fn integer_sort() -> Recipe {
    Recipe {
        name: "integer_sort",
        data_size: ELEMENTS as usize * 4,
        data: |_| Vec::new(),
        default_n: 12,
        expected: |n| {
            let (mut state, mut sum) = (0, 0u64);
            for _ in 0..n {
                let mut array: Vec<u32> = (0..ELEMENTS).map(|_| (lcg(&mut state) >> 32) as u32).collect();
                array.sort_unstable();
                for (index, value) in (1u64..).zip(array) {
                    sum = sum.wrapping_add(index.wrapping_mul(value.into()));
                }
            }
            sum
        },
        assemble: assemble_sort,
    }
}

fn assemble_sort(a: &mut Piece) -> Result<(), BuildError> {
    const SAVED: [AsmRegister64; 6] = [rbx, rbp, rsi, rdi, r12, r13];
    let mut round = a.create_label();
    let mut fill = a.create_label();
    let mut add = a.create_label();
    let mut done = a.create_label();
    let mut quicksort = a.create_label();
    push_preserved(a, &SAVED)?;
    a.sub(rsp, 0x28)?;
    a.mov(rbx, rcx)?;
    a.xor(ebp, ebp)?;
    a.xor(r12d, r12d)?;
    a.lea(rsi, at(DATA_BASE))?;
    a.test(rbx, rbx)?;
    a.je(done)?;
    a.set_label(&mut round)?;
    a.mov(r8, LCG_MULTIPLIER)?;
    a.mov(r9, LCG_INCREMENT)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut fill)?;
    a.imul_2(r12, r8)?;
    a.add(r12, r9)?;
    a.mov(rax, r12)?;
    a.shr(rax, 32)?;
    a.mov(dword_ptr(rsi + rcx * 4), eax)?;
    a.inc(rcx)?;
    a.cmp(rcx, ELEMENTS as i32)?;
    a.jne(fill)?;
    a.mov(rcx, rsi)?;
    a.lea(rdx, rsi + (ELEMENTS as i32 - 1) * 4)?;
    a.call(quicksort)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut add)?;
    a.mov(eax, dword_ptr(rsi + rcx * 4))?;
    a.inc(rcx)?;
    a.imul_2(rax, rcx)?;
    a.add(rbp, rax)?;
    a.cmp(rcx, ELEMENTS as i32)?;
    a.jne(add)?;
    a.dec(rbx)?;
    a.jne(round)?;
    a.set_label(&mut done)?;
    a.mov(rax, rbp)?;
    a.add(rsp, 0x28)?;
    pop_preserved(a, &SAVED)?;
    a.ret()?;
    assemble_quicksort(a, &mut quicksort)
}

/// RCX = first element, RDX = last element: Hoare's partition around the middle element.
fn assemble_quicksort(a: &mut Piece, quicksort: &mut CodeLabel) -> Result<(), BuildError> {
    const SAVED: [AsmRegister64; 3] = [rbx, rsi, rdi];
    let mut next_low = a.create_label();
    let mut low_found = a.create_label();
    let mut next_high = a.create_label();
    let mut high_found = a.create_label();
    let mut partitioned = a.create_label();
    let mut done = a.create_label();
    a.set_label(quicksort)?;
    a.cmp(rcx, rdx)?;
    a.jae(done)?;
    push_preserved(a, &SAVED)?;
    a.sub(rsp, 0x20)?;
    a.mov(rdi, rdx)?;
    a.mov(rsi, rcx)?;
    a.mov(rax, rdx)?;
    a.sub(rax, rcx)?;
    a.shr(rax, 3)?;
    a.mov(eax, dword_ptr(rcx + rax * 4))?;
    a.set_label(&mut next_low)?;
    a.cmp(dword_ptr(rcx), eax)?;
    a.jae(low_found)?;
    a.add(rcx, 4)?;
    a.jmp(next_low)?;
    a.set_label(&mut low_found)?;
    a.cmp(dword_ptr(rdx), eax)?;
    a.jbe(high_found)?;
    a.set_label(&mut next_high)?;
    a.sub(rdx, 4)?;
    a.cmp(dword_ptr(rdx), eax)?;
    a.ja(next_high)?;
    a.set_label(&mut high_found)?;
    a.cmp(rcx, rdx)?;
    a.ja(partitioned)?;
    a.mov(r8d, dword_ptr(rcx))?;
    a.mov(r9d, dword_ptr(rdx))?;
    a.mov(dword_ptr(rcx), r9d)?;
    a.mov(dword_ptr(rdx), r8d)?;
    a.add(rcx, 4)?;
    a.sub(rdx, 4)?;
    a.cmp(rcx, rdx)?;
    a.jbe(next_low)?;
    a.set_label(&mut partitioned)?;
    a.mov(rbx, rcx)?;
    a.mov(rcx, rsi)?;
    a.call(*quicksort)?;
    a.mov(rcx, rbx)?;
    a.mov(rdx, rdi)?;
    a.call(*quicksort)?;
    a.add(rsp, 0x20)?;
    pop_preserved(a, &SAVED)?;
    a.set_label(&mut done)?;
    a.ret()?;
    Ok(())
}

const SIEVE_SIZE: u32 = 65_536;

/// `n` rounds of sieving the numbers below 65,536, one flag a byte, and adding up the primes.
pub(super) fn sieve() -> Recipe {
    Recipe {
        name: "sieve",
        data_size: SIEVE_SIZE as usize,
        data: |_| Vec::new(),
        default_n: 16,
        expected: |n| {
            let is_prime = |number: u32| (2..).take_while(|d| d * d <= number).all(|d| !number.is_multiple_of(d));
            let primes: u64 = (2..SIEVE_SIZE).filter(|&number| is_prime(number)).map(u64::from).sum();
            (0..n).fold(0u64, |sum, _| sum.wrapping_mul(31).wrapping_add(primes))
        },
        assemble: assemble_sieve,
    }
}

fn assemble_sieve(a: &mut Piece) -> Result<(), BuildError> {
    let mut round = a.create_label();
    let mut clear = a.create_label();
    let mut candidate = a.create_label();
    let mut strike = a.create_label();
    let mut composite = a.create_label();
    let mut done = a.create_label();
    a.xor(eax, eax)?;
    a.test(rcx, rcx)?;
    a.je(done)?;
    a.lea(r8, at(DATA_BASE))?;
    a.set_label(&mut round)?;
    a.pxor(xmm0, xmm0)?;
    a.xor(edx, edx)?;
    a.set_label(&mut clear)?;
    a.movdqu(xmmword_ptr(r8 + rdx), xmm0)?;
    a.movdqu(xmmword_ptr(r8 + rdx + 16), xmm0)?;
    a.add(rdx, 32)?;
    a.cmp(edx, SIEVE_SIZE)?;
    a.jne(clear)?;
    a.xor(r9d, r9d)?;
    a.mov(edx, 2)?;
    a.set_label(&mut candidate)?;
    a.cmp(byte_ptr(r8 + rdx), 0)?;
    a.jne(composite)?;
    a.add(r9, rdx)?;
    a.mov(r10, rdx)?;
    a.imul_2(r10, rdx)?;
    a.cmp(r10, SIEVE_SIZE as i32)?;
    a.jae(composite)?;
    a.set_label(&mut strike)?;
    a.mov(byte_ptr(r8 + r10), 1)?;
    a.add(r10, rdx)?;
    a.cmp(r10, SIEVE_SIZE as i32)?;
    a.jb(strike)?;
    a.set_label(&mut composite)?;
    a.inc(edx)?;
    a.cmp(edx, SIEVE_SIZE)?;
    a.jne(candidate)?;
    a.imul_3(rax, rax, 31)?;
    a.add(rax, r9)?;
    a.dec(rcx)?;
    a.jne(round)?;
    a.set_label(&mut done)?;
    a.ret()?;
    Ok(())
}
