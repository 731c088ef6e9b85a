//! Every write to a frame is to be seen: its leaf can no longer be made writable without asking
//! (`tdp_mmu.c:write_protect_gfn`).

use slat_memslot::{AsId, Gfn, PageSize};

use crate::roots::RootSelect;
use crate::spte::Format;
use crate::tdp::cursor::Cursor;
use crate::tdp::events::Observer;
use crate::tdp::hooks::{AccessCheck, External};
use crate::tdp::lock::{Exclusive, Locked};

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Exclusive<'_, F, X, C>, O> {
    /// Makes the leaf of a frame, if it has at least this size, neither writable nor MMU-writable, in all valid roots of
    /// the address space (`tdp_mmu.c:kvm_tdp_mmu_write_protect_gfn`). Says whether TLBs have to be flushed.
    pub fn write_track(&mut self, as_id: AsId, gfn: Gfn, smallest: PageSize) -> bool {
        let mut changed = false;
        for root in self.root_tables(RootSelect::Valid, as_id) {
            if gfn >= self.tables().end_of(root) {
                continue;
            }
            let (from, level) = (gfn.raw(), smallest.level());
            let mut cursor = Cursor::start(self.tables(), root, level, from);
            while cursor.is_before(from + 1) {
                if cursor.is_at_leaf() {
                    let tracked = self.tables().codec.write_track(cursor.old);
                    if tracked == cursor.old {
                        break;
                    }
                    let at = self.at(&cursor);
                    changed |= self.set(cursor.place(), at, cursor.old, tracked).is_ok();
                }
                cursor.advance(self.tables());
            }
        }
        changed
    }
}
