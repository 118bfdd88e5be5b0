//! Measures how many simple integer instructions a second the interpreter executes: `cargo run --release -p
//! lstar_interpreter --example throughput`.

use std::time::Instant;

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, al, dword_ptr, eax, ecx, ptr, qword_ptr, r8, r9, rax, rbx, rcx, rdi, rdx, rsi,
};
use lstar_arch::{CpuModel, CpuState, GuestMemory, PageFault, PageFaultCode, Privilege};
use lstar_interpreter::{Interpreter, Outcome, RunOptions};

const CODE: u64 = 0x1000;
const SIZE: usize = 0x1_0000;

/// One flat piece of memory from address 0.
struct Flat(Vec<u8>);

impl Flat {
    fn range(&mut self, address: u64, len: usize) -> Result<&mut [u8], PageFault> {
        let start = address as usize;
        self.0.get_mut(start..start.saturating_add(len)).ok_or(PageFault { address, code: PageFaultCode::empty() })
    }
}

impl GuestMemory for Flat {
    fn read(&mut self, address: u64, buf: &mut [u8], _: Privilege) -> Result<(), PageFault> {
        buf.copy_from_slice(self.range(address, buf.len())?);
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8], _: Privilege) -> Result<(), PageFault> {
        self.range(address, data.len())?.copy_from_slice(data);
        Ok(())
    }

    fn probe_write(&mut self, address: u64, len: u64, _: Privilege) -> Result<(), PageFault> {
        self.range(address, len as usize).map(|_| ())
    }

    fn fetch(&mut self, address: u64, buf: &mut [u8], privilege: Privilege) -> Result<usize, PageFault> {
        self.read(address, buf, privilege)?;
        Ok(buf.len())
    }

    fn code_modified(&self) -> bool {
        false
    }
}

fn registers_only(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.add(rax, rcx)?;
    a.xor(rdx, rax)?;
    a.shl(rdx, 3)?;
    a.lea(rbx, ptr(rax + rdx * 4 + 16))?;
    a.sub(rbx, 7)?;
    a.movzx(ecx, al)?;
    a.inc(rsi)?;
    a.cmp(rsi, rdi)?;
    a.jne(top)?;
    a.hlt()
}

/// A byte-wise mix over a table: loads, stores, calls.
fn memory_and_calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut top, mut function) = (a.create_label(), a.create_label());
    a.set_label(&mut top)?;
    a.mov(eax, dword_ptr(r8 + rcx * 4))?;
    a.call(function)?;
    a.mov(dword_ptr(r8 + rcx * 4), eax)?;
    a.inc(ecx)?;
    a.and(ecx, 0xFF)?;
    a.inc(rsi)?;
    a.cmp(rsi, rdi)?;
    a.jb(top)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    a.push(rbx)?;
    a.mov(rbx, rax)?;
    a.imul_2(rbx, r9)?;
    a.add(rax, rbx)?;
    a.add(qword_ptr(r8 + 1024), 1)?;
    a.pop(rbx)?;
    a.ret()
}

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn main() -> Result<(), IcedError> {
    let programs: [(&str, Program); 2] = [("registers", registers_only), ("memory and calls", memory_and_calls)];
    for (name, program) in programs {
        let mut assembler = CodeAssembler::new(64)?;
        program(&mut assembler)?;
        let mut mem = Flat(vec![0; SIZE]);
        let code = assembler.assemble(CODE)?;
        mem.0[CODE as usize..CODE as usize + code.len()].copy_from_slice(&code);
        let mut cpu = CpuState::new(CpuModel::INTEL);
        cpu.rip = CODE;
        cpu.gpr[4] = 0x8000;
        cpu.gpr[7] = 10_000_000;
        cpu.gpr[8] = 0x4000;
        cpu.gpr[9] = 0x9E37_79B9;
        let start = Instant::now();
        let mut budget = i64::MAX;
        let options = RunOptions::PLAIN;
        let outcome = Interpreter::new().run(&mut cpu, &mut mem, &mut budget, options);
        assert_eq!(outcome, Outcome::Halt);
        let executed = (i64::MAX - budget) as f64;
        println!("{name}: {:.0} MIPS", executed / start.elapsed().as_secs_f64() / 1e6);
    }
    Ok(())
}
