//! A generated program: instructions whose branches name other instructions, so that parts can be taken out.

use iced_x86::{Code, Encoder, Instruction, Mnemonic, OpKind, Register};

use super::{CODE, CODE_SIZE, EXIT, Ending, Outcome, undefined};

/// One instruction of a program.
#[derive(Clone, Debug)]
pub struct Item {
    /// The instruction; the address of a label is filled in by [`Program::assemble`].
    pub insn: Instruction,
    /// Index of the item that it branches to or whose address it takes. The number of items stands for the end.
    pub target: Option<usize>,
    /// Flags that are undefined when it starts executing.
    pub undefined: u64,
}

/// A program. Items taken out stay as `None`, so that indices keep their meaning.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The instructions.
    pub items: Vec<Option<Item>>,
    /// Flags that are undefined at the end.
    pub undefined: u64,
}

/// Machine code with the address of each item.
#[derive(Clone, Debug)]
pub struct Assembled {
    /// To be loaded at [`CODE`].
    pub code: Vec<u8>,
    /// Address of each item, and of the end.
    pub addresses: Vec<u64>,
}

impl Program {
    /// The instructions that are left.
    pub fn instructions(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().flatten()
    }

    /// Machine code; `None` if a branch does not reach its target or an instruction cannot be encoded.
    #[must_use]
    pub fn assemble(&self) -> Option<Assembled> {
        let mut addresses = vec![CODE; self.items.len() + 1];
        let mut code = Vec::new();
        // The first pass measures: lengths do not depend on where a target is.
        for pass in 0..2 {
            let mut encoder = Encoder::new(64);
            let mut address = CODE;
            for (index, item) in self.items.iter().enumerate() {
                addresses[index] = address;
                let Some(item) = item else { continue };
                let mut insn = item.insn;
                if let Some(target) = item.target {
                    let target = if pass == 0 { address } else { addresses[target] };
                    if insn.op0_kind() == OpKind::NearBranch64 {
                        insn.set_near_branch64(target);
                    } else {
                        insn.set_memory_displacement64(target);
                    }
                }
                address += encoder.encode(&insn, address).ok()? as u64;
            }
            addresses[self.items.len()] = address;
            code = encoder.take_buffer();
            code.extend(leave());
        }
        (code.len() as u64 <= CODE_SIZE - 16).then_some(Assembled { code, addresses })
    }

    /// Works out the undefined flags before each instruction, as if no branch went back (see
    /// [`Program::uses_undefined`]).
    pub fn settle_flags(&mut self) {
        let count = self.items.len();
        let mut arriving = vec![0; count + 1];
        let mut current = 0;
        for index in 0..count {
            current |= arriving[index];
            let Some(item) = &mut self.items[index] else { continue };
            item.undefined = current;
            current = undefined::after(&item.insn, current);
            if let Some(target) = item.target
                && target > index
            {
                arriving[target] |= current;
            }
        }
        self.undefined = current | arriving[count];
    }

    /// First item that uses a flag which is undefined there; going back in a loop counts as using all.
    #[must_use]
    pub fn uses_undefined(&self) -> Option<usize> {
        self.items.iter().enumerate().position(|(index, item)| {
            item.as_ref().is_some_and(|item| {
                let back = item.target.is_some_and(|target| target <= index);
                let insn = &item.insn;
                // These may lead anywhere, when a register or the stack has been changed.
                let wild =
                    insn.is_jmp_near_indirect() || insn.is_call_near_indirect() || insn.mnemonic() == Mnemonic::Ret;
                let used = if back || wild { u64::MAX } else { undefined::reads(&item.insn) };
                item.undefined & used != 0
            })
        })
    }

    /// Whether engines may differ in this ending: with FS and GS, AMD's processors check the offset, too, for being
    /// canonical, Intel's the linear address only; which part of an x87 image is read first is the processor's affair, and so
    /// which page faults; a wild jump may have led into the middle of an instruction, where anything can be; and only
    /// AMD's processors have MXCSR's bit for misaligned operands, which others refuse to load.
    #[must_use]
    pub fn excuses(&self, assembled: &Assembled, outcome: &Outcome) -> bool {
        const BREAKPOINT: u8 = 3;
        const GENERAL_PROTECTION: u8 = 13;
        const PAGE_FAULT: u8 = 14;
        const MXCSR_MM: u32 = 1 << 17;
        if outcome.mxcsr & MXCSR_MM != 0 {
            return true;
        }
        let Ending::Exception { vector, .. } = outcome.ending else { return false };
        let Some(index) = assembled.addresses.iter().rposition(|address| *address == outcome.rip) else {
            return (CODE..CODE + CODE_SIZE).contains(&outcome.rip) && vector != BREAKPOINT;
        };
        let Some(insn) = self.items.get(index).and_then(|item| item.as_ref()).map(|item| item.insn) else {
            return false;
        };
        match vector {
            GENERAL_PROTECTION => insn.segment_prefix() == Register::GS,
            PAGE_FAULT => loads_image(insn.mnemonic()),
            _ => false,
        }
    }

    /// The flags that are undefined if the program ended with `rip`.
    #[must_use]
    pub fn undefined_at(&self, assembled: &Assembled, rip: u64) -> u64 {
        let ended_in = self
            .items
            .iter()
            .zip(&assembled.addresses)
            .filter_map(|(item, address)| item.as_ref().map(|item| (item, *address)))
            .take_while(|(_, address)| *address <= rip)
            .last();
        match ended_in {
            Some((item, address)) if (CODE..CODE + CODE_SIZE).contains(&rip) => {
                // A trap leaves RIP behind its instruction.
                if address == rip { item.undefined } else { item.undefined | self.undefined }
            }
            // Outside: a wild jump from anywhere.
            _ if rip != EXIT => self.instructions().fold(self.undefined, |all, item| all | item.undefined),
            _ => self.undefined,
        }
    }
}

/// Whether the instruction loads an image of the x87's state.
fn loads_image(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Fldenv | Mnemonic::Frstor | Mnemonic::Fxrstor | Mnemonic::Fxrstor64)
}

/// `jmp [rip]`, and the address of [`EXIT`]: what ends every program.
#[must_use]
pub fn leave() -> [u8; 14] {
    let mut code = [0xFF, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    code[6..].copy_from_slice(&EXIT.to_le_bytes());
    code
}

/// `cmp register, register`: defines all status flags.
#[must_use]
pub fn define_flags() -> Item {
    let insn = Instruction::with2(Code::Cmp_rm32_r32, Register::EAX, Register::ECX).unwrap_or_default();
    Item { insn, target: None, undefined: 0 }
}
