//! Coverage as data: every encoding of the advertised instruction sets, and what each engine makes of it.
//!
//! The list of encodings is iced-x86's; what the interpreter does is found out by executing each, what the translator does
//! by lifting it, and what is compared with the host processor comes from [`catalog`]. The table is kept in
//! `tests/coverage.tsv`, a summary for people in `docs/instructions.md`; a test fails when either is not what the code
//! gives.

mod example;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use iced_x86::{Code, EncodingKind};
use lstar_translator::abi::Mode;
use lstar_translator::coverage::Lowering;
use lstar_translator::{HostTarget, Translator, TranslatorConfig, TranslatorError};

use crate::differential::generate::transfers;
use crate::differential::interpreted::Interpreted;
use crate::differential::program::leave;
use crate::differential::{CODE, DATA, Ending, Engine as _, MODEL, Memory, Outcome, STACK, State, catalog};

pub use example::examples;

/// What the interpreter makes of an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interpretation {
    /// There is no implementation.
    Missing,
    /// It raises #UD, as the processor must: the model does not offer it.
    Undefined,
    /// It executes it, or raises another exception that the manual asks for.
    Executed,
}

/// How an encoding is compared with the host processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Comparison {
    /// Not at all; [`catalog::excluded`] says why.
    None,
    /// By the campaign on all engines, alone or as a part of programs.
    Campaign,
}

/// What is known about one encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What the interpreter makes of it.
    pub interpreted: Interpretation,
    /// How translated code carries it out: the worst of its forms.
    pub lowering: Lowering,
    /// How it is compared with the host processor.
    pub comparison: Comparison,
}

impl Row {
    /// Whether this row claims less than `other` in some column.
    #[must_use]
    pub fn is_worse_than(&self, other: &Self) -> bool {
        self.interpreted < other.interpreted || self.lowering > other.lowering || self.comparison < other.comparison
    }

    fn columns(&self) -> [&'static str; 3] {
        [
            match self.interpreted {
                Interpretation::Missing => "no",
                Interpretation::Undefined => "#UD",
                Interpretation::Executed => "yes",
            },
            match self.lowering {
                Lowering::Inline => "inline",
                Lowering::Helper => "helper",
                Lowering::Fallback => "interpreter",
            },
            match self.comparison {
                Comparison::None => "no",
                Comparison::Campaign => "campaign",
            },
        ]
    }

    fn parse([interpreted, lowering, comparison]: [&str; 3]) -> Option<Self> {
        Some(Self {
            interpreted: match interpreted {
                "no" => Interpretation::Missing,
                "#UD" => Interpretation::Undefined,
                "yes" => Interpretation::Executed,
                _ => return None,
            },
            lowering: match lowering {
                "inline" => Lowering::Inline,
                "helper" => Lowering::Helper,
                "interpreter" => Lowering::Fallback,
                _ => return None,
            },
            comparison: match comparison {
                "no" => Comparison::None,
                "campaign" => Comparison::Campaign,
                _ => return None,
            },
        })
    }
}

/// The table: encoding by name.
pub type Table = BTreeMap<String, Row>;

/// Every encoding of 64-bit mode that belongs to what [`MODEL`] advertises. Not those that only AMD's decoders know: near
/// branches with an operand-size prefix are decoded as Intel's processors do.
pub fn advertised() -> impl Iterator<Item = Code> {
    Code::values().filter(|code| {
        let info = code.op_code();
        info.mode64()
            && info.is_instruction()
            && info.intel_decoder64()
            && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
            && code.cpuid_features().iter().all(|feature| catalog::is_advertised(*feature))
    })
}

/// Works out the table from the engines as they are.
///
/// # Errors
/// This host has no code generator.
pub fn measure() -> Result<Table, TranslatorError> {
    let tested: BTreeSet<Code> = catalog::encodings().into_iter().chain(transfers()).collect();
    let config = TranslatorConfig { features: MODEL.features, host: HostTarget::Fixed, ..TranslatorConfig::default() };
    let mut translator = Translator::new(config)?;
    let mut interpreter = Interpreted::default();
    let mut table = Table::new();
    for code in advertised() {
        let forms = examples(code);
        let mode = if code.op_code().must_be_cpl0() { Mode::Kernel } else { Mode::User };
        let mut row = Row {
            interpreted: if forms.is_empty() { Interpretation::Missing } else { Interpretation::Executed },
            lowering: if forms.is_empty() { Lowering::Fallback } else { Lowering::Inline },
            comparison: if tested.contains(&code) { Comparison::Campaign } else { Comparison::None },
        };
        for bytes in &forms {
            row.interpreted = row.interpreted.min(interpretation(&mut interpreter, bytes));
            row.lowering = row.lowering.max(translator.lowering(bytes, mode)?);
        }
        table.insert(format!("{code:?}"), row);
    }
    Ok(table)
}

