//! Prints the host code that a guest program is translated to: `cargo run -p lstar_benches --example codegen PROGRAM`.

use iced_x86::{Decoder, DecoderOptions};
use lstar_guest_images::programs::{Program, avx_programs, programs};
use lstar_translator::abi::Mode;
use lstar_translator::{CodeSource, Translator, TranslatorConfig};

struct Code<'a>(&'a Program);

impl CodeSource for Code<'_> {
    fn fetch(&mut self, address: u64, buf: &mut [u8], _: Mode) -> usize {
        let Some(rest) = address.checked_sub(self.0.base).and_then(|offset| self.0.code.get(offset as usize..)) else {
            return 0;
        };
        let length = rest.len().min(buf.len());
        buf[..length].copy_from_slice(&rest[..length]);
        length
    }
}

fn main() {
    let name = std::env::args().nth(1).unwrap_or_else(|| "sieve".to_owned());
    let mut all = programs().expect("programs");
    all.extend(avx_programs().expect("programs"));
    let Some(program) = all.iter().find(|program| program.name == name) else {
        eprintln!("no such program; there are: {}", all.iter().map(|p| p.name).collect::<Vec<_>>().join(", "));
        std::process::exit(2);
    };
    println!("guest:");
    for instruction in Decoder::with_ip(64, &program.code, program.base, DecoderOptions::NONE) {
        println!("  {:x} {instruction}", instruction.ip());
    }
    let config = TranslatorConfig { features: lstar_arch::CpuModel::V3.features, ..TranslatorConfig::default() };
    let mut translator = Translator::new(config).expect("translator");
    let region = translator.translate(program.entry, Mode::User, &mut Code(program)).expect("translation");
    println!("host, {} bytes for {} instructions:", region.code.len(), region.instructions);
    let mut sites = region.sites.iter().peekable();
    for instruction in Decoder::with_ip(64, &region.code, 0, DecoderOptions::NONE) {
        let site = sites.next_if(|site| u64::from(site.host_offset) == instruction.ip());
        println!(
            "  {:5x} {instruction}{}",
            instruction.ip(),
            site.map_or_else(String::new, |site| format!("    ; {:x}", site.rip))
        );
    }
}
