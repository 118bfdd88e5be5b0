//! Ctrl-C and termination requests, as a flag that long work looks at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};

/// The error of work that stopped because of Ctrl-C.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// The flag, set by the first Ctrl-C.
static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Starts to watch for Ctrl-C. The first one sets the flag; a second one ends the process at once.
pub fn watch() -> Arc<AtomicBool> {
    let flag = FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the shutdown looks at the flag before the same signal sets it. When either cannot be
            // registered, the signal keeps its default effect, which ends the process.
            let _ = signal_hook::flag::register_conditional_shutdown(
                signal,
                crate::status::INTERRUPTED.into(),
                Arc::clone(&flag),
            );
            let _ = signal_hook::flag::register(signal, Arc::clone(&flag));
        }
        flag
    });
    Arc::clone(flag)
}

/// Whether Ctrl-C has been pressed since the last [`clear`].
#[must_use]
pub fn requested() -> bool {
    FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Forgets an interrupt that has been dealt with.
pub fn clear() {
    if let Some(flag) = FLAG.get() {
        flag.store(false, Ordering::Relaxed);
    }
}
