//! Zapping one table.

use crate::spte::Format;
use crate::table::TableId;
use crate::tdp::change::At;
use crate::tdp::events::Observer;
use crate::tdp::hooks::{AccessCheck, External};
use crate::tdp::lock::{Exclusive, Locked};

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Exclusive<'_, F, X, C>, O> {
    /// Zaps one table with all below it (`tdp_mmu.c:kvm_tdp_mmu_zap_sp`). Says whether it did; a root, or a table that is
    /// not linked, is left alone. TLBs have to be flushed then before the lock is given up.
    pub fn zap_page(&mut self, table: TableId) -> bool {
        let tables = self.tables();
        let page = tables.page(table);
        let (Some(parent), Some(level)) = (page.parent(), page.role().level().parent()) else {
            return false;
        };
        let old = tables.read(parent);
        if tables.child_of(old, level) != Some(table) {
            return false;
        }
        let at = At {
            as_id: page.role().as_id(),
            gfn: page.gfn().raw(),
            level,
        };
        let empty = tables.codec.nonpresent();
        let zapped = self.set(parent, at, old, empty).is_ok();
        self.audit_after_step();
        zapped
    }
}
