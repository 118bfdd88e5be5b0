//! Calls and returns: naive Fibonacci recursion, virtual calls through tables of functions.

use iced_x86::code_asm::*;

use super::{DATA_BASE, Recipe, pop_preserved, push_preserved};
use crate::BuildError;
use crate::assemble::{Piece, at};

/// `fib(n)` by the definition: about `1.6^n` calls.
pub(super) fn recursion() -> Recipe {
    Recipe {
        name: "fib",
        data_size: 0x1000,
        data: |_| Vec::new(),
        default_n: 27,
        expected: |n| {
            let (mut current, mut next) = (0u64, 1u64);
            for _ in 0..n {
                (current, next) = (next, current.wrapping_add(next));
            }
            current
        },
        assemble: assemble_fib,
    }
}

fn assemble_fib(a: &mut Piece) -> Result<(), BuildError> {
    let mut fib = a.create_label();
    let mut small = a.create_label();
    // The entry is the function itself; a label of its own makes the recursion a direct call.
    a.nop()?;
    a.set_label(&mut fib)?;
    a.cmp(rcx, 2)?;
    a.jb(small)?;
    a.push(rbx)?;
    a.push(rsi)?;
    a.sub(rsp, 0x28)?;
    a.mov(rbx, rcx)?;
    a.dec(rcx)?;
    a.call(fib)?;
    a.mov(rsi, rax)?;
    a.lea(rcx, rbx - 2)?;
    a.call(fib)?;
    a.add(rax, rsi)?;
    a.add(rsp, 0x28)?;
    a.pop(rsi)?;
    a.pop(rbx)?;
    a.ret()?;
    a.set_label(&mut small)?;
    a.mov(rax, rcx)?;
    a.ret()?;
    Ok(())
}

/// Objects of three classes: a pointer to the class's table of two functions, and a 64-bit member.
const OBJECTS: u64 = DATA_BASE;
const OBJECT_COUNT: u64 = 64;
const OBJECT_SIZE: u64 = 16;
const TABLES: u64 = DATA_BASE + OBJECT_COUNT * OBJECT_SIZE;
const CLASSES: [(&str, &str); 3] = [("get_0", "step_0"), ("get_1", "step_1"), ("get_2", "step_2")];

/// `n` passes over 64 objects, each with two virtual calls: advance the member, then fetch it.
pub(super) fn virtual_calls() -> Recipe {
    Recipe {
        name: "virtual_calls",
        data_size: 0x1000,
        data: |_| Vec::new(),
        default_n: 8000,
        expected: |n| {
            let mut members: Vec<u64> = (0..OBJECT_COUNT).collect();
            let mut sum = 0u64;
            for _ in 0..n {
                for (class, member) in (0..3).cycle().zip(&mut members) {
                    *member = match class {
                        0 => member.wrapping_add(sum),
                        1 => member.wrapping_mul(5).wrapping_add(1),
                        _ => member.rotate_left(9) ^ sum,
                    };
                    let got = match class {
                        0 => *member,
                        1 => !*member,
                        _ => *member >> 1,
                    };
                    sum = sum.wrapping_add(got);
                }
            }
            sum
        },
        assemble: assemble_virtual_calls,
    }
}

fn assemble_virtual_calls(a: &mut Piece) -> Result<(), BuildError> {
    // RBX = passes left, RSI = object, RDI = end of objects, RBP = sum.
    const SAVED: [AsmRegister64; 4] = [rbx, rsi, rdi, rbp];
    let mut construct = a.create_label();
    let mut pass = a.create_label();
    let mut object = a.create_label();
    let mut done = a.create_label();
    let mut functions: [[CodeLabel; 2]; 3] = std::array::from_fn(|_| std::array::from_fn(|_| a.create_label()));
    push_preserved(a, &SAVED)?;
    a.sub(rsp, 0x28)?;
    a.mov(rbx, rcx)?;
    a.xor(ebp, ebp)?;
    a.lea(rdx, at(TABLES))?;
    for (slot, function) in (0..).zip(functions.as_flattened()) {
        a.lea(rax, ptr(*function))?;
        a.mov(qword_ptr(rdx + slot * 8), rax)?;
    }
    // Object i is of class i % 3 and starts with member i.
    a.lea(rsi, at(OBJECTS))?;
    a.lea(rdi, rsi + (OBJECT_COUNT * OBJECT_SIZE) as i32)?;
    a.lea(r8, rdx + 3 * 16)?;
    a.mov(rax, rdx)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut construct)?;
    a.mov(qword_ptr(rsi), rax)?;
    a.mov(qword_ptr(rsi + 8), rcx)?;
    a.inc(rcx)?;
    a.add(rax, 16)?;
    a.cmp(rax, r8)?;
    a.cmove(rax, rdx)?;
    a.add(rsi, OBJECT_SIZE as i32)?;
    a.cmp(rsi, rdi)?;
    a.jne(construct)?;
    a.test(rbx, rbx)?;
    a.je(done)?;

    a.set_label(&mut pass)?;
    a.lea(rsi, at(OBJECTS))?;
    a.set_label(&mut object)?;
    a.mov(rcx, rsi)?;
    a.mov(rdx, rbp)?;
    a.mov(rax, qword_ptr(rsi))?;
    a.call(qword_ptr(rax + 8))?;
    a.mov(rcx, rsi)?;
    a.mov(rax, qword_ptr(rsi))?;
    a.call(qword_ptr(rax))?;
    a.add(rbp, rax)?;
    a.add(rsi, OBJECT_SIZE as i32)?;
    a.cmp(rsi, rdi)?;
    a.jne(object)?;
    a.dec(rbx)?;
    a.jne(pass)?;
    a.set_label(&mut done)?;
    a.mov(rax, rbp)?;
    a.add(rsp, 0x28)?;
    pop_preserved(a, &SAVED)?;
    a.ret()?;

    let member = qword_ptr(rcx + 8);
    for (class, ((get_name, step_name), [get, step])) in CLASSES.into_iter().zip(&mut functions).enumerate() {
        a.mark_label(get_name, get)?;
        a.mov(rax, member)?;
        match class {
            0 => {}
            1 => a.not(rax)?,
            _ => a.shr(rax, 1)?,
        }
        a.ret()?;
        a.mark_label(step_name, step)?;
        match class {
            0 => a.add(member, rdx)?,
            1 => {
                a.mov(rax, member)?;
                a.lea(rax, rax + rax * 4 + 1)?;
                a.mov(member, rax)?;
            }
            _ => {
                a.mov(rax, member)?;
                a.rol(rax, 9)?;
                a.xor(rax, rdx)?;
                a.mov(member, rax)?;
            }
        }
        a.ret()?;
    }
    Ok(())
}
