//! Up to 64 pages of a slot that are handled together.

/// A set of pages within 64 neighbours: the unit in which KVM arms pages again for dirty logging
/// (`kvm_main.c`, `mmu.c:kvm_arch_mmu_enable_log_dirty_pt_masked`).
///
/// ```
/// use slat_memslot::DirtyWindow;
/// let window = DirtyWindow { offset: 128, mask: 0b101 };
/// assert_eq!(window.iter().collect::<Vec<_>>(), [128, 130]);
/// assert_eq!(window.last(), Some(130));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DirtyWindow {
    /// The page of bit 0, relative to the slot.
    pub offset: u64,
    /// One bit per page.
    pub mask: u64,
}

impl DirtyWindow {
    /// The pages, relative to the slot, ascending.
    pub fn iter(self) -> impl Iterator<Item = u64> {
        (0..64)
            .filter(move |bit| self.mask >> bit & 1 != 0)
            .map(move |bit| self.offset.saturating_add(bit))
    }

    /// The highest page; `None` when there is none.
    pub const fn last(self) -> Option<u64> {
        match self.mask.checked_ilog2() {
            Some(bit) => Some(self.offset.saturating_add(bit as u64)),
            None => None,
        }
    }

    /// Adds the pages of `first..end`, which begins inside, and gives what lies behind the window.
    pub(super) fn add(&mut self, first: u64, end: u64) -> Option<(u64, u64)> {
        let behind = self.offset.saturating_add(64);
        let ones = u64::MAX >> (64 - (end.min(behind) - first));
        self.mask |= ones << (first - self.offset);
        (end > behind).then_some((behind, end))
    }

    /// How many pages.
    pub const fn count(self) -> u32 {
        self.mask.count_ones()
    }
}
