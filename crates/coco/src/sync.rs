//! Atomics and locks: the standard library's, or under `--cfg shuttle` those of the model checker.

#[cfg(shuttle)]
use shuttle as threads;
#[cfg(not(shuttle))]
use std as threads;

pub(crate) use threads::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
pub(crate) use threads::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Lets another thread run, which has to act before this one can go on.
pub(crate) fn spin() {
    #[cfg(shuttle)]
    threads::thread::yield_now();
    #[cfg(not(shuttle))]
    core::hint::spin_loop();
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

/// Locks. A panic of another holder is that holder's; what is behind the lock stays whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Locks for reading.
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Locks for writing.
pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
