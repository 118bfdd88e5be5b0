//! What is checked around an instruction only when software asked for it: breakpoints (SDM vol. 3, 17.2 and 17.3),
//! single step, alignment.

use iced_x86::{
    EncodingKind, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, Register, UsedMemory,
};
use lstar_arch::{CpuState, Exception, GuestMemory, Rflags, is_canonical};

use crate::decode::{Decoded, is_high_byte, segment};
use crate::engine::checks_alignment;

/// DR7's R/W field: execution, writes, reads and writes.
const ON_EXECUTION: u64 = 0;
const ON_WRITE: u64 = 1;
const ON_ACCESS: u64 = 3;

/// Enabled breakpoints of the given kinds: number, address, R/W field, length.
fn breakpoints(cpu: &CpuState) -> impl Iterator<Item = (usize, u64, u64, u64)> + '_ {
    let dr7 = cpu.dr[7];
    (0..4).filter(move |i| dr7 >> (2 * i) & 3 != 0).map(move |i| {
        let length = match dr7 >> (18 + 4 * i) & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        (i, cpu.dr[i], dr7 >> (16 + 4 * i) & 3, length)
    })
}

/// The fault for an instruction breakpoint at RIP.
pub(crate) fn instruction_breakpoint(cpu: &CpuState) -> Option<Exception> {
    let hits = breakpoints(cpu)
        .filter(|(_, address, kind, _)| *kind == ON_EXECUTION && *address == cpu.rip)
        .fold(0, |hits, (i, ..)| hits | 1 << i);
    (hits != 0).then_some(Exception::db(hits))
}

/// DR6 bits of the data breakpoints that the instruction is about to hit.
pub(crate) fn data_breakpoints(cpu: &CpuState, decoded: &Decoded) -> u64 {
    if cpu.dr[7] & 0xFF == 0 {
        return 0;
    }
    let mut hits = 0;
    for access in accesses(cpu, decoded) {
        for (i, address, kind, length) in breakpoints(cpu) {
            let wanted = kind == ON_ACCESS || kind == ON_WRITE && access.writes;
            let first = address & !(length - 1);
            let overlaps =
                access.address.wrapping_sub(first) < length || first.wrapping_sub(access.address) < access.size;
            if wanted && overlaps {
                hits |= 1 << i;
            }
        }
    }
    hits
}

/// #AC for a misaligned access of 2, 4 or 8 bytes at CPL 3 when the check is on. A page fault goes before it, and so does
/// a non-canonical address: the instruction itself then raises.
pub(crate) fn misaligned<M: GuestMemory>(cpu: &CpuState, mem: &mut M, decoded: &Decoded) -> Option<Exception> {
    if !checks_alignment(cpu) {
        return None;
    }
    let privilege = cpu.privilege();
    for access in accesses(cpu, decoded) {
        let end = access.address.wrapping_add(access.size.wrapping_sub(1));
        let Some(alignment) = alignment(decoded, access.size) else { continue };
        if access.address.is_multiple_of(alignment) {
            continue;
        }
        if !is_canonical(access.address) || !is_canonical(end) {
            return None;
        }
        let mut buffer = [0; 32];
        let reached = if access.writes {
            mem.probe_write(access.address, access.size, privilege)
        } else {
            mem.read(access.address, &mut buffer[..access.size as usize], privilege)
        };
        return reached.is_ok().then_some(Exception::AC);
    }
    None
}

/// The alignment that the check wants for an access of `size` bytes; `None` where it does not look. As AMD's processors do
/// it, which the manuals leave open: vectors of both widths count as 16 bytes, x87's long reals as 8; instructions that
/// raise #GP for a misaligned operand do so, and elements chosen by a mask are not checked.
fn alignment(decoded: &Decoded, size: u64) -> Option<u64> {
    use Mnemonic as M;
    let aligned_by_nature = match decoded.insn.encoding() {
        EncodingKind::VEX => matches!(
            decoded.mnemonic,
            M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa
        ),
        _ => !matches!(
            decoded.mnemonic,
            M::Movups
                | M::Movupd
                | M::Movdqu
                | M::Lddqu
                | M::Pcmpestri
                | M::Pcmpestri64
                | M::Pcmpestrm
                | M::Pcmpestrm64
                | M::Pcmpistri
                | M::Pcmpistrm
        ),
    };
    let masked = decoded.insn.is_vsib()
        || matches!(
            decoded.mnemonic,
            M::Vmaskmovps
                | M::Vmaskmovpd
                | M::Vpmaskmovd
                | M::Vpmaskmovq
                | M::Maskmovdqu
                | M::Vmaskmovdqu
                | M::Maskmovq
        );
    match size {
        _ if masked => None,
        2 | 4 | 8 => Some(size),
        10 => Some(8),
        16 | 32 if !aligned_by_nature => Some(16),
        _ => None,
    }
}

/// Whether the instruction loads RF itself.
pub(crate) fn loads_rf(decoded: &Decoded) -> bool {
    matches!(
        decoded.mnemonic,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq | Mnemonic::Sysretq | Mnemonic::Sysret
    )
}

/// Whether a single-step trap follows, given RFLAGS from before: INT n hands over to a handler that runs without TF,
/// SYSCALL takes the trap only when FMASK leaves TF set, and SYSRET takes it at once when it sets TF itself.
pub(crate) fn traps_after(decoded: &Decoded, flags_before: u64, cpu: &CpuState) -> bool {
    let tf = Rflags::TF.bits();
    match decoded.mnemonic {
        Mnemonic::Int => false,
        Mnemonic::Syscall => flags_before & cpu.rflags & tf != 0,
        Mnemonic::Sysret | Mnemonic::Sysretq => cpu.rflags & tf != 0,
        _ => flags_before & tf != 0 && cpu.interrupt_shadow == 0,
    }
}

/// A memory access an instruction will make.
struct Access {
    address: u64,
    size: u64,
    writes: bool,
}

/// All data accesses of the instruction with the registers as they are now.
fn accesses(cpu: &CpuState, decoded: &Decoded) -> Vec<Access> {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info_options(&decoded.insn, InstructionInfoOptions::NO_REGISTER_USAGE);
    info.used_memory().iter().filter_map(|used| access(cpu, used)).collect()
}

fn access(cpu: &CpuState, used: &UsedMemory) -> Option<Access> {
    let writes = match used.access() {
        OpAccess::None | OpAccess::NoMemAccess => return None,
        OpAccess::Read | OpAccess::CondRead => false,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => true,
    };
    let address = used.virtual_address(0, |register, _, _| Some(register_value(cpu, register)))?;
    let address = if cpu.is_64bit() { address } else { address & 0xFFFF_FFFF };
    Some(Access { address, size: used.memory_size().size() as u64, writes })
}

fn register_value(cpu: &CpuState, register: Register) -> u64 {
    if register.is_segment_register() {
        return segment(register, cpu.is_64bit()).map_or(0, |index| cpu.segment(index).base);
    }
    let full = if register.is_gpr() { cpu.gpr[register.full_register().number()] } else { cpu.rip };
    match register.size() {
        8 => full,
        4 => full & 0xFFFF_FFFF,
        2 => full & 0xFFFF,
        _ if is_high_byte(register) => full >> 8 & 0xFF,
        _ => full & 0xFF,
    }
}
