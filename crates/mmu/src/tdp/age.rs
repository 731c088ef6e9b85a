//! Whether pages were used since it was last asked (`tdp_mmu.c:kvm_tdp_mmu_age_gfn_range`,
//! `tdp_mmu.c:kvm_tdp_mmu_test_age_gfn`), as in 6.12: with the tables to oneself, in all roots of the address space.

use slat_memslot::{AsId, GfnRange, Level};

use super::change::{pass_on, report};
use super::cursor::Cursor;
use super::events::Observer;
use super::hooks::{AccessCheck, External};
use super::lock::{Exclusive, Locked};
use crate::roots::RootSelect;
use crate::spte::{Format, Marks, Spte};
use crate::sync::Ordering;

/// What becomes of the accessed marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Age {
    /// They are taken, so that the next use shows (`clear_young`).
    Take,
    /// They stay (`test_young`).
    Test,
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Exclusive<'_, F, X, C>, O> {
    /// Whether any leaf of the range was used. TLBs are not flushed for it.
    pub fn age(&mut self, as_id: AsId, range: GfnRange, age: Age) -> bool {
        let mut young = false;
        for root in self.root_tables(RootSelect::All, as_id) {
            let end = range.end().min(self.tables().end_of(root)).raw();
            let from = range.start().raw();
            let mut cursor = Cursor::start(self.tables(), root, Level::L1, from);
            while cursor.is_before(end) {
                if cursor.is_at_leaf() && self.tables().codec.is_accessed(cursor.old) {
                    young = true;
                    if age == Age::Take {
                        self.take_accessed(&cursor);
                    }
                }
                cursor.advance(self.tables());
            }
        }
        young
    }

    /// Takes the mark from one leaf. What tracking an access would hide, that the page was written to, is passed on.
    fn take_accessed(&mut self, cursor: &Cursor<F>) {
        let at = self.at(cursor);
        let tables = &*self.side.tables;
        let (codec, old) = (&tables.codec, cursor.old);
        if codec.is_ad_disabled(old) && old.is_writable() {
            let dirty = Marks {
                dirty: true,
                accessed: false,
            };
            pass_on(&mut self.observer, codec.pfn(old), at.level, dirty);
        }
        let new: Spte<F> = codec.track_access(old);
        let entry = tables.entry(cursor.table(), cursor.index());
        entry.store(new.raw(), Ordering::Relaxed);
        report(&mut self.observer, at, old, new);
    }
}
