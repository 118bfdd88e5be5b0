//! Flags that need not be stored: those of an operation whose operands, or result, still are in guest registers.
//!
//! After `cmp rcx, rdx` the flags are a function of RCX and RDX until one of them changes. A fault site behind it can
//! say so ([`FlagSource`]), and the registers, which are in the block at every site, give the operands back. This
//! holds across block borders where all predecessors agree, so that a loop around `cmp; jb` stores no flags at all.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use lstar_arch::CpuState;

use crate::discover::{Insn, Lowering, Region};
use crate::effects::{ALL_FLAGS, FlagWrite, RegSet, register_bit};
use crate::flags::{FlagKind, LazyOp};

/// Where an operand is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Operand {
    /// In a general-purpose register, by encoding; bits above the operand size are ignored.
    Register(u8),
    /// It is this.
    Constant(u64),
}

impl Operand {
    fn value(self, cpu: &CpuState) -> u64 {
        match self {
            Self::Register(number) => cpu.gpr[usize::from(number & 15)],
            Self::Constant(value) => value,
        }
    }

    fn bit(self) -> RegSet {
        match self {
            Self::Register(number) => 1 << number,
            Self::Constant(_) => 0,
        }
    }
}

/// What the two operands of a [`FlagSource`] are to the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Form {
    /// Its operands `a` and `b`, as [`FlagKind`] defines them.
    Operands,
    /// `a` is the result of an addition of, or the rest after a subtraction of, `b`.
    Result,
    /// A logical operation whose result is `a & b`.
    And,
}

/// Flags as a function of registers and constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FlagSource {
    /// The operation.
    pub kind: FlagKind,
    /// Operand size in bytes.
    pub bytes: u8,
    /// What the operands are.
    pub form: Form,
    /// First operand.
    pub a: Operand,
    /// Second operand.
    pub b: Operand,
}

impl FlagSource {
    /// The value for `lazy.op`.
    #[must_use]
    pub fn op(&self) -> u64 {
        LazyOp::new(self.kind, self.bytes.into()).number()
    }

    /// The operands for `lazy.a` and `lazy.b`.
    #[must_use]
    pub fn operands(&self, cpu: &CpuState) -> [u64; 2] {
        let (a, b) = (self.a.value(cpu), self.b.value(cpu));
        match (self.form, self.kind) {
            (Form::Operands, _) => [a, b],
            (Form::Result, FlagKind::Sub) => [a.wrapping_add(b), b],
            (Form::Result, _) => [a.wrapping_sub(b), b],
            (Form::And, _) => [a & b, b],
        }
    }

    /// Whether the flags also depend on `lazy.kept` in the block: the carry that INC and DEC keep.
    #[must_use]
    pub fn keeps_carry(&self) -> bool {
        matches!(self.kind, FlagKind::Inc | FlagKind::Dec)
    }

    /// The registers it depends on.
    pub(crate) fn registers(&self) -> RegSet {
        self.a.bit() | self.b.bit()
    }
}

/// A register operand that can be described; not AH, CH, DH, BH.
fn register(insn: &Instruction, operand: u32) -> Option<(Operand, u8)> {
    if insn.op_kind(operand) != OpKind::Register {
        return None;
    }
    let register = insn.op_register(operand);
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    if high || !register.is_gpr() {
        return None;
    }
    Some((Operand::Register(register_bit(register).trailing_zeros() as u8), register.size() as u8))
}

fn source(insn: &Instruction) -> Option<Operand> {
    match insn.op_kind(1) {
        OpKind::Register => register(insn, 1).map(|(operand, _)| operand),
        OpKind::Memory => None,
        _ => insn.try_immediate(1).ok().map(Operand::Constant),
    }
}

