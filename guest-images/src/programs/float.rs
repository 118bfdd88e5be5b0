//! Floating point: n-body in scalar doubles, matrix multiplication in packed doubles of 128 and 256 bits.
//!
//! The expected values repeat the operations in the same order; SSE2 arithmetic is exact to the bit.

use iced_x86::code_asm::*;

use super::{DATA_BASE, Recipe, pop_preserved, push_preserved};
use crate::BuildError;
use crate::assemble::{Piece, at};

const BODIES: usize = 5;
/// Words of a body: position, velocity, mass, and one to keep the size a power of two.
const BODY_WORDS: usize = 8;
const BODY_SIZE: i32 = BODY_WORDS as i32 * 8;
const MASS: i32 = 48;
const TIME_STEP: f64 = 0.01;
const TIME_STEP_AT: u64 = DATA_BASE + (BODIES * BODY_WORDS * 8) as u64;

/// A heavy body at rest and four light ones around it.
fn initial_bodies() -> [[f64; BODY_WORDS]; BODIES] {
    [
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 39.5, 0.0],
        [4.75, -1.25, -0.125, 0.625, 2.75, -0.025, 0.0375, 0.0],
        [8.25, 4.125, -0.375, -1.0, 1.75, 0.0085, 0.0113, 0.0],
        [12.875, -15.0, -0.25, 1.0625, 0.875, -0.0125, 0.0017, 0.0],
        [15.375, -25.75, 0.1875, 1.0, 0.625, -0.035, 0.002, 0.0],
    ]
}

/// `n` time steps of five bodies; the checksum is all positions and velocities, combined bit by bit.
pub(super) fn nbody() -> Recipe {
    Recipe {
        name: "nbody",
        data_size: 0x1000,
        data: |_| {
            let words = initial_bodies().into_iter().flatten().chain([TIME_STEP]);
            words.flat_map(f64::to_le_bytes).collect()
        },
        default_n: 15_000,
        expected: |n| {
            let mut bodies = initial_bodies();
            for _ in 0..n {
                step(&mut bodies);
            }
            bodies.iter().flat_map(|body| &body[..6]).fold(0, |sum: u64, value| sum.rotate_left(3) ^ value.to_bits())
        },
        assemble: assemble_nbody,
    }
}

fn step(bodies: &mut [[f64; BODY_WORDS]; BODIES]) {
    for i in 0..BODIES {
        for j in i + 1..BODIES {
            let distance: [f64; 3] = std::array::from_fn(|axis| bodies[i][axis] - bodies[j][axis]);
            let squared = distance[0] * distance[0] + distance[1] * distance[1] + distance[2] * distance[2];
            let magnitude = TIME_STEP / (squared * squared.sqrt());
            let (pull_i, pull_j) = (bodies[j][6] * magnitude, bodies[i][6] * magnitude);
            for (axis, distance) in distance.into_iter().enumerate() {
                bodies[i][3 + axis] -= distance * pull_i;
                bodies[j][3 + axis] += distance * pull_j;
            }
        }
    }
    for body in bodies {
        for axis in 0..3 {
            body[axis] += TIME_STEP * body[3 + axis];
        }
    }
}

