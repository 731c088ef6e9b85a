//! Others in a root that is being zapped.

use core::num::NonZeroU32;

use slat_memslot::{AsId, Gfn, GfnRange, Level, PageSize};

use super::check::{consistent, is_empty};
use super::world::{Thread, World, explore};
use crate::spte::bits::npt;
use crate::spte::{Marks, Npt, NxHugePages, Pfn, Spte};
use crate::sync::Ordering;
use crate::tdp::{
    Collapse, Event, Every, Harvesting, Observer, Progress, Resolution, SplitHugePages, Totals,
    Uninterrupted,
};

/// The second entry of level 2.
const HUGE: u64 = 4;

/// Everything in the root has gone, and the root is still held.
fn is_zapped(world: &mut World) {
    assert_eq!(consistent(&mut world.tables), Totals::default());
    assert!(is_empty(&world.tables, world.root));
    assert_eq!(world.tables.roots().references(world.root), Some(1));
}

/// A thread was about to split a huge leaf when its root was invalidated.
#[test]
fn a_split_that_has_begun_leaves_nothing_behind() {
    explore(2, || {
        let mut world = World::new();
        assert_eq!(world.alone().map(HUGE, PageSize::Size2M), Resolution::Fixed);
        let range = GfnRange::between(Gfn::new(0), Gfn::new(2 * HUGE)).unwrap();
        let mut split =
            SplitHugePages::new(AsId::NORMAL, range, PageSize::Size4K, NxHugePages::Off);
        let mut budget = Every::new(NonZeroU32::new(1).unwrap());
        let begun = world.alone().enter(|locked| split.run(locked, &mut budget));
        assert_eq!(begun, Ok(Progress::Paused));
        world.invalidate();
        let (mut world, ended, ()) = world.race(
            move |thread| thread.enter(|locked| split.run(locked, &mut Uninterrupted)),
            |thread| thread.zap(),
        );
        assert_eq!(ended, Ok(Progress::Done));
        is_zapped(&mut world);
    });
}

/// A thread makes room for a huge leaf, or puts one there.
#[test]
fn a_collapse_leaves_nothing_behind() {
    for how in [Collapse::Zap, Collapse::Recover(NxHugePages::Off)] {
        explore(2, move || {
            let mut world = World::new();
            assert_eq!(world.alone().map(0, PageSize::Size4K), Resolution::Fixed);
            world.invalidate();
            let collapse = move |thread: &Thread<'_>| {
                let _ = thread.collapse(PageSize::Size2M, how);
            };
            let (mut world, (), ()) = world.race(collapse, |thread| thread.zap());
            is_zapped(&mut world);
        });
    }
}

/// Faults go on in a new root while the old one is zapped.
#[test]
fn the_next_root_keeps_its_leaves() {
    explore(3, || {
        let mut world = World::new();
        assert_eq!(world.alone().map(0, PageSize::Size4K), Resolution::Fixed);
        world.invalidate();
        let fault = |thread: &Thread<'_>| {
            let (_, table) = thread.acquire();
            thread.map_in(table, 0, PageSize::Size4K)
        };
        let (mut world, fixed, ()) = world.race(fault, |thread| thread.zap());
        assert_eq!(fixed, Resolution::Fixed);
        let totals = consistent(&mut world.tables);
        assert_eq!((totals.pages_4k, totals.tables), (1, 2));
        assert!(is_empty(&world.tables, world.root));
    });
}

/// Two threads zap what was invalidated.
#[test]
fn a_root_is_zapped_by_one_of_two() {
    explore(2, || {
        let mut world = World::new();
        assert_eq!(world.alone().map(0, PageSize::Size4K), Resolution::Fixed);
        world.invalidate();
        let (mut world, (), ()) = world.race(|thread| thread.zap(), |thread| thread.zap());
        is_zapped(&mut world);
    });
}

/// What happened to the leaf that hardware writes to.
#[derive(Default)]
struct Watch {
    /// Leaves that were still in a table when that was taken apart.
    left_over: u32,
    dirty: u32,
}

impl Observer<Npt> for Watch {
    const EVENTS: bool = true;
    const HARVEST: Harvesting = Harvesting::EveryPage;

    fn event(&mut self, event: Event<Npt>) {
        if let Event::SpteChanged {
            level, old, new, ..
        } = event
        {
            let emptied = new.raw() == 1 << 63;
            self.left_over += u32::from(old.is_leaf(level) && !emptied);
        }
    }

    fn harvest(&mut self, _: Pfn, _: Level, marks: Marks) {
        self.dirty += u32::from(marks.dirty);
    }
}

/// A vCPU still runs on the root, and hardware notes in a leaf that the guest wrote. Says whether it did.
fn write(world: &Thread<'_>, gfn: u64) -> bool {
    world.enter(|locked| {
        let found = locked.find(world.table, Gfn::new(gfn));
        if !found.spte.is_leaf(found.level) {
            return false;
        }
        let entry = world.tables.entry(found.place.table, found.place.index);
        let (old, new) = (found.spte.raw(), found.spte.raw() | npt::DIRTY);
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        entry.compare_exchange(old, new, success, failure).is_ok()
    })
}

/// A mark that hardware has made is passed on, and the pass that zaps leaves of a size leaves none of them to the next.
#[test]
fn no_mark_of_hardware_is_lost() {
    for size in [PageSize::Size4K, PageSize::Size2M] {
        explore(3, move || {
            let mut world = World::new();
            assert_eq!(world.alone().map(0, size), Resolution::Fixed);
            // A leaf is made dirty by a fault; writing back has cleaned it.
            let found = world.tables.find(world.table, 0);
            let clean = Spte::<Npt>::from_raw(found.spte.raw() & !npt::DIRTY);
            let entry = world.tables.entry(found.place.table, found.place.index);
            entry.store(clean.raw(), Ordering::Release);
            world.invalidate();
            let zap = |thread: &Thread<'_>| {
                let mut watch = Watch::default();
                thread.zap_watched(&mut watch);
                watch
            };
            let (mut world, written, watch) = world.race(|thread| write(thread, 0), zap);
            is_zapped(&mut world);
            assert_eq!(watch.dirty, u32::from(written));
            assert_eq!(watch.left_over, 0, "a pass left a leaf to the next");
        });
    }
}
