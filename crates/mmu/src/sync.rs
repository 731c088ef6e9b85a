//! Atomics and locks: the standard library's, or under `--cfg loom` and `--cfg shuttle` those of the model checkers.

#[cfg(loom)]
use loom as threads;
#[cfg(shuttle)]
use shuttle as threads;
#[cfg(not(any(loom, shuttle)))]
use std as threads;

#[cfg(loom)]
mod ordered;

#[cfg(loom)]
pub(crate) use ordered::AtomicU64;
#[cfg(not(loom))]
pub(crate) use threads::sync::atomic::AtomicU64;
pub(crate) use threads::sync::{
    Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU32, Ordering, fence},
};

/// The entries of shadow pages. Whole pages are changed with the lock held for writing: to let the scheduler choose at each of
/// 512 entries finds nothing.
#[cfg(not(shuttle))]
pub(crate) type PlainAtomicU64 = AtomicU64;
#[cfg(shuttle)]
pub(crate) type PlainAtomicU64 = core::sync::atomic::AtomicU64;

/// Locks; a thread that panicked with the lock held leaves consistent data behind, since no lock is held across
/// anything that can fail.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Lets another thread run, which has to act before this one can go on.
pub(crate) fn spin() {
    #[cfg(any(loom, shuttle))]
    threads::thread::yield_now();
    #[cfg(not(any(loom, shuttle)))]
    core::hint::spin_loop();
}

/// Stores the value of an entry that its owner has frozen. Others may have swapped "frozen" for "frozen" meanwhile.
#[cfg(not(loom))]
#[inline]
pub(crate) fn unfreeze(entry: &AtomicU64, value: u64) {
    entry.store(value, Ordering::Release);
}

/// The same. To loom a store may come before a swap that has read what was there before; to C++ and hardware it may not,
/// and neither may another swap.
#[cfg(loom)]
pub(crate) fn unfreeze(entry: &AtomicU64, value: u64) {
    entry.swap(value, Ordering::Release);
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

/// Explores the interleavings with at most so many preemptions, and prints how many they are.
#[cfg(all(test, loom))]
pub(crate) fn explore(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 20_000;
    let count = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let explored = std::sync::Arc::clone(&count);
    model.check(move || {
        explored.fetch_add(1, Ordering::Relaxed);
        run();
    });
    println!("{} interleavings", count.load(Ordering::Relaxed));
}
