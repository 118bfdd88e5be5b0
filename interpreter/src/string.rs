//! String instructions (SDM vol. 1, 7.3.9) with their repeat prefixes.
//!
//! Each iteration updates the registers when it is complete, so a fault leaves a restartable state. A long repetition is
//! cut into pieces: RIP then stays on the instruction, as after an interrupt between iterations.

use iced_x86::{Mnemonic, OpKind, Register};
use lstar_arch::{Exception, Gpr, GuestMemory, PAGE_SIZE, Rflags, is_canonical};

use crate::exec::{Exec, Op};
use crate::flags::{ZF, mask, sub};

/// Elements processed before the instruction is left for a moment.
const ELEMENTS_PER_STEP: u64 = 4096;
/// Elements moved in bulk that take as long as one moved alone.
const BULK_FACTOR: u64 = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
}

/// What stays the same during the repetition.
#[derive(Clone, Copy)]
struct Plan {
    kind: Kind,
    /// Element size.
    size: u8,
    /// Address size.
    width: u8,
    /// Base of the source segment and of ES.
    source_base: u64,
    destination_base: u64,
}

pub(crate) fn movs<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    repeat(ex, Kind::Movs)
}

pub(crate) fn stos<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    repeat(ex, Kind::Stos)
}

pub(crate) fn lods<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    repeat(ex, Kind::Lods)
}

pub(crate) fn cmps<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    repeat(ex, Kind::Cmps)
}

pub(crate) fn scas<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    repeat(ex, Kind::Scas)
}

fn repeat<M: GuestMemory>(ex: &mut Exec<'_, M>, kind: Kind) -> Op {
    let plan = Plan {
        kind,
        size: element_size(ex.decoded.mnemonic),
        width: address_size(ex),
        source_base: ex.segment_base(ex.insn.memory_segment()),
        destination_base: ex.segment_base(Register::ES),
    };
    if !ex.insn.has_rep_prefix() && !ex.insn.has_repne_prefix() {
        return element(ex, &plan);
    }
    let watched = ex.cpu.rflags & Rflags::TF.bits() != 0
        || ex.cpu.dr[7] & 0xFF != 0
        || crate::limits::may_violate_later(ex.cpu, ex.insn.memory_segment());
    let mut budget = if watched { 1 } else { ELEMENTS_PER_STEP };
    loop {
        let left = ex.cpu.reg(Gpr::Rcx) & mask(plan.width);
        if left == 0 {
            return Ok(());
        }
        if budget == 0 {
            ex.cpu.rip = ex.insn.ip();
            return Ok(());
        }
        let bulk_limit = if watched { 1 } else { left.min(budget * BULK_FACTOR) };
        let (done, cost) = match bulk(ex, &plan, bulk_limit) {
            0 => {
                element(ex, &plan)?;
                (1, 1)
            }
            count => (count, count.div_ceil(BULK_FACTOR)),
        };
        ex.set_register(Gpr::Rcx, left - done, plan.width);
        budget -= cost;
        let zero = ex.cpu.rflags & ZF != 0;
        if matches!(kind, Kind::Cmps | Kind::Scas) && zero == ex.insn.has_repne_prefix() {
            return Ok(());
        }
    }
}

fn element_size(mnemonic: Mnemonic) -> u8 {
    use Mnemonic as M;
    match mnemonic {
        M::Movsb | M::Stosb | M::Lodsb | M::Cmpsb | M::Scasb => 1,
        M::Movsw | M::Stosw | M::Lodsw | M::Cmpsw | M::Scasw => 2,
        M::Movsd | M::Stosd | M::Lodsd | M::Cmpsd | M::Scasd => 4,
        _ => 8,
    }
}

fn address_size<M: GuestMemory>(ex: &Exec<'_, M>) -> u8 {
    let implicit = |i| match ex.insn.op_kind(i) {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    };
    implicit(0).or_else(|| implicit(1)).unwrap_or(8)
}

fn source<M: GuestMemory>(ex: &Exec<'_, M>, plan: &Plan) -> u64 {
    ex.linear((ex.cpu.reg(Gpr::Rsi) & mask(plan.width)).wrapping_add(plan.source_base))
}

