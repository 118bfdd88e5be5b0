//! Block copies: REP MOVSB and a loop of 16-byte moves.

use iced_x86::code_asm::*;

use super::{DATA_BASE, Recipe, pop_preserved, push_preserved};
use crate::BuildError;
use crate::assemble::{Piece, at};

const SIZE: u32 = 0x4000;
/// From here REP MOVSB copies to [`MIDDLE`], and the loop back from there, one byte further on: unaligned.
const FIRST: u64 = DATA_BASE;
const MIDDLE: u64 = DATA_BASE + 0x8000;

/// `n` rounds of copying 16 KiB there and back, shifted by a byte, with a word changed in each round.
pub(super) fn copy() -> Recipe {
    Recipe {
        name: "memcpy",
        data_size: 0x10000,
        data: |_| (0..SIZE).map(|index| (index * 7 + (index >> 8)) as u8).collect(),
        default_n: 600,
        expected: |n| {
            let mut bytes: Vec<u8> = (0..SIZE).map(|index| (index * 7 + (index >> 8)) as u8).collect();
            bytes.push(0);
            let mut sum = 0u64;
            for round in (1..=n).rev() {
                for (byte, add) in bytes.iter_mut().zip(round.to_le_bytes()) {
                    *byte ^= add;
                }
                let moved = bytes[..SIZE as usize].to_vec();
                bytes[1..].copy_from_slice(&moved);
                let word: [u8; 8] = std::array::from_fn(|index| bytes[0x1000 + index]);
                sum = sum.wrapping_mul(3).wrapping_add(u64::from_le_bytes(word));
            }
            sum
        },
        assemble: assemble_copy,
    }
}

fn assemble_copy(a: &mut Piece) -> Result<(), BuildError> {
    const SAVED: [AsmRegister64; 4] = [rbx, rsi, rdi, rbp];
    let mut round = a.create_label();
    let mut move_16 = a.create_label();
    let mut done = a.create_label();
    push_preserved(a, &SAVED)?;
    a.mov(rbx, rcx)?;
    a.xor(ebp, ebp)?;
    a.test(rbx, rbx)?;
    a.je(done)?;
    a.set_label(&mut round)?;
    a.lea(rsi, at(FIRST))?;
    a.lea(rdi, at(MIDDLE))?;
    a.xor(qword_ptr(rsi), rbx)?;
    a.mov(ecx, SIZE)?;
    a.rep().movsb()?;
    a.lea(rcx, at(FIRST))?;
    a.lea(rdx, at(MIDDLE))?;
    a.xor(eax, eax)?;
    a.set_label(&mut move_16)?;
    a.movdqu(xmm0, xmmword_ptr(rdx + rax))?;
    a.movdqu(xmmword_ptr(rcx + rax + 1), xmm0)?;
    a.add(rax, 16)?;
    a.cmp(rax, SIZE as i32)?;
    a.jne(move_16)?;
    a.lea(rbp, rbp + rbp * 2)?;
    a.add(rbp, qword_ptr(rcx + 0x1000))?;
    a.dec(rbx)?;
    a.jne(round)?;
    a.set_label(&mut done)?;
    a.mov(rax, rbp)?;
    pop_preserved(a, &SAVED)?;
    a.ret()?;
    Ok(())
}
