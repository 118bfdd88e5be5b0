//! Vector code: a Mandelbrot set in packed doubles, packed integers, copies with 16- and 32-byte moves, the matrix product
//! of [`super::float`] with 256-bit vectors.

use iced_x86::code_asm::*;

use super::{DATA_BASE, Recipe, pop_preserved, push_preserved};
use crate::BuildError;
use crate::assemble::{Piece, at};

/// Points in a row of the set, and iterations at most.
const WIDTH: u64 = 64;
const LIMIT: u32 = 64;
const STEP: f64 = 3.0 / WIDTH as f64;
const ROW_STEP: f64 = 1.0 / 32.0;
/// Pairs of doubles: first two columns, twice the step, first row, row step, the limit 4.
const CONSTANTS: [[f64; 2]; 5] =
    [[-2.0, -2.0 + STEP], [2.0 * STEP, 2.0 * STEP], [-1.0, -1.0], [ROW_STEP, ROW_STEP], [4.0, 4.0]];

/// `n` rows of the Mandelbrot set; the checksum counts iterations.
pub(super) fn mandelbrot() -> Recipe {
    Recipe {
        name: "mandelbrot",
        data_size: 0x1000,
        data: |_| CONSTANTS.into_iter().flatten().flat_map(f64::to_le_bytes).collect(),
        default_n: 64,
        expected: |n| {
            let (mut sum, mut y) = (0u64, -1.0);
            for _ in 0..n {
                let mut x = [-2.0, -2.0 + STEP];
                for _ in 0..WIDTH / 2 {
                    sum += x.iter().map(|&x| iterations(x, y)).sum::<u64>();
                    x = x.map(|x| x + 2.0 * STEP);
                }
                y += ROW_STEP;
            }
            sum
        },
        assemble: assemble_mandelbrot,
    }
}

/// Iterations that begin inside the circle, of both points of a pair as long as one of them is inside: a point that has left
/// does not come back in time to count.
fn iterations(x: f64, y: f64) -> u64 {
    let (mut re, mut im, mut count) = (0.0f64, 0.0f64, 0);
    for _ in 0..LIMIT {
        let (re2, im2) = (re * re, im * im);
        count += u64::from(re2 + im2 <= 4.0);
        im = 2.0 * (re * im) + y;
        re = re2 - im2 + x;
    }
    count
}

fn assemble_mandelbrot(a: &mut Piece) -> Result<(), BuildError> {
    let mut row = a.create_label();
    let mut pair = a.create_label();
    let mut iterate = a.create_label();
    let mut escaped = a.create_label();
    let mut done = a.create_label();
    let constant = |index: u64| xmmword_ptr(at(DATA_BASE + 16 * index));
    let saved = [(xmm6, 0), (xmm7, 0x10)];
    a.sub(rsp, 0x28)?;
    for (register, slot) in saved {
        a.movaps(xmmword_ptr(rsp + slot), register)?;
    }
    a.xor(eax, eax)?;
    a.test(rcx, rcx)?;
    a.je(done)?;
    a.movapd(xmm3, constant(2))?;
    a.set_label(&mut row)?;
    a.movapd(xmm2, constant(0))?;
    a.mov(edx, WIDTH as u32 / 2)?;
    a.set_label(&mut pair)?;
    a.pxor(xmm0, xmm0)?;
    a.pxor(xmm1, xmm1)?;
    a.pxor(xmm7, xmm7)?;
    a.mov(r8d, LIMIT)?;
    a.set_label(&mut iterate)?;
    a.movapd(xmm4, xmm0)?;
    a.mulpd(xmm4, xmm0)?;
    a.movapd(xmm5, xmm1)?;
    a.mulpd(xmm5, xmm1)?;
    a.movapd(xmm6, xmm4)?;
    a.addpd(xmm6, xmm5)?;
    a.cmplepd(xmm6, constant(4))?;
    a.movmskpd(r9d, xmm6)?;
    a.test(r9d, r9d)?;
    a.je(escaped)?;
    a.psubq(xmm7, xmm6)?;
    a.mulpd(xmm1, xmm0)?;
    a.addpd(xmm1, xmm1)?;
    a.addpd(xmm1, xmm3)?;
    a.subpd(xmm4, xmm5)?;
    a.addpd(xmm4, xmm2)?;
    a.movapd(xmm0, xmm4)?;
    a.dec(r8d)?;
    a.jne(iterate)?;
    a.set_label(&mut escaped)?;
    a.movq(r9, xmm7)?;
    a.add(rax, r9)?;
    a.psrldq(xmm7, 8)?;
    a.movq(r9, xmm7)?;
    a.add(rax, r9)?;
    a.addpd(xmm2, constant(1))?;
    a.dec(edx)?;
    a.jne(pair)?;
    a.addpd(xmm3, constant(3))?;
    a.dec(rcx)?;
    a.jne(row)?;
    a.set_label(&mut done)?;
    for (register, slot) in saved {
        a.movaps(register, xmmword_ptr(rsp + slot))?;
    }
    a.add(rsp, 0x28)?;
    a.ret()?;
    Ok(())
}

