//! Registers by WinDbg's names, and the `r` display.

use lstar_arch::{CpuState, Gpr, Rflags, Segment, SegmentIndex};

/// General-purpose registers in the order of the `r` display, and their names.
const DISPLAY: [(&str, Gpr); 16] = [
    ("rax", Gpr::Rax),
    ("rbx", Gpr::Rbx),
    ("rcx", Gpr::Rcx),
    ("rdx", Gpr::Rdx),
    ("rsi", Gpr::Rsi),
    ("rdi", Gpr::Rdi),
    ("rsp", Gpr::Rsp),
    ("rbp", Gpr::Rbp),
    ("r8", Gpr::R8),
    ("r9", Gpr::R9),
    ("r10", Gpr::R10),
    ("r11", Gpr::R11),
    ("r12", Gpr::R12),
    ("r13", Gpr::R13),
    ("r14", Gpr::R14),
    ("r15", Gpr::R15),
];

const SEGMENTS: [(&str, SegmentIndex); 6] = [
    ("cs", SegmentIndex::Cs),
    ("ss", SegmentIndex::Ss),
    ("ds", SegmentIndex::Ds),
    ("es", SegmentIndex::Es),
    ("fs", SegmentIndex::Fs),
    ("gs", SegmentIndex::Gs),
];

/// Flags by WinDbg's two-letter states: set, clear.
const FLAGS: [(Rflags, &str, &str); 8] = [
    (Rflags::OF, "ov", "nv"),
    (Rflags::DF, "dn", "up"),
    (Rflags::IF, "ei", "di"),
    (Rflags::SF, "ng", "pl"),
    (Rflags::ZF, "zr", "nz"),
    (Rflags::AF, "ac", "na"),
    (Rflags::PF, "pe", "po"),
    (Rflags::CF, "cy", "nc"),
];

/// Single flags by name.
const FLAG_NAMES: [(&str, Rflags); 9] = [
    ("of", Rflags::OF),
    ("df", Rflags::DF),
    ("if", Rflags::IF),
    ("sf", Rflags::SF),
    ("zf", Rflags::ZF),
    ("af", Rflags::AF),
    ("pf", Rflags::PF),
    ("cf", Rflags::CF),
    ("tf", Rflags::TF),
];

/// A general-purpose register or a part of one: which, its size in bytes, its shift in bits.
fn general(name: &str) -> Option<(Gpr, u32, u32)> {
    if let Some((_, register)) = DISPLAY.iter().find(|(full, _)| *full == name) {
        return Some((*register, 8, 0));
    }
    let numbered = name.strip_prefix('r').and_then(|rest| {
        let (digits, size) = match rest.char_indices().next_back()? {
            (end, 'd') => (&rest[..end], 4),
            (end, 'w') => (&rest[..end], 2),
            (end, 'b') => (&rest[..end], 1),
            _ => return None,
        };
        let index: usize = digits.parse().ok().filter(|index| (8..16).contains(index))?;
        Some((Gpr::ALL[index], size, 0))
    });
    if numbered.is_some() {
        return numbered;
    }
    DISPLAY[..8].iter().find_map(|(full, register)| {
        let base = &full[1..];
        let legacy = base.strip_suffix('x');
        if name.strip_prefix('e') == Some(base) {
            Some((*register, 4, 0))
        } else if name == base {
            Some((*register, 2, 0))
        } else if name.strip_suffix('l') == Some(legacy.unwrap_or(base)) {
            Some((*register, 1, 0))
        } else if legacy.is_some() && name.strip_suffix('h') == legacy {
            Some((*register, 1, 8))
        } else {
            None
        }
    })
}

/// Other 64-bit registers, to read and change.
fn other<'a>(name: &str, cpu: &'a mut CpuState) -> Option<&'a mut u64> {
    Some(match name {
        "rip" => &mut cpu.rip,
        "cr0" => &mut cpu.cr0,
        "cr2" => &mut cpu.cr2,
        "cr3" => &mut cpu.cr3,
        "cr4" => &mut cpu.cr4,
        "cr8" => &mut cpu.cr8,
        "xcr0" => &mut cpu.xcr0,
        "kgsbase" => &mut cpu.kernel_gs_base,
        "gsbase" => &mut cpu.segment_mut(SegmentIndex::Gs).base,
        "fsbase" => &mut cpu.segment_mut(SegmentIndex::Fs).base,
        "gdtr" => &mut cpu.gdtr.base,
        "idtr" => &mut cpu.idtr.base,
        _ => {
            let index = name.strip_prefix("dr")?.parse().ok().filter(|index| !matches!(index, 4 | 5))?;
            cpu.dr.get_mut::<usize>(index)?
        }
    })
}

/// A register's value; `name` in lower case. `cpu` is a copy.
#[must_use]
pub fn get(name: &str, mut cpu: CpuState) -> Option<u64> {
    if let Some((register, size, shift)) = general(name) {
        let mask = u64::MAX >> (64 - 8 * size);
        return Some(cpu.reg(register) >> shift & mask);
    }
    if let Some((_, segment)) = SEGMENTS.iter().find(|(other, _)| *other == name) {
        return Some(cpu.segment(*segment).selector.into());
    }
    if let Some((_, flag)) = FLAG_NAMES.iter().find(|(other, _)| *other == name) {
        return Some(u64::from(cpu.rflags & flag.bits() != 0));
    }
    match name {
        "efl" | "rflags" | "eflags" => Some(cpu.rflags),
        "mxcsr" => Some(cpu.mxcsr.into()),
        "gdtl" => Some(cpu.gdtr.limit.into()),
        "idtl" => Some(cpu.idtr.limit.into()),
        "tr" => Some(cpu.tr.selector.into()),
        "ldtr" => Some(cpu.ldtr.selector.into()),
        _ => other(name, &mut cpu).map(|value| *value),
    }
}

