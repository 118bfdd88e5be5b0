//! String instructions (SDM vol. 1, 7.3.9) with addresses of the mode's own width, alone and repeated.
//!
//! Repeated moves go page by page: what is left of the pages that source and destination lie in is moved by one host
//! instruction, after the first byte of each has been touched, so that nothing can fault on the way. The registers are stored
//! after each page; a fault finds them as after an interrupt between two iterations. Downward moves, long ones and
//! elements across a page border trap to the site, from where the interpreter goes on.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::mem::offset_of;

use super::{Lifter, only_if};
use crate::abi::VcpuBlock;
use crate::emit::{Arithmetic, Emitter, Host, Lifted, NotLifted, int_type};
use crate::flags::FlagKind;
use crate::host_op::HostOp;
use lstar_arch::{CpuState, PAGE_SIZE, Rflags};

const RAX: usize = 0;
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;
/// Most repetitions of a move in translated code. The interpreter interrupts repetitions after some time, and counts each
/// piece as an instruction; both engines shall count the same.
const MOST_MOVES: i64 = 32_768;
/// Most repetitions that the interpreter carries out one by one before it interrupts them.
const MOST_SINGLE: i64 = 4096;

/// The lifter for a string instruction.
pub(crate) fn lifter(insn: &Instruction) -> Option<Lifter> {
    use Mnemonic as M;
    let repeated = insn.has_rep_prefix() || insn.has_repne_prefix();
    Some(match insn.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq if repeated => repeat_move,
        M::Stosb | M::Stosw | M::Stosd | M::Stosq if repeated => repeat_move,
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if repeated => repeat_compare,
        M::Scasb | M::Scasw | M::Scasd | M::Scasq if repeated => repeat_compare,
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => single,
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => single,
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq if !repeated => single,
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => single,
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => single,
        _ => return None,
    })
}

/// What an instruction works on.
struct Shape {
    element: Type,
    /// It reads at RSI, with this segment base.
    source: bool,
    segment: Option<Value>,
    /// It reads or writes at RDI.
    destination: bool,
}

fn shape(e: &mut Emitter<'_>, insn: &Instruction) -> Result<Shape, NotLifted> {
    let has = |kind| (0..insn.op_count()).any(|index| insn.op_kind(index) == kind);
    let (source, destination) = match e.is_32bit() {
        true => (has(OpKind::MemorySegESI), has(OpKind::MemoryESEDI)),
        false => (has(OpKind::MemorySegRSI), has(OpKind::MemoryESRDI)),
    };
    // Others have addresses of another width.
    let operands = u32::from(source) + u32::from(destination);
    let registers = (0..insn.op_count()).filter(|&index| insn.op_kind(index) == OpKind::Register).count() as u32;
    only_if(operands > 0 && operands + registers == insn.op_count())?;
    let segment = if source { e.segment_base_of(insn) } else { None };
    // There, the limit counts.
    only_if(segment.is_none() || !e.is_32bit())?;
    Ok(Shape { element: int_type(insn.memory_size().size())?, source, segment, destination })
}

/// Traps to the site if DF is set.
fn trap_if_down(e: &mut Emitter<'_>) {
    let down = direction(e);
    e.trap_if(down);
}

/// DF, 64 bits wide and in its place.
fn direction(e: &mut Emitter<'_>) -> Value {
    let rflags = e.load_state(types::I64, offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, rflags));
    e.b.ins().band_imm_u(rflags, Rflags::DF.bits() as i64)
}

fn source_address(e: &mut Emitter<'_>, shape: &Shape) -> Value {
    let rsi = e.pointer(RSI);
    match shape.segment {
        Some(base) => e.b.ins().iadd(rsi, base),
        None => rsi,
    }
}

fn source_host(e: &mut Emitter<'_>, shape: &Shape) -> Result<Host, NotLifted> {
    let address = source_address(e, shape);
    e.address_at(address, 0)
}

fn destination_host(e: &mut Emitter<'_>) -> Result<Host, NotLifted> {
    let rdi = e.pointer(RDI);
    e.address_at(rdi, 0)
}

fn accumulator(e: &mut Emitter<'_>, ty: Type) -> Value {
    let rax = e.gpr64(RAX);
    e.resize(rax, ty)
}