fn assemble_nbody(a: &mut Piece) -> Result<(), BuildError> {
    let mut steps = a.create_label();
    let mut outer = a.create_label();
    let mut inner = a.create_label();
    let mut inner_done = a.create_label();
    let mut advance = a.create_label();
    let mut sum_up = a.create_label();
    let mut sum_body = a.create_label();
    let mut sum_word = a.create_label();
    let saved = [(xmm6, 0), (xmm7, 0x10), (xmm8, 0x20)];
    a.sub(rsp, 0x38)?;
    for (register, slot) in saved {
        a.movaps(xmmword_ptr(rsp + slot), register)?;
    }
    // R8 = bodies, R9 = their end, RDX = body i, RAX = body j.
    a.lea(r8, at(DATA_BASE))?;
    a.lea(r9, r8 + BODIES as i32 * BODY_SIZE)?;
    a.test(rcx, rcx)?;
    a.je(sum_up)?;
    a.movsd_2(xmm8, qword_ptr(at(TIME_STEP_AT)))?;
    a.set_label(&mut steps)?;
    a.mov(rdx, r8)?;
    a.set_label(&mut outer)?;
    a.lea(rax, rdx + BODY_SIZE)?;
    a.cmp(rax, r9)?;
    a.jae(inner_done)?;
    a.set_label(&mut inner)?;
    let axes = [(xmm0, 0), (xmm1, 8), (xmm2, 16)];
    for (distance, offset) in axes {
        a.movsd_2(distance, qword_ptr(rdx + offset))?;
        a.subsd(distance, qword_ptr(rax + offset))?;
    }
    a.movapd(xmm3, xmm0)?;
    a.mulsd(xmm3, xmm0)?;
    for distance in [xmm1, xmm2] {
        a.movapd(xmm4, distance)?;
        a.mulsd(xmm4, distance)?;
        a.addsd(xmm3, xmm4)?;
    }
    a.sqrtsd(xmm4, xmm3)?;
    a.mulsd(xmm3, xmm4)?;
    a.movapd(xmm5, xmm8)?;
    a.divsd(xmm5, xmm3)?;
    a.movsd_2(xmm6, qword_ptr(rax + MASS))?;
    a.mulsd(xmm6, xmm5)?;
    a.mulsd(xmm5, qword_ptr(rdx + MASS))?;
    for (distance, offset) in axes {
        let velocity = offset + 24;
        a.movapd(xmm4, distance)?;
        a.mulsd(xmm4, xmm6)?;
        a.movsd_2(xmm7, qword_ptr(rdx + velocity))?;
        a.subsd(xmm7, xmm4)?;
        a.movsd_2(qword_ptr(rdx + velocity), xmm7)?;
        a.mulsd(distance, xmm5)?;
        a.addsd(distance, qword_ptr(rax + velocity))?;
        a.movsd_2(qword_ptr(rax + velocity), distance)?;
    }
    a.add(rax, BODY_SIZE)?;
    a.cmp(rax, r9)?;
    a.jb(inner)?;
    a.set_label(&mut inner_done)?;
    a.add(rdx, BODY_SIZE)?;
    a.cmp(rdx, r9)?;
    a.jb(outer)?;
    a.mov(rdx, r8)?;
    a.set_label(&mut advance)?;
    for offset in [0, 8, 16] {
        a.movapd(xmm0, xmm8)?;
        a.mulsd(xmm0, qword_ptr(rdx + (offset + 24)))?;
        a.addsd(xmm0, qword_ptr(rdx + offset))?;
        a.movsd_2(qword_ptr(rdx + offset), xmm0)?;
    }
    a.add(rdx, BODY_SIZE)?;
    a.cmp(rdx, r9)?;
    a.jb(advance)?;
    a.dec(rcx)?;
    a.jne(steps)?;

    a.set_label(&mut sum_up)?;
    a.xor(eax, eax)?;
    a.set_label(&mut sum_body)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut sum_word)?;
    a.rol(rax, 3)?;
    a.xor(rax, qword_ptr(r8 + rcx * 8))?;
    a.inc(ecx)?;
    a.cmp(ecx, 6)?;
    a.jne(sum_word)?;
    a.add(r8, BODY_SIZE)?;
    a.cmp(r8, r9)?;
    a.jb(sum_body)?;
    for (register, slot) in saved {
        a.movaps(register, xmmword_ptr(rsp + slot))?;
    }
    a.add(rsp, 0x38)?;
    a.ret()?;
    Ok(())
}

/// Rows and columns of the square matrices.
const ORDER: usize = 48;
const ROW: i32 = ORDER as i32 * 8;
const MATRIX_BYTES: u64 = (ORDER * ORDER * 8) as u64;
const LEFT: u64 = DATA_BASE;
const RIGHT: u64 = LEFT + MATRIX_BYTES;
const PRODUCT: u64 = RIGHT + MATRIX_BYTES;

fn initial_matrices() -> [Vec<f64>; 2] {
    let element = |seed: usize| move |index: usize| ((index * seed + index / 7) % 17) as f64 * 0.25 - 1.5;
    [(0..ORDER * ORDER).map(element(5)).collect(), (0..ORDER * ORDER).map(element(11)).collect()]
}

