//! A short run of the fuzzer, the same every time; `cargo run --release -p lstar_tests --bin fuzz` does long ones.

use lstar_tests::fuzz::campaign;

#[test]
fn arbitrary_code_is_executed_or_raises() {
    let (fuzzer, wrong) = campaign(1, 6_000).expect("engines");
    assert_eq!(fuzzer.runs, 6_000);
    let compared = fuzzer.compared;
    assert!(compared.iter().all(|&count| count > 300), "64-bit and 32-bit instructions compared: {compared:?}");
    assert!(fuzzer.statistics().regions_32bit > 500);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