/// One iteration without a prefix.
fn single(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let shape = shape(e, insn)?;
    let from_source = if shape.source {
        let host = source_host(e, &shape)?;
        Some(e.load(shape.element, host))
    } else {
        None
    };
    let size = i64::from(shape.element.bytes());
    let mut flags = None;
    match insn.mnemonic() {
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            let register = match shape.element {
                types::I8 => Register::AL,
                types::I16 => Register::AX,
                types::I32 => Register::EAX,
                _ => Register::RAX,
            };
            e.set_gpr(register, from_source.ok_or(NotLifted)?);
        }
        _ if insn.rflags_modified() != 0 => {
            let a = match from_source {
                Some(value) => value,
                None => accumulator(e, shape.element),
            };
            let host = destination_host(e)?;
            let b = e.load(shape.element, host);
            flags = Some((a, b));
        }
        _ => {
            let value = match from_source {
                Some(value) => value,
                None => accumulator(e, shape.element),
            };
            let host = destination_host(e)?;
            e.store(value, host);
        }
    }
    // The size, or its negative with DF set.
    let down = direction(e);
    let twice = e.b.ins().ushr_imm_u(down, i64::from(Rflags::DF.bits().trailing_zeros()) - 1 - size.ilog2() as i64);
    let size = e.iconst(types::I64, size);
    let step = e.b.ins().isub(size, twice);
    for (used, number) in [(shape.source, RSI), (shape.destination, RDI)] {
        if used {
            let old = e.gpr64(number);
            let new = e.b.ins().iadd(old, step);
            let new = e.wrapped(new, 0);
            e.set_gpr64(number, new);
        }
    }
    if let Some((a, b)) = flags {
        let result = e.b.ins().isub(a, b);
        e.set_flags(Arithmetic { kind: FlagKind::Sub, a, b, carry: None, result });
    }
    Ok(())
}

/// Whole elements from `address` to the end of its page.
fn room(e: &mut Emitter<'_>, address: Value, element: Type) -> Value {
    let offset = e.b.ins().band_imm_u(address, PAGE_SIZE as i64 - 1);
    let page = e.iconst(types::I64, PAGE_SIZE as i64);
    let bytes = e.b.ins().isub(page, offset);
    e.b.ins().ushr_imm_u(bytes, i64::from(element.bytes().trailing_zeros()))
}

/// REP MOVS and REP STOS.
fn repeat_move(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let shape = shape(e, insn)?;
    let at = shape.element.bytes().trailing_zeros() as usize;
    let op = if shape.source {
        [HostOp::RepMovsb, HostOp::RepMovsw, HostOp::RepMovsd, HostOp::RepMovsq][at]
    } else {
        [HostOp::RepStosb, HostOp::RepStosw, HostOp::RepStosd, HostOp::RepStosq][at]
    };
    e.synchronize_here();
    trap_if_down(e);
    let count = e.pointer(RCX);
    let many = e.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, count, MOST_MOVES);
    e.trap_if(many);
    if shape.source {
        let (from, to) = (source_address(e, &shape), e.pointer(RDI));
        let distance = e.b.ins().isub(to, from);
        let distance = e.b.ins().iadd_imm_s(distance, PAGE_SIZE as i64);
        let near = e.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, distance, 2 * PAGE_SIZE as i64);
        let several = e.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, count, MOST_SINGLE);
        let refused = e.b.ins().band(near, several);
        e.trap_if(refused);
    }
    let (head, body, done) = (e.b.create_block(), e.b.create_block(), e.b.create_block());
    e.b.ins().jump(head, &[]);
    e.b.switch_to_block(head);
    let left = e.pointer(RCX);
    e.b.ins().brif(left, body, &[], done, &[]);
    e.b.switch_to_block(body);
    e.b.seal_block(body);
    e.conditionally(|e| move_page(e, &shape, op))?;
    e.b.ins().jump(head, &[]);
    e.b.seal_block(head);
    e.b.switch_to_block(done);
    e.b.seal_block(done);
    Ok(())
}

