//! Prints the time that translation takes for regions of growing size, which should grow in proportion:
//! `cargo run --release -p lstar_benches --example region_size [-- GROUPS ..]`. With numbers of groups each is translated once only,
//! and not timed: for profilers. Time is the thread's own, which other work on the machine disturbs least.

use iced_x86::code_asm::*;
use lstar_translator::abi::Mode;
use lstar_translator::{CodeSource, Translator, TranslatorConfig};

const BASE: u64 = 0x40_0000;
const ROUNDS: usize = 5;
const GROUPS: &[usize] = &[12, 25, 50, 100, 200, 400, 800];

struct Code(Vec<u8>);

impl CodeSource for Code {
    fn fetch(&mut self, address: u64, buf: &mut [u8], _: Mode) -> usize {
        let Some(rest) = address.checked_sub(BASE).and_then(|offset| self.0.get(offset as usize..)) else { return 0 };
        let length = rest.len().min(buf.len());
        buf[..length].copy_from_slice(&rest[..length]);
        length
    }
}

/// Straight code: loads, arithmetic, stores, vectors, over and over; `branches` puts a forward branch into every group.
fn program(groups: usize, branches: bool) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for group in 0..groups {
        let offset = (group % 100 * 8) as i32;
        let mut skip = a.create_label();
        a.mov(rax, qword_ptr(rbx + offset))?;
        a.add(rax, rcx)?;
        a.lea(rdx, ptr(rax + rcx * 4 + offset))?;
        a.cmp(rdx, rsi)?;
        if branches {
            a.jb(skip)?;
        }
        a.imul_2(rcx, rdx)?;
        a.mov(qword_ptr(rdi + offset), rcx)?;
        if branches {
            a.set_label(&mut skip)?;
        }
        a.movups(xmm0, xmmword_ptr(rbx + offset))?;
        a.paddd(xmm1, xmm0)?;
        a.xor(esi, edx)?;
    }
    a.ret()?;
    a.assemble(BASE)
}

/// Processor time of this thread in seconds.
fn now() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn main() {
    let wanted: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let (wanted, rounds) = if wanted.is_empty() { (GROUPS, ROUNDS) } else { (&wanted[..], 1) };
    println!("{:>10} {:>13} {:>12} {:>12} {:>12}", "branches", "instructions", "us each", "bytes each", "code made");
    // One for all: what it keeps of a large region must not slow down the small ones behind it.
    let config = TranslatorConfig { max_instructions: 20_000, ..TranslatorConfig::default() };
    let mut translator = Translator::new(config).expect("translator");
    for branches in [false, true] {
        for &groups in wanted {
            let mut code = Code(program(groups, branches).expect("program"));
            let mut best = f64::MAX;
            let before = translator.stats().rounds;
            let mut size = (1, 0);
            for _ in 0..rounds {
                let start = if rounds > 1 { now() } else { 0.0 };
                let region = translator.translate(BASE, Mode::User, &mut code).expect("translation");
                best = best.min(if rounds > 1 { now() - start } else { 0.0 });
                size = (region.instructions, region.code.len());
            }
            let count = f64::from(size.0);
            let stats = translator.stats();
            let made = (stats.rounds - before) as f64 / rounds as f64;
            println!(
                "{branches:>10} {:>13} {:>12.2} {:>12.1} {made:>12.1}",
                size.0,
                best * 1e6 / count,
                size.1 as f64 / count
            );
        }
    }
}
