//! Faults against the removal of the table that they fault in.

use slat_memslot::{Level, PageSize};

use super::check::{consistent, leaf_level};
use super::world::{Thread, World, explore};
use crate::spte::NxHugePages;
use crate::tdp::{Collapse, Collapsed, Resolution};

/// Tables for the frames 0 to 3, and a leaf for the first.
fn with_table() -> World {
    let world = World::new();
    assert_eq!(world.alone().map(0, PageSize::Size4K), Resolution::Fixed);
    world
}

fn level(world: &World, gfn: u64) -> Option<Level> {
    leaf_level(&world.tables, world.table, gfn)
}

/// A fault for a huge page takes the table away in which another fault puts a small one.
#[test]
fn a_small_fault_against_a_huge_one() {
    explore(3, || {
        let (mut world, small, huge) = with_table().race(
            |thread| thread.map(1, PageSize::Size4K),
            |thread| thread.map(0, PageSize::Size2M),
        );
        consistent(&mut world.tables);
        // One of them gets through, and what has got through stays: a table's leaves are the huge one's parts.
        assert!(small == Resolution::Fixed || huge == Resolution::Fixed);
        assert!(level(&world, 0).is_some());
        if small == Resolution::Fixed || huge == Resolution::Fixed {
            assert!(level(&world, 1).is_some());
        }
        if huge == Resolution::Fixed {
            assert!(level(&world, 3).is_some());
        }
    });
}

/// A table is zapped to make room for a huge leaf.
#[test]
fn a_fault_against_a_table_that_is_zapped() {
    explore(3, || {
        let (mut world, mapped, collapsed) = with_table().race(
            |thread| thread.map(1, PageSize::Size4K),
            |thread| thread.collapse(PageSize::Size2M, Collapse::Zap),
        );
        let totals = consistent(&mut world.tables);
        assert_eq!(collapsed, Collapsed::Done);
        assert_eq!(level(&world, 0), None);
        // The leaf went with the table, or is in a new one.
        let survived = level(&world, 1).is_some();
        assert_eq!(totals.pages_4k, u64::from(survived));
        assert!(mapped == Resolution::Fixed || !survived);
    });
}

/// A huge leaf is made of the leaves in a table while one is added.
#[test]
fn a_fault_against_a_table_that_becomes_a_huge_leaf() {
    explore(3, || {
        let how = Collapse::Recover(NxHugePages::Off);
        let (mut world, mapped, collapsed) = with_table().race(
            |thread| thread.map(1, PageSize::Size4K),
            move |thread| thread.collapse(PageSize::Size2M, how),
        );
        consistent(&mut world.tables);
        assert_eq!(collapsed, Collapsed::Done);
        assert!(level(&world, 0).is_some());
        assert!(level(&world, 1).is_some() || mapped != Resolution::Fixed);
    });
}

/// Two threads remove one table.
#[test]
fn a_table_is_removed_once() {
    explore(3, || {
        let zap = |thread: &Thread<'_>| thread.collapse(PageSize::Size2M, Collapse::Zap);
        let (mut world, one, other) = with_table().race(zap, zap);
        let totals = consistent(&mut world.tables);
        let done = [one, other].map(|each| each == Collapsed::Done);
        assert_eq!(done.iter().filter(|done| **done).count(), 1);
        assert_eq!((totals.pages_4k, totals.tables), (0, 1));
    });
}

/// A tree of two levels goes while a fault links a table in it.
#[test]
fn a_fault_against_a_tree_that_is_zapped() {
    explore(3, || {
        let (mut world, mapped, collapsed) = with_table().race(
            |thread| thread.map(4, PageSize::Size4K),
            |thread| thread.collapse(PageSize::Size1G, Collapse::Zap),
        );
        let totals = consistent(&mut world.tables);
        assert_eq!(collapsed, Collapsed::Done);
        let survived = level(&world, 4).is_some();
        assert_eq!(totals.pages_4k, u64::from(survived));
        assert!(mapped == Resolution::Fixed || !survived);
    });
}

/// A huge leaf is split by two faults at once, which ask for different parts.
#[test]
fn two_faults_split_one_huge_leaf() {
    explore(3, || {
        let world = World::new();
        assert_eq!(world.alone().map(0, PageSize::Size2M), Resolution::Fixed);
        let (mut world, one, other) = world.race(
            |thread| thread.map(1, PageSize::Size4K),
            |thread| thread.map(2, PageSize::Size4K),
        );
        let totals = consistent(&mut world.tables);
        assert!(one == Resolution::Fixed || other == Resolution::Fixed);
        assert_eq!((totals.pages_4k, totals.pages_2m), (4, 0));
    });
}
