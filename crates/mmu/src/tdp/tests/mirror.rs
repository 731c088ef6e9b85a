//! Mirror tables and their owner, who may be busy.

use std::cell::RefCell;
use std::collections::BTreeSet;

use slat_memslot::Level;

use super::*;
use crate::role::mirror_root_role;
use crate::spte::Ept;

/// What the owner was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    Set(u64),
    Link(u64, u8),
    Split(u64),
    Remove(u64),
    Free(u64, u8),
}

/// An owner that keeps a list of what he was asked, and is busy when told to be.
#[derive(Debug, Default)]
struct Owner {
    calls: RefCell<Vec<Call>>,
    busy: RefCell<BTreeSet<Call>>,
}

impl Owner {
    /// Busy once.
    fn answer(&self, call: Call) -> Result<(), Busy> {
        if self.busy.borrow_mut().remove(&call) {
            return Err(Busy);
        }
        self.calls.borrow_mut().push(call);
        Ok(())
    }

    fn be_busy(&self, call: Call) {
        self.busy.borrow_mut().insert(call);
    }

    fn take(&self) -> Vec<Call> {
        self.calls.take()
    }
}

impl External<Ept> for Owner {
    fn set_leaf(&self, gfn: Gfn, _: Level, _: Spte<Ept>) -> Result<(), Busy> {
        self.answer(Call::Set(gfn.raw()))
    }

    fn link_table(&self, gfn: Gfn, level: Level, _: TableId) -> Result<(), Busy> {
        self.answer(Call::Link(gfn.raw(), level as u8))
    }

    fn split_leaf(&self, gfn: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        self.answer(Call::Split(gfn.raw()))
    }

    fn remove_leaf(&self, gfn: Gfn, _: Level, _: Spte<Ept>) -> Result<(), Busy> {
        self.answer(Call::Remove(gfn.raw()))
    }

    fn free_table(&self, gfn: Gfn, level: Level, _: TableId) -> Result<(), Busy> {
        self.answer(Call::Free(gfn.raw(), level as u8))
    }
}

/// Tables with a mirror root.
struct Mirror {
    tables: Tables<Ept, Owner>,
    root: TableId,
}

impl Mirror {
    fn new() -> Self {
        let host = Host::ept(46);
        let limits = Limits::default();
        let mut tables = Tables::with(&host, limits, Owner::default(), NoCheck);
        let role = mirror_root_role(role(&host));
        let mut locked = tables.exclusive(Unobserved);
        let root = locked.acquire_root(role).unwrap().root();
        let root = locked.root_table(root).unwrap();
        Self { tables, root }
    }

    fn owner(&self) -> &Owner {
        self.tables.external()
    }

    /// Faults on the shared side.
    fn map(&self, gfn: u64, size: PageSize) -> Resolution {
        let mut reader = self.tables.reader().unwrap();
        let request = MapRequest::page(Gfn::new(gfn), size, Pfn::new(gfn));
        let mut locked = self.tables.shared(&mut reader, Unobserved);
        locked.map(self.root, &request).unwrap().resolution
    }

    fn zap(&mut self, start: u64, end: u64) -> ZapLeafs {
        let range = GfnRange::between(Gfn::new(start), Gfn::new(end)).unwrap();
        let mut zap = ZapLeafs::of_valid_roots(range);
        let locked = &mut self.tables.exclusive(Unobserved);
        assert_eq!(zap.run(locked, &mut Uninterrupted), Progress::Done);
        zap
    }

    fn audit(&self) {
        let violations = self.tables.audit(&audit::AuditContext::default());
        assert_eq!(violations, []);
    }
}

#[test]
fn the_owner_hears_of_links_and_leaves_from_the_root_down() {
    let mirror = Mirror::new();
    assert_eq!(mirror.map(0x201, PageSize::Size4K), Resolution::Fixed);
    assert_eq!(
        mirror.owner().take(),
        [
            Call::Link(0, 4),
            Call::Link(0, 3),
            Call::Link(0x200, 2),
            Call::Set(0x201)
        ]
    );
    mirror.audit();
}