/// `n` rounds of multiplying two matrices of doubles, adding 1 to the left one's corner after each round.
pub(super) fn matrix() -> Recipe {
    Recipe {
        name: "matrix",
        data_size: 3 * MATRIX_BYTES as usize + 8,
        data: |_| {
            let one = std::iter::once(1.0);
            let [left, right] = initial_matrices();
            // The constant 1.0 follows the product's place.
            let product = std::iter::repeat_n(0.0, ORDER * ORDER);
            left.into_iter().chain(right).chain(product).chain(one).flat_map(f64::to_le_bytes).collect()
        },
        default_n: 24,
        expected: |n| {
            let [mut left, right] = initial_matrices();
            let mut sum = 0u64;
            for _ in 0..n {
                for i in 0..ORDER {
                    let mut row = [0.0; ORDER];
                    for k in 0..ORDER {
                        let factor = left[i * ORDER + k];
                        for (element, right) in row.iter_mut().zip(&right[k * ORDER..]) {
                            *element += factor * right;
                        }
                    }
                    sum = row.iter().fold(sum, |sum, element| sum.rotate_left(1) ^ element.to_bits());
                }
                left[0] += 1.0;
            }
            sum
        },
        assemble: |a| assemble_matrix(a, false),
    }
}

/// The same with 256-bit vectors.
pub(super) fn matrix_256() -> Recipe {
    Recipe { name: "matrix_256", assemble: |a| assemble_matrix(a, true), ..matrix() }
}

fn assemble_matrix(a: &mut Piece, wide: bool) -> Result<(), BuildError> {
    // RBX = rounds left, RSI = left element, RDI = product row, RDX = right row, R8 = end of right, R9 = i,
    // RCX = offset in the row, RAX = checksum.
    const SAVED: [AsmRegister64; 3] = [rbx, rsi, rdi];
    let mut round = a.create_label();
    let mut row = a.create_label();
    let mut clear = a.create_label();
    let mut factor = a.create_label();
    let mut columns = a.create_label();
    let mut sum = a.create_label();
    let mut done = a.create_label();
    push_preserved(a, &SAVED)?;
    a.mov(rbx, rcx)?;
    a.xor(eax, eax)?;
    a.test(rbx, rbx)?;
    a.je(done)?;
    a.set_label(&mut round)?;
    a.lea(rsi, at(LEFT))?;
    a.lea(rdi, at(PRODUCT))?;
    a.lea(r8, at(PRODUCT))?;
    a.mov(r9d, ORDER as u32)?;
    a.set_label(&mut row)?;
    a.xor(ecx, ecx)?;
    a.pxor(xmm0, xmm0)?;
    a.set_label(&mut clear)?;
    a.movupd(xmmword_ptr(rdi + rcx), xmm0)?;
    a.add(rcx, 16)?;
    a.cmp(rcx, ROW)?;
    a.jne(clear)?;
    a.lea(rdx, at(RIGHT))?;
    a.set_label(&mut factor)?;
    if wide {
        a.vbroadcastsd(ymm0, qword_ptr(rsi))?;
    } else {
        a.movsd_2(xmm0, qword_ptr(rsi))?;
        a.unpcklpd(xmm0, xmm0)?;
    }
    a.xor(ecx, ecx)?;
    a.set_label(&mut columns)?;
    if wide {
        a.vmulpd(ymm1, ymm0, ymmword_ptr(rdx + rcx))?;
        a.vaddpd(ymm2, ymm1, ymmword_ptr(rdi + rcx))?;
        a.vmovupd(ymmword_ptr(rdi + rcx), ymm2)?;
    } else {
        for half in [0, 16] {
            a.movupd(xmm1, xmmword_ptr(rdx + rcx + half))?;
            a.mulpd(xmm1, xmm0)?;
            a.movupd(xmm2, xmmword_ptr(rdi + rcx + half))?;
            a.addpd(xmm2, xmm1)?;
            a.movupd(xmmword_ptr(rdi + rcx + half), xmm2)?;
        }
    }
    a.add(rcx, 32)?;
    a.cmp(rcx, ROW)?;
    a.jne(columns)?;
    a.add(rsi, 8)?;
    a.add(rdx, ROW)?;
    a.cmp(rdx, r8)?;
    a.jne(factor)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut sum)?;
    a.rol(rax, 1)?;
    a.xor(rax, qword_ptr(rdi + rcx))?;
    a.add(rcx, 8)?;
    a.cmp(rcx, ROW)?;
    a.jne(sum)?;
    a.add(rdi, ROW)?;
    a.dec(r9d)?;
    a.jne(row)?;
    a.movsd_2(xmm0, qword_ptr(at(LEFT)))?;
    a.addsd(xmm0, qword_ptr(at(PRODUCT + MATRIX_BYTES)))?;
    a.movsd_2(qword_ptr(at(LEFT)), xmm0)?;
    a.dec(rbx)?;
    a.jne(round)?;
    a.set_label(&mut done)?;
    if wide {
        a.vzeroupper()?;
    }
    pop_preserved(a, &SAVED)?;
    a.ret()?;
    Ok(())
}