/// Sets a register; `None` when there is none of that name or it cannot be set.
#[must_use]
pub fn set(name: &str, cpu: &mut CpuState, value: u64) -> Option<()> {
    if let Some((register, size, shift)) = general(name) {
        let mask = u64::MAX >> (64 - 8 * size);
        let old = cpu.reg(register);
        // As the processor does: 32-bit writes clear the upper half.
        let kept = if size >= 4 { 0 } else { old & !(mask << shift) };
        cpu.set_reg(register, kept | (value & mask) << shift);
        return Some(());
    }
    if let Some((_, flag)) = FLAG_NAMES.iter().find(|(other, _)| *other == name) {
        cpu.rflags = if value == 0 { cpu.rflags & !flag.bits() } else { cpu.rflags | flag.bits() };
        return Some(());
    }
    match name {
        "efl" | "rflags" | "eflags" => cpu.rflags = value & 0x3F_7FD7 | Rflags::FIXED.bits(),
        "mxcsr" => cpu.mxcsr = value as u32 & 0xFFFF,
        _ => *other(name, cpu)? = value,
    }
    Some(())
}

/// The value of an XMM register as four dwords, or `None`.
#[must_use]
pub fn xmm(name: &str, cpu: &CpuState) -> Option<u128> {
    let index: usize = name.strip_prefix("xmm")?.parse().ok()?;
    let [low, high] = *cpu.xmm.get(index)?;
    Some(u128::from(high) << 64 | u128::from(low))
}

/// The `r` display without the instruction.
#[must_use]
pub fn display(cpu: &CpuState) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    // WinDbg's rows: three registers each, RIP heading the third.
    let rows: [&[&str]; 6] = [
        &["rax", "rbx", "rcx"],
        &["rdx", "rsi", "rdi"],
        &["rip", "rsp", "rbp"],
        &["r8", "r9", "r10"],
        &["r11", "r12", "r13"],
        &["r14", "r15"],
    ];
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .map(|name| {
                let value = DISPLAY.iter().find(|(other, _)| other == name).map_or(cpu.rip, |(_, gpr)| cpu.reg(*gpr));
                format!("{name:>3}={value:016x}")
            })
            .collect();
        text.push_str(&cells.join(" "));
        text.push('\n');
    }
    let flags: Vec<&str> =
        FLAGS.iter().map(|(flag, set, clear)| if cpu.rflags & flag.bits() != 0 { *set } else { *clear }).collect();
    let _ = writeln!(text, "iopl={:x}         {}", cpu.flags().iopl(), flags.join(" "));
    let selector = |segment: &Segment| format!("{:04x}", segment.selector);
    let segments: Vec<String> =
        SEGMENTS.iter().map(|(name, index)| format!("{name}={}", selector(cpu.segment(*index)))).collect();
    let _ = writeln!(text, "{}             efl={:08x}", segments.join("  "), cpu.rflags);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use lstar_arch::CpuModel;

    #[test]
    fn every_part_of_a_register() {
        let mut cpu = CpuState::new(CpuModel::INTEL);
        cpu.set_reg(Gpr::Rax, 0x1122_3344_5566_7788);
        cpu.set_reg(Gpr::R9, 0xFEDC_BA98_7654_3210);
        cpu.set_reg(Gpr::Rsi, 0x1234_5678_9ABC_DEF0);
        for (name, value) in [
            ("rax", 0x1122_3344_5566_7788),
            ("eax", 0x5566_7788),
            ("ax", 0x7788),
            ("al", 0x88),
            ("ah", 0x77),
            ("r9d", 0x7654_3210),
            ("r9w", 0x3210),
            ("r9b", 0x10),
            ("sil", 0xF0),
            ("cs", 0x10),
        ] {
            assert_eq!(get(name, cpu.clone()), Some(value), "{name}");
        }
        for name in ["rxx", "r16", "r7d", "sih", "dr4", "xmm0", "", "r"] {
            assert_eq!(get(name, cpu.clone()), None, "{name}");
        }
        set("ah", &mut cpu, 0xFF).expect("ah");
        assert_eq!(cpu.reg(Gpr::Rax), 0x1122_3344_5566_FF88);
        set("eax", &mut cpu, 1).expect("eax");
        assert_eq!(cpu.reg(Gpr::Rax), 1);
        set("zf", &mut cpu, 1).expect("zf");
        assert_eq!(cpu.rflags, 0x42);
        assert!(set("cs", &mut cpu, 8).is_none(), "selectors have hidden parts");
    }

    #[test]
    fn the_display() {
        let mut cpu = CpuState::new(CpuModel::INTEL);
        cpu.set_reg(Gpr::Rdi, 0x7F);
        cpu.rip = 0xFFFF_F800_03E7_BEC0;
        cpu.rflags = 0x246;
        let text = display(&cpu);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "rdx=0000000000000000 rsi=0000000000000000 rdi=000000000000007f");
        assert_eq!(lines[2], "rip=fffff80003e7bec0 rsp=0000000000000000 rbp=0000000000000000");
        assert_eq!(lines[3], " r8=0000000000000000  r9=0000000000000000 r10=0000000000000000");
        assert_eq!(lines[6], "iopl=0         nv up ei pl zr na pe nc");
        assert_eq!(lines[7], "cs=0010  ss=0018  ds=0018  es=0018  fs=0000  gs=0000             efl=00000246");
    }
}