#[test]
fn a_busy_owner_leaves_everything_as_it_was() {
    let busy = Resolution::Retry(Retry::Busy);
    for call in [
        Call::Link(0, 4),
        Call::Link(0, 3),
        Call::Link(0x200, 2),
        Call::Set(0x201),
    ] {
        let mirror = Mirror::new();
        mirror.owner().be_busy(call);
        assert_eq!(mirror.map(0x201, PageSize::Size4K), busy, "{call:?}");
        assert_eq!(mirror.tables.totals().pages_4k, 0);
        mirror.audit();
        // The second try goes through, and asks for the rest only.
        assert_eq!(mirror.map(0x201, PageSize::Size4K), Resolution::Fixed);
        assert_eq!(mirror.owner().take().len(), 4);
        mirror.audit();
    }
}

#[test]
fn a_split_that_is_refused_leaves_the_huge_leaf() {
    let mirror = Mirror::new();
    assert_eq!(mirror.map(0x200, PageSize::Size2M), Resolution::Fixed);
    mirror.owner().be_busy(Call::Split(0x200));
    assert_eq!(
        mirror.map(0x205, PageSize::Size4K),
        Resolution::Retry(Retry::Busy)
    );
    let totals = mirror.tables.totals();
    assert_eq!((totals.pages_2m, totals.pages_4k, totals.tables), (1, 0, 2));
    mirror.audit();
    let _ = mirror.owner().take();
    let _ = mirror.map(0x205, PageSize::Size4K);
    assert_eq!(mirror.owner().take()[0], Call::Split(0x200));
    assert_eq!(mirror.tables.totals().pages_4k, 512);
    mirror.audit();
}

#[test]
fn a_leaf_that_the_owner_keeps_stays_mapped() {
    let mut mirror = Mirror::new();
    for gfn in 0x200..0x204 {
        mirror.map(gfn, PageSize::Size4K);
    }
    let _ = mirror.owner().take();
    mirror.owner().be_busy(Call::Remove(0x202));
    let zap = mirror.zap(0x200, 0x400);
    assert_eq!((zap.zapped(), zap.busy()), (3, Some(Gfn::new(0x202))));
    assert_eq!(mirror.tables.totals().pages_4k, 1);
    mirror.audit();
    let zap = mirror.zap(0x200, 0x400);
    assert_eq!((zap.zapped(), zap.busy()), (1, None));
    mirror.audit();
}

#[test]
fn a_table_goes_after_its_leaves_or_is_lost() {
    for refused in [false, true] {
        let mut mirror = Mirror::new();
        for gfn in [0x200, 0x3ff] {
            mirror.map(gfn, PageSize::Size4K);
        }
        let _ = mirror.owner().take();
        if refused {
            mirror.owner().be_busy(Call::Free(0x200, 1));
        }
        let root = mirror.root;
        let mut locked = mirror.tables.exclusive(Unobserved);
        let table = locked.find(root, Gfn::new(0x200)).place.table;
        assert!(locked.zap_page(table));
        let calls = mirror.owner().take();
        assert_eq!(calls[..2], [Call::Remove(0x200), Call::Remove(0x3ff)]);
        assert_eq!(calls.get(2).is_some(), !refused);
        assert_eq!(mirror.tables.totals().lost, u64::from(refused));
        mirror.audit();
    }
}

#[test]
fn a_fast_zap_leaves_mirrors_alone() {
    let mut mirror = Mirror::new();
    mirror.map(0x200, PageSize::Size4K);
    let _ = mirror.owner().take();
    mirror.tables.exclusive(Unobserved).invalidate_roots();
    let mut reader = mirror.tables.reader().unwrap();
    let mut zap = ZapInvalidated::new(Passes::default());
    let mut locked = mirror.tables.shared(&mut reader, Unobserved);
    assert_eq!(zap.run(&mut locked, &mut Uninterrupted), Progress::Done);
    drop(locked);
    assert_eq!(mirror.owner().take(), []);
    assert_eq!(mirror.tables.totals().pages_4k, 1);
    mirror.audit();
}
