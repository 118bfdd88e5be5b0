//! The search for the instruction at which translated code parts from the interpreter.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, RflagsBits};
use lstar_arch::{CpuState, Rflags};
use lstar_interpreter::Interpreter;

use super::probe::Probe;
use super::scene::{Access, Ending, Landing, Scene};
use crate::machine::{Machine, MachineConfig, MachineError};

/// An instruction that both engines were given.
#[derive(Clone, Debug)]
pub struct Executed {
    /// Its address.
    pub ip: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its text.
    pub text: String,
}

/// Where the engines part.
#[derive(Clone, Debug)]
pub struct Found {
    /// What was executed from `before` on: the last one is the first that differs. Several when it differs only behind
    /// the others in one region.
    pub path: Vec<Executed>,
    /// Registers before the first one of the path.
    pub before: CpuState,
    /// What the interpreter makes of it.
    pub expected: Landing,
    /// What translated code makes of it.
    pub found: Landing,
    /// Status flags that mean nothing behind it.
    pub undefined: u64,
    /// Memory that the path reads or writes, as it was before: address and bytes.
    pub memory: Vec<(u64, Vec<u8>)>,
}

/// Result of a [`search`].
#[derive(Clone, Debug)]
pub enum Finding {
    /// The engines part here.
    Found(Box<Found>),
    /// Run again from here, translated code does the same as the interpreter: what differed depends on what came before.
    NotReproduced {
        /// Instructions that were tried one by one.
        tried: u64,
    },
}

/// Most instructions of a stretch that are kept in mind.
const MOST_STEPS: u64 = 20_000;

/// A moment of the interpreter's walk.
struct Moment<'a> {
    scene: Scene<'a>,
    /// The instruction that comes next.
    next: Executed,
    undefined: u64,
    /// What it touches.
    accesses: Vec<Access>,
}

/// Walks through `steps` instructions from where `machine` has stopped, and finds the first at which translated code, set
/// up as in `config`, does something else than the interpreter.
pub fn search(machine: &Machine, config: MachineConfig, steps: u64) -> Result<Finding, MachineError> {
    search_scene(Scene::of(machine), config, steps)
}

/// As [`search`], from a scene.
pub fn search_scene(start: Scene<'_>, config: MachineConfig, steps: u64) -> Result<Finding, MachineError> {
    let mut probe = Probe::new(config)?;
    let mut interpreter = Interpreter::new();
    let mut moments: Vec<Moment<'_>> = Vec::new();
    let mut scene = start;
    scene.memory.log = Some(Vec::new());
    // One by one.
    let mut last = Landing { cpu: scene.cpu.clone(), retired: 0, ending: Ending::Running, stores: Vec::new() };
    while last.retired < steps.min(MOST_STEPS) && last.ending == Ending::Running {
        let (next, undefined, alone) = describe(&mut scene);
        let before = scene.clone();
        last.ending = scene.step(&mut interpreter);
        last.retired += u64::from(last.ending == Ending::Running);
        last.cpu = scene.cpu.clone();
        let accesses = scene.memory.log.replace(Vec::new()).unwrap_or_default();
        moments.push(Moment { scene: before, next, undefined, accesses });
        if !alone {
            continue;
        }
        let index = moments.len() - 1;
        if let Some(found) = attempt(&mut probe, &mut moments, &mut scene, &last, index, 1, 1) {
            return Ok(Finding::Found(Box::new(found)));
        }
    }
    // In company: from as late a start as shows it, in as short a region as shows it.
    let count = moments.len();
    let limit = config.region_limit.max(1);
    let found = (0..count).rev().find_map(|start| {
        let steps = (count - start) as u64;
        attempt(&mut probe, &mut moments, &mut scene, &last, start, limit, steps).map(|found| (start, found))
    });
    let Some((start, found)) = found else { return Ok(Finding::NotReproduced { tried: last.retired }) };
    let shorter = (2..=count - start)
        .find_map(|length| attempt(&mut probe, &mut moments, &mut scene, &last, start, length, length as u64));
    Ok(Finding::Found(Box::new(shorter.unwrap_or(found))))
}

