//! Pieces of guest code at fixed addresses, with named positions in them.

use std::ops::{Deref, DerefMut};

use iced_x86::code_asm::{AsmMemoryOperand, CodeAssembler, CodeLabel, ptr};
use iced_x86::{BlockEncoderOptions, Code, Instruction, Register};

use crate::{BuildError, Symbol};

/// A piece of code under construction: iced's assembler plus named positions.
pub(crate) struct Piece {
    asm: CodeAssembler,
    marks: Vec<(String, CodeLabel)>,
}

/// A finished piece of code.
pub(crate) struct Code64 {
    /// Address of the first byte.
    pub address: u64,
    /// Machine code.
    pub bytes: Vec<u8>,
    /// Named positions, in ascending order; sizes reach to the next one or to the end.
    pub symbols: Vec<Symbol>,
}

impl Deref for Piece {
    type Target = CodeAssembler;
    fn deref(&self) -> &CodeAssembler {
        &self.asm
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.asm
    }
}

impl Piece {
    pub fn new() -> Result<Self, BuildError> {
        Ok(Self { asm: CodeAssembler::new(64)?, marks: Vec::new() })
    }

    /// Names the next instruction.
    pub fn mark(&mut self, name: impl Into<String>) -> Result<(), BuildError> {
        let mut label = self.asm.create_label();
        self.mark_label(name, &mut label)
    }

    /// Names the next instruction, which branches in this piece reach by `label`.
    pub fn mark_label(&mut self, name: impl Into<String>, label: &mut CodeLabel) -> Result<(), BuildError> {
        self.asm.set_label(label)?;
        self.marks.push((name.into(), *label));
        Ok(())
    }

    /// `mov dst, src` in the load form (opcode 8B) that Microsoft's compilers emit; iced prefers 89.
    pub fn mov_8b(&mut self, dst: Register, src: Register) -> Result<(), BuildError> {
        Ok(self.asm.add_instruction(Instruction::with2(Code::Mov_r64_rm64, dst, src)?)?)
    }

    /// Encodes the piece at `address`.
    pub fn finish(mut self, address: u64) -> Result<Code64, BuildError> {
        let result = self.asm.assemble_options(address, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let mut symbols = Vec::with_capacity(self.marks.len());
        for (name, label) in self.marks {
            symbols.push(Symbol { name, address: result.label_ip(&label)?, size: 0 });
        }
        let bytes = result.inner.code_buffer;
        size_symbols(&mut symbols, address + bytes.len() as u64);
        Ok(Code64 { address, bytes, symbols })
    }
}

impl Code64 {
    /// Address of a position named while assembling.
    ///
    /// # Panics
    /// If the piece defines no such name: a mistake in this crate, not in any input.
    pub fn address_of(&self, name: &str) -> u64 {
        match self.symbols.iter().find(|symbol| symbol.name == name) {
            Some(symbol) => symbol.address,
            None => panic!("no position named {name} was assembled"),
        }
    }

    /// Address behind the last byte.
    pub fn end(&self) -> u64 {
        self.address + self.bytes.len() as u64
    }
}

/// Sorts symbols by address and gives each the distance to the next one, the last the distance to `end`.
pub(crate) fn size_symbols(symbols: &mut [Symbol], end: u64) {
    symbols.sort_by_key(|symbol| symbol.address);
    let mut next = end;
    for symbol in symbols.iter_mut().rev() {
        symbol.size = next.saturating_sub(symbol.address);
        next = next.min(symbol.address);
    }
}

/// A RIP-relative operand for an absolute address.
pub(crate) fn at(address: u64) -> AsmMemoryOperand {
    ptr(Register::RIP) + address as i64
}
