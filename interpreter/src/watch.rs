//! What is checked around an instruction only when software asked for it: breakpoints (SDM vol. 3, 17.2 and 17.3),
//! single step, alignment.

use iced_x86::{EncodingKind, FlowControl, Mnemonic, Register};
use lstar_arch::control::{debugctl, dr};
use lstar_arch::cpuid::Vendor;
use lstar_arch::{CpuState, Exception, GuestMemory, Rflags, SegmentIndex, is_canonical};

use crate::accesses::{accesses, is_state_image};
use crate::control_flow::takes_branch;
use crate::decode::Decoded;
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
    let linear =
        if cpu.is_64bit() { cpu.rip } else { cpu.rip.wrapping_add(cpu.segment(SegmentIndex::Cs).base) & 0xFFFF_FFFF };
    let hits = breakpoints(cpu)
        .filter(|(_, address, kind, _)| *kind == ON_EXECUTION && *address == linear)
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
    let unchecked = is_state_image(&decoded.insn)
        || decoded.insn.is_vsib()
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
        _ if unchecked => None,
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

/// MOV and POP to SS.
pub(crate) fn loads_ss(decoded: &Decoded) -> bool {
    matches!(decoded.mnemonic, Mnemonic::Mov | Mnemonic::Pop) && decoded.insn.op0_register() == Register::SS
}

/// What must be known from before an instruction to tell whether a single-step trap follows it.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    tf: bool,
    /// Traps only come behind branches that are taken, and this is none.
    passes: bool,
}

impl Step {
    /// Before the instruction: the state is what it sees.
    pub fn before(cpu: &CpuState, decoded: &Decoded) -> Self {
        let by_branches = cpu.debugctl & debugctl::BTF != 0;
        Self { tf: cpu.rflags & Rflags::TF.bits() != 0, passes: by_branches && !branches(cpu, decoded) }
    }

    /// Whether the trap follows: INT n hands over to a handler that runs without TF, SYSCALL takes the trap only when FMASK
    /// leaves TF set, SYSRET takes it at once when it sets TF itself, and loading SS holds it off (STI does not).
    pub fn traps(self, decoded: &Decoded, cpu: &CpuState) -> bool {
        let tf = cpu.rflags & Rflags::TF.bits() != 0;
        !self.passes
            && match decoded.mnemonic {
                Mnemonic::Int => false,
                Mnemonic::Syscall => self.tf && tf,
                Mnemonic::Sysret | Mnemonic::Sysretq => tf,
                _ => self.tf && !holds_traps_off(cpu, decoded),
            }
    }
}

/// Whether the instruction that has just executed holds debug traps off until the next one is done.
pub(crate) fn holds_traps_off(cpu: &CpuState, decoded: &Decoded) -> bool {
    cpu.interrupt_shadow != 0 && loads_ss(decoded)
}

/// Whether the instruction is going to be a taken branch, far ones and those between privilege levels included.
fn branches(cpu: &CpuState, decoded: &Decoded) -> bool {
    match decoded.insn.flow_control() {
        FlowControl::Next | FlowControl::XbeginXabortXend | FlowControl::Exception => false,
        FlowControl::ConditionalBranch => takes_branch(cpu, decoded),
        FlowControl::Call => decoded.mnemonic != Mnemonic::Vmcall,
        _ => true,
    }
}

/// Whether the image of RFLAGS that a debug trap pushes has RF set although it was not: so it is between the iterations of a
/// repeated string instruction, lest a breakpoint on it hits again (SDM vol. 3, 17.3.1.1). AMD's processors set it for data
/// breakpoints only.
pub(crate) fn sets_rf_between_iterations(cpu: &CpuState, dr6: u64) -> bool {
    dr6 & !dr::DR6_BS != 0 || dr6 != 0 && cpu.model.vendor == Vendor::Intel
}
