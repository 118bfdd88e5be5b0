//! What has become of code: pages whose cached code is stale, and hooks that services ask for. The owner of cached code
//! looks at both, behind one flag, before guest code goes on.

use std::ops::Range;

use lstar_arch::PAGE_SIZE;
use lstar_translator::abi::USER_END;

use super::{AddressSpace, CODE, SpaceId};

/// Pages that held code and do not any more, or another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModifiedCode {
    /// Whose; `None`: the kernel half's, everybody's.
    pub space: Option<SpaceId>,
    /// Which.
    pub range: Range<u64>,
}

impl AddressSpace {
    /// Asks for an address hook, as [`crate::Machine::hook_address`] makes it, from a service: it is there when guest code
    /// runs next.
    pub fn hook_address(&mut self, address: u64) {
        self.hook_requests.push((address, true));
        // The owner of cached code has something to do.
        self.code_modified = true;
        self.changes = true;
    }

    /// Asks for the removal of an address hook.
    pub fn unhook_address(&mut self, address: u64) {
        self.hook_requests.push((address, false));
        self.code_modified = true;
        self.changes = true;
    }

    /// Address hooks wanted since the last call: where, and whether or not.
    pub(crate) fn take_hook_requests(&mut self) -> Vec<(u64, bool)> {
        std::mem::take(&mut self.hook_requests)
    }

    /// Pages that held code and were written, unmapped or made non-executable since the last call. What was decoded or
    /// translated from them is stale.
    pub fn take_modified(&mut self) -> Vec<ModifiedCode> {
        self.code_modified = false;
        let modified = std::mem::take(&mut self.modified);
        let page =
            |(space, page)| ModifiedCode { space: (page < USER_END).then_some(space), range: page..page + PAGE_SIZE };
        modified.into_iter().map(page).collect()
    }

    pub(super) fn record_modified(&mut self, page: u64) {
        self.modified.push((self.current, page & !(PAGE_SIZE - 1)));
        self.code_modified = true;
        self.changes = true;
    }

    pub(super) fn note_code_writes(&mut self, address: u64, size: u64) {
        if size == 0 {
            return;
        }
        let first = address & !(PAGE_SIZE - 1);
        let last = (address + size - 1) & !(PAGE_SIZE - 1);
        for page in (first..=last).step_by(PAGE_SIZE as usize) {
            let state = self.state(page);
            if state & CODE != 0 {
                self.half_mut(page).set_state(page, state & !CODE);
                self.record_modified(page);
                // Failing leaves the page write-protected in the windows: the next store faults and comes here again.
                let _ = self.apply_views(page, PAGE_SIZE);
            }
        }
    }
}
