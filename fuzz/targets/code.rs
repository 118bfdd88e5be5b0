//! Arbitrary bytes as code and state on both engines: no panic, no host fault, no endless run, and no difference where a single
//! instruction ended.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use lstar_tests::fuzz::{Fuzzer, Source};

thread_local! {
    static FUZZER: RefCell<Fuzzer> = RefCell::new(Fuzzer::new().expect("engines"));
    static SOURCE: RefCell<Source> = RefCell::new(Source::new(1));
}

fuzz_target!(|input: &[u8]| {
    let wrong = FUZZER.with_borrow_mut(|fuzzer| fuzzer.one(input));
    if let Some(text) = wrong {
        panic!("{text}");
    }
});

// Every other input is a fresh one: mutations of bytes seldom make an instruction.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 2 == 0 {
        let fresh = SOURCE.with_borrow_mut(Source::input);
        let length = fresh.len().min(max_size);
        data[..length].copy_from_slice(&fresh[..length]);
        length
    } else {
        fuzzer_mutate(data, size, max_size)
    }
});
