//! How much host code snippets of guest code become: a table that reviews see change. Set `LSTAR_BLESS` to write it anew.

use std::fmt::Write as _;
use std::path::Path;

use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use lstar_translator::abi::Mode;
use lstar_translator::{CodeSource, HostTarget, PreciseState, Translator, TranslatorConfig};

const BASE: u64 = 0x1_4000_1000;
const GOLDEN: &str = "tests/goldens.txt";

struct Bytes(Vec<u8>);

impl CodeSource for Bytes {
    fn fetch(&mut self, address: u64, buf: &mut [u8], _: Mode) -> usize {
        let Some(offset) = address.checked_sub(BASE) else { return 0 };
        let rest = self.0.get(offset as usize..).unwrap_or(&[]);
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        count
    }
}

type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Loops that end in a near RET, so that what leaves and enters a region is part of the count but not most of it.
const SNIPPETS: &[(&str, Build)] = &[
    ("return", |_| Ok(())),
    ("load", |a| a.mov(rax, qword_ptr(rcx + 8))),
    ("store", |a| a.mov(qword_ptr(rcx + 8), rax)),
    ("indexed load", |a| a.mov(eax, dword_ptr(rcx + rdx * 4 + 16))),
    ("add to memory", |a| a.add(dword_ptr(rcx), eax)),
    ("byte registers", |a| {
        a.mov(al, byte_ptr(rcx))?;
        a.add(ah, al)
    }),
    ("flags to register", |a| {
        a.cmp(rcx, rdx)?;
        a.setbe(al)
    }),
    ("conditional move", |a| {
        a.test(ecx, ecx)?;
        a.cmovs(eax, edx)
    }),
    ("shift by cl", |a| a.shl(rax, cl)),
    ("divide", |a| {
        a.xor(edx, edx)?;
        a.div(r8)
    }),
    ("push and pop", |a| {
        a.push(rbx)?;
        a.sub(rsp, 0x20)?;
        a.add(rsp, 0x20)?;
        a.pop(rbx)
    }),
    ("call", |a| {
        a.sub(rsp, 0x28)?;
        a.call(BASE + 0x1000)?;
        a.add(rsp, 0x28)
    }),
    ("virtual call", |a| {
        a.sub(rsp, 0x28)?;
        a.mov(rax, qword_ptr(rcx))?;
        a.call(qword_ptr(rax + 8))?;
        a.add(rsp, 0x28)
    }),
    ("sum of an array", |a| {
        let mut again = a.create_label();
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.add(rax, qword_ptr(rcx))?;
        a.add(rcx, 8)?;
        a.dec(rdx)?;
        a.jnz(again)
    }),
    ("copy of bytes", |a| {
        let mut again = a.create_label();
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.movzx(r9d, byte_ptr(rdx + rax))?;
        a.mov(byte_ptr(rcx + rax), r9b)?;
        a.inc(rax)?;
        a.cmp(rax, r8)?;
        a.jb(again)
    }),
    ("hash of a string", |a| {
        let (mut again, mut done) = (a.create_label(), a.create_label());
        a.mov(eax, 5381)?;
        a.set_label(&mut again)?;
        a.movzx(edx, byte_ptr(rcx))?;
        a.test(edx, edx)?;
        a.je(done)?;
        a.imul_3(eax, eax, 33)?;
        a.xor(eax, edx)?;
        a.inc(rcx)?;
        a.jmp(again)?;
        a.set_label(&mut done)?;
        a.nop()
    }),
    ("dot product", |a| {
        let mut again = a.create_label();
        a.xorpd(xmm0, xmm0)?;
        a.set_label(&mut again)?;
        a.movsd_2(xmm1, qword_ptr(rcx))?;
        a.mulsd(xmm1, qword_ptr(rdx))?;
        a.addsd(xmm0, xmm1)?;
        a.add(rcx, 8)?;
        a.add(rdx, 8)?;
        a.dec(r8)?;
        a.jnz(again)
    }),
    ("packed additions", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.movdqu(xmm0, xmmword_ptr(rcx))?;
        a.paddd(xmm0, xmmword_ptr(rdx))?;
        a.movdqu(xmmword_ptr(rcx), xmm0)?;
        a.add(rcx, 16)?;
        a.sub(r8, 16)?;
        a.ja(again)
    }),
];

/// Instructions of the code proper: what lies behind the last return is for rare cases and not counted.
fn line(name: &str, build: Build, precise: PreciseState) -> String {
    let mut assembler = CodeAssembler::new(64).expect("assembler");
    build(&mut assembler).expect("instructions");
    assembler.ret().expect("return");
    let code = assembler.assemble(BASE).expect("encodable");
    // A callee at a known place, which looks at nothing.
    let mut bytes = code;
    bytes.resize(0x1000, 0xCC);
    bytes.extend([0x31, 0xC0, 0xC3]);
    let config = TranslatorConfig { host: HostTarget::Fixed, precise, ..TranslatorConfig::default() };
    let mut translator = Translator::new(config).expect("translator");
    let region = translator.translate(BASE, Mode::User, &mut Bytes(bytes)).expect("translation");
    let host: Vec<_> = Decoder::with_ip(64, &region.code, 0, DecoderOptions::NONE).into_iter().collect();
    let first_return = host.iter().rposition(|insn| insn.flow_control() == FlowControl::Return).unwrap_or(host.len());
    let to_block = host
        .iter()
        .filter(|insn| {
            insn.op_count() > 1
                && insn.op0_kind() == iced_x86::OpKind::Memory
                && insn.memory_displacement64() as i32 <= -0x2000_0000
        })
        .count();
    format!(
        "{name:20} {:5} {:5} {:5} {:5} {:5}",
        region.instructions,
        first_return + 1,
        to_block,
        region.sites.len(),
        translator.stats().rounds
    )
}

#[test]
fn host_code_is_what_it_was() {
    let mut text = String::new();
    for (title, precise) in [("maps", PreciseState::Maps), ("checkpoints", PreciseState::Checkpoints)] {
        let _ = writeln!(text, "{title:20} guest  host store sites rounds");
        for &(name, build) in SNIPPETS {
            let _ = writeln!(text, "{}", line(name, build, precise));
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    if std::env::var_os("LSTAR_BLESS").is_some() {
        std::fs::write(&path, &text).expect("golden file");
        return;
    }
    let golden = std::fs::read_to_string(&path).expect("golden file");
    for (now, then) in text.lines().zip(golden.lines()) {
        assert_eq!(now, then, "differs from {GOLDEN}; set LSTAR_BLESS to accept");
    }
    assert_eq!(text.lines().count(), golden.lines().count());
}
