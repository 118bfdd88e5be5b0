//! How single instructions are carried out: what tables of coverage are made of.

use crate::abi::{Helper, Mode};
use crate::{CodeSource, Translator, TranslatorError};

/// How translated code carries out an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lowering {
    /// By host code of its own.
    Inline,
    /// With the help of a function or of a host operation.
    Helper,
    /// By the interpreter.
    Fallback,
}

/// One instruction at a fixed address.
struct Single<'a>(&'a [u8]);

const ADDRESS: u64 = 0x40_0000;

/// `cmp ecx, edx`: without it, flags would come from another region, by a helper.
const DEFINE_FLAGS: [u8; 2] = [0x39, 0xD1];

impl CodeSource for Single<'_> {
    fn fetch(&mut self, address: u64, buf: &mut [u8], _: Mode) -> usize {
        let Some(rest) = address.checked_sub(ADDRESS).and_then(|offset| self.0.get(offset as usize..)) else {
            return 0;
        };
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        count
    }
}

impl Translator {
    /// How the instruction with these bytes is carried out in `mode`, where the flags in front of it are known. Some have
    /// forms (operands, immediates) that differ.
    ///
    /// # Errors
    /// If the code generator fails on it: the interpreter carries it out then, too.
    pub fn lowering(&mut self, bytes: &[u8], mode: Mode) -> Result<Lowering, TranslatorError> {
        let code = [&DEFINE_FLAGS, bytes].concat();
        let region = self.translate(ADDRESS, mode, &mut Single(&code))?;
        let interpreted = [Helper::Interpret, Helper::InterpretJump].iter().any(|helper| region.calls(*helper));
        Ok(if interpreted {
            Lowering::Fallback
        } else if region.host_operations > 0 || region.helpers != 0 {
            Lowering::Helper
        } else {
            Lowering::Inline
        })
    }
}
