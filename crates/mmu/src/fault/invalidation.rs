//! Invalidations by the host's memory management, and how a fault finds out that one came in between
//! (`kvm_main.c:kvm_mmu_invalidate_begin`, `kvm_host.h:mmu_invalidate_retry_gfn`).

use slat_memslot::{Gfn, GfnRange};

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::tdp::HeldForWriting;

/// How many invalidations had ended at some moment (`mmu_invalidate_seq`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(u64);

/// Invalidations of one VM: changed with the lock held for writing, read by any thread at any time.
///
/// A fault asks [`Invalidation::must_retry`] twice. Before it takes the lock the answer is a hint, that saves asking for a
/// page in vain; with the lock held it is exact, since nobody can change anything then.
///
/// ```
/// use slat_memslot::{Gfn, GfnRange, Pages};
/// use slat_mmu::fault::Invalidation;
/// use slat_mmu::{host::Host, spte::Ept, tdp::{Limits, Tables, Unobserved}};
/// let limits = Limits { tables: 1, readers: 1 };
/// let mut tables = Tables::<Ept>::with_limits(&Host::ept(46), limits);
/// let invalidation = Invalidation::default();
/// let before = invalidation.sequence();
///
/// let held = tables.exclusive(Unobserved);
/// invalidation.begin(&held);
/// invalidation.add(&held, GfnRange::new(Gfn::new(0x10), Pages::new(4)).unwrap());
/// assert!(invalidation.must_retry(before, Gfn::new(0x12)));
/// assert!(!invalidation.must_retry(before, Gfn::new(0x14)));
/// invalidation.end(&held);
/// // What was asked for before may be stale now, wherever it was.
/// assert!(invalidation.must_retry(before, Gfn::new(0x14)));
/// assert!(!invalidation.must_retry(invalidation.sequence(), Gfn::new(0x12)));
/// ```
#[derive(Debug)]
pub struct Invalidation {
    in_progress: AtomicU32,
    /// The frames from here on,
    start: AtomicU64,
    /// up to here. None yet, if this is not behind `start`: then it may be any.
    end: AtomicU64,
    sequence: AtomicU64,
}

impl Default for Invalidation {
    fn default() -> Self {
        Self {
            in_progress: AtomicU32::new(0),
            start: AtomicU64::new(u64::MAX),
            end: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
        }
    }
}

impl Invalidation {
    /// How many have ended so far. A fault notes it before it asks for its page, so that it sees all that those have
    /// done.
    #[inline]
    pub fn sequence(&self) -> Sequence {
        Sequence(self.sequence.load(Ordering::Acquire))
    }

    /// Whether any is under way: neighbours of a fault are left alone then.
    #[inline]
    pub fn is_in_progress(&self) -> bool {
        self.in_progress.load(Ordering::Acquire) > 0
    }

    /// One begins. Its range follows.
    pub fn begin(&self, _held: &impl HeldForWriting) {
        let in_progress = self.in_progress.load(Ordering::Relaxed);
        if in_progress == 0 {
            self.start.store(u64::MAX, Ordering::Relaxed);
            self.end.store(0, Ordering::Relaxed);
        }
        self.in_progress.store(in_progress + 1, Ordering::Relaxed);
    }

    /// Its frames. While any is in progress the range only grows, to the least that covers all of them.
    pub fn add(&self, _held: &impl HeldForWriting, range: GfnRange) {
        debug_assert!(
            self.in_progress.load(Ordering::Relaxed) > 0,
            "no invalidation is in progress"
        );
        let start = self.start.load(Ordering::Relaxed).min(range.start().raw());
        let end = self.end.load(Ordering::Relaxed).max(range.end().raw());
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
    }

    /// One has ended.
    ///
    /// # Panics
    /// None is in progress.
    pub fn end(&self, _held: &impl HeldForWriting) {
        let in_progress = self.in_progress.load(Ordering::Relaxed);
        assert!(in_progress > 0, "no invalidation is in progress");
        // Who sees the new number sees what was done before.
        let sequence = self.sequence.load(Ordering::Relaxed) + 1;
        self.sequence.store(sequence, Ordering::Release);
        self.in_progress.store(in_progress - 1, Ordering::Release);
    }

    /// Whether a fault on a frame that noted `since` must ask again: exact with the lock held on either side, else a hint
    /// (`mmu_invalidate_retry_gfn`, `mmu_invalidate_retry_gfn_unsafe`).
    #[inline]
    pub fn must_retry(&self, since: Sequence, gfn: Gfn) -> bool {
        self.may_hold(gfn) || self.sequence() != since
    }

    /// Whether an invalidation in progress may be about a frame: before its range is known, any.
    #[inline]
    fn may_hold(&self, gfn: Gfn) -> bool {
        if self.in_progress.load(Ordering::Acquire) == 0 {
            return false;
        }
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        start >= end || (start..end).contains(&gfn.raw())
    }
}
