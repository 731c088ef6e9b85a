//! Roots with their tables: who frees them, and when.

use slat_memslot::PageSize;

use super::check::{consistent, is_empty};
use super::world::{Thread, World, explore};
use crate::roots::Released;
use crate::tdp::{Resolution, Totals};

/// A root with a leaf, which was invalidated; a vCPU still holds it.
fn invalid() -> World {
    let mut world = World::new();
    assert_eq!(world.alone().map(0, PageSize::Size4K), Resolution::Fixed);
    world.invalidate();
    world
}

/// The vCPU lets go of the root. Says whether it was the last, and then finds the root empty.
fn leave(world: &Thread<'_>) -> bool {
    world.enter(|locked| match world.tables.roots().release(world.root) {
        Released::Kept(_) => false,
        Released::Freed(freed) => {
            let table = freed.payload;
            let empty = world.tables.codec().nonpresent();
            let left = (0..crate::table::ENTRIES).find(|i| world.tables.load(table, *i) != empty);
            assert_eq!(left, None, "the root goes before what it maps");
            locked.free_root(freed);
            true
        }
    })
}

/// The table of a root goes once, when it has been zapped and nobody holds it.
#[test]
fn a_root_s_table_goes_once_and_after_the_zap() {
    explore(3, || {
        let (mut world, _last, ()) = invalid().race(leave, |thread| thread.zap());
        assert_eq!(consistent(&mut world.tables), Totals::default());
        assert!(world.tables.roots().is_empty());
        assert_eq!(world.tables.arena.in_use(), 0);
    });
}

/// A vCPU goes from the old root to a new one of the same role, whose table is never the old one's.
#[test]
fn a_vcpu_finds_a_new_root_while_the_old_one_goes() {
    explore(3, || {
        let change = |thread: &Thread<'_>| {
            leave(thread);
            thread.acquire().0
        };
        let (mut world, next, ()) = invalid().race(change, |thread| thread.zap());
        assert_eq!(consistent(&mut world.tables), Totals::default());
        assert_ne!(next, world.root);
        assert_eq!(world.tables.roots().role(world.root), None);
        assert_eq!(world.tables.roots().references(next), Some(2));
        assert!(is_empty(&world.tables, next));
        assert_eq!(world.tables.arena.in_use(), 1);
    });
}

/// Two vCPUs make one root; the table that was made in vain is not lost.
#[test]
fn two_vcpus_share_a_new_root() {
    explore(3, || {
        let acquire = |thread: &Thread<'_>| thread.acquire().0;
        let world = invalid();
        world.alone().zap();
        assert!(leave(&world.alone()));
        world.tables.reclaim();
        let (mut world, one, other) = world.race(acquire, acquire);
        assert_eq!(one, other);
        assert_eq!(world.tables.roots().references(one), Some(3));
        consistent(&mut world.tables);
        assert_eq!(world.tables.arena.in_use(), 1);
    });
}
