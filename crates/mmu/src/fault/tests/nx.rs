//! The mitigation of iTLB multihit.

use PageSize::{Size2M, Size4K};

use super::*;
use crate::spte::Ept;

fn world() -> World<Ept> {
    let world = World::new(&Host::ept(40)).backed_by(Size2M);
    let mut world = world.with_slot(0, 1 << 18, SlotFlags::empty());
    world.settings.nx_huge_pages = NxHugePages::On;
    world
}

fn recover(world: &mut World<Ept>, ratio: u64, logged: bool) -> u64 {
    let mut locked = world.tables.exclusive(Unobserved);
    locked.recover_nx(ratio, |_, _| logged)
}

#[test]
fn execution_makes_a_small_page_until_it_is_recovered() {
    let mut world = world();
    assert_eq!(world.fault(0x205, Kind::Read).size, Size2M);
    let huge = world.find(0x205);
    assert!(!world.tables.codec().is_executable(huge.spte));
    let handled = world.fault(0x205, Kind::Execute);
    assert_eq!((handled.outcome, handled.size), (Outcome::Fixed, Size4K));
    let small = world.find(0x205);
    assert!(world.tables.codec().is_executable(small.spte));
    assert_eq!(world.tables.nx_splits(), 1);
    // A later read does not put the huge page back.
    assert_eq!(world.fault(0x206, Kind::Read).size, Size4K);
    assert_eq!(recover(&mut world, 60, false), 1);
    assert_eq!(
        (world.tables.nx_splits(), world.tables.totals().pages_4k),
        (0, 0)
    );
    assert_eq!(world.fault(0x206, Kind::Read).size, Size2M);
}

#[test]
fn a_table_that_is_needed_anyway_is_not_remembered() {
    let mut world = world();
    world.set_backing(Size4K, true);
    assert_eq!(world.fault(0x205, Kind::Execute).size, Size4K);
    assert_eq!(world.tables.nx_splits(), 0);
    // Nor is a small leaf in a table that is there for other reasons replaced.
    assert_eq!(world.fault(0x206, Kind::Execute).outcome, Outcome::Fixed);
    assert_eq!(world.tables.nx_splits(), 0);
}

#[test]
fn recovery_takes_the_ratio_th_part_rounded_up() {
    for (tables, ratio, zapped) in [
        (5, 0, 0),
        (5, 1, 5),
        (5, 2, 3),
        (5, 4, 2),
        (5, 60, 1),
        (0, 1, 0),
    ] {
        let mut world = world();
        for number in 0..tables {
            assert_eq!(world.fault(number << 9, Kind::Execute).size, Size4K);
        }
        assert_eq!(world.tables.nx_splits(), tables);
        assert_eq!(
            recover(&mut world, ratio, false),
            zapped,
            "{tables} by {ratio}"
        );
        assert_eq!(world.tables.nx_splits(), tables - zapped);
        // The oldest go first.
        let left = (0..tables).filter(|number| world.find(number << 9).spte.is_present());
        assert_eq!(
            left.collect::<Vec<u64>>(),
            (zapped..tables).collect::<Vec<u64>>()
        );
    }
}

#[test]
fn in_a_logged_slot_a_table_is_only_forgotten() {
    let mut world = world();
    assert_eq!(world.fault(0x205, Kind::Execute).size, Size4K);
    assert_eq!(recover(&mut world, 1, true), 0);
    assert_eq!(
        (world.tables.nx_splits(), world.tables.totals().pages_4k),
        (0, 1)
    );
}
