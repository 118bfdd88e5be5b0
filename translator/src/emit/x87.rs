//! The guest's x87 state: where it is, and what is known of the last instruction. See [`crate::x87`].

use cranelift_codegen::ir::{InstBuilder, Value, types};
use lstar_arch::{CpuState, SegmentIndex};
use std::mem::offset_of;

use super::Emitter;
use crate::abi::{VCPU_OFFSET, VcpuBlock};
use crate::host_op::HostSignature;
use lstar_arch::state::X87State;

const X87: usize = offset_of!(VcpuBlock, cpu) + offset_of!(CpuState, x87);

/// Where the state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In one of the two.
    Unknown,
    /// In the host's x87.
    Host,
    /// In the block.
    Block,
}

/// What is known of the x87 state at a point of the code.
#[derive(Clone, Copy, Debug)]
pub(super) struct X87 {
    place: Place,
    /// The last instruction, if the block has not been told yet.
    last: Option<u64>,
    /// The segment of the last memory operand that the block has been told of.
    segment: Option<SegmentIndex>,
}

impl X87 {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { place: Place::Unknown, last: None, segment: None };
}

impl Emitter<'_> {
    /// Moves the state into the host's x87, unless it is there. Traps to the current site if it cannot be there.
    pub fn enter_x87(&mut self) {
        if self.local.x87.place == Place::Host {
            return;
        }
        if self.local.x87.place == Place::Block {
            self.enter();
        } else {
            let live = self.load_state(types::I64, offset_of!(VcpuBlock, x87_live));
            // Not a cold block: there, fault sites store all that has changed.
            let (enter, next) = (self.b.create_block(), self.b.create_block());
            self.b.ins().brif(live, next, &[], enter, &[]);
            self.b.switch_to_block(enter);
            self.b.seal_block(enter);
            self.enter();
            self.b.ins().jump(next, &[]);
            self.b.switch_to_block(next);
            self.b.seal_block(next);
        }
        self.local.x87 = X87 { place: Place::Host, ..X87::UNKNOWN };
    }

    /// Moves the state into the block, unless it is there.
    pub fn leave_x87(&mut self) {
        self.store_x87_last();
        let place = std::mem::replace(&mut self.local.x87, X87 { place: Place::Block, ..X87::UNKNOWN }).place;
        if place == Place::Block {
            return;
        }
        if place == Place::Host {
            self.leave();
            return;
        }
        let live = self.load_state(types::I64, offset_of!(VcpuBlock, x87_live));
        let (leave, next) = (self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(leave);
        self.b.ins().brif(live, leave, &[], next, &[]);
        self.b.switch_to_block(leave);
        self.b.seal_block(leave);
        self.leave();
        self.b.ins().jump(next, &[]);
        self.b.switch_to_block(next);
        self.b.seal_block(next);
    }

    /// Calls code that moves the state.
    fn move_x87(&mut self, code: usize, signature: HostSignature) -> Option<Value> {
        let view = self.view();
        let block = self.b.ins().iadd_imm_s(view, i64::from(VCPU_OFFSET));
        let code = self.table_entry(code);
        let counted = self.out.host_operations;
        let results = self.call_host(code, signature, &[block]);
        // No part of what the instruction does.
        self.out.host_operations = counted;
        results.first().copied()
    }

    fn enter(&mut self) {
        if let Some(declined) = self.move_x87(offset_of!(VcpuBlock, x87_enter), HostSignature::I_I) {
            self.trap_if(declined);
        }
    }

    fn leave(&mut self) {
        self.move_x87(offset_of!(VcpuBlock, x87_leave), HostSignature::I_N);
    }

    /// See [`crate::TranslatorConfig::compare_clears_c1`].
    pub fn compare_clears_c1(&self) -> bool {
        self.options.compare_clears_c1
    }

    /// Takes note of the current instruction as the last one.
    pub fn record_x87(&mut self, opcode: u16) {
        self.local.x87.last = Some(crate::x87::last(self.current.rip, opcode));
    }

    /// Stores the address and segment of the current instruction's memory operand.
    pub fn record_x87_operand(&mut self, offset: Value, segment: SegmentIndex) {
        self.store_state(offset, X87 + offset_of!(X87State, data_pointer));
        if self.local.x87.segment != Some(segment) {
            let number = self.iconst(types::I64, segment as i64 + 1);
            self.store_state(number, offset_of!(VcpuBlock, x87_segment));
            self.local.x87.segment = Some(segment);
        }
    }

    /// FNINIT clears what is known of the last instruction.
    pub fn forget_x87_pointers(&mut self) {
        let zero = self.iconst(types::I64, 0);
        for offset in [
            offset_of!(VcpuBlock, x87_last),
            offset_of!(VcpuBlock, x87_segment),
            X87 + offset_of!(X87State, instruction_pointer),
            X87 + offset_of!(X87State, data_pointer),
        ] {
            self.store_state(zero, offset);
        }
        let zero = self.iconst(types::I16, 0);
        self.store_state(zero, X87 + offset_of!(X87State, opcode));
        let zero = self.iconst(types::I32, 0);
        self.store_state(zero, X87 + offset_of!(X87State, selectors));
        (self.local.x87.last, self.local.x87.segment) = (None, None);
    }

    /// Tells the block of the last instruction.
    pub(super) fn store_x87_last(&mut self) {
        if let Some(last) = self.local.x87.last.take() {
            let last = self.iconst(types::I64, last as i64);
            self.store_state(last, offset_of!(VcpuBlock, x87_last));
        }
    }
}
