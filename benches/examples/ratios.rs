//! Prints, for each guest program, the least times on the host, the translator and the interpreter, measured in turn,
//! and their ratios: `cargo run --release -p lstar_benches --example ratios [--quick] [NAME..]`. The least of several
//! times is what other work on the machine disturbs least. `--quick` leaves the interpreter out.

use lstar_arch::CpuModel;
use lstar_guest_images::programs::{avx_programs, programs};
use lstar_runtime::{Engine, MachineConfig};
use lstar_tests::programs::{LoadedProgram, NativeProgram};

const ROUNDS: usize = 9;
const WARM_UP: usize = 100;

fn least(times: Vec<f64>) -> f64 {
    times.into_iter().fold(f64::INFINITY, f64::min)
}

/// Processor time of this thread in seconds: what else the machine does counts less than with a clock.
fn now() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn time(call: &mut dyn FnMut() -> u64) -> f64 {
    let start = now();
    std::hint::black_box(call());
    now() - start
}

fn main() {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    let count_before = wanted.len();
    wanted.retain(|word| word != "--quick");
    let quick = wanted.len() != count_before;
    let (mut sum, mut count) = (0.0, 0);
    println!("{:16} {:>10} {:>10} {:>7} {:>9} {:>9}", "program", "native ms", "lstar ms", "ratio", "MIPS", "int. MIPS");
    let all = programs().expect("programs").into_iter().chain(avx_programs().expect("programs"));
    for program in all {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == program.name) {
            continue;
        }
        let n = program.default_n;
        let model = CpuModel::V3;
        let config = |engine| MachineConfig { engine, model, memory_limit: 1 << 30, ..MachineConfig::default() };
        let mut native = NativeProgram::new(&program).expect("native mapping");
        let mut translated = LoadedProgram::new(&program, config(Engine::Translator));
        let mut interpreted = LoadedProgram::new(&program, config(Engine::Interpreter));
        // Until every block on the way has its region.
        for _ in 0..WARM_UP {
            translated.call(2);
        }
        translated.call(n);
        let before = translated.machine.statistics().instructions;
        translated.call(n);
        let instructions = (translated.machine.statistics().instructions - before) as f64;
        let (mut native_times, mut translated_times) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            native_times.push(time(&mut || native.call(n)));
            translated_times.push(time(&mut || translated.call(n)));
        }
        let interpreted_time = if quick { f64::INFINITY } else { time(&mut || interpreted.call(n)) };
        let (native_time, translated_time) = (least(native_times), least(translated_times));
        let ratio = translated_time / native_time;
        sum += ratio.ln();
        count += 1;
        println!(
            "{:16} {:10.3} {:10.3} {:7.2} {:9.0} {:9.0}",
            program.name,
            native_time * 1e3,
            translated_time * 1e3,
            ratio,
            instructions / translated_time / 1e6,
            instructions / interpreted_time / 1e6,
        );
        let fallbacks = translated.machine.statistics().fallbacks;
        if !fallbacks.is_empty() {
            println!("{:16} interpreted inside translated code: {fallbacks:?}", "");
        }
    }
    println!("geometric mean {:.2}", (sum / f64::from(count)).exp());
}
