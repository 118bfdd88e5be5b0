//! Exit statuses.
//!
//! A host process has 8 bits for what a Windows process says in 32. The low 8 bits are passed on, except that an
//! NTSTATUS error, with which Windows ends a crashed process, becomes what a shell shows for the corresponding signal.

/// An error of lstar itself: nothing ran, or lstar could not go on.
pub const ERROR: u8 = 2;
/// The time limit is reached, as `timeout` has it.
pub const TIMED_OUT: u8 = 124;
/// Ended by Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// SIGILL, SIGTRAP, SIGABRT, SIGFPE and SIGSEGV, as a shell shows them.
const ILLEGAL: u8 = 128 + 4;
const TRAP: u8 = 128 + 5;
const ABORT: u8 = 128 + 6;
const ARITHMETIC: u8 = 128 + 8;
const SEGMENT: u8 = 128 + 11;

/// The exit status for a guest's.
#[must_use]
pub fn of_guest(status: u32) -> u8 {
    match status {
        0x8000_0003 | 0x8000_0004 => TRAP,                  // breakpoint, single step
        0x8000_0001 | 0x8000_0002 => SEGMENT,               // guard page, misalignment
        0xC000_0005 | 0xC000_0006 | 0xC000_00FD => SEGMENT, // access violation, in-page error, stack overflow
        0xC000_001D | 0xC000_001E | 0xC000_0096 => ILLEGAL, // illegal instruction, lock sequence, privileged
        0xC000_008C..=0xC000_0095 | 0xC000_02B4 | 0xC000_02B5 => ARITHMETIC, // bounds, floating point, integer
        // Severity "error" with a system's facility; programs use small numbers, or -1 and its neighbours.
        0xC000_0000..=0xDFFF_FFFF => ABORT,
        _ => status as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_statuses_keep_their_low_bits() {
        for (status, expected) in [(0, 0), (1, 1), (2, 2), (255, 255), (259, 3), (u32::MAX, 255), (0xFFFF_FFFE, 254)] {
            assert_eq!(of_guest(status), expected, "{status:#x}");
        }
    }

    #[test]
    fn crashes_look_like_signals() {
        for (status, expected) in [
            (0xC000_0005, 139),
            (0xC000_00FD, 139),
            (0xC000_001D, 132),
            (0xC000_0096, 132),
            (0xC000_0094, 136),
            (0x8000_0003, 133),
            (0xC000_0409, 134),
            (0xC000_0135, 134),
        ] {
            assert_eq!(of_guest(status), expected, "{status:#x}");
        }
    }
}
