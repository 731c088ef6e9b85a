//! A fault in its three parts, with what may happen while the lock is not held.

use super::*;
use crate::spte::Ept;
use crate::tdp::{Passes, Totals, Uninterrupted, ZapInvalidated, ZapLeafs};

/// Finds the page for a fault, lets `meanwhile` happen, and finishes the fault.
fn interrupted(
    world: &mut World<Ept>,
    fault: &Fault,
    meanwhile: impl FnOnce(&mut Tables<Ept>, &Invalidation),
) -> Handled {
    let mut env = Env {
        memory: &world.memory,
        backing: &mut world.backing,
        invalidation: &world.invalidation,
        settings: world.settings,
        mmio: &mut world.mmio,
        shadow: NotTracked,
    };
    let mut locked = world.tables.shared(&mut world.reader, Unobserved);
    let slow = match locked.begin_fault(world.root, fault, &env) {
        Begun::Done(handled) => return handled,
        Begun::Slow(slow) => slow,
    };
    drop(locked);
    let found = match slow.fault_in(&mut env) {
        Ok(found) => found,
        Err(outcome) => return outcome.into(),
    };
    meanwhile(&mut world.tables, &world.invalidation);
    let mut locked = world.tables.shared(&mut world.reader, Unobserved);
    locked.finish_fault(&found, &env)
}

fn world() -> World<Ept> {
    World::new(&Host::ept(40)).with_slot(0, 0x1000, SlotFlags::empty())
}

fn write(gfn: u64) -> Fault {
    Fault::new(Gfn::new(gfn), Kind::Write)
}

#[test]
fn nothing_in_between_is_the_whole_fault() {
    let mut world = world();
    let handled = interrupted(&mut world, &write(3), |_, _| {});
    assert_eq!(handled.outcome, Outcome::Fixed);
    assert!(world.is_writable(3));
    let again = interrupted(&mut world, &on_present(3, Kind::Write), |_, _| {});
    assert_eq!(again.outcome, Outcome::Spurious);
}

/// Whatever ends in between makes every answer stale; what is in progress only those on its frames.
#[test]
fn an_invalidation_in_between_makes_the_page_stale() {
    for (frames, ends, outcome) in [
        (range(0, 8), true, Outcome::Retry),
        (range(0x100, 0x108), true, Outcome::Retry),
        (range(0, 8), false, Outcome::Retry),
        (range(0x100, 0x108), false, Outcome::Fixed),
    ] {
        let mut world = world();
        let handled = interrupted(&mut world, &write(3), |tables, invalidation| {
            let mut held = tables.exclusive(Unobserved);
            invalidation.begin(&held);
            invalidation.add(&held, frames);
            let mut zap = ZapLeafs::of_address_space(AsId::NORMAL, frames);
            let _ = zap.run(&mut held, &mut Uninterrupted);
            if ends {
                invalidation.end(&held);
            }
        });
        assert_eq!(handled.outcome, outcome, "{frames}, ended: {ends}");
        assert_eq!(world.is_writable(3), outcome == Outcome::Fixed);
    }
}

/// An MMIO entry maps no page that could go.
#[test]
fn an_invalidation_in_between_is_nothing_to_mmio() {
    let mut world = world();
    let handled = interrupted(&mut world, &write(0x5000), |tables, invalidation| {
        let held = tables.exclusive(Unobserved);
        invalidation.begin(&held);
        invalidation.add(&held, range(0x5000, 0x5001));
        invalidation.end(&held);
    });
    assert_eq!(handled.outcome, Outcome::Emulate);
    let spte = world.find(0x5000).spte;
    assert!(world.tables.codec().is_mmio(spte));
}

#[test]
fn a_root_that_is_invalidated_in_between_is_not_mapped_into() {
    for gfn in [3, 0x5000] {
        let mut world = world();
        let handled = interrupted(&mut world, &write(gfn), |tables, _| {
            tables.exclusive(Unobserved).invalidate_roots();
        });
        assert_eq!(handled.outcome, Outcome::Retry);
        assert_eq!(world.tables.totals(), Totals::default());
    }
}

/// A caller that does not keep its reference finds nothing, not another root's table.
#[test]
fn a_root_that_is_freed_in_between_is_not_mapped_into() {
    let mut world = world();
    let root = world.root;
    let handled = interrupted(&mut world, &write(3), |tables, _| {
        tables.exclusive(Unobserved).invalidate_roots();
        let mut reader = tables.reader().unwrap();
        let mut held = tables.shared(&mut reader, Unobserved);
        let _ = ZapInvalidated::new(Passes::default()).run(&mut held, &mut Uninterrupted);
        held.put_root(root);
    });
    assert_eq!(handled.outcome, Outcome::Retry);
    assert_eq!(world.tables.roots().role(root), None);
}

#[test]
fn a_slot_that_is_going_keeps_faults_away() {
    let mut world = world();
    world.set_region(Region::new(
        SlotKey::normal(2),
        0x2000 << 12,
        0x1000,
        0x7200_0000_0000,
    ));
    assert!(world.memory.invalidate_slot(SlotKey::normal(1)).is_some());
    assert_eq!(world.fault(3, Kind::Write).outcome, Outcome::Retry);
    assert_eq!(world.fault(0x2000, Kind::Write).outcome, Outcome::Fixed);
    world.set_slot(0, 0, SlotFlags::empty());
    assert_eq!(world.fault(3, Kind::Write).outcome, Outcome::Emulate);
}
