//! What becomes of a fault before anything is mapped.

use super::*;
use crate::spte::{Entry, Ept, Npt};
use crate::tdp::{Limits, Totals};

#[test]
fn a_fault_without_a_slot_leaves_an_mmio_entry_and_the_vcpu_remembers() {
    let mut world = World::<Ept>::new(&Host::ept(40)).with_slot(0, 16, SlotFlags::empty());
    assert_eq!(world.fault(0x5000, Kind::Read).outcome, Outcome::Emulate);
    let generation = world.memory.space(AsId::NORMAL).generation();
    let found = world.find(0x5000);
    let Entry::Mmio(mmio) = world.tables.codec().decode(found.spte, found.level) else {
        panic!("{found:?}");
    };
    assert_eq!(mmio.gfn, Gfn::new(0x5000));
    assert!(world.mmio.has(Gfn::new(0x5000), generation));
    assert!(!world.mmio.has(Gfn::new(0x5001), generation));
    // Any change of slots makes the memory stale.
    world.set_region(Region::new(
        SlotKey::normal(2),
        0x100_0000,
        0x1000,
        0x7100_0000_0000,
    ));
    let later = world.memory.space(AsId::NORMAL).generation();
    assert_ne!(generation, later);
    assert!(!world.mmio.has(Gfn::new(0x5000), later));
    // With a slot there, the MMIO entry gives way to a leaf.
    world.set_region(Region::new(
        SlotKey::normal(3),
        0x5000 << 12,
        0x1000,
        0x7200_0000_0000,
    ));
    assert_eq!(world.fault(0x5000, Kind::Write).outcome, Outcome::Fixed);
    assert!(world.is_writable(0x5000));
}

#[test]
fn frame_0_and_exchanges_under_way_are_not_remembered() {
    let mut cache = MmioCache::default();
    let generation = slat_memslot::Generation::new(4);
    cache.remember(Gfn::new(0), generation);
    assert!(!cache.has(Gfn::new(0), generation));
    cache.remember(Gfn::new(7), generation);
    let updating = slat_memslot::Generation::new(4 | slat_memslot::Generation::UPDATE_IN_PROGRESS);
    cache.remember(Gfn::new(8), updating);
    assert!(cache.has(Gfn::new(7), generation) && !cache.has(Gfn::new(8), updating));
    cache.clear();
    assert!(!cache.has(Gfn::new(7), generation));
}

#[test]
fn beyond_the_last_frame_and_without_mmio_entries_nothing_is_mapped() {
    let mut world = World::<Ept>::new(&Host::ept(40));
    for fault in [
        Fault::new(Gfn::new(1 << 28), Kind::Read),
        on_present(1 << 28, Kind::Write),
        on_present((1 << 36) + 5, Kind::Write),
    ] {
        assert_eq!(world.handle(&fault).outcome, Outcome::Emulate);
    }
    assert_eq!(world.tables.totals(), Totals::default());
    let mut world = World::<Npt>::new(&Host::npt(40).without_mmio_caching());
    assert_eq!(world.fault(0x5000, Kind::Write).outcome, Outcome::Emulate);
    assert_eq!(world.tables.totals(), Totals::default());
}

#[test]
fn a_write_to_a_read_only_slot_is_emulated() {
    let host = Host::ept(40);
    let mut world = World::<Ept>::new(&host).with_slot(0, 16, SlotFlags::READONLY);
    assert_eq!(world.fault(3, Kind::Write).outcome, Outcome::Emulate);
    assert_eq!(world.tables.totals(), Totals::default());
    assert_eq!(world.fault(3, Kind::Read).outcome, Outcome::Fixed);
    assert!(!world.is_writable(3));
    assert_eq!(
        world.handle(&on_present(3, Kind::Write)).outcome,
        Outcome::Emulate
    );
}

#[test]
fn the_host_s_answer_decides() {
    for (answer, outcome) in [
        (HostPage::Bad, Outcome::BadPage),
        (HostPage::Poisoned, Outcome::Retry),
        (HostPage::Interrupted, Outcome::Interrupted),
    ] {
        let mut world = World::<Ept>::new(&Host::ept(40)).with_slot(0, 16, SlotFlags::empty());
        world.backing.host = answer;
        assert_eq!(world.fault(3, Kind::Read).outcome, outcome, "{answer:?}");
        assert_eq!(world.tables.totals(), Totals::default());
    }
}

