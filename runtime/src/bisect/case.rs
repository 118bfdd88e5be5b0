//! A finding as source text: a regression case for `tests/tests/image_cases.rs`.

use std::fmt::Write as _;

use lstar_arch::{SegmentIndex, Vector};

use super::scene::Ending;
use super::search::Found;

/// Names of the general-purpose registers in encoding order.
pub(super) const GPR_NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// The status flags and DF.
const COMPARED_FLAGS: u64 = 0xCD5;

/// An `ImageCase` as source text: registers, the memory that is touched, the code, and what the interpreter makes of it.
#[must_use]
pub fn case_text(found: &Found) -> String {
    let mut text = String::from("    ImageCase {\n");
    let Some(last) = found.path.last() else { return text };
    let cpu = &found.before;
    let _ = writeln!(text, "        name: \"{}\",", last.text);
    /// An address, and the bytes and text of the instructions from there on.
    type Piece<'a> = (u64, Vec<(&'a [u8], &'a str)>);
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    for item in &found.path {
        let known = pieces.iter().any(|(start, list)| {
            let mut at = *start;
            list.iter().any(|(bytes, _)| {
                let here = at == item.ip;
                at += bytes.len() as u64;
                here
            })
        });
        if known {
            continue;
        }
        let follows = |(start, list): &&mut (u64, Vec<(&[u8], &str)>)| {
            *start + list.iter().map(|(bytes, _)| bytes.len() as u64).sum::<u64>() == item.ip
        };
        match pieces.iter_mut().find(follows) {
            Some((_, list)) => list.push((&item.bytes, &item.text)),
            None => pieces.push((item.ip, vec![(&item.bytes, &item.text)])),
        }
    }
    let _ = writeln!(text, "        steps: {},\n        rip: {:#x},\n        code: &[", found.path.len(), cpu.rip);
    for (start, list) in pieces {
        let _ = writeln!(text, "            ({start:#x}, &[");
        for (bytes, insn) in list {
            let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:#04X}").replace("0X", "0x")).collect();
            let _ = writeln!(text, "                {}, // {insn}", bytes.join(", "));
        }
        let _ = writeln!(text, "            ]),");
    }
    let _ = writeln!(text, "        ],");
    if !found.memory.is_empty() {
        let _ = writeln!(text, "        memory: &[");
        for (address, bytes) in &found.memory {
            let bytes: Vec<String> = bytes.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "            ({address:#x}, &[{}]),", bytes.join(", "));
        }
        let _ = writeln!(text, "        ],");
    }
    let gpr: Vec<String> =
        cpu.gpr.iter().enumerate().filter(|(_, v)| **v != 0).map(|(i, v)| format!("({i}, {v:#x})")).collect();
    let _ = writeln!(text, "        gpr: &[{}],\n        rflags: {:#x},", gpr.join(", "), cpu.rflags);
    let wide = |[low, high]: [u64; 2]| u128::from(high) << 64 | u128::from(low);
    let xmm: Vec<String> = (0..16)
        .map(|i| (i, wide(cpu.xmm[i])))
        .filter(|(_, value)| *value != 0)
        .map(|(i, value)| format!("({i}, {value:#x})"))
        .collect();
    if !xmm.is_empty() {
        let _ = writeln!(text, "        xmm: &[{}],", xmm.join(", "));
    }
    let ymm: Vec<String> = (0..16)
        .map(|i| (i, wide(cpu.ymm_high[i])))
        .filter(|(_, value)| *value != 0)
        .map(|(i, value)| format!("({i}, {value:#x})"))
        .collect();
    if !ymm.is_empty() {
        let _ = writeln!(text, "        ymm_high: &[{}],", ymm.join(", "));
    }
    if cpu.mxcsr != 0x1F80 {
        let _ = writeln!(text, "        mxcsr: {:#x},", cpu.mxcsr);
    }
    if cpu.cpl != 3 {
        let _ = writeln!(text, "        cpl: {},", cpu.cpl);
    }
    for (name, index) in [("fs_base", SegmentIndex::Fs), ("gs_base", SegmentIndex::Gs)] {
        let base = cpu.segment(index).base;
        if base != 0 {
            let _ = writeln!(text, "        {name}: {base:#x},");
        }
    }
    if found.undefined != 0 {
        let _ = writeln!(text, "        undefined: {:#x},", found.undefined);
    }
    let _ = writeln!(text, "        expected: &[{}],", expectations(found).join(", "));
    text + "        ..ImageCase::EMPTY\n    },\n"
}

/// What the interpreter has where translated code has something else.
fn expectations(found: &Found) -> Vec<String> {
    let mut list = Vec::new();
    let (a, b) = (&found.expected.cpu, &found.found.cpu);
    if found.expected.ending != found.found.ending {
        list.push(match found.expected.ending {
            Ending::Exception(exception) => format!(
                "Expect::Ending(Ending::Exception {{ vector: {}, error_code: {}, cr2: {:#x} }})",
                exception.vector as u8,
                exception.error_code.unwrap_or(0),
                exception.cr2.filter(|_| exception.vector == Vector::PageFault).unwrap_or(0)
            ),
            Ending::Running | Ending::Left => "Expect::Ending(Ending::Finished)".to_owned(),
        });
    }
    if a.rip != b.rip {
        list.push(format!("Expect::Rip({:#x})", a.rip));
    }
    for (i, (value, _)) in a.gpr.iter().zip(&b.gpr).enumerate().filter(|(_, (a, b))| a != b) {
        list.push(format!("Expect::Register({i}, {value:#x})"));
    }
    let wide = |[low, high]: [u64; 2]| u128::from(high) << 64 | u128::from(low);
    for (i, (value, _)) in a.xmm.iter().zip(&b.xmm).enumerate().filter(|(_, (a, b))| a != b) {
        list.push(format!("Expect::Vector({i}, {:#x})", wide(*value)));
    }
    let compared = COMPARED_FLAGS & !found.undefined;
    if (a.rflags ^ b.rflags) & compared != 0 {
        list.push(format!("Expect::Flags({:#x})", a.rflags & compared));
    }
    for &(address, value, _) in found.found.stores.iter().take(16) {
        list.push(format!("Expect::Byte({address:#x}, {value:#x})"));
    }
    list
}
