//! Up to 64 frames of a dirty log start anew (`tdp_mmu.c:clear_dirty_pt_masked`).

use slat_memslot::{AsId, Gfn, Level};

use super::weaken::Loss;
use crate::roots::RootSelect;
use crate::spte::Format;
use crate::spte::Marks;
use crate::sync::Ordering;
use crate::table::TableId;
use crate::tdp::change::{At, pass_on, report};
use crate::tdp::cursor::Cursor;
use crate::tdp::events::Observer;
use crate::tdp::hooks::{AccessCheck, External};
use crate::tdp::lock::{Exclusive, Locked};

/// How the next write to a page shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ByWhat {
    /// It faults.
    WriteProtection,
    /// Its dirty bit is set, where the hardware keeps one for this guest and logs it; else it faults.
    DirtyBit,
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Exclusive<'_, F, X, C>, O> {
    /// Lets the next write show to each of 64 frames from `first` on whose bit is set, as far as they are mapped by 4 KiB
    /// leaves, in all valid roots of the address space (`tdp_mmu.c:kvm_tdp_mmu_clear_dirty_pt_masked`).
    ///
    /// Pages that lose a mark are passed on as dirty. TLBs are the caller's to flush.
    pub fn clear_dirty_masked(&mut self, as_id: AsId, first: Gfn, mask: u64, by: ByWhat) {
        for root in self.root_tables(RootSelect::Valid, as_id) {
            let loss = match by {
                ByWhat::WriteProtection => Loss::Write,
                ByWhat::DirtyBit => self.loss_of(root),
            };
            self.clear_dirty_in(root, (as_id, first.raw()), mask, loss);
        }
    }

    fn clear_dirty_in(
        &mut self,
        root: TableId,
        (as_id, first): (AsId, u64),
        mask: u64,
        loss: Loss,
    ) {
        if mask == 0 {
            return;
        }
        let mut left = mask;
        let from = first + u64::from(mask.trailing_zeros());
        let mut cursor = Cursor::start(self.tables(), root, Level::L1, from);
        while cursor.is_before(first + 64) && left != 0 {
            let bit = cursor.gfn().checked_sub(first).map_or(0, |at| 1 << at);
            if cursor.level() == Level::L1 && cursor.is_at_leaf() && left & bit != 0 {
                left &= !bit;
                self.weaken_one(&cursor, as_id, loss);
            }
            cursor.advance(self.tables());
        }
    }

    /// Changes one leaf without further bookkeeping, as KVM does here.
    fn weaken_one(&mut self, cursor: &Cursor<F>, as_id: AsId, loss: Loss) {
        let tables = &*self.side.tables;
        let (old, new) = (cursor.old, loss.from(&tables.codec, cursor.old));
        if old == new {
            return;
        }
        let entry = tables.entry(cursor.table(), cursor.index());
        entry.store(new.raw(), Ordering::Relaxed);
        let at = At {
            as_id,
            gfn: cursor.gfn(),
            level: Level::L1,
        };
        report(&mut self.observer, at, old, new);
        let dirty = Marks {
            dirty: true,
            accessed: false,
        };
        pass_on(&mut self.observer, tables.codec.pfn(old), Level::L1, dirty);
    }
}
