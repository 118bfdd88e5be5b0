//! Instructions as WinDbg prints them.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter, FormatterOutput, FormatterTextKind, Instruction, MasmFormatter,
    OpKind, Register, SymbolResolver, SymbolResult,
};

use super::symbols::Symbols;

/// An address with WinDbg's back-tick: `fffff800`03e7bec0`.
#[must_use]
pub fn tick(value: u64) -> String {
    format!("{:08x}`{:08x}", value >> 32, value & 0xFFFF_FFFF)
}

/// One disassembled instruction.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its address.
    pub address: u64,
    /// Its bytes in hexadecimal.
    pub bytes: String,
    /// Mnemonic with prefixes.
    pub mnemonic: String,
    /// Operands.
    pub operands: String,
    /// The decoded instruction.
    pub instruction: Instruction,
}

impl Line {
    /// Address of the next instruction.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.address.wrapping_add(self.instruction.len() as u64)
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:15} ", tick(self.address), self.bytes)?;
        if self.operands.is_empty() {
            return f.write_str(&self.mnemonic);
        }
        // Long byte columns eat into the mnemonic's width, so that operands stay in one column.
        let width = if self.bytes.len() <= 16 { 8 } else { 24_usize.saturating_sub(self.bytes.len()) };
        let padding = width.saturating_sub(self.mnemonic.len()).max(1);
        write!(f, "{}{:padding$}{}", self.mnemonic, "", self.operands)
    }
}

/// Disassembles one instruction; bytes that are none become `???`.
#[must_use]
pub fn disassemble(address: u64, bytes: &[u8], bits: u32, symbols: &Symbols) -> Line {
    let mut decoder = Decoder::with_ip(bits, bytes, address, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if instruction.is_invalid() {
        let mut instruction = Instruction::default();
        instruction.set_len(1);
        return Line {
            address,
            bytes: hex(bytes.get(..1).unwrap_or_default()),
            mnemonic: "???".into(),
            operands: String::new(),
            instruction,
        };
    }
    let mut formatter = MasmFormatter::with_options(Some(Box::new(Names(symbols.clone()))), None);
    let options = formatter.options_mut();
    options.set_uppercase_hex(true);
    options.set_small_hex_numbers_in_decimal(true);
    options.set_add_leading_zero_to_hex_numbers(true);
    options.set_space_after_operand_separator(false);
    options.set_show_branch_size(false);
    options.set_rip_relative_addresses(false);
    options.set_masm_add_ds_prefix32(false);
    options.set_masm_symbol_displ_in_brackets(true);
    options.set_memory_size_options(iced_x86::MemorySizeOptions::Always);
    let mut mnemonic = String::new();
    formatter.format_mnemonic(&instruction, &mut mnemonic);
    let mut operands = Operands::default();
    formatter.format_all_operands(&instruction, &mut operands);
    let mut operands = operands.0;
    if matches!(instruction.op0_kind(), OpKind::Memory) && no_size(&instruction) {
        // WinDbg shows no size where nothing is loaded as a value.
        if let Some(start) = operands.find(" ptr ") {
            operands.replace_range(..start + 5, "");
        }
    }
    let bytes = hex(bytes.get(..instruction.len()).unwrap_or_default());
    Line { address, bytes, mnemonic, operands, instruction }
}

/// Prefetches and the like, which name an address only.
fn no_size(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Prefetchw
            | M::Prefetch
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Invlpg
            | M::Clflush
            | M::Fxsave
            | M::Fxrstor
            | M::Fxsave64
            | M::Fxrstor64
            | M::Xsave
            | M::Xrstor
            | M::Lgdt
            | M::Lidt
            | M::Sgdt
            | M::Sidt
    )
}

/// Text of the operands; numbers in the form that WinDbg uses.
#[derive(Default)]
struct Operands(String);

impl FormatterOutput for Operands {
    fn write(&mut self, text: &str, _kind: FormatterTextKind) {
        self.0.push_str(text);
    }
}

/// Names branch targets and absolute memory operands: `nt!KiServiceInternal (fffff800`03e7be40)`.
struct Names(Symbols);

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        operand: u32,
        _instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        let wanted = match instruction.try_op_kind(operand).ok()? {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => true,
            OpKind::Memory => {
                // A plain displacement is an address unless FS or GS makes it an offset.
                let absolute = instruction.memory_base() == Register::None
                    && instruction.memory_index() == Register::None
                    && !matches!(instruction.memory_segment(), Register::FS | Register::GS);
                instruction.is_ip_rel_memory_operand() || absolute
            }
            _ => false,
        };
        if !wanted {
            return None;
        }
        let text = match self.0.name(address) {
            Some(name) => format!("{name} ({})", tick(address)),
            None => tick(address),
        };
        Some(SymbolResult::with_string(address, text))
    }
}

