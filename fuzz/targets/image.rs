//! A PE file's bytes for the loader: refused with one of NT's statuses, or run to some end within the sandbox.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use lstar_tests::hostile::Random;
use lstar_tests::hostile::images::{Loader, mutate, originals};

thread_local! {
    static LOADER: RefCell<Loader> = RefCell::new(Loader::new().expect("a folder"));
    static ORIGINALS: [Vec<u8>; 3] = originals();
}

fuzz_target!(|input: &[u8]| {
    LOADER.with_borrow_mut(|loader| {
        if loader.section(input).expect("one of NT's refusals") {
            loader.run("demo.exe", input).ok();
        }
    });
});

// Half of the inputs descend from real images, whose bytes a fuzzer would not find.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 2 == 0 {
        let mut random = Random::new(u64::from(seed) << 1 | 1);
        let fresh = ORIGINALS.with(|originals| mutate(&originals[seed as usize / 2 % 3], &mut random));
        let length = fresh.len().min(max_size);
        data[..length].copy_from_slice(&fresh[..length]);
        length
    } else {
        fuzzer_mutate(data, size, max_size)
    }
});