/// The flags that `insn` leaves, as a function of the registers behind it.
pub(crate) fn describe(insn: &Insn) -> Option<FlagSource> {
    use Mnemonic as M;
    if !matches!(insn.lowering, Lowering::Lift(_)) {
        return None;
    }
    let raw = &insn.raw;
    let (kind, form) = match raw.mnemonic() {
        M::Cmp => (FlagKind::Sub, Form::Operands),
        M::Sub => (FlagKind::Sub, Form::Result),
        M::Add => (FlagKind::Add, Form::Result),
        M::And | M::Or | M::Xor => (FlagKind::Logic, Form::Operands),
        M::Test => (FlagKind::Logic, Form::And),
        M::Inc => (FlagKind::Inc, Form::Operands),
        M::Dec => (FlagKind::Dec, Form::Operands),
        _ => return None,
    };
    let (a, bytes) = register(raw, 0)?;
    let b = match raw.mnemonic() {
        M::Inc | M::Dec | M::And | M::Or | M::Xor => a,
        _ => source(raw)?,
    };
    if form == Form::Result && a == b {
        return None;
    }
    Some(FlagSource { kind, bytes, form, a, b })
}

/// The flags behind `insn`, given those before it. `None`: in the block, or nowhere.
fn after(insn: &Insn, before: Option<FlagSource>) -> Option<FlagSource> {
    if insn.is_barrier() {
        None
    } else if insn.effects.flag_write != FlagWrite::Sure(0) {
        describe(insn)
    } else {
        before.filter(|source| source.registers() & insn.effects.writes == 0)
    }
}

/// What is known of the flags at a block's start.
#[derive(Clone, Copy, Default)]
pub(crate) struct AtStart {
    /// Every way in agrees on this description.
    pub always: Option<FlagSource>,
    /// Every way round the loop that starts here agrees on this description, other ways in do not; and the block
    /// overwrites all flags before anything but its fault sites could look at them. So the block's `lazy.op` can say
    /// which of the two it is.
    pub when_repeated: Option<FlagSource>,
}

/// Whether nothing but fault sites looks at the flags, and their registers do not change, before the block overwrites them all.
fn only_sites_look(insns: &[Insn], source: FlagSource) -> bool {
    for insn in insns {
        if insn.is_barrier() || insn.effects.flag_reads != 0 || !matches!(insn.lowering, Lowering::Lift(_)) {
            return false;
        }
        match insn.effects.flag_write {
            FlagWrite::Sure(ALL_FLAGS) => return true,
            FlagWrite::Sure(0) if insn.effects.writes & source.registers() == 0 => {}
            _ => return false,
        }
    }
    false
}

/// For each block, what is known of the flags at its start.
pub(crate) fn analyse(region: &Region) -> Vec<AtStart> {
    // `None`: not reached yet.
    let mut starts: Vec<Option<Option<FlagSource>>> = vec![None; region.blocks.len()];
    starts[0] = Some(None);
    let mut changed = true;
    while std::mem::take(&mut changed) {
        for (index, block) in region.blocks.iter().enumerate() {
            let Some(start) = starts[index] else { continue };
            let end = block.insns.iter().fold(start, |before, insn| after(insn, before));
            for next in block.end.blocks() {
                let joined = match starts[next] {
                    None => end,
                    Some(known) => known.filter(|known| Some(*known) == end),
                };
                changed |= starts[next].replace(joined) != Some(joined);
            }
        }
    }
    let mut known: Vec<AtStart> =
        starts.iter().map(|start| AtStart { always: start.flatten(), when_repeated: None }).collect();
    let mut repeated: Vec<Option<Option<FlagSource>>> = vec![None; region.blocks.len()];
    for (index, block) in region.blocks.iter().enumerate() {
        let end = block.insns.iter().fold(known[index].always, |before, insn| after(insn, before));
        for next in block.end.blocks().filter(|&next| next <= index) {
            let joined = match repeated[next] {
                None => end,
                Some(other) => other.filter(|other| Some(*other) == end),
            };
            repeated[next] = Some(joined);
        }
    }
    for ((known, repeated), block) in known.iter_mut().zip(repeated).zip(&region.blocks) {
        let usable = |source: &FlagSource| !source.keeps_carry() && only_sites_look(&block.insns, *source);
        known.when_repeated = repeated.flatten().filter(|source| known.always.is_none() && usable(source));
    }
    known
}
