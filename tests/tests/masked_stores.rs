//! MASKMOVDQU and MASKMOVQ around page borders: bytes that are not selected are not accessed, and none is written where one of the
//! selected ones faults. Which is so here, on all engines but the processor, which need not see it so.

use lstar_tests::differential::campaign::{EngineKind, make_engine};
use lstar_tests::differential::program::leave;
use lstar_tests::differential::{DATA, Ending, Engine, GS_BASE, Memory, Outcome, READ_ONLY, State, Tolerance};

const MASKMOVDQU: &[u8] = &[0x66, 0x0F, 0xF7, 0xCA];
/// With a 32-bit address.
const NARROW: &[u8] = &[0x67, 0x66, 0x0F, 0xF7, 0xCA];
const IN_GS: &[u8] = &[0x65, 0x66, 0x0F, 0xF7, 0xCA];
const VMASKMOVDQU: &[u8] = &[0xC5, 0xF9, 0xF7, 0xCA];
const MASKMOVQ: &[u8] = &[0x0F, 0xF7, 0xCA];

const MASKS: &[u128] = &[
    0,
    u128::MAX,
    0x80,
    0x80 << 120,
    0x8080_8080_8080_8080,
    0x8080_8080_8080_8080 << 64,
    0x7F80_017F_FF00_80C0_FF00_FF00_7F80_8001,
];

fn run(engine: &mut dyn Engine, code: &[u8], address: u64, mask: u128) -> Outcome {
    let mut state = State::default();
    let offset = if code == IN_GS { GS_BASE } else { 0 };
    // The upper half does not count in an address of 32 bits.
    let upper = if code == NARROW { 0xABCD << 32 } else { 0 };
    state.gpr[7] = address.wrapping_sub(offset) | upper;
    state.gpr[4] = lstar_tests::differential::STACK + 0x800;
    let data = 0x0F0E_0D0C_0B0A_0908_0706_0504_0302_0100 | 0xE0 << 120;
    (state.xmm[1], state.xmm[2]) = (data, mask);
    (state.x87.registers[1], state.x87.registers[2]) = (data & u128::from(u64::MAX), mask & u128::from(u64::MAX));
    let mut outcome = Outcome::default();
    engine.load(&[code, &leave()].concat());
    engine.run(&state, &Memory::image(1), &mut outcome);
    outcome
}

#[test]
fn only_selected_bytes_are_accessed() {
    let mut engines: Vec<_> = [EngineKind::Interpreter, EngineKind::Translator, EngineKind::Faulting]
        .into_iter()
        .map(|kind| make_engine(kind).expect("an engine"))
        .collect();
    let (mut finished, mut faults) = (0, 0);
    for code in [MASKMOVDQU, NARROW, IN_GS, VMASKMOVDQU, MASKMOVQ] {
        for border in [DATA, DATA + 0x1000, READ_ONLY] {
            for address in (border - 18)..(border + 2) {
                for &mask in MASKS {
                    let outcomes: Vec<Outcome> =
                        engines.iter_mut().map(|engine| run(&mut **engine, code, address, mask)).collect();
                    match outcomes[0].ending {
                        Ending::Finished => finished += 1,
                        _ => faults += 1,
                    }
                    for index in 1..outcomes.len() {
                        let tolerance = Tolerance::between(&*engines[0], &*engines[index]);
                        assert!(
                            tolerance.agree(&outcomes[0], &outcomes[index]),
                            "{code:02x?} at {address:#x} with {mask:#x}: {} / {}\n{}",
                            engines[0].name(),
                            engines[index].name(),
                            tolerance.differences(&outcomes[0], &outcomes[index])
                        );
                    }
                }
            }
        }
    }
    assert!(finished > 500 && faults > 300, "{finished} finished, {faults} faulted");
}

#[test]
fn what_is_stored_is_as_on_the_host() {
    let Ok(mut native) = make_engine(EngineKind::Native) else { return };
    let mut translator = make_engine(EngineKind::Translator).expect("an engine");
    for code in [MASKMOVDQU, NARROW, IN_GS, VMASKMOVDQU, MASKMOVQ] {
        for distance in 0..20 {
            for &mask in MASKS {
                let address = DATA + 0x1000 - 18 + distance;
                let expected = run(&mut *native, code, address, mask);
                let seen = run(&mut *translator, code, address, mask);
                let tolerance = Tolerance::between(&*native, &*translator);
                assert!(
                    tolerance.agree(&expected, &seen),
                    "{code:02x?} at {address:#x} with {mask:#x}\n{}",
                    tolerance.differences(&expected, &seen)
                );
            }
        }
    }
}
