//! Malformed images with fixed seeds; `fuzz/targets/image.rs` goes on from there.

use lstar_tests::hostile::Random;
use lstar_tests::hostile::images::{Loader, mutate, originals};

#[test]
fn sections_of_malformed_images_are_refused_with_nts_statuses() {
    let mut loader = Loader::new().unwrap();
    let mut random = Random::new(0x2545_F491_4F6C_DD1D);
    let (mut refused, mut accepted) = (0, 0);
    for original in originals() {
        for _ in 0..2_000 {
            match loader.section(&mutate(&original, &mut random)) {
                Ok(true) => accepted += 1,
                Ok(false) => refused += 1,
                Err(text) => panic!("{text}"),
            }
        }
    }
    assert!(refused > 1_000 && accepted > 1_000, "{refused} refused, {accepted} accepted");
}

#[test]
fn malformed_programs_and_dlls_are_refused_or_run_to_an_end() {
    let mut loader = Loader::new().unwrap();
    let mut random = Random::new(0xA076_1D64_78BD_642F);
    let names = ["demo.exe", "windows/system32/ntdll.dll", "windows/system32/win32u.dll"];
    let (mut refused, mut ran) = (0, 0);
    for (name, original) in names.iter().zip(originals()) {
        for _ in 0..60 {
            match loader.run(name, &mutate(&original, &mut random)) {
                Ok(_) => ran += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 20 && ran > 20, "{refused} refused, {ran} ran");
}