fn destination<M: GuestMemory>(ex: &Exec<'_, M>, plan: &Plan) -> u64 {
    ex.linear((ex.cpu.reg(Gpr::Rdi) & mask(plan.width)).wrapping_add(plan.destination_base))
}

/// Moves an index register by `elements` in the direction that DF says.
fn advance<M: GuestMemory>(ex: &mut Exec<'_, M>, register: Gpr, plan: &Plan, elements: u64) {
    let distance = u64::from(plan.size).wrapping_mul(elements);
    let down = ex.cpu.rflags & Rflags::DF.bits() != 0;
    let old = ex.cpu.reg(register);
    let new = if down { old.wrapping_sub(distance) } else { old.wrapping_add(distance) };
    ex.set_register(register, new, plan.width);
}

/// One iteration.
fn element<M: GuestMemory>(ex: &mut Exec<'_, M>, plan: &Plan) -> Op {
    let size = plan.size;
    match plan.kind {
        Kind::Movs => {
            let value = ex.load_sized(source(ex, plan), size)?;
            ex.store_sized(destination(ex, plan), value, size)?;
        }
        Kind::Stos => ex.store_sized(destination(ex, plan), ex.cpu.reg(Gpr::Rax), size)?,
        Kind::Lods => {
            let value = ex.load_sized(source(ex, plan), size)?;
            ex.set_register(Gpr::Rax, value, size);
        }
        Kind::Cmps => {
            // Where both fault, processors report the second operand.
            let b = ex.load_sized(destination(ex, plan), size)?;
            let a = ex.load_sized(source(ex, plan), size)?;
            ex.set_status(sub(a, b, 0, size).1);
        }
        Kind::Scas => {
            let b = ex.load_sized(destination(ex, plan), size)?;
            ex.set_status(sub(ex.cpu.reg(Gpr::Rax) & mask(size), b, 0, size).1);
        }
    }
    if matches!(plan.kind, Kind::Movs | Kind::Lods | Kind::Cmps) {
        advance(ex, Gpr::Rsi, plan, 1);
    }
    if plan.kind != Kind::Lods {
        advance(ex, Gpr::Rdi, plan, 1);
    }
    Ok(())
}

/// Does up to `limit` iterations of an upward MOVS or STOS at once when they stay within a page on both sides and cannot
/// be told from single steps. Returns how many; 0 when the slow way must decide (and raise what is to be raised).
fn bulk<M: GuestMemory>(ex: &mut Exec<'_, M>, plan: &Plan, limit: u64) -> u64 {
    let size = u64::from(plan.size);
    if !matches!(plan.kind, Kind::Movs | Kind::Stos) || ex.cpu.rflags & Rflags::DF.bits() != 0 || plan.width < 4 {
        return 0;
    }
    let fits = |address: u64| (PAGE_SIZE - address % PAGE_SIZE) / size;
    let (from, to) = (source(ex, plan), destination(ex, plan));
    let mut count = limit.min(fits(to));
    if plan.kind == Kind::Movs {
        count = count.min(fits(from));
    }
    let bytes = count * size;
    if count < 2 || !is_canonical(to) {
        return 0;
    }
    let privilege = ex.cpu.privilege();
    if plan.kind == Kind::Movs {
        let overlaps = to.wrapping_sub(from) < bytes || from.wrapping_sub(to) < bytes;
        if overlaps || !is_canonical(from) || ex.mem.copy(from, to, bytes as usize, privilege).is_err() {
            return 0;
        }
    } else {
        let mut buffer = [0; PAGE_SIZE as usize];
        let data = buffer.get_mut(..bytes as usize).unwrap_or_default();
        for chunk in data.chunks_exact_mut(usize::from(plan.size)) {
            chunk.copy_from_slice(&ex.cpu.reg(Gpr::Rax).to_le_bytes()[..usize::from(plan.size)]);
        }
        if ex.mem.write(to, data, privilege).is_err() {
            return 0;
        }
    }
    if plan.kind == Kind::Movs {
        advance(ex, Gpr::Rsi, plan, count);
    }
    advance(ex, Gpr::Rdi, plan, count);
    count
}

/// INS and OUTS: the machine has no ports, and no privilege level may reach them.
pub(crate) fn port<M: GuestMemory>(_: &mut Exec<'_, M>) -> Op {
    Err(Exception::GP0)
}
