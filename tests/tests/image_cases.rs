//! Cases that `lstar diff` has printed, and a planted one that shows that they find what they were printed for.

use lstar_runtime::MachineConfig;
use lstar_tests::differential::image_case::ImageCase;
use lstar_tests::differential::regression::Expect;

const CASES: &[ImageCase] = &[ImageCase {
    name: "rol rdx,5",
    steps: 1,
    rip: 0x1_4000_128E,
    code: &[(
        0x1_4000_128E,
        &[
            0x48, 0xC1, 0xC2, 0x05, // rol rdx,5
        ],
    )],
    gpr: &[(2, 0x77a5_1e58_30ac_3eca)],
    rflags: 0x202,
    expected: &[Expect::Register(2, 0xf4a3_cb06_1587_d94e)],
    ..ImageCase::EMPTY
}];

#[test]
fn cases_of_real_programs_are_right() {
    let wrong: String = CASES.iter().map(|case| case.check(MachineConfig::default()).expect("a machine")).collect();
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_planted_bug_fails_its_case() {
    fn wrong_count(_: u64, bytes: &mut [u8], _: usize) {
        if let Some(at) = bytes.windows(4).position(|bytes| bytes == [0x48, 0xC1, 0xC2, 0x05]) {
            bytes[at + 3] = 6;
        }
    }
    let config = MachineConfig { mistranslate: Some(wrong_count), ..MachineConfig::default() };
    let wrong = CASES[0].check(config).expect("a machine");
    assert!(wrong.contains("rol rdx,5 on translator: Register(2"), "{wrong}");
    assert!(!wrong.contains("interpreter"), "{wrong}");
}
