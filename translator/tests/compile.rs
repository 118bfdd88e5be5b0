//! Regions of assorted snippets compile with Cranelift's verifier on, and their tables are complete and sorted.

use iced_x86::code_asm::*;
use lstar_translator::abi::{Mode, UNWIND};
use lstar_translator::flags::LazyOp;
use lstar_translator::{CallMode, CodeSource, CompiledRegion, OptLevel, SiteFlags, Translator, TranslatorConfig};

const BASE: u64 = 0x1_4000_1000;

/// One run of code bytes at [`BASE`].
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

fn translate_bytes(code: &[u8], mode: Mode, config: TranslatorConfig) -> CompiledRegion {
    let mut translator = Translator::new(TranslatorConfig { verifier: true, ..config }).expect("host is supported");
    let region = translator.translate(BASE, mode, &mut Bytes(code.to_vec())).expect("region compiles");
    check_sites(&region);
    region
}

fn assemble(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).expect("64-bit assembler");
    build(&mut assembler).expect("valid instructions");
    assembler.assemble(BASE).expect("encodable")
}

/// Compiles a snippet in both modes at both optimisation levels; returns the user-mode region at `speed`.
fn translate(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> CompiledRegion {
    let code = assemble(build);
    for mode in [Mode::User, Mode::Kernel] {
        for opt_level in [OptLevel::None, OptLevel::Speed] {
            for calls in [CallMode::Host, CallMode::Jump] {
                translate_bytes(&code, mode, TranslatorConfig { opt_level, calls, ..TranslatorConfig::default() });
            }
        }
    }
    translate_bytes(&code, Mode::User, TranslatorConfig::default())
}

fn check_sites(region: &CompiledRegion) {
    assert!(region.sites.is_sorted_by_key(|site| site.host_offset));
    for site in &region.sites {
        assert!((site.host_offset as usize) < region.code.len());
        assert!(region.ranges.iter().any(|range| range.contains(&site.rip)), "{site:x?} outside {:x?}", region.ranges);
        assert!(
            match site.flags {
                SiteFlags::Current => true,
                SiteFlags::Operands(op) => LazyOp::decode(op).is_some(),
                SiteFlags::Recoverable(source) | SiteFlags::RecoverableIfRepeated(source) =>
                    LazyOp::decode(source.op()).is_some(),
            },
            "{site:x?} names no flag operation"
        );
    }
}

/// Guest addresses that have at least one fault site.
fn site_rips(region: &CompiledRegion) -> Vec<u64> {
    let mut rips: Vec<u64> = region.sites.iter().map(|site| site.rip).collect();
    rips.sort_unstable();
    rips.dedup();
    rips
}

/// Loads that are fused into later instructions happen there: what their sites need must be alive that long, or else all code is
/// generated once more.
#[test]
fn the_state_at_fused_loads_is_found_at_once() {
    let code = assemble(|a| {
        for group in 0..100 {
            let offset = group * 8;
            a.mov(rax, qword_ptr(rbx + offset))?;
            a.add(rax, rcx)?;
            a.lea(rdx, ptr(rax + rcx * 4 + offset))?;
            a.cmp(rdx, rsi)?;
            a.imul_2(rcx, rdx)?;
            a.mov(qword_ptr(rdi + offset), rcx)?;
            a.movups(xmm0, xmmword_ptr(rbx + offset))?;
            a.paddd(xmm1, xmm0)?;
            a.xor(esi, edx)?;
            a.add(qword_ptr(rdi + offset), rdx)?;
        }
        a.ret()
    });
    let mut translator = Translator::new(TranslatorConfig::default()).expect("host is supported");
    let region = translator.translate(BASE, Mode::User, &mut Bytes(code)).expect("region compiles");
    check_sites(&region);
    assert_eq!((translator.stats().rounds, translator.stats().stored), (1, 0));
}

#[test]
fn a_loop_is_one_region_without_fallbacks() {
    let region = translate(|a| {
        let mut top = a.create_label();
        a.xor(eax, eax)?;
        a.set_label(&mut top)?;
        a.add(rax, qword_ptr(rcx + rdx * 8))?;
        a.inc(rdx)?;
        a.cmp(rdx, r8)?;
        a.jb(top)?;
        a.ret()
    });
    assert_eq!((region.instructions, region.blocks), (6, 3));
    assert_eq!(region.fallbacks, []);
    assert_eq!(site_rips(&region), [BASE + 2, BASE + 14]);
    assert!(region.links.is_empty());
}

#[test]
fn calls_are_followed_and_linked() {
    let region = translate(|a| {
        a.sub(rsp, 40)?;
        a.call(BASE + 0x1234)?;
        a.call(rax)?;
        a.call(qword_ptr(rax + 8))?;
        a.add(rsp, 40)?;
        a.ret()
    });
    assert_eq!(region.instructions, 6);
    assert_eq!(region.links, [BASE + 0x1234]);
}

#[test]
fn far_jumps_leave() {
    let region = translate(|a| {
        a.test(ecx, ecx)?;
        a.je(BASE + 0x40_0000)?;
        a.jmp(BASE + 0x50_0000)
    });
    assert_eq!(region.links, [BASE + 0x40_0000, BASE + 0x50_0000]);
    assert_eq!(region.sites, []);
}

#[test]
fn undecodable_bytes_are_left_to_the_interpreter() {
    for bytes in [&[][..], &[0x0F], &[0x06], &[0x90, 0x90, 0x0F, 0x04], &[0x66; 15], &[0x48]] {
        let region = translate_bytes(bytes, Mode::User, TranslatorConfig::default());
        assert!(!region.code.is_empty());
    }
}

#[test]
fn every_byte_pair_compiles() {
    let mut translator = Translator::new(TranslatorConfig {
        // The verifier knows no preserve-all calls with results, which host operations use.
        verifier: false,
        opt_level: OptLevel::None,
        max_instructions: 3,
        ..TranslatorConfig::default()
    })
    .expect("host is supported");
    for prefix in [&[][..], &[0x66], &[0x48], &[0xF2], &[0xF3], &[0x0F], &[0x66, 0x0F], &[0xF3, 0x0F], &[0xF2, 0x0F]] {
        for opcode in 0..=255u8 {
            for modrm in [0x00, 0x04, 0x05, 0x41, 0x84, 0xC1, 0xD8, 0xE3, 0xEC, 0xF0, 0xFF] {
                let mut code = prefix.to_vec();
                code.extend([opcode, modrm, 0x12, 0x34, 0x56, 0x08, 0x9A, 0xBC, 0xDE, 0xF0, 0xC3]);
                for mode in [Mode::User, Mode::Kernel] {
                    let region = translator
                        .translate(BASE, mode, &mut Bytes(code.clone()))
                        .unwrap_or_else(|error| panic!("{code:02x?}: {error}"));
                    check_sites(&region);
                }
            }
        }
    }
}

#[test]
fn the_unwind_value_is_no_code_address() {
    assert!(!lstar_arch::is_canonical(UNWIND));
}
