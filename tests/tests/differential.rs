//! A short campaign: seeded, so that it is the same every time. The `campaign` command does the long ones.

use lstar_tests::differential::campaign::{EngineKind, Settings, all_engines, make_engine, run};
use lstar_tests::differential::catalog;

fn compare(settings: &Settings) {
    let mut engines = all_engines().expect("engines");
    let report = run(&mut engines, settings, &mut |_| {});
    let reports: Vec<_> = report.mismatches.iter().map(|mismatch| mismatch.report.as_str()).collect();
    assert!(reports.is_empty(), "seed {}: {} mismatches\n{}", settings.seed, reports.len(), reports.join("\n"));
    // A backward branch whose condition nothing in its loop changes; all engines give up on it.
    assert!(report.endless_runs * 1000 < report.runs, "{} of {} runs do not end", report.endless_runs, report.runs);
    assert!(report.cases >= settings.cases, "only {} cases", report.cases);
}

/// Every encoding, a few states each, and longer programs between.
#[test]
fn engines_agree() {
    compare(&Settings { seed: 2026, cases: 500_000, states: [32, 32], ..Settings::default() });
}

/// Each point of translated code that can fault leaves the exact state: with long programs, and states enough for all their
/// points.
#[test]
fn every_fault_site_restores_the_state() {
    let mut engines = [EngineKind::Interpreter, EngineKind::Faulting]
        .map(|kind| make_engine(kind).expect("engine"))
        .into_iter()
        .collect::<Vec<_>>();
    let settings = Settings { seed: 11, cases: 150_000, states: [4, 128], ..Settings::default() };
    let report = run(&mut engines, &settings, &mut |_| {});
    let reports: Vec<_> = report.mismatches.iter().map(|mismatch| mismatch.report.as_str()).collect();
    assert!(reports.is_empty(), "{} mismatches\n{}", reports.len(), reports.join("\n"));
}

/// What a campaign runs is decided by its seed.
#[test]
fn campaigns_are_reproducible() {
    let settings = Settings { seed: 7, cases: 3_000, states: [8, 8], ..Settings::default() };
    let mut reports = [(); 2].map(|()| {
        let kind = lstar_tests::differential::campaign::EngineKind::Interpreter;
        let mut engines = vec![lstar_tests::differential::campaign::make_engine(kind).expect("interpreter")];
        let report = run(&mut engines, &settings, &mut |_| {});
        (report.cases, report.runs, report.exceptions, format!("{:?}", report.coverage.keys()))
    });
    let [first, second] = &mut reports;
    assert_eq!(first, second);
}

/// Each encoding of the tested instruction sets is either tested or excluded for a reason.
#[test]
fn exclusions_have_reasons() {
    let tested = catalog::encodings();
    assert!(tested.len() > 500, "{} encodings", tested.len());
    for (code, reason) in catalog::excluded() {
        assert!(!tested.contains(&code) && !reason.is_empty(), "{code:?}");
    }
}

/// A translator that mistakes one instruction is caught at region ends or at the end, and the instruction is named.
#[test]
fn a_planted_bug_is_named() {
    use lstar_runtime::MachineConfig;
    use lstar_tests::differential::Engine;
    use lstar_tests::differential::campaign::{EngineKind, make_engine};
    use lstar_tests::differential::translated::Translated;
    /// BSWAP swaps another register.
    fn mistake(_: u64, bytes: &mut [u8], _: usize) {
        use iced_x86::{Decoder, DecoderOptions, Mnemonic};
        let copy = bytes.to_vec();
        let mut at = 0;
        for insn in &mut Decoder::new(64, &copy, DecoderOptions::NONE) {
            if insn.mnemonic() == Mnemonic::Bswap && insn.len() >= 2 {
                bytes[at + insn.len() - 1] ^= 1;
            }
            at += insn.len();
        }
    }
    let config = MachineConfig { mistranslate: Some(mistake), ..Translated::config() };
    let wrong = Translated::new(config).expect("a machine");
    let mut engines: Vec<Box<dyn Engine>> =
        vec![make_engine(EngineKind::Interpreter).expect("interpreter"), Box::new(wrong)];
    let settings = Settings { seed: 5, cases: 400_000, states: [2, 8], mismatches: 1, ..Settings::default() };
    let report = run(&mut engines, &settings, &mut |_| {});
    let mismatch = report.mismatches.first().expect("the bug is found");
    let text = &mismatch.report;
    assert!(text.contains("first differing instruction: ") && text.contains(": bswap "), "{text}");
    assert!(text.contains("Case {"), "{text}");
    assert_eq!(mismatch.program.instructions().count(), 1, "{text}");
}
