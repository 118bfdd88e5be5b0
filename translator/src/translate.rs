//! The translator: from an entry address to a compiled region.

use std::sync::Arc;
use std::time::Instant;

use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{ExternalName, Function};
use cranelift_codegen::isa::{self, TargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{CodegenResult, CompiledCode, Context, FinalizedRelocTarget};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use rustc_hash::FxHashSet;

use crate::abi::{Mode, PROBES, Slot};
use crate::config::{CallMode, HostTarget, OptLevel, PreciseState, TranslatorConfig, TranslatorError, TranslatorStats};
use crate::discover::{BasicBlock, Region, count_instructions, discover, read_ahead};
use crate::emit::{EmitOptions, Emitted, Emitter, INSTRUCTIONS, SiteRecord, TRAP_CODES, region_signature};
use crate::flow::Limits;
use crate::host_op::HostFeatures;
use crate::liveness::analyse;
use crate::locate::{self, Located};
use crate::reader::Snapshot;
use crate::statemap::StateMap;
use crate::{CodeSource, CompiledRegion, Probe, Site};

/// Most instructions of a region behind which the register allocator's buffers are kept. It clears a set for every register it tries
/// for a value, which takes time by the most that the set has ever held: a large region would slow down all behind it.
const MOST_WITH_KEPT_BUFFERS: u32 = 250;

/// Translates regions, one at a time. Keeps Cranelift's buffers between regions; use one per thread.
pub struct Translator {
    config: TranslatorConfig,
    isa: Arc<dyn TargetIsa>,
    host: HostFeatures,
    context: Context,
    builder: FunctionBuilderContext,
    allocator: regalloc2::Ctx,
    stats: TranslatorStats,
    /// Probes given away so far.
    probes: u32,
}

/// An x86-64-v3 processor.
fn fixed_host() -> Result<isa::Builder, String> {
    let mut builder = isa::lookup_by_name("x86_64").map_err(|error| error.to_string())?;
    for feature in [
        "has_sse3",
        "has_ssse3",
        "has_sse41",
        "has_sse42",
        "has_popcnt",
        "has_avx",
        "has_avx2",
        "has_bmi1",
        "has_bmi2",
        "has_lzcnt",
        "has_fma",
    ] {
        builder.enable(feature).map_err(|error| format!("{feature}: {error}"))?;
    }
    Ok(builder)
}

fn build_isa(config: &TranslatorConfig) -> Result<Arc<dyn TargetIsa>, TranslatorError> {
    let mut flags = settings::builder();
    let opt_level = match config.opt_level {
        OptLevel::None => "none",
        OptLevel::Speed => "speed",
    };
    let verifier = if config.verifier { "true" } else { "false" };
    for (name, value) in [
        ("opt_level", opt_level),
        ("enable_verifier", verifier),
        ("enable_pinned_reg", "true"),
        ("preserve_frame_pointers", "true"),
        ("unwind_info", "false"),
        ("enable_probestack", "false"),
        ("enable_alias_analysis", "true"),
    ] {
        flags.set(name, value).map_err(|error| TranslatorError::Settings(format!("{name}: {error}")))?;
    }
    let builder = match config.host {
        HostTarget::Detected => {
            cranelift_native::builder().map_err(|message| TranslatorError::Host(message.to_owned()))?
        }
        HostTarget::Fixed => fixed_host().map_err(TranslatorError::Settings)?,
    };
    builder.finish(settings::Flags::new(flags)).map_err(|error| TranslatorError::Settings(error.to_string()))
}

impl Translator {
    /// Sets up code generation for this host.
    pub fn new(config: TranslatorConfig) -> Result<Self, TranslatorError> {
        Ok(Self {
            config,
            isa: build_isa(&config)?,
            host: match config.host {
                HostTarget::Detected => HostFeatures::detect(),
                HostTarget::Fixed => HostFeatures::ALL,
            },
            context: Context::new(),
            builder: FunctionBuilderContext::new(),
            allocator: regalloc2::Ctx::default(),
            stats: TranslatorStats::default(),
            probes: 0,
        })
    }

    /// Everything besides guest code that shapes the code of a translator with these settings on this host.
    pub fn fingerprint(config: &TranslatorConfig) -> Result<String, TranslatorError> {
        let isa = build_isa(config)?;
        let host: String = isa.isa_flags().iter().map(|flag| format!(" {flag}")).collect();
        let operations = HostFeatures::detect();
        Ok(format!("{} {}{host} {operations:?} {config:?}", isa.triple(), isa.flags()))
    }

    /// The settings.
    #[must_use]
    pub const fn config(&self) -> &TranslatorConfig {
        &self.config
    }

    /// Changes the most guest instructions of regions to come.
    pub fn set_max_instructions(&mut self, limit: usize) {
        self.config.max_instructions = limit;
    }

    /// What has been done so far.
    #[must_use]
    pub const fn stats(&self) -> &TranslatorStats {
        &self.stats
    }

    /// Reads the code of the region at `entry` and around it, so that it can be translated elsewhere.
    pub fn read_ahead(config: &TranslatorConfig, entry: u64, mode: Mode, code: &mut dyn CodeSource) -> Snapshot {
        read_ahead(entry, mode, code, &Self::limits(config, mode, &FxHashSet::default()))
    }

    fn limits<'a>(config: &TranslatorConfig, mode: Mode, declined: &'a FxHashSet<u64>) -> Limits<'a> {
        Limits {
            max_instructions: config.max_instructions.max(1),
            host_calls: mode.is_user() && config.calls == CallMode::Host,
            features: config.features,
            known_targets: config.known_targets,
            executed_only: config.executed_only,
            look_ahead: config.look_ahead,
            inline_leaves: config.inline_leaves,
            inline_system_calls: config.inline_system_calls,
            declined,
        }
    }

    /// Translates the region at `entry`. Code that cannot be fetched or decoded becomes a jump to the interpreter.
    pub fn translate(
        &mut self,
        entry: u64,
        mode: Mode,
        code: &mut dyn CodeSource,
    ) -> Result<CompiledRegion, TranslatorError> {
        let started = Instant::now();
        let (region, emitted) = self.build(entry, mode, code);
        let probes = self.take_probes(&region)?;
        let lifted = Instant::now();
        let Located { compiled, sites, map, stores, rounds } = self
            .compile(&emitted)
            .map_err(|error| TranslatorError::Compile { entry, message: format!("{error:?}") })?;
        let (bytes, links_offset) = place_links(&compiled, &self.context.func, &emitted)
            .map_err(|message| TranslatorError::Compile { entry, message })?;
        let instructions = region.blocks.iter().map(|block| count_instructions(&block.insns)).sum();
        if instructions > MOST_WITH_KEPT_BUFFERS {
            self.allocator = regalloc2::Ctx::default();
        }
        self.stats.regions += 1;
        self.stats.guest_instructions += u64::from(instructions);
        self.stats.host_bytes += bytes.len() as u64;
        self.stats.sites += sites.len() as u64;
        self.stats.stored += u64::from(stores);
        self.stats.rounds += u64::from(rounds);
        self.stats.front_end += lifted - started;
        self.stats.back_end += lifted.elapsed();
        Ok(CompiledRegion {
            entry,
            mode,
            code: bytes,
            links_offset,
            links: emitted.links,
            sites,
            map,
            blocks: region.blocks.len() as u32,
            ranges: region.ranges,
            instructions,
            fallbacks: emitted.fallbacks.into_iter().collect(),
            host_operations: emitted.host_operations,
            helpers: emitted.helpers,
            probes,
        })
    }

    /// Gives the blocks of a region just built their probes.
    fn take_probes(&mut self, region: &Region) -> Result<Vec<Probe>, TranslatorError> {
        if !self.config.coverage {
            return Ok(Vec::new());
        }
        let first = self.probes;
        if region.blocks.len() > (PROBES - first) as usize {
            let message = "no probes are left for its blocks".to_owned();
            return Err(TranslatorError::Compile { entry: region.entry, message });
        }
        self.probes += region.blocks.len() as u32;
        let probe = |(number, block): (u32, &BasicBlock)| {
            let end = block.insns.last().map_or(block.start, |last| last.raw.next_ip());
            Probe { start: block.start, size: end.wrapping_sub(block.start) as u32, number }
        };
        Ok((first..).zip(&region.blocks).map(probe).collect())
    }

    /// Compiles the function in `self.context`.
    ///
    /// This is `Context::compile` with a step in between: instructions that the optimiser made have no source location,
    /// and one that an access is fused into must have one. They get that of a neighbour in their block.
    fn compile(&mut self, emitted: &Emitted) -> CodegenResult<Located> {
        let control = &mut ControlPlane::default();
        let isa = &*self.isa;
        self.context.optimize(isa, control)?;
        let func = &mut self.context.func;
        let mut found = Vec::new();
        for block in func.layout.blocks() {
            let first =
                func.layout.block_insts(block).map(|inst| func.srcloc(inst)).find(|location| !location.is_default());
            let mut last = first.unwrap_or_default();
            for inst in func.layout.block_insts(block) {
                let location = func.srcloc(inst);
                if location.is_default() {
                    found.push((inst, last));
                } else {
                    last = location;
                }
            }
        }
        for (inst, location) in found {
            func.set_srcloc(inst, location);
        }
        if let Some(regions) = emitted.carrier_regions {
            let sites = locate::Sites {
                records: &emitted.sites,
                carriers: &emitted.carriers,
                carrier_region: regions.carriers,
                state_region: regions.state,
            };
            return locate::compile(func, isa, &mut self.allocator, &sites);
        }
        let stencil = isa.compile_function(func, &self.context.domtree, &mut self.allocator, false, control)?;
        let compiled = stencil.apply_params(&func.params);
        let sites = fault_sites(&compiled, &emitted.sites);
        Ok(Located { compiled, sites, map: StateMap::default(), stores: 0, rounds: 1 })
    }

    /// Without the optimiser there would be too much that has no place.
    fn precise(&self) -> PreciseState {
        match self.config.opt_level {
            OptLevel::None => PreciseState::Checkpoints,
            OptLevel::Speed => self.config.precise,
        }
    }

    /// Discovers the region and fills `self.context` with its function.
    fn build(&mut self, entry: u64, mode: Mode, code: &mut dyn CodeSource) -> (Region, Emitted) {
        let mut declined = FxHashSet::default();
        loop {
            let limits = Self::limits(&self.config, mode, &declined);
            let region = discover(entry, mode, code, &limits);
            let precise = self.precise();
            let facts = analyse(&region, precise);
            self.context.clear();
            self.context.func.signature = region_signature();
            let builder = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
            let options = EmitOptions {
                budget_checks: self.config.budget_checks,
                host: self.host,
                scalar_pairs: self.config.scalar_pairs,
                precise,
                compare_clears_c1: self.config.compare_clears_c1,
                probes: self.config.coverage.then_some(self.probes),
            };
            let emitted = Emitter::new(builder, &region, &facts, options).run(self.isa.frontend_config());
            // A lifter that declines is known only now; the analyses must hear of it. Each round adds to the set.
            if emitted.declined.is_empty() {
                return (region, emitted);
            }
            declined.extend(emitted.declined);
        }
    }
}

