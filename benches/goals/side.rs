//! What every side of the page-table targets implements: slat, the floors, the other projects.
//!
//! Guest frames run from 0, a whole number of 2 MiB; the page behind frame `gfn` is [`pfn`]`(gfn)`, and all leaves are 4 KiB.

use std::time::{Duration, Instant};

use crate::paired::Side;

/// 4 KiB pages of a GiB.
pub(crate) const GIB: u64 = 1 << 18;

/// The page behind a guest frame.
pub(crate) const fn pfn(gfn: u64) -> u64 {
    gfn + (1 << 22)
}

/// What the tables say about a guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Absent,
    Page(u64),
    /// A page that cannot be written.
    Protected(u64),
    Mmio,
}

/// What tables are filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filling {
    /// A leaf for every frame.
    Full,
    /// Leaves for half of the frames, at random; tables are there for all.
    Half,
    /// An MMIO entry for one frame in sixteen, at random; leaves for the others.
    Mmio,
}

impl Filling {
    /// What is there for a frame.
    #[inline]
    pub(crate) fn at(self, gfn: u64) -> Seen {
        match self {
            Self::Half if random(gfn) & 1 == 0 => Seen::Absent,
            Self::Mmio if random(gfn) & 15 == 0 => Seen::Mmio,
            Self::Full | Self::Half | Self::Mmio => Seen::Page(pfn(gfn)),
        }
    }
}

/// A number for a frame that looks random (the finalizer of splitmix64).
fn random(gfn: u64) -> u64 {
    let mixed = (gfn + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// How leaves lose the right to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// All at once, with the tables to itself.
    Exclusive,
    /// All at once, by atomic operations: other threads may change entries.
    Shared,
    /// 64 frames at a time, with the tables to itself: a word of a fully dirty log.
    ByWord,
}

/// Work with the tables to itself (`mmu_lock` held for write), but for [`Protection::Shared`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Target 1: makes every leaf non-present, keeps tables and MMIO entries. Nothing is harvested.
    Zap(Filling),
    /// Target 2: the same over full tables, with A/D bits harvested and pages counted. All leaves are accessed and dirty.
    Harvest,
    /// Target 4: gives back all tables of a full, invalid root that nobody uses any more, leaves unseen.
    Free,
    /// Targets 6 and 12: maps every frame with 4 KiB leaves, from an empty root, with tables that were used before.
    Map,
    /// Target 8: takes the right to write from every leaf, in this way; all leaves are writable.
    Protect(Protection),
    /// Target 13: looks at every entry: plain walks count leaves, slat audits.
    Walk,
}

impl Kind {
    /// What is there for a frame before the work.
    fn before(self, gfn: u64) -> Seen {
        match self {
            Self::Zap(filling) => filling.at(gfn),
            Self::Map => Seen::Absent,
            Self::Harvest | Self::Free | Self::Walk | Self::Protect(_) => Filling::Full.at(gfn),
        }
    }

    /// What is there after it.
    fn after(self, gfn: u64) -> Seen {
        match self {
            Self::Zap(filling) => match filling.at(gfn) {
                Seen::Mmio => Seen::Mmio,
                Seen::Absent | Seen::Page(_) | Seen::Protected(_) => Seen::Absent,
            },
            Self::Protect(_) => Seen::Protected(pfn(gfn)),
            Self::Harvest | Self::Free => Seen::Absent,
            Self::Map | Self::Walk => Filling::Full.at(gfn),
        }
    }
}

/// What [`Kind::Harvest`] and [`Kind::Walk`] count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) leaves: u64,
    pub(crate) accessed: u64,
    pub(crate) dirty: u64,
}

/// One side of one [`Kind`] of work over a number of pages.
pub(crate) trait Job {
    /// Sets the stage, the first time and after each run. Not timed.
    fn prepare(&mut self);
    /// The work, timed.
    fn run(&mut self);
    /// What the tables say about a frame now.
    fn seen(&mut self, gfn: u64) -> Seen;
    /// What the last run counted; for walks and harvests.
    fn counted(&self) -> Counts {
        Counts::default()
    }
}

/// Target 3: an invalid root is zapped under the lock held for reading, the children of each table frozen one by one, while
/// another thread faults pages in below the root that replaced it.
pub(crate) trait SharedZap: Sync {
    /// A full root, invalid since, and an empty one in its place. Not timed.
    fn prepare(&mut self);
    /// Zaps the invalid root with the lock held for reading. Timed.
    fn zap(&self);
    /// What a thread maps pages below the new root with, one at a time, each with the lock held for reading.
    fn vcpu(&self) -> Box<dyn FnMut(u64) + '_>;
    /// What the new root says about a frame.
    fn seen(&self, gfn: u64) -> Seen;
    /// How many leaves the invalid root still has.
    fn left(&self) -> u64;
}

/// Target 4: all roots invalidated at once, whatever they map.
pub(crate) trait FastZap {
    /// Invalidates all roots this often, each time valid ones; what makes them valid again does not count.
    fn invalidate(&mut self, times: u64) -> Duration;
    /// How often all roots were invalidated so far.
    fn generation(&self) -> u64;
}

/// Checks a job's results once, then makes a side of it.
pub(crate) fn side(label: &str, kind: Kind, pages: u64, mut job: impl Job + 'static) -> Side {
    verify(label, kind, pages, &mut job);
    Side::timed(label, move |times| {
        let mut total = Duration::ZERO;
        for _ in 0..times {
            job.prepare();
            if pages <= GIB && kind != Kind::Map {
                look(&mut job, pages);
            }
            let start = Instant::now();
            job.run();
            total += start.elapsed();
        }
        total
    })
}

/// Looks at one entry of each cache line of tables that fit a cache. Stages are set in ways that take from a fifth of a
/// millisecond to ten, and caches that other machines share forget in that time: every side has looked just now.
fn look(job: &mut impl Job, pages: u64) {
    for gfn in (0..pages).step_by(8) {
        let _seen = std::hint::black_box(job.seen(gfn));
    }
}

/// Jobs behind a pointer, as slat's are.
impl Job for Box<dyn Job> {
    fn prepare(&mut self) {
        self.as_mut().prepare();
    }

    fn run(&mut self) {
        self.as_mut().run();
    }

    fn seen(&mut self, gfn: u64) -> Seen {
        self.as_mut().seen(gfn)
    }

    fn counted(&self) -> Counts {
        self.as_ref().counted()
    }
}

/// Checks twice, so that what a run leaves behind is fit for the next one.
fn verify(label: &str, kind: Kind, pages: u64, job: &mut impl Job) {
    // All frames of a GiB; of more, some of each table.
    let step = if pages > GIB { 61 } else { 1 };
    for _ in 0..2 {
        job.prepare();
        for gfn in (0..pages).step_by(step) {
            assert_eq!(job.seen(gfn), kind.before(gfn), "{label}: {gfn:#x} before");
        }
        job.run();
        for gfn in (0..pages).step_by(step) {
            assert_eq!(job.seen(gfn), kind.after(gfn), "{label}: {gfn:#x} after");
        }
        let leaves = pages;
        let counted = match kind {
            Kind::Zap(_) | Kind::Free | Kind::Map | Kind::Protect(_) => continue,
            Kind::Walk => Counts {
                leaves,
                ..Counts::default()
            },
            Kind::Harvest => Counts {
                leaves,
                accessed: leaves,
                dirty: leaves,
            },
        };
        assert_eq!(job.counted(), counted, "{label}");
    }
}
