//! Atomics and locks: the standard library's, or under `--cfg shuttle` those of the model checker.

#[cfg(shuttle)]
use shuttle as threads;
#[cfg(not(shuttle))]
use std as threads;

pub(crate) use threads::sync::atomic::{AtomicU64, Ordering};

/// Lets another thread run, which has to act before this one can go on.
pub(crate) fn spin() {
    #[cfg(shuttle)]
    threads::thread::yield_now();
    #[cfg(not(shuttle))]
    core::hint::spin_loop();
}
