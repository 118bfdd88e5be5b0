//! The translator: from an entry address to a compiled region.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};

use crate::abi::Mode;
use crate::config::{CallMode, OptLevel, TranslatorConfig, TranslatorError, TranslatorStats};
use crate::discover::{Limits, Region, discover};
use crate::emit::{EmitOptions, Emitted, Emitter, SiteRecord, region_signature};
use crate::liveness::analyse;
use crate::{CodeSource, CompiledRegion, LinkTable, Site};

/// Translates regions, one at a time. Keeps Cranelift's buffers between regions; use one per thread.
pub struct Translator {
    config: TranslatorConfig,
    isa: Arc<dyn TargetIsa>,
    context: Context,
    builder: FunctionBuilderContext,
    stats: TranslatorStats,
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
    cranelift_native::builder()
        .map_err(|message| TranslatorError::Host(message.to_owned()))?
        .finish(settings::Flags::new(flags))
        .map_err(|error| TranslatorError::Settings(error.to_string()))
}

impl Translator {
    /// Sets up code generation for this host.
    pub fn new(config: TranslatorConfig) -> Result<Self, TranslatorError> {
        Ok(Self {
            config,
            isa: build_isa(&config)?,
            context: Context::new(),
            builder: FunctionBuilderContext::new(),
            stats: TranslatorStats::default(),
        })
    }

    /// The settings.
    #[must_use]
    pub const fn config(&self) -> &TranslatorConfig {
        &self.config
    }

    /// What has been done so far.
    #[must_use]
    pub const fn stats(&self) -> &TranslatorStats {
        &self.stats
    }

    /// Translates the region at `entry`. Code that cannot be fetched or decoded becomes a jump to the interpreter.
    pub fn translate(
        &mut self,
        entry: u64,
        mode: Mode,
        code: &mut dyn CodeSource,
        links: &mut dyn LinkTable,
    ) -> Result<CompiledRegion, TranslatorError> {
        let started = Instant::now();
        let (region, emitted) = self.build(entry, mode, code, links);
        let lifted = Instant::now();
        let compiled = self
            .context
            .compile(&*self.isa, &mut ControlPlane::default())
            .map_err(|error| TranslatorError::Compile { entry, message: format!("{:?}", error.inner) })?;
        if !compiled.buffer.relocs().is_empty() {
            return Err(TranslatorError::Compile { entry, message: "code has relocations".to_owned() });
        }
        let sites = fault_sites(compiled, &emitted.sites);
        let bytes = compiled.code_buffer().to_vec();
        let instructions = region.blocks.iter().map(|block| block.insns.len() as u32).sum();
        self.stats.regions += 1;
        self.stats.guest_instructions += u64::from(instructions);
        self.stats.host_bytes += bytes.len() as u64;
        self.stats.front_end += lifted - started;
        self.stats.back_end += lifted.elapsed();
        Ok(CompiledRegion {
            entry,
            mode,
            code: bytes,
            sites,
            blocks: region.blocks.len() as u32,
            ranges: region.ranges,
            instructions,
            fallbacks: emitted.fallbacks.into_iter().collect(),
        })
    }

    /// Discovers the region and fills `self.context` with its function.
    fn build(
        &mut self,
        entry: u64,
        mode: Mode,
        code: &mut dyn CodeSource,
        links: &mut dyn LinkTable,
    ) -> (Region, Emitted) {
        let mut declined = HashSet::new();
        loop {
            let limits = Limits {
                max_instructions: self.config.max_instructions.max(1),
                host_calls: mode == Mode::User && self.config.calls == CallMode::Host,
                features: self.config.features,
                declined: &declined,
            };
            let region = discover(entry, mode, code, &limits);
            let facts = analyse(&region);
            self.context.clear();
            self.context.func.signature = region_signature();
            let builder = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
            let options = EmitOptions { budget_checks: self.config.budget_checks };
            let emitted = Emitter::new(builder, &region, &facts, links, options).run(self.isa.frontend_config());
            // A lifter that declines is known only now; the analyses must hear of it. Each round adds to the set.
            if emitted.declined.is_empty() {
                return (region, emitted);
            }
            declined.extend(emitted.declined);
        }
    }
}

/// Maps Cranelift's trap records to sites: the trap code is the site's index modulo 250, the source location bounds it
/// from above (an access fused into a later instruction carries that instruction's location).
fn fault_sites(compiled: &cranelift_codegen::CompiledCode, records: &[SiteRecord]) -> Vec<Site> {
    let locations = compiled.buffer.get_srclocs_sorted();
    let mut sites: Vec<Site> = compiled
        .buffer
        .traps()
        .iter()
        .filter_map(|trap| {
            let code = usize::from(trap.code.as_raw().get());
            if !(1..=250).contains(&code) {
                return None;
            }
            let at = locations.partition_point(|location| location.start <= trap.offset).checked_sub(1)?;
            let last = (locations[at].loc.bits() as usize).checked_sub(1)?;
            let index = last.checked_sub((last % 250 + 250 - (code - 1)) % 250)?;
            let SiteRecord { rip, lazy_op, retired } = *records.get(index)?;
            Some(Site { host_offset: trap.offset, rip, lazy_op, retired })
        })
        .collect();
    sites.sort_by_key(|site| site.host_offset);
    sites
}
