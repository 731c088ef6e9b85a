//! Locks and atomics: the standard library's, or under `--cfg shuttle` those of the model checker.

#[cfg(shuttle)]
use shuttle as threads;
#[cfg(not(shuttle))]
use std as threads;

pub(crate) use threads::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub(crate) use threads::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks; a thread that panicked with the lock held leaves consistent data behind, since what can fail is checked before
/// anything is changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The same for reading.
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The same for writing.
pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Where another thread may come in between; a model checker's only.
#[inline]
pub(crate) fn interleave() {
    #[cfg(shuttle)]
    threads::thread::yield_now();
}

/// Lets other threads run.
pub(crate) fn pause() {
    threads::thread::yield_now();
}
