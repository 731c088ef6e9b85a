//! The order in which things happen.

use super::*;

fn npt() -> World<Npt> {
    World::new(&Host::npt(48))
}

#[test]
fn a_fault_makes_tables_from_the_root_down() {
    let mut world = npt();
    assert_eq!(
        world.map(0x12345, PageSize::Size4K, 0x777),
        Resolution::Fixed
    );
    assert_eq!(
        world.story(),
        [
            "page 0x0 l4",
            "page 0x0 l3",
            "spte 0x0 l4 0x8000000000000000 -> 0x1827",
            "page 0x0 l2",
            "spte 0x0 l3 0x8000000000000000 -> 0x2827",
            "page 0x12200 l1",
            "spte 0x12200 l2 0x8000000000000000 -> 0x3827",
            "spte 0x12345 l1 0x8000000000000000 -> 0x777e67",
            "set 0x12345 l1 0x777e67",
        ]
    );
    assert_eq!(
        world.map(0x12345, PageSize::Size4K, 0x777),
        Resolution::Fixed
    );
    assert_eq!(world.tables.totals().tables, 3);
}

#[test]
fn a_split_reports_the_huge_leaf_and_not_its_parts() {
    let mut world = npt();
    assert_eq!(world.map(0x200, PageSize::Size2M, 0x400), Resolution::Fixed);
    let _ = world.story();
    assert_eq!(world.map(0x203, PageSize::Size4K, 0x403), Resolution::Fixed);
    assert_eq!(
        world.story(),
        [
            "page 0x200 l1",
            "spte 0x200 l2 0x400ee7 -> 0x3827",
            "split 0x200 l2 0",
            // Up to 6.12 a leaf that replaces a writable one starts clean.
            "spte 0x203 l1 0x403e67 -> 0x403e27",
            "set 0x203 l1 0x403e27",
        ]
    );
    let totals = world.tables.totals();
    assert_eq!(
        (totals.pages_4k, totals.pages_2m, totals.tables),
        (512, 0, 3)
    );
    let by_size =
        [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G].map(|size| totals.leaves(size));
    assert_eq!(by_size, [512, 0, 0]);
    assert_eq!(world.spte(0x3ff).raw(), 0x5ff_e67);
}

#[test]
fn a_huge_leaf_replaces_a_table_before_the_table_s_entries_go() {
    let mut world = npt();
    for gfn in [0x200, 0x201] {
        world.map(gfn, PageSize::Size4K, gfn + 0x1000);
    }
    let _ = world.story();
    assert_eq!(
        world.map(0x200, PageSize::Size2M, 0x1200),
        Resolution::Fixed
    );
    let story = world.story();
    assert_eq!(
        story[..4],
        [
            "spte 0x200 l2 0x3827 -> 0x1200ee7",
            "zapped 0x200 l1",
            "spte 0x200 l1 0x1200e67 -> 0x80000000000005a0",
            "spte 0x201 l1 0x1201e67 -> 0x80000000000005a0",
        ]
    );
    // With others about, all 512 entries are frozen.
    assert_eq!(story.len(), 2 + 512 + 2);
    assert_eq!(story[514], "flush Frames(gfn [0x200, 0x400)) TableReplaced");
    assert_eq!(story[515], "set 0x200 l2 0x1200ee7");
}

#[test]
fn an_exclusive_zap_touches_what_is_present() {
    let mut world = npt();
    for gfn in [0x10, 0x300] {
        world.map(gfn, PageSize::Size4K, gfn);
    }
    let mmio = MapRequest::mmio(Gfn::new(0x11), slat_memslot::Generation::new(4));
    assert_eq!(world.request(&mmio), Resolution::Emulate);
    let _ = world.story();
    assert!(world.zap(0, 0x300).needs_flush());
    assert_eq!(
        world.story(),
        ["spte 0x10 l1 0x10e67 -> 0x8000000000000000"]
    );
    assert!(!world.zap(0, 0x300).needs_flush());
    assert_eq!(world.tables.totals().pages_4k, 1);
    // MMIO stays, and so do the tables. The access is emulated again, and nothing changes.
    assert_eq!(world.request(&mmio), Resolution::Emulate);
    assert_eq!(world.story(), ["mmio 0x11"]);
    assert_eq!(world.tables.totals().tables, 4);
}
