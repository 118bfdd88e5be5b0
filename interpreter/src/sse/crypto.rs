//! AES, carry-less multiplication and SHA (SDM vol. 1, 12.13 and 5.18; FIPS 180-4 and 197).

use iced_x86::{Mnemonic, Register};
use lstar_arch::GuestMemory;

use super::integer::{Binary, binary};
use super::lanes::{build, lane};
use crate::exec::{Exec, Op};

pub(super) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    if let Some(f) = round(mnemonic) {
        return Some(binary(ex, f));
    }
    if let Some(f) = with_immediate(mnemonic) {
        return Some(by_immediate(ex, f));
    }
    (mnemonic == Mnemonic::Sha256rnds2).then(|| sha256_rounds(ex))
}

/// The operations on a state and a key or message.
pub(crate) fn round(mnemonic: Mnemonic) -> Option<Binary> {
    Some(match mnemonic {
        Mnemonic::Aesenc => |a, key, _| mix_columns(sub_bytes(shift_rows(a, 1), &SBOX), [2, 3, 1, 1]) ^ key,
        Mnemonic::Aesenclast => |a, key, _| sub_bytes(shift_rows(a, 1), &SBOX) ^ key,
        Mnemonic::Aesdec => |a, key, _| mix_columns(sub_bytes(shift_rows(a, 3), &INVERSE_SBOX), INVERSE_MIX) ^ key,
        Mnemonic::Aesdeclast => |a, key, _| sub_bytes(shift_rows(a, 3), &INVERSE_SBOX) ^ key,
        Mnemonic::Aesimc => |_, b, _| mix_columns(b, INVERSE_MIX),
        Mnemonic::Sha1msg1 => |a, b, _| a ^ (a << 64 | b >> 64),
        Mnemonic::Sha1msg2 => |a, b, _| sha1_message(a, b),
        Mnemonic::Sha1nexte => |a, b, _| {
            let e = lane::<u32>(a, 3).rotate_left(30);
            (u128::from(lane::<u32>(b, 3).wrapping_add(e)) << 96) | (b << 32 >> 32)
        },
        Mnemonic::Sha256msg1 => |a, b, _| {
            build(128, |index| {
                let next: u32 = if index < 3 { lane(a, index + 1) } else { lane(b, 0) };
                let sigma = next.rotate_right(7) ^ next.rotate_right(18) ^ next >> 3;
                lane::<u32>(a, index).wrapping_add(sigma)
            })
        },
        Mnemonic::Sha256msg2 => |a, b, _| sha256_message(a, b),
        _ => return None,
    })
}

/// Those that an immediate controls; the first operand of AESKEYGENASSIST does not count.
pub(crate) fn with_immediate(mnemonic: Mnemonic) -> Option<fn(u128, u128, u8) -> u128> {
    Some(match mnemonic {
        Mnemonic::Sha1rnds4 => sha1_rounds,
        Mnemonic::Pclmulqdq => carry_less_product,
        Mnemonic::Aeskeygenassist => key_assist,
        _ => return None,
    })
}

/// `op0 = f(op0, op1, immediate)`.
fn by_immediate<M: GuestMemory>(ex: &mut Exec<'_, M>, f: fn(u128, u128, u8) -> u128) -> Op {
    let source = ex.source(1)?;
    let register = ex.insn.op0_register();
    ex.set_vector(register, f(ex.vector(register), source, ex.insn.immediate8()));
    Ok(())
}

/// Product of two polynomials over GF(2), modulo x^8 + x^4 + x^3 + x + 1.
const fn gf_multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        let overflow = a & 0x80 != 0;
        a <<= 1;
        if overflow {
            a ^= 0x1B;
        }
        b >>= 1;
    }
    product
}

/// FIPS 197, 5.1.1: the multiplicative inverse (the 254th power), then an affine transformation.
const SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let x = index as u8;
        let mut inverse = 1;
        let mut power = 0;
        while power < 254 {
            inverse = gf_multiply(inverse, x);
            power += 1;
        }
        table[index] = inverse
            ^ inverse.rotate_left(1)
            ^ inverse.rotate_left(2)
            ^ inverse.rotate_left(3)
            ^ inverse.rotate_left(4)
            ^ 0x63;
        index += 1;
    }
    table
};

const INVERSE_SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        table[SBOX[index] as usize] = index as u8;
        index += 1;
    }
    table
};

/// First column of the inverse MixColumns matrix's rows.
const INVERSE_MIX: [u8; 4] = [14, 11, 13, 9];

fn sub_bytes(state: u128, table: &[u8; 256]) -> u128 {
    u128::from_le_bytes(state.to_le_bytes().map(|byte| table[usize::from(byte)]))
}