/// Bytes in each of the two arrays.
const BYTES: usize = 4096;

fn initial_bytes() -> Vec<u8> {
    (0..2 * BYTES).map(|index| (index * 37 + index / 11) as u8).collect()
}

/// `n` passes over two arrays of bytes: saturated sums and differences, averages, absolute differences, products of words.
pub(super) fn integers() -> Recipe {
    Recipe {
        name: "packed_integer",
        data_size: 2 * BYTES,
        data: |_| initial_bytes(),
        default_n: 400,
        expected: |n| {
            let mut bytes = initial_bytes();
            let (left, right) = bytes.split_at_mut(BYTES);
            let (mut differences, mut products) = ([0u64; 2], [0u32; 4]);
            for _ in 0..n {
                for (left, right) in left.chunks_exact_mut(16).zip(right.chunks_exact(16)) {
                    let mut word = [0i16; 8];
                    for (word, pair) in word.iter_mut().zip(left.chunks_exact(2).zip(right.chunks_exact(2))) {
                        let value = |bytes: &[u8]| i32::from(i16::from_le_bytes([bytes[0], bytes[1]]));
                        *word = ((value(pair.0) * value(pair.1)) >> 16) as i16;
                    }
                    for (at, (left, &right)) in left.iter_mut().zip(right).enumerate() {
                        let (sum, difference) = (left.saturating_add(right), left.saturating_sub(right));
                        *left = (u16::from(sum) + u16::from(difference)).div_ceil(2) as u8;
                        differences[at / 8] += u64::from(left.abs_diff(right));
                    }
                    for (at, pair) in word.chunks_exact(2).enumerate() {
                        let sum = i32::from(pair[0]) * i32::from(pair[0]) + i32::from(pair[1]) * i32::from(pair[1]);
                        products[at] = products[at].wrapping_add(sum as u32);
                    }
                }
            }
            let products = products.into_iter().fold(0u64, |sum, product| sum.wrapping_mul(31) + u64::from(product));
            differences[0].wrapping_add(differences[1].rotate_left(7)) ^ products
        },
        assemble: assemble_integers,
    }
}

fn assemble_integers(a: &mut Piece) -> Result<(), BuildError> {
    let mut pass = a.create_label();
    let mut step = a.create_label();
    let mut done = a.create_label();
    a.pxor(xmm4, xmm4)?;
    a.pxor(xmm5, xmm5)?;
    a.lea(r8, at(DATA_BASE))?;
    a.test(rcx, rcx)?;
    a.je(done)?;
    a.set_label(&mut pass)?;
    a.xor(eax, eax)?;
    a.set_label(&mut step)?;
    a.movdqa(xmm0, xmmword_ptr(r8 + rax))?;
    a.movdqa(xmm1, xmmword_ptr(r8 + rax + BYTES as i32))?;
    a.movdqa(xmm2, xmm0)?;
    a.pmulhw(xmm2, xmm1)?;
    a.movdqa(xmm3, xmm0)?;
    a.paddusb(xmm3, xmm1)?;
    a.psubusb(xmm0, xmm1)?;
    a.pavgb(xmm0, xmm3)?;
    a.movdqa(xmmword_ptr(r8 + rax), xmm0)?;
    a.psadbw(xmm0, xmm1)?;
    a.paddq(xmm4, xmm0)?;
    a.pmaddwd(xmm2, xmm2)?;
    a.paddd(xmm5, xmm2)?;
    a.add(rax, 16)?;
    a.cmp(rax, BYTES as i32)?;
    a.jne(step)?;
    a.dec(rcx)?;
    a.jne(pass)?;
    a.set_label(&mut done)?;
    // The products, lane by lane.
    a.xor(ecx, ecx)?;
    for _ in 0..4 {
        a.imul_3(rcx, rcx, 31)?;
        a.movd(edx, xmm5)?;
        a.add(rcx, rdx)?;
        a.psrldq(xmm5, 4)?;
    }
    a.movq(rax, xmm4)?;
    a.psrldq(xmm4, 8)?;
    a.movq(rdx, xmm4)?;
    a.rol(rdx, 7)?;
    a.add(rax, rdx)?;
    a.xor(rax, rcx)?;
    a.ret()?;
    Ok(())
}

