//! How many leaves and tables there are, counted without a line that all threads fight for.

use slat_memslot::{Level, PageSize};

use crate::sync::{AtomicU64, Ordering};

/// One thread's share of the counts. Its shares may be negative, modulo 2^64: a leaf can be made by one thread and zapped
/// by another.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Counts {
    leaves: [AtomicU64; 3],
    tables: AtomicU64,
    lost: AtomicU64,
    lost_pages: AtomicU64,
}

impl Counts {
    /// Adds what only this thread changes: no other can come between the load and the store.
    #[inline]
    fn add(count: &AtomicU64, difference: i64) {
        let old = count.load(Ordering::Relaxed);
        count.store(old.wrapping_add_signed(difference), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn add_leaves(&self, level: Level, difference: i64) {
        if let Some(leaves) = self.leaves.get(level as usize - 1) {
            Self::add(leaves, difference);
        }
    }

    #[inline]
    pub(super) fn add_tables(&self, difference: i64) {
        Self::add(&self.tables, difference);
    }

    pub(super) fn lose_table(&self) {
        Self::add(&self.lost, 1);
    }

    pub(super) fn lose_page(&self) {
        Self::add(&self.lost_pages, 1);
    }
}

/// How many leaves and tables there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Totals {
    /// Leaves of 4 KiB (`pages_4k`).
    pub pages_4k: u64,
    /// Leaves of 2 MiB (`pages_2m`).
    pub pages_2m: u64,
    /// Leaves of 1 GiB (`pages_1g`).
    pub pages_1g: u64,
    /// Linked tables; roots do not count (`tdp_mmu_pages`).
    pub tables: u64,
    /// Tables that the owner of mirror tables has not let go: they stay his, and are never used again.
    pub lost: u64,
    /// Pages of tables that went, which the owner of mirror tables has not let go.
    pub lost_pages: u64,
}

impl Totals {
    pub(super) fn of(counts: &[Counts]) -> Self {
        let sum = |of: fn(&Counts) -> &AtomicU64| {
            let values = counts.iter().map(|each| of(each).load(Ordering::Relaxed));
            values.fold(0, u64::wrapping_add)
        };
        Self {
            pages_4k: sum(|each| &each.leaves[0]),
            pages_2m: sum(|each| &each.leaves[1]),
            pages_1g: sum(|each| &each.leaves[2]),
            tables: sum(|each| &each.tables),
            lost: sum(|each| &each.lost),
            lost_pages: sum(|each| &each.lost_pages),
        }
    }

    /// The leaves of one size.
    pub const fn leaves(&self, size: PageSize) -> u64 {
        match size {
            PageSize::Size4K => self.pages_4k,
            PageSize::Size2M => self.pages_2m,
            PageSize::Size1G => self.pages_1g,
        }
    }
}