/// The code with room for its link slots behind it, to which its references are resolved, and with the instructions that stand in
/// it as calls; and where the slots begin.
fn place_links(compiled: &CompiledCode, func: &Function, emitted: &Emitted) -> Result<(Vec<u8>, u32), String> {
    // On cache lines of their own: slots are written while code near by may run.
    const LINE: usize = 64;
    const CALL: u8 = 0xE8;
    let mut bytes = compiled.code_buffer().to_vec();
    let links_offset = bytes.len().next_multiple_of(LINE);
    bytes.resize(links_offset + emitted.links.len() * size_of::<Slot>(), 0);
    for reloc in compiled.buffer.relocs() {
        let name = match reloc.target {
            FinalizedRelocTarget::ExternalName(ExternalName::User(name)) => func.params.user_named_funcs().get(name),
            _ => None,
        };
        let at = reloc.offset as usize;
        match name {
            Some(name) if name.namespace == INSTRUCTIONS && reloc.kind == Reloc::X86CallPCRel4 => {
                let instruction = emitted.instructions.get(name.index as usize);
                let call = at.checked_sub(1).and_then(|start| bytes.get_mut(start..at + 4));
                let Some((call, instruction)) = call.filter(|call| call[0] == CALL).zip(instruction) else {
                    return Err(format!("no call at {reloc:?}"));
                };
                call.copy_from_slice(instruction);
            }
            Some(name)
                if name.namespace != INSTRUCTIONS && matches!(reloc.kind, Reloc::X86CallPCRel4 | Reloc::X86PCRel4) =>
            {
                let distance = links_offset as i64 + reloc.addend - i64::from(reloc.offset);
                let field = bytes.get_mut(at..at + 4).zip(i32::try_from(distance).ok());
                let Some((field, distance)) = field else { return Err(format!("relocation out of range: {reloc:?}")) };
                field.copy_from_slice(&distance.to_le_bytes());
            }
            _ => return Err(format!("unexpected relocation {reloc:?}")),
        }
    }
    Ok((bytes, links_offset as u32))
}

