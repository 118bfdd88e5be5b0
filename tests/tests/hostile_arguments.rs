//! Every service survives whatever a guest passes, with a fixed seed; `fuzz/targets/services.rs` goes on from there.

use lstar_tests::hostile::Random;
use lstar_tests::hostile::services::Caller;

#[test]
fn no_argument_brings_a_service_down() {
    const ROUNDS: u64 = 300;
    let mut random = Random::new(0x9E37_79B9_7F4A_7C15);
    let mut caller = Caller::new("arguments");
    for _ in 0..ROUNDS {
        for service in Caller::services() {
            caller.call(service, &mut random);
        }
    }
    assert!(caller.calls > 1000, "{} calls", caller.calls);
}
