//! Threads.

/// UniqueThread of a client identifier.
pub type ThreadId = u32;

/// User-mode state to go on with, replacing the caller's.
#[derive(Debug)]
pub struct Resume;
