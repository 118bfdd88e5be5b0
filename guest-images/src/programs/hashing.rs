//! Bit manipulation and scattered memory: SHA-256 compression, an open-addressing hash table.

use iced_x86::code_asm::*;

use super::{DATA_BASE, LCG_INCREMENT, LCG_MULTIPLIER, PRESERVED, Recipe, lcg, pop_preserved, push_preserved};
use crate::BuildError;
use crate::assemble::{Piece, at};

/// FIPS 180-4, 5.3.3.
const INITIAL: [u32; 8] =
    [0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19];

/// FIPS 180-4, 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
fn round_constants() -> [u32; 64] {
    let mut constants = [0; 64];
    let primes = (2u128..).filter(|&number| (2..).take_while(|d| d * d <= number).all(|d| number % d != 0));
    for (constant, prime) in constants.iter_mut().zip(primes) {
        // floor(cbrt(prime) * 2^32), by bisection in integers.
        let target = prime << 96;
        let (mut low, mut high) = (0u128, 1u128 << 36);
        while high - low > 1 {
            let middle = (low + high) / 2;
            if middle * middle * middle <= target { low = middle } else { high = middle }
        }
        *constant = low as u32;
    }
    constants
}

// In the data block: state, round constants, message schedule.
const STATE: u64 = DATA_BASE;
const CONSTANTS: u64 = DATA_BASE + 0x40;
const SCHEDULE: u64 = DATA_BASE + 0x140;

/// `n` compressions; each block's sixteen words are the state's words (twice) plus their index.
pub(super) fn sha256() -> Recipe {
    Recipe {
        name: "sha256",
        data_size: 0x1000,
        data: |_| INITIAL.into_iter().chain([0; 8]).chain(round_constants()).flat_map(u32::to_le_bytes).collect(),
        default_n: 4000,
        expected: |n| {
            let constants = round_constants();
            let mut state = INITIAL;
            for _ in 0..n {
                compress(&mut state, &constants);
            }
            u64::from(state[0]) << 32 | u64::from(state[7])
        },
        assemble: assemble_sha256,
    }
}

