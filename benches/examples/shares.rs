//! Prints what each technique of the translator contributes: the guest programs' times with it left out, as ratios to
//! the times with everything, measured in turn: `cargo run --release -p lstar_benches --example shares [NAME..]`.

use lstar_guest_images::programs::programs;
use lstar_runtime::{Engine, MachineConfig};
use lstar_tests::programs::LoadedProgram;
use lstar_translator::{CallMode, OptLevel, PreciseState, TranslatorConfig};

const ROUNDS: usize = 7;
const WARM_UP: usize = 100;

/// How a technique is left out.
type Change = fn(&mut TranslatorConfig);
/// What is left out, and how.
const VARIANTS: [(&str, Change); 10] = [
    ("nothing", |_| {}),
    ("maps", |config| config.precise = PreciseState::Checkpoints),
    ("host calls", |config| config.calls = CallMode::Jump),
    ("regions", |config| config.max_instructions = 8),
    ("targets", |config| config.known_targets = false),
    ("executed", |config| config.executed_only = false),
    ("leaves", |config| config.inline_leaves = false),
    ("look-ahead", |config| config.look_ahead = false),
    ("pairs", |config| config.scalar_pairs = false),
    ("optimiser", |config| config.opt_level = OptLevel::None),
];

/// Processor time of this thread in seconds.
fn now() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    print!("{:16}", "without");
    VARIANTS.iter().for_each(|(name, _)| print!(" {name:>10}"));
    println!();
    let mut logarithms = [0.0; VARIANTS.len()];
    let mut count = 0;
    for program in programs().expect("programs") {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == program.name) {
            continue;
        }
        let n = program.default_n;
        let mut loaded: Vec<LoadedProgram> = VARIANTS
            .iter()
            .map(|(_, change)| {
                let mut translator = TranslatorConfig::default();
                change(&mut translator);
                let config = MachineConfig {
                    engine: Engine::Translator,
                    memory_limit: 1 << 30,
                    translator,
                    ..MachineConfig::default()
                };
                let mut loaded = LoadedProgram::new(&program, config);
                // Until every block on the way has its region.
                for _ in 0..WARM_UP {
                    loaded.call(2);
                }
                loaded.call(n);
                loaded
            })
            .collect();
        let mut least = [f64::INFINITY; VARIANTS.len()];
        for _ in 0..ROUNDS {
            for (loaded, least) in loaded.iter_mut().zip(&mut least) {
                let start = now();
                std::hint::black_box(loaded.call(n));
                *least = least.min(now() - start);
            }
        }
        print!("{:16}", program.name);
        for (time, sum) in least.iter().zip(&mut logarithms) {
            let ratio: f64 = time / least[0];
            *sum += ratio.ln();
            print!(" {ratio:10.2}");
        }
        println!();
        count += 1;
    }
    print!("{:16}", "geometric mean");
    logarithms.iter().for_each(|sum| print!(" {:10.2}", (sum / f64::from(count)).exp()));
    println!();
}
