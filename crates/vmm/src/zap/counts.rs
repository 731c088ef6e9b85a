//! What page tables went through.

use slat_memslot::Level;
use slat_mmu::spte::Spte;

use crate::traces::Predicted;

/// Numbers of what an MMU did, from its events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times that all roots were invalidated (`kvm_mmu_zap_all_fast`).
    pub invalidations: u64,
    /// Entries that changed, those of tables that were taken apart among them. The shadow MMU reports none.
    pub entries: u64,
    /// Leaves that went without another in their place. The shadow MMU reports none.
    pub leaves_zapped: u64,
    /// Roots and tables that went (`kvm_mmu_prepare_zap_page`).
    pub tables_zapped: u64,
    /// Roots and tables that were made (`kvm_mmu_get_page`).
    pub tables_made: u64,
    /// Faults that went down to a leaf (`kvm_mmu_spte_requested`).
    pub faults: u64,
    /// Faults that were mended without the lock (`fast_page_fault`).
    pub fast_faults: u64,
    /// Huge leaves that were split.
    pub splits: u64,
}

impl Counts {
    /// Of these events.
    pub fn of<'e>(events: impl IntoIterator<Item = &'e Predicted>) -> Self {
        let mut counts = Self::default();
        for event in events {
            counts.add(event);
        }
        counts
    }

    /// One more event.
    pub fn add(&mut self, event: &Predicted) {
        match event {
            Predicted::SpteChanged {
                level, old, new, ..
            } => {
                self.entries += 1;
                let gone = is_leaf(*old, *level) && !is_leaf(*new, *level);
                self.leaves_zapped += u64::from(gone);
            }
            Predicted::ZapAllFast | Predicted::ShadowZapAllFast { .. } => self.invalidations += 1,
            Predicted::PageZapped { .. } | Predicted::ShadowPageZapped { .. } => {
                self.tables_zapped += 1;
            }
            Predicted::PageAllocated { .. } | Predicted::ShadowPage { created: true, .. } => {
                self.tables_made += 1;
            }
            Predicted::SpteRequested { .. } => self.faults += 1,
            Predicted::FastPageFault { fixed: true, .. } => self.fast_faults += 1,
            Predicted::HugePageSplit { errno: 0, .. } => self.splits += 1,
            _ => {}
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            invalidations: self.invalidations + other.invalidations,
            entries: self.entries + other.entries,
            leaves_zapped: self.leaves_zapped + other.leaves_zapped,
            tables_zapped: self.tables_zapped + other.tables_zapped,
            tables_made: self.tables_made + other.tables_made,
            faults: self.faults + other.faults,
            fast_faults: self.fast_faults + other.fast_faults,
            splits: self.splits + other.splits,
        }
    }
}

fn is_leaf(raw: u64, level: Level) -> bool {
    Spte::<()>::from_raw(raw).is_leaf(level)
}
