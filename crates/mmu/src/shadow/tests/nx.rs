//! Recovery of huge pages that were split for the sake of execution.

use super::*;
use crate::spte::NxHugePages;

/// A guest that has executed in a huge page and reads in another.
fn world(pages: u64) -> World<Npt> {
    let mut world = World::<Npt>::direct(&Host::npt(40)).with_host_pages(PageSize::Size2M);
    world.settings.nx_huge_pages = NxHugePages::On;
    for page in 0..pages {
        let address = page << 21;
        let came = world.access(address, Kind::Execute);
        assert_eq!(came, Outcome::Fixed);
    }
    assert_eq!(world.mmu.stats().nx_lpage_splits, pages);
    assert_eq!(world.audit(), []);
    world
}

fn recover(world: &mut World<Npt>, ratio: u64, logged: bool) -> u64 {
    let mut locked = world.mmu.lock(&mut world.events);
    locked.recover_nx(ratio, |_, _| logged)
}

#[test]
fn a_part_goes_the_first_split_first_and_becomes_huge_when_it_is_read() {
    let mut world = world(3);
    assert_eq!(recover(&mut world, 2, false), 2);
    assert_eq!(world.mmu.stats().nx_lpage_splits, 1);
    assert_eq!(world.audit(), []);
    world.touch(0);
    assert_eq!(world.mmu.stats().pages_2m, 1);
    // The third is still small: a read does not make it huge.
    world.touch(2 << 21);
    assert_eq!(world.mmu.stats().pages_2m, 1);
    assert_eq!(world.audit(), []);
}

/// `disallowed_hugepage_adjust`: a table that stands in for a huge page stays, and each part of it maps its own page.
#[test]
fn the_parts_of_a_split_page_are_its_own() {
    let mut world = world(2);
    for gfn in [0x30, 0x123, 0x1ff, 0x2c1] {
        world.touch(gfn << 12);
        let root = world.roots.current(&world.mmu).unwrap();
        let reached = world.mmu.walk(root, gfn << 12).unwrap();
        assert_eq!(reached.level, Level::L1);
        let pfn = world.mmu.codec().pfn(reached.spte).raw();
        assert_eq!(pfn, FIRST_PFN + gfn, "{gfn:#x}");
    }
    assert_eq!(world.audit(), []);
}

#[test]
fn a_ratio_of_zero_recovers_nothing() {
    let mut world = world(2);
    assert_eq!(recover(&mut world, 0, false), 0);
    assert_eq!(world.mmu.stats().nx_lpage_splits, 2);
}

/// It would be split again at once.
#[test]
fn in_a_logged_slot_a_page_is_only_forgotten() {
    let mut world = world(1);
    let pages = world.mmu.active().count();
    assert_eq!(recover(&mut world, 1, true), 0);
    assert_eq!(world.mmu.stats().nx_lpage_splits, 0);
    assert_eq!(world.mmu.active().count(), pages);
    assert_eq!(world.audit(), []);
}
