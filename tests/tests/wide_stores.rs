//! Several 256-bit stores in a row at page borders: each happens as a whole or not at all, whichever page the next bytes are on.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use lstar_tests::differential::campaign::all_engines;
use lstar_tests::differential::program::leave;
use lstar_tests::differential::{DATA, Memory, Outcome, READ_ONLY, State, Tolerance};

/// `vmovdqu [rbx+rsi+displacement],ymm` with a number below 8.
fn store(number: u8, displacement: i8) -> Vec<u8> {
    vec![0xC5, 0xFE, 0x7F, 0x44 | number << 3, 0x33, displacement as u8]
}

/// Displacements of the stores of a program.
const PROGRAMS: &[&[i8]] =
    &[&[0], &[0, 32, 64, 96], &[96, 64, 32, 0], &[0, 16, 48], &[-32, 0, 7, 32], &[-128, 64], &[64, -128, 0]];

#[test]
fn each_of_several_stores_is_whole_or_nothing() {
    let mut engines = all_engines().expect("engines");
    for displacements in PROGRAMS {
        let stores = displacements.iter().zip(0..).flat_map(|(&displacement, number)| store(number, displacement));
        // lea r8,[rbx+rsi+16]; vmovdqu [r8],ymm7; vmovdqu [r8+16],ymm6: other registers, the same bytes
        let others = [0x4C, 0x8D, 0x44, 0x33, 0x10, 0xC4, 0xC1, 0x7E, 0x7F, 0x38, 0xC4, 0xC1, 0x7E, 0x7F, 0x70, 0x10];
        let code: Vec<u8> = stores.chain(others).chain(leave()).collect();
        for engine in &mut engines {
            engine.load(&code);
        }
        // The page before is missing, then there are two that can be written, and one that cannot.
        for border in [DATA, DATA + 0x1000, READ_ONLY] {
            for distance in -200i64..200 {
                let mut state = State::default();
                state.gpr[3] = border.wrapping_add_signed(distance - 0x100);
                state.gpr[4] = lstar_tests::differential::STACK + 0x800;
                state.gpr[6] = 0x100;
                for number in 0..8u64 {
                    state.xmm[number as usize] = u128::from(0x0101_0101_0101_0101 * (number + 1));
                    state.ymm_high[number as usize] = u128::from(0x1111_1111_1111_1111 * (number + 1)) << 64;
                }
                let memory = Memory::image(1);
                let outcomes: Vec<Outcome> = engines
                    .iter_mut()
                    .map(|engine| {
                        let mut outcome = Outcome::default();
                        engine.run(&state, &memory, &mut outcome);
                        outcome
                    })
                    .collect();
                for index in 1..outcomes.len() {
                    let tolerance = Tolerance::between(&*engines[0], &*engines[index]);
                    assert!(
                        tolerance.agree(&outcomes[0], &outcomes[index]),
                        "{displacements:?} {distance} from {border:#x}: {} / {}\n{}",
                        engines[0].name(),
                        engines[index].name(),
                        tolerance.differences(&outcomes[0], &outcomes[index])
                    );
                }
            }
        }
    }
}
