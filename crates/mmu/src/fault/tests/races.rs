//! What may come between two steps of KVM's own.

use super::*;
use crate::spte::{Access, Ept};
use crate::tdp::{HardwareAccess, Uninterrupted, Weaken};

/// The guest writes; says whether a hardware log of modified pages tells.
fn writes_and_tells(world: &mut World<Ept>, gfn: u64) -> Option<bool> {
    let table = world.table();
    let mut locked = world.tables.shared(&mut world.reader, Unobserved);
    match locked.hardware_access(table, Gfn::new(gfn), Access::USER | Access::WRITE) {
        HardwareAccess::Done { became_dirty } => Some(became_dirty),
        _ => None,
    }
}

fn pass(world: &mut World<Ept>, mut pass: Weaken) {
    let mut locked = world.tables.shared(&mut world.reader, Unobserved);
    let _ = pass.run(&mut locked, &mut Uninterrupted);
}

/// When a log is switched on with page-modification logging and `eager_page_split=0`, KVM first clears dirty bits and then
/// write-protects huge leaves (`x86.c:kvm_mmu_slot_apply_flags`, 6.12.117). A huge leaf that is written to and split in
/// between leaves small ones that are writable and dirty, so that writes to them are never logged. Found by
/// `fault::model`. The other way round, nothing is lost.
#[test]
fn dirty_bits_that_are_cleared_before_huge_leaves_are_protected_may_hide_writes() {
    let slot = range(0, 0x400);
    let clear = || Weaken::clear_dirty(AsId::NORMAL, slot);
    let protect = || Weaken::write_protect(AsId::NORMAL, slot, PageSize::Size2M);
    for (first, second, hidden) in [(clear(), protect(), true), (protect(), clear(), false)] {
        let world = World::<Ept>::new(&Host::ept(40)).backed_by(PageSize::Size2M);
        let mut world = world.with_slot(0, 0x400, SlotFlags::empty());
        assert_eq!(world.fault(0x205, Kind::Write).outcome, Outcome::Fixed);
        assert_eq!(world.find(0x205).level, PageSize::Size2M.level());
        world.set_slot(0, 0x400, SlotFlags::LOG_DIRTY_PAGES);
        pass(&mut world, first);
        // One write, which is logged or faults; and a prefault, which splits.
        assert_eq!(writes_and_tells(&mut world, 0x205), hidden.then_some(true));
        assert_eq!(world.prefault(0x206, 1).unwrap().done, Pages::new(1));
        pass(&mut world, second);
        // Another page: its write goes unseen, or faults.
        let unseen = writes_and_tells(&mut world, 0x204) == Some(false);
        assert_eq!(unseen, hidden);
    }
}