#[test]
fn attributes_and_the_kind_of_access_have_to_agree() {
    let host = Host::ept(40);
    let private = |gfn, private| Fault {
        private,
        ..Fault::new(Gfn::new(gfn), Kind::Read)
    };
    let mut world = World::<Ept>::of_type(&host, VmType::SwProtected);
    let file = world.memory.create_gmem(16 << 12, 0).unwrap();
    let region = Region::new(SlotKey::normal(1), 0, 16 << 12, 0x7000_0000_0000);
    world.set_region(region.with_gmem(file, 0));
    world.set_region(Region::new(
        SlotKey::normal(2),
        16 << 12,
        16 << 12,
        0x7100_0000_0000,
    ));
    // Frames 8 to 23 are private; from 16 on there is no file behind them.
    assert!(
        world
            .memory
            .set_attributes(8 << 12, 16 << 12, 8, 0)
            .unwrap()
    );
    for (gfn, access, outcome) in [
        (1, false, Outcome::Fixed),
        (1, true, Outcome::MemoryFault),
        (9, false, Outcome::MemoryFault),
        (9, true, Outcome::Fixed),
        (17, true, Outcome::MemoryFault),
        (17, false, Outcome::MemoryFault),
        (25, false, Outcome::Fixed),
        // Without a slot.
        (0x900, true, Outcome::MemoryFault),
    ] {
        let handled = world.handle(&private(gfn, access));
        assert_eq!(handled.outcome, outcome, "{gfn}, private: {access}");
    }
    world.backing.file = Some(FilePage::Bad);
    assert_eq!(
        world.handle(&private(10, true)).outcome,
        Outcome::MemoryFault
    );
}

#[test]
fn an_invalidation_keeps_faults_on_its_frames_away() {
    let host = Host::ept(40);
    let mut world = World::<Ept>::new(&host).with_slot(0, 0x1000, SlotFlags::empty());
    world.begin(None);
    // Its range is not known yet.
    assert_eq!(world.fault(3, Kind::Read).outcome, Outcome::Retry);
    world.add(range(0x10, 0x20));
    assert_eq!(world.fault(3, Kind::Read).outcome, Outcome::Fixed);
    assert_eq!(world.fault(0x1f, Kind::Read).outcome, Outcome::Retry);
    // Another one makes the range larger, until both are over.
    world.begin(Some(range(0x40, 0x41)));
    world.end();
    assert_eq!(world.fault(0x30, Kind::Read).outcome, Outcome::Retry);
    // Without a slot there is no page that could go stale.
    assert_eq!(world.fault(0x5000, Kind::Read).outcome, Outcome::Emulate);
    world.end();
    assert_eq!(world.fault(0x1f, Kind::Read).outcome, Outcome::Fixed);
}

#[test]
fn an_answer_is_stale_when_an_invalidation_has_ended_since() {
    let (mut world, gfn) = (World::<Ept>::new(&Host::ept(40)), Gfn::new(5));
    let before = world.invalidation.sequence();
    world.begin(Some(range(0x10, 0x20)));
    let meanwhile = world.invalidation.sequence();
    assert_eq!(before, meanwhile);
    assert!(!world.invalidation.must_retry(before, gfn));
    world.end();
    assert!(world.invalidation.must_retry(meanwhile, gfn));
    let now = world.invalidation.sequence();
    assert!(!world.invalidation.must_retry(now, gfn));
}

#[test]
fn a_root_that_was_invalidated_is_not_mapped_into() {
    let host = Host::ept(40);
    let mut world = World::<Ept>::new(&host).with_slot(0, 16, SlotFlags::empty());
    world.tables.exclusive(Unobserved).invalidate_roots();
    assert_eq!(world.fault(3, Kind::Read).outcome, Outcome::Retry);
    assert_eq!(world.fault(0x5000, Kind::Read).outcome, Outcome::Retry);
    assert_eq!(world.tables.totals(), Totals::default());
}

#[test]
fn without_a_table_to_be_had_nothing_is_mapped() {
    let host = Host::ept(40);
    let limits = Limits {
        tables: 1,
        readers: 1,
    };
    let mut world = World::<Ept>::new(&host).with_slot(0, 1 << 20, SlotFlags::empty());
    world.set_tables(Tables::with_limits(&host, limits));
    // One page of each 2 MiB, until all 512 tables are in use: the root, and two for the levels between.
    let outcomes = (0..512).map(|number| world.fault(number << 9, Kind::Read).outcome);
    let outcomes: Vec<Outcome> = outcomes.collect();
    let fixed = outcomes
        .iter()
        .take_while(|outcome| **outcome == Outcome::Fixed);
    assert_eq!(fixed.count(), 509);
    assert!(
        outcomes[509..]
            .iter()
            .all(|outcome| *outcome == Outcome::OutOfTables)
    );
}