const COPIED: usize = 0x4000;
/// Where copies go: not aligned.
const COPY_TO: u64 = DATA_BASE + COPIED as u64 + 0x1001;

fn initial_block() -> Vec<u8> {
    (0..COPIED).map(|index| (index * 13 + index / 256) as u8).collect()
}

fn copied(n: u64) -> u64 {
    let mut bytes = initial_block();
    (0..n).fold(0u64, |sum, round| {
        let at = (round % 2000) as usize * 8;
        let word: [u8; 8] = std::array::from_fn(|index| bytes[at + index]);
        let word = u64::from_le_bytes(word).wrapping_add(n - round);
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        sum.rotate_left(1) ^ word
    })
}

/// `n` copies of 16 KiB with 16-byte moves, four at a time.
pub(super) fn copy_16() -> Recipe {
    Recipe {
        name: "copy_16",
        data_size: 3 * COPIED,
        data: |_| initial_block(),
        default_n: 1500,
        expected: copied,
        assemble: |a| assemble_copy(a, false),
    }
}

/// `n` copies of 16 KiB with 32-byte moves, four at a time.
pub(super) fn copy_32() -> Recipe {
    Recipe { name: "copy_32", assemble: |a| assemble_copy(a, true), ..copy_16() }
}

fn assemble_copy(a: &mut Piece, wide: bool) -> Result<(), BuildError> {
    const SAVED: [AsmRegister64; 2] = [rbx, rsi];
    let mut round = a.create_label();
    let mut step = a.create_label();
    let mut below = a.create_label();
    let mut done = a.create_label();
    push_preserved(a, &SAVED)?;
    a.xor(eax, eax)?;
    a.xor(ebx, ebx)?;
    a.lea(r8, at(DATA_BASE))?;
    a.lea(r9, at(COPY_TO))?;
    a.test(rcx, rcx)?;
    a.je(done)?;
    a.set_label(&mut round)?;
    a.add(qword_ptr(r8 + rbx), rcx)?;
    a.xor(edx, edx)?;
    a.set_label(&mut step)?;
    if wide {
        for (register, offset) in [(ymm0, 0), (ymm1, 32), (ymm2, 64), (ymm3, 96)] {
            a.vmovdqu(register, ymmword_ptr(r8 + rdx + offset))?;
        }
        for (register, offset) in [(ymm0, 0), (ymm1, 32), (ymm2, 64), (ymm3, 96)] {
            a.vmovdqu(ymmword_ptr(r9 + rdx + offset), register)?;
        }
    } else {
        for (register, offset) in [(xmm0, 0), (xmm1, 16), (xmm2, 32), (xmm3, 48)] {
            a.movdqu(register, xmmword_ptr(r8 + rdx + offset))?;
        }
        for (register, offset) in [(xmm0, 0), (xmm1, 16), (xmm2, 32), (xmm3, 48)] {
            a.movdqu(xmmword_ptr(r9 + rdx + offset), register)?;
        }
    }
    a.add(rdx, if wide { 128 } else { 64 })?;
    a.cmp(rdx, COPIED as i32)?;
    a.jne(step)?;
    a.rol(rax, 1)?;
    a.xor(rax, qword_ptr(r9 + rbx))?;
    a.add(rbx, 8)?;
    a.cmp(rbx, 16_000)?;
    a.jb(below)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut below)?;
    a.dec(rcx)?;
    a.jne(round)?;
    a.set_label(&mut done)?;
    if wide {
        a.vzeroupper()?;
    }
    pop_preserved(a, &SAVED)?;
    a.ret()?;
    Ok(())
}
