//! PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM (SDM vol. 2, 4.1).

use iced_x86::{Code, Mnemonic, Register};
use lstar_arch::{GuestMemory, Rflags};

use super::lanes::{build, lane};
use crate::exec::{Exec, Op};

pub(crate) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>, mnemonic: Mnemonic) -> Option<Op> {
    Some(match mnemonic {
        Mnemonic::Pcmpestri | Mnemonic::Pcmpestri64 | Mnemonic::Vpcmpestri | Mnemonic::Vpcmpestri64 => {
            explicit(ex, index_result)
        }
        Mnemonic::Pcmpestrm | Mnemonic::Pcmpestrm64 | Mnemonic::Vpcmpestrm | Mnemonic::Vpcmpestrm64 => {
            explicit(ex, mask_result)
        }
        Mnemonic::Pcmpistri | Mnemonic::Vpcmpistri => implicit(ex, index_result),
        Mnemonic::Pcmpistrm | Mnemonic::Vpcmpistrm => implicit(ex, mask_result),
        _ => return None,
    })
}

/// The fields of the immediate.
#[derive(Clone, Copy)]
struct Control(u8);

impl Control {
    fn words(self) -> bool {
        self.0 & 1 != 0
    }
    /// Number of elements in a vector.
    fn count(self) -> u32 {
        if self.words() { 8 } else { 16 }
    }
    /// Element `index` as a number, signed if the format says so.
    fn element(self, vector: u128, index: u32) -> i32 {
        match self.0 & 3 {
            0 => lane::<u8>(vector, index).into(),
            1 => lane::<u16>(vector, index).into(),
            2 => lane::<i8>(vector, index).into(),
            _ => lane::<i16>(vector, index).into(),
        }
    }
    /// Length of a string that ends before its first zero element.
    fn implicit_length(self, vector: u128) -> u32 {
        (0..self.count()).find(|&index| self.element(vector, index) == 0).unwrap_or(self.count())
    }
}

fn explicit<M: GuestMemory>(ex: &mut Exec<'_, M>, finish: Finish<M>) -> Op {
    let control = Control(ex.insn.immediate8());
    let wide = matches!(
        ex.insn.code(),
        Code::Pcmpestri64_xmm_xmmm128_imm8
            | Code::Pcmpestrm64_xmm_xmmm128_imm8
            | Code::VEX_Vpcmpestri64_xmm_xmmm128_imm8
            | Code::VEX_Vpcmpestrm64_xmm_xmmm128_imm8
    );
    let length = |register| {
        let value = ex.gpr(register);
        let magnitude = if wide { (value as i64).unsigned_abs() } else { (value as i32).unsigned_abs().into() };
        magnitude.min(control.count().into()) as u32
    };
    let lengths = (length(Register::RAX), length(Register::RDX));
    compare(ex, control, |_, _| lengths, finish)
}

fn implicit<M: GuestMemory>(ex: &mut Exec<'_, M>, finish: Finish<M>) -> Op {
    let control = Control(ex.insn.immediate8());
    compare(ex, control, |a, b| (control.implicit_length(a), control.implicit_length(b)), finish)
}

/// Writes the result that belongs to a mask of matching elements.
type Finish<M> = fn(&mut Exec<'_, M>, Control, u32);

fn compare<M: GuestMemory>(
    ex: &mut Exec<'_, M>,
    control: Control,
    lengths: impl Fn(u128, u128) -> (u32, u32),
    finish: Finish<M>,
) -> Op {
    let b = ex.source(1)?;
    let a = ex.vector(ex.insn.op0_register());
    let (a_len, b_len) = lengths(a, b);
    let count = control.count();
    let matches = aggregate(control, (a, a_len), (b, b_len));
    let all = (1 << count) - 1;
    let result = match control.0 >> 4 & 3 {
        1 => matches ^ all,
        // Masked negation: only elements within the second string.
        3 => matches ^ ((1 << b_len) - 1),
        _ => matches,
    };
    let mut flags = Rflags::empty();
    flags.set(Rflags::CF, result != 0);
    flags.set(Rflags::ZF, b_len < count);
    flags.set(Rflags::SF, a_len < count);
    flags.set(Rflags::OF, result & 1 != 0);
    ex.cpu.rflags = ex.cpu.rflags & !Rflags::STATUS.bits() | flags.bits();
    finish(ex, control, result);
    Ok(())
}

/// The bits of IntRes1: one per element of the second string.
fn aggregate(control: Control, (a, a_len): (u128, u32), (b, b_len): (u128, u32)) -> u32 {
    let count = control.count();
    let element = |vector, index| control.element(vector, index);
    (0..count)
        .filter(|&j| match control.0 >> 2 & 3 {
            // Equal any: the element is one of the first string's.
            0 => j < b_len && (0..a_len).any(|i| element(a, i) == element(b, j)),
            // Ranges: the first string holds pairs of bounds.
            1 => {
                j < b_len
                    && (0..a_len / 2)
                        .any(|pair| (element(a, 2 * pair)..=element(a, 2 * pair + 1)).contains(&element(b, j)))
            }
            // Equal each: ends of both strings match each other.
            2 => match (j < a_len, j < b_len) {
                (true, true) => element(a, j) == element(b, j),
                (inside_a, inside_b) => inside_a == inside_b,
            },
            // Equal ordered: the first string starts here, as far as the vector reaches.
            _ => (0..count - j).all(|i| i >= a_len || i + j < b_len && element(a, i) == element(b, i + j)),
        })
        .fold(0, |mask, j| mask | 1 << j)
}

/// ECX: the first or last match, the number of elements if there is none.
fn index_result<M: GuestMemory>(ex: &mut Exec<'_, M>, control: Control, result: u32) {
    let index = match result {
        0 => control.count(),
        _ if control.0 & 0x40 != 0 => 31 - result.leading_zeros(),
        _ => result.trailing_zeros(),
    };
    ex.set_gpr(Register::ECX, index.into());
}

/// XMM0: the matches as bits, or each element all ones or zeros.
fn mask_result<M: GuestMemory>(ex: &mut Exec<'_, M>, control: Control, result: u32) {
    let mask = match (control.0 & 0x40 != 0, control.words()) {
        (false, _) => result.into(),
        (true, false) => build(128, |index| if result >> index & 1 != 0 { u8::MAX } else { 0 }),
        (true, true) => build(128, |index| if result >> index & 1 != 0 { u16::MAX } else { 0 }),
    };
    ex.set_vector(Register::XMM0, mask);
}