/// As many iterations of a repeated move as stay in the current pages.
fn move_page(e: &mut Emitter<'_>, shape: &Shape, op: HostOp) -> Lifted {
    let (left, to) = (e.pointer(RCX), e.pointer(RDI));
    let fits = room(e, to, shape.element);
    let mut count = e.b.ins().umin(left, fits);
    let to_host = destination_host(e)?;
    let second = if shape.source {
        let from = source_address(e, shape);
        let fits = room(e, from, shape.element);
        count = e.b.ins().umin(count, fits);
        let from_host = source_host(e, shape)?;
        // Whether it can be read is all that matters.
        e.load(types::I8, from_host);
        Some(e.host_address(from_host))
    } else {
        None
    };
    let none = e.b.ins().icmp_imm_u(IntCC::Equal, count, 0);
    e.trap_if(none);
    let argument = match second {
        Some(address) => {
            // Its own value: where the areas overlap, it is part of the source.
            let byte = e.load(types::I8, to_host);
            e.store(byte, to_host);
            address
        }
        None => {
            let rax = e.gpr64(RAX);
            let byte = e.resize(rax, types::I8);
            e.store(byte, to_host);
            rax
        }
    };
    let to_address = e.host_address(to_host);
    e.host_results(op, &[to_address, argument, count])?;
    let bytes = e.b.ins().ishl_imm_u(count, i64::from(shape.element.bytes().trailing_zeros()));
    if shape.source {
        let rsi = e.pointer(RSI);
        let rsi = e.b.ins().iadd(rsi, bytes);
        let rsi = e.wrapped(rsi, 0);
        e.set_gpr64_stored(RSI, rsi);
    }
    let rdi = e.b.ins().iadd(to, bytes);
    let rdi = e.wrapped(rdi, 0);
    e.set_gpr64_stored(RDI, rdi);
    let rcx = e.b.ins().isub(left, count);
    e.set_gpr64_stored(RCX, rcx);
    Ok(())
}

/// REP CMPS and REP SCAS: a loop of loads, which a fault can start again from the beginning.
fn repeat_compare(e: &mut Emitter<'_>, insn: &Instruction) -> Lifted {
    let shape = shape(e, insn)?;
    // The checkpoint must not be older than the flags in the block.
    e.save_flags();
    e.synchronize_here();
    trap_if_down(e);
    let turns = e.b.declare_var(types::I64);
    let zero = e.iconst(types::I64, 0);
    e.b.def_var(turns, zero);
    let (head, next, end, done) = (e.b.create_block(), e.b.create_block(), e.b.create_block(), e.b.create_block());
    let count = e.pointer(RCX);
    e.b.ins().brif(count, head, &[], done, &[]);
    e.b.switch_to_block(head);
    let (a, b) = e.conditionally(|e| {
        let a = if shape.source {
            let host = source_host(e, &shape)?;
            e.load(shape.element, host)
        } else {
            accumulator(e, shape.element)
        };
        let host = destination_host(e)?;
        Ok((a, e.load(shape.element, host)))
    })?;
    let size = i64::from(shape.element.bytes());
    for (used, number, step) in [(shape.source, RSI, size), (true, RDI, size), (true, RCX, -1)] {
        if used {
            let old = e.gpr64(number);
            let new = e.wrapped(old, step);
            e.set_gpr64(number, new);
        }
    }
    let condition = if insn.has_repne_prefix() { IntCC::NotEqual } else { IntCC::Equal };
    let goes_on = e.b.ins().icmp(condition, a, b);
    let left = e.pointer(RCX);
    let more = e.b.ins().icmp_imm_u(IntCC::NotEqual, left, 0);
    let again = e.b.ins().band(goes_on, more);
    e.b.ins().brif(again, next, &[], end, &[]);
    e.b.switch_to_block(next);
    e.b.seal_block(next);
    let turn = e.b.use_var(turns);
    let turn = e.b.ins().iadd_imm_s(turn, 1);
    e.b.def_var(turns, turn);
    let long = e.b.ins().icmp_imm_u(IntCC::Equal, turn, MOST_SINGLE);
    e.trap_if(long);
    e.b.ins().jump(head, &[]);
    e.b.seal_block(head);
    e.b.switch_to_block(end);
    e.b.seal_block(end);
    let result = e.b.ins().isub(a, b);
    e.set_flags(Arithmetic { kind: FlagKind::Sub, a, b, carry: None, result });
    e.save_flags();
    e.b.ins().jump(done, &[]);
    e.b.switch_to_block(done);
    e.b.seal_block(done);
    e.join_flags();
    Ok(())
}
