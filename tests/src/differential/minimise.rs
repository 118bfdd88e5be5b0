//! Makes a failing program and its state as small as it gets.

use super::program::Program;
use super::region_ends::{compare_at_region_ends, name_culprit};
use super::regression::{execute, source};
use super::{Ending, Engine, Outcome, State, Tolerance};

/// A disagreement between two engines.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// Names of the engine taken to be right and of the other one.
    pub engines: [&'static str; 2],
    /// The smallest program that shows it.
    pub program: Program,
    /// The smallest state.
    pub state: State,
    /// Differences and a regression case, to be shown to people.
    pub report: String,
}

/// Runs both engines afresh; the outcomes if they disagree.
fn disagree(
    engines: &mut [Box<dyn Engine>],
    [a, b]: [usize; 2],
    program: &Program,
    state: &State,
) -> Option<(Outcome, Outcome, Tolerance, u64)> {
    let assembled = program.assemble()?;
    let wrong = execute(&mut *engines[b], &assembled.code, state);
    if wrong.ending == Ending::Stuck && !engines[a].gives_up() {
        return None;
    }
    let right = execute(&mut *engines[a], &assembled.code, state);
    let undefined = program.undefined_at(&assembled, right.rip);
    let base = Tolerance::between(&*engines[a], &*engines[b]);
    let tolerance = base.without_flags(undefined);
    let excused = program.excuses(&assembled, &right) || program.excuses(&assembled, &wrong);
    if !tolerance.agree(&right, &wrong) {
        return (!excused).then_some((right, wrong, tolerance, undefined));
    }
    let memory = state.memory();
    let (_, differing) = compare_at_region_ends(engines, [a, b], program, &assembled, state, &memory);
    let (right, wrong) = differing?;
    let undefined = program.undefined_at(&assembled, right.rip);
    Some((right, wrong, base.without_flags(undefined), undefined))
}

/// Minimises a disagreement between engines `pair[0]` and `pair[1]`.
pub fn minimise(engines: &mut [Box<dyn Engine>], pair: [usize; 2], program: &Program, state: &State) -> Mismatch {
    let mut program = program.clone();
    let mut state = state.clone();
    drop_items(engines, pair, &mut program, &state);
    simplify(engines, pair, &program, &mut state);
    drop_items(engines, pair, &mut program, &state);
    let names = pair.map(|index| engines[index].name());
    let report = match disagree(engines, pair, &program, &state) {
        None => format!(
            "{} / {}: disagreed once, but not when run again: {:?}\n",
            names[0],
            names[1],
            program.instructions().map(|item| item.insn.to_string()).collect::<Vec<_>>()
        ),
        Some((right, wrong, tolerance, undefined)) => {
            let code = program.assemble().map(|assembled| assembled.code).unwrap_or_default();
            format!(
                "{} / {}:\n{}{}{}",
                names[0],
                names[1],
                name_culprit(engines, pair, &code, &state),
                tolerance.differences(&right, &wrong),
                source(&code, &state, undefined, &right, &wrong)
            )
        }
    };
    Mismatch { engines: names, program, state, report }
}

/// Takes out items, halves first, as long as the engines still disagree.
fn drop_items(engines: &mut [Box<dyn Engine>], pair: [usize; 2], program: &mut Program, state: &State) {
    let count = program.items.len();
    let mut chunk = count.max(1);
    while chunk > 0 {
        for start in (0..count).step_by(chunk) {
            let mut smaller = program.clone();
            let range = start..(start + chunk).min(count);
            if smaller.items[range.clone()].iter().all(Option::is_none) {
                continue;
            }
            smaller.items[range].fill(None);
            smaller.settle_flags();
            let sound = smaller.uses_undefined().is_none() && !loops_forever(&smaller);
            if sound && disagree(engines, pair, &smaller, state).is_some() {
                *program = smaller;
            }
        }
        chunk /= 2;
    }
}

/// Whether a backward branch has lost the instructions that count it down: the host processor would never come back.
fn loops_forever(program: &Program) -> bool {
    use iced_x86::Mnemonic;
    let mut counting = false;
    for (index, item) in program.items.iter().enumerate() {
        let Some(item) = item else { continue };
        if item.target.is_some_and(|target| target <= index) && !counting {
            return true;
        }
        counting = item.insn.mnemonic() == Mnemonic::Dec;
    }
    // The start of a count must be there as well, or it begins anywhere.
    let backward = |(index, item): (usize, &Option<super::program::Item>)| {
        item.as_ref().and_then(|item| item.target).filter(|target| *target <= index)
    };
    program.items.iter().enumerate().filter_map(backward).any(|top| top == 0 || program.items[top - 1].is_none())
}

/// Replaces parts of the state by the default's, as long as the engines still disagree.
fn simplify(engines: &mut [Box<dyn Engine>], pair: [usize; 2], program: &Program, state: &mut State) {
    let default = State::default();
    let mut attempt = |change: &dyn Fn(&mut State)| {
        let mut simpler = state.clone();
        change(&mut simpler);
        if simpler != *state && disagree(engines, pair, program, &simpler).is_some() {
            *state = simpler;
        }
    };
    attempt(&|state| state.image = 0);
    attempt(&|state| state.patches.clear());
    attempt(&|state| state.mxcsr = default.mxcsr);
    attempt(&|state| state.x87 = default.x87);
    attempt(&|state| state.x87.control = default.x87.control);
    attempt(&|state| state.x87.status = default.x87.status);
    attempt(&|state| state.x87.status &= 7 << 11);
    attempt(&|state| state.x87.valid = default.x87.valid);
    for index in 0..8 {
        attempt(&|state| state.x87.registers[index] = 0);
        attempt(&|state| state.x87.registers[index] = 0x3FFF_8000_0000_0000_0000);
    }
    attempt(&|state| state.rflags = default.rflags);
    attempt(&|state| state.ymm_high = default.ymm_high);
    attempt(&|state| state.xmm = default.xmm);
    for index in 0..16 {
        attempt(&|state| state.gpr[index] = 0);
        attempt(&|state| state.xmm[index] = 0);
        attempt(&|state| state.ymm_high[index] = 0);
        attempt(&|state| state.gpr[index] &= 0xFFFF_FFFF);
        attempt(&|state| state.gpr[index] &= 0xFF);
        attempt(&|state| state.xmm[index] &= u128::from(u64::MAX));
        attempt(&|state| state.xmm[index] &= u128::from(u32::MAX));
    }
    for bit in [0x1, 0x4, 0x10, 0x40, 0x80, 0x400, 0x800] {
        attempt(&|state| state.rflags &= !bit);
    }
    for index in (0..8).rev() {
        attempt(&|state| {
            if index < state.patches.len() {
                state.patches.remove(index);
            }
        });
    }
}
