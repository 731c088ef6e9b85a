//! An atomic whose accesses loom tries in every order.
//!
//! To find the orders that matter, loom remembers for each object the last access only. A thread that loads a value and
//! then exchanges it hides from loom that another thread had loaded it before, and the order in which that thread comes
//! too late is never tried. So each access here begins with an exchange that everybody's accesses to the value share; being
//! relaxed, it orders nothing in memory.

use loom::sync::atomic::{AtomicBool, AtomicU64 as Inner, Ordering};

/// [`std::sync::atomic::AtomicU64`], as far as it is used here.
#[derive(Debug)]
pub struct AtomicU64 {
    turn: AtomicBool,
    value: Inner,
}

impl AtomicU64 {
    pub(crate) fn new(value: u64) -> Self {
        Self {
            turn: AtomicBool::new(false),
            value: Inner::new(value),
        }
    }

    fn turn(&self) -> &Inner {
        self.turn.swap(true, Ordering::Relaxed);
        &self.value
    }

    pub(crate) fn load(&self, order: Ordering) -> u64 {
        self.turn().load(order)
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        self.turn().store(value, order);
    }

    pub(crate) fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.turn().swap(value, order)
    }

    pub(crate) fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.turn().fetch_or(bits, order)
    }

    pub(crate) fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.turn().fetch_and(bits, order)
    }

    pub(crate) fn compare_exchange(
        &self,
        old: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.turn().compare_exchange(old, new, success, failure)
    }

    pub(crate) fn fetch_update(
        &self,
        success: Ordering,
        failure: Ordering,
        change: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        self.turn().fetch_update(success, failure, change)
    }

    pub(crate) fn with_mut<R>(&mut self, act: impl FnOnce(&mut u64) -> R) -> R {
        self.value.with_mut(act)
    }
}

impl Default for AtomicU64 {
    fn default() -> Self {
        Self::new(0)
    }
}
