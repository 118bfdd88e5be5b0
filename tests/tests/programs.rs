//! Every guest program gives the checksum computed independently in Rust, on each engine and on the host.

use lstar_guest_images::programs::programs;
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
