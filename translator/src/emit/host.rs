//! Calls of host operations (see [`crate::host_op`]), and host instructions that CLIF cannot express.
//!
//! Such an instruction of up to five bytes is, until the code is finished, a direct call of a function that does not exist, with
//! the convention of a host operation: its operands are in fixed registers, all others are kept. Then
//! [`crate::translate`] puts the instruction in the call's place.

use cranelift_codegen::ir::{
    AbiParam, ExtFuncData, ExternalName, InstBuilder, MemFlagsData, SigRef, Signature, Type, UserExternalName, Value,
    types,
};
use cranelift_codegen::isa::CallConv;
use smallvec::SmallVec;
use std::mem::offset_of;

use super::{Emitter, NotLifted};
use crate::abi::{VCPU_OFFSET, VcpuBlock};
use crate::host_op::{HostFeatures, HostOp, HostSignature, StringOp};

fn type_of_letter(letter: char) -> Type {
    match letter {
        'V' => types::I8X16,
        'D' => types::F64,
        'S' => types::F32,
        _ => types::I64,
    }
}

/// Name space of the functions that stand for instructions.
pub(crate) const INSTRUCTIONS: u32 = 1;

/// The bytes that take the place of a call.
pub(crate) type HostInstruction = [u8; 5];

/// Filled up with one instruction that does nothing.
fn filled_up(code: &[u8]) -> Option<HostInstruction> {
    let nop: &[u8] = match code.len() {
        1 => &[0x0F, 0x1F, 0x40, 0x00],
        2 => &[0x0F, 0x1F, 0x00],
        3 => &[0x66, 0x90],
        4 => &[0x90],
        _ => &[],
    };
    [code, nop].concat().try_into().ok()
}

impl Emitter<'_> {
    /// Puts host code of up to five bytes into the region's. It finds its arguments where the signature has them, leaves its results
    /// there, changes no other register, and cannot fault.
    pub fn host_instruction(
        &mut self,
        code: &[u8],
        signature: HostSignature,
        arguments: &[Value],
    ) -> Result<SmallVec<[Value; 2]>, NotLifted> {
        if !cfg!(target_arch = "x86_64") {
            return Err(NotLifted);
        }
        let bytes = filled_up(code).ok_or(NotLifted)?;
        let number = match self.out.instructions.iter().position(|known| *known == bytes) {
            Some(number) => number,
            None => {
                let index = self.out.instructions.len() as u32;
                let name = UserExternalName { namespace: INSTRUCTIONS, index };
                let name = self.b.func.declare_imported_user_function(name);
                let signature = self.host_signature(signature);
                let name = ExternalName::user(name);
                self.instructions.push(self.b.import_function(ExtFuncData {
                    name,
                    signature,
                    colocated: true,
                    patchable: false,
                }));
                self.out.instructions.push(bytes);
                index as usize
            }
        };
        let values = self.host_arguments(signature, arguments);
        let call = self.b.ins().call(self.instructions[number], &values);
        Ok(self.b.inst_results(call).iter().copied().collect())
    }

    /// Whether the host has an instruction set.
    pub fn host_has(&self, features: HostFeatures) -> bool {
        self.options.host.contains(features)
    }

    /// Carries out an operation for which the host has an instruction and CLIF has not; vectors in and out may have any type,
    /// the result's is I8X16. Declines where the host lacks the instruction.
    pub fn host_op(&mut self, op: HostOp, arguments: &[Value]) -> Result<Value, NotLifted> {
        self.host_results(op, arguments)?.first().copied().ok_or(NotLifted)
    }

    /// As [`Emitter::host_op`], for operations with several results.
    pub fn host_results(&mut self, op: HostOp, arguments: &[Value]) -> Result<SmallVec<[Value; 2]>, NotLifted> {
        if !self.host_has(op.feature()) {
            return Err(NotLifted);
        }
        if !op.code().is_empty() {
            return self.host_instruction(op.code(), op.signature(), arguments);
        }
        let code = self.table_entry(offset_of!(VcpuBlock, host_ops) + 8 * op as usize);
        Ok(self.call_host(code, op.signature(), arguments))
    }

    /// A string comparison with its immediate byte.
    pub fn string_op(
        &mut self,
        op: StringOp,
        control: u8,
        arguments: &[Value],
    ) -> Result<SmallVec<[Value; 2]>, NotLifted> {
        if !self.host_has(HostFeatures::SSE42) {
            return Err(NotLifted);
        }
        let code = self.table_entry(offset_of!(VcpuBlock, string_ops) + 8 * op as usize);
        let code = self.b.ins().iadd_imm_s(code, (u64::from(control) * op.stride()) as i64);
        Ok(self.call_host(code, op.signature(), arguments))
    }

    /// A host address from a table in the block, which never changes.
    pub(super) fn table_entry(&mut self, offset: usize) -> Value {
        let flags = MemFlagsData::trusted().with_readonly().with_can_move();
        let view = self.view();
        self.b.ins().load(types::I64, flags, view, VCPU_OFFSET + offset as i32)
    }

    pub(super) fn call_host(
        &mut self,
        code: Value,
        signature: HostSignature,
        arguments: &[Value],
    ) -> SmallVec<[Value; 2]> {
        let reference = self.host_signature(signature);
        let values = self.host_arguments(signature, arguments);
        self.out.host_operations += 1;
        let call = self.b.ins().call_indirect(reference, code, &values);
        self.b.inst_results(call).iter().copied().collect()
    }

    fn host_arguments(&mut self, signature: HostSignature, arguments: &[Value]) -> SmallVec<[Value; 4]> {
        let (takes, _) = signature.letters();
        takes
            .chars()
            .zip(arguments)
            .map(|(letter, &argument)| self.reinterpret(argument, type_of_letter(letter)))
            .collect()
    }

    fn host_signature(&mut self, signature: HostSignature) -> SigRef {
        if let Some(reference) = self.host_signatures[signature as usize] {
            return reference;
        }
        let (takes, gives) = signature.letters();
        let mut clif = Signature::new(CallConv::PreserveAll);
        clif.params.extend(takes.chars().map(|letter| AbiParam::new(type_of_letter(letter))));
        clif.returns.extend(gives.chars().map(|letter| AbiParam::new(type_of_letter(letter))));
        *self.host_signatures[signature as usize].insert(self.b.import_signature(clif))
    }
}
