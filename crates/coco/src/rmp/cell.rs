//! One entry in memory: read without a lock, changed with one.

use super::entry::RmpEntry;
use super::raw::{self, Wanted};
use crate::sync::{AtomicU64, Ordering, fence, spin};

/// One entry.
#[derive(Debug)]
pub(super) struct Cell {
    low: AtomicU64,
    high: AtomicU64,
}

/// The value of an entry, and how to tell whether it is still that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    low: u64,
    high: u64,
}

impl Seen {
    pub(super) const ZERO: Self = Self { low: 0, high: 0 };

    #[inline]
    pub(super) const fn entry(self) -> RmpEntry {
        RmpEntry::from_words(self.low, self.high)
    }

    #[inline]
    pub(super) const fn is_huge(self) -> bool {
        raw::is_huge(self.low)
    }

    #[inline]
    pub(super) const fn is_assigned(self) -> bool {
        self.low & raw::ASSIGNED != 0
    }
}

impl Cell {
    pub(super) const fn new() -> Self {
        Self {
            low: AtomicU64::new(0),
            high: AtomicU64::new(0),
        }
    }

    /// The entry as it was when it was last not locked, or as it is about to be.
    #[inline]
    pub(super) fn peek(&self) -> u64 {
        self.low.load(Ordering::SeqCst)
    }

    /// Its lower word, if nobody holds the lock.
    pub(super) fn peek_unlocked(&self) -> Option<Seen> {
        let low = self.peek();
        (low & raw::LOCK == 0).then_some(Seen { low, high: 0 })
    }

    /// Whether nobody has written since it was seen.
    #[inline]
    pub(super) fn is_still(&self, seen: Seen) -> bool {
        self.peek() & !raw::LOCK == seen.low
    }

    /// Both words, of one moment. Who holds the lock without writing is not waited for.
    pub(super) fn read(&self) -> Seen {
        loop {
            if let Some(seen) = self.try_read() {
                return seen;
            }
            spin();
        }
    }

    /// The same if nobody is writing.
    #[inline]
    fn try_read(&self) -> Option<Seen> {
        let low = self.low.load(Ordering::SeqCst) & !raw::LOCK;
        let high = self.high.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let still = self.low.load(Ordering::Relaxed) & !raw::LOCK == low;
        (still && !raw::is_writing(low)).then_some(Seen { low, high })
    }

    /// Whether both words have at one moment all that is wanted. If that cannot be told at a glance, they have not.
    #[inline(always)]
    pub(super) fn has(&self, wanted: &Wanted) -> bool {
        let low = self.low.load(Ordering::SeqCst);
        let high = self.high.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        self.low.load(Ordering::Relaxed) == low && wanted.are_in(low, high)
    }

    /// Whether the page is fixed to the hypervisor.
    pub(super) fn is_fixed(&self) -> bool {
        raw::is_fixed(self.high.load(Ordering::SeqCst))
    }

    pub(super) fn try_lock(&self) -> Option<Held<'_>> {
        let low = self.low.load(Ordering::SeqCst);
        if low & raw::LOCK != 0 {
            return None;
        }
        let locked = low | raw::LOCK;
        self.low
            .compare_exchange(low, locked, Ordering::SeqCst, Ordering::SeqCst)
            .ok()?;
        let high = self.high.load(Ordering::SeqCst);
        let seen = Seen { low, high };
        Some(Held {
            cell: self,
            seen,
            after: None,
        })
    }
}

/// A locked entry. It is unlocked when this goes, with the value that was set last.
#[derive(Debug)]
pub(super) struct Held<'t> {
    cell: &'t Cell,
    seen: Seen,
    after: Option<RmpEntry>,
}

impl Held<'_> {
    #[inline]
    pub(super) const fn seen(&self) -> Seen {
        self.seen
    }

    #[inline]
    pub(super) const fn entry(&self) -> RmpEntry {
        self.seen.entry()
    }

    /// Sets what the entry shall be.
    pub(super) const fn set(&mut self, entry: RmpEntry) {
        self.after = Some(entry);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let (cell, before) = (self.cell, self.seen.low);
        let Some(after) = &self.after else {
            cell.low.store(before, Ordering::Release);
            return;
        };
        cell.low.store(raw::writing(before), Ordering::Relaxed);
        // Nobody sees the upper word change who does not see that it is being written.
        fence(Ordering::Release);
        cell.high.store(after.high(), Ordering::Relaxed);
        cell.low
            .store(raw::written(before, after.raw()), Ordering::Release);
    }
}