/// Where control can go after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Only to the next instruction.
    Next,
    /// Only to this address.
    Jump(u64),
    /// To this address or on.
    Branch(u64),
    /// To an address that is known only at run time.
    Unknown,
    /// Back to a caller, or nowhere.
    End,
}

/// Control flow of an instruction; calls and SYSCALL go on behind themselves.
#[must_use]
pub fn flow(instruction: &Instruction) -> Flow {
    match instruction.flow_control() {
        FlowControl::UnconditionalBranch => Flow::Jump(instruction.near_branch_target()),
        FlowControl::ConditionalBranch => Flow::Branch(instruction.near_branch_target()),
        FlowControl::IndirectBranch => Flow::Unknown,
        FlowControl::Return | FlowControl::Exception => Flow::End,
        _ if instruction.len() == 0 || instruction.is_invalid() => Flow::End,
        _ => Flow::Next,
    }
}

#[cfg(test)]
mod tests {
    use super::super::symbols::{Module, SymbolSource};
    use super::*;

    fn line(bytes: &[u8]) -> String {
        let mut symbols = Symbols::default();
        let names = vec![(0xFFFF_F800_0000_1100, "Target".to_owned())];
        symbols.add(Module::new(
            "nt",
            "nt.exe",
            0xFFFF_F800_0000_1000..0xFFFF_F800_0000_2000,
            SymbolSource::Private,
            names,
        ));
        disassemble(0xFFFF_F800_0000_1000, bytes, 64, &symbols).to_string()
    }

    #[test]
    fn prints_as_windbg_does() {
        for (bytes, text) in [
            (&[0x0F, 0x01, 0xF8][..], "0f01f8          swapgs"),
            (&[0x4C, 0x8B, 0xD1], "4c8bd1          mov     r10,rcx"),
            (&[0xB8, 0x52, 0, 0, 0], "b852000000      mov     eax,52h"),
            (&[0x6A, 0x2B], "6a2b            push    2Bh"),
            (&[0x48, 0x83, 0xEC, 0x08], "4883ec08        sub     rsp,8"),
            (&[0x65, 0x48, 0x89, 0x24, 0x25, 0x10, 0, 0, 0], "654889242510000000 mov   qword ptr gs:[10h],rsp"),
            (&[0x65, 0xFF, 0x34, 0x25, 0x10, 0, 0, 0], "65ff342510000000 push    qword ptr gs:[10h]"),
            (&[0x48, 0x89, 0x9D, 0xC0, 0, 0, 0], "48899dc0000000  mov     qword ptr [rbp+0C0h],rbx"),
            (&[0x40, 0x88, 0x7D, 0xA8], "40887da8        mov     byte ptr [rbp-58h],dil"),
            (&[0x0F, 0x0D, 0x8B, 0xD8, 1, 0, 0], "0f0d8bd8010000  prefetchw [rbx+1D8h]"),
            (&[0x48, 0x8D, 0x05, 0xF9, 0, 0, 0], "488d05f9000000  lea     rax,[nt!Target (fffff800`00001100)]"),
            (&[0xE9, 0xFB, 0, 0, 0], "e9fb000000      jmp     nt!Target (fffff800`00001100)"),
            (&[0xE9, 0xFB, 0x1F, 0, 0], "e9fb1f0000      jmp     fffff800`00003000"),
            (
                &[0x48, 0x8B, 0x05, 0xF9, 0, 0, 0],
                "488b05f9000000  mov     rax,qword ptr [nt!Target (fffff800`00001100)]",
            ),
            (&[0x48, 0x8D, 0xAC, 0x24, 0x80, 0, 0, 0], "488dac2480000000 lea     rbp,[rsp+80h]"),
            (&[0x48, 0x83, 0xE4, 0xF0], "4883e4f0        and     rsp,0FFFFFFFFFFFFFFF0h"),
            (&[0xF6, 0x04, 0x25, 8, 3, 0xFE, 0x7F, 1], "f604250803fe7f01 test    byte ptr [00000000`7ffe0308],1"),
            (&[0xCC], "cc              int     3"),
            (&[0xCD, 0x2E], "cd2e            int     2Eh"),
            (&[0x06], "06              ???"),
        ] {
            assert_eq!(line(bytes), format!("fffff800`00001000 {text}"));
        }
    }

    #[test]
    fn control_flow() {
        let flow_of = |bytes: &[u8]| flow(&disassemble(0x1000, bytes, 64, &Symbols::default()).instruction);
        assert_eq!(flow_of(&[0xEB, 0x0E]), Flow::Jump(0x1010));
        assert_eq!(flow_of(&[0x75, 0x0E]), Flow::Branch(0x1010));
        assert_eq!(flow_of(&[0x41, 0xFF, 0xE3]), Flow::Unknown);
        assert_eq!(flow_of(&[0xC3]), Flow::End);
        assert_eq!(flow_of(&[0x0F, 0x05]), Flow::Next);
        assert_eq!(flow_of(&[0xE8, 0, 0, 0, 0]), Flow::Next);
    }
}
