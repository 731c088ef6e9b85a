//! When a long operation gives up the lock for a moment.

use core::num::NonZeroU32;

/// Whether somebody else wants the processor or the lock (`need_resched() || rwlock_needbreak()`).
///
/// Asked before every entry that is visited, but never before progress was made since the last time it gave way.
pub trait Resched {
    /// Whether it may ever want to. If not, whole tables are done at a time.
    const ENABLED: bool = true;

    /// Whether to give way now.
    fn is_needed(&mut self) -> bool;
}

/// Runs to the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uninterrupted;

impl Resched for Uninterrupted {
    const ENABLED: bool = false;

    #[inline]
    fn is_needed(&mut self) -> bool {
        false
    }
}

/// A budget: gives way after this many entries, again and again.
#[derive(Clone, Copy, Debug)]
pub struct Every {
    entries: NonZeroU32,
    left: u32,
}

impl Every {
    /// Gives way after `entries` entries.
    pub const fn new(entries: NonZeroU32) -> Self {
        Self {
            entries,
            left: entries.get(),
        }
    }
}

impl Resched for Every {
    #[inline]
    fn is_needed(&mut self) -> bool {
        self.left -= 1;
        let needed = self.left == 0;
        if needed {
            self.left = self.entries.get();
        }
        needed
    }
}

/// Where an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a paused operation is not over"]
pub enum Progress {
    /// It is over.
    Done,
    /// It gave way: give up the lock, take it again, and go on.
    Paused,
}
