//! Invalidations by the host's memory management, and how a fault finds out that one came in between
//! (`kvm_main.c:kvm_mmu_invalidate_begin`, `kvm_host.h:mmu_invalidate_retry_gfn`).

use slat_memslot::{Gfn, GfnRange};

/// How many invalidations had ended at some moment (`mmu_invalidate_seq`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(u64);

/// Invalidations of one VM. Changed with the lock held for writing; read by faults.
///
/// ```
/// use slat_memslot::{Gfn, GfnRange, Pages};
/// use slat_mmu::fault::Invalidation;
/// let mut invalidation = Invalidation::default();
/// let before = invalidation.sequence();
/// invalidation.begin();
/// invalidation.add(GfnRange::new(Gfn::new(0x10), Pages::new(4)).unwrap());
/// assert!(invalidation.must_retry(before, Gfn::new(0x12)));
/// assert!(!invalidation.must_retry(before, Gfn::new(0x14)));
/// invalidation.end();
/// // What was asked for before may be stale now, wherever it was.
/// assert!(invalidation.must_retry(before, Gfn::new(0x14)));
/// assert!(!invalidation.must_retry(invalidation.sequence(), Gfn::new(0x12)));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Invalidation {
    in_progress: u32,
    range: Option<(Gfn, Gfn)>,
    sequence: Sequence,
}

impl Invalidation {
    /// How many have ended so far. A fault notes it before it asks for its page.
    #[inline]
    pub const fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Whether any is under way: neighbours of a fault are left alone then.
    #[inline]
    pub const fn is_in_progress(&self) -> bool {
        self.in_progress > 0
    }

    /// One begins. Its range follows.
    pub const fn begin(&mut self) {
        self.in_progress += 1;
        if self.in_progress == 1 {
            self.range = None;
        }
    }

    /// Its frames. While any is in progress the range only grows, to the least that covers all of them.
    pub fn add(&mut self, range: GfnRange) {
        debug_assert!(self.in_progress > 0, "no invalidation is in progress");
        let (start, end) = (range.start(), range.end());
        self.range = Some(match self.range {
            None => (start, end),
            Some((first, last)) => (first.min(start), last.max(end)),
        });
    }

    /// One has ended.
    ///
    /// # Panics
    /// None is in progress.
    pub const fn end(&mut self) {
        assert!(self.in_progress > 0, "no invalidation is in progress");
        self.sequence.0 += 1;
        self.in_progress -= 1;
    }

    /// Whether a fault on a frame that noted `since` must ask again.
    #[inline]
    pub fn must_retry(&self, since: Sequence, gfn: Gfn) -> bool {
        if self.in_progress > 0 {
            let covers = |(start, end): (Gfn, Gfn)| (start..end).contains(&gfn);
            // Before its range is known, everything may be in it.
            if self.range.is_none_or(covers) {
                return true;
            }
        }
        self.sequence != since
    }
}