/// Maps Cranelift's trap records to sites: the trap code is the site's index modulo 250, the source location lies near it
/// (an access fused into a later instruction carries that instruction's location).
fn fault_sites(compiled: &CompiledCode, records: &[SiteRecord]) -> Vec<Site> {
    let locations = compiled.buffer.get_srclocs_sorted();
    let mut sites: Vec<Site> = compiled
        .buffer
        .traps()
        .iter()
        .filter_map(|trap| {
            let code = usize::from(trap.code.as_raw().get());
            if !(1..=TRAP_CODES).contains(&code) {
                return None;
            }
            let at = locations.partition_point(|location| location.start <= trap.offset).checked_sub(1)?;
            let near = locations[at].loc.bits() as usize;
            let SiteRecord { rip, flags, retired, .. } =
                records.get(nearest_site(code - 1, near, records.len())?)?.clone();
            Some(Site { host_offset: trap.offset, rip, flags, retired, first_entry: 0, entry_count: 0 })
        })
        .collect();
    sites.sort_by_key(|site| site.host_offset);
    sites
}

/// The index below `count` that is `residue` modulo [`TRAP_CODES`] and nearest to `near`.
pub(crate) fn nearest_site(residue: usize, near: usize, count: usize) -> Option<usize> {
    let below = near
        .min(count.checked_sub(1)?)
        .checked_sub(residue)
        .map(|distance| residue + distance / TRAP_CODES * TRAP_CODES);
    let above = below.map_or(residue, |below| below + TRAP_CODES);
    [below, Some(above)].into_iter().flatten().filter(|&index| index < count).min_by_key(|index| index.abs_diff(near))
}
