//! x87: the Mandelbrot set on the register stack, as compilers for the i387 write it.
//!
//! The control word asks for 53 bits of precision, so that the results are those of doubles.

use iced_x86::code_asm::*;

use super::{DATA_BASE, Recipe};
use crate::BuildError;
use crate::assemble::{Piece, at};

/// Points of a row.
const COLUMNS: u32 = 64;
/// Most steps at a point.
const STEPS: u32 = 50;
const FOUR: f64 = 4.0;
const TWO: f64 = 2.0;
const ACROSS: f64 = 3.0 / COLUMNS as f64;
const DOWN: f64 = 2.5 / 64.0;
const LEFT: f64 = -2.0;
const TOP: f64 = -1.25;

/// Round to nearest, 53 bits, all exceptions masked.
const CONTROL: u64 = 0x27F;

const CONTROL_AT: u64 = DATA_BASE;
const FOUR_AT: u64 = DATA_BASE + 8;
const TWO_AT: u64 = DATA_BASE + 16;
const ACROSS_AT: u64 = DATA_BASE + 24;
const DOWN_AT: u64 = DATA_BASE + 32;
const LEFT_AT: u64 = DATA_BASE + 40;
const TOP_AT: u64 = DATA_BASE + 48;
const REAL_AT: u64 = DATA_BASE + 56;
const IMAGINARY_AT: u64 = DATA_BASE + 64;
const SAVED_AT: u64 = DATA_BASE + 72;

/// `n` rows; the checksum is the number of steps at all points.
pub(super) fn mandelbrot() -> Recipe {
    Recipe {
        name: "x87-mandelbrot",
        data_size: 0x1000,
        data: |_| {
            let numbers = [FOUR, TWO, ACROSS, DOWN, LEFT, TOP];
            CONTROL.to_le_bytes().into_iter().chain(numbers.into_iter().flat_map(f64::to_le_bytes)).collect()
        },
        default_n: 400,
        expected: |n| {
            let (mut steps, mut imaginary) = (0, TOP);
            for _ in 0..n {
                let mut real = LEFT;
                for _ in 0..COLUMNS {
                    steps += steps_at(real, imaginary);
                    real += ACROSS;
                }
                imaginary += DOWN;
            }
            steps
        },
        assemble,
    }
}

fn steps_at(real: f64, imaginary: f64) -> u64 {
    let (mut x, mut y) = (0.0, 0.0);
    for step in 0..u64::from(STEPS) {
        let (x_squared, y_squared) = (x * x, y * y);
        if x_squared + y_squared > FOUR {
            return step;
        }
        (x, y) = (x_squared - y_squared + real, x * TWO * y + imaginary);
    }
    u64::from(STEPS)
}

fn assemble(a: &mut Piece) -> Result<(), BuildError> {
    let mut rows = a.create_label();
    let mut columns = a.create_label();
    let mut step = a.create_label();
    let mut outside = a.create_label();
    let mut inside = a.create_label();
    let mut done = a.create_label();
    a.mov(r8, rcx)?;
    a.xor(eax, eax)?;
    a.test(r8, r8)?;
    a.je(done)?;
    a.fnstcw(word_ptr(at(SAVED_AT)))?;
    a.fldcw(word_ptr(at(CONTROL_AT)))?;
    a.fld(qword_ptr(at(TOP_AT)))?;
    a.fstp(qword_ptr(at(IMAGINARY_AT)))?;
    a.set_label(&mut rows)?;
    a.fld(qword_ptr(at(LEFT_AT)))?;
    a.fstp(qword_ptr(at(REAL_AT)))?;
    a.mov(r9d, COLUMNS)?;
    a.set_label(&mut columns)?;
    a.fldz()?;
    a.fldz()?;
    a.mov(ecx, STEPS)?;
    // The stack at each step: x, y.
    a.set_label(&mut step)?;
    a.fld(st0)?;
    a.fmul_2(st0, st0)?;
    a.fld(st2)?;
    a.fmul_2(st0, st0)?;
    a.fld(st1)?;
    a.fadd_2(st0, st1)?;
    a.fld(qword_ptr(at(FOUR_AT)))?;
    a.fcomip(st0, st1)?;
    a.fstp(st0)?;
    a.jb(outside)?;
    a.fsubp(st1, st0)?;
    a.fadd(qword_ptr(at(REAL_AT)))?;
    a.fxch(st0, st1)?;
    a.fmul(qword_ptr(at(TWO_AT)))?;
    a.fmulp(st2, st0)?;
    a.fxch(st0, st1)?;
    a.fadd(qword_ptr(at(IMAGINARY_AT)))?;
    a.fxch(st0, st1)?;
    a.inc(rax)?;
    a.dec(ecx)?;
    a.jne(step)?;
    a.jmp(inside)?;
    a.set_label(&mut outside)?;
    a.fstp(st0)?;
    a.fstp(st0)?;
    a.set_label(&mut inside)?;
    a.fstp(st0)?;
    a.fstp(st0)?;
    a.fld(qword_ptr(at(REAL_AT)))?;
    a.fadd(qword_ptr(at(ACROSS_AT)))?;
    a.fstp(qword_ptr(at(REAL_AT)))?;
    a.dec(r9d)?;
    a.jne(columns)?;
    a.fld(qword_ptr(at(IMAGINARY_AT)))?;
    a.fadd(qword_ptr(at(DOWN_AT)))?;
    a.fstp(qword_ptr(at(IMAGINARY_AT)))?;
    a.dec(r8)?;
    a.jne(rows)?;
    a.fldcw(word_ptr(at(SAVED_AT)))?;
    a.set_label(&mut done)?;
    a.ret()?;
    Ok(())
}
