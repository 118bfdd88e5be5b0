//! Every guest program gives the checksum computed independently in Rust, on each engine and on the host.

use lstar_guest_images::programs::programs;
use std::collections::BTreeSet;

use lstar_runtime::{Engine, MachineConfig};
use lstar_tests::programs::{LoadedProgram, NativeProgram};

#[test]
fn programs_compute_what_they_should() {
    for program in programs().expect("programs") {
        let n = (program.default_n / 16).max(20).min(program.default_n);
        let expected = (program.expected)(n);
        if let Some(mut native) = NativeProgram::new(&program) {
            assert_eq!(native.call(n), expected, "{} on the host", program.name);
        }
        for engine in [Engine::Interpreter, Engine::Translator] {
            let config = MachineConfig { engine, memory_limit: 1 << 30, ..MachineConfig::default() };
            let mut loaded = LoadedProgram::new(&program, config);
            assert_eq!(loaded.call(n), expected, "{} on the {engine:?}", program.name);
            let statistics = loaded.machine.statistics();
            assert!(engine == Engine::Interpreter || statistics.regions > 0, "{} was not translated", program.name);
        }
    }
}

/// Addresses of the bytes of all instructions that a program has executed.
fn covered(program: &lstar_guest_images::programs::Program, config: MachineConfig) -> BTreeSet<u64> {
    let mut loaded = LoadedProgram::new(program, MachineConfig { coverage: true, memory_limit: 1 << 30, ..config });
    let n = (program.default_n / 16).max(20).min(program.default_n);
    assert_eq!(loaded.call(n), (program.expected)(n), "{}", program.name);
    loaded.machine.coverage().iter().flat_map(|block| block.start..block.start + u64::from(block.size)).collect()
}

#[test]
fn both_engines_cover_the_same_code() {
    for program in programs().expect("programs") {
        let interpreted = covered(&program, MachineConfig { engine: Engine::Interpreter, ..MachineConfig::default() });
        assert!(interpreted.contains(&program.entry), "{}", program.name);
        // Translated from the first visit on, so that probes tell, not the interpreter.
        let translated = covered(&program, MachineConfig { hot_threshold: 0, ..MachineConfig::default() });
        assert_eq!(interpreted, translated, "{}", program.name);
    }
}
