//! Mirror tables and their owner, who may be busy.

use std::cell::RefCell;
use std::collections::BTreeSet;

use slat_memslot::{AsId, Level};

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
fn the_owner_hears_of_each_page_of_a_range() {
    let mut mirror = Mirror::new();
    let request = MapRequest::page(Gfn::new(0x3fe), PageSize::Size4K, Pfn::new(0x7fe));
    let root = mirror.root;
    let mut locked = mirror.tables.exclusive(Unobserved);
    let dirty = locked.map_range(root, &request, slat_memslot::Pages::new(4));
    assert!(dirty.is_ok());
    assert_eq!(
        mirror.owner().take(),
        [
            Call::Link(0, 4),
            Call::Link(0, 3),
            Call::Link(0x200, 2),
            Call::Set(0x3fe),
            Call::Set(0x3ff),
            Call::Link(0x400, 2),
            Call::Set(0x400),
            Call::Set(0x401),
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

/// The same tables with a direct root beside the mirror.
fn with_direct(mirror: &mut Mirror) -> TableId {
    let role = role(mirror.tables.codec().host());
    let mut locked = mirror.tables.exclusive(Unobserved);
    let root = locked.acquire_root(role).unwrap().root();
    let root = locked.root_table(root).unwrap();
    let request = MapRequest::page(Gfn::new(0x200), PageSize::Size4K, Pfn::new(0x200));
    assert_eq!(
        locked.map(root, &request).unwrap().resolution,
        Resolution::Fixed
    );
    let _ = mirror.owner().take();
    root
}

#[test]
fn a_zap_can_be_of_mirrors_or_of_direct_roots_alone() {
    let mut mirror = Mirror::new();
    mirror.map(0x200, PageSize::Size4K);
    with_direct(&mut mirror);
    let range = GfnRange::between(Gfn::new(0), Gfn::new(0x400)).unwrap();
    for (types, calls) in [
        (RootTypes::Direct, vec![]),
        (RootTypes::Mirror, vec![Call::Remove(0x200)]),
        (RootTypes::All, vec![]),
    ] {
        let mut zap = ZapLeafs::of_address_space(AsId::NORMAL, range).with_types(types);
        let locked = &mut mirror.tables.exclusive(Unobserved);
        assert_eq!(zap.run(locked, &mut Uninterrupted), Progress::Done);
        let zapped = u64::from(types != RootTypes::All);
        assert_eq!((zap.zapped(), mirror.owner().take()), (zapped, calls));
        mirror.audit();
    }
}

#[test]
fn zapping_all_leaves_mirrors_until_their_owner_lets_go() {
    let mut mirror = Mirror::new();
    mirror.map(0x200, PageSize::Size4K);
    with_direct(&mut mirror);
    let mut zap = ZapAll::new(Passes::default());
    let locked = &mut mirror.tables.exclusive(Unobserved);
    assert_eq!(zap.run(locked, &mut Uninterrupted), Progress::Done);
    assert_eq!(mirror.owner().take(), []);
    assert_eq!(mirror.tables.totals().pages_4k, 1);
    let mut zap = ZapAll::of_mirrors_too(Passes::default());
    let locked = &mut mirror.tables.exclusive(Unobserved);
    assert_eq!(zap.run(locked, &mut Uninterrupted), Progress::Done);
    let calls = mirror.owner().take();
    assert_eq!(calls.len(), 4, "a leaf and three tables: {calls:?}");
    assert!(!calls.iter().any(|call| matches!(call, Call::Set(_))));
    assert_eq!(mirror.tables.totals().tables, 0);
    mirror.audit();
}

/// An owner with a single hook, who keeps what each entry was and became: 0 empty, 1 a link, 2 a leaf.
#[derive(Debug, Default)]
struct Judge(RefCell<Vec<(u64, u8, u8, u8)>>);

impl Judge {
    fn kind(spte: Spte<Ept>, level: Level) -> u8 {
        u8::from(spte.is_present()) + u8::from(spte.is_leaf(level))
    }
}

impl External<Ept> for Judge {
    fn change(&self, change: &EntryChange<Ept>) -> Result<(), Busy> {
        let (old, new) = (change.old, change.new);
        assert_eq!(change.table.is_some(), new.is_link(change.level));
        self.0.borrow_mut().push((
            change.gfn.raw(),
            change.level as u8,
            Self::kind(old, change.level),
            Self::kind(new, change.level),
        ));
        Ok(())
    }

    fn set_leaf(&self, _: Gfn, _: Level, _: Spte<Ept>) -> Result<(), Busy> {
        unreachable!("there is one hook for all changes")
    }

    fn link_table(&self, _: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        unreachable!("there is one hook for all changes")
    }

    fn split_leaf(&self, _: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        unreachable!("there is one hook for all changes")
    }

    fn remove_leaf(&self, _: Gfn, _: Level, _: Spte<Ept>) -> Result<(), Busy> {
        unreachable!("there is one hook for all changes")
    }

    fn free_table(&self, _: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        Ok(())
    }
}

#[test]
fn a_single_hook_hears_of_every_change() {
    let host = Host::ept(46);
    let tables = Tables::with(&host, Limits::default(), Judge::default(), NoCheck);
    let mut tables = tables.with_existing_leaf(ExistingLeaf::Kept);
    let role = mirror_root_role(role(&host));
    let mut locked = tables.exclusive(Unobserved);
    let root = locked.acquire_root(role).unwrap().root();
    let root = locked.root_table(root).unwrap();
    for (gfn, size) in [(0x200, PageSize::Size2M), (0x205, PageSize::Size4K)] {
        let request = MapRequest::page(Gfn::new(gfn), size, Pfn::new(gfn));
        let _mapped = locked.map(root, &request).unwrap();
    }
    let range = GfnRange::between(Gfn::new(0x205), Gfn::new(0x206)).unwrap();
    let mut zap = ZapLeafs::of_valid_roots(range);
    assert_eq!(zap.run(&mut locked, &mut Uninterrupted), Progress::Done);
    let table = locked.find(root, Gfn::new(0x205)).place.table;
    assert!(locked.zap_page(table));
    let (empty, link, leaf) = (0, 1, 2);
    let heard = tables.external().0.take();
    assert_eq!(
        heard[..5],
        [
            (0, 4, empty, link),
            (0, 3, empty, link),
            (0x200, 2, empty, leaf),
            (0x200, 2, leaf, link),
            (0x205, 1, leaf, empty),
        ]
    );
    // The table goes: the link to it, then the leaves that are left.
    assert_eq!(heard[5], (0x200, 2, link, empty));
    assert_eq!(heard.len(), 6 + 511);
    assert!(
        heard[6..]
            .iter()
            .all(|each| (each.2, each.3) == (leaf, empty))
    );
}
