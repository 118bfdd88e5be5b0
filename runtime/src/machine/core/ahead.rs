//! Translation of code that has not run, for the store.

use lstar_translator::Translator;
use lstar_translator::abi::Mode;

use super::{Core, Fetcher};
use crate::machine::{Ahead, MachineError};

impl Core {
    /// See [`crate::Machine::translate_ahead`].
    pub fn translate_ahead(&mut self, entry: u64) -> Result<Option<Ahead>, MachineError> {
        let translator = match &mut self.translator {
            Some(translator) => translator,
            None => {
                let made = Translator::new(self.translator_config);
                self.translator.insert(made.map_err(|error| MachineError::Translation(error.to_string()))?)
            }
        };
        // Nothing was executed.
        let mut source = Fetcher { knows_executed: false, ..source!(self) };
        if let Some(region) = self.store.as_ref().and_then(|store| store.find(entry, Mode::User, &mut source)) {
            let (instructions, links) = (region.instructions, region.links);
            return Ok(Some(Ahead { links, instructions, is_new: false }));
        }
        // What is nowhere in memory would become a region, too: one that calls the interpreter.
        let Ok(region) = translator.translate(entry, Mode::User, &mut source) else { return Ok(None) };
        if region.ranges.is_empty() {
            return Ok(None);
        }
        // A run knows where such jumps go, and makes better code.
        let is_new = !source.lacks_targets;
        if is_new && let Some(store) = &mut self.store {
            store.add(&region, &mut source);
        }
        Ok(Some(Ahead { links: region.links, instructions: region.instructions, is_new }))
    }
}
