//! Atomics and locks: the standard library's, or under `--cfg loom` those of the model checker.

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
};

/// Locks; a thread that panicked with the lock held leaves consistent data behind, since no lock is held across
/// anything that can fail.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Lets another thread run, which has to act before this one can go on.
pub(crate) fn spin() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    core::hint::spin_loop();
}

/// The value, for whoever has it to himself.
#[cfg(not(loom))]
#[inline]
pub(crate) fn value(atomic: &mut AtomicU64) -> u64 {
    *atomic.get_mut()
}

/// Sets the value, for whoever has it to himself.
#[cfg(not(loom))]
#[inline]
pub(crate) fn set_value(atomic: &mut AtomicU64, value: u64) {
    *atomic.get_mut() = value;
}

/// The value, for whoever has it to himself.
#[cfg(loom)]
pub(crate) fn value(atomic: &mut AtomicU64) -> u64 {
    atomic.with_mut(|value| *value)
}

/// Sets the value, for whoever has it to himself.
#[cfg(loom)]
pub(crate) fn set_value(atomic: &mut AtomicU64, new: u64) {
    atomic.with_mut(|value| *value = new);
}
