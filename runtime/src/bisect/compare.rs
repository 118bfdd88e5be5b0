//! Two machines that should be alike.

use crate::machine::Machine;

use super::scene::{Ending, Landing};

/// Bytes compared at a time.
const CHUNK: usize = 1 << 16;
/// Differing bytes that are told.
const MOST_BYTES: usize = 32;

/// What differs between the registers of two stopped machines, and in their memory where `memory` says so: what it is,
/// what `a` has, what `b` has.
#[must_use]
pub fn differences(a: &Machine, b: &Machine, memory: bool) -> Vec<(String, String, String)> {
    let landing = |machine: &Machine| Landing {
        cpu: machine.core.cpu().clone(),
        retired: machine.core.retired(),
        ending: Ending::Running,
        stores: Vec::new(),
    };
    let (left, mut right) = (landing(a), landing(b));
    if memory {
        right.stores = differing_bytes(a, b);
    }
    let mut list = left.differences(&right, 0);
    if left.retired != right.retired {
        list.push(("instructions".to_owned(), left.retired.to_string(), right.retired.to_string()));
    }
    list
}

/// The first bytes that differ where both have memory.
fn differing_bytes(a: &Machine, b: &Machine) -> Vec<(u64, u8, u8)> {
    let mut list = Vec::new();
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    for (start, size) in a.core.memory.mapped() {
        for at in (start..start + size).step_by(CHUNK) {
            let count = (start + size - at).min(CHUNK as u64) as usize;
            let (left, right) = (&mut left[..count], &mut right[..count]);
            let readable =
                a.core.memory.read_unchecked(at, left).is_ok() && b.core.memory.read_unchecked(at, right).is_ok();
            if !readable || left == right {
                continue;
            }
            let differing = (at..).zip(left.iter().zip(right.iter())).filter(|(_, (a, b))| a != b);
            list.extend(differing.map(|(address, (a, b))| (address, *a, *b)).take(MOST_BYTES));
            if list.len() >= MOST_BYTES {
                return list;
            }
        }
    }
    list
}
