//! Tables that walks begin at, and what happens when they go.

use slat_memslot::{AsId, Gva, Hpa, Level, PageSize};

use super::{COLLAPSES, DISTANCE, FIRST, READ, WRITE, World, range};
use crate::access::Access;
use crate::spte::NxHugePages;
use crate::table::TableId;
use crate::tdp::{Collapse, Weaken};
use crate::walk::tlb::{AddressSpaceId, Contradiction, Flush, Pcid, TlbAccess};

impl World {
    /// The levels of the second stage's tables that are kept.
    fn kept(&self) -> Vec<Level> {
        let tables = self.tlb.second_tables.iter();
        tables.map(|table| table.reached.level).collect()
    }
}

#[test]
fn flushes_take_the_tables_that_they_are_for() {
    let (space, pcid) = (AddressSpaceId(1), Pcid::of_cr3(1));
    let mut filled = World::new();
    filled.access(1, 5, READ).unwrap();
    assert_eq!(filled.kept(), [Level::L1, Level::L2]);
    let address = Gva::new(5 << 12);
    for (flush, left) in [
        (Flush::All, vec![]),
        (Flush::Root(filled.root), vec![]),
        (Flush::Root(TableId::new(9)), vec![Level::L1, Level::L2]),
        // The last frames that the table of level 1 maps, and those behind it.
        (Flush::Frames(range(511, 512)), vec![]),
        (Flush::Frames(range(512, 1024)), vec![Level::L1]),
        (
            Flush::Frames(range(1 << 18, 1 << 19)),
            vec![Level::L1, Level::L2],
        ),
        // The guest's own flushes are not about the second stage.
        (Flush::Guest(space), vec![Level::L1, Level::L2]),
        (Flush::Context { space, pcid }, vec![Level::L1, Level::L2]),
        (
            Flush::Address {
                space,
                pcid,
                address,
            },
            vec![Level::L1, Level::L2],
        ),
    ] {
        let mut world = World::new();
        world.tlb = filled.tlb.clone();
        world.tlb.flush(flush);
        assert_eq!(world.kept(), left, "{flush:?}");
    }
}

#[test]
fn a_table_that_is_gone_is_found_until_it_is_flushed() {
    type Change = fn(&mut World) -> Option<Flush>;
    let zapped: Change = |world| world.collapse(COLLAPSES[0]);
    let recovered: Change = |world| world.collapse(COLLAPSES[1]);
    let replaced: Change = World::map_huge;
    for change in [zapped, recovered, replaced] {
        let mut world = World::new();
        world.access(1, 5, WRITE).unwrap();
        assert_eq!(world.audit(), []);
        let flush = change(&mut world).expect("a flush is due");
        let stale = world.audit();
        let unlinked = stale
            .iter()
            .filter(|stale| stale.contradiction == Contradiction::Unlinked);
        assert_eq!(unlinked.count(), 1, "{stale:?}");
        world.tlb.flush(flush);
        assert_eq!(world.audit(), []);
        let found = world.access(1, 6, READ).map(TlbAccess::hpa);
        assert_eq!(found, world.walk(6, READ));
    }
}

/// The dropped flush shows: the walk goes on in a table that nobody links to any more.
#[test]
fn a_kept_table_is_walked_from() {
    let mut world = World::new();
    world.access(1, 5, READ).unwrap();
    let flush = world.collapse(Collapse::Recover(NxHugePages::Off));
    let hpa = Hpa::new((DISTANCE + FIRST + 6) << 12 | 0x18);
    assert_eq!(world.walk(6, READ), Ok(hpa));
    let misled = world.access(1, 6, READ);
    assert!(
        matches!(&misled, Err(fault) if fault.contains("level 1: nothing is mapped")),
        "{misled:?}"
    );
    world.tlb.flush(flush.expect("a flush is due"));
    assert_eq!(world.access(1, 6, READ), Ok(TlbAccess::Walked(hpa)));
}

/// Another root, or another role, has tables of its own.
#[test]
fn a_kept_table_belongs_to_its_root_and_role() {
    let mut world = World::new();
    world.access(1, 5, READ).unwrap();
    let own = world.context(1);
    let (mut other_root, mut other_role) = (own, own);
    other_root.root = TableId::new(9);
    other_role.role = other_role.role.with_level(Level::L5);
    let gfn = slat_memslot::Gfn::new(FIRST);
    assert!(world.tlb.second_tables.find(&own, gfn).is_some());
    assert!(world.tlb.second_tables.find(&other_root, gfn).is_none());
    assert!(world.tlb.second_tables.find(&other_role, gfn).is_none());
}

/// The frame that the guest's last table is in: what is kept of it is found as that of a page is, by its own number and with
/// the addresses that the table is for.
#[test]
fn each_contradiction_of_a_guest_s_table_is_found() {
    type Change = fn(&mut World) -> Option<Flush>;
    let zapped: Change = |world| world.zap(range(3, 4));
    let moved: Change = |world| {
        let flush = world.zap(range(3, 4));
        world.map(3, DISTANCE + 50);
        flush
    };
    let protected: Change = |world| {
        let weaken = Weaken::write_protect(AsId::NORMAL, range(3, 4), PageSize::Size4K);
        world.weaken(weaken, range(3, 4))
    };
    let cleaned: Change =
        |world| world.weaken(Weaken::clear_dirty(AsId::NORMAL, range(3, 4)), range(3, 4));
    let lost = Access::WRITE;
    for (change, expected) in [
        (zapped, Contradiction::Gone),
        (moved, Contradiction::Moved),
        (protected, Contradiction::Weakened { lost }),
        (cleaned, Contradiction::Clean),
    ] {
        let mut world = World::new();
        world.access(1, 5, READ).unwrap();
        assert_eq!(world.audit(), []);
        let flush = change(&mut world).expect("a flush is due");
        let found: Vec<_> = world
            .audit()
            .iter()
            .map(|stale| (stale.address, stale.gpa.raw(), stale.contradiction))
            .collect();
        assert_eq!(
            found,
            [
                (None, 0x3000, expected),
                (Some(Gva::new(0)), 0x3000, expected)
            ]
        );
        world.tlb.flush(flush);
        assert_eq!(world.audit(), []);
    }
}
