//! `cargo run --release -p lstar_tests --bin fuzz -- [SEED [INPUTS]]`: arbitrary code on both engines.

use std::process::ExitCode;

use lstar_tests::fuzz::campaign;

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse::<u64>());
    let (Ok(seed), Ok(inputs)) = (numbers.next().unwrap_or(Ok(1)), numbers.next().unwrap_or(Ok(100_000))) else {
        eprintln!("usage: fuzz [SEED [INPUTS]]");
        return ExitCode::from(2);
    };
    match campaign(seed, inputs) {
        Ok((fuzzer, wrong)) => {
            println!(
                "seed {seed}: {} inputs, {:?} single instructions compared (64 bits, 32 bits)",
                fuzzer.runs, fuzzer.compared
            );
            for text in &wrong {
                println!("DIFFERENT {text}");
            }
            if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
