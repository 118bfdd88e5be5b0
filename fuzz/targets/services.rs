//! Services of NT in any order with arbitrary arguments and memory: each returns a status, waits, or ends the run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lstar_tests::hostile::Choices;
use lstar_tests::hostile::services::Caller;

/// Calls for one input, each of which starts with a system of its own.
const MOST_CALLS: usize = 100;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    let mut caller = Caller::new("fuzz");
    for _ in 0..MOST_CALLS {
        if choices.is_exhausted() {
            break;
        }
        caller.call_any(&mut choices);
    }
});
