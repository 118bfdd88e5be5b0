//! `lstar diff` with a translator that has a bug planted.

use std::sync::{Mutex, PoisonError};

use lstar_cli::diff::{Comparison, compare, same_host, side_by_side};
use lstar_cli::run::boot_demonstration;
use lstar_runtime::{Engine, MachineConfig};

/// ROL RDX, 5 of the demonstration's loop, and with the wrong count.
const ROL: [[u8; 4]; 2] = [[0x48, 0xC1, 0xC2, 0x05], [0x48, 0xC1, 0xC2, 0x06]];
/// MOV [R8+R9*8], R10 of the same loop, and with R11.
const STORE: [[u8; 4]; 2] = [[0x4F, 0x89, 0x14, 0xC8], [0x4F, 0x89, 0x1C, 0xC8]];

/// Replaces `right` by `wrong`.
fn replace([right, wrong]: [[u8; 4]; 2], bytes: &mut [u8]) {
    if let Some(at) = bytes.windows(4).position(|bytes| bytes == right) {
        bytes[at..at + 4].copy_from_slice(&wrong);
    }
}

fn wrong_rotation(_: u64, bytes: &mut [u8], _: usize) {
    replace(ROL, bytes);
}

fn wrong_store(_: u64, bytes: &mut [u8], _: usize) {
    replace(STORE, bytes);
}

/// Wrong only in regions of three instructions or more.
fn wrong_in_company(_: u64, bytes: &mut [u8], region_limit: usize) {
    if region_limit > 2 {
        replace(ROL, bytes);
    }
}

type Method = fn(&lstar_cli::diff::Boot<'_>, Option<std::time::Duration>) -> anyhow::Result<Comparison>;

/// Machines reserve so much address space that tests must take turns.
static TURNS: Mutex<()> = Mutex::new(());

fn run(method: Method, mistranslate: Option<fn(u64, &mut [u8], usize)>) -> Comparison {
    let boot = move |engine: Engine| {
        let (host, output) = same_host();
        // The loop is found at once, and the runs stay short until they part.
        let config = MachineConfig { engine, mistranslate, hot_threshold: 20, ..MachineConfig::default() };
        let (system, folder) = boot_demonstration(config, host)?;
        Ok((system, Some(folder), output))
    };
    let _turn = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    method(&boot, None).expect("a comparison")
}

#[test]
fn a_wrong_instruction_is_named_with_a_case() {
    let comparison = run(compare, Some(wrong_rotation));
    assert!(!comparison.same);
    let text = comparison.text;
    assert!(text.contains("first differing instruction: "), "{text}");
    assert!(text.contains("(demo.exe+0x") && text.contains("): rol rdx,5"), "{text}");
    assert!(text.contains("rdx: 0x") && text.contains("ImageCase {"), "{text}");
    assert!(text.contains("0x48, 0xC1, 0xC2, 0x05, // rol rdx,5"), "{text}");
    assert_eq!(comparison.json["first_difference"]["behind"], 0);
}

#[test]
fn a_wrong_store_is_found_by_the_memory_it_leaves() {
    let text = run(compare, Some(wrong_store)).text;
    assert!(text.contains("): mov [r8+r9*8],r10"), "{text}");
    assert!(text.contains("Expect::Byte(0x"), "{text}");
}

#[test]
fn what_is_wrong_in_company_only_is_shown_with_its_company() {
    let text = run(compare, Some(wrong_in_company)).text;
    assert!(text.contains("  rol rdx,5"), "{text}");
    assert!(text.contains("only in one region with what leads to it"), "{text}");
}

#[test]
fn stops_on_the_way_show_the_same() {
    let often: Method = |boot, timeout| side_by_side(boot, timeout, 1000);
    let text = run(often, Some(wrong_rotation)).text;
    assert!(text.contains("): rol rdx,5"), "{text}");
}
