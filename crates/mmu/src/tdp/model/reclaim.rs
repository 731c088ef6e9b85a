//! Walkers against the reuse of the tables that they walk through.

use slat_memslot::{Gfn, PageSize};

use super::check::{consistent, page_of};
use super::world::{Thread, World, explore};
use crate::spte::Access;
use crate::tdp::{Collapse, Collapsed, Resolution, Violation};

/// Walks to a frame, as hardware does, whatever happens to the tables meanwhile: it finds the frame's page or none.
fn walk(world: &Thread<'_>, gfn: u64) {
    let found = world.enter(|locked| locked.translate(world.table, Gfn::new(gfn), Access::WRITE));
    match found {
        Ok(translated) => assert_eq!(translated.pfn, page_of(gfn), "another frame's page"),
        Err(Violation::Absent { .. } | Violation::Frozen { .. }) => {}
        Err(violation) => panic!("{violation:?}"),
    }
}

fn with_leaf() -> World {
    let world = World::new();
    assert_eq!(world.alone().map(0, PageSize::Size4K), Resolution::Fixed);
    world
}

/// The table of level 1 is removed and serves other frames.
#[test]
fn a_walker_never_sees_the_leaves_of_other_frames() {
    explore(3, || {
        let reuse = |thread: &Thread<'_>| {
            let zapped = thread.collapse(PageSize::Size2M, Collapse::Zap);
            assert_eq!(zapped, Collapsed::Done);
            thread.tables.reclaim();
            thread.map(4, PageSize::Size4K)
        };
        let (mut world, (), mapped) = with_leaf().race(|thread| walk(thread, 0), reuse);
        assert_eq!(mapped, Resolution::Fixed);
        assert_eq!(consistent(&mut world.tables).pages_4k, 1);
    });
}

/// A fault that is still in the removed table does not put its leaf into what has become another one.
#[test]
fn a_fault_never_reaches_a_table_used_anew() {
    explore(3, || {
        let reuse = |thread: &Thread<'_>| {
            let zapped = thread.collapse(PageSize::Size2M, Collapse::Zap);
            assert_eq!(zapped, Collapsed::Done);
            thread.tables.reclaim();
            thread.map(4, PageSize::Size4K)
        };
        let fault = |thread: &Thread<'_>| thread.map(1, PageSize::Size4K);
        let (mut world, _, mapped) = with_leaf().race(fault, reuse);
        assert!(matches!(mapped, Resolution::Fixed));
        consistent(&mut world.tables);
    });
}

/// A vCPU still walks from a root that is zapped and whose tables serve the next root.
#[test]
fn a_walker_from_an_old_root_never_sees_the_next() {
    explore(3, || {
        let mut world = with_leaf();
        world.invalidate();
        let reuse = |thread: &Thread<'_>| {
            thread.zap();
            thread.tables.reclaim();
            let (_, table) = thread.acquire();
            thread.map_in(table, 4, PageSize::Size4K)
        };
        let (mut world, (), mapped) = world.race(|thread| walk(thread, 0), reuse);
        assert_eq!(mapped, Resolution::Fixed);
        assert_eq!(consistent(&mut world.tables).pages_4k, 1);
    });
}
