//! Faults in parts, and zaps in parts: what happens while the lock is not held.

use core::num::NonZeroU32;

use slat_memslot::{GfnRange, Pages};

use super::*;
use crate::shadow::{ShadowBegun, SlowShadowFault};
use crate::tdp::{Every, Progress};

/// Begins a fault, lets `meanwhile` happen when the page has been found, and finishes it.
fn interrupted(meanwhile: impl FnOnce(&mut World<Npt>, &Invalidation)) -> Outcome {
    let mut world = World::<Npt>::direct(&Host::npt(40));
    world.enter();
    let (memory, invalidation) = (world.memory.clone(), Invalidation::default());
    let (mut backing, mut mmio) = (Line::default(), MmioCache::default());
    let mut env = World::<Npt>::env(&memory, &mut backing, &invalidation, &mut mmio);
    let fault = Fault::new(Gfn::new(0x400), Kind::Read);
    let mut out = Vec::new();
    let begun = world
        .mmu
        .begin_direct_fault(&world.roots, &fault, &env, &mut out);
    let slow: SlowShadowFault<'_> = match begun {
        ShadowBegun::Slow(slow) => slow,
        ShadowBegun::Done(handled) => return handled.outcome,
    };
    let found = slow.fault_in(&mut env).unwrap();
    meanwhile(&mut world, &invalidation);
    let most = PageSize::Size1G;
    let mut locked = world.mmu.lock(&mut out);
    let handled = locked.finish_direct_fault(&world.roots, &fault, most, &found, &mut env);
    assert_eq!(world.audit(), []);
    handled.outcome
}

fn frame(gfn: u64) -> GfnRange {
    GfnRange::new(Gfn::new(gfn), Pages::new(1)).unwrap()
}

#[test]
fn nothing_comes_in_between() {
    assert_eq!(interrupted(|_, _| ()), Outcome::Fixed);
}

#[test]
fn a_page_that_was_taken_away_is_asked_for_again() {
    let came = interrupted(|world, invalidation| {
        let mut locked = world.mmu.lock(&mut world.events);
        invalidation.begin(&locked);
        invalidation.add(&locked, frame(0x400));
        locked.zap_frames(slat_memslot::AsId::NORMAL, frame(0x400));
        invalidation.end(&locked);
    });
    assert_eq!(came, Outcome::Retry);
}

#[test]
fn a_root_that_became_obsolete_is_left() {
    let came = interrupted(|world, _| world.mmu.lock(&mut world.events).zap_all_fast());
    assert_eq!(came, Outcome::Retry);
}

/// While a slot is being deleted, faults in it are tried again.
#[test]
fn a_slot_that_goes_lets_faults_wait() {
    let mut world = World::<Npt>::direct(&Host::npt(40));
    world.enter();
    world.memory.invalidate_slot(SlotKey::normal(0)).unwrap();
    let fault = Fault::new(Gfn::new(1), Kind::Read);
    let invalidation = Invalidation::default();
    let backing = &mut world.backing;
    let mut env = World::<Npt>::env(&world.memory, backing, &invalidation, &mut world.mmio);
    let (most, out) = (PageSize::Size1G, &mut world.events);
    let handled = world
        .mmu
        .direct_page_fault(&world.roots, &fault, most, &mut env, out);
    assert_eq!(handled.outcome, Outcome::Retry);
    assert_eq!(world.mmu.stats().pages_4k, 0);
}

/// Ten pages or more at a time; what is made in between is not obsolete and stays.
#[test]
fn a_zap_of_all_gives_way_and_spares_what_is_new() {
    let mut world = World::paged(&Host::shadow(40));
    for table in 0..40 {
        let address = 0x80_0000_0000 + (table << 21);
        world.map_small(address, 0x500);
        world.touch(address);
    }
    let before = world.mmu.active().count();
    assert!(before > 40);
    world.mmu.lock(&mut world.events).begin_zap_all_fast();
    let mut every = Every::new(NonZeroU32::new(1).unwrap());
    let mut rounds = 0;
    loop {
        let mut locked = world.mmu.lock(&mut world.events);
        if locked.zap_obsolete(&mut every) == Progress::Done {
            break;
        }
        rounds += 1;
        assert_eq!(world.audit(), []);
        // The guest runs on with a new root.
        world.touch(0x80_0000_0000 + (rounds << 21));
    }
    assert!(rounds >= 3, "{before} pages in {rounds} rounds");
    let obsolete = |page: &crate::shadow::PageInfo| page.generation.raw() == 0;
    assert_eq!(world.mmu.active().filter(obsolete).count(), 0);
    assert!(world.mmu.active().count() >= 3);
    assert_eq!(world.audit(), []);
}
