//! Placeholder until the translator lands.
use lstar_translator::abi::{Mode, VcpuBlock};
use lstar_translator::{CodeSource, CompiledRegion, LinkTable};

#[derive(Default)]
pub struct TranslatorConfig;
pub struct Translator;
impl Translator {
    pub fn new(_: TranslatorConfig) -> Result<Self, String> {
        Ok(Self)
    }
    pub fn translate(
        &mut self,
        _: u64,
        _: Mode,
        _: &mut dyn CodeSource,
        _: &mut dyn LinkTable,
    ) -> Result<CompiledRegion, String> {
        Err(String::new())
    }
}
pub mod flags {
    pub fn materialize(_: &mut super::VcpuBlock) {}
}
