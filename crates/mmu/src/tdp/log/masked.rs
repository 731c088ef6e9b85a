//! Up to 64 frames of a dirty log start anew (`tdp_mmu.c:clear_dirty_pt_masked`).

use slat_memslot::{AsId, Gfn, Level};

use super::weaken::Loss;
use crate::spte::{Codec, Format, Marks, Spte};
use crate::table::{TableId, first as first_frame, index, span};
use crate::tdp::change::{At, pass_on, report};
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
        let mut number = 0;
        while let Some(root) = self.side.tables.roots.nth_newest(number) {
            number += 1;
            let tables = self.tables();
            let Some(table) = tables.roots.payload(root) else {
                continue;
            };
            let role = tables.page(table).role();
            if role.is_invalid() || role.as_id() != as_id {
                continue;
            }
            let loss = match by {
                ByWhat::WriteProtection => Loss::Write,
                ByWhat::DirtyBit => Loss::for_role(&tables.codec, role),
            };
            self.clear_dirty_in((table, role.level()), (as_id, first.raw()), mask, loss);
        }
    }

    /// The same in one root, as far as it can tell frames apart.
    fn clear_dirty_in(
        &mut self,
        (root, top): (TableId, Level),
        (as_id, first): (AsId, u64),
        mask: u64,
        loss: Loss,
    ) {
        let bit = loss.bit(&self.tables().codec);
        let mut left = mask & ones(self.tables().end_of_level(top).raw().saturating_sub(first));
        while left != 0 {
            let from = first + u64::from(left.trailing_zeros());
            let table_end = first_frame(from, Level::L2) + span(Level::L2);
            let here = left & ones(table_end - first);
            left ^= here;
            if let Some(table) = self.table_below((root, top), Gfn::new(from), Level::L1) {
                self.clear_dirty_of(table, (as_id, first), here, bit);
            }
        }
    }

    /// The same in one table of level 1, in which all the frames of the mask are.
    fn clear_dirty_of(&mut self, table: TableId, (as_id, first): (AsId, u64), mask: u64, bit: u64) {
        let mut left = mask;
        while left != 0 {
            // Neighbours together.
            let start = left.trailing_zeros();
            let count = (left >> start).trailing_ones();
            left &= !(ones(u64::from(count)) << start);
            let gfn = first + u64::from(start);
            let at = At {
                as_id,
                gfn,
                level: Level::L1,
            };
            let index = index(gfn, Level::L1);
            let run = index..index + count as usize;
            self.take_bit_telling(table, at, run, bit, dirtied);
        }
    }
}

/// The lowest bits, so many of them.
const fn ones(count: u64) -> u64 {
    match count {
        0..64 => (1 << count) - 1,
        _ => u64::MAX,
    }
}

/// Reports a change without further bookkeeping, as KVM does here: whatever the leaf has lost, its page is dirty.
fn dirtied<F: Format, O: Observer<F>>(
    observer: &mut O,
    codec: &Codec<F>,
    at: At,
    (old, new): (Spte<F>, Spte<F>),
) {
    report(observer, at, old, new);
    let dirty = Marks {
        dirty: true,
        accessed: false,
    };
    pass_on(observer, codec.pfn(old), Level::L1, dirty);
}
