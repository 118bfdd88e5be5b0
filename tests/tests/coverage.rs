//! The coverage table: no encoding of the advertised set may be missing, and what the code gives is what the table says.
//! `LSTAR_BLESS=1` renews the table and the document made from it.

use std::path::Path;

use lstar_tests::coverage::{Interpretation, Table, document, measure, read, render};

#[test]
fn the_table_is_true_and_nothing_is_missing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (table_file, document_file) = (folder.join("coverage.tsv"), folder.join("../docs/instructions.md"));
    let now = measure().expect("a code generator");
    let missing: Vec<&String> =
        now.iter().filter(|(_, row)| row.interpreted == Interpretation::Missing).map(|(name, _)| name).collect();
    assert!(missing.is_empty(), "advertised, but not interpreted: {missing:?}");
    if std::env::var_os("LSTAR_BLESS").is_some() {
        std::fs::write(&table_file, render(&now)).expect("writable");
        std::fs::write(&document_file, document(&now)).expect("writable");
        return;
    }
    let before: Table = read(&std::fs::read_to_string(&table_file).expect("the table"));
    let worse: Vec<String> = before
        .iter()
        .filter_map(|(name, old)| match now.get(name) {
            None => Some(format!("{name}: gone")),
            Some(new) if new.is_worse_than(old) => Some(format!("{name}: {old:?}, now {new:?}")),
            Some(_) => None,
        })
        .collect();
    assert!(worse.is_empty(), "worse than the table says:\n{}", worse.join("\n"));
    let better: Vec<&String> =
        now.iter().filter(|(name, row)| before.get(*name) != Some(row)).map(|(name, _)| name).collect();
    assert!(better.is_empty(), "better than the table says (LSTAR_BLESS=1 renews it): {better:?}");
    assert!(
        document(&now) == std::fs::read_to_string(&document_file).expect("the document"),
        "docs/instructions.md is not what the table gives (LSTAR_BLESS=1 renews it)"
    );
}
