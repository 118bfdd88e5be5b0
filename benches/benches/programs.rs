//! Guest programs on the interpreter, the translator and the host itself.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use lstar_guest_images::programs::programs;
use lstar_runtime::{Engine, MachineConfig};
use lstar_tests::programs::{LoadedProgram, NativeProgram};

fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("programs");
    group.sample_size(10);
    for program in programs().expect("programs") {
        let n = program.default_n;
        if let Some(mut native) = NativeProgram::new(&program) {
            group.bench_function(BenchmarkId::new("native", program.name), |bencher| bencher.iter(|| native.call(n)));
        }
        for (name, engine) in [("translator", Engine::Translator), ("interpreter", Engine::Interpreter)] {
            let config = MachineConfig { engine, memory_limit: 1 << 30, ..MachineConfig::default() };
            let mut loaded = LoadedProgram::new(&program, config);
            for _ in 0..100 {
                loaded.call(2);
            }
            group.bench_function(BenchmarkId::new(name, program.name), |bencher| bencher.iter(|| loaded.call(n)));
        }
    }
    group.finish();
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
