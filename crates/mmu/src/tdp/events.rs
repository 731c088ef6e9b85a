//! What the MMU reports while it works: KVM's tracepoints, as values, in the kernel's order.

use slat_memslot::{AsId, Gfn, GfnRange, Level, Pages};

use super::fast::Fast;
use crate::role::PageRole;
use crate::shadow::{PageId, PageInfo, ValidGeneration};
use crate::spte::{Marks, Mmio, Pfn, Spte};
use crate::table::TableId;

/// What a split came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SplitResult {
    /// The table is linked.
    Done,
    /// Another thread changed the entry first (`-EBUSY`).
    Lost,
    /// No table could be had (`-ENOMEM`).
    OutOfTables,
    /// Too few shadow pages are free (`-ENOSPC`).
    NoRoom,
    /// The lock was given up to get memory, and everything is looked at again (`-EAGAIN`).
    Again,
}

impl SplitResult {
    /// As the tracepoint prints it.
    pub const fn errno(self) -> i32 {
        match self {
            Self::Done => 0,
            Self::Lost => -16,
            Self::OutOfTables => -12,
            Self::NoRoom => -28,
            Self::Again => -11,
        }
    }
}

/// Which translations the vCPUs must forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlushScope {
    /// All of the VM (`kvm_flush_remote_tlbs`).
    All,
    /// Those of some frames (`kvm_flush_remote_tlbs_range`).
    Frames(GfnRange),
}

/// Why TLBs are flushed now, instead of once at the end of the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlushReason {
    /// A table was replaced by a huge leaf.
    TableReplaced,
    /// An entry is frozen until nobody can use it any more (`tdp_mmu.c:tdp_mmu_zap_spte_atomic`).
    ZappedAtomically,
    /// The lock is about to be given up, and others could see what was zapped under it.
    Yield,
}

/// One thing that happened.
///
/// Each variant names its tracepoint. Values are those that the tracepoint has, but for addresses: a table is known by its
/// number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Event<F> {
    /// An entry changed (`kvm_tdp_mmu_spte_changed`). A parent's comes before those of the table it linked to.
    SpteChanged {
        /// The address space.
        as_id: AsId,
        /// The first frame of the entry.
        gfn: Gfn,
        /// The level of the table it is in.
        level: Level,
        /// What it was.
        old: Spte<F>,
        /// What it is.
        new: Spte<F>,
    },
    /// A table was made (`kvm_mmu_get_page`). It may be dropped again, if the race to link it is lost.
    PageAllocated {
        /// Its number.
        table: TableId,
        /// The first frame it covers; 0 for a root.
        gfn: Gfn,
        /// Its role.
        role: PageRole,
    },
    /// A table is about to be taken apart (`kvm_mmu_prepare_zap_page`).
    PageZapped {
        /// Its number.
        table: TableId,
        /// The first frame it covers.
        gfn: Gfn,
        /// Its role.
        role: PageRole,
    },
    /// A fault is about to go down to the entry that it wants (`kvm_mmu_spte_requested`).
    SpteRequested {
        /// The frame that was accessed.
        gfn: Gfn,
        /// The page behind it; none where no slot is.
        pfn: Option<Pfn>,
        /// The level of the leaf that it wants, which a table may stand in the way of.
        level: Level,
    },
    /// A fault stored a leaf, or found it there (`kvm_mmu_set_spte`).
    SpteSet {
        /// The level of the table it is in.
        level: Level,
        /// Its first frame.
        gfn: Gfn,
        /// The entry, read again.
        spte: Spte<F>,
    },
    /// A fault stored an MMIO entry (`mark_mmio_spte`).
    MmioMarked {
        /// What it says.
        mmio: Mmio,
        /// The entry. The tracepoint takes its low three bits for the access, whatever the format keeps there.
        spte: Spte<F>,
    },
    /// A huge leaf was split, or could not be (`kvm_mmu_split_huge_page`).
    HugePageSplit {
        /// Its first frame.
        gfn: Gfn,
        /// What it was.
        spte: Spte<F>,
        /// Its level.
        level: Level,
        /// What came of it.
        result: SplitResult,
    },
    /// A fault was tried on its leaf alone (`fast_page_fault`). A change made so is reported by nothing else.
    FastFault {
        /// The frame.
        gfn: Gfn,
        /// The entry that was found.
        old: Spte<F>,
        /// The entry, read again.
        new: Spte<F>,
        /// What came of it.
        fast: Fast,
    },
    /// All roots are about to be invalidated (`kvm_mmu_zap_all_fast`).
    ZapAllFast,
    /// A shadow page was found or made (`kvm_mmu_get_page`).
    ShadowPage {
        /// The page.
        page: PageInfo,
        /// Whether it was made.
        created: bool,
    },
    /// A shadow page is about to be taken apart (`kvm_mmu_prepare_zap_page`).
    ShadowPageZapped {
        /// The page.
        page: PageInfo,
    },
    /// A fault stored a leaf in a shadow page (`kvm_mmu_set_spte`).
    ShadowSpteSet {
        /// The level of the page it is in.
        level: Level,
        /// Its first frame.
        gfn: Gfn,
        /// The entry.
        spte: Spte<F>,
        /// The page.
        page: PageId,
    },
    /// A shadow page falls out of step with the guest's table (`kvm_mmu_unsync_page`).
    PageUnsync {
        /// The page.
        page: PageInfo,
    },
    /// It is brought into step, or goes (`kvm_mmu_sync_page`).
    PageSync {
        /// The page.
        page: PageInfo,
    },
    /// All shadow pages are about to become obsolete (`kvm_mmu_zap_all_fast`).
    ShadowZapAllFast {
        /// The generation that ends.
        generation: ValidGeneration,
        /// Pages that count against the limit.
        used: Pages,
    },
    /// TLBs were flushed before the operation was over. KVM has no tracepoint for it.
    Flushed {
        /// Which translations.
        scope: FlushScope,
        /// Why now.
        reason: FlushReason,
    },
}