/// Executes the instruction once.
fn interpretation(interpreter: &mut Interpreted, bytes: &[u8]) -> Interpretation {
    const UNDEFINED: u8 = 6;
    let mut state = State { gpr: [DATA + 0x800; 16], ..State::default() };
    // A count, an XSAVE mask; a stack.
    (state.gpr[1], state.gpr[2], state.gpr[4]) = (1, 0, STACK + 0x800);
    let mut outcome = Outcome::default();
    interpreter.load(&[bytes, &leave()].concat());
    interpreter.run(&state, &Memory::zeroed(), &mut outcome);
    if !interpreter.take_unimplemented().is_empty() {
        return Interpretation::Missing;
    }
    match outcome.ending {
        Ending::Exception { vector: UNDEFINED, .. } if outcome.rip == CODE => Interpretation::Undefined,
        _ => Interpretation::Executed,
    }
}

/// The table as tab-separated text.
#[must_use]
pub fn render(table: &Table) -> String {
    let mut text = String::from("encoding\tinterpreter\ttranslator\tcompared with the host\n");
    for (name, row) in table {
        let _ = writeln!(text, "{name}\t{}", row.columns().join("\t"));
    }
    text
}

/// Reads what [`render`] wrote; lines that mean nothing are left out.
#[must_use]
pub fn read(text: &str) -> Table {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let mut columns = line.split('\t');
            let name = columns.next()?;
            let row = Row::parse([columns.next()?, columns.next()?, columns.next()?])?;
            Some((name.to_owned(), row))
        })
        .collect()
}

/// Names as lines of text.
fn list(names: &BTreeSet<String>) -> String {
    let mut text = String::new();
    let mut column = 0;
    for (index, name) in names.iter().enumerate() {
        let last = index + 1 == names.len();
        if column + name.len() > 118 {
            text.push('\n');
            column = 0;
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(name);
        text.push_str(if last { "" } else { "," });
        column += name.len() + 1;
    }
    if text.is_empty() { "None.".to_owned() } else { text }
}

/// The table for people: totals by instruction set, then what is not inline or not compared.
#[must_use]
pub fn document(table: &Table) -> String {
    let mut sets: BTreeMap<String, [usize; 6]> = BTreeMap::new();
    let mut lists: [BTreeSet<String>; 4] = Default::default();
    for code in advertised() {
        let name = format!("{code:?}");
        let Some(row) = table.get(&name) else { continue };
        let features: Vec<String> = code.cpuid_features().iter().map(|feature| format!("{feature:?}")).collect();
        let counts = sets.entry(features.join(" and ")).or_default();
        let facts = [
            true,
            row.interpreted != Interpretation::Missing,
            row.lowering == Lowering::Inline,
            row.lowering == Lowering::Helper,
            row.lowering == Lowering::Fallback,
            row.comparison == Comparison::Campaign,
        ];
        for (count, fact) in counts.iter_mut().zip(facts) {
            *count += usize::from(fact);
        }
        for (list, belongs) in lists.iter_mut().zip([
            row.interpreted == Interpretation::Missing,
            row.interpreted == Interpretation::Undefined,
            row.lowering == Lowering::Fallback,
            row.lowering == Lowering::Helper,
        ]) {
            if belongs {
                list.insert(name.clone());
            }
        }
    }
    let mut text = String::from(
        "# Instruction coverage\n\n\
         Written by `LSTAR_BLESS=1 cargo test --release -p lstar_tests --test coverage`; a test holds it to what the code\n\
         does. Counts are encodings of 64-bit mode as iced-x86 lists them; `tests/coverage.tsv` has a line for each. A *helper*\n\
         is a function or a stub of one host instruction, called by translated code; *interpreter* means that translated code\n\
         calls the interpreter for that one instruction, or leaves to it. *Compared*: the campaign executes the encoding on the\n\
         host processor and on all engines. Where forms of an encoding differ, the worst counts.\n\n\
         | instruction set | encodings | interpreted | inline | helper | interpreter | compared |\n\
         |---|---:|---:|---:|---:|---:|---:|\n",
    );
    let mut total = [0; 6];
    for (set, counts) in &sets {
        for (sum, count) in total.iter_mut().zip(counts) {
            *sum += count;
        }
        let _ = writeln!(text, "| {set} | {} |", counts.map(|count| count.to_string()).join(" | "));
    }
    let _ = writeln!(text, "| **all** | {} |", total.map(|count| count.to_string()).join(" | "));
    let titles = [
        "Not interpreted",
        "Undefined: these raise #UD, as on a processor that does not offer them",
        "Translated as a call of the interpreter",
        "Translated with a helper",
    ];
    for (title, names) in titles.into_iter().zip(&lists) {
        let _ = writeln!(text, "\n## {title}\n\n{}", list(names));
    }
    text.push_str("\n## Not compared with the host by the campaign\n");
    let mut reasons: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let in_programs: BTreeSet<Code> = transfers().collect();
    let compared = |code: &Code| in_programs.contains(code);
    for (code, reason) in
        advertised().filter(|code| !compared(code)).filter_map(|code| Some((code, catalog::reason(code)?)))
    {
        reasons.entry(reason).or_default().insert(format!("{code:?}"));
    }
    for (reason, names) in reasons {
        let _ = writeln!(text, "\n{}:\n{}", capitalised(reason), list(&names));
    }
    text
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}
