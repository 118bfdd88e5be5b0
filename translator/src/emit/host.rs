//! Calls of host operations: see [`crate::host_op`].

use cranelift_codegen::ir::{AbiParam, InstBuilder, MemFlagsData, Signature, Type, Value, types};
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

impl Emitter<'_> {
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
    fn table_entry(&mut self, offset: usize) -> Value {
        let flags = MemFlagsData::trusted().with_readonly().with_can_move();
        let view = self.view();
        self.b.ins().load(types::I64, flags, view, VCPU_OFFSET + offset as i32)
    }

    fn call_host(&mut self, code: Value, signature: HostSignature, arguments: &[Value]) -> SmallVec<[Value; 2]> {
        let (takes, gives) = signature.letters();
        let reference = match self.host_signatures[signature as usize] {
            Some(reference) => reference,
            None => {
                let mut clif = Signature::new(CallConv::PreserveAll);
                clif.params.extend(takes.chars().map(|letter| AbiParam::new(type_of_letter(letter))));
                clif.returns.extend(gives.chars().map(|letter| AbiParam::new(type_of_letter(letter))));
                *self.host_signatures[signature as usize].insert(self.b.import_signature(clif))
            }
        };
        let values: SmallVec<[Value; 4]> = takes
            .chars()
            .zip(arguments)
            .map(|(letter, &argument)| self.reinterpret(argument, type_of_letter(letter)))
            .collect();
        self.out.host_operations += 1;
        let call = self.b.ins().call_indirect(reference, code, &values);
        self.b.inst_results(call).iter().copied().collect()
    }
}
