//! Huge pages that execution forbids: small pages in their place, and the way back (`kvm.nx_huge_pages`).
//!
//! A table that is there only because somebody executed in what could have been a huge page is remembered. From time to
//! time some of them are zapped, so that pages nobody executes in any more become huge again
//! (`mmu.c:kvm_recover_nx_huge_pages`).

use slat_memslot::{AsId, GfnRange, Level, PageSize};

use super::cursor::Cursor;
use super::events::Observer;
use super::hooks::{AccessCheck, External};
use super::lock::{Exclusive, Locked, Side};
use super::map::{MapRequest, Target};
use super::tables::Tables;
use crate::spte::{Format, Pfn};
use crate::sync::lock;
use crate::table::{TableId, span};

impl<S: Side, O: Observer<S::Format>> Locked<S, O> {
    /// Makes a fault smaller if there is a table of the remembered kind where it wants a huge leaf
    /// (`mmu.c:disallowed_hugepage_adjust`).
    pub(super) fn adjust_to_table(
        &self,
        cursor: &Cursor<S::Format>,
        request: &mut MapRequest<S::Format>,
    ) {
        let level = cursor.level();
        let Target::Page(page) = &mut request.target else {
            return;
        };
        let (Some(below), true) = (smaller(request.size), level == request.size.level()) else {
            return;
        };
        let child = self.tables().child_of(cursor.old, level);
        if child.is_some_and(|child| self.tables().page(child).is_nx_disallowed()) {
            let part = request.gfn.raw() & (span(level) - span(below.level()));
            page.pfn = Pfn::new(page.pfn.raw() | part);
            request.size = below;
        }
    }

    /// Remembers a table that was linked at `level` for the sake of execution, if a leaf of its size was possible.
    pub(super) fn track_nx(&self, table: TableId, level: Level, wanted: PageSize) {
        if wanted.level() < level {
            return;
        }
        let tables = self.tables();
        let mut possible = lock(&tables.possible_nx);
        // It may have been removed meanwhile.
        if tables.page(table).is_nx_disallowed() {
            possible.push(table);
        }
    }
}

impl<F: Format, X, C> Tables<F, X, C> {
    /// Forgets a table that goes (`mmu.c:untrack_possible_nx_huge_page`).
    pub(super) fn forget_nx(&self, table: TableId) {
        if self.page(table).is_nx_disallowed() {
            let mut possible = lock(&self.possible_nx);
            self.page(table).set_nx_disallowed(false);
            possible.retain(|other| *other != table);
        }
    }
}

/// The size below a huge one.
const fn smaller(size: PageSize) -> Option<PageSize> {
    match size {
        PageSize::Size4K => None,
        PageSize::Size2M => Some(PageSize::Size4K),
        PageSize::Size1G => Some(PageSize::Size2M),
    }
}

impl<F: Format, X: External<F>, C: AccessCheck, O: Observer<F>> Locked<Exclusive<'_, F, X, C>, O> {
    /// Lets pages become huge again: the first of the remembered tables go, as many as the `ratio`th part of all, rounded up
    /// (`mmu.c:kvm_recover_nx_huge_pages`, up to 6.17). Where `is_logged` says that a slot's writes are logged, a table is
    /// only forgotten. Gives how many tables were zapped; TLBs have to be flushed if any was.
    ///
    /// A ratio of 0 zaps nothing.
    pub fn recover_nx(
        &mut self,
        ratio: u64,
        mut is_logged: impl FnMut(AsId, GfnRange) -> bool,
    ) -> u64 {
        let all = self.tables().nx_splits();
        let count = if ratio == 0 { 0 } else { all.div_ceil(ratio) };
        let mut zapped = 0;
        for _ in 0..count {
            let Some(table) = lock(&self.tables().possible_nx).first().copied() else {
                break;
            };
            let page = self.tables().page(table);
            let (as_id, gfn) = (page.role().as_id(), page.gfn());
            let frames =
                slat_memslot::Pages::new(span(page.role().level()) * crate::table::ENTRIES as u64);
            let logged = GfnRange::new(gfn, frames).is_some_and(|range| is_logged(as_id, range));
            if !logged && self.zap_page(table) {
                zapped += 1;
            }
            self.tables().forget_nx(table);
        }
        zapped
    }
}