/// Who is told what happens. The compiler drops what an observer does not want.
///
/// ```
/// use slat_mmu::spte::Npt;
/// use slat_mmu::tdp::{Event, Observer};
///
/// #[derive(Default)]
/// struct Splits(u64);
///
/// impl Observer<Npt> for Splits {
///     const EVENTS: bool = true;
///     fn event(&mut self, event: Event<Npt>) {
///         self.0 += u64::from(matches!(event, Event::HugePageSplit { .. }));
///     }
/// }
/// # let mut splits = Splits::default();
/// # splits.event(Event::ZapAllFast);
/// # assert_eq!(splits.0, 0);
/// ```
pub trait Observer<F> {
    /// Whether it wants [`Observer::event`]s.
    const EVENTS: bool = false;
    /// Whether it wants the marks that hardware has left in leaves that go. Kernels up to 6.12 pass them on to the
    /// host's memory management.
    const HARVEST: Harvesting = Harvesting::Nothing;

    /// Something happened.
    #[inline]
    fn event(&mut self, event: Event<F>) {
        let _ = event;
    }

    /// A leaf of this page and level, with these marks, is gone or has lost one of them
    /// ([`Harvesting::EveryPage`]).
    #[inline]
    fn harvest(&mut self, pfn: Pfn, level: Level, marks: Marks) {
        let _ = (pfn, level, marks);
    }

    /// So many leaves with marks are gone or have lost them ([`Harvesting::Numbers`]).
    #[inline]
    fn harvest_numbers(&mut self, numbers: Harvest) {
        let _ = numbers;
    }
}

/// What an observer wants to know of the marks in leaves that go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Harvesting {
    /// Nothing.
    Nothing,
    /// How many there were.
    Numbers,
    /// Each of them, with its page.
    EveryPage,
}

/// An observer that is lent.
impl<F, O: Observer<F>> Observer<F> for &mut O {
    const EVENTS: bool = O::EVENTS;
    const HARVEST: Harvesting = O::HARVEST;

    #[inline]
    fn event(&mut self, event: Event<F>) {
        (**self).event(event);
    }

    #[inline]
    fn harvest(&mut self, pfn: Pfn, level: Level, marks: Marks) {
        (**self).harvest(pfn, level, marks);
    }

    #[inline]
    fn harvest_numbers(&mut self, numbers: Harvest) {
        (**self).harvest_numbers(numbers);
    }
}

/// Nobody is told anything, and nothing is spent on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl<F> Observer<F> for Unobserved {}

/// A recording.
impl<F> Observer<F> for Vec<Event<F>> {
    const EVENTS: bool = true;

    fn event(&mut self, event: Event<F>) {
        self.push(event);
    }
}

/// Numbers of marks in leaves that are gone; as an observer it counts them.
///
/// Up to 6.12 an entry without hardware A/D bits counts as accessed unless it is tracked, and as dirty while it is
/// writable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Harvest {
    /// Leaves that had been accessed.
    pub accessed: u64,
    /// Leaves that were dirty.
    pub dirty: u64,
}

impl<F> Observer<F> for Harvest {
    const HARVEST: Harvesting = Harvesting::Numbers;

    #[inline]
    fn harvest_numbers(&mut self, numbers: Harvest) {
        self.accessed += numbers.accessed;
        self.dirty += numbers.dirty;
    }
}
