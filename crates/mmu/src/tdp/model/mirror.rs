//! Entries of a mirror, whose owner is busy at times.

use slat_memslot::{Generation, Gfn, Level, PageSize};

use super::check::consistent;
use super::world::{Thread, World, explore, role};
use crate::role::mirror_root_role;
use crate::spte::{Npt, Spte};
use crate::sync::{AtomicU32, Ordering};
use crate::table::TableId;
use crate::tdp::{Busy, External, MapRequest, Resolution, Retry};

/// The owner of the real tables: says what it was told to about one frame, and watches over its callers.
struct Owner {
    /// By the number of the call: whether it is busy then.
    busy: [bool; 2],
    calls: AtomicU32,
    inside: AtomicU32,
    said_yes: AtomicU32,
}

/// The frame that it is asked about; tables for others are made beforehand.
const FRAME: u64 = 1;

impl Owner {
    fn new(busy: [bool; 2]) -> Self {
        Self {
            busy,
            calls: AtomicU32::new(0),
            inside: AtomicU32::new(0),
            said_yes: AtomicU32::new(0),
        }
    }

    fn answer(&self) -> Result<(), Busy> {
        let before = self.inside.fetch_add(1, Ordering::AcqRel);
        assert_eq!(before, 0, "two calls for one entry");
        let call = self.calls.fetch_add(1, Ordering::AcqRel);
        let busy = self.busy.get(call as usize).copied().unwrap_or(false);
        if !busy {
            self.said_yes.fetch_add(1, Ordering::Release);
        }
        self.inside.fetch_sub(1, Ordering::AcqRel);
        if busy { Err(Busy) } else { Ok(()) }
    }
}

impl External<Npt> for Owner {
    fn set_leaf(&self, gfn: Gfn, _: Level, _: Spte<Npt>) -> Result<(), Busy> {
        if gfn.raw() == FRAME {
            return self.answer();
        }
        Ok(())
    }

    fn link_table(&self, _: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        Ok(())
    }

    fn split_leaf(&self, _: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        self.answer()
    }

    fn remove_leaf(&self, _: Gfn, _: Level, _: Spte<Npt>) -> Result<(), Busy> {
        unreachable!("nothing is removed")
    }

    fn free_table(&self, _: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        unreachable!("nothing is removed")
    }
}

const YES: [bool; 2] = [false, false];
const BUSY: [bool; 2] = [true, true];
const BUSY_ONCE: [bool; 2] = [true, false];

/// A mirror whose owner answers like this, with an MMIO entry for the frame.
fn mirror(busy: [bool; 2]) -> World<Owner> {
    let world = World::with(Owner::new(busy), mirror_root_role(role()));
    let mmio = MapRequest::mmio(Gfn::new(FRAME), Generation::new(4));
    let marked = world
        .alone()
        .enter(|locked| locked.map(world.table, &mmio).unwrap());
    assert_eq!(marked.resolution, Resolution::Emulate);
    world
}

fn entry(world: &World<Owner>) -> Spte<Npt> {
    world.tables.find(world.table, FRAME).spte
}

/// What the owner has said, as seen by somebody who sees the entry.
fn look(thread: &Thread<'_, Owner>, old: Spte<Npt>) -> bool {
    let (frame, tables) = (Gfn::new(FRAME), &thread.tables);
    let seen = thread.enter(|locked| locked.find(thread.table, frame).spte);
    let present = seen.is_present();
    if present {
        let yes = tables.external().said_yes.load(Ordering::Acquire);
        assert_eq!(yes, 1, "{seen:?} is there and nobody has said yes");
    } else {
        assert!(seen == old || tables.codec().is_frozen(seen));
    }
    present
}

/// Nobody sees the new value before the owner has agreed; if it is busy, the old one is back.
#[test]
fn an_entry_is_there_when_its_owner_has_agreed() {
    for busy in [YES, BUSY] {
        explore(3, move || {
            let world = mirror(busy);
            let old = entry(&world);
            let (mut world, mapped, seen) = world.race(
                |thread| thread.map(FRAME, PageSize::Size4K),
                move |thread| (look(thread, old), look(thread, old)),
            );
            consistent(&mut world.tables);
            // What was there once does not go.
            assert!(seen.1 || !seen.0);
            if busy == YES {
                assert_eq!(mapped, Resolution::Fixed);
                assert!(entry(&world).is_present());
            } else {
                assert_eq!(mapped, Resolution::Retry(Retry::Busy));
                assert_eq!(entry(&world), old);
            }
        });
    }
}

/// Two faults for one frame never call the owner at the same time, and one that comes after a busy call may try again.
#[test]
fn two_faults_call_the_owner_one_after_the_other() {
    for busy in [YES, BUSY_ONCE, BUSY] {
        explore(3, move || {
            let world = mirror(busy);
            let old = entry(&world);
            let fault = |thread: &Thread<'_, Owner>| thread.map(FRAME, PageSize::Size4K);
            let (mut world, one, other) = world.race(fault, fault);
            consistent(&mut world.tables);
            let fixed = [one, other].contains(&Resolution::Fixed);
            assert_eq!(fixed, entry(&world).is_present());
            assert!(fixed || entry(&world) == old);
            assert!(fixed || [one, other].contains(&Resolution::Retry(Retry::Busy)));
            assert!(fixed || busy != YES);
        });
    }
}

/// A huge leaf that the owner does not split stays, and the table for its parts is not lost.
#[test]
fn a_huge_leaf_stays_if_its_owner_is_busy() {
    for busy in [BUSY, BUSY_ONCE] {
        explore(3, move || {
            let world = World::with(Owner::new(busy), mirror_root_role(role()));
            assert_eq!(world.alone().map(0, PageSize::Size2M), Resolution::Fixed);
            let huge = entry(&world);
            let fault = |thread: &Thread<'_, Owner>| thread.map(FRAME, PageSize::Size4K);
            let (mut world, one, other) = world.race(fault, fault);
            let totals = consistent(&mut world.tables);
            let split = totals.pages_2m == 0;
            assert_eq!(totals.pages_4k, if split { 4 } else { 0 });
            assert!(split || entry(&world) == huge);
            assert!(!split || busy == BUSY_ONCE);
            assert_eq!(split, [one, other].contains(&Resolution::Fixed));
        });
    }
}
