//! Indirect branches: a bytecode interpreter with a jump table.

use iced_x86::code_asm::*;

use super::{DATA_BASE, Recipe, pop_preserved, push_preserved};
use crate::BuildError;
use crate::assemble::{Piece, at};

/// Operations of the bytecode; an instruction is four bytes: operation, destination, source, operand.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Op {
    /// destination += source
    Add,
    /// destination ^= source
    Xor,
    /// destination *= source
    Multiply,
    /// destination = source >> operand
    ShiftRight,
    /// destination = source + operand (sign-extended)
    AddImmediate,
    /// destination -= 1; unless it is zero, back by operand instructions, counted from the next one
    Loop,
    /// stop
    Halt,
}

/// Registers of the bytecode machine: eight words at the start of the data block.
const REGISTERS: u64 = DATA_BASE;
/// Distances of the handlers from this table, as compilers emit jump tables for code at any address.
const JUMP_TABLE: u64 = DATA_BASE + 0x40;
const BYTECODE: u64 = DATA_BASE + 0x80;
/// Handlers in the order of [`Op`].
const HANDLERS: [&str; 7] = ["add", "xor", "multiply", "shift_right", "add_immediate", "loop", "halt"];
/// The multiplier in register 3.
const MULTIPLIER: u64 = 0x0000_0100_0000_01B3;
/// Start value of register 1.
const START: u64 = 0xCBF2_9CE4_8422_2325;

const BYTECODE_PROGRAM: [[u8; 4]; 9] = [
    // loop: r1 ^= r0; r1 *= r3; r2 = r1 >> 29; r1 ^= r2; r4 += r1; r5 = r4 + 7; r4 ^= r5
    [Op::Xor as u8, 1, 0, 0],
    [Op::Multiply as u8, 1, 3, 0],
    [Op::ShiftRight as u8, 2, 1, 29],
    [Op::Xor as u8, 1, 2, 0],
    [Op::Add as u8, 4, 1, 0],
    [Op::AddImmediate as u8, 5, 4, 7],
    [Op::Xor as u8, 4, 5, 0],
    [Op::Loop as u8, 0, 0, 8],
    [Op::Halt as u8, 0, 0, 0],
];

/// `n` iterations of a loop of eight bytecode instructions.
pub(super) fn bytecode() -> Recipe {
    Recipe {
        name: "bytecode",
        data_size: 0x1000,
        data: |code| {
            let registers = [0, START, 0, MULTIPLIER, 0, 0, 0, 0];
            let mut data: Vec<u8> = registers.into_iter().flat_map(u64::to_le_bytes).collect();
            for handler in HANDLERS {
                let offset = code.address_of(handler).wrapping_sub(JUMP_TABLE) as i32;
                data.extend_from_slice(&offset.to_le_bytes());
            }
            data.resize((BYTECODE - DATA_BASE) as usize, 0);
            data.extend(BYTECODE_PROGRAM.into_iter().flatten());
            data
        },
        default_n: 100_000,
        expected: |n| {
            let (mut hash, mut sum) = (START, 0u64);
            for counter in (1..=n.max(1)).rev() {
                hash = (hash ^ counter).wrapping_mul(MULTIPLIER);
                hash ^= hash >> 29;
                sum = sum.wrapping_add(hash);
                sum ^= sum.wrapping_add(7);
            }
            sum
        },
        assemble: assemble_bytecode,
    }
}

fn assemble_bytecode(a: &mut Piece) -> Result<(), BuildError> {
    // RSI = program counter, RDI = registers, RBX = jump table.
    const SAVED: [AsmRegister64; 3] = [rbx, rsi, rdi];
    let mut next = a.create_label();
    let mut taken = a.create_label();
    push_preserved(a, &SAVED)?;
    a.lea(rdi, at(REGISTERS))?;
    a.lea(rsi, at(BYTECODE))?;
    a.lea(rbx, at(JUMP_TABLE))?;
    a.mov(eax, 1)?;
    a.test(rcx, rcx)?;
    a.cmove(rcx, rax)?;
    a.mov(qword_ptr(rdi), rcx)?;

    a.set_label(&mut next)?;
    a.movzx(eax, byte_ptr(rsi))?;
    a.movzx(ecx, byte_ptr(rsi + 1))?;
    a.movzx(edx, byte_ptr(rsi + 2))?;
    a.add(rsi, 4)?;
    a.movsxd(rax, dword_ptr(rbx + rax * 4))?;
    a.add(rax, rbx)?;
    a.jmp(rax)?;
    let source = qword_ptr(rdi + rdx * 8);
    let destination = qword_ptr(rdi + rcx * 8);
    for handler in HANDLERS {
        a.mark(handler)?;
        match handler {
            "add" => {
                a.mov(rax, source)?;
                a.add(destination, rax)?;
            }
            "xor" => {
                a.mov(rax, source)?;
                a.xor(destination, rax)?;
            }
            "multiply" => {
                a.mov(rax, destination)?;
                a.imul_2(rax, source)?;
                a.mov(destination, rax)?;
            }
            "shift_right" => {
                a.mov(r8, rcx)?;
                a.mov(rax, source)?;
                a.movzx(ecx, byte_ptr(rsi - 1))?;
                a.shr(rax, cl)?;
                a.mov(qword_ptr(rdi + r8 * 8), rax)?;
            }
            "add_immediate" => {
                a.movsx(rax, byte_ptr(rsi - 1))?;
                a.add(rax, source)?;
                a.mov(destination, rax)?;
            }
            "loop" => {
                a.dec(destination)?;
                a.jne(taken)?;
            }
            _ => {
                a.mov(rax, qword_ptr(rdi + 32))?;
                pop_preserved(a, &SAVED)?;
                a.ret()?;
                continue;
            }
        }
        a.jmp(next)?;
    }
    a.set_label(&mut taken)?;
    a.movzx(eax, byte_ptr(rsi - 1))?;
    a.shl(eax, 2)?;
    a.sub(rsi, rax)?;
    a.jmp(next)?;
    Ok(())
}
