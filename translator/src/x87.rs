//! The guest's x87 in the host's: what translated code and the runtime agree on.
//!
//! While [`VcpuBlock::x87_live`] is not 0, the guest's x87 registers, tags, TOP, status and control word are those of the host's
//! x87; the block's are out of date. Translated code then executes an x87 instruction by the very same instruction, so that
//! results, exception flags, stack faults and condition codes are the processor's own. The address and opcode of the last
//! instruction, which the host's x87 knows of itself only, are in the block.
//!
//! The state moves in ([`VcpuBlock::x87_enter`]) when translated code meets an x87 instruction and all exceptions are masked;
//! otherwise the interpreter carries it out. It moves out when translated code works on MMX registers ([`VcpuBlock::x87_leave`]),
//! and before any Rust code that may look at the guest's registers: helpers other than leaves, the stubs, and the return from
//! translated code.
//!
//! [`VcpuBlock::x87_live`]: crate::abi::VcpuBlock::x87_live
//! [`VcpuBlock::x87_enter`]: crate::abi::VcpuBlock::x87_enter
//! [`VcpuBlock::x87_leave`]: crate::abi::VcpuBlock::x87_leave

const OPCODE: u64 = 0x7FF;
const RECORDED: u64 = 1 << 11;

/// What [`crate::abi::VcpuBlock::x87_last`] holds for the last instruction: its address, which is canonical, and opcode.
#[must_use]
pub const fn last(rip: u64, opcode: u16) -> u64 {
    rip << 16 | RECORDED | opcode as u64 & OPCODE
}

/// Address and opcode of the last instruction; `None` if there was none that records them since the state moved in.
#[must_use]
pub const fn unpack_last(last: u64) -> Option<(u64, u16)> {
    if last & RECORDED == 0 {
        return None;
    }
    Some(((last as i64 >> 16) as u64, (last & OPCODE) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_halves_survive() {
        for rip in [0, 0x7FF6_1234_5678, 0xFFFF_F800_0000_1000] {
            assert_eq!(unpack_last(last(rip, 0x7C1)), Some((rip, 0x7C1)));
        }
        assert_eq!(unpack_last(0), None);
    }
}
