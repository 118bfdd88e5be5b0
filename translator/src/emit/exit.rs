//! Ways out of a region and back: links, calls, returns, helpers, the instruction budget.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::immediates::Imm64;
use cranelift_codegen::ir::{
    AbiParam, BlockArg, ExternalName, GlobalValueData, InstBuilder, MemFlagsData, Signature, UserExternalName, Value,
    types,
};
use cranelift_codegen::isa::CallConv;
use iced_x86::Instruction;
use lstar_arch::CpuState;
use std::mem::offset_of;

use super::x87::X87;
use super::{Emitter, FlagState};
use crate::abi::{
    ExitReason, Helper, HelperKind, Slot, Stub, TARGET_TABLE_BITS, Target, UNWIND, VCPU_OFFSET, VcpuBlock,
};
use crate::discover::Successor;

/// What the code generator is told that the link slots are.
const LINKS: UserExternalName = UserExternalName { namespace: 0, index: 0 };

const RSP: usize = lstar_arch::Gpr::Rsp as usize;
const GPR: usize = offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, gpr);
const RIP: usize = offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, rip);

impl Emitter<'_> {
    /// Stores everything the block must hold when control leaves for something other than a region or a stub.
    fn flush(&mut self) {
        self.store_registers();
        self.store_x87_last();
        self.store_flags();
        self.settle_budget();
        if self.local.since_store != Some(0) {
            let budget = self.b.use_var(self.vars.budget);
            self.store_state(budget, offset_of!(VcpuBlock, budget));
            self.local.since_store = Some(0);
        }
    }

    /// Stores what the block must hold when control leaves for a region or a stub; returns the rest, which is passed: budget
    /// and RSP. `flags` says whether the flags matter there.
    fn flush_for_region(&mut self, flags: bool) -> [Value; 2] {
        self.local.dirty &= !(1 << RSP);
        self.store_registers();
        self.store_x87_last();
        if flags {
            self.store_flags();
        }
        self.settle_budget();
        self.passed()
    }

    /// What is passed to and from regions in registers.
    fn passed(&mut self) -> [Value; 2] {
        [self.b.use_var(self.vars.budget), self.gpr64(RSP)]
    }

    /// Takes what a region has been passed or has returned.
    pub(super) fn receive(&mut self, [budget, rsp]: [Value; 2]) {
        self.b.def_var(self.vars.budget, budget);
        self.local.since_store = None;
        self.set_gpr64(RSP, rsp);
    }

    fn return_to_region(&mut self, rip: Value) {
        let [budget, rsp] = self.passed();
        self.b.ins().return_(&[rip, budget, rsp]);
    }

    /// Leaves with [`ExitReason::Redispatch`] if the host stack is nearly used up.
    pub(super) fn check_host_stack(&mut self, rip: u64) {
        let sp = self.b.ins().get_stack_pointer(types::I64);
        let limit = self.load_state(types::I64, offset_of!(VcpuBlock, stack_limit));
        let deep = self.b.ins().icmp(IntCC::UnsignedLessThan, sp, limit);
        self.leave_if(deep, ExitReason::Redispatch, rip);
    }

    /// Subtracts the instructions since the last time from the budget variable.
    pub(super) fn settle_budget(&mut self) {
        let pending = std::mem::take(&mut self.local.pending);
        if pending > 0 {
            let budget = self.b.use_var(self.vars.budget);
            let budget = self.b.ins().iadd_imm_s(budget, -i64::from(pending));
            self.b.def_var(self.vars.budget, budget);
        }
    }

    pub(super) fn read_budget(&mut self) {
        let budget = self.load_state(types::I64, offset_of!(VcpuBlock, budget));
        self.b.def_var(self.vars.budget, budget);
        self.local.since_store = Some(0);
    }

    /// Leaves with [`ExitReason::Budget`], to go on at `rip`, if the budget does not last for the `needed` instructions that
    /// may retire until the next such check: so a run never takes more than it was granted, and the interpreter finishes it
    /// to the instruction.
    pub(super) fn check_budget(&mut self, rip: u64, needed: u32) {
        if !self.options.budget_checks {
            return;
        }
        let budget = self.b.use_var(self.vars.budget);
        let over = self.b.ins().icmp_imm_s(IntCC::SignedLessThan, budget, i64::from(needed));
        self.leave_if(over, ExitReason::Budget, rip);
    }

    /// Leaves, to go on at `rip`, if `condition`.
    fn leave_if(&mut self, condition: Value, reason: ExitReason, rip: u64) {
        let local = self.local.clone();
        let next = self.cold_branch(condition);
        let rip = self.iconst(types::I64, rip as i64);
        self.unwind(reason, rip);
        self.b.switch_to_block(next);
        self.b.seal_block(next);
        self.local = local;
    }

    /// As [`Emitter::check_budget`], before a branch to one of two addresses: goes on at the one that `condition` says.
    pub(super) fn check_budget_before(&mut self, condition: Value, [taken, next]: [u64; 2], needed: u32) {
        let budget = self.b.use_var(self.vars.budget);
        let over = self.b.ins().icmp_imm_s(IntCC::SignedLessThan, budget, i64::from(needed));
        let local = self.local.clone();
        let go_on = self.cold_branch(over);
        self.flush();
        let sides = [taken, next].map(|rip| {
            let block = self.b.create_block();
            self.b.set_cold_block(block);
            (block, rip)
        });
        self.b.ins().brif(condition, sides[0].0, &[], sides[1].0, &[]);
        for (block, rip) in sides {
            self.b.switch_to_block(block);
            self.b.seal_block(block);
            let rip = self.iconst(types::I64, rip as i64);
            self.unwind(ExitReason::Budget, rip);
        }
        self.b.switch_to_block(go_on);
        self.b.seal_block(go_on);
        self.local = local;
    }

    /// Branches to a new cold block, which becomes current, if `condition`; returns the block for the other case.
    fn cold_branch(&mut self, condition: Value) -> cranelift_codegen::ir::Block {
        let (cold, next) = (self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(cold);
        self.b.ins().brif(condition, cold, &[], next, &[]);
        self.b.switch_to_block(cold);
        self.b.seal_block(cold);
        next
    }

    /// Returns to the dispatcher, which goes on at `rip`.
    fn unwind(&mut self, reason: ExitReason, rip: Value) {
        self.flush();
        self.store_state(rip, RIP);
        let reason = self.iconst(types::I64, reason as i64);
        self.store_state(reason, offset_of!(VcpuBlock, exit));
        self.return_unwind();
    }

    fn return_unwind(&mut self) {
        let unwind = self.iconst(types::I64, UNWIND as i64);
        self.b.ins().return_(&[unwind, unwind, unwind]);
    }

    /// Jumps to a known guest address outside the region.
    pub(super) fn leave_to(&mut self, rip: u64) {
        let [budget, rsp] = self.flush_for_region(!self.region.ignores_flags(rip));
        let (code, slot) = self.link(rip);
        self.b.ins().return_call_indirect(self.region_signature, code, &[slot, budget, rsp]);
    }

    /// The code that the link to `rip` leads to, and the address of its slot. Slots lie behind the region's code, so that they
    /// are addressed relative to it.
    fn link(&mut self, rip: u64) -> (Value, Value) {
        let links = &mut self.out.links;
        let index = links.iter().position(|&known| known == rip).unwrap_or_else(|| {
            links.push(rip);
            links.len() - 1
        });
        let name = self.b.func.declare_imported_user_function(LINKS);
        let slot = self.b.create_global_value(GlobalValueData::Symbol {
            name: ExternalName::user(name),
            offset: Imm64::new((index * size_of::<Slot>()) as i64),
            colocated: true,
            tls: false,
        });
        let slot = self.b.ins().symbol_value(types::I64, slot);
        let code = self.b.ins().load(types::I64, MemFlagsData::trusted(), slot, offset_of!(Slot, code) as i32);
        (code, slot)
    }

    /// Host code for the guest address `rip`: from the target table, or the stub for misses.
    fn target_code(&mut self, rip: Value) -> Value {
        let table = offset_of!(VcpuBlock, targets) + 8 * self.region.mode as usize;
        let table = self.load_state(types::I64, table);
        let index = self.b.ins().band_imm_u(rip, (1 << TARGET_TABLE_BITS) - 1);
        let offset = self.b.ins().ishl_imm_u(index, i64::from(size_of::<Target>().trailing_zeros()));
        let entry = self.b.ins().iadd(table, offset);
        let trusted = MemFlagsData::trusted();
        let found = self.b.ins().load(types::I64, trusted, entry, offset_of!(Target, rip) as i32);
        let hit = self.b.ins().icmp(IntCC::Equal, found, rip);
        let (fast, slow, join) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(slow);
        let code = self.b.append_block_param(join, types::I64);
        self.b.ins().brif(hit, fast, &[], slow, &[]);
        self.b.switch_to_block(fast);
        self.b.seal_block(fast);
        let known = self.b.ins().load(types::I64, trusted, entry, offset_of!(Target, code) as i32);
        self.b.ins().jump(join, &[BlockArg::Value(known)]);
        self.b.switch_to_block(slow);
        self.b.seal_block(slow);
        let stub = self.load_state(types::I64, offset_of!(VcpuBlock, stubs) + 8 * Stub::Miss as usize);
        self.b.ins().jump(join, &[BlockArg::Value(stub)]);
        self.b.switch_to_block(join);
        self.b.seal_block(join);
        code
    }

    /// Jumps to a computed guest address.
    fn leave_dynamically(&mut self, rip: Value) {
        let [budget, rsp] = self.flush_for_region(true);
        let code = self.target_code(rip);
        self.b.ins().return_call_indirect(self.region_signature, code, &[rip, budget, rsp]);
    }

    pub(super) fn indirect_jump(&mut self, insn: &Instruction, known: &[Successor]) {
        match self.read(insn, 0, types::I64) {
            Ok(target) => {
                let target = self.zero_extend64(target);
                self.check_code_address(target);
                self.goto_known(target, known);
                self.leave_dynamically(target);
            }
            Err(_) => self.interpret_terminator(),
        }
    }

    /// Gives the block's last instruction, already counted, to the interpreter.
    fn interpret_terminator(&mut self) {
        self.jump_helper(Helper::InterpretJump, &[self.current.rip, 0]);
    }

    /// Pushes the return address; returns it and the computed target, if there is one. `None` when the instruction
    /// went to the interpreter.
    fn push_return(&mut self, insn: &Instruction) -> Option<(Value, Option<Value>)> {
        let target = if insn.is_call_near() {
            None
        } else {
            let Ok(target) = self.read(insn, 0, types::I64) else {
                self.interpret_terminator();
                return None;
            };
            let target = self.zero_extend64(target);
            self.check_code_address(target);
            Some(target)
        };
        let (rsp, ty) = (self.stack_pointer(), self.stack_type());
        let size = i64::from(ty.bytes());
        let Ok(host) = self.address_at(rsp, -size) else {
            self.interpret_terminator();
            return None;
        };
        let back = self.iconst(types::I64, insn.next_ip() as i64);
        let pushed = self.resize(back, ty);
        self.store(pushed, host);
        self.move_stack_pointer(rsp, -size);
        Some((back, target))
    }

    /// CALL as a host call; afterwards control is behind it and the live registers are loaded.
    pub(super) fn host_call(&mut self, insn: &Instruction) {
        let Some((back, target)) = self.push_return(insn) else {
            let unreachable = self.b.create_block();
            self.b.switch_to_block(unreachable);
            self.b.seal_block(unreachable);
            return;
        };
        let flags = target.is_some() || !self.region.ignores_flags(insn.near_branch_target());
        let [budget, rsp] = self.flush_for_region(flags);
        let (code, argument) = match target {
            Some(target) => (self.target_code(target), target),
            None => self.link(insn.near_branch_target()),
        };
        let call = self.b.ins().call_indirect(self.region_signature, code, &[argument, budget, rsp]);
        let results: [Value; 3] = std::array::from_fn(|index| self.b.inst_results(call)[index]);
        let elsewhere = self.b.ins().icmp(IntCC::NotEqual, results[0], back);
        let next = self.cold_branch(elsewhere);
        self.b.ins().return_(&results);
        self.b.switch_to_block(next);
        self.b.seal_block(next);
        self.read_view();
        self.forget();
        self.receive([results[1], results[2]]);
        self.reload(self.current.live_after & !(1 << RSP));
    }

    /// CALL of a function that is part of the region and begins at `first`.
    pub(super) fn enter_leaf(&mut self, insn: &Instruction, first: Successor) {
        if self.push_return(insn).is_some() {
            self.goto(first);
        }
    }

    /// RET of a function that is part of the region, to `next` behind its call. To anywhere else it returns as the region's own
    /// function does.
    pub(super) fn leave_leaf(&mut self, next: Successor) {
        let back = match next {
            Successor::Block(index) => self.region.blocks[index].start,
            Successor::Outside(rip) => rip,
        };
        let (rsp, ty) = (self.stack_pointer(), self.stack_type());
        let Ok(host) = self.address_at(rsp, 0) else { return self.interpret_terminator() };
        let target = self.load(ty, host);
        let target = self.zero_extend64(target);
        let popped = self.wrapped(rsp, ty.bytes().into());
        let expected = self.iconst(types::I64, back as i64);
        let elsewhere = self.b.ins().icmp(IntCC::NotEqual, target, expected);
        let local = self.local.clone();
        let go_on = self.cold_branch(elsewhere);
        self.check_code_address(target);
        self.set_gpr64(RSP, popped);
        self.flush_for_region(true);
        self.return_to_region(target);
        self.b.switch_to_block(go_on);
        self.b.seal_block(go_on);
        self.local = local;
        self.set_gpr64(RSP, popped);
        self.goto(next);
    }

    /// CALL as a jump: the callee's RET leaves through the target table.
    pub(super) fn call_out(&mut self, insn: &Instruction) {
        match self.push_return(insn) {
            Some((_, Some(target))) => self.leave_dynamically(target),
            Some((_, None)) => self.leave_to(insn.near_branch_target()),
            None => {}
        }
    }

    /// Near RET.
    pub(super) fn guest_return(&mut self, insn: &Instruction) {
        let (rsp, ty) = (self.stack_pointer(), self.stack_type());
        let Ok(host) = self.address_at(rsp, 0) else { return self.interpret_terminator() };
        let target = self.load(ty, host);
        let target = self.zero_extend64(target);
        self.check_code_address(target);
        let released = if insn.op_count() > 0 { i64::from(insn.immediate16()) } else { 0 };
        self.move_stack_pointer(rsp, i64::from(ty.bytes()) + released);
        if self.region.host_calls {
            self.flush_for_region(true);
            self.return_to_region(target);
        } else {
            self.leave_dynamically(target);
        }
    }

    /// The budget behind the current instruction.
    pub fn budget_behind(&mut self) -> Value {
        let budget = self.b.use_var(self.vars.budget);
        self.b.ins().iadd_imm_s(budget, -i64::from(self.local.pending + 1))
    }

    /// Nothing but the block is known to hold the guest state.
    fn after_barrier(&mut self) {
        self.forget();
        self.read_budget();
        self.reload(self.current.live_after);
    }

    fn forget(&mut self) {
        self.local.checked.clear();
        self.local.ready.clear();
        self.local.zero_high = 0;
        self.local.segments = [None; 2];
        self.local.x87 = X87::UNKNOWN;
        self.local.mxcsr_newer = false;
        self.local.checkpoint = None;
        self.local.flags = FlagState::in_memory();
        self.local.dirty = 0;
        self.local.pending = 0;
    }

    /// Calls a helper of any kind; returns its result.
    pub fn call_helper(&mut self, helper: Helper, arguments: &[Value]) -> Value {
        let count = helper.arguments();
        let signature = match self.helper_signatures[count] {
            Some(signature) => signature,
            None => {
                let mut signature = Signature::new(CallConv::SystemV);
                signature.params.extend((0..=count).map(|_| AbiParam::new(types::I64)));
                signature.returns.push(AbiParam::new(types::I64));
                *self.helper_signatures[count].insert(self.b.import_signature(signature))
            }
        };
        self.out.helpers |= 1 << helper as u32;
        let code = self.load_state(types::I64, offset_of!(VcpuBlock, helpers) + 8 * helper as usize);
        let view = self.view();
        let mut values = vec![self.b.ins().iadd_imm_s(view, i64::from(VCPU_OFFSET))];
        values.extend_from_slice(&arguments[..count]);
        let call = self.b.ins().call_indirect(signature, code, &values);
        self.b.inst_results(call)[0]
    }

    /// Calls a `Check` or `Resume` helper for the current instruction.
    pub(super) fn check_helper(&mut self, helper: Helper, argument: u64) {
        if helper == Helper::Syscall {
            // R11 and the trap frame hold RFLAGS.
            self.store_rflags();
        }
        self.flush();
        let argument = self.iconst(types::I64, argument as i64);
        let result = self.call_helper(helper, &[argument]);
        let next = self.cold_branch(result);
        match helper.kind() {
            HelperKind::Resume => self.jump_to_host(result),
            _ => self.return_unwind(),
        }
        self.b.switch_to_block(next);
        self.b.seal_block(next);
        self.after_barrier();
    }

    /// Leaves through a `Jump` helper.
    pub(super) fn jump_helper(&mut self, helper: Helper, arguments: &[u64; 2]) {
        self.flush();
        let arguments = arguments.map(|argument| self.iconst(types::I64, argument as i64));
        let code = self.call_helper(helper, &arguments);
        self.jump_to_host(code);
    }

    /// Goes on at the host code that a helper has named.
    fn jump_to_host(&mut self, code: Value) {
        // The helper has written the block behind the optimiser's back; the call makes these loads see it.
        let base = self.load_state(types::I64, offset_of!(VcpuBlock, view_base));
        let rip = self.load_state(types::I64, RIP);
        let budget = self.load_state(types::I64, offset_of!(VcpuBlock, budget));
        let rsp = self.load_state(types::I64, GPR + 8 * RSP);
        self.b.ins().set_pinned_reg(base);
        self.b.ins().return_call_indirect(self.region_signature, code, &[rip, budget, rsp]);
    }
}
