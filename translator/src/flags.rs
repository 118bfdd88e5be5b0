//! Lazy status flags.
