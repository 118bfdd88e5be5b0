//! Two engines side by side, compared on the way through a program.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::rc::Rc;

use lstar_runtime::Protection;
use lstar_runtime::bisect::{Finding, PAGE, Page, Scene, search_scene};

use super::program::{Assembled, Program};
use super::{BUDGET, CODE, DATA, EXIT, Engine, Memory, Outcome, READ_ONLY, STACK, State, Tolerance, read_only_page};

/// The first two engines that can be stopped on the way, the exact one first.
#[must_use]
pub fn stepping_pair(engines: &mut [Box<dyn Engine>]) -> Option<[usize; 2]> {
    let mut exact = None;
    let mut translated = None;
    for (index, engine) in engines.iter_mut().enumerate() {
        if let Some(stepping) = engine.stepping() {
            let kind = if stepping.machine().is_some() { &mut translated } else { &mut exact };
            kind.get_or_insert(index);
        }
    }
    Some([exact?, translated?])
}

/// Runs both engines, which have loaded the program, up to counts on its way, where translated code is left at the end of
/// a region or a round of a loop. At how many they agreed, and what they had at the first where they did not.
pub fn compare_at_region_ends(
    engines: &mut [Box<dyn Engine>],
    [exact, translated]: [usize; 2],
    program: &Program,
    assembled: &Assembled,
    state: &State,
    memory: &Memory,
) -> (u64, Option<(Outcome, Outcome)>) {
    let base = Tolerance::between(&*engines[exact], &*engines[translated]);
    let mut outcomes = [Outcome::default(), Outcome::default()];
    let Some(engine) = engines[exact].stepping() else { return (0, None) };
    engine.start(state, memory);
    let length = engine.advance(BUDGET, &mut outcomes[0]);
    let mut stops = 0;
    for stop in 1..=STOPS.min(length) {
        let count = length * stop / STOPS.min(length);
        for (index, outcome) in [exact, translated].into_iter().zip(&mut outcomes) {
            let Some(engine) = engines[index].stepping() else { return (stops, None) };
            engine.start(state, memory);
            engine.advance(count, outcome);
        }
        let [right, wrong] = &outcomes;
        let undefined = program.undefined_at(assembled, right.rip);
        let excused = program.excuses(assembled, right) || program.excuses(assembled, wrong);
        if !excused && !base.without_flags(undefined).agree(right, wrong) {
            let [right, wrong] = outcomes;
            return (stops, Some((right, wrong)));
        }
        stops += 1;
    }
    (stops, None)
}

/// Most stops in one run.
const STOPS: u64 = 24;

/// Says which instruction is to blame for a disagreement between interpreter and translator.
#[must_use]
pub fn name_culprit(engines: &mut [Box<dyn Engine>], pair: [usize; 2], code: &[u8], state: &State) -> String {
    let mut text = String::new();
    let mut config = None;
    let mut cpu = None;
    for index in pair {
        if let Some(stepping) = engines[index].stepping() {
            config = config.or(stepping.machine());
            cpu = cpu.or(stepping.registers(state));
        }
    }
    let (Some(config), Some(cpu)) = (config, cpu) else { return text };
    let pages = pages(code, &state.memory());
    if let Ok(Finding::Found(found)) = search_scene(Scene::new(cpu, &pages), config, BUDGET)
        && let Some(last) = found.path.last()
    {
        let _ = writeln!(text, "    first differing instruction: {:#x}: {}", last.ip, last.text);
        if found.path.len() > 1 {
            let _ = writeln!(text, "    (only in one region with the {} before it)", found.path.len() - 1);
        }
    }
    text
}

/// The memory of a program.
fn pages(code: &[u8], memory: &Memory) -> HashMap<u64, Page> {
    let mut pages = HashMap::new();
    let mut program = code.to_vec();
    program.resize(PAGE, 0xCC);
    for (start, bytes, protection) in [
        (CODE, &program[..], Protection::RX),
        (EXIT, &[0xCC; PAGE][..], Protection::RX),
        (DATA, &memory.data[..], Protection::RW),
        (READ_ONLY, &read_only_page()[..], Protection::READ),
        (STACK, &memory.stack[..], Protection::RW),
    ] {
        for (address, chunk) in (start..).step_by(PAGE).zip(bytes.chunks(PAGE)) {
            let mut page = [0; PAGE];
            page[..chunk.len()].copy_from_slice(chunk);
            pages.insert(address, Page { bytes: Rc::new(page), protection });
        }
    }
    pages
}
