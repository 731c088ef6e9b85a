//! What must hold: of some frames at any time, of everything when nobody is at work.

use std::sync::Arc;

use slat_memslot::{AsId, GfnRange, Slot};

use super::world::{FRAMES, World, everything};
use crate::spte::{Format, Spte};
use crate::table::{TableId, span};
use crate::tdp::audit::AuditContext;
use crate::tdp::{Found, Tables};

/// The leaf of each root for a frame.
fn leafs<F: Format>(tables: &Tables<F>, gfn: u64) -> impl Iterator<Item = Found<F>> {
    let roots = tables.roots().iter();
    let roots = roots.filter_map(|(root, _)| tables.roots().payload(root));
    let found = roots.map(move |root: TableId| tables.find(root, gfn));
    found.filter(|found| found.spte.is_leaf(found.level))
}

/// No root maps any of these frames.
pub(super) fn not_mapped<F: Format>(tables: &Tables<F>, range: GfnRange) {
    for gfn in range.start().raw()..range.end().raw() {
        let found = leafs(tables, gfn).next();
        assert!(found.is_none(), "{gfn:#x} is going and mapped: {found:?}");
    }
}

pub(super) fn nothing_mapped<F: Format>(tables: &Tables<F>) {
    not_mapped(tables, everything());
}

/// When all threads have left: what is mapped is the slot's and the host's, what is written was logged, and the tables
/// are as tables have to be.
pub(super) fn finish<F: Format>(world: Arc<World<F>>) {
    let world = Arc::into_inner(world).unwrap();
    let tables = world.tables.into_inner().unwrap();
    let host = world.host.into_inner().unwrap();
    let log = world.log.into_inner().unwrap();
    let logged = world.slots.read(|memory| {
        let context = AuditContext::default();
        let generation = memory.space(AsId::NORMAL).generation();
        let context = context.with_generation(AsId::NORMAL, generation);
        assert_eq!(tables.audit(&context), []);
        memory.slot(0).map(Slot::is_logged)
    });
    for gfn in 0..FRAMES {
        for found in leafs(&tables, gfn) {
            let Some(logged) = logged else {
                panic!("{gfn:#x} is mapped without a slot: {found:?}");
            };
            let codec = tables.codec();
            let part = gfn & (span(found.level) - 1);
            let pfn = codec.pfn(found.spte).raw() + part;
            assert_eq!(pfn, host.pfn(gfn).raw(), "the page of {gfn:#x}");
            if logged && shows_no_write(&tables, found.spte) {
                let known = log.may_be_written(gfn);
                assert!(known, "{gfn:#x} can be written unseen: {found:?}");
            }
        }
    }
    assert_eq!(log.missed(), 0, "pages that were written to in vain");
}

/// Whether a write through the leaf leaves no trace.
fn shows_no_write<F: Format>(tables: &Tables<F>, spte: Spte<F>) -> bool {
    let codec = tables.codec();
    spte.is_writable() && (!codec.host().pml() || codec.is_dirty(spte))
}