fn compress(state: &mut [u32; 8], constants: &[u32; 64]) {
    let mut w = [0u32; 64];
    for t in 0..16 {
        w[t] = state[t % 8].wrapping_add(t as u32);
    }
    for t in 16..64 {
        let s0 = w[t - 15].rotate_right(7) ^ w[t - 15].rotate_right(18) ^ w[t - 15] >> 3;
        let s1 = w[t - 2].rotate_right(17) ^ w[t - 2].rotate_right(19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16].wrapping_add(s0).wrapping_add(w[t - 7]).wrapping_add(s1);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for t in 0..64 {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choose = e & f ^ !e & g;
        let t1 = h.wrapping_add(s1).wrapping_add(choose).wrapping_add(constants[t]).wrapping_add(w[t]);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t2 = s0.wrapping_add(a & b ^ a & c ^ b & c);
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(add);
    }
}

fn assemble_sha256(a: &mut Piece) -> Result<(), BuildError> {
    // a..h; RSI = tables, RDI = t, EBP and R12D scratch, R13 = blocks left.
    const WORDS: [AsmRegister32; 8] = [eax, ebx, ecx, edx, r8d, r9d, r10d, r11d];
    const TO_SCHEDULE: i32 = (SCHEDULE - STATE) as i32;
    const TO_CONSTANTS: i32 = (CONSTANTS - STATE) as i32;
    let mut block = a.create_label();
    let mut load = a.create_label();
    let mut extend = a.create_label();
    let mut round = a.create_label();
    let mut done = a.create_label();
    push_preserved(a, &PRESERVED)?;
    a.mov(r13, rcx)?;
    a.lea(rsi, at(STATE))?;
    a.test(r13, r13)?;
    a.je(done)?;
    a.set_label(&mut block)?;
    a.xor(edi, edi)?;
    a.set_label(&mut load)?;
    a.mov(ebp, edi)?;
    a.and(ebp, 7)?;
    a.mov(ebp, dword_ptr(rsi + rbp * 4))?;
    a.add(ebp, edi)?;
    a.mov(dword_ptr(rsi + rdi * 4 + TO_SCHEDULE), ebp)?;
    a.inc(edi)?;
    a.cmp(edi, 16)?;
    a.jne(load)?;
    a.set_label(&mut extend)?;
    let w = |back: i32| dword_ptr(rsi + rdi * 4 + (TO_SCHEDULE - back * 4));
    a.mov(ebp, w(16))?;
    a.add(ebp, w(7))?;
    for (back, turns, shift) in [(15, [7, 18], 3), (2, [17, 19], 10)] {
        a.mov(eax, w(back))?;
        a.mov(ebx, eax)?;
        a.mov(ecx, eax)?;
        a.ror(ebx, turns[0])?;
        a.ror(ecx, turns[1])?;
        a.xor(ebx, ecx)?;
        a.shr(eax, shift)?;
        a.xor(ebx, eax)?;
        a.add(ebp, ebx)?;
    }
    a.mov(w(0), ebp)?;
    a.inc(edi)?;
    a.cmp(edi, 64)?;
    a.jne(extend)?;

    for (index, register) in (0..).zip(WORDS) {
        a.mov(register, dword_ptr(rsi + index * 4))?;
    }
    a.xor(edi, edi)?;
    a.set_label(&mut round)?;
    // h += S1(e) + choose(e, f, g) + K[t] + W[t]
    a.add(r11d, dword_ptr(rsi + rdi * 4 + TO_CONSTANTS))?;
    a.add(r11d, dword_ptr(rsi + rdi * 4 + TO_SCHEDULE))?;
    rotations(a, r8d, [6, 11, 25])?;
    a.add(r11d, ebp)?;
    a.mov(ebp, r9d)?;
    a.xor(ebp, r10d)?;
    a.and(ebp, r8d)?;
    a.xor(ebp, r10d)?;
    a.add(r11d, ebp)?;
    // d += h
    a.add(edx, r11d)?;
    // h += S0(a) + majority(a, b, c)
    rotations(a, eax, [2, 13, 22])?;
    a.add(r11d, ebp)?;
    a.mov(ebp, eax)?;
    a.mov(r12d, eax)?;
    a.or(ebp, ebx)?;
    a.and(r12d, ebx)?;
    a.and(ebp, ecx)?;
    a.or(ebp, r12d)?;
    a.add(r11d, ebp)?;
    // Rename: the new a is in h's register, every other word moves up.
    a.mov(r12d, r11d)?;
    for pair in (1..WORDS.len()).rev() {
        a.mov(WORDS[pair], WORDS[pair - 1])?;
    }
    a.mov(eax, r12d)?;
    a.inc(edi)?;
    a.cmp(edi, 64)?;
    a.jne(round)?;
    for (index, register) in (0..).zip(WORDS) {
        a.add(dword_ptr(rsi + index * 4), register)?;
    }
    a.dec(r13)?;
    a.jne(block)?;
    a.set_label(&mut done)?;
    a.mov(eax, dword_ptr(rsi))?;
    a.mov(ecx, dword_ptr(rsi + 28))?;
    a.shl(rax, 32)?;
    a.or(rax, rcx)?;
    pop_preserved(a, &PRESERVED)?;
    a.ret()?;
    Ok(())
}

/// EBP = the three rotations of `word` to the right, combined; R12D is scratch.
fn rotations(a: &mut Piece, word: AsmRegister32, turns: [i32; 3]) -> Result<(), BuildError> {
    a.mov(ebp, word)?;
    a.mov(r12d, word)?;
    a.ror(ebp, turns[0])?;
    a.ror(r12d, turns[1])?;
    a.xor(ebp, r12d)?;
    a.mov(r12d, word)?;
    a.ror(r12d, turns[2])?;
    a.xor(ebp, r12d)?;
    Ok(())
}

const SLOT_BITS: u32 = 14;
const SLOTS: usize = 1 << SLOT_BITS;
const KEY_BITS: u32 = 13;
const GOLDEN_RATIO: u64 = 0x9E37_79B9_7F4A_7C15;

/// `n` insertions of random keys into a table of (key, count) slots with linear probing.
pub(super) fn hash_table() -> Recipe {
    Recipe {
        name: "hash_table",
        data_size: SLOTS * 16,
        data: |_| Vec::new(),
        default_n: 500_000,
        expected: |n| {
            let mut counts = vec![0u64; 1 << KEY_BITS];
            let (mut state, mut sum) = (0, 0u64);
            for _ in 0..n {
                let key = lcg(&mut state) >> (64 - KEY_BITS);
                counts[key as usize] += 1;
                sum = sum.rotate_left(1).wrapping_add((key + 1) ^ counts[key as usize]);
            }
            sum
        },
        assemble: assemble_hash_table,
    }
}

fn assemble_hash_table(a: &mut Piece) -> Result<(), BuildError> {
    const SAVED: [AsmRegister64; 4] = [rbx, rsi, rdi, rbp];
    let mut insert = a.create_label();
    let mut probe = a.create_label();
    let mut empty = a.create_label();
    let mut found = a.create_label();
    let mut done = a.create_label();
    push_preserved(a, &SAVED)?;
    a.xor(eax, eax)?;
    a.xor(ebx, ebx)?;
    a.lea(rsi, at(DATA_BASE))?;
    a.mov(r8, LCG_MULTIPLIER)?;
    a.mov(r9, LCG_INCREMENT)?;
    a.mov(r10, GOLDEN_RATIO)?;
    a.test(rcx, rcx)?;
    a.je(done)?;
    a.set_label(&mut insert)?;
    a.imul_2(rbx, r8)?;
    a.add(rbx, r9)?;
    a.mov(rdi, rbx)?;
    a.shr(rdi, (64 - KEY_BITS) as i32)?;
    a.inc(rdi)?;
    a.mov(rdx, rdi)?;
    a.imul_2(rdx, r10)?;
    a.shr(rdx, (64 - SLOT_BITS) as i32)?;
    a.set_label(&mut probe)?;
    a.mov(rbp, rdx)?;
    a.shl(rbp, 4)?;
    a.mov(r11, qword_ptr(rsi + rbp))?;
    a.cmp(r11, rdi)?;
    a.je(found)?;
    a.test(r11, r11)?;
    a.je(empty)?;
    a.inc(edx)?;
    a.and(edx, SLOTS as i32 - 1)?;
    a.jmp(probe)?;
    a.set_label(&mut empty)?;
    a.mov(qword_ptr(rsi + rbp), rdi)?;
    a.set_label(&mut found)?;
    a.mov(r11, qword_ptr(rsi + rbp + 8))?;
    a.inc(r11)?;
    a.mov(qword_ptr(rsi + rbp + 8), r11)?;
    a.xor(rdi, r11)?;
    a.rol(rax, 1)?;
    a.add(rax, rdi)?;
    a.dec(rcx)?;
    a.jne(insert)?;
    a.set_label(&mut done)?;
    pop_preserved(a, &SAVED)?;
    a.ret()?;
    Ok(())
}