/// Rotates row r of the column-major state left by `r * by` columns; 3 undoes 1.
fn shift_rows(state: u128, by: u32) -> u128 {
    build(128, |index| {
        let row = index % 4;
        lane::<u8>(state, (index + 4 * row * by) % 16)
    })
}

/// Multiplies each column by the circulant matrix whose first row is given.
fn mix_columns(state: u128, first_row: [u8; 4]) -> u128 {
    build(128, |index| {
        let (column, row) = (index & !3, index % 4);
        (0..4).fold(0, |sum, k| {
            let factor = first_row[((k + 4 - row) % 4) as usize];
            sum ^ gf_multiply(lane(state, column + k), factor)
        })
    })
}

fn key_assist(_: u128, source: u128, constant: u8) -> u128 {
    let substituted = sub_bytes(source, &SBOX);
    build(128, |index| {
        let word: u32 = lane(substituted, index | 1);
        let word: u32 = if index < 2 { lane(substituted, 1) } else { word };
        if index & 1 == 0 { word } else { word.rotate_right(8) ^ u32::from(constant) }
    })
}

/// PCLMULQDQ: bits 0 and 4 of the immediate select the quadwords.
fn carry_less_product(a: u128, b: u128, control: u8) -> u128 {
    let a: u64 = lane(a, u32::from(control & 1));
    let b: u64 = lane(b, u32::from(control >> 4 & 1));
    (0..64).filter(|bit| b >> bit & 1 != 0).fold(0, |product, bit| product ^ u128::from(a) << bit)
}

/// SHA1MSG2: the last word depends on the first one computed here.
fn sha1_message(a: u128, b: u128) -> u128 {
    let word = |vector, index| lane::<u32>(vector, index);
    let w16 = (word(a, 3) ^ word(b, 2)).rotate_left(1);
    let w17 = (word(a, 2) ^ word(b, 1)).rotate_left(1);
    let w18 = (word(a, 1) ^ word(b, 0)).rotate_left(1);
    let w19 = (word(a, 0) ^ w16).rotate_left(1);
    build(128, |index| [w19, w18, w17, w16][index as usize])
}

/// Four rounds; the state is A to D from the top word down, E comes with the message words.
fn sha1_rounds(state: u128, message: u128, control: u8) -> u128 {
    const CONSTANTS: [u32; 4] = [0x5A82_7999, 0x6ED9_EBA1, 0x8F1B_BCDC, 0xCA62_C1D6];
    let group = usize::from(control & 3);
    let [mut a, mut b, mut c, mut d] = [3, 2, 1, 0].map(|index| lane::<u32>(state, index));
    let mut e = 0u32;
    for round in 0..4 {
        let f = match group {
            0 => b & c ^ !b & d,
            2 => b & c ^ b & d ^ c & d,
            _ => b ^ c ^ d,
        };
        // The first message word already contains E.
        let next = f
            .wrapping_add(a.rotate_left(5))
            .wrapping_add(lane(message, 3 - round))
            .wrapping_add(e)
            .wrapping_add(CONSTANTS[group]);
        (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
    }
    build(128, |index| [d, c, b, a][index as usize])
}

fn sha256_message(a: u128, b: u128) -> u128 {
    let sigma = |word: u32| word.rotate_right(17) ^ word.rotate_right(19) ^ word >> 10;
    let w16 = lane::<u32>(a, 0).wrapping_add(sigma(lane(b, 2)));
    let w17 = lane::<u32>(a, 1).wrapping_add(sigma(lane(b, 3)));
    let w18 = lane::<u32>(a, 2).wrapping_add(sigma(w16));
    let w19 = lane::<u32>(a, 3).wrapping_add(sigma(w17));
    build(128, |index| [w16, w17, w18, w19][index as usize])
}

/// Two rounds: the destination holds C, D, G, H, the source A, B, E, F, and XMM0 the message words plus constants.
fn sha256_rounds<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let source = ex.source(1)?;
    let register = ex.insn.op0_register();
    let old = ex.vector(register);
    let message = ex.vector(Register::XMM0);
    let [mut a, mut b, mut e, mut f] = [3, 2, 1, 0].map(|index| lane::<u32>(source, index));
    let [mut c, mut d, mut g, mut h] = [3, 2, 1, 0].map(|index| lane::<u32>(old, index));
    for round in 0..2 {
        let choice = e & f ^ !e & g;
        let majority = a & b ^ a & c ^ b & c;
        let sum_e = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let sum_a = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let step = choice.wrapping_add(sum_e).wrapping_add(lane(message, round)).wrapping_add(h);
        (h, g, f, e) = (g, f, e, step.wrapping_add(d));
        (d, c, b, a) = (c, b, a, step.wrapping_add(majority).wrapping_add(sum_a));
    }
    ex.set_vector(register, build(128, |index| [f, e, b, a][index as usize]));
    Ok(())
}