/// Gives `steps` instructions from moment `start` on to the probe, in regions of at most `limit` instructions. What it
/// found, if that differs from what the interpreter had at the same count: `end` with `last` behind the last moment.
fn attempt(
    probe: &mut Probe,
    moments: &mut [Moment<'_>],
    end: &mut Scene<'_>,
    last: &Landing,
    start: usize,
    limit: usize,
    steps: u64,
) -> Option<Found> {
    let count = moments.len();
    let mut found = probe.run(&mut moments[start].scene, limit, steps)?;
    let finish = start + usize::try_from(found.retired).ok()?;
    if finish > count {
        return None;
    }
    // An exception is compared with what the interpreter did with the same instruction: it raised none unless it is
    // the last one.
    let at_end = finish == count || finish + 1 == count && last.ending != Ending::Running;
    let mut expected = if at_end {
        found.stores = probe.differing_bytes(end);
        last.clone()
    } else {
        let moment = &mut moments[finish];
        found.stores = probe.differing_bytes(&mut moment.scene);
        let cpu = moment.scene.cpu.clone();
        Landing { cpu, retired: 0, ending: Ending::Running, stores: Vec::new() }
    };
    if at_end && last.ending != Ending::Running && finish == count - 1 && found.ending == Ending::Running {
        // It stopped just before the instruction that raises.
        return None;
    }
    expected.retired = found.retired;
    let finish = finish.max(start + 1).min(count);
    let undefined = moments[finish - 1].undefined;
    if expected.differences(&found, undefined).is_empty() {
        return None;
    }
    let path = moments[start..finish].iter().map(|moment| moment.next.clone()).collect();
    let accesses: Vec<Access> =
        moments[start..finish].iter().flat_map(|moment| moment.accesses.iter().copied()).collect();
    let memory = bytes_at(&mut moments[start].scene, &accesses);
    Some(Found { path, before: moments[start].scene.cpu.clone(), expected, found, undefined, memory })
}

/// The memory at these accesses, overlapping and adjacent ones together.
fn bytes_at(scene: &mut Scene<'_>, accesses: &[Access]) -> Vec<(u64, Vec<u8>)> {
    let mut sorted: Vec<Access> = accesses.iter().copied().filter(|access| access.size > 0).collect();
    sorted.sort_by_key(|access| access.address);
    let mut list: Vec<(u64, Vec<u8>)> = Vec::new();
    for Access { address, size } in sorted {
        for at in (0..size).map(|offset| address.wrapping_add(offset)) {
            let known = list.last().is_some_and(|(start, bytes)| at.wrapping_sub(*start) < bytes.len() as u64);
            let Some(byte) = scene.memory.byte(at).filter(|_| !known) else { continue };
            match list.last_mut() {
                Some((start, bytes)) if start.wrapping_add(bytes.len() as u64) == at => bytes.push(byte),
                _ => list.push((at, vec![byte])),
            }
        }
    }
    list
}

/// The next instruction, the flags it leaves undefined, and whether it can be tried alone: not if what it does depends
/// on more than the scene.
fn describe(scene: &mut Scene<'_>) -> (Executed, u64, bool) {
    use Mnemonic as M;
    let rip = scene.cpu.rip;
    let bytes = scene.next_bytes();
    let bitness = if scene.cpu.is_64bit() { 64 } else { 32 };
    let insn: Instruction = Decoder::with_ip(bitness, &bytes, rip, DecoderOptions::NONE).decode();
    let alone = !matches!(insn.mnemonic(), M::Rdtsc | M::Rdtscp | M::Rdmsr | M::Rdpmc | M::Vmcall | M::Int | M::Hlt);
    let length = if insn.is_invalid() { bytes.len() } else { insn.len() };
    let text = if insn.is_invalid() { "(bad)".to_owned() } else { insn.to_string() };
    let executed = Executed { ip: rip, bytes: bytes[..length].to_vec(), text };
    (executed, undefined(&insn), alone)
}

/// Status flags that the manual leaves undefined behind the instruction.
fn undefined(insn: &Instruction) -> u64 {
    let bits = insn.rflags_undefined();
    [
        (RflagsBits::OF, Rflags::OF),
        (RflagsBits::SF, Rflags::SF),
        (RflagsBits::ZF, Rflags::ZF),
        (RflagsBits::AF, Rflags::AF),
        (RflagsBits::CF, Rflags::CF),
        (RflagsBits::PF, Rflags::PF),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |all, (_, flag)| all | flag.bits())
}
