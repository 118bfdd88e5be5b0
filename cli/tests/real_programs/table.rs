//! `docs/programs.md`: which programs do what they do natively.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::jobs::Job;
use crate::{Outcome, repository};

const HEAD: &str = "# Programs

Unmodified Windows x64 programs, as their makers publish them, and jobs that give the exit status and the output of
native Wine 10 byte for byte (timings aside). This table is written by the test that runs them: see
`cli/tests/real_programs`. A job is not tried on the interpreter when it has several threads or would take minutes.

| program | version | built with | job | status | translator | interpreter |
|---|---|---|---|---|---|---|
";

/// The whole document.
pub fn render(outcomes: &[(&Job, Outcome, Outcome)]) -> String {
    let listing = std::fs::read_to_string(repository("tests/programs/programs.tsv")).expect("programs.tsv");
    // Columns: name, registry, package, version, hash, executable, folder, built with.
    let facts: BTreeMap<&str, (&str, &str)> = listing
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            Some((*columns.first()?, (*columns.get(3)?, *columns.get(7)?)))
        })
        .collect();
    let mut text = HEAD.to_owned();
    for (job, translator, interpreter) in outcomes {
        let name = job.program.split('/').next().unwrap_or_default().trim_end_matches(".exe");
        let (version, built_with) = facts.get(name).copied().unwrap_or(("", "mingw-w64"));
        let show = |outcome: &Outcome| match outcome {
            Outcome::Native => "as native",
            Outcome::Differs => "**differs**",
            Outcome::NotTried => "",
        };
        let (status, arguments) = (job.status, job.arguments.join(" ").replace('|', "\\|"));
        let input = job.input.map(|name| format!(" < {name}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "| {name} | {version} | {built_with} | `{name} {arguments}{input}` | {status} | {} | {} |",
            show(translator),
            show(interpreter)
        );
    }
    text
}
