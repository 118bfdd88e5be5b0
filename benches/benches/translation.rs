//! Translation speed in guest instructions a second, and what it takes to start a machine and the guest kernel.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lstar_guest_images::programs::{Program, programs};
use lstar_runtime::{Engine, MachineConfig};
use lstar_tests::bare::BareSystem;
use lstar_translator::abi::Mode;
use lstar_translator::{CodeSource, OptLevel, Translator, TranslatorConfig};

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

fn benchmark(criterion: &mut Criterion) {
    let all = programs().expect("programs");
    let mut group = criterion.benchmark_group("translation");
    for (name, opt_level) in [("speed", OptLevel::Speed), ("none", OptLevel::None)] {
        let config = TranslatorConfig { opt_level, ..TranslatorConfig::default() };
        let mut translator = Translator::new(config).expect("translator");
        let mut translate_all = || -> u64 {
            let regions = all.iter().map(|program| {
                let region = translator.translate(program.entry, Mode::User, &mut Code(program));
                u64::from(region.expect("region").instructions)
            });
            regions.sum()
        };
        group.throughput(Throughput::Elements(translate_all()));
        group.bench_function(BenchmarkId::new("guest_instructions", name), |bencher| bencher.iter(&mut translate_all));
    }
    group.finish();

    let mut group = criterion.benchmark_group("start");
    group.sample_size(20);
    for (name, engine) in [("interpreter", Engine::Interpreter), ("translator", Engine::Translator)] {
        let config = MachineConfig { engine, memory_limit: 1 << 30, ..MachineConfig::default() };
        group.bench_function(BenchmarkId::new("machine_and_kernel", name), |bencher| {
            bencher.iter(|| BareSystem::boot(config, &[(0, "NtEmpty", 0)], &[]));
        });
    }
    group.finish();
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
